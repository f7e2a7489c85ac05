//! The context descriptors of domains, which streams without PASIDs share: 64 to a page.
//!
//! A page stays when its descriptors are free, for the domains that come next; there are as many as were in use at once.

use crate::features::Features;
use crate::memory::{NoFrames, Slot};
use crate::spec::cd::CD_BYTES;
use alloc::vec::Vec;
use portcullis_hal::{Frames, Hal, OutOfMemory, PAGE_SIZE, list};

/// How many descriptors a page has.
const PER_PAGE: u32 = (PAGE_SIZE / CD_BYTES) as u32;
const _: () = assert!(PER_PAGE == u64::BITS);

/// The place of a descriptor that somebody uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    page: usize,
    index: u32,
}

struct Page<H: Hal> {
    frames: Frames<H>,
    /// One bit per descriptor, set while it is in use.
    taken: u64,
}

/// The descriptors of a unit.
pub(crate) struct Descriptors<H: Hal> {
    pages: Vec<Page<H>>,
}

impl<H: Hal> Descriptors<H> {
    pub(crate) const fn new() -> Self {
        Self { pages: Vec::new() }
    }

    /// Takes a place whose descriptor is invalid, or makes a page of them.
    pub(crate) fn take(&mut self, hal: &H, features: &Features) -> Result<Place, NoFrames> {
        let page = match self.pages.iter().position(|page| page.taken != u64::MAX) {
            Some(page) => page,
            None => {
                let frames = features.zeroed(hal, PAGE_SIZE)?;
                list::push(&mut self.pages, Page { frames, taken: 0 })?;
                self.pages.len().wrapping_sub(1)
            }
        };
        let taken = &mut self.pages.get_mut(page).ok_or(OutOfMemory)?.taken;
        let index = taken.trailing_ones();
        *taken |= 1_u64.wrapping_shl(index);
        Ok(Place { page, index })
    }

    /// The descriptor there.
    pub(crate) fn slot(&self, features: &Features, place: Place) -> Option<Slot<'_, H>> {
        let page = self.pages.get(place.page)?;
        Some(Slot::new(&page.frames, place.index as usize, features.table_writes()))
    }

    /// Gives a place back whose descriptor nobody uses, the unit neither.
    pub(crate) fn give_back(&mut self, features: &Features, place: Place) {
        if let Some(slot) = self.slot(features, place) {
            slot.write(&[0; 8]);
        }
        if let Some(page) = self.pages.get_mut(place.page) {
            page.taken &= !1_u64.wrapping_shl(place.index);
        }
    }
}
