//! A decoder of page tables in memory, written from the manuals and independent of the crate's formats.

#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test binary uses a part")]
#![allow(unsafe_code, reason = "reads tables as hardware does, by physical address")]

mod memory;

pub use memory::Behind;
use portcullis_hal::host::HostHal;
use portcullis_hal::{
    Access, Attributes, Granule, Hal, Iova, IovaRange, Mapping, MemoryKind, PhysAddr, PhysRange, TableFormat,
    TableRoot, TableWrites,
};
use portcullis_pgtable::{
    AccessedDirty, Config, Format, Levels, PageTable, VmsaStage1, VmsaStage1Lpa2, VmsaStage2, VmsaStage2Lpa2,
    VtdSecondStage, X86,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// A leaf as hardware understands it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    pub phys: u64,
    pub size: u64,
    pub access: Access,
    /// What the format says about the memory, if it says anything.
    pub memory: Option<MemoryKind>,
}

/// Where a walker finds tables.
pub trait Memory {
    /// The words of a table, which is allocated.
    fn words(&self, table: u64, count: u64) -> Vec<u64>;
}

impl Memory for HostHal {
    fn words(&self, table: u64, count: u64) -> Vec<u64> {
        let phys = PhysAddr::new(table);
        assert!(self.is_allocated(phys, count * 8), "{table:#x} is not allocated");
        let first = self.phys_to_virt(phys).cast::<AtomicU64>();
        // SAFETY: just checked to be allocated; the words of tables are accessed as atomics.
        (0..count as usize).map(|i| unsafe { first.add(i).as_ref() }.load(Ordering::Relaxed)).collect()
    }
}

/// All leaves of a table, by input address.
pub fn leaves(hal: &impl Memory, root: &TableRoot) -> BTreeMap<u64, Leaf> {
    let mut out = BTreeMap::new();
    let input = u32::from(root.input_bits);
    match root.format {
        TableFormat::VmsaStage1 { granule, mair } | TableFormat::VmsaStage1Lpa2 { granule, mair } => {
            assert_eq!(mair & 0xff_ffff, 0x04_44ff);
            let lpa2 = matches!(root.format, TableFormat::VmsaStage1Lpa2 { .. });
            // Arm ARM, section D8.2: the initial lookup level by granule and input width.
            let start = match (granule, input) {
                (Granule::Size4K, 49..=52) if lpa2 => -1,
                (Granule::Size4K, 40..=48) => 0,
                (Granule::Size4K, 31..=39) => 1,
                (Granule::Size16K, 49..=52) if lpa2 => 0,
                (Granule::Size16K, 48) => 0,
                (Granule::Size16K, 37..=47) => 1,
                (Granule::Size16K, 26..=36) => 2,
                (Granule::Size64K, 43..=52) => 1,
                (Granule::Size64K, 30..=42) => 2,
                other => panic!("no start level for {other:?}"),
            };
            let shape = Vmsa { granule: u32::from(granule.shift()), lpa2, wide: root.output_bits > 48 };
            shape.walk(hal, root.root.get(), start, input, stage1, 0, &mut out);
        }
        TableFormat::VmsaStage2 { granule, start_level }
        | TableFormat::VmsaStage2Lpa2 { granule, start_level } => {
            let lpa2 = matches!(root.format, TableFormat::VmsaStage2Lpa2 { .. });
            let shape = Vmsa { granule: u32::from(granule.shift()), lpa2, wide: root.output_bits > 48 };
            shape.walk(hal, root.root.get(), i32::from(start_level), input, stage2, 0, &mut out);
        }
        TableFormat::X86 { levels } => intel(hal, root.root.get(), u32::from(levels), &FIRST, 0, &mut out),
        TableFormat::VtdSecondStage { levels } => {
            intel(hal, root.root.get(), u32::from(levels), &SECOND, 0, &mut out);
        }
    }
    out
}

type Decode = fn(u64) -> (Access, Option<MemoryKind>);

fn stage1(entry: u64) -> (Access, Option<MemoryKind>) {
    assert_eq!(entry >> 10 & 1, 1, "AF");
    assert_eq!(entry >> 11 & 1, 1, "nG");
    assert_eq!(entry >> 8 & 3, 3, "SH");
    assert_eq!(entry >> 6 & 1, 1, "AP[1]: DMA is unprivileged");
    assert_eq!(entry >> 53 & 1, 1, "PXN");
    let mut access = Access::READ;
    access.set(Access::WRITE, entry >> 7 & 1 == 0);
    access.set(Access::EXECUTE, entry >> 54 & 1 == 0);
    let memory = match entry >> 2 & 7 {
        0 => MemoryKind::WriteBack,
        1 => MemoryKind::NonCacheable,
        2 => MemoryKind::Device,
        other => panic!("MAIR index {other}"),
    };
    (access, Some(memory))
}

fn stage2(entry: u64) -> (Access, Option<MemoryKind>) {
    assert_eq!(entry >> 10 & 1, 1, "AF");
    assert_eq!(entry >> 8 & 3, 3, "SH");
    let mut access = Access::empty();
    access.set(Access::READ, entry >> 6 & 1 == 1);
    access.set(Access::WRITE, entry >> 7 & 1 == 1);
    access.set(Access::EXECUTE, entry >> 53 & 3 == 0);
    let memory = match entry >> 2 & 15 {
        15 => MemoryKind::WriteBack,
        5 => MemoryKind::NonCacheable,
        1 => MemoryKind::Device,
        other => panic!("MemAttr {other}"),
    };
    (access, Some(memory))
}

/// What decides how the descriptors of VMSAv8-64 are read.
struct Vmsa {
    granule: u32,
    lpa2: bool,
    /// Whether output addresses have 52 bits.
    wide: bool,
}

impl Vmsa {
    fn address(&self, entry: u64) -> u64 {
        match (self.granule, self.lpa2) {
            (12 | 14, true) => entry & 0x0003_ffff_ffff_f000 | (entry >> 8 & 3) << 50,
            (12 | 14, false) => entry & 0x0000_ffff_ffff_f000,
            (16, false) => entry & 0x0000_ffff_ffff_0000 | (entry >> 12 & 15) << 48,
            other => panic!("no descriptors for {other:?}"),
        }
    }

    /// How many entries there are in a group with the contiguous bit.
    fn group(&self, level: i32) -> usize {
        match (self.granule, level) {
            (12, 1..=3) => 16,
            (14, 3) => 128,
            (14, 2) => 32,
            (16, 2 | 3) => 32,
            other => panic!("contiguous bit at {other:?}"),
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the state of a recursive walk")]
    fn walk(
        &self,
        hal: &impl Memory,
        table: u64,
        level: i32,
        input: u32,
        decode: Decode,
        base: u64,
        out: &mut BTreeMap<u64, Leaf>,
    ) {
        let granule = self.granule;
        let shift = granule + (3 - level) as u32 * (granule - 3);
        let words = hal.words(table, 1 << (input - shift));
        for (i, &entry) in words.iter().enumerate() {
            let iova = base + ((i as u64) << shift);
            // Bit 16 of a block is nT.
            let block = level != 3 && entry & 3 == 1;
            let address = if block { self.address(entry) & !(1 << 16) } else { self.address(entry) };
            match entry & 3 {
                1 if level != 3 => {
                    let lowest = match (granule, self.lpa2) {
                        (12, true) => 0,
                        (12, false) | (14, true) => 1,
                        (16, false) if self.wide => 1,
                        _ => 2,
                    };
                    assert!(level >= lowest, "no block at level {level}");
                }
                3 if level == 3 => {}
                3 => {
                    assert_eq!(address & ((1 << granule) - 1), 0);
                    self.walk(hal, address, level + 1, shift, decode, iova, out);
                    continue;
                }
                1 => panic!("reserved descriptor {entry:#x}"),
                _ => continue,
            }
            // Without SH, it is not the descriptor's to say.
            let attributes = if self.lpa2 { entry | 3 << 8 } else { entry };
            if entry >> 52 & 1 == 0 {
                insert(out, iova, address, shift, attributes, decode);
                continue;
            }
            let count = self.group(level);
            let group = &words[i - i % count..][..count];
            let first = self.address(group[0]);
            for (j, &other) in group.iter().enumerate() {
                let expected = first + ((j as u64) << shift);
                assert_eq!(self.address(other), expected, "entry {j} of a contiguous group");
                assert_eq!(other & !self.address_mask(), entry & !self.address_mask());
            }
            if i % count == 0 {
                insert(out, iova, first, shift + count.ilog2(), attributes, decode);
            }
        }
    }

    /// Where a descriptor holds its address.
    fn address_mask(&self) -> u64 {
        match (self.granule, self.lpa2) {
            (_, true) => 0x0003_ffff_ffff_f300,
            _ => 0x0000_ffff_ffff_f000,
        }
    }
}

fn x86(entry: u64) -> (Access, Option<MemoryKind>) {
    assert_eq!(entry >> 2 & 1, 1, "U/S");
    assert_eq!(entry >> 8 & 1, 0, "G");
    let mut access = Access::READ;
    access.set(Access::WRITE, entry >> 1 & 1 == 1);
    access.set(Access::EXECUTE, entry >> 63 & 1 == 0);
    // IA32_PAT at reset: WB, WT, UC-, UC.
    let memory = match entry >> 3 & 3 {
        0 => MemoryKind::WriteBack,
        2 => MemoryKind::NonCacheable,
        3 => MemoryKind::Device,
        other => panic!("PAT index {other}"),
    };
    (access, Some(memory))
}

fn second_stage(entry: u64) -> (Access, Option<MemoryKind>) {
    assert_eq!(entry & 0x4, 0, "X");
    assert_eq!(entry & 0x4000_0000_0000_0878, 0, "SNP, TM, IPAT, EMT");
    let mut access = Access::empty();
    access.set(Access::READ, entry & 1 != 0);
    access.set(Access::WRITE, entry & 2 != 0);
    (access, None)
}

/// What the two formats of Intel's do differently.
struct Intel {
    /// Bits of which one makes an entry present.
    present: u64,
    /// Table entries: bits that decide, and what they are to be.
    table: (u64, u64),
    decode: Decode,
}

/// P, R/W and U/S in every table entry; PS and XD clear.
const FIRST: Intel = Intel { present: 1, table: (0x8000_0000_0000_0087, 7), decode: x86 };

/// R and W in every table entry; PS clear, and X, 11 and 62, which some units reserve.
const SECOND: Intel = Intel { present: 7, table: (0x4000_0000_0000_0887, 3), decode: second_stage };

fn intel(
    hal: &impl Memory,
    table: u64,
    level: u32,
    format: &Intel,
    base: u64,
    out: &mut BTreeMap<u64, Leaf>,
) {
    let shift = 12 + 9 * (level - 1);
    for (i, entry) in (0_u64..).zip(hal.words(table, 512)) {
        if entry & format.present == 0 {
            continue;
        }
        let (iova, address) = (base + (i << shift), entry & 0x000f_ffff_ffff_f000);
        if level == 1 || entry & 0x80 != 0 {
            assert!(level <= 3, "no page at level {level}");
            insert(out, iova, address, shift, entry, format.decode);
        } else {
            let (mask, expected) = format.table;
            assert_eq!(entry & mask, expected, "table entry {entry:#x}");
            intel(hal, address, level - 1, format, iova, out);
        }
    }
}

/// What a page is translated to, by leaves that were found.
pub fn look_up(leaves: &BTreeMap<u64, Leaf>, iova: u64) -> Option<(u64, Access, Option<MemoryKind>)> {
    let (&start, leaf) = leaves.range(..=iova).next_back()?;
    (iova - start < leaf.size).then_some((leaf.phys + (iova - start), leaf.access, leaf.memory))
}

fn insert(out: &mut BTreeMap<u64, Leaf>, iova: u64, phys: u64, shift: u32, entry: u64, decode: Decode) {
    let (access, memory) = decode(entry);
    let size = 1 << shift;
    assert_eq!(phys & (size - 1), 0, "bits below the page in {entry:#x}");
    out.insert(iova, Leaf { phys, size, access, memory });
}

pub const STAGE1_4K: VmsaStage1<12> = VmsaStage1::new();
pub const STAGE1_16K: VmsaStage1<14> = VmsaStage1::new();
pub const STAGE1_64K: VmsaStage1<16> = VmsaStage1::new();
pub const STAGE2_4K: VmsaStage2<12> = VmsaStage2::new();
pub const STAGE2_16K: VmsaStage2<14> = VmsaStage2::new();
pub const STAGE2_64K: VmsaStage2<16> = VmsaStage2::new();
pub const STAGE1_4K_LPA2: VmsaStage1Lpa2<12> = VmsaStage1Lpa2::new();
pub const STAGE1_16K_LPA2: VmsaStage1Lpa2<14> = VmsaStage1Lpa2::new();
pub const STAGE2_4K_LPA2: VmsaStage2Lpa2<12> = VmsaStage2Lpa2::new();
pub const STAGE2_16K_LPA2: VmsaStage2Lpa2<14> = VmsaStage2Lpa2::new();
pub const X86_4: X86 = X86::new(Levels::Four, AccessedDirty::Preset);
pub const X86_5: X86 = X86::new(Levels::Five, AccessedDirty::Hardware);
pub const SECOND_3: VtdSecondStage = VtdSecondStage::new(Levels::Three);
pub const SECOND_4: VtdSecondStage = VtdSecondStage::new(Levels::Four);
pub const SECOND_5: VtdSecondStage = VtdSecondStage::new(Levels::Five);

/// The sizes of single leaves among the page sizes of a table.
pub fn leaf_sizes<F: Format>(table: &PageTable<impl Hal, F>) -> Vec<u64> {
    (0..5)
        .map(|level| F::GRANULE_SHIFT + level * F::STRIDE)
        .filter(|&shift| shift < 60)
        .map(|shift| 1 << shift)
        .filter(|size| table.page_sizes() & size != 0)
        .collect()
}

/// All page sizes, coherent.
pub const fn config(input_bits: u8) -> Config {
    Config { input_bits, output_bits: 48, page_sizes: u64::MAX, writes: TableWrites::Cached }
}

/// As `for_each_format`, for formats whose leaves can change their sizes.
#[macro_export]
macro_rules! for_each_replacing_format {
    ($check:ident) => {{
        use portcullis_pgtable::BbmLevel::{Level1, Level2};
        use $crate::common::*;
        $check(STAGE1_4K.with_break_before_make(Level1), 39);
        $check(SECOND_3, 39);
        if !cfg!(miri) {
            $check(STAGE1_4K.with_break_before_make(Level2), 39);
            for level in [Level1, Level2] {
                $check(STAGE1_16K.with_break_before_make(level), 47);
                $check(STAGE1_4K_LPA2.with_break_before_make(level), 52);
                $check(STAGE2_4K.with_break_before_make(level), 40);
                $check(STAGE2_64K.with_break_before_make(level), 48);
            }
            $check(X86_4, 48);
            $check(X86_5, 57);
            $check(SECOND_5, 57);
        }
    }};
}

/// Names every format once: `for_each_format!(check)` calls `check(format, input_bits)`. Miri takes a thousand times as
/// long: there, one of four levels, which has a short way, and one of three have to do.
#[macro_export]
macro_rules! for_each_format {
    ($check:ident) => {{
        use $crate::common::*;
        $check(STAGE1_4K, 48);
        $check(SECOND_3, 39);
        if !cfg!(miri) {
            $check(STAGE1_4K, 39);
            $check(STAGE1_16K, 47);
            $check(STAGE1_16K, 48);
            $check(STAGE1_64K, 42);
            $check(STAGE1_64K, 48);
            $check(STAGE2_4K, 40);
            $check(STAGE2_4K, 48);
            $check(STAGE2_16K, 48);
            $check(STAGE2_64K, 44);
            $check(STAGE1_64K, 52);
            $check(STAGE2_64K, 52);
            $check(STAGE1_4K_LPA2, 52);
            $check(STAGE1_16K_LPA2, 52);
            $check(STAGE2_4K_LPA2, 52);
            $check(STAGE2_16K_LPA2, 50);
            $check(X86_4, 48);
            $check(X86_5, 57);
            $check(SECOND_4, 48);
            $check(SECOND_5, 57);
        }
    }};
}

pub fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::new(Iova::new(start), len).unwrap()
}

pub fn mapping(iova: u64, phys: u64, len: u64, attributes: Attributes) -> Mapping {
    Mapping { iova: Iova::new(iova), memory: PhysRange::new(PhysAddr::new(phys), len).unwrap(), attributes }
}

pub fn rw(iova: u64, phys: u64, len: u64) -> Mapping {
    mapping(iova, phys, len, Attributes::READ_WRITE)
}

/// Ends a gather's round as a driver does after the invalidation.
pub fn sync(hal: &impl portcullis_hal::Hal, gather: &mut portcullis_hal::Gather) {
    // SAFETY: no hardware in these tests.
    let _ = unsafe { gather.finish(hal) };
}
