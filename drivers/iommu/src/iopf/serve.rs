//! How requests come from units, and threads take turns with devices.

use super::incoming::{Taken, Whose, refusal};
use super::queue::{Next, PageQueue, TURN};
use super::{Handled, PageFaultHandler, PageFaultStats, PageRights};
use crate::{Device, Iommu, PageAnswer, PageRequest, PageRequestFlow, PageResponse, UnitEvent, UnitId};
use core::sync::atomic::Ordering;
use portcullis_hal::{Arc, Hal, OutOfMemory, Pasid, SyncError};
use thiserror::Error;

/// How often each device has its turn in one call at most.
const ROUNDS: usize = 16;

/// Whether there is more to do for [`handle_page_faults`](Iommu::handle_page_faults).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum PageFaultWork {
    /// Every request so far was given to its handler.
    Done,
    /// Requests are left: an interrupt brought them, devices go on asking, or handlers owe so many answers that no more were given to them, or a
    /// unit has more in its queue than one interrupt may take.
    More,
}

/// Why a device's page faults are not handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PageFaultError {
    /// The device was not permitted to make page requests, or to stall.
    #[error("page requests are not enabled")]
    NotEnabled,
    /// No memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The unit did not report what it has left.
    #[error(transparent)]
    Unit(#[from] SyncError),
}

/// How many requests of unknown devices wait for their refusal.
const STRAYS: usize = 64;

/// Refusals of requests that belong to no device that may make any. Some hardware passes on whatever a device asks
/// (SMMUv3, chapter 8): when the places run out, the requests that follow stay [there](PageRequestFlow::Held).
pub(crate) struct Strays {
    answers: [Option<(UnitId, PageAnswer)>; STRAYS],
    free: usize,
}

impl Strays {
    pub(crate) const fn new() -> Self {
        Self { answers: [None; STRAYS], free: STRAYS }
    }

    /// Keeps an answer, and tells how many places are left.
    fn push(&mut self, unit: UnitId, answer: PageAnswer) -> Option<usize> {
        let slot = self.answers.iter_mut().find(|slot| slot.is_none())?;
        *slot = Some((unit, answer));
        self.free -= 1;
        Some(self.free)
    }

    fn pop(&mut self) -> Option<(UnitId, PageAnswer)> {
        let answer = self.answers.iter_mut().find_map(Option::take)?;
        self.free += 1;
        Some(answer)
    }
}

impl<H: Hal> Iommu<H> {
    /// Queues a request for a thread. One of a device that may make none is returned, as its refusal if it wants an
    /// answer. Interrupts are masked.
    fn take_page_request(&self, unit: UnitId, request: PageRequest) -> Option<PageAnswer> {
        let owner = self.owner(unit, request.endpoint);
        let Some(queue) = owner.as_ref().and_then(|device| device.page_queue()) else {
            self.complain(unit, "a page request of a device that may make none was refused", None);
            return refusal(&request);
        };
        if queue.push(request) == Taken::Refused {
            self.complain(unit, "a device makes too many page requests", None);
        }
        None
    }

    /// Leaves the refusal of a stray request to a thread, if there is a place for it. Each unit that is not held finds one
    /// more: it reports one request at a time. Interrupts are masked.
    fn keep_stray(&self, unit: UnitId, answer: PageAnswer) {
        let Some(free) = self.strays.lock().push(unit, answer) else {
            let what = "a page request of a device that may make none was not answered";
            return self.complain(unit, what, None);
        };
        if free < self.unit_count()
            && let Some(unit) = self.unit(unit)
        {
            unit.set_page_request_flow(PageRequestFlow::Held);
        }
    }

    /// Incomplete groups of all devices behind a unit stay so. Interrupts are masked.
    pub(crate) fn lose_page_requests(&self, unit: UnitId) {
        self.for_each_device(|device| {
            if let (true, Some(queue)) = (device.unit() == unit, device.page_queue()) {
                queue.lose();
            }
        });
        self.complain(unit, "page requests were lost", None);
    }

    /// Groups page requests and stalls that interrupts have brought, has their handlers resolve them, and answers. For
    /// thread context, on any CPU, also on several at once. Devices take turns.
    ///
    /// To be called after interrupts, and again while there is [more](PageFaultWork::More); and after what drains a
    /// device's requests, which may have found more of other devices' than it had to read.
    pub fn handle_page_faults(&self) -> PageFaultWork {
        self.refuse_strays();
        if self.unread.swap(false, Ordering::AcqRel) {
            self.for_each_unit(|id, unit| {
                unit.set_page_request_flow(PageRequestFlow::Open);
                // What that leaves is noted.
                let (PageFaultWork::Done | PageFaultWork::More) = self.handle_interrupt(id);
            });
            self.refuse_strays();
        }
        match self.serve_all() {
            PageFaultWork::Done if !self.unread.load(Ordering::Acquire) => PageFaultWork::Done,
            _ => PageFaultWork::More,
        }
    }

    /// Each device has its turns.
    fn serve_all(&self) -> PageFaultWork {
        // Another device begins each time.
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut work = PageFaultWork::Done;
        for _ in 0..ROUNDS {
            let devices = self.devices.read().len();
            let mut served = false;
            work = PageFaultWork::Done;
            for index in 0..devices {
                let index = first.wrapping_add(index) % devices;
                let Some(device) = self.device_at(index) else { continue };
                let Some(queue) = device.page_queue() else { continue };
                match self.serve(device.unit(), queue) {
                    Served::Nothing => {}
                    Served::Some => served = true,
                    Served::Busy => work = PageFaultWork::More,
                }
            }
            if !served {
                return work;
            }
            work = PageFaultWork::More;
        }
        work
    }

    /// One device's turn.
    fn serve(&self, unit: UnitId, queue: &Arc<PageQueue>) -> Served {
        let mut answers = [(0, PageResponse::Invalid); TURN];
        let mut count = 0;
        let refused = queue.refuse_flooded(&self.hal);
        let mut served = if refused > 0 { Served::Some } else { Served::Nothing };
        for _ in refused..TURN {
            let answer = match PageQueue::next(queue, &self.hal) {
                Next::Idle => break,
                Next::Busy => {
                    if served == Served::Nothing {
                        served = Served::Busy;
                    }
                    break;
                }
                Next::Refuse(id, reason) => {
                    self.complain(unit, reason.complaint(), None);
                    Some((id, PageResponse::Invalid))
                }
                Next::Ask(handler, group) => match handler.handle(group) {
                    Handled::Now(group, response) => group.answer_with(queue, response),
                    Handled::Later => None,
                },
            };
            served = Served::Some;
            if let (Some(answer), Some(slot)) = (answer, answers.get_mut(count)) {
                *slot = answer;
                count += 1;
            }
        }
        if let Some(answers) = answers.get(..count).filter(|answers| !answers.is_empty()) {
            queue.answer(answers);
        }
        served
    }

    fn refuse_strays(&self) {
        for _ in 0..STRAYS {
            let Some((unit, answer)) = self.hal.critical(|| self.strays.lock().pop()) else { return };
            if let Some(unit) = self.unit(unit)
                && let Err(error) = unit.answer(&[answer])
            {
                log::error!("the refusal of a page request was not delivered: {error}");
            }
        }
    }

    /// Sets who resolves the page faults of a device's PASID, or of its requests without one, and which requests are
    /// allowed to begin with.
    ///
    /// # Errors
    ///
    /// [`PageFaultError::NotEnabled`] if the device may make no page requests and its transactions are not stalled.
    pub fn set_page_fault_handler(
        &self,
        device: &Device,
        pasid: Option<Pasid>,
        handler: Arc<dyn PageFaultHandler>,
        rights: PageRights,
    ) -> Result<(), PageFaultError> {
        let queue = device.page_queue().ok_or(PageFaultError::NotEnabled)?;
        Ok(queue.set_handler(pasid, handler, rights)?)
    }

    /// Ends the handling of page faults of a device's PASID. The driver has made sure that the device asks no more with
    /// it. When this returns, every request so far was answered, also those that a handler has still.
    ///
    /// # Errors
    ///
    /// The unit did not report what it has left: the PASID is not to be used again.
    pub fn remove_page_fault_handler(
        &self,
        device: &Device,
        pasid: Option<Pasid>,
    ) -> Result<(), PageFaultError> {
        let queue = device.page_queue().ok_or(PageFaultError::NotEnabled)?;
        queue.remove_handler(pasid);
        Ok(self.drain_page_requests(device, Whose::Pasid(pasid))?)
    }

    /// Brings what the unit has left of a device's requests, and refuses all that `whose` asked.
    pub(crate) fn drain_page_requests(&self, device: &Device, whose: Whose) -> Result<(), SyncError> {
        let Some(queue) = device.page_queue() else { return Ok(()) };
        let id = device.unit();
        let unit = self.unit(id).ok_or(SyncError::Faulted)?;
        let drained = unit.drain_page_requests(device.endpoints(), &mut |event| {
            self.hal.critical(|| self.event(id, event));
            // Here alone the unit may be called, and waited for.
            if event == UnitEvent::Unread {
                self.refuse_strays();
                unit.set_page_request_flow(PageRequestFlow::Open);
            }
        });
        self.refuse_strays();
        queue.refuse_all(&self.hal, whose);
        drained
    }

    /// What a unit tells. Interrupts are masked.
    pub(crate) fn event(&self, unit: UnitId, event: UnitEvent) {
        match event {
            UnitEvent::PageRequest(request) => {
                if let Some(answer) = self.take_page_request(unit, request) {
                    self.keep_stray(unit, answer);
                }
            }
            UnitEvent::PageRequestOverflow => self.lose_page_requests(unit),
            other => self.take_event(unit, other),
        }
    }
}

/// What came of a device's turn.
#[derive(PartialEq, Eq)]
enum Served {
    Nothing,
    Some,
    /// Its handlers owe too many answers.
    Busy,
}

impl Device {
    /// Counters of its page requests; `None` if they were never enabled.
    pub fn page_fault_stats(&self) -> Option<PageFaultStats> {
        self.page_queue().map(|queue| queue.stats())
    }
}
