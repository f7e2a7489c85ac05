//! The CPU at hand: its index, its interrupt mask, its caches.

#![expect(unsafe_code, reason = "cache and per-CPU instructions")]

use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count};
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};
use portcullis_hal::InterruptMask;
use spin::Once;
use x86_64::instructions::interrupts;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};
use x86_64::registers::rflags::{self, RFlags};

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
    let flags = rflags::read_raw();
    interrupts::disable();
    InterruptMask(flags & RFlags::INTERRUPT_FLAG.bits())
}

/// Goes back to the state before [`mask_interrupts`].
pub fn restore_interrupts(mask: InterruptMask) {
    if mask.0 != 0 {
        interrupts::enable();
    }
}

/// Fills `len` bytes from `start` with zeros.
///
/// # Safety
///
/// The bytes are mapped, writable, and nobody else's.
pub unsafe fn zero(start: NonNull<u8>, len: usize) {
    // SAFETY: the caller vouches for the bytes.
    unsafe { start.write_bytes(0, len) };
}

/// Makes code just written executable: nothing to do, since instruction caches are coherent here.
pub fn publish_code(_start: NonNull<u8>, _len: usize) {}

/// Unmasks interrupts.
pub fn enable_interrupts() {
    interrupts::enable();
}

/// The instruction that writes a cache line back.
#[derive(Clone, Copy, Debug)]
enum WriteBack {
    Clflush,
    Clflushopt,
    Clwb,
}

/// How caches are written back.
#[derive(Clone, Copy, Debug)]
struct Caches {
    instruction: WriteBack,
    /// The bytes on which the instruction acts, a power of two.
    line_size: usize,
}

static CACHES: Once<Caches> = Once::new();

/// No CPU has smaller lines, in bytes.
const SMALLEST_LINE: usize = 16;

/// The line size of a CPU that has CLWB, once it was looked up; 0 of others.
static CLWB_LINE: AtomicUsize = AtomicUsize::new(0);

fn caches() -> &'static Caches {
    CACHES.call_once(|| {
        let features = if __cpuid(0).eax >= 7 { __cpuid_count(7, 0).ebx } else { 0 };
        // CPUID.1 states the line size in units of 8 bytes.
        let line_size = (__cpuid(1).ebx >> 8 & 0xff) as usize * 8;
        let line_size =
            if line_size.is_power_of_two() { line_size.max(SMALLEST_LINE) } else { SMALLEST_LINE };
        let instruction = match features {
            features if features & 1 << 24 != 0 => WriteBack::Clwb,
            features if features & 1 << 23 != 0 => WriteBack::Clflushopt,
            _ => WriteBack::Clflush,
        };
        if matches!(instruction, WriteBack::Clwb) {
            CLWB_LINE.store(line_size, Ordering::Relaxed);
        }
        Caches { instruction, line_size }
    })
}

/// Writes the cache lines of `len` bytes from `start` back to memory; returns when that is done.
///
/// The bytes are mapped: other addresses fault.
#[inline(always)]
pub fn clean_cache(start: NonNull<u8>, len: usize) {
    let first = start.addr().get();
    // The bits in which the addresses of the first and the last byte differ.
    let across = first ^ first.wrapping_add(len).wrapping_sub(1);
    let clwb_line = CLWB_LINE.load(Ordering::Relaxed);
    if len != 0 && across < clwb_line {
        // An entry of a table, on a CPU of today.
        // SAFETY: writing a line back changes no memory, and the CPU has the instruction; the barrier waits for it.
        unsafe { asm!("clwb [{}]", "mfence", in(reg) first, options(nostack, preserves_flags)) };
    } else if len != 0 && across < SMALLEST_LINE {
        // Any CPU has this one. The compiler sees that an entry of a table is never more than a line, and calls nothing.
        // SAFETY: as above.
        unsafe { asm!("clflush [{}]", "mfence", in(reg) first, options(nostack, preserves_flags)) };
    } else {
        clean_lines(start, len);
    }
}

/// [`clean_cache`] of any number of lines.
fn clean_lines(start: NonNull<u8>, len: usize) {
    let &Caches { instruction, line_size } = caches();
    let mut line = start.addr().get() & !(line_size - 1);
    let end = start.addr().get().saturating_add(len);
    macro_rules! each_line {
        ($instruction:literal) => {
            while line < end {
                // SAFETY: writing a line back changes no memory.
                unsafe { asm!(concat!($instruction, " [{}]"), in(reg) line, options(nostack, preserves_flags)) };
                line = line.saturating_add(line_size);
            }
        };
    }
    match instruction {
        WriteBack::Clwb => each_line!("clwb"),
        WriteBack::Clflushopt => each_line!("clflushopt"),
        WriteBack::Clflush => each_line!("clflush"),
    }
    // SAFETY: a barrier, which waits for the write-backs (SDM vol. 2, CLWB).
    unsafe { asm!("mfence", options(nostack, preserves_flags)) };
}

/// Keeps the kernel from user code on this CPU: nothing of user memory is executed or reached by accident, and there is
/// no floating-point state that one process could leave to another.
pub(super) fn guard_against_user_code() {
    let leaf = if __cpuid(0).eax >= 7 { Some(__cpuid_count(7, 0)) } else { None };
    let (ebx, ecx) = leaf.map_or((0, 0), |leaf| (leaf.ebx, leaf.ecx));
    let has = |register: u32, bit: u32| register >> bit & 1 != 0;
    // SAFETY: the kernel reaches user memory through the direct map only, which supervisor pages make, and the target
    // has no floating-point instructions.
    unsafe {
        Cr4::update(|cr4| {
            cr4.set(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION, has(ebx, 7));
            cr4.set(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION, has(ebx, 20));
            cr4.set(Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION, has(ecx, 2));
        });
        Cr0::update(|cr0| cr0.insert(Cr0Flags::EMULATE_COPROCESSOR));
    }
}

/// The width of physical addresses in bits (CPUID leaf 0x8000_0008).
pub(super) fn physical_bits() -> u32 {
    if __cpuid(0x8000_0000).eax >= 0x8000_0008 { __cpuid(0x8000_0008).eax & 0xff } else { 36 }
}

/// Whether a page-directory-pointer entry may map 1 GiB.
pub(super) fn has_gigabyte_pages() -> bool {
    __cpuid(0x8000_0001).edx & 1 << 26 != 0
}

/// Writes one line that says what the CPU can do, as far as it matters here.
pub fn describe(out: &mut dyn fmt::Write) -> fmt::Result {
    let largest = if has_gigabyte_pages() { "1 GiB" } else { "2 MiB" };
    write!(out, "long mode, {}-bit physical addresses, pages up to {largest}, ", physical_bits())?;
    let Caches { instruction, line_size } = caches();
    let instruction = match instruction {
        WriteBack::Clwb => "CLWB",
        WriteBack::Clflushopt => "CLFLUSHOPT",
        WriteBack::Clflush => "CLFLUSH",
    };
    write!(out, "{instruction} by {line_size} bytes")
}
