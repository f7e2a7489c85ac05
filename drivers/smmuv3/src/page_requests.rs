//! Page requests and stalls: what the unit reports, the answers, and draining (IHI 0070, 3.12.2, 4.6 and chapter 8).

use crate::attach::{Attachments, stream};
use crate::command::{Command, PageAction, StallAction};
use crate::evtq::Found;
use crate::fault;
use crate::port::{Health, Port, count};
use crate::record::{self, translates};
use crate::ring::RingSize;
use crate::spec::event::{EVENT_WORDS, Event0, Event1};
use crate::spec::pri::{PAGE_REQUEST_WORDS, PageRequest0, PageRequest1};
use crate::stalls::{self, Stall, stall};
use core::sync::atomic::Ordering;
use portcullis_hal::{Access, EndpointId, Hal, Iova, Mmio, Pasid, StreamId, SyncError};
use portcullis_iommu::{
    Answered, GroupIndex, InGroup, PageAnswer, PageRequest, PageRequestFlow, PageRequestKind, PageResponse,
    Privilege, Requests, StallId, UnitEvent,
};

/// How many commands are submitted together.
const TOGETHER: usize = stalls::ANSWERING;

/// How many records of a queue are read at once, with interrupts masked: whatever devices do, and however long the queue
/// is, that ends.
const AT_ONCE: u64 = 256;

/// How often an answer is given to a unit that refuses it.
const ATTEMPTS: usize = 4;

/// Whether records may be left in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Nothing,
    Some,
}

impl<H: Hal, M: Mmio> Port<H, M> {
    /// Reports what the queues hold. Page requests that are held stay there.
    pub(crate) fn read_queues(&self, report: &mut dyn FnMut(UnitEvent)) {
        if self.read(report) == Left::Some {
            report(UnitEvent::Unread);
        }
    }

    fn read(&self, report: &mut dyn FnMut(UnitEvent)) -> Left {
        self.in_turn(|| {
            let events = self.read_events(report);
            let requests = self.read_page_requests(report);
            if events == Left::Some || requests == Left::Some {
                return Left::Some;
            }
            Left::Nothing
        })
    }

    /// One CPU at a time: who gets the turn finds no record on its way, read by somebody else and not reported.
    /// Interrupts wait for it, so nothing is waited for here.
    fn in_turn<T>(&self, act: impl FnOnce() -> T) -> T {
        self.hal().critical(|| {
            let _turn = self.reading.lock();
            act()
        })
    }

    /// Has page requests stay in their queue, or not.
    pub(crate) fn set_page_request_flow(&self, flow: PageRequestFlow) {
        self.held.store(flow == PageRequestFlow::Held, Ordering::Release);
    }

    /// Reports what the event queue holds.
    fn read_events(&self, report: &mut dyn FnMut(UnitEvent)) -> Left {
        for _ in 0..at_once(self.events.size()) {
            let mut stalled = None;
            match self.events.next(&self.block, |raw| stalled = self.stalls.note(raw)) {
                Some(Found::Record(raw)) => report(self.event(raw, stalled)),
                Some(Found::Overflow) => {
                    count(&self.counters.overflows);
                    report(UnitEvent::Overflow);
                }
                None => return Left::Nothing,
            }
        }
        Left::Some
    }

    /// An event record in the terms of all back ends. One of a stall that found no place is a fault: nobody can answer
    /// it.
    fn event(&self, raw: [u64; EVENT_WORDS], stall: Option<StallId>) -> UnitEvent {
        match stall {
            Some(id) => {
                count(&self.counters.page_requests);
                UnitEvent::PageRequest(stalled(raw, id))
            }
            None => {
                count(&self.counters.faults);
                UnitEvent::Fault(fault::decode(raw))
            }
        }
    }

    /// Reports what the PRI queue holds: what devices send on meanwhile, beyond their credits, waits there, and the unit
    /// answers what finds no room (8.1).
    fn read_page_requests(&self, report: &mut dyn FnMut(UnitEvent)) -> Left {
        let Some(requests) = &self.page_requests else { return Left::Nothing };
        for _ in 0..at_once(requests.size()) {
            if self.held.load(Ordering::Acquire) {
                return Left::Some;
            }
            match requests.next(&self.block, |_| ()) {
                Some(Found::Record(raw)) => {
                    count(&self.counters.page_requests);
                    report(UnitEvent::PageRequest(page_request(raw)));
                }
                Some(Found::Overflow) => {
                    count(&self.counters.overflows);
                    report(UnitEvent::PageRequestOverflow);
                }
                None => return Left::Nothing,
            }
        }
        Left::Some
    }

    /// Gives answers to the unit, as many as fit its queue together, and waits until it has taken them. Those that it
    /// refused it gets again, and no others: none is taken twice. A unit that fails meanwhile uses no tag again.
    fn send_answers(&self, answers: &[Answer]) -> Result<(), SyncError> {
        let mut list = Few::of(Answer::NONE, answers.iter().copied());
        for _ in 0..ATTEMPTS {
            let ticket = self.submit(list.get().iter().map(|answer| answer.command))?;
            let result = self.complete(&ticket);
            let refused = match (result, ticket.batch()) {
                (Err(SyncError::Faulted), Some(batch)) if self.health() == Health::Running => {
                    let refused = (0..).zip(list.get()).filter(|(index, _)| self.refused(batch, *index));
                    Few::of(Answer::NONE, refused.map(|(_, answer)| *answer))
                }
                (result, _) => {
                    result?;
                    Few::of(Answer::NONE, core::iter::empty())
                }
            };
            let is_refused = |id| refused.get().iter().any(|answer| answer.stall == Some(id));
            for id in list.get().iter().filter_map(|answer| answer.stall).filter(|id| !is_refused(*id)) {
                self.stalls.answered(self.hal(), id);
            }
            let taken = list.get().len() - refused.get().len();
            self.counters.answers.fetch_add(taken as u64, Ordering::Relaxed);
            list = refused;
            // What else can have failed in the batch was others' business.
            if list.get().is_empty() {
                return Ok(());
            }
        }
        for id in list.get().iter().filter_map(|answer| answer.stall) {
            self.stalls.put_back(self.hal(), id);
        }
        Err(SyncError::Faulted)
    }

    /// Ends all that a stream has stalled. Its entry is not valid any more, or aborts, and the unit has confirmed that:
    /// no further event of a stall comes, and those before are in the queue (4.7.2.1, 4.7.3).
    pub(crate) fn end_stalls(&self, stream: StreamId) -> Result<(), SyncError> {
        let of_stream = |raw: &_| stall(raw).is_some_and(|stall| stall.stream == stream);
        // Before the command: the unit may use the tags again as soon as it has it.
        self.events.amend(&self.block, of_stream, || self.stalls.forget(stream));
        self.execute(&[Command::stall_term(stream)])
    }

    /// Carries a drain out. A device's answer to its invalidation pushes the page requests ahead of it. Of a stream that
    /// stalls the configuration is invalidated: with the sync that follows, the events of the stalls before it are there,
    /// and those that found no room never come (4.7.3). A sync alone would not do. By then all is in the queues; for what
    /// found the queue full there, the unit has answered.
    ///
    /// Where the reading stops, `report` may make room. A turn takes a record at least, or finds that another CPU took
    /// one: there are no more turns than records.
    pub(crate) fn drain(
        &self,
        commands: &[Command],
        report: &mut dyn FnMut(UnitEvent),
    ) -> Result<(), SyncError> {
        self.execute(commands)?;
        let requests = self.page_requests.as_ref();
        let events_end = self.events.written(&self.block);
        let requests_end = requests.map(|queue| (queue, queue.written(&self.block)));
        let turns = self.events.size().entries() + requests.map_or(0, |queue| queue.size().entries());
        for _ in 0..turns {
            if self.read(report) == Left::Nothing {
                return Ok(());
            }
            report(UnitEvent::Unread);
            let all_read = self.in_turn(|| {
                self.events.is_read_to(&self.block, events_end)
                    && requests_end.is_none_or(|(queue, end)| queue.is_read_to(&self.block, end))
            });
            if all_read {
                return Ok(());
            }
        }
        Err(SyncError::Faulted)
    }
}

impl<H: Hal, M: Mmio + 'static> Attachments<H, M> {
    /// Gives answers to the unit. None goes to a stall that has ended with its stream: as long as this looks at the
    /// attachments, no stream ends.
    pub(crate) fn answer(&self, port: &Port<H, M>, answers: &[PageAnswer]) -> Result<(), SyncError> {
        let mut result = Ok(());
        for together in answers.chunks(TOGETHER.min(port.commands.piece())) {
            let list =
                Few::of(Answer::NONE, together.iter().filter_map(|answer| self.answer_to(port, answer)));
            if !list.get().is_empty() {
                result = port.send_answers(list.get()).and(result);
            }
        }
        result
    }

    fn answer_to(&self, port: &Port<H, M>, answer: &PageAnswer) -> Option<Answer> {
        let stream = stream(answer.endpoint);
        match answer.to {
            Answered::Group(group) => {
                let tagged = self.permissions(stream).requests.contains(Requests::PASID_IN_ANSWERS);
                let pasid = answer.pasid.filter(|_| tagged);
                let action = match answer.response {
                    PageResponse::Success => PageAction::SUCCESS,
                    PageResponse::Invalid => PageAction::INVALID,
                    PageResponse::Failure => PageAction::FAILURE,
                };
                Some(Answer { command: Command::pri_resp(stream, pasid, group.get(), action), stall: None })
            }
            Answered::Stall(id) => {
                let action = match answer.response {
                    PageResponse::Success => StallAction::RETRY,
                    PageResponse::Invalid | PageResponse::Failure => StallAction::ABORT,
                };
                let Stall { stream, tag } = port.stalls.take(port.hal(), stream, id)?;
                Some(Answer { command: Command::resume(stream, tag, action), stall: Some(id) })
            }
        }
    }

    /// What drains the page requests and stalls of endpoints, at most [`together`] of them.
    pub(crate) fn drains(&self, endpoints: &[EndpointId]) -> Few<Command> {
        let commands = |&endpoint: &EndpointId| {
            let stream = stream(endpoint);
            let permissions = self.permissions(stream);
            // A device whose ATS is off answers too: that it does not know the request (3.9.1.5).
            let pages = translates(&permissions).then(|| Command::atc_inv_page(stream));
            pages.into_iter().chain(record::stalls(&permissions).then(|| Command::cfgi_ste(stream)))
        };
        Few::of(Command::sync(), endpoints.iter().flat_map(commands))
    }
}

/// How often a look is taken into a queue of this size: it finds each record, that some were lost, and that it is empty.
fn at_once(size: RingSize) -> u64 {
    size.entries().saturating_add(2).min(AT_ONCE)
}

/// How many endpoints are drained together.
pub(crate) const fn together() -> usize {
    // Each with two commands.
    TOGETHER / 2
}

/// An answer on its way to the unit.
#[derive(Clone, Copy)]
struct Answer {
    command: Command,
    /// What it ends.
    stall: Option<StallId>,
}

impl Answer {
    const NONE: Self = Self { command: Command::sync(), stall: None };
}

/// A list of what is submitted together.
pub(crate) struct Few<T> {
    items: [T; TOGETHER],
    len: usize,
}

impl<T: Copy> Few<T> {
    /// The first [`TOGETHER`] of `items`, in a list filled up with `filler`.
    fn of(filler: T, items: impl Iterator<Item = T>) -> Self {
        let mut list = Self { items: [filler; TOGETHER], len: 0 };
        for (place, item) in list.items.iter_mut().zip(items) {
            *place = item;
            list.len += 1;
        }
        list
    }

    pub(crate) fn get(&self) -> &[T] {
        self.items.get(..self.len).unwrap_or_default()
    }
}

/// The request that the event of a stall stands for.
fn stalled([word0, word1, address, _]: [u64; EVENT_WORDS], id: StallId) -> PageRequest {
    let (word0, word1) = (Event0::from(word0), Event1::from(word1));
    let access = match (word1.ind(), word1.rnw()) {
        (true, _) => Access::EXECUTE,
        (false, true) => Access::READ,
        (false, false) => Access::WRITE,
    };
    PageRequest {
        endpoint: endpoint(word0.sid()),
        pasid: pasid(word0.ssv(), word0.ssid()),
        address: Iova::new(address),
        access,
        privilege: privilege(word1.pnu()),
        kind: PageRequestKind::Stall(id),
    }
}

/// A PRI queue record in the terms of all back ends.
fn page_request([word0, word1]: [u64; PAGE_REQUEST_WORDS]) -> PageRequest {
    let (who, what) = (PageRequest0::from(word0), PageRequest1::from(word1));
    let mut access = Access::empty();
    access.set(Access::READ, who.read());
    access.set(Access::WRITE, who.write());
    // Without a SubstreamID these two are not told.
    access.set(Access::EXECUTE, who.execute() && who.ssv());
    let kind = if who.ssv() && who.last() && !who.read() && !who.write() {
        PageRequestKind::StopMarker
    } else {
        let place = if who.last() { InGroup::Last } else { InGroup::Partial };
        PageRequestKind::Group(GroupIndex::new(what.group()), place)
    };
    PageRequest {
        endpoint: endpoint(who.sid()),
        pasid: pasid(who.ssv(), who.ssid()),
        address: Iova::new(what.addr() << 12),
        access,
        privilege: privilege(who.privileged() && who.ssv()),
        kind,
    }
}

fn endpoint(sid: u32) -> EndpointId {
    EndpointId::new(StreamId::new(sid).get())
}

fn pasid(valid: bool, ssid: u32) -> Option<Pasid> {
    valid.then(|| Pasid::new(ssid).ok()).flatten()
}

fn privilege(privileged: bool) -> Privilege {
    if privileged { Privilege::Supervisor } else { Privilege::User }
}

#[cfg(test)]
mod tests {
    use super::*;
    /// Worked out from the layouts in chapter 8, as Linux and the Xen driver have them too.
    #[test]
    fn page_requests_are_decoded_from_the_manuals_words() {
        let all = page_request([0xfc0a_bcde_0000_0118, 0x7fff_dead_b155]);
        assert_eq!((all.endpoint.get(), all.pasid.map(Pasid::get)), (0x118, Some(0xa_bcde)));
        assert_eq!(all.access, Access::READ | Access::WRITE | Access::EXECUTE);
        assert_eq!((all.privilege, all.address.get()), (Privilege::Supervisor, 0x7fff_dead_b000));
        assert_eq!(all.kind, PageRequestKind::Group(GroupIndex::new(0x155), InGroup::Last));
        // Without a SubstreamID the other two are not told.
        let plain = page_request([0x2c0a_bcde_0000_0118, 0x1001]);
        assert_eq!((plain.pasid, plain.access, plain.privilege), (None, Access::WRITE, Privilege::User));
        assert_eq!(plain.kind, PageRequestKind::Group(GroupIndex::new(1), InGroup::Partial));
        let marker = page_request([0xc000_0007_0000_0118, 0]);
        assert_eq!((marker.kind, marker.pasid.map(Pasid::get)), (PageRequestKind::StopMarker, Some(7)));
        let none = page_request([0x4000_0000_0000_0118, 3]);
        assert_eq!(none.kind, PageRequestKind::Group(GroupIndex::new(3), InGroup::Last));
    }

    #[test]
    fn a_stall_is_told_by_its_flag_and_the_kind_of_event() {
        let id = StallId { place: 3, serial: 5 };
        let stall = |raw| stall(&raw).map(|_| stalled(raw, id));
        let flag = 1 << 31 | 0x1234;
        let stalled =
            stall([0x18 << 32 | 7 << 12 | 1 << 11 | 0x10, flag | 1 << 35 | 1 << 33, 0x5678, 0]).unwrap();
        assert_eq!(stalled.kind, PageRequestKind::Stall(id));
        assert_eq!((stalled.endpoint.get(), stalled.pasid.map(Pasid::get)), (0x18, Some(7)));
        assert_eq!((stalled.address.get(), stalled.access), (0x5678, Access::READ));
        assert_eq!(stalled.privilege, Privilege::Supervisor);
        for id in [0x10, 0x11, 0x12, 0x13] {
            assert_eq!(stall([id, flag, 0, 0]).map(|one| one.access), Some(Access::WRITE));
            assert_eq!(stall([id, 0x1234, 0, 0]), None);
        }
        assert_eq!(stall([0x10, flag | 1 << 34, 0, 0]).map(|one| one.access), Some(Access::EXECUTE));
        for id in [0x02, 0x04, 0x0a, 0x20, 0x24] {
            assert_eq!(stall([id, flag, 0, 0]), None, "{id:#x} does not stall");
        }
    }
}
