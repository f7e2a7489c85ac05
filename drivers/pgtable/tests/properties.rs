//! Random operations against a map of pages, and against an independent decoder of the words in memory.

mod common;

use common::*;
use portcullis_hal::{
    Access, Attributes, Gather, Iova, MapError, Mapping, MemoryKind, Progress, ResizeError, TableWrites,
    Translated, UnmapError,
};
use portcullis_pgtable::{BbmLevel, Config, Format, PageTable};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Addresses and lengths in units of the format's sizes, so that they mean something in each of them.
#[derive(Clone, Debug)]
struct Spot {
    /// Where: at the bottom, around a boundary of the level above, in the middle of nowhere, at the top.
    region: u8,
    /// Large pages from there, then pages.
    large: u64,
    pages: u64,
}

#[derive(Clone, Debug)]
enum Length {
    Pages(u64),
    /// A large page's worth, less or more a few pages.
    Large(u64, i64),
}

#[derive(Clone, Debug)]
struct Piece {
    spot: Spot,
    length: Length,
    /// How far the physical address is from being aligned as the address is, in pages.
    skew: u64,
    attributes: u8,
}

#[derive(Clone, Debug)]
enum Operation {
    Map(Vec<Piece>),
    /// Whole pieces next to each other, in scattered memory.
    Scatter(Spot, Vec<u64>),
    Unmap(Spot, Length),
    /// Leaves larger than this many pages.
    Split(Spot, Length, u64),
    /// Unmaps what is not made of whole leaves.
    UnmapPart(Spot, Length),
    Join,
    Trim,
    Sync,
}

fn spot() -> impl Strategy<Value = Spot> {
    (0..4_u8, 0..3_u64, prop_oneof![Just(0), 0..6_u64]).prop_map(|(region, large, pages)| Spot {
        region,
        large,
        pages,
    })
}

fn length() -> impl Strategy<Value = Length> {
    prop_oneof![
        3 => (1..9_u64).prop_map(Length::Pages),
        2 => (1..3_u64, prop_oneof![2 => Just(0), 1 => -2..3_i64]).prop_map(|(n, d)| Length::Large(n, d)),
    ]
}

fn piece() -> impl Strategy<Value = Piece> {
    (spot(), length(), prop_oneof![3 => Just(0), 1 => 1..3_u64], 0..4_u8)
        .prop_map(|(spot, length, skew, attributes)| Piece { spot, length, skew, attributes })
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        6 => prop::collection::vec(piece(), 1..4).prop_map(Operation::Map),
        2 => (spot(), prop::collection::vec(0..64_u64, 1..20)).prop_map(|(s, v)| Operation::Scatter(s, v)),
        6 => (spot(), length()).prop_map(|(spot, length)| Operation::Unmap(spot, length)),
        2 => (spot(), length(), prop_oneof![Just(1), 1..200_u64])
            .prop_map(|(spot, length, pages)| Operation::Split(spot, length, pages)),
        2 => (spot(), length()).prop_map(|(spot, length)| Operation::UnmapPart(spot, length)),
        2 => Just(Operation::Join),
        1 => Just(Operation::Trim),
        2 => Just(Operation::Sync),
    ]
}

/// A table, what should be in it page by page, and what was unmapped since the last sync.
struct World<F: Format> {
    hal: Behind,
    table: PageTable<Behind, F>,
    pages: BTreeMap<u64, (u64, Attributes)>,
    gather: Gather,
    unsynced: Vec<u64>,
    granule: u64,
    large: u64,
}

impl<F: Format> World<F> {
    fn new(format: F, config: Config) -> Self {
        let hal = Behind::default();
        let table = PageTable::new(&hal, format, config).unwrap();
        let granule = 1 << F::GRANULE_SHIFT;
        Self {
            hal,
            table,
            pages: BTreeMap::new(),
            gather: Gather::new(),
            unsynced: Vec::new(),
            granule,
            large: granule << F::STRIDE,
        }
    }

    fn address(&self, spot: &Spot) -> u64 {
        let top = self.table.aperture().last().get() + 1;
        let upper = self.large << F::STRIDE;
        let start = match spot.region {
            0 => 0,
            1 => upper.min(top / 2) - self.large,
            2 => top / 2 + 5 * self.large,
            _ => top - 4 * self.large,
        };
        start + spot.large * self.large + spot.pages * self.granule
    }

    fn bytes(&self, length: &Length) -> u64 {
        match *length {
            Length::Pages(n) => n * self.granule,
            Length::Large(n, pages) => (n * self.large).wrapping_add_signed(pages * self.granule as i64),
        }
    }

    fn mapping(&self, piece: &Piece) -> Mapping {
        let iova = self.address(&piece.spot);
        let attributes = [
            Attributes::READ_WRITE,
            Attributes::READ,
            Attributes { access: Access::READ | Access::WRITE, memory: MemoryKind::Device },
            Attributes::READ_WRITE,
        ][piece.attributes as usize];
        // Congruent to the address modulo the large page, and in the width of the outputs.
        let phys = (iova & (self.large * 16 - 1)) + 64 * self.large + piece.skew * self.granule;
        mapping(iova, phys, self.bytes(&piece.length), attributes)
    }

    fn map(&mut self, list: &[Mapping]) {
        let top = self.table.aperture().last().get();
        let mut pages = self.pages.clone();
        let mut expected = Ok(());
        'pieces: for m in list {
            if m.iova.get() + m.memory.len() - 1 > top {
                // Reported before overlaps of later pieces only; which comes first is not promised.
                expected = Err(());
                break;
            }
            for offset in (0..m.memory.len()).step_by(self.granule as usize) {
                let at = m.memory.start().get() + offset;
                if pages.insert(m.iova.get() + offset, (at, m.attributes)).is_some() {
                    expected = Err(());
                    break 'pieces;
                }
            }
        }
        let result = self.table.map(list);
        match result {
            Ok(()) => self.pages = pages,
            Err(MapError::Overlap { iova }) => {
                let taken = self.pages.contains_key(&iova.get());
                let twice =
                    list.iter().filter(|m| range(m.iova.get(), m.memory.len()).contains(iova)).count() > 1;
                assert!(taken || twice, "{iova} is in nobody's way");
            }
            Err(MapError::OutOfRange { iova }) => {
                let beyond = |m: &Mapping| m.iova == iova && m.iova.get() + m.memory.len() - 1 > top;
                assert!(list.iter().any(beyond));
            }
            Err(error) => panic!("{error}"),
        }
        assert_eq!(result.is_ok(), expected.is_ok(), "{result:?}");
    }

    fn unmap(&mut self, start: u64, len: u64) {
        let (top, last) = (self.table.aperture().last().get(), start + len - 1);
        let range = range(start, len);
        let result = self.table.unmap(range, &mut self.gather);
        if last > top {
            assert_eq!(result, Err(UnmapError::OutOfRange { iova: Iova::new(start) }));
            return;
        }
        match result {
            Ok(bytes) => {
                let inside: Vec<u64> = self.pages.range(start..=last).map(|(&page, _)| page).collect();
                assert_eq!(bytes, inside.len() as u64 * self.granule);
                self.pages.retain(|page, _| !inside.contains(page));
                self.unsynced.extend(inside);
            }
            Err(UnmapError::Partial { iova, size }) => {
                // By the words in memory, that leaf is there and reaches out of the range.
                let leaf = leaves(self.hal.host(), &self.table.root())[&iova.get()];
                assert_eq!(leaf.size, size);
                assert!(iova.get() <= last && start < iova.get() + size);
                assert!(iova.get() < start || iova.get() + size - 1 > last);
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Does what the call asks for, with a sync after each step. `false` if the hardware cannot bear it.
    fn replace(
        &mut self,
        call: impl Fn(&PageTable<Behind, F>, &mut Gather) -> Result<Progress, ResizeError>,
    ) -> bool {
        for _ in 0..3 {
            match call(&self.table, &mut self.gather) {
                Ok(Progress::Done) => return true,
                Ok(Progress::SyncAndRepeat) => self.check(),
                Err(ResizeError::BreakBeforeMake { .. }) => return false,
                Err(error) => panic!("{error}"),
            }
            sync(&self.hal, &mut self.gather);
            self.unsynced.clear();
        }
        panic!("no end of steps")
    }

    fn split(&mut self, start: u64, len: u64, largest: u64) {
        if start + len - 1 > self.table.aperture().last().get() {
            return;
        }
        let done = self.replace(|table, gather| table.split(range(start, len), largest, gather));
        let found = leaves(self.hal.host(), &self.table.root());
        let too_large = |(&iova, leaf): (&u64, &Leaf)| {
            iova < start + len && start < iova + leaf.size && leaf.size > largest
        };
        assert!(!done || !found.iter().any(too_large));
    }

    fn unmap_part(&mut self, start: u64, len: u64) {
        if start + len - 1 > self.table.aperture().last().get() {
            return;
        }
        if self.replace(|table, gather| table.split_ends(range(start, len), gather)) {
            let before = self.pages.len();
            self.unmap(start, len);
            let left = self.pages.range(start..start + len).count();
            assert_eq!(left, 0, "refused, of {before}");
        }
    }

    /// Everything mapped is in the tables and nothing else, by the words and by the table's own answer.
    fn check(&self) {
        let mut found = BTreeMap::new();
        let root = self.table.root();
        let leaves_found = leaves(self.hal.host(), &root);
        if root.writes == TableWrites::Cleaned {
            assert_eq!(leaves(&self.hal, &root), leaves_found, "memory, against the caches");
        }
        for (&iova, leaf) in &leaves_found {
            for offset in (0..leaf.size).step_by(self.granule as usize) {
                found.insert(iova + offset, (leaf.phys + offset, leaf.access, leaf.memory));
            }
            let inside = Iova::new(iova + leaf.size / 2 + 5);
            let translated = self.table.translate(inside).unwrap();
            let expected = Translated {
                phys: portcullis_hal::PhysAddr::new(leaf.phys + leaf.size / 2 + 5),
                attributes: Attributes { access: leaf.access, memory: leaf.memory.unwrap_or_default() },
                size: leaf.size,
            };
            assert_eq!(translated, expected);
        }
        assert_eq!(found.len(), self.pages.len());
        for (page, &(phys, attributes)) in &self.pages {
            let (found_phys, access, memory) = found[page];
            assert_eq!((found_phys, access), (phys, attributes.access), "{page:#x}");
            assert!(memory.is_none_or(|memory| memory == attributes.memory));
        }
        // What is not synced lies in the range to be invalidated.
        for &page in &self.unsynced {
            assert!(self.gather.range().is_some_and(|range| range.contains(Iova::new(page))));
        }
    }

    fn run(mut self, operations: &[Operation]) {
        for operation in operations {
            match operation {
                Operation::Map(pieces) => {
                    let list: Vec<Mapping> = pieces.iter().map(|piece| self.mapping(piece)).collect();
                    self.map(&list);
                }
                Operation::Scatter(spot, frames) => {
                    let start = self.address(spot);
                    let list: Vec<Mapping> = (0..)
                        .zip(frames)
                        .map(|(i, frame)| {
                            rw(start + i * self.granule, frame * 3 * self.granule, self.granule)
                        })
                        .collect();
                    self.map(&list);
                }
                Operation::Unmap(spot, length) => self.unmap(self.address(spot), self.bytes(length)),
                Operation::Split(spot, length, pages) => {
                    self.split(self.address(spot), self.bytes(length), pages * self.granule);
                }
                Operation::UnmapPart(spot, length) => {
                    self.unmap_part(self.address(spot), self.bytes(length));
                }
                Operation::Join => {
                    let aperture = self.table.aperture();
                    self.replace(|table, gather| table.join(aperture, gather));
                }
                Operation::Trim => {
                    self.table.trim(&mut self.gather);
                    assert_eq!(self.table.trim(&mut Gather::new()), 0, "once is enough");
                }
                Operation::Sync => {
                    sync(&self.hal, &mut self.gather);
                    self.unsynced.clear();
                }
            }
            self.check();
        }
        sync(&self.hal, &mut self.gather);
        drop(self.table);
        assert_eq!(self.hal.host().frames_in_use(), 0);
    }
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) { 1 } else { cases },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn check<F: Format>(format: F, input_bits: u8) {
    let count = match F::GRANULE_SHIFT {
        12 => 100,
        14 => 16,
        _ => 4,
    };
    let operations = prop::collection::vec(operation(), if cfg!(miri) { 1..4 } else { 1..25 });
    let writes = prop_oneof![Just(TableWrites::Cached), Just(TableWrites::Cleaned)];
    // With all page sizes, without runs under a contiguous hint, or with the smallest only.
    let levels =
        (0..5).fold(0_u64, |sizes, level| sizes | 1 << (F::GRANULE_SHIFT + level * F::STRIDE).min(63));
    let sizes = prop_oneof![3 => Just(u64::MAX), 1 => Just(levels), 1 => Just(1 << F::GRANULE_SHIFT)];
    proptest!(cases(count), |(operations in operations, writes in writes, page_sizes in sizes)| {
        World::new(format, Config { writes, page_sizes, ..config(input_bits) }).run(&operations);
    });
}

macro_rules! properties {
    ($($name:ident: $format:expr, $bits:expr;)*) => {
        $(#[test]
        fn $name() {
            check($format, $bits);
        })*
    };
}

properties! {
    stage_1_4k_holds_what_was_mapped: STAGE1_4K.with_break_before_make(BbmLevel::Level2), 48;
    stage_1_4k_39_holds_what_was_mapped: STAGE1_4K.with_break_before_make(BbmLevel::Level1), 39;
    stage_1_16k_holds_what_was_mapped: STAGE1_16K.with_break_before_make(BbmLevel::Level1), 47;
    stage_1_64k_holds_what_was_mapped: STAGE1_64K, 42;
    stage_2_4k_concatenated_holds_what_was_mapped: STAGE2_4K, 40;
    stage_2_16k_holds_what_was_mapped: STAGE2_16K, 48;
    stage_1_4k_lpa2_holds_what_was_mapped: STAGE1_4K_LPA2, 52;
    stage_2_16k_lpa2_holds_what_was_mapped: STAGE2_16K_LPA2.with_break_before_make(BbmLevel::Level2), 50;
    stage_2_64k_holds_what_was_mapped: STAGE2_64K.with_break_before_make(BbmLevel::Level1), 44;
    x86_holds_what_was_mapped: X86_4, 48;
    x86_5_levels_holds_what_was_mapped: X86_5, 57;
    second_stage_3_holds_what_was_mapped: SECOND_3, 39;
    second_stage_4_holds_what_was_mapped: SECOND_4, 48;
    second_stage_5_holds_what_was_mapped: SECOND_5, 57;
}
