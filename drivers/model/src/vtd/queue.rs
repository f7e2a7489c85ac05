//! The invalidation queue: fetch, execution, waits, errors (specification 6.5.2).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::State;
use super::config::Feature;
use super::descriptor::{Descriptor, QueueError, WaitRequest};
use super::env::Env;
use super::event::Event;
use super::faults;
use super::points;
use crate::core::{AtcInvalidation, Downstream, PageResponse};

/// A wait that was fetched and has not completed.
#[derive(Clone, Debug)]
struct Wait {
    request: WaitRequest,
    /// Device-TLB invalidations ahead of it that devices have not confirmed.
    needs: BTreeSet<u32>,
    /// It never completes.
    lost: bool,
}

/// Queue registers and what is in flight.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    pub(super) enabled: bool,
    /// The test made the queue hang.
    pub(super) hung: bool,
    /// IQA as written.
    pub(super) address: u64,
    /// IQH and IQT, in bytes.
    pub(super) head: u64,
    pub(super) tail: u64,
    /// ICS.IWC.
    pub(super) complete: bool,
    pub(super) event: Event,
    waits: VecDeque<Wait>,
    /// Device-TLB invalidations on their way: tag and requester.
    outstanding: BTreeMap<u32, u16>,
    next_tag: u32,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            enabled: false,
            hung: false,
            address: 0,
            head: 0,
            tail: 0,
            complete: false,
            event: Event::new("invalidation event"),
            waits: VecDeque::new(),
            outstanding: BTreeMap::new(),
            next_tag: 0,
        }
    }

    /// 256-bit descriptors (IQA.DW).
    const fn wide(&self) -> bool {
        self.address >> 11 & 1 != 0
    }

    pub(super) const fn stride(&self) -> u64 {
        if self.wide() { 32 } else { 16 }
    }

    /// Bytes in the ring: 2^QS pages.
    pub(super) const fn size(&self) -> u64 {
        4096 << (self.address & 7)
    }

    /// Nothing is queued or in flight.
    pub(super) fn idle(&self) -> bool {
        self.head == self.tail && self.waits.is_empty()
    }

    /// Drops everything in flight, as disabling the queue does.
    pub(super) fn disable(&mut self) {
        self.enabled = false;
        self.head = 0;
        self.waits.clear();
        self.outstanding.clear();
    }

    /// Descriptors or confirmations that something still waits for.
    pub(super) fn busy(&self) -> bool {
        self.enabled && !(self.idle() && self.outstanding.is_empty())
    }
}

impl State {
    /// The tail register is written.
    pub(super) fn write_tail(&mut self, env: Env<'_>, value: u64) {
        let queue = &mut self.queue;
        if value & !0x7_fff0 != 0 {
            env.violations.report("vtd IQT reserved bits", format_args!("{value:#x}"));
        }
        let value = value & 0x7_fff0;
        let size = queue.size();
        if queue.enabled && value < size {
            // All indices are multiples of 16 below the size, which is a power of two.
            let queued = queue.tail.wrapping_sub(queue.head) & (size - 1);
            let added = value.wrapping_sub(queue.tail) & (size - 1);
            if queued + added >= size {
                let detail = format!("head {:#x} tail {:#x} -> {value:#x}", queue.head, queue.tail);
                env.violations.report("vtd IQT overruns IQH", detail);
            }
        }
        queue.tail = value;
        // Software that queues an invalidation has its earlier stores flushed by it.
        self.buffer.flush();
    }

    /// Takes descriptors until nothing is left or the schedule says so.
    pub(super) fn advance_queue(&mut self, env: Env<'_>) {
        if self.queue.hung {
            return;
        }
        self.complete_waits(env);
        while self.queue.enabled && !self.faults.has(faults::IQE) && !self.faults.has(faults::ITE) {
            let fenced = self.queue.waits.iter().any(|wait| wait.request.fence);
            let ahead = !self.queue.waits.is_empty();
            if self.queue.head == self.queue.tail
                || fenced
                || ahead && !env.schedule.fires(points::QUEUE_OVERTAKE)
                || env.schedule.fires(points::QUEUE_PAUSE)
            {
                break;
            }
            match self.fetch(env) {
                Ok(descriptor) => {
                    env.coverage.count("descriptor", descriptor.name());
                    self.queue.head = (self.queue.head + self.queue.stride()) & (self.queue.size() - 1);
                    self.execute(env, descriptor);
                }
                Err(error) => {
                    env.coverage.count("queue error", error.name());
                    self.faults.queue_error = self.faults.queue_error & !0xf | error as u64;
                    self.faults.set(env, faults::IQE);
                }
            }
            self.complete_waits(env);
        }
    }

    fn fetch(&mut self, env: Env<'_>) -> Result<Descriptor, QueueError> {
        let queue = &self.queue;
        if queue.tail >= queue.size() {
            return Err(QueueError::Tail);
        }
        if !queue.tail.is_multiple_of(queue.stride()) {
            return Err(QueueError::Misaligned);
        }
        if env.schedule.fires(points::QUEUE_FETCH_ERROR) {
            return Err(QueueError::Fetch);
        }
        let at = (queue.address & !0xfff) + queue.head;
        let mut words = [0; 4];
        for (word, address) in words.iter_mut().zip((at..at + queue.stride()).step_by(8)) {
            *word = env.memory.read64(address).ok_or(QueueError::Fetch)?;
        }
        let descriptor = Descriptor::decode(env.config, queue.wide(), words)?;
        if let Descriptor::Translation(_) = descriptor
            && words[1] >> 12 & ((1 << (words[1] & 0x3f).min(52)) - 1) != 0
        {
            env.violations.report("vtd address not aligned to its mask", format_args!("{:#x}", words[1]));
        }
        let domain = words[0] >> 16 & 0xffff;
        if matches!(descriptor, Descriptor::Translation(_) | Descriptor::Pasid(_))
            && domain >> env.config.domain_bits() != 0
        {
            env.violations.report("vtd domain id beyond ND", format_args!("{domain:#x}"));
        }
        Ok(descriptor)
    }

    fn execute(&mut self, env: Env<'_>, descriptor: Descriptor) {
        let caches = &mut self.caches;
        match descriptor {
            Descriptor::Context(scope) => {
                count(env, "context", caches.invalidate_contexts(scope));
            }
            Descriptor::Pasid(scope) => count(env, "PASID", caches.invalidate_pasids(scope)),
            Descriptor::Translation(scope) => {
                count(env, "translation", caches.invalidate_translations(scope));
            }
            Descriptor::DeviceTlb { requester, pasid, global, first, last } => {
                // Executed only after the IOTLB invalidations ahead of it.
                caches.commit();
                let tag = self.queue.next_tag;
                self.queue.next_tag += 1;
                if let Some(messages) = self.links.get_mut(&u32::from(requester)) {
                    self.queue.outstanding.insert(tag, requester);
                    let request = AtcInvalidation { tag, pasid, global, address: first, last };
                    messages.push_back(Downstream::Invalidate(request));
                }
            }
            Descriptor::InterruptEntries => {}
            Descriptor::Wait(request) => {
                let needs = self.queue.outstanding.keys().copied().collect();
                let lost = env.schedule.fires(points::WAIT_LOST);
                self.queue.waits.push_back(Wait { request, needs, lost });
            }
            Descriptor::PageGroupResponse { requester, pasid, group, code } => {
                if !self.requests.answered(requester, pasid, group) {
                    let detail = format!("{requester:#x} PASID {pasid:?} group {group}");
                    env.violations.report("vtd page group response without a request", detail);
                }
                if let Some(messages) = self.links.get_mut(&u32::from(requester)) {
                    let response = PageResponse { pasid, group, code };
                    messages.push_back(Downstream::PageResponse(response));
                }
            }
        }
    }

    fn complete_waits(&mut self, env: Env<'_>) {
        while let Some(wait) = self.queue.waits.front() {
            if wait.lost
                || wait.needs.iter().any(|tag| self.queue.outstanding.contains_key(tag))
                || env.schedule.fires(points::WAIT_LATE)
            {
                return;
            }
            let request = wait.request;
            self.queue.waits.pop_front();
            self.caches.commit();
            if request.drain {
                self.deliver_requests(env);
            }
            if let Some((address, data)) = request.status
                && env.memory.write32(address, data).is_err()
            {
                env.coverage.count("queue error", "status write aborted");
            }
            if request.interrupt && !std::mem::replace(&mut self.queue.complete, true) {
                self.queue.event.raise(env);
            }
        }
    }

    /// A device confirms an invalidation.
    pub(super) fn confirm(&mut self, env: Env<'_>, requester: u32, tag: u32) {
        let expected = self.queue.outstanding.get(&tag).is_some_and(|sid| u32::from(*sid) == requester);
        if expected {
            self.queue.outstanding.remove(&tag);
            self.advance_queue(env);
        } else if env.schedule.fires(points::COMPLETION_ERROR) {
            env.coverage.count("queue error", "ICE");
            let errors = &mut self.faults.queue_error;
            *errors = *errors & !(0xffff << 48) | u64::from(requester & 0xffff) << 48;
            self.faults.set(env, faults::ICE);
        }
    }

    /// The devices' time is up: the waits behind their invalidations are aborted.
    pub(super) fn time_out(&mut self, env: Env<'_>) -> usize {
        let Some((_, &requester)) = self.queue.outstanding.first_key_value() else { return 0 };
        let count = self.queue.outstanding.len();
        env.coverage.count("queue error", "ITE");
        self.queue.outstanding.clear();
        self.queue.waits.clear();
        let errors = &mut self.faults.queue_error;
        *errors = *errors & !(0xffff << 32) | u64::from(requester) << 32;
        self.faults.set(env, faults::ITE);
        count
    }

    /// Whether the queue may be disabled now, by the architecture's rules.
    pub(super) fn queue_quiet(&self) -> bool {
        let failed = self.faults.has(faults::IQE) || self.faults.has(faults::ITE);
        let hung = self.queue.hung || self.queue.waits.iter().any(|wait| wait.lost);
        self.queue.idle() || failed || hung
    }

    /// Whether the queue's width fits the translation mode.
    pub(super) fn check_queue(&self, env: Env<'_>) {
        let scalable = env.config.has(Feature::ScalableMode);
        if self.queue.wide() && !scalable {
            env.violations.report("vtd 256-bit descriptors without scalable mode", "IQA.DW");
        }
        if self.queue.address & 0x7f8 != 0 || self.queue.address & env.config.reserved_address() != 0 {
            env.violations.report("vtd IQA reserved bits", format_args!("{:#x}", self.queue.address));
        }
    }
}

/// Counts whether an invalidation met anything.
fn count(env: Env<'_>, what: &'static str, met: usize) {
    env.coverage.transition("invalidated", what, if met == 0 { "nothing" } else { "something" });
}
