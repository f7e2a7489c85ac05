//! Page tables for IOMMUs and CPUs: VMSAv8-64 stages 1 and 2, x86-64 and VT-d's first stage, and VT-d's second
//! stage, under one walker. It goes by the [format](Scheme)'s constants; what maps and unmaps single leaves is compiled for
//! each format, with these in it.
//!
//! ```
//! # use portcullis_hal::{Attributes, Gather, Iova, IovaRange, Mapping, PhysAddr, PhysRange, TableWrites};
//! # let hal = portcullis_hal::host::HostHal::new();
//! use portcullis_pgtable::{Config, PageTable, VmsaStage1};
//!
//! let table = PageTable::new(&hal, VmsaStage1::<12>::new(), Config {
//!     input_bits: 48,
//!     output_bits: 44,
//!     page_sizes: u64::MAX,
//!     writes: TableWrites::Cached,
//! })?;
//! let iova = Iova::new(0x10_0000);
//! let memory = PhysRange::new(PhysAddr::new(0x8000_0000), 0x20_0000)?;
//! table.map(&[Mapping { iova, memory, attributes: Attributes::READ_WRITE }])?;
//! assert_eq!(table.translate(Iova::new(0x10_0123)).unwrap().phys, PhysAddr::new(0x8000_0123));
//!
//! // table.root() goes to the hardware. After an unmap, the gather says what has to be invalidated.
//! let mut gather = Gather::new();
//! table.unmap(IovaRange::new(iova, 0x20_0000)?, &mut gather)?;
//! assert_eq!(gather.range(), Some(IovaRange::new(iova, 0x20_0000)?));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | format | levels | pages | refuses |
//! |---|---|---|---|
//! | [`VmsaStage1`] | by width, 32 to 48 bits; 52 with 64K | 4K 2M 1G; 16K 32M; 64K 512M 4T | write-only |
//! | [`VmsaStage1Lpa2`] | by width, 32 to 52 bits | 4K 2M 1G 512G; 16K 32M 64G | write-only |
//! | [`VmsaStage2`], [`VmsaStage2Lpa2`] | by width, concatenated roots | as stage 1 | |
//! | [`X86`] | 4, 5 | 4K 2M 1G | write-only |
//! | [`VtdSecondStage`] | 3, 4, 5 | 4K 2M 1G | execute |
//!
//! The formats of Arm also have runs of leaves under the contiguous hint: 64K 32M 16G with 4K pages, 2M 1G with 16K
//! pages, 2M 16G with 64K pages. [`Config::page_sizes`] says which of all these sizes are used.
//!
//! No format maps registers ([`MemoryKind::Device`](portcullis_hal::MemoryKind)) executable, and none maps
//! executable what cannot be read.
//!
//! A leaf that is only partly to be unmapped is split first ([`AnyTable::split_ends`]), if the hardware bears it
//! ([`Replacement`]); [`AnyTable::split`] and [`AnyTable::join`] change the sizes in a range. What is mapped stays
//! mapped at every moment:
//!
//! ```
//! # use portcullis_hal::{Attributes, Gather, Iova, IovaRange, Mapping, PhysAddr, PhysRange, TableWrites};
//! # let hal = portcullis_hal::host::HostHal::new();
//! use portcullis_hal::{Progress, Usage};
//! use portcullis_pgtable::{AccessedDirty, Config, Levels, PageTable, VtdSecondStage};
//!
//! let format = VtdSecondStage::new(Levels::Four).with_accessed_dirty(AccessedDirty::Hardware);
//! let table = PageTable::new(&hal, format, Config {
//!     input_bits: 48,
//!     output_bits: 46,
//!     page_sizes: u64::MAX,
//!     writes: TableWrites::Cached,
//! })?;
//! let memory = PhysRange::new(PhysAddr::new(0x8000_0000), 0x20_0000)?;
//! table.map(&[Mapping { iova: Iova::new(0), memory, attributes: Attributes::READ_WRITE }])?;
//!
//! let mut gather = Gather::new();
//! let part = IovaRange::new(Iova::new(0x5000), 0x3000)?;
//! while table.split_ends(part, &mut gather)? == Progress::SyncAndRepeat {
//!     // The driver invalidates what is in the gather, and calls again.
//! }
//! assert_eq!(table.unmap(part, &mut gather)?, 0x3000);
//!
//! // What devices wrote to since the last time; before the memory is copied, the driver invalidates.
//! table.harvest(table.aperture(), Usage::DIRTY, &mut gather, |leaf, _| println!("{:?}", leaf.memory))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Order of stores: a table is complete, and cleaned where the walker does not snoop, before the entry that
//! references it is written; leaves are complete and cleaned, by cache lines, before a call returns.
//!
//! | file | what |
//! |---|---|
//! | `format`; `vmsa`, `x86`, `vtd` | what a format has to say, and those that say it; [`spec`] has their words |
//! | `table` | the page table as its users see it |
//! | `map`, `unmap`, `protect`, `visit` | lists and ranges |
//! | `replace` | leaves that change their size |
//! | `walk`, `single` | a position in the tables; the shortest way to one leaf or one table of pages |
//! | `tree` | tables and the links between them, also those that leave: all unsafe code |
#![no_std]

mod format;
mod map;
mod protect;
mod replace;
mod single;
pub mod spec;
mod table;
mod tree;
mod unmap;
mod visit;
mod vmsa;
mod vtd;
mod walk;
mod x86;

pub use format::{
    AccessedDirty, Config, ConfigError, Format, Geometry, Kind, Levels, Replacement, Scheme, TableTest,
};
pub use protect::ProtectError;
pub use table::{AnyTable, PageTable};
pub use vmsa::{
    BbmLevel, Descriptors, Layout, Lpa2, MAIR, Plain, Stage, Stage1, Stage2, Vmsa, VmsaStage1,
    VmsaStage1Lpa2, VmsaStage2, VmsaStage2Lpa2,
};
pub use vtd::VtdSecondStage;
pub use x86::X86;
