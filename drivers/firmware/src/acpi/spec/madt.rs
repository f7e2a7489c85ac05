//! MADT (ACPI 6.5, 5.2.12).

use super::assert_layout;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// What follows the table header.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Madt {
    /// 36.
    pub(crate) local_apic_address: U32,
    /// 40.
    pub(crate) flags: U32,
}
assert_layout!(Madt, 8, flags @ 4);

/// Interrupt controller structure types.
pub(crate) mod kind {
    /// [`LocalApic`](super::LocalApic).
    pub(crate) const LOCAL_APIC: u16 = 0;
    /// [`IoApic`](super::IoApic).
    pub(crate) const IO_APIC: u16 = 1;
    /// [`Override`](super::Override).
    pub(crate) const INTERRUPT_OVERRIDE: u16 = 2;
    /// [`LocalApicAddress`](super::LocalApicAddress).
    pub(crate) const LOCAL_APIC_ADDRESS: u16 = 5;
    /// [`LocalX2Apic`](super::LocalX2Apic).
    pub(crate) const LOCAL_X2APIC: u16 = 9;
    /// [`Gicc`](super::Gicc).
    pub(crate) const GICC: u16 = 0xb;
    /// [`Gicd`](super::Gicd).
    pub(crate) const GICD: u16 = 0xc;
    /// [`GicMsiFrame`](super::GicMsiFrame).
    pub(crate) const GIC_MSI_FRAME: u16 = 0xd;
    /// [`Gicr`](super::Gicr).
    pub(crate) const GICR: u16 = 0xe;
    /// [`GicIts`](super::GicIts).
    pub(crate) const GIC_ITS: u16 = 0xf;
}

/// CPU flag: usable.
pub(crate) const CPU_ENABLED: u32 = 1 << 0;
/// Local APIC flag: can be brought in at run time.
pub(crate) const APIC_ONLINE_CAPABLE: u32 = 1 << 1;
/// GICC flag: can be brought in at run time.
pub(crate) const GICC_ONLINE_CAPABLE: u32 = 1 << 3;

/// Processor local APIC.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct LocalApic {
    /// 0.
    pub(crate) header: [u8; 2],
    /// 2.
    pub(crate) uid: u8,
    /// 3.
    pub(crate) apic_id: u8,
    /// 4.
    pub(crate) flags: U32,
}
assert_layout!(LocalApic, 8, apic_id @ 3, flags @ 4);

/// I/O APIC.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct IoApic {
    /// 0.
    pub(crate) header: [u8; 2],
    /// 2.
    pub(crate) id: u8,
    /// 3.
    pub(crate) reserved: u8,
    /// 4.
    pub(crate) address: U32,
    /// 8.
    pub(crate) gsi_base: U32,
}
assert_layout!(IoApic, 12, id @ 2, address @ 4, gsi_base @ 8);

/// Interrupt source override.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Override {
    /// 0.
    pub(crate) header: [u8; 2],
    /// 2: 0, ISA.
    pub(crate) bus: u8,
    /// 3.
    pub(crate) source: u8,
    /// 4.
    pub(crate) gsi: U32,
    /// 8: bits 1:0 polarity, 3:2 trigger mode; 0 as the bus has it.
    pub(crate) flags: U16,
}
assert_layout!(Override, 10, source @ 3, gsi @ 4, flags @ 8);

/// 64-bit address of the local APICs.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct LocalApicAddress {
    /// 0.
    pub(crate) header: [u8; 2],
    /// 2.
    pub(crate) reserved: U16,
    /// 4.
    pub(crate) address: U64,
}
assert_layout!(LocalApicAddress, 12, address @ 4);

/// Processor local x2APIC.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct LocalX2Apic {
    /// 0.
    pub(crate) header: [u8; 2],
    /// 2.
    pub(crate) reserved: U16,
    /// 4.
    pub(crate) x2apic_id: U32,
    /// 8.
    pub(crate) flags: U32,
    /// 12.
    pub(crate) uid: U32,
}
assert_layout!(LocalX2Apic, 16, x2apic_id @ 4, flags @ 8, uid @ 12);

/// GIC CPU interface, the 76 bytes of ACPI 5.1; later versions append.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Gicc {
    /// 0.
    pub(crate) header: [u8; 2],
    /// 2.
    pub(crate) reserved: U16,
    /// 4.
    pub(crate) interface_number: U32,
    /// 8.
    pub(crate) uid: U32,
    /// 12.
    pub(crate) flags: U32,
    /// 16.
    pub(crate) parking_version: U32,
    /// 20.
    pub(crate) performance_gsiv: U32,
    /// 24.
    pub(crate) parked_address: U64,
    /// 32: CPU interface (GICv2).
    pub(crate) gicc_base: U64,
    /// 40.
    pub(crate) gicv_base: U64,
    /// 48.
    pub(crate) gich_base: U64,
    /// 56.
    pub(crate) maintenance_gsiv: U32,
    /// 60: redistributor of this CPU, where there are no GICR structures.
    pub(crate) gicr_base: U64,
    /// 68.
    pub(crate) mpidr: U64,
}
assert_layout!(
    Gicc, 76, flags @ 12, parking_version @ 16, parked_address @ 24, gicc_base @ 32, gicr_base @ 60,
    mpidr @ 68,
);

/// GIC distributor.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Gicd {
    /// 0.
    pub(crate) header: [u8; 2],
    /// 2.
    pub(crate) reserved: U16,
    /// 4.
    pub(crate) id: U32,
    /// 8.
    pub(crate) base: U64,
    /// 16.
    pub(crate) vector_base: U32,
    /// 20: 1 to 4; 0 if the hardware is to be asked.
    pub(crate) version: u8,
    /// 21.
    pub(crate) reserved2: [u8; 3],
}
assert_layout!(Gicd, 24, base @ 8, version @ 20);

/// GICv2m frame.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct GicMsiFrame {
    /// 0.
    pub(crate) header: [u8; 2],
    /// 2.
    pub(crate) reserved: U16,
    /// 4.
    pub(crate) id: U32,
    /// 8.
    pub(crate) base: U64,
    /// 16: bit 0: the SPI fields below override MSI_TYPER.
    pub(crate) flags: U32,
    /// 20.
    pub(crate) spi_count: U16,
    /// 22: an INTID.
    pub(crate) spi_base: U16,
}
assert_layout!(GicMsiFrame, 24, base @ 8, flags @ 16, spi_count @ 20, spi_base @ 22);

/// GICv2m frame flag: the SPI fields count.
pub(crate) const MSI_FRAME_SPI_OVERRIDE: u32 = 1 << 0;

/// GIC redistributor region.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Gicr {
    /// 0.
    pub(crate) header: [u8; 2],
    /// 2.
    pub(crate) reserved: U16,
    /// 4.
    pub(crate) base: U64,
    /// 12.
    pub(crate) length: U32,
}
assert_layout!(Gicr, 16, base @ 4, length @ 12);

/// GIC interrupt translation service.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct GicIts {
    /// 0.
    pub(crate) header: [u8; 2],
    /// 2.
    pub(crate) reserved: U16,
    /// 4.
    pub(crate) id: U32,
    /// 8.
    pub(crate) base: U64,
    /// 16.
    pub(crate) reserved2: U32,
}
assert_layout!(GicIts, 20, id @ 4, base @ 8);
