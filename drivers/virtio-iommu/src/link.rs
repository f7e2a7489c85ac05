//! The driver's end of the device: submission, completion and bounded waits.
//!
//! No lock is held across a wait, nor across a notification.

use crate::events::EventQueue;
use crate::requests::{BatchId, Collected, Ledger, Owner, Priority, Refusal, Request, RequestQueue};
use crate::spec::{DeviceStatus, Features, HostDomain};
use crate::transport::{QueueIndex, Transport};
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use portcullis_hal::{Arc, Hal, IovaRange, SyncError, wait};
use portcullis_iommu::IdPool;
use spin::Mutex;
use thiserror::Error;

/// What the configuration allows, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) features: Features,
    pub(crate) page_sizes: u64,
    /// The addresses that can be mapped, in whole pages.
    pub(crate) aperture: IovaRange,
    /// The domain that stays empty.
    pub(crate) blocked: HostDomain,
    /// The bytes of an endpoint's properties, where it can be asked for them.
    pub(crate) probe_size: Option<u32>,
    /// The domain that passes everything through, where that is offered.
    pub(crate) identity: Option<HostDomain>,
}

impl Limits {
    /// The smallest page, in bytes.
    pub(crate) fn granule(&self) -> u64 {
        1 << self.page_sizes.trailing_zeros().min(63)
    }
}

/// Why a request did not do what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum RequestError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Sync(#[from] SyncError),
}

/// Counters.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) domains: AtomicU64,
    pub(crate) attaches: AtomicU64,
    pub(crate) faults: AtomicU64,
    pub(crate) malformed: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) notifications: AtomicU64,
}

impl Counters {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A device that was told that there is a driver. Unless it gets running, it is told at the end that the driver gave
/// up (2.1.1).
pub(crate) struct Claimed<T: Transport> {
    transport: T,
    fails: bool,
}

impl<T: Transport> Claimed<T> {
    pub(crate) fn new(transport: T) -> Self {
        Self { transport, fails: true }
    }

    /// The device is reset in the end by whoever has it.
    fn running(mut self) -> Self {
        self.fails = false;
        self
    }
}

impl<T: Transport> Deref for Claimed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.transport
    }
}

impl<T: Transport> Drop for Claimed<T> {
    fn drop(&mut self) {
        if self.fails {
            self.transport.set_status(self.transport.status() | DeviceStatus::FAILED);
        }
    }
}

/// One device, shared by its unit and its domains.
pub(crate) struct Link<H: Hal, T: Transport> {
    pub(crate) hal: H,
    pub(crate) transport: Claimed<T>,
    pub(crate) limits: Limits,
    pub(crate) timeout_ns: u64,
    pub(crate) requests: Mutex<RequestQueue<H>>,
    pub(crate) events: Mutex<EventQueue<H>>,
    pub(crate) ids: Mutex<IdPool>,
    pub(crate) counters: Counters,
    faulted: AtomicBool,
    failure_told: AtomicBool,
}

impl<H: Hal, T: Transport> Link<H, T> {
    pub(crate) fn new(
        hal: H,
        transport: Claimed<T>,
        limits: Limits,
        timeout_ns: u64,
        (requests, events): (RequestQueue<H>, EventQueue<H>),
        ids: IdPool,
    ) -> Self {
        Self {
            hal,
            transport: transport.running(),
            limits,
            timeout_ns,
            requests: Mutex::new(requests),
            events: Mutex::new(events),
            ids: Mutex::new(ids),
            counters: Counters::default(),
            faulted: AtomicBool::new(false),
            failure_told: AtomicBool::new(false),
        }
    }

    /// Whether the device failed to answer, or lied about its rings; it takes only blocking any more.
    pub(crate) fn is_faulted(&self) -> bool {
        self.faulted.load(Ordering::Acquire)
    }

    pub(crate) fn set_faulted(&self) {
        self.faulted.store(true, Ordering::Release);
    }

    /// Whether nobody has been told yet that the device failed by itself.
    pub(crate) fn first_failure(&self) -> bool {
        !self.failure_told.swap(true, Ordering::AcqRel)
    }

    /// Runs `section` on the request queue.
    pub(crate) fn queue<R>(&self, section: impl FnOnce(&mut RequestQueue<H>) -> R) -> R {
        self.hal.critical(|| section(&mut self.requests.lock()))
    }

    fn notify(&self) {
        Counters::count(&self.counters.notifications);
        self.transport.notify(QueueIndex::Requests);
    }

    /// Waits until `done` says so, looking at the queue after all answers so far were taken.
    pub(crate) fn wait(
        &self,
        what: &'static str,
        mut done: impl FnMut(&mut RequestQueue<H>) -> bool,
    ) -> Result<(), SyncError> {
        let mut ended = false;
        let mut look = || {
            let (left, notify) = self.queue(|queue| {
                // Others may have queued without a notification what this wait is for.
                let notify = queue.publish();
                queue.poll();
                ended = queue.is_broken() || done(queue);
                (queue.in_flight().max(1), notify)
            });
            if notify {
                self.notify();
            }
            if ended { 0 } else { u64::from(left) }
        };
        match wait::until(&self.hal, what, u64::MAX, 0, self.timeout_ns, &mut look) {
            Err(timeout) => {
                self.set_faulted();
                log::error!("virtio-iommu: no answer: {timeout}");
                Err(timeout.into())
            }
            Ok(_) if self.queue(|queue| queue.is_broken()) => {
                self.set_faulted();
                Err(SyncError::Faulted)
            }
            Ok(_) => Ok(()),
        }
    }

    /// Refuses everything but blocking once the device is out of order.
    fn admit(&self, priority: Priority) -> Result<(), SyncError> {
        if priority == Priority::Normal && self.is_faulted() {
            return Err(SyncError::Faulted);
        }
        Ok(())
    }

    /// Queues one unmap without a notification, if there is room now. Returns its sequence number.
    pub(crate) fn try_unmap(&self, request: &Request, ledger: &Arc<Ledger>) -> Option<u64> {
        let sequence = self.queue(|queue| {
            let owner = Owner::Ledger(ledger.clone());
            queue.submit(request, &owner, Priority::Normal).or_else(|| {
                queue.poll();
                queue.submit(request, &owner, Priority::Normal)
            })
        });
        if sequence.is_some() {
            Counters::count(&self.counters.requests);
        }
        sequence
    }

    /// Waits until a request would find room.
    pub(crate) fn wait_for_room(&self) -> Result<(), SyncError> {
        self.admit(Priority::Normal)?;
        self.wait("free request slots", RequestQueue::has_room)
    }

    /// Waits until the device has answered all requests for `domain` up to the one with this sequence number.
    pub(crate) fn drain(&self, domain: HostDomain, sequence: u64) -> Result<(), SyncError> {
        Counters::count(&self.counters.syncs);
        self.wait("requests of the domain", |queue| !queue.domain_in_flight(domain, sequence))
    }

    /// Starts a group of requests.
    pub(crate) fn batch(&self, priority: Priority) -> Batch<'_, H, T> {
        Batch { link: self, id: self.queue(RequestQueue::new_batch), priority, outstanding: 0, refusal: None }
    }

    /// Makes one request and waits for its answer.
    pub(crate) fn call(&self, request: &Request, priority: Priority) -> Result<(), RequestError> {
        let mut batch = self.batch(priority);
        batch.push(request)?;
        batch.finish()
    }
}

/// Requests whose answers the caller waits for together.
pub(crate) struct Batch<'a, H: Hal, T: Transport> {
    link: &'a Link<H, T>,
    id: BatchId,
    priority: Priority,
    outstanding: u32,
    refusal: Option<Refusal>,
}

impl<H: Hal, T: Transport> Batch<'_, H, T> {
    /// Queues a request; waits only for room, or for an unmap in flight that touches what is to be mapped.
    pub(crate) fn push(&mut self, request: &Request) -> Result<(), SyncError> {
        self.link.admit(self.priority)?;
        let mut submitted = self.link.queue(|queue| self.attempt(queue, request));
        if !submitted {
            let link = self.link;
            link.wait("free request slots", |queue| {
                submitted = self.attempt(queue, request);
                submitted
            })?;
        }
        self.outstanding += 1;
        Counters::count(&self.link.counters.requests);
        Ok(())
    }

    fn attempt(&mut self, queue: &mut RequestQueue<H>, request: &Request) -> bool {
        if self.outstanding > 0 && !queue.has_room() {
            self.collect(queue);
        }
        // The device may take requests in any order: a map must not overtake an unmap of the same addresses.
        let overtakes = match request {
            Request::Map { domain, range, .. } => queue.unmaps_in_flight(*domain, range),
            _ => false,
        };
        !overtakes && queue.submit(request, &Owner::Batch(self.id), self.priority).is_some()
    }

    fn collect(&mut self, queue: &mut RequestQueue<H>) {
        let Collected { answers, refusal } = queue.collect(self.id);
        self.outstanding = self.outstanding.saturating_sub(answers);
        self.refusal = self.refusal.or(refusal);
    }

    /// Notifies the device and waits for all answers. With several refusals it returns the first that was found.
    pub(crate) fn finish(mut self) -> Result<(), RequestError> {
        let link = self.link;
        if self.outstanding > 0 {
            link.wait("requests", |queue| {
                self.collect(queue);
                self.outstanding == 0
            })?;
        }
        match self.refusal {
            Some(refusal) => Err(refusal.into()),
            None => Ok(()),
        }
    }
}

impl<H: Hal, T: Transport> Drop for Batch<'_, H, T> {
    fn drop(&mut self) {
        if self.outstanding > 0 {
            self.link.queue(|queue| queue.abandon(self.id));
        }
    }
}

impl<H: Hal, T: Transport> Drop for Link<H, T> {
    /// Resets the device; only then the rings are free. Its endpoints stay blocked, since bypass is off.
    fn drop(&mut self) {
        if reset(&self.hal, &*self.transport, self.timeout_ns).is_err() {
            self.requests.get_mut().leak();
            self.events.get_mut().leak();
        }
    }
}

/// Resets the device and waits until it says that it is done (4.1.4.3.2).
pub(crate) fn reset<H: Hal, T: Transport>(
    hal: &H,
    transport: &T,
    timeout_ns: u64,
) -> Result<(), wait::Timeout> {
    transport.set_status(DeviceStatus::empty());
    let read = || u64::from(transport.status().bits());
    wait::until(hal, "device_status", 0xff, 0, timeout_ns, read).map(drop)
}
