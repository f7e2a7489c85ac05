//! Attachments taken away, and what is kept when hardware does not confirm it. Nothing here allocates.

use crate::attach::{source_id, source_ids};
use crate::endpoint::Memory;
use crate::entry::{PRESENT, SILENT};
use crate::forget::{Batch, device_of, endpoint_gone, entry_changed, unit_and_device};
use crate::invalidate::{Descriptor, RID_PASID, Tag};
use crate::unit::{Inner, State};
use core::sync::atomic::Ordering;
use portcullis_hal::{Arc, EndpointId, Hal, Mmio, SyncError};
use portcullis_iommu::AttachError;

/// What becomes of accesses with a PASID that reaches nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Absence {
    /// They fault, and that is recorded.
    Recorded,
    /// Nobody is told: the PASID was taken away on purpose, from a device that may still use it.
    Silent,
}

impl<H: Hal, M: Mmio + 'static> Inner<H, M> {
    /// See [`Unit::detach_pasid`](portcullis_iommu::Unit::detach_pasid).
    pub(crate) fn detach_pasid(
        this: &Arc<Self>,
        endpoints: &[EndpointId],
        pasid: u32,
    ) -> Result<(), AttachError> {
        for &endpoint in endpoints {
            source_id(endpoint)?;
        }
        Self::detach_from(this, &mut this.state.lock(), endpoints, pasid, Absence::Recorded)
    }

    /// Takes an endpoint's PASID from whatever it is attached to, or the requests without one ([`RID_PASID`]). Others
    /// stay. Allocates nothing.
    pub(crate) fn detach_from(
        this: &Arc<Self>,
        state: &mut State<H>,
        endpoints: &[EndpointId],
        pasid: u32,
        absence: Absence,
    ) -> Result<(), AttachError> {
        // What is to be silent keeps the context entry, which serves other PASIDs too.
        let stays = |sid| {
            state.endpoint(sid).is_some_and(|endpoint| {
                endpoint.has_others(pasid) || absence == Absence::Silent && endpoint.is_live()
            })
        };
        if !source_ids(endpoints).any(stays) {
            return Self::block(this, state, endpoints);
        }
        for sid in source_ids(endpoints) {
            let Some(endpoint) = state.endpoint(sid) else { continue };
            let Some(old) = endpoint.attachment(pasid).map(|attachment| attachment.tag) else {
                // An earlier call may have ended before hardware confirmed it.
                this.confirm_forgotten(state, sid).map_err(|error| this.unconfirmed(error))?;
                if absence == Absence::Recorded {
                    Self::end_silence(this, state, sid, pasid)?;
                }
                continue;
            };
            let result = if absence == Absence::Silent {
                this.remove(state, sid, old, absence)
            } else if !endpoint.has_others(pasid) {
                let [endpoint] = [EndpointId::new(u32::from(sid))];
                Self::block(this, state, &[endpoint])?;
                continue;
            } else if pasid == RID_PASID {
                // Some units want a valid entry there beside PASIDs: it leads nowhere.
                state.nowhere().and_then(|(tag, entry)| {
                    this.replace(state, sid, pasid, Some(old), entry, tag).map(|_transition| ())
                })
            } else {
                this.remove(state, sid, old, absence)
            };
            if let Err(error) = result {
                this.give_up(state, endpoints);
                return Err(this.unconfirmed(error));
            }
            if let Some(endpoint) = state.endpoint_mut(sid)
                && let Some(old) = endpoint.detach(pasid)
            {
                endpoint.silenced += u32::from(absence == Absence::Silent);
                Self::leave(this, state, sid, &old);
            }
        }
        this.counters.attaches.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Has the faults of a PASID that reaches nothing recorded again.
    fn end_silence(this: &Arc<Self>, state: &mut State<H>, sid: u16, pasid: u32) -> Result<(), AttachError> {
        let Some(endpoint) = state.endpoint_mut(sid).filter(|endpoint| endpoint.is_silenced(pasid)) else {
            return Ok(());
        };
        if !endpoint.has_others(pasid) {
            return Self::block(this, state, &[EndpointId::new(u32::from(sid))]);
        }
        endpoint.silenced -= 1;
        endpoint.pasids.write(pasid, [0; 4]);
        if let Err(error) = this.announce_silence_ended() {
            this.give_up(state, &[EndpointId::new(u32::from(sid))]);
            return Err(this.unconfirmed(error));
        }
        Ok(())
    }

    /// Has the faults of those PASIDs recorded again that reach nothing and are not permitted any more, as if they were
    /// detached. Changes nothing where there are none.
    pub(crate) fn end_silence_beyond(
        this: &Arc<Self>,
        state: &mut State<H>,
        sid: u16,
        pasid_bits: u8,
    ) -> Result<(), SyncError> {
        let first = 1 << pasid_bits.min(20);
        let Some(endpoint) = state.endpoint_mut(sid) else { return Ok(()) };
        let ended = endpoint.silenced_from(first);
        if ended == 0 {
            return Ok(());
        }
        if endpoint.attachments.is_empty() && ended == endpoint.silenced {
            this.unpublish(state, sid);
            return Self::forget(this, state, sid);
        }
        endpoint.silenced -= ended;
        endpoint.pasids.clear_silent_from(first);
        this.announce_silence_ended()
    }

    /// Tells the unit that entries are not silent any more: it may have them, although they were not present, or what
    /// was written last on its way.
    fn announce_silence_ended(&self) -> Result<(), SyncError> {
        self.announce(|| Batch::of([Descriptor::pasid_cache_global()]))
    }

    /// Takes a PASID entry of an endpoint in use away. Its content stays until hardware has forgotten it.
    fn remove(&self, state: &State<H>, sid: u16, old: Tag, absence: Absence) -> Result<(), SyncError> {
        let endpoint = state.endpoint(sid).ok_or(SyncError::Faulted)?;
        let [first, ..] = endpoint.pasids.entry(old.pasid);
        let absent = if absence == Absence::Silent { SILENT } else { 0 };
        endpoint.pasids.store(old.pasid, 0, first & !PRESENT | absent);
        let device = device_of(sid, old.pasid, &endpoint.permissions);
        self.run_or_forget(entry_changed(&self.features, old, device).descriptors())?;
        endpoint.pasids.write(old.pasid, [absent, 0, 0, 0]);
        Ok(())
    }

    /// Denies everything to all endpoints, with any PASID; see [`Unit::detach`](portcullis_iommu::Unit::detach).
    /// Allocates nothing.
    pub(crate) fn detach(this: &Arc<Self>, endpoints: &[EndpointId]) -> Result<(), AttachError> {
        for &endpoint in endpoints {
            source_id(endpoint)?;
        }
        Self::block(this, &mut this.state.lock(), endpoints)
    }

    fn block(this: &Arc<Self>, state: &mut State<H>, endpoints: &[EndpointId]) -> Result<(), AttachError> {
        for sid in source_ids(endpoints) {
            this.unpublish(state, sid);
        }
        let mut result = Ok(());
        for sid in source_ids(endpoints) {
            if let Err(error) = Self::forget(this, state, sid) {
                this.quarantine(state, sid);
                result = Err(this.unconfirmed(error));
            }
        }
        this.counters.attaches.fetch_add(1, Ordering::Relaxed);
        result
    }

    /// Takes the context entry of an endpoint away, without making hardware forget it.
    fn unpublish(&self, state: &State<H>, sid: u16) {
        if let Some((contexts, number)) = state.context(sid) {
            contexts.update(number * 2, |quantum| quantum & !PRESENT);
        }
    }

    /// Makes hardware forget an endpoint whose context entry was taken away, and clears its PASID entries.
    fn forget(this: &Arc<Self>, state: &mut State<H>, sid: u16) -> Result<(), SyncError> {
        let Some(endpoint) = state.endpoint(sid) else { return Ok(()) };
        if !endpoint.is_live() {
            // An earlier call may have ended before hardware confirmed it.
            return this.confirm_forgotten(state, sid);
        }
        let only = match &*endpoint.attachments {
            // Beside PASIDs there is always an entry for the requests without one, if it is that which leads nowhere.
            [one] if one.tag.pasid == RID_PASID => Some(one.tag),
            _ => None,
        };
        let batch = endpoint_gone(&this.features, sid, only, &endpoint.permissions);
        this.run_or_forget(batch.descriptors())?;
        if only.is_none() {
            endpoint.pasids.write(RID_PASID, [0; 4]);
        }
        while let Some(endpoint) = state.endpoint_mut(sid)
            && let Some(old) = endpoint.attachments.pop()
        {
            endpoint.pasids.write(old.tag.pasid, [0; 4]);
            Self::leave(this, state, sid, &old);
        }
        if let Some(endpoint) = state.endpoint_mut(sid).filter(|endpoint| endpoint.silenced > 0) {
            endpoint.pasids.clear_silent_from(0);
            endpoint.silenced = 0;
        }
        Ok(())
    }

    /// After a change failed half-way: denies everything to the endpoints.
    pub(crate) fn give_up(&self, state: &mut State<H>, endpoints: &[EndpointId]) {
        for sid in source_ids(endpoints) {
            self.unpublish(state, sid);
            self.quarantine(state, sid);
        }
    }

    /// The hardware did not confirm that it forgot an endpoint, and may go on using its domains' tables and their ids:
    /// they stay as they are, for ever.
    fn quarantine(&self, state: &mut State<H>, sid: u16) {
        if let Some(endpoint) = state.endpoint_mut(sid) {
            endpoint.attachments.drain(..).for_each(core::mem::forget);
            endpoint.memory = Memory::Unknown;
            endpoint.silenced = 0;
        }
    }

    /// Makes sure that hardware does not use the tables of an endpoint that is not attached.
    pub(crate) fn confirm_forgotten(&self, state: &mut State<H>, sid: u16) -> Result<(), SyncError> {
        if let Some(endpoint) = state.endpoint_mut(sid)
            && endpoint.memory == Memory::Unknown
        {
            let batch = unit_and_device(&self.features, sid, &endpoint.permissions);
            self.run_or_forget(batch.descriptors())?;
            endpoint.memory = Memory::Nothing;
        }
        Ok(())
    }

    /// What to say of a change that the hardware did not confirm.
    pub(crate) fn unconfirmed(&self, error: SyncError) -> AttachError {
        match error {
            SyncError::Timeout(timeout) => AttachError::Timeout(timeout),
            SyncError::Faulted | SyncError::Gather(_) => {
                self.fault().map_or(AttachError::Lost, AttachError::Timeout)
            }
        }
    }
}
