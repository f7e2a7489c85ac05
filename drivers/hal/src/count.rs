//! Counts of what a count of instructions hides: for benchmarks.
//!
//! Without the feature `count`, which only a benchmark's build has, nothing is kept and [`add`] compiles to nothing. With
//! it the counts are the whole program's, so that the code that is counted need not know who asks.

use crate::Mmio;
use core::ptr::NonNull;
#[cfg(feature = "count")]
use core::sync::atomic::{AtomicU64, Ordering};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A cache line written back to memory.
    Clean,
    /// A barrier instruction.
    Barrier,
    /// A table that a walk of a page table came to, the root included.
    Table,
    /// A read of the register that says how far a unit has come.
    Poll,
    /// A read of another register.
    Read,
    /// A write of a register.
    Write,
}

/// How often each [`Event`] happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counts {
    /// [`Event::Clean`].
    pub cleans: u64,
    /// [`Event::Barrier`].
    pub barriers: u64,
    /// [`Event::Table`].
    pub tables: u64,
    /// [`Event::Poll`].
    pub polls: u64,
    /// [`Event::Read`].
    pub reads: u64,
    /// [`Event::Write`].
    pub writes: u64,
}

#[cfg(feature = "count")]
static COUNTERS: [AtomicU64; 6] = [const { AtomicU64::new(0) }; 6];

/// Counts `times` events.
#[inline(always)]
pub fn add(event: Event, times: u64) {
    #[cfg(feature = "count")]
    if let Some(counter) = COUNTERS.get(event as usize) {
        counter.fetch_add(times, Ordering::Relaxed);
    }
    #[cfg(not(feature = "count"))]
    let _ = (event, times);
}

/// Counts a call of [`Hal::clean_cache`](crate::Hal::clean_cache) that cleans lines of 64 bytes and waits for them with
/// one barrier.
#[inline(always)]
pub fn add_clean(start: NonNull<u8>, len: usize) {
    const LINE: usize = 64;
    let first = start.addr().get() / LINE;
    let end = start.addr().get().saturating_add(len).div_ceil(LINE);
    add(Event::Clean, end.saturating_sub(first) as u64);
    add(Event::Barrier, 1);
}

/// All events so far; `None` without the feature `count`.
pub fn counts() -> Option<Counts> {
    #[cfg(feature = "count")]
    {
        let [cleans, barriers, tables, polls, reads, writes] =
            COUNTERS.each_ref().map(|counter| counter.load(Ordering::Relaxed));
        Some(Counts { cleans, barriers, tables, polls, reads, writes })
    }
    #[cfg(not(feature = "count"))]
    None
}

impl Counts {
    /// What happened since `earlier`.
    pub const fn since(&self, earlier: &Self) -> Self {
        Self {
            cleans: self.cleans.wrapping_sub(earlier.cleans),
            barriers: self.barriers.wrapping_sub(earlier.barriers),
            tables: self.tables.wrapping_sub(earlier.tables),
            polls: self.polls.wrapping_sub(earlier.polls),
            reads: self.reads.wrapping_sub(earlier.reads),
            writes: self.writes.wrapping_sub(earlier.writes),
        }
    }
}

/// Registers whose accesses are counted.
#[derive(Debug)]
pub struct Counted<M> {
    registers: M,
    /// The register that says how far the unit has come.
    poll: Option<usize>,
}

impl<M: Mmio> Counted<M> {
    /// Counts accesses to `registers`; reads at the offset `poll` are [`Event::Poll`].
    pub const fn new(registers: M, poll: Option<usize>) -> Self {
        Self { registers, poll }
    }

    fn add_read(&self, offset: usize) {
        add(if self.poll == Some(offset) { Event::Poll } else { Event::Read }, 1);
    }
}

#[expect(unsafe_code, reason = "registers of a device, with its driver's contract")]
// SAFETY: the accesses are those of the registers behind, which keep the contract.
unsafe impl<M: Mmio> Mmio for Counted<M> {
    fn read32(&self, offset: usize) -> u32 {
        self.add_read(offset);
        self.registers.read32(offset)
    }

    fn write32(&self, offset: usize, value: u32) {
        add(Event::Write, 1);
        self.registers.write32(offset, value);
    }

    fn read64(&self, offset: usize) -> u64 {
        self.add_read(offset);
        self.registers.read64(offset)
    }

    fn write64(&self, offset: usize, value: u64) {
        add(Event::Write, 1);
        self.registers.write64(offset, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_differences_and_kept_only_on_request() {
        let before = counts();
        add(Event::Barrier, 1);
        assert_eq!(before.is_some(), cfg!(feature = "count"));
        let (earlier, later) =
            (Counts { reads: 3, ..Counts::default() }, Counts { reads: 5, ..Counts::default() });
        assert_eq!(later.since(&earlier), Counts { reads: 2, ..Counts::default() });
    }

    #[cfg(feature = "count")]
    #[test]
    fn a_clean_counts_every_line_that_it_touches() {
        let lines = |start: usize, len| {
            let before = counts().unwrap_or_default();
            add_clean(NonNull::without_provenance(core::num::NonZero::new(start).unwrap()), len);
            counts().unwrap_or_default().since(&before).cleans
        };
        assert_eq!([lines(64, 64), lines(64, 65), lines(127, 2), lines(64, 1)], [1, 2, 2, 1]);
    }
}
