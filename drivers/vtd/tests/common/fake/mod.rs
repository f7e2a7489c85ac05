//! A VT-d unit behind [`Mmio`], written from the manual with raw words and numbers only, so that a wrong layout in the
//! driver does not cancel out. It walks the tables, caches what hardware may cache and drops it only when told to.
#![expect(unsafe_code, reason = "the unit reads and writes the driver's memory")]

use portcullis_hal::host::HostHal;
use portcullis_hal::{Hal, Mmio, PhysAddr};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

mod queue;
mod walk;

/// QEMU 11.1: `scalable-mode=on,fsts=on,pasid-bits=20,svm=on,device-iotlb=on`.
pub const FIRST_STAGE: (u64, u64) = (0x81d2_008c_222f_0606, 0x0000_8d9a_20f0_0f4a);
/// QEMU 11.1: `scalable-mode=on,pasid-bits=20`.
pub const SECOND_STAGE: (u64, u64) = (0x80d2_008c_222f_0606, 0x0000_4998_80f0_0f4a);

pub const VER: usize = 0x00;
pub const CAP: usize = 0x08;
pub const ECAP: usize = 0x10;
pub const GCMD: usize = 0x18;
pub const GSTS: usize = 0x1c;
pub const RTADDR: usize = 0x20;
pub const FSTS: usize = 0x34;
pub const FECTL: usize = 0x38;
pub const FEUADDR: usize = 0x44;
pub const PMEN: usize = 0x64;
pub const IQH: usize = 0x80;
pub const IQT: usize = 0x88;
pub const IQA: usize = 0x90;
pub const FRCD: usize = 0x220;

pub const TE: u32 = 1 << 31;
pub const SRTP: u32 = 1 << 30;
pub const QIE: u32 = 1 << 26;
pub const IRE: u32 = 1 << 25;
/// GCMD bits that are levels.
const LEVELS: u32 = 0x9680_0000;

/// What the unit does with its invalidation queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conduct {
    /// Consumes it as the tail is written.
    Prompt,
    /// Consumes nothing.
    Dead,
    /// Refuses the next descriptor of this type, once.
    Refuse(u64),
    /// Refuses every descriptor of this type.
    RefuseAll(u64),
    /// Drops the next wait descriptor, as after a device's time-out, once.
    DropWait,
}

/// A translation in the IOTLB.
#[derive(Clone, Copy)]
pub struct Cached {
    pub did: u16,
    pub second_stage: bool,
    pub frame: u64,
    pub write: bool,
    pub read: bool,
}

#[derive(Default)]
pub struct State {
    pub registers: HashMap<usize, u32>,
    /// All register writes, in order: offset, size in bytes, value.
    pub writes: Vec<(usize, usize, u64)>,
    pub reads: usize,
    pub events: usize,
    /// The root table in force.
    pub root: u64,
    /// By source-id: the context entry.
    pub contexts: HashMap<u16, [u64; 4]>,
    /// By source-id: the entry of PASID 0.
    pub pasids: HashMap<u16, [u64; 8]>,
    /// By source-id and page.
    pub iotlb: HashMap<(u16, u64), Cached>,
    pub next_record: usize,
    /// The type of the last invalidation, if no fence came after it.
    pub unfenced: Option<u64>,
}

/// The bits of FSTS that are interrupt conditions: while one is set, no other makes an event.
const CONDITIONS: u32 = 0x73;

#[derive(Clone)]
pub struct FakeUnit {
    pub hal: HostHal,
    pub state: Arc<Mutex<State>>,
    pub conduct: Arc<Mutex<Conduct>>,
    /// QEMU fetches again after an error only when the tail is written.
    pub restarts_at_tail: bool,
    cap: u64,
}

impl FakeUnit {
    pub fn new(hal: &HostHal, (cap, ecap): (u64, u64)) -> Self {
        let this = Self {
            hal: hal.clone(),
            state: Arc::default(),
            conduct: Arc::new(Mutex::new(Conduct::Prompt)),
            restarts_at_tail: true,
            cap,
        };
        {
            let mut state = this.state.lock().unwrap();
            state.set32(VER, 0x10);
            state.set64(CAP, cap);
            state.set64(ECAP, ecap);
            state.set32(FECTL, 1 << 31);
        }
        this
    }

    pub fn set_conduct(&self, conduct: Conduct) {
        *self.conduct.lock().unwrap() = conduct;
    }

    pub fn set(&self, register: usize, value: u32) {
        self.state.lock().unwrap().set32(register, value);
    }

    pub fn get(&self, register: usize) -> u32 {
        self.state.lock().unwrap().get32(register)
    }

    /// The values written to a 32-bit register.
    pub fn written(&self, register: usize) -> Vec<u64> {
        let state = self.state.lock().unwrap();
        state.writes.iter().filter(|write| write.0 == register).map(|write| write.2).collect()
    }

    /// How often registers were read, and the doorbell written, since the last call.
    pub fn accesses(&self) -> (usize, usize) {
        let mut state = self.state.lock().unwrap();
        let doorbells = state.writes.iter().filter(|write| write.0 == IQT).count();
        state.writes.clear();
        (std::mem::take(&mut state.reads), doorbells)
    }

    fn word(&self, phys: u64) -> &AtomicU64 {
        let pointer = self.hal.phys_to_virt(PhysAddr::new(phys)).cast::<AtomicU64>();
        // SAFETY: the host memory is alive, or `phys_to_virt` would have panicked; words are aligned.
        unsafe { pointer.as_ref() }
    }

    pub fn read_memory(&self, phys: u64) -> u64 {
        self.word(phys).load(Ordering::SeqCst)
    }

    fn write_status(&self, phys: u64, value: u32) {
        let pointer = self.hal.phys_to_virt(PhysAddr::new(phys)).cast::<AtomicU32>();
        // SAFETY: as above.
        unsafe { pointer.as_ref() }.store(value, Ordering::SeqCst);
    }

    fn caching_mode(&self) -> bool {
        self.cap & 1 << 7 != 0
    }
}

impl State {
    pub fn get32(&self, register: usize) -> u32 {
        self.registers.get(&register).copied().unwrap_or(0)
    }

    pub fn set32(&mut self, register: usize, value: u32) {
        self.registers.insert(register, value);
    }

    pub fn get64(&self, register: usize) -> u64 {
        u64::from(self.get32(register + 4)) << 32 | u64::from(self.get32(register))
    }

    pub fn set64(&mut self, register: usize, value: u64) {
        self.set32(register, value as u32);
        self.set32(register + 4, (value >> 32) as u32);
    }

    /// Records a fault, as one recording register after the other is free.
    pub fn record(&mut self, records: usize, low: u64, high: u64) {
        let at = FRCD + 16 * self.next_record;
        let pending = self.get32(FSTS);
        if pending & 1 != 0 {
            // Nothing is recorded until software clears the overflow.
            return;
        }
        if self.get32(at + 12) & 1 << 31 != 0 {
            self.set32(FSTS, pending | 1);
        } else {
            self.set64(at, low);
            self.set64(at + 8, high | 1 << 63);
            let first = if pending & 2 == 0 { (self.next_record as u32) << 8 } else { pending & 0xff00 };
            self.set32(FSTS, pending & !0xff00 | 2 | first);
            self.next_record = (self.next_record + 1) % records;
        }
        if pending & CONDITIONS == 0 {
            self.fault_event();
        }
    }

    pub fn fault_event(&mut self) {
        let control = self.get32(FECTL);
        if control & 1 << 31 == 0 {
            self.events += 1;
        } else {
            self.set32(FECTL, control | 1 << 30);
        }
    }

    fn clear_record(&mut self, register: usize, records: usize) {
        let value = self.get32(register) & !(1 << 31);
        self.set32(register, value);
        let full = |state: &Self, n: usize| state.get32(FRCD + 16 * n + 12) & 1 << 31 != 0;
        let status = self.get32(FSTS) & !0xff02;
        let first = (status >> 8) as usize;
        let next = (0..records).map(|n| (first + n) % records).find(|&n| full(self, n));
        self.set32(FSTS, next.map_or(status, |n| status | 2 | (n as u32) << 8));
    }
}

// SAFETY: the fake reads and writes only the memory that the driver gave it, as a unit does.
unsafe impl Mmio for FakeUnit {
    fn read32(&self, offset: usize) -> u32 {
        let mut state = self.state.lock().unwrap();
        state.reads += 1;
        state.get32(offset)
    }

    fn write32(&self, offset: usize, value: u32) {
        let mut state = self.state.lock().unwrap();
        state.writes.push((offset, 4, u64::from(value)));
        let records = (self.cap >> 40 & 0xff) as usize + 1;
        match offset {
            VER | CAP | ECAP | GSTS | FEUADDR => {}
            GCMD => {
                let status = state.get32(GSTS);
                if value & SRTP != 0 {
                    state.root = state.get64(RTADDR);
                    state.contexts.clear();
                    state.pasids.clear();
                    state.iotlb.clear();
                }
                if value & QIE == 0 && status & QIE != 0 {
                    state.set64(IQH, 0);
                }
                state.set32(GSTS, value & LEVELS | (status | value) & SRTP);
            }
            FSTS => {
                let status = state.get32(FSTS) & !(value & 0x71);
                state.set32(FSTS, status);
                if value & 0x10 != 0 && !self.restarts_at_tail {
                    self.consume(&mut state);
                }
            }
            FECTL => {
                let pending = state.get32(FECTL) & 1 << 30;
                state.set32(FECTL, value & 1 << 31 | pending);
                if value >> 31 == 0 && pending != 0 {
                    state.set32(FECTL, 0);
                    state.events += 1;
                }
            }
            PMEN => state.set32(PMEN, value & 1 << 31 | value >> 31),
            _ if offset >= FRCD && offset < FRCD + 16 * records => {
                if offset % 16 == 12 && value & 1 << 31 != 0 {
                    state.clear_record(offset, records);
                }
            }
            _ => state.set32(offset, value),
        }
    }

    fn read64(&self, offset: usize) -> u64 {
        let mut state = self.state.lock().unwrap();
        state.reads += 1;
        state.get64(offset)
    }

    fn write64(&self, offset: usize, value: u64) {
        let mut state = self.state.lock().unwrap();
        state.writes.push((offset, 8, value));
        match offset {
            CAP | ECAP | IQH => {}
            _ => state.set64(offset, value),
        }
        if offset == IQT {
            self.consume(&mut state);
        }
    }
}
