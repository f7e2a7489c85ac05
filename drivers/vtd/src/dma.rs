//! Memory that the hardware reads and writes, and the contract of [`IoSpace`]: all unsafe code of the driver.

#![expect(unsafe_code, reason = "queue slots, 128-bit table words and the contract of IoSpace")]

use crate::domain::PagingDomain;
use core::mem::ManuallyDrop;
use core::ops::{ControlFlow, Deref};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use portcullis_hal::atomic128::AtomicU128;
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
        if let Err(error) = self.invalidate(gather) {
            gather.quarantine();
            return Err(error);
        }
        // SAFETY: `invalidate` returned after all units confirmed the invalidation of the recorded range, with the
        // walk caches if tables were cut off, and then in the device TLBs of the endpoints that may ask for translations.
        // The gather was claimed for this domain before anything was recorded, so its frames come from this domain's
        // page table and its `Hal`.
        Ok(unsafe { gather.finish(self.hal()) })
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
