//! IORT (Arm DEN 0049, revision E.f).

use super::assert_layout;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// What follows the table header.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Iort {
    /// 36.
    pub(crate) node_count: U32,
    /// 40: from the start of the table.
    pub(crate) node_offset: U32,
    /// 44.
    pub(crate) reserved: U32,
}
assert_layout!(Iort, 12, node_offset @ 4);

/// The header of every node.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct NodeHeader {
    /// 0.
    pub(crate) kind: u8,
    /// 1.
    pub(crate) length: U16,
    /// 3.
    pub(crate) revision: u8,
    /// 4: unique, from revision E on.
    pub(crate) identifier: U32,
    /// 8.
    pub(crate) mapping_count: U32,
    /// 12: from the start of the node.
    pub(crate) mapping_offset: U32,
}
assert_layout!(NodeHeader, 16, length @ 1, revision @ 3, mapping_count @ 8, mapping_offset @ 12);

/// Node types.
pub(crate) mod kind {
    /// [`ItsGroup`](super::ItsGroup).
    pub(crate) const ITS_GROUP: u16 = 0;
    /// [`NamedComponent`](super::NamedComponent).
    pub(crate) const NAMED_COMPONENT: u16 = 1;
    /// [`RootComplex`](super::RootComplex).
    pub(crate) const ROOT_COMPLEX: u16 = 2;
    /// SMMUv1 or SMMUv2.
    pub(crate) const SMMU: u16 = 3;
    /// [`Smmuv3`](super::Smmuv3).
    pub(crate) const SMMUV3: u16 = 4;
    /// Performance monitor counter group.
    pub(crate) const PMCG: u16 = 5;
    /// [`Rmr`](super::Rmr).
    pub(crate) const RMR: u16 = 6;
}

/// Maps input ids to ids of the node it refers to.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct IdMapping {
    /// 0.
    pub(crate) input_base: U32,
    /// 4: the number of ids less one.
    pub(crate) id_count: U32,
    /// 8.
    pub(crate) output_base: U32,
    /// 12: offset of a node from the start of the table.
    pub(crate) output_reference: U32,
    /// 16: bit 0: [`SINGLE_MAPPING`].
    pub(crate) flags: U32,
}
assert_layout!(IdMapping, 20, id_count @ 4, output_base @ 8, output_reference @ 12, flags @ 16);

/// Any input id gives `output_base`.
pub(crate) const SINGLE_MAPPING: u32 = 1 << 0;

/// ITS group, from offset 16; the ids follow.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct ItsGroup {
    /// 16.
    pub(crate) its_count: U32,
}
assert_layout!(ItsGroup, 4);

/// Named component, from offset 16; the object's name follows, ended by NUL.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct NamedComponent {
    /// 16.
    pub(crate) flags: U32,
    /// 20: cache-coherent attribute, 0 or 1.
    pub(crate) cache_coherency: U32,
    /// 24: allocation hints, reserved, memory access flags.
    pub(crate) memory_properties: U32,
    /// 28.
    pub(crate) address_limit: u8,
}
assert_layout!(NamedComponent, 13, cache_coherency @ 4, address_limit @ 12);

/// Root complex, from offset 16.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct RootComplex {
    /// 16.
    pub(crate) cache_coherency: U32,
    /// 20.
    pub(crate) memory_properties: U32,
    /// 24: bit 0: ATS is supported.
    pub(crate) ats_attribute: U32,
    /// 28.
    pub(crate) segment: U32,
}
assert_layout!(RootComplex, 16, ats_attribute @ 8, segment @ 12);

/// Root complex: ATS is supported.
pub(crate) const ATS_SUPPORTED: u32 = 1 << 0;

/// SMMUv3, from offset 16.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Smmuv3 {
    /// 16.
    pub(crate) base: U64,
    /// 24.
    pub(crate) flags: U32,
    /// 28.
    pub(crate) reserved: U32,
    /// 32.
    pub(crate) vatos: U64,
    /// 40.
    pub(crate) model: U32,
    /// 44: GSIVs, 0 where there is no wired interrupt.
    pub(crate) event_gsiv: U32,
    /// 48.
    pub(crate) pri_gsiv: U32,
    /// 52.
    pub(crate) gerror_gsiv: U32,
    /// 56.
    pub(crate) sync_gsiv: U32,
    /// 60.
    pub(crate) proximity_domain: U32,
    /// 64: the mapping of the SMMU's own DeviceID, among those of the node.
    pub(crate) device_id_mapping: U32,
}
assert_layout!(
    Smmuv3, 52, flags @ 8, vatos @ 16, model @ 24, event_gsiv @ 28, pri_gsiv @ 32, gerror_gsiv @ 36,
    sync_gsiv @ 40, proximity_domain @ 44, device_id_mapping @ 48,
);

/// SMMUv3 flag: walks are coherent whatever SMMU_IDR0.COHACC says.
pub(crate) const SMMUV3_COHACC_OVERRIDE: u32 = 1 << 0;
/// SMMUv3 flag: `proximity_domain` is valid.
pub(crate) const SMMUV3_PROXIMITY_VALID: u32 = 1 << 3;
/// SMMUv3 flag of node revision 5: `device_id_mapping` is valid.
pub(crate) const SMMUV3_DEVICE_ID_VALID: u32 = 1 << 4;

/// Reserved memory ranges, from offset 16.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Rmr {
    /// 16.
    pub(crate) flags: U32,
    /// 20.
    pub(crate) range_count: U32,
    /// 24: from the start of the node.
    pub(crate) range_offset: U32,
}
assert_layout!(Rmr, 12, range_count @ 4, range_offset @ 8);

/// RMR flag: the ranges may be moved once a driver owns the device.
pub(crate) const RMR_REMAP_PERMITTED: u32 = 1 << 0;

/// One reserved memory range.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct RmrRange {
    /// 0.
    pub(crate) base: U64,
    /// 8: in bytes.
    pub(crate) length: U64,
    /// 16.
    pub(crate) reserved: U32,
}
assert_layout!(RmrRange, 20, length @ 8);
