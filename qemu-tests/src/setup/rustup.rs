//! The bare-metal targets and the tools of the pinned toolchain.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::profile::Arch;
use crate::ui;
use crate::workspace::Workspace;

/// Installs the targets that are missing. It asks the compiler and not rustup, so that a Rust from elsewhere that has
/// the targets does as well.
pub fn ensure_targets(workspace: &Workspace) -> Result<()> {
    let mut missing = Vec::new();
    for arch in Arch::ALL {
        if !has_target(workspace, arch.triple())? {
            missing.push(arch.triple());
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    ui::say(&format!("installing the Rust targets {}", missing.join(" and ")));
    let status = workspace
        .tool("rustup")
        .args(["target", "add"])
        .args(&missing)
        .stdin(Stdio::null())
        .status()
        .with_context(|| {
            format!("the Rust targets {} are missing, and there is no rustup to add them", missing.join(", "))
        })?;
    if !status.success() {
        bail!("`rustup target add {}` failed", missing.join(" "));
    }
    Ok(())
}

fn has_target(workspace: &Workspace, triple: &str) -> Result<bool> {
    let output = workspace
        .tool("rustc")
        .args(["--print", "target-libdir", "--target", triple])
        .output()
        .context("cannot start rustc")?;
    if !output.status.success() {
        bail!("rustc does not answer: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let directory = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    // An interrupted `rustup target add` is rolled back, so any file is a sign of all.
    Ok(directory.read_dir().is_ok_and(|mut entries| entries.next().is_some()))
}

/// Installs rustfmt and clippy where they are missing.
pub fn ensure_components(workspace: &Workspace) -> Result<()> {
    let works = |mut command: Command| {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let mut missing = Vec::new();
    for (component, sub_command) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        let mut command = workspace.cargo();
        command.args([sub_command, "--version"]);
        if !works(command) {
            missing.push(component);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    ui::say(&format!("installing {}", missing.join(" and ")));
    let mut command = workspace.tool("rustup");
    command.args(["component", "add"]).args(&missing).stdin(Stdio::null());
    let status =
        command.status().with_context(|| format!("{} missing, and no rustup", missing.join(", ")))?;
    if !status.success() {
        bail!("`rustup component add {}` failed", missing.join(" "));
    }
    Ok(())
}
