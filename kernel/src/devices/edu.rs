//! QEMU's educational device (1234:11e8): a DMA engine with a 4 KiB buffer of its own and an MSI.

use core::sync::atomic::{AtomicU64, Ordering};
use portcullis_hal::wait::{self, Timeout};
use portcullis_hal::{Hal, Iova, Mmio, MmioRegion};

use crate::memory::KernelHal;

/// Vendor and device id.
pub(crate) const ID: (u16, u16) = (0x1234, 0x11e8);

const IDENTIFICATION: usize = 0x00;
const INTERRUPT_STATUS: usize = 0x24;
const INTERRUPT_ACKNOWLEDGE: usize = 0x64;
const DMA_SOURCE: usize = 0x80;
const DMA_DESTINATION: usize = 0x88;
const DMA_COUNT: usize = 0x90;
const DMA_COMMAND: usize = 0x98;

/// Where the device's buffer lies in its own address space.
const BUFFER: u64 = 0x4_0000;
/// The size of the device's buffer, in bytes.
pub(crate) const BUFFER_SIZE: u64 = 4096;

const COMMAND_RUN: u64 = 1;
const COMMAND_TO_MEMORY: u64 = 2;
const COMMAND_INTERRUPT: u64 = 4;

/// The device works on a 100 ms timer.
const TIMEOUT_NS: u64 = 3_000_000_000;

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The device reads memory.
    FromMemory,
    /// The device writes memory.
    ToMemory,
}

/// How the end of a transfer is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completion {
    /// By reading the command register.
    Poll,
    /// By the device's interrupt, counted by its handler.
    Interrupt,
}

/// One device. Transfers are started by one thread at a time.
pub(crate) struct Edu {
    registers: MmioRegion,
    interrupts: AtomicU64,
}

impl Edu {
    /// The device with these registers (BAR 0).
    pub(crate) fn new(registers: MmioRegion) -> Option<Self> {
        (registers.read32(IDENTIFICATION) & 0xff == 0xed)
            .then(|| Self { registers, interrupts: AtomicU64::new(0) })
    }

    /// Moves `len` bytes (at most [`BUFFER_SIZE`]) between the device's buffer and `iova`. The device does not say
    /// whether memory could be reached.
    pub(crate) fn transfer(
        &self,
        direction: Direction,
        iova: Iova,
        len: u64,
        completion: Completion,
    ) -> Result<(), Timeout> {
        let before = self.interrupts();
        self.start(direction, iova, len, completion);
        match completion {
            Completion::Poll => self.finish()?,
            Completion::Interrupt => {
                wait::until(&KernelHal, "edu interrupts", u64::MAX, before + 1, TIMEOUT_NS, || {
                    self.interrupts()
                })?;
            }
        }
        Ok(())
    }

    /// Starts a transfer and returns at once.
    pub(crate) fn start(&self, direction: Direction, iova: Iova, len: u64, completion: Completion) {
        let (source, destination, way) = match direction {
            Direction::FromMemory => (iova.get(), BUFFER, 0),
            Direction::ToMemory => (BUFFER, iova.get(), COMMAND_TO_MEMORY),
        };
        let interrupt = if completion == Completion::Interrupt { COMMAND_INTERRUPT } else { 0 };
        self.registers.write64(DMA_SOURCE, source);
        self.registers.write64(DMA_DESTINATION, destination);
        self.registers.write64(DMA_COUNT, len.min(BUFFER_SIZE));
        portcullis_hal::barrier::before_doorbell();
        self.registers.write64(DMA_COMMAND, COMMAND_RUN | way | interrupt);
    }

    /// Waits until no transfer is under way.
    pub(crate) fn finish(&self) -> Result<(), Timeout> {
        let command = || self.registers.read64(DMA_COMMAND);
        wait::until(&KernelHal, "edu DMA command", COMMAND_RUN, 0, TIMEOUT_NS, command).map(drop)
    }

    /// Whether a transfer is under way.
    pub(crate) fn busy(&self) -> bool {
        self.registers.read64(DMA_COMMAND) & COMMAND_RUN != 0
    }

    /// For the interrupt handler: acknowledges and counts.
    pub(crate) fn handle_interrupt(&self) {
        let status = self.registers.read32(INTERRUPT_STATUS);
        if status != 0 {
            self.registers.write32(INTERRUPT_ACKNOWLEDGE, status);
            self.interrupts.fetch_add(1, Ordering::Release);
        }
    }

    /// Interrupts taken so far.
    pub(crate) fn interrupts(&self) -> u64 {
        self.interrupts.load(Ordering::Acquire)
    }
}

/// Sleeps for a while, in nanoseconds.
pub(crate) fn pause(ns: u64) {
    let start = KernelHal.now_ns();
    while KernelHal.now_ns().saturating_sub(start) < ns {
        KernelHal.relax();
    }
}
