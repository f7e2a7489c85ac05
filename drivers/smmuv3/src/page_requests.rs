//! Page requests and stalls: what the unit reports, the answers, and draining (IHI 0070, 3.12.2, 4.6 and chapter 8).

use crate::attach::{Attachments, stream};
use crate::command::{Command, PageAction, StallAction};
use crate::evtq::Found;
use crate::fault;
use crate::port::{Port, count};
use crate::spec::event::{EVENT_WORDS, Event0, Event1, EventId};
use crate::spec::pri::{PAGE_REQUEST_WORDS, PageRequest0, PageRequest1};
use core::sync::atomic::Ordering;
use portcullis_hal::{Access, EndpointId, Hal, Iova, Mmio, Pasid, StreamId, SyncError};
use portcullis_iommu::{
    Answered, GroupIndex, InGroup, PageAnswer, PageRequest, PageRequestKind, PageResponse, Privilege,
    Requests, StallTag, UnitEvent,
};

/// How many answers are submitted together, and how many devices are drained together.
const TOGETHER: usize = 16;

/// How many queuefuls of page requests one call reads at most. What a device sends on even then, beyond its credits, is
/// given up, and so may be what others sent meanwhile.
const QUEUEFULS: u64 = 16;

/// How often a drain is repeated that met an overflow.
const ATTEMPTS: usize = 4;

/// Whether records were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Overflow {
    None,
    Seen,
}

impl<H: Hal, M: Mmio> Port<H, M> {
    /// Reports what the event queue holds, one queueful at most: a device that faults without end takes the CPU for a
    /// bounded time.
    pub(crate) fn handle_events(&self, report: &mut dyn FnMut(UnitEvent)) {
        let mut tell = |found| match found {
            Found::Record(raw) => report(self.event(raw)),
            Found::Overflow => {
                count(&self.counters.overflows);
                report(UnitEvent::Overflow);
            }
        };
        for _ in 0..self.events.size().entries() {
            match self.events.next(&self.block) {
                Some(found) => tell(found),
                None => return,
            }
        }
        if let Some(found) = self.events.skip(&self.block) {
            tell(found);
        }
    }

    /// An event record in the terms of all back ends.
    fn event(&self, raw: [u64; EVENT_WORDS]) -> UnitEvent {
        match stall(raw) {
            Some(request) => {
                count(&self.counters.page_requests);
                UnitEvent::PageRequest(request)
            }
            None => {
                count(&self.counters.faults);
                UnitEvent::Fault(fault::decode(raw))
            }
        }
    }

    /// Reports what the PRI queue holds.
    pub(crate) fn handle_page_requests(&self, report: &mut dyn FnMut(UnitEvent)) {
        let _overflow = self.read_page_requests(report);
    }

    fn read_page_requests(&self, report: &mut dyn FnMut(UnitEvent)) -> Overflow {
        let Some(requests) = &self.page_requests else { return Overflow::None };
        let mut overflow = Overflow::None;
        let mut tell = |found| match found {
            Found::Record(raw) => {
                count(&self.counters.page_requests);
                report(UnitEvent::PageRequest(page_request(raw)));
            }
            Found::Overflow => {
                count(&self.counters.overflows);
                overflow = Overflow::Seen;
                report(UnitEvent::PageRequestOverflow);
            }
        };
        for _ in 0..requests.size().entries() * QUEUEFULS {
            match requests.next(&self.block) {
                Some(found) => tell(found),
                None => return overflow,
            }
        }
        if let Some(found) = requests.skip(&self.block) {
            tell(found);
        }
        overflow
    }

    /// Submits answers, and waits until the unit has taken them.
    pub(crate) fn send_answers(&self, commands: &[Command]) -> Result<(), SyncError> {
        if commands.is_empty() {
            return Ok(());
        }
        self.execute(commands)?;
        self.counters.answers.fetch_add(commands.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Carries a drain out. The answers of the devices to these invalidations push the page requests ahead of them, and
    /// with the sync that follows the records of stalls before it are there (4.7.3).
    pub(crate) fn drain(
        &self,
        commands: &[Command],
        report: &mut dyn FnMut(UnitEvent),
    ) -> Result<(), SyncError> {
        for _ in 0..ATTEMPTS {
            self.execute(commands)?;
            self.handle_events(report);
            if self.read_page_requests(report) == Overflow::None {
                return Ok(());
            }
        }
        Err(SyncError::Faulted)
    }
}

impl<H: Hal, M: Mmio + 'static> Attachments<H, M> {
    /// The commands for answers. There is none for one that nobody waits for: to a stall of a stream whose transactions
    /// were all ended with its entry.
    pub(crate) fn answers(&self, answers: &[PageAnswer]) -> ([Command; TOGETHER], usize) {
        let commands = answers.iter().take(TOGETHER).filter_map(|answer| self.command(answer));
        list_of(commands)
    }

    fn command(&self, answer: &PageAnswer) -> Option<Command> {
        let stream = stream(answer.endpoint);
        let requests = self.permissions(stream).requests;
        match answer.to {
            Answered::Group(group) => {
                let tagged = requests.contains(Requests::PASID_IN_ANSWERS);
                let pasid = answer.pasid.filter(|_| tagged);
                let action = match answer.response {
                    PageResponse::Success => PageAction::SUCCESS,
                    PageResponse::Invalid => PageAction::INVALID,
                    PageResponse::Failure => PageAction::FAILURE,
                };
                Some(Command::pri_resp(stream, pasid, group.get(), action))
            }
            Answered::Stall(StallTag(tag)) => {
                let action = match answer.response {
                    PageResponse::Success => StallAction::RETRY,
                    PageResponse::Invalid | PageResponse::Failure => StallAction::ABORT,
                };
                let waits = requests.contains(Requests::STALL) && self.translates(stream);
                waits.then(|| Command::resume(stream, tag, action))
            }
        }
    }

    /// What drains the page requests of endpoints.
    pub(crate) fn drains(&self, endpoints: &[EndpointId]) -> ([Command; TOGETHER], usize) {
        let streams = endpoints.iter().take(TOGETHER).map(|&endpoint| stream(endpoint));
        list_of(streams.filter(|&stream| self.takes_requests(stream)).map(Command::atc_inv_page))
    }
}

/// How many answers or endpoints are seen to at a time.
pub(crate) const fn together() -> usize {
    TOGETHER
}

fn list_of(commands: impl Iterator<Item = Command>) -> ([Command; TOGETHER], usize) {
    let mut list = [Command::sync(); TOGETHER];
    let mut length = 0;
    for (place, command) in list.iter_mut().zip(commands) {
        *place = command;
        length += 1;
    }
    (list, length)
}

/// The stall that an event is about, if it is about one.
fn stall([word0, word1, address, _]: [u64; EVENT_WORDS]) -> Option<PageRequest> {
    /// The kinds that can stall.
    const KINDS: [EventId; 4] =
        [EventId::F_TRANSLATION, EventId::F_ADDR_SIZE, EventId::F_ACCESS, EventId::F_PERMISSION];
    let (word0, word1) = (Event0::from(word0), Event1::from(word1));
    if !word1.stall() || !KINDS.contains(&word0.id()) {
        return None;
    }
    let access = match (word1.ind(), word1.rnw()) {
        (true, _) => Access::EXECUTE,
        (false, true) => Access::READ,
        (false, false) => Access::WRITE,
    };
    Some(PageRequest {
        endpoint: endpoint(word0.sid()),
        pasid: pasid(word0.ssv(), word0.ssid()),
        address: Iova::new(address),
        access,
        privilege: privilege(word1.pnu()),
        kind: PageRequestKind::Stall(StallTag(word1.stag())),
    })
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
        let flag = 1 << 31 | 0x1234;
        let stalled =
            stall([0x18 << 32 | 7 << 12 | 1 << 11 | 0x10, flag | 1 << 35 | 1 << 33, 0x5678, 0]).unwrap();
        assert_eq!(stalled.kind, PageRequestKind::Stall(StallTag(0x1234)));
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
