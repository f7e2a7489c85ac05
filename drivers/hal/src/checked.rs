//! The atomics of the model checker loom, for tests of what is made of [`Word`] and [`Pointer`].

use crate::word::{Pointer, Word};
use core::sync::atomic::Ordering;
use loom::sync::atomic::{AtomicPtr, AtomicU64, fence};

/// A word whose every access loom orders.
#[derive(Debug)]
pub struct CheckedWord(AtomicU64);

impl Word for CheckedWord {
    const ROUNDS: u32 = 2;

    fn new(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }

    fn load(&self, ordering: Ordering) -> u64 {
        self.0.load(ordering)
    }

    fn store(&self, value: u64, ordering: Ordering) {
        self.0.store(value, ordering);
    }

    fn swap(&self, value: u64, ordering: Ordering) -> u64 {
        self.0.swap(value, ordering)
    }

    fn fetch_add(&self, value: u64, ordering: Ordering) -> u64 {
        self.0.fetch_add(value, ordering)
    }

    fn fetch_or(&self, bits: u64, ordering: Ordering) -> u64 {
        self.0.fetch_or(bits, ordering)
    }

    fn fetch_and(&self, bits: u64, ordering: Ordering) -> u64 {
        self.0.fetch_and(bits, ordering)
    }

    fn fence() {
        fence(Ordering::SeqCst);
    }

    fn pause() {
        loom::thread::yield_now();
    }
}

/// A pointer whose every access loom orders.
#[derive(Debug)]
pub struct CheckedPointer<T>(AtomicPtr<T>);

impl<T> Pointer<T> for CheckedPointer<T> {
    fn new(value: *mut T) -> Self {
        Self(AtomicPtr::new(value))
    }

    fn load(&self, ordering: Ordering) -> *mut T {
        self.0.load(ordering)
    }

    fn store(&self, value: *mut T, ordering: Ordering) {
        self.0.store(value, ordering);
    }

    fn compare_exchange(
        &self,
        current: *mut T,
        new: *mut T,
        success: Ordering,
        failure: Ordering,
    ) -> Result<*mut T, *mut T> {
        self.0.compare_exchange(current, new, success, failure)
    }
}
