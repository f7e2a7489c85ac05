//! What an SMMU implements, and the ID registers that say so.

/// Which of the choices of the architecture an instance makes. Start from a preset and change fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Stage 1 is implemented (IDR0.S1P).
    pub stage1: bool,
    /// Stage 2 is implemented (IDR0.S2P).
    pub stage2: bool,
    /// Coherent access to tables and queues (IDR0.COHACC).
    pub coherent: bool,
    /// Broadcast TLB maintenance (IDR0.BTM).
    pub btm: bool,
    /// Hardware flag updates (IDR0.HTTU): 0 none, 1 access flag, 2 access flag and dirty state.
    pub httu: u8,
    /// EL2 stream worlds (IDR0.Hyp).
    pub hyp: bool,
    /// ATS (IDR0.ATS).
    pub ats: bool,
    /// Split-stage ATS is *not* there (IDR0.NS1ATS).
    pub no_split_ats: bool,
    /// 16-bit ASIDs (IDR0.ASID16).
    pub asid16: bool,
    /// MSIs (IDR0.MSI).
    pub msi: bool,
    /// Wake-up events (IDR0.SEV).
    pub sev: bool,
    /// PRI (IDR0.PRI).
    pub pri: bool,
    /// 16-bit VMIDs (IDR0.VMID16).
    pub vmid16: bool,
    /// Two-level CD tables (IDR0.CD2L).
    pub cd2l: bool,
    /// Configuration errors of ATS and PRI can be recorded (IDR0.ATSRECERR).
    pub ats_record_errors: bool,
    /// IDR0.STALL_MODEL: 0 both, 1 terminate only, 2 stall only.
    pub stall_model: u8,
    /// Termination is by abort only (IDR0.TERM_MODEL).
    pub abort_only: bool,
    /// Two-level Stream tables (IDR0.ST_LEVEL).
    pub two_level_streams: bool,
    /// StreamID bits (IDR1.SIDSIZE).
    pub sid_bits: u8,
    /// SubstreamID bits (IDR1.SSIDSIZE), 0 to 20.
    pub ssid_bits: u8,
    /// log2 of the largest command queue (IDR1.CMDQS).
    pub cmdq_log2: u8,
    /// log2 of the largest event queue (IDR1.EVENTQS).
    pub eventq_log2: u8,
    /// log2 of the largest PRI queue (IDR1.PRIQS).
    pub priq_log2: u8,
    /// Permission attribute overrides (IDR1.ATTR_PERMS_OVR).
    pub perms_override: bool,
    /// Hierarchical attribute disable (IDR3.HAD).
    pub had: bool,
    /// Two execute-never bits at stage 2 (IDR3.XNX).
    pub xnx: bool,
    /// PASIDs on automatic page responses (IDR3.PPS).
    pub pps: bool,
    /// Small translation tables (IDR3.STT).
    pub stt: bool,
    /// Range invalidation and level hint (IDR3.RIL).
    pub ril: bool,
    /// IDR3.BBML, 0 to 2.
    pub bbml: u8,
    /// Output address bits (IDR5.OAS): 32, 36, 40, 42, 44, 48 or 52.
    pub oas: u8,
    /// 4 KiB granule.
    pub gran4k: bool,
    /// 16 KiB granule.
    pub gran16k: bool,
    /// 64 KiB granule.
    pub gran64k: bool,
    /// 52-bit addresses with the small granules (IDR5.DS).
    pub ds: bool,
    /// 52-bit virtual addresses (IDR5.VAX = 1).
    pub va52: bool,
    /// Stalled transactions that can be outstanding (IDR5.STALL_MAX).
    pub stall_max: u16,
    /// Minor architecture revision (AIDR).
    pub minor: u8,
    /// Each register access lets the device work first; without it only [`super::Smmu::step`] does.
    pub step_on_access: bool,
}

impl Config {
    /// What `-M virt,iommu=smmuv3` of QEMU 11.1 reports: both stages, no PASIDs, no ATS, no stall, wired
    /// interrupts only.
    #[must_use]
    pub fn qemu() -> Self {
        Self {
            stage1: true,
            stage2: true,
            coherent: true,
            btm: false,
            httu: 0,
            hyp: false,
            ats: false,
            no_split_ats: false,
            asid16: true,
            msi: false,
            sev: false,
            pri: false,
            vmid16: true,
            cd2l: false,
            ats_record_errors: false,
            stall_model: 1,
            abort_only: true,
            two_level_streams: true,
            sid_bits: 16,
            ssid_bits: 0,
            cmdq_log2: 19,
            eventq_log2: 19,
            priq_log2: 0,
            perms_override: false,
            had: true,
            xnx: true,
            pps: false,
            stt: false,
            ril: true,
            bbml: 2,
            oas: 44,
            gran4k: true,
            gran16k: true,
            gran64k: true,
            ds: false,
            va52: false,
            stall_max: 0,
            minor: 1,
            step_on_access: true,
        }
    }

    /// Everything a driver can meet: 20-bit PASIDs, ATS, PRI, stalls, flag updates, MSIs, events, broadcasts.
    #[must_use]
    pub fn full() -> Self {
        Self {
            btm: true,
            httu: 2,
            hyp: true,
            ats: true,
            msi: true,
            sev: true,
            pri: true,
            cd2l: true,
            ats_record_errors: true,
            stall_model: 0,
            abort_only: false,
            ssid_bits: 20,
            priq_log2: 19,
            perms_override: true,
            pps: true,
            stt: true,
            oas: 48,
            stall_max: 32,
            minor: 3,
            ..Self::qemu()
        }
    }

    /// The least that is legal in most respects: 8-bit ASIDs and VMIDs, one-level tables, no range invalidation,
    /// no coherency.
    #[must_use]
    pub fn small() -> Self {
        Self {
            coherent: false,
            asid16: false,
            vmid16: false,
            two_level_streams: false,
            sid_bits: 8,
            cmdq_log2: 8,
            eventq_log2: 7,
            had: false,
            xnx: false,
            ril: false,
            bbml: 0,
            oas: 40,
            gran16k: false,
            gran64k: false,
            ..Self::qemu()
        }
    }

    /// SMMU_IDR0.
    #[must_use]
    pub fn idr0(&self) -> u32 {
        bit(self.stage2, 0)
            | bit(self.stage1, 1)
            | 0b10 << 2
            | bit(self.coherent, 4)
            | bit(self.btm, 5)
            | u32::from(self.httu) << 6
            | bit(self.hyp, 9)
            | bit(self.ats, 10)
            | bit(self.no_split_ats, 11)
            | bit(self.asid16, 12)
            | bit(self.msi, 13)
            | bit(self.sev, 14)
            | bit(self.pri, 16)
            | bit(self.vmid16, 18)
            | bit(self.cd2l, 19)
            | 0b10 << 21
            | bit(self.ats_record_errors, 23)
            | u32::from(self.stall_model) << 24
            | bit(self.abort_only, 26)
            | bit(self.two_level_streams, 27)
    }

    /// SMMU_IDR1.
    #[must_use]
    pub fn idr1(&self) -> u32 {
        u32::from(self.sid_bits)
            | u32::from(self.ssid_bits) << 6
            | u32::from(self.priq_log2) << 11
            | u32::from(self.eventq_log2) << 16
            | u32::from(self.cmdq_log2) << 21
            | bit(self.perms_override, 26)
    }

    /// SMMU_IDR3.
    #[must_use]
    pub fn idr3(&self) -> u32 {
        bit(self.had, 2)
            | bit(self.xnx, 4)
            | bit(self.pps, 5)
            | bit(self.stt, 9)
            | bit(self.ril, 10)
            | u32::from(self.bbml) << 11
    }

    /// SMMU_IDR5.
    #[must_use]
    pub fn idr5(&self) -> u32 {
        let oas = SIZES.iter().position(|&bits| bits == self.oas).unwrap_or(0) as u32;
        oas | bit(self.gran4k, 4)
            | bit(self.gran16k, 5)
            | bit(self.gran64k, 6)
            | bit(self.ds, 7)
            | bit(self.va52, 10)
            | u32::from(self.stall_max) << 16
    }

    /// Whether a granule is implemented.
    #[must_use]
    pub(super) fn has(&self, granule: super::walk::Granule) -> bool {
        match granule {
            super::walk::Granule::K4 => self.gran4k,
            super::walk::Granule::K16 => self.gran16k,
            super::walk::Granule::K64 => self.gran64k,
        }
    }

    /// The address size that an IPS/PS field selects, capped to OAS.
    pub(super) fn address_bits(&self, field: u64) -> u8 {
        SIZES.get(field as usize).copied().unwrap_or(52).min(self.oas)
    }
}

const SIZES: [u8; 7] = [32, 36, 40, 42, 44, 48, 52];

fn bit(set: bool, at: u32) -> u32 {
    u32::from(set) << at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_qemu_preset_gives_the_id_registers_measured_on_qemu_11_1() {
        let config = Config::qemu();
        assert_eq!(config.idr0(), 0x0d44_101b);
        assert_eq!(config.idr1(), 0x0273_0010);
        assert_eq!(config.idr3(), 0x1414);
        assert_eq!(config.idr5(), 0x74);
        assert_eq!(Config { stage2: false, ..Config::qemu() }.idr0(), 0x0d44_101a);
    }
}
