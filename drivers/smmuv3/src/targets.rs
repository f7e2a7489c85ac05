//! Where a domain's translations may be cached: on each unit that it is attached to, under a tag of that unit.

use crate::atc::Caches;
use crate::cmdq::Ticket;
use crate::command::Tag;
use crate::entry::Stage2;
use crate::invalidate::{Unmapped, invalidation, single};
use crate::memory::Slot;
use crate::port::Port;
use crate::update::Entry;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};
use portcullis_hal::snapshot::{Reading, Snapshot};
use portcullis_hal::{Arc, Frames, Granule, Hal, Mmio, OutOfMemory, PhysAddr, SyncError, list};
use spin::Mutex;

/// One unit that a domain is attached to.
pub(crate) struct Target<H: Hal, M: Mmio> {
    pub(crate) port: Arc<Port<H, M>>,
    /// The ASID or VMID under which the unit caches the domain's translations.
    pub(crate) tag: Tag,
    /// The streams and PASIDs that use the tag. Zero again: the unit has forgotten the tag.
    users: AtomicU32,
    /// Those of them that cache translations themselves.
    pub(crate) caches: Caches,
    translation: Translation<H>,
}

/// How the unit comes to a domain's tables.
pub(crate) enum Translation<H: Hal> {
    /// By a context descriptor: here is the one that streams without PASIDs share. It goes with the last user.
    Stage1(Mutex<Option<Frames<H>>>),
    /// By the stream table entry.
    Stage2(Stage2),
}

impl<H: Hal, M: Mmio> Target<H, M> {
    pub(crate) fn new(port: Arc<Port<H, M>>, tag: Tag, translation: Translation<H>) -> Self {
        Self { port, tag, users: AtomicU32::new(0), caches: Caches::new(), translation }
    }

    /// The fields of a stream table entry, for a domain of stage 2.
    pub(crate) fn stage_2(&self) -> Option<Stage2> {
        match &self.translation {
            Translation::Stage1(_) => None,
            Translation::Stage2(stage_2) => Some(*stage_2),
        }
    }

    fn with_descriptor<T>(&self, look: impl FnOnce(Slot<'_, H>) -> T) -> Option<T> {
        let Translation::Stage1(descriptor) = &self.translation else { return None };
        let descriptor = descriptor.lock();
        Some(look(Slot::new(descriptor.as_ref()?, 0, self.port.features.table_writes())))
    }

    /// The shared context descriptor's address.
    pub(crate) fn descriptor(&self) -> Option<PhysAddr> {
        self.with_descriptor(|slot| slot.address())?
    }

    /// The context descriptor.
    pub(crate) fn context(&self) -> Option<Entry> {
        self.with_descriptor(|slot| slot.read())
    }

    /// Makes the unit, and then the devices that cache translations themselves, forget what was unmapped; everything, if
    /// that is not known. The caller has read the target from the set, after its stores to the tables.
    #[inline]
    pub(crate) fn forget(&self, granule: Granule, what: Option<Unmapped>) -> Result<(), SyncError> {
        // A tag without users is one that the unit has forgotten.
        if self.users() == 0 {
            return Ok(());
        }
        match single(self.tag, granule, self.port.features.ranges, what.as_ref()) {
            Some(command) => self.port.execute_one(command)?,
            None => self.forget_piecewise(granule, what)?,
        }
        if self.caches.is_empty() {
            return Ok(());
        }
        self.caches.invalidate(&self.port, what.map(|what| what.range))
    }

    /// Has the unit forget what does not fit one command.
    fn forget_piecewise(&self, granule: Granule, what: Option<Unmapped>) -> Result<(), SyncError> {
        let batch = invalidation(self.tag, granule, self.port.features.ranges, what);
        self.port.complete(&self.port.submit(batch)?)
    }

    /// The first half of [`forget`](Self::forget): the commands for the unit are on their way. `None` if there is nothing
    /// to wait for.
    pub(crate) fn submit(
        &self,
        granule: Granule,
        what: Option<Unmapped>,
    ) -> Result<Option<Ticket>, SyncError> {
        if self.users() == 0 {
            return Ok(None);
        }
        self.port.submit(invalidation(self.tag, granule, self.port.features.ranges, what)).map(Some)
    }

    /// The second half: the unit has done it, and so have the devices.
    pub(crate) fn complete(&self, ticket: &Ticket, what: Option<Unmapped>) -> Result<(), SyncError> {
        self.port.complete(ticket)?;
        // Devices only now: they fill their caches from the TLB.
        self.caches.invalidate(&self.port, what.map(|what| what.range))
    }

    /// Counts a user in, before its entry is published.
    pub(crate) fn add_user(&self) {
        self.users.fetch_add(1, Ordering::SeqCst);
    }

    /// How many use the tag.
    #[inline]
    pub(crate) fn users(&self) -> u32 {
        self.users.load(Ordering::SeqCst)
    }

    /// Counts a user out. With the last one the unit has forgotten the tag and the context descriptor.
    pub(crate) fn remove_user(&self) {
        if self.users.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.retire();
        }
    }

    /// Frees the context descriptor: nobody uses it.
    pub(crate) fn retire(&self) {
        if let Translation::Stage1(descriptor) = &self.translation {
            descriptor.lock().take();
        }
    }
}

/// A domain's targets, as a snapshot that is replaced when one is added.
///
/// Unmap stores its table entries, then reads the snapshot; attach adds the target and its user, then publishes the
/// entry; with a full fence in between on both sides, one of the two sees the other.
pub(crate) struct Targets<H: Hal, M: Mmio>(Snapshot<Vec<Arc<Target<H, M>>>>);

impl<H: Hal, M: Mmio> Targets<H, M> {
    pub(crate) fn new() -> Result<Self, OutOfMemory> {
        Snapshot::new(Vec::new()).map(Self)
    }

    /// The targets now; some may have no users any more. A full fence stands before the look.
    #[inline]
    pub(crate) fn read(&self) -> Reading<'_, Vec<Arc<Target<H, M>>>> {
        self.0.read()
    }

    /// The target on this unit, if the domain is attached there.
    pub(crate) fn find(&self, port: &Arc<Port<H, M>>) -> Option<Arc<Target<H, M>>> {
        let here = |target: &&Arc<Target<H, M>>| Arc::ptr_eq(&target.port, port) && target.users() > 0;
        self.read().iter().find(here).cloned()
    }

    /// Adds a target, and forgets those without users. Called with the lock of the target's unit held.
    pub(crate) fn add(&self, target: &Arc<Target<H, M>>) -> Result<(), OutOfMemory> {
        // Targets of other units may be prepared and not yet in use, so only those of this unit can be judged.
        let keep = |other: &&Arc<Target<H, M>>| other.users() > 0 || !Arc::ptr_eq(&other.port, &target.port);
        self.0.replace(|old| {
            let mut targets = Vec::new();
            targets.try_reserve_exact(old.len() + 1).map_err(|_| OutOfMemory)?;
            for other in old.iter().filter(keep) {
                list::push(&mut targets, other.clone())?;
            }
            list::push(&mut targets, target.clone())?;
            Ok(targets)
        })
    }
}
