//! The request queue: fixed slots, many requests in flight, answers in any order.
//!
//! Slot `n` owns the descriptors `2n` (what the device reads) and `2n + 1` (the tail it writes) and 64 bytes of
//! buffer, all filled in once. A slot is reused only after its answer came, however late.

use crate::probe::{ProbeBuffer, ProbeError};
use crate::ring::{Direction, Held, Ring, RingSize, UsedInterrupts};
use crate::spec::{self, HostDomain, REQUEST_BYTES, Status, TAIL_BYTES};
use crate::spec::{AttachFlags, Head, MapFlags, RequestType};
use crate::transport::QueueLayout;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use portcullis_hal::{Arc, EndpointId, Hal, IovaRange, OutOfMemory, PhysAddr, list};
use portcullis_iommu::ReservedRegion;
use thiserror::Error;
use zerocopy::IntoBytes;

/// The bytes of a slot's buffer; the tail lies behind the longest request.
const SLOT_BYTES: usize = 64;
const TAIL_AT: usize = 40;
const _: () = assert!(REQUEST_BYTES <= TAIL_AT && TAIL_AT + TAIL_BYTES <= SLOT_BYTES);

/// What the driver asks of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Attach { domain: HostDomain, endpoint: EndpointId, flags: AttachFlags },
    Detach { domain: HostDomain, endpoint: EndpointId },
    Map { domain: HostDomain, range: IovaRange, phys: PhysAddr, flags: MapFlags },
    Unmap { domain: HostDomain, range: IovaRange },
}

impl Request {
    /// Calls `write` with the bytes up to the tail.
    fn encode<R>(&self, write: impl FnOnce(&[u8]) -> R) -> R {
        match *self {
            Self::Attach { domain, endpoint, flags } => write(
                spec::Attach {
                    head: Head::new(RequestType::ATTACH),
                    domain: domain.0.into(),
                    endpoint: endpoint.get().into(),
                    flags: flags.bits().into(),
                    reserved: [0; 4],
                }
                .as_bytes(),
            ),
            Self::Detach { domain, endpoint } => write(
                spec::Detach {
                    head: Head::new(RequestType::DETACH),
                    domain: domain.0.into(),
                    endpoint: endpoint.get().into(),
                    reserved: [0; 8],
                }
                .as_bytes(),
            ),
            Self::Map { domain, range, phys, flags } => write(
                spec::Map {
                    head: Head::new(RequestType::MAP),
                    domain: domain.0.into(),
                    virt_start: range.start().get().into(),
                    virt_end: range.last().get().into(),
                    phys_start: phys.get().into(),
                    flags: flags.bits().into(),
                }
                .as_bytes(),
            ),
            Self::Unmap { domain, range } => write(
                spec::Unmap {
                    head: Head::new(RequestType::UNMAP),
                    domain: domain.0.into(),
                    virt_start: range.start().get().into(),
                    virt_end: range.last().get().into(),
                    reserved: [0; 4],
                }
                .as_bytes(),
            ),
        }
    }

    fn domain(&self) -> HostDomain {
        match *self {
            Self::Attach { domain, .. }
            | Self::Detach { domain, .. }
            | Self::Map { domain, .. }
            | Self::Unmap { domain, .. } => domain,
        }
    }

    fn unmaps(&self) -> Option<IovaRange> {
        match *self {
            Self::Unmap { range, .. } => Some(range),
            _ => None,
        }
    }
}

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

/// What became of the unmaps of a domain that nobody waits for one by one.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    failed: AtomicBool,
}

impl Ledger {
    /// Notes that the device may have kept what the driver believes unmapped.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}

/// A group of requests whose submitter collects the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchId(u64);

/// Who wants the answer.
#[derive(Clone, Debug)]
pub(crate) enum Owner {
    Batch(BatchId),
    Ledger(Arc<Ledger>),
    /// A batch that gave up waiting.
    Nobody,
}

/// Who may take the last slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    Normal,
    /// Requests that take a device's access away; one slot is kept for them.
    Blocking,
}

#[derive(Debug)]
enum State {
    Free,
    InFlight(Owner),
    Done(BatchId, Result<(), Refusal>),
}

/// Where a request and its answer lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Buffer {
    /// In the slot's own part of the buffers.
    Own,
    /// In the buffer of PROBE requests.
    Probe,
}

#[derive(Debug)]
struct Slot {
    state: State,
    buffer: Buffer,
    sequence: u64,
    domain: HostDomain,
    unmaps: Option<IovaRange>,
}

/// What a batch has collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Collected {
    pub(crate) answers: u32,
    pub(crate) refusal: Option<Refusal>,
}

/// The request queue.
#[derive(Debug)]
pub(crate) struct RequestQueue<H: Hal> {
    ring: Ring<H>,
    buffers: Held<H>,
    /// There if the device takes PROBE requests.
    probe: Option<ProbeBuffer<H>>,
    slots: Vec<Slot>,
    free: Vec<u16>,
    in_flight: u16,
    sequence: u64,
    batches: u64,
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
            let slot = Slot {
                state: State::Free,
                buffer: Buffer::Own,
                sequence: 0,
                domain: HostDomain(0),
                unmaps: None,
            };
            list::push(&mut slots, slot)?;
            list::push(&mut free, count - 1 - index)?;
            describe_tail(&ring, &buffers, index);
        }
        Ok(Self {
            ring,
            buffers,
            probe,
            slots,
            free,
            in_flight: 0,
            sequence: 0,
            batches: 0,
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

    /// Whether a request of normal priority finds a slot.
    pub(crate) fn has_room(&mut self) -> bool {
        self.free.len() > 1
    }

    pub(crate) fn in_flight(&self) -> u16 {
        self.in_flight
    }

    pub(crate) fn new_batch(&mut self) -> BatchId {
        self.batches += 1;
        BatchId(self.batches)
    }

    /// Queues a request and returns its sequence number, or `None` for want of a slot.
    pub(crate) fn submit(&mut self, request: &Request, owner: &Owner, priority: Priority) -> Option<u64> {
        let kept = match priority {
            Priority::Normal => 1,
            Priority::Blocking => 0,
        };
        if self.broken || self.free.len() <= kept {
            return None;
        }
        let index = self.free.pop()?;
        let slot = self.slots.get_mut(usize::from(index))?;
        let at = usize::from(index) * SLOT_BYTES;
        self.sequence += 1;
        *slot = Slot {
            state: State::InFlight(owner.clone()),
            buffer: Buffer::Own,
            sequence: self.sequence,
            domain: request.domain(),
            unmaps: request.unmaps(),
        };
        let len = request.encode(|bytes| {
            self.buffers.write(at, bytes);
            bytes.len() as u32
        });
        // No status of the specification, so that one that was not written is not taken for OK.
        self.buffers.write(at + TAIL_AT, &[0xff; TAIL_BYTES]);
        self.ring.describe(2 * index, self.buffers.phys(at), len, Direction::DeviceReadsThenNext);
        self.ring.push(2 * index);
        self.in_flight += 1;
        Some(self.sequence)
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
        if self.broken || self.free.len() <= 1 || self.slots.iter().any(|slot| slot.buffer == Buffer::Probe) {
            return false;
        }
        let Some(index) = self.free.pop() else {
            return false;
        };
        if let Some(slot) = self.slots.get_mut(usize::from(index)) {
            self.sequence += 1;
            slot.state = State::InFlight(Owner::Batch(batch));
            slot.buffer = Buffer::Probe;
            slot.sequence = self.sequence;
            slot.unmaps = None;
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
        let index = head / 2;
        let slot = usize::try_from(index)
            .ok()
            .filter(|_| head.is_multiple_of(2))
            .and_then(|index| self.slots.get_mut(index))
            .filter(|slot| matches!(slot.state, State::InFlight(_)));
        let Some(slot) = slot else {
            self.strays += 1;
            return;
        };
        let (status, least) = match (slot.buffer, &self.probe) {
            (Buffer::Probe, Some(probe)) => (probe.status(), probe.answer().1),
            _ => {
                let mut status = [0];
                self.buffers.read(index as usize * SLOT_BYTES + TAIL_AT, &mut status);
                (Status(status[0]), TAIL_BYTES as u32)
            }
        };
        if slot.buffer == Buffer::Probe {
            slot.buffer = Buffer::Own;
            describe_tail(&self.ring, &self.buffers, index as u16);
        }
        let answer = match (len >= least, status) {
            (false, _) => Err(Refusal::Short(len)),
            (true, Status::OK) => Ok(()),
            (true, status) => Err(Refusal::Status(status)),
        };
        self.in_flight = self.in_flight.saturating_sub(1);
        slot.unmaps = None;
        let State::InFlight(owner) = core::mem::replace(&mut slot.state, State::Free) else {
            return;
        };
        match owner {
            Owner::Batch(batch) => {
                slot.state = State::Done(batch, answer);
                return;
            }
            Owner::Ledger(ledger) => {
                if let Err(refusal) = answer {
                    log::error!("virtio-iommu: domain {}: unmap refused: {refusal}", slot.domain.0);
                    ledger.fail();
                }
            }
            Owner::Nobody => {}
        }
        // There is room for every slot.
        let _ = list::push_reserved(&mut self.free, index as u16);
    }

    /// Hands a batch the answers that have come for it, and frees their slots.
    pub(crate) fn collect(&mut self, batch: BatchId) -> Collected {
        let mut collected = Collected { answers: 0, refusal: None };
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if let State::Done(owner, answer) = slot.state
                && owner == batch
            {
                slot.state = State::Free;
                let _ = list::push_reserved(&mut self.free, index as u16);
                collected.answers += 1;
                collected.refusal = collected.refusal.or(answer.err());
            }
        }
        collected
    }

    /// Lets the slots of a batch go whenever their answers come.
    pub(crate) fn abandon(&mut self, batch: BatchId) {
        self.collect(batch);
        for slot in &mut self.slots {
            if matches!(slot.state, State::InFlight(Owner::Batch(owner)) if owner == batch) {
                slot.state = State::InFlight(Owner::Nobody);
            }
        }
    }

    /// Whether an unmap that touches `range` of `domain` is with the device.
    pub(crate) fn unmaps_in_flight(&self, domain: HostDomain, range: &IovaRange) -> bool {
        self.slots
            .iter()
            .any(|slot| slot.domain == domain && slot.unmaps.is_some_and(|unmapped| unmapped.overlaps(range)))
    }

    /// Whether a request for `domain`, up to the one with this sequence number, is with the device.
    pub(crate) fn domain_in_flight(&self, domain: HostDomain, sequence: u64) -> bool {
        self.slots.iter().any(|slot| {
            let asked_for = slot.buffer == Buffer::Own && slot.domain == domain;
            asked_for && matches!(slot.state, State::InFlight(_)) && slot.sequence <= sequence
        })
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
