//! The fault event: it comes again, whatever happened before.

mod common;

use common::Machine;
use common::fake::{self, FakeUnit};
use portcullis_hal::{Mmio, MsiMessage, PhysAddr};
use portcullis_iommu::{Unit, UnitEvent};

const INVALIDATION_QUEUE_ERROR: u32 = 0x10;

/// Machines with one fault recording register and with four, whose fault event is unmasked.
fn machines() -> [Machine; 2] {
    let (cap, ecap) = fake::SECOND_STAGE;
    [cap, cap | 3 << 40].map(|cap| {
        let machine = Machine::new((cap, ecap));
        let message = MsiMessage { address: PhysAddr::new(0xfee0_0000), data: 0x31 };
        machine.driver.enable_interrupts(message).unwrap();
        machine
    })
}

fn fault(fake: &FakeUnit) {
    assert!(fake.dma(0x20, 0x1000, true).is_err());
}

fn events_of(machine: &Machine) -> usize {
    machine.fake.state.lock().unwrap().events
}

/// The unit sets this bit of FSTS, which is an event unless another condition is pending.
fn queue_error(machine: &Machine) {
    let mut state = machine.fake.state.lock().unwrap();
    let pending = state.get32(fake::FSTS);
    state.set32(fake::FSTS, pending | INVALIDATION_QUEUE_ERROR);
    if pending & 0x73 == 0 {
        state.fault_event();
    }
}

/// A fault that comes now is an event, and is reported by the handler.
fn check_armed(machine: &Machine) {
    assert_eq!(machine.fake.get(fake::FSTS) & 0x73, 0);
    let before = events_of(machine);
    fault(&machine.fake);
    assert_eq!(events_of(machine), before + 1);
    assert!(matches!(machine.events()[..], [UnitEvent::Fault(_)]));
    assert_eq!(machine.fake.get(fake::FSTS) & 0x73, 0);
}

#[test]
fn a_storm_ends_in_an_overflow_and_later_faults_are_events_again() {
    for machine in machines() {
        for per_report in [1, 9] {
            let (mut faults, mut overflows) = (0_u64, 0);
            fault(&machine.fake);
            machine.driver.handle_interrupt(&mut |event| {
                match event {
                    UnitEvent::Fault(_) => faults += 1,
                    UnitEvent::Overflow => overflows += 1,
                    other => panic!("{other:?}"),
                }
                for _ in 0..per_report {
                    fault(&machine.fake);
                }
            });
            assert!((64..=256).contains(&faults) && overflows > 0, "{faults} {overflows}");
            check_armed(&machine);
        }
        assert!(machine.driver.stats().overflows >= 2);
    }
}

#[test]
fn a_lost_fault_is_reported_and_later_ones_are_events_again() {
    for machine in machines() {
        for _ in 0..6 {
            fault(&machine.fake);
        }
        let events = machine.events();
        assert_eq!(events.iter().filter(|event| **event == UnitEvent::Overflow).count(), 1);
        check_armed(&machine);
    }
}

#[test]
fn a_fault_while_the_queue_stands_is_reported_and_later_ones_are_events_again() {
    for machine in machines() {
        // The submitter is slower than the handler.
        queue_error(&machine);
        assert_eq!(machine.events(), [UnitEvent::QueueError]);
        check_armed(&machine);

        // The fault is no event of its own: the handler that the queue's error calls takes it.
        queue_error(&machine);
        let before = events_of(&machine);
        fault(&machine.fake);
        assert_eq!(events_of(&machine), before);
        assert!(matches!(machine.events()[..], [UnitEvent::QueueError, UnitEvent::Fault(_)]));
        check_armed(&machine);

        // The submitter is faster than the handler.
        queue_error(&machine);
        fault(&machine.fake);
        machine.fake.write32(fake::FSTS, INVALIDATION_QUEUE_ERROR);
        assert!(matches!(machine.events()[..], [UnitEvent::Fault(_)]));
        check_armed(&machine);

        // The fault comes while the handler runs.
        queue_error(&machine);
        let mut faults = 0;
        machine.driver.handle_interrupt(&mut |event| match event {
            UnitEvent::QueueError => fault(&machine.fake),
            _ => faults += 1,
        });
        assert_eq!(faults, 1);
        check_armed(&machine);
    }
}
