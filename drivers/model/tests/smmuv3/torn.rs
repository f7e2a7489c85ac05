//! Entries seen in parts, and schedules that decide which parts.

use crate::bench::*;
use portcullis_model::core::{Mode, Outcome, Request};
use portcullis_model::smmuv3::{Config, code, points};

fn reachable(bench: &Bench) -> Vec<Outcome> {
    bench.smmu.reachable(read()).into_iter().collect()
}

#[test]
fn an_ste_written_valid_word_first_is_seen_half_done() {
    let bench = Bench::new(Config::qemu());
    bench.stage1();
    bench.map2(VA, OTHER | LEAF2);
    bench.smmu.watch(read());
    bench.smmu.observe();
    // From stage 1 to stage 2 in the wrong order: word 0 first, while the words it needs are still empty.
    let new = ste2();
    bench.ram.store(STREAMS + 64 * 3, new[0]);
    bench.smmu.step();
    assert_eq!(reachable(&bench), [Outcome::Done(PAGE), Outcome::Fault(code::C_BAD_STE)]);
    for (word, value) in new.iter().enumerate().skip(1) {
        bench.ram.store(STREAMS + 64 * 3 + 8 * word as u64, *value);
        bench.smmu.step();
    }
    // Every mix is possible until the invalidation completed, the broken one among them.
    let mixed = reachable(&bench);
    assert!(mixed.contains(&Outcome::Fault(code::C_BAD_STE)), "{mixed:?}");
    assert!(mixed.contains(&Outcome::Done(PAGE)) && mixed.contains(&Outcome::Done(OTHER)), "{mixed:?}");
    bench.synced(&[cfgi_ste(SID)]);
    assert_eq!(reachable(&bench), [Outcome::Done(OTHER)]);
    bench.clean();
}

#[test]
fn an_ste_written_in_the_recommended_order_is_old_invalid_or_new() {
    let bench = Bench::new(Config::qemu());
    bench.stage1();
    bench.map2(VA, OTHER | LEAF2);
    bench.smmu.watch(read());
    bench.smmu.observe();
    let allowed = [Outcome::Done(PAGE), Outcome::Done(OTHER), Outcome::Fault(code::C_BAD_STE)];
    let store = |word: u64, value: u64| {
        bench.ram.store(STREAMS + 64 * 3 + 8 * word, value);
        bench.smmu.step();
        assert!(reachable(&bench).iter().all(|outcome| allowed.contains(outcome)));
    };
    let new = ste2();
    store(0, 0);
    bench.synced(&[cfgi_ste(SID)]);
    assert_eq!(reachable(&bench), [Outcome::Fault(code::C_BAD_STE)]);
    (1..8).for_each(|word| store(word, new[word as usize]));
    bench.synced(&[cfgi_ste(SID)]);
    store(0, new[0]);
    bench.synced(&[cfgi_ste(SID)]);
    assert_eq!(reachable(&bench), [Outcome::Done(OTHER)]);
    let moves = [("ste", "stage 1", "invalid", 1), ("ste", "invalid", "stage 2", 1)];
    assert_eq!(bench.smmu.coverage().below(&moves), [""; 0]);
}

#[test]
fn a_cd_whose_asid_and_table_change_together_is_seen_mixed() {
    let bench = Bench::new(Config::qemu());
    bench.stage1();
    // Another address space: ASID 8, its own tables.
    bench.ram.store_all(0x48_0000, &[0x48_1003]);
    bench.ram.store_all(0x48_1000 + 8 * (VA >> 21 & 0x1ff), &[0x48_2003]);
    bench.ram.store_all(0x48_2000 + 8 * (VA >> 12 & 0x1ff), &[OTHER | LEAF]);
    bench.smmu.watch(read());
    bench.smmu.observe();
    let new = cd_of(8, 0x48_0000);
    bench.ram.store(CD, new[0]);
    bench.smmu.step();
    bench.ram.store(CD + 8, new[1]);
    bench.smmu.step();
    bench.synced(&[cfgi_cd(SID, 0)]);
    // The mix of the new ASID with the old table, used in between, left the old page under the new ASID.
    assert_eq!(reachable(&bench), [Outcome::Done(PAGE), Outcome::Done(OTHER)]);
    bench.synced(&[tlbi_asid(0, 8)]);
    assert_eq!(reachable(&bench), [Outcome::Done(OTHER)]);
}

#[test]
fn the_two_modes_and_a_script_choose_among_the_possible_translations() {
    let bench = Bench::new(Config::qemu());
    bench.stage1();
    assert_eq!(bench.read(Mode::Fresh), Outcome::Done(PAGE));
    bench.leaf1(OTHER | LEAF);
    assert_eq!(bench.read(Mode::Fresh), Outcome::Done(OTHER));
    assert_eq!(bench.read(Mode::Hostile), Outcome::Done(PAGE));
    bench.schedule.script(points::LOOKUP, &[1, 0]);
    assert_eq!(bench.read(Mode::Any), Outcome::Done(PAGE));
    assert_eq!(bench.read(Mode::Any), Outcome::Done(OTHER));
    let coverage = bench.smmu.coverage();
    assert_eq!((coverage.of("lookup", "stale"), coverage.of("lookup", "as memory says")), (2, 3));
}

#[test]
fn hostile_hardware_prefers_a_stale_success_to_a_fresh_fault() {
    let bench = Bench::new(Config::qemu());
    bench.stage1();
    assert_eq!(bench.read(Mode::Fresh), Outcome::Done(PAGE));
    bench.leaf1(0);
    assert_eq!(bench.read(Mode::Hostile), Outcome::Done(PAGE));
    assert_eq!(bench.event_codes(), [0; 0]);
    assert_eq!(bench.smmu.expected(read()), Outcome::Fault(code::F_TRANSLATION));
    bench.synced(&[tlbi_va(0, ASID, VA)]);
    assert_eq!(bench.read(Mode::Hostile), Outcome::Fault(code::F_TRANSLATION));
    assert_eq!(bench.smmu.dma(Request::read(4, VA), Mode::Hostile).outcome, Outcome::Fault(code::C_BAD_STE));
}

#[test]
fn asking_what_is_reachable_changes_nothing() {
    let bench = Bench::new(Config::full());
    bench.nested();
    let before = bench.smmu.tlb_len();
    reachable(&bench);
    assert_eq!(bench.smmu.tlb_len(), before);
    bench.read(Mode::Fresh);
    assert_ne!(bench.smmu.tlb_len(), before);
}

#[test]
fn an_update_that_changes_one_word_in_use_at_a_time_is_never_invalid() {
    let bench = Bench::new(Config::qemu());
    bench.stage1();
    bench.map2(VA, OTHER | LEAF2);
    bench.smmu.watch(read());
    bench.smmu.observe();
    let allowed = [Outcome::Done(PAGE), Outcome::Done(OTHER)];
    let store = |word: u64, value: u64| {
        bench.ram.store(STREAMS + 64 * 3 + 8 * word, value);
        bench.smmu.step();
        let reachable = reachable(&bench);
        assert!(reachable.iter().all(|outcome| allowed.contains(outcome)), "word {word}: {reachable:x?}");
    };
    // Stage 1 to stage 2: first the words that stage 1 does not use (VMID, which it does, stays), then word 0.
    let mut new = ste2();
    new[2] &= !0xffff;
    store(2, new[2]);
    store(3, new[3]);
    bench.map2(VA, OTHER | LEAF2);
    bench.synced(&[cfgi_ste(SID)]);
    store(0, new[0]);
    bench.synced(&[cfgi_ste(SID)]);
    store(1, new[1]);
    bench.synced(&[cfgi_ste(SID)]);
    assert_eq!(reachable(&bench), [Outcome::Done(OTHER)]);
    bench.clean();
}

#[test]
fn driver_and_devices_use_the_unit_from_several_threads() {
    let bench = Bench::new(Config::full());
    bench.stage1();
    let smmu = bench.smmu.clone();
    bench.ram.set_hook(move |_, _| {
        smmu.step();
    });
    bench.schedule.odds(points::CMDQ_PAUSE, 1, 2).odds(points::SYNC_LATE, 1, 2);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let outcome = bench.smmu.dma(read(), Mode::Any).outcome;
                    assert!(
                        matches!(outcome, Outcome::Done(_) | Outcome::Fault(code::F_TRANSLATION)),
                        "{outcome:?}"
                    );
                }
            });
        }
        for n in 0..50 {
            bench.leaf1((PAGE + (n << 12)) | LEAF);
            bench.leaf1(0);
            bench.synced(&[tlbi_va(0, ASID, VA)]);
        }
    });
    assert_eq!(bench.read(Mode::Hostile), Outcome::Fault(code::F_TRANSLATION));
    bench.clean();
}
