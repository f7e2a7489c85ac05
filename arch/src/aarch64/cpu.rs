//! This CPU: its index, interrupt mask, caches and what it is called.

#![expect(unsafe_code, reason = "system registers and cache instructions")]

use super::paging;
use aarch64_cpu::asm::{self, barrier};
use aarch64_cpu::registers::{
    CurrentEL, DAIF, ID_AA64MMFR0_EL1, ID_AA64MMFR1_EL1, MIDR_EL1, MPIDR_EL1, Readable, TPIDR_EL2, Writeable,
};
use core::arch::asm;
use core::fmt;
use core::ptr::NonNull;
use portcullis_hal::InterruptMask;

/// Most CPUs that the kernel runs on.
pub const MAX_CPUS: usize = 16;

/// The fields of `MPIDR_EL1` that say which CPU it is.
const AFFINITY: u64 = 0xff_00ff_ffff;

/// This CPU's dense index; 0 is the boot CPU.
pub fn index() -> usize {
    TPIDR_EL2.get() as usize
}

/// Notes this CPU's index, in a register that EL2 has to itself.
pub(super) fn set_index(index: usize) {
    TPIDR_EL2.set(index as u64);
}

/// This CPU's affinity, as PSCI, the GIC and the device tree name it.
pub(super) fn affinity() -> u64 {
    MPIDR_EL1.get() & AFFINITY
}

/// Sleeps until an interrupt is pending, takes it, and returns with interrupts unmasked.
///
/// A caller that waits for a condition masks interrupts, checks, and calls this: an interrupt that comes after the
/// check ends the sleep although it is masked (Arm ARM, D1, "Wait for Interrupt").
pub fn wait_for_interrupt() {
    barrier::dsb(barrier::SY);
    asm::wfi();
    enable_interrupts();
    // A pending interrupt is taken here at the latest.
    barrier::isb(barrier::SY);
}

/// Masks IRQs on this CPU and returns the state to restore.
pub fn mask_interrupts() -> InterruptMask {
    let mask = InterruptMask(DAIF.get());
    // SAFETY: masking interrupts touches no memory; without `nomem`, later accesses stay after it.
    unsafe { asm!("msr daifset, #2", options(nostack, preserves_flags)) };
    mask
}

/// Ends the critical section that `mask` began.
pub fn restore_interrupts(mask: InterruptMask) {
    // SAFETY: the value came from the same register; without `nomem`, earlier accesses stay before it.
    unsafe { asm!("msr daif, {mask}", mask = in(reg) mask.0, options(nostack, preserves_flags)) };
}

/// Unmasks IRQs on this CPU.
pub fn enable_interrupts() {
    // SAFETY: handlers for all vectors are installed before any Rust code of the kernel runs.
    unsafe { asm!("msr daifclr, #2", options(nostack, preserves_flags)) };
}

/// Writes the cache lines of `len` bytes from `start` back to the point of coherency and waits for it.
pub fn clean_cache(start: NonNull<u8>, len: usize) {
    let ctr: usize;
    // SAFETY: reading the cache type register has no effect.
    unsafe { asm!("mrs {ctr}, ctr_el0", ctr = out(reg) ctr, options(nomem, nostack, preserves_flags)) };
    // CTR_EL0.DminLine: the base-2 logarithm of the line's size in words.
    let line = 4_usize << (ctr >> 16 & 0xf);
    let first = start.addr().get();
    let end = first.saturating_add(len);
    let mut at = first & !(line - 1);
    while at < end {
        // SAFETY: cleaning a line changes no data; the caller's pointer says that the address is mapped.
        unsafe { asm!("dc civac, {at}", at = in(reg) at, options(nostack, preserves_flags)) };
        at = at.saturating_add(line);
    }
    barrier::dsb(barrier::SY);
}

/// Fills `len` bytes from `start`, which are normal memory and the caller's alone, with zeros: by whole blocks where the CPU
/// has an instruction for that.
///
/// # Safety
///
/// The bytes are mapped, writable, and nobody else's.
pub unsafe fn zero(start: NonNull<u8>, len: usize) {
    let dczid: usize;
    // SAFETY: reading the register has no effect.
    unsafe { asm!("mrs {id}, dczid_el0", id = out(reg) dczid, options(nomem, nostack, preserves_flags)) };
    // DCZID_EL0.BS: the base-2 logarithm of the block's size in words; DZP: the instruction is not to be used.
    let block = 4_usize << (dczid & 0xf);
    let first = start.addr().get();
    if dczid & 1 << 4 != 0 || (first | len) & (block - 1) != 0 {
        // SAFETY: the caller vouches for the bytes.
        return unsafe { start.write_bytes(0, len) };
    }
    let end = first.saturating_add(len);
    let mut at = first;
    while at < end {
        // SAFETY: the block lies in the caller's bytes, as both of their ends are aligned to blocks.
        unsafe { asm!("dc zva, {at}", at = in(reg) at, options(nostack, preserves_flags)) };
        at = at.saturating_add(block);
    }
}

/// Makes code that was written through `start` executable on all CPUs.
pub fn publish_code(start: NonNull<u8>, len: usize) {
    // To the point of coherency, which is beyond where instruction fetches look.
    clean_cache(start, len);
    // SAFETY: instruction caches hold nothing that is not in memory.
    unsafe { asm!("ic ialluis", "dsb ish", "isb", options(nostack, preserves_flags)) };
}

/// Whether the CPU can keep the kernel from user pages (FEAT_PAN).
pub(super) fn has_pan() -> bool {
    // Bits 23:20 of the register.
    ID_AA64MMFR1_EL1.get() >> 20 & 0xf != 0
}

/// Sleeps forever.
pub(super) fn park() -> ! {
    let _ = mask_interrupts();
    loop {
        asm::wfi();
    }
}

/// One line about the CPU and how the kernel uses it.
pub fn describe(out: &mut dyn fmt::Write) -> fmt::Result {
    let el = CurrentEL.read(CurrentEL::EL);
    let implemented = paging::address_bits(ID_AA64MMFR0_EL1.read(ID_AA64MMFR0_EL1::PARange));
    write!(
        out,
        "EL{el} VHE, MIDR {:#x}, MPIDR {:#x}, physical addresses {implemented} bits, {} used, 4 KiB pages",
        MIDR_EL1.get(),
        affinity(),
        paging::output_bits(),
    )
}
