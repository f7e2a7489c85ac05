//! The event queue and its interrupts.

use crate::bench::*;
use portcullis_model::core::{Interrupt, Mode, Outcome, Request};
use portcullis_model::smmuv3::{Config, code, points};

fn fault(bench: &Bench, sid: u32) {
    assert_eq!(bench.smmu.dma(Request::read(sid, VA), Mode::Fresh).outcome, Outcome::Fault(code::C_BAD_STE));
}

#[test]
fn events_beyond_the_queue_are_lost_and_flagged_once() {
    let bench = Bench::new(Config::qemu());
    for sid in 0..6 {
        fault(&bench, sid);
    }
    assert_eq!(
        bench.smmu.take_interrupts(),
        [Interrupt::Wire { source: "eventq" }],
        "empty to non-empty only"
    );
    assert_eq!(bench.smmu.read32(0x1_00a8), 4 | 1 << 31);
    let lost = bench.smmu.coverage().of("event", "lost: overflow");
    assert_eq!(lost, 2);
    let sids: Vec<_> = bench.events().iter().map(|event| event[0] >> 32).collect();
    assert_eq!(sids, [0, 1, 2, 3]);
    assert_eq!(bench.smmu.read32(0x1_00ac), 4 | 1 << 31, "acknowledged");
    for sid in 0..5 {
        fault(&bench, sid);
    }
    assert_eq!(bench.smmu.read32(0x1_00a8) >> 31, 0, "the flag toggles");
    bench.clean();
}

#[test]
fn cons_beyond_prod_is_a_violation() {
    let bench = Bench::new(Config::qemu());
    fault(&bench, 0);
    bench.smmu.write32(0x1_00ac, 2);
    assert_eq!(bench.violations(), ["queue-cons"]);
}

#[test]
fn an_event_that_cannot_be_written_stops_the_queue() {
    let bench = Bench::new(Config::qemu());
    bench.ram.punch(EVENTQ, EVENTQ + 0x80);
    fault(&bench, 0);
    assert_eq!(bench.smmu.read32(0x60), 4, "EVENTQ_ABT_ERR");
    assert_eq!(bench.smmu.read32(0x1_00a8), 0, "PROD stays");
    bench.ram.mend();
    fault(&bench, 1);
    assert_eq!(bench.event_codes(), [0; 0], "until acknowledged");
    bench.smmu.write32(0x64, 4);
    fault(&bench, 2);
    assert_eq!(bench.event_codes(), [code::C_BAD_STE]);
    bench.schedule.script(points::EVENTQ_ABORT, &[1]);
    fault(&bench, 2);
    assert_eq!(bench.smmu.read32(0x60), 0);
    bench.clean();
}

#[test]
fn a_late_event_arrives_with_the_next_sync() {
    let bench = Bench::new(Config::qemu());
    bench.schedule.odds(points::EVENT_LATE, 1, 1);
    fault(&bench, 0);
    assert_eq!(bench.event_codes(), [0; 0]);
    bench.synced(&[]);
    assert_eq!(bench.event_codes(), [code::C_BAD_STE]);
}

#[test]
fn msis_carry_the_programmed_message() {
    let bench = Bench::new(Config::full());
    bench.smmu.write32(0x50, 0);
    bench.smmu.write64(0xb0, 0x9000);
    bench.smmu.write32(0xb8, 0x123);
    bench.smmu.write32(0x50, 5);
    fault(&bench, 0);
    let message = Interrupt::Message { source: "eventq", address: 0x9000, data: 0x123 };
    assert_eq!(bench.smmu.take_interrupts(), [message]);
    assert_eq!(bench.ram.load(0x9000), 0x123);
    bench.events();
    bench.schedule.script(points::MSI_ABORT, &[1]);
    fault(&bench, 0);
    assert_eq!(bench.smmu.read32(0x60), 1 << 5, "MSI_EVENTQ_ABT_ERR");
    assert_eq!(bench.smmu.take_interrupts(), [Interrupt::Wire { source: "gerror" }]);
    bench.clean();
}

#[test]
fn a_disabled_queue_loses_events() {
    let bench = Bench::new(Config::qemu());
    bench.smmu.write32(0x20, 9);
    fault(&bench, 0);
    assert_eq!(bench.smmu.coverage().of("event", "lost: queue off"), 1);
    assert_eq!(bench.smmu.read32(0x1_00a8), 0);
}
