//! PASIDs, permissions and device TLBs, step by step on the model.

use crate::rig::{IOVA, Rig, SID, device, done, endpoint, fault, pasid, permissions, units, unmap};
use portcullis_hal::{
    Arc, Attributes, EndpointId, FrameOrder, Frames, Gather, Iova, IovaRange, Mapped, SyncError, host,
};
use portcullis_iommu::{
    AttachError, Domain, DomainSpec, Missing, Permissions, Requests, Stage, Transition, Unit,
};
use portcullis_model::core::{Mode, Outcome, Request};
use portcullis_model::device::Job;
use portcullis_model::vtd::Config;

#[test]
fn each_pasid_reaches_its_own_domain_and_the_others_are_not_touched_by_its_changes() {
    for config in units() {
        let rig = Rig::new(config);
        let (first, second) = (rig.domain(Stage::Stage1, 0x1_0000), rig.domain(Stage::Stage2, 0x2_0000));
        let plain = rig.domain(Stage::Stage1, 0x3_0000);
        let identity = rig.driver.new_domain(&DomainSpec::Identity(host::IDENTITY)).expect("a domain");
        rig.permit(SID, 20, Requests::empty());
        // Nothing is attached, so nothing is known of the device.
        assert_eq!(rig.reaches(SID, 5), fault(0x39));
        rig.driver.attach(&endpoint(SID), &plain).expect("an attachment");
        assert_eq!((rig.reaches(SID, 0), rig.reaches(SID, 5)), (done(0x3_0000), fault(0x59)));
        // PASIDs 5 and 63 have one table, 64 and 0xfffff others.
        assert_eq!(rig.reaches(SID, 0xf_ffff), fault(0x51));
        let all = [
            (5, &first, 0x1_0000),
            (63, &second, 0x2_0000),
            (64, &identity, IOVA),
            (0xf_ffff, &first, 0x1_0000),
        ];
        for (at, domain, _) in all {
            assert_eq!(rig.attach_pasid(SID, at, domain), Transition::Hitless);
        }
        for (at, _, phys) in all {
            assert_eq!(rig.reaches(SID, at), done(phys), "{at:#x}");
        }
        assert_eq!(rig.reaches(SID, 0), done(0x3_0000));
        unmap(&first);
        for (at, _, phys) in all {
            let expected = if phys == 0x1_0000 { fault(0x71) } else { done(phys) };
            assert_eq!(rig.reaches(SID, at), expected, "{at:#x}");
        }
        rig.driver.detach_pasid(&endpoint(SID), pasid(63)).expect("an answer");
        assert_eq!((rig.reaches(SID, 63), rig.reaches(SID, 64)), (fault(0x59), done(IOVA)));
        rig.driver.detach_pasid(&endpoint(SID), pasid(63)).expect("nothing to do");
        rig.driver.detach(&endpoint(SID)).expect("an answer");
        for at in [0, 5, 64] {
            assert_eq!(rig.reaches(SID, at), fault(0x41), "{at:#x}");
        }
        // The permissions stay.
        assert_eq!(rig.attach_pasid(SID, 64, &second), Transition::Hitless);
        assert_eq!((rig.reaches(SID, 64), rig.reaches(SID, 5)), (done(0x2_0000), fault(0x59)));
        rig.finish();
    }
}

#[test]
fn beside_pasids_requests_without_one_go_nowhere_until_they_are_attached() {
    for config in units() {
        let rig = Rig::new(config);
        let domains = [rig.domain(Stage::Stage1, 0x1_0000), rig.domain(Stage::Stage2, 0x2_0000)];
        let blocked = rig.driver.new_domain(&DomainSpec::Blocked).expect("a domain");
        rig.permit(SID, 8, Requests::empty());
        let at = rig.frames();
        for (tagged, phys) in domains.iter().zip([0x1_0000, 0x2_0000]) {
            rig.attach_pasid(SID, 9, tagged);
            // An empty table, and not an entry that is not present: some units refuse all PASIDs then.
            assert_eq!((rig.reaches(SID, 0), rig.reaches(SID, 9)), (fault(0x71), done(phys)));
            for (plain, phys) in domains.iter().zip([0x1_0000, 0x2_0000]) {
                assert_eq!(rig.driver.attach(&endpoint(SID), plain), Ok(Transition::Hitless));
                assert_eq!(rig.reaches(SID, 0), done(phys));
                rig.bench.host.hal().fail_after(0);
                assert_eq!(rig.driver.attach(&endpoint(SID), &blocked), Ok(Transition::Hitless));
                rig.bench.host.hal().fail_never();
                assert_eq!(rig.reaches(SID, 0), fault(0x71));
            }
            assert_eq!(rig.reaches(SID, 9), done(phys));
            rig.driver.detach_pasid(&endpoint(SID), pasid(9)).expect("an answer");
            // That was the last.
            assert_eq!((rig.reaches(SID, 0), rig.reaches(SID, 9)), (fault(0x41), fault(0x41)));
        }
        // The context table came with the first attachment.
        assert_eq!(rig.frames(), at + 1);
        rig.finish();
    }
}

#[test]
fn what_is_not_permitted_is_refused_and_what_is_in_use_is_not_withdrawn() {
    let rig = Rig::new(Config::full());
    let domain = rig.domain(Stage::Stage1, 0x1_0000);
    let attach = |at| rig.driver.attach_pasid(&endpoint(SID), pasid(at), &domain);
    assert_eq!(attach(1), Err(AttachError::UnknownPasid(pasid(1))));
    rig.permit(SID, 6, Requests::empty());
    assert_eq!(attach(64), Err(AttachError::UnknownPasid(pasid(64))));
    assert_eq!(attach(63), Ok(Transition::Hitless));
    let permit = |bits, requests| rig.driver.permit(&endpoint(SID), &permissions(bits, requests));
    for bits in [0, 5] {
        assert_eq!(permit(bits, Requests::empty()), Err(AttachError::PasidInUse(pasid(63))));
    }
    // Nothing stalls on this architecture.
    let missing = |missing| Err(AttachError::Incompatible { missing });
    assert_eq!(permit(21, Requests::PAGE | Requests::STALL), missing(Missing::PASID | Missing::STALL));
    assert_eq!(rig.reaches(SID, 63), done(0x1_0000));
    rig.driver.detach_pasid(&endpoint(SID), pasid(63)).expect("an answer");
    assert_eq!(permit(0, Requests::empty()), Ok(Transition::Hitless));
    rig.driver.attach(&endpoint(SID), &domain).expect("an attachment");
    assert_eq!((rig.reaches(SID, 0), rig.reaches(SID, 63)), (done(0x1_0000), fault(0x45)));
    rig.finish();

    let least = Rig::new(Config::least());
    let all = permissions(1, Requests::TRANSLATION | Requests::PAGE);
    let refused = least.driver.permit(&endpoint(SID), &all);
    assert_eq!(refused, missing(Missing::PASID | Missing::ATS | Missing::PRI));
}

#[test]
fn a_pasid_that_is_blocked_reaches_nothing_and_nobody_is_told() {
    for config in units() {
        let rig = Rig::new(config);
        let (one, other) = (rig.domain(Stage::Stage1, 0x1_0000), rig.domain(Stage::Stage1, 0x2_0000));
        let blocked = rig.driver.new_domain(&DomainSpec::Blocked).expect("a domain");
        let silent = vec![Outcome::Silent(0x59)];
        rig.permit(SID, 8, Requests::empty());
        for beside in [false, true] {
            rig.attach_pasid(SID, 5, &one);
            if beside {
                rig.attach_pasid(SID, 6, &other);
            }
            assert_eq!(rig.reaches(SID, 5), done(0x1_0000));
            let request = Request::write(u32::from(SID), IOVA).with_pasid(5);
            rig.bench.begin(3, &[request]);
            assert_eq!(rig.attach_pasid(SID, 5, &blocked), Transition::Hitless);
            for probe in rig.bench.end() {
                // At no moment a recorded fault.
                let known = [Outcome::Done(0x1_0000), Outcome::Silent(0x59)];
                assert!(probe.seen.iter().all(|seen| known.contains(seen)), "{:x?}", probe.seen);
            }
            assert_eq!(rig.reaches(SID, 5), silent);
            // Again, and others besides, and a PASID that was not attached: nothing changes.
            rig.attach_pasid(SID, 5, &blocked);
            rig.attach_pasid(SID, 7, &blocked);
            assert_eq!((rig.reaches(SID, 5), rig.reaches(SID, 7)), (silent.clone(), fault(0x59)));
            if beside {
                assert_eq!(rig.reaches(SID, 6), done(0x2_0000));
                rig.driver.detach_pasid(&endpoint(SID), pasid(6)).expect("an answer");
                assert_eq!((rig.reaches(SID, 5), rig.reaches(SID, 6)), (silent.clone(), fault(0x59)));
            }
            // The domain's id is free: nothing of the PASID's is cached under it.
            rig.attach_pasid(SID, 5, &other);
            assert_eq!(rig.reaches(SID, 5), done(0x2_0000));
            rig.attach_pasid(SID, 5, &blocked);
            rig.attach_pasid(SID, 6, &one);
            rig.driver.detach_pasid(&endpoint(SID), pasid(5)).expect("an answer");
            assert_eq!((rig.reaches(SID, 5), rig.reaches(SID, 6)), (fault(0x59), done(0x1_0000)));
            rig.attach_pasid(SID, 5, &one);
            rig.attach_pasid(SID, 5, &blocked);
            rig.driver.detach(&endpoint(SID)).expect("an answer");
            assert_eq!(rig.reaches(SID, 5), fault(0x41));
            rig.attach_pasid(SID, 6, &one);
            assert_eq!(rig.reaches(SID, 5), fault(0x59));
            rig.driver.detach_pasid(&endpoint(SID), pasid(6)).expect("an answer");
            assert_eq!(rig.reaches(SID, 6), fault(0x41));
        }
        rig.finish();
    }
}

#[test]
fn a_blocked_pasid_that_is_not_permitted_any_more_is_as_if_detached() {
    for config in units() {
        let rig = Rig::new(config);
        let domain = rig.domain(Stage::Stage1, 0x1_0000);
        let blocked = rig.driver.new_domain(&DomainSpec::Blocked).expect("a domain");
        let silent = vec![Outcome::Silent(0x59)];
        let bits = |bits| rig.permit(SID, bits, Requests::empty());
        for _ in 0..2 {
            bits(10);
            for at in [5, 9, 0x3ff] {
                rig.attach_pasid(SID, at, &domain);
                rig.attach_pasid(SID, at, &blocked);
                assert_eq!(rig.reaches(SID, at), silent);
            }
            // The directory is as large as before, and the unit knows of no width.
            bits(6);
            assert_eq!((rig.reaches(SID, 5), rig.reaches(SID, 0x3ff)), (silent.clone(), fault(0x59)));
            bits(10);
            assert_eq!((rig.reaches(SID, 5), rig.reaches(SID, 0x3ff)), (silent.clone(), fault(0x59)));
            // Beside what is attached.
            rig.attach_pasid(SID, 3, &domain);
            bits(3);
            assert_eq!((rig.reaches(SID, 3), rig.reaches(SID, 5)), (done(0x1_0000), silent.clone()));
            assert_eq!(rig.reaches(SID, 9), fault(0x59));
            bits(2);
            assert_eq!((rig.reaches(SID, 3), rig.reaches(SID, 5)), (done(0x1_0000), fault(0x59)));
            // The last of all.
            rig.attach_pasid(SID, 3, &blocked);
            bits(1);
            assert_eq!(rig.reaches(SID, 3), fault(0x41));
            bits(10);
            rig.attach_pasid(SID, 5, &domain);
            assert_eq!((rig.reaches(SID, 3), rig.reaches(SID, 5)), (fault(0x59), done(0x1_0000)));
            rig.driver.detach_pasid(&endpoint(SID), pasid(5)).expect("an answer");
            assert_eq!(rig.reaches(SID, 5), fault(0x41));
        }
        rig.finish();
    }
}

#[test]
fn a_directory_grows_under_devices_that_go_on() {
    for config in units() {
        let rig = Rig::new(config);
        let domain = rig.domain(Stage::Stage1, 0x1_0000);
        rig.permit(SID, 8, Requests::empty());
        rig.driver.attach(&endpoint(SID), &domain).expect("an attachment");
        rig.attach_pasid(SID, 255, &domain);
        let before = rig.frames();
        let request = Request::write(u32::from(SID), IOVA).with_pasid(255);
        for nth in 0..2 {
            rig.bench.host.hal().fail_after(nth);
            let grown = rig.driver.permit(&endpoint(SID), &permissions(20, Requests::empty()));
            rig.bench.host.hal().fail_never();
            match nth {
                // The directory, and nothing else.
                0 => assert!(matches!(grown, Err(AttachError::OutOfMemory(_))), "{grown:?}"),
                _ => assert_eq!(grown, Ok(Transition::Hitless)),
            }
            assert_eq!((rig.reaches(SID, 0), rig.reaches(SID, 255)), (done(0x1_0000), done(0x1_0000)));
        }
        // 32 frames instead of one.
        assert_eq!(rig.frames(), before + 31);
        rig.bench.begin(7, &[request]);
        rig.attach_pasid(SID, 0xf_ffff, &domain);
        rig.permit(SID, 20, Requests::TRANSLATION);
        for probe in rig.bench.end() {
            let seen: Vec<_> = probe.seen.into_iter().collect();
            assert!(seen.is_empty() || seen == done(0x1_0000), "{seen:x?}");
        }
        assert_eq!(rig.reaches(SID, 0xf_ffff), done(0x1_0000));
        rig.finish();
    }
}

/// How many allocations an operation makes, each of which fails once, on a rig of its own.
fn allocations(prepare: impl Fn(&Rig), operation: impl Fn(&Rig) -> Result<Transition, AttachError>) -> usize {
    for nth in 0.. {
        let rig = Rig::new(Config::full());
        prepare(&rig);
        rig.bench.host.hal().fail_after(nth);
        let result = operation(&rig);
        rig.bench.host.hal().fail_never();
        if result == Ok(Transition::Hitless) {
            return nth;
        }
        assert!(matches!(result, Err(AttachError::OutOfMemory(_))), "{result:?}");
        // With a context table or without.
        assert!([fault(0x39), fault(0x41)].contains(&rig.reaches(SID, 0)));
        // What was allocated stays, and is used the next time.
        assert_eq!(operation(&rig), Ok(Transition::Hitless));
        let frames = rig.frames();
        assert_eq!(operation(&rig), Ok(Transition::Hitless));
        assert_eq!(rig.frames(), frames);
        rig.finish();
    }
    0
}

#[test]
fn out_of_memory_at_any_allocation_changes_nothing() {
    let permit = |rig: &Rig| rig.driver.permit(&endpoint(SID), &permissions(8, Requests::TRANSLATION));
    let attach = |rig: &Rig| {
        let domain = rig.driver.new_domain(&DomainSpec::Identity(host::IDENTITY)).expect("a domain");
        rig.driver.attach_pasid(&endpoint(SID), pasid(64), &domain)
    };
    // The table that leads nowhere; a directory and its first table.
    assert_eq!(allocations(|_| {}, permit), 3);
    // A context table; the PASID's own table.
    let permitted = |rig: &Rig| assert_eq!(permit(rig), Ok(Transition::Hitless));
    assert_eq!(allocations(permitted, attach), 2);
    // What is taken away needs no memory.
    let attached = |rig: &Rig| {
        permitted(rig);
        assert_eq!(attach(rig), Ok(Transition::Hitless));
    };
    let detach = |rig: &Rig| rig.driver.detach_pasid(&endpoint(SID), pasid(64)).map(|()| Transition::Hitless);
    assert_eq!(allocations(attached, detach), 0);
    let withdraw = |rig: &Rig| rig.driver.permit(&endpoint(SID), &Permissions::NONE);
    assert_eq!(allocations(permitted, withdraw), 0);
}

#[test]
fn a_pasids_entries_are_described() {
    let rig = Rig::new(Config::full());
    let domain = rig.domain(Stage::Stage2, 0x1_0000);
    let text = |at| {
        let mut text = String::new();
        rig.driver.describe_pasid(EndpointId::new(u32::from(SID)), pasid(at), &mut text).expect("text");
        text
    };
    assert_eq!(text(64), "PASID directory: none, nothing was ever permitted to the endpoint\n");
    rig.permit(SID, 8, Requests::empty());
    rig.attach_pasid(SID, 64, &domain);
    let root = domain.info().root.expect("a table").root.get();
    assert!(text(64).contains(&format!("PASID entry: {:#018x}", root | 0x8d)), "{}", text(64));
    assert!(text(64).contains("domain: paging, id "), "{}", text(64));
    assert!(text(65).contains("domain: none"), "{}", text(65));
    rig.finish();
}

#[test]
fn first_stage_domains_share_ids_at_different_pasids_when_none_is_left() {
    // Sixteen ids: one is nobody's, one leads nowhere.
    let rig = Rig::new(Config::full().with_domain_ids(0));
    rig.permit(SID, 8, Requests::empty());
    let second: Vec<_> = (0..12).map(|n| rig.domain(Stage::Stage2, 0x10_0000 + n * 0x1000)).collect();
    for (at, domain) in (1..).zip(&second) {
        rig.attach_pasid(SID, at, domain);
    }
    let first: Vec<_> = (0..100).map(|n| rig.domain(Stage::Stage1, 0x20_0000 + n * 0x1000)).collect();
    for (at, domain) in (100..).zip(&first) {
        rig.attach_pasid(SID, at, domain);
    }
    for (n, at) in (100..200).enumerate() {
        assert_eq!(rig.reaches(SID, at), done(0x20_0000 + n as u64 * 0x1000), "{at}");
    }
    rig.bench.unit.unwatch_all();
    // Another device has no tag left where one is in use, but elsewhere.
    rig.permit(SID + 1, 8, Requests::empty());
    let refused = rig.driver.attach_pasid(&endpoint(SID + 1), pasid(1), &rig.domain(Stage::Stage2, 0x5000));
    assert_eq!(refused, Err(AttachError::NoFreeId));
    let other = rig.domain(Stage::Stage1, 0x6000);
    let free = (100..103).map(|at| rig.driver.attach_pasid(&endpoint(SID + 1), pasid(at), &other));
    let free: Vec<_> = free.collect();
    assert!(free.iter().any(Result::is_ok), "{free:?}");
    for (n, result) in free.iter().enumerate() {
        let at = 100 + n as u32;
        assert_eq!(rig.reaches(SID, at), done(0x20_0000 + n as u64 * 0x1000));
        if result.is_ok() {
            assert_eq!(rig.reaches(SID + 1, at), done(0x6000));
        }
    }
    rig.finish();
}

#[test]
fn between_domains_at_a_pasid_devices_go_on_where_hardware_can() {
    for config in units() {
        let rig = Rig::new(config);
        let first = [rig.domain(Stage::Stage1, 0x1_0000), rig.domain(Stage::Stage1, 0x2_0000)];
        let second = [rig.domain(Stage::Stage2, 0x3_0000), rig.domain(Stage::Stage2, 0x4_0000)];
        let phys = [0x1_0000, 0x2_0000, 0x3_0000, 0x4_0000];
        let all: Vec<_> = first.iter().chain(&second).collect();
        rig.permit(SID, 8, Requests::empty());
        let request = Request::write(u32::from(SID), IOVA).with_pasid(77);
        for from in 0..4 {
            for to in 0..4 {
                rig.attach_pasid(SID, 77, all[from]);
                assert_eq!(rig.reaches(SID, 77), done(phys[from]));
                rig.bench.begin(from as u64 * 4 + to as u64, &[request]);
                assert_eq!(rig.attach_pasid(SID, 77, all[to]), Transition::Hitless);
                for probe in rig.bench.end() {
                    let known = [Outcome::Done(phys[from]), Outcome::Done(phys[to])];
                    assert!(probe.seen.iter().all(|seen| known.contains(seen)), "{:x?}", probe.seen);
                }
                assert_eq!(rig.reaches(SID, 77), done(phys[to]));
            }
        }
        rig.finish();
    }
}

#[test]
fn what_a_device_has_cached_is_gone_after_unmap_replacement_and_detach() {
    for config in units() {
        let rig = Rig::new(config);
        let stages = [Stage::Stage1, Stage::Stage2];
        rig.permit(SID, 8, Requests::TRANSLATION);
        let device = device(&rig, SID, 8);
        let access = |at: u32| {
            let job = Job::write(IOVA);
            let job = if at == 0 { job } else { job.with_pasid(at) };
            (device.access(job, Mode::Any).output(), device.cached(job))
        };
        for at in [0, 7] {
            for stage in stages {
                let (one, two) = (rig.domain(stage, 0x1_0000), rig.domain(stage, 0x2_0000));
                let attach = |domain| match at {
                    0 => rig.driver.attach(&endpoint(SID), domain).expect("an attachment"),
                    at => rig.attach_pasid(SID, at, domain),
                };
                attach(&one);
                assert_eq!(access(at), (Some(0x1_0000), vec![0x1_0000]));
                attach(&two);
                assert_eq!(access(at), (Some(0x2_0000), vec![0x2_0000]), "{stage} at {at}");
                unmap(&two);
                assert_eq!(access(at), (None, vec![]), "{stage} at {at}");
                attach(&one);
                assert_eq!(access(at), (Some(0x1_0000), vec![0x1_0000]));
                match at {
                    0 => rig.driver.detach(&endpoint(SID)).expect("an answer"),
                    at => rig.driver.detach_pasid(&endpoint(SID), pasid(at)).expect("an answer"),
                }
                assert_eq!(access(at), (None, vec![]), "{stage} at {at}");
            }
        }
        assert_eq!(device.take_violations(), []);
        rig.finish();
    }
}

#[test]
fn a_device_that_may_not_ask_any_more_has_nothing_left() {
    for config in units() {
        let rig = Rig::new(config);
        let domain = rig.domain(Stage::Stage1, 0x1_0000);
        rig.permit(SID, 8, Requests::empty());
        rig.driver.attach(&endpoint(SID), &domain).expect("an attachment");
        rig.attach_pasid(SID, 3, &domain);
        // Asked while attached; both PASIDs of the domain are known to cache it then.
        rig.permit(SID, 8, Requests::TRANSLATION);
        let device = device(&rig, SID, 8);
        let jobs = [Job::write(IOVA), Job::write(IOVA).with_pasid(3)];
        for round in 0..2 {
            for job in jobs {
                assert_eq!(device.access(job, Mode::Any).output(), Some(0x1_0000));
            }
            assert_eq!(device.atc_len(), 2);
            if round == 0 {
                unmap(&domain);
                assert_eq!(device.atc_len(), 0);
                rig.driver.detach(&endpoint(SID)).expect("an answer");
                let domain = rig.domain(Stage::Stage1, 0x1_0000);
                rig.driver.attach(&endpoint(SID), &domain).expect("an attachment");
                rig.attach_pasid(SID, 3, &domain);
            }
        }
        // A device that asks on until the unit refuses it.
        rig.permit(SID, 8, Requests::empty());
        assert_eq!(device.atc_len(), 0);
        for job in jobs {
            assert_eq!(device.access(job, Mode::Any).output(), None);
        }
        let before = rig.driver.stats().invalidations;
        unmap_nothing(&domain);
        assert_eq!(rig.driver.stats().invalidations, before);
        rig.finish();
    }
}

/// Syncs an empty gather.
fn unmap_nothing(domain: &Arc<dyn Domain>) {
    let _proof = domain.sync(&mut Gather::new()).expect("nothing to wait for");
}

#[test]
fn a_device_that_does_not_answer_costs_its_memory_and_nothing_else() {
    let rig = Rig::new(Config::full());
    let (one, two) = (rig.domain(Stage::Stage1, 0x1_0000), rig.domain(Stage::Stage1, 0x2_0000));
    for sid in [SID, SID + 1] {
        rig.permit(sid, 0, Requests::TRANSLATION);
    }
    rig.driver.attach(&endpoint(SID), &one).expect("an attachment");
    rig.driver.attach(&endpoint(SID + 1), &two).expect("an attachment");
    let (silent, _answers) = (device(&rig, SID, 0), device(&rig, SID + 1, 0));
    assert_eq!(silent.access(Job::write(IOVA), Mode::Any).output(), Some(0x1_0000));
    rig.bench.schedule.odds(portcullis_model::device::points::INVALIDATION_LOST, 1, 1);
    rig.bench.schedule.odds(portcullis_model::vtd::points::DEVICE_TIME_OUT, 1, 4);
    let mut gather = Gather::new();
    let range = IovaRange::new(Iova::new(IOVA), 0x1000).expect("a range");
    assert_eq!(host::unmap(&*one, range, &mut gather), Ok(0x1000));
    assert!(one.sync(&mut gather).is_err(), "the device has not said that it forgot the page");
    assert_eq!(silent.cached(Job::write(IOVA)), [0x1_0000]);
    rig.bench.schedule.calm();
    unmap(&two);
    assert!(rig.driver.stats().queue_errors > 0);
    rig.finish();
}

#[test]
fn a_domain_that_nobody_uses_any_more_needs_no_unit() {
    for config in units() {
        let rig = Rig::new(config);
        let (left, other) = (rig.domain(Stage::Stage1, 0x1_0000), rig.domain(Stage::Stage1, 0x2_0000));
        rig.permit(SID, 0, Requests::TRANSLATION);
        rig.driver.attach(&endpoint(SID), &left).expect("an attachment");
        let device = device(&rig, SID, 0);
        assert_eq!(device.access(Job::write(IOVA), Mode::Any).output(), Some(0x1_0000));
        rig.driver.detach(&endpoint(SID)).expect("an answer");
        let before = rig.driver.stats();
        unmap(&left);
        assert_eq!(rig.driver.stats(), before, "nothing is asked of the unit");

        rig.driver.attach(&endpoint(SID + 1), &other).expect("an attachment");
        let memory = Frames::zeroed(&rig.bench.host, FrameOrder::SINGLE).expect("memory");
        let mapped = Mapped::map(&left, Iova::new(IOVA), memory, Attributes::READ_WRITE).expect("room");
        rig.bench.schedule.odds(portcullis_model::vtd::points::QUEUE_PAUSE, 1, 1);
        let mut gather = Gather::new();
        let range = IovaRange::new(Iova::new(IOVA), 0x1000).expect("a range");
        assert_eq!(host::unmap(&*other, range, &mut gather), Ok(0x1000));
        let error = other.sync(&mut gather).map(drop);
        assert!(matches!(error, Err(SyncError::Timeout(_))), "{error:?}");
        assert!(mapped.unmap().is_ok(), "the unit that is out of order knows nothing of it");
        rig.finish();
    }
}
