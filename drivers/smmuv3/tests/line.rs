//! Shared syncs under loom, which tries every order in which threads may run and every value that their loads may see,
//! up to a bound of preemptions. (How slots are reserved and published is explored in `portcullis-hal`.)

#[allow(dead_code, reason = "the line is a part of the driver, which uses all of it")]
#[path = "../src/line.rs"]
mod line;

use line::{Consumer, Line, Tail};
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64 as LoomU64;
use loom::thread;
use portcullis_hal::checked::CheckedWord;
use portcullis_hal::producers::Position;
use std::sync::atomic::Ordering;

const PATIENCE: u32 = 2;

const COMMAND: u64 = 1 << 32;
const SYNC: u64 = 2 << 32;

/// A line, its ring, and a unit that does at once what it is told of.
struct Queue {
    line: Line<CheckedWord>,
    slots: Vec<LoomU64>,
    consumed: LoomU64,
    /// The position behind the last sync that the unit has done.
    synced: LoomU64,
}

impl Consumer for Queue {
    fn consumed(&self) -> Position {
        Position::new(self.consumed.load(Ordering::Acquire) as u32)
    }

    fn put_sync(&self, position: Position) {
        self.put(position, SYNC);
    }

    fn tell(&self, end: Position) {
        let mut position = self.consumed();
        assert!(position != end && end.has_reached(position), "the unit was told {end:?} after {position:?}");
        while position != end {
            let entry = self.slot(position).load(Ordering::Relaxed);
            assert_eq!(entry as u32, position.get(), "told of a slot that was not written");
            position = position.plus(1);
            if entry & !0xffff_ffff == SYNC {
                self.synced.store(position.get().into(), Ordering::Release);
            }
        }
        self.consumed.store(end.get().into(), Ordering::Release);
    }
}

/// A batch on its way.
struct Ticket {
    end: Position,
    tail: Tail,
}

impl Queue {
    fn new(slots: u32) -> Self {
        Self {
            line: Line::new(slots).unwrap(),
            slots: (0..slots).map(|_| LoomU64::new(u64::MAX)).collect(),
            consumed: LoomU64::new(0),
            synced: LoomU64::new(0),
        }
    }

    fn slot(&self, position: Position) -> &LoomU64 {
        &self.slots[position.get() as usize % self.slots.len()]
    }

    fn put(&self, position: Position, what: u64) {
        self.slot(position).store(what | u64::from(position.get()), Ordering::Relaxed);
    }

    /// What the driver does with one command, but with little patience, since loom follows every turn of a loop.
    fn submit(&self) -> Option<Ticket> {
        let (first, tail) = (0..PATIENCE).find_map(|turn| {
            if turn == 0 && !self.line.is_disturbed() {
                match self.line.reserve_pair() {
                    Ok(first) => return Some((first, Tail::Sync)),
                    Err(overrun) => self.line.give_up(overrun, self),
                }
            }
            thread::yield_now();
            self.line.reserve(1, self)
        })?;
        self.put(first, COMMAND);
        let mut end = first.plus(1);
        if tail == Tail::Sync {
            self.put(end, SYNC);
            end = end.plus(1);
        }
        if tail == Tail::Command {
            let _ = self.line.publish(first, end.since(first), tail, self);
        } else if let Err(company) = self.line.publish_pair(first, self) {
            let _ = self.line.publish_pair_in_company(first, company, self);
        }
        Some(Ticket { end, tail })
    }

    /// What the driver does until a sync behind the batch is done, with as little patience.
    fn complete(&self, ticket: &Ticket) {
        let mut sync = (ticket.tail == Tail::Sync).then_some(ticket.end);
        for _ in 0..PATIENCE {
            sync = sync.or_else(|| self.line.sync_behind(ticket.end));
            if sync.is_some_and(|end| self.consumed().has_reached(end)) {
                let synced = Position::new(self.synced.load(Ordering::Acquire) as u32);
                assert!(synced.has_reached(ticket.end), "no sync behind {:?} is done", ticket.end);
                assert!(ticket.tail == Tail::Sync || synced != ticket.end, "the sync is a command");
                return;
            }
            if sync.is_none() {
                self.line.ask_for_sync(self);
            }
            self.line.take_over(self);
            thread::yield_now();
        }
    }

    fn execute(&self) {
        if let Some(ticket) = self.submit() {
            self.complete(&ticket);
        }
    }
}

/// Runs `submitter` on several threads at once and `last` after them, and checks that everything has been published and
/// synced.
fn explore(threads: usize, slots: u32, preemptions: usize, submitter: fn(&Queue), last: fn(&Queue)) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(move || {
        let queue = Arc::new(Queue::new(slots));
        let others: Vec<_> = (1..threads)
            .map(|_| {
                let queue = queue.clone();
                thread::spawn(move || submitter(&queue))
            })
            .collect();
        submitter(&queue);
        others.into_iter().for_each(|other| other.join().unwrap());
        last(&queue);
        let synced = queue.synced.load(Ordering::Acquire);
        assert_eq!(
            synced,
            queue.consumed.load(Ordering::Acquire),
            "the last commands have no sync behind them"
        );
        let totals = queue.line.totals();
        assert_eq!(u64::from(queue.consumed().get()), totals.commands + totals.syncs);
        assert!(totals.doorbells <= totals.commands + totals.syncs);
    });
}

#[test]
fn what_nobody_waits_for_has_a_sync_behind_it_when_all_is_quiet() {
    let submit = |queue: &Queue| {
        let _ = queue.submit();
    };
    explore(3, 16, 1, submit, |queue| queue.line.take_over(queue));
}

#[test]
fn who_waits_gets_a_sync_behind_his_commands_whoever_put_it() {
    explore(2, 16, 3, Queue::execute, |_| {});
}

#[test]
fn three_who_wait_share_syncs_and_nobody_is_forgotten() {
    explore(3, 16, 1, Queue::execute, |_| {});
}

#[test]
fn in_a_ring_with_room_for_one_command_a_sync_comes_as_soon_as_somebody_asks_when_there_is_room() {
    // More than once: a reservation that finds out that there is room again fails itself.
    explore(2, 2, 2, Queue::execute, |queue| (0..3).for_each(|_| queue.line.ask_for_sync(queue)));
}
