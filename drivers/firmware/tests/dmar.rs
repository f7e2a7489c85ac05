//! DMAR: what QEMU's machines do not have.

mod common;

use common::dmar::*;
use common::{bdf, parse, phys};
use portcullis_firmware::*;
use portcullis_hal::{Iova, IovaRange, RequesterId};

const GRAPHICS_UNIT: u64 = 0xfed9_0000;
const REST_UNIT: u64 = 0xfed9_1000;

/// 0:1c.0 leads to bus 1, 1:00.0 to bus 2, 0:1d.0 to bus 5.
fn bridges(id: RequesterId) -> Option<BusRange> {
    [
        (bdf(0, 0x1c, 0), BusRange { first: 1, last: 3 }),
        (bdf(1, 0, 0), BusRange { first: 2, last: 2 }),
        (bdf(0, 0x1d, 0), BusRange { first: 5, last: 5 }),
    ]
    .into_iter()
    .find_map(|(bridge, buses)| (bridge == id).then_some(buses))
}

fn resolved(structures: &[Vec<u8>]) -> Topology {
    let mut topology = parse(&table(structures)).unwrap();
    topology.resolve_scopes(bridges).unwrap();
    topology
}

fn unit(topology: &Topology, id: RequesterId) -> Option<usize> {
    topology.unit_of(id).map(|(unit, endpoint)| {
        assert_eq!(endpoint.get(), u32::from(id.bdf()), "VT-d knows a requester by its source-id");
        unit.get()
    })
}

fn iova(first: u64, last: u64) -> IovaRange {
    IovaRange::from_bounds(Iova::new(first), Iova::new(last)).unwrap()
}

#[test]
fn include_all_takes_what_other_units_do_not_list_wherever_it_stands() {
    for swap in [false, true] {
        let mut units =
            vec![drhd(0, 0, GRAPHICS_UNIT, &[endpoint(0, &[(2, 0)])]), drhd(1, 0, REST_UNIT, &[])];
        if swap {
            units.reverse();
        }
        let topology = resolved(&units);
        let (graphics, rest) = if swap { (1, 0) } else { (0, 1) };
        assert_eq!(unit(&topology, bdf(0, 2, 0)), Some(graphics));
        assert_eq!(unit(&topology, bdf(0, 2, 1)), Some(rest));
        assert_eq!(unit(&topology, bdf(77, 0, 0)), Some(rest));
        assert_eq!(topology.warnings, []);
    }
}

#[test]
fn a_unit_covers_only_its_segment() {
    let topology = resolved(&[drhd(1, 1, GRAPHICS_UNIT, &[]), drhd(1, 0, REST_UNIT, &[])]);
    assert_eq!(unit(&topology, RequesterId::from_bdf(1, 0x10)), Some(0));
    assert_eq!(unit(&topology, RequesterId::from_bdf(0, 0x10)), Some(1));
    assert_eq!(unit(&topology, RequesterId::from_bdf(2, 0x10)), None);
}

#[test]
fn a_path_is_followed_through_every_bridge_on_it() {
    let deep = endpoint(0, &[(0x1c, 0), (0, 0), (3, 1)]);
    let topology = resolved(&[drhd(0, 0, GRAPHICS_UNIT, &[deep])]);
    assert_eq!(unit(&topology, bdf(2, 3, 1)), Some(0));
    assert_eq!(topology.resolved_map.len(), 1);
}

#[test]
fn a_bridge_scope_covers_the_bridge_and_all_buses_behind_it() {
    let topology = resolved(&[drhd(0, 0, GRAPHICS_UNIT, &[bridge(0, &[(0x1c, 0)])])]);
    for id in [bdf(0, 0x1c, 0), bdf(1, 0, 0), bdf(3, 31, 7)] {
        assert_eq!(unit(&topology, id), Some(0), "{id}");
    }
    for id in [bdf(0, 0x1c, 1), bdf(0, 0x1d, 0), bdf(4, 0, 0)] {
        assert_eq!(unit(&topology, id), None, "{id}");
    }
}

#[test]
fn a_path_through_a_missing_bridge_covers_nothing_and_warns() {
    let topology = resolved(&[drhd(0, 0, GRAPHICS_UNIT, &[endpoint(0, &[(9, 0), (0, 0)])])]);
    assert_eq!(topology.resolved_map, []);
    assert!(matches!(topology.warnings[..], [Warning::UnresolvedScope { at }] if at.offset == 48 + 16));
}

#[test]
fn of_overlapping_scopes_the_first_counts_and_both_are_named() {
    let first = drhd(0, 0, GRAPHICS_UNIT, &[bridge(0, &[(0x1c, 0)])]);
    let second = drhd(0, 0, REST_UNIT, &[endpoint(0, &[(0x1c, 0), (0, 0)])]);
    let kept = 48 + 16;
    let ignored = 48 + first.len() + 16;
    let topology = resolved(&[first, second]);
    assert_eq!(unit(&topology, bdf(1, 0, 0)), Some(0));
    let [Warning::ScopeOverlap { kept: k, ignored: i }] = topology.warnings[..] else { panic!() };
    assert_eq!((k.offset, i.offset), (kept, ignored));
}

#[test]
fn resolving_again_replaces_what_was_found() {
    let scopes = [endpoint(0, &[(0x1c, 0), (3, 0)]), endpoint(0, &[(9, 0), (0, 0)])];
    let rmrr = rmrr(0, 0x1000, 0x1fff, &[endpoint(0, &[(0x1c, 0), (3, 0)])]);
    let mut topology = resolved(&[drhd(0, 0, GRAPHICS_UNIT, &scopes), rmrr]);
    let before = topology.clone();
    topology.resolve_scopes(bridges).unwrap();
    assert_eq!(topology, before);
    topology.resolve_scopes(|id| (id == bdf(0, 0x1c, 0)).then_some(BusRange { first: 9, last: 9 })).unwrap();
    assert_eq!((unit(&topology, bdf(1, 3, 0)), unit(&topology, bdf(9, 3, 0))), (None, Some(0)));
    let direct = |id| topology.reserved_for(id).any(|region| region.kind == ReservedKind::Direct);
    assert!(direct(bdf(9, 3, 0)) && !direct(bdf(1, 3, 0)));
    assert_eq!(topology.warnings.len(), 1);
}

#[test]
fn reserved_memory_belongs_to_each_device_that_it_lists() {
    let usb = [endpoint(0, &[(0x14, 0)]), endpoint(0, &[(0x1c, 0), (0, 0)])];
    let topology = resolved(&[
        drhd(1, 0, REST_UNIT, &[]),
        rmrr(0, 0x7b00_0000, 0x7b7f_ffff, &usb),
        rmrr(0, 0x7c00_0000, 0x7fff_ffff, &[endpoint(0, &[(2, 0)])]),
    ]);
    let direct = |id| {
        let regions = topology.reserved_for(id).filter(|region| region.kind == ReservedKind::Direct);
        regions.map(|region| region.range).collect::<Vec<_>>()
    };
    assert_eq!(direct(bdf(0, 0x14, 0)), [iova(0x7b00_0000, 0x7b7f_ffff)]);
    assert_eq!(direct(bdf(1, 0, 0)), [iova(0x7b00_0000, 0x7b7f_ffff)]);
    assert_eq!(direct(bdf(0, 2, 0)), [iova(0x7c00_0000, 0x7fff_ffff)]);
    assert_eq!(direct(bdf(0, 3, 0)), []);
    let msi = topology.reserved_for(bdf(0, 3, 0)).map(|region| region.range).collect::<Vec<_>>();
    assert_eq!(msi, [iova(0xfee0_0000, 0xfeef_ffff)]);
}

#[test]
fn empty_reserved_memory_is_ignored_and_inverted_is_an_error() {
    let scope = [endpoint(0, &[(2, 0)])];
    let topology = resolved(&[rmrr(0, 0, 0, &scope), rmrr(0, 0x1000, 0x1fff, &[])]);
    let both = [Warning::Ignored { at: at(48) }, Warning::Ignored { at: at(48 + 32) }];
    assert_eq!(topology.warnings, both);
    let error = parse(&table(&[rmrr(0, 0x2000, 0x1fff, &scope)])).unwrap_err();
    assert!(matches!(error, FirmwareError::BadRange { at, .. } if at.offset == 48));
}

fn at(offset: usize) -> Location {
    Location { table: Table::Acpi(Signature(*b"DMAR")), offset }
}

#[test]
fn address_translation_services_are_stated_by_port_and_by_endpoint() {
    let topology = resolved(&[
        drhd(1, 0, REST_UNIT, &[]),
        atsr(0, 0, &[bridge(0, &[(0x1c, 0)])]),
        satc(1, 0, &[endpoint(0, &[(2, 0)])]),
        satc(0, 0, &[endpoint(0, &[(3, 0)])]),
    ]);
    let support = |id| topology.ats_support(id);
    assert_eq!(support(bdf(3, 0, 0)), AtsSupport::Supported);
    assert_eq!(support(bdf(5, 0, 0)), AtsSupport::NotStated);
    assert_eq!(support(bdf(0, 2, 0)), AtsSupport::Required);
    assert_eq!(support(bdf(0, 3, 0)), AtsSupport::Supported);
    let all = resolved(&[atsr(1, 4, &[])]);
    assert_eq!(all.ats_support(RequesterId::from_bdf(4, 0)), AtsSupport::Supported);
    assert_eq!(all.ats_support(RequesterId::from_bdf(0, 0)), AtsSupport::NotStated);
}

#[test]
fn affinity_and_names_find_units_that_come_later() {
    let topology = resolved(&[
        andd(7, "\\_SB.PCI0.I2C0"),
        rhsa(REST_UNIT, 3),
        rhsa(0x1234_5000, 4),
        drhd(0, 0, GRAPHICS_UNIT, &[endpoint(0, &[(2, 0)])]),
        drhd(1, 0, REST_UNIT, &[scope(5, 7, 0, &[(0x15, 1)]), scope(3, 2, 0xf0, &[(0x1f, 7)])]),
    ]);
    assert_eq!(topology.units[0].proximity, None);
    assert_eq!(topology.units[1].proximity, Some(3));
    let [device] = topology.platform_devices.as_slice() else { panic!() };
    assert_eq!(device.name, "\\_SB.PCI0.I2C0");
    let stream = device.streams[0];
    assert_eq!((stream.unit.get(), stream.first.get(), stream.last.get()), (1, 0xa9, 0xa9));
    assert!(matches!(topology.warnings[..], [Warning::UnknownTarget { .. }]));
    // A source of interrupts is no requester of a listing unit.
    let UnitKind::Vtd(rest) = &topology.units[1].kind else { panic!() };
    assert_eq!((rest.scopes[1].kind, rest.scopes[1].enumeration_id), (ScopeKind::IoApic, 2));
}

#[test]
fn register_windows_have_the_size_that_the_unit_states() {
    let mut large = drhd(1, 0, REST_UNIT & !0xffff, &[]);
    large[5] = 0x04;
    let topology = resolved(&[large]);
    let UnitKind::Vtd(vtd) = &topology.units[0].kind else { panic!() };
    assert_eq!(vtd.registers, phys(REST_UNIT & !0xffff, 0x1_0000));
}

#[test]
fn one_register_window_is_one_unit() {
    let topology = resolved(&[drhd(0, 0, REST_UNIT, &[]), drhd(1, 0, REST_UNIT, &[])]);
    assert_eq!(topology.units.len(), 1);
    assert!(matches!(topology.warnings[..], [Warning::Overlap { .. }]));
    let error = parse(&table(&[drhd(1, 0, 0, &[])])).unwrap_err();
    assert_eq!(error, FirmwareError::BadValue { at: at(48), value: 0 });
}

#[test]
fn two_catch_all_units_in_a_segment_are_settled_by_order() {
    let topology = resolved(&[drhd(1, 0, GRAPHICS_UNIT, &[]), drhd(1, 0, REST_UNIT, &[])]);
    assert_eq!(unit(&topology, bdf(0, 2, 0)), Some(0));
    assert!(matches!(topology.warnings[..], [Warning::ScopeOverlap { .. }]));
}

#[test]
fn unknown_structures_are_skipped_and_integrated_properties_kept() {
    let unknown = vec![0x42, 0, 8, 0, 1, 2, 3, 4];
    let topology = resolved(&[unknown, sidp(0, &[endpoint(0, &[(4, 0)])]), drhd(1, 0, REST_UNIT, &[])]);
    assert_eq!(topology.units.len(), 1);
    assert_eq!(topology.warnings, [Warning::UnknownStructure { at: at(48), kind: 0x42 }]);
    assert_eq!(topology.dmar.unwrap().integrated_properties.len(), 1);
}

#[test]
fn broken_lengths_are_errors_that_name_the_place() {
    let with = |structure: Vec<u8>| parse(&table(&[structure])).unwrap_err();
    assert_eq!(with(vec![0, 0, 0, 0]), FirmwareError::BadLength { at: at(48), length: 0 });
    let beyond = FirmwareError::Truncated { at: at(48), needed: 64, available: 4 };
    assert_eq!(with(vec![0, 0, 64, 0]), beyond);
    let short = FirmwareError::Truncated { at: at(48), needed: 16, available: 8 };
    assert_eq!(with(vec![0, 0, 8, 0, 0, 0, 0, 0]), short);
    let zero_scope = drhd(0, 0, REST_UNIT, &[vec![1, 0, 0, 0, 0, 0, 2, 0]]);
    assert_eq!(with(zero_scope), FirmwareError::BadLength { at: at(64), length: 0 });
    let no_path = drhd(0, 0, REST_UNIT, &[endpoint(0, &[])]);
    assert_eq!(with(no_path), FirmwareError::BadLength { at: at(64), length: 6 });
    let device_32 = drhd(0, 0, REST_UNIT, &[endpoint(0, &[(32, 0)])]);
    assert!(matches!(with(device_32), FirmwareError::BadRequester { .. }));
    assert!(matches!(with(andd(1, "x")[..9].to_vec()), FirmwareError::Truncated { .. }));
}
