//! PRI queue records (IHI 0070, chapter 8). A record is two 64-bit words.

use super::layout;
use bitfield_struct::bitfield;

/// A PRI queue record: two 64-bit words.
pub const PAGE_REQUEST_WORDS: usize = 2;

/// PRI queue record bits 63:0.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PageRequest0 {
    /// `31:0` StreamID.
    pub sid: u32,
    /// `51:32` SubstreamID.
    #[bits(20)]
    pub ssid: u32,
    #[bits(6)]
    __: u8,
    /// `58` With privilege.
    pub privileged: bool,
    /// `59` To execute.
    pub execute: bool,
    /// `60` To read.
    pub read: bool,
    /// `61` To write.
    pub write: bool,
    /// `62` The last of its group; with neither read nor write, and a SubstreamID, a stop marker.
    pub last: bool,
    /// `63` SubstreamID is valid.
    pub ssv: bool,
}

layout!(PageRequest0 {
    SID_OFFSET, SID_BITS: 31, 0;
    SSID_OFFSET, SSID_BITS: 51, 32;
    PRIVILEGED_OFFSET, PRIVILEGED_BITS: 58, 58;
    EXECUTE_OFFSET, EXECUTE_BITS: 59, 59;
    READ_OFFSET, READ_BITS: 60, 60;
    WRITE_OFFSET, WRITE_BITS: 61, 61;
    LAST_OFFSET, LAST_BITS: 62, 62;
    SSV_OFFSET, SSV_BITS: 63, 63;
});

/// PRI queue record bits 127:64.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PageRequest1 {
    /// `72:64` Page request group index.
    #[bits(9)]
    pub group: u16,
    #[bits(3)]
    __: u8,
    /// `127:76` Address bits 63:12.
    #[bits(52)]
    pub addr: u64,
}

layout!(PageRequest1 {
    GROUP_OFFSET, GROUP_BITS: 8, 0;
    ADDR_OFFSET, ADDR_BITS: 63, 12;
});
