//! Shared virtual addresses: devices work on a process's tables.
//!
//! What users see of it is in the [guide](crate::guide#a-processs-own-addresses). An [`Entry`] is an address space in use:
//! its binding is told what happens to the tables and resolves the page faults, and has a use for each [`Bond`].
//!
//! # Locks
//!
//! The address space calls the notifier whenever it likes, with locks of its own held. So no lock that the notifier
//! takes is held here while the address space is called, and the notifier allocates nothing, drains nothing and waits
//! for nothing but invalidations.

mod binding;
mod feature;

pub(crate) use binding::Binding;
pub use binding::PinnedRange;
pub use feature::{Feature, FeatureError};

use crate::iopf::Whose;
use crate::namespace::PasidOwner;
use crate::{
    AttachError, Device, Domain, DomainError, DomainSpec, Iommu, PageFaultHandler, PageRights, PasidError,
    Transition, Unit,
};
use alloc::vec::Vec;
use binding::{Pins, State, Use};
use core::fmt;
use portcullis_hal::{
    Arc, Hal, Mm, MmNotifier, MmSubscription, OutOfMemory, Pasid, PinError, SharedTable, SubscribeError,
    SyncError, list, unsize_arc,
};
use thiserror::Error;

/// What a driver does when the address space goes before the bond does.
pub trait ExitHandler: Send + Sync {
    /// Makes the device stop using the PASID (or, without one, the addresses), and waits until it has. Afterwards the
    /// device is cut off. Called in thread context; neither bonds nor unbinds.
    fn exit(&self, device: &Device, pasid: Option<Pasid>);
}

/// Why a device was not bound to an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BindError {
    /// [`Feature::Sva`] is not enabled.
    #[error("shared virtual addresses are not enabled for the device")]
    NotEnabled,
    /// The address space is gone.
    #[error("the address space is gone")]
    Exited,
    /// The address space has a PASID already, which is wider than the device's.
    #[error("pasid {0} of the address space is wider than the device's")]
    TooWide(Pasid),
    /// No PASID.
    #[error(transparent)]
    Pasid(#[from] PasidError),
    /// The unit cannot walk the tables.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// The unit did not attach it.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A range could not be made resident.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// No memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

impl From<SubscribeError> for BindError {
    fn from(error: SubscribeError) -> Self {
        match error {
            SubscribeError::Released => Self::Exited,
            SubscribeError::OutOfMemory(error) => Self::OutOfMemory(error),
        }
    }
}

/// Why a bond did not end cleanly: the device is detached as far as the unit obeys, and the PASID not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UnbindError {
    /// The unit did not confirm that it forgot the PASID.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The unit did not report the page requests that it has left.
    #[error(transparent)]
    Drain(#[from] SyncError),
}

/// A device's right to use an address space. Ends when it is dropped, or by [`unbind`](Self::unbind); the driver has
/// made sure that the device uses the PASID no more.
#[must_use = "the bond ends when this is dropped"]
pub struct Bond<'a, H: Hal> {
    iommu: &'a Iommu<H>,
    binding: Arc<Binding>,
    device: Arc<Device>,
    pasid: Option<Pasid>,
    /// `None` once it has ended.
    id: Option<u64>,
}

impl<H: Hal> Bond<'_, H> {
    /// The PASID that stands for the address space; `None` if the device is attached as a whole.
    pub fn pasid(&self) -> Option<Pasid> {
        self.pasid
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Ends the bond. When this returns, the device cannot use the address space any more by this bond, and every page
    /// request of the PASID was answered if no other bond of the device needs it.
    ///
    /// # Errors
    ///
    /// The PASID is never used again. If the unit did not confirm that the device is detached, it goes on hearing what the
    /// address space unmaps.
    pub fn unbind(mut self) -> Result<(), UnbindError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), UnbindError> {
        match self.id.take() {
            Some(id) => self.iommu.end_bond(&self.binding, id),
            None => Ok(()),
        }
    }
}

impl<H: Hal> Drop for Bond<'_, H> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            log::error!("device {}: a bond did not end cleanly: {error}", self.device.id());
        }
    }
}

impl<H: Hal> fmt::Debug for Bond<'_, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bond").field("device", &self.device.id()).field("pasid", &self.pasid).finish()
    }
}

/// How a device uses an address space.
enum How {
    /// With its PASID, and page requests for at most these.
    Pasid(PageRights),
    /// As a whole, in resident pages.
    Whole(Pins),
}

/// An address space in use.
pub(crate) struct Entry {
    binding: Arc<Binding>,
    table: SharedTable,
    _subscription: MmSubscription,
}

impl Entry {
    fn new(mm: &Arc<dyn Mm>, owner: PasidOwner) -> Result<Self, BindError> {
        let binding = Arc::try_new(Binding::new(mm.clone(), owner)?)?;
        let notifier = unsize_arc!(binding.clone() => dyn MmNotifier);
        // Before anything is attached that would have to be told.
        let subscription = MmSubscription::new(mm.clone(), notifier)?;
        Ok(Self { binding, table: subscription.table(), _subscription: subscription })
    }

    /// Attaches a device behind `unit` to a domain over the tables: one that is there, if the unit can use it.
    fn attach(
        &self,
        unit: &Arc<dyn Unit>,
        attach: impl Fn(&Arc<dyn Domain>) -> Result<Transition, AttachError>,
    ) -> Result<Arc<dyn Domain>, BindError> {
        for domain in self.binding.domains.read().iter() {
            match attach(domain) {
                Ok(_) => return Ok(domain.clone()),
                Err(AttachError::Incompatible { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let domain = unit.new_domain(&DomainSpec::Shared(self.table))?;
        self.binding.domains.replace(|now| {
            let mut all = Vec::new();
            all.try_reserve_exact(now.len() + 1).map_err(|_| OutOfMemory)?;
            all.extend(now.iter().chain([&domain]).cloned());
            Ok::<_, OutOfMemory>(all)
        })?;
        // The notifier tells this domain too, from before the device can walk the tables.
        attach(&domain)?;
        Ok(domain)
    }
}

/// Lets the page requests of a device's PASID ask for what its bonds allow.
fn share_rights(state: &State, device: &Arc<Device>, pasid: Option<Pasid>) {
    if let (Some(pasid), Some(queue)) = (pasid, device.page_queue()) {
        queue.set_rights(Some(pasid), state.rights(device, Some(pasid)));
    }
}

impl<H: Hal> Iommu<H> {
    /// Binds a device to an address space: with the bond's PASID it reads and writes the process's memory at the
    /// process's addresses. `rights` says what else its page requests may ask for; several bonds of one device to one
    /// address space share a PASID, and so the rights of all that live. `on_exit` is told when the address space goes
    /// before the bond does.
    ///
    /// # Errors
    ///
    /// The device is as before, except as [`AttachError::Timeout`] and [`AttachError::Lost`] say.
    pub fn bind(
        &self,
        device: &Arc<Device>,
        mm: &Arc<dyn Mm>,
        rights: PageRights,
        on_exit: Arc<dyn ExitHandler>,
    ) -> Result<Bond<'_, H>, BindError> {
        if !device.is_enabled(Feature::Sva) {
            return Err(BindError::NotEnabled);
        }
        self.bond(device, mm, How::Pasid(rights), on_exit)
    }

    /// Attaches a device to an address space as a whole, for devices without PASIDs or without page faults: `ranges` are
    /// pinned, since nothing would fault them in. What the process unmaps or protects is out of the device's reach all
    /// the same.
    ///
    /// The device leaves what it was attached to, and is blocked when the bond ends. Where its interrupts are translated
    /// (Arm), the address space has to map them.
    ///
    /// # Errors
    ///
    /// As for [`bind`](Self::bind). Nothing stays pinned.
    pub fn attach_pinned(
        &self,
        device: &Arc<Device>,
        mm: &Arc<dyn Mm>,
        ranges: &[PinnedRange],
        on_exit: Arc<dyn ExitHandler>,
    ) -> Result<Bond<'_, H>, BindError> {
        let pins = Pins::new(mm, ranges)?;
        self.bond(device, mm, How::Whole(pins), on_exit)
    }

    fn bond(
        &self,
        device: &Arc<Device>,
        mm: &Arc<dyn Mm>,
        how: How,
        on_exit: Arc<dyn ExitHandler>,
    ) -> Result<Bond<'_, H>, BindError> {
        let owner = device.owner.lock().clone();
        let mut entries = self.bound.lock();
        let same = |entry: &Entry| Arc::ptr_eq(&entry.binding.mm, mm) && entry.binding.owner.is_same(&owner);
        let at = match entries.iter().position(same) {
            Some(at) => at,
            None => {
                list::push(&mut entries, Entry::new(mm, owner)?)?;
                entries.len() - 1
            }
        };
        let Some(entry) = entries.get(at) else { return Err(OutOfMemory.into()) };
        let binding = entry.binding.clone();
        match self.add_use(entry, device, how, on_exit) {
            Ok((id, pasid)) => Ok(Bond { iommu: self, binding, device: device.clone(), pasid, id: Some(id) }),
            Err(error) => {
                let unused = self.take_unused(&mut entries, &binding);
                // The address space is called without the lock.
                drop(entries);
                drop(unused);
                Err(error)
            }
        }
    }

    fn add_use(
        &self,
        entry: &Entry,
        device: &Arc<Device>,
        how: How,
        on_exit: Arc<dyn ExitHandler>,
    ) -> Result<(u64, Option<Pasid>), BindError> {
        let unit = self.unit(device.unit()).ok_or(AttachError::Faulted)?;
        let blocked = unit.new_domain(&DomainSpec::Blocked)?;
        let mut state = entry.binding.state.lock();
        if state.exited {
            return Err(BindError::Exited);
        }
        state.uses.try_reserve(1).map_err(|_| OutOfMemory)?;
        let (pasid, domain) = match &how {
            How::Pasid(rights) => self.attach_bound(entry, device, &unit, *rights, &mut state)?,
            How::Whole(_) => (None, entry.attach(&unit, |domain| self.attach(device, domain))?),
        };
        let (rights, pins) = match how {
            How::Pasid(rights) => (rights, None),
            How::Whole(pins) => (PageRights::empty(), Some(pins)),
        };
        let id = state.next;
        state.next += 1;
        let device = device.clone();
        let bond = Use {
            id,
            device: device.clone(),
            unit,
            pasid,
            rights,
            domain,
            blocked,
            on_exit,
            told: false,
            _pins: pins,
        };
        let _room = list::push_reserved(&mut state.uses, bond);
        share_rights(&state, &device, pasid);
        Ok((id, pasid))
    }

    /// Attaches the address space's PASID, unless another bond of the device has.
    fn attach_bound(
        &self,
        entry: &Entry,
        device: &Arc<Device>,
        unit: &Arc<dyn Unit>,
        rights: PageRights,
        state: &mut State,
    ) -> Result<(Option<Pasid>, Arc<dyn Domain>), BindError> {
        let mut uses = state.uses.iter();
        if let Some(bond) = uses.find(|bond| bond.pasid.is_some() && bond.shares(device, bond.pasid)) {
            return Ok((bond.pasid, bond.domain.clone()));
        }
        let pasid = match state.pasid {
            Some(pasid) if !device.permissions().allow(pasid) => return Err(BindError::TooWide(pasid)),
            Some(pasid) => pasid,
            None => {
                let max = device.max_pasid().ok_or(BindError::NotEnabled)?;
                let pasid = match &entry.binding.owner {
                    PasidOwner::System => self.system.allocate_for_mm(max)?,
                    PasidOwner::Itself(own) => own.allocate_for_mm(max)?,
                    PasidOwner::Guest => return Err(AttachError::PasidsClaimed.into()),
                };
                *state.pasid.insert(pasid)
            }
        };
        if device.uses(pasid) {
            return Err(AttachError::PasidInUse(pasid).into());
        }
        let queue = device.page_queue().ok_or(BindError::NotEnabled)?;
        let handler = unsize_arc!(entry.binding.clone() => dyn PageFaultHandler);
        queue.set_handler(Some(pasid), handler, rights)?;
        let domain = entry
            .attach(unit, |domain| self.attach_pasid(device, pasid, domain))
            .inspect_err(|_| queue.remove_handler(Some(pasid)))?;
        Ok((Some(pasid), domain))
    }

    /// Ends a bond.
    fn end_bond(&self, binding: &Arc<Binding>, id: u64) -> Result<(), UnbindError> {
        let mut entries = self.bound.lock();
        let (device, pasid, blocked, shared) = {
            let mut state = binding.state.lock();
            let Some(bond) = state.uses.iter_mut().find(|bond| bond.id == id) else { return Ok(()) };
            // The driver knows that it is over.
            bond.told = true;
            let (device, pasid, blocked) = (bond.device.clone(), bond.pasid, bond.blocked.clone());
            let shared = state.uses.iter().filter(|bond| bond.shares(&device, pasid)).count() > 1;
            (device, pasid, blocked, shared)
        };
        // As long as the device may walk the tables, the notifier knows of it: also for ever, if that is what it takes.
        let drained = match pasid {
            _ if shared => Ok(()),
            Some(pasid) => {
                if let Some(queue) = device.page_queue() {
                    queue.remove_handler(Some(pasid));
                }
                self.detach_pasid(&device, pasid)?;
                let drained = self.drain_page_requests(&device, Whose::Pasid(Some(pasid)));
                if drained.is_err() {
                    device.quarantine(pasid);
                }
                drained
            }
            None => {
                if device.domain().is_some_and(|domain| binding.has(&domain)) {
                    self.attach(&device, &blocked)?;
                }
                Ok(())
            }
        };
        let ended = {
            let mut state = binding.state.lock();
            let at = state.uses.iter().position(|bond| bond.id == id);
            let ended = at.and_then(|at| list::remove(&mut state.uses, at));
            share_rights(&state, &device, pasid);
            ended
        };
        let unused = self.take_unused(&mut entries, binding);
        // The address space is called without the lock.
        drop(entries);
        drop(ended);
        drop(unused);
        Ok(drained?)
    }

    /// Takes an address space out of the list if nobody is bound to it any more, and gives its PASID back.
    fn take_unused(&self, entries: &mut Vec<Entry>, binding: &Arc<Binding>) -> Option<Entry> {
        let pasid = {
            let mut state = binding.state.lock();
            if !state.uses.is_empty() {
                return None;
            }
            state.pasid.take()
        };
        if let Some(pasid) = pasid {
            self.give_back(&binding.owner, pasid);
        }
        let at = entries.iter().position(|entry| Arc::ptr_eq(&entry.binding, binding))?;
        list::remove(entries, at)
    }

    /// The address space that a PASID of a device stands for.
    pub fn bound_mm(&self, device: &Device, pasid: Pasid) -> Option<Arc<dyn Mm>> {
        let owner = device.owner.lock().clone();
        let entries = self.bound.lock();
        let theirs = |entry: &&Entry| {
            entry.binding.owner.is_same(&owner) && entry.binding.state.lock().pasid == Some(pasid)
        };
        entries.iter().find(theirs).map(|entry| entry.binding.mm.clone())
    }
}
