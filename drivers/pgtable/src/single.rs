//! One leaf, or pages in one table, where the tables on the way are there: what most calls ask for, done without the
//! state that larger ones carry along. Everything else, errors too, is left to the general way.

use crate::format::{Format, Kind, level_shift, level_size, low_bits};
use crate::map::{LONG_RUN, fill, reach};
use crate::table::PageTable;
use crate::tree::{Below, Cut};
use crate::walk::{Step, recount, recount_one};
use core::sync::atomic::Ordering;
use portcullis_hal::{Gather, Hal, IovaRange, MapError, Mapping, OutOfMemory, barrier};

/// Nothing was done: there is more to it than one leaf.
pub(crate) struct NotSingle;

/// The level of the root of tables with four levels, which most have: the compiler makes code of its own for these.
const TOP_OF_FOUR: u32 = 3;

impl<H: Hal, F: Format> PageTable<H, F> {
    /// Maps a piece that is one leaf.
    #[inline]
    pub(crate) fn map_single(&self, mapping: &Mapping) -> Result<(), NotSingle> {
        let extent = mapping.memory.last().get().wrapping_sub(mapping.memory.start().get());
        match (self.level_of(extent)?, self.tree.top()) {
            (0, TOP_OF_FOUR) => self.map_leaf(mapping, 0, TOP_OF_FOUR),
            (1, TOP_OF_FOUR) => self.map_leaf(mapping, 1, TOP_OF_FOUR),
            (level, top) => self.map_leaf(mapping, level, top),
        }
    }

    /// Maps a piece that is made of pages of one table, which is made if it is missing.
    #[inline(always)]
    pub(crate) fn map_pages(&self, mapping: &Mapping) -> Result<Result<(), MapError>, NotSingle> {
        match self.tree.top() {
            TOP_OF_FOUR => self.map_pages_below(mapping, TOP_OF_FOUR),
            // The table is not one that the root references.
            top if top > 1 => self.map_pages_below(mapping, top),
            _ => Err(NotSingle),
        }
    }

    #[inline(always)]
    fn map_pages_below(&self, mapping: &Mapping, top: u32) -> Result<Result<(), MapError>, NotSingle> {
        let attribute_bits = self.seals.get(mapping.attributes).ok_or(NotSingle)?;
        let (iova, phys) = (mapping.iova.get(), mapping.memory.start().get());
        let extent = mapping.memory.last().get().wrapping_sub(phys);
        let span = level_size::<F>(1);
        let pages = (iova | phys | extent.wrapping_add(1)) & low_bits(F::GRANULE_SHIFT) == 0;
        let one_table = extent < span.wrapping_sub(iova & span.wrapping_sub(1));
        // No larger leaf, and no contiguous hint, can have a part in it.
        let small = extent < span.wrapping_sub(1) || phys & span.wrapping_sub(1) != 0;
        let plain = extent < self.shortest_run.wrapping_sub(1) && extent < reach::<F>(phys);
        // What fits one aligned table is all within the aperture if its start is.
        let in_range = iova <= self.last_iova && mapping.memory.last().get() <= self.last_phys;
        if !(pages && one_table && small && plain && in_range) {
            return Err(NotSingle);
        }
        let walk = self.tree.walk();
        let link = walk.find(iova, 1, top, self.tree.settled).ok_or(NotSingle)?.slot;
        let table = match walk.grow(link, 1) {
            Ok(Below::Table(table)) => table,
            Ok(Below::Leaf(_) | Below::Absent) => return Err(NotSingle),
            Err(OutOfMemory) => return Ok(Err(OutOfMemory.into())),
        };
        let count = extent.wrapping_shr(F::GRANULE_SHIFT).wrapping_add(1) as usize;
        let slots = table.entries(iova.wrapping_shr(F::GRANULE_SHIFT) as usize, count);
        let entry = link.load(Ordering::Relaxed);
        let empty = count >= LONG_RUN && F::leaf_count(entry) == 0;
        if !empty && slots.iter().any(|slot| slot.load(Ordering::Relaxed) != 0) {
            return Err(NotSingle);
        }
        fill::<F>(slots, self.tree.format.leaf(mapping.memory.start(), 0, attribute_bits));
        recount::<F>(link, entry, count as i64);
        self.tree.clean(slots);
        drop(walk);
        // The caller goes on to tell a device.
        barrier::before_doorbell();
        Ok(Ok(()))
    }

    /// Unmaps a range that is one leaf, or all that a table maps, and returns how many bytes were mapped.
    #[inline]
    pub(crate) fn unmap_single(&self, range: IovaRange, gather: &mut Gather) -> Result<u64, NotSingle> {
        let extent = range.last().get().wrapping_sub(range.start().get());
        if extent == low_bits(F::GRANULE_SHIFT) && self.tree.top() == TOP_OF_FOUR {
            return self.unmap_leaf(range, gather, 0, TOP_OF_FOUR);
        }
        self.unmap_leaf_above(range, gather, extent)
    }

    #[inline(never)]
    fn unmap_leaf_above(&self, range: IovaRange, gather: &mut Gather, extent: u64) -> Result<u64, NotSingle> {
        let level = self.level_of(extent)?;
        self.unmap_leaf(range, gather, level, self.tree.top())
    }

    /// The level, below the root's, whose leaves are `extent` and one bytes long, if such are allowed.
    #[inline(always)]
    fn level_of(&self, extent: u64) -> Result<u32, NotSingle> {
        let is_at = |level| low_bits(level_shift::<F>(level)) == extent;
        if is_at(0) {
            return Ok(0);
        }
        let allowed = self.page_sizes & extent.wrapping_add(1) != 0;
        let levels = 1..u32::from(F::LEAF_LEVELS).min(self.tree.top());
        levels.into_iter().find(|&level| is_at(level)).filter(|_| allowed).ok_or(NotSingle)
    }

    /// Maps a piece that is as long as a leaf at `level`, in tables whose root is at level `top`.
    #[inline(always)]
    fn map_leaf(&self, mapping: &Mapping, level: u32, top: u32) -> Result<(), NotSingle> {
        let attribute_bits = self.seals.get(mapping.attributes).ok_or(NotSingle)?;
        let (iova, phys) = (mapping.iova.get(), mapping.memory.start());
        let aligned = (iova | phys.get()) & low_bits(level_shift::<F>(level)) == 0;
        // An aligned leaf is all within the aperture, a larger power of two, if its start is.
        if !aligned || iova > self.last_iova || mapping.memory.last().get() > self.last_phys {
            return Err(NotSingle);
        }
        let walk = self.tree.walk();
        let place = walk.find(iova, level, top, self.tree.settled).ok_or(NotSingle)?;
        if place.slot.load(Ordering::Relaxed) != 0 {
            return Err(NotSingle);
        }
        place.slot.store(self.tree.format.leaf(phys, level, attribute_bits), Ordering::Relaxed);
        if level == 0 {
            recount_one::<F>(place.link, place.entry, Step::Up);
        }
        self.tree.clean(core::slice::from_ref(place.slot));
        drop(walk);
        // The caller goes on to tell a device.
        barrier::before_doorbell();
        Ok(())
    }

    /// Unmaps a range that is as long as a leaf at `level`, in tables whose root is at level `top`.
    #[inline(always)]
    fn unmap_leaf(
        &self,
        range: IovaRange,
        gather: &mut Gather,
        level: u32,
        top: u32,
    ) -> Result<u64, NotSingle> {
        let (iova, shift) = (range.start().get(), level_shift::<F>(level));
        if iova & low_bits(shift) != 0 || iova > self.last_iova {
            return Err(NotSingle);
        }
        let walk = self.tree.walk();
        let place = walk.find(iova, level, top, 0).ok_or(NotSingle)?;
        let leaf = place.slot.load(Ordering::Relaxed);
        if level != 0 && F::kind(leaf, level) == Kind::Table {
            let Cut::Done(tally) = walk.cut(place.slot, level, gather) else {
                return Err(NotSingle);
            };
            drop(walk);
            barrier::publish_to_device();
            gather.record(range, level_shift::<F>(tally.smallest_level()) as u8);
            return Ok(tally.bytes);
        }
        if F::kind(leaf, level) != Kind::Leaf || leaf & F::CONTIGUOUS != 0 {
            return Err(NotSingle);
        }
        place.slot.store(0, Ordering::Relaxed);
        if level == 0 {
            recount_one::<F>(place.link, place.entry, Step::Down);
        }
        gather.record(range, shift as u8);
        self.tree.clean(core::slice::from_ref(place.slot));
        drop(walk);
        barrier::publish_to_device();
        Ok(low_bits(shift).wrapping_add(1))
    }
}
