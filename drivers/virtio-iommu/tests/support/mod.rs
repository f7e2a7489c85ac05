//! A virtio-iommu made of host memory, which knows the rings and the requests from the specification alone, and units
//! that drive it.
//!
//! | file | what |
//! |---|---|
//! | `fake` | the device: registers, configuration, and how it is made to misbehave |
//! | `rings` | its side of the queues |
//! | `rules` | what requests do, and where DMA lands |
//! | `memory` | memory that can run out |

#![allow(dead_code, unused_imports, reason = "each test file uses a part of it")]
#![allow(unsafe_code, reason = "maps what is not memory")]

mod fake;
pub(crate) mod memory;
mod rings;
mod rules;

pub(crate) use fake::{ALL_FEATURES, Answer, Fake, PROBE, PROBE_SIZE};
pub(crate) use rules::{INVAL, NOENT, NOMEM, OK, RANGE, Req, UNSUPP};

use memory::TestHal;
use portcullis_hal::{
    Arc, Attributes, EndpointId, Gather, Iova, IovaRange, Mapping, PhysAddr, PhysRange, QueuedMaps,
    SyncError, UnmapError, unsize_arc,
};
use portcullis_iommu::{
    Device, DeviceDescription, DeviceId, Domain, DomainSpec, GroupId, Iommu, PagingSpec, PlatformName, Unit,
    UnitEvent, UnitId,
};
use portcullis_virtio_iommu::{Options, Setup, VirtioIommu};

pub(crate) type FakeUnit = VirtioIommu<TestHal, Fake>;

/// What the device sees of a start-up.
pub(crate) const START_UP: [&str; 8] =
    ["status 0x0", "status 0x1", "status 0x3", "status 0xb", "bypass 0", "queue 0", "queue 1", "status 0xf"];

pub(crate) fn options() -> Options {
    Options { timeout_ns: 20_000_000, ..Options::default() }
}

pub(crate) fn up(fake: &Fake) -> FakeUnit {
    Setup::new(fake.hal.clone(), fake.clone(), options()).unwrap().enable().unwrap()
}

pub(crate) fn paging(unit: &FakeUnit) -> Arc<dyn Domain> {
    unit.new_domain(&DomainSpec::Paging(PagingSpec::default())).unwrap()
}

/// A unit that is up, and a domain that endpoint 1 is attached to, so that all goes to the device.
pub(crate) fn attached() -> (Fake, FakeUnit, Arc<dyn Domain>) {
    let fake = Fake::new();
    let unit = up(&fake);
    let domain = paging(&unit);
    unit.attach(&[endpoint(1)], &domain).unwrap();
    fake.take_requests();
    (fake, unit, domain)
}

/// A registry with the unit, and endpoint 1 as a device.
pub(crate) fn registered(fake: &Fake) -> (Iommu<TestHal>, UnitId, Arc<Device>) {
    let iommu = Iommu::new(fake.hal.clone());
    let unit = Arc::try_new(up(fake)).unwrap();
    let unit = iommu.add_unit(unsize_arc!(unit => dyn Unit)).unwrap();
    let description = DeviceDescription {
        id: DeviceId::Platform(PlatformName::new("dma@0")),
        unit,
        endpoints: vec![endpoint(1)],
        group: GroupId(0),
        reserved: vec![],
    };
    let device = iommu.add_device(description).unwrap();
    (iommu, unit, device)
}

pub(crate) fn piece(iova: u64, phys: u64, len: u64) -> Mapping {
    Mapping {
        iova: Iova::new(iova),
        memory: PhysRange::new(PhysAddr::new(phys), len).unwrap(),
        attributes: Attributes::READ_WRITE,
    }
}

pub(crate) fn map(domain: &Arc<dyn Domain>, list: &[Mapping]) -> Result<(), portcullis_hal::MapError> {
    // SAFETY: the addresses name no memory; the fake only compares numbers.
    unsafe { domain.map(list) }
}

/// Maps without waiting.
pub(crate) fn map_queued(
    domain: &Arc<dyn Domain>,
    list: &[Mapping],
    queue: &mut QueuedMaps,
) -> Result<(), portcullis_hal::MapError> {
    // SAFETY: the addresses name no memory; the fake only compares numbers.
    unsafe { domain.map_queued(list, queue) }
}

pub(crate) fn range(iova: u64, len: u64) -> IovaRange {
    IovaRange::new(Iova::new(iova), len).unwrap()
}

/// Unmaps and syncs.
pub(crate) fn unmap(
    domain: &Arc<dyn Domain>,
    iova: u64,
    len: u64,
) -> Result<Result<u64, SyncError>, UnmapError> {
    let mut gather = Gather::new();
    let bytes = portcullis_hal::host::unmap(&**domain, range(iova, len), &mut gather)?;
    Ok(domain.sync(&mut gather).map(|_proof| bytes))
}

pub(crate) fn endpoint(id: u32) -> EndpointId {
    EndpointId::new(id)
}

/// What the unit reports.
pub(crate) fn events(unit: &FakeUnit) -> Vec<UnitEvent> {
    let mut events = Vec::new();
    unit.handle_interrupt(&mut |event| events.push(event));
    events
}
