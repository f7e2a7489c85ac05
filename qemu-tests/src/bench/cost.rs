//! What an operation costs, as the kernel prints it.

/// What one operation costs on one machine: medians over its repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) instructions: u64,
    pub(super) doorbells: u64,
    pub(super) invalidations: u64,
    /// Repetitions.
    pub(super) rounds: u64,
    /// Repetitions in which anything but the instructions was not as in most.
    pub(super) unsteady: u64,
    /// What only the counting kernel knows.
    pub(super) counts: Option<Counts>,
}

/// What happens besides instructions, and costs more than one on hardware.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Cache lines written back to memory.
    pub(super) cleans: u64,
    /// Barrier instructions.
    pub(super) barriers: u64,
    /// Page tables that the driver's walks came to.
    pub(super) tables: u64,
    /// Reads of the register that says how far the unit has come.
    pub(super) polls: u64,
    /// Reads of other registers.
    pub(super) reads: u64,
    /// Writes of registers, doorbells among them.
    pub(super) writes: u64,
}

impl Cost {
    /// Reads `name=value` pairs.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (rounds, unsteady) = (field(text, "rounds")?, field(text, "unsteady")?);
        Some(Self { rounds, unsteady, ..Self::of_one(text)? })
    }

    /// As [`parse`](Self::parse), of one repetition.
    pub(super) fn of_one(text: &str) -> Option<Self> {
        let counts = || {
            Some(Counts {
                cleans: field(text, "cleans")?,
                barriers: field(text, "barriers")?,
                tables: field(text, "tables")?,
                polls: field(text, "polls")?,
                reads: field(text, "reads")?,
                writes: field(text, "writes")?,
            })
        };
        Some(Self {
            instructions: field(text, "instructions")?,
            doorbells: field(text, "doorbells")?,
            invalidations: field(text, "invalidations")?,
            rounds: 1,
            unsteady: 0,
            counts: counts(),
        })
    }

    /// That of several repetitions, of which each is given.
    pub(super) fn of_all(all: &[Self]) -> Option<Self> {
        let mut instructions: Vec<u64> = all.iter().map(|cost| cost.instructions).collect();
        instructions.sort_unstable();
        let instructions = *instructions.get(all.len() / 2)?;
        let alike = |cost: &Self| {
            let same = |other: &&Self| Self { instructions: cost.instructions, ..**other } == *cost;
            all.iter().filter(same).count()
        };
        let most = all.iter().max_by_key(|cost| alike(cost))?;
        let (rounds, unsteady) = (all.len() as u64, (all.len() - alike(most)) as u64);
        Some(Self { instructions, rounds, unsteady, ..*most })
    }
}

fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
    value.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_read_with_and_without_counts() {
        let plain = "instructions=190 doorbells=1 invalidations=2 rounds=5 unsteady=1";
        let cost = Cost::parse(plain).unwrap();
        assert_eq!((cost.instructions, cost.doorbells, cost.invalidations), (190, 1, 2));
        assert_eq!((cost.rounds, cost.unsteady, cost.counts), (5, 1, None));
        let counted = format!("{plain} cleans=1 barriers=2 tables=3 polls=4 reads=5 writes=6");
        let counts = Counts { cleans: 1, barriers: 2, tables: 3, polls: 4, reads: 5, writes: 6 };
        assert_eq!(Cost::parse(&counted).unwrap().counts, Some(counts));
        assert_eq!(Cost::parse("instructions=few"), None);
    }

    #[test]
    fn repetitions_have_a_median_and_what_most_agree_on() {
        let one = |instructions, doorbells| {
            Cost::of_one(&format!("instructions={instructions} doorbells={doorbells} invalidations=2"))
                .unwrap()
        };
        let cost = Cost::of_all(&[one(7, 3), one(1, 1), one(9, 1), one(8, 1)]).unwrap();
        assert_eq!((cost.instructions, cost.doorbells, cost.invalidations), (8, 1, 2));
        assert_eq!((cost.rounds, cost.unsteady), (4, 1));
        assert_eq!(Cost::of_all(&[]), None);
    }
}
