//! Apertures, sizes, refusals, and memory that runs out: in every format.

mod common;

use common::*;
use portcullis_hal::host::HostHal;
use portcullis_hal::{Gather, Iova, MapError, OutOfMemory, PhysAddr, TableFormat, TableWrites, UnmapError};
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
        for (start, len) in [(last, 2 * page), (beyond, page), (u64::MAX - page + 1, page)] {
            let out = Err(UnmapError::OutOfRange { iova: Iova::new(start) });
            assert_eq!(table.unmap(range(start, len), &mut Gather::new()), out);
        }
        let mut gather = Gather::new();
        assert_eq!(table.unmap(table.aperture(), &mut gather), Ok(2 * page));
        assert_eq!(gather.leaf_shift(), F::GRANULE_SHIFT as u8);
        sync(&hal, &mut gather);
        assert!(leaves(&hal, &table.root()).is_empty());
    }
    for_each_format!(check);
    // Apertures of a part of an entry of the root, of one, and of two.
    for bits in [32, 38, 39, 40] {
        check(X86_4, bits);
        check(SECOND_4, bits);
    }
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
        // Of a run under the contiguous hint, the gather names the size of its leaves.
        assert_eq!(1_u64 << gather.leaf_shift(), *leaf_sizes(&table).last().unwrap());
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
    for bits in [0, 31, 49, 53, 64, 255] {
        refused(STAGE1_4K, config(bits), ConfigError::InputBits(bits));
        if bits != 49 {
            refused(STAGE2_64K, config(bits), ConfigError::InputBits(bits));
            refused(STAGE1_4K_LPA2, config(bits), ConfigError::InputBits(bits));
        }
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

/// By brute force: runs of pages under the hint at every offset in a unit and of every length, in a table that is
/// empty and in one that has pages in the way.
#[test]
fn the_contiguous_hint_is_set_for_whole_units_only_and_a_unit_is_unmapped_as_a_whole() {
    fn check<F: Format>(format: F, bits: u8) {
        let (hal, table) = table(format, bits);
        let page = 1_u64 << F::GRANULE_SHIFT;
        let Some(unit) = hint_unit(&table, 0) else {
            return assert_eq!(F::CONTIGUOUS, 0);
        };
        let count = unit / page;
        for start in [0, 1, count - 1, count, count + 2] {
            for len in [1, count - 1, count, count + 1, 2 * count, 3 * count - 1] {
                let (at, len) = (64 * unit + start * page, len * page);
                table.map(&[rw(at, at, len)]).unwrap();
                let found = leaves(&hal, &table.root());
                let hinted: Vec<u64> =
                    found.iter().filter(|(_, leaf)| leaf.size == unit).map(|(&iova, _)| iova).collect();
                let first = at.next_multiple_of(unit);
                let expected: Vec<u64> =
                    (0..3).map(|i| first + i * unit).filter(|iova| iova + unit <= at + len).collect();
                assert_eq!(hinted, expected, "{start} {len}");
                assert_eq!(found.values().map(|leaf| leaf.size).sum::<u64>(), len);
                let mut gather = Gather::new();
                if let Some(&unit_start) = expected.first() {
                    let partial = Err(UnmapError::Partial { iova: Iova::new(unit_start), size: unit });
                    for part in [range(unit_start, page), range(unit_start + page, unit - page)] {
                        assert_eq!(table.unmap(part, &mut gather), partial);
                    }
                    assert_eq!(table.translate(Iova::new(unit_start + page + 7)).unwrap().size, unit);
                }
                assert_eq!(gather.range(), None);
                assert_eq!(table.unmap(range(at, len), &mut gather), Ok(len));
                assert_eq!(1 << gather.leaf_shift(), page, "each leaf has a translation of its own");
            }
        }
        // Memory that is not congruent gets no hint.
        table.map(&[rw(unit, unit + page, 2 * unit)]).unwrap();
        assert!(leaves(&hal, &table.root()).values().all(|leaf| leaf.size == page));
        table.unmap(range(unit, 2 * unit), &mut Gather::new()).unwrap();
        // Nor does a unit of large pages in which a table is in the way.
        let large = page << F::STRIDE;
        let Some(unit) = hint_unit(&table, 1) else { return };
        table.map(&[rw(2 * unit + 3 * large, 0, page)]).unwrap();
        table.unmap(range(2 * unit + 3 * large, page), &mut Gather::new()).unwrap();
        table.map(&[rw(unit, unit, 3 * unit)]).unwrap();
        let found = leaves(&hal, &table.root());
        assert_eq!((found[&unit].size, found[&(3 * unit)].size), (unit, unit));
        for i in (0..unit / large).filter(|&i| i != 3) {
            assert_eq!(found[&(2 * unit + i * large)].size, large);
        }
        assert_eq!(found.values().map(|leaf| leaf.size).sum::<u64>(), 3 * unit);
    }
    for_each_format!(check);
}

/// The size of a unit of leaves at `level` under the contiguous hint.
fn hint_unit<F: Format>(table: &PageTable<HostHal, F>, level: u32) -> Option<u64> {
    let size = 1_u64 << (F::GRANULE_SHIFT + level * F::STRIDE);
    let above = size << F::STRIDE;
    let single = leaf_sizes(table);
    let runs =
        (0..60).map(|bit| 1 << bit).filter(|size| table.page_sizes() & size != 0 && !single.contains(size));
    runs.into_iter().find(|&run| run > size && run < above)
}

/// Where the bits of an address part company in an entry, the next leaf is not the one before plus its size.
#[test]
fn a_piece_may_cross_the_bit_that_entries_hold_elsewhere() {
    fn check<F: Format>(format: F, bits: u8) {
        let hal = HostHal::new();
        let table = PageTable::new(&hal, format, Config { output_bits: 52, ..config(bits) }).unwrap();
        let page = 1_u64 << F::GRANULE_SHIFT;
        let large = page << F::STRIDE;
        let top = 1_u64 << table.root().output_bits;
        for bit in 47..52 {
            let phys = 1_u64 << bit;
            if phys + large >= top {
                continue;
            }
            for (iova, phys, len) in [(0, phys - 3 * page, 6 * page), (large, phys - large, 2 * large)] {
                table.map(&[rw(iova, phys, len)]).unwrap();
                let list = [rw(8 * large, phys, page), rw(8 * large + page, phys + page, 5 * page)];
                table.map(&list).unwrap();
                let found = leaves(&hal, &table.root());
                for (&at, leaf) in found.range(..8 * large) {
                    assert_eq!(leaf.phys, phys + (at - iova), "{at:#x}");
                }
                assert_eq!(found.values().map(|leaf| leaf.size).sum::<u64>(), len + 6 * page);
                for at in [iova, iova + len - 1] {
                    assert_eq!(table.translate(Iova::new(at)).unwrap().phys.get(), phys + (at - iova));
                }
                table.unmap(range(0, 16 * large), &mut Gather::new()).unwrap();
            }
        }
        table.map(&[rw(0, top - page, page)]).unwrap();
        assert_eq!(leaves(&hal, &table.root())[&0].phys, top - page);
        assert!(table.map(&[rw(page, top, page)]).is_err());
    }
    for_each_format!(check);
}

/// All widths and granules: the first and the last page are found from a root of the level and size that the manual
/// (Arm ARM, D8.2) has for it.
#[test]
fn roots_of_every_width_translate_up_to_their_ends() {
    fn check<F: Format>(format: F, bits: u8) {
        let (hal, table) = table(format, bits);
        let page = 1_u64 << F::GRANULE_SHIFT;
        let last = (1 << bits) - page;
        let middle = 1 << (bits - 1);
        table.map(&[rw(0, page, page), rw(middle, 2 * page, page), rw(last, 3 * page, page)]).unwrap();
        let found: Vec<_> =
            leaves(&hal, &table.root()).iter().map(|(&iova, leaf)| (iova, leaf.phys / page)).collect();
        assert_eq!(found, [(0, 1), (middle, 2), (last, 3)], "{bits}");
        let address = table.root().root.get();
        let (granule, stage_2) = match table.root().format {
            TableFormat::VmsaStage2 { granule, .. } | TableFormat::VmsaStage2Lpa2 { granule, .. } => {
                (granule, true)
            }
            TableFormat::VmsaStage1 { granule, .. } | TableFormat::VmsaStage1Lpa2 { granule, .. } => {
                (granule, false)
            }
            _ => return,
        };
        // The entries of the root, from the number of index bits that the levels below leave.
        let (stride, index) = (u32::from(granule.shift()) - 3, u32::from(bits) - F::GRANULE_SHIFT);
        let tables = match (index - 1) % stride + 1 {
            rest @ 1..=4 if stage_2 && index > 2 * stride => 1_u64 << rest,
            _ => 1,
        };
        assert_eq!(address % (tables * page), 0, "concatenated tables are aligned as a whole");
    }
    for bits in 32..=48 {
        check(STAGE1_4K, bits);
        check(STAGE1_16K, bits);
        check(STAGE2_4K, bits);
        check(STAGE2_16K, bits);
    }
    for bits in 32..=52 {
        check(STAGE1_64K, bits);
        check(STAGE2_64K, bits);
        check(STAGE1_4K_LPA2, bits);
        check(STAGE1_16K_LPA2, bits);
        check(STAGE2_4K_LPA2, bits);
        check(STAGE2_16K_LPA2, bits);
    }
    for bits in 32..=39 {
        check(SECOND_3, bits);
    }
    check(SECOND_4, 48);
    check(SECOND_5, 57);
}
