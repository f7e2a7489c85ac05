//! Building the kernel.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::profile::Arch;
use crate::ui;
use crate::workspace::Workspace;

/// The kernel's package and program.
pub const KERNEL: &str = "portcullis-kernel";

/// Which kernel is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// The one that ships.
    Shipped,
    /// The benchmark's, which counts what a count of instructions hides.
    Counting,
}

/// Builds the kernel for `arch` and says where it is.
pub fn kernel(workspace: &Workspace, arch: Arch, variant: Variant) -> Result<PathBuf> {
    let (profile, features, what) = match variant {
        Variant::Shipped => ("release", "", "kernel"),
        Variant::Counting => ("counting", "count", "counting kernel"),
    };
    ui::say(&format!("building the {what} for {arch}"));
    let mut command = workspace.cargo();
    command.args(["build", "--quiet", "--package", KERNEL, "--target", arch.triple()]);
    command.args(["--profile", profile, "--features", features]);
    let status = command.stdin(Stdio::null()).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("the {what} does not build for {arch}");
    }
    let path = workspace.target().join(arch.triple()).join(profile).join(KERNEL);
    if !path.exists() {
        bail!("cargo built no {}", path.display());
    }
    Ok(path)
}
