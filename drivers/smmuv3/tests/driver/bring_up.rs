//! Bringing the unit up and down.

use super::*;
use fake::Pace;
use portcullis_hal::{Mapping, MsiMessage, PhysAddr, PhysRange};
use portcullis_iommu::FaultReason;
use portcullis_smmuv3::{Coherency, InitError, InterruptError, Interrupts};

#[test]
fn everything_is_aborted_from_the_first_write_on_until_it_is_attached() {
    let hal = HostHal::new();
    let fake = Fake::new(&hal);
    assert_eq!(fake.dma(8, 0x1000, false), Dma::Done(0x1000), "as firmware left it");
    let setup = Setup::new(hal.clone(), fake.clone(), options()).unwrap();
    assert_eq!(fake.dma(8, 0x1000, false), Dma::Aborted);
    let driver = setup.enable().unwrap();
    assert_eq!(fake.dma(8, 0x1000, false), Dma::Faulted(0x02));
    let mut reasons = Vec::new();
    driver.handle_interrupt(&mut |event| match event {
        UnitEvent::Fault(record) => reasons.push((record.endpoint, record.reason)),
        other => panic!("{other:?}"),
    });
    assert_eq!(reasons, [(EndpointId::new(8), FaultReason::Unattached)]);
}

#[test]
fn a_unit_that_firmware_left_on_is_taken_over_in_the_documented_order() {
    let hal = HostHal::new();
    let fake = Fake::new(&hal);
    {
        let mut state = fake.state();
        for (offset, value) in [(0x20, 0xd), (0x24, 0xd), (0x50, 5), (0x54, 5), (0x60, 0x5), (0x64, 0x4)] {
            state.set(offset, value);
        }
    }
    let setup = Setup::new(hal.clone(), fake.clone(), options()).unwrap();
    drop(setup.enable().unwrap());
    let state = fake.state();
    let order: Vec<usize> = state.writes.iter().map(|write| write.0).collect();
    let expected = [
        0x44, 0x50, 0x20, // abort; interrupts off; everything off
        0x28, 0x2c, 0x80, 0x88, // attributes, stream table
        0x90, 0x98, 0x9c, 0xa0, 0x1_00a8, 0x1_00ac, // queues
        0x64,     // the error of an earlier life is acknowledged
        0x20, 0x98, 0x98, // command queue on; forget configuration, then TLBs
        0x20, 0x20, // event queue on; translation on
        0x20, // dropped: all off
    ];
    assert_eq!(order, expected);
    let values: Vec<u64> = state.writes.iter().filter(|write| write.0 == 0x20).map(|write| write.1).collect();
    assert_eq!(values, [0, 0x8, 0xc, 0xd, 0]);
    assert_eq!(state.writes[0].1, 1 << 31 | 1 << 20 | 0x1000);
    assert_eq!((state.get(0x28), state.get(0x2c)), (0xd75, 0b010));
    assert_eq!(state.commands, [[0x04, 31], [0x30, 0]]);
}

#[test]
fn a_unit_that_does_not_obey_ends_in_an_error_that_names_the_register_and_leaks_nothing() {
    let hal = HostHal::new();
    let fake = Fake::new(&hal);
    // Something has to change for an acknowledgement to be missed.
    fake.state().set(0x24, 0x1);
    fake.state().deaf = true;
    match Setup::new(hal.clone(), fake.clone(), hasty()) {
        Err(InitError::Timeout(timeout)) => assert_eq!(timeout.register, "SMMU_CR0ACK"),
        other => panic!("{:?}", other.err()),
    }
    assert_eq!(hal.frames_in_use(), 0);
    assert_eq!(fake.state().get(0x44), 0x10_1000, "denied all the same");
}

#[test]
fn a_command_queue_that_does_not_move_fails_the_set_up() {
    let hal = HostHal::new();
    let fake = Fake::new(&hal);
    fake.state().pace = Pace::Never;
    match Setup::new(hal.clone(), fake.clone(), hasty()) {
        Err(InitError::Commands(SyncError::Timeout(timeout))) => {
            assert_eq!((timeout.register, timeout.expected, timeout.last), ("SMMU_CMDQ_CONS", 2, 0));
        }
        other => panic!("{:?}", other.err()),
    }
    assert_eq!(hal.frames_in_use(), 0, "the unit was turned off, so its queues could be freed");
}

#[test]
fn reserved_regions_work_before_and_after_translation_goes_on_until_the_device_is_attached() {
    let hal = HostHal::new();
    let fake = Fake::new(&hal);
    let mut setup = Setup::new(hal.clone(), fake.clone(), options()).unwrap();
    let memory = PhysRange::new(PhysAddr::new(0x8000_0000), 0x20_0000).unwrap();
    let mapping = Mapping { iova: Iova::new(0x8000_0000), memory, attributes: Attributes::READ_WRITE };
    setup.reserve_direct(&endpoint(3), &[fake::fixed(mapping)]).unwrap();
    let driver = setup.enable().unwrap();
    assert_eq!(fake.dma(3, 0x8000_1234, true), Dma::Done(0x8000_1234));
    assert_eq!(fake.dma(3, 0x8020_0000, true), Dma::Faulted(0x10));
    assert_eq!(fake.dma(4, 0x8000_1234, true), Dma::Faulted(0x04), "an entry of the same second-level table");
    driver.detach(&endpoint(3)).unwrap();
    assert_eq!(fake.dma(3, 0x8000_1234, true), Dma::Faulted(0x04));
}

#[test]
fn dropping_the_last_handle_turns_the_unit_off_and_frees_everything() {
    let bench = Bench::new();
    let domain = bench.paging(Stage::Stage1);
    bench.driver.attach(&endpoint(1), &domain).unwrap();
    let Bench { hal, fake, driver } = bench;
    let clone = driver.clone();
    drop(driver);
    assert_eq!(fake.dma(1, 0, false), Dma::Faulted(0x10), "still on");
    drop(clone);
    assert_eq!(fake.dma(1, 0, false), Dma::Aborted);
    // The domain outlives the unit; there is nothing to invalidate any more.
    invalidate(&domain, 0, 0x1000).unwrap();
    drop(domain);
    assert_eq!(hal.frames_in_use(), 0);
}

#[test]
fn a_unit_that_cannot_be_stopped_keeps_its_memory() {
    let bench = Bench::with(hasty(), |_| {});
    let domain = bench.paging(Stage::Stage1);
    bench.driver.attach(&endpoint(1), &domain).unwrap();
    let Bench { hal, fake, driver } = bench;
    let in_use = hal.frames_in_use();
    assert_eq!(fake.dma(1, 0, false), Dma::Faulted(0x10));
    fake.state().deaf = true;
    drop(driver);
    drop(domain);
    assert_eq!(hal.frames_in_use(), in_use);
    assert_eq!(fake.dma(1, 0, false), Dma::Faulted(0x10), "the entry it cached");
    fake.state().forget_all();
    assert_eq!(fake.dma(1, 0, false), Dma::Faulted(0x04), "the entry in memory is invalid");
}

#[test]
fn a_unit_without_attachments_that_cannot_be_stopped_keeps_its_queues() {
    let Bench { hal, fake, driver } = Bench::with(hasty(), |_| {});
    let in_use = hal.frames_in_use();
    fake.state().deaf = true;
    drop(driver);
    assert_eq!(hal.frames_in_use(), in_use);
}

#[test]
fn small_units_get_a_linear_table_and_large_ones_two_levels() {
    let config = |ids: [u32; 4], options| {
        let bench = Bench::with(options, |fake| fake.state().ids = ids);
        let domain = bench.paging(Stage::Stage1);
        bench.driver.attach(&endpoint(5), &domain).unwrap();
        let memory = bench.map(&domain, 0x1000);
        assert_eq!(bench.read(5, 0x1000), done(&memory));
        assert_eq!(bench.driver.attach(&endpoint(1 << 25), &domain).err().map(|e| e.to_string()), {
            let error = "endpoint 0x2000000 is beyond what the unit can address";
            Some(error.into())
        });
        drop(memory.unmap().unwrap());
        bench.fake.state().get(0x88)
    };
    let [idr0, _, idr3, idr5] = fake::IDS;
    let ids = |idr0, sidsize: u32| [idr0, 0x0273_0000 | sidsize, idr3, idr5];
    assert_eq!(config(ids(idr0, 16), options()), 1 << 16 | 8 << 6 | 16);
    assert_eq!(config(ids(idr0, 32), options()), 1 << 16 | 8 << 6 | 25);
    assert_eq!(config(ids(idr0, 9), options()), 1 << 16 | 8 << 6 | 9);
    assert_eq!(config(ids(idr0, 8), options()), 8);
    assert_eq!(config(ids(idr0 & !(3 << 27), 32), options()), 16);
    let narrow = Options { stream_bits: 7, ..options() };
    assert_eq!(config(ids(idr0, 16), narrow), 7);
}

#[test]
fn a_unit_that_does_not_snoop_gets_every_written_line_cleaned() {
    let cleaned = |coherency| {
        let options = Options { coherency, ..options() };
        let bench = Bench::with(options, |_| {});
        let domain = bench.paging(Stage::Stage1);
        let lines = || bench.hal.cleaned_lines();
        let start = lines();
        bench.driver.attach(&endpoint(1), &domain).unwrap();
        let attached = lines();
        let memory = bench.map(&domain, 0x1000);
        let mapped = lines();
        bench.driver.detach(&endpoint(1)).unwrap();
        let detached = lines();
        drop(memory.unmap().unwrap());
        (attached - start, mapped - attached, detached - mapped)
    };
    assert_eq!(cleaned(Coherency::Detect), (0, 0, 0));
    let (attach, map, detach) = cleaned(Coherency::NotSnooped);
    // The second-level table, its descriptor, a page of context descriptors, one of which is set; the entry in two steps,
    // each with two commands.
    assert_eq!(attach, 256 + 1 + 64 + 1 + 2 * (1 + 2));
    // At least three tables, the links to them and the leaf.
    assert!(map > 3 * 64 + 3, "{map}");
    // The entry, switched off, forgotten and then zeroed; the tag; and the context descriptor.
    assert_eq!(detach, (1 + 2) + 1 + 2 + 1);
}

#[test]
fn interrupts_are_enabled_last_and_as_messages_only_where_there_are_any() {
    let message = |address, data| MsiMessage { address: PhysAddr::new(address), data };
    let msi = Interrupts::Msi { events: message(0x808_0040, 7), errors: message(0x808_0040, 8) };
    let bench = Bench::new();
    assert_eq!(bench.fake.state().get(0x50), 0);
    bench.driver.enable_interrupts(Interrupts::Wired).unwrap();
    assert_eq!(bench.fake.state().get(0x50), 0b101);
    assert_eq!(bench.driver.enable_interrupts(msi), Err(InterruptError::NoMsi));

    let bench = Bench::with(options(), |fake| fake.state().ids[0] |= 1 << 13);
    bench.fake.state().writes.clear();
    bench.driver.enable_interrupts(msi).unwrap();
    let expected = [
        (0x50, 0),
        (0xb0, 0x808_0040),
        (0xb8, 7),
        (0xbc, 1),
        (0x68, 0x808_0040),
        (0x70, 8),
        (0x74, 1),
        (0x50, 0b101),
    ];
    assert_eq!(bench.fake.state().writes, expected);
}

#[test]
fn registers_and_entries_read_as_lines() {
    let bench = Bench::new();
    let domain = bench.paging(Stage::Stage1);
    bench.driver.attach(&endpoint(0x18), &domain).unwrap();
    let mut text = String::new();
    bench.driver.describe_entry(EndpointId::new(0x18), &mut text).unwrap();
    for part in ["stream: 0x18\n", "config: STAGE_1", "domain: paging, stage 1", "cd.0: 0x", "ips: BITS_44"] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert!(text.lines().all(|line| line.contains(": ")), "{text}");
    let mut text = String::new();
    bench.driver.describe_entry(EndpointId::new(0x1000), &mut text).unwrap();
    assert_eq!(text, "stream: 0x1000\nste: invalid (no second-level table)\n");
    let mut text = String::new();
    bench.driver.describe_registers(&mut text).unwrap();
    for part in ["SMMU_IDR0: 0x0d44101b Idr0 { s2p: true", "SMMU_CR0ACK: 0x0000000d", "driver: Running"] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert!(text.lines().all(|line| line.contains(": ")), "{text}");
}

#[test]
fn tables_and_queues_that_the_unit_cannot_address_fail_the_set_up_and_leak_nothing() {
    let hal = HostHal::new();
    let fake = Fake::new(&hal);
    // 32 bits of address, and all memory above.
    fake.state().ids[3] &= !7;
    match Setup::new(hal.clone(), fake.clone(), options()) {
        Err(InitError::OutOfReach(error)) => assert_eq!((error.base.get() >> 32, error.output_bits), (1, 32)),
        other => panic!("{:?}", other.err()),
    }
    assert_eq!(hal.frames_in_use(), 0);
}
