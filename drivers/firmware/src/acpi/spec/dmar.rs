//! DMAR (Intel VT-d specification 5.0, chapter 8).

use super::assert_layout;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// What follows the table header (8.1).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Dmar {
    /// 36: host address width in bits, less one.
    pub(crate) host_address_width: u8,
    /// 37.
    pub(crate) flags: u8,
    /// 38.
    pub(crate) reserved: [u8; 10],
}
assert_layout!(Dmar, 12, flags @ 1);

/// Types of remapping structures (8.2).
pub(crate) mod kind {
    /// DMA remapping hardware unit definition.
    pub(crate) const DRHD: u16 = 0;
    /// Reserved memory region reporting.
    pub(crate) const RMRR: u16 = 1;
    /// Root-port ATS capability reporting.
    pub(crate) const ATSR: u16 = 2;
    /// Remapping hardware static affinity.
    pub(crate) const RHSA: u16 = 3;
    /// ACPI name-space device declaration.
    pub(crate) const ANDD: u16 = 4;
    /// SoC integrated address translation cache.
    pub(crate) const SATC: u16 = 5;
    /// SoC integrated device property.
    pub(crate) const SIDP: u16 = 6;
}

/// DRHD (8.3); device scopes follow.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Drhd {
    /// 0.
    pub(crate) kind: U16,
    /// 2.
    pub(crate) length: U16,
    /// 4: bit 0: INCLUDE_PCI_ALL.
    pub(crate) flags: u8,
    /// 5: bits 3:0: the register window has 2^N 4-KiB pages.
    pub(crate) size: u8,
    /// 6.
    pub(crate) segment: U16,
    /// 8.
    pub(crate) register_base: U64,
}
assert_layout!(Drhd, 16, flags @ 4, size @ 5, segment @ 6, register_base @ 8);

/// DRHD flag INCLUDE_PCI_ALL.
pub(crate) const DRHD_INCLUDE_PCI_ALL: u8 = 1 << 0;
/// DRHD size field.
pub(crate) const DRHD_SIZE_MASK: u8 = 0xf;

/// RMRR (8.4); device scopes follow.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Rmrr {
    /// 0.
    pub(crate) kind: U16,
    /// 2.
    pub(crate) length: U16,
    /// 4.
    pub(crate) reserved: U16,
    /// 6.
    pub(crate) segment: U16,
    /// 8.
    pub(crate) base: U64,
    /// 16: inclusive.
    pub(crate) limit: U64,
}
assert_layout!(Rmrr, 24, segment @ 6, base @ 8, limit @ 16);

/// ATSR (8.5) and SATC (8.8); device scopes follow. SIDP (8.9) has the same shape with reserved flags.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct FlaggedScopes {
    /// 0.
    pub(crate) kind: U16,
    /// 2.
    pub(crate) length: U16,
    /// 4: ATSR bit 0: ALL_PORTS; SATC bit 0: ATC_REQUIRED.
    pub(crate) flags: u8,
    /// 5.
    pub(crate) reserved: u8,
    /// 6.
    pub(crate) segment: U16,
}
assert_layout!(FlaggedScopes, 8, flags @ 4, segment @ 6);

/// ATSR flag ALL_PORTS.
pub(crate) const ATSR_ALL_PORTS: u8 = 1 << 0;
/// SATC flag ATC_REQUIRED.
pub(crate) const SATC_ATC_REQUIRED: u8 = 1 << 0;

/// RHSA (8.6).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Rhsa {
    /// 0.
    pub(crate) kind: U16,
    /// 2.
    pub(crate) length: U16,
    /// 4.
    pub(crate) reserved: U32,
    /// 8: that of a DRHD.
    pub(crate) register_base: U64,
    /// 16.
    pub(crate) proximity_domain: U32,
}
assert_layout!(Rhsa, 20, register_base @ 8, proximity_domain @ 16);

/// ANDD (8.7); the name follows, ended by NUL.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Andd {
    /// 0.
    pub(crate) kind: U16,
    /// 2.
    pub(crate) length: U16,
    /// 4.
    pub(crate) reserved: [u8; 3],
    /// 7: matches the enumeration id of a device scope of type [`scope::NAMESPACE_DEVICE`].
    pub(crate) device_number: u8,
}
assert_layout!(Andd, 8, device_number @ 7);

/// Device scope (8.3.1); the path follows, two bytes (device, function) per step.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Scope {
    /// 0.
    pub(crate) kind: u8,
    /// 1.
    pub(crate) length: u8,
    /// 2: SIDP only.
    pub(crate) flags: u8,
    /// 3.
    pub(crate) reserved: u8,
    /// 4.
    pub(crate) enumeration_id: u8,
    /// 5.
    pub(crate) start_bus: u8,
}
assert_layout!(Scope, 6, enumeration_id @ 4, start_bus @ 5);

/// Device scope types.
pub(crate) mod scope {
    /// PCI endpoint.
    pub(crate) const ENDPOINT: u8 = 1;
    /// PCI sub-hierarchy.
    pub(crate) const SUB_HIERARCHY: u8 = 2;
    /// I/O APIC.
    pub(crate) const IOAPIC: u8 = 3;
    /// MSI-capable HPET.
    pub(crate) const HPET: u8 = 4;
    /// ACPI name-space device.
    pub(crate) const NAMESPACE_DEVICE: u8 = 5;
}
