//! The register file: level and one-shot commands, what is in force when, forbidden writes.

use portcullis_model::core::{Mode, Outcome, Request};
use portcullis_model::vtd::{Config, Feature, points};

use crate::machine::*;

#[test]
fn capabilities_read_back_in_both_widths() {
    let machine = Machine::cold(Config::qemu_first_stage());
    assert_eq!(machine.unit.read64(0x8), 0x81d2_008c_222f_0606);
    assert_eq!(machine.unit.read32(0xc), 0x81d2_008c);
    assert_eq!(machine.unit.read64(0x10), 0x0000_8d9a_20f0_0f4e);
    assert_eq!(machine.unit.read32(0), 0x10);
    machine.clean();
}

#[test]
fn a_new_root_table_is_in_force_only_after_srtp() {
    let machine = Machine::new(Config::full().without(Feature::EnhancedSetRoot));
    machine.pasid(0, pass_through(1));
    assert_eq!(machine.read(0x5000), Outcome::Done(0x5000));
    // An empty root table, announced but not set.
    machine.unit.write64(RTADDR, 0x7_0000 | 1 << 10);
    assert_eq!(machine.read(0x5000), Outcome::Done(0x5000));
    machine.unit.write32(GCMD, QIE | TE | SRTP);
    assert_eq!(machine.read(0x5000), Outcome::Fault(0x39));
    // Without ESRTPS the caches survive.
    assert!(machine.reads(0x5000).contains(&Outcome::Done(0x5000)));
    assert!(machine.sync(&[[0x11, 0], [0x37, 0], [0x12, 0]]));
    assert_eq!(machine.reads(0x5000), [Outcome::Fault(0x39)]);
    machine.clean();
}

#[test]
fn with_esrtps_setting_the_root_forgets_everything() {
    let machine = Machine::full();
    machine.pasid(0, pass_through(1));
    assert_eq!(machine.read(0x5000), Outcome::Done(0x5000));
    machine.unit.write64(RTADDR, 0x7_0000 | 1 << 10);
    machine.unit.write32(GCMD, QIE | TE | SRTP);
    assert_eq!(machine.reads(0x5000), [Outcome::Fault(0x39)]);
    machine.clean();
}

#[test]
fn without_translation_everything_passes() {
    let machine = Machine::cold(Config::full());
    assert_eq!(machine.write(0x1234_5678), Outcome::Done(0x1234_5678));
}

#[test]
fn the_abort_mode_refuses_without_a_record() {
    let machine = Machine::cold(Config::full());
    machine.unit.write64(RTADDR, ROOT | 3 << 10);
    machine.unit.write32(GCMD, SRTP);
    machine.unit.write32(GCMD, TE);
    assert_eq!(machine.read(0x5000), Outcome::Aborted);
    assert_eq!(machine.unit.read32(FSTS), 0);
    machine.clean();
}

#[test]
fn commands_that_drop_a_level_bit_or_change_two_things_are_found() {
    let machine = Machine::full();
    // Only the new one-shot bit: that turns TE and QIE off as well.
    machine.unit.write32(GCMD, SRTP);
    assert_eq!(machine.broken(), ["vtd GCMD with several changes"]);
    assert_eq!(machine.unit.read32(GSTS) & (TE | QIE), 0);
    let machine = Machine::cold(Config::full());
    machine.unit.write32(GCMD, QIE | SRTP);
    assert_eq!(machine.broken(), ["vtd GCMD with several changes"]);
    let machine = Machine::cold(Config::full());
    machine.unit.write32(GCMD, TE);
    assert_eq!(machine.broken(), ["vtd TE set without a root table"]);
    machine.unit.write32(GCMD, TE | 1);
    assert_eq!(machine.broken(), ["vtd GCMD reserved bits"]);
}

#[test]
fn the_translation_mode_must_not_change_while_translating() {
    let machine = Machine::full();
    machine.unit.write64(RTADDR, ROOT | 3 << 10);
    machine.unit.write32(GCMD, QIE | TE | SRTP);
    assert_eq!(machine.broken(), ["vtd TTM changed while translating"]);
}

#[test]
fn a_late_command_shows_in_the_status_only_later() {
    let machine = Machine::cold(Config::full());
    machine.unit.write64(IQA, QUEUE | 1 << 11);
    machine.schedule.script(points::COMMAND_LATE, &[1, 1]);
    machine.unit.write32(GCMD, QIE);
    assert_eq!(machine.unit.read32(GSTS), 0);
    machine.unit.step();
    assert_eq!(machine.unit.read32(GSTS), QIE);
    machine.clean();
    machine.unit.write64(RTADDR, ROOT | 1 << 10);
    machine.unit.write32(GCMD, QIE | SRTP);
    machine.unit.write32(GCMD, QIE | TE);
    assert!(machine.broken().contains(&"vtd GCMD written before the last one took effect"));
}

#[test]
fn forbidden_accesses_are_violations() {
    let machine = Machine::full();
    machine.unit.write64(IQA, QUEUE);
    assert_eq!(machine.broken(), ["vtd IQA changed while enabled"]);
    machine.unit.write64(0x8, 0);
    assert_eq!(machine.broken(), ["vtd write of a read-only register"]);
    let _ = (machine.unit.read32(0x3), machine.unit.read64(0x18), machine.unit.read32(0xff8));
    assert_eq!(machine.broken(), ["vtd read of no register"; 3]);
    machine.unit.write64(0x28, 1 << 63);
    machine.unit.write64(0x508, 1 << 63);
    assert_eq!(machine.broken(), ["vtd register-based invalidation"; 2]);
    machine.unit.write64(RTADDR, ROOT | 2 << 10);
    assert_eq!(machine.broken(), ["vtd RTADDR reserved bits"]);
}

#[test]
fn stores_wait_in_the_write_buffer_until_it_is_flushed() {
    let config = Config::full().with(Feature::WriteBufferFlush);
    let machine = Machine::new(config);
    assert_eq!(machine.reads(0x5000), [Outcome::Fault(0x59)]);
    machine.pasid(0, pass_through(1));
    // The store may not have arrived; no invalidation is needed, but a flush is.
    assert_eq!(machine.reads(0x5000), [Outcome::Done(0x5000), Outcome::Fault(0x59)]);
    machine.unit.write32(GCMD, QIE | TE | WBF);
    assert_eq!(machine.reads(0x5000), [Outcome::Done(0x5000)]);
    machine.clean();
}

#[test]
fn a_missing_cache_clean_is_seen_by_a_non_coherent_unit() {
    let config = Config::full().without(Feature::Coherent);
    let machine = Machine::new(config);
    machine.ram.store(PASIDS, pass_through(1)[0]);
    machine.ram.store(PASIDS + 8, pass_through(1)[1]);
    assert_eq!(machine.read(0x5000), Outcome::Fault(0x59));
    machine.ram.clean(PASIDS, 16);
    assert_eq!(machine.read(0x5000), Outcome::Done(0x5000));
    // Page walks without PWSNP look past the CPU's caches too.
    machine.second_tables(SECOND, 4);
    let [low, domain, ..] = second_stage(2, SECOND);
    machine.put(PASIDS + 64, &[low, domain & 0xffff, 0, 0]);
    machine.ram.store(Machine::slot(SECOND, 4, 5), 0x9003);
    let request = Request::read(DEVICE, 0x5000).with_pasid(1);
    assert_eq!(machine.dma(request, Mode::Fresh), Outcome::Fault(0x79));
    machine.ram.clean(Machine::slot(SECOND, 4, 5), 8);
    assert_eq!(machine.dma(request, Mode::Fresh), Outcome::Done(0x9000));
}
