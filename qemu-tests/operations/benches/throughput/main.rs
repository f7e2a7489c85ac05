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
//! `throughput queue=Q threads=N per_second=N retries_ppm=N doorbells_ppm=N p50_ns=N p99_ns=N p999_ns=N`. Retries and
//! doorbells are per million submissions. The last three are how long one submission takes, the clock included, in a round of
//! its own: half of them, 99 % and 99.9 % are done so soon.

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

/// How many submissions of each thread are timed, in the round for that.
const TIMED: usize = 1 << 20;

/// What one round gave.
struct Round {
    submissions: u64,
    took: Duration,
    retries: u64,
    doorbells: u64,
    /// How long each submission took that was timed, in nanoseconds, in ascending order.
    latencies: Vec<u32>,
}

impl Round {
    /// How soon so many of a thousand submissions are done, in nanoseconds.
    fn latency(&self, thousandths: usize) -> u32 {
        self.latencies.get(self.latencies.len() * thousandths / 1000).copied().unwrap_or(0)
    }

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
            let mut rounds: Vec<Round> = (0..ROUNDS).map(|_| round(&played, &domains, page, 0)).collect();
            rounds.sort_by_key(Round::per_second);
            let median = &rounds[ROUNDS / 2];
            let timed = round(&played, &domains, page, TIMED);
            println!(
                "throughput queue={queue} threads={threads} per_second={} retries_ppm={} doorbells_ppm={} \
                 p50_ns={} p99_ns={} p999_ns={}",
                median.per_second(),
                median.per_million(median.retries),
                median.per_million(median.doorbells),
                timed.latency(500),
                timed.latency(990),
                timed.latency(999)
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

/// Lets threads submit on a unit for the length of a round; times the first submissions of each, so many.
fn round(played: &Played, domains: &[Arc<dyn Domain>], page: IovaRange, timed: usize) -> Round {
    let (stats, tries) = (played.unit.stats(), (played.tries)());
    let stop = AtomicBool::new(false);
    let start = Barrier::new(domains.len() + 1);
    let (submissions, latencies, took) = thread::scope(|scope| {
        let submitters: Vec<_> = domains
            .iter()
            .map(|domain| {
                let (stop, start) = (&stop, &start);
                scope.spawn(move || {
                    let mut gather = Gather::new();
                    let mut submissions = 0_u64;
                    let mut latencies = Vec::with_capacity(timed);
                    start.wait();
                    while !stop.load(Ordering::Relaxed) {
                        let begun = (latencies.len() < timed).then(Instant::now);
                        // As an unmap does; the tables are not what is measured.
                        gather.record(page, PAGE_SIZE.trailing_zeros() as u8);
                        if let Err(error) = domain.sync(&mut gather) {
                            panic!("a submission failed: {error}");
                        }
                        latencies.extend(begun.map(|begun| begun.elapsed().as_nanos() as u32));
                        submissions += 1;
                    }
                    smmu::count_looks();
                    (submissions, latencies)
                })
            })
            .collect();
        let begun = Instant::now();
        start.wait();
        thread::sleep(ROUND);
        stop.store(true, Ordering::Relaxed);
        let (mut submissions, mut latencies) = (0, Vec::new());
        for (own, timed) in submitters.into_iter().filter_map(|submitter| submitter.join().ok()) {
            submissions += own;
            latencies.extend(timed);
        }
        let took = begun.elapsed();
        latencies.sort_unstable();
        (submissions, latencies, took)
    });
    let now = played.unit.stats();
    Round {
        submissions,
        took,
        retries: ((played.tries)() - tries).saturating_sub(submissions),
        doorbells: now.doorbells - stats.doorbells,
        latencies,
    }
}
