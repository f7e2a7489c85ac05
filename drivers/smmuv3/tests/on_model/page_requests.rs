//! Page requests and stalls, step by step on the model.

use crate::pasids::{ADDRESS, Bench, OTHER, SID, endpoint, fault, pasid, permissions, units};
use crate::space::Driver;
use portcullis_hal::host::IDENTITY;
use portcullis_hal::{Access, Arc, Attributes, EndpointId, FrameOrder, Frames, Iova, Mapped, SyncError};
use portcullis_iommu::{
    Answered, AttachError, Domain, DomainSpec, FaultModels, GroupIndex, InGroup, Missing, PageAnswer,
    PageRequest, PageRequestFlow, PageRequestKind, PageResponse, Privilege, Requests, Stage, Transition,
    Unit as _, UnitEvent,
};
use portcullis_model::core::{Mode, Outcome, Request, ResponseCode};
use portcullis_model::device::{Attempt, Device, Job, points as habits};
use portcullis_model::smmuv3::{Config, code, points};
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

fn asking(bench: &Bench, sid: u32, domain: &Arc<dyn Domain>) -> std::sync::Arc<Device> {
    permit(&bench.driver, sid, ASKS);
    bench.driver.attach_pasid(&endpoint(sid), pasid(7), domain).unwrap();
    let device = bench.device(sid);
    device.set_pri(Some(CREDITS));
    device
}

fn permit(driver: &Driver, sid: u32, requests: Requests) {
    assert_eq!(driver.permit(&endpoint(sid), &permissions(8, requests)), Ok(Transition::Hitless));
}

fn events(bench: &Bench) -> Vec<UnitEvent> {
    let mut events = Vec::new();
    bench.driver.handle_interrupt(&mut |event| events.push(event));
    events
}

fn requests(bench: &Bench) -> Vec<PageRequest> {
    events(bench).into_iter().map(request).collect()
}

fn request(event: UnitEvent) -> PageRequest {
    match event {
        UnitEvent::PageRequest(request) => request,
        other => panic!("{other:?}"),
    }
}

fn answers(requests: &[PageRequest], response: PageResponse) -> Vec<PageAnswer> {
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

fn page(bench: &Bench, domain: &Arc<dyn Domain>) -> Mapped<Frames<crate::board::Kernel>, dyn Domain> {
    let page = Frames::zeroed(&bench.kernel, FrameOrder::for_bytes(1 << 16).unwrap()).unwrap();
    Mapped::map(domain, Iova::new(ADDRESS & !0xffff), page, Attributes::READ_WRITE).unwrap()
}

fn told(device: &Device) -> Vec<(u16, ResponseCode)> {
    device.step();
    device.take_answers().into_iter().map(|answer| (answer.group, answer.code)).collect()
}

fn finish(bench: &Bench, device: &Device) {
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

/// A bench whose device at [`SID`] stalls at PASID 7, in an empty domain.
fn stalling(config: Config) -> (Bench, Arc<dyn Domain>) {
    stalling_on(Bench::new(config))
}

fn stalling_on(bench: Bench) -> (Bench, Arc<dyn Domain>) {
    let domain = bench.domain(Stage::Stage1);
    permit(&bench.driver, SID, Requests::STALL);
    bench.driver.attach_pasid(&endpoint(SID), pasid(7), &domain).unwrap();
    (bench, domain)
}

fn dma(bench: &Bench) -> Option<u16> {
    let response = bench.unit.model.dma(Request::read(SID, ADDRESS).with_pasid(7), Mode::Any);
    assert_eq!(response.outcome, Outcome::Stalled(code::F_TRANSLATION));
    response.tag
}

#[test]
fn a_stalled_access_is_reported_and_ends_as_it_is_answered() {
    for config in units() {
        let (bench, domain) = stalling(config);
        dma(&bench);
        let asked = requests(&bench);
        assert_eq!(asked.len(), 1);
        assert!(matches!(asked[0].kind, PageRequestKind::Stall(_)));
        assert_eq!((asked[0].address, asked[0].access), (Iova::new(ADDRESS), Access::READ));
        assert_eq!(asked[0].pasid, Some(pasid(7)));
        bench.driver.answer(&answers(&asked, PageResponse::Invalid)).unwrap();
        let ended = bench.unit.model.take_resumed(SID);
        assert_eq!((ended.len(), ended[0].1.outcome.output()), (1, None));
        dma(&bench);
        let asked = requests(&bench);
        let page = page(&bench, &domain);
        bench.driver.answer(&answers(&asked, PageResponse::Success)).unwrap();
        let resumed = bench.unit.model.take_resumed(SID);
        let phys = page.memory().phys().get() + (ADDRESS & 0xffff);
        assert_eq!(resumed.iter().map(|one| one.1.outcome).collect::<Vec<_>>(), [Outcome::Done(phys)]);
        let stats = bench.driver.stats();
        assert_eq!((stats.page_requests, stats.answers, stats.faults), (2, 2, 0));
        bench.check();
    }
}

#[test]
fn stalls_are_granted_and_withdrawn_under_what_is_attached_without_a_gap() {
    for config in units() {
        let bench = Bench::new(config);
        let (domain, page) = bench.mapped(Stage::Stage1);
        let arrives = [Outcome::Done(page.memory().phys().get() + (ADDRESS & 0xffff))];
        permit(&bench.driver, SID, Requests::empty());
        bench.driver.attach(&endpoint(SID), &domain).unwrap();
        bench.driver.attach_pasid(&endpoint(SID), pasid(7), &domain).unwrap();
        let absent = Request::read(SID, ADDRESS + 0x10_0000).with_pasid(7);
        for round in 0..3 {
            permit(&bench.driver, SID, Requests::STALL);
            assert_eq!(bench.outcomes(SID, Some(7)), arrives, "{round}");
            assert_eq!(bench.outcomes(SID, None), arrives);
            let outcomes = bench.unit.model.reachable(absent);
            assert_eq!(outcomes, [Outcome::Stalled(code::F_TRANSLATION)].into());
            permit(&bench.driver, SID, Requests::TRANSLATION);
            assert_eq!(bench.unit.model.reachable(absent), [Outcome::Fault(code::F_TRANSLATION)].into());
            assert_eq!(bench.outcomes(SID, Some(7)), arrives);
        }
        bench.check();
    }
}

/// A platform device that knows nothing of PASIDs.
#[test]
fn a_stream_without_pasids_stalls_in_its_domain_and_its_neighbour_there_does_not() {
    let request = |sid, page: u64| Request::read(sid, ADDRESS + (page << 16));
    let permit = |bench: &Bench, requests| {
        assert_eq!(bench.driver.permit(&endpoint(SID), &permissions(0, requests)), Ok(Transition::Hitless));
    };
    let bare = Config { ssid_bits: 0, oas: 44, ..Config::full() };
    for config in units().into_iter().chain([bare]) {
        let bench = Bench::new(config);
        let (domain, mapped) = bench.mapped(Stage::Stage1);
        let arrives = [Outcome::Done(mapped.memory().phys().get() + (ADDRESS & 0xffff))];
        let faults = [Outcome::Fault(code::F_TRANSLATION)].into();
        bench.driver.attach(&endpoint(SID), &domain).unwrap();
        bench.driver.attach(&endpoint(OTHER), &domain).unwrap();
        for _ in 0..2 {
            permit(&bench, Requests::STALL);
            assert_eq!(bench.outcomes(SID, None), arrives);
            assert_eq!(bench.unit.model.reachable(request(OTHER, 1)), faults);
            let stalls = bench.unit.model.dma(request(SID, 1), Mode::Any).outcome;
            assert_eq!(stalls, Outcome::Stalled(code::F_TRANSLATION));
            let asked = requests(&bench);
            assert_eq!((asked[0].pasid, asked[0].address), (None, Iova::new(ADDRESS + 0x1_0000)));
            let page = Frames::zeroed(&bench.kernel, FrameOrder::for_bytes(1 << 16).unwrap()).unwrap();
            let at = page.phys().get() + (ADDRESS & 0xffff);
            let iova = Iova::new((ADDRESS & !0xffff) + 0x1_0000);
            let page = Mapped::map(&domain, iova, page, Attributes::READ_WRITE).unwrap();
            bench.driver.answer(&answers(&asked, PageResponse::Success)).unwrap();
            let resumed = bench.unit.model.take_resumed(SID);
            assert_eq!(resumed.iter().map(|one| one.1.outcome).collect::<Vec<_>>(), [Outcome::Done(at)]);
            drop(page.unmap().unwrap());
            // Untranslated accesses do not end what was stalled before: it is answered.
            bench.unit.model.dma(request(SID, 1), Mode::Any);
            let asked = requests(&bench);
            let identity = bench.driver.new_domain(&DomainSpec::Identity(IDENTITY)).unwrap();
            bench.driver.attach(&endpoint(SID), &identity).unwrap();
            assert_eq!(bench.unit.model.stalled(), (1, 0));
            bench.driver.answer(&answers(&asked, PageResponse::Invalid)).unwrap();
            assert_eq!((bench.unit.model.stalled(), bench.unit.model.take_resumed(SID).len()), ((0, 0), 1));
            bench.driver.attach(&endpoint(SID), &domain).unwrap();
            assert_eq!(bench.outcomes(SID, None), arrives);
            // A blocked stream has none.
            bench.unit.model.dma(request(SID, 1), Mode::Any);
            let late = requests(&bench);
            let blocked = bench.driver.new_domain(&DomainSpec::Blocked).unwrap();
            bench.driver.attach(&endpoint(SID), &blocked).unwrap();
            assert_eq!((bench.unit.model.stalled(), bench.unit.model.take_resumed(SID).len()), ((0, 0), 1));
            bench.driver.attach(&endpoint(SID), &domain).unwrap();
            bench.driver.answer(&answers(&late, PageResponse::Success)).unwrap();
            permit(&bench, Requests::empty());
            assert_eq!(bench.outcomes(SID, None), arrives);
            assert_eq!(bench.unit.model.reachable(request(SID, 1)), faults);
            bench.check();
        }
    }
}

#[test]
fn what_is_stalled_ends_with_the_attachment_and_late_answers_go_nowhere() {
    for config in units() {
        let (bench, _domain) = stalling(config);
        dma(&bench);
        let asked = requests(&bench);
        dma(&bench);
        bench.driver.detach(&endpoint(SID)).unwrap();
        let ended = bench.unit.model.take_resumed(SID);
        assert_eq!(ended.iter().filter(|one| one.1.outcome.output().is_none()).count(), 2);
        assert_eq!(bench.unit.model.stalled(), (0, 0));
        bench.driver.answer(&answers(&asked, PageResponse::Success)).unwrap();
        bench.check();
        assert_eq!(bench.outcomes(SID, Some(7)), fault(code::C_BAD_STE));
    }
}

/// Answers that are submitted together, and one of them refused.
#[test]
fn an_answer_that_the_unit_refused_is_given_to_it_again_and_no_other_one() {
    let config = Config { oas: 44, ..Config::full() };
    for refused in 0..4 {
        let answer: Vec<u64> = (0..=refused).map(|at| u64::from(at == refused)).collect();
        let bench = Bench::with_commands(config.clone(), 5);
        let domain = bench.domain(Stage::Stage1);
        let device = asking(&bench, SID, &domain);
        for page in 0..4 {
            device.request_pages(&[Job::read(page << 12).with_pasid(7)]).unwrap();
        }
        let asked = requests(&bench);
        bench.unit.schedule.script(points::COMMAND_ILL, &answer);
        bench.driver.answer(&answers(&asked, PageResponse::Success)).unwrap();
        assert_eq!((told(&device).len(), device.unanswered()), (4, 0));
        assert!(matches!(events(&bench)[..], [UnitEvent::QueueError]));
        assert_eq!(bench.driver.stats().answers, 4);
        finish(&bench, &device);
        let (bench, _domain) = stalling_on(Bench::with_commands(config.clone(), 5));
        for _ in 0..4 {
            dma(&bench);
        }
        let asked = requests(&bench);
        bench.unit.schedule.script(points::COMMAND_ILL, &answer);
        bench.driver.answer(&answers(&asked, PageResponse::Invalid)).unwrap();
        assert_eq!(bench.unit.model.take_resumed(SID).len(), 4);
        assert_eq!((bench.unit.model.stalled(), bench.driver.stats().answers), ((0, 0), 4));
        bench.check();
    }
}

#[test]
fn a_stall_whose_answer_is_refused_every_time_ends_with_its_stream() {
    let (bench, _domain) = stalling(Config { oas: 44, ..Config::full() });
    dma(&bench);
    let asked = requests(&bench);
    // The answer, and the sync in its place and the one behind it, each time.
    bench.unit.schedule.script(points::COMMAND_ILL, &[1, 0, 0, 1, 0, 0, 1, 0, 0, 1]);
    assert_eq!(bench.driver.answer(&answers(&asked, PageResponse::Success)), Err(SyncError::Faulted));
    assert_eq!(bench.unit.model.stalled(), (1, 0));
    bench.driver.detach(&endpoint(SID)).unwrap();
    assert_eq!((bench.unit.model.stalled(), bench.driver.stats().answers), ((0, 0), 0));
    bench.check();
}

#[test]
fn an_event_on_its_way_is_brought_by_a_drain() {
    for config in units() {
        let (bench, _domain) = stalling(config);
        bench.unit.schedule.odds(points::EVENT_LATE, 1, 1);
        dma(&bench);
        assert_eq!(requests(&bench), []);
        let mut drained = Vec::new();
        bench.driver.drain_page_requests(&endpoint(SID), &mut |event| drained.push(request(event))).unwrap();
        assert_eq!(drained.len(), 1);
        bench.driver.answer(&answers(&drained, PageResponse::Invalid)).unwrap();
        assert_eq!(bench.unit.model.stalled(), (0, 0));
        bench.check();
    }
}

#[test]
fn what_was_stalled_is_answered_after_stalls_were_withdrawn_and_not_after_the_stream_ended() {
    for config in units() {
        let (bench, domain) = stalling(config);
        dma(&bench);
        let asked = requests(&bench);
        permit(&bench.driver, SID, Requests::empty());
        bench.driver.answer(&answers(&asked, PageResponse::Invalid)).unwrap();
        assert_eq!((bench.unit.model.stalled(), bench.unit.model.take_resumed(SID).len()), ((0, 0), 1));
        permit(&bench.driver, SID, Requests::STALL);
        dma(&bench);
        let asked = requests(&bench);
        dma(&bench);
        bench.driver.detach(&endpoint(SID)).unwrap();
        // What had not been read is a fault now.
        assert!(matches!(events(&bench)[..], [UnitEvent::Fault(_)]));
        bench.driver.attach_pasid(&endpoint(SID), pasid(7), &domain).unwrap();
        bench.driver.answer(&answers(&asked, PageResponse::Success)).unwrap();
        bench.check();
    }
}

/// The unit gives a tag to another transaction as soon as one has ended; somebody may still hold the request of the one
/// before.
#[test]
fn an_answer_that_comes_after_the_stream_ended_does_not_meet_the_next_stall_with_the_same_tag() {
    for config in units() {
        let (bench, domain) = stalling(config);
        let tag = dma(&bench);
        let late = requests(&bench);
        bench.driver.detach(&endpoint(SID)).unwrap();
        bench.unit.model.take_resumed(SID);
        bench.driver.attach_pasid(&endpoint(SID), pasid(7), &domain).unwrap();
        assert_eq!(dma(&bench), tag, "the model takes the lowest tag that is free");
        let asked = requests(&bench);
        bench.driver.answer(&answers(&late, PageResponse::Invalid)).unwrap();
        assert_eq!(bench.unit.model.stalled(), (1, 0));
        let page = page(&bench, &domain);
        bench.driver.answer(&answers(&asked, PageResponse::Success)).unwrap();
        let resumed = bench.unit.model.take_resumed(SID);
        let phys = page.memory().phys().get() + (ADDRESS & 0xffff);
        assert_eq!(resumed.iter().map(|one| one.1.outcome).collect::<Vec<_>>(), [Outcome::Done(phys)]);
        assert_eq!((bench.unit.model.stalled(), bench.driver.stats().answers), ((0, 0), 1));
        bench.check();
    }
}

#[test]
fn stalls_among_faults_without_end_are_all_reported() {
    let (bench, _domain) = stalling(Config { oas: 44, ..Config::full() });
    let size = 1 << bench.unit.options.event_queue_log2;
    let mut stalled = 0;
    // Faults come as fast as they are read, with a stall now and then.
    let more = |count: usize| {
        for _ in 0..count {
            bench.unit.model.dma(Request::read(OTHER, ADDRESS), Mode::Any);
        }
    };
    more(size);
    let (mut turns, mut unread) = (0, true);
    while unread {
        let mut reported = Vec::new();
        unread = false;
        bench.driver.handle_interrupt(&mut |event| {
            match event {
                UnitEvent::PageRequest(request) => reported.push(request),
                UnitEvent::Unread => unread = true,
                _ => {}
            }
            turns += 1;
            if turns < 4 * size {
                bench.unit.model.dma(Request::read(SID, ADDRESS).with_pasid(7), Mode::Any);
                stalled += 1;
                more(3);
            }
        });
        assert!(reported.len() <= size + 2);
        bench.driver.answer(&answers(&reported, PageResponse::Invalid)).unwrap();
    }
    assert!(stalled >= 4 * size - 1);
    assert_eq!(bench.unit.model.stalled(), (0, 0), "of {stalled}");
    bench.check();
}
