//! How a live stream table entry or context descriptor becomes another one.
//!
//! Hardware reads an entry as eight 64-bit words, each in one piece but in any order and at any time. Between two syncs
//! it may therefore see every mix of the words written meanwhile. A plan is a sequence of entries with a sync (an
//! invalidation of the cached entry, waited for) after each, such that all mixes of neighbours mean, on the bits that
//! hardware uses, the old entry or the new one; or, where that is not possible, an invalid one.

use portcullis_iommu::Transition;

/// An entry: eight 64-bit words.
pub type Entry = [u64; 8];

/// The steps from one entry to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    steps: [Entry; 3],
    /// What the device sees meanwhile.
    pub transition: Transition,
}

impl Plan {
    /// The entries to be written, each followed by a sync. Within a step the order of the words does not matter. A
    /// step that equals what is there already needs neither stores nor a sync.
    pub fn steps(&self) -> &[Entry; 3] {
        &self.steps
    }
}

/// Plans the way from `from` to `to`, where `used` gives the bits of an entry that hardware looks at.
///
/// - First all bits that the old entry does not use take their new values. If then only one word is left whose used
///   bits differ, storing that word switches over; afterwards the bits that only the old entry used are tidied up.
/// - Otherwise the first word, which holds the valid bit, is cleared; the other words are written while the entry is
///   invalid, and the first one last.
pub fn plan(from: &Entry, to: &Entry, used: fn(&Entry) -> Entry) -> Plan {
    let (used_from, used_to) = (used(from), used(to));
    let mut prepared = [0; 8];
    let mut critical = None;
    let mut differing = 0;
    for (word, slot) in prepared.iter_mut().enumerate() {
        let of = |entry: &Entry| entry.get(word).copied().unwrap_or_default();
        *slot = of(from) & of(&used_from) | of(to) & !of(&used_from);
        if (*slot ^ of(to)) & of(&used_to) != 0 {
            differing += 1;
            critical = Some(word);
        }
    }
    if differing > 1 {
        let [_, from_rest @ ..] = *from;
        let [first, rest @ ..] = *to;
        return Plan {
            steps: [prefixed(0, from_rest), prefixed(0, rest), prefixed(first, rest)],
            transition: Transition::Disruptive,
        };
    }
    // The word that switches over is left alone until it does.
    let mut switched = prepared;
    if let Some(word) = critical
        && let (Some(before), Some(after)) = (prepared.get_mut(word), switched.get_mut(word))
        && let (Some(old), Some(new)) = (from.get(word), to.get(word))
    {
        (*before, *after) = (*old, *new);
    }
    Plan { steps: [prepared, switched, *to], transition: Transition::Hitless }
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
        for step in plan.steps() {
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
