//! The tables in memory, the links between them, and who may look at them: all unsafe code of the crate.
//!
//! Three invariants carry the safety arguments:
//!
//! - **Links**: a word of a table is a table entry only if [`Walk::grow`] or [`Walk::split`] put it there, and then it
//!   references frames that belong to the tree, and held zeros or leaves by then. The rest of the crate stores only leaves,
//!   zero and [`RESERVED`](crate::map::RESERVED), and changes table entries only in the bits that note the leaf count.
//! - **Walks**: whoever follows links holds a [`Walk`], which is counted. Frames leave the tree by [`Walk::cut`] or
//!   [`Walk::supplant`], which first takes the link out and then makes sure that no other walk is running: one that began
//!   later cannot see the link any more. So a table reached in a walk is there until the walk ends, even if calls on
//!   overlapping ranges race with each other.
//! - **Formats**: a tree goes by the scheme of the format that it was made with. [`Tree::find`] has the same one as a
//!   constant: it is called by the short way of that format, which `AnyTable` got together with the scheme, or for which a
//!   [`PageTable`](crate::PageTable) stands with its type. So nobody may exchange the table in a `PageTable`: it is
//!   borrowed from there for reading only.

#![expect(unsafe_code, reason = "tables are memory that hardware reads, reached through physical addresses")]

mod reclaim;

use crate::format::{AccessedDirty, Format, Geometry, Kind, Replacement, Scheme, low_bits};
use crate::single::TOP;
use crate::walk::{Step, recount_one};
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use portcullis_hal::count::{self, Event};
use portcullis_hal::{FrameOrder, Frames, Gather, Hal, OutOfMemory, PhysAddr, TableWrites};

/// What a tree has of its format.
pub(crate) struct Traits {
    pub(crate) scheme: Scheme,
    pub(crate) replacement: Replacement,
    pub(crate) accessed_dirty: AccessedDirty,
}

/// A root and all tables below it.
#[derive(Debug)]
pub(crate) struct Tree<H: Hal> {
    hal: H,
    pub(crate) scheme: Scheme,
    pub(crate) replacement: Replacement,
    pub(crate) accessed_dirty: AccessedDirty,
    pub(crate) writes: TableWrites,
    root: Frames<H>,
    /// The level of the root.
    top: u32,
    /// The number of entries of the root that the aperture uses, less one.
    root_mask: usize,
    /// The number of entries of the root that are begun with by the [short way](crate::single): all that the aperture uses,
    /// if the root is at the right level, or none.
    short_roots: usize,
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
pub(crate) struct Place<'t, H: Hal> {
    walk: Walk<'t, H>,
    slot: &'t AtomicU64,
}

impl<'t, H: Hal> Place<'t, H> {
    #[inline(always)]
    pub(crate) fn slot(&self) -> &AtomicU64 {
        self.slot
    }

    /// Goes on to the entry for `iova` of the table that the slot, in a table at `level` above 0, references; what is in
    /// the slot, if that is no table.
    #[inline(always)]
    fn enter<F: Format>(self, iova: u64, level: u32) -> Result<Found<'t, H>, (Self, u64)> {
        let Self { walk, slot: link } = self;
        let entry = link.load(Ordering::SeqCst);
        if !F::SCHEME.is_table(entry) {
            return Err((Self { walk, slot: link }, entry));
        }
        // SAFETY: read in this walk, above level 0, and only table entries look like this.
        let table = unsafe { walk.tree.follow(entry, &F::SCHEME) };
        let slot = table.entry(F::SCHEME.index(iova, level.wrapping_sub(1)));
        Ok(Found { place: Self { walk, slot }, link, entry, common: entry })
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
pub(crate) struct Found<'t, H: Hal> {
    pub(crate) place: Place<'t, H>,
    /// The entry that references the table that the place is in.
    link: &'t AtomicU64,
    /// What the link was when it was followed.
    entry: u64,
    /// The bits that all entries on the way have.
    pub(crate) common: u64,
}

impl<'t, H: Hal> Found<'t, H> {
    /// Notes one leaf more, or one fewer, in the table that the place is in, which is one of pages.
    #[inline(always)]
    pub(crate) fn recount<F: Format>(&self, step: Step) {
        recount_one::<F>(self.link, self.entry, step);
    }

    /// The place of the link.
    #[inline(always)]
    pub(crate) fn up(self) -> Place<'t, H> {
        Place { walk: self.place.walk, slot: self.link }
    }
}

/// The end of a way, which leads to a table of pages or ends above.
pub(crate) enum End<'t, H: Hal> {
    Page(Found<'t, H>),
    /// A place at level 1, and what is in it: no table.
    Block(Place<'t, H>, u64),
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

impl<H: Hal> Tree<H> {
    pub(crate) fn new(
        hal: &H,
        traits: Traits,
        geometry: Geometry,
        writes: TableWrites,
        last_phys: PhysAddr,
    ) -> Result<Self, OutOfMemory> {
        let Traits { scheme, replacement, accessed_dirty } = traits;
        let order = |bytes| FrameOrder::for_bytes(bytes).ok_or(OutOfMemory);
        let top = u32::from(geometry.levels.saturating_sub(1));
        // The index bits of the root that the aperture uses.
        let root_bits = u32::from(geometry.aperture_bits).saturating_sub(scheme.level_shift(top));
        let root_mask = low_bits(root_bits) as usize;
        // Where the aperture ends within an entry, its end would have to be looked at.
        let short = top == TOP && u32::from(geometry.aperture_bits) >= scheme.level_shift(top);
        let tree = Self {
            hal: hal.clone(),
            scheme,
            replacement,
            accessed_dirty,
            writes,
            top,
            root: frames(hal, order(8_u64.wrapping_shl(root_bits))?, last_phys)?,
            root_mask,
            short_roots: if short { root_mask.wrapping_add(1) } else { 0 },
            table_order: order(scheme.level_size(0))?,
            settled: if writes == TableWrites::Cleaned { scheme.cleaned } else { 0 },
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

    pub(crate) fn root_address(&self) -> PhysAddr {
        self.root.phys()
    }

    /// Begins a walk.
    #[inline]
    pub(crate) fn walk(&self) -> Walk<'_, H> {
        // In one total order with the loads of links and with `cut`: see there.
        self.walks.fetch_add(1, Ordering::SeqCst);
        Walk { tree: self }
    }

    /// Begins a walk by the short way of `F`, and goes down to the entry for `iova` in a table at level `to`, below the root;
    /// if there are tables all the way.
    #[inline(always)]
    pub(crate) fn find<F: Format>(&self, iova: u64, to: u32) -> Option<Found<'_, H>> {
        let index = F::SCHEME.index(iova, TOP);
        if index >= self.short_roots {
            return None;
        }
        let walk = self.walk();
        // SAFETY: the root has so many entries or more (`new`), and lives as long as the tree.
        let slot = unsafe { self.root_table().entries.add(index).as_ref() };
        let mut level = TOP;
        let mut found = Place { walk, slot }.enter::<F>(iova, level).ok()?;
        loop {
            level = level.wrapping_sub(1);
            if level == to {
                return Some(found);
            }
            let next = found.place.enter::<F>(iova, level).ok()?;
            found = Found { common: found.common & next.entry, ..next };
        }
    }

    /// As [`find`](Self::find), down to the last entry that there is, which is at level 0 or 1.
    #[inline(always)]
    pub(crate) fn find_end<F: Format>(&self, iova: u64) -> Option<End<'_, H>> {
        let found = self.find::<F>(iova, 1)?;
        Some(match found.place.enter::<F>(iova, 1) {
            Ok(page) => End::Page(page),
            Err((place, entry)) => End::Block(place, entry),
        })
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
    /// `entry` was read in this tree in the walk `'w`, and is a table entry, and `scheme` is the tree's.
    #[inline(always)]
    unsafe fn follow<'w>(&self, entry: u64, scheme: &Scheme) -> Table<'w> {
        count::add(Event::Table, 1);
        Table {
            entries: self.hal.phys_to_virt(scheme.table_address(entry)).cast(),
            mask: low_bits(scheme.stride()) as usize,
            walk: PhantomData,
        }
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

/// A walk in progress: tables that it reaches stay until it ends.
#[derive(Debug)]
pub(crate) struct Walk<'t, H: Hal> {
    pub(crate) tree: &'t Tree<H>,
}

impl<H: Hal> Drop for Walk<'_, H> {
    fn drop(&mut self) {
        // Whoever finds itself alone later has all accesses of this walk behind it.
        self.tree.walks.fetch_sub(1, Ordering::Release);
    }
}

impl<'t, H: Hal> Walk<'t, H> {
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
        match self.tree.scheme.kind(entry, level) {
            Kind::Absent => Below::Absent,
            Kind::Leaf => Below::Leaf(entry),
            // SAFETY: callers read the entry in this walk at this level.
            Kind::Table => Below::Table(unsafe { self.tree.follow(entry, &self.tree.scheme) }),
        }
    }

    /// Goes down to the entry for `iova` in a table at level `to`, below the root, in a tree of any format and depth; only by
    /// way of entries that hardware finds.
    pub(crate) fn descend(&self, iova: u64, to: u32) -> Option<&AtomicU64> {
        let scheme = &self.tree.scheme;
        let mut level = self.tree.top();
        let mut table = self.root();
        while level > to {
            let entry =
                table.entry(iova.wrapping_shr(scheme.level_shift(level)) as usize).load(Ordering::SeqCst);
            if !scheme.is_table(entry) || entry & self.tree.settled != self.tree.settled {
                return None;
            }
            // SAFETY: read in this walk, above level 0, and only table entries look like this.
            table = unsafe { self.tree.follow(entry, scheme) };
            level = level.wrapping_sub(1);
        }
        Some(table.entry(iova.wrapping_shr(scheme.level_shift(level)) as usize))
    }

    /// The leaf that maps `iova`, and its level. Nothing of the way is remembered, unlike in a
    /// [`Cursor`](crate::walk::Cursor): for a look at one address that would cost more than the way.
    pub(crate) fn leaf(&self, iova: u64) -> Option<(u64, u32)> {
        let (mut level, mut table) = (self.tree.top(), self.root());
        loop {
            let index = iova.wrapping_shr(self.tree.scheme.level_shift(level)) as usize;
            match self.below(table.entry(index), level) {
                Below::Table(below) => table = below,
                Below::Leaf(leaf) => return Some((leaf, level)),
                Below::Absent => return None,
            }
            level = level.wrapping_sub(1);
        }
    }

    /// What `slot`, an entry of a table of this walk at `level`, leads to; a new table if it was empty.
    ///
    /// When a table is returned, the link to it is where the hardware looks for it.
    #[inline]
    pub(crate) fn grow(&self, slot: &AtomicU64, level: u32) -> Result<Below<'_>, OutOfMemory> {
        let entry = slot.load(Ordering::SeqCst);
        if self.tree.scheme.kind(entry, level) == Kind::Table
            && entry & self.tree.settled == self.tree.settled
        {
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
        if self.tree.scheme.kind(entry, level) == Kind::Table {
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
        let entry = tree.scheme.table(frames.phys());
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
        match tree.scheme.kind(entry, level) {
            // A racing call on an overlapping range was faster.
            Kind::Absent => return Cut::Done(tally),
            Kind::Leaf => {
                tally.add(level, tree.scheme.level_size(level));
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
        let plain = tree.scheme.table(frames.phys());
        let full = 1_u64.wrapping_shl(tree.scheme.stride());
        let entry = if level == 1 { tree.scheme.with_leaf_count(plain, full) } else { plain };
        while tree.scheme.kind(leaf, level) == Kind::Leaf {
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
        if tree.scheme.kind(entry, level) != Kind::Table || !self.is_alone() || !tree.adapt(chain) {
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
        unsafe { chain.push_intact(&tree.hal, tree.scheme.table_address(entry)) };
        Replaced::Yes
    }

    /// Cleans a link that was put into `slot`, and notes that.
    fn settle(&self, slot: &AtomicU64, entry: u64) {
        if entry & self.tree.settled != self.tree.settled {
            // Once is enough, twice does no harm; and if the entry changes meanwhile, somebody else will do it again.
            self.tree.clean(core::slice::from_ref(slot));
            let _ = slot.compare_exchange(
                entry,
                entry | self.tree.scheme.cleaned,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
    }

    fn is_alone(&self) -> bool {
        self.tree.walks.load(Ordering::SeqCst) == 1
    }
}
