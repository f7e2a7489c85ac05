//! Many producers of one command ring, without a lock.
//!
//! A submission has three steps, all done with interrupts masked on its CPU:
//!
//! 1. [`reserve`](Producers::reserve) takes places for a batch with one atomic addition. One word holds the next free
//!    place and the limit up to which the consumer is known to have made room, so the addition returns both, and its
//!    result says whether there was room. An addition that runs past the limit closes the ring: until the word is put
//!    right, every other addition fails as well. The one that closed it knows the true next place, and puts it back at
//!    once together with a new limit, which may have room for its own batch. So nobody ever holds a place that is not
//!    free: there is nothing to wait for after the reservation, and who gives up for lack of room leaves no hole.
//! 2. The producer writes its slots. Nobody else does.
//! 3. [`publish`](Producers::publish) makes all finished batches visible to the consumer, in the order of their places,
//!    with one doorbell. Whoever finds another CPU at that marks its batch as finished and leaves it to it. Whoever finds a
//!    batch ahead of its own unfinished leaves its own to that batch's producer. Nobody waits.
//!
//! Whoever publishes for others does so for a bounded number of rounds, since interrupts are masked meanwhile. What is
//! finished later stays marked, and goes out with the next batch, or when somebody who waits
//! [takes over](Producers::take_over): whoever waits, for room or for an answer, has to do that now and then.
//!
//! Nothing here is retried by comparing and exchanging. A reservation fails only if the ring is full, or if another one
//! is taking notice that there is room again, which happens once per limit.

mod turns;

use crate::OutOfMemory;
use crate::word::Word;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use turns::{ASKED, Turns};

/// A place in the endless sequence of a ring's commands, counted from zero at start-up and modulo 2^32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Position(u32);

impl Position {
    /// The place with this number.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number, modulo 2^32.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The place `count` commands further on.
    pub const fn plus(self, count: u32) -> Self {
        Self(self.0.wrapping_add(count))
    }

    /// How many commands lie between `earlier` and this place.
    pub const fn since(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    /// Whether this place is `other` or behind it; they lie less than 2^31 commands apart.
    pub const fn has_reached(self, other: Self) -> bool {
        self.since(other) < 1 << 31
    }
}

/// Batches in a row that become visible to the consumer at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The place behind the last one: what the doorbell says.
    pub tail: Position,
    /// How many batches there are. None if the doorbell was only to be rung again.
    pub batches: u64,
    /// The sum of the weights that their producers gave them.
    pub weight: u64,
}

/// Who tells the consumer of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publisher {
    /// Its producer did.
    Own,
    /// Another CPU will, or did a moment ago: that of the publisher, or of a batch ahead. If the publisher has had enough,
    /// it is whoever [takes over](Producers::take_over).
    Other,
    /// Its producer did, and another CPU has asked for its turn meanwhile: see [`take_turns`](Producers::take_turns).
    Asked,
}

/// Others who came while a batch was on its way. Its publication has to be [finished](Producers::publish_in_company).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "somebody may wait for what is to be published"]
pub enum Company {
    /// Somebody publishes.
    Publisher,
    /// There are batches ahead or behind, or somebody asks for a turn, and this one's producer is the publisher.
    Neighbours,
    /// The batch is published, and others have called meanwhile.
    Callers,
}

/// How the consumer is told of what was published: a closure, or what has to be inlined.
pub trait Bell {
    /// Tells of a run.
    fn ring(&mut self, run: Run);
}

impl<F: FnMut(Run)> Bell for F {
    #[inline]
    fn ring(&mut self, run: Run) {
        self(run);
    }
}

/// The next free place and the limit of a ring, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gate {
    next: Position,
    limit: Position,
}

impl Gate {
    /// The next place is on top, where additions carry into nothing.
    const fn word(self) -> u64 {
        (self.next.0 as u64) << 32 | self.limit.0 as u64
    }

    const fn of(word: u64) -> Self {
        Self { next: Position((word >> 32) as u32), limit: Position(word as u32) }
    }

    /// Whether so many places are free. None are if the ring is closed, since somebody has run past the limit: then the
    /// room is less than nothing.
    #[inline]
    const fn fits(self, count: u32) -> bool {
        let (room, count) = (self.limit.since(self.next).cast_signed(), count.cast_signed());
        count >= 0 && room >= count
    }

    const fn is_closed(self) -> bool {
        !self.limit.has_reached(self.next)
    }
}

/// A reservation beyond the limit, which keeps the ring closed until it is [settled](Producers::settle).
#[derive(Debug)]
#[must_use = "the ring is closed until it is settled"]
pub struct Overrun {
    /// The [gate](Gate)'s word. Two words in all are handed on in registers.
    before: u64,
    count: u32,
}

/// The words that every submission changes, in one cache line, and in that of no others: moving a line from CPU to CPU
/// takes as long as the rest of a submission, so that what is needed at the same time had better come at once. The next
/// line is kept free, too, as some CPUs fetch it along.
#[repr(align(128))]
struct Line<W, B> {
    gate: W,
    /// How many calls nobody has attended to: to look at the marks (bits 31:0), and to ring the doorbell whether there is
    /// something new or not (62:32). Who makes them differ from zero is the publisher until they are zero again. Bit 63
    /// is that of who [asks for a turn](ASKED).
    calls: W,
    /// The place up to which all is published. The publisher's.
    published: W,
    /// The publisher's, for what the caller has it write.
    book: B,
}

const LOOK: u64 = 1;
const RING_AGAIN: u64 = 1 << 32;

/// The producers' side of a ring. Which memory the ring is, and how its consumer is told, is the caller's business.
///
/// `B` is what the caller wants beside the words that only whoever publishes changes.
pub struct Producers<W = AtomicU64, B = ()> {
    line: Line<W, B>,
    turns: Turns<W>,
    /// By slot: length (bits 31:0) and weight (63:32) of the batch that begins there, if it is finished and somebody has
    /// yet to see that, or zero.
    finished: Vec<W>,
    slots: u32,
}

impl<W: Word> Producers<W> {
    /// [`with_book`](Self::with_book) without anything in it.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn new(slots: u32) -> Result<Self, OutOfMemory> {
        Self::with_book(slots, ())
    }
}

impl<W: Word, B> Producers<W, B> {
    /// The producers of an empty ring with so many slots, a power of two. One slot always stays empty, since a full
    /// ring would look like an empty one to most consumers.
    ///
    /// # Errors
    ///
    /// No memory for one word per slot, or not a power of two between 2 and 2^30.
    pub fn with_book(slots: u32, book: B) -> Result<Self, OutOfMemory> {
        if !slots.is_power_of_two() || !(2..=1 << 30).contains(&slots) {
            return Err(OutOfMemory);
        }
        let mut finished = Vec::new();
        finished.try_reserve_exact(slots as usize).map_err(|_| OutOfMemory)?;
        finished.extend((0..slots).map(|_| W::new(0)));
        let gate = Gate { next: Position(0), limit: Position(slots - 1) };
        let line = Line { gate: W::new(gate.word()), calls: W::new(0), published: W::new(0), book };
        Ok(Self { line, turns: Turns::new(), finished, slots })
    }

    /// What was put beside the publisher's words.
    #[inline]
    pub fn book(&self) -> &B {
        &self.line.book
    }

    /// How many places a single batch can have.
    #[inline]
    pub fn capacity(&self) -> u32 {
        self.slots.wrapping_sub(1)
    }

    /// Takes `count` places in a row and returns the first one. `consumed` tells up to which place the consumer has
    /// read the ring; it is asked only when the room that was known is used up.
    ///
    /// `None` if there is no room, or if somebody else is about to find out that there is: to be tried
    /// [again](Self::reserve_again) as long as the caller's patience lasts. A caller that got places publishes them
    /// without waiting for anything, and keeps interrupts off its CPU until then.
    #[inline]
    pub fn reserve(&self, count: u32, consumed: impl Fn() -> Position) -> Option<Position> {
        match self.reserve_known(count) {
            Ok(first) => Some(first),
            Err(overrun) => self.settle(overrun, consumed),
        }
    }

    /// [`reserve`](Self::reserve) as far as the room goes that is known; for callers that have the rest out of the way.
    ///
    /// # Errors
    ///
    /// It does not go so far. The overrun has to be [settled](Self::settle) at once.
    #[inline]
    pub fn reserve_known(&self, count: u32) -> Result<Position, Overrun> {
        // No look before: the line would be fetched to be read, and once more to be written.
        let before = self.line.gate.fetch_add(u64::from(count) << 32, Ordering::AcqRel);
        let gate = Gate::of(before);
        if gate.fits(count) { Ok(gate.next) } else { Err(Overrun { before, count }) }
    }

    /// Takes the places that were meant by [`reserve_known`](Self::reserve_known), if there is room by now; see
    /// [`reserve`](Self::reserve).
    #[cold]
    pub fn settle(&self, overrun: Overrun, consumed: impl Fn() -> Position) -> Option<Position> {
        let (before, count) = (Gate::of(overrun.before), overrun.count);
        if before.is_closed() { None } else { self.open(before, count, consumed()) }
    }

    /// Opens the ring after an overrun whose places are not wanted any more.
    #[cold]
    pub fn give_up(&self, overrun: Overrun, consumed: impl Fn() -> Position) {
        let _none = self.settle(Overrun { count: 0, ..overrun }, consumed);
    }

    /// [`reserve`](Self::reserve) for who was refused: takes a look first, so that those who wait for room do not close
    /// the ring to those who need less of it.
    pub fn reserve_again(&self, count: u32, consumed: impl Fn() -> Position) -> Option<Position> {
        let seen = Gate::of(self.line.gate.load(Ordering::Relaxed));
        if !seen.fits(count) && !self.renewed(seen, consumed()).fits(count) {
            return None;
        }
        self.reserve(count, consumed)
    }

    /// Opens the ring again, with the limit that `consumed` allows, and takes `count` places if there is room now. The
    /// caller's addition to `before` closed it: whatever was added since has failed, and may be overwritten.
    fn open(&self, before: Gate, count: u32, consumed: Position) -> Option<Position> {
        let renewed = self.renewed(before, consumed);
        let taken = if renewed.fits(count) { count } else { 0 };
        let gate = Gate { next: renewed.next.plus(taken), ..renewed };
        self.line.gate.swap(gate.word(), Ordering::AcqRel);
        (taken == count).then_some(before.next)
    }

    /// The same place with the limit that `consumed` allows. It is never taken back, and never farther off than the ring
    /// is long, whatever a consumer may say.
    fn renewed(&self, gate: Gate, consumed: Position) -> Gate {
        let limit = consumed.plus(self.capacity());
        let sane = limit.has_reached(gate.limit) && limit.since(gate.next) <= self.capacity();
        Gate { limit: if sane { limit } else { gate.limit }, ..gate }
    }

    /// Declares that the slots of a reserved batch are written, and rings for what is finished in a row, unless
    /// another CPU is at it, which will then do so. The bell is never rung by two CPUs at once, and each
    /// time with places behind those of the time before.
    ///
    /// A CPU that publishes goes on while others finish batches meanwhile, but not for more than
    /// [`Word::ROUNDS`] rounds, of the ring's capacity at most. What it leaves then is to be
    /// [taken over](Self::take_over) by those who wait for it.
    #[inline]
    pub fn publish(&self, first: Position, count: u32, weight: u32, ring: impl FnMut(Run)) -> Publisher {
        self.publish_with(first, count, weight, ring)
    }

    /// [`publish`](Self::publish) with a bell of another kind.
    #[inline(always)]
    pub fn publish_with(&self, first: Position, count: u32, weight: u32, mut bell: impl Bell) -> Publisher {
        match self.publish_alone(first, count, weight, &mut bell) {
            Ok(()) => Publisher::Own,
            Err(company) => self.publish_in_company(first, count, weight, company, bell),
        }
    }

    /// [`publish`](Self::publish) as far as it goes while nobody else submits; for callers that have the rest out of the
    /// way. The bell is rung for this batch alone.
    ///
    /// # Errors
    ///
    /// Somebody does. The rest has to be [done](Self::publish_in_company) at once.
    #[inline(always)]
    pub fn publish_alone(
        &self,
        first: Position,
        count: u32,
        weight: u32,
        bell: &mut impl Bell,
    ) -> Result<(), Company> {
        let Line { gate, calls, published, .. } = &self.line;
        let run = Run { tail: first.plus(count), batches: 1, weight: weight.into() };
        let others = calls.fetch_add(LOOK, Ordering::AcqRel);
        if others != 0 {
            return Err(if others == ASKED { Company::Neighbours } else { Company::Publisher });
        }
        if Position(published.load(Ordering::Relaxed) as u32) != first
            || Gate::of(gate.load(Ordering::Relaxed)).next != run.tail
        {
            return Err(Company::Neighbours);
        }
        // Nobody is ahead or behind, who would have to learn that the batch is finished.
        published.store(u64::from(run.tail.0), Ordering::Release);
        bell.ring(run);
        match calls.fetch_add(LOOK.wrapping_neg(), Ordering::AcqRel) {
            LOOK => Ok(()),
            // Whoever asks for a turn finds the next publication as well.
            seen if seen & !ASKED == LOOK => Ok(()),
            _ => Err(Company::Callers),
        }
    }

    /// The rest of [`publish`](Self::publish) where others have reserved or published at the same time. The call to look
    /// at the marks is made.
    #[cold]
    #[inline(never)]
    pub fn publish_in_company(
        &self,
        first: Position,
        count: u32,
        weight: u32,
        company: Company,
        bell: impl Bell,
    ) -> Publisher {
        let attended = match company {
            Company::Callers => {
                self.attend(self.line.calls.load(Ordering::Acquire) & !ASKED, first.plus(count), bell);
                return Publisher::Own;
            }
            Company::Neighbours => {
                self.mark(first, count, weight);
                Some(self.attend(LOOK, self.published(), bell))
            }
            Company::Publisher => {
                self.mark(first, count, weight);
                // Whoever it is may have looked already.
                self.call(LOOK, bell)
            }
        };
        match attended {
            Some(so_far) if so_far.has_reached(first.plus(count)) => self.give_turn(),
            _ => Publisher::Other,
        }
    }

    /// Rings for what is finished, and if that is nothing, with what is already published; for consumers that
    /// have to be told again. Whoever publishes does not stop before that is done, so this is nothing to be repeated while
    /// somebody [is publishing](Self::is_publishing).
    pub fn ring_again(&self, ring: impl FnMut(Run)) {
        self.call(RING_AGAIN, ring);
    }

    /// Publishes what is finished, if nobody is publishing: the last one may have done so long enough. Whoever waits for
    /// the consumer calls it now and then, with interrupts masked as for [`publish`](Self::publish). Where there is nothing
    /// to do it only reads; but it reads what producers write, so not in every turn of a loop.
    pub fn take_over(&self, ring: impl FnMut(Run)) {
        let is_left = || self.mark_at(self.published()).is_some_and(|mark| mark.load(Ordering::Relaxed) != 0);
        if !self.is_publishing() && is_left() {
            self.call(LOOK, ring);
        }
    }

    /// Whether somebody is publishing: who reserves now is likely to be published by him, or after him.
    #[inline]
    pub fn is_publishing(&self) -> bool {
        self.line.calls.load(Ordering::Relaxed) & !ASKED != 0
    }

    /// Whether somebody [is publishing](Self::is_publishing), or has asked for a turn: whether the caller would publish in
    /// company.
    #[inline]
    pub fn is_disturbed(&self) -> bool {
        self.line.calls.load(Ordering::Relaxed) != 0
    }

    /// Up to where all is published.
    pub fn published(&self) -> Position {
        Position(self.line.published.load(Ordering::Acquire) as u32)
    }

    /// Marks a batch as finished.
    fn mark(&self, first: Position, count: u32, weight: u32) {
        if let Some(mark) = self.mark_at(first) {
            mark.store(u64::from(weight) << 32 | u64::from(count), Ordering::Release);
        }
    }

    #[inline]
    fn mark_at(&self, place: Position) -> Option<&W> {
        self.finished.get((place.0 & self.slots.wrapping_sub(1)) as usize)
    }

    /// Makes a call, and attends to it unless somebody else does.
    #[inline(never)]
    fn call(&self, what: u64, bell: impl Bell) -> Option<Position> {
        let alone = self.line.calls.fetch_add(what, Ordering::AcqRel) & !ASKED == 0;
        alone.then(|| self.attend(what, self.published(), bell))
    }

    /// Attends to the calls that were `seen`, and to those that are made meanwhile, from the place up to which all is
    /// published; returns how far that is afterwards. Each is attended to by a look at the marks that begins after it was
    /// made, unless there were too many rounds: then only the doorbell is still rung for those who asked for that. The
    /// other calls are two for each batch at most, and the ring is soon full if nobody publishes, so they end.
    #[inline(never)]
    fn attend(&self, mut seen: u64, mut so_far: Position, mut bell: impl Bell) -> Position {
        let Line { calls, published, .. } = &self.line;
        let mut rounds = W::ROUNDS;
        loop {
            if rounds != 0 || seen >= RING_AGAIN {
                rounds = rounds.saturating_sub(1);
                let run = self.finished_from(so_far);
                so_far = run.tail;
                if run.batches != 0 || seen >= RING_AGAIN {
                    published.store(u64::from(run.tail.0), Ordering::Release);
                    bell.ring(run);
                }
            }
            seen = (calls.fetch_add(seen.wrapping_neg(), Ordering::AcqRel) & !ASKED).wrapping_sub(seen);
            if seen == 0 {
                return so_far;
            }
        }
    }

    /// Takes the marks of all finished batches in a row.
    fn finished_from(&self, place: Position) -> Run {
        let mut run = Run { tail: place, batches: 0, weight: 0 };
        while let Some(mark) = self.mark_at(run.tail) {
            let batch = mark.load(Ordering::Acquire);
            if batch == 0 {
                break;
            }
            // The slot is used again only after the consumer has read it, so after the doorbell.
            mark.store(0, Ordering::Relaxed);
            run.tail = run.tail.plus(batch as u32);
            run.batches = run.batches.wrapping_add(1);
            run.weight = run.weight.wrapping_add(batch >> 32);
        }
        run
    }
}
