//! Arm SMMUv3 (IHI 0070) behind the traits of [`portcullis_iommu`].
//!
//! Bringing a unit up takes three steps:
//!
//! 1. [`Setup::new`] takes the unit over, whatever firmware left: from its first register write on all DMA is aborted.
//!    Tables and queues are built and the queues work.
//! 2. [`Setup::reserve_direct`] gives devices that firmware set memory aside for their direct maps.
//! 3. [`Setup::enable`] turns translation on and returns the [`Driver`], a [`Unit`](portcullis_iommu::Unit).
//!    When the kernel's interrupt handler stands, [`Driver::enable_interrupts`] lets the unit use it.
//!
//! # What is where
//!
//! | concern | module |
//! |---|---|
//! | layouts of registers, tables, commands and events | [`spec`] |
//! | which bits an entry has, and which hardware looks at | [`entry`] |
//! | how a live entry becomes another one | [`update`] |
//! | commands, and what invalidates a range | [`command`], [`invalidate`] |
//! | decoding events | [`fault`] |
//! | the start-up order, what may be chosen, what the ID registers say | `setup`, `options`, `features` |
//! | registers and bounded waits; one unit's registers and queues | `block`, `port` |
//! | the command queue: its submitters, waits and errors | `cmdq`, `line`, `wait`, `recovery`; `ring` for all queues' indices |
//! | the queues that the unit fills; page requests, stalls, their answers | `evtq`, `page_requests`, `stalls` |
//! | stream table, context descriptors, and their memory | `stream`, `context`, `descriptors`, `memory` |
//! | changes of attachments, and of what streams may do | `attach`, `pasid`, `permit`, `record`, `change` |
//! | address spaces, their tables, where they are cached | `domain`, `tables`, `targets`, `atc` |
//! | the unit as the common layer sees it; entries and registers in words | `driver`, `describe` |
//! | the only unsafe code | `dma` |
//!
//! # How devices are cut off
//!
//! A stream without a domain has an invalid entry: its DMA is aborted and recorded as `C_BAD_STE` or `C_BAD_STREAMID`.
//! A stream in a blocked domain is aborted without a record.
//!
//! # Shared tables
//!
//! The owner of tables that a shared domain uses removes entries by himself, and has the units forget them before he
//! reuses the memory: by [`IoSpace::sync`](portcullis_hal::IoSpace::sync) of the domain with a new
//! [`Gather`](portcullis_hal::Gather), which invalidates everything, or one in which the range was recorded.
//!
//! # Limits
//!
//! PASIDs and stalls beside stage 1, identity or nothing, not beside stage 2. A unit that
//! stalls every fault, that fixes the addresses of its tables, or that walks big-endian tables only is refused.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod atc;
mod attach;
mod block;
mod change;
mod cmdq;
pub mod command;
mod context;
mod describe;
mod descriptors;
mod dma;
mod domain;
mod driver;
pub mod entry;
mod evtq;
pub mod fault;
mod features;
pub mod invalidate;
mod line;
mod memory;
mod options;
mod page_requests;
mod pasid;
mod permit;
mod port;
mod record;
mod recovery;
mod ring;
mod setup;
pub mod spec;
mod stalls;
mod stream;
mod tables;
mod targets;
pub mod update;
mod wait;

pub use atc::{Block, Cached};
pub use domain::SmmuDomain;
pub use driver::Driver;
pub use features::{Features, StallModel, Unsupported};
pub use memory::OutOfReach;
pub use options::{Coherency, InitError, InterruptError, Interrupts, Options, SyncSignal};
pub use setup::Setup;
