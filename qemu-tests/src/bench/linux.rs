//! The operations, and what Linux takes for them.
//!
//! Linux 7.2.13, built lean (no hardening, mitigations or tracing), measured on the same QEMU machines in strict mode:
//! the whole operation with its invalidation, hot tables, instructions per operation. Figures that were taken down in
//! millions are rounded to ten thousand.

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
}

impl Operation {
    const fn new(key: &'static str, name: &'static str, vtd: u64, smmu: u64, share: u64) -> Self {
        Self { key, name, vtd, smmu, share }
    }

    /// Whether it ends in an invalidation that is waited for, of one range.
    pub(super) fn is_strict_unmap(&self) -> bool {
        self.key.ends_with(".unmap")
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
pub(super) const OPERATIONS: [Operation; 12] = [
    Operation::new("page.map", "map 4 KiB", 763, 518, 4),
    Operation::new("page.unmap", "unmap 4 KiB, strict", 1138, 1160, 4),
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
];
