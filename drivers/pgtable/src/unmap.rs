//! Unmapping a range.

use crate::format::{Kind, low_bits};
use crate::table::AnyTable;
use crate::tree::{Below, Cut, Tally};
use crate::walk::{Cursor, Stop};
use core::sync::atomic::Ordering;
use portcullis_hal::{Gather, Hal, Iova, IovaRange, UnmapError, barrier};

/// Whether whole tables may be cut off.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cutting {
    Possible,
    /// It was tried and could not be done: the entries are cleared instead.
    Off,
}

/// What an unmap has taken out so far.
struct Removed {
    tally: Tally,
    /// The first and the last address that an invalidation has to cover.
    bounds: Option<(u64, u64)>,
}

impl Removed {
    fn note(&mut self, iova: u64, len: u64) {
        let last = iova.wrapping_add(len).wrapping_sub(1);
        self.bounds = Some((self.bounds.map_or(iova, |(first, _)| first), last));
    }
}

impl<H: Hal> AnyTable<H> {
    #[inline(never)]
    pub(crate) fn unmap_all(&self, range: IovaRange, gather: &mut Gather) -> Result<u64, UnmapError> {
        let (first, last) = (range.start().get(), range.last().get());
        let granule = low_bits(self.scheme().granule_shift);
        if (first | last.wrapping_add(1)) & granule != 0 {
            return Err(UnmapError::Misaligned { iova: range.start() });
        }
        if last > self.last_iova {
            return Err(UnmapError::OutOfRange { iova: range.start() });
        }
        let walk = self.tree.walk();
        let mut cursor = Cursor::new(&walk);
        whole_leaf(&mut cursor, last, &range)?;
        whole_leaf(&mut cursor, first, &range)?;
        let removed = clear(&mut cursor, first, last, gather);
        drop(cursor);
        barrier::publish_to_device();
        if let Some((first, last)) = removed.bounds {
            let level = removed.tally.smallest_level();
            if let Ok(range) = IovaRange::from_bounds(Iova::new(first), Iova::new(last)) {
                gather.record(range, self.scheme().level_shift(level) as u8);
            }
        }
        Ok(removed.tally.bytes)
    }
}

/// Makes sure that a leaf that maps `iova` lies in `range` as a whole.
fn whole_leaf<H: Hal>(
    cursor: &mut Cursor<'_, '_, H>,
    iova: u64,
    range: &IovaRange,
) -> Result<(), UnmapError> {
    cursor.seek(iova);
    let leaf = match cursor.sink(0) {
        Err(Stop::Leaf(leaf)) => leaf,
        // The smallest leaves are as large as what ranges are made of, unless they carry the hint.
        Ok(()) if cursor.scheme().contiguous != 0 => cursor.slot().load(Ordering::Relaxed),
        Ok(()) | Err(Stop::Absent | Stop::OutOfMemory) => return Ok(()),
    };
    if cursor.scheme().kind(leaf, cursor.level()) != Kind::Leaf {
        return Ok(());
    }
    let size = cursor.scheme().extent(leaf, cursor.level());
    let leaf = IovaRange::block(Iova::new(iova), size);
    if range.covers(&leaf) { Ok(()) } else { Err(UnmapError::Partial { iova: leaf.start(), size }) }
}

/// Clears the entries from `iova` to `last`, whole tables at once where they lie in between.
fn clear<H: Hal>(cursor: &mut Cursor<'_, '_, H>, mut iova: u64, last: u64, gather: &mut Gather) -> Removed {
    let mut removed = Removed { tally: Tally::default(), bounds: None };
    let mut cutting = Cutting::Possible;
    while iova <= last {
        let left = last.wrapping_sub(iova).wrapping_add(1);
        cursor.seek(iova);
        if cutting == Cutting::Possible {
            cursor.rise(left);
        }
        let level = cursor.level();
        let span = cursor.scheme().level_size(level);
        if level == 0 {
            let slots = cursor.run(left.wrapping_shr(cursor.scheme().granule_shift));
            let mut cleared = 0_u64;
            // A load and a store instead of a swap: what hardware notes of accesses in between goes with the entry.
            // It only ever changes entries that are present, by an exchange that fails once they are not.
            for slot in slots {
                if slot.load(Ordering::Relaxed) != 0 {
                    slot.store(0, Ordering::Relaxed);
                    cleared = cleared.wrapping_add(1);
                }
            }
            let len = (slots.len() as u64).wrapping_mul(span);
            if cleared != 0 {
                cursor.changed(slots, iova, (cleared as i64).wrapping_neg());
                removed.tally.add(0, cleared.wrapping_mul(span));
                removed.note(iova, len);
            }
            iova = iova.wrapping_add(len);
            continue;
        }
        let len = left.min(span.wrapping_sub(iova & span.wrapping_sub(1)));
        let whole = len == span;
        let slot = cursor.slot();
        match cursor.walk().below(slot, level) {
            Below::Absent => {}
            Below::Leaf(_) if whole => {
                slot.store(0, Ordering::Relaxed);
                cursor.changed(core::slice::from_ref(slot), iova, 0);
                removed.tally.add(level, span);
                removed.note(iova, span);
            }
            // Checked before; so somebody else works on the same range, and the leaf is theirs.
            Below::Leaf(_) => {}
            Below::Table(_) if whole && cutting == Cutting::Possible => {
                match cursor.walk().cut(slot, level, gather) {
                    Cut::Done(tally) => {
                        removed.tally.bytes = removed.tally.bytes.wrapping_add(tally.bytes);
                        removed.tally.levels |= tally.levels;
                        removed.note(iova, span);
                    }
                    Cut::Busy => {
                        cutting = Cutting::Off;
                        continue;
                    }
                }
            }
            Below::Table(_) => {
                // Nothing to tell if it is gone again: the next round looks anew.
                let _ = cursor.sink(level.wrapping_sub(1));
                continue;
            }
        }
        iova = iova.wrapping_add(len);
    }
    removed
}
