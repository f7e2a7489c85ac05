//! Stalls, step by step on the model.

use crate::page_requests::{answers, asking, events, finish, page, permit, request, requests, told};
use crate::pasids::{ADDRESS, Bench, OTHER, SID, endpoint, fault, pasid, permissions, units};
use portcullis_hal::host::IDENTITY;
use portcullis_hal::{Access, Arc, Attributes, FrameOrder, Frames, Iova, Mapped, SyncError};
use portcullis_iommu::{
    Domain, DomainSpec, PageRequestKind, PageResponse, Requests, Stage, Transition, Unit as _, UnitEvent,
};
use portcullis_model::core::{Mode, Outcome, Request};
use portcullis_model::device::Job;
use portcullis_model::smmuv3::{Config, code, points};

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
