//! What the pieces of a map call are made of: the protocol takes back whole mappings only, so how they are made decides
//! what can be unmapped.

use crate::intervals::Interval;
use portcullis_hal::{IovaRange, Mapping, PhysAddr};
use portcullis_iommu::Grain;

/// How mappings are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pieces {
    /// Not at all.
    Whole,
    /// To the largest of these sizes, as a bit mask in bytes, that fit: as page tables do it.
    Leaves(u64),
}

impl Pieces {
    /// `page_sizes` are the device's. Page tables with that smallest page have levels of which each has an eighth as many
    /// entries as a page has bytes.
    pub(crate) fn new(grain: Grain, page_sizes: u64) -> Self {
        match grain {
            Grain::Piece => Self::Whole,
            Grain::Leaf => {
                let granule = page_sizes.trailing_zeros();
                let entries = granule.saturating_sub(3);
                let leaf = |level: u32| 1_u64.checked_shl(granule + level * entries).unwrap_or(0);
                Self::Leaves((leaf(0) | leaf(1) | leaf(2)) & page_sizes)
            }
        }
    }

    /// The sizes of mappings where the device has these.
    pub(crate) fn page_sizes(self, device: u64) -> u64 {
        match self {
            Self::Whole => device,
            Self::Leaves(sizes) => sizes,
        }
    }

    /// The mappings that a list is made of. Pieces that wrap are left out.
    pub(crate) fn of(self, list: &[Mapping]) -> impl Iterator<Item = Interval> {
        list.iter().flat_map(move |mapping| {
            let mut left = IovaRange::new(mapping.iova, mapping.memory.len()).ok();
            core::iter::from_fn(move || {
                let now = left?;
                let done = now.start().get().wrapping_sub(mapping.iova.get());
                let phys = PhysAddr::new(mapping.memory.start().get().wrapping_add(done));
                let range = self.first(&now, phys);
                let next = range.last().checked_add(1);
                left = next.and_then(|next| IovaRange::from_bounds(next, now.last()).ok());
                Some(Interval { range, phys, attributes: mapping.attributes })
            })
        })
    }

    fn first(self, range: &IovaRange, phys: PhysAddr) -> IovaRange {
        let Self::Leaves(sizes) = self else {
            return *range;
        };
        let together = range.start().get() | phys.get();
        // All sizes up to the alignment, and not longer than what is left.
        let aligned = sizes & (together ^ together.wrapping_sub(1));
        let fitting = aligned & (u64::MAX >> range.len().leading_zeros());
        let size = 1_u64.checked_shl(63_u32.wrapping_sub(fitting.leading_zeros())).unwrap_or(range.len());
        IovaRange::new(range.start(), size).unwrap_or(*range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_hal::{Attributes, Iova, PhysRange};

    const ALL: u64 = !0xfff;

    fn cut(pieces: Pieces, iova: u64, phys: u64, len: u64) -> Vec<(u64, u64, u64)> {
        let memory = PhysRange::new(PhysAddr::new(phys), len).unwrap();
        let list = [Mapping { iova: Iova::new(iova), memory, attributes: Attributes::READ }];
        let pieces = pieces.of(&list);
        pieces.map(|piece| (piece.range.start().get(), piece.phys.get(), piece.range.len())).collect()
    }

    #[test]
    fn leaves_are_those_of_page_tables() {
        assert_eq!(Pieces::new(Grain::Leaf, ALL), Pieces::Leaves(1 << 12 | 1 << 21 | 1 << 30));
        assert_eq!(Pieces::new(Grain::Leaf, !0xffff), Pieces::Leaves(1 << 16 | 1 << 29 | 1 << 42));
        assert_eq!(Pieces::new(Grain::Leaf, 1 << 12 | 1 << 30), Pieces::Leaves(1 << 12 | 1 << 30));
        assert_eq!(Pieces::new(Grain::Leaf, 1 << 63), Pieces::Leaves(1 << 63));
        assert_eq!(Pieces::new(Grain::Leaf, 1), Pieces::Leaves(1));
        assert_eq!(Pieces::new(Grain::Piece, ALL).page_sizes(ALL), ALL);
    }

    #[test]
    fn a_mapping_is_cut_at_the_borders_of_leaves() {
        const MIB: u64 = 1 << 20;
        let leaves = Pieces::new(Grain::Leaf, ALL);
        let whole = (0x1000, 0x1000, 4 * MIB);
        assert_eq!(cut(Pieces::Whole, whole.0, whole.1, whole.2), [whole]);
        // 511 pages up to 2 MiB, one large leaf, one page.
        let pieces = cut(leaves, 0x1000, 0x1000, 4 * MIB);
        assert_eq!(pieces.len(), 513);
        assert_eq!(
            pieces[510..],
            [
                (2 * MIB - 0x1000, 2 * MIB - 0x1000, 0x1000),
                (2 * MIB, 2 * MIB, 2 * MIB),
                (4 * MIB, 4 * MIB, 0x1000)
            ]
        );
        // Memory that is a page off leaves only small leaves.
        assert_eq!(cut(leaves, 0, 0x1000, 2 * MIB).len(), 512);
        assert_eq!(cut(leaves, 1 << 30, 0, 1 << 30), [(1 << 30, 0, 1 << 30)]);
        assert_eq!(cut(leaves, 0, 0, (1 << 30) - 0x1000).len(), 511 + 511);
        // Up to the top of the address space.
        assert_eq!(
            cut(leaves, u64::MAX - 0x1fff, 0, 0x2000).last(),
            Some(&(u64::MAX - 0xfff, 0x1000, 0x1000))
        );
    }
}
