//! `cargo xtask mutants`: deliberate defects, each built alone, each to be caught by the check it names.

pub mod judge;
pub mod list;
pub mod tree;

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::host_tests::{self, HostRun};
use crate::pasid;
use crate::profile::{Arch, Profiles};
use crate::run::{Judged, Lab};
use crate::setup::{self, Tools};
use crate::ui::{self, Style, paint};
use crate::workspace::Workspace;
use judge::Judgement;
use list::{Mutant, Trial};
use tree::Tree;

/// A limit for building and running host tests of one package, which only a test that hangs reaches.
const HOST_LIMIT: Duration = Duration::from_secs(1200);

/// A place to build mutants in, and what the unmutated build does there.
struct Bench {
    tree: Tree,
    tools: Tools,
    /// The names of the checks or tests that pass unmutated.
    passing: HashMap<Trial, Vec<String>>,
}

/// Tries every mutant whose name contains one of `filters`, or all. Says whether all were caught.
pub fn command(workspace: &Workspace, filters: &[String]) -> Result<bool> {
    let mutants: Vec<Mutant> = list::load(workspace)?
        .into_iter()
        .filter(|mutant| filters.is_empty() || filters.iter().any(|part| mutant.name.contains(part)))
        .collect();
    if mutants.is_empty() {
        println!(
            "no mutant {}",
            if !filters.is_empty() { "matches" } else { "is listed in qemu-tests/mutants.toml" }
        );
        println!("0 caught, 0 missed");
        // A filter that matches nothing is a slip of the keyboard; an empty list is an honest state.
        return Ok(filters.is_empty());
    }
    let tools = setup::ensure(workspace)?;
    let tree = Tree::copy(workspace)?;
    let mut bench = Bench { tree, tools, passing: HashMap::new() };
    for mutant in &mutants {
        bench.learn(&mutant.trial()?, &mutants)?;
    }
    let mut rows = vec![["mutant", "caught by", "time", "verdict"].map(str::to_owned).to_vec()];
    let mut missed = 0usize;
    for mutant in &mutants {
        ui::say(&format!("{}: {}", mutant.name, mutant.why));
        let started = Instant::now();
        let judgement =
            bench.attempt(workspace, mutant).unwrap_or_else(|error| Judgement::Missed(format!("{error:#}")));
        let (style, verdict) = match &judgement {
            Judgement::Caught => (Style::Good, "caught".to_owned()),
            Judgement::Missed(why) => (Style::Bad, format!("MISSED: {why}")),
        };
        missed += usize::from(judgement != Judgement::Caught);
        println!("{} {verdict} ({})", mutant.name, ui::seconds(started.elapsed()));
        let caught_by = mutant.caught_by.clone();
        rows.push(vec![
            mutant.name.clone(),
            caught_by,
            ui::seconds(started.elapsed()),
            paint(style, &verdict),
        ]);
    }
    println!("\n{}", ui::table(&rows));
    println!("{} caught, {missed} missed", mutants.len() - missed);
    Ok(missed == 0)
}

impl Bench {
    /// Runs the unmutated build and remembers what passes: of host tests, those that are to catch one of `mutants`.
    fn learn(&mut self, trial: &Trial, mutants: &[Mutant]) -> Result<()> {
        if self.passing.contains_key(trial) {
            return Ok(());
        }
        ui::say(&format!("unmutated: {trial}"));
        let passing = match trial {
            Trial::Kernel { .. } => {
                let judged = self.run_kernel(trial)?;
                if !judged.held() {
                    bail!("the unmutated build does not hold ({trial}): {}", judged.problems.join("; "));
                }
                judge::passed_checks(&judged)
            }
            Trial::Pasid { .. } => match self.run_pasid(trial)? {
                pasid::Outcome::Held => Vec::new(),
                pasid::Outcome::Failed(why) | pasid::Outcome::Skipped(why) => {
                    bail!("the unmutated build does not hold ({trial}): {why}")
                }
            },
            Trial::Host { .. } => {
                let mut tests = Vec::new();
                for mutant in mutants {
                    if mutant.trial()? == *trial && !tests.contains(&&*mutant.caught_by) {
                        tests.push(&*mutant.caught_by);
                    }
                }
                let run = self.run_host(trial, &tests)?;
                if !run.held() {
                    bail!("the unmutated build does not hold ({trial}): see host-tests in {:?}", self.logs());
                }
                judge::passed_tests(&run)
            }
        };
        self.passing.insert(trial.clone(), passing);
        Ok(())
    }

    fn logs(&self) -> std::path::PathBuf {
        self.tree.workspace().log_dir()
    }

    /// Builds and runs one mutant. The tree is whole again afterwards, whatever happens.
    fn attempt(&self, workspace: &Workspace, mutant: &Mutant) -> Result<Judgement> {
        let trial = mutant.trial()?;
        let passing = self.passing.get(&trial);
        // What a test with PASIDs says is known only when it fails.
        let known = matches!(trial, Trial::Pasid { .. })
            || passing.is_some_and(|passing| passing.contains(&mutant.caught_by));
        if !known {
            bail!("`{}` is not among what passes in the unmutated build", mutant.caught_by);
        }
        let _patched = self.tree.patch(&mutant.edits())?;
        let keep = |text: &[u8]| -> Result<()> {
            fs::create_dir_all(workspace.log_dir())?;
            fs::write(workspace.log_dir().join(format!("mutant-{}.log", mutant.name)), text)?;
            Ok(())
        };
        match &trial {
            Trial::Kernel { .. } => {
                let judged = self.run_kernel(&trial)?;
                keep(&fs::read(&judged.outcome.log).unwrap_or_default())?;
                Ok(judge::kernel(&mutant.caught_by, &judged.outcome, &judged.host))
            }
            Trial::Pasid { .. } => {
                let outcome = self.run_pasid(&trial)?;
                keep(format!("{outcome:?}\n").as_bytes())?;
                Ok(judge::pasid(&mutant.caught_by, &outcome))
            }
            Trial::Host { .. } => {
                let run = self.run_host(&trial, &[&mutant.caught_by])?;
                keep(run.output.as_bytes())?;
                Ok(judge::host(&mutant.caught_by, &run))
            }
        }
    }

    /// The kernel of the tree as it is, for a machine.
    fn lab(&self, profile: &str) -> Result<Lab> {
        let workspace = self.tree.workspace();
        let arch: Arch = Profiles::load(workspace)?.named(profile)?.arch;
        Lab::with_tools(workspace, &self.tools, &[arch])
    }

    fn run_pasid(&self, trial: &Trial) -> Result<pasid::Outcome> {
        let Trial::Pasid { profile, test } = trial else { bail!("{trial} is no test with PASIDs") };
        let lab = self.lab(profile)?;
        let tests = pasid::tests(&lab.profiles)?;
        let found = tests.into_iter().find(|(machine, other)| machine.name == *profile && other.name == test);
        let (machine, test) = found.with_context(|| format!("there is no {trial}"))?;
        test.run(&lab, machine).with_context(|| trial.to_string())
    }

    fn run_kernel(&self, trial: &Trial) -> Result<Judged> {
        let Trial::Kernel { profile, job } = trial else { bail!("{trial} is not a kernel run") };
        let lab = self.lab(profile)?;
        lab.job(lab.profiles.named(profile)?, job, |_| {}).with_context(|| trial.to_string())
    }

    /// Runs the tests with these names alone.
    fn run_host(&self, trial: &Trial, tests: &[&str]) -> Result<HostRun> {
        let Trial::Host { package, suite } = trial else { bail!("{trial} is not a host test") };
        let mut arguments = vec!["--package", package];
        match suite.as_deref() {
            None => {}
            Some("lib") => arguments.push("--lib"),
            Some(suite) => arguments.extend(["--test", suite]),
        }
        arguments.extend(["--no-fail-fast", "--", "--exact"]);
        arguments.extend(tests);
        host_tests::run(self.tree.workspace(), &arguments, "host-tests.log", HOST_LIMIT, |_| {})
    }
}
