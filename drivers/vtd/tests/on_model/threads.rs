//! More submitters than the queue has room for, on a unit that stands for a while.

#![expect(unsafe_code, reason = "mappings of memory that only its addresses are looked at")]

use crate::bench::{Bench, Registers};
use crate::world::options;
use portcullis_hal::{Attributes, EndpointId, Gather, Iova, IovaRange, Mapping, PhysAddr, PhysRange, host};
use portcullis_iommu::{DomainSpec, PagingSpec, Unit};
use portcullis_model::core::{Outcome, Request};
use portcullis_model::vtd::Config;
use portcullis_vtd::{Options, Setup};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

const SUBMITTERS: u16 = 24;
const ROUNDS: usize = 4;

/// Thirty pages from an odd one on: eight aligned blocks, so eight descriptors and a wait.
const FIRST: u64 = 0x1000;
const LEN: u64 = 30 * 0x1000;

#[test]
fn submitters_wait_for_room_in_a_full_queue_and_then_all_are_served() {
    let bench = Bench::new(Config::full(), 1);
    // The clock moves at every look, and many look: these are some 30 million looks.
    let options = Options { timeout_ns: 60_000_000_000, ..options(&Config::full()) };
    let setup = Setup::new(bench.host.clone(), Registers(bench.clone()), options).expect("a unit");
    let driver = setup.enable().expect("a unit");
    let barrier = Barrier::new(usize::from(SUBMITTERS) + 1);
    let submitter = |sid: u16| {
        let domain = driver.new_domain(&DomainSpec::Paging(PagingSpec::default())).expect("a domain");
        driver.attach(&[EndpointId::new(u32::from(sid))], &domain).expect("an attachment");
        let memory = PhysRange::new(PhysAddr::new(u64::from(sid) << 32 | FIRST), LEN).expect("a range");
        let mapping = Mapping { iova: Iova::new(FIRST), memory, attributes: Attributes::READ_WRITE };
        let request = Request::read(u32::from(sid), FIRST + LEN - 8);
        for _ in 0..ROUNDS {
            // SAFETY: the memory is nobody's.
            unsafe { domain.map(&[mapping]) }.expect("room");
            let expected = Outcome::Done(memory.last().get() & !7);
            assert_eq!(bench.unit.reachable(request), [expected].into());
            bench.unit.watch(request);
            barrier.wait();
            // The unit stands now.
            barrier.wait();
            let mut gather = Gather::new();
            let range = IovaRange::new(Iova::new(FIRST), LEN).expect("a range");
            assert_eq!(host::unmap(&*domain, range, &mut gather), Ok(LEN));
            let _proof = domain.sync(&mut gather).expect("an answer");
            assert_eq!(bench.unit.reachable(request), [Outcome::Fault(0x71)].into());
            barrier.wait();
        }
        driver.detach(&[EndpointId::new(u32::from(sid))]).expect("an answer");
    };
    thread::scope(|scope| {
        for sid in 1..=SUBMITTERS {
            scope.spawn(move || submitter(sid));
        }
        for _ in 0..ROUNDS {
            barrier.wait();
            bench.unit.hang();
            bench.unit.unwatch_all();
            let before = driver.stats().syncs;
            barrier.wait();
            // 127 descriptors have room: 14 batches.
            let start = Instant::now();
            while driver.stats().syncs < before + 13 && start.elapsed() < Duration::from_secs(20) {
                thread::yield_now();
            }
            thread::sleep(Duration::from_millis(5));
            let queued = driver.stats().syncs - before;
            assert!((13..u64::from(SUBMITTERS)).contains(&queued), "{queued} batches in the queue");
            bench.unit.unhang();
            barrier.wait();
        }
    });
    assert_eq!(bench.unit.take_violations(), []);
    assert_eq!(bench.host.take_troubles(), [""; 0]);
}
