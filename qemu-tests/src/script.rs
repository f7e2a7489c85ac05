//! Console scripts: `scripts/*.script`, tests written as what one types into the kernel's console.
//!
//! ```text
//! #! arch=x86_64                  every native machine of an architecture; or iommu=native,virtio: every machine with
//!                                 such an IOMMU; or profile=NAME,NAME; may be repeated
//! # a remark
//! > domain new paging             a command
//! ~ domain                        a line of the answer contains this
//! = ok                            a line of the answer is exactly this
//! ! panic                         no line of the answer contains this
//! ```
//! `=` and `~` lines must be found in their order. Every answer ends with `ok` or `error: REASON`; it must be `ok`
//! unless an expectation speaks of the closing line itself (its text begins with `error:`). What the kernel logs between
//! two commands belongs to the second one's answer. After the last command the harness types `poweroff`.

use std::fs;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::profile::{Arch, Console, Iommu, Profile, Profiles};
use crate::prompt::Prompt;
use crate::run::Lab;
use crate::session::{Input, Session};
use crate::workspace::Workspace;

/// A script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// The file's name without its ending.
    pub name: String,
    targets: Vec<Target>,
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Arch(Arch),
    Iommu(Iommu),
    Profile(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    line: usize,
    command: String,
    expectations: Vec<Expectation>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Expectation {
    Exact(String),
    Contains(String),
    Absent(String),
}

/// Reads every script.
pub fn load_all(workspace: &Workspace) -> Result<Vec<Script>> {
    let folder = workspace.harness_file("scripts");
    let Ok(entries) = fs::read_dir(&folder) else {
        return Ok(Vec::new());
    };
    let mut paths: Vec<_> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "script"));
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Script::parse(&name, &text).with_context(|| format!("{}", path.display()))
    };
    paths.iter().map(read).collect()
}

impl Script {
    fn parse(name: &str, text: &str) -> Result<Self> {
        let mut script = Self { name: name.to_owned(), targets: Vec::new(), steps: Vec::<Step>::new() };
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            let line = line.trim_end();
            if let Some(header) = line.strip_prefix("#!") {
                script.header(header).with_context(|| format!("line {number}"))?;
                continue;
            }
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (sign, rest) = line.split_at(line.chars().next().map_or(0, char::len_utf8));
            let rest = rest.strip_prefix(' ').unwrap_or(rest).to_owned();
            let expectation = match sign {
                ">" => {
                    script.steps.push(Step { line: number, command: rest, expectations: Vec::new() });
                    continue;
                }
                "=" => Expectation::Exact(rest),
                "~" => Expectation::Contains(rest),
                "!" => Expectation::Absent(rest),
                _ => bail!("line {number}: a line begins with `>`, `=`, `~`, `!` or `#`"),
            };
            match script.steps.last_mut() {
                Some(step) => step.expectations.push(expectation),
                None => bail!("line {number}: an expectation before the first command"),
            }
        }
        if script.targets.is_empty() || script.steps.is_empty() {
            bail!("a script needs a `#! arch=...` or `#! profile=...` line and a command");
        }
        Ok(script)
    }

    fn header(&mut self, header: &str) -> Result<()> {
        for word in header.split_whitespace() {
            match word.split_once('=') {
                Some(("arch", names)) => {
                    for name in names.split(',') {
                        let arch = Arch::ALL.into_iter().find(|arch| arch.name() == name);
                        self.targets
                            .push(Target::Arch(arch.with_context(|| format!("no architecture {name:?}"))?));
                    }
                }
                Some(("iommu", names)) => {
                    for name in names.split(',') {
                        let iommu = Iommu::from_str(name, false);
                        self.targets.push(Target::Iommu(
                            iommu.map_err(|_| anyhow::anyhow!("no kind of IOMMU is {name:?}"))?,
                        ));
                    }
                }
                Some(("profile", names)) => {
                    self.targets.extend(names.split(',').map(|name| Target::Profile(name.to_owned())));
                }
                _ => bail!("{word:?} is neither arch=, iommu= nor profile="),
            }
        }
        Ok(())
    }

    /// The machines that it is for.
    pub fn profiles<'a>(&self, profiles: &'a Profiles) -> Result<Vec<&'a Profile>> {
        let mut found: Vec<&Profile> = Vec::new();
        for target in &self.targets {
            let some = match target {
                Target::Arch(arch) => profiles.select(Some(*arch), Iommu::Native),
                Target::Iommu(iommu) => profiles.select(None, *iommu),
                Target::Profile(name) => {
                    vec![profiles.named(name).with_context(|| format!("script {}", self.name))?]
                }
            };
            for profile in some {
                if !found.iter().any(|other| other.name == profile.name) {
                    found.push(profile);
                }
            }
        }
        Ok(found)
    }

    /// Plays the script on a machine. Gives what is wrong; it held if there is nothing.
    pub fn play(&self, lab: &Lab, profile: &Profile) -> Result<Vec<String>> {
        let name = format!("script-{}-{}", self.name, profile.name);
        let disk = lab.image.copy(&name)?;
        let command = lab.command(profile, Console::Piped, disk.path(), "shell")?;
        let log = lab.workspace.log_dir().join(format!("{name}.log"));
        let mut prompt = match Prompt::open(Session::start(command, Input::Commands, &log)?) {
            Ok(prompt) => prompt,
            Err(why) => return Ok(vec![why]),
        };
        let mut problems = Vec::new();
        for step in &self.steps {
            match prompt.ask(&step.command)? {
                Ok(answer) => problems.extend(step.judge(&answer)),
                Err(why) => {
                    problems.push(format!("line {}: `{}`: {why}", step.line, step.command));
                    return Ok(problems);
                }
            }
        }
        problems.extend(prompt.power_off(profile.arch.success_status())?);
        Ok(problems)
    }
}

impl Step {
    /// Holds an answer, its closing line last, against the expectations.
    fn judge(&self, answer: &[String]) -> Option<String> {
        let failed = |why: String| Some(format!("line {}: `{}`: {why}", self.line, self.command));
        let lines: Vec<&str> = answer.iter().map(String::as_str).collect();
        let closing = lines.last().copied().unwrap_or("");
        if closing != "ok" && !self.expects_error() {
            return failed(format!("answered `{closing}`"));
        }
        let mut from = 0;
        for expectation in &self.expectations {
            let rest = &lines[from..];
            let found = match expectation {
                Expectation::Exact(text) => rest.iter().position(|line| line == text),
                Expectation::Contains(text) => rest.iter().position(|line| line.contains(text.as_str())),
                Expectation::Absent(text) => {
                    if let Some(line) = lines.iter().find(|line| line.contains(text.as_str())) {
                        return failed(format!("the answer has `{line}`"));
                    }
                    continue;
                }
            };
            match found {
                Some(index) => from += index + 1,
                None => return failed(format!("no {expectation} in the answer `{}`", lines.join(" | "))),
            }
        }
        None
    }

    fn expects_error(&self) -> bool {
        self.expectations.iter().any(|expectation| match expectation {
            Expectation::Exact(text) | Expectation::Contains(text) => text.starts_with("error:"),
            Expectation::Absent(_) => false,
        })
    }
}

impl std::fmt::Display for Expectation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(text) => write!(f, "line `{text}`"),
            Self::Contains(text) => write!(f, "line with `{text}`"),
            Self::Absent(text) => write!(f, "absence of `{text}`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(script: &str, answer: &[&str]) -> Option<String> {
        let script = Script::parse("t", &format!("#! arch=x86_64\n{script}")).unwrap();
        let answer: Vec<String> = answer.iter().map(|line| (*line).to_owned()).collect();
        script.steps[0].judge(&answer)
    }

    #[test]
    fn scripts_are_parsed_into_commands_and_expectations() {
        let text = "#! arch=x86_64,aarch64 iommu=virtio\n#! profile=x86_64-virtio\n# remark\n\n> help\n~ units\n= ok\n> x\n! y\n";
        let script = Script::parse("t", text).unwrap();
        assert_eq!(script.targets.len(), 4);
        assert_eq!(script.steps.len(), 2);
        assert_eq!(script.steps[0].line, 5);
        assert_eq!(
            script.steps[0].expectations,
            [Expectation::Contains("units".to_owned()), Expectation::Exact("ok".to_owned())]
        );
        assert_eq!(script.steps[1].expectations, [Expectation::Absent("y".to_owned())]);
    }

    #[test]
    fn broken_scripts_are_refused_with_the_line() {
        for (text, needle) in [
            ("> help\n", "needs"),
            ("#! arch=x86_64\n", "needs"),
            ("#! arch=sparc\n> help\n", "line 1"),
            ("#! iommu=none\n> help\n", "line 1"),
            ("#! arch=x86_64\n~ early\n> help\n", "line 2"),
            ("#! arch=x86_64\n> help\nok\n", "line 3"),
            ("#! smp=2\n> help\n", "line 1"),
        ] {
            let error = format!("{:#}", Script::parse("t", text).unwrap_err());
            assert!(error.contains(needle), "{text:?}: {error}");
        }
    }

    #[test]
    fn the_default_expectation_is_ok() {
        assert_eq!(judge("> units\n", &["smmu0", "ok"]), None);
        assert!(judge("> units\n", &["error: no"]).is_some());
        assert_eq!(judge("> bad\n~ error: no\n", &["error: no such thing"]), None);
        assert_eq!(judge("> bad\n= error: no\n", &["error: no"]), None);
        assert!(judge("> bad\n~ error: no\n", &["ok"]).is_some());
    }

    #[test]
    fn expectations_hold_in_their_order() {
        assert_eq!(judge("> c\n~ one\n~ two\n", &["one", "and two", "ok"]), None);
        assert!(judge("> c\n~ two\n~ one\n", &["one", "and two", "ok"]).is_some());
        assert!(judge("> c\n! fault\n", &["fault at 1", "ok"]).is_some());
        assert!(judge("> c\n= one\n", &["one more", "ok"]).is_some());
    }
}
