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

    /// Takes out the least number from `least` on.
    fn take_from(&mut self, least: usize) -> Option<u16> {
        if self.len == 0 {
            return None;
        }
        let mut picked = u64::MAX << (least % 64);
        for (at, word) in self.words.iter_mut().enumerate().skip(least / 64) {
            let rest = *word & picked;
            if rest != 0 {
                let bit = rest.trailing_zeros();
                *word &= !(1 << bit);
                self.len -= 1;
                return Some((at * 64) as u16 + bit as u16);
            }
            picked = u64::MAX;
        }
        None
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

    fn take_group(&mut self, whose: Whose) -> Option<PageAnswer> {
        let pasid = |index: u16| self.pasids.get(usize::from(index)).copied().flatten();
        let index = self.groups.take(|index| whose.includes(pasid(index)))?;
        let to = Answered::Group(GroupIndex::new(index));
        Some(PageAnswer { endpoint: self.endpoint, pasid: pasid(index), to, response: PageResponse::Invalid })
    }

    fn take_stall(&mut self) -> Option<PageAnswer> {
        let tag = self.stalls.take(|_| true)?;
        Some(self.refuse_stall(tag))
    }

    fn take_stall_from(&mut self, least: usize) -> Option<(u16, PageAnswer)> {
        let tag = self.stalls.take_from(least)?;
        Some((tag, self.refuse_stall(tag)))
    }

    fn refuse_stall(&self, tag: u16) -> PageAnswer {
        let (to, response) = (Answered::Stall(StallTag(tag)), PageResponse::Invalid);
        PageAnswer { endpoint: self.endpoint, pasid: None, to, response }
    }
}

/// How far a pass over the stalled transactions of a device has come.
///
/// It meets all that are there when it begins, and each tag once: a device that stalls again for each answer does not
/// keep it going.
#[derive(Default)]
pub(super) struct Pass {
    /// Of which endpoint, as a position in [`Refused`].
    at: usize,
    /// The least tag that it has not met yet.
    least: usize,
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

    /// Takes out any answer.
    pub(super) fn take_any(&mut self) -> Option<PageAnswer> {
        self.0.iter_mut().find_map(|told| told.take_group(Whose::Everybody).or_else(|| told.take_stall()))
    }

    /// Takes out an answer to a group of those meant, or to the next stalled transaction of a pass, whoever's it is:
    /// they are all refused in any case.
    pub(super) fn take(&mut self, whose: Whose, pass: &mut Pass) -> Option<PageAnswer> {
        self.0.iter_mut().find_map(|told| told.take_group(whose)).or_else(|| self.next_stall(pass))
    }

    fn next_stall(&mut self, pass: &mut Pass) -> Option<PageAnswer> {
        while let Some(told) = self.0.get_mut(pass.at) {
            if let Some((tag, answer)) = told.take_stall_from(pass.least) {
                pass.least = usize::from(tag) + 1;
                return Some(answer);
            }
            *pass = Pass { at: pass.at + 1, least: 0 };
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_pass_meets_what_is_there_and_each_tag_once() {
        let stall = |endpoint: u32, tag| PageAnswer {
            endpoint: EndpointId::new(endpoint),
            pasid: None,
            to: Answered::Stall(StallTag(tag)),
            response: PageResponse::Invalid,
        };
        let mut refused = Refused::new(&[EndpointId::new(1), EndpointId::new(2)]).unwrap();
        let there = [0, 1, 63, 64, 200, u16::MAX].map(|tag| [stall(1, tag), stall(2, tag)]);
        there.iter().flatten().for_each(|answer| refused.insert(answer));
        let (mut pass, mut met) = (Pass::default(), Vec::new());
        while let Some(answer) = refused.take(Whose::Pasid(None), &mut pass) {
            met.push(answer);
            // At once again.
            refused.insert(&answer);
        }
        let expected: Vec<_> = [0, 1].iter().flat_map(|at| there.map(|both| both[*at])).collect();
        assert_eq!(met, expected);
        assert!(core::iter::from_fn(|| refused.take_any()).count() == expected.len());
    }

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
