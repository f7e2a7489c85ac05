//! PASIDs and translation requests, step by step: what is reachable after each step, whatever the unit has cached.

use crate::board::{Allowed, Kernel, Probe};
use crate::ram::lock;
use crate::setups::Unit;
use crate::space::Driver;
use portcullis_hal::host::IDENTITY;
use portcullis_hal::{
    Arc, Attributes, EndpointId, FrameOrder, Frames, Iova, Mapped, OutOfMemory, Pasid, Quarantined,
};
use portcullis_iommu::{
    AttachError, Domain, DomainSpec, Missing, PagingSpec, Permissions, Requests, Stage, Transition, Unit as _,
};
use portcullis_model::core::{AddressKind, Mode, Outcome, Prng, Request};
use portcullis_model::device::{self, Device, Job};
use portcullis_model::smmuv3::{self, Config, code};
use std::collections::BTreeSet;

pub(crate) const SID: u32 = 0x10;
pub(crate) const OTHER: u32 = 0x11;
pub(crate) const ADDRESS: u64 = 0x1234_5000;

pub(crate) const fn endpoint(sid: u32) -> [EndpointId; 1] {
    [EndpointId::new(sid)]
}

pub(crate) fn pasid(value: u32) -> Pasid {
    Pasid::new(value).unwrap()
}

pub(crate) fn permissions(pasid_bits: u8, requests: Requests) -> Permissions {
    Permissions { pasid_bits, requests }
}

pub(crate) struct Bench {
    pub(crate) kernel: Kernel,
    pub(crate) unit: Unit,
    pub(crate) driver: Driver,
}

impl Bench {
    pub(crate) fn new(config: Config) -> Self {
        let kernel = Kernel::new(config.coherent);
        let unit = Unit::with(config, 0, &kernel, &mut Prng::new(7));
        Self::start(kernel, unit)
    }

    /// A bench whose unit has a command queue of `2^log2` slots.
    pub(crate) fn with_commands(config: Config, log2: u8) -> Self {
        let kernel = Kernel::new(config.coherent);
        let mut unit = Unit::with(config, 0, &kernel, &mut Prng::new(7));
        unit.options.command_queue_log2 = log2;
        Self::start(kernel, unit)
    }

    /// A bench whose unit has a queue for `2^log2` page requests.
    pub(crate) fn with_page_requests(config: Config, log2: u8) -> Self {
        let kernel = Kernel::new(config.coherent);
        let mut unit = Unit::with(config, 0, &kernel, &mut Prng::new(7));
        unit.options.page_request_queue_log2 = log2;
        Self::start(kernel, unit)
    }

    fn start(kernel: Kernel, mut unit: Unit) -> Self {
        unit.schedule.calm();
        *lock(&kernel.0.units) = vec![unit.model.clone()];
        unit.start(&kernel, &[], 0).unwrap();
        let driver = unit.driver.clone().unwrap();
        Self { kernel, unit, driver }
    }

    pub(crate) fn domain(&self, stage: Stage) -> Arc<dyn Domain> {
        let spec = PagingSpec { stage: Some(stage), ..PagingSpec::default() };
        self.driver.new_domain(&DomainSpec::Paging(spec)).unwrap()
    }

    /// A domain with a page.
    pub(crate) fn mapped(&self, stage: Stage) -> (Arc<dyn Domain>, Mapped<Frames<Kernel>, dyn Domain>) {
        let domain = self.domain(stage);
        let page = self.map(&domain);
        (domain, page)
    }

    /// Maps a page in a domain.
    pub(crate) fn map(&self, domain: &Arc<dyn Domain>) -> Mapped<Frames<Kernel>, dyn Domain> {
        let page = Frames::zeroed(&self.kernel, FrameOrder::for_bytes(1 << 16).unwrap()).unwrap();
        Mapped::map(domain, Iova::new(ADDRESS & !0xffff), page, Attributes::READ_WRITE).unwrap()
    }

    /// All that may become of a read of the page, by what the unit has cached at any time.
    pub(crate) fn outcomes(&self, sid: u32, pasid: Option<u32>) -> Vec<Outcome> {
        let request = Request { pasid, ..Request::read(sid, ADDRESS) };
        let outcomes = self.unit.model.reachable(request);
        // It is in all caches from now on.
        self.unit.model.watch(request);
        self.unit.model.observe();
        outcomes.into_iter().collect()
    }

    pub(crate) fn device(&self, sid: u32) -> std::sync::Arc<Device> {
        let device = Device::new(sid, self.unit.model.clone(), self.unit.schedule.clone(), true);
        device.set_pasid(Some(20));
        device.set_ats(true);
        let device = std::sync::Arc::new(device);
        lock(&self.kernel.0.devices).push(device.clone());
        device
    }

    /// All that may become of a read through the device's cache.
    pub(crate) fn through(&self, device: &Device, pasid: Option<u32>) -> BTreeSet<Outcome> {
        device.reachable(job(pasid), |request| self.unit.model.reachable(request))
    }

    /// The device caches what it can, and uses it.
    pub(crate) fn use_all(&self, device: &Device, pasid: Option<u32>) -> Option<u64> {
        device.prefetch(job(pasid), Mode::Hostile);
        device.access(job(pasid), Mode::Hostile).output()
    }

    pub(crate) fn check(&self) {
        assert_eq!(self.unit.model.take_violations(), []);
        assert_eq!(self.kernel.0.take_wrong(), Vec::<String>::new());
    }
}

pub(crate) fn job(pasid: Option<u32>) -> Job {
    Job { pasid, ..Job::read(ADDRESS) }
}

pub(crate) fn at(page: &Mapped<Frames<Kernel>, dyn Domain>) -> Outcome {
    Outcome::Done(page.memory().phys().get() + (ADDRESS & 0xffff))
}

pub(crate) fn fault(code: u8) -> Vec<Outcome> {
    vec![Outcome::Fault(code)]
}

/// Units with one-level and two-level tables of context descriptors, snooping and not.
pub(crate) fn units() -> Vec<Config> {
    let full = Config { oas: 44, ..Config::full() };
    vec![
        full.clone(),
        Config { cd2l: false, ssid_bits: 8, ..full.clone() },
        Config { coherent: false, ..full.clone() },
        Config { coherent: false, asid16: false, ssid_bits: 12, ..full },
    ]
}

#[test]
fn pasids_work_beside_nothing_blocked_identity_and_a_domain_and_leave_them_as_they_are() {
    for config in units() {
        for bits in [1, 6, 8, 11, 20] {
            if bits > config.ssid_bits {
                continue;
            }
            let bench = Bench::new(config.clone());
            let (own, own_page) = bench.mapped(Stage::Stage1);
            let (first, first_page) = bench.mapped(Stage::Stage1);
            let (second, second_page) = bench.mapped(Stage::Stage1);
            let driver = &bench.driver;
            let blocked = driver.new_domain(&DomainSpec::Blocked).unwrap();
            let identity = driver.new_domain(&DomainSpec::Identity(IDENTITY)).unwrap();
            let plain = |bench: &Bench| bench.outcomes(SID, None);
            let last = (1 << bits) - 1;
            driver.permit(&endpoint(SID), &permissions(bits, Requests::empty())).unwrap();
            let disabled = || fault(code::F_STREAM_DISABLED);
            let steps = [
                (None, disabled()),
                (Some(&blocked), disabled()),
                (Some(&identity), vec![Outcome::Done(ADDRESS)]),
                (Some(&own), vec![at(&own_page)]),
            ];
            for (domain, expected) in steps {
                if let Some(domain) = domain {
                    assert_eq!(driver.attach(&endpoint(SID), domain), Ok(Transition::Hitless));
                    assert_eq!(plain(&bench), expected);
                }
                let attach = |domain| driver.attach_pasid(&endpoint(SID), pasid(last), domain);
                assert_eq!(attach(&first), Ok(Transition::Hitless));
                assert_eq!(bench.outcomes(SID, Some(last)), [at(&first_page)]);
                assert_eq!(plain(&bench), expected);
                attach(&second).unwrap();
                assert_eq!(bench.outcomes(SID, Some(last)), [at(&second_page)]);
                assert_eq!(plain(&bench), expected);
                if last > 1 {
                    assert_eq!(bench.outcomes(SID, Some(1)), fault(code::C_BAD_CD));
                }
                if bits < 20 {
                    assert_eq!(bench.outcomes(SID, Some(1 << bits)), fault(code::C_BAD_SUBSTREAMID));
                }
                driver.detach_pasid(&endpoint(SID), pasid(last)).unwrap();
                let gone = if domain.is_none() { code::C_BAD_STE } else { code::C_BAD_CD };
                assert_eq!(bench.outcomes(SID, Some(last)), fault(gone));
                if domain.is_some() {
                    assert_eq!(plain(&bench), expected);
                }
                bench.check();
            }
            // Everything goes with the device.
            driver.attach_pasid(&endpoint(SID), pasid(1), &first).unwrap();
            driver.detach(&endpoint(SID)).unwrap();
            assert_eq!(bench.outcomes(SID, Some(1)), fault(code::C_BAD_STE));
            driver.attach(&endpoint(SID), &own).unwrap();
            assert_eq!(bench.outcomes(SID, Some(1)), fault(code::C_BAD_CD));
            assert_eq!(plain(&bench), [at(&own_page)]);
            bench.check();
        }
    }
}

#[test]
fn permissions_change_under_what_is_attached_without_a_gap() {
    for config in units() {
        let bench = Bench::new(config.clone());
        let (own, own_page) = bench.mapped(Stage::Stage1);
        let (other, other_page) = bench.mapped(Stage::Stage1);
        let driver = &bench.driver;
        driver.attach(&endpoint(SID), &own).unwrap();
        let permit = |bits| driver.permit(&endpoint(SID), &permissions(bits, Requests::empty()));
        let in_use = bench.kernel.0.host.frames_in_use();
        for bits in [4, 8, 5] {
            assert_eq!(permit(bits), Ok(Transition::Hitless));
            assert_eq!(bench.outcomes(SID, None), [at(&own_page)]);
            driver.attach_pasid(&endpoint(SID), pasid(9), &other).unwrap();
            assert_eq!(permit(3), Err(AttachError::PasidInUse(pasid(9))));
        }
        let most = config.ssid_bits;
        assert_eq!(permit(most), Ok(Transition::Hitless), "a larger table, with what was in the smaller one");
        assert_eq!(bench.outcomes(SID, Some(9)), [at(&other_page)]);
        assert_eq!(bench.outcomes(SID, None), [at(&own_page)]);
        let refused = Err(AttachError::Incompatible { missing: Missing::PASID });
        assert_eq!(permit(most + 1), refused);
        let beyond = pasid((1 << most) - 1);
        driver.detach_pasid(&endpoint(SID), pasid(9)).unwrap();
        let allocations = bench.kernel.0.host.allocations();
        assert_eq!(permit(0), Ok(Transition::Hitless));
        assert_eq!(bench.kernel.0.host.allocations(), allocations);
        assert_eq!(bench.outcomes(SID, None), [at(&own_page)]);
        assert_eq!(bench.outcomes(SID, Some(9)), fault(code::C_BAD_SUBSTREAMID));
        let refused = driver.attach_pasid(&endpoint(SID), beyond, &other);
        assert_eq!(refused, Err(AttachError::UnknownPasid(beyond)));
        assert_eq!(bench.kernel.0.host.frames_in_use(), in_use);
        bench.check();
    }
}

#[test]
fn what_the_architecture_does_not_have_is_refused_by_name_and_changes_nothing() {
    let bench = Bench::new(Config::full());
    let driver = &bench.driver;
    let (stage_2, page) = bench.mapped(Stage::Stage2);
    let identity = driver.new_domain(&DomainSpec::Identity(IDENTITY)).unwrap();
    let refused = |missing| Err(AttachError::Incompatible { missing });
    let permit = |bits, requests| driver.permit(&endpoint(SID), &permissions(bits, requests));
    driver.attach(&endpoint(SID), &stage_2).unwrap();
    assert_eq!(permit(4, Requests::empty()), refused(Missing::PASID));
    assert_eq!(permit(0, Requests::STALL), refused(Missing::STALL));
    assert_eq!(bench.outcomes(SID, None), [at(&page)]);
    assert_eq!(permit(0, Requests::TRANSLATION), Ok(Transition::Hitless));
    assert_eq!(driver.attach(&endpoint(SID), &identity), refused(Missing::ATS));
    assert_eq!(permit(0, Requests::empty()), Ok(Transition::Hitless));
    driver.attach(&endpoint(SID), &identity).unwrap();
    assert_eq!(permit(0, Requests::TRANSLATION), refused(Missing::ATS));
    assert_eq!(permit(4, Requests::TRANSLATION), Ok(Transition::Hitless));
    assert_eq!(bench.outcomes(SID, None), [Outcome::Done(ADDRESS)]);
    assert_eq!(driver.attach(&endpoint(SID), &stage_2), refused(Missing::PASID));
    let attach = |domain| driver.attach_pasid(&endpoint(SID), pasid(3), domain);
    assert_eq!(attach(&stage_2), refused(Missing::PASID));
    assert_eq!(attach(&identity), refused(Missing::IDENTITY));
    assert_eq!(bench.outcomes(SID, None), [Outcome::Done(ADDRESS)]);
    let without = Bench::new(Config { ats: false, pri: false, ssid_bits: 0, cd2l: false, ..Config::full() });
    let all = Requests::TRANSLATION | Requests::PAGE;
    let result = without.driver.permit(&endpoint(SID), &permissions(1, all));
    assert_eq!(result, refused(Missing::PASID | Missing::ATS | Missing::PRI));
    bench.check();
}

#[test]
fn one_domain_serves_streams_and_pasids_and_is_unmapped_from_all_of_them() {
    for config in units() {
        let bench = Bench::new(config);
        let driver = &bench.driver;
        let (shared, page) = bench.mapped(Stage::Stage1);
        for sid in [SID, OTHER] {
            driver.permit(&endpoint(sid), &permissions(8, Requests::empty())).unwrap();
        }
        driver.attach(&endpoint(SID), &shared).unwrap();
        driver.attach_pasid(&[EndpointId::new(SID), EndpointId::new(OTHER)], pasid(200), &shared).unwrap();
        driver.attach_pasid(&endpoint(SID), pasid(3), &shared).unwrap();
        let users = [(SID, None), (SID, Some(200)), (SID, Some(3)), (OTHER, Some(200))];
        for (sid, pasid) in users {
            assert_eq!(bench.outcomes(sid, pasid), [at(&page)]);
        }
        driver.detach_pasid(&endpoint(SID), pasid(3)).unwrap();
        assert_eq!(bench.outcomes(SID, Some(3)), fault(code::C_BAD_CD));
        assert_eq!(bench.outcomes(SID, None), [at(&page)]);
        drop(page.unmap().unwrap());
        for (sid, pasid) in [users[0], users[1], users[3]] {
            assert_eq!(bench.outcomes(sid, pasid), fault(code::F_TRANSLATION));
        }
        bench.check();
    }
}

#[test]
fn what_a_device_has_cached_is_gone_after_unmap_replace_detach_and_withdrawal() {
    let bench = Bench::new(Config { oas: 44, ..Config::full() });
    let driver = &bench.driver;
    let all = permissions(8, Requests::TRANSLATION);
    let device = bench.device(SID);
    let (own, own_page) = bench.mapped(Stage::Stage1);
    driver.attach(&endpoint(SID), &own).unwrap();
    assert_eq!(bench.use_all(&device, None), None, "translation requests were not permitted");
    assert_eq!(driver.permit(&endpoint(SID), &all), Ok(Transition::Hitless));
    let (under, under_page) = bench.mapped(Stage::Stage1);
    driver.attach_pasid(&endpoint(SID), pasid(77), &under).unwrap();
    let expect = |pasid, page: &Mapped<_, _>| {
        assert_eq!(bench.use_all(&device, pasid), at(page).output());
        assert_eq!(bench.through(&device, pasid), BTreeSet::from([at(page)]));
    };
    expect(None, &own_page);
    expect(Some(77), &under_page);
    // Unmapped.
    drop(own_page.unmap().unwrap());
    drop(under_page.unmap().unwrap());
    for pasid in [None, Some(77)] {
        assert_eq!(bench.through(&device, pasid), BTreeSet::from([Outcome::NotGranted]));
    }
    // Replaced.
    let (first, first_page) = bench.mapped(Stage::Stage1);
    let (second, second_page) = bench.mapped(Stage::Stage1);
    for (domain, page) in [(&first, &first_page), (&second, &second_page), (&first, &first_page)] {
        driver.attach(&endpoint(SID), domain).unwrap();
        driver.attach_pasid(&endpoint(SID), pasid(77), domain).unwrap();
        expect(None, page);
        expect(Some(77), page);
    }
    // Detached.
    driver.detach_pasid(&endpoint(SID), pasid(77)).unwrap();
    let outcomes = bench.through(&device, Some(77));
    assert!(outcomes.iter().all(|outcome| outcome.output().is_none()), "{outcomes:?}");
    expect(None, &first_page);
    driver.detach(&endpoint(SID)).unwrap();
    let outcomes = bench.through(&device, None);
    assert!(outcomes.iter().all(|outcome| outcome.output().is_none()), "{outcomes:?}");
    // Attached again: what was cached before is forgotten first.
    driver.attach(&endpoint(SID), &second).unwrap();
    expect(None, &second_page);
    // Withdrawn.
    assert_eq!(driver.permit(&endpoint(SID), &Permissions::NONE), Ok(Transition::Hitless));
    assert_eq!((device.atc_len(), bench.use_all(&device, None)), (0, None));
    let translated = Request::read(SID, 0x7777_7000).with_kind(AddressKind::Translated);
    assert_eq!(bench.unit.model.expected(translated), Outcome::Fault(code::F_TRANSL_FORBIDDEN));
    bench.check();
}

#[test]
fn a_device_that_refills_its_cache_all_the_time_keeps_nothing_that_was_unmapped() {
    let bench = Bench::new(Config { oas: 44, ..Config::full() });
    let driver = &bench.driver;
    let device = bench.device(SID);
    let users = [None, Some(5)];
    driver.permit(&endpoint(SID), &permissions(8, Requests::TRANSLATION)).unwrap();
    let (domain, page) = bench.mapped(Stage::Stage1);
    drop(page.unmap().unwrap());
    driver.attach(&endpoint(SID), &domain).unwrap();
    driver.attach_pasid(&endpoint(SID), pasid(5), &domain).unwrap();
    *lock(&bench.kernel.0.wishes) = users.map(job).to_vec();
    for round in 0..64 {
        let page = Frames::zeroed(&bench.kernel, FrameOrder::for_bytes(1 << 16).unwrap()).unwrap();
        let start = Iova::new(ADDRESS & !0xffff);
        let page = Mapped::map(&domain, start, page, Attributes::READ_WRITE).unwrap();
        users.iter().for_each(|&pasid| assert_eq!(bench.use_all(&device, pasid), at(&page).output()));
        drop(page.unmap().unwrap());
        for pasid in users {
            assert_eq!(device.cached(job(pasid)), [0; 0], "round {round}");
        }
    }
    bench.check();
}

#[test]
fn a_unit_and_the_devices_that_cache_are_told_by_one_doorbell() {
    // Room for all commands at once.
    let bench = Bench::with_commands(Config { oas: 44, ..Config::full() }, 6);
    let driver = &bench.driver;
    let device = bench.device(SID);
    driver.permit(&endpoint(SID), &permissions(8, Requests::TRANSLATION)).unwrap();
    let (domain, mut page) = bench.mapped(Stage::Stage1);
    for number in [5, 6] {
        driver.attach_pasid(&endpoint(SID), pasid(number), &domain).unwrap();
    }
    for round in 0..3 {
        for number in [5, 6] {
            assert_eq!(bench.use_all(&device, Some(number)), at(&page).output());
        }
        let before = driver.stats();
        drop(page.unmap().unwrap());
        let now = driver.stats();
        assert_eq!(now.doorbells - before.doorbells, 1, "round {round}");
        // One for the unit and one for each PASID; the devices are told behind a sync.
        let counts = (now.invalidations - before.invalidations, now.syncs - before.syncs);
        assert_eq!(counts, (3, 2), "round {round}");
        assert_eq!(device.atc_len(), 0, "round {round}");
        page = bench.map(&domain);
    }
    bench.check();
}

#[test]
fn a_device_that_does_not_answer_is_cut_off_alone_and_what_it_held_is_quarantined_or_unreachable() {
    let bench = Bench::new(Config { oas: 44, ..Config::full() });
    let driver = &bench.driver;
    let device = bench.device(SID);
    let (own, own_page) = bench.mapped(Stage::Stage1);
    let (next, next_page) = bench.mapped(Stage::Stage1);
    driver.permit(&endpoint(SID), &permissions(0, Requests::TRANSLATION)).unwrap();
    driver.attach(&endpoint(SID), &own).unwrap();
    driver.attach(&endpoint(OTHER), &own).unwrap();
    assert_eq!(bench.use_all(&device, None), at(&own_page).output());
    bench.unit.schedule.odds(device::points::INVALIDATION_LOST, 1, 1);
    bench.unit.schedule.odds(smmuv3::points::ATC_TIMEOUT, 1, 1);
    let error = driver.attach(&endpoint(SID), &next).unwrap_err();
    assert!(matches!(error, AttachError::Timeout(_)), "{error:?}");
    let outcomes = bench.through(&device, None);
    assert!(outcomes.iter().all(|outcome| outcome.output().is_none()), "{outcomes:?}");
    assert_eq!(bench.outcomes(OTHER, None), [at(&own_page)], "the unit works");
    // It cannot be attached as long as it does not answer.
    assert!(matches!(driver.attach(&endpoint(SID), &next), Err(AttachError::Timeout(_))));
    bench.unit.schedule.calm();
    driver.attach(&endpoint(SID), &next).unwrap();
    assert_eq!(bench.through(&device, None), BTreeSet::from([at(&next_page)]));
    // An unmap that the device does not confirm keeps the memory.
    bench.use_all(&device, None);
    bench.unit.schedule.odds(device::points::INVALIDATION_LOST, 1, 1);
    bench.unit.schedule.odds(smmuv3::points::ATC_TIMEOUT, 1, 1);
    let Err(Quarantined { .. }) = next_page.unmap() else { panic!("the device still reaches it") };
    bench.check();
}

#[test]
fn without_memory_nothing_is_permitted_or_attached_and_nothing_is_kept() {
    for config in units() {
        let bench = Bench::new(config);
        let driver = &bench.driver;
        let host = &bench.kernel.0.host;
        let (own, own_page) = bench.mapped(Stage::Stage1);
        let (under, under_page) = bench.mapped(Stage::Stage1);
        driver.attach(&endpoint(SID), &own).unwrap();
        let fail_nth = |operation: &dyn Fn() -> Result<Transition, AttachError>| {
            for n in 0.. {
                let in_use = host.frames_in_use();
                host.fail_after(n);
                let result = operation();
                host.fail_never();
                assert_eq!(bench.outcomes(SID, None), [at(&own_page)], "allocation {n}");
                match result {
                    Ok(_) => return n,
                    Err(error) => assert_eq!(error, OutOfMemory.into(), "allocation {n}"),
                }
                assert!(host.frames_in_use() <= in_use + 16, "allocation {n}");
            }
            unreachable!()
        };
        let all = permissions(driver.info().pasid_bits, Requests::TRANSLATION);
        let points = fail_nth(&|| driver.permit(&endpoint(SID), &all));
        let levels = if driver.features().two_level_cd { 2 } else { 1 };
        assert_eq!(points, levels, "the table, and the second level of descriptor 0");
        let last = pasid((1 << all.pasid_bits) - 1);
        let points = fail_nth(&|| driver.attach_pasid(&endpoint(SID), last, &under));
        assert_eq!(
            points,
            levels - 1,
            "the second level; the page of the other descriptor has room for this one"
        );
        assert_eq!(bench.outcomes(SID, Some(last.get())), [at(&under_page)]);
        bench.check();
    }
}

#[test]
fn a_pasid_that_is_blocked_reaches_nothing_and_nobody_is_told() {
    for config in units() {
        let bench = Bench::new(config);
        let driver = &bench.driver;
        let (one, one_page) = bench.mapped(Stage::Stage1);
        let (other, other_page) = bench.mapped(Stage::Stage1);
        let blocked = driver.new_domain(&DomainSpec::Blocked).unwrap();
        driver.permit(&endpoint(SID), &permissions(6, Requests::empty())).unwrap();
        let attach = |at: u32, domain| driver.attach_pasid(&endpoint(SID), pasid(at), domain).unwrap();
        let silent = [Outcome::Silent(code::F_TRANSLATION)];
        for _ in 0..2 {
            attach(5, &one);
            assert_eq!(bench.outcomes(SID, Some(5)), [at(&one_page)]);
            assert_eq!(attach(5, &blocked), Transition::Hitless);
            assert_eq!(bench.outcomes(SID, Some(5)), silent);
            // Again, and one that was not attached: nothing changes.
            attach(5, &blocked);
            attach(7, &blocked);
            assert_eq!(bench.outcomes(SID, Some(5)), silent);
            assert_eq!(bench.outcomes(SID, Some(7)), fault(code::C_BAD_CD));
            assert_eq!(bench.outcomes(SID, None), fault(code::F_STREAM_DISABLED));
            // With a larger table too.
            driver.permit(&endpoint(SID), &permissions(8, Requests::empty())).unwrap();
            assert_eq!(bench.outcomes(SID, Some(5)), silent);
            driver.permit(&endpoint(SID), &permissions(6, Requests::empty())).unwrap();
            assert_eq!(attach(5, &other), Transition::Hitless);
            assert_eq!(bench.outcomes(SID, Some(5)), [at(&other_page)]);
            attach(5, &blocked);
            attach(6, &one);
            driver.detach_pasid(&endpoint(SID), pasid(5)).unwrap();
            assert_eq!(bench.outcomes(SID, Some(5)), fault(code::C_BAD_CD));
            attach(5, &other);
            attach(5, &blocked);
            driver.permit(&endpoint(SID), &permissions(0, Requests::empty())).unwrap_err();
            driver.detach_pasid(&endpoint(SID), pasid(6)).unwrap();
            assert_eq!(bench.outcomes(SID, Some(5)), silent);
            driver.permit(&endpoint(SID), &permissions(0, Requests::empty())).unwrap();
            assert_eq!(bench.outcomes(SID, Some(5)), fault(code::C_BAD_STE));
            driver.permit(&endpoint(SID), &permissions(6, Requests::empty())).unwrap();
        }
        bench.check();
    }
}

#[test]
fn a_change_of_a_pasid_that_is_said_to_be_hitless_interrupts_nothing() {
    let (mut hitless, mut interrupted) = (0, 0);
    for config in units() {
        let bench = Bench::new(config);
        let (first, first_page) = bench.mapped(Stage::Stage1);
        let (second, second_page) = bench.mapped(Stage::Stage1);
        let outputs = [&first_page, &second_page].map(|page| at(page).output().unwrap());
        let driver = &bench.driver;
        driver.permit(&endpoint(SID), &permissions(8, Requests::empty())).unwrap();
        driver.attach_pasid(&endpoint(SID), pasid(9), &first).unwrap();
        let request = Request::read(SID, ADDRESS).with_pasid(9);
        let allowed = Allowed { outputs: outputs.to_vec(), ..Allowed::default() };
        for seed in 0..64 {
            bench.kernel.0.begin(seed);
            bench.kernel.0.watch(vec![Probe { unit: 0, request, allowed: allowed.clone() }]);
            // To the other one, and to the same once more.
            let to = if seed / 2 % 2 == 0 { &second } else { &first };
            let result = driver.attach_pasid(&endpoint(SID), pasid(9), to).unwrap();
            let seen = bench.kernel.0.unwatch_each();
            match (result, seen.with_pasid) {
                (Transition::Hitless, seen) => {
                    assert_eq!(seen, None, "said to be hitless");
                    hitless += 1;
                }
                (Transition::Disruptive, seen) => interrupted += u32::from(seen.is_some()),
            }
        }
        bench.check();
    }
    assert!(hitless >= 64 && interrupted >= 20, "{hitless} hitless, {interrupted} interrupted");
}
