//! A position in the tables that moves from address to address with as few steps as possible.

use crate::format::{Format, Kind, Scheme};
use crate::tree::{Below, Table, Walk};
use core::sync::atomic::{AtomicU64, Ordering};
use portcullis_hal::{Hal, OutOfMemory, TableWrites};

/// The number of levels that a cursor has room for, a power of two.
const LEVELS: usize = 8;
/// Entries per cache line, for batches of cleaning.
const LINE: usize = 8;

/// Why a cursor cannot go down further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The current entry is this leaf.
    Leaf(u64),
    /// The current entry is not present to hardware, though it may be reserved.
    Absent,
    /// There is no memory for the table below.
    OutOfMemory,
}

/// A position: an address, and the tables on the way to it down to some level.
///
/// What was written to a level-0 table is accounted for in its parent, and cleaned, when the cursor leaves it or
/// is dropped.
pub(crate) struct Cursor<'w, 't, H: Hal> {
    walk: &'w Walk<'t, H>,
    path: [Table<'w>; LEVELS],
    level: u32,
    top: u32,
    at: u64,
    /// Leaves added to the current level-0 table less those removed.
    added: i64,
    /// The first and the first-but-last entry of the current level-0 table that are to be cleaned.
    dirty: (usize, usize),
}

impl<'w, 't, H: Hal> Cursor<'w, 't, H> {
    /// The root.
    #[inline]
    pub(crate) fn new(walk: &'w Walk<'t, H>) -> Self {
        let top = walk.tree.top();
        Self { walk, path: [walk.root(); LEVELS], level: top, top, at: 0, added: 0, dirty: (0, 0) }
    }

    /// The level of the current table.
    #[inline]
    pub(crate) fn level(&self) -> u32 {
        self.level
    }

    /// Moves to `iova`: up to the lowest table on the way that covers it too.
    #[inline]
    pub(crate) fn seek(&mut self, iova: u64) {
        let moved = self.at ^ iova;
        while self.level < self.top && moved >= self.scheme().level_size(self.level.wrapping_add(1)) {
            self.up();
        }
        self.at = iova;
    }

    /// Moves up from a table that begins at the current address while `len` bytes cover it.
    #[inline]
    pub(crate) fn rise(&mut self, len: u64) {
        while self.level < self.top {
            let span = self.scheme().level_size(self.level.wrapping_add(1));
            if self.at & span.wrapping_sub(1) != 0 || len < span {
                return;
            }
            self.up();
        }
    }

    #[inline]
    fn up(&mut self) {
        if self.level == 0 {
            self.settle();
        }
        self.level = self.level.wrapping_add(1);
    }

    /// The table at `level`, which is not below the current one.
    #[inline]
    fn table(&self, level: u32) -> Table<'w> {
        self.path[level as usize % LEVELS]
    }

    /// The index of the current address in tables at `level`; high bits are left to the table to mask.
    #[inline]
    fn index(&self, level: u32) -> usize {
        self.at.wrapping_shr(self.scheme().level_shift(level)) as usize
    }

    /// The current address' entry in the current table.
    #[inline]
    pub(crate) fn slot(&self) -> &'w AtomicU64 {
        self.table(self.level).entry(self.index(self.level))
    }

    /// Up to `count` entries of the current table, from that of the current address on.
    #[inline]
    pub(crate) fn run(&self, count: u64) -> &'w [AtomicU64] {
        self.table(self.level).entries(self.index(self.level), usize::try_from(count).unwrap_or(usize::MAX))
    }

    /// The aligned group of `2^shift` entries of the current table in which that of the current address is.
    pub(crate) fn group(&self, shift: u32) -> &'w [AtomicU64] {
        let count = 1_usize.wrapping_shl(shift);
        self.table(self.level).entries(self.index(self.level) & !count.wrapping_sub(1), count)
    }

    /// Moves up to the table at `level`.
    pub(crate) fn climb(&mut self, level: u32) {
        while self.level < level.min(self.top) {
            self.up();
        }
    }

    /// The entries of the current table from that for `iova` on; none if `iova` is not in it, or if it is not one of
    /// pages.
    #[inline]
    pub(crate) fn pages_from(&self, iova: u64) -> &'w [AtomicU64] {
        if self.level != 0 || self.at ^ iova >= self.scheme().level_size(1) {
            return &[];
        }
        self.table(0).entries(iova.wrapping_shr(self.scheme().granule_shift) as usize, usize::MAX)
    }

    /// The entries for `len` bytes at `iova`, if all of them are in the current table and that is one of pages.
    /// Stays where it is.
    #[inline]
    pub(crate) fn pages_here(&self, iova: u64, len: u64) -> Option<&'w [AtomicU64]> {
        let span = self.scheme().level_size(1);
        let offset = iova & span.wrapping_sub(1);
        if self.level != 0 || self.at ^ iova >= span || len > span.wrapping_sub(offset) {
            return None;
        }
        let count = len.wrapping_shr(self.scheme().granule_shift) as usize;
        Some(self.table(0).entries(offset.wrapping_shr(self.scheme().granule_shift) as usize, count))
    }

    /// Goes down to the table at `level`, or as far as there are tables.
    #[inline]
    pub(crate) fn sink(&mut self, level: u32) -> Result<(), Stop> {
        let walk = self.walk;
        self.sink_by(level, |slot, level| Ok(walk.below(slot, level)))
    }

    /// Goes down to the table at `level`, and makes the tables that are missing.
    #[inline]
    pub(crate) fn sink_growing(&mut self, level: u32) -> Result<(), Stop> {
        let walk = self.walk;
        self.sink_by(level, |slot, level| walk.grow(slot, level))
    }

    #[inline]
    fn sink_by(
        &mut self,
        to: u32,
        step: impl Fn(&'w AtomicU64, u32) -> Result<Below<'w>, OutOfMemory>,
    ) -> Result<(), Stop> {
        let (mut level, mut table) = (self.level, self.table(self.level));
        let mut stop = Ok(());
        while level > to {
            match step(table.entry(self.index(level)), level) {
                Ok(Below::Table(below)) => {
                    level = level.wrapping_sub(1);
                    table = below;
                    self.path[level as usize % LEVELS] = below;
                    continue;
                }
                Ok(Below::Leaf(leaf)) => stop = Err(Stop::Leaf(leaf)),
                Ok(Below::Absent) => stop = Err(Stop::Absent),
                Err(OutOfMemory) => stop = Err(Stop::OutOfMemory),
            }
            break;
        }
        self.level = level;
        stop
    }

    /// How entries are encoded.
    #[inline]
    pub(crate) fn scheme(&self) -> &'t Scheme {
        &self.walk.tree.scheme
    }

    /// The walk.
    #[inline]
    pub(crate) fn walk(&self) -> &'w Walk<'t, H> {
        self.walk
    }

    /// The parent's entry for the current level-0 table.
    #[inline]
    fn parent(&self) -> &'w AtomicU64 {
        self.table(1).entry(self.index(1))
    }

    /// The leaves in the current level-0 table, but for changes of walks in progress.
    pub(crate) fn leaf_count(&self) -> u64 {
        self.scheme().leaf_count(self.parent().load(Ordering::Relaxed))
    }

    /// Notes that entries of the current table, which map from `iova` on, were changed and that there are now
    /// `added` more leaves (or fewer).
    #[inline]
    pub(crate) fn changed(&mut self, slots: &[AtomicU64], iova: u64, added: i64) {
        if self.level == 0 {
            self.added = self.added.wrapping_add(added);
        }
        if self.walk.tree.writes == TableWrites::Cleaned {
            self.soil(slots, iova);
        }
    }

    /// Puts entries down to be cleaned, together with those next to them.
    #[inline(never)]
    fn soil(&mut self, slots: &[AtomicU64], iova: u64) {
        if self.level != 0 {
            self.walk.tree.clean(slots);
            return;
        }
        let first = iova.wrapping_shr(self.scheme().granule_shift) as usize & self.table(0).last_index();
        let end = first.wrapping_add(slots.len());
        let near = self.dirty.0 <= first && first <= self.dirty.1.wrapping_add(LINE);
        if near && self.dirty.1 != 0 {
            self.dirty.1 = self.dirty.1.max(end);
        } else {
            self.clean();
            self.dirty = (first, end);
        }
    }

    /// Cleans what is dirty in the current level-0 table.
    fn clean(&mut self) {
        let (first, end) = core::mem::take(&mut self.dirty);
        if end > first {
            let written = self.table(0).entries(first, end.wrapping_sub(first));
            self.walk.tree.clean(written);
        }
    }

    /// Completes what was noted for the current level-0 table.
    fn settle(&mut self) {
        self.clean();
        let added = core::mem::take(&mut self.added);
        if added == 0 {
            return;
        }
        let parent = self.parent();
        let entry = parent.load(Ordering::Relaxed);
        if self.scheme().kind(entry, 1) == Kind::Table {
            recount(self.scheme(), parent, entry, added);
        }
    }
}

/// One leaf more, or one fewer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Up,
    Down,
}

/// As [`recount`], for a single leaf.
#[inline(always)]
pub(crate) fn recount_one<F: Format>(link: &AtomicU64, mut entry: u64, step: Step) {
    let scheme = F::SCHEME;
    let full = 1_u64.wrapping_shl(scheme.stride());
    let one = 1_u64.wrapping_shl(scheme.leaves_low.trailing_zeros());
    loop {
        let count = scheme.leaf_count(entry);
        let new = match step {
            // Counts go from none to full, the one value with its bit set.
            Step::Up if count & full != 0 => return,
            Step::Down if count == 0 => return,
            Step::Up if scheme.leaves_high == 0 => entry.wrapping_add(one),
            Step::Down if scheme.leaves_high == 0 => entry.wrapping_sub(one),
            Step::Up => scheme.with_leaf_count(entry, count.wrapping_add(1)),
            Step::Down => scheme.with_leaf_count(entry, count.wrapping_sub(1)),
        };
        if link.compare_exchange(entry, new, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            return;
        }
        entry = link.load(Ordering::Relaxed);
        if !scheme.is_table(entry) {
            return;
        }
    }
}

/// Notes that the level-0 table that `link` references holds `added` leaves more, or fewer. `entry`, a table entry, is
/// what the link was a moment ago.
#[inline(never)]
pub(crate) fn recount(scheme: &Scheme, link: &AtomicU64, mut entry: u64, added: i64) {
    let full = 1_u64.wrapping_shl(scheme.stride());
    // The count leaves its range only when calls on overlapping ranges race: the count may become wrong then, the
    // rest of the entry must not.
    loop {
        let mut count = scheme.leaf_count(entry).wrapping_add_signed(added);
        if count > full {
            count = if added < 0 { 0 } else { full };
        }
        let new = scheme.with_leaf_count(entry, count);
        match link.compare_exchange_weak(entry, new, Ordering::Relaxed, Ordering::Relaxed) {
            Err(found) if scheme.kind(found, 1) == Kind::Table => entry = found,
            Ok(_) | Err(_) => return,
        }
    }
}

impl<H: Hal> Drop for Cursor<'_, '_, H> {
    fn drop(&mut self) {
        if self.level == 0 {
            self.settle();
        }
    }
}
