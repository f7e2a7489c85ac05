//! Stream table entries and context descriptors that the driver writes, and the bits of them that hardware looks at.

use crate::features::{Features, StallModel};
use crate::spec::cd::{CD_MAIR_WORD, Cd0, Cd1, Cd2};
use crate::spec::ste::{
    AtsMode, ContextFormat, DefaultSubstream, ShareabilityOverride, Ste0, Ste1, Ste2, Ste3, StreamConfig,
    StreamWorld,
};
use crate::spec::{AddressSize, Cacheability, Shareability, TableGranule};
use crate::update::{Entry, prefixed};
use portcullis_hal::{Asid, Granule, PhysAddr, TableFormat, TableRoot, TableWrites, Vmid};
use portcullis_iommu::{Missing, Stage, WalkCoherency};
use portcullis_pgtable::AccessedDirty;

/// What a stream table entry does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// All DMA is aborted, and not recorded.
    Abort,
    /// Nothing is translated.
    Bypass,
    /// Stage 1.
    Stage1 {
        /// The context descriptors.
        contexts: Contexts,
        /// Whether the hardware has to be told not to stall.
        stall: StallModel,
        /// Whether answers that the unit makes up for page requests carry a PASID.
        answers: AnswerPasid,
        /// Translation requests.
        ats: AtsMode,
    },
    /// Stage 2.
    Stage2 {
        /// The tables.
        tables: Stage2,
        /// Translation requests.
        ats: AtsMode,
    },
}

/// Whether automatic answers to page requests carry a PASID (STE.PPAR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerPasid {
    /// The device wants it there.
    Carried,
    /// It does not, or never asks.
    Absent,
}

/// The context descriptors of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contexts {
    /// The table, or the one descriptor.
    pub table: PhysAddr,
    /// The form of the table.
    pub format: ContextFormat,
    /// The width of SubstreamIDs, in bits (S1CDMax); with 0 there is one descriptor and no SubstreamID.
    pub bits: u8,
    /// What becomes of requests without a SubstreamID, unless there is one descriptor, which they use.
    pub default: DefaultSubstream,
}

impl Contexts {
    /// The one descriptor of a stream without SubstreamIDs.
    pub const fn one(descriptor: PhysAddr) -> Self {
        Self {
            table: descriptor,
            format: ContextFormat::LINEAR,
            bits: 0,
            default: DefaultSubstream::SUBSTREAM_0,
        }
    }
}

/// The fields of a stage-2 entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2 {
    /// The tag of TLB entries; not 0, which is the tag of entries with stage 1 only.
    pub vmid: Vmid,
    /// The root table.
    pub root: PhysAddr,
    /// The width of input addresses, in bits.
    pub input_bits: u8,
    /// S2SL0.
    pub start_level: u8,
    /// The granule.
    pub granule: Granule,
    /// The width of output addresses.
    pub output_size: AddressSize,
    /// Who marks the entries that are used.
    pub marks: AccessedDirty,
    /// The tables have the descriptors of FEAT_LPA2.
    pub lpa2: bool,
}

impl Shape {
    /// The words of the entry.
    pub fn entry(&self) -> Entry {
        let word0 = |config| Ste0::new().with_v(true).with_config(config);
        match self {
            Self::Abort => [word0(StreamConfig::ABORT).into(), 0, 0, 0, 0, 0, 0, 0],
            Self::Bypass => {
                let word1 = Ste1::new().with_shcfg(ShareabilityOverride::INCOMING);
                [word0(StreamConfig::BYPASS).into(), word1.into(), 0, 0, 0, 0, 0, 0]
            }
            Self::Stage1 { contexts, stall, answers, ats } => {
                let word0 = word0(StreamConfig::STAGE_1)
                    .with_s1contextptr(contexts.table.get() >> 6)
                    .with_s1fmt(contexts.format)
                    .with_s1cdmax(contexts.bits);
                let bypasses = contexts.default == DefaultSubstream::BYPASS;
                let word1 = Ste1::new()
                    .with_s1dss(contexts.default)
                    .with_s1cir(Cacheability::WRITE_BACK)
                    .with_s1cor(Cacheability::WRITE_BACK)
                    .with_s1csh(Shareability::INNER)
                    .with_s1stalld(*stall == StallModel::Optional)
                    .with_ppar(*answers == AnswerPasid::Carried)
                    .with_eats(*ats)
                    .with_strw(StreamWorld::NS_EL1)
                    .with_shcfg(match bypasses {
                        true => ShareabilityOverride::INCOMING,
                        false => ShareabilityOverride::NON_SHAREABLE,
                    });
                [word0.into(), word1.into(), 0, 0, 0, 0, 0, 0]
            }
            Self::Stage2 { tables: stage_2, ats } => {
                let word1 = Ste1::new().with_eats(*ats).with_shcfg(ShareabilityOverride::INCOMING);
                let marked = stage_2.marks == AccessedDirty::Hardware;
                let word2 = Ste2::new()
                    .with_s2vmid(stage_2.vmid.get())
                    .with_s2t0sz(64_u8.saturating_sub(stage_2.input_bits))
                    .with_s2sl0(stage_2.start_level)
                    .with_s2ir0(Cacheability::WRITE_BACK)
                    .with_s2or0(Cacheability::WRITE_BACK)
                    .with_s2sh0(Shareability::INNER)
                    .with_s2tg(table_granule(stage_2.granule))
                    .with_s2ps(stage_2.output_size)
                    .with_s2aa64(true)
                    .with_s2ptw(true)
                    .with_s2ha(marked)
                    .with_s2hd(marked)
                    .with_s2r(true);
                let word3 = Ste3::new().with_s2ds(stage_2.lpa2).with_s2ttb(stage_2.root.get() >> 4);
                let word0 = word0(StreamConfig::STAGE_2);
                [word0.into(), word1.into(), word2.into(), word3.into(), 0, 0, 0, 0]
            }
        }
    }
}

const fn table_granule(granule: Granule) -> TableGranule {
    match granule {
        Granule::Size4K => TableGranule::SIZE_4K,
        Granule::Size16K => TableGranule::SIZE_16K,
        Granule::Size64K => TableGranule::SIZE_64K,
    }
}

/// The bits of a stream table entry that hardware looks at (IHI 0070, 5.2): none but V if that is clear, none but
/// Config if that aborts, otherwise by stage.
pub fn used_by_ste(entry: &Entry) -> Entry {
    let [word0, word1, ..] = *entry;
    let (word0, word1) = (Ste0::from(word0), Ste1::from(word1));
    let all = u64::MAX;
    let mut used0 = Ste0::new().with_v(true);
    if !word0.v() {
        return [used0.into(), 0, 0, 0, 0, 0, 0, 0];
    }
    used0.set_config(StreamConfig::from_bits(0b111));
    let config = word0.config().into_bits();
    if config & 0b100 == 0 {
        return [used0.into(), 0, 0, 0, 0, 0, 0, 0];
    }
    let every = Ste1::from(all);
    let (stage_1, stage_2) = (config & 0b001 != 0, config & 0b010 != 0);
    // Attributes that override those of the transaction; the driver leaves them as they come.
    let mut used1 = Ste1::new()
        .with_memattr(every.memattr())
        .with_mtcfg(true)
        .with_alloccfg(every.alloccfg())
        .with_nscfg(every.nscfg())
        .with_privcfg(every.privcfg())
        .with_instcfg(every.instcfg());
    let (mut used2, mut used3) = (0, 0);
    if stage_1 {
        let pointer = Ste0::from(all);
        used0 = used0
            .with_s1fmt(pointer.s1fmt())
            .with_s1contextptr(pointer.s1contextptr())
            .with_s1cdmax(pointer.s1cdmax());
        used1 = used1
            .with_s1dss(every.s1dss())
            .with_s1cir(every.s1cir())
            .with_s1cor(every.s1cor())
            .with_s1csh(every.s1csh())
            .with_s1mpam(true)
            .with_s1stalld(true)
            .with_strw(every.strw())
            .with_dcp(true)
            .with_ppar(true);
        used2 |= u64::from(Ste2::new().with_s2vmid(u16::MAX));
    }
    if stage_2 {
        used1.set_s2fwb(true);
        used2 = all;
        used3 = all;
    }
    if stage_1 || stage_2 {
        used1 = used1.with_eats(every.eats()).with_mev(true);
    }
    if !stage_1 || stage_2 || word1.s1dss() == DefaultSubstream::BYPASS {
        used1.set_shcfg(every.shcfg());
    }
    [used0.into(), used1.into(), used2, used3, 0, 0, 0, 0]
}

/// The bits of a context descriptor that hardware looks at (IHI 0070, 5.4): none but V if that is clear; not those of
/// TTB0 if its walks are disabled, nor the attributes if those of TTB1 are too.
pub fn used_by_cd(entry: &Entry) -> Entry {
    let [word0, ..] = *entry;
    let word0 = Cd0::from(word0);
    if !word0.v() {
        return [Cd0::new().with_v(true).into(), 0, 0, 0, 0, 0, 0, 0];
    }
    let mut used = [u64::MAX; 8];
    if word0.epd0() {
        let every = Cd0::from(u64::MAX);
        let ttb0 = Cd0::new()
            .with_t0sz(every.t0sz())
            .with_tg0(every.tg0())
            .with_ir0(every.ir0())
            .with_or0(every.or0())
            .with_sh0(every.sh0());
        let root = Cd1::new().with_ttb0(Cd1::from(u64::MAX).ttb0());
        let [used0, used1, ..] = &mut used;
        *used0 &= !u64::from(ttb0);
        *used1 &= !u64::from(root);
        // Without any walk there are no attributes to look up.
        if word0.epd1()
            && let Some(attributes) = used.get_mut(CD_MAIR_WORD)
        {
            *attributes = 0;
        }
    }
    used
}

/// The context descriptor for a stage-1 table.
pub fn context_descriptor(
    root: &TableRoot,
    granule: Granule,
    mair: u64,
    asid: Asid,
    marks: AccessedDirty,
    features: &Features,
) -> Entry {
    let marked = marks == AccessedDirty::Hardware;
    let word0 = Cd0::new()
        .with_t0sz(64_u8.saturating_sub(root.input_bits))
        .with_tg0(table_granule(granule))
        .with_ir0(Cacheability::WRITE_BACK)
        .with_or0(Cacheability::WRITE_BACK)
        .with_sh0(Shareability::INNER)
        .with_epd1(true)
        .with_v(true)
        .with_ips(output_size(root, features))
        .with_aa64(true)
        .with_r(true)
        .with_a(true)
        .with_aset(true)
        .with_ha(marked)
        .with_hd(marked)
        .with_asid(asid.get());
    let word1 = Cd1::new().with_ttb0(root.root.get() >> 4);
    let word2 = Cd2::new().with_ds(is_lpa2(&root.format));
    let mut entry = [word0.into(), word1.into(), word2.into(), 0, 0, 0, 0, 0];
    if let Some(word) = entry.get_mut(CD_MAIR_WORD) {
        *word = mair;
    }
    entry
}

/// The context descriptor of a PASID that reaches nothing, and nobody is told: without walks (EPD0, EPD1) every access
/// faults, and is aborted without a record (A, not R). Its ASID is one that nothing is cached under.
pub fn silent_descriptor(features: &Features) -> Entry {
    /// ASIDs are given out from 1.
    const NOBODYS: u16 = 0;
    let word0 = Cd0::new()
        .with_epd0(true)
        .with_epd1(true)
        .with_v(true)
        .with_ips(AddressSize::at_least(features.output_bits()))
        .with_aa64(true)
        .with_a(true)
        .with_aset(true)
        .with_asid(NOBODYS);
    [word0.into(), 0, 0, 0, 0, 0, 0, 0]
}

/// The same context descriptor, with faults stalled (CD.S).
pub fn stalling(context: Entry) -> Entry {
    let [word0, rest @ ..] = context;
    prefixed(Cd0::from(word0).with_s(true).into(), rest)
}

/// What a table's entries can hold, and no more than the unit emits.
fn output_size(root: &TableRoot, features: &Features) -> AddressSize {
    AddressSize::at_least(root.output_bits.min(features.output_bits()))
}

/// What the unit lacks for walking a table, and the table's stage; the answer is empty if it lacks nothing.
pub fn missing_for(root: &TableRoot, features: &Features) -> (Stage, Missing) {
    let mut missing = Missing::empty();
    let (stage, granule) = match root.format {
        TableFormat::VmsaStage1 { granule, .. } | TableFormat::VmsaStage1Lpa2 { granule, .. } => {
            missing.set(Missing::STAGE_1, !features.stage_1);
            let fits = (MIN_INPUT_BITS..=features.stage_1_input_bits(granule)).contains(&root.input_bits);
            missing.set(Missing::INPUT_WIDTH, !fits);
            (Stage::Stage1, granule)
        }
        TableFormat::VmsaStage2 { granule, start_level }
        | TableFormat::VmsaStage2Lpa2 { granule, start_level } => {
            missing.set(Missing::STAGE_2, !features.stage_2);
            let fits = (MIN_INPUT_BITS..=features.stage_2_input_bits(granule)).contains(&root.input_bits);
            missing.set(Missing::INPUT_WIDTH, !fits);
            missing
                .set(Missing::FORMAT, encoded_start_level(granule, start_level, root.input_bits).is_none());
            (Stage::Stage2, granule)
        }
        TableFormat::X86 { .. } | TableFormat::VtdSecondStage { .. } => {
            return (Stage::Stage1, Missing::FORMAT);
        }
    };
    if is_lpa2(&root.format) {
        let wrong = !features.lpa2 || granule == Granule::Size64K;
        missing.set(Missing::FORMAT, wrong || missing.contains(Missing::FORMAT));
    } else if granule != Granule::Size64K {
        // Descriptors without these addresses.
        missing.set(Missing::INPUT_WIDTH, root.input_bits > 48 || missing.contains(Missing::INPUT_WIDTH));
    }
    missing.set(Missing::GRANULE, !features.has_granule(granule));
    let beyond = root.output_bits > features.output_bits() || features.reach(root.root, ROOT_ALIGN).is_err();
    missing.set(Missing::OUTPUT_WIDTH, beyond);
    missing.set(Missing::FORMAT, missing.contains(Missing::FORMAT) || !root.root.is_aligned(ROOT_ALIGN));
    let cached = root.writes == TableWrites::Cached;
    missing.set(Missing::COHERENT_WALKS, cached && features.coherency == WalkCoherency::NotSnooped);
    (stage, missing)
}

/// Whether tables have the descriptors of FEAT_LPA2.
fn is_lpa2(format: &TableFormat) -> bool {
    matches!(format, TableFormat::VmsaStage1Lpa2 { .. } | TableFormat::VmsaStage2Lpa2 { .. })
}

/// The narrowest inputs of both stages: T0SZ is at most 39.
const MIN_INPUT_BITS: u8 = 25;
/// The least alignment of a root table, in bytes.
const ROOT_ALIGN: u64 = 64;

/// The fields of the entry for a stage-2 table, or `None` if the start level does not fit the width.
pub fn stage_2(root: &TableRoot, vmid: Vmid, marks: AccessedDirty, features: &Features) -> Option<Stage2> {
    let (TableFormat::VmsaStage2 { granule, start_level }
    | TableFormat::VmsaStage2Lpa2 { granule, start_level }) = root.format
    else {
        return None;
    };
    Some(Stage2 {
        vmid,
        root: root.root,
        input_bits: root.input_bits,
        start_level: encoded_start_level(granule, start_level, root.input_bits)?,
        granule,
        output_size: output_size(root, features),
        marks,
        lpa2: is_lpa2(&root.format),
    })
}

/// S2SL0 for a walk that starts at `level`, if at most 16 concatenated tables there, and at least two entries, resolve
/// inputs of this width (Arm ARM, D8.2).
fn encoded_start_level(granule: Granule, level: u8, input_bits: u8) -> Option<u8> {
    const LAST_LEVEL: u8 = 3;
    const MAX_CONCATENATED_LOG2: u8 = 4;
    let stride = granule.shift() - 3;
    let below = granule.shift() + stride * LAST_LEVEL.checked_sub(level)?;
    let root_bits = input_bits.checked_sub(below)?;
    if root_bits == 0 || root_bits > stride + MAX_CONCATENATED_LOG2 {
        return None;
    }
    match granule {
        Granule::Size4K => 2_u8.checked_sub(level),
        // With 16 KiB, tables at level 0 have 52-bit addresses only, of which they resolve the last bits.
        Granule::Size16K if level > 0 || input_bits > 48 => 3_u8.checked_sub(level),
        Granule::Size64K if level > 0 => 3_u8.checked_sub(level),
        Granule::Size16K | Granule::Size64K => None,
    }
}
