//! virtio-iommu: a PCI function like the others, but translated by nobody, or a window of registers.

#![expect(unsafe_code, reason = "maps the device's registers")]

use super::{connect, unit_interrupt};
use crate::machine::{self, Bus};
use crate::memory::KernelHal;
use crate::report::words;
use alloc::string::String;
use log::info;
use portcullis_arch::{interrupts, paging};
use portcullis_firmware::{Interrupt, Topology, VirtioTransport};
use portcullis_hal::{Arc, EndpointId, Iova, OutOfMemory, PhysRange, RequesterId};
use portcullis_iommu::{Unit, UnitId};
use portcullis_pci::MsixTable;
use portcullis_virtio_iommu::{
    MmioTransport, MsixVector, Options, PciTransport, RegisterWindow, Setup, Vectors, VirtioIommu,
};

/// The device's registers, counted where the benchmark wants that.
#[cfg(feature = "count")]
type Window = counted::Counted;
#[cfg(not(feature = "count"))]
type Window = RegisterWindow;

type Pci = PciTransport<Window>;
type Mmio = MmioTransport<Window>;

/// The vector for faults and for changes of the configuration.
const VECTOR: u16 = 0;

/// A PCI function, and what its interrupts need.
pub(super) struct PciFunction {
    /// Its place in the enumeration.
    index: usize,
    /// How the interrupt controller knows it.
    msi_device: u32,
}

/// A virtio-iommu whose boot-time bypass is off.
pub(super) enum Prepared {
    Pci(Setup<KernelHal, Pci>, PciFunction),
    Mmio(Setup<KernelHal, Mmio>, Option<Interrupt>),
}

impl Prepared {
    pub(super) fn new(transport: VirtioTransport, topology: &Topology, bus: &Bus) -> Result<Self, String> {
        match transport {
            VirtioTransport::Pci(id) => {
                let index = bus.functions.iter().position(|function| function.id == id);
                let index = index.ok_or("no such PCI function")?;
                let msi_device = topology.msi_device_id(id).map_or(0, |target| target.device_id);
                let setup = Setup::new(KernelHal, probe(bus, id, index)?, Options::default());
                Ok(Self::Pci(setup.map_err(words)?, PciFunction { index, msi_device }))
            }
            VirtioTransport::Mmio { registers, interrupt } => {
                let transport = window(registers).ok_or("the registers cannot be mapped")?;
                let transport = MmioTransport::probe(transport).map_err(words)?;
                let setup = Setup::new(KernelHal, transport, Options::default());
                Ok(Self::Mmio(setup.map_err(words)?, interrupt))
            }
        }
    }

    /// Endpoints that a predecessor may have left open.
    pub(super) fn cut_off(&mut self, endpoints: &[EndpointId]) -> Result<(), String> {
        match self {
            Self::Pci(setup, _) => setup.cut_off(endpoints).map_err(words),
            Self::Mmio(setup, _) => setup.cut_off(endpoints).map_err(words),
        }
    }

    pub(super) fn enable(self, bus: &Bus) -> Result<Enabled, String> {
        match self {
            Self::Pci(setup, function) => {
                // Its queues are in memory, which it reaches by physical address.
                portcullis_pci::enable_bus_master(&bus.config, &bus.functions, function.index);
                Ok(Enabled::Pci(setup.enable().map_err(words)?, function))
            }
            Self::Mmio(setup, interrupt) => Ok(Enabled::Mmio(setup.enable().map_err(words)?, interrupt)),
        }
    }
}

/// A virtio-iommu that runs.
pub(super) enum Enabled {
    Pci(VirtioIommu<KernelHal, Pci>, PciFunction),
    Mmio(VirtioIommu<KernelHal, Mmio>, Option<Interrupt>),
}

impl Enabled {
    pub(super) fn handle(&self) -> Result<Arc<dyn Unit>, OutOfMemory> {
        match self {
            Self::Pci(unit, _) => unit.unit(),
            Self::Mmio(unit, _) => unit.unit(),
        }
    }

    /// Has faults raise an interrupt, or be polled for where there is none. Requests are always polled for.
    pub(super) fn connect_interrupts(self, id: UnitId, bus: &Bus) -> Result<(), String> {
        match self {
            Self::Pci(unit, function) => connect_msix(&unit, &function, id, bus),
            Self::Mmio(_, Some(line)) => connect(line, id),
            Self::Mmio(_, None) => {
                info!("{id} has no interrupt that firmware states, its events are polled for");
                machine::poll(id);
                Ok(())
            }
        }
    }
}

fn connect_msix(
    unit: &VirtioIommu<KernelHal, Pci>,
    function: &PciFunction,
    id: UnitId,
    bus: &Bus,
) -> Result<(), String> {
    let PciFunction { index, msi_device } = *function;
    let Some(msix) = &bus.functions.get(index).ok_or("no such PCI function")?.msix else {
        info!("{id} has no MSI-X, its events are polled for");
        machine::poll(id);
        return Ok(());
    };
    let message = interrupts::allocate_msi(msi_device, unit_interrupt, usize::from(id.0)).map_err(words)?;
    let bar = bus.bar(index, msix.table_bar).ok_or("no BAR for the MSI-X table")?;
    let table = MsixTable::new(bus.registers(index, msix.table_bar)?, bar, msix).map_err(words)?;
    let address = Iova::new(message.address.get());
    table.program(VECTOR, address, message.data).map_err(words)?;
    table.unmask(VECTOR).map_err(words)?;
    msix.enable(&bus.config);
    let vectors = Vectors { config: None, events: Some(MsixVector(VECTOR)) };
    unit.enable_interrupts(&vectors).map_err(words)
}

fn probe(bus: &Bus, id: RequesterId, index: usize) -> Result<Pci, String> {
    portcullis_pci::enable_memory(&bus.config, id);
    let read = |offset| bus.config.read32(id, offset);
    let map = |bar, offset: u32, len: u32| {
        let bar = bus.window(index, bar)?;
        let start = bar.start().checked_add(u64::from(offset))?;
        window(PhysRange::new(start, u64::from(len)).ok().filter(|range| bar.covers(range))?)
    };
    PciTransport::probe(read, map).map_err(words)
}

/// The registers in `range`, which are the device's.
fn window(range: PhysRange) -> Option<Window> {
    let base = paging::map_device(range).ok()?;
    // SAFETY: just mapped as device memory for this length; nobody else drives this device.
    let window = unsafe { RegisterWindow::new(base, range.len() as usize) };
    #[cfg(feature = "count")]
    let window = counted::Counted(window);
    Some(window)
}

#[cfg(feature = "count")]
mod counted {
    use portcullis_hal::count::{self, Event};
    use portcullis_virtio_iommu::{RegisterWindow, Registers};

    /// Registers whose accesses are counted.
    pub(crate) struct Counted(pub(super) RegisterWindow);

    macro_rules! counted {
        ($($read:ident, $write:ident, $ty:ty;)*) => {
            // SAFETY: the accesses are those of the registers behind, which keep the contract.
            unsafe impl Registers for Counted {
                $(
                    fn $read(&self, offset: usize) -> $ty {
                        count::add(Event::Read, 1);
                        self.0.$read(offset)
                    }

                    fn $write(&self, offset: usize, value: $ty) {
                        count::add(Event::Write, 1);
                        self.0.$write(offset, value);
                    }
                )*
            }
        };
    }
    counted! {
        read8, write8, u8;
        read16, write16, u16;
        read32, write32, u32;
    }
}
