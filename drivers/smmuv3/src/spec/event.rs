//! Event records (IHI 0070, 7.3). A record is four 64-bit words.

use super::{encoding, layout};
use bitfield_struct::bitfield;

/// An event record: four 64-bit words.
pub const EVENT_WORDS: usize = 4;

encoding! {
    /// The kind of an event.
    EventId {
        /// Unsupported upstream transaction.
        F_UUT = 0x01,
        /// The StreamID is beyond the stream table.
        C_BAD_STREAMID = 0x02,
        /// A stream table entry could not be read.
        F_STE_FETCH = 0x03,
        /// The stream table entry is invalid or illegal.
        C_BAD_STE = 0x04,
        /// An ATS translation request was not allowed.
        F_BAD_ATS_TREQ = 0x05,
        /// The stream does not allow transactions without a SubstreamID.
        F_STREAM_DISABLED = 0x06,
        /// ATS translated traffic was not allowed.
        F_TRANSL_FORBIDDEN = 0x07,
        /// The SubstreamID is beyond the context descriptor table, or not allowed.
        C_BAD_SUBSTREAMID = 0x08,
        /// A context descriptor could not be read.
        F_CD_FETCH = 0x09,
        /// The context descriptor is invalid or illegal.
        C_BAD_CD = 0x0a,
        /// A translation table could not be read.
        F_WALK_EABT = 0x0b,
        /// No mapping.
        F_TRANSLATION = 0x10,
        /// An address is wider than allowed.
        F_ADDR_SIZE = 0x11,
        /// The access flag is clear.
        F_ACCESS = 0x12,
        /// The mapping does not allow the access.
        F_PERMISSION = 0x13,
        /// Two TLB entries match.
        F_TLB_CONFLICT = 0x20,
        /// Two configuration cache entries match.
        F_CFG_CONFLICT = 0x21,
        /// A hint that a page will be needed.
        E_PAGE_REQUEST = 0x24,
        /// A virtual machine structure could not be read.
        F_VMS_FETCH = 0x25,
    }
}

/// Event record bits 63:0.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Event0 {
    /// `7:0` The kind.
    #[bits(8)]
    pub id: EventId,
    #[bits(3)]
    __: u8,
    /// `11` SubstreamID is valid.
    pub ssv: bool,
    /// `31:12` SubstreamID.
    #[bits(20)]
    pub ssid: u32,
    /// `63:32` StreamID.
    pub sid: u32,
}

layout!(Event0 {
    ID_OFFSET, ID_BITS: 7, 0;
    SSV_OFFSET, SSV_BITS: 11, 11;
    SSID_OFFSET, SSID_BITS: 31, 12;
    SID_OFFSET, SID_BITS: 63, 32;
});

encoding! {
    /// What kind of access a stage-2 fault happened on.
    FaultClass {
        /// The fetch of a context descriptor.
        CD = 0b00,
        /// A stage-1 table walk.
        TT = 0b01,
        /// The transaction's own address.
        IN = 0b10,
    }
}

/// Event record bits 127:64. Which fields are valid depends on the kind.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Event1 {
    /// `79:64` Stall tag, or an implementation-defined reason.
    pub stag: u16,
    #[bits(15)]
    __: u16,
    /// `95` The transaction is stalled and waits for a command.
    pub stall: bool,
    __: bool,
    /// `97` Privileged, not user.
    pub pnu: bool,
    /// `98` Instruction, not data.
    pub ind: bool,
    /// `99` Read, not write.
    pub rnw: bool,
    #[bits(3)]
    __: u8,
    /// `103` Stage 2 refused.
    pub s2: bool,
    /// `105:104` The access that stage 2 refused.
    #[bits(2)]
    pub class: FaultClass,
    #[bits(22)]
    __: u32,
}

layout!(Event1 {
    STAG_OFFSET, STAG_BITS: 15, 0;
    STALL_OFFSET, STALL_BITS: 31, 31;
    PNU_OFFSET, PNU_BITS: 33, 33;
    IND_OFFSET, IND_BITS: 34, 34;
    RNW_OFFSET, RNW_BITS: 35, 35;
    S2_OFFSET, S2_BITS: 39, 39;
    CLASS_OFFSET, CLASS_BITS: 41, 40;
});
