//! What a stream may do, what it is attached to, and the entry that says so.

use crate::atc::Cached;
use crate::context::ContextTable;
use crate::entry::{AnswerPasid, Contexts, Shape, silent_descriptor, stalling};
use crate::features::{Features, StallModel};
use crate::spec::ste::{AtsMode, DefaultSubstream, Ste0, Ste1, StreamConfig};
use crate::targets::Target;
use crate::update::Entry;
use alloc::vec::Vec;
use portcullis_hal::{Arc, Hal, Mmio, Pasid, StreamId};
use portcullis_iommu::{Domain, Missing, Permissions, Requests};

/// The entry of a stream that reaches nothing: DMA is aborted and recorded.
pub(crate) const UNATTACHED: Entry = [0; 8];

/// A domain that is in use. The clone keeps the domain's tables in place as long as hardware may walk them.
pub(crate) struct Attachment<H: Hal, M: Mmio> {
    pub(crate) domain: Arc<dyn Domain>,
    /// The domain's tag on this unit, for domains with tables.
    pub(crate) target: Option<Arc<Target<H, M>>>,
}

impl<H: Hal, M: Mmio> Clone for Attachment<H, M> {
    fn clone(&self) -> Self {
        Self { domain: self.domain.clone(), target: self.target.clone() }
    }
}

impl<H: Hal, M: Mmio> Attachment<H, M> {
    /// What hardware cannot do at the same time with these permissions, if it is for requests without a PASID.
    pub(crate) fn missing(&self, permissions: &Permissions) -> Missing {
        let (pasids, stalls) = (permissions.pasid_bits > 0, stalls(permissions));
        match &self.target {
            Some(target) if (pasids || stalls) && target.stage_2().is_some() => {
                let mut missing = Missing::empty();
                missing.set(Missing::PASID, pasids);
                missing.set(Missing::STALL, stalls);
                missing
            }
            // An entry that bypasses both stages takes no translation requests; one that bypasses stage 1 for requests
            // without a SubstreamID does (IHI 0070, 13.6.4).
            None if !pasids && translates(permissions) => Missing::ATS,
            _ => Missing::empty(),
        }
    }
}

/// What becomes of requests without a PASID.
pub(crate) enum Plain<H: Hal, M: Mmio> {
    /// They are aborted and recorded.
    Unattached,
    /// They are aborted.
    Blocked,
    /// They go through a domain, or are not translated if it has no tables.
    Attached(Attachment<H, M>),
}

impl<H: Hal, M: Mmio> Plain<H, M> {
    pub(crate) fn attachment(&self) -> Option<&Attachment<H, M>> {
        match self {
            Self::Attached(attachment) => Some(attachment),
            Self::Unattached | Self::Blocked => None,
        }
    }

    pub(crate) fn target(&self) -> Option<&Arc<Target<H, M>>> {
        self.attachment()?.target.as_ref()
    }

    /// What hardware cannot do at the same time with these permissions.
    pub(crate) fn missing(&self, permissions: &Permissions) -> Missing {
        self.attachment().map_or(Missing::empty(), |attachment| attachment.missing(permissions))
    }
}

/// Whether translation requests are permitted.
pub(crate) fn translates(permissions: &Permissions) -> bool {
    permissions.requests.contains(Requests::TRANSLATION)
}

/// Whether stalls are permitted.
pub(crate) fn stalls(permissions: &Permissions) -> bool {
    permissions.requests.contains(Requests::STALL)
}

/// Whether an entry translates.
pub(crate) fn is_translating(entry: &Entry) -> bool {
    let [word0, ..] = *entry;
    let word0 = Ste0::from(word0);
    word0.v() && [StreamConfig::STAGE_1, StreamConfig::STAGE_2].contains(&word0.config())
}

/// Whether accesses go on with an entry, translated or not.
pub(crate) fn accepts(entry: &Entry) -> bool {
    let [word0, ..] = *entry;
    let word0 = Ste0::from(word0);
    word0.v() && word0.config() != StreamConfig::ABORT
}

/// Whether an entry takes translation requests.
pub(crate) fn takes_requests(entry: &Entry) -> bool {
    let [_, word1, ..] = *entry;
    is_translating(entry) && Ste1::from(word1).eats() != AtsMode::ABORT
}

/// A stream that is attached, or was permitted something.
pub(crate) struct Record<H: Hal, M: Mmio> {
    pub(crate) stream: StreamId,
    pub(crate) permissions: Permissions,
    /// There if PASIDs or stalls are permitted.
    pub(crate) contexts: Option<ContextTable<H>>,
    pub(crate) plain: Plain<H, M>,
    /// By PASID, in ascending order.
    pub(crate) pasids: Vec<(Pasid, Attachment<H, M>)>,
}

impl<H: Hal, M: Mmio> Record<H, M> {
    /// A stream in the state after start-up, or blocked.
    pub(crate) fn new(stream: StreamId, plain: Plain<H, M>) -> Self {
        Self { stream, permissions: Permissions::NONE, contexts: None, plain, pasids: Vec::new() }
    }

    /// Whether there is anything to remember that the entry does not say.
    pub(crate) fn is_idle(&self) -> bool {
        self.permissions == Permissions::NONE && self.plain.attachment().is_none()
    }

    pub(crate) fn place(&self, pasid: Pasid) -> Result<usize, usize> {
        self.pasids.binary_search_by_key(&pasid, |attached| attached.0)
    }

    /// The targets in use, and under which name a device caches what they translate.
    pub(crate) fn users(&self) -> impl Iterator<Item = (Cached, &Arc<Target<H, M>>)> {
        let stream = self.stream;
        let plain = self.plain.target().map(|target| (Cached { stream, pasid: None }, target));
        let pasids = self.pasids.iter().filter_map(move |(pasid, attachment)| {
            Some((Cached { stream, pasid: Some(*pasid) }, attachment.target.as_ref()?))
        });
        plain.into_iter().chain(pasids)
    }

    /// The context descriptor for a target in this stream's own table.
    pub(crate) fn context_of(&self, target: &Target<H, M>) -> Option<Entry> {
        let context = target.context()?;
        Some(if self.stalls() { stalling(context) } else { context })
    }

    /// The context descriptor of a PASID.
    pub(crate) fn context_at(&self, features: &Features, pasid: Pasid) -> Option<Entry> {
        let (_, attachment) = self.pasids.get(self.place(pasid).ok()?)?;
        match &attachment.target {
            Some(target) => self.context_of(target),
            None => Some(silent_descriptor(features)),
        }
    }

    /// Whether its faults are stalled.
    pub(crate) fn stalls(&self) -> bool {
        stalls(&self.permissions)
    }

    /// The entry.
    pub(crate) fn entry(&self, features: &Features) -> Entry {
        let ats = if translates(&self.permissions) { AtsMode::FULL } else { AtsMode::ABORT };
        let requests = self.permissions.requests;
        let stall = match self.stalls() {
            true => StallModel::None,
            false => features.stall,
        };
        let answers = match requests.contains(Requests::PAGE | Requests::PASID_IN_ANSWERS) {
            true => AnswerPasid::Carried,
            false => AnswerPasid::Absent,
        };
        let stage_1 = |contexts| Shape::Stage1 { contexts, stall, answers, ats }.entry();
        let idle = self.pasids.is_empty() && matches!(self.plain, Plain::Unattached);
        let bits = self.permissions.pasid_bits;
        if let (Some(table), false) = (&self.contexts, idle || bits == 0) {
            let default = match &self.plain {
                Plain::Unattached | Plain::Blocked => DefaultSubstream::TERMINATE,
                Plain::Attached(Attachment { target: None, .. }) => DefaultSubstream::BYPASS,
                Plain::Attached(_) => DefaultSubstream::SUBSTREAM_0,
            };
            return stage_1(table.contexts(bits, default));
        }
        let target = match &self.plain {
            Plain::Unattached => return UNATTACHED,
            Plain::Blocked => return Shape::Abort.entry(),
            Plain::Attached(Attachment { target: None, .. }) => return Shape::Bypass.entry(),
            Plain::Attached(Attachment { target: Some(target), .. }) => target,
        };
        if let Some(tables) = target.stage_2() {
            return Shape::Stage2 { tables, ats }.entry();
        }
        match (&self.contexts, target.descriptor()) {
            (Some(table), _) => stage_1(table.contexts(0, DefaultSubstream::SUBSTREAM_0)),
            (None, Some(descriptor)) => stage_1(Contexts::one(descriptor)),
            // A target that is in use has one or the other.
            (None, None) => UNATTACHED,
        }
    }
}
