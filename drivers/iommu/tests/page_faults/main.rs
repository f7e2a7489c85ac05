//! Page requests are grouped, resolved and answered, once each.

mod random;
#[path = "../rig/mod.rs"]
mod rig;

use portcullis_hal::{Access, Arc, PAGE_SIZE, Pasid, unsize_arc};
use portcullis_iommu::*;
use rig::{PRI, Rig, STALL, last, partial, pasid, request, stalled};
use std::sync::{Barrier, Mutex, mpsc};
use std::time::Duration;

/// Answers as it is told, or keeps the group.
#[derive(Default)]
struct Handler {
    /// `None` keeps groups.
    response: Mutex<Option<PageResponse>>,
    pages: Mutex<Vec<Vec<u64>>>,
    kept: Mutex<Vec<FaultGroup>>,
}

impl PageFaultHandler for Handler {
    fn handle(&self, group: FaultGroup) -> Handled {
        let pages = group.requests().map(|request| request.address.get() / PAGE_SIZE).collect();
        self.pages.lock().unwrap().push(pages);
        match *self.response.lock().unwrap() {
            Some(response) => Handled::Now(group, response),
            None => {
                self.kept.lock().unwrap().push(group);
                Handled::Later
            }
        }
    }
}

fn handler(response: Option<PageResponse>) -> Arc<Handler> {
    Arc::try_new(Handler { response: Mutex::new(response), ..Handler::default() }).unwrap()
}

fn handle_with(rig: &Rig, device: &Device, pasid: Option<Pasid>, handler: &Arc<Handler>) {
    let handler = unsize_arc!(handler.clone() => dyn PageFaultHandler);
    rig.iommu.set_page_fault_handler(device, pasid, handler, PageRights::empty()).unwrap();
}

/// Handles what there is, which comes to an end.
fn settle(rig: &Rig) {
    assert!((0..1000).any(|_| rig.handle() == PageFaultWork::Done));
}

const SUCCESS: Option<PageResponse> = Some(PageResponse::Success);

#[test]
fn a_group_is_resolved_as_a_whole_when_its_last_request_is_there() {
    let rig = Rig::new(1);
    let device = rig.device(0, 8, PRI);
    let handler = handler(SUCCESS);
    handle_with(&rig, &device, Some(pasid(5)), &handler);
    for (page, kind) in [(1, partial(7)), (2, partial(9)), (3, partial(7)), (4, last(7))] {
        rig.unit().ask(request(&device, Some(pasid(5)), page, kind));
    }
    assert_eq!(rig.handle(), PageFaultWork::Done);
    assert_eq!(*handler.pages.lock().unwrap(), [vec![1, 3, 4]]);
    rig.unit().ask(request(&device, Some(pasid(5)), 6, last(9)));
    let _done = rig.handle();
    assert_eq!(*handler.pages.lock().unwrap(), [vec![1, 3, 4], vec![2, 6]]);
    let wires = rig.unit().wires();
    assert!(wires.asked.is_empty());
    assert!(wires.answered.iter().all(|answer| answer.response == PageResponse::Success));
    let stats = device.page_fault_stats().unwrap();
    assert_eq!((stats.requests, stats.groups, stats.answers, stats.owed), (5, 2, 2, 0));
}

#[test]
fn interrupt_handlers_only_queue() {
    let rig = Rig::new(1);
    let device = rig.device(0, 8, PRI);
    let handler = handler(SUCCESS);
    handle_with(&rig, &device, None, &handler);
    rig.unit().ask(request(&device, None, 1, last(1)));
    rig.interrupt();
    assert!(handler.pages.lock().unwrap().is_empty() && rig.unit().wires().answered.is_empty());
}

#[test]
fn answers_of_a_turn_go_to_the_hardware_together() {
    let rig = Rig::new(1);
    let device = rig.device(0, 8, STALL);
    handle_with(&rig, &device, Some(pasid(5)), &handler(SUCCESS));
    for tag in 0..10 {
        rig.unit().ask(request(&device, Some(pasid(5)), 1, stalled(tag)));
    }
    assert_eq!(rig.handle(), PageFaultWork::Done);
    assert_eq!(rig.unit().wires().batches, [10]);
}

#[test]
fn what_is_not_allowed_is_refused_and_counted() {
    let rig = Rig::new(1);
    let device = rig.device(0, 8, PRI);
    let handler = handler(SUCCESS);
    handle_with(&rig, &device, Some(pasid(5)), &handler);
    let good = request(&device, Some(pasid(5)), 1, last(1));
    rig.unit().ask(PageRequest { pasid: Some(pasid(6)), ..good });
    rig.unit().ask(PageRequest { pasid: None, kind: last(2), ..good });
    rig.unit().ask(PageRequest { access: Access::READ | Access::EXECUTE, kind: last(3), ..good });
    rig.unit().ask(PageRequest { privilege: Privilege::Supervisor, kind: last(4), ..good });
    rig.unit().ask(PageRequest { access: Access::empty(), kind: last(5), ..good });
    // A part of the group has another PASID.
    rig.unit().ask(PageRequest { pasid: Some(pasid(6)), kind: partial(6), ..good });
    rig.unit().ask(PageRequest { kind: last(6), ..good });
    // The right is missing in a request that is not the last.
    rig.unit().ask(PageRequest { privilege: Privilege::Supervisor, kind: partial(7), ..good });
    rig.unit().ask(PageRequest { kind: last(7), ..good });
    let _done = rig.handle();
    assert!(handler.pages.lock().unwrap().is_empty());
    let stats = device.page_fault_stats().unwrap();
    assert_eq!((stats.unknown, stats.rights, stats.malformed), (2, 3, 2));
    {
        let wires = rig.unit().wires();
        assert!(wires.asked.is_empty());
        assert!(wires.answered.iter().all(|answer| answer.response == PageResponse::Invalid));
    }

    let all = unsize_arc!(handler.clone() => dyn PageFaultHandler);
    rig.iommu.set_page_fault_handler(&device, Some(pasid(5)), all, PageRights::all()).unwrap();
    rig.unit().ask(PageRequest { privilege: Privilege::Supervisor, access: Access::EXECUTE, ..good });
    let _done = rig.handle();
    assert_eq!(handler.pages.lock().unwrap().len(), 1);
}

#[test]
fn a_request_of_nobody_is_refused_too() {
    let rig = Rig::new(1);
    let device = rig.plain_device(0, 8);
    rig.unit().ask(request(&device, Some(pasid(5)), 1, last(1)));
    rig.unit().ask(request(&device, Some(pasid(5)), 1, partial(2)));
    let _done = rig.handle();
    assert!(rig.unit().wires().asked.is_empty());
    assert_eq!(device.page_fault_stats(), None);
    let nobody = rig.iommu.set_page_fault_handler(
        &device,
        None,
        unsize_arc!(handler(SUCCESS) => dyn PageFaultHandler),
        PageRights::empty(),
    );
    assert_eq!(nobody, Err(PageFaultError::NotEnabled));
}

/// Some hardware passes on whatever a device asks.
#[test]
fn requests_of_nobody_are_all_refused_once_however_many_there_are() {
    let rig = Rig::new(3);
    let devices = [0, 1, 2].map(|unit| rig.plain_device(unit, 8));
    for group in 0..300 {
        for (device, unit) in devices.iter().zip(&rig.units) {
            unit.ask(request(device, Some(pasid(5)), 1, last(group)));
        }
    }
    rig.interrupt();
    assert!(rig.units.iter().any(|unit| !unit.wires().events.is_empty()), "they stay in the hardware");
    // No further interrupt comes.
    assert!((0..1000).any(|_| rig.iommu.handle_page_faults() == PageFaultWork::Done));
    for unit in &rig.units {
        let wires = unit.wires();
        assert!(wires.asked.is_empty() && wires.events.is_empty());
        assert!(wires.answered.iter().all(|answer| answer.response == PageResponse::Invalid));
        assert_eq!(wires.answered.len(), 300);
    }
}

#[test]
fn requests_of_nobody_that_a_drain_brings_are_refused_by_it() {
    let rig = Rig::new(1);
    let (device, nobody) = (rig.device(0, 8, PRI), rig.plain_device(0, 9));
    for group in 0..100 {
        rig.unit().hold(request(&nobody, None, 1, last(group)));
    }
    rig.unit().hold(request(&device, None, 1, last(1)));
    rig.iommu.remove_page_fault_handler(&device, None).unwrap();
    assert!(rig.unit().wires().asked.is_empty());
}

#[test]
fn a_handler_may_answer_later_on_another_thread_or_not_at_all() {
    let rig = Rig::new(1);
    let device = rig.device(0, 8, PRI);
    let handler = handler(None);
    handle_with(&rig, &device, Some(pasid(5)), &handler);
    for group in 0..3 {
        rig.unit().ask(request(&device, Some(pasid(5)), 1, last(group)));
    }
    assert_eq!(rig.handle(), PageFaultWork::Done);
    assert_eq!(device.page_fault_stats().unwrap().owed, 3);
    let mut kept = std::mem::take(&mut *handler.kept.lock().unwrap());
    std::thread::scope(|scope| {
        let group = kept.pop().unwrap();
        scope.spawn(move || group.answer(PageResponse::Success));
    });
    drop(kept.pop());
    let answered: Vec<_> = rig.unit().wires().answered.iter().map(|answer| answer.response).collect();
    assert_eq!(answered, [PageResponse::Success, PageResponse::Invalid]);

    // The third is taken back by a teardown; its handler comes too late.
    rig.iommu.remove_page_fault_handler(&device, Some(pasid(5))).unwrap();
    assert!(rig.unit().wires().asked.is_empty());
    kept.pop().unwrap().answer(PageResponse::Success);
    assert_eq!(rig.unit().wires().answered.len(), 3);
}

#[test]
fn a_teardown_answers_what_the_hardware_and_the_queue_still_have() {
    let rig = Rig::new(1);
    let device = rig.device(0, 8, PRI);
    let handler = handler(SUCCESS);
    handle_with(&rig, &device, Some(pasid(5)), &handler);
    handle_with(&rig, &device, Some(pasid(6)), &handler);
    rig.unit().ask(request(&device, Some(pasid(6)), 1, last(1)));
    rig.unit().ask(request(&device, Some(pasid(5)), 2, last(2)));
    rig.interrupt();
    rig.unit().hold(request(&device, Some(pasid(5)), 3, last(3)));
    rig.iommu.remove_page_fault_handler(&device, Some(pasid(5))).unwrap();
    let asked: Vec<_> = rig.unit().wires().asked.iter().map(|asked| asked.pasid).collect();
    assert_eq!(asked, [Some(pasid(6))]);
    let _done = rig.handle();
    assert_eq!(*handler.pages.lock().unwrap(), [[1]]);
}

/// For so long a teardown that does not wait has time to return. One that waits passes whatever time it takes.
const GRACE: Duration = Duration::from_millis(500);

#[test]
fn a_teardown_waits_for_an_answer_that_another_thread_is_giving() {
    let rig = Rig::new(1);
    let device = rig.device(0, 8, PRI);
    let handler = handler(None);
    handle_with(&rig, &device, Some(pasid(5)), &handler);
    rig.unit().ask(request(&device, Some(pasid(5)), 1, last(1)));
    assert_eq!(rig.handle(), PageFaultWork::Done);
    let group = handler.kept.lock().unwrap().pop().unwrap();
    rig.take_log();

    let (order, answering) =
        (std::sync::Arc::new(Mutex::new(Vec::new())), std::sync::Arc::new(Barrier::new(2)));
    let (torn_down, teardown) = mpsc::channel();
    // The hardware takes its time over the answer, until long after the teardown has found nothing owed.
    let (noted, log, begun) = (order.clone(), rig.log.clone(), answering.clone());
    let teardown = Mutex::new(teardown);
    rig.unit().wires().on_answer = Some(std::sync::Arc::new(move |_| {
        begun.wait();
        while !log.lock().unwrap().iter().any(|call| call.starts_with("drain")) {
            std::thread::yield_now();
        }
        let _ = teardown.lock().unwrap().recv_timeout(GRACE);
        noted.lock().unwrap().push("the hardware has the answer");
    }));
    std::thread::scope(|scope| {
        scope.spawn(|| group.answer(PageResponse::Success));
        scope.spawn(|| {
            answering.wait();
            rig.iommu.remove_page_fault_handler(&device, Some(pasid(5))).unwrap();
            order.lock().unwrap().push("the teardown is done");
            torn_down.send(()).unwrap();
        });
    });
    assert_eq!(*order.lock().unwrap(), ["the hardware has the answer", "the teardown is done"]);
    let wires = rig.unit().wires();
    assert_eq!((wires.asked.len(), wires.answered.len()), (0, 1));
}

#[test]
fn a_drain_that_fails_is_reported() {
    let rig = Rig::new(1);
    let device = rig.device(0, 8, PRI);
    handle_with(&rig, &device, None, &handler(SUCCESS));
    rig.unit().wires().fails = "drain";
    let failed = rig.iommu.remove_page_fault_handler(&device, None);
    assert!(matches!(failed, Err(PageFaultError::Unit(_))));
    assert!(rig.iommu.disable(&device, &Unswitched(PRI)).is_err());
    rig.unit().wires().fails = "";
    rig.iommu.disable(&device, &Unswitched(PRI)).unwrap();
}

#[test]
fn a_flood_is_refused_and_delays_others_by_a_turn() {
    let rig = Rig::new(1);
    let (wild, tame) = (rig.device(0, 8, PRI), rig.device(0, 9, PRI));
    let handler = handler(SUCCESS);
    handle_with(&rig, &wild, None, &handler);
    handle_with(&rig, &tame, None, &handler);
    let flood = PAGE_REQUEST_CAPACITY as u16 + 100;
    for group in 0..flood {
        rig.unit().ask(request(&wild, None, 1, last(group)));
    }
    rig.unit().ask(request(&tame, None, 99, last(0)));
    rig.interrupt();
    let _more = rig.iommu.handle_page_faults();
    let place = rig.unit().wires().answered.iter().position(|answer| answer.endpoint == tame.endpoints()[0]);
    assert!(place.is_some_and(|place| place <= 16), "{place:?}");
    settle(&rig);
    assert!(rig.unit().wires().asked.is_empty());
    let stats = wild.page_fault_stats().unwrap();
    assert_eq!((stats.flooded, stats.groups), (100, PAGE_REQUEST_CAPACITY as u64));
    assert_eq!(tame.page_fault_stats().unwrap().flooded, 0);
}

/// A stall without an answer holds its transaction for ever.
#[test]
fn every_stall_of_a_flood_is_answered_once_however_many_there_are() {
    let rig = Rig::new(1);
    let device = rig.device(0, 8, STALL);
    let handler = handler(SUCCESS);
    handle_with(&rig, &device, Some(pasid(5)), &handler);
    let flood = 5000;
    for tag in 0..flood {
        let kind = stalled(tag * 13);
        rig.unit().ask(request(&device, Some(pasid(5)), 1, kind));
    }
    settle(&rig);
    let stats = device.page_fault_stats().unwrap();
    let queued = PAGE_REQUEST_CAPACITY as u64;
    assert_eq!((stats.groups, stats.flooded), (queued, u64::from(flood) - queued));
    assert_eq!((stats.answers, stats.undelivered), (u64::from(flood), 0));
    let wires = rig.unit().wires();
    assert!(wires.asked.is_empty(), "{} stalls hang", wires.asked.len());
    let refused = wires.answered.iter().filter(|answer| answer.response != PageResponse::Success).count();
    assert_eq!(refused as u64, stats.flooded);
}

#[test]
fn a_teardown_leaves_no_stall_of_a_flood_behind() {
    let rig = Rig::new(1);
    let device = rig.device(0, 8, STALL);
    handle_with(&rig, &device, Some(pasid(5)), &handler(None));
    for tag in 0..3000 {
        let whose = pasid(5 + u32::from(tag % 2));
        rig.unit().ask(request(&device, Some(whose), 1, stalled(tag)));
    }
    rig.interrupt();
    rig.iommu.remove_page_fault_handler(&device, Some(pasid(5))).unwrap();
    let left = |whose| rig.unit().wires().asked.iter().filter(|asked| asked.pasid == Some(whose)).count();
    assert_eq!(left(pasid(5)), 0);
    // Those of the other PASID that had room wait for their turn.
    assert_eq!(left(pasid(6)), PAGE_REQUEST_CAPACITY / 2);
    settle(&rig);
    assert_eq!(left(pasid(6)), 0);
}

#[test]
fn a_teardown_ends_though_others_stall_again_for_each_answer() {
    let rig = std::sync::Arc::new(Rig::new(1));
    let device = rig.device(0, 8, STALL);
    let stall = |whose, tag| request(&device, Some(pasid(whose)), 1, stalled(tag));
    // The queue is full of theirs, and more of them found no room.
    (0..300).for_each(|tag| rig.unit().ask(stall(6, tag)));
    rig.unit().ask(stall(5, 300));
    rig.interrupt();
    // Without an end of its own it ends there, and fails below.
    rig.stall_again(stall(6, 0), 10_000);
    rig.iommu.remove_page_fault_handler(&device, Some(pasid(5))).unwrap();
    let wires = rig.unit().wires();
    assert!(wires.asked.iter().all(|asked| asked.pasid == Some(pasid(6))));
    assert_eq!(wires.answered.len(), 300 + 1 - PAGE_REQUEST_CAPACITY);
}

#[test]
fn a_flood_is_refused_also_while_handlers_owe_all_the_answers_they_may() {
    let rig = Rig::new(1);
    let device = rig.device(0, 8, STALL);
    let keeps = handler(None);
    handle_with(&rig, &device, None, &keeps);
    for tag in 0..2000 {
        rig.unit().ask(request(&device, None, 1, stalled(tag)));
        if tag % 200 == 0 {
            let _more = rig.handle();
        }
    }
    for _ in 0..100 {
        let _more = rig.handle();
    }
    // 256 are the handler's, and as many wait until it answers.
    assert_eq!(rig.unit().wires().asked.len(), 256 + PAGE_REQUEST_CAPACITY);
    assert_eq!(rig.handle(), PageFaultWork::More);
    *keeps.response.lock().unwrap() = SUCCESS;
    keeps.kept.lock().unwrap().clear();
    settle(&rig);
    assert!(rig.unit().wires().asked.is_empty());
}

#[test]
fn the_stalls_of_all_streams_of_a_device_are_answered() {
    let rig = Rig::new(1);
    let description = DeviceDescription {
        id: DeviceId::Platform(PlatformName::new("dma")),
        unit: UnitId(0),
        endpoints: vec![portcullis_hal::EndpointId::new(3), portcullis_hal::EndpointId::new(9)],
        group: GroupId(7),
        reserved: vec![],
    };
    let device = rig.iommu.add_device(description).unwrap();
    rig.iommu.enable(&device, &Unswitched(STALL), &STALL).unwrap();
    for at in 0..1000 {
        for (endpoint, place) in device.endpoints().iter().zip(2 * at..) {
            let kind = stalled(place);
            rig.unit().ask(PageRequest { endpoint: *endpoint, ..request(&device, None, 1, kind) });
        }
    }
    settle(&rig);
    assert!(rig.unit().wires().asked.is_empty());
}

#[test]
fn a_group_index_used_again_without_room_gets_one_answer() {
    let rig = Rig::new(1);
    let device = rig.device(0, 8, PRI);
    for group in 0..PAGE_REQUEST_CAPACITY as u16 {
        rig.unit().ask(request(&device, None, 1, last(group)));
    }
    for _ in 0..3 {
        rig.unit().ask(request(&device, None, 1, last(500)));
    }
    settle(&rig);
    assert_eq!(device.page_fault_stats().unwrap().answers, PAGE_REQUEST_CAPACITY as u64 + 1);
    assert_eq!(rig.unit().wires().asked.len(), 2);
}

#[test]
fn a_flood_of_incomplete_groups_is_bounded_and_hurts_nobody_else() {
    let rig = Rig::new(1);
    let (wild, tame) = (rig.device(0, 8, PRI), rig.device(0, 9, PRI));
    let handler = handler(SUCCESS);
    handle_with(&rig, &wild, None, &handler);
    handle_with(&rig, &tame, None, &handler);
    rig.unit().ask(request(&tame, None, 70, partial(3)));
    let _done = rig.handle();
    for group in 0..500 {
        rig.unit().ask(request(&wild, None, 1, partial(group)));
        let _done = rig.handle();
    }
    rig.unit().ask(request(&tame, None, 71, last(3)));
    let _done = rig.handle();
    assert_eq!(*handler.pages.lock().unwrap(), [[70, 71]]);
    assert_eq!(wild.page_fault_stats().unwrap().dropped, 500 - 128);
    // What had room is complete still, and what had not is resolved in part.
    for group in [127, 128] {
        rig.unit().ask(request(&wild, None, 2, last(group)));
    }
    let _done = rig.handle();
    assert_eq!(handler.pages.lock().unwrap()[1..], [vec![1, 2], vec![2]]);
}

#[test]
fn handlers_that_never_answer_stop_their_device_only() {
    let rig = Rig::new(1);
    let (slow, other) = (rig.device(0, 8, PRI), rig.device(0, 9, PRI));
    let (keeps, resolves) = (handler(None), handler(SUCCESS));
    handle_with(&rig, &slow, None, &keeps);
    handle_with(&rig, &other, None, &resolves);
    for round in 0..4_u16 {
        for group in 0..100 {
            rig.unit().ask(request(&slow, None, 1, last(round * 100 + group)));
        }
        let full = || slow.page_fault_stats().unwrap().owed == 256;
        assert!((0..1000).any(|_| rig.handle() == PageFaultWork::Done || full()));
    }
    assert_eq!(slow.page_fault_stats().unwrap().owed, 256);
    rig.unit().ask(request(&other, None, 5, last(0)));
    assert_eq!(rig.handle(), PageFaultWork::More);
    assert_eq!(*resolves.pages.lock().unwrap(), [[5]]);
    *keeps.response.lock().unwrap() = SUCCESS;
    keeps.kept.lock().unwrap().clear();
    settle(&rig);
    assert!(rig.unit().wires().asked.is_empty());
}

#[test]
fn an_overflow_ends_incomplete_groups_of_its_unit() {
    let rig = Rig::new(2);
    let (here, there) = (rig.device(0, 8, PRI), rig.device(1, 8, PRI));
    let handler = handler(SUCCESS);
    handle_with(&rig, &here, None, &handler);
    handle_with(&rig, &there, None, &handler);
    rig.units[0].ask(request(&here, None, 1, partial(1)));
    rig.units[1].ask(request(&there, None, 2, partial(1)));
    let _done = rig.handle();
    rig.units[0].ask(request(&here, None, 3, partial(2)));
    rig.units[0].wires().events.push(UnitEvent::PageRequestOverflow);
    // The hardware answered the rest of the groups; their indices are used again.
    rig.units[0].ask(request(&here, None, 4, last(1)));
    rig.units[0].ask(request(&here, None, 5, last(2)));
    rig.units[1].ask(request(&there, None, 6, last(1)));
    let _done = rig.handle();
    handler.pages.lock().unwrap().sort();
    assert_eq!(*handler.pages.lock().unwrap(), [vec![2, 6], vec![4], vec![5]]);
    assert_eq!(here.page_fault_stats().unwrap().dropped, 2);
}

#[test]
fn a_stop_marker_ends_incomplete_groups_of_its_pasid_and_gets_no_answer() {
    let rig = Rig::new(1);
    let device = rig.device(0, 8, PRI);
    let handler = handler(SUCCESS);
    for number in [5, 6] {
        handle_with(&rig, &device, Some(pasid(number)), &handler);
        rig.unit().ask(request(&device, Some(pasid(number)), u64::from(number), partial(number as u16)));
    }
    rig.unit().ask(request(&device, Some(pasid(5)), 0, PageRequestKind::StopMarker));
    for number in [5, 6] {
        rig.unit().ask(request(&device, Some(pasid(number)), 9, last(number as u16)));
    }
    let _done = rig.handle();
    assert_eq!(*handler.pages.lock().unwrap(), [vec![9], vec![6, 9]]);
}

#[test]
fn to_disable_page_requests_answers_all_of_them() {
    let rig = Rig::new(1);
    let device = rig.device(0, 8, PRI);
    let handler = handler(None);
    handle_with(&rig, &device, Some(pasid(5)), &handler);
    rig.unit().ask(request(&device, Some(pasid(5)), 1, last(1)));
    let _done = rig.handle();
    rig.unit().ask(request(&device, Some(pasid(5)), 1, partial(2)));
    rig.unit().ask(request(&device, Some(pasid(6)), 1, last(3)));
    rig.interrupt();
    rig.unit().hold(request(&device, None, 1, last(4)));
    rig.take_log();
    rig.iommu.disable(&device, &Unswitched(PRI)).unwrap();
    assert!(rig.unit().wires().asked.is_empty());
    assert_eq!(rig.take_log(), ["drain 0x8", "permit 0x8 0"]);
    handler.kept.lock().unwrap().clear();
    assert_eq!(rig.unit().wires().answered.len(), 3);
}

#[test]
fn two_threads_share_the_work_and_no_group_is_torn_or_answered_twice() {
    let rig = Rig::new(1);
    let devices: Vec<_> = (8..12).map(|bdf| rig.device(0, bdf, PRI)).collect();
    let handler = handler(SUCCESS);
    devices.iter().for_each(|device| handle_with(&rig, device, None, &handler));
    for round in 0..100_u16 {
        for device in &devices {
            for index in 0..8 {
                let group = round * 8 % 512 + index;
                rig.unit().ask(request(device, None, 1, partial(group)));
                rig.unit().ask(request(device, None, 2, last(group)));
            }
        }
        rig.interrupt();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    assert!((0..1000).any(|_| rig.iommu.handle_page_faults() == PageFaultWork::Done));
                });
            }
        });
        assert!(rig.unit().wires().asked.is_empty());
    }
    assert!(handler.pages.lock().unwrap().iter().all(|pages| *pages == [1, 2]));
    assert_eq!(rig.unit().wires().answered.len(), 3200);
}
