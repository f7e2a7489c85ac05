//! RSDP, table header, MCFG, FADT and SPCR (ACPI 6.5, 5.2; PCI Firmware 3.3, 4.1.2).

use super::assert_layout;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Root system description pointer, the part of ACPI 1.0 (5.2.5.3).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Rsdp {
    /// 0: "RSD PTR ".
    pub(crate) signature: [u8; 8],
    /// 8: makes the first 20 bytes add up to zero.
    pub(crate) checksum: u8,
    /// 9.
    pub(crate) oem_id: [u8; 6],
    /// 15: 0 for ACPI 1.0, 2 and up for [`RsdpExtension`].
    pub(crate) revision: u8,
    /// 16: RSDT.
    pub(crate) rsdt_address: U32,
}
assert_layout!(Rsdp, 20, checksum @ 8, revision @ 15, rsdt_address @ 16);

/// What ACPI 2.0 adds to the RSDP.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct RsdpExtension {
    /// 20: length of the whole structure.
    pub(crate) length: U32,
    /// 24: XSDT.
    pub(crate) xsdt_address: U64,
    /// 32: makes the whole structure add up to zero.
    pub(crate) extended_checksum: u8,
    /// 33.
    pub(crate) reserved: [u8; 3],
}
assert_layout!(RsdpExtension, 16, xsdt_address @ 4, extended_checksum @ 12);

/// The header of every table (5.2.6).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct TableHeader {
    /// 0.
    pub(crate) signature: [u8; 4],
    /// 4: length of the table with the header.
    pub(crate) length: U32,
    /// 8.
    pub(crate) revision: u8,
    /// 9: makes the table add up to zero.
    pub(crate) checksum: u8,
    /// 10.
    pub(crate) oem_id: [u8; 6],
    /// 16.
    pub(crate) oem_table_id: [u8; 8],
    /// 24.
    pub(crate) oem_revision: U32,
    /// 28.
    pub(crate) creator_id: U32,
    /// 32.
    pub(crate) creator_revision: U32,
}
assert_layout!(TableHeader, 36, length @ 4, checksum @ 9, oem_id @ 10, creator_revision @ 32);

/// MCFG: one allocation, from offset 44 of the table.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct McfgEntry {
    /// 0: where bus 0 of the segment would be, whatever `start_bus` is.
    pub(crate) base_address: U64,
    /// 8.
    pub(crate) segment: U16,
    /// 10.
    pub(crate) start_bus: u8,
    /// 11: inclusive.
    pub(crate) end_bus: u8,
    /// 12.
    pub(crate) reserved: U32,
}
assert_layout!(McfgEntry, 16, segment @ 8, start_bus @ 10, end_bus @ 11);

/// FADT: offset of ARM_BOOT_ARCH (5.2.9, table 5.10).
pub(crate) const FADT_ARM_BOOT_ARCH: usize = 129;
/// ARM_BOOT_ARCH bit 0: PSCI is there.
pub(crate) const ARM_BOOT_PSCI_COMPLIANT: u16 = 1 << 0;
/// ARM_BOOT_ARCH bit 1: PSCI is called by HVC.
pub(crate) const ARM_BOOT_PSCI_USE_HVC: u16 = 1 << 1;

/// SPCR from offset 36 (Microsoft Serial Port Console Redirection Table).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Spcr {
    /// 36: [`SPCR_PL011`] and others.
    pub(crate) interface_type: u8,
    /// 37.
    pub(crate) reserved: [u8; 3],
    /// 40: generic address structure: address space, width, offset, access size.
    pub(crate) address_space: u8,
    /// 41.
    pub(crate) address_shape: [u8; 3],
    /// 44.
    pub(crate) address: U64,
    /// 52: bit 3: [`SPCR_INTERRUPT_GIC`].
    pub(crate) interrupt_type: u8,
    /// 53.
    pub(crate) irq: u8,
    /// 54: global system interrupt, on Arm the INTID.
    pub(crate) global_system_interrupt: U32,
}
assert_layout!(Spcr, 22, address_space @ 4, address @ 8, interrupt_type @ 16, global_system_interrupt @ 18);

/// SPCR interface type: Arm PL011.
pub(crate) const SPCR_PL011: u8 = 3;
/// SPCR interrupt type bit 3: Arm GIC.
pub(crate) const SPCR_INTERRUPT_GIC: u8 = 1 << 3;
/// Generic address structure: system memory.
pub(crate) const GAS_SYSTEM_MEMORY: u8 = 0;
