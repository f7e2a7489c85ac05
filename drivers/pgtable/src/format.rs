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
    /// By way of a leaf that hardware does not keep ([`Scheme::transient`]), with an invalidation before and after.
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

/// How the entry of a table, above level 0, is told from all else that the walker puts there: zero, leaves, and the marks of
/// [places that are taken](crate::map::RESERVED).
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableTest {
    /// By a bit.
    Bit(u64),
    /// By its lowest byte, which is above zero as a number with a sign.
    Byte,
}

/// A page-table format as data: how its entries are encoded.
///
/// There is one walker for all formats, which goes by it. What maps and unmaps single leaves is compiled for each format,
/// with its scheme as a constant.
///
/// Levels are counted from the leaves: the tables at level 0 hold the smallest pages, whatever number the architecture
/// gives them. Tables are as large as a page and hold 64-bit entries.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Scheme {
    /// The smallest page, and the size of a table, as a power of two in bytes.
    pub granule_shift: u32,
    /// How many levels, from 0 up, may hold leaves.
    pub leaf_levels: u32,
    /// How many of these, from the top, may do so only where physical addresses have more than 48 bits.
    pub wide_levels: u32,
    /// The width of the widest physical address an entry holds, in bits.
    pub output_bits: u8,
    /// The lowest bit of a physical address that an entry does not hold in its place, if there is one: up to there,
    /// the next leaf is this one plus its size.
    pub split_bit: u32,
    /// Where an entry holds the bits from there on, or zero.
    pub high_address: u64,
    /// An entry with none of these bits is absent to hardware.
    pub present: u64,
    /// What tells tables.
    pub table_test: TableTest,
    /// The bits that all leaves at level 0 have, besides those for attributes.
    pub page: u64,
    /// The same for leaves above level 0.
    pub block: u64,
    /// The bits of an entry that references a table, with a leaf count of zero.
    pub table: u64,
    /// The contiguous hint: the bit of a leaf that says that it and its neighbours, as many as the runs at its level have
    /// and aligned as a whole, could be one. Zero if the format has none.
    pub contiguous: u64,
    /// How many leaves at each level may carry the contiguous hint together, as a power of two; 0 if there is no hint.
    pub run_shifts: [u8; 4],
    /// The bit of a leaf above level 0 that keeps hardware from caching it so that it could clash with what replaces it;
    /// for [`Replacement::Staged`].
    pub transient: u64,
    /// The bit of a table entry that hardware ignores and in which the walker notes that the entry has been cleaned to
    /// memory.
    pub cleaned: u64,
    /// Where an entry that references a table of level 0 says how many leaves that holds, by the walker's own count in
    /// bits that hardware ignores.
    pub leaves_low: u64,
    /// Where the rest of the count is, or zero.
    pub leaves_high: u64,
    /// The bits of a leaf that express attributes, or `None` where they cannot be expressed.
    pub attribute_bits: fn(Attributes, AccessedDirty) -> Option<u64>,
    /// The attributes that a leaf expresses.
    pub attributes: fn(u64) -> Attributes,
    /// The marks of a leaf, where hardware sets them.
    pub usage: fn(u64) -> Usage,
    /// A leaf without these marks.
    pub without_usage: fn(u64, Usage) -> u64,
    /// A leaf with all marks that hardware could set in it.
    pub with_usage: fn(u64) -> u64,
}

impl Scheme {
    /// The number of index bits per level.
    #[inline(always)]
    pub(crate) const fn stride(&self) -> u32 {
        self.granule_shift.wrapping_sub(3)
    }

    /// The bytes that one entry at `level` covers, as a power of two.
    #[inline(always)]
    pub(crate) const fn level_shift(&self, level: u32) -> u32 {
        self.granule_shift.wrapping_add(level.wrapping_mul(self.stride()))
    }

    /// The index of `iova` in tables at `level`; high bits are left to the table to mask.
    #[inline(always)]
    pub(crate) const fn index(&self, iova: u64, level: u32) -> usize {
        iova.wrapping_shr(self.level_shift(level)) as usize
    }

    /// The bytes that one entry at `level` covers.
    #[inline(always)]
    pub(crate) const fn level_size(&self, level: u32) -> u64 {
        1_u64.wrapping_shl(self.level_shift(level))
    }

    /// How many leaves at `level` may carry the contiguous hint together, as a power of two; 0 if there is no hint.
    #[inline]
    pub(crate) fn run_shift(&self, level: u32) -> u32 {
        self.run_shifts.get(level as usize).map_or(0, |&shift| u32::from(shift))
    }

    /// The bytes of a run of leaves at `level` under the contiguous hint.
    #[inline]
    pub(crate) fn run_size(&self, level: u32) -> u64 {
        self.level_size(level).wrapping_shl(self.run_shift(level))
    }

    /// The bytes that are mapped as a whole by `leaf`, at `level`, and its neighbours under the same contiguous hint.
    #[inline]
    pub(crate) fn extent(&self, leaf: u64, level: u32) -> u64 {
        if leaf & self.contiguous != 0 { self.run_size(level) } else { self.level_size(level) }
    }

    /// The sizes of single leaves, as a bit mask in bytes, in tables for physical addresses of this width.
    pub(crate) fn leaf_sizes(&self, output_bits: u8) -> u64 {
        let excluded = if output_bits <= 48 { self.wide_levels } else { 0 };
        let levels = self.leaf_levels.wrapping_sub(excluded);
        (0..levels).fold(0, |sizes, level| sizes | self.level_size(level))
    }

    /// The bytes from `phys` up to where a leaf is not the one before plus its size.
    #[inline]
    pub(crate) fn reach(&self, phys: u64) -> u64 {
        if self.high_address == 0 {
            return u64::MAX;
        }
        let period = 1_u64.wrapping_shl(self.split_bit);
        period.wrapping_sub(phys & period.wrapping_sub(1))
    }

    /// The end of the physical addresses that entries hold as they are.
    #[inline(always)]
    pub(crate) fn in_place(&self) -> u64 {
        if self.high_address == 0 { u64::MAX } else { 1_u64.wrapping_shl(self.split_bit) }
    }

    /// An address as entries hold it.
    #[inline(always)]
    pub(crate) fn fold(&self, phys: PhysAddr) -> u64 {
        if self.high_address == 0 || phys.get() < self.in_place() {
            return phys.get();
        }
        let high = phys.get().wrapping_shr(self.split_bit);
        let moved = high.wrapping_shl(self.high_address.trailing_zeros()) & self.high_address;
        phys.get() & low_bits(self.split_bit) | moved
    }

    /// The address in an entry, of what is aligned to `2^shift` bytes.
    #[inline(always)]
    fn unfold(&self, entry: u64, shift: u32) -> PhysAddr {
        let place = low_bits(self.split_bit) & !low_bits(shift);
        if self.high_address == 0 {
            return PhysAddr::new(entry & place);
        }
        let high = (entry & self.high_address).wrapping_shr(self.high_address.trailing_zeros());
        PhysAddr::new(entry & place | high.wrapping_shl(self.split_bit))
    }

    /// The leaf at `level` that maps `phys`, aligned to its size and within the output width.
    #[inline(always)]
    pub(crate) fn leaf(&self, phys: PhysAddr, level: u32, attribute_bits: u64) -> u64 {
        self.fold(phys) | attribute_bits | if level == 0 { self.page } else { self.block }
    }

    /// The entry that references the table at `phys`, with a leaf count of zero.
    pub(crate) fn table(&self, phys: PhysAddr) -> u64 {
        self.fold(phys) | self.table
    }

    /// The address in a leaf at `level`.
    #[inline]
    pub(crate) fn leaf_address(&self, leaf: u64, level: u32) -> PhysAddr {
        self.unfold(leaf, self.level_shift(level))
    }

    /// The address in a table entry.
    #[inline(always)]
    pub(crate) fn table_address(&self, entry: u64) -> PhysAddr {
        self.unfold(entry, self.granule_shift)
    }

    /// Whether an entry above level 0 is one of a table.
    #[inline(always)]
    pub(crate) fn is_table(&self, entry: u64) -> bool {
        match self.table_test {
            TableTest::Bit(bit) => entry & bit != 0,
            TableTest::Byte => entry as i8 > 0,
        }
    }

    /// What `entry` of a table at `level` is.
    #[inline]
    pub(crate) fn kind(&self, entry: u64, level: u32) -> Kind {
        if entry & self.present == 0 {
            Kind::Absent
        } else if level != 0 && self.is_table(entry) {
            Kind::Table
        } else {
            Kind::Leaf
        }
    }

    /// Whether `entry`, which references no table, maps something and is no part of a run under the contiguous hint.
    #[inline(always)]
    pub(crate) fn is_single(&self, entry: u64) -> bool {
        entry & self.present != 0 && entry & self.contiguous == 0
    }

    /// The bits of `leaf`, at `level`, that leaves of other sizes and at other addresses share with it.
    pub(crate) fn shared_bits(&self, leaf: u64, level: u32) -> u64 {
        let place = self.leaf(self.leaf_address(leaf, level), level, 0);
        (leaf ^ place) & !(self.contiguous | self.transient)
    }

    /// How many leaves the level-0 table referenced by `entry` holds, as far as it was noted.
    #[inline(always)]
    pub fn leaf_count(&self, entry: u64) -> u64 {
        let low = (entry & self.leaves_low).wrapping_shr(self.leaves_low.trailing_zeros());
        if self.leaves_high == 0 {
            return low;
        }
        low | (entry & self.leaves_high).wrapping_shr(self.leaves_high_shift())
    }

    /// `entry` with another leaf count, of at most `2^stride`.
    pub fn with_leaf_count(&self, entry: u64, count: u64) -> u64 {
        let low = count.wrapping_shl(self.leaves_low.trailing_zeros()) & self.leaves_low;
        let entry = entry & !self.leaves_low | low;
        if self.leaves_high == 0 {
            return entry;
        }
        entry & !self.leaves_high | count.wrapping_shl(self.leaves_high_shift()) & self.leaves_high
    }

    /// How far the second part of a count has to be moved.
    fn leaves_high_shift(&self) -> u32 {
        self.leaves_high.trailing_zeros().wrapping_sub(self.leaves_low.count_ones())
    }
}

/// A page-table format. The trait is sealed.
pub trait Format: sealed::Sealed + Copy + Debug + Send + Sync + 'static {
    /// The encoding of entries.
    #[doc(hidden)]
    const SCHEME: Scheme;
    /// The smallest page, and the size of a table, as a power of two in bytes.
    const GRANULE_SHIFT: u32 = Self::SCHEME.granule_shift;
    /// The number of index bits per level.
    const STRIDE: u32 = Self::SCHEME.stride();
    /// The bit of the contiguous hint in leaves, or zero.
    const CONTIGUOUS: u64 = Self::SCHEME.contiguous;

    /// The encoding of entries in the tables of this very format.
    #[doc(hidden)]
    fn scheme(&self) -> Scheme {
        Self::SCHEME
    }

    /// How leaves may be replaced.
    fn replacement(&self) -> Replacement {
        Replacement::Direct
    }

    /// Who sets the accessed and dirty marks.
    fn accessed_dirty(&self) -> AccessedDirty;

    /// The shape of a table for inputs of this width.
    fn geometry(&self, input_bits: u8) -> Result<Geometry, ConfigError>;

    /// The name of the format for whoever programs a walker.
    fn table_format(&self, geometry: Geometry) -> TableFormat;

    /// What `entry` of a table at `level` is, counted from the smallest pages.
    fn kind(entry: u64, level: u32) -> Kind {
        Self::SCHEME.kind(entry, level)
    }

    /// The entry that references the table at `phys`.
    fn table(&self, phys: PhysAddr) -> u64 {
        self.scheme().table(phys)
    }

    /// The address in a table entry.
    fn table_address(entry: u64) -> PhysAddr {
        Self::SCHEME.table_address(entry)
    }
}

/// The marks of a leaf in which each is a bit of its own.
pub(crate) fn usage<const ACCESSED: u64, const DIRTY: u64>(leaf: u64) -> Usage {
    let mut usage = Usage::empty();
    usage.set(Usage::ACCESSED, leaf & ACCESSED != 0);
    usage.set(Usage::DIRTY, leaf & DIRTY != 0);
    usage
}

/// Such a leaf without these marks.
pub(crate) fn without_usage<const ACCESSED: u64, const DIRTY: u64>(leaf: u64, usage: Usage) -> u64 {
    let accessed = if usage.contains(Usage::ACCESSED) { ACCESSED } else { 0 };
    let dirty = if usage.contains(Usage::DIRTY) { DIRTY } else { 0 };
    leaf & !(accessed | dirty)
}

/// A mask of the `bits` lowest bits, at most 63.
pub(crate) const fn low_bits(bits: u32) -> u64 {
    1_u64.wrapping_shl(bits).wrapping_sub(1)
}
