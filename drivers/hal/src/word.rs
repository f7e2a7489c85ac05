//! The atomics that the lock-free parts of this crate are made of, as traits: the algorithms run on the real ones, and
//! under a model checker (feature `loom`) on its own.

use crate::barrier;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// An atomic 64-bit word.
pub trait Word: Sync {
    /// How many rounds one CPU works for others before it leaves the rest to them. Few under a model checker, which
    /// follows them all.
    const ROUNDS: u32 = 16;

    /// A word with this value.
    fn new(value: u64) -> Self;
    /// Reads the word.
    fn load(&self, ordering: Ordering) -> u64;
    /// Writes the word.
    fn store(&self, value: u64, ordering: Ordering);
    /// Writes the word and returns the value before.
    fn swap(&self, value: u64, ordering: Ordering) -> u64;
    /// Adds, wrapping around, and returns the value before.
    fn fetch_add(&self, value: u64, ordering: Ordering) -> u64;
    /// Sets bits, and returns the value before.
    fn fetch_or(&self, bits: u64, ordering: Ordering) -> u64;
    /// Clears all bits but these, and returns the value before.
    fn fetch_and(&self, bits: u64, ordering: Ordering) -> u64;
    /// A full fence: [`barrier::store_then_load`].
    fn fence();
    /// Lets others run, in a loop that waits for them.
    fn pause();
}

impl Word for AtomicU64 {
    #[inline]
    fn new(value: u64) -> Self {
        Self::new(value)
    }

    #[inline]
    fn load(&self, ordering: Ordering) -> u64 {
        self.load(ordering)
    }

    #[inline]
    fn store(&self, value: u64, ordering: Ordering) {
        self.store(value, ordering);
    }

    #[inline]
    fn swap(&self, value: u64, ordering: Ordering) -> u64 {
        self.swap(value, ordering)
    }

    #[inline]
    fn fetch_add(&self, value: u64, ordering: Ordering) -> u64 {
        self.fetch_add(value, ordering)
    }

    #[inline]
    fn fetch_or(&self, bits: u64, ordering: Ordering) -> u64 {
        self.fetch_or(bits, ordering)
    }

    #[inline]
    fn fetch_and(&self, bits: u64, ordering: Ordering) -> u64 {
        self.fetch_and(bits, ordering)
    }

    #[inline]
    fn fence() {
        barrier::store_then_load();
    }

    #[inline]
    fn pause() {
        core::hint::spin_loop();
    }
}

/// An atomic pointer.
pub trait Pointer<T> {
    /// A pointer to this place.
    fn new(value: *mut T) -> Self;
    /// Reads the pointer.
    fn load(&self, ordering: Ordering) -> *mut T;
    /// Writes the pointer.
    fn store(&self, value: *mut T, ordering: Ordering);
    /// Writes `new` if the pointer is `current`.
    ///
    /// # Errors
    ///
    /// It is another one, which is returned.
    fn compare_exchange(
        &self,
        current: *mut T,
        new: *mut T,
        success: Ordering,
        failure: Ordering,
    ) -> Result<*mut T, *mut T>;
}

impl<T> Pointer<T> for AtomicPtr<T> {
    #[inline]
    fn new(value: *mut T) -> Self {
        Self::new(value)
    }

    #[inline]
    fn load(&self, ordering: Ordering) -> *mut T {
        self.load(ordering)
    }

    #[inline]
    fn store(&self, value: *mut T, ordering: Ordering) {
        self.store(value, ordering);
    }

    #[inline]
    fn compare_exchange(
        &self,
        current: *mut T,
        new: *mut T,
        success: Ordering,
        failure: Ordering,
    ) -> Result<*mut T, *mut T> {
        self.compare_exchange(current, new, success, failure)
    }
}
