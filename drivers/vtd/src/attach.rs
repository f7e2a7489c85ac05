//! Changes of attachments, with and without PASID.

use crate::detach::Absence;
use crate::domain::PagingDomain;
use crate::endpoint::{Attachment, Endpoint, PasidEntry, PasidTables, Pdts};
use crate::entry::{Plan, Step, pasid_used, plan};
use crate::error::TableError;
use crate::forget::{Batch, Requester, device_of, endpoint_appeared, entry_appeared, entry_changed};
use crate::invalidate::{RID_PASID, Tag};
use crate::spec::entries::RootHalf;
use crate::tables::{Table, quantum, words};
use crate::unit::{Inner, State, concrete, context_place};
use core::sync::atomic::Ordering;
use portcullis_hal::{Arc, EndpointId, FrameOrder, Hal, Mmio, OutOfMemory, Pasid, SyncError, barrier, list};
use portcullis_iommu::{AttachError, Domain, DomainKind, Missing, Transition};

/// A tag, and whether the domain is in use under it already.
#[derive(Clone, Copy)]
enum ChosenTag {
    Known(Tag),
    New(Tag),
}

/// An endpoint's source-id.
pub(crate) fn source_id(endpoint: EndpointId) -> Result<u16, AttachError> {
    u16::try_from(endpoint.get()).map_err(|_| AttachError::UnknownEndpoint(endpoint))
}

/// Source-ids of endpoints that all have one.
pub(crate) fn source_ids(endpoints: &[EndpointId]) -> impl Iterator<Item = u16> + Clone + '_ {
    endpoints.iter().filter_map(|&endpoint| source_id(endpoint).ok())
}

impl<H: Hal, M: Mmio + 'static> Inner<H, M> {
    /// Replaces the translation of a PASID of all endpoints, or of their requests without one ([`RID_PASID`]); see
    /// [`Unit::attach`](portcullis_iommu::Unit::attach) and
    /// [`attach_pasid`](portcullis_iommu::Unit::attach_pasid).
    pub(crate) fn attach(
        this: &Arc<Self>,
        endpoints: &[EndpointId],
        pasid: u32,
        domain: &Arc<dyn Domain>,
    ) -> Result<Transition, AttachError> {
        let Some(ours) = concrete::<H, M>(domain) else {
            let missing = Missing::BACKEND;
            return Err(AttachError::Incompatible { missing });
        };
        for &endpoint in endpoints {
            source_id(endpoint)?;
        }
        let mut state = this.state.lock();
        state.check_permitted(endpoints, pasid)?;
        if ours.kind() == DomainKind::Blocked {
            // An entry that is not present denies everything, and needs no memory.
            let absence = if pasid == RID_PASID { Absence::Recorded } else { Absence::Silent };
            let blocked = Self::detach_from(this, &mut state, endpoints, pasid, absence);
            return blocked.map(|()| Transition::Hitless);
        }
        // What a unit lacks for a domain does not change.
        if !ours.targets.know(this) {
            let missing = ours.missing(&this.features);
            if !missing.is_empty() {
                return Err(AttachError::Incompatible { missing });
            }
        }
        if this.is_faulted() {
            return Err(AttachError::Faulted);
        }
        let is_there = |sid: u16| {
            let attachment = state.endpoint(sid).and_then(|endpoint| endpoint.attachment(pasid));
            attachment.is_some_and(|attachment| Arc::ptr_eq(&attachment.domain, domain))
        };
        if source_ids(endpoints).all(is_there) {
            return Ok(Transition::Hitless);
        }
        this.prepare(&mut state, endpoints, pasid)?;
        let tag = Self::use_domain(this, &mut state, endpoints, pasid, ours)?;
        let attachment = Attachment { domain: domain.clone(), tag };
        for sid in source_ids(endpoints) {
            if let Some(device) = state.device(sid, pasid) {
                ours.targets.add_device(this, device);
            }
        }
        // An unmapper clears entries and then reads the targets; here the target is added and then the entry
        // published.
        barrier::store_then_load();
        let result = Self::switch_all(this, &mut state, endpoints, &attachment, ours);
        if result.is_err() {
            // The new domain's id is never given back.
            ours.targets.join(this, tag);
            core::mem::forget(attachment);
            this.give_up(&mut state, endpoints);
        }
        this.counters.attaches.fetch_add(1, Ordering::Relaxed);
        result.map_err(|error| this.unconfirmed(error))
    }

    /// Changes the translation of a PASID of all endpoints.
    fn switch_all(
        this: &Arc<Self>,
        state: &mut State<H>,
        endpoints: &[EndpointId],
        new: &Attachment,
        ours: &PagingDomain<H, M>,
    ) -> Result<Transition, SyncError> {
        let mut transition = Transition::Hitless;
        for sid in source_ids(endpoints) {
            if Self::switch(this, state, sid, new, ours)? == Transition::Disruptive {
                transition = Transition::Disruptive;
            }
        }
        // Under an id that they took along, the first of several devices may have asked again for what the unit had from
        // the last one, before that one's turn came.
        if endpoints.len() > 1 {
            for device in source_ids(endpoints).filter_map(|sid| state.device(sid, new.tag.pasid)) {
                let batch = entry_changed(&this.features, new.tag, Some(device));
                this.run_or_forget(batch.descriptors())?;
            }
        }
        Ok(transition)
    }

    /// Allocates what the endpoints lack. What was allocated stays with them, whatever becomes of the attachment.
    fn prepare(&self, state: &mut State<H>, endpoints: &[EndpointId], pasid: u32) -> Result<(), AttachError> {
        state.tags.reserve()?;
        for sid in source_ids(endpoints) {
            self.add_context_table(state, sid)?;
            self.add_endpoint(state, sid, Pdts::for_bits(0))?;
            let Some(endpoint) = state.endpoint_mut(sid) else { continue };
            endpoint.attachments.try_reserve(1).map_err(|_| OutOfMemory)?;
            endpoint.pasids.add_leaf(self.hal(), &self.features, pasid)?;
        }
        Ok(())
    }

    /// Adds the context table of an endpoint, if there is none.
    fn add_context_table(&self, state: &mut State<H>, sid: u16) -> Result<(), TableError> {
        if state.context(sid).is_some() {
            return Ok(());
        }
        let (key, _) = context_place(sid);
        state.contexts.try_reserve(1).map_err(|_| OutOfMemory)?;
        let table = Table::new(self.hal(), &self.features, FrameOrder::SINGLE)?;
        let bus = usize::from(sid >> 8);
        let half = RootHalf::new().with_present(true).with_ctp(table.publish()).into_bits();
        let [low, high] = words(self.root.load(bus));
        let entry = if key & 1 == 0 { quantum(half, high) } else { quantum(low, half) };
        let index = state.contexts.partition_point(|&(other, _)| other < key);
        list::insert_reserved(&mut state.contexts, index, (key, table)).map_err(|_| OutOfMemory)?;
        self.root.store(bus, entry);
        Ok(())
    }

    /// Adds the tables of an endpoint, if there are none.
    pub(crate) fn add_endpoint(&self, state: &mut State<H>, sid: u16, pdts: Pdts) -> Result<(), TableError> {
        if state.endpoint(sid).is_some() {
            return Ok(());
        }
        state.endpoints.try_reserve(1).map_err(|_| OutOfMemory)?;
        let pasids = PasidTables::new(self.hal(), &self.features, pdts)?;
        let index = state.endpoints.partition_point(|other| other.sid < sid);
        list::insert_reserved(&mut state.endpoints, index, Endpoint::new(sid, pasids))
            .map_err(|_| OutOfMemory)?;
        Ok(())
    }

    /// The tag of the domain at a PASID of the endpoints; a new one, among the domain's targets, if it had none. The
    /// devices' TLBs are on the list of targets then, too.
    fn use_domain(
        this: &Arc<Self>,
        state: &mut State<H>,
        endpoints: &[EndpointId],
        pasid: u32,
        ours: &PagingDomain<H, M>,
    ) -> Result<Tag, AttachError> {
        let chosen = Self::choose_tag(this, state, endpoints, pasid, ours).ok_or(AttachError::NoFreeId)?;
        let (ChosenTag::Known(tag) | ChosenTag::New(tag)) = chosen;
        let devices = source_ids(endpoints).filter_map(|sid| state.device(sid, pasid));
        let new = match chosen {
            ChosenTag::New(tag) => Some(tag.kind),
            ChosenTag::Known(_) => None,
        };
        let reserved = ours.targets.reserve(this, new, devices);
        if let ChosenTag::New(tag) = chosen {
            if reserved.is_err() {
                state.tags.remove(tag);
            } else {
                ours.note_unit(&this.features);
                ours.targets.add(this, tag);
            }
        }
        reserved?;
        Ok(tag)
    }

    /// The tag for the domain at a PASID of the endpoints; a new one is counted as in use. There is room for it.
    fn choose_tag(
        this: &Arc<Self>,
        state: &mut State<H>,
        endpoints: &[EndpointId],
        pasid: u32,
        ours: &PagingDomain<H, M>,
    ) -> Option<ChosenTag> {
        let kind = ours.tag_kind();
        let found = ours.targets.find(this, pasid);
        if kind.is_tagged_by_pasid() {
            if let Some(tag) = Self::handed_over(this, state, endpoints, pasid) {
                state.tags.add(tag);
                return Some(ChosenTag::New(Tag { kind, ..tag }));
            }
            match found {
                Some(tag) if tag.pasid == pasid => return Some(ChosenTag::Known(tag)),
                // The domain's id, where nobody else uses it at this PASID.
                Some(tag) if state.tags.is_free(Tag { pasid, ..tag }) => {
                    let tag = Tag { pasid, ..tag };
                    state.tags.add(tag);
                    return Some(ChosenTag::New(tag));
                }
                _ => {}
            }
        } else if let Some(tag) = found {
            return Some(ChosenTag::Known(Tag { pasid, ..tag }));
        }
        state.tags.take(kind, pasid).map(ChosenTag::New)
    }

    /// The tag that the endpoints have at a PASID, if it is theirs alone and may be the next domain's. Under the same id
    /// first-stage tables can be replaced without a moment of no translation.
    fn handed_over(this: &Arc<Self>, state: &State<H>, endpoints: &[EndpointId], pasid: u32) -> Option<Tag> {
        let of = |sid| state.endpoint(sid).and_then(|endpoint| endpoint.attachment(pasid));
        let old = of(source_ids(endpoints).next()?)?;
        if !old.tag.kind.is_tagged_by_pasid() {
            return None;
        }
        let same = |attachment: &Attachment| {
            attachment.tag == old.tag && Arc::ptr_eq(&attachment.domain, &old.domain)
        };
        if !source_ids(endpoints).all(|sid| of(sid).is_some_and(same)) {
            return None;
        }
        let theirs = concrete::<H, M>(&old.domain)?;
        let known = state.endpoints.iter();
        let moving = known.filter(|one| source_ids(endpoints).any(|sid| sid == one.sid)).count();
        (theirs.targets.users(this, old.tag) as usize == moving).then_some(old.tag)
    }

    /// Changes the translation of a PASID of one endpoint.
    fn switch(
        this: &Arc<Self>,
        state: &mut State<H>,
        sid: u16,
        new: &Attachment,
        ours: &PagingDomain<H, M>,
    ) -> Result<Transition, SyncError> {
        let pasid = new.tag.pasid;
        let entry = ours.pasid_entry(&this.features, new.tag.did);
        let Some(endpoint) = state.endpoint(sid) else {
            return Err(SyncError::Faulted);
        };
        let old = endpoint.attachment(pasid);
        if old.is_some_and(|old| Arc::ptr_eq(&old.domain, &new.domain)) {
            return Ok(Transition::Hitless);
        }
        let (old, silenced) = (old.map(|old| old.tag), endpoint.is_silenced(pasid));
        let transition = if endpoint.is_live() {
            let transition = this.replace(state, sid, pasid, old, entry, new.tag)?;
            // Nothing was translated before.
            if old.is_some() { transition } else { Transition::Hitless }
        } else {
            this.confirm_forgotten(state, sid)?;
            this.install(state, sid, entry, new.tag)?;
            Transition::Hitless
        };
        ours.targets.join(this, new.tag);
        if let Some(endpoint) = state.endpoint_mut(sid).filter(|_| silenced) {
            endpoint.silenced -= 1;
        }
        if let Some(old) = state.endpoint_mut(sid).and_then(|endpoint| endpoint.attach(new.clone())) {
            Self::leave(this, state, sid, &old);
        }
        Ok(transition)
    }

    /// Makes an endpoint known to the hardware. Its PASID tables are not reachable before the context entry is present.
    fn install(&self, state: &State<H>, sid: u16, entry: PasidEntry, tag: Tag) -> Result<(), SyncError> {
        let (Some(endpoint), Some((contexts, number))) = (state.endpoint(sid), state.context(sid)) else {
            return Err(SyncError::Faulted);
        };
        endpoint.pasids.write(tag.pasid, entry);
        if tag.pasid != RID_PASID {
            endpoint.pasids.write(RID_PASID, state.nowhere()?.1);
        }
        contexts.store(number * 2, endpoint.context());
        self.announce(|| endpoint_appeared(&self.features, sid, tag))
    }

    /// Tells the unit of a change of an entry that was not present, if it has to be told.
    pub(crate) fn announce(&self, batch: impl FnOnce() -> Batch) -> Result<(), SyncError> {
        if self.features.cap.cm() {
            self.run_or_forget(batch().descriptors())?;
        } else if self.features.cap.rwbf() {
            self.registers.flush_write_buffer().map_err(|timeout| self.failed(timeout.into()))?;
        }
        Ok(())
    }

    /// Changes a PASID entry of an endpoint in use. `old` is what it is attached to; `tag` belongs to `entry`.
    pub(crate) fn replace(
        &self,
        state: &State<H>,
        sid: u16,
        pasid: u32,
        old: Option<Tag>,
        entry: PasidEntry,
        tag: Tag,
    ) -> Result<Transition, SyncError> {
        let endpoint = state.endpoint(sid).ok_or(SyncError::Faulted)?;
        let old = match (old, pasid) {
            (None, RID_PASID) => Some(state.nowhere()?.0),
            (old, _) => old,
        };
        let Some(old) = old else {
            endpoint.pasids.write(pasid, entry);
            self.announce(|| entry_appeared(&self.features, tag))?;
            return Ok(Transition::Hitless);
        };
        let now = endpoint.pasids.entry(pasid);
        let whole = plan(now, entry, pasid_used);
        if whole.transition == Transition::Hitless || pasid != RID_PASID || !endpoint.has_others(pasid) {
            self.carry_out(endpoint, pasid, &whole, old)?;
            return Ok(whole.transition);
        }
        // Some units refuse all PASIDs without this entry: it stays valid, by way of the empty table. Under either tag
        // that leads to what is cached of the old or the new domain, or nowhere.
        let ([old_id, ..], [new_id, ..], (_, [_, empty, ..])) = (now, entry, state.nowhere()?);
        for (next, tag) in [([old_id, empty, 0, 0], old), ([new_id, empty, 0, 0], old), (entry, tag)] {
            let step = plan(endpoint.pasids.entry(pasid), next, pasid_used);
            self.carry_out(endpoint, pasid, &step, tag)?;
        }
        Ok(whole.transition)
    }

    /// Carries out a plan for the entry of a PASID. `tag` is that of the entry as it was.
    fn carry_out(&self, endpoint: &Endpoint<H>, pasid: u32, plan: &Plan, tag: Tag) -> Result<(), SyncError> {
        let device = device_of(endpoint.sid, pasid, &endpoint.permissions);
        let batch = entry_changed(&self.features, tag, device);
        for step in plan.steps() {
            match step {
                Step::Write { quantum, value } => endpoint.pasids.store(pasid, quantum, value),
                Step::Sync => self.run_or_forget(batch.descriptors())?,
            }
        }
        Ok(())
    }

    /// Counts a PASID of an endpoint out of a domain. With the last one the tag is given back: each that left was
    /// followed by an invalidation of all that is tagged so.
    pub(crate) fn leave(this: &Arc<Self>, state: &mut State<H>, sid: u16, old: &Attachment) {
        let Some(theirs) = concrete::<H, M>(&old.domain) else { return };
        theirs.targets.remove_device(this, Requester { sid, pasid: old.tag.pasid });
        if theirs.targets.leave(this, old.tag) {
            state.tags.remove(old.tag);
        }
    }
}

impl<H: Hal> State<H> {
    /// The device TLB that may hold translations of an endpoint's PASID, if there is one.
    fn device(&self, sid: u16, pasid: u32) -> Option<Requester> {
        device_of(sid, pasid, &self.endpoint(sid)?.permissions)
    }

    /// Whether the endpoints may use this PASID; all may do without one.
    fn check_permitted(&self, endpoints: &[EndpointId], pasid: u32) -> Result<(), AttachError> {
        let Ok(pasid) = Pasid::new(pasid) else { return Ok(()) };
        let may = |sid| self.endpoint(sid).is_some_and(|endpoint| endpoint.permissions.allow(pasid));
        if source_ids(endpoints).all(may) { Ok(()) } else { Err(AttachError::UnknownPasid(pasid)) }
    }
}
