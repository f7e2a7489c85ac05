//! How many submissions per second threads get through one queue, against a unit that has done everything at once.
//!
//! A submission is the invalidation of a strict unmap of one page: a command, a sync, and the wait for it. Each thread has
//! a domain and a device of its own; the queue is what they share. Between two looks that fail, a thread gives its processor
//! away, as there may be more threads than processors here, other than in a kernel.
//!
//! What counts is time on the clock, with whatever else the host does meanwhile. Threads that find only one processor free
//! do not show what sharing costs: run it on a quiet machine, or with a real-time priority.
//!
//! Prints a line per queue and number of threads, the median of several rounds:
//! `throughput queue=Q threads=N per_second=N retries_ppm=N doorbells_ppm=N`, the last two per million submissions.

#[path = "../units/mod.rs"]
mod units;

use portcullis_hal::{Arc, EndpointId, Gather, Iova, IovaRange, PAGE_SIZE};
use portcullis_iommu::{Domain, DomainSpec, PagingSpec, Unit};
use std::error::Error;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use units::memory::Memory;
use units::{Play, Played, smmu, vtd};

const THREADS: [usize; 4] = [1, 2, 4, 8];
const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_millis(100);

/// What one round gave.
#[derive(Clone, Copy)]
struct Round {
    submissions: u64,
    took: Duration,
    retries: u64,
    doorbells: u64,
}

impl Round {
    fn per_second(&self) -> u64 {
        (self.submissions as f64 / self.took.as_secs_f64()) as u64
    }

    fn per_million(&self, count: u64) -> u64 {
        count.saturating_mul(1_000_000) / self.submissions.max(1)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let queues: [(&str, Play); 2] = [("vtd", vtd::first_stage), ("smmuv3", smmu::unit)];
    let page = IovaRange::new(Iova::new(0x10_0000), PAGE_SIZE)?;
    for (queue, play) in queues {
        for threads in THREADS {
            let memory = Memory::new();
            let played = play(memory)?;
            let domains = (0..threads).map(|number| domain(&*played.unit, number as u32));
            let domains = domains.collect::<Result<Vec<_>, _>>()?;
            let mut rounds: Vec<Round> = (0..ROUNDS).map(|_| round(&played, &domains, page)).collect();
            rounds.sort_by_key(Round::per_second);
            let median = rounds[ROUNDS / 2];
            println!(
                "throughput queue={queue} threads={threads} per_second={} retries_ppm={} doorbells_ppm={}",
                median.per_second(),
                median.per_million(median.retries),
                median.per_million(median.doorbells)
            );
        }
    }
    Ok(())
}

/// A domain with a device.
fn domain(unit: &dyn Unit, endpoint: u32) -> Result<Arc<dyn Domain>, Box<dyn Error>> {
    let domain = unit.new_domain(&DomainSpec::Paging(PagingSpec::default()))?;
    unit.attach(&[EndpointId::new(endpoint)], &domain)?;
    Ok(domain)
}

/// Lets threads submit on a unit for the length of a round.
fn round(played: &Played, domains: &[Arc<dyn Domain>], page: IovaRange) -> Round {
    let (stats, tries) = (played.unit.stats(), (played.tries)());
    let stop = AtomicBool::new(false);
    let start = Barrier::new(domains.len() + 1);
    let (submissions, took) = thread::scope(|scope| {
        let submitters: Vec<_> = domains
            .iter()
            .map(|domain| {
                let (stop, start) = (&stop, &start);
                scope.spawn(move || {
                    let mut gather = Gather::new();
                    let mut submissions = 0_u64;
                    start.wait();
                    while !stop.load(Ordering::Relaxed) {
                        // As an unmap does; the tables are not what is measured.
                        gather.record(page, PAGE_SIZE.trailing_zeros() as u8);
                        if let Err(error) = domain.sync(&mut gather) {
                            panic!("a submission failed: {error}");
                        }
                        submissions += 1;
                    }
                    smmu::count_looks();
                    submissions
                })
            })
            .collect();
        let begun = Instant::now();
        start.wait();
        thread::sleep(ROUND);
        stop.store(true, Ordering::Relaxed);
        let submissions = submitters.into_iter().map(|submitter| submitter.join().unwrap_or(0)).sum::<u64>();
        (submissions, begun.elapsed())
    });
    let now = played.unit.stats();
    Round {
        submissions,
        took,
        retries: ((played.tries)() - tries).saturating_sub(submissions),
        doorbells: now.doorbells - stats.doorbells,
    }
}
