//! Page requests, step by step on the model.

use crate::pasids::{ADDRESS, Bench, OTHER, SID, endpoint, pasid, permissions, units};
use crate::space::Driver;
use portcullis_hal::{Access, Arc, Attributes, EndpointId, FrameOrder, Frames, Iova, Mapped, SyncError};
use portcullis_iommu::{
    Answered, AttachError, Domain, FaultModels, GroupIndex, InGroup, Missing, PageAnswer, PageRequest,
    PageRequestFlow, PageRequestKind, PageResponse, Privilege, Requests, Stage, Transition, Unit as _,
    UnitEvent,
};
use portcullis_model::core::{Mode, ResponseCode};
use portcullis_model::device::{Attempt, Device, Job, points as habits};
use portcullis_model::smmuv3::{Config, points};
use std::collections::BTreeSet;

const ASKS: Requests = Requests::TRANSLATION.union(Requests::PAGE).union(Requests::PASID_IN_ANSWERS);
const CREDITS: u32 = 512;

fn bench() -> (Bench, Arc<dyn Domain>, std::sync::Arc<Device>) {
    bench_of(Config { oas: 44, ..Config::full() })
}

/// A bench whose device at [`SID`] asks for pages, at PASID 7 in an empty domain.
fn bench_of(config: Config) -> (Bench, Arc<dyn Domain>, std::sync::Arc<Device>) {
    let bench = Bench::new(config);
    let domain = bench.domain(Stage::Stage1);
    let device = asking(&bench, SID, &domain);
    (bench, domain, device)
}

pub(crate) fn asking(bench: &Bench, sid: u32, domain: &Arc<dyn Domain>) -> std::sync::Arc<Device> {
    permit(&bench.driver, sid, ASKS);
    bench.driver.attach_pasid(&endpoint(sid), pasid(7), domain).unwrap();
    let device = bench.device(sid);
    device.set_pri(Some(CREDITS));
    device
}

pub(crate) fn permit(driver: &Driver, sid: u32, requests: Requests) {
    assert_eq!(driver.permit(&endpoint(sid), &permissions(8, requests)), Ok(Transition::Hitless));
}

pub(crate) fn events(bench: &Bench) -> Vec<UnitEvent> {
    let mut events = Vec::new();
    bench.driver.handle_interrupt(&mut |event| events.push(event));
    events
}

pub(crate) fn requests(bench: &Bench) -> Vec<PageRequest> {
    events(bench).into_iter().map(request).collect()
}

pub(crate) fn request(event: UnitEvent) -> PageRequest {
    match event {
        UnitEvent::PageRequest(request) => request,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn answers(requests: &[PageRequest], response: PageResponse) -> Vec<PageAnswer> {
    let answer = |request: &PageRequest| {
        let PageRequest { endpoint, pasid, kind, .. } = *request;
        let to = match kind {
            PageRequestKind::Group(group, InGroup::Last) => Answered::Group(group),
            PageRequestKind::Stall(tag) => Answered::Stall(tag),
            _ => return None,
        };
        Some(PageAnswer { endpoint, pasid, to, response })
    };
    requests.iter().filter_map(answer).collect()
}

fn read(at: u32) -> Job {
    Job::read(ADDRESS).with_pasid(at)
}

pub(crate) fn page(
    bench: &Bench,
    domain: &Arc<dyn Domain>,
) -> Mapped<Frames<crate::board::Kernel>, dyn Domain> {
    let page = Frames::zeroed(&bench.kernel, FrameOrder::for_bytes(1 << 16).unwrap()).unwrap();
    Mapped::map(domain, Iova::new(ADDRESS & !0xffff), page, Attributes::READ_WRITE).unwrap()
}

pub(crate) fn told(device: &Device) -> Vec<(u16, ResponseCode)> {
    device.step();
    device.take_answers().into_iter().map(|answer| (answer.group, answer.code)).collect()
}

pub(crate) fn finish(bench: &Bench, device: &Device) {
    assert_eq!(device.take_violations(), []);
    bench.check();
}

#[test]
fn a_page_that_is_asked_for_is_reported_answered_and_then_reached() {
    for config in units() {
        let (bench, domain, device) = bench_of(config);
        assert!(bench.driver.info().fault_models.contains(FaultModels::PRI));
        let Attempt::Requested { group } = device.access(read(7), Mode::Any) else {
            panic!("the page is there already")
        };
        let asked = requests(&bench);
        let expected = PageRequest {
            endpoint: EndpointId::new(SID),
            pasid: Some(pasid(7)),
            address: Iova::new(ADDRESS),
            access: Access::READ,
            privilege: Privilege::User,
            kind: PageRequestKind::Group(GroupIndex::new(group), InGroup::Last),
        };
        assert_eq!(asked, [expected]);
        assert_eq!(events(&bench), []);
        let page = page(&bench, &domain);
        bench.driver.answer(&answers(&asked, PageResponse::Success)).unwrap();
        assert_eq!(told(&device), [(group, ResponseCode::Success)]);
        let phys = page.memory().phys().get() + (ADDRESS & 0xffff);
        assert_eq!(device.access(read(7), Mode::Any).output(), Some(phys));
        let stats = bench.driver.stats();
        assert_eq!((stats.page_requests, stats.answers, stats.faults), (1, 1, 0));
        finish(&bench, &device);
    }
}

#[test]
fn groups_answers_and_markers_are_told_apart() {
    let (bench, _domain, device) = bench();
    let all = [PageResponse::Success, PageResponse::Invalid];
    for (response, code) in all.into_iter().zip([ResponseCode::Success, ResponseCode::InvalidRequest]) {
        let jobs = [0, 1, 2].map(|page| Job::write(page << 12).with_pasid(7));
        let group = device.request_pages(&jobs).unwrap();
        let asked = requests(&bench);
        let places: Vec<_> = asked.iter().map(|one| one.kind).collect();
        let kind = |place| PageRequestKind::Group(GroupIndex::new(group), place);
        assert_eq!(places, [kind(InGroup::Partial), kind(InGroup::Partial), kind(InGroup::Last)]);
        bench.driver.answer(&answers(&asked, response)).unwrap();
        assert_eq!(told(&device), [(group, code)]);
    }
    device.stop(7);
    let marker = requests(&bench);
    assert_eq!((marker[0].kind, marker[0].pasid), (PageRequestKind::StopMarker, Some(pasid(7))));
    // Without a PASID, and the last one: after a failure the device asks no more.
    let group = device.request_pages(&[Job::read(ADDRESS)]).unwrap();
    let asked = requests(&bench);
    assert_eq!(asked[0].pasid, None);
    bench.driver.answer(&answers(&asked, PageResponse::Failure)).unwrap();
    assert_eq!(told(&device), [(group, ResponseCode::Failure)]);
    assert_eq!(device.request_pages(&[read(7)]), None);
    finish(&bench, &device);
}

#[test]
fn answers_carry_the_pasid_for_devices_that_want_it_and_no_others() {
    for wants in [Requests::PASID_IN_ANSWERS, Requests::empty()] {
        let (bench, _domain, device) = bench();
        permit(&bench.driver, SID, Requests::TRANSLATION | Requests::PAGE | wants);
        let group = device.request_pages(&[read(7)]).unwrap();
        bench.driver.answer(&answers(&requests(&bench), PageResponse::Success)).unwrap();
        device.step();
        let answer = device.take_answers()[0];
        assert_eq!((answer.group, answer.pasid), (group, (!wants.is_empty()).then_some(7)));
        bench.check();
    }
}

#[test]
fn the_queue_wraps_and_each_answer_goes_to_whoever_asked() {
    let (bench, domain, device) = bench();
    let other = asking(&bench, OTHER, &domain);
    let mut page = 0;
    for round in 0..80 {
        let count = 1 + round * 7 % 41;
        let first = page;
        for _ in 0..count {
            device.request_pages(&[Job::read(page << 12).with_pasid(7)]).unwrap();
            page += 1;
        }
        other.request_pages(&[read(7)]).unwrap();
        let asked = requests(&bench);
        let own = asked.iter().filter(|one| one.endpoint.get() == SID);
        let pages: Vec<_> = own.map(|one| one.address.get() >> 12).collect();
        assert_eq!(pages, (first..page).collect::<Vec<_>>());
        bench.driver.answer(&answers(&asked, PageResponse::Success)).unwrap();
        assert_eq!((told(&device).len(), told(&other).len()), (count, 1));
    }
    assert!(page > 2 * 512, "{page} requests do not fill the queue twice");
    assert_eq!(other.take_violations(), []);
    finish(&bench, &device);
}

#[test]
fn what_finds_no_room_is_answered_by_the_unit_and_told() {
    let (bench, _domain, device) = bench();
    for _ in 0..3 {
        bench.unit.schedule.script(points::PRIQ_OVERFLOW, &[0, 0, 1]);
        let groups: Vec<_> = (1..=5).map(|_| device.request_pages(&[read(7)]).unwrap()).collect();
        let mut all = events(&bench);
        assert_eq!(all.pop(), Some(UnitEvent::PageRequestOverflow));
        let asked: Vec<_> = all.into_iter().map(request).collect();
        assert_eq!(asked.len(), 2);
        let by_unit: BTreeSet<_> = told(&device).into_iter().map(|(group, _)| group).collect();
        assert_eq!(by_unit, groups[2..].iter().copied().collect());
        bench.driver.answer(&answers(&asked, PageResponse::Success)).unwrap();
        assert_eq!((told(&device).len(), device.unanswered()), (2, 0));
        assert_eq!(events(&bench), []);
    }
    assert_eq!(bench.driver.stats().overflows, 3);
    finish(&bench, &device);
}

/// A device that ignores its credits asks again for each request that is read.
#[test]
fn a_flood_takes_a_queueful_for_each_call_and_every_request_gets_its_answer() {
    let bench = Bench::with_page_requests(Config { oas: 44, ..Config::full() }, 3);
    let device = asking(&bench, SID, &bench.domain(Stage::Stage1));
    let mut left = 400;
    device.request_pages(&[read(7)]).unwrap();
    let mut turns = 0;
    loop {
        let (mut asked, mut more) = (Vec::new(), false);
        bench.driver.handle_interrupt(&mut |event| match event {
            UnitEvent::PageRequest(request) => {
                asked.push(request);
                if left > 0 {
                    left -= 1;
                    device.request_pages(&[read(7)]).unwrap();
                }
            }
            UnitEvent::Unread => more = true,
            event => assert_eq!(event, UnitEvent::PageRequestOverflow),
        });
        assert!(asked.len() <= 10);
        bench.driver.answer(&answers(&asked, PageResponse::Success)).unwrap();
        told(&device);
        turns += 1;
        if !more {
            break;
        }
    }
    assert_eq!((left, device.unanswered()), (0, 0), "after {turns} turns");
    assert!(turns >= 400 / 10);
    finish(&bench, &device);
}

#[test]
fn a_long_queue_is_read_in_parts_by_interrupts_and_to_its_end_by_a_drain() {
    let bench = Bench::with_page_requests(Config { oas: 44, ..Config::full() }, 10);
    let device = asking(&bench, SID, &bench.domain(Stage::Stage1));
    let ask = |count: usize| (0..count).for_each(|_| _ = device.request_pages(&[read(7)]).unwrap());
    ask(400);
    let mut part = events(&bench);
    assert_eq!(part.pop(), Some(UnitEvent::Unread));
    let part: Vec<_> = part.into_iter().map(request).collect();
    assert_eq!(part.len(), 256);
    bench.driver.answer(&answers(&part, PageResponse::Success)).unwrap();
    assert_eq!(told(&device).len(), 256);
    ask(300);
    let mut rest = Vec::new();
    let drained = bench.driver.drain_page_requests(&endpoint(SID), &mut |event| match event {
        UnitEvent::Unread => {}
        event => rest.push(request(event)),
    });
    assert_eq!((drained, rest.len()), (Ok(()), 444));
    bench.driver.answer(&answers(&rest, PageResponse::Invalid)).unwrap();
    assert_eq!((told(&device).len(), device.unanswered()), (444, 0));
    finish(&bench, &device);
}

#[test]
fn requests_that_are_held_stay_and_what_finds_no_room_is_answered_by_the_unit() {
    let bench = Bench::with_page_requests(Config { oas: 44, ..Config::full() }, 3);
    let device = asking(&bench, SID, &bench.domain(Stage::Stage1));
    // From within a report: the next one is held.
    (0..12).for_each(|_| _ = device.request_pages(&[read(7)]).unwrap());
    let mut all = Vec::new();
    bench.driver.handle_interrupt(&mut |event| {
        bench.driver.set_page_request_flow(PageRequestFlow::Held);
        all.push(event);
    });
    assert!(matches!(all[..], [UnitEvent::PageRequest(_), UnitEvent::Unread]), "{all:?}");
    assert_eq!(events(&bench), [UnitEvent::Unread]);
    let first = request(all[0]);
    bench.driver.set_page_request_flow(PageRequestFlow::Open);
    let mut rest = events(&bench);
    assert_eq!(rest.pop(), Some(UnitEvent::PageRequestOverflow));
    let rest: Vec<_> = rest.into_iter().map(request).chain([first]).collect();
    assert_eq!((rest.len(), told(&device).len()), (8, 4));
    bench.driver.answer(&answers(&rest, PageResponse::Success)).unwrap();
    assert_eq!((told(&device).len(), device.unanswered()), (8, 0));
    finish(&bench, &device);
}

#[test]
fn a_drain_comes_to_its_end_though_others_flood_the_queue() {
    let (bench, domain, device) = bench();
    let other = asking(&bench, OTHER, &domain);
    let group = device.request_pages(&[read(7)]).unwrap();
    bench.unit.schedule.odds(points::PRIQ_OVERFLOW, 1, 1);
    let mut asked = Vec::new();
    let drained = bench.driver.drain_page_requests(&endpoint(SID), &mut |event| {
        other.request_pages(&[read(7)]).unwrap();
        if let UnitEvent::PageRequest(request) = event {
            asked.push(request);
        }
    });
    assert_eq!(drained, Ok(()));
    bench.driver.answer(&answers(&asked, PageResponse::Invalid)).unwrap();
    assert_eq!(told(&device), [(group, ResponseCode::InvalidRequest)]);
    finish(&bench, &device);
}

/// Whoever is told that a drain stopped refuses what it brought, while others attach and interrupts come.
#[test]
fn a_drain_stops_where_requests_are_held_and_holds_nothing_meanwhile() {
    let (bench, _domain, device) = bench();
    let (driver, other) = (&bench.driver, bench.domain(Stage::Stage1));
    (0..5).for_each(|_| _ = device.request_pages(&[read(7)]).unwrap());
    let (mut asked, mut stops) = (Vec::new(), 0);
    let drained = driver.drain_page_requests(&endpoint(SID), &mut |event| match event {
        UnitEvent::Unread => {
            stops += 1;
            assert_eq!(bench.kernel.0.masked(), 0);
            assert_eq!(events(&bench), [UnitEvent::Unread]);
            driver.attach(&endpoint(OTHER), &other).unwrap();
            driver.answer(&answers(&std::mem::take(&mut asked), PageResponse::Invalid)).unwrap();
            driver.set_page_request_flow(PageRequestFlow::Open);
        }
        event => {
            asked.push(request(event));
            driver.set_page_request_flow(PageRequestFlow::Held);
        }
    });
    assert_eq!((drained, stops), (Ok(()), 5));
    assert_eq!((told(&device).len(), device.unanswered()), (5, 0));
    // Nobody lets them flow.
    driver.set_page_request_flow(PageRequestFlow::Held);
    device.request_pages(&[read(7)]).unwrap();
    let mut told_unread = |event| assert_eq!(event, UnitEvent::Unread);
    assert_eq!(driver.drain_page_requests(&endpoint(SID), &mut told_unread), Err(SyncError::Faulted));
    driver.set_page_request_flow(PageRequestFlow::Open);
    assert_eq!(requests(&bench).len(), 1);
    bench.check();
}

#[test]
fn a_record_that_cannot_be_written_is_told() {
    let (bench, _domain, device) = bench();
    bench.unit.schedule.script(points::PRIQ_ABORT, &[1]);
    device.request_pages(&[read(7)]).unwrap();
    assert!(matches!(events(&bench)[..], [UnitEvent::UnitError { name: "PRIQ_ABT_ERR", .. }]));
    // The queue works again.
    assert_eq!(told(&device).len(), 1);
    device.set_pri(Some(CREDITS));
    device.request_pages(&[read(7)]).unwrap();
    assert_eq!(requests(&bench).len(), 1);
}

#[test]
fn a_drain_leaves_nothing_on_its_way() {
    for config in units() {
        let (bench, _domain, device) = bench_of(config);
        bench.unit.schedule.odds(habits::REQUEST_HELD, 1, 1);
        for page in 0..5 {
            device.request_pages(&[Job::read(page << 12).with_pasid(7)]).unwrap();
        }
        device.stop(7);
        assert_eq!(requests(&bench), []);
        let mut drained = Vec::new();
        bench.driver.drain_page_requests(&endpoint(SID), &mut |event| drained.push(request(event))).unwrap();
        assert_eq!(drained.len(), 6);
        bench.driver.answer(&answers(&drained, PageResponse::Invalid)).unwrap();
        assert_eq!(told(&device).len(), 5);
        device.set_pri(None);
        device.set_ats(false);
        permit(&bench.driver, SID, Requests::empty());
        finish(&bench, &device);
    }
}

#[test]
fn what_the_unit_does_not_have_is_refused_by_name() {
    let plain = Bench::new(Config { pri: false, stall_model: 1, oas: 44, ..Config::full() });
    let all = permissions(8, Requests::TRANSLATION | Requests::PAGE | Requests::STALL);
    let missing = Missing::PRI | Missing::STALL;
    assert_eq!(plain.driver.permit(&endpoint(SID), &all), Err(AttachError::Incompatible { missing }));
    assert!(plain.driver.info().fault_models.is_empty());
    plain.driver.drain_page_requests(&endpoint(SID), &mut |event| panic!("{event:?}")).unwrap();
    // A stage-2 entry says nothing of stalls.
    let full = Bench::new(Config { oas: 44, ..Config::full() });
    let domain = full.domain(Stage::Stage2);
    let missing = Missing::STALL;
    full.driver.attach(&endpoint(SID), &domain).unwrap();
    let refused = full.driver.permit(&endpoint(SID), &permissions(0, Requests::STALL));
    assert_eq!(refused, Err(AttachError::Incompatible { missing }));
    full.driver.detach(&endpoint(SID)).unwrap();
    full.driver.permit(&endpoint(SID), &permissions(0, Requests::STALL)).unwrap();
    assert_eq!(full.driver.attach(&endpoint(SID), &domain), Err(AttachError::Incompatible { missing }));
}
