//! The driver's end of the device: submission, completion and bounded waits.
//!
//! No lock is held across a wait, nor across a notification.

use crate::events::EventQueue;
use crate::owners::{BatchId, Ledger, Owner, Refusal};
use crate::request::Request;
use crate::requests::{Priority, RequestQueue};
use crate::spec::{DeviceStatus, Features, HostDomain};
use crate::transport::{QueueIndex, Transport};
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use portcullis_hal::{Arc, Hal, IovaRange, SyncError, wait};
use portcullis_iommu::IdPool;
use spin::Mutex;
use thiserror::Error;

/// How many requests are queued before interrupts are let in.
const BURST: u64 = 32;

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

    /// Waits until `done` says so, looking at the queue after all answers so far were taken. Whatever is queued by then
    /// is sent first.
    ///
    /// A request that this is for may have been published by a thread that lost its processor before it notified. So
    /// the device is notified again when half of the time has passed without an answer.
    pub(crate) fn wait(
        &self,
        what: &'static str,
        mut done: impl FnMut(&mut RequestQueue<H>) -> bool,
    ) -> Result<(), SyncError> {
        let mut broken = false;
        let mut look = || {
            let (left, notify) = self.queue(|queue| {
                queue.poll();
                broken = queue.is_broken();
                if broken || done(queue) {
                    return (0, false);
                }
                // Others may have queued without a notification what this wait is for.
                (queue.in_flight().max(1), queue.publish())
            });
            if notify {
                self.notify();
            }
            u64::from(left)
        };
        let half = self.timeout_ns / 2;
        let waited = wait::until(&self.hal, what, u64::MAX, 0, half, &mut look).or_else(|_| {
            self.notify();
            wait::until(&self.hal, what, u64::MAX, 0, self.timeout_ns - half, &mut look)
        });
        match waited {
            Err(timeout) => {
                self.set_faulted();
                log::error!("virtio-iommu: no answer: {timeout}");
                Err(timeout.into())
            }
            Ok(_) if broken => {
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

    /// Queues one unmap without a notification, if that is possible now. Returns its number in the ledger.
    pub(crate) fn try_unmap(&self, request: &Request, ledger: &Arc<Ledger>) -> Option<u64> {
        let owner = Owner::Ledger(ledger.clone());
        let number = self.queue(|queue| {
            queue.submit(request, &owner, Priority::Normal).or_else(|| {
                queue.poll();
                queue.submit(request, &owner, Priority::Normal)
            })
        });
        if number.is_some() {
            Counters::count(&self.counters.requests);
        }
        number
    }

    /// Waits until `request` could be queued.
    pub(crate) fn wait_for_room(&self, request: &Request) -> Result<(), SyncError> {
        self.admit(Priority::Normal)?;
        self.wait("free request slots", |queue| queue.admits(request, Priority::Normal))
    }

    /// Queues all of `requests`, and sends them only if they do not find room, or concern addresses that others in
    /// flight concern. Returns the last one's number in the ledger.
    pub(crate) fn submit(
        &self,
        mut requests: impl Iterator<Item = Request>,
        owner: &Owner,
        priority: Priority,
    ) -> Result<u64, SyncError> {
        let (mut next, mut last) = (requests.next(), 0);
        while next.is_some() {
            self.admit(priority)?;
            let mut burst = |queue: &mut RequestQueue<H>| {
                let mut count = 0;
                while count < BURST
                    && let Some(request) = &next
                    && let Some(number) = queue.submit(request, owner, priority)
                {
                    (next, last) = (requests.next(), number);
                    count += 1;
                }
                count
            };
            let mut count = self.queue(&mut burst);
            if count == 0 {
                self.wait("free request slots", |queue| {
                    count = burst(queue);
                    count > 0
                })?;
            }
            self.counters.requests.fetch_add(count, Ordering::Relaxed);
        }
        Ok(last)
    }

    /// Waits until the device has answered all requests of `ledger` up to the one with this number.
    pub(crate) fn drain(&self, ledger: &Ledger, number: u64) -> Result<(), SyncError> {
        Counters::count(&self.counters.syncs);
        self.wait("requests of the domain", |queue| !queue.is_waited_for(ledger, number))
    }

    /// Waits until the device has answered all requests for `domain`.
    pub(crate) fn quiesce(&self, domain: HostDomain) -> Result<(), SyncError> {
        Counters::count(&self.counters.syncs);
        self.wait("requests of the domain", |queue| !queue.is_busy(domain))
    }

    /// Starts a group of requests.
    pub(crate) fn batch(&self, priority: Priority) -> Result<Batch<'_, H, T>, SyncError> {
        let kept = usize::from(priority == Priority::Normal);
        let mut id = self.queue(|queue| queue.batches().open(kept));
        if id.is_none() {
            self.admit(priority)?;
            self.wait("batches of requests", |queue| {
                id = queue.batches().open(kept);
                id.is_some()
            })?;
        }
        id.map(|id| Batch { link: self, id, priority }).ok_or(SyncError::Faulted)
    }

    /// Makes one request and waits for its answer.
    pub(crate) fn call(&self, request: &Request, priority: Priority) -> Result<(), RequestError> {
        let batch = self.batch(priority)?;
        batch.push(core::iter::once(*request))?;
        batch.finish()
    }
}

/// Requests whose answers the caller waits for together.
pub(crate) struct Batch<'a, H: Hal, T: Transport> {
    link: &'a Link<H, T>,
    id: BatchId,
    priority: Priority,
}

impl<H: Hal, T: Transport> Batch<'_, H, T> {
    pub(crate) fn id(&self) -> BatchId {
        self.id
    }

    /// Queues requests; waits only for room, or for others in flight that concern the same addresses.
    pub(crate) fn push(&self, requests: impl Iterator<Item = Request>) -> Result<(), SyncError> {
        self.link.submit(requests, &Owner::Batch(self.id), self.priority).map(drop)
    }

    /// Whether one of the answers so far is a refusal.
    pub(crate) fn is_refused(&self) -> bool {
        self.link.queue(|queue| queue.batches().so_far(self.id).1.is_some())
    }

    /// Sends what is queued and waits for all answers. With several refusals it returns the first that came.
    pub(crate) fn finish(self) -> Result<(), RequestError> {
        let mut refusal = None;
        self.link.wait("requests", |queue| {
            let (outstanding, refused) = queue.batches().so_far(self.id);
            refusal = refused;
            outstanding == 0
        })?;
        refusal.map_or(Ok(()), |refusal| Err(refusal.into()))
    }
}

impl<H: Hal, T: Transport> Drop for Batch<'_, H, T> {
    /// What is not answered yet is answered to nobody.
    fn drop(&mut self) {
        self.link.queue(|queue| queue.batches().close(self.id));
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
