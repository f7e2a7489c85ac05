//! What a run leaves behind: violations, interrupts, coverage.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something that software did and the architecture forbids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// A short name for the rule, for tests to compare.
    pub rule: &'static str,
    /// What exactly happened.
    pub detail: String,
}

/// All violations of a run.
#[derive(Debug, Default)]
pub struct Violations(Mutex<Vec<Violation>>);

impl Violations {
    /// How many are kept; a driver that loops on a forbidden write must not eat the host's memory.
    const LIMIT: usize = 1000;

    /// Records one.
    pub fn report(&self, rule: &'static str, detail: impl fmt::Display) {
        let mut list = lock(&self.0);
        if list.len() < Self::LIMIT {
            list.push(Violation { rule, detail: detail.to_string() });
        }
    }

    /// What was recorded so far.
    #[must_use]
    pub fn list(&self) -> Vec<Violation> {
        lock(&self.0).clone()
    }

    /// What was recorded so far, and starts anew.
    #[must_use]
    pub fn take(&self) -> Vec<Violation> {
        std::mem::take(&mut lock(&self.0))
    }
}

/// One interrupt that the unit raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interrupt {
    /// A wired interrupt, edge.
    Wire {
        /// Which line.
        source: &'static str,
    },
    /// A message-signalled interrupt, written to memory as well.
    Message {
        /// Which event.
        source: &'static str,
        /// Where the message was written.
        address: u64,
        /// What was written.
        data: u32,
    },
    /// An event for waiting CPUs (SEV).
    Event {
        /// Which command.
        source: &'static str,
    },
}

impl Interrupt {
    /// Which line, message or event it is.
    #[must_use]
    pub const fn source(&self) -> &'static str {
        match self {
            Self::Wire { source } | Self::Message { source, .. } | Self::Event { source } => source,
        }
    }
}

/// The interrupts raised and not yet taken.
#[derive(Debug, Default)]
pub struct Interrupts(Mutex<Vec<Interrupt>>);

impl Interrupts {
    /// Raises one.
    pub fn raise(&self, interrupt: Interrupt) {
        lock(&self.0).push(interrupt);
    }

    /// Those raised since the last call, in order.
    #[must_use]
    pub fn take(&self) -> Vec<Interrupt> {
        std::mem::take(&mut lock(&self.0))
    }
}

/// Counters of what a run exercised: (class, name, second name).
#[derive(Debug, Default)]
pub struct Coverage(Mutex<BTreeMap<(&'static str, &'static str, &'static str), u64>>);

impl Coverage {
    /// Counts one `name` of a class, as in `("command", "CFGI_STE")`.
    pub fn count(&self, class: &'static str, name: &'static str) {
        *lock(&self.0).entry((class, name, "")).or_default() += 1;
    }

    /// Counts a pair, as in `("ste", "bypass", "stage 1")`.
    pub fn transition(&self, class: &'static str, from: &'static str, to: &'static str) {
        *lock(&self.0).entry((class, from, to)).or_default() += 1;
    }

    /// How often `name` of a class was counted.
    #[must_use]
    pub fn of(&self, class: &str, name: &str) -> u64 {
        self.table().iter().filter(|row| row.0 == class && row.1 == name).map(|row| row.3).sum()
    }

    /// All rows: class, name, second name (empty if there is none), count.
    #[must_use]
    pub fn table(&self) -> Vec<(&'static str, &'static str, &'static str, u64)> {
        lock(&self.0).iter().map(|(&(class, name, to), &count)| (class, name, to, count)).collect()
    }

    /// The rows of `minima` (class, name, second name, at least) that were not reached, with what was counted.
    #[must_use]
    pub fn below(&self, minima: &[(&'static str, &'static str, &'static str, u64)]) -> Vec<String> {
        let counted = lock(&self.0);
        minima
            .iter()
            .filter_map(|&(class, name, to, least)| {
                let count = counted.get(&(class, name, to)).copied().unwrap_or(0);
                (count < least).then(|| format!("{class} {name} {to}: {count} of at least {least}"))
            })
            .collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (class, name, to, count) in self.table() {
            let arrow = if to.is_empty() { "" } else { " -> " };
            writeln!(f, "{class:<12} {:<44} {count:>9}", format!("{name}{arrow}{to}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coverage_names_what_stays_below_its_minimum() {
        let coverage = Coverage::default();
        coverage.count("command", "SYNC");
        coverage.transition("ste", "bypass", "abort");
        assert_eq!(coverage.of("command", "SYNC"), 1);
        assert_eq!(coverage.below(&[("command", "SYNC", "", 1), ("ste", "bypass", "abort", 1)]), [""; 0]);
        assert_eq!(coverage.below(&[("command", "SYNC", "", 2)]), ["command SYNC : 1 of at least 2"]);
        assert!(coverage.to_string().contains("bypass -> abort"));
    }
}
