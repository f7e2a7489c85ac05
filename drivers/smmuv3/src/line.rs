//! The line of submitters in front of the ring: [`Producers`], and syncs that several of them share.
//!
//! A batch that is reserved while somebody publishes brings no sync of its own: it is published with its neighbours at
//! the next occasion, and whoever does that puts one sync behind all of them.

use core::sync::atomic::{AtomicU64, Ordering};
use portcullis_hal::producers::{Bell, Company, Overrun, Position, Producers, Publisher, Run};
use portcullis_hal::word::Word;
use portcullis_hal::{Hal, OutOfMemory};

/// What a batch ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// A sync of its own.
    Sync,
    /// A command: it shares a sync.
    Command,
}

impl Tail {
    /// By the weights, whoever publishes learns how many batches have syncs of their own.
    const fn weight(self) -> u32 {
        match self {
            Self::Sync => 1,
            Self::Command => 0,
        }
    }
}

/// Who reads what the line publishes.
pub(crate) trait Consumer {
    /// The position that it is known to have reached.
    fn consumed(&self) -> Position;

    /// Fills a free slot with a sync.
    fn put_sync(&self, position: Position);

    /// Tells it that it may read all before `end`. Called by one CPU at a time, with positions that only grow.
    fn tell(&self, end: Position);
}

/// What the consumer was told of since start-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Commands, without the syncs.
    pub(crate) commands: u64,
    pub(crate) syncs: u64,
    pub(crate) doorbells: u64,
}

/// The line. All methods but the queries are called with interrupts masked.
pub(crate) struct Line<W = AtomicU64> {
    producers: Producers<W, Book<W>>,
}

/// What only whoever publishes writes.
struct Book<W> {
    /// How many slots the consumer was told of: all before the position with the low bits of this number.
    told: W,
    /// The position behind the last sync that covers all before it.
    synced: W,
    /// Not zero if there are commands before `told` and no sync behind them.
    owed: W,
    doorbells: W,
    /// The syncs beyond one for each doorbell, modulo 2^64.
    surplus: W,
}

impl<W: Word> Book<W> {
    #[inline]
    fn position(word: &W, ordering: Ordering) -> Position {
        Position::new(word.load(ordering) as u32)
    }

    #[inline]
    fn add(word: &W, count: u64) {
        word.store(word.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }
}

/// Whoever publishes, at the bell.
struct Attendant<'a, W, C> {
    line: &'a Line<W>,
    consumer: &'a C,
}

impl<W: Word, C: Consumer> Bell for Attendant<'_, W, C> {
    fn ring(&mut self, run: Run) {
        self.line.attend(run, self.consumer);
    }
}

/// Whoever publishes a batch with a sync of its own, and no other.
struct Alone<'a, W, C>(Attendant<'a, W, C>);

impl<W: Word, C: Consumer> Bell for Alone<'_, W, C> {
    // On the way of every unmap; as a closure it would be called.
    #[inline(always)]
    fn ring(&mut self, run: Run) {
        let Attendant { line, consumer } = &self.0;
        line.attend_alone(run, *consumer);
    }
}

impl<W: Word> Line<W> {
    /// An empty line for a ring with so many slots, a power of two and at least two.
    pub(crate) fn new(slots: u32) -> Result<Self, OutOfMemory> {
        let zero = || W::new(0);
        let book = Book { told: zero(), synced: zero(), owed: zero(), doorbells: zero(), surplus: zero() };
        Ok(Self { producers: Producers::with_book(slots, book)? })
    }

    #[inline]
    fn book(&self) -> &Book<W> {
        self.producers.book()
    }

    /// A command and its sync.
    const PAIR: u32 = 1 + Tail::Sync.weight();

    /// How many slots one batch can have.
    #[inline]
    pub(crate) fn capacity(&self) -> u32 {
        self.producers.capacity()
    }

    /// Takes slots for `commands` commands and, unless it is to be shared, a sync. To be tried again if there is no room.
    pub(crate) fn reserve(&self, commands: u32, consumer: &impl Consumer) -> Option<(Position, Tail)> {
        let tail = self.tail_for(commands);
        let slots = commands.saturating_add(tail.weight());
        // Who asks here may have been refused.
        let first = self.producers.reserve_again(slots, || consumer.consumed())?;
        Some((first, tail))
    }

    /// What so many commands end with.
    fn tail_for(&self, commands: u32) -> Tail {
        let share = commands != 0 && (self.producers.is_publishing() || commands == self.capacity());
        if share { Tail::Command } else { Tail::Sync }
    }

    /// Whether somebody publishes, with whom a sync can be shared, or asks for a turn.
    #[inline]
    pub(crate) fn is_disturbed(&self) -> bool {
        self.producers.is_disturbed()
    }

    /// Takes slots for one command and a sync: [`reserve`](Self::reserve) on the way of most unmaps.
    ///
    /// # Errors
    ///
    /// The room that is known is used up. The overrun is to be [given up](Self::give_up) at once.
    #[inline]
    pub(crate) fn reserve_pair(&self) -> Result<Position, Overrun> {
        self.producers.reserve_known(Self::PAIR)
    }

    /// Goes back behind an overrun.
    pub(crate) fn give_up(&self, overrun: Overrun, consumer: &impl Consumer) {
        self.producers.give_up(overrun, || consumer.consumed());
    }

    /// Publishes what was [reserved](Self::reserve_pair) so, as [`publish`](Self::publish) does, as far as it goes alone.
    ///
    /// # Errors
    ///
    /// There is company, in which the rest is to be [done](Self::publish_pair_in_company) at once.
    #[inline(always)]
    pub(crate) fn publish_pair(&self, first: Position, consumer: &impl Consumer) -> Result<(), Company> {
        let mut bell = Alone(Attendant { line: self, consumer });
        self.producers.publish_alone(first, Self::PAIR, Tail::Sync.weight(), &mut bell)
    }

    /// The rest of [`publish_pair`](Self::publish_pair).
    pub(crate) fn publish_pair_in_company(
        &self,
        first: Position,
        company: Company,
        consumer: &impl Consumer,
    ) -> Publisher {
        let bell = Attendant { line: self, consumer };
        self.producers.publish_in_company(first, Self::PAIR, Tail::Sync.weight(), company, bell)
    }

    /// Publishes a reserved batch of `slots` slots, which are filled, or leaves that to whoever is publishing or has an
    /// unfinished batch ahead.
    #[inline(never)]
    pub(crate) fn publish(
        &self,
        first: Position,
        slots: u32,
        tail: Tail,
        consumer: &impl Consumer,
    ) -> Publisher {
        self.producers.publish_with(first, slots, tail.weight(), Attendant { line: self, consumer })
    }

    /// The position behind a sync that covers all before `end`. It is published, or about to be.
    pub(crate) fn sync_behind(&self, end: Position) -> Option<Position> {
        let synced = Book::position(&self.book().synced, Ordering::Acquire);
        (synced != end && synced.has_reached(end)).then_some(synced)
    }

    /// Sees to it that a published batch without a sync gets one, if there was no room for it before. To be repeated:
    /// nothing is done while somebody publishes, who might otherwise never come to an end.
    pub(crate) fn ask_for_sync(&self, consumer: &impl Consumer) {
        if !self.producers.is_publishing() {
            self.producers.ring_again(|run| self.attend(run, consumer));
        }
    }

    /// Publishes what was left by a CPU that had done so for long: [`Producers::take_over`].
    pub(crate) fn take_over(&self, consumer: &impl Consumer) {
        self.producers.take_over(|run| self.attend(run, consumer));
    }

    /// Takes turns with other CPUs after a batch was published: [`Producers::take_turns`].
    #[inline]
    pub(crate) fn take_turns<H: Hal>(
        &self,
        hal: &H,
        publisher: Publisher,
        is_done: impl FnOnce() -> bool,
        fetch: impl FnOnce(Position),
    ) {
        self.producers.take_turns(hal, publisher, is_done, fetch);
    }

    /// Whether the command at `position` is published, and not more than a ring's length ago.
    pub(crate) fn is_published(&self, position: Position) -> bool {
        (1..=self.capacity()).contains(&self.producers.published().since(position))
    }

    /// [`attend`](Self::attend) to a single batch whose own sync is the last command that anybody has reserved.
    #[inline(always)]
    fn attend_alone(&self, run: Run, consumer: &impl Consumer) {
        let book = self.book();
        book.synced.store(run.tail.get().into(), Ordering::Release);
        if book.owed.load(Ordering::Relaxed) != 0 {
            book.owed.store(0, Ordering::Relaxed);
        }
        consumer.tell(run.tail);
        // All before the batch was told of: what is published and untold has a sync behind it that is neither, and then
        // this batch is not the next one.
        Book::add(&book.told, Self::PAIR.into());
        Book::add(&book.doorbells, 1);
    }

    /// Tells the consumer of what was published, with a sync behind it. Called by whoever publishes.
    #[inline]
    fn attend(&self, run: Run, consumer: &impl Consumer) {
        let book = self.book();
        let synced = Book::position(&book.synced, Ordering::Relaxed);
        let mut owed = book.owed.load(Ordering::Relaxed) != 0;
        if run.batches != 0 && !synced.has_reached(run.tail) {
            let covered = run.weight == run.batches;
            if covered {
                book.synced.store(run.tail.get().into(), Ordering::Release);
            }
            if owed == covered {
                owed = !covered;
                book.owed.store(owed.into(), Ordering::Relaxed);
            }
        }
        let told = book.told.load(Ordering::Relaxed);
        let more = run.tail.since(Position::new(told as u32));
        // A sync right behind the run is told of at once, with the run. Another one has to wait for batches that are
        // not finished, and the run must not.
        let continues = owed && self.add_sync(consumer) == Some(run.tail);
        let rings = if continues || more == 0 {
            0
        } else {
            consumer.tell(run.tail);
            book.told.store(told.wrapping_add(more.into()), Ordering::Relaxed);
            Book::add(&book.doorbells, 1);
            1
        };
        if run.weight != rings {
            Book::add(&book.surplus, run.weight.wrapping_sub(rings));
        }
    }

    /// Puts a sync behind what has none, if there is room, and returns its place. Called by whoever publishes.
    #[cold]
    fn add_sync(&self, consumer: &impl Consumer) -> Option<Position> {
        let book = self.book();
        let at = self.producers.reserve_again(1, || consumer.consumed())?;
        consumer.put_sync(at);
        book.owed.store(0, Ordering::Relaxed);
        book.synced.store(at.plus(1).get().into(), Ordering::Release);
        // This is a call from within a publication: the sync is attended to next, with all that is finished before it.
        // If a batch ahead of the sync is unfinished, its producer sees to it and the sync.
        self.producers.publish(at, 1, Tail::Sync.weight(), |_| {});
        Some(at)
    }

    pub(crate) fn totals(&self) -> Totals {
        let get = |word: &W| word.load(Ordering::Relaxed);
        let syncs = get(&self.book().doorbells).wrapping_add(get(&self.book().surplus));
        Totals {
            commands: get(&self.book().told).saturating_sub(syncs),
            syncs,
            doorbells: get(&self.book().doorbells),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::{Cell, RefCell};

    /// A unit during whose first doorbell somebody submits a command.
    struct Unit {
        line: Line,
        interrupted: Cell<bool>,
        /// Where that command goes.
        place: u32,
        told: RefCell<Vec<u32>>,
        syncs: RefCell<Vec<u32>>,
    }

    impl Unit {
        fn new(place: u32) -> Self {
            let [told, syncs] = [const { RefCell::new(Vec::new()) }; 2];
            Self { line: Line::new(16).unwrap(), interrupted: Cell::new(false), place, told, syncs }
        }

        fn reserve(&self, tail: Tail) -> Position {
            let (first, given) = self.line.reserve(1, self).unwrap();
            assert_eq!(given, tail);
            first
        }
    }

    impl Consumer for Unit {
        fn consumed(&self) -> Position {
            Position::new(0)
        }

        fn put_sync(&self, position: Position) {
            self.syncs.borrow_mut().push(position.get());
        }

        fn tell(&self, end: Position) {
            self.told.borrow_mut().push(end.get());
            if !self.interrupted.replace(true) {
                let first = self.reserve(Tail::Command);
                assert_eq!(first.get(), self.place);
                self.line.publish(first, 1, Tail::Command, self);
            }
        }
    }

    #[test]
    fn who_submits_while_somebody_publishes_shares_the_sync_behind_his_command_and_none_before() {
        let unit = Unit::new(2);
        let first = unit.reserve(Tail::Sync);
        unit.line.publish(first, 2, Tail::Sync, &unit);
        assert_eq!((unit.told.take(), unit.syncs.take()), (vec![2, 4], vec![3]));
        let behind = |end| unit.line.sync_behind(Position::new(end)).map(Position::get);
        assert_eq!([1, 3].map(behind), [Some(4), Some(4)]);
        assert_eq!([4, 5].map(behind), [None, None]);
        assert_eq!(unit.line.totals(), Totals { commands: 2, syncs: 2, doorbells: 2 });
    }

    #[test]
    fn what_is_finished_does_not_wait_with_its_shared_sync_for_a_batch_that_is_not() {
        let unit = Unit::new(4);
        let [one, ahead] = [(); 2].map(|()| unit.reserve(Tail::Sync));
        // A command comes meanwhile, behind the batch at 2, which is yet to be finished.
        unit.line.publish(one, 2, Tail::Sync, &unit);
        let slow = unit.reserve(Tail::Sync);
        assert_eq!((slow.get(), unit.told.take()), (5, vec![2]));
        unit.line.publish(ahead, 2, Tail::Sync, &unit);
        assert_eq!((unit.told.take(), unit.syncs.take()), (vec![5], vec![7]));
        unit.line.publish(slow, 2, Tail::Sync, &unit);
        assert_eq!(unit.told.take(), [8]);
        assert_eq!(unit.line.totals(), Totals { commands: 4, syncs: 4, doorbells: 3 });
    }
}
