//! All that changes in a unit.

use super::caches::{ConfigCache, Tlb};
use super::regs::Registers;
use crate::core::{Downstream, Mode, Request, Response};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A transaction held until software resumes it.
#[derive(Clone, Debug)]
pub(super) struct Stalled {
    pub(super) tag: u16,
    pub(super) request: Request,
    pub(super) mode: Mode,
    /// Its event is in the queue. Until then it is tried again whenever the queue takes events.
    pub(super) recorded: bool,
    /// The event, while it is on its way: it found no obstacle, and is not visible yet.
    pub(super) late: Option<[u64; 4]>,
    /// It was tried again early and went through; software has still to answer.
    pub(super) gone: bool,
    /// Not recorded since this one, for the same page, is; it is tried again when that one is answered.
    pub(super) behind: Option<u16>,
}

/// Transactions that an invalidation affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Invalidated {
    /// Those of some streams.
    Streams(u32, u32),
    /// Those of a stream with one SubstreamID, or without (0).
    Substream(u32, u32),
    /// Those of any stream.
    Any,
}

impl Invalidated {
    pub(super) fn affects(self, request: &Request) -> bool {
        match self {
            Self::Streams(first, last) => (first..=last).contains(&request.requester),
            Self::Substream(stream, substream) => {
                (request.requester, request.pasid.unwrap_or(0)) == (stream, substream)
            }
            Self::Any => true,
        }
    }
}

/// A page request group that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Group {
    pub(super) requester: u32,
    pub(super) group: u16,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) regs: Registers,
    pub(super) configs: ConfigCache,
    pub(super) tlb: Tlb,
    /// Commands between CONS and PROD as they were when PROD passed them, by position.
    pub(super) fetched: BTreeMap<u32, [u64; 2]>,
    /// Software said with [`super::Smmu::hang`] that the queue makes no progress.
    pub(super) hung: bool,
    /// Event records that are not in the queue yet.
    pub(super) late_events: VecDeque<[u64; 4]>,
    pub(super) stalled: Vec<Stalled>,
    /// What was invalidated since the last CMD_SYNC, for the events of stalls.
    pub(super) invalidated: Vec<Invalidated>,
    /// Answers to resumed transactions, until the test takes them.
    pub(super) resumed: Vec<(u32, u16, Response)>,
    /// Devices that confirm invalidations.
    pub(super) connected: BTreeSet<u32>,
    pub(super) outbox: BTreeMap<u32, VecDeque<Downstream>>,
    /// Invalidations sent and not confirmed: tag to device.
    pub(super) invalidations: BTreeMap<u32, u32>,
    pub(super) next_invalidation: u32,
    /// Page request groups recorded with their last request, with the PASID if there is one.
    pub(super) groups: BTreeMap<Group, Option<u32>>,
    /// Requests that the unit fetches ahead for.
    pub(super) watched: Vec<Request>,
    pub(super) seen_stes: BTreeMap<u32, ([u64; 8], &'static str)>,
    pub(super) seen_cds: BTreeMap<(u32, u32), ([u64; 8], &'static str)>,
}
