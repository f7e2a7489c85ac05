//! Where a domain's translations may be cached: on each unit that it is attached to, under a tag of that unit.

use crate::atc::Caches;
use crate::cmdq::Ticket;
use crate::command::Tag;
use crate::descriptors::Place;
use crate::entry::Stage2;
use crate::invalidate::{Prepared, Unmapped, invalidation};
use crate::port::Port;
use crate::update::Entry;
use core::sync::atomic::{AtomicU64, Ordering};
use portcullis_hal::roster::{Items, Roster};
use portcullis_hal::{Arc, Granule, Hal, Mmio, OutOfMemory, PhysAddr, SyncError};
use portcullis_iommu::Stage;
use spin::Mutex;

/// One unit that a domain is, or was, attached to.
///
/// It stays in the domain's set for the next time. While nobody uses it, it has no tag.
pub(crate) struct Target<H: Hal, M: Mmio> {
    pub(crate) port: Arc<Port<H, M>>,
    stage: Stage,
    granule: Granule,
    prepared: Prepared,
    /// The bits of the tag (63:32) under which the unit caches the domain's translations, and how many streams and PASIDs
    /// use it (31:0): in one word, as nobody may see one with another's time of the other. Without users, the unit has
    /// forgotten the tag.
    state: AtomicU64,
    /// Those of the users that cache translations themselves.
    pub(crate) caches: Caches,
    /// Touched with the lock of the unit held.
    translation: Mutex<Option<Translation>>,
}

/// How the unit comes to a domain's tables.
#[derive(Clone, Copy)]
pub(crate) enum Translation {
    /// By a context descriptor: the one that streams without PASIDs share.
    Stage1(Descriptor),
    /// By the stream table entry.
    Stage2(Stage2),
}

/// A context descriptor.
#[derive(Clone, Copy)]
pub(crate) struct Descriptor {
    pub(crate) place: Place,
    pub(crate) address: PhysAddr,
    pub(crate) context: Entry,
}

/// The bits of a target's state that are its tag's.
const TAG: u64 = !0 << 32;

impl<H: Hal, M: Mmio> Target<H, M> {
    /// A target without a tag, for tables of this stage and granule.
    pub(crate) fn new(port: Arc<Port<H, M>>, stage: Stage, granule: Granule) -> Self {
        Self {
            prepared: Prepared::new(stage, granule, port.features.ranges),
            port,
            stage,
            granule,
            state: AtomicU64::new(0),
            caches: Caches::new(),
            translation: Mutex::new(None),
        }
    }

    /// Gives the target a tag, which nobody uses yet.
    pub(crate) fn arm(&self, tag: Tag, translation: Translation) {
        *self.translation.lock() = Some(translation);
        self.state.store(tag.bits(), Ordering::SeqCst);
    }

    /// Takes the tag away, which nobody uses any more.
    pub(crate) fn disarm(&self) -> Option<Translation> {
        self.translation.lock().take()
    }

    /// The tag that somebody uses, and how many do.
    pub(crate) fn in_use(&self) -> Option<(Tag, u32)> {
        let state = self.state.load(Ordering::SeqCst);
        let users = state as u32;
        (users > 0).then_some((Tag::from_bits(self.stage, state), users))
    }

    /// The tag, if the target has one.
    pub(crate) fn tag(&self) -> Tag {
        Tag::from_bits(self.stage, self.state.load(Ordering::SeqCst))
    }

    /// The fields of a stream table entry, for a domain of stage 2.
    pub(crate) fn stage_2(&self) -> Option<Stage2> {
        match &*self.translation.lock() {
            Some(Translation::Stage2(stage_2)) => Some(*stage_2),
            _ => None,
        }
    }

    fn descriptor_with<T>(&self, look: impl FnOnce(&Descriptor) -> T) -> Option<T> {
        match &*self.translation.lock() {
            Some(Translation::Stage1(descriptor)) => Some(look(descriptor)),
            _ => None,
        }
    }

    /// The shared context descriptor's address.
    pub(crate) fn descriptor(&self) -> Option<PhysAddr> {
        self.descriptor_with(|descriptor| descriptor.address)
    }

    /// The context descriptor.
    pub(crate) fn context(&self) -> Option<Entry> {
        self.descriptor_with(|descriptor| descriptor.context)
    }

    /// Makes the unit, and then the devices that cache translations themselves, forget what was unmapped. The caller has
    /// read the target from the set, after its stores to the tables.
    // In line, as the way of most unmaps.
    #[inline(always)]
    pub(crate) fn forget(&self, what: Unmapped) -> Result<(), SyncError> {
        let state = self.state.load(Ordering::SeqCst);
        if state as u32 == 0 {
            return Ok(());
        }
        match self.prepared.single(state & TAG, &what) {
            Some(command) => self.port.execute_in_line(command)?,
            None => self.forget_piecewise(what)?,
        }
        // Devices only now: they fill their caches from the TLB.
        if self.caches.is_empty() {
            return Ok(());
        }
        self.caches.invalidate(&self.port, Some(what.range))
    }

    /// Has the unit forget what does not fit one command.
    #[cold]
    fn forget_piecewise(&self, what: Unmapped) -> Result<(), SyncError> {
        match self.submit(Some(what))? {
            Some(ticket) => self.port.complete(&ticket),
            None => Ok(()),
        }
    }

    /// The first half of [`forget`](Self::forget): the commands for the unit are on their way. `None` if there is nothing
    /// to wait for. If what was unmapped is not known, everything is forgotten.
    pub(crate) fn submit(&self, what: Option<Unmapped>) -> Result<Option<Ticket>, SyncError> {
        let Some((tag, _)) = self.in_use() else { return Ok(None) };
        self.port.submit(invalidation(tag, self.granule, self.port.features.ranges, what)).map(Some)
    }

    /// The second half: the unit has done it, and so have the devices.
    pub(crate) fn complete(&self, ticket: &Ticket, what: Option<Unmapped>) -> Result<(), SyncError> {
        self.port.complete(ticket)?;
        // Devices only now: they fill their caches from the TLB.
        self.caches.invalidate(&self.port, what.map(|what| what.range))
    }

    /// Counts a user in, before its entry is published.
    pub(crate) fn add_user(&self) {
        self.state.fetch_add(1, Ordering::SeqCst);
    }

    /// How many use the tag.
    pub(crate) fn users(&self) -> u32 {
        self.state.load(Ordering::SeqCst) as u32
    }

    /// Counts a user out. If it is the last one, the unit has forgotten the tag and the context descriptor.
    pub(crate) fn remove_user(&self) {
        self.state.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A domain's targets. There will be no fewer: one that nobody uses waits for its next time.
///
/// Unmap stores its table entries, then reads the list; attach adds the target and its user, then publishes the entry;
/// with a full fence in between on both sides, one of the two sees the other.
pub(crate) struct Targets<H: Hal, M: Mmio>(Roster<Arc<Target<H, M>>>);

impl<H: Hal, M: Mmio> Targets<H, M> {
    pub(crate) fn new() -> Self {
        Self(Roster::new())
    }

    /// The targets now; some may have no users. A full fence stands before the look.
    #[inline]
    pub(crate) fn read(&self) -> Items<'_, Arc<Target<H, M>>> {
        self.0.read()
    }

    /// The target on this unit, if the domain was ever attached there.
    pub(crate) fn find(&self, port: &Arc<Port<H, M>>) -> Option<Arc<Target<H, M>>> {
        self.read().find(|target| Arc::ptr_eq(&target.port, port)).cloned()
    }

    /// Adds a target of another unit than the others'. Called with the lock of that unit held.
    pub(crate) fn add(&self, target: &Arc<Target<H, M>>) -> Result<(), OutOfMemory> {
        self.0.add(target.clone())
    }
}
