//! Attaching endpoints to domains.

use crate::command::{Command, Tag};
use crate::domain::{Body, SmmuDomain};
use crate::entry::{Shape, context_descriptor, missing_for, stage_2_shape, used_by_ste};
use crate::memory::{NoFrames, Slot};
use crate::port::{Health, Port, count};
use crate::spec::cd::CD_BYTES;
use crate::spec::registers;
use crate::stream::StreamTable;
use crate::targets::Target;
use crate::update::{Entry, plan, prefixed};
use alloc::vec::Vec;
use core::any::Any;
use portcullis_hal::wait::Timeout;
use portcullis_hal::{
    Arc, Asid, EndpointId, Hal, Mmio, OutOfMemory, StreamId, SyncError, TableFormat, Vmid, barrier,
};
use portcullis_iommu::{AttachError, Domain, IdPool, Missing, Transition};

/// The entry of an endpoint without a domain: DMA is aborted and recorded.
const UNATTACHED: Entry = [0; 8];

/// What changes when endpoints are attached.
pub(crate) struct Attachments<H: Hal, M: Mmio> {
    pub(crate) streams: StreamTable<H>,
    /// By stream, in ascending order.
    attached: Vec<Attachment<H, M>>,
    asids: IdPool,
    vmids: IdPool,
}

/// An endpoint's domain. The clone keeps the domain's tables in place as long as hardware may walk them.
pub(crate) struct Attachment<H: Hal, M: Mmio> {
    stream: StreamId,
    pub(crate) domain: Arc<dyn Domain>,
    /// The domain's tag on this unit, for domains with tables.
    pub(crate) target: Option<Arc<Target<H, M>>>,
}

/// An entry to be written, and what has to be kept while it stands.
struct Prepared<H: Hal, M: Mmio> {
    entry: Entry,
    target: Option<Arc<Target<H, M>>>,
}

impl<H: Hal, M: Mmio + 'static> Attachments<H, M> {
    /// Nothing attached.
    pub(crate) fn new(port: &Port<H, M>, streams: StreamTable<H>) -> Result<Self, OutOfMemory> {
        let last = |bits: u8| (1_u32 << bits.min(16)) - 1;
        Ok(Self {
            streams,
            attached: Vec::new(),
            asids: IdPool::new(1, last(port.features.asid_bits))?,
            // Entries with stage 1 only are tagged with VMID 0.
            vmids: IdPool::new(1, last(port.features.vmid_bits))?,
        })
    }

    fn place(&self, stream: StreamId) -> Result<usize, usize> {
        self.attached.binary_search_by_key(&stream, |attachment| attachment.stream)
    }

    /// What an endpoint is attached to.
    pub(crate) fn find(&self, stream: StreamId) -> Option<&Attachment<H, M>> {
        self.attached.get(self.place(stream).ok()?)
    }

    /// Replaces the translation of all `endpoints`; see [`Unit::attach`](portcullis_iommu::Unit::attach).
    pub(crate) fn attach(
        &mut self,
        port: &Arc<Port<H, M>>,
        endpoints: &[EndpointId],
        domain: &Arc<dyn Domain>,
    ) -> Result<Transition, AttachError> {
        if endpoints.is_empty() {
            return Ok(Transition::Hitless);
        }
        self.check(endpoints)?;
        let any: &dyn Any = &**domain;
        let own = any
            .downcast_ref::<SmmuDomain<H, M>>()
            .ok_or(AttachError::Incompatible { missing: Missing::BACKEND })?;
        if matches!(own.body(), Body::Blocked) {
            return self.block(port, endpoints);
        }
        if port.health() == Health::Faulted {
            return Err(AttachError::Faulted);
        }
        for &endpoint in endpoints {
            self.streams.prepare(&port.features, stream(endpoint))?;
        }
        self.attached.try_reserve(endpoints.len()).map_err(|_| OutOfMemory)?;
        let prepared = self.prepare(port, own)?;
        // From here on only the hardware can fail.
        let mut transition = Transition::Hitless;
        for &endpoint in endpoints {
            let attachment = Attachment {
                stream: stream(endpoint),
                domain: domain.clone(),
                target: prepared.target.clone(),
            };
            match self.install(port, attachment, &prepared.entry) {
                Ok(Transition::Hitless) => {}
                Ok(Transition::Disruptive) => transition = Transition::Disruptive,
                Err(error) => {
                    self.give_up(port, endpoints);
                    return Err(unconfirmed(port, error));
                }
            }
        }
        count(&port.counters.attaches);
        Ok(transition)
    }

    /// Returns the endpoints to the state after start-up; see [`Unit::detach`](portcullis_iommu::Unit::detach).
    pub(crate) fn detach(
        &mut self,
        port: &Arc<Port<H, M>>,
        endpoints: &[EndpointId],
    ) -> Result<(), AttachError> {
        self.check(endpoints)?;
        self.remove(port, endpoints, &UNATTACHED).map(drop)
    }

    fn block(&mut self, port: &Arc<Port<H, M>>, endpoints: &[EndpointId]) -> Result<Transition, AttachError> {
        self.remove(port, endpoints, &Shape::Abort.entry())
    }

    fn check(&self, endpoints: &[EndpointId]) -> Result<(), AttachError> {
        let unknown = |endpoint: &&EndpointId| !self.streams.covers(stream(**endpoint));
        match endpoints.iter().find(unknown) {
            Some(&endpoint) => Err(AttachError::UnknownEndpoint(endpoint)),
            None => Ok(()),
        }
    }

    /// The entry for a domain, with the domain's tag on this unit.
    fn prepare(
        &mut self,
        port: &Arc<Port<H, M>>,
        domain: &SmmuDomain<H, M>,
    ) -> Result<Prepared<H, M>, AttachError> {
        let Some(root) = domain.root() else {
            return Ok(Prepared { entry: Shape::Bypass.entry(), target: None });
        };
        let features = &port.features;
        let (_, missing) = missing_for(&root, features);
        if !missing.is_empty() {
            return Err(AttachError::Incompatible { missing });
        }
        let target = match domain.targets.find(domain.hal(), port) {
            Some(target) => target,
            None => self.new_target(port, domain)?,
        };
        let shape = match (root.format, target.tag) {
            (TableFormat::VmsaStage1 { .. }, Tag::Asid(_)) => {
                target.descriptor().map(|descriptor| Shape::Stage1 { descriptor, stall: features.stall })
            }
            (_, Tag::Vmid(vmid)) => stage_2_shape(&root, vmid, features),
            _ => None,
        };
        match shape {
            Some(shape) => Ok(Prepared { entry: shape.entry(), target: Some(target) }),
            None => {
                if target.users() == 0 {
                    self.give_back(target.tag);
                }
                Err(AttachError::Incompatible { missing: Missing::FORMAT })
            }
        }
    }

    /// Takes an id for a domain and makes its target. Without memory nothing is kept.
    fn new_target(
        &mut self,
        port: &Arc<Port<H, M>>,
        domain: &SmmuDomain<H, M>,
    ) -> Result<Arc<Target<H, M>>, AttachError> {
        let format = domain.root().map(|root| root.format);
        let pool = match format {
            Some(TableFormat::VmsaStage1 { .. }) => &mut self.asids,
            _ => &mut self.vmids,
        };
        let id = pool.take().ok_or(AttachError::NoFreeId)?;
        let made = Self::make_target(port, domain, id as u16);
        if made.is_err() {
            pool.give_back(id);
        }
        Ok(made?)
    }

    fn make_target(
        port: &Arc<Port<H, M>>,
        domain: &SmmuDomain<H, M>,
        id: u16,
    ) -> Result<Arc<Target<H, M>>, NoFrames> {
        let (tag, descriptor) = match domain.root() {
            Some(root) if let TableFormat::VmsaStage1 { granule, mair } = root.format => {
                let asid = Asid::new(id);
                let frames = port.features.zeroed(port.hal(), CD_BYTES)?;
                let entry = context_descriptor(&root, granule, mair, asid, &port.features);
                Slot::new(&frames, 0, port.features.table_writes()).write(&entry);
                (Tag::Asid(asid), Some(frames))
            }
            _ => (Tag::Vmid(Vmid::new(id)), None),
        };
        let target = Arc::try_new(Target::new(port.clone(), tag, descriptor))?;
        domain.targets.add(port.hal(), &target)?;
        Ok(target)
    }

    /// Publishes the entry of an attachment, for which there is room, and lets go of the one before.
    fn install(
        &mut self,
        port: &Arc<Port<H, M>>,
        attachment: Attachment<H, M>,
        entry: &Entry,
    ) -> Result<Transition, SyncError> {
        if let Some(target) = &attachment.target {
            target.add_user();
        }
        // The domain's unmappers see the target before any device can use the entry.
        barrier::store_then_load();
        let place = self.place(attachment.stream);
        match self.update(port, attachment.stream, entry) {
            Ok(transition) => {
                let old = match place {
                    Ok(at) => self.attached.get_mut(at).map(|slot| core::mem::replace(slot, attachment)),
                    Err(at) => {
                        self.attached.insert(at, attachment);
                        None
                    }
                };
                if let Some(old) = old {
                    self.release(port, old);
                }
                Ok(transition)
            }
            Err(error) => {
                // The unit may use either; both stay as they are, for ever.
                core::mem::forget(attachment);
                Err(error)
            }
        }
    }

    /// Takes endpoints out of their domains, whatever the hardware answers.
    fn remove(
        &mut self,
        port: &Arc<Port<H, M>>,
        endpoints: &[EndpointId],
        entry: &Entry,
    ) -> Result<Transition, AttachError> {
        let before = port.health();
        let mut transition = Transition::Hitless;
        let mut failure = None;
        for &endpoint in endpoints {
            let stream = stream(endpoint);
            let attachment = self.place(stream).ok().map(|at| self.attached.remove(at));
            match self.update(port, stream, entry) {
                Ok(Transition::Hitless) => {}
                Ok(Transition::Disruptive) => transition = Transition::Disruptive,
                Err(error) => {
                    port.fault(&error);
                    self.invalidate(stream);
                    core::mem::forget(attachment);
                    failure = failure.or(Some(error));
                    continue;
                }
            }
            if let Some(attachment) = attachment {
                self.release(port, attachment);
            }
        }
        count(&port.counters.attaches);
        match failure {
            // An entry that reads as it should may never have been confirmed.
            _ if before == Health::Faulted => Err(AttachError::Lost),
            Some(error) => Err(unconfirmed(port, error)),
            None => Ok(transition),
        }
    }

    /// Brings the entry of a stream to `entry`, by a plan that never shows hardware anything else.
    fn update(&self, port: &Port<H, M>, stream: StreamId, entry: &Entry) -> Result<Transition, SyncError> {
        // A stream without a second-level table is invalid already.
        let Some(slot) = self.streams.entry(stream) else {
            return Ok(Transition::Hitless);
        };
        let from = slot.read();
        if port.health() == Health::Faulted {
            // The unit may hold any word that this entry had since its last sync, and must not find others beside it.
            // The caller clears the valid bit.
            return Err(SyncError::Faulted);
        }
        let plan = plan(&from, entry, used_by_ste);
        let mut now = from;
        for step in plan.steps() {
            if *step != now {
                slot.write(step);
                // With the entry the unit forgets the context descriptors that it reached through it (4.3.1).
                port.forget(Command::cfgi_ste(stream))?;
                now = *step;
            }
        }
        Ok(plan.transition)
    }

    /// Lets go of an endpoint's former domain. With the last endpoint, the unit forgets the tag before it is free.
    fn release(&mut self, port: &Arc<Port<H, M>>, attachment: Attachment<H, M>) {
        let Some(target) = &attachment.target else { return };
        if target.users() == 1 {
            if let Err(error) = port.execute(&[Command::tlbi_tag(target.tag)]) {
                log::error!("SMMUv3: {} and its tables are quarantined: {error}", target.tag);
                core::mem::forget(attachment);
                return;
            }
            self.give_back(target.tag);
        }
        target.remove_user();
    }

    /// Lets a tag that the unit has forgotten be taken again.
    fn give_back(&mut self, tag: Tag) {
        match tag {
            Tag::Asid(asid) => self.asids.give_back(asid.get().into()),
            Tag::Vmid(vmid) => self.vmids.give_back(vmid.get().into()),
        }
    }

    /// After a failure: none of the endpoints is translated any more, and what they used is kept for ever.
    fn give_up(&mut self, port: &Arc<Port<H, M>>, endpoints: &[EndpointId]) {
        port.fault(&"a change of an endpoint's entry was not confirmed");
        for &endpoint in endpoints {
            let stream = stream(endpoint);
            self.invalidate(stream);
            if let Ok(at) = self.place(stream) {
                core::mem::forget(self.attached.remove(at));
            }
        }
    }

    /// Clears the valid bit, for hardware that may look once more.
    fn invalidate(&self, stream: StreamId) {
        if let Some(slot) = self.streams.entry(stream) {
            let [_, rest @ ..] = slot.read();
            slot.write(&prefixed(0, rest));
        }
    }

    /// Clears all valid bits and gives nothing back, for a unit that cannot be stopped.
    pub(crate) fn abandon(&mut self) {
        for attachment in core::mem::take(&mut self.attached) {
            self.invalidate(attachment.stream);
            core::mem::forget(attachment);
        }
    }
}

/// A unit knows endpoints by StreamID.
fn stream(endpoint: EndpointId) -> StreamId {
    StreamId::new(endpoint.get())
}

/// An error after which the endpoints are blocked, by the register that showed it.
fn unconfirmed<H: Hal, M: Mmio>(port: &Port<H, M>, error: SyncError) -> AttachError {
    const CMDQ_CONS_ERR: u64 = 0x7f << 24;
    match error {
        SyncError::Timeout(timeout) => AttachError::Timeout(timeout),
        SyncError::Faulted | SyncError::Gather(_) => AttachError::Timeout(Timeout {
            register: registers::CMDQ_CONS.name,
            mask: CMDQ_CONS_ERR,
            expected: 0,
            last: u32::from(port.commands.last_error()).into(),
        }),
    }
}
