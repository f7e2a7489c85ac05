//! Invalidation descriptors (section 6.5.2), in the 256-bit form that scalable mode needs: four words each, the
//! last two reserved in all that are used here.

use super::at;
use bitfield_struct::bitfield;

encoding! {
    /// The type of a descriptor: bits 3:0; bits 11:9 extend it and are zero in all of these.
    Kind {
        /// Context-cache invalidate, cc_inv_dsc.
        CONTEXT_CACHE = 0x1,
        /// IOTLB invalidate, iotlb_inv_dsc.
        IOTLB = 0x2,
        /// Device-TLB invalidate, dev_tlb_inv_dsc.
        DEVICE_TLB = 0x3,
        /// Invalidation wait, inv_wait_dsc.
        WAIT = 0x5,
        /// PASID-based IOTLB invalidate, p_iotlb_inv_dsc.
        PASID_IOTLB = 0x6,
        /// PASID-cache invalidate, pc_inv_dsc.
        PASID_CACHE = 0x7,
        /// PASID-based device-TLB invalidate, p_dev_tlb_inv_dsc.
        PASID_DEVICE_TLB = 0x8,
        /// Page group response, page_grp_resp_dsc.
        GROUP_RESPONSE = 0x9,
    }
}

encoding! {
    /// How much a descriptor invalidates; the encodings differ between descriptors.
    Granularity {
        /// Context cache and IOTLB: everything.
        GLOBAL = 0b01,
        /// Context cache and IOTLB: one domain.
        DOMAIN = 0b10,
        /// Context cache: one device.
        DEVICE = 0b11,
        /// IOTLB: pages of one domain.
        PAGES = 0b11,
        /// PASID cache: all PASIDs of one domain.
        PASID_CACHE_DOMAIN = 0b00,
        /// PASID cache: one PASID of one domain.
        PASID_CACHE_PASID = 0b01,
        /// PASID cache: everything.
        PASID_CACHE_GLOBAL = 0b11,
        /// PASID-based IOTLB: all pages of one PASID of one domain.
        PASID_ALL = 0b10,
        /// PASID-based IOTLB: pages of one PASID of one domain.
        PASID_PAGES = 0b11,
    }
}

/// Bits 63:0 of cc_inv_dsc (6.5.2.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ContextCache0 {
    /// Bits 3:0: type.
    #[bits(4)]
    pub kind: Kind,
    /// Bits 5:4: G.
    #[bits(2)]
    pub granularity: Granularity,
    #[bits(10)]
    __: u16,
    /// Bits 31:16: DID; ignored in scalable mode where the granularity is a device.
    pub did: u16,
    /// Bits 47:32: SID, the source-id.
    pub sid: u16,
    /// Bits 49:48: FM, which low bits of the function number are ignored.
    #[bits(2)]
    pub fm: u8,
    #[bits(14)]
    __: u16,
}

const _: () = {
    at(ContextCache0::KIND_OFFSET, ContextCache0::KIND_BITS, 3, 0);
    at(ContextCache0::GRANULARITY_OFFSET, ContextCache0::GRANULARITY_BITS, 5, 4);
    at(ContextCache0::DID_OFFSET, ContextCache0::DID_BITS, 31, 16);
    at(ContextCache0::SID_OFFSET, ContextCache0::SID_BITS, 47, 32);
    at(ContextCache0::FM_OFFSET, ContextCache0::FM_BITS, 49, 48);
};

/// Bits 63:0 of iotlb_inv_dsc (6.5.2.3).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Iotlb0 {
    /// Bits 3:0: type.
    #[bits(4)]
    pub kind: Kind,
    /// Bits 5:4: G.
    #[bits(2)]
    pub granularity: Granularity,
    /// Bit 6: DW, drain writes.
    pub drain_writes: bool,
    /// Bit 7: DR, drain reads.
    pub drain_reads: bool,
    __: u8,
    /// Bits 31:16: DID.
    pub did: u16,
    __: u32,
}

const _: () = {
    at(Iotlb0::KIND_OFFSET, Iotlb0::KIND_BITS, 3, 0);
    at(Iotlb0::GRANULARITY_OFFSET, Iotlb0::GRANULARITY_BITS, 5, 4);
    at(Iotlb0::DRAIN_WRITES_OFFSET, Iotlb0::DRAIN_WRITES_BITS, 6, 6);
    at(Iotlb0::DRAIN_READS_OFFSET, Iotlb0::DRAIN_READS_BITS, 7, 7);
    at(Iotlb0::DID_OFFSET, Iotlb0::DID_BITS, 31, 16);
};

/// Bits 127:64 of iotlb_inv_dsc and p_iotlb_inv_dsc (6.5.2.3, 6.5.2.4).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Pages {
    /// Bits 5:0 (69:64): AM, 2^AM pages are invalidated.
    #[bits(6)]
    pub am: u8,
    /// Bit 6 (70): IH, entries that are not leaves have not changed.
    pub ih: bool,
    #[bits(5)]
    __: u8,
    /// Bits 63:12 (127:76): ADDR, the first page, aligned to their number.
    #[bits(52)]
    pub addr: u64,
}

const _: () = {
    at(Pages::AM_OFFSET, Pages::AM_BITS, 5, 0);
    at(Pages::IH_OFFSET, Pages::IH_BITS, 6, 6);
    at(Pages::ADDR_OFFSET, Pages::ADDR_BITS, 63, 12);
};

/// Bits 63:0 of p_iotlb_inv_dsc and pc_inv_dsc (6.5.2.4, 6.5.2.2).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Pasid0 {
    /// Bits 3:0: type.
    #[bits(4)]
    pub kind: Kind,
    /// Bits 5:4: G.
    #[bits(2)]
    pub granularity: Granularity,
    #[bits(10)]
    __: u16,
    /// Bits 31:16: DID.
    pub did: u16,
    /// Bits 51:32: PASID.
    #[bits(20)]
    pub pasid: u32,
    #[bits(12)]
    __: u16,
}

const _: () = {
    at(Pasid0::KIND_OFFSET, Pasid0::KIND_BITS, 3, 0);
    at(Pasid0::GRANULARITY_OFFSET, Pasid0::GRANULARITY_BITS, 5, 4);
    at(Pasid0::DID_OFFSET, Pasid0::DID_BITS, 31, 16);
    at(Pasid0::PASID_OFFSET, Pasid0::PASID_BITS, 51, 32);
};

/// Bits 63:0 of dev_tlb_inv_dsc (6.5.2.5).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct DeviceTlb0 {
    /// Bits 3:0: type.
    #[bits(4)]
    pub kind: Kind,
    __: u8,
    /// Bits 15:12: bits 3:0 of PFSID, the source-id of the physical function; reserved without ECAP_REG.DIT.
    #[bits(4)]
    pub pfsid_lo: u8,
    /// Bits 20:16: MIP, how many invalidations may be pending.
    #[bits(5)]
    pub mip: u8,
    #[bits(11)]
    __: u16,
    /// Bits 47:32: SID, the source-id.
    pub sid: u16,
    #[bits(4)]
    __: u8,
    /// Bits 63:52: bits 15:4 of PFSID.
    #[bits(12)]
    pub pfsid_hi: u16,
}

const _: () = {
    at(DeviceTlb0::KIND_OFFSET, DeviceTlb0::KIND_BITS, 3, 0);
    at(DeviceTlb0::PFSID_LO_OFFSET, DeviceTlb0::PFSID_LO_BITS, 15, 12);
    at(DeviceTlb0::MIP_OFFSET, DeviceTlb0::MIP_BITS, 20, 16);
    at(DeviceTlb0::SID_OFFSET, DeviceTlb0::SID_BITS, 47, 32);
    at(DeviceTlb0::PFSID_HI_OFFSET, DeviceTlb0::PFSID_HI_BITS, 63, 52);
};

/// Bits 127:64 of dev_tlb_inv_dsc (6.5.2.5).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct DeviceTlb1 {
    /// Bit 0 (64): S, ADDR tells a size: twice as many pages as its lowest clear bit is worth.
    pub s: bool,
    #[bits(11)]
    __: u16,
    /// Bits 63:12 (127:76): ADDR.
    #[bits(52)]
    pub addr: u64,
}

const _: () = {
    at(DeviceTlb1::S_OFFSET, DeviceTlb1::S_BITS, 0, 0);
    at(DeviceTlb1::ADDR_OFFSET, DeviceTlb1::ADDR_BITS, 63, 12);
};

/// Bits 63:0 of p_dev_tlb_inv_dsc (6.5.2.6).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PasidDeviceTlb0 {
    /// Bits 3:0: type.
    #[bits(4)]
    pub kind: Kind,
    /// Bits 8:4: MIP, how many invalidations may be pending.
    #[bits(5)]
    pub mip: u8,
    #[bits(3)]
    __: u8,
    /// Bits 15:12: bits 3:0 of PFSID; reserved without ECAP_REG.DIT.
    #[bits(4)]
    pub pfsid_lo: u8,
    /// Bits 31:16: SID, the source-id.
    pub sid: u16,
    /// Bits 51:32: PASID.
    #[bits(20)]
    pub pasid: u32,
    /// Bits 63:52: bits 15:4 of PFSID.
    #[bits(12)]
    pub pfsid_hi: u16,
}

const _: () = {
    at(PasidDeviceTlb0::KIND_OFFSET, PasidDeviceTlb0::KIND_BITS, 3, 0);
    at(PasidDeviceTlb0::MIP_OFFSET, PasidDeviceTlb0::MIP_BITS, 8, 4);
    at(PasidDeviceTlb0::PFSID_LO_OFFSET, PasidDeviceTlb0::PFSID_LO_BITS, 15, 12);
    at(PasidDeviceTlb0::SID_OFFSET, PasidDeviceTlb0::SID_BITS, 31, 16);
    at(PasidDeviceTlb0::PASID_OFFSET, PasidDeviceTlb0::PASID_BITS, 51, 32);
    at(PasidDeviceTlb0::PFSID_HI_OFFSET, PasidDeviceTlb0::PFSID_HI_BITS, 63, 52);
};

/// Bits 127:64 of p_dev_tlb_inv_dsc (6.5.2.6).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PasidDeviceTlb1 {
    /// Bit 0 (64): G, of all PASIDs.
    pub g: bool,
    #[bits(10)]
    __: u16,
    /// Bit 11 (75): S, as in [`DeviceTlb1`].
    pub s: bool,
    /// Bits 63:12 (127:76): ADDR.
    #[bits(52)]
    pub addr: u64,
}

const _: () = {
    at(PasidDeviceTlb1::G_OFFSET, PasidDeviceTlb1::G_BITS, 0, 0);
    at(PasidDeviceTlb1::S_OFFSET, PasidDeviceTlb1::S_BITS, 11, 11);
    at(PasidDeviceTlb1::ADDR_OFFSET, PasidDeviceTlb1::ADDR_BITS, 63, 12);
};

/// Bits 63:0 of inv_wait_dsc (6.5.2.8).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Wait0 {
    /// Bits 3:0: type.
    #[bits(4)]
    pub kind: Kind,
    /// Bit 4: IF, raise the completion event.
    pub interrupt: bool,
    /// Bit 5: SW, write the status data.
    pub status_write: bool,
    /// Bit 6: FN, descriptors behind this one begin only after it has completed.
    pub fence: bool,
    /// Bit 7: PD, drain page requests.
    pub drain_page_requests: bool,
    #[bits(24)]
    __: u32,
    /// Bits 63:32: the status data.
    pub status_data: u32,
}

const _: () = {
    at(Wait0::KIND_OFFSET, Wait0::KIND_BITS, 3, 0);
    at(Wait0::INTERRUPT_OFFSET, Wait0::INTERRUPT_BITS, 4, 4);
    at(Wait0::STATUS_WRITE_OFFSET, Wait0::STATUS_WRITE_BITS, 5, 5);
    at(Wait0::FENCE_OFFSET, Wait0::FENCE_BITS, 6, 6);
    at(Wait0::DRAIN_PAGE_REQUESTS_OFFSET, Wait0::DRAIN_PAGE_REQUESTS_BITS, 7, 7);
    at(Wait0::STATUS_DATA_OFFSET, Wait0::STATUS_DATA_BITS, 63, 32);
};

/// Bits 127:64 of inv_wait_dsc (6.5.2.8).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Wait1 {
    #[bits(2)]
    __: u8,
    /// Bits 63:2 (127:66): the physical address of the status word, without its two lowest bits.
    #[bits(62)]
    pub status_address: u64,
}

const _: () = at(Wait1::STATUS_ADDRESS_OFFSET, Wait1::STATUS_ADDRESS_BITS, 63, 2);
