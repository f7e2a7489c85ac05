//! Splitting leaves, and joining them back, without a moment in which a translation is missing.
//!
//! What is there before and after translates the same, and each change of an entry is one store, so a walker finds one
//! or the other. What remains is what it has cached: [`Replacement`] says how much of a mixture the hardware bears.

use crate::format::{AccessedDirty, Kind, Replacement, Scheme, low_bits};
use crate::table::AnyTable;
use crate::tree::{Below, Replaced};
use crate::walk::{Cursor, Stop};
use core::sync::atomic::{AtomicU64, Ordering};
use portcullis_hal::{Gather, Hal, Iova, IovaRange, PhysAddr, Progress, ResizeError, barrier};

impl<H: Hal> AnyTable<H> {
    /// Splits leaves until none in `range` is larger than `largest` bytes, which is at least the smallest page. What
    /// they map, and how, stays the same, and at no time is it missing.
    ///
    /// The old leaves are recorded in `gather`. The caller has claimed the gather for this table, and invalidates.
    /// Where hardware marks leaves as used, those of a run under the contiguous hint become dirty as a whole.
    ///
    /// # Errors
    ///
    /// All of [`ResizeError`]; leaves that were split before an error stay so, and are in the gather.
    ///
    /// # Concurrency
    ///
    /// As [everywhere](crate::PageTable#concurrency); but where the hardware needs two steps
    /// ([`Replacement::Staged`]), calls that concern the same leaf must not overlap in time, from the first step
    /// to the last.
    pub fn split(
        &self,
        range: IovaRange,
        largest: u64,
        gather: &mut Gather,
    ) -> Result<Progress, ResizeError> {
        self.change_leaves(range, |cursor, (first, last)| {
            let mut progress = Progress::Done;
            let mut iova = first;
            while iova <= last {
                let leaf = self.leaf_at(cursor, iova);
                let mut len = leaf.map_or(self.scheme().level_size(cursor.level()), |leaf| {
                    self.scheme().extent(leaf, cursor.level())
                });
                if let Some(leaf) = leaf
                    && len > largest.max(self.scheme().level_size(0))
                {
                    match self.divide(cursor, iova, leaf, gather)? {
                        // What is there now may still be too large.
                        Progress::Done => len = 0,
                        Progress::SyncAndRepeat => progress = Progress::SyncAndRepeat,
                    }
                }
                if len != 0 {
                    iova = (iova | len.wrapping_sub(1)).wrapping_add(1);
                }
            }
            Ok(progress)
        })
    }

    /// Splits the leaves that reach out of `range` until none does, so that an unmap of the range is not refused for
    /// being [partial](portcullis_hal::UnmapError::Partial). All else is as in [`split`](Self::split).
    ///
    /// # Errors
    ///
    /// All of [`ResizeError`].
    pub fn split_ends(&self, range: IovaRange, gather: &mut Gather) -> Result<Progress, ResizeError> {
        self.change_leaves(range, |cursor, (first, last)| {
            let mut progress = Progress::Done;
            for end in [first, last.wrapping_add(1)] {
                while end <= self.last_iova
                    && let Some(leaf) = self.leaf_at(cursor, end)
                    && end & self.scheme().extent(leaf, cursor.level()).wrapping_sub(1) != 0
                {
                    if self.divide(cursor, end, leaf, gather)? == Progress::SyncAndRepeat {
                        progress = Progress::SyncAndRepeat;
                        break;
                    }
                }
            }
            Ok(progress)
        })
    }

    /// Joins leaves in `range` that follow each other, with the same attributes and in memory that does so too, to the
    /// largest leaves that [`page_sizes`](Self::page_sizes) permit, and to runs under the contiguous hint. At no time
    /// is what they map missing. What another call in progress keeps from being joined stays as it is.
    ///
    /// The old leaves are recorded in `gather`, and their tables go to [`Gather::tables`] as they are. The caller has
    /// claimed the gather for this table, and invalidates. Where hardware marks leaves as used, joined ones begin as
    /// dirty.
    ///
    /// # Errors
    ///
    /// All of [`ResizeError`] but a lack of memory.
    pub fn join(&self, range: IovaRange, gather: &mut Gather) -> Result<Progress, ResizeError> {
        if self.tree.replacement == Replacement::Break {
            return Err(ResizeError::BreakBeforeMake { iova: range.start() });
        }
        let levels = self.scheme().leaf_levels.min(self.tree.top().wrapping_add(1));
        self.change_leaves(range, |cursor, bounds| {
            let mut progress = Progress::Done;
            for level in 1..levels {
                let size = self.scheme().level_size(level);
                if self.page_sizes & size != 0 {
                    for_each_block(cursor, bounds, size, level, &mut |cursor, iova| {
                        if self.join_table(cursor, iova, gather) == Progress::SyncAndRepeat {
                            progress = Progress::SyncAndRepeat;
                        }
                    });
                }
            }
            for level in 0..levels {
                let run = self.scheme().run_size(level);
                if self.scheme().run_shift(level) != 0 && self.page_sizes & run != 0 {
                    for_each_block(cursor, bounds, run, level, &mut |cursor, iova| {
                        self.join_run(cursor, iova, gather);
                    });
                }
            }
            Ok(progress)
        })
    }

    /// Checks a range and goes to work on it; what was stored is published in any case.
    fn change_leaves<R>(
        &self,
        range: IovaRange,
        work: impl FnOnce(&mut Cursor<'_, '_, H>, (u64, u64)) -> Result<R, ResizeError>,
    ) -> Result<R, ResizeError> {
        let bounds = self.bounds(&range)?;
        let walk = self.tree.walk();
        let mut cursor = Cursor::new(&walk);
        let result = work(&mut cursor, bounds);
        drop(cursor);
        barrier::publish_to_device();
        result
    }

    /// The first and the last address of a range that is in the aperture and made of pages.
    pub(crate) fn bounds(&self, range: &IovaRange) -> Result<(u64, u64), ResizeError> {
        let (first, last) = (range.start().get(), range.last().get());
        if (first | last.wrapping_add(1)) & low_bits(self.scheme().granule_shift) != 0 {
            return Err(ResizeError::Misaligned { iova: range.start() });
        }
        if last > self.last_iova {
            return Err(ResizeError::OutOfRange { iova: range.start() });
        }
        Ok((first, last))
    }

    /// The leaf that maps `iova`; the cursor is at its table then, else where the way down ended.
    fn leaf_at(&self, cursor: &mut Cursor<'_, '_, H>, iova: u64) -> Option<u64> {
        cursor.seek(iova);
        match cursor.sink(0) {
            Ok(()) => {
                let entry = cursor.slot().load(Ordering::Relaxed);
                (self.scheme().kind(entry, 0) == Kind::Leaf).then_some(entry)
            }
            Err(Stop::Leaf(leaf)) => Some(leaf),
            Err(Stop::Absent | Stop::OutOfMemory) => None,
        }
    }

    /// Takes the hint off the run of which `leaf`, at the cursor, is part, or splits it into leaves of the next level.
    fn divide(
        &self,
        cursor: &Cursor<'_, '_, H>,
        iova: u64,
        leaf: u64,
        gather: &mut Gather,
    ) -> Result<Progress, ResizeError> {
        let (scheme, level) = (self.scheme(), cursor.level());
        let old = IovaRange::block(Iova::new(iova), scheme.extent(leaf, level));
        let replacement = self.tree.replacement;
        if replacement == Replacement::Break {
            return Err(ResizeError::BreakBeforeMake { iova: old.start() });
        }
        gather.record(old, scheme.level_shift(level) as u8);
        if leaf & scheme.contiguous != 0 {
            // A cached translation of the run may have the marks of any of its leaves.
            let slots = cursor.group(scheme.run_shift(level));
            slots
                .iter()
                .for_each(|slot| change(scheme, slot, level, |leaf| self.used(leaf) & !scheme.contiguous));
            self.tree.clean(slots);
            return Ok(Progress::Done);
        }
        let slot = cursor.slot();
        if replacement == Replacement::Staged && leaf & scheme.transient == 0 {
            change(scheme, slot, level, |leaf| leaf | scheme.transient);
            self.tree.clean(core::slice::from_ref(slot));
            return Ok(Progress::SyncAndRepeat);
        }
        let below = level.wrapping_sub(1);
        let size = scheme.level_size(below);
        let leaves = |leaf: u64, i: u64| {
            let phys = scheme.leaf_address(leaf, level).get().wrapping_add(i.wrapping_mul(size));
            scheme.leaf(PhysAddr::new(phys), below, scheme.shared_bits(leaf, level))
        };
        // If the leaf is gone, somebody else works on the same range, and the caller looks again.
        let _ = cursor.walk().split(slot, level, leaf, leaves)?;
        Ok(Progress::Done)
    }

    /// Replaces the table in the cursor's slot by a leaf that maps the same, if there is one.
    fn join_table(&self, cursor: &Cursor<'_, '_, H>, iova: u64, gather: &mut Gather) -> Progress {
        let (scheme, level, slot) = (self.scheme(), cursor.level(), cursor.slot());
        let staged = self.tree.replacement == Replacement::Staged;
        let block = IovaRange::block(Iova::new(iova), scheme.level_size(level));
        let entry = slot.load(Ordering::SeqCst);
        let table = match cursor.walk().below(slot, level) {
            Below::Table(table) => table,
            Below::Leaf(leaf) if leaf & scheme.transient != 0 && staged => {
                // All that was cached of the table is gone.
                change(scheme, slot, level, |leaf| leaf & !scheme.transient);
                self.tree.clean(core::slice::from_ref(slot));
                gather.record(block, scheme.level_shift(level) as u8);
                return Progress::Done;
            }
            Below::Leaf(_) | Below::Absent => return Progress::Done,
        };
        let below = level.wrapping_sub(1);
        let Some(first) = self.alike(table.entries(0, table.len()), below, block.len()) else {
            return Progress::Done;
        };
        let leaf = scheme.leaf(scheme.leaf_address(first, below), level, scheme.shared_bits(first, below));
        let leaf = if staged { leaf | scheme.transient } else { leaf };
        let replaced = cursor.walk().supplant(slot, level, entry, leaf, gather);
        // Even a leaf that was there for a moment only may be cached.
        gather.record(block, scheme.level_shift(below) as u8);
        if staged && replaced == Replaced::Yes { Progress::SyncAndRepeat } else { Progress::Done }
    }

    /// Puts the run of leaves that begins at the cursor under the contiguous hint, if it may be.
    fn join_run(&self, cursor: &Cursor<'_, '_, H>, iova: u64, gather: &mut Gather) {
        let (scheme, level) = (self.scheme(), cursor.level());
        let run = scheme.run_size(level);
        let slots = cursor.group(scheme.run_shift(level));
        let hinted = |slot: &AtomicU64| slot.load(Ordering::Relaxed) & scheme.contiguous != 0;
        if slots.iter().all(hinted) || self.alike(slots, level, run).is_none() {
            return;
        }
        slots.iter().for_each(|slot| change(scheme, slot, level, |leaf| self.used(leaf) | scheme.contiguous));
        self.tree.clean(slots);
        gather.record(IovaRange::block(Iova::new(iova), run), scheme.level_shift(level) as u8);
    }

    /// `leaf` as if it had been used in all ways, if hardware says how it is used: what leaves have in common that were
    /// made alike.
    fn used(&self, leaf: u64) -> u64 {
        match self.tree.accessed_dirty {
            AccessedDirty::Hardware => (self.scheme().with_usage)(leaf),
            AccessedDirty::Preset => leaf,
        }
    }

    /// The first of `slots`, at `level`, as if it had been used in all ways, if all of them are leaves that could be
    /// one of `size` bytes.
    fn alike(&self, slots: &[AtomicU64], level: u32, size: u64) -> Option<u64> {
        let scheme = self.scheme();
        let read = |slot: &AtomicU64| self.used(slot.load(Ordering::Relaxed)) & !scheme.contiguous;
        let first = slots.first().map(read)?;
        let aligned = scheme.leaf_address(first, level).is_aligned(size);
        if scheme.kind(first, level) != Kind::Leaf || first & scheme.transient != 0 && level != 0 || !aligned
        {
            return None;
        }
        let mut expected = first;
        slots
            .iter()
            .all(|slot| {
                let found = read(slot) == expected;
                expected = expected.wrapping_add(scheme.level_size(level));
                found
            })
            .then_some(first)
    }
}

/// Calls `act` for the aligned blocks of `size` bytes within the bounds whose tables at `level` are there, with the
/// cursor at the block's first entry.
fn for_each_block<'w, 't, H: Hal>(
    cursor: &mut Cursor<'w, 't, H>,
    (first, last): (u64, u64),
    size: u64,
    level: u32,
    act: &mut dyn FnMut(&Cursor<'w, 't, H>, u64),
) {
    let below = size.wrapping_sub(1);
    let mut iova = (first.wrapping_add(below)) & !below;
    while iova <= last && last.wrapping_sub(iova) >= below {
        cursor.seek(iova);
        if cursor.level() < level {
            cursor.climb(level);
        }
        let next = match cursor.sink(level) {
            Ok(()) => {
                act(cursor, iova);
                size
            }
            Err(_) => cursor.scheme().level_size(cursor.level()).max(size),
        };
        iova = (iova | next.wrapping_sub(1)).wrapping_add(1);
    }
}

/// Changes a leaf in one step, whatever hardware notes in it at the same time.
fn change(scheme: &Scheme, slot: &AtomicU64, level: u32, to: impl Fn(u64) -> u64) {
    let changed = |entry| (scheme.kind(entry, level) == Kind::Leaf).then(|| to(entry));
    // If it is none, somebody else works on the same range.
    let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, changed);
}
