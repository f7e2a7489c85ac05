//! One leaf, or all that a table of pages maps, where the tables on the way are there: what most calls ask for, done
//! without the state that larger ones carry along. Everything else, errors too, is left to the general way.
//!
//! What is called here at all is called last, with the arguments where they are, so that the compiler need not save
//! anything on the way.

use crate::format::{Format, Kind, low_bits};
use crate::map::{LONG_RUN, fill};
use crate::table::AnyTable;
use crate::tree::{Below, Cut, Place, Walk};
use crate::walk::{Step, recount};
use core::sync::atomic::Ordering;
use portcullis_hal::{Gather, Hal, Iova, IovaRange, MapError, Mapping, OutOfMemory, UnmapError, barrier};

/// The number of levels for which the compiler makes code of its own: what most tables have.
pub(crate) const SHORT_LEVELS: u8 = TOP as u8 + 1;
const TOP: u32 = 3;

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

/// How a call goes on.
enum Way<'t, H: Hal> {
    /// Not at all.
    Done,
    /// With the count of leaves, which somebody else is at too.
    Count(Walk<'t, H>),
    /// With a table.
    Table(Place<'t, H>),
    /// As all calls can: there is more to it, and nothing was done yet.
    Long,
}

impl<H: Hal> AnyTable<H> {
    /// Maps a list, by the short way if it is one page or one leaf of the next size.
    #[inline(never)]
    pub(crate) fn map_one<F: Format>(&self, list: &[Mapping]) -> Result<(), MapError> {
        let way = match list {
            [mapping] => {
                let extent = mapping.memory.last().get().wrapping_sub(mapping.memory.start().get());
                if extent == low_bits(F::SCHEME.level_shift(0)) {
                    self.map_leaf::<F>(mapping, 0)
                } else if extent == low_bits(F::SCHEME.level_shift(1))
                    && self.page_sizes & F::SCHEME.level_size(1) != 0
                {
                    self.map_leaf::<F>(mapping, 1)
                } else {
                    Way::Long
                }
            }
            _ => Way::Long,
        };
        match way {
            Way::Done => Ok(()),
            Way::Count(walk) => self.mapped_slowly::<F>(list, walk),
            Way::Table(_) | Way::Long => self.map_pieces(list),
        }
    }

    /// Maps a piece that is as long as a leaf at `level`.
    #[inline(always)]
    fn map_leaf<F: Format>(&self, mapping: &Mapping, level: u32) -> Way<'_, H> {
        let Some(attribute_bits) = self.seals.get(mapping.attributes) else {
            return Way::Long;
        };
        let (iova, phys) = (mapping.iova.get(), mapping.memory.start());
        let aligned = (iova | phys.get()) & low_bits(F::SCHEME.level_shift(level)) == 0;
        // An aligned leaf is all within the aperture, a larger power of two, if its start is; memory likewise.
        if !aligned || iova >= self.short_end || phys.get() > self.last_phys {
            return Way::Long;
        }
        let Some(found) = self.tree.walk().find::<F>(iova, level, TOP) else {
            return Way::Long;
        };
        let slot = found.place.slot();
        if found.common & self.tree.settled != self.tree.settled || slot.load(Ordering::Relaxed) != 0 {
            return Way::Long;
        }
        slot.store(F::SCHEME.leaf(phys, level, attribute_bits), Ordering::Relaxed);
        if level == 0 && found.recount::<F>(Step::Up).is_err() {
            return Way::Count(found.place.walk);
        }
        found.place.complete();
        // The caller goes on to tell a device.
        barrier::before_doorbell();
        Way::Done
    }

    /// Completes the mapping of a page that is yet to be counted. See [`unmapped_slowly`](Self::unmapped_slowly).
    #[cold]
    #[inline(never)]
    fn mapped_slowly<F: Format>(&self, list: &[Mapping], walk: Walk<'_, H>) -> Result<(), MapError> {
        if let [mapping] = list
            && let Some(found) = walk.find::<F>(mapping.iova.get(), 0, TOP)
        {
            found.recount_surely(Step::Up);
            found.place.complete();
            barrier::before_doorbell();
        }
        Ok(())
    }

    /// Unmaps a range, by the short way if it is one page, one leaf of the next size, or all that a table of pages maps.
    #[inline(never)]
    pub(crate) fn unmap_one<F: Format>(
        &self,
        range: IovaRange,
        gather: &mut Gather,
    ) -> Result<u64, UnmapError> {
        let extent = range.last().get().wrapping_sub(range.start().get());
        let way = if extent == low_bits(F::SCHEME.level_shift(0)) {
            self.unmap_leaf::<F>(range, gather, 0)
        } else if extent == low_bits(F::SCHEME.level_shift(1)) {
            self.unmap_leaf::<F>(range, gather, 1)
        } else {
            Way::Long
        };
        match way {
            Way::Done => Ok(extent.wrapping_add(1)),
            Way::Count(walk) => self.unmapped_slowly::<F>(range, gather, walk),
            Way::Table(place) => self.unmap_table(range.start(), gather, place),
            Way::Long => self.unmap_all(range, gather),
        }
    }

    /// Unmaps a range that is as long as a leaf at `level`, if it is a leaf.
    #[inline(always)]
    fn unmap_leaf<F: Format>(&self, range: IovaRange, gather: &mut Gather, level: u32) -> Way<'_, H> {
        let (iova, shift) = (range.start().get(), F::SCHEME.level_shift(level));
        if iova & low_bits(shift) != 0 || iova >= self.short_end {
            return Way::Long;
        }
        let Some(found) = self.tree.walk().find::<F>(iova, level, TOP) else {
            return Way::Long;
        };
        let slot = found.place.slot();
        let leaf = slot.load(Ordering::Relaxed);
        if level != 0 && F::SCHEME.is_table(leaf) {
            return Way::Table(found.place);
        }
        if F::SCHEME.kind(leaf, level) != Kind::Leaf || leaf & F::SCHEME.contiguous != 0 {
            return Way::Long;
        }
        slot.store(0, Ordering::Relaxed);
        if level == 0 && found.recount::<F>(Step::Down).is_err() {
            return Way::Count(found.place.walk);
        }
        found.place.complete();
        barrier::publish_to_device();
        gather.record(range, shift as u8);
        Way::Done
    }

    /// Completes taking out a page that is yet to be counted. It is looked for once more: to hand it over would be on the
    /// way of all calls.
    #[cold]
    #[inline(never)]
    fn unmapped_slowly<F: Format>(
        &self,
        range: IovaRange,
        gather: &mut Gather,
        walk: Walk<'_, H>,
    ) -> Result<u64, UnmapError> {
        if let Some(found) = walk.find::<F>(range.start().get(), 0, TOP) {
            found.recount_surely(Step::Down);
            found.place.complete();
            barrier::publish_to_device();
        }
        gather.record(range, F::SCHEME.level_shift(0) as u8);
        Ok(range.len())
    }

    /// Unmaps all of the table in a slot at level 1, which maps from `iova` on, by cutting it off.
    #[inline(never)]
    fn unmap_table(&self, iova: Iova, gather: &mut Gather, place: Place<'_, H>) -> Result<u64, UnmapError> {
        let range = IovaRange::block(iova, self.scheme().level_size(1));
        let Cut::Done(tally) = place.cut(1, gather) else {
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
