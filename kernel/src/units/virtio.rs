//! virtio-iommu, which is a PCI function like the others, but translated by nobody.

#![expect(unsafe_code, reason = "maps the device's registers")]

use super::unit_interrupt;
use crate::machine::{self, Bus};
use crate::memory::KernelHal;
use crate::report::words;
use alloc::string::{String, ToString};
use log::info;
use portcullis_arch::{interrupts, paging};
use portcullis_firmware::{Topology, VirtioTransport};
use portcullis_hal::{Arc, Iova, OutOfMemory, PhysRange, RequesterId};
use portcullis_iommu::{Unit, UnitId};
use portcullis_pci::MsixTable;
use portcullis_virtio_iommu::{MsixVector, Options, PciTransport, RegisterWindow, Vectors};

/// The device's registers, counted where the benchmark wants that.
#[cfg(feature = "count")]
type Window = counted::Counted;
#[cfg(not(feature = "count"))]
type Window = RegisterWindow;

type Driver = portcullis_virtio_iommu::VirtioIommu<KernelHal, PciTransport<Window>>;
type Setup = portcullis_virtio_iommu::Setup<KernelHal, PciTransport<Window>>;

/// The vector for faults and for changes of the configuration.
const VECTOR: u16 = 0;

/// A virtio-iommu whose boot-time bypass is off.
pub(super) struct Prepared {
    setup: Setup,
    index: usize,
    /// How the interrupt controller knows the function.
    msi_device: u32,
}

impl Prepared {
    pub(super) fn new(transport: VirtioTransport, topology: &Topology, bus: &Bus) -> Result<Self, String> {
        let VirtioTransport::Pci(id) = transport else {
            return Err("only virtio-iommu on PCI is driven".to_string());
        };
        let index =
            bus.functions.iter().position(|function| function.id == id).ok_or("no such PCI function")?;
        let transport = probe(bus, id, index)?;
        let setup = Setup::new(KernelHal, transport, Options::default()).map_err(words)?;
        let msi_device = topology.msi_device_id(id).map_or(0, |target| target.device_id);
        Ok(Self { setup, index, msi_device })
    }

    pub(super) fn enable(self, bus: &Bus) -> Result<Enabled, String> {
        // Its queues are in memory, which it reaches by physical address.
        portcullis_pci::enable_bus_master(&bus.config, &bus.functions, self.index);
        let unit = self.setup.enable().map_err(words)?;
        Ok(Enabled { unit, index: self.index, msi_device: self.msi_device })
    }
}

/// A virtio-iommu that runs.
pub(super) struct Enabled {
    unit: Driver,
    index: usize,
    msi_device: u32,
}

impl Enabled {
    pub(super) fn handle(&self) -> Result<Arc<dyn Unit>, OutOfMemory> {
        self.unit.unit()
    }

    pub(super) fn connect_interrupts(self, id: UnitId, bus: &Bus) -> Result<(), String> {
        let function = bus.functions.get(self.index).ok_or("no such PCI function")?;
        let Some(msix) = &function.msix else {
            info!("{id} has no MSI-X, its events are polled for");
            machine::poll(id);
            return Ok(());
        };
        let message = interrupts::allocate_msi(self.msi_device, unit_interrupt, usize::from(id.0));
        let message = message.map_err(words)?;
        let bar = bus.bar(self.index, msix.table_bar).ok_or("no BAR for the MSI-X table")?;
        let registers = bus.registers(self.index, msix.table_bar)?;
        let table = MsixTable::new(registers, bar, msix).map_err(words)?;
        let address = Iova::new(message.address.get());
        table.program(VECTOR, address, message.data).map_err(words)?;
        table.unmask(VECTOR).map_err(words)?;
        msix.enable(&bus.config);
        let vectors = Vectors { config: None, events: Some(MsixVector(VECTOR)) };
        self.unit.enable_interrupts(&vectors).map_err(words)
    }
}

fn probe(bus: &Bus, id: RequesterId, index: usize) -> Result<PciTransport<Window>, String> {
    portcullis_pci::enable_memory(&bus.config, id);
    let read = |offset| bus.config.read32(id, offset);
    let map = |bar, offset: u32, len: u32| {
        let window = bus.window(index, bar)?;
        let start = window.start().checked_add(u64::from(offset))?;
        let range = PhysRange::new(start, u64::from(len)).ok().filter(|range| window.covers(range))?;
        let base = paging::map_device(range).ok()?;
        // SAFETY: just mapped as device memory for this length; nobody else drives this function.
        let window = unsafe { RegisterWindow::new(base, len as usize) };
        #[cfg(feature = "count")]
        let window = counted::Counted(window);
        Some(window)
    };
    PciTransport::probe(read, map).map_err(words)
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
