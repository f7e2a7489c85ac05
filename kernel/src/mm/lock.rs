//! A lock that can be held while other CPUs are asked to flush their TLBs.

use crate::memory::KernelHal;
use core::ops::{Deref, DerefMut};
use portcullis_arch::tlb;
use portcullis_hal::{Hal, InterruptMask};
use spin::{Mutex, MutexGuard};

/// Data behind a spin lock. Interrupts are masked on the holder's CPU, since handlers resolve faults of devices; a CPU
/// that waits for the lock flushes its TLB if the holder asks it to.
pub(super) struct SpaceLock<T>(Mutex<T>);

impl<T> SpaceLock<T> {
    pub(super) const fn new(data: T) -> Self {
        Self(Mutex::new(data))
    }

    pub(super) fn lock(&self) -> Guard<'_, T> {
        let restore = Restore(KernelHal.mask_interrupts());
        loop {
            if let Some(data) = self.0.try_lock() {
                return Guard { data, _restore: restore };
            }
            tlb::serve();
            KernelHal.relax();
        }
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
        KernelHal.restore_interrupts(self.0);
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
