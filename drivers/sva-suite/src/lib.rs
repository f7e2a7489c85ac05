//! Shared virtual addresses, with page requests, by the common layer: random processes on a model.
//!
//! A back end's test brings a [`Machine`], a modelled unit with its driver under the common layer, and [`run`]s it.
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

use std::collections::BTreeMap;

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

    /// Prints all of them.
    ///
    /// # Panics
    ///
    /// One is below its minimum.
    pub fn check(&self, minima: &[(&str, u64)]) {
        for (what, count) in &self.0 {
            println!("{what:<30} {count:>8}");
        }
        let of = |what| self.0.get(what).copied().unwrap_or_default();
        let below: Vec<_> = minima.iter().filter(|(what, least)| of(what) < *least).collect();
        assert!(below.is_empty(), "below the least: {below:?}");
    }
}

/// Does random operations on a new machine, and then ends everything.
///
/// # Panics
///
/// A device reached what it must not, a request has no answer or several, or something is left over.
pub fn run(machine: &impl Machine, seed: u64, length: usize, counts: &mut Counts) {
    let mut world = world::World::new(machine, seed, counts);
    (0..length).for_each(|_| world.step());
    world.finish();
}
