//! The start-up order, with and without what firmware may leave behind.

mod common;

use common::fake::{self, Conduct, FakeUnit};
use common::{Machine, endpoint, fixed, options};
use portcullis_hal::host::HostHal;
use portcullis_hal::{EndpointId, FrameOrder, Frames, MsiMessage, PhysAddr};
use portcullis_iommu::{Backend, Stages, Unit, UnitEvent, WalkCoherency};
use portcullis_vtd::{InitError, InterruptError, Setup};
use std::time::{Duration, Instant};

/// The writes of GCMD and of the registers around it, in order.
fn trace(fake: &FakeUnit) -> Vec<(usize, u64)> {
    let shown = [fake::GCMD, fake::RTADDR, fake::IQA, fake::IQT, fake::FECTL, fake::PMEN];
    let state = fake.state.lock().unwrap();
    let of_interest = state.writes.iter().filter(|write| shown.contains(&write.0));
    of_interest.map(|write| (write.0, write.2)).collect()
}

fn root(fake: &FakeUnit) -> u64 {
    fake.written(fake::RTADDR)[0]
}

#[test]
fn a_unit_that_was_off_is_started_in_the_documented_order() {
    let machine = Machine::new(fake::FIRST_STAGE);
    let queue = machine.fake.written(fake::IQA)[0];
    assert_eq!(queue & 0xfff, 0x800, "256-bit descriptors, one frame");
    assert_eq!(root(&machine.fake) & 0xfff, 0x400, "scalable mode");
    let (qie, srtp, te) = (u64::from(fake::QIE), u64::from(fake::SRTP), u64::from(fake::TE));
    assert_eq!(
        trace(&machine.fake),
        [
            (fake::FECTL, 1 << 31),
            (fake::IQT, 0),
            (fake::IQA, queue),
            (fake::GCMD, qie),
            // A wait, which proves that the queue works.
            (fake::IQT, 32),
            (fake::RTADDR, root(&machine.fake)),
            (fake::GCMD, qie | srtp),
            (fake::GCMD, qie | te),
        ]
    );
}

#[test]
fn without_esrtps_everything_is_invalidated_before_translation_goes_on() {
    let (cap, ecap) = fake::SECOND_STAGE;
    let machine = Machine::new((cap & !(1 << 63), ecap));
    let queue = machine.fake.written(fake::IQA)[0] & !0xfff;
    let kinds: Vec<u64> = (0..7).map(|slot| machine.fake.read_memory(queue + slot * 32) & 0xf3f).collect();
    let wait = 0x25;
    assert_eq!(kinds, [wait, 0x11, wait, 0x37, wait, 0x12, wait], "a first wait, then cache after cache");
    let order: Vec<usize> = trace(&machine.fake).iter().map(|write| write.0).collect();
    let tail = order.iter().rposition(|&register| register == fake::IQT);
    assert!(tail > order.iter().position(|&register| register == fake::RTADDR));
    assert!(tail < order.iter().rposition(|&register| register == fake::GCMD));
}

#[test]
fn protected_memory_is_turned_off_last() {
    let (cap, ecap) = fake::FIRST_STAGE;
    let hal = HostHal::new();
    let fake = FakeUnit::new(&hal, (cap | 1 << 5 | 1 << 6, ecap));
    fake.set(fake::PMEN, 1 << 31 | 1);
    let machine = Machine::with(hal, fake);
    assert_eq!(trace(&machine.fake).last(), Some(&(fake::PMEN, 1)));
    assert_eq!(machine.fake.get(fake::PMEN), 0);
}

#[test]
fn interrupt_remapping_stays_as_firmware_set_it() {
    let hal = HostHal::new();
    let fake = FakeUnit::new(&hal, fake::FIRST_STAGE);
    fake.set(fake::GSTS, fake::IRE);
    let machine = Machine::with(hal, fake);
    let commands = machine.fake.written(fake::GCMD);
    assert!(commands.iter().all(|command| command & u64::from(fake::IRE) != 0), "{commands:x?}");
    assert_eq!(machine.fake.get(fake::GSTS), fake::TE | fake::SRTP | fake::QIE | fake::IRE);
}

#[test]
fn a_scalable_root_of_firmware_is_replaced_without_a_gap_and_one_of_another_mode_with_the_shortest() {
    let te = u64::from(fake::TE);
    for (mode, off) in [(0x400, 0), (0x000, 1)] {
        let hal = HostHal::new();
        let fake = FakeUnit::new(&hal, fake::SECOND_STAGE);
        fake.set(fake::GSTS, fake::TE | fake::SRTP);
        fake.set(fake::RTADDR, mode);
        let machine = Machine::with(hal, fake);
        let commands = machine.fake.written(fake::GCMD);
        assert_eq!(commands.iter().filter(|command| **command & te == 0).count(), off + off, "{commands:x?}");
        assert!(machine.fake.dma(8, 0x1000, true).is_err());
    }
}

#[test]
fn a_queue_of_firmware_is_disabled_when_it_is_idle_and_not_before() {
    let hal = HostHal::new();
    let fake = FakeUnit::new(&hal, fake::SECOND_STAGE);
    fake.set(fake::GSTS, fake::QIE);
    fake.set(fake::IQT, 0x40);
    fake.set(fake::IQH, 0x40);
    let machine = Machine::with(hal, fake);
    let commands = machine.fake.written(fake::GCMD);
    assert_eq!(commands[..2], [0, u64::from(fake::QIE)]);
}

#[test]
fn a_queue_of_firmware_that_never_gets_idle_is_disabled_after_a_while() {
    let hal = HostHal::new();
    let fake = FakeUnit::new(&hal, fake::SECOND_STAGE);
    fake.set(fake::GSTS, fake::QIE);
    fake.set(fake::IQT, 0x40);
    let started = Instant::now();
    let machine = Machine::with(hal, fake);
    assert!(started.elapsed() >= Duration::from_nanos(options().timeout_ns));
    assert_eq!(machine.fake.written(fake::GCMD)[..2], [0, u64::from(fake::QIE)]);
}

#[test]
fn a_queue_of_firmware_that_stands_at_an_error_is_disabled_and_does_nothing_any_more() {
    for error in [0x10, 0x40] {
        for restarts_at_tail in [true, false] {
            let hal = HostHal::new();
            let old = Frames::zeroed(&hal, FrameOrder::SINGLE).unwrap();
            let mut fake = FakeUnit::new(&hal, fake::SECOND_STAGE);
            fake.restarts_at_tail = restarts_at_tail;
            fake.set(fake::GSTS, fake::QIE);
            fake.set(fake::FSTS, error);
            // Slot 2 of 128 holds no descriptor of any known type.
            fake.state.lock().unwrap().set64(fake::IQA, old.phys().get() | 1 << 11);
            fake.set(fake::IQH, 0x40);
            fake.set(fake::IQT, 0xa0);
            let machine = Machine::with(hal, fake);
            assert_eq!(machine.fake.get(fake::FSTS), 0);
            assert_eq!(machine.fake.written(fake::IQT)[..2], [0x40, 0], "what was in it is dropped");
            assert_eq!(machine.fake.written(fake::GCMD)[..2], [0, u64::from(fake::QIE)]);
        }
    }
}

#[test]
fn units_that_lack_what_is_needed_are_refused_and_not_touched() {
    let (cap, ecap) = fake::FIRST_STAGE;
    let cases = [
        ((cap, ecap & !(1 << 43)), InitError::NoScalableMode(ecap & !(1 << 43))),
        ((cap, ecap & !2), InitError::NoQueuedInvalidation(ecap & !2)),
        ((cap, ecap & !(1 << 47)), InitError::NoTranslation { cap, ecap: ecap & !(1 << 47) }),
    ];
    for (registers, error) in cases {
        let hal = HostHal::new();
        let fake = FakeUnit::new(&hal, registers);
        assert_eq!(Setup::new(hal.clone(), fake.clone(), options()).err(), Some(error));
        assert!(fake.state.lock().unwrap().writes.is_empty());
        assert_eq!(hal.allocations(), 0);
    }
    let hal = HostHal::new();
    let fake = FakeUnit::new(&hal, fake::FIRST_STAGE);
    fake.set(fake::VER, u32::MAX);
    assert_eq!(Setup::new(hal.clone(), fake, options()).err(), Some(InitError::NoUnit(u32::MAX)));
}

#[test]
fn out_of_memory_at_any_allocation_of_the_start_up_leaks_nothing() {
    let mut failures = 0;
    loop {
        let hal = HostHal::new();
        let fake = FakeUnit::new(&hal, fake::SECOND_STAGE);
        hal.fail_after(failures);
        match Setup::new(hal.clone(), fake.clone(), options()) {
            Ok(_) => break,
            Err(error) => assert!(matches!(error, InitError::OutOfMemory(_))),
        }
        assert_eq!(hal.frames_in_use(), 0);
        assert!(fake.state.lock().unwrap().writes.is_empty());
        failures += 1;
    }
    assert_eq!(failures, 3, "root table, queue, status word");
}

#[test]
fn memory_beyond_the_units_addresses_is_no_memory_for_its_tables_and_queue() {
    // The root table, the queue, and the queue's status word.
    for reachable in 0..3 {
        let hal = HostHal::new();
        let fake = FakeUnit::new(&hal, fake::FIRST_STAGE);
        // Frames are handed out one after the other.
        let last = PhysAddr::new((1 << 48) - 0x1000 * reachable);
        hal.skip_to(last);
        let result = Setup::new(hal.clone(), fake.clone(), options());
        assert_eq!(result.err(), Some(InitError::Unreachable(PhysAddr::new(1 << 48))), "{reachable}");
        assert_eq!(hal.frames_in_use(), 0);
        assert_eq!(fake.accesses().1, 0);
    }
}

#[test]
fn a_unit_that_does_not_answer_is_reported_by_register() {
    let (cap, ecap) = fake::SECOND_STAGE;
    let hal = HostHal::new();
    let fake = FakeUnit::new(&hal, (cap & !(1 << 63), ecap));
    let setup = Setup::new(hal.clone(), fake.clone(), options()).unwrap();
    fake.set_conduct(Conduct::Dead);
    let error = setup.enable().err();
    assert!(
        matches!(error, Some(InitError::Timeout(timeout)) if timeout.register == "invalidation status word"),
        "{error:?}"
    );
    assert_eq!(fake.get(fake::GSTS) & fake::TE, 0);
}

#[test]
fn a_device_with_reserved_memory_keeps_it_when_translation_goes_on() {
    for registers in [fake::FIRST_STAGE, fake::SECOND_STAGE] {
        let hal = HostHal::new();
        let fake = FakeUnit::new(&hal, registers);
        let setup = Setup::new(hal.clone(), fake.clone(), options()).unwrap();
        let regions = [fixed(0x7f00_0000, 0x7f00_0000, 0x20_0000), fixed(0x8000_0000, 0x8000_0000, 0x3000)];
        setup.reserve_direct(&endpoint(0x00b8), &regions).unwrap();
        let refused = setup.reserve_direct(&[EndpointId::new(0x1_0000)], &regions);
        assert!(refused.is_err());
        let driver = setup.enable().unwrap();
        for iova in [0x7f00_0000, 0x7f1f_ffff, 0x8000_2fff] {
            assert_eq!(fake.dma(0x00b8, iova, true), Ok(iova));
        }
        assert!(fake.dma(0x00b8, 0x8000_3000, true).is_err());
        assert!(fake.dma(0x00b0, 0x8000_0000, false).is_err());
        assert_eq!(driver.stats().attaches, 1);
    }
}

#[test]
fn faults_from_before_the_start_up_are_not_reported() {
    let hal = HostHal::new();
    let fake = FakeUnit::new(&hal, fake::FIRST_STAGE);
    fake.state.lock().unwrap().record(1, 0x1000, 0x2_0000_0008);
    fake.state.lock().unwrap().record(1, 0x1000, 0x2_0000_0010);
    let machine = Machine::with(hal, fake);
    assert_eq!(machine.events(), []);
}

#[test]
fn the_fault_event_is_unmasked_only_with_a_message_that_the_registers_hold() {
    let machine = Machine::new(fake::FIRST_STAGE);
    assert_eq!(machine.fake.dma(8, 0x5000, true), Err(0x01));
    assert_eq!(machine.fake.state.lock().unwrap().events, 0);
    let wide = MsiMessage { address: PhysAddr::new(0x1_fee0_0000), data: 0x31 };
    let refused = InterruptError::Message { register: "FEUADDR_REG", wanted: 1, found: 0 };
    assert_eq!(machine.driver.enable_interrupts(wide), Err(refused));
    assert_ne!(machine.fake.get(fake::FECTL) & 1 << 31, 0);

    let message = MsiMessage { address: PhysAddr::new(0xfee0_1000), data: 0x31 };
    machine.driver.enable_interrupts(message).unwrap();
    assert_eq!((machine.fake.get(0x3c), machine.fake.get(0x40)), (0x31, 0xfee0_1000));
    assert_eq!(machine.fake.state.lock().unwrap().events, 1, "the fault that was pending");
    assert!(matches!(machine.events()[..], [UnitEvent::Fault(_)]));
    assert_eq!(machine.fake.dma(8, 0x5000, true), Err(0x01));
    assert_eq!(machine.fake.state.lock().unwrap().events, 2);
}

#[test]
fn capabilities_are_those_of_the_registers() {
    let first = Machine::new(fake::FIRST_STAGE);
    let info = first.driver.info();
    assert_eq!((info.backend, info.stages, info.identity), (Backend::VtdScalable, Stages::STAGE_1, true));
    assert_eq!((info.input_bits, info.output_bits, info.pasid_bits), (47, 48, 20));
    assert_eq!(info.page_sizes, 1 << 12 | 1 << 21 | 1 << 30);
    assert_eq!(
        (info.entry_coherency, info.table_coherency),
        (WalkCoherency::NotSnooped, WalkCoherency::NotSnooped)
    );
    let second = Machine::new(fake::SECOND_STAGE);
    assert_eq!((second.driver.info().stages, second.driver.info().input_bits), (Stages::STAGE_2, 48));
}
