//! Running out of memory, at every allocation of every operation.

use super::*;
use portcullis_hal::{MapError, OutOfMemory, PhysAddr};
use portcullis_iommu::{AttachError, DomainError, Missing};
use portcullis_smmuv3::InitError;

/// Runs `operation` with its n-th frame allocation failing, for all n until none does, and checks after each failure
/// that it said so and that as many frames are in use as before. Returns the number of allocations.
fn fail_nth<T, E: core::fmt::Debug + PartialEq>(
    hal: &HostHal,
    expected: E,
    mut operation: impl FnMut() -> Result<T, E>,
) -> usize {
    for n in 0.. {
        let in_use = hal.frames_in_use();
        hal.fail_after(n);
        let before = hal.allocations();
        let result = operation();
        hal.fail_never();
        match result {
            Ok(_) => {
                assert_eq!(hal.allocations() - before, n);
                return n;
            }
            Err(error) => assert_eq!(error, expected, "allocation {n}"),
        }
        assert_eq!(hal.frames_in_use(), in_use, "allocation {n}");
    }
    unreachable!()
}

#[test]
fn start_up_needs_three_allocations_and_survives_the_failure_of_each() {
    let hal = HostHal::new();
    let fake = Fake::new(&hal);
    // Command queue, event queue, stream table.
    let points = fail_nth(&hal, InitError::OutOfMemory(OutOfMemory), || {
        let setup = Setup::new(hal.clone(), fake.clone(), options())?;
        assert_eq!(fake.dma(1, 0, false), Dma::Aborted);
        setup.enable()
    });
    assert_eq!(points, 3);
    assert_eq!(fake.dma(1, 0, false), Dma::Aborted, "dropped, and denying still");
    assert_eq!(hal.frames_in_use(), 0);
}

#[test]
fn a_domain_needs_its_root_only() {
    let bench = Bench::new();
    for (spec, expected) in [
        (DomainSpec::Blocked, 0),
        (DomainSpec::Identity(portcullis_hal::host::IDENTITY), 0),
        (DomainSpec::Paging(PagingSpec::default()), 1),
    ] {
        let error = DomainError::OutOfMemory(OutOfMemory);
        assert_eq!(fail_nth(&bench.hal, error, || bench.driver.new_domain(&spec)), expected);
    }
}

#[test]
fn attaching_survives_every_failure_with_the_old_domain_in_force() {
    for stage in [Stage::Stage1, Stage::Stage2] {
        let bench = Bench::new();
        let device = [EndpointId::new(0x100), EndpointId::new(0x200), EndpointId::new(0x300)];
        let old = bench.paging(stage);
        bench.driver.attach(&device[..1], &old).unwrap();
        let memory = bench.map(&old, 0x1000);
        let new = bench.paging(stage);
        let error = AttachError::OutOfMemory(OutOfMemory);
        let mut kept = bench.hal.frames_in_use();
        let mut points = 0;
        // Second-level tables that were made stay, so that frames in use may grow by these.
        loop {
            bench.hal.fail_after(0);
            let result = bench.driver.attach(&device, &new);
            bench.hal.fail_never();
            if result.is_ok() {
                break;
            }
            assert_eq!(result, Err(error));
            assert_eq!(bench.hal.frames_in_use(), kept);
            assert_eq!(bench.read(0x100, 0x1000), done(&memory));
            // Lets one more succeed for good.
            bench.hal.fail_after(1);
            let result = bench.driver.attach(&device, &new);
            bench.hal.fail_never();
            points += 1;
            kept = bench.hal.frames_in_use();
            if result.is_ok() {
                break;
            }
        }
        assert_eq!(points, 2, "two second-level tables; the page of the old descriptor has room for another");
        drop(memory.unmap().unwrap());
    }
}

#[test]
fn an_attach_without_memory_keeps_no_id() {
    // 8-bit ASIDs.
    let bench = Bench::with(options(), |fake| fake.state().ids[0] &= !(1 << 12));
    let domain = bench.paging(Stage::Stage1);
    // The stream has its place then, and there is no descriptor yet.
    bench.driver.attach(&endpoint(2), &bench.paging(Stage::Stage2)).unwrap();
    for _ in 0..300 {
        bench.hal.fail_after(0);
        let result = bench.driver.attach(&endpoint(1), &domain);
        bench.hal.fail_never();
        assert_eq!(result, Err(AttachError::OutOfMemory(OutOfMemory)));
    }
    bench.driver.attach(&endpoint(1), &domain).unwrap();
}

#[test]
fn mapping_is_all_or_nothing() {
    let bench = Bench::new();
    let domain = bench.paging(Stage::Stage1);
    bench.driver.attach(&endpoint(1), &domain).unwrap();
    let mut page = Some(bench.page());
    for n in 0.. {
        bench.hal.fail_after(n);
        let result = Mapped::map(&domain, Iova::new(0x1000), page.take().unwrap(), Attributes::READ_WRITE);
        bench.hal.fail_never();
        match result {
            Ok(memory) => {
                assert!(n <= 3);
                assert_eq!(bench.read(1, 0x1000), done(&memory));
                drop(memory.unmap().unwrap());
                break;
            }
            Err(refused) => {
                assert_eq!(refused.error, MapError::OutOfMemory(OutOfMemory));
                assert_eq!(bench.read(1, 0x1000), Dma::Faulted(0x10));
                page = Some(refused.memory);
            }
        }
    }
}

#[test]
fn detaching_blocking_and_unmapping_allocate_nothing() {
    for stage in [Stage::Stage1, Stage::Stage2] {
        let bench = Bench::new();
        let domain = bench.paging(stage);
        let blocked = bench.domain(DomainSpec::Blocked);
        bench.driver.attach(&endpoint(1), &domain).unwrap();
        bench.driver.attach(&endpoint(2), &domain).unwrap();
        let memory = bench.map(&domain, 0x1000);
        let before = bench.hal.allocations();
        bench.driver.attach(&endpoint(1), &blocked).unwrap();
        drop(memory.unmap().unwrap());
        bench.driver.detach(&endpoint(2)).unwrap();
        assert_eq!(bench.hal.allocations(), before);
    }
}

#[test]
fn everything_goes_back_in_the_end() {
    let bench = Bench::new();
    for round in 0..20 {
        let domains = [Stage::Stage1, Stage::Stage2].map(|stage| bench.paging(stage));
        for (stream, domain) in domains.iter().enumerate() {
            bench.driver.attach(&endpoint(stream as u32 + round), domain).unwrap();
            let memory = bench.map(domain, u64::from(round) << 30);
            drop(memory.unmap().unwrap());
        }
        for stream in 0..2 {
            bench.driver.detach(&endpoint(stream + round)).unwrap();
        }
    }
    let Bench { hal, driver, .. } = bench;
    drop(driver);
    assert_eq!(hal.frames_in_use(), 0);
}

/// Frames below the reach of a unit run out in the middle: what is allocated beyond is refused, whatever it is for.
#[test]
fn frames_beyond_the_reach_of_the_unit_are_refused_by_name_and_given_back() {
    // 36 bits of address.
    let bench = Bench::with(options(), |fake| fake.state().ids[3] ^= 4 ^ 1);
    let domain = bench.paging(Stage::Stage1);
    bench.hal.skip_to(PhysAddr::new(1 << 36));
    let in_use = bench.hal.frames_in_use();
    let beyond = AttachError::Incompatible { missing: Missing::OUTPUT_WIDTH };
    // The second-level table of streams.
    assert_eq!(bench.driver.attach(&endpoint(0x700), &domain), Err(beyond));
    // A domain's root.
    assert!(bench.driver.new_domain(&DomainSpec::Paging(PagingSpec::default())).is_err());
    assert_eq!(bench.hal.frames_in_use(), in_use);
}

#[test]
fn a_context_descriptor_beyond_the_reach_of_the_unit_is_refused_and_its_id_given_back() {
    // 36 bits of address, 8-bit ASIDs.
    let bench = Bench::with(options(), |fake| {
        let mut state = fake.state();
        state.ids[3] = state.ids[3] & !7 | 1;
        state.ids[0] &= !(1 << 12);
    });
    let domain = bench.paging(Stage::Stage1);
    let other = bench.paging(Stage::Stage2);
    bench.driver.attach(&endpoint(1), &other).unwrap();
    bench.hal.skip_to(PhysAddr::new(1 << 36));
    let in_use = bench.hal.frames_in_use();
    for _ in 0..300 {
        let beyond = AttachError::Incompatible { missing: Missing::OUTPUT_WIDTH };
        assert_eq!(bench.driver.attach(&endpoint(2), &domain), Err(beyond));
    }
    assert_eq!(bench.hal.frames_in_use(), in_use);
}
