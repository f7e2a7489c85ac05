//! Hardware updates of access flag and dirty state.

use crate::bench::*;
use portcullis_model::core::{Mode, Outcome, Request};
use portcullis_model::smmuv3::{Config, code};

const AF: u64 = 1 << 10;
const READ_ONLY: u64 = 1 << 7;
const DBM: u64 = 1 << 51;

fn leaf_at() -> u64 {
    S1[2] + 8 * (VA >> 12 & 0x1ff)
}

fn updating() -> Bench {
    let bench = Bench::new(Config::full());
    bench.stage1();
    let mut words = cd();
    words[0] |= 3 << 42;
    bench.cd(CD, words);
    bench.synced(&[cfgi_cd(SID, 0)]);
    bench
}

#[test]
fn an_access_sets_the_access_flag_and_only_then_is_the_leaf_cached() {
    let bench = updating();
    bench.leaf1(PAGE | LEAF & !AF);
    bench.smmu.watch(read());
    bench.smmu.observe();
    assert_eq!(bench.ram.load(leaf_at()) & AF, 0, "fetching ahead sets nothing");
    assert_eq!(bench.read(Mode::Fresh), Outcome::Done(PAGE));
    assert_eq!(bench.ram.load(leaf_at()), PAGE | LEAF);
    assert_eq!(bench.smmu.coverage().of("httu", "access flag"), 1);
    assert_eq!(bench.smmu.tlb_len()[0], 0);
    bench.smmu.observe();
    assert_eq!(bench.smmu.tlb_len()[0], 1);
}

#[test]
fn a_write_makes_a_writable_clean_page_dirty() {
    let bench = updating();
    let clean = PAGE | LEAF | READ_ONLY | DBM;
    bench.leaf1(clean);
    assert_eq!(bench.read(Mode::Fresh), Outcome::Done(PAGE));
    assert_eq!(bench.ram.load(leaf_at()), clean);
    assert_eq!(bench.write(Mode::Hostile), Outcome::Done(PAGE));
    assert_eq!(bench.ram.load(leaf_at()), clean & !READ_ONLY);
    bench.leaf1(PAGE | LEAF | READ_ONLY);
    bench.synced(&[tlbi_va(0, ASID, VA)]);
    assert_eq!(bench.write(Mode::Fresh), Outcome::Fault(code::F_PERMISSION), "not writable at all");
}

#[test]
fn a_cached_writable_clean_entry_does_not_write_through_a_changed_descriptor() {
    let bench = updating();
    bench.leaf1(PAGE | LEAF | READ_ONLY | DBM);
    bench.read(Mode::Fresh);
    // Software takes the page away: the dirty update has to find the old descriptor, and does not.
    bench.leaf1(0);
    assert!(bench.smmu.reachable(read()).contains(&Outcome::Done(PAGE)), "reads may still hit");
    let writes = bench.smmu.reachable(Request::write(SID, VA));
    assert!(!writes.contains(&Outcome::Done(PAGE)), "{writes:?}");
}

#[test]
fn stage_2_flags_are_updated_too() {
    let bench = Bench::new(Config::full());
    let clean = PAGE | LEAF2 & !(AF | READ_ONLY) | DBM;
    bench.map2(VA, clean);
    let mut words = ste2();
    words[2] |= 3 << 55;
    bench.install(SID, words);
    assert_eq!(bench.read(Mode::Fresh), Outcome::Done(PAGE));
    assert_eq!(bench.ram.load(leaf2(VA)), clean | AF);
    assert_eq!(bench.write(Mode::Fresh), Outcome::Done(PAGE));
    assert_eq!(bench.ram.load(leaf2(VA)), clean | AF | READ_ONLY, "S2AP[1]");
}

#[test]
fn stage_1_updates_need_stage_2_write_permission() {
    let bench = Bench::new(Config::full());
    bench.nested();
    let mut words = cd();
    words[0] |= 1 << 43;
    bench.cd(CD, words);
    bench.leaf1(IPA | LEAF & !AF);
    bench.map2(0x40_2000, 0x40_2000 | LEAF2 & !(1 << 7));
    assert_eq!(bench.read(Mode::Fresh), Outcome::Fault(code::F_PERMISSION));
    let [event] = bench.events()[..] else { panic!() };
    assert_eq!(event[1], 1 << 35 | 1 << 39 | 1 << 40, "S2, CLASS TT, TTRnW: a write");
}
