//! `cargo xtask check`: formatting, lints, documentation and the absence of panics, on the host and for both
//! bare-metal targets.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::build::KERNEL;
use crate::no_panic;
use crate::profile::Arch;
use crate::setup::rustup;
use crate::test::BARE_METAL_ONLY;
use crate::ui::{self, Style, paint};
use crate::workspace::Workspace;

/// Packages that need a host.
const HOST_ONLY: [&str; 3] = ["portcullis-qemu-tests", MODEL, "portcullis-suites"];

/// The package that must not depend on any other of the workspace: a model that shares code with a driver shares its
/// mistakes.
const MODEL: &str = "portcullis-model";

/// The step with a list of its own of what is not to be called.
const FALLIBLE: &str = "drivers report failed allocations";

/// One thing that is checked.
struct Step {
    name: String,
    work: Work,
}

/// How it is checked.
enum Work {
    /// A program that fails if something is wrong.
    Command(Command),
    /// The probe for panics, linked for one architecture.
    NoPanic(Arch),
    /// The models' manifest.
    ModelTies,
}

impl Work {
    fn is_well(&mut self, workspace: &Workspace) -> Result<bool> {
        match self {
            Self::Command(command) => {
                Ok(command.stdin(Stdio::null()).status().context("cannot start cargo")?.success())
            }
            Self::NoPanic(arch) => no_panic::check(workspace, *arch),
            Self::ModelTies => {
                let ties = model_ties(workspace)?;
                ties.iter().for_each(|tie| println!("{MODEL} depends on {tie}"));
                Ok(ties.is_empty())
            }
        }
    }
}

/// Checks everything whose name contains `filter`. Says whether it is all well.
pub fn command(workspace: &Workspace, filter: Option<&str>) -> Result<bool> {
    rustup::ensure_targets(workspace)?;
    rustup::ensure_components(workspace)?;
    let mut failed = Vec::new();
    let mut steps = steps(workspace)?;
    steps.retain(|step| filter.is_none_or(|filter| step.name.contains(filter)));
    let count = steps.len();
    if count == 0 {
        println!("no step matches");
        return Ok(false);
    }
    for mut step in steps {
        ui::say(&step.name);
        let started = Instant::now();
        if step.work.is_well(workspace)? {
            println!("{} {} ({})", paint(Style::Good, "ok  "), step.name, ui::seconds(started.elapsed()));
        } else {
            println!("{} {}", paint(Style::Bad, "FAIL"), step.name);
            failed.push(step.name);
        }
    }
    if failed.is_empty() {
        println!("check: all {count} steps passed");
    } else {
        println!("check: {} of {count} steps failed: {}", failed.len(), failed.join(", "));
    }
    Ok(failed.is_empty())
}

fn steps(workspace: &Workspace) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    let mut step = |name: String, arguments: &[&str], tail: &[&str]| {
        let mut command = workspace.cargo();
        command.args(arguments).args(tail).env("RUSTDOCFLAGS", "-D warnings");
        steps.push(Step { name, work: Work::Command(command) });
    };
    let exclude = |packages: &[&'static str]| -> Vec<&'static str> {
        packages.iter().flat_map(|package| ["--exclude", package]).collect()
    };
    let deny = ["--", "-D", "warnings"];
    step("formatting".to_owned(), &["fmt", "--all", "--check"], &[]);

    let host =
        [&["clippy", "--quiet", "--workspace", "--all-targets"][..], &exclude(&BARE_METAL_ONLY)].concat();
    step("clippy on the host".to_owned(), &host, &deny);
    for arch in Arch::ALL {
        let target = ["--target", arch.triple()];
        let bare = [&["clippy", "--quiet", "--workspace"][..], &exclude(&HOST_ONLY), &target].concat();
        step(format!("clippy for {}", arch.triple()), &bare, &deny);
    }
    let counting = ["clippy", "--quiet", "--package", KERNEL, "--features", "count"];
    step(
        "clippy of the counting kernel".to_owned(),
        &[&counting[..], &["--target", Arch::X86_64.triple()]].concat(),
        &deny,
    );

    let drivers = driver_packages(workspace)?;
    let packages: Vec<&str> = drivers.iter().flat_map(|package| ["--package", package]).collect();
    // As an embedder builds them, with a list of what they must not call.
    let quiet = ["clippy", "--quiet", "--target", Arch::Aarch64.triple()];
    step(FALLIBLE.to_owned(), &[&quiet[..], &packages].concat(), &deny);
    for arch in Arch::ALL {
        // In the profile of the kernel, which then need not build them again.
        let arguments =
            [&["build", "--quiet", "--release", "--target", arch.triple()][..], &packages].concat();
        step(format!("drivers for {}", arch.triple()), &arguments, &[]);
    }

    let host = [&["doc", "--quiet", "--no-deps", "--workspace"][..], &exclude(&BARE_METAL_ONLY)].concat();
    step("documentation on the host".to_owned(), &host, &[]);
    for arch in Arch::ALL {
        let mut arguments = vec!["doc", "--quiet", "--no-deps", "--target", arch.triple()];
        arguments.extend(BARE_METAL_ONLY.iter().flat_map(|package| ["--package", package]));
        step(format!("documentation for {}", arch.triple()), &arguments, &[]);
    }
    for step in steps.iter_mut().filter(|step| step.name == FALLIBLE) {
        if let Work::Command(command) = &mut step.work {
            command.env("CLIPPY_CONF_DIR", workspace.harness_file("lints"));
        }
    }
    let name = "the models share no code with what they judge".to_owned();
    steps.push(Step { name, work: Work::ModelTies });
    for arch in Arch::ALL {
        let name = format!("no panic in the drivers for {}", arch.triple());
        steps.push(Step { name, work: Work::NoPanic(arch) });
    }
    Ok(steps)
}

/// The library packages below `drivers/`, which embedders build for bare metal.
fn driver_packages(workspace: &Workspace) -> Result<Vec<String>> {
    let folder = workspace.root().join("drivers");
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names = Vec::new();
    for manifest in entries.filter_map(|entry| entry.ok().map(|entry| entry.path().join("Cargo.toml"))) {
        let Ok(text) = fs::read_to_string(&manifest) else {
            continue;
        };
        let table: toml::Table = text.parse().with_context(|| format!("{}", manifest.display()))?;
        let name = table.get("package").and_then(|package| package.get("name")).and_then(toml::Value::as_str);
        names.extend(name.filter(|name| !HOST_ONLY.contains(name)).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// The packages of this workspace that the models depend on: there are to be none.
fn model_ties(workspace: &Workspace) -> Result<Vec<String>> {
    let manifest = workspace.root().join("drivers/model/Cargo.toml");
    let text =
        fs::read_to_string(&manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
    ties(&text).with_context(|| format!("{}", manifest.display()))
}

/// The dependencies of a manifest, of any kind and for any target, that are packages of this workspace or have a path.
fn ties(manifest: &str) -> Result<Vec<String>> {
    let table: toml::Table = manifest.parse()?;
    let targets = table.get("target").and_then(toml::Value::as_table);
    let for_targets = targets.into_iter().flat_map(toml::Table::values).filter_map(toml::Value::as_table);
    let tied = |(name, dependency): (&String, &toml::Value)| {
        let renamed = dependency.get("package").and_then(toml::Value::as_str);
        let own = renamed.unwrap_or(name).starts_with("portcullis-") || dependency.get("path").is_some();
        own.then(|| name.clone())
    };
    Ok(std::iter::once(&table)
        .chain(for_targets)
        .flat_map(|table| {
            ["dependencies", "dev-dependencies", "build-dependencies"].map(|kind| table.get(kind))
        })
        .filter_map(|dependencies| dependencies?.as_table())
        .flat_map(|dependencies| dependencies.iter().filter_map(tied))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_are_found_wherever_a_manifest_can_have_them() {
        let free = "[package]\nname = 'x'\n[dependencies]\nspin.workspace = true\n";
        assert_eq!(ties(free).unwrap(), [""; 0]);
        for tie in [
            "[dependencies]\nportcullis-hal.workspace = true",
            "[dev-dependencies]\nportcullis-vtd = '0.1'",
            "[build-dependencies]\nhidden = { package = 'portcullis-hal', version = '0.1' }",
            "[target.'cfg(unix)'.dependencies]\nother = { path = '../hal' }",
        ] {
            assert_eq!(ties(tie).unwrap().len(), 1, "{tie}");
        }
    }

    #[test]
    fn the_models_depend_on_nothing_here() {
        assert_eq!(model_ties(&Workspace::current()).unwrap(), [""; 0]);
    }
}
