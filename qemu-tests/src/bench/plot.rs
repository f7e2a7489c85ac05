//! The results as a bar chart: SVG, one panel per machine, instructions on a logarithmic scale, and beside the bars what
//! a count of instructions hides. Bytes stand in tables: those of memory below each machine's bars, those of code at the
//! end.

use super::code::{self, Code};
use super::{Measured, Row, grouped, host};
use std::fmt::Write;

const LABEL: f64 = 270.0;
const BARS: f64 = 520.0;
const FIGURES: f64 = 110.0;
/// The width of a column beside the bars.
const COLUMN: f64 = 66.0;
const BAR: f64 = 9.0;
const ROW: f64 = 28.0;
const HEADING: f64 = 44.0;
/// A line of a table of bytes.
const LINE: f64 = 18.0;
/// The scale ends here: 10^9 instructions; it begins at 10.
const DECADES: i32 = 8;

const OURS: &str = "#2f6fb0";
const LINUX: &str = "#b9b9b9";
const GOAL: &str = "#c0392b";

/// A heading, and what stands below it.
type Column = (&'static str, fn(&Row) -> Option<u64>);

/// The columns beside the bars.
const COLUMNS: [Column; 8] = [
    ("invalid.", |row| row.guest.map(|guest| guest.cost.invalidations)),
    ("doorbells", |row| row.guest.map(|guest| guest.cost.doorbells)),
    ("polls", |row| row.guest.map(|guest| guest.counts.polls)),
    ("reads", |row| row.guest.map(|guest| guest.counts.reads)),
    ("barriers", |row| row.guest.map(|guest| guest.counts.barriers)),
    ("cleans", |row| row.guest.map(|guest| guest.counts.cleans)),
    ("tables", |row| row.guest.map(|guest| guest.counts.tables)),
    ("ns (host)", |row| row.nanoseconds),
];

/// A chart of all results.
pub(super) fn document(all: &[Measured], code: &[Code]) -> String {
    let (width, legend) = (column(COLUMNS.len()), 30.0);
    let code = code::table(code);
    let height: f64 = all.iter().map(panel_height).sum::<f64>() + legend + table_height(&code);
    let mut svg = String::new();
    let mut top = legend;
    // Writing to a string cannot fail.
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (x, colour, text) in
        [(LABEL, OURS, "Portcullis"), (LABEL + 110.0, LINUX, "Linux"), (LABEL + 190.0, GOAL, "goal")]
    {
        rectangle(&mut svg, [x, 10.0, 12.0, 12.0], colour);
        label(&mut svg, x + 18.0, 20.0, "start", text);
    }
    for measured in all {
        panel(&mut svg, top, measured);
        top += panel_height(measured);
    }
    table(&mut svg, top, &code);
    svg.push_str("</svg>\n");
    svg
}

/// The right end of a column, or of what is left of the first.
fn column(number: usize) -> f64 {
    LABEL + BARS + FIGURES + COLUMN * number as f64
}

fn panel_height(measured: &Measured) -> f64 {
    bars_height(measured) + table_height(&host::table(&measured.memory))
}

fn bars_height(measured: &Measured) -> f64 {
    HEADING + ROW * measured.rows.len() as f64 + 16.0
}

fn table_height(rows: &[Vec<String>]) -> f64 {
    LINE * rows.len() as f64 + 16.0
}

/// A table whose first row is the heading.
fn table(svg: &mut String, top: f64, rows: &[Vec<String>]) {
    for (number, row) in rows.iter().enumerate() {
        let y = top + LINE * number as f64 + 12.0;
        for (column, cell) in row.iter().enumerate() {
            label(svg, LABEL - 8.0 + 1.5 * COLUMN * column as f64, y, "end", cell);
        }
    }
}

fn panel(svg: &mut String, top: f64, measured: &Measured) {
    label(svg, 10.0, top + 20.0, "start", &format!("{}: {}", measured.machine, measured.about));
    let first = top + HEADING;
    let height = ROW * measured.rows.len() as f64;
    for decade in 0..=DECADES {
        let x = LABEL + BARS * f64::from(decade) / f64::from(DECADES);
        rectangle(svg, [x, first - 6.0, 1.0, height], "#e8e8e8");
        label(svg, x, first - 10.0, "middle", &format!("10^{}", decade + 1));
    }
    for (number, (name, _)) in COLUMNS.iter().enumerate() {
        label(svg, column(number + 1) - 8.0, first - 10.0, "end", name);
    }
    for (index, row) in measured.rows.iter().enumerate() {
        bars(svg, first + ROW * index as f64, row);
    }
    table(svg, top + bars_height(measured), &host::table(&measured.memory));
}

fn bars(svg: &mut String, top: f64, row: &Row) {
    label(svg, LABEL - 8.0, top + BAR + 3.0, "end", row.operation.name);
    let text = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), grouped);
    let ours = row.instructions().unwrap_or(0);
    rectangle(svg, [LABEL, top, length(ours), BAR], OURS);
    let right = LABEL + length(ours.max(row.linux.unwrap_or(0)));
    label(svg, right + 6.0, top + BAR, "start", &text(row.instructions()));
    for (number, (_, value)) in COLUMNS.iter().enumerate() {
        label(svg, column(number + 1) - 8.0, top + BAR + 3.0, "end", &text(value(row)));
    }
    if let Some(linux) = row.linux {
        rectangle(svg, [LABEL, top + BAR + 1.0, length(linux), BAR], LINUX);
    }
    if let Some(goal) = row.goal() {
        rectangle(svg, [LABEL + length(goal), top - 2.0, 2.0, 2.0 * BAR + 5.0], GOAL);
    }
}

/// The length of a bar: nothing for ten instructions or fewer.
fn length(instructions: u64) -> f64 {
    let decades = (instructions.max(10) as f64).log10() - 1.0;
    (decades / f64::from(DECADES)).min(1.0) * BARS
}

fn rectangle(svg: &mut String, [x, y, width, height]: [f64; 4], colour: &str) {
    let _ = writeln!(
        svg,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>"
    );
}

fn label(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_grow_by_the_same_length_for_each_factor_of_ten() {
        let step = length(100) - length(10);
        assert!((length(10_000) - length(1000) - step).abs() < 1e-9);
        assert!((length(u64::MAX) - BARS).abs() < 1e-9 && length(0) == 0.0);
    }
}
