//! MADT: CPUs and interrupt controllers (ACPI 6.5, 5.2.12).

use super::spec::madt::{
    APIC_ONLINE_CAPABLE, CPU_ENABLED, GICC_ONLINE_CAPABLE, GicIts, GicMsiFrame, Gicc, Gicd, Gicr, IoApic,
    LocalApic, LocalApicAddress, LocalX2Apic, MSI_FRAME_SPI_OVERRIDE, Madt, Override, kind,
};
use super::spec::root::TableHeader;
use crate::view::{Record, RecordShape, View};
use crate::{
    Cpu, CpuId, CpuStart, CpuState, FirmwareError, Gic, InterruptOverride, Its, ItsId, Topology, Trigger,
    V2mFrame, list, topology,
};
use alloc::vec::Vec;
use portcullis_hal::{PhysAddr, PhysRange};

/// Register windows of which MADT gives only the start.
const DISTRIBUTOR_BYTES: u64 = 0x1_0000;
const REDISTRIBUTOR_BYTES: u64 = 0x2_0000;
const CPU_INTERFACE_BYTES: u64 = 0x2000;
const ITS_BYTES: u64 = 0x2_0000;
const V2M_BYTES: u64 = 0x1000;

pub(super) fn read(table: &View<'_>, topology: &mut Topology) -> Result<(), FirmwareError> {
    let header_len = size_of::<TableHeader>();
    let madt: &Madt = table.read(header_len)?;
    let local_apic = PhysAddr::new(madt.local_apic_address.get().into());
    let mut gic = GicParts::default();
    let mut apic_address = local_apic;
    for structure in table.records(header_len + size_of::<Madt>(), RecordShape::ByteByte)? {
        let structure = structure?;
        let view = &structure.view;
        match structure.kind {
            kind::LOCAL_APIC => {
                let apic: &LocalApic = view.read(0)?;
                add_apic(topology, apic.apic_id.into(), apic.flags.get())?;
            }
            kind::LOCAL_X2APIC => {
                let apic: &LocalX2Apic = view.read(0)?;
                add_apic(topology, apic.x2apic_id.get(), apic.flags.get())?;
            }
            kind::LOCAL_APIC_ADDRESS => {
                apic_address = PhysAddr::new(view.read::<LocalApicAddress>(0)?.address.get());
            }
            kind::IO_APIC => {
                let apic: &IoApic = view.read(0)?;
                let address = PhysAddr::new(apic.address.get().into());
                let apic = topology::IoApic { id: apic.id, address, gsi_base: apic.gsi_base.get() };
                list::push(&mut topology.io_apics, apic)?;
            }
            kind::INTERRUPT_OVERRIDE => {
                let entry = read_override(view)?;
                list::push(&mut topology.interrupt_overrides, entry)?;
            }
            _ => gic.read(&structure, topology)?,
        }
    }
    if topology.cpus.iter().any(|cpu| matches!(cpu.id, CpuId::Apic(_))) {
        topology.local_apic = Some(apic_address);
    }
    topology.gic = gic.finish();
    Ok(())
}

/// CPUs with ids up to 254 may be listed both as APIC and as x2APIC.
fn add_apic(topology: &mut Topology, id: u32, flags: u32) -> Result<(), FirmwareError> {
    let state = match (flags & CPU_ENABLED != 0, flags & APIC_ONLINE_CAPABLE != 0) {
        (true, _) => CpuState::Enabled,
        (false, true) => CpuState::OnlineCapable,
        (false, false) => return Ok(()),
    };
    add_cpu(topology, Cpu { id: CpuId::Apic(id), state, start: CpuStart::InitSipi })
}

fn add_cpu(topology: &mut Topology, cpu: Cpu) -> Result<(), FirmwareError> {
    if topology.cpus.iter().any(|known| known.id == cpu.id) {
        return Ok(());
    }
    list::push(&mut topology.cpus, cpu)
}

fn read_override(view: &View<'_>) -> Result<InterruptOverride, FirmwareError> {
    let entry: &Override = view.read(0)?;
    let flags = entry.flags.get();
    // MPS INTI flags: polarity 1 is high and 3 low, trigger mode 1 is edge and 3 level, 0 as the bus.
    let trigger = match (flags >> 2 & 3, flags & 3) {
        (0, 0) => None,
        (3, 1) => Some(Trigger::LevelHigh),
        (3, _) => Some(Trigger::LevelLow),
        (_, 3) => Some(Trigger::EdgeFalling),
        (_, _) => Some(Trigger::EdgeRising),
    };
    Ok(InterruptOverride { isa_irq: entry.source, gsi: entry.gsi.get(), trigger })
}

/// What MADT says about the GIC, in structures of any order.
#[derive(Default)]
struct GicParts {
    distributor: Option<PhysRange>,
    version: u8,
    regions: Vec<PhysRange>,
    per_cpu: Vec<PhysRange>,
    cpu_interface: Option<PhysRange>,
    translation_services: Vec<Its>,
    v2m_frames: Vec<V2mFrame>,
}

impl GicParts {
    fn read(&mut self, structure: &Record<'_>, topology: &mut Topology) -> Result<(), FirmwareError> {
        let view = &structure.view;
        match structure.kind {
            kind::GICC => self.read_cpu(view, topology)?,
            kind::GICD => {
                let gicd: &Gicd = view.read(0)?;
                self.distributor = Some(window(view, gicd.base.get(), DISTRIBUTOR_BYTES)?);
                self.version = gicd.version;
            }
            kind::GICR => {
                let gicr: &Gicr = view.read(0)?;
                let region = window(view, gicr.base.get(), gicr.length.get().into())?;
                list::push(&mut self.regions, region)?;
            }
            kind::GIC_ITS => {
                let its: &GicIts = view.read(0)?;
                let registers = window(view, its.base.get(), ITS_BYTES)?;
                list::push(&mut self.translation_services, Its { id: ItsId(its.id.get()), registers })?;
            }
            kind::GIC_MSI_FRAME => {
                let frame: &GicMsiFrame = view.read(0)?;
                let stated = frame.flags.get() & MSI_FRAME_SPI_OVERRIDE != 0;
                let spis = stated.then(|| (frame.spi_base.get().into(), frame.spi_count.get().into()));
                let registers = window(view, frame.base.get(), V2M_BYTES)?;
                list::push(&mut self.v2m_frames, V2mFrame { registers, spis })?;
            }
            // NMI sources, SAPICs and whatever comes later say nothing about IOMMUs or CPUs.
            _ => {}
        }
        Ok(())
    }

    fn read_cpu(&mut self, view: &View<'_>, topology: &mut Topology) -> Result<(), FirmwareError> {
        let gicc: &Gicc = view.read(0)?;
        let flags = gicc.flags.get();
        let state = match (flags & CPU_ENABLED != 0, flags & GICC_ONLINE_CAPABLE != 0) {
            (true, _) => CpuState::Enabled,
            (false, true) => CpuState::OnlineCapable,
            (false, false) => return Ok(()),
        };
        let start = match gicc.parked_address.get() {
            _ if topology.psci.is_some() => CpuStart::Psci,
            address if gicc.parking_version.get() != 0 && address != 0 => {
                CpuStart::Parking(PhysAddr::new(address))
            }
            _ => CpuStart::Unknown,
        };
        if gicc.gicr_base.get() != 0 {
            let redistributor = window(view, gicc.gicr_base.get(), REDISTRIBUTOR_BYTES)?;
            list::push(&mut self.per_cpu, redistributor)?;
        }
        if gicc.gicc_base.get() != 0 && self.cpu_interface.is_none() {
            self.cpu_interface = Some(window(view, gicc.gicc_base.get(), CPU_INTERFACE_BYTES)?);
        }
        add_cpu(topology, Cpu { id: CpuId::Mpidr(gicc.mpidr.get()), state, start })
    }

    /// Regions of redistributors count before those that single CPUs name.
    fn finish(self) -> Option<Gic> {
        let redistributors = if self.regions.is_empty() { self.per_cpu } else { self.regions };
        let version = match self.version {
            0 if redistributors.is_empty() => 2,
            0 => 3,
            stated => stated,
        };
        Some(Gic {
            version,
            distributor: self.distributor?,
            redistributors,
            cpu_interface: self.cpu_interface,
            translation_services: self.translation_services,
            v2m_frames: self.v2m_frames,
        })
    }
}

fn window(view: &View<'_>, base: u64, len: u64) -> Result<PhysRange, FirmwareError> {
    PhysRange::new(PhysAddr::new(base), len)
        .map_err(|error| FirmwareError::BadRange { at: view.here(), error })
}
