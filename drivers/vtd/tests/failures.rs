//! What happens when something runs out: ids, memory, queue slots, the hardware's patience or the driver's.

mod common;

use common::fake::{self, Conduct, FakeUnit};
use common::{Machine, endpoint, fixed, map_page, options, unmap};
use portcullis_hal::host::HostHal;
use portcullis_hal::{
    Attributes, Gather, Iova, IovaRange, MapError, OutOfMemory, PhysAddr, QuarantineReason, SyncError,
};
use portcullis_iommu::{AttachError, DomainError, DomainSpec, Missing, PagingSpec, Unit, UnitEvent};
use portcullis_vtd::{Options, Setup};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const IOVA: u64 = 0x12_3456_7000;

#[test]
fn domain_ids_run_out_with_an_error_and_come_back() {
    let (cap, ecap) = fake::SECOND_STAGE;
    let machine = Machine::new((cap & !7, ecap));
    let domains: Vec<_> = (0..16).map(|_| machine.paging()).collect();
    for (sid, domain) in (0_u16..15).zip(&domains) {
        map_page(domain, IOVA, 0x1000 * u64::from(sid + 1)).unwrap();
        machine.driver.attach(&endpoint(sid), domain).unwrap();
    }
    assert_eq!(machine.driver.attach(&endpoint(15), &domains[15]), Err(AttachError::NoFreeId));
    assert!((0..15).all(|sid| machine.fake.dma(sid, IOVA, true) == Ok(0x1000 * u64::from(sid + 1))));
    assert_eq!(machine.fake.dma(15, IOVA, true), Err(0x02));
    machine.driver.detach(&endpoint(3)).unwrap();
    assert!(machine.driver.attach(&endpoint(15), &domains[15]).is_ok());
    assert!(machine.fake.dma(15, IOVA, true).is_err(), "the id's old translations are gone");
}

#[test]
fn out_of_memory_at_any_allocation_of_an_operation_changes_nothing_and_leaks_nothing() {
    for registers in [fake::FIRST_STAGE, fake::SECOND_STAGE] {
        let mut failures = Vec::new();
        for operation in 0..3 {
            let mut nth = 0;
            loop {
                let machine = Machine::new(registers);
                let domain = machine.paging();
                let before = machine.hal.frames_in_use();
                machine.hal.fail_after(nth);
                let failed = match operation {
                    0 => machine.driver.new_domain(&DomainSpec::Paging(PagingSpec::default())).is_err(),
                    1 => machine.driver.attach(&endpoint(0x20), &domain).is_err(),
                    _ => map_page(&domain, IOVA, 0x1000).is_err(),
                };
                machine.hal.fail_never();
                if !failed {
                    break;
                }
                assert!(machine.fake.dma(0x20, IOVA, true).is_err());
                if operation == 1 {
                    // Attached to what was allocated, the endpoint takes no more than it would have.
                    assert!(machine.driver.attach(&endpoint(0x20), &domain).is_ok());
                    assert_eq!(machine.hal.frames_in_use(), before + 3);
                } else {
                    assert!(map_page(&domain, IOVA, 0x1000).is_ok());
                    assert_eq!(machine.hal.frames_in_use(), before + 3);
                }
                nth += 1;
            }
            failures.push(nth);
        }
        // A root; a context table, a directory and a PASID table; three page tables.
        assert_eq!(failures, [1, 3, 3]);
    }
}

#[test]
fn memory_beyond_the_units_addresses_is_refused_by_name_and_given_back() {
    for registers in [fake::FIRST_STAGE, fake::SECOND_STAGE] {
        let machine = Machine::new(registers);
        let (used, fresh) = (machine.paging(), machine.paging());
        machine.driver.attach(&endpoint(0x20), &used).unwrap();
        let before = machine.hal.frames_in_use();
        machine.hal.skip_to(PhysAddr::new(1 << 48));
        let missing = Missing::OUTPUT_WIDTH;
        // 0x30 lacks a directory, 0xa0 a context table too.
        for sid in [0x30, 0xa0] {
            let result = machine.driver.attach(&endpoint(sid), &fresh);
            assert_eq!(result, Err(AttachError::Incompatible { missing }), "{sid:#x}");
            assert!(machine.fake.dma(sid, IOVA, true).is_err());
        }
        assert_eq!(map_page(&used, IOVA, 0x1000), Err(MapError::OutOfMemory(OutOfMemory)));
        let spec = DomainSpec::Paging(PagingSpec::default());
        assert_eq!(machine.driver.new_domain(&spec).err(), Some(DomainError::OutOfMemory(OutOfMemory)));
        assert_eq!(machine.hal.frames_in_use(), before);
        machine.driver.attach(&endpoint(0x20), &fresh).unwrap();
    }
}

#[test]
fn a_refused_descriptor_fails_its_submitter_and_nobody_else() {
    for restarts_at_tail in [true, false] {
        let hal = HostHal::new();
        let mut fake = FakeUnit::new(&hal, fake::SECOND_STAGE);
        fake.restarts_at_tail = restarts_at_tail;
        let machine = Machine::with(hal, fake);
        let domain = machine.paging();
        machine.driver.attach(&endpoint(0x20), &domain).unwrap();
        let kept = machine.map(&domain, IOVA, Attributes::READ_WRITE);
        let lost = machine.map(&domain, 0, Attributes::READ_WRITE);
        let phys = lost.memory().range();
        assert!(machine.fake.dma(0x20, 0, true).is_ok());

        machine.fake.set_conduct(Conduct::Refuse(2));
        let quarantined = lost.unmap().err().unwrap();
        assert_eq!(quarantined.reason, QuarantineReason::Sync(SyncError::Faulted));
        assert!(machine.hal.is_allocated(phys.start(), 0x1000), "the unit may still reach it");
        assert_eq!(machine.driver.stats().queue_errors, 1);
        assert!(kept.unmap().is_ok());
        assert_eq!(machine.fake.get(fake::FSTS), 0);

        // A wait descriptor that is refused is replaced by one that completes.
        let third = machine.map(&domain, IOVA, Attributes::READ_WRITE);
        machine.fake.set_conduct(Conduct::Refuse(5));
        assert!(third.unmap().is_err());
        assert_eq!(machine.driver.stats().queue_errors, 2);
        assert!(machine.driver.detach(&endpoint(0x20)).is_ok());
    }
}

#[test]
fn a_change_of_attachment_whose_invalidation_is_refused_makes_the_unit_forget_everything() {
    let machine = Machine::new(fake::SECOND_STAGE);
    let (one, two) = (machine.paging(), machine.paging());
    map_page(&one, IOVA, 0x1000).unwrap();
    map_page(&two, IOVA, 0x2000).unwrap();
    for refused in [1, 2, 5, 7] {
        machine.driver.attach(&endpoint(0x20), &one).unwrap();
        assert_eq!(machine.fake.dma(0x20, IOVA, true), Ok(0x1000));
        machine.fake.set_conduct(Conduct::Refuse(refused));
        machine.driver.attach(&endpoint(0x20), &two).unwrap();
        assert_eq!(machine.fake.dma(0x20, IOVA, true), Ok(0x2000), "{refused}");

        machine.fake.set_conduct(Conduct::Refuse(refused));
        machine.driver.detach(&endpoint(0x20)).unwrap();
        assert_eq!(machine.fake.dma(0x20, IOVA, true), Err(0x02), "{refused}");
        assert_eq!(machine.driver.detach(&endpoint(0x20)), Ok(()));
    }
}

#[test]
fn a_unit_that_refuses_to_forget_even_everything_is_out_of_order() {
    let machine = Machine::new(fake::SECOND_STAGE);
    let (one, two, other) = (machine.paging(), machine.paging(), machine.paging());
    map_page(&one, IOVA, 0x1000).unwrap();
    machine.driver.attach(&endpoint(0x20), &one).unwrap();
    machine.driver.attach(&endpoint(0x28), &other).unwrap();
    machine.fake.set_conduct(Conduct::RefuseAll(7));
    let in_use = machine.hal.frames_in_use();
    let error = machine.driver.attach(&endpoint(0x20), &two);
    let Err(AttachError::Timeout(timeout)) = error else { panic!("{error:?}") };
    assert_eq!((timeout.register, timeout.last), ("FSTS_REG", 0x10), "what the register said");
    // What the unit had cached it may still use; a fresh look finds nothing.
    machine.fake.state.lock().unwrap().contexts.clear();
    machine.fake.state.lock().unwrap().iotlb.clear();
    assert_eq!(machine.fake.dma(0x20, IOVA, true), Err(0x02));

    drop(one);
    assert_eq!(machine.hal.frames_in_use(), in_use, "tables that the unit may walk stay");

    // However well the unit behaves from now on, it takes only blocking, and that unconfirmed.
    machine.fake.set_conduct(Conduct::Prompt);
    assert_eq!(machine.driver.attach(&endpoint(0x20), &two), Err(AttachError::Faulted));
    assert_eq!(machine.driver.detach(&endpoint(0x28)), Err(AttachError::Timeout(timeout)));
    assert_eq!(machine.fake.dma(0x28, IOVA, true), Err(0x02));

    // The id that the failed attempt showed to the unit is not given to another domain.
    let mut text = String::new();
    two.describe(&mut text).unwrap();
    assert!(text.contains("domain id"), "{text}");
}

#[test]
fn a_detach_is_not_confirmed_by_asking_again() {
    for conduct in [Conduct::RefuseAll(1), Conduct::Dead] {
        let machine = Machine::new(fake::SECOND_STAGE);
        let one = machine.paging();
        map_page(&one, IOVA, 0x1000).unwrap();
        machine.driver.attach(&endpoint(0x20), &one).unwrap();
        assert!(machine.fake.dma(0x20, IOVA, true).is_ok());
        machine.fake.set_conduct(conduct);
        let error = machine.driver.detach(&endpoint(0x20));
        assert!(matches!(error, Err(AttachError::Timeout(_))), "{error:?}");
        assert!(machine.fake.dma(0x20, IOVA, true).is_ok(), "the context entry is still cached");
        assert_eq!(machine.driver.detach(&endpoint(0x20)), error);
        assert_eq!(machine.driver.attach(&endpoint(0x20), &machine.blocked()).map(drop), error);
        assert_eq!(machine.driver.detach(&endpoint(0x30)), Ok(()), "of this one the unit knows nothing");
        let mut text = String::new();
        one.describe(&mut text).unwrap();
        assert!(text.contains("domain id"), "the id is kept for ever: {text}");
    }
}

#[test]
fn a_unit_that_fails_keeps_no_other_from_being_told() {
    let hal = HostHal::new();
    let fakes: Vec<_> = (0..10).map(|_| FakeUnit::new(&hal, fake::SECOND_STAGE)).collect();
    let started =
        fakes.iter().map(|fake| Setup::new(hal.clone(), fake.clone(), options()).unwrap().enable().unwrap());
    let drivers: Vec<_> = started.collect();
    for dead in 0..fakes.len() {
        let domain = drivers[dead].new_domain(&DomainSpec::Paging(PagingSpec::default())).unwrap();
        map_page(&domain, IOVA, 0x1000).unwrap();
        let rest = || drivers.iter().zip(&fakes).skip(dead);
        for (driver, fake) in rest() {
            driver.attach(&endpoint(1), &domain).unwrap();
            assert!(fake.dma(1, IOVA, true).is_ok());
        }
        let units = fakes.len() - dead;
        // First, in the middle and last, the later rounds with those behind it only.
        let failing = &fakes[dead + (units - 1) * (dead % 3) / 2];
        failing.set_conduct(Conduct::RefuseAll(2));
        let mut gather = Gather::new();
        let range = IovaRange::new(Iova::new(IOVA), 0x1000).unwrap();
        portcullis_hal::host::unmap(&*domain, range, &mut gather).unwrap();
        assert_eq!(domain.sync(&mut gather).map(drop), Err(SyncError::Faulted));
        failing.set_conduct(Conduct::Prompt);
        let reached: Vec<_> = rest().filter(|(_, fake)| fake.dma(1, IOVA, true).is_ok()).collect();
        assert_eq!(reached.len(), 1, "only the one that refused");
        failing.state.lock().unwrap().iotlb.clear();
        for (driver, _) in rest() {
            driver.detach(&endpoint(1)).unwrap();
        }
    }
}

#[test]
fn the_interrupt_handler_reports_a_queue_error_and_sets_the_queue_going() {
    let machine = Machine::new(fake::SECOND_STAGE);
    machine.fake.set(fake::FSTS, 0x10);
    assert_eq!(machine.events(), [UnitEvent::QueueError]);
    assert_eq!(machine.fake.get(fake::FSTS), 0);
    assert_eq!(machine.driver.stats().queue_errors, 1);
}

#[test]
fn a_unit_that_stops_answering_is_quarantined_with_all_that_it_may_know() {
    let machine = Machine::new(fake::SECOND_STAGE);
    let (domain, other) = (machine.paging(), machine.paging());
    machine.driver.attach(&endpoint(0x20), &domain).unwrap();
    machine.driver.attach(&endpoint(0x28), &other).unwrap();
    let mapped = machine.map(&domain, IOVA, Attributes::READ_WRITE);
    let in_use = machine.hal.frames_in_use();
    machine.fake.set_conduct(Conduct::Dead);
    let quarantined = mapped.unmap().err().unwrap();
    let QuarantineReason::Sync(SyncError::Timeout(timeout)) = quarantined.reason else {
        panic!("{quarantined:?}")
    };
    assert_eq!(timeout.register, "invalidation status word");
    let _ = quarantined;
    assert_eq!(machine.hal.frames_in_use(), in_use);

    assert_eq!(machine.driver.attach(&endpoint(0x30), &domain), Err(AttachError::Faulted));
    assert_eq!(machine.driver.detach(&endpoint(0x20)), Err(AttachError::Timeout(timeout)));
    assert!(machine.driver.attach(&endpoint(0x28), &machine.blocked()).is_err());
    for sid in [0x20, 0x28] {
        machine.fake.state.lock().unwrap().contexts.clear();
        machine.fake.state.lock().unwrap().iotlb.clear();
        assert_eq!(machine.fake.dma(sid, IOVA, true), Err(0x02), "the entry is invalid");
    }
    drop((domain, other));
    assert_eq!(machine.hal.frames_in_use(), in_use, "tables that the unit may walk stay");
}

#[test]
fn a_dropped_wait_is_made_up_for() {
    let machine = Machine::new(fake::SECOND_STAGE);
    let domain = machine.paging();
    machine.driver.attach(&endpoint(0x20), &domain).unwrap();
    let mapped = machine.map(&domain, IOVA, Attributes::READ_WRITE);
    machine.fake.set_conduct(Conduct::DropWait);
    assert!(mapped.unmap().is_ok());
    assert_eq!((machine.fake.get(fake::FSTS), machine.driver.stats().queue_errors), (0, 1));
}

#[test]
fn a_failed_sync_empties_the_gather_and_frees_nothing() {
    let machine = Machine::new(fake::SECOND_STAGE);
    let domain = machine.paging();
    machine.driver.attach(&endpoint(0x20), &domain).unwrap();
    map_page(&domain, 0, 0x1000).unwrap();
    let in_use = machine.hal.frames_in_use();
    let mut gather = Gather::new();
    let range = IovaRange::new(Iova::new(0), 0x4000_0000).unwrap();
    portcullis_hal::host::unmap(&*domain, range, &mut gather).unwrap();
    assert!(gather.has_tables());
    machine.fake.set_conduct(Conduct::Refuse(2));
    assert!(matches!(domain.sync(&mut gather), Err(SyncError::Faulted)));
    assert!(!gather.has_tables() && gather.range().is_none());
    assert!(domain.sync(&mut gather).is_ok());
    assert_eq!(machine.hal.frames_in_use(), in_use);
}

#[test]
fn a_queue_that_is_full_makes_submitters_wait() {
    let hal = HostHal::new();
    let fake = FakeUnit::new(&hal, fake::SECOND_STAGE);
    let patient = Options { timeout_ns: 20_000_000_000, ..options() };
    let driver = Setup::new(hal.clone(), fake.clone(), patient).unwrap().enable().unwrap();
    let machine = Machine { hal, fake, driver };
    let domain = machine.paging();
    machine.driver.attach(&endpoint(0x20), &domain).unwrap();
    // Thirty pages that begin at an odd one take eight aligned blocks, and with the wait descriptor nine slots of the
    // 128: twenty threads fill the ring.
    let starts: Vec<u64> = (0..20).map(|n| n << 30 | 0x1000).collect();
    for &start in &starts {
        fixed(start, 0x1_0000_1000, 30 << 12).map_into(&*domain).unwrap();
        assert!(machine.fake.dma(0x20, start, true).is_ok());
    }
    machine.fake.set_conduct(Conduct::Dead);
    let tail = || machine.fake.state.lock().unwrap().get64(fake::IQT);
    // Fourteen batches find room; the others wait.
    let full = tail() + 14 * 9 * 32;
    std::thread::scope(|scope| {
        for &start in &starts {
            let domain = &domain;
            scope.spawn(move || assert_eq!(unmap(domain, start, 30 << 12), 30 << 12));
        }
        let started = Instant::now();
        while tail() < full && started.elapsed() < Duration::from_secs(10) {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(tail(), full);
        machine.fake.set_conduct(Conduct::Prompt);
        // A write of the tail sets the unit going, as the next submitter's would.
        portcullis_hal::Mmio::write64(&machine.fake, fake::IQT, tail());
    });
    assert!(starts.iter().all(|&start| machine.fake.dma(0x20, start, true).is_err()));
}

#[test]
fn each_refusal_reaches_one_submitter_and_dropped_waits_none_while_many_submit() {
    /// As many as the driver remembers: who is away while it forgets some is told that his own may be among them.
    const REFUSALS: usize = 16;
    const SUBMITTERS: u64 = 4;
    /// The type of a page-selective or domain-selective IOTLB invalidation.
    const IOTLB: u64 = 2;
    let hal = HostHal::new();
    let fake = FakeUnit::new(&hal, fake::SECOND_STAGE);
    // Only a hang reaches it.
    let patient = Options { timeout_ns: 600_000_000_000, ..options() };
    let driver = Setup::new(hal.clone(), fake.clone(), patient).unwrap().enable().unwrap();
    let machine = Machine { hal, fake, driver };
    let domains: Vec<_> = (0..SUBMITTERS).map(|_| machine.paging()).collect();
    for (sid, domain) in (0_u16..).zip(&domains) {
        machine.driver.attach(&endpoint(sid), domain).unwrap();
    }
    let (told, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let errors = machine.driver.stats().queue_errors;
    std::thread::scope(|scope| {
        for (sid, domain) in (0_u16..).zip(&domains) {
            let (machine, told, over) = (&machine, &told, &over);
            scope.spawn(move || {
                for page in 0.. {
                    let iova = IOVA + (page << 12);
                    map_page(domain, iova, 0x1000).unwrap();
                    assert_eq!(machine.fake.dma(sid, iova, true), Ok(0x1000));
                    let mut gather = Gather::new();
                    let range = IovaRange::new(Iova::new(iova), 0x1000).unwrap();
                    assert_eq!(portcullis_hal::host::unmap(&**domain, range, &mut gather), Ok(0x1000));
                    match domain.sync(&mut gather) {
                        Ok(_proof) => assert!(machine.fake.dma(sid, iova, true).is_err()),
                        Err(error) => {
                            assert_eq!(error, SyncError::Faulted);
                            told.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        for _ in 0..REFUSALS {
            for conduct in [Conduct::Refuse(IOTLB), Conduct::DropWait] {
                machine.fake.set_conduct(conduct);
                while *machine.fake.conduct.lock().unwrap() == conduct {
                    std::thread::yield_now();
                }
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(told.into_inner(), REFUSALS);
    // One stop may have been for both.
    let errors = machine.driver.stats().queue_errors - errors;
    assert!((REFUSALS as u64..=2 * REFUSALS as u64).contains(&errors), "{errors}");
    let domain = &domains[0];
    map_page(domain, 0x1000, 0x1000).unwrap();
    assert_eq!(unmap(domain, 0x1000, 0x1000), 0x1000);
}
