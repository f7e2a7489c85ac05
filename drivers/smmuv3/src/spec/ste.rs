//! Stream table entries and level-1 descriptors (IHI 0070, 5.1 and 5.2).

use super::{AddressSize, Cacheability, Shareability, TableGranule, encoding, layout};
use bitfield_struct::bitfield;

/// A stream table entry: eight 64-bit words.
pub const STE_WORDS: usize = 8;
/// The size of a stream table entry, in bytes.
pub const STE_BYTES: u64 = 64;

encoding! {
    /// STE.Config: what happens to the stream.
    StreamConfig {
        /// Transactions are aborted, without a record.
        ABORT = 0b000,
        /// Both stages are bypassed.
        BYPASS = 0b100,
        /// Stage 1 translates.
        STAGE_1 = 0b101,
        /// Stage 2 translates.
        STAGE_2 = 0b110,
        /// Both stages translate.
        NESTED = 0b111,
    }
}

encoding! {
    /// STE.S1Fmt: the form of the table of context descriptors.
    ContextFormat {
        /// One table.
        LINEAR = 0b00,
        /// Two levels, with second-level tables of 4 KiB: 64 descriptors.
        TWO_LEVEL_4K = 0b01,
        /// Two levels, with second-level tables of 64 KiB: 1024 descriptors.
        TWO_LEVEL_64K = 0b10,
    }
}

encoding! {
    /// STE.EATS: translation requests of the device, and its accesses by translated addresses.
    AtsMode {
        /// Both are aborted.
        ABORT = 0b00,
        /// Both are allowed; the translation is that of all stages.
        FULL = 0b01,
        /// Translated addresses go through stage 2.
        SPLIT = 0b10,
    }
}

encoding! {
    /// STE.S1DSS: transactions without a SubstreamID on a stream with several context descriptors.
    DefaultSubstream {
        /// They are aborted.
        TERMINATE = 0b00,
        /// They bypass stage 1.
        BYPASS = 0b01,
        /// They use context descriptor 0.
        SUBSTREAM_0 = 0b10,
    }
}

encoding! {
    /// STE.STRW: the translation regime of stage 1.
    StreamWorld {
        /// Non-secure EL1, with ASID and VMID.
        NS_EL1 = 0b00,
        /// EL2 without ASIDs, or EL3 for secure streams.
        EL2 = 0b10,
    }
}

encoding! {
    /// STE.SHCFG: shareability of transactions that bypass stage 1.
    ShareabilityOverride {
        /// Non-shareable.
        NON_SHAREABLE = 0b00,
        /// As it came.
        INCOMING = 0b01,
        /// Outer shareable.
        OUTER = 0b10,
        /// Inner shareable.
        INNER = 0b11,
    }
}

/// STE bits 63:0.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Ste0 {
    /// `0` The entry is valid.
    pub v: bool,
    /// `3:1` What happens to the stream.
    #[bits(3)]
    pub config: StreamConfig,
    /// `5:4` Form of the context descriptor table.
    #[bits(2)]
    pub s1fmt: ContextFormat,
    /// `55:6` Address bits 55:6 of the context descriptor table.
    #[bits(50)]
    pub s1contextptr: u64,
    #[bits(3)]
    __: u8,
    /// `63:59` Context descriptors, as a power of two.
    #[bits(5)]
    pub s1cdmax: u8,
}

layout!(Ste0 {
    V_OFFSET, V_BITS: 0, 0;
    CONFIG_OFFSET, CONFIG_BITS: 3, 1;
    S1FMT_OFFSET, S1FMT_BITS: 5, 4;
    S1CONTEXTPTR_OFFSET, S1CONTEXTPTR_BITS: 55, 6;
    S1CDMAX_OFFSET, S1CDMAX_BITS: 63, 59;
});

/// STE bits 127:64.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Ste1 {
    /// `65:64` Transactions without a SubstreamID.
    #[bits(2)]
    pub s1dss: DefaultSubstream,
    /// `67:66` Inner cacheability of context descriptor fetches.
    #[bits(2)]
    pub s1cir: Cacheability,
    /// `69:68` Outer cacheability of context descriptor fetches.
    #[bits(2)]
    pub s1cor: Cacheability,
    /// `71:70` Shareability of context descriptor fetches.
    #[bits(2)]
    pub s1csh: Shareability,
    #[bits(9)]
    __: u16,
    /// `81` Directed cache prefetch is allowed.
    pub dcp: bool,
    /// `82` PRI page responses carry a PASID.
    pub ppar: bool,
    /// `83` Events of this stream may be merged.
    pub mev: bool,
    #[bits(5)]
    __: u8,
    /// `89` Stage 2 forces write-back.
    pub s2fwb: bool,
    /// `90` Stage 1 uses the memory partition of the context descriptor.
    pub s1mpam: bool,
    /// `91` Stage 1 must not stall.
    pub s1stalld: bool,
    /// `93:92` PCIe ATS.
    #[bits(2)]
    pub eats: AtsMode,
    /// `95:94` Translation regime of stage 1.
    #[bits(2)]
    pub strw: StreamWorld,
    /// `99:96` Memory type override.
    #[bits(4)]
    pub memattr: u8,
    /// `100` MemAttr is in effect.
    pub mtcfg: bool,
    /// `104:101` Allocation hint override.
    #[bits(4)]
    pub alloccfg: u8,
    #[bits(3)]
    __: u8,
    /// `109:108` Shareability override.
    #[bits(2)]
    pub shcfg: ShareabilityOverride,
    /// `111:110` Non-secure override.
    #[bits(2)]
    pub nscfg: u8,
    /// `113:112` Privilege override.
    #[bits(2)]
    pub privcfg: u8,
    /// `115:114` Instruction or data override.
    #[bits(2)]
    pub instcfg: u8,
    #[bits(12)]
    __: u16,
}

layout!(Ste1 {
    S1DSS_OFFSET, S1DSS_BITS: 1, 0;
    S1CIR_OFFSET, S1CIR_BITS: 3, 2;
    S1COR_OFFSET, S1COR_BITS: 5, 4;
    S1CSH_OFFSET, S1CSH_BITS: 7, 6;
    DCP_OFFSET, DCP_BITS: 17, 17;
    PPAR_OFFSET, PPAR_BITS: 18, 18;
    MEV_OFFSET, MEV_BITS: 19, 19;
    S2FWB_OFFSET, S2FWB_BITS: 25, 25;
    S1MPAM_OFFSET, S1MPAM_BITS: 26, 26;
    S1STALLD_OFFSET, S1STALLD_BITS: 27, 27;
    EATS_OFFSET, EATS_BITS: 29, 28;
    STRW_OFFSET, STRW_BITS: 31, 30;
    MEMATTR_OFFSET, MEMATTR_BITS: 35, 32;
    MTCFG_OFFSET, MTCFG_BITS: 36, 36;
    ALLOCCFG_OFFSET, ALLOCCFG_BITS: 40, 37;
    SHCFG_OFFSET, SHCFG_BITS: 45, 44;
    NSCFG_OFFSET, NSCFG_BITS: 47, 46;
    PRIVCFG_OFFSET, PRIVCFG_BITS: 49, 48;
    INSTCFG_OFFSET, INSTCFG_BITS: 51, 50;
});

/// STE bits 191:128.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Ste2 {
    /// `143:128` VMID, also for streams with stage 1 only.
    pub s2vmid: u16,
    #[bits(16)]
    __: u16,
    /// `165:160` 64 minus the width of stage-2 input addresses.
    #[bits(6)]
    pub s2t0sz: u8,
    /// `167:166` Start level of the stage-2 walk, encoded by granule.
    #[bits(2)]
    pub s2sl0: u8,
    /// `169:168` Inner cacheability of walks.
    #[bits(2)]
    pub s2ir0: Cacheability,
    /// `171:170` Outer cacheability of walks.
    #[bits(2)]
    pub s2or0: Cacheability,
    /// `173:172` Shareability of walks.
    #[bits(2)]
    pub s2sh0: Shareability,
    /// `175:174` Granule.
    #[bits(2)]
    pub s2tg: TableGranule,
    /// `178:176` Width of stage-2 output addresses.
    #[bits(3)]
    pub s2ps: AddressSize,
    /// `179` AArch64 tables.
    pub s2aa64: bool,
    /// `180` Big-endian tables.
    pub s2endi: bool,
    /// `181` Access flag faults are disabled.
    pub s2affd: bool,
    /// `182` Stage-1 walks that reach device memory through stage 2 fault.
    pub s2ptw: bool,
    /// `183` Hardware sets the dirty state.
    pub s2hd: bool,
    /// `184` Hardware sets the access flag.
    pub s2ha: bool,
    /// `185` Stage-2 faults stall.
    pub s2s: bool,
    /// `186` Stage-2 faults are recorded.
    pub s2r: bool,
    #[bits(5)]
    __: u8,
}

layout!(Ste2 {
    S2VMID_OFFSET, S2VMID_BITS: 15, 0;
    S2T0SZ_OFFSET, S2T0SZ_BITS: 37, 32;
    S2SL0_OFFSET, S2SL0_BITS: 39, 38;
    S2IR0_OFFSET, S2IR0_BITS: 41, 40;
    S2OR0_OFFSET, S2OR0_BITS: 43, 42;
    S2SH0_OFFSET, S2SH0_BITS: 45, 44;
    S2TG_OFFSET, S2TG_BITS: 47, 46;
    S2PS_OFFSET, S2PS_BITS: 50, 48;
    S2AA64_OFFSET, S2AA64_BITS: 51, 51;
    S2ENDI_OFFSET, S2ENDI_BITS: 52, 52;
    S2AFFD_OFFSET, S2AFFD_BITS: 53, 53;
    S2PTW_OFFSET, S2PTW_BITS: 54, 54;
    S2HD_OFFSET, S2HD_BITS: 55, 55;
    S2HA_OFFSET, S2HA_BITS: 56, 56;
    S2S_OFFSET, S2S_BITS: 57, 57;
    S2R_OFFSET, S2R_BITS: 58, 58;
});

/// STE bits 255:192.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Ste3 {
    #[bits(2)]
    __: u8,
    /// `194` The high bit of S2SL0.
    pub s2sl0_2: bool,
    /// `195` 52-bit addresses with 4 and 16 KiB granules (FEAT_LPA2).
    pub s2ds: bool,
    /// `243:196` Address bits 51:4 of the stage-2 root table.
    #[bits(48)]
    pub s2ttb: u64,
    #[bits(12)]
    __: u16,
}

layout!(Ste3 {
    S2SL0_2_OFFSET, S2SL0_2_BITS: 2, 2;
    S2DS_OFFSET, S2DS_BITS: 3, 3;
    S2TTB_OFFSET, S2TTB_BITS: 51, 4;
});

/// A level-1 stream table descriptor.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct L1Std {
    /// `4:0` 0: no second-level table; n: the table has `2^(n-1)` entries.
    #[bits(5)]
    pub span: u8,
    __: bool,
    /// `51:6` Address bits 51:6 of the second-level table, aligned to its size.
    #[bits(46)]
    pub l2ptr: u64,
    #[bits(12)]
    __: u16,
}

layout!(L1Std {
    SPAN_OFFSET, SPAN_BITS: 4, 0;
    L2PTR_OFFSET, L2PTR_BITS: 51, 6;
});
