//! x86-64 4- and 5-level paging, and VT-d's first stage (Intel SDM volume 3, chapter 5; VT-d specification,
//! section 3.6).

use crate::format::{AccessedDirty, ConfigError, Format, Geometry, Kind, Levels, sealed::Sealed};
use crate::spec::x86::{Leaf, Table};
use portcullis_hal::{Access, Attributes, MemoryKind, PhysAddr, TableFormat};

/// x86-64 paging, lower half of the address space, user pages at every level.
///
/// What is not executable has XD set, so EFER.NXE, or NXE in the PASID entry, has to be on. Memory kinds use the
/// PAT entries 0, 2 and 3 with their reset values: write-back, UC-, UC. Reads cannot be denied: write-only is
/// refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct X86 {
    levels: Levels,
    accessed_dirty: AccessedDirty,
}

impl X86 {
    /// The format with four or five levels.
    pub const fn new(levels: Levels, accessed_dirty: AccessedDirty) -> Self {
        Self { levels, accessed_dirty }
    }
}

/// P of a leaf and of a table.
const PRESENT: u64 = 1;
/// PS above level 0.
const PAGE_SIZE: u64 = 1 << 7;

/// Where a table entry keeps the leaf count.
const LEAVES: u64 = Table::new().with_leaves(0x3ff).into_bits();
const LEAVES_SHIFT: u32 = LEAVES.trailing_zeros();

impl Sealed for X86 {}

impl Format for X86 {
    const GRANULE_SHIFT: u32 = 12;
    const LEAF_LEVELS: u8 = 3;
    const OUTPUT_BITS: u8 = 52;
    const ACCESSED: u64 = Leaf::new().with_accessed(true).into_bits();
    const DIRTY: u64 = Leaf::new().with_dirty(true).into_bits();
    const CLEANED: u64 = Table::new().with_cleaned(true).into_bits();

    fn geometry(&self, input_bits: u8) -> Result<Geometry, ConfigError> {
        let levels = self.levels.get();
        if self.levels == Levels::Three {
            return Err(ConfigError::Levels(levels));
        }
        let width = 12 + 9 * levels;
        if !(32..=width).contains(&input_bits) {
            return Err(ConfigError::InputBits(input_bits));
        }
        // Canonical addresses: of the full width only the half with a clear sign bit.
        Ok(Geometry { levels, aperture_bits: input_bits.min(width - 1) })
    }

    fn table_format(&self, geometry: Geometry) -> TableFormat {
        TableFormat::X86 { levels: geometry.levels }
    }

    fn accessed_dirty(&self) -> AccessedDirty {
        self.accessed_dirty
    }

    #[inline]
    fn with_usage(leaf: u64) -> u64 {
        let leaf = Leaf::from(leaf);
        // Dirty without writable is how CPUs mark a shadow stack.
        leaf.with_accessed(true).with_dirty(leaf.write()).into()
    }

    fn attribute_bits(&self, attributes: Attributes) -> Option<u64> {
        let (access, memory) = (attributes.access, attributes.memory);
        let execute = access.contains(Access::EXECUTE);
        if !access.contains(Access::READ) || execute && memory == MemoryKind::Device {
            return None;
        }
        let write = access.contains(Access::WRITE);
        let preset = self.accessed_dirty == AccessedDirty::Preset;
        let leaf = Leaf::new()
            .with_present(true)
            .with_write(write)
            .with_user(true)
            .with_pcd(memory != MemoryKind::WriteBack)
            .with_pwt(memory == MemoryKind::Device)
            .with_accessed(preset)
            // Dirty without writable is how CPUs mark a shadow stack.
            .with_dirty(preset && write)
            .with_execute_disable(!execute);
        Some(leaf.into())
    }

    fn attributes(&self, leaf: u64) -> Attributes {
        let leaf = Leaf::from(leaf);
        let mut access = Access::READ;
        access.set(Access::WRITE, leaf.write());
        access.set(Access::EXECUTE, !leaf.execute_disable());
        let memory = match (leaf.pcd(), leaf.pwt()) {
            (false, _) => MemoryKind::WriteBack,
            (true, false) => MemoryKind::NonCacheable,
            (true, true) => MemoryKind::Device,
        };
        Attributes { access, memory }
    }

    #[inline]
    fn leaf(&self, phys: PhysAddr, level: u32, attribute_bits: u64) -> u64 {
        let page_size = if level == 0 { 0 } else { PAGE_SIZE };
        phys.get() | attribute_bits | page_size
    }

    fn table(&self, phys: PhysAddr) -> u64 {
        let preset = self.accessed_dirty == AccessedDirty::Preset;
        let table = Table::new().with_present(true).with_write(true).with_user(true).with_accessed(preset);
        phys.get() | u64::from(table)
    }

    #[inline]
    fn is_table(entry: u64) -> bool {
        // PS is the sign of the lowest byte, in which tables have other bits, and absent entries none.
        entry as i8 > 0
    }

    #[inline]
    fn kind(entry: u64, level: u32) -> Kind {
        if entry & PRESENT == 0 {
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
