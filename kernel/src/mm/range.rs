//! Ranges of whole pages.

use super::{MmError, PAGE};
use portcullis_arch::user;
use portcullis_hal::{Iova, IovaRange};

/// Pages of user memory in a row; at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageRange {
    first: u64,
    end: u64,
}

impl PageRange {
    /// The pages from `start` on.
    pub(crate) fn new(start: u64, len: u64) -> Result<Self, MmError> {
        let end = start.checked_add(len).ok_or(MmError::Range { start, len })?;
        let aligned = start.is_multiple_of(PAGE) && len.is_multiple_of(PAGE);
        // The first page stays free, so that null pointers fault.
        if !aligned || len == 0 || start == 0 || end > user::END {
            return Err(MmError::Range { start, len });
        }
        Ok(Self { first: start, end })
    }

    /// The page that contains `address`.
    pub(super) fn page_of(address: u64) -> Result<Self, MmError> {
        Self::new(address & !(PAGE - 1), PAGE)
    }

    /// The pages that contain `first..=last`.
    pub(super) fn around(first: u64, last: u64) -> Result<Self, MmError> {
        let start = first & !(PAGE - 1);
        let len = (last | (PAGE - 1)).wrapping_sub(start).saturating_add(1);
        if last < first { Err(MmError::Range { start, len: 0 }) } else { Self::new(start, len) }
    }

    /// All pages that there may be.
    pub(super) const fn all() -> Self {
        Self { first: PAGE, end: user::END }
    }

    /// Pages that are known to be in range; at least one is taken.
    pub(super) fn of_pages(first: u64, count: usize) -> Self {
        Self { first, end: first + (count as u64).max(1) * PAGE }
    }

    pub(crate) fn first(self) -> u64 {
        self.first
    }

    /// The last address.
    pub(super) fn last(self) -> u64 {
        self.end - 1
    }

    pub(super) fn end(self) -> u64 {
        self.end
    }

    pub(super) fn count(self) -> usize {
        ((self.end - self.first) / PAGE) as usize
    }

    /// The addresses of the pages.
    pub(super) fn pages(self) -> impl Iterator<Item = u64> {
        (self.first..self.end).step_by(PAGE as usize)
    }

    pub(super) fn contains(self, address: u64) -> bool {
        (self.first..self.end).contains(&address)
    }

    pub(super) fn overlaps(self, other: Self) -> bool {
        self.overlap(other) != 0
    }

    /// How many pages both have.
    pub(super) fn overlap(self, other: Self) -> usize {
        let pages = self.end.min(other.end).saturating_sub(self.first.max(other.first)) / PAGE;
        pages as usize
    }

    /// The same addresses, as the page table calls them.
    pub(super) fn iova(self) -> IovaRange {
        let first = Iova::new(self.first);
        // The end is beyond the start by the constructors.
        IovaRange::from_bounds(first, Iova::new(self.last())).unwrap_or(IovaRange::block(first, PAGE))
    }
}
