//! Page requests and stalls among the random operations: devices ask at any time, and are answered at any time, whatever
//! became of their domains and permissions meanwhile. Each request that wants an answer gets one, and none gets two.

use crate::plan::Op;
use crate::setups::tell;
use crate::substreams::PASIDS;
use crate::world::{Finding, World, request};
use portcullis_hal::{Access, EndpointId};
use portcullis_iommu::{
    Answered, InGroup, PageAnswer, PageRequest, PageRequestKind, PageResponse, Requests, Unit as _,
};
use portcullis_model::core::{Mode, Outcome, Prng};
use portcullis_model::device::Job;

/// Page requests that a device may have outstanding.
pub(crate) const CREDITS: u32 = 24;

/// How often a unit is seen to until nothing waits: more than it takes with the smallest of queues.
const ROUNDS: usize = 400;

/// How devices may ask, with what the unit needs for it.
pub(crate) const ASKING: [Requests; 2] =
    [Requests::TRANSLATION.union(Requests::PAGE).union(Requests::PASID_IN_ANSWERS), Requests::STALL];

/// What is answered, of requests that want an answer.
pub(crate) fn answered(request: &PageRequest) -> Option<Answered> {
    match request.kind {
        PageRequestKind::Group(group, InGroup::Last) => Some(Answered::Group(group)),
        PageRequestKind::Stall(tag) => Some(Answered::Stall(tag)),
        PageRequestKind::Group(_, InGroup::Partial) | PageRequestKind::StopMarker => None,
    }
}

impl World {
    /// A device asks for pages, or makes accesses that may be stalled.
    pub(crate) fn ask(&mut self, op: &Op, prng: &mut Prng) -> Result<(), Finding> {
        let may_ask = |requests: Requests| requests.intersects(Requests::PAGE | Requests::STALL);
        let asking: Vec<(usize, u32)> = self
            .streams
            .iter()
            .filter(|(_, stream)| may_ask(stream.permissions.requests))
            .map(|(place, _)| *place)
            .collect();
        if asking.is_empty() || self.suspect() {
            return Ok(());
        }
        let (unit, sid) = asking[op.with[0] as usize % asking.len()];
        let stream = self.stream(unit, sid).clone();
        let used = stream.pasids.keys().nth(prng.below(stream.pasids.len().max(1) as u64) as usize).copied();
        for _ in 0..1 + prng.below(12) {
            let some =
                PASIDS[prng.below(PASIDS.len() as u64) as usize] & ((1 << stream.permissions.pasid_bits) - 1);
            let pasid = match prng.below(8) {
                0 => None,
                1 => Some(some).filter(|pasid| *pasid != 0),
                _ => used.or(Some(some)).filter(|pasid| *pasid != 0),
            };
            let address = if prng.chance(1, 2) { self.recent(prng) } else { prng.next_u64() & 0x3fff_f000 };
            if stream.permissions.requests.contains(Requests::STALL) {
                let kind = if prng.chance(1, 2) { Access::READ } else { Access::WRITE };
                let request = portcullis_model::core::Request { pasid, ..request(sid, address, kind) };
                if matches!(self.dma(unit, request, Mode::Any)?, Outcome::Stalled(_)) {
                    self.count("asked by a stall");
                }
                continue;
            }
            let device = self.device(unit, sid);
            let job = |page: u64| Job { pasid, ..Job::read((address & !0xfff).wrapping_add(page << 12)) };
            let jobs: Vec<Job> = (0..1 + prng.below(3)).map(job).collect();
            match (pasid, prng.below(16)) {
                (Some(pasid), 0) => {
                    device.stop(pasid);
                    self.count("asked no more with a pasid");
                }
                _ if device.request_pages(&jobs).is_some() => self.count("asked for pages"),
                _ => self.count("asked without credit"),
            }
        }
        Ok(())
    }

    /// Some requests are answered, or all that there are.
    pub(crate) fn answer(&mut self, op: &Op, prng: &mut Prng) -> Result<(), Finding> {
        let unit = op.with[0] as usize % self.units.len();
        if self.suspect() {
            return Ok(());
        }
        if prng.chance(1, 4) {
            return self.answer_all(unit);
        }
        let mut list = Vec::new();
        for _ in 0..1 + prng.below(20) {
            let theirs: Vec<usize> = (0..self.asked.len()).filter(|&at| self.asked[at].0 == unit).collect();
            if theirs.is_empty() {
                break;
            }
            let at = theirs[prng.below(theirs.len() as u64) as usize];
            let response = match prng.below(40) {
                0 => PageResponse::Failure,
                1..20 => PageResponse::Success,
                _ => PageResponse::Invalid,
            };
            list.push((self.asked.swap_remove(at).1, response));
        }
        self.count("answered some");
        self.give(unit, &list)
    }

    /// Gives answers.
    fn give(&mut self, unit: usize, list: &[(PageRequest, PageResponse)]) -> Result<(), Finding> {
        let Some(driver) = self.units[unit].driver.clone() else { return Ok(()) };
        let answer = |(request, response): &(PageRequest, PageResponse)| {
            let PageRequest { endpoint, pasid, .. } = *request;
            Some(PageAnswer { endpoint, pasid, to: answered(request)?, response: *response })
        };
        let answers: Vec<PageAnswer> = list.iter().filter_map(answer).collect();
        self.log.push(format!("answer u{unit} {answers:x?}"));
        for answer in &answers {
            self.count(match answer.to {
                Answered::Group(_) => "answered a group",
                Answered::Stall(_) => "answered a stall",
            });
        }
        driver.answer(&answers).map_err(|error| format!("answers were not delivered: {error}"))?;
        // What was stalled is done or ended, or stalled once more.
        for (at, sid) in self.streams.keys() {
            if *at == unit {
                self.units[unit].model.take_resumed(*sid);
            }
        }
        self.digest()
    }

    /// Answers until nothing waits any more, and nobody.
    pub(crate) fn answer_all(&mut self, unit: usize) -> Result<(), Finding> {
        self.count("answered all");
        for _ in 0..ROUNDS {
            self.drain(unit)?;
            let (mine, others) = self.asked.drain(..).partition(|(at, _)| *at == unit);
            self.asked = others;
            let mine: Vec<(usize, PageRequest)> = mine;
            let list: Vec<_> =
                mine.into_iter().map(|(_, request)| (request, PageResponse::Invalid)).collect();
            self.give(unit, &list)?;
            let devices = self.atcs.iter().filter(|((at, _), _)| *at == unit);
            devices.for_each(|(_, device)| _ = device.step());
            let waiting = self.atcs.iter().any(|((at, _), device)| *at == unit && device.unanswered() > 0);
            if list.is_empty() && !waiting && self.units[unit].model.stalled() == (0, 0) {
                return Ok(());
            }
        }
        let devices = self.atcs.iter().filter(|((at, _), _)| *at == unit);
        let groups: Vec<(u32, usize)> =
            devices.map(|((_, sid), device)| (*sid, device.unanswered())).collect();
        let stalls = self.units[unit].model.open_stalls();
        Err(format!("unit {unit}: without an answer are groups of {groups:x?}, and stalls {stalls:x?}"))
    }

    /// A device stops asking, and has all answers.
    pub(crate) fn quiesce(&mut self, unit: usize, sids: &[u32]) -> Result<(), Finding> {
        let Some(driver) = self.units[unit].driver.clone() else { return Ok(()) };
        if !sids.iter().any(|&sid| self.stream(unit, sid).permissions.requests.contains(Requests::PAGE)) {
            return Ok(());
        }
        let endpoints: Vec<EndpointId> = sids.iter().map(|&sid| EndpointId::new(sid)).collect();
        let (model, inbox) = (self.units[unit].model.clone(), self.units[unit].inbox.clone());
        let drained = driver.drain_page_requests(&endpoints, &mut |event| tell(&model, &inbox, event));
        drained.map_err(|error| format!("a drain failed: {error}"))?;
        self.digest()?;
        let theirs =
            |(at, request): &(usize, PageRequest)| *at == unit && sids.contains(&request.endpoint.get());
        let (theirs, others): (Vec<_>, Vec<_>) = self.asked.drain(..).partition(theirs);
        self.asked = others;
        let list: Vec<_> = theirs.into_iter().map(|(_, request)| (request, PageResponse::Invalid)).collect();
        self.give(unit, &list)?;
        for &sid in sids {
            let device = self.device(unit, sid);
            (0..ROUNDS).take_while(|_| device.unanswered() > 0).for_each(|_| _ = device.step());
            if device.unanswered() > 0 {
                return Err(format!(
                    "{} groups of {sid:#x} have no answer after a drain",
                    device.unanswered()
                ));
            }
            device.set_pri(None);
        }
        self.count("quiesced");
        Ok(())
    }
}
