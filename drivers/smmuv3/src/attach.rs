//! Attaching endpoints to domains, for requests without a PASID.

use crate::atc::{Block, Cached};
use crate::change::{Unconfirmed, worse};
use crate::command::{Command, Scope, Tag};
use crate::descriptors::Descriptors;
use crate::domain::{Body, SmmuDomain};
use crate::entry::Shape;
use crate::memory::NoFrames;
use crate::port::{Health, Port, count};
use crate::record::{Attachment, Plain, Record, UNATTACHED, translates};
use crate::stream::StreamTable;
use crate::targets::{Descriptor, Target, Translation};
use crate::update::Entry;
use alloc::vec::Vec;
use core::any::Any;
use portcullis_hal::{
    Arc, Asid, EndpointId, Hal, Mmio, OutOfMemory, StreamId, TableRoot, Vmid, barrier, list,
};
use portcullis_iommu::{AttachError, Domain, IdPool, Missing, Permissions, Stage, Transition};

/// What changes when endpoints are attached.
pub(crate) struct Attachments<H: Hal, M: Mmio> {
    pub(crate) streams: StreamTable<H>,
    /// By stream, in ascending order.
    pub(crate) records: Vec<Record<H, M>>,
    asids: IdPool,
    vmids: IdPool,
    descriptors: Descriptors<H>,
}

impl<H: Hal, M: Mmio + 'static> Attachments<H, M> {
    /// Nothing attached.
    pub(crate) fn new(port: &Port<H, M>, streams: StreamTable<H>) -> Result<Self, OutOfMemory> {
        let last = |bits: u8| (1_u32 << bits.min(16)) - 1;
        Ok(Self {
            streams,
            records: Vec::new(),
            asids: IdPool::new(1, last(port.features.asid_bits))?,
            // Entries with stage 1 only are tagged with VMID 0.
            vmids: IdPool::new(1, last(port.features.vmid_bits))?,
            descriptors: Descriptors::new(),
        })
    }

    pub(crate) fn place(&self, stream: StreamId) -> Result<usize, usize> {
        self.records.binary_search_by_key(&stream, |record| record.stream)
    }

    /// What is known of a stream.
    pub(crate) fn find(&self, stream: StreamId) -> Option<&Record<H, M>> {
        self.records.get(self.place(stream).ok()?)
    }

    pub(crate) fn find_mut(&mut self, stream: StreamId) -> Option<&mut Record<H, M>> {
        let place = self.place(stream).ok()?;
        self.records.get_mut(place)
    }

    pub(crate) fn permissions(&self, stream: StreamId) -> Permissions {
        self.find(stream).map_or(Permissions::NONE, |record| record.permissions)
    }

    /// The record of a stream, for which there is room; a new one says `plain`.
    pub(crate) fn record(&mut self, stream: StreamId, plain: Plain<H, M>) -> Option<&mut Record<H, M>> {
        let place = match self.place(stream) {
            Ok(place) => place,
            Err(place) => {
                list::insert_reserved(&mut self.records, place, Record::new(stream, plain)).ok()?;
                place
            }
        };
        self.records.get_mut(place)
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
        let own = own::<H, M>(domain)?;
        if matches!(own.body(), Body::Blocked) {
            return self.block(port, endpoints);
        }
        if port.health() == Health::Faulted {
            return Err(AttachError::Faulted);
        }
        for &endpoint in endpoints {
            self.streams.prepare(&port.features, stream(endpoint))?;
        }
        self.records.try_reserve(endpoints.len()).map_err(|_| OutOfMemory)?;
        let target = match &own.root() {
            None => None,
            Some(root) => Some(self.target(port, own, root)?),
        };
        let new = Attachment { domain: domain.clone(), target };
        if let Err(error) = self.agree(port, endpoints, &new) {
            self.unused(port, new.target.as_ref());
            return Err(error);
        }
        // From here on only the hardware can fail.
        let mut transition = Transition::Hitless;
        for &endpoint in endpoints {
            match self.set_plain(port, stream(endpoint), Plain::Attached(new.clone())) {
                Ok(how) => transition = worse(transition, how),
                Err(error) => return Err(self.give_up(port, endpoints, error)),
            }
        }
        count(&port.counters.attaches);
        Ok(transition)
    }

    /// Whether `new` goes with what the endpoints were permitted; makes room among those who cache.
    fn agree(
        &self,
        port: &Port<H, M>,
        endpoints: &[EndpointId],
        new: &Attachment<H, M>,
    ) -> Result<(), AttachError> {
        for &endpoint in endpoints {
            let missing = new.missing(&self.permissions(stream(endpoint)));
            if !missing.is_empty() {
                return Err(AttachError::Incompatible { missing });
            }
        }
        self.make_room(port, endpoints, new)
    }

    /// Makes room for the endpoints among those who cache translations of a domain.
    pub(crate) fn make_room(
        &self,
        port: &Port<H, M>,
        endpoints: &[EndpointId],
        new: &Attachment<H, M>,
    ) -> Result<(), AttachError> {
        let caches = endpoints.iter().any(|&endpoint| translates(&self.permissions(stream(endpoint))));
        match &new.target {
            Some(target) if caches => Ok(target.reserve_caches(port.hal(), endpoints.len())?),
            _ => Ok(()),
        }
    }

    pub(crate) fn check(&self, endpoints: &[EndpointId]) -> Result<(), AttachError> {
        let unknown = |endpoint: &&EndpointId| !self.streams.covers(stream(**endpoint));
        match endpoints.iter().find(unknown) {
            Some(&endpoint) => Err(AttachError::UnknownEndpoint(endpoint)),
            None => Ok(()),
        }
    }

    /// The domain's target on this unit, which may have no users yet.
    pub(crate) fn target(
        &mut self,
        port: &Arc<Port<H, M>>,
        domain: &SmmuDomain<H, M>,
        root: &TableRoot,
    ) -> Result<Arc<Target<H, M>>, AttachError> {
        let target = match domain.targets.find(port) {
            Some(target) => target,
            None => Self::add_target(port, domain, root)?,
        };
        if target.users() == 0 {
            self.arm(port, &target)?;
        }
        Ok(target)
    }

    /// Makes the unit one of the domain's, if it can serve it.
    fn add_target(
        port: &Arc<Port<H, M>>,
        domain: &SmmuDomain<H, M>,
        root: &TableRoot,
    ) -> Result<Arc<Target<H, M>>, AttachError> {
        let missing = domain.missing(root, &port.features);
        if !missing.is_empty() {
            return Err(AttachError::Incompatible { missing });
        }
        let target = Arc::try_new(Target::new(port.clone(), domain, root))?;
        domain.targets.add(&target)?;
        Ok(target)
    }

    /// Gives a target without users a tag, and a way to the domain's tables.
    fn arm(&mut self, port: &Port<H, M>, target: &Target<H, M>) -> Result<(), AttachError> {
        let (tag, translation) = match target.stage() {
            Stage::Stage1 => {
                let asid = Asid::new(self.asids.take().ok_or(AttachError::NoFreeId)? as u16);
                let context = target.context_under(asid);
                let descriptor = context.as_ref().map(|context| self.descriptor(port, context));
                (Tag::Asid(asid), descriptor.map(|descriptor| descriptor.map(Translation::Stage1)))
            }
            Stage::Stage2 => {
                let vmid = Vmid::new(self.vmids.take().ok_or(AttachError::NoFreeId)? as u16);
                (Tag::Vmid(vmid), target.stage_2_under(vmid).map(|fields| Ok(Translation::Stage2(fields))))
            }
        };
        let error = match translation {
            Some(Ok(translation)) => {
                target.arm(tag, translation);
                return Ok(());
            }
            Some(Err(error)) => error.into(),
            None => AttachError::Incompatible { missing: Missing::FORMAT },
        };
        self.give_back(tag);
        Err(error)
    }

    /// Puts a context descriptor where the unit can find it.
    fn descriptor(&mut self, port: &Port<H, M>, context: &Entry) -> Result<Descriptor, NoFrames> {
        let place = self.descriptors.take(port.hal(), &port.features)?;
        let slot = self.descriptors.slot(&port.features, place).ok_or(OutOfMemory)?;
        slot.write(context);
        Ok(Descriptor { place, address: slot.address().ok_or(OutOfMemory)? })
    }

    /// Takes back the tag of a target that found no use.
    pub(crate) fn unused(&mut self, port: &Port<H, M>, target: Option<&Arc<Target<H, M>>>) {
        if let Some(target) = target
            && target.users() == 0
        {
            self.disarm(port, target);
        }
    }

    /// Takes the tag of a target, which has no users and which the unit has forgotten.
    fn disarm(&mut self, port: &Port<H, M>, target: &Target<H, M>) {
        let Some(translation) = target.disarm() else { return };
        if let Translation::Stage1(descriptor) = translation {
            self.descriptors.give_back(&port.features, descriptor.place);
        }
        self.give_back(target.tag());
    }

    /// Counts a target in before an entry that leads to it is published.
    pub(crate) fn enter(&self, port: &Port<H, M>, who: Cached, new: Option<&Arc<Target<H, M>>>) {
        if let Some(target) = new {
            target.add_user();
            if translates(&self.permissions(who.stream)) {
                target.add_cache(port.hal(), who);
            }
        }
        // The domain's unmappers see the target before any device can use the entry.
        barrier::store_then_load();
    }

    /// Changes what becomes of a stream's requests without a PASID. There is room for its record.
    fn set_plain(
        &mut self,
        port: &Port<H, M>,
        stream: StreamId,
        new: Plain<H, M>,
    ) -> Result<Transition, Unconfirmed> {
        let who = Cached { stream, pasid: None };
        self.enter(port, who, new.target());
        let Some(record) = self.record(stream, Plain::Unattached) else { return Ok(Transition::Hitless) };
        let old = core::mem::replace(&mut record.plain, new);
        let result = self.switch_plain(port, stream);
        let old = match old {
            Plain::Attached(old) => Some(old),
            Plain::Unattached | Plain::Blocked => None,
        };
        self.conclude(port, who, old, result)
    }

    /// Lets go of what was replaced as soon as nobody uses it. A stream whose device did not forget it is cut off.
    #[inline]
    pub(crate) fn conclude(
        &mut self,
        port: &Port<H, M>,
        who: Cached,
        old: Option<Attachment<H, M>>,
        result: Result<Transition, Unconfirmed>,
    ) -> Result<Transition, Unconfirmed> {
        match (result, old) {
            (Err(error), old) => return self.conclude_failure(port, who, old, error),
            (Ok(_), Some(old)) => self.leave(port, who, &old),
            (Ok(_), None) => {}
        }
        result
    }

    #[cold]
    fn conclude_failure(
        &mut self,
        port: &Port<H, M>,
        who: Cached,
        old: Option<Attachment<H, M>>,
        mut error: Unconfirmed,
    ) -> Result<Transition, Unconfirmed> {
        if let Unconfirmed::Device = error
            && let Err(worse) = self.update(port, who.stream, &UNATTACHED)
        {
            error = worse;
        }
        match (old, &error) {
            // The unit may use either; both stay as they are, for ever.
            (Some(old), Unconfirmed::Unit) => core::mem::forget(old),
            (Some(old), Unconfirmed::Device) => self.leave(port, who, &old),
            (None, _) => {}
        }
        Err(error)
    }

    /// Brings the hardware to what the record says of requests without a PASID.
    fn switch_plain(&self, port: &Port<H, M>, stream: StreamId) -> Result<Transition, Unconfirmed> {
        let Some(record) = self.find(stream) else { return Ok(Transition::Hitless) };
        let caching = self.takes_requests(stream);
        let mut transition = Transition::Hitless;
        let slot = record.contexts.as_ref().and_then(|contexts| contexts.entry(0));
        let context = slot.as_ref().and_then(|_| record.context_of(record.plain.target()?));
        // The descriptor is there before the entry sends requests to it, and goes after.
        if let (Some(slot), Some(context)) = (&slot, &context) {
            transition = port.bring_context(stream, 0, slot, context, Scope::Walk)?;
        }
        transition = worse(transition, self.update(port, stream, &record.entry(&port.features))?);
        if let (Some(slot), None) = (&slot, &context) {
            port.bring_context(stream, 0, slot, &UNATTACHED, Scope::Leaf)?;
        }
        if caching && self.takes_requests(stream) {
            port.silence(&[Command::atc_inv(Cached { stream, pasid: None }, Block::ALL)])?;
        }
        Ok(transition)
    }

    /// Returns the endpoints to the state after start-up; see [`Unit::detach`](portcullis_iommu::Unit::detach).
    pub(crate) fn detach(&mut self, port: &Port<H, M>, endpoints: &[EndpointId]) -> Result<(), AttachError> {
        self.check(endpoints)?;
        self.each(port, endpoints, Self::cut_off).map(drop)
    }

    fn block(&mut self, port: &Port<H, M>, endpoints: &[EndpointId]) -> Result<Transition, AttachError> {
        self.each(port, endpoints, |this, port, stream| match this.find(stream) {
            Some(_) => this.set_plain(port, stream, Plain::Blocked),
            None => this.update(port, stream, &Shape::Abort.entry()),
        })
    }

    /// Takes something from all endpoints, whatever the hardware answers.
    pub(crate) fn each(
        &mut self,
        port: &Port<H, M>,
        endpoints: &[EndpointId],
        mut take: impl FnMut(&mut Self, &Port<H, M>, StreamId) -> Result<Transition, Unconfirmed>,
    ) -> Result<Transition, AttachError> {
        let before = port.health();
        let mut transition = Transition::Hitless;
        let mut failure = None;
        for &endpoint in endpoints {
            let stream = stream(endpoint);
            match take(self, port, stream) {
                Ok(how) => {
                    transition = worse(transition, how);
                    self.tidy(stream);
                }
                Err(error) => {
                    let error = self.give_up(port, &[endpoint], error);
                    failure = failure.or(Some(error));
                }
            }
        }
        count(&port.counters.attaches);
        match failure {
            // An entry that reads as it should may never have been confirmed.
            _ if before == Health::Faulted => Err(AttachError::Lost),
            Some(error) => Err(error),
            None => Ok(transition),
        }
    }

    /// Makes a stream's entry invalid, and lets go of all that it was attached to.
    fn cut_off(&mut self, port: &Port<H, M>, stream: StreamId) -> Result<Transition, Unconfirmed> {
        let transition = self.update(port, stream, &UNATTACHED)?;
        let Some(record) = self.find_mut(stream) else { return Ok(transition) };
        let plain = core::mem::replace(&mut record.plain, Plain::Unattached);
        let pasids = core::mem::take(&mut record.pasids);
        if let Some(contexts) = &record.contexts {
            // Nothing leads to the table, and nothing of it is cached.
            let used = pasids.iter().map(|(pasid, _)| pasid.get()).chain([0]);
            used.filter_map(|substream| contexts.entry(substream)).for_each(|slot| slot.write(&UNATTACHED));
        }
        if let Plain::Attached(attachment) = &plain {
            self.leave(port, Cached { stream, pasid: None }, attachment);
        }
        for (pasid, attachment) in &pasids {
            self.leave(port, Cached { stream, pasid: Some(*pasid) }, attachment);
        }
        Ok(transition)
    }

    /// Drops a record that says nothing.
    fn tidy(&mut self, stream: StreamId) {
        if let Ok(place) = self.place(stream)
            && self.records.get(place).is_some_and(Record::is_idle)
        {
            drop(list::remove(&mut self.records, place));
        }
    }

    /// Lets go of a former domain. With the last user, the unit forgets the tag before it is free.
    fn leave(&mut self, port: &Port<H, M>, who: Cached, old: &Attachment<H, M>) {
        let Some(target) = &old.target else { return };
        let last = match target.in_use() {
            Some((tag, 1)) => Some(tag),
            _ => None,
        };
        if let Some(tag) = last
            && let Err(error) = port.execute_one(Command::tlbi_tag(tag))
        {
            log::error!("SMMUv3: {tag} and its tables are quarantined: {error}");
            core::mem::forget(old.clone());
            return;
        }
        target.remove_cache(port.hal(), who);
        target.remove_user();
        if last.is_some() {
            self.disarm(port, target);
        }
    }

    /// Lets a tag that the unit has forgotten be taken again.
    fn give_back(&mut self, tag: Tag) {
        match tag {
            Tag::Asid(asid) => self.asids.give_back(asid.get().into()),
            Tag::Vmid(vmid) => self.vmids.give_back(vmid.get().into()),
        }
    }

    /// After a failure none of the endpoints is translated any more. What they used is kept for ever, unless only a
    /// device failed and the unit confirms that it is cut off.
    pub(crate) fn give_up(
        &mut self,
        port: &Port<H, M>,
        endpoints: &[EndpointId],
        error: Unconfirmed,
    ) -> AttachError {
        let told = error.error(port);
        for &endpoint in endpoints {
            let stream = stream(endpoint);
            if matches!(error, Unconfirmed::Device) && self.cut_off(port, stream).is_ok() {
                self.tidy(stream);
                continue;
            }
            port.fault(&"a change of an endpoint's entry was not confirmed");
            self.invalidate(stream);
            if let Ok(at) = self.place(stream) {
                core::mem::forget(list::remove(&mut self.records, at));
            }
        }
        told
    }

    /// Clears all valid bits and gives nothing back, for a unit that cannot be stopped.
    pub(crate) fn abandon(&mut self) {
        for record in core::mem::take(&mut self.records) {
            self.invalidate(record.stream);
            core::mem::forget(record);
        }
    }
}

/// The domain as this driver made it.
pub(crate) fn own<H: Hal, M: Mmio + 'static>(
    domain: &Arc<dyn Domain>,
) -> Result<&SmmuDomain<H, M>, AttachError> {
    let any: &dyn Any = &**domain;
    any.downcast_ref().ok_or(AttachError::Incompatible { missing: Missing::BACKEND })
}

/// A unit knows endpoints by StreamID.
pub(crate) fn stream(endpoint: EndpointId) -> StreamId {
    StreamId::new(endpoint.get())
}
