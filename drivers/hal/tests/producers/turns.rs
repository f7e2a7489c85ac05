//! Turns at a ring: who stays away, for how long, and that no batch is forgotten for it.

use super::{Machine, explore};
use loom::sync::Arc;
use loom::thread;
use portcullis_hal::host::HostHal;
use portcullis_hal::producers::{Position, Producers, Publisher};
use portcullis_hal::word::Word;
use portcullis_hal::{FrameOrder, Hal, InterruptMask, OutOfMemory, PhysAddr};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// A clock that goes on by a step with each turn of a loop.
#[derive(Clone)]
struct Clock {
    host: HostHal,
    step_ns: u64,
    turns: std::sync::Arc<AtomicU64>,
}

// SAFETY: all but the time is `HostHal`.
unsafe impl Hal for Clock {
    fn alloc_frames(&self, order: FrameOrder) -> Result<PhysAddr, OutOfMemory> {
        self.host.alloc_frames(order)
    }
    unsafe fn free_frames(&self, base: PhysAddr, order: FrameOrder) {
        // SAFETY: the caller's promise.
        unsafe { self.host.free_frames(base, order) }
    }
    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        self.host.phys_to_virt(phys)
    }
    fn clean_cache(&self, start: NonNull<u8>, len: usize) {
        self.host.clean_cache(start, len);
    }
    fn now_ns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed) * self.step_ns
    }
    fn relax(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
    }
    fn mask_interrupts(&self) -> InterruptMask {
        self.host.mask_interrupts()
    }
    fn restore_interrupts(&self, mask: InterruptMask) {
        self.host.restore_interrupts(mask);
    }
}

impl Clock {
    /// A clock that has been running for a while.
    fn new(step_ns: u64) -> Self {
        Self { host: HostHal::new(), step_ns, turns: std::sync::Arc::new(AtomicU64::new(1000)) }
    }

    fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed) - 1000
    }
}

/// Publishes a batch of one command.
fn publish_one<W: Word>(producers: &Producers<W>) -> Publisher {
    let first = producers.reserve(1, || producers.published()).unwrap();
    producers.publish(first, 1, 1, |_| ())
}

/// For who has nothing to fetch.
fn nothing(_from: Position) {}

#[test]
fn only_who_meets_others_often_while_the_consumer_is_fast_leaves_them_the_ring_and_never_for_long() {
    // After how many turns of the loop it was asked whether the batch is done, and after how many it ended.
    let meet = |producers: &Producers, clock: &Clock, done| {
        let mut asked = None;
        let before = clock.turns();
        let is_done = || {
            asked = Some(clock.turns() - before);
            done
        };
        producers.take_turns(clock, Publisher::Other, is_done, nothing);
        assert!(!producers.is_disturbed(), "the request is still there");
        (asked, clock.turns() - before)
    };
    let clock = Clock::new(100);
    let producers = Producers::new(8).unwrap();
    assert_eq!(meet(&producers, &clock, true), (None, 0), "the first time in a while");
    assert_eq!(meet(&producers, &clock, true), (Some(5), 200));
    assert_eq!(meet(&producers, &clock, true), (None, 0), "again after a while");
    assert_eq!(meet(&producers, &clock, false), (Some(5), 5));
    // One's own are not held up.
    producers.take_turns(&clock, Publisher::Own, || unreachable!(), nothing);
    assert_eq!(clock.turns(), 205);
    // A clock that stands still.
    assert_eq!(meet(&Producers::new(8).unwrap(), &Clock::new(0), true), (Some(4096), 2 * 4096));
}

#[test]
fn who_stays_away_for_a_turn_gets_the_next_one_from_who_is_there() {
    let producers = Producers::<AtomicU64>::new(8).unwrap();
    let clock = Clock::new(100);
    let mut fetched = Vec::new();
    assert_eq!(publish_one(&producers), Publisher::Own);
    producers.take_turns(
        &clock,
        Publisher::Asked,
        || unreachable!(),
        |from| {
            fetched.push((from.get(), clock.turns()));
            assert!(producers.is_disturbed());
            assert!(!producers.is_publishing(), "who asks publishes nothing");
            assert_eq!([(); 2].map(|()| publish_one(&producers)), [Publisher::Asked, Publisher::Own]);
        },
    );
    assert_eq!(fetched, [(1, 200)]);
    assert!(!producers.is_disturbed());
    assert_eq!((producers.published().get(), publish_one(&producers)), (3, Publisher::Own));
}

#[test]
fn who_is_asked_while_he_rings_gives_the_turn_and_publishes_what_others_left_to_him() {
    let producers = Producers::<AtomicU64>::new(8).unwrap();
    let clock = Clock::new(20_000);
    let first = producers.reserve(1, || Position::new(0)).unwrap();
    let mut rung = Vec::new();
    let publisher = producers.publish(first, 1, 1, |run| {
        rung.push(run.tail.get());
        if run.tail.get() == 1 {
            // Who is published by another one cannot give a turn.
            producers.take_turns(
                &clock,
                Publisher::Asked,
                || unreachable!(),
                |_| {
                    assert_eq!(publish_one(&producers), Publisher::Other);
                },
            );
        }
    });
    assert_eq!((publisher, rung), (Publisher::Own, vec![1, 2]));
    // The request was taken back meanwhile.
    assert!(!producers.is_disturbed());
}

#[test]
fn a_request_for_a_turn_is_granted_or_taken_back_and_no_batch_is_forgotten_for_it() {
    // Not of loom's, which are new in each execution.
    static GRANTED: AtomicU64 = AtomicU64::new(0);
    explore(3, || {
        let machine = Arc::new(Machine::new(8));
        let other = machine.clone();
        let other = thread::spawn(move || {
            let publishers = [(); 2].map(|()| {
                let first = other.producers.reserve(1, || other.done()).unwrap();
                other.fill(first, 1);
                other.producers.publish(first, 1, 1, |run| other.ring(run))
            });
            let granted = publishers.into_iter().filter(|publisher| *publisher == Publisher::Asked).count();
            assert!(granted <= 1);
            GRANTED.fetch_add(granted as u64, Ordering::Relaxed);
        });
        let clock = Clock::new(20_000);
        machine.producers.take_turns(&clock, Publisher::Asked, || unreachable!(), nothing);
        assert!(machine.try_submit(1).is_some());
        other.join().unwrap();
        machine.take_over();
        assert!(!machine.producers.is_disturbed());
        assert_eq!((machine.done().get(), machine.totals().batches), (3, 3));
    });
    assert_ne!(GRANTED.load(Ordering::Relaxed), 0);
}
