//! An SMMUv3 that has carried out every command when the write of the doorbell returns.

use crate::memory::Memory;
use portcullis_hal::{Arc, Mmio};
use portcullis_iommu::Unit;
use portcullis_smmuv3::{Options, Setup};
use std::error::Error;
use std::sync::atomic::{AtomicU32, Ordering};

const IDR0: usize = 0x00;
const IDR1: usize = 0x04;
const IDR3: usize = 0x0c;
const IDR5: usize = 0x14;
const CR0: usize = 0x20;
const GBPA: usize = 0x44;
const IRQ_CTRL: usize = 0x50;
const CMDQ_PROD: usize = 0x98;
const CMDQ_CONS: usize = 0x9c;
/// Two pages of 64 KiB.
const SIZE: usize = 0x2_0000;

struct Smmu(Vec<AtomicU32>);

pub(crate) fn unit(memory: Memory) -> Result<Arc<dyn Unit>, Box<dyn Error>> {
    let smmu = Smmu((0..SIZE / 4).map(|_| AtomicU32::new(0)).collect());
    // As in QEMU's unit: both stages, ranges, no messages; but with PASIDs of 16 bits in tables of two levels.
    for (offset, value) in [(IDR0, 0x0d4c_101b), (IDR1, 0x0273_0410), (IDR3, 0x1414), (IDR5, 0x74)] {
        smmu.write32(offset, value);
    }
    Ok(Setup::new(memory, smmu, Options::default())?.enable()?.unit()?)
}

#[expect(unsafe_code, reason = "registers of hardware that is not there")]
// SAFETY: nothing acts on memory.
unsafe impl Mmio for Smmu {
    fn read32(&self, offset: usize) -> u32 {
        self.0.get(offset / 4).map_or(0, |register| register.load(Ordering::Acquire))
    }

    fn write32(&self, offset: usize, value: u32) {
        let set = |offset: usize, value| {
            if let Some(register) = self.0.get(offset / 4) {
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
