//! virtio-iommu: the paravirtual back end of the Portcullis IOMMU stack (virtio 1.2, section 5.13).
//!
//! [`PciTransport::probe`] or [`MmioTransport::probe`] finds a device, [`Setup::new`] resets it and switches its
//! boot-time bypass off, and [`Setup::enable`] starts it. The [`VirtioIommu`] it returns is a [`Unit`](portcullis_iommu::Unit).
//!
//! The device keeps the mappings; there are no tables to share with it. Attaching is never hitless: a domain comes
//! into being with its first endpoint, and its mappings are made after that. Unmaps and queued maps cost no
//! notification; a sync, a full queue, or a map that is to be there at once sends one for all of them. The device may take
//! requests in any order, so a map waits for an unmap in flight that touches the same addresses, and the other way round.
//! Where it passes nothing through, an identity domain is mappings around each endpoint's reserved regions.
//!
//! | file | what |
//! |---|---|
//! | [`spec`] | features, configuration, requests, events: types only |
//! | `transport`, `pci`, `mmio`, `registers` | how the device is reached |
//! | `ring` | the memory of a split virtqueue |
//! | `request` | requests, and the words in which they are made |
//! | `requests`, `owners`, `flight` | request slots, who gets the answers, and what must not overtake what |
//! | `link` | submission and bounded waits |
//! | `probe` | what the device says of an endpoint |
//! | `events` | the event queue, and what a fault means |
//! | `intervals`, `tree` | what is mapped in a domain |
//! | `pieces` | what map calls are cut into |
//! | `space` | a domain's mappings, here and on the device |
//! | `domain`, `dma` | domains; `dma` keeps the contract of I/O address spaces |
//! | `attach`, `gate` | changes of attachments, and who may change what meanwhile |
//! | `setup`, `unit` | start-up, and the unit |
//!
//! # What is not driven
//!
//! Legacy devices. A part of a mapping is never unmapped: the protocol has no way, so what can be unmapped is decided when it is
//! mapped ([`Grain`](portcullis_iommu::Grain)).
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod attach;
mod dma;
mod domain;
mod events;
mod flight;
mod gate;
mod intervals;
mod link;
mod mmio;
mod owners;
mod pci;
mod pieces;
mod probe;
mod registers;
mod request;
mod requests;
mod ring;
mod setup;
mod space;
pub mod spec;
mod transport;
mod tree;
mod unit;

pub use mmio::{MmioProbeError, MmioTransport};
pub use pci::{PciTransport, ProbeError, Structure};
pub use registers::{RegisterWindow, Registers};
pub use setup::{InitError, Options, Setup};
pub use transport::{MsixVector, NotTaken, QueueIndex, QueueLayout, Transport, Vectors};
pub use unit::VirtioIommu;
