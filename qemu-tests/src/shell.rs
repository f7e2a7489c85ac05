//! `cargo xtask shell`: the kernel's console on this terminal.

use anyhow::{Context, Result};

use crate::profile::{Arch, Console, Iommu};
use crate::run::Lab;
use crate::ui::{self, Style, paint};
use crate::workspace::Workspace;

/// Boots into the console and stays until QEMU ends. Says whether it ended well.
pub fn command(workspace: &Workspace, arch: Arch, iommu: Iommu, profile: Option<&str>) -> Result<bool> {
    let lab = Lab::prepare(workspace, &[arch])?;
    let profile = match profile {
        Some(name) => lab.profiles.named(name)?,
        None => *lab.profiles.select(Some(arch), iommu).first().context("no such machine")?,
    };
    ui::say(&format!("{}: {}", profile.name, profile.about));
    eprintln!(
        "{}",
        paint(Style::Dim, "    `help` lists the commands, `poweroff` ends, Ctrl-A X ends QEMU at once")
    );
    let disk = lab.image.copy(&format!("{}-shell", profile.name))?;
    // In our own process group: only that one may read from the terminal.
    let status = lab
        .command(profile, Console::Terminal, disk.path(), "shell")?
        .status()
        .context("cannot start QEMU")?;
    // `poweroff` is a success to the kernel; 0 is QEMU ended from the keyboard.
    let code = status.code();
    Ok(code == Some(profile.arch.success_status()) || code == Some(0))
}
