//! Invalidation requests: the descriptors themselves, and which of them an invalidation takes.

use crate::features::Features;
use crate::spec::descriptors::{ContextCache0, Granularity, Iotlb0, Kind, Pages, Pasid0, Wait0, Wait1};
use portcullis_hal::{DomainId, IovaRange, PhysAddr};
use portcullis_iommu::Stage;

/// A 256-bit descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Descriptor(pub(crate) [u64; 4]);

/// The caches of a unit, in the order of their invalidation. What is in an older one tags what enters a younger one, so
/// the older one has to be invalidated before the younger one's invalidation begins (6.2.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cache {
    /// The context cache.
    Contexts,
    /// The PASID cache.
    Pasids,
    /// The IOTLB and the paging-structure caches.
    Translations,
}

/// The PASID entry that serves requests without PASID: RID_PASID is 0 in all context entries.
pub(crate) const RID_PASID: u32 = 0;

/// The size of a page of the invalidation interface, as a power of two in bytes.
const PAGE_SHIFT: u32 = 12;

impl Descriptor {
    /// What it invalidates.
    pub(crate) fn cache(self) -> Cache {
        let [low, ..] = self.0;
        match ContextCache0::from_bits(low).kind() {
            Kind::CONTEXT_CACHE => Cache::Contexts,
            Kind::PASID_CACHE => Cache::Pasids,
            _ => Cache::Translations,
        }
    }

    fn context_cache(granularity: Granularity, sid: u16) -> Self {
        let word =
            ContextCache0::new().with_kind(Kind::CONTEXT_CACHE).with_granularity(granularity).with_sid(sid);
        Self([word.into_bits(), 0, 0, 0])
    }

    /// Drops all cached context entries.
    pub(crate) fn context_cache_global() -> Self {
        Self::context_cache(Granularity::GLOBAL, 0)
    }

    /// Drops the cached context entry of one requester.
    pub(crate) fn context_cache_device(sid: u16) -> Self {
        Self::context_cache(Granularity::DEVICE, sid)
    }

    fn pasid(kind: Kind, granularity: Granularity, did: DomainId, pasid: u32, pages: Pages) -> Self {
        let word =
            Pasid0::new().with_kind(kind).with_granularity(granularity).with_did(did.get()).with_pasid(pasid);
        Self([word.into_bits(), pages.into_bits(), 0, 0])
    }

    /// Drops all cached PASID entries.
    pub(crate) fn pasid_cache_global() -> Self {
        let none = DomainId::new(0);
        Self::pasid(Kind::PASID_CACHE, Granularity::PASID_CACHE_GLOBAL, none, 0, Pages::new())
    }

    /// Drops the cached PASID entries with a domain id.
    pub(crate) fn pasid_cache_domain(did: DomainId) -> Self {
        Self::pasid(Kind::PASID_CACHE, Granularity::PASID_CACHE_DOMAIN, did, 0, Pages::new())
    }

    /// Drops the cached entries of one PASID with a domain id.
    pub(crate) fn pasid_cache_pasid(did: DomainId, pasid: u32) -> Self {
        Self::pasid(Kind::PASID_CACHE, Granularity::PASID_CACHE_PASID, did, pasid, Pages::new())
    }

    /// Drops the first-stage and pass-through translations of one PASID with a domain id.
    pub(crate) fn pasid_iotlb_all(did: DomainId, pasid: u32) -> Self {
        Self::pasid(Kind::PASID_IOTLB, Granularity::PASID_ALL, did, pasid, Pages::new())
    }

    /// Drops the first-stage translations of pages of one PASID with a domain id.
    fn pasid_iotlb_pages(did: DomainId, pasid: u32, pages: Pages) -> Self {
        Self::pasid(Kind::PASID_IOTLB, Granularity::PASID_PAGES, did, pasid, pages)
    }

    fn iotlb(features: &Features, granularity: Granularity, did: DomainId, pages: Pages) -> Self {
        let word = Iotlb0::new()
            .with_kind(Kind::IOTLB)
            .with_granularity(granularity)
            .with_drain_writes(features.cap.dwd())
            .with_drain_reads(features.cap.drd())
            .with_did(did.get());
        Self([word.into_bits(), pages.into_bits(), 0, 0])
    }

    /// Drops all translations.
    pub(crate) fn iotlb_global(features: &Features) -> Self {
        Self::iotlb(features, Granularity::GLOBAL, DomainId::new(0), Pages::new())
    }

    /// Drops all translations with a domain id, of whatever stage.
    pub(crate) fn iotlb_domain(features: &Features, did: DomainId) -> Self {
        Self::iotlb(features, Granularity::DOMAIN, did, Pages::new())
    }

    /// Drops the second-stage translations of pages with a domain id.
    fn iotlb_pages(features: &Features, did: DomainId, pages: Pages) -> Self {
        Self::iotlb(features, Granularity::PAGES, did, pages)
    }

    /// Writes `data` to the word at `address` when everything before it has completed, and holds up what follows
    /// until then, so that status words are written in the order of their descriptors.
    pub(crate) fn wait(address: PhysAddr, data: u32) -> Self {
        let word = Wait0::new()
            .with_kind(Kind::WAIT)
            .with_status_write(true)
            .with_fence(true)
            .with_status_data(data);
        let address = Wait1::new().with_status_address(address.get() >> 2);
        Self([word.into_bits(), address.into_bits(), 0, 0])
    }
}

/// How a domain's translations are tagged on one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    /// First stage: by domain id and PASID.
    First,
    /// Second stage: by domain id.
    Second,
    /// Pass-through: as the first stage.
    PassThrough,
}

/// What a range invalidation may spend before it drops everything instead.
pub(crate) const MAX_PIECES: usize = 8;

/// An aligned block of 2^`mask` pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Block {
    page: u64,
    mask: u8,
}

/// Cuts the pages `first..=last` into aligned blocks of at most 2^`max_mask` pages that cover them exactly, the largest
/// possible first from the left; `None` if it takes more than [`MAX_PIECES`].
fn blocks(first: u64, last: u64, max_mask: u8) -> Option<([Block; MAX_PIECES], usize)> {
    let mut pieces = [Block::default(); MAX_PIECES];
    let mut next = first;
    for (index, piece) in pieces.iter_mut().enumerate() {
        let aligned = next.trailing_zeros();
        let remaining = last - next;
        // The largest power of two that is at most `remaining + 1`.
        let fitting = remaining.checked_add(1).map_or(63, u64::ilog2);
        let mask = aligned.min(fitting).min(u32::from(max_mask)).min(63) as u8;
        *piece = Block { page: next, mask };
        let covered = (1_u64 << mask) - 1;
        if remaining == covered {
            return Some((pieces, index + 1));
        }
        next += covered + 1;
    }
    None
}

/// Whether only leaf entries changed (the hint IH).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    /// Only leaves.
    Leaves,
    /// Entries that point to tables too.
    Tables,
}

/// The descriptors of one range invalidation.
pub(crate) struct RangeInvalidation {
    descriptors: [Descriptor; MAX_PIECES],
    count: usize,
}

impl RangeInvalidation {
    /// What drops the translations of `range` of a domain.
    pub(crate) fn new(
        features: &Features,
        tag: Tag,
        did: DomainId,
        range: IovaRange,
        changed: Changed,
    ) -> Self {
        let stage = match tag {
            Tag::First => Stage::Stage1,
            Tag::Second => Stage::Stage2,
            Tag::PassThrough => return Self::whole(features, tag, did),
        };
        let first = range.start().get() >> PAGE_SHIFT;
        let last = range.last().get() >> PAGE_SHIFT;
        let pieces = features.max_page_mask(stage).and_then(|mask| blocks(first, last, mask));
        let Some((pieces, count)) = pieces else {
            return Self::whole(features, tag, did);
        };
        let mut descriptors = [Descriptor::default(); MAX_PIECES];
        for (descriptor, piece) in descriptors.iter_mut().zip(pieces) {
            let pages =
                Pages::new().with_am(piece.mask).with_ih(changed == Changed::Leaves).with_addr(piece.page);
            *descriptor = match stage {
                Stage::Stage1 => Descriptor::pasid_iotlb_pages(did, RID_PASID, pages),
                Stage::Stage2 => Descriptor::iotlb_pages(features, did, pages),
            };
        }
        Self { descriptors, count }
    }

    /// What drops all translations of a domain.
    pub(crate) fn whole(features: &Features, tag: Tag, did: DomainId) -> Self {
        let mut descriptors = [Descriptor::default(); MAX_PIECES];
        descriptors[0] = translations(features, tag, did);
        Self { descriptors, count: 1 }
    }

    pub(crate) fn descriptors(&self) -> &[Descriptor] {
        self.descriptors.get(..self.count).unwrap_or(&self.descriptors)
    }
}

/// Drops the translations that a PASID-0 entry of this kind made (table 25).
fn translations(features: &Features, tag: Tag, did: DomainId) -> Descriptor {
    match tag {
        Tag::First | Tag::PassThrough => Descriptor::pasid_iotlb_all(did, RID_PASID),
        Tag::Second => Descriptor::iotlb_domain(features, did),
    }
}

/// What a change of a live PASID entry takes: the cached entry, then all that was translated with it.
pub(crate) fn pasid_entry_changed(features: &Features, tag: Tag, old: DomainId) -> [Descriptor; 2] {
    let cached = if features.cap.cm() {
        // Entries that were not present are cached too, and not under this domain id.
        Descriptor::pasid_cache_global()
    } else {
        Descriptor::pasid_cache_pasid(old, RID_PASID)
    };
    [cached, translations(features, tag, old)]
}

/// What a change of a context entry between present and not present takes, where the PASID entries behind it use one
/// domain id. It forgets everything that is tagged with that id and belongs to PASID 0.
pub(crate) fn context_changed(features: &Features, sid: u16, did: DomainId) -> [Descriptor; 4] {
    let cached = if features.cap.cm() {
        Descriptor::pasid_cache_global()
    } else {
        Descriptor::pasid_cache_domain(did)
    };
    [
        Descriptor::context_cache_device(sid),
        cached,
        Descriptor::iotlb_domain(features, did),
        Descriptor::pasid_iotlb_all(did, RID_PASID),
    ]
}

/// Everything, in the order that section 6.5 asks for.
pub(crate) fn everything(features: &Features) -> [Descriptor; 3] {
    [Descriptor::context_cache_global(), Descriptor::pasid_cache_global(), Descriptor::iotlb_global(features)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_hal::Iova;

    /// QEMU 11.1 with `scalable-mode=on,fsts=off`, plus `psi` and `mamv` as given.
    fn features(mamv: u64) -> Features {
        let cap = 0x80d2_008c_222f_0606 & !(0x3f << 48) | mamv << 48;
        Features::decode(cap, 0x0000_4800_80f0_0f4a, 39).unwrap()
    }

    const DID: DomainId = DomainId::new(0x1234);

    #[test]
    fn descriptors_have_the_bits_of_the_manual() {
        let features = features(18);
        let pages = Pages::new().with_am(9).with_ih(true).with_addr(0xabcde00);
        let cases = [
            (Descriptor::context_cache_global(), [0x11, 0]),
            (Descriptor::context_cache_device(0x00f8), [0xf8_0000_0031, 0]),
            (Descriptor::pasid_cache_global(), [0x37, 0]),
            (Descriptor::pasid_cache_domain(DID), [0x1234_0007, 0]),
            (Descriptor::pasid_cache_pasid(DID, 0xabcde), [0x000a_bcde_1234_0017, 0]),
            (Descriptor::pasid_iotlb_all(DID, 0xabcde), [0x000a_bcde_1234_0026, 0]),
            (Descriptor::pasid_iotlb_pages(DID, 0, pages), [0x1234_0036, 0xab_cde0_0049]),
            (Descriptor::iotlb_global(&features), [0xd2, 0]),
            (Descriptor::iotlb_domain(&features, DID), [0x1234_00e2, 0]),
            (
                Descriptor::wait(PhysAddr::new(0x1_0000_0004), 0xdead_beef),
                [0xdead_beef_0000_0065, 0x1_0000_0004],
            ),
        ];
        for (index, (descriptor, [low, high])) in cases.into_iter().enumerate() {
            assert_eq!(descriptor.0, [low, high, 0, 0], "case {index}");
        }
    }

    #[test]
    fn ranges_are_covered_exactly_by_aligned_blocks_or_not_at_all() {
        let mut seed = 1_u64;
        let mut random = |bound: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % bound
        };
        let mut refused = 0;
        for _ in 0..20_000 {
            let first = random(1 << 20) << random(10);
            let last = first + (random(1 << 14) >> random(14));
            let max = random(20) as u8;
            let Some((pieces, count)) = blocks(first, last, max) else {
                refused += 1;
                continue;
            };
            let mut next = first;
            for piece in pieces.iter().take(count) {
                assert!(piece.mask <= max && piece.page.trailing_zeros() >= u32::from(piece.mask));
                assert_eq!(piece.page, next);
                next += 1 << piece.mask;
            }
            assert_eq!(next, last + 1);
        }
        assert!((100..19_000).contains(&refused), "{refused}");
    }

    #[test]
    fn the_whole_address_space_is_one_block_where_the_mask_allows_it() {
        assert_eq!(
            blocks(0, (1 << 52) - 1, 52).map(|(pieces, count)| (pieces[0].mask, count)),
            Some((52, 1))
        );
        assert_eq!(
            blocks(0, u64::MAX, 63),
            Some((
                [
                    Block { page: 0, mask: 63 },
                    Block { page: 1 << 63, mask: 63 },
                    Block::default(),
                    Block::default(),
                    Block::default(),
                    Block::default(),
                    Block::default(),
                    Block::default(),
                ],
                2
            ))
        );
    }

    #[test]
    fn one_page_takes_one_descriptor_and_what_is_too_ragged_drops_the_domain() {
        let features = features(2);
        let range = |first, pages: u64| IovaRange::new(Iova::new(first), pages << 12).unwrap();
        let one = RangeInvalidation::new(&features, Tag::Second, DID, range(0x5000, 1), Changed::Leaves);
        assert_eq!(one.descriptors(), [Descriptor([0x1234_00f2, 0x5040, 0, 0])]);
        let tables =
            RangeInvalidation::new(&features, Tag::First, DID, range(0x20_0000, 512), Changed::Tables);
        assert_eq!(tables.descriptors(), [Descriptor([0x1234_0036, 0x20_0009, 0, 0])]);
        let large = RangeInvalidation::new(&features, Tag::Second, DID, range(0x1000, 64), Changed::Leaves);
        assert_eq!(large.descriptors(), [Descriptor::iotlb_domain(&features, DID)]);
    }
}
