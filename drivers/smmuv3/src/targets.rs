//! Where a domain's translations may be cached: on each unit that it is attached to, under a tag of that unit.

use crate::command::Tag;
use crate::port::Port;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};
use portcullis_hal::{Arc, Frames, Hal, Mmio, OutOfMemory, PhysAddr};
use spin::{Mutex, RwLock};

/// One unit that a domain is attached to.
pub(crate) struct Target<H: Hal, M: Mmio> {
    pub(crate) port: Arc<Port<H, M>>,
    /// The ASID or VMID under which the unit caches the domain's translations.
    pub(crate) tag: Tag,
    /// The endpoints that use the tag. Zero again: the unit has forgotten the tag.
    users: AtomicU32,
    /// The context descriptor of a stage-1 domain on this unit, shared by its endpoints.
    descriptor: Mutex<Option<Frames<H>>>,
}

impl<H: Hal, M: Mmio> Target<H, M> {
    pub(crate) fn new(port: Arc<Port<H, M>>, tag: Tag, descriptor: Option<Frames<H>>) -> Self {
        Self { port, tag, users: AtomicU32::new(0), descriptor: Mutex::new(descriptor) }
    }

    /// The context descriptor's address.
    pub(crate) fn descriptor(&self) -> Option<PhysAddr> {
        self.descriptor.lock().as_ref().map(Frames::phys)
    }

    /// The words of the context descriptor.
    pub(crate) fn descriptor_words(&self) -> Option<[u64; 8]> {
        let descriptor = self.descriptor.lock();
        let words = descriptor.as_ref()?.words();
        let mut entry = [0; 8];
        for (to, from) in entry.iter_mut().zip(words) {
            *to = from.load(Ordering::Relaxed);
        }
        Some(entry)
    }

    /// Counts an endpoint in, before its entry is published.
    pub(crate) fn add_user(&self) {
        self.users.fetch_add(1, Ordering::SeqCst);
    }

    /// How many endpoints use the tag.
    pub(crate) fn users(&self) -> u32 {
        self.users.load(Ordering::SeqCst)
    }

    /// Counts an endpoint out. With the last one the unit has forgotten the tag and the context descriptor.
    pub(crate) fn remove_user(&self) {
        if self.users.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.descriptor.lock().take();
        }
    }
}

type List<H, M> = Vec<Arc<Target<H, M>>>;

/// A domain's targets, as a snapshot that is replaced when one is added.
///
/// Unmap stores its table entries, then reads the snapshot; attach adds the target and its user, then publishes the
/// entry; with a full fence in between on both sides, one of the two sees the other.
pub(crate) struct Targets<H: Hal, M: Mmio> {
    current: RwLock<Arc<List<H, M>>>,
    /// Serialises changes.
    changing: Mutex<()>,
}

impl<H: Hal, M: Mmio> Targets<H, M> {
    pub(crate) fn new() -> Result<Self, OutOfMemory> {
        Ok(Self { current: RwLock::new(Arc::try_new(Vec::new())?), changing: Mutex::new(()) })
    }

    /// The targets now; some may have no users any more.
    pub(crate) fn snapshot(&self, hal: &H) -> Arc<List<H, M>> {
        hal.critical(|| self.current.read().clone())
    }

    /// The target on this unit, if the domain is attached there.
    pub(crate) fn find(&self, hal: &H, port: &Arc<Port<H, M>>) -> Option<Arc<Target<H, M>>> {
        let here = |target: &&Arc<Target<H, M>>| Arc::ptr_eq(&target.port, port) && target.users() > 0;
        self.snapshot(hal).iter().find(here).cloned()
    }

    /// Adds a target, and forgets those without users. Called with the lock of the target's unit held.
    pub(crate) fn add(&self, hal: &H, target: &Arc<Target<H, M>>) -> Result<(), OutOfMemory> {
        let _turn = self.changing.lock();
        let old = self.snapshot(hal);
        let mut list = Vec::new();
        list.try_reserve_exact(old.len() + 1).map_err(|_| OutOfMemory)?;
        // Targets of other units may be prepared and not yet in use, so only those of this unit can be judged.
        let keep = |other: &&Arc<Target<H, M>>| other.users() > 0 || !Arc::ptr_eq(&other.port, &target.port);
        list.extend(old.iter().filter(keep).cloned());
        list.push(target.clone());
        let new = Arc::try_new(list)?;
        let replaced = hal.critical(|| core::mem::replace(&mut *self.current.write(), new));
        drop(replaced);
        Ok(())
    }
}
