//! Scalable-mode translation tables: root, context, PASID directory, PASID table (sections 9.2, 9.4 to 9.6).

use super::at;
use bitfield_struct::bitfield;

/// One half of a scalable-mode root entry (9.2): the low half covers devices 0 to 15 of a bus, the high half
/// devices 16 to 31.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct RootHalf {
    /// Bit 0: LP or UP, present.
    pub present: bool,
    #[bits(11)]
    __: u16,
    /// Bits 63:12: LCTP or UCTP, the frame number of the context table.
    #[bits(52)]
    pub ctp: u64,
}

const _: () = {
    at(RootHalf::PRESENT_OFFSET, RootHalf::PRESENT_BITS, 0, 0);
    at(RootHalf::CTP_OFFSET, RootHalf::CTP_BITS, 63, 12);
};

/// Bits 63:0 of a scalable-mode context entry (9.4).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Context0 {
    /// Bit 0: P, present.
    pub present: bool,
    /// Bit 1: FPD, qualified faults are not recorded; evaluated whether present or not.
    pub fpd: bool,
    /// Bit 2: DTE, the device may use a device TLB.
    pub dte: bool,
    /// Bit 3: PASIDE, requests with PASID are allowed.
    pub paside: bool,
    /// Bit 4: PRE, page requests are allowed.
    pub pre: bool,
    #[bits(4)]
    __: u8,
    /// Bits 11:9: PDTS, the PASID directory has 2^(PDTS + 7) entries.
    #[bits(3)]
    pub pdts: u8,
    /// Bits 63:12: PASIDDIRPTR, the frame number of the PASID directory.
    #[bits(52)]
    pub pasiddirptr: u64,
}

const _: () = {
    at(Context0::PRESENT_OFFSET, Context0::PRESENT_BITS, 0, 0);
    at(Context0::FPD_OFFSET, Context0::FPD_BITS, 1, 1);
    at(Context0::DTE_OFFSET, Context0::DTE_BITS, 2, 2);
    at(Context0::PASIDE_OFFSET, Context0::PASIDE_BITS, 3, 3);
    at(Context0::PRE_OFFSET, Context0::PRE_BITS, 4, 4);
    at(Context0::PDTS_OFFSET, Context0::PDTS_BITS, 11, 9);
    at(Context0::PASIDDIRPTR_OFFSET, Context0::PASIDDIRPTR_BITS, 63, 12);
};

/// Bits 127:64 of a scalable-mode context entry; bits 255:128 are reserved (9.4).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Context1 {
    /// Bits 19:0 (83:64): RID_PASID, the PASID of requests without one.
    #[bits(20)]
    pub rid_pasid: u32,
    /// Bit 20 (84): RID_PRIV, requests without PASID have privilege.
    pub rid_priv: bool,
    #[bits(43)]
    __: u64,
}

const _: () = {
    at(Context1::RID_PASID_OFFSET, Context1::RID_PASID_BITS, 19, 0);
    at(Context1::RID_PRIV_OFFSET, Context1::RID_PRIV_BITS, 20, 20);
};

/// An entry of a PASID directory (9.5).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Directory {
    /// Bit 0: P, present.
    pub present: bool,
    /// Bit 1: FPD, qualified faults are not recorded.
    pub fpd: bool,
    #[bits(10)]
    __: u16,
    /// Bits 63:12: SMPTBLPTR, the frame number of the PASID table.
    #[bits(52)]
    pub smptblptr: u64,
}

const _: () = {
    at(Directory::PRESENT_OFFSET, Directory::PRESENT_BITS, 0, 0);
    at(Directory::FPD_OFFSET, Directory::FPD_BITS, 1, 1);
    at(Directory::SMPTBLPTR_OFFSET, Directory::SMPTBLPTR_BITS, 63, 12);
};

encoding! {
    /// The kind of translation of a PASID entry: PGTT.
    Translation {
        /// First stage only.
        FIRST_STAGE = 0b001,
        /// Second stage only.
        SECOND_STAGE = 0b010,
        /// First stage nested in the second.
        NESTED = 0b011,
        /// Pass-through.
        PASS_THROUGH = 0b100,
    }
}

encoding! {
    /// The width of second-stage input addresses: AW.
    AddressWidth {
        /// 39 bits, three levels.
        BITS_39 = 0b001,
        /// 48 bits, four levels.
        BITS_48 = 0b010,
        /// 57 bits, five levels.
        BITS_57 = 0b011,
    }
}

encoding! {
    /// The depth of first-stage tables: FSPM.
    PagingMode {
        /// Four levels.
        FOUR_LEVELS = 0b00,
        /// Five levels.
        FIVE_LEVELS = 0b01,
    }
}

/// Bits 63:0 of a PASID table entry (9.6).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Pasid0 {
    /// Bit 0: P, present.
    pub present: bool,
    /// Bit 1: FPD, qualified faults are not recorded.
    pub fpd: bool,
    /// Bits 4:2: AW, the width of second-stage input addresses.
    #[bits(3)]
    pub aw: AddressWidth,
    /// Bit 5: SSEE, second-stage execute enable.
    pub ssee: bool,
    /// Bits 8:6: PGTT, the kind of translation.
    #[bits(3)]
    pub pgtt: Translation,
    /// Bit 9: SSADE, second-stage accessed and dirty bits.
    pub ssade: bool,
    #[bits(2)]
    __: u8,
    /// Bits 63:12: SSPTPTR, the frame number of the second-stage root table.
    #[bits(52)]
    pub ssptptr: u64,
}

const _: () = {
    at(Pasid0::PRESENT_OFFSET, Pasid0::PRESENT_BITS, 0, 0);
    at(Pasid0::FPD_OFFSET, Pasid0::FPD_BITS, 1, 1);
    at(Pasid0::AW_OFFSET, Pasid0::AW_BITS, 4, 2);
    at(Pasid0::SSEE_OFFSET, Pasid0::SSEE_BITS, 5, 5);
    at(Pasid0::PGTT_OFFSET, Pasid0::PGTT_BITS, 8, 6);
    at(Pasid0::SSADE_OFFSET, Pasid0::SSADE_BITS, 9, 9);
    at(Pasid0::SSPTPTR_OFFSET, Pasid0::SSPTPTR_BITS, 63, 12);
};

/// Bits 127:64 of a PASID table entry (9.6).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Pasid1 {
    /// Bits 15:0 (79:64): DID, the domain id.
    pub did: u16,
    #[bits(7)]
    __: u8,
    /// Bit 23 (87): PWSNP, page walks snoop the CPU's caches; reserved without ECAP_REG.SMPWC.
    pub pwsnp: bool,
    /// Bit 24 (88): PGSNP, all accesses snoop the CPU's caches; reserved without ECAP_REG.SC.
    pub pgsnp: bool,
    /// Bit 25 (89): CD, cache disable.
    pub cd: bool,
    /// Bit 26 (90): EMTE, extended memory types.
    pub emte: bool,
    /// Bits 29:27 (93:91): EMT, the memory type of paging-structure accesses.
    #[bits(3)]
    pub emt: u8,
    /// Bit 30 (94): PWT, of the first-stage root table.
    pub pwt: bool,
    /// Bit 31 (95): PCD, of the first-stage root table.
    pub pcd: bool,
    /// Bits 63:32 (127:96): PAT, the page attribute table.
    pub pat: u32,
}

const _: () = {
    at(Pasid1::DID_OFFSET, Pasid1::DID_BITS, 15, 0);
    at(Pasid1::PWSNP_OFFSET, Pasid1::PWSNP_BITS, 23, 23);
    at(Pasid1::PGSNP_OFFSET, Pasid1::PGSNP_BITS, 24, 24);
    at(Pasid1::CD_OFFSET, Pasid1::CD_BITS, 25, 25);
    at(Pasid1::EMTE_OFFSET, Pasid1::EMTE_BITS, 26, 26);
    at(Pasid1::EMT_OFFSET, Pasid1::EMT_BITS, 29, 27);
    at(Pasid1::PWT_OFFSET, Pasid1::PWT_BITS, 30, 30);
    at(Pasid1::PCD_OFFSET, Pasid1::PCD_BITS, 31, 31);
    at(Pasid1::PAT_OFFSET, Pasid1::PAT_BITS, 63, 32);
};

/// Bits 191:128 of a PASID table entry; bits 511:192 are reserved here (9.6).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Pasid2 {
    /// Bit 0 (128): SRE, requests with privilege are allowed.
    pub sre: bool,
    /// Bit 1 (129): ERE, requests to execute are allowed.
    pub ere: bool,
    /// Bits 3:2 (131:130): FSPM, the depth of the first-stage tables.
    #[bits(2)]
    pub fspm: PagingMode,
    /// Bit 4 (132): WPE, write protection holds for requests with privilege.
    pub wpe: bool,
    /// Bit 5 (133): NXE, the execute-disable bit of first-stage entries is in use.
    pub nxe: bool,
    /// Bit 6 (134): SMEP, requests with privilege do not execute user pages.
    pub smep: bool,
    /// Bit 7 (135): EAFE, extended accessed flag.
    pub eafe: bool,
    #[bits(4)]
    __: u8,
    /// Bits 63:12 (191:140): FSPTPTR, the frame number of the first-stage root table.
    #[bits(52)]
    pub fsptptr: u64,
}

const _: () = {
    at(Pasid2::SRE_OFFSET, Pasid2::SRE_BITS, 0, 0);
    at(Pasid2::ERE_OFFSET, Pasid2::ERE_BITS, 1, 1);
    at(Pasid2::FSPM_OFFSET, Pasid2::FSPM_BITS, 3, 2);
    at(Pasid2::WPE_OFFSET, Pasid2::WPE_BITS, 4, 4);
    at(Pasid2::NXE_OFFSET, Pasid2::NXE_BITS, 5, 5);
    at(Pasid2::SMEP_OFFSET, Pasid2::SMEP_BITS, 6, 6);
    at(Pasid2::EAFE_OFFSET, Pasid2::EAFE_BITS, 7, 7);
    at(Pasid2::FSPTPTR_OFFSET, Pasid2::FSPTPTR_BITS, 63, 12);
};
