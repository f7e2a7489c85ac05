//! Shared virtual addresses, with page requests, by the common layer: random processes on a model.
//!
//! A back end's test brings a [`Machine`], a modelled unit with its driver under the common layer, to a [`Suite`].
//!
//! | file | what |
//! |---|---|
//! | `machine` | what a back end brings |
//! | `process` | address spaces with demand-zero and copy-on-write pages |
//! | `world` | random operations, and what devices may reach after each |

mod machine;
mod process;
mod world;

pub use machine::{Function, Machine};

use crate::coverage;
use std::collections::BTreeMap;
use std::time::Instant;

/// How often what was done, and what came of it.
#[derive(Debug, Default)]
pub struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    fn add(&mut self, what: &'static str) {
        self.many(what, 1);
    }

    /// Adds to a count.
    pub fn many(&mut self, what: &'static str, count: u64) {
        *self.0.entry(what).or_default() += count;
    }

    /// Fails if one is below its minimum.
    fn check(&self, minima: &[(&str, u64)]) {
        let of = |what| self.0.get(what).copied().unwrap_or_default();
        let below: Vec<_> = minima.iter().filter(|(what, least)| of(what) < *least).collect();
        assert!(below.is_empty(), "below the least: {below:?}");
    }
}

/// Runs of random operations, each on a new machine.
///
/// `PORTCULLIS_SEED` and `PORTCULLIS_LENGTH` run one seed; `PORTCULLIS_FIRST` and `PORTCULLIS_OPERATIONS` begin elsewhere
/// and take longer.
#[derive(Clone, Copy, Debug)]
pub struct Suite<'a> {
    /// A name for the file with the counts, and the folder for it, as [`coverage::report`] takes them.
    pub counts: (&'a str, &'a str),
    /// Operations of a run.
    pub length: u64,
    /// How many runs.
    pub runs: u64,
    /// What all of them together have to exercise.
    pub minima: &'a [(&'static str, u64)],
}

fn environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

impl Suite<'_> {
    /// Runs them all; `machine` makes the one of a seed.
    ///
    /// # Panics
    ///
    /// A device reached what it must not, a request has no answer or several, something is left over, or a count is below
    /// its minimum.
    pub fn run<M: Machine>(&self, machine: impl Fn(u64) -> M) {
        let mut counts = Counts::default();
        let mut one = |seed, length| {
            println!("seed {seed}");
            let machine = machine(seed);
            let mut world = world::World::new(&machine, seed, &mut counts);
            (0..length).for_each(|_| world.step());
            world.finish();
            machine.count(&mut counts);
        };
        if let Some(seed) = environment("PORTCULLIS_SEED") {
            return one(seed, environment("PORTCULLIS_LENGTH").unwrap_or(self.length));
        }
        let runs =
            environment("PORTCULLIS_OPERATIONS").map_or(self.runs, |wanted| wanted.div_ceil(self.length));
        let first = environment("PORTCULLIS_FIRST").unwrap_or_default();
        let started = Instant::now();
        (first..first + runs).for_each(|seed| one(seed, self.length));
        let (operations, seconds) = (runs * self.length, started.elapsed().as_secs_f64());
        let (name, folder) = self.counts;
        coverage::report(folder, name, counts.0.iter().map(|(what, count)| format!("{what:<30} {count:>8}")));
        println!("{operations} operations in {seconds:.1} s, {:.0} per second", operations as f64 / seconds);
        if runs >= self.runs {
            counts.check(self.minima);
        }
    }
}
