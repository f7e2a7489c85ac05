//! Requests that found the queue full, and wait for a thread that refuses them.

use super::incoming::Whose;
use crate::{Answered, GroupIndex, PageAnswer, PageResponse, StallId};
use alloc::vec::Vec;
use portcullis_hal::{EndpointId, OutOfMemory, Pasid, list};

/// How many group indices an endpoint has (PCIe 10.4.1).
const GROUPS: usize = 1 << 9;

fn filled<T: Copy>(count: usize, value: T) -> Result<Vec<T>, OutOfMemory> {
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
        Ok(Self { words: filled(bound.div_ceil(64), 0)?, len: 0, first: 0 })
    }

    /// Puts a number in, unless it is in already.
    fn insert(&mut self, number: usize) {
        let bit = 1 << (number % 64);
        if let Some(word) = self.words.get_mut(number / 64)
            && *word & bit == 0
        {
            *word |= bit;
            self.len += 1;
        }
    }

    fn contains(&self, number: usize) -> bool {
        self.words.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 != 0)
    }

    /// Takes out the least number from `least` on.
    fn take_from(&mut self, least: usize) -> Option<usize> {
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
                return Some(at * 64 + bit as usize);
            }
            picked = u64::MAX;
        }
        None
    }

    /// Takes out any number that `wanted` picks.
    fn take(&mut self, wanted: impl Fn(usize) -> bool) -> Option<usize> {
        if self.len == 0 {
            return None;
        }
        let count = self.words.len();
        for at in (self.first..count).chain(0..self.first) {
            let word = self.words.get_mut(at)?;
            let mut rest = *word;
            while rest != 0 {
                let bit = rest.trailing_zeros();
                let number = at * 64 + bit as usize;
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

/// The groups of which one endpoint has to be told.
struct Told {
    endpoint: EndpointId,
    groups: Numbers,
    /// With which PASID a group in `groups` asked.
    pasids: Vec<Option<Pasid>>,
}

impl Told {
    fn new(endpoint: EndpointId) -> Result<Self, OutOfMemory> {
        Ok(Self { endpoint, groups: Numbers::new(GROUPS)?, pasids: filled(GROUPS, None)? })
    }

    fn insert(&mut self, index: GroupIndex, pasid: Option<Pasid>) {
        let at = usize::from(index.get());
        // A device that uses a group's index again before it has the answer gets one answer for all.
        if !self.groups.contains(at)
            && let Some(slot) = self.pasids.get_mut(at)
        {
            *slot = pasid;
            self.groups.insert(at);
        }
    }

    fn take(&mut self, whose: Whose) -> Option<PageAnswer> {
        let pasid = |index: usize| self.pasids.get(index).copied().flatten();
        let index = self.groups.take(|index| whose.includes(pasid(index)))?;
        let to = Answered::Group(GroupIndex::new(index as u16));
        Some(PageAnswer { endpoint: self.endpoint, pasid: pasid(index), to, response: PageResponse::Invalid })
    }
}

/// The stalled transactions of a device that are to be refused, by their place in the unit.
struct Stalls {
    places: Numbers,
    /// Which transaction at a place in `places` is meant.
    who: Vec<Who>,
}

#[derive(Clone, Copy)]
struct Who {
    endpoint: EndpointId,
    serial: u64,
}

impl Stalls {
    fn new(places: usize) -> Result<Self, OutOfMemory> {
        let nobody = Who { endpoint: EndpointId::new(0), serial: 0 };
        Ok(Self { places: Numbers::new(places)?, who: filled(places, nobody)? })
    }

    fn insert(&mut self, endpoint: EndpointId, StallId { place, serial }: StallId) {
        let at = place as usize;
        let waits = self.places.contains(at);
        let Some(who) = self.who.get_mut(at) else { return };
        // Of two at one place, the earlier one has ended, whichever was reported first.
        if !waits || who.serial < serial {
            *who = Who { endpoint, serial };
            self.places.insert(at);
        }
    }

    /// Takes out the one at the least place from `least` on, and tells the place.
    fn take_from(&mut self, least: usize) -> Option<(usize, PageAnswer)> {
        let at = self.places.take_from(least)?;
        let Who { endpoint, serial } = *self.who.get(at)?;
        let to = Answered::Stall(StallId { place: at as u32, serial });
        Some((at, PageAnswer { endpoint, pasid: None, to, response: PageResponse::Invalid }))
    }
}

/// How far a pass over the stalled transactions of a device has come.
///
/// It meets all that are there when it begins, and each place once: a device that stalls again for each answer does not
/// keep it going.
#[derive(Default)]
pub(super) struct Pass {
    /// The least place that it has not met yet.
    least: usize,
}

/// A device's requests that are to be refused. There is a place for each group index of every endpoint, and for each
/// transaction that the unit can hold: however much a device asks, it gets its answers.
pub(super) struct Refused {
    groups: Vec<Told>,
    stalls: Stalls,
}

impl Refused {
    /// For a device with these endpoints, behind a unit with so many places for stalled transactions.
    pub(super) fn new(endpoints: &[EndpointId], stall_places: u32) -> Result<Self, OutOfMemory> {
        let mut groups = Vec::new();
        groups.try_reserve_exact(endpoints.len()).map_err(|_| OutOfMemory)?;
        for endpoint in endpoints {
            list::push(&mut groups, Told::new(*endpoint)?)?;
        }
        Ok(Self { groups, stalls: Stalls::new(stall_places as usize)? })
    }

    /// Keeps an answer to one of the device's endpoints.
    pub(super) fn insert(&mut self, answer: &PageAnswer) {
        match answer.to {
            Answered::Group(index) => {
                if let Some(told) = self.groups.iter_mut().find(|told| told.endpoint == answer.endpoint) {
                    told.insert(index, answer.pasid);
                }
            }
            Answered::Stall(id) => self.stalls.insert(answer.endpoint, id),
        }
    }

    /// Takes out any answer.
    pub(super) fn take_any(&mut self) -> Option<PageAnswer> {
        let group = self.groups.iter_mut().find_map(|told| told.take(Whose::Everybody));
        group.or_else(|| self.stalls.take_from(0).map(|(_, answer)| answer))
    }

    /// Takes out an answer to a group of those meant, or to the next stalled transaction of a pass, whoever's it is:
    /// they are all refused in any case.
    pub(super) fn take(&mut self, whose: Whose, pass: &mut Pass) -> Option<PageAnswer> {
        self.groups.iter_mut().find_map(|told| told.take(whose)).or_else(|| {
            let (place, answer) = self.stalls.take_from(pass.least)?;
            pass.least = place + 1;
            Some(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_hal::host::Random;
    use std::collections::BTreeSet;

    fn stall(endpoint: u32, place: u32, serial: u64) -> PageAnswer {
        PageAnswer {
            endpoint: EndpointId::new(endpoint),
            pasid: None,
            to: Answered::Stall(StallId { place, serial }),
            response: PageResponse::Invalid,
        }
    }

    #[test]
    fn a_pass_meets_what_is_there_and_each_place_once() {
        let mut refused = Refused::new(&[EndpointId::new(1), EndpointId::new(2)], 1 << 16).unwrap();
        let there: Vec<_> = [0, 1, 63, 64, 200, 0xffff].map(|place| stall(1 + place % 2, place, 7)).into();
        there.iter().for_each(|answer| refused.insert(answer));
        let (mut pass, mut met) = (Pass::default(), Vec::new());
        while let Some(answer) = refused.take(Whose::Pasid(None), &mut pass) {
            met.push(answer);
            // At once again.
            refused.insert(&answer);
        }
        assert_eq!(met, there);
        assert!(core::iter::from_fn(|| refused.take_any()).eq(there));
    }

    #[test]
    fn of_two_transactions_at_one_place_the_later_one_is_refused_whichever_is_told_first() {
        let (early, late) = (stall(1, 5, 7), stall(2, 5, 8));
        for order in [[early, late], [late, early]] {
            let mut refused = Refused::new(&[EndpointId::new(1), EndpointId::new(2)], 8).unwrap();
            order.iter().for_each(|answer| refused.insert(answer));
            assert_eq!((refused.take_any(), refused.take_any()), (Some(late), None));
            // What is out of reach has no place.
            refused.insert(&stall(1, 8, 9));
            assert_eq!(refused.take_any(), None);
        }
    }

    #[test]
    fn a_set_of_numbers_gives_each_back_once() {
        let mut numbers = Random::new(5);
        let mut random = |below| numbers.below(below);
        for bound in [GROUPS, 1 << 16] {
            let mut numbers = Numbers::new(bound).unwrap();
            let mut model = BTreeSet::new();
            let (mut again, mut none) = (0, 0);
            for _ in 0..4000 {
                let number = random(bound as u64) as usize;
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
            let rest: BTreeSet<usize> = core::iter::from_fn(|| numbers.take(|_| true)).collect();
            assert_eq!((rest, numbers.len), (model, 0));
        }
    }
}
