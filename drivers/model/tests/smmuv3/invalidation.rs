//! Each cache: what a missing, a wrong and the right invalidation do.

use crate::bench::*;
use portcullis_model::core::{Mode, Outcome, Request};
use portcullis_model::smmuv3::{Broadcast, Config, code};

const MISS: Outcome = Outcome::Fault(code::F_TRANSLATION);

/// After `prepare` and `change`, the old outcome stays possible through every command of `wrong`, and through
/// `right` until its CMD_SYNC completed; then only `new` is.
fn only(bench: &Bench, request: Request, old: Outcome, new: Outcome, wrong: &[[u64; 2]], right: [u64; 2]) {
    let stale = || bench.smmu.reachable(request).contains(&old);
    assert!(stale(), "without an invalidation");
    for command in wrong {
        bench.synced(&[*command]);
        assert!(stale(), "{command:x?} does not cover it");
    }
    bench.commands(&[right]);
    assert!(stale(), "{right:x?} is not synchronised");
    bench.synced(&[]);
    assert_eq!(bench.smmu.reachable(request).into_iter().collect::<Vec<_>>(), [new], "{right:x?}");
    bench.clean();
}

fn cached(bench: &Bench, request: Request) -> Outcome {
    bench.smmu.dma(request, Mode::Fresh).outcome
}

#[test]
fn a_stage_1_leaf() {
    let page = Outcome::Done(PAGE);
    for right in [
        tlbi_va(0, ASID, VA),
        tlbi_va(0, ASID, VA & !0xfff),
        [0x13, VA | 1],
        tlbi_asid(0, ASID),
        [0x10, 0],
        [0x30, 0],
        // Ranges: two 4K pages from the one before; 2^(5) pages; level 3.
        [0x12 | ASID << 48 | 1 << 12, (VA - 0x1000) | 1 << 10 | 1],
        [0x12 | ASID << 48 | 5 << 20, (VA & !0x1_ffff) | 1 << 10 | 1],
        [0x12 | ASID << 48, VA | 1 << 10 | 3 << 8 | 1],
        [0x12 | ASID << 48, VA | 1 << 10 | 3 << 8],
        [0x28, 0],
    ] {
        let bench = Bench::new(Config::qemu());
        bench.stage1();
        assert_eq!(cached(&bench, read()), page);
        bench.leaf1(0);
        let wrong = [
            tlbi_va(0, ASID + 1, VA),
            tlbi_va(1, ASID, VA),
            tlbi_va(0, ASID, VA + 0x1000),
            tlbi_asid(1, ASID),
            [0x12 | ASID << 48 | 1 << 12, (VA + 0x1000) | 1 << 10 | 1],
            // Another granule, another level.
            [0x12 | ASID << 48 | 1 << 12, (VA & !0x3fff) | 2 << 10 | 1],
            [0x12 | ASID << 48 | 1 << 12, (VA & !0x1f_ffff) | 1 << 10 | 2 << 8 | 1],
            tlbi_ipa(0, VA),
            cfgi_ste(SID),
            [0x04, 31],
        ];
        only(&bench, read(), page, MISS, &wrong, right);
    }
}

#[test]
fn a_global_leaf_outlives_its_asid() {
    let bench = Bench::new(Config::qemu());
    bench.stage1();
    bench.leaf1(PAGE | LEAF & !(1 << 11));
    assert_eq!(cached(&bench, read()), Outcome::Done(PAGE));
    bench.leaf1(0);
    let by_any_asid = tlbi_va(0, 0x55, VA);
    only(&bench, read(), Outcome::Done(PAGE), MISS, &[tlbi_asid(0, ASID)], by_any_asid);
}

#[test]
fn a_global_leaf_serves_other_address_spaces_of_its_set() {
    let bench = Bench::new(Config::qemu());
    bench.stage1();
    bench.leaf1(PAGE | LEAF & !(1 << 11));
    cached(&bench, read());
    bench.leaf1(0);
    let other = Request::read(4, VA);
    let mut words = cd_of(9, S1[0]);
    bench.cd(0x31_0000, words);
    bench.install(4, ste1(0x31_0000));
    assert!(bench.smmu.reachable(other).contains(&Outcome::Done(PAGE)));
    words[0] &= !(1 << 47);
    bench.cd(0x31_0000, words);
    bench.synced(&[cfgi_cd(4, 0)]);
    assert!(!bench.smmu.reachable(other).contains(&Outcome::Done(PAGE)), "ASET differs");
}

#[test]
fn a_pointer_to_a_stage_1_table() {
    for right in [[0x12 | ASID << 48, VA], [0x13, VA], tlbi_asid(0, ASID), [0x10, 0]] {
        let bench = Bench::new(Config::qemu());
        bench.stage1();
        // Only the pointers are cached: the leaf is not there yet.
        bench.leaf1(0);
        cached(&bench, read());
        // The table is cut off, and its memory becomes something else.
        bench.ram.store_all(S1[1] + 8 * (VA >> 21 & 0x1ff), &[0]);
        bench.leaf1(PAGE | LEAF);
        let wrong = [tlbi_va(0, ASID, VA), [0x12 | ASID << 48 | 1 << 12, VA | 1 << 10 | 1]];
        only(&bench, read(), Outcome::Done(PAGE), MISS, &wrong, right);
    }
}

#[test]
fn a_level_hint_limits_which_table_pointers_go() {
    let bench = Bench::new(Config::qemu());
    bench.stage1();
    bench.leaf1(0);
    cached(&bench, read());
    bench.ram.store_all(S1[1] + 8 * (VA >> 21 & 0x1ff), &[0]);
    bench.leaf1(PAGE | LEAF);
    // TTL 2, Leaf 0: pointers at levels 0 and 1 go, the level-2 pointer to the last table stays.
    let level2 = [0x12 | ASID << 48, (VA & !0x1f_ffff) | 1 << 10 | 2 << 8];
    let level3 = [0x12 | ASID << 48, VA | 1 << 10 | 3 << 8];
    only(&bench, read(), Outcome::Done(PAGE), MISS, &[level2], level3);
}

#[test]
fn a_stage_2_leaf() {
    let page = Outcome::Done(PAGE);
    for right in [
        tlbi_ipa(VMID, VA),
        [0x28 | VMID << 32, 0],
        [0x30, 0],
        [0x2a | VMID << 32 | 3 << 12, (VA - 0x3000) | 1 << 10 | 1],
    ] {
        let bench = Bench::new(Config::qemu());
        bench.stage2();
        assert_eq!(cached(&bench, read()), page);
        bench.ram.store_all(leaf2(VA), &[0]);
        let wrong = [
            tlbi_ipa(VMID + 1, VA),
            tlbi_ipa(VMID, VA + 0x1000),
            [0x10 | VMID << 32, 0],
            [0x13 | VMID << 32, VA],
            cfgi_ste(SID),
        ];
        only(&bench, read(), page, MISS, &wrong, right);
    }
}

#[test]
fn a_pointer_to_a_stage_2_table() {
    let bench = Bench::new(Config::qemu());
    bench.stage2();
    bench.ram.store_all(leaf2(VA), &[0]);
    cached(&bench, read());
    bench.ram.store_all(0x50_2000 + 8 * (VA >> 21 & 0x1ff), &[0]);
    bench.ram.store_all(leaf2(VA), &[PAGE | LEAF2]);
    let right = [0x2a | VMID << 32, VA];
    only(&bench, read(), Outcome::Done(PAGE), MISS, &[tlbi_ipa(VMID, VA)], right);
}

#[test]
fn both_stages_in_one_entry_need_stage_1_invalidation_too() {
    for right in [[0x10 | VMID << 32, 0], [0x13 | VMID << 32, VA | 1], [0x28 | VMID << 32, 0]] {
        let bench = Bench::new(Config::qemu());
        bench.nested();
        assert_eq!(cached(&bench, read()), Outcome::Done(PAGE));
        bench.ram.store_all(leaf2(IPA), &[0]);
        bench.synced(&[tlbi_ipa(VMID, IPA)]);
        only(&bench, read(), Outcome::Done(PAGE), MISS, &[tlbi_ipa(VMID, VA)], right);
    }
}

#[test]
fn a_walk_cache_may_hold_stage_1_pointers_with_stage_2_applied() {
    let bench = Bench::new(Config::qemu());
    bench.nested();
    cached(&bench, read());
    bench.leaf1(0);
    bench.synced(&[[0x13 | VMID << 32, VA | 1]]);
    // The guest's last table page moves in stage 2; its old place holds something else now.
    bench.ram.store_all(leaf2(0x40_2000), &[0]);
    bench.leaf1(IPA | LEAF);
    bench.synced(&[tlbi_ipa(VMID, 0x40_2000)]);
    only(&bench, read(), Outcome::Done(PAGE), MISS, &[], [0x10 | VMID << 32, 0]);
}

#[test]
fn an_ste() {
    for right in [cfgi_ste(SID), [cfgi_ste(SID)[0], 0], [0x04, 31], [0x04 | 2 << 32, 0]] {
        let bench = Bench::new(Config::qemu());
        bench.install(SID, [9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(cached(&bench, read()), Outcome::Done(VA));
        bench.ste(SID, [1, 0, 0, 0, 0, 0, 0, 0]);
        let wrong = [cfgi_ste(2), [0x06 | 3 << 32, 0], cfgi_cd(SID, 0), [0x04 | 4 << 32, 0], [0x30, 0]];
        only(&bench, read(), Outcome::Done(VA), Outcome::Aborted, &wrong, right);
    }
}

#[test]
fn an_invalid_ste_is_cached_too() {
    let bench = Bench::new(Config::qemu());
    cached(&bench, read());
    bench.ste(SID, [9, 0, 0, 0, 0, 0, 0, 0]);
    only(&bench, read(), Outcome::Fault(code::C_BAD_STE), Outcome::Done(VA), &[], cfgi_ste(SID));
}

#[test]
fn a_level_1_stream_table_descriptor() {
    let bench = Bench::new(Config::qemu());
    bench.smmu.write32(0x20, 0xc);
    bench.smmu.write32(0x88, 1 << 16 | 8 << 6 | 10);
    bench.smmu.write32(0x20, 0xd);
    let (old, new) = (0x24_0000, 0x25_0000);
    bench.ram.store_all(STREAMS, &[old | 5]);
    bench.ram.store_all(old + 64 * 3, &[1, 0]);
    bench.ram.store_all(new + 64 * 3, &[9, 0]);
    assert_eq!(cached(&bench, read()), Outcome::Aborted);
    bench.ram.store_all(STREAMS, &[new | 5]);
    // Leaf 1 drops the STE only: the old pointer may be followed again.
    only(&bench, read(), Outcome::Aborted, Outcome::Done(VA), &[cfgi_ste(SID)], [cfgi_ste(SID)[0], 0]);
}

#[test]
fn a_cd() {
    for right in [cfgi_cd(SID, 0), [0x06 | 3 << 32, 0], cfgi_ste(SID), [0x04, 31]] {
        let bench = Bench::new(Config::qemu());
        bench.stage1();
        cached(&bench, read());
        bench.synced(&[tlbi_asid(0, ASID)]);
        bench.leaf1(OTHER | LEAF);
        bench.cd(CD, [0; 8]);
        let wrong = [cfgi_cd(SID, 1), cfgi_cd(2, 0), tlbi_asid(0, ASID)];
        only(&bench, read(), Outcome::Done(OTHER), Outcome::Fault(code::C_BAD_CD), &wrong, right);
    }
}

#[test]
fn a_level_1_cd_descriptor() {
    for right in [[cfgi_cd(SID, 69)[0], 0], [0x06 | 3 << 32, 0], cfgi_ste(SID)] {
        let bench = Bench::new(Config::full());
        bench.map1(PAGE | LEAF);
        let (table, leaf) = (0x34_0000, 0x36_0000);
        bench.ram.store_all(table, &[0, leaf | 1]);
        bench.cd(leaf + 64 * 5, cd());
        bench.install(SID, [table | 0xb | 1 << 4 | 8 << 59, 0xd4, 0, 0, 0, 0, 0, 0]);
        let request = read().with_pasid(64 | 5);
        assert_eq!(cached(&bench, request), Outcome::Done(PAGE));
        bench.ram.store_all(table, &[0, 0]);
        // Leaf 1 drops the CD, but it is found again through the cached pointer.
        let wrong = [cfgi_cd(SID, 69), [cfgi_cd(SID, 5)[0], 0]];
        only(&bench, request, Outcome::Done(PAGE), Outcome::Fault(code::C_BAD_SUBSTREAMID), &wrong, right);
    }
}

#[test]
fn a_contiguous_hint_lets_one_entry_cover_its_whole_group() {
    let bench = Bench::new(Config::qemu());
    bench.stage1();
    let group = VA & !0xffff;
    for page in 0..16 {
        let at = S1[2] + 8 * (((group >> 12) + page) & 0x1ff);
        bench.ram.store_all(at, &[OTHER & !0xffff | page << 12 | LEAF | 1 << 52]);
    }
    assert_eq!(cached(&bench, Request::read(SID, group)), Outcome::Done(OTHER & !0xffff));
    // Another page of the group goes, and only its own address is invalidated: that covers the joint entry.
    bench.leaf1(0);
    let expected = Outcome::Done(OTHER & !0xffff | VA & 0xffff);
    only(&bench, read(), expected, MISS, &[tlbi_va(0, ASID, group - 0x1000)], tlbi_va(0, ASID, VA));
}

#[test]
fn a_tlb_invalidation_too_early_does_not_keep() {
    let bench = Bench::new(Config::qemu());
    bench.stage1();
    bench.smmu.watch(read());
    bench.smmu.observe();
    // Taken off the air with the TLB flushed before the STE is gone: hardware fetches ahead in between.
    bench.synced(&[tlbi_asid(0, ASID)]);
    bench.ste(SID, [1, 0, 0, 0, 0, 0, 0, 0]);
    bench.synced(&[cfgi_ste(SID)]);
    assert_eq!(bench.smmu.reachable(read()).into_iter().collect::<Vec<_>>(), [Outcome::Aborted]);
    // The ASID's next owner, on another stream with empty tables, inherits the page.
    bench.leaf1(0);
    bench.cd(0x31_0000, cd_of(ASID, 0x4c_0000));
    bench.install(4, ste1(0x31_0000));
    assert!(bench.smmu.reachable(Request::read(4, VA)).contains(&Outcome::Done(PAGE)));
    bench.synced(&[tlbi_asid(0, ASID)]);
    assert_eq!(bench.smmu.reachable(Request::read(4, VA)).into_iter().collect::<Vec<_>>(), [MISS]);
}

#[test]
fn a_store_after_the_invalidation_was_consumed_is_too_late() {
    let bench = Bench::new(Config::qemu());
    bench.stage1();
    bench.smmu.watch(read());
    bench.smmu.observe();
    bench.commands(&[tlbi_va(0, ASID, VA)]);
    bench.leaf1(0);
    bench.synced(&[]);
    assert!(bench.smmu.reachable(read()).contains(&Outcome::Done(PAGE)), "fetched again before the store");
}

#[test]
fn broadcasts_do_what_cpus_do_unless_they_are_ignored() {
    let vae1 = Broadcast::Vae1 { vmid: 0, asid: ASID as u16, first: VA, last: VA, leaf: true };
    let vaae1 = Broadcast::Vaae1 { vmid: 0, first: VA, last: VA, leaf: true };
    let prepared = |config: Config, shared: bool| {
        let bench = Bench::new(config);
        bench.stage1();
        let mut words = cd();
        if shared {
            words[0] &= !(1 << 47);
        }
        bench.cd(CD, words);
        bench.synced(&[cfgi_cd(SID, 0)]);
        cached(&bench, read());
        bench.leaf1(0);
        bench
    };
    let stale = |bench: &Bench| bench.smmu.reachable(read()).contains(&Outcome::Done(PAGE));
    let bench = prepared(Config::full(), true);
    bench.smmu.broadcast(vae1);
    assert!(!stale(&bench), "at once, without a command");
    let bench = prepared(Config::full(), false);
    bench.smmu.broadcast(vae1);
    assert!(stale(&bench), "ASET 1 takes no part in what matches by ASID");
    bench.smmu.broadcast(vaae1);
    assert!(!stale(&bench));
    let bench = prepared(Config::qemu(), true);
    bench.smmu.broadcast(Broadcast::Alle1);
    assert!(stale(&bench), "BTM = 0");
    let bench = prepared(Config::full(), true);
    bench.smmu.write32(0x20, 0x1e);
    bench.smmu.write32(0x2c, 6);
    bench.smmu.write32(0x20, 0x1f);
    bench.smmu.broadcast(vae1);
    assert!(stale(&bench), "PTM = 1");
    bench.clean();
}

#[test]
fn el2_streams_have_their_own_entries() {
    let bench = Bench::new(Config::full());
    bench.map1(PAGE | LEAF);
    bench.cd(CD, cd());
    let mut words = ste1(CD);
    words[1] |= 2 << 30;
    bench.install(SID, words);
    assert_eq!(cached(&bench, read()), Outcome::Done(PAGE));
    bench.leaf1(0);
    let wrong = [[0x10, 0], [0x30, 0], tlbi_asid(0, ASID), [0x21 | ASID << 48, 0]];
    only(&bench, read(), Outcome::Done(PAGE), MISS, &wrong, [0x22, VA | 1]);
}

#[test]
fn coverage_tells_which_caches_were_used() {
    let bench = Bench::new(Config::qemu());
    bench.nested();
    cached(&bench, read());
    bench.ram.store_all(leaf2(IPA), &[0]);
    bench.smmu.dma(read(), Mode::Hostile);
    bench.ste(SID, [0; 8]);
    bench.cd(CD, [0; 8]);
    bench.smmu.dma(read(), Mode::Hostile);
    let coverage = bench.smmu.coverage();
    let used: u64 = ["leaf of both stages", "stage-1 leaf", "stage-2 leaf", "STE", "CD"]
        .map(|name| coverage.of("cache used", name))
        .iter()
        .sum();
    assert!(used >= 2, "{coverage}");
}
