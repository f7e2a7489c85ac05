//! Several threads on one unit: mappings change while attachments do.
mod support;

use portcullis_hal::Iova;
use portcullis_iommu::{DomainSpec, Unit};
use portcullis_virtio_iommu::{Options, Setup};
use std::sync::atomic::{AtomicBool, Ordering};
use support::*;

#[test]
fn mappings_made_while_the_domain_comes_and_goes_are_all_there_in_the_end() {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 200;
    let fake = Fake::new();
    // Few slots, so that submitters meet.
    fake.state().queue_sizes = [16, 8];
    let patient = Options { timeout_ns: 20_000_000_000, ..options() };
    let unit = Setup::new(fake.hal.clone(), fake.clone(), patient).unwrap().enable().unwrap();
    let domain = paging(&unit);
    let blocked = unit.new_domain(&DomainSpec::Blocked).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let domain = &domain;
            scope.spawn(move || {
                let base = 0x1_0000_0000 * (thread + 1);
                for round in 0..ROUNDS {
                    let at = base + round * 0x4000;
                    map(domain, &[piece(at, 0x1000, 0x1000), piece(at + 0x2000, 0x9000, 0x1000)]).unwrap();
                    assert_eq!(unmap(domain, at, 0x2000), Ok(Ok(0x1000)));
                    // Used again at once.
                    map(domain, &[piece(at, 0x5000, 0x1000)]).unwrap();
                    assert_eq!(unmap(domain, at + 0x2000, 0x1000), Ok(Ok(0x1000)));
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..ROUNDS {
                unit.attach(&[endpoint(1)], &domain).unwrap();
                unit.attach(&[endpoint(1)], &blocked).unwrap();
                assert_eq!(fake.dma(1, 0x1_0000_0000, true), None);
                unit.handle_interrupt(&mut |_| ());
            }
        });
    });
    unit.attach(&[endpoint(1)], &domain).unwrap();
    assert_eq!(fake.state().domains[&7].mappings.len() as u64, THREADS * ROUNDS);
    for thread in 1..=THREADS {
        for round in 0..ROUNDS {
            let at = 0x1_0000_0000 * thread + round * 0x4000;
            assert_eq!(fake.dma(1, at + 8, true), Some(0x5008));
            assert_eq!(domain.iova_to_phys(Iova::new(at + 0x2000)), None);
        }
    }
}

#[test]
fn busy_changers_of_mappings_do_not_keep_a_device_from_being_blocked() {
    const THREADS: u64 = 8;
    let fake = Fake::new();
    let patient = Options { timeout_ns: 20_000_000_000, ..options() };
    let unit = Setup::new(fake.hal.clone(), fake.clone(), patient).unwrap().enable().unwrap();
    let domain = paging(&unit);
    let blocked = unit.new_domain(&DomainSpec::Blocked).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (domain, done) = (&domain, &done);
            scope.spawn(move || {
                let at = 0x1_0000_0000 * (thread + 1);
                while !done.load(Ordering::Relaxed) {
                    map(domain, &[piece(at, 0x1000, 0x1000)]).unwrap();
                    assert_eq!(unmap(domain, at, 0x1000), Ok(Ok(0x1000)));
                }
            });
        }
        for _ in 0..20 {
            unit.attach(&[endpoint(1)], &domain).unwrap();
            unit.attach(&[endpoint(1)], &blocked).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(fake.state().endpoints[&1], 5);
}
