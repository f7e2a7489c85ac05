//! Bounded waits on hardware.

use crate::{Hal, Mmio};
use core::fmt;
use thiserror::Error;

/// The hardware did not do what it was asked in time.
///
/// A result with it in it is handed up on the way of every unmap, so it is small: of what has 64 bits it shows a half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{register}{shown} & {mask:#x} is still {last:#x}, not {expected:#x}")]
pub struct Timeout {
    /// The register, or the word in memory, as its manual calls it.
    pub register: &'static str,
    /// The bits that were waited for.
    pub mask: u32,
    /// The value they should have taken.
    pub expected: u32,
    /// The value of the register when time ran out.
    pub last: u32,
    /// How much of the register these are.
    pub shown: Shown,
}

/// How much of a register an error shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// All of it.
    Whole,
    /// Bits 31:0.
    LowHalf,
    /// Bits 63:32, where the wait was for none of the others.
    HighHalf,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Whole => "",
            Self::LowHalf => "[31:0]",
            Self::HighHalf => "[63:32]",
        })
    }
}

impl Timeout {
    /// The register is still `last`.
    pub const fn new(register: &'static str, mask: u64, expected: u64, last: u64) -> Self {
        let (shown, shift) = match (mask >> 32, mask as u32) {
            (0, _) => (Shown::Whole, 0),
            (_, 0) => (Shown::HighHalf, 32),
            (_, _) => (Shown::LowHalf, 0),
        };
        let [mask, expected, last] = [mask >> shift, expected >> shift, last >> shift];
        Self { register, mask: mask as u32, expected: expected as u32, last: last as u32, shown }
    }
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
                Err(Timeout::new(register, mask, expected, last))
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
        assert_eq!(late, Err(Timeout::new("GSTS", 3, 1, 2)));
        let wide = until(&hal, "IQH", u64::MAX, 0x40, 0, || 0x30).unwrap_err();
        assert_eq!(wide.to_string(), "IQH[31:0] & 0xffffffff is still 0x30, not 0x40");
        let high = until(&hal, "IOTLB_REG", 1 << 63, 0, 0, || 1 << 63 | 5).unwrap_err();
        assert_eq!(high.to_string(), "IOTLB_REG[63:32] & 0x80000000 is still 0x80000000, not 0x0");
    }
}
