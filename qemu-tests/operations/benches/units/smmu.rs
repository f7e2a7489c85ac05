//! An SMMUv3 that has carried out every command when the write of the doorbell returns.

use super::Played;
use super::memory::Memory;
use portcullis_hal::{Mmio, Pasid};
use portcullis_smmuv3::{Options, Setup};
use std::cell::Cell;
use std::error::Error;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const IDR0: usize = 0x00;
const IDR1: usize = 0x04;
const IDR3: usize = 0x0c;
const IDR5: usize = 0x14;
const CR0: usize = 0x20;
const GBPA: usize = 0x44;
const IRQ_CTRL: usize = 0x50;
const CMDQ_PROD: usize = 0x98;
const CMDQ_CONS: usize = 0x9c;
const PRIQ_BASE: usize = 0xc0;
const PRIQ_PROD: usize = 0x1_00c8;
/// Two pages of 64 KiB.
const SIZE: usize = 0x2_0000;

struct Smmu {
    memory: Memory,
    registers: Vec<AtomicU32>,
}

pub(crate) fn unit(memory: Memory) -> Result<Played, Box<dyn Error>> {
    let registers = (0..SIZE / 4).map(|_| AtomicU32::new(0)).collect();
    let smmu: &'static Smmu = Box::leak(Box::new(Smmu { memory, registers }));
    // As in QEMU's unit: both stages, ranges, no messages; but with ATS, page requests in a queue of 128, and PASIDs of
    // 16 bits in tables of two levels.
    for (offset, value) in [(IDR0, 0x0d4d_141b), (IDR1, 0x0273_3c10), (IDR3, 0x1414), (IDR5, 0x74)] {
        smmu.write32(offset, value);
    }
    let driver = Setup::new(memory, smmu, Options::default())?.enable()?;
    let ask = |endpoint, pasid| smmu.ask(endpoint, pasid);
    let tries = || LOOKS.load(Ordering::Relaxed);
    Ok(Played { unit: driver.unit()?, ask: Box::new(ask), tries: Box::new(tries) })
}

impl Smmu {
    /// Puts a page request into the queue (chapter 8).
    fn ask(&self, endpoint: u32, pasid: Pasid) {
        let base = self.read64(PRIQ_BASE);
        let (address, entries) = (base & 0x000f_ffff_ffff_ffe0, 1 << (base & 0x1f));
        let index = self.read32(PRIQ_PROD);
        let record = address + u64::from(index % entries) * 16;
        // With a SubstreamID, the last of its group, to read and to write.
        let who = u64::from(endpoint) | u64::from(pasid.get()) << 32 | 0xf << 60;
        self.memory.word(record).store(who, Ordering::Relaxed);
        self.memory.word(record + 8).store(0x10_0000_0000, Ordering::Relaxed);
        self.write32(PRIQ_PROD, (index + 1) % (2 * entries));
    }
}

/// Looks at CMDQ_CONS by threads that have counted theirs.
static LOOKS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Those of this thread that it has not counted yet.
    static OWN_LOOKS: Cell<u64> = const { Cell::new(0) };
}

/// Counts the looks of this thread at CMDQ_CONS.
pub(crate) fn count_looks() {
    LOOKS.fetch_add(OWN_LOOKS.take(), Ordering::Relaxed);
}

#[expect(unsafe_code, reason = "registers of hardware that is not there")]
// SAFETY: nothing acts on memory.
unsafe impl Mmio for &Smmu {
    fn read32(&self, offset: usize) -> u32 {
        if offset == CMDQ_CONS {
            OWN_LOOKS.set(OWN_LOOKS.get() + 1);
        }
        self.registers.get(offset / 4).map_or(0, |register| register.load(Ordering::Acquire))
    }

    fn write32(&self, offset: usize, value: u32) {
        let set = |offset: usize, value| {
            if let Some(register) = self.registers.get(offset / 4) {
                register.store(value, Ordering::Release);
            }
        };
        match offset {
            CMDQ_PROD => set(CMDQ_CONS, value),
            // Acknowledged in the register behind.
            CR0 | IRQ_CTRL => set(offset + 4, value),
            // The update is over at once.
            GBPA => return set(offset, value & 0x7fff_ffff),
            _ => {}
        }
        set(offset, value);
    }

    fn read64(&self, offset: usize) -> u64 {
        u64::from(self.read32(offset)) | u64::from(self.read32(offset + 4)) << 32
    }

    fn write64(&self, offset: usize, value: u64) {
        self.write32(offset, value as u32);
        self.write32(offset + 4, (value >> 32) as u32);
    }
}
