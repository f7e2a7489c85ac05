//! Shared virtual addresses, with page requests and with stalls, by the common layer: random processes on the model.
//!
//! `PORTCULLIS_SEED` runs one seed, of `PORTCULLIS_LENGTH` operations.

mod machine;

use crate::run::environment;
use machine::{Faults, Machine};
use portcullis_sva_suite::{Counts, run};

/// Operations of a run, and runs.
const LENGTH: usize = 400;
const RUNS: u64 = 12;

/// What all runs together have to exercise, with either kind of faults.
const MINIMA: [(&str, u64); 1] = [("access", 1)];

fn runs(faults: Faults, minima: &[(&str, u64)]) {
    let mut counts = Counts::default();
    if let Some(seed) = environment("PORTCULLIS_SEED") {
        let length = environment("PORTCULLIS_LENGTH").map_or(LENGTH, |length| length as usize);
        run(&Machine::new(seed, faults), seed, length, &mut counts);
        return;
    }
    for seed in 0..RUNS {
        println!("seed {seed}");
        run(&Machine::new(seed, faults), seed, LENGTH, &mut counts);
    }
    counts.check(&MINIMA);
    counts.check(minima);
}

#[test]
fn with_page_requests_devices_reach_what_their_processes_may_and_every_request_has_one_answer() {
    runs(Faults::Pri, &[]);
}

#[test]
fn with_stalls_devices_reach_what_their_processes_may_and_every_stall_has_one_answer() {
    runs(Faults::Stall, &[]);
}
