//! Units that have done at once what they are told, for benchmarks: what is left is what the drivers cost.

#![allow(dead_code, reason = "each benchmark uses a part of it")]

pub(crate) mod memory;
pub(crate) mod smmu;
pub(crate) mod virtio;
pub(crate) mod vtd;

use memory::Memory;
use portcullis_hal::{Arc, Granule, Pasid, TableFormat};
use portcullis_iommu::Unit;
use std::error::Error;

/// A driver on a unit that is played.
pub(crate) struct Played {
    pub(crate) unit: Arc<dyn Unit>,
    /// Puts a page request of an endpoint's PASID into the unit's queue: for a page to read and write, alone in its group.
    pub(crate) ask: Box<dyn Fn(u32, Pasid)>,
    /// How often threads have tried to get a submission done: once for each, and again for room, or when it was not done.
    pub(crate) tries: Box<dyn Fn() -> u64>,
}

/// Sets one up.
pub(crate) type Play = fn(Memory) -> Result<Played, Box<dyn Error>>;

/// The CPU's tables that an SMMUv3 walks.
pub(crate) const VMSA: TableFormat = TableFormat::VmsaStage1 { granule: Granule::Size4K, mair: 0xff };
/// The CPU's tables that a VT-d unit walks.
pub(crate) const X86: TableFormat = TableFormat::X86 { levels: 4 };
