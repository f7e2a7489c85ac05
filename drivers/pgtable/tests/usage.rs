//! What is mapped, leaf by leaf, and what hardware noted in the leaves. The hardware is a thread here, which sets the
//! marks by the manuals.

#![allow(unsafe_code, reason = "marks entries as hardware does")]

mod common;

use common::*;
use portcullis_hal::host::HostHal;
use portcullis_hal::{
    Attributes, Gather, Hal, HarvestError, Iova, IovaRange, Mapping, Progress, TableFormat, TableWrites,
    Usage,
};
use portcullis_pgtable::AccessedDirty::{Hardware, Preset};
use portcullis_pgtable::BbmLevel::Level2;
use portcullis_pgtable::{Config, Format, Kind, PageTable};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::thread;

fn table<F: Format>(format: F, bits: u8) -> (HostHal, PageTable<HostHal, F>) {
    let hal = HostHal::new();
    let table = PageTable::new(&hal, format, config(bits)).unwrap();
    (hal, table)
}

macro_rules! for_each_tracking_format {
    ($check:ident) => {{
        $check(X86_5, 57);
        $check(SECOND_3.with_accessed_dirty(Hardware), 39);
        $check(SECOND_5.with_accessed_dirty(Hardware), 57);
        $check(STAGE1_4K.with_accessed_dirty(Hardware).with_break_before_make(Level2), 39);
        $check(STAGE1_4K_LPA2.with_accessed_dirty(Hardware).with_break_before_make(Level2), 52);
        $check(STAGE2_16K.with_accessed_dirty(Hardware).with_break_before_make(Level2), 40);
        $check(STAGE2_64K.with_accessed_dirty(Hardware).with_break_before_make(Level2), 48);
    }};
}

/// The entry that maps `iova`, and what it is.
fn slot<'a, F: Format>(
    hal: &'a HostHal,
    table: &PageTable<HostHal, F>,
    format: F,
    bits: u8,
    iova: u64,
) -> Option<(&'a AtomicU64, u64)> {
    let levels = u32::from(format.geometry(bits).unwrap().levels);
    let mut base = table.root().root;
    for level in (0..levels).rev() {
        let shift = F::GRANULE_SHIFT + level * F::STRIDE;
        let mask = if level + 1 == levels { u64::MAX } else { (1 << F::STRIDE) - 1 };
        let entries = hal.phys_to_virt(base).cast::<AtomicU64>();
        // SAFETY: the index is in the table, which stays as long as the test says.
        let slot = unsafe { entries.add((iova >> shift & mask) as usize).as_ref() };
        let entry = slot.load(Ordering::SeqCst);
        match F::kind(entry, level) {
            Kind::Absent => return None,
            Kind::Leaf => return Some((slot, entry)),
            Kind::Table => base = F::table_address(entry),
        }
    }
    None
}

/// The word that hardware makes of a leaf as it writes through it.
fn written(format: TableFormat, leaf: u64) -> u64 {
    match format {
        // Intel SDM volume 3, section 5.8: A is bit 5, D bit 6.
        TableFormat::X86 { .. } => leaf | 0x60,
        // VT-d specification, 9.9: A is bit 8, D bit 9.
        TableFormat::VtdSecondStage { .. } => leaf | 0x300,
        // Arm ARM, D8.5: AF is bit 10, DBM bit 51; AP[2], bit 7, is cleared, S2AP[1], bit 7, is set.
        TableFormat::VmsaStage1 { .. } | TableFormat::VmsaStage1Lpa2 { .. } => {
            assert_ne!(leaf & 1 << 51, 0, "not writable");
            leaf & !0x80 | 0x400
        }
        TableFormat::VmsaStage2 { .. } | TableFormat::VmsaStage2Lpa2 { .. } => {
            assert_ne!(leaf & 1 << 51, 0, "not writable");
            leaf | 0x480
        }
    }
}

fn read(format: TableFormat, leaf: u64) -> u64 {
    match format {
        TableFormat::X86 { .. } => leaf | 0x20,
        TableFormat::VtdSecondStage { .. } => leaf | 0x100,
        _ => leaf | 0x400,
    }
}

fn all<F: Format>(table: &PageTable<HostHal, F>, range: IovaRange) -> Vec<Mapping> {
    let mut found = Vec::new();
    let _: Option<()> = table.visit(range, |mapping| {
        found.push(mapping);
        ControlFlow::Continue(())
    });
    found
}

#[test]
fn a_visit_finds_what_the_words_in_memory_say() {
    fn check<F: Format>(format: F, bits: u8) {
        let (hal, table) = table(format, bits);
        let sizes = leaf_sizes(&table);
        let (page, large) = (sizes[0], sizes[1]);
        let top = table.aperture().last().get() + 1;
        // Large pages, runs under the contiguous hint, single pages, holes, the ends of the space.
        let mut list = vec![
            rw(0, 5 * page, page),
            rw(3 * large, 3 * large, 2 * large),
            rw(5 * large + 3 * page, 7 * large + 3 * page, large),
            rw(9 * large, page, 3 * page),
            rw(top - page, 0, page),
        ];
        list[3].attributes = Attributes::READ;
        table.map(&list).unwrap();
        let words = leaves(&hal, &table.root());
        let expected = |range: IovaRange| -> Vec<(u64, u64, u64)> {
            let inside = |&(&at, leaf): &(&u64, &Leaf)| {
                at <= range.last().get() && range.start().get() <= at + (leaf.size - 1)
            };
            words.iter().filter(inside).map(|(&at, leaf)| (at, leaf.phys, leaf.size)).collect()
        };
        let ranges = [
            table.aperture(),
            range(0, u64::MAX),
            range(3 * large + page, 1),
            range(5 * large + 4 * page + 1, 3 * page),
            range(5 * large, large + 40 * page),
            range(4 * large - 1, 2),
            range(8 * large, large),
            range(9 * large + page, 7 * page),
            range(top - page, page),
        ];
        for range in ranges {
            let found: Vec<_> = all(&table, range)
                .iter()
                .map(|m| (m.iova.get(), m.memory.start().get(), m.memory.len()))
                .collect();
            assert_eq!(found, expected(range), "{range:?}");
        }
        let read = all(&table, range(9 * large, page));
        assert_eq!(read[0].attributes.access, Attributes::READ.access);
        let second = table.visit(table.aperture(), |mapping| {
            if mapping.iova.get() == 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(mapping.iova) }
        });
        assert_eq!(second, Some(Iova::new(3 * large)));
        let beyond = IovaRange::from_bounds(Iova::new(top), Iova::new(u64::MAX)).unwrap();
        assert!(all(&table, beyond).is_empty());
    }
    for_each_format!(check);
}

#[test]
fn marks_are_reported_once_and_only_dirty_ones_are_to_be_invalidated() {
    fn check<F: Format>(format: F, bits: u8) {
        let (hal, table) = table(format, bits);
        let name = table.root().format;
        let (page, large) = (leaf_sizes(&table)[0], leaf_sizes(&table)[1]);
        let mut list = [rw(0, page, 3 * page), rw(2 * large, 2 * large, large)];
        table.map(&list).unwrap();
        list[0] = mapping(6 * large, page, page, Attributes::READ);
        table.map(&list[..1]).unwrap();
        let at = |iova| slot(&hal, &table, format, bits, iova).unwrap().0;
        let harvest = |wanted, gather: &mut Gather| {
            let mut found = Vec::new();
            table
                .harvest(table.aperture(), wanted, gather, |m, usage| {
                    found.push((m.iova.get(), m.memory.len(), usage));
                })
                .unwrap();
            found
        };
        let mut gather = Gather::new();
        assert_eq!(harvest(Usage::all(), &mut gather), [], "leaves begin unused");
        let fresh = at(2 * page).load(Ordering::Relaxed);

        at(page).fetch_update(Ordering::Relaxed, Ordering::Relaxed, |e| Some(read(name, e))).unwrap();
        at(6 * large).fetch_update(Ordering::Relaxed, Ordering::Relaxed, |e| Some(read(name, e))).unwrap();
        assert_eq!(harvest(Usage::DIRTY, &mut gather), []);
        let both = [(page, page, Usage::ACCESSED), (6 * large, page, Usage::ACCESSED)];
        assert_eq!(harvest(Usage::ACCESSED, &mut gather), both);
        assert_eq!(gather.range(), None, "nothing to invalidate for an accessed mark");
        assert_eq!(harvest(Usage::all(), &mut gather), []);

        for iova in [2 * page, 2 * large + 5 * page] {
            at(iova).fetch_update(Ordering::Relaxed, Ordering::Relaxed, |e| Some(written(name, e))).unwrap();
        }
        assert_eq!(
            harvest(Usage::DIRTY, &mut gather),
            [(2 * page, page, Usage::DIRTY), (2 * large, large, Usage::DIRTY)]
        );
        assert_eq!(gather.range(), Some(range(2 * page, 3 * large - 2 * page)));
        assert_eq!((1 << gather.leaf_shift(), gather.has_tables()), (page, false));
        let mut gather = Gather::new();
        let both = [(2 * page, page, Usage::ACCESSED), (2 * large, large, Usage::ACCESSED)];
        assert_eq!(harvest(Usage::all(), &mut gather), both);
        assert_eq!(gather.range(), None);
        // It is as it was before, and still writable.
        assert_eq!(at(2 * page).load(Ordering::Relaxed), fresh);
        assert_eq!(table.translate(Iova::new(2 * page)).unwrap().attributes, Attributes::READ_WRITE);
    }
    for_each_tracking_format!(check);
}

#[test]
fn a_run_under_the_contiguous_hint_is_dirty_as_a_whole() {
    fn check<F: Format>(format: F, bits: u8) {
        let (hal, table) = table(format, bits);
        if F::CONTIGUOUS == 0 {
            return;
        }
        let page = leaf_sizes(&table)[0];
        let run = table.page_sizes() & !page & (table.page_sizes() & !page).wrapping_neg();
        table.map(&[rw(4 * run, 4 * run, run)]).unwrap();
        let name = table.root().format;
        let (third, _) = slot(&hal, &table, format, bits, 4 * run + 3 * page).unwrap();
        third.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |e| Some(written(name, e))).unwrap();
        let mut gather = Gather::new();
        let mut found = Vec::new();
        // A part of the run is enough to find it.
        let part = range(4 * run + 6 * page, page);
        table
            .harvest(part, Usage::DIRTY, &mut gather, |m, _| found.push((m.iova.get(), m.memory.len())))
            .unwrap();
        assert_eq!((found, gather.range()), (vec![(4 * run, run)], Some(range(4 * run, run))));
        // Taken apart, all of it is dirty: hardware may have had it cached as one.
        assert_eq!(table.split(range(4 * run, page), page, &mut gather), Ok(Progress::Done));
        let mut dirty = 0;
        table.harvest(table.aperture(), Usage::DIRTY, &mut gather, |m, _| dirty += m.memory.len()).unwrap();
        assert_eq!(dirty, run);
    }
    for_each_tracking_format!(check);
}

#[test]
fn marks_are_inherited_by_what_a_leaf_is_split_into() {
    fn check<F: Format>(format: F, bits: u8) {
        let (hal, table) = table(format, bits);
        let name = table.root().format;
        let (page, large) = (leaf_sizes(&table)[0], leaf_sizes(&table)[1]);
        table.map(&[rw(2 * large, 4 * large, 2 * large)]).unwrap();
        let (first, _) = slot(&hal, &table, format, bits, 2 * large).unwrap();
        first.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |e| Some(written(name, e))).unwrap();
        let mut gather = Gather::new();
        assert_eq!(table.split(table.aperture(), page, &mut gather), Ok(Progress::Done));
        let mut dirty = Vec::new();
        table.harvest(table.aperture(), Usage::DIRTY, &mut gather, |m, _| dirty.push(m.iova.get())).unwrap();
        let expected: Vec<u64> = (0..large / page).map(|i| 2 * large + i * page).collect();
        assert_eq!(dirty, expected);
        // What is joined counts as dirty: a mark may have been on its way.
        assert_eq!(table.join(range(2 * large, 2 * large), &mut gather), Ok(Progress::Done));
        let mut dirty = 0;
        table
            .harvest(table.aperture(), Usage::all(), &mut gather, |m, usage| {
                assert_eq!(usage, Usage::all());
                dirty += m.memory.len();
            })
            .unwrap();
        assert_eq!(dirty, 2 * large);
        sync(&hal, &mut gather);
    }
    for_each_tracking_format!(check);
}

#[test]
fn marks_that_nobody_sets_or_that_cannot_be_met_are_not_collected() {
    let hal = HostHal::new();
    let mut gather = Gather::new();
    let preset = PageTable::new(&hal, STAGE2_4K.with_accessed_dirty(Preset), config(40)).unwrap();
    let untracked = preset.harvest(preset.aperture(), Usage::all(), &mut gather, |_, _| ());
    assert_eq!(untracked, Err(HarvestError::Untracked));
    let cleaned = Config { writes: TableWrites::Cleaned, ..config(57) };
    let table = PageTable::new(&hal, X86_5, cleaned).unwrap();
    let not_snooped = table.harvest(table.aperture(), Usage::all(), &mut gather, |_, _| ());
    assert_eq!(not_snooped, Err(HarvestError::NotSnooped));
}

/// Golden words: a leaf that hardware marks, as made and as written to (SMMUv3, 3.13.3; VT-d, 9.9; SDM, 5.8).
#[test]
fn leaves_begin_unused_and_writable_clean() {
    fn check<F: Format>(format: F, bits: u8, fresh: u64, dirty: u64) {
        let (hal, table) = table(format, bits);
        table.map(&[rw(0, 0x12_4000_0000, 0x1000)]).unwrap();
        assert_eq!(slot(&hal, &table, format, bits, 0).unwrap().1, fresh);
        assert_eq!(((F::SCHEME.usage)(fresh), (F::SCHEME.usage)(dirty)), (Usage::empty(), Usage::all()));
        assert_eq!((F::SCHEME.with_usage)(fresh), dirty);
        assert_eq!((F::SCHEME.without_usage)(dirty, Usage::all()), fresh);
    }
    check(STAGE1_4K.with_accessed_dirty(Hardware), 39, 0x0068_0012_4000_0bc3, 0x0068_0012_4000_0f43);
    check(STAGE2_4K.with_accessed_dirty(Hardware), 40, 0x0048_0012_4000_037f, 0x0048_0012_4000_07ff);
    check(SECOND_4.with_accessed_dirty(Hardware), 48, 0x12_4000_0003, 0x12_4000_0303);
    check(X86_5, 57, 0x8000_0012_4000_0007, 0x8000_0012_4000_0067);
}

/// Hardware writes through translations that it caches, as dirty too, until a sync; meanwhile leaves are split, joined
/// and harvested. No write is missed: it is in a report made before the sync that follows it, or later.
#[test]
fn no_write_is_missed_while_marks_are_collected_and_leaves_change() {
    fn check<F: Format>(format: F, bits: u8) {
        let (hal, table) = table(format, bits);
        let name = table.root().format;
        let (page, large) = (leaf_sizes(&table)[0], leaf_sizes(&table)[1]);
        if page > 4096 {
            return;
        }
        table.map(&[rw(2 * large, 4 * large, 2 * large)]).unwrap();
        // The number of syncs so far; a sync waits for the walks in progress.
        let syncs = RwLock::new(0_u64);
        let over = AtomicBool::new(false);
        let writes = Mutex::new(BTreeMap::<u64, u64>::new());
        let reports = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for device in 0..2_u64 {
                let (hal, table, syncs, over, writes) = (&hal, &table, &syncs, &over, &writes);
                scope.spawn(move || {
                    let mut cached = (0, BTreeSet::new());
                    let mut random = device + 1;
                    while !over.load(Ordering::Relaxed) {
                        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(device | 1);
                        let iova = 2 * large + (random >> 33) % (2 * large / page) * page;
                        let epoch = syncs.read().unwrap();
                        if cached.0 != *epoch {
                            cached = (*epoch, BTreeSet::new());
                        }
                        while !cached.1.contains(&iova) {
                            let (slot, leaf) = slot(hal, table, format, bits, iova).expect("always mapped");
                            // It looks, and then writes.
                            let used = read(name, leaf);
                            let new = if used == leaf { written(name, leaf) } else { used };
                            let done = slot.compare_exchange(leaf, new, Ordering::SeqCst, Ordering::SeqCst);
                            if done.is_ok() && new == written(name, leaf) {
                                cached.1.insert(iova);
                            }
                        }
                        writes.lock().unwrap().insert(iova, *epoch);
                    }
                });
            }
            struct Over<'a>(&'a AtomicBool);
            impl Drop for Over<'_> {
                fn drop(&mut self) {
                    self.0.store(true, Ordering::Relaxed);
                }
            }
            let _over = Over(&over);
            let sync_all = |gather: &mut Gather| {
                let mut syncs = syncs.write().unwrap();
                sync(&hal, gather);
                *syncs += 1;
            };
            let mut gather = Gather::new();
            for round in 0..if cfg!(miri) { 2 } else { 200 } {
                let done = match round % 3 {
                    0 => table.split(range(2 * large, large + page), page, &mut gather),
                    1 => table.join(range(2 * large, 2 * large), &mut gather),
                    _ => Ok(Progress::Done),
                };
                assert_eq!(done, Ok(Progress::Done));
                let now = *syncs.read().unwrap();
                let mut report = BTreeSet::new();
                let both = |m: Mapping, usage: Usage| {
                    if usage.contains(Usage::DIRTY) {
                        report.extend((m.iova.get()..m.iova.get() + m.memory.len()).step_by(page as usize));
                    }
                };
                table.harvest(table.aperture(), Usage::all(), &mut gather, both).unwrap();
                reports.lock().unwrap().push((now, report));
                sync_all(&mut gather);
            }
        });
        let mut gather = Gather::new();
        let mut last = BTreeSet::new();
        table
            .harvest(table.aperture(), Usage::DIRTY, &mut gather, |m, _| {
                last.extend((m.iova.get()..m.iova.get() + m.memory.len()).step_by(page as usize));
            })
            .unwrap();
        let mut reports = reports.into_inner().unwrap();
        reports.push((u64::MAX, last));
        let writes = writes.into_inner().unwrap();
        assert!(!writes.is_empty());
        for (page, epoch) in writes {
            let reported = reports.iter().any(|(when, pages)| *when >= epoch && pages.contains(&page));
            assert!(reported, "the write to {page:#x} after {epoch} syncs");
        }
        sync(&hal, &mut gather);
    }
    for_each_tracking_format!(check);
}
