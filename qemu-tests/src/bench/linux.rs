//! The operations, and what Linux takes for them.
//!
//! Linux 7.2.13, built lean (no hardening, mitigations or tracing), measured on the same QEMU machines in strict mode:
//! the whole operation with its invalidation, hot tables, instructions per operation. Figures that were taken down in
//! millions are rounded to ten thousand. Operations on shared address spaces were not measured there.

/// One operation.
#[derive(Debug)]
pub(super) struct Operation {
    /// What the kernel calls it.
    pub(super) key: &'static str,
    /// For people.
    pub(super) name: &'static str,
    vtd: u64,
    smmu: u64,
    /// The goal is Linux's figure divided by this.
    pub(super) share: u64,
    needs: Needs,
}

/// What a machine's unit must have in QEMU for an operation to be counted there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    /// Nothing but mappings.
    Mappings,
    /// A stage that walks the CPU's tables.
    CpuTables,
    /// That, PASIDs and translations for devices; which QEMU's SMMUv3 has not.
    Pasids,
    /// All that and page requests, which endpoints make that a library gives to QEMU.
    PageRequests,
}

impl Operation {
    const fn new(key: &'static str, name: &'static str, vtd: u64, smmu: u64, share: u64) -> Self {
        Self { key, name, vtd, smmu, share, needs: Needs::Mappings }
    }

    /// One that Linux was not measured at.
    const fn sharing(key: &'static str, name: &'static str, needs: Needs) -> Self {
        Self { key, name, vtd: 0, smmu: 0, share: 1, needs }
    }

    /// Whether it ends in one invalidation, of one range, that is waited for.
    pub(super) fn is_strict(&self) -> bool {
        self.key.ends_with(".unmap") || self.key.starts_with("notify")
    }

    /// Whether it leaves the unit alone.
    pub(super) fn is_silent(&self) -> bool {
        self.key == "queued.map"
    }

    /// Whether the benchmark's job counts it on the machine of this name.
    pub(super) fn is_counted_on(&self, machine: &str) -> bool {
        match self.needs {
            Needs::Mappings => true,
            Needs::CpuTables => ["x86_64-first", "aarch64"].contains(&machine),
            Needs::Pasids => machine == "x86_64-first",
            Needs::PageRequests => false,
        }
    }

    /// Whether the harness asks for each repetition. What the kernel's console does meanwhile depends on when it does, and
    /// so does the state of the heap: a little.
    pub(super) fn is_asked_for(&self) -> bool {
        self.needs == Needs::PageRequests
    }

    /// Whether it is counted on the machine of this name with endpoints of the harness.
    pub(super) fn is_counted_with_endpoints_on(&self, machine: &str) -> bool {
        self.is_asked_for() && machine == "x86_64-first"
    }

    /// Whether it takes PASIDs.
    pub(super) fn has_pasids(&self) -> bool {
        matches!(self.needs, Needs::Pasids | Needs::PageRequests)
    }

    /// Linux's instructions on the machine of this name.
    pub(super) fn linux_on(&self, machine: &str) -> Option<u64> {
        let instructions = match machine {
            "x86_64-first" => self.vtd,
            "aarch64" => self.smmu,
            _ => 0,
        };
        (instructions != 0).then_some(instructions)
    }
}

/// All of them, in the order of the table. Zero: not measured.
pub(super) const OPERATIONS: [Operation; 24] = [
    Operation::new("page.map", "map 4 KiB", 763, 518, 4),
    Operation::new("page.unmap", "unmap 4 KiB, strict", 1138, 1160, 4),
    Operation::new("queued.map", "map 4 KiB, queued", 0, 0, 1),
    Operation::new("queued.send", "send that", 0, 0, 1),
    Operation::new("leaf-2m.map", "map 2 MiB leaf", 689, 448, 4),
    Operation::new("leaf-2m.unmap", "unmap 2 MiB leaf, strict", 1028, 1096, 4),
    Operation::new("pages-2m.map", "map 2 MiB as 512 x 4 KiB", 16_834, 9_221, 3),
    Operation::new("pages-2m.unmap", "unmap 2 MiB as 512 x 4 KiB", 10_988, 2_288, 3),
    Operation::new("pages-1g.map", "map 1 GiB as 4 KiB pages", 8_330_000, 4_690_000, 3),
    Operation::new("pages-1g.unmap", "unmap 1 GiB as 4 KiB pages", 5_110_000, 270_000, 3),
    Operation::new("scattered-1g.map", "map 1 GiB in scattered 4 KiB pieces", 200_600_000, 137_200_000, 10),
    Operation::new("scattered-1g.unmap", "unmap 1 GiB in scattered pieces", 0, 0, 1),
    Operation::new("attach", "attach", 3_411, 4_557, 2),
    Operation::new("detach", "detach", 3_390, 4_536, 2),
    Operation::sharing("pinned.attach", "pinned attach, no pages", Needs::CpuTables),
    Operation::sharing("pinned.detach", "its unbind", Needs::CpuTables),
    Operation::sharing("notify.page", "notifier, 4 KiB", Needs::CpuTables),
    Operation::sharing("notify.2m", "notifier, 512 pages", Needs::CpuTables),
    Operation::sharing("bind", "bind, with a PASID", Needs::Pasids),
    Operation::sharing("unbind", "unbind, with a drain", Needs::Pasids),
    Operation::sharing("notify-ats.page", "notifier, 4 KiB, with ATS", Needs::Pasids),
    Operation::sharing("notify-ats.2m", "notifier, 512 pages, with ATS", Needs::Pasids),
    Operation::sharing("fault.present", "page request to answer", Needs::PageRequests),
    Operation::sharing("fault.new", "page request to answer, new page", Needs::PageRequests),
];
