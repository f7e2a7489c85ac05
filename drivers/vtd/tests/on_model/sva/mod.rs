//! Shared virtual addresses, with page requests, by the common layer: random processes on the model.

mod machine;

use machine::Machine;
use portcullis_suites::sva::Suite;

/// Operations of a run, and runs.
const LENGTH: u64 = 400;
const RUNS: u64 = 60;

/// What all runs together have to exercise.
const MINIMA: [(&str, u64); 31] = [
    ("access", 200),
    ("access refused", 100),
    ("bind", 500),
    ("bind again", 500),
    ("bind refused", 10),
    ("change of nothing", 50),
    ("cut off in silence", 1000),
    ("disable and enable", 100),
    ("exit", 50),
    ("exit before unbind", 100),
    ("fault", 500),
    ("fault refused", 50),
    ("fault resolved", 300),
    ("flood", 10_000),
    ("flood beyond the queue", 50),
    ("flood within the queue", 50),
    ("fork", 100),
    ("group dropped", 10),
    ("interrupt", 100),
    ("late answer", 30),
    ("pin", 50),
    ("pin refused", 10),
    ("protect", 50),
    ("reached", 10_000),
    ("refused as unknown", 10),
    ("request without a PASID", 100),
    ("requests dropped", 100),
    ("reserve", 100),
    ("serve", 500),
    ("unbind with requests", 50),
    ("unmap", 50),
];

#[test]
fn devices_reach_what_their_processes_may_and_every_request_has_one_answer() {
    let counts = ("vtd-sva", env!("CARGO_TARGET_TMPDIR"));
    Suite { counts, length: LENGTH, runs: RUNS, minima: &MINIMA }.run(Machine::new);
}
