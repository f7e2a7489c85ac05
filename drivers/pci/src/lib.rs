//! PCI Express for a hypervisor that isolates devices.
//!
//! - [`ConfigSpace`]: the memory-mapped configuration space (ECAM) of one segment, over any
//!   [`Mmio`](portcullis_hal::Mmio).
//! - [`assign`]: bus numbers, bridge windows and BARs, where no firmware gave any; done once, before a requester
//!   is registered anywhere.
//! - [`enumerate`]: the [`Function`]s of the segment, with what matters for isolation.
//! - [`Bars`], [`MsiCapability`], [`MsixTable`], [`AtsCapability`], [`PasidCapability`], [`PriCapability`]: exact
//!   register sequences. [`FunctionControl`] hands the last three to
//!   [`Iommu::enable`](portcullis_iommu::Iommu::enable), which knows the order.
//! - [`enable_acs`] and [`isolation_groups`]: which functions can be given to different owners.
//!
//! A start-up goes: [`assign`], [`enumerate`], [`clear_bus_master_everywhere`], [`enable_acs`],
//! [`isolation_groups`]; then, per device and once its IOMMU entry is in place,
//! [`enable_bus_master`].
//!
//! ```
//! use portcullis_hal::Mmio;
//! use portcullis_pci::*;
//!
//! fn start(ecam: impl Mmio, windows: &HostWindows) -> Result<(), Box<dyn core::error::Error>> {
//!     let config = ConfigSpace::new(ecam, 0, BusRange::new(0, 255)?);
//!     assign(&config, windows)?;
//!     let mut functions = enumerate(&config)?;
//!     clear_bus_master_everywhere(&config, &functions, |_| BusMaster::Clear)?;
//!     enable_acs(&config, &mut functions);
//!     for (function, group) in functions.iter().zip(isolation_groups(&functions)?) {
//!         println!("{} {} {group}", function.id, function.class);
//!     }
//!     Ok(())
//! }
//! ```
//!
//! What a device says is not trusted: lists are walked with a bound, sizes and bus numbers are checked, and every
//! refusal is a typed error. A register outside the segment reads as all ones, as an absent function does.
//!
//! Read-modify-write of one function's registers is not atomic: the caller lets only one CPU at a time
//! configure a function.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod acs;
mod assign;
mod bar;
mod capability;
mod command;
mod config;
mod control;
mod enumerate;
mod express;
mod function;
mod isolation;
mod layout;
mod msi;
mod msix;
mod power;
mod scan;
pub mod spec;
mod sriov;
mod translation;
mod window;

pub use acs::{Acs, enable_acs};
pub use assign::{AssignError, Assignment, assign};
pub use bar::{Bar, BarError, BarKind, Bars};
pub use capability::{CapabilityError, extended_capability, standard_capability};
pub use command::{
    BusMaster, clear_bus_master_everywhere, disable_bus_master, disable_intx, enable_bus_master,
    enable_memory,
};
pub use config::{BusRange, BusRangeError, ConfigSpace};
pub use control::FunctionControl;
pub use enumerate::{EnumerateError, enumerate, enumerate_roots};
pub use express::Express;
pub use function::{Class, Function, Header};
pub use isolation::{GroupId, isolation_groups};
pub use layout::Space;
pub use msi::{MsiCapability, MsiError};
pub use msix::{MsixCapability, MsixTable};
pub use power::{PowerCapability, PowerState};
pub use sriov::SrIov;
pub use translation::{
    AtsCapability, PasidCapability, PriCapability, SmallestTranslationUnit, TranslationError,
};
pub use window::{BusAddress, HostWindow, HostWindowError, HostWindows};

use thiserror::Error;

/// The kernel's heap has no memory for a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no memory for a list of PCI functions")]
pub struct ListMemory;

impl From<alloc::collections::TryReserveError> for ListMemory {
    fn from(_: alloc::collections::TryReserveError) -> Self {
        Self
    }
}

/// Appends to a list, or reports that there is no memory for it.
fn try_push<T>(list: &mut alloc::vec::Vec<T>, item: T) -> Result<(), ListMemory> {
    portcullis_hal::list::push(list, item).map_err(|_| ListMemory)
}

/// A list of `len` copies of `item`, or a report that there is no memory for it.
fn try_filled<T: Clone>(item: T, len: usize) -> Result<alloc::vec::Vec<T>, ListMemory> {
    let mut list = alloc::vec::Vec::new();
    list.try_reserve_exact(len)?;
    list.resize(len, item);
    Ok(list)
}
