//! What the operations cost on this machine in nanoseconds, and how much memory their tables take: the benchmark `host` of
//! `qemu-tests/operations`, which runs against units that are done at once.
//!
//! Nanoseconds are medians, and still differ between machines, and on a busy one.

use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::ui;
use crate::workspace::Workspace;

const PACKAGE: &str = "portcullis-operations";

/// What memory is taken for, and what that is called.
const PURPOSES: [(&str, &str); 5] = [
    ("domain", "a domain, empty"),
    ("device", "the first device of a bus"),
    ("further-device", "another device of the bus"),
    ("pasid", "16 bits of PASIDs, and the first"),
    ("further-pasid", "another PASID (mean of 255)"),
];

/// One line of the benchmark.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    Time { machine: String, operation: String, nanoseconds: u64 },
    Memory { machine: String, memory: Memory },
}

/// Bytes taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) of: &'static str,
    pub(super) about: &'static str,
    /// In tables that units read.
    pub(super) tables: u64,
    /// On the heap.
    pub(super) heap: u64,
}

impl Line {
    /// `None` for a line that is neither.
    fn parse(line: &str) -> Option<Self> {
        let field = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let number = |name: &str| field(name)?.parse().ok();
        let machine = field("machine")?.to_owned();
        match line.split(' ').next()? {
            "host" => Some(Self::Time {
                machine,
                operation: field("operation")?.to_owned(),
                nanoseconds: number("nanoseconds")?,
            }),
            "memory" => {
                let (of, about) = PURPOSES.into_iter().find(|(of, _)| field("of") == Some(of))?;
                let memory = Memory { of, about, tables: number("tables")?, heap: number("heap")? };
                Some(Self::Memory { machine, memory })
            }
            _ => None,
        }
    }
}

/// Everything that the benchmark said.
#[derive(Clone, Debug, Default)]
pub(super) struct Host(Vec<Line>);

impl Host {
    /// The median time of an operation of a machine's unit.
    pub(super) fn nanoseconds(&self, machine: &str, operation: &str) -> Option<u64> {
        self.0.iter().find_map(|line| match line {
            Line::Time { machine: m, operation: o, nanoseconds } if m == machine && o == operation => {
                Some(*nanoseconds)
            }
            _ => None,
        })
    }

    /// What a machine's unit takes of memory.
    pub(super) fn memory(&self, machine: &str) -> Vec<Memory> {
        let of_machine = |line: &Line| match line {
            Line::Memory { machine: m, memory } if m == machine => Some(*memory),
            _ => None,
        };
        self.0.iter().filter_map(of_machine).collect()
    }
}

/// The rows of a table.
pub(super) fn table(memory: &[Memory]) -> Vec<Vec<String>> {
    let mut rows = vec![["bytes for", "tables", "heap"].map(str::to_owned).to_vec()];
    rows.extend(memory.iter().map(|memory| {
        vec![memory.about.to_owned(), super::grouped(memory.tables), super::grouped(memory.heap)]
    }));
    rows
}

/// Builds and runs the benchmark.
pub(super) fn measure(workspace: &Workspace) -> Result<Host> {
    ui::say("measuring the operations on the host");
    let mut command = workspace.cargo();
    command.args(["bench", "--quiet", "--package", PACKAGE, "--bench", "host"]);
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.context("cannot run cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<_> = text.lines().filter_map(Line::parse).collect();
    if !output.status.success() || lines.is_empty() {
        bail!("the benchmark of {PACKAGE} ended with {} and {} results", output.status, lines.len());
    }
    Ok(Host(lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_read_and_nothing_else() {
        let text = "running\nhost machine=aarch64 operation=attach nanoseconds=5\n\
                    memory machine=aarch64 of=device tables=4096 heap=7\nmemory machine=aarch64 of=x tables=1 heap=1";
        let host = Host(text.lines().filter_map(Line::parse).collect());
        assert_eq!(host.nanoseconds("aarch64", "attach"), Some(5));
        assert_eq!(host.nanoseconds("aarch64", "detach"), None);
        let memory = host.memory("aarch64");
        assert_eq!((memory.len(), memory[0].tables, memory[0].heap), (1, 4096, 7));
        assert_eq!(table(&memory)[1], ["the first device of a bus", "4 096", "7"]);
        assert!(host.memory("x86_64-first").is_empty());
    }
}
