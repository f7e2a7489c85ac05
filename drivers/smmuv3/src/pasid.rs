//! Attaching single PASIDs of endpoints.
//!
//! # From one domain to another
//!
//! A descriptor's ASID and its root are in different words (IHI 0070, 5.4), so a descriptor of one domain becomes that of
//! another by way of V = 0, and the change is reported as disruptive. Beside PASIDs that is so for requests without one, too,
//! and in a stream that may stall, which has a descriptor of its own. Of the two ways around it neither is taken:
//!
//! - The ASID first, the root then. In between the unit walks the old tables and keeps what it finds under the new tag.
//!   Until both words and an invalidation of that tag are through, an unmap of the old domain would have to invalidate
//!   both tags to keep its promise, and nobody else may use the new one: a device that does would reach the old domain.
//! - A copy of the table, or of its second level, that has the new descriptor, put in place by the one word that leads to
//!   it. Hardware would see the old descriptors or the new ones, each in one piece. But each change would cost 64 KiB, and
//!   with them a reason to fail, and an invalidation of all of the stream's descriptors, those of others' PASIDs too.
//!
//! A stream without PASIDs and stalls is spared that: its entry leads to the domain's own descriptor, by one word.

use crate::atc::{Block, Cached};
use crate::attach::{Attachments, own, stream};
use crate::change::{Unconfirmed, worse};
use crate::command::{Command, Scope};
use crate::domain::Body;
use crate::port::{Health, Port, count};
use crate::record::{Attachment, Record, UNATTACHED};
use crate::spec::cd::Cd0;
use crate::update::prefixed;
use portcullis_hal::{Arc, EndpointId, Hal, Mmio, OutOfMemory, Pasid, StreamId, list};
use portcullis_iommu::{AttachError, Domain, Missing, Transition};

impl<H: Hal, M: Mmio + 'static> Attachments<H, M> {
    /// Replaces the translation of a PASID; see [`Unit::attach_pasid`](portcullis_iommu::Unit::attach_pasid).
    pub(crate) fn attach_pasid(
        &mut self,
        port: &Arc<Port<H, M>>,
        endpoints: &[EndpointId],
        pasid: Pasid,
        domain: &Arc<dyn Domain>,
    ) -> Result<Transition, AttachError> {
        if endpoints.is_empty() {
            return Ok(Transition::Hitless);
        }
        self.check(endpoints)?;
        let own = own::<H, M>(domain)?;
        if endpoints.iter().any(|&endpoint| !self.permissions(stream(endpoint)).allow(pasid)) {
            return Err(AttachError::UnknownPasid(pasid));
        }
        let root = match own.body() {
            Body::Blocked => return self.silence_pasid(port, endpoints, pasid, domain),
            _ => own.root().ok_or(AttachError::Incompatible { missing: Missing::IDENTITY })?,
        };
        if port.health() == Health::Faulted {
            return Err(AttachError::Faulted);
        }
        for &endpoint in endpoints {
            let stream = stream(endpoint);
            self.streams.prepare(&port.features, stream)?;
            let Some(record) = self.find_mut(stream) else { continue };
            record.pasids.try_reserve(1).map_err(|_| OutOfMemory)?;
            if let Some(contexts) = &mut record.contexts {
                contexts.prepare(&port.features, pasid.get())?;
            }
        }
        let new = Attachment { domain: domain.clone(), target: Some(self.target(port, own, &root)?) };
        let room = match new.target.as_ref().and_then(|target| target.stage_2()) {
            // Stage 2 has no tables by SubstreamID.
            Some(_) => Err(AttachError::Incompatible { missing: Missing::PASID }),
            None => self.make_room(port, endpoints, &new),
        };
        if let Err(error) = room {
            self.unused(port, new.target.as_ref());
            return Err(error);
        }
        // From here on only the hardware can fail.
        let mut transition = Transition::Hitless;
        for &endpoint in endpoints {
            match self.set_pasid(port, stream(endpoint), pasid, Some(new.clone())) {
                Ok(how) => transition = worse(transition, how),
                Err(error) => return Err(self.give_up(port, endpoints, error)),
            }
        }
        count(&port.counters.attaches);
        Ok(transition)
    }

    /// Makes a PASID reach nothing; see [`Unit::detach_pasid`](portcullis_iommu::Unit::detach_pasid).
    pub(crate) fn detach_pasid(
        &mut self,
        port: &Port<H, M>,
        endpoints: &[EndpointId],
        pasid: Pasid,
    ) -> Result<(), AttachError> {
        self.check(endpoints)?;
        let attached = |record: &Record<H, M>| record.place(pasid).is_ok();
        if !endpoints.iter().any(|&endpoint| self.find(stream(endpoint)).is_some_and(attached)) {
            return Ok(());
        }
        self.each(port, endpoints, |this, port, stream| this.set_pasid(port, stream, pasid, None)).map(drop)
    }

    /// Makes a PASID that is attached reach nothing without a record of it. Allocates nothing.
    fn silence_pasid(
        &mut self,
        port: &Port<H, M>,
        endpoints: &[EndpointId],
        pasid: Pasid,
        blocked: &Arc<dyn Domain>,
    ) -> Result<Transition, AttachError> {
        let attached = |record: &Record<H, M>| record.place(pasid).is_ok();
        if !endpoints.iter().any(|&endpoint| self.find(stream(endpoint)).is_some_and(attached)) {
            return Ok(Transition::Hitless);
        }
        self.each(port, endpoints, |this, port, stream| {
            let new = Attachment { domain: blocked.clone(), target: None };
            match this.find(stream).is_some_and(attached) {
                true => this.set_pasid(port, stream, pasid, Some(new)),
                false => Ok(Transition::Hitless),
            }
        })
    }

    /// Changes where a PASID leads. There is room for it and for its descriptor.
    fn set_pasid(
        &mut self,
        port: &Port<H, M>,
        stream: StreamId,
        pasid: Pasid,
        new: Option<Attachment<H, M>>,
    ) -> Result<Transition, Unconfirmed> {
        let who = Cached { stream, pasid: Some(pasid) };
        self.enter(port, who, new.as_ref().and_then(|new| new.target.as_ref()));
        let Some(record) = self.find_mut(stream) else { return Ok(Transition::Hitless) };
        let old = match (record.place(pasid), new) {
            (Ok(at), Some(new)) => record.pasids.get_mut(at).map(|slot| core::mem::replace(&mut slot.1, new)),
            (Ok(at), None) => list::remove(&mut record.pasids, at).map(|(_, old)| old),
            (Err(at), Some(new)) => {
                // What is not noted must not be published.
                if let Err((_, unnoted)) = list::insert_reserved(&mut record.pasids, at, (pasid, new)) {
                    core::mem::forget(unnoted);
                    return Err(Unconfirmed::Unit);
                }
                None
            }
            (Err(_), None) => return Ok(Transition::Hitless),
        };
        let scope = if old.is_some() { Scope::Leaf } else { Scope::Walk };
        let result = self.switch_pasid(port, who, scope);
        self.conclude(port, who, old, result)
    }

    /// Brings the hardware to what the record says of a PASID.
    pub(crate) fn switch_pasid(
        &self,
        port: &Port<H, M>,
        who: Cached,
        scope: Scope,
    ) -> Result<Transition, Unconfirmed> {
        let (stream, substream) = (who.stream, who.pasid.map_or(0, Pasid::get));
        let Some(record) = self.find(stream) else { return Ok(Transition::Hitless) };
        let caching = self.takes_requests(stream);
        let mut transition = Transition::Hitless;
        if let Some(slot) = record.contexts.as_ref().and_then(|contexts| contexts.entry(substream)) {
            let context = who.pasid.and_then(|pasid| record.context_at(&port.features, pasid));
            let context = context.unwrap_or(UNATTACHED);
            let done = port.bring_context(stream, substream, &slot, &context, scope);
            if done.is_err() {
                // For a unit that may look once more.
                let [word0, rest @ ..] = slot.read();
                let word0 = Cd0::from(word0).with_v(false).into();
                slot.write(&prefixed(word0, rest));
            }
            transition = done?;
        }
        // The entry is invalid as long as there is nothing that it could lead to.
        transition = worse(transition, self.update(port, stream, &record.entry(&port.features))?);
        if caching && scope == Scope::Leaf && self.takes_requests(stream) {
            port.silence(&[Command::atc_inv(who, Block::ALL)])?;
        }
        Ok(transition)
    }
}
