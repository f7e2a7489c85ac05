//! Memory that can run out: frames and heap, counted together, per thread.
//!
//! A test program makes [`Heap`] its global allocator and gives the driver a [`ScarceHal`]. What is not the driver's,
//! a model of hardware say, runs [`exempt`].

use super::HostHal;
use crate::{FrameOrder, Hal, InterruptMask, OutOfMemory, PhysAddr};
use core::ptr::NonNull;
use std::alloc::{GlobalAlloc, Layout, System};
use std::boxed::Box;
use std::cell::Cell;
use std::sync::{Arc, OnceLock};

std::thread_local! {
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
pub fn failing<R>(n: usize, act: impl FnOnce() -> R) -> (R, bool) {
    TRIPPED.set(false);
    LEFT.set(Some(n));
    let result = act();
    LEFT.set(None);
    (result, TRIPPED.get())
}

/// Runs what prepares the act that may fail.
pub fn unfailing<R>(act: impl FnOnce() -> R) -> R {
    let left = LEFT.take();
    let result = act();
    LEFT.set(left);
    result
}

/// Runs what is not the driver's.
pub fn exempt<R>(act: impl FnOnce() -> R) -> R {
    let (left, counting) = (LEFT.take(), COUNTING.replace(false));
    let result = act();
    LEFT.set(left);
    COUNTING.set(counting);
    result
}

/// Runs `act` and returns how many bytes of heap it left behind.
pub fn heap_left_by(act: impl FnOnce()) -> isize {
    LIVE.set(0);
    COUNTING.set(true);
    act();
    COUNTING.set(false);
    LIVE.get()
}

/// The system's heap, of which the n-th allocation can fail.
#[derive(Debug)]
pub struct Heap;

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if fails() {
            return core::ptr::null_mut();
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

type Spin = Box<dyn Fn() + Send + Sync>;

/// A [`HostHal`] whose bookkeeping is exempt, and whose frames are counted with the heap.
#[derive(Clone)]
pub struct ScarceHal {
    host: HostHal,
    spin: Arc<OnceLock<Spin>>,
}

impl ScarceHal {
    /// An empty memory.
    #[expect(clippy::new_without_default, reason = "each call makes a memory of its own")]
    pub fn new() -> Self {
        Self { host: HostHal::new(), spin: Arc::new(OnceLock::new()) }
    }

    /// The memory itself.
    pub fn host(&self) -> &HostHal {
        &self.host
    }

    /// What the machine does while the driver waits, exempt; set once.
    pub fn on_relax(&self, spin: impl Fn() + Send + Sync + 'static) {
        let _ = self.spin.set(Box::new(spin));
    }

    /// How many frames of 4 KiB are allocated now.
    pub fn frames_in_use(&self) -> usize {
        self.host.frames_in_use()
    }

    /// Whether all of `len` bytes from `phys` are allocated, in one block.
    pub fn is_allocated(&self, phys: PhysAddr, len: u64) -> bool {
        self.host.is_allocated(phys, len)
    }
}

// SAFETY: passes everything on to `HostHal`.
unsafe impl Hal for ScarceHal {
    fn alloc_frames(&self, order: FrameOrder) -> Result<PhysAddr, OutOfMemory> {
        if fails() {
            return Err(OutOfMemory);
        }
        exempt(|| self.host.alloc_frames(order))
    }

    unsafe fn free_frames(&self, base: PhysAddr, order: FrameOrder) {
        // SAFETY: the caller's contract.
        exempt(|| unsafe { self.host.free_frames(base, order) });
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        self.host.phys_to_virt(phys)
    }

    fn clean_cache(&self, start: NonNull<u8>, len: usize) {
        self.host.clean_cache(start, len);
    }

    fn now_ns(&self) -> u64 {
        self.host.now_ns()
    }

    fn relax(&self) {
        match self.spin.get() {
            Some(spin) => exempt(spin),
            None => core::hint::spin_loop(),
        }
    }

    fn mask_interrupts(&self) -> InterruptMask {
        self.host.mask_interrupts()
    }

    fn restore_interrupts(&self, mask: InterruptMask) {
        self.host.restore_interrupts(mask);
    }
}
