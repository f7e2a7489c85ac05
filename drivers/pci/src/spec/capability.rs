//! Capabilities in the first 256 bytes: PCI Express (7.5.3), power management (7.5.2), MSI and MSI-X (7.7.1, 7.7.2).

use bitfield_struct::bitfield;

/// The identifier of a capability (7:0 of its first word).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapabilityId(pub u8);

impl CapabilityId {
    /// Power management.
    pub const POWER: Self = Self(0x01);
    /// Message-signalled interrupts.
    pub const MSI: Self = Self(0x05);
    /// PCI Express.
    pub const EXPRESS: Self = Self(0x10);
    /// Message-signalled interrupts with a table.
    pub const MSIX: Self = Self(0x11);
}

/// The first word of every capability.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CapabilityHeader {
    /// Bits 7:0: [`CapabilityId`].
    pub id: u8,
    /// Bits 15:8: offset of the next capability, 0 at the end; bits 1:0 are reserved.
    pub next: u8,
    /// Bits 31:16: the capability's own.
    pub specific: u16,
}

/// Word offsets inside the PCI Express capability.
pub mod express {
    /// Device capabilities.
    pub const DEVICE_CAPABILITIES: u16 = 0x04;
    /// Device capabilities 2; absent in version 1.
    pub const DEVICE_CAPABILITIES_2: u16 = 0x24;
    /// Device control 2 in 15:0, status in 31:16.
    pub const DEVICE_CONTROL_2: u16 = 0x28;
}

/// What kind of function or port a PCI Express capability describes (7.5.3.2, bits 7:4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortType(pub u8);

impl PortType {
    /// An endpoint.
    pub const ENDPOINT: Self = Self(0x0);
    /// A legacy endpoint.
    pub const LEGACY_ENDPOINT: Self = Self(0x1);
    /// A root port.
    pub const ROOT_PORT: Self = Self(0x4);
    /// The upstream port of a switch.
    pub const UPSTREAM: Self = Self(0x5);
    /// A downstream port of a switch.
    pub const DOWNSTREAM: Self = Self(0x6);
    /// A bridge from PCI Express down to conventional PCI.
    pub const EXPRESS_TO_PCI: Self = Self(0x7);
    /// A bridge from conventional PCI down to PCI Express.
    pub const PCI_TO_EXPRESS: Self = Self(0x8);
    /// An endpoint integrated in the root complex.
    pub const RC_ENDPOINT: Self = Self(0x9);
    /// An event collector of the root complex.
    pub const RC_EVENT_COLLECTOR: Self = Self(0xa);

    const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    const fn into_bits(self) -> u8 {
        self.0
    }
}

/// The first word of the PCI Express capability.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ExpressHeader {
    /// Bits 15:0: identifier and next pointer.
    pub link: u16,
    /// Bits 19:16: version of the capability.
    #[bits(4)]
    pub version: u8,
    /// Bits 23:20: the kind of function.
    #[bits(4)]
    pub port_type: PortType,
    /// Bit 24: the port has a slot.
    pub slot: bool,
    #[bits(7)]
    __: u8,
}

/// Device capabilities.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct DeviceCapabilities {
    #[bits(28)]
    __: u32,
    /// Bit 28: function-level reset.
    pub function_level_reset: bool,
    #[bits(3)]
    __: u8,
}

/// Device capabilities 2.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct DeviceCapabilities2 {
    #[bits(5)]
    __: u8,
    /// Bit 5: the port can forward to function numbers above 7.
    pub ari_forwarding: bool,
    #[bits(26)]
    __: u32,
}

/// Device control 2 (15:0) and status 2.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct DeviceControl2 {
    #[bits(5)]
    __: u8,
    /// Bit 5: configuration requests to any device number below the port go to functions of device 0.
    pub ari_forwarding: bool,
    #[bits(10)]
    __: u16,
    /// Bits 31:16: status.
    pub status: u16,
}

/// Word offsets inside the power-management capability.
pub mod power {
    /// Control and status.
    pub const CONTROL: u16 = 0x04;
}

/// Power-management control and status (7.5.2.2).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct PowerControl {
    /// Bits 1:0: the power state, 0 for D0 to 3 for D3hot.
    #[bits(2)]
    pub state: u8,
    #[bits(6)]
    __: u8,
    /// Bit 8: PME# is enabled.
    pub pme_enable: bool,
    #[bits(6)]
    __: u8,
    /// Bit 15: PME# status; write 1 to clear.
    pub pme_status: bool,
    /// Bits 31:16: bridge extensions and data.
    pub upper: u16,
}

/// Word offsets inside the MSI capability.
pub mod msi {
    /// Message address, bits 31:2.
    pub const ADDRESS: u16 = 0x04;
    /// Message address, bits 63:32, in the 64-bit layout.
    pub const ADDRESS_UPPER: u16 = 0x08;
    /// Message data in the 32-bit layout.
    pub const DATA_32: u16 = 0x08;
    /// Message data in the 64-bit layout.
    pub const DATA_64: u16 = 0x0c;
    /// Mask bits in the 32-bit layout.
    pub const MASK_32: u16 = 0x0c;
    /// Mask bits in the 64-bit layout.
    pub const MASK_64: u16 = 0x10;
}

/// The first word of the MSI capability.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct MsiControl {
    /// Bits 15:0: identifier and next pointer.
    pub link: u16,
    /// Bit 16: MSI is on.
    pub enable: bool,
    /// Bits 19:17: log2 of the messages the function would like, 0 to 5.
    #[bits(3)]
    pub capable: u8,
    /// Bits 22:20: log2 of the messages it was given.
    #[bits(3)]
    pub enabled: u8,
    /// Bit 23: the address has 64 bits.
    pub wide: bool,
    /// Bit 24: the function has mask bits.
    pub maskable: bool,
    #[bits(7)]
    __: u8,
}

/// Word offsets inside the MSI-X capability, and the layout of its table.
pub mod msix {
    /// Where the table is.
    pub const TABLE: u16 = 0x04;
    /// Where the pending bits are.
    pub const PENDING: u16 = 0x08;
    /// Bytes of a table entry.
    pub const ENTRY_SIZE: usize = 16;
    /// In an entry: message address, bits 31:2.
    pub const ADDRESS: usize = 0x0;
    /// In an entry: message address, bits 63:32.
    pub const ADDRESS_UPPER: usize = 0x4;
    /// In an entry: message data.
    pub const DATA: usize = 0x8;
    /// In an entry: vector control.
    pub const CONTROL: usize = 0xc;
}

/// The first word of the MSI-X capability.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct MsixControl {
    /// Bits 15:0: identifier and next pointer.
    pub link: u16,
    /// Bits 26:16: entries of the table, less one.
    #[bits(11)]
    pub last_entry: u16,
    #[bits(3)]
    __: u8,
    /// Bit 30: all vectors are masked.
    pub function_mask: bool,
    /// Bit 31: MSI-X is on.
    pub enable: bool,
}

/// A place in a BAR.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct MsixLocation {
    /// Bits 2:0: the BAR's index.
    #[bits(3)]
    pub bar: u8,
    /// Bits 31:3: the offset in units of 8 bytes.
    #[bits(29)]
    pub units: u32,
}

/// The last word of an MSI-X table entry.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct MsixVectorControl {
    /// Bit 0: the vector is masked.
    pub masked: bool,
    #[bits(31)]
    __: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_words() {
        // A root port with a slot, version 2, next capability at 48h.
        let express = ExpressHeader::from_bits(0x0142_4810);
        assert_eq!((express.version(), express.port_type(), express.slot()), (2, PortType::ROOT_PORT, true));
        assert!(DeviceCapabilities::from_bits(1 << 28).function_level_reset());
        assert!(DeviceCapabilities2::from_bits(0x20).ari_forwarding());
        assert_eq!(DeviceControl2::new().with_ari_forwarding(true).into_bits(), 0x20);
        assert_eq!(PowerControl::from_bits(0x0000_8103).state(), 3);
        assert!(PowerControl::from_bits(0x0000_8103).pme_status());
        // 64-bit, maskable, four messages wanted, enabled.
        let msi = MsiControl::from_bits(0x0185_0005);
        assert_eq!(
            (msi.enable(), msi.capable(), msi.enabled(), msi.wide(), msi.maskable()),
            (true, 2, 0, true, true)
        );
        let msix = MsixControl::from_bits(0xc003_0011);
        assert_eq!((msix.last_entry(), msix.function_mask(), msix.enable()), (3, true, true));
        let place = MsixLocation::from_bits(0x0000_1804);
        assert_eq!((place.bar(), place.units() * 8), (4, 0x1800));
        assert_eq!(MsixVectorControl::new().with_masked(true).into_bits(), 1);
    }
}
