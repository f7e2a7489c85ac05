//! What a unit can do, from CAP_REG and ECAP_REG.

use crate::InitError;
use crate::registers::Registers;
use crate::spec::entries::AddressWidth;
use crate::spec::registers::{CAP, Cap, ECAP, Ecap, VER};
use portcullis_hal::{Hal, Mmio, PAGE_SIZE, PhysRange, TableFormat, TableRoot, TableWrites};
use portcullis_iommu::{
    Abilities, Backend, FaultModels, Missing, Permissions, Requests, Stage, Stages, UnitInfo, WalkCoherency,
};
use portcullis_pgtable::Levels;

/// The page sizes of 4 KiB, 2 MiB and 1 GiB, as bits of a mask.
const SIZE_4K: u64 = 1 << 12;
const SIZE_2M: u64 = 1 << 21;
const SIZE_1G: u64 = 1 << 30;

/// A unit's capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// CAP_REG.
    pub cap: Cap,
    /// ECAP_REG.
    pub ecap: Ecap,
    host_address_bits: u8,
}

impl Features {
    /// Decodes the two registers. `host_address_bits` is the width of physical addresses in the machine.
    ///
    /// # Errors
    ///
    /// What the driver cannot do without: scalable mode, queued invalidation, a stage of translation.
    pub const fn decode(cap: u64, ecap: u64, host_address_bits: u8) -> Result<Self, InitError> {
        let this = Self { cap: Cap::from_bits(cap), ecap: Ecap::from_bits(ecap), host_address_bits };
        if !this.ecap.smts() {
            return Err(InitError::NoScalableMode(ecap));
        }
        if !this.ecap.qi() {
            return Err(InitError::NoQueuedInvalidation(ecap));
        }
        if !this.ecap.fsts() && !this.second_stage() {
            return Err(InitError::NoTranslation { cap, ecap });
        }
        Ok(this)
    }

    pub(crate) fn probe<H: Hal, M: Mmio>(
        registers: &Registers<H, M>,
        host_address_bits: u8,
    ) -> Result<Self, InitError> {
        let version = registers.read32(VER);
        if version == u32::MAX || version & 0xff == 0 {
            return Err(InitError::NoUnit(version));
        }
        Self::decode(registers.read64(CAP), registers.read64(ECAP), host_address_bits)
    }

    /// Whether there is second-stage translation of a width that is known.
    const fn second_stage(&self) -> bool {
        self.ecap.ssts() && self.cap.sagaw() & 0b1110 != 0
    }

    /// The stages of translation.
    pub fn stages(&self) -> Stages {
        let mut stages = Stages::empty();
        stages.set(Stages::STAGE_1, self.ecap.fsts());
        stages.set(Stages::STAGE_2, self.second_stage());
        stages
    }

    /// The stage that a domain gets when its maker does not care: the first, since it never needs an invalidation
    /// after a map.
    pub fn default_stage(&self) -> Stage {
        if self.ecap.fsts() { Stage::Stage1 } else { Stage::Stage2 }
    }

    /// Whether the unit walks tables of this stage and depth.
    pub fn has_levels(&self, stage: Stage, levels: Levels) -> bool {
        match (stage, levels) {
            (Stage::Stage1, Levels::Three) => false,
            (Stage::Stage1, Levels::Four) => self.ecap.fsts(),
            (Stage::Stage1, Levels::Five) => self.ecap.fsts() && self.cap.fs5lp(),
            (Stage::Stage2, levels) => {
                self.ecap.ssts() && self.cap.sagaw() & 1 << (levels.get().saturating_sub(2)) != 0
            }
        }
    }

    /// The width of the addresses that tables of this stage and depth translate, in bits. Of the first stage's it is
    /// the half with a clear sign bit.
    pub fn input_bits(&self, stage: Stage, levels: Levels) -> u8 {
        let width = 12 + 9 * levels.get();
        match stage {
            Stage::Stage1 => width - 1,
            Stage::Stage2 => width.min(self.cap.mgaw() + 1),
        }
    }

    /// The depth of tables for at least `input_bits`; by default the widest.
    pub fn levels_for(&self, stage: Stage, input_bits: Option<u8>) -> Option<Levels> {
        let mut fitting = [Levels::Three, Levels::Four, Levels::Five]
            .into_iter()
            .filter(|&levels| self.has_levels(stage, levels));
        match input_bits {
            Some(bits) => fitting.find(|&levels| self.input_bits(stage, levels) >= bits),
            None => fitting.next_back(),
        }
    }

    /// The page sizes of a stage, as a bit mask in bytes.
    pub fn page_sizes(&self, stage: Stage) -> u64 {
        let (large, huge) = match stage {
            Stage::Stage1 => (true, self.cap.fs1gp()),
            Stage::Stage2 => (self.cap.sslps() & 1 != 0, self.cap.sslps() & 2 != 0),
        };
        SIZE_4K | if large { SIZE_2M } else { 0 } | if huge { SIZE_1G } else { 0 }
    }

    /// What domains with tables of a stage can do. Entries are single words, so sizes can always change. The first stage's
    /// are marked by all units, the second's by some (ECAP_REG.SSADS).
    pub fn abilities(&self, stage: Stage) -> Abilities {
        let marked = stage == Stage::Stage1 || self.ecap.ssads();
        let mut abilities = Abilities::RESIZE;
        abilities.set(Abilities::TRACKING, marked && self.table_coherency() == WalkCoherency::Snooped);
        abilities
    }

    /// The last domain id. The first that is used is 1, since units in caching mode keep 0 for themselves.
    pub fn last_domain_id(&self) -> u32 {
        let bits = (4 + 2 * u32::from(self.cap.nd())).min(16);
        (1 << bits) - 1
    }

    /// How reads of root, context and PASID tables behave.
    pub fn entry_coherency(&self) -> WalkCoherency {
        coherency(self.ecap.c())
    }

    /// How reads of page tables behave, with PWSNP set where it may be.
    pub fn table_coherency(&self) -> WalkCoherency {
        coherency(self.ecap.smpwc())
    }

    /// How page tables for the unit have to be written.
    pub fn table_writes(&self) -> TableWrites {
        match self.table_coherency() {
            WalkCoherency::Snooped => TableWrites::Cached,
            WalkCoherency::NotSnooped => TableWrites::Cleaned,
        }
    }

    /// The number of fault recording registers.
    pub fn fault_records(&self) -> usize {
        usize::from(self.cap.nfr()) + 1
    }

    /// The largest mask of a page-selective invalidation at this stage: 2^mask pages. `None` if there is none. The
    /// first stage takes any (11.4.2, MAMV).
    pub fn max_page_mask(&self, stage: Stage) -> Option<u8> {
        match stage {
            Stage::Stage1 => Some(52),
            Stage::Stage2 => self.cap.psi().then(|| self.cap.mamv()),
        }
    }

    /// The address width for pass-through entries: the widest.
    pub fn widest(&self) -> AddressWidth {
        match self.cap.sagaw() {
            sagaw if sagaw & 0b1000 != 0 => AddressWidth::BITS_57,
            sagaw if sagaw & 0b0110 == 0b0010 => AddressWidth::BITS_39,
            _ => AddressWidth::BITS_48,
        }
    }

    /// What the unit lacks to walk these tables.
    pub fn missing_for(&self, root: &TableRoot) -> Missing {
        let mut missing = Missing::empty();
        let (stage, levels) = match root.format {
            TableFormat::X86 { levels } => (Stage::Stage1, levels),
            TableFormat::VtdSecondStage { levels } => (Stage::Stage2, levels),
            TableFormat::VmsaStage1 { .. }
            | TableFormat::VmsaStage2 { .. }
            | TableFormat::VmsaStage1Lpa2 { .. }
            | TableFormat::VmsaStage2Lpa2 { .. } => return Missing::FORMAT,
        };
        let supported = self.stages();
        match stage {
            Stage::Stage1 => missing.set(Missing::STAGE_1, !supported.contains(Stages::STAGE_1)),
            Stage::Stage2 => missing.set(Missing::STAGE_2, !supported.contains(Stages::STAGE_2)),
        }
        match depth(levels) {
            Some(depth) => {
                missing.set(Missing::INPUT_WIDTH, missing.is_empty() && !self.has_levels(stage, depth));
            }
            None => missing |= Missing::FORMAT,
        }
        missing.set(Missing::GRANULE, root.page_sizes & !self.page_sizes(stage) != 0);
        let reached = self.reaches(PhysRange::block(root.root, PAGE_SIZE));
        missing.set(Missing::OUTPUT_WIDTH, root.output_bits > self.host_address_bits || !reached);
        let stale = root.writes == TableWrites::Cached && self.table_coherency() == WalkCoherency::NotSnooped;
        missing.set(Missing::COHERENT_WALKS, stale);
        missing
    }

    /// Whether all of a range can be named in registers and tables: bits beyond the host's width are reserved there.
    pub(crate) fn reaches(&self, range: PhysRange) -> bool {
        range.last().get() >> self.host_address_bits.min(63) == 0
    }

    /// The width of PASIDs, in bits; 0 if there are none.
    pub fn pasid_bits(&self) -> u8 {
        if self.ecap.pasid() { (self.ecap.pss() + 1).min(20) } else { 0 }
    }

    /// Whether devices may ask for pages: only if a device that stops asking can be waited for (ECAP_REG.PDS), since a
    /// PASID could not be used anew otherwise.
    pub fn page_requests(&self) -> bool {
        self.ecap.prs() && self.ecap.pds() && self.ecap.dt()
    }

    /// What the unit lacks to let an endpoint do this.
    pub fn missing_to_permit(&self, permissions: &Permissions) -> Missing {
        let mut missing = Missing::empty();
        missing.set(Missing::PASID, permissions.pasid_bits > self.pasid_bits());
        missing.set(Missing::ATS, permissions.requests.contains(Requests::TRANSLATION) && !self.ecap.dt());
        missing.set(Missing::PRI, permissions.requests.contains(Requests::PAGE) && !self.page_requests());
        missing.set(Missing::STALL, permissions.requests.contains(Requests::STALL));
        missing
    }

    /// The width of physical addresses, in bits.
    pub fn host_address_bits(&self) -> u8 {
        self.host_address_bits
    }

    /// The capabilities in the terms of all back ends.
    pub fn unit_info(&self) -> UnitInfo {
        let stage = self.default_stage();
        let input_bits = self.levels_for(stage, None).map_or(0, |levels| self.input_bits(stage, levels));
        UnitInfo {
            backend: Backend::VtdScalable,
            stages: self.stages(),
            page_sizes: self.page_sizes(stage),
            input_bits,
            output_bits: self.host_address_bits,
            pasid_bits: self.pasid_bits(),
            fault_models: if self.page_requests() { FaultModels::PRI } else { FaultModels::empty() },
            stall_places: 0,
            abilities: self.abilities(stage),
            entry_coherency: self.entry_coherency(),
            table_coherency: self.table_coherency(),
            identity: self.ecap.pt(),
            nesting: false,
        }
    }
}

fn coherency(snooped: bool) -> WalkCoherency {
    if snooped { WalkCoherency::Snooped } else { WalkCoherency::NotSnooped }
}

/// The depth with this number of levels.
pub(crate) fn depth(levels: u8) -> Option<Levels> {
    [Levels::Three, Levels::Four, Levels::Five].into_iter().find(|depth| depth.get() == levels)
}

/// The encoding of a depth in PASID entries.
pub(crate) fn address_width(levels: Levels) -> AddressWidth {
    match levels {
        Levels::Three => AddressWidth::BITS_39,
        Levels::Four => AddressWidth::BITS_48,
        Levels::Five => AddressWidth::BITS_57,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The capabilities of QEMU 11.1 as measured, with what they say.
    #[test]
    fn units_of_qemu_are_decoded() {
        let first = Features::decode(0x81d2_008c_222f_0606, 0x0000_8d9a_20f0_0f4e, 48).unwrap();
        assert_eq!((first.stages(), first.default_stage()), (Stages::STAGE_1, Stage::Stage1));
        assert_eq!((first.last_domain_id(), first.fault_records(), first.cap.fro()), (0xffff, 1, 0x22));
        assert_eq!(first.page_sizes(Stage::Stage1), 0x4020_1000);
        assert_eq!(first.levels_for(Stage::Stage1, None), Some(Levels::Four));
        assert_eq!(first.levels_for(Stage::Stage1, Some(48)), None);
        assert!(first.cap.esrtps() && !first.cap.cm() && !first.cap.rwbf() && first.ecap.pt());

        let second = Features::decode(0x80d2_008c_222f_0686, 0x0000_4998_80f0_0fca, 48).unwrap();
        assert_eq!((second.stages(), second.default_stage()), (Stages::STAGE_2, Stage::Stage2));
        assert_eq!(second.levels_for(Stage::Stage2, None), Some(Levels::Four));
        assert_eq!(second.levels_for(Stage::Stage2, Some(39)), Some(Levels::Three));
        assert_eq!(second.max_page_mask(Stage::Stage2), Some(18));
        assert!(second.cap.cm() && second.ecap.sc());
    }

    #[test]
    fn legacy_units_are_refused() {
        let legacy = Features::decode(0x80d2_008c_222f_0606, 0x0000_0000_00f0_0f4a, 48);
        assert_eq!(legacy, Err(InitError::NoScalableMode(0xf0_0f4a)));
    }

    #[test]
    fn a_unit_with_three_levels_only_translates_39_bits() {
        let cap = 0x80d2_008c_2226_0206;
        let narrow = Features::decode(cap, 0x0000_4800_80f0_0f4a, 39).unwrap();
        assert_eq!(narrow.levels_for(Stage::Stage2, None), Some(Levels::Three));
        assert_eq!(narrow.input_bits(Stage::Stage2, Levels::Three), 39);
        assert_eq!(narrow.levels_for(Stage::Stage2, Some(40)), None);
        assert_eq!(narrow.widest(), AddressWidth::BITS_39);
    }

    #[test]
    fn addresses_are_no_wider_than_the_unit_translates_whatever_the_levels() {
        // MGAW is 41: 42 bits, with tables of four levels.
        let odd = Features::decode(0x80d2_008c_2229_0406, 0x0000_4800_80f0_0f4a, 48).unwrap();
        assert_eq!(odd.input_bits(Stage::Stage2, Levels::Four), 42);
        assert_eq!(odd.levels_for(Stage::Stage2, Some(42)), Some(Levels::Four));
        assert_eq!(odd.levels_for(Stage::Stage2, Some(43)), None);
    }

    #[test]
    fn the_fewest_domain_ids_are_sixteen() {
        let few = Features::decode(0x80d2_008c_222f_0600, 0x0000_4800_80f0_0f4a, 48).unwrap();
        assert_eq!(few.last_domain_id(), 15);
    }
}
