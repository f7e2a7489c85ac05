//! Shared virtual addresses, with page requests and with stalls, by the common layer: random processes on the model.

mod machine;

use machine::{Faults, Machine};
use portcullis_suites::sva::Suite;

/// Operations of a run, and runs.
const LENGTH: u64 = 400;
const RUNS: u64 = 30;

/// What all runs together have to exercise, with either kind of faults: a third of what they do, or less.
const MINIMA: [(&str, u64); 29] = [
    ("access", 30),
    ("access refused", 120),
    ("bind", 140),
    ("bind again", 160),
    ("bind refused", 50),
    ("change of nothing", 200),
    ("cut off in silence", 14_000),
    ("disable and enable", 50),
    ("exit", 24),
    ("exit before unbind", 30),
    ("fault", 340),
    ("fault refused", 180),
    ("fault resolved", 70),
    ("flood", 6000),
    ("flood beyond the queue", 40),
    ("flood within the queue", 40),
    ("fork", 50),
    ("group dropped", 16),
    ("interrupt", 80),
    ("late answer", 30),
    ("pin", 12),
    ("pin refused", 60),
    ("protect", 16),
    ("reached", 5200),
    ("request without a PASID", 70),
    ("reserve", 160),
    ("serve", 400),
    ("unbind with requests", 12),
    ("unmap", 24),
];
const PAGE_REQUESTS: [(&str, u64); 3] =
    [("overflow", 40), ("refused as unknown", 800), ("requests dropped", 800)];
const STALLS: [(&str, u64); 9] = [
    ("answered after it went through", 20),
    ("fault held back", 4),
    ("on its way to the event queue", 400),
    ("retried", 200),
    ("suppressed", 200),
    ("terminated", 2000),
    ("terminated with its stream", 100),
    ("waits for the event queue", 1000),
    ("went through early", 20),
];

fn run(name: &str, faults: Faults, more: &[(&'static str, u64)]) {
    let minima = [&MINIMA, more].concat();
    let counts = (name, env!("CARGO_TARGET_TMPDIR"));
    Suite { counts, length: LENGTH, runs: RUNS, minima: &minima }.run(|seed| Machine::new(seed, faults));
}

#[test]
fn with_page_requests_devices_reach_what_their_processes_may_and_every_request_has_one_answer() {
    run("smmuv3-sva-pri", Faults::Pri, &PAGE_REQUESTS);
}

#[test]
fn with_stalls_devices_reach_what_their_processes_may_and_every_stall_has_one_answer() {
    run("smmuv3-sva-stall", Faults::Stall, &STALLS);
}
