//! The list of mutants: `mutants.toml`, which also documents the format.

use std::fmt;
use std::fs;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::workspace::Workspace;

/// One defect.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutant {
    /// Its name.
    pub name: String,
    /// What the defect is.
    pub why: String,
    file: String,
    find: String,
    replace: String,
    #[serde(default)]
    more: Vec<Edit>,
    /// The check or test that must fail; of a test with PASIDs, what it says then.
    pub caught_by: String,
    profile: Option<String>,
    job: Option<String>,
    pasid: Option<String>,
    package: Option<String>,
    suite: Option<String>,
}

/// One change in one file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// The file, from the workspace's root.
    pub file: String,
    /// What is there; exactly once.
    pub find: String,
    /// What comes in its place.
    pub replace: String,
}

/// What is run to catch a mutant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Trial {
    /// A job of the kernel on a machine.
    Kernel {
        /// The machine.
        profile: String,
        /// The job.
        job: String,
    },
    /// A test with PASIDs, ATS and page requests, on a machine.
    Pasid {
        /// The machine.
        profile: String,
        /// The test, as `cargo xtask test` calls it.
        test: String,
    },
    /// The host tests of a package.
    Host {
        /// The package.
        package: String,
        /// The one test program that is run: a file of `tests/` by its name, or the library's own tests.
        suite: Option<String>,
    },
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel { profile, job } => write!(f, "job {job} on {profile}"),
            Self::Pasid { profile, test } => write!(f, "PASID test {test} on {profile}"),
            Self::Host { package, suite: Some(suite) } => write!(f, "host tests {suite} of {package}"),
            Self::Host { package, suite: None } => write!(f, "host tests of {package}"),
        }
    }
}

impl Mutant {
    /// What is run to catch it.
    pub fn trial(&self) -> Result<Trial> {
        match (&self.profile, &self.package) {
            (Some(profile), None) if self.suite.is_none() => {
                let profile = profile.clone();
                match (&self.job, &self.pasid) {
                    (job, None) => {
                        Ok(Trial::Kernel { profile, job: job.clone().unwrap_or_else(|| "main".to_owned()) })
                    }
                    (None, Some(test)) => Ok(Trial::Pasid { profile, test: test.clone() }),
                    (Some(_), Some(_)) => bail!("mutant {}: either `job` or `pasid`", self.name),
                }
            }
            (None, Some(package)) if self.job.is_none() && self.pasid.is_none() => {
                Ok(Trial::Host { package: package.clone(), suite: self.suite.clone() })
            }
            _ => bail!(
                "mutant {}: either `profile` (and `job` or `pasid`) or `package` (and `suite`)",
                self.name
            ),
        }
    }

    /// All its changes.
    pub fn edits(&self) -> Vec<Edit> {
        let first = Edit { file: self.file.clone(), find: self.find.clone(), replace: self.replace.clone() };
        std::iter::once(first).chain(self.more.iter().cloned()).collect()
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    #[serde(default)]
    mutant: Vec<Mutant>,
}

/// Reads the list.
pub fn load(workspace: &Workspace) -> Result<Vec<Mutant>> {
    let path = workspace.harness_file("mutants.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("{}", path.display()))
}

fn parse(text: &str) -> Result<Vec<Mutant>> {
    let list: List = toml::from_str(text)?;
    for (index, mutant) in list.mutant.iter().enumerate() {
        mutant.trial()?;
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        if mutant.name.is_empty() || !mutant.name.chars().all(fits) {
            bail!("mutant {:?}: a name has letters, digits, - and _", mutant.name);
        }
        if list.mutant[..index].iter().any(|other| other.name == mutant.name) {
            bail!("two mutants are called {}", mutant.name);
        }
        for edit in mutant.edits() {
            if edit.find.is_empty() || edit.find == edit.replace {
                bail!("mutant {}: an edit of {} changes nothing", mutant.name, edit.file);
            }
        }
    }
    Ok(list.mutant)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "[[mutant]]\nname='a'\nwhy='w'\nfile='f'\nfind='x'\nreplace='y'\ncaught_by='c'\n";

    #[test]
    fn the_list_in_the_tree_is_sound() {
        parse(include_str!("../../mutants.toml")).unwrap();
    }

    #[test]
    fn a_mutant_is_tried_by_a_job_or_by_host_tests() {
        let trial =
            |tail: &str| parse(&format!("{ONE}{tail}")).map(|list| list[0].trial().unwrap().to_string());
        assert_eq!(trial("profile='aarch64'").unwrap(), "job main on aarch64");
        assert_eq!(trial("profile='aarch64'\njob='sva'").unwrap(), "job sva on aarch64");
        assert_eq!(trial("profile='x'\npasid='bind'").unwrap(), "PASID test bind on x");
        assert_eq!(trial("package='p'").unwrap(), "host tests of p");
        assert_eq!(trial("package='p'\nsuite='order'").unwrap(), "host tests order of p");
        for bad in [
            "",
            "profile='a'\npackage='p'",
            "package='p'\njob='j'",
            "package='p'\npasid='t'",
            "profile='a'\njob='j'\npasid='t'",
            "profile='a'\nsuite='s'",
        ] {
            assert!(trial(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn further_edits_follow_the_first() {
        let text = format!("{ONE}profile='a'\n[[mutant.more]]\nfile='g'\nfind='1'\nreplace='2'\n");
        let edits = parse(&text).unwrap()[0].edits();
        assert_eq!(edits.iter().map(|edit| edit.file.as_str()).collect::<Vec<_>>(), ["f", "g"]);
    }

    #[test]
    fn double_names_odd_names_and_empty_edits_are_refused() {
        let good = format!("{ONE}profile='a'\n");
        assert!(parse(&format!("{good}{good}")).is_err());
        assert!(parse(&good.replace("name='a'", "name='../a'")).is_err());
        assert!(parse(&good.replace("replace='y'", "replace='x'")).is_err());
        assert!(parse(&good.replace("find='x'", "find=''")).is_err());
    }
}
