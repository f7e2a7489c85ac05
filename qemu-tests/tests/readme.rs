//! The README keeps what it promises.

use portcullis_qemu_tests::profile::Profiles;
use portcullis_qemu_tests::verdict::Expected;
use portcullis_qemu_tests::workspace::Workspace;

const README: &str = include_str!("../../README.md");
const EXAMPLE: &str = include_str!("../examples/embed.rs");

#[test]
fn the_readme_shows_the_example_that_is_compiled() {
    let shown = README.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let compiled = EXAMPLE.split("// --- README ---\n").nth(1).unwrap();
    assert_eq!(shown.trim(), compiled.trim());
}

/// The table's columns for machines in QEMU, by their position, with the machines that have to bear them out.
const COLUMNS: [(usize, &[&str]); 4] = [
    (2, &["aarch64"]),
    (3, &["x86_64-first"]),
    (4, &["x86_64-second"]),
    (5, &["aarch64-virtio", "aarch64-virtio-mmio", "x86_64-virtio"]),
];

/// How a claim begins, and the job and the checks that show it.
const CLAIMS: [(&str, &str, &[&str]); 11] = [
    ("discovery from", "main", &["discover.units", "discover.covered"]),
    ("denied before", "main", &["deny.closed", "deny.unattached"]),
    ("denied before", "takeover", &["deny.predecessor", "deny.closed", "deny.unattached"]),
    ("a disk of", "main", &["disk.read", "disk.write", "harness.disk.hash", "harness.disk.written"]),
    ("DMA both ways", "main", &["engine.edu0", "engine.edu1", "engine.no-fault"]),
    ("rogue DMA", "main", &["rogue.outside", "rogue.read-only", "rogue.neighbour", "rogue.detach"]),
    ("unmapped is gone", "main", &["revoke.page", "revoke.gather", "revoke.2m", "revoke.1g"]),
    ("stage 1, stage 2", "main", &["kind.blocked", "kind.identity"]),
    ("two CPUs", "main", &["cpus.start", "cpus.first", "cpus.second"]),
    ("unprivileged user", "main", &["space.demand", "space.fork", "space.exit", "space.shoot-unmap"]),
    ("devices work at", "main", &["share.both-ways", "share.protect", "share.unmap", "share.exit"]),
];

#[test]
fn what_the_table_says_of_a_machine_is_what_its_list_of_checks_demands() {
    let workspace = Workspace::current();
    let profiles = Profiles::load(&workspace).unwrap();
    for (claim, job, checks) in CLAIMS {
        let row = README.lines().find(|line| line.starts_with(&format!("| {claim}")));
        let cells: Vec<&str> = row.expect(claim).trim_matches('|').split('|').map(str::trim).collect();
        for (column, machines) in COLUMNS {
            let cell = cells[column];
            let said = !cell.is_empty() && !cell.starts_with("has ");
            for machine in machines {
                let expected = Expected::load(&workspace, profiles.named(machine).unwrap(), job).unwrap();
                let demanded = checks.iter().all(|check| expected.demands(check));
                assert_eq!(said, demanded, "{claim}: {machine} ({job}): the table says {cell:?}");
            }
        }
    }
}
