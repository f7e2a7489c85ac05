//! Whether a run held: the kernel's word held against the harness' own knowledge.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::disk::{Image, Written};
use crate::profile::Profile;
use crate::protocol::{Check, Report, Status};
use crate::session::{Exit, Outcome};
use crate::workspace::Workspace;

/// The checks that a job must make: `expect/PROFILE.txt` for the main job, `expect/PROFILE.JOB.txt` for others.
///
/// One name per line; `?name` may be skipped or missing (a device that not every QEMU has), no other check may;
/// `@file` takes in another list of the same folder; `#` begins a remark.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    required: Vec<String>,
    optional: HashSet<String>,
}

impl Expected {
    /// Reads the list for a job. A job without a list requires nothing by name; the main job must have one.
    pub fn load(workspace: &Workspace, profile: &Profile, job: &str) -> Result<Self> {
        let folder = workspace.harness_file("expect");
        let name = if job == "main" {
            format!("{}.txt", profile.name)
        } else {
            format!("{}.{job}.txt", profile.name)
        };
        let mut expected = Self::default();
        if job == "main" || folder.join(&name).exists() {
            expected.read(&folder, &name, 0)?;
        }
        Ok(expected)
    }

    fn read(&mut self, folder: &Path, name: &str, depth: usize) -> Result<()> {
        if depth > 4 {
            bail!("the lists in {} take in each other", folder.display());
        }
        let path = folder.join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or("").trim();
            if let Some(other) = line.strip_prefix('@') {
                self.read(folder, other, depth + 1)?;
            } else {
                self.add(line);
            }
        }
        Ok(())
    }

    /// Whether a job without this check, or that skips it, does not hold.
    pub fn demands(&self, check: &str) -> bool {
        self.required.iter().any(|name| name == check) && !self.optional.contains(check)
    }

    fn is_empty(&self) -> bool {
        self.required.is_empty() && self.optional.is_empty()
    }

    fn add(&mut self, line: &str) {
        match line.strip_prefix('?') {
            Some(name) => {
                self.optional.insert(name.to_owned());
            }
            None if line.is_empty() => {}
            None => self.required.push(line.to_owned()),
        }
    }
}

/// What the harness found out about the kernel's facts, as checks like the kernel's own.
pub fn host_checks(report: &Report, disk: &Path, image: &Image) -> Vec<Check> {
    let check = |name: &str, result: std::result::Result<String, String>| {
        let (status, detail) = match result {
            Ok(detail) => (Status::Passed, detail),
            Err(reason) => (Status::Failed, reason),
        };
        Check { name: name.to_owned(), status, detail }
    };
    let hashes = report.values("disk.sha256").map(|value| {
        let result = if value.eq_ignore_ascii_case(image.sha256()) {
            Ok(format!("SHA-256 {value} is the image's"))
        } else {
            Err(format!("the kernel read {value}, the image is {}", image.sha256()))
        };
        check("harness.disk.hash", result)
    });
    let regions = report.values("disk.written").map(|value| {
        let result = Written::parse(value)
            .ok_or_else(|| format!("unreadable record {value:?}"))
            .and_then(|written| written.check(disk, image));
        check("harness.disk.written", result)
    });
    hashes.chain(regions).collect()
}

/// Everything that is wrong with a run; it held if there is nothing.
pub fn problems(outcome: &Outcome, host: &[Check], expected: &Expected, success_status: i32) -> Vec<String> {
    let report = &outcome.report;
    let mut problems = Vec::new();
    if let Some(text) = &report.panic {
        problems.push(format!("the kernel panicked: {text}"));
    }
    match outcome.exit {
        Exit::Ended(Some(status)) if status == success_status => {}
        Exit::Ended(Some(status)) => {
            problems.push(format!("QEMU ended with status {status}, not {success_status}"))
        }
        Exit::Ended(None) => problems.push("a signal ended QEMU".to_owned()),
        Exit::TimedOut(limit) => problems.push(format!("no end within {} s", limit.as_secs())),
        Exit::Lingered => problems.push("QEMU did not end after the result".to_owned()),
        // Said already.
        Exit::AfterPanic => {}
    }
    // A QEMU that refuses its command line says why and nothing else.
    if report.checks.is_empty() {
        problems.extend(outcome.qemu.iter().map(|line| format!("QEMU says: {line}")));
    }
    for check in report.checks.iter().chain(host).filter(|check| check.status == Status::Failed) {
        problems.push(format!("{}: {}", check.name, check.detail));
    }
    match report.results.as_slice() {
        [] => problems.push("the kernel gave no result".to_owned()),
        [counts] if *counts != report.counts() => {
            problems.push(format!("the kernel counted {counts}, but showed {}", report.counts()));
        }
        [_] => {}
        _ => problems.push("the kernel gave more than one result".to_owned()),
    }
    for line in &report.malformed {
        problems.push(format!("unreadable line {line:?}"));
    }
    problems.extend(missing(report, host, expected));
    problems
}

/// Required checks that were not made, and checks that were skipped without the list's leave.
fn missing(report: &Report, host: &[Check], expected: &Expected) -> Vec<String> {
    let made: HashSet<&str> = report.checks.iter().chain(host).map(|check| check.name.as_str()).collect();
    let names = expected.required.iter().map(String::as_str);
    let absent: Vec<&str> = names.filter(|name| !made.contains(name)).collect();
    let skipped = report.checks.iter().filter(|check| {
        check.status == Status::Skipped && !expected.is_empty() && !expected.optional.contains(&check.name)
    });
    // One line for all: a job that stops early would fill the screen otherwise.
    let absent = (!absent.is_empty()).then(|| format!("not checked: {}", absent.join(", ")));
    let skipped = skipped.map(|check| format!("{} was skipped: {}", check.name, check.detail));
    absent.into_iter().chain(skipped).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::protocol::Event;

    fn outcome(lines: &[&str], exit: Exit) -> Outcome {
        let mut report = Report::default();
        for line in lines {
            report.add(&Event::parse(line));
        }
        Outcome { report, exit, qemu: Vec::new(), time: Duration::ZERO, log: PathBuf::new() }
    }

    fn expected(names: &[&str]) -> Expected {
        let mut expected = Expected::default();
        for name in names {
            expected.add(name);
        }
        expected
    }

    fn judge(lines: &[&str], exit: Exit, names: &[&str]) -> Vec<String> {
        problems(&outcome(lines, exit), &[], &expected(names), 33)
    }

    const GOOD: Exit = Exit::Ended(Some(33));

    #[test]
    fn the_lists_in_the_tree_can_be_read() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf();
        let workspace = Workspace::at(root.clone(), root.join("target"));
        for profile in crate::profile::Profiles::load(&workspace).unwrap().all() {
            let expected = Expected::load(&workspace, profile, "main").unwrap();
            assert!(expected.required.iter().any(|name| name == "harness.disk.hash"), "{}", profile.name);
        }
    }

    #[test]
    fn a_complete_run_holds() {
        let lines = ["[ ok ] a", "[ ok ] b", "[skip] c: no device", "result: 2 passed, 0 failed"];
        assert_eq!(judge(&lines, GOOD, &["a", "b", "?c", "?d"]), [""; 0]);
    }

    #[test]
    fn each_defect_is_found_alone() {
        let result = "result: 1 passed, 0 failed";
        let cases: [(&[&str], Exit, &[&str], &str); 10] = [
            (&["[ ok ] a", result], Exit::Ended(Some(35)), &["a"], "status 35"),
            (&["[ ok ] a", result], Exit::Ended(None), &["a"], "signal"),
            (&["[ ok ] a", result], Exit::Lingered, &["a"], "did not end"),
            (&["[ ok ] a"], GOOD, &["a"], "no result"),
            (&["[ ok ] a", "[ ok ] b", result], GOOD, &["a"], "counted"),
            (&["[ ok ] a", result, result], GOOD, &["a"], "more than one"),
            (&["[ ok ] a", result], GOOD, &["a", "b"], "not checked: b"),
            (&["[ ok ] a", "[skip] b: why", result], GOOD, &["a", "b"], "b was skipped: why"),
            (&["[ ok ] a", "[skip] x: why", result], GOOD, &["a"], "x was skipped: why"),
            (&["[ ok ] a", "[ ok ]b", result], GOOD, &["a"], "unreadable"),
        ];
        for (lines, exit, names, needle) in cases {
            let found = judge(lines, exit, names);
            assert!(found.len() == 1 && found[0].contains(needle), "{needle}: {found:?}");
        }
    }

    #[test]
    fn a_failed_check_a_panic_and_a_time_out_fail_the_run() {
        assert!(!judge(&["[FAIL] a: x", "result: 0 passed, 1 failed"], GOOD, &["a"]).is_empty());
        assert!(!judge(&["panic: x", "result: 0 passed, 0 failed"], GOOD, &[]).is_empty());
        assert!(
            !judge(&["result: 0 passed, 0 failed"], Exit::TimedOut(Duration::from_secs(1)), &[]).is_empty()
        );
    }

    #[test]
    fn a_failed_host_check_fails_the_run_and_a_passed_one_satisfies_the_list() {
        let check = |status| [Check { name: "harness.disk.hash".to_owned(), status, detail: String::new() }];
        let run = outcome(&["result: 0 passed, 0 failed"], GOOD);
        let list = expected(&["harness.disk.hash"]);
        assert_eq!(problems(&run, &check(Status::Passed), &list, 33), [""; 0]);
        assert_eq!(problems(&run, &check(Status::Failed), &list, 33).len(), 1);
        assert_eq!(problems(&run, &[], &list, 33).len(), 1);
    }
}
