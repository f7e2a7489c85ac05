//! Ranges of whole pages.

use crate::PAGE;
use portcullis_hal::{Iova, IovaRange};
use thiserror::Error;

/// Why there is no such range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{len:#x} bytes at {start:#x} are not pages of user memory")]
pub struct RangeError {
    /// The first address.
    pub start: u64,
    /// The length, in bytes.
    pub len: u64,
}

/// Pages of user memory in a row, below `END`; at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRange<const END: u64> {
    first: u64,
    end: u64,
}

impl<const END: u64> PageRange<END> {
    /// The pages from `start` on.
    pub fn new(start: u64, len: u64) -> Result<Self, RangeError> {
        let end = start.checked_add(len).ok_or(RangeError { start, len })?;
        let aligned = start.is_multiple_of(PAGE) && len.is_multiple_of(PAGE);
        // The first page stays free, so that null pointers fault.
        if !aligned || len == 0 || start == 0 || end > END {
            return Err(RangeError { start, len });
        }
        Ok(Self { first: start, end })
    }

    /// The page that contains `address`.
    pub fn page_of(address: u64) -> Result<Self, RangeError> {
        Self::new(address & !(PAGE - 1), PAGE)
    }

    /// The pages that contain `first..=last`.
    pub fn around(first: u64, last: u64) -> Result<Self, RangeError> {
        let start = first & !(PAGE - 1);
        let len = (last | (PAGE - 1)).wrapping_sub(start).saturating_add(1);
        if last < first { Err(RangeError { start, len: 0 }) } else { Self::new(start, len) }
    }

    /// All pages that there may be.
    pub const fn all() -> Self {
        Self { first: PAGE, end: END }
    }

    /// Pages that are known to be in range; at least one is taken.
    pub fn of_pages(first: u64, count: usize) -> Self {
        Self { first, end: first + (count as u64).max(1) * PAGE }
    }

    /// The first address.
    pub fn first(self) -> u64 {
        self.first
    }

    /// The last address.
    pub fn last(self) -> u64 {
        self.end - 1
    }

    /// The first address behind it.
    pub fn end(self) -> u64 {
        self.end
    }

    /// How many pages.
    pub fn count(self) -> usize {
        ((self.end - self.first) / PAGE) as usize
    }

    /// The addresses of the pages.
    pub fn pages(self) -> impl Iterator<Item = u64> {
        (self.first..self.end).step_by(PAGE as usize)
    }

    /// Whether the address is in one of the pages.
    pub fn contains(self, address: u64) -> bool {
        (self.first..self.end).contains(&address)
    }

    /// Whether both have a page.
    pub fn overlaps(self, other: Self) -> bool {
        self.overlap(other) != 0
    }

    /// How many pages both have.
    pub fn overlap(self, other: Self) -> usize {
        let pages = self.end.min(other.end).saturating_sub(self.first.max(other.first)) / PAGE;
        pages as usize
    }

    /// The same addresses, as a page table calls them.
    pub fn iova(self) -> IovaRange {
        let first = Iova::new(self.first);
        // The end is beyond the start by the constructors.
        IovaRange::from_bounds(first, Iova::new(self.last())).unwrap_or(IovaRange::block(first, PAGE))
    }
}
