//! The request queue: fixed slots, many requests in flight, answers in any order.
//!
//! Slot `n` owns the descriptors `2n` (what the device reads) and `2n + 1` (the tail it writes) and 64 bytes of
//! buffer, all filled in once. A slot is reused only after its answer came, however late.
//!
//! The device may take requests in any order (5.13.6.1), so none is queued while one that concerns the same addresses
//! is with the device.

use crate::flight::Flight;
use crate::owners::{BatchId, Batches, Ledger, Owner, Refusal};
use crate::probe::{ProbeBuffer, ProbeError};
use crate::request::Request;
use crate::ring::{Direction, Held, Ring, RingSize, UsedInterrupts};
use crate::spec::{HostDomain, REQUEST_BYTES, Status, TAIL_BYTES};
use crate::transport::QueueLayout;
use alloc::vec::Vec;
use portcullis_hal::{EndpointId, Hal, OutOfMemory, list};
use portcullis_iommu::ReservedRegion;

/// The bytes of a slot's buffer; the tail lies behind the longest request.
const SLOT_BYTES: usize = 64;
const TAIL_AT: usize = 40;
const _: () = assert!(REQUEST_BYTES <= TAIL_AT && TAIL_AT + TAIL_BYTES <= SLOT_BYTES);

/// Who may take the last slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    Normal,
    /// Requests that take a device's access away; one slot is kept for them.
    Blocking,
}

/// Where a request and its answer lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Buffer {
    /// In the slot's own part of the buffers.
    Own,
    /// In the buffer of PROBE requests.
    Probe,
}

/// A request that is with the device.
#[derive(Debug)]
struct Sent {
    owner: Owner,
    /// How many requests the owner's ledger had queued with it.
    number: u64,
    buffer: Buffer,
    request: Option<Request>,
}

/// The request queue.
#[derive(Debug)]
pub(crate) struct RequestQueue<H: Hal> {
    ring: Ring<H>,
    buffers: Held<H>,
    /// There if the device takes PROBE requests.
    probe: Option<ProbeBuffer<H>>,
    /// `None` while it is free.
    slots: Vec<Option<Sent>>,
    free: Vec<u16>,
    batches: Batches,
    flight: Flight,
    in_flight: u16,
    broken: bool,
    /// Answers to requests that were never made.
    strays: u64,
}

impl<H: Hal> RequestQueue<H> {
    /// The fewest descriptors that make a queue: a slot for everybody and the one for blocking.
    pub(crate) const LEAST: u16 = 4;

    /// `probe_size` is the bytes of properties that the device writes, if it takes PROBE requests.
    pub(crate) fn new(hal: &H, size: RingSize, probe_size: Option<u32>) -> Result<Self, OutOfMemory> {
        let count = size.get() / 2;
        let ring = Ring::new(hal, size, UsedInterrupts::Unwanted)?;
        let buffers = Held::zeroed(hal, usize::from(count) * SLOT_BYTES)?;
        let probe = probe_size.map(|size| ProbeBuffer::new(hal, size)).transpose()?;
        let mut slots = Vec::new();
        let mut free = Vec::new();
        slots.try_reserve_exact(count.into()).map_err(|_| OutOfMemory)?;
        free.try_reserve_exact(count.into()).map_err(|_| OutOfMemory)?;
        for index in 0..count {
            list::push(&mut slots, None)?;
            list::push(&mut free, count - 1 - index)?;
            describe_tail(&ring, &buffers, index);
        }
        Ok(Self {
            ring,
            buffers,
            probe,
            slots,
            free,
            batches: Batches::new(count)?,
            flight: Flight::default(),
            in_flight: 0,
            broken: false,
            strays: 0,
        })
    }

    pub(crate) fn layout(&self) -> QueueLayout {
        self.ring.layout()
    }

    /// The device has lied about the ring; nothing that it says is believed any more.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    pub(crate) fn strays(&self) -> u64 {
        self.strays
    }

    pub(crate) fn in_flight(&self) -> u16 {
        self.in_flight
    }

    pub(crate) fn batches(&mut self) -> &mut Batches {
        &mut self.batches
    }

    /// Whether there is a slot, and nothing with the device that `request` must not overtake.
    pub(crate) fn admits(&self, request: &Request, priority: Priority) -> bool {
        let kept = match priority {
            Priority::Normal => 1,
            Priority::Blocking => 0,
        };
        !self.broken && self.free.len() > kept && !self.overtakes(request)
    }

    /// Whether a request that concerns the same addresses is with the device.
    fn overtakes(&self, request: &Request) -> bool {
        let Some((change, range)) = request.changes() else {
            return false;
        };
        self.flight.may_touch(change.opposite(), &range)
            && self.slots.iter().flatten().filter_map(|sent| sent.request).any(|other| {
                other.domain() == request.domain()
                    && other.changes().is_some_and(|(kind, other)| kind != change && other.overlaps(&range))
            })
    }

    /// Queues a request. Returns its number in the owner's ledger, 0 if it has none, or `None` if it has to wait.
    pub(crate) fn submit(&mut self, request: &Request, owner: &Owner, priority: Priority) -> Option<u64> {
        if !self.admits(request, priority) {
            return None;
        }
        let index = self.free.pop()?;
        let slot = self.slots.get_mut(usize::from(index))?;
        let number = self.batches.queued(owner);
        *slot = Some(Sent { owner: owner.clone(), number, buffer: Buffer::Own, request: Some(*request) });
        if let Some((change, range)) = request.changes() {
            self.flight.add(change, &range);
        }
        let at = usize::from(index) * SLOT_BYTES;
        let (words, len) = request.words();
        self.buffers.write_words(at, &words);
        // No status of the specification, so that one that was not written is not taken for OK.
        self.buffers.write_words(at + TAIL_AT, &[u64::MAX]);
        self.ring.describe(2 * index, self.buffers.phys(at), len, Direction::DeviceReadsThenNext);
        self.ring.push(2 * index);
        self.in_flight += 1;
        Some(number)
    }

    /// Whether the device takes PROBE requests.
    pub(crate) fn can_probe(&self) -> bool {
        self.probe.is_some()
    }

    /// Queues a PROBE request; returns whether there was a slot, and no other such request.
    pub(crate) fn submit_probe(&mut self, endpoint: EndpointId, batch: BatchId) -> bool {
        let Some(probe) = &self.probe else {
            return false;
        };
        let busy = self.slots.iter().flatten().any(|sent| sent.buffer == Buffer::Probe);
        if self.broken || self.free.len() <= 1 || busy {
            return false;
        }
        let Some(index) = self.free.pop() else {
            return false;
        };
        let owner = Owner::Batch(batch);
        let number = self.batches.queued(&owner);
        if let Some(slot) = self.slots.get_mut(usize::from(index)) {
            *slot = Some(Sent { owner, number, buffer: Buffer::Probe, request: None });
        }
        probe.fill(endpoint);
        let ((request, len), (answer, room)) = (probe.request(), probe.answer());
        self.ring.describe(2 * index, request, len, Direction::DeviceReadsThenNext);
        self.ring.describe(2 * index + 1, answer, room, Direction::DeviceWrites);
        self.ring.push(2 * index);
        self.in_flight += 1;
        true
    }

    /// What the last answer to a PROBE request says.
    pub(crate) fn probed(&self) -> Result<Vec<ReservedRegion>, ProbeError> {
        self.probe.as_ref().map_or(Ok(Vec::new()), ProbeBuffer::regions)
    }

    /// Shows the device what was queued; returns whether it is to be notified.
    pub(crate) fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// Takes the answers that have come.
    pub(crate) fn poll(&mut self) {
        while !self.broken {
            match self.ring.pop(self.in_flight) {
                Ok(Some(used)) => self.complete(used.head, used.len),
                Ok(None) => return,
                Err(lie) => {
                    log::error!("virtio-iommu: request queue: {lie}");
                    self.broken = true;
                }
            }
        }
    }

    fn complete(&mut self, head: u32, len: u32) {
        let index = (head / 2) as u16;
        let slot = self.slots.get_mut(usize::from(index)).filter(|_| u32::from(index) * 2 == head);
        let Some(sent) = slot.and_then(Option::take) else {
            self.strays += 1;
            return;
        };
        let (status, least) = match (sent.buffer, &self.probe) {
            (Buffer::Probe, Some(probe)) => {
                describe_tail(&self.ring, &self.buffers, index);
                (probe.status(), probe.answer().1)
            }
            _ => {
                let status = self.buffers.read_byte(usize::from(index) * SLOT_BYTES + TAIL_AT);
                (Status(status), TAIL_BYTES as u32)
            }
        };
        let answer = match (len >= least, status) {
            (false, _) => Err(Refusal::Short(len)),
            (true, Status::OK) => Ok(()),
            (true, status) => Err(Refusal::Status(status)),
        };
        self.in_flight = self.in_flight.saturating_sub(1);
        let change = sent.request.and_then(|request| request.changes()).map(|(change, _)| change);
        if let Some(change) = change {
            self.flight.remove(change);
        }
        if let (Err(refusal), Owner::Ledger(_), Some(request)) = (&answer, &sent.owner, &sent.request) {
            log::error!("virtio-iommu: {request:?} refused: {refusal}");
        }
        self.batches.answered(&sent.owner, change, answer);
        // There is room for every slot.
        let _ = list::push_reserved(&mut self.free, index);
    }

    /// Whether a request of `ledger`, up to the one with this number, is with the device.
    pub(crate) fn is_waited_for(&self, ledger: &Ledger, number: u64) -> bool {
        match ledger.progress() {
            (queued, answered) if queued == answered => false,
            // Some of those asked for are certainly missing, whatever the order.
            (_, answered) if answered < number => true,
            _ => self.slots.iter().flatten().any(|sent| sent.owner.is(ledger) && sent.number <= number),
        }
    }

    /// Whether a request for addresses of `domain` is with the device.
    pub(crate) fn is_busy(&self, domain: HostDomain) -> bool {
        self.slots.iter().flatten().any(|sent| sent.request.is_some_and(|request| request.domain() == domain))
    }

    /// Gives the memory up for good.
    pub(crate) fn leak(&mut self) {
        self.ring.leak();
        self.buffers.leak();
        if let Some(probe) = &mut self.probe {
            probe.leak();
        }
    }
}

/// Has a slot's second descriptor show the tail in its own buffer.
fn describe_tail<H: Hal>(ring: &Ring<H>, buffers: &Held<H>, index: u16) {
    let tail = buffers.phys(usize::from(index) * SLOT_BYTES + TAIL_AT);
    ring.describe(2 * index + 1, tail, TAIL_BYTES as u32, Direction::DeviceWrites);
}
