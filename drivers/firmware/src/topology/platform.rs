//! What is needed beside IOMMUs to reach devices: PCI host bridges, platform devices, CPUs, interrupt
//! controllers and consoles.

use super::{AtsSupport, BusRange, Interrupt, MsiTarget, StreamRange, Trigger};
use crate::Location;
use alloc::{string::String, vec::Vec};
use portcullis_hal::{PhysAddr, PhysRange};

/// A PCI host bridge with memory-mapped configuration space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostBridge {
    /// The PCI segment (device tree `linux,pci-domain`).
    pub segment: u16,
    /// Its buses.
    pub buses: BusRange,
    /// ECAM of exactly these buses: 1 MiB each, starting with the first.
    pub ecam: PhysRange,
    /// Address windows from which BARs are assigned. MCFG gives none: firmware assigned them.
    pub windows: Vec<PciWindow>,
    /// Where firmware describes it.
    pub origin: Location,
}

/// A window through which the CPU reaches PCI addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciWindow {
    /// The PCI address space.
    pub space: PciSpace,
    /// The addresses on the CPU's side.
    pub cpu: PhysRange,
    /// The first address on the bus; the length is that of `cpu`.
    pub bus: u64,
    /// Whether the window allows prefetching.
    pub prefetch: Prefetch,
}

/// PCI address spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PciSpace {
    /// I/O ports.
    Io,
    /// 32-bit memory.
    Memory32,
    /// 64-bit memory.
    Memory64,
}

/// Whether reads of a window may be done ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefetch {
    /// They may.
    Prefetchable,
    /// They may not.
    NonPrefetchable,
}

/// What an IORT root complex or a device-tree host bridge says about address translation services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentAts {
    /// The PCI segment.
    pub segment: u16,
    /// What is stated.
    pub support: AtsSupport,
}

/// A device that is not PCI and masters DMA through an IOMMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformDevice {
    /// Its device-tree path component or ACPI namespace path; for a VIOT endpoint, which has no name, empty.
    pub name: String,
    /// Its `compatible` strings, most specific first; empty on ACPI.
    pub compatible: Vec<String>,
    /// Its registers; empty on ACPI, except for VIOT endpoints, where the range is one byte at the base.
    pub registers: Vec<PhysRange>,
    /// The ids it uses, in the order of firmware.
    pub streams: Vec<StreamRange>,
    /// Where its MSIs go.
    pub msi: Option<MsiTarget>,
    /// Whether its DMA is coherent with the CPU's caches.
    pub dma: DmaCoherency,
    /// Where firmware describes it.
    pub origin: Location,
}

/// Whether a device's DMA snoops the CPU's caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaCoherency {
    /// It does.
    Coherent,
    /// It does not.
    NonCoherent,
    /// Firmware does not say here.
    NotStated,
}

/// A CPU that can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Its hardware id.
    pub id: CpuId,
    /// Whether it is usable now.
    pub state: CpuState,
    /// How it is started.
    pub start: CpuStart,
}

/// The hardware id of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuId {
    /// An APIC id; above 254 only in x2APIC mode.
    Apic(u32),
    /// The affinity fields of MPIDR_EL1.
    Mpidr(u64),
}

/// Whether a CPU can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuState {
    /// It can.
    Enabled,
    /// It can be brought in at run time.
    OnlineCapable,
}

/// How a CPU is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuStart {
    /// INIT and startup IPIs.
    InitSipi,
    /// PSCI CPU_ON through [`Topology::psci`](crate::Topology::psci).
    Psci,
    /// A release address that the CPU polls.
    SpinTable(PhysAddr),
    /// An ACPI parking-protocol mailbox.
    Parking(PhysAddr),
    /// Firmware does not say.
    Unknown,
}

/// How PSCI is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PsciConduit {
    /// SMC, to EL3.
    Smc,
    /// HVC, to EL2.
    Hvc,
}

/// An I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// Its id.
    pub id: u8,
    /// Its registers.
    pub address: PhysAddr,
    /// The global system interrupt of its first input.
    pub gsi_base: u32,
}

/// An ISA interrupt that is wired to another global system interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptOverride {
    /// The ISA interrupt.
    pub isa_irq: u8,
    /// Where it is wired to, and how; `None` for the trigger means as the bus has it (ISA: rising edge).
    pub gsi: u32,
    /// The trigger, if it differs from the bus.
    pub trigger: Option<Trigger>,
}

/// An Arm generic interrupt controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gic {
    /// Its architecture version (2, 3 or 4).
    pub version: u8,
    /// The distributor.
    pub distributor: PhysRange,
    /// Redistributor regions (GICv3 and later).
    pub redistributors: Vec<PhysRange>,
    /// The CPU interface (GICv2).
    pub cpu_interface: Option<PhysRange>,
    /// Interrupt translation services.
    pub translation_services: Vec<Its>,
    /// GICv2m frames.
    pub v2m_frames: Vec<V2mFrame>,
}

impl Gic {
    /// The ITS with this id.
    pub fn its(&self, id: ItsId) -> Option<&Its> {
        self.translation_services.iter().find(|its| its.id == id)
    }
}

/// The number by which firmware refers to an ITS: MADT's translation id, or its position in a device tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItsId(pub u32);

/// A GICv3 interrupt translation service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Its {
    /// Its id.
    pub id: ItsId,
    /// Control and translation pages (128 KiB). MSIs go to offset 0x1_0040, GITS_TRANSLATER.
    pub registers: PhysRange,
}

/// A GICv2m frame, which turns writes into SPIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V2mFrame {
    /// Its registers.
    pub registers: PhysRange,
    /// The SPIs that it owns, if they are not read from its MSI_TYPER: first INTID and count.
    pub spis: Option<(u32, u32)>,
}

/// A serial console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Console {
    /// The device.
    pub kind: ConsoleKind,
    /// Its registers.
    pub registers: PhysRange,
    /// Its interrupt.
    pub interrupt: Option<Interrupt>,
}

/// Serial devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleKind {
    /// Arm PrimeCell PL011.
    Pl011,
}
