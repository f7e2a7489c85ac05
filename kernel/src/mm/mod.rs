//! Address spaces of user code, on the page tables that devices can walk too.
//!
//! A space is a list of regions with permissions ([`portcullis_regions`]). Pages get memory when they are first touched,
//! share it with the other side after a fork until one of both writes, and lose it with `unmap` or the end of the space.
//! The tables are made by `portcullis-pgtable`, the same code that makes the IOMMU drivers' tables, and cleaned to memory:
//! a unit that does not snoop can walk them. What a device asks for is resolved by the same handler as what a CPU asks
//! for.
//!
//! # The order in which memory goes
//!
//! The entry is taken out or restricted; all CPUs in the space, then all devices forget it; the memory is reused. If a
//! CPU or a unit does not answer, the memory is lost, not reused.
//!
//! Notifiers of devices are called with the space locked and interrupts masked.

mod asid;
mod dma;
mod fault;
mod fork;
mod lock;
mod page;
mod space;
mod table;

pub(crate) use page::{UserFrame, in_use};
pub(crate) use portcullis_regions::PAGE;
pub(crate) use space::AddressSpace;

use page::Page;
use portcullis_arch::{paging, tlb, user};
use portcullis_hal::{Access, MapError, OutOfMemory, SyncError, UnmapError};
use portcullis_pgtable::{ConfigError, ProtectError};
use portcullis_regions::{RangeError, RegionsError};
use thiserror::Error;

/// Pages of user memory in a row.
pub(crate) type PageRange = portcullis_regions::PageRange<{ user::END }>;
type Region = portcullis_regions::Region<Page, { user::END }>;
type Regions = portcullis_regions::Regions<Page, { user::END }>;

/// Why an address space was not made or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum MmError {
    #[error(transparent)]
    Range(#[from] RangeError),
    #[error("{0:#x} belongs to another region")]
    Overlap(u64),
    #[error("{0:#x} belongs to no region")]
    NotMapped(u64),
    /// Memory is readable, and never both writable and executable.
    #[error("user memory cannot be {0}")]
    Access(Access),
    #[error("the program of {0} bytes does not fit its region")]
    TooLong(usize),
    #[error("the address space has ended")]
    Ended,
    #[error("all address-space ids are in use")]
    NoAsid,
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error(transparent)]
    Unmap(#[from] UnmapError),
    #[error(transparent)]
    Protect(#[from] ProtectError),
    #[error(transparent)]
    Kernel(#[from] paging::MapDeviceError),
    /// A CPU may still use what was removed: the memory is lost.
    #[error(transparent)]
    ShootDown(#[from] tlb::ShootDownError),
    /// A device may: the memory is lost, too.
    #[error(transparent)]
    Device(#[from] SyncError),
}

impl From<RegionsError> for MmError {
    fn from(error: RegionsError) -> Self {
        match error {
            RegionsError::Overlap(address) => Self::Overlap(address),
            RegionsError::NotMapped(address) => Self::NotMapped(address),
            RegionsError::OutOfMemory(error) => error.into(),
        }
    }
}
