//! Endpoints with PASIDs, a translation cache (ATS) and page requests (PRI), which no stock device of QEMU has.
//!
//! A library that is loaded before QEMU itself ([`library`], its source in `qemu-tests/preload`) gives devices the three
//! capabilities and lets the harness issue their requests through a socket ([`link`]). The IOMMU is QEMU's own,
//! unmodified.

pub mod library;
pub mod link;

pub use link::{Answer, Link, Socket, Start, Tag};

use std::path::PathBuf;

/// What a machine with such endpoints is started with.
#[derive(Clone, Debug)]
pub struct Preload {
    /// The library.
    pub library: PathBuf,
    /// Where the harness listens.
    pub socket: PathBuf,
}
