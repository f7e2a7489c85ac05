//! Finding STEs and CDs, and which of them are good.

use crate::bench::*;
use portcullis_model::core::{Mode, Outcome, Request};
use portcullis_model::smmuv3::{Config, code};

fn outcome(bench: &Bench, request: Request) -> Outcome {
    bench.smmu.dma(request, Mode::Fresh).outcome
}

#[test]
fn out_of_reset_a_unit_bypasses_until_gbpa_says_abort() {
    let config = Config::qemu();
    let ram = std::sync::Arc::new(portcullis_model::core::Ram::new());
    let schedule = std::sync::Arc::new(portcullis_model::core::Schedule::new(0));
    let smmu = portcullis_model::smmuv3::Smmu::new(config, ram, schedule);
    assert_eq!(smmu.dma(read(), Mode::Fresh).outcome, Outcome::Done(VA));
    assert_eq!(smmu.dma(Request::read(SID, 1 << 44), Mode::Fresh).outcome, Outcome::Aborted, "beyond OAS");
    smmu.write32(0x44, 0x8010_1000);
    assert_eq!(smmu.read32(0x44), 0x0010_1000);
    assert_eq!(smmu.dma(read(), Mode::Fresh).outcome, Outcome::Aborted);
    assert_eq!(smmu.take_violations(), []);
}

#[test]
fn config_says_abort_bypass_or_translate() {
    let bench = Bench::new(Config::qemu());
    assert_eq!(outcome(&bench, read()), Outcome::Fault(code::C_BAD_STE), "V = 0");
    bench.install(SID, [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(outcome(&bench, read()), Outcome::Aborted);
    bench.install(SID, [0b0111, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(outcome(&bench, read()), Outcome::Aborted, "0b0xx is reserved and aborts");
    bench.install(SID, [9, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(outcome(&bench, read()), Outcome::Done(VA));
    assert_eq!(outcome(&bench, Request::read(SID, 1 << 44)), Outcome::Fault(code::F_ADDR_SIZE));
    bench.stage1();
    assert_eq!(outcome(&bench, Request::read(SID, VA + 0x123)), Outcome::Done(PAGE + 0x123));
    bench.stage2();
    assert_eq!(outcome(&bench, Request::read(SID, VA + 0x123)), Outcome::Done(PAGE + 0x123));
    bench.nested();
    assert_eq!(outcome(&bench, Request::read(SID, VA + 0x123)), Outcome::Done(PAGE + 0x123));
    bench.clean();
    let coverage = bench.smmu.coverage();
    let minima =
        [("ste", "abort", "bypass", 1), ("ste", "stage 1", "stage 2", 1), ("ste", "stage 2", "nested", 1)];
    assert_eq!(coverage.below(&minima), [""; 0], "{coverage}");
}

#[test]
fn a_stream_id_beyond_the_table_is_recorded_only_if_wanted() {
    let bench = Bench::new(Config::qemu());
    assert_eq!(outcome(&bench, Request::read(16, VA)), Outcome::Fault(code::C_BAD_STREAMID));
    assert_eq!(bench.events(), [[0x10_0000_0002, 0, 0, 0]]);
    bench.smmu.write32(0x20, 0xc);
    bench.smmu.write32(0x2c, 0);
    bench.smmu.write32(0x20, 0xd);
    assert_eq!(outcome(&bench, Request::read(16, VA)), Outcome::Silent(code::C_BAD_STREAMID));
    assert_eq!(bench.events(), [[0; 4]; 0]);
    bench.clean();
}

#[test]
fn a_two_level_table_is_bounded_by_its_descriptors() {
    let bench = Bench::new(Config::qemu());
    bench.smmu.write32(0x20, 0xc);
    // 2-level, SPLIT 8, LOG2SIZE 10: four level-1 descriptors.
    bench.smmu.write32(0x88, 1 << 16 | 8 << 6 | 10);
    let second = 0x24_0000;
    // Span 5: 16 STEs.
    bench.ram.store_all(STREAMS, &[0, second | 5, second | 10, 0x1f]);
    bench.smmu.write32(0x20, 0xd);
    bench.ram.store_all(second + 64 * 3, &[9, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(outcome(&bench, Request::read(0x103, VA)), Outcome::Done(VA));
    assert_eq!(outcome(&bench, Request::read(0x104, VA)), Outcome::Fault(code::C_BAD_STE));
    for (sid, why) in [
        (0x003, "span 0"),
        (0x110, "beyond the span"),
        (0x203, "span above SPLIT + 1"),
        (0x303, "reserved span"),
        (0x400, "beyond LOG2SIZE"),
    ] {
        let bad = Outcome::Fault(code::C_BAD_STREAMID);
        assert_eq!(outcome(&bench, Request::read(sid, VA)), bad, "{why}");
    }
    bench.ram.punch(STREAMS, STREAMS + 64);
    assert_eq!(outcome(&bench, Request::read(0x103, VA)), Outcome::Fault(code::F_STE_FETCH));
    bench.clean();
}

#[test]
fn every_illegal_ste_is_refused() {
    let bench = Bench::new(Config::full());
    bench.stage1();
    let edit = |word: usize, clear: u64, set: u64, base: [u64; 8]| {
        let mut words = base;
        words[word] = words[word] & !clear | set;
        bench.install(SID, words);
        outcome(&bench, read())
    };
    let bad = Outcome::Fault(code::C_BAD_STE);
    for (why, word, clear, set, base) in [
        ("S1CDMax beyond SSIDSIZE", 0, 0, 21 << 59, ste1(CD)),
        ("S1ContextPtr beyond OAS", 0, 0, 1 << 50, ste1(CD)),
        ("STRW reserved", 1, 0, 1 << 30, ste1(CD)),
        ("split-stage ATS without stage 2", 1, 0, 2 << 28, ste1(CD)),
        ("full ATS with S2S", 1, 0, 1 << 28, {
            let mut words = ste2();
            words[2] |= 1 << 57;
            words
        }),
        ("S2AA64 = 0", 2, 1 << 51, 0, ste2()),
        ("S2TG reserved", 2, 0, 3 << 46, ste2()),
        ("S2T0SZ beyond the largest", 2, 0x3f << 32, 49 << 32, ste2()),
        ("S2T0SZ below the smallest", 2, 0x3f << 32, 15 << 32, ste2()),
        ("S2SL0 inconsistent", 2, 3 << 38, 2 << 38, {
            let mut words = ste2();
            words[2] = words[2] & !(0x3f << 32) | 26 << 32;
            words
        }),
        ("S2TTB beyond S2PS", 3, 0, 1 << 44, ste2()),
        ("S2ENDI", 2, 0, 1 << 52, ste2()),
    ] {
        assert_eq!(edit(word, clear, set, base), bad, "{why}");
    }
    assert_eq!(edit(2, 0, 0, ste2()), Outcome::Fault(code::F_TRANSLATION), "the base is good");
    bench.events();

    let bench = Bench::new(Config { ssid_bits: 4, cd2l: false, ..Config::qemu() });
    bench.stage1();
    let try_ste = |words: [u64; 8]| {
        bench.install(SID, words);
        outcome(&bench, read())
    };
    for (why, words) in [
        ("S1STALLD without the stall model", [ste1(CD)[0], 0xd4 | 1 << 27, 0, 0, 0, 0, 0, 0]),
        ("two-level CDs without CD2L", [ste1(CD)[0] | 1 << 59 | 1 << 4, 0xd6, 0, 0, 0, 0, 0, 0]),
        ("S2S without the stall model", [0xd, 0, VMID | S2CFG | 1 << 57, S2[0], 0, 0, 0, 0]),
        ("S2HA without HTTU", [0xd, 0, VMID | S2CFG | 1 << 56, S2[0], 0, 0, 0, 0]),
    ] {
        assert_eq!(try_ste(words), bad, "{why}");
    }
    let bench = Bench::new(Config::small());
    bench.install(SID, [0xd, 0, 0x100 | S2CFG, S2[0], 0, 0, 0, 0]);
    assert_eq!(outcome(&bench, read()), bad, "VMID above 8 bits");
}

#[test]
fn every_illegal_cd_is_refused() {
    let bench = Bench::new(Config { httu: 1, ..Config::qemu() });
    bench.stage1();
    for (why, word, clear, set) in [
        ("V = 0", 0, 1 << 31, 0u64),
        ("AA64 = 0", 0, 1 << 41, 0),
        ("A = 0 where only aborts exist", 0, 1 << 46, 0),
        ("S without the stall model", 0, 0, 1 << 44),
        ("ENDI", 0, 0, 1 << 15),
        ("HD without dirty state", 0, 0, 1 << 42),
        ("T0SZ above 39", 0, 0x3f, 40),
        ("T0SZ below 16", 0, 0x3f, 15),
        ("TG0 reserved", 0, 0, 3 << 6),
        ("TTB0 beyond IPS", 1, 0, 1 << 44),
        ("T1SZ with EPD1 = 0", 0, 1 << 30, 2 << 22),
    ] {
        let mut words = cd();
        words[word] = words[word] & !clear | set;
        bench.cd(CD, words);
        bench.synced(&[cfgi_cd(SID, 0)]);
        assert_eq!(outcome(&bench, read()), Outcome::Fault(code::C_BAD_CD), "{why}");
        assert_eq!(bench.events(), [[0x3_0000_000a, 0, 0, 0]], "{why}");
    }
    let small = Bench::new(Config::small());
    small.stage1();
    small.cd(CD, cd_of(0x100, S1[0]));
    small.synced(&[cfgi_cd(SID, 0)]);
    assert_eq!(outcome(&small, read()), Outcome::Fault(code::C_BAD_CD), "ASID above 8 bits");
    bench.ram.punch(CD, CD + 64);
    assert_eq!(outcome(&bench, read()), Outcome::Fault(code::F_CD_FETCH));
    assert_eq!(bench.events(), [[0x3_0000_0009, 0, 0, CD]]);
}

/// S1CDMax and S1DSS on top of [`ste1`].
fn substreams(table: u64, format: u64, bits: u64, dss: u64) -> [u64; 8] {
    [table | 0xb | format << 4 | bits << 59, 0xd4 | dss, 0, 0, 0, 0, 0, 0]
}

#[test]
fn substreams_select_cds_and_s1dss_what_has_none() {
    let bench = Bench::new(Config::full());
    bench.map1(PAGE | LEAF);
    bench.cd(CD, cd());
    bench.cd(CD + 64 * 9, cd_of(9, S1[0]));
    let at = |pasid| read().with_pasid(pasid);
    bench.install(SID, substreams(CD, 0, 4, 0));
    assert_eq!(outcome(&bench, read()), Outcome::Fault(code::F_STREAM_DISABLED));
    assert_eq!(bench.events(), [[0x3_0000_0006, 0, 0, 0]]);
    assert_eq!(outcome(&bench, at(9)), Outcome::Done(PAGE));
    assert_eq!(outcome(&bench, at(0)), Outcome::Done(PAGE));
    assert_eq!(outcome(&bench, at(8)), Outcome::Fault(code::C_BAD_CD));
    assert_eq!(outcome(&bench, at(16)), Outcome::Fault(code::C_BAD_SUBSTREAMID));
    assert_eq!(bench.events(), [[0x3_0000_880a, 0, 0, 0], [0x3_0001_0008, 0, 0, 0]]);
    bench.install(SID, substreams(CD, 0, 4, 1));
    assert_eq!(outcome(&bench, read()), Outcome::Done(VA), "bypasses stage 1");
    assert_eq!(outcome(&bench, at(9)), Outcome::Done(PAGE));
    bench.install(SID, substreams(CD, 0, 4, 2));
    assert_eq!(outcome(&bench, read()), Outcome::Done(PAGE), "uses CD 0");
    assert_eq!(outcome(&bench, at(0)), Outcome::Fault(code::F_STREAM_DISABLED));
    bench.install(SID, substreams(CD, 0, 4, 3));
    assert_eq!(outcome(&bench, read()), Outcome::Fault(code::F_STREAM_DISABLED), "3 behaves as 0");
    for words in [ste1(CD), ste2(), [9, 0, 0, 0, 0, 0, 0, 0]] {
        bench.install(SID, words);
        assert_eq!(outcome(&bench, at(1)), Outcome::Fault(code::C_BAD_SUBSTREAMID));
    }
    bench.clean();
}

#[test]
fn two_level_cd_tables_work_with_both_leaf_sizes() {
    let bench = Bench::new(Config::full());
    bench.map1(PAGE | LEAF);
    let (table, leaf) = (0x34_0000, 0x36_0000);
    for (format, shift) in [(1, 6), (2, 10)] {
        let pasid = 3u32 << shift | 5;
        bench.ram.store_all(table, &[0, 0, 0, leaf | 1]);
        bench.cd(leaf + 64 * 5, cd());
        bench.install(SID, substreams(table, format, 20, 0));
        assert_eq!(outcome(&bench, read().with_pasid(pasid)), Outcome::Done(PAGE));
        let missing = read().with_pasid(2 << shift);
        assert_eq!(outcome(&bench, missing), Outcome::Fault(code::C_BAD_SUBSTREAMID), "L1CD.V = 0");
        bench.events();
    }
    // The largest PASID there is.
    bench.ram.store_all(table + 8 * 1023, &[leaf | 1]);
    bench.cd(leaf + 64 * 1023, cd());
    assert_eq!(outcome(&bench, read().with_pasid(0xf_ffff)), Outcome::Done(PAGE));
    bench.clean();
}

#[test]
fn what_a_non_coherent_unit_reads_was_cleaned() {
    let bench = Bench::new(Config::small());
    bench.stage1();
    let at = S1[2] + 8 * (VA >> 12 & 0x1ff);
    bench.ram.store(at, OTHER | LEAF);
    bench.synced(&[tlbi_va(0, ASID, VA)]);
    assert_eq!(bench.smmu.expected(read()), Outcome::Done(PAGE), "the store is still in the CPU's cache");
    bench.ram.clean(at, 8);
    assert_eq!(bench.smmu.expected(read()), Outcome::Done(OTHER));
    // A coherent unit told to make non-cacheable accesses is no better.
    let bench = Bench::new(Config::qemu());
    bench.stage1();
    let mut words = cd();
    words[0] &= !(0xf << 8);
    bench.cd(CD, words);
    bench.synced(&[cfgi_cd(SID, 0)]);
    bench.ram.store(at, OTHER | LEAF);
    assert_eq!(bench.smmu.expected(read()), Outcome::Done(PAGE));
}
