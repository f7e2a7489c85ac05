//! `cargo xtask bench`: instructions per operation, beside those that Linux takes on the same machines, and what a count
//! of instructions hides.
//!
//! The kernel's `job=bench` runs on machines whose clock ticks once per instruction, so the numbers do not depend on
//! the host and come out the same each time, but for what the compiler does. Each machine boots twice, and it is an error
//! if the numbers differ. A third boot is of a kernel that also counts barriers, cleaned cache lines, page tables walked
//! and accesses to the unit's registers; it takes more instructions, which are not looked at.
//!
//! On the host, against units that are done at once, the same operations are measured in nanoseconds, and how threads get
//! through the drivers' queues. Bytes of tables are counted there too, bytes of code in the kernel. All is printed;
//! `bench.json` and `bench.svg` in the build directory's `bench/` hold the same for programs and for people.

mod code;
mod cost;
mod host;
mod json;
mod linux;
mod plot;
mod rules;
mod throughput;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::build::{self, Variant};
use crate::console;
use crate::profile::{Arch, Boot, Console, Iommu, Profile};
use crate::protocol::{Event, Report};
use crate::run::Lab;
use crate::session::{Input, Session};
use crate::ui::{self, Style, paint};
use crate::verdict::{self, Expected};
use crate::workspace::Workspace;
use cost::{Cost, Counts};
use host::{Host, Memory};
use linux::Operation;
use rules::Completion;

/// How long one machine may take.
const TIME_LIMIT: Duration = Duration::from_secs(300);
/// What makes a machine count instructions: one nanosecond of its time for each, whether it sleeps or not. One CPU is
/// enough, and the last word counts.
const COUNTING: [&str; 4] = ["-icount", "shift=0,sleep=off", "-smp", "1"];

/// An operation as measured.
#[derive(Clone, Copy, Debug)]
struct Row {
    operation: &'static Operation,
    cost: Cost,
    /// From the kernel that counts.
    counts: Counts,
    /// The time that it takes on the host.
    nanoseconds: Option<u64>,
    /// What Linux takes on such a machine, where that was measured.
    linux: Option<u64>,
}

impl Row {
    /// The most that the project allows itself.
    fn goal(&self) -> Option<u64> {
        self.linux.map(|linux| linux / self.operation.share)
    }

    fn reached(&self) -> Option<bool> {
        self.goal().map(|goal| self.cost.instructions <= goal)
    }
}

/// One machine's results.
#[derive(Clone, Debug)]
struct Measured {
    machine: String,
    about: String,
    rows: Vec<Row>,
    /// What does not hold.
    problems: Vec<String>,
    /// What tables take.
    memory: Vec<Memory>,
}

/// Measures on one architecture's machines or on all. Says whether all rules hold; a goal that is missed is a
/// result like any other.
pub fn command(workspace: &Workspace, arch: Option<Arch>) -> Result<bool> {
    let arches = arch.map_or_else(|| Arch::ALL.to_vec(), |arch| vec![arch]);
    let lab = Lab::prepare(workspace, &arches)?;
    let counting =
        |arch: &Arch| build::kernel(workspace, *arch, Variant::Counting).map(|kernel| (*arch, kernel));
    let counting = arches.iter().map(counting).collect::<Result<HashMap<_, _>>>()?;
    let code =
        arches.iter().map(|arch| code::measure(*arch, &lab.kernel(*arch))).collect::<Result<Vec<_>>>()?;
    let host = host::measure(workspace)?;
    let mut all = Vec::new();
    let machines = [Iommu::Native, Iommu::Virtio].map(|iommu| lab.profiles.select(arch, iommu));
    for profile in machines.into_iter().flatten() {
        ui::say(&format!("measuring on {}", profile.name));
        let counting = counting.get(&profile.arch).context("no counting kernel")?;
        all.push(measure(&lab, profile, counting, &host)?);
    }
    for measured in &all {
        println!("\n{}", paint(Style::Bold, &format!("{}: {}", measured.machine, measured.about)));
        print!("{}", ui::table(&table(measured)));
        if !measured.memory.is_empty() {
            print!("\n{}", ui::table(&host::table(&measured.memory)));
        }
    }
    println!("\n{}", paint(Style::Bold, "The drivers in the kernel"));
    print!("{}", ui::table(&code::table(&code)));
    let queues = throughput::measure(workspace)?;
    for queue in &queues {
        println!(
            "\n{}",
            paint(Style::Bold, &format!("{}: threads against a unit that is done at once", queue.queue))
        );
        print!("{}", ui::table(&queue.table()));
        for (goal, reached) in queue.goals() {
            println!("  {goal}: {}", verdict_of(reached));
        }
    }
    let directory = workspace.target().join("bench");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    for (name, text) in [
        ("bench.json", json::document(&lab.tools.describe(), &all, &code, &queues)),
        ("bench.svg", plot::document(&all)),
    ] {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let goals: Vec<bool> = all.iter().flat_map(|measured| &measured.rows).filter_map(Row::reached).collect();
    let reached = goals.iter().filter(|reached| **reached).count();
    println!("\n{reached} of {} goals reached. {}", goals.len(), lab.tools.describe());
    println!("{}", paint(Style::Dim, &format!("Written to {}.", directory.display())));
    let problems: Vec<_> = all.iter().flat_map(|measured| &measured.problems).collect();
    for problem in &problems {
        println!("{}", paint(Style::Bad, &format!("does not hold: {problem}")));
    }
    Ok(problems.is_empty())
}

/// Runs the benchmark on one machine: twice as it ships, and once counting.
fn measure(lab: &Lab, profile: &Profile, counting: &Path, host: &Host) -> Result<Measured> {
    let shipped = lab.kernel(profile.arch);
    let first = costs(&boot(lab, profile, &shipped, "bench")?, &profile.name)?;
    let again = costs(&boot(lab, profile, &shipped, "bench-again")?, &profile.name)?;
    let counted = costs(&boot(lab, profile, counting, "bench-counting")?, &profile.name)?;
    let mut measured = Measured {
        machine: profile.name.clone(),
        about: profile.about.clone(),
        rows: vec![],
        problems: vec![],
        memory: host.memory(&profile.name),
    };
    for (((operation, cost), again), counted) in linux::OPERATIONS.iter().zip(first).zip(again).zip(counted) {
        let counts =
            counted.counts.with_context(|| format!("{}: the kernel does not count", profile.name))?;
        let nanoseconds = host.nanoseconds(&profile.name, operation.key);
        let row = Row { operation, cost, counts, nanoseconds, linux: operation.linux_on(&profile.name) };
        let problems = rules::problems(&row, &again, &counted, Completion::on(profile));
        measured.problems.extend(problems.iter().map(|problem| format!("{}: {problem}", profile.name)));
        measured.rows.push(row);
    }
    Ok(measured)
}

/// Runs a kernel's benchmark on one machine.
fn boot(lab: &Lab, profile: &Profile, kernel: &Path, name: &str) -> Result<Report> {
    let name = format!("{}-{name}", profile.name);
    let disk = lab.image.copy(&name)?;
    let qemu = lab.tools.qemu(profile.arch);
    let boot = Boot { console: Console::Piped, kernel, disk: disk.path(), job: "bench", preload: None };
    let mut command = lab.profiles.command(profile, qemu, boot);
    command.args(COUNTING);
    let log = lab.workspace.log_dir().join(format!("{name}.log"));
    let show_failure = |event: &Event| {
        if let Event::Panic(_) = event {
            console::show(event);
        }
    };
    let outcome = Session::start(command, Input::Closed, &log)?.follow(TIME_LIMIT, show_failure)?;
    let problems = verdict::problems(&outcome, &[], &Expected::default(), profile.arch.success_status());
    if !problems.is_empty() {
        bail!("{}: {}; console: {}", profile.name, problems.join("; "), outcome.log.display());
    }
    Ok(outcome.report)
}

/// What the report says of the operations, all of them in their order.
fn costs(report: &Report, machine: &str) -> Result<Vec<Cost>> {
    let cost = |operation: &Operation| {
        let key = format!("bench.{}", operation.key);
        let value = report.values(&key).next().with_context(|| format!("{machine}: no {key}"))?;
        Cost::parse(value).with_context(|| format!("{machine}: {key} is {value:?}"))
    };
    linux::OPERATIONS.iter().map(cost).collect()
}

fn table(measured: &Measured) -> Vec<Vec<String>> {
    let heading = [
        "operation",
        "instructions",
        "Linux",
        "share",
        "goal",
        "",
        "invalidations",
        "doorbells",
        "polls",
        "reads",
        "barriers",
        "cleans",
        "tables",
        "ns (host)",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for row in &measured.rows {
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        rows.push(vec![
            row.operation.name.to_owned(),
            grouped(row.cost.instructions),
            or_dash(row.linux.map(grouped)),
            or_dash(row.linux.map(|linux| ratio(row.cost.instructions, linux))),
            or_dash(row.goal().map(grouped)),
            verdict_of(row.reached()),
            row.cost.invalidations.to_string(),
            row.cost.doorbells.to_string(),
            row.counts.polls.to_string(),
            row.counts.reads.to_string(),
            grouped(row.counts.barriers),
            grouped(row.counts.cleans),
            grouped(row.counts.tables),
            or_dash(row.nanoseconds.map(grouped)),
        ]);
    }
    rows
}

/// What became of a goal, in words of one length.
fn verdict_of(reached: Option<bool>) -> String {
    match reached {
        Some(true) => paint(Style::Good, "reached"),
        Some(false) => paint(Style::Warn, "missed "),
        None => " ".repeat("reached".len()),
    }
}

/// The share of Linux's instructions.
fn ratio(instructions: u64, linux: u64) -> String {
    format!("{:.0} %", 100.0 * instructions as f64 / linux.max(1) as f64)
}

/// A number with its digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index != 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::code::Code;
    use super::*;

    fn report(lines: &[String]) -> Report {
        let mut report = Report::default();
        for line in lines {
            report.add(&Event::parse(line));
        }
        report
    }

    fn lines() -> Vec<String> {
        let line = |operation: &Operation| {
            let counts = "cleans=0 barriers=0 tables=0 polls=0 reads=0 writes=0";
            format!(
                "[data] bench.{} instructions=190 doorbells=1 invalidations=2 rounds=5 unsteady=0 {counts}",
                operation.key
            )
        };
        linux::OPERATIONS.iter().map(line).collect()
    }

    fn rows(machine: &str) -> Vec<Row> {
        let costs = costs(&report(&lines()), machine).unwrap();
        let row = |(operation, cost): (&'static Operation, Cost)| Row {
            operation,
            cost,
            counts: cost.counts.unwrap(),
            nanoseconds: Some(7),
            linux: operation.linux_on(machine),
        };
        linux::OPERATIONS.iter().zip(costs).map(row).collect()
    }

    #[test]
    fn every_operation_is_read_and_held_against_linux() {
        let rows = rows("x86_64-first");
        assert_eq!(rows.len(), linux::OPERATIONS.len());
        assert_eq!(
            (rows[0].cost.instructions, rows[0].cost.doorbells, rows[0].cost.invalidations),
            (190, 1, 2)
        );
        assert_eq!((rows[0].linux, rows[0].goal(), rows[0].reached()), (Some(763), Some(190), Some(true)));
    }

    #[test]
    fn a_missing_or_unreadable_operation_is_an_error() {
        let mut some = lines();
        some.pop();
        assert!(costs(&report(&some), "aarch64").unwrap_err().to_string().contains("no bench."));
        some.push("[data] bench.detach instructions=few".to_owned());
        assert!(costs(&report(&some), "aarch64").unwrap_err().to_string().contains("few"));
    }

    #[test]
    fn numbers_are_grouped_and_compared() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1 000", "1 234 567"]);
        assert_eq!([ratio(190, 763), ratio(3, 2)], ["25 %", "150 %"]);
    }

    #[test]
    fn documents_name_every_machine_and_operation() {
        let measured = Measured {
            machine: "aarch64".to_owned(),
            about: "a \"quoted\" <machine>".to_owned(),
            rows: rows("aarch64"),
            problems: vec![],
            memory: vec![Memory { of: "domain", about: "a domain", tables: 4096, heap: 8 }],
        };
        let sample = throughput::Sample { threads: 8, per_second: 7, retries_ppm: 6, doorbells_ppm: 5 };
        let queue = throughput::Throughput { queue: "a queue", samples: vec![sample] };
        let code = Code { arch: "aarch64".to_owned(), bytes: BTreeMap::from([("vtd".to_owned(), 9)]) };
        let json = json::document("QEMU", std::slice::from_ref(&measured), &[code], &[queue]);
        let svg = plot::document(std::slice::from_ref(&measured));
        assert!(json.contains(r#""about": "a \"quoted\" <machine>""#));
        assert!(json.contains(r#""queue": "a queue""#));
        assert!(json.contains(r#"{ "arch": "aarch64", "crate": "vtd", "bytes": 9 }"#));
        assert!(json.contains(r#"{ "of": "domain", "tables": 4096, "heap": 8 }"#));
        assert!(json.contains(r#"{ "threads": 8, "per_second": 7, "retries_ppm": 6, "doorbells_ppm": 5 }"#));
        assert!(svg.contains("&lt;machine&gt;"));
        for operation in &linux::OPERATIONS {
            assert!(json.contains(operation.key), "{}", operation.key);
            assert!(svg.contains(operation.name), "{}", operation.name);
        }
        assert_eq!(json.matches('{').count(), json.matches('}').count());
    }
}
