//! Page requests, from the first look at the queue to the answer's submission.
//!
//! An endpoint of the harness asks for a page while the kernel leaves the queue alone; then the kernel serves it, and says
//! what that took. The handler is the kernel's own: it makes the page, or finds that it is there.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::cost::Cost;
use super::linux::OPERATIONS;
use super::{COUNTING, Costs};
use crate::endpoint::link::Code;
use crate::pasid::pages::{ask, expect};
use crate::pasid::process::{Bound, HEAP, PAGE, process};
use crate::pasid::rig::{Rig, Started};
use crate::profile::Profile;
use crate::run::Lab;
use crate::ui;

const ROUNDS: u64 = 101;

/// Runs the operations that need endpoints, where the machine can have them.
pub(super) fn measure(lab: &Lab, profile: &Profile, kernel: &Path, name: &str) -> Result<Costs> {
    if !OPERATIONS.iter().any(|operation| operation.is_counted_with_endpoints_on(&profile.name)) {
        return Ok(HashMap::new());
    }
    let name = format!("{}-{name}-faults", profile.name);
    let mut rig = match Rig::boot(lab, profile, &name, kernel, &COUNTING)? {
        Started::Ready(rig) => rig,
        Started::Unusable(why) => {
            ui::say(&format!("page requests are not measured: {why}"));
            return Ok(HashMap::new());
        }
    };
    let costs = play(&mut rig).with_context(|| name.clone())?;
    match rig.power_off()? {
        None => Ok(costs),
        Some(problem) => bail!("{name}: {problem}"),
    }
}

fn play(rig: &mut Rig) -> Result<Costs> {
    let process = process(rig, "new 4M")?;
    let bound = Bound::new(rig, 0, &process)?;
    let (mut new, mut present) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        for costs in [&mut new, &mut present] {
            costs.push(serve(rig, &bound, HEAP + round * PAGE)?);
        }
    }
    let costs = [("fault.new", new), ("fault.present", present)];
    costs.into_iter().map(|(key, all)| Ok((key, Cost::of_all(&all).context("no rounds")?))).collect()
}

/// One request, which is answered with success.
fn serve(rig: &mut Rig, bound: &Bound, address: u64) -> Result<Cost> {
    let (_, place) = rig.endpoint(0)?;
    rig.ask("hold")?;
    ask(rig, 0, bound.request(address, "rw", 1))?;
    let lines = rig.ask(&format!("serve {place}"))?;
    expect(rig, 0, &[bound.response(1, Code::Success)])?;
    let line = lines.iter().find_map(|line| line.strip_prefix("served: answers=1 "));
    line.and_then(Cost::of_one).with_context(|| format!("the kernel did not answer one request: {lines:?}"))
}
