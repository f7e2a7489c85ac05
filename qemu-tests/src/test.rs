//! `cargo xtask test`: everything, on the host and in QEMU.

use std::fs;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::build::KERNEL;
use crate::differential::{self, Amount};
use crate::host_tests::{self, Ended, Suite};
use crate::no_panic::PROBE;
use crate::pasid;
use crate::profile::{Arch, Profile, Profiles};
use crate::protocol::{Counts, Status};
use crate::run::Lab;
use crate::script::{self, Script};
use crate::setup;
use crate::ui::{self, Style, paint};
use crate::workspace::Workspace;

/// Packages that exist for bare metal only.
pub const BARE_METAL_ONLY: [&str; 3] = [KERNEL, "portcullis-arch", PROBE];
/// QEMUs at the same time. Each has two CPUs to emulate already.
const AT_ONCE: usize = 2;
/// A limit for all host tests together, building included.
const HOST_LIMIT: Duration = Duration::from_secs(1800);

/// One test in QEMU.
enum Scenario<'a> {
    Differential { machine: &'static str, profiles: &'a Profiles, amount: Amount },
    Job { profile: &'a Profile, job: String },
    Pasid { profile: &'a Profile, test: &'static pasid::Test },
    Script { profile: &'a Profile, script: &'a Script },
}

/// How a test in QEMU ended.
struct Finished {
    status: Status,
    remark: String,
    problems: Vec<String>,
}

impl Finished {
    fn new(problems: Vec<String>, remark: String) -> Self {
        let status = if problems.is_empty() { Status::Passed } else { Status::Failed };
        Self { status, remark, problems }
    }
}

impl From<pasid::Outcome> for Finished {
    fn from(outcome: pasid::Outcome) -> Self {
        match outcome {
            pasid::Outcome::Held => Self::new(Vec::new(), String::new()),
            pasid::Outcome::Failed(problem) => Self::new(vec![problem], String::new()),
            pasid::Outcome::Skipped(remark) => Self { status: Status::Skipped, remark, problems: Vec::new() },
        }
    }
}

impl Scenario<'_> {
    fn name(&self) -> String {
        match self {
            Self::Differential { machine, .. } => format!("differential/{machine}"),
            Self::Job { profile, job } => format!("qemu/{}/{job}", profile.name),
            Self::Pasid { profile, test } => format!("pasid/{}@{}", test.name, profile.name),
            Self::Script { profile, script } => format!("script/{}@{}", script.name, profile.name),
        }
    }

    /// The architecture of the kernel that it boots, if any.
    fn arch(&self) -> Option<Arch> {
        match self {
            Self::Differential { .. } => None,
            Self::Job { profile, .. } | Self::Pasid { profile, .. } | Self::Script { profile, .. } => {
                Some(profile.arch)
            }
        }
    }

    /// Where its console is kept, or what QEMU said, as [`Lab::job`], [`pasid::Test::run`], [`Script::play`] and [`differential`]
    /// name it.
    fn log(&self) -> String {
        match self {
            Self::Differential { machine, .. } => differential::log(machine),
            Self::Job { profile, job } => format!("{}-{job}.log", profile.name),
            Self::Pasid { profile, test } => format!("{}.log", test.log(profile)),
            Self::Script { profile, script } => format!("script-{}-{}.log", script.name, profile.name),
        }
    }

    fn run(&self, lab: &Lab) -> Finished {
        let result = match self {
            Self::Differential { machine, profiles, amount } => {
                differential::run(machine, &lab.workspace, &lab.tools, profiles, *amount)
                    .map(|(problems, remark)| Finished::new(problems, remark))
            }
            Self::Job { profile, job } => lab.job(profile, job, |_| {}).map(|judged| {
                let remark =
                    format!("{} checks", judged.count(Status::Passed) + judged.count(Status::Failed));
                Finished::new(judged.problems, remark)
            }),
            Self::Pasid { profile, test } => test.run(lab, profile).map(Finished::from),
            Self::Script { profile, script } => {
                script.play(lab, profile).map(|problems| Finished::new(problems, String::new()))
            }
        };
        result.unwrap_or_else(|error| Finished::new(vec![format!("{error:#}")], String::new()))
    }
}

/// Runs what matches. Says whether everything passed.
pub fn command(workspace: &Workspace, filter: Option<&str>, amount: Amount) -> Result<bool> {
    let tools = setup::ensure(workspace)?;
    let profiles = Profiles::load(workspace)?;
    let scripts = script::load_all(workspace)?;
    let wanted = |name: &str| filter.is_none_or(|filter| name.contains(filter));
    let mut scenarios = scenarios(workspace, &profiles, &scripts, amount)?;
    scenarios.retain(|scenario| wanted(&scenario.name()));
    let mut counts = Counts::default();
    if wants_host(filter) {
        add(&mut counts, host(workspace, filter.filter(|filter| !"host/".starts_with(filter)))?);
    }
    if !scenarios.is_empty() {
        add(&mut counts, qemu(workspace, &tools, scenarios)?);
    }
    if counts == Counts::default() {
        println!("nothing was tested");
    }
    println!("{counts}");
    Ok(counts.failed == 0 && counts.passed > 0)
}

fn add(sum: &mut Counts, more: Counts) {
    sum.passed += more.passed;
    sum.failed += more.failed;
}

/// Host tests are left out when the filter can only mean others.
fn wants_host(filter: Option<&str>) -> bool {
    let others = ["differential", "pasid/", "qemu/", "script/"];
    filter.is_none_or(|filter| !others.iter().any(|other| filter.starts_with(other)))
}

/// The differential tests, every machine's main job, every further job that has a list of checks, the tests with PASIDs,
/// and every script.
fn scenarios<'a>(
    workspace: &Workspace,
    profiles: &'a Profiles,
    scripts: &'a [Script],
    amount: Amount,
) -> Result<Vec<Scenario<'a>>> {
    let mut scenarios: Vec<Scenario<'_>> = differential::machines()
        .map(|machine| Scenario::Differential { machine, profiles, amount })
        .collect();
    let mut lists: Vec<String> = fs::read_dir(workspace.harness_file("expect"))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    lists.sort();
    for profile in profiles.all() {
        scenarios.push(Scenario::Job { profile, job: "main".to_owned() });
        for list in &lists {
            let job = list
                .strip_suffix(".txt")
                .and_then(|name| name.strip_prefix(&profile.name)?.strip_prefix('.'));
            scenarios.extend(job.map(|job| Scenario::Job { profile, job: job.to_owned() }));
        }
    }
    for (profile, test) in pasid::tests(profiles)? {
        scenarios.push(Scenario::Pasid { profile, test });
    }
    for script in scripts {
        let profiles = script.profiles(profiles)?;
        scenarios.extend(profiles.into_iter().map(|profile| Scenario::Script { profile, script }));
    }
    Ok(scenarios)
}

fn line(status: Status, name: &str, remark: &str, time: Duration) {
    let tag = match status {
        Status::Passed => paint(Style::Good, "ok  "),
        Status::Failed => paint(Style::Bad, "FAIL"),
        Status::Skipped => paint(Style::Warn, "skip"),
    };
    let remark = if remark.is_empty() { String::new() } else { format!(": {remark}") };
    println!("{tag} {name}{remark} ({})", ui::seconds(time));
}

fn host(workspace: &Workspace, filter: Option<&str>) -> Result<Counts> {
    ui::say("host tests");
    let mut arguments = vec!["--workspace", "--no-fail-fast"];
    for package in BARE_METAL_ONLY {
        arguments.extend(["--exclude", package]);
    }
    if let Some(filter) = filter {
        arguments.extend(["--", filter.strip_prefix("host/").unwrap_or(filter)]);
    }
    let bar = ui::spinner("building and running host tests");
    let run = host_tests::run(workspace, &arguments, "host-tests.log", HOST_LIMIT, |suite| {
        bar.suspend(|| show_suite(suite));
    })?;
    bar.finish_and_clear();
    let coverage = workspace.coverage_dir();
    if coverage.is_dir() {
        println!("     what random operations did is counted in {}", coverage.display());
    }
    let mut counts = Counts::default();
    for suite in &run.suites {
        let (passed, failed) = suite.counted();
        add(&mut counts, Counts { passed, failed });
    }
    if run.ended != Ended::Success {
        // A build that failed ran nothing, and must not look like success.
        counts.failed = counts.failed.max(1);
        let why = if run.ended == Ended::TimedOut { "took too long" } else { "failed" };
        println!("{} cargo test {why}:\n{}", paint(Style::Bad, "FAIL"), failures(&run.output));
    }
    Ok(counts)
}

fn show_suite(suite: &Suite) {
    let (passed, failed) = suite.counted();
    if passed + failed == 0 {
        return;
    }
    let status = if failed == 0 { Status::Passed } else { Status::Failed };
    let remark = if suite.counts.is_some() {
        Counts { passed, failed }.to_string()
    } else {
        "ended without a result".to_owned()
    };
    line(status, &format!("host/{}", suite.name), &remark, suite.time);
}

/// The part of cargo's output that tells what failed.
fn failures(output: &str) -> String {
    let noise =
        ["Compiling ", "Running ", "Finished ", "Downloaded ", "Downloading ", "Doc-tests ", "Checking "];
    let interesting = output.lines().filter(|line| {
        let line = line.trim_start();
        let passed = line.starts_with("test ") && (line.ends_with("... ok") || line.contains("... ignored"));
        let summary = line.starts_with("running ") || line.starts_with("test result: ok");
        !line.is_empty() && !passed && !summary && !noise.iter().any(|noise| line.starts_with(noise))
    });
    interesting.map(|line| format!("    {line}\n")).collect()
}

fn qemu(workspace: &Workspace, tools: &setup::Tools, mut scenarios: Vec<Scenario<'_>>) -> Result<Counts> {
    let mut lab = Lab::with_tools(workspace, tools, &[])?;
    let mut counts = Counts::default();
    // An architecture without a kernel fails all its tests, and not those of the other.
    for arch in Arch::ALL {
        if !scenarios.iter().any(|scenario| scenario.arch() == Some(arch)) {
            continue;
        }
        let Err(error) = lab.build(arch) else { continue };
        println!("{} {error:#}", paint(Style::Bad, "FAIL"));
        scenarios.retain(|scenario| {
            if scenario.arch() == Some(arch) {
                line(Status::Failed, &scenario.name(), "not run", Duration::ZERO);
                counts.failed += 1;
            }
            scenario.arch() != Some(arch)
        });
    }
    ui::say(&format!("{} tests in {}", scenarios.len(), tools.describe()));
    let waiting = Mutex::new(scenarios.iter());
    let counts = Mutex::new(counts);
    let take = || waiting.lock().ok().and_then(|mut waiting| waiting.next());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(scenario) = take() {
                    let started = Instant::now();
                    let Finished { status, remark, problems } = scenario.run(&lab);
                    // Held while printing, so that a test's lines stay together.
                    let Ok(mut counts) = counts.lock() else { return };
                    line(status, &scenario.name(), &remark, started.elapsed());
                    match status {
                        Status::Passed => counts.passed += 1,
                        Status::Failed => counts.failed += 1,
                        Status::Skipped => {}
                    }
                    for problem in &problems {
                        println!("       {problem}");
                    }
                    if status == Status::Failed {
                        println!("       console: {}", workspace.log_dir().join(scenario.log()).display());
                    }
                }
            });
        }
    });
    Ok(counts.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_filters_that_name_another_kind_leave_out_the_host() {
        assert!(wants_host(None));
        assert!(wants_host(Some("disk")));
        assert!(wants_host(Some("host/")));
        assert!(!wants_host(Some("qemu/x86_64")));
        assert!(!wants_host(Some("pasid/ats")));
        assert!(!wants_host(Some("script/")));
        assert!(!wants_host(Some("differential")));
    }

    #[test]
    fn only_what_failed_is_shown_of_cargos_output() {
        let output =
            "   Compiling a v0.1.0\ntest x ... ok\ntest y ... FAILED\n\n---- y stdout ----\nassertion\n";
        assert_eq!(failures(output), "    test y ... FAILED\n    ---- y stdout ----\n    assertion\n");
    }
}
