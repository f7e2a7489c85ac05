//! The results as JSON.

use super::code::Code;
use super::cost::Counts;
use super::host::Memory;
use super::throughput::{Sample, Throughput};
use super::{Guest, Measured, Row};

/// All results, with the QEMU that they come from.
pub(super) fn document(qemu: &str, all: &[Measured], code: &[Code], queues: &[Throughput]) -> String {
    let machines: Vec<String> = all.iter().map(machine).collect();
    let code: Vec<String> = code.iter().flat_map(code_of).collect();
    let queues: Vec<String> = queues.iter().map(queue).collect();
    format!(
        "{{\n  \"qemu\": {},\n  \"machines\": [\n{}\n  ],\n  \"code\": [\n{}\n  ],\n  \"throughput\": [\n{}\n  ]\n}}\n",
        string(qemu),
        machines.join(",\n"),
        code.join(",\n"),
        queues.join(",\n")
    )
}

fn code_of(code: &Code) -> impl Iterator<Item = String> {
    code.bytes.iter().map(|(name, bytes)| {
        format!("    {{ \"arch\": {}, \"crate\": {}, \"bytes\": {bytes} }}", string(&code.arch), string(name))
    })
}

fn memory(memory: &Memory) -> String {
    let Memory { of, tables, heap, .. } = memory;
    format!("        {{ \"of\": {}, \"tables\": {tables}, \"heap\": {heap} }}", string(of))
}

fn queue(throughput: &Throughput) -> String {
    let samples: Vec<String> = throughput.samples.iter().map(sample).collect();
    format!(
        "    {{\n      \"queue\": {},\n      \"samples\": [\n{}\n      ]\n    }}",
        string(throughput.queue),
        samples.join(",\n")
    )
}

fn sample(sample: &Sample) -> String {
    let Sample { threads, per_second, retries_ppm, doorbells_ppm, p50_ns, p99_ns, p999_ns } = sample;
    format!(
        "        {{ \"threads\": {threads}, \"per_second\": {per_second}, \"retries_ppm\": {retries_ppm}, \
         \"doorbells_ppm\": {doorbells_ppm}, \"p50_ns\": {p50_ns}, \"p99_ns\": {p99_ns}, \"p999_ns\": {p999_ns} }}"
    )
}

fn machine(measured: &Measured) -> String {
    let rows: Vec<String> = measured.rows.iter().map(row).collect();
    let memory: Vec<String> = measured.memory.iter().map(memory).collect();
    format!(
        "    {{\n      \"name\": {},\n      \"about\": {},\n      \"operations\": [\n{}\n      ],\n      \
         \"memory\": [\n{}\n      ]\n    }}",
        string(&measured.machine),
        string(&measured.about),
        rows.join(",\n"),
        memory.join(",\n")
    )
}

fn row(row: &Row) -> String {
    let number = |value: Option<u64>| value.map_or_else(|| "null".to_owned(), |value| value.to_string());
    let counted = row.guest.map_or_else(String::new, |Guest { cost, counts }| {
        let Counts { cleans, barriers, tables, polls, reads, writes } = counts;
        format!(
            "\"doorbells\": {}, \"invalidations\": {}, \"polls\": {polls}, \"reads\": {reads}, \"writes\": {writes}, \
             \"barriers\": {barriers}, \"cleans\": {cleans}, \"tables\": {tables}, ",
            cost.doorbells, cost.invalidations
        )
    });
    format!(
        "        {{ \"operation\": {}, \"instructions\": {}, {counted}\"host_ns\": {}, \"linux\": {}, \"goal\": {} }}",
        string(row.operation.key),
        number(row.instructions()),
        number(row.nanoseconds),
        number(row.linux),
        number(row.goal())
    )
}

fn string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped() {
        assert_eq!(string("a\"b\\c\n"), r#""a\"b\\c\u000a""#);
    }
}
