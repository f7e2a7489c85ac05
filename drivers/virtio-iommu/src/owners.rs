//! Who wants the answers to requests, and what they say so far.

use crate::request::Change;
use crate::spec::Status;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use portcullis_hal::{Arc, OutOfMemory, list};
use thiserror::Error;

/// The device answered, and the answer is not OK.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum Refusal {
    /// A status of the specification, or one that it does not have.
    #[error("status {} ({:#x})", .0.name(), .0.0)]
    Status(Status),
    /// The device wrote less than a status.
    #[error("an answer of {0} bytes")]
    Short(u32),
}

/// What became of the requests of a domain that nobody waits for one by one. Changed only under the lock of the
/// request queue, but for [`fail`](Self::fail).
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    failed: AtomicBool,
    queued: AtomicU64,
    answered: AtomicU64,
    refused_maps: AtomicU64,
}

impl Ledger {
    /// Notes that the device may have kept what the driver believes unmapped.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// How many maps the device has refused.
    pub(crate) fn refused_maps(&self) -> u64 {
        self.refused_maps.load(Ordering::Acquire)
    }

    /// How many requests were queued, and how many of them are answered.
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.queued.load(Ordering::Relaxed), self.answered.load(Ordering::Relaxed))
    }
}

/// One more. There is one writer at a time.
fn increment(counter: &AtomicU64) -> u64 {
    let count = counter.load(Ordering::Relaxed).wrapping_add(1);
    counter.store(count, Ordering::Release);
    count
}

/// A group of requests whose submitter waits for all answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchId(u16);

/// Who wants an answer.
#[derive(Clone, Debug)]
pub(crate) enum Owner {
    Batch(BatchId),
    Ledger(Arc<Ledger>),
}

impl Owner {
    pub(crate) fn is(&self, ledger: &Ledger) -> bool {
        matches!(self, Self::Ledger(owner) if core::ptr::eq(&**owner, ledger))
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Use {
    #[default]
    Free,
    Open,
    /// Its submitter gave up waiting; it is free with the last answer.
    Abandoned,
}

/// The answers to a batch so far.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    state: Use,
    outstanding: u32,
    refusal: Option<Refusal>,
}

/// The batches: as many at a time as there are slots for requests.
#[derive(Debug)]
pub(crate) struct Batches {
    tallies: Vec<Tally>,
    free: Vec<u16>,
}

impl Batches {
    pub(crate) fn new(count: u16) -> Result<Self, OutOfMemory> {
        let (mut tallies, mut free) = (Vec::new(), Vec::new());
        tallies.try_reserve_exact(count.into()).map_err(|_| OutOfMemory)?;
        free.try_reserve_exact(count.into()).map_err(|_| OutOfMemory)?;
        for index in (0..count).rev() {
            list::push(&mut tallies, Tally::default())?;
            list::push(&mut free, index)?;
        }
        Ok(Self { tallies, free })
    }

    fn get(&mut self, BatchId(index): BatchId) -> Option<&mut Tally> {
        self.tallies.get_mut(usize::from(index))
    }

    /// Starts a batch, if more than `kept` are free.
    pub(crate) fn open(&mut self, kept: usize) -> Option<BatchId> {
        if self.free.len() <= kept {
            return None;
        }
        let id = BatchId(self.free.pop()?);
        *self.get(id)? = Tally { state: Use::Open, ..Tally::default() };
        Some(id)
    }

    /// How many answers a batch waits for, and the first refusal that came.
    pub(crate) fn so_far(&mut self, id: BatchId) -> (u32, Option<Refusal>) {
        self.get(id).map_or((0, None), |tally| (tally.outstanding, tally.refusal))
    }

    /// Ends a batch, now or with its last answer.
    pub(crate) fn close(&mut self, id: BatchId) {
        let Some(tally) = self.get(id) else {
            return;
        };
        if tally.outstanding > 0 {
            tally.state = Use::Abandoned;
            return;
        }
        if core::mem::take(tally).state != Use::Free {
            // There is room for every batch.
            let _ = list::push_reserved(&mut self.free, id.0);
        }
    }

    /// A request of `owner` is queued. Returns its number in the ledger, 0 without one.
    pub(crate) fn queued(&mut self, owner: &Owner) -> u64 {
        match owner {
            Owner::Ledger(ledger) => increment(&ledger.queued),
            Owner::Batch(id) => {
                if let Some(tally) = self.get(*id) {
                    tally.outstanding = tally.outstanding.saturating_add(1);
                }
                0
            }
        }
    }

    /// The answer to a request of `owner` has come.
    pub(crate) fn answered(&mut self, owner: &Owner, change: Option<Change>, answer: Result<(), Refusal>) {
        match owner {
            Owner::Ledger(ledger) => {
                match (answer, change) {
                    (Ok(()), _) => {}
                    (Err(_), Some(Change::Map)) => {
                        increment(&ledger.refused_maps);
                    }
                    (Err(_), _) => ledger.fail(),
                }
                increment(&ledger.answered);
            }
            Owner::Batch(id) => {
                let Some(tally) = self.get(*id) else {
                    return;
                };
                tally.outstanding = tally.outstanding.saturating_sub(1);
                tally.refusal = tally.refusal.or(answer.err());
                if tally.outstanding == 0 && tally.state == Use::Abandoned {
                    self.close(*id);
                }
            }
        }
    }
}
