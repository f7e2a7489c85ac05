//! Entries of several quanta while software changes them.

use std::sync::Arc;

use portcullis_model::core::{Outcome, Request};
use portcullis_model::vtd::{Config, Tearing};

use crate::machine::*;

const NEXT: u64 = 0x4_8000;

/// PASID entry 0 maps page 5 to 0x9000 through domain 2; `NEXT` maps it to 0xa000. Hardware fetches at every store.
fn machine(config: Config) -> Machine {
    let machine = Machine::new(config);
    for (table, page) in [(SECOND, 0x9003), (NEXT, 0xa003)] {
        machine.second_tables(table, 4);
        machine.put(Machine::slot(table, 4, 5), &[page]);
    }
    machine.pasid(0, second_stage(2, SECOND));
    machine.unit.watch(Request::read(DEVICE, 0x5000));
    let unit = Arc::downgrade(&machine.unit);
    machine.ram.set_hook(move |_, _| {
        if let Some(unit) = unit.upgrade() {
            unit.observe();
        }
    });
    machine
}

#[test]
fn a_second_stage_swap_word_by_word_can_use_the_new_table_under_the_old_domain() {
    let machine = machine(Config::full());
    // The pointer first, then the domain id, as two 64-bit stores: within one quantum, but not one store.
    let new = second_stage(3, NEXT);
    machine.ram.store(PASIDS, new[0]);
    machine.ram.store(PASIDS + 8, new[1]);
    assert!(machine.sync(&[forget_pasid(2, 0), flush_domain(2)]));
    assert_eq!(machine.reads(0x5000), [Outcome::Done(0xa000)]);
    // What the window left behind shows when the domain id is used again.
    let machine = self::machine(Config::full());
    machine.ram.store(PASIDS, new[0]);
    machine.ram.store(PASIDS + 8, new[1]);
    assert!(machine.sync(&[forget_pasid(2, 0)]));
    machine.pasid(9, second_stage(2, SECOND));
    let other = machine.reach(Request::read(DEVICE, 0x5000).with_pasid(9));
    assert_eq!(other, [Outcome::Done(0x9000), Outcome::Done(0xa000)]);
}

#[test]
fn a_second_stage_swap_in_one_quantum_is_hitless() {
    let machine = machine(Config::full());
    let new = second_stage(3, NEXT);
    // One 128-bit store: hardware looks before and after it.
    machine.ram.set_hook(|_, _| ());
    machine.ram.store(PASIDS, new[0]);
    machine.ram.store(PASIDS + 8, new[1]);
    machine.unit.observe();
    assert_eq!(machine.reads(0x5000), [Outcome::Done(0x9000), Outcome::Done(0xa000)]);
    assert!(machine.sync(&[forget_pasid(2, 0)]));
    assert_eq!(machine.reads(0x5000), [Outcome::Done(0xa000)]);
    // The old domain still has its own translations and no others.
    machine.pasid(9, second_stage(2, SECOND));
    let other = machine.reach(Request::read(DEVICE, 0x5000).with_pasid(9));
    assert_eq!(other, [Outcome::Done(0x9000)]);
    machine.clean();
}

#[test]
fn a_context_entry_tears_between_its_quanta_too() {
    let machine = machine(Config::full());
    // The second quantum is reserved: a set bit in it makes the entry faulty, with the first one old or new.
    machine.ram.store(CONTEXT + 16, 1);
    machine.ram.store(CONTEXT, (DIRECTORY + 0x8000) | 1);
    machine.ram.store(CONTEXT + 16, 0);
    let found = machine.reads(0x5000);
    for outcome in [Outcome::Done(0x9000), Outcome::Fault(0x42), Outcome::Fault(0x51)] {
        assert!(found.contains(&outcome), "{outcome:?} in {found:?}");
    }
    assert!(machine.sync(&[forget_context(DEVICE), [0x37, 0]]));
    assert_eq!(machine.reads(0x5000), [Outcome::Fault(0x51)]);
    machine.clean();
}

#[test]
fn publishing_the_present_bit_first_shows_a_half_made_entry() {
    let machine = machine(Config::full());
    let request = Request::read(DEVICE, 0x5000).with_pasid(9);
    machine.unit.watch(request);
    let entry = first_stage(3, FIRST);
    machine.ram.store(PASIDS + 9 * 64, entry[0]);
    machine.ram.store(PASIDS + 9 * 64 + 8, entry[1]);
    machine.ram.store(PASIDS + 9 * 64 + 16, entry[2]);
    machine.first_tables(FIRST, 4);
    machine.put(Machine::slot(FIRST, 4, 5), &[0x9067]);
    // Domain 0 with a table at 0, domain 3 with a table at 0, and what was meant.
    assert!(machine.reach(request).len() > 1);
}

#[test]
fn publishing_the_present_bit_last_shows_only_the_whole_entry() {
    let machine = machine(Config::full());
    let request = Request::read(DEVICE, 0x5000).with_pasid(9);
    machine.unit.watch(request);
    machine.first_tables(FIRST, 4);
    machine.put(Machine::slot(FIRST, 4, 5), &[0x9067]);
    machine.pasid(9, first_stage(3, FIRST));
    assert_eq!(machine.reach(request), [Outcome::Done(0x9000)]);
}

#[test]
fn the_strict_tearing_wants_a_sync_between_fields_and_present_bit() {
    let config = Config { tearing: Tearing::Unrestricted, ..Config::full() };
    let request = Request::read(DEVICE, 0x5000).with_pasid(9);
    let prepare = || {
        let machine = machine(config);
        machine.unit.watch(request);
        machine.first_tables(FIRST, 4);
        machine.put(Machine::slot(FIRST, 4, 5), &[0x9067]);
        machine.put(PASIDS + 9 * 64 + 8, &first_stage(3, FIRST)[1..]);
        machine
    };
    let machine = prepare();
    machine.put(PASIDS + 9 * 64, &[first_stage(3, FIRST)[0]]);
    assert!(machine.reach(request).len() > 1);
    let machine = prepare();
    assert!(machine.sync(&[[0x37, 0]]));
    machine.put(PASIDS + 9 * 64, &[first_stage(3, FIRST)[0]]);
    assert_eq!(machine.reach(request), [Outcome::Done(0x9000)]);
}

#[test]
fn zeroing_an_entry_before_it_is_forgotten_tears_it() {
    let machine = machine(Config::full());
    machine.first_tables(FIRST, 4);
    machine.put(Machine::slot(FIRST, 4, 5), &[0x9067]);
    let request = Request::read(DEVICE, 0x5000).with_pasid(9);
    machine.pasid(9, first_stage(3, FIRST));
    machine.unit.watch(request);
    let at = PASIDS + 9 * 64;
    for word in (0..64).step_by(8) {
        machine.ram.store(at + word, 0);
    }
    // The pointer is in the second quantum: with it zeroed, hardware walks a table at address 0.
    machine.ram.store(0, 0x7_1027);
    assert!(machine.sync(&[forget_pasid(3, 9), flush_pasid(3, 9)]));
    assert_eq!(machine.reach(request), [Outcome::Fault(0x59)]);
    machine.clean();
    // Seen before the invalidation: the old entry, the torn one, the absent one.
    machine.put(at + 8, &first_stage(3, FIRST)[1..]);
    machine.put(at, &[first_stage(3, FIRST)[0]]);
    machine.ram.store(0, 0);
    machine.ram.store(at, 0);
    assert_eq!(machine.reach(request), [Outcome::Done(0x9000), Outcome::Fault(0x59)]);
    machine.ram.store(at + 16, 0);
    let torn = machine.reach(request);
    assert_eq!(torn, [Outcome::Done(0x9000), Outcome::Fault(0x59), Outcome::Fault(0x71)]);
}

#[test]
fn a_first_stage_swap_across_quanta_is_seen_half_done_and_one_within_a_domain_is_not() {
    let tables = |machine: &Machine| {
        for (table, page) in [(FIRST, 0x9067), (0x3_8000, 0xa067)] {
            machine.first_tables(table, 4);
            machine.put(Machine::slot(table, 4, 5), &[page]);
        }
        machine.pasid(9, first_stage(2, FIRST));
    };
    let request = Request::read(DEVICE, 0x5000).with_pasid(9);
    let at = PASIDS + 9 * 64;
    // Pointer and domain id live in different quanta: the new table is used under the old domain id.
    let machine = machine(Config::full());
    tables(&machine);
    machine.unit.watch(request);
    machine.ram.store(at + 16, 0x3_8000);
    machine.ram.store(at + 8, first_stage(3, 0)[1]);
    assert!(machine.sync(&[forget_pasid(2, 9), flush_pasid(2, 9)]));
    // Torn the other way round, new domain id with old pointer, left old translations under the new domain id.
    assert_eq!(machine.reach(request), [Outcome::Done(0x9000), Outcome::Done(0xa000)]);
    // Under one domain id a single store swaps the table.
    let machine = self::machine(Config::full());
    tables(&machine);
    machine.unit.watch(request);
    machine.ram.store(at + 16, 0x3_8000);
    assert_eq!(machine.reach(request), [Outcome::Done(0x9000), Outcome::Done(0xa000)]);
    assert!(machine.sync(&[forget_pasid(2, 9), flush_pasid(2, 9)]));
    assert_eq!(machine.reach(request), [Outcome::Done(0xa000)]);
    machine.clean();
}

#[test]
fn transitions_are_counted() {
    let machine = machine(Config::full());
    machine.put(PASIDS, &[0]);
    machine.pasid(0, pass_through(1));
    machine.unit.observe();
    let table = machine.unit.coverage().table();
    for (from, to) in [("second stage", "absent"), ("absent", "pass-through")] {
        let count = table.iter().find(|row| (row.0, row.1, row.2) == ("pasid", from, to)).map(|row| row.3);
        assert!(count.is_some_and(|count| count > 0), "{from} -> {to}");
    }
}
