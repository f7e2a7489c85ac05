//! The driver on an adversarial model of the hardware: random operations, and an oracle that knows after each of them
//! what every device must reach, may reach and must not.
//!
//! | file | what |
//! |---|---|
//! | `memory` | the memory of driver and model: frames, caches, a clock |
//! | `bench` | the model behind the driver's registers, and its turns |
//! | `op` | operations as data, from a seed |
//! | `oracle` | what each domain's addresses lead to |
//! | `world`, `mappings`, `lending`, `attachments`, `permissions`, `asking` | carrying operations out, and checking them |
//! | `run`, `minima` | whole runs, shrinking, replay; what they have to exercise |
//! | `regressions` | what runs have found |
//! | `rig`, `pasids`, `page_requests` | PASIDs, permissions, device TLBs and page requests, step by step |
//! | `sva` | processes bound to devices, and their page faults |
//! | `threads` | a full queue |
//!
//! `PORTCULLIS_OPERATIONS` sets how many operations the random test makes, `PORTCULLIS_FIRST` the first seed, `PORTCULLIS_SEED` (with
//! `PORTCULLIS_LENGTH`) runs one seed.

mod asking;
mod attachments;
mod bench;
mod lending;
mod mappings;
mod memory;
mod minima;
mod op;
mod oracle;
mod page_requests;
mod pasids;
mod permissions;
mod regressions;
mod rig;
mod run;
mod sizes;
mod sva;
mod threads;
mod world;

use portcullis_suites::coverage;
use run::{Run, Total};
use std::time::Instant;

/// Operations of a run.
const LENGTH: usize = 1000;

/// Operations in all, unless the environment says otherwise.
const OPERATIONS: usize = 500_000;

fn environment(name: &str) -> Option<usize> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn after_every_operation_devices_reach_what_is_mapped_and_nothing_else() {
    let length = environment("PORTCULLIS_LENGTH").unwrap_or(LENGTH);
    let mut total = Total::default();
    if let Some(seed) = environment("PORTCULLIS_SEED") {
        Run::new(seed as u64, length).check(&mut total);
        return;
    }
    let wanted = environment("PORTCULLIS_OPERATIONS").unwrap_or(OPERATIONS);
    let start = Instant::now();
    let first = environment("PORTCULLIS_FIRST").unwrap_or(0);
    for seed in first as u64.. {
        if total.operations >= wanted {
            break;
        }
        Run::new(seed, length).check(&mut total);
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{} operations in {seconds:.1} s, {:.0} per second",
        total.operations,
        total.operations as f64 / seconds
    );
    let lines = total.rows.iter().map(|((class, name, to), count)| {
        let arrow = if to.is_empty() { "" } else { " -> " };
        format!("{class:<14} {:<48} {count:>9}", format!("{name}{arrow}{to}"))
    });
    coverage::report(env!("CARGO_TARGET_TMPDIR"), "vtd", lines);
    let below: Vec<_> = minima::MINIMA
        .iter()
        .map(|&(class, name, to, least)| (class, name, to, total.of(class, name, to), least))
        .filter(|&(.., count, least)| count < least)
        .collect();
    assert!(total.operations < OPERATIONS || below.is_empty(), "below the least: {below:?}");
}
