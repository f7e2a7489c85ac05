//! The register file (specification chapter 11).

use super::State;
use super::config::{Config, Feature};
use super::env::Env;
use super::faults;
use super::points;
use super::translate::Root;

/// How a register is laid out at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A 32-bit register.
    Word,
    /// The low or high half of a 64-bit register that starts at the offset given.
    Half(u64),
}

const GCMD: u64 = 0x18;
const RTADDR: u64 = 0x20;
const CCMD: u64 = 0x28;
const FSTS: u64 = 0x34;
const FECTL: u64 = 0x38;
const PMEN: u64 = 0x64;
const IQH: u64 = 0x80;
const IQT: u64 = 0x88;
const IQA: u64 = 0x90;
const ICS: u64 = 0x9c;
const IECTL: u64 = 0xa0;
const IQERCD: u64 = 0xb0;
const IRTA: u64 = 0xb8;
const PQH: u64 = 0xc0;
const PQT: u64 = 0xc8;
const PQA: u64 = 0xd0;
const PRS: u64 = 0xdc;
const PECTL: u64 = 0xe0;

/// GCMD and GSTS bits.
const TE: u32 = 1 << 31;
const SRTP: u32 = 1 << 30;
const WBF: u32 = 1 << 27;
const QIE: u32 = 1 << 26;
const IRE: u32 = 1 << 25;
const SIRTP: u32 = 1 << 24;
const CFI: u32 = 1 << 23;
/// Bits that keep their value: written as they shall be.
const LEVELS: u32 = TE | QIE | IRE | CFI;
/// Bits that start something.
const ONE_SHOTS: u32 = SRTP | WBF | SIRTP;

/// Registers without behaviour of their own, and commands that hardware has not carried out yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Plain {
    rtaddr: u64,
    irta: u64,
    /// GSTS, but for the bits that mirror state elsewhere.
    status: u32,
    pmen: u32,
    protected: [u64; 4],
    /// GCMD writes not yet carried out.
    commands: Vec<u32>,
}

fn kind(config: &Config, offset: u64) -> Option<Kind> {
    let fault = config.fault_offset();
    let records = fault..fault + 16 * config.fault_records();
    let iotlb = config.iotlb_offset();
    Some(match offset {
        0x0 | 0x18 | 0x1c | 0x34..=0x44 | 0x64..=0x6c | 0x9c..=0xac | 0xdc..=0xec => Kind::Word,
        0x8..=0x14 | 0x20..=0x2c | 0x58 | 0x5c | 0x70..=0x94 | 0xb0..=0xd4 => Kind::Half(offset & !7),
        _ if (iotlb..iotlb + 16).contains(&offset) || records.contains(&offset) => Kind::Half(offset & !7),
        _ => return None,
    })
}

impl State {
    pub(super) fn read32(&mut self, env: Env<'_>, offset: u64) -> u32 {
        match (offset % 4, kind(env.config, offset)) {
            (0, Some(Kind::Word)) => self.read_word(env, offset),
            (0, Some(Kind::Half(start))) => (self.read_pair(env, start) >> ((offset & 4) * 8)) as u32,
            _ => {
                env.violations.report("vtd read of no register", format_args!("32 bits at {offset:#x}"));
                0
            }
        }
    }

    pub(super) fn read64(&mut self, env: Env<'_>, offset: u64) -> u64 {
        if offset.is_multiple_of(8) && kind(env.config, offset) == Some(Kind::Half(offset)) {
            return self.read_pair(env, offset);
        }
        env.violations.report("vtd read of no register", format_args!("64 bits at {offset:#x}"));
        0
    }

    pub(super) fn write32(&mut self, env: Env<'_>, offset: u64, value: u32) {
        match (offset % 4, kind(env.config, offset)) {
            (0, Some(Kind::Word)) => self.write_word(env, offset, value),
            (0, Some(Kind::Half(start))) => self.write_half(env, start, offset & 4 != 0, value),
            _ => env.violations.report("vtd write of no register", format_args!("32 bits at {offset:#x}")),
        }
    }

    pub(super) fn write64(&mut self, env: Env<'_>, offset: u64, value: u64) {
        if offset.is_multiple_of(8) && kind(env.config, offset) == Some(Kind::Half(offset)) {
            return self.write_pair(env, offset, value);
        }
        env.violations.report("vtd write of no register", format_args!("64 bits at {offset:#x}"));
    }

    /// GSTS.
    fn status(&self) -> u32 {
        let root = if self.root.is_some() { SRTP } else { 0 };
        let flag = |on, bit| if on { bit } else { 0 };
        self.plain.status | root | flag(self.translating, TE) | flag(self.queue.enabled, QIE)
    }

    fn read_word(&self, env: Env<'_>, offset: u64) -> u32 {
        match offset {
            0 => env.config.version,
            0x1c => self.status(),
            FSTS => self.faults.status(),
            FECTL..=0x44 => self.faults.event.read(offset - FECTL),
            PMEN => self.plain.pmen | self.plain.pmen >> 31,
            0x68 | 0x6c => self.plain.protected[(offset as usize - 0x68) / 4] as u32,
            ICS => u32::from(self.queue.complete),
            IECTL..=0xac => self.queue.event.read(offset - IECTL),
            PRS => self.requests.status(),
            PECTL..=0xec => self.requests.event.read(offset - PECTL),
            // GCMD is write-only.
            _ => 0,
        }
    }

    fn read_pair(&self, env: Env<'_>, offset: u64) -> u64 {
        match offset {
            0x8 => env.config.cap,
            0x10 => env.config.ecap,
            RTADDR => self.plain.rtaddr,
            0x70 | 0x78 => self.plain.protected[2 + (offset as usize - 0x70) / 8],
            IQH => self.queue.head,
            IQT => self.queue.tail,
            IQA => self.queue.address,
            IQERCD => self.faults.queue_error,
            IRTA => self.plain.irta,
            PQH => self.requests.head,
            PQT => self.requests.tail,
            PQA => self.requests.address,
            _ => match self.fault_record(env, offset) {
                Some((index, half)) => self.faults.read(index, half),
                None => 0,
            },
        }
    }

    fn fault_record(&self, env: Env<'_>, offset: u64) -> Option<(usize, usize)> {
        let from = offset.checked_sub(env.config.fault_offset())?;
        let index = from / 16;
        (index < env.config.fault_records()).then_some((index as usize, from as usize / 8 % 2))
    }

    fn write_word(&mut self, env: Env<'_>, offset: u64, value: u32) {
        match offset {
            GCMD => self.command(env, value),
            FSTS => {
                self.faults.acknowledge(value);
                // Clearing IQE or ITE lets the queue go on.
                self.advance_queue(env);
            }
            FECTL..=0x44 => self.faults.event.write(env, offset - FECTL, value),
            PMEN if env.config.has(Feature::ProtectedLow) || env.config.has(Feature::ProtectedHigh) => {
                self.plain.pmen = value & 1 << 31;
            }
            0x68 | 0x6c => self.plain.protected[(offset as usize - 0x68) / 4] = u64::from(value),
            ICS if value & 1 != 0 => {
                self.queue.complete = false;
                self.queue.event.settle();
            }
            ICS => {}
            IECTL..=0xac => self.queue.event.write(env, offset - IECTL, value),
            PRS => self.requests.acknowledge(value),
            PECTL..=0xec => self.requests.event.write(env, offset - PECTL, value),
            _ => env.violations.report("vtd write of a read-only register", format_args!("{offset:#x}")),
        }
    }

    /// A 64-bit register written by halves. Those that act do so on the half that holds the acting field.
    fn write_half(&mut self, env: Env<'_>, start: u64, high: bool, value: u32) {
        let before = self.read_pair(env, start);
        let wide = u64::from(value);
        let merged = if high { before & 0xffff_ffff | wide << 32 } else { before & !0xffff_ffff | wide };
        match (start, high) {
            // The upper halves of the indices are reserved.
            (IQT | PQH | PQT, true) if value == 0 => {}
            _ if self.fault_record(env, start).is_some() => {
                // Only the written half may clear F.
                self.write_pair(env, start, if high { wide << 32 } else { wide });
            }
            _ => self.write_pair(env, start, merged),
        }
    }

    fn write_pair(&mut self, env: Env<'_>, offset: u64, value: u64) {
        match offset {
            RTADDR => {
                if value & 0x3ff != 0 || value & env.config.reserved_address() != 0 || value >> 10 & 3 == 2 {
                    env.violations.report("vtd RTADDR reserved bits", format_args!("{value:#x}"));
                }
                self.plain.rtaddr = value;
            }
            CCMD => self.register_invalidation(env, value),
            0x70 | 0x78 => self.plain.protected[2 + (offset as usize - 0x70) / 8] = value,
            IQT => {
                self.write_tail(env, value);
                self.check_tail(env);
                self.advance_queue(env);
            }
            IQA => {
                if self.queue.enabled {
                    env.violations.report("vtd IQA changed while enabled", format_args!("{value:#x}"));
                } else {
                    self.queue.address = value;
                    self.check_queue(env);
                }
            }
            IRTA => self.plain.irta = value,
            PQH => {
                if value & !0x7_ffe0 != 0 {
                    env.violations.report("vtd PQH reserved bits", format_args!("{value:#x}"));
                }
                self.requests.head = value & 0x7_ffe0;
            }
            PQT if env.config.has(Feature::PageRequests) => self.requests.tail = value & 0x7_ffe0,
            PQA if env.config.has(Feature::PageRequests) => {
                if value & 0xff8 != 0 || value & env.config.reserved_address() != 0 {
                    env.violations.report("vtd PQA reserved bits", format_args!("{value:#x}"));
                }
                self.requests.address = value;
            }
            _ => match self.fault_record(env, offset) {
                Some((index, half)) => self.faults.write(index, half, value),
                None if offset == env.config.iotlb_offset() => {}
                None if offset == env.config.iotlb_offset() + 8 => self.register_invalidation(env, value),
                None => {
                    env.violations.report("vtd write of a read-only register", format_args!("{offset:#x}"));
                }
            },
        }
    }

    fn check_tail(&self, env: Env<'_>) {
        if self.queue.tail >= self.queue.size() || !self.queue.tail.is_multiple_of(self.queue.stride()) {
            env.violations.report("vtd IQT out of the queue", format_args!("{:#x}", self.queue.tail));
        }
    }

    /// CCMD or IOTLB_REG: only legacy mode has register-based invalidation.
    fn register_invalidation(&mut self, env: Env<'_>, value: u64) {
        if value >> 63 != 0 {
            env.violations.report("vtd register-based invalidation", format_args!("{value:#x}"));
        }
    }

    /// GCMD is written.
    fn command(&mut self, env: Env<'_>, value: u32) {
        let known = LEVELS | ONE_SHOTS | 1 << 29 | 1 << 28;
        if value & !known != 0 {
            env.violations.report("vtd GCMD reserved bits", format_args!("{value:#x}"));
        }
        if !self.plain.commands.is_empty() {
            env.violations
                .report("vtd GCMD written before the last one took effect", format_args!("{value:#x}"));
        }
        let changes = (value ^ self.status()) & LEVELS | value & ONE_SHOTS;
        if changes.count_ones() > 1 {
            env.violations.report("vtd GCMD with several changes", format_args!("{value:#x}"));
        }
        self.plain.commands.push(value);
        if !env.schedule.fires(points::COMMAND_LATE) {
            self.carry_out(env);
        }
    }

    /// Carries out GCMD writes that were put off.
    pub(super) fn carry_out(&mut self, env: Env<'_>) {
        for value in std::mem::take(&mut self.plain.commands) {
            if value & SRTP != 0 {
                self.set_root(env);
            }
            if value & WBF != 0 {
                env.coverage.count("command", "WBF");
                self.buffer.flush();
            }
            if value & SIRTP != 0 {
                self.plain.status |= SIRTP;
            }
            self.plain.status = self.plain.status & !(IRE | CFI) | value & (IRE | CFI);
            self.set_queue(env, value & QIE != 0);
            self.set_translation(env, value & TE != 0);
        }
    }

    fn set_root(&mut self, env: Env<'_>) {
        env.coverage.count("command", "SRTP");
        let root = Root { table: self.plain.rtaddr & !0xfff, mode: (self.plain.rtaddr >> 10 & 3) as u8 };
        if self.translating && self.root.is_some_and(|old| old.mode != root.mode) {
            env.violations.report("vtd TTM changed while translating", format_args!("{root:x?}"));
        }
        if root.mode == 1 && !env.config.has(Feature::ScalableMode) {
            env.violations.report("vtd scalable mode without SMTS", format_args!("{root:x?}"));
        }
        self.root = Some(root);
        if env.config.has(Feature::EnhancedSetRoot) {
            self.caches.clear();
        }
    }

    fn set_queue(&mut self, env: Env<'_>, on: bool) {
        if on == self.queue.enabled {
            return;
        }
        if on {
            env.coverage.count("command", "QIE on");
            if self.queue.tail != 0 {
                env.violations.report("vtd QIE set with IQT not 0", format_args!("{:#x}", self.queue.tail));
            }
            self.queue.head = 0;
            self.queue.enabled = true;
        } else {
            env.coverage.count("command", "QIE off");
            if !self.queue_quiet() {
                env.violations.report("vtd QIE cleared while busy", format_args!("{:#x}", self.queue.head));
            }
            self.queue.disable();
        }
    }

    fn set_translation(&mut self, env: Env<'_>, on: bool) {
        if on == self.translating {
            return;
        }
        env.coverage.count("command", if on { "TE on" } else { "TE off" });
        if on && self.root.is_none() {
            env.violations.report("vtd TE set without a root table", "GCMD");
        }
        self.translating = on;
    }

    /// Whether a physical address is in a protected memory region that is on.
    pub(super) fn protected(&self, address: u64) -> bool {
        let [low, low_limit, high, high_limit] = self.plain.protected;
        self.plain.pmen >> 31 != 0
            && ((low..=low_limit | 0xfff).contains(&address) && low_limit != 0
                || (high..=high_limit | 0xfff).contains(&address) && high_limit != 0)
    }

    /// Whether anything is still to be done.
    pub(super) fn busy(&self) -> bool {
        let stopped = self.faults.has(faults::IQE) || self.faults.has(faults::ITE);
        !self.plain.commands.is_empty() || self.requests.waiting() || self.queue.busy() && !stopped
    }
}
