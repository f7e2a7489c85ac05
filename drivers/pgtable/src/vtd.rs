//! VT-d second stage (VT-d specification, sections 3.7 and 9.9).

use crate::format::{
    AccessedDirty, ConfigError, Format, Geometry, Levels, Scheme, sealed::Sealed, usage, without_usage,
};
use crate::spec::vtd::{Leaf, Table};
use crate::x86::X86;
use portcullis_hal::{Access, Attributes, MemoryKind, TableFormat};

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

const ACCESSED: u64 = Leaf::new().with_accessed(true).into_bits();
const DIRTY: u64 = Leaf::new().with_dirty(true).into_bits();

impl Sealed for VtdSecondStage {}

impl Format for VtdSecondStage {
    const SCHEME: Scheme = Scheme {
        present: PERMISSIONS,
        table: Table::new().with_read(true).with_write(true).into_bits(),
        cleaned: Table::new().with_cleaned(true).into_bits(),
        leaves_low: Table::new().with_leaves(0x3ff).into_bits(),
        attribute_bits,
        attributes,
        usage: usage::<ACCESSED, DIRTY>,
        without_usage: without_usage::<ACCESSED, DIRTY>,
        with_usage,
        // Tables have the shape of the first stage's, and larger pages have PS where it is there.
        ..X86::SCHEME
    };

    fn accessed_dirty(&self) -> AccessedDirty {
        self.accessed_dirty
    }

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
}

fn attribute_bits(attributes: Attributes, _: AccessedDirty) -> Option<u64> {
    let access = attributes.access;
    if access.is_empty() || access.contains(Access::EXECUTE) {
        return None;
    }
    let leaf =
        Leaf::new().with_read(access.contains(Access::READ)).with_write(access.contains(Access::WRITE));
    Some(leaf.into())
}

fn attributes(leaf: u64) -> Attributes {
    let leaf = Leaf::from(leaf);
    let mut access = Access::empty();
    access.set(Access::READ, leaf.read());
    access.set(Access::WRITE, leaf.write());
    Attributes { access, memory: MemoryKind::WriteBack }
}

fn with_usage(leaf: u64) -> u64 {
    let leaf = Leaf::from(leaf);
    leaf.with_accessed(true).with_dirty(leaf.write()).into()
}
