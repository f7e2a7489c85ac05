//! The IOMMUs: found, closed, set up and connected to their interrupts.

mod virtio;

use crate::machine::{self, Bus, KernelIommu, Start};
use crate::memory::KernelHal;
use crate::report::words;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use log::info;
use portcullis_arch::interrupts;
use portcullis_firmware::{
    Interrupt, Smmuv3Unit, Topology, Trigger, UnitIndex, UnitKind, VtdUnit, WalkCoherency,
};
use portcullis_hal::{Arc, EndpointId, FixedMapping, MmioRegion, OutOfMemory, PhysRange};
use portcullis_iommu::{Unit, UnitId};
use portcullis_smmuv3::Coherency;

/// A unit's registers, counted where the benchmark wants that.
#[cfg(feature = "count")]
type Registers = portcullis_hal::count::Counted<MmioRegion>;
#[cfg(not(feature = "count"))]
type Registers = MmioRegion;

type SmmuSetup = portcullis_smmuv3::Setup<KernelHal, Registers>;
type VtdSetup = portcullis_vtd::Setup<KernelHal, Registers>;

/// The registers of a unit that says at the offset `poll` how far it has come, if it does.
fn unit_registers(range: PhysRange, poll: Option<usize>) -> Result<Registers, String> {
    let registers = machine::registers(range)?;
    #[cfg(feature = "count")]
    return Ok(Registers::new(registers, poll));
    #[cfg(not(feature = "count"))]
    {
        let _ = poll;
        Ok(registers)
    }
}

/// A unit that is set up but does not translate yet.
enum PreparedUnit {
    Smmu(SmmuSetup, Smmuv3Unit),
    Vtd(VtdSetup),
    Virtio(virtio::Prepared),
}

/// All units, set up.
pub(crate) struct Prepared(Vec<(UnitIndex, PreparedUnit)>);

/// Which unit of the registry a unit of the firmware's description is.
pub(crate) struct Units(Vec<(UnitIndex, UnitId)>);

impl Units {
    pub(crate) fn id(&self, index: UnitIndex) -> Option<UnitId> {
        self.0.iter().find(|(known, _)| *known == index).map(|(_, id)| *id)
    }
}

/// Sets up every unit that firmware describes, and gives devices with reserved memory their mappings.
pub(crate) fn prepare(topology: &Topology, bus: &Bus) -> Result<Prepared, String> {
    let mut prepared = Vec::new();
    for (index, unit) in topology.indexed_units() {
        let set_up = match &unit.kind {
            UnitKind::Smmuv3(smmu) => prepare_smmu(smmu).map(|setup| PreparedUnit::Smmu(setup, smmu.clone())),
            UnitKind::Vtd(vtd) => prepare_vtd(vtd, topology).map(PreparedUnit::Vtd),
            UnitKind::VirtioIommu(unit) => {
                virtio::Prepared::new(unit.transport, topology, bus).map(PreparedUnit::Virtio)
            }
        };
        prepared.push((index, set_up.map_err(|error| format!("{index}: {error}"))?));
    }
    for function in &bus.functions {
        let mappings = machine::direct_mappings(topology, function.id)?;
        let Some((index, endpoint)) = topology.unit_of(function.id).filter(|_| !mappings.is_empty()) else {
            continue;
        };
        let unit = prepared.iter_mut().find(|(known, _)| *known == index);
        if let Some((_, unit)) = unit {
            unit.reserve_direct(&[endpoint], &mappings)?;
            info!("{} keeps {} reserved regions", function.id, mappings.len());
        }
    }
    for (index, unit) in &mut prepared {
        if let PreparedUnit::Virtio(unit) = unit {
            let ids = bus.functions.iter().filter_map(|function| topology.unit_of(function.id));
            let endpoints: Vec<_> =
                ids.filter(|(covering, _)| covering == index).map(|(_, endpoint)| endpoint).collect();
            unit.cut_off(&endpoints)?;
        }
    }
    Ok(Prepared(prepared))
}

fn prepare_smmu(unit: &Smmuv3Unit) -> Result<SmmuSetup, String> {
    // A refused transfer may be many faults at once.
    let mut options = portcullis_smmuv3::Options { event_queue_log2: 11, ..Default::default() };
    options.coherency = match unit.walks {
        WalkCoherency::Coherent => Coherency::Snooped,
        WalkCoherency::NonCoherent => Coherency::NotSnooped,
        WalkCoherency::AsReported => Coherency::Detect,
    };
    /// SMMU_CMDQ_CONS.
    const CONS: usize = 0x9c;
    let registers = unit_registers(unit.registers, Some(CONS))?;
    SmmuSetup::new(KernelHal, registers, options).map_err(words)
}

fn prepare_vtd(unit: &VtdUnit, topology: &Topology) -> Result<VtdSetup, String> {
    let width = topology.dmar.as_ref().map_or(u16::MAX, |dmar| dmar.host_address_width);
    let options = portcullis_vtd::Options::new(u8::try_from(width).unwrap_or(u8::MAX));
    // It writes to memory how far it has come.
    let registers = unit_registers(unit.registers, None)?;
    VtdSetup::new(KernelHal, registers, options).map_err(words)
}

impl PreparedUnit {
    fn reserve_direct(&mut self, endpoints: &[EndpointId], mappings: &[FixedMapping]) -> Result<(), String> {
        match self {
            Self::Smmu(setup, _) => setup.reserve_direct(endpoints, mappings).map_err(words),
            Self::Vtd(setup) => setup.reserve_direct(endpoints, mappings).map_err(words),
            Self::Virtio(_) => Err("virtio-iommu states reserved memory itself".to_string()),
        }
    }

    /// Turns translation on. What comes back is the registered unit, and what is left to connect its interrupts.
    fn enable(self, iommu: &'static KernelIommu, bus: &Bus) -> Result<(UnitId, Enabled), String> {
        match self {
            Self::Smmu(setup, description) => {
                let unit = setup.enable().map_err(words)?;
                Ok((register(iommu, unit.unit())?, Enabled::Smmu(unit, description)))
            }
            Self::Vtd(setup) => {
                let unit = setup.enable().map_err(words)?;
                Ok((register(iommu, unit.unit())?, Enabled::Vtd(unit)))
            }
            Self::Virtio(prepared) => {
                let unit = prepared.enable(bus)?;
                Ok((register(iommu, unit.handle())?, Enabled::Virtio(unit)))
            }
        }
    }
}

/// A unit that translates and denies everything.
enum Enabled {
    Smmu(portcullis_smmuv3::Driver<KernelHal, Registers>, Smmuv3Unit),
    Vtd(portcullis_vtd::Driver<KernelHal, Registers>),
    Virtio(virtio::Enabled),
}

impl Enabled {
    /// Registers the handler first, then lets the unit raise its interrupts.
    fn connect_interrupts(self, id: UnitId, bus: &Bus) -> Result<(), String> {
        match self {
            Self::Smmu(unit, description) => {
                let lines = &description.interrupts;
                for line in [lines.event, lines.gerror, lines.pri, lines.combined].into_iter().flatten() {
                    connect(line, id)?;
                }
                unit.enable_interrupts(portcullis_smmuv3::Interrupts::Wired).map_err(words)
            }
            Self::Vtd(unit) => {
                let message = interrupts::allocate_msi(0, unit_interrupt, usize::from(id.0));
                let message = message.map_err(words)?;
                unit.enable_interrupts(message).map_err(words)
            }
            Self::Virtio(unit) => unit.connect_interrupts(id, bus),
        }
    }
}

impl Prepared {
    /// Whether all units abort by themselves what devices try before they are enabled. QEMU's virtio-iommu lets through
    /// what a predecessor passed through, until it is enabled and told otherwise.
    pub(crate) fn abort(&self, start: Start) -> bool {
        self.0.iter().all(|(_, unit)| match unit {
            PreparedUnit::Smmu(..) => true,
            PreparedUnit::Vtd(_) => false,
            PreparedUnit::Virtio(_) => start == Start::AsFound,
        })
    }

    /// Turns translation on and connects the units' interrupts; everything is denied.
    pub(crate) fn enable(self, iommu: &'static KernelIommu, bus: &Bus) -> Result<Units, String> {
        self.enable_each(iommu, bus, |unit, id| unit.connect_interrupts(id, bus))
    }

    /// As [`enable`](Self::enable), for a kernel that does not listen.
    pub(crate) fn enable_without_interrupts(
        self,
        iommu: &'static KernelIommu,
        bus: &Bus,
    ) -> Result<Units, String> {
        self.enable_each(iommu, bus, |_, _| Ok(()))
    }

    fn enable_each(
        self,
        iommu: &'static KernelIommu,
        bus: &Bus,
        then: impl Fn(Enabled, UnitId) -> Result<(), String>,
    ) -> Result<Units, String> {
        let mut ids = Vec::new();
        for (index, unit) in self.0 {
            let enabled = unit.enable(iommu, bus).and_then(|(id, unit)| then(unit, id).map(|()| id));
            ids.push((index, enabled.map_err(|error| format!("{index}: {error}"))?));
        }
        Ok(Units(ids))
    }
}

fn register(iommu: &'static KernelIommu, unit: Result<Arc<dyn Unit>, OutOfMemory>) -> Result<UnitId, String> {
    iommu.add_unit(unit.map_err(words)?).map_err(words)
}

fn connect(line: Interrupt, unit: UnitId) -> Result<(), String> {
    let trigger = match line.trigger {
        Trigger::EdgeRising | Trigger::EdgeFalling => interrupts::Trigger::Edge,
        Trigger::LevelHigh | Trigger::LevelLow => interrupts::Trigger::Level,
    };
    let connected = interrupts::connect_wired(line.intid, trigger, unit_interrupt, usize::from(unit.0));
    connected.map_err(words)
}

/// The handler of every unit's interrupts. There is one thread, and it looks after what is left by itself: the console
/// while the user thinks, and jobs while they wait for faults.
fn unit_interrupt(unit: usize) {
    let _more = machine::iommu().handle_interrupt(UnitId(unit as u16));
}
