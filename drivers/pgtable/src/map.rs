//! Mapping a list of pieces: all or nothing, and nothing that hardware can see before it is certain.
//!
//! A list of more than [one leaf](crate::single) is walked twice: once to check that all places are free and to
//! install the tables that are missing, which may fail, and once to write the leaves, which cannot. So a mapping
//! that is refused was never visible, and needs no invalidation. Between the walks nothing else can take the
//! places: they are the caller's.
//!
//! In a list whose pieces do not ascend, a piece may overlap an earlier one, which the tables do not show yet.
//! Such lists leave a mark in each place as they check it.

use crate::format::{Kind, Scheme, low_bits};
use crate::table::AnyTable;
use crate::walk::{Cursor, Stop};
use core::sync::atomic::{AtomicU64, Ordering};
use portcullis_hal::{Attributes, Hal, Iova, MapError, Mapping, OutOfMemory, PhysAddr, barrier};

/// A place that a map call has taken and not written yet. In every format the word is absent to hardware.
///
/// Not in the lowest byte: see [`TableTest`](crate::format::TableTest).
pub(crate) const RESERVED: u64 = 1 << 9;

/// Leaf runs from this length on are worth a look at the table's leaf count.
pub(crate) const LONG_RUN: usize = 16;

/// A valid piece of a list.
#[derive(Clone, Copy)]
struct Piece {
    iova: u64,
    phys: u64,
    len: u64,
    attribute_bits: u64,
}

/// Entries of one table for leaves that follow each other.
struct Run<'w> {
    slots: &'w [AtomicU64],
    level: u32,
    iova: u64,
    /// The first leaf, and what has to be added for the next.
    leaf: u64,
    size: u64,
    /// Of how many entries each unit is made that is written as a whole, or without the contiguous hint.
    unit: usize,
}

impl Run<'_> {
    /// Ends at an entry that is not empty: `Ok` at a table, an error at all else.
    #[cold]
    fn end(&self, scheme: &Scheme, index: usize, entry: u64) -> Result<usize, MapError> {
        match scheme.kind(entry, self.level) {
            Kind::Table => Ok(index),
            Kind::Leaf | Kind::Absent => {
                Err(overlap(self.iova.wrapping_add(self.size.wrapping_mul(index as u64))))
            }
        }
    }
}

#[cold]
fn overlap(iova: u64) -> MapError {
    MapError::Overlap { iova: Iova::new(iova) }
}

fn stopped(stop: Stop, iova: u64) -> MapError {
    match stop {
        Stop::Leaf(_) | Stop::Absent => overlap(iova),
        Stop::OutOfMemory => OutOfMemory.into(),
    }
}

/// What one walk over the pieces does.
trait Pass {
    /// Goes down to a table at `level`. Where tables are not made on the way they are there, unless somebody
    /// else works on the same range.
    #[inline]
    fn sink<H: Hal>(cursor: &mut Cursor<'_, '_, H>, level: u32) -> Result<(), Stop> {
        cursor.sink(level)
    }

    /// Handles a run, up to an entry that references a table, and returns how many entries these were.
    fn leaves<H: Hal>(cursor: &mut Cursor<'_, '_, H>, run: &Run<'_>) -> Result<usize, MapError>;
}

/// Finds out whether the places are free, and installs missing tables.
struct Check;
/// As [`Check`], and marks the places.
struct Reserve;
/// Takes the marks of [`Reserve`] away.
struct Release;
/// Writes the leaves.
struct Write;

impl Pass for Check {
    #[inline]
    fn sink<H: Hal>(cursor: &mut Cursor<'_, '_, H>, level: u32) -> Result<(), Stop> {
        cursor.sink_growing(level)
    }

    #[inline]
    fn leaves<H: Hal>(cursor: &mut Cursor<'_, '_, H>, run: &Run<'_>) -> Result<usize, MapError> {
        if run.level == 0 && run.slots.len() >= LONG_RUN && cursor.leaf_count() == 0 {
            return Ok(run.slots.len());
        }
        for (i, slot) in run.slots.iter().enumerate() {
            let entry = slot.load(Ordering::Relaxed);
            if entry != 0 {
                return run.end(cursor.scheme(), i, entry);
            }
        }
        Ok(run.slots.len())
    }
}

impl Pass for Reserve {
    #[inline]
    fn sink<H: Hal>(cursor: &mut Cursor<'_, '_, H>, level: u32) -> Result<(), Stop> {
        cursor.sink_growing(level)
    }

    fn leaves<H: Hal>(cursor: &mut Cursor<'_, '_, H>, run: &Run<'_>) -> Result<usize, MapError> {
        for (i, slot) in run.slots.iter().enumerate() {
            if let Err(entry) = slot.compare_exchange(0, RESERVED, Ordering::Relaxed, Ordering::Relaxed) {
                return run.end(cursor.scheme(), i, entry);
            }
        }
        Ok(run.slots.len())
    }
}

impl Pass for Release {
    fn leaves<H: Hal>(cursor: &mut Cursor<'_, '_, H>, run: &Run<'_>) -> Result<usize, MapError> {
        for (i, slot) in run.slots.iter().enumerate() {
            let free = slot.compare_exchange(RESERVED, 0, Ordering::Relaxed, Ordering::Relaxed);
            if let Err(entry) = free
                && cursor.scheme().kind(entry, run.level) == Kind::Table
            {
                return Ok(i);
            }
        }
        Ok(run.slots.len())
    }
}

impl Pass for Write {
    #[inline]
    fn leaves<H: Hal>(cursor: &mut Cursor<'_, '_, H>, run: &Run<'_>) -> Result<usize, MapError> {
        let mut leaf = run.leaf;
        let mut written = run.slots.len();
        if run.level == 0 {
            fill(run.slots, leaf, run.size);
        } else {
            let is_table = |slot: &AtomicU64| {
                cursor.scheme().kind(slot.load(Ordering::Relaxed), run.level) == Kind::Table
            };
            written = run.slots.iter().position(is_table).unwrap_or(written);
            let whole = written & !run.unit.wrapping_sub(1);
            for (i, slot) in run.slots.iter().take(written).enumerate() {
                let hint = if i < whole { 0 } else { cursor.scheme().contiguous };
                slot.store(leaf & !hint, Ordering::Relaxed);
                leaf = leaf.wrapping_add(run.size);
            }
        }
        let slots = run.slots.get(..written).unwrap_or(run.slots);
        cursor.changed(slots, run.iova, written as i64);
        Ok(written)
    }
}

/// The pieces at the head of `list` that are one page each, follow each other from `iova` on and have these attributes,
/// as far as the table at hand reaches: their entries and their memory. Lists of pages are made of them.
#[inline]
fn following<'a, H: Hal>(
    cursor: &Cursor<'a, '_, H>,
    attributes: Attributes,
    mut iova: u64,
    list: &'a [Mapping],
) -> impl Iterator<Item = (&'a AtomicU64, PhysAddr)> {
    let size = cursor.scheme().level_size(0);
    cursor.pages_from(iova).iter().zip(list).map_while(move |(slot, piece)| {
        let (first, last) = (piece.memory.start(), piece.memory.last());
        let is_page = last.get().wrapping_sub(first.get()) == size.wrapping_sub(1);
        let follows = piece.iova.get() == iova && piece.attributes == attributes;
        iova = iova.wrapping_add(size);
        (is_page && follows).then_some((slot, first))
    })
}

/// Writes leaves that follow each other, from `leaf` on, `size` bytes each.
#[inline]
pub(crate) fn fill(slots: &[AtomicU64], mut leaf: u64, size: u64) {
    let mut write = |slot: &AtomicU64| {
        slot.store(leaf, Ordering::Relaxed);
        leaf = leaf.wrapping_add(size);
    };
    // Many at a time, so that counting the entries does not cost as much as writing them.
    let (chunks, rest) = slots.as_chunks::<32>();
    chunks.iter().for_each(|chunk| chunk.iter().for_each(&mut write));
    rest.iter().for_each(write);
}

/// Whether the pieces of a list come in ascending order without overlap.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Ascending,
    Mixed,
}

impl<H: Hal> AnyTable<H> {
    #[inline(never)]
    pub(crate) fn map_pieces(&self, list: &[Mapping]) -> Result<(), MapError> {
        if let [mapping] = list
            && let Some(result) = self.map_pages(mapping)
        {
            return result;
        }
        let walk = self.tree.walk();
        let mut cursor = Cursor::new(&walk);
        if self.check(&mut cursor, list)? == Order::Mixed {
            self.reserve(&mut cursor, list)?;
        }
        self.write(&mut cursor, list)?;
        drop(cursor);
        // The caller goes on to tell a device.
        barrier::before_doorbell();
        Ok(())
    }

    /// The piece that a mapping asks for, if the table can hold it.
    #[inline]
    fn piece(&self, mapping: &Mapping) -> Result<Piece, MapError> {
        let iova = mapping.iova;
        let piece = self.checked(mapping)?;
        // The length is zero for all of the address space.
        if (piece.iova | piece.phys | piece.len) & low_bits(self.scheme().granule_shift) != 0 {
            return Err(MapError::Misaligned { iova });
        }
        let last = piece.iova.checked_add(piece.len.wrapping_sub(1));
        if last.is_none_or(|last| last > self.last_iova) || mapping.memory.last().get() > self.last_phys {
            return Err(MapError::OutOfRange { iova });
        }
        Ok(piece)
    }

    /// The piece that a mapping asks for, which was checked before but for the attributes.
    #[inline]
    fn checked(&self, mapping: &Mapping) -> Result<Piece, MapError> {
        let (first, last) = (mapping.memory.start().get(), mapping.memory.last().get());
        Ok(Piece {
            iova: mapping.iova.get(),
            phys: first,
            len: last.wrapping_sub(first).wrapping_add(1),
            attribute_bits: self.seals.get(mapping.attributes).ok_or(MapError::Attributes)?,
        })
    }

    /// Checks pieces until one does not come after the one before.
    fn check(&self, cursor: &mut Cursor<'_, '_, H>, mut list: &[Mapping]) -> Result<Order, MapError> {
        let mut end = 0;
        while let Some((mapping, rest)) = list.split_first() {
            let piece = self.piece(mapping)?;
            if piece.iova < end {
                return Ok(Order::Mixed);
            }
            end = piece.iova.wrapping_add(piece.len);
            self.place::<Check>(cursor, piece)?;
            let (last_phys, within) = (self.last_phys, low_bits(self.scheme().granule_shift));
            let free = |(slot, phys): &(&AtomicU64, PhysAddr)| {
                let fits = phys.get() & within == 0 && phys.get() <= last_phys;
                fits && slot.load(Ordering::Relaxed) == 0
            };
            // Where this ends early, the next round finds out why.
            let count = following(cursor, mapping.attributes, end, rest).take_while(free).count();
            end = end.wrapping_add((count as u64).wrapping_mul(self.scheme().level_size(0)));
            list = rest.get(count..).unwrap_or_default();
        }
        Ok(Order::Ascending)
    }

    /// Writes the leaves for a list that was checked.
    fn write(&self, cursor: &mut Cursor<'_, '_, H>, mut list: &[Mapping]) -> Result<(), MapError> {
        while let Some((mapping, rest)) = list.split_first() {
            let piece = self.checked(mapping)?;
            self.place::<Write>(cursor, piece)?;
            let end = piece.iova.wrapping_add(piece.len);
            // What all pages have in common, worked out once.
            let (scheme, in_place) = (self.scheme(), self.scheme().in_place());
            let common = scheme.leaf(PhysAddr::new(0), 0, piece.attribute_bits);
            let mut count = 0;
            for (slot, phys) in following(cursor, mapping.attributes, end, rest) {
                let address = if phys.get() < in_place { phys.get() } else { scheme.fold(phys) };
                slot.store(address | common, Ordering::Relaxed);
                count += 1;
            }
            if let Some(written) = cursor.pages_from(end).get(..count).filter(|written| !written.is_empty()) {
                cursor.changed(written, end, count as i64);
            }
            list = rest.get(count..).unwrap_or_default();
        }
        Ok(())
    }

    #[cold]
    fn reserve(&self, cursor: &mut Cursor<'_, '_, H>, list: &[Mapping]) -> Result<(), MapError> {
        for mapping in list {
            self.piece(mapping)?;
        }
        for (i, mapping) in list.iter().enumerate() {
            let piece = self.piece(mapping)?;
            if let Err(error) = self.place::<Reserve>(cursor, piece) {
                for mapping in list.iter().take(i.saturating_add(1)) {
                    let piece = self.piece(mapping)?;
                    // The piece that failed is marked up to the failure, and so its release fails there too.
                    let _ = self.place::<Release>(cursor, piece);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Handles a piece: at once if it lies in the table of pages at hand.
    #[inline]
    fn place<P: Pass>(&self, cursor: &mut Cursor<'_, '_, H>, piece: Piece) -> Result<(), MapError> {
        if piece.len < self.shortest_run
            && piece.len <= self.scheme().reach(piece.phys)
            && let Some(slots) = cursor.pages_here(piece.iova, piece.len)
        {
            P::leaves(cursor, &self.run(slots, 0, piece, 0))?;
            return Ok(());
        }
        self.place_far::<P>(cursor, piece)
    }

    /// Walks over the places of a piece, choosing the largest leaf that is possible at each step: by alignment,
    /// by the sizes allowed, and by the tables that are there already.
    fn place_far<P: Pass>(&self, cursor: &mut Cursor<'_, '_, H>, mut piece: Piece) -> Result<(), MapError> {
        while piece.len != 0 {
            cursor.seek(piece.iova);
            let level = self.leaf_level(piece.iova | piece.phys, piece.len, cursor.level());
            P::sink(cursor, level).map_err(|stop| stopped(stop, piece.iova))?;
            let (len, hint) = self.stretch(&piece, level);
            let slots = cursor.run(len.wrapping_shr(self.scheme().level_shift(level)));
            let done = P::leaves(cursor, &self.run(slots, level, piece, hint))?;
            let bytes = (done as u64).wrapping_shl(self.scheme().level_shift(level));
            piece.iova = piece.iova.wrapping_add(bytes);
            piece.phys = piece.phys.wrapping_add(bytes);
            piece.len = piece.len.wrapping_sub(bytes);
            if done < slots.len() {
                // A table is in the way: fill it.
                cursor.seek(piece.iova);
                P::sink(cursor, level.wrapping_sub(1)).map_err(|stop| stopped(stop, piece.iova))?;
            }
        }
        Ok(())
    }

    #[inline]
    fn run<'w>(&self, slots: &'w [AtomicU64], level: u32, piece: Piece, hint: u64) -> Run<'w> {
        let phys = PhysAddr::new(piece.phys);
        Run {
            slots,
            level,
            iova: piece.iova,
            leaf: self.scheme().leaf(phys, level, piece.attribute_bits) | hint,
            size: self.scheme().level_size(level),
            unit: 1_usize.wrapping_shl(self.scheme().run_shift(level)),
        }
    }

    /// The bytes at the head of a piece that can be one run of leaves at `level`, all of them with or all of them
    /// without the contiguous hint; and the hint.
    #[inline]
    fn stretch(&self, piece: &Piece, level: u32) -> (u64, u64) {
        let len = piece.len.min(self.scheme().reach(piece.phys));
        let unit = self.scheme().run_size(level);
        let below = unit.wrapping_sub(1);
        let hinted = self.scheme().run_shift(level) != 0 && self.page_sizes & unit != 0;
        if !hinted || (piece.iova ^ piece.phys) & below != 0 {
            return (len, 0);
        }
        match (piece.iova & below, len & !below) {
            (0, 0) => (len, 0),
            (0, whole) => (whole, self.scheme().contiguous),
            (offset, _) => (len.min(unit.wrapping_sub(offset)), 0),
        }
    }

    /// The highest level, up to `highest`, whose leaves fit an address and a physical address, merged in
    /// `addresses`, and a length.
    #[inline]
    fn leaf_level(&self, addresses: u64, len: u64, highest: u32) -> u32 {
        if len < self.scheme().level_size(1) {
            return 0;
        }
        let mut level = highest.min(self.scheme().leaf_levels.saturating_sub(1));
        while level > 0 {
            let size = self.scheme().level_size(level);
            if self.page_sizes & size != 0 && addresses & size.wrapping_sub(1) == 0 && len >= size {
                break;
            }
            level = level.wrapping_sub(1);
        }
        level
    }
}
