//! Every entry that hardware could put together during every planned change.
//!
//! What an entry means to hardware is written down a second time here, as meanings instead of masks, from the tables of
//! VirtualBox's `iommu-intel.h` and Linux's `pasid.h`: the planner's masks are not looked at.

use super::*;
use std::collections::BTreeSet;
use std::vec::Vec;

/// What hardware makes of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Meaning {
    /// Not present; whether faults are recorded.
    Absent { fpd: bool },
    /// What it uses: FPD, and the fields in an order of the kind's own.
    Present { kind: &'static str, fields: Vec<u64> },
}

fn field(entry: &[u128], high: u32, low: u32) -> u64 {
    let quantum = entry[low as usize / 128];
    (quantum >> (low % 128)) as u64 & (u64::MAX >> (63 - (high - low)))
}

/// A PASID entry: bit numbers are those of the whole entry.
fn pasid_meaning(entry: &[u128; 4]) -> Meaning {
    let at = |high, low| field(entry, high, low);
    if at(0, 0) == 0 {
        return Meaning::Absent { fpd: at(1, 1) != 0 };
    }
    // FPD, AW, PGTT, reserved bits; DID with reserved bits, PWSNP, PGSNP, CD, EMTE, EMT, PWT, PCD, PAT; SRE, ERE; the
    // reserved quanta.
    let mut fields = std::vec![at(1, 1), at(4, 2), at(8, 6), at(11, 10), at(127, 64), at(129, 128)];
    fields.extend([at(319, 256), at(383, 320), at(447, 384), at(511, 448)]);
    // SSEE, SSADE, SSPTPTR.
    let second = [at(5, 5), at(9, 9), at(63, 12)];
    // FSPM, WPE, NXE, SMEP, EAFE, reserved bits, FSPTPTR, and the reserved word behind it.
    let first =
        [at(131, 130), at(132, 132), at(133, 133), at(135, 134), at(139, 136), at(191, 140), at(255, 192)];
    let kind = match at(8, 6) {
        1 => "first stage",
        2 => "second stage",
        4 => "pass-through",
        _ => "faulty",
    };
    if kind != "pass-through" && kind != "first stage" {
        fields.extend(second);
    }
    if kind != "pass-through" && kind != "second stage" {
        fields.extend(first);
    }
    Meaning::Present { kind, fields }
}

/// A context entry.
fn context_meaning(entry: &[u128; 2]) -> Meaning {
    let at = |high, low| field(entry, high, low);
    if at(0, 0) == 0 {
        return Meaning::Absent { fpd: at(1, 1) != 0 };
    }
    // FPD, DTE, PASIDE, PRE, reserved, PDTS, PASIDDIRPTR; RID_PASID, RID_PRIV and reserved; the reserved quantum.
    let fields = [at(1, 1), at(2, 2), at(3, 3), at(4, 4), at(8, 5), at(11, 9), at(63, 12), at(127, 64)];
    let rest = [at(191, 128), at(255, 192)];
    Meaning::Present { kind: "context", fields: fields.into_iter().chain(rest).collect() }
}

/// PASID entries of every kind that the driver makes, on units with and without snooping, memory types and five levels,
/// and what is left of an entry whose present bit was cleared.
fn pasid_entries() -> Vec<[u128; 4]> {
    let mut entries = Vec::new();
    for did in [1_u128, 2] {
        for pointer in [0x1000_u128, 0x7_2000] {
            // PGSNP and PAT; FSPM; NXE; AW.
            for (controls, five) in [(0, 0), (0x0746_0746_0180_0000, 1)] {
                let first = pointer | 0x20 | five << 2;
                entries.push([(controls | did) << 64 | (2 + five) << 2 | 1 << 6 | 1, first, 0, 0]);
            }
            // PGSNP; SSADE, which domains that track writes have; AW.
            for (controls, marked, aw) in [(0, 0, 1_u128), (1 << 23, 0, 2), (0, 1, 1), (1 << 23, 1, 2)] {
                let first = (controls | did) << 64 | pointer | marked << 9 | aw << 2 | 2 << 6 | 1;
                entries.push([first, 0, 0, 0]);
            }
        }
        entries.push([did << 64 | 2 << 2 | 4 << 6 | 1, 0, 0, 0]);
    }
    let absent: Vec<_> =
        entries.iter().map(|&[first, rest @ ..]| [first & !1, rest[0], rest[1], rest[2]]).collect();
    entries.extend(absent);
    // What is left of entries that are to be silent: on the way there, and at the end.
    let silent: Vec<_> = entries.iter().filter(|entry| entry[0] & PRESENT != 0).copied().collect();
    entries.extend(silent.iter().map(|&[first, a, b, c]| [first & !PRESENT | SILENT, a, b, c]));
    entries.extend([[0; 4], [SILENT, 0, 0, 0]]);
    entries
}

/// Context entries with every permission and several directories.
fn context_entries() -> Vec<[u128; 2]> {
    let mut entries = std::vec![[0; 2]];
    for present in [0, 1] {
        for permissions in 0..8_u128 {
            for (pointer, pdts) in [(0x4000, 0), (0x2_0000, 7), (0x4_0000, 7)] {
                entries.push([pointer | pdts << 9 | permissions << 2 | present, 0]);
            }
        }
    }
    entries
}

/// All entries that hardware can put together from the values that each quantum had.
fn mixes<const N: usize>(values: &[BTreeSet<u128>; N]) -> Vec<[u128; N]> {
    let mut mixes = std::vec![[0; N]];
    for (quantum, values) in values.iter().enumerate() {
        let with = |mix: &[u128; N], value| {
            let mut mix = *mix;
            mix[quantum] = value;
            mix
        };
        mixes = mixes.iter().flat_map(|mix| values.iter().map(move |&value| with(mix, value))).collect();
    }
    mixes
}

/// Carries out the plan between two entries, and looks at every mix at every moment.
fn check<const N: usize>(
    from: [u128; N],
    to: [u128; N],
    used: impl Fn(&[u128; N]) -> [u128; N],
    meaning: impl Fn(&[u128; N]) -> Meaning,
) -> Plan {
    let plan = plan(from, to, used);
    let (old, new) = (meaning(&from), meaning(&to));
    let mut now = from;
    let mut values = now.map(|value| BTreeSet::from([value]));
    for step in plan.steps() {
        match step {
            Step::Write { quantum, value } => {
                assert_ne!(now[quantum], value, "a store that changes nothing");
                now[quantum] = value;
                values[quantum].insert(value);
            }
            Step::Sync => values = now.map(|value| BTreeSet::from([value])),
        }
        for mix in mixes(&values) {
            let seen = meaning(&mix);
            let invalid = plan.transition == Transition::Disruptive && matches!(seen, Meaning::Absent { .. });
            assert!(
                seen == old || seen == new || invalid,
                "{:?}: {from:x?} to {to:x?} shows {mix:x?}, {seen:x?}",
                plan.transition
            );
        }
    }
    assert_eq!(now, to);
    assert!(plan.steps().last().is_none_or(|step| step == Step::Sync));
    plan
}

/// The kind that a present entry has; `None` for others.
fn kind(meaning: &Meaning) -> Option<&'static str> {
    match meaning {
        Meaning::Absent { .. } => None,
        Meaning::Present { kind, .. } => Some(kind),
    }
}

#[test]
fn between_all_pasid_entries_hardware_sees_the_old_one_the_new_one_or_in_disruptive_plans_none() {
    let mut disruptive = BTreeSet::new();
    let mut count = 0;
    for from in pasid_entries() {
        for to in pasid_entries() {
            let plan = check(from, to, pasid_used, pasid_meaning);
            count += 1;
            if plan.transition == Transition::Disruptive {
                disruptive.insert((kind(&pasid_meaning(&from)), kind(&pasid_meaning(&to)), from[0] == to[0]));
            }
        }
    }
    assert_eq!(count, 80 * 80);
    // Only tables of the first stage under another domain id or with other controls cannot be exchanged without a break.
    let first = Some("first stage");
    assert_eq!(disruptive.into_iter().collect::<Vec<_>>(), [(first, first, false)]);
}

#[test]
fn context_entries_change_by_one_store() {
    for from in context_entries() {
        for to in context_entries() {
            let plan = check(from, to, context_used, context_meaning);
            assert_eq!(plan.transition, Transition::Hitless);
            let stores = plan.steps().filter(|step| *step != Step::Sync).count();
            assert_eq!(stores, usize::from(from != to));
        }
    }
}

#[test]
fn second_stage_swaps_take_one_store() {
    let entry = |pointer: u128, did: u128| [did << 64 | pointer | 0b010 << 6 | 1, 0, 0, 0];
    let plan = plan(entry(0x1000, 1), entry(0x2000, 2), pasid_used);
    assert_eq!(plan.transition, Transition::Hitless);
    let steps: Vec<Step> = plan.steps().collect();
    let value = entry(0x2000, 2)[0];
    assert_eq!(steps, [Step::Write { quantum: 0, value }, Step::Sync]);
}

#[test]
fn first_stage_swaps_take_one_store_under_one_domain_id() {
    let entry = |pointer: u128, did: u128| [did << 64 | 0b001 << 6 | 1, pointer, 0, 0];
    let same = plan(entry(0x1000, 1), entry(0x2000, 1), pasid_used);
    let other = plan(entry(0x1000, 1), entry(0x2000, 2), pasid_used);
    assert_eq!((same.transition, other.transition), (Transition::Hitless, Transition::Disruptive));
    let steps: Vec<Step> = same.steps().collect();
    assert_eq!(steps, [Step::Write { quantum: 1, value: 0x2000 }, Step::Sync]);
}

#[test]
fn the_longest_plan_fits() {
    let to = [1 | 0b001 << 6 | 7 << 64, 0x1000, 2, 3];
    let from = [1 | 0b001 << 6 | 8 << 64, 0x2000, 4, 5];
    let plan = plan(from, to, |_| [u128::MAX; 4]);
    assert_eq!(plan.count, 8);
    assert!(plan.count < MAX_STEPS);
}
