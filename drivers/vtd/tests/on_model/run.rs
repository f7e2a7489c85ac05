//! Runs: from a seed to operations, to a verdict, and, when one fails, to the few operations that matter.

use crate::bench::Registers;
use crate::ensure;
use crate::op::{Op, Roughness, Step, generate};
use crate::oracle::Attached;
use crate::world::{Outcomes, World, options};
use portcullis_hal::Pasid;
use portcullis_iommu::{DomainSpec, PagingSpec, Permissions, Requests, Unit};
use portcullis_model::core::Coverage;
use portcullis_model::vtd::{Config, Feature};
use portcullis_vtd::Setup;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// What is left to do when the unit has failed for good.
const AFTERMATH: usize = 60;

/// The units that runs are made on.
const UNITS: [(&str, Config); 13] = [
    ("full", Config::full()),
    ("QEMU, first stage", Config::qemu_first_stage()),
    ("QEMU, second stage", Config::qemu_second_stage()),
    ("least", Config::least()),
    ("caching mode", Config::full().with(Feature::CachingMode)),
    ("no coherent entries", Config::full().without(Feature::Coherent)),
    ("no coherent walks", Config::full().without(Feature::PageWalkCoherent)),
    ("write buffer", Config::full().with(Feature::WriteBufferFlush).without(Feature::EnhancedSetRoot)),
    ("no page-selective invalidation", Config::full().without(Feature::PageSelective)),
    ("16 domain ids", Config::full().with_domain_ids(0)),
    ("one fault record", Config::full().with_fault_records(1).without(Feature::FirstStageGib)),
    ("second stage of three levels", Config::full().with_widths(0b0010).without(Feature::FirstStage)),
    ("nothing coherent, caching mode", {
        Config::full()
            .without(Feature::Coherent)
            .without(Feature::PageWalkCoherent)
            .with(Feature::CachingMode)
            .with_domain_ids(0)
    }),
];

/// A run: all of it follows from the seed.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) seed: u64,
    pub(crate) unit: &'static str,
    config: Config,
    devices: usize,
    pub(crate) steps: Vec<Step>,
}

/// What several runs exercised.
#[derive(Debug, Default)]
pub(crate) struct Total {
    pub(crate) operations: usize,
    pub(crate) rows: BTreeMap<(&'static str, &'static str, &'static str), u64>,
}

impl Total {
    fn add(&mut self, coverage: &Coverage) {
        for (class, name, to, count) in coverage.table() {
            *self.rows.entry((class, name, to)).or_default() += count;
        }
    }

    /// How often something was counted; an empty second name stands for all.
    pub(crate) fn of(&self, class: &str, name: &str, to: &str) -> u64 {
        let fits =
            |row: &(&str, &str, &str)| row.0 == class && row.1 == name && (to.is_empty() || row.2 == to);
        self.rows.iter().filter(|(row, _)| fits(row)).map(|(_, count)| count).sum()
    }
}

impl Run {
    pub(crate) fn new(seed: u64, count: usize) -> Self {
        let (unit, config) = UNITS[(seed % UNITS.len() as u64) as usize];
        let turn = seed / UNITS.len() as u64;
        let roughness = match turn % 4 {
            0 | 1 => Roughness::Mild,
            2 => Roughness::Errors,
            _ => Roughness::Fatal,
        };
        // With many devices the ids run out on the units that have 16.
        let devices = if config.domain_bits() == 4 && turn % 2 == 1 { 18 } else { 5 };
        Self { seed, unit, config, devices, steps: generate(seed, count, roughness) }
    }

    /// Carries the operations out and counts what is done; gives how many were, or how many it took to fail and why.
    fn carry_out(&self, total: &mut Total) -> Result<usize, (usize, String)> {
        let coverage = Arc::new(Coverage::default());
        let mut world =
            World::new(self.config, self.seed, self.devices, coverage.clone()).map_err(|error| (0, error))?;
        let (mut done, mut left) = (0, usize::MAX);
        for &step in &self.steps {
            if left == 0 {
                break;
            }
            done += 1;
            world.step(step).map_err(|error| (done, error))?;
            left = if world.faulted { left.min(AFTERMATH) - 1 } else { left };
        }
        let unit = world.bench.unit.clone();
        finish(world).map_err(|error| (done, error))?;
        total.operations += done;
        total.add(&coverage);
        total.add(unit.coverage());
        Ok(done)
    }

    /// As [`carry_out`](Self::carry_out), with panics as failures.
    fn attempt(&self, total: &mut Total) -> Result<usize, (usize, String)> {
        let result = catch_unwind(AssertUnwindSafe(|| self.carry_out(total)));
        result.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err((self.steps.len(), format!("panic: {}", text.unwrap_or_default())))
        })
    }

    /// Carries the run out and adds to the total; a failure is shrunk and told in full.
    pub(crate) fn check(&self, total: &mut Total) {
        let Err((at, reason)) = self.attempt(total) else { return };
        let short = self.shrunk(at, &reason);
        let verdict = short.attempt(&mut Total::default()).err().map_or(reason.clone(), |(_, text)| text);
        let steps = short.steps.iter().map(|(nonce, op)| format!("    ({nonce:#x}, {op:?}),\n"));
        panic!(
            "seed {} failed at operation {at}:\n  {reason}\n\
             replay it with PORTCULLIS_SEED={} PORTCULLIS_LENGTH={}. Cut down to {} operations it fails with:\n  \
             {verdict}\n\
             replay(\"{}\", {}, &[\n{}]);",
            self.seed,
            self.seed,
            self.steps.len(),
            short.steps.len(),
            self.unit,
            self.devices,
            steps.collect::<String>(),
        );
    }

    /// The failing run without the operations that it fails without, in the same way.
    fn shrunk(&self, at: usize, reason: &str) -> Self {
        // The words of a reason before the first number say what kind it is.
        let kind = |text: &str| text.split(|c: char| c.is_ascii_digit()).next().map(str::to_owned);
        let mut best = Self { steps: self.steps[..at.min(self.steps.len())].to_vec(), ..self.clone() };
        let mut chunk = best.steps.len().div_ceil(2);
        let mut budget = 600;
        while chunk > 0 && budget > 0 {
            let mut from = 0;
            while from < best.steps.len() && budget > 0 {
                let mut fewer = best.clone();
                fewer.steps.drain(from..(from + chunk).min(best.steps.len()));
                budget -= 1;
                match fewer.attempt(&mut Total::default()) {
                    Err((at, other)) if kind(&other) == kind(reason) => {
                        fewer.steps.truncate(at);
                        best = fewer;
                    }
                    _ => from += chunk,
                }
            }
            chunk = if chunk == 1 { 0 } else { chunk.div_ceil(2) };
        }
        best
    }
}

/// The end of a run: all is taken back, and nothing is missing.
fn finish(mut world: World) -> Outcomes {
    world.bench.unit.unhang();
    world.bench.host.hal().fail_never();
    world.bench.schedule.calm();
    world.survey(0, None)?;
    world.interrupt()?;
    world.all_answered(5)?;
    if !world.quarantined {
        // Every device gets all the tables that it may have, which stay with it.
        let spec = DomainSpec::Paging(PagingSpec::default());
        let domain = world.driver.new_domain(&spec).map_err(|error| error.to_string())?;
        let pasid_bits = world.config.pasid_bits() as u8;
        let all = Permissions { pasid_bits, requests: Requests::empty() };
        for device in 0..world.devices.len() {
            world.detach(1, device as u8, 1)?;
        }
        for device in 0..world.devices.len() {
            let endpoints = world.endpoints(&[device]);
            world.devices[device].function.set_ats(false);
            world.driver.permit(&endpoints, &all).map_err(|error| error.to_string())?;
            world.driver.attach(&endpoints, &domain).map_err(|error| error.to_string())?;
            for pasid in world.devices[device].leaves.iter().filter_map(|leaf| Pasid::new(leaf * 64).ok()) {
                let result = world.driver.attach_pasid(&endpoints, pasid, &domain);
                result.map_err(|error| error.to_string())?;
            }
            world.driver.detach(&endpoints).map_err(|error| error.to_string())?;
            world.devices[device].permissions = all;
        }
    }
    for slot in 0..world.slots.len() {
        world.drop_domain(1, slot as u8)?;
    }
    for device in 0..world.devices.len() {
        world.detach(1, device as u8, 1)?;
    }
    world.survey(0, None)?;
    if world.quarantined {
        world.count("end", "something quarantined");
        return Ok(());
    }
    // Root table, queue, status word; the page request queue; context tables; for each device a PASID directory, of 8 bytes for 64 PASIDs, and its
    // tables; the table that leads nowhere.
    let mut contexts: Vec<u16> = world.devices.iter().map(|device| device.sid >> 7).collect();
    contexts.dedup();
    let pasids = 1_usize << world.config.pasid_bits();
    let directory = (pasids / 64 * 8).div_ceil(4096).max(1);
    let leaves: usize = world.devices.iter().map(|device| device.leaves.len()).sum();
    let nowhere = usize::from(pasids > 1);
    let page_requests = usize::from(world.takes_pages());
    let expected = 3 + page_requests + contexts.len() + directory * world.devices.len() + leaves + nowhere;
    let found = world.bench.host.hal().frames_in_use();
    ensure!(found == expected, "{found} frames are in use in the end, not {expected}");
    let ended = world.devices.iter().all(|device| device.attached == Attached::NOTHING);
    ensure!(ended, "a device is attached in the end");
    world.count("end", "nothing missing");
    handed_over(world)
}

/// A successor takes the unit over, which is still translating with the tables of a driver that is no more.
fn handed_over(mut world: World) -> Outcomes {
    let spec = DomainSpec::Paging(PagingSpec::default());
    let old = world.driver.new_domain(&spec).map_err(|error| error.to_string())?;
    let first = world.endpoints(&[0]);
    world.driver.attach(&first, &old).map_err(|error| error.to_string())?;
    let requests: Vec<_> = (0..world.devices.len()).map(|device| world.request(device, 0, false)).collect();
    world.bench.begin(3, &requests);
    let (successor, registers) = (world.bench.host.clone(), Registers(world.bench.clone()));
    let options = options(&world.config);
    // The predecessor's domain stays, as its tables do in memory.
    let setup = Setup::new(successor.clone(), registers, options).map_err(|error| error.to_string())?;
    world.driver = setup.enable().map_err(|error| error.to_string())?;
    world.devices.iter_mut().for_each(|device| {
        device.permissions = Permissions::NONE;
        device.cut.clear();
    });
    world.bench.end();
    world.survey(4, None)?;
    world.count("end", "handed over");
    drop(old);
    Ok(())
}

/// The steps of a regression test, on the unit of a seed.
pub(crate) fn replay(unit: &str, devices: usize, steps: &[(u64, Op)]) {
    let Some(&(unit, config)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        panic!("no unit {unit}")
    };
    let run = Run { seed: 0, unit, config, devices, steps: steps.to_vec() };
    run.check(&mut Total::default());
}
