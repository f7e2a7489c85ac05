//! A machine: a model of a unit that no driver has touched, its memory, and a device that asks for pages.

#![expect(unsafe_code, reason = "vouches for the model's registers and for foreign tables")]

use super::Failed;
use portcullis_hal::host::HostHal;
use portcullis_hal::host::scarce::{ScarceHal, exempt};
use portcullis_hal::{Arc, EndpointId, Iova, Mmio, Pasid, PhysAddr, SharedTable, TableRoot, TableWrites};
use portcullis_iommu::Unit;
use portcullis_model::core::{Abort, Memory, Outcome, Request, Schedule, Upstream};
use portcullis_model::device::{Device, Job};
use portcullis_model::smmuv3::Smmu;
use portcullis_model::vtd::Vtd;
use portcullis_pgtable::{Config, Format, PageTable};
use std::any::Any;
use std::collections::BTreeSet;

/// A time-out in nanoseconds that is longer than any run of the test.
pub const PATIENCE_NS: u64 = 3_600_000_000_000;

/// A unit's model.
pub trait Hardware: Upstream + 'static {
    /// Reads a register.
    fn read32(&self, offset: u64) -> u32;
    /// Writes a register.
    fn write32(&self, offset: u64, value: u32);
    /// Reads a register.
    fn read64(&self, offset: u64) -> u64;
    /// Writes a register.
    fn write64(&self, offset: u64, value: u64);
    /// Does a piece of what it has to do.
    fn step(&self);
    /// All that a request may end with, through whatever is cached.
    fn reachable(&self, request: Request) -> BTreeSet<Outcome>;
}

macro_rules! hardware {
    ($($model:ty),+) => {
        $(impl Hardware for $model {
            fn read32(&self, offset: u64) -> u32 {
                <$model>::read32(self, offset)
            }
            fn write32(&self, offset: u64, value: u32) {
                <$model>::write32(self, offset, value);
            }
            fn read64(&self, offset: u64) -> u64 {
                <$model>::read64(self, offset)
            }
            fn write64(&self, offset: u64, value: u64) {
                <$model>::write64(self, offset, value);
            }
            fn step(&self) {
                <$model>::step(self);
            }
            fn reachable(&self, request: Request) -> BTreeSet<Outcome> {
                <$model>::reachable(self, request)
            }
        })+
    };
}

hardware!(Smmu, Vtd);

/// The unit's registers. What the model allocates is not the driver's.
pub struct Registers(std::sync::Arc<dyn Hardware>);

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

/// What a back end's board is made of.
pub struct Parts<U, F, P> {
    /// The unit, with its memory.
    pub unit: fn(std::sync::Arc<dyn Memory>, std::sync::Arc<Schedule>) -> U,
    /// The driver, which brings the unit up from nothing until it translates.
    pub bring_up: fn(ScarceHal, Registers) -> Result<Arc<dyn Unit>, Failed>,
    /// Whether the device wants its PASID in answers to page requests.
    pub response_pasid: bool,
    /// The format of foreign tables that the unit can use.
    pub foreign: F,
    /// The format of a process's tables that the unit can share.
    pub process: P,
    /// The width of the addresses that both translate, in bits.
    pub input_bits: u8,
}

/// A machine with one unit that no driver has touched.
pub struct Board {
    hal: ScarceHal,
    unit: std::sync::Arc<dyn Hardware>,
    bring_up: fn(ScarceHal, Registers) -> Result<Arc<dyn Unit>, Failed>,
    /// A device that asks for pages.
    device: std::sync::Arc<Device>,
    foreign: TableRoot,
    process: TableRoot,
    /// The tables, which are not the driver's.
    _tables: [Box<dyn Any>; 2],
}

impl Board {
    /// Builds it.
    ///
    /// # Panics
    ///
    /// The tables cannot be made.
    pub fn new<U: Hardware, F: Format + 'static, P: Format + 'static>(parts: Parts<U, F, P>) -> Self {
        let hal = ScarceHal::new();
        let schedule = || std::sync::Arc::new(Schedule::new(1));
        let unit =
            std::sync::Arc::new((parts.unit)(std::sync::Arc::new(Ram(hal.host().clone())), schedule()));
        let device = Device::new(0x10, unit.clone(), schedule(), parts.response_pasid);
        let device = std::sync::Arc::new(device);
        let (stepping, answering) = (unit.clone(), device.clone());
        hal.on_relax(move || {
            Hardware::step(&*stepping);
            answering.step();
        });
        let config = Config {
            input_bits: parts.input_bits,
            output_bits: 40,
            page_sizes: u64::MAX,
            writes: TableWrites::Cached,
        };
        // Made of frames that are not counted.
        let foreign = PageTable::new(hal.host(), parts.foreign, config).unwrap();
        let process = PageTable::new(hal.host(), parts.process, config).unwrap();
        Self {
            hal,
            unit,
            bring_up: parts.bring_up,
            device,
            foreign: foreign.root(),
            process: process.root(),
            _tables: [Box::new(foreign), Box::new(process)],
        }
    }

    /// The kernel's services.
    pub(super) fn hal(&self) -> &ScarceHal {
        &self.hal
    }

    /// Brings the unit up.
    pub(super) fn set_up(&self) -> Result<Arc<dyn Unit>, Failed> {
        (self.bring_up)(self.hal.clone(), Registers(self.unit.clone()))
    }

    /// Endpoints of three devices, or of one device with several.
    pub(super) fn endpoints(&self) -> [EndpointId; 3] {
        [0x10, 0x11, 0x1200].map(EndpointId::new)
    }

    /// Where a device's access to `iova` may end, through whatever the unit has cached; `None` is a refusal.
    pub(super) fn reach(
        &self,
        endpoint: EndpointId,
        pasid: Option<Pasid>,
        iova: Iova,
    ) -> BTreeSet<Option<u64>> {
        let request = Request { pasid: pasid.map(Pasid::get), ..Request::read(endpoint.get(), iova.get()) };
        self.unit.reachable(request).into_iter().map(Outcome::output).collect()
    }

    /// Foreign tables, empty ones.
    pub(super) fn foreign(&self) -> SharedTable {
        // SAFETY: the table lives as long as the board, and nothing is mapped in it.
        unsafe { SharedTable::new(self.foreign) }
    }

    /// Tables of a process, empty ones.
    pub(super) fn address_space(&self) -> TableRoot {
        self.process
    }

    /// The first device asks for some pages, in one group, with a PASID that it may use.
    pub(super) fn ask(&self, pasid: Pasid, pages: u64) {
        self.device.set_pasid(Some(6));
        self.device.set_ats(true);
        self.device.set_pri(Some(8));
        let jobs: Vec<_> =
            (0..pages).map(|page| Job::read(0x10_0000 + (page << 12)).with_pasid(pasid.get())).collect();
        self.device.request_pages(&jobs).unwrap();
    }

    /// How many groups wait for an answer.
    pub(super) fn unanswered(&self) -> usize {
        self.device.step();
        self.device.unanswered()
    }
}
