//! A QEMU whose CPUs never run, worked from outside by the qtest protocol: one line for each access to memory, registers
//! and ports, one line for each answer.
//!
//! Lines are not answered one by one: they are sent together when there are many, or when results are wanted, since each
//! wait costs a turn of the scheduler. QEMU carries them out in their order, so this changes nothing but the time.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::Group;

/// Only a QEMU that hangs takes this long to answer.
const PATIENCE: Duration = Duration::from_secs(120);
/// Lines that may be under way: few enough that their answers fit into a socket's buffer.
const UNDER_WAY: usize = 256;

/// The connection. Dropping it ends QEMU.
#[derive(Debug)]
pub(super) struct Qtest {
    // Ended when dropped.
    _group: Group,
    input: UnixStream,
    output: BufReader<UnixStream>,
    lines: String,
    /// For each line, whether its result is wanted.
    wanted: Vec<bool>,
    results: Vec<u64>,
}

impl Qtest {
    /// Starts QEMU with the arguments that make it listen. What it complains about goes to `log`.
    pub(super) fn start(mut command: Command, log: &Path) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair().context("cannot make a socket")?;
        ours.set_read_timeout(Some(PATIENCE))?;
        ours.set_write_timeout(Some(PATIENCE))?;
        command.args(["-S", "-qtest", "stdio", "-qtest-log", "/dev/null"]);
        command.stdin(OwnedFd::from(theirs.try_clone()?)).stdout(OwnedFd::from(theirs));
        let log = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stderr(Stdio::from(log));
        let group = Group::spawn(&mut command).context("cannot start QEMU")?;
        let output = BufReader::new(ours.try_clone()?);
        Ok(Self {
            _group: group,
            input: ours,
            output,
            lines: String::new(),
            wanted: Vec::new(),
            results: Vec::new(),
        })
    }

    fn queue(&mut self, line: std::fmt::Arguments<'_>, wanted: bool) -> Result<()> {
        let _ = writeln!(self.lines, "{line}");
        self.wanted.push(wanted);
        if self.wanted.len() == UNDER_WAY { self.flush() } else { Ok(()) }
    }

    /// A command whose result is not of interest.
    pub(super) fn tell(&mut self, line: std::fmt::Arguments<'_>) -> Result<()> {
        self.queue(line, false)
    }

    /// A command whose result, a number, is among the next [`Qtest::results`].
    pub(super) fn ask(&mut self, line: std::fmt::Arguments<'_>) -> Result<()> {
        self.queue(line, true)
    }

    /// The results that were asked for since the last call, in order.
    pub(super) fn results(&mut self) -> Result<Vec<u64>> {
        self.flush()?;
        Ok(std::mem::take(&mut self.results))
    }

    /// Sends what is waiting, and reads all answers.
    fn flush(&mut self) -> Result<()> {
        let gone = "QEMU does not answer; its log may say why";
        self.input.write_all(self.lines.as_bytes()).context(gone)?;
        let mut answer = String::new();
        for (line, wanted) in self.lines.lines().zip(&self.wanted) {
            answer.clear();
            if self.output.read_line(&mut answer).context(gone)? == 0 {
                bail!("QEMU ended at {line:?}; its log may say why");
            }
            let result = answer.trim_end().strip_prefix("OK").map(str::trim_start);
            let Some(result) = result else { bail!("qtest: {line:?} is answered by {answer:?}") };
            if *wanted {
                let digits = result.trim_start_matches("0x");
                let number = u64::from_str_radix(digits, 16);
                self.results
                    .push(number.with_context(|| format!("qtest: {line:?}: {result:?} is no number"))?);
            }
        }
        self.lines.clear();
        self.wanted.clear();
        Ok(())
    }

    pub(super) fn write32(&mut self, address: u64, value: u32) -> Result<()> {
        self.tell(format_args!("writel {address:#x} {value:#x}"))
    }

    pub(super) fn write64(&mut self, address: u64, value: u64) -> Result<()> {
        self.tell(format_args!("writeq {address:#x} {value:#x}"))
    }

    /// Writes a 32-bit I/O port.
    pub(super) fn out32(&mut self, port: u16, value: u32) -> Result<()> {
        self.tell(format_args!("outl {port:#x} {value:#x}"))
    }

    /// Asks for 32 bits.
    pub(super) fn ask32(&mut self, address: u64) -> Result<()> {
        self.ask(format_args!("readl {address:#x}"))
    }

    /// Asks for 64 bits.
    pub(super) fn ask64(&mut self, address: u64) -> Result<()> {
        self.ask(format_args!("readq {address:#x}"))
    }

    /// The one result that was asked for.
    pub(super) fn result(&mut self) -> Result<u64> {
        let results = self.results()?;
        results.first().copied().context("qtest: nothing was asked for")
    }
}
