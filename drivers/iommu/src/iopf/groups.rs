//! What threads know of a device's requests: groups that are incomplete, groups that wait for an answer, and who
//! resolves them.

use super::incoming::{Arrived, Whose, refusal};
use super::{Counts, PageFaultHandler, PageRights, Refusal};
use crate::{InGroup, PageAnswer, PageRequest, PageRequestKind, PageResponse, Privilege};
use alloc::vec::Vec;
use portcullis_hal::{Access, Arc, OutOfMemory, Pasid, list};

/// How many requests of incomplete groups a device may have.
pub(crate) const PARTIAL_CAPACITY: usize = 128;

/// How many groups of a device wait for their handlers at most. The device's further requests stay in the queue.
pub(crate) const OPEN_CAPACITY: usize = 256;

/// Who resolves the faults of a PASID, or of requests without one.
struct Registered {
    pasid: Option<Pasid>,
    handler: Arc<dyn PageFaultHandler>,
    rights: PageRights,
}

/// An answer that is owed.
struct Open {
    id: u64,
    /// The response is put in when there is one.
    answer: PageAnswer,
}

/// Complete requests with their handler, or the reason why there is none to ask.
pub(super) struct Complete {
    pub(super) id: u64,
    pub(super) first: PageRequest,
    pub(super) more: Vec<PageRequest>,
    pub(super) handler: Result<Arc<dyn PageFaultHandler>, Refusal>,
}

pub(super) struct Groups {
    handlers: Vec<Registered>,
    partial: Vec<PageRequest>,
    /// How often the hardware had lost requests when those in `partial` came.
    epoch: u64,
    open: Vec<Open>,
    next: u64,
}

impl Groups {
    pub(super) fn new() -> Result<Self, OutOfMemory> {
        let (mut partial, mut open) = (Vec::new(), Vec::new());
        partial.try_reserve_exact(PARTIAL_CAPACITY).map_err(|_| OutOfMemory)?;
        open.try_reserve_exact(OPEN_CAPACITY).map_err(|_| OutOfMemory)?;
        Ok(Self { handlers: Vec::new(), partial, epoch: 0, open, next: 0 })
    }

    /// Sets who resolves the faults of a PASID, and returns who did before.
    pub(super) fn set_handler(
        &mut self,
        pasid: Option<Pasid>,
        handler: Arc<dyn PageFaultHandler>,
        rights: PageRights,
    ) -> Result<Option<Arc<dyn PageFaultHandler>>, OutOfMemory> {
        let new = Registered { pasid, handler, rights };
        match self.handlers.iter_mut().find(|registered| registered.pasid == pasid) {
            Some(old) => Ok(Some(core::mem::replace(old, new).handler)),
            None => list::push(&mut self.handlers, new).map(|()| None),
        }
    }

    /// Changes what requests with a PASID may ask for, if they have a handler.
    pub(super) fn set_rights(&mut self, pasid: Option<Pasid>, rights: PageRights) {
        if let Some(registered) = self.handlers.iter_mut().find(|registered| registered.pasid == pasid) {
            registered.rights = rights;
        }
    }

    pub(super) fn remove_handler(&mut self, pasid: Option<Pasid>) -> Option<Arc<dyn PageFaultHandler>> {
        let at = self.handlers.iter().position(|registered| registered.pasid == pasid)?;
        list::remove(&mut self.handlers, at).map(|registered| registered.handler)
    }

    /// Whether no further group can be handed out before one is answered.
    pub(super) fn is_full(&self) -> bool {
        self.open.len() >= OPEN_CAPACITY
    }

    /// Notes that an answer is owed, for which there is room, and gives it a number.
    pub(super) fn open(&mut self, answer: PageAnswer) -> u64 {
        let id = self.next;
        self.next += 1;
        let _room = list::push_reserved(&mut self.open, Open { id, answer });
        id
    }

    /// The answer that is owed under this number, unless it was given already.
    pub(super) fn close(&mut self, id: u64, response: PageResponse) -> Option<PageAnswer> {
        let at = self.open.iter().position(|open| open.id == id)?;
        let Open { answer, .. } = self.open.swap_remove(at);
        Some(PageAnswer { response, ..answer })
    }

    /// Takes back any group of theirs that was handed out.
    pub(super) fn revoke(&mut self, whose: Whose) -> Option<PageAnswer> {
        let id = self.open.iter().find(|open| whose.includes(open.answer.pasid))?.id;
        self.close(id, PageResponse::Invalid)
    }

    /// How many answers are owed.
    pub(super) fn owed(&self) -> usize {
        self.open.len()
    }

    /// Forgets incomplete groups, which get no answer.
    pub(super) fn forget_partial(&mut self, whose: Whose) -> usize {
        let before = self.partial.len();
        self.partial.retain(|request| !whose.includes(request.pasid));
        before - self.partial.len()
    }

    /// Takes the next request of the device. If a group is complete with it, or it stands for itself, an answer is owed
    /// from now on, for which there is room.
    pub(super) fn sort(&mut self, arrived: &Arrived, counts: &Counts) -> Option<Complete> {
        if self.epoch != arrived.epoch {
            self.epoch = arrived.epoch;
            counts.dropped(self.forget_partial(Whose::Everybody));
        }
        let request = &arrived.request;
        match request.kind {
            PageRequestKind::StopMarker => {
                counts.dropped(self.forget_partial(Whose::Pasid(request.pasid)));
                return None;
            }
            PageRequestKind::Group(_, InGroup::Partial) => {
                if self.partial.len() >= PARTIAL_CAPACITY
                    || list::push_reserved(&mut self.partial, *request).is_err()
                {
                    // The device asks for this page again after it has the answer to the others.
                    counts.dropped(1);
                }
                return None;
            }
            PageRequestKind::Group(_, InGroup::Last) | PageRequestKind::Stall(_) => {}
        }
        let answer = refusal(request)?;
        let more = self.rest_of(request, counts);
        let handler = self.admit(request, &more);
        Some(Complete { id: self.open(answer), first: *request, more, handler })
    }

    /// The earlier requests of the group that `last` completes.
    fn rest_of(&mut self, last: &PageRequest, counts: &Counts) -> Vec<PageRequest> {
        let PageRequestKind::Group(index, InGroup::Last) = last.kind else { return Vec::new() };
        let in_group = |request: &PageRequest| {
            request.endpoint == last.endpoint
                && matches!(request.kind, PageRequestKind::Group(theirs, _) if theirs == index)
        };
        let wanted = self.partial.iter().filter(|request| in_group(request)).count();
        let mut more = Vec::new();
        if wanted > 0 && more.try_reserve_exact(wanted).is_ok() {
            for request in self.partial.iter().filter(|request| in_group(request)) {
                let _reserved = list::push_reserved(&mut more, *request);
            }
        }
        self.partial.retain(|request| !in_group(request));
        // Without memory the device gets an answer to the last one, and asks for the others again.
        counts.dropped(wanted - more.len());
        more
    }

    /// Who resolves a group.
    fn admit(&self, first: &PageRequest, more: &[PageRequest]) -> Result<Arc<dyn PageFaultHandler>, Refusal> {
        let registered = self.handlers.iter().find(|registered| registered.pasid == first.pasid);
        let Registered { handler, rights, .. } = registered.ok_or(Refusal::Unknown)?;
        for request in core::iter::once(first).chain(more) {
            if request.pasid != first.pasid || request.access.is_empty() {
                return Err(Refusal::Malformed);
            }
            let fetches = request.access.contains(Access::EXECUTE);
            let supervisor = request.privilege == Privilege::Supervisor;
            if fetches && !rights.contains(PageRights::EXECUTE)
                || supervisor && !rights.contains(PageRights::SUPERVISOR)
            {
                return Err(Refusal::Rights);
            }
        }
        Ok(handler.clone())
    }
}
