//! The benchmark: what whole operations cost, in instructions, as a user of the common traits calls them.
//!
//! It runs where the clock ticks once per instruction (QEMU with `-icount shift=0`), says so if it does not, and prints
//! one `[data]` line per operation with the median of many repetitions; what reading the clock costs is taken off.

#![expect(unsafe_code, reason = "reads the clock, and times a loop of known length")]

use crate::machine::{EduRig, Machine};
use crate::memory::KernelHal;
use crate::mm::AddressSpace;
use crate::report::Report;
use crate::report::words;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::arch::asm;
use portcullis_hal::{FrameOrder, Frames, Mm, PAGE_SIZE, PhysAddr, unsize_arc};
use portcullis_iommu::{Feature, Stages};
use portcullis_operations::{Bench, Clock, Cost, ON_PAPER, Rounds, Sharing, median};

const ROUNDS: Rounds = Rounds { many: 1001, some: 101, few: 3 };

pub(super) fn run(machine: &Machine, report: &mut Report) {
    report.section("Benchmark");
    let Some(rig) = machine.edus.first() else {
        report.fail("bench.device", format_args!("no edu device"));
        return;
    };
    let clock = Clock::new(ticks);
    if !report.check("bench.clock", one_tick_per_instruction(&clock)) {
        return;
    }
    let _settled = settle_heap();
    // SAFETY: the engine starts no transfer in this job, and nothing else attaches it.
    let bench = match unsafe { Bench::new(machine.iommu, &rig.device, clock, ROUNDS) } {
        Ok(bench) => bench,
        Err(reason) => return report.fail("bench.domain", format_args!("{reason}")),
    };
    let outcome = bench.mappings(&mut |name, cost| print(report, name, &cost));
    report.check("bench.mappings", outcome);
    let outcome = bench.attachments(&mut |name, cost| print(report, name, &cost));
    report.check("bench.attachments", outcome);
    share(machine, rig, clock, report);
}

/// Measures what shared address spaces cost, as far as the unit has them. PASIDs are permitted on paper: `edu` has none,
/// and the unit's work is the same.
fn share<C: Fn() -> u64>(machine: &Machine, rig: &EduRig, clock: Clock<C>, report: &mut Report) {
    let Some(unit) = machine.iommu.unit(rig.device.unit()) else { return };
    let info = unit.info();
    if !info.stages.contains(Stages::STAGE_1) {
        return report.skip("bench.whole", format_args!("the unit does not walk the CPU's tables"));
    }
    let mm = match AddressSpace::new() {
        Ok(space) => unsize_arc!(space => dyn Mm),
        Err(reason) => return report.fail("bench.whole", format_args!("{reason}")),
    };
    let sharing = match Sharing::new(machine.iommu, &rig.device, mm.clone(), clock, ROUNDS) {
        Ok(sharing) => sharing,
        Err(reason) => return report.fail("bench.whole", format_args!("{reason}")),
    };
    let outcome = sharing.whole(&mut |name, cost| print(report, name, &cost));
    report.check("bench.whole", outcome);
    if info.pasid_bits == 0 {
        return report.skip("bench.pasid", format_args!("the unit has no PASIDs"));
    }
    let enabled = machine.iommu.enable_feature(&rig.device, &ON_PAPER, Feature::Sva, &mm.root());
    let outcome = enabled
        .map_err(words)
        .and_then(|()| sharing.with_pasid(&mut |name, cost| print(report, name, &cost)));
    report.check("bench.pasid", outcome);
}

/// Leaves the heap with a free frame whose neighbour is held, so that a table is taken and given back by the shortest
/// way whatever was allocated before.
fn settle_heap() -> Vec<Frames<KernelHal>> {
    // Of three frames in a row two are neighbours.
    let mut held: Vec<_> =
        (0..3).filter_map(|_| Frames::zeroed(&KernelHal, FrameOrder::SINGLE).ok()).collect();
    let neighbour = |frames: &Frames<KernelHal>| PhysAddr::new(frames.phys().get() ^ PAGE_SIZE);
    let spare = held.iter().position(|frames| held.iter().any(|other| other.phys() == neighbour(frames)));
    spare.map(|spare| held.swap_remove(spare));
    held
}

fn print(report: &mut Report, name: &str, cost: &Cost) {
    let Cost { time, events, rounds, unsteady } = cost;
    report.data(
        &format!("bench.{name}"),
        format_args!("instructions={time} {events} rounds={rounds} unsteady={unsteady}"),
    );
}

/// The clock, as it is: what the kernel's own makes of it takes a varying number of instructions.
pub(super) fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        let (low, high): (u64, u64);
        // SAFETY: reads the time-stamp counter, which the kernel may.
        unsafe { asm!("rdtsc", out("rax") low, out("rdx") high, options(nostack, preserves_flags)) };
        high << 32 | low
    }
    #[cfg(target_arch = "aarch64")]
    {
        let ticks: u64;
        // SAFETY: reads the virtual counter, which the kernel may.
        unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) ticks, options(nostack, preserves_flags)) };
        ticks
    }
}

/// Times a loop whose instructions can be counted by hand.
fn one_tick_per_instruction<C: Fn() -> u64>(clock: &Clock<C>) -> Result<String, String> {
    const SAMPLES: usize = 101;
    const ROUNDS: u64 = 10_000;
    const EXPECTED: u64 = 2 * ROUNDS;
    let sample = || {
        let count_down = || {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: counts a register down.
            unsafe {
                asm!("2: dec {0}", "jnz 2b", inout(reg) ROUNDS => _, options(nomem, nostack));
            }
            #[cfg(target_arch = "aarch64")]
            // SAFETY: counts a register down.
            unsafe {
                asm!("2: subs {0}, {0}, #1", "b.ne 2b", inout(reg) ROUNDS => _, options(nomem, nostack));
            }
        };
        clock.time(count_down).0
    };
    let ticks = median((0..SAMPLES).map(|_| sample()).collect());
    // The loop's counter has to be loaded too.
    if ticks.abs_diff(EXPECTED) <= 2 {
        Ok(format!("{EXPECTED} instructions are {ticks} ticks, less {} for the clock", clock.overhead()))
    } else {
        Err(format!("{EXPECTED} instructions are {ticks} ticks: start QEMU with -icount shift=0,sleep=off"))
    }
}
