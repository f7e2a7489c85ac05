//! The register file: guards, updates, reserved bits.

use crate::bench::*;
use portcullis_model::core::{Mode, Outcome};
use portcullis_model::smmuv3::{Config, points};

#[test]
fn guarded_registers_keep_their_values_while_in_use() {
    let bench = Bench::new(Config::full());
    for (offset, value) in [
        (0x28u64, 0u32),
        (0x2c, 0),
        (0x80, 0x40_0000),
        (0x88, 5),
        (0x90, 0x55_0004),
        (0x9c, 1),
        (0xa0, 0x55_0004),
        (0xc0, 0x55_0004),
        (0x1_00a8, 1),
        (0x1_00c8, 1),
        (0x68, 0x1000),
        (0xb8, 7),
        (0xdc, 1),
    ] {
        let before = bench.smmu.read32(offset);
        assert_ne!(before, value, "{offset:#x}");
        bench.smmu.write32(offset, value);
        assert_eq!(bench.violations(), ["register-guarded"], "{offset:#x}");
        assert_eq!(bench.smmu.read32(offset), before, "{offset:#x}");
        bench.smmu.write32(offset, before);
        bench.clean();
    }
}

#[test]
fn unknown_misaligned_and_reserved_accesses_are_violations() {
    let bench = Bench::new(Config::qemu());
    bench.smmu.write32(0x24, 1);
    bench.smmu.write32(0x200, 1);
    bench.smmu.read32(0x22);
    bench.smmu.read64(0x20);
    bench.smmu.write64(0x84, 1);
    bench.smmu.read32(0xa8);
    // ATSCHK and PRIQEN do not exist here.
    bench.smmu.write32(0x20, 0x1f);
    let expected = [
        "register-write",
        "register-write",
        "register-access",
        "register-access",
        "register-access",
        "register-alias",
        "register-reserved",
    ];
    assert_eq!(bench.violations(), expected);
    assert_eq!(bench.smmu.read32(0x24), 0xd);
}

#[test]
fn updates_take_effect_when_they_are_acknowledged() {
    let bench = Bench::new(Config::qemu());
    bench.install(SID, [9, 0, 0, 0, 0, 0, 0, 0]);
    bench.smmu.write32(0x44, 0x8010_0000);
    bench.schedule.odds(points::UPDATE_LATE, 1, 1);
    bench.smmu.write32(0x20, 0xc);
    assert_eq!((bench.smmu.read32(0x20), bench.smmu.read32(0x24)), (0xc, 0xd));
    assert_eq!(bench.read(Mode::Fresh), Outcome::Done(VA));
    // The field is on its way: it must not change again, and what it guards must not either.
    bench.smmu.write32(0x20, 0xd);
    bench.smmu.write32(0x88, 5);
    assert_eq!(bench.violations(), ["cr0-update", "register-guarded"]);
    bench.schedule.calm();
    assert_eq!(bench.smmu.read32(0x24), 0xc);
    assert_eq!(bench.read(Mode::Fresh), Outcome::Aborted, "GBPA");
    bench.smmu.write32(0x44, 0x0010_0000);
    assert_eq!(bench.violations(), ["gbpa-update"], "without UPDATE");
}

#[test]
fn only_active_errors_are_acknowledged() {
    let bench = Bench::new(Config::qemu());
    bench.smmu.write32(0x64, 4);
    assert_eq!(bench.violations(), ["gerrorn"]);
}

#[test]
fn a_reset_forgets_everything() {
    let bench = Bench::new(Config::qemu());
    bench.stage1();
    bench.read(Mode::Fresh);
    bench.smmu.reset();
    assert_eq!(bench.smmu.tlb_len(), [0; 4]);
    assert_eq!((bench.smmu.read32(0x20), bench.smmu.read32(0x24)), (0, 0));
    assert_eq!(bench.read(Mode::Fresh), Outcome::Done(VA), "bypass");
}

#[test]
fn reserved_bits_in_a_live_ste_are_a_violation() {
    let bench = Bench::new(Config::qemu());
    bench.install(SID, [9 | 1 << 56, 0, 0, 0, 0, 0, 0, 0]);
    bench.read(Mode::Fresh);
    assert_eq!(bench.violations(), ["ste-reserved"]);
}

#[test]
fn bases_that_hardware_would_align_or_cut_are_violations() {
    let bench = Bench::new(Config::small());
    bench.smmu.write32(0x20, 0);
    // 16 STEs are 1 KiB; 16 commands are 256 bytes; 40 address bits.
    for (offset, base, rule) in [
        (0x80, STREAMS + 0x40, "stream-table"),
        (0x80, STREAMS | 1 << 41, "stream-table"),
        (0x90, (CMDQ + 0x80) | 4, "queue-base"),
        (0xa0, (EVENTQ + 0x20) | 2, "queue-base"),
        (0xa0, EVENTQ | 8, "queue-base"),
    ] {
        let before = bench.smmu.read64(offset);
        bench.smmu.write64(offset, base);
        bench.smmu.write32(0x20, 0xd);
        assert_eq!(bench.violations(), [rule], "{offset:#x} = {base:#x}");
        bench.smmu.write32(0x20, 0);
        bench.smmu.write64(offset, before);
    }
    bench.smmu.write32(0x20, 0xd);
    bench.clean();
}
