//! A device that refuses, lies, is late or silent.
mod support;

use portcullis_hal::{Gather, MapError, PAGE_SIZE, SyncError};
use portcullis_iommu::{AttachError, DomainSpec, FaultReason, Unit, UnitEvent};
use portcullis_virtio_iommu::spec::{DeviceStatus, Features};
use portcullis_virtio_iommu::{InitError, MsixVector, NotTaken, Options, Setup, Vectors};
use support::*;

fn setup_error(fake: &Fake) -> InitError {
    let setup = Setup::new(fake.hal.clone(), fake.clone(), options());
    let error = setup.and_then(Setup::enable).err().expect("this device cannot be used");
    assert_eq!(fake.hal.frames_in_use(), 0);
    error
}

#[test]
fn a_senseless_configuration_is_an_error_that_names_the_field() {
    let field = |offset, bytes: &[u8]| {
        let fake = Fake::new();
        fake.set_config(offset, bytes);
        match setup_error(&fake) {
            InitError::Configuration { field, .. } => field,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(field(0, &[0; 8]), "page_size_mask");
    assert_eq!(field(8, &[0xff; 8]), "input_range.end", "starts behind its end");
    assert_eq!(field(16, &0xffe_u64.to_le_bytes()), "input_range.end", "less than a page");
    assert_eq!(field(0, &(1_u64 << 63).to_le_bytes()), "input_range.end", "pages of half the world");
    assert_eq!(field(24, &[9, 0, 0, 0, 8, 0, 0, 0]), "domain_range.end", "starts behind its end");
    assert_eq!(field(24, &[9, 0, 0, 0, 10, 0, 0, 0]), "domain_range.end", "no number for a paging domain");
    assert_eq!(field(24, &[0xff; 8]), "domain_range.end", "at the end of all numbers");
}

#[test]
fn odd_but_possible_configurations_are_used_as_they_are() {
    // A range that does not start at a page, and pages of 64 KiB.
    let fake = Fake::new();
    fake.set_config(0, &0xffff_ffff_ffff_0000_u64.to_le_bytes());
    fake.set_config(8, &0x1_2345_u64.to_le_bytes());
    fake.set_config(16, &0x5_2345_u64.to_le_bytes());
    let unit = up(&fake);
    let domain = paging(&unit);
    assert_eq!(domain.aperture(), range(0x2_0000, 0x3_0000));
    assert!(matches!(map(&domain, &[piece(0x2_1000, 0, 0x1_0000)]), Err(MapError::Misaligned { .. })));
    map(&domain, &[piece(0x2_0000, 0x10_0000, 0x3_0000)]).unwrap();
    // All 64 bits of address, and all numbers of domains.
    let fake = Fake::new();
    fake.state().offered &= !0b11;
    fake.set_config(8, &[0; 24]);
    let unit = up(&fake);
    let domain = paging(&unit);
    assert_eq!((unit.info().input_bits, domain.aperture().last().get()), (64, u64::MAX));
    unit.attach(&[endpoint(1)], &domain).unwrap();
    map(&domain, &[piece(u64::MAX - 0xfff, 0x1000, PAGE_SIZE)]).unwrap();
    assert_eq!(fake.dma(1, u64::MAX, true), Some(0x1fff));
}

#[test]
fn a_device_that_cannot_be_driven_is_refused() {
    let fake = Fake::new();
    fake.state().offered &= !(1 << 2);
    assert!(matches!(setup_error(&fake), InitError::Lacks { missing: Features::MAP_UNMAP, .. }));
    let fake = Fake::new();
    fake.state().offered &= !(1 << 32);
    assert!(matches!(setup_error(&fake), InitError::Lacks { missing: Features::VERSION_1, .. }));
    assert_eq!(fake.state().status & 0x80, 0x80, "the device is told that the driver gave up");
    let fake = Fake::new();
    fake.state().ignores_bypass = true;
    assert_eq!(setup_error(&fake), InitError::Bypass(1));
    let fake = Fake::new();
    fake.state().unstable = true;
    assert_eq!(setup_error(&fake), InitError::Unstable);
    let fake = Fake::new();
    fake.state().stuck_status = 0x40;
    assert!(matches!(setup_error(&fake), InitError::Timeout(late) if late.register == "device_status"));
    for sizes in [[0, 64], [3, 64], [256, 0]] {
        let fake = Fake::new();
        fake.state().queue_sizes = sizes;
        assert!(matches!(setup_error(&fake), InitError::Queue { .. }), "{sizes:?}");
    }
    let fake = Fake::new();
    let none = Options { request_queue: 0, ..options() };
    let setup = Setup::new(fake.hal.clone(), fake.clone(), none).unwrap();
    assert_eq!(setup.enable().err(), Some(InitError::Queue { queue: 0, size: 0 }));
}

#[test]
fn a_device_that_was_claimed_and_does_not_get_running_is_told_so_and_denies_all_dma() {
    let given_up = |fake: &Fake| {
        let status = fake.state().status;
        (status & 0x80, fake.dma(1, 0x1000, true))
    };
    let fake = Fake::new();
    drop(Setup::new(fake.hal.clone(), fake.clone(), options()).unwrap());
    assert_eq!(given_up(&fake), (0x80, None));
    for sizes in [[2, 64], [256, 0]] {
        let fake = Fake::new();
        fake.state().queue_sizes = sizes;
        setup_error(&fake);
        assert_eq!(given_up(&fake), (0x80, None), "{sizes:?}");
    }
}

#[test]
fn what_a_predecessor_left_open_is_cut_off_before_the_unit_can_be_used() {
    let cut_off = |fake: &Fake, endpoints: &[u32]| {
        fake.state().lingering = [7, 9].into();
        let mut setup = Setup::new(fake.hal.clone(), fake.clone(), options()).unwrap();
        setup.cut_off(&endpoints.iter().map(|id| endpoint(*id)).collect::<Vec<_>>()).unwrap();
        setup.enable()
    };
    let fake = Fake::new();
    let unit = cut_off(&fake, &[7, 0x100, 8]).unwrap();
    let attach = |endpoint| Req::Attach { domain: 5, endpoint, flags: 0 };
    let detach = |endpoint| Req::Detach { domain: 5, endpoint };
    assert_eq!(fake.take_requests(), [attach(7), detach(7), attach(0x100), attach(8), detach(8)]);
    assert_eq!((fake.dma(7, 0x1000, true), fake.dma(9, 0x1000, true)), (None, Some(0x1000)));
    let events = events(&unit);
    let [UnitEvent::Fault(fault)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(fault.reason, FaultReason::Unattached, "it is not blocked, but not attached");
    drop(unit);
    for refused in [attach(8), detach(8)] {
        let fake = Fake::new();
        fake.script(move |req| if *req == refused { Answer::Status(INVAL) } else { Answer::Right });
        let error = InitError::NotCutOff { endpoint: endpoint(8), error: AttachError::Refused };
        assert_eq!(cut_off(&fake, &[7, 8]).err(), Some(error));
        assert_eq!(fake.hal.frames_in_use(), 0);
    }
}

#[test]
fn blocking_by_a_device_that_lies_about_its_ring_is_not_confirmed() {
    let fake = Fake::new();
    let unit = up(&fake);
    let domain = paging(&unit);
    let blocked = unit.new_domain(&DomainSpec::Blocked).unwrap();
    unit.attach(&[endpoint(1)], &domain).unwrap();
    fake.script(|_| Answer::Jump(0x4000));
    for _ in 0..2 {
        assert_eq!(unit.attach(&[endpoint(1)], &blocked), Err(AttachError::Lost));
        assert_eq!(unit.detach(&[endpoint(1)]), Err(AttachError::Lost));
    }
}

#[test]
fn every_queue_size_works() {
    for log2 in 2..=15 {
        let fake = Fake::new();
        fake.state().queue_sizes = [1 << log2, 1 << (15 - log2)];
        let most = Options { request_queue: u16::MAX, event_queue: u16::MAX, ..options() };
        let unit = Setup::new(fake.hal.clone(), fake.clone(), most).unwrap().enable().unwrap();
        let domain = paging(&unit);
        unit.attach(&[endpoint(1)], &domain).unwrap();
        for round in 0..40 {
            map(&domain, &[piece(0x1000, 0x1000, 0x1000), piece(0x2000, 0x9000, 0x1000)]).unwrap();
            assert_eq!(fake.dma(1, 0x2000, true), Some(0x9000));
            assert_eq!(unmap(&domain, 0x1000, 0x2000), Ok(Ok(0x2000)));
            assert_eq!(fake.dma(1, 0x1000, true), None);
            assert_eq!(events(&unit).len(), 1, "{log2} {round}");
        }
    }
}

/// Lets the map of `bad` be answered with `answer` and everything else by the rules.
fn spoil(fake: &Fake, bad: u64, answer: Answer) {
    fake.script(move |req| match req {
        Req::Map { first, .. } if *first == bad => answer,
        _ => Answer::Right,
    });
}

#[test]
fn a_map_that_the_device_refuses_is_undone_whole() {
    for (status, error) in [
        (NOMEM, MapError::OutOfMemory(portcullis_hal::OutOfMemory)),
        (RANGE, MapError::OutOfRange { iova: portcullis_hal::Iova::new(0x1000) }),
        (INVAL, MapError::Attributes),
    ] {
        let (fake, _unit, domain) = attached();
        spoil(&fake, 0x3000, Answer::Status(status));
        let list =
            [piece(0x1000, 0x1000, 0x1000), piece(0x3000, 0x1000, 0x1000), piece(0x5000, 0x1000, 0x1000)];
        assert_eq!(map(&domain, &list), Err(error));
        assert!(fake.state().domains[&7].mappings.is_empty());
        assert_eq!(domain.iova_to_phys(list[0].iova), None);
        fake.script(|_| Answer::Right);
        map(&domain, &list).unwrap();
    }
}

#[test]
fn an_answer_that_says_nothing_leaves_the_mapping_to_be_unmapped() {
    for answer in [Answer::Length(0), Answer::Length(3), Answer::Status(0xff), Answer::Status(3)] {
        let (fake, _unit, domain) = attached();
        spoil(&fake, 0x1000, answer);
        let result = map(&domain, &[piece(0x1000, 0x1000, 0x1000)]);
        assert_eq!(result, Err(MapError::Sync(SyncError::Faulted)), "{answer:?}");
        assert!(domain.iova_to_phys(portcullis_hal::Iova::new(0x1000)).is_some());
        assert_eq!(unmap(&domain, 0x1000, 0x1000), Ok(Ok(0x1000)));
        assert_eq!(fake.dma(1, 0x1000, true), None);
    }
}

#[test]
fn an_unmap_that_failed_gives_no_proof_then_or_later() {
    for answer in [Answer::Status(RANGE), Answer::Status(NOENT), Answer::Length(0)] {
        let (fake, unit, domain) = attached();
        map(&domain, &[piece(0x1000, 0x1000, 0x2000), piece(0x3000, 0x1000, 0x1000)]).unwrap();
        fake.script(move |req| if matches!(req, Req::Unmap { .. }) { answer } else { Answer::Right });
        assert_eq!(unmap(&domain, 0x1000, 0x2000), Ok(Err(SyncError::Faulted)));
        fake.script(|_| Answer::Right);
        assert_eq!(unmap(&domain, 0x3000, 0x1000), Ok(Err(SyncError::Faulted)));
        // Another domain of the unit goes on.
        let other = paging(&unit);
        unit.attach(&[endpoint(2)], &other).unwrap();
        map(&other, &[piece(0x1000, 0x1000, 0x1000)]).unwrap();
        assert_eq!(unmap(&other, 0x1000, 0x1000), Ok(Ok(0x1000)));
    }
}

#[test]
fn a_failed_replay_leaves_no_half_of_the_mappings() {
    let fake = Fake::new();
    let unit = up(&fake);
    let old = paging(&unit);
    let new = paging(&unit);
    map(&old, &[piece(0x1000, 0x8000_0000, 0x1000)]).unwrap();
    map(&new, &[piece(0x1000, 0x9000_0000, 0x1000), piece(0x7000, 0x9000_0000, 0x1000)]).unwrap();
    spoil(&fake, 0x7000, Answer::Status(NOMEM));
    // From nothing: nothing is reached, and the fault says why.
    let refused = Err(AttachError::OutOfMemory(portcullis_hal::OutOfMemory));
    fake.take_requests();
    assert_eq!(unit.attach(&[endpoint(1)], &new).map(drop), refused);
    // The request after the refused one takes the endpoint away from what is there.
    let requests = fake.take_requests();
    let bad = requests.iter().position(|req| matches!(req, Req::Map { first: 0x7000, .. })).unwrap();
    assert_eq!(requests[bad + 1], Req::Attach { domain: 5, endpoint: 1, flags: 0 });
    assert_eq!((fake.dma(1, 0x1000, true), fake.dma(1, 0x7000, true)), (None, None));
    // From another domain: that one works as before.
    unit.attach(&[endpoint(1)], &old).unwrap();
    assert_eq!(unit.attach(&[endpoint(1)], &new).map(drop), refused);
    assert_eq!((fake.dma(1, 0x1000, true), fake.dma(1, 0x7000, true)), (Some(0x8000_0000), None));
    // And if the way back fails as well, the device stays blocked.
    fake.script(|req| match req {
        Req::Map { .. } => Answer::Status(NOMEM),
        _ => Answer::Right,
    });
    assert_eq!(unit.attach(&[endpoint(1)], &new).map(drop), Err(AttachError::Lost));
    assert_eq!((fake.dma(1, 0x1000, true), fake.dma(1, 0x7000, true)), (None, None));
    assert_eq!(fake.state().endpoints[&1], 5, "in the empty domain");
    fake.script(|_| Answer::Right);
    unit.attach(&[endpoint(1)], &new).unwrap();
    assert_eq!(fake.dma(1, 0x7000, true), Some(0x9000_0000));
}

#[test]
fn a_device_that_wants_a_detach_first_gets_one() {
    let fake = Fake::new();
    let unit = up(&fake);
    let old = paging(&unit);
    let new = paging(&unit);
    map(&new, &[piece(0x1000, 0x9000_0000, 0x1000)]).unwrap();
    unit.attach(&[endpoint(1)], &old).unwrap();
    let mut attached = true;
    fake.script(move |req| match req {
        Req::Attach { .. } if attached => Answer::Status(UNSUPP),
        Req::Detach { .. } => {
            attached = false;
            Answer::Right
        }
        _ => Answer::Right,
    });
    fake.take_requests();
    unit.attach(&[endpoint(1)], &new).unwrap();
    assert_eq!(fake.dma(1, 0x1000, true), Some(0x9000_0000));
    assert!(fake.take_requests().contains(&Req::Detach { domain: 7, endpoint: 1 }));
}

#[test]
fn a_detach_that_is_refused_ends_in_the_empty_domain() {
    let fake = Fake::new();
    let unit = up(&fake);
    let domain = paging(&unit);
    map(&domain, &[piece(0x1000, 0x9000_0000, 0x1000)]).unwrap();
    unit.attach(&[endpoint(1)], &domain).unwrap();
    fake.script(|req| match req {
        Req::Detach { .. } => Answer::Status(INVAL),
        _ => Answer::Right,
    });
    assert_eq!(unit.detach(&[endpoint(1)]), Ok(()));
    assert_eq!((fake.dma(1, 0x1000, true), fake.state().endpoints[&1]), (None, 5));
}

#[test]
fn a_silent_device_is_given_up_and_can_still_be_told_to_block() {
    let fake = Fake::new();
    let unit = up(&fake);
    let domain = paging(&unit);
    let blocked = unit.new_domain(&DomainSpec::Blocked).unwrap();
    unit.attach(&[endpoint(1)], &domain).unwrap();
    map(&domain, &[piece(0x1000, 0x1000, 0x2000)]).unwrap();
    fake.script(|_| Answer::Never);
    let mut gather = Gather::new();
    assert_eq!(portcullis_hal::host::unmap(&*domain, range(0x1000, 0x2000), &mut gather), Ok(0x2000));
    assert!(matches!(domain.sync(&mut gather), Err(SyncError::Timeout(_))));
    assert_eq!(map(&domain, &[piece(0x8000, 0x1000, 0x1000)]), Err(MapError::Sync(SyncError::Faulted)));
    assert_eq!(unit.attach(&[endpoint(2)], &domain), Err(AttachError::Faulted));
    assert!(matches!(unit.attach(&[endpoint(1)], &blocked), Err(AttachError::Timeout(_))));
    // It comes to its senses: blocking works, and nothing else.
    fake.script(|_| Answer::Right);
    unit.attach(&[endpoint(1)], &blocked).unwrap();
    assert_eq!(fake.dma(1, 0x1000, true), None);
    assert_eq!(unit.detach(&[endpoint(1)]), Ok(()));
    assert_eq!(unit.attach(&[endpoint(1)], &domain), Err(AttachError::Faulted));
}

#[test]
fn an_attachment_without_an_answer_is_blocked_and_its_memory_never_reused() {
    let fake = Fake::new();
    let unit = up(&fake);
    let domain = paging(&unit);
    map(&domain, &[piece(0x1000, 0x1000, 0x1000)]).unwrap();
    fake.script(|req| match req {
        Req::Attach { domain: 7, .. } => Answer::Held,
        _ => Answer::Right,
    });
    assert!(matches!(unit.attach(&[endpoint(1)], &domain), Err(AttachError::Timeout(_))));
    assert_eq!(fake.state().endpoints[&1], 5, "the last request says blocked");
    // The device performs the old request after all: no proof may be given for what is unmapped.
    fake.release();
    assert_eq!(unmap(&domain, 0x1000, 0x1000), Ok(Err(SyncError::Faulted)));
}

#[test]
fn one_slot_is_left_for_blocking_when_all_others_are_stuck() {
    let fake = Fake::new();
    fake.state().queue_sizes = [8, 8];
    let unit = up(&fake);
    let domain = paging(&unit);
    let blocked = unit.new_domain(&DomainSpec::Blocked).unwrap();
    unit.attach(&[endpoint(1)], &domain).unwrap();
    let list: Vec<_> = (0..8).map(|i| piece(0x1000 + i * 0x2000, 0x1000, 0x1000)).collect();
    map(&domain, &list).unwrap();
    fake.script(|req| if matches!(req, Req::Unmap { .. }) { Answer::Never } else { Answer::Right });
    let mut gather = Gather::new();
    let unmapped: Vec<_> = list
        .iter()
        .map(|mapping| portcullis_hal::host::unmap(&*domain, range(mapping.iova.get(), 0x1000), &mut gather))
        .collect();
    assert_eq!(unmapped[..3], [Ok(0x1000); 3], "three slots for everybody");
    assert_eq!(unmapped[3..], [Ok(0); 5], "what was not asked for is not counted");
    assert_eq!(domain.sync(&mut gather).map(drop), Err(SyncError::Faulted));
    unit.attach(&[endpoint(1)], &blocked).unwrap();
    assert_eq!(fake.dma(1, 0x1000, true), None);
}

#[test]
fn a_map_waits_for_an_unmap_of_the_same_addresses_that_the_device_sits_on() {
    let fake = Fake::new();
    let patient = Options { timeout_ns: 10_000_000_000, ..options() };
    let unit = Setup::new(fake.hal.clone(), fake.clone(), patient).unwrap().enable().unwrap();
    let domain = paging(&unit);
    unit.attach(&[endpoint(1)], &domain).unwrap();
    map(&domain, &[piece(0x1000, 0x1000, 0x4000)]).unwrap();
    fake.script(|req| if matches!(req, Req::Unmap { .. }) { Answer::Held } else { Answer::Right });
    let mut gather = Gather::new();
    assert_eq!(portcullis_hal::host::unmap(&*domain, range(0x1000, 0x4000), &mut gather), Ok(0x4000));
    fake.take_requests();
    std::thread::scope(|scope| {
        let mapper = scope.spawn(|| map(&domain, &[piece(0x4000, 0x9000, 0x2000)]));
        // The waiting map sends the unmap; only when that is with the device does the test go on.
        while fake.state().requests.is_empty() {
            std::thread::yield_now();
        }
        // An unrelated map overtakes.
        map(&domain, &[piece(0x10_0000, 0x1000, 0x1000)]).unwrap();
        let maps = |req: &Req| matches!(req, Req::Map { first: 0x4000, .. });
        assert!(!fake.state().requests.iter().any(maps) && !mapper.is_finished());
        fake.release();
        assert_eq!(mapper.join().unwrap(), Ok(()));
    });
    assert!(domain.sync(&mut gather).is_ok());
    assert_eq!((fake.dma(1, 0x1000, true), fake.dma(1, 0x5fff, true)), (None, Some(0xafff)));
}

#[test]
fn lies_about_the_used_ring_end_in_an_error() {
    for (answer, waits) in [
        (Answer::Chain(2), true),
        (Answer::Chain(1), true),
        (Answer::Chain(u32::MAX), true),
        (Answer::Jump(2), false),
        (Answer::Jump(0x8000), false),
        (Answer::Jump(0xffff), false),
    ] {
        let (fake, unit, domain) = attached();
        // The chain that is used now is not chain 2: the first slot is taken again once it is free.
        spoil(&fake, 0x1000, answer);
        let result = map(&domain, &[piece(0x1000, 0x1000, 0x1000)]);
        match result {
            Err(MapError::Sync(SyncError::Timeout(_))) => assert!(waits, "{answer:?}"),
            Err(MapError::Sync(SyncError::Faulted)) => assert!(!waits, "{answer:?}"),
            other => panic!("{answer:?}: {other:?}"),
        }
        assert_eq!(unit.stats().queue_errors, 1, "{answer:?}");
        drop((unit, domain));
        assert_eq!(fake.hal.frames_in_use(), 0);
    }
}

#[test]
fn wrong_events_are_counted_and_their_buffers_given_back() {
    let fake = Fake::new();
    fake.state().queue_sizes = [16, 4];
    let unit = up(&fake);
    for _ in 0..20 {
        for len in [0, 1, 23, 25] {
            assert!(fake.event(&vec![0xff; len]), "a buffer is there");
        }
        assert!(events(&unit).is_empty());
    }
    assert_eq!(unit.malformed_events(), 80);
    // Reserved bits and unknown reasons are events all the same.
    fake.event(&[0xff; 24]);
    assert!(matches!(events(&unit)[..], [UnitEvent::Fault(_)]));
    fake.stray_event(4);
    fake.stray_event(u32::MAX);
    assert!(events(&unit).is_empty());
    assert_eq!(unit.malformed_events(), 82);
}

#[test]
fn an_event_ring_that_lies_and_a_device_that_fails_are_reported_once() {
    let fake = Fake::new();
    fake.state().queue_sizes = [16, 4];
    let unit = up(&fake);
    for index in 0..6 {
        fake.stray_event(index);
    }
    let error = |value| UnitEvent::UnitError { name: "DEVICE_NEEDS_RESET", value };
    assert_eq!(events(&unit), [error(0xf)]);
    assert_eq!(events(&unit), []);
    let fake = Fake::new();
    let unit = up(&fake);
    fake.state().stuck_status = DeviceStatus::NEEDS_RESET.bits();
    assert_eq!(events(&unit), [error(0x4f)]);
    assert_eq!(unit.attach(&[endpoint(1)], &paging(&unit)), Err(AttachError::Faulted));
}

#[test]
fn a_device_that_does_not_reset_keeps_the_memory_it_may_write() {
    let fake = Fake::new();
    let unit = up(&fake);
    let frames = fake.hal.frames_in_use();
    assert!(frames > 0);
    fake.state().stuck_status = 0x40;
    drop(unit);
    assert_eq!(fake.hal.frames_in_use(), frames);
    let fake = Fake::new();
    drop(up(&fake));
    assert_eq!((fake.hal.frames_in_use(), fake.state().status), (0, 0));
}

#[test]
fn vectors_go_to_the_device_or_its_refusal_comes_back() {
    let fake = Fake::new();
    let unit = up(&fake);
    let vectors = Vectors { config: None, events: Some(MsixVector(3)) };
    unit.enable_interrupts(&vectors).unwrap();
    assert_eq!(fake.state().vectors, vectors);
    fake.state().no_vectors = true;
    assert!(matches!(unit.enable_interrupts(&vectors), Err(NotTaken { found: 0xffff, .. })));
}
