//! Domains, attachments and invalidation on one unit.

mod common;

use common::fake::{self, FakeUnit};
use common::{Machine, endpoint, fixed, map_page, unmap};
use portcullis_hal::host::HostHal;
use portcullis_hal::{
    Access, Attributes, EndpointId, Gather, Iova, IovaRange, SharedTable, SyncError, TableFormat, TableRoot,
    TableWrites,
};
use portcullis_iommu::{
    AttachError, DomainError, DomainKind, DomainSpec, FaultReason, Missing, PagingSpec, Stage, Transition,
    Unit, UnitEvent,
};

const IOVA: u64 = 0x12_3456_7000;

/// Units with first stage, second stage, second stage in caching mode, three levels only, and a queue error rule.
fn machines() -> Vec<Machine> {
    let (cap, ecap) = fake::SECOND_STAGE;
    let three_levels = cap & !(0x1f << 8 | 0x3f << 16) | 0b10 << 8 | 38 << 16;
    let coherent = 1 << 48 | 1;
    vec![
        Machine::new(fake::FIRST_STAGE),
        Machine::new((cap, ecap)),
        Machine::new((cap | 1 << 7, ecap)),
        Machine::new((three_levels, ecap)),
        Machine::new((cap, ecap | coherent)),
        // Without page-selective invalidation.
        Machine::new((cap & !(1 << 39), ecap)),
    ]
}

#[test]
fn a_device_reaches_what_is_mapped_for_it_and_nothing_else_at_any_time() {
    for machine in machines() {
        let fake = &machine.fake;
        assert_eq!(fake.dma(0x0108, IOVA, true), Err(0x01));
        let domain = machine.paging();
        assert_eq!(machine.driver.attach(&endpoint(0x0108), &domain), Ok(Transition::Hitless));
        let absent = fake.dma(0x0108, IOVA, true);
        assert!(matches!(absent, Err(0x71 | 0x05)), "{absent:?}");

        let mapped = machine.map(&domain, IOVA, Attributes::READ_WRITE);
        let phys = mapped.memory().phys().get();
        assert_eq!(fake.dma(0x0108, IOVA + 0x123, true), Ok(phys + 0x123));
        assert_eq!(fake.dma(0x0108, IOVA, false), Ok(phys));
        assert!(fake.dma(0x0100, IOVA, true).is_err(), "a neighbour");
        assert!(fake.dma(0x0108, IOVA + 0x1000, true).is_err());

        assert!(mapped.unmap().is_ok());
        assert!(fake.dma(0x0108, IOVA, true).is_err());
        let again = machine.map(&domain, IOVA, Attributes::READ);
        assert!(fake.dma(0x0108, IOVA, false).is_ok());
        assert!(matches!(fake.dma(0x0108, IOVA, true), Err(0x85 | 0x05)));

        machine.driver.detach(&endpoint(0x0108)).unwrap();
        assert_eq!(fake.dma(0x0108, IOVA, false), Err(0x02));
        assert!(again.unmap().is_ok());
    }
}

#[test]
fn large_pages_and_cut_off_tables_are_invalidated_whole() {
    for machine in machines() {
        let domain = machine.paging();
        machine.driver.attach(&endpoint(0x20), &domain).unwrap();
        fixed(0x4000_0000, 0x8000_0000, 0x4000_0000).map_into(&*domain).unwrap();
        for offset in [0, 0x1234_5678, 0x3fff_f000] {
            assert_eq!(machine.fake.dma(0x20, 0x4000_0000 + offset, true), Ok(0x8000_0000 + offset));
        }
        assert_eq!(unmap(&domain, 0x4000_0000, 0x4000_0000), 0x4000_0000);
        let in_use = machine.hal.frames_in_use();
        for offset in [0, 0x1234_5678, 0x3fff_f000] {
            assert!(machine.fake.dma(0x20, 0x4000_0000 + offset, true).is_err());
        }
        // Small pages below one entry of the root, twice: the tables of the first round are freed.
        for _ in 0..2 {
            for page in 0..40 {
                map_page(&domain, page * 0x1000, 0x10_0000_0000 + page * 0x1000).unwrap();
                assert!(machine.fake.dma(0x20, page * 0x1000, true).is_ok());
            }
            assert_eq!(unmap(&domain, 0, 0x4000_0000), 40 * 0x1000);
            assert!((0..40).all(|page| machine.fake.dma(0x20, page * 0x1000, true).is_err()));
        }
        assert!(machine.hal.frames_in_use() <= in_use, "tables were not freed");
    }
}

#[test]
fn a_strict_unmap_writes_one_doorbell_and_reads_no_register() {
    for machine in machines() {
        let domain = machine.paging();
        machine.driver.attach(&endpoint(0x20), &domain).unwrap();
        let mapped = machine.map(&domain, IOVA, Attributes::READ_WRITE);
        machine.fake.accesses();
        assert!(mapped.unmap().is_ok());
        assert_eq!(machine.fake.accesses(), (0, 1));
    }
}

#[test]
fn unmaps_of_several_pages_share_one_sync() {
    let machine = Machine::new(fake::SECOND_STAGE);
    let domain = machine.paging();
    machine.driver.attach(&endpoint(0x20), &domain).unwrap();
    let mapped: Vec<_> = (0..5).map(|n| machine.map(&domain, 0x7000 * n, Attributes::READ_WRITE)).collect();
    assert!((0..5).all(|n| machine.fake.dma(0x20, 0x7000 * n, true).is_ok()));
    machine.fake.accesses();
    let mut gather = Gather::new();
    let waiting: Vec<_> = mapped.into_iter().map(|mapped| mapped.unmap_into(&mut gather).unwrap()).collect();
    let proof = domain.sync(&mut gather).unwrap();
    assert_eq!(machine.fake.accesses(), (0, 1));
    assert!((0..5).all(|n| machine.fake.dma(0x20, 0x7000 * n, true).is_err()));
    for unsynced in waiting {
        assert!(unsynced.reclaim(&proof).is_ok());
    }
}

#[test]
fn one_domain_serves_many_devices_and_forgets_them_one_by_one() {
    for machine in machines() {
        let domain = machine.paging();
        let sids = [0x08_u16, 0x09, 0x0180, 0xffff];
        for sid in sids {
            machine.driver.attach(&endpoint(sid), &domain).unwrap();
        }
        map_page(&domain, IOVA, 0xabc_d000).unwrap();
        assert!(sids.iter().all(|&sid| machine.fake.dma(sid, IOVA, true) == Ok(0xabc_d000)));
        machine.driver.detach(&endpoint(0x09)).unwrap();
        assert_eq!(machine.fake.dma(0x09, IOVA, true), Err(0x02));
        assert_eq!(machine.fake.dma(0x08, IOVA, true), Ok(0xabc_d000));
        unmap(&domain, IOVA, 0x1000);
        assert!(sids.iter().all(|&sid| machine.fake.dma(sid, IOVA, true).is_err()));
    }
}

#[test]
fn replacing_a_domain_leads_to_the_new_one_at_once() {
    for machine in machines() {
        let (one, two, identity) = (machine.paging(), machine.paging(), machine.identity());
        map_page(&one, IOVA, 0x1111_0000).unwrap();
        map_page(&two, IOVA, 0x2222_0000).unwrap();
        let steps = [
            (&one, 0x1111_0000),
            (&two, 0x2222_0000),
            (&two, 0x2222_0000),
            (&identity, IOVA),
            (&one, 0x1111_0000),
            (&identity, IOVA),
        ];
        for (step, (domain, phys)) in steps.into_iter().enumerate() {
            let hitless = Ok(Transition::Hitless);
            assert_eq!(machine.driver.attach(&endpoint(0x20), domain), hitless, "step {step}");
            assert_eq!(machine.fake.dma(0x20, IOVA, true), Ok(phys), "step {step}");
        }
        // The domain ids of both tables came back.
        let mut text = String::new();
        one.describe(&mut text).unwrap();
        assert!(!text.contains("domain id"), "{text}");
    }
}

#[test]
fn between_domains_of_several_devices_first_stage_tables_change_with_a_gap() {
    for machine in machines() {
        let (one, two) = (machine.paging(), machine.paging());
        map_page(&one, IOVA, 0x1111_0000).unwrap();
        map_page(&two, IOVA, 0x2222_0000).unwrap();
        for sid in [0x20, 0x21] {
            machine.driver.attach(&endpoint(sid), &one).unwrap();
        }
        let second_stage = machine.driver.info().stages == portcullis_iommu::Stages::STAGE_2;
        // The tags of 0x21 cannot be those of the other domain.
        let apart = if second_stage { Transition::Hitless } else { Transition::Disruptive };
        assert_eq!(machine.driver.attach(&endpoint(0x20), &two), Ok(apart));
        assert_eq!(machine.fake.dma(0x20, IOVA, true), Ok(0x2222_0000));
        assert_eq!(machine.fake.dma(0x21, IOVA, true), Ok(0x1111_0000));
        // Together they take their id along.
        let both = [endpoint(0x20), endpoint(0x21)].concat();
        machine.driver.detach(&both).unwrap();
        machine.driver.attach(&both, &one).unwrap();
        assert_eq!(machine.driver.attach(&both, &two), Ok(Transition::Hitless));
        for sid in [0x20, 0x21] {
            assert_eq!(machine.fake.dma(sid, IOVA, true), Ok(0x2222_0000));
        }
        unmap(&two, IOVA, 0x1000);
        for sid in [0x20, 0x21] {
            assert!(machine.fake.dma(sid, IOVA, true).is_err());
        }
    }
}

#[test]
fn blocking_needs_no_memory_and_never_fails_for_lack_of_it() {
    for machine in machines() {
        let (domain, blocked) = (machine.paging(), machine.blocked());
        map_page(&domain, IOVA, 0x1111_0000).unwrap();
        machine.driver.attach(&endpoint(0x20), &domain).unwrap();
        assert!(machine.fake.dma(0x20, IOVA, true).is_ok());
        let allocations = machine.hal.allocations();
        assert_eq!(machine.driver.attach(&endpoint(0x20), &blocked), Ok(Transition::Hitless));
        assert_eq!(machine.fake.dma(0x20, IOVA, true), Err(0x02));
        assert!(machine.driver.attach(&endpoint(0x7f8), &blocked).is_ok(), "never attached before");
        assert!(machine.driver.detach(&endpoint(0x20)).is_ok());
        assert_eq!(machine.hal.allocations(), allocations);
        machine.driver.attach(&endpoint(0x20), &domain).unwrap();
        assert!(machine.fake.dma(0x20, IOVA, true).is_ok());
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name_and_changes_nothing() {
    let first = Machine::new(fake::FIRST_STAGE);
    let second = Machine::new(fake::SECOND_STAGE);
    let spec = |stage, input_bits| {
        DomainSpec::Paging(PagingSpec { stage: Some(stage), input_bits, ..PagingSpec::default() })
    };
    let lacks = |missing| Some(DomainError::Unsupported { missing });
    assert_eq!(first.driver.new_domain(&spec(Stage::Stage2, None)).err(), lacks(Missing::STAGE_2));
    assert_eq!(second.driver.new_domain(&spec(Stage::Stage1, None)).err(), lacks(Missing::STAGE_1));
    assert_eq!(first.driver.new_domain(&spec(Stage::Stage1, Some(48))).err(), lacks(Missing::INPUT_WIDTH));
    assert_eq!(second.driver.new_domain(&spec(Stage::Stage2, Some(49))).err(), lacks(Missing::INPUT_WIDTH));
    let narrow = second.driver.new_domain(&spec(Stage::Stage2, Some(39))).unwrap();
    assert_eq!(narrow.info().root.unwrap().format, TableFormat::VtdSecondStage { levels: 3 });

    let theirs = second.paging();
    second.driver.attach(&endpoint(8), &theirs).unwrap();
    let stage = AttachError::Incompatible { missing: Missing::STAGE_2 };
    assert_eq!(first.driver.attach(&endpoint(8), &theirs), Err(stage));
    assert_eq!(first.fake.dma(8, IOVA, true), Err(0x01));
    let beyond = EndpointId::new(0x1_0000);
    assert_eq!(second.driver.attach(&[beyond], &theirs), Err(AttachError::UnknownEndpoint(beyond)));

    let (cap, ecap) = fake::FIRST_STAGE;
    let no_pass_through = Machine::new((cap, ecap & !(1 << 6)));
    assert_eq!(
        no_pass_through.driver.new_domain(&DomainSpec::Identity(portcullis_hal::host::IDENTITY)).err(),
        lacks(Missing::IDENTITY)
    );
}

#[test]
fn a_table_for_a_better_unit_is_not_given_to_a_lesser_one() {
    let (cap, ecap) = fake::SECOND_STAGE;
    let good = Machine::new((cap, ecap | 1 << 48));
    let lesser = Machine::new((cap & !(3 << 34), ecap));
    let missing = Missing::GRANULE | Missing::COHERENT_WALKS;
    let refused = lesser.driver.attach(&endpoint(8), &good.paging());
    assert_eq!(refused, Err(AttachError::Incompatible { missing }));
}

#[test]
fn a_domain_on_two_units_is_invalidated_on_both() {
    let hal = HostHal::new();
    let fakes = [FakeUnit::new(&hal, fake::SECOND_STAGE), FakeUnit::new(&hal, fake::SECOND_STAGE)];
    let machines = fakes.map(|fake| Machine::with(hal.clone(), fake));
    let domain = machines[0].paging();
    for machine in &machines {
        machine.driver.attach(&endpoint(0x20), &domain).unwrap();
    }
    map_page(&domain, IOVA, 0x7777_0000).unwrap();
    assert!(machines.iter().all(|machine| machine.fake.dma(0x20, IOVA, true) == Ok(0x7777_0000)));
    unmap(&domain, IOVA, 0x1000);
    assert!(machines.iter().all(|machine| machine.fake.dma(0x20, IOVA, true).is_err()));
    machines[0].driver.detach(&endpoint(0x20)).unwrap();
    map_page(&domain, IOVA, 0x7777_0000).unwrap();
    assert!(machines[0].fake.dma(0x20, IOVA, true).is_err());
    assert!(machines[1].fake.dma(0x20, IOVA, true).is_ok());
}

#[test]
fn foreign_tables_are_walked_and_invalidated_but_not_changed() {
    for (registers, stage) in [(fake::FIRST_STAGE, Stage::Stage1), (fake::SECOND_STAGE, Stage::Stage2)] {
        let machine = Machine::new(registers);
        // The tables of another domain play those of a VM.
        let owner = machine.of_stage(stage);
        map_page(&owner, IOVA, 0x5555_0000).unwrap();
        let root = owner.info().root.unwrap();
        #[expect(unsafe_code, reason = "the tests' own contract")]
        // SAFETY: the owner outlives the use of its tables, and unmaps through both domains.
        let table = |root| unsafe { SharedTable::new(root) };
        let shared = machine.driver.new_domain(&DomainSpec::Shared(table(root))).unwrap();
        assert_eq!(shared.info().kind, DomainKind::Shared);
        machine.driver.attach(&endpoint(0x20), &shared).unwrap();
        assert_eq!(machine.fake.dma(0x20, IOVA, true), Ok(0x5555_0000));
        assert!(map_page(&shared, 0, 0).is_err());
        unmap(&owner, IOVA, 0x1000);
        assert!(machine.fake.dma(0x20, IOVA, true).is_ok(), "the unit knows nothing of the owner's change");
        assert!(shared.sync(&mut Gather::new()).is_ok());
        assert!(machine.fake.dma(0x20, IOVA, true).is_err());

        let lacks = |missing| Some(DomainError::Unsupported { missing });
        let refused = |root: TableRoot| machine.driver.new_domain(&DomainSpec::Shared(table(root))).err();
        assert_eq!(
            refused(TableRoot { writes: TableWrites::Cached, ..root }),
            lacks(Missing::COHERENT_WALKS)
        );
        // No fake has leaves of 512 GiB.
        assert_eq!(refused(TableRoot { page_sizes: 1 << 39 | 0x1000, ..root }), lacks(Missing::GRANULE));
        assert_eq!(refused(TableRoot { output_bits: 52, ..root }), lacks(Missing::OUTPUT_WIDTH));
        let deep = match stage {
            Stage::Stage1 => TableFormat::X86 { levels: 5 },
            Stage::Stage2 => TableFormat::VtdSecondStage { levels: 5 },
        };
        assert_eq!(refused(TableRoot { format: deep, ..root }), lacks(Missing::INPUT_WIDTH));
        let arm = TableFormat::VmsaStage2 { granule: portcullis_hal::Granule::Size4K, start_level: 0 };
        assert_eq!(refused(TableRoot { format: arm, ..root }), lacks(Missing::FORMAT));
    }
}

#[test]
fn a_dropped_domain_gives_its_tables_back() {
    for machine in machines() {
        let domain = machine.paging();
        machine.driver.attach(&endpoint(0x20), &domain).unwrap();
        let before = machine.hal.frames_in_use();
        for _ in 0..3 {
            let domain = machine.paging();
            machine.driver.attach(&endpoint(0x20), &domain).unwrap();
            map_page(&domain, IOVA, 0x1000).unwrap();
            assert!(machine.fake.dma(0x20, IOVA, true).is_ok());
        }
        machine.driver.attach(&endpoint(0x20), &domain).unwrap();
        assert_eq!(machine.hal.frames_in_use(), before);
    }
}

#[test]
fn many_threads_map_unmap_and_attach_on_one_small_queue() {
    for registers in [fake::FIRST_STAGE, fake::SECOND_STAGE] {
        let machine = Machine::new(registers);
        let domain = machine.paging();
        let sids = [0x20_u16, 0x21, 0x22, 0x23];
        for sid in sids {
            machine.driver.attach(&endpoint(sid), &domain).unwrap();
        }
        std::thread::scope(|scope| {
            for sid in sids {
                let (machine, domain) = (&machine, &domain);
                scope.spawn(move || {
                    for round in 0..200_u64 {
                        let iova = u64::from(sid) << 30 | ((round % 7) << 12);
                        let mapped = machine.map(domain, iova, Attributes::READ_WRITE);
                        let phys = mapped.memory().phys().get();
                        assert_eq!(machine.fake.dma(sid, iova, true), Ok(phys));
                        assert!(mapped.unmap().is_ok());
                        assert!(machine.fake.dma(sid, iova, true).is_err());
                        if round % 50 == 0 {
                            machine.driver.detach(&endpoint(sid)).unwrap();
                            machine.driver.attach(&endpoint(sid), domain).unwrap();
                        }
                    }
                });
            }
        });
        let stats = machine.driver.stats();
        assert!(stats.syncs >= 800 && stats.queue_errors == 0, "{stats:?}");
        assert!((1..=stats.syncs).contains(&stats.doorbells), "{stats:?}");
    }
}

#[test]
fn a_mapping_is_seen_through_caches_that_hold_absent_entries() {
    let (cap, ecap) = fake::SECOND_STAGE;
    let machine = Machine::new((cap | 1 << 7, ecap));
    let domain = machine.paging();
    // The absence of the context entry and of the page is cached before either appears.
    let other = machine.paging();
    machine.driver.attach(&endpoint(0x21), &other).unwrap();
    assert_eq!(machine.fake.dma(0x20, IOVA, true), Err(0x02));
    machine.driver.attach(&endpoint(0x20), &domain).unwrap();
    assert_eq!(machine.fake.dma(0x20, IOVA, true), Err(0x05));
    let list = [IOVA, IOVA + 0x20_0000];
    for iova in list {
        assert!(machine.fake.dma(0x20, iova, false).is_err());
        map_page(&domain, iova, 0x4000).unwrap();
        assert!(machine.fake.dma(0x20, iova, true).is_ok());
    }
}

#[test]
fn faults_are_drained_from_the_first_on_and_losses_counted() {
    let (cap, ecap) = fake::SECOND_STAGE;
    let machine = Machine::new((cap | 3 << 40, ecap));
    for round in 0..3_u64 {
        let addresses: Vec<u64> = (0..3).map(|n| 0x1000 * (1 + n + 3 * round)).collect();
        for &address in &addresses {
            assert!(machine.fake.dma(0x0120, address, true).is_err());
        }
        let seen: Vec<_> = machine.events();
        let expected = addresses.iter().map(|&address| Some(Iova::new(address)));
        let records = seen.iter().map(|event| match event {
            UnitEvent::Fault(record) => *record,
            other => panic!("{other:?}"),
        });
        assert!(records.clone().map(|record| record.address).eq(expected));
        let first = records.clone().next().unwrap();
        assert_eq!((first.endpoint, first.access), (EndpointId::new(0x120), Some(Access::WRITE)));
        assert_eq!((first.reason, first.code, first.name), (FaultReason::Unattached, 1, "LRT.2"));
        assert_eq!((first.pasid, first.stage), (None, None));
    }
    for n in 0..6 {
        assert!(machine.fake.dma(0x0120, 0x1000 * n, false).is_err());
    }
    let events = machine.events();
    assert_eq!(events.iter().filter(|event| **event == UnitEvent::Overflow).count(), 1);
    assert_eq!(events.len(), 5);
    assert_eq!(machine.events(), []);
    assert_eq!((machine.driver.stats().faults, machine.driver.stats().overflows), (13, 1));
}

#[test]
fn entries_and_registers_are_described_with_their_raw_words() {
    let machine = Machine::new(fake::FIRST_STAGE);
    let mut text = String::new();
    machine.driver.describe_entry(EndpointId::new(0x20), &mut text).unwrap();
    assert!(text.contains("never attached"), "{text}");
    let domain = machine.paging();
    machine.driver.attach(&endpoint(0x20), &domain).unwrap();
    text.clear();
    machine.driver.describe_entry(EndpointId::new(0x20), &mut text).unwrap();
    let root = domain.info().root.unwrap().root.get();
    assert!(text.contains(&format!("{:#018x}", root | 0x20)), "{text}");
    text.clear();
    machine.driver.describe_registers(&mut text).unwrap();
    assert!(text.contains("CAP_REG: 0x81d2008c222f0606") && text.contains("in order"), "{text}");
    assert!(text.lines().all(|line| line.contains(": ")), "{text}");
}

#[test]
fn lines_are_cleaned_for_walkers_that_do_not_snoop_and_for_no_others() {
    let (cap, ecap) = fake::SECOND_STAGE;
    let (entries, tables) = (1, 1 << 48);
    for (coherent, attach_cleans, map_cleans) in
        [(0, true, true), (entries, false, true), (tables, true, false), (entries | tables, false, false)]
    {
        let machine = Machine::new((cap, ecap | coherent));
        let domain = machine.paging();
        machine.driver.attach(&endpoint(0x20), &domain).unwrap();
        machine.driver.detach(&endpoint(0x20)).unwrap();
        let before = machine.hal.cleaned_lines();
        machine.driver.attach(&endpoint(0x20), &domain).unwrap();
        let attached = machine.hal.cleaned_lines();
        map_page(&domain, IOVA, 0x1000).unwrap();
        let mapped = machine.hal.cleaned_lines();
        assert_eq!((attached > before, mapped > attached), (attach_cleans, map_cleans));
    }
}

#[test]
fn a_gather_belongs_to_one_domain() {
    let machine = Machine::new(fake::SECOND_STAGE);
    let (one, two) = (machine.paging(), machine.paging());
    map_page(&one, 0, 0x1000).unwrap();
    let mut gather = Gather::new();
    let range = IovaRange::new(Iova::new(0), 0x1000).unwrap();
    portcullis_hal::host::unmap(&*one, range, &mut gather).unwrap();
    assert!(portcullis_hal::host::unmap(&*two, range, &mut gather).is_err());
    assert!(matches!(two.sync(&mut gather), Err(SyncError::Gather(_))));
    assert!(one.sync(&mut gather).is_ok(), "the other domain's attempt took nothing away");
}
