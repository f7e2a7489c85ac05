//! Addresses that firmware or the architecture takes out of a device's I/O address space.

use super::{DeviceScope, DeviceSet};
use crate::Location;
use portcullis_hal::IovaRange;

/// A region of a device's I/O address space that is not free for ordinary mappings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservedRegion {
    /// The addresses, as the device uses them.
    pub range: IovaRange,
    /// What has to be there.
    pub kind: ReservedKind,
    /// Whom it concerns.
    pub devices: DeviceSet,
    /// Where firmware says so.
    pub origin: Location,
}

/// What has to be at the addresses of a [`ReservedRegion`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservedKind {
    /// Identity-mapped from before translation goes on until the device is gone: RMRR; RMR whose flags do
    /// not permit remapping; device-tree regions whose `iommu-addresses` equal their `reg`.
    Direct,
    /// Identity-mapped until a driver takes the device over: RMR with the remap-permitted flag. Whether an
    /// RMRR of a USB or graphics function may be treated so is the kernel's decision, which knows classes.
    DirectRelaxable,
    /// Writes there are interrupts and are not translated: 0xfee0_0000 to 0xfeef_ffff on VT-d (3.14).
    Msi,
    /// Never mapped.
    Reserved,
}

/// PCI functions for which DMAR states support for address translation services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtsScope {
    /// What is stated.
    pub kind: AtsScopeKind,
    /// The root ports (ATSR) or integrated endpoints (SATC).
    pub devices: DeviceSet,
    /// Where firmware says so.
    pub origin: Location,
}

/// The DMAR structures about address translation services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtsScopeKind {
    /// ATSR: the listed root ports forward translated requests.
    RootPorts,
    /// ATSR with ALL_PORTS: every root port of the segment does.
    AllRootPorts,
    /// SATC: integrated endpoints with a validated address translation cache.
    Integrated,
    /// SATC with ATC_REQUIRED: they do not work without it.
    IntegratedRequired,
}

/// What firmware says about address translation services for a requester.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AtsSupport {
    /// Nothing: ATS stays off.
    NotStated,
    /// The path from the requester to its unit supports it.
    Supported,
    /// The requester does not work without it.
    Required,
}

bitflags::bitflags! {
    /// Platform flags of DMAR (VT-d specification 8.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DmarFlags: u8 {
        /// INTR_REMAP: the platform supports interrupt remapping.
        const INTERRUPT_REMAPPING = 1 << 0;
        /// X2APIC_OPT_OUT: firmware asks not to use x2APIC mode.
        const X2APIC_OPT_OUT = 1 << 1;
        /// DMA_CTRL_PLATFORM_OPT_IN: no DMA outside reserved regions is in flight at hand-over, and
        /// firmware asks the operating system to keep it so.
        const DMA_CONTROL_OPT_IN = 1 << 2;
    }
}

/// What DMAR says about the platform as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmarInfo {
    /// The widest DMA address of the platform, in bits (1 to 256; the field holds one less).
    pub host_address_width: u16,
    /// Platform flags.
    pub flags: DmarFlags,
    /// Functions with the SoC-integrated properties of SIDP, by path; their per-scope flags are not kept.
    pub integrated_properties: alloc::vec::Vec<DeviceScope>,
}
