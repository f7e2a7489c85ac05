//! A spin lock that keeps interrupts off its holder, for data that interrupt handlers use too.

use super::cpu;
use core::ops::{Deref, DerefMut};
use portcullis_hal::InterruptMask;
use spin::{Mutex, MutexGuard};

/// Data behind a spin lock; interrupts are masked on the holder's CPU.
pub(super) struct InterruptLock<T>(Mutex<T>);

impl<T> InterruptLock<T> {
    pub(super) const fn new(data: T) -> Self {
        Self(Mutex::new(data))
    }

    /// Masks interrupts, then takes the lock.
    pub(super) fn lock(&self) -> Guard<'_, T> {
        let restore = Restore(cpu::mask_interrupts());
        Guard { data: self.0.lock(), _restore: restore }
    }

    /// Opens the lock whoever holds it, for a kernel that is about to stop.
    #[expect(unsafe_code, reason = "the last words of a kernel must not wait")]
    pub(super) fn force_unlock(&self) {
        // SAFETY: the caller is about to stop the kernel; the holder, if it still runs, may garble console output
        // and nothing else, since only the console is opened so.
        unsafe { self.0.force_unlock() }
    }
}

/// Exclusive access. Dropping it opens the lock and then restores the interrupt mask: fields drop in this order.
pub(super) struct Guard<'a, T> {
    data: MutexGuard<'a, T>,
    _restore: Restore,
}

struct Restore(InterruptMask);

impl Drop for Restore {
    fn drop(&mut self) {
        cpu::restore_interrupts(self.0);
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.data
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.data
    }
}
