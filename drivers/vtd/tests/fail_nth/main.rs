//! Every operation with each of its allocations failing, on the adversarial model. `points.txt` says how many there
//! are; when that changes, the test prints the new table.

#![expect(unsafe_code, reason = "vouches for the model's registers and for foreign tables")]

use portcullis_hal::host::HostHal;
use portcullis_hal::host::scarce::{Heap, ScarceHal, exempt, unfailing};
use portcullis_hal::{EndpointId, Iova, Mmio, Pasid, PhysAddr, SharedTable, TableRoot, TableWrites};
use portcullis_iommu::Unit;
use portcullis_iommu::host::fail_nth::{Failed, Machine, check};
use portcullis_model::core::{Abort, Memory, Outcome, Request, Schedule};
use portcullis_model::device::{Device, Job};
use portcullis_model::vtd::{Config, Vtd};
use portcullis_pgtable::{AccessedDirty, Config as TableConfig, Levels, PageTable, VtdSecondStage, X86};
use portcullis_vtd::{InitError, Options, Setup};
use std::collections::BTreeSet;
use std::sync::Arc;

#[global_allocator]
static HEAP: Heap = Heap;

/// Longer than any run of the test.
const PATIENCE_NS: u64 = 3_600_000_000_000;

/// Memory as the unit sees it.
struct Ram(HostHal);

impl Memory for Ram {
    fn read64(&self, address: u64) -> Option<u64> {
        self.0.load64(PhysAddr::new(address))
    }

    fn write64(&self, address: u64, value: u64) -> Result<(), Abort> {
        self.0.store64(PhysAddr::new(address), value).ok_or(Abort)
    }
}

/// The unit's registers. What the model allocates is not the driver's.
struct Registers(Arc<Vtd>);

// SAFETY: the model reads and writes only the memory that the driver gave it, as a unit does.
unsafe impl Mmio for Registers {
    fn read32(&self, offset: usize) -> u32 {
        exempt(|| self.0.read32(offset as u64))
    }

    fn write32(&self, offset: usize, value: u32) {
        exempt(|| self.0.write32(offset as u64, value));
    }

    fn read64(&self, offset: usize) -> u64 {
        exempt(|| self.0.read64(offset as u64))
    }

    fn write64(&self, offset: usize, value: u64) {
        exempt(|| self.0.write64(offset as u64, value));
    }
}

struct Board {
    hal: ScarceHal,
    model: Arc<Vtd>,
    /// A device that asks for pages.
    device: Arc<Device>,
    /// Tables that are not the driver's.
    foreign: PageTable<HostHal, VtdSecondStage>,
    process: PageTable<HostHal, X86>,
}

impl Machine for Board {
    fn new() -> Self {
        let hal = ScarceHal::new();
        let ram = Arc::new(Ram(hal.host().clone()));
        let model = Arc::new(Vtd::new(Config::full(), ram, Arc::new(Schedule::new(1))));
        let device = Arc::new(Device::new(0x10, model.clone(), Arc::new(Schedule::new(1)), true));
        let (unit, answering) = (model.clone(), device.clone());
        hal.on_relax(move || {
            unit.step();
            answering.step();
        });
        let config = TableConfig {
            input_bits: 48,
            output_bits: 40,
            page_sizes: u64::MAX,
            writes: TableWrites::Cached,
        };
        // Made of frames that are not counted.
        let foreign = PageTable::new(hal.host(), VtdSecondStage::new(Levels::Four), config).unwrap();
        let process = X86::new(Levels::Four, AccessedDirty::Preset);
        let process = PageTable::new(hal.host(), process, config).unwrap();
        Self { hal, model, device, foreign, process }
    }

    fn hal(&self) -> &ScarceHal {
        &self.hal
    }

    fn set_up(&self) -> Result<portcullis_hal::Arc<dyn Unit>, Failed> {
        let options = Options { timeout_ns: PATIENCE_NS, ..Options::new(48) };
        let failed = |error| match error {
            InitError::OutOfMemory(_) => Failed::OutOfMemory,
            other => Failed::Otherwise(other.to_string()),
        };
        let setup = Setup::new(self.hal.clone(), Registers(self.model.clone()), options).map_err(failed)?;
        let driver = setup.enable().map_err(failed)?;
        // A unit that is on keeps its tables, whether there is a handle or not.
        Ok(unfailing(|| driver.unit())?)
    }

    fn endpoints(&self) -> [EndpointId; 3] {
        [0x10, 0x11, 0x1200].map(EndpointId::new)
    }

    fn reach(&self, endpoint: EndpointId, pasid: Option<Pasid>, iova: Iova) -> BTreeSet<Option<u64>> {
        let request = Request { pasid: pasid.map(Pasid::get), ..Request::read(endpoint.get(), iova.get()) };
        self.model.reachable(request).into_iter().map(Outcome::output).collect()
    }

    fn foreign(&self) -> Option<SharedTable> {
        // SAFETY: the table lives as long as the machine, and nothing is mapped in it.
        Some(unsafe { SharedTable::new(self.foreign.root()) })
    }

    fn address_space(&self) -> Option<TableRoot> {
        Some(self.process.root())
    }

    fn ask(&self, pasid: Pasid, pages: u64) {
        self.device.set_pasid(Some(6));
        self.device.set_ats(true);
        self.device.set_pri(Some(8));
        let jobs: Vec<_> =
            (0..pages).map(|page| Job::read(0x10_0000 + (page << 12)).with_pasid(pasid.get())).collect();
        self.device.request_pages(&jobs).unwrap();
    }

    fn unanswered(&self) -> usize {
        self.device.step();
        self.device.unanswered()
    }
}

#[test]
fn an_operation_that_lacks_memory_changes_nothing_and_succeeds_when_tried_again() {
    check::<Board>(include_str!("points.txt"));
}
