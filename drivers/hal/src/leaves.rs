//! The leaves of a domain's tables: their sizes, which may change while devices use them, and what hardware notes in
//! them.

use crate::{Gather, GatherBusy, Iova, OutOfMemory};
use bitflags::bitflags;
use core::sync::atomic::{AtomicUsize, Ordering};
use thiserror::Error;

bitflags! {
    /// What hardware noted in a leaf.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Usage: u8 {
        /// A device reached the memory.
        const ACCESSED = 1;
        /// A device wrote to the memory.
        const DIRTY = 2;
    }
}

/// How far a call that changes the sizes of leaves came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// All is done; the gather says what is to be invalidated.
    Done,
    /// The gather has to be synced first; then the same call goes on.
    SyncAndRepeat,
}

/// The domain has no mappings of its own, or none that it can tell of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the domain has no tables of its own")]
pub struct NoTables;

/// Why leaves are not split or joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ResizeError {
    /// The range is not a multiple of the smallest page.
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
    /// The hardware cannot bear a leaf to change its size while it is mapped.
    #[error("the hardware needs the mapping at {iova} to be absent while its size changes")]
    BreakBeforeMake {
        /// The start of the leaf, or of the range.
        iova: Iova,
    },
    /// There are no leaves of the driver's.
    #[error(transparent)]
    NoTables(#[from] NoTables),
    /// The gather still holds the unmaps of another domain.
    #[error(transparent)]
    Gather(#[from] GatherBusy),
    /// No memory for tables. What was split before stays split.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// Why marks are not collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HarvestError {
    /// The domain was not made for it, so hardware sets no marks.
    #[error("hardware does not mark what it uses in this domain")]
    Untracked,
    /// A walker that does not snoop sets its marks past the CPU's caches, where no atomic access can meet them.
    #[error("marks cannot be collected from a walker that does not snoop")]
    NotSnooped,
    /// There are no leaves of the driver's.
    #[error(transparent)]
    NoTables(#[from] NoTables),
    /// The gather still holds the unmaps of another domain.
    #[error(transparent)]
    Gather(#[from] GatherBusy),
}

/// For back ends: the gathers of a domain in which leaves have changed their size, from the change to the sync.
///
/// Until that sync hardware may hold the old leaf, of another size than the tables show, or the way to a table that is
/// not theirs any more. Somebody else's unmap, with a gather of its own, knows nothing of that: as long as there
/// [may be such gathers](Self::concerns_others), what it invalidates is the whole address space.
#[derive(Debug, Default)]
pub struct Resizes(AtomicUsize);

impl Resizes {
    /// None.
    pub const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// Changes leaves with `gather`, which is counted from before the first change to its sync; for ever, if it never is
    /// synced.
    pub fn during<R>(&self, gather: &mut Gather, change: impl FnOnce(&mut Gather) -> R) -> R {
        if !gather.has_resized() {
            gather.set_resized(true);
            // Who sees a changed leaf sees the count: tables are linked, and links followed, in the same total order.
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        let result = change(gather);
        if gather.range().is_none() && !gather.has_tables() {
            // Nothing has changed.
            self.end(gather);
            gather.set_resized(false);
        }
        result
    }

    /// Whether gathers other than this one may hold changes. Asked after the change of an entry that is to be
    /// invalidated.
    #[inline]
    pub fn concerns_others(&self, gather: &Gather) -> bool {
        self.0.load(Ordering::SeqCst) > usize::from(gather.has_resized())
    }

    /// Whether any gather may hold changes. Asked when [`concerns_others`](Self::concerns_others) is.
    #[inline]
    pub fn are_pending(&self) -> bool {
        self.0.load(Ordering::SeqCst) != 0
    }

    /// Counts `gather` out, after all hardware has confirmed the invalidation of what it holds and before it is
    /// finished.
    #[inline]
    pub fn end(&self, gather: &Gather) {
        if gather.has_resized() {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::IovaRange;

    fn change(gather: &mut Gather) {
        gather.record(IovaRange::block(Iova::new(0), 1 << 21), 21);
    }

    #[test]
    fn a_gather_that_changed_sizes_concerns_the_others_until_it_is_synced() {
        let resizes = Resizes::new();
        let (mut changing, other) = (Gather::new(), Gather::new());
        assert!(!resizes.concerns_others(&other));
        resizes.during(&mut changing, |_| assert!(resizes.concerns_others(&other)));
        assert!(!resizes.concerns_others(&other), "nothing was changed");
        resizes.during(&mut changing, change);
        resizes.during(&mut changing, |_| ());
        assert!(resizes.concerns_others(&other) && !resizes.concerns_others(&changing));
        resizes.end(&other);
        assert!(resizes.concerns_others(&other));
        resizes.end(&changing);
        assert!(!resizes.concerns_others(&other));
    }

    #[test]
    fn a_gather_that_is_given_up_concerns_the_others_for_ever() {
        let resizes = Resizes::new();
        let mut lost = Gather::new();
        resizes.during(&mut lost, change);
        lost.quarantine();
        resizes.end(&lost);
        assert!(resizes.concerns_others(&lost) && resizes.concerns_others(&Gather::new()));
    }
}
