//! Turns at a ring whose consumer is done at once.
//!
//! There, what takes time is to move the lines that all submitters write from one CPU's cache to the other's, several for
//! each submission. So whoever meets others there again and again stays away for the length of a turn, in which another
//! CPU has all of the lines and submits at full speed. Then he asks for a turn of his own, by a bit in the word that every
//! submission reads anyway. Whoever is asked so stays away next, with the batch that he has just published; so nobody
//! looks for others who does not meet them.
//!
//! What is left to wait for after that are the lines of the ring itself, which are still in the other CPU's cache. Whoever
//! gets a turn asks for them all together.

use super::{Position, Producers, Publisher};
use crate::Hal;
use crate::word::Word;
use core::sync::atomic::Ordering;

/// In the word of the calls: somebody asks for a turn.
pub(super) const ASKED: u64 = 1 << 63;

/// How long a turn is, in nanoseconds.
const TURN_NS: u64 = 20_000;

/// How many turns somebody stays away at most if others get theirs first.
const MOST_TURNS: u64 = 8;

/// Batches that are left to other CPUs in so many nanoseconds are more than chance.
const CROWD_NS: u64 = 2_000;

/// When who left a batch to another CPU looks whether it is done, in nanoseconds.
const SOON_NS: u64 = 500;

/// How often somebody who stays away looks at the clock at most, which might stand still.
const MOST_LOOKS: u32 = 4096;

/// What those write who stay away, or are about to.
#[repr(align(128))]
pub(super) struct Turns<W> {
    /// When the last turn began, by the clock.
    began: W,
    /// When a batch was last left to another CPU, by the clock.
    left: W,
    /// How many turns were given.
    given: W,
}

impl<W: Word> Turns<W> {
    pub(super) fn new() -> Self {
        let [began, left, given] = [const { 0 }; 3].map(W::new);
        Self { began, left, given }
    }
}

impl<W: Word, B> Producers<W, B> {
    /// To be called with interrupts as they were, after a batch was published by `publisher`: leaves the ring to others
    /// for a moment, if they submit as often as the caller and the consumer takes no time. `is_done` says whether it is
    /// done with the batch. `fetch` is asked to have the lines of the ring [fetched](crate::barrier::fetch_to_write) from
    /// a place on, about as many as a turn needs.
    ///
    /// Nothing of the ring is held meanwhile, but whatever locks the caller has are held for so much longer, mostly 20
    /// microseconds and 160 at most: to be called where submissions come in a row, and not where somebody else is held
    /// up. Who submits now and then is not kept, whatever others do.
    #[inline]
    pub fn take_turns<H: Hal>(
        &self,
        hal: &H,
        publisher: Publisher,
        is_done: impl FnOnce() -> bool,
        fetch: impl FnOnce(Position),
    ) {
        match publisher {
            Publisher::Own => {}
            Publisher::Other => self.meet_others(hal, is_done, fetch),
            Publisher::Asked => self.stay_away(hal, hal.now_ns(), fetch),
        }
    }

    #[cold]
    #[inline(never)]
    fn meet_others<H: Hal>(&self, hal: &H, is_done: impl FnOnce() -> bool, fetch: impl FnOnce(Position)) {
        let start = hal.now_ns();
        let before = self.turns.left.swap(start, Ordering::Relaxed);
        if start.saturating_sub(before) > CROWD_NS {
            return;
        }
        let looks = (0..MOST_LOOKS).take_while(|_| hal.now_ns().saturating_sub(start) < SOON_NS);
        looks.for_each(|_| hal.relax());
        if is_done() {
            self.stay_away(hal, start, fetch);
        }
    }

    /// Stays away since `start`, and returns with a turn, if anybody is there to give it.
    #[cold]
    #[inline(never)]
    fn stay_away<H: Hal>(&self, hal: &H, start: u64, fetch: impl FnOnce(Position)) {
        for _ in 0..MOST_LOOKS {
            let now = hal.now_ns();
            if now.saturating_sub(start) >= MOST_TURNS * TURN_NS {
                return;
            }
            let began = self.turns.began.load(Ordering::Relaxed).max(start);
            if now.saturating_sub(began) >= TURN_NS
                && let Some(request) = self.ask()
            {
                self.turns.began.store(now, Ordering::Relaxed);
                // Whoever is there ends his turn meanwhile.
                fetch(self.published());
                self.await_answer(request);
                return;
            }
            hal.relax();
        }
    }

    /// Asks for a turn, unless somebody else does.
    fn ask(&self) -> Option<Request> {
        let given_before = self.turns.given.load(Ordering::Relaxed);
        let asked = self.line.calls.fetch_or(ASKED, Ordering::Relaxed) & ASKED != 0;
        (!asked).then_some(Request { given_before })
    }

    /// Returns when the turn is given, or soon if nobody submits who could give it.
    fn await_answer(&self, Request { given_before }: Request) {
        // Some microseconds.
        for _ in 0..4 * W::ROUNDS {
            // Not in the line that the other one is about to leave.
            if self.turns.given.load(Ordering::Relaxed) != given_before {
                return;
            }
            W::pause();
        }
        self.take_request();
    }

    /// What the caller's own publication is: gives a turn to somebody who asks for one.
    pub(super) fn give_turn(&self) -> Publisher {
        if self.is_disturbed() && self.take_request() {
            self.turns.given.fetch_add(1, Ordering::Relaxed);
            Publisher::Asked
        } else {
            Publisher::Own
        }
    }

    /// Takes what somebody asked for, who may just have taken it back.
    fn take_request(&self) -> bool {
        self.line.calls.fetch_and(!ASKED, Ordering::Relaxed) & ASKED != 0
    }
}

/// Somebody has asked for a turn.
struct Request {
    given_before: u64,
}
