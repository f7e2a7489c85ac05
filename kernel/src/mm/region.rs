//! What an address space consists of: ranges of pages with the same permissions.

use super::page::UserFrame;
use super::{MmError, PAGE, PageRange};
use alloc::vec::Vec;
use portcullis_hal::{Access, OutOfMemory, list};

/// A page that has memory.
pub(super) struct Page {
    pub(super) frame: UserFrame,
    /// How many times it is pinned: its memory and its entry stay, for devices that cannot fault.
    pub(super) pins: u32,
}

/// Pages in a row with the same permissions.
pub(super) struct Region {
    first: u64,
    /// One place per page; pages that were never touched have no memory.
    pages: Vec<Option<Page>>,
    pub(super) access: Access,
}

impl Region {
    /// A region without memory.
    pub(super) fn new(range: PageRange, access: Access) -> Result<Self, OutOfMemory> {
        let mut pages = Vec::new();
        pages.try_reserve_exact(range.count()).map_err(|_| OutOfMemory)?;
        pages.resize_with(range.count(), || None);
        Ok(Self { first: range.first(), pages, access })
    }

    pub(super) fn range(&self) -> PageRange {
        PageRange::of_pages(self.first, self.pages.len())
    }

    /// The pages with their addresses.
    pub(super) fn pages_mut(&mut self) -> impl Iterator<Item = (u64, &mut Option<Page>)> {
        let first = self.first;
        self.pages.iter_mut().enumerate().map(move |(index, page)| (first + index as u64 * PAGE, page))
    }

    /// The place of the page at `address`.
    pub(super) fn page_mut(&mut self, address: u64) -> Option<&mut Option<Page>> {
        let index = address.checked_sub(self.first)? / PAGE;
        self.pages.get_mut(usize::try_from(index).ok()?)
    }

    /// How many pages have memory.
    pub(super) fn resident(&self) -> usize {
        self.pages.iter().flatten().count()
    }

    /// Moves the pages from `address` on to a region of their own, for which there is room in `pages`.
    fn split_off(&mut self, address: u64, mut pages: Vec<Option<Page>>) -> Self {
        let index = (address - self.first) / PAGE;
        let index = usize::try_from(index).map_or(self.pages.len(), |index| index.min(self.pages.len()));
        pages.extend(self.pages.drain(index..));
        Self { first: address, pages, access: self.access }
    }
}

/// The regions of an address space, in ascending order.
pub(super) struct Regions(Vec<Region>);

impl Regions {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a region.
    pub(super) fn add(&mut self, region: Region) -> Result<(), MmError> {
        let range = region.range();
        if self.0.iter().any(|other| other.range().overlaps(range)) {
            return Err(MmError::Overlap(range.first()));
        }
        self.0.try_reserve(1).map_err(|_| OutOfMemory)?;
        let place = self.0.partition_point(|other| other.first < range.first());
        list::insert_reserved(&mut self.0, place, region).map_err(|_| OutOfMemory)?;
        Ok(())
    }

    /// The region that contains `address`.
    pub(super) fn at(&mut self, address: u64) -> Option<&mut Region> {
        self.0.iter_mut().find(|region| region.range().contains(address))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Region> {
        self.0.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Region> {
        self.0.iter_mut()
    }

    /// Whether all of `range` belongs to regions.
    pub(super) fn cover(&self, range: PageRange) -> bool {
        let inside = |region: &Region| region.range().overlap(range);
        self.0.iter().map(inside).sum::<usize>() == range.count()
    }

    /// Makes `range` consist of whole regions. Regions that reach out of it become two.
    pub(super) fn cut(&mut self, range: PageRange) -> Result<(), OutOfMemory> {
        self.cut_at(range.first())?;
        self.cut_at(range.end())
    }

    fn cut_at(&mut self, address: u64) -> Result<(), OutOfMemory> {
        let inside = |region: &Region| region.first < address && region.range().contains(address);
        let Some(index) = self.0.iter().position(inside) else { return Ok(()) };
        self.0.try_reserve(1).map_err(|_| OutOfMemory)?;
        let Some(region) = self.0.get_mut(index) else { return Ok(()) };
        let mut room = Vec::new();
        room.try_reserve_exact(region.pages.len()).map_err(|_| OutOfMemory)?;
        let upper = region.split_off(address, room);
        list::insert_reserved(&mut self.0, index + 1, upper).map_err(|_| OutOfMemory)
    }

    /// The regions that lie in `range`, after a [`cut`](Self::cut).
    pub(super) fn within(&mut self, range: PageRange) -> impl Iterator<Item = &mut Region> {
        self.0.iter_mut().filter(move |region| region.range().overlaps(range))
    }

    /// Leaves all memory to whoever may still use it, for ever.
    pub(super) fn forget_all(&mut self) {
        core::mem::forget(core::mem::take(&mut self.0));
    }

    /// Takes a region that lies in `range` out.
    pub(super) fn take_within(&mut self, range: PageRange) -> Option<Region> {
        let index = self.0.iter().position(|region| region.range().overlaps(range))?;
        list::remove(&mut self.0, index)
    }
}
