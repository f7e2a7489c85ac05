//! The invalidation queue: waits, fences, errors and recovery, devices that answer late or never.

use portcullis_model::core::{Interrupt, Upstream};
use portcullis_model::vtd::{Config, points};

use crate::machine::*;

const IQE: u32 = 1 << 4;
const ICE: u32 = 1 << 5;
const ITE: u32 = 1 << 6;

#[test]
fn a_wait_writes_its_status_and_raises_its_event_once_until_acknowledged() {
    let machine = Machine::full();
    machine.unit.write32(0xa4, 0x41);
    machine.unit.write32(0xa8, 0xfee0_1000);
    machine.unit.write32(0xa0, 0);
    assert!(machine.sync(&[]));
    assert_eq!(machine.unit.read64(IQH), 32);
    let (ticket, wait) = machine.ticket();
    machine.submit(&[[wait[0] | 1 << 4, wait[1]], [1 << 4 | 5, 0]]);
    assert!(machine.done(ticket));
    assert_eq!(machine.unit.read32(0x9c), 1);
    let message = Interrupt::Message { source: "invalidation event", address: 0xfee0_1000, data: 0x41 };
    assert_eq!(machine.unit.take_interrupts(), [message]);
    machine.unit.write32(0x9c, 1);
    machine.submit(&[[1 << 4 | 5, 0]]);
    assert_eq!(machine.unit.take_interrupts(), [message]);
    machine.clean();
}

#[test]
fn the_queue_wraps() {
    let machine = Machine::full();
    for _ in 0..300 {
        assert!(machine.sync(&[flush_domain(1)]));
    }
    assert_eq!(machine.unit.read64(IQH), machine.unit.read64(IQT));
    assert_eq!(machine.unit.coverage().of("descriptor", "wait"), 300);
    machine.clean();
}

#[test]
fn a_bad_descriptor_stops_the_queue_at_itself_until_fixed_and_acknowledged() {
    let machine = Machine::full();
    let (before, first) = machine.ticket();
    machine.submit(&[first, [0, 0]]);
    assert!(machine.done(before));
    assert_eq!(machine.unit.read32(FSTS), IQE);
    assert_eq!((machine.unit.read64(IQH), machine.unit.read64(IQERCD)), (32, 3));
    // Descriptors behind it wait.
    let (after, wait) = machine.ticket();
    machine.submit(&[wait]);
    machine.unit.settle(5);
    assert!(!machine.done(after));
    // Acknowledged without a fix: the same error again.
    machine.unit.write32(FSTS, IQE);
    assert_eq!(machine.unit.read32(FSTS), IQE);
    machine.put(QUEUE + 32, &[5, 0]);
    machine.unit.write32(FSTS, IQE);
    assert_eq!(machine.unit.read32(FSTS), 0);
    assert!(machine.done(after));
    machine.clean();
}

#[test]
fn each_queue_error_has_its_code() {
    let code = |machine: &Machine| {
        assert_eq!(machine.unit.read32(FSTS) & IQE, IQE);
        machine.unit.read64(IQERCD) & 0xf
    };
    let machine = Machine::full();
    machine.submit(&[[flush_domain(1)[0] | 1 << 8, 0]]);
    assert_eq!(code(&machine), 4);
    let machine = Machine::full();
    machine.unit.write64(IQT, 0x2000);
    assert_eq!(code(&machine), 1);
    assert_eq!(machine.broken(), ["vtd IQT out of the queue"]);
    let machine = Machine::full();
    machine.unit.write64(IQT, 16);
    assert_eq!(code(&machine), 6);
    let machine = Machine::full();
    machine.schedule.script(points::QUEUE_FETCH_ERROR, &[1]);
    assert!(!machine.sync(&[]));
    assert_eq!(code(&machine), 2);
    // A transient one: acknowledged, it goes on.
    machine.unit.write32(FSTS, IQE);
    assert_eq!(machine.unit.read64(IQH), 32);
    // PASID-based descriptors in a 128-bit queue.
    let machine = Machine::cold(Config::full());
    machine.unit.write64(IQA, QUEUE);
    machine.unit.write32(GCMD, QIE);
    machine.put(QUEUE, &[0x11, 0, 0x37, 0]);
    machine.unit.write64(IQT, 32);
    assert_eq!((code(&machine), machine.unit.read64(IQH)), (5, 16));
    machine.clean();
}

#[test]
fn overrunning_the_ring_is_found() {
    let machine = Machine::full();
    machine.schedule.odds(points::QUEUE_PAUSE, 1, 1);
    machine.unit.write64(IQT, 4096 - 32);
    machine.clean();
    machine.unit.write64(IQT, 0);
    assert_eq!(machine.broken(), ["vtd IQT overruns IQH"]);
}

#[test]
fn a_fence_holds_back_what_follows_and_no_fence_does_not() {
    let machine = Machine::full();
    machine.connect();
    machine.schedule.odds(points::QUEUE_OVERTAKE, 1, 1);
    // Waits for the device; without a fence the queue runs on.
    machine.submit(&[flush_device(DEVICE, 0x5000), [5, 0], flush_domain(1)]);
    assert_eq!(machine.unit.read64(IQH), 96);
    machine.confirm();
    machine.submit(&[flush_device(DEVICE, 0x5000), [1 << 6 | 5, 0], flush_domain(1)]);
    assert_eq!(machine.unit.read64(IQH), 160);
    machine.confirm();
    assert_eq!(machine.unit.read64(IQH), 192);
    machine.clean();
}

#[test]
fn a_wait_behind_a_device_completes_when_the_device_confirms() {
    let machine = Machine::full();
    machine.connect();
    let (ticket, wait) = machine.ticket();
    machine.submit(&[flush_device(DEVICE, 0x5000), wait]);
    machine.unit.settle(5);
    assert!(!machine.done(ticket));
    assert_eq!(machine.confirm().len(), 1);
    assert!(machine.done(ticket));
    machine.clean();
}

#[test]
fn a_device_that_never_confirms_times_out_and_aborts_the_waits() {
    let machine = Machine::full();
    machine.connect();
    let (lost, wait) = machine.ticket();
    machine.submit(&[flush_device(DEVICE, 0x5000), wait]);
    assert_eq!(machine.unit.time_out(), 1);
    assert_eq!(machine.unit.read32(FSTS), ITE);
    assert_eq!(machine.unit.read64(IQERCD) >> 32 & 0xffff, u64::from(DEVICE));
    let (after, wait) = machine.ticket();
    machine.submit(&[wait]);
    assert!(!machine.done(lost) && !machine.done(after));
    machine.unit.write32(FSTS, ITE);
    assert!(!machine.done(lost) && machine.done(after));
    // The confirmation comes after all: nobody expects it.
    machine.schedule.script(points::COMPLETION_ERROR, &[1]);
    machine.confirm();
    assert_eq!(machine.unit.read32(FSTS), ICE);
    assert_eq!(machine.unit.read64(IQERCD) >> 48, u64::from(DEVICE));
    assert!(machine.sync(&[]));
    machine.clean();
}

#[test]
fn the_schedule_can_time_devices_out_and_lose_waits() {
    let machine = Machine::full();
    machine.connect();
    machine.schedule.script(points::DEVICE_TIME_OUT, &[0, 1]);
    machine.submit(&[flush_device(DEVICE, 0x5000)]);
    machine.unit.step();
    assert_eq!(machine.unit.read32(FSTS), 0);
    machine.unit.step();
    assert_eq!(machine.unit.read32(FSTS), ITE);
    let machine = Machine::full();
    machine.schedule.script(points::WAIT_LOST, &[1]);
    assert!(!machine.sync(&[]));
    // A hung queue may be turned off and on again.
    machine.unit.write32(GCMD, TE);
    machine.rewind();
    machine.unit.write64(IQT, 0);
    machine.unit.write64(IQA, QUEUE | (1 << 11));
    machine.unit.write32(GCMD, TE | QIE);
    assert!(machine.sync(&[]));
    machine.clean();
}

#[test]
fn the_tail_has_to_be_zero_when_the_queue_is_enabled() {
    let machine = Machine::full();
    assert!(machine.sync(&[]));
    machine.unit.write32(GCMD, TE);
    // The head went back to 0 by itself, the tail did not.
    assert_eq!((machine.unit.read64(IQH), machine.unit.read64(IQT)), (0, 32));
    machine.unit.write32(GCMD, TE | QIE);
    assert_eq!(machine.broken(), ["vtd QIE set with IQT not 0"]);
}

#[test]
fn a_hung_queue_goes_on_when_it_is_let() {
    let machine = Machine::full();
    machine.unit.hang();
    let (ticket, wait) = machine.ticket();
    machine.submit(&[wait]);
    assert!(!machine.unit.settle(20) && !machine.done(ticket));
    machine.unit.unhang();
    assert!(machine.unit.settle(20) && machine.done(ticket));
    machine.clean();
}

#[test]
fn a_busy_queue_must_not_be_disabled() {
    let machine = Machine::full();
    machine.schedule.odds(points::QUEUE_PAUSE, 1, 1);
    machine.submit(&[flush_domain(1)]);
    machine.unit.write32(GCMD, TE);
    assert_eq!(machine.broken(), ["vtd QIE cleared while busy"]);
}

#[test]
fn sloppy_descriptors_are_violations() {
    let machine = Machine::new(Config::full().with_domain_ids(0));
    assert!(machine.sync(&[flush_pages(1, 0x1000, 1, 0)]));
    assert_eq!(machine.broken(), ["vtd address not aligned to its mask"]);
    assert!(machine.sync(&[flush_domain(16)]));
    assert_eq!(machine.broken(), ["vtd domain id beyond ND"]);
}

#[test]
fn an_aborted_status_write_never_arrives() {
    let machine = Machine::full();
    machine.ram.punch(STATUS, STATUS + 8);
    assert!(!machine.sync(&[]));
    assert_eq!(machine.unit.coverage().of("queue error", "status write aborted"), 1);
}

#[test]
fn invalidations_reach_the_device_with_their_range() {
    use portcullis_model::core::{AtcInvalidation, Downstream};
    let machine = Machine::full();
    machine.connect();
    // Two pages of PASID 9; everything of all PASIDs.
    machine.submit(&[
        [9 << 32 | u64::from(DEVICE) << 16 | 8, 0x4000 | 1 << 11],
        [9 << 32 | u64::from(DEVICE) << 16 | 8, 0x7fff_ffff_ffff_f801],
    ]);
    let seen: Vec<_> = machine
        .unit
        .take_messages(DEVICE)
        .into_iter()
        .map(|message| match message {
            Downstream::Invalidate(AtcInvalidation { pasid, global, address, last, .. }) => {
                (pasid, global, address, last)
            }
            Downstream::PageResponse(_) => panic!("no response was due"),
        })
        .collect();
    assert_eq!(seen, [(Some(9), false, 0x4000, 0x5fff), (Some(9), true, 0, u64::MAX)]);
    machine.clean();
}
