//! What a unit can do, as its ID registers say.

use crate::invalidate::RangeInvalidation;
use crate::options::{Coherency, Options};
use crate::ring::RingSize;
use crate::spec::AddressSize;
use crate::spec::registers::{self, Idr0, Idr1, Idr3, Idr5};
use crate::stalls;
use portcullis_hal::{Granule, Mmio, Pasid, TableWrites};
use portcullis_iommu::{Abilities, Backend, FaultModels, Stages, UnitInfo, WalkCoherency};
use portcullis_pgtable::BbmLevel;
use thiserror::Error;

/// Something about the hardware that the driver cannot work with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{what} ({register} = {value:#x})")]
pub struct Unsupported {
    /// What is the matter.
    pub what: &'static str,
    /// The register that says so.
    pub register: &'static str,
    /// Its value.
    pub value: u32,
}

/// How faulting transactions end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StallModel {
    /// They are terminated; software may choose to have them stalled.
    Optional,
    /// They are terminated.
    None,
}

/// The capabilities of a unit, decoded and checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Stage 1 is supported (IDR0.S1P).
    pub stage_1: bool,
    /// Stage 2 is supported (IDR0.S2P).
    pub stage_2: bool,
    /// Accesses to tables and queues see the CPU's caches (IDR0.COHACC, or what firmware says instead).
    pub coherency: WalkCoherency,
    /// The unit can take part in broadcast TLB maintenance (IDR0.BTM).
    pub btm: bool,
    /// EL2 contexts exist (IDR0.HYP).
    pub hyp: bool,
    /// MSIs are supported (IDR0.MSI).
    pub msi: bool,
    /// PCI page requests (IDR0.PRI).
    pub pri: bool,
    /// The largest queue of page requests, as a power of two, if the unit takes them (IDR1.PRIQS).
    pub page_request_queue_log2: Option<u8>,
    /// PCI address translation services (IDR0.ATS).
    pub ats: bool,
    /// Two-level context descriptor tables (IDR0.CD2L).
    pub two_level_cd: bool,
    /// Two-level stream tables (IDR0.ST_LEVEL).
    pub two_level_streams: bool,
    /// How faulting transactions end (IDR0.STALL_MODEL).
    pub stall: StallModel,
    /// The most transactions that are stalled at a time (IDR5.STALL_MAX).
    pub stall_max: u16,
    /// The width of ASIDs, 8 or 16 bits (IDR0.ASID16).
    pub asid_bits: u8,
    /// The width of VMIDs, 8 or 16 bits (IDR0.VMID16).
    pub vmid_bits: u8,
    /// The width of StreamIDs, 0 to 32 bits (IDR1.SIDSIZE).
    pub stream_bits: u8,
    /// The width of SubstreamIDs, 0 to 20 bits (IDR1.SSIDSIZE).
    pub substream_bits: u8,
    /// The largest command queue, as a power of two (IDR1.CMDQS).
    pub command_queue_log2: u8,
    /// The largest event queue, as a power of two (IDR1.EVENTQS).
    pub event_queue_log2: u8,
    /// Ranges can be invalidated (IDR3.RIL).
    pub ranges: RangeInvalidation,
    /// How much of a change of a leaf's size the unit bears (IDR3.BBML).
    pub break_before_make: BbmLevel,
    /// The unit marks the entries that it uses (IDR0.HTTU = 2), and snoops where it does so.
    pub tracking: bool,
    /// The width of physical addresses (IDR5.OAS).
    pub output_size: AddressSize,
    /// 52-bit addresses with 4 and 16 KiB granules (IDR5.DS).
    pub lpa2: bool,
    /// 52-bit stage-1 input addresses (IDR5.VAX), with granules that have 52-bit addresses.
    pub wide_inputs: bool,
    /// 4 KiB granule (IDR5.GRAN4K).
    pub granule_4k: bool,
    /// 16 KiB granule (IDR5.GRAN16K).
    pub granule_16k: bool,
    /// 64 KiB granule (IDR5.GRAN64K).
    pub granule_64k: bool,
}

impl Features {
    /// Reads the ID registers.
    ///
    /// # Errors
    ///
    /// The hardware has no stage, granule or table format that the driver knows, fixes the addresses of its tables,
    /// or stalls every fault.
    pub fn read(mmio: &impl Mmio, options: &Options) -> Result<Self, Unsupported> {
        let idr0 = Idr0::from(mmio.read32(registers::IDR0.offset));
        let idr1 = Idr1::from(mmio.read32(registers::IDR1.offset));
        let idr3 = Idr3::from(mmio.read32(registers::IDR3.offset));
        let idr5 = Idr5::from(mmio.read32(registers::IDR5.offset));
        check(idr0, idr1, idr5)?;
        let coherent = match options.coherency {
            Coherency::Detect => idr0.cohacc(),
            Coherency::Snooped => true,
            Coherency::NotSnooped => false,
        };
        let id_bits = |wide| if wide { 16 } else { 8 };
        Ok(Self {
            stage_1: idr0.s1p(),
            stage_2: idr0.s2p(),
            coherency: if coherent { WalkCoherency::Snooped } else { WalkCoherency::NotSnooped },
            btm: idr0.btm(),
            hyp: idr0.hyp(),
            msi: idr0.msi(),
            pri: idr0.pri(),
            page_request_queue_log2: (idr0.pri() && idr0.ats()).then(|| idr1.priqs().min(RingSize::MAX_LOG2)),
            ats: idr0.ats(),
            two_level_cd: idr0.cd2l(),
            two_level_streams: idr0.st_level() == Idr0::ST_LEVEL_TWO,
            stall: match idr0.stall_model() {
                Idr0::STALL_SUPPORTED => StallModel::Optional,
                _ => StallModel::None,
            },
            stall_max: idr5.stall_max(),
            asid_bits: id_bits(idr0.asid16()),
            vmid_bits: id_bits(idr0.vmid16()),
            stream_bits: idr1.sidsize().min(32),
            substream_bits: idr1.ssidsize().min(Pasid::MAX_BITS as u8),
            command_queue_log2: idr1.cmdqs().min(RingSize::MAX_LOG2),
            event_queue_log2: idr1.eventqs().min(RingSize::MAX_LOG2),
            ranges: match idr3.ril() {
                true => RangeInvalidation::Supported,
                false => RangeInvalidation::Unsupported,
            },
            break_before_make: match idr3.bbml() {
                1 => BbmLevel::Level1,
                2 => BbmLevel::Level2,
                _ => BbmLevel::Level0,
            },
            tracking: idr0.httu() == Idr0::HTTU_ACCESS_AND_DIRTY && coherent,
            output_size: idr5.oas(),
            lpa2: idr5.ds(),
            wide_inputs: idr5.vax() == Idr5::VAX_52,
            granule_4k: idr5.gran4k(),
            granule_16k: idr5.gran16k(),
            granule_64k: idr5.gran64k(),
        })
    }

    /// Whether tables of this granule have 52-bit addresses.
    fn has_52_bits(&self, granule: Granule) -> bool {
        granule == Granule::Size64K || self.lpa2
    }

    /// The width of stage-1 input addresses with this granule.
    pub fn stage_1_input_bits(&self, granule: Granule) -> u8 {
        if self.wide_inputs && self.has_52_bits(granule) { 52 } else { 48 }
    }

    /// The width of physical addresses that tables can hold and the unit can emit.
    pub fn output_bits(&self) -> u8 {
        self.output_size.bits()
    }

    /// The width of stage-2 input addresses with this granule: as wide as the output (IHI 0070, 3.4.1).
    pub fn stage_2_input_bits(&self, granule: Granule) -> u8 {
        self.output_bits().min(if self.has_52_bits(granule) { 52 } else { 48 })
    }

    /// The width of the PASIDs that a device can be permitted: that of SubstreamIDs, which stage 1 alone translates.
    pub fn pasid_bits(&self) -> u8 {
        if self.stage_1 { self.substream_bits } else { 0 }
    }

    /// Whether the unit walks tables of this granule.
    pub fn has_granule(&self, granule: Granule) -> bool {
        match granule {
            Granule::Size4K => self.granule_4k,
            Granule::Size16K => self.granule_16k,
            Granule::Size64K => self.granule_64k,
        }
    }

    /// The granule of the driver's own tables: the smallest one.
    pub fn own_granule(&self) -> Granule {
        match (self.granule_4k, self.granule_16k) {
            (true, _) => Granule::Size4K,
            (false, true) => Granule::Size16K,
            (false, false) => Granule::Size64K,
        }
    }

    /// How the driver's own tables have to be written.
    pub fn table_writes(&self) -> TableWrites {
        match self.coherency {
            WalkCoherency::Snooped => TableWrites::Cached,
            WalkCoherency::NotSnooped => TableWrites::Cleaned,
        }
    }

    /// What domains with tables can do on the unit.
    pub fn abilities(&self) -> Abilities {
        let mut abilities = Abilities::empty();
        abilities.set(Abilities::RESIZE, self.break_before_make != BbmLevel::Level0);
        abilities.set(Abilities::TRACKING, self.tracking);
        abilities
    }

    /// Whether streams may have their faults stalled. Those of stage 1, that is: a context descriptor says so.
    pub(crate) fn can_stall(&self) -> bool {
        self.stage_1 && self.stall == StallModel::Optional && self.stall_max > 0
    }

    /// What the driver makes of the capabilities, in the common layer's terms: no nesting, whatever the hardware
    /// can do.
    pub fn unit_info(&self) -> UnitInfo {
        let mut stages = Stages::empty();
        stages.set(Stages::STAGE_1, self.stage_1);
        stages.set(Stages::STAGE_2, self.stage_2);
        let mut fault_models = FaultModels::empty();
        fault_models.set(FaultModels::PRI, self.page_request_queue_log2.is_some());
        fault_models.set(FaultModels::STALL, self.can_stall());
        UnitInfo {
            backend: Backend::SmmuV3,
            stages,
            page_sizes: page_sizes(self.own_granule()),
            input_bits: match self.stage_1 {
                true => self.stage_1_input_bits(self.own_granule()),
                false => self.stage_2_input_bits(self.own_granule()),
            },
            output_bits: self.output_bits(),
            pasid_bits: self.pasid_bits(),
            fault_models,
            stall_places: if self.can_stall() { stalls::places(self.stall_max) } else { 0 },
            abilities: self.abilities(),
            entry_coherency: self.coherency,
            table_coherency: self.coherency,
            identity: true,
            nesting: false,
        }
    }
}

/// The sizes of single leaves of VMSAv8-64 with 48-bit addresses.
const fn page_sizes(granule: Granule) -> u64 {
    match granule {
        Granule::Size4K => 1 << 12 | 1 << 21 | 1 << 30,
        Granule::Size16K => 1 << 14 | 1 << 25,
        Granule::Size64K => 1 << 16 | 1 << 29,
    }
}

fn check(idr0: Idr0, idr1: Idr1, idr5: Idr5) -> Result<(), Unsupported> {
    let refuse = |what, register: portcullis_hal::wait::Register, value: u32| {
        Err(Unsupported { what, register: register.name, value })
    };
    if !idr0.s1p() && !idr0.s2p() {
        return refuse("the unit translates with no stage", registers::IDR0, idr0.into());
    }
    if idr0.ttf() & Idr0::TTF_AARCH64 == 0 {
        return refuse("the unit walks no AArch64 tables", registers::IDR0, idr0.into());
    }
    if idr0.ttendian() == Idr0::TTENDIAN_BIG {
        return refuse("the unit walks big-endian tables only", registers::IDR0, idr0.into());
    }
    if idr0.stall_model() == Idr0::STALL_FORCED {
        return refuse("the unit stalls every fault", registers::IDR0, idr0.into());
    }
    if idr1.queues_preset() || idr1.tables_preset() {
        return refuse("the unit's tables are at fixed addresses", registers::IDR1, idr1.into());
    }
    if idr1.cmdqs() == 0 {
        return refuse("the command queue has a single slot", registers::IDR1, idr1.into());
    }
    if !(idr5.gran4k() || idr5.gran16k() || idr5.gran64k()) {
        return refuse("the unit has no granule", registers::IDR5, idr5.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Ids([u32; 4]);

    // SAFETY: these registers act on nothing.
    #[expect(unsafe_code, reason = "registers of a fake")]
    unsafe impl Mmio for Ids {
        fn read32(&self, offset: usize) -> u32 {
            match offset {
                0x00 => self.0[0],
                0x04 => self.0[1],
                0x0c => self.0[2],
                0x14 => self.0[3],
                _ => 0,
            }
        }
        fn write32(&self, _: usize, _: u32) {}
        fn read64(&self, _: usize) -> u64 {
            0
        }
        fn write64(&self, _: usize, _: u64) {}
    }

    /// The registers of QEMU 11.1's unit with both stages.
    const QEMU: [u32; 4] = [0x0d44_101b, 0x0273_0010, 0x1414, 0x74];

    #[test]
    fn qemus_unit_decodes() {
        let features = Features::read(&Ids(QEMU), &Options::default()).unwrap();
        assert!(features.stage_1 && features.stage_2 && features.two_level_streams);
        assert!(!features.hyp && !features.msi && !features.pri && !features.ats && !features.two_level_cd);
        assert_eq!((features.asid_bits, features.vmid_bits), (16, 16));
        assert_eq!((features.stream_bits, features.substream_bits), (16, 0));
        assert_eq!((features.command_queue_log2, features.event_queue_log2), (19, 19));
        assert_eq!(
            (features.ranges, features.break_before_make),
            (RangeInvalidation::Supported, BbmLevel::Level2)
        );
        assert_eq!((features.output_bits(), features.stage_2_input_bits(Granule::Size4K)), (44, 44));
        assert_eq!((features.stall, features.coherency), (StallModel::None, WalkCoherency::Snooped));
        let info = features.unit_info();
        assert_eq!((info.page_sizes, info.input_bits), (0x4020_1000, 48));
    }

    #[test]
    fn what_the_driver_does_not_drive_is_not_offered() {
        let mut ids = QEMU;
        // PRI, without the ATS that it needs; stalls at will; 20 bits of SubstreamID.
        ids[0] = ids[0] & !(0b11 << 24) | 1 << 16;
        ids[1] |= 20 << 6 | 8 << 11;
        let features = Features::read(&Ids(ids), &Options::default()).unwrap();
        assert_eq!(
            (features.stall, features.unit_info().fault_models),
            (StallModel::Optional, FaultModels::empty())
        );
        ids[3] |= 16 << 16;
        let features = Features::read(&Ids(ids), &Options::default()).unwrap();
        assert!(features.pri && features.stage_1 && features.stage_2);
        assert_eq!((features.stall, features.substream_bits), (StallModel::Optional, 20));
        let info = features.unit_info();
        assert_eq!((info.pasid_bits, info.fault_models, info.nesting), (20, FaultModels::STALL, false));
        ids[0] |= 1 << 10;
        let features = Features::read(&Ids(ids), &Options::default()).unwrap();
        assert_eq!(features.page_request_queue_log2, Some(8));
        assert_eq!(features.unit_info().fault_models, FaultModels::all());
    }

    #[test]
    fn firmware_overrides_coherency() {
        let options = Options { coherency: Coherency::NotSnooped, ..Options::default() };
        let features = Features::read(&Ids(QEMU), &options).unwrap();
        assert_eq!(features.unit_info().table_coherency, WalkCoherency::NotSnooped);
        assert_eq!(features.table_writes(), TableWrites::Cleaned);
    }

    #[test]
    fn hardware_that_the_driver_cannot_serve_is_refused_by_the_register_that_says_so() {
        let change = |index: usize, clear: u32, set: u32| {
            let mut ids = QEMU;
            ids[index] = ids[index] & !clear | set;
            Features::read(&Ids(ids), &Options::default()).map_err(|error| error.register)
        };
        assert_eq!(change(0, 0b11, 0), Err("SMMU_IDR0"));
        assert_eq!(change(0, 0b1000, 0b0100), Err("SMMU_IDR0"));
        assert_eq!(change(0, 0, 0b11 << 21), Err("SMMU_IDR0"));
        assert_eq!(change(0, 0b11 << 24, 0b10 << 24), Err("SMMU_IDR0"));
        assert_eq!(change(1, 0, 1 << 29), Err("SMMU_IDR1"));
        assert_eq!(change(1, 0, 1 << 30), Err("SMMU_IDR1"));
        assert_eq!(change(1, 0x1f << 21, 0), Err("SMMU_IDR1"));
        assert_eq!(change(3, 0x70, 0), Err("SMMU_IDR5"));
        // What an absent device reads as.
        assert!(Features::read(&Ids([0; 4]), &Options::default()).is_err());
        assert!(Features::read(&Ids([u32::MAX; 4]), &Options::default()).is_err());
    }
}
