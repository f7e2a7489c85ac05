//! `portcullis-iommu`, what of `portcullis-hal` takes an address space, and every unit behind its trait.

#![expect(unsafe_code, reason = "calls unsafe operations")]

use crate::embedder::{Kernel, Sink, debug, identity, shared, show};
use alloc::vec::Vec;
use core::hint::black_box;
use core::ops::ControlFlow;
use portcullis_hal::{
    Arc, Attributes, EndpointId, FixedMapping, FrameOrder, Frames, Gather, Iova, IovaRange, Mapped, Mapping,
    PAGE_SIZE, Pasid, PhysAddr, PhysRange, QueuedMaps, TableFormat, TableRoot, TableWrites, Usage,
    unsize_arc,
};
use portcullis_iommu::{
    Abilities, Answered, Device, DeviceDescription, DeviceId, Domain, DomainSpec, Fault, FaultHandler,
    FaultLog, GroupId, GroupIndex, IdPool, Iommu, IovaAllocator, PageAnswer, PageResponse, PagingSpec,
    Permissions, PlatformName, Requests, ReservedKind, ReservedRegion, Stage, StallId, Unit, UnitId,
};

/// The machine's registry.
static IOMMU: Iommu<Kernel> = Iommu::new(Kernel);

#[inline(never)]
pub(crate) fn probe() {
    let id = black_box(UnitId(0));
    show(&id);
    let [a, b] = black_box([0_u32; 2]);
    if let Ok(mut pool) = IdPool::new(a, b) {
        let taken = pool.take();
        pool.give_back(black_box(taken.unwrap_or(b)));
        black_box(pool.taken());
    }
    iovas();
    interrupts(id);
    IOMMU.for_each_unit(|id, unit| {
        black_box((id, unit.info().pasid_bits));
    });
    IOMMU.for_each_device(|device| debug(&device));
    match IOMMU.add_device(description()) {
        Ok(device) => attach(&device),
        Err(error) => show(&error),
    }
}

fn range() -> IovaRange {
    IovaRange::block(black_box(Iova::new(0)), black_box(1))
}

fn mapping() -> FixedMapping {
    // SAFETY: the program never runs.
    unsafe {
        FixedMapping::new(Mapping {
            iova: black_box(Iova::new(0)),
            memory: PhysRange::block(black_box(PhysAddr::new(0)), black_box(1)),
            attributes: black_box(Attributes::READ),
        })
    }
}

fn endpoints() -> Vec<EndpointId> {
    let mut endpoints = Vec::new();
    if endpoints.try_reserve(1).is_ok() {
        endpoints.push(black_box(EndpointId::new(0)));
    }
    black_box(endpoints)
}

fn description() -> DeviceDescription {
    let mut reserved = Vec::new();
    if reserved.try_reserve(1).is_ok() {
        reserved.push(ReservedRegion { range: range(), kind: black_box(ReservedKind::Direct(mapping())) });
    }
    DeviceDescription {
        id: black_box(DeviceId::Platform(PlatformName::new(black_box("name")))),
        unit: black_box(UnitId(0)),
        endpoints: endpoints(),
        group: black_box(GroupId(0)),
        reserved: black_box(reserved),
    }
}

fn iovas() {
    match IovaAllocator::new(range(), black_box(&[range()])) {
        Ok(mut iovas) => {
            match iovas.take(black_box(0), black_box(0)) {
                Ok(range) => drop(black_box(range)),
                Err(error) => show(&error),
            }
            iovas.give_back(range());
        }
        Err(error) => show(&error),
    }
}

struct Handler;

impl FaultHandler for Handler {
    fn fault(&self, fault: &Fault) {
        black_box(fault);
    }
}

#[inline(never)]
fn interrupts(id: UnitId) {
    debug(&IOMMU.handle_interrupt(id));
    if let Some(fault) = IOMMU.next_fault() {
        show(&fault);
        debug(&fault);
        let mut log = FaultLog::default();
        log.push(fault);
        black_box((log.pop(), log.dropped()));
    }
    black_box((IOMMU.faults_dropped(), IOMMU.overflows()));
}

#[inline(never)]
fn attach(device: &Arc<Device>) {
    black_box((device.id(), device.unit(), device.endpoints(), device.group(), device.reserved()));
    show(&device.id());
    black_box((device.domain(), IOMMU.device(device.id())));
    let handler = Arc::try_new(Handler).ok().map(|handler| unsize_arc!(handler => dyn FaultHandler));
    IOMMU.set_fault_handler(device, handler);
    match IOMMU.new_domain(device, &spec()) {
        Ok(domain) => {
            match IOMMU.attach(device, &domain) {
                Ok(transition) => debug(&transition),
                Err(error) => show(&error),
            }
            memory(&domain);
        }
        Err(error) => show(&error),
    }
    crate::sva::probe(&IOMMU, device);
    if let Err(error) = IOMMU.detach(device) {
        show(&error);
    }
}

fn spec() -> DomainSpec {
    match black_box(0_u8) {
        0 => DomainSpec::Blocked,
        1 => DomainSpec::Identity(identity()),
        2 => DomainSpec::Paging(black_box(PagingSpec {
            stage: Some(Stage::Stage1),
            input_bits: Some(48),
            abilities: Abilities::all(),
            ..PagingSpec::default()
        })),
        _ => DomainSpec::Shared(shared(TableRoot {
            format: TableFormat::X86 { levels: 4 },
            root: PhysAddr::new(0),
            input_bits: 48,
            output_bits: 48,
            page_sizes: PAGE_SIZE,
            writes: TableWrites::Cached,
        })),
    }
}

#[inline(never)]
fn memory(domain: &Arc<dyn Domain>) {
    if let Err(error) = mapping().map_into(&**domain) {
        show(&error);
    }
    black_box((mapping().range(), mapping().mapping()));
    let mut queue = QueuedMaps::new();
    // SAFETY: the program never runs.
    match unsafe { domain.map_queued(&[*mapping().mapping()], &mut queue) } {
        Ok(()) => match domain.send_maps(&mut queue) {
            Ok(()) => debug(&queue.is_empty()),
            Err(error) => show(&error),
        },
        Err(error) => show(&error),
    }
    let mut gather = Gather::new();
    leaves(&**domain, &mut gather);
    for _ in 0..black_box(2) {
        let Ok(frames) = Frames::zeroed(&Kernel, FrameOrder::SINGLE) else { return };
        let mapped = match Mapped::map(domain, black_box(Iova::new(0)), frames, Attributes::READ_WRITE) {
            Ok(mapped) => mapped,
            Err(refused) => return show(&refused),
        };
        black_box((mapped.range(), mapped.memory().phys()));
        if black_box(false) {
            match mapped.unmap() {
                Ok(frames) => drop(black_box(frames)),
                Err(quarantined) => {
                    show(&quarantined);
                    black_box(quarantined.memory());
                }
            }
            continue;
        }
        let unsynced = match mapped.unmap_into(&mut gather) {
            Ok(unsynced) => unsynced,
            Err(quarantined) => return show(&quarantined),
        };
        match domain.sync(&mut gather) {
            Ok(proof) => drop(black_box(unsynced.reclaim(&proof).ok())),
            Err(error) => show(&error),
        }
    }
}

/// The sizes of leaves, and their marks.
#[inline(never)]
fn leaves(domain: &dyn Domain, gather: &mut Gather) {
    let range = black_box(domain.aperture());
    for result in [
        domain.split_ends(range, gather),
        domain.split(range, black_box(0x1000), gather),
        domain.join(range, gather),
    ] {
        match result {
            Ok(progress) => debug(&progress),
            Err(error) => show(&error),
        }
    }
    let visited = domain.visit(range, &mut |mapping| {
        debug(&mapping);
        ControlFlow::Continue(())
    });
    if let Err(error) = visited {
        show(&error);
    }
    let harvested = domain.harvest(range, black_box(Usage::all()), gather, &mut |mapping, usage| {
        debug(&(mapping, usage));
    });
    if let Err(error) = harvested {
        show(&error);
    }
}

/// Every operation of a unit and of its domains.
#[inline(never)]
pub(crate) fn unit(unit: Arc<dyn Unit>) {
    debug(unit.info());
    debug(&unit.stats());
    let (endpoints, endpoint) = (endpoints(), black_box(EndpointId::new(0)));
    unit.handle_interrupt(&mut |event| debug(&event));
    let _ = black_box(unit.describe_entry(endpoint, &mut Sink));
    let _ = black_box(unit.describe_registers(&mut Sink));
    match unit.new_domain(&spec()) {
        Ok(domain) => {
            if let Err(error) = unit.attach(&endpoints, &domain) {
                show(&error);
            }
            if let Ok(pasid) = Pasid::new(black_box(1)) {
                black_box(unit.attach_pasid(&endpoints, pasid, &domain).is_ok());
                black_box(unit.detach_pasid(&endpoints, pasid).is_ok());
                let _ = black_box(unit.describe_pasid(endpoint, pasid, &mut Sink));
            }
            self::domain(&domain);
        }
        Err(error) => show(&error),
    }
    let permissions = black_box(Permissions { pasid_bits: 20, requests: Requests::all() });
    black_box(unit.permit(&endpoints, &permissions).is_ok());
    page_requests(&*unit, &endpoints);
    black_box(unit.detach(&endpoints).is_ok());
    match IOMMU.add_unit(unit) {
        Ok(id) => drop(black_box(IOMMU.unit(id))),
        Err(error) => show(&error),
    }
}

/// Every operation on page requests.
fn page_requests(unit: &dyn Unit, endpoints: &[EndpointId]) {
    let to =
        black_box([Answered::Group(GroupIndex::new(1)), Answered::Stall(StallId { place: 1, serial: 0 })]);
    let answers = to.map(|to| PageAnswer {
        endpoint: black_box(EndpointId::new(0)),
        pasid: Pasid::new(black_box(1)).ok(),
        to,
        response: black_box(PageResponse::Success),
    });
    if let Err(error) = unit.answer(&answers) {
        show(&error);
    }
    if let Err(error) = unit.drain_page_requests(endpoints, &mut |event| debug(&event)) {
        show(&error);
    }
}

fn domain(domain: &Arc<dyn Domain>) {
    debug(&domain.info());
    let _ = black_box(domain.describe(&mut Sink));
    let range = domain.aperture();
    let list = black_box([*mapping().mapping(); 2]);
    // SAFETY: the program never runs.
    if let Err(error) = unsafe { domain.map(&list) } {
        show(&error);
    }
    let mut gather = Gather::new();
    // SAFETY: the program never runs.
    if let Err(error) = unsafe { domain.unmap(range, &mut gather) } {
        show(&error);
    }
    match domain.sync(&mut gather) {
        Ok(proof) => debug(&proof),
        Err(error) => show(&error),
    }
    black_box((domain.page_sizes(), domain.iova_to_phys(range.start())));
}

/// What firmware set aside for a device.
pub(crate) fn reserved() -> [FixedMapping; 1] {
    [mapping()]
}

/// A device's endpoints.
pub(crate) fn some_endpoints() -> Vec<EndpointId> {
    endpoints()
}
