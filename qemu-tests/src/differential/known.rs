//! The differences between the models and QEMU that are known, each for one kind of input.
//!
//! A difference that is not here fails the test, and so does a row that no case uses, or that only some of its inputs do.

mod smmuv3;
mod vtd;

use std::collections::BTreeMap;

pub(super) use smmuv3::SMMUV3;
pub(super) use vtd::{FIRST, SECOND, VTD};

/// What became of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Its data is in memory; where the model says so, if it does.
    Lands,
    /// Its data is in memory, but in another place than the model says.
    Astray,
    /// It was refused with a record that carries this code.
    Fault(u8),
    /// It was refused without a record.
    Silent,
}

/// What is different.
#[derive(Clone, Copy, Debug)]
pub(super) enum Difference {
    /// The model says one of the first, QEMU does one of the second.
    Outcome(&'static [Verdict], &'static [Verdict]),
    /// Bits of a word of the fault record.
    Field { word: usize, bits: u64 },
}

/// One known difference.
#[derive(Debug)]
pub(super) struct Known {
    /// The inputs that show it, by the names that the generator gives them; none stands for all.
    pub(super) inputs: &'static [&'static str],
    pub(super) difference: Difference,
    /// What QEMU does.
    pub(super) qemu: &'static str,
    /// What the architecture says.
    pub(super) architecture: &'static str,
    /// Where it says so.
    pub(super) section: &'static str,
}

/// A table of known differences, and how often each row was used, by input.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<(&'static Known, BTreeMap<String, u64>)>,
}

impl Table {
    pub(super) fn new(parts: &'static [&'static [Known]]) -> Self {
        Self { rows: parts.iter().copied().flatten().map(|row| (row, BTreeMap::new())).collect() }
    }

    /// Whether this pair of results is known.
    pub(super) fn outcome(&mut self, input: &str, model: Verdict, qemu: Verdict) -> bool {
        let row = self.rows.iter_mut().find(|(row, _)| {
            matches!(row.difference, Difference::Outcome(a, b) if a.contains(&model) && b.contains(&qemu))
                && row.covers(input)
        });
        let Some((_, used)) = row else { return false };
        *used.entry(input.to_owned()).or_default() += 1;
        true
    }

    /// Whether all these different bits of fault records are known.
    pub(super) fn fields(&mut self, input: &str, mut different: [u64; 4]) -> bool {
        for (row, used) in &mut self.rows {
            if let Difference::Field { word, bits } = row.difference
                && row.covers(input)
                && different[word] & bits != 0
            {
                different[word] &= !bits;
                *used.entry(input.to_owned()).or_default() += 1;
            }
        }
        different == [0; 4]
    }

    /// How often any row was used.
    pub(super) fn total(&self) -> u64 {
        self.rows.iter().flat_map(|(_, used)| used.values()).sum()
    }

    /// The rows that nothing used, and the inputs that used none of theirs: each with the row, and the input if the row names
    /// any.
    pub(super) fn unused(&self) -> impl Iterator<Item = (&'static Known, Option<&'static str>)> {
        self.rows.iter().flat_map(|(row, used)| {
            let whole = (row.inputs.is_empty() && used.is_empty()).then_some((*row, None));
            let inputs = row.inputs.iter().filter(|input| !used.contains_key(**input));
            whole.into_iter().chain(inputs.map(|input| (*row, Some(*input))))
        })
    }
}

impl Known {
    fn covers(&self, input: &str) -> bool {
        self.inputs.is_empty() || self.inputs.contains(&input)
    }
}

impl std::fmt::Display for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { inputs, difference, qemu, architecture, section } = self;
        write!(f, "{inputs:?}, {difference:x?}: QEMU: {qemu} Architecture: {architecture} ({section})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: &[Known] = &[
        Known {
            inputs: &["a", "c"],
            difference: Difference::Outcome(&[Verdict::Lands], &[Verdict::Fault(4), Verdict::Silent]),
            qemu: "",
            architecture: "",
            section: "",
        },
        Known {
            inputs: &[],
            difference: Difference::Field { word: 3, bits: 0xfff },
            qemu: "",
            architecture: "",
            section: "",
        },
    ];

    #[test]
    fn a_row_covers_its_input_and_its_pairs_only() {
        let mut table = Table::new(&[ROWS]);
        assert!(table.outcome("a", Verdict::Lands, Verdict::Silent));
        assert!(!table.outcome("b", Verdict::Lands, Verdict::Silent));
        assert!(!table.outcome("a", Verdict::Silent, Verdict::Lands));
        assert!(!table.outcome("a", Verdict::Lands, Verdict::Fault(5)));
        assert_eq!(table.total(), 1);
    }

    #[test]
    fn every_different_bit_needs_a_row() {
        let mut table = Table::new(&[ROWS]);
        assert!(table.fields("b", [0, 0, 0, 0x10]));
        assert!(!table.fields("b", [0, 0, 0, 0x1010]));
        assert!(!table.fields("b", [0, 1, 0, 0x10]));
    }

    #[test]
    fn rows_that_nothing_used_are_told() {
        let mut table = Table::new(&[ROWS]);
        let unused = |table: &Table| table.unused().map(|(_, input)| input).collect::<Vec<_>>();
        assert_eq!(unused(&table), [Some("a"), Some("c"), None]);
        assert!(table.outcome("a", Verdict::Lands, Verdict::Silent));
        assert_eq!(unused(&table), [Some("c"), None]);
        assert!(table.fields("a", [0, 0, 0, 1]));
        assert_eq!(unused(&table), [Some("c")]);
    }
}
