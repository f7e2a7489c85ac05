//! Apertures, sizes, refusals, and memory that runs out: in every format.

mod common;

use common::*;
use portcullis_hal::host::HostHal;
use portcullis_hal::{Gather, Iova, MapError, OutOfMemory, PhysAddr, TableWrites, UnmapError};
use portcullis_pgtable::{Config, ConfigError, Format, PageTable};

fn table<F: Format>(format: F, bits: u8) -> (HostHal, PageTable<HostHal, F>) {
    let hal = HostHal::new();
    let table = PageTable::new(&hal, format, config(bits)).unwrap();
    (hal, table)
}

#[test]
fn the_first_and_the_last_page_of_the_aperture_can_be_mapped_and_nothing_beyond() {
    fn check<F: Format>(format: F, bits: u8) {
        let (hal, table) = table(format, bits);
        let page = 1_u64 << F::GRANULE_SHIFT;
        let last = table.aperture().last().get() + 1 - page;
        table.map(&[rw(0, 0x100_0000, page), rw(last, 0x200_0000, page)]).unwrap();
        let found = leaves(&hal, &table.root());
        assert_eq!(
            found.iter().map(|(&iova, leaf)| (iova, leaf.phys)).collect::<Vec<_>>(),
            [(0, 0x100_0000), (last, 0x200_0000)]
        );
        let beyond = last + page;
        let out = |iova| Err(MapError::OutOfRange { iova: Iova::new(iova) });
        assert_eq!(table.map(&[rw(beyond, 0, page)]), out(beyond));
        assert_eq!(table.map(&[rw(last - page, 0, 3 * page)]), out(last - page));
        assert_eq!(table.map(&[rw(u64::MAX - page + 1, 0, page)]), out(u64::MAX - page + 1));
        assert_eq!(table.map(&[rw(u64::MAX - page + 1, 0, 2 * page)]), out(u64::MAX - page + 1));
        assert_eq!(table.translate(Iova::new(beyond)), None);
        assert_eq!(
            table.unmap(range(last, 2 * page), &mut Gather::new()),
            Err(UnmapError::OutOfRange { iova: Iova::new(last) })
        );
        let mut gather = Gather::new();
        assert_eq!(table.unmap(table.aperture(), &mut gather), Ok(2 * page));
        assert_eq!(gather.leaf_shift(), F::GRANULE_SHIFT as u8);
        sync(&hal, &mut gather);
        assert!(leaves(&hal, &table.root()).is_empty());
    }
    for_each_format!(check);
}

#[test]
fn the_largest_page_is_used_where_alignment_length_and_configuration_permit() {
    fn check<F: Format>(format: F, bits: u8) {
        let (hal, table) = table(format, bits);
        let page = 1_u64 << F::GRANULE_SHIFT;
        let sizes: Vec<u64> =
            (0..64).map(|bit| 1 << bit).filter(|size| table.page_sizes() & size != 0).collect();
        let &largest = sizes.last().unwrap();
        // One page below a large page, the largest page, one page above.
        table.map(&[rw(largest - page, largest - page, largest + 2 * page)]).unwrap();
        let found: Vec<_> =
            leaves(&hal, &table.root()).iter().map(|(&iova, leaf)| (iova, leaf.size)).collect();
        assert_eq!(found, [(largest - page, page), (largest, largest), (2 * largest, page)]);
        let translated = table.translate(Iova::new(largest + 0x123)).unwrap();
        assert_eq!((translated.phys, translated.size), (PhysAddr::new(largest + 0x123), largest));

        // A part of it cannot go, and the refusal changes nothing.
        let mut gather = Gather::new();
        for part in [range(largest, page), range(2 * largest - page, 2 * page), range(0, largest + page)] {
            assert_eq!(
                table.unmap(part, &mut gather),
                Err(UnmapError::Partial { iova: Iova::new(largest), size: largest })
            );
        }
        assert_eq!((gather.range(), gather.has_tables()), (None, false));
        assert_eq!(leaves(&hal, &table.root()).len(), 3);

        // The whole of it can, and the gather says that no smaller page was among it.
        assert_eq!(table.unmap(range(largest, largest), &mut gather), Ok(largest));
        assert_eq!(gather.range(), Some(range(largest, largest)));
        assert_eq!(1_u64 << gather.leaf_shift(), largest);
    }
    for_each_format!(check);
}

#[test]
fn pieces_at_the_same_offset_of_different_tables_are_told_apart() {
    fn check<F: Format>(format: F, bits: u8) {
        let (hal, table) = table(format, bits);
        let page = 1_u64 << F::GRANULE_SHIFT;
        let large = page << F::STRIDE;
        // Addresses that differ in one bit: the lowest index bit of each level, and back.
        let upper = (large << F::STRIDE).min(1 << (bits - 2));
        let places = [0, large, large | upper, upper, upper | (2 * large), 2 * large];
        let list: Vec<_> = (1..).zip(places).map(|(i, place)| rw(place + page, i * page, page)).collect();
        table.map(&list).unwrap();
        let mut expected: Vec<_> = list.iter().map(|m| (m.iova.get(), m.memory.start().get())).collect();
        expected.sort();
        let found: Vec<_> =
            leaves(&hal, &table.root()).iter().map(|(&iova, leaf)| (iova, leaf.phys)).collect();
        assert_eq!(found, expected);
        for m in &list {
            assert_eq!(table.unmap(range(m.iova.get(), page), &mut Gather::new()), Ok(page));
        }
        assert!(leaves(&hal, &table.root()).is_empty());
    }
    for_each_format!(check);
}

#[test]
fn page_sizes_that_are_not_allowed_are_not_used() {
    fn check<F: Format>(format: F, bits: u8) {
        let hal = HostHal::new();
        let page = 1_u64 << F::GRANULE_SHIFT;
        let make = |page_sizes| PageTable::new(&hal, format, Config { page_sizes, ..config(bits) });
        let small = make(page | 0x800).unwrap();
        assert_eq!(small.page_sizes(), page);
        let large = page << F::STRIDE;
        small.map(&[rw(large, large, large)]).unwrap();
        assert_eq!(leaves(&hal, &small.root()).len() as u64, large / page);
        assert_eq!(make(large).unwrap_err(), ConfigError::PageSizes(large));
    }
    for_each_format!(check);
}

#[test]
fn what_is_misaligned_or_beyond_the_output_width_is_refused() {
    fn check<F: Format>(format: F, bits: u8) {
        let (hal, table) = table(format, bits);
        let page = 1_u64 << F::GRANULE_SHIFT;
        for (iova, phys, len) in
            [(1, 0, page), (0, page / 2, page), (0, 0, page - 1), (page / 2, page / 2, page)]
        {
            let misaligned = Err(MapError::Misaligned { iova: Iova::new(iova) });
            assert_eq!(table.map(&[rw(iova, phys, len)]), misaligned);
        }
        let top = 1 << 48;
        let out = Err(MapError::OutOfRange { iova: Iova::new(page) });
        assert_eq!(table.map(&[rw(page, top, page)]), out);
        assert_eq!(table.map(&[rw(page, top - page, 2 * page)]), out);
        let misaligned = Err(UnmapError::Misaligned { iova: Iova::new(page / 2) });
        assert_eq!(table.unmap(range(page / 2, page), &mut Gather::new()), misaligned);
        assert!(table.unmap(range(page, page / 2), &mut Gather::new()).is_err());
        assert!(leaves(&hal, &table.root()).is_empty());
        table.map(&[rw(page, top - page, page)]).unwrap();
        assert_eq!(table.translate(Iova::new(page)).unwrap().phys, PhysAddr::new(top - page));
    }
    for_each_format!(check);
}

#[test]
fn a_list_is_mapped_as_a_whole_or_not_at_all() {
    fn check<F: Format>(format: F, bits: u8) {
        let (hal, table) = table(format, bits);
        let page = 1_u64 << F::GRANULE_SHIFT;
        let large = page << F::STRIDE;
        table.map(&[rw(large + 5 * page, page, page)]).unwrap();
        let before = leaves(&hal, &table.root());
        let overlap = |iova| Err(MapError::Overlap { iova: Iova::new(iova) });
        // With what is mapped: at the end of a list, in the middle of a piece, by a large page.
        let list = [rw(0, 0, page), rw(2 * large, 0, large), rw(large + 5 * page, 0, page)];
        assert_eq!(table.map(&list), overlap(large + 5 * page));
        assert_eq!(table.map(&[rw(large, 0, 8 * page)]), overlap(large + 5 * page));
        assert_eq!(table.map(&[rw(large, large, large)]), overlap(large + 5 * page));
        // Within the list: the same page twice, small in large, large over small; in either order.
        for (list, place) in [
            (vec![rw(0, 0, page), rw(page, 0, page), rw(0, 0, page)], 0),
            (vec![rw(2 * large, 0, large), rw(2 * large + page, 0, page)], 2 * large),
            (vec![rw(2 * large + page, 0, page), rw(2 * large, 0, large)], 2 * large + page),
            (vec![rw(3 * large, 0, page), rw(0, 0, 4 * page), rw(2 * page, 0, 9 * page)], 2 * page),
        ] {
            let Err(MapError::Overlap { iova }) = table.map(&list) else {
                panic!("{list:?} was mapped");
            };
            assert!(range(place, large).contains(iova), "{iova} instead of {place:#x}");
        }
        assert_eq!(leaves(&hal, &table.root()), before);
        // No mark is left behind: all these places are free.
        let free = [rw(3 * large, 0, large), rw(2 * large, 0, large), rw(0, 0, 11 * page)];
        table.map(&free).unwrap();
        assert_eq!(table.map(&[rw(2 * large, large, large)]), overlap(2 * large));
    }
    for_each_format!(check);
}

#[test]
fn when_memory_runs_out_at_any_point_nothing_is_mapped_and_nothing_leaks() {
    fn check<F: Format>(format: F, bits: u8) {
        let (hal, mut table) = table(format, bits);
        let page = 1_u64 << F::GRANULE_SHIFT;
        let (large, levels) = (page << F::STRIDE, {
            let before = hal.allocations();
            table.map(&[rw(0, 0, page)]).unwrap();
            hal.allocations() - before
        });
        let last = table.aperture().last().get() + 1 - page;
        let ascending = [rw(3 * large, page, 2 * large), rw(last, 0, page)];
        let mixed = [rw(last, 0, page), rw(3 * large, page, 2 * large)];
        for list in [ascending, mixed] {
            let mut points = 0;
            loop {
                let before = hal.frames_in_use();
                hal.fail_after(points);
                let result = table.map(&list);
                hal.fail_never();
                let mut gather = Gather::new();
                if result.is_ok() {
                    table.unmap(range(page, last), &mut gather).unwrap();
                    table.trim(&mut gather);
                    sync(&hal, &mut gather);
                    break;
                }
                assert_eq!(result, Err(MapError::OutOfMemory(OutOfMemory)));
                assert_eq!(leaves(&hal, &table.root()).len(), 1);
                table.trim(&mut gather);
                sync(&hal, &mut gather);
                assert_eq!(hal.frames_in_use(), before, "the {points}th allocation failed");
                points += 1;
            }
            // Two tables of pages here, in one upper table that is there already, and a path of its own for the
            // last page of the space.
            assert_eq!(points, 2 + levels);
        }
        drop(table);
        assert_eq!(hal.frames_in_use(), 0);
        hal.fail_after(0);
        assert!(matches!(
            PageTable::new(&hal, format, config(bits)),
            Err(ConfigError::OutOfMemory(OutOfMemory))
        ));
    }
    for_each_format!(check);
}

#[test]
fn tables_that_lie_wholly_in_the_range_go_to_the_gather_and_others_stay() {
    fn check<F: Format>(format: F, bits: u8) {
        let hal = HostHal::new();
        let page = 1_u64 << F::GRANULE_SHIFT;
        let small = Config { page_sizes: page, ..config(bits) };
        let mut table = PageTable::new(&hal, format, small).unwrap();
        let large = page << F::STRIDE;
        let empty = hal.frames_in_use();
        table.map(&[rw(0, 0, 3 * large)]).unwrap();
        let full = hal.frames_in_use();
        let frames_per_table = (page / 4096) as usize;

        let mut gather = Gather::new();
        assert_eq!(table.unmap(range(page, 2 * large), &mut gather), Ok(2 * large));
        assert_eq!((gather.table_count(), gather.range()), (1, Some(range(page, 2 * large))));
        assert_eq!(hal.frames_in_use(), full, "not before the sync");
        sync(&hal, &mut gather);
        assert_eq!(hal.frames_in_use(), full - frames_per_table);

        // In parts, the tables stay.
        assert_eq!(table.unmap(range(0, page), &mut gather), Ok(page));
        assert!(!gather.has_tables());
        assert_eq!(table.unmap(range(2 * large + page, large - page), &mut gather), Ok(large - page));
        assert!(!gather.has_tables());
        assert_ne!(table.trim(&mut gather), 0);
        sync(&hal, &mut gather);
        assert_eq!(hal.frames_in_use(), empty, "only the root is left");
        table.map(&[rw(0, 0, page)]).unwrap();
        drop(table);
        assert_eq!(hal.frames_in_use(), 0);
    }
    for_each_format!(check);
}

#[test]
fn a_walker_that_does_not_snoop_gets_every_line_cleaned_once_per_batch() {
    let hal = HostHal::new();
    let cleaned = Config { writes: TableWrites::Cleaned, ..config(48) };
    let table = PageTable::new(&hal, SECOND_4, cleaned).unwrap();
    assert_eq!(hal.cleaned_lines(), 64, "the root");
    table.map(&[rw(0, 0, 0x1000)]).unwrap();
    assert_eq!(hal.cleaned_lines(), 64 + 3 * (64 + 1) + 1, "three new tables, their links, one leaf");

    // A scattered list: 16 neighbours are two lines, wherever they lead.
    let before = hal.cleaned_lines();
    let list: Vec<_> = (0..16).map(|i| rw(0x8000 + i * 0x1000, 0x10_0000 - i * 0x4000, 0x1000)).collect();
    table.map(&list).unwrap();
    assert_eq!(hal.cleaned_lines() - before, 2);
    let before = hal.cleaned_lines();
    table.unmap(range(0x8000, 0x10000), &mut Gather::new()).unwrap();
    assert_eq!(hal.cleaned_lines() - before, 2);

    // A walker that snoops needs nothing.
    let snooping = HostHal::new();
    let table = PageTable::new(&snooping, SECOND_4, config(48)).unwrap();
    table.map(&list).unwrap();
    table.unmap(range(0x8000, 0x10000), &mut Gather::new()).unwrap();
    assert_eq!(snooping.cleaned_lines(), 0);
}

#[test]
fn configurations_that_the_formats_have_not_are_refused() {
    use portcullis_pgtable::{AccessedDirty, Levels, X86};
    fn refused<F: Format>(format: F, config: Config, expected: ConfigError) {
        let hal = HostHal::new();
        assert_eq!(PageTable::new(&hal, format, config).unwrap_err(), expected);
        assert_eq!(hal.frames_in_use(), 0);
    }
    for bits in [0, 31, 49, 64, 255] {
        refused(STAGE1_4K, config(bits), ConfigError::InputBits(bits));
        refused(STAGE2_64K, config(bits), ConfigError::InputBits(bits));
        refused(SECOND_3, config(bits), ConfigError::InputBits(bits));
    }
    refused(X86_4, config(57), ConfigError::InputBits(57));
    refused(SECOND_5, config(58), ConfigError::InputBits(58));
    refused(X86::new(Levels::Three, AccessedDirty::Preset), config(39), ConfigError::Levels(3));
    let narrow = Config { output_bits: 12, ..config(48) };
    refused(SECOND_4, narrow, ConfigError::OutputBits(12));
}

#[test]
fn a_quarantined_table_is_never_freed() {
    let (hal, table) = table(STAGE1_4K, 48);
    table.map(&[rw(0, 0, 0x1000)]).unwrap();
    let frames = hal.frames_in_use();
    table.quarantine();
    assert_eq!(hal.frames_in_use(), frames);
}
