//! Each operation with each of its allocations failing: nothing has changed, and nothing leaks.
mod support;

use portcullis_hal::{Arc, Mapping};
use portcullis_iommu::{Domain, DomainSpec, PagingSpec, Unit};
use portcullis_virtio_iommu::Setup;
use support::memory::{exempt, failing, heap_left_by, unfailing};
use support::*;

/// A unit with a domain that has mappings, and a blocked one.
struct World {
    fake: Fake,
    unit: FakeUnit,
    domain: Arc<dyn Domain>,
    blocked: Arc<dyn Domain>,
}

impl World {
    fn new() -> Self {
        let fake = exempt(Fake::new);
        // RESV_MEM: the first page.
        let region = [&[1, 0, 20, 0, 0, 0, 0, 0][..], &[0; 8], &0xfff_u64.to_le_bytes()];
        exempt(|| fake.state().properties = region.concat());
        let unit = up(&fake);
        let domain = paging(&unit);
        map(&domain, &[piece(0x1000, 0x8000_0000, 0x1000)]).unwrap();
        let blocked = unit.new_domain(&DomainSpec::Blocked).unwrap();
        Self { fake, unit, domain, blocked }
    }
}

/// Runs `operation`, which says whether it succeeded, with its n-th allocation failing, for all n. Returns how many
/// allocations it makes.
fn points(operation: impl Fn(&World) -> bool, unchanged: impl Fn(&World) -> bool) -> usize {
    for n in 0..100 {
        let mut tripped = false;
        let left = heap_left_by(|| {
            let world = World::new();
            let (done, failed) = failing(n, || operation(&world));
            tripped = failed;
            assert_eq!(done, !failed, "allocation {n}");
            if failed {
                assert!(unchanged(&world), "allocation {n}");
                assert!(operation(&world), "after allocation {n} failed");
            }
            let World { fake, unit, domain, blocked } = world;
            unit.detach(&[endpoint(1), endpoint(2)]).unwrap();
            drop((unit, domain, blocked));
            assert_eq!(fake.hal.frames_in_use(), 0, "allocation {n}");
            exempt(|| drop(fake));
        });
        assert_eq!(left, 0, "bytes leaked after allocation {n}");
        if !tripped {
            return n;
        }
    }
    panic!("no end of allocations");
}

#[test]
fn setting_up_survives_every_failure() {
    let mut n = 0;
    loop {
        let mut tripped = false;
        let left = heap_left_by(|| {
            let fake = exempt(Fake::new);
            let transport = exempt(|| fake.clone());
            let hal = exempt(|| fake.hal.clone());
            let (unit, failed) = failing(n, || Setup::new(hal, transport, options()).and_then(Setup::enable));
            tripped = failed;
            assert_eq!(unit.is_ok(), !failed, "allocation {n}");
            drop(unit);
            assert_eq!(fake.hal.frames_in_use(), 0, "allocation {n}");
            assert_eq!(fake.dma(1, 0x1000, true), None, "allocation {n}");
            exempt(|| drop(fake));
        });
        assert_eq!(left, 0, "bytes leaked after allocation {n}");
        if !tripped {
            break;
        }
        n += 1;
    }
    // Two rings, two sets of buffers, that of PROBE, slots, free slots, batches, free batches, domain numbers, and the two
    // shared values.
    assert_eq!(n, 12);
}

#[test]
fn making_a_domain_survives_every_failure() {
    let spec = DomainSpec::Paging(PagingSpec::default());
    // The ledger, the space and the handle.
    assert_eq!(points(|world| world.unit.new_domain(&spec).is_ok(), |_| true), 3);
}

#[test]
fn asking_for_reserved_regions_survives_every_failure() {
    let asked = |world: &World| world.unit.reserved(endpoint(1)).is_ok_and(|regions| regions.len() == 1);
    // The list.
    assert_eq!(points(asked, |_| true), 1);
}

#[test]
fn mapping_survives_every_failure() {
    let list: [Mapping; 100] = core::array::from_fn(|i| piece(0x10_0000 + i as u64 * 0x2000, 0x1000, 0x1000));
    let unmapped =
        |world: &World| list.iter().all(|mapping| world.domain.iova_to_phys(mapping.iova).is_none());
    // The first node is full after 31 more; then a node above, and one for each 31.
    assert_eq!(points(|world| map(&world.domain, &list).is_ok(), unmapped), 4);
}

#[test]
fn attaching_survives_every_failure() {
    let attach = |world: &World| world.unit.attach(&[endpoint(1), endpoint(2)], &world.domain).is_ok();
    // What the endpoints were attached to, and the table of endpoints.
    assert_eq!(points(attach, |world| world.fake.dma(1, 0x1000, true).is_none()), 2);
}

#[test]
fn blocking_detaching_and_unmapping_allocate_nothing() {
    let attached = |world: &World| unfailing(|| world.unit.attach(&[endpoint(1)], &world.domain).is_ok());
    let block = |world: &World| attached(world) && world.unit.attach(&[endpoint(1)], &world.blocked).is_ok();
    assert_eq!(points(block, |_| true), 0);
    let never = |world: &World| world.unit.attach(&[endpoint(2)], &world.blocked).is_ok();
    assert_eq!(points(never, |_| true), 0);
    let detach = |world: &World| attached(world) && world.unit.detach(&[endpoint(1)]).is_ok();
    assert_eq!(points(detach, |_| true), 0);
    let take = |world: &World| attached(world) && unmap(&world.domain, 0x1000, 0x1000) == Ok(Ok(0x1000));
    assert_eq!(points(take, |_| true), 0);
}
