//! The machines that the kernel is run on: `profiles.toml`.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::device_tree::Addition;
use crate::endpoint::Preload;
use crate::qemu::Qemu;
use crate::workspace::Workspace;

/// A CPU architecture that the kernel is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, clap::ValueEnum)]
pub enum Arch {
    /// 64-bit Arm.
    #[serde(rename = "aarch64")]
    #[value(name = "aarch64")]
    Aarch64,
    /// 64-bit x86.
    #[serde(rename = "x86_64")]
    #[value(name = "x86_64")]
    X86_64,
}

impl Arch {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Aarch64, Self::X86_64];

    /// The name, as in Rust's targets.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aarch64 => "aarch64",
            Self::X86_64 => "x86_64",
        }
    }

    /// The bare-metal target.
    pub const fn triple(self) -> &'static str {
        match self {
            Self::Aarch64 => "aarch64-unknown-none",
            Self::X86_64 => "x86_64-unknown-none",
        }
    }

    /// QEMU's program.
    pub const fn qemu_name(self) -> &'static str {
        match self {
            Self::Aarch64 => "qemu-system-aarch64",
            Self::X86_64 => "qemu-system-x86_64",
        }
    }

    /// The environment variable that names another QEMU.
    pub const fn qemu_variable(self) -> &'static str {
        match self {
            Self::Aarch64 => "QEMU_AARCH64",
            Self::X86_64 => "QEMU_X86_64",
        }
    }

    /// QEMU's exit status after a kernel that reports success. The debug-exit port gives `(value << 1) | 1`.
    pub const fn success_status(self) -> i32 {
        match self {
            Self::Aarch64 => 0,
            Self::X86_64 => 0x10 << 1 | 1,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which IOMMU the machine has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Iommu {
    /// The architecture's own: SMMUv3 or VT-d.
    #[default]
    Native,
    /// virtio-iommu.
    Virtio,
}

/// One machine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// What it has, in a few words.
    pub about: String,
    /// Its CPU.
    pub arch: Arch,
    /// Its IOMMU.
    pub iommu: Iommu,
    args: Vec<String>,
    /// Words for the kernel's command line, after the job.
    #[serde(default)]
    append: Vec<String>,
    /// What its device tree has to say beyond QEMU's.
    pub device_tree: Option<Addition>,
    #[serde(skip)]
    cpus: Cpus,
}

/// How many CPUs a machine has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Cpus {
    One,
    #[default]
    Two,
}

impl Cpus {
    /// QEMU's `-smp`.
    const fn number(self) -> &'static str {
        match self {
            Self::One => "1",
            Self::Two => "2",
        }
    }
}

impl Profile {
    /// The same machine with one CPU.
    fn with_one_cpu(&self) -> Self {
        Self {
            name: format!("{}-one-cpu", self.name),
            about: format!("{}; one CPU", self.about),
            cpus: Cpus::One,
            ..self.clone()
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Optional {
    device: String,
    args: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Common {
    args: Vec<String>,
    #[serde(default)]
    optional: Vec<Optional>,
}

/// A device that gets PASIDs, ATS and page requests from a library.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Its name in QEMU.
    pub id: String,
    /// Where the kernel finds it.
    pub place: String,
    args: Vec<String>,
}

/// What a machine is started with.
#[derive(Clone, Copy, Debug)]
pub struct Boot<'a> {
    /// Where its serial port goes.
    pub console: Console,
    /// The kernel.
    pub kernel: &'a Path,
    /// The disk.
    pub disk: &'a Path,
    /// The kernel's job.
    pub job: &'a str,
    /// What makes the endpoints; without it they are not there.
    pub preload: Option<&'a Preload>,
}

/// A machine whose CPUs never run.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frozen {
    /// Its name.
    pub name: String,
    /// Its CPU.
    pub arch: Arch,
    args: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CommonFrozen {
    args: Vec<String>,
}

/// All machines.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profiles {
    /// The machines that are there with one CPU too.
    one_cpu: Vec<String>,
    common: Common,
    #[serde(default)]
    endpoint: Vec<Endpoint>,
    profile: Vec<Profile>,
    common_frozen: CommonFrozen,
    frozen: Vec<Frozen>,
}

/// Where the kernel's serial port goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// Pipes of the harness.
    Piped,
    /// The user's terminal; Ctrl-A X ends QEMU.
    Terminal,
}

impl Profiles {
    /// Reads `profiles.toml`.
    pub fn load(workspace: &Workspace) -> Result<Self> {
        let path = workspace.harness_file("profiles.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut profiles: Self = toml::from_str(text).context("profiles.toml")?;
        for (index, profile) in profiles.profile.iter().enumerate() {
            if profiles.profile[..index].iter().any(|other| other.name == profile.name) {
                bail!("profiles.toml: two profiles are called {}", profile.name);
            }
        }
        let lesser = profiles.one_cpu.iter().map(|name| profiles.named(name).map(Profile::with_one_cpu));
        let lesser = lesser.collect::<Result<Vec<_>>>()?;
        profiles.profile.extend(lesser);
        Ok(profiles)
    }

    /// The machines with this IOMMU, of one architecture or of both, with all their CPUs.
    pub fn select(&self, arch: Option<Arch>, iommu: Iommu) -> Vec<&Profile> {
        let fits = |profile: &&Profile| {
            profile.iommu == iommu
                && profile.cpus == Cpus::Two
                && arch.is_none_or(|arch| profile.arch == arch)
        };
        self.profile.iter().filter(fits).collect()
    }

    /// Every machine.
    pub fn all(&self) -> &[Profile] {
        &self.profile
    }

    /// The machine called `name`.
    pub fn named(&self, name: &str) -> Result<&Profile> {
        let names =
            || self.profile.iter().map(|profile| profile.name.as_str()).collect::<Vec<_>>().join(", ");
        let found = self.profile.iter().find(|profile| profile.name == name);
        found.with_context(|| format!("no profile {name:?}; there are {}", names()))
    }

    /// The machine without a running CPU that is called `name`.
    pub fn frozen(&self, name: &str) -> Result<&Frozen> {
        let found = self.frozen.iter().find(|machine| machine.name == name);
        found.with_context(|| format!("profiles.toml: no frozen machine {name:?}"))
    }

    /// The command that starts such a machine, but for what connects to it.
    pub fn frozen_command(&self, machine: &Frozen, qemu: &Qemu) -> Command {
        let mut command = qemu.command(None);
        command.args(machine.args.iter().chain(&self.common_frozen.args));
        command
    }

    /// The endpoints.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoint
    }

    /// The whole command that boots a machine.
    pub fn command(&self, profile: &Profile, qemu: &Qemu, boot: Boot<'_>) -> Command {
        let mut command = qemu.command(boot.preload.map(|preload| preload.library.as_path()));
        let optional = self.common.optional.iter().filter(|optional| qemu.has_device(&optional.device));
        let disk = boot.disk.to_string_lossy().replace(',', ",,");
        // The machine's own devices come first, so that they get the slots that they ask for.
        for arg in
            profile.args.iter().chain(&self.common.args).chain(optional.flat_map(|optional| &optional.args))
        {
            command.arg(arg.replace("@DISK@", &disk));
        }
        command.args(["-smp", profile.cpus.number()]);
        if let Some(preload) = boot.preload {
            command.args(self.endpoint.iter().flat_map(|endpoint| &endpoint.args));
            let ids: Vec<&str> = self.endpoint.iter().map(|endpoint| endpoint.id.as_str()).collect();
            command.env("PORTCULLIS_ENDPOINTS", ids.join(","));
            command.env("PORTCULLIS_ENDPOINT_SOCKET", &preload.socket);
        }
        match boot.console {
            Console::Piped => command.args(["-serial", "stdio"]),
            Console::Terminal => {
                command.args(["-chardev", "stdio,id=console,mux=on,signal=off", "-serial", "chardev:console"])
            }
        };
        command.arg("-kernel").arg(boot.kernel);
        let words: Vec<String> =
            std::iter::once(format!("job={}", boot.job)).chain(profile.append.iter().cloned()).collect();
        command.arg("-append").arg(words.join(" "));
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profiles() -> Profiles {
        Profiles::parse(include_str!("../profiles.toml")).unwrap()
    }

    #[test]
    fn every_architecture_has_a_native_and_a_virtio_machine() {
        for arch in Arch::ALL {
            for iommu in [Iommu::Native, Iommu::Virtio] {
                assert!(!profiles().select(Some(arch), iommu).is_empty(), "{arch} {iommu:?}");
            }
        }
        assert_eq!(profiles().select(Some(Arch::X86_64), Iommu::Native).len(), 2);
        assert_eq!(profiles().select(None, Iommu::Native).len(), 3);
    }

    #[test]
    fn success_is_told_apart_from_a_plain_exit_on_x86() {
        assert_eq!(Arch::X86_64.success_status(), 33);
        assert_eq!(Arch::Aarch64.success_status(), 0);
    }

    #[test]
    fn each_architecture_has_a_machine_with_one_cpu_besides() {
        for arch in Arch::ALL {
            let one = |profile: &&Profile| profile.arch == arch && profile.cpus == Cpus::One;
            let all = profiles();
            let lesser = all.all().iter().find(one).unwrap();
            let name = lesser.name.strip_suffix("-one-cpu").unwrap();
            assert_eq!(all.named(name).unwrap().args, lesser.args);
        }
    }

    #[test]
    fn unknown_names_and_double_names_are_errors() {
        assert!(profiles().named("sparc").unwrap_err().to_string().contains("aarch64"));
        let twice = "one_cpu=[]\nfrozen=[]\n[common]\nargs=[]\n[common_frozen]\nargs=[]\n".to_owned()
            + &"[[profile]]\nname='a'\nabout=''\narch='x86_64'\niommu='native'\nargs=[]\n".repeat(2);
        assert!(Profiles::parse(&twice).is_err());
    }
}
