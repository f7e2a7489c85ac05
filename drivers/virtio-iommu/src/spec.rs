//! What is on the wire: virtio 1.2, sections 2.1, 2.2, 4.1.4 and 5.13. Types only.

use bitflags::bitflags;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The PCI vendor id of virtio devices (4.1.2).
pub const PCI_VENDOR: u16 = 0x1af4;
/// The PCI device id of a virtio-iommu: 0x1040 plus the device type (4.1.2.1).
pub const PCI_DEVICE: u16 = 0x1040 + DEVICE_TYPE as u16;
/// The device type of a virtio-iommu (5).
pub const DEVICE_TYPE: u32 = 23;

bitflags! {
    /// Feature bits (5.13.3 and 6).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Features: u64 {
        /// `input_range` in the configuration is valid.
        const INPUT_RANGE = 1 << 0;
        /// `domain_range` in the configuration is valid.
        const DOMAIN_RANGE = 1 << 1;
        /// MAP and UNMAP requests.
        const MAP_UNMAP = 1 << 2;
        /// Endpoints that are not attached bypass the device. Never accepted.
        const BYPASS = 1 << 3;
        /// PROBE requests.
        const PROBE = 1 << 4;
        /// [`MapFlags::MMIO`].
        const MMIO = 1 << 5;
        /// `bypass` in the configuration is valid, and [`AttachFlags::BYPASS`].
        const BYPASS_CONFIG = 1 << 6;
        /// The device keeps to version 1 of the specification or later.
        const VERSION_1 = 1 << 32;
        /// The platform may limit or translate the device's own memory accesses.
        const ACCESS_PLATFORM = 1 << 33;
        /// Memory is ordered as for a physical device.
        const ORDER_PLATFORM = 1 << 36;
    }
}

bitflags! {
    /// The device status field (2.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct DeviceStatus: u8 {
        /// The driver has noticed the device.
        const ACKNOWLEDGE = 1;
        /// The driver knows how to drive it.
        const DRIVER = 2;
        /// The driver is ready.
        const DRIVER_OK = 4;
        /// Features are negotiated.
        const FEATURES_OK = 8;
        /// The device has met an error that it cannot recover from.
        const NEEDS_RESET = 64;
        /// The driver has given up.
        const FAILED = 128;
    }
}

/// Byte offsets in the device configuration (5.13.4).
pub mod config {
    /// `page_size_mask`, 64 bits.
    pub const PAGE_SIZE_MASK: usize = 0;
    /// `input_range.start`, 64 bits.
    pub const INPUT_START: usize = 8;
    /// `input_range.end`, 64 bits, inclusive.
    pub const INPUT_END: usize = 16;
    /// `domain_range.start`, 32 bits.
    pub const DOMAIN_START: usize = 24;
    /// `domain_range.end`, 32 bits, inclusive.
    pub const DOMAIN_END: usize = 28;
    /// `probe_size`, 32 bits.
    pub const PROBE_SIZE: usize = 32;
    /// `bypass`, 8 bits, 0 or 1; the only field that the driver writes.
    pub const BYPASS: usize = 36;
}

/// A domain, by the number that driver and device know it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostDomain(pub u32);

/// The `type` of a request (5.13.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct RequestType(pub u8);

impl RequestType {
    /// Attach an endpoint to a domain.
    pub const ATTACH: Self = Self(1);
    /// Detach an endpoint from its domain.
    pub const DETACH: Self = Self(2);
    /// Make a mapping in a domain.
    pub const MAP: Self = Self(3);
    /// Remove mappings from a domain.
    pub const UNMAP: Self = Self(4);
    /// Ask for the properties of an endpoint.
    pub const PROBE: Self = Self(5);
}

/// The `status` of an answer (5.13.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status(pub u8);

impl Status {
    /// Done.
    pub const OK: Self = Self(0);
    /// Virtio communication error.
    pub const IOERR: Self = Self(1);
    /// Unsupported request.
    pub const UNSUPP: Self = Self(2);
    /// Internal device error.
    pub const DEVERR: Self = Self(3);
    /// Invalid parameters.
    pub const INVAL: Self = Self(4);
    /// Out-of-range parameters.
    pub const RANGE: Self = Self(5);
    /// Entry not found.
    pub const NOENT: Self = Self(6);
    /// Bad address.
    pub const FAULT: Self = Self(7);
    /// Insufficient resources.
    pub const NOMEM: Self = Self(8);

    /// The name in the specification, without its prefix.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OK => "OK",
            Self::IOERR => "IOERR",
            Self::UNSUPP => "UNSUPP",
            Self::DEVERR => "DEVERR",
            Self::INVAL => "INVAL",
            Self::RANGE => "RANGE",
            Self::NOENT => "NOENT",
            Self::FAULT => "FAULT",
            Self::NOMEM => "NOMEM",
            _ => "unknown",
        }
    }
}

bitflags! {
    /// The `flags` of ATTACH (5.13.6.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct AttachFlags: u32 {
        /// The domain passes everything through.
        const BYPASS = 1;
    }
}

bitflags! {
    /// The `flags` of MAP (5.13.6.5).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MapFlags: u32 {
        /// The endpoint may read.
        const READ = 1;
        /// The endpoint may write.
        const WRITE = 2;
        /// The memory is device registers.
        const MMIO = 4;
    }
}

/// The first bytes of every request.
#[derive(Clone, Copy, Debug, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Head {
    /// The type.
    pub kind: RequestType,
    /// Zero.
    pub reserved: [u8; 3],
}

impl Head {
    /// The head of a request of this type.
    pub const fn new(kind: RequestType) -> Self {
        Self { kind, reserved: [0; 3] }
    }
}

/// The bytes that the device writes at the end of each request: the status and three reserved bytes.
pub const TAIL_BYTES: usize = 4;

/// ATTACH (5.13.6.3), up to the tail.
#[derive(Clone, Copy, Debug, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Attach {
    /// The head.
    pub head: Head,
    /// The domain; it comes into being with its first endpoint.
    pub domain: U32,
    /// The endpoint.
    pub endpoint: U32,
    /// [`AttachFlags`].
    pub flags: U32,
    /// Zero.
    pub reserved: [u8; 4],
}

/// DETACH (5.13.6.4), up to the tail.
#[derive(Clone, Copy, Debug, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Detach {
    /// The head.
    pub head: Head,
    /// The domain that the endpoint is attached to.
    pub domain: U32,
    /// The endpoint.
    pub endpoint: U32,
    /// Zero.
    pub reserved: [u8; 8],
}

/// MAP (5.13.6.5), up to the tail.
#[derive(Clone, Copy, Debug, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Map {
    /// The head.
    pub head: Head,
    /// The domain.
    pub domain: U32,
    /// The first I/O virtual address.
    pub virt_start: U64,
    /// The last I/O virtual address, inclusive.
    pub virt_end: U64,
    /// The first physical address.
    pub phys_start: U64,
    /// [`MapFlags`].
    pub flags: U32,
}

/// UNMAP (5.13.6.6), up to the tail.
#[derive(Clone, Copy, Debug, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Unmap {
    /// The head.
    pub head: Head,
    /// The domain.
    pub domain: U32,
    /// The first I/O virtual address.
    pub virt_start: U64,
    /// The last I/O virtual address, inclusive.
    pub virt_end: U64,
    /// Zero.
    pub reserved: [u8; 4],
}

/// PROBE (5.13.6.7), up to the properties, which the device writes before the tail.
#[derive(Clone, Copy, Debug, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Probe {
    /// The head.
    pub head: Head,
    /// The endpoint.
    pub endpoint: U32,
    /// Zero.
    pub reserved: [u8; 64],
}

/// The beginning of a property of an endpoint (5.13.6.7).
#[derive(Clone, Copy, Debug, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PropertyHead {
    /// The type, in bits 11:0.
    pub kind: U16,
    /// The bytes that follow.
    pub length: U16,
}

impl PropertyHead {
    /// There are no more properties.
    pub const NONE: u16 = 0;
    /// A [`ReservedMemory`].
    pub const RESERVED_MEMORY: u16 = 1;

    /// The type.
    pub const fn kind(&self) -> u16 {
        self.kind.get() & 0xfff
    }
}

/// RESV_MEM (5.13.6.8.1), after its head.
#[derive(Clone, Copy, Debug, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReservedMemory {
    /// 0: accesses are aborted or have effects of the platform's. 1: the doorbell of message-signalled interrupts,
    /// which goes untranslated. Others are to be taken as 0.
    pub subtype: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// The first I/O virtual address.
    pub start: U64,
    /// The last I/O virtual address, inclusive.
    pub end: U64,
}

/// The most bytes of a request before its tail; but for PROBE, which has a buffer of its own.
pub const REQUEST_BYTES: usize = size_of::<Map>();

/// The `reason` of a fault (5.13.6.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct FaultCode(pub u8);

impl FaultCode {
    /// Something that the other reasons do not describe; an endpoint that the device does not know, say.
    pub const UNKNOWN: Self = Self(0);
    /// The endpoint is not attached.
    pub const DOMAIN: Self = Self(1);
    /// No mapping, or one that does not allow the access.
    pub const MAPPING: Self = Self(2);

    /// The name in the specification, without the device's prefix.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UNKNOWN => "FAULT_R_UNKNOWN",
            Self::DOMAIN => "FAULT_R_DOMAIN",
            Self::MAPPING => "FAULT_R_MAPPING",
            _ => "FAULT_R_reserved",
        }
    }
}

bitflags! {
    /// The `flags` of a fault (5.13.6.9).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct FaultFlags: u32 {
        /// The access was a read.
        const READ = 1;
        /// The access was a write.
        const WRITE = 2;
        /// The address is valid.
        const ADDRESS = 1 << 8;
    }
}

/// An event (5.13.6.9).
#[derive(Clone, Copy, Debug, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FaultEvent {
    /// Why.
    pub reason: FaultCode,
    /// Zero.
    pub reserved: [u8; 3],
    /// [`FaultFlags`].
    pub flags: U32,
    /// The endpoint.
    pub endpoint: U32,
    /// Zero.
    pub reserved2: [u8; 4],
    /// The address, if the flags say so.
    pub address: U64,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Attach>() == 20 && offset_of!(Attach, domain) == 4);
    assert!(offset_of!(Attach, endpoint) == 8 && offset_of!(Attach, flags) == 12);
    assert!(
        size_of::<Detach>() == 20 && offset_of!(Detach, domain) == 4 && offset_of!(Detach, endpoint) == 8
    );
    assert!(size_of::<Map>() == 36 && offset_of!(Map, domain) == 4 && offset_of!(Map, virt_start) == 8);
    assert!(
        offset_of!(Map, virt_end) == 16 && offset_of!(Map, phys_start) == 24 && offset_of!(Map, flags) == 32
    );
    assert!(size_of::<Unmap>() == 28 && offset_of!(Unmap, domain) == 4);
    assert!(offset_of!(Unmap, virt_start) == 8 && offset_of!(Unmap, virt_end) == 16);
    assert!(size_of::<Probe>() == 72 && offset_of!(Probe, endpoint) == 4);
    assert!(size_of::<PropertyHead>() == 4 && offset_of!(PropertyHead, length) == 2);
    assert!(size_of::<ReservedMemory>() == 20 && offset_of!(ReservedMemory, start) == 4);
    assert!(offset_of!(ReservedMemory, end) == 12);
    assert!(size_of::<FaultEvent>() == 24 && offset_of!(FaultEvent, reason) == 0);
    assert!(offset_of!(FaultEvent, flags) == 4 && offset_of!(FaultEvent, endpoint) == 8);
    assert!(offset_of!(FaultEvent, address) == 16);
};
