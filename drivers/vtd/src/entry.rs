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

/// FPD of PASID entries, which counts whether they are present or not: faults are not recorded.
pub(crate) const SILENT: u128 = 2;

/// The bits of a PASID entry that hardware uses (section 9.6).
pub(crate) fn pasid_used(entry: &[u128; 4]) -> [u128; 4] {
    /// Present and FPD, which is evaluated even if the entry is not present.
    const ALWAYS: u128 = 0b11;
    /// SSEE, SSADE and SSPTPTR.
    const SECOND_STAGE: u128 = 0xffff_ffff_ffff_f220;
    /// SRE and ERE, in the second quantum: which requests are taken, whatever the translation.
    const REQUESTS: u128 = 0b11;
    let [first, ..] = *entry;
    if first & PRESENT == 0 {
        return [ALWAYS, 0, 0, 0];
    }
    let (first_stage, second_stage) = match first >> 6 & 0b111 {
        0b001 => (u128::MAX, 0),
        0b010 => (REQUESTS, SECOND_STAGE),
        0b100 => (REQUESTS, 0),
        _ => (u128::MAX, SECOND_STAGE),
    };
    // Reserved quanta are checked for zero.
    [!SECOND_STAGE | second_stage, first_stage, u128::MAX, u128::MAX]
}

/// The bits of a context entry that hardware uses (section 9.4).
pub(crate) fn context_used([first, _]: &[u128; 2]) -> [u128; 2] {
    if first & PRESENT == 0 { [0b11, 0] } else { [u128::MAX; 2] }
}

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
mod tests;
