//! Registers of the non-secure programming interface (IHI 0070, chapter 6).

use super::{AddressSize, Cacheability, Shareability, layout};
use bitfield_struct::bitfield;
use portcullis_hal::wait::Register;

/// Size of the two register pages that the driver uses, in bytes.
pub const REGISTER_BYTES: usize = 0x2_0000;

macro_rules! registers {
    ($($name:ident = $offset:literal, $doc:literal;)*) => {
        $(#[doc = $doc] pub const $name: Register = Register { name: concat!("SMMU_", stringify!($name)), offset: $offset };)*
    };
}

registers! {
    IDR0 = 0x00, "Features.";
    IDR1 = 0x04, "Table and queue sizes.";
    IDR3 = 0x0c, "Features.";
    IDR5 = 0x14, "Address sizes and granules.";
    IIDR = 0x18, "Implementer.";
    AIDR = 0x1c, "Architecture revision.";
    CR0 = 0x20, "Enables.";
    CR0ACK = 0x24, "Enables in effect.";
    CR1 = 0x28, "Attributes of table and queue accesses.";
    CR2 = 0x2c, "Behaviour for unknown streams and broadcast maintenance.";
    GBPA = 0x44, "Attributes of transactions while translation is off.";
    IRQ_CTRL = 0x50, "Interrupt enables.";
    IRQ_CTRLACK = 0x54, "Interrupt enables in effect.";
    GERROR = 0x60, "Global errors: a bit that differs from GERRORN is active.";
    GERRORN = 0x64, "Global errors acknowledged.";
    GERROR_IRQ_CFG0 = 0x68, "MSI address for global errors (64 bits).";
    GERROR_IRQ_CFG1 = 0x70, "MSI data for global errors.";
    GERROR_IRQ_CFG2 = 0x74, "MSI attributes for global errors.";
    STRTAB_BASE = 0x80, "Stream table address (64 bits).";
    STRTAB_BASE_CFG = 0x88, "Stream table format and size.";
    CMDQ_BASE = 0x90, "Command queue address and size (64 bits).";
    CMDQ_PROD = 0x98, "Command queue write index: the doorbell.";
    CMDQ_CONS = 0x9c, "Command queue read index and error.";
    EVENTQ_BASE = 0xa0, "Event queue address and size (64 bits).";
    EVENTQ_IRQ_CFG0 = 0xb0, "MSI address for events (64 bits).";
    EVENTQ_IRQ_CFG1 = 0xb8, "MSI data for events.";
    EVENTQ_IRQ_CFG2 = 0xbc, "MSI attributes for events.";
    EVENTQ_PROD = 0x1_00a8, "Event queue write index, on page 1.";
    EVENTQ_CONS = 0x1_00ac, "Event queue read index, on page 1.";
    PRIQ_BASE = 0xc0, "PRI queue address and size (64 bits).";
    PRIQ_IRQ_CFG0 = 0xd0, "MSI address for page requests (64 bits).";
    PRIQ_IRQ_CFG1 = 0xd8, "MSI data for page requests.";
    PRIQ_IRQ_CFG2 = 0xdc, "MSI attributes for page requests.";
    PRIQ_PROD = 0x1_00c8, "PRI queue write index, on page 1.";
    PRIQ_CONS = 0x1_00cc, "PRI queue read index, on page 1.";
}

/// SMMU_IDR0: features.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Idr0 {
    /// `0` Stage 2 is supported.
    pub s2p: bool,
    /// `1` Stage 1 is supported.
    pub s1p: bool,
    /// `3:2` Translation table formats: bit 0 AArch32, bit 1 AArch64.
    #[bits(2)]
    pub ttf: u8,
    /// `4` Accesses to tables and queues snoop the CPU's caches.
    pub cohacc: bool,
    /// `5` Broadcast TLB maintenance.
    pub btm: bool,
    /// `7:6` Hardware update of access and dirty state.
    #[bits(2)]
    pub httu: u8,
    /// `8` Dormant hint.
    pub dormhint: bool,
    /// `9` EL2 stage 1 contexts.
    pub hyp: bool,
    /// `10` PCIe ATS.
    pub ats: bool,
    /// `11` ATS for stage 1 only.
    pub ns1ats: bool,
    /// `12` 16-bit ASIDs.
    pub asid16: bool,
    /// `13` Message-signalled interrupts.
    pub msi: bool,
    /// `14` WFE wake-up events.
    pub sev: bool,
    /// `15` Address translation operations.
    pub atos: bool,
    /// `16` PCIe PRI.
    pub pri: bool,
    /// `17` VMID wildcards.
    pub vmw: bool,
    /// `18` 16-bit VMIDs.
    pub vmid16: bool,
    /// `19` Two-level context descriptor tables.
    pub cd2l: bool,
    /// `20` Virtual address translation operations.
    pub vatos: bool,
    /// `22:21` Endianness of translation table walks.
    #[bits(2)]
    pub ttendian: u8,
    /// `23` ATS recorded errors.
    pub atsrecerr: bool,
    /// `25:24` Stall model.
    #[bits(2)]
    pub stall_model: u8,
    /// `26` Termination aborts only.
    pub term_model: bool,
    /// `28:27` Stream table levels.
    #[bits(2)]
    pub st_level: u8,
    #[bits(3)]
    __: u8,
}

layout!(Idr0 {
    S2P_OFFSET, S2P_BITS: 0, 0;
    S1P_OFFSET, S1P_BITS: 1, 1;
    TTF_OFFSET, TTF_BITS: 3, 2;
    COHACC_OFFSET, COHACC_BITS: 4, 4;
    BTM_OFFSET, BTM_BITS: 5, 5;
    HTTU_OFFSET, HTTU_BITS: 7, 6;
    DORMHINT_OFFSET, DORMHINT_BITS: 8, 8;
    HYP_OFFSET, HYP_BITS: 9, 9;
    ATS_OFFSET, ATS_BITS: 10, 10;
    NS1ATS_OFFSET, NS1ATS_BITS: 11, 11;
    ASID16_OFFSET, ASID16_BITS: 12, 12;
    MSI_OFFSET, MSI_BITS: 13, 13;
    SEV_OFFSET, SEV_BITS: 14, 14;
    ATOS_OFFSET, ATOS_BITS: 15, 15;
    PRI_OFFSET, PRI_BITS: 16, 16;
    VMW_OFFSET, VMW_BITS: 17, 17;
    VMID16_OFFSET, VMID16_BITS: 18, 18;
    CD2L_OFFSET, CD2L_BITS: 19, 19;
    VATOS_OFFSET, VATOS_BITS: 20, 20;
    TTENDIAN_OFFSET, TTENDIAN_BITS: 22, 21;
    ATSRECERR_OFFSET, ATSRECERR_BITS: 23, 23;
    STALL_MODEL_OFFSET, STALL_MODEL_BITS: 25, 24;
    TERM_MODEL_OFFSET, TERM_MODEL_BITS: 26, 26;
    ST_LEVEL_OFFSET, ST_LEVEL_BITS: 28, 27;
});

impl Idr0 {
    /// TTF: AArch64 tables.
    pub const TTF_AARCH64: u8 = 0b10;
    /// TTENDIAN: big-endian only.
    pub const TTENDIAN_BIG: u8 = 0b11;
    /// HTTU: the access flag and the dirty state.
    pub const HTTU_ACCESS_AND_DIRTY: u8 = 0b10;
    /// STALL_MODEL: faulting transactions may stall or terminate.
    pub const STALL_SUPPORTED: u8 = 0b00;
    /// STALL_MODEL: they only terminate.
    pub const STALL_NONE: u8 = 0b01;
    /// STALL_MODEL: they always stall.
    pub const STALL_FORCED: u8 = 0b10;
    /// ST_LEVEL: two-level tables too.
    pub const ST_LEVEL_TWO: u8 = 0b01;
}

/// SMMU_IDR1: sizes.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Idr1 {
    /// `5:0` Bits of a StreamID.
    #[bits(6)]
    pub sidsize: u8,
    /// `10:6` Bits of a SubstreamID.
    #[bits(5)]
    pub ssidsize: u8,
    /// `15:11` Most entries of the PRI queue, as a power of two.
    #[bits(5)]
    pub priqs: u8,
    /// `20:16` Most entries of the event queue, as a power of two.
    #[bits(5)]
    pub eventqs: u8,
    /// `25:21` Most entries of the command queue, as a power of two.
    #[bits(5)]
    pub cmdqs: u8,
    /// `26` Permission attributes can be overridden.
    pub attr_perms_ovr: bool,
    /// `27` Memory attributes can be overridden.
    pub attr_types_ovr: bool,
    /// `28` Preset addresses are relative.
    pub rel: bool,
    /// `29` The queues' addresses are fixed.
    pub queues_preset: bool,
    /// `30` The stream table's address is fixed.
    pub tables_preset: bool,
    /// `31` Enhanced command queues.
    pub ecmdq: bool,
}

layout!(Idr1 {
    SIDSIZE_OFFSET, SIDSIZE_BITS: 5, 0;
    SSIDSIZE_OFFSET, SSIDSIZE_BITS: 10, 6;
    PRIQS_OFFSET, PRIQS_BITS: 15, 11;
    EVENTQS_OFFSET, EVENTQS_BITS: 20, 16;
    CMDQS_OFFSET, CMDQS_BITS: 25, 21;
    ATTR_PERMS_OVR_OFFSET, ATTR_PERMS_OVR_BITS: 26, 26;
    ATTR_TYPES_OVR_OFFSET, ATTR_TYPES_OVR_BITS: 27, 27;
    REL_OFFSET, REL_BITS: 28, 28;
    QUEUES_PRESET_OFFSET, QUEUES_PRESET_BITS: 29, 29;
    TABLES_PRESET_OFFSET, TABLES_PRESET_BITS: 30, 30;
    ECMDQ_OFFSET, ECMDQ_BITS: 31, 31;
});

/// SMMU_IDR3: features.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Idr3 {
    #[bits(2)]
    __: u8,
    /// `2` Hierarchical attributes can be disabled.
    pub had: bool,
    /// `3` Page-based hardware attributes.
    pub pbha: bool,
    /// `4` Execute-never per privilege at stage 2.
    pub xnx: bool,
    /// `5` PASID on the PRI queue.
    pub pps: bool,
    __: bool,
    /// `7` Memory partitioning.
    pub mpam: bool,
    /// `8` Stage 2 forces write-back.
    pub fwb: bool,
    /// `9` Small translation tables.
    pub stt: bool,
    /// `10` Range invalidation and level hints.
    pub ril: bool,
    /// `12:11` Break-before-make level.
    #[bits(2)]
    pub bbml: u8,
    /// `13` E0PD.
    pub e0pd: bool,
    #[bits(18)]
    __: u32,
}

layout!(Idr3 {
    HAD_OFFSET, HAD_BITS: 2, 2;
    PBHA_OFFSET, PBHA_BITS: 3, 3;
    XNX_OFFSET, XNX_BITS: 4, 4;
    PPS_OFFSET, PPS_BITS: 5, 5;
    MPAM_OFFSET, MPAM_BITS: 7, 7;
    FWB_OFFSET, FWB_BITS: 8, 8;
    STT_OFFSET, STT_BITS: 9, 9;
    RIL_OFFSET, RIL_BITS: 10, 10;
    BBML_OFFSET, BBML_BITS: 12, 11;
    E0PD_OFFSET, E0PD_BITS: 13, 13;
});

/// SMMU_IDR5: address sizes and granules.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Idr5 {
    /// `2:0` Output address size.
    #[bits(3)]
    pub oas: AddressSize,
    __: bool,
    /// `4` 4 KiB granule.
    pub gran4k: bool,
    /// `5` 16 KiB granule.
    pub gran16k: bool,
    /// `6` 64 KiB granule.
    pub gran64k: bool,
    /// `7` 52-bit addresses with 4 and 16 KiB granules.
    pub ds: bool,
    #[bits(2)]
    __: u8,
    /// `11:10` Virtual address extension: 0b01 adds 52-bit inputs.
    #[bits(2)]
    pub vax: u8,
    #[bits(4)]
    __: u8,
    /// `31:16` Most transactions that can be stalled.
    pub stall_max: u16,
}

impl Idr5 {
    /// VAX: 52-bit stage-1 inputs.
    pub const VAX_52: u8 = 0b01;
}
layout!(Idr5 {
    OAS_OFFSET, OAS_BITS: 2, 0;
    GRAN4K_OFFSET, GRAN4K_BITS: 4, 4;
    GRAN16K_OFFSET, GRAN16K_BITS: 5, 5;
    GRAN64K_OFFSET, GRAN64K_BITS: 6, 6;
    DS_OFFSET, DS_BITS: 7, 7;
    VAX_OFFSET, VAX_BITS: 11, 10;
    STALL_MAX_OFFSET, STALL_MAX_BITS: 31, 16;
});

/// SMMU_CR0 and SMMU_CR0ACK: enables.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Cr0 {
    /// `0` Translation.
    pub smmuen: bool,
    /// `1` PRI queue.
    pub priqen: bool,
    /// `2` Event queue.
    pub eventqen: bool,
    /// `3` Command queue.
    pub cmdqen: bool,
    /// `4` Check of ATS translated traffic.
    pub atschk: bool,
    __: bool,
    /// `8:6` VMID wildcard.
    #[bits(3)]
    pub vmw: u8,
    #[bits(23)]
    __: u32,
}

layout!(Cr0 {
    SMMUEN_OFFSET, SMMUEN_BITS: 0, 0;
    PRIQEN_OFFSET, PRIQEN_BITS: 1, 1;
    EVENTQEN_OFFSET, EVENTQEN_BITS: 2, 2;
    CMDQEN_OFFSET, CMDQEN_BITS: 3, 3;
    ATSCHK_OFFSET, ATSCHK_BITS: 4, 4;
    VMW_OFFSET, VMW_BITS: 8, 6;
});

/// SMMU_CR1: attributes of accesses to queues and tables.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Cr1 {
    /// `1:0` Queues, inner cacheability.
    #[bits(2)]
    pub queue_ic: Cacheability,
    /// `3:2` Queues, outer cacheability.
    #[bits(2)]
    pub queue_oc: Cacheability,
    /// `5:4` Queues, shareability.
    #[bits(2)]
    pub queue_sh: Shareability,
    /// `7:6` Stream table, inner cacheability.
    #[bits(2)]
    pub table_ic: Cacheability,
    /// `9:8` Stream table, outer cacheability.
    #[bits(2)]
    pub table_oc: Cacheability,
    /// `11:10` Stream table, shareability.
    #[bits(2)]
    pub table_sh: Shareability,
    #[bits(20)]
    __: u32,
}

layout!(Cr1 {
    QUEUE_IC_OFFSET, QUEUE_IC_BITS: 1, 0;
    QUEUE_OC_OFFSET, QUEUE_OC_BITS: 3, 2;
    QUEUE_SH_OFFSET, QUEUE_SH_BITS: 5, 4;
    TABLE_IC_OFFSET, TABLE_IC_BITS: 7, 6;
    TABLE_OC_OFFSET, TABLE_OC_BITS: 9, 8;
    TABLE_SH_OFFSET, TABLE_SH_BITS: 11, 10;
});

/// SMMU_CR2.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Cr2 {
    /// `0` EL2 contexts follow the E2H rules.
    pub e2h: bool,
    /// `1` Transactions of unknown streams are recorded.
    pub recinvsid: bool,
    /// `2` Private TLB maintenance: broadcasts are ignored.
    pub ptm: bool,
    #[bits(29)]
    __: u32,
}

layout!(Cr2 {
    E2H_OFFSET, E2H_BITS: 0, 0;
    RECINVSID_OFFSET, RECINVSID_BITS: 1, 1;
    PTM_OFFSET, PTM_BITS: 2, 2;
});

/// SMMU_GBPA: what becomes of transactions while SMMUEN is 0.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Gbpa {
    /// `3:0` Memory attributes.
    #[bits(4)]
    pub memattr: u8,
    /// `4` MEMATTR overrides the incoming attributes.
    pub mtcfg: bool,
    #[bits(3)]
    __: u8,
    /// `11:8` Allocation hints.
    #[bits(4)]
    pub alloccfg: u8,
    /// `13:12` Shareability.
    #[bits(2)]
    pub shcfg: u8,
    #[bits(2)]
    __: u8,
    /// `17:16` Privilege.
    #[bits(2)]
    pub privcfg: u8,
    /// `19:18` Instruction or data.
    #[bits(2)]
    pub instcfg: u8,
    /// `20` All transactions are aborted.
    pub abort: bool,
    #[bits(10)]
    __: u16,
    /// `31` An update is in progress.
    pub update: bool,
}

layout!(Gbpa {
    MEMATTR_OFFSET, MEMATTR_BITS: 3, 0;
    MTCFG_OFFSET, MTCFG_BITS: 4, 4;
    ALLOCCFG_OFFSET, ALLOCCFG_BITS: 11, 8;
    SHCFG_OFFSET, SHCFG_BITS: 13, 12;
    PRIVCFG_OFFSET, PRIVCFG_BITS: 17, 16;
    INSTCFG_OFFSET, INSTCFG_BITS: 19, 18;
    ABORT_OFFSET, ABORT_BITS: 20, 20;
    UPDATE_OFFSET, UPDATE_BITS: 31, 31;
});

/// SMMU_IRQ_CTRL and SMMU_IRQ_CTRLACK.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct IrqCtrl {
    /// `0` Global errors.
    pub gerror_irqen: bool,
    /// `1` PRI queue.
    pub priq_irqen: bool,
    /// `2` Event queue.
    pub eventq_irqen: bool,
    #[bits(29)]
    __: u32,
}

layout!(IrqCtrl {
    GERROR_IRQEN_OFFSET, GERROR_IRQEN_BITS: 0, 0;
    PRIQ_IRQEN_OFFSET, PRIQ_IRQEN_BITS: 1, 1;
    EVENTQ_IRQEN_OFFSET, EVENTQ_IRQEN_BITS: 2, 2;
});

/// SMMU_GERROR and SMMU_GERRORN, or the difference of the two: the active errors.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Gerror {
    /// `0` The command queue stopped; CMDQ_CONS.ERR says why.
    pub cmdq_err: bool,
    __: bool,
    /// `2` An event record could not be written.
    pub eventq_abt_err: bool,
    /// `3` A PRI queue record could not be written.
    pub priq_abt_err: bool,
    /// `4` The MSI of a CMD_SYNC could not be written.
    pub msi_cmdq_abt_err: bool,
    /// `5` The event queue's MSI could not be written.
    pub msi_eventq_abt_err: bool,
    /// `6` The PRI queue's MSI could not be written.
    pub msi_priq_abt_err: bool,
    /// `7` The global error MSI could not be written.
    pub msi_gerror_abt_err: bool,
    /// `8` The unit went into service failure mode and aborts everything.
    pub sfm_err: bool,
    /// `9` An enhanced command queue page failed.
    pub cmdqp_err: bool,
    /// `10` A device permission table lookup failed.
    pub dpt_err: bool,
    #[bits(21)]
    __: u32,
}

layout!(Gerror {
    CMDQ_ERR_OFFSET, CMDQ_ERR_BITS: 0, 0;
    EVENTQ_ABT_ERR_OFFSET, EVENTQ_ABT_ERR_BITS: 2, 2;
    PRIQ_ABT_ERR_OFFSET, PRIQ_ABT_ERR_BITS: 3, 3;
    MSI_CMDQ_ABT_ERR_OFFSET, MSI_CMDQ_ABT_ERR_BITS: 4, 4;
    MSI_EVENTQ_ABT_ERR_OFFSET, MSI_EVENTQ_ABT_ERR_BITS: 5, 5;
    MSI_PRIQ_ABT_ERR_OFFSET, MSI_PRIQ_ABT_ERR_BITS: 6, 6;
    MSI_GERROR_ABT_ERR_OFFSET, MSI_GERROR_ABT_ERR_BITS: 7, 7;
    SFM_ERR_OFFSET, SFM_ERR_BITS: 8, 8;
    CMDQP_ERR_OFFSET, CMDQP_ERR_BITS: 9, 9;
    DPT_ERR_OFFSET, DPT_ERR_BITS: 10, 10;
});

/// SMMU_STRTAB_BASE.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct StrtabBase {
    #[bits(6)]
    __: u8,
    /// `51:6` Address bits 51:6; the table is aligned to its size.
    #[bits(46)]
    pub addr: u64,
    #[bits(10)]
    __: u16,
    /// `62` Read-allocate hint.
    pub ra: bool,
    __: bool,
}

layout!(StrtabBase {
    ADDR_OFFSET, ADDR_BITS: 51, 6;
    RA_OFFSET, RA_BITS: 62, 62;
});

/// SMMU_STRTAB_BASE_CFG.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct StrtabBaseCfg {
    /// `5:0` Bits of StreamID that the table covers.
    #[bits(6)]
    pub log2size: u8,
    /// `10:6` Bits of StreamID that one second-level table covers: 6, 8 or 10.
    #[bits(5)]
    pub split: u8,
    #[bits(5)]
    __: u8,
    /// `17:16` 0 linear, 1 two-level.
    #[bits(2)]
    pub fmt: u8,
    #[bits(14)]
    __: u16,
}

layout!(StrtabBaseCfg {
    LOG2SIZE_OFFSET, LOG2SIZE_BITS: 5, 0;
    SPLIT_OFFSET, SPLIT_BITS: 10, 6;
    FMT_OFFSET, FMT_BITS: 17, 16;
});

/// SMMU_CMDQ_BASE, SMMU_EVENTQ_BASE and SMMU_PRIQ_BASE.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct QueueBase {
    /// `4:0` Entries, as a power of two.
    #[bits(5)]
    pub log2size: u8,
    /// `51:5` Address bits 51:5; the queue is aligned to its size.
    #[bits(47)]
    pub addr: u64,
    #[bits(10)]
    __: u16,
    /// `62` Read-allocate hint for the command queue, write-allocate hint for the others.
    pub alloc: bool,
    __: bool,
}

layout!(QueueBase {
    LOG2SIZE_OFFSET, LOG2SIZE_BITS: 4, 0;
    ADDR_OFFSET, ADDR_BITS: 51, 5;
    ALLOC_OFFSET, ALLOC_BITS: 62, 62;
});

/// SMMU_CMDQ_CONS.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CmdqCons {
    /// `19:0` Read index with its wrap bit.
    #[bits(20)]
    pub rd: u32,
    #[bits(4)]
    __: u8,
    /// `30:24` Why the queue stopped; valid while GERROR.CMDQ_ERR is active.
    #[bits(7)]
    pub err: super::cmd::CommandError,
    __: bool,
}

layout!(CmdqCons {
    RD_OFFSET, RD_BITS: 19, 0;
    ERR_OFFSET, ERR_BITS: 30, 24;
});

/// SMMU_EVENTQ_PROD, SMMU_EVENTQ_CONS, SMMU_PRIQ_PROD and SMMU_PRIQ_CONS.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct EventqIndex {
    /// `19:0` Index with its wrap bit.
    #[bits(20)]
    pub index: u32,
    #[bits(11)]
    __: u16,
    /// `31` Overflow flag: OVFLG in PROD, OVACKFLG in CONS; an overflow is active while they differ.
    pub overflow: bool,
}

layout!(EventqIndex {
    INDEX_OFFSET, INDEX_BITS: 19, 0;
    OVERFLOW_OFFSET, OVERFLOW_BITS: 31, 31;
});
