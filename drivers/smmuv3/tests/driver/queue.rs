//! The command and event queues under stress.

use super::*;
use fake::Pace;
use portcullis_iommu::AttachError;
use portcullis_smmuv3::{Coherency, SyncSignal};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// IDR0.MSI.
const MSI: u32 = 1 << 13;

#[test]
fn queues_of_every_size_wrap_many_times() {
    for log2 in 0..=8 {
        for (pace, msi) in [(Pace::AtOnce, 0), (Pace::OnPoll, 0), (Pace::AtOnce, MSI), (Pace::OnPoll, MSI)] {
            let options = Options { command_queue_log2: log2, event_queue_log2: log2, ..options() };
            let bench = Bench::with(options, |fake| {
                let mut state = fake.state();
                state.pace = pace;
                state.ids[0] |= msi;
            });
            let domain = bench.paging(Stage::Stage1);
            bench.driver.attach(&endpoint(1), &domain).unwrap();
            for round in 0..3 * (2 << log2) {
                // Not what the slot held a lap ago.
                let iova = (1 + round % 5) << 12;
                let memory = bench.map(&domain, iova);
                assert_eq!(bench.read(1, iova), done(&memory));
                drop(memory.unmap().unwrap());
                assert_eq!(bench.read(1, iova), Dma::Faulted(0x10), "{log2} {round}");
                assert_eq!(bench.events().len(), 1);
            }
        }
    }
}

#[test]
fn a_queue_smaller_than_a_batch_takes_it_in_pieces() {
    let options = Options { command_queue_log2: 2, ..options() };
    let bench = Bench::with(options, |fake| {
        let mut state = fake.state();
        state.ids[2] &= !(1 << 10);
        state.pace = Pace::OnPoll;
    });
    let domain = bench.paging(Stage::Stage1);
    bench.driver.attach(&endpoint(1), &domain).unwrap();
    let memory: Vec<_> = (0..20).map(|page| bench.map(&domain, page << 12)).collect();
    bench.fake.opcodes();
    invalidate(&domain, 0, 20 << 12).unwrap();
    assert_eq!(bench.fake.opcodes(), [0x12; 20]);
    drop(memory);
}

#[test]
fn a_strict_unmap_takes_one_doorbell_one_sync_and_one_look_at_the_unit() {
    let bench = Bench::new();
    let domain = bench.paging(Stage::Stage1);
    bench.driver.attach(&endpoint(1), &domain).unwrap();
    for page in 0..10 {
        let memory = bench.map(&domain, page << 12);
        let before = (bench.driver.stats(), bench.fake.state().polls);
        bench.fake.state().writes.clear();
        drop(memory.unmap().unwrap());
        let (stats, polls) = (bench.driver.stats(), bench.fake.state().polls);
        assert_eq!(stats.doorbells - before.0.doorbells, 1);
        assert_eq!((stats.invalidations - before.0.invalidations, stats.syncs - before.0.syncs), (1, 1));
        assert_eq!(polls - before.1, 1);
        assert_eq!(bench.fake.state().writes.len(), 1, "CMDQ_PROD and nothing else");
    }
}

#[test]
fn syncs_tell_by_message_where_the_unit_can_and_snoops_and_nobody_said_otherwise() {
    let messages = |ids: u32, options: Options| {
        let bench = Bench::with(options, |fake| fake.state().ids[0] |= ids);
        let domain = bench.paging(Stage::Stage1);
        bench.driver.attach(&endpoint(1), &domain).unwrap();
        let polls = bench.fake.state().polls;
        for page in 0..20 {
            let memory = bench.map(&domain, page << 12);
            assert_eq!(bench.read(1, page << 12), done(&memory));
            drop(memory.unmap().unwrap());
            assert_eq!(bench.read(1, page << 12), Dma::Faulted(0x10));
        }
        let state = bench.fake.state();
        (state.messages > 20, state.polls - polls)
    };
    assert_eq!(messages(MSI, options()), (true, 0), "no register is read");
    assert_eq!(messages(0, options()), (false, 20));
    assert_eq!(messages(MSI, Options { sync_signal: SyncSignal::Poll, ..options() }), (false, 20));
    assert_eq!(messages(MSI, Options { coherency: Coherency::NotSnooped, ..options() }), (false, 20));
}

#[test]
fn a_message_that_comes_late_or_never_holds_nobody_up_and_promises_nothing() {
    for pace in [Pace::AtOnce, Pace::OnPoll] {
        let options = Options { command_queue_log2: 3, ..options() };
        let bench = Bench::with(options, |fake| {
            fake.state().ids[0] |= MSI;
            fake.state().pace = pace;
        });
        let domain = bench.paging(Stage::Stage1);
        bench.driver.attach(&endpoint(1), &domain).unwrap();
        for round in 0..60 {
            bench.fake.state().mute = round % 3 != 0;
            let memory = bench.map(&domain, 0x1000);
            assert_eq!(bench.read(1, 0x1000), done(&memory));
            drop(memory.unmap().unwrap());
            assert_eq!(bench.read(1, 0x1000), Dma::Faulted(0x10));
        }
    }
}

#[test]
fn errors_are_seen_while_a_message_is_awaited() {
    let bench = Bench::with(options(), |fake| fake.state().ids[0] |= MSI);
    let domain = bench.paging(Stage::Stage1);
    bench.driver.attach(&endpoint(1), &domain).unwrap();
    for (opcode, refusal) in [(0x12, 1), (0x12, 2), (0x46, 3)] {
        let memory = bench.map(&domain, 0x1000);
        {
            let mut state = bench.fake.state();
            state.refuse = Some((opcode, 1));
            state.refusal = refusal;
        }
        // A command that could not be fetched is fetched again.
        assert_eq!(memory.unmap().is_ok(), refusal == 2);
        drop(bench.map(&domain, 0x3000).unmap().unwrap());
    }
}

#[test]
fn a_refused_command_is_told_to_its_submitter_and_the_queue_goes_on() {
    for pace in [Pace::AtOnce, Pace::OnPoll] {
        let bench = Bench::with(options(), |fake| fake.state().pace = pace);
        let domain = bench.paging(Stage::Stage1);
        bench.driver.attach(&endpoint(1), &domain).unwrap();
        let [first, second] = [bench.map(&domain, 0x1000), bench.map(&domain, 0x2000)];
        bench.fake.state().refuse = Some((0x12, 1));
        let quarantined = first.unmap().unwrap_err();
        assert_eq!(quarantined.reason, SyncError::Faulted.into());
        assert_eq!(bench.driver.stats().queue_errors, 1);
        assert_eq!(bench.events(), [UnitEvent::QueueError]);
        assert_eq!(bench.events(), [], "once");
        // The next one works.
        drop(second.unmap().unwrap());
        let [_, error] = [0x60, 0x64].map(|offset| bench.fake.state().get(offset));
        assert_eq!(error, bench.fake.state().get(0x60), "acknowledged");
    }
}

#[test]
fn a_unit_that_refuses_one_configuration_command_is_made_to_forget_everything_and_goes_on() {
    let bench = Bench::new();
    let [a, b] = [bench.paging(Stage::Stage1), bench.paging(Stage::Stage1)];
    bench.driver.attach(&endpoint(1), &a).unwrap();
    let memory = bench.map(&b, 0x1000);
    assert_eq!(bench.read(1, 0x1000), Dma::Faulted(0x10));
    bench.fake.opcodes();
    bench.fake.state().refuse = Some((0x03, 1));
    bench.driver.attach(&endpoint(1), &b).unwrap();
    assert_eq!(bench.fake.opcodes(), [0x04, 0x30, 0x11], "everything, then the old tag");
    assert_eq!(bench.read(1, 0x1000), done(&memory));
    bench.fake.state().refuse = Some((0x03, 1));
    bench.driver.detach(&endpoint(1)).unwrap();
    assert_eq!(bench.read(1, 0x1000), Dma::Faulted(0x04));
    bench.driver.attach(&endpoint(2), &b).unwrap();
}

#[test]
fn a_unit_that_refuses_to_forget_any_configuration_is_out_of_order_and_the_endpoint_blocked() {
    let bench = Bench::new();
    let domain = bench.paging(Stage::Stage1);
    {
        let mut state = bench.fake.state();
        state.refuse = Some((0x03, 1));
        state.refuse_every = Some((0x04, 1));
    }
    let error = bench.driver.attach(&endpoint(1), &domain).unwrap_err();
    let AttachError::Timeout(timeout) = error else { panic!("{error}") };
    assert_eq!((timeout.register, timeout.last >> 24), ("SMMU_CMDQ_CONS", 1));
    bench.fake.state().forget_all();
    assert_eq!(bench.read(1, 0), Dma::Faulted(0x04));
    assert_eq!(bench.driver.attach(&endpoint(2), &domain), Err(AttachError::Faulted));
}

#[test]
fn a_fetch_error_is_retried_and_a_lasting_one_takes_the_unit_out_of_service() {
    for (times, works) in [(1, true), (3, true), (100, false)] {
        let bench = Bench::new();
        let domain = bench.paging(Stage::Stage1);
        bench.driver.attach(&endpoint(1), &domain).unwrap();
        let memory = bench.map(&domain, 0x1000);
        {
            let mut state = bench.fake.state();
            state.refuse = Some((0x12, times));
            state.refusal = 2;
        }
        assert_eq!(memory.unmap().is_ok(), works, "{times}");
        let other = bench.paging(Stage::Stage1);
        assert_eq!(bench.driver.attach(&endpoint(2), &other).is_ok(), works);
    }
}

#[test]
fn a_unit_that_does_not_know_sync_is_out_of_service_without_a_wait() {
    let bench = Bench::with(Options { timeout_ns: 60_000_000_000, ..options() }, |_| {});
    let domain = bench.paging(Stage::Stage1);
    bench.fake.state().refuse = Some((0x46, 100));
    assert!(bench.driver.attach(&endpoint(1), &domain).is_err());
}

#[test]
fn an_unanswered_device_invalidation_fails_the_sync_that_waited_for_it() {
    let bench = Bench::new();
    let domain = bench.paging(Stage::Stage1);
    bench.driver.attach(&endpoint(1), &domain).unwrap();
    let memory = bench.map(&domain, 0x1000);
    {
        let mut state = bench.fake.state();
        state.refuse = Some((0x46, 1));
        state.refusal = 3;
    }
    assert!(memory.unmap().is_err());
    drop(bench.map(&domain, 0x3000).unmap().unwrap());
}

#[test]
fn many_submitters_each_get_their_own_answer() {
    for (pace, msi) in [(Pace::OnPoll, 0), (Pace::AtOnce, 0), (Pace::OnPoll, MSI)] {
        submit_from_many(pace, msi);
    }
}

fn submit_from_many(pace: Pace, msi: u32) {
    let options = Options { command_queue_log2: 3, ..options() };
    let bench = Bench::with(options, |fake| {
        fake.state().pace = pace;
        fake.state().ids[0] |= msi;
    });
    let domains: Vec<_> = (0..4).map(|_| bench.paging(Stage::Stage1)).collect();
    std::thread::scope(|scope| {
        for (stream, domain) in domains.iter().enumerate() {
            let bench = &bench;
            scope.spawn(move || {
                let stream = stream as u32;
                for round in 0..100_u32 {
                    if round % 10 == 0 {
                        bench.driver.attach(&endpoint(stream), domain).unwrap();
                    }
                    let iova = u64::from(round) << 12;
                    let memory = bench.map(domain, iova);
                    assert_eq!(bench.read(stream, iova), done(&memory));
                    drop(memory.unmap().unwrap());
                    assert_eq!(bench.read(stream, iova), Dma::Faulted(0x10));
                    if round % 10 == 9 {
                        bench.driver.detach(&endpoint(stream)).unwrap();
                    }
                }
            });
        }
    });
    let stats = bench.driver.stats();
    assert_eq!(stats.doorbells, bench.fake.state().doorbells);
    assert!(stats.syncs <= stats.invalidations && stats.doorbells <= stats.invalidations + stats.syncs);
}

#[test]
fn each_failure_reaches_one_submitter_while_a_handler_looks_too() {
    const SUBMITTERS: u32 = 3;
    /// So rare that the driver remembers all failures: who is away while it forgets some is told that he may have failed.
    const PERIOD: u32 = 40;
    let options = Options { command_queue_log2: 4, ..options() };
    let bench = Bench::with(options, |fake| fake.state().pace = Pace::OnPoll);
    let domains: Vec<_> = (0..SUBMITTERS).map(|_| bench.paging(Stage::Stage1)).collect();
    for (stream, domain) in domains.iter().enumerate() {
        bench.driver.attach(&endpoint(stream as u32), domain).unwrap();
    }
    bench.fake.state().refuse_every = Some((0x12, PERIOD.into()));
    let told = AtomicU64::new(0);
    let running = AtomicU32::new(SUBMITTERS);
    let mut reported = 0;
    std::thread::scope(|scope| {
        for domain in &domains {
            let (bench, told, running) = (&bench, &told, &running);
            scope.spawn(move || {
                for page in 0..200 {
                    let memory = bench.map(domain, page << 12);
                    if memory.unmap().is_err() {
                        told.fetch_add(1, Ordering::Relaxed);
                    }
                }
                running.fetch_sub(1, Ordering::Relaxed);
            });
        }
        while running.load(Ordering::Relaxed) > 0 {
            bench.fake.state().raise(1 << 2);
            reported += bench.events().iter().filter(|event| **event == UnitEvent::QueueError).count();
        }
    });
    reported += bench.events().iter().filter(|event| **event == UnitEvent::QueueError).count();
    let errors = u64::from(SUBMITTERS * 200 / PERIOD);
    assert_eq!((told.into_inner(), reported as u64), (errors, errors));
    assert_eq!(bench.driver.stats().queue_errors, errors);
}

#[test]
fn a_full_event_queue_is_told_once_and_drained() {
    let options = Options { event_queue_log2: 3, ..options() };
    let bench = Bench::with(options, |_| {});
    for round in 0..5 {
        for _ in 0..11 {
            bench.read(1, 0);
        }
        let events = bench.events();
        let faults = events.iter().filter(|event| matches!(event, UnitEvent::Fault(_))).count();
        assert_eq!((faults, events.last()), (8, Some(&UnitEvent::Overflow)));
        assert_eq!(bench.driver.stats().overflows, round + 1);
        assert_eq!(bench.events(), []);
    }
}

#[test]
fn a_storm_of_faults_takes_the_handler_one_queueful_and_what_is_left_is_told() {
    const ENTRIES: usize = 8;
    let options = Options { event_queue_log2: 3, ..options() };
    let bench = Bench::with(options, |_| {});
    bench.read(5, 0);
    let mut events = Vec::new();
    bench.driver.handle_interrupt(&mut |event| {
        events.push(event);
        // The device faults as fast as it is listened to, up to a number that ends the test of an endless handler.
        if events.len() < 1000 {
            bench.read(5, 0);
        }
    });
    let faults = events.iter().filter(|event| matches!(event, UnitEvent::Fault(_))).count();
    // A look for each slot, one for an overflow and one for the end.
    assert_eq!((faults, events.len(), events.last()), (ENTRIES + 2, ENTRIES + 3, Some(&UnitEvent::Unread)));
    let indices = || [0x1_00a8, 0x1_00ac].map(|offset| bench.fake.state().get(offset));
    let [prod, cons] = indices();
    assert_ne!(prod, cons);
    while bench.events().contains(&UnitEvent::Unread) {}
    let [prod, cons] = indices();
    assert_eq!(prod, cons, "later faults find an empty queue");
    let stats = bench.driver.stats();
    assert_eq!((stats.faults, stats.overflows), (ENTRIES as u64 + 4, 0));
}

#[test]
fn a_queueful_without_more_behind_it_is_no_overflow() {
    let options = Options { event_queue_log2: 3, ..options() };
    let bench = Bench::with(options, |_| {});
    for _ in 0..8 {
        bench.read(5, 0);
    }
    let events = bench.events();
    assert!(events.len() == 8 && events.iter().all(|event| matches!(event, UnitEvent::Fault(_))));
    assert_eq!(bench.driver.stats().overflows, 0);
}

#[test]
fn a_stopped_command_queue_is_reported_by_the_interrupt_that_it_raises_and_once() {
    let bench = Bench::new();
    bench.fake.state().raise(1 << 0);
    assert_eq!(bench.events(), [UnitEvent::QueueError], "its submitter has not looked yet");
    assert_eq!(bench.events(), []);
}

#[test]
fn an_overflow_that_shows_as_an_abort_is_told_and_acknowledged() {
    let bench = Bench::new();
    bench.fake.state().raise(1 << 2);
    assert_eq!(bench.events(), [UnitEvent::Overflow]);
    assert_eq!(bench.events(), []);
    assert_eq!(bench.driver.stats().overflows, 1);
}

#[test]
fn a_handler_leaves_a_stopped_command_queue_to_whoever_waits_for_it() {
    let bench = Bench::new();
    bench.fake.state().raise(1 << 0 | 1 << 3);
    let [UnitEvent::UnitError { .. }, UnitEvent::QueueError] = bench.events()[..] else { panic!() };
    let [errors, acknowledged] = [0x60, 0x64].map(|offset| bench.fake.state().get(offset));
    assert_eq!(errors ^ acknowledged, 1 << 0, "still active");
}

#[test]
fn each_global_error_is_named_and_service_failure_ends_the_service() {
    let bench = Bench::new();
    let names = [
        (3, "PRIQ_ABT_ERR"),
        (4, "MSI_CMDQ_ABT_ERR"),
        (5, "MSI_EVENTQ_ABT_ERR"),
        (6, "MSI_PRIQ_ABT_ERR"),
        (7, "MSI_GERROR_ABT_ERR"),
        (9, "CMDQP_ERR"),
        (10, "DPT_ERR"),
        (8, "SFM_ERR"),
    ];
    for (bit, expected) in names {
        bench.fake.state().raise(1 << bit);
        let [UnitEvent::UnitError { name, value }] = bench.events()[..] else { panic!("{expected}") };
        assert_eq!((name, value), (expected, 1 << bit));
    }
    let domain = bench.paging(Stage::Stage1);
    assert_eq!(bench.driver.attach(&endpoint(1), &domain), Err(AttachError::Faulted));
}

#[test]
fn indices_that_make_no_sense_are_not_followed() {
    let bench = Bench::with(hasty(), |_| {});
    // An event index further away than the queue is long.
    bench.fake.state().set(0x1_00a8, 0xfff);
    bench.fake.state().set(0x1_00a8, 0xc1);
    assert_eq!(bench.events(), []);
    // A command index that the unit never reached.
    let domain = bench.paging(Stage::Stage1);
    bench.fake.state().pace = Pace::Never;
    bench.fake.state().set(0x9c, 0x1ff);
    assert!(matches!(bench.driver.attach(&endpoint(1), &domain), Err(AttachError::Timeout(_))));
}
