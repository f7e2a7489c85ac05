//! Attaching, mapping, unmapping, detaching.

use super::*;
use portcullis_hal::{
    Access, Granule, PhysAddr, Quarantined, TableFormat, TableRoot, TableWrites, UnmapError,
};
use portcullis_iommu::{AttachError, DomainError, DomainKind, FaultReason, Missing, Transition};

#[test]
fn dma_reaches_what_is_mapped_and_faults_after_the_unmap() {
    for stage in [Stage::Stage1, Stage::Stage2] {
        let bench = Bench::new();
        let domain = bench.paging(stage);
        assert_eq!(bench.driver.attach(&endpoint(0x18), &domain), Ok(Transition::Hitless));
        let memory = bench.map(&domain, 0x10_0000);
        assert_eq!(bench.read(0x18, 0x10_0000), done(&memory));
        assert_eq!(bench.read(0x18, 0x10_1000), Dma::Faulted(0x10));
        bench.fake.opcodes();
        let doorbells = bench.fake.state().doorbells;
        drop(memory.unmap().unwrap());
        assert_eq!(bench.fake.opcodes(), [if stage == Stage::Stage1 { 0x12 } else { 0x2a }]);
        assert_eq!(bench.fake.state().doorbells - doorbells, 1, "one doorbell per strict unmap");
        assert_eq!(bench.read(0x18, 0x10_0000), Dma::Faulted(0x10));
        let events = bench.events();
        assert_eq!(events.len(), 2);
        for event in events {
            let UnitEvent::Fault(record) = event else { panic!("{event:?}") };
            assert_eq!(record.reason, FaultReason::NotMapped);
            assert_eq!((record.stage, record.access), (Some(stage), Some(Access::READ)));
        }
    }
}

#[test]
fn a_write_to_a_read_only_page_is_a_permission_fault() {
    for stage in [Stage::Stage1, Stage::Stage2] {
        let bench = Bench::new();
        let domain = bench.paging(stage);
        bench.driver.attach(&endpoint(2), &domain).unwrap();
        let memory = Mapped::map(&domain, Iova::new(0x7000), bench.page(), Attributes::READ).unwrap();
        assert_eq!(bench.fake.dma(2, 0x7000, false), done(&memory));
        assert_eq!(bench.fake.dma(2, 0x7000, true), Dma::Faulted(0x13));
        let [UnitEvent::Fault(record)] = bench.events()[..] else { panic!() };
        assert_eq!((record.reason, record.access), (FaultReason::Permission, Some(Access::WRITE)));
        drop(memory.unmap().unwrap());
    }
}

#[test]
fn large_pages_translate_and_a_cut_off_table_is_freed_after_the_sync() {
    for stage in [Stage::Stage1, Stage::Stage2] {
        let bench = Bench::new();
        let domain = bench.paging(stage);
        bench.driver.attach(&endpoint(2), &domain).unwrap();
        let order = FrameOrder::for_bytes(2 << 20).unwrap();
        let large = Frames::zeroed(&bench.hal, order).unwrap();
        let memory = Mapped::map(&domain, Iova::new(0x4000_0000), large, Attributes::READ_WRITE).unwrap();
        let base = memory.memory().phys().get();
        assert_eq!(domain.iova_to_phys(Iova::new(0x4012_3456)).unwrap().size, 2 << 20);
        assert_eq!(bench.read(2, 0x4012_3456), Dma::Done(base + 0x12_3456));
        drop(memory.unmap().unwrap());
        assert_eq!(bench.read(2, 0x4012_3456), Dma::Faulted(0x10));

        // Pages below one table, and then the table too.
        let small = bench.map(&domain, 0x4000_0000);
        let before = bench.hal.frames_in_use();
        assert_eq!(bench.read(2, 0x4000_0000), done(&small));
        let mut gather = Gather::new();
        let range = IovaRange::new(Iova::new(0x4000_0000), 2 << 20).unwrap();
        assert_eq!(portcullis_hal::host::unmap(&*domain, range, &mut gather), Ok(0x1000));
        assert!(gather.has_tables());
        assert_eq!(bench.hal.frames_in_use(), before, "not before the sync");
        bench.fake.state().commands.clear();
        let _proof = domain.sync(&mut gather).unwrap();
        assert_eq!(bench.hal.frames_in_use(), before - 1);
        let leaf_bits: Vec<u64> = bench.fake.state().commands.iter().map(|command| command[1] & 1).collect();
        assert_eq!(leaf_bits, [0], "the walk caches are concerned too");
        assert_eq!(bench.read(2, 0x4000_0000), Dma::Faulted(0x10));
        drop(small);
    }
}

#[test]
fn units_without_range_invalidation_forget_page_by_page_and_long_ranges_at_once() {
    let bench = Bench::with(options(), |fake| fake.state().ids[2] &= !(1 << 10));
    let domain = bench.paging(Stage::Stage1);
    bench.driver.attach(&endpoint(2), &domain).unwrap();
    for (pages, expected) in [(1, vec![0x12]), (5, vec![0x12; 5]), (100, vec![0x11])] {
        let memory: Vec<_> = (0..pages).map(|page| bench.map(&domain, 0x10_0000 + page * 0x1000)).collect();
        for (page, memory) in memory.iter().enumerate() {
            assert_eq!(bench.read(2, 0x10_0000 + page as u64 * 0x1000), done(memory));
        }
        bench.fake.opcodes();
        invalidate(&domain, 0x10_0000, pages * 0x1000).unwrap();
        assert_eq!(bench.fake.opcodes(), expected);
        for page in 0..pages {
            assert_eq!(bench.read(2, 0x10_0000 + page * 0x1000), Dma::Faulted(0x10));
        }
        bench.events();
    }
}

#[test]
fn replacing_a_domain_reaches_the_new_one_and_frees_the_old_tag() {
    let bench = Bench::new();
    let [a, b] = [bench.paging(Stage::Stage1), bench.paging(Stage::Stage1)];
    let [memory_a, memory_b] = [bench.map(&a, 0x1000), bench.map(&b, 0x1000)];
    bench.driver.attach(&endpoint(7), &a).unwrap();
    assert_eq!(bench.read(7, 0x1000), done(&memory_a));
    bench.fake.opcodes();
    assert_eq!(bench.driver.attach(&endpoint(7), &b), Ok(Transition::Hitless));
    assert_eq!(bench.fake.opcodes(), [0x03, 0x11], "one step, then the old tag");
    assert_eq!(bench.read(7, 0x1000), done(&memory_b));
    // Unmapping from the old domain concerns no unit any more.
    drop(memory_a.unmap().unwrap());
    assert_eq!(bench.fake.opcodes(), []);
    drop(memory_b.unmap().unwrap());
    assert_eq!(bench.read(7, 0x1000), Dma::Faulted(0x10));
}

#[test]
fn transitions_say_whether_dma_in_flight_was_cut() {
    let bench = Bench::new();
    let [s1, other_s1] = [bench.paging(Stage::Stage1), bench.paging(Stage::Stage1)];
    let [s2, other_s2] = [bench.paging(Stage::Stage2), bench.paging(Stage::Stage2)];
    let [identity, blocked] = [
        bench.domain(DomainSpec::Identity(portcullis_hal::host::IDENTITY)),
        bench.domain(DomainSpec::Blocked),
    ];
    let attach = |domain| bench.driver.attach(&endpoint(9), domain).unwrap();
    use Transition::{Disruptive, Hitless};
    assert_eq!(attach(&s1), Hitless);
    assert_eq!(attach(&other_s1), Hitless);
    assert_eq!(attach(&identity), Hitless);
    assert_eq!(bench.read(9, 0x1234), Dma::Done(0x1234));
    assert_eq!(attach(&s1), Hitless);
    assert_eq!(attach(&s2), Disruptive);
    assert_eq!(attach(&other_s2), Disruptive);
    assert_eq!(attach(&blocked), Hitless);
    assert_eq!(bench.read(9, 0x1234), Dma::Aborted);
    assert_eq!(attach(&s2), Hitless);
    assert_eq!(attach(&s2), Hitless, "nothing changes");
    assert_eq!(bench.events(), [], "no event was due to the driver");
}

#[test]
fn several_endpoints_share_a_tag_until_the_last_one_leaves() {
    let bench = Bench::new();
    let domain = bench.paging(Stage::Stage1);
    let device = [EndpointId::new(0x10), EndpointId::new(0x310), EndpointId::new(0x11)];
    bench.driver.attach(&device, &domain).unwrap();
    let memory = bench.map(&domain, 0x5000);
    for stream in [0x10, 0x310, 0x11] {
        assert_eq!(bench.read(stream, 0x5000), done(&memory));
    }
    bench.fake.opcodes();
    bench.driver.detach(&device[..2]).unwrap();
    assert!(!bench.fake.opcodes().contains(&0x11), "the tag is still in use");
    assert_eq!(bench.read(0x10, 0x5000), Dma::Faulted(0x04));
    assert_eq!(bench.read(0x11, 0x5000), done(&memory));
    drop(memory.unmap().unwrap());
    assert_eq!(bench.read(0x11, 0x5000), Dma::Faulted(0x10));
    bench.fake.opcodes();
    bench.driver.detach(&device[2..]).unwrap();
    assert_eq!(bench.fake.opcodes().last(), Some(&0x11));
}

#[test]
fn a_domain_on_two_units_is_invalidated_on_both() {
    let hal = HostHal::new();
    let unit = || {
        let fake = Fake::new(&hal);
        let driver = Setup::new(hal.clone(), fake.clone(), options()).unwrap().enable().unwrap();
        (fake, driver)
    };
    let [(fake_a, a), (fake_b, b)] = [unit(), unit()];
    let domain = a.new_domain(&DomainSpec::Paging(PagingSpec::default())).unwrap();
    a.attach(&endpoint(1), &domain).unwrap();
    b.attach(&endpoint(2), &domain).unwrap();
    let page = Frames::zeroed(&hal, FrameOrder::SINGLE).unwrap();
    let memory = Mapped::map(&domain, Iova::new(0x1000), page, Attributes::READ_WRITE).unwrap();
    assert_eq!(fake_a.dma(1, 0x1000, true), done(&memory));
    assert_eq!(fake_b.dma(2, 0x1000, true), done(&memory));
    drop(memory.unmap().unwrap());
    assert_eq!(fake_a.dma(1, 0x1000, true), Dma::Faulted(0x10));
    assert_eq!(fake_b.dma(2, 0x1000, true), Dma::Faulted(0x10));
}

#[test]
fn a_failed_attach_leaves_the_old_domain_in_force() {
    let bench = Bench::new();
    let domain = bench.paging(Stage::Stage1);
    bench.driver.attach(&endpoint(1), &domain).unwrap();
    let memory = bench.map(&domain, 0x1000);
    let both = [EndpointId::new(1), EndpointId::new(0x1_0000)];
    let identity = bench.domain(DomainSpec::Identity(portcullis_hal::host::IDENTITY));
    let error = bench.driver.attach(&both, &identity);
    assert_eq!(error, Err(AttachError::UnknownEndpoint(EndpointId::new(0x1_0000))));
    assert_eq!(bench.read(1, 0x1000), done(&memory));
    drop(memory.unmap().unwrap());
}

#[test]
fn blocking_and_detaching_an_unknown_stream_change_nothing() {
    let bench = Bench::new();
    let in_use = bench.hal.frames_in_use();
    let blocked = bench.domain(DomainSpec::Blocked);
    assert_eq!(bench.driver.attach(&endpoint(0x500), &blocked), Ok(Transition::Hitless));
    bench.driver.detach(&endpoint(0x500)).unwrap();
    assert_eq!(bench.hal.frames_in_use(), in_use);
    assert_eq!(bench.read(0x500, 0), Dma::Faulted(0x02));
}

#[test]
fn ids_run_out_as_an_error_and_come_back() {
    // 8-bit ASIDs and VMIDs.
    let bench = Bench::with(options(), |fake| fake.state().ids[0] &= !(1 << 12 | 1 << 18));
    for stage in [Stage::Stage1, Stage::Stage2] {
        let domains: Vec<_> = (0..256).map(|_| bench.paging(stage)).collect();
        for (stream, domain) in domains[..255].iter().enumerate() {
            bench.driver.attach(&endpoint(stream as u32), domain).unwrap();
        }
        let in_use = bench.hal.frames_in_use();
        assert_eq!(bench.driver.attach(&endpoint(300), &domains[255]), Err(AttachError::NoFreeId));
        bench.driver.detach(&endpoint(17)).unwrap();
        bench.driver.attach(&endpoint(300), &domains[255]).unwrap();
        for stream in (0..255).chain([300]) {
            bench.driver.detach(&endpoint(stream)).unwrap();
        }
        // The pages of the descriptors stay.
        let second_level_table = if stage == Stage::Stage1 { 4 } else { 0 };
        assert_eq!(bench.hal.frames_in_use(), in_use + second_level_table);
    }
}

#[test]
fn attaching_no_endpoints_takes_no_id() {
    // 8-bit ASIDs and VMIDs.
    let bench = Bench::with(options(), |fake| fake.state().ids[0] &= !(1 << 12 | 1 << 18));
    for stage in [Stage::Stage1, Stage::Stage2] {
        let domain = bench.paging(stage);
        let in_use = bench.hal.frames_in_use();
        for _ in 0..300 {
            assert_eq!(bench.driver.attach(&[], &domain), Ok(Transition::Hitless));
        }
        assert_eq!(bench.hal.frames_in_use(), in_use);
        bench.driver.attach(&endpoint(5), &domain).unwrap();
    }
}

#[test]
fn a_unit_is_asked_only_for_what_it_has() {
    let bench = Bench::with(options(), |fake| fake.state().ids[0] &= !1);
    let refused = |spec| bench.driver.new_domain(&spec).err();
    let unsupported = |missing| Some(DomainError::Unsupported { missing });
    let spec =
        |stage, input_bits| DomainSpec::Paging(PagingSpec { stage, input_bits, ..PagingSpec::default() });
    assert_eq!(refused(spec(Some(Stage::Stage2), None)), unsupported(Missing::STAGE_2));
    assert_eq!(refused(spec(None, Some(49))), unsupported(Missing::INPUT_WIDTH));
    let narrow = bench.domain(spec(None, Some(39)));
    assert_eq!(narrow.aperture().last(), Iova::new((1 << 39) - 1));
    assert_eq!(narrow.info().stage, Some(Stage::Stage1));

    // A domain of a unit that can do more.
    let rich = Bench::new();
    let stage_2 = rich.paging(Stage::Stage2);
    let error = bench.driver.attach(&endpoint(1), &stage_2);
    assert_eq!(error, Err(AttachError::Incompatible { missing: Missing::STAGE_2 }));
}

#[test]
fn a_shared_table_translates_and_its_owner_invalidates() {
    for stage in [Stage::Stage1, Stage::Stage2] {
        let bench = Bench::new();
        // Somebody else's table: here that of a domain which is attached nowhere.
        let owner = bench.paging(stage);
        let memory = bench.map(&owner, 0x2000);
        let root = owner.info().root.unwrap();
        let domain = bench.domain(fake::shared(root));
        assert_eq!((domain.info().kind, domain.info().stage), (DomainKind::Shared, Some(stage)));
        bench.driver.attach(&endpoint(6), &domain).unwrap();
        assert_eq!(bench.read(6, 0x2000), done(&memory));
        drop(memory.unmap().unwrap());
        assert_ne!(bench.read(6, 0x2000), Dma::Faulted(0x10), "cached: the unit was not told");
        let mut gather = Gather::new();
        let range = IovaRange::new(Iova::new(0x2000), 0x1000).unwrap();
        assert_eq!(portcullis_hal::host::unmap(&*domain, range, &mut gather), Err(UnmapError::NotPaging));
        let _proof = domain.sync(&mut gather).unwrap();
        assert_eq!(bench.read(6, 0x2000), Dma::Faulted(0x10));
        bench.driver.detach(&endpoint(6)).unwrap();
    }
}

#[test]
fn shared_tables_that_the_unit_cannot_walk_are_refused_for_the_right_reason() {
    let bench = Bench::with(options(), |fake| {
        // No 16 KiB granule, no snooping.
        let mut state = fake.state();
        state.ids[3] &= !(1 << 5);
        state.ids[0] &= !(1 << 4);
    });
    let fit = TableRoot {
        format: TableFormat::VmsaStage2 { granule: Granule::Size4K, start_level: 1 },
        root: PhysAddr::new(0x4000_0000),
        input_bits: 40,
        output_bits: 44,
        page_sizes: 0x4020_1000,
        writes: TableWrites::Cleaned,
    };
    let missing = |root| match bench.driver.new_domain(&fake::shared(root)) {
        Ok(_) => Missing::empty(),
        Err(DomainError::Unsupported { missing }) => missing,
        Err(other) => panic!("{other}"),
    };
    let stage_2 = |granule, start_level| TableFormat::VmsaStage2 { granule, start_level };
    assert_eq!(missing(fit), Missing::empty());
    assert_eq!(missing(TableRoot { writes: TableWrites::Cached, ..fit }), Missing::COHERENT_WALKS);
    assert_eq!(missing(TableRoot { output_bits: 48, ..fit }), Missing::OUTPUT_WIDTH);
    assert_eq!(
        missing(TableRoot { input_bits: 48, format: stage_2(Granule::Size4K, 0), ..fit }),
        Missing::INPUT_WIDTH
    );
    assert_eq!(missing(TableRoot { format: stage_2(Granule::Size16K, 2), ..fit }), Missing::GRANULE);
    assert_eq!(missing(TableRoot { format: stage_2(Granule::Size4K, 2), ..fit }), Missing::FORMAT);
    assert_eq!(missing(TableRoot { format: stage_2(Granule::Size4K, 9), ..fit }), Missing::FORMAT);
    assert_eq!(missing(TableRoot { root: PhysAddr::new(1 << 45), ..fit }), Missing::OUTPUT_WIDTH);
    assert_eq!(missing(TableRoot { format: TableFormat::X86 { levels: 4 }, ..fit }), Missing::FORMAT);
    let stage_1 = TableFormat::VmsaStage1 { granule: Granule::Size64K, mair: 0xff };
    assert_eq!(missing(TableRoot { format: stage_1, ..fit }), Missing::empty());
    assert_eq!(missing(TableRoot { format: stage_1, input_bits: 24, ..fit }), Missing::INPUT_WIDTH);
}

#[test]
fn domains_without_tables_of_their_own_refuse_mappings() {
    let bench = Bench::new();
    for spec in [DomainSpec::Blocked, DomainSpec::Identity(portcullis_hal::host::IDENTITY)] {
        let domain = bench.domain(spec);
        let page = bench.page();
        let refused = Mapped::map(&domain, Iova::new(0), page, Attributes::READ).err();
        assert_eq!(refused.map(|refused| refused.error), Some(portcullis_hal::MapError::NotPaging));
        let mut gather = Gather::new();
        let _proof = domain.sync(&mut gather).unwrap();
    }
    let identity = bench.domain(DomainSpec::Identity(portcullis_hal::host::IDENTITY));
    assert_eq!(identity.iova_to_phys(Iova::new(0x77)).unwrap().phys, PhysAddr::new(0x77));
    assert_eq!(identity.iova_to_phys(Iova::new(1 << 44)), None);
    assert_eq!(bench.domain(DomainSpec::Blocked).iova_to_phys(Iova::new(0)), None);
}

#[test]
fn an_unconfirmed_invalidation_quarantines_the_memory() {
    let bench = Bench::with(hasty(), |_| {});
    let domain = bench.paging(Stage::Stage1);
    bench.driver.attach(&endpoint(1), &domain).unwrap();
    let memory = bench.map(&domain, 0x1000);
    bench.fake.state().pace = fake::Pace::Never;
    let Quarantined { reason, .. } = memory.unmap().unwrap_err();
    assert!(reason.to_string().contains("SMMU_CMDQ_CONS"), "{reason}");
    // The unit is out of service: nothing new, but blocking.
    let other = bench.paging(Stage::Stage1);
    assert_eq!(bench.driver.attach(&endpoint(2), &other), Err(AttachError::Faulted));
    assert_eq!(bench.driver.detach(&endpoint(1)), Err(AttachError::Lost));
    bench.fake.state().forget_all();
    assert_eq!(bench.read(1, 0x1000), Dma::Faulted(0x04), "the entry is invalid even so");
}

#[test]
fn a_unit_out_of_order_confirms_no_detaching_or_blocking_however_often_it_is_asked() {
    let bench = Bench::with(hasty(), |_| {});
    let domain = bench.paging(Stage::Stage1);
    let blocked = bench.domain(DomainSpec::Blocked);
    bench.driver.attach(&endpoint(5), &domain).unwrap();
    let memory = bench.map(&domain, 0x1000);
    assert_eq!(bench.read(5, 0x1000), done(&memory));
    bench.fake.state().pace = crate::fake::Pace::Never;
    assert!(matches!(bench.driver.detach(&endpoint(5)), Err(AttachError::Timeout(_))));
    for _ in 0..4 {
        assert_eq!(bench.driver.detach(&endpoint(5)), Err(AttachError::Lost));
        assert_eq!(bench.driver.attach(&endpoint(5), &blocked), Err(AttachError::Lost));
        assert_eq!(bench.read(5, 0x1000), done(&memory), "the unit goes by the entry that it cached");
    }
}

#[test]
fn an_unconfirmed_attach_blocks_the_device_and_keeps_both_domains_memory() {
    let bench = Bench::with(hasty(), |_| {});
    let [a, b] = [bench.paging(Stage::Stage1), bench.paging(Stage::Stage1)];
    bench.driver.attach(&endpoint(1), &a).unwrap();
    bench.fake.state().pace = fake::Pace::Never;
    assert!(matches!(bench.driver.attach(&endpoint(1), &b), Err(AttachError::Timeout(_))));
    bench.fake.state().forget_all();
    assert_eq!(bench.read(1, 0x1000), Dma::Faulted(0x04));
    let in_use = bench.hal.frames_in_use();
    drop((a, b));
    assert_eq!(bench.hal.frames_in_use(), in_use, "hardware may still walk either's tables");
}

#[test]
fn stats_count_what_happened() {
    let bench = Bench::new();
    let before = bench.driver.stats();
    let domain = bench.paging(Stage::Stage1);
    bench.driver.attach(&endpoint(1), &domain).unwrap();
    let memory = bench.map(&domain, 0x1000);
    drop(memory.unmap().unwrap());
    bench.read(1, 0x1000);
    bench.events();
    let after = bench.driver.stats();
    assert_eq!((after.domains - before.domains, after.attaches - before.attaches), (1, 1));
    assert_eq!((after.faults, after.overflows, after.queue_errors), (1, 0, 0));
    // Attaching takes two steps, unmapping one.
    assert_eq!(after.invalidations - before.invalidations, 3);
    assert_eq!((after.syncs - before.syncs, after.doorbells - before.doorbells), (3, 3));
}
