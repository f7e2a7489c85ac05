//! VMSAv8-64, stages 1 and 2 (Arm ARM, chapter D8).

use crate::format::{ConfigError, Format, Geometry, Kind, sealed::Sealed};
use crate::spec::vmsa::{SH_INNER, Stage1Leaf, Stage2Leaf, Table, mem_attr, s2_xn};
use core::fmt::Debug;
use core::marker::PhantomData;
use portcullis_hal::{Access, Attributes, Granule, MemoryKind, PhysAddr, TableFormat};

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
pub type VmsaStage1<const GRANULE: u8> = Vmsa<Stage1, GRANULE>;

/// Stage 2, `2^GRANULE`-byte granule: 12, 14 or 16. The root is concatenated from up to 16 tables wherever that
/// saves a level (D8.2.2). For walkers without forced write-back (S2FWB).
pub type VmsaStage2<const GRANULE: u8> = Vmsa<Stage2, GRANULE>;

/// VMSAv8-64 with a `2^GRANULE`-byte granule; see [`VmsaStage1`] and [`VmsaStage2`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vmsa<S, const GRANULE: u8>(PhantomData<S>);

impl<S, const GRANULE: u8> Vmsa<S, GRANULE> {
    const NAME: Granule = match GRANULE {
        12 => Granule::Size4K,
        14 => Granule::Size16K,
        16 => Granule::Size64K,
        _ => panic!("a granule is 4, 16 or 64 KiB"),
    };

    /// The format.
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<S, const GRANULE: u8> Default for Vmsa<S, GRANULE> {
    fn default() -> Self {
        Self::new()
    }
}

/// What differs between the stages.
#[doc(hidden)]
pub trait Stage: Sealed + Copy + Debug + Send + Sync + 'static {
    /// The largest number of tables, as a power of two, that a root may be made of.
    const CONCATENATED: u8;

    fn table_format(granule: Granule, start_level: u8) -> TableFormat;
    fn attribute_bits(attributes: Attributes) -> Option<u64>;
    fn attributes(leaf: u64) -> Attributes;
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

    fn table_format(granule: Granule, _start_level: u8) -> TableFormat {
        TableFormat::VmsaStage1 { granule, mair: MAIR }
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
        access.set(Access::WRITE, !leaf.read_only());
        access.set(Access::EXECUTE, !leaf.uxn());
        let memory = match leaf.attr_index() {
            MAIR_WRITE_BACK => MemoryKind::WriteBack,
            MAIR_NON_CACHEABLE => MemoryKind::NonCacheable,
            _ => MemoryKind::Device,
        };
        Attributes { access, memory }
    }
}

impl Stage for Stage2 {
    const CONCATENATED: u8 = 4;

    fn table_format(granule: Granule, start_level: u8) -> TableFormat {
        TableFormat::VmsaStage2 { granule, start_level }
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
        access.set(Access::WRITE, leaf.write());
        access.set(Access::EXECUTE, leaf.xn() == s2_xn::EXECUTABLE);
        let memory = match leaf.mem_attr() {
            mem_attr::WRITE_BACK => MemoryKind::WriteBack,
            mem_attr::NON_CACHEABLE => MemoryKind::NonCacheable,
            _ => MemoryKind::Device,
        };
        Attributes { access, memory }
    }
}

/// Bit 0.
const VALID: u64 = 1;
/// Bit 1 of a valid descriptor: a table above level 0, a page at level 0.
const TABLE_OR_PAGE: u64 = 1 << 1;
/// The architecture's number of the level that is 0 here.
const LAST_LEVEL: u8 = 3;

/// Where a table entry keeps the leaf count, in two parts.
const LEAVES_LOW: u64 = Table::new().with_leaves_low(0x3ff).into_bits();
const LEAVES_HIGH: u64 = Table::new().with_leaves_high(0x3f).into_bits();
/// The bits of the count in the low part.
const LOW_BITS: u32 = LEAVES_LOW.count_ones();

impl<S, const GRANULE: u8> Sealed for Vmsa<S, GRANULE> {}

impl<S: Stage, const GRANULE: u8> Format for Vmsa<S, GRANULE> {
    const GRANULE_SHIFT: u32 = GRANULE as u32;
    // 1 GiB blocks need the 4 KiB granule; what lies above needs 52-bit addresses.
    const LEAF_LEVELS: u8 = if GRANULE == 12 { 3 } else { 2 };
    const OUTPUT_BITS: u8 = 48;
    const CLEANED: u64 = Table::new().with_cleaned(true).into_bits();
    const TABLE_MASK: u64 = VALID | TABLE_OR_PAGE;
    const TABLE_BITS: u64 = VALID | TABLE_OR_PAGE;

    fn geometry(&self, input_bits: u8) -> Result<Geometry, ConfigError> {
        if !(32..=48).contains(&input_bits) {
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
        S::table_format(Self::NAME, (LAST_LEVEL + 1).saturating_sub(geometry.levels))
    }

    fn attribute_bits(&self, attributes: Attributes) -> Option<u64> {
        S::attribute_bits(attributes)
    }

    fn attributes(&self, leaf: u64) -> Attributes {
        S::attributes(leaf)
    }

    #[inline]
    fn leaf(&self, phys: PhysAddr, level: u32, attribute_bits: u64) -> u64 {
        let page = if level == 0 { TABLE_OR_PAGE } else { 0 };
        phys.get() | attribute_bits | page
    }

    fn table(&self, phys: PhysAddr) -> u64 {
        phys.get() | u64::from(Table::new().with_valid(true).with_table(true))
    }

    #[inline]
    fn kind(entry: u64, level: u32) -> Kind {
        match (entry & VALID != 0, entry & TABLE_OR_PAGE != 0) {
            (false, _) => Kind::Absent,
            (true, true) if level != 0 => Kind::Table,
            (true, _) => Kind::Leaf,
        }
    }

    #[inline]
    fn leaf_count(entry: u64) -> u64 {
        let low = (entry & LEAVES_LOW).wrapping_shr(LEAVES_LOW.trailing_zeros());
        if GRANULE == 12 {
            // A 4 KiB table has few enough entries for the low part.
            return low;
        }
        low | (entry & LEAVES_HIGH).wrapping_shr(LEAVES_HIGH.trailing_zeros() - LOW_BITS)
    }

    #[inline]
    fn with_leaf_count(entry: u64, count: u64) -> u64 {
        let low = count.wrapping_shl(LEAVES_LOW.trailing_zeros()) & LEAVES_LOW;
        let entry = entry & !LEAVES_LOW | low;
        if GRANULE == 12 {
            return entry;
        }
        entry & !LEAVES_HIGH | count.wrapping_shl(LEAVES_HIGH.trailing_zeros() - LOW_BITS) & LEAVES_HIGH
    }
}
