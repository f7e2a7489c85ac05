//! What the user sees: colours on a terminal, plain text elsewhere, and progress bars.

use std::env;
use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How a piece of text is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Headings.
    Bold,
    /// Side matter.
    Dim,
    /// What went well.
    Good,
    /// What went wrong.
    Bad,
    /// What was left out.
    Warn,
}

/// Whether a person watches: a terminal, and not a CI job.
pub fn interactive() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| env::var_os("CI").is_none() && std::io::stderr().is_terminal())
}

fn coloured() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        env::var_os("NO_COLOR").is_none() && !dumb && std::io::stdout().is_terminal()
    })
}

/// `text` in the given style, or as it is where colours are not wanted.
pub fn paint(style: Style, text: &str) -> String {
    if !coloured() {
        return text.to_owned();
    }
    let code = match style {
        Style::Bold => "1",
        Style::Dim => "2",
        Style::Good => "32",
        Style::Bad => "1;31",
        Style::Warn => "33",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Says what is done now; a step that only starts.
pub fn say(text: &str) {
    eprintln!("{} {text}", paint(Style::Bold, "==>"));
}

/// A duration in seconds with one decimal.
pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn shown(bar: ProgressBar) -> ProgressBar {
    if !interactive() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar
}

/// A bar over a number of bytes.
pub fn bytes_bar(total: u64, what: &str) -> ProgressBar {
    let bar = shown(ProgressBar::new(total));
    if let Ok(style) =
        ProgressStyle::with_template("    {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}")
    {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what.to_owned());
    bar
}

/// A bar over a number of steps.
pub fn steps_bar(total: u64, what: &str) -> ProgressBar {
    let bar = shown(ProgressBar::new(total));
    if let Ok(style) = ProgressStyle::with_template("    {msg} [{bar:30}] {pos}/{len}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what.to_owned());
    bar
}

/// A sign of life for something without a known length.
pub fn spinner(what: &str) -> ProgressBar {
    let bar = shown(ProgressBar::new_spinner());
    bar.set_message(what.to_owned());
    if interactive() {
        bar.enable_steady_tick(Duration::from_millis(120));
    }
    bar
}

/// Lays rows out in columns, the first row being the heading.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        let line = format!("  {}", cells.join("  "));
        let line = line.trim_end();
        text.push_str(&if index == 0 { paint(Style::Bold, line) } else { line.to_owned() });
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".to_owned(), "bb".to_owned()], vec!["ccc".to_owned(), "d".to_owned()]];
        assert_eq!(table(&rows), "  a    bb\n  ccc  d\n");
    }
}
