//! The order in which unit and device learn what the device may do, and PASIDs in the registry.

mod rig;

use core::fmt;
use portcullis_hal::host::HostHal;
use portcullis_hal::{Arc, EndpointId, PAGE_SIZE, Pasid, RequesterId, SyncError, unsize_arc};
use portcullis_iommu::*;
use rig::{Log, nowhere, pasid};
use std::sync::Mutex;

/// Notes what it is told; answers the call named in `fails` with an error.
struct Recorder {
    info: UnitInfo,
    log: Log,
    fails: Mutex<&'static str>,
}

impl Recorder {
    fn note(&self, call: &str) -> Result<(), ()> {
        self.log.lock().unwrap().push(format!("unit: {call}"));
        if *self.fails.lock().unwrap() == call { Err(()) } else { Ok(()) }
    }
}

impl Unit for Recorder {
    fn info(&self) -> &UnitInfo {
        &self.info
    }
    fn new_domain(&self, _: &DomainSpec) -> Result<Arc<dyn Domain>, DomainError> {
        Ok(nowhere())
    }
    fn attach(&self, _: &[EndpointId], _: &Arc<dyn Domain>) -> Result<Transition, AttachError> {
        Ok(Transition::Hitless)
    }
    fn detach(&self, _: &[EndpointId]) -> Result<(), AttachError> {
        Ok(())
    }
    fn permit(&self, _: &[EndpointId], permissions: &Permissions) -> Result<Transition, AttachError> {
        let call = format!("permit {} {}", permissions.pasid_bits, permissions.requests.bits());
        self.note(&call).map_or(Err(AttachError::NoFreeId), |()| Ok(Transition::Hitless))
    }
    fn attach_pasid(
        &self,
        _: &[EndpointId],
        pasid: Pasid,
        _: &Arc<dyn Domain>,
    ) -> Result<Transition, AttachError> {
        self.note(&format!("attach {pasid}")).map_or(Err(AttachError::NoFreeId), |()| Ok(Transition::Hitless))
    }
    fn detach_pasid(&self, _: &[EndpointId], pasid: Pasid) -> Result<(), AttachError> {
        self.note(&format!("detach {pasid}")).map_err(|()| AttachError::Lost)
    }
    fn handle_interrupt(&self, _: &mut dyn FnMut(UnitEvent)) {}
    fn drain_page_requests(&self, _: &[EndpointId], _: &mut dyn FnMut(UnitEvent)) -> Result<(), SyncError> {
        self.note("drain").map_err(|()| SyncError::Faulted)
    }
    fn stats(&self) -> UnitStats {
        UnitStats::default()
    }
    fn describe_entry(&self, _: EndpointId, _: &mut dyn fmt::Write) -> fmt::Result {
        Ok(())
    }
    fn describe_registers(&self, _: &mut dyn fmt::Write) -> fmt::Result {
        Ok(())
    }
}

struct Switches {
    log: Log,
    offers: Permissions,
    fails: &'static str,
}

impl Switches {
    fn note(&self, call: &'static str) -> Result<(), ControlError> {
        self.log.lock().unwrap().push(call.into());
        if self.fails == call { Err(ControlError::Refused) } else { Ok(()) }
    }
}

impl DeviceControl for Switches {
    fn offers(&self) -> Permissions {
        self.offers
    }
    fn enable_pasids(&self) -> Result<(), ControlError> {
        self.note("pasids on")
    }
    fn disable_pasids(&self) -> Result<(), ControlError> {
        self.note("pasids off")
    }
    fn enable_page_requests(&self) -> Result<(), ControlError> {
        self.note("pages on")
    }
    fn stop_page_requests(&self) {
        self.log.lock().unwrap().push("pages off".into());
    }
    fn await_page_answers(&self) -> Result<(), ControlError> {
        self.note("pages answered")
    }
    fn enable_translation_requests(&self) -> Result<(), ControlError> {
        self.note("ats on")
    }
    fn disable_translation_requests(&self) -> Result<(), ControlError> {
        self.note("ats off")
    }
}

const ALL: Permissions = Permissions { pasid_bits: 8, requests: Requests::TRANSLATION.union(Requests::PAGE) };

struct Rig {
    iommu: Iommu<HostHal>,
    unit: Arc<Recorder>,
    device: Arc<Device>,
    log: Log,
}

impl Rig {
    fn new() -> Self {
        let log = Log::default();
        let info = UnitInfo {
            backend: Backend::SmmuV3,
            stages: Stages::STAGE_1,
            page_sizes: PAGE_SIZE,
            input_bits: 39,
            output_bits: 48,
            pasid_bits: 20,
            fault_models: FaultModels::empty(),
            stall_places: 0,
            abilities: Abilities::empty(),
            entry_coherency: WalkCoherency::Snooped,
            table_coherency: WalkCoherency::Snooped,
            identity: false,
            nesting: false,
        };
        let unit = Arc::try_new(Recorder { info, log: log.clone(), fails: Mutex::new("") }).unwrap();
        let iommu = Iommu::new(HostHal::new());
        iommu.add_unit(unsize_arc!(unit.clone() => dyn Unit)).unwrap();
        let device = add(&iommu, 8, 1);
        Self { iommu, unit, device, log }
    }

    fn switches(&self, fails: &'static str) -> Switches {
        Switches { log: self.log.clone(), offers: ALL, fails }
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }
}

fn add(iommu: &Iommu<HostHal>, bdf: u16, group: u32) -> Arc<Device> {
    let description = DeviceDescription {
        id: DeviceId::Pci(RequesterId::from_bdf(0, bdf)),
        unit: UnitId(0),
        endpoints: vec![EndpointId::new(u32::from(bdf))],
        group: GroupId(group),
        reserved: vec![],
    };
    iommu.add_device(description).unwrap()
}

#[test]
fn the_unit_permits_before_the_device_starts_and_withdraws_after_it_stopped() {
    let rig = Rig::new();
    let switches = rig.switches("");
    rig.iommu.enable(&rig.device, &switches, &ALL).unwrap();
    assert_eq!(rig.device.permissions(), ALL);
    assert_eq!(rig.take(), ["unit: permit 8 3", "pasids on", "pages on", "ats on"]);
    assert_eq!(rig.iommu.enable(&rig.device, &switches, &ALL), Err(EnableError::Enabled));
    rig.iommu.disable(&rig.device, &switches).unwrap();
    assert_eq!(rig.device.permissions(), Permissions::NONE);
    // PCIe 10.4.2 and 10.5.2: no new requests, then answers to those that the unit has, then the rest.
    let off = ["pages off", "unit: drain", "pages answered", "ats off", "unit: permit 0 0", "pasids off"];
    assert_eq!(rig.take(), off);
}

#[test]
fn only_what_was_wanted_is_switched() {
    let rig = Rig::new();
    let wanted = Permissions { pasid_bits: 0, requests: Requests::TRANSLATION };
    rig.iommu.enable(&rig.device, &rig.switches(""), &wanted).unwrap();
    rig.iommu.disable(&rig.device, &rig.switches("")).unwrap();
    assert_eq!(rig.take(), ["unit: permit 0 1", "ats on", "ats off", "unit: permit 0 0"]);
}

#[test]
fn a_step_that_fails_undoes_the_ones_before() {
    let rig = Rig::new();
    let failed = |fails| {
        let error = rig.iommu.enable(&rig.device, &rig.switches(fails), &ALL).unwrap_err();
        assert_eq!(error, EnableError::Control(ControlError::Refused));
        assert_eq!(rig.device.permissions(), Permissions::NONE);
        rig.take().join(", ")
    };
    assert_eq!(failed("pasids on"), "unit: permit 8 3, pasids on, unit: permit 0 0");
    assert_eq!(failed("pages on"), "unit: permit 8 3, pasids on, pages on, pasids off, unit: permit 0 0");
    let all = "unit: permit 8 3, pasids on, pages on, ats on, pages off, pages answered, pasids off, unit: permit 0 0";
    assert_eq!(failed("ats on"), all);

    *rig.unit.fails.lock().unwrap() = "permit 8 3";
    let refused = rig.iommu.enable(&rig.device, &rig.switches(""), &ALL);
    assert_eq!(refused, Err(EnableError::Unit(AttachError::NoFreeId)));
    assert_eq!(rig.take(), ["unit: permit 8 3"]);
}

#[test]
fn page_requests_without_answers_keep_everything_on() {
    let rig = Rig::new();
    rig.iommu.enable(&rig.device, &rig.switches(""), &ALL).unwrap();
    rig.take();
    let error = rig.iommu.disable(&rig.device, &rig.switches("pages answered")).unwrap_err();
    assert_eq!(error, EnableError::Control(ControlError::Refused));
    assert_eq!(
        (rig.take(), rig.device.permissions()),
        (vec!["pages off".into(), "unit: drain".into(), "pages answered".into()], ALL)
    );
    // A unit that does not report what it has left keeps everything on, too.
    *rig.unit.fails.lock().unwrap() = "drain";
    let failed = rig.iommu.disable(&rig.device, &rig.switches(""));
    assert_eq!(failed, Err(EnableError::Unit(SyncError::Faulted.into())));
    assert_eq!((rig.take().join(", "), rig.device.permissions()), ("pages off, unit: drain".into(), ALL));
    *rig.unit.fails.lock().unwrap() = "";
    rig.iommu.disable(&rig.device, &rig.switches("")).unwrap();
}

#[test]
fn stalls_are_drained_before_and_after_the_unit_forbids_them() {
    let rig = Rig::new();
    let stall = Permissions { pasid_bits: 8, requests: Requests::STALL };
    let switches = Switches { offers: stall, ..rig.switches("") };
    rig.iommu.enable(&rig.device, &switches, &stall).unwrap();
    rig.take();
    rig.iommu.disable(&rig.device, &switches).unwrap();
    assert_eq!(rig.take(), ["unit: drain", "unit: permit 0 0", "unit: drain", "pasids off"]);
}

#[test]
fn what_the_device_lacks_is_named_and_nothing_is_touched() {
    let rig = Rig::new();
    let poor =
        Switches { offers: Permissions { pasid_bits: 4, requests: Requests::PAGE }, ..rig.switches("") };
    let error = rig.iommu.enable(&rig.device, &poor, &ALL).unwrap_err();
    assert_eq!(error, EnableError::Device { missing: Missing::PASID | Missing::ATS });
    assert!(rig.take().is_empty());
}

#[test]
fn a_pasid_is_attached_if_permitted_and_keeps_its_permission() {
    let rig = Rig::new();
    let (one, other) = (nowhere(), nowhere());
    let refused = rig.iommu.attach_pasid(&rig.device, pasid(5), &one);
    assert_eq!(refused, Err(AttachError::UnknownPasid(pasid(5))));
    rig.iommu.enable(&rig.device, &rig.switches(""), &ALL).unwrap();
    let refused = rig.iommu.attach_pasid(&rig.device, pasid(256), &one);
    assert_eq!(refused, Err(AttachError::UnknownPasid(pasid(256))));

    rig.iommu.attach_pasid(&rig.device, pasid(255), &one).unwrap();
    rig.iommu.attach_pasid(&rig.device, pasid(5), &one).unwrap();
    rig.iommu.attach_pasid(&rig.device, pasid(5), &other).unwrap();
    assert!(rig.device.pasid_domain(pasid(5)).is_some_and(|domain| Arc::ptr_eq(&domain, &other)));
    assert!(rig.device.pasid_domain(pasid(255)).is_some_and(|domain| Arc::ptr_eq(&domain, &one)));
    assert!(rig.device.pasid_domain(pasid(6)).is_none() && rig.device.domain().is_none());

    let in_use = rig.iommu.disable(&rig.device, &rig.switches(""));
    assert_eq!(in_use, Err(AttachError::PasidInUse(pasid(5)).into()));
    rig.iommu.detach_pasid(&rig.device, pasid(5)).unwrap();
    assert!(rig.device.pasid_domain(pasid(5)).is_none());
    // Without its domain goes the rest.
    rig.iommu.detach(&rig.device).unwrap();
    assert!(rig.device.pasid_domain(pasid(255)).is_none());
    rig.iommu.disable(&rig.device, &rig.switches("")).unwrap();
}

#[test]
fn a_pasid_is_released_when_no_device_can_use_it_any_more() {
    let rig = Rig::new();
    let mut space = PasidSpace::new(pasid(255));
    let set = space.add_set(PasidSetSpec { min: pasid(1), max: pasid(255), quota: 2 }).unwrap();
    let (one, other) = (space.allocate(set).unwrap(), space.allocate(set).unwrap());
    rig.iommu.enable(&rig.device, &rig.switches(""), &ALL).unwrap();
    rig.iommu.attach_pasid(&rig.device, one, &nowhere()).unwrap();
    rig.iommu.attach_pasid(&rig.device, other, &nowhere()).unwrap();
    assert_eq!(rig.iommu.release_pasid(&mut space, one), Err(PasidError::Attached(one)));
    rig.iommu.detach_pasid(&rig.device, one).unwrap();
    rig.iommu.release_pasid(&mut space, one).unwrap();
    // The unit does not confirm this one, whatever is tried afterwards.
    *rig.unit.fails.lock().unwrap() = "detach 0x2";
    assert_eq!(rig.iommu.detach_pasid(&rig.device, other), Err(AttachError::Lost));
    assert!(rig.device.pasid_domain(other).is_none());
    assert_eq!(rig.iommu.release_pasid(&mut space, other), Err(PasidError::Attached(other)));
}

#[test]
fn a_failed_attachment_of_a_pasid_leaves_the_old_one() {
    let rig = Rig::new();
    rig.iommu.enable(&rig.device, &rig.switches(""), &ALL).unwrap();
    let one = nowhere();
    rig.iommu.attach_pasid(&rig.device, pasid(5), &one).unwrap();
    *rig.unit.fails.lock().unwrap() = "attach 0x5";
    assert_eq!(rig.iommu.attach_pasid(&rig.device, pasid(5), &nowhere()), Err(AttachError::NoFreeId));
    assert!(rig.device.pasid_domain(pasid(5)).is_some_and(|domain| Arc::ptr_eq(&domain, &one)));
}

#[test]
fn a_device_that_shares_its_group_has_no_pasids() {
    let rig = Rig::new();
    rig.iommu.enable(&rig.device, &rig.switches(""), &ALL).unwrap();
    add(&rig.iommu, 9, 1);
    assert_eq!(rig.iommu.attach_pasid(&rig.device, pasid(5), &nowhere()), Err(AttachError::GroupInUse));
}

#[test]
fn what_a_device_demands_of_answers_is_told_to_the_unit() {
    let rig = Rig::new();
    let all = ALL.requests | Requests::PASID_IN_ANSWERS;
    let demanding = Switches { offers: Permissions { pasid_bits: 8, requests: all }, ..rig.switches("") };
    rig.iommu.enable(&rig.device, &demanding, &ALL).unwrap();
    assert_eq!(rig.device.permissions().requests, all);
    assert_eq!(rig.take().first().map(String::as_str), Some("unit: permit 8 7"));
    rig.iommu.disable(&rig.device, &demanding).unwrap();
    let quiet = Permissions { pasid_bits: 8, requests: Requests::TRANSLATION };
    rig.iommu.enable(&rig.device, &demanding, &quiet).unwrap();
    assert_eq!(rig.device.permissions(), quiet);
}
