//! The tables in memory, the links between them, and who may look at them: all unsafe code of the crate.
//!
//! Two invariants carry the safety arguments:
//!
//! - **Links**: a word of a table is a table entry only if [`Walk::grow`] or [`Walk::split`] put it there, and then
//!   it references frames that belong to the tree, and held zeros or leaves by then. The rest of the crate stores only leaves, zero and
//!   [`RESERVED`](crate::map::RESERVED), and changes table entries only in the bits that note the leaf count.
//! - **Walks**: whoever follows links holds a [`Walk`], which is counted. Frames leave the tree by
//!   [`Walk::cut`] or [`Walk::supplant`], which first takes the link out and then makes sure that no other walk is running: one that
//!   began later cannot see the link any more. So a table reached in a walk is there until the walk ends,
//!   even if calls on overlapping ranges race with each other.

#![expect(unsafe_code, reason = "tables are memory that hardware reads, reached through physical addresses")]

use crate::format::{Format, Geometry, Kind, level_shift, level_size, low_bits};
use crate::walk::{Contended, Step, recount, recount_one};
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use portcullis_hal::count::{self, Event};
use portcullis_hal::{FrameChain, FrameOrder, Frames, Gather, Hal, OutOfMemory, PhysAddr, TableWrites};

/// A root and all tables below it.
#[derive(Debug)]
pub(crate) struct Tree<H: Hal, F: Format> {
    hal: H,
    pub(crate) format: F,
    pub(crate) geometry: Geometry,
    pub(crate) writes: TableWrites,
    root: Frames<H>,
    /// The level of the root.
    top: u32,
    /// The number of entries of the root that the aperture uses, less one.
    root_mask: usize,
    table_order: FrameOrder,
    /// The bits that a table entry must have before the walker may rely on hardware finding it.
    pub(crate) settled: u64,
    /// The last physical address that the walker can be led to.
    last_phys: PhysAddr,
    /// The walks in progress.
    walks: AtomicUsize,
}

/// A table, as long as the walk `'w` that reached it lasts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table<'w> {
    entries: NonNull<AtomicU64>,
    /// The number of entries, a power of two, less one.
    mask: usize,
    walk: PhantomData<&'w AtomicU64>,
}

impl<'w> Table<'w> {
    /// The entry at `index`, modulo the table's size.
    #[inline]
    pub(crate) fn entry(self, index: usize) -> &'w AtomicU64 {
        // SAFETY: the masked index is in the table, which lives as long as the walk (see the module).
        unsafe { self.entries.add(index & self.mask).as_ref() }
    }

    /// Up to `count` entries from `first`, modulo the table's size, without going round.
    #[inline]
    pub(crate) fn entries(self, first: usize, count: usize) -> &'w [AtomicU64] {
        let first = first & self.mask;
        let count = count.min(self.mask.wrapping_add(1).wrapping_sub(first));
        // SAFETY: first and count were just confined to the table, which lives as long as the walk.
        unsafe { core::slice::from_raw_parts(self.entries.add(first).as_ptr(), count) }
    }

    /// The number of entries.
    #[inline]
    pub(crate) fn len(self) -> usize {
        self.mask.wrapping_add(1)
    }

    /// The index of the last entry.
    #[inline]
    pub(crate) fn last_index(self) -> usize {
        self.mask
    }
}

/// What an entry leads to.
pub(crate) enum Below<'w> {
    Table(Table<'w>),
    Leaf(u64),
    /// Not present to hardware; the place may yet be reserved.
    Absent,
}

/// An entry, and the walk that keeps its table: a pair that fits registers.
pub(crate) struct Place<'t, H: Hal, F: Format> {
    pub(crate) walk: Walk<'t, H, F>,
    slot: &'t AtomicU64,
}

impl<H: Hal, F: Format> Place<'_, H, F> {
    #[inline(always)]
    pub(crate) fn slot(&self) -> &AtomicU64 {
        self.slot
    }

    /// Writes the slot back to memory if the walker needs that, and ends the walk.
    #[inline(always)]
    pub(crate) fn complete(self) {
        self.walk.tree.clean(core::slice::from_ref(self.slot));
    }

    /// Cuts the table in the slot, which is in a table at `level`, off: see [`Walk::cut`].
    pub(crate) fn cut(&self, level: u32, gather: &mut Gather) -> Cut {
        self.walk.cut(self.slot, level, gather)
    }
}

/// Where a way down ended.
pub(crate) struct Found<'t, H: Hal, F: Format> {
    pub(crate) place: Place<'t, H, F>,
    /// The entry that references the table that the place is in.
    link: &'t AtomicU64,
    /// What the link was when it was followed.
    entry: u64,
    /// The bits that all entries on the way have.
    pub(crate) common: u64,
}

impl<'t, H: Hal, F: Format> Found<'t, H, F> {
    /// Notes one leaf more, or one fewer, in the table that the place is in, which is one of pages; an error if something
    /// else was noted meanwhile.
    #[inline(always)]
    pub(crate) fn recount(&self, step: Step) -> Result<(), Contended> {
        recount_one::<F>(self.link, self.entry, step)
    }

    /// As [`recount`](Self::recount), for certain.
    #[inline(always)]
    pub(crate) fn recount_surely(&self, step: Step) {
        recount::<F>(self.link, self.entry, if step == Step::Up { 1 } else { -1 });
    }
}

/// What became of an attempt to cut a table off.
pub(crate) enum Cut {
    /// The table is on the chain; this was mapped below it.
    Done(Tally),
    /// Nothing was cut: another walk is running, or the chain is for frames of another size.
    Busy,
}

/// Whether something was replaced by its equivalent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replaced {
    Yes,
    /// Something else was there, or another walk was in the way.
    No,
}

/// What was mapped below a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// The bytes.
    pub(crate) bytes: u64,
    /// The levels that held leaves, one bit each.
    pub(crate) levels: u8,
}

/// Zeroed frames for a table. Memory that the walker cannot be led to is none.
fn frames<H: Hal>(hal: &H, order: FrameOrder, last_phys: PhysAddr) -> Result<Frames<H>, OutOfMemory> {
    let frames = Frames::zeroed(hal, order)?;
    if frames.range().last() <= last_phys { Ok(frames) } else { Err(OutOfMemory) }
}

impl Tally {
    /// The lowest level that held leaves. Tables in which nothing was mapped have none: the granule is right for them
    /// too.
    pub(crate) fn smallest_level(&self) -> u32 {
        if self.levels == 0 { 0 } else { self.levels.trailing_zeros() }
    }

    pub(crate) fn add(&mut self, level: u32, bytes: u64) {
        if bytes != 0 {
            self.bytes = self.bytes.wrapping_add(bytes);
            self.levels |= 1_u8.wrapping_shl(level);
        }
    }
}

impl<H: Hal, F: Format> Tree<H, F> {
    pub(crate) fn new(
        hal: &H,
        format: F,
        geometry: Geometry,
        writes: TableWrites,
        last_phys: PhysAddr,
    ) -> Result<Self, OutOfMemory> {
        let order = |bytes| FrameOrder::for_bytes(bytes).ok_or(OutOfMemory);
        let tree = Self {
            hal: hal.clone(),
            format,
            geometry,
            writes,
            top: u32::from(geometry.levels.saturating_sub(1)),
            root: frames(hal, order(8_u64.wrapping_shl(Self::root_bits(geometry)))?, last_phys)?,
            root_mask: low_bits(Self::root_bits(geometry)) as usize,
            table_order: order(level_size::<F>(0))?,
            settled: if writes == TableWrites::Cleaned { F::CLEANED } else { 0 },
            last_phys,
            walks: AtomicUsize::new(0),
        };
        if writes == TableWrites::Cleaned {
            tree.root.clean(0, tree.root.order().bytes() as usize);
        }
        Ok(tree)
    }

    /// The level of the root.
    #[inline]
    pub(crate) fn top(&self) -> u32 {
        self.top
    }

    /// The index bits of the root that the aperture uses.
    fn root_bits(geometry: Geometry) -> u32 {
        let below = level_shift::<F>(u32::from(geometry.levels.saturating_sub(1)));
        u32::from(geometry.aperture_bits).saturating_sub(below)
    }

    pub(crate) fn root_address(&self) -> PhysAddr {
        self.root.phys()
    }

    /// Begins a walk.
    #[inline]
    pub(crate) fn walk(&self) -> Walk<'_, H, F> {
        // In one total order with the loads of links and with `cut`: see there.
        self.walks.fetch_add(1, Ordering::SeqCst);
        Walk { tree: self }
    }

    /// Writes the cache lines of `words` back to memory if the walker needs that.
    #[inline(always)]
    pub(crate) fn clean(&self, words: &[AtomicU64]) {
        if self.writes == TableWrites::Cleaned {
            self.hal.clean_cache(NonNull::from(words).cast(), size_of_val(words));
        }
    }

    /// The table below an entry of a table at `level`.
    ///
    /// # Safety
    ///
    /// `entry` was read in this tree in the walk `'w`, at this level, and is a table entry.
    #[inline]
    unsafe fn follow<'w>(&self, entry: u64) -> Table<'w> {
        count::add(Event::Table, 1);
        Table {
            entries: self.hal.phys_to_virt(F::table_address(entry)).cast(),
            mask: low_bits(F::STRIDE) as usize,
            walk: PhantomData,
        }
    }

    /// Moves the table that `entry`, of a table at `level`, references and all below it to `chain`, and counts
    /// what was mapped there.
    ///
    /// # Safety
    ///
    /// `entry` is a table entry that was taken out of this tree, no other walk can reach what is below it, and
    /// `chain` has the order of tables.
    unsafe fn retire(&self, entry: u64, level: u32, chain: &mut FrameChain, tally: &mut Tally) {
        let below = level.saturating_sub(1);
        if below == 0 {
            tally.add(0, F::leaf_count(entry).wrapping_mul(level_size::<F>(0)));
        } else {
            // SAFETY: a table entry of this tree, whose table is still there as only this call frees it.
            let table = unsafe { self.follow(entry) };
            for slot in table.entries(0, table.len()) {
                let entry = slot.load(Ordering::Relaxed);
                match F::kind(entry, below) {
                    Kind::Absent => {}
                    Kind::Leaf => tally.add(below, level_size::<F>(below)),
                    // SAFETY: the entry went out of the tree together with the table it is in.
                    Kind::Table => unsafe { self.retire(entry, below, chain, tally) },
                }
            }
        }
        // SAFETY: a table's frames come from the tree's hal with the order of tables (Links). Nobody reaches them
        // from the CPU any more, and hardware that still walks here may find entries absent, as they were taken
        // out.
        unsafe { chain.push(&self.hal, F::table_address(entry)) };
    }

    /// Takes empty tables below the table of `entry`, at `level`, out and moves them to `chain`. Returns
    /// whether nothing is mapped below `entry` now.
    ///
    /// # Safety
    ///
    /// As for [`retire`](Self::retire), but `entry` may still be in the tree.
    unsafe fn prune(&self, entry: u64, level: u32, chain: &mut FrameChain) -> Emptiness {
        // SAFETY: a table entry of this tree, as the caller vouches.
        let table = unsafe { self.follow(entry) };
        // SAFETY: nobody else walks.
        unsafe { self.prune_table(table, level.saturating_sub(1), chain) }
    }

    /// As [`prune`](Self::prune), for the entries of a table at `level`.
    ///
    /// # Safety
    ///
    /// `table` is a table of this tree at this level, no walk is running, and `chain` has the order of tables.
    unsafe fn prune_table(&self, table: Table<'_>, level: u32, chain: &mut FrameChain) -> Emptiness {
        let mut emptiness = Emptiness::Empty;
        for slot in table.entries(0, table.len()) {
            let entry = slot.load(Ordering::Relaxed);
            let below = match F::kind(entry, level) {
                Kind::Absent => continue,
                Kind::Leaf => Emptiness::Used,
                // SAFETY: a table entry of this tree; the caller vouches for the rest.
                Kind::Table => unsafe { self.prune(entry, level, chain) },
            };
            if below == Emptiness::Used {
                emptiness = Emptiness::Used;
                continue;
            }
            slot.store(0, Ordering::Relaxed);
            self.clean(core::slice::from_ref(slot));
            // SAFETY: the frames are the tree's, and with the link gone nobody finds them any more.
            unsafe { chain.push(&self.hal, F::table_address(entry)) };
        }
        emptiness
    }

    /// Takes all empty tables out and moves them to `chain`; returns how many. None if the chain holds frames
    /// of another size.
    pub(crate) fn trim(&mut self, gather: &mut Gather) -> usize {
        // SAFETY: only tables of this tree are added, and only an empty chain is replaced.
        let chain = unsafe { gather.tables() };
        if !self.adapt(chain) {
            return 0;
        }
        let before = chain.count();
        // SAFETY: the root is at the top level, `&mut self` excludes walks, and the chain was just checked.
        unsafe { self.prune_table(self.root_table(), self.top(), chain) };
        chain.count().saturating_sub(before)
    }

    /// Makes an empty chain one of tables; `false` if it holds frames of another size.
    fn adapt(&self, chain: &mut FrameChain) -> bool {
        if chain.order() != self.table_order && chain.is_empty() {
            *chain = FrameChain::new(self.table_order);
        }
        chain.order() == self.table_order
    }

    #[inline]
    fn root_table(&self) -> Table<'_> {
        count::add(Event::Table, 1);
        Table {
            entries: self.hal.phys_to_virt(self.root.phys()).cast(),
            mask: self.root_mask,
            walk: PhantomData,
        }
    }
}

/// Whether anything is mapped below a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Emptiness {
    Empty,
    Used,
}

impl<H: Hal, F: Format> Drop for Tree<H, F> {
    fn drop(&mut self) {
        let mut chain = FrameChain::new(self.table_order);
        let table = self.root_table();
        for slot in table.entries(0, table.len()) {
            let entry = slot.load(Ordering::Relaxed);
            if F::kind(entry, self.top()) == Kind::Table {
                // SAFETY: the tree ends here, so that nothing is in it any more, and nobody walks.
                unsafe { self.retire(entry, self.top(), &mut chain, &mut Tally::default()) };
            }
        }
        // SAFETY: whoever gave the root to hardware took it back and invalidated before the drop (contract of
        // `PageTable`), as with all frames.
        unsafe { chain.free(&self.hal) };
    }
}

/// A walk in progress: tables that it reaches stay until it ends.
#[derive(Debug)]
pub(crate) struct Walk<'t, H: Hal, F: Format> {
    pub(crate) tree: &'t Tree<H, F>,
}

impl<H: Hal, F: Format> Drop for Walk<'_, H, F> {
    fn drop(&mut self) {
        // Whoever finds itself alone later has all accesses of this walk behind it.
        self.tree.walks.fetch_sub(1, Ordering::Release);
    }
}

impl<'t, H: Hal, F: Format> Walk<'t, H, F> {
    /// The root table.
    #[inline]
    pub(crate) fn root(&self) -> Table<'_> {
        self.tree.root_table()
    }

    /// What `slot`, an entry of a table of this walk at `level`, leads to.
    #[inline]
    pub(crate) fn below(&self, slot: &AtomicU64, level: u32) -> Below<'_> {
        self.interpret(slot.load(Ordering::SeqCst), level)
    }

    #[inline]
    fn interpret(&self, entry: u64, level: u32) -> Below<'_> {
        match F::kind(entry, level) {
            Kind::Absent => Below::Absent,
            Kind::Leaf => Below::Leaf(entry),
            // SAFETY: callers read the entry in this walk at this level.
            Kind::Table => Below::Table(unsafe { self.tree.follow(entry) }),
        }
    }

    /// Goes down to the entry for `iova` in a table at level `to`, below `top`, that of the root; if there are tables all
    /// the way.
    #[inline(always)]
    pub(crate) fn find(self, iova: u64, to: u32, top: u32) -> Option<Found<'t, H, F>> {
        let index = |level| iova.wrapping_shr(level_shift::<F>(level)) as usize;
        let mut level = top;
        let mut link = self.tree.root_table().entry(index(level));
        let mut common = u64::MAX;
        loop {
            let entry = link.load(Ordering::SeqCst);
            if !F::is_table(entry) {
                return None;
            }
            common &= entry;
            // SAFETY: read in this walk, above level 0, and only table entries look like this.
            let table = unsafe { self.tree.follow(entry) };
            level = level.wrapping_sub(1);
            let slot = table.entry(index(level));
            if level == to {
                return Some(Found { place: Place { walk: self, slot }, link, entry, common });
            }
            link = slot;
        }
    }

    /// What `slot`, an entry of a table of this walk at `level`, leads to; a new table if it was empty.
    ///
    /// When a table is returned, the link to it is where the hardware looks for it.
    #[inline]
    pub(crate) fn grow(&self, slot: &AtomicU64, level: u32) -> Result<Below<'_>, OutOfMemory> {
        let entry = slot.load(Ordering::SeqCst);
        if F::kind(entry, level) == Kind::Table && entry & self.tree.settled == self.tree.settled {
            return Ok(self.interpret(entry, level));
        }
        self.grow_slowly(slot, level, entry)
    }

    /// As [`grow`](Self::grow), for an `entry` that does not do as it is.
    #[cold]
    fn grow_slowly(&self, slot: &AtomicU64, level: u32, mut entry: u64) -> Result<Below<'_>, OutOfMemory> {
        if entry == 0 {
            entry = self.link(slot)?;
        }
        if F::kind(entry, level) == Kind::Table {
            // Whoever installed it may not have come to clean it yet.
            self.settle(slot, entry);
        }
        Ok(self.interpret(entry, level))
    }

    /// Installs a new table in an empty `slot` and returns the entry, or that of whoever was faster.
    fn link(&self, slot: &AtomicU64) -> Result<u64, OutOfMemory> {
        let tree = self.tree;
        let frames = frames(&tree.hal, tree.table_order, tree.last_phys)?;
        tree.clean(frames.words());
        let entry = tree.format.table(frames.phys());
        portcullis_hal::barrier::publish_to_device();
        match slot.compare_exchange(0, entry, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => {
                // The frames now belong to the tree.
                let _ = frames.into_raw();
                Ok(entry)
            }
            Err(found) => Ok(found),
        }
    }

    /// Cuts the table in `slot`, an entry of a table of this walk at `level`, off and moves it with all below
    /// it to `chain`, if no other walk is running.
    pub(crate) fn cut(&self, slot: &AtomicU64, level: u32, gather: &mut Gather) -> Cut {
        // SAFETY: only tables of this tree are added, and only an empty chain is replaced.
        let chain = unsafe { gather.tables() };
        let tree = self.tree;
        if !self.is_alone() || !tree.adapt(chain) {
            return Cut::Busy;
        }
        let entry = slot.swap(0, Ordering::SeqCst);
        let mut tally = Tally::default();
        match F::kind(entry, level) {
            // A racing call on an overlapping range was faster.
            Kind::Absent => return Cut::Done(tally),
            Kind::Leaf => {
                tally.add(level, level_size::<F>(level));
                return Cut::Done(tally);
            }
            Kind::Table => {}
        }
        tree.clean(core::slice::from_ref(slot));
        if !self.is_alone() {
            // A walk that began in between may have seen the link. If even the slot is taken by now, by a
            // racing call on an overlapping range, the tables stay allocated for ever.
            let _ = slot.compare_exchange(0, entry, Ordering::SeqCst, Ordering::SeqCst);
            tree.clean(core::slice::from_ref(slot));
            return Cut::Busy;
        }
        // SAFETY: the link is gone and this is the only walk. One that begins now counts itself first and loads
        // links afterwards, both in the total order of sequentially consistent operations in which the swap
        // precedes the count just read, so it finds the slot empty. The order of the chain was adapted.
        unsafe { tree.retire(entry, level, chain, &mut tally) };
        Cut::Done(tally)
    }

    /// Puts a table of leaves in the place of `leaf`, in a slot of a table of this walk at `level`: the `i`th entry of
    /// the new table is `leaves(leaf, i)`.
    pub(crate) fn split(
        &self,
        slot: &AtomicU64,
        level: u32,
        mut leaf: u64,
        leaves: impl Fn(u64, u64) -> u64,
    ) -> Result<Replaced, OutOfMemory> {
        let tree = self.tree;
        let frames = frames(&tree.hal, tree.table_order, tree.last_phys)?;
        let plain = tree.format.table(frames.phys());
        let full = 1_u64.wrapping_shl(F::STRIDE);
        let entry = if level == 1 { F::with_leaf_count(plain, full) } else { plain };
        while F::kind(leaf, level) == Kind::Leaf {
            for (i, word) in frames.words().iter().enumerate() {
                word.store(leaves(leaf, i as u64), Ordering::Relaxed);
            }
            tree.clean(frames.words());
            portcullis_hal::barrier::publish_to_device();
            match slot.compare_exchange(leaf, entry, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => {
                    // The frames now belong to the tree.
                    let _ = frames.into_raw();
                    self.settle(slot, entry);
                    return Ok(Replaced::Yes);
                }
                // Hardware noted an access in the meantime: the new leaves have to know of it too.
                Err(found) => leaf = found,
            }
        }
        Ok(Replaced::No)
    }

    /// Puts `leaf` in the place of the table of leaves that `entry` references, in `slot`, of a table of this walk at
    /// `level`, if no other walk is running. The table moves to the gather as it is.
    pub(crate) fn supplant(
        &self,
        slot: &AtomicU64,
        level: u32,
        entry: u64,
        leaf: u64,
        gather: &mut Gather,
    ) -> Replaced {
        // SAFETY: only tables of this tree are added, and only an empty chain is replaced.
        let chain = unsafe { gather.tables() };
        let tree = self.tree;
        if F::kind(entry, level) != Kind::Table || !self.is_alone() || !tree.adapt(chain) {
            return Replaced::No;
        }
        if slot.compare_exchange(entry, leaf, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return Replaced::No;
        }
        tree.clean(core::slice::from_ref(slot));
        if !self.is_alone() {
            // As in `cut`; and what is there now translates the same.
            let _ = slot.compare_exchange(leaf, entry, Ordering::SeqCst, Ordering::SeqCst);
            tree.clean(core::slice::from_ref(slot));
            return Replaced::No;
        }
        // SAFETY: the link is gone and this is the only walk, as argued in `cut`. The table's frames come from the
        // tree's hal with the order of tables (Links), and the order of the chain was adapted. Bits 58:55 of leaves
        // are ignored by hardware in all formats, and clear in all that this crate makes.
        unsafe { chain.push_intact(&tree.hal, F::table_address(entry)) };
        Replaced::Yes
    }

    /// Cleans a link that was put into `slot`, and notes that.
    fn settle(&self, slot: &AtomicU64, entry: u64) {
        if entry & self.tree.settled != self.tree.settled {
            // Once is enough, twice does no harm; and if the entry changes meanwhile, somebody else will do it again.
            self.tree.clean(core::slice::from_ref(slot));
            let _ = slot.compare_exchange(entry, entry | F::CLEANED, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    fn is_alone(&self) -> bool {
        self.tree.walks.load(Ordering::SeqCst) == 1
    }
}
