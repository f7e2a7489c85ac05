//! A nested stream at random: what a hypervisor and its guest have to invalidate, and no more.

use crate::bench::*;
use portcullis_model::core::{Outcome, Prng};
use portcullis_model::smmuv3::{Config, code, points};

/// How the hypervisor invalidates after a change of stage 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// By IPA, CMD_SYNC, stage 1 of the VMID, CMD_SYNC.
    ByIpa,
    /// Both stages of the VMID with one command.
    Whole,
    /// By IPA and stage 1 in one go: stage 1 may be refilled through the stage 2 that is not gone yet.
    ByIpaUnordered,
    /// Stage 2 alone.
    IpaOnly,
}

fn run(seed: u64, way: Way) -> Result<(), String> {
    let bench = Bench::new(Config::qemu());
    bench.nested();
    bench.smmu.watch(read());
    let smmu = bench.smmu.clone();
    bench.ram.set_hook(move |_, _| {
        smmu.step();
    });
    bench.schedule.odds(points::CMDQ_SINGLE, 1, 2).odds(points::SYNC_LATE, 1, 2);
    let mut prng = Prng::new(seed);
    let (mut output, mut mapped) = (PAGE, true);
    let stage2 = |ipa: u64| match way {
        Way::ByIpa => {
            bench.synced(&[tlbi_ipa(VMID, ipa)]);
            bench.synced(&[[0x10 | VMID << 32, 0]]);
        }
        Way::Whole => bench.synced(&[[0x28 | VMID << 32, 0]]),
        Way::ByIpaUnordered => bench.synced(&[tlbi_ipa(VMID, ipa), [0x10 | VMID << 32, 0]]),
        Way::IpaOnly => bench.synced(&[tlbi_ipa(VMID, ipa)]),
    };
    for turn in 0..120 {
        match prng.below(3) {
            // The hypervisor moves the page behind the IPA.
            0 => {
                bench.ram.store_all(leaf2(IPA), &[0]);
                stage2(IPA);
                output = PAGE + 0x1000 * (1 + prng.below(1000));
                bench.ram.store_all(leaf2(IPA), &[output | LEAF2]);
            }
            // The guest unmaps or maps.
            1 => {
                mapped = !mapped;
                bench.leaf1(if mapped { IPA | LEAF } else { 0 });
                if !mapped {
                    bench.synced(&[tlbi_va(VMID, ASID, VA)]);
                }
            }
            // The hypervisor moves the guest's last table, contents included, and its old place is poisoned.
            _ => {
                let table = S1[2];
                let new = 0x6000_0000 + 0x1000 * prng.below(100);
                let slot = 8 * (VA >> 12 & 0x1ff);
                let current = bench.ram.load(table + slot);
                bench.ram.store_all(leaf2(table), &[0]);
                stage2(table);
                bench.ram.store_all(table + slot, &[0x6666_6000 | LEAF]);
                if bench.smmu.reachable(read()).contains(&Outcome::Done(0x6666_6000)) {
                    return Err(format!("turn {turn}: the poisoned table is walked"));
                }
                bench.ram.store_all(new + slot, &[current]);
                bench.ram.store_all(leaf2(table), &[new | LEAF2]);
                check(&bench, turn, if mapped { Some(output) } else { None })?;
                // And back.
                bench.ram.store_all(leaf2(table), &[0]);
                stage2(table);
                bench.ram.store_all(table + slot, &[current]);
                bench.ram.store_all(leaf2(table), &[table | LEAF2]);
            }
        }
        check(&bench, turn, if mapped { Some(output) } else { None })?;
    }
    bench.clean();
    Ok(())
}

fn check(bench: &Bench, turn: usize, output: Option<u64>) -> Result<(), String> {
    let expected = output.map_or(Outcome::Fault(code::F_TRANSLATION), Outcome::Done);
    let reachable: Vec<_> = bench.smmu.reachable(read()).into_iter().collect();
    if reachable == [expected] {
        Ok(())
    } else {
        Err(format!("turn {turn}: {reachable:x?} instead of {expected:x?}"))
    }
}

#[test]
fn correct_invalidation_leaves_nothing_stale() {
    for seed in 0..10 {
        assert_eq!(run(seed, Way::ByIpa), Ok(()), "seed {seed}");
        assert_eq!(run(seed, Way::Whole), Ok(()), "seed {seed}");
    }
}

#[test]
fn stage_2_alone_or_without_order_is_not_enough() {
    for way in [Way::IpaOnly, Way::ByIpaUnordered] {
        let found = (0..20).find_map(|seed| run(seed, way).err());
        assert!(found.is_some(), "{way:?}");
        println!("{way:?}: {found:?}");
    }
}
