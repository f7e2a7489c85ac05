//! The planner against the architecture: what hardware may see of an entry while it changes.
//!
//! Which bits matter is written here a second time, from IHI 0070, 5.2 and 5.4, by bit numbers: Config decides what is
//! looked at; S1Fmt and S1DSS count only with SubstreamIDs (S1CDMax > 0), SHCFG only where something bypasses stage 1,
//! EATS only where something is translated; with V clear nothing else does.

use portcullis_hal::{Asid, Granule, Mmio, PhysAddr, TableFormat, TableRoot, TableWrites, Vmid};
use portcullis_iommu::Transition;
use portcullis_pgtable::AccessedDirty;
use portcullis_smmuv3::entry::{
    AnswerPasid, Contexts, Shape, Stage2, context_descriptor, silent_descriptor, stalling, used_by_cd,
    used_by_ste,
};
use portcullis_smmuv3::spec::AddressSize;
use portcullis_smmuv3::spec::ste::{AtsMode, ContextFormat, DefaultSubstream};
use portcullis_smmuv3::update::{Entry, STEPS, plan};
use portcullis_smmuv3::{Features, Options, StallModel};

/// What hardware makes of an entry: `None` if it is invalid, else everything that it depends on.
type Meaning = Option<Vec<u64>>;

fn bits(word: u64, high: u32, low: u32) -> u64 {
    word >> low & (u64::MAX >> (63 - high + low))
}

fn ste(entry: &Entry) -> Meaning {
    let [w0, w1, w2, w3, ..] = *entry;
    if w0 & 1 == 0 {
        return None;
    }
    let config = bits(w0, 3, 1);
    if config < 4 {
        return Some(vec![0]);
    }
    // Attribute overrides count wherever anything passes.
    let mut meaning = vec![config, bits(w1, 40, 32), bits(w1, 51, 46)];
    let (stage_1, stage_2) = (config & 1 == 1, config & 2 == 2);
    if stage_1 {
        let max = bits(w0, 63, 59);
        // The pointer; the attributes of fetches; DCP, PPAR; S1MPAM, S1STALLD; STRW; VMID.
        meaning.extend([bits(w0, 55, 6), max, bits(w1, 7, 2), bits(w1, 18, 17), bits(w1, 27, 26)]);
        meaning.extend([bits(w1, 31, 30), bits(w2, 15, 0)]);
        if max > 0 {
            meaning.extend([bits(w0, 5, 4), bits(w1, 1, 0)]);
        }
    }
    if stage_2 {
        meaning.extend([bits(w1, 25, 25), w2, w3]);
    }
    if stage_1 || stage_2 {
        meaning.extend([bits(w1, 29, 28), bits(w1, 19, 19)]);
    }
    let substreams = stage_1 && bits(w0, 63, 59) > 0;
    if !stage_1 || stage_2 || substreams && bits(w1, 1, 0) == 1 {
        meaning.push(bits(w1, 45, 44));
    }
    Some(meaning)
}

fn cd(entry: &Entry) -> Meaning {
    let [w0, w1, rest @ ..] = *entry;
    if w0 >> 31 & 1 == 0 {
        return None;
    }
    let mut meaning = rest.to_vec();
    // Without walks of TTB0: not T0SZ, TG0, IR0, OR0, SH0 and TTB0.
    let off = w0 >> 14 & 1 == 1;
    meaning.push(if off { w0 & !0x3fff } else { w0 });
    meaning.push(if off { w1 & !0x000f_ffff_ffff_fff0 } else { w1 });
    if off && w0 >> 30 & 1 == 1 {
        // Without any walk, not MAIR.
        meaning[1] = 0;
    }
    Some(meaning)
}

/// Looks at all entries that hardware may put together between two syncs, and gives how many they were.
fn check(from: &Entry, to: &Entry, used: fn(&Entry) -> Entry, meaning: fn(&Entry) -> Meaning) -> u64 {
    let plan = plan(from, to, used);
    assert_eq!(plan.steps()[2], *to);
    let (old, new) = (meaning(from), meaning(to));
    let mut before = *from;
    let mut mixes = 0;
    for step in &plan.steps() {
        for choice in 0_u32..256 {
            let mix: Entry = std::array::from_fn(|i| if choice >> i & 1 == 0 { before[i] } else { step[i] });
            let now = meaning(&mix);
            let lawful =
                now == old || now == new || plan.transition == Transition::Disruptive && now.is_none();
            assert!(lawful, "{from:x?} -> {to:x?}: {mix:x?} in {plan:x?}");
            mixes += 1;
        }
        before = *step;
    }
    mixes
}

const DEFAULTS: [DefaultSubstream; 3] =
    [DefaultSubstream::TERMINATE, DefaultSubstream::BYPASS, DefaultSubstream::SUBSTREAM_0];
const ATS: [AtsMode; 2] = [AtsMode::ABORT, AtsMode::FULL];

fn stage_1(contexts: Contexts, ats: AtsMode) -> Entry {
    let answers = AnswerPasid::Absent;
    Shape::Stage1 { contexts, stall: StallModel::Optional, answers, ats }.entry()
}

fn table(address: u64, format: ContextFormat, bits: u8, default: DefaultSubstream) -> Contexts {
    Contexts { table: PhysAddr::new(address), format, bits, default }
}

fn stage_2(vmid: u16, root: u64, ats: AtsMode) -> Entry {
    stage_2_as(vmid, root, AccessedDirty::Preset, false, ats)
}

fn stage_2_as(vmid: u16, root: u64, marks: AccessedDirty, lpa2: bool, ats: AtsMode) -> Entry {
    let tables = Stage2 {
        vmid: Vmid::new(vmid),
        root: PhysAddr::new(root),
        input_bits: 44,
        start_level: 2,
        granule: Granule::Size4K,
        output_size: AddressSize::BITS_44,
        marks,
        lpa2,
    };
    Shape::Stage2 { tables, ats }.entry()
}

/// Every kind of entry that the driver writes, and a second one of those with tables.
fn entries() -> Vec<Entry> {
    let mut entries = vec![[0; 8], Shape::Abort.entry(), Shape::Bypass.entry()];
    for ats in ATS {
        entries.extend([stage_2(1, 0x9_8765_4000, ats), stage_2(0xffff, 0x9_8765_5000, ats)]);
        // Marked by the unit (S2HA, S2HD), with the descriptors of FEAT_LPA2 (S2DS), and both.
        for (marks, lpa2) in
            [(AccessedDirty::Hardware, false), (AccessedDirty::Preset, true), (AccessedDirty::Hardware, true)]
        {
            entries.push(stage_2_as(1, 0x9_8765_4000, marks, lpa2, ats));
        }
        for address in [0x1_2345_6000, 0x1_2346_0040] {
            entries.push(stage_1(Contexts::one(PhysAddr::new(address)), ats));
        }
        for default in DEFAULTS {
            for (address, bits) in [(0x2_0000_0000, 5), (0x2_0000_0000, 4), (0x3_0000_0000, 10)] {
                entries.push(stage_1(table(address, ContextFormat::LINEAR, bits, default), ats));
            }
            for (address, bits) in [(0x4_0000_0000, 20), (0x5_0000_0000, 11)] {
                entries.push(stage_1(table(address, ContextFormat::TWO_LEVEL_64K, bits, default), ats));
            }
        }
    }
    // What page requests and stalls change.
    for (stall, answers) in [
        (StallModel::None, AnswerPasid::Absent),
        (StallModel::Optional, AnswerPasid::Carried),
        (StallModel::None, AnswerPasid::Carried),
    ] {
        let contexts = table(0x4_0000_0000, ContextFormat::TWO_LEVEL_64K, 20, DefaultSubstream::TERMINATE);
        entries.push(Shape::Stage1 { contexts, stall, answers, ats: AtsMode::FULL }.entry());
    }
    entries
}

#[test]
fn every_change_of_a_stream_table_entry_shows_the_old_one_the_new_one_or_if_told_so_none() {
    let entries = entries();
    // S2HA, S2HD; S2DS.
    for (word, bit) in [(2, 56), (2, 55), (3, 3)] {
        assert!(entries.iter().any(|entry| bits(entry[word], bit, bit) == 1), "no entry has bit {bit}");
    }
    let mut mixes = 0;
    for from in &entries {
        for to in &entries {
            mixes += check(from, to, used_by_ste, ste);
        }
    }
    assert_eq!((entries.len(), mixes), (50, 50 * 50 * 3 * 256));
}

/// The ID registers of QEMU 11.1.
struct Ids;

// SAFETY: these registers act on nothing.
#[expect(unsafe_code, reason = "registers of a fake")]
unsafe impl Mmio for Ids {
    fn read32(&self, offset: usize) -> u32 {
        match offset {
            0x00 => 0x0d44_101b,
            0x04 => 0x0273_0010,
            0x0c => 0x1414,
            0x14 => 0x74,
            _ => 0,
        }
    }
    fn write32(&self, _: usize, _: u32) {}
    fn read64(&self, _: usize) -> u64 {
        0
    }
    fn write64(&self, _: usize, _: u64) {}
}

#[test]
fn every_change_of_a_context_descriptor_shows_the_old_one_the_new_one_or_if_told_so_none() {
    let features = Features::read(&Ids, &Options::default()).unwrap();
    let mut entries = vec![[0; 8]];
    for (root, asid) in [(0x1_0000_1000, 1), (0x1_0000_1000, 2), (0xffff_ffff_f000, 2), (0x2000, 0xffff)] {
        for (granule, input_bits, mair) in [(Granule::Size4K, 48, 0xff), (Granule::Size64K, 39, 0x44_ff04)] {
            let root = TableRoot {
                root: PhysAddr::new(root),
                format: TableFormat::VmsaStage1 { granule, mair },
                input_bits,
                output_bits: 48,
                page_sizes: 0x1000,
                writes: TableWrites::Cached,
            };
            let descriptor =
                |root, marks| context_descriptor(root, granule, mair, Asid::new(asid), marks, &features);
            let valid = descriptor(&root, AccessedDirty::Preset);
            // Marked by the unit (HA, HD), with the descriptors of FEAT_LPA2 (DS), and both.
            let wide = TableRoot { format: TableFormat::VmsaStage1Lpa2 { granule, mair }, ..root };
            entries.extend([
                descriptor(&root, AccessedDirty::Hardware),
                descriptor(&wide, AccessedDirty::Preset),
                descriptor(&wide, AccessedDirty::Hardware),
            ]);
            // As after the exit of an address space: no walks.
            let mut off = valid;
            off[0] |= 1 << 14;
            entries.extend([valid, off]);
            let silent = silent_descriptor(&features);
            for (from, to) in
                [(valid, silent), (silent, valid), (valid, stalling(valid)), (stalling(valid), valid)]
            {
                assert_eq!(plan(&from, &to, used_by_cd).transition, Transition::Hitless);
            }
        }
    }
    entries.push(silent_descriptor(&features));
    entries.push(stalling(entries[1]));
    // HA and HD are bits 43 and 42 of the first word, DS is bit 58 of the third.
    for (word, bit) in [(0, 43), (0, 42), (2, 58)] {
        assert!(entries.iter().any(|entry| bits(entry[word], bit, bit) == 1), "no entry has bit {bit}");
    }
    for from in &entries {
        for to in &entries {
            check(from, to, used_by_cd, cd);
        }
    }
}

#[test]
fn changes_beside_pasids_and_of_permissions_are_hitless() {
    let hitless = |from: &Entry, to: &Entry| plan(from, to, used_by_ste).transition == Transition::Hitless;
    let [off, full] = ATS;
    let one = Contexts::one(PhysAddr::new(0x1_2345_6000));
    for format in [ContextFormat::LINEAR, ContextFormat::TWO_LEVEL_64K] {
        let contexts = |default| table(0x2_0000_0000, format, 20, default);
        let [none, bypass, zero] = DEFAULTS.map(contexts);
        // What requests without a PASID do.
        for ats in ATS {
            for from in [none, bypass, zero] {
                for to in [none, bypass, zero] {
                    assert!(hitless(&stage_1(from, ats), &stage_1(to, ats)));
                }
                assert!(hitless(&[0; 8], &stage_1(from, ats)) && hitless(&stage_1(from, ats), &[0; 8]));
            }
        }
        // PASIDs permitted and withdrawn.
        for (without, with) in [
            (stage_1(one, off), stage_1(zero, off)),
            (stage_1(one, full), stage_1(zero, full)),
            (Shape::Bypass.entry(), stage_1(bypass, off)),
            (Shape::Abort.entry(), stage_1(none, off)),
        ] {
            assert!(hitless(&without, &with) && hitless(&with, &without), "{without:x?} {with:x?}");
        }
    }
    // Translation requests permitted and withdrawn.
    assert!(
        hitless(&stage_1(one, off), &stage_1(one, full)) && hitless(&stage_1(one, full), &stage_1(one, off))
    );
    assert!(hitless(&stage_2(1, 0x1000, off), &stage_2(1, 0x1000, full)));
}

#[test]
fn going_to_abort_or_to_nothing_is_hitless_and_between_stages_it_is_not() {
    let hitless = |from: &Entry, to: &Entry| plan(from, to, used_by_ste).transition == Transition::Hitless;
    for from in entries() {
        for to in [[0; 8], Shape::Abort.entry()] {
            assert!(hitless(&from, &to) && hitless(&to, &from));
        }
        assert_eq!(plan(&from, &from, used_by_ste).steps(), [from; 3], "what is there takes no steps");
    }
    let one = |address| stage_1(Contexts::one(PhysAddr::new(address)), AtsMode::ABORT);
    assert!(hitless(&one(0x1000), &one(0x2000)));
    assert!(hitless(&one(0x1000), &Shape::Bypass.entry()) && hitless(&Shape::Bypass.entry(), &one(0x1000)));
    let two = |vmid, root| stage_2(vmid, root, AtsMode::ABORT);
    assert!(!hitless(&two(1, 0x1000), &two(2, 0x2000)), "VMID and root are in different words");
    assert!(!hitless(&one(0x1000), &two(1, 0x1000)), "the VMID is in use on both sides");
}

/// How many words a plan stores, and how many syncs it takes.
fn cost(from: &Entry, to: &Entry, used: fn(&Entry) -> Entry) -> (u32, usize) {
    let plan = plan(from, to, used);
    let stores = (0..STEPS).map(|step| plan.changes(step).count_ones()).sum();
    let syncs = (0..STEPS).filter(|&step| plan.changes(step) != 0 && plan.needs_sync(step)).count();
    (stores, syncs)
}

#[test]
fn the_usual_changes_take_no_more_stores_and_syncs_than_they_have_to() {
    let off = AtsMode::ABORT;
    let (nothing, abort, bypass) = ([0; 8], Shape::Abort.entry(), Shape::Bypass.entry());
    let one = |address| stage_1(Contexts::one(PhysAddr::new(address)), off);
    let two = |vmid, root| stage_2(vmid, root, off);
    let pasids = stage_1(table(0x2_0000_0000, ContextFormat::LINEAR, 5, DefaultSubstream::SUBSTREAM_0), off);
    let ste = |from: Entry, to: Entry| cost(&from, &to, used_by_ste);
    // What is there already.
    assert_eq!(ste(one(0x1000), one(0x1000)), (0, 0));
    // One word differs: one store.
    assert_eq!(ste(one(0x1000), one(0x2000)), (1, 1));
    assert_eq!(ste(nothing, abort), (1, 1));
    assert_eq!(ste(abort, nothing), (1, 1));
    assert_eq!(ste(one(0x1000), pasids), (1, 1));
    // The words that only the new entry uses come before V or Config, those that only the old one used go after: each is
    // stored once. What was tidied in an entry that is invalid needs no sync of its own.
    assert_eq!(ste(nothing, bypass), (2, 2));
    assert_eq!(ste(nothing, one(0x1000)), (2, 2));
    assert_eq!(ste(nothing, two(1, 0x1000)), (4, 2));
    assert_eq!(ste(one(0x1000), nothing), (2, 1));
    assert_eq!(ste(two(1, 0x1000), nothing), (4, 1));
    assert_eq!(ste(one(0x1000), abort), (2, 2));
    assert_eq!(ste(abort, one(0x1000)), (2, 2));
    // Two words that count on both sides: V away, the others, V back.
    assert_eq!(ste(two(1, 0x1000), two(2, 0x2000)), (4, 3));
    let features = Features::read(&Ids, &Options::default()).unwrap();
    let context = |root, asid| {
        let (granule, mair) = (Granule::Size4K, 0xff);
        let root = TableRoot {
            root: PhysAddr::new(root),
            format: TableFormat::VmsaStage1 { granule, mair },
            input_bits: 48,
            output_bits: 48,
            page_sizes: 0x1000,
            writes: TableWrites::Cached,
        };
        context_descriptor(&root, granule, mair, Asid::new(asid), AccessedDirty::Preset, &features)
    };
    let cd = |from: Entry, to: Entry| cost(&from, &to, used_by_cd);
    // V, ASID; TTB0; MAIR.
    assert_eq!(cd(nothing, context(0x1000, 1)), (3, 2));
    assert_eq!(cd(context(0x1000, 1), context(0x2000, 1)), (1, 1));
    assert_eq!(cd(context(0x1000, 1), context(0x1000, 2)), (1, 1));
    assert_eq!(cd(context(0x1000, 1), context(0x2000, 2)), (3, 3));
    // The exit of an address space.
    assert_eq!(cd(context(0x1000, 1), silent_descriptor(&features)), (3, 2));
}
