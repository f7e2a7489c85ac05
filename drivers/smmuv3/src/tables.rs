//! The page tables of a paging domain: one of the formats that a unit can walk.

use crate::features::{Features, page_sizes};
use portcullis_hal::{
    Gather, Granule, Hal, Iova, IovaRange, MapError, Mapping, TableRoot, Translated, UnmapError,
};
use portcullis_iommu::{DomainError, Missing, PagingSpec, Stage};
use portcullis_pgtable::{Config, ConfigError, PageTable, VmsaStage1, VmsaStage2};

/// A page table of either stage and any granule.
pub(crate) enum Tables<H: Hal> {
    Stage1Granule4K(PageTable<H, VmsaStage1<12>>),
    Stage1Granule16K(PageTable<H, VmsaStage1<14>>),
    Stage1Granule64K(PageTable<H, VmsaStage1<16>>),
    Stage2Granule4K(PageTable<H, VmsaStage2<12>>),
    Stage2Granule16K(PageTable<H, VmsaStage2<14>>),
    Stage2Granule64K(PageTable<H, VmsaStage2<16>>),
}

/// Evaluates an expression on the table, whatever its format.
macro_rules! on_table {
    ($tables:expr, $table:ident => $expression:expr) => {
        match $tables {
            Tables::Stage1Granule4K($table) => $expression,
            Tables::Stage1Granule16K($table) => $expression,
            Tables::Stage1Granule64K($table) => $expression,
            Tables::Stage2Granule4K($table) => $expression,
            Tables::Stage2Granule16K($table) => $expression,
            Tables::Stage2Granule64K($table) => $expression,
        }
    };
}

impl<H: Hal> Tables<H> {
    /// An empty table as `spec` asks, as far as the unit can walk it.
    pub(crate) fn new(hal: &H, spec: &PagingSpec, features: &Features) -> Result<Self, DomainError> {
        let stage = match spec.stage {
            Some(stage) => stage,
            None if features.stage_1 => Stage::Stage1,
            None => Stage::Stage2,
        };
        let (supported, lack, widest) = match stage {
            Stage::Stage1 => (features.stage_1, Missing::STAGE_1, Features::STAGE_1_INPUT_BITS),
            Stage::Stage2 => (features.stage_2, Missing::STAGE_2, features.stage_2_input_bits()),
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
        let granule = features.own_granule();
        let config = Config {
            input_bits,
            output_bits: features.output_bits(),
            page_sizes: page_sizes(granule),
            writes: features.table_writes(),
        };
        let tables = match (stage, granule) {
            (Stage::Stage1, Granule::Size4K) => {
                PageTable::new(hal, VmsaStage1::new(), config).map(Self::Stage1Granule4K)
            }
            (Stage::Stage1, Granule::Size16K) => {
                PageTable::new(hal, VmsaStage1::new(), config).map(Self::Stage1Granule16K)
            }
            (Stage::Stage1, Granule::Size64K) => {
                PageTable::new(hal, VmsaStage1::new(), config).map(Self::Stage1Granule64K)
            }
            (Stage::Stage2, Granule::Size4K) => {
                PageTable::new(hal, VmsaStage2::new(), config).map(Self::Stage2Granule4K)
            }
            (Stage::Stage2, Granule::Size16K) => {
                PageTable::new(hal, VmsaStage2::new(), config).map(Self::Stage2Granule16K)
            }
            (Stage::Stage2, Granule::Size64K) => {
                PageTable::new(hal, VmsaStage2::new(), config).map(Self::Stage2Granule64K)
            }
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

    pub(crate) fn root(&self) -> TableRoot {
        on_table!(self, table => table.root())
    }

    pub(crate) fn aperture(&self) -> IovaRange {
        on_table!(self, table => table.aperture())
    }

    pub(crate) fn page_sizes(&self) -> u64 {
        on_table!(self, table => table.page_sizes())
    }

    pub(crate) fn map(&self, list: &[Mapping]) -> Result<(), MapError> {
        on_table!(self, table => table.map(list))
    }

    pub(crate) fn unmap(&self, range: IovaRange, gather: &mut Gather) -> Result<u64, UnmapError> {
        on_table!(self, table => table.unmap(range, gather))
    }

    pub(crate) fn translate(&self, iova: Iova) -> Option<Translated> {
        on_table!(self, table => table.translate(iova))
    }
}
