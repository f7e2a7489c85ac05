//! What the kernel says to the harness: lines on its serial port.
//!
//! | line | meaning |
//! |---|---|
//! | `## N. Title` | a section of the job begins |
//! | `[ ok ] NAME: detail` | a check held; `: detail` may be left out |
//! | `[FAIL] NAME: reason` | a check did not hold |
//! | `[skip] NAME: reason` | a check could not be made |
//! | `[data] KEY VALUE` | a fact for the harness |
//! | `panic: TEXT` | the kernel gave up; QEMU is ended after a short grace |
//! | `result: N passed, N failed` | the job is over; skipped checks count in neither number |
//! | `console ready...` | the console reads commands from now on (`job=shell` only) |
//!
//! NAME and KEY consist of lower-case letters, digits, `.`, `-` and `_` (`disk.hash`). A line counts only if it begins
//! like this in its first column; everything else is text for people. After `result:` the kernel ends QEMU: on x86_64
//! by writing 0x10 to the debug-exit port 0xf4 (QEMU's exit status is then 33), on aarch64 through semihosting's
//! SYS_EXIT with status 0; any other status means failure.
//!
//! Two facts are checked by the harness ([`crate::verdict`]):
//! - `[data] disk.sha256 HEX`: the hash of the whole disk as the kernel read it;
//! - `[data] disk.written sector=N count=N sha256=HEX`: a region (in sectors of 512 bytes) that the kernel wrote.
//!
//! The kernel is told what to do on its command line: `job=main`, `job=shell` or `job=NAME`, then the words that the
//! profile adds (`semihosting` on aarch64).

use std::fmt;

/// One line of the kernel's console, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A section with its title, the number included.
    Section(String),
    /// A check.
    Check(Check),
    /// A fact.
    Data {
        /// What it is about.
        key: String,
        /// Everything after the key.
        value: String,
    },
    /// The kernel gave up.
    Panic(String),
    /// The kernel's own count at the end.
    Result(Counts),
    /// The console reads commands.
    ConsoleReady,
    /// A line that looks like the protocol and is not.
    Malformed(String),
    /// Anything else.
    Text(String),
}

/// One check and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// How it ended.
    pub status: Status,
    /// The detail or reason, empty if none was given.
    pub detail: String,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It held.
    Passed,
    /// It did not.
    Failed,
    /// It was not made.
    Skipped,
}

/// Numbers of checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Those that held.
    pub passed: u32,
    /// Those that did not.
    pub failed: u32,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

impl Event {
    /// Reads one line. It is cleaned as by [`clean`] already.
    pub fn parse(line: &str) -> Self {
        let malformed = || Self::Malformed(line.to_owned());
        for (tag, status) in
            [("[ ok ]", Status::Passed), ("[FAIL]", Status::Failed), ("[skip]", Status::Skipped)]
        {
            if let Some(rest) = line.strip_prefix(tag) {
                return Check::parse(rest, status).map_or_else(malformed, Self::Check);
            }
        }
        if let Some(rest) = line.strip_prefix("[data]") {
            let rest = rest.trim();
            let (key, value) = rest.split_once(' ').unwrap_or((rest, ""));
            if !is_name(key) {
                return malformed();
            }
            return Self::Data { key: key.to_owned(), value: value.trim().to_owned() };
        }
        if let Some(title) = line.strip_prefix("## ") {
            return Self::Section(title.trim().to_owned());
        }
        if let Some(text) = line.strip_prefix("panic:") {
            return Self::Panic(text.trim().to_owned());
        }
        if let Some(rest) = line.strip_prefix("result:") {
            return Counts::parse(rest.trim()).map_or_else(malformed, Self::Result);
        }
        if line.starts_with("console ready") {
            return Self::ConsoleReady;
        }
        Self::Text(line.to_owned())
    }
}

impl Check {
    fn parse(rest: &str, status: Status) -> Option<Self> {
        let rest = rest.strip_prefix(' ')?;
        let (name, detail) = rest.split_once(':').unwrap_or((rest, ""));
        let (name, detail) = (name.trim(), detail.trim());
        is_name(name).then(|| Self { name: name.to_owned(), status, detail: detail.to_owned() })
    }
}

impl Counts {
    /// Parses `N passed, N failed`.
    pub fn parse(text: &str) -> Option<Self> {
        let (passed, failed) = text.split_once(", ")?;
        let passed = passed.strip_suffix(" passed")?.parse().ok()?;
        let failed = failed.strip_suffix(" failed")?.parse().ok()?;
        Some(Self { passed, failed })
    }
}

fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c);
    !text.is_empty() && text.chars().all(fits)
}

/// A console line without carriage returns, terminal escapes and other control characters.
pub fn clean(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    let mut line = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            // ESC [ parameters letter; firmware also sends ESC followed by one letter.
            if chars.next_if_eq(&'[').is_some() {
                while chars.next().is_some_and(|c| !c.is_ascii_alphabetic()) {}
            } else {
                let _ = chars.next();
            }
        } else if c == '\t' || !c.is_control() {
            line.push(c);
        }
    }
    line.truncate(line.trim_end().len());
    line
}

/// Everything that a run said.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The checks in the order in which they were made.
    pub checks: Vec<Check>,
    /// The facts in order.
    pub data: Vec<(String, String)>,
    /// The first panic.
    pub panic: Option<String>,
    /// The closing counts; more than one if the kernel said it more than once.
    pub results: Vec<Counts>,
    /// Lines that were not understood.
    pub malformed: Vec<String>,
}

impl Report {
    /// Takes a line in.
    pub fn add(&mut self, event: &Event) {
        match event {
            Event::Check(check) => self.checks.push(check.clone()),
            Event::Data { key, value } => self.data.push((key.clone(), value.clone())),
            Event::Panic(text) => {
                self.panic.get_or_insert_with(|| text.clone());
            }
            Event::Result(counts) => self.results.push(*counts),
            Event::Malformed(line) => self.malformed.push(line.clone()),
            // Rust's panics tell the place on one line and the message on the next.
            Event::Text(text) => {
                if let Some(panic) = self.panic.as_mut().filter(|panic| panic.ends_with(':')) {
                    panic.push(' ');
                    panic.push_str(text.trim());
                }
            }
            Event::Section(_) | Event::ConsoleReady => {}
        }
    }

    /// The number of checks that ended in the given way.
    pub fn count(&self, status: Status) -> u32 {
        self.checks.iter().filter(|check| check.status == status).count().try_into().unwrap_or(u32::MAX)
    }

    /// The harness' own count.
    pub fn counts(&self) -> Counts {
        Counts { passed: self.count(Status::Passed), failed: self.count(Status::Failed) }
    }

    /// The values of every fact with this key.
    pub fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.data.iter().filter(move |(k, _)| k == key).map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str) -> Check {
        match Event::parse(line) {
            Event::Check(check) => check,
            other => panic!("{line:?} is {other:?}"),
        }
    }

    #[test]
    fn checks_have_a_name_a_status_and_perhaps_a_detail() {
        let passed = check("[ ok ] disk.hash: 64 MiB: read");
        assert_eq!((passed.name.as_str(), passed.status), ("disk.hash", Status::Passed));
        assert_eq!(passed.detail, "64 MiB: read");
        assert_eq!(check("[FAIL] rogue.write: memory changed").status, Status::Failed);
        assert_eq!(check("[skip] testdev").detail, "");
    }

    #[test]
    fn lines_that_only_resemble_the_protocol_are_reported() {
        for line in
            ["[ ok ]disk", "[ ok ] ", "[FAIL] Disk Hash: no", "[data]", "[data] A=b", "result: 3 passed"]
        {
            assert_eq!(Event::parse(line), Event::Malformed(line.to_owned()));
        }
        for line in [" [ ok ] disk", "[ OK ] disk", "#include", "a panic: no", "results: 1 passed, 0 failed"]
        {
            assert_eq!(Event::parse(line), Event::Text(line.to_owned()));
        }
    }

    #[test]
    fn sections_data_panics_and_results_are_read() {
        assert_eq!(Event::parse("## 3. A disk"), Event::Section("3. A disk".to_owned()));
        let data = Event::Data { key: "disk.written".to_owned(), value: "sector=1 count=2".to_owned() };
        assert_eq!(Event::parse("[data] disk.written  sector=1 count=2"), data);
        assert_eq!(Event::parse("panic: at x.rs:1"), Event::Panic("at x.rs:1".to_owned()));
        assert_eq!(
            Event::parse("result: 12 passed, 1 failed"),
            Event::Result(Counts { passed: 12, failed: 1 })
        );
        assert_eq!(Event::parse("console ready, try `help`"), Event::ConsoleReady);
    }

    #[test]
    fn escapes_and_carriage_returns_are_dropped() {
        assert_eq!(clean(b"\x1bc\x1b[?7l\x1b[2J[ ok ] a\r"), "[ ok ] a");
        assert_eq!(clean(b"\xff ok  "), "\u{fffd} ok");
        assert_eq!(clean(b"\x1b["), "");
    }

    #[test]
    fn a_panic_has_its_place_and_its_message() {
        let mut report = Report::default();
        for line in ["text", "panic: panicked at kernel/src/x.rs:1:2:", "index out of bounds", "more"] {
            report.add(&Event::parse(line));
        }
        assert_eq!(report.panic.as_deref(), Some("panicked at kernel/src/x.rs:1:2: index out of bounds"));
    }

    #[test]
    fn a_report_counts_for_itself() {
        let mut report = Report::default();
        for line in
            ["[ ok ] a", "[FAIL] b: x", "[skip] c", "[ ok ] d", "panic: one", "panic: two", "[data] k v"]
        {
            report.add(&Event::parse(line));
        }
        assert_eq!(report.counts(), Counts { passed: 2, failed: 1 });
        assert_eq!(report.count(Status::Skipped), 1);
        assert_eq!(report.panic.as_deref(), Some("one"));
        assert_eq!(report.values("k").collect::<Vec<_>>(), ["v"]);
    }
}
