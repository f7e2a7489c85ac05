//! QEMU's `iommu-testdev` (1b36:0005, from QEMU 11): writes a pattern through the IOMMU at once and reads it back from
//! the physical address.

use crate::dma;
use core::fmt;
use portcullis_hal::{Iova, Mmio, MmioRegion, PhysAddr};

/// Vendor and device id; `pci-testdev` has the same.
pub(crate) const ID: (u16, u16) = (0x1b36, 0x0005);

const TRIGGER: usize = 0x00;
const IOVA_LOW: usize = 0x04;
const IOVA_HIGH: usize = 0x08;
const LENGTH: usize = 0x0c;
const RESULT: usize = 0x10;
const DOORBELL: usize = 0x14;
const ATTRIBUTES: usize = 0x18;
const TARGET_LOW: usize = 0x1c;
const TARGET_HIGH: usize = 0x20;

/// The space of the access is stated and is the non-secure one.
const NON_SECURE: u32 = 0xa;

/// What the device writes, repeated.
pub(crate) const PATTERN: u32 = 0x1234_5678;

/// How an attempt ended, by the device's own account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The pattern was written and found at the physical address.
    Arrived,
    /// The IOMMU refused the write.
    Refused,
    /// The write went through, but the pattern is not at the physical address.
    Elsewhere,
    /// Another result code.
    Other(u32),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arrived => f.write_str("arrived"),
            Self::Refused => f.write_str("refused"),
            Self::Elsewhere => f.write_str("not at the expected physical address"),
            Self::Other(code) => write!(f, "result {code:#x}"),
        }
    }
}

/// One device.
pub(crate) struct TestDevice {
    registers: MmioRegion,
}

impl TestDevice {
    /// The device with these registers (BAR 0), unless it is `pci-testdev`, which has no address register.
    pub(crate) fn new(registers: MmioRegion) -> Option<Self> {
        registers.write32(IOVA_LOW, 0xa5a5_a000);
        let found = registers.read32(IOVA_LOW) == 0xa5a5_a000;
        found.then_some(Self { registers })
    }

    /// Writes `len` bytes of pattern at `iova` and looks for them at `expected`.
    pub(crate) fn write(&self, iova: Iova, len: u32, expected: PhysAddr) -> Outcome {
        let registers = &self.registers;
        registers.write32(IOVA_LOW, iova.get() as u32);
        registers.write32(IOVA_HIGH, (iova.get() >> 32) as u32);
        registers.write32(LENGTH, len);
        registers.write32(TARGET_LOW, expected.get() as u32);
        registers.write32(TARGET_HIGH, (expected.get() >> 32) as u32);
        registers.write32(ATTRIBUTES, NON_SECURE);
        registers.write32(DOORBELL, 1);
        registers.read32(TRIGGER);
        let outcome = match registers.read32(RESULT) {
            0 => Outcome::Arrived,
            0xdead_0002 => Outcome::Refused,
            0xdead_0004 => Outcome::Elsewhere,
            code => Outcome::Other(code),
        };
        if outcome == Outcome::Arrived {
            dma::count_bytes(u64::from(len));
        }
        outcome
    }
}
