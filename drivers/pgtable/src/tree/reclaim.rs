//! Tables that leave the tree: cut off, empty, or at its end.

use super::{Table, Tally, Tree};
use crate::format::Kind;
use core::sync::atomic::Ordering;
use portcullis_hal::{FrameChain, Gather, Hal};

/// Whether anything is mapped below a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Emptiness {
    Empty,
    Used,
}

impl<H: Hal> Tree<H> {
    /// Moves the table that `entry`, of a table at `level`, references and all below it to `chain`, and counts
    /// what was mapped there.
    ///
    /// # Safety
    ///
    /// `entry` is a table entry that was taken out of this tree, no other walk can reach what is below it, and
    /// `chain` has the order of tables.
    pub(super) unsafe fn retire(&self, entry: u64, level: u32, chain: &mut FrameChain, tally: &mut Tally) {
        let scheme = self.scheme;
        let below = level.saturating_sub(1);
        let mut pages = 0_u64;
        if below == 0 {
            pages = scheme.leaf_count(entry);
        } else {
            // SAFETY: a table entry of this tree, whose table is still there as only this call frees it.
            let table = unsafe { self.follow(entry, &scheme) };
            for slot in table.entries(0, table.len()) {
                let entry = slot.load(Ordering::Relaxed);
                match scheme.kind(entry, below) {
                    Kind::Absent => {}
                    Kind::Leaf => tally.add(below, scheme.level_size(below)),
                    Kind::Table if below == 1 => {
                        pages = pages.wrapping_add(scheme.leaf_count(entry));
                        // SAFETY: as below, for a table that went out of the tree together with that of its entry.
                        unsafe { chain.push(&self.hal, scheme.table_address(entry)) };
                    }
                    // SAFETY: the entry went out of the tree together with the table it is in.
                    Kind::Table => unsafe { self.retire(entry, below, chain, tally) },
                }
            }
        }
        tally.add(0, pages.wrapping_mul(scheme.level_size(0)));
        // SAFETY: a table's frames come from the tree's hal with the order of tables (Links). Nobody reaches them
        // from the CPU any more, and hardware that still walks here may find entries absent, as they were taken
        // out.
        unsafe { chain.push(&self.hal, scheme.table_address(entry)) };
    }

    /// Takes empty tables below the table of `entry`, at `level`, out and moves them to `chain`. Returns
    /// whether nothing is mapped below `entry` now.
    ///
    /// # Safety
    ///
    /// As for [`retire`](Self::retire), but `entry` may still be in the tree.
    unsafe fn prune(&self, entry: u64, level: u32, chain: &mut FrameChain) -> Emptiness {
        // SAFETY: a table entry of this tree, as the caller vouches.
        let table = unsafe { self.follow(entry, &self.scheme) };
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
            let below = match self.scheme.kind(entry, level) {
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
            unsafe { chain.push(&self.hal, self.scheme.table_address(entry)) };
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
    pub(super) fn adapt(&self, chain: &mut FrameChain) -> bool {
        if chain.order() != self.table_order && chain.is_empty() {
            *chain = FrameChain::new(self.table_order);
        }
        chain.order() == self.table_order
    }
}

impl<H: Hal> Drop for Tree<H> {
    fn drop(&mut self) {
        let mut chain = FrameChain::new(self.table_order);
        let table = self.root_table();
        for slot in table.entries(0, table.len()) {
            let entry = slot.load(Ordering::Relaxed);
            if self.scheme.kind(entry, self.top()) == Kind::Table {
                // SAFETY: the tree ends here, so that nothing is in it any more, and nobody walks.
                unsafe { self.retire(entry, self.top(), &mut chain, &mut Tally::default()) };
            }
        }
        // SAFETY: whoever gave the root to hardware took it back and invalidated before the drop (contract of
        // `PageTable`), as with all frames.
        unsafe { chain.free(&self.hal) };
    }
}
