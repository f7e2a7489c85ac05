//! How many submissions per second threads get through one queue: the benchmark `throughput` of `qemu-tests/operations`,
//! which runs on this machine against units that complete everything at once.
//!
//! Unlike counts of instructions these numbers differ between machines, and between runs on a busy one.

use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::ui;
use crate::workspace::Workspace;

const PACKAGE: &str = "portcullis-operations";

/// What the benchmark calls the queues, and what they are called here.
const QUEUES: [(&str, &str); 2] = [("vtd", "VT-d invalidation queue"), ("smmuv3", "SMMUv3 command queue")];

/// What so many threads achieve together: medians.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) threads: u64,
    /// Submissions per second.
    pub(super) per_second: u64,
    /// Reservations that had to be made again, per million submissions.
    pub(super) retries_ppm: u64,
    /// Writes of the doorbell, per million submissions.
    pub(super) doorbells_ppm: u64,
    /// How long one submission takes, in nanoseconds: half of them, 99 % and 99.9 % are done so soon.
    pub(super) p50_ns: u64,
    pub(super) p99_ns: u64,
    pub(super) p999_ns: u64,
}

impl Sample {
    /// Reads `throughput queue=Q threads=N per_second=N retries_ppm=N doorbells_ppm=N p50_ns=N p99_ns=N p999_ns=N`; `None`
    /// for any other line, or another queue's.
    fn parse(line: &str, queue: &str) -> Option<Self> {
        let mut words = line.split(' ');
        if words.next() != Some("throughput") || words.next()?.strip_prefix("queue=") != Some(queue) {
            return None;
        }
        let mut field = |name: &str| words.next()?.strip_prefix(name)?.strip_prefix('=')?.parse().ok();
        Some(Self {
            threads: field("threads")?,
            per_second: field("per_second")?,
            retries_ppm: field("retries_ppm")?,
            doorbells_ppm: field("doorbells_ppm")?,
            p50_ns: field("p50_ns")?,
            p99_ns: field("p99_ns")?,
            p999_ns: field("p999_ns")?,
        })
    }
}

/// One queue's results.
#[derive(Clone, Debug)]
pub(super) struct Throughput {
    pub(super) queue: &'static str,
    pub(super) samples: Vec<Sample>,
}

impl Throughput {
    fn at(&self, threads: u64) -> Option<u64> {
        self.samples.iter().find(|sample| sample.threads == threads).map(|sample| sample.per_second)
    }

    /// The goals: two threads get through at least as much as one, and eight at least 0.8 of what two do.
    pub(super) fn goals(&self) -> [(&'static str, Option<bool>); 2] {
        let (one, two, eight) = (self.at(1), self.at(2), self.at(8));
        let both = |left: Option<u64>, right: Option<u64>| left.zip(right);
        [
            ("2 threads at least as much as 1", both(one, two).map(|(one, two)| two >= one)),
            ("8 threads at least 0.8 of 2", both(two, eight).map(|(two, eight)| 10 * eight >= 8 * two)),
        ]
    }

    /// The rows of a table.
    pub(super) fn table(&self) -> Vec<Vec<String>> {
        let titles = ["threads", "submissions/s", "retries", "doorbells", "50 % in ns", "99 %", "99.9 %"];
        let mut rows = vec![titles.map(str::to_owned).to_vec()];
        let each = |ppm: u64| format!("{:.4}", ppm as f64 / 1e6);
        rows.extend(self.samples.iter().map(|sample| {
            vec![
                sample.threads.to_string(),
                super::grouped(sample.per_second),
                each(sample.retries_ppm),
                each(sample.doorbells_ppm),
                super::grouped(sample.p50_ns),
                super::grouped(sample.p99_ns),
                super::grouped(sample.p999_ns),
            ]
        }));
        rows
    }
}

/// Builds and runs the benchmark.
pub(super) fn measure(workspace: &Workspace) -> Result<Vec<Throughput>> {
    ui::say("measuring the throughput of the queues");
    let mut command = workspace.cargo();
    command.args(["bench", "--quiet", "--package", PACKAGE, "--bench", "throughput"]);
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.context("cannot run cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let of_queue = |(key, queue)| {
        let samples = text.lines().filter_map(|line| Sample::parse(line, key)).collect();
        Throughput { queue, samples }
    };
    let queues: Vec<_> = QUEUES.into_iter().map(of_queue).collect();
    if !output.status.success() || queues.iter().any(|queue| queue.samples.is_empty()) {
        bail!("the benchmark of {PACKAGE} ended with {} and {queues:?}", output.status);
    }
    Ok(queues)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(threads: u64, per_second: u64) -> Sample {
        let (p50_ns, p99_ns, p999_ns) = (80, 90, 20_100);
        Sample { threads, per_second, retries_ppm: 7873, doorbells_ppm: 999_956, p50_ns, p99_ns, p999_ns }
    }

    #[test]
    fn what_the_benchmarks_print_is_read_and_nothing_else() {
        let line = "throughput queue=vtd threads=4 per_second=1781581 retries_ppm=7873 doorbells_ppm=999956 \
                    p50_ns=80 p99_ns=90 p999_ns=20100";
        assert_eq!(Sample::parse(line, "vtd"), Some(sample(4, 1_781_581)));
        assert_eq!(Sample::parse(line, "smmuv3"), None);
        let others =
            ["", "running 0 tests", "throughput queue=vtd threads=4", "throughput queue=vtd threads=x"];
        for other in others {
            assert_eq!(Sample::parse(other, "vtd"), None);
        }
    }

    #[test]
    fn goals_compare_two_threads_with_one_and_eight_with_two() {
        let reached = |samples: &[Sample]| {
            Throughput { queue: "queue", samples: samples.to_vec() }.goals().map(|(_, reached)| reached)
        };
        let good = [sample(1, 100), sample(2, 100), sample(4, 5), sample(8, 80)];
        assert_eq!(reached(&good), [Some(true); 2]);
        assert_eq!(reached(&[sample(1, 100), sample(2, 99), sample(8, 79)]), [Some(false); 2]);
        assert_eq!(reached(&[sample(1, 100)]), [None; 2]);
    }

    #[test]
    fn the_table_has_a_row_for_each_number_of_threads() {
        let throughput = Throughput { queue: "queue", samples: vec![sample(1, 1_234_567)] };
        assert_eq!(throughput.table()[1], ["1", "1 234 567", "0.0079", "1.0000", "80", "90", "20 100"]);
    }
}
