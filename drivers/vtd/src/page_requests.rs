//! Page requests: the queue that the unit fills, its event, the answers, and how both are drained (sections 7.4 to 7.10).

use crate::error::TableError;
use crate::features::Features;
use crate::forget;
use crate::invalidate::Descriptor;
use crate::spec::page_requests::{
    PAGE_REQUEST_BYTES, PageQueueAddress, PageRequest0, PageRequest1, PageRequestStatus, ResponseCode,
};
use crate::spec::registers::{EventControl, PECTL, PQA, PQH, PQT, PRS};
use crate::unit::Inner;
use crate::{dma::Words, tables::reachable_frames};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use portcullis_hal::{Access, EndpointId, FrameOrder, Hal, Iova, Mmio, Pasid, SyncError, barrier};
use portcullis_iommu::{
    Answered, GroupIndex, InGroup, PageAnswer, PageRequest, PageRequestFlow, PageRequestKind, PageResponse,
    Privilege, Requests, UnitEvent,
};
use spin::Mutex;

/// The words of a record.
const WORDS: usize = PAGE_REQUEST_BYTES / 8;

/// The largest value of PQA_REG.PQS.
const MAX_PQS: u8 = 7;

/// How many answers are submitted together, and how many devices are drained together.
const TOGETHER: usize = 16;

/// Room for these, and for what goes with them.
type Batch = forget::Batch<24>;

/// How often something is tried again that an error of the queue, or an overflow, has spoilt.
const ATTEMPTS: usize = 4;

/// A unit's page request queue.
pub(crate) struct PageRequests<H: Hal> {
    records: Words<H>,
    pqs: u8,
    reader: Mutex<Reader>,
    /// Held while page requests are drained: the token that the hardware writes in the end.
    draining: Mutex<u32>,
    /// Requests stay where they are.
    held: AtomicBool,
    pub(crate) counters: Counters,
}

/// What whoever reads the queue needs.
struct Reader {
    /// The slot of the next record.
    head: usize,
    /// The records behind it, of which no status bit tells any more.
    left: Left,
}

/// Whether records are known to be in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Nothing,
    Some,
}

/// What has come and gone since start-up.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) answers: AtomicU64,
    pub(crate) overflows: AtomicU64,
}

/// How the reading of the queue ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    /// All that was there was reported.
    All,
    /// The same, and others had found the queue full.
    Overflow,
    /// The rest is [held](PageRequestFlow::Held).
    Part,
}

impl<H: Hal> PageRequests<H> {
    /// A queue that the unit does not know yet, for a unit that has one.
    pub(crate) fn new(hal: &H, features: &Features, order: FrameOrder) -> Result<Option<Self>, TableError> {
        if !features.page_requests() {
            return Ok(None);
        }
        let order = order.min(FrameOrder::new(MAX_PQS).unwrap_or(FrameOrder::SINGLE));
        let records = Words::new(reachable_frames(hal, features, order)?, |words| Some(words))?;
        Ok(Some(Self {
            records,
            pqs: order.get(),
            reader: Mutex::new(Reader { head: 0, left: Left::Nothing }),
            draining: Mutex::new(0),
            held: AtomicBool::new(false),
            counters: Counters::default(),
        }))
    }

    /// The slot that a number falls on: there are a power of two of them.
    fn slot(&self, number: usize) -> usize {
        number & (self.records.len() / WORDS).wrapping_sub(1)
    }

    /// Takes the record out of a slot. What is left there is no record.
    fn take(&self, slot: usize) -> [u64; 2] {
        let (slots, _) = self.records.as_chunks::<WORDS>();
        let Some([low, high, ..]) = slots.get(slot) else { return [0; 2] };
        let record = [low, high].map(|word| word.load(Ordering::Relaxed));
        low.store(0, Ordering::Relaxed);
        record
    }
}

impl<H: Hal, M: Mmio + 'static> Inner<H, M> {
    /// Masks the event of a predecessor's queue.
    pub(crate) fn mask_page_request_event(&self) {
        if self.features.ecap.prs() {
            self.registers.write32(PECTL, EventControl::new().with_im(true).into_bits());
        }
    }

    /// Gives the unit its page request queue. By now no context entry permits page requests (11.4.11.3), so nothing is
    /// written to a predecessor's any more either.
    pub(crate) fn start_page_requests(&self) {
        let Some(requests) = &self.page_requests else { return };
        let registers = &self.registers;
        registers.write64(PQH, 0);
        registers.write64(PQT, 0);
        let address =
            PageQueueAddress::new().with_pqs(requests.pqs).with_pqa(requests.records.publish().get() >> 12);
        registers.write64(PQA, address.into_bits());
        let stale = PageRequestStatus::new().with_ppr(true).with_pro(true);
        registers.write32(PRS, stale.into_bits());
    }

    /// Reports what is in the queue. Never waits for the hardware.
    ///
    /// A record is an event only if neither PPR nor PRO is set when it arrives (7.5). So PPR is cleared before the tail is
    /// read: what arrives later is an event of its own. While PRO is set nothing arrives; it is cleared when there is room.
    pub(crate) fn read_page_requests(&self, report: &mut dyn FnMut(UnitEvent)) {
        if self.read_queue(report) == Read::Part {
            report(UnitEvent::Unread);
        }
    }

    /// Has requests stay in the queue, or not.
    pub(crate) fn set_page_request_flow(&self, flow: PageRequestFlow) {
        if let Some(requests) = &self.page_requests {
            requests.held.store(flow == PageRequestFlow::Held, Ordering::Release);
        }
    }

    fn read_queue(&self, report: &mut dyn FnMut(UnitEvent)) -> Read {
        let Some(requests) = &self.page_requests else { return Read::All };
        let status = || PageRequestStatus::from_bits(self.registers.read32(PRS));
        self.hal().critical(|| {
            let mut reader = requests.reader.lock();
            if reader.left == Left::Nothing && status() == PageRequestStatus::new() {
                return Read::All;
            }
            let pending = PageRequestStatus::new().with_ppr(true);
            self.registers.write32(PRS, pending.into_bits());
            let overflow = status().pro();
            let tail = requests.slot(self.registers.read64(PQT) as usize / PAGE_REQUEST_BYTES);
            // The records are in memory before the tail says so.
            barrier::after_completion();
            while reader.head != tail && !requests.held.load(Ordering::Acquire) {
                let record = requests.take(reader.head);
                reader.head = requests.slot(reader.head + 1);
                requests.counters.requests.fetch_add(1, Ordering::Relaxed);
                report(decode(record));
            }
            barrier::before_doorbell();
            self.registers.write64(PQH, (reader.head * PAGE_REQUEST_BYTES) as u64);
            reader.left = if reader.head == tail { Left::Nothing } else { Left::Some };
            // There is no room yet: what comes is refused by the hardware still.
            if reader.left == Left::Some {
                return Read::Part;
            }
            if !overflow {
                return Read::All;
            }
            self.registers.write32(PRS, pending.with_pro(true).into_bits());
            requests.counters.overflows.fetch_add(1, Ordering::Relaxed);
            report(UnitEvent::PageRequestOverflow);
            Read::Overflow
        })
    }

    /// See [`Unit::answer`](portcullis_iommu::Unit::answer).
    pub(crate) fn answer(&self, answers: &[PageAnswer]) -> Result<(), SyncError> {
        let Some(requests) = &self.page_requests else {
            return if answers.is_empty() { Ok(()) } else { Err(SyncError::Faulted) };
        };
        for together in answers.chunks(TOGETHER) {
            let batch = Batch::of(together.iter().filter_map(response));
            self.send(batch)?;
            let count = batch.descriptors().len() as u64;
            requests.counters.answers.fetch_add(count, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Sends answers. Those that the unit refuses to fetch are sent again, and only those: a device takes an answer to
    /// what it has not asked for an error.
    fn send(&self, mut batch: Batch) -> Result<(), SyncError> {
        for _ in 0..ATTEMPTS {
            if batch.descriptors().is_empty() {
                return Ok(());
            }
            let ticket = self.submit(batch.descriptors().iter().copied())?;
            match self.wait(ticket) {
                Err(SyncError::Faulted) if !self.is_faulted() => {}
                result => return result,
            }
            let errors = &self.queue.errors;
            let refused = |place| errors.refused(self.hal(), &ticket, place).ok_or(SyncError::Faulted);
            let mut again = Batch::new();
            for (place, &descriptor) in (0..).zip(batch.descriptors()) {
                if refused(ticket.first.plus(place))? {
                    again.push(descriptor);
                }
            }
            batch = again;
        }
        Err(SyncError::Faulted)
    }

    /// See [`Unit::drain_page_requests`](portcullis_iommu::Unit::drain_page_requests).
    pub(crate) fn drain_page_requests(
        &self,
        endpoints: &[EndpointId],
        report: &mut dyn FnMut(UnitEvent),
    ) -> Result<(), SyncError> {
        let Some(requests) = &self.page_requests else { return Ok(()) };
        let mut token = requests.draining.lock();
        for together in endpoints.chunks(TOGETHER) {
            let batch = self.drain_of(together);
            self.drain(batch, &mut token, report)?;
        }
        Ok(())
    }

    /// What drains the page requests of endpoints and the answers to them (7.10): their answers to these invalidations
    /// push the page requests ahead of them to the unit, and the invalidations push the answers to the devices.
    fn drain_of(&self, endpoints: &[EndpointId]) -> Batch {
        let state = self.state.lock();
        let asks = |sid: &u16| {
            state
                .endpoint(*sid)
                .is_some_and(|endpoint| endpoint.permissions.requests.contains(Requests::TRANSLATION))
        };
        let sids = endpoints.iter().filter_map(|endpoint| u16::try_from(endpoint.get()).ok());
        let devices = sids.filter(asks).map(|sid| Descriptor::device_tlb_page(&self.features, sid));
        // The order counts, not what is invalidated: nothing has this domain id.
        let first = Descriptor::iotlb_nothing(&self.features);
        Batch::of(core::iter::once(first).chain(devices))
    }

    /// Carries a drain out and reads the queue, until neither an error nor an overflow came in between.
    fn drain(
        &self,
        batch: Batch,
        token: &mut u32,
        report: &mut dyn FnMut(UnitEvent),
    ) -> Result<(), SyncError> {
        for _ in 0..ATTEMPTS {
            *token = token.wrapping_add(1);
            let mut batch = batch;
            batch.push(self.queue.drain(*token));
            let result = self.run(batch.descriptors().iter().copied());
            let read = self.read_in_turns(report)?;
            match result {
                // An error of somebody else's may have dropped the wait that drains.
                Ok(()) if self.queue.drained() == *token && read == Read::All => return Ok(()),
                Err(SyncError::Faulted) if !self.is_faulted() => {}
                result => result?,
            }
        }
        Err(SyncError::Faulted)
    }

    /// Reads the queue. Where requests are held, `report` may let them flow; then a turn takes one at least, or another
    /// CPU has: there are no more turns than slots.
    fn read_in_turns(&self, report: &mut dyn FnMut(UnitEvent)) -> Result<Read, SyncError> {
        let slots = self.page_requests.as_ref().map_or(0, |requests| requests.records.len() / WORDS);
        for _ in 0..=slots {
            match self.read_queue(report) {
                Read::Part => report(UnitEvent::Unread),
                read => return Ok(read),
            }
        }
        Err(SyncError::Faulted)
    }
}

/// A record in the terms of all back ends.
fn decode([low, high]: [u64; 2]) -> UnitEvent {
    let (who, what) = (PageRequest0::from_bits(low), PageRequest1::from_bits(high));
    if who.kind() != PageRequest0::PAGE_REQUEST {
        return UnitEvent::UnitError { name: "page request of unknown type", value: u32::from(who.kind()) };
    }
    let mut access = Access::empty();
    access.set(Access::READ, what.read());
    access.set(Access::WRITE, what.write());
    access.set(Access::EXECUTE, who.execute());
    let kind = if what.lpig() && !what.read() && !what.write() {
        PageRequestKind::StopMarker
    } else {
        let place = if what.lpig() { InGroup::Last } else { InGroup::Partial };
        PageRequestKind::Group(GroupIndex::new(what.prgi()), place)
    };
    UnitEvent::PageRequest(PageRequest {
        endpoint: EndpointId::new(u32::from(who.rid())),
        pasid: who.pp().then(|| Pasid::new(who.pasid()).ok()).flatten(),
        address: Iova::new(what.addr() << 12),
        access,
        privilege: if who.privileged() { Privilege::Supervisor } else { Privilege::User },
        kind,
    })
}

/// The descriptor of an answer. Nothing stalls here, so an answer to a stall is to nobody, as is one to an endpoint that
/// the unit does not have.
fn response(answer: &PageAnswer) -> Option<Descriptor> {
    let sid = u16::try_from(answer.endpoint.get()).ok()?;
    let Answered::Group(group) = answer.to else { return None };
    let code = match answer.response {
        PageResponse::Success => ResponseCode::SUCCESS,
        PageResponse::Invalid => ResponseCode::INVALID_REQUEST,
        PageResponse::Failure => ResponseCode::FAILURE,
    };
    Some(Descriptor::group_response(sid, answer.pasid, group, code))
}
