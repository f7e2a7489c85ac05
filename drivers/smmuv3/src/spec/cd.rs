//! Context descriptors (IHI 0070, 5.4).

use super::{AddressSize, Cacheability, Shareability, TableGranule, layout};
use bitfield_struct::bitfield;

/// A context descriptor: eight 64-bit words.
pub const CD_WORDS: usize = 8;
/// The size of a context descriptor, in bytes.
pub const CD_BYTES: u64 = 64;

/// CD bits 63:0.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Cd0 {
    /// `5:0` 64 minus the width of TTB0's input addresses.
    #[bits(6)]
    pub t0sz: u8,
    /// `7:6` Granule of TTB0.
    #[bits(2)]
    pub tg0: TableGranule,
    /// `9:8` Inner cacheability of TTB0 walks.
    #[bits(2)]
    pub ir0: Cacheability,
    /// `11:10` Outer cacheability of TTB0 walks.
    #[bits(2)]
    pub or0: Cacheability,
    /// `13:12` Shareability of TTB0 walks.
    #[bits(2)]
    pub sh0: Shareability,
    /// `14` TTB0 walks are disabled.
    pub epd0: bool,
    /// `15` Big-endian tables.
    pub endi: bool,
    /// `21:16` 64 minus the width of TTB1's input addresses.
    #[bits(6)]
    pub t1sz: u8,
    /// `23:22` Granule of TTB1, encoded otherwise than TG0.
    #[bits(2)]
    pub tg1: u8,
    /// `25:24` Inner cacheability of TTB1 walks.
    #[bits(2)]
    pub ir1: Cacheability,
    /// `27:26` Outer cacheability of TTB1 walks.
    #[bits(2)]
    pub or1: Cacheability,
    /// `29:28` Shareability of TTB1 walks.
    #[bits(2)]
    pub sh1: Shareability,
    /// `30` TTB1 walks are disabled.
    pub epd1: bool,
    /// `31` The descriptor is valid.
    pub v: bool,
    /// `34:32` Width of stage-1 output addresses.
    #[bits(3)]
    pub ips: AddressSize,
    /// `35` Access flag faults are disabled.
    pub affd: bool,
    /// `36` Writable implies execute-never.
    pub wxn: bool,
    /// `37` Writable by user implies privileged execute-never.
    pub uwxn: bool,
    /// `39:38` Top byte ignored, for TTB0 and TTB1.
    #[bits(2)]
    pub tbi: u8,
    /// `40` Privileged access never.
    pub pan: bool,
    /// `41` AArch64 tables.
    pub aa64: bool,
    /// `42` Hardware sets the dirty state.
    pub hd: bool,
    /// `43` Hardware sets the access flag.
    pub ha: bool,
    /// `44` Faults stall.
    pub s: bool,
    /// `45` Faults are recorded.
    pub r: bool,
    /// `46` Faults abort, rather than read zero and ignore writes.
    pub a: bool,
    /// `47` The ASID is not part of the set that broadcasts maintain.
    pub aset: bool,
    /// `63:48` ASID.
    pub asid: u16,
}

layout!(Cd0 {
    T0SZ_OFFSET, T0SZ_BITS: 5, 0;
    TG0_OFFSET, TG0_BITS: 7, 6;
    IR0_OFFSET, IR0_BITS: 9, 8;
    OR0_OFFSET, OR0_BITS: 11, 10;
    SH0_OFFSET, SH0_BITS: 13, 12;
    EPD0_OFFSET, EPD0_BITS: 14, 14;
    ENDI_OFFSET, ENDI_BITS: 15, 15;
    T1SZ_OFFSET, T1SZ_BITS: 21, 16;
    TG1_OFFSET, TG1_BITS: 23, 22;
    IR1_OFFSET, IR1_BITS: 25, 24;
    OR1_OFFSET, OR1_BITS: 27, 26;
    SH1_OFFSET, SH1_BITS: 29, 28;
    EPD1_OFFSET, EPD1_BITS: 30, 30;
    V_OFFSET, V_BITS: 31, 31;
    IPS_OFFSET, IPS_BITS: 34, 32;
    AFFD_OFFSET, AFFD_BITS: 35, 35;
    WXN_OFFSET, WXN_BITS: 36, 36;
    UWXN_OFFSET, UWXN_BITS: 37, 37;
    TBI_OFFSET, TBI_BITS: 39, 38;
    PAN_OFFSET, PAN_BITS: 40, 40;
    AA64_OFFSET, AA64_BITS: 41, 41;
    HD_OFFSET, HD_BITS: 42, 42;
    HA_OFFSET, HA_BITS: 43, 43;
    S_OFFSET, S_BITS: 44, 44;
    R_OFFSET, R_BITS: 45, 45;
    A_OFFSET, A_BITS: 46, 46;
    ASET_OFFSET, ASET_BITS: 47, 47;
    ASID_OFFSET, ASID_BITS: 63, 48;
});

/// CD bits 127:64.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Cd1 {
    /// `64` Non-secure walks, for secure streams.
    pub nscfg0: bool,
    /// `65` Hierarchical attributes of TTB0 are disabled.
    pub had0: bool,
    #[bits(2)]
    __: u8,
    /// `115:68` Address bits 51:4 of the root table.
    #[bits(48)]
    pub ttb0: u64,
    #[bits(12)]
    __: u16,
}

layout!(Cd1 {
    NSCFG0_OFFSET, NSCFG0_BITS: 0, 0;
    HAD0_OFFSET, HAD0_BITS: 1, 1;
    TTB0_OFFSET, TTB0_BITS: 51, 4;
});

/// CD bits 191:128.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Cd2 {
    #[bits(58)]
    __: u64,
    /// `186` 52-bit addresses with 4 and 16 KiB granules (FEAT_LPA2).
    pub ds: bool,
    #[bits(5)]
    __: u8,
}

layout!(Cd2 {
    DS_OFFSET, DS_BITS: 58, 58;
});

/// A level-1 context descriptor: points to a second-level table.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct L1Cd {
    /// `0` There is a second-level table.
    pub v: bool,
    #[bits(11)]
    __: u16,
    /// `51:12` Address bits 51:12 of the second-level table, aligned to its size.
    #[bits(40)]
    pub l2ptr: u64,
    #[bits(12)]
    __: u16,
}

layout!(L1Cd {
    V_OFFSET, V_BITS: 0, 0;
    L2PTR_OFFSET, L2PTR_BITS: 51, 12;
});

/// The index of the word that holds MAIR0 (bits 223:192) and MAIR1 (bits 255:224), laid out as MAIR_ELx.
pub const CD_MAIR_WORD: usize = 3;
