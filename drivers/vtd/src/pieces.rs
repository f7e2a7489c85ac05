//! How a range of pages is cut for page-selective invalidation, whose unit is an aligned block of 2^AM pages.
//!
//! Invalidating one block that holds the whole range, as is often done, throws away up to any multiple of it: two pages
//! on both sides of a 1 GiB boundary would cost 2 GiB of translations, each of which is a walk when it is used again.
//! So the rule is:
//!
//! 1. aligned blocks that cover the range exactly, if [`MOST`] of them suffice: a block is one descriptor of two words
//!    that the hardware works off without anybody waiting for it alone, cheaper than a walk of a table;
//! 2. if the range is too ragged for that, its ends are rounded outwards by as little as makes [`MOST`] suffice, which
//!    is less than an eighth of its length on each side;
//! 3. if the hardware's largest block (CAP_REG.MAMV) is too small even so, or it has no page-selective invalidation,
//!    everything with the range's tag is dropped by one descriptor.

/// The most descriptors that a range invalidation takes.
pub(crate) const MOST: usize = 8;

/// The size of a page of the invalidation interface, as a power of two in bytes.
pub(crate) const PAGE_SHIFT: u32 = 12;

/// The largest AM that makes sense: all pages of 64-bit addresses.
const ALL: u32 = 52;

/// An aligned block of 2^`mask` pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// The first address.
    pub(crate) start: u64,
    pub(crate) mask: u32,
}

impl Block {
    /// The bytes `first..=last` as one block with one of the first `masks` masks, if they are one.
    #[inline]
    pub(crate) fn exactly(first: u64, last: u64, masks: u32) -> Option<Self> {
        let rest = first ^ last;
        // All bits that differ, and no others, are the lower ones: clear in the first byte and set in the last. For less
        // than a page the mask comes out too large.
        let mask = (rest | 1).ilog2().wrapping_sub(PAGE_SHIFT - 1);
        let is_one = (rest.wrapping_add(1) | first) & rest == 0 && mask < masks;
        is_one.then_some(Self { start: first, mask })
    }
}

/// Aligned blocks in a row, the largest possible first from the left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pieces {
    range: Range,
    /// How many blocks are left.
    left: u8,
}

/// Pages that are yet to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    next: u64,
    /// The page behind the last one.
    end: u64,
    max_mask: u8,
}

impl Pieces {
    /// The first page alone.
    pub(crate) const FIRST_PAGE: Self = Self { range: Range { next: 0, end: 1, max_mask: 0 }, left: 1 };

    /// The blocks to drop for the pages `first..=last`, of at most 2^`max_mask` pages each and at most [`MOST`]; `None` if
    /// that is better done by dropping everything.
    #[inline]
    pub(crate) fn new(first: u64, last: u64, max_mask: u8) -> Option<Self> {
        let end = last.min((1 << ALL) - 1) + 1;
        if first >= end {
            return None;
        }
        let exact = Range { next: first, end, max_mask };
        exact.cut().or_else(|| exact.rounded())
    }

    /// How many blocks are left.
    pub(crate) fn left(&self) -> u8 {
        self.left
    }
}

impl Iterator for Pieces {
    type Item = Block;

    #[inline]
    fn next(&mut self) -> Option<Block> {
        self.left = self.left.checked_sub(1)?;
        let block = self.range.block()?;
        self.range.next += 1 << block.mask;
        Some(block)
    }
}

impl Range {
    /// The largest block that it begins with.
    #[inline]
    fn block(&self) -> Option<Block> {
        let left = self.end.checked_sub(self.next)?.checked_ilog2()?;
        let mask = left.min(self.next.trailing_zeros()).min(u32::from(self.max_mask));
        Some(Block { start: self.next << PAGE_SHIFT, mask })
    }

    /// The range in blocks, if they are few enough.
    fn cut(self) -> Option<Pieces> {
        let mut rest = self;
        (1..=MOST as u8).find_map(|left| {
            rest.next += 1 << rest.block()?.mask;
            (rest.next == rest.end).then_some(Pieces { range: self, left })
        })
    }

    /// The range with its ends rounded outwards as far as necessary.
    #[cold]
    fn rounded(self) -> Option<Pieces> {
        (1..=u32::from(self.max_mask).min(ALL)).find_map(|bits| {
            let unit = 1 << bits;
            Self { next: self.next & !(unit - 1), end: self.end.next_multiple_of(unit), ..self }.cut()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_hal::host::Random;

    fn cut(first: u64, last: u64, max_mask: u8) -> Option<Vec<(u64, u32)>> {
        Some(
            Pieces::new(first, last, max_mask)?
                .map(|block| (block.start >> PAGE_SHIFT, block.mask))
                .collect(),
        )
    }

    #[test]
    fn aligned_ranges_are_one_block_and_others_no_more_than_they_have_to() {
        assert_eq!(cut(5, 5, 52), Some(vec![(5, 0)]));
        assert_eq!(cut(0x200, 0x3ff, 52), Some(vec![(0x200, 9)]));
        // On both sides of a boundary: two pages, not the gigabytes around it.
        assert_eq!(cut(0x3_ffff, 0x4_0000, 52), Some(vec![(0x3_ffff, 0), (0x4_0000, 0)]));
        assert_eq!(cut(1, 30, 52).unwrap().len(), 8);
        assert_eq!(cut(0, (1 << 52) - 1, 52), Some(vec![(0, 52)]));
        assert_eq!(cut(0, u64::MAX, 52), Some(vec![(0, 52)]));
    }

    #[test]
    fn ragged_ranges_are_rounded_and_those_beyond_the_largest_block_are_not_cut() {
        // Ten blocks exactly.
        assert_eq!(cut(1, 62, 52), Some(vec![(0, 6)]));
        // Fifteen.
        let even = vec![(0, 9), (512, 8), (768, 7), (896, 6), (960, 5), (992, 3), (1000, 1)];
        assert_eq!(cut(1, 1000, 52), Some(even));
        assert_eq!(cut(0, 15, 1), Some((0..8).map(|n| (2 * n, 1)).collect()));
        assert_eq!(cut(0, 16, 1), None);
        assert_eq!(cut(0, 8, 0), None);
        assert_eq!(cut(7, 7, 0), Some(vec![(7, 0)]));
    }

    #[test]
    fn one_block_is_whole_pages() {
        let exactly = |first, last| {
            Block::exactly(first, last, 53).map(|block| (block.start >> PAGE_SHIFT, block.mask))
        };
        assert_eq!(exactly(0x5000, 0x5fff), Some((5, 0)));
        assert_eq!(exactly(0, u64::MAX), Some((0, 52)));
        for (first, last) in
            [(0x5000, 0x57ff), (0x5000, 0x5000), (0x5001, 0x5fff), (0x5000, 0x6fff), (0x5000, 0x5ffe)]
        {
            assert_eq!(exactly(first, last), None, "{first:#x}..={last:#x}");
        }
    }

    #[test]
    fn all_pages_are_covered_once_in_order_by_aligned_blocks_and_little_else() {
        let mut numbers = Random::new(1);
        let mut random = |bound| numbers.below(bound);
        let (mut exact, mut rounded, mut refused) = (0, 0, 0);
        for _ in 0..40_000 {
            let first = random(1 << 20) << random(10);
            let last = first + (random(1 << 20) >> random(20));
            let max = random(22) as u8;
            let Some(pieces) = Pieces::new(first, last, max) else {
                let at_least = (last - first + 1).div_ceil(1 << max);
                assert!(at_least > MOST as u64 - 2, "{first:#x}..={last:#x} in blocks of 2^{max} pages");
                refused += 1;
                continue;
            };
            let blocks: Vec<_> = pieces.collect();
            let page = |block: &Block| block.start >> PAGE_SHIFT;
            let is_all = |block: &&Block| page(block) == first && last - first + 1 == 1 << block.mask;
            let only = blocks.first().filter(is_all);
            let bytes = (first << PAGE_SHIFT, ((last + 1) << PAGE_SHIFT) - 1);
            assert_eq!(Block::exactly(bytes.0, bytes.1, u32::from(max) + 1), only.copied());
            assert!((1..=MOST).contains(&blocks.len()));
            let mut next = page(&blocks[0]);
            for block in &blocks {
                assert!(block.mask <= u32::from(max) && page(block).trailing_zeros() >= block.mask);
                assert_eq!(page(block), next);
                next += 1 << block.mask;
            }
            assert!(page(&blocks[0]) <= first && next > last);
            let (before, behind) = (first - page(&blocks[0]), next - 1 - last);
            let eighth = (last - first + 1) / 8;
            assert!(
                before <= eighth && behind <= eighth,
                "{first:#x}..={last:#x}: {before:#x} and {behind:#x}"
            );
            if before + behind == 0 { exact += 1 } else { rounded += 1 }
        }
        assert!(exact > 5000 && rounded > 1000 && refused > 1000, "{exact} {rounded} {refused}");
    }
}
