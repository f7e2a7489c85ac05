//! The page tables: those of `portcullis-pgtable`, in the format of the CPU.

use super::MmError;
use crate::machine;
use crate::memory::KernelHal;
use portcullis_arch::paging;
use portcullis_hal::TableWrites;
use portcullis_pgtable::{Config, PageTable};

/// The format of the CPU, which is one of its IOMMU too.
#[cfg(target_arch = "x86_64")]
type UserFormat = portcullis_pgtable::X86;
#[cfg(target_arch = "aarch64")]
type UserFormat = portcullis_pgtable::VmsaStage1<12>;

/// The tables of one address space.
pub(super) type UserTable = PageTable<KernelHal, UserFormat>;

/// Marks are set beforehand: a walker that does not snoop could not set them where the CPU would see them.
#[cfg(target_arch = "x86_64")]
fn format() -> UserFormat {
    portcullis_pgtable::X86::new(portcullis_pgtable::Levels::Four, portcullis_pgtable::AccessedDirty::Preset)
}

#[cfg(target_arch = "aarch64")]
fn format() -> UserFormat {
    portcullis_pgtable::VmsaStage1::new()
}

/// The CPU goes by the memory types that the entries are made for.
#[cfg(target_arch = "aarch64")]
const _: () = assert!(paging::MAIR == portcullis_pgtable::MAIR);

/// Empty tables. Neither they nor what they map is beyond what all units can reach, and the CPU is told so.
pub(super) fn new() -> Result<UserTable, MmError> {
    let mut output_bits = u8::try_from(paging::output_bits()).unwrap_or(u8::MAX);
    machine::iommu().for_each_unit(|_, unit| output_bits = output_bits.min(unit.info().output_bits));
    paging::limit_output_bits(u32::from(output_bits))?;
    let config = Config {
        input_bits: 48,
        output_bits,
        // Single pages, which can be shared and given away one by one.
        page_sizes: super::PAGE,
        writes: TableWrites::Cleaned,
    };
    Ok(PageTable::new(&KernelHal, format(), config)?)
}
