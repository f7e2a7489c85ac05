//! Stalled transactions that wait for an answer (IHI 0070, 3.12.2 and 4.7.1).
//!
//! A tag names a transaction from its event up to the one answer, or the end of all that its stream has stalled. After
//! that it may name another one, of the same stream too. So whoever answers knows a transaction not by its tag but by
//! its place here and a serial number, which no other one of the unit has. It takes its place as its event is read, under
//! the event queue's lock, and leaves it when the unit has the answer, or when its stream ends.
//!
//! When a stream ends, its stalls end with it: nothing of it is open any more, and events of it that are still in the
//! queue are read as [the faults](ended) that they have become.
//!
//! To note a stall, and to answer it, takes the same time however many there are.

use crate::spec::event::{EVENT_WORDS, Event0, Event1, EventId};
use alloc::vec::Vec;
use portcullis_hal::{Hal, OutOfMemory, StreamId, list};
use portcullis_iommu::StallId;
use spin::Mutex;

/// The kinds of events that can stall.
const KINDS: [EventId; 4] =
    [EventId::F_TRANSLATION, EventId::F_ADDR_SIZE, EventId::F_ACCESS, EventId::F_PERMISSION];

/// How many answers are on their way to the unit at a time. It may use their tags again before it says that it has them.
pub(crate) const ANSWERING: usize = 16;

/// How many places a unit needs that stalls `most` transactions at a time.
pub(crate) const fn places(most: u16) -> u32 {
    most as u32 + ANSWERING as u32
}

/// The transaction that an event says is stalled, if it says so.
pub(crate) fn stall([word0, word1, ..]: &[u64; EVENT_WORDS]) -> Option<Stall> {
    let (word0, word1) = (Event0::from(*word0), Event1::from(*word1));
    let stalls = word1.stall() && KINDS.contains(&word0.id());
    stalls.then(|| Stall { stream: StreamId::new(word0.sid()), tag: word1.stag() })
}

/// The same event, of a transaction that is not stalled.
pub(crate) fn ended([word0, word1, rest @ ..]: [u64; EVENT_WORDS]) -> [u64; EVENT_WORDS] {
    let [word2, word3] = rest;
    [word0, Event1::from(word1).with_stall(false).into(), word2, word3]
}

/// A stalled transaction as the unit names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stall {
    pub(crate) stream: StreamId,
    /// STAG.
    pub(crate) tag: u16,
}

/// What is at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// It waits for an answer.
    Open,
    /// Its answer is on the way to the unit.
    Answering,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    state: State,
    serial: u64,
    stall: Stall,
}

#[derive(Debug)]
struct Table {
    places: Vec<Place>,
    /// Those that are free, with room for all. The one that was used last is used next.
    free: Vec<u32>,
    /// The serial number of the next one.
    next: u64,
}

impl Table {
    fn find(&mut self, id: StallId, state: State) -> Option<&mut Place> {
        let place = self.places.get_mut(id.place as usize)?;
        (place.serial == id.serial && place.state == state).then_some(place)
    }

    fn set(&mut self, id: StallId, from: State, to: State) -> Option<Stall> {
        let place = self.find(id, from)?;
        place.state = to;
        let stall = place.stall;
        if to == State::Free {
            let _room = list::push_reserved(&mut self.free, id.place);
        }
        Some(stall)
    }

    /// The first of a stream's from a place on that waits for an answer. With none in use, there is nothing to look at.
    fn open(&self, stream: StreamId, from: u32) -> Option<StallId> {
        let used = if self.free.len() < self.places.len() { self.places.as_slice() } else { &[] };
        let mut places = used.iter().zip(0..).skip(from as usize);
        let (it, place) = places.find(|(it, _)| it.state == State::Open && it.stall.stream == stream)?;
        Some(StallId { place, serial: it.serial })
    }
}

/// Those that were reported and not answered.
pub(crate) struct Stalls {
    /// Taken with interrupts masked.
    table: Mutex<Table>,
}

impl Stalls {
    /// None, of a unit that stalls `most` transactions at a time.
    pub(crate) fn new(most: u16) -> Result<Self, OutOfMemory> {
        let count = if most == 0 { 0 } else { places(most) };
        let (mut places, mut free) = (Vec::new(), Vec::new());
        places.try_reserve_exact(count as usize).map_err(|_| OutOfMemory)?;
        free.try_reserve_exact(count as usize).map_err(|_| OutOfMemory)?;
        let nobody = Stall { stream: StreamId::new(0), tag: 0 };
        places.extend((0..count).map(|_| Place { state: State::Free, serial: 0, stall: nobody }));
        for place in (0..count).rev() {
            list::push_reserved(&mut free, place).map_err(|_| OutOfMemory)?;
        }
        Ok(Self { table: Mutex::new(Table { places, free, next: 1 }) })
    }

    /// Gives a place to the stall that an event is about, if it is about one. A unit that holds more than it says finds
    /// none. Interrupts are masked.
    pub(crate) fn note(&self, event: &[u64; EVENT_WORDS]) -> Option<StallId> {
        let stall = stall(event)?;
        let mut table = self.table.lock();
        let table = &mut *table;
        let at = table.free.pop()?;
        let place = table.places.get_mut(at as usize)?;
        *place = Place { state: State::Open, serial: table.next, stall };
        table.next += 1;
        Some(StallId { place: at, serial: place.serial })
    }

    /// Takes a stall of a stream, to answer it; `None` if nobody waits for an answer any more. What becomes of it has to
    /// be told: [`answered`](Self::answered) or [`put_back`](Self::put_back).
    pub(crate) fn take(&self, hal: &impl Hal, stream: StreamId, id: StallId) -> Option<Stall> {
        hal.critical(|| {
            let mut table = self.table.lock();
            table.find(id, State::Open).filter(|place| place.stall.stream == stream)?;
            table.set(id, State::Open, State::Answering)
        })
    }

    /// The unit has the answer.
    pub(crate) fn answered(&self, hal: &impl Hal, id: StallId) {
        hal.critical(|| self.table.lock().set(id, State::Answering, State::Free));
    }

    /// The unit refused the answer.
    pub(crate) fn put_back(&self, hal: &impl Hal, id: StallId) {
        hal.critical(|| self.table.lock().set(id, State::Answering, State::Open));
    }

    /// Whether a stream has any that wait for an answer.
    pub(crate) fn has(&self, hal: &impl Hal, stream: StreamId) -> bool {
        hal.critical(|| self.table.lock().open(stream, 0).is_some())
    }

    /// Forgets those of a stream, which have ended. None of them is being answered. Interrupts are masked.
    pub(crate) fn forget(&self, stream: StreamId) {
        let mut table = self.table.lock();
        let mut from = 0;
        while let Some(id) = table.open(stream, from) {
            table.set(id, State::Open, State::Free);
            from = id.place + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_hal::host::HostHal;

    fn event(sid: u64, tag: u64) -> [u64; EVENT_WORDS] {
        [sid << 32 | 0x10, 1 << 31 | tag, 0x5678, 0]
    }

    #[test]
    fn a_stall_is_open_from_its_event_to_one_answer_or_the_end_of_its_stream() {
        let hal = HostHal::new();
        let stalls = Stalls::new(4).unwrap();
        let stream = StreamId::new;
        let note = |sid, tag| stalls.note(&event(sid, tag)).unwrap();
        let take = |sid, id| stalls.take(&hal, stream(sid), id).map(|stall| stall.tag);
        let [first, other, second] = [(1, 7), (2, 7), (1, 8)].map(|(sid, tag)| note(sid, tag));
        assert_eq!(take(3, first), None, "somebody else's");
        assert_eq!(take(1, first), Some(7));
        assert_eq!(take(1, first), None, "it is being answered");
        stalls.put_back(&hal, first);
        assert_eq!(take(1, first), Some(7));
        // The unit may use the tag again before it is known to have the answer.
        let next = note(1, 7);
        stalls.answered(&hal, first);
        assert_eq!(take(1, first), None, "answered");
        assert_eq!(note(1, 9).place, first.place);
        assert_eq!(take(1, first), None, "the place is another one's");
        assert!(stalls.has(&hal, stream(1)));
        stalls.forget(stream(1));
        assert!(!stalls.has(&hal, stream(1)) && stalls.has(&hal, stream(2)));
        assert_eq!((take(1, second), take(1, next)), (None, None), "ended");
        assert_eq!(take(2, other), Some(7));
        assert_eq!(stalls.note(&[0x10, 7, 0, 0]), None, "not stalled");
    }

    #[test]
    fn there_is_a_place_for_all_that_the_unit_may_hold_and_no_more() {
        let hal = HostHal::new();
        let stalls = Stalls::new(4).unwrap();
        for round in 0..3 {
            let all: Vec<_> = core::iter::from_fn(|| stalls.note(&event(1, round))).collect();
            assert_eq!(all.len(), 4 + ANSWERING);
            assert!(all.iter().all(|id| id.place < places(4)));
            all.iter().for_each(|id| assert!(stalls.take(&hal, StreamId::new(1), *id).is_some()));
            assert_eq!(stalls.note(&event(1, 0)), None);
            all.iter().for_each(|id| stalls.answered(&hal, *id));
        }
        assert_eq!(Stalls::new(0).unwrap().note(&event(1, 0)), None);
    }

    #[test]
    fn an_event_that_has_ended_is_the_same_event_without_the_mark() {
        let [word0, word1, word2, word3] = event(0x18, 0x1234);
        let stalled = [word0, word1 | 1 << 35 | 1 << 40, word2, word3];
        assert_eq!(stall(&stalled), Some(Stall { stream: StreamId::new(0x18), tag: 0x1234 }));
        assert_eq!(stall(&ended(stalled)), None);
        assert_eq!(ended(stalled), [word0, 1 << 40 | 1 << 35 | 0x1234, word2, word3]);
    }
}
