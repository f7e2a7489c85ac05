//! VT-d second stage (VT-d specification, sections 3.7 and 9.9).

use crate::format::{AccessedDirty, ConfigError, Format, Geometry, Kind, Levels, sealed::Sealed};
use crate::spec::vtd::{Leaf, Table};
use portcullis_hal::{Access, Attributes, MemoryKind, PhysAddr, TableFormat};

/// VT-d second-stage tables.
///
/// Entries carry no memory kind: EMT is only used in nested translation, so all kinds are accepted and read back
/// as [`MemoryKind::WriteBack`]. SNP is clear, since not every unit has snoop control. Execute requests are not
/// supported and refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VtdSecondStage {
    levels: Levels,
    accessed_dirty: AccessedDirty,
}

impl VtdSecondStage {
    /// The format with three, four or five levels (CAP_REG.SAGAW), without accessed and dirty marks.
    pub const fn new(levels: Levels) -> Self {
        Self { levels, accessed_dirty: AccessedDirty::Preset }
    }

    /// The format, with these accessed and dirty marks (ECAP_REG.SSADS).
    pub const fn with_accessed_dirty(self, accessed_dirty: AccessedDirty) -> Self {
        Self { accessed_dirty, ..self }
    }
}

/// R, W and X: an entry without any of them is absent.
const PERMISSIONS: u64 = 0b111;
/// PS above level 0.
const PAGE_SIZE: u64 = 1 << 7;

/// Where a table entry keeps the leaf count.
const LEAVES: u64 = Table::new().with_leaves(0x3ff).into_bits();
const LEAVES_SHIFT: u32 = LEAVES.trailing_zeros();

impl Sealed for VtdSecondStage {}

impl Format for VtdSecondStage {
    const GRANULE_SHIFT: u32 = 12;
    const LEAF_LEVELS: u8 = 3;
    const OUTPUT_BITS: u8 = 52;
    const ACCESSED: u64 = Leaf::new().with_accessed(true).into_bits();
    const DIRTY: u64 = Leaf::new().with_dirty(true).into_bits();
    const CLEANED: u64 = Table::new().with_cleaned(true).into_bits();

    fn geometry(&self, input_bits: u8) -> Result<Geometry, ConfigError> {
        let levels = self.levels.get();
        if !(32..=12 + 9 * levels).contains(&input_bits) {
            return Err(ConfigError::InputBits(input_bits));
        }
        Ok(Geometry { levels, aperture_bits: input_bits })
    }

    fn table_format(&self, geometry: Geometry) -> TableFormat {
        TableFormat::VtdSecondStage { levels: geometry.levels }
    }

    fn accessed_dirty(&self) -> AccessedDirty {
        self.accessed_dirty
    }

    #[inline]
    fn with_usage(leaf: u64) -> u64 {
        let leaf = Leaf::from(leaf);
        leaf.with_accessed(true).with_dirty(leaf.write()).into()
    }

    fn attribute_bits(&self, attributes: Attributes) -> Option<u64> {
        let access = attributes.access;
        if access.is_empty() || access.contains(Access::EXECUTE) {
            return None;
        }
        let leaf =
            Leaf::new().with_read(access.contains(Access::READ)).with_write(access.contains(Access::WRITE));
        Some(leaf.into())
    }

    fn attributes(&self, leaf: u64) -> Attributes {
        let leaf = Leaf::from(leaf);
        let mut access = Access::empty();
        access.set(Access::READ, leaf.read());
        access.set(Access::WRITE, leaf.write());
        Attributes { access, memory: MemoryKind::WriteBack }
    }

    #[inline]
    fn leaf(&self, phys: PhysAddr, level: u32, attribute_bits: u64) -> u64 {
        let page_size = if level == 0 { 0 } else { PAGE_SIZE };
        phys.get() | attribute_bits | page_size
    }

    fn table(&self, phys: PhysAddr) -> u64 {
        phys.get() | u64::from(Table::new().with_read(true).with_write(true))
    }

    #[inline]
    fn is_table(entry: u64) -> bool {
        // PS is the sign of the lowest byte, in which tables have other bits, and absent entries none.
        entry as i8 > 0
    }

    #[inline]
    fn kind(entry: u64, level: u32) -> Kind {
        if entry & PERMISSIONS == 0 {
            Kind::Absent
        } else if level == 0 || entry & PAGE_SIZE != 0 {
            Kind::Leaf
        } else {
            Kind::Table
        }
    }

    const LEAF_COUNT_SHIFT: Option<u32> = Some(LEAVES_SHIFT);

    #[inline]
    fn leaf_count(entry: u64) -> u64 {
        (entry & LEAVES).wrapping_shr(LEAVES_SHIFT)
    }

    #[inline]
    fn with_leaf_count(entry: u64, count: u64) -> u64 {
        entry & !LEAVES | count.wrapping_shl(LEAVES_SHIFT) & LEAVES
    }
}
