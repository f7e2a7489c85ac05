//! The CPU at hand: its index, its interrupt mask, its caches.

#![expect(unsafe_code, reason = "cache and per-CPU instructions")]

use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count};
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use portcullis_hal::InterruptMask;
use x86_64::instructions::interrupts;

/// `InterruptMask` of a CPU that took interrupts.
const WERE_ENABLED: u64 = 1;

/// This CPU's index: 0 is the boot CPU, the others have what [`smp::start`](super::smp::start) gave them.
pub fn index() -> usize {
    super::percpu::index()
}

/// Unmasks interrupts and sleeps until one was taken; returns with interrupts unmasked.
pub fn wait_for_interrupt() {
    interrupts::enable_and_hlt();
}

/// Masks interrupts and returns what [`restore_interrupts`] needs.
pub fn mask_interrupts() -> InterruptMask {
    let enabled = interrupts::are_enabled();
    interrupts::disable();
    InterruptMask(if enabled { WERE_ENABLED } else { 0 })
}

/// Goes back to the state before [`mask_interrupts`].
pub fn restore_interrupts(mask: InterruptMask) {
    if mask.0 == WERE_ENABLED {
        interrupts::enable();
    }
}

/// Unmasks interrupts.
pub fn enable_interrupts() {
    interrupts::enable();
}

/// The instruction that writes a cache line back, in order of preference.
#[derive(Clone, Copy)]
#[repr(u8)]
enum WriteBack {
    Clflush,
    Clflushopt,
    Clwb,
}

static WRITE_BACK: AtomicU8 = AtomicU8::new(WriteBack::Clflush as u8);
static LINE_SIZE: AtomicUsize = AtomicUsize::new(MIN_LINE_SIZE);
/// What CLFLUSH acts on at least; correct, if slow, until `init` has asked.
const MIN_LINE_SIZE: usize = 16;

/// Looks up how caches are written back. Once, on the boot CPU.
pub(super) fn init() {
    let line = (__cpuid(1).ebx >> 8 & 0xff) as usize * 8;
    LINE_SIZE.store(line.next_power_of_two().max(MIN_LINE_SIZE), Ordering::Relaxed);
    if __cpuid(0).eax >= 7 {
        let features = __cpuid_count(7, 0).ebx;
        let best = if features & 1 << 24 != 0 {
            WriteBack::Clwb
        } else if features & 1 << 23 != 0 {
            WriteBack::Clflushopt
        } else {
            WriteBack::Clflush
        };
        WRITE_BACK.store(best as u8, Ordering::Relaxed);
    }
}

/// Writes the cache lines of `len` bytes from `start` back to memory; returns when that is done.
///
/// Unmapped addresses in the range fault.
pub fn clean_cache(start: NonNull<u8>, len: usize) {
    const CLWB: u8 = WriteBack::Clwb as u8;
    const CLFLUSHOPT: u8 = WriteBack::Clflushopt as u8;
    let line_size = LINE_SIZE.load(Ordering::Relaxed);
    let first = start.addr().get() & !(line_size - 1);
    let end = start.addr().get().saturating_add(len);
    // SAFETY: writing lines back changes no memory.
    match WRITE_BACK.load(Ordering::Relaxed) {
        CLWB => each_line(first, end, line_size, |line| unsafe {
            asm!("clwb [{}]", in(reg) line, options(nostack, preserves_flags));
        }),
        CLFLUSHOPT => each_line(first, end, line_size, |line| unsafe {
            asm!("clflushopt [{}]", in(reg) line, options(nostack, preserves_flags));
        }),
        _ => each_line(first, end, line_size, |line| unsafe {
            asm!("clflush [{}]", in(reg) line, options(nostack, preserves_flags));
        }),
    }
    // SAFETY: a barrier; it waits for the write-backs (SDM vol. 2, CLWB).
    unsafe { asm!("mfence", options(nostack, preserves_flags)) };
}

fn each_line(first: usize, end: usize, size: usize, mut write_back: impl FnMut(usize)) {
    let mut line = first;
    while line < end {
        write_back(line);
        line = line.saturating_add(size);
    }
}

/// The width of physical addresses in bits (CPUID leaf 0x8000_0008).
pub(super) fn physical_bits() -> u32 {
    if __cpuid(0x8000_0000).eax >= 0x8000_0008 {
        __cpuid(0x8000_0008).eax & 0xff
    } else {
        36
    }
}

/// Whether a page-directory-pointer entry may map 1 GiB.
pub(super) fn has_gigabyte_pages() -> bool {
    __cpuid(0x8000_0001).edx & 1 << 26 != 0
}

/// Writes one line that says what the CPU can do, as far as it matters here.
pub fn describe(out: &mut dyn fmt::Write) -> fmt::Result {
    let largest = if has_gigabyte_pages() { "1 GiB" } else { "2 MiB" };
    write!(
        out,
        "long mode, {}-bit physical addresses, pages up to {largest}, ",
        physical_bits()
    )?;
    let instruction = match WRITE_BACK.load(Ordering::Relaxed) {
        x if x == WriteBack::Clwb as u8 => "CLWB",
        x if x == WriteBack::Clflushopt as u8 => "CLFLUSHOPT",
        _ => "CLFLUSH",
    };
    write!(
        out,
        "{instruction} by {} bytes",
        LINE_SIZE.load(Ordering::Relaxed)
    )
}
