//! The proof that no public operation of the drivers can reach a panic: see `qemu-tests/no-panic`.

mod graph;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::profile::Arch;
use crate::workspace::Workspace;
use graph::Site;

/// The probe's package and program.
pub const PROBE: &str = "portcullis-no-panic";
const PROFILE: &str = "no-panic";
/// What the probe's panic handler calls, which exists nowhere.
const MISSING: &str = "a_panic_can_be_reached";

/// Panics that are known of: `qemu-tests/no-panic/allowed.toml`.
#[derive(Debug, Default, Deserialize)]
struct Allowed {
    #[serde(default)]
    panic: Vec<Exception>,
}

/// Calls that may lead to a panic still.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exception {
    /// How the file's name begins, as the report prints it.
    file: Option<String>,
    /// The function, as the report prints it: one of these, or whichever it be.
    #[serde(default)]
    functions: Vec<String>,
    /// What it calls: one of these, or whatever it be.
    #[serde(default)]
    calls: Vec<String>,
    /// Why they are there still.
    reason: String,
}

impl Exception {
    fn covers(&self, site: &Site) -> bool {
        self.file.as_deref().is_none_or(|file| site.file.starts_with(file))
            && (self.functions.is_empty() || self.functions.contains(&site.function))
            && (self.calls.is_empty() || self.calls.contains(&site.calls))
    }
}

/// Links the probe for `arch` and says what can panic, if something can. Says whether it is as it should be.
pub fn check(workspace: &Workspace, arch: Arch) -> Result<bool> {
    let path = workspace.harness_file("no-panic/allowed.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let allowed: Allowed = toml::from_str(&text).with_context(|| format!("{}", path.display()))?;
    let output = link(workspace, arch).stdin(Stdio::null()).output().context("cannot start cargo")?;
    if output.status.success() {
        return Ok(verdict(&BTreeSet::new(), &allowed));
    }
    let messages = String::from_utf8_lossy(&output.stderr);
    if !messages.contains(MISSING) {
        bail!("the probe does not build:\n{messages}");
    }
    let sites = sites(workspace, arch)?;
    if sites.is_empty() {
        bail!("the probe does not link, and what reaches the panic handler was not found:\n{messages}");
    }
    Ok(verdict(&sites, &allowed))
}

/// The command that links the probe.
fn link(workspace: &Workspace, arch: Arch) -> Command {
    let mut command = workspace.cargo();
    command.args(["rustc", "--quiet", "--profile", PROFILE, "--package", PROBE, "--target", arch.triple()]);
    command
}

/// Links the probe with a panic handler after all, and sees who reaches it.
fn sites(workspace: &Workspace, arch: Arch) -> Result<BTreeSet<Site>> {
    let defined = format!("link-arg=--defsym={MISSING}=0");
    let mut command = link(workspace, arch);
    command.args(["--features", "explain", "--"]);
    let status = command
        .args(["-C", &defined, "-C", "link-arg=--emit-relocs"])
        .stdin(Stdio::null())
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("the probe does not link with a panic handler either");
    }
    let program: PathBuf = workspace.target().join(arch.triple()).join(PROFILE).join(PROBE);
    graph::sites(&program, workspace.root(), "rust_begin_unwind")
}

/// Prints what is not as it should be.
fn verdict(sites: &BTreeSet<Site>, allowed: &Allowed) -> bool {
    let mut fine = true;
    for exception in &allowed.panic {
        if !sites.iter().any(|site| exception.covers(site)) {
            println!("     allowed.toml lists what cannot panic any more: {exception:?}");
            fine = false;
        }
    }
    let mut known = BTreeMap::new();
    for site in sites {
        if let Some(exception) = allowed.panic.iter().find(|exception| exception.covers(site)) {
            *known.entry(&*exception.reason).or_insert(0) += 1;
        } else {
            println!("     {}:{}: {} can panic in {}", site.file, site.line, site.function, site.calls);
            fine = false;
        }
    }
    for (reason, count) in known {
        println!("     known, {count} calls: {reason}");
    }
    fine
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(file: &str, function: &str, calls: &str) -> Site {
        Site { file: file.to_owned(), line: 1, function: function.to_owned(), calls: calls.to_owned() }
    }

    #[test]
    fn what_is_new_fails_and_so_does_an_exception_that_is_not_needed() {
        let known = site("drivers/a.rs", "f", "core::panicking::panic_fmt");
        let entry = "[[panic]]\nfile = \"drivers/a\"\nfunctions = [\"f\", \"h\"]\nreason = \"r\"\n";
        let allowed: Allowed = toml::from_str(entry).unwrap();
        assert!(verdict(&BTreeSet::from([known.clone()]), &allowed));
        assert!(!verdict(&BTreeSet::from([known, site("drivers/a.rs", "g", "x")]), &allowed));
        assert!(!verdict(&BTreeSet::new(), &allowed));
        assert!(verdict(&BTreeSet::new(), &Allowed::default()));
    }
}
