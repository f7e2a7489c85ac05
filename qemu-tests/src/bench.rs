//! `cargo xtask bench`: instructions per operation, beside those that Linux takes on the same machines, and what a count
//! of instructions hides.
//!
//! The kernel's `job=bench` runs on machines whose clock ticks once per instruction, so the numbers do not depend on
//! the host and come out the same each time, but for what the compiler does. Each machine boots twice, and it is an error
//! if the numbers differ. A third boot is of a kernel that also counts barriers, cleaned cache lines, page tables walked
//! and accesses to the unit's registers; it takes more instructions, which are not looked at. Page requests, which no
//! device of QEMU's makes, come from an endpoint of the harness, in three boots more.
//!
//! On the host, against units that are done at once, the same operations are measured in nanoseconds, and how threads get
//! through the drivers' queues. Bytes of tables are counted there too, bytes of code in the kernel. All is printed;
//! `bench.json` and `bench.svg` in the build directory's `bench/` hold the same for programs and for people.

mod code;
mod cost;
mod faults;
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
/// How operations with PASIDs are measured.
const PASIDS: &str = "  PASIDs are permitted in the unit's tables, to a device that knows nothing of it; page requests are those of an\n  \
     endpoint that the harness makes. Without instructions: QEMU's unit has neither.";
/// What makes a machine count instructions: one nanosecond of its time for each, whether it sleeps or not. One CPU is
/// enough, and the last word counts.
const COUNTING: [&str; 4] = ["-icount", "shift=0,sleep=off", "-smp", "1"];

/// An operation as measured.
#[derive(Clone, Copy, Debug)]
struct Row {
    operation: &'static Operation,
    /// In QEMU, if its unit has what that takes.
    guest: Option<Guest>,
    /// The time that it takes on the host.
    nanoseconds: Option<u64>,
    /// What Linux takes on such a machine, where that was measured.
    linux: Option<u64>,
}

/// What an operation takes in QEMU.
#[derive(Clone, Copy, Debug)]
struct Guest {
    cost: Cost,
    /// From the kernel that counts.
    counts: Counts,
}

impl Row {
    fn instructions(&self) -> Option<u64> {
        self.guest.map(|guest| guest.cost.instructions)
    }

    /// The most that the project allows itself.
    fn goal(&self) -> Option<u64> {
        self.linux.map(|linux| linux / self.operation.share)
    }

    fn reached(&self) -> Option<bool> {
        self.goal().zip(self.instructions()).map(|(goal, instructions)| instructions <= goal)
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
    // What differs with a device tree of our own is the way to the registers, and no operation but a notification has one.
    for profile in machines.into_iter().flatten().filter(|profile| profile.device_tree.is_none()) {
        ui::say(&format!("measuring on {}", profile.name));
        let counting = counting.get(&profile.arch).context("no counting kernel")?;
        all.push(measure(&lab, profile, counting, &host)?);
    }
    for measured in &all {
        println!("\n{}", paint(Style::Bold, &format!("{}: {}", measured.machine, measured.about)));
        print!("{}", ui::table(&table(measured)));
        if measured.rows.iter().any(|row| row.operation.has_pasids()) {
            println!("{}", paint(Style::Dim, PASIDS));
        }
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
        ("bench.svg", plot::document(&all, &code)),
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
    let run = |kernel: &Path, name: &str| -> Result<Costs> {
        let mut costs = costs(&boot(lab, profile, kernel, name)?, &profile.name)?;
        costs.extend(faults::measure(lab, profile, kernel, name)?);
        Ok(costs)
    };
    let (first, again) = (run(&shipped, "bench")?, run(&shipped, "bench-again")?);
    let counted = run(counting, "bench-counting")?;
    let mut measured = Measured {
        machine: profile.name.clone(),
        about: profile.about.clone(),
        rows: vec![],
        problems: vec![],
        memory: host.memory(&profile.name),
    };
    for operation in &linux::OPERATIONS {
        let find = |costs: &Costs| costs.get(operation.key).copied();
        let mut guest = None;
        if let (Some(cost), Some(again), Some(counted)) = (find(&first), find(&again), find(&counted)) {
            let counts =
                counted.counts.with_context(|| format!("{}: the kernel does not count", profile.name))?;
            let found = guest.insert(Guest { cost, counts });
            let problems = rules::problems(operation, found, &again, &counted, Completion::on(profile));
            measured.problems.extend(problems.iter().map(|problem| format!("{}: {problem}", profile.name)));
        }
        let nanoseconds = host.nanoseconds(&profile.name, operation.key);
        if guest.is_some() || nanoseconds.is_some() {
            let linux = operation.linux_on(&profile.name);
            measured.rows.push(Row { operation, guest, nanoseconds, linux });
        }
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

/// What operations cost, by their keys.
type Costs = HashMap<&'static str, Cost>;

/// What the report says of the operations that are counted on this machine, all of them.
fn costs(report: &Report, machine: &str) -> Result<Costs> {
    let cost = |operation: &'static Operation| {
        let key = format!("bench.{}", operation.key);
        let value = report.values(&key).next().with_context(|| format!("{machine}: no {key}"))?;
        let cost = Cost::parse(value).with_context(|| format!("{machine}: {key} is {value:?}"))?;
        Ok((operation.key, cost))
    };
    linux::OPERATIONS.iter().filter(|operation| operation.is_counted_on(machine)).map(cost).collect()
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
        let of_guest = |value: fn(&Guest) -> u64| or_dash(row.guest.as_ref().map(value).map(grouped));
        let share = row.linux.zip(row.instructions());
        rows.push(vec![
            row.operation.name.to_owned(),
            of_guest(|guest| guest.cost.instructions),
            or_dash(row.linux.map(grouped)),
            or_dash(share.map(|(linux, instructions)| ratio(instructions, linux))),
            or_dash(row.goal().map(grouped)),
            verdict_of(row.reached()),
            of_guest(|guest| guest.cost.invalidations),
            of_guest(|guest| guest.cost.doorbells),
            of_guest(|guest| guest.counts.polls),
            of_guest(|guest| guest.counts.reads),
            of_guest(|guest| guest.counts.barriers),
            of_guest(|guest| guest.counts.cleans),
            of_guest(|guest| guest.counts.tables),
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
        let row = |operation: &'static Operation| Row {
            operation,
            guest: costs.get(operation.key).map(|cost| Guest { cost: *cost, counts: cost.counts.unwrap() }),
            nanoseconds: Some(7),
            linux: operation.linux_on(machine),
        };
        linux::OPERATIONS.iter().map(row).collect()
    }

    #[test]
    fn every_operation_is_read_and_held_against_linux() {
        let rows = rows("x86_64-first");
        let Guest { cost, .. } = rows[0].guest.unwrap();
        assert_eq!((cost.instructions, cost.doorbells, cost.invalidations), (190, 1, 2));
        assert_eq!((rows[0].linux, rows[0].goal(), rows[0].reached()), (Some(763), Some(190), Some(true)));
    }

    #[test]
    fn operations_are_counted_where_the_unit_has_what_they_take() {
        let counted = |machine: &str| rows(machine).iter().filter(|row| row.guest.is_some()).count();
        let all = linux::OPERATIONS.len();
        assert_eq!(["x86_64-first", "aarch64", "x86_64-second"].map(counted), [all - 2, all - 6, all - 10]);
        let other = linux::OPERATIONS.iter().filter(|row| row.is_counted_with_endpoints_on("x86_64-first"));
        assert_eq!(other.count(), 2);
    }

    #[test]
    fn a_missing_or_unreadable_operation_is_an_error() {
        let mut some = lines();
        some.retain(|line| !line.contains("bench.detach "));
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
        let (p50_ns, p99_ns, p999_ns) = (4, 3, 2);
        let sample = throughput::Sample {
            threads: 8,
            per_second: 7,
            retries_ppm: 6,
            doorbells_ppm: 5,
            p50_ns,
            p99_ns,
            p999_ns,
        };
        let queue = throughput::Throughput { queue: "a queue", samples: vec![sample] };
        let code = Code { arch: "aarch64".to_owned(), bytes: BTreeMap::from([("vtd".to_owned(), 9)]) };
        let json =
            json::document("QEMU", std::slice::from_ref(&measured), std::slice::from_ref(&code), &[queue]);
        let svg = plot::document(std::slice::from_ref(&measured), std::slice::from_ref(&code));
        assert!(json.contains(r#""about": "a \"quoted\" <machine>""#));
        assert!(json.contains(r#""queue": "a queue""#));
        assert!(json.contains(r#"{ "arch": "aarch64", "crate": "vtd", "bytes": 9 }"#));
        assert!(json.contains(r#"{ "of": "domain", "tables": 4096, "heap": 8 }"#));
        assert!(json.contains(r#""threads": 8, "per_second": 7, "retries_ppm": 6, "doorbells_ppm": 5, "p50_ns": 4, "p99_ns": 3,"#));
        assert!(svg.contains("&lt;machine&gt;"));
        // The bytes of its domain's tables, and those of its driver's code.
        assert!([">a domain<", ">4 096<", ">vtd<", ">9<"].iter().all(|cell| svg.contains(cell)), "{svg}");
        for operation in &linux::OPERATIONS {
            assert!(json.contains(operation.key), "{}", operation.key);
            assert!(svg.contains(operation.name), "{}", operation.name);
        }
        assert_eq!(json.matches('{').count(), json.matches('}').count());
    }
}
