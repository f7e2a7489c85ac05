//! What repetitions of an operation cost.

use alloc::vec::Vec;
use core::fmt;
use portcullis_hal::count::Counts;
use portcullis_iommu::UnitStats;

/// What happens beside the time that passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Events {
    /// Writes of a queue's doorbell, by the unit's own account.
    pub doorbells: u64,
    /// Invalidation commands, or requests, by the unit's own account.
    pub invalidations: u64,
    /// What the build counts beyond that, if it does.
    pub counts: Option<Counts>,
}

impl Events {
    pub(crate) fn between(before: &UnitStats, after: &UnitStats, counts: Option<Counts>) -> Self {
        Self {
            doorbells: after.doorbells.wrapping_sub(before.doorbells),
            invalidations: after.invalidations.wrapping_sub(before.invalidations),
            counts,
        }
    }
}

/// As `name=value` pairs.
impl fmt::Display for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { doorbells, invalidations, counts } = self;
        write!(f, "doorbells={doorbells} invalidations={invalidations}")?;
        if let Some(Counts { cleans, barriers, tables, polls, reads, writes }) = counts {
            write!(f, " cleans={cleans} barriers={barriers} tables={tables}")?;
            write!(f, " polls={polls} reads={reads} writes={writes}")?;
        }
        Ok(())
    }
}

/// What an operation costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// The median of the time that it takes.
    pub time: u64,
    /// What happened in most repetitions.
    pub events: Events,
    /// The number of repetitions.
    pub rounds: usize,
    /// How many repetitions differ from that: the first, which meets tables that are not there yet, and those that come
    /// to the end of a queue.
    pub unsteady: usize,
}

/// The repetitions of one operation.
pub(crate) struct Samples {
    times: Vec<u64>,
    events: Vec<Events>,
}

impl Samples {
    /// Has room for so many, so that adding one allocates nothing.
    pub(crate) fn new(rounds: usize) -> Self {
        Self { times: Vec::with_capacity(rounds), events: Vec::with_capacity(rounds) }
    }

    pub(crate) fn add(&mut self, time: u64, events: Events) {
        self.times.push(time);
        self.events.push(events);
    }

    pub(crate) fn cost(self) -> Cost {
        let events = median(self.events.clone());
        let unsteady = self.events.iter().filter(|other| **other != events).count();
        Cost { time: median(self.times), events, rounds: self.events.len(), unsteady }
    }
}

/// The middle one; the upper of two. If more than half are the same, it is one of these.
pub fn median<T: Copy + Default + Ord>(mut samples: Vec<T>) -> T {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn what_most_repetitions_agree_on_counts() {
        let one = Events { doorbells: 1, ..Events::default() };
        let cost = |events: &[Events]| {
            let mut samples = Samples::new(events.len());
            for (time, events) in (1..).zip(events) {
                samples.add(time, *events);
            }
            samples.cost()
        };
        assert_eq!(
            cost(&[Events::default(), one, one]),
            Cost { time: 2, events: one, rounds: 3, unsteady: 1 }
        );
        assert_eq!(cost(&[one, one, one]).unsteady, 0);
        assert_eq!(cost(&[]).time, 0);
    }

    #[test]
    fn events_are_pairs_of_name_and_value() {
        let events = Events { doorbells: 1, invalidations: 2, counts: None };
        assert_eq!(events.to_string(), "doorbells=1 invalidations=2");
        let counted = Events { counts: Some(Counts { polls: 3, ..Counts::default() }), ..events };
        assert!(counted.to_string().ends_with(" cleans=0 barriers=0 tables=0 polls=3 reads=0 writes=0"));
    }
}
