//! Invalidation requests: the descriptors themselves, and which of them an invalidation takes.

use crate::features::Features;
use crate::pieces::{Block, PAGE_SHIFT, Pieces};
use crate::spec::descriptors::{
    ContextCache0, DeviceTlb0, DeviceTlb1, Granularity, Iotlb0, Kind, Pages, Pasid0, PasidDeviceTlb0,
    PasidDeviceTlb1, Wait0, Wait1,
};
use crate::spec::page_requests::{GroupResponse0, GroupResponse1, ResponseCode};
use portcullis_hal::{DomainId, Iova, IovaRange, Pasid, PhysAddr};
use portcullis_iommu::{GroupIndex, Stage};

/// The lower half of a 256-bit descriptor; the upper one is reserved in all that are used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Descriptor(pub(crate) [u64; 2]);

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
    /// The TLBs of devices, which are filled from all of them.
    Devices,
    /// No cache: page requests on their way, and the answers to them.
    PageRequests,
}

/// The PASID entry that serves requests without PASID: RID_PASID is 0 in all context entries.
pub(crate) const RID_PASID: u32 = 0;

impl Descriptor {
    /// What it invalidates.
    #[inline]
    pub(crate) fn cache(self) -> Cache {
        let [low, _] = self.0;
        match ContextCache0::from_bits(low).kind() {
            Kind::CONTEXT_CACHE => Cache::Contexts,
            Kind::PASID_CACHE => Cache::Pasids,
            Kind::DEVICE_TLB | Kind::PASID_DEVICE_TLB => Cache::Devices,
            Kind::GROUP_RESPONSE | Kind::WAIT => Cache::PageRequests,
            _ => Cache::Translations,
        }
    }

    pub(crate) fn is_for_device(self) -> bool {
        self.cache() == Cache::Devices
    }

    fn context_cache(granularity: Granularity, sid: u16) -> Self {
        let word =
            ContextCache0::new().with_kind(Kind::CONTEXT_CACHE).with_granularity(granularity).with_sid(sid);
        Self([word.into_bits(), 0])
    }

    /// Drops all cached context entries.
    pub(crate) fn context_cache_global() -> Self {
        Self::context_cache(Granularity::GLOBAL, 0)
    }

    /// Drops the cached context entry of one requester.
    pub(crate) fn context_cache_device(sid: u16) -> Self {
        Self::context_cache(Granularity::DEVICE, sid)
    }

    fn pasid(kind: Kind, granularity: Granularity, did: DomainId, pasid: u32) -> Self {
        let word =
            Pasid0::new().with_kind(kind).with_granularity(granularity).with_did(did.get()).with_pasid(pasid);
        Self([word.into_bits(), 0])
    }

    /// Drops all cached PASID entries.
    pub(crate) fn pasid_cache_global() -> Self {
        let none = DomainId::new(0);
        Self::pasid(Kind::PASID_CACHE, Granularity::PASID_CACHE_GLOBAL, none, 0)
    }

    /// Drops the cached PASID entries with a domain id.
    pub(crate) fn pasid_cache_domain(did: DomainId) -> Self {
        Self::pasid(Kind::PASID_CACHE, Granularity::PASID_CACHE_DOMAIN, did, 0)
    }

    /// Drops the cached entries of one PASID with a domain id.
    pub(crate) fn pasid_cache_pasid(did: DomainId, pasid: u32) -> Self {
        Self::pasid(Kind::PASID_CACHE, Granularity::PASID_CACHE_PASID, did, pasid)
    }

    /// Drops the first-stage and pass-through translations of one PASID with a domain id.
    pub(crate) fn pasid_iotlb_all(did: DomainId, pasid: u32) -> Self {
        Self::pasid(Kind::PASID_IOTLB, Granularity::PASID_ALL, did, pasid)
    }

    /// Drops the first-stage translations of pages of one PASID with a domain id; the pages are yet to be filled in.
    fn pasid_iotlb_pages(did: DomainId, pasid: u32) -> Self {
        Self::pasid(Kind::PASID_IOTLB, Granularity::PASID_PAGES, did, pasid)
    }

    fn iotlb(features: &Features, granularity: Granularity, did: DomainId) -> Self {
        let word = Iotlb0::new()
            .with_kind(Kind::IOTLB)
            .with_granularity(granularity)
            .with_drain_writes(features.cap.dwd())
            .with_drain_reads(features.cap.drd())
            .with_did(did.get());
        Self([word.into_bits(), 0])
    }

    /// Drops all translations.
    pub(crate) fn iotlb_global(features: &Features) -> Self {
        Self::iotlb(features, Granularity::GLOBAL, DomainId::new(0))
    }

    /// Drops all translations with a domain id, of whatever stage.
    pub(crate) fn iotlb_domain(features: &Features, did: DomainId) -> Self {
        Self::iotlb(features, Granularity::DOMAIN, did)
    }

    /// Drops the second-stage translations of pages with a domain id; the pages are yet to be filled in.
    fn iotlb_pages(features: &Features, did: DomainId) -> Self {
        Self::iotlb(features, Granularity::PAGES, did)
    }

    /// The same descriptor for a tag.
    #[inline]
    const fn with_tag(self, tag: TagWord) -> Self {
        let Self([low, high]) = self;
        Self([low | tag.0, high])
    }

    /// The same descriptor for the pages of a block.
    #[inline]
    const fn with_pages(self, block: Block, changed: Changed) -> Self {
        let Self([low, high]) = self;
        let pages = block.mask as u64 | changed.hint();
        Self([low, high.wrapping_add(block.start).wrapping_add(pages)])
    }

    /// Drops the translations without PASID of `range`, or all, from a device's TLB.
    pub(crate) fn device_tlb(features: &Features, sid: u16, range: Option<IovaRange>) -> Self {
        let [pfsid_lo, pfsid_hi] = pfsid(features, sid);
        let word = DeviceTlb0::new()
            .with_kind(Kind::DEVICE_TLB)
            .with_mip(ONE_AT_A_TIME)
            .with_sid(sid)
            .with_pfsid_lo(pfsid_lo as u8)
            .with_pfsid_hi(pfsid_hi);
        let (page, size) = device_pages(range);
        let pages = DeviceTlb1::new().with_s(size).with_addr(page);
        Self([word.into_bits(), pages.into_bits()])
    }

    /// Drops the translations with a PASID of `range`, or all, from a device's TLB.
    pub(crate) fn pasid_device_tlb(
        features: &Features,
        sid: u16,
        pasid: u32,
        range: Option<IovaRange>,
    ) -> Self {
        let [pfsid_lo, pfsid_hi] = pfsid(features, sid);
        let word = PasidDeviceTlb0::new()
            .with_kind(Kind::PASID_DEVICE_TLB)
            .with_mip(ONE_AT_A_TIME)
            .with_sid(sid)
            .with_pasid(pasid)
            .with_pfsid_lo(pfsid_lo as u8)
            .with_pfsid_hi(pfsid_hi);
        let (page, size) = device_pages(range);
        let pages = PasidDeviceTlb1::new().with_s(size).with_addr(page);
        Self([word.into_bits(), pages.into_bits()])
    }

    /// Drops the translations with any PASID from a device's TLB.
    pub(crate) fn all_pasids_device_tlb(features: &Features, sid: u16) -> Self {
        let Self([low, high]) = Self::pasid_device_tlb(features, sid, 0, None);
        Self([low, PasidDeviceTlb1::from_bits(high).with_g(true).into_bits()])
    }

    /// Writes a word to `address` when everything before it has completed, and holds up what follows until then, so
    /// that status words are written in the order of their descriptors. The word is yet to be filled in.
    pub(crate) fn wait(address: PhysAddr) -> Self {
        let word = Wait0::new().with_kind(Kind::WAIT).with_status_write(true).with_fence(true);
        let address = Wait1::new().with_status_address(address.get() >> 2);
        Self([word.into_bits(), address.into_bits()])
    }

    /// The same wait descriptor, with the word that it writes.
    #[inline]
    pub(crate) const fn with_status(self, data: u32) -> Self {
        let Self([low, high]) = self;
        Self([low | (data as u64) << 32, high])
    }

    /// Writes `data` to the word at `address` when, besides, all page requests that the unit has got are in their queue,
    /// or answered for want of room. Of use only behind invalidations of the TLBs of the devices that asked.
    pub(crate) fn drain(address: PhysAddr, data: u32) -> Self {
        let Self([low, address]) = Self::wait(address).with_status(data);
        Self([Wait0::from_bits(low).with_drain_page_requests(true).into_bits(), address])
    }

    /// Drops no translation: no domain has this id.
    pub(crate) fn iotlb_nothing(features: &Features) -> Self {
        Self::iotlb_domain(features, DomainId::new(0))
    }

    /// Drops the least that can be dropped from a device's TLB.
    pub(crate) fn device_tlb_page(features: &Features, sid: u16) -> Self {
        Self::device_tlb(features, sid, IovaRange::new(Iova::new(0), 1 << PAGE_SHIFT).ok())
    }

    /// Answers a group of page requests.
    pub(crate) fn group_response(
        sid: u16,
        pasid: Option<Pasid>,
        group: GroupIndex,
        code: ResponseCode,
    ) -> Self {
        let word = GroupResponse0::new()
            .with_kind(Kind::GROUP_RESPONSE)
            .with_pp(pasid.is_some())
            .with_code(code)
            .with_rid(sid)
            .with_pasid(pasid.map_or(0, Pasid::get));
        let group = GroupResponse1::new().with_prgi(group.get());
        Self([word.into_bits(), group.into_bits()])
    }
}

// What is put together by hand where it has to be quick.
const _: () = {
    assert!(Pages::new().with_addr(1).into_bits() == 1 << PAGE_SHIFT);
    assert!(Pages::new().with_ih(true).into_bits() == Changed::Leaves.hint());
    assert!(Pages::new().with_am(0x3f).into_bits() == 0x3f);
    assert!(Wait0::new().with_status_data(1).into_bits() == 1 << 32);
    assert!(Pasid0::new().with_did(u16::MAX).with_pasid(1).into_bits() == 0xffff_0000 | 1 << 32);
    assert!(Iotlb0::new().with_did(u16::MAX).into_bits() == 0xffff_0000);
};

/// MIP, how many invalidations a device is sent before it has answered one: nobody says here how many it takes.
const ONE_AT_A_TIME: u8 = 1;

/// The halves of PFSID, the source-id of the physical function: of the requester itself, taken for one. It only keeps
/// invalidations of one device's functions from overrunning it, and is reserved without ECAP_REG.DIT.
fn pfsid(features: &Features, sid: u16) -> [u16; 2] {
    let pfsid = if features.ecap.dit() { sid } else { 0 };
    [pfsid & 0xf, pfsid >> 4]
}

/// ADDR and S of a device-TLB invalidation: the smallest aligned block that holds `range`. The lowest bit of ADDR that is
/// clear says how large it is, as in ATS.
fn device_pages(range: Option<IovaRange>) -> (u64, bool) {
    /// All pages: 2^52.
    const ALL: u64 = (1 << 51) - 1;
    let Some(range) = range else { return (ALL, true) };
    let (first, last) = (range.start().get() >> PAGE_SHIFT, range.last().get() >> PAGE_SHIFT);
    match 64 - (first ^ last).leading_zeros() {
        0 => (first, false),
        bits @ 1..52 => (first >> bits << bits | ((1 << (bits - 1)) - 1), true),
        _ => (ALL, true),
    }
}

/// What tags translations besides the domain id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TagKind {
    /// First stage: the PASID.
    FirstStage,
    /// Second stage: nothing.
    SecondStage,
    /// Pass-through: as the first stage.
    PassThrough,
}

impl TagKind {
    pub(crate) const fn is_tagged_by_pasid(self) -> bool {
        !matches!(self, Self::SecondStage)
    }
}

/// How the PASID entry that leads to a domain, and the translations that it makes, are tagged on one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) kind: TagKind,
    pub(crate) did: DomainId,
    /// The PASID of the entry.
    pub(crate) pasid: u32,
}

impl Tag {
    /// The tag of the translations alone: for the second stage the same at any PASID.
    pub(crate) const fn of_translations(self) -> Self {
        let pasid = if self.kind.is_tagged_by_pasid() { self.pasid } else { 0 };
        Self { pasid, ..self }
    }
}

/// The domain id and the PASID of a tag, as descriptors have them: in bits 31:16 and 51:32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct TagWord(pub(crate) u64);

impl TagWord {
    /// The word of the tag of translations.
    pub(crate) const fn new(tag: Tag) -> Self {
        let tag = tag.of_translations();
        Self((tag.did.get() as u64) << 16 | (tag.pasid as u64) << 32)
    }

    /// The tag.
    pub(crate) const fn tag(self, kind: TagKind) -> Tag {
        Tag { kind, did: DomainId::new((self.0 >> 16) as u16), pasid: (self.0 >> 32) as u32 }
    }
}

/// Whether only leaf entries changed (the hint IH).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    /// Only leaves.
    Leaves = HINT,
    /// Entries that point to tables too.
    Tables = 0,
}

/// IH, in its place.
const HINT: isize = 1 << 6;

impl Changed {
    /// IH, in its place.
    const fn hint(self) -> u64 {
        self as u64
    }
}

/// What drops translations of one kind from one unit; the tag is yet to be filled in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Invalidation {
    all: Descriptor,
    /// For pages, and the most pages of one descriptor as a power of two; `None` if all have to be dropped.
    pages: Option<(Descriptor, u8)>,
}

impl Invalidation {
    pub(crate) fn new(features: &Features, kind: TagKind) -> Self {
        let (did, pasid) = (DomainId::new(0), 0);
        let pages = match kind {
            TagKind::FirstStage => Some((Stage::Stage1, Descriptor::pasid_iotlb_pages(did, pasid))),
            TagKind::SecondStage => Some((Stage::Stage2, Descriptor::iotlb_pages(features, did))),
            TagKind::PassThrough => None,
        };
        let pages = pages.and_then(|(stage, template)| Some((template, features.max_page_mask(stage)?)));
        Self { all: translations(features, Tag { kind, did, pasid }), pages }
    }

    /// What drops the translations of `range`, or all.
    pub(crate) fn of(&self, tag: TagWord, range: Option<IovaRange>, changed: Changed) -> RangeInvalidation {
        if let (Some((template, mask)), Some(range)) = (self.pages, range)
            && let Some(pieces) = Pieces::new(first_page(&range), last_page(&range), mask)
        {
            return RangeInvalidation { template: template.with_tag(tag), changed, pieces };
        }
        // Its words for the page and the mask are reserved.
        let template = self.all.with_tag(tag);
        RangeInvalidation { template, changed: Changed::Tables, pieces: Pieces::FIRST_PAGE }
    }

    /// What drops pages with a tag, if that need not drop all others, too, and how many masks that can have.
    pub(crate) fn of_pages(&self, tag: TagWord) -> Option<(PageWord, u32)> {
        let (Descriptor([low, _]), max_mask) = self.pages?;
        Some((PageWord(low | tag.0), u32::from(max_mask) + 1))
    }
}

/// The lower half of a descriptor that drops pages, prepared for those who unmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageWord(pub(crate) u64);

impl PageWord {
    /// The descriptor that drops the pages in `range` and no others, if one with so many masks does.
    #[inline]
    pub(crate) fn exactly(self, range: IovaRange, masks: u32, changed: Changed) -> Option<Descriptor> {
        let block = Block::exactly(range.start().get(), range.last().get(), masks)?;
        Some(Descriptor([self.0, 0]).with_pages(block, changed))
    }
}

#[inline]
fn first_page(range: &IovaRange) -> u64 {
    range.start().get() >> PAGE_SHIFT
}

#[inline]
fn last_page(range: &IovaRange) -> u64 {
    range.last().get() >> PAGE_SHIFT
}

/// The descriptors of one range invalidation, at most [`MOST`](crate::pieces::MOST), made as they are asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RangeInvalidation {
    /// What is the same in all, with the page and the mask left out.
    template: Descriptor,
    changed: Changed,
    pieces: Pieces,
}

impl RangeInvalidation {
    /// How many descriptors are left.
    #[inline]
    pub(crate) fn left(&self) -> u8 {
        self.pieces.left()
    }
}

impl Iterator for RangeInvalidation {
    type Item = Descriptor;

    #[inline]
    fn next(&mut self) -> Option<Descriptor> {
        Some(self.template.with_pages(self.pieces.next()?, self.changed))
    }
}

/// Drops the translations with a tag (table 25).
fn translations(features: &Features, Tag { kind, did, pasid }: Tag) -> Descriptor {
    if kind.is_tagged_by_pasid() {
        Descriptor::pasid_iotlb_all(did, pasid)
    } else {
        Descriptor::iotlb_domain(features, did)
    }
}

/// What a change of a live PASID entry takes: the cached entry, then all that was translated with it.
pub(crate) fn pasid_entry_changed(features: &Features, old: Tag) -> [Descriptor; 2] {
    let cached = if features.cap.cm() {
        // Entries that were not present are cached too, and not under this domain id.
        Descriptor::pasid_cache_global()
    } else {
        Descriptor::pasid_cache_pasid(old.did, old.pasid)
    };
    [cached, translations(features, old)]
}

/// What a change of a context entry between present and not present takes, where one PASID entry behind it is in use. It
/// forgets everything that is tagged as that one.
pub(crate) fn context_changed(features: &Features, sid: u16, tag: Tag) -> [Descriptor; 4] {
    let cached = if features.cap.cm() {
        Descriptor::pasid_cache_global()
    } else {
        Descriptor::pasid_cache_domain(tag.did)
    };
    [
        Descriptor::context_cache_device(sid),
        cached,
        Descriptor::iotlb_domain(features, tag.did),
        Descriptor::pasid_iotlb_all(tag.did, tag.pasid),
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
    const FIRST: Tag = Tag { kind: TagKind::FirstStage, did: DID, pasid: 0x5_4321 };
    const SECOND: Tag = Tag { kind: TagKind::SecondStage, did: DID, pasid: 0x5_4321 };

    #[test]
    fn descriptors_have_the_bits_of_the_manual() {
        let features = features(18);
        let pages = Block { start: 0xab_cde0_0000, mask: 9 };
        let cases = [
            (Descriptor::context_cache_global(), [0x11, 0]),
            (Descriptor::context_cache_device(0x00f8), [0xf8_0000_0031, 0]),
            (Descriptor::pasid_cache_global(), [0x37, 0]),
            (Descriptor::pasid_cache_domain(DID), [0x1234_0007, 0]),
            (Descriptor::pasid_cache_pasid(DID, 0xabcde), [0x000a_bcde_1234_0017, 0]),
            (Descriptor::pasid_iotlb_all(DID, 0xabcde), [0x000a_bcde_1234_0026, 0]),
            (
                Descriptor::pasid_iotlb_pages(DID, 0).with_pages(pages, Changed::Leaves),
                [0x1234_0036, 0xab_cde0_0049],
            ),
            (
                Descriptor::iotlb_pages(&features, DID).with_pages(pages, Changed::Tables),
                [0x1234_00f2, 0xab_cde0_0009],
            ),
            (Descriptor::iotlb_global(&features), [0xd2, 0]),
            (Descriptor::iotlb_domain(&features, DID), [0x1234_00e2, 0]),
            (
                Descriptor::wait(PhysAddr::new(0x1_0000_0004)).with_status(0xdead_beef),
                [0xdead_beef_0000_0065, 0x1_0000_0004],
            ),
        ];
        for (index, (descriptor, words)) in cases.into_iter().enumerate() {
            assert_eq!(descriptor.0, words, "case {index}");
        }
    }

    #[test]
    fn one_page_takes_one_descriptor_and_what_is_too_ragged_drops_the_domain() {
        let features = features(2);
        let range = |first, pages: u64| IovaRange::new(Iova::new(first), pages << 12).unwrap();
        let made = |features: &Features, tag: Tag, range, changed| {
            let (invalidation, word) = (Invalidation::new(features, tag.kind), TagWord::new(tag));
            let made: Vec<_> = invalidation.of(word, Some(range), changed).map(|made| made.0).collect();
            if let Some((page_word, masks)) = invalidation.of_pages(word)
                && let Some(exact) = page_word.exactly(range, masks, changed)
            {
                assert_eq!(made, [exact.0]);
            }
            made
        };
        let one = made(&features, SECOND, range(0x5000, 1), Changed::Leaves);
        assert_eq!(one, [[0x1234_00f2, 0x5040]]);
        let tables = made(&features, FIRST, range(0x20_0000, 512), Changed::Tables);
        assert_eq!(tables, [[0x5_4321_1234_0036, 0x20_0009]]);
        let both_sides = made(&features, FIRST, range(0x1f_f000, 2), Changed::Leaves);
        assert_eq!(both_sides, [0x1f_f040, 0x20_0040].map(|high| [0x5_4321_1234_0036, high]));
        let large = made(&features, SECOND, range(0x1000, 64), Changed::Leaves);
        assert_eq!(large, [Descriptor::iotlb_domain(&features, DID).0]);
        let cap = features.cap.with_psi(false).into_bits();
        let without = Features::decode(cap, features.ecap.into_bits(), 39).unwrap();
        let none = made(&without, SECOND, range(0x5000, 1), Changed::Leaves);
        assert_eq!(none, [Descriptor::iotlb_domain(&features, DID).0]);
        let exact = made(&without, FIRST, range(0x5000, 3), Changed::Leaves);
        assert_eq!(exact.len(), 2, "the first stage has it always");
    }
}
