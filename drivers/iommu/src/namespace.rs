//! Whose PASIDs a device uses: the system's, its own, or a guest's.

use crate::{AttachError, Device, Iommu, PasidError, PasidSetId, PasidSetSpec, PasidSpace};
use core::fmt;
use portcullis_hal::{Arc, Hal, OutOfMemory, Pasid};
use spin::{Mutex, MutexGuard};

const FIRST: Pasid = match Pasid::new(1) {
    Ok(pasid) => pasid,
    Err(_) => unreachable!(),
};
const LAST: Pasid = match Pasid::new((1 << Pasid::MAX_BITS) - 1) {
    Ok(pasid) => pasid,
    Err(_) => unreachable!(),
};

/// A namespace that any number of devices use: a PASID out of it means the same to all of them.
pub struct PasidNamespace {
    space: Mutex<PasidSpace>,
    /// The set of address spaces that are bound.
    bound: Mutex<Option<PasidSetId>>,
}

impl PasidNamespace {
    /// All PASIDs there are.
    pub(crate) const fn new() -> Self {
        Self { space: Mutex::new(PasidSpace::new(LAST)), bound: Mutex::new(None) }
    }

    /// The allocator: for sets of others, and to look PASIDs up. Not for interrupt handlers.
    pub fn lock(&self) -> MutexGuard<'_, PasidSpace> {
        self.space.lock()
    }

    /// A PASID for an address space.
    pub(crate) fn allocate_for_mm(&self, max: Pasid) -> Result<Pasid, PasidError> {
        let mut bound = self.bound.lock();
        let mut space = self.space.lock();
        let set = match *bound {
            Some(set) => set,
            None => {
                let spec = PasidSetSpec { min: FIRST, max: LAST, quota: LAST.get() };
                *bound.insert(space.add_set(spec)?)
            }
        };
        space.allocate_up_to(set, max)
    }
}

impl fmt::Debug for PasidNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PasidNamespace").field(&*self.space.lock()).finish()
    }
}

/// Whose PASIDs a device uses.
#[derive(Clone)]
pub(crate) enum PasidOwner {
    System,
    Itself(Arc<PasidNamespace>),
    /// A nesting domain: the guest's table names them.
    Guest,
}

impl PasidOwner {
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::System, Self::System) => true,
            (Self::Itself(one), Self::Itself(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// A nesting domain's claim of all PASIDs of a device, for as long as it is kept: no host PASID can be attached to the
/// device.
#[must_use = "the claim ends when this is dropped"]
pub struct PasidClaim(Arc<Device>);

impl PasidClaim {
    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.0
    }
}

impl Drop for PasidClaim {
    fn drop(&mut self) {
        let _changing = self.0.changing.lock();
        *self.0.owner.lock() = PasidOwner::System;
    }
}

impl fmt::Debug for PasidClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PasidClaim").field(&self.0.id()).finish()
    }
}

impl<H: Hal> Iommu<H> {
    /// The PASIDs of all devices that have none of their own.
    pub fn system_pasids(&self) -> &PasidNamespace {
        &self.system
    }

    /// Gives a device a namespace of its own, for machines without work queues that devices share. It ends when the
    /// device goes back to the system's.
    ///
    /// # Errors
    ///
    /// [`AttachError::PasidInUse`] while one is attached, and [`AttachError::PasidsClaimed`].
    pub fn use_own_pasids(&self, device: &Device) -> Result<Arc<PasidNamespace>, AttachError> {
        let own = Arc::try_new(PasidNamespace::new()).map_err(|OutOfMemory| OutOfMemory)?;
        self.set_owner(device, PasidOwner::Itself(own.clone()))?;
        Ok(own)
    }

    /// Lets a device use the system's PASIDs again.
    ///
    /// # Errors
    ///
    /// As for [`use_own_pasids`](Self::use_own_pasids).
    pub fn use_system_pasids(&self, device: &Device) -> Result<(), AttachError> {
        self.set_owner(device, PasidOwner::System)
    }

    /// Claims all PASIDs of a device for a nesting domain. When the claim is dropped, the device uses the system's.
    ///
    /// # Errors
    ///
    /// [`AttachError::PasidInUse`] while a host PASID is attached, or quarantined, and
    /// [`AttachError::PasidsClaimed`].
    pub fn claim_pasids(&self, device: &Arc<Device>) -> Result<PasidClaim, AttachError> {
        self.set_owner(device, PasidOwner::Guest)?;
        Ok(PasidClaim(device.clone()))
    }

    fn set_owner(&self, device: &Device, owner: PasidOwner) -> Result<(), AttachError> {
        let _changing = device.changing.lock();
        if let Some(pasid) = device.any_pasid() {
            return Err(AttachError::PasidInUse(pasid));
        }
        let mut now = device.owner.lock();
        if matches!(*now, PasidOwner::Guest) {
            return Err(AttachError::PasidsClaimed);
        }
        let old = core::mem::replace(&mut *now, owner);
        drop(now);
        drop(old);
        Ok(())
    }

    /// Gives an address space's PASID back, unless a unit never confirmed that it forgot it: then it stays out.
    pub(crate) fn give_back(&self, owner: &PasidOwner, pasid: Pasid) {
        let mut used = false;
        self.for_each_device(|device| {
            used |= device.owner.lock().is_same(owner) && device.uses(pasid);
        });
        let released = match owner {
            _ if used => Err(PasidError::Attached(pasid)),
            PasidOwner::System => self.system.lock().release(pasid),
            PasidOwner::Itself(own) => own.lock().release(pasid),
            PasidOwner::Guest => Ok(()),
        };
        if let Err(error) = released {
            log::error!("pasid {pasid} is not used again: {error}");
        }
    }
}
