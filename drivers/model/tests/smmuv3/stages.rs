//! Walks, permissions, sizes and faults of both stages.

use crate::bench::*;
use portcullis_model::core::{Access, Mode, Outcome, Request};
use portcullis_model::smmuv3::{Config, code};

fn outcome(bench: &Bench, request: Request) -> Outcome {
    bench.smmu.dma(request, Mode::Fresh).outcome
}

const RNW: u64 = 1 << 35;
const S2: u64 = 1 << 39;
const CLASS_TT: u64 = 1 << 40;
const CLASS_IN: u64 = 2 << 40;

#[test]
fn stage_1_faults_are_recorded_as_the_manual_lays_them_out() {
    let bench = Bench::new(Config::qemu());
    bench.stage1();
    assert_eq!(outcome(&bench, Request::read(SID, VA + 0x1008)), Outcome::Fault(code::F_TRANSLATION));
    assert_eq!(bench.events(), [[0x3_0000_0010, RNW | CLASS_IN, VA + 0x1008, 0]]);
    bench.leaf1(PAGE | LEAF | 1 << 7);
    assert_eq!(outcome(&bench, Request::write(SID, VA)), Outcome::Fault(code::F_PERMISSION));
    assert_eq!(bench.events(), [[0x3_0000_0013, CLASS_IN, VA, 0]]);
    bench.leaf1(PAGE | LEAF & !(1 << 10));
    assert_eq!(outcome(&bench, read()), Outcome::Fault(code::F_ACCESS));
    bench.leaf1(1 << 45 | LEAF);
    assert_eq!(outcome(&bench, read()), Outcome::Fault(code::F_ADDR_SIZE));
    bench.leaf1(PAGE | LEAF & !(1 << 6));
    assert_eq!(outcome(&bench, read()), Outcome::Fault(code::F_PERMISSION), "kernel page");
    bench.events();
    assert_eq!(outcome(&bench, read().privileged()), Outcome::Done(PAGE));
    bench.leaf1(PAGE | LEAF | 1 << 54);
    assert_eq!(outcome(&bench, read().with_access(Access::Execute)), Outcome::Fault(code::F_PERMISSION));
    assert_eq!(bench.events(), [[0x3_0000_0013, RNW | 1 << 34 | CLASS_IN, VA, 0]], "InD");
    bench.ram.punch(0x40_2000, 0x40_3000);
    assert_eq!(outcome(&bench, read()), Outcome::Fault(code::F_WALK_EABT));
    let at = 0x40_2000 + 8 * (VA >> 12 & 0x1ff);
    assert_eq!(bench.events(), [[0x3_0000_000b, RNW | CLASS_TT, VA, at]]);
    bench.clean();
}

#[test]
fn r_equal_to_0_keeps_translation_faults_out_of_the_queue() {
    let bench = Bench::new(Config::qemu());
    bench.stage1();
    let mut words = cd();
    words[0] &= !(1 << 45);
    bench.cd(CD, words);
    bench.synced(&[cfgi_cd(SID, 0)]);
    assert_eq!(outcome(&bench, Request::read(SID, 0)), Outcome::Silent(code::F_TRANSLATION));
    bench.ram.punch(0x40_0000, 0x40_1000);
    assert_eq!(outcome(&bench, read()), Outcome::Fault(code::F_WALK_EABT), "not one of the four");
    assert_eq!(bench.event_codes(), [code::F_WALK_EABT]);
}

#[test]
fn epd0_is_the_way_to_cut_a_context_off() {
    let bench = Bench::new(Config::qemu());
    bench.stage1();
    let mut words = cd();
    // EPD0, R = 0; an absurd T0SZ and TTB0 are ignored then.
    words[0] = words[0] & !(1 << 45) | 1 << 14 | 0x3f;
    words[1] = u64::MAX;
    bench.cd(CD, words);
    bench.synced(&[cfgi_cd(SID, 0), tlbi_asid(0, ASID)]);
    assert_eq!(outcome(&bench, read()), Outcome::Silent(code::F_TRANSLATION));
    assert_eq!(
        bench.smmu.reachable(read()).into_iter().collect::<Vec<_>>(),
        [Outcome::Silent(code::F_TRANSLATION)]
    );
}

#[test]
fn addresses_outside_the_range_fault_and_top_bytes_are_ignored_only_if_said() {
    let bench = Bench::new(Config::qemu());
    bench.stage1();
    let tagged = Request::read(SID, VA | 0xab << 56);
    assert_eq!(outcome(&bench, tagged), Outcome::Fault(code::F_TRANSLATION));
    assert_eq!(outcome(&bench, Request::read(SID, VA | 1 << 39)), Outcome::Fault(code::F_TRANSLATION));
    assert_eq!(bench.events()[0][2], VA | 0xab << 56, "recorded as it came");
    let mut words = cd();
    words[0] |= 1 << 38;
    bench.cd(CD, words);
    bench.synced(&[cfgi_cd(SID, 0)]);
    assert_eq!(outcome(&bench, tagged), Outcome::Done(PAGE));
}

#[test]
fn the_upper_half_goes_through_ttb1() {
    let bench = Bench::new(Config::qemu());
    bench.stage1();
    let upper = 0xffff_ff80_0000_0000 | VA;
    let mut words = cd();
    words[0] = words[0] & !(1 << 30) | (25 | 2 << 6 | 1 << 8 | 1 << 10 | 3 << 12) << 16;
    words[2] = 0x44_0000;
    bench.cd(CD, words);
    bench.ram.store_all(0x44_0000 + 8 * (VA >> 30 & 0x1ff), &[OTHER & !0x3fff_ffff | 0x741]);
    bench.synced(&[cfgi_cd(SID, 0)]);
    let expected = OTHER & !0x3fff_ffff | VA & 0x3fff_ffff;
    assert_eq!(outcome(&bench, Request::read(SID, upper)), Outcome::Done(expected));
    assert_eq!(outcome(&bench, read()), Outcome::Done(PAGE));
    bench.clean();
}

#[test]
fn stage_2_checks_its_own_permissions_and_sizes() {
    let bench = Bench::new(Config::qemu());
    bench.stage2();
    assert_eq!(outcome(&bench, Request::write(SID, VA + 8)), Outcome::Done(PAGE + 8));
    bench.map2(VA, PAGE | LEAF2 & !(1 << 7));
    assert_eq!(outcome(&bench, Request::write(SID, VA + 8)), Outcome::Fault(code::F_PERMISSION));
    assert_eq!(bench.events(), [[0x3_0000_0013, S2 | CLASS_IN, VA + 8, VA]]);
    assert_eq!(
        outcome(&bench, Request::read(SID, 1 << 40)),
        Outcome::Fault(code::F_TRANSLATION),
        "beyond S2T0SZ"
    );
    assert_eq!(outcome(&bench, Request::read(SID, 1 << 44)), Outcome::Fault(code::F_ADDR_SIZE), "beyond IAS");
    let events = bench.events();
    assert_eq!((events[0][1], events[1][1]), (RNW | S2 | CLASS_IN, RNW | CLASS_IN));
    bench.map2(VA, 1 << 45 | LEAF2);
    assert_eq!(outcome(&bench, read()), Outcome::Fault(code::F_ADDR_SIZE));
    bench.map2(VA, PAGE | LEAF2 & !(1 << 10));
    assert_eq!(outcome(&bench, read()), Outcome::Fault(code::F_ACCESS));
    bench.clean();
}

#[test]
fn nested_faults_say_whether_the_cd_the_table_or_the_input_missed() {
    let bench = Bench::new(Config::qemu());
    bench.nested();
    assert_eq!(outcome(&bench, read()), Outcome::Done(PAGE));
    for (page, class, ipa) in [(CD, 0, CD), (0x40_1000, CLASS_TT, 0x40_1000), (IPA, CLASS_IN, IPA)] {
        bench.map2(page, 0);
        bench.synced(&[[0x28 | VMID << 32, 0], cfgi_ste(SID)]);
        assert_eq!(outcome(&bench, read()), Outcome::Fault(code::F_TRANSLATION));
        assert_eq!(bench.events(), [[0x3_0000_0010, RNW | S2 | class, VA, ipa]]);
        bench.map2(page, if page == IPA { PAGE } else { page } | LEAF2);
    }
    bench.map2(CD, CD | LEAF2 & !(1 << 6));
    bench.synced(&[[0x28 | VMID << 32, 0], cfgi_ste(SID)]);
    assert_eq!(outcome(&bench, read()), Outcome::Fault(code::F_PERMISSION), "the CD's page is not readable");
    bench.clean();
}

#[test]
fn s2ptw_keeps_tables_out_of_device_memory() {
    let bench = Bench::new(Config::qemu());
    bench.nested();
    bench.map2(0x40_2000, 0x40_2000 | LEAF2 & !(0xf << 2));
    assert_eq!(outcome(&bench, read()), Outcome::Done(PAGE));
    let mut words = nested(CD);
    words[2] |= 1 << 54;
    bench.install(SID, words);
    bench.synced(&[[0x28 | VMID << 32, 0]]);
    assert_eq!(outcome(&bench, read()), Outcome::Fault(code::F_PERMISSION));
    let [event] = bench.events()[..] else { panic!() };
    assert_eq!(event[1], RNW | S2 | CLASS_TT | 1 << 44, "TTRnW: a read");
}

#[test]
fn all_granules_and_block_sizes_translate() {
    let bench = Bench::new(Config { oas: 48, ..Config::full() });
    let root = 0x80_0000;
    // (TG0, T0SZ, level-by-level index shifts down to the leaf, leaf is a page)
    for (tg, size, shifts, page) in [
        (0u64, 16u64, &[39u32, 30, 21, 12][..], true),
        (0, 16, &[39, 30, 21], false),
        (0, 16, &[39, 30], false),
        (2, 17, &[36, 25, 14], true),
        (2, 17, &[36, 25], false),
        (1, 22, &[29, 16], true),
        (1, 22, &[29], false),
    ] {
        let va = 0x29_8765_4000u64 & !((1 << shifts[shifts.len() - 1]) - 1);
        let last = shifts[shifts.len() - 1];
        let output = 0x5a_4000_0000u64 >> last << last;
        for (level, shift) in shifts.iter().enumerate() {
            let index = va >> shift & if level == 0 { 0x1fff } else { [0x1ff, 0x1fff, 0x7ff][tg as usize] };
            let at = root + 0x1_0000 * level as u64 + 8 * index;
            let entry = match (*shift == last, page) {
                (true, true) => output | LEAF,
                (true, false) => output | LEAF & !2,
                (false, _) => (root + 0x1_0000 * (level as u64 + 1)) | 3,
            };
            bench.ram.store_all(at, &[entry]);
        }
        let mut words = cd_of(ASID, root);
        words[0] = words[0] & !0xff | size | tg << 6 | 1 << 32;
        bench.cd(CD, words);
        bench.install(SID, ste1(CD));
        bench.synced(&[tlbi_asid(0, ASID)]);
        let offset = (1 << last) - 8;
        assert_eq!(
            outcome(&bench, Request::read(SID, va + offset)),
            Outcome::Done(output + offset),
            "{tg} {shifts:?}"
        );
    }
    bench.clean();
}

#[test]
fn addresses_of_52_bits_work_with_64k_and_with_ds() {
    let config = Config { oas: 52, va52: true, ds: true, ..Config::full() };
    let bench = Bench::new(config);
    let root = 0x80_0000;
    let va = 0x8_0000_0000_0000u64;
    // 64K: level 1 of a 52-bit input resolves bits [51:42].
    bench.ram.store_all(root + 8 * (va >> 42), &[0x81_0003]);
    bench.ram.store_all(0x81_0000, &[0x82_0003]);
    bench.ram.store_all(0x82_0000, &[0xf000 | 0x5555_0000 | LEAF]);
    let mut words = cd_of(ASID, root);
    words[0] = words[0] & !0xff & !(7 << 32) | 12 | 1 << 6 | 6 << 32;
    bench.cd(CD, words);
    bench.install(SID, ste1(CD));
    assert_eq!(outcome(&bench, Request::read(SID, va)), Outcome::Done(0xf_0000_5555_0000));
    // 4K with DS: level -1 first.
    bench.ram.store_all(0x84_0000 + 8 * (va >> 48), &[0x85_0003]);
    bench.ram.store_all(0x85_0000, &[0x86_0003]);
    bench.ram.store_all(0x86_0000, &[0x87_0003]);
    bench.ram.store_all(0x87_0000, &[0x88_0003]);
    bench.ram.store_all(0x88_0000, &[0x5555_5000 | LEAF]);
    let mut words = cd_of(ASID, 0x84_0000);
    words[0] = words[0] & !0xff & !(7 << 32) | 12 | 6 << 32;
    words[2] = 1 << 58;
    bench.cd(CD, words);
    bench.synced(&[cfgi_cd(SID, 0), tlbi_asid(0, ASID)]);
    // SH bits are address bits [51:50] now: 0xf43 has 0b11 there.
    assert_eq!(outcome(&bench, Request::read(SID, va)), Outcome::Done(0xc_0000_5555_5000));
    bench.clean();
}
