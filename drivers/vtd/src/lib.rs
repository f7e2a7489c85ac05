//! Intel VT-d in scalable mode: the driver of the Portcullis IOMMU stack.
//!
//! [`Setup::new`] takes a unit over without changing what it translates, [`Setup::reserve_direct`] gives devices
//! with reserved memory their mappings, and [`Setup::enable`] switches the unit to tables in which nothing else is
//! present. The [`Driver`] it returns is a [`Unit`](portcullis_iommu::Unit).
//!
//! Before translation is on nothing but the PCI command register keeps a device from memory: the kernel clears Bus
//! Master Enable on every function that has no reserved memory before it calls [`Setup::new`], and sets it again
//! where it wants it after [`Setup::enable`].
//!
//! | file | what |
//! |---|---|
//! | [`spec`] | registers, table entries, descriptors, fault codes: types only |
//! | `features` | what CAP_REG and ECAP_REG say |
//! | `registers` | GCMD_REG and bounded waits |
//! | `ring`, `queue`, `recovery` | the invalidation queue, and its errors |
//! | `invalidate`, `pieces`, `forget` | which descriptors an invalidation takes, how a range is cut for them, and what a change of entries takes |
//! | `entry`, `tables` | updates of live entries; table memory |
//! | `domain`, `targets`, `tags` | address spaces, where they are cached, and under which domain ids |
//! | `unit`, `endpoint` | the driver's state; PASID tables and what PASIDs are attached to |
//! | `attach`, `detach`, `permit` | changes of attachments, and of what devices may do |
//! | `setup`, `error` | the start-up order, and why it fails |
//! | `events` | faults and the fault interrupt |
//! | `page_requests` | the queue of page requests, answers to them, draining |
//! | `describe` | registers and entries in words |
//! | `dma` | the only unsafe code |
//!
//! # What is not driven
//!
//! Legacy mode, register-based invalidation, interrupt remapping (left as firmware set it) and nested translation.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod attach;
mod describe;
mod detach;
mod dma;
mod domain;
mod endpoint;
mod entry;
mod error;
mod events;
mod features;
mod forget;
mod invalidate;
mod page_requests;
mod permit;
mod pieces;
mod queue;
mod recovery;
mod registers;
mod ring;
mod setup;
pub mod spec;
mod tables;
mod tags;
mod targets;
mod unit;

pub use error::{InitError, InterruptError};
pub use features::Features;
pub use setup::{Options, Setup};
pub use unit::Driver;
