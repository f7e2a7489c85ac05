//! What endpoints may do beyond untranslated accesses without a PASID.

use crate::attach::{source_id, source_ids};
use crate::dma::Published;
use crate::domain::{PagingDomain, table_entry};
use crate::endpoint::{Attachment, Endpoint, Memory, PasidEntry, Pdts};
use crate::entry::{Step, context_used, plan};
use crate::forget::{Requester, device_silenced, permissions_changed};
use crate::invalidate::{RID_PASID, Tag, TagKind};
use crate::tables::reachable_frames;
use crate::unit::{Inner, State, concrete};
use portcullis_hal::{
    Arc, EndpointId, FrameOrder, Hal, Mmio, PAGE_SIZE, Pasid, SyncError, TableFormat, TableRoot, TableWrites,
    barrier,
};
use portcullis_iommu::{AttachError, Permissions, Requests, Stage, Transition};
use portcullis_pgtable::AccessedDirty;

/// Where requests without PASID go, beside PASIDs, when nothing else is attached: to an empty table.
pub(crate) struct Nowhere<H: Hal> {
    #[expect(dead_code, reason = "hardware walks it")]
    table: Published<H>,
    tag: Tag,
    entry: PasidEntry,
}

impl<H: Hal> State<H> {
    /// The PASID entry that leads nowhere, and its tag. It is there as soon as a PASID was permitted.
    pub(crate) fn nowhere(&self) -> Result<(Tag, PasidEntry), SyncError> {
        let nowhere = self.nowhere.as_ref().ok_or(SyncError::Faulted)?;
        Ok((nowhere.tag, nowhere.entry))
    }
}

impl<H: Hal, M: Mmio + 'static> Inner<H, M> {
    /// Sets what the endpoints may do; see [`Unit::permit`](portcullis_iommu::Unit::permit).
    pub(crate) fn permit(
        this: &Arc<Self>,
        endpoints: &[EndpointId],
        permissions: &Permissions,
    ) -> Result<Transition, AttachError> {
        let missing = this.features.missing_to_permit(permissions);
        if !missing.is_empty() {
            return Err(AttachError::Incompatible { missing });
        }
        for &endpoint in endpoints {
            source_id(endpoint)?;
        }
        let mut state = this.state.lock();
        for sid in source_ids(endpoints) {
            let attachments = state.endpoint(sid).map_or(&[][..], |endpoint| &endpoint.attachments);
            let mut tagged = attachments.iter().filter_map(|one| Pasid::new(one.tag.pasid).ok());
            if let Some(pasid) = tagged.find(|&pasid| !permissions.allow(pasid)) {
                return Err(AttachError::PasidInUse(pasid));
            }
        }
        let before = |sid| state.endpoint(sid).map_or(Permissions::NONE, |endpoint| endpoint.permissions);
        let grants = |sid| {
            let before = before(sid);
            permissions.pasid_bits > before.pasid_bits || !before.requests.contains(permissions.requests)
        };
        if source_ids(endpoints).any(grants) {
            if this.is_faulted() {
                return Err(AttachError::Faulted);
            }
            Self::prepare_to_permit(this, &mut state, endpoints, permissions)?;
        }
        for sid in source_ids(endpoints) {
            if let Err(error) = Self::set_permissions(this, &mut state, sid, permissions) {
                this.give_up(&mut state, endpoints);
                return Err(this.unconfirmed(error));
            }
        }
        Ok(Transition::Hitless)
    }

    /// Allocates what the permissions take, and makes the directories large enough, which changes no translation.
    fn prepare_to_permit(
        this: &Arc<Self>,
        state: &mut State<H>,
        endpoints: &[EndpointId],
        permissions: &Permissions,
    ) -> Result<(), AttachError> {
        if permissions.pasid_bits > 0 && state.nowhere.is_none() {
            state.nowhere = Some(this.new_nowhere(state)?);
        }
        let attachments = |sid| state.endpoint(sid).map_or(&[][..], |endpoint| &endpoint.attachments);
        if permissions.requests.contains(Requests::TRANSLATION) {
            // All may be attached to the same domain.
            let attached =
                source_ids(endpoints).flat_map(|sid| attachments(sid).iter().map(move |one| (sid, one)));
            for (_, Attachment { domain, .. }) in attached.clone() {
                let devices = attached.clone().filter(|(_, other)| Arc::ptr_eq(&other.domain, domain));
                let devices = devices.map(|(sid, other)| Requester { sid, pasid: other.tag.pasid });
                if let Some(domain) = concrete::<H, M>(domain) {
                    domain.targets.reserve(this, None, devices)?;
                }
            }
        }
        let pdts = Pdts::for_bits(permissions.pasid_bits);
        for sid in source_ids(endpoints) {
            this.add_endpoint(state, sid, pdts)?;
            this.enlarge(state, sid, pdts)?;
        }
        Ok(())
    }

    fn new_nowhere(&self, state: &mut State<H>) -> Result<Nowhere<H>, AttachError> {
        state.tags.reserve()?;
        let frames = reachable_frames(self.hal(), &self.features, FrameOrder::SINGLE)?;
        // Page walks may not snoop where reads of entries do.
        if self.features.table_writes() == TableWrites::Cleaned {
            frames.clean(0, frames.order().bytes() as usize);
        }
        let table = Published::new(frames);
        let stage = self.features.default_stage();
        let levels = self.features.levels_for(stage, None).map_or(4, |levels| levels.get());
        let (kind, format) = match stage {
            Stage::Stage1 => (TagKind::FirstStage, TableFormat::X86 { levels }),
            Stage::Stage2 => (TagKind::SecondStage, TableFormat::VtdSecondStage { levels }),
        };
        let tag = state.tags.take(kind, RID_PASID).ok_or(AttachError::NoFreeId)?;
        let root = TableRoot {
            format,
            root: table.publish(),
            input_bits: 12 + 9 * levels,
            output_bits: self.features.host_address_bits(),
            page_sizes: PAGE_SIZE,
            writes: self.features.table_writes(),
        };
        let entry = table_entry(&self.features, &root, AccessedDirty::Preset, tag.did);
        Ok(Nowhere { table, tag, entry })
    }

    /// Gives an endpoint a larger directory with the same tables, if it needs one.
    fn enlarge(&self, state: &mut State<H>, sid: u16, pdts: Pdts) -> Result<(), AttachError> {
        let Some(endpoint) = state.endpoint_mut(sid) else { return Ok(()) };
        let memory = endpoint.memory;
        let Some(old) = endpoint.pasids.grow(self.hal(), &self.features, pdts)? else { return Ok(()) };
        if !endpoint.is_live() {
            if memory == Memory::Nothing {
                old.free();
            }
            return Ok(());
        }
        match self.update_context(state, sid, &Permissions::NONE) {
            Ok(()) => {
                old.free();
                Ok(())
            }
            Err(error) => {
                self.give_up(state, &[EndpointId::new(u32::from(sid))]);
                Err(self.unconfirmed(error))
            }
        }
    }

    /// Sets what one endpoint may do. All that it takes is allocated.
    fn set_permissions(
        this: &Arc<Self>,
        state: &mut State<H>,
        sid: u16,
        permissions: &Permissions,
    ) -> Result<(), SyncError> {
        // An endpoint that nothing was ever done with has no permissions.
        let Some(endpoint) = state.endpoint(sid) else { return Ok(()) };
        let before = endpoint.permissions;
        // Hardware that did not confirm that it forgot the endpoint may still let it do what it could, whatever was noted.
        this.confirm_forgotten(state, sid)?;
        if before == *permissions {
            return Ok(());
        }
        Self::end_silence_beyond(this, state, sid, permissions.pasid_bits)?;
        if let Some(endpoint) = state.endpoint_mut(sid) {
            endpoint.permissions = *permissions;
        }
        let asked = before.requests.contains(Requests::TRANSLATION);
        let asks = permissions.requests.contains(Requests::TRANSLATION);
        if asks && !asked {
            Self::each_domain(state, sid, |domain, device| domain.targets.add_device(this, device));
            // As with attachments: the target is added and then the entry published.
            barrier::store_then_load();
        }
        let withdrawn = if asks { Permissions::NONE } else { before };
        if state.endpoint(sid).is_some_and(Endpoint::is_live) {
            // ATS is off in the device by now. What it has cached goes before the entry changes, and again after it, for
            // a device that asked on.
            if asked && !asks {
                this.run_or_forget(device_silenced(&this.features, sid, &withdrawn).descriptors())?;
            }
            this.update_context(state, sid, &withdrawn)?;
        }
        if !asks {
            Self::each_domain(state, sid, |domain, device| domain.targets.remove_device(this, device));
        }
        Ok(())
    }

    /// Calls `f` for each domain that an endpoint is attached to, with the device TLB that has to do with it.
    fn each_domain(state: &State<H>, sid: u16, f: impl Fn(&PagingDomain<H, M>, Requester)) {
        let attachments = state.endpoint(sid).map_or(&[][..], |endpoint| &endpoint.attachments);
        for attachment in attachments {
            if let Some(domain) = concrete::<H, M>(&attachment.domain) {
                f(domain, Requester { sid, pasid: attachment.tag.pasid });
            }
        }
    }

    /// Brings the context entry of an endpoint in use up to date.
    fn update_context(&self, state: &State<H>, sid: u16, withdrawn: &Permissions) -> Result<(), SyncError> {
        let (Some(endpoint), Some((contexts, number))) = (state.endpoint(sid), state.context(sid)) else {
            return Err(SyncError::Faulted);
        };
        let batch = permissions_changed(&self.features, sid, withdrawn);
        let plan = plan(contexts.entry(number), [endpoint.context(), 0], context_used);
        for step in plan.steps() {
            match step {
                Step::Write { quantum, value } => contexts.store(number * 2 + quantum, value),
                Step::Sync => self.run_or_forget(batch.descriptors())?,
            }
        }
        Ok(())
    }
}
