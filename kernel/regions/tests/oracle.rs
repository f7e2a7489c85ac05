//! Regions against a list of single pages, under random changes.

use portcullis_hal::{Access, OutOfMemory};
use portcullis_regions::{PAGE, PageRange, Region, Regions, RegionsError};
use std::collections::BTreeMap;
use std::rc::Rc;

const PAGES: u64 = 24;
const END: u64 = (PAGES + 1) * PAGE;
const RW: Access = Access::READ.union(Access::WRITE);

type Range = PageRange<END>;

/// What is kept of a page: its number, and with it whether it is still kept.
type Page = Rc<u32>;

/// The same, page by page.
type Oracle = BTreeMap<u64, (Access, Option<u32>)>;

/// A random number generator (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % limit
    }

    fn range(&mut self) -> Range {
        let first = 1 + self.below(PAGES);
        let count = 1 + self.below((PAGES + 1 - first).min(8));
        Range::new(first * PAGE, count * PAGE).unwrap()
    }

    fn access(&mut self) -> Access {
        [Access::READ, RW, Access::READ | Access::EXECUTE][self.below(3) as usize]
    }
}

/// Both say the same of every page, and the regions are in order, apart, and none is empty.
fn agree(regions: &mut Regions<Page, END>, oracle: &Oracle) {
    let ranges: Vec<Range> = regions.iter().map(Region::range).collect();
    assert!(ranges.windows(2).all(|pair| pair[0].end() <= pair[1].first()), "{ranges:?}");
    assert!(ranges.iter().all(|range| range.count() > 0 && range.end() <= END));
    for page in 0..=PAGES + 1 {
        let address = page * PAGE + page;
        let found = regions.at(address).map(|region| {
            let number = region.page_mut(address).expect("a place").as_deref().copied();
            (region.access(), number)
        });
        assert_eq!(found, oracle.get(&page).copied(), "page {page}");
    }
    let resident: usize = regions.iter().map(Region::resident).sum();
    assert_eq!(resident, oracle.values().filter(|(_, number)| number.is_some()).count());
}

/// The pages of a range, by number.
fn numbers(range: Range) -> impl Iterator<Item = u64> {
    range.pages().map(|address| address / PAGE)
}

#[test]
fn random_changes_do_to_regions_what_they_do_to_single_pages() {
    let (mut changes, mut refusals) = ([0_u32; 5], 0_u32);
    for seed in 0..200 {
        let mut random = Random(seed);
        let (mut regions, mut oracle) = (Regions::new(), Oracle::new());
        let mut kept: Vec<Page> = Vec::new();
        for _ in 0..120 {
            let (range, access) = (random.range(), random.access());
            let change = random.below(5) as usize;
            changes[change] += 1;
            match change {
                0 => {
                    let free = numbers(range).all(|page| !oracle.contains_key(&page));
                    let added = regions.add(Region::new(range, access).unwrap());
                    let expected = if free { Ok(()) } else { Err(RegionsError::Overlap(range.first())) };
                    assert_eq!(added, expected);
                    refusals += u32::from(!free);
                    if free {
                        oracle.extend(numbers(range).map(|page| (page, (access, None))));
                    }
                }
                1 => {
                    let address = range.first();
                    let number = kept.len() as u32;
                    if let Some(place) = regions.at(address).and_then(|region| region.page_mut(address)) {
                        kept.push(Rc::new(number));
                        *place = kept.last().cloned();
                        oracle.entry(address / PAGE).and_modify(|page| page.1 = Some(number));
                    }
                }
                2 => {
                    let covered = numbers(range).all(|page| oracle.contains_key(&page));
                    let expected = if covered { Ok(()) } else { Err(RegionsError::NotMapped(range.first())) };
                    assert_eq!(regions.protect(range, access), expected);
                    refusals += u32::from(!covered);
                    if covered {
                        numbers(range).for_each(|page| oracle.get_mut(&page).unwrap().0 = access);
                    }
                }
                3 => {
                    regions.cut(range).unwrap();
                    agree(&mut regions, &oracle);
                    while let Some(region) = regions.take_within(range) {
                        let theirs = region.range();
                        assert!(range.first() <= theirs.first() && theirs.end() <= range.end(), "{theirs:?}");
                    }
                    oracle.retain(|page, _| !range.contains(page * PAGE));
                }
                _ => fork(&mut regions, &oracle),
            }
            agree(&mut regions, &oracle);
        }
        // Nothing is kept but what is there, and that once.
        for (number, page) in kept.iter().enumerate() {
            let there = oracle.values().filter(|(_, kept)| *kept == Some(number as u32)).count();
            assert_eq!(Rc::strong_count(page), 1 + there, "page number {number}");
        }
    }
    assert!(changes.iter().all(|count| *count > 3000) && refusals > 3000, "{changes:?} {refusals}");
}

/// A copy has the same, shares pages and no places, and one that fails leaves everything as it was.
fn fork(regions: &mut Regions<Page, END>, oracle: &Oracle) {
    let mut seen = Vec::new();
    let mut copy = regions
        .copied(|address, page| {
            seen.push(address / PAGE);
            Ok::<_, OutOfMemory>(page.clone())
        })
        .unwrap();
    let resident = oracle.iter().filter(|(_, (_, number))| number.is_some()).map(|(page, _)| *page);
    assert_eq!(seen, resident.collect::<Vec<_>>());
    agree(&mut copy, oracle);
    // What becomes of the copy is not the first one's business.
    let all = Range::new(PAGE, PAGES * PAGE).unwrap();
    copy.cut(all).unwrap();
    while copy.take_within(all).is_some() {}
    agree(&mut copy, &Oracle::new());
    agree(regions, oracle);
    let mut left = seen.len();
    let failed = regions.copied(|_, page| {
        left -= 1;
        if left == 0 { Err(OutOfMemory) } else { Ok(page.clone()) }
    });
    assert_eq!(failed.is_err(), !seen.is_empty());
}

#[test]
fn ranges_are_whole_pages_of_user_memory() {
    let bad =
        [(0, PAGE), (PAGE, 0), (PAGE + 1, PAGE), (PAGE, PAGE + 1), (END - PAGE, 2 * PAGE), (PAGE, u64::MAX)];
    for (start, len) in bad {
        assert!(Range::new(start, len).is_err(), "{start:#x} {len:#x}");
    }
    let range = Range::new(2 * PAGE, 3 * PAGE).unwrap();
    assert_eq!((range.first(), range.last(), range.end(), range.count()), (0x2000, 0x4fff, 0x5000, 3));
    assert_eq!(Range::around(0x2fff, 0x4000), Ok(range));
    assert_eq!(Range::around(0x2000, 0x4fff), Ok(range));
    assert!(Range::around(0x3000, 0x2fff).is_err() && Range::around(0x3000, u64::MAX).is_err());
    assert!(Range::around(0, 1).is_err(), "null pointers fault");
    assert_eq!(Range::page_of(0x3abc).map(|page| page.pages().collect::<Vec<_>>()), Ok(vec![0x3000]));
    assert_eq!((range.iova().start().get(), range.iova().last().get()), (0x2000, 0x4fff));
    assert_eq!(Range::all().count() as u64, PAGES);
}

#[test]
fn ranges_overlap_in_the_pages_that_both_have() {
    let range = |first: u64, count: u64| Range::new(first * PAGE, count * PAGE).unwrap();
    for (one, other, pages) in [
        (range(2, 3), range(5, 1), 0),
        (range(2, 3), range(4, 3), 1),
        (range(2, 3), range(1, 9), 3),
        (range(2, 3), range(3, 1), 1),
    ] {
        assert_eq!((one.overlap(other), other.overlap(one)), (pages, pages));
        assert_eq!(one.overlaps(other), pages > 0);
    }
    assert!(range(2, 3).contains(0x2000) && range(2, 3).contains(0x4fff));
    assert!(!range(2, 3).contains(0x1fff) && !range(2, 3).contains(0x5000));
}
