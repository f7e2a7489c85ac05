//! Devices are bound to address spaces, and what happens to these reaches them.

#![expect(unsafe_code, reason = "an address space for the tests")]

mod rig;

use portcullis_hal::{
    Access, Arc, FaultOutcome, Mm, MmFault, MmNotifier, OutOfMemory, PAGE_SIZE, Pasid, PhysAddr, PinError,
    SubscribeError, SyncError, TableFormat, TableRoot, TableWrites, unsize_arc,
};
use portcullis_iommu::*;
use rig::{Log, PRI, Rig, STALL, last, pasid, request};
use std::sync::Mutex;

const ROOT: TableRoot = TableRoot {
    format: TableFormat::X86 { levels: 4 },
    root: PhysAddr::new(0x1000),
    input_bits: 48,
    output_bits: 40,
    page_sizes: PAGE_SIZE,
    writes: TableWrites::Cleaned,
};

struct Process {
    root: TableRoot,
    log: Log,
    notifiers: Mutex<Option<Vec<Arc<dyn MmNotifier>>>>,
    outcome: Mutex<FaultOutcome>,
    faults: Mutex<Vec<MmFault>>,
    pins: Mutex<Vec<(u64, u64)>>,
}

// SAFETY: no device walks the tables.
unsafe impl Mm for Process {
    fn root(&self) -> TableRoot {
        self.root
    }
    fn subscribe(&self, notifier: Arc<dyn MmNotifier>) -> Result<(), SubscribeError> {
        self.log.lock().unwrap().push("subscribe".into());
        self.notifiers.lock().unwrap().as_mut().ok_or(SubscribeError::Released)?.push(notifier);
        Ok(())
    }
    fn unsubscribe(&self, notifier: &Arc<dyn MmNotifier>) {
        self.log.lock().unwrap().push("unsubscribe".into());
        if let Some(all) = &mut *self.notifiers.lock().unwrap() {
            all.retain(|other| !Arc::ptr_eq(other, notifier));
        }
    }
    fn handle_fault(&self, fault: MmFault) -> FaultOutcome {
        self.faults.lock().unwrap().push(fault);
        *self.outcome.lock().unwrap()
    }
    fn pin(&self, first: u64, last: u64, access: Access) -> Result<(), PinError> {
        if access.contains(Access::EXECUTE) {
            return Err(PinError::Denied(first));
        }
        self.log.lock().unwrap().push(format!("pin {first:#x}"));
        self.pins.lock().unwrap().push((first, last));
        Ok(())
    }
    fn unpin(&self, first: u64, last: u64) {
        self.log.lock().unwrap().push(format!("unpin {first:#x}"));
        let mut pins = self.pins.lock().unwrap();
        let at = pins.iter().position(|pin| *pin == (first, last)).expect("a pin");
        pins.swap_remove(at);
    }
}

impl Process {
    fn new(rig: &Rig, root: TableRoot) -> Arc<Self> {
        let process = Self {
            root,
            log: rig.log.clone(),
            notifiers: Mutex::new(Some(Vec::new())),
            outcome: Mutex::new(FaultOutcome::Resolved),
            faults: Mutex::default(),
            pins: Mutex::default(),
        };
        Arc::try_new(process).unwrap()
    }

    fn notifiers(&self) -> Vec<Arc<dyn MmNotifier>> {
        self.notifiers.lock().unwrap().clone().unwrap_or_default()
    }

    fn invalidate(&self, first: u64, last: u64) -> Result<(), SyncError> {
        self.notifiers().iter().try_for_each(|notifier| notifier.invalidate(first, last))
    }

    fn exit(&self) -> Result<(), SyncError> {
        let notifiers = self.notifiers.lock().unwrap().take().unwrap();
        notifiers.iter().try_for_each(|notifier| notifier.release())
    }
}

struct Driver(Log);

impl ExitHandler for Driver {
    fn exit(&self, device: &Device, pasid: Option<Pasid>) {
        let pasid = pasid.map_or(0, Pasid::get);
        self.0.lock().unwrap().push(format!("quiesce {}.{pasid:#x}", device.endpoints()[0]));
    }
}

fn driver(rig: &Rig) -> Arc<dyn ExitHandler> {
    unsize_arc!(Arc::try_new(Driver(rig.log.clone())).unwrap() => dyn ExitHandler)
}

fn mm(process: &Arc<Process>) -> Arc<dyn Mm> {
    unsize_arc!(process.clone() => dyn Mm)
}

type Bonded<'a> = Bond<'a, portcullis_hal::host::HostHal>;

fn try_bind<'a>(rig: &'a Rig, device: &Arc<Device>, process: &Arc<Process>) -> Result<Bonded<'a>, BindError> {
    rig.iommu.bind(device, &mm(process), PageRights::empty(), driver(rig))
}

fn bind<'a>(rig: &'a Rig, device: &Arc<Device>, process: &Arc<Process>) -> Bonded<'a> {
    try_bind(rig, device, process).unwrap()
}

#[test]
fn what_a_feature_lacks_is_named_with_who_lacks_it() {
    let device_lacks = |missing| Err(FeatureError::Device { missing });
    let unit_lacks = |missing| Err(FeatureError::Unit { missing });
    let ask = |rig: &Rig, offers, feature, root: TableRoot| {
        let device = rig.iommu.device(DeviceId::Pci(portcullis_hal::RequesterId::from_bdf(0, 8)));
        let device = device.unwrap_or_else(|| rig.plain_device(0, 8));
        rig.iommu.has_feature(&device, &Unswitched(offers), feature, &root)
    };
    let rig = Rig::new(1);
    let offers = |pasid_bits, requests| Permissions { pasid_bits, requests };
    assert_eq!(ask(&rig, offers(20, PRI.requests), Feature::Sva, ROOT), Ok(offers(20, PRI.requests)));
    assert_eq!(ask(&rig, PRI, Feature::PageFaults, ROOT), Ok(offers(0, PRI.requests)));
    assert_eq!(ask(&rig, STALL, Feature::Sva, ROOT), Ok(STALL));
    let none = Missing::PRI | Missing::STALL;
    assert_eq!(ask(&rig, offers(8, Requests::TRANSLATION), Feature::Sva, ROOT), device_lacks(none));
    assert_eq!(ask(&rig, offers(8, Requests::PAGE), Feature::Sva, ROOT), device_lacks(Missing::ATS));
    assert_eq!(ask(&rig, offers(0, PRI.requests), Feature::Sva, ROOT), device_lacks(Missing::PASID));
    let wide = TableRoot { output_bits: 52, ..ROOT };
    assert_eq!(ask(&rig, PRI, Feature::Sva, wide), unit_lacks(Missing::OUTPUT_WIDTH));

    let plain = Rig::of(1, |info| info.fault_models = FaultModels::empty());
    assert_eq!(ask(&plain, PRI, Feature::PageFaults, ROOT), unit_lacks(Missing::PRI));
    assert_eq!(ask(&plain, STALL, Feature::PageFaults, ROOT), unit_lacks(Missing::STALL));
    let stalls = Rig::of(1, |info| info.fault_models = FaultModels::STALL);
    let both = offers(8, PRI.requests | Requests::STALL);
    assert_eq!(ask(&stalls, both, Feature::Sva, ROOT), Ok(STALL));
    let single = Rig::of(1, |info| info.pasid_bits = 0);
    assert_eq!(ask(&single, PRI, Feature::Sva, ROOT), unit_lacks(Missing::PASID));

    let deaf = Rig::of(1, |info| info.table_coherency = WalkCoherency::NotSnooped);
    assert_eq!(ask(&deaf, PRI, Feature::Sva, ROOT), Ok(PRI));
    let cached = TableRoot { writes: TableWrites::Cached, ..ROOT };
    assert_eq!(ask(&deaf, PRI, Feature::Sva, cached), Err(FeatureError::TablesNotCleaned));
    assert_eq!(ask(&rig, PRI, Feature::Sva, cached), Ok(PRI));
}

#[test]
fn a_feature_is_enabled_and_disabled_by_name() {
    let rig = Rig::new(1);
    let device = rig.plain_device(0, 8);
    let control = Unswitched(PRI);
    let is_enabled = |device: &Device| [Feature::PageFaults, Feature::Sva].map(|it| device.is_enabled(it));
    let enable = |feature| rig.iommu.enable_feature(&device, &control, feature, &ROOT);
    let disable = |feature| rig.iommu.disable_feature(&device, &control, feature);
    enable(Feature::PageFaults).unwrap();
    assert_eq!(is_enabled(&device), [true, false]);
    assert_eq!(enable(Feature::Sva), Err(FeatureError::Enabled));
    disable(Feature::Sva).unwrap();
    disable(Feature::PageFaults).unwrap();
    enable(Feature::Sva).unwrap();
    enable(Feature::Sva).unwrap();
    enable(Feature::PageFaults).unwrap();
    assert_eq!(is_enabled(&device), [true, true]);
    assert_eq!(disable(Feature::PageFaults), Err(FeatureError::Enabled));
    disable(Feature::Sva).unwrap();
    assert_eq!((is_enabled(&device), device.permissions()), ([false, false], Permissions::NONE));
}

#[test]
fn an_address_space_has_one_pasid_for_all_devices_units_and_bonds() {
    let rig = Rig::new(2);
    let (a, b, c) = (rig.device(0, 8, PRI), rig.device(0, 9, STALL), rig.device(1, 8, PRI));
    let process = Process::new(&rig, ROOT);
    rig.take_log();
    let first = bind(&rig, &a, &process);
    assert_eq!(rig.take_log(), ["subscribe", "attach 0x8.0x1 shared"]);
    let others = [bind(&rig, &a, &process), bind(&rig, &b, &process), bind(&rig, &c, &process)];
    assert_eq!(rig.take_log(), ["attach 0x9.0x1 shared", "attach 0x8.0x1 shared"]);
    assert!(others.iter().all(|bond| bond.pasid() == Some(pasid(1)) && bond.pasid() == first.pasid()));
    assert!(Arc::ptr_eq(&a.pasid_domain(pasid(1)).unwrap(), &b.pasid_domain(pasid(1)).unwrap()));
    assert!(rig.iommu.bound_mm(&a, pasid(1)).is_some_and(|found| Arc::ptr_eq(&found, &mm(&process))));

    let other = Process::new(&rig, ROOT);
    assert_eq!(bind(&rig, &a, &other).pasid(), Some(pasid(2)));
    rig.take_log();
    first.unbind().unwrap();
    assert!(rig.take_log().is_empty(), "the device has another bond");
    let [same, b, c] = others;
    drop(same);
    assert_eq!(rig.take_log(), ["detach 0x8.0x1", "drain 0x8"]);
    drop(b);
    c.unbind().unwrap();
    assert_eq!(rig.take_log(), ["detach 0x9.0x1", "drain 0x9", "detach 0x8.0x1", "drain 0x8", "unsubscribe"]);
    assert!(rig.iommu.bound_mm(&a, pasid(1)).is_none());
    assert!(rig.iommu.system_pasids().lock().owner(pasid(1)).is_none());
}

#[test]
fn a_unit_that_cannot_share_a_domain_gets_one_of_its_own() {
    let rig = Rig::new(1);
    let (a, b) = (rig.device(0, 8, PRI), rig.device(0, 9, PRI));
    let process = Process::new(&rig, ROOT);
    let _first = bind(&rig, &a, &process);
    rig.unit().wires().refuses = Some(AttachError::Incompatible { missing: Missing::BACKEND });
    // It refuses the second domain too.
    let refused = try_bind(&rig, &b, &process).unwrap_err();
    assert!(matches!(refused, BindError::Attach(AttachError::Incompatible { .. })));
    rig.unit().wires().refuses = None;
    let _second = bind(&rig, &b, &process);
    rig.take_log();
    process.invalidate(0x1000, 0x1fff).unwrap();
    assert_eq!(rig.take_log().len(), 2, "every domain is told");
}

#[test]
fn the_widths_of_devices_are_respected() {
    let rig = Rig::new(1);
    let narrow = Permissions { pasid_bits: 2, ..PRI };
    let (wide, narrow) = (rig.device(0, 8, PRI), rig.device(0, 9, narrow));
    let processes: Vec<_> = (0..5).map(|_| Process::new(&rig, ROOT)).collect();
    let bonds: Vec<_> = processes.iter().map(|process| bind(&rig, &wide, process)).collect();
    assert_eq!(try_bind(&rig, &narrow, &processes[4]).unwrap_err(), BindError::TooWide(pasid(5)));
    let fits = bind(&rig, &narrow, &processes[2]);
    assert_eq!(fits.pasid(), Some(pasid(3)));
    // All that the narrow device can use are taken.
    let more = Process::new(&rig, ROOT);
    let error = try_bind(&rig, &narrow, &more).unwrap_err();
    assert_eq!(error, BindError::Pasid(PasidError::Exhausted));
    assert!(more.notifiers().is_empty());
    drop((bonds, fits));
    let fits = bind(&rig, &narrow, &more);
    assert!(fits.pasid().is_some_and(|pasid| pasid.get() < 4));
}

#[test]
fn faults_are_resolved_as_the_processors_are() {
    for (model, kind) in [(PRI, last(3)), (STALL, rig::stalled(3))] {
        let rig = Rig::new(1);
        let device = rig.device(0, 8, model);
        let process = Process::new(&rig, ROOT);
        let bond = bind(&rig, &device, &process);
        let outcomes = [FaultOutcome::Resolved, FaultOutcome::Denied, FaultOutcome::Failed];
        let responses = [PageResponse::Success, PageResponse::Invalid, PageResponse::Invalid];
        for (outcome, response) in outcomes.into_iter().zip(responses) {
            *process.outcome.lock().unwrap() = outcome;
            rig.unit().ask(request(&device, bond.pasid(), 5, kind));
            assert_eq!(rig.handle(), PageFaultWork::Done);
            assert_eq!(rig.unit().wires().answered.pop().unwrap().response, response);
        }
        let fault = MmFault { address: 0x5000, access: Access::READ };
        assert_eq!(*process.faults.lock().unwrap(), [fault; 3]);
    }
}

/// The order of bonds, and of their ends, is not what decides.
#[test]
fn bonds_of_a_device_to_one_address_space_have_the_rights_of_all_that_live() {
    let rig = Rig::new(1);
    let (device, other) = (rig.device(0, 8, PRI), rig.device(0, 9, PRI));
    let process = Process::new(&rig, ROOT);
    let bind = |device, rights| rig.iommu.bind(device, &mm(&process), rights, driver(&rig)).unwrap();
    let allowed = |device: &Device| {
        let ask = |group, access, privilege| {
            let asks = request(device, Some(pasid(1)), 5, last(group));
            rig.unit().ask(PageRequest { access, privilege, ..asks });
        };
        ask(1, Access::READ, Privilege::User);
        ask(2, Access::EXECUTE, Privilege::User);
        ask(3, Access::READ, Privilege::Supervisor);
        let _done = rig.handle();
        let answers = std::mem::take(&mut rig.unit().wires().answered);
        let yes = answers.into_iter().filter(|answer| answer.response == PageResponse::Success);
        let mut yes: Vec<_> = yes
            .map(|answer| match answer.to {
                Answered::Group(group) => group.get(),
                Answered::Stall(_) => 0,
            })
            .collect();
        yes.sort();
        yes
    };
    let plain = bind(&device, PageRights::empty());
    assert_eq!(allowed(&device), [1]);
    let fetches = bind(&device, PageRights::EXECUTE);
    let kernels = bind(&device, PageRights::SUPERVISOR);
    assert_eq!(allowed(&device), [1, 2, 3]);
    // Another device has its own.
    let _others = bind(&other, PageRights::empty());
    assert_eq!(allowed(&other), [1]);
    drop(fetches);
    assert_eq!(allowed(&device), [1, 3]);
    drop(plain);
    assert_eq!(allowed(&device), [1, 3]);
    drop(kernels);
    assert_eq!(allowed(&device), [0; 0]);
}

#[test]
fn all_pages_of_a_group_have_to_be_there() {
    let rig = Rig::new(1);
    let device = rig.device(0, 8, PRI);
    let process = Process::new(&rig, ROOT);
    let bond = bind(&rig, &device, &process);
    for (page, kind) in [(1, rig::partial(3)), (2, last(3))] {
        rig.unit().ask(request(&device, bond.pasid(), page, kind));
    }
    let _done = rig.handle();
    let pages: Vec<_> = process.faults.lock().unwrap().iter().map(|fault| fault.address).collect();
    assert_eq!(pages, [0x1000, 0x2000]);
    assert_eq!(rig.unit().wires().answered.len(), 1);
}

#[test]
fn a_change_of_the_tables_is_forgotten_to_the_byte_once_for_all_devices() {
    let rig = Rig::new(1);
    let (a, b) = (rig.device(0, 8, PRI), rig.device(0, 9, PRI));
    let process = Process::new(&rig, ROOT);
    let _bonds = [bind(&rig, &a, &process), bind(&rig, &b, &process)];
    rig.take_log();
    let told = |first, last| {
        process.invalidate(first, last).unwrap();
        let log = rig.take_log();
        log.into_iter().map(|line| line.split_once(": ").unwrap().1.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(told(0x1000, 0x1fff), ["Some((1000, 1fff))"]);
    assert_eq!(told(0, 0xfff), ["Some((0, fff))"]);
    // The domain translates 39 bits.
    assert_eq!(told(0x7f_ffff_f000, u64::MAX), ["Some((7ffffff000, 7fffffffff))"]);
    assert_eq!(told(0, u64::MAX), ["None"]);
    assert_eq!(told(0x80_0000_0000, u64::MAX), [""; 0]);
}

#[test]
fn an_exit_tells_the_driver_then_cuts_the_device_off_and_keeps_the_pasid() {
    let rig = Rig::new(2);
    let (a, b) = (rig.device(0, 8, PRI), rig.device(1, 9, STALL));
    let process = Process::new(&rig, ROOT);
    let (bond, other) = (bind(&rig, &a, &process), bind(&rig, &b, &process));
    rig.take_log();
    process.exit().unwrap();
    assert_eq!(
        rig.take_log(),
        ["quiesce 0x8.0x1", "quiesce 0x9.0x1", "attach 0x8.0x1 blocked", "attach 0x9.0x1 blocked"]
    );
    // Nobody gets the PASID, and the address space is not bound again.
    assert_eq!(try_bind(&rig, &a, &process).unwrap_err(), BindError::Exited);
    let next = Process::new(&rig, ROOT);
    assert_eq!(bind(&rig, &a, &next).pasid(), Some(pasid(2)));
    assert!(rig.iommu.system_pasids().lock().owner(pasid(1)).is_some());
    // What the device asked before gets an answer; the address space is not asked.
    rig.unit().ask(request(&a, bond.pasid(), 1, last(1)));
    let _done = rig.handle();
    assert_eq!(rig.unit().wires().answered.pop().unwrap().response, PageResponse::Invalid);
    assert!(process.faults.lock().unwrap().is_empty());
    rig.take_log();
    drop((bond, other));
    assert_eq!(rig.take_log(), ["detach 0x8.0x1", "drain 0x8", "detach 0x9.0x1", "drain 0x9", "unsubscribe"]);
    assert!(rig.iommu.system_pasids().lock().owner(pasid(1)).is_none());
    // Gone is gone.
    assert_eq!(try_bind(&rig, &a, &process).unwrap_err(), BindError::Exited);
}

#[test]
fn a_pasid_is_free_only_when_its_page_requests_are_answered() {
    let rig = Rig::new(1);
    let device = rig.device(0, 8, PRI);
    let process = Process::new(&rig, ROOT);
    let bond = bind(&rig, &device, &process);
    rig.unit().ask(request(&device, bond.pasid(), 1, last(1)));
    rig.interrupt();
    rig.unit().hold(request(&device, bond.pasid(), 2, last(2)));
    bond.unbind().unwrap();
    assert!(rig.unit().wires().asked.is_empty());
    assert!(process.faults.lock().unwrap().is_empty());

    // A drain that is not confirmed: the PASID is out for good.
    let bond = bind(&rig, &device, &process);
    let number = bond.pasid().unwrap();
    rig.unit().wires().fails = "drain";
    assert!(matches!(bond.unbind(), Err(UnbindError::Drain(_))));
    assert!(rig.iommu.system_pasids().lock().owner(number).is_some());
    assert!(process.notifiers().is_empty());
}

#[test]
fn a_unit_that_does_not_confirm_keeps_the_tables_from_going() {
    let rig = Rig::new(1);
    let device = rig.device(0, 8, PRI);
    let process = Process::new(&rig, ROOT);
    let bond = bind(&rig, &device, &process);
    rig.unit().wires().fails = "detach 0x8.0x1";
    assert!(matches!(bond.unbind(), Err(UnbindError::Attach(_))));
    assert_eq!(process.notifiers().len(), 1);
    rig.unit().wires().fails = "";
    assert!(process.exit().is_err());

    let other = Process::new(&rig, ROOT);
    let _bond = bind(&rig, &device, &other);
    rig.unit().wires().fails = "attach 0x8.0x2 blocked";
    assert!(other.exit().is_err());
}

#[test]
fn a_bind_that_fails_leaves_nothing() {
    let rig = Rig::new(1);
    let device = rig.device(0, 8, PRI);
    let process = Process::new(&rig, ROOT);
    rig.unit().wires().refuses = Some(AttachError::OutOfMemory(OutOfMemory));
    assert!(try_bind(&rig, &device, &process).is_err());
    assert!(process.notifiers().is_empty());
    assert!(rig.iommu.system_pasids().lock().owner(pasid(1)).is_none());
    rig.unit().ask(request(&device, Some(pasid(1)), 1, last(1)));
    let _done = rig.handle();
    assert_eq!(device.page_fault_stats().unwrap().unknown, 1);
    let plain = rig.plain_device(0, 9);
    assert_eq!(try_bind(&rig, &plain, &process).unwrap_err(), BindError::NotEnabled);
    let wide = Process::new(&rig, TableRoot { output_bits: 52, ..ROOT });
    rig.unit().wires().refuses = None;
    let missing = Missing::OUTPUT_WIDTH;
    assert_eq!(try_bind(&rig, &device, &wide).unwrap_err(), DomainError::Unsupported { missing }.into());
}

#[test]
fn a_device_without_page_faults_is_attached_to_resident_pages() {
    let rig = Rig::new(1);
    let device = rig.plain_device(0, 8);
    let process = Process::new(&rig, ROOT);
    let page = |first, access| PinnedRange { first, last: first + 0xfff, access };
    let attach =
        |ranges: &[PinnedRange]| rig.iommu.attach_pinned(&device, &mm(&process), ranges, driver(&rig));
    let good = [page(0x1000, Access::READ), page(0x5000, Access::WRITE)];
    let bond = attach(&good).unwrap();
    assert_eq!(rig.take_log(), ["pin 0x1000", "pin 0x5000", "subscribe", "attach 0x8 shared"]);
    assert_eq!(bond.pasid(), None);
    process.invalidate(0x1000, 0x1fff).unwrap();
    assert_eq!(rig.take_log(), ["forget 2: Some((1000, 1fff))"]);
    bond.unbind().unwrap();
    let log = rig.take_log();
    assert_eq!(log, ["attach 0x8 blocked", "unpin 0x1000", "unpin 0x5000", "unsubscribe"]);

    let denied = attach(&[good[0], page(0x9000, Access::EXECUTE)]).unwrap_err();
    assert_eq!(denied, BindError::Pin(PinError::Denied(0x9000)));
    assert_eq!(rig.take_log(), ["pin 0x1000", "unpin 0x1000"]);

    let bond = attach(&good).unwrap();
    rig.take_log();
    process.exit().unwrap();
    assert_eq!(rig.take_log(), ["quiesce 0x8.0x0", "attach 0x8 blocked"]);
    assert_eq!(device.domain().unwrap().info().kind, DomainKind::Blocked);
    drop(bond);
    assert_eq!(rig.take_log(), ["unpin 0x1000", "unpin 0x5000", "unsubscribe"]);
    assert!(process.pins.lock().unwrap().is_empty());
}

#[test]
fn memory_that_a_device_may_still_write_stays_pinned() {
    let rig = Rig::new(1);
    let device = rig.plain_device(0, 8);
    let process = Process::new(&rig, ROOT);
    let range = PinnedRange { first: 0x1000, last: 0x1fff, access: Access::WRITE };
    let bond = rig.iommu.attach_pinned(&device, &mm(&process), &[range], driver(&rig)).unwrap();
    rig.unit().wires().fails = "attach 0x8 blocked";
    assert!(bond.unbind().is_err());
    assert_eq!(process.pins.lock().unwrap().len(), 1);
    assert!(process.exit().is_err());
}

#[test]
fn a_namespace_of_its_own_keeps_a_devices_pasids_from_the_systems() {
    let rig = Rig::new(1);
    let (shared, own) = (rig.device(0, 8, PRI), rig.device(0, 9, PRI));
    let space = rig.iommu.use_own_pasids(&own).unwrap();
    let (one, other) = (Process::new(&rig, ROOT), Process::new(&rig, ROOT));
    let a = bind(&rig, &shared, &one);
    let b = bind(&rig, &own, &other);
    assert_eq!((a.pasid(), b.pasid()), (Some(pasid(1)), Some(pasid(1))));
    // The same address space has one PASID in each.
    let c = bind(&rig, &own, &one);
    assert_eq!(c.pasid(), Some(pasid(2)));
    assert!(space.lock().owner(pasid(2)).is_some());
    assert_eq!(rig.iommu.use_system_pasids(&own), Err(AttachError::PasidInUse(pasid(1))));
    // What one device uses in its own does not keep the system's from being given back.
    drop(a);
    assert!(rig.iommu.system_pasids().lock().owner(pasid(1)).is_none());
    drop((b, c));
    assert!(space.lock().owner(pasid(1)).is_none());
    rig.iommu.use_system_pasids(&own).unwrap();
    let d = bind(&rig, &own, &other);
    assert!(rig.iommu.system_pasids().lock().owner(d.pasid().unwrap()).is_some());
}

#[test]
fn a_nesting_domain_and_host_pasids_exclude_each_other() {
    let rig = Rig::new(1);
    let device = rig.device(0, 8, PRI);
    let process = Process::new(&rig, ROOT);
    let bond = bind(&rig, &device, &process);
    let number = bond.pasid().unwrap();
    assert_eq!(rig.iommu.claim_pasids(&device).unwrap_err(), AttachError::PasidInUse(number));
    drop(bond);
    let claim = rig.iommu.claim_pasids(&device).unwrap();
    assert_eq!(rig.iommu.claim_pasids(&device).unwrap_err(), AttachError::PasidsClaimed);
    assert_eq!(rig.iommu.use_own_pasids(&device).unwrap_err(), AttachError::PasidsClaimed);
    let refused = try_bind(&rig, &device, &process).unwrap_err();
    assert_eq!(refused, BindError::Attach(AttachError::PasidsClaimed));
    assert!(process.notifiers().is_empty());
    let domain = rig.unit().new_domain(&DomainSpec::Blocked).unwrap();
    let refused = rig.iommu.attach_pasid(&device, pasid(9), &domain);
    assert_eq!(refused, Err(AttachError::PasidsClaimed));
    drop(claim);
    drop(bind(&rig, &device, &process));
}

/// A unit that did not confirm that it forgot a PASID may still use it.
#[test]
fn a_quarantined_pasid_keeps_a_nesting_domain_out() {
    let rig = Rig::new(1);
    let device = rig.device(0, 8, PRI);
    let domain = rig.unit().new_domain(&DomainSpec::Blocked).unwrap();
    rig.iommu.attach_pasid(&device, pasid(9), &domain).unwrap();
    rig.unit().wires().fails = "detach 0x8.0x9";
    assert!(rig.iommu.detach_pasid(&device, pasid(9)).is_err());
    rig.unit().wires().fails = "";
    assert_eq!(rig.iommu.claim_pasids(&device).unwrap_err(), AttachError::PasidInUse(pasid(9)));
    assert_eq!(rig.iommu.use_own_pasids(&device).unwrap_err(), AttachError::PasidInUse(pasid(9)));
    // With the confirmation it is free.
    rig.iommu.detach_pasid(&device, pasid(9)).unwrap();
    drop(rig.iommu.claim_pasids(&device).unwrap());
}

/// Work queues that devices share know a process by one PASID.
#[test]
fn in_the_systems_namespace_a_pasid_means_the_same_to_every_device() {
    let rig = Rig::new(2);
    let (a, b) = (rig.device(0, 8, PRI), rig.device(1, 8, STALL));
    let processes: Vec<_> = (0..3).map(|_| Process::new(&rig, ROOT)).collect();
    let bonds: Vec<_> = processes.iter().map(|process| bind(&rig, &a, process)).collect();
    for (process, bond) in processes.iter().zip(&bonds).rev() {
        let other = bind(&rig, &b, process);
        assert_eq!(other.pasid(), bond.pasid());
        let found = |device| rig.iommu.bound_mm(device, bond.pasid().unwrap()).unwrap();
        assert!(Arc::ptr_eq(&found(&a), &found(&b)));
    }
}

#[test]
fn an_exit_and_an_unbind_may_meet() {
    for _ in 0..200 {
        let rig = Rig::new(1);
        let device = rig.device(0, 8, PRI);
        let process = Process::new(&rig, ROOT);
        let bond = bind(&rig, &device, &process);
        std::thread::scope(|scope| {
            scope.spawn(|| process.exit().unwrap());
            scope.spawn(move || bond.unbind().unwrap());
        });
        assert!(device.pasid_domain(pasid(1)).is_none());
        assert!(rig.iommu.system_pasids().lock().owner(pasid(1)).is_none());
    }
}
