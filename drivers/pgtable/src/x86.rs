//! x86-64 4- and 5-level paging, and VT-d's first stage (Intel SDM volume 3, chapter 5; VT-d specification,
//! section 3.6).

use crate::format::{
    AccessedDirty, ConfigError, Format, Geometry, Levels, Scheme, TableTest, sealed::Sealed, usage,
    without_usage,
};
use crate::spec::x86::{Leaf, Table};
use portcullis_hal::{Access, Attributes, MemoryKind, TableFormat};

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

const ACCESSED: u64 = Leaf::new().with_accessed(true).into_bits();
const DIRTY: u64 = Leaf::new().with_dirty(true).into_bits();

impl Sealed for X86 {}

impl Format for X86 {
    const SCHEME: Scheme = Scheme {
        granule_shift: 12,
        leaf_levels: 3,
        wide_levels: 0,
        output_bits: 52,
        split_bit: 52,
        high_address: 0,
        present: PRESENT,
        // PS is the sign of the lowest byte.
        table_test: TableTest::Byte,
        page: 0,
        block: PAGE_SIZE,
        table: Table::new().with_present(true).with_write(true).with_user(true).into_bits(),
        contiguous: 0,
        run_shifts: [0; 4],
        transient: 0,
        cleaned: Table::new().with_cleaned(true).into_bits(),
        leaves_low: Table::new().with_leaves(0x3ff).into_bits(),
        leaves_high: 0,
        attribute_bits,
        attributes,
        usage: usage::<ACCESSED, DIRTY>,
        without_usage: without_usage::<ACCESSED, DIRTY>,
        with_usage,
    };

    fn scheme(&self) -> Scheme {
        let preset = self.accessed_dirty == AccessedDirty::Preset;
        let accessed = u64::from(Table::new().with_accessed(preset));
        Scheme { table: Self::SCHEME.table | accessed, ..Self::SCHEME }
    }

    fn accessed_dirty(&self) -> AccessedDirty {
        self.accessed_dirty
    }

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
}

fn attribute_bits(attributes: Attributes, accessed_dirty: AccessedDirty) -> Option<u64> {
    let (access, memory) = (attributes.access, attributes.memory);
    let execute = access.contains(Access::EXECUTE);
    if !access.contains(Access::READ) || execute && memory == MemoryKind::Device {
        return None;
    }
    let write = access.contains(Access::WRITE);
    let preset = accessed_dirty == AccessedDirty::Preset;
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

fn attributes(leaf: u64) -> Attributes {
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

fn with_usage(leaf: u64) -> u64 {
    let leaf = Leaf::from(leaf);
    // Dirty without writable is how CPUs mark a shadow stack.
    leaf.with_accessed(true).with_dirty(leaf.write()).into()
}
