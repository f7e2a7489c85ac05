//! Where things are: the workspace, its build directory, and the tools that build it.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The directories that the harness works in.
#[derive(Clone, Debug)]
pub struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// The workspace that this package belongs to, with the build directory that cargo uses for it.
    pub fn current() -> Self {
        // `cargo run` sets the variable, so a copied or moved tree finds itself and not the place it was built in.
        let package = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = package.parent().map_or(package.clone(), Path::to_path_buf);
        let target =
            env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
        Self { root, target }
    }

    /// A workspace at another place with a build directory of its own.
    pub fn at(root: PathBuf, target: PathBuf) -> Self {
        Self { root, target }
    }

    /// The directory of the workspace's `Cargo.toml`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The build directory.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// A file of this package.
    pub fn harness_file(&self, name: &str) -> PathBuf {
        self.root.join("qemu-tests").join(name)
    }

    /// Where the private QEMU lives. It is the workspace's own `target/` whatever the build directory is, so that
    /// several build directories share one QEMU.
    pub fn qemu_dir(&self) -> PathBuf {
        self.root.join("target").join("qemu")
    }

    /// Where consoles are kept.
    pub fn log_dir(&self) -> PathBuf {
        self.target.join("logs")
    }

    /// Where random operations leave what they did, and how often.
    pub fn coverage_dir(&self) -> PathBuf {
        self.target.join("tmp/coverage")
    }

    /// A cargo that builds this workspace.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
        command.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        // What `cargo run` set for this program is not meant for the packages that it builds.
        for (name, _) in env::vars_os() {
            let name_text = name.to_string_lossy();
            if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST_") {
                command.env_remove(&name);
            }
        }
        command
    }

    /// A tool of the pinned toolchain, run in the workspace.
    pub fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.current_dir(&self.root);
        command
    }
}
