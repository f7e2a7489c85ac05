//! Page requests: devices ask at any time, and every request that wants an answer gets one, once.

use crate::ensure;
use crate::world::{Break, Device, Outcomes, World};
use portcullis_hal::{Access, EndpointId, Iova, Pasid, SyncError};
use portcullis_iommu::{
    Answered, GroupIndex, InGroup, PageAnswer, PageRequest, PageRequestKind, PageResponse, Privilege,
    Requests, Unit, UnitEvent,
};
use portcullis_model::core::{self as model, Prng, ResponseCode};
use portcullis_model::device::{Job, points as habits};
use std::collections::{BTreeSet, VecDeque};

/// What a device needs to ask for pages.
pub(crate) const ASKS: Requests = Requests::TRANSLATION.union(Requests::PAGE);

/// How many page requests a device may have outstanding: more than the unit's queue has slots.
pub(crate) const CREDITS: u32 = 512;

/// The page request status register: pending, and overflow.
const PRS: u64 = 0xdc;
const OVERFLOW: u32 = 2;

/// Page requests of one device.
#[derive(Debug, Default)]
pub(crate) struct Asking {
    /// Made and not reported, in their order.
    sent: VecDeque<PageRequest>,
    /// Groups of which the driver reported later requests and not the last one: hardware has to answer.
    dropped: Vec<u16>,
    /// Reported, and answered by nobody yet.
    owed: Vec<PageAnswer>,
    /// Given to the driver, which says that the device has the answers.
    given: Vec<(u16, ResponseCode)>,
    /// Given to the driver, which does not know whether the device has the answers.
    doubtful: BTreeSet<u16>,
    /// Groups whose last request does not say so: they are never answered.
    endless: BTreeSet<u16>,
    /// Where it ever asked for pages.
    addresses: BTreeSet<u64>,
}

impl Asking {
    /// Whether nothing is on its way, in either direction.
    pub(crate) fn is_settled(&self) -> bool {
        let Self { sent, dropped, owed, given, doubtful, .. } = self;
        sent.is_empty() && dropped.is_empty() && owed.is_empty() && given.is_empty() && doubtful.is_empty()
    }

    /// The device has begun anew.
    pub(crate) fn reset(&mut self) {
        self.endless.clear();
    }

    fn made(&mut self, request: PageRequest) {
        self.addresses.insert(request.address.get());
        self.sent.push_back(request);
    }

    /// The driver reported a request. Those before it that it did not report were dropped by hardware.
    fn reported(&mut self, request: &PageRequest) -> Outcomes {
        loop {
            match self.sent.pop_front() {
                None => return Err(format!("{request:x?} was not made, or not in this order")),
                Some(other) if other == *request => break,
                Some(other) => self.dropped.extend(last_of(&other)),
            }
        }
        if let Some(group) = last_of(request) {
            let PageRequest { endpoint, pasid, .. } = *request;
            let (to, response) = (Answered::Group(GroupIndex::new(group)), PageResponse::Invalid);
            self.owed.push(PageAnswer { endpoint, pasid, to, response });
        }
        Ok(())
    }

    /// The device got an answer; says whether it was the hardware's own.
    fn answered(&mut self, group: u16, code: ResponseCode) -> Result<bool, String> {
        if let Some(at) = self.given.iter().position(|given| *given == (group, code)) {
            self.given.swap_remove(at);
            return Ok(false);
        }
        if self.doubtful.remove(&group) {
            return Ok(false);
        }
        // The hardware answers what it does not report.
        if let Some(at) = self.dropped.iter().position(|dropped| *dropped == group) {
            self.dropped.swap_remove(at);
        } else if let Some(at) = self.sent.iter().position(|sent| last_of(sent) == Some(group)) {
            self.sent.remove(at);
        } else {
            return Err(format!("group {group} was answered with {code:?} and by nobody"));
        }
        ensure!(code != ResponseCode::InvalidRequest, "the hardware answered {code:?}");
        Ok(true)
    }
}

/// The group that wants an answer with this request.
fn last_of(request: &PageRequest) -> Option<u16> {
    match request.kind {
        PageRequestKind::Group(group, InGroup::Last) => Some(group.get()),
        _ => None,
    }
}

fn code_of(response: PageResponse) -> ResponseCode {
    match response {
        PageResponse::Success => ResponseCode::Success,
        PageResponse::Invalid => ResponseCode::InvalidRequest,
        PageResponse::Failure => ResponseCode::Failure,
    }
}

fn group_of(answer: &PageAnswer) -> u16 {
    match answer.to {
        Answered::Group(group) => group.get(),
        Answered::Stall(_) => u16::MAX,
    }
}

/// A job's page request, as the driver has to report it.
fn request_of(sid: u16, job: &Job, kind: PageRequestKind) -> PageRequest {
    PageRequest {
        endpoint: EndpointId::new(u32::from(sid)),
        pasid: job.pasid.and_then(|pasid| Pasid::new(pasid).ok()),
        address: Iova::new(job.address & !0xfff),
        access: match job.access {
            model::Access::Read => Access::READ,
            model::Access::Write => Access::WRITE,
            model::Access::Execute => Access::READ | Access::EXECUTE,
        },
        privilege: match job.privilege {
            model::Privilege::User => Privilege::User,
            model::Privilege::Supervisor => Privilege::Supervisor,
        },
        kind,
    }
}

impl World {
    /// A device that may ask for pages, if there is one.
    fn asker(&self, device: u8) -> Option<usize> {
        let asks = |device: &usize| self.devices[*device].permissions.requests.contains(ASKS);
        let all: Vec<usize> = (0..self.devices.len()).filter(asks).collect();
        all.get(usize::from(device) % all.len().max(1)).copied()
    }

    /// A device asks: for a page, for several, until the queue overflows, without an end, or that it is done; now, or in
    /// the middle of what the driver does next.
    pub(crate) fn ask(&mut self, nonce: u64, device: u8, shape: u8) -> Outcomes {
        let Some(device) = self.asker(device) else { return Ok(()) };
        self.note_made();
        let mut prng = Prng::new(nonce ^ 0xa5c);
        let pasid = self.some_pasid(device, prng.next_u64());
        let function = self.devices[device].function.clone();
        let mut jobs = |count: u64| -> Vec<Job> {
            (0..count)
                .map(|_| Job {
                    pasid: (pasid != 0).then_some(pasid),
                    address: self.points[prng.below(self.points.len() as u64) as usize],
                    access: [model::Access::Read, model::Access::Write, model::Access::Execute]
                        [prng.below(3) as usize],
                    privilege: if prng.chance(1, 4) {
                        model::Privilege::Supervisor
                    } else {
                        model::Privilege::User
                    },
                })
                .collect()
        };
        match shape % 32 {
            0 if pasid != 0 => {
                function.stop(pasid);
                let Device { sid, asking, .. } = &mut self.devices[device];
                let marker = request_of(*sid, &Job::read(0).with_pasid(pasid), PageRequestKind::StopMarker);
                asking.made(PageRequest { access: Access::empty(), ..marker });
                self.count("ask", "stop marker");
            }
            1 => {
                for job in jobs(200) {
                    let Some(group) = function.request_pages(&[job]) else { break };
                    self.note_sent(device, group, &[job], InGroup::Last);
                }
                self.count("ask", "flood");
            }
            2 => {
                let jobs = jobs(2);
                self.bench.schedule.odds(habits::LAST_LOST, 1, 1);
                let group = function.request_pages(&jobs);
                self.bench.schedule.odds(habits::LAST_LOST, 0, 1);
                if let Some(group) = group {
                    self.note_sent(device, group, &jobs, InGroup::Partial);
                    self.devices[device].asking.endless.insert(group);
                    self.count("ask", "without an end");
                }
            }
            3..12 => {
                let count = 1 + u64::from(shape / 32 % 3);
                self.bench.ask_later(device, function, jobs(count));
            }
            _ => {
                let jobs = jobs(1 + u64::from(shape / 32 % 4));
                match function.request_pages(&jobs) {
                    Some(group) => {
                        self.note_sent(device, group, &jobs, InGroup::Last);
                        self.count("ask", if jobs.len() > 1 { "pages" } else { "a page" });
                    }
                    None => self.count("ask", "refused by the device"),
                }
            }
        }
        Ok(())
    }

    /// A device asks for a page that it missed.
    pub(crate) fn asked_for(&mut self, device: usize, group: u16, job: Job) {
        self.note_made();
        self.note_sent(device, group, &[job], InGroup::Last);
        self.count("ask", "a page that was missed");
    }

    fn note_sent(&mut self, device: usize, group: u16, jobs: &[Job], end: InGroup) {
        let Device { sid, asking, .. } = &mut self.devices[device];
        let index = GroupIndex::new(group);
        for (at, job) in jobs.iter().enumerate() {
            let place = if at + 1 == jobs.len() { end } else { InGroup::Partial };
            asking.made(request_of(*sid, job, PageRequestKind::Group(index, place)));
        }
    }

    /// Learns what devices asked while the driver was at work; says which did.
    fn note_made(&mut self) -> BTreeSet<usize> {
        let made = self.bench.take_made();
        for (device, group, jobs) in &made {
            self.note_sent(*device, *group, jobs, InGroup::Last);
            self.count("ask", "meanwhile");
        }
        made.into_iter().map(|(device, ..)| device).collect()
    }

    /// Learns what devices were told, and that nobody was told what he did not want to know.
    pub(crate) fn hear_answers(&mut self) -> Outcomes {
        self.note_made();
        for device in 0..self.devices.len() {
            let Device { asking, function, .. } = &mut self.devices[device];
            if asking.is_settled() {
                continue;
            }
            function.step();
            let mut by_hardware = 0;
            for answer in function.take_answers() {
                by_hardware += usize::from(asking.answered(answer.group, answer.code)?);
            }
            let violations = function.take_violations();
            let wrong: Vec<_> = violations.iter().filter(|found| found.rule == "device-response").collect();
            ensure!(wrong.is_empty(), "{wrong:?}");
            (0..by_hardware).for_each(|_| self.count("answer", "by hardware"));
        }
        Ok(())
    }

    /// The driver reports page requests, in an interrupt or while it drains them.
    pub(crate) fn hear_requests(&mut self, events: &[UnitEvent]) -> Outcomes {
        for event in events {
            match event {
                UnitEvent::PageRequest(request) => {
                    let sid = request.endpoint.get();
                    let who = self.devices.iter_mut().find(|device| u32::from(device.sid) == sid);
                    let Some(device) = who else { return Err(format!("{request:x?} is nobody's")) };
                    device.asking.reported(request)?;
                    self.count("page request", "reported");
                }
                UnitEvent::PageRequestOverflow => self.count("page request", "overflow reported"),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether a fault is that of a page request that the context entry does not permit.
    pub(crate) fn is_refusal(&self, (sid, address, code): (u16, u64, u8)) -> bool {
        // No root or context entry, no PASIDs, no page requests.
        matches!(code, 0x39 | 0x41 | 0x45 | 0x47)
            && self
                .devices
                .iter()
                .any(|device| device.sid == sid && device.asking.addresses.contains(&address))
    }

    /// What the page request queue says before an interrupt is handled.
    pub(crate) fn pages_pending(&self) -> u32 {
        self.bench.unit.read32(PRS) & 3
    }

    /// After an interrupt all that was in the queue is reported, and nothing that is answered is.
    pub(crate) fn check_reported(&mut self, pending: u32, events: &[UnitEvent]) -> Outcomes {
        let interfered = !self.note_made().is_empty();
        self.hear_requests(events)?;
        let told = events.contains(&UnitEvent::PageRequestOverflow);
        ensure!(told || pending & OVERFLOW == 0, "an overflow of page requests is not reported");
        if interfered || self.faulted {
            return Ok(());
        }
        ensure!(self.pages_pending() == 0, "PRS is {:#x} after an interrupt", self.pages_pending());
        let owed = |device: &Device| {
            let sid = device.sid;
            let key = move |answer: &PageAnswer| (sid, answer.pasid.map(Pasid::get), group_of(answer));
            device.asking.owed.iter().map(key).collect::<Vec<_>>()
        };
        let owed: BTreeSet<_> = self.devices.iter().flat_map(owed).collect();
        let doubtful = |sid: u16, group: u16| {
            self.devices.iter().any(|device| device.sid == sid && device.asking.doubtful.contains(&group))
        };
        let mut open: BTreeSet<_> = self.bench.unit.open_groups().into_iter().collect();
        open.retain(|&(sid, _, group)| !doubtful(sid, group));
        ensure!(open == owed, "the unit waits for answers to {open:x?}, the driver reported {owed:x?}");
        Ok(())
    }

    /// Some of what is owed is answered, in any order.
    pub(crate) fn answer(&mut self, nonce: u64, pick: u8, count: u8, code: u8) -> Outcomes {
        let response = match code % 16 {
            0 => PageResponse::Failure,
            1..5 => PageResponse::Invalid,
            _ => PageResponse::Success,
        };
        let mut all = self.owed(|_, _| true);
        if all.is_empty() {
            return Ok(());
        }
        let at = usize::from(pick) % all.len();
        all.rotate_left(at);
        all.truncate(1 + usize::from(count) % 24);
        self.give(nonce, all, response)
    }

    /// What is owed to devices, with PASIDs that `wanted` picks.
    fn owed(&self, wanted: impl Fn(usize, Option<u32>) -> bool) -> Vec<(usize, PageAnswer)> {
        let of = |(at, device): (usize, &Device)| {
            device.asking.owed.iter().map(|answer| (at, *answer)).collect::<Vec<_>>()
        };
        let all = self.devices.iter().enumerate().flat_map(of);
        all.filter(|(at, answer)| wanted(*at, answer.pasid.map(Pasid::get))).collect()
    }

    fn give(&mut self, nonce: u64, all: Vec<(usize, PageAnswer)>, response: PageResponse) -> Outcomes {
        if all.is_empty() {
            return Ok(());
        }
        for (device, answer) in &all {
            self.devices[*device].asking.owed.retain(|owed| owed.to != answer.to);
        }
        let list: Vec<_> = all.iter().map(|(_, answer)| PageAnswer { response, ..*answer }).collect();
        let before = self.begin(nonce, Vec::new());
        let result = self.driver.answer(&list);
        for (device, answer) in &all {
            let asking = &mut self.devices[*device].asking;
            match result {
                Ok(()) => asking.given.push((group_of(answer), code_of(response))),
                Err(_) => {
                    asking.doubtful.insert(group_of(answer));
                }
            }
        }
        let name = match (result, response) {
            (Ok(()), PageResponse::Success) => "success",
            (Ok(()), PageResponse::Invalid) => "invalid",
            (Ok(()), PageResponse::Failure) => "failure",
            (Err(_), _) => "in doubt",
        };
        list.iter().for_each(|_| self.count("answer", name));
        if let Err(error) = result {
            self.not_told(&error)?;
        }
        self.end(before, Break::None)?;
        self.hear_answers()?;
        for (device, _) in all {
            let given = &self.devices[device].asking.given;
            ensure!(given.is_empty(), "answers {given:?} were given and did not arrive");
        }
        Ok(())
    }

    /// The unit did not do what concerns page requests. It has nothing to forget with them, unless it is out of order.
    fn not_told(&mut self, error: &SyncError) -> Outcomes {
        ensure!(self.injected, "the unit failed of itself: {error}");
        let faulted = matches!(error, SyncError::Timeout(_));
        self.faulted |= faulted;
        self.quarantined |= faulted;
        Ok(())
    }

    /// Page requests of devices are drained: all that they asked is reported or answered then. What was asked with the
    /// PASIDs that `wanted` picks is refused.
    pub(crate) fn drain(
        &mut self,
        nonce: u64,
        devices: &[usize],
        wanted: impl Fn(Option<u32>) -> bool,
    ) -> Outcomes {
        if !self.takes_pages() {
            return Ok(());
        }
        self.hear_answers()?;
        let endpoints = self.endpoints(devices);
        let before = self.begin(nonce, Vec::new());
        let mut events = Vec::new();
        let result = self.driver.drain_page_requests(&endpoints, &mut |event| events.push(event));
        let interfered = self.note_made();
        self.hear_requests(&events)?;
        self.end(before, Break::None)?;
        self.hear_answers()?;
        if let Err(error) = result {
            self.not_told(&error)?;
        }
        for &device in devices {
            let permissions = self.devices[device].permissions;
            let flushed = permissions.requests.contains(Requests::TRANSLATION);
            if result.is_err() || !flushed || interfered.contains(&device) {
                continue;
            }
            let asking = &mut self.devices[device].asking;
            let left: Vec<_> = asking.sent.iter().filter_map(last_of).chain(asking.dropped.clone()).collect();
            ensure!(left.is_empty(), "after a drain groups {left:?} are neither reported nor answered");
            // Parts of groups for which there was no room, which nobody answers.
            asking.sent.clear();
        }
        self.count("drain", if result.is_ok() { "drained" } else { "failed" });
        self.give(
            nonce,
            self.owed(|device, pasid| devices.contains(&device) && wanted(pasid)),
            PageResponse::Invalid,
        )
    }

    /// In the end every group was answered, but for those that want no answer.
    pub(crate) fn all_answered(&mut self, nonce: u64) -> Outcomes {
        let all: Vec<usize> = (0..self.devices.len()).collect();
        self.drain(nonce, &all, |_| true)?;
        if self.faulted {
            return Ok(());
        }
        for device in &self.devices {
            let Asking { sent, owed, doubtful, endless, .. } = &device.asking;
            let waiting: Vec<u16> = (0..512).filter(|&group| device.function.has_asked(group)).collect();
            let excused = |group: &u16| endless.contains(group) || doubtful.contains(group);
            ensure!(waiting.iter().all(excused), "{:#x} waits for answers to {waiting:?}", device.sid);
            ensure!(owed.is_empty(), "{owed:?} are owed in the end");
            let lost: Vec<_> = sent.iter().filter_map(last_of).collect();
            ensure!(lost.is_empty(), "{lost:?} were never reported nor answered");
        }
        Ok(())
    }
}
