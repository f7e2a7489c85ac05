//! The producers of a ring, against every interleaving that matters (loom), and the arithmetic at every size.

#![expect(unsafe_code, reason = "cells whose every access loom checks")]

mod turns;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64 as LoomU64;
use loom::thread;
use portcullis_hal::checked::CheckedWord;
use portcullis_hal::producers::{Position, Producers, Publisher, Run};
use portcullis_hal::word::Word;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// A ring in memory, and a consumer that reads it as the doorbell rings. A slot holds its place's number plus one.
///
/// loom reports each access of a slot that is not ordered after the one before it.
struct Machine {
    producers: Producers<CheckedWord>,
    slots: Vec<UnsafeCell<u32>>,
    /// By place: memory that the consumer uses until it has read the command there.
    pages: Vec<UnsafeCell<u32>>,
    /// How far the consumer has come.
    consumed: LoomU64,
    /// Only the consumer's.
    doorbell: UnsafeCell<Totals>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Totals {
    rings: u64,
    batches: u64,
    weight: u64,
}

impl Machine {
    fn new(slots: u32) -> Self {
        Self {
            producers: Producers::new(slots).unwrap(),
            slots: (0..slots).map(|_| UnsafeCell::new(0)).collect(),
            pages: (0..16).map(|_| UnsafeCell::new(0)).collect(),
            consumed: LoomU64::new(0),
            doorbell: UnsafeCell::new(Totals::default()),
        }
    }

    fn slot(&self, place: Position) -> &UnsafeCell<u32> {
        &self.slots[place.get() as usize % self.slots.len()]
    }

    fn done(&self) -> Position {
        Position::new(self.consumed.load(Ordering::Acquire) as u32)
    }

    fn ring(&self, run: Run) {
        // SAFETY: the doorbell is rung by one thread at a time, or loom says so.
        self.doorbell.with_mut(|totals| unsafe {
            (*totals).rings += 1;
            (*totals).batches += run.batches;
            (*totals).weight += run.weight;
        });
        let mut place = self.done();
        assert!(run.tail.has_reached(place), "the doorbell goes back from {place:?} to {:?}", run.tail);
        while place != run.tail {
            // SAFETY: the slot belongs to the consumer now, or loom says that it does not.
            let found = self.slot(place).with(|slot| unsafe { *slot });
            assert_eq!(found, place.get() + 1, "not what the producer of {place:?} wrote");
            for page in self.pages(place.get(), 1) {
                // SAFETY: the page is the consumer's until it says that it is done, or loom says that it is not.
                assert_eq!(page.with(|page| unsafe { *page }), 0);
            }
            place = place.plus(1);
        }
        self.consumed.store(u64::from(place.get()), Ordering::Release);
    }

    /// Submits a batch if there is room, and returns the place behind it.
    fn try_submit(&self, count: u32) -> Option<Position> {
        let first = self.producers.reserve(count, || self.done())?;
        Some(self.submit_at(first, count))
    }

    fn submit_at(&self, first: Position, count: u32) -> Position {
        self.fill(first, count);
        self.producers.publish(first, count, 1, |run| self.ring(run));
        first.plus(count)
    }

    fn fill(&self, first: Position, count: u32) {
        for place in (0..count).map(|offset| first.plus(offset)) {
            // SAFETY: the slot is the reservation's, or loom says that it is not.
            self.slot(place).with_mut(|slot| unsafe { *slot = place.get() + 1 });
        }
    }

    fn take_over(&self) {
        self.producers.take_over(|run| self.ring(run));
    }

    /// As a driver does, but with little patience, since loom follows every turn of a loop.
    fn submit(&self, count: u32) -> Option<Position> {
        self.try_submit(count).or_else(|| {
            (0..2).find_map(|_| {
                thread::yield_now();
                let first = self.producers.reserve_again(count, || self.done())?;
                Some(self.submit_at(first, count))
            })
        })
    }

    /// Whether the batch that ends there is done: one word in memory serves all who wait. If it is, what it invalidated
    /// is the producer's again.
    fn is_done(&self, end: Position, count: u32) -> bool {
        let done = self.done().has_reached(end);
        if done {
            for page in self.pages(end.get() - count, count) {
                // SAFETY: the batch is done, so the page is the producer's, or loom says that it is not.
                page.with_mut(|page| unsafe { *page += 1 });
            }
        }
        done
    }

    /// What the consumer uses until it has read the commands at these places.
    fn pages(&self, first: u32, count: u32) -> &[UnsafeCell<u32>] {
        &self.pages[first as usize..(first + count) as usize]
    }

    fn totals(&self) -> Totals {
        // SAFETY: nobody rings any more, or loom says so.
        self.doorbell.with(|totals| unsafe { *totals })
    }
}

/// Explores all orders of steps with at most `switches` forced switches between threads.
fn explore(switches: usize, check: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(switches);
    model.check(check);
}

/// Runs each list of batch lengths in a thread of its own.
fn produce(slots: u32, switches: usize, threads: &'static [&'static [u32]]) {
    explore(switches, move || {
        let machine = Arc::new(Machine::new(slots));
        let work = |machine: &Machine, batches: &[u32]| -> Vec<u32> {
            let submit = |&count: &u32| {
                let end = machine.submit(count)?;
                machine.is_done(end, count);
                Some(count)
            };
            batches.iter().filter_map(submit).collect()
        };
        let (first, others) = threads.split_first().unwrap();
        let others: Vec<_> = others
            .iter()
            .map(|batches| {
                let machine = machine.clone();
                thread::spawn(move || work(&machine, batches))
            })
            .collect();
        let mut submitted = work(&machine, first);
        others.into_iter().for_each(|other| submitted.extend(other.join().unwrap()));
        assert!(!submitted.is_empty(), "the first one finds the ring empty");
        // Whatever they met, all is read, and there is room again.
        machine.take_over();
        let end = machine.try_submit(slots - 1).or_else(|| machine.try_submit(slots - 1)).unwrap();
        submitted.push(slots - 1);
        assert_eq!(end.get(), submitted.iter().sum());
        assert_eq!((machine.done(), machine.producers.published()), (end, end));
        let batches = submitted.len() as u64;
        let totals = machine.totals();
        assert_eq!((totals.batches, totals.weight), (batches, batches));
        assert!((1..=batches).contains(&totals.rings), "{totals:?}");
    });
}

#[test]
fn two_producers_publish_in_order_what_was_written_before() {
    produce(8, 5, &[&[2], &[1, 2]]);
}

#[test]
fn three_producers_leave_each_other_their_batches_and_none_is_forgotten() {
    produce(8, 2, &[&[2], &[1], &[2]]);
}

#[test]
fn in_a_ring_that_is_too_small_for_both_nobody_writes_what_is_not_read_and_none_leaves_a_hole() {
    produce(4, 3, &[&[2, 2], &[3]]);
    produce(2, 3, &[&[1, 1], &[1, 1]]);
    produce(4, 2, &[&[2], &[3], &[1]]);
}

#[test]
fn a_doorbell_that_is_to_be_rung_again_is_rung() {
    explore(4, || {
        let machine = Arc::new(Machine::new(4));
        let other = machine.clone();
        let other = thread::spawn(move || other.producers.ring_again(|run| other.ring(run)));
        assert!(machine.try_submit(1).is_some());
        other.join().unwrap();
        machine.take_over();
        let totals = machine.totals();
        assert_eq!(totals.batches, 1);
        assert!((1..=2).contains(&totals.rings));
        machine.producers.ring_again(|run| machine.ring(run));
        assert_eq!(machine.totals().rings, totals.rings + 1);
    });
}

#[test]
fn what_a_publisher_leaves_after_some_rounds_is_published_by_those_who_wait_for_it() {
    // Not one of loom's, which is new in each execution.
    static TAKEN_OVER: AtomicU64 = AtomicU64::new(0);
    let wait = |machine: &Machine, end: Position| {
        while !machine.done().has_reached(end) {
            machine.producers.take_over(|run| {
                TAKEN_OVER.fetch_add(1, Ordering::Relaxed);
                machine.ring(run);
            });
            thread::yield_now();
        }
    };
    explore(3, move || {
        let machine = Arc::new(Machine::new(8));
        let other = machine.clone();
        let other = thread::spawn(move || {
            let ends = [1, 1, 1].map(|count| other.try_submit(count));
            ends.into_iter().flatten().for_each(|end| wait(&other, end));
        });
        wait(&machine, machine.try_submit(1).unwrap());
        other.join().unwrap();
        assert_eq!((machine.done(), machine.totals().batches), (Position::new(4), 4));
    });
    assert_ne!(TAKEN_OVER.load(Ordering::Relaxed), 0);
}

#[test]
fn a_publisher_whom_others_keep_busy_comes_to_an_end() {
    let producers = Producers::<AtomicU64>::new(16).unwrap();
    let consumed = Cell::new(Position::new(0));
    let submit = |ring: &mut dyn FnMut(Run)| {
        let first =
            producers.reserve(1, || consumed.get()).or_else(|| producers.reserve(1, || consumed.get()));
        producers.publish(first.unwrap(), 1, 1, ring)
    };
    // Whenever the doorbell is rung, the consumer is done at once, and somebody submits again.
    let mut rings = 0;
    submit(&mut |run| {
        rings += 1;
        assert!(rings < 1000);
        consumed.set(run.tail);
        assert_eq!(submit(&mut |_| unreachable!()), Publisher::Other);
    });
    assert_eq!(rings, 1 + <AtomicU64 as Word>::ROUNDS);
    assert!(!producers.is_publishing());
    let left = producers.published();
    // It is no more than to be published.
    let mut runs = Vec::new();
    producers.take_over(|run| runs.push(run));
    producers.take_over(|run| runs.push(run));
    assert_eq!(runs, [Run { tail: left.plus(1), batches: 1, weight: 1 }]);
}

#[test]
fn an_overrun_that_is_given_up_takes_nothing_and_opens_the_ring() {
    let producers = Producers::<AtomicU64>::new(4).unwrap();
    let first = producers.reserve_known(3).unwrap();
    assert_eq!(producers.publish(first, 3, 0, |_| {}), Publisher::Own);
    let consumed = Cell::new(Position::new(0));
    for (done, next) in [(0, None), (3, Some(Position::new(3)))] {
        let overrun = producers.reserve_known(1).unwrap_err();
        assert!(producers.reserve(1, || unreachable!()).is_none(), "closed");
        consumed.set(Position::new(done));
        producers.give_up(overrun, || consumed.get());
        assert_eq!(producers.reserve_again(2, || Position::new(0)), next);
    }
}

#[test]
fn a_publisher_whom_others_keep_busy_rings_again_for_all_who_ask() {
    let producers = Producers::<AtomicU64>::new(16).unwrap();
    let rings = Cell::new(0);
    producers.ring_again(|_| {
        rings.set(rings.get() + 1);
        if rings.get() < 100 {
            producers.ring_again(|_| unreachable!());
        }
    });
    assert_eq!(rings.get(), 100);
}

/// Producers of a ring that has been in use for a long time.
fn aged(slots: u32, start: u32) -> Producers<AtomicU64> {
    let producers = Producers::new(slots).unwrap();
    let (mut at, mut consumed) = (0_u32, Position::new(0));
    // Half the ring at a time.
    let step = (slots / 2).max(1);
    while at != start {
        let count = step.min(start.wrapping_sub(at));
        let now = consumed;
        if let Some(first) = producers.reserve(count, || now) {
            producers.publish(first, count, 0, |run| consumed = run.tail);
            at = at.wrapping_add(count);
        }
    }
    producers
}

#[test]
fn at_every_size_and_fill_there_is_room_for_what_is_left_and_for_no_more() {
    for shift in 1..=14 {
        let slots = 1_u32 << shift;
        for start in [0, 1, slots - 1, slots, 3 * slots - 1] {
            let fills = [0, 1, slots / 2, slots.saturating_sub(2), slots - 1];
            for used in fills.into_iter().filter(|&used| used < slots) {
                let producers = aged(slots, start);
                let consumed = || Position::new(start);
                let mut tail = None;
                let mut take = |count: u32| {
                    let mut attempts = 0;
                    let first = loop {
                        attempts += 1;
                        match producers.reserve(count, consumed) {
                            None if attempts < 3 => {}
                            first => break first,
                        }
                    };
                    first.map(|first| producers.publish(first, count, 0, |run| tail = Some(run.tail)))
                };
                assert!(used == 0 || take(used).is_some(), "{slots} {start} {used}");
                let left = slots - 1 - used;
                assert!(take(left + 1).is_none(), "{slots} {start} {used}: more than the ring holds");
                assert!(left == 0 || take(left).is_some(), "{slots} {start} {used}: the rest");
                assert!(take(1).is_none());
                assert_eq!(tail, Some(Position::new(start + slots - 1)));
            }
        }
    }
}

#[test]
fn places_go_round_at_two_to_the_thirty_second() {
    // 2^30 slots would take long to fill; big batches of a ring without memory get there in four turns.
    let slots = 1 << 16;
    let producers = Producers::<AtomicU64>::new(slots).unwrap();
    let consumed = Cell::new(Position::new(0));
    let mut total = 0_u64;
    let asked = Cell::new(0);
    let look = || {
        asked.set(asked.get() + 1);
        consumed.get()
    };
    while total < (1 << 32) + 5 * u64::from(slots) {
        let count = slots - 1 - (total % 7) as u32;
        let first = producers.reserve(count, look).unwrap();
        assert_eq!(first.get(), total as u32);
        producers.publish(first, count, 3, |run| {
            assert_eq!((run.batches, run.weight), (1, 3));
            consumed.set(run.tail);
        });
        total += u64::from(count);
        assert_eq!(consumed.get().get(), total as u32);
    }
    assert!(asked.get() > 0, "the limit was renewed");
    let before = Position::new(u32::MAX - 1);
    let after = before.plus(5);
    assert!(after.has_reached(before) && !before.has_reached(after) && before.has_reached(before));
    assert_eq!((after.since(before), after.get()), (5, 3));
}

#[test]
fn an_unfinished_batch_holds_up_those_behind_it_and_its_producer_publishes_them() {
    let producers = Producers::<AtomicU64>::new(16).unwrap();
    let consumed = || Position::new(0);
    let [one, two, three] = [2, 3, 4].map(|count| producers.reserve(count, consumed).unwrap());
    let mut rung = Vec::new();
    assert_eq!(producers.publish(two, 3, 20, |run| rung.push(run)), Publisher::Other);
    assert_eq!(producers.publish(three, 4, 30, |run| rung.push(run)), Publisher::Other);
    assert_eq!(rung, []);
    assert_eq!(producers.publish(one, 2, 10, |run| rung.push(run)), Publisher::Own);
    assert_eq!(rung, [Run { tail: Position::new(9), batches: 3, weight: 60 }]);
    producers.ring_again(|run| rung.push(run));
    assert_eq!(rung[1..], [Run { tail: Position::new(9), batches: 0, weight: 0 }]);
}

#[test]
fn who_is_alone_publishes_his_own_and_who_comes_meanwhile_leaves_his_to_him() {
    let producers = Producers::<AtomicU64>::new(16).unwrap();
    let consumed = || Position::new(0);
    let first = producers.reserve(2, consumed).unwrap();
    let mut rung = Vec::new();
    let publisher = producers.publish(first, 2, 1, |run| {
        if rung.is_empty() {
            let second = producers.reserve(1, consumed).unwrap();
            assert_eq!(producers.publish(second, 1, 1, |_| unreachable!()), Publisher::Other);
        }
        rung.push(run.tail.get());
    });
    assert_eq!((publisher, rung), (Publisher::Own, vec![2, 3]));
}

#[test]
fn room_that_was_once_known_is_not_taken_back() {
    let producers = Producers::<AtomicU64>::new(8).unwrap();
    let publish = |first, count| {
        producers.publish(first, count, 0, |_| ());
        first.get()
    };
    let take = |count, consumed: &dyn Fn() -> Position| {
        producers.reserve(count, consumed).map(|first| publish(first, count))
    };
    let take_again = |count, consumed: &dyn Fn() -> Position| {
        producers.reserve_again(count, consumed).map(|first| publish(first, count))
    };
    assert_eq!(take(7, &|| Position::new(0)), Some(0));
    // Somebody knows from elsewhere that all is read, and takes notice of it.
    assert_eq!(take(2, &|| Position::new(7)), Some(7));
    // Who looks twice may find less at the second look.
    let found = Cell::new(9);
    assert_eq!(take_again(6, &|| Position::new(found.replace(0))), None);
    assert_eq!(take_again(6, &|| Position::new(0)), None);
    assert_eq!(take(5, &|| Position::new(0)), Some(9));
    assert_eq!(take(7, &|| Position::new(14)), Some(14));
}

#[test]
fn sizes_that_are_no_rings_are_refused() {
    for slots in [0, 1, 3, 100, (1 << 30) + 1, 1 << 31] {
        assert!(Producers::<AtomicU64>::new(slots).is_err(), "{slots}");
    }
}

#[test]
fn threads_submit_without_loss_or_disorder() {
    const BATCHES: u64 = 20_000;
    let producers = Producers::<AtomicU64>::new(32).unwrap();
    let slots: Vec<AtomicU64> = (0..32).map(|_| AtomicU64::new(0)).collect();
    let consumed = AtomicU64::new(0);
    let batches = AtomicU64::new(0);
    let done = || Position::new(consumed.load(Ordering::Acquire) as u32);
    let slot = |place: Position| &slots[place.get() as usize % 32];
    let ring = |run: Run| {
        let mut place = done();
        while place != run.tail {
            assert_eq!(slot(place).load(Ordering::Relaxed), u64::from(place.get()) + 1);
            place = place.plus(1);
        }
        batches.store(batches.load(Ordering::Relaxed) + run.batches, Ordering::Relaxed);
        consumed.store(u64::from(place.get()), Ordering::Release);
    };
    std::thread::scope(|scope| {
        for thread in 1..=4_u32 {
            let (producers, done, slot, ring) = (&producers, &done, &slot, &ring);
            scope.spawn(move || {
                for turn in 0..BATCHES as u32 {
                    let count = 1 + (turn * thread) % 9;
                    let first = loop {
                        match producers.reserve(count, done) {
                            Some(first) => break first,
                            None => {
                                producers.take_over(ring);
                                std::thread::yield_now();
                            }
                        }
                    };
                    for place in (0..count).map(|offset| first.plus(offset)) {
                        slot(place).store(u64::from(place.get()) + 1, Ordering::Relaxed);
                    }
                    producers.publish(first, count, 0, ring);
                }
            });
        }
    });
    producers.take_over(ring);
    assert_eq!(batches.load(Ordering::Relaxed), 4 * BATCHES);
    assert_eq!(done(), producers.published());
}
