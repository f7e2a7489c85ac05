//! One leaf, or all that a table of pages maps, where the tables on the way are there: what most calls ask for, done
//! without the state that larger ones carry along. Everything else, errors too, is left to the general way.
//!
//! What is called here at all is called last, with the arguments where they are, so that the compiler need not save
//! anything on the way.

use crate::format::{Format, low_bits};
use crate::map::{LONG_RUN, fill};
use crate::table::AnyTable;
use crate::tree::{Below, Cut, End, Place};
use crate::walk::{Step, recount};
use core::sync::atomic::Ordering;
use portcullis_hal::{Gather, Hal, IovaRange, MapError, Mapping, OutOfMemory, UnmapError, barrier};

/// The level of the root in the tables to which there is a short way: what most have.
pub(crate) const TOP: u32 = 3;

/// The short way in tables of one format.
#[derive(Debug)]
pub(crate) struct Short<H: Hal> {
    pub(crate) map: fn(&AnyTable<H>, &[Mapping]) -> Result<(), MapError>,
    pub(crate) unmap: fn(&AnyTable<H>, IovaRange, &mut Gather) -> Result<u64, UnmapError>,
}

impl<H: Hal> Short<H> {
    pub(crate) const fn of<F: Format>() -> Self {
        Self { map: AnyTable::map_one::<F>, unmap: AnyTable::unmap_one::<F> }
    }
}

impl<H: Hal> AnyTable<H> {
    /// Maps a list, by the short way if it is one page or one leaf of the next size.
    #[inline(never)]
    pub(crate) fn map_one<F: Format>(&self, list: &[Mapping]) -> Result<(), MapError> {
        if let [mapping] = list {
            let extent = mapping.memory.last().get().wrapping_sub(mapping.memory.start().get());
            let done = if extent == low_bits(F::SCHEME.level_shift(0)) {
                self.map_leaf::<F>(mapping, 0)
            } else if extent == low_bits(F::SCHEME.level_shift(1))
                && self.page_sizes & F::SCHEME.level_size(1) != 0
            {
                self.map_leaf::<F>(mapping, 1)
            } else {
                None
            };
            if done.is_some() {
                return Ok(());
            }
        }
        self.map_pieces(list)
    }

    /// Maps a piece that is as long as a leaf at `level`. `None` if there is more to it, and nothing was done.
    #[inline(always)]
    fn map_leaf<F: Format>(&self, mapping: &Mapping, level: u32) -> Option<()> {
        let attribute_bits = self.seals.get(mapping.attributes)?;
        let (iova, phys) = (mapping.iova.get(), mapping.memory.start());
        let aligned = (iova | phys.get()) & low_bits(F::SCHEME.level_shift(level)) == 0;
        // An aligned leaf is all within memory, a larger power of two, if its start is.
        if !aligned || phys.get() > self.last_phys {
            return None;
        }
        let found = self.tree.find::<F>(iova, level)?;
        let slot = found.place.slot();
        if found.common & self.tree.settled != self.tree.settled || slot.load(Ordering::Relaxed) != 0 {
            return None;
        }
        slot.store(F::SCHEME.leaf(phys, level, attribute_bits), Ordering::Relaxed);
        if level == 0 {
            found.recount::<F>(Step::Up);
        }
        found.place.complete();
        // The caller goes on to tell a device.
        barrier::before_doorbell();
        Some(())
    }

    /// As [`unmap_short`](Self::unmap_short), out of line.
    #[inline(never)]
    pub(crate) fn unmap_one<F: Format>(
        &self,
        range: IovaRange,
        gather: &mut Gather,
    ) -> Result<u64, UnmapError> {
        self.unmap_short::<F>(range, gather)
    }

    /// Unmaps a range, by the short way if it is one page, one leaf of the next size, or all that a table of pages maps.
    #[inline(always)]
    pub(crate) fn unmap_short<F: Format>(
        &self,
        range: IovaRange,
        gather: &mut Gather,
    ) -> Result<u64, UnmapError> {
        let (page, block) = (F::SCHEME.level_shift(0), F::SCHEME.level_shift(1));
        let iova = range.start().get();
        let extent = range.last().get().wrapping_sub(iova);
        // A leaf is an aligned power of two.
        if iova & extent != 0 {
            return self.unmap_all(range, gather);
        }
        let Some(end) = self.tree.find_end::<F>(iova) else {
            return self.unmap_all(range, gather);
        };
        let shift = match end {
            End::Page(found) if extent != low_bits(page) => {
                return self.unmap_table(range, gather, found.up());
            }
            End::Page(found) => {
                let slot = found.place.slot();
                if !F::SCHEME.is_single(slot.load(Ordering::Relaxed)) {
                    drop(found);
                    return self.unmap_all(range, gather);
                }
                slot.store(0, Ordering::Relaxed);
                found.recount::<F>(Step::Down);
                found.place.complete();
                page
            }
            End::Block(place, leaf) if extent == low_bits(block) && F::SCHEME.is_single(leaf) => {
                place.slot().store(0, Ordering::Relaxed);
                place.complete();
                block
            }
            End::Block(place, _) => {
                drop(place);
                return self.unmap_all(range, gather);
            }
        };
        barrier::publish_to_device();
        gather.record(range, shift as u8);
        Ok(extent.wrapping_add(1))
    }

    /// Unmaps a range that is more than one page of the table in a slot at level 1; by cutting that off if it is all of it.
    #[inline(never)]
    fn unmap_table(
        &self,
        range: IovaRange,
        gather: &mut Gather,
        place: Place<'_, H>,
    ) -> Result<u64, UnmapError> {
        let cut = match range.len() == self.scheme().level_size(1) {
            true => place.cut(1, gather),
            false => Cut::Busy,
        };
        let Cut::Done(tally) = cut else {
            drop(place);
            return self.unmap_all(range, gather);
        };
        drop(place);
        barrier::publish_to_device();
        gather.record(range, self.scheme().level_shift(tally.smallest_level()) as u8);
        Ok(tally.bytes)
    }
}

impl<H: Hal> AnyTable<H> {
    /// Maps a piece that is made of pages of one table, which is made if it is missing; `None` if it is not.
    #[inline(always)]
    pub(crate) fn map_pages(&self, mapping: &Mapping) -> Option<Result<(), MapError>> {
        let scheme = self.scheme();
        let attribute_bits = self.seals.get(mapping.attributes)?;
        let (iova, phys) = (mapping.iova.get(), mapping.memory.start().get());
        let extent = mapping.memory.last().get().wrapping_sub(phys);
        let span = scheme.level_size(1);
        let pages = (iova | phys | extent.wrapping_add(1)) & low_bits(scheme.granule_shift) == 0;
        let one_table = extent < span.wrapping_sub(iova & span.wrapping_sub(1));
        // No larger leaf, and no contiguous hint, can have a part in it.
        let small = extent < span.wrapping_sub(1) || phys & span.wrapping_sub(1) != 0;
        let plain = extent < self.shortest_run.wrapping_sub(1) && extent < scheme.reach(phys);
        // What fits one aligned table is all within the aperture if its start is.
        let in_range = iova <= self.last_iova && mapping.memory.last().get() <= self.last_phys;
        if !(pages && one_table && small && plain && in_range) {
            return None;
        }
        let walk = self.tree.walk();
        let link = walk.descend(iova, 1)?;
        let table = match walk.grow(link, 1) {
            Ok(Below::Table(table)) => table,
            Ok(Below::Leaf(_) | Below::Absent) => return None,
            Err(OutOfMemory) => return Some(Err(OutOfMemory.into())),
        };
        let count = extent.wrapping_shr(scheme.granule_shift).wrapping_add(1) as usize;
        let slots = table.entries(iova.wrapping_shr(scheme.granule_shift) as usize, count);
        let entry = link.load(Ordering::Relaxed);
        let empty = count >= LONG_RUN && scheme.leaf_count(entry) == 0;
        if !empty && slots.iter().any(|slot| slot.load(Ordering::Relaxed) != 0) {
            return None;
        }
        fill(slots, scheme.leaf(mapping.memory.start(), 0, attribute_bits), scheme.level_size(0));
        recount(scheme, link, entry, count as i64);
        self.tree.clean(slots);
        drop(walk);
        // The caller goes on to tell a device.
        barrier::before_doorbell();
        Some(Ok(()))
    }
}
