//! A page table that is not the driver's: what a hypervisor has for each of its VMs.

use crate::memory::KernelHal;
use portcullis_hal::{Gather, IovaRange, MapError, Mapping, TableRoot, TableWrites, UnmapError};
use portcullis_iommu::{Backend, Stages, UnitInfo};
use portcullis_pgtable::{
    AccessedDirty, Config, ConfigError, Levels, PageTable, VmsaStage2, VtdSecondStage, X86,
};

/// A VM's table, in the format that its CPU and the unit share.
pub(crate) enum VmTable {
    Arm(PageTable<KernelHal, VmsaStage2<12>>),
    Second(PageTable<KernelHal, VtdSecondStage>),
    First(PageTable<KernelHal, X86>),
}

macro_rules! on_table {
    ($self:expr, $table:ident => $call:expr) => {
        match $self {
            VmTable::Arm($table) => $call,
            VmTable::Second($table) => $call,
            VmTable::First($table) => $call,
        }
    };
}

impl VmTable {
    pub(crate) fn root(&self) -> TableRoot {
        on_table!(self, table => table.root())
    }

    pub(crate) fn map(&self, list: &[Mapping]) -> Result<(), MapError> {
        on_table!(self, table => table.map(list))
    }

    pub(crate) fn unmap(&self, range: IovaRange, gather: &mut Gather) -> Result<u64, UnmapError> {
        on_table!(self, table => table.unmap(range, gather))
    }
}

/// A table as a VM would have it, or `None` if the unit walks no tables in memory. Its owner cleans what it writes, so
/// that a walker that does not snoop can use it too.
pub(crate) fn vm_table(info: &UnitInfo) -> Option<Result<VmTable, ConfigError>> {
    let config = |input_bits: u8| Config {
        input_bits,
        output_bits: info.output_bits,
        page_sizes: u64::MAX,
        writes: TableWrites::Cleaned,
    };
    let hal = &KernelHal;
    match info.backend {
        Backend::SmmuV3 if info.stages.contains(Stages::STAGE_2) => {
            Some(PageTable::new(hal, VmsaStage2::new(), config(40)).map(VmTable::Arm))
        }
        Backend::VtdScalable if info.stages.contains(Stages::STAGE_2) => {
            Some(PageTable::new(hal, VtdSecondStage::new(Levels::Four), config(48)).map(VmTable::Second))
        }
        Backend::VtdScalable => {
            let format = X86::new(Levels::Four, AccessedDirty::Preset);
            Some(PageTable::new(hal, format, config(48)).map(VmTable::First))
        }
        _ => None,
    }
}
