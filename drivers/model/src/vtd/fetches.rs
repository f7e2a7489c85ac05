//! What hardware may have fetched of one multi-quantum entry since it was last invalidated.
//!
//! A context entry is two 128-bit quanta, a PASID table entry four. Hardware may fetch them one by one, in any
//! order, with any number of stores in between, and keep what it got. So the states that the entry went through
//! are kept in order of time, and the entries that hardware may hold are the mixes of their quanta.

use super::config::{Config, Feature, Tearing};
use super::entry::Flaw;

/// What one look at memory gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look<const Q: usize> {
    /// The entry at an address. `silent` is FPD of the structures above it.
    Entry { address: u64, silent: bool, quanta: [u128; Q] },
    /// A structure above the entry is not there.
    Flaw(Flaw),
}

impl<const Q: usize> Look<Q> {
    /// Bit 0 of the first quantum, the present bit of every structure.
    pub(super) const fn present(&self) -> bool {
        matches!(self, Self::Entry { quanta, .. } if quanta[0] & 1 != 0)
    }
}

#[derive(Clone, Debug)]
struct State<const Q: usize> {
    look: Look<Q>,
    doomed: bool,
    /// Invalidated, and kept only because it separates older states from newer ones.
    spent: bool,
}

/// The states of one entry, oldest first; the last is what memory said when it was last looked at.
#[derive(Clone, Debug)]
pub(super) struct Fetches<const Q: usize> {
    states: Vec<State<Q>>,
}

impl<const Q: usize> Default for Fetches<Q> {
    fn default() -> Self {
        Self { states: Vec::new() }
    }
}

impl<const Q: usize> Fetches<Q> {
    /// Enough for any planned update; beyond it the oldest are forgotten, which is an allowed behaviour.
    const LIMIT: usize = 24;

    /// Hardware may fetch the entry as it is now. Gives the state before, if that was another one.
    pub(super) fn observe(&mut self, look: Look<Q>) -> Option<Look<Q>> {
        if let Some(last) = self.states.last_mut().filter(|last| last.look == look) {
            last.doomed = false;
            last.spent = false;
            return None;
        }
        let before = self.states.last().map(|state| state.look);
        if self.states.len() == Self::LIMIT {
            self.states.remove(0);
        }
        self.states.push(State { look, doomed: false, spent: false });
        before
    }

    /// An invalidation covers the states for which `covered` holds; gives how many.
    pub(super) fn doom(&mut self, mut covered: impl FnMut(&Look<Q>) -> bool) -> usize {
        let mut count = 0;
        for state in self.states.iter_mut().filter(|state| covered(&state.look)) {
            state.doomed = true;
            count += 1;
        }
        count
    }

    /// The invalidations completed. Gives whether nothing is left.
    pub(super) fn commit(&mut self) -> bool {
        for state in &mut self.states {
            // A moment without the present bit still separates what was before it from what came after.
            state.spent |= state.doomed;
        }
        self.states.retain(|state| !(state.spent && state.look.present()));
        // States that cannot be cached matter only between others.
        let first = self.states.iter().position(|state| state.look.present() || !state.spent);
        self.states.drain(..first.unwrap_or(self.states.len()));
        self.states.is_empty()
    }

    /// What hardware may use, beside a fetch right now that gives `now`: torn and old entries, each once.
    pub(super) fn candidates(&self, config: &Config, now: &Look<Q>) -> Vec<Look<Q>> {
        let mut found = Vec::new();
        let mut add = |look: Look<Q>| {
            if look != *now && !found.contains(&look) {
                found.push(look);
            }
        };
        for (at, state) in self.states.iter().enumerate() {
            // With CM=0 nothing is cached that is not present; with CM=1 everything is.
            if !state.look.present() && (state.spent || !config.has(Feature::CachingMode)) {
                continue;
            }
            add(state.look);
            if state.look.present() {
                self.mixes(at, config.tearing, &mut add);
            }
        }
        found
    }

    /// All entries whose first quantum was fetched from the state `at`.
    fn mixes(&self, at: usize, tearing: Tearing, add: &mut impl FnMut(Look<Q>)) {
        let Look::Entry { address, silent, quanta } = self.states[at].look else { return };
        let usable = |other: usize| match (tearing, other < at) {
            (Tearing::WhilePresent, true) => self.states[other..=at].iter().all(|s| s.look.present()),
            _ => true,
        };
        // The values of each later quantum, each once.
        let mut values: [Vec<u128>; Q] = std::array::from_fn(|_| Vec::new());
        for (_, state) in self.states.iter().enumerate().filter(|&(other, _)| usable(other)) {
            let Look::Entry { address: elsewhere, quanta, .. } = state.look else { continue };
            if elsewhere == address {
                for (list, value) in values.iter_mut().zip(quanta) {
                    if !list.contains(&value) {
                        list.push(value);
                    }
                }
            }
        }
        values[0] = vec![quanta[0]];
        let mut digits = [0usize; Q];
        loop {
            add(Look::Entry { address, silent, quanta: std::array::from_fn(|q| values[q][digits[q]]) });
            let Some(turn) = (0..Q).find(|&q| digits[q] + 1 < values[q].len()) else { return };
            digits[..turn].fill(0);
            digits[turn] += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: Config = Config::full();

    fn look(quanta: [u128; 2]) -> Look<2> {
        Look::Entry { address: 0x1000, silent: false, quanta }
    }

    fn history(states: &[[u128; 2]]) -> Fetches<2> {
        let mut fetches = Fetches::default();
        for &state in states {
            fetches.observe(look(state));
        }
        fetches
    }

    #[test]
    fn quanta_of_a_present_entry_mix_in_both_directions() {
        let fetches = history(&[[1, 10], [3, 20]]);
        let found = fetches.candidates(&UNIT, &look([3, 20]));
        assert_eq!(found.len(), 3);
        for mix in [[1, 10], [1, 20], [3, 10]] {
            assert!(found.contains(&look(mix)), "{mix:?}");
        }
    }

    #[test]
    fn fields_published_by_a_present_bit_stored_last_never_tear() {
        let fetches = history(&[[0, 0], [0, 20], [1, 20]]);
        assert_eq!(fetches.candidates(&UNIT, &look([1, 20])), []);
        let strict = Config { tearing: Tearing::Unrestricted, ..UNIT };
        assert_eq!(fetches.candidates(&strict, &look([1, 20])), [look([1, 0])]);
    }

    #[test]
    fn zeroing_an_entry_before_its_invalidation_tears_it() {
        let fetches = history(&[[1, 20], [0, 20], [0, 0]]);
        let found = fetches.candidates(&UNIT, &look([0, 0]));
        assert_eq!(found, [look([1, 20]), look([1, 0])]);
        let mut fetches = history(&[[1, 20], [0, 20]]);
        assert_eq!(fetches.doom(|_| true), 2);
        assert!(fetches.commit());
        fetches.observe(look([0, 0]));
        assert_eq!(fetches.candidates(&UNIT, &look([0, 0])), []);
    }

    #[test]
    fn an_invalidation_that_misses_the_old_state_leaves_it() {
        let mut fetches = history(&[[1, 10], [0, 10], [1, 20]]);
        fetches.doom(|state| matches!(state, Look::Entry { quanta: [1, 20], .. }));
        assert!(!fetches.commit());
        fetches.observe(look([1, 20]));
        // The old entry is still there; it cannot mix with fields of the new one stored before it was re-published.
        assert!(fetches.candidates(&UNIT, &look([1, 20])).contains(&look([1, 10])));
        assert!(!fetches.candidates(&UNIT, &look([1, 20])).contains(&look([3, 10])));
    }

    #[test]
    fn entries_in_different_places_do_not_mix() {
        let mut fetches = history(&[[1, 10]]);
        let moved = Look::Entry { address: 0x2000, silent: false, quanta: [3, 20] };
        fetches.observe(moved);
        assert_eq!(fetches.candidates(&UNIT, &moved), [look([1, 10])]);
    }

    #[test]
    fn absent_entries_are_cached_only_in_caching_mode() {
        let fetches = history(&[[0, 0], [1, 20]]);
        assert_eq!(fetches.candidates(&UNIT, &look([1, 20])), []);
        let caching = UNIT.with(Feature::CachingMode);
        assert_eq!(fetches.candidates(&caching, &look([1, 20])), [look([0, 0])]);
    }
}
