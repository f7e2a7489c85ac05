//! Planned updates of live entries.
//!
//! Hardware reads an entry as several quanta of 128 bits, each in one piece, at different times. A plan is a sequence
//! of stores and syncs; between two syncs hardware may combine any of the values that each quantum had since the
//! first of them. Every such mix must be, in the bits that hardware uses, the old entry or the new one, or, in a
//! plan that says so, an entry that is not present.

use portcullis_iommu::Transition;

/// One step of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Store a quantum.
    Write {
        /// Which.
        quantum: usize,
        /// Its value.
        value: u128,
    },
    /// Make hardware forget what it has read of the entry.
    Sync,
}

/// The most steps of a plan for an entry of four quanta: three stores beforehand, the decisive one, three afterwards,
/// each with a sync.
const MAX_STEPS: usize = 10;

/// A plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    steps: [Option<Step>; MAX_STEPS],
    count: usize,
    /// What the device sees of it.
    pub(crate) transition: Transition,
}

impl Plan {
    fn new() -> Self {
        Self { steps: [None; MAX_STEPS], count: 0, transition: Transition::Hitless }
    }

    fn push(&mut self, step: Step) {
        if let Some(place) = self.steps.get_mut(self.count) {
            *place = Some(step);
            self.count += 1;
        }
    }

    /// Writes the quanta of `to` that differ from `now`, but for `except`, and syncs if there were any.
    fn write_differing<const N: usize>(
        &mut self,
        now: &mut [u128; N],
        to: &[u128; N],
        except: Option<usize>,
    ) {
        let mut wrote = false;
        for (quantum, (now, &value)) in now.iter_mut().zip(to).enumerate() {
            if *now != value && Some(quantum) != except {
                *now = value;
                self.push(Step::Write { quantum, value });
                wrote = true;
            }
        }
        if wrote {
            self.push(Step::Sync);
        }
    }

    /// The steps, in order.
    pub(crate) fn steps(&self) -> impl Iterator<Item = Step> + '_ {
        self.steps.iter().flatten().copied()
    }
}

/// Present, in the first quantum of every entry.
pub(crate) const PRESENT: u128 = 1;

/// Plans the change of an entry from `from` to `to`. `used` gives the bits of an entry that hardware reads.
pub(crate) fn plan<const N: usize>(
    from: [u128; N],
    to: [u128; N],
    used: impl Fn(&[u128; N]) -> [u128; N],
) -> Plan {
    let (used_from, used_to) = (used(&from), used(&to));
    // What can be written while the old entry is in force: all bits that it does not use.
    let mut staged = from;
    for ((staged, &to), used) in staged.iter_mut().zip(&to).zip(used_from) {
        *staged = *staged & used | to & !used;
    }
    let differs = |quantum: usize| {
        let bits = |words: &[u128; N]| words.get(quantum).copied().unwrap_or(0);
        (bits(&staged) ^ bits(&to)) & bits(&used_to) != 0
    };
    let mut critical = (0..N).filter(|&quantum| differs(quantum));
    let (first, second) = (critical.next(), critical.next());

    let mut plan = Plan::new();
    let mut now = from;
    if second.is_none() {
        plan.write_differing(&mut now, &staged, first);
        if let Some(quantum) = first {
            let mut switched = now;
            if let (Some(switched), Some(&to)) = (switched.get_mut(quantum), to.get(quantum)) {
                *switched = to;
            }
            plan.write_differing(&mut now, &switched, None);
        }
        plan.write_differing(&mut now, &to, None);
        return plan;
    }

    plan.transition = Transition::Disruptive;
    let mut off = now;
    if let Some(first) = off.first_mut() {
        *first &= !PRESENT;
    }
    plan.write_differing(&mut now, &off, None);
    plan.write_differing(&mut now, &to, Some(0));
    plan.write_differing(&mut now, &to, None);
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unit::pasid_used;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    type Entry = [u128; 4];

    /// PASID entries of every kind, with fields that differ and fields left over from other kinds.
    fn entries() -> Vec<Entry> {
        let mut entries = std::vec![[0; 4], [0xabc_0000 & !1, 0x77, 0, 0]];
        for pgtt in [0b001_u128, 0b010, 0b100] {
            for did in [1_u128, 2] {
                for pointer in [0x1000_u128, 0x2000] {
                    for rest in [0_u128, 0x9000] {
                        let first = pgtt == 0b001;
                        let ss = if first { rest } else { pointer };
                        let fs = if first { pointer | 0x20 } else { rest };
                        entries.push([did << 64 | ss | pgtt << 6 | 0b01001, fs, 0, 0]);
                    }
                }
            }
        }
        entries
    }

    fn view(entry: &Entry) -> Entry {
        let used = pasid_used(entry);
        core::array::from_fn(|i| entry[i] & used[i])
    }

    /// All entries that hardware can put together from the values that each quantum had.
    fn mixes(values: &[BTreeSet<u128>; 4]) -> Vec<Entry> {
        let mut mixes = std::vec![[0; 4]];
        for (i, values) in values.iter().enumerate() {
            mixes = mixes
                .iter()
                .flat_map(|mix| {
                    values.iter().map(move |&value| {
                        let mut mix = *mix;
                        mix[i] = value;
                        mix
                    })
                })
                .collect();
        }
        mixes
    }

    #[test]
    fn hardware_sees_the_old_entry_the_new_one_or_in_disruptive_plans_none() {
        let (mut hitless, mut disruptive) = (0, 0);
        for from in entries() {
            for to in entries() {
                let plan = plan(from, to, pasid_used);
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
                        let absent = mix[0] & PRESENT == 0;
                        let known = view(&mix) == view(&from) || view(&mix) == view(&to);
                        let allowed = plan.transition == Transition::Disruptive && absent;
                        assert!(known || allowed, "{from:x?} to {to:x?} shows {mix:x?}");
                    }
                }
                assert_eq!(now, to);
                assert!(plan.steps().last().is_none_or(|step| step == Step::Sync));
                match plan.transition {
                    Transition::Hitless => hitless += 1,
                    Transition::Disruptive => disruptive += 1,
                }
            }
        }
        // Only first stage to first stage with another table under another domain id cannot be done otherwise.
        assert_eq!((hitless, disruptive), (660, 16));
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
    fn first_stage_swaps_are_hitless_under_one_domain_id_only() {
        let entry = |pointer: u128, did: u128| [did << 64 | 0b001 << 6 | 1, pointer, 0, 0];
        let same = plan(entry(0x1000, 1), entry(0x2000, 1), pasid_used);
        let other = plan(entry(0x1000, 1), entry(0x2000, 2), pasid_used);
        assert_eq!(same.transition, Transition::Hitless);
        assert_eq!(other.transition, Transition::Disruptive);
    }

    #[test]
    fn the_longest_plan_fits() {
        let to = [1 | 0b001 << 6 | 7 << 64, 0x1000, 2, 3];
        let from = [1 | 0b001 << 6 | 8 << 64, 0x2000, 4, 5];
        let plan = plan(from, to, |_| [u128::MAX; 4]);
        assert_eq!(plan.count, 8);
        assert!(plan.count < MAX_STEPS);
    }
}
