//! Tests with PASIDs, ATS and page requests: the kernel's console on one side, an endpoint's requests on the other, and
//! QEMU's VT-d between them ([`crate::endpoint`]).
//!
//! Where QEMU cannot have such endpoints the tests are skipped, and say why; with `REQUIRE_PASID=1` in the environment
//! they fail instead.

mod ats;
mod dma;
mod replace;
mod rig;
mod tables;

use std::env;

use anyhow::Result;

use crate::profile::{Arch, Iommu, Profile, Profiles};
use crate::run::Lab;
use rig::{Rig, Started};

/// One test.
pub struct Test {
    /// Its name.
    pub name: &'static str,
    play: fn(&mut Rig) -> Result<()>,
}

static TESTS: [Test; 7] = [
    Test { name: "switches", play: dma::switches },
    Test { name: "dma", play: dma::dma },
    Test { name: "two-endpoints", play: dma::two_endpoints },
    Test { name: "translations", play: ats::translations },
    Test { name: "invalidations", play: ats::invalidations },
    Test { name: "replace", play: replace::replace },
    Test { name: "tables", play: tables::tables },
];

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All held.
    Held,
    /// Something did not.
    Failed(String),
    /// It cannot be made here.
    Skipped(String),
}

/// Every test, on each machine with a VT-d.
pub fn tests(profiles: &Profiles) -> Vec<(&Profile, &'static Test)> {
    let machines = profiles.select(Some(Arch::X86_64), Iommu::Native);
    machines.into_iter().flat_map(|profile| TESTS.iter().map(move |test| (profile, test))).collect()
}

impl Test {
    /// The name of its console's log, without the ending.
    pub fn log(&self, profile: &Profile) -> String {
        format!("pasid-{}-{}", self.name, profile.name)
    }

    /// Runs it on a machine of its own.
    pub fn run(&self, lab: &Lab, profile: &Profile) -> Result<Outcome> {
        let mut rig = match Rig::start(lab, profile, &self.log(profile))? {
            Started::Ready(rig) => rig,
            Started::Unusable(why) => return Ok(unusable(why, env::var("REQUIRE_PASID").ok().as_deref())),
        };
        let end = match (self.play)(&mut rig) {
            Ok(()) => rig.power_off()?.map_or(Outcome::Held, Outcome::Failed),
            Err(why) => Outcome::Failed(format!("{why:#}")),
        };
        Ok(end)
    }
}

fn unusable(why: String, required: Option<&str>) -> Outcome {
    if required == Some("1") {
        Outcome::Failed(format!("required by REQUIRE_PASID, but {why}"))
    } else {
        Outcome::Skipped(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_is_a_failure_where_the_tests_are_required() {
        let why = || "this QEMU does not export x".to_owned();
        assert_eq!(unusable(why(), None), Outcome::Skipped(why()));
        assert_eq!(unusable(why(), Some("0")), Outcome::Skipped(why()));
        assert!(matches!(unusable(why(), Some("1")), Outcome::Failed(_)));
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = TESTS.iter().map(|test| test.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TESTS.len());
    }
}
