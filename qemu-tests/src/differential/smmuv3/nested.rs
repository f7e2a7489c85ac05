//! The second stage below a first one.

use super::super::case::Path;
use super::draft::{CD, Draft, LEAF2, OUTER_TABLES, Shape};

impl Draft {
    /// Maps the page or block around an intermediate address; gives where the address ends up.
    pub(super) fn add_outer(&mut self, ipa: u64, level: u32) -> u64 {
        let span = self.outer.span(level);
        let page = self.place(span);
        self.map_outer(ipa, level, page | LEAF2 | if level == 0 { 3 } else { 1 });
        page + (ipa & ((1 << span) - 1))
    }

    /// The second stage lives in physical memory: its image is kept apart from that of the first by its addresses.
    fn map_outer(&mut self, ipa: u64, level: u32, leaf: u64) {
        let outer = self.outer;
        outer.map(&mut self.image, &mut self.outer_bump, ipa, level, leaf);
    }

    /// Moves the first stage's tables and the CD of a nested stream to the pages that the second stage gives them.
    pub(super) fn settle(&mut self) {
        if !self.shape.is_nested() {
            return;
        }
        // What moves as one: whole tables, unless they are to be scattered.
        let page = self.outer.granule;
        let granule = if self.shape == Shape::Scattered { page } else { page.max(self.tree.granule) };
        let inner: Vec<u64> = self.image.0.keys().copied().filter(|at| *at < OUTER_TABLES).collect();
        let mut pages: Vec<u64> = inner.iter().chain([&CD]).map(|at| at >> granule << granule).collect();
        pages.sort_unstable();
        pages.dedup();
        let mut moved = Vec::new();
        for block in pages {
            let place = self.outer_bump.take(granule);
            for offset in (0..1 << granule).step_by(1 << page) {
                self.map_outer(block + offset, 0, (place + offset) | LEAF2 | 3);
            }
            self.note(format!(
                "2^{granule} bytes of the first stage's tables, {block:#x}, are at {place:#x}"
            ));
            moved.push((block, place));
        }
        let target = |at: u64| {
            let page = at >> granule << granule;
            let found = moved.iter().find(|(from, _)| *from == page);
            found.map_or(at, |(_, to)| to + (at - page))
        };
        for at in inner {
            if let Some(word) = self.image.0.remove(&at) {
                self.image.set(target(at), word);
            }
        }
        for leaf in &mut self.leaves {
            leaf.path.iter_mut().for_each(|at| *at = target(*at));
        }
        self.cd_at = target(CD);
    }

    /// The entries of the second stage that lead to an intermediate address.
    pub(super) fn outer_path(&self, ipa: u64) -> Path {
        let (tree, mut table, mut path) = (self.outer, self.outer.root, Path::new());
        for level in (0..=tree.top).rev() {
            let index = ipa >> tree.span(level);
            let index = if level == tree.top { index } else { index & ((1 << (tree.granule - 3)) - 1) };
            let slot = table + 8 * index;
            let word = self.image.get(slot);
            path.push(slot);
            if level == 0 || word & 2 == 0 {
                break;
            }
            table = word & 0x0000_ffff_ffff_f000;
        }
        path
    }
}
