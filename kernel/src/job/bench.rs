//! The benchmark: what whole operations cost, in instructions, as a user of the common traits calls them.
//!
//! It runs where the clock ticks once per instruction (QEMU with `-icount shift=0`), says so if it does not, and prints
//! one `[data]` line per operation with the median of many repetitions; what reading the clock costs is taken off.

#![expect(unsafe_code, reason = "maps memory by its address, and times a loop of known length")]

use crate::machine::Machine;
use crate::report::Report;
use crate::report::words;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::arch::asm;
use portcullis_hal::{Arc, Attributes, Gather, Iova, IovaRange, MapError, Mapping, PhysAddr, PhysRange};
use portcullis_iommu::{Device, Domain, DomainSpec, PagingSpec, Unit, UnitStats};

const PAGE: u64 = 4096;
const TWO_MIB: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

/// Where the mappings begin: far from what devices need to have mapped.
const IOVA: u64 = 256 * GIB;
/// The memory behind them. Nobody writes to it: no device does DMA in this job.
const MEMORY: u64 = 2 * GIB;

/// Repetitions of operations on few entries, on a table, and on many tables.
const MANY: usize = 1001;
const SOME: usize = 101;
const FEW: usize = 5;

pub(super) fn run(machine: &Machine, report: &mut Report) {
    report.section("Benchmark");
    let Some(rig) = machine.edus.first() else {
        report.fail("bench.device", format_args!("no edu device"));
        return;
    };
    let overhead = time_of_nothing();
    if !report.check("bench.clock", one_tick_per_instruction(overhead)) {
        return;
    }
    let bench = match Bench::new(machine, &rig.device, overhead) {
        Ok(bench) => bench,
        Err(reason) => return report.fail("bench.domain", format_args!("{reason}")),
    };
    let outcome = bench.mappings(report);
    report.check("bench.mappings", outcome);
    let outcome = bench.attachments(report);
    report.check("bench.attachments", outcome);
}

/// The clock, as it is: what the kernel's own makes of it takes a varying number of instructions.
fn clock() -> u64 {
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

/// The ticks that an operation takes, and those that the clock does.
fn time<R>(operation: impl FnOnce() -> R) -> (u64, R) {
    let start = clock();
    let result = operation();
    (clock().wrapping_sub(start), result)
}

fn time_of_nothing() -> u64 {
    median((0..SOME).map(|_| time(|| ()).0).collect())
}

/// Times a loop whose instructions can be counted by hand.
fn one_tick_per_instruction(overhead: u64) -> Result<String, String> {
    const ROUNDS: u64 = 10_000;
    const EXPECTED: u64 = 2 * ROUNDS;
    let samples = (0..SOME).map(|_| {
        let (ticks, ()) = time(|| {
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
        });
        ticks.saturating_sub(overhead)
    });
    let ticks = median(samples.collect());
    // The loop's counter has to be loaded too.
    if ticks.abs_diff(EXPECTED) <= 2 {
        Ok(format!("{EXPECTED} instructions are {ticks} ticks, less {overhead} for the clock"))
    } else {
        Err(format!("{EXPECTED} instructions are {ticks} ticks: start QEMU with -icount shift=0,sleep=off"))
    }
}

fn median(mut samples: Vec<u64>) -> u64 {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or(0)
}

/// What the repetitions of one operation cost.
struct Costs {
    instructions: Vec<u64>,
    doorbells: Vec<u64>,
    invalidations: Vec<u64>,
}

impl Costs {
    fn new(rounds: usize) -> Self {
        let samples = || Vec::with_capacity(rounds);
        Self { instructions: samples(), doorbells: samples(), invalidations: samples() }
    }

    fn add(&mut self, instructions: u64, before: &UnitStats, after: &UnitStats) {
        self.instructions.push(instructions);
        self.doorbells.push(after.doorbells - before.doorbells);
        self.invalidations.push(after.invalidations - before.invalidations);
    }

    fn print(self, report: &mut Report, name: &str) {
        let (instructions, doorbells, invalidations) =
            (median(self.instructions), median(self.doorbells), median(self.invalidations));
        report.data(
            &format!("bench.{name}"),
            format_args!("instructions={instructions} doorbells={doorbells} invalidations={invalidations}"),
        );
    }
}

/// A domain with a device attached to it.
struct Bench<'a> {
    machine: &'a Machine,
    device: &'a Device,
    unit: Arc<dyn Unit>,
    domain: Arc<dyn Domain>,
    overhead: u64,
}

impl<'a> Bench<'a> {
    fn new(machine: &'a Machine, device: &'a Device, overhead: u64) -> Result<Self, String> {
        let unit = machine.iommu.unit(device.unit()).ok_or("no unit")?;
        let domain =
            machine.iommu.new_domain(device, &DomainSpec::Paging(PagingSpec::default())).map_err(words)?;
        Ok(Self { machine, device, unit, domain, overhead })
    }

    fn time<R>(&self, operation: impl FnOnce() -> R) -> (u64, R) {
        let (ticks, result) = time(operation);
        (ticks.saturating_sub(self.overhead), result)
    }

    fn mappings(&self, report: &mut Report) -> Result<String, String> {
        self.attach()?;
        // A page between the one measured and the end of its table keeps that table in use.
        let neighbour = [mapping(0, PAGE, MEMORY)];
        self.map(&neighbour).map_err(words)?;
        self.pair(report, "page", MANY, &[mapping(PAGE, PAGE, MEMORY)])?;
        self.pair(report, "leaf-2m", MANY, &[mapping(GIB, TWO_MIB, MEMORY)])?;
        // Memory that begins a page too late leaves only small pages.
        self.pair(report, "pages-2m", SOME, &[mapping(2 * GIB, TWO_MIB, MEMORY + PAGE)])?;
        self.pair(report, "pages-1g", FEW, &[mapping(3 * GIB, GIB, MEMORY + PAGE)])?;
        self.pair(report, "scattered-1g", FEW, &scattered(3 * GIB, GIB))?;
        self.detach()?;
        Ok(self.domain.info().stage.map_or_else(String::new, |stage| stage.to_string()))
    }

    /// Measures a map call, and the strict unmap of all it mapped, and sees that both did what they say.
    fn pair(&self, report: &mut Report, name: &str, rounds: usize, list: &[Mapping]) -> Result<(), String> {
        let range = hull(list)?;
        let mut gather = Gather::new();
        let (mut maps, mut unmaps) = (Costs::new(rounds), Costs::new(rounds));
        for _ in 0..rounds {
            let idle = self.unit.stats();
            let (cost, result) = self.time(|| self.map(list));
            let mapped = self.unit.stats();
            result.map_err(|error| format!("{name}: {error}"))?;
            maps.add(cost, &idle, &mapped);
            self.expect(list, Expect::Mapped).map_err(|error| format!("{name}: {error}"))?;
            let (cost, result) = self.time(|| {
                // SAFETY: all mappings here are the benchmark's own.
                let bytes = unsafe { self.domain.unmap(range, &mut gather) };
                (bytes, self.domain.sync(&mut gather))
            });
            unmaps.add(cost, &mapped, &self.unit.stats());
            if !matches!(&result, (Ok(bytes), Ok(_)) if *bytes == range.len()) {
                return Err(format!("{name}: unmap and sync returned {result:?}"));
            }
            self.expect(list, Expect::Unmapped).map_err(|error| format!("{name}: {error}"))?;
        }
        maps.print(report, &format!("{name}.map"));
        unmaps.print(report, &format!("{name}.unmap"));
        Ok(())
    }

    fn map(&self, list: &[Mapping]) -> Result<(), MapError> {
        // SAFETY: the device does DMA only when it is told to, and in this job nobody tells it.
        unsafe { self.domain.map(list) }
    }

    /// Looks at the first and the last page of a list.
    fn expect(&self, list: &[Mapping], expect: Expect) -> Result<(), String> {
        for mapping in [list.first(), list.last()].into_iter().flatten() {
            for offset in [0, mapping.memory.len() - 1] {
                let iova = Iova::new(mapping.iova.get() + offset);
                let wanted = match expect {
                    Expect::Mapped => Some(mapping.memory.start().get() + offset),
                    Expect::Unmapped => None,
                };
                let found = self.domain.iova_to_phys(iova).map(|translated| translated.phys.get());
                if found != wanted {
                    return Err(format!("{iova} leads to {found:x?}, not to {wanted:x?}"));
                }
            }
        }
        Ok(())
    }

    fn attachments(&self, report: &mut Report) -> Result<String, String> {
        let (mut attaches, mut detaches) = (Costs::new(SOME), Costs::new(SOME));
        for _ in 0..SOME {
            let idle = self.unit.stats();
            let (cost, result) = self.time(|| self.machine.iommu.attach(self.device, &self.domain));
            result.map_err(words)?;
            let attached = self.unit.stats();
            attaches.add(cost, &idle, &attached);
            let (cost, result) = self.time(|| self.machine.iommu.detach(self.device));
            result.map_err(words)?;
            detaches.add(cost, &attached, &self.unit.stats());
        }
        attaches.print(report, "attach");
        detaches.print(report, "detach");
        Ok(self.device.id().to_string())
    }

    fn attach(&self) -> Result<(), String> {
        self.machine.iommu.attach(self.device, &self.domain).map(drop).map_err(words)
    }

    fn detach(&self) -> Result<(), String> {
        self.machine.iommu.detach(self.device).map_err(words)
    }
}

/// How a list should be found in the domain.
#[derive(Clone, Copy)]
enum Expect {
    Mapped,
    Unmapped,
}

/// All addresses from the first to the last of a list.
fn hull(list: &[Mapping]) -> Result<IovaRange, String> {
    let range = |mapping: &Mapping| IovaRange::new(mapping.iova, mapping.memory.len()).map_err(words);
    let (first, last) = (list.first().ok_or("empty list")?, list.last().ok_or("empty list")?);
    Ok(range(first)?.hull(&range(last)?))
}

/// A piece at `offset` from where the mappings begin.
fn mapping(offset: u64, len: u64, memory: u64) -> Mapping {
    let memory = PhysAddr::new(memory);
    let range = PhysRange::new(memory, len).unwrap_or(PhysRange::block(memory, PAGE));
    Mapping { iova: Iova::new(IOVA + offset), memory: range, attributes: Attributes::READ_WRITE }
}

/// Pages that follow each other, of which no two neighbours are neighbours in memory.
fn scattered(offset: u64, len: u64) -> Vec<Mapping> {
    /// Odd, so that it leads to every page of a power of two of them.
    const STRIDE: u64 = 40_503;
    let pages = len / PAGE;
    let piece = |page: u64| mapping(offset + page * PAGE, PAGE, MEMORY + page * STRIDE % pages * PAGE);
    (0..pages).map(piece).collect()
}
