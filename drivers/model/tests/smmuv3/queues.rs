//! The command queue: consumption, errors, signals.

use crate::bench::*;
use portcullis_model::core::{Interrupt, Mode, Outcome};
use portcullis_model::smmuv3::{Config, points};

const CONS: u64 = 0x9c;
const GERROR: u64 = 0x60;
const GERRORN: u64 = 0x64;

#[test]
fn commands_are_consumed_as_the_schedule_lets_them() {
    let bench = Bench::new(Config::qemu());
    let start = bench.prod();
    bench.schedule.odds(points::CMDQ_PAUSE, 1, 1);
    bench.post(&[[0x30, 0], CMD_SYNC]);
    assert_eq!(bench.smmu.read32(CONS), start, "paused");
    bench.schedule.calm();
    bench.schedule.odds(points::CMDQ_SINGLE, 1, 1);
    assert_eq!(bench.smmu.read32(CONS), start + 1);
    bench.schedule.script(points::SYNC_LATE, &[1, 1]);
    assert_eq!(bench.smmu.read32(CONS), start + 1);
    assert_eq!(bench.smmu.read32(CONS), start + 1);
    assert_eq!(bench.smmu.read32(CONS), start + 2);
    bench.smmu.hang();
    bench.commands(&[CMD_SYNC]);
    assert_eq!(bench.smmu.read32(CONS), start + 2, "never");
    bench.smmu.unhang();
    assert_eq!(bench.smmu.read32(CONS), start + 3);
    bench.clean();
}

#[test]
fn the_queue_wraps() {
    let bench = Bench::new(Config::qemu());
    for _ in 0..100 {
        bench.synced(&[[0x30, 0]]);
    }
    bench.clean();
}

#[test]
fn an_illegal_command_stops_the_queue_until_it_is_replaced_and_acknowledged() {
    let bench = Bench::new(Config::qemu());
    let start = bench.prod();
    bench.commands(&[[0x30, 0], [0x40, 0], CMD_SYNC]);
    assert_eq!(bench.smmu.read32(CONS), (start + 1) | 1 << 24, "CERROR_ILL at the second");
    assert_eq!(bench.smmu.read32(GERROR), 1);
    assert_eq!(bench.smmu.take_interrupts(), [Interrupt::Wire { source: "gerror" }]);
    bench.smmu.run();
    assert_eq!(bench.smmu.read32(CONS) & 0x1f, start + 1);
    bench.ram.store_all(CMDQ + 16 * u64::from((start + 1) & 15), &CMD_SYNC);
    bench.smmu.write32(GERRORN, 1);
    bench.smmu.run();
    assert_eq!(bench.smmu.read32(CONS) & 0x1f, start + 3);
    bench.clean();
    // Acknowledging without a fix fails again, and the bit toggles back.
    bench.commands(&[[0x40, 0]]);
    assert_eq!((bench.smmu.read32(GERROR), bench.smmu.read32(GERRORN)), (0, 1));
    bench.smmu.write32(GERRORN, 0);
    bench.smmu.run();
    assert_eq!(bench.smmu.read32(GERROR), 1);
    assert_eq!(bench.smmu.coverage().of("command error", "CERROR_ILL"), 3);
}

#[test]
fn an_unreadable_queue_is_cerror_abt_and_prod_may_go_back_then() {
    let bench = Bench::new(Config::qemu());
    let start = bench.prod();
    bench.ram.punch(CMDQ, CMDQ + 0x100);
    bench.commands(&[[0x30, 0], CMD_SYNC]);
    assert_eq!(bench.smmu.read32(CONS), start | 2 << 24);
    bench.ram.mend();
    bench.smmu.write32(0x98, start);
    bench.set_prod(start);
    bench.smmu.write32(GERRORN, 1);
    bench.synced(&[[0x30, 0]]);
    bench.clean();
}

#[test]
fn errors_can_be_injected_into_good_commands() {
    let bench = Bench::new(Config::qemu());
    let start = bench.prod();
    bench.schedule.script(points::COMMAND_ILL, &[0, 1]);
    bench.commands(&[[0x30, 0], [0x30, 0], CMD_SYNC]);
    assert_eq!(bench.smmu.read32(CONS), (start + 1) | 1 << 24);
    bench.schedule.script(points::COMMAND_ABT, &[1]);
    bench.smmu.write32(GERRORN, 1);
    bench.smmu.run();
    assert_eq!(bench.smmu.read32(CONS), (start + 1) | 2 << 24);
    bench.smmu.write32(GERRORN, 0);
    bench.smmu.run();
    assert_eq!(bench.smmu.read32(CONS) & 0x1f, start + 3);
    bench.clean();
}

#[test]
fn prod_beyond_the_queue_or_backwards_is_a_violation() {
    let bench = Bench::new(Config::qemu());
    bench.smmu.hang();
    bench.post(&[CMD_SYNC, CMD_SYNC]);
    bench.smmu.write32(0x98, (bench.prod() + 15) & 31);
    assert_eq!(bench.violations(), ["cmdq-prod"]);
    bench.smmu.write32(0x98, bench.prod() - 1);
    assert_eq!(bench.violations(), ["cmdq-prod"]);
}

#[test]
fn a_command_changed_after_prod_passed_it_is_a_violation() {
    let bench = Bench::new(Config::qemu());
    bench.smmu.hang();
    let slot = CMDQ + 16 * u64::from(bench.prod() & 15);
    bench.post(&[[0x30, 0]]);
    bench.ram.store(slot, 0x46);
    bench.smmu.unhang();
    bench.smmu.run();
    assert_eq!(bench.violations(), ["command-changed"]);
    assert_eq!(bench.smmu.coverage().of("command", "TLBI_NSNH_ALL"), 2, "the old one was executed");
}

#[test]
fn what_is_reserved_in_a_command_is_a_violation_or_an_error() {
    let bench = Bench::new(Config::qemu());
    bench.synced(&[[0x30 | 1 << 63, 0]]);
    assert_eq!(bench.violations(), ["command-reserved"]);
    bench.schedule.odds(points::COMMAND_STRICT, 1, 1);
    bench.commands(&[[0x46 | 1 << 31, 0]]);
    assert_eq!(bench.violations(), ["command-reserved"]);
    assert_eq!(bench.smmu.read32(GERROR), 1);
}

#[test]
fn commands_of_features_that_are_not_there_are_illegal() {
    let none = Config { stage2: false, ..Config::qemu() };
    let only2 = Config { stage1: false, ..Config::qemu() };
    for (config, command) in [
        (none.clone(), [0x28, 0]),
        (none.clone(), tlbi_ipa(0, VA)),
        (only2.clone(), cfgi_cd(SID, 0)),
        (only2, [0x10, 0]),
        (Config::qemu(), [0x20, 0]),
        (Config::qemu(), [0x41, 0]),
        (Config::qemu(), [0x44, 0]),
        (Config::qemu(), [0x45, 0]),
        (Config::qemu(), [0x46 | 3 << 12, 0]),
        (Config::qemu(), [0, 0]),
        // A granule with neither range nor level; SSec.
        (Config::qemu(), [0x12, VA | 1 << 10]),
        (Config::qemu(), [0x03 | 1 << 10, 0]),
        (Config::full(), [0x40, 53]),
        (Config::full(), [0x41, 3 << 12]),
    ] {
        let bench = Bench::new(config);
        bench.commands(&[command]);
        assert_eq!(bench.smmu.read32(CONS) >> 24, 1, "{command:x?}");
    }
}

#[test]
fn ranges_without_ril_and_misaligned_ones_do_not_count() {
    let ranged = [0x12 | ASID << 48 | 1 << 12, (VA - 0x1000) | 1 << 10 | 1];
    let bench = Bench::new(Config { ril: false, ..Config::qemu() });
    bench.stage1();
    bench.read(Mode::Fresh);
    bench.leaf1(0);
    bench.synced(&[ranged]);
    assert_eq!(bench.violations(), ["command-reserved"]);
    assert!(bench.smmu.reachable(read()).contains(&Outcome::Done(PAGE)));
    let bench = Bench::new(Config::qemu());
    // TTL 2 wants 2 MiB alignment.
    bench.synced(&[[0x12 | ASID << 48, VA | 1 << 10 | 2 << 8 | 1]]);
    assert_eq!(bench.violations(), ["command-range"]);
    let bench = Bench::new(Config::small());
    bench.synced(&[tlbi_asid(0, 0x100)]);
    assert_eq!(bench.violations(), ["command-range"]);
}

#[test]
fn a_sync_signals_by_msi_by_event_or_by_wire() {
    let bench = Bench::new(Config::full());
    let slot = CMDQ + 16 * u64::from(bench.prod() & 15);
    // CS 1, inner shareable, write-back; data 0 to its own slot: the way to poll.
    bench.synced(&[[0x46 | 1 << 12 | 3 << 22 | 0xf << 24 | 0x77 << 32, slot]]);
    assert_eq!(bench.ram.load(slot) as u32, 0x77);
    bench.synced(&[[0x46 | 2 << 12, 0]]);
    bench.synced(&[[0x46 | 1 << 12, 0]]);
    let source = "cmdq-sync";
    let signals = bench.smmu.take_interrupts();
    let message = Interrupt::Message { source, address: slot, data: 0x77 };
    assert_eq!(signals, [message, Interrupt::Event { source }, Interrupt::Wire { source }]);
    bench.ram.punch(0x9000, 0xa000);
    bench.synced(&[[0x46 | 1 << 12, 0x9000]]);
    assert_eq!(bench.smmu.read32(GERROR), 1 << 4, "MSI_CMDQ_ABT_ERR");
    bench.clean();
}
