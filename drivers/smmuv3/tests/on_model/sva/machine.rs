//! A modelled unit, its devices, and the common layer over them.

use crate::board::{Handler, Kernel};
use crate::pasids::{endpoint, units};
use crate::ram::lock;
use crate::setups::Unit;
use portcullis_hal::{PAGE_SIZE, RequesterId, TableWrites};
use portcullis_iommu::{DeviceDescription, DeviceId, GroupId, Iommu, Requests, UnitId};
use portcullis_model::core::{Outcome, Prng, Request, Response};
use portcullis_model::device::{Device as Model, Job, points as habits};
use portcullis_model::smmuv3::points;
use portcullis_pgtable::{Config, VmsaStage1};
use portcullis_suites::sva::{Counts, Function};
use std::collections::BTreeSet;
use std::sync::Arc;

const FIRST_SID: u32 = 0x18;
const BITS: u8 = 6;
const CREDITS: u32 = 300;

/// What the model counts of stalls.
const STALLS: [&str; 8] = [
    "answered after it went through",
    "on its way to the event queue",
    "retried",
    "suppressed",
    "terminated",
    "terminated with its stream",
    "waits for the event queue",
    "went through early",
];

/// How faults are recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Faults {
    /// Devices make page requests.
    Pri,
    /// The unit stalls.
    Stall,
}

/// A machine: a unit, its devices, and what they are used for.
pub(crate) struct Machine {
    kernel: Kernel,
    unit: Unit,
    iommu: Arc<Iommu<Kernel>>,
    functions: [Function; 3],
}

impl Machine {
    pub(crate) fn new(seed: u64, faults: Faults) -> Self {
        let all = units();
        let config = all[(seed % all.len() as u64) as usize].clone();
        let kernel = Kernel::new(config.coherent);
        let mut unit = Unit::with(config, seed, &kernel, &mut Prng::new(seed));
        unit.options.page_request_queue_log2 = 8;
        unit.schedule
            .odds(points::STALL_EARLY_RETRY, 1, 16)
            .odds(points::STALL_SUPPRESS, 1, 4)
            .odds(points::EVENT_LATE, 1, 3)
            .odds(habits::INVALIDATION_LATE, 1, 3)
            .odds(habits::DEAF, 1, 4)
            .odds(habits::REQUEST_HELD, 1, 8);
        *lock(&kernel.0.units) = vec![unit.model.clone()];
        unit.start(&kernel, &[], seed).expect("a unit");
        let iommu = Arc::new(Iommu::new(kernel.clone()));
        let driver = unit.driver.as_ref().expect("a driver");
        iommu.add_unit(driver.unit().expect("memory")).expect("memory");
        let functions = [0, 1, 2].map(|number| {
            let sid = FIRST_SID + number;
            let model = Arc::new(Model::new(sid, unit.model.clone(), unit.schedule.clone(), number == 1));
            lock(&kernel.0.devices).push(model.clone());
            let description = DeviceDescription {
                id: DeviceId::Pci(RequesterId::from_bdf(0, sid as u16)),
                unit: UnitId(0),
                endpoints: endpoint(sid).to_vec(),
                group: GroupId(number),
                reserved: Vec::new(),
            };
            let device = iommu.add_device(description).expect("room");
            let mut requests = match faults {
                Faults::Pri => Requests::TRANSLATION | Requests::PAGE,
                Faults::Stall => Requests::STALL,
            };
            requests.set(Requests::PASID_IN_ANSWERS, faults == Faults::Pri && number == 1);
            Function { device, model, requests, pasid_bits: BITS, credits: CREDITS }
        });
        let handled = iommu.clone();
        let handler: Handler = Arc::new(move || _ = handled.handle_interrupt(UnitId(0)));
        lock(&kernel.0.handlers).push(Some(handler));
        Self { kernel, unit, iommu, functions }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It holds the common layer, which holds the kernel's services.
        lock(&self.kernel.0.handlers).clear();
    }
}

impl portcullis_suites::sva::Machine for Machine {
    type Hal = Kernel;
    type Format = VmsaStage1<12>;

    fn hal(&self) -> &Kernel {
        &self.kernel
    }

    fn iommu(&self) -> &Iommu<Kernel> {
        &self.iommu
    }

    fn functions(&self) -> &[Function; 3] {
        &self.functions
    }

    fn tables(&self) -> (VmsaStage1<12>, Config) {
        let config = Config {
            input_bits: 48,
            output_bits: self.unit.model.config().oas,
            page_sizes: PAGE_SIZE,
            writes: TableWrites::Cleaned,
        };
        (VmsaStage1::new(), config)
    }

    fn begin(&self, seed: u64, watched: &[Request]) {
        self.kernel.0.begin(seed);
        self.unit.model.unwatch_all();
        watched.iter().for_each(|&request| self.unit.model.watch(request));
        let job = |&Request { pasid, address, access, privilege, .. }: &Request| Job {
            pasid,
            address,
            access,
            privilege,
        };
        *lock(&self.kernel.0.wishes) = watched.iter().map(job).collect();
    }

    fn end(&self) {
        lock(&self.kernel.0.wishes).clear();
    }

    fn calm(&self) {
        self.unit.schedule.calm();
    }

    fn reachable(&self, request: Request) -> BTreeSet<Outcome> {
        self.unit.model.reachable(request)
    }

    fn take_resumed(&self, requester: u32) -> Vec<(u16, Response)> {
        self.unit.model.take_resumed(requester)
    }

    fn unanswered(&self) -> Vec<(u32, Option<u32>)> {
        let model = &self.unit.model;
        let open = model.open_groups().into_iter().chain(model.open_stalls());
        open.map(|(sid, pasid, _)| (sid, pasid)).collect()
    }

    fn take_wrong(&self) -> Vec<String> {
        self.unit.model.take_interrupts();
        let violations = self.unit.model.take_violations();
        let mut wrong: Vec<_> = violations.iter().map(|violation| format!("{violation:?}")).collect();
        wrong.extend(self.kernel.0.take_wrong());
        wrong
    }

    fn count(&self, counts: &mut Counts) {
        let coverage = self.unit.model.coverage();
        for name in STALLS {
            counts.many(name, coverage.of("stall", name));
        }
        counts.many("overflow", coverage.of("pri", "overflow"));
    }
}
