//! Running seeds, shrinking what fails, and the coverage that a run has to reach.

use crate::coverage::below;
use crate::plan::{Op, operations};
use crate::setups::config;
use crate::world::{Finding, World};
use portcullis_suites::coverage;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// Operations of one seed.
const LENGTH: usize = 1000;
/// Operations of a normal run.
const OPERATIONS: usize = 500_000;

/// What a sequence left behind.
#[derive(Default)]
struct Outcome {
    finding: Option<Finding>,
    log: Vec<String>,
    counts: BTreeMap<String, u64>,
}

fn run(seed: u64, ops: &[(usize, Op)]) -> Outcome {
    let mut world = match catch_unwind(|| World::new(seed)) {
        Ok(Ok(world)) => world,
        Ok(Err(finding)) => return Outcome { finding: Some(finding), ..Outcome::default() },
        Err(panic) => return Outcome { finding: Some(words(&*panic)), ..Outcome::default() },
    };
    let mut finding = None;
    for (number, op) in ops {
        let result = catch_unwind(AssertUnwindSafe(|| world.apply(op)));
        if let Err(text) = result.unwrap_or_else(|panic| Err(words(&*panic))) {
            world.log.push(format!("(number {number}: {:?}, {:?})", op.act, op.trouble));
            finding = Some(text);
            break;
        }
    }
    if finding.is_none() {
        let result = catch_unwind(AssertUnwindSafe(|| world.finish()));
        finding = result.unwrap_or_else(|panic| Err(words(&*panic))).err();
    }
    let mut counts = std::mem::take(&mut world.counts);
    for unit in &world.units {
        for (class, name, to, count) in unit.model.coverage().table() {
            let arrow = if to.is_empty() { "" } else { " -> " };
            *counts.entry(format!("model {class}: {name}{arrow}{to}")).or_default() += count;
        }
    }
    *counts.entry("probes in the middle of operations".into()).or_default() += world.kernel.0.probed();
    let log = std::mem::take(&mut world.log);
    if finding.is_some() {
        // Whatever state it is in: what its parts do when they are dropped is not the finding.
        std::mem::forget(world);
    }
    Outcome { finding, log, counts }
}

fn words(panic: &(dyn std::any::Any + Send)) -> Finding {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    format!("panic: {}", text.unwrap_or_default())
}

/// Drops operations as long as something is still found.
fn shrink(seed: u64, mut ops: Vec<(usize, Op)>) -> Vec<(usize, Op)> {
    let started = Instant::now();
    let mut piece = ops.len() / 2;
    while piece > 0 {
        let mut at = 0;
        while at < ops.len() && started.elapsed().as_secs() < 60 {
            let mut fewer = ops.clone();
            fewer.drain(at..(at + piece).min(ops.len()));
            if run(seed, &fewer).finding.is_some() {
                ops = fewer;
            } else {
                at += piece;
            }
        }
        piece /= 2;
    }
    ops
}

/// A number in the environment.
pub(crate) fn environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.trim().parse().ok()
}

fn fail(seed: u64, finding: &str, ops: Vec<(usize, Op)>) -> ! {
    let silent = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let ops = shrink(seed, ops);
    let last = run(seed, &ops);
    std::panic::set_hook(silent);
    let keep: Vec<String> = ops.iter().map(|(number, _)| number.to_string()).collect();
    panic!(
        "seed {seed} ({}): {finding}\nshrunk to {} operations: {}\n{}\nreplay: PORTCULLIS_SEED={seed} PORTCULLIS_KEEP={} \
         cargo test -p portcullis-smmuv3 --test on_model",
        config(seed).0,
        ops.len(),
        last.finding.unwrap_or_default(),
        last.log.join("\n"),
        keep.join(","),
    );
}

/// The operations that `PORTCULLIS_KEEP` names, or the first `length`.
fn chosen(seed: u64, length: usize) -> Vec<(usize, Op)> {
    let all: Vec<(usize, Op)> = operations(seed, length).into_iter().enumerate().collect();
    match std::env::var("PORTCULLIS_KEEP") {
        Ok(keep) => {
            let keep: Vec<usize> = keep.split(',').filter_map(|number| number.parse().ok()).collect();
            all.into_iter().filter(|(number, _)| keep.contains(number)).collect()
        }
        Err(_) => all,
    }
}

#[test]
fn what_is_mapped_arrives_and_what_is_not_never_does_whatever_the_unit_caches() {
    let total = environment("PORTCULLIS_OPERATIONS").map_or(OPERATIONS, |operations| operations as usize);
    let first = environment("PORTCULLIS_SEED");
    let seeds = match first {
        Some(seed) => seed..seed + 1,
        None => {
            let begin = environment("PORTCULLIS_FIRST").unwrap_or(0);
            begin..begin + total.div_ceil(LENGTH) as u64
        }
    };
    let started = Instant::now();
    let mut counts = BTreeMap::<String, u64>::new();
    for seed in seeds.clone() {
        let ops = chosen(seed, LENGTH);
        let outcome = run(seed, &ops);
        if let Some(finding) = outcome.finding {
            fail(seed, &finding, ops);
        }
        for (name, count) in outcome.counts {
            *counts.entry(name).or_default() += count;
        }
    }
    let done = seeds.count() * LENGTH;
    let seconds = started.elapsed().as_secs_f64();
    let lines = counts.iter().map(|(name, count)| format!("{name:<60} {count:>9}"));
    coverage::report(env!("CARGO_TARGET_TMPDIR"), "smmuv3", lines);
    if first.is_none() && done >= OPERATIONS {
        assert_eq!(below(&counts), Vec::<String>::new(), "exercised too rarely");
    }
    println!("{done} operations in {seconds:.1} s, {:.0} per second", done as f64 / seconds);
}
