//! Whether a mutant was caught: by the check that it names, of the kernel's checks by that one first, and by an orderly
//! failure.

use crate::host_tests::{Ended, HostRun, TestStatus};
use crate::pasid;
use crate::protocol::{Check, Status};
use crate::run::Judged;
use crate::session::{Exit, Outcome};

/// What became of a mutant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The named check caught it.
    Caught,
    /// It did not, for this reason.
    Missed(String),
}

fn missed(why: impl Into<String>) -> Judgement {
    Judgement::Missed(why.into())
}

/// Judges a run of the kernel. The harness' checks come after the kernel's.
pub fn kernel(caught_by: &str, outcome: &Outcome, host: &[Check]) -> Judgement {
    let report = &outcome.report;
    if let Some(text) = &report.panic {
        return missed(format!("the kernel panicked: {text}"));
    }
    match outcome.exit {
        Exit::Ended(Some(_)) => {}
        Exit::Ended(None) => return missed("a signal ended QEMU"),
        Exit::TimedOut(_) => return missed("it timed out"),
        Exit::AfterPanic => return missed("the kernel panicked"),
        Exit::Lingered => return missed("QEMU did not end after the result"),
    }
    // Without it the kernel stopped somewhere on its way, which is not a check that failed.
    if report.results.is_empty() {
        return missed("the kernel gave no result");
    }
    if let Some(line) = report.malformed.first() {
        return missed(format!("unreadable line {line:?}"));
    }
    let first = report.checks.iter().chain(host).find(|check| check.status == Status::Failed);
    match first {
        None => missed("every check passed"),
        Some(check) if check.name == caught_by => Judgement::Caught,
        Some(check) => missed(format!("{} failed first: {}", check.name, check.detail)),
    }
}

/// Judges a run of a test with PASIDs: it fails with what was named beforehand.
pub fn pasid(caught_by: &str, outcome: &pasid::Outcome) -> Judgement {
    match outcome {
        pasid::Outcome::Failed(why) if why.contains(caught_by) => Judgement::Caught,
        pasid::Outcome::Failed(why) => missed(format!("it failed otherwise: {why}")),
        pasid::Outcome::Held => missed("the test passed"),
        pasid::Outcome::Skipped(why) => missed(format!("it was skipped: {why}")),
    }
}

/// Judges a run of the host test that was named.
pub fn host(caught_by: &str, run: &HostRun) -> Judgement {
    if run.ended == Ended::TimedOut {
        return missed("it timed out");
    }
    if !run.built() {
        return missed("it does not build");
    }
    if let Some(suite) = run.suites.iter().find(|suite| suite.counts.is_none()) {
        return missed(format!("{} ended without a result", suite.name));
    }
    match run.tests().find(|(name, _)| *name == caught_by) {
        Some((_, TestStatus::Failed)) => Judgement::Caught,
        Some((_, TestStatus::Passed)) => missed("the test passed"),
        Some((_, TestStatus::Ignored)) | None => missed("the test did not run"),
    }
}

/// The checks that passed and never failed.
pub fn passed_checks(judged: &Judged) -> Vec<String> {
    let checks = judged.outcome.report.checks.iter().chain(&judged.host);
    checks.filter(|check| check.status == Status::Passed).map(|check| check.name.clone()).collect()
}

/// The tests that passed.
pub fn passed_tests(run: &HostRun) -> Vec<String> {
    let passed = run.tests().filter(|(_, status)| *status == TestStatus::Passed);
    passed.map(|(name, _)| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::host_tests::Suite;
    use crate::protocol::{Event, Report};

    const ENDED: Exit = Exit::Ended(Some(35));

    fn outcome(lines: &[&str], exit: Exit) -> Outcome {
        let mut report = Report::default();
        for line in lines {
            report.add(&Event::parse(line));
        }
        Outcome { report, exit, qemu: Vec::new(), time: Duration::ZERO, log: PathBuf::new() }
    }

    fn judge(lines: &[&str], exit: Exit) -> Judgement {
        kernel("unmap", &outcome(lines, exit), &[])
    }

    #[track_caller]
    fn assert_missed(judgement: &Judgement, needle: &str) {
        assert!(
            matches!(judgement, Judgement::Missed(why) if why.contains(needle)),
            "{judgement:?}, not {needle}"
        );
    }

    const RESULT: &str = "result: 1 passed, 1 failed";

    #[test]
    fn the_named_check_failing_first_is_a_catch() {
        assert_eq!(judge(&["[ ok ] map", "[FAIL] unmap: reached", RESULT], ENDED), Judgement::Caught);
    }

    #[test]
    fn later_failures_and_earlier_skips_do_not_matter() {
        let lines = ["[skip] dev: absent", "[FAIL] unmap: reached", "[FAIL] remap: old page", RESULT];
        assert_eq!(judge(&lines, ENDED), Judgement::Caught);
    }

    #[test]
    fn an_earlier_failure_is_no_catch() {
        assert_missed(
            &judge(&["[FAIL] map: no", "[FAIL] unmap: reached", RESULT], ENDED),
            "map failed first",
        );
    }

    #[test]
    fn another_failure_or_none_is_no_catch() {
        assert_missed(&judge(&["[ ok ] unmap", "[FAIL] remap: x", RESULT], ENDED), "remap failed first");
        assert_missed(&judge(&["[ ok ] unmap", "result: 1 passed, 0 failed"], ENDED), "every check passed");
        assert_missed(
            &judge(&["[skip] unmap: x", "result: 0 passed, 0 failed"], ENDED),
            "every check passed",
        );
    }

    #[test]
    fn a_panic_is_no_catch_wherever_it_comes() {
        assert_missed(&judge(&["[FAIL] unmap: reached", "panic: later"], Exit::AfterPanic), "panicked");
        assert_missed(&judge(&["panic: first", "[FAIL] unmap: reached", RESULT], ENDED), "panicked");
        assert_missed(&judge(&["[FAIL] unmap: reached", RESULT, "panic: last"], ENDED), "panicked");
    }

    #[test]
    fn a_run_that_did_not_end_in_order_is_no_catch() {
        let lines = ["[FAIL] unmap: reached", RESULT];
        assert_missed(&judge(&lines[..1], Exit::TimedOut(Duration::from_secs(1))), "timed out");
        assert_missed(&judge(&lines, Exit::Lingered), "did not end");
        assert_missed(&judge(&lines, Exit::Ended(None)), "signal");
        assert_missed(&judge(&lines[..1], ENDED), "no result");
        assert_missed(&judge(&["[FAIL] unmap: reached", "[ ok ]broken", RESULT], ENDED), "unreadable");
    }

    #[test]
    fn a_check_that_is_made_twice_is_caught_the_second_time() {
        let lines = ["[ ok ] unmap: first unit", "[FAIL] unmap: second unit", RESULT];
        assert_eq!(judge(&lines, ENDED), Judgement::Caught);
    }

    #[test]
    fn the_harness_checks_come_last() {
        let failed = [Check { name: "unmap".to_owned(), status: Status::Failed, detail: String::new() }];
        let clean = outcome(&["[ ok ] a", "result: 1 passed, 0 failed"], Exit::Ended(Some(33)));
        assert_eq!(kernel("unmap", &clean, &failed), Judgement::Caught);
        let earlier = outcome(&["[FAIL] a: x", "result: 0 passed, 1 failed"], ENDED);
        assert_missed(&kernel("unmap", &earlier, &failed), "a failed first");
    }

    #[test]
    fn a_test_with_pasids_has_to_fail_with_the_words_that_were_named() {
        let failed = |why: &str| pasid::Outcome::Failed(why.to_owned());
        let judge = |outcome| super::pasid("a write after the exit", &outcome);
        assert_eq!(judge(failed("a write after the exit: Done(())")), Judgement::Caught);
        assert_missed(&judge(failed("no bond")), "no bond");
        assert_missed(&judge(pasid::Outcome::Held), "the test passed");
        assert_missed(&judge(pasid::Outcome::Skipped("no symbols".to_owned())), "no symbols");
    }

    fn host_run(suites: &[&[(&str, TestStatus)]], ended: Ended) -> HostRun {
        let suite = |tests: &&[(&str, TestStatus)]| Suite {
            name: "s".to_owned(),
            tests: tests.iter().map(|(name, status)| ((*name).to_owned(), *status)).collect(),
            counts: Some((0, 0)),
            time: Duration::ZERO,
        };
        HostRun { suites: suites.iter().map(suite).collect(), ended, output: String::new() }
    }

    const OK: TestStatus = TestStatus::Passed;
    const BAD: TestStatus = TestStatus::Failed;

    #[test]
    fn the_named_host_test_failing_is_a_catch_and_no_other_one_is() {
        let run = host_run(&[&[], &[("wrap", BAD)]], Ended::Failure);
        assert_eq!(host("wrap", &run), Judgement::Caught);
        assert_missed(&host("wraps", &run), "did not run");
        let ignored = host_run(&[&[("wrap", TestStatus::Ignored)]], Ended::Success);
        assert_missed(&host("wrap", &ignored), "did not run");
    }

    #[test]
    fn host_tests_that_pass_do_not_build_die_or_hang_are_no_catch() {
        assert_missed(&host("wrap", &host_run(&[], Ended::Failure)), "does not build");
        assert_missed(&host("wrap", &host_run(&[&[("wrap", OK)]], Ended::Success)), "the test passed");
        assert_missed(&host("wrap", &host_run(&[&[("wrap", BAD)]], Ended::TimedOut)), "timed out");
        let mut dead = host_run(&[&[("wrap", BAD)]], Ended::Failure);
        dead.suites[0].counts = None;
        assert_missed(&host("wrap", &dead), "without a result");
    }
}
