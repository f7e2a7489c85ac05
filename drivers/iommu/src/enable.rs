//! PASIDs, page requests and ATS of a device: the orders in which unit and device learn of them.

use crate::iopf::Whose;
use crate::namespace::PasidOwner;
use crate::{
    AttachError, Device, DeviceId, Domain, Iommu, Missing, PasidError, PasidSpace, Permissions, Requests,
    Transition,
};
use alloc::vec::Vec;
use portcullis_hal::wait::Timeout;
use portcullis_hal::{Arc, Hal, OutOfMemory, Pasid, list};
use thiserror::Error;

/// Why a device did not do as it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ControlError {
    /// It did not take the setting.
    #[error("the device does not take the setting")]
    Refused,
    /// Page requests of its are outstanding.
    #[error(transparent)]
    Timeout(#[from] Timeout),
}

/// How a device is told what it may do: PCI's capabilities, or a platform's own means.
///
/// [`Iommu::enable`] and [`Iommu::disable`] call it in the order that the hardware demands. A step that failed has
/// changed nothing; to switch off what is off does nothing.
pub trait DeviceControl {
    /// The most that the device can do.
    fn offers(&self) -> Permissions;

    /// Lets the device use PASIDs. ATS is off.
    fn enable_pasids(&self) -> Result<(), ControlError>;

    /// Lets the device use none. ATS is off.
    fn disable_pasids(&self) -> Result<(), ControlError>;

    /// Resets the device's page requests, gives it credits and lets it make them.
    fn enable_page_requests(&self) -> Result<(), ControlError>;

    /// Lets the device make no page requests any more. Does not wait.
    fn stop_page_requests(&self);

    /// Waits until the device has answers to all page requests that it made before it was
    /// [stopped](Self::stop_page_requests).
    fn await_page_answers(&self) -> Result<(), ControlError>;

    /// Lets the device ask for translations and cache them.
    fn enable_translation_requests(&self) -> Result<(), ControlError>;

    /// Lets the device ask for none. What it has cached is invalidated afterwards, by the unit.
    fn disable_translation_requests(&self) -> Result<(), ControlError>;
}

/// A device that is not switched: one of a platform that always does what it can, say, or one whose permissions are only to
/// stand in the unit's tables. What it offers is the value's; every step succeeds and does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unswitched(pub Permissions);

impl DeviceControl for Unswitched {
    fn offers(&self) -> Permissions {
        self.0
    }

    fn enable_pasids(&self) -> Result<(), ControlError> {
        Ok(())
    }

    fn disable_pasids(&self) -> Result<(), ControlError> {
        Ok(())
    }

    fn enable_page_requests(&self) -> Result<(), ControlError> {
        Ok(())
    }

    fn stop_page_requests(&self) {}

    fn await_page_answers(&self) -> Result<(), ControlError> {
        Ok(())
    }

    fn enable_translation_requests(&self) -> Result<(), ControlError> {
        Ok(())
    }

    fn disable_translation_requests(&self) -> Result<(), ControlError> {
        Ok(())
    }
}

/// Why a device's features were not switched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EnableError {
    /// The device cannot do it.
    #[error("the device lacks {missing}")]
    Device {
        /// What it lacks.
        missing: Missing,
    },
    /// They are on already.
    #[error("already enabled")]
    Enabled,
    /// The device did not do as it was told.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The unit does not permit it, or did not answer.
    #[error(transparent)]
    Unit(#[from] AttachError),
}

impl<H: Hal> Iommu<H> {
    /// Permits `device` what `wanted` says and switches it on there: the unit first, then PASIDs, page requests and ATS
    /// in the device.
    ///
    /// # Errors
    ///
    /// All is off then, and the device's domain is untouched, except as [`AttachError::Timeout`] says. One who wants
    /// other features switches the present ones off first.
    pub fn enable(
        &self,
        device: &Device,
        control: &dyn DeviceControl,
        wanted: &Permissions,
    ) -> Result<(), EnableError> {
        let offers = control.offers();
        let mut missing = Missing::empty();
        missing.set(Missing::PASID, wanted.pasid_bits > offers.pasid_bits);
        let absent = wanted.requests.difference(offers.requests);
        missing.set(Missing::ATS, absent.contains(Requests::TRANSLATION));
        missing.set(Missing::PRI, absent.contains(Requests::PAGE));
        missing.set(Missing::STALL, absent.contains(Requests::STALL));
        if !missing.is_empty() {
            return Err(EnableError::Device { missing });
        }
        let mut wanted = *wanted;
        if wanted.requests.contains(Requests::PAGE) {
            // Not the caller's choice: what the device demands of answers.
            wanted.requests |= offers.requests & Requests::PASID_IN_ANSWERS;
        }
        let wanted = &wanted;
        let _attaching = self.attaching.lock();
        if device.permissions() != Permissions::NONE {
            return Err(EnableError::Enabled);
        }
        let unit = self.unit(device.unit()).ok_or(AttachError::Faulted)?;
        if wanted.requests.intersects(Requests::PAGE | Requests::STALL) {
            device.make_page_queue(&unit).map_err(AttachError::from)?;
        }
        unit.permit(device.endpoints(), wanted)?;
        match switch_on(control, wanted) {
            Ok(()) => {
                *device.permissions.lock() = *wanted;
                Ok(())
            }
            Err(error) => {
                unit.permit(device.endpoints(), &Permissions::NONE)?;
                Err(error.into())
            }
        }
    }

    /// Switches off what [`enable`](Self::enable) switched on: page requests in the device, which get their answers, ATS,
    /// then what the unit permits and the device has cached, and last PASIDs. The driver has quiesced the device.
    ///
    /// # Errors
    ///
    /// [`AttachError::PasidInUse`] while a PASID is attached; nothing has changed then. With any other error the device
    /// may do less than before, and the call can be repeated.
    pub fn disable(&self, device: &Device, control: &dyn DeviceControl) -> Result<(), EnableError> {
        let _attaching = self.attaching.lock();
        if let Some(pasid) = device.first_pasid() {
            return Err(AttachError::PasidInUse(pasid).into());
        }
        let unit = self.unit(device.unit()).ok_or(AttachError::Faulted)?;
        let on = device.permissions();
        if on.requests.contains(Requests::PAGE) {
            control.stop_page_requests();
        }
        if on.requests.intersects(Requests::PAGE | Requests::STALL) {
            self.drain_page_requests(device, Whose::Everybody).map_err(AttachError::from)?;
        }
        if on.requests.contains(Requests::PAGE) {
            control.await_page_answers()?;
        }
        if on.requests.contains(Requests::TRANSLATION) {
            control.disable_translation_requests()?;
        }
        unit.permit(device.endpoints(), &Permissions::NONE)?;
        if on.requests.contains(Requests::STALL) {
            // What was stalled up to now, after which nothing is.
            self.drain_page_requests(device, Whose::Everybody).map_err(AttachError::from)?;
        }
        if on.pasid_bits > 0 {
            control.disable_pasids()?;
        }
        *device.permissions.lock() = Permissions::NONE;
        Ok(())
    }

    /// Attaches one PASID of `device` to `domain`, replacing what it was attached to in one step. Other PASIDs, and
    /// requests without one, are not affected. Regions reserved for the device are not mapped: firmware's DMA and MSIs
    /// carry no PASID.
    ///
    /// # Errors
    ///
    /// As for [`attach`](Self::attach). [`AttachError::GroupInUse`] for a device that is not alone in its group:
    /// another one's requests could pass for its own. [`AttachError::PasidsClaimed`] while a nesting domain has the
    /// device's PASIDs.
    pub fn attach_pasid(
        &self,
        device: &Device,
        pasid: Pasid,
        domain: &Arc<dyn Domain>,
    ) -> Result<Transition, AttachError> {
        let _attaching = self.attaching.lock();
        if !device.permissions().allow(pasid) {
            return Err(AttachError::UnknownPasid(pasid));
        }
        if !self.is_alone(device) {
            return Err(AttachError::GroupInUse);
        }
        let unit = self.unit(device.unit()).ok_or(AttachError::Faulted)?;
        let _changing = device.changing.lock();
        if matches!(*device.owner.lock(), PasidOwner::Guest) {
            return Err(AttachError::PasidsClaimed);
        }
        device.pasids.lock().reserve()?;
        let result = unit.attach_pasid(device.endpoints(), pasid, domain);
        match result {
            Ok(_) => device.note(pasid, Some(PasidUse::Attached(domain.clone()))),
            Err(AttachError::Timeout(_) | AttachError::Lost) => {
                device.note(pasid, Some(PasidUse::Quarantined));
            }
            Err(_) => {}
        }
        result
    }

    /// Detaches one PASID of `device`: with it, the device reaches nothing any more, and its attempts are recorded.
    ///
    /// # Errors
    ///
    /// The hardware did not confirm that: the PASID is quarantined and cannot be released any more.
    pub fn detach_pasid(&self, device: &Device, pasid: Pasid) -> Result<(), AttachError> {
        let _attaching = self.attaching.lock();
        let unit = self.unit(device.unit()).ok_or(AttachError::Faulted)?;
        let _changing = device.changing.lock();
        let result = unit.detach_pasid(device.endpoints(), pasid);
        device.note(pasid, result.is_err().then_some(PasidUse::Quarantined));
        result
    }

    /// Gives a PASID back to its namespace.
    ///
    /// # Errors
    ///
    /// [`PasidError::Attached`] while a device of this registry uses it, or may still use it since its unit never
    /// confirmed the detachment.
    pub fn release_pasid(&self, space: &mut PasidSpace, pasid: Pasid) -> Result<(), PasidError> {
        let _attaching = self.attaching.lock();
        if self.devices.read().iter().any(|device| device.pasids.lock().find(pasid).is_some()) {
            return Err(PasidError::Attached(pasid));
        }
        space.release(pasid)
    }

    fn is_alone(&self, device: &Device) -> bool {
        let id: DeviceId = device.id();
        self.devices.read().iter().all(|other| other.id() == id || other.group() != device.group())
    }
}

/// Switches the device's features on in order, or leaves all off.
fn switch_on(control: &dyn DeviceControl, wanted: &Permissions) -> Result<(), ControlError> {
    if wanted.pasid_bits > 0 {
        control.enable_pasids()?;
    }
    let requests = || {
        if wanted.requests.contains(Requests::PAGE) {
            control.enable_page_requests()?;
        }
        if wanted.requests.contains(Requests::TRANSLATION) {
            control.enable_translation_requests().inspect_err(|_| {
                if wanted.requests.contains(Requests::PAGE) {
                    control.stop_page_requests();
                    complain(control.await_page_answers(), "page requests");
                }
            })?;
        }
        Ok(())
    };
    requests().inspect_err(|_| {
        if wanted.pasid_bits > 0 {
            complain(control.disable_pasids(), "PASIDs");
        }
    })
}

/// The unit refuses what the device goes on to ask for.
fn complain(result: Result<(), ControlError>, what: &str) {
    if let Err(error) = result {
        log::error!("{what} of a device could not be switched off: {error}");
    }
}

impl Device {
    /// What it may do besides untranslated accesses without a PASID.
    pub fn permissions(&self) -> Permissions {
        *self.permissions.lock()
    }

    /// The domain that a PASID of it is attached to, if any.
    pub fn pasid_domain(&self, pasid: Pasid) -> Option<Arc<dyn Domain>> {
        match self.pasids.lock().find(pasid)? {
            PasidUse::Attached(domain) => Some(domain.clone()),
            PasidUse::Quarantined => None,
        }
    }

    fn first_pasid(&self) -> Option<Pasid> {
        let pasids = self.pasids.lock();
        let mut attached = pasids.0.iter().filter(|(_, usage)| matches!(usage, PasidUse::Attached(_)));
        attached.next().map(|(pasid, _)| *pasid)
    }

    /// Any PASID in use.
    pub(crate) fn any_pasid(&self) -> Option<Pasid> {
        self.pasids.lock().0.first().map(|(pasid, _)| *pasid)
    }

    /// Whether a PASID is in use.
    pub(crate) fn uses(&self, pasid: Pasid) -> bool {
        self.pasids.lock().find(pasid).is_some()
    }

    /// Whether a PASID is in use for this domain.
    pub(crate) fn uses_for(&self, pasid: Pasid, domain: &Arc<dyn Domain>) -> UsedFor {
        match self.pasids.lock().find(pasid) {
            Some(PasidUse::Attached(theirs)) if Arc::ptr_eq(theirs, domain) => UsedFor::Domain,
            Some(PasidUse::Quarantined) => UsedFor::Quarantine,
            Some(PasidUse::Attached(_)) | None => UsedFor::Other,
        }
    }

    /// Notes to what a PASID that is in use was cut over, or that this was not confirmed.
    pub(crate) fn note_cut(&self, pasid: Pasid, blocked: Option<Arc<dyn Domain>>) {
        self.note(pasid, Some(blocked.map_or(PasidUse::Quarantined, PasidUse::Attached)));
    }

    /// Notes that a PASID that was just detached must not be used again.
    pub(crate) fn quarantine(&self, pasid: Pasid) {
        self.note(pasid, Some(PasidUse::Quarantined));
    }

    fn note(&self, pasid: Pasid, usage: Option<PasidUse>) {
        let old = self.pasids.lock().set(pasid, usage);
        drop(old);
    }

    /// Notes that no PASID is attached any more, as far as the hardware confirmed it.
    pub(crate) fn forget_pasids(&self, confirmed: bool) {
        let mut pasids = self.pasids.lock();
        if confirmed {
            let old = core::mem::take(&mut pasids.0);
            drop(pasids);
            drop(old);
        } else {
            pasids.0.iter_mut().for_each(|(_, usage)| *usage = PasidUse::Quarantined);
        }
    }
}

/// What a PASID of a device is in use for.
pub(crate) enum PasidUse {
    Attached(Arc<dyn Domain>),
    /// The unit did not confirm that it forgot the PASID.
    Quarantined,
}

/// What a PASID is in use for, seen from one domain.
pub(crate) enum UsedFor {
    Domain,
    Quarantine,
    Other,
}

/// A device's PASIDs in use, in ascending order.
pub(crate) struct Pasids(Vec<(Pasid, PasidUse)>);

impl Pasids {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    fn place(&self, pasid: Pasid) -> Result<usize, usize> {
        self.0.binary_search_by_key(&pasid, |(other, _)| *other)
    }

    fn find(&self, pasid: Pasid) -> Option<&PasidUse> {
        self.0.get(self.place(pasid).ok()?).map(|(_, usage)| usage)
    }

    fn reserve(&mut self) -> Result<(), OutOfMemory> {
        self.0.try_reserve(1).map_err(|_| OutOfMemory)
    }

    /// Notes what a PASID is in use for, for which there is room, and returns what it was.
    fn set(&mut self, pasid: Pasid, usage: Option<PasidUse>) -> Option<PasidUse> {
        match (self.place(pasid), usage) {
            (Ok(at), Some(usage)) => self.0.get_mut(at).map(|(_, slot)| core::mem::replace(slot, usage)),
            (Ok(at), None) => list::remove(&mut self.0, at).map(|(_, old)| old),
            (Err(at), Some(usage)) => {
                let _room = list::insert_reserved(&mut self.0, at, (pasid, usage));
                None
            }
            (Err(_), None) => None,
        }
    }
}
