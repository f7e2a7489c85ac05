//! IORT: named components, reserved memory ranges, several SMMUs, and references that lead astray.

mod common;

use common::iort::*;
use common::{bdf, fix_checksum, parse, phys};
use portcullis_firmware::*;
use portcullis_hal::{EndpointId, Iova, IovaRange, RequesterId};

const ITS: usize = 0;
const SMMU: usize = 1;
const WIRED: [u32; 4] = [106, 107, 109, 108];

fn its() -> Node {
    its_group(&[4])
}

fn smmu(maps: Vec<Map>) -> Node {
    smmuv3(0x905_0000, 0, WIRED, 0, maps)
}

fn stream(first: u32, last: u32) -> (usize, u32, u32) {
    (0, first, last)
}

fn streams(device: &PlatformDevice) -> Vec<(usize, u32, u32)> {
    device.streams.iter().map(|s| (s.unit.get(), s.first.get(), s.last.get())).collect()
}

#[test]
fn ids_are_translated_at_every_node_on_the_way() {
    let topology = parse(&table(&[
        its(),
        smmu(vec![map(0x8000, 0x100, 0x2_0000, ITS), map(0x8100, 0x100, 0x5_0000, ITS)]),
        root(3, 1, vec![map(0x80, 0x100, 0x8080, SMMU)]),
    ]))
    .unwrap();
    let id = |word| RequesterId::from_bdf(3, word);
    let unit_of = |word| topology.unit_of(id(word)).map(|(_, id)| id.get());
    assert_eq!(unit_of(0x7f), None);
    assert_eq!((unit_of(0x80), unit_of(0x17f)), (Some(0x8080), Some(0x817f)));
    assert_eq!(unit_of(0x180), None);
    let msi = |word| topology.msi_device_id(id(word)).map(|target| target.device_id);
    assert_eq!((msi(0x80), msi(0xff)), (Some(0x2_0080), Some(0x2_00ff)));
    assert_eq!((msi(0x100), msi(0x17f)), (Some(0x5_0000), Some(0x5_007f)));
    let target = topology.msi_device_id(id(0x80)).unwrap();
    assert_eq!(target.controller, MsiController::Its(ItsId(4)));
    assert_eq!(topology.ats_support(id(0x80)), AtsSupport::Supported);
    assert_eq!(topology.warnings, []);
}

#[test]
fn a_named_component_has_all_the_streams_that_its_mappings_give() {
    let maps = vec![single(0x100, SMMU), single(0x108, SMMU), map(0, 4, 0x200, SMMU)];
    let topology =
        parse(&table(&[its(), smmu(vec![map(0, 0x1000, 0, ITS)]), named("\\_SB.DMA0", maps)])).unwrap();
    let [device] = topology.platform_devices.as_slice() else { panic!() };
    assert_eq!(device.name, "\\_SB.DMA0");
    assert_eq!(streams(device), [stream(0x100, 0x100), stream(0x108, 0x108), stream(0x200, 0x203)]);
    assert_eq!(device.streams[2].endpoints().count(), 4);
    assert_eq!(device.dma, DmaCoherency::Coherent);
    let msi = MsiTarget { controller: MsiController::Its(ItsId(4)), device_id: 0x100 };
    assert_eq!(device.msi, Some(msi));
}

#[test]
fn reserved_memory_ranges_concern_the_streams_of_their_mappings() {
    let topology = parse(&table(&[
        its(),
        smmu(vec![]),
        rmr(0, &[(0x8000_0000, 0x1_0000), (0x9000_0000, 0x1000)], vec![single(0x42, SMMU)]),
        rmr(1, &[(0xa000_0000, 0x1000)], vec![single(0x42, SMMU), single(0x43, SMMU)]),
    ]))
    .unwrap();
    let unit = topology.indexed_units().next().unwrap().0;
    let regions = |id| {
        let regions = topology.reserved_for_stream(unit, EndpointId::new(id));
        regions.map(|region| (region.range.start().get(), region.kind)).collect::<Vec<_>>()
    };
    let direct = ReservedKind::Direct;
    let relaxable = (0xa000_0000, ReservedKind::DirectRelaxable);
    assert_eq!(regions(0x42), [(0x8000_0000, direct), (0x9000_0000, direct), relaxable]);
    assert_eq!(regions(0x43), [relaxable]);
    assert_eq!(regions(0x44), []);
    let first = IovaRange::new(Iova::new(0x8000_0000), 0x1_0000).unwrap();
    assert_eq!(topology.reserved[0].range, first);
}

#[test]
fn a_pci_function_finds_its_reserved_memory_by_stream() {
    let topology = parse(&table(&[
        its(),
        smmu(vec![]),
        root(0, 0, vec![map(0, 0x100, 0x1000, SMMU)]),
        rmr(0, &[(0x8000_0000, 0x1000)], vec![single(0x1010, SMMU)]),
    ]))
    .unwrap();
    assert_eq!(topology.reserved_for(bdf(0, 2, 0)).count(), 1);
    assert_eq!(topology.reserved_for(bdf(0, 2, 1)).count(), 0);
}

#[test]
fn reserved_memory_of_an_older_table_is_not_guessed_at() {
    let nodes = [its(), smmu(vec![]), rmr(0, &[(0x8000_0000, 0x1000)], vec![single(1, SMMU)])];
    let mut old = table(&nodes);
    old[8] = 1;
    fix_checksum(&mut old);
    let topology = parse(&old).unwrap();
    assert_eq!(topology.reserved, []);
    assert!(matches!(topology.warnings[..], [Warning::UnknownStructure { kind: 6, .. }]));
}

#[test]
fn absent_interrupts_overrides_and_own_msis_are_kept_apart() {
    // Coherency override, proximity and DeviceID valid; only the event interrupt is wired.
    let unit = smmuv3(0x1_0000_0000, 0b1_1001, [64, 0, 0, 0], 1, vec![map(0, 16, 0, ITS), single(99, ITS)]);
    let topology = parse(&table(&[its(), unit])).unwrap();
    let UnitKind::Smmuv3(smmu) = &topology.units[0].kind else { panic!() };
    assert_eq!(smmu.registers, phys(0x1_0000_0000, 0x2_0000));
    assert_eq!(smmu.walks, WalkCoherency::Coherent);
    assert_eq!(smmu.interrupts.event.unwrap().intid, 64);
    let Smmuv3Interrupts { gerror, pri, command_sync, combined, .. } = smmu.interrupts;
    assert_eq!([gerror, pri, command_sync, combined], [None; 4]);
    let own = MsiTarget { controller: MsiController::Its(ItsId(4)), device_id: 99 };
    assert_eq!(smmu.msi, Some(own));
    assert_eq!(topology.units[0].proximity, Some(7));
}

#[test]
fn the_smmus_own_device_id_is_not_that_of_devices_behind_it() {
    let unit = smmuv3(0x905_0000, 1 << 4, [0; 4], 0, vec![single(99, ITS), map(0, 16, 32, ITS)]);
    let topology = parse(&table(&[its(), unit, root(0, 0, vec![map(0, 16, 0, SMMU)])])).unwrap();
    assert_eq!(topology.msi_device_id(bdf(0, 0, 1)).unwrap().device_id, 33);
    assert_eq!(topology.msi_map.len(), 1);
}

#[test]
fn overlapping_mappings_are_settled_by_order_with_a_warning() {
    let maps = vec![map(0, 0x100, 0, SMMU), map(0x80, 0x100, 0x4000, SMMU)];
    let topology = parse(&table(&[its(), smmu(vec![]), root(0, 0, maps)])).unwrap();
    let stream = |id| topology.unit_of(id).map(|(_, id)| id.get());
    assert_eq!(stream(RequesterId::from_bdf(0, 0x90)), Some(0x90));
    assert_eq!(stream(RequesterId::from_bdf(0, 0x110)), Some(0x4090));
    assert!(matches!(topology.warnings[..], [Warning::Overlap { .. }]));
}

#[test]
fn a_single_mapping_gives_every_requester_one_stream() {
    let topology = parse(&table(&[its(), smmu(vec![]), root(0, 0, vec![single(5, SMMU)])])).unwrap();
    for word in [0, 0x1234, 0xffff] {
        let (_, id) = topology.unit_of(RequesterId::from_bdf(0, word)).unwrap();
        assert_eq!(id.get(), 5);
    }
}

#[test]
fn devices_behind_an_smmu_that_is_not_driven_are_behind_no_unit() {
    let topology = parse(&table(&[its(), smmuv2(), root(0, 0, vec![map(0, 0x100, 0, SMMU)])])).unwrap();
    assert_eq!(topology.unit_of(bdf(0, 1, 0)), None);
    let kinds: Vec<_> = topology.warnings.iter().map(core::mem::discriminant).collect();
    let at = topology.warnings.iter().find_map(|w| match w {
        Warning::UnknownTarget { at } => Some(*at),
        _ => None,
    });
    assert_eq!((kinds.len(), at.is_some()), (2, true));
}

#[test]
fn performance_counters_are_no_devices() {
    let topology = parse(&table(&[its(), smmu(vec![]), pmcg(ITS)])).unwrap();
    assert_eq!((topology.platform_devices.len(), topology.warnings.len()), (0, 0));
}

#[test]
fn reference_loops_are_errors() {
    let own_loop = table(&[its(), smmu(vec![map(0, 16, 0, SMMU)]), root(0, 0, vec![map(0, 16, 0, SMMU)])]);
    assert!(matches!(parse(&own_loop), Err(FirmwareError::ReferenceLoop { .. })));
    let pair = table(&[
        its(),
        smmu(vec![map(0, 16, 0, 2)]),
        smmuv3(0xa00_0000, 0, WIRED, 0, vec![map(0, 16, 0, SMMU)]),
        named("X", vec![single(0, SMMU)]),
    ]);
    assert!(matches!(parse(&pair), Err(FirmwareError::ReferenceLoop { .. })));
    let root_to_itself = table(&[its(), smmu(vec![]), root(0, 0, vec![map(0, 16, 0, 2)])]);
    assert!(matches!(parse(&root_to_itself), Err(FirmwareError::ReferenceLoop { .. })));
}

#[test]
fn a_chain_that_fans_out_is_cut_off() {
    let many = |to| (0..400).map(|_| map(0, 16, 0, to)).collect::<Vec<_>>();
    let nodes = [
        its(),
        smmu(many(2)),
        smmuv3(0xa00_0000, 0, WIRED, 0, many(3)),
        smmuv3(0xb00_0000, 0, WIRED, 0, many(ITS)),
        named("X", vec![single(0, SMMU)]),
    ];
    assert!(matches!(parse(&table(&nodes)), Err(FirmwareError::TooManyEntries { .. })));
}

#[test]
fn references_into_the_middle_of_a_node_or_to_a_device_are_errors() {
    let nodes = [its(), smmu(vec![]), root(0, 0, vec![map(0, 16, 0, SMMU)])];
    let good = table(&nodes);
    let reference = good.len() - 8;
    for target in [0u32, 48 + 4, 0xffff_fff0] {
        let mut bad = good.clone();
        bad[reference..reference + 4].copy_from_slice(&target.to_le_bytes());
        fix_checksum(&mut bad);
        let error = parse(&bad).unwrap_err();
        assert!(matches!(error, FirmwareError::BadReference { target: t, .. } if t == target), "{error}");
    }
    let to_device = table(&[its(), smmu(vec![]), named("X", vec![]), root(0, 0, vec![map(0, 16, 0, 2)])]);
    assert!(matches!(parse(&to_device), Err(FirmwareError::BadReference { .. })));
}

#[test]
fn ids_that_wrap_are_errors() {
    for map in [map(0xffff_fff0, 0x20, 0, SMMU), map(0, 0x20, 0xffff_fff0, SMMU)] {
        let error = parse(&table(&[its(), smmu(vec![]), named("X", vec![map])])).unwrap_err();
        assert!(matches!(error, FirmwareError::BadValue { .. }), "{error}");
    }
}

#[test]
fn counts_beyond_the_node_are_errors() {
    let good = table(&[its(), smmu(vec![map(0, 16, 0, ITS)])]);
    // The SMMU's count of mappings, the table's count of nodes.
    let smmu_at = 48 + 24;
    for (offset, value) in [(smmu_at + 8, 2u32), (smmu_at + 8, u32::MAX), (36, 3)] {
        let mut bad = good.clone();
        bad[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        fix_checksum(&mut bad);
        let error = parse(&bad).unwrap_err();
        assert!(matches!(error, FirmwareError::Truncated { .. }), "{offset}: {error}");
    }
}

#[test]
fn an_its_that_madt_does_not_know_is_passed_over() {
    let gicd = [vec![0x0c, 24, 0, 0], vec![0; 4], 0x800_0000u64.to_le_bytes().to_vec(), vec![0; 8]].concat();
    let its_7 = [vec![0x0f, 20, 0, 0, 7, 0, 0, 0], 0x808_0000u64.to_le_bytes().to_vec(), vec![0; 4]].concat();
    let madt = common::table("APIC", 5, &[vec![0; 8], gicd, its_7].concat());
    let iort = table(&[its_group(&[4, 7]), named("X", vec![single(1, ITS)])]);
    let topology = acpi::from_tables(&[&iort, &madt]).unwrap();
    let msi = topology.platform_devices[0].msi.unwrap();
    assert_eq!(msi.controller, MsiController::Its(ItsId(7)));
}
