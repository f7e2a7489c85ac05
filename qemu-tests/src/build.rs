//! Building the kernel.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::profile::Arch;
use crate::ui;
use crate::workspace::Workspace;

/// The kernel's package and program.
pub const KERNEL: &str = "portcullis-kernel";

/// Builds the kernel for `arch` and says where it is.
pub fn kernel(workspace: &Workspace, arch: Arch) -> Result<PathBuf> {
    ui::say(&format!("building the kernel for {arch}"));
    let mut command = workspace.cargo();
    command.args(["build", "--quiet", "--release", "--package", KERNEL, "--target", arch.triple()]);
    let status = command.stdin(Stdio::null()).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("the kernel does not build for {arch}");
    }
    let path = workspace.target().join(arch.triple()).join("release").join(KERNEL);
    if !path.exists() {
        bail!("cargo built no {}", path.display());
    }
    Ok(path)
}
