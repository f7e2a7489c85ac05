//! The generic timer's virtual counter, and bounded waits on it.

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{CNTFRQ_EL0, CNTVCT_EL0, Readable};
use portcullis_hal::wait::Timeout;

/// Nanoseconds since the counter started, in steps of the counter's period (Arm ARM, D12). Monotonic over all
/// CPUs. At EL2 in host mode the virtual counter has no offset.
pub fn now_ns() -> u64 {
    // Without it the counter may be read ahead of what the caller wants to time.
    barrier::isb(barrier::SY);
    to_ns(CNTVCT_EL0.get(), CNTFRQ_EL0.get())
}

const fn to_ns(ticks: u64, frequency: u64) -> u64 {
    if frequency == 0 {
        return 0;
    }
    (ticks as u128 * 1_000_000_000 / frequency as u128) as u64
}

const _: () = assert!(to_ns(62_500_000, 62_500_000) == 1_000_000_000);
const _: () = assert!(to_ns(u64::MAX, 1_000_000_000) == u64::MAX && to_ns(1, 0) == 0);

/// Waits until `read() & mask == expected`, for `timeout_ns` at most, and returns the value read.
///
/// The same as [`portcullis_hal::wait::until`], for code that has no `Hal`.
pub(super) fn wait_until(
    register: &'static str,
    mask: u64,
    expected: u64,
    timeout_ns: u64,
    mut read: impl FnMut() -> u64,
) -> Result<u64, Timeout> {
    let start = now_ns();
    loop {
        // The clock first: whatever time passes after it, the hardware gets one more look.
        let late = now_ns().saturating_sub(start) > timeout_ns;
        let last = read();
        if last & mask == expected {
            return Ok(last);
        }
        if late {
            return Err(Timeout::new(register, mask, expected, last));
        }
        core::hint::spin_loop();
    }
}
