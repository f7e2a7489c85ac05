//! Requests that found the queue full, and wait for a thread that refuses them.

use super::incoming::Whose;
use crate::{Answered, GroupIndex, PageAnswer, PageResponse, StallTag};
use alloc::vec::Vec;
use portcullis_hal::{EndpointId, OutOfMemory, Pasid};

/// How many group indices an endpoint has (PCIe 10.4.1).
const GROUPS: usize = 1 << 9;

/// How many stall tags a unit has for one (SMMUv3 7.3).
const STALLS: usize = 1 << 16;

fn zeroed<T: Copy>(count: usize, value: T) -> Result<Vec<T>, OutOfMemory> {
    let mut all = Vec::new();
    all.try_reserve_exact(count).map_err(|_| OutOfMemory)?;
    all.resize(count, value);
    Ok(all)
}

/// A set of numbers below a bound, in memory set aside.
struct Numbers {
    words: Vec<u64>,
    len: usize,
    /// The word in which a search begins, so that it does not pass what was taken already.
    first: usize,
}

impl Numbers {
    fn new(bound: usize) -> Result<Self, OutOfMemory> {
        Ok(Self { words: zeroed(bound.div_ceil(64), 0)?, len: 0, first: 0 })
    }

    /// Puts a number in, unless it is in already.
    fn insert(&mut self, number: u16) {
        let bit = 1 << (number % 64);
        if let Some(word) = self.words.get_mut(usize::from(number / 64))
            && *word & bit == 0
        {
            *word |= bit;
            self.len += 1;
        }
    }

    fn contains(&self, number: u16) -> bool {
        self.words.get(usize::from(number / 64)).is_some_and(|word| word >> (number % 64) & 1 != 0)
    }

    /// Takes out any number that `wanted` picks.
    fn take(&mut self, wanted: impl Fn(u16) -> bool) -> Option<u16> {
        if self.len == 0 {
            return None;
        }
        let count = self.words.len();
        for at in (self.first..count).chain(0..self.first) {
            let word = self.words.get_mut(at)?;
            let mut rest = *word;
            while rest != 0 {
                let bit = rest.trailing_zeros();
                let number = (at * 64) as u16 + bit as u16;
                if wanted(number) {
                    *word &= !(1 << bit);
                    self.len -= 1;
                    self.first = at;
                    return Some(number);
                }
                rest &= rest - 1;
            }
        }
        None
    }
}

/// What one endpoint has to be told.
struct Told {
    endpoint: EndpointId,
    groups: Numbers,
    /// With which PASID a group in `groups` asked.
    pasids: Vec<Option<Pasid>>,
    stalls: Numbers,
}

impl Told {
    fn new(endpoint: EndpointId) -> Result<Self, OutOfMemory> {
        let (groups, stalls) = (Numbers::new(GROUPS)?, Numbers::new(STALLS)?);
        Ok(Self { endpoint, groups, pasids: zeroed(GROUPS, None)?, stalls })
    }

    fn insert(&mut self, answer: &PageAnswer) {
        match answer.to {
            // A device that uses a group's index again before it has the answer gets one answer for all.
            Answered::Group(index) if self.groups.contains(index.get()) => {}
            Answered::Group(index) => {
                if let Some(slot) = self.pasids.get_mut(usize::from(index.get())) {
                    *slot = answer.pasid;
                    self.groups.insert(index.get());
                }
            }
            Answered::Stall(StallTag(tag)) => self.stalls.insert(tag),
        }
    }

    fn take(&mut self, whose: Whose) -> Option<PageAnswer> {
        let (endpoint, response) = (self.endpoint, PageResponse::Invalid);
        let pasid = |index: u16| self.pasids.get(usize::from(index)).copied().flatten();
        if let Some(index) = self.groups.take(|index| whose.includes(pasid(index))) {
            let to = Answered::Group(GroupIndex::new(index));
            return Some(PageAnswer { endpoint, pasid: pasid(index), to, response });
        }
        // They are refused in any case, so that it does not matter whose they are.
        let tag = self.stalls.take(|_| true)?;
        Some(PageAnswer { endpoint, pasid: None, to: Answered::Stall(StallTag(tag)), response })
    }
}

/// A device's requests that are to be refused. There is a place for each group index and for each stall tag of every
/// endpoint: however much a device asks, it gets its answers.
pub(super) struct Refused(Vec<Told>);

impl Refused {
    pub(super) fn new(endpoints: &[EndpointId]) -> Result<Self, OutOfMemory> {
        let mut all = Vec::new();
        all.try_reserve_exact(endpoints.len()).map_err(|_| OutOfMemory)?;
        for endpoint in endpoints {
            all.extend([Told::new(*endpoint)?]);
        }
        Ok(Self(all))
    }

    /// Keeps an answer to one of the device's endpoints.
    pub(super) fn insert(&mut self, answer: &PageAnswer) {
        if let Some(told) = self.0.iter_mut().find(|told| told.endpoint == answer.endpoint) {
            told.insert(answer);
        }
    }

    /// Takes out an answer: to one of those meant, or to any stalled transaction.
    pub(super) fn take(&mut self, whose: Whose) -> Option<PageAnswer> {
        self.0.iter_mut().find_map(|told| told.take(whose))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_set_of_numbers_gives_each_back_once() {
        let mut state = 5_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for bound in [GROUPS, STALLS] {
            let mut numbers = Numbers::new(bound).unwrap();
            let mut model = BTreeSet::new();
            let (mut again, mut none) = (0, 0);
            for _ in 0..4000 {
                let number = random(bound as u64) as u16;
                if random(2) == 0 {
                    again += usize::from(!model.insert(number));
                    numbers.insert(number);
                } else {
                    // Of some kind there are few.
                    let residue = number % 61;
                    let taken = numbers.take(|number| number % 61 == residue);
                    none += usize::from(taken.is_none());
                    match taken {
                        Some(taken) => assert!(taken % 61 == residue && model.remove(&taken)),
                        None => assert!(model.iter().all(|number| number % 61 != residue)),
                    }
                }
                assert_eq!(numbers.contains(number), model.contains(&number));
            }
            assert!(again > 0 && none > 0, "{again} {none}");
            let rest: BTreeSet<u16> = core::iter::from_fn(|| numbers.take(|_| true)).collect();
            assert_eq!((rest, numbers.len), (model, 0));
        }
    }
}
