//! Memory that the hardware reads and writes, and the contract of [`IoSpace`]: all unsafe code of the driver.

#![expect(unsafe_code, reason = "queue slots, 128-bit table words and the contract of IoSpace")]

use crate::domain::PagingDomain;
use crate::invalidate::Descriptor;
use crate::queue::{Ticket, Unsubmitted};
use crate::ring::Ring;
use crate::unit::Inner;
use core::iter;
use core::mem::ManuallyDrop;
use core::ops::{ControlFlow, Deref};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use portcullis_hal::atomic128::AtomicU128;
use portcullis_hal::producers::{Position, Publisher};
use portcullis_hal::snapshot::Reading;
use portcullis_hal::{
    Frames, Gather, Hal, HarvestError, IoSpace, Iova, IovaRange, MapError, Mapping, Mmio, NoTables,
    OutOfMemory, PhysAddr, Progress, ResizeError, SyncError, SyncProof, Translated, UnmapError, Usage,
};

/// Frames that are leaked when the value is dropped after hardware got to know them, since nobody can say that it has
/// forgotten them.
pub(crate) struct Published<H: Hal> {
    frames: ManuallyDrop<Frames<H>>,
    known: AtomicBool,
}

impl<H: Hal> Published<H> {
    /// Frames that hardware does not know yet.
    pub(crate) fn new(frames: Frames<H>) -> Self {
        Self { frames: ManuallyDrop::new(frames), known: AtomicBool::new(false) }
    }

    /// Gives the frames back: hardware has confirmed that it forgot them, or never got to know them.
    pub(crate) fn free(mut self) {
        *self.known.get_mut() = false;
    }

    /// The physical address, to be shown to hardware.
    pub(crate) fn publish(&self) -> PhysAddr {
        self.known.store(true, Ordering::Relaxed);
        self.frames.phys()
    }
}

impl<H: Hal> Deref for Published<H> {
    type Target = Frames<H>;

    fn deref(&self) -> &Frames<H> {
        &self.frames
    }
}

impl<H: Hal> Drop for Published<H> {
    fn drop(&mut self) {
        if !*self.known.get_mut() {
            // SAFETY: the value is being dropped, so this happens once and nobody uses the frames afterwards.
            unsafe { ManuallyDrop::drop(&mut self.frames) }
        }
    }
}

/// The frames as 128-bit words. They are only used so.
pub(crate) fn quanta<H: Hal>(frames: &Frames<H>) -> &[AtomicU128] {
    let words = frames.words();
    // SAFETY: the words are frames: aligned to 4096, a multiple of 16 bytes long, and borrowed from `frames` like the
    // result. They are atomics, so that shared references to them permit writes, and tables are reached through this
    // function only, so that all accesses have the same size.
    unsafe { core::slice::from_raw_parts(words.as_ptr().cast(), words.len() / 2) }
}

/// Published frames, seen as words or as something made of words. Where they are is looked up once.
pub(crate) struct Words<H: Hal, T: ?Sized = [AtomicU64]> {
    frames: Published<H>,
    view: NonNull<T>,
}

// SAFETY: the view is only shared, and leads to frames that belong to the value; `Published` is both for any `Hal`.
unsafe impl<H: Hal, T: Sync + ?Sized> Send for Words<H, T> {}
// SAFETY: as above.
unsafe impl<H: Hal, T: Sync + ?Sized> Sync for Words<H, T> {}

impl<H: Hal, T: ?Sized> Words<H, T> {
    /// What `view` makes of the words of the frames.
    ///
    /// # Errors
    ///
    /// There are not as many as it takes.
    pub(crate) fn new(
        frames: Frames<H>,
        view: for<'a> fn(&'a [AtomicU64]) -> Option<&'a T>,
    ) -> Result<Self, OutOfMemory> {
        let view = NonNull::from(view(frames.words()).ok_or(OutOfMemory)?);
        Ok(Self { frames: Published::new(frames), view })
    }

    pub(crate) fn phys(&self) -> PhysAddr {
        self.frames.phys()
    }

    /// The physical address, to be shown to hardware.
    pub(crate) fn publish(&self) -> PhysAddr {
        self.frames.publish()
    }
}

impl<H: Hal, T: ?Sized> Deref for Words<H, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: a view of the frames for as long as they live, which is as long as self, since a `Hal` shows allocated
        // frames always at the same place.
        unsafe { self.view.as_ref() }
    }
}

/// A slot of a queue of 256-bit descriptors.
pub(crate) type Slot = [AtomicU64; 4];

/// The slots of a queue, whose places count round and round.
pub(crate) struct Slots<H: Hal> {
    slots: Words<H, [Slot]>,
    ring: Ring,
}

impl<H: Hal> Slots<H> {
    /// # Errors
    ///
    /// There are not as many as the ring says.
    pub(crate) fn new(frames: Frames<H>, ring: Ring) -> Result<Self, OutOfMemory> {
        let slots = Words::new(frames, |words| Some(words.as_chunks().0))?;
        if slots.len() == ring.slots() as usize { Ok(Self { slots, ring }) } else { Err(OutOfMemory) }
    }

    #[inline]
    pub(crate) fn ring(&self) -> Ring {
        self.ring
    }

    pub(crate) fn phys(&self) -> PhysAddr {
        self.slots.phys()
    }

    /// The physical address, to be shown to hardware.
    pub(crate) fn publish(&self) -> PhysAddr {
        self.slots.publish()
    }

    /// The slot of a place.
    #[inline]
    pub(crate) fn at(&self, place: Position) -> &Slot {
        let slots = self.slots.view.cast::<Slot>();
        // SAFETY: a ring's slots are numbered from zero, and there are as many here (`new`); they live as long as self.
        unsafe { slots.add(self.ring.slot(place)).as_ref() }
    }
}

impl<H: Hal, M: Mmio + 'static> PagingDomain<H, M> {
    /// Syncs a gather that was claimed.
    #[cold]
    #[inline(never)]
    fn sync_everything(&self, gather: &mut Gather) -> Result<SyncProof, SyncError> {
        let result = self.invalidate(gather);
        // SAFETY: `invalidate` returns `Ok` after all units confirmed the invalidation of the recorded range, with the walk
        // caches if tables were cut off, and then in the device TLBs of the endpoints that may ask for translations.
        unsafe { self.end_sync(gather, result) }
    }

    /// The rest of a sync from the submission on.
    #[cold]
    #[inline(never)]
    fn sync_unsubmitted(
        &self,
        gather: &mut Gather,
        unit: Reading<'_, Inner<H, M>>,
        unsubmitted: Unsubmitted<iter::Once<Descriptor>>,
    ) -> Result<SyncProof, SyncError> {
        let result = unit.submit_on(unsubmitted).and_then(|ticket| unit.wait(ticket));
        drop(unit);
        // SAFETY: the descriptor is all that the gather takes. With `Ok` the hardware has carried it out; that it refused
        // to, or did not answer, is the error.
        unsafe { self.end_sync(gather, result) }
    }

    /// The rest of a sync whose descriptor is submitted.
    #[cold]
    #[inline(never)]
    fn sync_undone(
        &self,
        gather: &mut Gather,
        unit: Reading<'_, Inner<H, M>>,
        first: Position,
        end: Position,
        errors: u32,
    ) -> Result<SyncProof, SyncError> {
        let result = unit.wait(Ticket { first, end, errors, publisher: Publisher::Own });
        drop(unit);
        // SAFETY: as above.
        unsafe { self.end_sync(gather, result) }
    }

    /// Ends the round of a gather that was claimed.
    ///
    /// # Safety
    ///
    /// With `Ok`, no unit and no device TLB holds anything that the gather recorded.
    unsafe fn end_sync(
        &self,
        gather: &mut Gather,
        result: Result<(), SyncError>,
    ) -> Result<SyncProof, SyncError> {
        if let Err(error) = result {
            gather.quarantine();
            return Err(error);
        }
        // SAFETY: the caller vouches for the invalidations. The gather was claimed for this domain before anything was
        // recorded, so its frames come from this domain's page table and its `Hal`.
        Ok(unsafe { gather.finish(self.hal()) })
    }
}

// SAFETY: a device reaches what the domain's page table maps, since its PASID entry holds that table's root or, with
// the domain blocked, is not reachable. `unmap` returns what the table took out, and `sync` makes a proof only after
// every unit that may cache translations of the domain has confirmed their invalidation. The page table changes the sizes
// of its leaves, and nothing of what they map; as long as a gather holds old leaves, `resizes` makes each invalidation
// one of the whole domain.
unsafe impl<H: Hal, M: Mmio + 'static> IoSpace for PagingDomain<H, M> {
    fn aperture(&self) -> IovaRange {
        self.tables().aperture()
    }

    fn page_sizes(&self) -> u64 {
        self.tables().page_sizes()
    }

    unsafe fn map(&self, list: &[Mapping]) -> Result<(), MapError> {
        self.map_list(list)
    }

    unsafe fn unmap(&self, range: IovaRange, gather: &mut Gather) -> Result<u64, UnmapError> {
        self.unmap_range(range, gather)
    }

    fn sync(&self, gather: &mut Gather) -> Result<SyncProof, SyncError> {
        gather.claim(self.key())?;
        // Each of the rare cases is a call of what does all that is left, so that nothing is kept for after it.
        let Some((unit, descriptor)) = self.only_unit(gather) else {
            return self.sync_everything(gather);
        };
        let ticket = match unit.queue.submit_at_once(&unit.registers, iter::once(descriptor)) {
            Ok(ticket) => ticket,
            Err(unsubmitted) => return self.sync_unsubmitted(gather, unit, unsubmitted),
        };
        if !unit.queue.is_done(ticket) {
            // Word by word: as a whole the ticket would be in memory, also where it is done.
            return self.sync_undone(gather, unit, ticket.first, ticket.end, ticket.errors);
        }
        drop(unit);
        // SAFETY: the descriptor, which the hardware has carried out, is all that the gather takes, and there are no tables.
        Ok(unsafe { gather.finish_leaves() })
    }

    fn iova_to_phys(&self, iova: Iova) -> Option<Translated> {
        self.tables().translate(iova)
    }

    fn split_ends(&self, range: IovaRange, gather: &mut Gather) -> Result<Progress, ResizeError> {
        self.resize(gather, |tables, gather| tables.split_ends(range, gather))
    }

    fn split(&self, range: IovaRange, largest: u64, gather: &mut Gather) -> Result<Progress, ResizeError> {
        self.resize(gather, |tables, gather| tables.split(range, largest, gather))
    }

    fn join(&self, range: IovaRange, gather: &mut Gather) -> Result<Progress, ResizeError> {
        self.resize(gather, |tables, gather| tables.join(range, gather))
    }

    fn visit(
        &self,
        range: IovaRange,
        visitor: &mut dyn FnMut(Mapping) -> ControlFlow<()>,
    ) -> Result<(), NoTables> {
        self.tables().visit(range, visitor)
    }

    fn harvest(
        &self,
        range: IovaRange,
        wanted: Usage,
        gather: &mut Gather,
        visitor: &mut dyn FnMut(Mapping, Usage),
    ) -> Result<(), HarvestError> {
        self.harvest_range(range, wanted, gather, visitor)
    }
}
