//! The page requests of one device, from their arrival to the answer.

use super::groups::{Complete, Groups};
use super::incoming::{Incoming, Taken, Waiting, Whose, refusal};
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
    /// Answers that it is refused, for this reason if nobody was told it yet.
    Refuse(u64, Option<Refusal>),
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
    pub(crate) fn new(unit: Arc<dyn Unit>, device: DeviceId) -> Result<Self, OutOfMemory> {
        Ok(Self {
            unit,
            device,
            incoming: Mutex::new(Incoming::new()?),
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
        Counts::add(&self.counts.undelivered, usize::from(taken == Taken::Lost));
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
                Some(Waiting::Refused(answer)) => return Next::Refuse(groups.open(answer), None),
                Some(Waiting::Request(arrived)) => groups.sort(&arrived, &this.counts),
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
                    Next::Refuse(id, Some(refusal))
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

    /// Refuses all that somebody asked, with groups that handlers have still, and forgets what is incomplete. When it
    /// returns, none of their answers is owed or on its way.
    pub(crate) fn refuse_all<H: Hal>(&self, hal: &H, whose: Whose) {
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
                    match hal.critical(|| self.incoming.lock().take(whose)) {
                        Some(Waiting::Refused(answer)) => batch.push(answer),
                        Some(Waiting::Request(arrived)) => match refusal(&arrived.request) {
                            Some(answer) => batch.push(answer),
                            None => self.counts.dropped(1),
                        },
                        None => break,
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
