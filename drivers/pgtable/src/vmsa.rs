//! VMSAv8-64, stages 1 and 2 (Arm ARM, chapter D8).

use crate::format::{
    AccessedDirty, ConfigError, Format, Geometry, Replacement, Scheme, TableTest, sealed::Sealed,
};
use crate::spec::vmsa::{
    BLOCK_NT, HIGH_ADDRESS_64K, HIGH_ADDRESS_LPA2, SH_INNER, Stage1Leaf, Stage2Leaf, Table, mem_attr, s2_xn,
};
use core::fmt::Debug;
use core::marker::PhantomData;
use portcullis_hal::{Access, Attributes, Granule, MemoryKind, TableFormat, Usage};

/// The value of MAIR_ELx, or of the MAIR fields of an SMMU's context descriptor, that stage-1 leaves refer to:
/// attribute 0 is normal write-back, 1 normal non-cacheable, 2 Device-nGnRE.
pub const MAIR: u64 = 0x0004_44ff;

const MAIR_WRITE_BACK: u8 = 0;
const MAIR_NON_CACHEABLE: u8 = 1;
const MAIR_DEVICE: u8 = 2;

/// Stage 1, lower address range (TTBR0), `2^GRANULE`-byte granule: 12, 14 or 16.
///
/// Leaves permit unprivileged access, as the DMA of a device behind an SMMU is; they belong to an ASID, are
/// never executable for privileged code, and have the access flag set. Reads cannot be denied: write-only is
/// refused.
///
/// Addresses have up to 48 bits, with the 64 KiB granule up to 52 (FEAT_LPA and FEAT_LVA; IDR5.OAS and VAX).
pub type VmsaStage1<const GRANULE: u8> = Vmsa<Stage1, GRANULE>;

/// Stage 2, `2^GRANULE`-byte granule: 12, 14 or 16. The root is concatenated from up to 16 tables wherever that
/// saves a level (D8.2.2). For walkers without forced write-back (S2FWB).
pub type VmsaStage2<const GRANULE: u8> = Vmsa<Stage2, GRANULE>;

/// As [`VmsaStage1`], granule 12 or 14, with addresses of up to 52 bits: the descriptors of FEAT_LPA2 (CD.DS,
/// IDR5.DS). Leaves are as shareable as CD.SH0 says.
pub type VmsaStage1Lpa2<const GRANULE: u8> = Vmsa<Stage1, GRANULE, Lpa2>;

/// As [`VmsaStage2`], granule 12 or 14, with addresses of up to 52 bits: the descriptors of FEAT_LPA2 (STE.S2DS,
/// IDR5.DS). Leaves are as shareable as STE.S2SH0 says.
pub type VmsaStage2Lpa2<const GRANULE: u8> = Vmsa<Stage2, GRANULE, Lpa2>;

/// VMSAv8-64 with a `2^GRANULE`-byte granule; see [`VmsaStage1`] and [`VmsaStage2`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vmsa<S, const GRANULE: u8, D = Plain> {
    break_before_make: BbmLevel,
    accessed_dirty: AccessedDirty,
    marker: PhantomData<(S, D)>,
}

/// What hardware can bear when the size of a translation changes (FEAT_BBM; SMMUv3, 3.21.1.1 and IDR3.BBML). Where
/// several walkers share a table, the least of them counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BbmLevel {
    /// Nothing: the translation has to be absent in between.
    Level0,
    /// A change by way of a block with nT set, and of the contiguous hint.
    Level1,
    /// Any.
    Level2,
}

/// How descriptors hold addresses.
#[doc(hidden)]
pub trait Descriptors: Sealed + Copy + Debug + Send + Sync + 'static {
    const LAYOUT: Layout;
}

#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    Plain,
    Lpa2,
}

/// Descriptors of 48-bit addresses; with the 64 KiB granule, of 52-bit addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plain;

/// Descriptors of FEAT_LPA2, of 52-bit addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lpa2;

impl Sealed for Plain {}
impl Sealed for Lpa2 {}

impl Descriptors for Plain {
    const LAYOUT: Layout = Layout::Plain;
}

impl Descriptors for Lpa2 {
    const LAYOUT: Layout = Layout::Lpa2;
}

/// The high bits of addresses, which are not in their place: their number in the address, and where they are.
struct High {
    split_bit: u8,
    field: u64,
}

impl<S, const GRANULE: u8, D: Descriptors> Vmsa<S, GRANULE, D> {
    const HIGH: High = match (D::LAYOUT, GRANULE) {
        (Layout::Lpa2, 12 | 14) => High { split_bit: 50, field: HIGH_ADDRESS_LPA2 },
        (Layout::Lpa2, _) => panic!("the descriptors of FEAT_LPA2 are for 4 and 16 KiB granules"),
        (Layout::Plain, 16) => High { split_bit: 48, field: HIGH_ADDRESS_64K },
        (Layout::Plain, _) => High { split_bit: 48, field: 0 },
    };

    const OUTPUT_BITS: u8 = if Self::HIGH.field == 0 { 48 } else { 52 };

    const NAME: Granule = match GRANULE {
        12 => Granule::Size4K,
        14 => Granule::Size16K,
        16 => Granule::Size64K,
        _ => panic!("a granule is 4, 16 or 64 KiB"),
    };

    /// The format: for hardware that cannot bear sizes to change, and does not mark what it uses.
    pub const fn new() -> Self {
        Self {
            break_before_make: BbmLevel::Level0,
            accessed_dirty: AccessedDirty::Preset,
            marker: PhantomData,
        }
    }

    /// The format, for hardware that bears this much.
    pub const fn with_break_before_make(self, level: BbmLevel) -> Self {
        Self { break_before_make: level, accessed_dirty: self.accessed_dirty, marker: PhantomData }
    }

    /// The format, with these accessed and dirty marks.
    pub const fn with_accessed_dirty(self, accessed_dirty: AccessedDirty) -> Self {
        Self { break_before_make: self.break_before_make, accessed_dirty, marker: PhantomData }
    }
}

impl<S, const GRANULE: u8, D: Descriptors> Default for Vmsa<S, GRANULE, D> {
    fn default() -> Self {
        Self::new()
    }
}

/// What differs between the stages.
#[doc(hidden)]
pub trait Stage: Sealed + Copy + Debug + Send + Sync + 'static {
    /// The largest number of tables, as a power of two, that a root may be made of.
    const CONCATENATED: u8;

    fn table_format(layout: Layout, granule: Granule, start_level: u8) -> TableFormat;
    fn attribute_bits(attributes: Attributes) -> Option<u64>;
    fn attributes(leaf: u64) -> Attributes;
    fn usage(leaf: u64) -> Usage;
    /// Clears marks. A writable leaf without the dirty mark is one that hardware makes writable at the first write.
    fn without_usage(leaf: u64, usage: Usage) -> u64;
    fn with_usage(leaf: u64) -> u64;
}

/// Marks [`VmsaStage1`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage1;

/// Marks [`VmsaStage2`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2;

impl Sealed for Stage1 {}
impl Sealed for Stage2 {}

/// Code is read, and registers are not code.
fn executable(attributes: Attributes) -> Option<bool> {
    let execute = attributes.access.contains(Access::EXECUTE);
    let allowed = attributes.access.contains(Access::READ) && attributes.memory != MemoryKind::Device;
    (!execute || allowed).then_some(execute)
}

impl Stage for Stage1 {
    const CONCATENATED: u8 = 0;

    fn table_format(layout: Layout, granule: Granule, _start_level: u8) -> TableFormat {
        match layout {
            Layout::Plain => TableFormat::VmsaStage1 { granule, mair: MAIR },
            Layout::Lpa2 => TableFormat::VmsaStage1Lpa2 { granule, mair: MAIR },
        }
    }

    fn attribute_bits(attributes: Attributes) -> Option<u64> {
        if !attributes.access.contains(Access::READ) {
            return None;
        }
        let index = match attributes.memory {
            MemoryKind::WriteBack => MAIR_WRITE_BACK,
            MemoryKind::NonCacheable => MAIR_NON_CACHEABLE,
            MemoryKind::Device => MAIR_DEVICE,
        };
        let leaf = Stage1Leaf::new()
            .with_valid(true)
            .with_attr_index(index)
            .with_unprivileged(true)
            .with_read_only(!attributes.access.contains(Access::WRITE))
            .with_sh(SH_INNER)
            .with_accessed(true)
            .with_not_global(true)
            .with_pxn(true)
            .with_uxn(!executable(attributes)?);
        Some(leaf.into())
    }

    fn attributes(leaf: u64) -> Attributes {
        let leaf = Stage1Leaf::from(leaf);
        let mut access = Access::READ;
        access.set(Access::WRITE, !leaf.read_only() || leaf.dbm());
        access.set(Access::EXECUTE, !leaf.uxn());
        let memory = match leaf.attr_index() {
            MAIR_WRITE_BACK => MemoryKind::WriteBack,
            MAIR_NON_CACHEABLE => MemoryKind::NonCacheable,
            _ => MemoryKind::Device,
        };
        Attributes { access, memory }
    }

    #[inline]
    fn usage(leaf: u64) -> Usage {
        let leaf = Stage1Leaf::from(leaf);
        let mut usage = Usage::empty();
        usage.set(Usage::ACCESSED, leaf.accessed());
        usage.set(Usage::DIRTY, !leaf.read_only());
        usage
    }

    #[inline]
    fn without_usage(leaf: u64, usage: Usage) -> u64 {
        let leaf = Stage1Leaf::from(leaf);
        let accessed = leaf.accessed() && !usage.contains(Usage::ACCESSED);
        let leaf = leaf.with_accessed(accessed);
        if leaf.read_only() || !usage.contains(Usage::DIRTY) {
            return leaf.into();
        }
        leaf.with_read_only(true).with_dbm(true).into()
    }

    #[inline]
    fn with_usage(leaf: u64) -> u64 {
        let leaf = Stage1Leaf::from(leaf);
        leaf.with_accessed(true).with_read_only(leaf.read_only() && !leaf.dbm()).into()
    }
}

impl Stage for Stage2 {
    const CONCATENATED: u8 = 4;

    fn table_format(layout: Layout, granule: Granule, start_level: u8) -> TableFormat {
        match layout {
            Layout::Plain => TableFormat::VmsaStage2 { granule, start_level },
            Layout::Lpa2 => TableFormat::VmsaStage2Lpa2 { granule, start_level },
        }
    }

    fn attribute_bits(attributes: Attributes) -> Option<u64> {
        let mem_attr = match attributes.memory {
            MemoryKind::WriteBack => mem_attr::WRITE_BACK,
            MemoryKind::NonCacheable => mem_attr::NON_CACHEABLE,
            MemoryKind::Device => mem_attr::DEVICE_NGNRE,
        };
        if !attributes.access.intersects(Access::READ | Access::WRITE) {
            return None;
        }
        let xn = if executable(attributes)? { s2_xn::EXECUTABLE } else { s2_xn::NEVER };
        let leaf = Stage2Leaf::new()
            .with_valid(true)
            .with_mem_attr(mem_attr)
            .with_read(attributes.access.contains(Access::READ))
            .with_write(attributes.access.contains(Access::WRITE))
            .with_sh(SH_INNER)
            .with_accessed(true)
            .with_xn(xn);
        Some(leaf.into())
    }

    fn attributes(leaf: u64) -> Attributes {
        let leaf = Stage2Leaf::from(leaf);
        let mut access = Access::empty();
        access.set(Access::READ, leaf.read());
        access.set(Access::WRITE, leaf.write() || leaf.dbm());
        access.set(Access::EXECUTE, leaf.xn() == s2_xn::EXECUTABLE);
        let memory = match leaf.mem_attr() {
            mem_attr::WRITE_BACK => MemoryKind::WriteBack,
            mem_attr::NON_CACHEABLE => MemoryKind::NonCacheable,
            _ => MemoryKind::Device,
        };
        Attributes { access, memory }
    }

    #[inline]
    fn usage(leaf: u64) -> Usage {
        let leaf = Stage2Leaf::from(leaf);
        let mut usage = Usage::empty();
        usage.set(Usage::ACCESSED, leaf.accessed());
        usage.set(Usage::DIRTY, leaf.write());
        usage
    }

    #[inline]
    fn without_usage(leaf: u64, usage: Usage) -> u64 {
        let leaf = Stage2Leaf::from(leaf);
        let accessed = leaf.accessed() && !usage.contains(Usage::ACCESSED);
        let leaf = leaf.with_accessed(accessed);
        if !leaf.write() || !usage.contains(Usage::DIRTY) {
            return leaf.into();
        }
        leaf.with_write(false).with_dbm(true).into()
    }

    #[inline]
    fn with_usage(leaf: u64) -> u64 {
        let leaf = Stage2Leaf::from(leaf);
        leaf.with_accessed(true).with_write(leaf.write() || leaf.dbm()).into()
    }
}

/// Bit 0.
const VALID: u64 = 1;
/// Bit 1 of a valid descriptor: a table above level 0, a page at level 0.
const TABLE_OR_PAGE: u64 = 1 << 1;
/// The architecture's number of the level that is 0 here.
const LAST_LEVEL: u8 = 3;

impl<S: Stage, const GRANULE: u8, D: Descriptors> Vmsa<S, GRANULE, D> {
    /// Where table entries count leaves: what high address bits leave of the ignored bits.
    const LEAVES_LOW: u64 = match D::LAYOUT {
        Layout::Plain => Table::new().with_leaves_low(0x3ff).into_bits(),
        Layout::Lpa2 => Table::new().with_leaves_low(0x3f).into_bits(),
    };
    /// Where the rest is, if not all counts fit there.
    const LEAVES_HIGH: u64 = match (GRANULE as u32) - 3 < Self::LEAVES_LOW.count_ones() {
        true => 0,
        false => Table::new().with_leaves_high(0x3f).into_bits(),
    };

    fn attribute_bits(attributes: Attributes, accessed_dirty: AccessedDirty) -> Option<u64> {
        let bits = match accessed_dirty {
            AccessedDirty::Hardware => S::without_usage(S::attribute_bits(attributes)?, Usage::all()),
            AccessedDirty::Preset => S::attribute_bits(attributes)?,
        };
        Some(match D::LAYOUT {
            Layout::Plain => bits,
            // SH, bits 9:8, is given up for high address bits.
            Layout::Lpa2 => Stage1Leaf::from(bits).with_sh(0).into(),
        })
    }
}

impl<S, const GRANULE: u8, D> Sealed for Vmsa<S, GRANULE, D> {}

impl<S: Stage, const GRANULE: u8, D: Descriptors> Format for Vmsa<S, GRANULE, D> {
    const SCHEME: Scheme = Scheme {
        granule_shift: GRANULE as u32,
        // Up to 1, 64 and 4096 GiB: one level less without 52-bit addresses, but for the 4 KiB granule.
        leaf_levels: match (GRANULE, D::LAYOUT) {
            (12, Layout::Lpa2) => 4,
            (12, Layout::Plain) | (14, Layout::Lpa2) | (16, _) => 3,
            _ => 2,
        },
        wide_levels: if GRANULE == 16 { 1 } else { 0 },
        output_bits: Self::OUTPUT_BITS,
        split_bit: Self::HIGH.split_bit as u32,
        high_address: Self::HIGH.field,
        present: VALID,
        // Leaves above level 0 have it clear.
        table_test: TableTest::Bit(TABLE_OR_PAGE),
        page: TABLE_OR_PAGE,
        block: 0,
        table: Table::new().with_valid(true).with_table(true).into_bits(),
        contiguous: Stage1Leaf::new().with_contiguous(true).into_bits(),
        // D8.7.1: 16 leaves with the 4 KiB granule; 128 pages or 32 blocks with 16 KiB; 32 with 64 KiB. Not for the
        // blocks that exist with 52-bit addresses only.
        run_shifts: match GRANULE {
            12 => [4, 4, 4, 0],
            14 => [7, 5, 0, 0],
            _ => [5, 5, 0, 0],
        },
        transient: BLOCK_NT,
        cleaned: Table::new().with_cleaned(true).into_bits(),
        leaves_low: Self::LEAVES_LOW,
        leaves_high: Self::LEAVES_HIGH,
        attribute_bits: Self::attribute_bits,
        attributes: S::attributes,
        usage: S::usage,
        without_usage: S::without_usage,
        with_usage: S::with_usage,
    };

    fn replacement(&self) -> Replacement {
        match self.break_before_make {
            BbmLevel::Level0 => Replacement::Break,
            BbmLevel::Level1 => Replacement::Staged,
            BbmLevel::Level2 => Replacement::Direct,
        }
    }

    fn accessed_dirty(&self) -> AccessedDirty {
        self.accessed_dirty
    }

    fn geometry(&self, input_bits: u8) -> Result<Geometry, ConfigError> {
        if !(32..=Self::OUTPUT_BITS).contains(&input_bits) {
            return Err(ConfigError::InputBits(input_bits));
        }
        let (index_bits, stride) = (input_bits - GRANULE, GRANULE - 3);
        let mut levels = index_bits.div_ceil(stride);
        let root_bits = index_bits - (levels - 1) * stride;
        // Two levels are the least the walker handles.
        if root_bits <= S::CONCATENATED && levels > 2 {
            levels -= 1;
        }
        Ok(Geometry { levels, aperture_bits: input_bits })
    }

    fn table_format(&self, geometry: Geometry) -> TableFormat {
        S::table_format(D::LAYOUT, Self::NAME, (LAST_LEVEL + 1).saturating_sub(geometry.levels))
    }
}
