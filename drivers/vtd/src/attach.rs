//! Changes of attachments.

use crate::domain::PagingDomain;
use crate::entry::{Plan, Step, plan};
use crate::error::TableError;
use crate::invalidate::{Descriptor, context_changed, everything, pasid_entry_changed};
use crate::spec::entries::{Context0, Directory, RootHalf};
use crate::tables::{Table, quantum, words};
use crate::unit::{Attachment, Endpoint, Inner, Memory, State, concrete, context_place, pasid_used};
use core::sync::atomic::Ordering;
use portcullis_hal::{Arc, DomainId, EndpointId, Hal, Mmio, OutOfMemory, SyncError, barrier};
use portcullis_iommu::{AttachError, Domain, DomainKind, Missing, Transition};

/// An endpoint's source-id.
fn source_id(endpoint: EndpointId) -> Result<u16, AttachError> {
    u16::try_from(endpoint.get()).map_err(|_| AttachError::UnknownEndpoint(endpoint))
}

impl<H: Hal, M: Mmio + 'static> Inner<H, M> {
    /// Replaces the translation of all endpoints; see [`Unit::attach`](portcullis_iommu::Unit::attach).
    pub(crate) fn attach(
        this: &Arc<Self>,
        endpoints: &[EndpointId],
        domain: &Arc<dyn Domain>,
    ) -> Result<Transition, AttachError> {
        let Some(ours) = concrete::<H, M>(domain) else {
            let missing = Missing::BACKEND;
            return Err(AttachError::Incompatible { missing });
        };
        for &endpoint in endpoints {
            source_id(endpoint)?;
        }
        if endpoints.is_empty() {
            return Ok(Transition::Hitless);
        }
        if ours.kind() == DomainKind::Blocked {
            // A context entry that is not present denies everything, and needs no memory.
            return Self::block(this, endpoints).map(|()| Transition::Hitless);
        }
        let missing = ours.missing(&this.features);
        if !missing.is_empty() {
            return Err(AttachError::Incompatible { missing });
        }
        if this.is_faulted() {
            return Err(AttachError::Faulted);
        }
        let mut state = this.state.lock();
        this.prepare(&mut state, endpoints)?;
        let did = Self::use_domain(this, &mut state, ours)?;
        let attachment = Attachment { domain: domain.clone(), did };
        // An unmapper clears entries and then reads the targets; here the target is added and then the entry
        // published.
        barrier::store_then_load();
        let mut transition = Transition::Hitless;
        for &endpoint in endpoints {
            match Self::switch(this, &mut state, source_id(endpoint)?, &attachment, ours) {
                Ok(Transition::Hitless) => {}
                Ok(Transition::Disruptive) => transition = Transition::Disruptive,
                Err(error) => {
                    ours.targets.join(this);
                    this.give_up(&mut state, endpoints, attachment);
                    return Err(this.unconfirmed(error));
                }
            }
        }
        this.counters.attaches.fetch_add(1, Ordering::Relaxed);
        Ok(transition)
    }

    /// Allocates what the endpoints lack. What was allocated stays with them, whatever becomes of the attachment.
    fn prepare(&self, state: &mut State<H>, endpoints: &[EndpointId]) -> Result<(), AttachError> {
        for &endpoint in endpoints {
            let sid = source_id(endpoint)?;
            if state.context(sid).is_none() {
                self.add_context_table(state, sid)?;
            }
            if state.endpoint(sid).is_none() {
                self.add_endpoint(state, sid)?;
            }
        }
        Ok(())
    }

    fn new_table(&self) -> Result<Table<H>, TableError> {
        Table::new(self.hal(), &self.features)
    }

    fn add_context_table(&self, state: &mut State<H>, sid: u16) -> Result<(), TableError> {
        let (key, _) = context_place(sid);
        state.contexts.try_reserve(1).map_err(|_| OutOfMemory)?;
        let table = self.new_table()?;
        let bus = usize::from(sid >> 8);
        let half = RootHalf::new().with_present(true).with_ctp(table.publish()).into_bits();
        let [low, high] = words(self.root.load(bus));
        let entry = if key & 1 == 0 { quantum(half, high) } else { quantum(low, half) };
        let index = state.contexts.partition_point(|&(other, _)| other < key);
        state.contexts.insert(index, (key, table));
        self.root.store(bus, entry);
        Ok(())
    }

    fn add_endpoint(&self, state: &mut State<H>, sid: u16) -> Result<(), TableError> {
        state.endpoints.try_reserve(1).map_err(|_| OutOfMemory)?;
        let pasids = self.new_table()?;
        let directory = self.new_table()?;
        // The first directory entry: PASIDs 0 to 63.
        let first = Directory::new().with_present(true).with_smptblptr(pasids.publish());
        directory.store(0, quantum(first.into_bits(), 0));
        let index = state.endpoints.partition_point(|other| other.sid < sid);
        state
            .endpoints
            .insert(index, Endpoint { sid, directory, pasids, attachment: None, memory: Memory::Nothing });
        Ok(())
    }

    /// The domain's id on this unit; a new one, with the unit among the domain's targets, if it had none.
    fn use_domain(
        this: &Arc<Self>,
        state: &mut State<H>,
        ours: &PagingDomain<H, M>,
    ) -> Result<DomainId, AttachError> {
        if let Some(did) = ours.targets.did(this) {
            return Ok(did);
        }
        ours.targets.reserve()?;
        let id = state.ids.take().ok_or(AttachError::NoFreeId)?;
        let did = DomainId::new(id as u16);
        ours.note_unit(&this.features);
        if ours.targets.add(this, did).is_none() {
            state.ids.give_back(id);
            return Err(OutOfMemory.into());
        }
        Ok(did)
    }

    /// Changes the translation of one endpoint.
    fn switch(
        this: &Arc<Self>,
        state: &mut State<H>,
        sid: u16,
        new: &Attachment,
        ours: &PagingDomain<H, M>,
    ) -> Result<Transition, SyncError> {
        let entry = ours.pasid_entry(&this.features, new.did);
        let Some(old) = state.endpoint(sid).map(|endpoint| endpoint.attachment.clone()) else {
            return Err(SyncError::Faulted);
        };
        let transition = match &old {
            Some(old) if Arc::ptr_eq(&old.domain, &new.domain) => return Ok(Transition::Hitless),
            Some(old) => this.replace(state, sid, old, entry)?,
            None => {
                this.confirm_forgotten(state, sid)?;
                this.install(state, sid, new.did, entry)?
            }
        };
        ours.targets.join(this);
        if let Some(endpoint) = state.endpoint_mut(sid) {
            endpoint.attachment = Some(new.clone());
        }
        if let Some(old) = old {
            Self::leave(this, state, &old);
        }
        Ok(transition)
    }

    /// Makes an endpoint known to the hardware. Its PASID table is not reachable before the context entry is present.
    fn install(
        &self,
        state: &State<H>,
        sid: u16,
        did: DomainId,
        entry: [u128; 4],
    ) -> Result<Transition, SyncError> {
        let (Some(endpoint), Some((contexts, number))) = (state.endpoint(sid), state.context(sid)) else {
            return Err(SyncError::Faulted);
        };
        for (index, value) in entry.into_iter().enumerate().rev() {
            endpoint.pasids.store(index, value);
        }
        // PDTS = 0: 128 directory entries. RID_PASID, in the other quantum, is 0.
        let context = Context0::new().with_present(true).with_pasiddirptr(endpoint.directory.publish());
        contexts.store(number * 2, quantum(context.into_bits(), 0));
        if self.features.cap.cm() {
            self.run_or_forget(&context_changed(&self.features, sid, did))?;
        } else if self.features.cap.rwbf() {
            self.registers.flush_write_buffer().map_err(|timeout| self.failed(timeout.into()))?;
        }
        Ok(Transition::Hitless)
    }

    /// Replaces the PASID entry of an endpoint in use.
    fn replace(
        &self,
        state: &State<H>,
        sid: u16,
        old: &Attachment,
        entry: [u128; 4],
    ) -> Result<Transition, SyncError> {
        let (Some(endpoint), Some(theirs)) = (state.endpoint(sid), concrete::<H, M>(&old.domain)) else {
            return Err(SyncError::Faulted);
        };
        let plan = plan(endpoint.pasids.entry(0), entry, pasid_used);
        let batch = pasid_entry_changed(&self.features, theirs.tag(), old.did);
        self.execute(&plan, &endpoint.pasids, &batch)?;
        Ok(plan.transition)
    }

    /// Carries out a plan for the first entry of a table; `batch` makes hardware forget it.
    fn execute(&self, plan: &Plan, table: &Table<H>, batch: &[Descriptor]) -> Result<(), SyncError> {
        for step in plan.steps() {
            match step {
                Step::Write { quantum, value } => table.store(quantum, value),
                Step::Sync => self.run_or_forget(batch)?,
            }
        }
        Ok(())
    }

    /// Counts an endpoint out of a domain. With the last one the domain id is given back: each endpoint that left was
    /// followed by an invalidation of all that is tagged with the id.
    fn leave(this: &Arc<Self>, state: &mut State<H>, old: &Attachment) {
        if let Some(theirs) = concrete::<H, M>(&old.domain)
            && theirs.targets.leave(this) == 0
        {
            theirs.targets.remove(this);
            state.ids.give_back(u32::from(old.did.get()));
        }
    }

    /// Denies everything to all endpoints; see [`Unit::detach`](portcullis_iommu::Unit::detach). Allocates nothing.
    pub(crate) fn block(this: &Arc<Self>, endpoints: &[EndpointId]) -> Result<(), AttachError> {
        let mut state = this.state.lock();
        for &endpoint in endpoints {
            this.unpublish(&state, source_id(endpoint)?);
        }
        let mut result = Ok(());
        for &endpoint in endpoints {
            let sid = source_id(endpoint)?;
            let Some(old) = state.endpoint_mut(sid).and_then(|endpoint| endpoint.attachment.take()) else {
                // An earlier call may have ended before hardware confirmed it.
                if let Err(error) = this.confirm_forgotten(&mut state, sid) {
                    result = Err(this.unconfirmed(error));
                }
                continue;
            };
            if let Err(error) = Self::forget(this, &mut state, sid, &old) {
                this.quarantine(&mut state, sid, old);
                result = Err(this.unconfirmed(error));
            }
        }
        this.counters.attaches.fetch_add(1, Ordering::Relaxed);
        result
    }

    /// Takes the context entry of an endpoint away, without making hardware forget it.
    fn unpublish(&self, state: &State<H>, sid: u16) {
        if let Some((contexts, number)) = state.context(sid) {
            let [low, high] = words(contexts.load(number * 2));
            let low = Context0::from_bits(low).with_present(false);
            contexts.store(number * 2, quantum(low.into_bits(), high));
        }
    }

    /// Makes hardware forget an endpoint whose context entry was taken away, and clears its PASID entry.
    fn forget(this: &Arc<Self>, state: &mut State<H>, sid: u16, old: &Attachment) -> Result<(), SyncError> {
        this.run_or_forget(&context_changed(&this.features, sid, old.did))?;
        if let Some(endpoint) = state.endpoint(sid) {
            for index in 0..4 {
                endpoint.pasids.store(index, 0);
            }
        }
        Self::leave(this, state, old);
        Ok(())
    }

    /// After an attachment failed half-way: denies everything to the endpoints. The caller has counted one user of the
    /// new domain more, so that its id is never given back.
    fn give_up(&self, state: &mut State<H>, endpoints: &[EndpointId], new: Attachment) {
        core::mem::forget(new);
        for &endpoint in endpoints {
            let Ok(sid) = source_id(endpoint) else { continue };
            self.unpublish(state, sid);
            if let Some(endpoint) = state.endpoint_mut(sid) {
                endpoint.memory = Memory::Unknown;
                core::mem::forget(endpoint.attachment.take());
            }
        }
    }

    /// The hardware did not confirm that it forgot an endpoint, and may go on using the domain's tables and its id: both
    /// stay as they are, for ever.
    fn quarantine(&self, state: &mut State<H>, sid: u16, old: Attachment) {
        core::mem::forget(old);
        if let Some(endpoint) = state.endpoint_mut(sid) {
            endpoint.memory = Memory::Unknown;
        }
    }

    /// Makes sure that hardware does not use the tables of an endpoint that is not attached.
    fn confirm_forgotten(&self, state: &mut State<H>, sid: u16) -> Result<(), SyncError> {
        if let Some(endpoint) = state.endpoint_mut(sid)
            && endpoint.memory == Memory::Unknown
        {
            self.run_or_forget(&everything(&self.features))?;
            endpoint.memory = Memory::Nothing;
        }
        Ok(())
    }

    /// What to say of a change that the hardware did not confirm.
    fn unconfirmed(&self, error: SyncError) -> AttachError {
        match error {
            SyncError::Timeout(timeout) => AttachError::Timeout(timeout),
            SyncError::Faulted | SyncError::Gather(_) => {
                self.fault().map_or(AttachError::Lost, AttachError::Timeout)
            }
        }
    }
}
