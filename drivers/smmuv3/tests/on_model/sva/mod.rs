//! Shared virtual addresses, with page requests and with stalls, by the common layer: random processes on the model.

mod machine;

use machine::{Faults, Machine};
use portcullis_suites::sva::Suite;

/// Operations of a run, and runs.
const LENGTH: u64 = 400;
const RUNS: u64 = 12;

/// What all runs together have to exercise, with either kind of faults: a third of what they do, or less.
const MINIMA: [(&str, u64); 29] = [
    ("access", 15),
    ("access refused", 60),
    ("bind", 70),
    ("bind again", 80),
    ("bind refused", 25),
    ("change of nothing", 100),
    ("cut off in silence", 7000),
    ("disable and enable", 25),
    ("exit", 12),
    ("exit before unbind", 15),
    ("fault", 170),
    ("fault refused", 90),
    ("fault resolved", 35),
    ("flood", 3000),
    ("flood beyond the queue", 20),
    ("flood within the queue", 20),
    ("fork", 25),
    ("group dropped", 8),
    ("interrupt", 40),
    ("late answer", 15),
    ("pin", 6),
    ("pin refused", 30),
    ("protect", 8),
    ("reached", 2600),
    ("request without a PASID", 35),
    ("reserve", 80),
    ("serve", 200),
    ("unbind with requests", 6),
    ("unmap", 12),
];
const PAGE_REQUESTS: [(&str, u64); 3] =
    [("overflow", 20), ("refused as unknown", 400), ("requests dropped", 400)];
const STALLS: [(&str, u64); 9] = [
    ("answered after it went through", 10),
    ("fault held back", 1),
    ("on its way to the event queue", 200),
    ("retried", 100),
    ("suppressed", 100),
    ("terminated", 1000),
    ("terminated with its stream", 50),
    ("waits for the event queue", 500),
    ("went through early", 10),
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
