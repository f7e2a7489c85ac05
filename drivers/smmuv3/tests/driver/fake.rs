//! A small SMMUv3 behind `Mmio`: it consumes the command queue from memory, caches what real units cache until it is
//! told to forget it, translates DMA and records events. All words are decoded by hand, by the manual's bit numbers.

#![expect(unsafe_code, reason = "reads the memory that plays physical memory")]

use portcullis_hal::host::HostHal;
use portcullis_hal::{FixedMapping, Hal, Mapping, Mmio, PhysAddr, SharedTable, TableRoot};
use portcullis_iommu::DomainSpec;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What QEMU 11.1's unit with both stages shows: IDR0, IDR1, IDR3, IDR5.
pub(crate) const IDS: [u32; 4] = [0x0d44_101b, 0x0273_0010, 0x1414, 0x74];

/// Vouches for memory that nobody accesses.
pub(crate) fn fixed(mapping: Mapping) -> FixedMapping {
    // SAFETY: the unit here translates addresses and touches no memory behind them.
    unsafe { FixedMapping::new(mapping) }
}

/// Vouches for foreign tables.
pub(crate) fn shared(root: TableRoot) -> DomainSpec {
    // SAFETY: tests attach only tables that live as long as the domain.
    DomainSpec::Shared(unsafe { SharedTable::new(root) })
}

/// When the unit looks at the command queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// At the doorbell.
    AtOnce,
    /// One command per read of CMDQ_CONS.
    OnPoll,
    /// Not at all.
    Never,
}

/// How a DMA ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dma {
    /// At this physical address.
    Done(u64),
    /// Aborted without a record.
    Aborted,
    /// Aborted and recorded with this event code.
    Faulted(u8),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
enum TlbTag {
    Asid(u64),
    Vmid(u64),
}

pub(crate) struct State {
    hal: HostHal,
    pub(crate) ids: [u32; 4],
    registers: BTreeMap<usize, u64>,
    pub(crate) pace: Pace,
    /// Registers whose acknowledgement does not follow.
    pub(crate) deaf: bool,
    /// The opcode at which the queue stops, and how often yet.
    pub(crate) refuse: Option<(u8, u32)>,
    /// An opcode that is refused every n-th time.
    pub(crate) refuse_every: Option<(u8, u64)>,
    seen: u64,
    /// Messages do not arrive.
    pub(crate) mute: bool,
    /// How many arrived.
    pub(crate) messages: u64,
    /// What the sync that just completed asked to write.
    message: Option<(u64, u32)>,
    /// Reads of CMDQ_CONS.
    pub(crate) polls: u64,
    /// CMDQ_CONS.ERR for that.
    pub(crate) refusal: u32,
    /// What was executed, without the syncs.
    pub(crate) commands: Vec<[u64; 2]>,
    /// Offsets and values of all register writes.
    pub(crate) writes: Vec<(usize, u64)>,
    pub(crate) doorbells: u64,
    /// Reads of any register.
    pub(crate) reads: u64,
    stes: HashMap<u64, Option<[u64; 8]>>,
    cds: HashMap<u64, [u64; 8]>,
    tlb: BTreeMap<(TlbTag, u64), (u64, bool)>,
}

/// The unit; clones share it.
#[derive(Clone)]
pub(crate) struct Fake(Arc<Mutex<State>>);

const CR0: usize = 0x20;
const CR0ACK: usize = 0x24;
const GBPA: usize = 0x44;
const IRQ_CTRL: usize = 0x50;
const IRQ_CTRLACK: usize = 0x54;
const GERROR: usize = 0x60;
const GERRORN: usize = 0x64;
const STRTAB_BASE: usize = 0x80;
const STRTAB_CFG: usize = 0x88;
const CMDQ_BASE: usize = 0x90;
const CMDQ_PROD: usize = 0x98;
const CMDQ_CONS: usize = 0x9c;
const EVENTQ_BASE: usize = 0xa0;
const EVENTQ_PROD: usize = 0x1_00a8;
const EVENTQ_CONS: usize = 0x1_00ac;
const ADDRESS: u64 = 0x000f_ffff_ffff_ffc0;

impl Fake {
    pub(crate) fn new(hal: &HostHal) -> Self {
        let state = State {
            hal: hal.clone(),
            ids: IDS,
            registers: BTreeMap::from([(GBPA, 0x1000)]),
            pace: Pace::AtOnce,
            deaf: false,
            refuse: None,
            refuse_every: None,
            seen: 0,
            mute: false,
            messages: 0,
            message: None,
            polls: 0,
            refusal: 1,
            commands: Vec::new(),
            writes: Vec::new(),
            doorbells: 0,
            reads: 0,
            stes: HashMap::new(),
            cds: HashMap::new(),
            tlb: BTreeMap::new(),
        };
        Self(Arc::new(Mutex::new(state)))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // A failed assertion in here fails the test that caused it, not each later access.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The opcodes executed since the last call, without syncs.
    pub(crate) fn opcodes(&self) -> Vec<u8> {
        self.state().commands.drain(..).map(|command| command[0] as u8).collect()
    }

    pub(crate) fn dma(&self, stream: u32, address: u64, write: bool) -> Dma {
        self.state().dma(u64::from(stream), address, write)
    }
}

// SAFETY: the fake reads and writes only the memory that the driver gave it, as an SMMU does.
unsafe impl Mmio for Fake {
    fn read32(&self, offset: usize) -> u32 {
        let mut state = self.state();
        state.reads += 1;
        if offset == CMDQ_CONS {
            state.polls += 1;
            if state.pace == Pace::OnPoll {
                state.consume(1);
            }
        }
        match offset {
            0x00 => state.ids[0],
            0x04 => state.ids[1],
            0x0c => state.ids[2],
            0x14 => state.ids[3],
            _ => state.get(offset) as u32,
        }
    }

    fn write32(&self, offset: usize, value: u32) {
        let mut state = self.state();
        state.writes.push((offset, value.into()));
        match offset {
            GBPA => {
                assert!(value >> 31 == 1, "GBPA changes only with UPDATE");
                state.set(GBPA, u64::from(value & 0x7fff_ffff));
            }
            CR0 | IRQ_CTRL => {
                state.set(offset, value.into());
                if !state.deaf {
                    let acknowledge = if offset == CR0 { CR0ACK } else { IRQ_CTRLACK };
                    state.set(acknowledge, value.into());
                }
            }
            STRTAB_CFG => {
                assert_eq!(state.get(CR0) & 1, 0, "the stream table is fixed while SMMUEN is 1");
                state.set(offset, value.into());
            }
            CMDQ_PROD => {
                state.set(offset, value.into());
                if state.get(CR0) & 8 != 0 {
                    state.doorbells += 1;
                    if state.pace == Pace::AtOnce {
                        state.consume(u32::MAX);
                    }
                }
            }
            GERRORN => {
                let toggled = state.get(GERRORN) ^ u64::from(value);
                let active = state.get(GERROR) ^ state.get(GERRORN);
                assert_eq!(toggled & !active, 0, "an error that is not active was acknowledged");
                state.set(offset, value.into());
                if state.pace == Pace::AtOnce {
                    state.consume(u32::MAX);
                }
            }
            _ => state.set(offset, value.into()),
        }
    }

    fn read64(&self, offset: usize) -> u64 {
        let mut state = self.state();
        state.reads += 1;
        state.get(offset)
    }

    fn write64(&self, offset: usize, value: u64) {
        let mut state = self.state();
        state.writes.push((offset, value));
        state.set(offset, value);
    }
}

impl State {
    pub(crate) fn get(&self, offset: usize) -> u64 {
        self.registers.get(&offset).copied().unwrap_or(0)
    }

    pub(crate) fn set(&mut self, offset: usize, value: u64) {
        self.registers.insert(offset, value);
    }

    pub(crate) fn word(&self, address: u64) -> u64 {
        let pointer = self.hal.phys_to_virt(PhysAddr::new(address)).cast::<AtomicU64>();
        // SAFETY: the address is allocated, or `phys_to_virt` panics; all access is atomic.
        unsafe { pointer.as_ref() }.load(Ordering::SeqCst)
    }

    fn put(&self, address: u64, value: u64) {
        let pointer = self.hal.phys_to_virt(PhysAddr::new(address)).cast::<AtomicU64>();
        // SAFETY: as above.
        unsafe { pointer.as_ref() }.store(value, Ordering::SeqCst);
    }

    fn entry(&self, address: u64) -> [u64; 8] {
        std::array::from_fn(|i| self.word(address + 8 * i as u64))
    }

    pub(crate) fn raise(&mut self, error: u64) {
        let active = self.get(GERROR) ^ self.get(GERRORN);
        if active & error == 0 {
            self.set(GERROR, self.get(GERROR) ^ error);
        }
    }

    /// Executes up to `limit` commands.
    pub(crate) fn consume(&mut self, limit: u32) {
        for _ in 0..limit {
            let stopped = (self.get(GERROR) ^ self.get(GERRORN)) & 1 != 0;
            if self.get(CR0) & 8 == 0 || stopped {
                return;
            }
            let log2 = self.get(CMDQ_BASE) & 0x1f;
            let wrap_mask = (2 << log2) - 1;
            let cons = self.get(CMDQ_CONS) & wrap_mask;
            if cons == self.get(CMDQ_PROD) & wrap_mask {
                return;
            }
            let base = self.get(CMDQ_BASE) & ADDRESS;
            let slot = base + 16 * (cons & ((1 << log2) - 1));
            let command = [self.word(slot), self.word(slot + 8)];
            if self.refuses(command[0] as u8) {
                self.set(CMDQ_CONS, cons | u64::from(self.refusal) << 24);
                self.raise(1);
                return;
            }
            self.execute(command);
            self.set(CMDQ_CONS, (cons + 1) & wrap_mask);
            if let Some((address, data)) = self.message.take()
                && !self.mute
            {
                self.put(address, u64::from(data));
                self.messages += 1;
            }
        }
    }

    fn refuses(&mut self, opcode: u8) -> bool {
        if let Some((refused, times)) = self.refuse
            && opcode == refused
            && times > 0
        {
            self.refuse = Some((opcode, times - 1));
            return true;
        }
        if let Some((refused, period)) = self.refuse_every
            && opcode == refused
        {
            self.seen += 1;
            return self.seen.is_multiple_of(period);
        }
        false
    }

    /// Forgets everything cached, as time may bring about.
    pub(crate) fn forget_all(&mut self) {
        self.stes.clear();
        self.cds.clear();
        self.tlb.clear();
    }

    fn execute(&mut self, command: [u64; 2]) {
        let [word0, word1] = command;
        let (stream, asid, vmid) = (word0 >> 32, word0 >> 48, word0 >> 32 & 0xffff);
        if word0 & 0xff != 0x46 {
            self.commands.push(command);
        }
        match word0 & 0xff {
            0x03 => {
                assert_eq!(word1, 0, "the level-1 descriptor above is concerned too");
                self.stes.remove(&stream);
                self.cds.remove(&stream);
            }
            0x04 => {
                assert_eq!(word1, 31);
                self.stes.clear();
                self.cds.clear();
            }
            0x11 => self.tlb.retain(|(tag, _), _| *tag != TlbTag::Asid(asid)),
            0x28 => self.tlb.retain(|(tag, _), _| *tag != TlbTag::Vmid(vmid)),
            0x12 => self.forget(TlbTag::Asid(asid), word0, word1),
            0x2a => self.forget(TlbTag::Vmid(vmid), word0, word1),
            0x30 => self.tlb.clear(),
            0x46 if word0 >> 12 & 3 == 0 => assert_eq!((word0, word1), (0x46, 0)),
            0x46 => {
                assert_ne!(self.ids[0] & 1 << 13, 0, "a message from a unit that sends none");
                // Normal memory, write-back, inner shareable.
                assert_eq!(word0 & 0xffff_ffff, 0x0fc0_1046);
                self.message = Some((word1, (word0 >> 32) as u32));
            }
            other => panic!("command {other:#x}"),
        }
    }

    fn forget(&mut self, tag: TlbTag, word0: u64, word1: u64) {
        let (start, granule) = (word1 & !0xfff, word1 >> 10 & 3);
        let len = if granule == 0 {
            0x1000
        } else {
            assert_ne!(self.ids[2] & 1 << 10, 0, "a range without RIL");
            ((word0 >> 12 & 0x1f) + 1) << (word0 >> 20 & 0x1f) << (10 + 2 * granule)
        };
        // Entries of any size are held as pages of 4 KiB; one address drops the 2 MiB around it when tables changed.
        let (first, last) = match word1 & 1 {
            1 => (start, start + (len - 1)),
            _ => (start & !0x1f_ffff, (start + (len - 1)) | 0x1f_ffff),
        };
        self.tlb.retain(|&(of, page), _| of != tag || page < first || page > last);
    }

    fn record(&mut self, words: [u64; 4]) -> Dma {
        let log2 = self.get(EVENTQ_BASE) & 0x1f;
        let wrap_mask = (2 << log2) - 1;
        let (prod, cons) = (self.get(EVENTQ_PROD), self.get(EVENTQ_CONS));
        if self.get(CR0) & 4 != 0 {
            if (prod ^ cons) & wrap_mask == 1 << log2 {
                if (prod ^ cons) >> 31 == 0 {
                    self.set(EVENTQ_PROD, prod ^ 1 << 31);
                }
            } else {
                let slot = (self.get(EVENTQ_BASE) & ADDRESS) + 32 * (prod & ((1 << log2) - 1));
                for (i, word) in words.into_iter().enumerate() {
                    self.put(slot + 8 * i as u64, word);
                }
                self.set(EVENTQ_PROD, prod & 1 << 31 | (prod + 1) & wrap_mask);
            }
        }
        Dma::Faulted(words[0] as u8)
    }

    fn stream_entry(&self, stream: u64) -> Option<[u64; 8]> {
        let config = self.get(STRTAB_CFG);
        let base = self.get(STRTAB_BASE) & ADDRESS;
        if stream >> (config & 0x3f) != 0 {
            return None;
        }
        if config >> 16 & 3 == 0 {
            return Some(self.entry(base + 64 * stream));
        }
        let split = config >> 6 & 0x1f;
        let descriptor = self.word(base + 8 * (stream >> split));
        let span = descriptor & 0x1f;
        let index = stream & ((1 << split) - 1);
        if span == 0 || index >> (span - 1) != 0 {
            return None;
        }
        Some(self.entry((descriptor & ADDRESS) + 64 * index))
    }

    fn dma(&mut self, stream: u64, address: u64, write: bool) -> Dma {
        if self.get(CR0ACK) & 1 == 0 {
            return if self.get(GBPA) >> 20 & 1 == 1 { Dma::Aborted } else { Dma::Done(address) };
        }
        let cached = self.stes.get(&stream).copied();
        let entry = cached.unwrap_or_else(|| self.stream_entry(stream));
        self.stes.insert(stream, entry);
        let sid = stream << 32;
        let Some(entry) = entry else { return self.record([sid | 0x02, 0, 0, 0]) };
        if entry[0] & 1 == 0 {
            return self.record([sid | 0x04, 0, 0, 0]);
        }
        let direction = u64::from(!write) << 35;
        match entry[0] >> 1 & 7 {
            0b000 => Dma::Aborted,
            0b100 => {
                assert_eq!(entry[1] >> 44 & 3, 1, "shareability as it came");
                Dma::Done(address)
            }
            0b101 => {
                assert_eq!((entry[0] >> 59, entry[2] & 0xffff), (0, 0), "one descriptor, VMID 0");
                let read = self.entry(entry[0] & 0x00ff_ffff_ffff_ffc0);
                let cd = *self.cds.entry(stream).or_insert(read);
                let flags = 1 << 31 | 1 << 30 | 1 << 41 | 1 << 45 | 1 << 46;
                if cd[0] & flags != flags || cd[0] >> 42 & 7 != 0 || cd[0] >> 32 & 7 >= 6 {
                    return self.record([sid | 0x0a, 0, 0, 0]);
                }
                assert_eq!((cd[0] >> 6 & 3, cd[3] & 0xff), (0, 0xff), "4 KiB, attribute 0 is write-back");
                let walk = Walk {
                    tag: TlbTag::Asid(cd[0] >> 48),
                    root: cd[1] & 0x000f_ffff_ffff_fff0,
                    bits: 64 - (cd[0] & 0x3f),
                    start: None,
                };
                self.translate(&walk, address, write)
                    .unwrap_or_else(|code| self.record([sid | code, direction, address, 0]))
            }
            0b110 => {
                let word2 = entry[2];
                assert_eq!(word2 >> 51 & 1, 1, "S2AA64");
                assert_eq!((word2 >> 46 & 3, word2 >> 58 & 1, word2 >> 57 & 1), (0, 1, 0));
                assert_ne!(word2 & 0xffff, 0, "VMID 0 belongs to stage 1");
                let walk = Walk {
                    tag: TlbTag::Vmid(word2 & 0xffff),
                    root: entry[3] & 0x000f_ffff_ffff_fff0,
                    bits: 64 - (word2 >> 32 & 0x3f),
                    start: Some(2 - (word2 >> 38 & 3)),
                };
                self.translate(&walk, address, write)
                    .unwrap_or_else(|code| self.record([sid | code, direction | 1 << 39, address, 0]))
            }
            other => panic!("STE.Config {other:#b}"),
        }
    }

    /// A walk of 4 KiB tables; the error is an event code.
    fn translate(&mut self, walk: &Walk, address: u64, write: bool) -> Result<Dma, u64> {
        if address >> walk.bits != 0 {
            return Err(0x10);
        }
        let key = (walk.tag, address & !0xfff);
        let (page, writable) = match self.tlb.get(&key) {
            Some(&hit) => hit,
            None => {
                let found = self.walk(walk, address)?;
                self.tlb.insert(key, found);
                found
            }
        };
        if write && !writable {
            return Err(0x13);
        }
        Ok(Dma::Done(page | address & 0xfff))
    }

    fn walk(&self, walk: &Walk, address: u64) -> Result<(u64, bool), u64> {
        let first = walk.start.unwrap_or(3 - (walk.bits - 13) / 9);
        let mut table = walk.root;
        for level in first..=3 {
            let shift = 12 + 9 * (3 - level);
            // The root may be several tables in a row.
            let mask = if level == first { u64::MAX } else { 0x1ff };
            let descriptor = self.word(table + 8 * (address >> shift & mask));
            let output = descriptor & 0x0000_ffff_ffff_f000;
            match (descriptor & 3, level) {
                (0b11, 0..=2) => table = output,
                (0b11, 3) | (0b01, 1 | 2) => {
                    assert_ne!(descriptor & 1 << 10, 0, "access flag");
                    let writable = match walk.tag {
                        TlbTag::Asid(_) => {
                            assert_ne!(descriptor & 1 << 6, 0, "devices are not privileged");
                            descriptor >> 7 & 1 == 0
                        }
                        TlbTag::Vmid(_) => descriptor >> 7 & 1 == 1,
                    };
                    let inside = address & ((1 << shift) - 1) & !0xfff;
                    return Ok((output & !((1 << shift) - 1) | inside, writable));
                }
                _ => return Err(0x10),
            }
        }
        Err(0x10)
    }
}

struct Walk {
    tag: TlbTag,
    root: u64,
    bits: u64,
    /// The level of the root; by default what the width gives.
    start: Option<u64>,
}
