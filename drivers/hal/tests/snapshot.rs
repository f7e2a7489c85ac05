//! The snapshot, against every interleaving that matters (loom), and under load.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64 as LoomU64, AtomicUsize as LoomUsize};
use loom::thread;
use portcullis_hal::OutOfMemory;
use portcullis_hal::checked::{CheckedPointer, CheckedWord};
use portcullis_hal::snapshot::{Node, Snapshot};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A number that counts those that live, and whose use loom orders before its end.
struct Numbered {
    number: u32,
    used: UnsafeCell<()>,
    alive: Arc<LoomUsize>,
}

impl Numbered {
    fn new(number: u32, alive: &Arc<LoomUsize>) -> Self {
        alive.fetch_add(1, Ordering::Relaxed);
        Self { number, used: UnsafeCell::new(()), alive: alive.clone() }
    }

    fn look(&self) -> u32 {
        self.used.with(|_| ());
        self.number
    }
}

impl Drop for Numbered {
    fn drop(&mut self) {
        // An access that others must be ordered before, or loom says so.
        self.used.with_mut(|_| ());
        self.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

type Checked<T> = Snapshot<T, CheckedWord, CheckedPointer<Node<T>>>;

/// Explores all orders of steps with at most `switches` forced switches between threads.
fn explore(switches: usize, check: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(switches);
    model.check(check);
}

/// Replaces a number by the next one.
fn step(snapshot: &Checked<Numbered>) {
    let next = |now: &Numbered| Ok::<_, OutOfMemory>(Numbered::new(now.number + 1, &now.alive));
    snapshot.replace(next).unwrap();
}

fn numbered() -> (Arc<Checked<Numbered>>, Arc<LoomUsize>) {
    let alive = Arc::new(LoomUsize::new(0));
    (Arc::new(Snapshot::new(Numbered::new(0, &alive)).unwrap()), alive)
}

#[test]
fn an_unmap_sees_who_is_attached_or_the_attached_device_does_not_see_the_entry() {
    explore(5, || {
        let attached: Arc<Checked<bool>> = Arc::new(Snapshot::new(false).unwrap());
        let entry = Arc::new(LoomU64::new(1));
        let unmapper = {
            let (attached, entry) = (attached.clone(), entry.clone());
            thread::spawn(move || {
                entry.store(0, Ordering::Relaxed);
                *attached.read()
            })
        };
        attached.replace(|_| Ok::<_, OutOfMemory>(true)).unwrap();
        // The device is let in, and walks the table.
        let cached = entry.load(Ordering::Relaxed);
        let invalidated = unmapper.join().unwrap();
        assert!(invalidated || cached == 0, "a stale translation, and nobody invalidates it");
    });
}

#[test]
fn what_a_reader_looks_at_is_not_freed_while_it_is_replaced_again_and_again() {
    explore(3, || {
        let (snapshot, alive) = numbered();
        let reader = {
            let snapshot = snapshot.clone();
            thread::spawn(move || {
                let first = {
                    let reading = snapshot.read();
                    assert_eq!(reading.look(), reading.look());
                    reading.look()
                };
                assert!(snapshot.read().look() >= first, "time goes back");
            })
        };
        (0..3).for_each(|_| step(&snapshot));
        reader.join().unwrap();
        assert_eq!(snapshot.read().look(), 3);
        drop(snapshot);
        assert_eq!(alive.load(Ordering::Relaxed), 0, "something leaked");
    });
}

#[test]
fn a_reader_within_a_reader_and_a_writer_in_between() {
    explore(4, || {
        let (snapshot, alive) = numbered();
        let reader = {
            let snapshot = snapshot.clone();
            thread::spawn(move || {
                let outer = snapshot.read();
                let inner = snapshot.read();
                assert!(outer.look() <= inner.look());
                drop(outer);
                inner.look()
            })
        };
        (0..2).for_each(|_| step(&snapshot));
        reader.join().unwrap();
        drop(snapshot);
        assert_eq!(alive.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn two_writers_take_turns_and_a_reader_finds_what_one_of_them_left() {
    explore(2, || {
        let (snapshot, alive) = numbered();
        let writer = {
            let snapshot = snapshot.clone();
            thread::spawn(move || step(&snapshot))
        };
        let reader = {
            let snapshot = snapshot.clone();
            thread::spawn(move || assert!(snapshot.read().look() <= 2))
        };
        step(&snapshot);
        writer.join().unwrap();
        reader.join().unwrap();
        assert_eq!(snapshot.read().look(), 2, "a change is lost");
        drop(snapshot);
        assert_eq!(alive.load(Ordering::Relaxed), 0);
    });
}

/// Counts itself among the living, without loom.
struct Counted<'a>(u32, &'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(number: u32, alive: &'a AtomicUsize) -> Self {
        alive.fetch_add(1, Ordering::SeqCst);
        Self(number, alive)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

fn next<'a>(now: &Counted<'a>) -> Result<Counted<'a>, OutOfMemory> {
    Ok(Counted::new(now.0 + 1, now.1))
}

#[test]
fn without_readers_only_the_current_value_is_kept() {
    let alive = AtomicUsize::new(0);
    let snapshot: Snapshot<Counted> = Snapshot::new(Counted::new(0, &alive)).unwrap();
    for _ in 0..10 {
        snapshot.replace(next).unwrap();
        assert_eq!(alive.load(Ordering::SeqCst), 1);
    }
    assert_eq!(snapshot.read().0, 10);
    drop(snapshot);
    assert_eq!(alive.load(Ordering::SeqCst), 0);
}

#[test]
fn a_change_that_fails_changes_nothing() {
    let alive = AtomicUsize::new(0);
    let snapshot: Snapshot<Counted> = Snapshot::new(Counted::new(7, &alive)).unwrap();
    assert_eq!(snapshot.replace(|_| Err(OutOfMemory)), Err(OutOfMemory));
    assert_eq!((snapshot.read().0, alive.load(Ordering::SeqCst)), (7, 1));
    snapshot.replace(next).unwrap();
    assert_eq!((snapshot.read().0, alive.load(Ordering::SeqCst)), (8, 1));
}

#[test]
fn a_reader_that_stays_keeps_what_was_replaced_meanwhile_and_those_that_come_and_go_keep_nothing() {
    let alive = AtomicUsize::new(0);
    let snapshot: Snapshot<Counted> = Snapshot::new(Counted::new(0, &alive)).unwrap();
    let stays = snapshot.read();
    for changes in 1..=5 {
        snapshot.replace(next).unwrap();
        assert_eq!(alive.load(Ordering::SeqCst), changes + 1);
    }
    assert_eq!(stays.0, 0);
    drop(stays);
    snapshot.replace(next).unwrap();
    assert_eq!(alive.load(Ordering::SeqCst), 1);
    // There is always a reader, but none stays for longer than a change.
    let mut last = snapshot.read();
    for _ in 0..100 {
        let another = snapshot.read();
        snapshot.replace(next).unwrap();
        last = another;
        assert!(alive.load(Ordering::SeqCst) <= 6, "{} are kept", alive.load(Ordering::SeqCst));
    }
    drop(last);
}

#[test]
fn threads_read_what_is_there_while_others_replace_it() {
    const CHANGES: u32 = if cfg!(miri) { 20 } else { 20_000 };
    let alive = AtomicUsize::new(0);
    let snapshot: Snapshot<Counted> = Snapshot::new(Counted::new(0, &alive)).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..CHANGES {
                    snapshot.replace(next).unwrap();
                }
            });
            scope.spawn(|| {
                let mut last = 0;
                while last < 2 * CHANGES {
                    let reading = snapshot.read();
                    assert!(reading.0 >= last && std::ptr::eq(reading.1, &alive));
                    last = reading.0;
                }
            });
        }
    });
    // What they left waiting goes as soon as there is time for it.
    snapshot.replace(next).unwrap();
    assert_eq!((snapshot.read().0, alive.load(Ordering::SeqCst)), (2 * CHANGES + 1, 1));
}
