//! A modelled unit, its devices, and the common layer over them.

use crate::bench::{Bench, Registers};
use crate::memory::Host;
use crate::rig::{endpoint, units};
use crate::world::options;
use portcullis_hal::{Arc, MsiMessage, PAGE_SIZE, PhysAddr, RequesterId, TableWrites, unsize_arc};
use portcullis_iommu::{DeviceDescription, DeviceId, GroupId, Iommu, Requests, UnitId};
use portcullis_model::core::{Outcome, Request};
use portcullis_model::device::{Device as Model, points as habits};
use portcullis_model::vtd::points;
use portcullis_pgtable::{AccessedDirty, Config, Levels, X86};
use portcullis_suites::sva::Function;
use portcullis_vtd::Setup;
use std::collections::BTreeSet;

const FIRST_SID: u16 = 0x0118;
const BITS: u8 = 6;
const CREDITS: u32 = 300;

/// A machine: a unit, its devices, and what they are used for.
pub(crate) struct Machine {
    bench: std::sync::Arc<Bench>,
    iommu: Iommu<Host>,
    functions: [Function; 3],
    host_width: u8,
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
        let functions = [0, 1, 2].map(|number| {
            let sid = FIRST_SID + number;
            let model = Model::new(u32::from(sid), bench.unit.clone(), bench.schedule.clone(), number == 1);
            let model = std::sync::Arc::new(model);
            bench.add_device(model.clone());
            let description = DeviceDescription {
                id: DeviceId::Pci(RequesterId::from_bdf(0, sid)),
                unit: UnitId(0),
                endpoints: endpoint(sid).to_vec(),
                group: GroupId(u32::from(number)),
                reserved: Vec::new(),
            };
            let device = iommu.add_device(description).expect("room");
            let mut requests = Requests::TRANSLATION | Requests::PAGE;
            requests.set(Requests::PASID_IN_ANSWERS, number == 1);
            Function { device, model, requests, pasid_bits: BITS, credits: CREDITS }
        });
        bench
            .schedule
            .odds(habits::INVALIDATION_LATE, 1, 3)
            .odds(habits::DEAF, 1, 4)
            .odds(habits::REQUEST_HELD, 1, 8)
            .odds(points::REQUEST_LATE, 1, 6);
        Self { bench, iommu, functions, host_width: unit.host_width as u8 }
    }
}

impl portcullis_suites::sva::Machine for Machine {
    type Hal = Host;
    type Format = X86;

    fn hal(&self) -> &Host {
        &self.bench.host
    }

    fn iommu(&self) -> &Iommu<Host> {
        &self.iommu
    }

    fn functions(&self) -> &[Function; 3] {
        &self.functions
    }

    fn tables(&self) -> (X86, Config) {
        let config = Config {
            input_bits: 48,
            output_bits: self.host_width,
            page_sizes: PAGE_SIZE,
            writes: TableWrites::Cleaned,
        };
        (X86::new(Levels::Four, AccessedDirty::Preset), config)
    }

    fn begin(&self, seed: u64, watched: &[Request]) {
        self.bench.begin(seed, watched);
    }

    fn end(&self) {
        self.bench.end();
    }

    fn calm(&self) {
        self.bench.schedule.calm();
    }

    fn reachable(&self, request: Request) -> BTreeSet<Outcome> {
        self.bench.unit.reachable(request)
    }

    fn unanswered(&self) -> Vec<(u32, Option<u32>)> {
        let open = self.bench.unit.open_groups();
        open.into_iter().map(|(sid, pasid, _)| (u32::from(sid), pasid)).collect()
    }

    fn take_wrong(&self) -> Vec<String> {
        self.bench.unit.take_interrupts();
        let violations = self.bench.unit.take_violations();
        let mut wrong: Vec<_> = violations.iter().map(|violation| format!("{violation:?}")).collect();
        wrong.extend(self.bench.host.take_troubles());
        wrong
    }
}
