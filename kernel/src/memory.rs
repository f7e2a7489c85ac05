//! RAM: one buddy heap under the direct map serves the kernel's allocations and the drivers' frames, and [`KernelHal`]
//! is what the drivers see of the kernel.

#![expect(unsafe_code, reason = "the allocator and the drivers' Hal")]

use buddy_system_allocator::Heap;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use portcullis_arch::{MemoryMap, cpu, paging, time};
use portcullis_hal::{FrameOrder, Hal, InterruptMask, OutOfMemory, PhysAddr};
use spin::Mutex;

/// Block sizes up to 2^31 bytes: the largest frame is 1 GiB.
const ORDERS: usize = 32;

/// The heap's lock is only taken with interrupts masked, since handlers may allocate nothing but may run at any time.
static HEAP: Mutex<Heap<ORDERS>> = Mutex::new(Heap::new());

fn with_heap<R>(work: impl FnOnce(&mut Heap<ORDERS>) -> R) -> R {
    KernelHal.critical(|| work(&mut HEAP.lock()))
}

/// Gives all usable RAM to the heap.
pub(crate) fn init(memory: &MemoryMap) {
    for range in memory.iter() {
        let start = paging::phys_to_virt(range.start()).as_ptr() as usize;
        // SAFETY: the memory map lists RAM that nobody uses, and the direct map covers it.
        with_heap(|heap| unsafe { heap.init(start, range.len() as usize) });
    }
}

/// Bytes in use and bytes in all.
pub(crate) fn usage() -> (usize, usize) {
    with_heap(|heap| (heap.stats_alloc_actual(), heap.stats_total_bytes()))
}

struct KernelAllocator;

#[global_allocator]
static ALLOCATOR: KernelAllocator = KernelAllocator;

// SAFETY: the buddy heap hands out disjoint blocks of at least the size and alignment asked for.
unsafe impl GlobalAlloc for KernelAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        with_heap(|heap| heap.alloc(layout)).map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if let Some(pointer) = NonNull::new(pointer) {
            // SAFETY: the caller gives back what `alloc` returned for this layout.
            with_heap(|heap| unsafe { heap.dealloc(pointer, layout) });
        }
    }
}

/// The kernel, as the drivers see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelHal;

fn frame_layout(order: FrameOrder) -> Option<Layout> {
    let bytes = order.bytes() as usize;
    Layout::from_size_align(bytes, bytes).ok()
}

// SAFETY: frames are naturally aligned blocks of the heap, zeroed here, reached through the direct map, which never
// changes; the cache and interrupt functions are the architecture's.
unsafe impl Hal for KernelHal {
    fn alloc_frames(&self, order: FrameOrder) -> Result<PhysAddr, OutOfMemory> {
        let layout = frame_layout(order).ok_or(OutOfMemory)?;
        let block = with_heap(|heap| heap.alloc(layout)).map_err(|()| OutOfMemory)?;
        // SAFETY: the block was just allocated with this size.
        unsafe { cpu::zero(block, layout.size()) };
        paging::virt_to_phys(block).ok_or(OutOfMemory)
    }

    unsafe fn free_frames(&self, base: PhysAddr, order: FrameOrder) {
        if let Some(layout) = frame_layout(order) {
            // SAFETY: the caller gives back what `alloc_frames` returned for this order.
            with_heap(|heap| unsafe { heap.dealloc(paging::phys_to_virt(base), layout) });
        }
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        paging::phys_to_virt(phys)
    }

    #[inline(always)]
    fn clean_cache(&self, start: NonNull<u8>, len: usize) {
        portcullis_hal::count::add_clean(start, len);
        cpu::clean_cache(start, len);
    }

    fn now_ns(&self) -> u64 {
        time::now_ns()
    }

    fn mask_interrupts(&self) -> InterruptMask {
        cpu::mask_interrupts()
    }

    fn restore_interrupts(&self, mask: InterruptMask) {
        cpu::restore_interrupts(mask);
    }
}
