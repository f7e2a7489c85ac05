//! Changes of attachments.
//!
//! The device has no way to exchange a domain's mappings in one step: a domain comes into being with its first
//! endpoint, and only then can mappings be made in it. So an attachment is disruptive, and one whose mappings cannot
//! all be made is taken back before the next request.

use crate::domain::Kind;
use crate::link::{Counters, Link, RequestError};
use crate::owners::Refusal;
use crate::request::Request;
use crate::requests::Priority;
use crate::space::Space;
use crate::spec::{AttachFlags, HostDomain, Status};
use crate::transport::Transport;
use alloc::vec::Vec;
use portcullis_hal::{Arc, EndpointId, Hal, OutOfMemory, SyncError, list};
use portcullis_iommu::{AttachError, DomainError, Grain, Missing};
use spin::Mutex;

/// An endpoint that is attached.
pub(crate) struct Attached<H: Hal, T: Transport> {
    pub(crate) endpoint: EndpointId,
    pub(crate) kind: Kind<H, T>,
}

/// The endpoints of a unit.
pub(crate) struct Attachments<H: Hal, T: Transport> {
    pub(crate) link: Arc<Link<H, T>>,
    /// Who is attached; held for moments only, with interrupts masked.
    pub(crate) table: Mutex<Vec<Attached<H, T>>>,
    /// Held by a change of attachments to its end.
    changing: Mutex<()>,
}

/// Why an endpoint did not get where it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MoveError {
    endpoint: EndpointId,
    error: RequestError,
}

impl From<MoveError> for AttachError {
    fn from(MoveError { endpoint, error }: MoveError) -> Self {
        match error {
            RequestError::Sync(error) => error.into(),
            RequestError::Refused(Refusal::Status(Status::NOENT)) => Self::UnknownEndpoint(endpoint),
            RequestError::Refused(Refusal::Status(Status::NOMEM)) => Self::OutOfMemory(OutOfMemory),
            RequestError::Refused(_) => Self::Refused,
        }
    }
}

impl<H: Hal, T: Transport> Attachments<H, T> {
    pub(crate) fn new(link: Arc<Link<H, T>>) -> Self {
        Self { link, table: Mutex::new(Vec::new()), changing: Mutex::new(()) }
    }

    fn table<R>(&self, section: impl FnOnce(&mut Vec<Attached<H, T>>) -> R) -> R {
        self.link.hal.critical(|| section(&mut self.table.lock()))
    }

    /// What an endpoint is attached to.
    pub(crate) fn get(&self, endpoint: EndpointId) -> Option<Kind<H, T>> {
        self.table(|table| {
            let found = table.iter().find(|attached| attached.endpoint == endpoint);
            found.map(|attached| attached.kind.clone())
        })
    }

    /// Notes what an endpoint is attached to. For an endpoint that had nothing there may be no room: it is then taken
    /// as not attached, which denies as much as a blocked one.
    fn set(&self, endpoint: EndpointId, kind: Option<Kind<H, T>>) {
        // The old value may be the last handle of a domain, which is not dropped under the lock.
        let _old = self.table(|table| {
            let index = table.iter().position(|attached| attached.endpoint == endpoint);
            match (index, kind) {
                (Some(index), Some(kind)) => {
                    table.get_mut(index).map(|attached| core::mem::replace(&mut attached.kind, kind))
                }
                (Some(index), None) => Some(table.swap_remove(index).kind),
                (None, Some(kind)) if table.len() < table.capacity() => {
                    table.push(Attached { endpoint, kind });
                    None
                }
                (None, kind) => kind,
            }
        });
    }

    /// Attaches all of `endpoints` to `kind`, or leaves them as they are.
    pub(crate) fn attach(&self, endpoints: &[EndpointId], kind: &Kind<H, T>) -> Result<(), AttachError> {
        let _changing = self.changing.lock();
        if matches!(kind, Kind::Blocked) {
            return self.block_all(endpoints);
        }
        if self.link.is_faulted() {
            return Err(AttachError::Faulted);
        }
        let mut before = Vec::new();
        before.try_reserve_exact(endpoints.len()).map_err(|_| OutOfMemory)?;
        self.table(|table| table.try_reserve(endpoints.len())).map_err(|_| OutOfMemory)?;
        for &endpoint in endpoints {
            // There is room: it was reserved.
            let _ = list::push_reserved(&mut before, (endpoint, self.get(endpoint)));
            let moved = self
                .kind_for(endpoint, kind)
                .and_then(|kind| Ok(self.go(endpoint, Some(&kind), Priority::Normal)?));
            if let Err(error) = moved {
                log::warn!("virtio-iommu: endpoint {endpoint} was not attached: {error}");
                let mut restored = true;
                for (endpoint, kind) in before.iter().rev() {
                    restored &= self.restore(*endpoint, kind.as_ref());
                }
                return Err(match error {
                    late @ AttachError::Timeout(_) => late,
                    error if restored => error,
                    _ => AttachError::Lost,
                });
            }
        }
        Counters::count(&self.link.counters.attaches);
        Ok(())
    }

    /// What an endpoint has to be attached to for a domain of this kind.
    fn kind_for(&self, endpoint: EndpointId, kind: &Kind<H, T>) -> Result<Kind<H, T>, AttachError> {
        if !matches!(kind, Kind::Identity) || self.link.limits.identity.is_some() {
            return Ok(kind.clone());
        }
        if let Some(direct @ Kind::Direct(_)) = self.get(endpoint) {
            return Ok(direct);
        }
        let space = Space::new(&self.link, Grain::Piece).map_err(|error| match error {
            DomainError::Unsupported { missing } => AttachError::Incompatible { missing },
            DomainError::OutOfMemory(error) => error.into(),
            DomainError::NoFreeId => AttachError::NoFreeId,
        })?;
        space.mirror(&self.link.probe(endpoint)?)?;
        Ok(Kind::Direct(space))
    }

    /// Brings an endpoint back to what it was attached to, or, if that cannot be, blocks it. Returns whether it is
    /// back.
    fn restore(&self, endpoint: EndpointId, kind: Option<&Kind<H, T>>) -> bool {
        let restored = !self.link.is_faulted() && self.go(endpoint, kind, Priority::Normal).is_ok();
        if !restored {
            log::error!("virtio-iommu: endpoint {endpoint} stays blocked");
            // The error that brought this about is reported; a device that does not answer cannot be told more.
            let _ = self.go(endpoint, Some(&Kind::Blocked), Priority::Blocking);
        }
        restored
    }

    /// Has the device take notice of an endpoint that is not attached, and leave it so. What it does not know it does
    /// not let through either.
    pub(crate) fn cut_off(&self, endpoint: EndpointId) -> Result<(), AttachError> {
        let call = |request| {
            let result = self.link.call(&request, Priority::Blocking);
            result.map_err(|error| AttachError::from(MoveError { endpoint, error }))
        };
        match call(self.attach_request(endpoint, &Kind::Blocked)) {
            Ok(()) => call(Request::Detach { domain: self.link.limits.blocked, endpoint }),
            Err(AttachError::UnknownEndpoint(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Blocks all of `endpoints`; tries all of them, whatever happens.
    fn block_all(&self, endpoints: &[EndpointId]) -> Result<(), AttachError> {
        let mut result = Ok(());
        for &endpoint in endpoints {
            match self.go(endpoint, Some(&Kind::Blocked), Priority::Blocking) {
                Ok(()) => Counters::count(&self.link.counters.attaches),
                Err(error) => result = Err(not_blocked(error)),
            }
        }
        result
    }

    /// Detaches all of `endpoints`; tries all of them, whatever happens.
    pub(crate) fn detach(&self, endpoints: &[EndpointId]) -> Result<(), AttachError> {
        let _changing = self.changing.lock();
        let mut result = Ok(());
        for &endpoint in endpoints {
            match self.go(endpoint, None, Priority::Blocking) {
                Ok(()) => Counters::count(&self.link.counters.attaches),
                Err(error) => result = Err(not_blocked(error)),
            }
        }
        result
    }

    /// Takes one endpoint from where it is to `to`.
    ///
    /// On an error it is where the table says: where it was, nowhere, or blocked. When the device did not answer it
    /// may be in either domain, and neither ever gives memory back.
    fn go(&self, endpoint: EndpointId, to: Option<&Kind<H, T>>, priority: Priority) -> Result<(), MoveError> {
        let from = self.get(endpoint);
        let fail = |error| MoveError { endpoint, error };
        // What a device that is out of order was told may not have been done.
        let doubtful = self.link.is_faulted() && matches!(to, Some(Kind::Blocked));
        if same(from.as_ref(), to) && !doubtful {
            return Ok(());
        }
        // Whoever changes mappings of either domain is let finish, and kept out. That takes as long as their requests,
        // of which there are finitely many and for each of which they wait a bounded time; blocking does not wait so
        // long.
        let patience = match priority {
            Priority::Normal => u64::MAX,
            Priority::Blocking => self.link.timeout_ns,
        };
        let from_gate = from.as_ref().and_then(space).map(|space| space.close(patience)).transpose();
        let to_gate = to.and_then(space).map(|space| space.close(patience)).transpose();
        let _to_gate = to_gate.map_err(|late| fail(SyncError::from(late).into()))?;
        if let Some(space) = from.as_ref().and_then(space) {
            let last = space.mappings(|mappings| mappings.endpoints) == 1;
            let settled = match &from_gate {
                Err(late) => Err((*late).into()),
                Ok(_) if last => space.quiesce(),
                Ok(_) => Ok(()),
            };
            if let Err(error) = settled {
                // The domain goes with requests not answered: its number is not used again.
                space.poison();
                if priority == Priority::Normal {
                    return Err(fail(error.into()));
                }
            }
        }
        self.request(endpoint, from.as_ref(), to, priority).map_err(fail)?;
        let Some(space) = to.and_then(space) else {
            return Ok(());
        };
        if space.mappings(|mappings| mappings.endpoints) > 1 {
            return Ok(());
        }
        space.replay().map_err(|error| {
            // Half of the mappings are there, and none may be used.
            let blocked = self.request(endpoint, to, Some(&Kind::Blocked), Priority::Blocking);
            if blocked.is_err() {
                space.poison();
            }
            fail(error)
        })
    }

    /// Asks the device for the change, and notes what came of it.
    fn request(
        &self,
        endpoint: EndpointId,
        from: Option<&Kind<H, T>>,
        to: Option<&Kind<H, T>>,
        priority: Priority,
    ) -> Result<(), RequestError> {
        let Some(to) = to else {
            return self.leave(endpoint, from, priority);
        };
        let attach = self.attach_request(endpoint, to);
        let mut left = from.is_none();
        let mut result = self.link.call(&attach, priority);
        if let (Err(RequestError::Refused(_)), Some(_)) = (result, from) {
            // A device may want to have the endpoint detached first (5.13.6.3.2), or have detached it and then refused.
            self.leave(endpoint, from, priority)?;
            left = true;
            result = self.link.call(&attach, priority);
        }
        match result {
            Ok(()) => {
                if !left {
                    uncount(from);
                }
                self.arrive(endpoint, to);
                Ok(())
            }
            // It is detached, or the device does not know it: that denies as much.
            Err(RequestError::Refused(_)) if left && matches!(to, Kind::Blocked) => Ok(()),
            Err(RequestError::Refused(refusal)) => Err(refusal.into()),
            Err(RequestError::Sync(error)) => {
                self.give_up(endpoint, from.filter(|_| !left), Some(to));
                Err(error.into())
            }
        }
    }

    /// The endpoint is attached to `to` now.
    fn arrive(&self, endpoint: EndpointId, to: &Kind<H, T>) {
        if let Some(space) = space(to) {
            space.mappings(|mappings| mappings.endpoints = mappings.endpoints.saturating_add(1));
        }
        self.set(endpoint, Some(to.clone()));
    }

    /// Detaches an endpoint from `from`; if the device refuses, it is blocked instead.
    fn leave(
        &self,
        endpoint: EndpointId,
        from: Option<&Kind<H, T>>,
        priority: Priority,
    ) -> Result<(), RequestError> {
        let Some(kind) = from else {
            return Ok(());
        };
        let domain = self.id(kind);
        let block = self.attach_request(endpoint, &Kind::Blocked);
        let mut now = None;
        let mut result = self.link.call(&Request::Detach { domain, endpoint }, priority);
        if let Err(RequestError::Refused(refusal)) = result {
            log::warn!("virtio-iommu: endpoint {endpoint} was not detached: {refusal}");
            now = Some(Kind::Blocked);
            result = self.link.call(&block, Priority::Blocking);
        }
        match result {
            Ok(()) => {
                uncount(from);
                self.set(endpoint, now);
            }
            Err(_) => self.give_up(endpoint, from, None),
        }
        result
    }

    /// The endpoint may be in either domain: neither gives memory back any more. It is noted as attached, so that
    /// it can still be blocked.
    fn give_up(&self, endpoint: EndpointId, from: Option<&Kind<H, T>>, to: Option<&Kind<H, T>>) {
        for space in [from, to].into_iter().flatten().filter_map(space) {
            space.poison();
        }
        if let (None, Some(to)) = (from, to) {
            self.arrive(endpoint, to);
        }
    }

    fn attach_request(&self, endpoint: EndpointId, kind: &Kind<H, T>) -> Request {
        Request::Attach {
            domain: self.id(kind),
            endpoint,
            flags: match kind {
                Kind::Identity => AttachFlags::BYPASS,
                Kind::Blocked | Kind::Direct(_) | Kind::Paging(_) => AttachFlags::empty(),
            },
        }
    }

    fn id(&self, kind: &Kind<H, T>) -> HostDomain {
        let limits = &self.link.limits;
        match kind {
            Kind::Blocked => limits.blocked,
            // Where it has no number, an endpoint gets a direct one instead; the empty domain is what denies.
            Kind::Identity => limits.identity.unwrap_or(limits.blocked),
            Kind::Direct(space) | Kind::Paging(space) => space.id,
        }
    }
}

/// Whether the domain belongs to this unit.
pub(crate) fn check_unit<H: Hal, T: Transport>(
    ours: &Arc<Link<H, T>>,
    theirs: &Arc<Link<H, T>>,
) -> Result<(), AttachError> {
    if Arc::ptr_eq(ours, theirs) {
        return Ok(());
    }
    Err(AttachError::Incompatible { missing: Missing::BACKEND })
}

/// Why an endpoint's access was not taken away for certain. A device that is out of order was told to; one that refuses
/// has changed nothing.
fn not_blocked(error: MoveError) -> AttachError {
    match error.into() {
        AttachError::Faulted => AttachError::Lost,
        error => error,
    }
}

fn space<H: Hal, T: Transport>(kind: &Kind<H, T>) -> Option<&Arc<Space<H, T>>> {
    match kind {
        Kind::Direct(space) | Kind::Paging(space) => Some(space),
        Kind::Blocked | Kind::Identity => None,
    }
}

/// An endpoint has left `from`; with the last one the domain has ceased to exist on the device.
fn uncount<H: Hal, T: Transport>(from: Option<&Kind<H, T>>) {
    if let Some(space) = from.and_then(space) {
        space.mappings(|mappings| mappings.endpoints = mappings.endpoints.saturating_sub(1));
    }
}

fn same<H: Hal, T: Transport>(a: Option<&Kind<H, T>>, b: Option<&Kind<H, T>>) -> bool {
    match (a, b) {
        (None, None) | (Some(Kind::Blocked), Some(Kind::Blocked)) => true,
        (Some(Kind::Identity), Some(Kind::Identity)) => true,
        (Some(Kind::Direct(a)), Some(Kind::Direct(b))) | (Some(Kind::Paging(a)), Some(Kind::Paging(b))) => {
            Arc::ptr_eq(a, b)
        }
        _ => false,
    }
}
