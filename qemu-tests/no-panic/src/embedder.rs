//! What the drivers see of a kernel: nothing that the compiler can know.

#![expect(unsafe_code, reason = "plays the kernel")]

use core::alloc::{GlobalAlloc, Layout};
use core::fmt;
use core::hint::black_box;
use core::panic::PanicInfo;
use core::ptr::NonNull;
use portcullis_hal::{
    FrameOrder, Hal, IdentityAccess, InterruptMask, MmioRegion, OutOfMemory, PhysAddr, SharedTable, TableRoot,
};

unsafe extern "C" {
    /// Exists nowhere: the program links only if the optimiser found that nothing calls it.
    safe fn a_panic_can_be_reached() -> !;
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    if cfg!(feature = "explain") {
        black_box(info);
    }
    a_panic_can_be_reached()
}

/// The entry point, which keeps everything alive.
#[unsafe(no_mangle)]
extern "C" fn _start() {
    log::set_max_level(black_box(log::LevelFilter::Trace));
    if log::set_logger(&Log).is_err() {
        return;
    }
    crate::hal::probe();
    crate::pgtable::probe();
    crate::iommu::probe();
    crate::smmuv3::probe();
    crate::vtd::probe();
    crate::virtio_iommu::probe();
    crate::firmware::probe();
    crate::pci::probe();
}

/// The kernel's services.
#[derive(Clone, Copy)]
pub(crate) struct Kernel;

// SAFETY: the program never runs.
unsafe impl Hal for Kernel {
    fn alloc_frames(&self, order: FrameOrder) -> Result<PhysAddr, OutOfMemory> {
        match black_box(order.bytes()) {
            0 => Err(OutOfMemory),
            base => Ok(PhysAddr::new(base)),
        }
    }

    unsafe fn free_frames(&self, base: PhysAddr, order: FrameOrder) {
        black_box((base, order));
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        black_box(NonNull::dangling().map_addr(|addr| addr | phys.get() as usize))
    }

    fn clean_cache(&self, start: NonNull<u8>, len: usize) {
        black_box((start, len));
    }

    fn now_ns(&self) -> u64 {
        black_box(0)
    }

    fn mask_interrupts(&self) -> InterruptMask {
        InterruptMask(black_box(0))
    }

    fn restore_interrupts(&self, mask: InterruptMask) {
        let _ = black_box(mask);
    }
}

struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

// SAFETY: the program never runs.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        black_box(core::ptr::without_provenance_mut(layout.size()))
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        black_box((pointer, layout));
    }
}

/// Device registers.
pub(crate) fn registers() -> MmioRegion {
    // SAFETY: the program never runs.
    unsafe { MmioRegion::new(black_box(NonNull::dangling()), black_box(0)) }
}

/// The right to pass-through.
pub(crate) fn identity() -> IdentityAccess {
    // SAFETY: the program never runs.
    unsafe { IdentityAccess::new() }
}

/// Foreign tables.
pub(crate) fn shared(root: TableRoot) -> SharedTable {
    // SAFETY: the program never runs.
    unsafe { SharedTable::new(black_box(root)) }
}

/// Formats a value, as a kernel's log does.
pub(crate) fn show(value: &dyn fmt::Display) {
    let _ = black_box(fmt::write(&mut Sink, format_args!("{value}")));
}

/// Formats a value for a developer.
pub(crate) fn debug(value: &dyn fmt::Debug) {
    let _ = black_box(fmt::write(&mut Sink, format_args!("{value:?} {value:#?}")));
}

/// Where text goes.
pub(crate) struct Sink;

impl fmt::Write for Sink {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if black_box(text).is_empty() { Err(fmt::Error) } else { Ok(()) }
    }
}

struct Log;

impl log::Log for Log {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        black_box(metadata.level()) <= log::Level::Info
    }

    fn log(&self, record: &log::Record<'_>) {
        let _ = black_box(fmt::write(&mut Sink, *record.args()));
    }

    fn flush(&self) {}
}
