//! Going through the leaves of a range: to see what is mapped, and to collect what hardware noted in them.

use crate::format::{AccessedDirty, Kind, Scheme, low_bits};
use crate::table::AnyTable;
use crate::walk::{Cursor, Stop};
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicU64, Ordering};
use portcullis_hal::{
    Gather, Hal, HarvestError, Iova, IovaRange, Mapping, PhysAddr, PhysRange, TableWrites, Usage, barrier,
};

/// One leaf, or a run of them under the contiguous hint.
pub(crate) struct Unit<'w> {
    pub(crate) slots: &'w [AtomicU64],
    /// One of its leaves.
    pub(crate) leaf: u64,
    pub(crate) level: u32,
    /// Where it begins.
    pub(crate) iova: u64,
}

impl<H: Hal> AnyTable<H> {
    /// Calls `visitor` for everything that is mapped in `range`, leaf by leaf and in ascending order, until it breaks
    /// off; returns what it broke off with. A run under the contiguous hint counts as one leaf; leaves that reach out
    /// of the range are reported as a whole.
    ///
    /// By the tables in memory; hardware may still know an older answer. As long as the call lasts, other calls cannot
    /// cut off tables, so the visitor had better be quick.
    pub fn visit<B>(
        &self,
        range: IovaRange,
        mut visitor: impl FnMut(Mapping) -> ControlFlow<B>,
    ) -> Option<B> {
        let walk = self.tree.walk();
        let mut cursor = Cursor::new(&walk);
        let mut value = None;
        self.units(&mut cursor, &range, &mut |unit| {
            visitor(self.describe(&unit)).map_break(|reason| value = Some(reason))
        });
        value
    }

    /// Reads and clears the marks `wanted` in the leaves of `range`, and calls `visitor` for each leaf that had any of
    /// them, as [`visit`](Self::visit) does.
    ///
    /// A mark that hardware sets at the same time is reported now or by the next call. Hardware that has a leaf cached
    /// as dirty does not mark it again: leaves that were are recorded in `gather`, and only after the sync does a
    /// write count for the next call. So memory is copied after the sync. A cleared accessed mark may stay clear until
    /// the translation is cached anew; that is no matter for an invalidation. What a stopped device wrote is noted in
    /// the tables after a sync (SMMUv3, 3.13.4). The caller has claimed the gather for this table, and invalidates.
    ///
    /// # Errors
    ///
    /// All of [`HarvestError`].
    pub fn harvest(
        &self,
        range: IovaRange,
        wanted: Usage,
        gather: &mut Gather,
        mut visitor: impl FnMut(Mapping, Usage),
    ) -> Result<(), HarvestError> {
        self.harvest_all(range, wanted, gather, &mut visitor)
    }

    fn harvest_all(
        &self,
        range: IovaRange,
        wanted: Usage,
        gather: &mut Gather,
        visitor: &mut dyn FnMut(Mapping, Usage),
    ) -> Result<(), HarvestError> {
        if self.tree.accessed_dirty != AccessedDirty::Hardware {
            return Err(HarvestError::Untracked);
        }
        if self.tree.writes == TableWrites::Cleaned {
            return Err(HarvestError::NotSnooped);
        }
        let walk = self.tree.walk();
        let mut cursor = Cursor::new(&walk);
        self.units(&mut cursor, &range, &mut |unit| {
            let found = unit
                .slots
                .iter()
                .fold(Usage::empty(), |found, slot| found | take(self.scheme(), slot, unit.level, wanted));
            if found.contains(Usage::DIRTY) {
                let size = self.scheme().extent(unit.leaf, unit.level);
                let stale = IovaRange::block(Iova::new(unit.iova), size);
                gather.record(stale, self.scheme().level_shift(unit.level) as u8);
            }
            if !found.is_empty() {
                visitor(self.describe(&unit), found);
            }
            ControlFlow::Continue(())
        });
        drop(cursor);
        barrier::publish_to_device();
        Ok(())
    }

    fn describe(&self, unit: &Unit<'_>) -> Mapping {
        let size = self.scheme().extent(unit.leaf, unit.level);
        let phys = self.scheme().leaf_address(unit.leaf, unit.level).get() & !size.wrapping_sub(1);
        Mapping {
            iova: Iova::new(unit.iova),
            memory: PhysRange::block(PhysAddr::new(phys), size),
            attributes: (self.scheme().attributes)(unit.leaf),
        }
    }

    /// Calls `act` for the units that map something in `range`, until it breaks off.
    pub(crate) fn units<'w>(
        &self,
        cursor: &mut Cursor<'w, '_, H>,
        range: &IovaRange,
        act: &mut dyn FnMut(Unit<'w>) -> ControlFlow<()>,
    ) {
        let last = range.last().get().min(self.last_iova);
        let mut iova = range.start().get() & !low_bits(self.scheme().granule_shift);
        while iova <= last {
            cursor.seek(iova);
            let count = match cursor.sink(0) {
                Ok(()) => last.wrapping_sub(iova).wrapping_shr(self.scheme().granule_shift).wrapping_add(1),
                Err(Stop::Leaf(_) | Stop::Absent | Stop::OutOfMemory) => 1,
            };
            let (level, slots) = (cursor.level(), cursor.run(count));
            let size = self.scheme().level_size(level);
            iova &= !size.wrapping_sub(1);
            let end = iova.wrapping_add((slots.len() as u64).wrapping_mul(size));
            let mut rest = slots;
            while let Some((slot, after)) = rest.split_first() {
                rest = after;
                let leaf = slot.load(Ordering::Relaxed);
                if self.scheme().kind(leaf, level) == Kind::Leaf {
                    let extent = self.scheme().extent(leaf, level);
                    let unit = if extent == size {
                        Unit { slots: core::slice::from_ref(slot), leaf, level, iova }
                    } else {
                        cursor.seek(iova);
                        let start = iova & !extent.wrapping_sub(1);
                        // The rest of the run, which may reach out of the range.
                        let left = start.wrapping_add(extent).wrapping_sub(iova);
                        let others = left.wrapping_shr(self.scheme().level_shift(level));
                        rest = slots_after(rest, others);
                        iova = start.wrapping_add(extent).wrapping_sub(size);
                        Unit { slots: cursor.group(self.scheme().run_shift(level)), leaf, level, iova: start }
                    };
                    if act(unit).is_break() {
                        return;
                    }
                }
                iova = iova.wrapping_add(size);
            }
            iova = iova.max(end);
        }
    }
}

/// `slots` without those of a run of which `count` were left, the first of them not among `slots` any more.
fn slots_after(slots: &[AtomicU64], count: u64) -> &[AtomicU64] {
    slots.get(count.wrapping_sub(1) as usize..).unwrap_or_default()
}

/// Clears the marks `wanted` in a leaf and returns those that were set.
fn take(scheme: &Scheme, slot: &AtomicU64, level: u32, wanted: Usage) -> Usage {
    let cleared = |entry| {
        let marked = scheme.kind(entry, level) == Kind::Leaf && (scheme.usage)(entry).intersects(wanted);
        marked.then(|| (scheme.without_usage)(entry, wanted))
    };
    // An exchange, so that a mark that hardware sets in between is not lost.
    slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, cleared)
        .map_or(Usage::empty(), |entry| (scheme.usage)(entry) & wanted)
}
