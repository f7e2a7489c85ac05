//! A small raw driver: everything is a number from the manual.

use portcullis_model::core::{Mode, Outcome, Ram, Request, Schedule};
use portcullis_model::smmuv3::{Config, Smmu};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) const CMDQ: u64 = 0x10_0000;
pub(crate) const EVENTQ: u64 = 0x11_0000;
pub(crate) const PRIQ: u64 = 0x12_0000;
pub(crate) const STREAMS: u64 = 0x20_0000;
pub(crate) const CD: u64 = 0x30_0000;
/// Stage-1 tables: 39-bit input, three levels.
pub(crate) const S1: [u64; 3] = [0x40_0000, 0x40_1000, 0x40_2000];
/// Stage-2 tables: 40-bit input, level 1 first (two concatenated tables), three levels.
pub(crate) const S2: [u64; 3] = [0x50_0000, 0x50_2000, 0x50_3000];
pub(crate) const SID: u32 = 3;
pub(crate) const ASID: u64 = 7;
pub(crate) const VMID: u64 = 5;
pub(crate) const VA: u64 = 0x1234_5000;
pub(crate) const PAGE: u64 = 0x7000_0000;
pub(crate) const OTHER: u64 = 0x7100_0000;

/// Leaf of level 3: valid page, AF, inner shareable, EL0 read and write, nG.
pub(crate) const LEAF: u64 = 0xf43;
/// Stage-2 leaf: page, AF, inner shareable, read and write, Normal write-back.
pub(crate) const LEAF2: u64 = 0x7ff;

pub(crate) const CMD_SYNC: [u64; 2] = [0x46, 0];

pub(crate) struct Bench {
    pub(crate) ram: Arc<Ram>,
    pub(crate) schedule: Arc<Schedule>,
    pub(crate) smmu: Arc<Smmu>,
    prod: AtomicU32,
}

pub(crate) const CMDQ_LOG2: u32 = 4;
pub(crate) const EVENTQ_LOG2: u32 = 2;

impl Bench {
    /// A unit with queues of 16 commands, 4 events, 4 page requests and a linear table of 16 streams, all invalid.
    pub(crate) fn new(config: Config) -> Self {
        let ram = Arc::new(Ram::new());
        let schedule = Arc::new(Schedule::new(1));
        let smmu = Arc::new(Smmu::new(config, ram.clone(), schedule.clone()));
        let bench = Self { ram, schedule, smmu, prod: AtomicU32::new(0) };
        bench.start();
        bench
    }

    fn start(&self) {
        let smmu = &self.smmu;
        let (ats, pri) = (smmu.config().ats, smmu.config().pri);
        smmu.write32(0x28, 0xd75);
        smmu.write32(0x2c, 0x2);
        smmu.write64(0x80, STREAMS);
        smmu.write32(0x88, 4);
        smmu.write64(0x90, CMDQ | u64::from(CMDQ_LOG2));
        smmu.write64(0xa0, EVENTQ | u64::from(EVENTQ_LOG2));
        smmu.write32(0x20, 0x8);
        self.commands(&[[0x04, 31], [0x30, 0], CMD_SYNC]);
        if pri {
            smmu.write64(0xc0, PRIQ | 2);
        }
        smmu.write32(0x50, 0x5 | if pri { 2 } else { 0 });
        let enable = 0xd | if ats { 0x10 } else { 0 } | if pri { 2 } else { 0 };
        smmu.write32(0x20, enable);
        assert_eq!(smmu.read32(0x24), enable);
        self.clean();
    }

    /// No rule was broken so far.
    pub(crate) fn clean(&self) {
        assert_eq!(self.smmu.take_violations(), []);
    }

    /// The rules broken since the last call.
    pub(crate) fn violations(&self) -> Vec<&'static str> {
        self.smmu.take_violations().into_iter().map(|violation| violation.rule).collect()
    }

    /// Puts commands into the queue and rings, without waiting.
    pub(crate) fn post(&self, commands: &[[u64; 2]]) {
        for command in commands {
            let prod = self.prod.load(Ordering::Relaxed);
            let slot = CMDQ + 16 * u64::from(prod & 15);
            self.ram.store_all(slot, command);
            self.prod.store((prod + 1) & 31, Ordering::Relaxed);
        }
        self.smmu.write32(0x98, self.prod.load(Ordering::Relaxed));
    }

    /// Posts commands and lets the unit run.
    pub(crate) fn commands(&self, commands: &[[u64; 2]]) {
        self.post(commands);
        self.smmu.run();
    }

    /// Commands and a CMD_SYNC, all consumed.
    pub(crate) fn synced(&self, commands: &[[u64; 2]]) {
        self.commands(commands);
        self.commands(&[CMD_SYNC]);
        assert_eq!(self.smmu.read32(0x9c) & 0x1f, self.prod.load(Ordering::Relaxed), "all consumed");
    }

    pub(crate) fn prod(&self) -> u32 {
        self.prod.load(Ordering::Relaxed)
    }

    pub(crate) fn set_prod(&self, prod: u32) {
        self.prod.store(prod, Ordering::Relaxed);
    }

    pub(crate) fn ste(&self, sid: u32, words: [u64; 8]) {
        self.ram.store_all(STREAMS + 64 * u64::from(sid), &words);
    }

    /// Installs an STE with its invalidation.
    pub(crate) fn install(&self, sid: u32, words: [u64; 8]) {
        self.ste(sid, words);
        self.synced(&[cfgi_ste(sid)]);
    }

    pub(crate) fn cd(&self, at: u64, words: [u64; 8]) {
        self.ram.store_all(at, &words);
    }

    /// Stage-1 tables with one leaf at [`VA`].
    pub(crate) fn map1(&self, leaf: u64) {
        self.ram.store_all(S1[0] + 8 * (VA >> 30 & 0x1ff), &[S1[1] | 3]);
        self.ram.store_all(S1[1] + 8 * (VA >> 21 & 0x1ff), &[S1[2] | 3]);
        self.leaf1(leaf);
    }

    pub(crate) fn leaf1(&self, leaf: u64) {
        self.ram.store_all(S1[2] + 8 * (VA >> 12 & 0x1ff), &[leaf]);
    }

    /// One stage-2 page.
    pub(crate) fn map2(&self, ipa: u64, leaf: u64) {
        self.ram.store_all(S2[0] + 8 * (ipa >> 30), &[table2(ipa) | 3]);
        self.ram.store_all(table2(ipa) + 8 * (ipa >> 21 & 0x1ff), &[table3(ipa) | 3]);
        self.ram.store_all(table3(ipa) + 8 * (ipa >> 12 & 0x1ff), &[leaf]);
    }

    /// A whole stage-1 stream: STE, CD, tables, [`VA`] on [`PAGE`].
    pub(crate) fn stage1(&self) {
        self.map1(PAGE | LEAF);
        self.cd(CD, cd());
        self.install(SID, ste1(CD));
    }

    /// A whole stage-2 stream: [`VA`] on [`PAGE`].
    pub(crate) fn stage2(&self) {
        self.map2(VA, PAGE | LEAF2);
        self.install(SID, ste2());
    }

    /// A nested stream: stage 2 is the identity for CD and stage-1 tables, and maps [`IPA`] on [`PAGE`].
    pub(crate) fn nested(&self) {
        for page in [CD, S1[0], S1[1], S1[2]] {
            self.map2(page, page | LEAF2);
        }
        self.map2(IPA, PAGE | LEAF2);
        self.map1(IPA | LEAF);
        self.cd(CD, cd());
        self.install(SID, nested(CD));
    }

    pub(crate) fn read(&self, mode: Mode) -> Outcome {
        self.smmu.dma(read(), mode).outcome
    }

    pub(crate) fn write(&self, mode: Mode) -> Outcome {
        self.smmu.dma(Request::write(SID, VA), mode).outcome
    }

    /// The events in the queue, consumed.
    pub(crate) fn events(&self) -> Vec<[u64; 4]> {
        let (prod, mut cons) = (self.smmu.read32(0x1_00a8), self.smmu.read32(0x1_00ac));
        let mask = (2 << EVENTQ_LOG2) - 1;
        let mut events = Vec::new();
        while (prod ^ cons) & mask != 0 {
            let at = EVENTQ + 32 * u64::from(cons & (mask >> 1));
            events.push([0, 8, 16, 24].map(|offset| self.ram.load(at + offset)));
            cons = cons & !mask | (cons + 1) & mask;
        }
        self.smmu.write32(0x1_00ac, cons & mask | prod & 1 << 31);
        events
    }

    /// Codes of the events in the queue, consumed.
    pub(crate) fn event_codes(&self) -> Vec<u8> {
        self.events().iter().map(|event| event[0] as u8).collect()
    }
}

/// Where stage 1 leads in a nested stream.
pub(crate) const IPA: u64 = 0x2000_6000;

fn table2(ipa: u64) -> u64 {
    S2[1] + 0x2_0000 * (ipa >> 30)
}

fn table3(ipa: u64) -> u64 {
    S2[2] + 0x2_0000 * (ipa >> 30) + 0x1000 * (ipa >> 21 & 0x1ff)
}

/// The address of a stage-2 leaf.
pub(crate) fn leaf2(ipa: u64) -> u64 {
    table3(ipa) + 8 * (ipa >> 12 & 0x1ff)
}

pub(crate) fn read() -> Request {
    Request::read(SID, VA)
}

/// V, Config = stage 1, one CD; CD fetches write-back and inner shareable; VMID 0.
pub(crate) fn ste1(cd: u64) -> [u64; 8] {
    [cd | 0xb, 0xd4, 0, 0, 0, 0, 0, 0]
}

/// V, Config = stage 2: VMID 5, S2T0SZ 24, S2SL0 1, write-back inner shareable, 4K, S2PS 44 bits, S2AA64, S2R.
pub(crate) fn ste2() -> [u64; 8] {
    [0xd, 0, VMID | S2CFG, S2[0], 0, 0, 0, 0]
}

pub(crate) const S2CFG: u64 = 24 << 32 | 1 << 38 | 1 << 40 | 1 << 42 | 3 << 44 | 4 << 48 | 1 << 51 | 1 << 58;

pub(crate) fn nested(cd: u64) -> [u64; 8] {
    [cd | 0xf, 0xd4, VMID | S2CFG, S2[0], 0, 0, 0, 0]
}

/// T0SZ 25, 4K, write-back inner shareable, EPD1, V, IPS 44 bits, AA64, R, A, ASET, ASID 7.
pub(crate) fn cd() -> [u64; 8] {
    cd_of(ASID, S1[0])
}

pub(crate) fn cd_of(asid: u64, table: u64) -> [u64; 8] {
    let w0 = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 30 | 1 << 31 | 4 << 32 | 1 << 41 | 7 << 45 | asid << 48;
    [w0, table, 0, 0xff, 0, 0, 0, 0]
}

pub(crate) fn cfgi_ste(sid: u32) -> [u64; 2] {
    [0x03 | u64::from(sid) << 32, 1]
}

pub(crate) fn cfgi_cd(sid: u32, ssid: u64) -> [u64; 2] {
    [0x05 | u64::from(sid) << 32 | ssid << 12, 1]
}

/// By address, ASID and VMID, last level only.
pub(crate) fn tlbi_va(vmid: u64, asid: u64, va: u64) -> [u64; 2] {
    [0x12 | vmid << 32 | asid << 48, va | 1]
}

pub(crate) fn tlbi_asid(vmid: u64, asid: u64) -> [u64; 2] {
    [0x11 | vmid << 32 | asid << 48, 0]
}

pub(crate) fn tlbi_ipa(vmid: u64, ipa: u64) -> [u64; 2] {
    [0x2a | vmid << 32, ipa | 1]
}
