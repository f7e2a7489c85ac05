//! Requests on their way from the interrupt handler to a thread: of bounded number, in memory set aside beforehand.

use super::refused::{Pass, Refused};
use crate::{Answered, InGroup, PageAnswer, PageRequest, PageRequestKind, PageResponse};
use alloc::vec::Vec;
use portcullis_hal::{EndpointId, OutOfMemory, Pasid};

/// How many requests of one device wait for a thread. A device that was given no more credits than this never finds the
/// queue full.
pub const PAGE_REQUEST_CAPACITY: usize = 256;

/// A first-in, first-out queue that does not grow.
struct Ring<T> {
    slots: Vec<Option<T>>,
    first: usize,
    len: usize,
}

impl<T: Copy> Ring<T> {
    fn new(capacity: usize) -> Result<Self, OutOfMemory> {
        let mut slots = Vec::new();
        slots.try_reserve_exact(capacity).map_err(|_| OutOfMemory)?;
        slots.resize(capacity, None);
        Ok(Self { slots, first: 0, len: 0 })
    }

    fn place(&self, index: usize) -> usize {
        let at = self.first + index;
        if at < self.slots.len() { at } else { at - self.slots.len() }
    }

    fn get(&self, index: usize) -> Option<T> {
        *self.slots.get(self.place(index))?
    }

    fn set(&mut self, index: usize, value: Option<T>) {
        let at = self.place(index);
        if let Some(slot) = self.slots.get_mut(at) {
            *slot = value;
        }
    }

    fn push(&mut self, item: T) -> Result<(), T> {
        if self.len == self.slots.len() {
            return Err(item);
        }
        self.len += 1;
        self.set(self.len - 1, Some(item));
        Ok(())
    }

    fn pop(&mut self) -> Option<T> {
        self.take_first(|_| true)
    }

    /// Takes out the oldest item that `wanted` picks.
    fn take_first(&mut self, wanted: impl Fn(&T) -> bool) -> Option<T> {
        let at = (0..self.len).find(|index| self.get(*index).as_ref().is_some_and(&wanted))?;
        let item = self.get(at);
        // Those before it move up, so that taking the very first costs nothing.
        for index in (0..at).rev() {
            self.set(index + 1, self.get(index));
        }
        self.set(0, None);
        self.first = self.place(1);
        self.len -= 1;
        item
    }
}

/// A request, and how often the hardware had lost requests before it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    pub(crate) request: PageRequest,
    pub(crate) epoch: u64,
}

/// What became of a request that the interrupt handler brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Queued,
    /// There was no room; an answer will be given if it needs one.
    Refused,
}

/// Whose requests are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    Pasid(Option<Pasid>),
    Everybody,
}

impl Whose {
    pub(crate) fn includes(self, pasid: Option<Pasid>) -> bool {
        match self {
            Self::Pasid(theirs) => theirs == pasid,
            Self::Everybody => true,
        }
    }
}

/// The requests of one device. Its lock is taken by interrupt handlers.
pub(crate) struct Incoming {
    requests: Ring<Arrived>,
    refused: Refused,
    epoch: u64,
}

impl Incoming {
    pub(crate) fn new(endpoints: &[EndpointId], stall_places: u32) -> Result<Self, OutOfMemory> {
        let requests = Ring::new(PAGE_REQUEST_CAPACITY)?;
        Ok(Self { requests, refused: Refused::new(endpoints, stall_places)?, epoch: 0 })
    }

    /// Takes a request that the hardware reported.
    pub(crate) fn push(&mut self, request: PageRequest) -> Taken {
        if self.requests.push(Arrived { request, epoch: self.epoch }).is_ok() {
            return Taken::Queued;
        }
        if let Some(answer) = refusal(&request) {
            self.refused.insert(&answer);
        }
        Taken::Refused
    }

    /// The hardware lost requests: no group that began before is complete any more.
    pub(crate) fn lose(&mut self) {
        self.epoch += 1;
    }

    /// Takes the next request.
    pub(crate) fn pop(&mut self) -> Option<Arrived> {
        self.requests.pop()
    }

    /// Takes out what somebody asked, whatever waits before it.
    pub(crate) fn take(&mut self, whose: Whose) -> Option<Arrived> {
        self.requests.take_first(|arrived| whose.includes(arrived.request.pasid))
    }

    /// Takes the refusal of something that found no room.
    pub(super) fn refuse_any(&mut self) -> Option<PageAnswer> {
        self.refused.take_any()
    }

    /// Takes the refusal of something that found no room: of a group of those meant, or of the next stalled transaction
    /// of a pass.
    pub(super) fn refuse(&mut self, whose: Whose, pass: &mut Pass) -> Option<PageAnswer> {
        self.refused.take(whose, pass)
    }
}

/// The answer that refuses a request, if it wants one.
pub(crate) fn refusal(request: &PageRequest) -> Option<PageAnswer> {
    let to = match request.kind {
        PageRequestKind::Group(index, InGroup::Last) => Answered::Group(index),
        PageRequestKind::Stall(tag) => Answered::Stall(tag),
        PageRequestKind::Group(_, InGroup::Partial) | PageRequestKind::StopMarker => return None,
    };
    Some(PageAnswer { endpoint: request.endpoint, pasid: request.pasid, to, response: PageResponse::Invalid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_hal::host::Random;
    use std::collections::VecDeque;

    #[test]
    fn a_ring_is_a_queue_from_which_anything_can_be_taken() {
        let mut numbers = Random::new(7);
        let mut random = |below| numbers.below(below);
        let mut ring = Ring::new(5).unwrap();
        let mut model = VecDeque::new();
        let (mut full, mut middle) = (0, 0);
        for number in 0..20_000_u64 {
            match random(3) {
                0 | 1 if model.len() < 5 => {
                    ring.push(number).unwrap();
                    model.push_back(number);
                }
                0 | 1 => {
                    full += 1;
                    assert_eq!(ring.push(number), Err(number));
                }
                _ => {
                    let residue = random(3);
                    let at = model.iter().position(|item| item % 3 == residue);
                    middle += usize::from(at.is_some_and(|at| at > 0));
                    let expected = at.and_then(|at| model.remove(at));
                    assert_eq!(ring.take_first(|item| item % 3 == residue), expected);
                }
            }
            assert_eq!(ring.len, model.len());
        }
        assert!(full > 500 && middle > 500, "{full} {middle}");
        assert!(core::iter::from_fn(|| ring.pop()).eq(model));
    }
}
