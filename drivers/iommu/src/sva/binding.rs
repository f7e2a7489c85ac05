//! What the stack keeps of an address space that devices use: its notifier, and its page-fault handler.

use super::ExitHandler;
use crate::enable::UsedFor;
use crate::namespace::PasidOwner;
use crate::{
    AttachError, Device, Domain, FaultGroup, Handled, PageFaultHandler, PageResponse, PageRights, Unit,
};
use alloc::vec::Vec;
use portcullis_hal::snapshot::Snapshot;
use portcullis_hal::{
    Access, Arc, FaultOutcome, Gather, Iova, IovaRange, Mm, MmFault, MmNotifier, OutOfMemory, PAGE_SIZE,
    Pasid, PinError, SyncError, list,
};
use spin::Mutex;

/// The smallest page of any format, as a power of two: what changed may be as small.
const SMALLEST_LEAF: u8 = PAGE_SIZE.trailing_zeros() as u8;

/// Pages that stay resident for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinnedRange {
    /// The first byte's virtual address.
    pub first: u64,
    /// The last byte's virtual address.
    pub last: u64,
    /// What the device does with them.
    pub access: Access,
}

/// Pages of an address space that are resident for as long as this is kept.
pub(super) struct Pins {
    mm: Arc<dyn Mm>,
    ranges: Vec<PinnedRange>,
}

impl Pins {
    pub(super) fn new(mm: &Arc<dyn Mm>, ranges: &[PinnedRange]) -> Result<Self, PinError> {
        let mut pins = Self { mm: mm.clone(), ranges: Vec::new() };
        pins.ranges.try_reserve_exact(ranges.len()).map_err(|_| OutOfMemory)?;
        for range in ranges {
            mm.pin(range.first, range.last, range.access)?;
            let _room = list::push_reserved(&mut pins.ranges, *range);
        }
        Ok(pins)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        for range in &self.ranges {
            self.mm.unpin(range.first, range.last);
        }
    }
}

/// One bond.
pub(super) struct Use {
    pub(super) id: u64,
    pub(super) device: Arc<Device>,
    pub(super) unit: Arc<dyn Unit>,
    /// With which PASID; `None` for requests without one.
    pub(super) pasid: Option<Pasid>,
    /// What page requests may ask for as far as this bond goes.
    pub(super) rights: PageRights,
    pub(super) domain: Arc<dyn Domain>,
    /// What replaces the domain when the address space goes: made beforehand, since that must not fail.
    pub(super) blocked: Arc<dyn Domain>,
    pub(super) on_exit: Arc<dyn ExitHandler>,
    /// Whether the driver was told of the exit.
    pub(super) told: bool,
    pub(super) _pins: Option<Pins>,
}

impl Use {
    /// Whether this bond and others share a device's PASID.
    pub(super) fn shares(&self, device: &Arc<Device>, pasid: Option<Pasid>) -> bool {
        self.pasid == pasid && Arc::ptr_eq(&self.device, device)
    }

    /// Cuts the device off: no walks, and no reports either. Allocates nothing.
    fn cut(&self) -> Result<(), AttachError> {
        let _changing = self.device.changing.lock();
        let endpoints = self.device.endpoints();
        let blocked = || self.blocked.clone();
        match self.pasid {
            Some(pasid) => match self.device.uses_for(pasid, &self.domain) {
                UsedFor::Domain => {
                    let result = self.unit.attach_pasid(endpoints, pasid, &self.blocked);
                    self.device.note_cut(pasid, result.is_ok().then(blocked));
                    result.map(|_| ())
                }
                // It may be walking the tables still.
                UsedFor::Quarantine => Err(AttachError::Lost),
                UsedFor::Other => Ok(()),
            },
            None if self.device.domain().is_some_and(|domain| Arc::ptr_eq(&domain, &self.domain)) => {
                let result = self.unit.attach(endpoints, &self.blocked);
                let old = core::mem::replace(&mut *self.device.domain.lock(), result.is_ok().then(blocked));
                drop(old);
                result.map(|_| ())
            }
            None => Ok(()),
        }
    }
}

#[derive(Default)]
pub(super) struct State {
    pub(super) exited: bool,
    /// Taken with the first bond that has one, and kept up to the last bond's end.
    pub(super) pasid: Option<Pasid>,
    pub(super) next: u64,
    pub(super) uses: Vec<Use>,
}

impl State {
    /// What a device's page requests with the PASID may ask for: hardware does not tell bonds apart, so that each
    /// bond's rights are all of theirs while it lives.
    pub(super) fn rights(&self, device: &Arc<Device>, pasid: Option<Pasid>) -> PageRights {
        let theirs = self.uses.iter().filter(|bond| bond.shares(device, pasid));
        theirs.fold(PageRights::empty(), |all, bond| all | bond.rights)
    }
}

/// An address space and a namespace of PASIDs: there is one of these for both.
pub(crate) struct Binding {
    pub(super) mm: Arc<dyn Mm>,
    pub(super) owner: PasidOwner,
    /// Domains over the tables: one, unless units differ in what they can share.
    pub(super) domains: Snapshot<Vec<Arc<dyn Domain>>>,
    /// Taken in the notifier: not held while the address space is called.
    pub(super) state: Mutex<State>,
}

impl Binding {
    pub(super) fn new(mm: Arc<dyn Mm>, owner: PasidOwner) -> Result<Self, OutOfMemory> {
        let domains = Snapshot::new(Vec::new())?;
        Ok(Self { mm, owner, domains, state: Mutex::new(State::default()) })
    }

    pub(super) fn has(&self, domain: &Arc<dyn Domain>) -> bool {
        self.domains.read().iter().any(|ours| Arc::ptr_eq(ours, domain))
    }

    /// Resolves the faults of a group as the CPU's would be.
    fn resolve(&self, group: &FaultGroup) -> PageResponse {
        for request in group.requests() {
            let fault = MmFault { address: request.address.get(), access: request.access };
            if self.mm.handle_fault(fault) != FaultOutcome::Resolved {
                return PageResponse::Invalid;
            }
        }
        PageResponse::Success
    }
}

impl PageFaultHandler for Binding {
    fn handle(&self, group: FaultGroup) -> Handled {
        let exited = self.state.lock().exited;
        let response = if exited { PageResponse::Invalid } else { self.resolve(&group) };
        Handled::Now(group, response)
    }
}

impl MmNotifier for Binding {
    fn invalidate(&self, first: u64, last: u64) -> Result<(), SyncError> {
        let mut result = Ok(());
        // Reading the set stands behind a full fence: who attaches adds the domain first, and publishes then.
        for domain in self.domains.read().iter() {
            let aperture = domain.aperture();
            let mut gather = Gather::new();
            let last = last.min(aperture.last().get());
            match IovaRange::from_bounds(Iova::new(first), Iova::new(last)) {
                Ok(range) if range.covers(&aperture) => {}
                Ok(range) => gather.record(range, SMALLEST_LEAF),
                // Beyond what the domain translates.
                Err(_) => continue,
            }
            // One submission and one wait for each unit, unless very many devices cache; device TLBs after the unit's.
            result = domain.sync(&mut gather).map(|_proof| ()).and(result);
        }
        result
    }

    fn release(&self) -> Result<(), SyncError> {
        self.state.lock().exited = true;
        // Drivers first, without a lock held: they quiesce their devices.
        loop {
            let mut state = self.state.lock();
            let Some(next) = state.uses.iter_mut().find(|bond| !bond.told) else { break };
            next.told = true;
            let (on_exit, device, pasid) = (next.on_exit.clone(), next.device.clone(), next.pasid);
            drop(state);
            on_exit.exit(&device, pasid);
        }
        let mut result = Ok(());
        for bond in &self.state.lock().uses {
            if let Err(error) = bond.cut() {
                log::error!("device {} was not cut off an address space: {error}", bond.device.id());
                result = Err(match error {
                    AttachError::Timeout(timeout) => SyncError::Timeout(timeout),
                    _ => SyncError::Faulted,
                });
            }
        }
        result
    }
}
