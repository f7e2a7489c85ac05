//! Memory that can run out: frames and heap, counted together, per thread.

use portcullis_hal::host::HostHal;
use portcullis_hal::{FrameOrder, Hal, InterruptMask, OutOfMemory, PhysAddr};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr::NonNull;

thread_local! {
    /// Allocations until one fails; `None` while nothing is counted.
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    static TRIPPED: Cell<bool> = const { Cell::new(false) };
    /// Bytes of heap that this thread holds, exempt ones aside.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static COUNTING: Cell<bool> = const { Cell::new(false) };
}

/// Counts an allocation; returns whether it has to fail.
fn fails() -> bool {
    match LEFT.get() {
        None => false,
        Some(0) => {
            LEFT.set(None);
            TRIPPED.set(true);
            true
        }
        Some(left) => {
            LEFT.set(Some(left - 1));
            false
        }
    }
}

/// Runs `act` with the allocation after the next `n` failing. Returns how it went and whether one failed.
pub(crate) fn failing<R>(n: usize, act: impl FnOnce() -> R) -> (R, bool) {
    TRIPPED.set(false);
    LEFT.set(Some(n));
    let result = act();
    LEFT.set(None);
    (result, TRIPPED.get())
}

/// Runs what prepares the act that may fail.
pub(crate) fn unfailing<R>(act: impl FnOnce() -> R) -> R {
    let left = LEFT.take();
    let result = act();
    LEFT.set(left);
    result
}

/// Runs what is not the driver's.
pub(crate) fn exempt<R>(act: impl FnOnce() -> R) -> R {
    let (left, counting) = (LEFT.take(), COUNTING.replace(false));
    let result = act();
    LEFT.set(left);
    COUNTING.set(counting);
    result
}

/// Runs `act` and returns how many bytes of heap it left behind.
pub(crate) fn heap_left_by(act: impl FnOnce()) -> isize {
    LIVE.set(0);
    COUNTING.set(true);
    act();
    COUNTING.set(false);
    LIVE.get()
}

struct Counting;

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if fails() {
            return std::ptr::null_mut();
        }
        if COUNTING.get() {
            LIVE.set(LIVE.get() + layout.size() as isize);
        }
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if COUNTING.get() {
            LIVE.set(LIVE.get() - layout.size() as isize);
        }
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A [`HostHal`] whose bookkeeping is exempt, and whose frames are counted with the heap.
#[derive(Clone)]
pub(crate) struct TestHal(HostHal);

impl TestHal {
    pub(crate) fn new() -> Self {
        Self(HostHal::new())
    }

    pub(crate) fn frames_in_use(&self) -> usize {
        self.0.frames_in_use()
    }

    pub(crate) fn is_allocated(&self, phys: PhysAddr, len: u64) -> bool {
        self.0.is_allocated(phys, len)
    }
}

// SAFETY: passes everything on to `HostHal`.
unsafe impl Hal for TestHal {
    fn alloc_frames(&self, order: FrameOrder) -> Result<PhysAddr, OutOfMemory> {
        if fails() {
            return Err(OutOfMemory);
        }
        exempt(|| self.0.alloc_frames(order))
    }

    unsafe fn free_frames(&self, base: PhysAddr, order: FrameOrder) {
        // SAFETY: the caller's contract.
        exempt(|| unsafe { self.0.free_frames(base, order) });
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        self.0.phys_to_virt(phys)
    }

    fn clean_cache(&self, start: NonNull<u8>, len: usize) {
        self.0.clean_cache(start, len);
    }

    fn now_ns(&self) -> u64 {
        self.0.now_ns()
    }

    fn mask_interrupts(&self) -> InterruptMask {
        self.0.mask_interrupts()
    }

    fn restore_interrupts(&self, mask: InterruptMask) {
        self.0.restore_interrupts(mask);
    }
}
