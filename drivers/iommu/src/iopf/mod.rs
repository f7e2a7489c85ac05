//! I/O page faults: requests for pages are queued, grouped, resolved and answered.
//!
//! | step | where | bounded by |
//! |---|---|---|
//! | read from the unit's queue | [`Iommu::handle_interrupt`](crate::Iommu::handle_interrupt) | [`PAGE_REQUEST_CAPACITY`] requests for each device |
//! | grouped | [`Iommu::handle_page_faults`](crate::Iommu::handle_page_faults), a thread on any CPU | 128 requests of incomplete groups for each device |
//! | resolved | [`PageFaultHandler`], without a lock held | 256 groups for each device that handlers have not answered |
//! | answered | one submission for each turn of a device, or by the handler later | |
//!
//! Each device has a queue of its own, in memory set aside when it is [enabled](crate::Iommu::enable), and devices take
//! turns: one that floods its queue is refused itself and delays others by one turn at most.
//!
//! # One answer
//!
//! From the moment at which a request is taken from the queue, the answer to its group is *owed* and has a number.
//! Whoever answers takes the number away: the handler, at once or later from whatever thread; the drop of its
//! [`FaultGroup`]; or a teardown that takes the group back. Whoever comes second finds nothing. A teardown returns when
//! all is answered and no answer is on its way to the hardware any more, so that a PASID is not used again before.
//!
//! A request without room is refused, and that needs no room: the refusals have a place for every group index and for
//! every transaction that the unit can hold, and are given also while handlers owe so many answers that they are asked no more.

mod groups;
mod incoming;
mod queue;
mod refused;
mod serve;

pub use incoming::PAGE_REQUEST_CAPACITY;
pub(crate) use incoming::Whose;
pub(crate) use queue::PageQueue;
pub(crate) use serve::Strays;
pub use serve::{PageFaultError, PageFaultWork};

use crate::{DeviceId, PageRequest, PageResponse};
use alloc::vec::Vec;
use bitflags::bitflags;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use portcullis_hal::{Arc, Pasid};

bitflags! {
    /// What page requests may ask for, besides reads and writes with a process's rights.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct PageRights: u8 {
        /// Instruction fetches.
        const EXECUTE = 1;
        /// Accesses with the kernel's rights.
        const SUPERVISOR = 2;
    }
}

/// What a handler made of a group.
#[derive(Debug)]
#[must_use]
pub enum Handled {
    /// This is the answer. Answers of several groups go to the hardware together.
    Now(FaultGroup, PageResponse),
    /// The handler has the group still, and answers it later.
    Later,
}

/// Who resolves the page faults of a device's PASID.
///
/// Called by [`Iommu::handle_page_faults`](crate::Iommu::handle_page_faults): in thread context, on any CPU, several times at
/// once, and without a lock of the stack held. It may wait, and keeps others from their turn as long. The
/// [guide](crate::guide#page-faults) has an example.
pub trait PageFaultHandler: Send + Sync {
    /// Resolves the faults of a group.
    fn handle(&self, group: FaultGroup) -> Handled;
}

/// Requests for pages that want one answer. It is given once: by [`answer`](Self::answer), or, when the group is
/// dropped, with [`PageResponse::Invalid`]. If the PASID was torn down meanwhile, the device has its answer already.
#[must_use]
pub struct FaultGroup {
    queue: Arc<PageQueue>,
    /// The number of the answer; `None` when it is given.
    owed: Option<u64>,
    device: DeviceId,
    first: PageRequest,
    more: Vec<PageRequest>,
}

impl FaultGroup {
    /// The device.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// The PASID of the requests, if they have one.
    pub fn pasid(&self) -> Option<Pasid> {
        self.first.pasid
    }

    /// The requests: at least one.
    pub fn requests(&self) -> impl Iterator<Item = &PageRequest> {
        self.more.iter().chain(core::iter::once(&self.first))
    }

    /// Gives the answer, from any thread. Waits for the unit as any submission of commands does.
    pub fn answer(mut self, response: PageResponse) {
        if let Some(id) = self.owed.take() {
            self.queue.answer(&[(id, response)]);
        }
    }

    /// Leaves the answer to one who answers several groups of `queue` together.
    fn answer_with(mut self, queue: &Arc<PageQueue>, response: PageResponse) -> Option<(u64, PageResponse)> {
        if !Arc::ptr_eq(&self.queue, queue) {
            // A handler that waited for another device's group returned that one.
            self.answer(response);
            return None;
        }
        self.owed.take().map(|id| (id, response))
    }
}

impl Drop for FaultGroup {
    fn drop(&mut self) {
        if let Some(id) = self.owed.take() {
            self.queue.answer(&[(id, PageResponse::Invalid)]);
        }
    }
}

impl fmt::Debug for FaultGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultGroup")
            .field("device", &self.device)
            .field("last", &self.first)
            .field("before", &self.more)
            .finish_non_exhaustive()
    }
}

/// Why nobody was asked to resolve a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Refusal {
    /// No handler for the PASID.
    Unknown,
    /// Instruction fetches or accesses with the kernel's rights are not allowed.
    Rights,
    /// Nothing is asked for, or the PASIDs of a group differ.
    Malformed,
}

impl Refusal {
    pub(crate) fn complaint(self) -> &'static str {
        match self {
            Self::Unknown => "a page request with a PASID that nobody handles was refused",
            Self::Rights => "a page request for more than the handler allows was refused",
            Self::Malformed => "a malformed page request was refused",
        }
    }
}

/// Counters of a device's page requests, since they were first enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PageFaultStats {
    /// Requests taken from the hardware, stalls and stop markers too.
    pub requests: u64,
    /// Groups and stalled transactions given to handlers.
    pub groups: u64,
    /// Answers given to the hardware, whatever they were.
    pub answers: u64,
    /// Answers that are owed now, by handlers that took their time.
    pub owed: u64,
    /// Refused since there is no handler for the PASID.
    pub unknown: u64,
    /// Refused since they asked for more than is allowed.
    pub rights: u64,
    /// Refused since they ask for nothing, or the PASIDs of a group differ.
    pub malformed: u64,
    /// Requests that found the queue full. Those that end a group, and stalls, were refused.
    pub flooded: u64,
    /// Requests of groups that never became complete, or for which there was no room.
    pub dropped: u64,
    /// Answers that the hardware did not take, since it is out of order.
    pub undelivered: u64,
}

#[derive(Default)]
pub(crate) struct Counts {
    requests: AtomicU64,
    groups: AtomicU64,
    answers: AtomicU64,
    unknown: AtomicU64,
    rights: AtomicU64,
    malformed: AtomicU64,
    flooded: AtomicU64,
    dropped: AtomicU64,
    undelivered: AtomicU64,
}

impl Counts {
    fn add(counter: &AtomicU64, count: usize) {
        if count > 0 {
            counter.fetch_add(count as u64, Ordering::Relaxed);
        }
    }

    fn dropped(&self, count: usize) {
        Self::add(&self.dropped, count);
    }

    fn refused(&self, refusal: Refusal) {
        let counter = match refusal {
            Refusal::Unknown => &self.unknown,
            Refusal::Rights => &self.rights,
            Refusal::Malformed => &self.malformed,
        };
        Self::add(counter, 1);
    }

    fn read(&self, owed: usize) -> PageFaultStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PageFaultStats {
            requests: read(&self.requests),
            groups: read(&self.groups),
            answers: read(&self.answers),
            owed: owed as u64,
            unknown: read(&self.unknown),
            rights: read(&self.rights),
            malformed: read(&self.malformed),
            flooded: read(&self.flooded),
            dropped: read(&self.dropped),
            undelivered: read(&self.undelivered),
        }
    }
}
