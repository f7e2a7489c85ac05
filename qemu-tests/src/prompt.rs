//! The kernel's console, as one who types sees it: a command, its answer, the next command.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::protocol::Event;
use crate::session::{Gone, Line, Session};

/// Only a kernel that hangs takes this long to start.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// Only a kernel that hangs takes this long to answer, or to switch the machine off.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
const PROMPTS: [&str; 2] = ["portcullis> ", "> "];

/// A console that reads commands.
#[derive(Debug)]
pub struct Prompt {
    session: Session,
}

/// Why there is no answer.
pub type Silence = String;

impl Prompt {
    /// Waits until the kernel reads commands.
    ///
    /// # Errors
    ///
    /// What the kernel did instead, in words.
    pub fn open(mut session: Session) -> std::result::Result<Self, Silence> {
        read_until(&mut session, Instant::now() + BOOT_LIMIT, |event| *event == Event::ConsoleReady)
            .map_err(|why| format!("the console did not come up: {why}"))?;
        Ok(Self { session })
    }

    /// Types a command and reads its answer: the lines up to `ok` or `error: REASON`, that one included. What the kernel
    /// logged since the last answer is among them.
    pub fn ask(&mut self, command: &str) -> Result<std::result::Result<Vec<String>, Silence>> {
        self.session.send(command)?;
        let closes = |event: &Event| matches!(event, Event::Text(line) if is_closing(line));
        let answer = read_until(&mut self.session, Instant::now() + COMMAND_LIMIT, closes);
        Ok(answer.map(|lines| without_echo(lines, command)))
    }

    /// Switches the machine off, and says what is wrong if it does not end with `success_status`.
    pub fn power_off(mut self, success_status: i32) -> Result<Option<String>> {
        self.session.send("poweroff")?;
        let end = Instant::now() + COMMAND_LIMIT;
        Ok(match self.session.finish(end)?.map(|status| status.code()) {
            Some(Some(code)) if code == success_status => None,
            Some(code) => Some(format!("after `poweroff` QEMU ended with {code:?}")),
            None => Some("`poweroff` did not end QEMU".to_owned()),
        })
    }
}

/// Collects the console's lines up to one that satisfies `last`, that one included.
fn read_until(
    session: &mut Session,
    deadline: Instant,
    last: impl Fn(&Event) -> bool,
) -> std::result::Result<Vec<String>, Silence> {
    let mut lines = Vec::new();
    loop {
        match session.next(deadline) {
            Ok(Some(Line::Console(line))) => {
                let line = without_prompt(&line).to_owned();
                let event = Event::parse(&line);
                lines.push(line);
                if let Event::Panic(text) = event {
                    return Err(format!("the kernel panicked: {text}"));
                }
                if last(&event) {
                    return Ok(lines);
                }
            }
            Ok(Some(Line::Qemu(_))) => {}
            Ok(None) => return Err("no answer in time".to_owned()),
            Err(Gone) => return Err("QEMU ended".to_owned()),
        }
    }
}

fn without_prompt(line: &str) -> &str {
    PROMPTS.iter().find_map(|prompt| line.strip_prefix(prompt)).unwrap_or(line)
}

/// The echo is not part of the answer; log lines may stand before it.
fn without_echo(mut lines: Vec<String>, command: &str) -> Vec<String> {
    if let Some(echo) = lines.iter().position(|line| line == command) {
        lines.remove(echo);
    }
    lines
}

fn is_closing(line: &str) -> bool {
    line == "ok" || line.starts_with("error:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_and_echo_are_not_part_of_an_answer() {
        assert_eq!(without_prompt("> help"), "help");
        assert_eq!(without_prompt("portcullis> ok"), "ok");
        let lines = ["fault:", "dump", "dump", "ok"].map(str::to_owned).to_vec();
        assert_eq!(without_echo(lines, "dump"), ["fault:", "dump", "ok"]);
        assert!(is_closing("ok") && is_closing("error: x") && !is_closing("okay"));
    }
}
