//! Intel VT-d in scalable mode (Intel Virtualization Technology for Directed I/O, specification 4.x).
//!
//! [`Vtd`] is a remapping unit: a register file, an invalidation queue, translation with every cache that the
//! architecture allows, a fault log and a page request queue.
//!
//! What it does adversarially:
//!
//! * Context entries (2 quanta of 128 bits) and PASID table entries (4) are fetched quantum by quantum at any time:
//!   every mix of what the quanta held since the last invalidation that covered the entry is possible
//!   ([`Tearing`] says what is not).
//! * Table pointers and translations stay cached, tagged by domain id, PASID and type only, until an invalidation
//!   that covers them was executed and what the architecture orders behind it completed.
//! * With [`Feature::CachingMode`] entries that are not present are cached too; with
//!   [`Feature::WriteBufferFlush`] stores may be seen late; without [`Feature::Coherent`] and
//!   [`Feature::PageWalkCoherent`] only what was cleaned to memory is seen.
//! * A root-table address counts from SRTP on, and what was cached of the old tables stays unless CAP.ESRTPS is set.
//! * Hardware fetches ahead: [`Vtd::observe`] lets it cache all that it can reach for the requests given to
//!   [`Vtd::watch`]. Tests call it (or [`Vtd::step`], which does it) at every store of the driver.
//!
//! [`points`] names the choices of the schedule. Legacy mode, interrupt remapping and the enhanced command
//! interface are not modelled. What the architecture leaves open is resolved to the driver's disadvantage:
//! a domain-selective context-cache invalidation drops nothing in scalable mode.
//!
//! | coverage class | names |
//! |---|---|
//! | `command` | SRTP, WBF, TE and QIE on and off |
//! | `descriptor`, `queue error` | types with their granularity; IQE by cause, ITE, ICE, aborted status writes |
//! | `invalidated` | what an invalidation named, and whether it met something or nothing |
//! | `context`, `pasid` | transitions of entries as hardware saw them: absent, faulty, present, or the type |
//! | `dma` | fresh, or the kind of stale thing that was used |
//! | `fault`, `fault log` | reasons; recorded, collapsed, overflow, disabled by FPD |
//! | `page request`, `event`, `flags` | queued, refused, overflow; messages sent; accessed, dirty |
//!
//! | rule that software broke | |
//! |---|---|
//! | `vtd GCMD ...` | several changes at once, reserved bits, written before the last one took effect |
//! | `vtd TE set without a root table`, `vtd TTM changed while translating`, `vtd scalable mode without SMTS` | |
//! | `vtd QIE set with IQT not 0`, `vtd QIE cleared while busy`, `vtd IQA changed while enabled` | |
//! | `vtd IQT ...` | reserved bits, out of the queue, overruns IQH |
//! | `vtd ... reserved bits` | RTADDR, IQA, PQH, PQA |
//! | `vtd address not aligned to its mask`, `vtd domain id beyond ND` | in a descriptor |
//! | `vtd register-based invalidation` | CCMD or IOTLB_REG, which only legacy mode has |
//! | `vtd page group response without a request` | unknown or answered twice |
//! | `vtd page request without a queue` | PRE is set, PQA is not |
//! | `vtd read of no register`, `vtd write of no register`, `vtd write of a read-only register` | width, alignment, offset |
//!
//! Differences to QEMU's emulation are on purpose: there, everything is synchronous, ITE and ICE do not exist, a
//! cleared IQE needs a new write of IQT, RID_PASID is ignored, absent PASID entries report 0x5b, first-stage
//! entries depend on AW, and second-stage permission faults are 5 and 6.

mod caches;
mod chooser;
mod config;
mod descriptor;
mod entry;
mod env;
mod event;
mod faults;
mod fetches;
mod queue;
pub mod reason;
mod registers;
mod requests;
mod transact;
mod translate;
mod walk;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::core::{
    Coverage, Downstream, Interrupt, Interrupts, Memory, Mode, Outcome, PageRequest, Request, Response,
    Schedule, Upstream, Violation, Violations,
};
use caches::Caches;
use chooser::Choices;
pub use config::{Config, Feature, Tearing};
use env::{Env, WriteBuffer};
use translate::Root;
use walk::Purpose;

/// Names of the choices that the unit asks its schedule for. All are tame (never) unless odds or a script are set.
pub mod points {
    /// GCMD takes effect at the next [`step`](super::Vtd::step) instead of at once.
    pub const COMMAND_LATE: &str = "vtd.command.late";
    /// The queue takes no further descriptor for now.
    pub const QUEUE_PAUSE: &str = "vtd.queue.pause";
    /// The queue goes on although a wait without fence is still open.
    pub const QUEUE_OVERTAKE: &str = "vtd.queue.overtake";
    /// A descriptor cannot be fetched (IQE).
    pub const QUEUE_FETCH_ERROR: &str = "vtd.queue.fetch_error";
    /// A wait that could complete does not yet.
    pub const WAIT_LATE: &str = "vtd.wait.late";
    /// A wait never completes.
    pub const WAIT_LOST: &str = "vtd.wait.lost";
    /// At a step, devices that have not confirmed an invalidation have used up their time (ITE).
    pub const DEVICE_TIME_OUT: &str = "vtd.device.time_out";
    /// A confirmation that nobody expects is an error (ICE).
    pub const COMPLETION_ERROR: &str = "vtd.device.completion_error";
    /// A fault is dropped since one of the same requester is recorded.
    pub const FAULT_COLLAPSE: &str = "vtd.fault.collapse";
    /// A page request is written to memory at a later step.
    pub const REQUEST_LATE: &str = "vtd.page_request.late";
    /// Which behaviour a [`Mode::Any`](crate::core::Mode::Any) transaction takes.
    pub const DMA: &str = "vtd.dma";
}

#[derive(Debug)]
struct State {
    plain: registers::Plain,
    root: Option<Root>,
    translating: bool,
    queue: queue::Queue,
    faults: faults::Faults,
    requests: requests::Requests,
    caches: Caches,
    buffer: WriteBuffer,
    /// Messages for devices with an ATC.
    links: BTreeMap<u32, VecDeque<Downstream>>,
    watched: Vec<Request>,
}

/// A modelled remapping unit.
pub struct Vtd {
    config: Config,
    memory: Arc<dyn Memory>,
    schedule: Arc<Schedule>,
    violations: Violations,
    interrupts: Interrupts,
    coverage: Coverage,
    state: Mutex<State>,
}

impl fmt::Debug for Vtd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vtd").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Vtd {
    /// A unit after reset: everything off, all caches empty.
    #[must_use]
    pub fn new(config: Config, memory: Arc<dyn Memory>, schedule: Arc<Schedule>) -> Self {
        let state = State::new(&config);
        Self {
            config,
            memory,
            schedule,
            violations: Violations::default(),
            interrupts: Interrupts::default(),
            coverage: Coverage::default(),
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn env(&self) -> Env<'_> {
        Env {
            config: &self.config,
            memory: &*self.memory,
            schedule: &self.schedule,
            violations: &self.violations,
            interrupts: &self.interrupts,
            coverage: &self.coverage,
        }
    }

    /// What the unit can do.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// What software did against the architecture so far, and starts anew.
    pub fn take_violations(&self) -> Vec<Violation> {
        self.violations.take()
    }

    /// Messages sent for events since the last call.
    pub fn take_interrupts(&self) -> Vec<Interrupt> {
        self.interrupts.take()
    }

    /// What the run exercised: descriptors, faults, entry transitions, stale entries used, errors.
    #[must_use]
    pub const fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// Reads a 32-bit register, or half of a 64-bit one. Time passes: what is late may happen after it, so that
    /// polling a register comes to an end.
    pub fn read32(&self, offset: u64) -> u32 {
        let (env, state) = (self.env(), &mut *self.state());
        let value = state.read32(env, offset);
        state.progress(env);
        value
    }

    /// Reads a 64-bit register; time passes as with [`Vtd::read32`].
    pub fn read64(&self, offset: u64) -> u64 {
        let (env, state) = (self.env(), &mut *self.state());
        let value = state.read64(env, offset);
        state.progress(env);
        value
    }

    /// Writes a 32-bit register, or half of a 64-bit one.
    pub fn write32(&self, offset: u64, value: u32) {
        self.state().write32(self.env(), offset, value);
    }

    /// Writes a 64-bit register.
    pub fn write64(&self, offset: u64, value: u64) {
        self.state().write64(self.env(), offset, value);
    }

    /// Lets time pass: late commands take effect, the queue goes on, page requests arrive, and hardware fetches
    /// ahead as with [`Vtd::observe`].
    pub fn step(&self) {
        let env = self.env();
        let state = &mut *self.state();
        state.deliver_requests(env);
        if self.schedule.fires(points::DEVICE_TIME_OUT) {
            state.time_out(env);
        }
        state.progress(env);
        state.fetch_ahead(env);
    }

    /// Steps until nothing is left to do, at most `limit` times; gives whether that was reached.
    pub fn settle(&self, limit: usize) -> bool {
        (0..limit).any(|_| {
            self.step();
            !self.state().busy()
        })
    }

    /// From now on no descriptor is taken and no wait completes, until [`Vtd::unhang`].
    pub fn hang(&self) {
        self.state().queue.hung = true;
    }

    /// Undoes [`Vtd::hang`].
    pub fn unhang(&self) {
        self.state().queue.hung = false;
    }

    /// Devices that have not confirmed an invalidation have used up their time (ITE); gives how many
    /// invalidations were given up.
    pub fn time_out(&self) -> usize {
        self.state().time_out(self.env())
    }

    /// Hardware may from now on fetch ahead for a request like this one.
    pub fn watch(&self, request: Request) {
        let mut state = self.state();
        if !state.watched.contains(&request) {
            state.watched.push(request);
        }
        state.fetch_ahead(self.env());
    }

    /// Forgets all watched requests.
    pub fn unwatch_all(&self) {
        self.state().watched.clear();
    }

    /// Hardware fetches all that it can reach for the watched requests, by every way that is open to it.
    pub fn observe(&self) {
        self.state().fetch_ahead(self.env());
    }

    /// Performs or refuses one transaction, in one of the ways that hardware may do it, and records its fault.
    pub fn dma(&self, request: Request, mode: Mode) -> Response {
        let outcome = self.state().dma(self.env(), &request, mode);
        Response { outcome, tag: None }
    }

    /// What memory and registers say about a request, caches left aside. Nothing is recorded.
    pub fn expected(&self, request: Request) -> Outcome {
        let (env, state) = (self.env(), &mut *self.state());
        state.attempt(env, &request, &mut Choices::default(), Purpose::Explore).0
    }

    /// All outcomes that a request may have now, from every combination of what is cached and what is in memory.
    /// Nothing is recorded and no cache changes.
    pub fn reachable(&self, request: Request) -> BTreeSet<Outcome> {
        let (env, state) = (self.env(), &mut *self.state());
        state.outcomes(env, &request).into_iter().map(|(outcome, _)| outcome).collect()
    }

    /// Page request groups that are in the queue and not answered: requester, PASID, group index.
    pub fn open_groups(&self) -> Vec<(u16, Option<u32>, u16)> {
        self.state().requests.open()
    }

    /// How many page request groups wait for an answer.
    pub fn unanswered_groups(&self) -> usize {
        self.open_groups().len()
    }

    /// Versions held: context entries, PASID table entries, table pointers, translations.
    pub fn cache_len(&self) -> [usize; 4] {
        let state = self.state();
        let caches = &state.caches;
        [caches.contexts.len(), caches.pasids.len(), caches.walks.len(), caches.tlb.len()]
    }

    /// Power-on reset: registers and caches. Devices stay connected and requests watched.
    pub fn reset(&self) {
        let mut state = self.state();
        let (mut links, watched) = (std::mem::take(&mut state.links), std::mem::take(&mut state.watched));
        links.values_mut().for_each(VecDeque::clear);
        *state = State { links, watched, ..State::new(&self.config) };
    }
}

impl State {
    fn new(config: &Config) -> Self {
        Self {
            plain: registers::Plain::default(),
            root: None,
            translating: false,
            queue: queue::Queue::new(),
            faults: faults::Faults::new(config.fault_records()),
            requests: requests::Requests::new(),
            caches: Caches::default(),
            buffer: WriteBuffer::default(),
            links: BTreeMap::new(),
            watched: Vec::new(),
        }
    }

    /// What is late happens, as far as the schedule lets it.
    fn progress(&mut self, env: Env<'_>) {
        self.carry_out(env);
        self.advance_queue(env);
    }
}

impl Upstream for Vtd {
    fn dma(&self, request: Request, mode: Mode) -> Response {
        Self::dma(self, request, mode)
    }

    fn page_request(&self, request: PageRequest) {
        self.state().page_request(self.env(), request);
    }

    fn take_messages(&self, requester: u32) -> Vec<Downstream> {
        let mut state = self.state();
        state.links.get_mut(&requester).map(|messages| messages.drain(..).collect()).unwrap_or_default()
    }

    fn invalidation_done(&self, requester: u32, tag: u32) {
        self.state().confirm(self.env(), requester, tag);
    }

    fn connect(&self, requester: u32) {
        self.state().links.entry(requester).or_default();
    }
}
