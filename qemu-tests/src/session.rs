//! One QEMU, from start to end: its console line by line, its time limit, its end.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::process::Group;
use crate::protocol::{Event, Report, clean};

/// How long a job may take, unless asked otherwise: only one that hangs takes so long, on a busy host too.
pub const TIME_LIMIT: Duration = Duration::from_secs(300);
/// How long the kernel may go on talking after a panic.
const PANIC_GRACE: Duration = Duration::from_secs(1);
/// How long QEMU may take to end after the kernel's result.
const EXIT_GRACE: Duration = Duration::from_secs(10);

/// What comes from QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A line of the kernel's serial port.
    Console(String),
    /// A line that QEMU itself prints.
    Qemu(String),
}

/// How QEMU ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this status; `None` if a signal ended it.
    Ended(Option<i32>),
    /// It was ended by the harness after this time.
    TimedOut(Duration),
    /// It was ended by the harness because the kernel panicked.
    AfterPanic,
    /// It was ended by the harness because it stayed after the kernel's result.
    Lingered,
}

/// A finished run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What the kernel said.
    pub report: Report,
    /// How QEMU ended.
    pub exit: Exit,
    /// What QEMU itself said.
    pub qemu: Vec<String>,
    /// How long it took.
    pub time: Duration,
    /// Where the console is kept.
    pub log: PathBuf,
}

/// A running QEMU.
#[derive(Debug)]
pub struct Session {
    group: Group,
    lines: Receiver<Line>,
    stdin: Option<ChildStdin>,
    log: File,
    log_path: PathBuf,
    started: Instant,
}

/// What the kernel's console is fed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Nothing.
    Closed,
    /// What [`Session::send`] is given.
    Commands,
}

impl Session {
    /// Starts QEMU with its console connected to the harness and kept in `log`.
    pub fn start(mut command: Command, input: Input, log_path: &Path) -> Result<Self> {
        if let Some(directory) = log_path.parent() {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot create {}", directory.display()))?;
        }
        let log = File::create(log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
        command.stdin(match input {
            Input::Closed => Stdio::null(),
            Input::Commands => Stdio::piped(),
        });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut group = Group::spawn(&mut command).context("cannot start QEMU")?;
        let child = group.child();
        let (sender, lines) = mpsc::channel();
        let stdout = child.stdout.take().ok_or_else(|| anyhow!("QEMU has no output"))?;
        let stderr = child.stderr.take().ok_or_else(|| anyhow!("QEMU has no error output"))?;
        let stdin = child.stdin.take();
        let other = sender.clone();
        thread::spawn(move || forward(stdout, Line::Console, &sender));
        thread::spawn(move || forward(stderr, Line::Qemu, &other));
        Ok(Self { group, lines, stdin, log, log_path: log_path.to_path_buf(), started: Instant::now() })
    }

    /// Types a line into the kernel's console.
    pub fn send(&mut self, line: &str) -> Result<()> {
        writeln!(self.log, "<<< {line}")?;
        let stdin = self.stdin.as_mut().context("this console has no input")?;
        stdin.write_all(format!("{line}\r").as_bytes()).context("QEMU reads no input any more")?;
        stdin.flush()?;
        Ok(())
    }

    /// The next line, `None` at `deadline`. An error means that QEMU is gone.
    pub fn next(&mut self, deadline: Instant) -> std::result::Result<Option<Line>, Gone> {
        match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                // The log is for people; a full disk must not fail the run.
                let _ = match &line {
                    Line::Console(text) => writeln!(self.log, "{text}"),
                    Line::Qemu(text) => writeln!(self.log, "qemu: {text}"),
                };
                Ok(Some(line))
            }
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(Gone),
        }
    }

    /// Waits for QEMU's end, and ends it at `deadline`. What it still says goes to the log.
    pub fn finish(&mut self, deadline: Instant) -> Result<Option<ExitStatus>> {
        while let Ok(Some(_)) = self.next(deadline) {}
        let status = self.group.wait_until(deadline).context("cannot wait for QEMU")?;
        if status.is_none() {
            let _ = self.group.kill();
        }
        Ok(status)
    }

    /// Follows a job to its end.
    pub fn follow(mut self, limit: Duration, mut watch: impl FnMut(&Event)) -> Result<Outcome> {
        let mut report = Report::default();
        let mut qemu = Vec::new();
        let mut stop = Stop { at: self.started + limit, exit: Exit::TimedOut(limit) };
        let exit = loop {
            match self.next(stop.at) {
                Ok(Some(Line::Console(line))) => {
                    let event = Event::parse(&line);
                    stop.tighten(&event);
                    report.add(&event);
                    watch(&event);
                }
                // QEMU remarks on each DMA that it refuses; that is for the log.
                Ok(Some(Line::Qemu(line))) => qemu.push(line),
                Ok(None) => {
                    let _ = self.group.kill();
                    break stop.exit;
                }
                Err(Gone) => {
                    break self.finish(stop.at)?.map_or(stop.exit, |status| Exit::Ended(status.code()));
                }
            }
        };
        Ok(Outcome { report, exit, qemu, time: self.started.elapsed(), log: self.log_path })
    }
}

/// QEMU closed its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// When the harness ends QEMU, and what that means.
#[derive(Clone, Copy, Debug)]
struct Stop {
    at: Instant,
    exit: Exit,
}

impl Stop {
    fn tighten(&mut self, event: &Event) {
        let (grace, exit) = match event {
            Event::Panic(_) => (PANIC_GRACE, Exit::AfterPanic),
            Event::Result(_) => (EXIT_GRACE, Exit::Lingered),
            _ => return,
        };
        let at = Instant::now() + grace;
        if at < self.at {
            *self = Self { at, exit };
        }
    }
}

fn forward(mut input: impl Read, wrap: fn(String) -> Line, sender: &Sender<Line>) {
    let mut buffer = [0; 4096];
    let mut line = Vec::new();
    loop {
        let count = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        for byte in &buffer[..count] {
            if *byte == b'\n' {
                // The receiver is gone when nobody wants to know any more.
                if sender.send(wrap(clean(&line))).is_err() {
                    return;
                }
                line.clear();
            } else {
                line.push(*byte);
            }
        }
    }
    if !line.is_empty() {
        let _ = sender.send(wrap(clean(&line)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, limit: Duration) -> Outcome {
        static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let log =
            std::env::temp_dir().join(format!("portcullis-session-{}-{number}.log", std::process::id()));
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let outcome = Session::start(command, Input::Closed, &log).unwrap().follow(limit, |_| {}).unwrap();
        fs::remove_file(log).unwrap();
        outcome
    }

    #[test]
    fn a_job_that_ends_by_itself_gives_its_report_and_status() {
        let script = "printf '[ ok ] a\\r\\n[data] k v\\nresult: 1 passed, 0 failed'; echo oops >&2; exit 33";
        let outcome = run(script, TIME_LIMIT);
        assert_eq!(outcome.exit, Exit::Ended(Some(33)));
        assert_eq!(outcome.report.checks.len(), 1);
        assert_eq!(outcome.report.results.len(), 1);
        assert_eq!(outcome.qemu, ["oops"]);
    }

    #[test]
    fn a_job_that_hangs_is_ended_at_its_limit() {
        let limit = Duration::from_millis(200);
        let outcome = run("echo started; sleep 600", limit);
        assert_eq!(outcome.exit, Exit::TimedOut(limit));
        assert!(outcome.time < Duration::from_secs(20));
    }

    #[test]
    fn a_panic_shortens_the_wait() {
        let outcome = run("echo 'panic: at home'; echo more; sleep 600", TIME_LIMIT);
        assert_eq!(outcome.exit, Exit::AfterPanic);
        assert_eq!(outcome.report.panic.as_deref(), Some("at home"));
    }

    #[test]
    fn a_job_that_closes_its_output_and_stays_is_ended() {
        let limit = Duration::from_millis(300);
        let outcome = run("exec >&- 2>&-; sleep 600", limit);
        assert_eq!(outcome.exit, Exit::TimedOut(limit));
    }
}
