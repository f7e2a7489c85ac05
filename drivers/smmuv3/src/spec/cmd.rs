//! Commands (IHI 0070, chapter 4). A command is two 64-bit words.

use super::{encoding, layout};
use bitfield_struct::bitfield;
use portcullis_hal::Granule;

/// A command: two 64-bit words.
pub const COMMAND_WORDS: usize = 2;

encoding! {
    /// What a command does.
    Opcode {
        /// Invalidate one stream table entry.
        CFGI_STE = 0x03,
        /// Invalidate a range of stream table entries; with the largest range, everything.
        CFGI_STE_RANGE = 0x04,
        /// Invalidate one context descriptor.
        CFGI_CD = 0x05,
        /// Invalidate all context descriptors of a stream.
        CFGI_CD_ALL = 0x06,
        /// Invalidate all stage-1 NS-EL1 entries of a VMID.
        TLBI_NH_ALL = 0x10,
        /// Invalidate the NS-EL1 entries of an ASID.
        TLBI_NH_ASID = 0x11,
        /// Invalidate the NS-EL1 entries of an ASID for an address or a range.
        TLBI_NH_VA = 0x12,
        /// Invalidate all EL2 entries.
        TLBI_EL2_ALL = 0x20,
        /// Invalidate all entries of a VMID, both stages.
        TLBI_S12_VMALL = 0x28,
        /// Invalidate the stage-2 entries of a VMID for an address or a range.
        TLBI_S2_IPA = 0x2a,
        /// Invalidate all non-secure entries that are not EL2's.
        TLBI_NSNH_ALL = 0x30,
        /// Invalidate what a device has cached of its translations (ATS).
        ATC_INV = 0x40,
        /// Answer a group of page requests.
        PRI_RESP = 0x41,
        /// Retry or end a stalled transaction.
        RESUME = 0x44,
        /// End all stalled transactions of a stream.
        STALL_TERM = 0x45,
        /// Complete when all earlier commands have completed.
        SYNC = 0x46,
    }
}

encoding! {
    /// CMDQ_CONS.ERR: why the command queue stopped.
    CommandError {
        /// No error.
        NONE = 0,
        /// CERROR_ILL: the command is not known or not allowed.
        ILLEGAL = 1,
        /// CERROR_ABT: the command could not be read.
        ABORT = 2,
        /// CERROR_ATC_INV_SYNC: a device did not answer an ATC invalidation before this sync.
        ATC_INV_SYNC = 3,
    }
}

encoding! {
    /// A granule as TLB invalidations encode it.
    CommandGranule {
        /// No range: one address, without a level hint.
        NONE = 0b00,
        /// 4 KiB.
        SIZE_4K = 0b01,
        /// 16 KiB.
        SIZE_16K = 0b10,
        /// 64 KiB.
        SIZE_64K = 0b11,
    }
}

impl CommandGranule {
    /// The encoding of a granule.
    #[inline]
    pub const fn of(granule: Granule) -> Self {
        match granule {
            Granule::Size4K => Self::SIZE_4K,
            Granule::Size16K => Self::SIZE_16K,
            Granule::Size64K => Self::SIZE_64K,
        }
    }
}

/// CMD_CFGI_*, bits 63:0.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Cfgi0 {
    /// `7:0` Opcode.
    #[bits(8)]
    pub opcode: Opcode,
    #[bits(2)]
    __: u8,
    /// `10` The stream is a secure one.
    pub ssec: bool,
    __: bool,
    /// `31:12` SubstreamID, for CFGI_CD.
    #[bits(20)]
    pub ssid: u32,
    /// `63:32` StreamID.
    pub sid: u32,
}

layout!(Cfgi0 {
    OPCODE_OFFSET, OPCODE_BITS: 7, 0;
    SSEC_OFFSET, SSEC_BITS: 10, 10;
    SSID_OFFSET, SSID_BITS: 31, 12;
    SID_OFFSET, SID_BITS: 63, 32;
});

/// CMD_CFGI_*, bits 127:64.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Cfgi1 {
    /// `64` CFGI_STE, CFGI_CD: only the entry changed, no level-1 descriptor. `68:64` CFGI_STE_RANGE: the range
    /// as `2^(n+1)` streams, 31 for all.
    #[bits(5)]
    pub leaf_or_range: u8,
    #[bits(59)]
    __: u64,
}

layout!(Cfgi1 {
    LEAF_OR_RANGE_OFFSET, LEAF_OR_RANGE_BITS: 4, 0;
});

/// CMD_TLBI_*, bits 63:0.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Tlbi0 {
    /// `7:0` Opcode.
    #[bits(8)]
    pub opcode: Opcode,
    #[bits(4)]
    __: u8,
    /// `16:12` Range: `NUM + 1` units.
    #[bits(5)]
    pub num: u8,
    #[bits(3)]
    __: u8,
    /// `24:20` Range: units of `2^SCALE` granules.
    #[bits(5)]
    pub scale: u8,
    #[bits(7)]
    __: u8,
    /// `47:32` VMID.
    pub vmid: u16,
    /// `63:48` ASID.
    pub asid: u16,
}

layout!(Tlbi0 {
    OPCODE_OFFSET, OPCODE_BITS: 7, 0;
    NUM_OFFSET, NUM_BITS: 16, 12;
    SCALE_OFFSET, SCALE_BITS: 24, 20;
    VMID_OFFSET, VMID_BITS: 47, 32;
    ASID_OFFSET, ASID_BITS: 63, 48;
});

/// CMD_TLBI_*, bits 127:64.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Tlbi1 {
    /// `64` Only entries of the last level are concerned: no table was changed.
    pub leaf: bool,
    #[bits(7)]
    __: u8,
    /// `73:72` The level of the leaf entries; 0 if it is not known.
    #[bits(2)]
    pub ttl: u8,
    /// `75:74` Granule of a range; 0 for one address.
    #[bits(2)]
    pub tg: CommandGranule,
    /// `127:76` Address bits 63:12.
    #[bits(52)]
    pub addr: u64,
}

layout!(Tlbi1 {
    LEAF_OFFSET, LEAF_BITS: 0, 0;
    TTL_OFFSET, TTL_BITS: 9, 8;
    TG_OFFSET, TG_BITS: 11, 10;
    ADDR_OFFSET, ADDR_BITS: 63, 12;
});

/// CMD_ATC_INV, bits 63:0.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Atc0 {
    /// `7:0` Opcode.
    #[bits(8)]
    pub opcode: Opcode,
    __: bool,
    /// `9` With a SubstreamID: all of them are concerned.
    pub g: bool,
    __: bool,
    /// `11` The invalidation carries a SubstreamID.
    pub ssv: bool,
    /// `31:12` SubstreamID.
    #[bits(20)]
    pub ssid: u32,
    /// `63:32` StreamID.
    pub sid: u32,
}

layout!(Atc0 {
    OPCODE_OFFSET, OPCODE_BITS: 7, 0;
    G_OFFSET, G_BITS: 9, 9;
    SSV_OFFSET, SSV_BITS: 11, 11;
    SSID_OFFSET, SSID_BITS: 31, 12;
    SID_OFFSET, SID_BITS: 63, 32;
});

/// CMD_ATC_INV, bits 127:64.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Atc1 {
    /// `69:64` The range is `2^size` times 4 KiB, naturally aligned; 52 for all addresses.
    #[bits(6)]
    pub size: u8,
    #[bits(6)]
    __: u8,
    /// `127:76` Address bits 63:12.
    #[bits(52)]
    pub addr: u64,
}

layout!(Atc1 {
    SIZE_OFFSET, SIZE_BITS: 5, 0;
    ADDR_OFFSET, ADDR_BITS: 63, 12;
});

encoding! {
    /// CMD_PRI_RESP.Resp: what a device is told.
    PageAction {
        /// Response Failure: the device stops asking.
        FAILURE = 0b00,
        /// Invalid Request: a page is not to be had.
        INVALID = 0b01,
        /// Success.
        SUCCESS = 0b10,
    }
}

/// CMD_PRI_RESP, bits 63:0.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PriResp0 {
    /// `7:0` Opcode.
    #[bits(8)]
    pub opcode: Opcode,
    #[bits(3)]
    __: u8,
    /// `11` The answer carries a SubstreamID.
    pub ssv: bool,
    /// `31:12` SubstreamID.
    #[bits(20)]
    pub ssid: u32,
    /// `63:32` StreamID.
    pub sid: u32,
}

layout!(PriResp0 {
    OPCODE_OFFSET, OPCODE_BITS: 7, 0;
    SSV_OFFSET, SSV_BITS: 11, 11;
    SSID_OFFSET, SSID_BITS: 31, 12;
    SID_OFFSET, SID_BITS: 63, 32;
});

/// CMD_PRI_RESP, bits 127:64.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PriResp1 {
    /// `72:64` Page request group index.
    #[bits(9)]
    pub group: u16,
    #[bits(3)]
    __: u8,
    /// `77:76` The answer.
    #[bits(2)]
    pub action: PageAction,
    #[bits(50)]
    __: u64,
}

layout!(PriResp1 {
    GROUP_OFFSET, GROUP_BITS: 8, 0;
    ACTION_OFFSET, ACTION_BITS: 13, 12;
});

encoding! {
    /// CMD_RESUME.Ac and Ab: what becomes of a stalled transaction.
    StallAction {
        /// It is ended; reads get zero and writes are ignored, if the context descriptor does not say that they abort.
        TERMINATE = 0b00,
        /// It is tried again.
        RETRY = 0b01,
        /// It is aborted.
        ABORT = 0b10,
    }
}

/// CMD_RESUME and CMD_STALL_TERM, bits 63:0.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Resume0 {
    /// `7:0` Opcode.
    #[bits(8)]
    pub opcode: Opcode,
    #[bits(4)]
    __: u8,
    /// `13:12` Ac and Ab; for CMD_RESUME.
    #[bits(2)]
    pub action: StallAction,
    #[bits(18)]
    __: u32,
    /// `63:32` StreamID.
    pub sid: u32,
}

layout!(Resume0 {
    OPCODE_OFFSET, OPCODE_BITS: 7, 0;
    ACTION_OFFSET, ACTION_BITS: 13, 12;
    SID_OFFSET, SID_BITS: 63, 32;
});

/// CMD_RESUME, bits 127:64.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Resume1 {
    /// `79:64` Stall tag.
    pub stag: u16,
    #[bits(48)]
    __: u64,
}

layout!(Resume1 {
    STAG_OFFSET, STAG_BITS: 15, 0;
});

encoding! {
    /// CMD_SYNC.CS: how completion is told.
    CompletionSignal {
        /// Not at all; CMDQ_CONS moves on.
        NONE = 0b00,
        /// By an interrupt or an MSI write.
        IRQ = 0b01,
        /// By an event that wakes WFE.
        SEV = 0b10,
    }
}

/// CMD_SYNC, bits 63:0.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Sync0 {
    /// `7:0` Opcode.
    #[bits(8)]
    pub opcode: Opcode,
    #[bits(4)]
    __: u8,
    /// `13:12` How completion is told.
    #[bits(2)]
    pub cs: CompletionSignal,
    #[bits(8)]
    __: u8,
    /// `23:22` Shareability of the MSI write.
    #[bits(2)]
    pub msh: u8,
    /// `27:24` Memory attributes of the MSI write.
    #[bits(4)]
    pub msiattr: u8,
    #[bits(4)]
    __: u8,
    /// `63:32` MSI data.
    pub msidata: u32,
}

layout!(Sync0 {
    OPCODE_OFFSET, OPCODE_BITS: 7, 0;
    CS_OFFSET, CS_BITS: 13, 12;
    MSH_OFFSET, MSH_BITS: 23, 22;
    MSIATTR_OFFSET, MSIATTR_BITS: 27, 24;
    MSIDATA_OFFSET, MSIDATA_BITS: 63, 32;
});

/// CMD_SYNC, bits 127:64.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Sync1 {
    #[bits(2)]
    __: u8,
    /// `119:66` MSI address bits 55:2; 0 for a wired interrupt.
    #[bits(54)]
    pub msiaddr: u64,
    #[bits(8)]
    __: u8,
}

layout!(Sync1 {
    MSIADDR_OFFSET, MSIADDR_BITS: 55, 2;
});
