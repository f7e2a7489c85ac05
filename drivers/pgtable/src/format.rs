//! What a table format has to say; everything else is common.

use core::fmt::Debug;
use portcullis_hal::{Attributes, OutOfMemory, PhysAddr, TableFormat, TableWrites, Usage};
use thiserror::Error;

pub(crate) mod sealed {
    /// Closes [`Format`](super::Format): the walker follows the table addresses that a format decodes.
    pub trait Sealed {}
}

/// What a table has to translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The width of the input addresses, in bits.
    pub input_bits: u8,
    /// The width of the physical addresses that the walker emits, in bits. Wider than the format's entries means
    /// as wide as these.
    pub output_bits: u8,
    /// The page sizes that may be used, as a bit mask in bytes; those that the format has not are ignored, the
    /// granule must be among them.
    pub page_sizes: u64,
    /// Whether the walker snoops the CPU's caches ([`Cached`](TableWrites::Cached) suffices) or not.
    pub writes: TableWrites,
}

/// Why a table cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// The format has no tables for inputs of this width.
    #[error("{0}-bit input addresses do not fit the table format")]
    InputBits(u8),
    /// The format has no tables of this depth.
    #[error("the table format has no tables of {0} levels")]
    Levels(u8),
    /// Physical addresses of this width cannot reach one page.
    #[error("{0}-bit output addresses do not fit the table format")]
    OutputBits(u8),
    /// The smallest page is not among the sizes allowed.
    #[error("page sizes {0:#x} are without the smallest page of the table format")]
    PageSizes(u64),
    /// No memory for the root.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// The number of levels of a table whose format leaves the choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Levels {
    /// Three levels, 39-bit inputs.
    Three,
    /// Four levels, 48-bit inputs.
    Four,
    /// Five levels, 57-bit inputs.
    Five,
}

impl Levels {
    /// 3, 4 or 5.
    pub const fn get(self) -> u8 {
        match self {
            Self::Three => 3,
            Self::Four => 4,
            Self::Five => 5,
        }
    }
}

/// The shape of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The number of levels, 2 to 5.
    pub levels: u8,
    /// The width of the addresses that can be mapped, in bits; they begin at zero.
    pub aperture_bits: u8,
}

/// Who sets the accessed and dirty marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessedDirty {
    /// Hardware, as it uses the entries: VT-d's first stage, and its second where SSADE is set (ECAP.SSADS); SMMUv3
    /// with CD.HA and CD.HD, or STE.S2HA and S2HD (IDR0.HTTU = 2). Leaves begin unused.
    Hardware,
    /// Nobody: leaves are made so that hardware has nothing to write.
    Preset,
}

/// How a leaf may give way to a table of leaves that translate the same, and the reverse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replacement {
    /// Only with a moment in which nothing is mapped there: it is not offered.
    Break,
    /// By way of a leaf that hardware does not keep ([`Format::TRANSIENT`]), with an invalidation before and after.
    Staged,
    /// In one store, and an invalidation.
    Direct,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Hardware takes it for absent, whatever its other bits say.
    Absent,
    /// It maps a page.
    Leaf,
    /// It references a table.
    Table,
}

/// A page-table format: the encoding of its entries and the shape of its tables.
///
/// Levels are counted from the leaves: the tables at level 0 hold the smallest pages, whatever number the
/// architecture gives them. Tables are as large as a page and hold 64-bit entries. The trait is sealed.
pub trait Format: sealed::Sealed + Copy + Debug + Send + Sync + 'static {
    /// The smallest page, and the size of a table, as a power of two in bytes.
    const GRANULE_SHIFT: u32;
    /// How many levels, from 0 up, may hold leaves.
    const LEAF_LEVELS: u8;
    /// The width of the widest physical address an entry holds, in bits.
    const OUTPUT_BITS: u8;
    /// The lowest bit of a physical address that an entry does not hold in its place, if there is one: up to there,
    /// the next leaf is this one plus its size.
    const SPLIT_BIT: u8 = Self::OUTPUT_BITS;
    /// The contiguous hint: the bit of a leaf that says that it and its neighbours, as many as
    /// [`run_shift`](Self::run_shift) says and aligned as a whole, could be one. Zero if the format has none.
    const CONTIGUOUS: u64 = 0;
    /// The bit of a table entry that hardware ignores and in which the walker notes that the entry has been
    /// cleaned to memory.
    const CLEANED: u64;

    /// Whether an entry above level 0 is one of a table: as [`kind`](Self::kind) has it, for the entries that the walker
    /// makes, in fewer instructions.
    fn is_table(entry: u64) -> bool;

    /// The number of index bits per level.
    const STRIDE: u32 = Self::GRANULE_SHIFT - 3;

    /// The bit of a leaf above level 0 that keeps hardware from caching it so that it could clash with what replaces it;
    /// for [`Replacement::Staged`].
    const TRANSIENT: u64 = 0;

    /// How leaves may be replaced.
    fn replacement(&self) -> Replacement {
        Replacement::Direct
    }

    /// Who sets the accessed and dirty marks.
    fn accessed_dirty(&self) -> AccessedDirty;

    /// The accessed mark of a leaf, where it is a bit of its own.
    const ACCESSED: u64 = 0;
    /// The dirty mark of a leaf, where it is a bit of its own.
    const DIRTY: u64 = 0;

    /// The marks of a leaf, where hardware sets them.
    #[inline]
    fn usage(leaf: u64) -> Usage {
        let mut usage = Usage::empty();
        usage.set(Usage::ACCESSED, leaf & Self::ACCESSED != 0);
        usage.set(Usage::DIRTY, leaf & Self::DIRTY != 0);
        usage
    }

    /// `leaf` without these marks.
    #[inline]
    fn without_usage(leaf: u64, usage: Usage) -> u64 {
        let accessed = if usage.contains(Usage::ACCESSED) { Self::ACCESSED } else { 0 };
        let dirty = if usage.contains(Usage::DIRTY) { Self::DIRTY } else { 0 };
        leaf & !(accessed | dirty)
    }

    /// `leaf` with all marks that hardware could set in it.
    fn with_usage(leaf: u64) -> u64;

    /// How many leaves at `level` may carry the contiguous hint together, as a power of two; 0 if there is no hint.
    fn run_shift(_level: u32) -> u32 {
        0
    }

    /// The sizes of single leaves, as a bit mask in bytes, in tables for physical addresses of this width.
    fn leaf_sizes(_output_bits: u8) -> u64 {
        (0..u32::from(Self::LEAF_LEVELS)).fold(0, |sizes, level| sizes | level_size::<Self>(level))
    }

    /// The shape of a table for inputs of this width.
    fn geometry(&self, input_bits: u8) -> Result<Geometry, ConfigError>;

    /// The name of the format for whoever programs a walker.
    fn table_format(&self, geometry: Geometry) -> TableFormat;

    /// The bits of a leaf that express `attributes`, or `None` where they cannot be expressed.
    fn attribute_bits(&self, attributes: Attributes) -> Option<u64>;

    /// The attributes that a leaf expresses.
    fn attributes(&self, leaf: u64) -> Attributes;

    /// The leaf at `level` that maps `phys`, aligned to its size and within the output width.
    fn leaf(&self, phys: PhysAddr, level: u32, attribute_bits: u64) -> u64;

    /// The entry that references the table at `phys`, with a leaf count of zero.
    fn table(&self, phys: PhysAddr) -> u64;

    /// What `entry` of a table at `level` is.
    fn kind(entry: u64, level: u32) -> Kind;

    /// The address in a leaf at `level`.
    fn leaf_address(entry: u64, level: u32) -> PhysAddr {
        PhysAddr::new(entry & low_bits(u32::from(Self::OUTPUT_BITS)) & !low_bits(level_shift::<Self>(level)))
    }

    /// The address in a table entry.
    fn table_address(entry: u64) -> PhysAddr {
        PhysAddr::new(entry & low_bits(u32::from(Self::OUTPUT_BITS)) & !low_bits(Self::GRANULE_SHIFT))
    }

    /// The lowest bit of the leaf count in a table entry, where its bits lie side by side.
    const LEAF_COUNT_SHIFT: Option<u32> = None;

    /// How many leaves the level-0 table referenced by `entry` holds, by the walker's own count in bits that
    /// hardware ignores.
    fn leaf_count(entry: u64) -> u64;

    /// `entry` with another leaf count, of at most `2^STRIDE`.
    fn with_leaf_count(entry: u64, count: u64) -> u64;
}

/// A mask of the `bits` lowest bits, at most 63.
pub(crate) const fn low_bits(bits: u32) -> u64 {
    1_u64.wrapping_shl(bits).wrapping_sub(1)
}

/// The bytes that one entry at `level` covers, as a power of two.
#[inline]
pub(crate) const fn level_shift<F: Format>(level: u32) -> u32 {
    F::GRANULE_SHIFT.wrapping_add(level.wrapping_mul(F::STRIDE))
}

/// The bytes that are mapped as a whole by `leaf`, at `level`, and its neighbours under the same contiguous hint.
#[inline]
pub(crate) fn extent<F: Format>(leaf: u64, level: u32) -> u64 {
    let hinted = F::CONTIGUOUS != 0 && leaf & F::CONTIGUOUS != 0;
    level_size::<F>(level).wrapping_shl(if hinted { F::run_shift(level) } else { 0 })
}

/// The bits of `leaf`, at `level`, that leaves of other sizes and at other addresses share with it.
pub(crate) fn shared_bits<F: Format>(format: F, leaf: u64, level: u32) -> u64 {
    let place = format.leaf(F::leaf_address(leaf, level), level, 0);
    (leaf ^ place) & !(F::CONTIGUOUS | F::TRANSIENT)
}

/// `leaf` as if it had been used in all ways, if hardware says how it is used: what leaves have in common that were
/// made alike.
#[inline]
pub(crate) fn used<F: Format>(format: F, leaf: u64) -> u64 {
    match format.accessed_dirty() {
        AccessedDirty::Hardware => F::with_usage(leaf),
        AccessedDirty::Preset => leaf,
    }
}

/// The bytes that one entry at `level` covers.
#[inline]
pub(crate) const fn level_size<F: Format>(level: u32) -> u64 {
    1_u64.wrapping_shl(level_shift::<F>(level))
}
