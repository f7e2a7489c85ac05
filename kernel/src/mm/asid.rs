//! Address-space ids: one per space for all its life, so that a device may be given it.

use super::MmError;
use core::sync::atomic::{AtomicU64, Ordering};
use portcullis_hal::Asid;

/// Ids below 256 exist on all CPUs. Zero is that of a CPU without a user address space.
const WORDS: usize = 4;

/// One bit per id in use.
static TAKEN: [AtomicU64; WORDS] =
    [AtomicU64::new(1), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)];

/// An id that nobody else has.
#[derive(Debug)]
pub(super) struct Lease(u16);

impl Lease {
    pub(super) fn take() -> Result<Self, MmError> {
        for (index, word) in TAKEN.iter().enumerate() {
            let free = |taken: u64| (taken != u64::MAX).then(|| taken | (taken + 1));
            if let Ok(before) = word.fetch_update(Ordering::Acquire, Ordering::Relaxed, free) {
                return Ok(Self(index as u16 * 64 + before.trailing_ones() as u16));
            }
        }
        Err(MmError::NoAsid)
    }

    pub(super) fn get(&self) -> Asid {
        Asid::new(self.0)
    }
}

impl Drop for Lease {
    /// No TLB knows anything under the id any more.
    fn drop(&mut self) {
        if let Some(word) = TAKEN.get(usize::from(self.0 / 64)) {
            word.fetch_and(!(1 << (self.0 % 64)), Ordering::Release);
        }
    }
}
