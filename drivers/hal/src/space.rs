//! I/O address spaces: what is mapped, and when the memory behind it is free again.

#![expect(unsafe_code, reason = "mapping memory for a device is a contract of this crate")]

use crate::wait::Timeout;
use crate::{
    Gather, GatherBusy, HarvestError, Iova, IovaRange, Mapping, NoTables, OutOfMemory, Progress, QueuedMaps,
    ResizeError, SendMapsError, SyncProof, Translated, Usage,
};
use core::any::Any;
use core::ops::ControlFlow;
use thiserror::Error;

/// Why nothing was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MapError {
    /// An address or a length is not a multiple of the domain's smallest page.
    #[error("{iova} is not aligned to the page size")]
    Misaligned {
        /// The start of the offending piece.
        iova: Iova,
    },
    /// The piece reaches beyond the addresses that the domain translates, or the memory beyond what it can name.
    #[error("{iova} is outside the domain's address range")]
    OutOfRange {
        /// The start of the offending piece.
        iova: Iova,
    },
    /// Something is mapped there already.
    #[error("{iova} is mapped already")]
    Overlap {
        /// An address that both mappings cover.
        iova: Iova,
    },
    /// The format cannot express the attributes.
    #[error("the domain cannot express these attributes")]
    Attributes,
    /// The domain has no mappings of its own (identity, blocked, shared).
    #[error("the domain's mappings are not the driver's to change")]
    NotPaging,
    /// No memory for tables.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The mapping is made, but hardware that caches absent entries did not confirm it.
    #[error(transparent)]
    Sync(#[from] SyncError),
}

/// Why nothing was unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UnmapError {
    /// The range is not a multiple of the domain's smallest page.
    #[error("{iova} is not aligned to the page size")]
    Misaligned {
        /// The start of the range.
        iova: Iova,
    },
    /// The range reaches beyond the addresses that the domain translates.
    #[error("{iova} is outside the domain's address range")]
    OutOfRange {
        /// The start of the range.
        iova: Iova,
    },
    /// The range covers a part of a larger mapping entry.
    #[error("{iova} lies inside a mapping of {size:#x} bytes that is only partly in the range")]
    Partial {
        /// The address of the larger entry.
        iova: Iova,
        /// Its size in bytes.
        size: u64,
    },
    /// The domain has no mappings of its own.
    #[error("the domain's mappings are not the driver's to change")]
    NotPaging,
    /// The gather still holds the unmaps of another domain.
    #[error(transparent)]
    Gather(#[from] GatherBusy),
}

/// The hardware did not confirm an invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SyncError {
    /// It did not answer in time.
    #[error(transparent)]
    Timeout(#[from] Timeout),
    /// The unit reported an error, or had failed before.
    #[error("the unit is out of order")]
    Faulted,
    /// The gather holds the unmaps of another domain.
    #[error(transparent)]
    Gather(#[from] GatherBusy),
}

/// An I/O address space into which memory is mapped for devices.
///
/// # Implementation safety
///
/// - A device attached to the space reaches nothing but what is mapped in it.
/// - When [`map`](Self::map) fails with another error than [`MapError::Sync`], no device could ever reach what it was
///   asked to map.
/// - What is mapped leads to the same memory, with the same access, whatever the size of the leaves that
///   [`split`](Self::split), [`split_ends`](Self::split_ends) and [`join`](Self::join) make of it.
/// - [`unmap`](Self::unmap) returns the bytes it really took out, and after [`sync`](Self::sync) of the same
///   gather returned a proof, no device reaches them through this space, whatever it had cached.
pub unsafe trait IoSpace: Any + Send + Sync {
    /// The addresses that can be mapped.
    fn aperture(&self) -> IovaRange;

    /// The page sizes, as a bit mask in bytes.
    fn page_sizes(&self) -> u64;

    /// Maps all pieces of `list`, or none of them.
    ///
    /// # Errors
    ///
    /// All of [`MapError`]. With [`MapError::Sync`] all of it counts as mapped, otherwise nothing is.
    ///
    /// # Safety
    ///
    /// Until a range is unmapped and the unmap synced, devices may read and write the memory behind it at any
    /// time; the caller makes sure that this memory is nothing else meanwhile than DMA memory.
    unsafe fn map(&self, list: &[Mapping]) -> Result<(), MapError>;

    /// Maps as [`map`](Self::map) does, but devices may see it only after [`send_maps`](Self::send_maps) of `queue`. Where
    /// the unit has to be told of each mapping, it is not waited for. If the queue holds maps of another domain, these are
    /// made at once and not queued.
    ///
    /// # Errors
    ///
    /// As for `map`, but the unit's own refusal is reported by `send_maps`.
    ///
    /// # Safety
    ///
    /// As for `map`.
    unsafe fn map_queued(&self, list: &[Mapping], queue: &mut QueuedMaps) -> Result<(), MapError> {
        let _ = queue;
        // SAFETY: the contract is the same.
        unsafe { self.map(list) }
    }

    /// Returns when devices see everything that was mapped with `queue`; the queue is empty afterwards.
    ///
    /// # Errors
    ///
    /// Some of it may not be mapped; what was queued is there to be unmapped, all of it. If the queue belongs to
    /// another domain it is left alone.
    fn send_maps(&self, queue: &mut QueuedMaps) -> Result<(), SendMapsError> {
        if queue.is_empty() { Ok(()) } else { Err(GatherBusy.into()) }
    }

    /// Takes out everything mapped in `range` and returns how many bytes that was. Devices may use the old
    /// translations until `gather` is synced.
    ///
    /// # Errors
    ///
    /// All of [`UnmapError`]; nothing is done then. [`UnmapError::Partial`] if a leaf reaches out of the range, which can be
    /// [split](Self::split_ends) first.
    ///
    /// # Safety
    ///
    /// Every mapping in the range is the caller's to remove: nobody else counts on removing it, and being told when
    /// the memory behind it is free.
    unsafe fn unmap(&self, range: IovaRange, gather: &mut Gather) -> Result<u64, UnmapError>;

    /// Returns when no device can use the translations that `gather` collected; the gather is empty afterwards.
    ///
    /// # Errors
    ///
    /// Devices may use them still; what was unmapped stays quarantined, and nothing is to be reused. A gather that holds
    /// another domain's unmaps is left alone.
    fn sync(&self, gather: &mut Gather) -> Result<SyncProof, SyncError>;

    /// Where `iova` leads now, by the tables in memory.
    fn iova_to_phys(&self, iova: Iova) -> Option<Translated>;

    /// Splits the leaves that reach out of `range` until none does, so that the range can be unmapped for itself. At no
    /// time is what they map missing.
    ///
    /// Hardware may use the old leaves until `gather` is synced. Where it says
    /// [so](Progress::SyncAndRepeat), the call is half way, and is repeated after the sync; two such calls that concern
    /// the same leaf do not overlap in time, from the first to the last.
    ///
    /// # Errors
    ///
    /// All of [`ResizeError`]. [`BreakBeforeMake`](ResizeError::BreakBeforeMake) unless the domain was made to be
    /// resizable, where units differ in that.
    fn split_ends(&self, range: IovaRange, gather: &mut Gather) -> Result<Progress, ResizeError> {
        let _ = (range, gather);
        Err(NoTables.into())
    }

    /// Splits leaves until none in `range` is larger than `largest` bytes or, if that is more, the smallest page. All
    /// else is as in [`split_ends`](Self::split_ends).
    ///
    /// # Errors
    ///
    /// As for [`split_ends`](Self::split_ends).
    fn split(&self, range: IovaRange, largest: u64, gather: &mut Gather) -> Result<Progress, ResizeError> {
        let _ = (range, largest, gather);
        Err(NoTables.into())
    }

    /// Joins leaves in `range` whose addresses and memory follow each other, with the same attributes, to the largest
    /// of [`page_sizes`](Self::page_sizes) that fit. What was mapped by separate calls is then unmapped together, or
    /// after a split. All else is as in [`split_ends`](Self::split_ends).
    ///
    /// # Errors
    ///
    /// As for [`split_ends`](Self::split_ends), but for lack of memory.
    fn join(&self, range: IovaRange, gather: &mut Gather) -> Result<Progress, ResizeError> {
        let _ = (range, gather);
        Err(NoTables.into())
    }

    /// Calls `visitor` for all that is mapped in `range`, leaf by leaf in ascending order, until it breaks off. Leaves
    /// that reach out of the range are shown as a whole. By the tables in memory; while it lasts, unmaps elsewhere take
    /// longer.
    ///
    /// # Errors
    ///
    /// The domain has no tables of its own.
    fn visit(
        &self,
        range: IovaRange,
        visitor: &mut dyn FnMut(Mapping) -> ControlFlow<()>,
    ) -> Result<(), NoTables> {
        let _ = (range, visitor);
        Err(NoTables)
    }

    /// Clears the marks `wanted` in the leaves of `range`, and calls `visitor` for each leaf that had any of them, with
    /// those.
    ///
    /// A mark that hardware sets at the same time is reported now or by the next call. A write that follows the sync of
    /// `gather` counts for the next call; so memory that was found dirty is copied after the sync.
    ///
    /// # Errors
    ///
    /// All of [`HarvestError`]; nothing has changed then.
    fn harvest(
        &self,
        range: IovaRange,
        wanted: Usage,
        gather: &mut Gather,
        visitor: &mut dyn FnMut(Mapping, Usage),
    ) -> Result<(), HarvestError> {
        let _ = (range, wanted, gather, visitor);
        Err(NoTables.into())
    }
}
