//! The list that only grows, against every interleaving that matters (loom), and under load.

use loom::sync::Arc;
use loom::sync::atomic::AtomicU64 as LoomU64;
use loom::thread;
use portcullis_hal::checked::{CheckedPointer, CheckedWord};
use portcullis_hal::roster::{Node, Roster};
use std::sync::atomic::Ordering;

type Checked<T> = Roster<T, CheckedWord, CheckedPointer<Node<T>>>;

/// Explores all orders of steps with at most `switches` forced switches between threads.
fn explore(switches: usize, check: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(switches);
    model.check(check);
}

#[test]
fn an_unmap_sees_who_is_attached_or_the_attached_device_does_not_see_the_entry() {
    explore(5, || {
        let attached: Arc<Checked<()>> = Arc::new(Roster::new());
        let entry = Arc::new(LoomU64::new(1));
        let unmapper = {
            let (attached, entry) = (attached.clone(), entry.clone());
            thread::spawn(move || {
                entry.store(0, Ordering::Relaxed);
                attached.read().next().is_some()
            })
        };
        attached.add(()).unwrap();
        // The device is let in, and walks the table.
        let cached = entry.load(Ordering::Relaxed);
        let invalidated = unmapper.join().unwrap();
        assert!(invalidated || cached == 0, "a stale translation, and nobody invalidates it");
    });
}

#[test]
fn who_finds_an_item_finds_what_was_written_to_it_before_and_all_that_came_before_it() {
    explore(3, || {
        let list: Arc<Checked<(u32, LoomU64)>> = Arc::new(Roster::new());
        let add = |list: &Checked<_>, number| {
            let word = LoomU64::new(0);
            word.store(u64::from(number), Ordering::Relaxed);
            list.add((number, word)).unwrap();
        };
        let other = {
            let list = list.clone();
            thread::spawn(move || add(&list, 1))
        };
        let reader = {
            let list = list.clone();
            thread::spawn(move || {
                for (number, word) in list.read() {
                    assert_eq!(word.load(Ordering::Relaxed), u64::from(*number));
                }
            })
        };
        add(&list, 2);
        assert!(list.read().any(|item| item.0 == 2), "one's own is there");
        other.join().unwrap();
        reader.join().unwrap();
        let mut all: Vec<u32> = list.read().map(|item| item.0).collect();
        all.sort_unstable();
        assert_eq!(all, [1, 2], "both are there, whoever came first");
    });
}

#[test]
fn the_only_item_is_told_from_none_and_from_several_and_all_are_dropped_with_the_list() {
    let item = std::sync::Arc::new(7);
    let list: Roster<std::sync::Arc<i32>> = Roster::new();
    assert!(list.read().only().is_none());
    list.add(item.clone()).unwrap();
    assert_eq!(list.read().only().map(|item| **item), Some(7));
    list.add(std::sync::Arc::new(8)).unwrap();
    assert!(list.read().only().is_none());
    assert_eq!(format!("{list:?}"), "[8, 7]");
    drop(list);
    assert_eq!(std::sync::Arc::strong_count(&item), 1);
}

#[test]
fn many_who_add_at_once_lose_nothing() {
    let (threads, each) = if cfg!(miri) { (2, 5) } else { (4, 1000) };
    let list: Roster<usize> = Roster::new();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let list = &list;
            scope.spawn(move || {
                for number in 0..each {
                    list.add(thread * each + number).unwrap();
                    assert!(list.read().count() > number);
                }
            });
        }
    });
    let mut all: Vec<usize> = list.read().copied().collect();
    all.sort_unstable();
    assert!(all.iter().copied().eq(0..threads * each));
}
