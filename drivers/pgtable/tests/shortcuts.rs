//! The ways that most calls take, single leaves and lists of pages, do what the general ones do: in every format.

mod common;

use common::*;
use portcullis_hal::host::HostHal;
use portcullis_hal::{Attributes, Gather, Iova, MapError, Mapping, TableWrites};
use portcullis_pgtable::{Config, Format, PageTable};

fn table<F: Format>(format: F, bits: u8, writes: TableWrites) -> (HostHal, PageTable<HostHal, F>) {
    let hal = HostHal::new();
    let table = PageTable::new(&hal, format, Config { writes, ..config(bits) }).unwrap();
    (hal, table)
}

/// Twenty pages that follow each other, of memory that does not.
fn pages(page: u64) -> Vec<Mapping> {
    (0..20).map(|i| rw((4 + i) * page, (64 + 3 * i) * page, page)).collect()
}

#[test]
fn a_leaf_mapped_and_unmapped_alone_is_the_same_as_one_in_a_list() {
    fn check<F: Format>(format: F, bits: u8) {
        let (hal, alone) = table(format, bits, TableWrites::Cached);
        let (other_hal, listed) = table(format, bits, TableWrites::Cached);
        let mut sizes = leaf_sizes(&alone);
        let alone = alone.into_any();
        sizes.retain(|&size| size <= 1 << 36);
        let page = sizes[0];
        for (place, &size) in (1_u64..).zip(&sizes) {
            // The first time tables are missing, the second time they are there.
            for offset in [0, size] {
                let piece = rw(place * (128 << 30) + offset, 8 * size, size);
                alone.map(&[piece]).unwrap();
                listed.map(&[piece, rw(place * page, 0, page)]).unwrap();
                let overlap = Err(MapError::Overlap { iova: piece.iova });
                assert_eq!(alone.map(&[piece]), overlap);
                let mut gather = Gather::new();
                assert_eq!(listed.unmap(range(place * page, page), &mut gather), Ok(page));
                assert_eq!(gather.range(), Some(range(place * page, page)));
            }
        }
        assert_eq!(leaves(&hal, &alone.root()), leaves(&other_hal, &listed.root()));
        for (place, &size) in (1_u64..).zip(&sizes) {
            let mut gather = Gather::new();
            let first = place * (128 << 30);
            assert_eq!(alone.unmap(range(first, size), &mut gather), Ok(size));
            assert_eq!((gather.range(), 1 << gather.leaf_shift()), (Some(range(first, size)), size));
            // Again: nothing is there any more.
            let mut gather = Gather::new();
            assert_eq!(alone.unmap(range(first, size), &mut gather), Ok(0));
            assert_eq!((gather.range(), gather.has_tables()), (None, false));
        }
        assert_eq!(leaves(&hal, &alone.root()).len(), sizes.len());
    }
    for_each_format!(check);
}

#[test]
fn what_is_counted_for_a_table_is_right_when_it_is_cut_off() {
    fn check<F: Format>(format: F, bits: u8) {
        let (hal, table) = table(format, bits, TableWrites::Cached);
        let page = 1_u64 << F::GRANULE_SHIFT;
        table.map(&pages(page)).unwrap();
        table.map(&[rw(page, 0, page)]).unwrap();
        table.unmap(range(7 * page, page), &mut Gather::new()).unwrap();
        let mut gather = Gather::new();
        assert_eq!(table.unmap(range(0, page << F::STRIDE), &mut gather), Ok(20 * page));
        assert!(gather.has_tables());
        sync(&hal, &mut gather);
    }
    for_each_format!(check);
}

#[test]
fn a_list_of_pages_in_which_one_is_wrong_changes_nothing() {
    fn check<F: Format>(format: F, bits: u8) {
        let (hal, table) = table(format, bits, TableWrites::Cached);
        let page = 1_u64 << F::GRANULE_SHIFT;
        let list = pages(page);
        let taken = rw(list[13].iova.get(), 0, page);
        table.map(&[taken]).unwrap();
        let before = leaves(&hal, &table.root());
        assert_eq!(table.map(&list), Err(MapError::Overlap { iova: taken.iova }));
        let (iova, phys) = (list[9].iova, list[9].memory.start().get());
        let beyond = 1_u64 << table.root().output_bits;
        let wrong = [
            (rw(iova.get(), phys + 8, page), MapError::Misaligned { iova }),
            (rw(iova.get(), phys, page / 2), MapError::Misaligned { iova }),
            (rw(iova.get(), beyond, page), MapError::OutOfRange { iova }),
            // Overlaps the piece before it, which is not in the table yet.
            (rw(list[8].iova.get(), phys, page), MapError::Overlap { iova: list[8].iova }),
        ];
        for (piece, error) in wrong {
            let mut list = list[..13].to_vec();
            list[9] = piece;
            assert_eq!(table.map(&list), Err(error), "{piece:x?}");
        }
        assert_eq!(leaves(&hal, &table.root()), before);
    }
    for_each_format!(check);
}

#[test]
fn attributes_may_change_from_page_to_page_of_a_list() {
    fn check<F: Format>(format: F, bits: u8) {
        let (_, table) = table(format, bits, TableWrites::Cached);
        let page = 1_u64 << F::GRANULE_SHIFT;
        let mut list = pages(page);
        for piece in list.iter_mut().skip(5).step_by(3) {
            piece.attributes = Attributes::READ;
        }
        table.map(&list).unwrap();
        for piece in &list {
            let found = table.translate(Iova::new(piece.iova.get() + 5)).unwrap();
            assert_eq!(
                (found.attributes, found.phys.get() - 5),
                (piece.attributes, piece.memory.start().get())
            );
        }
    }
    for_each_format!(check);
}

#[test]
fn a_walker_that_does_not_snoop_finds_single_leaves_and_lists_in_memory() {
    fn check<F: Format>(format: F, bits: u8) {
        let (hal, table) = table(format, bits, TableWrites::Cleaned);
        let page = 1_u64 << F::GRANULE_SHIFT;
        table.map(&[rw(0, 0, page)]).unwrap();
        let lines = |work: &dyn Fn()| {
            let before = hal.cleaned_lines();
            work();
            hal.cleaned_lines() - before
        };
        assert_eq!(lines(&|| table.map(&[rw(page, page, page)]).unwrap()), 1);
        assert_eq!(lines(&|| assert_eq!(table.unmap(range(page, page), &mut Gather::new()), Ok(page))), 1);
        // Entries 4 to 23: the second half of a line, and two more.
        assert_eq!(lines(&|| table.map(&pages(page)).unwrap()), 3);
    }
    for_each_format!(check);
}

#[test]
fn pages_of_one_table_are_mapped_and_cut_off_as_in_a_list() {
    fn check<F: Format>(format: F, bits: u8) {
        let (hal, table) = table(format, bits, TableWrites::Cleaned);
        let page = 1_u64 << F::GRANULE_SHIFT;
        let large = page << F::STRIDE;
        let frames = (page / 4096) as usize;
        // The tables on the way are there, that for the pages is not.
        table.map(&[rw(0, 0, page)]).unwrap();
        let root = table.root();
        let pieces = [(1, 16), (0, large / page), (3, 1), (5, 40), (large / page - 2, 2)];
        // Miri takes a thousand times as long.
        for (first, count) in pieces.into_iter().take(if cfg!(miri) { 1 } else { pieces.len() }) {
            let (at, len) = (24 * large + first * page, count * page);
            let before = hal.frames_in_use();
            let piece = rw(at, 7 * page, len);
            hal.fail_after(0);
            let short = table.map(&[piece]);
            hal.fail_never();
            assert_eq!(short, Err(MapError::OutOfMemory(portcullis_hal::OutOfMemory)));
            table.map(&[piece]).unwrap();
            let found = leaves(&hal, &root);
            assert_eq!(found.range(24 * large..).map(|(_, leaf)| leaf.size).sum::<u64>(), len);
            for i in [0, count / 2, count - 1] {
                let found = table.translate(Iova::new(at + i * page)).unwrap();
                assert_eq!(found.phys.get(), (7 + i) * page);
            }
            // The last page of it again.
            let last = Iova::new(at + len - page);
            assert_eq!(table.map(&[rw(last.get(), 0, page)]), Err(MapError::Overlap { iova: last }));
            assert_eq!(leaves(&hal, &root), found);

            // Cut off, though the rest of it was empty.
            let mut gather = Gather::new();
            assert_eq!(table.unmap(range(24 * large, large), &mut gather), Ok(len));
            assert_eq!((gather.range(), gather.table_count()), (Some(range(24 * large, large)), 1));
            assert_eq!(1 << gather.leaf_shift(), page);
            assert_eq!(hal.frames_in_use(), before + frames);
            sync(&hal, &mut gather);
            assert_eq!(hal.frames_in_use(), before);
            assert_eq!(table.unmap(range(24 * large, large), &mut gather), Ok(0));
            assert_eq!(gather.range(), None);
        }
        // What is wrong with a piece is said as in a list.
        let wrong = [
            (rw(page / 2, 0, page), MapError::Misaligned { iova: Iova::new(page / 2) }),
            (rw(page, page / 2, 2 * page), MapError::Misaligned { iova: Iova::new(page) }),
            (rw(page, 1 << root.output_bits, 2 * page), MapError::OutOfRange { iova: Iova::new(page) }),
            (rw(1 << 60, 0, 2 * page), MapError::OutOfRange { iova: Iova::new(1 << 60) }),
        ];
        for (piece, error) in wrong {
            assert_eq!(table.map(&[piece]), Err(error));
        }
        assert_eq!(leaves(&hal, &root).len(), 1);
    }
    for_each_format!(check);
}
