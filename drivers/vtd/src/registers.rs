//! Register access, and the global command register.

use crate::spec::registers::{GCMD, GSTS, Global};
use portcullis_hal::wait::{self, Register, Timeout};
use portcullis_hal::{Hal, Mmio};
use spin::Mutex;

/// A unit's registers.
pub(crate) struct Registers<H: Hal, M: Mmio> {
    hal: H,
    mmio: M,
    timeout_ns: u64,
    /// Keeps the read of GSTS_REG and the write of GCMD_REG together.
    command: Mutex<()>,
}

impl<H: Hal, M: Mmio> Registers<H, M> {
    pub(crate) fn new(hal: H, mmio: M, timeout_ns: u64) -> Self {
        Self { hal, mmio, timeout_ns, command: Mutex::new(()) }
    }

    pub(crate) fn hal(&self) -> &H {
        &self.hal
    }

    pub(crate) fn timeout_ns(&self) -> u64 {
        self.timeout_ns
    }

    pub(crate) fn read32(&self, register: Register) -> u32 {
        self.mmio.read32(register.offset)
    }

    pub(crate) fn write32(&self, register: Register, value: u32) {
        self.mmio.write32(register.offset, value);
    }

    pub(crate) fn read64(&self, register: Register) -> u64 {
        self.mmio.read64(register.offset)
    }

    pub(crate) fn write64(&self, register: Register, value: u64) {
        self.mmio.write64(register.offset, value);
    }

    /// Waits until the bits of `mask` in a 32-bit register read `expected`.
    pub(crate) fn wait32(&self, register: Register, mask: u32, expected: u32) -> Result<u32, Timeout> {
        wait::register32(&self.hal, &self.mmio, register, mask, expected, self.timeout_ns)
    }

    /// Turns a level on and waits until it is.
    pub(crate) fn turn_on(&self, level: Global) -> Result<(), Timeout> {
        self.command(|levels| levels | level.into_bits(), level, level)
    }

    /// Turns a level off and waits until it is.
    pub(crate) fn turn_off(&self, level: Global) -> Result<(), Timeout> {
        self.command(|levels| levels & !level.into_bits(), level, Global::new())
    }

    /// Makes the unit take the address in RTADDR_REG.
    pub(crate) fn set_root_pointer(&self) -> Result<(), Timeout> {
        let srtp = Global::new().with_srtp(true);
        self.command(|levels| levels | srtp.into_bits(), srtp, srtp)
    }

    /// Flushes the chipset's write buffer, where CAP_REG.RWBF asks for it.
    pub(crate) fn flush_write_buffer(&self) -> Result<(), Timeout> {
        let wbf = Global::new().with_wbf(true);
        self.command(|levels| levels | wbf.into_bits(), wbf, Global::new())
    }

    /// Writes GCMD_REG: the levels that are on now with one change, and never an old one-shot bit; then waits for
    /// GSTS_REG (11.4.4.1).
    fn command(
        &self,
        change: impl FnOnce(u32) -> u32,
        mask: Global,
        expected: Global,
    ) -> Result<(), Timeout> {
        let _command = self.command.lock();
        let levels = self.read32(GSTS) & Global::LEVELS;
        self.write32(GCMD, change(levels));
        self.wait32(GSTS, mask.into_bits(), expected.into_bits()).map(drop)
    }
}
