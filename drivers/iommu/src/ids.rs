//! Pools of small numbers: ASIDs, VMIDs, domain ids.

use alloc::vec::Vec;
use portcullis_hal::OutOfMemory;

/// Numbers `first..=last`, each handed out at most once until it is given back.
///
/// Whoever gives a number back has seen the hardware confirm that nothing is tagged with it any more; a number whose
/// invalidation was never confirmed is not given back.
#[derive(Debug)]
pub struct IdPool {
    first: u32,
    count: u32,
    /// One bit per number, set while it is out.
    taken: Vec<u64>,
    /// Where the next search starts, so that a number rests before it is used again.
    hint: u32,
}

impl IdPool {
    /// A pool of the numbers from `first` to `last`, inclusive.
    pub fn new(first: u32, last: u32) -> Result<Self, OutOfMemory> {
        let count = last.saturating_sub(first).saturating_add(1);
        let words = count.div_ceil(64) as usize;
        let mut taken = Vec::new();
        taken.try_reserve_exact(words).map_err(|_| OutOfMemory)?;
        taken.resize(words, 0);
        Ok(Self { first, count, taken, hint: 0 })
    }

    /// Takes a free number, or `None` if all are out.
    pub fn take(&mut self) -> Option<u32> {
        let words = self.taken.len();
        let start = (self.hint / 64) as usize;
        for step in 0..=words {
            let index = (start + step) % words.max(1);
            let word = self.taken.get_mut(index)?;
            // On the first visit of the hinted word only the numbers from the hint on count.
            let skip = if step == 0 { (1_u64 << (self.hint % 64)) - 1 } else { 0 };
            let bit = (*word | skip).trailing_ones();
            let Some(offset) = (index as u32).checked_mul(64).and_then(|base| base.checked_add(bit)) else {
                continue;
            };
            if bit < 64 && offset < self.count {
                *word |= 1 << bit;
                self.hint = (offset + 1) % self.count;
                return Some(self.first + offset);
            }
        }
        None
    }

    /// Gives a number back. A number that is not out is ignored.
    pub fn give_back(&mut self, id: u32) {
        let offset = id.wrapping_sub(self.first);
        if offset < self.count
            && let Some(word) = self.taken.get_mut((offset / 64) as usize)
        {
            *word &= !(1 << (offset % 64));
        }
    }

    /// How many numbers are out.
    pub fn taken(&self) -> u32 {
        self.taken.iter().map(|word| word.count_ones()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_number_is_handed_out_once_and_then_none() {
        for (first, last) in [(0, 0), (1, 15), (1, 63), (1, 64), (0, 63), (0, 64), (1, 255), (5, 300)] {
            let mut pool = IdPool::new(first, last).unwrap();
            let out: BTreeSet<u32> = core::iter::from_fn(|| pool.take()).collect();
            assert_eq!(out, (first..=last).collect());
            assert_eq!(pool.take(), None);
            pool.give_back(last);
            pool.give_back(last + 1);
            assert_eq!((pool.take(), pool.take()), (Some(last), None));
        }
    }

    #[test]
    fn a_number_given_back_rests_while_others_are_free() {
        let mut pool = IdPool::new(1, 100).unwrap();
        let first = pool.take().unwrap();
        pool.give_back(first);
        assert_ne!(pool.take(), Some(first));
        assert_eq!(pool.taken(), 1);
    }
}
