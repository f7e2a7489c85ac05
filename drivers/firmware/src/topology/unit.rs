//! The IOMMUs of a machine, as firmware describes them.

use super::{DeviceScope, MsiTarget};
use crate::Location;
use alloc::vec::Vec;
use core::fmt;
use portcullis_hal::{PhysRange, RequesterId};

/// The position of a unit in [`Topology::units`](crate::Topology::units).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitIndex(pub(crate) usize);

impl UnitIndex {
    /// The index into [`Topology::units`](crate::Topology::units).
    pub const fn get(self) -> usize {
        self.0
    }
}

impl fmt::Display for UnitIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "iommu{}", self.0)
    }
}

/// One IOMMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitDescription {
    /// What it is and where.
    pub kind: UnitKind,
    /// Its NUMA proximity domain, if firmware gives one (DMAR RHSA, IORT).
    pub proximity: Option<u32>,
    /// Where firmware describes it.
    pub origin: Location,
}

/// The kinds of IOMMU that this stack drives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitKind {
    /// Arm SMMUv3.
    Smmuv3(Smmuv3Unit),
    /// Intel VT-d.
    Vtd(VtdUnit),
    /// virtio-iommu.
    VirtioIommu(VirtioIommuUnit),
}

/// An Arm SMMUv3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Smmuv3Unit {
    /// Register pages 0 and 1 (128 KiB, of which IORT gives only the start).
    pub registers: PhysRange,
    /// Whether its table walks and queue accesses snoop the CPU's caches.
    pub walks: WalkCoherency,
    /// Its wired interrupts.
    pub interrupts: Smmuv3Interrupts,
    /// Where its own MSIs would go, if it can send them.
    pub msi: Option<MsiTarget>,
    /// The implementation, as far as it needs workarounds.
    pub model: Smmuv3Model,
}

/// What firmware says about the coherency of an SMMU's accesses to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkCoherency {
    /// Coherent: device tree `dma-coherent`, IORT COHACC override.
    Coherent,
    /// Not coherent, whatever SMMU_IDR0.COHACC says: a device tree without `dma-coherent`.
    NonCoherent,
    /// Not stated: SMMU_IDR0.COHACC decides (IORT without override).
    AsReported,
}

/// The wired interrupts of an SMMUv3, each absent if the SMMU uses MSIs or polling for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Smmuv3Interrupts {
    /// Event queue not empty.
    pub event: Option<Interrupt>,
    /// Global error.
    pub gerror: Option<Interrupt>,
    /// PRI queue not empty.
    pub pri: Option<Interrupt>,
    /// Completion of CMD_SYNC.
    pub command_sync: Option<Interrupt>,
    /// One line for all of them.
    pub combined: Option<Interrupt>,
}

/// SMMUv3 implementations that firmware tells apart (IORT table "SMMUv3 node", model).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Smmuv3Model {
    /// As the architecture says.
    Generic,
    /// HiSilicon Hi161x.
    HisiliconHi161x,
    /// Cavium CN99xx: register page 1 is folded into page 0.
    CaviumCn99xx,
    /// Another number.
    Other(u32),
}

/// A wired interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// The GIC INTID (32 and up for SPIs), or the global system interrupt on x86.
    pub intid: u32,
    /// How the line signals.
    pub trigger: Trigger,
}

/// How an interrupt line signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Rising edge.
    EdgeRising,
    /// Falling edge.
    EdgeFalling,
    /// High level.
    LevelHigh,
    /// Low level.
    LevelLow,
}

/// An Intel VT-d remapping unit (DMAR DRHD, VT-d specification 8.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VtdUnit {
    /// Its register window.
    pub registers: PhysRange,
    /// The PCI segment of the devices it covers.
    pub segment: u16,
    /// Whether it also covers what no other unit of the segment lists.
    pub coverage: VtdCoverage,
    /// The devices it lists.
    pub scopes: Vec<DeviceScope>,
}

/// Which devices of its segment a VT-d unit covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VtdCoverage {
    /// The listed ones and what is behind listed bridges.
    Listed,
    /// Also every PCI device that no other unit of the segment lists (flag INCLUDE_PCI_ALL).
    IncludeAll,
}

/// A virtio-iommu device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioIommuUnit {
    /// How to reach it.
    pub transport: VirtioTransport,
}

/// The transport of a virtio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VirtioTransport {
    /// A PCI function. It is never one of its own endpoints.
    Pci(RequesterId),
    /// A virtio-mmio window.
    Mmio {
        /// The registers.
        registers: PhysRange,
        /// Its interrupt, if firmware gives one (VIOT does not).
        interrupt: Option<Interrupt>,
    },
}
