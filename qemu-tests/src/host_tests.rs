//! Tests on the host: running `cargo test` and reading what it says.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::process::Group;
use crate::protocol::clean;
use crate::workspace::Workspace;

/// How one test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestStatus {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// It was not run.
    Ignored,
}

/// One test program, or the examples in one crate's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suite {
    /// Its name: the program's, with the source file.
    pub name: String,
    /// Tests by name in the order in which they ended.
    pub tests: Vec<(String, TestStatus)>,
    /// Passed and failed, from its closing line; `None` if it ended without one.
    pub counts: Option<(u32, u32)>,
    /// How long it took.
    pub time: Duration,
}

impl Suite {
    /// Passed and failed tests; a suite that ended without a word counts as one failure.
    pub fn counted(&self) -> (u32, u32) {
        self.counts.unwrap_or((0, 1))
    }
}

/// How `cargo test` ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All is well.
    Success,
    /// Something failed: a test or the build.
    Failure,
    /// It took too long.
    TimedOut,
}

/// A whole `cargo test`.
#[derive(Clone, Debug)]
pub struct HostRun {
    /// Its suites.
    pub suites: Vec<Suite>,
    /// How it ended.
    pub ended: Ended,
    /// Everything it said.
    pub output: String,
}

impl HostRun {
    /// Whether nothing failed.
    pub fn held(&self) -> bool {
        self.ended == Ended::Success && self.suites.iter().all(|suite| suite.counted().1 == 0)
    }

    /// All tests in order.
    pub fn tests(&self) -> impl Iterator<Item = (&str, TestStatus)> {
        self.suites.iter().flat_map(|suite| suite.tests.iter().map(|(name, status)| (name.as_str(), *status)))
    }

    /// Whether it came as far as running tests.
    pub fn built(&self) -> bool {
        !self.suites.is_empty()
    }
}

/// Runs `cargo test` with these arguments. `watch` sees each suite when it is over.
pub fn run(
    workspace: &Workspace,
    arguments: &[&str],
    log: &str,
    limit: Duration,
    mut watch: impl FnMut(&Suite),
) -> Result<HostRun> {
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let mut command = workspace.cargo();
    command
        .arg("test")
        .args(arguments)
        .env("CARGO_TERM_COLOR", "never")
        .env("CARGO_TERM_PROGRESS_WHEN", "never");
    // One pipe for both: which suite a result belongs to is said on the other stream.
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut group = Group::spawn(&mut command).context("cannot start cargo")?;
    // The command keeps the pipe's writing ends open.
    drop(command);
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(|line| line.ok()) {
            if sender.send(clean(&line)).is_err() {
                break;
            }
        }
    });
    let deadline = Instant::now() + limit;
    let mut parser = Parser::default();
    let mut output = String::new();
    while let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        let _ = writeln!(output, "{line}");
        if let Some(suite) = parser.line(&line) {
            watch(&suite);
            parser.done.push(suite);
        }
    }
    if let Some(suite) = parser.close() {
        watch(&suite);
        parser.done.push(suite);
    }
    let ended = match group.wait_until(deadline)? {
        Some(status) if status.success() => Ended::Success,
        Some(_) => Ended::Failure,
        None => Ended::TimedOut,
    };
    let path = workspace.log_dir().join(log);
    fs::create_dir_all(workspace.log_dir())?;
    fs::write(&path, &output).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(HostRun { suites: parser.done, ended, output })
}

#[derive(Debug, Default)]
struct Parser {
    current: Option<(Suite, Instant)>,
    done: Vec<Suite>,
}

impl Parser {
    /// Reads a line; gives the suite that it ends.
    fn line(&mut self, line: &str) -> Option<Suite> {
        if let Some(name) = suite_name(line) {
            let over = self.close();
            let suite = Suite { name, tests: Vec::new(), counts: None, time: Duration::ZERO };
            self.current = Some((suite, Instant::now()));
            return over;
        }
        let (suite, _) = self.current.as_mut()?;
        if let Some(counts) = line.strip_prefix("test result: ") {
            suite.counts = parse_counts(counts);
            return self.close();
        }
        suite.tests.extend(parse_test(line));
        None
    }

    fn close(&mut self) -> Option<Suite> {
        let (mut suite, started) = self.current.take()?;
        suite.time = started.elapsed();
        Some(suite)
    }
}

/// The name in `Running unittests src/lib.rs (target/debug/deps/NAME-HASH)` or `Doc-tests NAME`.
fn suite_name(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{name} (documentation)"));
    }
    let (source, program) = line.strip_prefix("Running ")?.strip_suffix(')')?.split_once(" (")?;
    let file = program.rsplit('/').next().unwrap_or(program);
    let name = file.rsplit_once('-').map_or(file, |(name, _)| name);
    Some(format!("{name} ({})", source.trim_start_matches("unittests ")))
}

/// `test NAME ... STATUS`, with remarks after either.
fn parse_test(line: &str) -> Option<(String, TestStatus)> {
    let (name, status) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let status = match status.split([' ', ',']).next()? {
        "ok" => TestStatus::Passed,
        "FAILED" => TestStatus::Failed,
        "ignored" => TestStatus::Ignored,
        _ => return None,
    };
    let name = name.trim_end_matches(" - should panic").trim_end_matches(" - compile fail");
    Some((name.to_owned(), status))
}

/// `ok. 5 passed; 0 failed; 1 ignored; ...`
fn parse_counts(text: &str) -> Option<(u32, u32)> {
    let (_, numbers) = text.split_once(". ")?;
    let mut parts = numbers.split("; ");
    let passed = parts.next()?.strip_suffix(" passed")?.parse().ok()?;
    let failed = parts.next()?.strip_suffix(" failed")?.parse().ok()?;
    Some((passed, failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Vec<Suite> {
        let mut parser = Parser::default();
        let mut suites: Vec<Suite> = text.lines().filter_map(|line| parser.line(line)).collect();
        suites.extend(parser.close());
        suites
    }

    #[test]
    fn suites_tests_and_counts_are_read() {
        let suites = parse(
            "   Compiling portcullis-hal v0.1.0\n\
             \x20    Running unittests src/lib.rs (target/debug/deps/portcullis_hal-0a1b)\n\
             \nrunning 3 tests\n\
             test a::b ... ok\n\
             test a::c - should panic ... ok\n\
             test slow ... ignored, takes long\n\
             \ntest result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
             \x20    Running tests/x.rs (target/debug/deps/x-ff)\n\
             test d ... FAILED\n\
             test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured\n\
             \x20  Doc-tests portcullis_hal\n\
             test drivers/hal/src/lib.rs - x (line 3) ... ok\n\
             test result: ok. 1 passed; 0 failed; 0 ignored\n",
        );
        let names: Vec<&str> = suites.iter().map(|suite| suite.name.as_str()).collect();
        assert_eq!(
            names,
            ["portcullis_hal (src/lib.rs)", "x (tests/x.rs)", "portcullis_hal (documentation)"]
        );
        assert_eq!(suites[0].counts, Some((2, 0)));
        assert_eq!(suites[0].tests[1], ("a::c".to_owned(), TestStatus::Passed));
        assert_eq!(suites[0].tests[2].1, TestStatus::Ignored);
        assert_eq!(suites[1].tests, [("d".to_owned(), TestStatus::Failed)]);
        assert_eq!(suites[2].counted(), (1, 0));
    }

    #[test]
    fn a_suite_that_dies_counts_as_a_failure() {
        let suites = parse(
            "Running unittests src/lib.rs (deps/a-1)\ntest x ... ok\nerror: test failed\n\
             Running unittests src/lib.rs (deps/b-2)\ntest result: ok. 0 passed; 0 failed; 0 ignored\n",
        );
        assert_eq!(suites[0].counted(), (0, 1));
        assert_eq!(suites[1].counted(), (0, 0));
    }

    #[test]
    fn output_between_name_and_status_does_not_confuse() {
        assert_eq!(parse_test("test a ... noise"), None);
        assert_eq!(parse_test("testing ... ok"), None);
        assert_eq!(parse_counts("FAILED. x passed; 1 failed"), None);
    }
}
