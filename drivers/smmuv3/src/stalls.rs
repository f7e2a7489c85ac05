//! Stalled transactions that wait for an answer (IHI 0070, 3.12.2 and 4.7.1).
//!
//! A tag names a transaction from its event up to the one answer, or the end of all that its stream has stalled. After
//! that it may name another one. So what is answered is only what is open here: it is noted as its event is read, under
//! the event queue's lock, and taken out as the answer goes to the command queue, with the attachments locked.
//!
//! When a stream ends, its stalls end with it: nothing of it is open any more, and events of it that are still in the
//! queue are read as [the faults](ended) that they have become.

use crate::spec::event::{EVENT_WORDS, Event0, Event1, EventId};
use alloc::vec::Vec;
use portcullis_hal::{Hal, OutOfMemory, StreamId, list};
use portcullis_iommu::StallTag;
use spin::Mutex;

/// The kinds of events that can stall.
const KINDS: [EventId; 4] =
    [EventId::F_TRANSLATION, EventId::F_ADDR_SIZE, EventId::F_ACCESS, EventId::F_PERMISSION];

/// The stall that an event is about, if it is about one.
pub(crate) fn stall([word0, word1, ..]: &[u64; EVENT_WORDS]) -> Option<Stall> {
    let (word0, word1) = (Event0::from(*word0), Event1::from(*word1));
    let stalls = word1.stall() && KINDS.contains(&word0.id());
    stalls.then(|| Stall { stream: StreamId::new(word0.sid()), tag: StallTag(word1.stag()) })
}

/// The same event, of a transaction that is not stalled.
pub(crate) fn ended([word0, word1, rest @ ..]: [u64; EVENT_WORDS]) -> [u64; EVENT_WORDS] {
    let [word2, word3] = rest;
    [word0, Event1::from(word1).with_stall(false).into(), word2, word3]
}

/// A stalled transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stall {
    pub(crate) stream: StreamId,
    pub(crate) tag: StallTag,
}

/// Those that were reported and not answered.
pub(crate) struct Stalls {
    most: usize,
    /// With room for `most`. Taken with interrupts masked.
    open: Mutex<Vec<Stall>>,
}

impl Stalls {
    /// None, of a unit that stalls `most` transactions at a time.
    pub(crate) fn new(most: u16) -> Result<Self, OutOfMemory> {
        let most = usize::from(most);
        let mut open = Vec::new();
        open.try_reserve_exact(most).map_err(|_| OutOfMemory)?;
        Ok(Self { most, open: Mutex::new(open) })
    }

    /// How many there are at most.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// Notes the stall that an event is about, if it is about one. Interrupts are masked.
    pub(crate) fn note(&self, event: &[u64; EVENT_WORDS]) {
        if let Some(stall) = stall(event) {
            self.add(stall);
        }
    }

    fn add(&self, stall: Stall) {
        let mut open = self.open.lock();
        // A unit that holds more than it says gets no answer to those.
        if !open.contains(&stall) {
            let _room = list::push_reserved(&mut open, stall);
        }
    }

    /// Takes a stall out, to answer it; `false` if nobody waits for an answer any more.
    pub(crate) fn take(&self, hal: &impl Hal, stall: Stall) -> bool {
        hal.critical(|| {
            let mut open = self.open.lock();
            let at = open.iter().position(|other| *other == stall);
            at.and_then(|at| list::remove(&mut open, at)).is_some()
        })
    }

    /// Puts a stall back that did not get its answer.
    pub(crate) fn put_back(&self, hal: &impl Hal, stall: Stall) {
        hal.critical(|| self.add(stall));
    }

    /// Whether a stream has any.
    pub(crate) fn has(&self, hal: &impl Hal, stream: StreamId) -> bool {
        hal.critical(|| self.open.lock().iter().any(|stall| stall.stream == stream))
    }

    /// Forgets those of a stream, which have ended. Interrupts are masked.
    pub(crate) fn forget(&self, stream: StreamId) {
        self.open.lock().retain(|stall| stall.stream != stream);
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
        let of = |sid, tag| Stall { stream: StreamId::new(sid), tag: StallTag(tag) };
        for (sid, tag) in [(1, 7), (2, 7), (1, 8), (1, 7)] {
            stalls.note(&event(sid, tag));
        }
        assert!(stalls.take(&hal, of(1, 7)));
        assert!(!stalls.take(&hal, of(1, 7)), "answered");
        assert!(!stalls.take(&hal, of(3, 7)), "never stalled");
        stalls.put_back(&hal, of(1, 7));
        assert!(stalls.has(&hal, StreamId::new(1)));
        stalls.forget(StreamId::new(1));
        assert!(!stalls.has(&hal, StreamId::new(1)));
        assert!(!stalls.take(&hal, of(1, 8)), "ended");
        assert!(stalls.take(&hal, of(2, 7)));
        // Never more than there is room for.
        (0..8).for_each(|tag| stalls.note(&event(1, tag)));
        assert_eq!((0..8).filter(|&tag| stalls.take(&hal, of(1, tag))).count(), 4);
    }

    #[test]
    fn an_event_that_has_ended_is_the_same_event_without_the_mark() {
        let [word0, word1, word2, word3] = event(0x18, 0x1234);
        let stalled = [word0, word1 | 1 << 35 | 1 << 40, word2, word3];
        assert_eq!(stall(&stalled), Some(Stall { stream: StreamId::new(0x18), tag: StallTag(0x1234) }));
        assert_eq!(stall(&ended(stalled)), None);
        assert_eq!(ended(stalled), [word0, 1 << 40 | 1 << 35 | 0x1234, word2, word3]);
    }
}
