//! The page requests of one device, from their arrival to the answer.

use super::groups::{Complete, Groups};
use super::incoming::{Incoming, Taken, Whose, refusal};
use super::refused::Pass;
use super::{Counts, FaultGroup, PageFaultHandler, PageFaultStats, PageRights, Refusal};
use crate::{Answered, DeviceId, GroupIndex, PageAnswer, PageRequest, PageResponse, Unit};
use portcullis_hal::{Arc, EndpointId, Hal, OutOfMemory, Pasid, SyncError};
use spin::Mutex;

/// How many groups of one device are resolved, and answered together, before it is another one's turn.
pub(super) const TURN: usize = 16;

/// Answers on their way to the hardware.
struct Batch {
    answers: [PageAnswer; TURN],
    len: usize,
}

impl Batch {
    const fn new() -> Self {
        const NONE: PageAnswer = PageAnswer {
            endpoint: EndpointId::new(0),
            pasid: None,
            to: Answered::Group(GroupIndex::new(0)),
            response: PageResponse::Invalid,
        };
        Self { answers: [NONE; TURN], len: 0 }
    }

    fn push(&mut self, answer: PageAnswer) {
        if let Some(slot) = self.answers.get_mut(self.len) {
            *slot = answer;
            self.len += 1;
        }
    }

    fn is_full(&self) -> bool {
        self.len == TURN
    }

    fn answers(&self) -> &[PageAnswer] {
        self.answers.get(..self.len).unwrap_or_default()
    }
}

/// What a thread does next.
pub(super) enum Next {
    /// Asks this handler.
    Ask(Arc<dyn PageFaultHandler>, FaultGroup),
    /// Answers that it is refused, for this reason.
    Refuse(u64, Refusal),
    /// Waits until handlers have answered.
    Busy,
    /// Nothing.
    Idle,
}

pub(crate) struct PageQueue {
    unit: Arc<dyn Unit>,
    device: DeviceId,
    /// Taken by interrupt handlers: others mask interrupts.
    incoming: Mutex<Incoming>,
    groups: Mutex<Groups>,
    /// Held from the moment at which an answer is not owed any more to the one at which the hardware has it.
    answering: Mutex<()>,
    counts: Counts,
}

impl PageQueue {
    pub(crate) fn new(
        unit: Arc<dyn Unit>,
        device: DeviceId,
        endpoints: &[EndpointId],
    ) -> Result<Self, OutOfMemory> {
        let incoming = Incoming::new(endpoints, unit.info().stall_places)?;
        Ok(Self {
            unit,
            device,
            incoming: Mutex::new(incoming),
            groups: Mutex::new(Groups::new()?),
            answering: Mutex::new(()),
            counts: Counts::default(),
        })
    }

    /// Takes what the hardware reported. Interrupts are masked.
    pub(super) fn push(&self, request: PageRequest) -> Taken {
        Counts::add(&self.counts.requests, 1);
        let taken = self.incoming.lock().push(request);
        Counts::add(&self.counts.flooded, usize::from(taken != Taken::Queued));
        taken
    }

    /// The hardware lost requests. Interrupts are masked.
    pub(super) fn lose(&self) {
        self.incoming.lock().lose();
    }

    pub(crate) fn set_handler(
        &self,
        pasid: Option<Pasid>,
        handler: Arc<dyn PageFaultHandler>,
        rights: PageRights,
    ) -> Result<(), OutOfMemory> {
        let old = self.groups.lock().set_handler(pasid, handler, rights)?;
        drop(old);
        Ok(())
    }

    pub(crate) fn set_rights(&self, pasid: Option<Pasid>, rights: PageRights) {
        self.groups.lock().set_rights(pasid, rights);
    }

    pub(crate) fn remove_handler(&self, pasid: Option<Pasid>) {
        let old = self.groups.lock().remove_handler(pasid);
        drop(old);
    }

    pub(crate) fn stats(&self) -> PageFaultStats {
        let owed = self.groups.lock().owed();
        self.counts.read(owed)
    }

    /// What is next for a thread; the answer is owed then.
    pub(super) fn next<H: Hal>(this: &Arc<Self>, hal: &H) -> Next {
        let mut groups = this.groups.lock();
        loop {
            if groups.is_full() {
                return Next::Busy;
            }
            // With the groups locked, so that two threads do not sort requests of one group.
            let complete = match hal.critical(|| this.incoming.lock().pop()) {
                None => return Next::Idle,
                Some(arrived) => groups.sort(&arrived, &this.counts),
            };
            let Some(Complete { id, first, more, handler }) = complete else { continue };
            return match handler {
                Ok(handler) => {
                    Counts::add(&this.counts.groups, 1);
                    let queue = this.clone();
                    Next::Ask(handler, FaultGroup { queue, owed: Some(id), device: this.device, first, more })
                }
                Err(refusal) => {
                    this.counts.refused(refusal);
                    Next::Refuse(id, refusal)
                }
            };
        }
    }

    /// Gives answers that are owed, up to [`TURN`] of them; those that are owed no more are left out.
    pub(super) fn answer(&self, answers: &[(u64, PageResponse)]) {
        let _answering = self.answering.lock();
        let mut batch = Batch::new();
        {
            let mut groups = self.groups.lock();
            for (id, response) in answers.iter().take(TURN) {
                if let Some(answer) = groups.close(*id, *response) {
                    batch.push(answer);
                }
            }
        }
        self.submit(&batch);
    }

    /// Refuses requests that found no room, up to [`TURN`] of them, and tells how many. Needs no room itself, so that
    /// handlers that owe answers do not keep these back.
    pub(super) fn refuse_flooded<H: Hal>(&self, hal: &H) -> usize {
        let _answering = self.answering.lock();
        let mut batch = Batch::new();
        while !batch.is_full() {
            let refused = hal.critical(|| self.incoming.lock().refuse_any());
            let Some(answer) = refused else { break };
            batch.push(answer);
        }
        self.submit(&batch);
        batch.len
    }

    /// Refuses all that somebody asked, with groups that handlers have still, and forgets what is incomplete. When it
    /// returns, none of their answers is owed or on its way. They ask no more; what others ask meanwhile does not
    /// prolong it beyond one answer for each place of a stall.
    pub(crate) fn refuse_all<H: Hal>(&self, hal: &H, whose: Whose) {
        let mut pass = Pass::default();
        loop {
            let _answering = self.answering.lock();
            let mut batch = Batch::new();
            {
                let mut groups = self.groups.lock();
                self.counts.dropped(groups.forget_partial(whose));
                while !batch.is_full() {
                    let Some(answer) = groups.revoke(whose) else { break };
                    batch.push(answer);
                }
                while !batch.is_full() {
                    let refused = hal.critical(|| self.incoming.lock().refuse(whose, &mut pass));
                    let Some(answer) = refused else { break };
                    batch.push(answer);
                }
                while !batch.is_full() {
                    let arrived = hal.critical(|| self.incoming.lock().take(whose));
                    let Some(arrived) = arrived else { break };
                    match refusal(&arrived.request) {
                        Some(answer) => batch.push(answer),
                        None => self.counts.dropped(1),
                    }
                }
            }
            if batch.answers().is_empty() {
                return;
            }
            self.submit(&batch);
        }
    }

    fn submit(&self, batch: &Batch) {
        let answers = batch.answers();
        if answers.is_empty() {
            return;
        }
        match self.unit.answer(answers) {
            Ok(()) => Counts::add(&self.counts.answers, answers.len()),
            Err(error) => self.undelivered(answers.len(), error),
        }
    }

    #[cold]
    fn undelivered(&self, count: usize, error: SyncError) {
        Counts::add(&self.counts.undelivered, count);
        log::error!("device {}: {count} answers to page requests were not delivered: {error}", self.device);
    }
}
