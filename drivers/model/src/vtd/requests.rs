//! The page request queue (specification 7.4 to 7.6).

use std::collections::{BTreeMap, VecDeque};

use super::State;
use super::chooser::Choices;
use super::config::Feature;
use super::env::{Env, Eyes};
use super::event::Event;
use super::points;
use super::reason;
use super::walk::{Purpose, Walker};
use crate::core::{
    Access, AddressKind, Downstream, PageRequest, PageResponse, Privilege, Request, ResponseCode,
};

/// PRS bits.
const PENDING: u32 = 1;
const OVERFLOW: u32 = 1 << 1;

/// Page request registers and what is on its way to memory.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    /// PQA as written.
    pub(super) address: u64,
    /// PQH and PQT, in bytes.
    pub(super) head: u64,
    pub(super) tail: u64,
    status: u32,
    pub(super) event: Event,
    /// Taken from the bus, not yet in memory.
    arriving: VecDeque<PageRequest>,
    /// Groups that software has to answer.
    open: BTreeMap<(u16, Option<u32>, u16), u32>,
}

impl Requests {
    pub(super) const fn new() -> Self {
        Self {
            address: 0,
            head: 0,
            tail: 0,
            status: 0,
            event: Event::new("page request event"),
            arriving: VecDeque::new(),
            open: BTreeMap::new(),
        }
    }

    /// Bytes in the ring: 2^PQS pages.
    const fn size(&self) -> u64 {
        4096 << (self.address & 7)
    }

    pub(super) const fn status(&self) -> u32 {
        self.status
    }

    pub(super) fn waiting(&self) -> bool {
        !self.arriving.is_empty()
    }

    /// Groups put into the queue and not answered: requester, PASID, group index.
    pub(super) fn open(&self) -> Vec<(u16, Option<u32>, u16)> {
        self.open.keys().copied().collect()
    }

    /// PRS is written.
    pub(super) fn acknowledge(&mut self, value: u32) {
        self.status &= !(value & (PENDING | OVERFLOW));
        if self.status == 0 {
            self.event.settle();
        }
    }

    /// Software answers a group; gives whether one was open.
    pub(super) fn answered(&mut self, requester: u16, pasid: Option<u32>, group: u16) -> bool {
        let key = (requester, pasid, group);
        match self.open.get_mut(&key) {
            Some(1) => self.open.remove(&key).is_some(),
            Some(count) => {
                *count -= 1;
                true
            }
            None => false,
        }
    }
}

/// A page request descriptor (specification 7.4.1.1).
fn encode(request: &PageRequest) -> [u64; 4] {
    let low = 1
        | u64::from(request.pasid.is_some()) << 8
        | u64::from(request.requester & 0xffff) << 16
        | u64::from(request.pasid.unwrap_or(0) & 0xf_ffff) << 32
        | u64::from(request.execute) << 52
        | u64::from(request.privileged) << 53;
    let high = u64::from(request.read)
        | u64::from(request.write) << 1
        | u64::from(request.last) << 2
        | u64::from(request.group & 0x1ff) << 3
        | request.address & !0xfff;
    [low, high, 0, 0]
}

impl State {
    /// A device sends a page request message.
    pub(super) fn page_request(&mut self, env: Env<'_>, request: PageRequest) {
        if let Err(reason) = self.admit(env, &request) {
            env.coverage.count("page request", "refused");
            let access = if request.write { Access::Write } else { Access::Read };
            let privilege = if request.privileged { Privilege::Supervisor } else { Privilege::User };
            let asked = Request {
                requester: request.requester,
                pasid: request.pasid,
                address: request.address,
                access,
                privilege,
                kind: AddressKind::Untranslated,
            };
            if let Some(reason) = reason {
                self.faults.record(env, &asked, reason);
            }
            self.respond(&request, ResponseCode::Failure);
            return;
        }
        self.requests.arriving.push_back(request);
        if !env.schedule.fires(points::REQUEST_LATE) {
            self.deliver_requests(env);
        }
    }

    /// Whether the context entry lets the device send page requests; else the reason to record, if any.
    fn admit(&mut self, env: Env<'_>, request: &PageRequest) -> Result<(), Option<u8>> {
        let (true, Some(root)) = (self.translating && env.config.has(Feature::PageRequests), self.root)
        else {
            return Err(None);
        };
        if root.mode != 1 {
            return Err(None);
        }
        let mut choices = Choices::default();
        let mut walker = Walker {
            eyes: Eyes { env, buffer: &mut self.buffer, lagging: false },
            caches: &mut self.caches,
            choices: &mut choices,
            purpose: Purpose::Prefetch,
            again: false,
            stale: None,
        };
        let loud = |reason, silent: bool| if silent { None } else { Some(reason) };
        let context =
            walker.context(root, request.requester as u16).map_err(|flaw| loud(flaw.reason, flaw.silent))?;
        if !context.page_requests {
            return Err(loud(reason::NO_PAGE_REQUESTS, context.silent));
        }
        if request.pasid.is_some() && !context.pasids {
            return Err(loud(reason::NO_PASID, context.silent));
        }
        Ok(())
    }

    /// Moves what has arrived into the queue in memory.
    pub(super) fn deliver_requests(&mut self, env: Env<'_>) {
        while let Some(request) = self.requests.arriving.pop_front() {
            let queue = &mut self.requests;
            let next = (queue.tail + 32) & (queue.size() - 1);
            let off = queue.address & !0xfff == 0;
            if off {
                env.violations.report("vtd page request without a queue", format_args!("{request:?}"));
            }
            if queue.status & OVERFLOW != 0 || next == queue.head || off {
                let quiet = queue.status == 0;
                queue.status |= OVERFLOW;
                if quiet {
                    queue.event.raise(env);
                }
                env.coverage.count("page request", "overflow");
                // The device is told to go on: it finds the page missing again and asks again.
                self.respond(&request, ResponseCode::Success);
                continue;
            }
            let base = (queue.address & !0xfff) + queue.tail;
            for (word, at) in encode(&request).into_iter().zip((base..).step_by(8)) {
                if env.memory.write64(at, word).is_err() {
                    env.coverage.count("page request", "write aborted");
                }
            }
            queue.tail = next;
            env.coverage.count("page request", "queued");
            if request.last && (request.read || request.write) {
                let key = (request.requester as u16, request.pasid, request.group);
                *queue.open.entry(key).or_default() += 1;
            }
            let quiet = queue.status == 0;
            queue.status |= PENDING;
            if quiet {
                queue.event.raise(env);
            }
        }
    }

    /// Answers for software; only the last request of a group is answered.
    fn respond(&mut self, request: &PageRequest, code: ResponseCode) {
        let asks = request.read || request.write;
        if let Some(messages) = self.links.get_mut(&request.requester).filter(|_| request.last && asks) {
            let response = PageResponse { pasid: request.pasid, group: request.group, code };
            messages.push_back(Downstream::PageResponse(response));
        }
    }
}
