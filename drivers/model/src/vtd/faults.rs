//! Non-recoverable faults: status, recording registers, events (specification 7.2 and 7.3).

use super::env::Env;
use super::event::Event;
use super::reason;
use crate::core::{Access, AddressKind, Privilege, Request};

/// FSTS bits.
pub(super) const PFO: u32 = 1;
const PPF: u32 = 1 << 1;
pub(super) const IQE: u32 = 1 << 4;
pub(super) const ICE: u32 = 1 << 5;
pub(super) const ITE: u32 = 1 << 6;
/// Those that software clears by writing one.
const CLEARABLE: u32 = PFO | 1 << 2 | 1 << 3 | IQE | ICE | ITE;

/// The F bit in the upper half of a record.
const RECORDED: u64 = 1 << 63;

/// The fault log of a unit.
#[derive(Clone, Debug)]
pub(super) struct Faults {
    status: u32,
    records: Vec<[u64; 2]>,
    next: usize,
    first: usize,
    /// IQERCD: the kind of queue error and the requesters of completion errors.
    pub(super) queue_error: u64,
    pub(super) event: Event,
}

impl Faults {
    pub(super) fn new(records: u64) -> Self {
        Self {
            status: 0,
            records: vec![[0; 2]; records as usize],
            next: 0,
            first: 0,
            queue_error: 0,
            event: Event::new("fault event"),
        }
    }

    pub(super) fn status(&self) -> u32 {
        let pending = self.records.iter().any(|record| record[1] & RECORDED != 0);
        self.status | if pending { PPF | (self.first as u32) << 8 } else { 0 }
    }

    pub(super) const fn has(&self, bit: u32) -> bool {
        self.status & bit != 0
    }

    /// Sets IQE, ICE or ITE.
    pub(super) fn set(&mut self, env: Env<'_>, bit: u32) {
        let quiet = self.status() == 0;
        self.status |= bit;
        if quiet {
            self.event.raise(env);
        }
    }

    /// FSTS is written.
    pub(super) fn acknowledge(&mut self, value: u32) {
        self.status &= !(value & CLEARABLE);
        self.settle();
    }

    fn settle(&mut self) {
        if self.status() == 0 {
            self.event.settle();
        }
    }

    /// Reads 64 bits of the records.
    pub(super) fn read(&self, index: usize, half: usize) -> u64 {
        self.records.get(index).map_or(0, |record| record[half])
    }

    /// Writes 64 bits of the records: only F can be cleared.
    pub(super) fn write(&mut self, index: usize, half: usize, value: u64) {
        if let Some(record) = self.records.get_mut(index).filter(|_| half == 1) {
            record[1] &= !(value & RECORDED);
        }
        self.settle();
    }

    /// A request ended with a fault.
    pub(super) fn record(&mut self, env: Env<'_>, request: &Request, reason: u8) {
        env.coverage.count("fault", reason::name(reason));
        let same = |record: &[u64; 2]| {
            record[1] & RECORDED != 0 && record[1] & 0xffff == u64::from(request.requester & 0xffff)
        };
        if self.records.iter().any(same) && env.schedule.fires(super::points::FAULT_COLLAPSE) {
            env.coverage.count("fault log", "collapsed");
            return;
        }
        if self.has(PFO) || self.records[self.next][1] & RECORDED != 0 {
            self.status |= PFO;
            env.coverage.count("fault log", "overflow");
            return;
        }
        let quiet = self.status() == 0;
        if self.status() & PPF == 0 {
            self.first = self.next;
        }
        self.records[self.next] = Self::encode(request, reason);
        self.next = (self.next + 1) % self.records.len();
        env.coverage.count("fault log", "recorded");
        if quiet {
            self.event.raise(env);
        }
    }

    /// A fault record (specification 11.4.14).
    fn encode(request: &Request, reason: u8) -> [u64; 2] {
        let kind = match request.kind {
            AddressKind::Untranslated => 0,
            AddressKind::TranslationRequest => 1,
            AddressKind::Translated => 2,
        };
        let reads = request.access != Access::Write;
        let mut high = u64::from(request.requester & 0xffff)
            | u64::from(reason) << 32
            | kind << 60
            | u64::from(reads) << 62
            | RECORDED;
        if let Some(pasid) = request.pasid {
            high |= u64::from(request.privilege == Privilege::Supervisor) << 29
                | u64::from(request.access == Access::Execute) << 30
                | 1 << 31
                | u64::from(pasid & 0xf_ffff) << 40;
        }
        [request.address & !0xfff, high]
    }
}
