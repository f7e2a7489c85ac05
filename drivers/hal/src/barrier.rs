//! Memory barriers, named by what they are for.
//!
//! All order normal cacheable memory, as seen by an IOMMU that shares the outer-shareable domain. A walker that
//! does not snoop needs [`Hal::clean_cache`](crate::Hal::clean_cache) as well.

#![cfg_attr(
    any(target_arch = "aarch64", all(target_arch = "x86_64", not(miri))),
    expect(unsafe_code, reason = "barrier instructions")
)]

use crate::count::{self, Event};
use core::ptr::NonNull;

#[cfg(target_arch = "aarch64")]
macro_rules! barrier {
    ($instruction:literal) => {
        count::add(Event::Barrier, 1);
        // SAFETY: a barrier has no operands and no effect but order.
        unsafe { core::arch::asm!($instruction, options(nostack, preserves_flags)) }
    };
}

/// Makes earlier stores to a structure visible before a later store that publishes it (the valid bit, the
/// pointer to it, an index in memory).
#[inline]
pub fn publish_to_device() {
    #[cfg(target_arch = "aarch64")]
    barrier!("dmb oshst");
    // x86 stores to write-back memory are seen in program order; elsewhere (host tests) threads play the device.
    #[cfg(not(target_arch = "aarch64"))]
    core::sync::atomic::fence(core::sync::atomic::Ordering::Release);
}

/// Makes earlier stores (queue slots, table entries) visible before the register write that tells the device to
/// look.
#[inline]
pub fn before_doorbell() {
    #[cfg(target_arch = "aarch64")]
    barrier!("dsb oshst");
    #[cfg(not(target_arch = "aarch64"))]
    core::sync::atomic::fence(core::sync::atomic::Ordering::Release);
}

/// Keeps later accesses from being done before the device's completion, which an earlier load observed.
#[inline]
pub fn after_completion() {
    #[cfg(target_arch = "aarch64")]
    barrier!("dmb osh");
    #[cfg(not(target_arch = "aarch64"))]
    core::sync::atomic::fence(core::sync::atomic::Ordering::Acquire);
}

/// Orders a store before a later load of something that another CPU changes in the opposite order: a page-table
/// store against the read of who is attached, and the reverse.
#[inline]
pub fn store_then_load() {
    count::add(Event::Barrier, 1);
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
}

/// A hint: the CPU is about to write here, so its cache had better fetch the line, and take it from the others. Nothing is
/// read or written, wherever `place` is.
#[inline]
pub fn fetch_to_write(place: NonNull<u64>) {
    let place = place.as_ptr();
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint, which never faults (PREFETCHW; older CPUs take it for a no-op).
    unsafe {
        core::arch::asm!("prefetchw [{}]", in(reg) place, options(nostack, preserves_flags, readonly));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint, which never faults (PRFM).
    unsafe {
        core::arch::asm!("prfm pstl1keep, [{}]", in(reg) place, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "aarch64", all(target_arch = "x86_64", not(miri)))))]
    let _no_hint = place;
}
