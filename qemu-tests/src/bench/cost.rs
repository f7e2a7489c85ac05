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
        let field = |name: &str| {
            let value = text.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
            value.parse().ok()
        };
        let counts = || {
            Some(Counts {
                cleans: field("cleans")?,
                barriers: field("barriers")?,
                tables: field("tables")?,
                polls: field("polls")?,
                reads: field("reads")?,
                writes: field("writes")?,
            })
        };
        Some(Self {
            instructions: field("instructions")?,
            doorbells: field("doorbells")?,
            invalidations: field("invalidations")?,
            rounds: field("rounds")?,
            unsteady: field("unsteady")?,
            counts: counts(),
        })
    }
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
}
