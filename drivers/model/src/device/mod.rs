//! A PCIe function with PASID, ATS and PRI, well-behaved or not.
//!
//! It issues DMA under any PASID, keeps an address translation cache (ATC) that holds every grant it got until an
//! invalidation that covers it is *confirmed*, sends page requests in groups within its credits, and takes
//! messages only when it is stepped. [`points`] names its bad habits. It knows its IOMMU as [`Upstream`] only, so it
//! works behind both models.

mod atc;

use crate::core::{
    Access, AddressKind, AtcInvalidation, Coverage, Downstream, Grant, Mode, Outcome, PageRequest,
    PageResponse, Privilege, Request, Response, ResponseCode, Schedule, Upstream, Violation, Violations,
};
use atc::Atc;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Names of the choices that a device asks its schedule for. All are tame unless odds or a script are set.
pub mod points {
    /// Messages stay unread in this step.
    pub const DEAF: &str = "device.deaf";
    /// An invalidation is confirmed in a later step only; cached grants stay usable until then.
    pub const INVALIDATION_LATE: &str = "device.invalidation.late";
    /// An invalidation is never confirmed.
    pub const INVALIDATION_LOST: &str = "device.invalidation.lost";
    /// Page requests are sent beyond the credits.
    pub const CREDITS_IGNORED: &str = "device.credits.ignored";
    /// The last request of a group loses its last flag, so that nobody answers it.
    pub const LAST_LOST: &str = "device.last.lost";
    /// Page requests stay on their way until a confirmation of an invalidation pushes them.
    pub const REQUEST_HELD: &str = "device.request.held";
    /// Which cached grant a [`Mode::Any`](crate::core::Mode::Any) access uses.
    pub const ATC: &str = "device.atc";
}

/// One access as software asks the device to make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Job {
    /// Under which PASID.
    pub pasid: Option<u32>,
    /// Where.
    pub address: u64,
    /// What.
    pub access: Access,
    /// With which privilege.
    pub privilege: Privilege,
}

impl Job {
    /// A user read without a PASID.
    #[must_use]
    pub const fn read(address: u64) -> Self {
        Self { pasid: None, address, access: Access::Read, privilege: Privilege::User }
    }

    /// A user write without a PASID.
    #[must_use]
    pub const fn write(address: u64) -> Self {
        Self { access: Access::Write, ..Self::read(address) }
    }

    /// The same job under a PASID.
    #[must_use]
    pub const fn with_pasid(self, pasid: u32) -> Self {
        Self { pasid: Some(pasid), ..self }
    }
}

/// What came of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Attempt {
    /// The IOMMU answered.
    Answered(Response),
    /// The pages are asked for; the job is to be tried again when the group is answered.
    Requested {
        /// The page request group.
        group: u16,
    },
    /// A page request would be needed, and no credit is left.
    NoCredit,
    /// The device may not use this PASID, or PASIDs at all.
    Refused,
}

impl Attempt {
    /// The physical address if the access was performed.
    #[must_use]
    pub const fn output(&self) -> Option<u64> {
        match self {
            Self::Answered(response) => response.outcome.output(),
            _ => None,
        }
    }
}

#[derive(Default)]
struct State {
    ats: bool,
    /// Credits if PRI is enabled.
    pri: Option<u32>,
    /// Width of PASIDs if they are enabled.
    pasid_bits: Option<u8>,
    atc: Atc,
    /// Groups that wait for an answer: requests in the group, and the PASID.
    groups: BTreeMap<u16, (u32, Option<u32>)>,
    next_group: u16,
    /// Page requests sent that have not arrived.
    posted: Vec<PageRequest>,
    /// Invalidations taken and not confirmed.
    unconfirmed: Vec<AtcInvalidation>,
    /// Never to be confirmed.
    lost: Vec<u32>,
    answers: Vec<PageResponse>,
    /// A response said that page requests shall stop.
    failed: bool,
}

/// One function.
pub struct Device {
    requester: u32,
    link: Arc<dyn Upstream>,
    schedule: Arc<Schedule>,
    response_pasid: bool,
    violations: Violations,
    coverage: Coverage,
    state: Mutex<State>,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("requester", &self.requester).finish_non_exhaustive()
    }
}

impl Device {
    /// A function with everything disabled. `response_pasid` is its PRG Response PASID Required flag.
    pub fn new(
        requester: u32,
        link: Arc<dyn Upstream>,
        schedule: Arc<Schedule>,
        response_pasid: bool,
    ) -> Self {
        link.connect(requester);
        Self {
            requester,
            link,
            schedule,
            response_pasid,
            violations: Violations::default(),
            coverage: Coverage::default(),
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The requester id.
    #[must_use]
    pub const fn requester(&self) -> u32 {
        self.requester
    }

    /// Enables PASIDs of some bits, or disables them. Not allowed while ATS is enabled (PCIe 10.5.1.3).
    pub fn set_pasid(&self, bits: Option<u8>) {
        let mut state = self.lock();
        if state.ats && state.pasid_bits != bits {
            self.violations.report("device-enable", "PASID enable changed while ATS is enabled");
        }
        state.pasid_bits = bits;
    }

    /// Enables ATS with an empty cache, or disables it. Cached grants are not used while it is disabled.
    pub fn set_ats(&self, on: bool) {
        let mut state = self.lock();
        if state.pri.is_some() && !on {
            self.violations.report("device-enable", "ATS disabled while PRI is enabled");
        }
        if on && !state.ats {
            state.atc.clear();
        }
        state.ats = on;
    }

    /// Whether ATS is enabled.
    #[must_use]
    pub fn has_ats(&self) -> bool {
        self.lock().ats
    }

    /// Enables page requests with some credits, or disables them; enabling resets the interface.
    pub fn set_pri(&self, credits: Option<u32>) {
        let mut state = self.lock();
        if credits.is_none() && !state.groups.is_empty() {
            let text = format_args!("PRI disabled with {} groups unanswered", state.groups.len());
            self.violations.report("device-enable", text);
        }
        if credits.is_some() {
            (state.groups, state.failed) = (BTreeMap::new(), false);
        }
        state.pri = credits;
    }

    /// Function-level reset: everything disabled and forgotten, confirmations included.
    pub fn reset(&self) {
        *self.lock() = State::default();
    }

    fn request(&self, job: &Job, kind: AddressKind) -> Request {
        Request {
            requester: self.requester,
            pasid: job.pasid,
            address: job.address,
            access: job.access,
            privilege: job.privilege,
            kind,
        }
    }

    /// Makes an access the way the device is set up to: through the ATC, a translation request and a page request
    /// if ATS and PRI are enabled.
    pub fn access(&self, job: Job, mode: Mode) -> Attempt {
        let (ats, bits) = {
            let state = self.lock();
            (state.ats, state.pasid_bits)
        };
        if let Some(pasid) = job.pasid
            && bits.is_none_or(|bits| pasid >> bits != 0)
        {
            return Attempt::Refused;
        }
        if !ats {
            self.coverage.count("device", "untranslated");
            return Attempt::Answered(self.link.dma(self.request(&job, AddressKind::Untranslated), mode));
        }
        if let Some(address) = self.cached_target(&job, mode) {
            self.coverage.count("device", "ATC hit");
            return Attempt::Answered(self.translated(&job, address, mode));
        }
        self.coverage.count("device", "ATC miss");
        let response = self.link.dma(self.request(&job, AddressKind::TranslationRequest), mode);
        match response.outcome {
            Outcome::Granted(grant) => {
                self.lock().atc.insert(&job, grant);
                if let Some(address) = atc::target(&job, &grant) {
                    return Attempt::Answered(self.translated(&job, address, mode));
                }
                self.page(&job)
            }
            Outcome::NotGranted => self.page(&job),
            _ => Attempt::Answered(response),
        }
    }

    fn translated(&self, job: &Job, address: u64, mode: Mode) -> Response {
        self.link.dma(self.request(&Job { address, ..*job }, AddressKind::Translated), mode)
    }

    fn cached_target(&self, job: &Job, mode: Mode) -> Option<u64> {
        let targets = self.cached(*job);
        match mode {
            // What the IOMMU says now is what a device without a cache would use.
            Mode::Fresh => None,
            Mode::Hostile => targets.first().copied(),
            Mode::Any => {
                let pick = self.schedule.pick(points::ATC, targets.len() as u64 + 1) as usize;
                targets.get(pick).copied()
            }
        }
    }

    /// The physical (or intermediate) addresses that the device may use for a job out of its cache, oldest first.
    #[must_use]
    pub fn cached(&self, job: Job) -> Vec<u64> {
        let state = self.lock();
        if state.ats { state.atc.targets(&job) } else { Vec::new() }
    }

    /// Everything that may become of a job now: through grants in the cache, through new ones, or untranslated.
    /// `oracle` is the IOMMU's own answer to that question.
    pub fn reachable(&self, job: Job, oracle: impl Fn(Request) -> BTreeSet<Outcome>) -> BTreeSet<Outcome> {
        if !self.lock().ats {
            return oracle(self.request(&job, AddressKind::Untranslated));
        }
        let mut all = BTreeSet::new();
        let mut targets = self.cached(job);
        for outcome in oracle(self.request(&job, AddressKind::TranslationRequest)) {
            match outcome {
                Outcome::Granted(grant) => targets.extend(atc::target(&job, &grant)),
                other => {
                    all.insert(other);
                }
            }
        }
        for address in targets {
            all.extend(oracle(self.request(&Job { address, ..job }, AddressKind::Translated)));
        }
        all
    }

    /// Asks for a translation and keeps it, as a device does that fetches ahead.
    pub fn prefetch(&self, job: Job, mode: Mode) -> Option<Grant> {
        if !self.lock().ats {
            return None;
        }
        match self.link.dma(self.request(&job, AddressKind::TranslationRequest), mode).outcome {
            Outcome::Granted(grant) => {
                self.lock().atc.insert(&job, grant);
                Some(grant)
            }
            _ => None,
        }
    }

    fn page(&self, job: &Job) -> Attempt {
        if self.lock().pri.is_none() {
            return Attempt::Answered(Response { outcome: Outcome::NotGranted, tag: None });
        }
        match self.request_pages(&[*job]) {
            Some(group) => Attempt::Requested { group },
            None => Attempt::NoCredit,
        }
    }

    /// Sends one group of page requests; all jobs of a group have one PASID. `None` if there are not enough
    /// credits, PRI is disabled, or a failure response stopped it.
    pub fn request_pages(&self, jobs: &[Job]) -> Option<u16> {
        let (requests, group) = {
            let mut state = self.lock();
            let credits = state.pri?;
            let used: u32 = state.groups.values().map(|(count, _)| count).sum();
            let count = jobs.len() as u32;
            if state.failed {
                return None;
            }
            if used + count > credits {
                if !self.schedule.fires(points::CREDITS_IGNORED) {
                    return None;
                }
                self.coverage.count("device", "credits ignored");
            }
            let group =
                (0..512).map(|n| (state.next_group + n) % 512).find(|g| !state.groups.contains_key(g))?;
            state.next_group = (group + 1) % 512;
            state.groups.insert(group, (count, jobs.first()?.pasid));
            let lost = self.schedule.fires(points::LAST_LOST);
            let requests: Vec<_> = jobs
                .iter()
                .enumerate()
                .map(|(at, job)| PageRequest {
                    requester: self.requester,
                    pasid: job.pasid,
                    address: job.address & !0xfff,
                    read: job.access != Access::Write,
                    write: job.access == Access::Write,
                    execute: job.access == Access::Execute,
                    privileged: job.privilege == Privilege::Supervisor,
                    last: at + 1 == jobs.len() && !lost,
                    group,
                })
                .collect();
            (requests, group)
        };
        self.coverage.count("device", "page request group");
        self.send(requests);
        Some(group)
    }

    /// Says that no more requests of a PASID come: a stop marker.
    pub fn stop(&self, pasid: u32) {
        self.coverage.count("device", "stop marker");
        self.send(vec![PageRequest {
            requester: self.requester,
            pasid: Some(pasid),
            address: 0,
            read: false,
            write: false,
            execute: false,
            privileged: false,
            last: true,
            group: 0,
        }]);
    }

    /// Sends page requests, behind those that are still on their way.
    fn send(&self, requests: Vec<PageRequest>) {
        self.lock().posted.extend(requests);
        if self.schedule.fires(points::REQUEST_HELD) {
            self.coverage.count("device", "page request held");
        } else {
            self.push();
        }
    }

    /// What is on its way arrives.
    fn push(&self) {
        let posted = std::mem::take(&mut self.lock().posted);
        posted.into_iter().for_each(|request| self.link.page_request(request));
    }

    /// Takes messages and confirms invalidations, as the schedule lets it; gives how many messages were taken.
    pub fn step(&self) -> usize {
        if self.schedule.fires(points::DEAF) {
            return 0;
        }
        let messages = self.link.take_messages(self.requester);
        let count = messages.len();
        let confirmed = {
            let mut state = self.lock();
            for message in messages {
                match message {
                    Downstream::Invalidate(invalidation) => self.invalidate(&mut state, invalidation),
                    Downstream::PageResponse(response) => self.answered(&mut state, response),
                }
            }
            if self.schedule.fires(points::INVALIDATION_LATE) {
                Vec::new()
            } else {
                let confirmed = std::mem::take(&mut state.unconfirmed);
                confirmed.iter().for_each(|invalidation| state.atc.drop_covered(invalidation));
                confirmed
            }
        };
        // Confirmations do not overtake page requests (PCIe 10.3.1, 2.4.1).
        if !confirmed.is_empty() || !self.schedule.fires(points::REQUEST_HELD) {
            self.push();
        }
        for invalidation in confirmed {
            self.coverage.count("device", "invalidation confirmed");
            self.link.invalidation_done(self.requester, invalidation.tag);
        }
        count
    }

    fn invalidate(&self, state: &mut State, invalidation: AtcInvalidation) {
        if self.schedule.fires(points::INVALIDATION_LOST) {
            self.coverage.count("device", "invalidation lost");
            state.lost.push(invalidation.tag);
        } else {
            state.unconfirmed.push(invalidation);
        }
    }

    fn answered(&self, state: &mut State, response: PageResponse) {
        self.coverage.count(
            "page response",
            match response.code {
                ResponseCode::Success => "success",
                ResponseCode::InvalidRequest => "invalid request",
                ResponseCode::Failure => "failure",
            },
        );
        match state.groups.remove(&response.group) {
            None => {
                let text = format_args!("group {}: nothing was asked", response.group);
                self.violations.report("device-response", text);
            }
            // Automatic answers of a failed interface carry no PASID.
            Some((_, pasid)) if response.code != ResponseCode::Failure => {
                let missing = self.response_pasid && response.pasid.is_none() && pasid.is_some();
                if missing || response.pasid.is_some() && response.pasid != pasid {
                    let (group, got) = (response.group, response.pasid);
                    let text = format_args!("group {group}: asked by {pasid:x?}, answered to {got:x?}");
                    self.violations.report("device-response", text);
                }
            }
            Some(_) => {}
        }
        state.failed |= response.code == ResponseCode::Failure;
        state.answers.push(response);
    }

    /// Answers to page request groups since the last call.
    pub fn take_answers(&self) -> Vec<PageResponse> {
        std::mem::take(&mut self.lock().answers)
    }

    /// How many groups wait for an answer.
    pub fn unanswered(&self) -> usize {
        self.lock().groups.len()
    }

    /// Whether a group waits for an answer.
    #[must_use]
    pub fn has_asked(&self, group: u16) -> bool {
        self.lock().groups.contains_key(&group)
    }

    /// How many grants are cached.
    pub fn atc_len(&self) -> usize {
        self.lock().atc.len()
    }

    /// What software did wrong towards the device.
    pub fn take_violations(&self) -> Vec<Violation> {
        self.violations.take()
    }

    /// What was exercised.
    pub const fn coverage(&self) -> &Coverage {
        &self.coverage
    }
}
