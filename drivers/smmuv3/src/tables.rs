//! The page tables of a paging domain: one of the formats that a unit can walk.

use crate::features::Features;
use core::ops::Deref;
use portcullis_hal::{Gather, Granule, Hal, IovaRange, UnmapError};
use portcullis_iommu::{Abilities, DomainError, Missing, PagingSpec, Stage};
use portcullis_pgtable::{
    AccessedDirty, AnyTable, BbmLevel, Config, ConfigError, PageTable, VmsaStage1, VmsaStage1Lpa2,
    VmsaStage2, VmsaStage2Lpa2,
};

/// A page table of either stage and any granule. It is used as any, but for what is done for each page.
pub(crate) enum Tables<H: Hal> {
    /// What most domains have: its format is known to the compiler.
    Usual(PageTable<H, VmsaStage1<12>>),
    Other(AnyTable<H>),
}

impl<H: Hal> Tables<H> {
    /// As [`AnyTable::unmap`].
    #[inline(always)]
    pub(crate) fn unmap(&self, range: IovaRange, gather: &mut Gather) -> Result<u64, UnmapError> {
        match self {
            Self::Usual(table) => table.unmap(range, gather),
            Self::Other(table) => table.unmap(range, gather),
        }
    }
}

impl<H: Hal> Deref for Tables<H> {
    type Target = AnyTable<H>;

    fn deref(&self) -> &AnyTable<H> {
        match self {
            Self::Usual(table) => table,
            Self::Other(table) => table,
        }
    }
}

/// An empty table as `spec` asks, as far as the unit can walk it.
pub(crate) fn new<H: Hal>(hal: &H, spec: &PagingSpec, features: &Features) -> Result<Tables<H>, DomainError> {
    let stage = match spec.stage {
        Some(stage) => stage,
        None if features.stage_1 => Stage::Stage1,
        None => Stage::Stage2,
    };
    let granule = features.own_granule();
    let (supported, lack, widest) = match stage {
        Stage::Stage1 => (features.stage_1, Missing::STAGE_1, features.stage_1_input_bits(granule)),
        Stage::Stage2 => (features.stage_2, Missing::STAGE_2, features.stage_2_input_bits(granule)),
    };
    let unsupported = |missing| Err(DomainError::Unsupported { missing });
    if !supported {
        return unsupported(lack);
    }
    // Narrower inputs than these save no level.
    const NARROWEST: u8 = 32;
    let input_bits = spec.input_bits.map_or(widest, |bits| bits.max(NARROWEST.min(widest)));
    if input_bits > widest {
        return unsupported(Missing::INPUT_WIDTH);
    }
    let lacks = spec.abilities.missing(features.abilities());
    if !lacks.is_empty() {
        return unsupported(lacks);
    }
    let level = resize_level(spec.abilities, features);
    let config = Config {
        input_bits,
        output_bits: features.output_bits(),
        // A run under the contiguous hint is unmapped as a whole, unless it can be split; the others are those
        // that the format has.
        page_sizes: match spec.abilities.contains(Abilities::RESIZE) {
            true => u64::MAX,
            false => !runs(granule),
        },
        writes: features.table_writes(),
    };
    let marks = marks(spec.abilities);
    /// A table of a granule.
    macro_rules! table {
        ($format:ty) => {{
            let format = <$format>::new().with_break_before_make(level).with_accessed_dirty(marks);
            PageTable::new(hal, format, config)
        }};
    }
    macro_rules! other {
        ($format:ty) => {
            table!($format).map(PageTable::into_any).map(Tables::Other)
        };
    }
    // Descriptors with 52-bit addresses, where they make a difference. The 64 KiB granule has no others.
    let wide = features.lpa2 && input_bits.max(features.output_bits()) > 48;
    let tables = match (stage, granule) {
        (Stage::Stage1, Granule::Size4K) if wide => other!(VmsaStage1Lpa2<12>),
        (Stage::Stage1, Granule::Size16K) if wide => other!(VmsaStage1Lpa2<14>),
        (Stage::Stage2, Granule::Size4K) if wide => other!(VmsaStage2Lpa2<12>),
        (Stage::Stage2, Granule::Size16K) if wide => other!(VmsaStage2Lpa2<14>),
        (Stage::Stage1, Granule::Size4K) => table!(VmsaStage1<12>).map(Tables::Usual),
        (Stage::Stage1, Granule::Size16K) => other!(VmsaStage1<14>),
        (Stage::Stage1, Granule::Size64K) => other!(VmsaStage1<16>),
        (Stage::Stage2, Granule::Size4K) => other!(VmsaStage2<12>),
        (Stage::Stage2, Granule::Size16K) => other!(VmsaStage2<14>),
        (Stage::Stage2, Granule::Size64K) => other!(VmsaStage2<16>),
    };
    tables.map_err(|error| match error {
        ConfigError::OutOfMemory(error) => error.into(),
        ConfigError::InputBits(_) => DomainError::Unsupported { missing: Missing::INPUT_WIDTH },
        ConfigError::OutputBits(_) => DomainError::Unsupported { missing: Missing::OUTPUT_WIDTH },
        ConfigError::Levels(_) | ConfigError::PageSizes(_) => {
            DomainError::Unsupported { missing: Missing::FORMAT }
        }
    })
}

/// The sizes of runs of leaves under the contiguous hint (Arm ARM, D8.7.1).
const fn runs(granule: Granule) -> u64 {
    match granule {
        Granule::Size4K => 1 << 16 | 1 << 25 | 1 << 34,
        Granule::Size16K => 1 << 21 | 1 << 30,
        Granule::Size64K => 1 << 21 | 1 << 34,
    }
}

/// How sizes change in the tables of a domain with these abilities: as the unit bears it that the domain was made for.
pub(crate) fn resize_level(abilities: Abilities, features: &Features) -> BbmLevel {
    match abilities.contains(Abilities::RESIZE) {
        true => features.break_before_make,
        false => BbmLevel::Level0,
    }
}

/// Who marks the entries that devices use.
pub(crate) fn marks(abilities: Abilities) -> AccessedDirty {
    match abilities.contains(Abilities::TRACKING) {
        true => AccessedDirty::Hardware,
        false => AccessedDirty::Preset,
    }
}
