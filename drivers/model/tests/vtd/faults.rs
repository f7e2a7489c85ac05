//! The fault log and its event.

use portcullis_model::core::{Interrupt, Mode, Outcome, Request};
use portcullis_model::vtd::{Config, points};

use crate::machine::*;

const RECORDS: u64 = 0x400;
const PFO: u32 = 1;
const PPF: u32 = 2;

fn fault(machine: &Machine, requester: u32) {
    assert!(matches!(machine.dma(Request::read(requester, 0x5123), Mode::Fresh), Outcome::Fault(_)));
}

#[test]
fn a_record_is_laid_out_as_specified() {
    let machine = Machine::full();
    fault(&machine, DEVICE);
    assert_eq!(machine.unit.read32(FSTS), PPF);
    assert_eq!(machine.unit.read64(RECORDS), 0x5000);
    // F, T=read, reason 0x59, source 0x18.
    assert_eq!(machine.unit.read64(RECORDS + 8), 0xc000_0059_0000_0018);
    let write = Request::write(DEVICE, 0xabc_d000).with_pasid(0x1234).privileged();
    machine.dma(write, Mode::Fresh);
    assert_eq!(machine.unit.read64(RECORDS + 16), 0xabc_d000);
    // F, PASID 0x1234, reason 0x51 (directory entry 0x48 is absent), PP, PRIV.
    assert_eq!(machine.unit.read64(RECORDS + 24), 0x8012_3451_a000_0018);
    machine.clean();
}

#[test]
fn records_are_cleared_one_by_one_by_their_f_bit() {
    let machine = Machine::full();
    fault(&machine, DEVICE);
    fault(&machine, 0x20);
    // Nothing but F can be cleared, by the upper half or by its upper dword.
    machine.unit.write64(RECORDS, u64::MAX);
    machine.unit.write64(RECORDS + 8, 1 << 63);
    assert_eq!(machine.unit.read64(RECORDS + 8) >> 63, 0);
    assert_eq!(machine.unit.read32(FSTS) & PPF, PPF);
    machine.unit.write32(RECORDS + 28, 1 << 31);
    assert_eq!(machine.unit.read32(FSTS), 0);
    // The next one goes behind them.
    fault(&machine, 0x20);
    assert_eq!(machine.unit.read32(FSTS), PPF | 2 << 8);
    machine.clean();
}

#[test]
fn faults_beyond_the_records_set_pfo_and_are_lost_until_it_is_cleared() {
    let machine = Machine::new(Config::full().with_fault_records(2));
    for requester in [1, 2, 3] {
        fault(&machine, requester);
    }
    assert_eq!(machine.unit.read32(FSTS), PFO | PPF);
    machine.unit.write64(RECORDS + 8, 1 << 63);
    // There is room, but the overflow stands.
    fault(&machine, 4);
    assert_eq!(machine.unit.read64(RECORDS + 8) >> 63, 0);
    machine.unit.write32(FSTS, PFO);
    fault(&machine, 5);
    assert_eq!(machine.unit.read64(RECORDS + 8) & 0xffff, 5);
    assert_eq!(machine.unit.coverage().of("fault log", "overflow"), 2);
}

#[test]
fn faults_of_one_requester_may_collapse() {
    let machine = Machine::full();
    fault(&machine, DEVICE);
    machine.schedule.script(points::FAULT_COLLAPSE, &[1]);
    fault(&machine, DEVICE);
    assert_eq!(machine.unit.read64(RECORDS + 24), 0);
    fault(&machine, DEVICE);
    assert_eq!(machine.unit.read64(RECORDS + 24) >> 63, 1);
}

#[test]
fn fault_processing_can_be_disabled_at_each_entry() {
    let machine = Machine::full();
    machine.put(PASIDS, &[2]);
    assert_eq!(machine.read(0x5000), Outcome::Silent(0x59));
    machine.put(PASIDS, &[0]);
    machine.put(DIRECTORY, &[PASIDS | 3]);
    assert_eq!(machine.read(0x5000), Outcome::Silent(0x59));
    machine.put(DIRECTORY, &[2]);
    assert_eq!(machine.read(0x5000), Outcome::Silent(0x51));
    machine.put(DIRECTORY, &[PASIDS | 1]);
    machine.put(CONTEXT, &[DIRECTORY | 3]);
    assert_eq!(machine.read(0x5000), Outcome::Silent(0x59));
    machine.put(CONTEXT, &[2]);
    assert_eq!(machine.read(0x5000), Outcome::Silent(0x41));
    assert_eq!(machine.unit.read32(FSTS), 0);
}

#[test]
fn the_event_comes_once_and_waits_behind_its_mask() {
    let machine = Machine::full();
    machine.unit.write32(0x3c, 0x30);
    machine.unit.write32(0x40, 0xfee0_2000);
    machine.unit.write32(0x44, 0x100);
    fault(&machine, DEVICE);
    assert_eq!(machine.unit.read32(0x38), 0xc000_0000);
    assert_eq!(machine.unit.take_interrupts(), []);
    machine.unit.write32(0x38, 0);
    let message = Interrupt::Message { source: "fault event", address: 0x100_fee0_2000, data: 0x30 };
    assert_eq!(machine.unit.take_interrupts(), [message]);
    assert_eq!(machine.unit.read32(0x38), 0);
    // While a fault is pending, further ones raise nothing.
    fault(&machine, DEVICE);
    assert_eq!(machine.unit.take_interrupts(), []);
    machine.unit.write64(RECORDS + 8, 1 << 63);
    machine.unit.write64(RECORDS + 24, 1 << 63);
    fault(&machine, DEVICE);
    assert_eq!(machine.unit.take_interrupts(), [message]);
    // Pending and dealt with before the mask goes: nothing comes.
    machine.unit.write32(0x38, 1 << 31);
    machine.unit.write64(RECORDS + 40, 1 << 63);
    fault(&machine, DEVICE);
    machine.unit.write64(RECORDS + 56, 1 << 63);
    machine.unit.write32(0x38, 0);
    assert_eq!(machine.unit.take_interrupts(), []);
    machine.clean();
}
