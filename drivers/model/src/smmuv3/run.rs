//! One translation among the many that hardware could do.
//!
//! The translation code asks [`Run::pick`] wherever hardware has alternatives: which cached version it uses, or
//! memory. Running it again and again with the next combination of answers visits every behaviour.

use super::Config;
use super::entry::{Stage2, StreamWorld};
use super::points;
use crate::core::{Access, Coverage, Interrupts, Memory, Privilege, Request, Schedule, View, Violations};
use std::sync::Arc;

/// Everything about a unit that does not change.
pub(super) struct Hw {
    pub(super) config: Config,
    pub(super) memory: Arc<dyn Memory>,
    pub(super) schedule: Arc<Schedule>,
    pub(super) violations: Violations,
    pub(super) interrupts: Interrupts,
    pub(super) coverage: Coverage,
}

impl Hw {
    /// The 64 bytes of an STE or a CD.
    pub(super) fn entry(&self, view: View, address: u64) -> Option<[u64; 8]> {
        let mut words = [0; 8];
        for (at, word) in (address..).step_by(8).zip(&mut words) {
            *word = self.memory.read64_as(view, at)?;
        }
        Some(words)
    }
}

/// How a run answers its choices.
pub(super) enum Choice<'a> {
    /// Memory only.
    Fresh,
    /// A recorded sequence, then always the first; the sequence grows as it is used.
    Replay { answers: Vec<(usize, usize)>, at: usize },
    /// Whatever the schedule says.
    Random(&'a Schedule),
}

/// An access-flag or dirty-state update of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Update {
    pub(super) address: u64,
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) name: &'static str,
}

/// One translation under way.
pub(super) struct Run<'a> {
    choice: Choice<'a>,
    /// What is read from memory goes into the caches.
    pub(super) fill: bool,
    /// Something was used that memory does not say any more.
    pub(super) stale: bool,
    /// A configuration structure with an invalidation under way was used: what is fetched through it goes with
    /// it.
    pub(super) doomed_config: bool,
    /// Descriptor updates that the translation needs.
    pub(super) updates: Vec<Update>,
    /// Which caches were used, for coverage.
    pub(super) used: Vec<&'static str>,
}

impl<'a> Run<'a> {
    pub(super) const fn new(choice: Choice<'a>, fill: bool) -> Self {
        Self { choice, fill, stale: false, doomed_config: false, updates: Vec::new(), used: Vec::new() }
    }

    /// Whether caches are out of the game.
    pub(super) const fn fresh(&self) -> bool {
        matches!(self.choice, Choice::Fresh)
    }

    /// Chooses among `bound` alternatives, of which number 0 is what memory says.
    pub(super) fn pick(&mut self, bound: usize) -> usize {
        if bound <= 1 {
            return 0;
        }
        let picked = match &mut self.choice {
            Choice::Fresh => 0,
            Choice::Random(schedule) => schedule.pick(points::LOOKUP, bound as u64) as usize,
            Choice::Replay { answers, at } => {
                if *at == answers.len() {
                    answers.push((0, bound));
                }
                *at += 1;
                answers[*at - 1].0
            }
        };
        self.stale |= picked != 0;
        picked
    }

    /// The next sequence of answers after a replay, if there is one.
    pub(super) fn next(self) -> Option<Vec<(usize, usize)>> {
        let Choice::Replay { mut answers, at } = self.choice else { return None };
        answers.truncate(at);
        while let Some((answer, bound)) = answers.pop() {
            if answer + 1 < bound {
                answers.push((answer + 1, bound));
                return Some(answers);
            }
        }
        None
    }
}

/// Event numbers (IHI 0070, 7.3).
pub mod code {
    /// StreamID out of range or unreachable.
    pub const C_BAD_STREAMID: u8 = 0x02;
    /// External abort on an STE fetch.
    pub const F_STE_FETCH: u8 = 0x03;
    /// STE invalid or illegal.
    pub const C_BAD_STE: u8 = 0x04;
    /// Translation request where ATS is not enabled.
    pub const F_BAD_ATS_TREQ: u8 = 0x05;
    /// The stream takes no transactions of this kind (S1DSS).
    pub const F_STREAM_DISABLED: u8 = 0x06;
    /// Translated transaction where they are not allowed.
    pub const F_TRANSL_FORBIDDEN: u8 = 0x07;
    /// SubstreamID where none is allowed, or out of range.
    pub const C_BAD_SUBSTREAMID: u8 = 0x08;
    /// External abort on a CD fetch.
    pub const F_CD_FETCH: u8 = 0x09;
    /// CD invalid or illegal.
    pub const C_BAD_CD: u8 = 0x0a;
    /// External abort on a translation table access.
    pub const F_WALK_EABT: u8 = 0x0b;
    /// No translation.
    pub const F_TRANSLATION: u8 = 0x10;
    /// Address out of the configured size.
    pub const F_ADDR_SIZE: u8 = 0x11;
    /// Access flag not set.
    pub const F_ACCESS: u8 = 0x12;
    /// Permission denied.
    pub const F_PERMISSION: u8 = 0x13;
}

/// CLASS of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Cd = 0,
    Table = 1,
    Input = 2,
}

/// What the configuration says to do about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Report {
    Record,
    Silent,
    Stall,
}

impl Report {
    pub(super) const fn new(stall: bool, record: bool) -> Self {
        match (stall, record) {
            (true, _) => Self::Stall,
            (false, true) => Self::Record,
            (false, false) => Self::Silent,
        }
    }

    pub(super) const fn stage2(stage: &Stage2) -> Self {
        Self::new(stage.stall, stage.record)
    }
}

/// Why a transaction does not go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) code: u8,
    pub(super) report: Report,
    pub(super) stage2: bool,
    pub(super) class: Class,
    pub(super) ipa: u64,
    pub(super) fetch: u64,
    /// The access to a stage-1 descriptor that stage 2 denied was a read.
    pub(super) table_read: bool,
}

impl Fault {
    pub(super) const fn config(code: u8) -> Self {
        Self {
            code,
            report: Report::Record,
            stage2: false,
            class: Class::Cd,
            ipa: 0,
            fetch: 0,
            table_read: true,
        }
    }

    pub(super) const fn fetch(code: u8, address: u64) -> Self {
        Self { fetch: address, ..Self::config(code) }
    }

    pub(super) const fn stage1(code: u8, report: Report) -> Self {
        Self { report, class: Class::Input, ..Self::config(code) }
    }

    pub(super) const fn stage2(code: u8, report: Report, class: Class, ipa: u64) -> Self {
        Self { report, stage2: true, class, ipa, ..Self::config(code) }
    }

    pub(super) const fn walk_abort(stage2: bool, class: Class, address: u64) -> Self {
        Self { stage2, class, ..Self::fetch(code::F_WALK_EABT, address) }
    }

    /// One of the four that can stall and that R and S govern.
    pub(super) const fn is_translation(&self) -> bool {
        matches!(self.code, code::F_TRANSLATION | code::F_ADDR_SIZE | code::F_ACCESS | code::F_PERMISSION)
    }

    /// The event record, all but STALL and STAG.
    pub(super) fn record(&self, request: &Request, attributes: Attributes) -> [u64; 4] {
        let sid = u64::from(request.requester) << 32;
        let code = u64::from(self.code);
        let substream = match request.pasid {
            Some(pasid) => 1 << 11 | u64::from(pasid & 0xf_ffff) << 12,
            None => 0,
        };
        let rnw = u64::from(request.access != Access::Write) << 35;
        match self.code {
            code::C_BAD_STREAMID | code::C_BAD_STE | code::C_BAD_CD => [code | substream | sid, 0, 0, 0],
            code::C_BAD_SUBSTREAMID => [code | substream & !(1 << 11) | sid, 0, 0, 0],
            code::F_STREAM_DISABLED => [code | sid, 0, 0, 0],
            code::F_TRANSL_FORBIDDEN => [code | sid, rnw, request.address, 0],
            code::F_BAD_ATS_TREQ => [code | substream | sid, rnw, request.address, 0],
            code::F_STE_FETCH | code::F_CD_FETCH => [code | substream | sid, 0, 0, self.fetch & FETCH],
            _ => {
                let kind = u64::from(attributes.supervisor) << 33 | u64::from(attributes.instruction) << 34;
                let stage = u64::from(self.stage2) << 39 | (self.class as u64) << 40;
                let table = if self.class as u8 == Class::Table as u8 && self.code == code::F_PERMISSION {
                    u64::from(self.table_read) << 44
                } else {
                    0
                };
                let last = if self.code == code::F_WALK_EABT {
                    self.fetch & FETCH
                } else if self.stage2 {
                    self.ipa & IPA
                } else {
                    0
                };
                [code | substream | sid, rnw | kind | stage | table, request.address, last]
            }
        }
    }
}

const FETCH: u64 = 0x000f_ffff_ffff_fff8;
const IPA: u64 = 0x000f_ffff_ffff_f000;

/// Privilege and instruction attributes after the STE's overrides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) supervisor: bool,
    pub(super) instruction: bool,
}

impl Attributes {
    pub(super) fn new(request: &Request, privcfg: u8, instcfg: u8, world: StreamWorld) -> Self {
        let supervisor = match privcfg {
            2 => false,
            3 => true,
            _ => request.privilege == Privilege::Supervisor,
        };
        let instruction = match (request.access, instcfg) {
            (Access::Write, _) | (_, 2) => false,
            (_, 3) => true,
            (access, _) => access == Access::Execute,
        };
        Self { supervisor: supervisor || world == StreamWorld::El2, instruction }
    }
}
