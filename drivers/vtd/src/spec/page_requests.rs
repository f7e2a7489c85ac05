//! The page request queue (section 7.4.1), its registers (11.4.11) and the answers (7.7).

use super::at;
use super::descriptors::Kind;
use bitfield_struct::bitfield;

/// The bytes of a record in the page request queue.
pub const PAGE_REQUEST_BYTES: usize = 32;

/// Bits 63:0 of a record, page_req_dsc (7.4.1.1); bits 255:128 are reserved.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PageRequest0 {
    /// Bits 7:0: type, [`PAGE_REQUEST`](Self::PAGE_REQUEST).
    pub kind: u8,
    /// Bit 8: PP, the request has a PASID.
    pub pp: bool,
    #[bits(7)]
    __: u8,
    /// Bits 31:16: RID, the source-id of the requester.
    pub rid: u16,
    /// Bits 51:32: PASID.
    #[bits(20)]
    pub pasid: u32,
    /// Bit 52: EXR, to execute.
    pub execute: bool,
    /// Bit 53: PMR, with privilege.
    pub privileged: bool,
    #[bits(10)]
    __: u16,
}

impl PageRequest0 {
    /// The only type.
    pub const PAGE_REQUEST: u8 = 0x01;
}

const _: () = {
    at(PageRequest0::KIND_OFFSET, PageRequest0::KIND_BITS, 7, 0);
    at(PageRequest0::PP_OFFSET, PageRequest0::PP_BITS, 8, 8);
    at(PageRequest0::RID_OFFSET, PageRequest0::RID_BITS, 31, 16);
    at(PageRequest0::PASID_OFFSET, PageRequest0::PASID_BITS, 51, 32);
    at(PageRequest0::EXECUTE_OFFSET, PageRequest0::EXECUTE_BITS, 52, 52);
    at(PageRequest0::PRIVILEGED_OFFSET, PageRequest0::PRIVILEGED_BITS, 53, 53);
};

/// Bits 127:64 of a record, page_req_dsc (7.4.1.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PageRequest1 {
    /// Bit 0 (64): RD, to read.
    pub read: bool,
    /// Bit 1 (65): WR, to write.
    pub write: bool,
    /// Bit 2 (66): LPIG, the last of its group; with neither RD nor WR a stop marker.
    pub lpig: bool,
    /// Bits 11:3 (75:67): PRGI, the group.
    #[bits(9)]
    pub prgi: u16,
    /// Bits 63:12 (127:76): ADDR, the page.
    #[bits(52)]
    pub addr: u64,
}

const _: () = {
    at(PageRequest1::READ_OFFSET, PageRequest1::READ_BITS, 0, 0);
    at(PageRequest1::WRITE_OFFSET, PageRequest1::WRITE_BITS, 1, 1);
    at(PageRequest1::LPIG_OFFSET, PageRequest1::LPIG_BITS, 2, 2);
    at(PageRequest1::PRGI_OFFSET, PageRequest1::PRGI_BITS, 11, 3);
    at(PageRequest1::ADDR_OFFSET, PageRequest1::ADDR_BITS, 63, 12);
};

encoding! {
    /// What a device is told: the codes of PCIe (10.4.2.1).
    ResponseCode {
        /// All pages of the group are there.
        SUCCESS = 0b0000,
        /// A page of the group does not exist, or may not be used so.
        INVALID_REQUEST = 0b0001,
        /// The device stops asking.
        FAILURE = 0b1111,
    }
}

/// Bits 63:0 of a descriptor that answers a group, page_grp_resp_dsc (7.7.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct GroupResponse0 {
    /// Bits 3:0: type.
    #[bits(4)]
    pub kind: Kind,
    /// Bit 4: PP, the group was asked for with a PASID.
    pub pp: bool,
    #[bits(7)]
    __: u8,
    /// Bits 15:12: the response code.
    #[bits(4)]
    pub code: ResponseCode,
    /// Bits 31:16: RID, the source-id of the requester.
    pub rid: u16,
    /// Bits 51:32: PASID.
    #[bits(20)]
    pub pasid: u32,
    #[bits(12)]
    __: u16,
}

const _: () = {
    at(GroupResponse0::KIND_OFFSET, GroupResponse0::KIND_BITS, 3, 0);
    at(GroupResponse0::PP_OFFSET, GroupResponse0::PP_BITS, 4, 4);
    at(GroupResponse0::CODE_OFFSET, GroupResponse0::CODE_BITS, 15, 12);
    at(GroupResponse0::RID_OFFSET, GroupResponse0::RID_BITS, 31, 16);
    at(GroupResponse0::PASID_OFFSET, GroupResponse0::PASID_BITS, 51, 32);
};

/// Bits 127:64 of a descriptor that answers a group, page_grp_resp_dsc (7.7.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct GroupResponse1 {
    #[bits(3)]
    __: u8,
    /// Bits 11:3 (75:67): PRGI, the group.
    #[bits(9)]
    pub prgi: u16,
    #[bits(52)]
    __: u64,
}

const _: () = at(GroupResponse1::PRGI_OFFSET, GroupResponse1::PRGI_BITS, 11, 3);

/// Page request queue address, PQA_REG (11.4.11.3).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PageQueueAddress {
    /// Bits 2:0: PQS, the queue has 2^PQS frames of 4 KiB.
    #[bits(3)]
    pub pqs: u8,
    #[bits(9)]
    __: u16,
    /// Bits 63:12: PQA, the frame number of the queue.
    #[bits(52)]
    pub pqa: u64,
}

const _: () = {
    at(PageQueueAddress::PQS_OFFSET, PageQueueAddress::PQS_BITS, 2, 0);
    at(PageQueueAddress::PQA_OFFSET, PageQueueAddress::PQA_BITS, 63, 12);
};

/// Page request status, PRS_REG (11.4.11.4).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct PageRequestStatus {
    /// Bit 0: PPR, the hardware has put a record in the queue. Write 1 to clear.
    pub ppr: bool,
    /// Bit 1: PRO, a request found the queue full; while it is set nothing is put in the queue. Write 1 to clear.
    pub pro: bool,
    #[bits(30)]
    __: u32,
}

const _: () = {
    at(PageRequestStatus::PPR_OFFSET, PageRequestStatus::PPR_BITS, 0, 0);
    at(PageRequestStatus::PRO_OFFSET, PageRequestStatus::PRO_BITS, 1, 1);
};
