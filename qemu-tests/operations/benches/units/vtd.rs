//! A VT-d unit that has carried out every descriptor when the write of the tail returns.

use super::Played;
use super::memory::Memory;
use portcullis_hal::{Mmio, Pasid};
use portcullis_iommu::Unit;
use portcullis_vtd::{Options, Setup};
use std::error::Error;
use std::sync::atomic::{AtomicU32, Ordering};

const VER: usize = 0x00;
const CAP: usize = 0x08;
const ECAP: usize = 0x10;
const GCMD: usize = 0x18;
const GSTS: usize = 0x1c;
const FSTS: usize = 0x34;
const IQH: usize = 0x80;
const IQT: usize = 0x88;
const IQA: usize = 0x90;
const PQT: usize = 0xc8;
const PQA: usize = 0xd0;
const PRS: usize = 0xdc;
/// The width of the host's addresses.
const HOST_BITS: u8 = 39;
/// GSTS_REG: the queue is on.
const QIE: u32 = 1 << 26;
/// The type of a descriptor that writes a status when those before it are done.
const WAIT: u64 = 5;

struct NullUnit {
    memory: Memory,
    registers: Vec<AtomicU32>,
}

/// QEMU 11.1: `scalable-mode=on,fsts=on,pasid-bits=20,svm=on,device-iotlb=on`.
pub(crate) fn first_stage(memory: Memory) -> Result<Played, Box<dyn Error>> {
    unit(memory, 0x0000_8d9a_20f0_0f4e)
}

/// The same but for the stage.
pub(crate) fn second_stage(memory: Memory) -> Result<Played, Box<dyn Error>> {
    unit(memory, 0x0000_4d9a_20f0_0f4e)
}

fn unit(memory: Memory, ecap: u64) -> Result<Played, Box<dyn Error>> {
    let registers = (0..0x400).map(|_| AtomicU32::new(0)).collect();
    let unit: &'static NullUnit = Box::leak(Box::new(NullUnit { memory, registers }));
    unit.write32(VER, 0x10);
    unit.write64(CAP, 0x81d2_008c_222f_0606);
    unit.write64(ECAP, ecap);
    let driver = Setup::new(memory, unit, Options::new(HOST_BITS))?.enable()?;
    let ask = |endpoint, pasid| unit.ask(endpoint, pasid);
    let played = driver.unit()?;
    let tries = move || driver.stats().syncs + driver.queue_retries();
    Ok(Played { unit: played, ask: Box::new(ask), tries: Box::new(tries) })
}

impl NullUnit {
    /// Carries out what lies between head and tail: only waits do something.
    fn complete(&self, tail: u64) {
        let address = self.read64(IQA);
        let bytes = 0x1000_u64 << (address & 7);
        let mut head = self.read64(IQH);
        while head != tail {
            let descriptor = (address & !0xfff) + head;
            let wait = self.memory.word(descriptor).load(Ordering::Acquire);
            if wait & 0xf == WAIT {
                let status = self.memory.word(descriptor + 8).load(Ordering::Relaxed);
                self.memory.word(status).store(wait >> 32, Ordering::Release);
            }
            head = (head + 32) % bytes;
        }
        self.set64(IQH, tail);
        self.set64(IQT, tail);
    }

    /// Puts a page request into the queue (7.4.1.1).
    fn ask(&self, endpoint: u32, pasid: Pasid) {
        let (address, tail) = (self.read64(PQA), self.read64(PQT));
        let record = (address & !0xfff) + tail;
        let who = 1 | 1 << 8 | u64::from(endpoint) << 16 | u64::from(pasid.get()) << 32;
        self.memory.word(record).store(who, Ordering::Relaxed);
        // The last of its group, to read and to write.
        self.memory.word(record + 8).store(0x10_0000_0007, Ordering::Relaxed);
        self.set64(PQT, (tail + 32) % (0x1000 << (address & 7)));
        self.set(PRS, 1);
    }

    fn set(&self, offset: usize, value: u32) {
        if let Some(register) = self.registers.get(offset / 4) {
            register.store(value, Ordering::Relaxed);
        }
    }

    fn set64(&self, offset: usize, value: u64) {
        self.set(offset, value as u32);
        self.set(offset + 4, (value >> 32) as u32);
    }
}

#[expect(unsafe_code, reason = "registers of hardware that is not there")]
// SAFETY: the unit writes only the status words that the driver gave it.
unsafe impl Mmio for &NullUnit {
    fn read32(&self, offset: usize) -> u32 {
        self.registers.get(offset / 4).map_or(0, |register| register.load(Ordering::Relaxed))
    }

    fn write32(&self, offset: usize, value: u32) {
        match offset {
            // There is never an error to clear.
            FSTS => {}
            PRS => self.set(PRS, self.read32(PRS) & !value),
            // Levels and one-shot commands are in force at once.
            GCMD => self.set(GSTS, value),
            _ => self.set(offset, value),
        }
    }

    fn read64(&self, offset: usize) -> u64 {
        u64::from(self.read32(offset + 4)) << 32 | u64::from(self.read32(offset))
    }

    fn write64(&self, offset: usize, value: u64) {
        match offset {
            IQT if self.read32(GSTS) & QIE != 0 => self.complete(value),
            _ => self.set64(offset, value),
        }
    }
}
