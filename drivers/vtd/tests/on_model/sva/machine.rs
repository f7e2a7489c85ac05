//! A modelled unit, its devices, and the common layer over them.

use super::process::{Pool, Process};
use crate::bench::{Bench, Registers};
use crate::memory::Host;
use crate::rig::{endpoint, units};
use crate::world::options;
use portcullis_hal::{Arc, MsiMessage, PAGE_SIZE, PhysAddr, RequesterId, TableWrites, unsize_arc};
use portcullis_iommu::{
    ControlError, Device, DeviceControl, DeviceDescription, DeviceId, GroupId, Iommu, Permissions, Requests,
    UnitId,
};
use portcullis_model::device::{Device as Model, points as habits};
use portcullis_model::vtd::points;
use portcullis_pgtable::{AccessedDirty, Config, Levels, X86};
use portcullis_vtd::Setup;

pub(super) type Space = Process<Host, X86>;

const FIRST_SID: u16 = 0x0118;
/// Two that use PASIDs and ask for pages, and one that can do neither.
pub(super) const ASKING: usize = 2;
const BITS: u8 = 6;
const CREDITS: u32 = 300;

pub(super) fn format() -> X86 {
    X86::new(Levels::Four, AccessedDirty::Preset)
}

pub(super) fn config(host_width: u8) -> Config {
    Config { input_bits: 48, output_bits: host_width, page_sizes: PAGE_SIZE, writes: TableWrites::Cleaned }
}

/// A model of a device, as the common layer switches it.
pub(super) struct Switch<'a> {
    model: &'a Model,
    requests: Requests,
}

impl DeviceControl for Switch<'_> {
    fn offers(&self) -> Permissions {
        Permissions { pasid_bits: BITS, requests: self.requests }
    }
    fn enable_pasids(&self) -> Result<(), ControlError> {
        self.model.set_pasid(Some(BITS));
        Ok(())
    }
    fn disable_pasids(&self) -> Result<(), ControlError> {
        self.model.set_pasid(None);
        Ok(())
    }
    fn enable_page_requests(&self) -> Result<(), ControlError> {
        self.model.set_pri(Some(CREDITS));
        Ok(())
    }
    fn stop_page_requests(&self) {}
    fn await_page_answers(&self) -> Result<(), ControlError> {
        for _ in 0..1000 {
            self.model.step();
            if self.model.unanswered() == 0 {
                self.model.set_pri(None);
                return Ok(());
            }
        }
        panic!("{} groups of a device have no answer", self.model.unanswered());
    }
    fn enable_translation_requests(&self) -> Result<(), ControlError> {
        self.model.set_ats(true);
        Ok(())
    }
    fn disable_translation_requests(&self) -> Result<(), ControlError> {
        self.model.set_ats(false);
        Ok(())
    }
}

/// A machine: a unit, its devices, and what they are used for.
pub(crate) struct Machine {
    pub(super) bench: std::sync::Arc<Bench>,
    pub(super) iommu: Iommu<Host>,
    pub(super) models: Vec<std::sync::Arc<Model>>,
    pub(super) devices: Vec<Arc<Device>>,
    pub(super) host_width: u8,
}

impl Machine {
    pub(crate) fn new(seed: u64) -> Self {
        let all = units();
        let unit = all[(seed % all.len() as u64) as usize];
        let bench = Bench::new(unit, seed);
        let setup = Setup::new(bench.host.clone(), Registers(bench.clone()), options(&unit)).expect("a unit");
        let driver = setup.enable().expect("a unit");
        let message = MsiMessage { address: PhysAddr::new(0xfee0_1000), data: 0x31 };
        driver.enable_interrupts(message).expect("an event");
        let iommu = Iommu::new(bench.host.clone());
        let driver = Arc::try_new(driver).expect("memory");
        iommu.add_unit(unsize_arc!(driver => dyn portcullis_iommu::Unit)).expect("memory");
        let (mut models, mut devices) = (Vec::new(), Vec::new());
        for number in 0..=ASKING as u16 {
            let sid = FIRST_SID + number;
            let model = Model::new(u32::from(sid), bench.unit.clone(), bench.schedule.clone(), number == 1);
            let model = std::sync::Arc::new(model);
            bench.add_device(model.clone());
            models.push(model);
            let description = DeviceDescription {
                id: DeviceId::Pci(RequesterId::from_bdf(0, sid)),
                unit: UnitId(0),
                endpoints: endpoint(sid).to_vec(),
                group: GroupId(u32::from(number)),
                reserved: Vec::new(),
            };
            devices.push(iommu.add_device(description).expect("room"));
        }
        bench
            .schedule
            .odds(habits::INVALIDATION_LATE, 1, 3)
            .odds(habits::DEAF, 1, 4)
            .odds(habits::REQUEST_HELD, 1, 8)
            .odds(points::REQUEST_LATE, 1, 6);
        Self { bench, iommu, models, devices, host_width: unit.host_width as u8 }
    }

    pub(super) fn switch(&self, device: usize) -> Switch<'_> {
        let mut requests = Requests::TRANSLATION | Requests::PAGE;
        requests.set(Requests::PASID_IN_ANSWERS, device == 1);
        Switch { model: &self.models[device], requests }
    }

    pub(super) fn process(&self, pool: &Pool) -> Arc<Space> {
        Process::new(&self.bench.host, pool, format(), config(self.host_width))
    }
}
