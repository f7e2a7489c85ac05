//! What an address space of user code consists of: ranges of pages with the same permissions.
//!
//! This is the part of the kernel's address spaces that needs neither page tables nor memory, so that it can be tested on
//! a host. `END` is the first address beyond user memory, and `P` what is kept of a page that has memory.
#![no_std]

extern crate alloc;

mod range;
mod region;

pub use range::{PageRange, RangeError};
pub use region::{Region, Regions, RegionsError};

/// The size of a page, in bytes.
pub const PAGE: u64 = 4096;
