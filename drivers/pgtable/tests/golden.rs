//! Words worked out by hand from the manuals, and found in memory where the manuals say.

mod common;

use common::*;
use portcullis_hal::host::HostHal;
use portcullis_hal::{Access, Attributes, Granule, MapError, Mapping, MemoryKind, TableFormat, TableWrites};
use portcullis_pgtable::{AccessedDirty, Config, Format, Levels, MAIR, PageTable, VtdSecondStage, X86};

/// The address in a table descriptor or entry, 4 KiB granule.
const NEXT: u64 = 0x0000_ffff_ffff_f000;

/// The words on the way to `iova` by these shifts, one per level from the root.
fn path<F: Format>(hal: &HostHal, table: &PageTable<HostHal, F>, iova: u64, shifts: &[u32]) -> Vec<u64> {
    let mut base = table.root().root.get();
    let mut path = Vec::new();
    for &shift in shifts {
        let entry = hal.words(base + (iova >> shift & 0x1ff) * 8, 1)[0];
        path.push(entry);
        base = entry & NEXT;
    }
    path
}

fn attributes(access: Access, memory: MemoryKind) -> Attributes {
    Attributes { access, memory }
}

const RW: Access = Access::READ.union(Access::WRITE);
const RX: Access = Access::READ.union(Access::EXECUTE);

/// Maps one page of `size` bytes and returns its leaf, the last word of the path by `shifts`.
fn leaf<F: Format>(format: F, bits: u8, shifts: &[u32], size: u64, attributes: Attributes) -> u64 {
    let hal = HostHal::new();
    let table = PageTable::new(&hal, format, config(bits)).unwrap();
    table.map(&[mapping(0x40_4000_0000, 0x12_4000_0000, size, attributes)]).unwrap();
    let words = path(&hal, &table, 0x40_4000_0000, shifts);
    *words.last().unwrap()
}

/// Arm ARM, D8.3.1: a page descriptor is V, bit 1, AttrIndx\[4:2\], AP\[2:1\] in 7:6, SH in 9:8, AF 10, nG 11,
/// PXN 53, UXN 54. AP\[2:1\]=01 is read/write at any level, 11 read-only.
#[test]
fn stage_1_leaves_are_the_manuals_words() {
    let page = |a| leaf(STAGE1_4K, 48, &[39, 30, 21, 12], 0x1000, a);
    assert_eq!(page(Attributes::READ_WRITE), 0x0060_0012_4000_0f43);
    assert_eq!(page(Attributes::READ), 0x0060_0012_4000_0fc3);
    assert_eq!(page(attributes(RW, MemoryKind::NonCacheable)), 0x0060_0012_4000_0f47);
    assert_eq!(page(attributes(RW, MemoryKind::Device)), 0x0060_0012_4000_0f4b);
    assert_eq!(page(attributes(RX, MemoryKind::WriteBack)), 0x0020_0012_4000_0fc3);
    // Blocks have bit 1 clear.
    assert_eq!(leaf(STAGE1_4K, 48, &[39, 30, 21], 0x20_0000, Attributes::READ_WRITE), 0x0060_0012_4000_0f41);
    assert_eq!(leaf(STAGE1_4K, 48, &[39, 30], 0x4000_0000, Attributes::READ_WRITE), 0x0060_0012_4000_0f41);
    // MAIR: attribute 0 = 0xff, 1 = 0x44, 2 = 0x04 (Arm ARM, MAIR_EL1).
    assert_eq!((MAIR & 0xff, MAIR >> 8 & 0xff, MAIR >> 16), (0xff, 0x44, 0x04));
}

/// Arm ARM, D8.3.1: MemAttr\[5:2\], S2AP\[7:6\] (bit 6 read, bit 7 write), SH, AF, XN\[54:53\].
#[test]
fn stage_2_leaves_are_the_manuals_words() {
    let page = |a| leaf(STAGE2_4K, 48, &[39, 30, 21, 12], 0x1000, a);
    assert_eq!(page(Attributes::READ_WRITE), 0x0040_0012_4000_07ff);
    assert_eq!(page(Attributes::READ), 0x0040_0012_4000_077f);
    assert_eq!(page(Attributes::WRITE), 0x0040_0012_4000_07bf);
    assert_eq!(page(attributes(RW, MemoryKind::Device)), 0x0040_0012_4000_07c7);
    assert_eq!(page(attributes(RW, MemoryKind::NonCacheable)), 0x0040_0012_4000_07d7);
    assert_eq!(page(attributes(RX, MemoryKind::WriteBack)), 0x0000_0012_4000_077f);
    assert_eq!(leaf(STAGE2_4K, 48, &[39, 30, 21], 0x20_0000, Attributes::READ_WRITE), 0x0040_0012_4000_07fd);
}

/// Arm ARM, D8.3.1, 52-bit output addresses: bits 51:48 at 15:12 with the 64 KiB granule; bits 51:50 at 9:8, where SH
/// was, and 49:48 in their place with FEAT_LPA2. The contiguous bit is 52.
#[test]
fn leaves_of_52_bit_addresses_are_the_manuals_words() {
    fn entries<F: Format>(format: F, map: Mapping, table_bits: u64) -> Vec<u64> {
        let hal = HostHal::new();
        let table = PageTable::new(&hal, format, Config { output_bits: 52, ..config(48) }).unwrap();
        table.map(&[map]).unwrap();
        // Down the first entries.
        let mut words = hal.words(table.root().root.get(), 1);
        let mut path = words.clone();
        while words[0] & 3 == 3 && path.len() < if F::GRANULE_SHIFT == 16 { 3 } else { 4 } {
            words = hal.words(words[0] & table_bits, 32);
            path.push(words[0]);
        }
        path.extend(&words[1..]);
        path
    }
    let page = entries(STAGE1_64K, rw(0, 0xf_abcd_1234_0000, 0x1_0000), 0xffff_ffff_0000);
    assert_eq!(page[2], 0x0060_abcd_1234_ff43);
    let page = entries(STAGE2_64K, rw(0, 0x5_abcd_1234_0000, 0x1_0000), 0xffff_ffff_0000);
    assert_eq!(page[2], 0x0040_abcd_1234_57ff);
    let page = entries(STAGE1_4K_LPA2, rw(0, 0xe_abcd_1234_5000, 0x1000), 0x3_ffff_ffff_f000);
    assert_eq!(page[3], 0x0062_abcd_1234_5f43);
    let page = entries(STAGE2_4K_LPA2, rw(0, 0x9_abcd_1234_5000, 0x1000), 0x3_ffff_ffff_f000);
    assert_eq!(page[3], 0x0041_abcd_1234_56ff);
    // 2 MiB blocks, 32 pages of 64 KiB and 16 pages of 4 KiB under the hint: bit 52 in each.
    let block = entries(STAGE1_4K_LPA2, rw(0, 0xc_0000_0020_0000, 0x20_0000), 0x3_ffff_ffff_f000);
    assert_eq!(block[2], 0x0060_0000_0020_0f41);
    let run = entries(STAGE1_64K, rw(0, 0xf_0000_0020_0000, 0x20_0000), 0xffff_ffff_0000);
    assert_eq!(
        (run[2], run[3], run[33]),
        (0x0070_0000_0020_ff43, 0x0070_0000_0021_ff43, 0x0070_0000_003f_ff43)
    );
    let run = entries(STAGE1_4K, rw(0, 0x12_4000_0000, 0x1_0000), 0xffff_ffff_f000);
    assert_eq!(
        (run[3], run[4], run[18]),
        (0x0070_0012_4000_0f43, 0x0070_0012_4000_1f43, 0x0070_0012_4000_ff43)
    );
    assert_eq!(run[19], 0);
}

/// Arm ARM, D8.3.1: where the next table is above 48 bits. The walker's own notes stay off the bits of addresses.
#[test]
fn table_entries_of_52_bit_addresses_are_the_manuals_words() {
    use portcullis_hal::PhysAddr;
    let table = |phys| PhysAddr::new(phys);
    assert_eq!(STAGE1_64K.table(table(0xd_1234_5678_0000)), 0x0000_1234_5678_d003);
    assert_eq!(STAGE2_64K.table(table(0x0_1234_5678_0000)), 0x0000_1234_5678_0003);
    assert_eq!(STAGE1_4K_LPA2.table(table(0xd_1234_5678_9000)), 0x0001_1234_5678_9303);
    assert_eq!(STAGE2_16K_LPA2.table(table(0x6_1234_5678_8000)), 0x0002_1234_5678_8103);
    fn counts<F: Format>(format: F, phys: u64, address: u64) {
        let entry = format.table(PhysAddr::new(phys));
        for count in [0, 1, (1 << F::STRIDE) - 1, 1 << F::STRIDE] {
            let counted = F::SCHEME.with_leaf_count(entry | F::SCHEME.cleaned, count);
            assert_eq!(F::SCHEME.leaf_count(counted), count);
            assert_eq!(F::table_address(counted), PhysAddr::new(phys));
            assert_eq!(counted & address, entry & address);
            // Bits 58:52 and 11:2 less those of addresses.
            assert_eq!((counted ^ entry) & !(0x07f0_0000_0000_0ffc & !address), 0);
        }
    }
    counts(STAGE1_64K, 0xf_ffff_ffff_0000, 0xffff_ffff_f000);
    counts(STAGE2_4K_LPA2, 0xf_ffff_ffff_f000, 0x3_ffff_ffff_f300);
    counts(STAGE2_16K_LPA2, 0xf_ffff_ffff_c000, 0x3_ffff_ffff_f300);
    counts(STAGE1_16K, 0xffff_ffff_c000, 0xffff_ffff_f000);
    counts(STAGE1_4K, 0xffff_ffff_f000, 0xffff_ffff_f000);
}

/// Intel SDM volume 3, tables 5-15 to 5-20: P 0, R/W 1, U/S 2, PWT 3, PCD 4, A 5, D 6, PS 7, XD 63.
#[test]
fn x86_leaves_are_the_manuals_words() {
    let page = |a| leaf(X86_4, 48, &[39, 30, 21, 12], 0x1000, a);
    assert_eq!(page(Attributes::READ_WRITE), 0x8000_0012_4000_0067);
    assert_eq!(page(Attributes::READ), 0x8000_0012_4000_0025);
    assert_eq!(page(attributes(RW, MemoryKind::NonCacheable)), 0x8000_0012_4000_0077);
    assert_eq!(page(attributes(RW, MemoryKind::Device)), 0x8000_0012_4000_007f);
    assert_eq!(page(attributes(RX, MemoryKind::WriteBack)), 0x0000_0012_4000_0025);
    assert_eq!(leaf(X86_4, 48, &[39, 30, 21], 0x20_0000, Attributes::READ_WRITE), 0x8000_0012_4000_00e7);
    assert_eq!(leaf(X86_4, 48, &[39, 30], 0x4000_0000, Attributes::READ_WRITE), 0x8000_0012_4000_00e7);
    let plain = X86::new(Levels::Four, AccessedDirty::Hardware);
    assert_eq!(leaf(plain, 48, &[39, 30, 21, 12], 0x1000, Attributes::READ_WRITE), 0x8000_0012_4000_0007);
    assert_eq!(leaf(X86_5, 57, &[48, 39, 30, 21, 12], 0x1000, Attributes::READ), 0x8000_0012_4000_0005);
}

/// VT-d specification, 9.9: R 0, W 1, PS 7.
#[test]
fn second_stage_leaves_are_the_manuals_words() {
    let page = |a| leaf(SECOND_4, 48, &[39, 30, 21, 12], 0x1000, a);
    assert_eq!(page(Attributes::READ_WRITE), 0x12_4000_0003);
    assert_eq!(page(Attributes::READ), 0x12_4000_0001);
    assert_eq!(page(Attributes::WRITE), 0x12_4000_0002);
    assert_eq!(leaf(SECOND_3, 39, &[30, 21], 0x20_0000, Attributes::READ_WRITE), 0x12_4000_0083);
    assert_eq!(leaf(SECOND_5, 57, &[48, 39, 30], 0x4000_0000, Attributes::WRITE), 0x12_4000_0082);
}

/// Bits that the manuals let hardware ignore in entries that reference tables: VMSAv8-64 58:52 and 11:2; x86 61:52 and 9; VT-d second stage 61:52 and 10.
#[test]
fn table_entries_are_the_manuals_words_but_for_bits_that_hardware_ignores() {
    fn check<F: Format>(format: F, ignored: u64, expected: u64) {
        for writes in [TableWrites::Cached, TableWrites::Cleaned] {
            let hal = HostHal::new();
            let table = PageTable::new(&hal, format, Config { writes, ..config(48) }).unwrap();
            table.map(&[rw(0x40_4000_0000, 0x12_4000_0000, 0x5000)]).unwrap();
            let words = path(&hal, &table, 0x40_4000_0000, &[39, 30, 21, 12]);
            for entry in &words[..3] {
                assert_eq!(entry & !NEXT & !ignored, expected, "{entry:#x}");
                assert_ne!(entry & NEXT, 0);
            }
        }
    }
    check(STAGE1_4K, 0x07f0_0000_0000_0ffc, 3);
    check(STAGE2_4K, 0x07f0_0000_0000_0ffc, 3);
    check(X86_4, 0x3ff0_0000_0000_0200, 0x27);
    check(X86::new(Levels::Four, AccessedDirty::Hardware), 0x3ff0_0000_0000_0200, 0x07);
    check(SECOND_4, 0x3ff0_0000_0000_0400, 3);
}

#[test]
fn what_a_format_cannot_express_is_refused() {
    fn refused<F: Format>(format: F, bits: u8, cases: &[Attributes]) {
        let hal = HostHal::new();
        let table = PageTable::new(&hal, format, config(bits)).unwrap();
        for &attributes in cases {
            let result = table.map(&[mapping(0x1000, 0x1000, 0x1000, attributes)]);
            assert_eq!(result, Err(MapError::Attributes), "{attributes:?}");
        }
        assert!(leaves(&hal, &table.root()).is_empty());
    }
    let none = Attributes::memory(Access::empty());
    let blind = Attributes::memory(Access::WRITE | Access::EXECUTE);
    let only_execute = Attributes::memory(Access::EXECUTE);
    let registers = attributes(Access::all(), MemoryKind::Device);
    refused(STAGE1_4K, 48, &[none, Attributes::WRITE, blind, only_execute, registers]);
    refused(STAGE2_4K, 48, &[none, blind, only_execute, registers]);
    refused(X86_4, 48, &[none, Attributes::WRITE, blind, only_execute, registers]);
    refused(SECOND_4, 48, &[none, blind, only_execute, Attributes::memory(RX)]);
}

/// The root as the hardware's registers want it: the start level for VTCR_EL2.SL0 or STE.S2SL0 (Arm ARM, D8.2.2;
/// at most 16 concatenated tables), levels for the rest.
#[test]
fn roots_say_their_start_levels() {
    fn start<F: Format>(format: F, bits: u8) -> TableFormat {
        let hal = HostHal::new();
        let root = PageTable::new(&hal, format, config(bits)).unwrap().root();
        assert_eq!(root.input_bits, bits);
        root.format
    }
    let stage2 = |granule, start_level| TableFormat::VmsaStage2 { granule, start_level };
    assert_eq!(start(STAGE2_4K, 48), stage2(Granule::Size4K, 0));
    assert_eq!(start(STAGE2_4K, 44), stage2(Granule::Size4K, 0));
    assert_eq!(start(STAGE2_4K, 43), stage2(Granule::Size4K, 1));
    assert_eq!(start(STAGE2_4K, 40), stage2(Granule::Size4K, 1));
    assert_eq!(start(STAGE2_4K, 39), stage2(Granule::Size4K, 1));
    assert_eq!(start(STAGE2_4K, 34), stage2(Granule::Size4K, 2));
    assert_eq!(start(STAGE2_16K, 48), stage2(Granule::Size16K, 1));
    assert_eq!(start(STAGE2_16K, 40), stage2(Granule::Size16K, 2));
    assert_eq!(start(STAGE2_64K, 48), stage2(Granule::Size64K, 1));
    assert_eq!(start(STAGE2_64K, 46), stage2(Granule::Size64K, 2));
    assert_eq!(start(STAGE2_64K, 52), stage2(Granule::Size64K, 1));
    let lpa2 = |granule, start_level| TableFormat::VmsaStage2Lpa2 { granule, start_level };
    assert_eq!(start(STAGE2_4K_LPA2, 52), lpa2(Granule::Size4K, 0));
    assert_eq!(start(STAGE2_4K_LPA2, 49), lpa2(Granule::Size4K, 0));
    assert_eq!(start(STAGE2_4K_LPA2, 40), lpa2(Granule::Size4K, 1));
    assert_eq!(start(STAGE2_16K_LPA2, 52), lpa2(Granule::Size16K, 0));
    assert_eq!(start(STAGE2_16K_LPA2, 51), lpa2(Granule::Size16K, 1));
    assert_eq!(
        start(STAGE1_4K_LPA2, 52),
        TableFormat::VmsaStage1Lpa2 { granule: Granule::Size4K, mair: MAIR }
    );
    assert_eq!(start(X86_4, 48), TableFormat::X86 { levels: 4 });
    assert_eq!(start(VtdSecondStage::new(Levels::Four), 39), TableFormat::VtdSecondStage { levels: 4 });
    assert_eq!(start(STAGE1_16K, 47), TableFormat::VmsaStage1 { granule: Granule::Size16K, mair: MAIR });
}
