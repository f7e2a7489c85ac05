//! The QEMU program: finding one, and the one place that knows how it is started.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, anyhow, bail};

use crate::profile::Arch;
use crate::setup::NEEDED;
use crate::setup::version::Version;

/// A QEMU for one architecture.
#[derive(Clone, Debug)]
pub struct Qemu {
    start: Start,
    version: Version,
    devices: Arc<OnceLock<String>>,
}

#[derive(Clone, Debug)]
enum Start {
    Installed(PathBuf),
    Private(Private),
}

/// How an unpacked, not installed QEMU is started: through its own dynamic loader with its own libraries.
#[derive(Clone, Debug)]
pub struct Private {
    loader: PathBuf,
    libraries: PathBuf,
    program: PathBuf,
    firmware: Vec<PathBuf>,
}

impl Private {
    /// The QEMU for `arch` in the directory that packages were unpacked to.
    pub fn in_root(root: &Path, arch: Arch) -> Result<Self> {
        let lib = root.join("usr/lib");
        let loader_in = |directory: &Path| {
            let mut entries = fs::read_dir(directory).ok()?.filter_map(|entry| entry.ok());
            entries
                .find(|entry| entry.file_name().to_string_lossy().starts_with("ld-linux"))
                .map(|entry| entry.path())
        };
        // The one directory for the host's own architecture: usr/lib/CPU-linux-gnu.
        let (libraries, loader) = fs::read_dir(&lib)
            .with_context(|| format!("cannot read {}", lib.display()))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.to_string_lossy().ends_with("-linux-gnu"))
            .find_map(|path| loader_in(&path).map(|loader| (path, loader)))
            .ok_or_else(|| anyhow!("no dynamic loader below {}", lib.display()))?;
        let program = root.join("usr/bin").join(arch.qemu_name());
        if !program.exists() {
            bail!("{} is missing", program.display());
        }
        let share = root.join("usr/share");
        let firmware = ["qemu", "seabios"].iter().map(|name| share.join(name)).collect();
        Ok(Self { loader, libraries, program, firmware })
    }

    /// The command without arguments for QEMU, with a library to load first if one is given.
    pub fn command(&self, preload: Option<&Path>) -> Command {
        let mut command = Command::new(&self.loader);
        command.arg("--library-path").arg(&self.libraries);
        if let Some(library) = preload {
            command.arg("--preload").arg(library);
        }
        if let Some(name) = self.program.file_name() {
            command.arg("--argv0").arg(name);
        }
        command.arg(&self.program);
        for directory in &self.firmware {
            command.arg("-L").arg(directory);
        }
        // The built-in directory may hold the modules of an older QEMU of the host.
        command.env("QEMU_MODULE_DIR", self.libraries.join("qemu"));
        command
    }
}

impl Qemu {
    /// An unpacked QEMU of a known version.
    pub fn private(private: Private, version: Version) -> Self {
        Self { start: Start::Private(private), version, devices: Arc::default() }
    }

    /// The command that starts this QEMU, without arguments, with a library to load first if one is given.
    pub fn command(&self, preload: Option<&Path>) -> Command {
        match &self.start {
            Start::Private(private) => private.command(preload),
            Start::Installed(program) => {
                let mut command = Command::new(program);
                if let Some(library) = preload {
                    command.env("LD_PRELOAD", library);
                }
                command
            }
        }
    }

    /// Version and origin.
    pub fn describe(&self) -> String {
        match &self.start {
            Start::Private(_) => format!("QEMU {} (private, from backports)", self.version),
            Start::Installed(program) => format!("QEMU {} ({})", self.version, program.display()),
        }
    }

    /// Whether this QEMU knows the device `name`; asked once.
    pub fn has_device(&self, name: &str) -> bool {
        let list = self.devices.get_or_init(|| {
            let output = self.command(None).args(["-device", "help"]).stdin(Stdio::null()).output();
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
        });
        list.contains(&format!("name \"{name}\""))
    }
}

/// A QEMU that is there already: the one named by the environment, or one on the PATH that is new enough.
pub fn find(arch: Arch) -> Result<Option<Qemu>> {
    let variable = arch.qemu_variable();
    if let Some(program) = env::var_os(variable).filter(|value| !value.is_empty()) {
        let program = PathBuf::from(program);
        let version =
            version_of(&program).with_context(|| format!("{variable} names {}", program.display()))?;
        if version < NEEDED {
            bail!("{variable} names QEMU {version}; {NEEDED} or newer is needed");
        }
        return Ok(Some(installed(program, version)));
    }
    let Some(program) = on_path(env::var_os("PATH").as_deref(), arch.qemu_name()) else {
        return Ok(None);
    };
    // One that is too old or does not start is as good as none.
    let version = version_of(&program).ok().filter(|version| *version >= NEEDED);
    Ok(version.map(|version| installed(program, version)))
}

fn installed(program: PathBuf, version: Version) -> Qemu {
    Qemu { start: Start::Installed(program), version, devices: Arc::default() }
}

fn on_path(path: Option<&OsStr>, name: &str) -> Option<PathBuf> {
    let candidates = env::split_paths(path?).map(|directory| directory.join(name));
    candidates.into_iter().find(|candidate| candidate.is_file())
}

fn version_of(program: &Path) -> Result<Version> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output()?;
    let banner = String::from_utf8_lossy(&output.stdout);
    Version::from_banner(&banner).ok_or_else(|| anyhow!("it does not tell its version"))
}

/// A command line as one would type it.
pub fn shell_words(command: &Command) -> String {
    let quote = |word: &OsStr| {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,=:+@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.into_owned()
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    };
    let environment = command.get_envs().filter_map(|(name, value)| {
        let mut word = OsString::from(name);
        word.push("=");
        word.push(value?);
        Some(quote(&word))
    });
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(quote);
    environment.chain(words).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_can_be_pasted_into_a_shell() {
        let mut command = Command::new("qemu");
        command.args(["-append", "job=main x='1'", "-m", "1G", ""]);
        assert_eq!(shell_words(&command), "qemu -append 'job=main x='\\''1'\\''' -m 1G ''");
    }

    #[test]
    fn programs_are_looked_for_on_the_path_only() {
        assert_eq!(on_path(None, "sh"), None);
        assert_eq!(on_path(Some(OsStr::new("/nonexistent")), "sh"), None);
    }
}
