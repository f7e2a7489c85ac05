//! For every cache: a missing invalidation keeps the old state reachable, the right one removes it, and a near
//! miss does not.

use portcullis_model::core::{Access, Mode, Outcome, Request};
use portcullis_model::vtd::{Config, Feature, points};

use crate::machine::*;

const OLD: Outcome = Outcome::Done(0x9000);
const NEW: Outcome = Outcome::Done(0xa000);
const GONE: Outcome = Outcome::Fault(0x79);

/// Page 5 of domain 2 is 0x9000.
fn with_second(config: Config) -> Machine {
    let machine = Machine::new(config);
    machine.second_tables(SECOND, 4);
    machine.put(Machine::slot(SECOND, 4, 5), &[0x9003]);
    machine.pasid(0, second_stage(2, SECOND));
    machine.unit.watch(Request::read(DEVICE, 0x5000));
    assert_eq!(machine.reads(0x5000), [OLD]);
    machine
}

fn tagged(address: u64) -> Request {
    Request::read(DEVICE, address).with_pasid(9)
}

#[test]
fn an_unmapped_page_stays_reachable_until_the_iotlb_forgets_it() {
    let machine = with_second(Config::full());
    machine.put(Machine::slot(SECOND, 4, 5), &[0]);
    assert_eq!(machine.reads(0x5000), [OLD, GONE]);
    assert_eq!(machine.dma(Request::read(DEVICE, 0x5000), Mode::Hostile), OLD);
    assert_eq!(machine.read(0x5000), GONE);
    // Another domain, a neighbouring page, a PASID-based invalidation: none of them covers it.
    for wrong in [flush_domain(3), flush_pages(2, 0x6000, 0, 0), flush_pasid(2, 0)] {
        assert!(machine.sync(&[wrong]));
        assert_eq!(machine.reads(0x5000), [OLD, GONE]);
    }
    assert!(machine.sync(&[flush_pages(2, 0x4000, 1, 1)]));
    assert_eq!(machine.reads(0x5000), [GONE]);
    machine.clean();
}

#[test]
fn an_invalidation_counts_only_when_its_wait_completed() {
    let machine = with_second(Config::full());
    machine.put(Machine::slot(SECOND, 4, 5), &[0]);
    machine.submit(&[flush_domain(2)]);
    assert_eq!(machine.reads(0x5000), [OLD, GONE]);
    machine.schedule.script(points::WAIT_LATE, &[1, 1]);
    let (ticket, wait) = machine.ticket();
    machine.submit(&[wait]);
    assert!(!machine.done(ticket));
    assert_eq!(machine.reads(0x5000), [OLD, GONE]);
    assert!(machine.unit.settle(10) && machine.done(ticket));
    assert_eq!(machine.reads(0x5000), [GONE]);
    machine.clean();
}

#[test]
fn a_replaced_table_stays_in_use_under_a_leaf_only_hint() {
    let machine = with_second(Config::full());
    // Another last table for the same region.
    machine.put(0x4_8000 + 5 * 8, &[0xa003]);
    machine.put(SECOND + 0x2000, &[0x4_8000 | 3]);
    assert!(machine.sync(&[flush_pages(2, 0, 9, 1)]));
    assert_eq!(machine.reads(0x5000), [OLD, NEW]);
    assert!(machine.sync(&[flush_pages(2, 0, 9, 0)]));
    assert_eq!(machine.reads(0x5000), [NEW]);
    machine.clean();
}

#[test]
fn a_freed_table_is_walked_until_forgotten() {
    let machine = with_second(Config::full());
    machine.put(SECOND + 0x2000, &[0]);
    assert!(machine.sync(&[flush_pages(2, 0x5000, 0, 1)]));
    // The table's page is reused: hardware reads its new content as entries.
    machine.put(Machine::slot(SECOND, 4, 5), &[0xdead_b003]);
    // The old translation is there too: fetching ahead by the old pointer brought it back.
    assert_eq!(machine.reads(0x5000), [OLD, Outcome::Done(0xdead_b000), GONE]);
    assert!(machine.sync(&[flush_pages(2, 0x5000, 0, 0)]));
    assert_eq!(machine.reads(0x5000), [GONE]);
}

#[test]
fn first_stage_translations_need_pasid_based_invalidation_of_their_pasid() {
    let machine = Machine::full();
    machine.first_tables(FIRST, 4);
    let slot = Machine::slot(FIRST, 4, 5);
    machine.put(slot, &[0x9067]);
    machine.pasid(9, first_stage(2, FIRST));
    machine.unit.watch(tagged(0x5000));
    machine.put(slot, &[0]);
    let gone = Outcome::Fault(0x71);
    for wrong in [flush_pasid(2, 8), flush_pasid(3, 9), flush_pasid_pages(2, 9, 0x6000, 0, 0)] {
        assert!(machine.sync(&[wrong]));
        assert_eq!(machine.reach(tagged(0x5000)), [OLD, gone]);
    }
    assert!(machine.sync(&[flush_pasid_pages(2, 9, 0x5000, 0, 1)]));
    assert_eq!(machine.reach(tagged(0x5000)), [gone]);
    // Table pointers of the first stage: only without the hint.
    machine.put(slot, &[0x9067]);
    machine.unit.observe();
    machine.put(FIRST, &[0]);
    assert!(machine.sync(&[flush_pasid_pages(2, 9, 0x5000, 0, 1)]));
    assert_eq!(machine.reach(tagged(0x5000)), [OLD, gone]);
    assert!(machine.sync(&[flush_pasid(2, 9)]));
    assert_eq!(machine.reach(tagged(0x5000)), [gone]);
    machine.clean();
}

#[test]
fn nested_translations_go_with_either_stage() {
    let machine = Machine::full();
    machine.second_tables(SECOND, 4);
    for page in 0..4 {
        machine.put(Machine::slot(SECOND, 4, 0x30 + page), &[(FIRST + page * 0x1000) | 3]);
    }
    machine.put(Machine::slot(SECOND, 4, 1), &[0x9003]);
    machine.first_tables(FIRST, 4);
    machine.put(Machine::slot(FIRST, 4, 5), &[0x1067]);
    machine.pasid(9, nested(2, FIRST, SECOND));
    machine.unit.watch(tagged(0x5000));
    // A guest page moves: the address of the invalidation is a guest address, the input address is another.
    machine.put(Machine::slot(SECOND, 4, 1), &[0xa003]);
    assert!(machine.sync(&[flush_pasid_pages(2, 9, 0x6000, 0, 0)]));
    assert_eq!(machine.reach(tagged(0x5000)), [OLD, NEW]);
    assert!(machine.sync(&[flush_pages(2, 0x1000, 0, 0)]));
    assert_eq!(machine.reach(tagged(0x5000)), [NEW]);
    // The first stage changes.
    machine.put(Machine::slot(FIRST, 4, 5), &[0]);
    assert_eq!(machine.reach(tagged(0x5000)), [NEW, Outcome::Fault(0x71)]);
    assert!(machine.sync(&[flush_pasid_pages(2, 9, 0x5000, 0, 0)]));
    assert_eq!(machine.reach(tagged(0x5000)), [Outcome::Fault(0x71)]);
    machine.clean();
}

#[test]
fn a_pasid_entry_is_forgotten_by_its_own_domain_and_pasid() {
    let machine = with_second(Config::full());
    machine.put(PASIDS, &[second_stage(2, SECOND)[0] & !1]);
    let absent = Outcome::Fault(0x59);
    assert_eq!(machine.reads(0x5000), [OLD, absent]);
    for wrong in [forget_pasid(3, 0), forget_pasid(2, 1), [3 << 16 | 7, 0], forget_context(DEVICE)] {
        assert!(machine.sync(&[wrong]));
        assert_eq!(machine.reads(0x5000), [OLD, absent]);
    }
    // Translations of the domain alone leave the entry.
    assert!(machine.sync(&[flush_domain(2)]));
    assert_eq!(machine.reads(0x5000), [OLD, absent]);
    assert!(machine.sync(&[forget_pasid(2, 0)]));
    assert_eq!(machine.reads(0x5000), [absent]);
    machine.clean();
}

#[test]
fn forgetting_translations_before_the_entry_leaves_translations() {
    let machine = with_second(Config::full());
    machine.put(PASIDS, &[second_stage(2, SECOND)[0] & !1]);
    // The wrong order, with a fetch in between: the old entry fills the IOTLB again.
    machine.schedule.script(points::QUEUE_PAUSE, &[0, 1]);
    machine.submit(&[flush_domain(2), forget_pasid(2, 0)]);
    machine.unit.observe();
    assert!(machine.sync(&[]));
    // Domain 2 is used by another table now, and the old page shows through.
    machine.second_tables(0x4_8000, 4);
    machine.put(Machine::slot(0x4_8000, 4, 5), &[0xa003]);
    machine.pasid(0, second_stage(2, 0x4_8000));
    assert_eq!(machine.reads(0x5000), [OLD, NEW]);
    // The right order: nothing is left even though hardware fetches in between.
    let machine = with_second(Config::full());
    machine.put(PASIDS, &[second_stage(2, SECOND)[0] & !1]);
    machine.schedule.script(points::QUEUE_PAUSE, &[0, 1]);
    machine.submit(&[forget_pasid(2, 0), flush_domain(2)]);
    machine.unit.observe();
    assert!(machine.sync(&[]));
    machine.second_tables(0x4_8000, 4);
    machine.put(Machine::slot(0x4_8000, 4, 5), &[0xa003]);
    machine.pasid(0, second_stage(2, 0x4_8000));
    assert_eq!(machine.reads(0x5000), [NEW]);
    machine.clean();
}

#[test]
fn a_context_entry_is_forgotten_by_its_requester() {
    let machine = with_second(Config::full());
    machine.put(CONTEXT, &[0]);
    let absent = Outcome::Fault(0x41);
    for wrong in [forget_context(DEVICE + 8), [2 << 4 | 1, 0], [0x37, 0], [0x12, 0]] {
        assert!(machine.sync(&[wrong]));
        assert!(machine.reads(0x5000).contains(&absent) && machine.reads(0x5000).len() == 2);
    }
    assert!(machine.sync(&[forget_context(DEVICE)]));
    assert_eq!(machine.reads(0x5000), [absent]);
    // The function mask widens it.
    machine.put(CONTEXT, &[DIRECTORY | 1]);
    machine.unit.observe();
    machine.put(CONTEXT, &[0]);
    assert!(machine.sync(&[[0x0003_001a_0000_0031, 0]]));
    assert_eq!(machine.reads(0x5000), [absent]);
    machine.clean();
}

#[test]
fn a_swapped_directory_is_followed_by_old_and_new_contexts() {
    let machine = with_second(Config::full());
    let (directory, pasids) = (0x2_8000, 0x2_9000);
    machine.put(pasids + 8, &[3 | 1 << 23]);
    machine.put(pasids, &[4 << 6 | 2 << 2 | 1]);
    machine.put(directory, &[pasids | 1]);
    machine.put(CONTEXT, &[directory | 1]);
    assert_eq!(machine.reads(0x5000), [Outcome::Done(0x5000), OLD]);
    assert!(machine.sync(&[forget_context(DEVICE)]));
    // The old PASID entry is still cached.
    assert_eq!(machine.reads(0x5000), [Outcome::Done(0x5000), OLD]);
    assert!(machine.sync(&[forget_pasid(2, 0)]));
    assert_eq!(machine.reads(0x5000), [Outcome::Done(0x5000)]);
    machine.clean();
}

#[test]
fn second_stage_translations_are_shared_by_all_users_of_a_domain_id() {
    let machine = with_second(Config::full());
    // Another PASID of the device uses the same domain id for other tables: they mix.
    machine.second_tables(0x4_8000, 4);
    machine.put(Machine::slot(0x4_8000, 4, 5), &[0xa003]);
    machine.pasid(9, second_stage(2, 0x4_8000));
    assert_eq!(machine.reach(tagged(0x5000)), [OLD, NEW]);
    // First-stage translations are tagged by PASID as well.
    let machine = Machine::full();
    for (pasid, table, page) in [(8, FIRST, 0x9067), (9, 0x3_8000, 0xa067)] {
        machine.first_tables(table, 4);
        machine.put(Machine::slot(table, 4, 5), &[page]);
        machine.pasid(pasid, first_stage(2, table));
        machine.unit.watch(Request::read(DEVICE, 0x5000).with_pasid(pasid as u32));
    }
    assert_eq!(machine.reach(tagged(0x5000)), [NEW]);
}

#[test]
fn a_stale_second_stage_translation_serves_every_pasid_of_its_domain() {
    let machine = with_second(Config::full());
    machine.pasid(9, second_stage(2, SECOND));
    machine.put(Machine::slot(SECOND, 4, 5), &[0]);
    assert_eq!(machine.reach(tagged(0x5000)), [OLD, GONE]);
    // PASID-based invalidations do not reach second-stage translations.
    assert!(machine.sync(&[flush_pasid(2, 9), flush_pasid(2, 0)]));
    assert_eq!(machine.reach(tagged(0x5000)), [OLD, GONE]);
    assert!(machine.sync(&[flush_domain(2)]));
    assert_eq!(machine.reach(tagged(0x5000)), [GONE]);
}

#[test]
fn without_caching_mode_new_entries_need_no_invalidation() {
    let machine = with_second(Config::full());
    machine.unit.watch(Request::read(DEVICE, 0x6000));
    assert_eq!(machine.reads(0x6000), [GONE]);
    machine.put(Machine::slot(SECOND, 4, 6), &[0xa003]);
    assert_eq!(machine.reads(0x6000), [NEW]);
}

#[test]
fn in_caching_mode_absence_is_cached_everywhere_but_in_the_first_stage() {
    let config = Config::full().with(Feature::CachingMode);
    let machine = Machine::new(config);
    machine.unit.watch(Request::read(DEVICE, 0x5000));
    machine.second_tables(SECOND, 4);
    machine.pasid(0, second_stage(2, SECOND));
    assert_eq!(machine.reads(0x5000), [Outcome::Fault(0x59), GONE]);
    assert!(machine.sync(&[forget_pasid(2, 0)]));
    assert_eq!(machine.reads(0x5000), [GONE]);
    machine.put(Machine::slot(SECOND, 4, 5), &[0x9003]);
    assert_eq!(machine.reads(0x5000), [OLD, GONE]);
    assert!(machine.sync(&[flush_pages(2, 0x5000, 0, 1)]));
    assert_eq!(machine.reads(0x5000), [OLD]);
    // First stage.
    machine.first_tables(FIRST, 4);
    machine.pasid(9, first_stage(3, FIRST));
    assert!(machine.sync(&[forget_pasid(3, 9)]));
    machine.unit.watch(tagged(0x5000));
    assert_eq!(machine.reach(tagged(0x5000)), [Outcome::Fault(0x71)]);
    machine.put(Machine::slot(FIRST, 4, 5), &[0x9067]);
    assert_eq!(machine.reach(tagged(0x5000)), [OLD]);
    machine.clean();
}

#[test]
fn an_absent_entry_goes_with_its_pasid_or_with_domain_0() {
    let absent = Outcome::Fault(0x59);
    let prepare = || {
        let machine = Machine::new(Config::full().with(Feature::CachingMode));
        machine.unit.watch(Request::read(DEVICE, 0x5000));
        machine.pasid(0, pass_through(1));
        assert_eq!(machine.reads(0x5000), [Outcome::Done(0x5000), absent]);
        machine
    };
    let machine = prepare();
    for wrong in [[(1 << 16) | 7, 0], forget_pasid(1, 1)] {
        assert!(machine.sync(&[wrong]));
        assert_eq!(machine.reads(0x5000), [Outcome::Done(0x5000), absent]);
    }
    for right in [[7, 0], forget_pasid(5, 0), [0x37, 0]] {
        let machine = prepare();
        assert!(machine.sync(&[right]));
        assert_eq!(machine.reads(0x5000), [Outcome::Done(0x5000)]);
    }
}

#[test]
fn an_absent_moment_goes_although_the_entry_before_it_stays() {
    let machine = with_second(Config::full().with(Feature::CachingMode));
    machine.put(PASIDS, &[0]);
    machine.unit.observe();
    machine.pasid(0, pass_through(3));
    assert!(machine.sync(&[forget_pasid(3, 0)]));
    // Domain 2 was not named: its entry is still there. The moment between the two is not.
    assert_eq!(machine.reads(0x5000), [Outcome::Done(0x5000), OLD]);
}

#[test]
fn first_stage_entries_are_cached_only_with_their_accessed_flag() {
    let machine = Machine::full();
    machine.first_tables(FIRST, 4);
    machine.put(FIRST, &[(FIRST + 0x1000) | 7]);
    machine.put(Machine::slot(FIRST, 4, 5), &[0x9067]);
    machine.pasid(9, first_stage(2, FIRST));
    machine.unit.watch(tagged(0x5000));
    // Another way below the top: nothing was cached that software would have to invalidate.
    machine.first_tables(0x3_8000, 4);
    machine.put(Machine::slot(0x3_8000, 4, 5), &[0xa067]);
    machine.put(FIRST, &[0x3_9007]);
    assert_eq!(machine.reach(tagged(0x5000)), [NEW]);
    // The accessed flag is set by a transaction; from then on it may be.
    assert_eq!(machine.dma(tagged(0x5000), Mode::Fresh), NEW);
    machine.put(FIRST, &[0]);
    assert_eq!(machine.reach(tagged(0x5000)), [NEW, Outcome::Fault(0x71)]);
}

#[test]
fn a_write_cannot_use_a_translation_whose_dirty_flag_is_clear() {
    let machine = Machine::full();
    machine.first_tables(FIRST, 4);
    machine.put(Machine::slot(FIRST, 4, 5), &[0x9027]);
    machine.pasid(9, first_stage(2, FIRST));
    machine.unit.watch(tagged(0x5000));
    machine.put(Machine::slot(FIRST, 4, 5), &[0]);
    let gone = Outcome::Fault(0x71);
    assert_eq!(machine.reach(tagged(0x5000)), [OLD, gone]);
    assert_eq!(machine.reach(tagged(0x5000).with_access(Access::Write)), [gone]);
}

#[test]
fn a_large_page_goes_with_any_page_in_it() {
    let machine = Machine::full();
    machine.second_tables(SECOND, 4);
    machine.put(SECOND + 0x2000, &[0x4000_0083]);
    machine.pasid(0, second_stage(2, SECOND));
    machine.unit.watch(Request::read(DEVICE, 0x5000));
    machine.put(SECOND + 0x2000, &[0]);
    assert_eq!(machine.reads(0x6000), [Outcome::Done(0x4000_6000), GONE]);
    assert!(machine.sync(&[flush_pages(2, 0x1f_f000, 0, 1)]));
    assert_eq!(machine.reads(0x6000), [GONE]);
}

#[test]
fn a_device_refills_from_a_stale_iotlb_when_told_to_forget_first() {
    let machine = with_second(Config::full());
    machine.connect();
    machine.put(Machine::slot(SECOND, 4, 5), &[0]);
    // Device first: between its confirmation and the IOTLB invalidation it may ask again and get the old page.
    machine.submit(&[flush_device(DEVICE, 0x5000)]);
    machine.confirm();
    let stale = machine.reach(translation_request(0x5000));
    assert!(
        stale.iter().any(|outcome| matches!(outcome, Outcome::Granted(grant) if grant.address == 0x9000))
    );
    // IOTLB first: by the time the device is told, the IOTLB has forgotten.
    machine.submit(&[flush_pages(2, 0x5000, 0, 1), flush_device(DEVICE, 0x5000)]);
    assert_eq!(machine.reach(translation_request(0x5000)), [Outcome::NotGranted]);
    machine.confirm();
    machine.clean();
}

#[test]
fn any_mode_takes_each_of_the_allowed_behaviours() {
    let machine = with_second(Config::full());
    machine.put(Machine::slot(SECOND, 4, 5), &[0]);
    machine.schedule.script(points::DMA, &[0, 1]);
    let request = Request::read(DEVICE, 0x5000);
    let outcomes =
        [outcome(machine.unit.dma(request, Mode::Any)), outcome(machine.unit.dma(request, Mode::Any))];
    assert!(outcomes.contains(&OLD) && outcomes.contains(&GONE));
    assert!(machine.unit.coverage().of("dma", "IOTLB") > 0);
}
