//! Choices that an architecture leaves to hardware.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A small generator of pseudo-random numbers (xorshift64* behind a splitmix64 seed), the same everywhere.
#[derive(Clone, Debug)]
pub struct Prng(u64);

impl Prng {
    /// A generator for a seed; every seed is good, 0 too.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((z ^ (z >> 31)) | 1)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`; 0 if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        // The high bits are the good ones; the bias of a multiply-shift is far below what a test can notice.
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// True `numerator` times out of `denominator`.
    pub fn chance(&mut self, numerator: u32, denominator: u32) -> bool {
        self.below(u64::from(denominator)) < u64::from(numerator)
    }
}

#[derive(Debug)]
struct Inner {
    prng: Prng,
    scripts: BTreeMap<&'static str, VecDeque<u64>>,
    odds: BTreeMap<&'static str, (u32, u32)>,
}

/// The source of every choice a model makes, shared by a model and the devices behind it.
///
/// Choices have names (`"smmu.cmdq.pause"`). A name's next choice comes from its script if it has one left, else
/// from the odds set for it, else it is the tame one: nothing late, nothing injected. The same seed, scripts,
/// odds and calls give the same run.
#[derive(Debug)]
pub struct Schedule(Mutex<Inner>);

impl Schedule {
    /// A schedule in which all choices are tame until odds or scripts say otherwise.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(Inner { prng: Prng::new(seed), scripts: BTreeMap::new(), odds: BTreeMap::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `point` fire `numerator` times out of `denominator` from now on (0 out of anything: never).
    pub fn odds(&self, point: &'static str, numerator: u32, denominator: u32) -> &Self {
        self.lock().odds.insert(point, (numerator, denominator));
        self
    }

    /// Appends explicit answers for `point`: for [`Self::fires`] non-zero means yes, for [`Self::pick`] it is the
    /// choice itself.
    pub fn script(&self, point: &'static str, answers: &[u64]) -> &Self {
        self.lock().scripts.entry(point).or_default().extend(answers);
        self
    }

    /// Drops all scripts and odds: tame from here on.
    pub fn calm(&self) {
        let mut inner = self.lock();
        inner.scripts.clear();
        inner.odds.clear();
    }

    /// Whether `point` happens this time.
    pub fn fires(&self, point: &'static str) -> bool {
        let mut inner = self.lock();
        if let Some(answer) = inner.scripts.get_mut(point).and_then(VecDeque::pop_front) {
            return answer != 0;
        }
        match inner.odds.get(point).copied() {
            Some((numerator, denominator)) => inner.prng.chance(numerator, denominator),
            None => false,
        }
    }

    /// One of `bound` alternatives (0 if there is none to choose from). Without a script it is random.
    pub fn pick(&self, point: &'static str, bound: u64) -> u64 {
        let mut inner = self.lock();
        if let Some(answer) = inner.scripts.get_mut(point).and_then(VecDeque::pop_front) {
            return if bound == 0 { 0 } else { answer % bound };
        }
        inner.prng.below(bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_another_seed_others() {
        let run = |seed| {
            (0..8).map(|_| 0).scan(Prng::new(seed), |p, _: i32| Some(p.next_u64())).collect::<Vec<_>>()
        };
        assert_eq!(run(0), run(0));
        assert_ne!(run(0), run(1));
    }

    #[test]
    fn scripts_come_before_odds_and_odds_before_tameness() {
        let schedule = Schedule::new(1);
        assert!(!schedule.fires("x"));
        schedule.odds("x", 1, 1).script("x", &[0, 1]);
        assert!(!schedule.fires("x"));
        assert!(schedule.fires("x"));
        assert!(schedule.fires("x"));
        schedule.calm();
        assert!(!schedule.fires("x"));
        schedule.script("y", &[7]);
        assert_eq!(schedule.pick("y", 4), 3);
        assert_eq!(schedule.pick("y", 0), 0);
    }
}
