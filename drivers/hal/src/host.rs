//! A [`Hal`] on the host's own memory, for tests: it counts, can fail the n-th allocation, and checks that what is
//! freed was allocated.

#![expect(unsafe_code, reason = "raw memory that plays physical memory")]

mod golden;
mod random;
pub mod scarce;

pub use random::Random;

use crate::{
    FrameOrder, Gather, Hal, IdentityAccess, InterruptMask, IoSpace, IovaRange, MapError, Mapping,
    OutOfMemory, PhysAddr, UnmapError,
};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use std::time::Instant;

/// Physical memory made of host memory.
///
/// Physical addresses start at 4 GiB and are never used twice, so that an access to freed memory is found out.
/// Clones share one memory. Dropping the last clone frees what is still allocated.
#[derive(Clone, Debug)]
pub struct HostHal(Arc<State>);

#[derive(Debug)]
struct State {
    frames: RwLock<BTreeMap<u64, Block>>,
    next: AtomicU64,
    allocations: AtomicUsize,
    fail_at: AtomicUsize,
    cleaned_lines: AtomicU64,
    start: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    order: FrameOrder,
    memory: NonNull<u8>,
}

// SAFETY: a block is plain memory; who may access it when is the business of the frames' owner.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl HostHal {
    /// An empty memory.
    #[expect(clippy::new_without_default, reason = "each call makes a memory of its own")]
    pub fn new() -> Self {
        Self(Arc::new(State {
            frames: RwLock::new(BTreeMap::new()),
            next: AtomicU64::new(1 << 32),
            allocations: AtomicUsize::new(0),
            fail_at: AtomicUsize::new(usize::MAX),
            cleaned_lines: AtomicU64::new(0),
            start: Instant::now(),
        }))
    }

    /// How many clones of this memory's handle there are.
    pub fn handles(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// How many frames of 4 KiB are allocated now.
    pub fn frames_in_use(&self) -> usize {
        self.0.frames.read().unwrap().values().map(|block| 1_usize << block.order.get()).sum()
    }

    /// Whether all of `len` bytes from `phys` are allocated, in one block.
    pub fn is_allocated(&self, phys: PhysAddr, len: u64) -> bool {
        self.find(phys).is_some_and(|(base, block)| phys.get() + len <= base + block.order.bytes())
    }

    fn find(&self, phys: PhysAddr) -> Option<(u64, Block)> {
        let frames = self.0.frames.read().unwrap();
        let (&base, &block) = frames.range(..=phys.get()).next_back()?;
        (phys.get() < base + block.order.bytes()).then_some((base, block))
    }

    /// The 64-bit word at `phys`, as a device reads it; `None` where nothing is allocated, or not aligned.
    pub fn load64(&self, phys: PhysAddr) -> Option<u64> {
        self.with_word(phys, |word| word.load(Ordering::SeqCst))
    }

    /// Writes the 64-bit word at `phys`, as a device does; `None` where nothing is allocated, or not aligned.
    pub fn store64(&self, phys: PhysAddr, value: u64) -> Option<()> {
        self.with_word(phys, |word| word.store(value, Ordering::SeqCst))
    }

    fn with_word<R>(&self, phys: PhysAddr, access: impl FnOnce(&AtomicU64) -> R) -> Option<R> {
        // Held, so that the block is not freed meanwhile.
        let frames = self.0.frames.read().unwrap();
        let (&base, block) = frames.range(..=phys.get()).next_back()?;
        let offset = phys.get() - base;
        if offset >= block.order.bytes() || !offset.is_multiple_of(8) {
            return None;
        }
        // SAFETY: inside the block, which is aligned to its size; its memory is shared through atomics only.
        Some(access(unsafe { AtomicU64::from_ptr(block.memory.as_ptr().add(offset as usize).cast()) }))
    }

    /// How many allocations were asked for so far.
    pub fn allocations(&self) -> usize {
        self.0.allocations.load(Ordering::SeqCst)
    }

    /// Lets the allocation after the next `n` fail, once.
    pub fn fail_after(&self, n: usize) {
        self.0.fail_at.store(self.allocations() + n, Ordering::SeqCst);
    }

    /// Lets no allocation fail any more.
    pub fn fail_never(&self) {
        self.0.fail_at.store(usize::MAX, Ordering::SeqCst);
    }

    /// Lets all frames that are allocated from now on lie at or above `phys`.
    pub fn skip_to(&self, phys: PhysAddr) {
        self.0.next.fetch_max(phys.get(), Ordering::SeqCst);
    }

    /// How many 64-byte lines were cleaned.
    pub fn cleaned_lines(&self) -> u64 {
        self.0.cleaned_lines.load(Ordering::SeqCst)
    }
}

/// Pass-through for tests, in which there are no devices.
// SAFETY: nothing but models of devices reaches host memory in tests, through checked accesses.
pub const IDENTITY: IdentityAccess = unsafe { IdentityAccess::new() };

/// Maps for tests, whose memory no real device reaches.
pub fn map<S: IoSpace + ?Sized>(space: &S, list: &[Mapping]) -> Result<(), MapError> {
    // SAFETY: models of devices do not touch what they reach.
    unsafe { space.map(list) }
}

/// Unmaps for tests, whose memory no real device reaches.
pub fn unmap<S: IoSpace + ?Sized>(
    space: &S,
    range: IovaRange,
    gather: &mut Gather,
) -> Result<u64, UnmapError> {
    // SAFETY: as above; what a test unmaps behind a mapping's back, it does on purpose.
    unsafe { space.unmap(range, gather) }
}

fn layout(order: FrameOrder) -> Layout {
    let bytes = order.bytes() as usize;
    Layout::from_size_align(bytes, bytes).expect("orders are small powers of two")
}

// SAFETY: memory comes from the host's allocator with the size as alignment, and is tracked until it is freed.
unsafe impl Hal for HostHal {
    fn alloc_frames(&self, order: FrameOrder) -> Result<PhysAddr, OutOfMemory> {
        let nth = self.0.allocations.fetch_add(1, Ordering::SeqCst);
        if nth == self.0.fail_at.load(Ordering::SeqCst) {
            return Err(OutOfMemory);
        }
        // SAFETY: the layout is not empty.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout(order)) }).ok_or(OutOfMemory)?;
        let size = order.bytes();
        let claim = |next: u64| Some(next.next_multiple_of(size) + size);
        let before = self.0.next.fetch_update(Ordering::SeqCst, Ordering::SeqCst, claim).unwrap_or(u64::MAX);
        let phys = before.next_multiple_of(size);
        self.0.frames.write().unwrap().insert(phys, Block { order, memory });
        Ok(PhysAddr::new(phys))
    }

    unsafe fn free_frames(&self, base: PhysAddr, order: FrameOrder) {
        let known = self.0.frames.write().unwrap().remove(&base.get());
        let block = known.filter(|block| block.order == order);
        let block =
            block.unwrap_or_else(|| panic!("freed {base} of order {order:?}, which was not allocated so"));
        // SAFETY: allocated with this layout, as was just checked.
        unsafe { dealloc(block.memory.as_ptr(), layout(order)) };
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        let (base, block) = self.find(phys).unwrap_or_else(|| panic!("{phys} is not allocated"));
        // SAFETY: `find` returns the block that the address lies in.
        unsafe { block.memory.add((phys.get() - base) as usize) }
    }

    fn clean_cache(&self, start: NonNull<u8>, len: usize) {
        let first = start.addr().get() / 64;
        let last = (start.addr().get() + len.max(1) - 1) / 64;
        self.0.cleaned_lines.fetch_add((last - first + 1) as u64, Ordering::SeqCst);
    }

    fn now_ns(&self) -> u64 {
        self.0.start.elapsed().as_nanos() as u64
    }

    fn mask_interrupts(&self) -> InterruptMask {
        InterruptMask(0)
    }

    fn restore_interrupts(&self, _mask: InterruptMask) {}
}

impl Drop for State {
    fn drop(&mut self) {
        for block in self.frames.get_mut().unwrap().values() {
            // SAFETY: allocated with this layout and not freed since, or it would not be in the map.
            unsafe { dealloc(block.memory.as_ptr(), layout(block.order)) };
        }
    }
}
