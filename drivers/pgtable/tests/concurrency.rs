//! Threads on one table.

mod common;

use common::*;
use portcullis_hal::host::HostHal;
use portcullis_hal::{Gather, Iova, PhysAddr, TableWrites};
use portcullis_pgtable::{Config, Format, PageTable};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

const THREADS: u64 = 4;
/// Only a hang takes as long.
const HANG: Duration = Duration::from_secs(600);
const ROUNDS: u64 = if cfg!(miri) { 2 } else { 2000 };

fn small_pages<F: Format>(format: F, bits: u8, writes: TableWrites) -> (HostHal, PageTable<HostHal, F>) {
    let hal = HostHal::new();
    let config = Config { writes, ..config(bits) };
    let table = PageTable::new(&hal, format, config).unwrap();
    (hal, table)
}

#[test]
fn distinct_ranges_are_mapped_and_unmapped_at_the_same_time() {
    fn check<F: Format>(format: F, bits: u8) {
        for writes in [TableWrites::Cached, TableWrites::Cleaned] {
            let (hal, table) = small_pages(format, bits, writes);
            let page = 1_u64 << F::GRANULE_SHIFT;
            let large = page << F::STRIDE;
            let together = Barrier::new(THREADS as usize);
            thread::scope(|scope| {
                for thread in 0..THREADS {
                    let (hal, table, together) = (&hal, &table, &together);
                    scope.spawn(move || {
                        let mut gather = Gather::new();
                        // Only here: a thread that fails would leave the others waiting later.
                        together.wait();
                        for round in 0..ROUNDS {
                            // Interleaved pages of one table, and neighbouring tables of which every thread
                            // takes whole ones out.
                            let near = thread * 2 * page;
                            let far = (1 + thread) * large + round % 3 * THREADS * large;
                            let phys = (1 + thread) * 0x1000_0000 + round % 8 * page;
                            table.map(&[rw(near, phys, page), rw(far, phys + page, large)]).unwrap();
                            let at = |iova| table.translate(Iova::new(iova)).unwrap().phys;
                            assert_eq!(at(near), PhysAddr::new(phys));
                            assert_eq!(at(far + large - 1), PhysAddr::new(phys + page + large - 1));
                            assert_eq!(table.unmap(range(far, large), &mut gather), Ok(large));
                            assert_eq!(table.unmap(range(near, page), &mut gather), Ok(page));
                            assert_eq!(table.translate(Iova::new(near)), None);
                            sync(hal, &mut gather);
                        }
                    });
                }
            });
            assert!(leaves(&hal, &table.root()).is_empty());
            drop(table);
            assert_eq!(hal.frames_in_use(), 0);
        }
    }
    check(X86_4, 48);
    if !cfg!(miri) {
        check(STAGE1_4K, 48);
        check(SECOND_3, 39);
        check(STAGE2_16K, 47);
    }
}

/// What wins is left open; but no freed table is touched (the host's memory panics on that, Miri reports it), the
/// table stays consistent, and once it is quiet all can be taken out.
#[test]
fn calls_that_race_on_the_same_range_leave_a_consistent_table() {
    fn check<F: Format>(format: F, bits: u8) {
        let (hal, table) = small_pages(format, bits, TableWrites::Cleaned);
        let page = 1_u64 << F::GRANULE_SHIFT;
        let large = page << F::STRIDE;
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let (hal, table) = (&hal, &table);
                scope.spawn(move || {
                    let mut gather = Gather::new();
                    for round in 0..ROUNDS {
                        let skew = (round + thread) % 2 * page;
                        let _ = table.map(&[rw(0, skew, large), rw(large, large, 2 * large)]);
                        let _ = table.translate(Iova::new(round % 512 * page));
                        let _ = table.unmap(range(0, 4 * large), &mut gather);
                        let _ = table.map(&[rw(large + thread * page, skew, page)]);
                        sync(hal, &mut gather);
                    }
                });
            }
        });
        for (iova, leaf) in leaves(&hal, &table.root()) {
            assert!(iova + leaf.size <= 4 * large);
            let translated = table.translate(Iova::new(iova)).unwrap();
            assert_eq!((translated.phys.get(), translated.size), (leaf.phys, leaf.size));
        }
        let mut gather = Gather::new();
        table.unmap(range(0, 4 * large), &mut gather).unwrap();
        sync(&hal, &mut gather);
        assert!(leaves(&hal, &table.root()).is_empty());
        table.map(&[rw(0, 0, 4 * large)]).unwrap();
    }
    check(STAGE2_4K, 40);
    check(X86_4, 48);
}

/// A table is taken out of its place before it is certain that nobody is in it, and put back if somebody is.
#[test]
fn a_table_that_had_to_be_put_back_is_found_by_a_walker_that_does_not_snoop() {
    fn check<F: Format>(format: F, bits: u8) {
        let hal = Behind::default();
        let config = Config { writes: TableWrites::Cleaned, ..config(bits) };
        let table = PageTable::new(&hal, format, config).unwrap();
        let page = 1_u64 << F::GRANULE_SHIFT;
        let large = page << F::STRIDE;
        table.map(&[rw(large, page, large)]).unwrap();
        let (start, started) = mpsc::channel();
        let (enter, entered) = mpsc::channel();
        let (leave, left) = mpsc::channel();
        thread::scope(|scope| {
            let table = &table;
            let other = scope.spawn(move || {
                started.recv_timeout(HANG).unwrap();
                // In want of a table, whose link lies in another cache line, it stays in the tree until it is told to
                // go on.
                table.map(&[rw(16 * large, page, large)]).unwrap();
            });
            hal.at_alloc(move || {
                enter.send(()).unwrap();
                left.recv_timeout(HANG).unwrap();
            });
            hal.after_clean(move || {
                start.send(()).unwrap();
                entered.recv_timeout(HANG).unwrap();
            });
            let mut gather = Gather::new();
            assert_eq!(table.unmap(range(large, large), &mut gather), Ok(large));
            assert!(!gather.has_tables());
            leave.send(()).unwrap();
            other.join().unwrap();
        });
        table.map(&[rw(large, 3 * page, page)]).unwrap();
        let found = leaves(&hal, &table.root());
        assert_eq!(found[&large].phys, 3 * page);
        assert_eq!(found, leaves(hal.host(), &table.root()));
    }
    for_each_format!(check);
}
