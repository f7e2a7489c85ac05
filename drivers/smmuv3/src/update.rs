//! How a live stream table entry or context descriptor becomes another one.
//!
//! Hardware reads an entry as eight 64-bit words, each in one piece but in any order and at any time. Between two syncs
//! it may therefore see every mix of the words written meanwhile. A plan is a sequence of entries with a sync (an
//! invalidation of the cached entry, waited for) after each, such that all mixes of neighbours mean, on the bits that
//! hardware uses, the old entry or the new one; or, where that is not possible, an invalid one.

use portcullis_iommu::Transition;

/// An entry: eight 64-bit words.
pub type Entry = [u64; 8];

/// The steps from one entry to another: three entries to be written, each followed by a sync. Within a step the order of
/// the words does not matter. A step that equals what is there already needs neither stores nor a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan<'a> {
    from: &'a Entry,
    to: &'a Entry,
    /// What the first step writes: the old entry with the new values of all bits that it does not use, or nothing.
    first: Entry,
    /// By step: the words that it changes, one bit for each.
    changes: [u8; STEPS],
    /// What the device sees meanwhile.
    pub transition: Transition,
}

/// How many steps a plan has.
pub const STEPS: usize = 3;

impl Plan<'_> {
    /// The words that a step changes, one bit for each.
    #[inline]
    pub fn changes(&self, step: usize) -> u8 {
        self.changes.get(step).copied().unwrap_or_default()
    }

    /// The value of a word that a step changes.
    #[inline]
    pub fn word(&self, step: usize, word: usize) -> u64 {
        let entry = if step == 0 { &self.first } else { self.to };
        entry.get(word).copied().unwrap_or_default()
    }

    /// The entries to be written.
    pub fn steps(&self) -> [Entry; STEPS] {
        let mut entry = *self.from;
        core::array::from_fn(|step| {
            for (word, slot) in entry.iter_mut().enumerate() {
                if self.changes(step) >> word & 1 != 0 {
                    *slot = self.word(step, word);
                }
            }
            entry
        })
    }

    /// Whether a sync has to follow this step if it changed anything.
    ///
    /// It need not after the last step to an invalid entry, which was invalid before: hardware does not look at the
    /// words that were tidied up, and the next plan leaves the valid bit alone until its own first sync.
    #[inline]
    pub fn needs_sync(&self, step: usize) -> bool {
        step + 1 < STEPS || self.to.first() != Some(&0)
    }
}

/// Plans the way from `from` to `to`, where `used` gives the bits of an entry that hardware looks at.
///
/// - First all bits that the old entry does not use take their new values. If then only one word is left whose used
///   bits differ, storing that word switches over; afterwards the bits that only the old entry used are tidied up.
/// - Otherwise the first word, which holds the valid bit, is cleared; the other words are written while the entry is
///   invalid, and the first one last.
pub fn plan<'a>(from: &'a Entry, to: &'a Entry, used: fn(&Entry) -> Entry) -> Plan<'a> {
    const FIRST: u8 = 1;
    let (used_from, used_to) = (used(from), used(to));
    let mut first = [0; 8];
    // The words that differ at all, that the preparation changes, that have to switch over, and that are left to tidy up.
    let (mut different, mut early, mut switching, mut late) = (0_u8, 0_u8, 0_u8, 0_u8);
    let masks = used_from.iter().zip(&used_to);
    for (((slot, &from), &to), (&used_from, &used_to)) in first.iter_mut().zip(from).zip(to).zip(masks).rev()
    {
        *slot = from & used_from | to & !used_from;
        let shift = |mask: u8, differs: bool| mask << 1 | u8::from(differs);
        different = shift(different, from != to);
        early = shift(early, *slot != from);
        switching = shift(switching, (*slot ^ to) & used_to != 0);
        late = shift(late, *slot != to);
    }
    if switching.is_power_of_two() || switching == 0 {
        // The word that switches over is left alone until it does.
        let changes = [early & !switching, switching, late & !switching];
        return Plan { from, to, first, changes, transition: Transition::Hitless };
    }
    let [valid, ..] = *from;
    let [new, ..] = *to;
    let changes = [if valid == 0 { 0 } else { FIRST }, different & !FIRST, if new == 0 { 0 } else { FIRST }];
    Plan { from, to, first: [0; 8], changes, transition: Transition::Disruptive }
}

/// The entry with another first word.
pub(crate) fn prefixed(first: u64, rest: [u64; 7]) -> Entry {
    let [a, b, c, d, e, f, g] = rest;
    [first, a, b, c, d, e, f, g]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{used_by_cd, used_by_ste};
    use proptest::prelude::*;

    fn meaning(entry: &Entry, used: &Entry) -> Entry {
        std::array::from_fn(|i| entry[i] & used[i])
    }

    /// Checks a plan against the rule in the module's head, for every mix of neighbouring steps.
    fn check(from: &Entry, to: &Entry, used: fn(&Entry) -> Entry, valid: u64) {
        let plan = plan(from, to, used);
        assert_eq!(plan.steps()[2], *to);
        let same = |mix: &Entry, entry: &Entry| {
            let used = used(entry);
            meaning(mix, &used) == meaning(entry, &used)
        };
        let mut before = *from;
        for step in &plan.steps() {
            for choice in 0_u32..256 {
                let mix: Entry =
                    std::array::from_fn(|i| if choice >> i & 1 == 0 { before[i] } else { step[i] });
                let invalid = mix[0] & valid == 0;
                let lawful = same(&mix, from)
                    || same(&mix, to)
                    || (plan.transition == Transition::Disruptive && invalid);
                assert!(lawful, "{from:x?} -> {to:x?}: {mix:x?} in {plan:x?}");
            }
            before = *step;
        }
    }

    const STE_VALID: u64 = 1;
    const CD_VALID: u64 = 1 << 31;

    proptest! {
        #[test]
        fn any_two_stream_table_entries_are_planned_lawfully(from: Entry, to: Entry, valid: [bool; 2]) {
            let fix = |mut entry: Entry, valid| {
                entry[0] = entry[0] & !STE_VALID | u64::from(valid);
                entry
            };
            check(&fix(from, valid[0]), &fix(to, valid[1]), used_by_ste, STE_VALID);
        }

        #[test]
        fn any_two_context_descriptors_are_planned_lawfully(from: Entry, to: Entry) {
            check(&from, &to, used_by_cd, CD_VALID);
        }

        #[test]
        fn what_is_not_synced_at_the_end_of_a_plan_is_invalid_in_every_mix_with_the_next_one(
            from: Entry, to: Entry,
        ) {
            let gone = [0; 8];
            let first = plan(&from, &gone, used_by_ste);
            let [_, switched, _] = first.steps();
            prop_assert!(!first.needs_sync(2) && first.needs_sync(1) && switched[0] & STE_VALID == 0);
            let mut to = to;
            to[0] |= STE_VALID;
            // Up to the first sync of the next plan, hardware finds any of these words.
            let second = plan(&gone, &to, used_by_ste);
            prop_assert!(second.needs_sync(0) && second.needs_sync(2));
            prop_assert!([gone, second.steps()[0]].iter().all(|entry| entry[0] & STE_VALID == 0));
        }

        #[test]
        fn entries_that_differ_in_one_used_word_are_switched_by_one_store(
            from: Entry, word in 0_usize..8, bits: u64,
        ) {
            let mut from = from;
            from[0] |= STE_VALID;
            let mut to = from;
            to[word] ^= bits & !STE_VALID;
            // The configuration decides what is used, so it stays.
            to[0] = to[0] & !0b1110 | from[0] & 0b1110;
            prop_assert_eq!(plan(&from, &to, used_by_ste).transition, Transition::Hitless);
        }
    }
}
