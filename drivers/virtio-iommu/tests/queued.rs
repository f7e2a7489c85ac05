//! Requests that are queued, and a device that takes them in any order.
mod support;

use portcullis_hal::host::Random;
use portcullis_hal::{Gather, MapError, QueuedMaps, SendMapsError, SyncError};
use portcullis_iommu::Unit;
use std::collections::BTreeMap;
use support::*;

#[test]
fn a_queued_map_costs_no_notification_and_sending_them_costs_one() {
    let (fake, _unit, domain) = attached();
    let before = fake.state().notifications;
    let mut queue = QueuedMaps::new();
    for page in 0..100 {
        map_queued(&domain, &[piece(page * 0x2000, 0x1000, 0x1000)], &mut queue).unwrap();
    }
    assert_eq!((fake.take_requests().len(), fake.state().notifications), (0, before));
    assert_eq!(domain.send_maps(&mut queue), Ok(()));
    assert_eq!((fake.take_requests().len(), fake.state().notifications), (100, before + 1));
    assert_eq!(fake.dma(1, 99 * 0x2000, true), Some(0x1000));
    // There is nothing to send any more.
    assert_eq!((queue.is_empty(), domain.send_maps(&mut queue)), (true, Ok(())));
    assert_eq!(fake.state().notifications, before + 1);
}

#[test]
fn a_full_queue_is_sent_with_one_notification() {
    let (fake, _unit, domain) = attached();
    let before = fake.state().notifications;
    let mut queue = QueuedMaps::new();
    // 256 descriptors are 128 requests, of which one is kept for blocking.
    for page in 0..127 {
        map_queued(&domain, &[piece(page * 0x2000, 0x1000, 0x1000)], &mut queue).unwrap();
    }
    assert_eq!(fake.state().notifications, before);
    let list: Vec<_> = (200..327).map(|page| piece(page * 0x2000, 0x1000, 0x1000)).collect();
    map_queued(&domain, &list, &mut queue).unwrap();
    assert_eq!(fake.state().notifications, before + 1);
    assert_eq!(domain.send_maps(&mut queue), Ok(()));
    assert_eq!(fake.state().notifications, before + 2);
    assert_eq!(fake.state().domains[&7].mappings.len(), 2 * 127);
}

#[test]
fn a_long_list_costs_a_notification_for_each_time_that_the_queue_is_full() {
    let (fake, _unit, domain) = attached();
    let before = fake.state().notifications;
    let list: Vec<_> = (0..1000).map(|page| piece(page * 0x2000, 0x1000, 0x1000)).collect();
    map(&domain, &list).unwrap();
    assert_eq!(fake.state().notifications, before + 1000_u32.div_ceil(127));
}

#[test]
fn a_queued_map_that_the_device_refuses_is_told_when_they_are_sent() {
    let (fake, _unit, domain) = attached();
    fake.script(|req| match req {
        Req::Map { first: 0x3000, .. } => Answer::Status(NOMEM),
        _ => Answer::Right,
    });
    let (mut queue, mut other) = (QueuedMaps::new(), QueuedMaps::new());
    for iova in [0x1000, 0x3000, 0x5000] {
        map_queued(&domain, &[piece(iova, 0x1000, 0x1000)], &mut queue).unwrap();
    }
    assert_eq!(domain.send_maps(&mut queue), Err(SendMapsError::Refused));
    assert_eq!(
        [0x1000, 0x3000, 0x5000].map(|iova| fake.dma(1, iova, true)),
        [Some(0x1000), None, Some(0x1000)]
    );
    // All of it is there to be unmapped; and a proof is given, since nothing that was mapped stays.
    assert_eq!(unmap(&domain, 0x1000, 0x5000), Ok(Ok(0x3000)));
    assert_eq!(fake.dma(1, 0x5000, true), None);
    // The next ones do not suffer from it.
    map_queued(&domain, &[piece(0x7000, 0x1000, 0x1000)], &mut other).unwrap();
    assert_eq!(domain.send_maps(&mut other), Ok(()));
}

#[test]
fn what_is_wrong_with_a_queued_map_itself_is_told_at_once() {
    let fake = Fake::new();
    let unit = up(&fake);
    let (domain, other) = (paging(&unit), paging(&unit));
    unit.attach(&[endpoint(1)], &domain).unwrap();
    unit.attach(&[endpoint(2)], &other).unwrap();
    let mut queue = QueuedMaps::new();
    map_queued(&domain, &[piece(0x1000, 0x1000, 0x1000)], &mut queue).unwrap();
    let iova = portcullis_hal::Iova::new(0x1000);
    let twice = [piece(0x8000, 0x1000, 0x1000), piece(0x1000, 0x1000, 0x1000)];
    assert_eq!(map_queued(&domain, &twice, &mut queue), Err(MapError::Overlap { iova }));
    // Another domain does not queue there, and does not send it.
    map_queued(&other, &[piece(0x1000, 0x9000, 0x1000)], &mut queue).unwrap();
    assert_eq!(fake.dma(2, 0x1000, true), Some(0x9000));
    assert!(matches!(other.send_maps(&mut queue), Err(SendMapsError::Sync(SyncError::Gather(_)))));
    assert_eq!(domain.send_maps(&mut queue), Ok(()));
    assert_eq!((fake.dma(1, 0x1000, true), fake.dma(1, 0x8000, true)), (Some(0x1000), None));
}

#[test]
fn a_list_that_is_wrong_leaves_an_empty_queue_empty() {
    let fake = Fake::new();
    let unit = up(&fake);
    let (domain, other) = (paging(&unit), paging(&unit));
    unit.attach(&[endpoint(1)], &domain).unwrap();
    map(&domain, &[piece(0x1000, 0x1000, 0x1000)]).unwrap();
    let mut queue = QueuedMaps::new();
    let iova = portcullis_hal::Iova::new(0x3800);
    let crooked = [piece(0x3800, 0x1000, 0x1000)];
    assert_eq!(map_queued(&domain, &crooked, &mut queue), Err(MapError::Misaligned { iova }));
    assert!(queue.is_empty());
    let iova = portcullis_hal::Iova::new(0x1000);
    let twice = [piece(0x1000, 0x1000, 0x1000)];
    assert_eq!(map_queued(&domain, &twice, &mut queue), Err(MapError::Overlap { iova }));
    assert!(queue.is_empty());
    assert_eq!(other.send_maps(&mut queue), Ok(()));
}

#[test]
fn refusals_of_others_are_not_told_where_nothing_was_queued() {
    let fake = Fake::new();
    let unit = up(&fake);
    let domain = paging(&unit);
    let (mut queue, mut other) = (QueuedMaps::new(), QueuedMaps::new());
    // The device does not know the domain yet.
    map_queued(&domain, &[piece(0x1000, 0x1000, 0x1000)], &mut queue).unwrap();
    unit.attach(&[endpoint(1)], &domain).unwrap();
    fake.script(|_| Answer::Status(NOMEM));
    map_queued(&domain, &[piece(0x3000, 0x1000, 0x1000)], &mut other).unwrap();
    assert_eq!(domain.send_maps(&mut other), Err(SendMapsError::Refused));
    assert_eq!(domain.send_maps(&mut queue), Ok(()));
    fake.script(|_| Answer::Right);
}

#[test]
fn a_notification_that_is_late_is_made_up_for_by_who_waits() {
    let (fake, _unit, domain) = attached();
    let before = fake.state().notifications;
    let mut queue = QueuedMaps::new();
    map_queued(&domain, &[piece(0x1000, 0x1000, 0x1000)], &mut queue).unwrap();
    // As if another thread had published the request, and lost its processor then.
    fake.state().swallows = true;
    assert_eq!(domain.send_maps(&mut queue), Ok(()));
    assert_eq!(fake.state().notifications, before + 2);
    assert_eq!(map(&domain, &[piece(0x3000, 0x1000, 0x1000)]), Ok(()));
    assert_eq!(fake.dma(1, 0x1000, true), Some(0x1000));
}

#[test]
fn a_silent_device_fails_the_sending_and_leaves_the_maps_to_be_unmapped() {
    let (fake, _unit, domain) = attached();
    fake.script(|_| Answer::Never);
    let mut queue = QueuedMaps::new();
    map_queued(&domain, &[piece(0x1000, 0x1000, 0x1000)], &mut queue).unwrap();
    assert!(matches!(domain.send_maps(&mut queue), Err(SendMapsError::Sync(SyncError::Timeout(_)))));
    let again = map_queued(&domain, &[piece(0x3000, 0x1000, 0x1000)], &mut queue);
    assert_eq!(again, Err(MapError::Sync(SyncError::Faulted)));
    assert!(domain.iova_to_phys(portcullis_hal::Iova::new(0x1000)).is_some());
}

#[test]
fn queued_maps_are_there_for_an_endpoint_that_comes_and_are_waited_for_when_one_goes() {
    let fake = Fake::new();
    let unit = up(&fake);
    let domain = paging(&unit);
    let mut queue = QueuedMaps::new();
    map_queued(&domain, &[piece(0x1000, 0x1000, 0x1000)], &mut queue).unwrap();
    unit.attach(&[endpoint(1)], &domain).unwrap();
    assert_eq!(fake.dma(1, 0x1000, true), Some(0x1000), "replayed");
    map_queued(&domain, &[piece(0x3000, 0x1000, 0x1000)], &mut queue).unwrap();
    unit.detach(&[endpoint(1)]).unwrap();
    assert_eq!(domain.send_maps(&mut queue), Ok(()));
    unit.attach(&[endpoint(1)], &domain).unwrap();
    assert_eq!(fake.dma(1, 0x3000, true), Some(0x1000));
}

/// Pages of a few addresses are mapped and unmapped over and over, most of it queued, by a device that takes what it
/// finds in the queue in any order.
#[test]
fn whatever_the_order_in_which_requests_are_taken_the_end_is_right() {
    const PAGE: u64 = 0x1000;
    const PAGES: u64 = 12;
    for seed in 1..40 {
        let fake = Fake::new();
        fake.state().disorder = Some(Random::new(seed));
        let unit = up(&fake);
        let domain = paging(&unit);
        unit.attach(&[endpoint(1)], &domain).unwrap();
        let (mut dice, mut model) = (Random::new(seed), BTreeMap::new());
        let (mut queue, mut gather) = (QueuedMaps::new(), Gather::new());
        for step in 0..400 {
            let (first, len) = (dice.below(PAGES), 1 + dice.below(3));
            match dice.below(10) {
                0..=3 => {
                    let memory = (step + 1) << 20;
                    let below = model.range(..first + len).next_back();
                    let hit = below.is_some_and(|(at, (size, _))| first < at + size);
                    let list = [piece(first * PAGE, memory, len * PAGE)];
                    let made = match dice.below(4) {
                        0 => map(&domain, &list),
                        _ => map_queued(&domain, &list, &mut queue),
                    };
                    assert_eq!(made.is_err(), hit, "{made:?}");
                    if !hit {
                        model.insert(first, (len, memory));
                    }
                }
                4..=7 => {
                    let whole = range(first * PAGE, len * PAGE);
                    match portcullis_hal::host::unmap(&*domain, whole, &mut gather) {
                        Ok(_) => model.retain(|at, (size, _)| at + *size <= first || *at >= first + len),
                        Err(error) => assert!(matches!(error, portcullis_hal::UnmapError::Partial { .. })),
                    }
                }
                8 => assert_eq!(domain.send_maps(&mut queue), Ok(())),
                _ => drop(domain.sync(&mut gather).unwrap()),
            }
        }
        assert_eq!(domain.send_maps(&mut queue), Ok(()));
        drop(domain.sync(&mut gather).unwrap());
        let state = fake.state();
        let there: Vec<_> =
            state.domains[&7].mappings.iter().map(|(at, (last, phys, _))| (*at, *last, *phys)).collect();
        let expected: Vec<_> =
            model.iter().map(|(at, (len, memory))| (at * PAGE, (at + len) * PAGE - 1, *memory)).collect();
        assert_eq!(there, expected, "seed {seed}");
    }
}
