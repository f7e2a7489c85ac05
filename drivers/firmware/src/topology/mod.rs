//! What firmware says about a machine, whatever format it said it in.

mod platform;
mod requester;
mod reserved;
mod resolve;
mod scope;
mod unit;

pub use platform::{
    Console, ConsoleKind, Cpu, CpuId, CpuStart, CpuState, DmaCoherency, Gic, HostBridge, InterruptOverride,
    IoApic, Its, ItsId, PciSpace, PciWindow, PlatformDevice, Prefetch, PsciConduit, SegmentAts, V2mFrame,
};
pub use requester::{
    BusRange, MsiController, MsiMapping, MsiTarget, RequesterMapping, RequesterRange, RequesterWindow,
    StreamRange,
};
pub use reserved::{AtsScope, AtsScopeKind, AtsSupport, DmarFlags, DmarInfo, ReservedKind, ReservedRegion};
pub use scope::{DeviceScope, DeviceSet, PathStep, ScopeKind};
pub use unit::{
    Interrupt, Smmuv3Interrupts, Smmuv3Model, Smmuv3Unit, Trigger, UnitDescription, UnitIndex, UnitKind,
    VirtioIommuUnit, VirtioTransport, VtdCoverage, VtdUnit, WalkCoherency,
};

use crate::{FirmwareError, Location, Warning, list};
use alloc::vec::Vec;
use portcullis_hal::{EndpointId, PhysAddr, RequesterId};

/// A machine as its firmware describes it. Made by [`acpi`](crate::acpi) or
/// [`devicetree`](crate::devicetree).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Topology {
    /// The IOMMUs.
    pub units: Vec<UnitDescription>,
    /// The map from requesters to units, as far as firmware states it by bus number; the first entry that
    /// takes a requester in counts. [`unit_of`](Self::unit_of) reads it.
    pub requester_map: Vec<RequesterMapping>,
    /// The map that [`resolve_scopes`](Self::resolve_scopes) made of VT-d device scopes; consulted after
    /// `requester_map`.
    pub resolved_map: Vec<RequesterMapping>,
    /// The map from requesters to MSI controllers; the first entry that takes a requester in counts.
    pub msi_map: Vec<MsiMapping>,
    /// Devices behind a unit that are not PCI.
    pub platform_devices: Vec<PlatformDevice>,
    /// Regions of I/O address spaces that are not free.
    pub reserved: Vec<ReservedRegion>,
    /// PCI host bridges.
    pub host_bridges: Vec<HostBridge>,
    /// ATS as stated for whole segments (IORT, device tree).
    pub segment_ats: Vec<SegmentAts>,
    /// ATS as stated for functions (DMAR).
    pub ats_scopes: Vec<AtsScope>,
    /// DMAR's statements about the platform, if there is a DMAR.
    pub dmar: Option<DmarInfo>,
    /// The CPUs that can be used, in the order of firmware.
    pub cpus: Vec<Cpu>,
    /// How PSCI is called, if it is there.
    pub psci: Option<PsciConduit>,
    /// The registers of the local APICs.
    pub local_apic: Option<PhysAddr>,
    /// I/O APICs.
    pub io_apics: Vec<IoApic>,
    /// ISA interrupts that are wired elsewhere.
    pub interrupt_overrides: Vec<InterruptOverride>,
    /// The Arm interrupt controller.
    pub gic: Option<Gic>,
    /// Serial consoles, the one that firmware prefers first.
    pub consoles: Vec<Console>,
    /// Contradictions that were settled by a rule.
    pub warnings: Vec<Warning>,
}

impl Topology {
    /// The description at `index`.
    pub fn unit(&self, index: UnitIndex) -> Option<&UnitDescription> {
        self.units.get(index.0)
    }

    /// The units with their indices.
    pub fn indexed_units(&self) -> impl Iterator<Item = (UnitIndex, &UnitDescription)> {
        self.units.iter().enumerate().map(|(index, unit)| (UnitIndex(index), unit))
    }

    /// The unit that translates `id`, and the id by which it knows the requester.
    ///
    /// `None` for a requester that no unit covers, and for the function that is a virtio-iommu itself, even
    /// where firmware's ranges take it in. Requesters behind VT-d are known only after
    /// [`resolve_scopes`](Self::resolve_scopes).
    pub fn unit_of(&self, id: RequesterId) -> Option<(UnitIndex, EndpointId)> {
        if self.is_iommu(id) {
            return None;
        }
        let mut maps = self.requester_map.iter().chain(&self.resolved_map);
        maps.find_map(|entry| Some((entry.unit, entry.endpoint_of(id)?)))
    }

    /// Where the MSIs of `id` go, and the id by which the controller knows the requester.
    pub fn msi_device_id(&self, id: RequesterId) -> Option<MsiTarget> {
        self.msi_map.iter().find_map(|entry| {
            let device_id = entry.target.device_id.checked_add(entry.window.offset_of(id)?)?;
            Some(MsiTarget { device_id, ..entry.target })
        })
    }

    /// The reserved regions of a PCI requester. Those that DMAR states by path (RMRR) are found only after
    /// [`resolve_scopes`](Self::resolve_scopes).
    pub fn reserved_for(&self, id: RequesterId) -> impl Iterator<Item = &ReservedRegion> {
        let stream = self.unit_of(id);
        self.reserved.iter().filter(move |region| {
            region.devices.has_requester(id)
                || stream.is_some_and(|(unit, endpoint)| region.devices.has_stream(unit, endpoint))
        })
    }

    /// The reserved regions of one stream of a unit, for devices that are not PCI.
    pub fn reserved_for_stream(
        &self,
        unit: UnitIndex,
        endpoint: EndpointId,
    ) -> impl Iterator<Item = &ReservedRegion> {
        self.reserved.iter().filter(move |region| region.devices.has_stream(unit, endpoint))
    }

    /// What firmware says about address translation services for `id`. The path-based statements of DMAR
    /// (ATSR for everything below a root port, SATC for integrated endpoints) are found only after
    /// [`resolve_scopes`](Self::resolve_scopes).
    pub fn ats_support(&self, id: RequesterId) -> AtsSupport {
        let segment = id.segment();
        let by_segment = self.segment_ats.iter().filter(|ats| ats.segment == segment).map(|ats| ats.support);
        let by_scope = self.ats_scopes.iter().filter_map(|scope| match scope.kind {
            AtsScopeKind::AllRootPorts => (scope.devices.segment == segment).then_some(AtsSupport::Supported),
            AtsScopeKind::RootPorts | AtsScopeKind::Integrated => {
                scope.devices.has_requester(id).then_some(AtsSupport::Supported)
            }
            AtsScopeKind::IntegratedRequired => {
                scope.devices.has_requester(id).then_some(AtsSupport::Required)
            }
        });
        by_segment.chain(by_scope).max().unwrap_or(AtsSupport::NotStated)
    }

    /// The host bridge whose buses include that of `id`.
    pub fn host_bridge_of(&self, id: RequesterId) -> Option<&HostBridge> {
        self.host_bridges.iter().find(|bridge| {
            bridge.segment == id.segment() && (bridge.buses.first..=bridge.buses.last).contains(&id.bus())
        })
    }

    fn is_iommu(&self, id: RequesterId) -> bool {
        self.units.iter().any(
            |unit| matches!(&unit.kind, UnitKind::VirtioIommu(v) if v.transport == VirtioTransport::Pci(id)),
        )
    }

    pub(crate) fn add_unit(&mut self, unit: UnitDescription) -> Result<UnitIndex, FirmwareError> {
        let index = UnitIndex(self.units.len());
        list::push(&mut self.units, unit)?;
        Ok(index)
    }

    /// Adds an entry that counts for what no earlier entry takes in; says so in the warnings if an earlier
    /// one disagrees.
    pub(crate) fn add_mapping(&mut self, entry: RequesterMapping) -> Result<(), FirmwareError> {
        let kept = self
            .requester_map
            .iter()
            .find(|earlier| earlier.window.may_overlap(&entry.window) && !earlier.agrees_with(&entry))
            .map(|earlier| earlier.origin);
        if let Some(kept) = kept {
            self.warn(Warning::Overlap { kept, ignored: entry.origin })?;
        }
        list::push(&mut self.requester_map, entry)
    }

    /// As [`add_mapping`](Self::add_mapping), for MSIs.
    pub(crate) fn add_msi_mapping(&mut self, entry: MsiMapping) -> Result<(), FirmwareError> {
        let kept = self
            .msi_map
            .iter()
            .find(|earlier| earlier.window.may_overlap(&entry.window))
            .map(|earlier| earlier.origin);
        if let Some(kept) = kept {
            self.warn(Warning::Overlap { kept, ignored: entry.origin })?;
        }
        list::push(&mut self.msi_map, entry)
    }

    pub(crate) fn warn(&mut self, warning: Warning) -> Result<(), FirmwareError> {
        log::warn!("{warning}");
        list::push(&mut self.warnings, warning)
    }

    pub(crate) fn ignored(&mut self, at: Location) -> Result<(), FirmwareError> {
        self.warn(Warning::Ignored { at })
    }
}
