//! Page requests, step by step on the model.

use crate::bench::Registers;
use crate::rig::{IOVA, Rig, SID, device, done, endpoint, map, pasid, units};
use crate::world::options;
use portcullis_hal::{Access, Arc, EndpointId, Iova, MsiMessage, PhysAddr, SyncError};
use portcullis_iommu::{
    Answered, Domain, GroupIndex, InGroup, PageAnswer, PageRequest, PageRequestFlow, PageRequestKind,
    PageResponse, Permissions, Privilege, Requests, Stage, StallId, Unit, UnitEvent,
};
use portcullis_model::core::{Memory, Mode, Prng, ResponseCode};
use portcullis_model::device::{Attempt, Device, Job, points as habits};
use portcullis_model::vtd::{Config, Feature, points};
use portcullis_vtd::Setup;
use std::collections::BTreeSet;

const ASKS: Requests = Requests::TRANSLATION.union(Requests::PAGE);
const CREDITS: u32 = 512;

/// The address after the one that is mapped.
const NEXT: u64 = IOVA + 0x1000;

/// A rig whose device at [`SID`] asks for pages, with PASIDs of eight bits.
fn rig(config: Config) -> (Rig, std::sync::Arc<Device>) {
    let rig = Rig::new(config);
    let message = MsiMessage { address: PhysAddr::new(0xfee0_1000), data: 0x31 };
    rig.driver.enable_interrupts(message).expect("an event");
    let device = asking(&rig, SID);
    (rig, device)
}

/// A device that asks for pages, attached to a domain at PASID 7.
fn asking(rig: &Rig, sid: u16) -> std::sync::Arc<Device> {
    rig.permit(sid, 8, ASKS);
    rig.attach_pasid(sid, 7, &rig.domain(Stage::Stage1, 0x9_0000));
    let device = device(rig, sid, 8);
    device.set_pri(Some(CREDITS));
    device
}

fn events(rig: &Rig) -> Vec<UnitEvent> {
    let mut events = Vec::new();
    rig.driver.handle_interrupt(&mut |event| events.push(event));
    events
}

/// What the handler reports, which is nothing but page requests.
fn requests(rig: &Rig) -> Vec<PageRequest> {
    events(rig).into_iter().map(request).collect()
}

fn request(event: UnitEvent) -> PageRequest {
    match event {
        UnitEvent::PageRequest(request) => request,
        other => panic!("{other:?}"),
    }
}

/// The answer that a request wants, if it wants one.
fn answer(request: &PageRequest, response: PageResponse) -> Option<PageAnswer> {
    let PageRequest { endpoint, pasid, kind, .. } = *request;
    match kind {
        PageRequestKind::Group(group, InGroup::Last) => {
            Some(PageAnswer { endpoint, pasid, to: Answered::Group(group), response })
        }
        _ => None,
    }
}

fn answers(requests: &[PageRequest], response: PageResponse) -> Vec<PageAnswer> {
    requests.iter().filter_map(|request| answer(request, response)).collect()
}

/// Writes a word as the unit would.
fn put(rig: &Rig, address: u64, word: u64) {
    rig.bench.host.write64(address, word).expect("memory");
}

fn has_event(rig: &Rig) -> bool {
    !rig.bench.unit.take_interrupts().is_empty()
}

fn job(at: u32) -> Job {
    Job::write(NEXT).with_pasid(at)
}

/// What the device was told since the last call: group and code.
fn told(device: &Device) -> Vec<(u16, ResponseCode)> {
    device.step();
    device.take_answers().into_iter().map(|answer| (answer.group, answer.code)).collect()
}

fn finish(rig: Rig, device: &Device) {
    assert_eq!(device.take_violations(), []);
    rig.finish();
}

#[test]
fn a_page_that_is_asked_for_is_reported_answered_and_then_reached() {
    for config in units() {
        for stage in [Stage::Stage1, Stage::Stage2] {
            let (rig, device) = rig(config);
            let domain = rig.domain(stage, 0x1_0000);
            rig.attach_pasid(SID, 7, &domain);
            let Attempt::Requested { group } = device.access(job(7), Mode::Any) else {
                panic!("the page is there already")
            };
            assert!(has_event(&rig));
            let asked = requests(&rig);
            let expected = PageRequest {
                endpoint: EndpointId::new(u32::from(SID)),
                pasid: Some(pasid(7)),
                address: Iova::new(NEXT),
                access: Access::WRITE,
                privilege: Privilege::User,
                kind: PageRequestKind::Group(GroupIndex::new(group), InGroup::Last),
            };
            assert_eq!(asked, [expected]);
            assert_eq!(events(&rig), []);
            map(&domain, NEXT, 0x5_0000);
            rig.driver.answer(&answers(&asked, PageResponse::Success)).expect("an answer");
            assert_eq!(told(&device), [(group, ResponseCode::Success)]);
            assert_eq!(device.access(job(7), Mode::Any).output(), Some(0x5_0000));
            assert_eq!(rig.bench.unit.unanswered_groups(), 0);
            let stats = rig.driver.stats();
            assert_eq!((stats.page_requests, stats.answers), (1, 1));
            finish(rig, &device);
        }
    }
}

#[test]
fn of_a_group_the_last_request_says_so_and_the_answers_tell_what_they_are_told_to() {
    let (rig, device) = rig(Config::full());
    let domain = rig.domain(Stage::Stage1, 0x1_0000);
    rig.attach_pasid(SID, 7, &domain);
    let all = [PageResponse::Success, PageResponse::Invalid, PageResponse::Failure];
    let codes = [ResponseCode::Success, ResponseCode::InvalidRequest, ResponseCode::Failure];
    for (response, code) in all.into_iter().zip(codes) {
        let jobs = [0, 1, 2].map(|page| Job::read(NEXT + page * 0x1000).with_pasid(7));
        let group = device.request_pages(&jobs).expect("credit");
        let asked = requests(&rig);
        let kinds: Vec<_> = asked.iter().map(|request| request.kind).collect();
        let kind = |place| PageRequestKind::Group(GroupIndex::new(group), place);
        assert_eq!(kinds, [kind(InGroup::Partial), kind(InGroup::Partial), kind(InGroup::Last)]);
        let pages: Vec<_> = asked.iter().map(|request| request.address.get()).collect();
        assert_eq!(pages, [NEXT, NEXT + 0x1000, NEXT + 0x2000]);
        rig.driver.answer(&answers(&asked, response)).expect("an answer");
        assert_eq!(told(&device), [(group, code)]);
    }
    // After a failure the device asks no more.
    assert_eq!(device.request_pages(&[job(7)]), None);
    finish(rig, &device);
}

#[test]
fn what_the_device_wants_is_told_as_it_asked() {
    let (rig, device) = rig(Config::full());
    let jobs = [
        (Job::read(NEXT).with_pasid(7), Access::READ, Privilege::User),
        (Job::write(NEXT).with_pasid(7), Access::WRITE, Privilege::User),
        (
            Job { access: portcullis_model::core::Access::Execute, ..Job::read(NEXT) }.with_pasid(7),
            Access::READ | Access::EXECUTE,
            Privilege::User,
        ),
        (
            Job { privilege: portcullis_model::core::Privilege::Supervisor, ..Job::read(NEXT) }.with_pasid(7),
            Access::READ,
            Privilege::Supervisor,
        ),
    ];
    for (job, access, privilege) in jobs {
        device.request_pages(&[job]).expect("credit");
        let asked = requests(&rig);
        assert_eq!(asked.len(), 1);
        assert_eq!((asked[0].access, asked[0].privilege), (access, privilege));
        rig.driver.answer(&answers(&asked, PageResponse::Invalid)).expect("an answer");
    }
    // Without a PASID.
    device.request_pages(&[Job::read(NEXT)]).expect("credit");
    let asked = requests(&rig);
    assert_eq!(asked[0].pasid, None);
    rig.driver.answer(&answers(&asked, PageResponse::Success)).expect("an answer");
    assert_eq!(told(&device).len(), 5);
    assert_eq!(rig.bench.unit.unanswered_groups(), 0);
    finish(rig, &device);
}

#[test]
fn a_stop_marker_is_reported_and_not_answered() {
    let (rig, device) = rig(Config::full());
    device.stop(9);
    let asked = requests(&rig);
    assert_eq!((asked[0].kind, asked[0].pasid), (PageRequestKind::StopMarker, Some(pasid(9))));
    assert_eq!(answers(&asked, PageResponse::Success), []);
    finish(rig, &device);
}

#[test]
fn one_doorbell_serves_many_answers_and_each_goes_to_the_pasid_that_asked() {
    let (rig, device) = rig(Config::full());
    let other = asking(&rig, SID + 1);
    for at in 1..=5 {
        device.request_pages(&[job(at)]).expect("credit");
        // The same group indices, of another device.
        other.request_pages(&[job(0x80 + at)]).expect("credit");
    }
    let mut all = answers(&requests(&rig), PageResponse::Success);
    assert_eq!(all.len(), 10);
    all.reverse();
    let before = rig.driver.stats();
    rig.driver.answer(&all).expect("an answer");
    let after = rig.driver.stats();
    assert_eq!(after.doorbells - before.doorbells, 1);
    assert_eq!((after.answers - before.answers, after.invalidations - before.invalidations), (10, 0));
    assert_eq!((told(&device).len(), told(&other).len()), (5, 5));
    assert_eq!(rig.bench.unit.unanswered_groups(), 0);
    assert_eq!(other.take_violations(), []);
    finish(rig, &device);
}

#[test]
fn answers_to_nobody_are_not_sent() {
    let (rig, device) = rig(Config::full());
    let to = |endpoint: u32, to| PageAnswer {
        endpoint: EndpointId::new(endpoint),
        pasid: None,
        to,
        response: PageResponse::Success,
    };
    let nobody = [
        to(u32::from(SID), Answered::Stall(StallId { place: 1, serial: 0 })),
        to(0x1_0000, Answered::Group(GroupIndex::new(1))),
    ];
    let before = rig.driver.stats();
    assert_eq!(rig.driver.answer(&nobody), Ok(()));
    assert_eq!(rig.driver.answer(&[]), Ok(()));
    assert_eq!(rig.driver.stats(), before);
    finish(rig, &device);
    // A unit that takes no page requests has none to answer.
    let none = Rig::new(Config::full().without(Feature::PageRequestDrain));
    assert_eq!(none.driver.answer(&[]), Ok(()));
    assert_eq!(none.driver.answer(&nobody), Err(SyncError::Faulted));
    assert_eq!(none.driver.drain_page_requests(&endpoint(SID), &mut |event| panic!("{event:?}")), Ok(()));
    none.finish();
}

#[test]
fn the_queue_wraps_and_the_order_stays() {
    let (rig, device) = rig(Config::full());
    let mut page = 0;
    for round in 0..60 {
        let count = 1 + round * 7 % 40;
        let first = page;
        for _ in 0..count {
            device.request_pages(&[Job::read(page << 12).with_pasid(7)]).expect("credit");
            page += 1;
        }
        // Interrupts may be lost: whoever looks next finds all.
        assert!(has_event(&rig));
        let asked = requests(&rig);
        let pages: Vec<_> = asked.iter().map(|request| request.address.get() >> 12).collect();
        assert_eq!(pages, (first..page).collect::<Vec<_>>());
        rig.driver.answer(&answers(&asked, PageResponse::Success)).expect("an answer");
        assert_eq!(told(&device).len(), count);
    }
    assert!(page > 8 * 128, "{page} requests do not fill the queue often");
    finish(rig, &device);
}

#[test]
fn a_flood_overflows_and_afterwards_requests_are_events_again() {
    let (rig, device) = rig(Config::full());
    for round in 0..3 {
        let groups: Vec<_> = (0..200)
            .map(|page| device.request_pages(&[Job::read(page << 12).with_pasid(7)]).expect("credit"))
            .collect();
        assert!(has_event(&rig), "{round}");
        let mut all = events(&rig);
        assert_eq!(all.pop(), Some(UnitEvent::PageRequestOverflow));
        let asked: Vec<_> = all.into_iter().map(request).collect();
        assert_eq!(asked.len(), 127, "the slots of a page, one of which stays empty");
        // What did not fit was answered by the hardware: the device asks again if it still wants it.
        let by_hardware: BTreeSet<_> = told(&device).into_iter().map(|(group, _)| group).collect();
        assert_eq!(by_hardware, groups[127..].iter().copied().collect());
        rig.driver.answer(&answers(&asked, PageResponse::Success)).expect("an answer");
        assert_eq!(told(&device).len(), 127);
        assert_eq!(device.unanswered(), 0);
        assert_eq!(events(&rig), []);
    }
    assert_eq!(rig.driver.stats().overflows, 3);
    finish(rig, &device);
}

#[test]
fn what_comes_while_the_handler_reads_is_an_event_of_its_own_or_is_read() {
    for arrives_at in 0..6 {
        let (rig, device) = rig(Config::full());
        for _ in 0..4 {
            device.request_pages(&[job(7)]).expect("credit");
        }
        assert!(has_event(&rig));
        let mut seen = 0;
        rig.driver.handle_interrupt(&mut |event| {
            request(event);
            if seen == arrives_at {
                device.request_pages(&[job(8)]).expect("credit");
            }
            seen += 1;
        });
        assert_eq!(seen, 4);
        let late = usize::from(arrives_at < 4);
        assert_eq!(usize::from(has_event(&rig)), late);
        assert_eq!(requests(&rig).len(), late);
        rig.finish();
    }
}

#[test]
fn a_drain_leaves_nothing_on_its_way() {
    for config in units() {
        for (held, late) in [(1, 0), (0, 1), (1, 1)] {
            let (rig, device) = rig(config);
            let schedule = &rig.bench.schedule;
            schedule.odds(habits::REQUEST_HELD, held, 1).odds(points::REQUEST_LATE, late, 1);
            let asked: Vec<_> = (0..5)
                .map(|page| device.request_pages(&[Job::read(page << 12).with_pasid(7)]).expect("credit"))
                .collect();
            device.stop(7);
            let mut drained = Vec::new();
            let drain = |drained: &mut Vec<UnitEvent>| {
                rig.driver.drain_page_requests(&endpoint(SID), &mut |event| drained.push(event))
            };
            assert_eq!(drain(&mut drained), Ok(()));
            let found: Vec<_> = drained.into_iter().map(request).collect();
            assert_eq!(found.len(), asked.len() + 1, "held {held}, late {late}");
            assert_eq!(found[5].kind, PageRequestKind::StopMarker);
            rig.driver.answer(&answers(&found, PageResponse::Invalid)).expect("an answer");
            assert_eq!(told(&device).len(), asked.len());
            device.set_pri(None);
            device.set_ats(false);
            rig.permit(SID, 8, Requests::empty());
            assert_eq!(events(&rig), []);
            finish(rig, &device);
        }
    }
}

#[test]
fn a_drain_through_an_overflow_is_repeated_until_nothing_is_left() {
    let (rig, device) = rig(Config::full());
    let other = asking(&rig, SID + 1);
    for page in 0..200 {
        other.request_pages(&[Job::read(page << 12).with_pasid(7)]).expect("credit");
    }
    rig.bench.schedule.odds(habits::REQUEST_HELD, 1, 1);
    let group = device.request_pages(&[job(7)]).expect("credit");
    let mut drained = Vec::new();
    rig.driver.drain_page_requests(&endpoint(SID), &mut |event| drained.push(event)).expect("an answer");
    rig.bench.schedule.calm();
    assert_eq!(drained.iter().filter(|event| **event == UnitEvent::PageRequestOverflow).count(), 1);
    // It came while there was no room, so the hardware has answered it.
    assert_eq!(told(&device), [(group, ResponseCode::Success)]);
    assert_eq!(events(&rig), []);
    finish(rig, &device);
}

#[test]
fn requests_that_are_held_stay_and_a_drain_stops_there_and_holds_nothing() {
    let (rig, device) = rig(Config::full());
    let driver = &rig.driver;
    let ask = |count: usize| (0..count).for_each(|_| _ = device.request_pages(&[job(7)]).expect("credit"));
    ask(130);
    driver.set_page_request_flow(PageRequestFlow::Held);
    assert_eq!(events(&rig), [UnitEvent::Unread]);
    driver.set_page_request_flow(PageRequestFlow::Open);
    let mut all = Vec::new();
    driver.handle_interrupt(&mut |event| {
        driver.set_page_request_flow(PageRequestFlow::Held);
        all.push(event);
    });
    assert!(matches!(all[..], [UnitEvent::PageRequest(_), UnitEvent::Unread]), "{all:?}");
    driver.set_page_request_flow(PageRequestFlow::Open);
    // No status bit tells of them any more.
    let mut rest = events(&rig);
    assert_eq!(rest.pop(), Some(UnitEvent::PageRequestOverflow));
    let mut asked: Vec<_> = rest.into_iter().chain([all[0]]).map(request).collect();
    assert_eq!((asked.len(), told(&device).len()), (127, 3));

    ask(5);
    let mut stops = 0;
    let drained = driver.drain_page_requests(&endpoint(SID), &mut |event| match event {
        UnitEvent::Unread => {
            stops += 1;
            assert_eq!(events(&rig), [UnitEvent::Unread]);
            driver.answer(&answers(&std::mem::take(&mut asked), PageResponse::Invalid)).expect("an answer");
            driver.set_page_request_flow(PageRequestFlow::Open);
        }
        event => {
            asked.push(request(event));
            driver.set_page_request_flow(PageRequestFlow::Held);
        }
    });
    assert_eq!((drained, stops), (Ok(()), 4), "behind the last one there is nothing");
    driver.answer(&answers(&asked, PageResponse::Invalid)).expect("an answer");
    assert_eq!((told(&device).len(), device.unanswered()), (132, 0));
    // Nobody lets them flow.
    ask(1);
    let mut told_unread = |event| assert_eq!(event, UnitEvent::Unread);
    assert_eq!(driver.drain_page_requests(&endpoint(SID), &mut told_unread), Err(SyncError::Faulted));
    driver.set_page_request_flow(PageRequestFlow::Open);
    assert_eq!(requests(&rig).len(), 1);
    rig.finish();
}

#[test]
fn answers_that_the_unit_refused_to_fetch_are_sent_again_and_the_others_are_not() {
    for bad in [vec![1], vec![0, 0, 1], vec![0, 1, 1, 0, 1], vec![1, 1, 1]] {
        let (rig, device) = rig(Config::full());
        let groups: BTreeSet<_> =
            (1..=5).map(|at| device.request_pages(&[job(at)]).expect("credit")).collect();
        let asked = requests(&rig);
        rig.bench.schedule.script(points::QUEUE_FETCH_ERROR, &bad);
        rig.driver.answer(&answers(&asked, PageResponse::Success)).expect("an answer");
        assert!(rig.driver.stats().queue_errors > 0);
        let told = told(&device);
        assert_eq!((told.len(), told.iter().map(|(group, _)| *group).collect()), (5, groups), "{bad:?}");
        assert_eq!(rig.driver.stats().answers, 5);
        finish(rig, &device);
    }
}

#[test]
fn a_drain_does_not_take_an_error_for_an_answer() {
    let (rig, device) = rig(Config::full());
    let silent = asking(&rig, SID + 1);
    let domain = rig.domain(Stage::Stage1, 0x1_0000);
    rig.attach_pasid(SID + 1, 7, &domain);
    assert_eq!(silent.access(Job::write(IOVA).with_pasid(7), Mode::Any).output(), Some(0x1_0000));
    // The unit may drop the wait that drains, with all others, when any device does not answer.
    rig.bench.schedule.odds(habits::INVALIDATION_LOST, 1, 1).odds(points::DEVICE_TIME_OUT, 1, 4);
    let drained = rig.driver.drain_page_requests(&endpoint(SID), &mut |event| panic!("{event:?}"));
    assert_eq!(drained, Err(SyncError::Faulted));
    rig.bench.schedule.calm();
    assert_eq!(rig.driver.drain_page_requests(&endpoint(SID), &mut |event| panic!("{event:?}")), Ok(()));
    rig.bench.schedule.odds(points::QUEUE_FETCH_ERROR, 1, 3);
    let group = device.request_pages(&[job(7)]).expect("credit");
    let mut drained = Vec::new();
    let result = rig.driver.drain_page_requests(&endpoint(SID), &mut |event| drained.push(event));
    rig.bench.schedule.calm();
    assert!(matches!(result, Ok(()) | Err(SyncError::Faulted)), "{result:?}");
    let kind = PageRequestKind::Group(GroupIndex::new(group), InGroup::Last);
    assert!(
        drained.into_iter().any(|event| matches!(event, UnitEvent::PageRequest(one) if one.kind == kind))
    );
    rig.finish();
}

#[test]
fn a_unit_that_does_not_answer_ends_a_drain_and_an_answer_with_a_time_out() {
    let (rig, device) = rig(Config::full());
    device.request_pages(&[job(7)]).expect("credit");
    let asked = requests(&rig);
    rig.bench.unit.hang();
    let result = rig.driver.drain_page_requests(&endpoint(SID), &mut |event| panic!("{event:?}"));
    assert!(matches!(result, Err(SyncError::Timeout(_))), "{result:?}");
    assert_eq!(rig.driver.answer(&answers(&asked, PageResponse::Invalid)), Err(SyncError::Faulted));
    // What comes is reported all the same.
    device.request_pages(&[job(8)]).expect("credit");
    assert_eq!(requests(&rig).len(), 1);
}

#[test]
fn a_device_asks_only_while_it_is_permitted_to() {
    for config in units() {
        let (rig, device) = rig(config);
        let domain = rig.domain(Stage::Stage1, 0x1_0000);
        rig.attach_pasid(SID, 7, &domain);
        let ask = || device.request_pages(&[job(7)]).expect("credit");
        let first = ask();
        rig.driver.answer(&answers(&requests(&rig), PageResponse::Success)).expect("an answer");
        assert_eq!(told(&device), [(first, ResponseCode::Success)]);
        rig.permit(SID, 8, Requests::TRANSLATION);
        assert_eq!(rig.reaches(SID, 7), done(0x1_0000));
        let second = ask();
        assert_eq!(told(&device), [(second, ResponseCode::Failure)]);
        let Some(UnitEvent::Fault(fault)) = events(&rig).pop() else { panic!("no fault") };
        assert_eq!((fault.code, fault.access), (0x47, Some(Access::WRITE)));
        rig.permit(SID, 8, ASKS);
        device.set_pri(Some(CREDITS));
        ask();
        assert_eq!(requests(&rig).len(), 1);
        // With the endpoint detached its context entry is gone, and with it the permission.
        rig.driver.detach(&endpoint(SID)).expect("an answer");
        let last = ask();
        let codes: Vec<_> = told(&device);
        assert_eq!(codes, [(last, ResponseCode::Failure)]);
        rig.finish();
    }
}

#[test]
fn a_record_that_is_none_is_told_and_skipped() {
    let (rig, device) = rig(Config::full());
    for at in [1, 2] {
        device.request_pages(&[job(at)]).expect("credit");
    }
    let queue = rig.bench.unit.read64(0xd0) & !0xfff;
    put(&rig, queue, 0x0000_0009_0118_0177);
    let all = events(&rig);
    assert!(matches!(all[0], UnitEvent::UnitError { value: 0x77, .. }), "{all:?}");
    assert!(matches!(all[1], UnitEvent::PageRequest(PageRequest { pasid: Some(_), .. })));
    assert_eq!(all.len(), 2);
    rig.finish();
}

#[test]
fn no_record_is_too_strange() {
    let (rig, device) = rig(Config::full());
    let mut prng = Prng::new(1);
    for _ in 0..64 {
        let queue = rig.bench.unit.read64(0xd0) & !0xfff;
        let tail = rig.bench.unit.read64(0xc8);
        device.stop(1);
        put(&rig, queue + tail, prng.next_u64() & !0xff | 1);
        put(&rig, queue + tail + 8, prng.next_u64());
        let asked = requests(&rig);
        assert_eq!(asked.len(), 1);
        assert!(asked[0].address.get().is_multiple_of(0x1000));
        assert!(asked[0].pasid.is_none_or(|pasid| pasid.get() >> 20 == 0));
    }
    // Nor is any place of the tail.
    for tail in [0x20, 0xfe0, 0x1000, 0x7_ffe0] {
        rig.bench.unit.write64(0xc8, tail);
        device.stop(1);
        events(&rig);
    }
}

#[test]
fn a_successor_begins_with_an_empty_queue_of_its_own() {
    let (rig, device) = rig(Config::full());
    for _ in 0..3 {
        device.request_pages(&[job(7)]).expect("credit");
    }
    let old = rig.bench.unit.read64(0xd0);
    let registers = Registers(rig.bench.clone());
    let setup = Setup::new(rig.bench.host.clone(), registers, options(&Config::full())).expect("a unit");
    // The old tables are in force, and the old queue takes what comes; its event is masked.
    device.request_pages(&[job(7)]).expect("credit");
    assert_eq!(rig.bench.unit.read64(0xd0), old);
    assert_eq!(rig.bench.unit.read32(0xe0) >> 31, 1);
    let driver = setup.enable().expect("a unit");
    assert_ne!(rig.bench.unit.read64(0xd0) & !0xfff, old & !0xfff);
    assert_eq!((rig.bench.unit.read64(0xc0), rig.bench.unit.read64(0xc8)), (0, 0));
    driver.handle_interrupt(&mut |event| panic!("{event:?}"));
    device.reset();
    let permissions = Permissions { pasid_bits: 8, requests: ASKS };
    driver.permit(&endpoint(SID), &permissions).expect("room");
    let domain: Arc<dyn Domain> = rig.domain(Stage::Stage1, 0x1_0000);
    driver.attach_pasid(&endpoint(SID), pasid(7), &domain).expect("an attachment");
    device.set_pasid(Some(8));
    device.set_ats(true);
    device.set_pri(Some(1));
    let group = device.request_pages(&[job(7)]).expect("credit");
    let mut asked = Vec::new();
    driver.handle_interrupt(&mut |event| asked.push(request(event)));
    assert_eq!(asked.len(), 1);
    driver.answer(&answers(&asked, PageResponse::Success)).expect("an answer");
    assert_eq!(told(&device), [(group, ResponseCode::Success)]);
    finish(rig, &device);
}
