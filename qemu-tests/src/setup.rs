//! The set-up step: whatever building and running needs and this machine lacks.

pub mod apt;
pub mod debian;
pub mod rustup;
pub mod version;

use anyhow::Result;

use crate::profile::Arch;
use crate::qemu::{self, Qemu};
use crate::ui;
use crate::workspace::Workspace;
use version::Version;

/// The oldest QEMU with everything that the profiles ask for (`fsts=`, `pasid-bits=`, nested SMMUv3).
pub const NEEDED: Version = Version::new(11, 0, 0);

/// The QEMUs to use, one per architecture.
#[derive(Clone, Debug)]
pub struct Tools {
    x86_64: Qemu,
    aarch64: Qemu,
}

impl Tools {
    /// The QEMU that emulates `arch`.
    pub fn qemu(&self, arch: Arch) -> &Qemu {
        match arch {
            Arch::X86_64 => &self.x86_64,
            Arch::Aarch64 => &self.aarch64,
        }
    }

    /// The version and origin of each QEMU, on one line.
    pub fn describe(&self) -> String {
        if self.x86_64.describe() == self.aarch64.describe() {
            return self.x86_64.describe();
        }
        format!("x86_64: {}; aarch64: {}", self.x86_64.describe(), self.aarch64.describe())
    }
}

/// Installs what is missing. Quick and without a network when nothing is.
pub fn ensure(workspace: &Workspace) -> Result<Tools> {
    rustup::ensure_targets(workspace)?;
    let x86_64 = qemu::find(Arch::X86_64)?;
    let aarch64 = qemu::find(Arch::Aarch64)?;
    let (x86_64, aarch64) = match (x86_64, aarch64) {
        (Some(x86_64), Some(aarch64)) => (x86_64, aarch64),
        (x86_64, aarch64) => {
            let private = debian::ensure(workspace)?;
            let or_private = |found: Option<Qemu>, arch| found.map_or_else(|| private.qemu(arch), Ok);
            (or_private(x86_64, Arch::X86_64)?, or_private(aarch64, Arch::Aarch64)?)
        }
    };
    Ok(Tools { x86_64, aarch64 })
}

/// `cargo xtask setup`.
pub fn command(workspace: &Workspace) -> Result<()> {
    let tools = ensure(workspace)?;
    rustup::ensure_components(workspace)?;
    ui::say(&format!("{}: ready", tools.describe()));
    Ok(())
}
