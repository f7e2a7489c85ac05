//! A device with PASID, ATS and PRI behind the unit.

use std::sync::Arc;

use portcullis_model::core::{Mode, Outcome, PageResponse, Response, ResponseCode, Upstream};
use portcullis_model::device::{self, Attempt, Device, Job};

use crate::machine::*;

const PQA: u64 = 0xd0;

/// First-stage PASID 9 with nothing mapped, and a device with everything on.
fn machine() -> (Machine, Device) {
    let machine = Machine::full();
    machine.unit.write64(PQA, REQUESTS);
    machine.first_tables(FIRST, 4);
    machine.pasid(9, first_stage(2, FIRST));
    let link: Arc<dyn Upstream> = machine.unit.clone();
    let device = Device::new(DEVICE, link, Arc::clone(&machine.schedule), true);
    device.set_pasid(Some(20));
    device.set_pri(Some(4));
    device.set_ats(true);
    (machine, device)
}

fn job(address: u64) -> Job {
    Job { pasid: Some(9), ..Job::read(address) }
}

fn answered(attempt: Attempt) -> Outcome {
    match attempt {
        Attempt::Answered(Response { outcome, .. }) => outcome,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_missing_page_is_requested_mapped_answered_and_used() {
    let (machine, device) = machine();
    let Attempt::Requested { group } = device.access(job(0x5000), Mode::Fresh) else {
        panic!("a page request was due");
    };
    assert_eq!(machine.ram.load(REQUESTS), 0x0000_0009_0018_0101);
    assert_eq!(machine.ram.load(REQUESTS + 8) & 0xfff, u64::from(group) << 3 | 1 << 2 | 1);
    machine.put(Machine::slot(FIRST, 4, 5), &[0x9067]);
    machine.submit(&[[9 << 32 | u64::from(DEVICE) << 16 | 1 << 4 | 9, u64::from(group) << 3]]);
    device.step();
    let answer = PageResponse { pasid: Some(9), group, code: ResponseCode::Success };
    assert_eq!(device.take_answers(), [answer]);
    assert_eq!(answered(device.access(job(0x5000), Mode::Hostile)), Outcome::Done(0x9000));
    assert_eq!((device.unanswered(), machine.unit.unanswered_groups()), (0, 0));
    assert_eq!(device.take_violations(), []);
    machine.clean();
}

#[test]
fn the_atc_outlives_the_iotlb_until_the_device_is_told() {
    let (machine, device) = machine();
    machine.put(Machine::slot(FIRST, 4, 5), &[0x9067]);
    assert_eq!(answered(device.access(job(0x5000), Mode::Fresh)), Outcome::Done(0x9000));
    machine.put(Machine::slot(FIRST, 4, 5), &[0]);
    assert!(machine.sync(&[flush_pasid_pages(2, 9, 0x5000, 0, 1)]));
    assert_eq!(answered(device.access(job(0x5000), Mode::Hostile)), Outcome::Done(0x9000));
    let (ticket, wait) = machine.ticket();
    machine.submit(&[[9 << 32 | u64::from(DEVICE) << 16 | 8, 0x5000], wait]);
    assert!(!machine.done(ticket));
    device.step();
    assert!(machine.done(ticket));
    assert!(matches!(device.access(job(0x5000), Mode::Hostile), Attempt::Requested { .. }));
    machine.clean();
}

#[test]
fn a_device_that_loses_an_invalidation_times_the_queue_out() {
    let (machine, device) = machine();
    machine.schedule.script(device::points::INVALIDATION_LOST, &[1]);
    let (ticket, wait) = machine.ticket();
    machine.submit(&[[9 << 32 | u64::from(DEVICE) << 16 | 8, 0x5000], wait]);
    device.step();
    assert!(!machine.unit.settle(20) && !machine.done(ticket));
    assert_eq!(machine.unit.time_out(), 1);
    assert_eq!(machine.unit.read32(FSTS), 1 << 6);
    machine.unit.write32(FSTS, 1 << 6);
    assert!(machine.sync(&[]));
    assert!(!machine.done(ticket));
    machine.clean();
}

#[test]
fn a_flood_of_requests_overflows_the_queue_and_the_device_is_told_to_go_on() {
    let (machine, device) = machine();
    // Queue head one slot ahead of the tail: full.
    machine.unit.write64(0xc0, 32);
    let Attempt::Requested { group } = device.access(job(0x5000), Mode::Fresh) else {
        panic!("a page request was due");
    };
    assert_eq!(machine.unit.read32(0xdc), 2);
    device.step();
    let answer = PageResponse { pasid: Some(9), group, code: ResponseCode::Success };
    assert_eq!(device.take_answers(), [answer]);
    assert_eq!(machine.unit.unanswered_groups(), 0);
    assert_eq!(device.take_violations(), []);
}
