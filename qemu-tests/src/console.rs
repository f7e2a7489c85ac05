//! How a job is shown while it runs.

use crate::protocol::{Check, Event, Status};
use crate::ui::{Style, paint};

/// Prints a line of the console for people.
pub fn show(event: &Event) {
    match event {
        Event::Section(title) => println!("\n{}", paint(Style::Bold, title)),
        Event::Check(check) => println!("{}", check_line(check)),
        Event::Panic(text) => println!("{}", paint(Style::Bad, &format!("panic: {text}"))),
        Event::Result(counts) => println!("  kernel: {counts}"),
        Event::Malformed(line) => println!("{}", paint(Style::Warn, line)),
        Event::Data { key, value } => println!("{}", paint(Style::Dim, &format!("         {key} {value}"))),
        Event::ConsoleReady => {}
        Event::Text(text) if text.is_empty() => {}
        Event::Text(text) => println!("{}", paint(Style::Dim, &format!("         {text}"))),
    }
}

/// One check on a line.
pub fn check_line(check: &Check) -> String {
    let tag = match check.status {
        Status::Passed => paint(Style::Good, " ok "),
        Status::Failed => paint(Style::Bad, "FAIL"),
        Status::Skipped => paint(Style::Warn, "skip"),
    };
    let detail = if check.detail.is_empty() { String::new() } else { format!(": {}", check.detail) };
    format!("  [{tag}] {}{detail}", check.name)
}
