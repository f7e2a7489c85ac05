//! Register access with bounded waits.

use portcullis_hal::wait::{self, Register, Timeout};
use portcullis_hal::{Hal, Mmio};

/// A unit's registers.
pub(crate) struct RegisterBlock<H: Hal, M: Mmio> {
    pub(crate) hal: H,
    mmio: M,
    /// How long the unit may take to answer.
    pub(crate) timeout_ns: u64,
}

impl<H: Hal, M: Mmio> RegisterBlock<H, M> {
    pub(crate) const fn new(hal: H, mmio: M, timeout_ns: u64) -> Self {
        Self { hal, mmio, timeout_ns }
    }

    #[inline]
    pub(crate) fn read(&self, register: Register) -> u32 {
        self.mmio.read32(register.offset)
    }

    pub(crate) fn read64(&self, register: Register) -> u64 {
        self.mmio.read64(register.offset)
    }

    #[inline]
    pub(crate) fn write(&self, register: Register, value: u32) {
        self.mmio.write32(register.offset, value);
    }

    pub(crate) fn write64(&self, register: Register, value: u64) {
        self.mmio.write64(register.offset, value);
    }

    /// Waits until `register & mask == expected`.
    pub(crate) fn wait(&self, register: Register, mask: u32, expected: u32) -> Result<(), Timeout> {
        wait::register32(&self.hal, &self.mmio, register, mask, expected, self.timeout_ns).map(drop)
    }

    /// Writes a control register and waits until the acknowledge register shows the value.
    pub(crate) fn write_acknowledged(
        &self,
        register: Register,
        acknowledge: Register,
        value: u32,
    ) -> Result<(), Timeout> {
        self.write(register, value);
        self.wait(acknowledge, u32::MAX, value)
    }
}
