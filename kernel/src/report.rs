//! What the kernel says: log lines, and checks in the form that the harness reads.
//!
//! - `## N. Title` begins a section,
//! - `[ ok ] NAME: detail`, `[FAIL] NAME: reason`, `[skip] NAME: reason` are one check each,
//! - `[data] KEY VALUE` is a fact for the harness to verify,
//! - `result: N passed, N failed` closes.

use alloc::string::{String, ToString};
use core::fmt::{self, Write};
use log::{LevelFilter, Log, Metadata, Record};
use portcullis_arch::power::Outcome;
use portcullis_arch::{console, cpu, power, time};

/// A line on its way to the console, so that lines of two CPUs do not mix.
struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            // A longer line goes out in pieces.
            if self.len == self.bytes.len() {
                self.flush();
            }
            if let Some(slot) = self.bytes.get_mut(self.len) {
                *slot = byte;
                self.len += 1;
            }
        }
        Ok(())
    }
}

impl Line {
    const fn new() -> Self {
        Self { bytes: [0; 512], len: 0 }
    }

    fn flush(&mut self) {
        console::write_bytes(self.bytes.get(..self.len).unwrap_or_default());
        self.len = 0;
    }
}

/// Anything that can be shown, as text: for the reasons of checks.
pub(crate) fn words(shown: impl fmt::Display) -> String {
    shown.to_string()
}

/// Prints one line.
pub(crate) fn text(arguments: fmt::Arguments<'_>) {
    let mut line = Line::new();
    // A `Line` takes everything.
    let _ = line.write_fmt(arguments);
    let _ = line.write_str("\n");
    line.flush();
}

/// Prints without a line end.
pub(crate) fn prompt(text: &str) {
    console::write_bytes(text.as_bytes());
}

/// This CPU, in words.
pub(crate) struct Cpu;

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        cpu::describe(f)
    }
}

struct ConsoleLog;

impl Log for ConsoleLog {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let now = time::now_ns();
        let (seconds, micros) = (now / 1_000_000_000, now / 1000 % 1_000_000);
        let target = record.target().trim_start_matches("portcullis_");
        let level = record.level().as_str();
        text(format_args!("{seconds:4}.{micros:06} {level:<5} {target}: {}", record.args()));
    }

    fn flush(&self) {}
}

pub(crate) fn init_log(level: LevelFilter) {
    static LOG: ConsoleLog = ConsoleLog;
    if log::set_logger(&LOG).is_ok() {
        log::set_max_level(level);
    }
}

/// Collects the checks of a run.
pub(crate) struct Report {
    passed: u32,
    failed: u32,
    sections: u32,
}

impl Report {
    pub(crate) const fn new() -> Self {
        Self { passed: 0, failed: 0, sections: 0 }
    }

    /// Begins a section of the job.
    pub(crate) fn section(&mut self, title: &str) {
        self.sections += 1;
        text(format_args!("## {}. {title}", self.sections));
    }

    /// A check that held.
    pub(crate) fn pass(&mut self, name: &str, detail: fmt::Arguments<'_>) {
        self.passed += 1;
        text(format_args!("[ ok ] {name}: {detail}"));
    }

    /// A check that did not hold.
    pub(crate) fn fail(&mut self, name: &str, reason: fmt::Arguments<'_>) {
        self.failed += 1;
        text(format_args!("[FAIL] {name}: {reason}"));
    }

    /// A check that this machine cannot make.
    pub(crate) fn skip(&mut self, name: &str, reason: fmt::Arguments<'_>) {
        text(format_args!("[skip] {name}: {reason}"));
    }

    /// Whether no check has failed so far.
    pub(crate) fn holds(&self) -> bool {
        self.failed == 0
    }

    /// A check by its outcome: what to say if it held, and why it did not.
    pub(crate) fn check<T: fmt::Display, E: fmt::Display>(
        &mut self,
        name: &str,
        outcome: Result<T, E>,
    ) -> bool {
        match outcome {
            Ok(detail) => {
                self.pass(name, format_args!("{detail}"));
                true
            }
            Err(reason) => {
                self.fail(name, format_args!("{reason}"));
                false
            }
        }
    }

    /// A fact for the harness.
    pub(crate) fn data(&mut self, key: &str, value: fmt::Arguments<'_>) {
        text(format_args!("[data] {key} {value}"));
    }

    /// Prints the counts and ends the machine.
    pub(crate) fn close(&self) -> ! {
        text(format_args!("result: {} passed, {} failed", self.passed, self.failed));
        power::exit(if self.failed == 0 && self.passed > 0 { Outcome::Success } else { Outcome::Failure })
    }
}
