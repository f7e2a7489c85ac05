//! The page request queue.

use portcullis_model::core::{Downstream, Interrupt, PageResponse, ResponseCode, Upstream};
use portcullis_model::vtd::{Config, Feature, points};

use crate::machine::*;

const PQH: u64 = 0xc0;
const PQT: u64 = 0xc8;
const PQA: u64 = 0xd0;
const PRS: u64 = 0xdc;

fn machine() -> Machine {
    let machine = Machine::full();
    machine.unit.write64(PQA, REQUESTS);
    machine.unit.write32(0xe4, 0x50);
    machine.unit.write32(0xe8, 0xfee0_0000);
    machine.unit.write32(0xe0, 0);
    machine.connect();
    machine
}

fn response(code: ResponseCode) -> Downstream {
    Downstream::PageResponse(PageResponse { pasid: Some(9), group: 3, code })
}

/// A page group response for PASID 9, group 3.
fn answer(code: u64) -> [u64; 2] {
    [9 << 32 | u64::from(DEVICE) << 16 | code << 12 | 1 << 4 | 9, 3 << 3]
}

#[test]
fn a_request_is_laid_out_as_specified_and_raises_the_event() {
    let machine = machine();
    machine.unit.page_request(page_request(0x5000));
    // Type 1, PASID present, requester, PASID.
    assert_eq!(machine.ram.load(REQUESTS), 0x0000_0009_0018_0101);
    // Read, last, group 3, address.
    assert_eq!(machine.ram.load(REQUESTS + 8), 0x5000 | 3 << 3 | 1 << 2 | 1);
    assert_eq!((machine.unit.read64(PQT), machine.unit.read32(PRS)), (32, 1));
    let message = Interrupt::Message { source: "page request event", address: 0xfee0_0000, data: 0x50 };
    assert_eq!(machine.unit.take_interrupts(), [message]);
    machine.unit.page_request(page_request(0x6000));
    assert_eq!(machine.unit.take_interrupts(), []);
    machine.unit.write32(PRS, 1);
    machine.unit.write64(PQH, 64);
    assert_eq!(machine.unit.read32(PRS), 0);
    machine.clean();
}

#[test]
fn each_group_is_answered_exactly_once() {
    let machine = machine();
    machine.unit.page_request(page_request(0x5000));
    assert_eq!(machine.unit.open_groups(), [(DEVICE as u16, Some(9), 3)]);
    machine.submit(&[answer(0)]);
    assert_eq!(machine.messages(), [response(ResponseCode::Success)]);
    assert_eq!(machine.unit.open_groups(), []);
    machine.clean();
    machine.submit(&[answer(1)]);
    assert_eq!(machine.broken(), ["vtd page group response without a request"]);
}

#[test]
fn a_full_queue_overflows_and_hardware_answers_until_it_is_acknowledged() {
    let machine = machine();
    for page in 0..127 {
        machine.unit.page_request(page_request(page << 12));
    }
    assert_eq!(machine.unit.read32(PRS), 1);
    assert_eq!(machine.messages(), []);
    machine.unit.page_request(page_request(0x5000));
    assert_eq!(machine.unit.read32(PRS), 3);
    assert_eq!(machine.messages(), [response(ResponseCode::Success)]);
    // Room alone does not help.
    machine.unit.write64(PQH, machine.unit.read64(PQT));
    machine.unit.page_request(page_request(0x5000));
    assert_eq!(machine.messages(), [response(ResponseCode::Success)]);
    machine.unit.write32(PRS, 3);
    machine.unit.page_request(page_request(0x5000));
    assert_eq!(machine.messages(), []);
    assert_eq!(machine.unit.read64(PQT), 0);
    machine.clean();
}

#[test]
fn only_the_last_of_a_group_is_answered_and_stop_markers_never() {
    let machine = machine();
    machine.unit.page_request(portcullis_model::core::PageRequest { last: false, ..page_request(0x5000) });
    machine.unit.page_request(portcullis_model::core::PageRequest { read: false, ..page_request(0) });
    assert_eq!(machine.unit.read64(PQT), 64);
    assert_eq!(machine.unit.open_groups(), []);
    machine.clean();
}

#[test]
fn requests_from_a_device_without_pre_are_refused_and_recorded() {
    let machine = machine();
    machine.put(CONTEXT, &[DIRECTORY | 0xd]);
    machine.unit.page_request(page_request(0x5000));
    assert_eq!(machine.messages(), [response(ResponseCode::Failure)]);
    assert_eq!(machine.unit.read64(PQT), 0);
    assert_eq!(machine.unit.read64(0x408) >> 32 & 0xff, 0x47);
}

#[test]
fn a_draining_wait_brings_late_requests_into_the_queue() {
    let machine = machine();
    machine.schedule.script(points::REQUEST_LATE, &[1, 1]);
    machine.unit.page_request(page_request(0x5000));
    let (_, wait) = machine.ticket();
    machine.submit(&[wait]);
    assert_eq!(machine.unit.read64(PQT), 0);
    let (ticket, wait) = machine.ticket();
    machine.submit(&[[wait[0] | 1 << 7, wait[1]]]);
    assert!(machine.done(ticket));
    assert_eq!(machine.unit.read64(PQT), 32);
    machine.clean();
    // Without PDS the drain bit is reserved.
    let machine = Machine::new(Config::full().without(Feature::PageRequestDrain));
    machine.submit(&[[1 << 7 | 5, 0]]);
    assert_eq!(machine.unit.read32(FSTS), 1 << 4);
}

#[test]
fn a_page_request_without_a_queue_is_the_drivers_fault() {
    let machine = Machine::full();
    machine.connect();
    machine.unit.page_request(page_request(0x5000));
    assert_eq!(machine.broken(), ["vtd page request without a queue"]);
}
