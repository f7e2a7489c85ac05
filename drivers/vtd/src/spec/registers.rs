//! Registers (section 11.4).

use super::at;
use bitfield_struct::bitfield;
use portcullis_hal::wait::Register;

macro_rules! registers {
    ($($(#[$doc:meta])* $const:ident = $name:literal @ $offset:literal;)*) => {
        $($(#[$doc])* pub const $const: Register = Register { name: $name, offset: $offset };)*
    };
}

registers! {
    /// Version; 32 bits (11.4.1).
    VER = "VER_REG" @ 0x00;
    /// Capabilities; 64 bits (11.4.2).
    CAP = "CAP_REG" @ 0x08;
    /// Extended capabilities; 64 bits (11.4.3).
    ECAP = "ECAP_REG" @ 0x10;
    /// Global command; 32 bits, write-only (11.4.4.1).
    GCMD = "GCMD_REG" @ 0x18;
    /// Global status; 32 bits (11.4.4.2).
    GSTS = "GSTS_REG" @ 0x1c;
    /// Root table address; 64 bits (11.4.5).
    RTADDR = "RTADDR_REG" @ 0x20;
    /// Fault status; 32 bits (11.4.7.1).
    FSTS = "FSTS_REG" @ 0x34;
    /// Fault event control; 32 bits (11.4.7.2).
    FECTL = "FECTL_REG" @ 0x38;
    /// Fault event data; 32 bits (11.4.7.3).
    FEDATA = "FEDATA_REG" @ 0x3c;
    /// Fault event address; 32 bits (11.4.7.4).
    FEADDR = "FEADDR_REG" @ 0x40;
    /// Fault event upper address; 32 bits (11.4.7.5).
    FEUADDR = "FEUADDR_REG" @ 0x44;
    /// Protected memory enable; 32 bits (11.4.8.1).
    PMEN = "PMEN_REG" @ 0x64;
    /// Invalidation queue head; 64 bits (11.4.9.1).
    IQH = "IQH_REG" @ 0x80;
    /// Invalidation queue tail; 64 bits (11.4.9.2).
    IQT = "IQT_REG" @ 0x88;
    /// Invalidation queue address; 64 bits (11.4.9.3).
    IQA = "IQA_REG" @ 0x90;
    /// Invalidation completion status; 32 bits (11.4.9.4).
    ICS = "ICS_REG" @ 0x9c;
    /// Invalidation event control; 32 bits (11.4.9.5).
    IECTL = "IECTL_REG" @ 0xa0;
    /// Invalidation queue error record; 64 bits (11.4.9.9). Absent, and then reserved, in older versions.
    IQERCD = "IQERCD_REG" @ 0xb0;
    /// Page request queue head; 64 bits (11.4.11.1).
    PQH = "PQH_REG" @ 0xc0;
    /// Page request queue tail; 64 bits (11.4.11.2).
    PQT = "PQT_REG" @ 0xc8;
    /// Page request queue address; 64 bits (11.4.11.3).
    PQA = "PQA_REG" @ 0xd0;
    /// Page request status; 32 bits (11.4.11.4).
    PRS = "PRS_REG" @ 0xdc;
    /// Page request event control; 32 bits (11.4.11.5).
    PECTL = "PECTL_REG" @ 0xe0;
    /// Page request event data; 32 bits (11.4.11.6).
    PEDATA = "PEDATA_REG" @ 0xe4;
    /// Page request event address; 32 bits (11.4.11.7).
    PEADDR = "PEADDR_REG" @ 0xe8;
    /// Page request event upper address; 32 bits (11.4.11.8).
    PEUADDR = "PEUADDR_REG" @ 0xec;
}

/// The bytes of one fault recording register (11.4.7.6).
pub const FAULT_RECORD_BYTES: usize = 16;

/// Capabilities, CAP_REG (11.4.2).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Cap {
    /// Bits 2:0: ND, domain ids have 4 + 2 * ND bits; 7 is reserved.
    #[bits(3)]
    pub nd: u8,
    /// Bit 3: AFL, advanced fault logging.
    pub afl: bool,
    /// Bit 4: RWBF, the write buffer has to be flushed by software.
    pub rwbf: bool,
    /// Bit 5: PLMR, there is a protected low-memory region.
    pub plmr: bool,
    /// Bit 6: PHMR, there is a protected high-memory region.
    pub phmr: bool,
    /// Bit 7: CM, caching mode: entries that are not present may be cached.
    pub cm: bool,
    /// Bits 12:8: SAGAW, second-stage widths: bit 1 is 39 bits (3 levels), bit 2 is 48 (4), bit 3 is 57 (5).
    #[bits(5)]
    pub sagaw: u8,
    #[bits(3)]
    __: u8,
    /// Bits 21:16: MGAW, the width of second-stage input addresses less one.
    #[bits(6)]
    pub mgaw: u8,
    /// Bit 22: ZLR, zero-length reads of write-only pages are allowed.
    pub zlr: bool,
    __: bool,
    /// Bits 33:24: FRO, the offset of the fault recording registers in units of 16 bytes.
    #[bits(10)]
    pub fro: u16,
    /// Bits 37:34: SSLPS, second-stage large pages: bit 0 is 2 MiB, bit 1 is 1 GiB.
    #[bits(4)]
    pub sslps: u8,
    __: bool,
    /// Bit 39: PSI, page-selective invalidation of second-stage entries.
    pub psi: bool,
    /// Bits 47:40: NFR, the number of fault recording registers less one.
    #[bits(8)]
    pub nfr: u8,
    /// Bits 53:48: MAMV, the largest address mask of a page-selective second-stage invalidation.
    #[bits(6)]
    pub mamv: u8,
    /// Bit 54: DWD, writes can be drained.
    pub dwd: bool,
    /// Bit 55: DRD, reads can be drained.
    pub drd: bool,
    /// Bit 56: FS1GP, first-stage pages of 1 GiB.
    pub fs1gp: bool,
    #[bits(2)]
    __: u8,
    /// Bit 59: PI, posted interrupts.
    pub pi: bool,
    /// Bit 60: FS5LP, five-level first-stage tables.
    pub fs5lp: bool,
    /// Bit 61: ECMDS, enhanced commands.
    pub ecmds: bool,
    /// Bit 62: ESIRTPS, setting the interrupt-remapping table pointer invalidates.
    pub esirtps: bool,
    /// Bit 63: ESRTPS, setting the root table pointer invalidates everything derived from the old one.
    pub esrtps: bool,
}

const _: () = {
    at(Cap::ND_OFFSET, Cap::ND_BITS, 2, 0);
    at(Cap::AFL_OFFSET, Cap::AFL_BITS, 3, 3);
    at(Cap::RWBF_OFFSET, Cap::RWBF_BITS, 4, 4);
    at(Cap::PLMR_OFFSET, Cap::PLMR_BITS, 5, 5);
    at(Cap::PHMR_OFFSET, Cap::PHMR_BITS, 6, 6);
    at(Cap::CM_OFFSET, Cap::CM_BITS, 7, 7);
    at(Cap::SAGAW_OFFSET, Cap::SAGAW_BITS, 12, 8);
    at(Cap::MGAW_OFFSET, Cap::MGAW_BITS, 21, 16);
    at(Cap::ZLR_OFFSET, Cap::ZLR_BITS, 22, 22);
    at(Cap::FRO_OFFSET, Cap::FRO_BITS, 33, 24);
    at(Cap::SSLPS_OFFSET, Cap::SSLPS_BITS, 37, 34);
    at(Cap::PSI_OFFSET, Cap::PSI_BITS, 39, 39);
    at(Cap::NFR_OFFSET, Cap::NFR_BITS, 47, 40);
    at(Cap::MAMV_OFFSET, Cap::MAMV_BITS, 53, 48);
    at(Cap::DWD_OFFSET, Cap::DWD_BITS, 54, 54);
    at(Cap::DRD_OFFSET, Cap::DRD_BITS, 55, 55);
    at(Cap::FS1GP_OFFSET, Cap::FS1GP_BITS, 56, 56);
    at(Cap::PI_OFFSET, Cap::PI_BITS, 59, 59);
    at(Cap::FS5LP_OFFSET, Cap::FS5LP_BITS, 60, 60);
    at(Cap::ECMDS_OFFSET, Cap::ECMDS_BITS, 61, 61);
    at(Cap::ESIRTPS_OFFSET, Cap::ESIRTPS_BITS, 62, 62);
    at(Cap::ESRTPS_OFFSET, Cap::ESRTPS_BITS, 63, 63);
};

/// Extended capabilities, ECAP_REG (11.4.3).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Ecap {
    /// Bit 0: C, reads of root, context and PASID tables snoop the CPU's caches. Reads and writes of the
    /// invalidation queue and its status words always do.
    pub c: bool,
    /// Bit 1: QI, queued invalidation.
    pub qi: bool,
    /// Bit 2: DT, device TLBs.
    pub dt: bool,
    /// Bit 3: IR, interrupt remapping.
    pub ir: bool,
    /// Bit 4: EIM, extended interrupt mode (x2APIC ids).
    pub eim: bool,
    __: bool,
    /// Bit 6: PT, pass-through.
    pub pt: bool,
    /// Bit 7: SC, snoop control.
    pub sc: bool,
    /// Bits 17:8: IRO, the offset of the IOTLB registers in units of 16 bytes.
    #[bits(10)]
    pub iro: u16,
    #[bits(2)]
    __: u8,
    /// Bits 23:20: MHMV, the largest handle mask of an interrupt-entry-cache invalidation.
    #[bits(4)]
    pub mhmv: u8,
    __: bool,
    /// Bit 25: MTS, memory types in tables.
    pub mts: bool,
    /// Bit 26: NEST, nested translation.
    pub nest: bool,
    #[bits(2)]
    __: u8,
    /// Bit 29: PRS, page requests.
    pub prs: bool,
    /// Bit 30: ERS, execute requests.
    pub ers: bool,
    /// Bit 31: SRS, supervisor requests.
    pub srs: bool,
    __: bool,
    /// Bit 33: NWFS, requests that ask for no write permission are understood.
    pub nwfs: bool,
    /// Bit 34: EAFS, extended accessed flag.
    pub eafs: bool,
    /// Bits 39:35: PSS, the width of PASIDs less one.
    #[bits(5)]
    pub pss: u8,
    /// Bit 40: PASID, requests with PASID.
    pub pasid: bool,
    /// Bit 41: DIT, device-TLB invalidations are throttled.
    pub dit: bool,
    /// Bit 42: PDS, page requests can be drained.
    pub pds: bool,
    /// Bit 43: SMTS, scalable mode.
    pub smts: bool,
    /// Bit 44: VCS, virtual commands.
    pub vcs: bool,
    /// Bit 45: SSADS, second-stage accessed and dirty bits.
    pub ssads: bool,
    /// Bit 46: SSTS, second-stage translation in scalable mode.
    pub ssts: bool,
    /// Bit 47: FSTS, first-stage translation in scalable mode.
    pub fsts: bool,
    /// Bit 48: SMPWC, page walks from PASID entries can snoop the CPU's caches.
    pub smpwc: bool,
    /// Bit 49: RPS, the PASID of requests without one (RID_PASID) can be chosen.
    pub rps: bool,
    #[bits(2)]
    __: u8,
    /// Bit 52: ADMS, abort-DMA mode.
    pub adms: bool,
    /// Bit 53: RPRIVS, the privilege of requests without PASID (RID_PRIV) can be chosen.
    pub rprivs: bool,
    #[bits(10)]
    __: u16,
}

const _: () = {
    at(Ecap::C_OFFSET, Ecap::C_BITS, 0, 0);
    at(Ecap::QI_OFFSET, Ecap::QI_BITS, 1, 1);
    at(Ecap::DT_OFFSET, Ecap::DT_BITS, 2, 2);
    at(Ecap::IR_OFFSET, Ecap::IR_BITS, 3, 3);
    at(Ecap::EIM_OFFSET, Ecap::EIM_BITS, 4, 4);
    at(Ecap::PT_OFFSET, Ecap::PT_BITS, 6, 6);
    at(Ecap::SC_OFFSET, Ecap::SC_BITS, 7, 7);
    at(Ecap::IRO_OFFSET, Ecap::IRO_BITS, 17, 8);
    at(Ecap::MHMV_OFFSET, Ecap::MHMV_BITS, 23, 20);
    at(Ecap::MTS_OFFSET, Ecap::MTS_BITS, 25, 25);
    at(Ecap::NEST_OFFSET, Ecap::NEST_BITS, 26, 26);
    at(Ecap::PRS_OFFSET, Ecap::PRS_BITS, 29, 29);
    at(Ecap::ERS_OFFSET, Ecap::ERS_BITS, 30, 30);
    at(Ecap::SRS_OFFSET, Ecap::SRS_BITS, 31, 31);
    at(Ecap::NWFS_OFFSET, Ecap::NWFS_BITS, 33, 33);
    at(Ecap::EAFS_OFFSET, Ecap::EAFS_BITS, 34, 34);
    at(Ecap::PSS_OFFSET, Ecap::PSS_BITS, 39, 35);
    at(Ecap::PASID_OFFSET, Ecap::PASID_BITS, 40, 40);
    at(Ecap::DIT_OFFSET, Ecap::DIT_BITS, 41, 41);
    at(Ecap::PDS_OFFSET, Ecap::PDS_BITS, 42, 42);
    at(Ecap::SMTS_OFFSET, Ecap::SMTS_BITS, 43, 43);
    at(Ecap::VCS_OFFSET, Ecap::VCS_BITS, 44, 44);
    at(Ecap::SSADS_OFFSET, Ecap::SSADS_BITS, 45, 45);
    at(Ecap::SSTS_OFFSET, Ecap::SSTS_BITS, 46, 46);
    at(Ecap::FSTS_OFFSET, Ecap::FSTS_BITS, 47, 47);
    at(Ecap::SMPWC_OFFSET, Ecap::SMPWC_BITS, 48, 48);
    at(Ecap::RPS_OFFSET, Ecap::RPS_BITS, 49, 49);
    at(Ecap::ADMS_OFFSET, Ecap::ADMS_BITS, 52, 52);
    at(Ecap::RPRIVS_OFFSET, Ecap::RPRIVS_BITS, 53, 53);
};

/// Global command and status, GCMD_REG and GSTS_REG (11.4.4): the same bits, asked for in one and reported in the
/// other.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Global {
    #[bits(23)]
    __: u32,
    /// Bit 23: CFI / CFIS, compatibility-format interrupts. A level.
    pub cfi: bool,
    /// Bit 24: SIRTP / IRTPS, set the interrupt-remapping table pointer. One shot.
    pub sirtp: bool,
    /// Bit 25: IRE / IRES, interrupt remapping. A level.
    pub ire: bool,
    /// Bit 26: QIE / QIES, queued invalidation. A level.
    pub qie: bool,
    /// Bit 27: WBF / WBFS, flush the write buffer. One shot; the status bit is set while it lasts.
    pub wbf: bool,
    /// Bit 28: EAFL / AFLS, advanced fault logging. A level.
    pub eafl: bool,
    /// Bit 29: SFL / FLS, set the fault log. One shot.
    pub sfl: bool,
    /// Bit 30: SRTP / RTPS, set the root table pointer. One shot.
    pub srtp: bool,
    /// Bit 31: TE / TES, translation. A level.
    pub te: bool,
}

impl Global {
    /// The bits that are levels: each write of GCMD_REG has to carry those that are on.
    pub const LEVELS: u32 =
        Self::new().with_te(true).with_eafl(true).with_qie(true).with_ire(true).with_cfi(true).into_bits();
}

const _: () = {
    at(Global::CFI_OFFSET, Global::CFI_BITS, 23, 23);
    at(Global::SIRTP_OFFSET, Global::SIRTP_BITS, 24, 24);
    at(Global::IRE_OFFSET, Global::IRE_BITS, 25, 25);
    at(Global::QIE_OFFSET, Global::QIE_BITS, 26, 26);
    at(Global::WBF_OFFSET, Global::WBF_BITS, 27, 27);
    at(Global::EAFL_OFFSET, Global::EAFL_BITS, 28, 28);
    at(Global::SFL_OFFSET, Global::SFL_BITS, 29, 29);
    at(Global::SRTP_OFFSET, Global::SRTP_BITS, 30, 30);
    at(Global::TE_OFFSET, Global::TE_BITS, 31, 31);
};

encoding! {
    /// What the tables at the root table address are: RTADDR_REG.TTM.
    TableMode {
        /// Legacy mode.
        LEGACY = 0b00,
        /// Scalable mode.
        SCALABLE = 0b01,
        /// Abort-DMA mode.
        ABORT_DMA = 0b11,
    }
}

/// Root table address, RTADDR_REG (11.4.5).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct RootAddress {
    #[bits(10)]
    __: u16,
    /// Bits 11:10: TTM, the mode of the tables.
    #[bits(2)]
    pub ttm: TableMode,
    /// Bits 63:12: RTA, the frame number of the root table.
    #[bits(52)]
    pub rta: u64,
}

const _: () = {
    at(RootAddress::TTM_OFFSET, RootAddress::TTM_BITS, 11, 10);
    at(RootAddress::RTA_OFFSET, RootAddress::RTA_BITS, 63, 12);
};

/// Fault status, FSTS_REG (11.4.7.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct FaultStatus {
    /// Bit 0: PFO, a fault was lost because no recording register was free. Write 1 to clear.
    pub pfo: bool,
    /// Bit 1: PPF, a recording register holds a fault; follows their F bits.
    pub ppf: bool,
    /// Bit 2: AFO, the advanced fault log overflowed. Write 1 to clear.
    pub afo: bool,
    /// Bit 3: APF, the advanced fault log holds a fault.
    pub apf: bool,
    /// Bit 4: IQE, the invalidation queue stopped at a descriptor. Write 1 to clear.
    pub iqe: bool,
    /// Bit 5: ICE, a device answered an invalidation wrongly. Write 1 to clear.
    pub ice: bool,
    /// Bit 6: ITE, a device did not answer an invalidation in time. Write 1 to clear.
    pub ite: bool,
    __: bool,
    /// Bits 15:8: FRI, the recording register of the first pending fault.
    pub fri: u8,
    __: u16,
}

const _: () = {
    at(FaultStatus::PFO_OFFSET, FaultStatus::PFO_BITS, 0, 0);
    at(FaultStatus::PPF_OFFSET, FaultStatus::PPF_BITS, 1, 1);
    at(FaultStatus::AFO_OFFSET, FaultStatus::AFO_BITS, 2, 2);
    at(FaultStatus::APF_OFFSET, FaultStatus::APF_BITS, 3, 3);
    at(FaultStatus::IQE_OFFSET, FaultStatus::IQE_BITS, 4, 4);
    at(FaultStatus::ICE_OFFSET, FaultStatus::ICE_BITS, 5, 5);
    at(FaultStatus::ITE_OFFSET, FaultStatus::ITE_BITS, 6, 6);
    at(FaultStatus::FRI_OFFSET, FaultStatus::FRI_BITS, 15, 8);
};

/// Invalidation queue errors, IQERCD_REG (11.4.9.9).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct QueueErrors {
    /// Bits 3:0: IQEI, why the queue stopped; of use while IQE is set.
    #[bits(4)]
    pub iqei: u8,
    #[bits(28)]
    __: u32,
    /// Bits 47:32: ITESID, the device that did not answer in time; of use while ITE is set.
    pub itesid: u16,
    /// Bits 63:48: ICESID, the device that answered wrongly; of use while ICE is set.
    pub icesid: u16,
}

const _: () = {
    at(QueueErrors::IQEI_OFFSET, QueueErrors::IQEI_BITS, 3, 0);
    at(QueueErrors::ITESID_OFFSET, QueueErrors::ITESID_BITS, 47, 32);
    at(QueueErrors::ICESID_OFFSET, QueueErrors::ICESID_BITS, 63, 48);
};

/// Event control, FECTL_REG, IECTL_REG and PECTL_REG (11.4.7.2, 11.4.9.5, 11.4.11.5).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct EventControl {
    #[bits(30)]
    __: u32,
    /// Bit 30: IP, an interrupt is pending because it is masked.
    pub ip: bool,
    /// Bit 31: IM, the interrupt is masked.
    pub im: bool,
}

const _: () = {
    at(EventControl::IP_OFFSET, EventControl::IP_BITS, 30, 30);
    at(EventControl::IM_OFFSET, EventControl::IM_BITS, 31, 31);
};

/// Protected memory enable, PMEN_REG (11.4.8.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ProtectedMemory {
    /// Bit 0: PRS, protection is in effect.
    pub prs: bool,
    #[bits(30)]
    __: u32,
    /// Bit 31: EPM, enable protection.
    pub epm: bool,
}

const _: () = {
    at(ProtectedMemory::PRS_OFFSET, ProtectedMemory::PRS_BITS, 0, 0);
    at(ProtectedMemory::EPM_OFFSET, ProtectedMemory::EPM_BITS, 31, 31);
};

/// Invalidation queue address, IQA_REG (11.4.9.3).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct QueueAddress {
    /// Bits 2:0: QS, the queue has 2^QS frames of 4 KiB.
    #[bits(3)]
    pub qs: u8,
    __: u8,
    /// Bit 11: DW, descriptors have 256 bits instead of 128.
    pub dw: bool,
    /// Bits 63:12: IQA, the frame number of the queue.
    #[bits(52)]
    pub iqa: u64,
}

const _: () = {
    at(QueueAddress::QS_OFFSET, QueueAddress::QS_BITS, 2, 0);
    at(QueueAddress::DW_OFFSET, QueueAddress::DW_BITS, 11, 11);
    at(QueueAddress::IQA_OFFSET, QueueAddress::IQA_BITS, 63, 12);
};

/// The low half of a fault recording register, FRCD_REG bits 63:0 (11.4.7.6).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct FaultInfo {
    #[bits(12)]
    __: u16,
    /// Bits 63:12: FI, the page of the faulting address.
    #[bits(52)]
    pub fi: u64,
}

const _: () = at(FaultInfo::FI_OFFSET, FaultInfo::FI_BITS, 63, 12);

/// The high half of a fault recording register, FRCD_REG bits 127:64 (11.4.7.6).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct FaultSource {
    /// Bits 15:0 (79:64): SID, the source-id of the requester.
    pub sid: u16,
    #[bits(12)]
    __: u16,
    /// Bit 28 (92): T2, the low bit of the request's type.
    pub t2: bool,
    /// Bit 29 (93): PRIV, a request with privilege; valid with PP.
    pub privileged: bool,
    /// Bit 30 (94): EXE, a request to execute; valid with PP.
    pub execute: bool,
    /// Bit 31 (95): PP, the request had a PASID.
    pub pp: bool,
    /// Bits 39:32 (103:96): FR, the reason.
    pub fr: u8,
    /// Bits 59:40 (123:104): PV, the PASID.
    #[bits(20)]
    pub pv: u32,
    /// Bits 61:60 (125:124): AT, the address type of the request.
    #[bits(2)]
    pub at: u8,
    /// Bit 62 (126): T1, the high bit of the request's type; set for reads.
    pub t1: bool,
    /// Bit 63 (127): F, the register holds a fault. Write 1 to clear.
    pub f: bool,
}

const _: () = {
    at(FaultSource::SID_OFFSET, FaultSource::SID_BITS, 15, 0);
    at(FaultSource::T2_OFFSET, FaultSource::T2_BITS, 28, 28);
    at(FaultSource::PRIVILEGED_OFFSET, FaultSource::PRIVILEGED_BITS, 29, 29);
    at(FaultSource::EXECUTE_OFFSET, FaultSource::EXECUTE_BITS, 30, 30);
    at(FaultSource::PP_OFFSET, FaultSource::PP_BITS, 31, 31);
    at(FaultSource::FR_OFFSET, FaultSource::FR_BITS, 39, 32);
    at(FaultSource::PV_OFFSET, FaultSource::PV_BITS, 59, 40);
    at(FaultSource::AT_OFFSET, FaultSource::AT_BITS, 61, 60);
    at(FaultSource::T1_OFFSET, FaultSource::T1_BITS, 62, 62);
    at(FaultSource::F_OFFSET, FaultSource::F_BITS, 63, 63);
};
