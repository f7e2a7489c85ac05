//! What has to hold whatever the numbers are: they can be had again, and an invalidation that is waited for costs one
//! doorbell.

use super::Guest;
use super::cost::{Cost, Counts};
use super::linux::Operation;
use crate::profile::{Arch, Iommu, Profile};

/// How a unit says that it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Completion {
    /// In a register, which is polled: SMMUv3's CMDQ_CONS.
    Register,
    /// In memory.
    Memory,
}

impl Completion {
    /// That of a machine's unit.
    pub(super) fn on(profile: &Profile) -> Self {
        match (profile.iommu, profile.arch) {
            (Iommu::Native, Arch::Aarch64) => Self::Register,
            (Iommu::Native, Arch::X86_64) | (Iommu::Virtio, _) => Self::Memory,
        }
    }
}

/// What does not hold for an operation, which took `again` in a second boot, and `counted` in the kernel that counts.
pub(super) fn problems(
    operation: &Operation,
    guest: &Guest,
    again: &Cost,
    counted: &Cost,
    completion: Completion,
) -> Vec<String> {
    let Guest { cost, counts } = guest;
    let mut problems = Vec::new();
    let mut require = |holds: bool, problem: String| {
        if !holds {
            problems.push(format!("{}: {problem}", operation.name));
        }
    };
    let tolerance = if operation.is_asked_for() { cost.instructions / 100 } else { 0 };
    let close = cost.instructions.abs_diff(again.instructions) <= tolerance;
    let same = close && Cost { instructions: cost.instructions, ..*again } == *cost;
    require(same, format!("a second boot gave {again:?}, the first {cost:?}"));
    for cost in [cost, counted] {
        require(is_steady(cost), format!("{} of {} repetitions differ", cost.unsteady, cost.rounds));
    }
    let numbers = |cost: &Cost| (cost.doorbells, cost.invalidations);
    require(
        numbers(cost) == numbers(counted),
        format!("the counting kernel has {counted:?}, the other {cost:?}"),
    );
    if operation.is_silent() {
        require(cost.doorbells == 0, format!("{} doorbells, not none", cost.doorbells));
    }
    if operation.is_strict() {
        let Counts { polls, reads, writes, .. } = *counts;
        require(cost.doorbells == 1, format!("{} doorbells, not one", cost.doorbells));
        require(writes == 1, format!("{writes} writes of registers, not one"));
        require(reads == 0, format!("{reads} reads of registers, not none"));
        match completion {
            Completion::Register => require(polls >= 1, "nothing was waited for".to_owned()),
            Completion::Memory => require(polls == 0, format!("{polls} polls of a register, not none")),
        }
    }
    problems
}

/// Whether the repetitions agree but for the first one, and those that come to the end of a queue.
fn is_steady(cost: &Cost) -> bool {
    cost.unsteady <= 1 + cost.rounds / 20
}

#[cfg(test)]
mod tests {
    use super::super::linux::OPERATIONS;
    use super::*;

    fn cost() -> Cost {
        Cost { instructions: 9, doorbells: 1, invalidations: 1, rounds: 100, unsteady: 6, counts: None }
    }

    fn judge(cost: Cost, again: Cost, counts: Counts, completion: Completion) -> usize {
        let unmap = OPERATIONS.iter().find(|operation| operation.is_strict()).unwrap();
        let counted = Cost { counts: Some(counts), ..cost };
        problems(unmap, &Guest { cost, counts }, &again, &counted, completion).len()
    }

    #[test]
    fn what_is_queued_rings_no_doorbell() {
        let queued = OPERATIONS.iter().find(|operation| operation.is_silent()).unwrap();
        let judge = |doorbells| {
            let cost = Cost { doorbells, ..cost() };
            let guest = Guest { cost, counts: Counts::default() };
            let counted = Cost { counts: Some(Counts::default()), ..cost };
            problems(queued, &guest, &cost, &counted, Completion::Memory).len()
        };
        assert_eq!([0, 1].map(judge), [0, 1]);
    }

    #[test]
    fn numbers_that_cannot_be_had_again_are_problems() {
        let fine = Counts { writes: 1, ..Counts::default() };
        assert_eq!(judge(cost(), cost(), fine, Completion::Memory), 0);
        assert_eq!(judge(cost(), Cost { instructions: 10, ..cost() }, fine, Completion::Memory), 1);
        let asked = OPERATIONS.iter().find(|operation| operation.is_asked_for()).unwrap();
        let long = Cost { instructions: 500, ..cost() };
        let counted = Cost { counts: Some(fine), ..long };
        let again = |instructions| {
            let again = Cost { instructions, ..long };
            problems(asked, &Guest { cost: long, counts: fine }, &again, &counted, Completion::Memory).len()
        };
        assert_eq!([500, 505, 506, 494].map(again), [0, 0, 1, 1]);
        let unsteady = Cost { unsteady: 7, ..cost() };
        assert_eq!(judge(unsteady, unsteady, fine, Completion::Memory), 2);
    }

    #[test]
    fn a_strict_unmap_writes_one_register_and_reads_only_what_it_has_to() {
        let counts = |polls, reads, writes| Counts { polls, reads, writes, ..Counts::default() };
        for (counts, memory, register) in [
            (counts(0, 0, 1), 0, 1),
            (counts(1, 0, 1), 1, 0),
            (counts(3, 1, 1), 2, 1),
            (counts(3, 0, 2), 2, 1),
            (counts(3, 0, 0), 2, 1),
        ] {
            assert_eq!(judge(cost(), cost(), counts, Completion::Memory), memory, "{counts:?}");
            assert_eq!(judge(cost(), cost(), counts, Completion::Register), register, "{counts:?}");
        }
        let two = Cost { doorbells: 2, ..cost() };
        assert_eq!(judge(two, two, counts(0, 0, 1), Completion::Memory), 1);
    }
}
