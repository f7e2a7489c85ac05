//! Memory: a block of the host's that plays all of physical memory, and a count of what is taken of it and of the heap.

#![expect(unsafe_code, reason = "an allocator, and raw memory that plays physical memory")]

use portcullis_hal::{FrameOrder, Hal, InterruptMask, OutOfMemory, PhysAddr};
use std::alloc::{GlobalAlloc, Layout, System, alloc_zeroed};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Where physical memory begins, and its size.
const BASE: u64 = 1 << 32;
const SIZE: u64 = 64 << 20;

/// Orders of frames that are kept apart.
const ORDERS: usize = 16;

/// Physical memory that is found by a subtraction. It is never given back to the host.
#[derive(Clone, Copy)]
pub(crate) struct Memory(&'static State);

struct State {
    block: NonNull<u8>,
    free: Mutex<Free>,
    taken: AtomicU64,
    start: Instant,
}

struct Free {
    /// Frames that were given back, by order.
    frames: [Vec<u64>; ORDERS],
    /// What was never taken begins here.
    rest: u64,
}

// SAFETY: the block is plain memory; who may access it when is the business of the frames' owners.
unsafe impl Send for State {}
// SAFETY: as above, and the rest is synchronised.
unsafe impl Sync for State {}

/// Bytes taken.
#[derive(Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) frames: u64,
    pub(crate) heap: u64,
}

impl Usage {
    /// What was taken since, less what was given back.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self { frames: self.frames - earlier.frames, heap: self.heap.saturating_sub(earlier.heap) }
    }
}

impl Memory {
    pub(crate) fn new() -> Self {
        let layout = Layout::from_size_align(SIZE as usize, SIZE as usize).expect("a power of two");
        // SAFETY: the layout is not empty.
        let block = NonNull::new(unsafe { alloc_zeroed(layout) }).expect("memory");
        // Room in advance, so that giving a frame back allocates nothing.
        let frames = std::array::from_fn(|_| Vec::with_capacity(4096));
        let free = Mutex::new(Free { frames, rest: BASE });
        Self(Box::leak(Box::new(State { block, free, taken: AtomicU64::new(0), start: Instant::now() })))
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage { frames: self.0.taken.load(Ordering::Relaxed), heap: HEAP.0.load(Ordering::Relaxed) }
    }

    /// A word of memory, as a unit sees it.
    pub(crate) fn word(&self, phys: u64) -> &AtomicU64 {
        assert!(phys.is_multiple_of(8) && (BASE..BASE + SIZE).contains(&phys));
        // SAFETY: the address lies in the block, and what units and drivers share are atomics.
        unsafe { self.phys_to_virt(PhysAddr::new(phys)).cast().as_ref() }
    }
}

// SAFETY: frames are aligned pieces of a block that is aligned to its size and lives for ever; they are given out again
// only after they came back, and cleared each time. There are no interrupts.
unsafe impl Hal for Memory {
    fn alloc_frames(&self, order: FrameOrder) -> Result<PhysAddr, OutOfMemory> {
        let size = order.bytes();
        let mut free = self.0.free.lock().map_err(|_| OutOfMemory)?;
        let kept = free.frames.get_mut(index(order)).and_then(Vec::pop);
        let phys = kept.unwrap_or_else(|| free.rest.next_multiple_of(size));
        if kept.is_none() {
            if phys + size > BASE + SIZE {
                return Err(OutOfMemory);
            }
            free.rest = phys + size;
        }
        self.0.taken.fetch_add(size, Ordering::Relaxed);
        let phys = PhysAddr::new(phys);
        // SAFETY: the frames are in the block, and nobody else has them.
        unsafe { self.phys_to_virt(phys).write_bytes(0, size as usize) };
        Ok(phys)
    }

    unsafe fn free_frames(&self, base: PhysAddr, order: FrameOrder) {
        self.0.taken.fetch_sub(order.bytes(), Ordering::Relaxed);
        if let Ok(mut free) = self.0.free.lock()
            && let Some(frames) = free.frames.get_mut(index(order))
        {
            frames.push(base.get());
        }
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        let offset = phys.get().wrapping_sub(BASE).min(SIZE - 1);
        // SAFETY: the offset is in the block.
        unsafe { self.0.block.add(offset as usize) }
    }

    fn clean_cache(&self, _start: NonNull<u8>, _len: usize) {}

    fn now_ns(&self) -> u64 {
        self.0.start.elapsed().as_nanos() as u64
    }

    fn relax(&self) {
        // There may be more threads that wait for each other than processors.
        std::thread::yield_now();
    }

    fn mask_interrupts(&self) -> InterruptMask {
        InterruptMask(0)
    }

    fn restore_interrupts(&self, _mask: InterruptMask) {}
}

/// The order as an index: the logarithm of the number of pages.
fn index(order: FrameOrder) -> usize {
    (order.bytes() >> 12).trailing_zeros() as usize
}

/// The host's heap, with a count of the bytes taken.
struct Heap(AtomicU64);

#[global_allocator]
static HEAP: Heap = Heap(AtomicU64::new(0));

// SAFETY: the host's allocator does the work.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.0.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}
