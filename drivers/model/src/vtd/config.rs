//! What a modelled unit can do: the capability registers and the freedoms of the implementation.

/// One-bit capabilities of CAP (specification 11.4.2) and ECAP (11.4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// CAP.RWBF: stores wait in a write buffer until it is flushed.
    WriteBufferFlush,
    /// CAP.PLMR: protected low-memory region.
    ProtectedLow,
    /// CAP.PHMR: protected high-memory region.
    ProtectedHigh,
    /// CAP.CM: entries that are not present or faulty may be cached.
    CachingMode,
    /// CAP.PSI: page-selective IOTLB invalidation.
    PageSelective,
    /// CAP.FS1GP: 1 GiB pages in first-stage tables.
    FirstStageGib,
    /// CAP.FS5LP: 5-level first-stage tables.
    FirstStage5Level,
    /// CAP.ESRTPS: setting the root-table pointer invalidates all caches.
    EnhancedSetRoot,
    /// ECAP.C: root, context and PASID structures are read coherently.
    Coherent,
    /// ECAP.QI: queued invalidation.
    QueuedInvalidation,
    /// ECAP.DT: device TLBs.
    DeviceTlb,
    /// ECAP.IR: interrupt remapping (accepted, not modelled).
    InterruptRemapping,
    /// ECAP.PT: pass-through.
    PassThrough,
    /// ECAP.SC: snoop control.
    SnoopControl,
    /// ECAP.MTS: memory types.
    MemoryTypes,
    /// ECAP.NEST: nested translation.
    Nested,
    /// ECAP.PRS: page requests.
    PageRequests,
    /// ECAP.ERS: execute requests.
    ExecuteRequests,
    /// ECAP.SRS: supervisor requests.
    SupervisorRequests,
    /// ECAP.EAFS: extended accessed flag.
    ExtendedAccessed,
    /// ECAP.PASID: requests with PASID.
    Pasid,
    /// ECAP.DIT: device-TLB invalidation throttle.
    DeviceTlbThrottle,
    /// ECAP.PDS: page-request drain.
    PageRequestDrain,
    /// ECAP.SMTS: scalable mode.
    ScalableMode,
    /// ECAP.SSADS: accessed and dirty flags in second-stage tables.
    SecondStageDirty,
    /// ECAP.SSTS: second-stage translation.
    SecondStage,
    /// ECAP.FSTS: first-stage translation.
    FirstStage,
    /// ECAP.SMPWCS: page walks can be coherent.
    PageWalkCoherent,
    /// ECAP.RPS: RID_PASID and RID_PRIV in context entries.
    RidPasid,
}

impl Feature {
    /// The bit, counted through CAP (0 to 63) and ECAP (64 to 127).
    const fn bit(self) -> u32 {
        match self {
            Self::WriteBufferFlush => 4,
            Self::ProtectedLow => 5,
            Self::ProtectedHigh => 6,
            Self::CachingMode => 7,
            Self::PageSelective => 39,
            Self::FirstStageGib => 56,
            Self::FirstStage5Level => 60,
            Self::EnhancedSetRoot => 63,
            Self::Coherent => 64,
            Self::QueuedInvalidation => 64 + 1,
            Self::DeviceTlb => 64 + 2,
            Self::InterruptRemapping => 64 + 3,
            Self::PassThrough => 64 + 6,
            Self::SnoopControl => 64 + 7,
            Self::MemoryTypes => 64 + 25,
            Self::Nested => 64 + 26,
            Self::PageRequests => 64 + 29,
            Self::ExecuteRequests => 64 + 30,
            Self::SupervisorRequests => 64 + 31,
            Self::ExtendedAccessed => 64 + 34,
            Self::Pasid => 64 + 40,
            Self::DeviceTlbThrottle => 64 + 41,
            Self::PageRequestDrain => 64 + 42,
            Self::ScalableMode => 64 + 43,
            Self::SecondStageDirty => 64 + 45,
            Self::SecondStage => 64 + 46,
            Self::FirstStage => 64 + 47,
            Self::PageWalkCoherent => 64 + 48,
            Self::RidPasid => 64 + 49,
        }
    }
}

/// How hardware may mix the 128-bit quanta of one entry fetched at different times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tearing {
    /// Any order and any time, except that a present entry is not completed with quanta from before a moment in
    /// which it was not present. Without that exception fields could not be published by a present bit stored
    /// last, which the architecture relies on with CM=0.
    WhilePresent,
    /// Any order and any time: for drivers that promise to synchronise between the fields and the present bit.
    Unrestricted,
}

/// A unit to model. Start from one of the presets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// CAP_REG.
    pub cap: u64,
    /// ECAP_REG.
    pub ecap: u64,
    /// VER_REG: major in bits 7:4, minor in 3:0.
    pub version: u32,
    /// Host address width in bits: address bits above it are reserved in every entry.
    pub host_width: u32,
    /// How entries may tear.
    pub tearing: Tearing,
}

const FIRST_STAGE_CAP: u64 = 0x81d2_008c_222f_0606;
const SECOND_STAGE_CAP: u64 = 0x80d2_008c_222f_0606;

impl Config {
    /// Everything: three to five levels in both stages, nesting, PASIDs, ATS, page requests, coherent, 8 fault
    /// records.
    #[must_use]
    pub const fn full() -> Self {
        // ND=6, SAGAW=39|48|57, MGAW=57, ZLR, FRO=0x40 (0x400), SSLPS=2M|1G, PSI, NFR=7, MAMV=20, DRD|DWD.
        let cap = 6 | 0b01110 << 8 | 56 << 16 | 1 << 22 | 0x40 << 24 | 3 << 34 | 7 << 40 | 20 << 48 | 3 << 54;
        // IRO=0x50 (0x500), MHMV=15, PSS=19.
        let ecap = 0x50 << 8 | 15 << 20 | 19 << 35;
        let mut config = Self { cap, ecap, version: 0x60, host_width: 52, tearing: Tearing::WhilePresent };
        let features = [
            Feature::PageSelective,
            Feature::FirstStageGib,
            Feature::FirstStage5Level,
            Feature::EnhancedSetRoot,
            Feature::Coherent,
            Feature::QueuedInvalidation,
            Feature::DeviceTlb,
            Feature::PassThrough,
            Feature::SnoopControl,
            Feature::Nested,
            Feature::PageRequests,
            Feature::ExecuteRequests,
            Feature::SupervisorRequests,
            Feature::ExtendedAccessed,
            Feature::Pasid,
            Feature::DeviceTlbThrottle,
            Feature::PageRequestDrain,
            Feature::ScalableMode,
            Feature::SecondStageDirty,
            Feature::SecondStage,
            Feature::FirstStage,
            Feature::PageWalkCoherent,
            Feature::RidPasid,
        ];
        let mut at = 0;
        while at < features.len() {
            config = config.with(features[at]);
            at += 1;
        }
        config
    }

    /// The least that a scalable-mode unit can be: second stage only, three levels, 4 KiB pages, 16 domain ids, no
    /// PASIDs, not coherent, no page-selective invalidation, one fault record, caching mode, write-buffer flushes,
    /// no ESRTPS.
    #[must_use]
    pub const fn least() -> Self {
        let cap = 0b00010 << 8 | 38 << 16 | 0x22 << 24 | 1 << 4 | 1 << 7;
        let ecap = 1 << 1 | 1 << 6 | 0x0f << 8 | 1 << 43 | 1 << 46;
        Self { cap, ecap, version: 0x30, host_width: 39, tearing: Tearing::WhilePresent }
    }

    /// CAP and ECAP as QEMU 11.1 reports them with `fsts=on,pasid-bits=20,svm=on,device-iotlb=on`.
    #[must_use]
    pub const fn qemu_first_stage() -> Self {
        Self {
            cap: FIRST_STAGE_CAP,
            ecap: 0x0000_8d9a_20f0_0f4e,
            version: 0x10,
            host_width: 48,
            tearing: Tearing::WhilePresent,
        }
    }

    /// CAP and ECAP as QEMU 11.1 reports them with `scalable-mode=on,pasid-bits=20`, with ECAP.SSTS set too, which
    /// QEMU leaves clear although it translates second-stage entries.
    #[must_use]
    pub const fn qemu_second_stage() -> Self {
        Self {
            cap: SECOND_STAGE_CAP,
            ecap: 0x0000_4998_80f0_0f4a | 1 << 46,
            version: 0x10,
            host_width: 48,
            tearing: Tearing::WhilePresent,
        }
    }

    /// The same unit with a feature.
    #[must_use]
    pub const fn with(self, feature: Feature) -> Self {
        let bit = feature.bit();
        if bit < 64 {
            Self { cap: self.cap | 1 << bit, ..self }
        } else {
            Self { ecap: self.ecap | 1 << (bit - 64), ..self }
        }
    }

    /// The same unit without a feature.
    #[must_use]
    pub const fn without(self, feature: Feature) -> Self {
        let bit = feature.bit();
        if bit < 64 {
            Self { cap: self.cap & !(1 << bit), ..self }
        } else {
            Self { ecap: self.ecap & !(1 << (bit - 64)), ..self }
        }
    }

    /// The same unit with `4 + 2 * nd` bits of domain id (CAP.ND, 0 to 6).
    #[must_use]
    pub const fn with_domain_ids(self, nd: u64) -> Self {
        Self { cap: self.cap & !7 | nd & 7, ..self }
    }

    /// The same unit with other second-stage widths (CAP.SAGAW: bit 1 for 39, 2 for 48, 3 for 57 bits).
    #[must_use]
    pub const fn with_widths(self, sagaw: u64) -> Self {
        Self { cap: self.cap & !(0x1f << 8) | (sagaw & 0x1f) << 8, ..self }
    }

    /// The same unit with `count` fault records, 1 to 256 (CAP.NFR).
    #[must_use]
    pub const fn with_fault_records(self, count: u64) -> Self {
        Self { cap: self.cap & !(0xff << 40) | (count.wrapping_sub(1) & 0xff) << 40, ..self }
    }

    /// Whether the unit has a feature.
    #[must_use]
    pub const fn has(&self, feature: Feature) -> bool {
        let bit = feature.bit();
        if bit < 64 { self.cap >> bit & 1 != 0 } else { self.ecap >> (bit - 64) & 1 != 0 }
    }

    /// Bits of a domain id.
    #[must_use]
    pub const fn domain_bits(&self) -> u32 {
        4 + 2 * (self.cap & 7) as u32
    }

    /// Whether second-stage tables of `levels` levels are supported.
    #[must_use]
    pub const fn second_stage_levels(&self, levels: u32) -> bool {
        levels >= 2 && levels <= 6 && self.cap >> (8 + levels - 2) & 1 != 0
    }

    /// Bits of the widest guest address (CAP.MGAW).
    #[must_use]
    pub const fn guest_width(&self) -> u32 {
        (self.cap >> 16 & 0x3f) as u32 + 1
    }

    /// Whether second-stage leaves exist at `level` (2 for 2 MiB, 3 for 1 GiB; CAP.SSLPS).
    #[must_use]
    pub const fn second_stage_leaf(&self, level: u32) -> bool {
        match level {
            1 => true,
            2 => self.cap >> 34 & 1 != 0,
            3 => self.cap >> 35 & 1 != 0,
            _ => false,
        }
    }

    /// Number of fault recording registers.
    #[must_use]
    pub const fn fault_records(&self) -> u64 {
        (self.cap >> 40 & 0xff) + 1
    }

    /// Offset of the first fault recording register.
    #[must_use]
    pub const fn fault_offset(&self) -> u64 {
        (self.cap >> 24 & 0x3ff) * 16
    }

    /// Offset of the IVA and IOTLB registers.
    #[must_use]
    pub const fn iotlb_offset(&self) -> u64 {
        (self.ecap >> 8 & 0x3ff) * 16
    }

    /// The largest address mask of a page-selective invalidation.
    #[must_use]
    pub const fn max_address_mask(&self) -> u64 {
        self.cap >> 48 & 0x3f
    }

    /// Bits of a PASID.
    #[must_use]
    pub const fn pasid_bits(&self) -> u32 {
        if self.has(Feature::Pasid) { (self.ecap >> 35 & 0x1f) as u32 + 1 } else { 0 }
    }

    /// The bits of a 4 KiB-aligned address field that must be zero.
    #[must_use]
    pub const fn reserved_address(&self) -> u64 {
        if self.host_width >= 64 { 0 } else { !((1 << self.host_width) - 1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_measured_on_qemu_decode_as_measured() {
        let unit = Config::qemu_first_stage();
        assert_eq!((unit.domain_bits(), unit.guest_width(), unit.fault_offset()), (16, 48, 0x220));
        assert_eq!((unit.fault_records(), unit.max_address_mask(), unit.iotlb_offset()), (1, 18, 0xf0));
        assert!(unit.second_stage_levels(3) && unit.second_stage_levels(4) && !unit.second_stage_levels(5));
        assert_eq!(unit.pasid_bits(), 20);
        for feature in
            [Feature::FirstStage, Feature::PageRequests, Feature::EnhancedSetRoot, Feature::DeviceTlb]
        {
            assert!(unit.has(feature), "{feature:?}");
        }
        for feature in [Feature::SecondStage, Feature::Nested, Feature::Coherent, Feature::RidPasid] {
            assert!(!unit.has(feature), "{feature:?}");
        }
    }

    #[test]
    fn the_least_unit_has_16_domains_of_39_bits() {
        let unit = Config::least();
        assert_eq!((unit.domain_bits(), unit.guest_width(), unit.pasid_bits()), (4, 39, 0));
        assert!(unit.second_stage_levels(3) && !unit.second_stage_levels(4) && !unit.second_stage_leaf(2));
        assert!(unit.has(Feature::CachingMode) && unit.has(Feature::WriteBufferFlush));
        assert!(!unit.has(Feature::Coherent) && !unit.has(Feature::EnhancedSetRoot));
    }
}
