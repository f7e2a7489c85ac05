//! Splitting and joining: what is mapped stays mapped, as seen by hardware at every moment.

mod common;

use common::*;
use portcullis_hal::host::HostHal;
use portcullis_hal::{Attributes, Gather, Iova, OutOfMemory, Progress, ResizeError, TableWrites, UnmapError};
use portcullis_pgtable::{BbmLevel, Config, Format, Kind, PageTable, Replacement, VmsaStage1, VmsaStage2};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{RwLock, mpsc};
use std::thread;
use std::time::Duration;

fn table<F: Format>(format: F, bits: u8) -> (HostHal, PageTable<HostHal, F>) {
    let hal = HostHal::new();
    let table = PageTable::new(&hal, format, config(bits)).unwrap();
    (hal, table)
}

/// Repeats a call as it asks for, and syncs in between and at the end. Returns how many calls these were.
fn complete(
    hal: &impl portcullis_hal::Hal,
    mut call: impl FnMut(&mut Gather) -> Result<Progress, ResizeError>,
) -> usize {
    for calls in 1.. {
        let mut gather = Gather::new();
        let progress = call(&mut gather).unwrap();
        assert!(progress == Progress::Done || gather.range().is_some());
        sync(hal, &mut gather);
        if progress == Progress::Done {
            return calls;
        }
    }
    unreachable!()
}

/// The sizes of leaves from `start` on, as they follow each other.
fn sizes(found: &std::collections::BTreeMap<u64, Leaf>) -> Vec<u64> {
    found.values().map(|leaf| leaf.size).collect()
}

#[test]
fn a_leaf_is_split_to_any_size_and_joined_back() {
    fn check<F: Format>(format: F, bits: u8) {
        let (hal, table) = table(format, bits);
        let singles = leaf_sizes(&table);
        let page = singles[0];
        // Only up to the second size: a third is a million pages.
        let large = singles[1];
        let before = hal.frames_in_use();
        table.map(&[rw(4 * large, 8 * large, large)]).unwrap();
        let mapped = leaves(&hal, &table.root());
        let used = hal.frames_in_use();
        let calls = complete(&hal, |gather| table.split(range(4 * large, large), page, gather));
        assert_eq!(calls, if format.replacement() == Replacement::Staged { 2 } else { 1 });
        let split = leaves(&hal, &table.root());
        assert_eq!(sizes(&split), vec![page; (large / page) as usize]);
        for i in 0..large / page {
            let at = 4 * large + i * page;
            assert_eq!(look_up(&split, at), look_up(&mapped, at));
        }
        assert_eq!(hal.frames_in_use(), used + (page / 4096) as usize);

        // The table counts its leaves right: cut off as a whole, it says how many bytes were mapped.
        let mut gather = Gather::new();
        assert_eq!(table.unmap(range(4 * large, page), &mut gather), Ok(page));
        table.map(&[rw(4 * large, 8 * large, page)]).unwrap();
        sync(&hal, &mut gather);

        complete(&hal, |gather| table.join(range(0, 8 * large), gather));
        assert_eq!(leaves(&hal, &table.root()), mapped);
        assert_eq!(hal.frames_in_use(), used, "the table is free again after the sync");
        assert_eq!(table.unmap(range(4 * large, large), &mut gather), Ok(large));
        sync(&hal, &mut gather);
        let mut table = table;
        table.trim(&mut gather);
        sync(&hal, &mut gather);
        assert_eq!(hal.frames_in_use(), before);
    }
    for_each_replacing_format!(check);
}

#[test]
fn an_unmap_of_a_part_succeeds_once_the_ends_are_split_and_no_other_leaf_is() {
    fn check<F: Format>(format: F, bits: u8) {
        let (hal, table) = table(format, bits);
        let (page, large) = (leaf_sizes(&table)[0], leaf_sizes(&table)[1]);
        table.map(&[rw(4 * large, 8 * large, 3 * large)]).unwrap();
        let (start, len) = (4 * large + 3 * page, 2 * large - page);
        let mut gather = Gather::new();
        let refused = table.unmap(range(start, len), &mut gather);
        assert!(matches!(refused, Err(UnmapError::Partial { .. })), "{refused:?}");
        complete(&hal, |gather| table.split_ends(range(start, len), gather));
        assert_eq!(table.unmap(range(start, len), &mut gather), Ok(len));
        sync(&hal, &mut gather);
        let found = leaves(&hal, &table.root());
        assert_eq!(found.values().map(|leaf| leaf.size).sum::<u64>(), 3 * large - len);
        for at in [4 * large, start - page, start + len, 7 * large - page] {
            assert_eq!(look_up(&found, at).unwrap().0, at + 4 * large);
        }
        // Whole leaves at the ends stay as they are.
        let before = leaves(&hal, &table.root());
        assert_eq!(complete(&hal, |gather| table.split_ends(table.aperture(), gather)), 1);
        assert_eq!(leaves(&hal, &table.root()), before);
    }
    for_each_replacing_format!(check);
}

#[test]
fn leaves_join_only_if_they_are_alike_and_their_memory_is_in_one_piece() {
    fn check<F: Format>(format: F, bits: u8) {
        let (hal, table) = table(format, bits);
        let (page, large) = (leaf_sizes(&table)[0], leaf_sizes(&table)[1]);
        let pieces = |at: u64, phys: u64| [rw(at, phys, page), rw(at + page, phys + page, large - page)];
        // One page missing, one with other attributes, two swapped, all of it askew.
        let hole = [
            rw(large, large, large / 2),
            rw(large + large / 2 + page, large + large / 2 + page, large / 2 - page),
        ];
        let mut other = pieces(2 * large, 2 * large);
        other[0].attributes = Attributes::READ;
        let swapped = [
            rw(3 * large, 3 * large + page, page),
            rw(3 * large + page, 3 * large, page),
            rw(3 * large + 2 * page, 3 * large + 2 * page, large - 2 * page),
        ];
        let askew = [rw(4 * large, 4 * large + page, large)];
        for list in [&hole[..], &other[..], &swapped[..], &askew[..]] {
            table.map(list).unwrap();
        }
        let sizes_before = leaves(&hal, &table.root()).values().map(|leaf| leaf.size).max();
        complete(&hal, |gather| table.join(range(0, 16 * large), gather));
        let found = leaves(&hal, &table.root());
        assert!(found.values().all(|leaf| leaf.size < large));
        assert!(found.values().map(|leaf| leaf.size).max() >= sizes_before);
        // What is alike joins, even around what is not, but only where all of the leaf is in the range.
        table.map(&pieces(6 * large, 9 * large)).unwrap();
        complete(&hal, |gather| table.join(range(6 * large, large - page), gather));
        assert!(leaves(&hal, &table.root())[&(6 * large)].size < large);
        complete(&hal, |gather| table.join(range(0, 7 * large), gather));
        let joined = leaves(&hal, &table.root())[&(6 * large)];
        assert_eq!((joined.size, joined.phys), (large, 9 * large));
    }
    for_each_replacing_format!(check);
}

#[test]
fn without_hardware_that_bears_it_nothing_changes() {
    fn check<F: Format>(format: F, bits: u8) {
        if format.replacement() != Replacement::Break {
            return;
        }
        let (hal, table) = table(format, bits);
        let (page, large) = (leaf_sizes(&table)[0], leaf_sizes(&table)[1]);
        table.map(&[rw(large, large, large)]).unwrap();
        table
            .map(&[rw(2 * large, 2 * large, page), rw(2 * large + page, 2 * large + page, large - page)])
            .unwrap();
        let before = leaves(&hal, &table.root());
        let mut gather = Gather::new();
        let needs_break = |iova| Err(ResizeError::BreakBeforeMake { iova: Iova::new(iova) });
        assert_eq!(table.split(range(large, large), page, &mut gather), needs_break(large));
        assert_eq!(table.split_ends(range(large + page, page), &mut gather), needs_break(large));
        assert_eq!(table.join(range(0, 4 * large), &mut gather), needs_break(0));
        assert_eq!(gather.range(), None);
        assert_eq!(leaves(&hal, &table.root()), before);
    }
    for_each_format!(check);
}

#[test]
fn ranges_that_are_none_and_a_lack_of_memory_change_nothing() {
    fn check<F: Format>(format: F, bits: u8) {
        let (hal, table) = table(format, bits);
        let (page, large) = (leaf_sizes(&table)[0], leaf_sizes(&table)[1]);
        table.map(&[rw(0, 0, large)]).unwrap();
        let mut gather = Gather::new();
        let top = table.aperture().last().get() + 1;
        let out = Err(ResizeError::OutOfRange { iova: Iova::new(top - page) });
        assert_eq!(table.split(range(top - page, 2 * page), page, &mut gather), out);
        let askew = Err(ResizeError::Misaligned { iova: Iova::new(page / 2) });
        assert_eq!(table.join(range(page / 2, page), &mut gather), askew);
        if format.replacement() == Replacement::Direct {
            let before = leaves(&hal, &table.root());
            hal.fail_after(0);
            let short = Err(ResizeError::OutOfMemory(OutOfMemory));
            assert_eq!(table.split(range(0, large), page, &mut gather), short);
            assert_eq!(leaves(&hal, &table.root()), before);
        }
        sync(&hal, &mut gather);
        drop(table);
        assert_eq!(hal.frames_in_use(), 0);
    }
    for_each_replacing_format!(check);
}

/// SMMUv3, 3.21.1.2: nT (bit 16) is set, and what was cached of the block invalidated, before a table takes its place;
/// and a block that takes a table's place has nT until what was cached of the table is invalidated.
#[test]
fn with_bbm_level_1_a_block_has_nt_set_for_one_sync() {
    fn check<F: Format>(format: F, block: u64) {
        let (hal, table) = table(format, 39);
        let word = || {
            let mut words = hal.words(table.root().root.get(), 2);
            let mut path = vec![words[1]];
            while words[1] & 3 == 3 && path.len() < 2 {
                words = hal.words(words[1] & 0xffff_ffff_f000, 2);
                path.push(words[0]);
            }
            *path.last().unwrap()
        };
        let (at, mb2) = (1 << 30, 1 << 21);
        table.map(&[rw(at, 0x8000_0000, mb2)]).unwrap();
        let mut gather = Gather::new();
        assert_eq!(word(), block);
        assert_eq!(table.split(range(at, mb2), 4096, &mut gather), Ok(Progress::SyncAndRepeat));
        assert_eq!((word(), gather.range()), (block | 0x1_0000, Some(range(at, mb2))));
        assert_eq!(table.translate(Iova::new(at + 5)).unwrap().phys.get(), 0x8000_0005);
        sync(&hal, &mut gather);
        assert_eq!(table.split(range(at, mb2), 4096, &mut gather), Ok(Progress::Done));
        assert_eq!((word() & 3, gather.range(), gather.has_tables()), (3, Some(range(at, mb2)), false));
        sync(&hal, &mut gather);
        assert_eq!(table.join(range(at, mb2), &mut gather), Ok(Progress::SyncAndRepeat));
        assert_eq!((word(), gather.range()), (block | 0x1_0000, Some(range(at, mb2))));
        assert!(gather.has_tables());
        sync(&hal, &mut gather);
        assert_eq!(table.join(range(at, mb2), &mut gather), Ok(Progress::Done));
        assert_eq!((word(), gather.range()), (block, Some(range(at, mb2))));
        sync(&hal, &mut gather);
        assert_eq!(table.join(range(at, mb2), &mut gather), Ok(Progress::Done));
        assert_eq!(gather.range(), None);
    }
    let level = BbmLevel::Level1;
    check(VmsaStage1::<12>::new().with_break_before_make(level), 0x0060_0000_8000_0f41);
    check(VmsaStage2::<12>::new().with_break_before_make(level), 0x0040_0000_8000_07fd);
}

#[test]
fn a_walker_that_does_not_snoop_finds_every_page_at_every_moment() {
    fn check<F: Format>(format: F, bits: u8) {
        // A walk for each line is slow where tables are large.
        if F::GRANULE_SHIFT == 16 {
            return;
        }
        let hal = Behind::default();
        let table =
            PageTable::new(&hal, format, Config { writes: TableWrites::Cleaned, ..config(bits) }).unwrap();
        let (page, large) = (leaf_sizes(&table)[0], leaf_sizes(&table)[1]);
        table.map(&[rw(2 * large, 4 * large, 2 * large)]).unwrap();
        let root = table.root();
        let pages = move |hal: &Behind| {
            let found = leaves(hal, &root);
            for at in (2 * large..4 * large).step_by(page as usize) {
                assert_eq!(look_up(&found, at).unwrap().0, at + 2 * large);
            }
        };
        let mut moments = 0_u32;
        let done = hal.watch(move |hal| {
            // Each line of a new table is a moment; a part of them will do.
            moments += 1;
            if moments.is_multiple_of(7) || moments < 4 {
                pages(hal);
            }
        });
        complete(&hal, |gather| table.split(range(2 * large, 2 * large), page, gather));
        pages(&hal);
        assert_eq!(leaves(&hal, &root), leaves(hal.host(), &root));
        complete(&hal, |gather| table.join(range(2 * large, 2 * large), gather));
        pages(&hal);
        done();
        assert_eq!(leaves(&hal, &root), leaves(hal.host(), &root));
    }
    for_each_replacing_format!(check);
}

/// Until the sync, hardware may be on its way through the table that was replaced.
#[test]
fn the_table_that_a_leaf_replaces_stays_as_it_is_until_the_sync() {
    fn check<F: Format>(format: F, bits: u8) {
        let (hal, table) = table(format, bits);
        let (page, large) = (leaf_sizes(&table)[0], leaf_sizes(&table)[1]);
        table.map(&[rw(0, large, page), rw(page, large + page, large - page)]).unwrap();
        // Two of them, so that the gather holds more than one.
        table.map(&[rw(large, 2 * large, page), rw(large + page, 2 * large + page, large - page)]).unwrap();
        let mut address = table.root().root.get();
        for _ in 2..format.geometry(bits).unwrap().levels {
            address = F::table_address(hal.words(address, 1)[0]).get();
        }
        let links = hal.words(address, 2);
        let read = || -> Vec<Vec<u64>> {
            let count = page / 8;
            links.iter().map(|&link| hal.words(F::table_address(link).get(), count)).collect()
        };
        let before = read();
        assert!(before.iter().flatten().all(|&word| F::kind(word, 0) == Kind::Leaf));
        let mut gather = Gather::new();
        let progress = table.join(range(0, 2 * large), &mut gather).unwrap();
        assert_eq!((leaves(&hal, &table.root())[&0].size >= large, gather.table_count()), (true, 2));
        for (word, old) in read().iter().flatten().zip(before.iter().flatten()) {
            assert_eq!((word ^ old) & !(0xf << 55), 0);
        }
        sync(&hal, &mut gather);
        if progress == Progress::SyncAndRepeat {
            assert_eq!(table.join(range(0, 2 * large), &mut gather), Ok(Progress::Done));
        }
        for link in &links {
            assert!(!hal.is_allocated(F::table_address(*link), 8), "free again");
        }
    }
    for_each_replacing_format!(check);
}

#[test]
fn a_table_is_not_replaced_while_somebody_else_may_be_in_it() {
    fn check<F: Format>(format: F, bits: u8) {
        let hal = Behind::default();
        // Without runs under the contiguous hint, which are joined all the same.
        let (page, large) = (1 << F::GRANULE_SHIFT, 1 << (F::GRANULE_SHIFT + F::STRIDE));
        let config = Config { writes: TableWrites::Cleaned, page_sizes: page | large, ..config(bits) };
        let table = PageTable::new(&hal, format, config).unwrap();
        table.map(&[rw(0, large, page), rw(page, large + page, large - page)]).unwrap();
        let root = table.root();
        let before = leaves(&hal, &root);
        thread::scope(|scope| {
            let (start, started) = mpsc::channel();
            let (enter, entered) = mpsc::channel();
            let (leave, left) = mpsc::channel();
            let table = &table;
            let other = scope.spawn(move || {
                started.recv_timeout(HANG).unwrap();
                table.map(&[rw(64 * large, page, page)]).unwrap();
            });
            hal.at_alloc(move || {
                enter.send(()).unwrap();
                left.recv_timeout(HANG).unwrap();
            });
            // After the leaf took the table's place, before it is certain that nobody is in it.
            let memory = hal.clone();
            hal.after_clean(move || {
                assert_eq!(leaves(&memory, &root)[&0].size, large);
                start.send(()).unwrap();
                entered.recv_timeout(HANG).unwrap();
            });
            let mut gather = Gather::new();
            let _ = table.join(range(0, large), &mut gather).unwrap();
            assert_eq!((gather.has_tables(), gather.range()), (false, Some(range(0, large))));
            leave.send(()).unwrap();
            other.join().unwrap();
        });
        let mut after = leaves(&hal, &root);
        assert_eq!(leaves(hal.host(), &root), after);
        after.remove(&(64 * large));
        assert_eq!(after, before);
    }
    for_each_replacing_format!(check);
}

/// Only a hang takes as long.
const HANG: Duration = Duration::from_secs(600);

/// Tells the others that it is over, even if it ended badly.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A walker in another thread, without caches of its own, that looks all the time. It may still be in a table that was
/// taken out; a sync waits for it.
#[test]
fn hardware_finds_what_is_split_and_joined_meanwhile() {
    fn check<F: Format>(format: F, bits: u8) {
        let hal = HostHal::new();
        let table = PageTable::new(&hal, format, config(bits)).unwrap();
        let (page, large) = (leaf_sizes(&table)[0], leaf_sizes(&table)[1]);
        if page > 4096 {
            return;
        }
        table.map(&[rw(2 * large, 4 * large, 2 * large)]).unwrap();
        let (walks, over) = (RwLock::new(()), AtomicBool::new(false));
        let root = table.root();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        let walk = walks.read().unwrap();
                        let found = leaves(&hal, &root);
                        drop(walk);
                        for at in (2 * large..4 * large).step_by(page as usize) {
                            assert_eq!(look_up(&found, at).unwrap().0, at + 2 * large);
                        }
                    }
                });
            }
            let _over = Over(&over);
            let rounds = |call: &dyn Fn(&mut Gather) -> Result<Progress, ResizeError>| {
                let mut gather = Gather::new();
                while call(&mut gather).unwrap() == Progress::SyncAndRepeat {
                    let _all = walks.write().unwrap();
                    sync(&hal, &mut gather);
                }
                let _all = walks.write().unwrap();
                sync(&hal, &mut gather);
            };
            for _ in 0..if cfg!(miri) { 1 } else { 30 } {
                rounds(&|gather| table.split(range(2 * large, 2 * large), page, gather));
                rounds(&|gather| table.join(range(2 * large, 2 * large), gather));
            }
        });
        assert!(leaves(&hal, &root).values().all(|leaf| leaf.size >= large));
    }
    check(X86_4, 48);
    check(SECOND_3, 39);
    check(STAGE2_4K.with_break_before_make(BbmLevel::Level2), 40);
    check(STAGE1_4K.with_break_before_make(BbmLevel::Level1), 39);
}
