//! VIOT (ACPI 6.5, 5.2.29 by reference; virtio-iommu in the ACPI registry, revision 0).

use super::assert_layout;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// What follows the table header.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Viot {
    /// 36.
    pub(crate) node_count: U16,
    /// 38: from the start of the table.
    pub(crate) node_offset: U16,
    /// 40.
    pub(crate) reserved: [u8; 8],
}
assert_layout!(Viot, 12, node_offset @ 2);

/// Node types.
pub(crate) mod kind {
    /// [`PciRange`](super::PciRange).
    pub(crate) const PCI_RANGE: u16 = 1;
    /// [`Mmio`](super::Mmio).
    pub(crate) const MMIO_ENDPOINT: u16 = 2;
    /// [`VirtioPci`](super::VirtioPci).
    pub(crate) const VIRTIO_IOMMU_PCI: u16 = 3;
    /// [`VirtioMmio`](super::VirtioMmio).
    pub(crate) const VIRTIO_IOMMU_MMIO: u16 = 4;
}

/// A range of PCI requesters.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct PciRange {
    /// 0: type, reserved, length.
    pub(crate) header: [u8; 4],
    /// 4: the endpoint id of the first requester.
    pub(crate) endpoint_start: U32,
    /// 8.
    pub(crate) segment_start: U16,
    /// 10: inclusive.
    pub(crate) segment_end: U16,
    /// 12.
    pub(crate) bdf_start: U16,
    /// 14: inclusive.
    pub(crate) bdf_end: U16,
    /// 16: offset of an IOMMU node from the start of the table.
    pub(crate) output_node: U16,
    /// 18.
    pub(crate) reserved: [u8; 6],
}
assert_layout!(PciRange, 24, segment_start @ 8, bdf_start @ 12, output_node @ 16);

/// An endpoint that is not PCI.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Mmio {
    /// 0.
    pub(crate) header: [u8; 4],
    /// 4: its endpoint id.
    pub(crate) endpoint: U32,
    /// 8: its first register.
    pub(crate) base_address: U64,
    /// 16.
    pub(crate) output_node: U16,
    /// 18.
    pub(crate) reserved: [u8; 6],
}
assert_layout!(Mmio, 24, base_address @ 8, output_node @ 16);

/// A virtio-iommu on PCI.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct VirtioPci {
    /// 0.
    pub(crate) header: [u8; 4],
    /// 4.
    pub(crate) segment: U16,
    /// 6.
    pub(crate) bdf: U16,
    /// 8.
    pub(crate) reserved: [u8; 8],
}
assert_layout!(VirtioPci, 16, bdf @ 6);

/// A virtio-iommu on virtio-mmio.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct VirtioMmio {
    /// 0.
    pub(crate) header: [u8; 4],
    /// 4.
    pub(crate) reserved: [u8; 4],
    /// 8.
    pub(crate) base_address: U64,
}
assert_layout!(VirtioMmio, 16, base_address @ 8);
