//! Translation of every type, permission checks, and the fault of every condition.

use portcullis_model::core::{Access, AddressKind, Mode, Outcome, Request};
use portcullis_model::vtd::{Config, Feature};

use crate::machine::*;

const SLOT5: u64 = SECOND + 0x3000 + 5 * 8;
const FIRST5: u64 = FIRST + 0x3000 + 5 * 8;

fn with_second() -> Machine {
    let machine = Machine::full();
    machine.second_tables(SECOND, 4);
    machine.pasid(0, second_stage(2, SECOND));
    machine
}

fn with_first() -> Machine {
    let machine = Machine::full();
    machine.first_tables(FIRST, 4);
    machine.pasid(9, first_stage(2, FIRST));
    machine
}

fn first(address: u64) -> Request {
    Request::read(DEVICE, address).with_pasid(9)
}

#[test]
fn the_second_stage_grants_what_every_level_grants() {
    let machine = with_second();
    machine.put(SLOT5, &[0x9003]);
    assert_eq!((machine.read(0x5123), machine.write(0x5123)), (Outcome::Done(0x9123), Outcome::Done(0x9123)));
    machine.put(SLOT5 + 8, &[0xa001, 0xb002]);
    assert_eq!((machine.read(0x6000), machine.write(0x6000)), (Outcome::Done(0xa000), Outcome::Fault(0x85)));
    assert_eq!((machine.read(0x7000), machine.write(0x7000)), (Outcome::Fault(0x86), Outcome::Done(0xb000)));
    assert_eq!(machine.read(0x8000), Outcome::Fault(0x79));
    assert_eq!(machine.read(1 << 21), Outcome::Fault(0x79));
    assert_eq!(machine.read(1 << 48), Outcome::Fault(0x83));
    machine.clean();
}

#[test]
fn large_second_stage_pages() {
    let machine = with_second();
    machine.put(SECOND + 0x2000 + 8, &[0x4000_0000 | 0x80 | 3]);
    machine.put(SECOND + 0x1000 + 8, &[0x8000_0000 | 0x80 | 3]);
    assert_eq!(machine.read(0x20_1234), Outcome::Done(0x4000_1234));
    assert_eq!(machine.read(0x4012_3456), Outcome::Done(0x8012_3456));
    // Not aligned; a leaf at level 4; an address beyond the host's width is covered below.
    machine.put(SECOND + 0x2000 + 16, &[0x4000_1000 | 0x80 | 3]);
    assert_eq!(machine.read(0x40_0000), Outcome::Fault(0x7a));
    machine.put(SECOND + 8, &[0x80 | 3]);
    assert_eq!(machine.read(1 << 39), Outcome::Fault(0x7a));
}

#[test]
fn three_and_five_levels_have_their_own_limits() {
    let machine = Machine::full();
    machine.second_tables(SECOND, 3);
    let [low, rest @ ..] = second_stage(2, SECOND);
    let entry = |aw: u64| {
        let mut words = [low & !(7 << 2) | aw << 2, 0, 0, 0, 0, 0, 0, 0];
        words[1..].copy_from_slice(&rest);
        words
    };
    machine.pasid(0, entry(1));
    machine.put(Machine::slot(SECOND, 3, 1), &[0x9003]);
    assert_eq!(machine.read(0x1000), Outcome::Done(0x9000));
    assert_eq!(machine.read(1 << 39), Outcome::Fault(0x83));
    let machine = Machine::full();
    machine.second_tables(SECOND, 5);
    machine.pasid(0, entry(3));
    machine.put(Machine::slot(SECOND, 5, 1), &[0x9003]);
    assert_eq!(machine.read(0x1000), Outcome::Done(0x9000));
    assert_eq!(machine.read(1 << 57), Outcome::Fault(0x83));
    assert_eq!(machine.read(1 << 56), Outcome::Fault(0x79));
}

#[test]
fn the_first_stage_checks_user_write_and_execute() {
    let machine = with_first();
    machine.put(FIRST5, &[0x9067, 0xa065, 0xb063, 0xc067 | 1 << 63]);
    assert_eq!(machine.dma(first(0x5008), Mode::Fresh), Outcome::Done(0x9008));
    assert_eq!(machine.dma(first(0x6000).with_access(Access::Write), Mode::Fresh), Outcome::Fault(0x85));
    assert_eq!(machine.dma(first(0x7000), Mode::Fresh), Outcome::Fault(0x81));
    // XD is reserved while NXE is 0.
    assert_eq!(machine.dma(first(0x8000), Mode::Fresh), Outcome::Fault(0x72));
    assert_eq!(machine.dma(first(0x9000), Mode::Fresh), Outcome::Fault(0x71));
    assert_eq!(machine.dma(first(1 << 47), Mode::Fresh), Outcome::Fault(0x80));
    assert_eq!(machine.dma(first(0xffff_8000_0000_0000), Mode::Fresh), Outcome::Fault(0x71));
    // Requests that the entry does not allow.
    assert_eq!(machine.dma(first(0x5000).privileged(), Mode::Fresh), Outcome::Fault(0x5d));
    assert_eq!(machine.dma(first(0x5000).with_access(Access::Execute), Mode::Fresh), Outcome::Fault(0x5c));
    // SRE, ERE, WPE, NXE.
    let mut entry = first_stage(3, FIRST);
    entry[2] |= 0x33;
    machine.pasid(9, entry);
    assert_eq!(machine.dma(first(0x7000).privileged(), Mode::Fresh), Outcome::Done(0xb000));
    let write = first(0x6000).privileged().with_access(Access::Write);
    assert_eq!(machine.dma(write, Mode::Fresh), Outcome::Fault(0x85));
    assert_eq!(machine.dma(first(0x8000), Mode::Fresh), Outcome::Done(0xc000));
    assert_eq!(machine.dma(first(0x8000).with_access(Access::Execute), Mode::Fresh), Outcome::Fault(0x82));
    assert_eq!(machine.dma(first(0x5000).with_access(Access::Execute), Mode::Fresh), Outcome::Done(0x9000));
    // Without WPE a privileged write passes a read-only page.
    entry[2] &= !(1 << 4);
    machine.pasid(9, entry);
    assert!(machine.dma(write, Mode::Fresh) == Outcome::Done(0xa000));
    machine.clean();
}

#[test]
fn five_first_stage_levels_widen_the_address() {
    let machine = Machine::full();
    machine.first_tables(FIRST, 5);
    let mut entry = first_stage(2, FIRST);
    entry[2] |= 1 << 2;
    machine.pasid(9, entry);
    machine.put(Machine::slot(FIRST, 5, 5), &[0x9067]);
    assert_eq!(machine.dma(first(0x5000), Mode::Fresh), Outcome::Done(0x9000));
    assert_eq!(machine.dma(first(1 << 47), Mode::Fresh), Outcome::Fault(0x71));
    assert_eq!(machine.dma(first(1 << 56), Mode::Fresh), Outcome::Fault(0x80));
}

#[test]
fn accessed_and_dirty_flags_are_set_on_the_way() {
    let machine = with_first();
    machine.put(FIRST, &[(FIRST + 0x1000) | 7]);
    machine.put(FIRST5, &[0x9007]);
    assert_eq!(machine.dma(first(0x5000), Mode::Fresh), Outcome::Done(0x9000));
    assert_eq!((machine.ram.load(FIRST) & 0x60, machine.ram.load(FIRST5) & 0x60), (0x20, 0x20));
    let write = first(0x5000).with_access(Access::Write);
    assert_eq!(machine.dma(write, Mode::Hostile), Outcome::Done(0x9000));
    assert_eq!((machine.ram.load(FIRST) & 0x60, machine.ram.load(FIRST5) & 0x60), (0x20, 0x60));
    // The oracle changes nothing.
    machine.put(FIRST5, &[0x9007]);
    let _ = machine.reach(write);
    assert_eq!(machine.ram.load(FIRST5), 0x9007);
    // A walk that is not coherent cannot set them.
    machine.pasid(9, [first_stage(2, FIRST)[0], 2, FIRST, 0, 0, 0, 0, 0]);
    assert_eq!(machine.dma(first(0x5000), Mode::Fresh), Outcome::Fault(0x90));
    machine.put(FIRST5, &[0x9027]);
    assert_eq!(machine.dma(first(0x5000), Mode::Fresh), Outcome::Done(0x9000));
    assert_eq!(machine.dma(write, Mode::Fresh), Outcome::Fault(0x90));
}

#[test]
fn a_write_that_is_refused_sets_no_dirty_flag() {
    // Read-only, accessed, not dirty.
    let machine = with_first();
    machine.put(FIRST5, &[0x9025]);
    let write = first(0x5000).with_access(Access::Write);
    assert_eq!(machine.dma(write, Mode::Fresh), Outcome::Fault(0x85));
    assert_eq!(machine.ram.load(FIRST5), 0x9025);
    // Where walks are not coherent, a flag that hardware had to set would be another fault.
    let machine = Machine::new(Config::full().without(Feature::PageWalkCoherent));
    machine.first_tables(FIRST, 4);
    let mut entry = first_stage(2, FIRST);
    entry[1] &= !(1 << 23);
    machine.pasid(0, entry);
    machine.put(FIRST5, &[0x9025]);
    assert_eq!(machine.write(0x5000), Outcome::Fault(0x85));
    machine.put(FIRST5, &[0x9027]);
    assert_eq!(machine.write(0x5000), Outcome::Fault(0x90));
}

#[test]
fn second_stage_flags_are_set_only_where_asked_for() {
    let machine = with_second();
    machine.put(SLOT5, &[0x9003]);
    assert_eq!(machine.write(0x5000), Outcome::Done(0x9000));
    assert_eq!(machine.ram.load(SLOT5), 0x9003);
    let mut entry = second_stage(3, SECOND);
    entry[0] |= 1 << 9;
    machine.pasid(0, entry);
    assert_eq!(machine.read(0x5000), Outcome::Done(0x9000));
    assert_eq!(machine.ram.load(SLOT5), 0x9103);
    assert_eq!(machine.write(0x5000), Outcome::Done(0x9000));
    assert_eq!(machine.ram.load(SLOT5), 0x9303);
    assert_eq!(machine.ram.load(SECOND) & 0x300, 0x100);
}

#[test]
fn nesting_translates_tables_and_output_through_the_second_stage() {
    let machine = Machine::full();
    machine.second_tables(SECOND, 4);
    // Guest pages 0x30..0x34 hold the first stage, guest page 0x9 is host page 0x70.
    for page in 0..4 {
        machine.put(Machine::slot(SECOND, 4, 0x30 + page), &[(FIRST + page * 0x1000) | 3]);
    }
    machine.put(Machine::slot(SECOND, 4, 9), &[0x7_0003]);
    machine.first_tables(FIRST, 4);
    machine.put(FIRST5, &[0x9067, 0xa067, 1 << 50 | 0x67]);
    machine.pasid(9, nested(2, FIRST, SECOND));
    assert_eq!(machine.dma(first(0x5abc), Mode::Fresh), Outcome::Done(0x7_0abc));
    assert_eq!(machine.dma(first(0x6000), Mode::Fresh), Outcome::Fault(0x79));
    assert_eq!(machine.dma(first(0x7000), Mode::Fresh), Outcome::Fault(0x84));
    // A table that the second stage hides.
    machine.put(Machine::slot(SECOND, 4, 0x33), &[(FIRST + 0x3000) | 2]);
    machine.put(Machine::slot(SECOND, 4, 0x30), &[0]);
    let fresh = |machine: &Machine| machine.dma(first(0x5000), Mode::Fresh);
    assert_eq!(fresh(&machine), Outcome::Fault(0x79));
    machine.put(Machine::slot(SECOND, 4, 0x30), &[FIRST | 2]);
    assert_eq!(fresh(&machine), Outcome::Fault(0x75));
    machine.put(Machine::slot(SECOND, 4, 0x30), &[FIRST | 3]);
    assert_eq!(fresh(&machine), Outcome::Fault(0x76));
    // Accessed flags in a table that may only be read.
    machine.put(Machine::slot(SECOND, 4, 0x33), &[(FIRST + 0x3000) | 1]);
    machine.put(FIRST5, &[0x9007]);
    assert_eq!(fresh(&machine), Outcome::Fault(0x77));
    machine.pasid(9, nested(2, 1 << 60, SECOND));
    assert_eq!(fresh(&machine), Outcome::Fault(0x74));
    machine.clean();
}

#[test]
fn flags_of_a_guest_table_make_its_page_dirty() {
    let machine = Machine::full();
    machine.second_tables(SECOND, 4);
    for page in 0..4 {
        machine.put(Machine::slot(SECOND, 4, 0x30 + page), &[(FIRST + page * 0x1000) | 3]);
    }
    machine.put(Machine::slot(SECOND, 4, 9), &[0x7_0003]);
    machine.first_tables(FIRST, 4);
    machine.put(FIRST5, &[0x9007]);
    let mut entry = nested(2, FIRST, SECOND);
    entry[0] |= 1 << 9;
    machine.pasid(9, entry);
    assert_eq!(machine.dma(first(0x5000), Mode::Fresh), Outcome::Done(0x7_0000));
    let flags = |page| machine.ram.load(Machine::slot(SECOND, 4, page)) & 0x300;
    // Only the last table was written; the page itself was read.
    assert_eq!((flags(0x33), flags(0x32), flags(9)), (0x300, 0x100, 0x100));
    assert_eq!(machine.ram.load(FIRST5), 0x9027);
}

#[test]
fn every_structure_above_reports_its_own_faults() {
    let machine = Machine::full();
    let fault = |machine: &Machine| machine.read(0x5000);
    assert_eq!(fault(&machine), Outcome::Fault(0x59));
    for (word, reason) in [
        (0, 0x59),
        (1, 0x5b),
        (1 | 2 << 6 | 4 << 2, 0x5b),
        (1 | 2 << 6 | 2 << 2 | 1 << 10, 0x5a),
        (1 | 2 << 6 | 2 << 2 | 1 << 60, 0x5a),
    ] {
        machine.put(PASIDS, &[word]);
        assert_eq!(fault(&machine), Outcome::Fault(reason), "{word:#x}");
    }
    machine.put(DIRECTORY, &[PASIDS | 5]);
    assert_eq!(fault(&machine), Outcome::Fault(0x52));
    machine.put(DIRECTORY, &[0]);
    assert_eq!(fault(&machine), Outcome::Fault(0x51));
    machine.put(CONTEXT, &[DIRECTORY | 1 << 5 | 1]);
    assert_eq!(fault(&machine), Outcome::Fault(0x42));
    machine.put(CONTEXT, &[0]);
    assert_eq!(fault(&machine), Outcome::Fault(0x41));
    machine.put(ROOT, &[CONTEXTS | 3]);
    assert_eq!(fault(&machine), Outcome::Fault(0x3a));
    machine.put(ROOT, &[0]);
    assert_eq!(fault(&machine), Outcome::Fault(0x39));
}

#[test]
fn aborted_reads_report_which_structure_failed() {
    let machine = with_second();
    machine.put(SLOT5, &[0x9003]);
    let ladder = [(SECOND, 0x78), (PASIDS, 0x58), (DIRECTORY, 0x50), (CONTEXTS, 0x40), (ROOT, 0x38)];
    for (base, reason) in ladder {
        machine.ram.punch(base, base + 0x1000);
        assert_eq!(machine.read(0x5000), Outcome::Fault(reason));
    }
    let machine = with_first();
    machine.ram.punch(FIRST + 0x1000, FIRST + 0x2000);
    assert_eq!(machine.dma(first(0x5000), Mode::Fresh), Outcome::Fault(0x70));
    machine.ram.punch(FIRST, FIRST + 0x1000);
    assert_eq!(machine.dma(first(0x5000), Mode::Fresh), Outcome::Fault(0x73));
}

#[test]
fn context_entries_gate_pasids_ats_and_rid_pasid() {
    let machine = Machine::full();
    machine.pasid(0, pass_through(1));
    machine.pasid(9, pass_through(1));
    assert_eq!(machine.dma(first(0x5000), Mode::Fresh), Outcome::Done(0x5000));
    // PDTS=0 covers 2^13 PASIDs.
    let far = Request::read(DEVICE, 0x5000).with_pasid(1 << 13);
    assert_eq!(machine.dma(far, Mode::Fresh), Outcome::Fault(0x46));
    machine.put(CONTEXT, &[DIRECTORY | 1]);
    assert_eq!(machine.dma(first(0x5000), Mode::Fresh), Outcome::Fault(0x45));
    assert_eq!(machine.dma(translation_request(0x5000), Mode::Fresh), Outcome::Fault(0x44));
    let translated = Request::read(DEVICE, 0x5000).with_kind(AddressKind::Translated);
    assert_eq!(machine.dma(translated, Mode::Fresh), Outcome::Fault(0x44));
    // RID_PASID aims requests without a PASID.
    machine.put(PASIDS, &[0]);
    machine.put(CONTEXT + 8, &[9]);
    assert_eq!(machine.read(0x5000), Outcome::Done(0x5000));
    machine.put(CONTEXT + 8, &[1 << 14]);
    assert_eq!(machine.read(0x5000), Outcome::Fault(0x46));
    // That PASID is theirs alone.
    machine.put(CONTEXT, &[DIRECTORY | 1 << 3 | 1, 9]);
    assert_eq!(machine.read(0x5000), Outcome::Done(0x5000));
    let tagged = Request::read(DEVICE, 0x5000).with_pasid(9);
    assert_eq!(machine.dma(tagged, Mode::Fresh), Outcome::Fault(0x48));
}

#[test]
fn untagged_interrupt_writes_are_not_translated_and_nothing_may_translate_there() {
    let machine = with_second();
    assert_eq!(machine.write(0xfee0_1000), Outcome::Done(0xfee0_1000));
    assert_eq!(machine.read(0xfee0_1000), Outcome::Fault(0x87));
    machine.put(SLOT5, &[0xfee0_0003]);
    assert_eq!(machine.write(0x5000), Outcome::Fault(0x87));
    machine.pasid(9, pass_through(1));
    assert_eq!(machine.dma(first(0xfee0_1000), Mode::Fresh), Outcome::Fault(0x87));
}

#[test]
fn second_stage_entries_have_reserved_bits() {
    let machine = Machine::full();
    machine.second_tables(SECOND, 4);
    machine.pasid(0, second_stage(2, SECOND));
    // SNP in a leaf, and all that is ignored.
    machine.put(SLOT5, &[1 << 63 | 0x3ff << 52 | 1 << 11 | 3]);
    assert_eq!(machine.read(0x5000), Outcome::Done(0));
    // What was TM, in a leaf and in an entry for a table; SNP in one for a table.
    machine.put(SLOT5, &[1 << 62 | 3]);
    assert!(machine.sync(&[flush_domain(2)]));
    assert_eq!(machine.read(0x5000), Outcome::Fault(0x7a));
    machine.put(SLOT5, &[3]);
    for bit in [62, 11] {
        machine.put(SECOND + 0x1000, &[1 << bit | (SECOND + 0x2000) | 3]);
        assert_eq!(machine.read(0x5000), Outcome::Fault(0x7a), "bit {bit}");
    }
}

#[test]
fn addresses_beyond_the_host_are_reserved() {
    let mut config = Config::full();
    config.host_width = 40;
    let machine = Machine::new(config);
    machine.second_tables(SECOND, 4);
    machine.pasid(0, second_stage(2, SECOND));
    machine.put(SLOT5, &[1 << 40 | 3]);
    assert_eq!(machine.read(0x5000), Outcome::Fault(0x7a));
    machine.pasid(9, pass_through(1));
    assert_eq!(machine.dma(first(1 << 40), Mode::Fresh), Outcome::Fault(0x83));
    machine.first_tables(FIRST, 4);
    machine.put(FIRST5, &[1 << 40 | 0x67]);
    machine.pasid(9, first_stage(2, FIRST));
    assert_eq!(machine.dma(first(0x5000), Mode::Fresh), Outcome::Fault(0x72));
}

#[test]
fn a_unit_refuses_types_that_it_does_not_have() {
    for (feature, entry) in [
        (Feature::FirstStage, first_stage(1, FIRST)),
        (Feature::SecondStage, second_stage(1, SECOND)),
        (Feature::Nested, nested(1, FIRST, SECOND)),
        (Feature::PassThrough, pass_through(1)),
    ] {
        let machine = Machine::new(Config::full().without(feature));
        machine.pasid(0, entry);
        assert_eq!(machine.read(0x5000), Outcome::Fault(0x5b), "{feature:?}");
    }
    let machine = Machine::new(Config::full().without(Feature::FirstStageGib));
    machine.first_tables(FIRST, 4);
    machine.put(FIRST + 0x1000 + 8, &[0x8000_0000 | 0xe7]);
    machine.pasid(9, first_stage(2, FIRST));
    assert_eq!(machine.dma(first(1 << 30), Mode::Fresh), Outcome::Fault(0x72));
    machine.put(FIRST + 0x2000 + 8, &[0x8000_0000 | 0xe7]);
    assert_eq!(machine.dma(first(0x20_0000), Mode::Fresh), Outcome::Done(0x8000_0000));
}

#[test]
fn ats_grants_what_the_tables_grant() {
    let machine = with_second();
    machine.put(SLOT5, &[0x9003, 0xa001]);
    let granted = |outcome| match outcome {
        Outcome::Granted(grant) => (grant.address, grant.size, grant.read, grant.write),
        other => panic!("{other:?}"),
    };
    assert_eq!(granted(machine.dma(translation_request(0x5000), Mode::Fresh)), (0x9000, 4096, true, true));
    assert_eq!(granted(machine.dma(translation_request(0x6000), Mode::Fresh)), (0xa000, 4096, true, false));
    assert_eq!(machine.dma(translation_request(0x8000), Mode::Fresh), Outcome::NotGranted);
    let translated = Request::read(DEVICE, 0x9000).with_kind(AddressKind::Translated);
    assert_eq!(machine.dma(translated, Mode::Fresh), Outcome::Done(0x9000));
    assert_eq!(machine.unit.read32(FSTS), 0);
}

#[test]
fn the_least_unit_translates_39_bits() {
    let machine = Machine::new(Config::least());
    machine.second_tables(SECOND, 3);
    machine.put(PASIDS + 8, &[2]);
    machine.put(PASIDS, &[SECOND | 2 << 6 | 1 << 2 | 1]);
    machine.put(Machine::slot(SECOND, 3, 5), &[0x9003]);
    assert_eq!(machine.read(0x5000), Outcome::Done(0x9000));
    machine.put(SECOND + 0x1000 + 8, &[0x4000_0083]);
    assert_eq!(machine.read(0x20_0000), Outcome::Fault(0x7a));
}
