//! The registry's rules: groups, reserved regions, owners of faults.

#![expect(unsafe_code, reason = "an address space for the tests")]

use core::fmt;
use portcullis_hal::host::HostHal;
use portcullis_hal::{
    Arc, Attributes, EndpointId, FixedMapping, Gather, IoSpace, Iova, IovaRange, MapError, Mapping,
    PAGE_SIZE, PhysAddr, PhysRange, RequesterId, SyncError, SyncProof, Translated, UnmapError, unsize_arc,
};
use portcullis_iommu::*;
use std::sync::Mutex;

struct FakeDomain {
    kind: DomainKind,
    mapped: Mutex<Vec<Mapping>>,
}

// SAFETY: there is no device behind this space.
unsafe impl IoSpace for FakeDomain {
    fn aperture(&self) -> IovaRange {
        IovaRange::new(Iova::new(0), 1 << 39).unwrap()
    }

    fn page_sizes(&self) -> u64 {
        PAGE_SIZE
    }

    unsafe fn map(&self, list: &[Mapping]) -> Result<(), MapError> {
        let mut mapped = self.mapped.lock().unwrap();
        if let Some(taken) = list.iter().find(|new| mapped.iter().any(|old| old.iova == new.iova)) {
            return Err(MapError::Overlap { iova: taken.iova });
        }
        mapped.extend(list);
        Ok(())
    }

    unsafe fn unmap(&self, _range: IovaRange, _gather: &mut Gather) -> Result<u64, UnmapError> {
        Ok(0)
    }

    fn sync(&self, _gather: &mut Gather) -> Result<SyncProof, SyncError> {
        Err(SyncError::Faulted)
    }

    fn iova_to_phys(&self, iova: Iova) -> Option<Translated> {
        let mapped = self.mapped.lock().unwrap();
        let found = mapped.iter().find(|mapping| {
            let offset = iova.get().checked_sub(mapping.iova.get());
            offset.is_some_and(|offset| offset < mapping.memory.len())
        })?;
        let phys = found.memory.start().checked_add(iova.get() - found.iova.get())?;
        Some(Translated { phys, attributes: found.attributes, size: PAGE_SIZE })
    }
}

impl Domain for FakeDomain {
    fn info(&self) -> DomainInfo {
        DomainInfo { kind: self.kind, stage: None, root: None }
    }

    fn describe(&self, _out: &mut dyn fmt::Write) -> fmt::Result {
        Ok(())
    }
}

fn domain(kind: DomainKind) -> Arc<dyn Domain> {
    let domain = Arc::try_new(FakeDomain { kind, mapped: Mutex::default() }).unwrap();
    unsize_arc!(domain => dyn Domain)
}

/// An endpoint of which the unit knows a reserved region, and one that it refuses to tell about.
const KNOWN: EndpointId = EndpointId::new(0x70);
const UNKNOWN: EndpointId = EndpointId::new(0x71);

fn own_region() -> ReservedRegion {
    let range = IovaRange::new(Iova::new(0xfee0_0000), 0x10_0000).unwrap();
    ReservedRegion { range, kind: ReservedKind::Excluded }
}

struct FakeUnit {
    info: UnitInfo,
    events: Mutex<Vec<UnitEvent>>,
    answer: Mutex<Result<Transition, AttachError>>,
}

impl Unit for FakeUnit {
    fn info(&self) -> &UnitInfo {
        &self.info
    }

    fn new_domain(&self, _spec: &DomainSpec) -> Result<Arc<dyn Domain>, DomainError> {
        Ok(domain(DomainKind::Paging))
    }

    fn attach(
        &self,
        _endpoints: &[EndpointId],
        _domain: &Arc<dyn Domain>,
    ) -> Result<Transition, AttachError> {
        *self.answer.lock().unwrap()
    }

    fn detach(&self, _endpoints: &[EndpointId]) -> Result<(), AttachError> {
        self.answer.lock().unwrap().map(drop)
    }

    fn reserved(&self, endpoint: EndpointId) -> Result<Vec<ReservedRegion>, AttachError> {
        match endpoint {
            KNOWN => Ok(vec![own_region()]),
            UNKNOWN => Err(AttachError::Refused),
            _ => Ok(vec![]),
        }
    }

    fn handle_interrupt(&self, report: &mut dyn FnMut(UnitEvent)) {
        let mut events = self.events.lock().unwrap();
        while !events.is_empty() {
            let event = events.remove(0);
            report(event);
            if event == UnitEvent::Unread {
                break;
            }
        }
    }

    fn stats(&self) -> UnitStats {
        UnitStats::default()
    }

    fn describe_entry(&self, _endpoint: EndpointId, _out: &mut dyn fmt::Write) -> fmt::Result {
        Ok(())
    }

    fn describe_registers(&self, _out: &mut dyn fmt::Write) -> fmt::Result {
        Ok(())
    }
}

fn unit() -> FakeUnit {
    let info = UnitInfo {
        backend: Backend::VirtioIommu,
        stages: Stages::MANAGED,
        page_sizes: PAGE_SIZE,
        input_bits: 39,
        output_bits: 48,
        pasid_bits: 0,
        fault_models: FaultModels::empty(),
        stall_places: 0,
        abilities: Abilities::empty(),
        entry_coherency: WalkCoherency::Snooped,
        table_coherency: WalkCoherency::Snooped,
        identity: false,
        nesting: false,
    };
    FakeUnit { info, events: Mutex::default(), answer: Mutex::new(Ok(Transition::Hitless)) }
}

struct Rig {
    iommu: Iommu<HostHal>,
    unit: Arc<FakeUnit>,
}

impl Rig {
    fn new() -> Self {
        let iommu = Iommu::new(HostHal::new());
        let unit = Arc::try_new(unit()).unwrap();
        iommu.add_unit(unsize_arc!(unit.clone() => dyn Unit)).unwrap();
        Self { iommu, unit }
    }

    fn device(
        &self,
        bdf: u16,
        group: u32,
        reserved: Vec<ReservedRegion>,
    ) -> Result<Arc<Device>, AddDeviceError> {
        self.iommu.add_device(DeviceDescription {
            id: DeviceId::Pci(RequesterId::from_bdf(0, bdf)),
            unit: UnitId(0),
            endpoints: vec![EndpointId::new(u32::from(bdf))],
            group: GroupId(group),
            reserved,
        })
    }
}

#[test]
fn what_the_unit_reserves_is_added_once() {
    let rig = Rig::new();
    let kernels = ReservedRegion { range: IovaRange::new(Iova::new(0), PAGE_SIZE).unwrap(), ..own_region() };
    let device = rig.device(0x70, 1, vec![kernels, own_region()]).unwrap();
    assert_eq!(device.reserved(), [kernels, own_region()]);
    assert_eq!(rig.device(0x71, 1, vec![]).unwrap_err(), AddDeviceError::Unit(AttachError::Refused));
    assert!(rig.iommu.device(DeviceId::Pci(RequesterId::from_bdf(0, 0x71))).is_none());
}

#[test]
fn what_only_the_unit_reserves_is_there() {
    let rig = Rig::new();
    assert_eq!(rig.device(0x70, 1, vec![]).unwrap().reserved(), [own_region()]);
    assert_eq!(rig.device(0x72, 1, vec![]).unwrap().reserved(), []);
}

#[test]
fn a_group_shares_one_domain() {
    let rig = Rig::new();
    let (a, b) = (rig.device(8, 1, vec![]).unwrap(), rig.device(9, 1, vec![]).unwrap());
    let (one, other) = (domain(DomainKind::Paging), domain(DomainKind::Paging));
    rig.iommu.attach(&a, &one).unwrap();
    assert_eq!(rig.iommu.attach(&b, &other), Err(AttachError::GroupInUse));
    assert!(b.domain().is_none());
    rig.iommu.attach(&b, &one).unwrap();
    rig.iommu.detach(&a).unwrap();
    rig.iommu.detach(&b).unwrap();
    rig.iommu.attach(&b, &other).unwrap();
}

#[test]
fn a_device_and_an_endpoint_are_registered_once_and_behind_a_known_unit() {
    let rig = Rig::new();
    rig.device(8, 1, vec![]).unwrap();
    assert_eq!(rig.device(8, 2, vec![]).unwrap_err(), AddDeviceError::Duplicate);
    let stranger = DeviceDescription {
        id: DeviceId::Platform(PlatformName::new("dma")),
        unit: UnitId(1),
        endpoints: vec![EndpointId::new(1)],
        group: GroupId(7),
        reserved: vec![],
    };
    assert_eq!(rig.iommu.add_device(stranger).unwrap_err(), AddDeviceError::UnknownUnit(UnitId(1)));
    let alias = DeviceDescription {
        id: DeviceId::Platform(PlatformName::new("dma")),
        unit: UnitId(0),
        endpoints: vec![EndpointId::new(1), EndpointId::new(8)],
        group: GroupId(7),
        reserved: vec![],
    };
    assert_eq!(rig.iommu.add_device(alias).unwrap_err(), AddDeviceError::Duplicate);
}

/// Memory that firmware gave a device.
fn direct() -> (Mapping, Vec<ReservedRegion>) {
    let memory = PhysRange::new(PhysAddr::new(0x8000_0000), PAGE_SIZE).unwrap();
    let mapping = Mapping { iova: Iova::new(0x8000_0000), memory, attributes: Attributes::READ_WRITE };
    // SAFETY: no device is behind the spaces here.
    let fixed = unsafe { FixedMapping::new(mapping) };
    (mapping, vec![ReservedRegion { range: fixed.range(), kind: ReservedKind::Direct(fixed) }])
}

#[test]
fn reserved_regions_are_mapped_before_an_attachment_and_only_once() {
    let rig = Rig::new();
    let (mapping, reserved) = direct();
    let device = rig.device(8, 1, reserved).unwrap();
    let paging = domain(DomainKind::Paging);
    rig.iommu.attach(&device, &paging).unwrap();
    rig.iommu.attach(&device, &paging).unwrap();
    assert_eq!(paging.iova_to_phys(mapping.iova).unwrap().phys, mapping.memory.start());
    let blocked = domain(DomainKind::Blocked);
    rig.iommu.attach(&device, &blocked).unwrap();
    assert!(blocked.iova_to_phys(mapping.iova).is_none());

    let taken = domain(DomainKind::Paging);
    let elsewhere = PhysRange::new(PhysAddr::new(0x9000_0000), PAGE_SIZE).unwrap();
    // SAFETY: no device is behind this space.
    unsafe { taken.map(&[Mapping { memory: elsewhere, ..mapping }]) }.unwrap();
    let overlap = MapError::Overlap { iova: mapping.iova };
    assert_eq!(rig.iommu.attach(&device, &taken), Err(AttachError::Reserved(overlap)));
    assert!(Arc::ptr_eq(&device.domain().unwrap(), &blocked));
}

#[test]
fn a_device_that_needs_memory_of_the_firmware_is_not_attached_to_foreign_tables() {
    let rig = Rig::new();
    let (_, reserved) = direct();
    let device = rig.device(8, 1, reserved).unwrap();
    let refused = rig.iommu.attach(&device, &domain(DomainKind::Shared));
    assert_eq!(refused, Err(AttachError::Reserved(MapError::NotPaging)));
    let free = rig.device(9, 2, vec![]).unwrap();
    rig.iommu.attach(&free, &domain(DomainKind::Shared)).unwrap();
}

#[test]
fn a_fixed_mapping_fills_the_gaps_around_what_is_mapped_already() {
    let paging = domain(DomainKind::Paging);
    let page = |n: u64| {
        let memory = PhysRange::new(PhysAddr::new(0x8000_0000 + n * PAGE_SIZE), PAGE_SIZE).unwrap();
        Mapping { iova: Iova::new(0x1000 + n * PAGE_SIZE), memory, attributes: Attributes::READ_WRITE }
    };
    // SAFETY: no device is behind this space.
    unsafe { paging.map(&[page(1)]) }.unwrap();
    let memory = PhysRange::new(PhysAddr::new(0x8000_0000), 4 * PAGE_SIZE).unwrap();
    // SAFETY: no device is behind this space.
    let fixed = unsafe { FixedMapping::new(Mapping { memory, ..page(0) }) };
    fixed.map_into(&*paging).unwrap();
    fixed.map_into(&*paging).unwrap();
    for offset in (0..4 * PAGE_SIZE).step_by(512) {
        let found = paging.iova_to_phys(Iova::new(0x1000 + offset)).unwrap();
        assert_eq!(found.phys, PhysAddr::new(0x8000_0000 + offset));
    }
    // SAFETY: no device is behind this space.
    let kind = unsafe { FixedMapping::new(Mapping { attributes: Attributes::DOORBELL, ..page(1) }) };
    assert_eq!(kind.map_into(&*paging), Err(MapError::Overlap { iova: Iova::new(0x2000) }));
}

#[test]
fn a_refused_attachment_leaves_the_old_one_and_a_timed_out_one_none() {
    let rig = Rig::new();
    let device = rig.device(8, 1, vec![]).unwrap();
    let (one, other) = (domain(DomainKind::Paging), domain(DomainKind::Paging));
    rig.iommu.attach(&device, &one).unwrap();
    *rig.unit.answer.lock().unwrap() = Err(AttachError::NoFreeId);
    assert_eq!(rig.iommu.attach(&device, &other), Err(AttachError::NoFreeId));
    assert!(Arc::ptr_eq(&device.domain().unwrap(), &one));
    let late = portcullis_hal::wait::Timeout::new("CONS", 1, 1, 0);
    *rig.unit.answer.lock().unwrap() = Err(AttachError::Timeout(late));
    assert_eq!(rig.iommu.attach(&device, &other), Err(AttachError::Timeout(late)));
    assert!(device.domain().is_none());
}

#[test]
fn faults_find_their_owner_and_the_log() {
    struct Handler(Mutex<Vec<Fault>>);
    impl FaultHandler for Handler {
        fn fault(&self, fault: &Fault) {
            self.0.lock().unwrap().push(*fault);
        }
    }
    let rig = Rig::new();
    let device = rig.device(8, 1, vec![]).unwrap();
    let handler = Arc::try_new(Handler(Mutex::default())).unwrap();
    rig.iommu.set_fault_handler(&device, Some(unsize_arc!(handler.clone() => dyn FaultHandler)));
    let events = [fault(8), UnitEvent::Overflow, fault(9)];
    rig.unit.events.lock().unwrap().extend(events);
    assert_eq!(rig.iommu.handle_interrupt(UnitId(0)), PageFaultWork::Done);
    let told = handler.0.lock().unwrap().clone();
    assert_eq!(told.iter().map(|fault| fault.device).collect::<Vec<_>>(), [Some(device.id())]);
    let logged: Vec<_> = core::iter::from_fn(|| rig.iommu.next_fault()).map(|fault| fault.device).collect();
    assert_eq!(logged, [Some(device.id()), None]);
    assert_eq!(rig.iommu.overflows(), 1);
}

#[test]
fn faults_beyond_what_an_interrupt_may_read_are_reported_without_another_one() {
    let rig = Rig::new();
    let events = [fault(8), UnitEvent::Unread, fault(9), UnitEvent::Unread, fault(10)];
    rig.unit.events.lock().unwrap().extend(events);
    assert_eq!(rig.iommu.handle_interrupt(UnitId(0)), PageFaultWork::More);
    assert_eq!(core::iter::from_fn(|| rig.iommu.next_fault()).count(), 1);
    assert!((0..5).any(|_| rig.iommu.handle_page_faults() == PageFaultWork::Done));
    assert_eq!(core::iter::from_fn(|| rig.iommu.next_fault()).count(), 2);
    assert_eq!(rig.iommu.handle_interrupt(UnitId(0)), PageFaultWork::Done);
}

/// A DMA of an endpoint that is attached to nothing.
fn fault(endpoint: u32) -> UnitEvent {
    UnitEvent::Fault(FaultRecord {
        endpoint: EndpointId::new(endpoint),
        pasid: None,
        address: None,
        access: None,
        stage: None,
        reason: FaultReason::Unattached,
        code: 2,
        name: "C_BAD_STREAMID",
        raw: [0; 4],
    })
}
