//! `cargo xtask run`: the main job, readable, on one machine after the other; and the job runner that the other
//! commands share.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::build::{self, Variant};
use crate::console;
use crate::disk::Image;
use crate::endpoint::Preload;
use crate::profile::{Arch, Boot, Console, Iommu, Profile, Profiles};
use crate::protocol::{Check, Event, Status};
use crate::session::{Input, Outcome, Session, TIME_LIMIT};
use crate::setup::{self, Tools};
use crate::ui::{self, Style, paint};
use crate::verdict::{self, Expected};
use crate::workspace::Workspace;

/// Everything that a run needs.
#[derive(Debug)]
pub struct Lab {
    /// Where things are.
    pub workspace: Workspace,
    /// The QEMUs.
    pub tools: Tools,
    /// The machines.
    pub profiles: Profiles,
    /// The disk.
    pub image: Image,
    kernels: HashMap<Arch, PathBuf>,
}

/// A finished and judged job.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The run.
    pub outcome: Outcome,
    /// What the harness checked.
    pub host: Vec<Check>,
    /// What is wrong; the job held if there is nothing.
    pub problems: Vec<String>,
}

impl Judged {
    /// Whether everything held.
    pub fn held(&self) -> bool {
        self.problems.is_empty()
    }

    /// The number of checks, the host's included, that ended in the given way.
    pub fn count(&self, status: Status) -> usize {
        self.outcome.report.checks.iter().chain(&self.host).filter(|check| check.status == status).count()
    }
}

impl Lab {
    /// Sets up, and builds the kernel for each of `arches`.
    pub fn prepare(workspace: &Workspace, arches: &[Arch]) -> Result<Self> {
        let tools = setup::ensure(workspace)?;
        Self::with_tools(workspace, &tools, arches)
    }

    /// Builds the kernel of `workspace` for each of `arches`, to be run with `tools`.
    pub fn with_tools(workspace: &Workspace, tools: &Tools, arches: &[Arch]) -> Result<Self> {
        let mut lab = Self {
            workspace: workspace.clone(),
            tools: tools.clone(),
            profiles: Profiles::load(workspace)?,
            image: Image::ensure(workspace)?,
            kernels: HashMap::new(),
        };
        for arch in arches {
            lab.build(*arch)?;
        }
        Ok(lab)
    }

    /// Builds the kernel for `arch` unless it is built already.
    pub fn build(&mut self, arch: Arch) -> Result<()> {
        if !self.kernels.contains_key(&arch) {
            self.kernels.insert(arch, build::kernel(&self.workspace, arch, Variant::Shipped)?);
        }
        Ok(())
    }

    /// Where the kernel for `arch` is.
    pub fn kernel(&self, arch: Arch) -> PathBuf {
        let unbuilt = || self.workspace.target().join(arch.triple()).join("release").join(build::KERNEL);
        self.kernels.get(&arch).cloned().unwrap_or_else(unbuilt)
    }

    /// The command for a machine.
    pub fn command(&self, profile: &Profile, console: Console, disk: &Path, job: &str) -> Result<Command> {
        let kernel = self.kernel(profile.arch);
        self.boot(profile, Boot { console, kernel: &kernel, disk, job, preload: None })
    }

    /// The command for a machine whose console is piped, with endpoints.
    pub fn command_with_endpoints(
        &self,
        profile: &Profile,
        kernel: &Path,
        disk: &Path,
        job: &str,
        preload: &Preload,
    ) -> Result<Command> {
        let console = Console::Piped;
        self.boot(profile, Boot { console, kernel, disk, job, preload: Some(preload) })
    }

    fn boot(&self, profile: &Profile, boot: Boot<'_>) -> Result<Command> {
        let command = || self.profiles.command(profile, self.tools.qemu(profile.arch), boot);
        let Some(addition) = &profile.device_tree else { return Ok(command()) };
        // Beside the disk, which no other run has.
        let tree = boot.disk.with_extension("dtb");
        addition.write(command(), &tree)?;
        let mut command = command();
        command.arg("-dtb").arg(tree);
        Ok(command)
    }

    /// Runs a job to its end and judges it. `watch` sees every line, the host's checks included.
    pub fn job(&self, profile: &Profile, job: &str, mut watch: impl FnMut(&Event)) -> Result<Judged> {
        let expected = Expected::load(&self.workspace, profile, job)?;
        let name = format!("{}-{job}", profile.name);
        let disk = self.image.copy(&name)?;
        let command = self.command(profile, Console::Piped, disk.path(), job)?;
        let log = self.workspace.log_dir().join(format!("{name}.log"));
        let outcome = Session::start(command, Input::Closed, &log)?.follow(TIME_LIMIT, &mut watch)?;
        let host = verdict::host_checks(&outcome.report, disk.path(), &self.image);
        for check in &host {
            watch(&Event::Check(check.clone()));
        }
        let problems = verdict::problems(&outcome, &host, &expected, profile.arch.success_status());
        Ok(Judged { outcome, host, problems })
    }
}

/// `cargo xtask run`. Says whether everything held.
pub fn command(workspace: &Workspace, arch: Option<Arch>, iommu: Iommu) -> Result<bool> {
    let arches = arch.map_or_else(|| Arch::ALL.to_vec(), |arch| vec![arch]);
    let lab = Lab::prepare(workspace, &arches)?;
    ui::say(&lab.tools.describe());
    let mut runs = Vec::new();
    for profile in lab.profiles.select(arch, iommu) {
        println!("\n{}", paint(Style::Bold, &format!("===== {}: {} =====", profile.name, profile.about)));
        let judged = lab.job(profile, "main", console::show)?;
        for problem in &judged.problems {
            println!("{}", paint(Style::Bad, &format!("  does not hold: {problem}")));
        }
        runs.push((profile, judged));
    }
    let mut rows =
        vec![["machine", "passed", "failed", "skipped", "time", "verdict"].map(str::to_owned).to_vec()];
    for (profile, judged) in &runs {
        let problems = judged.problems.len();
        rows.push(vec![
            profile.name.clone(),
            judged.count(Status::Passed).to_string(),
            judged.count(Status::Failed).to_string(),
            judged.count(Status::Skipped).to_string(),
            ui::seconds(judged.outcome.time),
            if judged.held() { "holds".to_owned() } else { format!("does not hold ({problems} reasons)") },
        ]);
    }
    let held = runs.iter().all(|(_, judged)| judged.held());
    println!("\n{}", ui::table(&rows));
    println!("{}", if held { "Everything held." } else { "Not everything held." });
    println!(
        "{}",
        paint(Style::Dim, &format!("Consoles are kept in {}.", lab.workspace.log_dir().display()))
    );
    Ok(held)
}

/// `cargo xtask qemu`: the command line that boots a machine, for use by hand.
pub fn print_command(workspace: &Workspace, arch: Arch, iommu: Iommu, profile: Option<&str>) -> Result<()> {
    let lab = Lab::with_tools(workspace, &setup::ensure(workspace)?, &[])?;
    let profile = match profile {
        Some(name) => Some(lab.profiles.named(name)?),
        None => lab.profiles.select(Some(arch), iommu).first().copied(),
    };
    if let Some(profile) = profile {
        let disk = workspace.target().join("run").join("disk.img");
        println!("{}", crate::qemu::shell_words(&lab.command(profile, Console::Piped, &disk, "main")?));
    }
    Ok(())
}
