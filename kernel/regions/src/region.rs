//! What an address space consists of: ranges of pages with the same permissions.

use crate::{PAGE, PageRange};
use alloc::vec::Vec;
use portcullis_hal::{Access, OutOfMemory, list};
use thiserror::Error;

/// Why regions are as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RegionsError {
    /// A page of the range belongs to a region already.
    #[error("{0:#x} belongs to another region")]
    Overlap(u64),
    /// A page of the range belongs to none.
    #[error("{0:#x} belongs to no region")]
    NotMapped(u64),
    /// No memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// Pages in a row with the same permissions.
#[derive(Debug)]
pub struct Region<P, const END: u64> {
    first: u64,
    /// One place per page; pages that were never touched have no memory.
    pages: Vec<Option<P>>,
    access: Access,
}

impl<P, const END: u64> Region<P, END> {
    /// A region without memory.
    pub fn new(range: PageRange<END>, access: Access) -> Result<Self, OutOfMemory> {
        let mut pages = Vec::new();
        pages.try_reserve_exact(range.count()).map_err(|_| OutOfMemory)?;
        pages.resize_with(range.count(), || None);
        Ok(Self { first: range.first(), pages, access })
    }

    /// What may be done with its pages.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Its pages.
    pub fn range(&self) -> PageRange<END> {
        PageRange::of_pages(self.first, self.pages.len())
    }

    /// The pages with their addresses.
    pub fn pages_mut(&mut self) -> impl Iterator<Item = (u64, &mut Option<P>)> {
        let first = self.first;
        self.pages.iter_mut().enumerate().map(move |(index, page)| (first + index as u64 * PAGE, page))
    }

    /// The place of the page at `address`.
    pub fn page_mut(&mut self, address: u64) -> Option<&mut Option<P>> {
        let index = address.checked_sub(self.first)? / PAGE;
        self.pages.get_mut(usize::try_from(index).ok()?)
    }

    /// How many pages have memory.
    pub fn resident(&self) -> usize {
        self.pages.iter().flatten().count()
    }

    /// Moves the pages from `address` on to a region of their own, for which there is room in `pages`.
    fn split_off(&mut self, address: u64, mut pages: Vec<Option<P>>) -> Self {
        let index = (address - self.first) / PAGE;
        let index = usize::try_from(index).map_or(self.pages.len(), |index| index.min(self.pages.len()));
        pages.extend(self.pages.drain(index..));
        Self { first: address, pages, access: self.access }
    }
}

/// The regions of an address space, in ascending order.
#[derive(Debug)]
pub struct Regions<P, const END: u64>(Vec<Region<P, END>>);

impl<P, const END: u64> Regions<P, END> {
    /// None.
    #[expect(clippy::new_without_default, reason = "nothing asks for it")]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a region.
    ///
    /// # Errors
    ///
    /// [`RegionsError::Overlap`], and no memory.
    pub fn add(&mut self, region: Region<P, END>) -> Result<(), RegionsError> {
        let range = region.range();
        if self.0.iter().any(|other| other.range().overlaps(range)) {
            return Err(RegionsError::Overlap(range.first()));
        }
        self.0.try_reserve(1).map_err(|_| OutOfMemory)?;
        let place = self.0.partition_point(|other| other.first < range.first());
        list::insert_reserved(&mut self.0, place, region).map_err(|_| OutOfMemory)?;
        Ok(())
    }

    /// The region that contains `address`.
    pub fn at(&mut self, address: u64) -> Option<&mut Region<P, END>> {
        self.0.iter_mut().find(|region| region.range().contains(address))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Region<P, END>> {
        self.0.iter()
    }

    /// Regions like these, whose pages are what `share` makes of each that has memory.
    pub fn copied<E: From<OutOfMemory>>(
        &mut self,
        mut share: impl FnMut(u64, &mut P) -> Result<P, E>,
    ) -> Result<Self, E> {
        let mut copies = Vec::new();
        copies.try_reserve_exact(self.0.len()).map_err(|_| OutOfMemory)?;
        for region in &mut self.0 {
            let mut copy = Region::new(region.range(), region.access)?;
            for ((address, place), (_, copied)) in region.pages_mut().zip(copy.pages_mut()) {
                *copied = place.as_mut().map(|page| share(address, page)).transpose()?;
            }
            let _room = list::push_reserved(&mut copies, copy);
        }
        Ok(Self(copies))
    }

    /// Changes what may be done with the pages of `range`, all of which belong to regions.
    ///
    /// # Errors
    ///
    /// [`RegionsError::NotMapped`], and no memory.
    pub fn protect(&mut self, range: PageRange<END>, access: Access) -> Result<(), RegionsError> {
        if !self.cover(range) {
            return Err(RegionsError::NotMapped(range.first()));
        }
        self.cut(range)?;
        let inside = |region: &&mut Region<P, END>| region.range().overlaps(range);
        self.0.iter_mut().filter(inside).for_each(|region| region.access = access);
        Ok(())
    }

    /// Whether all of `range` belongs to regions.
    fn cover(&self, range: PageRange<END>) -> bool {
        let inside = |region: &Region<P, END>| region.range().overlap(range);
        self.0.iter().map(inside).sum::<usize>() == range.count()
    }

    /// Makes `range` consist of whole regions. Regions that reach out of it become two.
    ///
    /// # Errors
    ///
    /// No memory: pages and permissions are as before.
    pub fn cut(&mut self, range: PageRange<END>) -> Result<(), OutOfMemory> {
        self.cut_at(range.first())?;
        self.cut_at(range.end())
    }

    fn cut_at(&mut self, address: u64) -> Result<(), OutOfMemory> {
        let inside = |region: &Region<P, END>| region.first < address && region.range().contains(address);
        let Some(index) = self.0.iter().position(inside) else { return Ok(()) };
        self.0.try_reserve(1).map_err(|_| OutOfMemory)?;
        let Some(region) = self.0.get_mut(index) else { return Ok(()) };
        let mut room = Vec::new();
        room.try_reserve_exact(region.pages.len()).map_err(|_| OutOfMemory)?;
        let upper = region.split_off(address, room);
        list::insert_reserved(&mut self.0, index + 1, upper).map_err(|_| OutOfMemory)
    }

    /// Leaves all memory to whoever may still use it, for ever.
    pub fn forget_all(&mut self) {
        core::mem::forget(core::mem::take(&mut self.0));
    }

    /// Takes a region that lies in `range` out, after a [`cut`](Self::cut).
    pub fn take_within(&mut self, range: PageRange<END>) -> Option<Region<P, END>> {
        let index = self.0.iter().position(|region| region.range().overlaps(range))?;
        list::remove(&mut self.0, index)
    }
}
