//! Domains and attachments against a device that keeps to the specification.
mod support;

use portcullis_hal::{
    Access, Arc, Attributes, FixedMapping, Gather, Iova, MapError, MemoryKind, PAGE_SIZE, SharedTable,
    TableFormat, TableRoot, TableWrites, UnmapError,
};
use portcullis_iommu::{
    Abilities, AttachError, Domain, DomainError, DomainKind, DomainSpec, FaultReason, Grain, Missing,
    PagingSpec, Stage, Transition, Unit, UnitEvent,
};
use support::*;

#[test]
fn the_bypass_goes_off_before_anything_else() {
    let fake = Fake::new();
    assert_eq!(fake.dma(1, 0x5000, true), Some(0x5000), "the host boots with bypass");
    let _unit = up(&fake);
    let history = fake.state().history.clone();
    assert_eq!(history, START_UP);
    assert_eq!(fake.state().accepted, ALL_FEATURES);
    assert_eq!(fake.dma(1, 0x5000, true), None);
}

#[test]
fn a_mapping_made_before_the_attachment_is_replayed_and_one_made_after_it_is_there() {
    let fake = Fake::new();
    let unit = up(&fake);
    let domain = paging(&unit);
    map(&domain, &[piece(0x10_0000, 0x8000_0000, 0x3000), piece(0x20_0000, 0x9000_0000, 0x1000)]).unwrap();
    assert!(fake.take_requests().is_empty(), "the device has no such domain yet");
    assert_eq!(unit.attach(&[endpoint(7)], &domain), Ok(Transition::Disruptive));
    let expected = [
        Req::Attach { domain: 7, endpoint: 7, flags: 0 },
        Req::Map { domain: 7, first: 0x10_0000, last: 0x10_2fff, phys: 0x8000_0000, flags: 3 },
        Req::Map { domain: 7, first: 0x20_0000, last: 0x20_0fff, phys: 0x9000_0000, flags: 3 },
    ];
    assert_eq!(fake.take_requests(), expected);
    map(&domain, &[piece(0x30_0000, 0xa000_0000, 0x1000)]).unwrap();
    assert_eq!(fake.dma(7, 0x10_2ffc, true), Some(0x8000_2ffc));
    assert_eq!(fake.dma(7, 0x30_0004, false), Some(0xa000_0004));
    assert_eq!(domain.iova_to_phys(Iova::new(0x10_1004)).unwrap().phys.get(), 0x8000_1004);
    // A second endpoint finds the mappings there.
    fake.take_requests();
    unit.attach(&[endpoint(8)], &domain).unwrap();
    assert_eq!(fake.take_requests(), [Req::Attach { domain: 7, endpoint: 8, flags: 0 }]);
    assert_eq!(fake.dma(8, 0x20_0000, true), Some(0x9000_0000));
}

#[test]
fn a_domain_that_lost_its_last_endpoint_is_replayed_to_the_next() {
    let fake = Fake::new();
    let unit = up(&fake);
    let domain = paging(&unit);
    let list: Vec<_> =
        (0..100).map(|i| piece(0x10_0000 + i * 0x2000, 0x8000_0000 + i * 0x1000, 0x1000)).collect();
    map(&domain, &list).unwrap();
    for id in [3, 4] {
        unit.attach(&[endpoint(id)], &domain).unwrap();
        for mapping in &list {
            assert_eq!(fake.dma(id, mapping.iova.get(), true), Some(mapping.memory.start().get()));
        }
        unit.detach(&[endpoint(id)]).unwrap();
        assert!(fake.state().domains.is_empty());
        assert_eq!(fake.dma(id, 0x10_0000, true), None);
    }
}

#[test]
fn an_unmap_costs_one_request_and_one_notification_and_a_queued_one_none() {
    let (fake, _unit, domain) = attached();
    let list: Vec<_> = (0..8).map(|i| piece(0x10_0000 + i * 0x1000, 0x8000_0000, 0x1000)).collect();
    map(&domain, &list).unwrap();
    fake.take_requests();
    let before = fake.state().notifications;
    let mut gather = Gather::new();
    assert_eq!(portcullis_hal::host::unmap(&*domain, range(0x10_0000, 0x4000), &mut gather), Ok(0x4000));
    assert_eq!(portcullis_hal::host::unmap(&*domain, range(0x10_6000, 0x1000), &mut gather), Ok(0x1000));
    assert_eq!(fake.state().notifications, before);
    assert_eq!(fake.dma(1, 0x10_0000, true), Some(0x8000_0000), "nothing was sent yet");
    assert!(domain.sync(&mut gather).is_ok());
    assert_eq!(fake.state().notifications, before + 1);
    let expected = [
        Req::Unmap { domain: 7, first: 0x10_0000, last: 0x10_3fff },
        Req::Unmap { domain: 7, first: 0x10_6000, last: 0x10_6fff },
    ];
    assert_eq!(fake.take_requests(), expected);
    assert_eq!(fake.dma(1, 0x10_0000, true), None);
    assert_eq!(fake.dma(1, 0x10_4000, true), Some(0x8000_0000));
    assert_eq!(unmap(&domain, 0x10_0000, 0x8000), Ok(Ok(0x3000)));
    assert_eq!(unmap(&domain, 0x10_0000, 0x8000), Ok(Ok(0)));
}

#[test]
fn more_unmaps_than_slots_are_all_done_at_the_sync() {
    let fake = Fake::new();
    fake.state().queue_sizes = [8, 8];
    let unit = up(&fake);
    let domain = paging(&unit);
    unit.attach(&[endpoint(1)], &domain).unwrap();
    let list: Vec<_> = (0..50).map(|i| piece(0x10_0000 + i * 0x2000, 0x8000_0000, 0x1000)).collect();
    map(&domain, &list).unwrap();
    let mut gather = Gather::new();
    for mapping in &list {
        assert_eq!(
            portcullis_hal::host::unmap(&*domain, range(mapping.iova.get(), 0x1000), &mut gather),
            Ok(0x1000)
        );
    }
    assert!(domain.sync(&mut gather).is_ok());
    assert!(fake.state().domains[&7].mappings.is_empty());
}

#[test]
fn what_cannot_be_mapped_changes_nothing() {
    let (fake, _unit, domain) = attached();
    map(&domain, &[piece(0x4000, 0x8000_0000, 0x2000)]).unwrap();
    fake.take_requests();
    let iova = |at| Iova::new(at);
    let good = piece(0x1000, 0x8000_0000, 0x1000);
    let with = |access, memory| portcullis_hal::Mapping { attributes: Attributes { access, memory }, ..good };
    let rw = Access::READ | Access::WRITE;
    for (bad, error) in [
        (piece(0x1800, 0, 0x1000), MapError::Misaligned { iova: iova(0x1800) }),
        (piece(0x2000, 0x800, 0x1000), MapError::Misaligned { iova: iova(0x2000) }),
        (piece(0x2000, 0, 0x1800), MapError::Misaligned { iova: iova(0x2000) }),
        (piece(0x7f_ffff_f000, 0, 0x2000), MapError::OutOfRange { iova: iova(0x7f_ffff_f000) }),
        (piece(u64::MAX - 0xfff, 0, 0x2000), MapError::OutOfRange { iova: iova(u64::MAX - 0xfff) }),
        (piece(0x3000, 0, 0x2000), MapError::Overlap { iova: iova(0x4000) }),
        (piece(0x5000, 0, 0x1000), MapError::Overlap { iova: iova(0x5000) }),
        (good, MapError::Overlap { iova: iova(0x1000) }),
        (with(rw | Access::EXECUTE, MemoryKind::WriteBack), MapError::Attributes),
        (with(Access::empty(), MemoryKind::WriteBack), MapError::Attributes),
        (with(rw, MemoryKind::NonCacheable), MapError::Attributes),
    ] {
        assert_eq!(map(&domain, &[good, bad]), Err(error));
        assert_eq!(domain.iova_to_phys(iova(0x1000)), None);
    }
    assert!(fake.take_requests().is_empty());
    // The last page of the aperture is usable.
    map(&domain, &[piece(0x7f_ffff_f000, 0, 0x1000)]).unwrap();
}

#[test]
fn a_range_that_cuts_a_mapping_is_refused_and_changes_nothing() {
    let (fake, _unit, domain) = attached();
    map(&domain, &[piece(0x4000, 0x8000_0000, 0x4000), piece(0x8000, 0x8000_0000, 0x1000)]).unwrap();
    let partial = UnmapError::Partial { iova: Iova::new(0x4000), size: 0x4000 };
    assert_eq!(unmap(&domain, 0x5000, 0x1000), Err(partial));
    assert_eq!(unmap(&domain, 0x5000, 0x4000), Err(partial));
    assert_eq!(unmap(&domain, 0x800, 0x1000), Err(UnmapError::Misaligned { iova: Iova::new(0x800) }));
    let beyond = UnmapError::OutOfRange { iova: Iova::new(0x80_0000_0000) };
    assert_eq!(unmap(&domain, 0x80_0000_0000, 0x1000), Err(beyond));
    assert_eq!(fake.dma(1, 0x8000, true), Some(0x8000_0000));
    assert_eq!(unmap(&domain, 0x4000, 0x5000), Ok(Ok(0x5000)));
}

/// A domain whose mappings are cut as page tables cut them.
fn leaves(unit: &FakeUnit) -> Arc<dyn Domain> {
    unit.new_domain(&DomainSpec::Paging(PagingSpec { grain: Grain::Leaf, ..PagingSpec::default() })).unwrap()
}

#[test]
fn where_mappings_are_cut_to_leaves_each_leaf_can_be_unmapped_and_none_be_cut() {
    const MIB: u64 = 1 << 20;
    let fake = Fake::new();
    let unit = up(&fake);
    let domain = leaves(&unit);
    assert_eq!(domain.page_sizes(), 1 << 12 | 1 << 21 | 1 << 30);
    unit.attach(&[endpoint(1)], &domain).unwrap();
    fake.take_requests();
    let before = fake.state().notifications;
    // Four pages, a large leaf, four pages.
    map(&domain, &[piece(2 * MIB - 0x4000, 2 * MIB - 0x4000, 2 * MIB + 0x8000)]).unwrap();
    assert_eq!((fake.take_requests().len(), fake.state().notifications), (9, before + 1));
    // A page in the middle goes alone, and what lies beside it is there all the time.
    assert_eq!(unmap(&domain, 2 * MIB - 0x3000, 0x1000), Ok(Ok(0x1000)));
    assert_eq!(fake.dma(1, 2 * MIB - 0x3000, true), None);
    for iova in [2 * MIB - 0x3001, 2 * MIB - 0x2000, 2 * MIB, 4 * MIB + 0x3fff] {
        assert_eq!(fake.dma(1, iova, true), Some(iova));
    }
    let partial = UnmapError::Partial { iova: Iova::new(2 * MIB), size: 2 * MIB };
    assert_eq!(unmap(&domain, 2 * MIB, 0x1000), Err(partial));
    assert_eq!(unmap(&domain, 2 * MIB - 0x1000, 2 * MIB), Err(partial));
    // What follows each other goes with one request.
    fake.take_requests();
    assert_eq!(unmap(&domain, 2 * MIB - 0x2000, 2 * MIB + 0x4000), Ok(Ok(2 * MIB + 0x4000)));
    assert_eq!(fake.take_requests().len(), 1);
    assert_eq!(unmap(&domain, 0, 8 * MIB), Ok(Ok(0x3000)));
    // A list that is refused is undone whole.
    fake.script(|req| match req {
        Req::Map { first: 0x3000, .. } => Answer::Status(NOMEM),
        _ => Answer::Right,
    });
    assert!(map(&domain, &[piece(0x1000, 0x1000, 0x4000)]).is_err());
    assert!(fake.state().domains[&7].mappings.is_empty());
    assert_eq!(domain.iova_to_phys(Iova::new(0x1000)), None);
}

#[test]
fn how_finely_a_list_is_mapped_does_not_change_what_it_leads_to() {
    let fake = Fake::new();
    let unit = up(&fake);
    let list = [piece(0x3000, 0x10_0000, 0x5000), piece(0x20_0000, 0x40_0000, 0x20_1000)];
    for (id, domain) in [(1, paging(&unit)), (2, leaves(&unit))] {
        map(&domain, &list).unwrap();
        unit.attach(&[endpoint(id)], &domain).unwrap();
        for (iova, phys) in [(0x3000, 0x10_0000), (0x7fff, 0x10_4fff), (0x40_0fff, 0x60_0fff)] {
            assert_eq!(fake.dma(id, iova, true), Some(phys));
            assert_eq!(domain.iova_to_phys(Iova::new(iova)).unwrap().phys.get(), phys);
        }
        assert_eq!((fake.dma(id, 0x2fff, true), fake.dma(id, 0x8000, true)), (None, None));
        assert_eq!(unmap(&domain, 0, 0x100_0000), Ok(Ok(0x20_6000)));
    }
}

#[test]
fn a_fixed_mapping_fills_what_lies_around_a_mapping_of_any_length() {
    let (fake, _unit, domain) = attached();
    map(&domain, &[piece(0x1000, 0x1000, 0x3000)]).unwrap();
    assert_eq!(
        [0x1000, 0x2000, 0x3fff].map(|iova| domain.iova_to_phys(Iova::new(iova)).unwrap().size),
        [0x1000, 0x2000, 0x2000]
    );
    // SAFETY: the addresses name no memory; the fake only compares numbers.
    #[allow(unsafe_code, reason = "a constructor that vouches")]
    let fixed = unsafe { FixedMapping::new(piece(0x1000, 0x1000, 0x6000)) };
    fixed.map_into(&*domain).unwrap();
    for iova in (0x1000..0x7000).step_by(0x1000) {
        assert_eq!(fake.dma(1, iova, true), Some(iova), "{iova:#x}");
    }
}

#[test]
fn registers_and_read_only_memory_are_told_apart() {
    let (fake, _unit, domain) = attached();
    let doorbell =
        portcullis_hal::Mapping { attributes: Attributes::DOORBELL, ..piece(0x1000, 0x1000, 0x1000) };
    let read = portcullis_hal::Mapping { attributes: Attributes::READ, ..piece(0x2000, 0x2000, 0x1000) };
    map(&domain, &[doorbell, read]).unwrap();
    let flags: Vec<u32> = fake.state().domains[&7].mappings.values().map(|mapping| mapping.2).collect();
    assert_eq!(flags, [7, 1]);
    // Without the feature the flag is not used.
    let fake = Fake::new();
    fake.state().offered &= !(1 << 5);
    let unit = up(&fake);
    let domain = paging(&unit);
    unit.attach(&[endpoint(1)], &domain).unwrap();
    map(&domain, &[doorbell]).unwrap();
    assert_eq!(fake.state().domains[&7].mappings[&0x1000].2, 3);
}

#[test]
fn blocked_identity_and_paging_replace_each_other() {
    let fake = Fake::new();
    let unit = up(&fake);
    let blocked = unit.new_domain(&DomainSpec::Blocked).unwrap();
    let identity = unit.new_domain(&DomainSpec::Identity(portcullis_hal::host::IDENTITY)).unwrap();
    let domain = paging(&unit);
    let other = paging(&unit);
    map(&domain, &[piece(0x1000, 0x8000_0000, 0x1000)]).unwrap();
    map(&other, &[piece(0x1000, 0x9000_0000, 0x1000)]).unwrap();
    let reaches = || fake.dma(1, 0x1000, true);
    let cases = [
        (&blocked, None),
        (&identity, Some(0x1000)),
        (&domain, Some(0x8000_0000)),
        (&other, Some(0x9000_0000)),
    ];
    for (from, _) in cases {
        for (to, expected) in cases {
            unit.attach(&[endpoint(1)], from).unwrap();
            unit.attach(&[endpoint(1)], to).unwrap();
            assert_eq!(reaches(), expected, "{:?} to {:?}", from.info().kind, to.info().kind);
        }
    }
    unit.detach(&[endpoint(1)]).unwrap();
    assert_eq!((reaches(), fake.state().domains.len()), (None, 0));
    assert_eq!(map(&identity, &[piece(0, 0, 0x1000)]), Err(MapError::NotPaging));
    assert_eq!(unmap(&blocked, 0, 0x1000), Err(UnmapError::NotPaging));
    assert!(identity.sync(&mut Gather::new()).is_ok());
    assert_eq!(identity.info().kind, DomainKind::Identity);
}

/// A device that offers no bypass, neither at boot nor for domains.
fn without_bypass() -> Fake {
    let fake = Fake::new();
    fake.state().offered &= !(1 << 6);
    fake.set_config(36, &[0]);
    fake
}

/// A reserved region as PROBE tells it (5.13.6.8.1).
fn region(first: u64, last: u64) -> Vec<u8> {
    [&[1, 0, 20, 0, 0, 0, 0, 0][..], &first.to_le_bytes(), &last.to_le_bytes()].concat()
}

#[test]
fn where_no_bypass_is_offered_identity_is_mapped_around_reserved_regions() {
    let fake = without_bypass();
    // Not in order, one inside another, not in whole pages, and at either end.
    let regions = [
        (0xfee0_0000, 0xfeef_ffff),
        (0x8010, 0x8fff),
        (0xfee1_0000, 0xfee1_ffff),
        (0, 0xfff),
        (0x7f_ffff_f800, u64::MAX),
    ];
    fake.state().properties = regions.iter().flat_map(|&(first, last)| region(first, last)).collect();
    let unit = up(&fake);
    assert!(unit.info().identity);
    let identity = unit.new_domain(&DomainSpec::Identity(portcullis_hal::host::IDENTITY)).unwrap();
    unit.attach(&[endpoint(1), endpoint(2)], &identity).unwrap();
    let one: Vec<_> = fake.state().domains[&6].mappings.iter().map(|(first, map)| (*first, *map)).collect();
    let straight = |first: u64, last: u64| (first, (last, first, 3));
    let expected =
        [straight(0x1000, 0x7fff), straight(0x9000, 0xfedf_ffff), straight(0xfef0_0000, 0x7f_ffff_efff)];
    assert_eq!(one, expected);
    for id in [1, 2] {
        for at in [0x1000, 0x7fff, 0x9000, 0xfedf_ffff, 0xfef0_0000, 0x7f_ffff_efff] {
            assert_eq!(fake.dma(id, at, true), Some(at), "{at:#x}");
        }
        for at in [0, 0xfff, 0x8000, 0xfee0_0000, 0xfee1_8000, 0xfeef_ffff, 0x7f_ffff_f000, 0x80_0000_0000] {
            assert_eq!(fake.dma(id, at, true), None, "{at:#x}");
        }
    }
    // Attaching the same again asks for nothing.
    fake.take_requests();
    unit.attach(&[endpoint(1)], &identity).unwrap();
    assert!(!fake.take_requests().iter().any(|req| matches!(req, Req::Attach { .. } | Req::Map { .. })));
    unit.detach(&[endpoint(1), endpoint(2)]).unwrap();
    assert!(fake.state().domains.is_empty());
}

#[test]
fn identity_without_bypass_is_all_there_or_the_endpoint_is_where_it_was() {
    let fake = without_bypass();
    fake.state().properties = region(0xfee0_0000, 0xfeef_ffff);
    let unit = up(&fake);
    let identity = unit.new_domain(&DomainSpec::Identity(portcullis_hal::host::IDENTITY)).unwrap();
    let (old, blocked) = (paging(&unit), unit.new_domain(&DomainSpec::Blocked).unwrap());
    map(&old, &[piece(0x1000, 0x9000_0000, 0x1000)]).unwrap();
    let refuse = |fake: &Fake, first: u64| {
        fake.script(move |req| match req {
            Req::Map { first: found, .. } if *found == first => Answer::Status(NOMEM),
            _ => Answer::Right,
        });
    };
    unit.attach(&[endpoint(1)], &old).unwrap();
    refuse(&fake, 0xfef0_0000);
    let refused = unit.attach(&[endpoint(1)], &identity);
    assert_eq!(refused, Err(AttachError::OutOfMemory(portcullis_hal::OutOfMemory)));
    assert_eq!([0x1000, 0x2000].map(|at| fake.dma(1, at, true)), [Some(0x9000_0000), None]);
    refuse(&fake, 1);
    for (to, expected) in
        [(&identity, Some(0x1000)), (&blocked, None), (&identity, Some(0x1000)), (&old, Some(0x9000_0000))]
    {
        unit.attach(&[endpoint(1)], to).unwrap();
        assert_eq!(fake.dma(1, 0x1000, true), expected);
    }
    // An endpoint whose properties make no sense is not attached.
    fake.state().properties = region(0x2000, 0x1000);
    assert_eq!(unit.attach(&[endpoint(3)], &identity), Err(AttachError::Refused));
    assert_eq!(fake.dma(3, 0x1000, true), None);
}

#[test]
fn a_platform_device_moves_with_all_its_endpoints_or_none() {
    let fake = Fake::new();
    let unit = up(&fake);
    let domain = paging(&unit);
    let other = paging(&unit);
    map(&domain, &[piece(0x1000, 0x8000_0000, 0x1000)]).unwrap();
    map(&other, &[piece(0x1000, 0x9000_0000, 0x1000)]).unwrap();
    unit.attach(&[endpoint(1), endpoint(2)], &domain).unwrap();
    let result = unit.attach(&[endpoint(1), endpoint(2), endpoint(0x100)], &other);
    assert_eq!(result, Err(AttachError::UnknownEndpoint(endpoint(0x100))));
    assert_eq!(
        (fake.dma(1, 0x1000, true), fake.dma(2, 0x1000, true)),
        (Some(0x8000_0000), Some(0x8000_0000))
    );
    unit.attach(&[endpoint(1), endpoint(2)], &other).unwrap();
    assert_eq!(
        (fake.dma(1, 0x1000, true), fake.dma(2, 0x1000, true)),
        (Some(0x9000_0000), Some(0x9000_0000))
    );
}

#[test]
fn what_the_unit_cannot_do_is_refused_when_the_domain_is_made() {
    let fake = Fake::new();
    let unit = up(&fake);
    let missing = |spec: &DomainSpec| match unit.new_domain(spec) {
        Err(DomainError::Unsupported { missing }) => missing,
        other => panic!("{:?}", other.map(|_| ())),
    };
    let stage = |stage| {
        DomainSpec::Paging(PagingSpec { stage: Some(stage), input_bits: Some(40), ..PagingSpec::default() })
    };
    assert_eq!(missing(&stage(Stage::Stage1)), Missing::STAGE_1 | Missing::INPUT_WIDTH);
    assert_eq!(missing(&stage(Stage::Stage2)), Missing::STAGE_2 | Missing::INPUT_WIDTH);
    let able = DomainSpec::Paging(PagingSpec { abilities: Abilities::all(), ..PagingSpec::default() });
    assert_eq!(missing(&able), Missing::RESIZE | Missing::TRACKING);
    let root = TableRoot {
        format: TableFormat::X86 { levels: 4 },
        root: portcullis_hal::PhysAddr::new(0x1000),
        input_bits: 48,
        output_bits: 48,
        page_sizes: PAGE_SIZE,
        writes: TableWrites::Cached,
    };
    // SAFETY: the unit refuses it; no domain is made.
    #[allow(unsafe_code, reason = "a constructor that vouches")]
    let shared = DomainSpec::Shared(unsafe { SharedTable::new(root) });
    assert_eq!(missing(&shared), Missing::SHARED_TABLES);
    // A domain of another unit, even of the same kind.
    let stranger = up(&Fake::new());
    let domain = paging(&stranger);
    let incompatible = AttachError::Incompatible { missing: Missing::BACKEND };
    assert_eq!(unit.attach(&[endpoint(1)], &domain), Err(incompatible));
}

#[test]
fn domain_numbers_run_out_and_come_back() {
    let fake = Fake::new();
    fake.set_config(24, &[3, 0, 0, 0, 6, 0, 0, 0]);
    let unit = up(&fake);
    let first = paging(&unit);
    let second = paging(&unit);
    let none = unit.new_domain(&DomainSpec::Paging(PagingSpec::default()));
    assert_eq!(none.err(), Some(DomainError::NoFreeId));
    unit.attach(&[endpoint(1)], &first).unwrap();
    drop(first);
    // The attachment keeps the domain.
    assert!(unit.new_domain(&DomainSpec::Paging(PagingSpec::default())).is_err());
    unit.detach(&[endpoint(1)]).unwrap();
    let third = paging(&unit);
    let name = |domain: &portcullis_hal::Arc<dyn portcullis_iommu::Domain>| {
        let mut name = String::new();
        domain.describe(&mut name).unwrap();
        name
    };
    assert_eq!([name(&second), name(&third)], ["domain 6", "domain 5"]);
}

#[test]
fn a_refused_access_is_reported_with_what_is_known_about_it() {
    let fake = Fake::new();
    let unit = up(&fake);
    let domain = paging(&unit);
    let blocked = unit.new_domain(&DomainSpec::Blocked).unwrap();
    let read = portcullis_hal::Mapping { attributes: Attributes::READ, ..piece(0x2000, 0x2000, 0x1000) };
    map(&domain, &[read]).unwrap();
    unit.attach(&[endpoint(1)], &domain).unwrap();
    unit.attach(&[endpoint(2)], &blocked).unwrap();
    for (id, address, write) in [(1, 0x2010, true), (1, 0x3010, false), (2, 0x2000, true), (3, 0x2000, true)]
    {
        assert_eq!(fake.dma(id, address, write), None);
    }
    let seen: Vec<_> = events(&unit)
        .into_iter()
        .map(|event| match event {
            UnitEvent::Fault(record) => {
                (record.endpoint.get(), record.address.unwrap().get(), record.access.unwrap(), record.reason)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = [
        (1, 0x2010, Access::WRITE, FaultReason::Permission),
        (1, 0x3010, Access::READ, FaultReason::NotMapped),
        (2, 0x2000, Access::WRITE, FaultReason::Blocked),
        (3, 0x2000, Access::WRITE, FaultReason::Unattached),
    ];
    assert_eq!(seen, expected);
    // Buffers are given back: many more faults than buffers arrive.
    for round in 0..10 {
        for _ in 0..60 {
            fake.dma(3, 0x2000, true);
        }
        assert_eq!(events(&unit).len(), 60, "round {round}");
    }
    assert_eq!((unit.stats().faults, unit.malformed_events()), (604, 0));
}
