//! Bounded waits on hardware.

use crate::{Hal, Mmio};
use thiserror::Error;

/// The hardware did not do what it was asked in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{register} & {mask:#x} is still {last:#x}, not {expected:#x}")]
pub struct Timeout {
    /// The register, or the word in memory, as its manual calls it.
    pub register: &'static str,
    /// The bits that were waited for.
    pub mask: u64,
    /// The value they should have taken.
    pub expected: u64,
    /// The value of the register when time ran out.
    pub last: u64,
}

/// A register and its name, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    /// The name in the architecture's manual.
    pub name: &'static str,
    /// The byte offset in the register block.
    pub offset: usize,
}

/// Waits until `read() & mask == expected`, for `timeout_ns` at most, and returns the value read.
pub fn until<H: Hal>(
    hal: &H,
    register: &'static str,
    mask: u64,
    expected: u64,
    timeout_ns: u64,
    mut read: impl FnMut() -> u64,
) -> Result<u64, Timeout> {
    let start = hal.now_ns();
    loop {
        let last = read();
        if last & mask == expected {
            return Ok(last);
        }
        if hal.now_ns().saturating_sub(start) > timeout_ns {
            // The CPU may have been away between the read and the clock; what counts is the hardware.
            let last = read();
            return if last & mask == expected {
                Ok(last)
            } else {
                Err(Timeout { register, mask, expected, last })
            };
        }
        hal.relax();
    }
}

/// Waits on a 32-bit register, as [`until`] does.
pub fn register32<H: Hal, M: Mmio>(
    hal: &H,
    mmio: &M,
    register: Register,
    mask: u32,
    expected: u32,
    timeout_ns: u64,
) -> Result<u32, Timeout> {
    until(hal, register.name, u64::from(mask), u64::from(expected), timeout_ns, || {
        u64::from(mmio.read32(register.offset))
    })
    .map(|value| value as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::HostHal;

    #[test]
    fn a_wait_that_ends_in_time_returns_the_value_and_one_that_does_not_names_the_register() {
        let hal = HostHal::new();
        let mut reads = 0;
        // Longer than any run of the test.
        let value = until(&hal, "GSTS", 0x1, 0x1, u64::MAX, || {
            reads += 1;
            if reads < 5 { 0x10 } else { 0x11 }
        });
        assert_eq!((value, reads), (Ok(0x11), 5));
        let late = until(&hal, "GSTS", 0x3, 0x1, 1000, || 0x2);
        assert_eq!(late, Err(Timeout { register: "GSTS", mask: 3, expected: 1, last: 2 }));
    }
}
