//! Tests with PASIDs, ATS and page requests: the kernel's console on one side, an endpoint's requests on the other, and
//! QEMU's VT-d between them ([`crate::endpoint`]).
//!
//! Where QEMU cannot have such endpoints the tests are skipped, and say why; with `REQUIRE_PASID=1` in the environment
//! they fail instead.

mod ats;
mod dma;
pub(crate) mod pages;
pub(crate) mod process;
mod replace;
pub(crate) mod rig;
mod tables;

use std::env;

use anyhow::Result;

use crate::profile::{Profile, Profiles};
use crate::run::Lab;
use rig::{Rig, Started};

/// One test.
pub struct Test {
    /// Its name.
    pub name: &'static str,
    machines: &'static [&'static str],
    play: fn(&mut Rig) -> Result<()>,
}

/// The machines with a VT-d; the first one takes page requests.
const BOTH: &[&str] = &["x86_64-first", "x86_64-second"];
const FIRST: &[&str] = &["x86_64-first"];

static TESTS: [Test; 14] = [
    Test { name: "switches", machines: BOTH, play: dma::switches },
    Test { name: "dma", machines: BOTH, play: dma::dma },
    Test { name: "two-endpoints", machines: BOTH, play: dma::two_endpoints },
    Test { name: "translations", machines: BOTH, play: ats::translations },
    Test { name: "invalidations", machines: BOTH, play: ats::invalidations },
    Test { name: "replace", machines: BOTH, play: replace::replace },
    Test { name: "tables", machines: BOTH, play: tables::tables },
    Test { name: "page-requests", machines: FIRST, play: pages::page_requests },
    Test { name: "late-answers", machines: FIRST, play: pages::late_answers },
    Test { name: "flood", machines: FIRST, play: pages::flood },
    Test { name: "bind", machines: FIRST, play: process::bind },
    Test { name: "exit", machines: FIRST, play: process::exit },
    Test { name: "exit-in-wait", machines: FIRST, play: process::exit_in_wait },
    Test { name: "exit-in-flood", machines: FIRST, play: process::exit_in_flood },
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

/// Every test, on each of its machines.
pub fn tests(profiles: &Profiles) -> Result<Vec<(&Profile, &'static Test)>> {
    let pairs = TESTS.iter().flat_map(|test| test.machines.iter().map(move |machine| (*machine, test)));
    pairs.map(|(machine, test)| Ok((profiles.named(machine)?, test))).collect()
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
