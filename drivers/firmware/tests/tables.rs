//! The way to the tables, and the small ones: RSDP, RSDT, XSDT, MCFG, MADT, VIOT, FADT, SPCR, table loader.

mod common;

use common::ToBytes;
use common::{bdf, fix_checksum, parse, phys, table};
use portcullis_firmware::acpi::{self, loader};
use portcullis_firmware::*;
use portcullis_hal::{PhysAddr, PhysRange, RequesterId};

const RSDP_AT: usize = 0x100;
const ROOT_AT: usize = 0x200;
const MCFG_AT: usize = 0x300;

fn mcfg(entries: &[(u64, u16, u8, u8)]) -> Vec<u8> {
    let entries = entries.iter().flat_map(|e| bytes![e.0, e.1, e.2, e.3, 0u32]).collect::<Vec<_>>();
    table("MCFG", 1, &bytes![0u64, entries])
}

fn rsdp_v1(root: u32) -> Vec<u8> {
    let mut rsdp = bytes!["RSD PTR ", 0u8, "OEMIDX", 0u8, root];
    rsdp[8] = rsdp.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
    rsdp
}

fn rsdp_v2(xsdt: u64) -> Vec<u8> {
    let mut rsdp = bytes!["RSD PTR ", 0u8, "OEMIDX", 2u8, 0u32];
    rsdp[8] = rsdp.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
    rsdp.extend(bytes![36u32, xsdt, 0u8, vec![0; 3]]);
    rsdp[32] = rsdp.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
    rsdp
}

/// Memory with pieces at places.
fn memory(pieces: &[(usize, &[u8])]) -> Vec<u8> {
    let mut memory = vec![0; 0x400];
    for (at, bytes) in pieces {
        memory[*at..*at + bytes.len()].copy_from_slice(bytes);
    }
    memory
}

fn read(memory: &[u8]) -> Result<Topology, FirmwareError> {
    let map = |range: PhysRange| {
        let start = range.start().get() as usize;
        memory.get(start..start.checked_add(range.len() as usize)?)
    };
    acpi::from_rsdp(&map, PhysAddr::new(RSDP_AT as u64))
}

#[test]
fn both_root_tables_lead_to_the_others_and_unmapped_zero_entries_are_skipped() {
    let mcfg = mcfg(&[(0xe000_0000, 0, 0, 255)]);
    let rsdt = table("RSDT", 1, &bytes![0u32, MCFG_AT as u32]);
    let xsdt = table("XSDT", 1, &bytes![0u64, MCFG_AT as u64]);
    let old = memory(&[(RSDP_AT, &rsdp_v1(ROOT_AT as u32)), (ROOT_AT, &rsdt), (MCFG_AT, &mcfg)]);
    let new = memory(&[(RSDP_AT, &rsdp_v2(ROOT_AT as u64)), (ROOT_AT, &xsdt), (MCFG_AT, &mcfg)]);
    for memory in [old, new] {
        assert_eq!(read(&memory).unwrap().host_bridges.len(), 1);
    }
}

#[test]
fn every_damage_on_the_way_is_reported_as_what_it_is() {
    let xsdt = table("XSDT", 1, &bytes![MCFG_AT as u64]);
    let mcfg = mcfg(&[(0xe000_0000, 0, 0, 255)]);
    let good = memory(&[(RSDP_AT, &rsdp_v2(ROOT_AT as u64)), (ROOT_AT, &xsdt), (MCFG_AT, &mcfg)]);
    let with = |at: usize, value: u8| {
        let mut bad = good.clone();
        bad[at] = value;
        read(&bad).unwrap_err()
    };
    assert!(matches!(with(RSDP_AT, b'X'), FirmwareError::BadSignature { .. }));
    assert!(matches!(with(RSDP_AT + 9, b'X'), FirmwareError::Checksum { table: Table::Rsdp, .. }));
    assert!(matches!(with(RSDP_AT + 33, 1), FirmwareError::Checksum { table: Table::Rsdp, .. }));
    assert!(matches!(with(RSDP_AT + 20, 35), FirmwareError::BadLength { length: 35, .. }));
    assert!(matches!(with(ROOT_AT, b'Y'), FirmwareError::BadSignature { .. }));
    let xsdt = Table::Acpi(Signature(*b"XSDT"));
    assert_eq!(with(ROOT_AT + 10, b'P'), FirmwareError::Checksum { table: xsdt, sum: b'P' - b'O' });
    assert!(matches!(with(ROOT_AT + 7, 0x10), FirmwareError::Unmapped { .. }));
    assert!(matches!(with(MCFG_AT + 4, 0), FirmwareError::BadLength { length: 0, .. }));
    assert!(matches!(with(MCFG_AT + 45, 9), FirmwareError::Checksum { .. }));
}

#[test]
fn the_rsdp_is_found_on_16_byte_boundaries_only_and_only_if_it_adds_up() {
    let rsdp = rsdp_v1(0x1234);
    let mut area = vec![0u8; 0x200];
    area[0x18..0x18 + 20].copy_from_slice(&rsdp);
    assert_eq!(acpi::find_rsdp(&area), None);
    area[0x40..0x40 + 20].copy_from_slice(&rsdp);
    area[0x80..0x80 + 20].copy_from_slice(&rsdp);
    assert_eq!(acpi::find_rsdp(&area), Some(0x40));
    area[0x40 + 10] ^= 1;
    assert_eq!(acpi::find_rsdp(&area), Some(0x80));
    assert_eq!(acpi::find_rsdp(&area[..0x80 + 19]), None);
}

#[test]
fn ecam_of_a_bridge_is_that_of_its_own_buses() {
    let topology = parse(&mcfg(&[(0x10_0000_0000, 2, 0x20, 0x3f), (0xe000_0000, 0, 0, 0xff)])).unwrap();
    let [far, near] = topology.host_bridges.as_slice() else { panic!() };
    assert_eq!((far.segment, far.ecam), (2, phys(0x10_0200_0000, 0x200_0000)));
    assert_eq!(near.ecam, phys(0xe000_0000, 0x1000_0000));
    let bridge = topology.host_bridge_of(RequesterId::from_bdf(2, 0x3fff)).unwrap();
    assert_eq!(bridge.segment, 2);
    assert_eq!(topology.host_bridge_of(RequesterId::from_bdf(2, 0x4000)), None);
}

#[test]
fn impossible_ecam_regions_are_errors_and_overlapping_ones_warnings() {
    assert!(matches!(parse(&mcfg(&[(0, 0, 2, 1)])), Err(FirmwareError::BadValue { value: 1, .. })));
    assert!(matches!(parse(&mcfg(&[(u64::MAX - 5, 0, 0, 1)])), Err(FirmwareError::BadValue { .. })));
    let mut odd = mcfg(&[(0xe000_0000, 0, 0, 1)]);
    odd.push(0);
    odd[4] += 1;
    fix_checksum(&mut odd);
    assert!(matches!(parse(&odd), Err(FirmwareError::BadLength { .. })));
    let twice = parse(&mcfg(&[(0xe000_0000, 0, 0, 9), (0xf000_0000, 0, 9, 20)])).unwrap();
    assert_eq!(twice.host_bridges.len(), 1);
    assert!(matches!(twice.warnings[..], [Warning::Overlap { .. }]));
}

#[test]
fn of_two_tables_of_a_kind_the_first_counts() {
    let (first, second) = (mcfg(&[(0xe000_0000, 0, 0, 9)]), mcfg(&[(0xe000_0000, 1, 0, 9)]));
    let topology = acpi::from_tables(&[&first, &second]).unwrap();
    assert_eq!(topology.host_bridges[0].segment, 0);
    let mcfg = Table::Acpi(Signature(*b"MCFG"));
    assert_eq!(topology.warnings, [Warning::DuplicateTable { table: mcfg }]);
}

fn madt(structures: &[Vec<u8>]) -> Vec<u8> {
    table("APIC", 5, &bytes![0xfee0_0000u32, 1u32, structures.concat()])
}

#[test]
fn x2apic_cpus_are_listed_once_and_disabled_ones_not_at_all() {
    let apic = |id: u8, flags: u32| bytes![0u8, 8u8, id, id, flags];
    let x2apic = |id: u32, flags: u32| bytes![9u8, 16u8, 0u16, id, flags, id];
    let address = bytes![5u8, 12u8, 0u16, 0x1_fee0_0000u64];
    let topology = parse(&madt(&[
        apic(0, 1),
        apic(1, 0),
        apic(2, 2),
        x2apic(0, 1),
        x2apic(300, 1),
        address,
        bytes![4u8, 6u8, vec![0xff; 4]],
    ]))
    .unwrap();
    let cpus: Vec<_> = topology.cpus.iter().map(|cpu| (cpu.id, cpu.state)).collect();
    let expected = [(0, CpuState::Enabled), (2, CpuState::OnlineCapable), (300, CpuState::Enabled)];
    assert_eq!(cpus, expected.map(|(id, state)| (CpuId::Apic(id), state)));
    assert_eq!(topology.local_apic, Some(PhysAddr::new(0x1_fee0_0000)));
}

fn gicc(flags: u32, mpidr: u64, redistributor: u64, parked: (u32, u64)) -> Vec<u8> {
    let head = bytes![0x0bu8, 80u8, 0u16, 0u32, 0u32, flags, parked.0, 0u32, parked.1];
    bytes![head, 0u64, 0u64, 0u64, 0u32, redistributor, mpidr, 0u32]
}

#[test]
fn redistributors_of_single_cpus_count_where_there_is_no_region() {
    let gicd = bytes![0x0cu8, 24u8, 0u16, 0u32, 0x800_0000u64, 0u32, 0u8, vec![0; 3]];
    let frame = bytes![0x0du8, 24u8, 0u16, 0u32, 0x802_0000u64, 1u32, 64u16, 80u16];
    let cpus = [gicc(1, 0x8000_0001, 0x80a_0000, (1, 0x4000)), gicc(8, 0x100, 0x80c_0000, (0, 0))];
    let topology = parse(&madt(&[gicd.clone(), frame, cpus.concat()])).unwrap();
    let gic = topology.gic.unwrap();
    assert_eq!((gic.version, gic.redistributors.len()), (3, 2));
    assert_eq!(gic.redistributors[0], phys(0x80a_0000, 0x2_0000));
    let frame = V2mFrame { registers: phys(0x802_0000, 0x1000), spis: Some((80, 64)) };
    assert_eq!(gic.v2m_frames, [frame]);
    let parked = CpuStart::Parking(PhysAddr::new(0x4000));
    let cpu = |mpidr, state, start| Cpu { id: CpuId::Mpidr(mpidr), state, start };
    let expected =
        [cpu(0x8000_0001, CpuState::Enabled, parked), cpu(0x100, CpuState::OnlineCapable, CpuStart::Unknown)];
    assert_eq!(topology.cpus, expected);
    let region = bytes![0x0eu8, 16u8, 0u16, 0x900_0000u64, 0x40_0000u32];
    let topology = parse(&madt(&[gicd, region, cpus.concat()])).unwrap();
    assert_eq!(topology.gic.unwrap().redistributors, [phys(0x900_0000, 0x40_0000)]);
    assert_eq!(topology.local_apic, None);
}

#[test]
fn short_structures_of_madt_are_errors() {
    let at = Location { table: Table::Acpi(Signature(*b"APIC")), offset: 44 };
    let zero = parse(&madt(&[vec![0, 0]])).unwrap_err();
    assert_eq!(zero, FirmwareError::BadLength { at, length: 0 });
    let short = parse(&madt(&[vec![9, 8, 0, 0, 0, 0, 0, 0]])).unwrap_err();
    assert_eq!(short, FirmwareError::Truncated { at, needed: 16, available: 8 });
}

fn viot(nodes: &[Vec<u8>]) -> Vec<u8> {
    table("VIOT", 0, &bytes![nodes.len() as u16, 48u16, 0u64, nodes.concat()])
}

fn pci_range(endpoint: u32, segments: (u16, u16), words: (u16, u16), to: u16) -> Vec<u8> {
    let range = bytes![segments.0, segments.1, words.0, words.1];
    bytes![1u8, 0u8, 24u16, endpoint, range, to, vec![0; 6]]
}

fn mmio_unit(base: u64) -> Vec<u8> {
    bytes![4u8, 0u8, 16u16, 0u32, base]
}

#[test]
fn endpoints_may_precede_their_unit_and_span_segments() {
    let device = bytes![2u8, 0u8, 24u16, 0x77u32, 0x1000_0000u64, 96u16, vec![0; 6]];
    let topology =
        parse(&viot(&[pci_range(0x100, (1, 2), (0x10, 0x2f), 96), device, mmio_unit(0xa00_0000)])).unwrap();
    let transport = VirtioTransport::Mmio { registers: phys(0xa00_0000, 0x200), interrupt: None };
    assert_eq!(topology.units[0].kind, UnitKind::VirtioIommu(VirtioIommuUnit { transport }));
    let endpoint = |segment, word| {
        topology.unit_of(RequesterId::from_bdf(segment, word)).map(|(_, endpoint)| endpoint.get())
    };
    assert_eq!((endpoint(1, 0x10), endpoint(1, 0x2f)), (Some(0x100), Some(0x11f)));
    assert_eq!(endpoint(2, 0x11), Some(0x1_0101));
    assert_eq!((endpoint(0, 0x10), endpoint(3, 0x10), endpoint(1, 0x30)), (None, None, None));
    let device = &topology.platform_devices[0];
    assert_eq!(device.registers[0].start(), PhysAddr::new(0x1000_0000));
    assert_eq!(device.streams[0].first.get(), 0x77);
}

#[test]
fn bad_viot_nodes_are_errors() {
    let with = |range: Vec<u8>| parse(&viot(&[mmio_unit(0xa00_0000), range])).unwrap_err();
    let inverted = |error| matches!(error, FirmwareError::BadValue { .. });
    assert!(inverted(with(pci_range(0, (0, 0), (9, 8), 48))));
    assert!(inverted(with(pci_range(0, (2, 1), (0, 8), 48))));
    assert!(inverted(with(pci_range(u32::MAX, (0, 0), (0, 8), 48))));
    let dangling = with(pci_range(0, (0, 0), (0, 8), 64));
    assert!(matches!(dangling, FirmwareError::BadReference { target: 64, .. }));
    assert!(matches!(with(vec![1, 0, 0, 0]), FirmwareError::BadLength { length: 0, .. }));
    let mut inside_header = viot(&[]);
    inside_header[38] = 8;
    fix_checksum(&mut inside_header);
    assert!(matches!(parse(&inside_header), Err(FirmwareError::BadReference { .. })));
    let unknown = parse(&viot(&[bytes![9u8, 0u8, 4u16]])).unwrap();
    assert!(matches!(unknown.warnings[..], [Warning::UnknownStructure { kind: 9, .. }]));
}

#[test]
fn an_old_fadt_says_nothing_and_a_new_one_names_the_conduit() {
    let psci = |flags: u16, len: usize| {
        let mut fadt = table("FACP", 6, &vec![0; len - 36]);
        if len > 130 {
            fadt[129..131].copy_from_slice(&flags.to_le_bytes());
            fix_checksum(&mut fadt);
        }
        parse(&fadt).unwrap().psci
    };
    assert_eq!(psci(0, 116), None);
    assert_eq!(psci(0, 276), None);
    assert_eq!(psci(1, 276), Some(PsciConduit::Smc));
    assert_eq!(psci(3, 276), Some(PsciConduit::Hvc));
}

#[test]
fn consoles_other_than_a_pl011_in_memory_are_left_out() {
    let spcr = |kind: u8, space: u8| {
        let body = bytes![kind, vec![0; 3], space, vec![0; 3], 0x900_0000u64, 8u8, 0u8, 33u32];
        parse(&table("SPCR", 4, &body)).unwrap().consoles
    };
    let interrupt = Some(Interrupt { intid: 33, trigger: Trigger::LevelHigh });
    let pl011 = Console { kind: ConsoleKind::Pl011, registers: phys(0x900_0000, 0x1000), interrupt };
    assert_eq!(spcr(3, 0), [pl011]);
    assert_eq!((spcr(0, 0).len(), spcr(3, 1).len()), (0, 0));
}

fn name(name: &str) -> Vec<u8> {
    let mut field = name.as_bytes().to_vec();
    field.resize(56, 0);
    field
}

fn command(number: u32, arguments: Vec<u8>) -> Vec<u8> {
    let mut entry = bytes![number, arguments];
    entry.resize(128, 0);
    entry
}

fn run(script: &[u8], a: &mut [u8], b: &mut [u8]) -> Result<(), FirmwareError> {
    let mut files = [
        loader::LoadedFile { name: "a", address: PhysAddr::new(0x1_2345_6000), bytes: a },
        loader::LoadedFile { name: "b", address: PhysAddr::new(0x8000), bytes: b },
    ];
    loader::run(script, &mut files)
}

#[test]
fn the_loader_adds_addresses_and_makes_sums_zero() {
    let script = [
        command(2, bytes![name("a"), name("b"), 4u32, 4u8]),
        command(2, bytes![name("b"), name("a"), 0u32, 8u8]),
        command(3, bytes![name("a"), 1u32, 0u32, 8u32]),
        command(0x7777_7777, vec![]),
    ]
    .concat();
    let (mut a, mut b) = ([1u8, 0, 0, 0, 0x10, 0, 0, 0], [0u8; 8]);
    run(&script, &mut a, &mut b).unwrap();
    assert_eq!(b, 0x1_2345_6000u64.to_le_bytes());
    assert_eq!(a[4..], [0x10, 0x80, 0, 0]);
    assert_eq!(a.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
}

#[test]
fn the_loader_refuses_what_lies_outside_its_files() {
    let error = |entry: Vec<u8>| run(&entry, &mut [0; 8], &mut [0; 8]).unwrap_err();
    let pointer = |to, from, offset: u32, size: u8| command(2, bytes![name(to), name(from), offset, size]);
    assert!(matches!(error(pointer("a", "x", 0, 4)), FirmwareError::BadReference { .. }));
    assert!(matches!(error(pointer("x", "a", 0, 4)), FirmwareError::BadReference { .. }));
    assert!(matches!(error(pointer("a", "b", 5, 4)), FirmwareError::BadValue { value: 5, .. }));
    assert!(matches!(error(pointer("a", "b", u32::MAX, 4)), FirmwareError::BadValue { .. }));
    assert!(matches!(error(pointer("a", "b", 0, 3)), FirmwareError::BadValue { value: 3, .. }));
    // A file above 4 GiB does not fit a pointer of four bytes.
    assert!(matches!(error(pointer("b", "a", 0, 4)), FirmwareError::BadValue { .. }));
    let sum = |offset: u32, start: u32, length: u32| command(3, bytes![name("a"), offset, start, length]);
    for bad in [sum(8, 0, 8), sum(0, 1, 8), sum(0, u32::MAX, u32::MAX)] {
        assert!(matches!(error(bad), FirmwareError::BadValue { .. }));
    }
    assert!(matches!(error(vec![0; 127]), FirmwareError::BadLength { length: 127, .. }));
    let unterminated = command(1, bytes![vec![b'x'; 56], 16u32, 1u8]);
    assert!(loader::allocations(&unterminated).next().unwrap().is_err());
    let crooked = command(1, bytes![name("a"), 3u32, 1u8]);
    assert!(loader::allocations(&crooked).next().unwrap().is_err());
}

#[test]
fn a_requester_that_is_the_iommu_is_nobodys_endpoint() {
    let unit = bytes![3u8, 0u8, 16u16, 0u16, 0x10u16, vec![0; 8]];
    let topology = parse(&viot(&[unit, pci_range(0, (0, 0), (0, 0xff), 48)])).unwrap();
    assert_eq!(topology.unit_of(bdf(0, 2, 0)), None);
    assert!(topology.unit_of(bdf(0, 2, 1)).is_some());
}
