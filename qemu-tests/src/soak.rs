//! `cargo xtask soak`: the suites of random operations for a given time, with new seeds, and Miri.

use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::ui::{self, Style, paint};
use crate::workspace::Workspace;

/// Seeds of one round of a suite.
const SEEDS: u64 = 100;

/// A suite that takes its first seed and its length from the environment. Those without processes shrink what fails.
struct Suite {
    package: &'static str,
    test: &'static str,
    /// Operations of one seed.
    length: u64,
}

const SUITES: [Suite; 5] = [
    Suite {
        package: "portcullis-smmuv3",
        test: "run::what_is_mapped_arrives_and_what_is_not_never_does_whatever_the_unit_caches",
        length: 1000,
    },
    Suite {
        package: "portcullis-smmuv3",
        test: "sva::with_page_requests_devices_reach_what_their_processes_may_and_every_request_has_one_answer",
        length: 400,
    },
    Suite {
        package: "portcullis-smmuv3",
        test: "sva::with_stalls_devices_reach_what_their_processes_may_and_every_stall_has_one_answer",
        length: 400,
    },
    Suite {
        package: "portcullis-vtd",
        test: "after_every_operation_devices_reach_what_is_mapped_and_nothing_else",
        length: 1000,
    },
    Suite {
        package: "portcullis-vtd",
        test: "sva::devices_reach_what_their_processes_may_and_every_request_has_one_answer",
        length: 400,
    },
];

/// Packages, and those of their tests that Miri can run in some minutes.
const MIRI: [(&str, &[&str]); 3] = [
    ("portcullis-hal", &["--lib"]),
    ("portcullis-iommu", &["--lib"]),
    ("portcullis-pgtable", &["--test", "shortcuts"]),
];

/// What comes after the random operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// What Miri can run.
    Miri,
    /// Nothing more.
    Nothing,
}

/// Runs the suites for so many minutes, then Miri, if wanted. Says whether everything passed.
pub fn command(workspace: &Workspace, minutes: u64, seed: Option<u64>, then: Then) -> Result<bool> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Far from the seeds that the tests begin with.
    let first = seed.unwrap_or(now.as_secs() << 12);
    println!("the first seed is {first}; to repeat it: cargo xtask soak --seed {first}");
    let started = Instant::now();
    let limit = Duration::from_secs(minutes.saturating_mul(60));
    let mut totals = [0; SUITES.len()];
    let mut round = 0;
    while round == 0 || started.elapsed() < limit {
        let seed = first.wrapping_add(round * SEEDS);
        for (suite, total) in SUITES.iter().zip(&mut totals) {
            if !suite.run(workspace, seed)? {
                return Ok(false);
            }
            *total += SEEDS * suite.length;
        }
        round += 1;
    }
    for (suite, total) in SUITES.iter().zip(totals) {
        println!("{}, {}: {total} operations", suite.package, suite.test);
    }
    match then {
        Then::Miri => miri(workspace),
        Then::Nothing => Ok(true),
    }
}

impl Suite {
    fn run(&self, workspace: &Workspace, seed: u64) -> Result<bool> {
        let last = seed + SEEDS - 1;
        ui::say(&format!("{}: seeds {seed} to {last}", self.package));
        let mut command = workspace.cargo();
        command.args(["test", "--quiet", "--package", self.package, "--test", "on_model", "--"]);
        command.args([self.test, "--exact", "--nocapture"]);
        command
            .env("PORTCULLIS_FIRST", seed.to_string())
            .env("PORTCULLIS_OPERATIONS", (SEEDS * self.length).to_string());
        let output = command.stdin(Stdio::null()).output().context("cannot start cargo")?;
        let text = String::from_utf8_lossy(&output.stdout);
        // A name that matches nothing is a success to cargo.
        let ran = text.contains("1 passed");
        if output.status.success() && ran {
            let speed = text.lines().find(|line| line.contains("per second")).unwrap_or_default();
            println!("{} {}: {speed}", paint(Style::Good, "ok  "), self.package);
            return Ok(true);
        }
        println!("{} {}", paint(Style::Bad, "FAIL"), self.package);
        if !ran && output.status.success() {
            println!("     the test {} is not there", self.test);
        }
        println!("{text}{}", String::from_utf8_lossy(&output.stderr));
        Ok(false)
    }
}

/// Runs what Miri can run; without a nightly toolchain it is an error.
fn miri(workspace: &Workspace) -> Result<bool> {
    let has = |arguments: &[&str]| {
        let mut command = workspace.tool("rustup");
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    if !has(&["run", "nightly", "rustc", "--version"]) {
        println!(
            "Miri needs a nightly toolchain: rustup toolchain install nightly (or leave it out: --without-miri)"
        );
        return Ok(false);
    }
    if !has(&["run", "nightly", "cargo", "miri", "--version"]) {
        ui::say("installing Miri: rustup component add miri rust-src --toolchain nightly");
        if !has(&["component", "add", "miri", "rust-src", "--toolchain", "nightly"]) {
            println!(
                "`rustup component add miri rust-src --toolchain nightly` failed (leave Miri out: --without-miri)"
            );
            return Ok(false);
        }
    }
    for (package, tests) in MIRI {
        ui::say(&format!("Miri: {package}"));
        let mut command = workspace.tool("rustup");
        command
            .args(["run", "nightly", "cargo", "miri", "test", "--quiet", "--package", package])
            .args(tests);
        // A build directory of its own: another compiler's would be built anew each time. This program was started
        // by the pinned toolchain, which is not to be used here.
        command.env("CARGO_TARGET_DIR", workspace.target().join("miri"));
        command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO").env_remove("RUSTC");
        // Addresses of the modelled memory become pointers again in the page tables.
        command.env("MIRIFLAGS", "-Zmiri-permissive-provenance");
        let status = command.stdin(Stdio::null()).status().context("cannot start rustup")?;
        if !status.success() {
            println!("{} Miri: {package}", paint(Style::Bad, "FAIL"));
            return Ok(false);
        }
        println!("{} Miri: {package}", paint(Style::Good, "ok  "));
    }
    Ok(true)
}
