//! QEMU from Debian's backports in a private folder: no root, and nothing of the host's packages is touched.
//!
//! Everything is unpacked beside its final place and moved there in one step, so what is there is complete.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use super::NEEDED;
use super::apt::{self, Source, Trust};
use super::version::Version;
use crate::profile::Arch;
use crate::qemu::{Private, Qemu};
use crate::ui;
use crate::workspace::Workspace;

const SUITES: [&str; 2] = ["trixie", "trixie-backports"];
const PACKAGES: [&str; 2] = ["qemu-system-x86", "qemu-system-arm"];
const KEYRINGS: [&str; 2] =
    ["/usr/share/keyrings/debian-archive-keyring.pgp", "/usr/share/keyrings/debian-archive-keyring.gpg"];

/// An unpacked set of packages.
#[derive(Clone, Debug)]
pub struct Unpacked {
    root: PathBuf,
    version: Version,
}

impl Unpacked {
    /// The set at `root`, if its stamp says that it is complete and new enough.
    fn open(root: &Path) -> Option<Self> {
        let stamp = fs::read_to_string(stamp_path(root)).ok()?;
        let version = stamp.lines().find_map(|line| Version::parse(line.strip_prefix("qemu ")?))?;
        (version >= NEEDED).then(|| Self { root: root.to_path_buf(), version })
    }

    /// The QEMU for `arch`.
    pub fn qemu(&self, arch: Arch) -> Result<Qemu> {
        Ok(Qemu::private(Private::in_root(&self.root, arch)?, self.version))
    }
}

fn stamp_path(root: &Path) -> PathBuf {
    root.join(".portcullis-complete")
}

/// The private set, installed first if it is not there yet.
pub fn ensure(workspace: &Workspace) -> Result<Unpacked> {
    let dir = workspace.qemu_dir();
    let root = dir.join("root");
    if let Some(unpacked) = Unpacked::open(&root) {
        return Ok(unpacked);
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let lock = File::create(dir.join("lock")).context("cannot create the set-up's lock file")?;
    lock.lock().context("cannot take the set-up's lock")?;
    // Another set-up may have finished while this one waited.
    if let Some(unpacked) = Unpacked::open(&root) {
        return Ok(unpacked);
    }
    let apt = PrivateApt::new(dir.join("apt"), &debian_mirror()?)?;
    let archives = apt.download()?;
    let fresh = dir.join("unpacking");
    let version = unpack(&archives, &fresh)?;
    remove_dir(&root)?;
    fs::rename(&fresh, &root).context("cannot move the unpacked QEMU to its place")?;
    remove_dir(&apt.dir)?;
    ui::say(&format!("QEMU {version} is in {}", root.display()));
    Unpacked::open(&root).ok_or_else(|| anyhow!("the unpacked QEMU is not complete"))
}

fn remove_dir(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// Why there is no way to install here, in one message.
fn refused(why: &str) -> anyhow::Error {
    anyhow!(
        "QEMU {NEEDED} or newer is needed (qemu-system-x86_64 and qemu-system-aarch64), on the PATH or named by \
         QEMU_X86_64 and QEMU_AARCH64. It is installed by itself on Debian 12 and 13 only: {why}."
    )
}

fn debian_mirror() -> Result<Source> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or("").trim_matches('"').to_owned()
    };
    let (id, number) = (field("ID"), field("VERSION_ID"));
    if id != "debian" || !matches!(number.as_str(), "12" | "13") {
        let name = field("PRETTY_NAME");
        return Err(refused(&format!("this is {}", if name.is_empty() { "something else" } else { &name })));
    }
    let sources = apt::read_sources(Path::new("/etc/apt"));
    apt::mirror(&sources, &field("VERSION_CODENAME"))
        .cloned()
        .ok_or_else(|| refused("the host's apt configuration names no Debian mirror"))
}

/// An apt that keeps everything in a directory of its own.
struct PrivateApt {
    dir: PathBuf,
    config: PathBuf,
}

impl PrivateApt {
    fn new(dir: PathBuf, mirror: &Source) -> Result<Self> {
        for sub in
            ["state/lists/partial", "cache/archives/partial", "log", "etc/apt.conf.d", "etc/preferences.d"]
        {
            fs::create_dir_all(dir.join(sub)).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        // An empty status file: nothing of the host counts as installed, so the set is complete in itself.
        fs::write(dir.join("state/status"), "")?;
        let options = match (mirror.trust, KEYRINGS.iter().find(|keyring| Path::new(keyring).exists())) {
            (Trust::Declared, _) => "[trusted=yes] ".to_owned(),
            (Trust::Signed, Some(keyring)) => format!("[signed-by={keyring}] "),
            (Trust::Signed, None) => bail!("the package debian-archive-keyring is not installed"),
        };
        let line = |suite: &str| format!("deb {options}{} {suite} main\n", mirror.uri);
        fs::write(dir.join("etc/sources.list"), SUITES.map(line).concat())?;
        let config = dir.join("apt.conf");
        fs::write(&config, configuration(&dir)?)?;
        Ok(Self { dir, config })
    }

    fn command(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.env("APT_CONFIG", &self.config).env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        command.stdin(Stdio::null());
        command
    }

    fn install(&self) -> Command {
        let mut command = self.command();
        command.args(["--download-only", "--yes", "--no-install-recommends", "-t", SUITES[1], "install"]);
        command.args(PACKAGES);
        command
    }

    /// Downloads the packages with all that they depend on.
    fn download(&self) -> Result<Vec<PathBuf>> {
        ui::say(&format!(
            "reading the package lists of {} (private apt, nothing is installed)",
            SUITES.join(" and ")
        ));
        let spinner = ui::spinner("apt-get update");
        let mut update = self.command();
        // A list that could not be had is only a warning otherwise, and the wrong QEMU would follow.
        update.args(["-q", "-o", "APT::Update::Error-Mode=any", "update"]);
        let done = output_of(&mut update);
        spinner.finish_and_clear();
        done?;
        // apt leaves out what it has already, from a set-up that was interrupted; the plan is to be complete.
        let nothing = format!("Dir::Cache::archives={}", self.dir.join("nothing").display());
        let plan = Plan::parse(&output_of(self.install().args(["--print-uris", "-o", &nothing]))?);
        let version = plan.qemu.ok_or_else(|| refused("the mirror offers no QEMU"))?;
        if version < NEEDED {
            return Err(refused(&format!("the newest QEMU of {} is {version}", SUITES[1])));
        }
        ui::say(&format!(
            "downloading QEMU {version}: {} packages, {} MB",
            plan.files.len(),
            plan.bytes / 1_000_000
        ));
        self.fetch(&plan)?;
        // Exactly what was planned: an older set-up may have left other versions behind.
        let folder = self.dir.join("cache/archives");
        Ok(plan.files.iter().map(|file| folder.join(file)).collect())
    }

    fn fetch(&self, plan: &Plan) -> Result<()> {
        let bar = ui::bytes_bar(plan.bytes, "downloading");
        let mut command = self.install();
        command.args(["-q", "-o", "APT::Status-Fd=1"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start apt-get")?;
        if let Some(stdout) = child.stdout.take() {
            for line in BufReader::new(stdout).lines().map_while(|line| line.ok()) {
                // `dlstatus:ITEM:PERCENT:TEXT`
                let percent =
                    line.strip_prefix("dlstatus:").and_then(|rest| rest.split(':').nth(1)?.parse().ok());
                if let Some(percent) = percent {
                    bar.set_position(permille_of(plan.bytes, percent));
                }
            }
        }
        let output = child.wait_with_output().context("apt-get")?;
        bar.finish_and_clear();
        if !output.status.success() {
            bail!("the download failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}

fn permille_of(total: u64, percent: f64) -> u64 {
    // Whole permille are fine enough for a bar and keep the arithmetic in integers.
    let permille = format!("{:.0}", (percent * 10.0).clamp(0.0, 1000.0)).parse::<u64>().unwrap_or(0);
    total * permille / 1000
}

fn configuration(dir: &Path) -> Result<String> {
    let host =
        output_of(Command::new("apt-config").arg("dump")).map_err(|_| refused("there is no apt here"))?;
    let architecture = output_of(Command::new("dpkg").arg("--print-architecture"))?;
    let user = output_of(Command::new("id").arg("-un")).unwrap_or_default();
    let architecture = architecture.trim();
    let dir = dir.display();
    let mut text = apt::transport_settings(&host);
    // Credentials of the host's mirrors are read where they are. The sandbox user could not enter our directories.
    text.push_str(&format!(
        "Dir::State \"{dir}/state\";\n\
         Dir::State::status \"{dir}/state/status\";\n\
         Dir::Cache \"{dir}/cache\";\n\
         Dir::Log \"{dir}/log\";\n\
         Dir::Etc \"{dir}/etc\";\n\
         Dir::Etc::netrc \"/etc/apt/auth.conf\";\n\
         Dir::Etc::netrcparts \"/etc/apt/auth.conf.d\";\n\
         APT::Architecture \"{architecture}\";\n\
         APT::Architectures {{ \"{architecture}\"; }};\n\
         APT::Sandbox::User \"{}\";\n\
         APT::Install-Recommends \"false\";\n\
         APT::Install-Suggests \"false\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::Retries \"3\";\n",
        user.trim()
    ));
    Ok(text)
}

/// What `apt-get --print-uris` announces.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    files: Vec<String>,
    bytes: u64,
    qemu: Option<Version>,
}

impl Plan {
    /// Lines are `'URI' FILE SIZE HASH`, with the colon of an epoch in FILE written as `%3a`.
    fn parse(text: &str) -> Self {
        let mut plan = Self::default();
        for line in text.lines().filter(|line| line.starts_with('\'')) {
            let mut words = line.split_whitespace().skip(1);
            let (Some(file), Some(Ok(size))) = (words.next(), words.next().map(str::parse::<u64>)) else {
                continue;
            };
            plan.files.push(file.to_owned());
            plan.bytes += size;
            if let Some(version) = file.strip_prefix("qemu-system-x86_") {
                plan.qemu = Version::from_debian(&version.replace("%3a", ":"));
            }
        }
        plan
    }
}

/// Unpacks the archives to `fresh`, starts what is in it and stamps it.
fn unpack(archives: &[PathBuf], fresh: &Path) -> Result<Version> {
    ui::say(&format!("unpacking {} packages", archives.len()));
    remove_dir(fresh)?;
    fs::create_dir_all(fresh)?;
    let bar = ui::steps_bar(archives.len().try_into().unwrap_or(0), "unpacking");
    for archive in archives {
        output_of(Command::new("dpkg-deb").arg("-x").arg(archive).arg(fresh))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let mut version = None;
    for arch in Arch::ALL {
        let banner = output_of(Private::in_root(fresh, arch)?.command(None).arg("--version"))?;
        version = Version::from_banner(&banner);
        if version.is_none_or(|version| version < NEEDED) {
            bail!("the unpacked QEMU for {arch} says it is {:?}", banner.lines().next().unwrap_or(""));
        }
    }
    let version = version.ok_or_else(|| anyhow!("no QEMU was unpacked"))?;
    let mut stamp = File::create(stamp_path(fresh))?;
    writeln!(stamp, "qemu {version}")?;
    stamp.sync_all()?;
    Ok(version)
}

fn output_of(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        bail!("{name} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_download_plan_is_read_from_apt() {
        let text = "Reading package lists...\n\
            'http://m.example/seabios_1.17.0-1_all.deb' seabios_1.17.0-1_all.deb 161000 SHA256:00\n\
            'http://m.example/q.deb' qemu-system-x86_1%3a11.1.3+ds-1~bpo13+1_amd64.deb 10400000 SHA256:11\n";
        let plan = Plan::parse(text);
        assert_eq!(
            plan.files,
            ["seabios_1.17.0-1_all.deb", "qemu-system-x86_1%3a11.1.3+ds-1~bpo13+1_amd64.deb"]
        );
        assert_eq!((plan.bytes, plan.qemu), (10_561_000, Some(Version::new(11, 1, 3))));
        assert_eq!(Plan::parse("E: nothing\n"), Plan::default());
    }

    #[test]
    fn progress_never_leaves_the_bar() {
        assert_eq!(permille_of(1000, 12.34), 123);
        assert_eq!(permille_of(1000, 250.0), 1000);
        assert_eq!(permille_of(1000, -1.0), 0);
    }
}
