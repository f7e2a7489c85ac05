//! Attaching, detaching, blocking, and starting a unit anew.

use crate::board::Probe;
use crate::plan::{Act, Op, Trouble};
use crate::space::Kind;
use crate::substreams::missing;
use crate::world::{Finding, Stream, World, request};
use portcullis_hal::{Access, EndpointId};
use portcullis_iommu::{AttachError, DomainSpec, Missing, Stage, Transition, Unit as _};
use portcullis_model::core::Prng;
use std::collections::BTreeSet;

/// A stream's name before a change, for the table of transitions.
fn name(world: &World, stream: &Stream) -> &'static str {
    stream.space.map_or("nothing", |space| world.spaces[space].kind.name())
}

impl World {
    /// Attach, detach or block.
    pub(crate) fn change(&mut self, op: &Op, prng: &mut Prng) -> Result<(), Finding> {
        let (unit, sids) = self.devices[op.with[0] as usize % self.devices.len()].clone();
        let Some(driver) = self.units[unit].driver.clone() else { return Ok(()) };
        let live: Vec<usize> =
            (0..self.spaces.len()).filter(|&at| self.spaces[at].handle.is_some()).collect();
        let target = match op.act {
            Act::Attach if live.is_empty() => return Ok(()),
            Act::Attach => Some(live[op.with[1] as usize % live.len()]),
            _ => None,
        };
        let blocked = match op.act {
            Act::Block => Some(driver.new_domain(&DomainSpec::Blocked).map_err(|error| error.to_string())?),
            _ => None,
        };
        let endpoints: Vec<EndpointId> = sids.iter().map(|&sid| EndpointId::new(sid)).collect();
        let before: Vec<Stream> = sids.iter().map(|&sid| self.stream(unit, sid).clone()).collect();
        let after = match (&blocked, target) {
            (Some(handle), _) => {
                let space = crate::space::Space::new(Kind::Blocked, None, None);
                let _ = handle;
                self.spaces.push(space);
                Some(self.spaces.len() - 1)
            }
            (None, target) => target,
        };
        let used = self.passage(unit, &sids, before[0].space, prng);
        self.warm(&used, prng)?;
        let probes = self.passage(unit, &sids, after, prng);
        let refuses = after.is_none_or(|space| self.spaces[space].kind == Kind::Blocked);
        let (down, suspect) = (self.units[unit].down, self.units[unit].suspect);
        self.kernel.0.watch(if down || suspect { Vec::new() } else { probes });
        let allocations = self.kernel.0.host.allocations();
        let result = match (&blocked, target.and_then(|space| self.spaces[space].handle.clone())) {
            (Some(handle), _) => driver.attach(&endpoints, handle),
            (None, Some(handle)) => driver.attach(&endpoints, &handle),
            (None, None) => driver.detach(&endpoints).map(|()| Transition::Disruptive),
        };
        let interrupted = self.kernel.0.unwatch();
        self.log.push(format!("{:?} u{unit} {sids:x?} to d{after:?} -> {result:?}", op.act));
        if refuses && self.kernel.0.host.allocations() != allocations {
            return Err("cutting a device off allocated memory".into());
        }
        let armed = matches!(op.trouble, Trouble::OutOfMemory(_));
        let kind = after.map(|space| self.spaces[space].kind);
        let lacks = before.iter().map(|stream| missing(kind, &stream.permissions)).collect::<Missing>();
        match result {
            Err(AttachError::Incompatible { missing }) if missing == lacks && !lacks.is_empty() => {
                self.count(format!("refused beside permissions: {missing}"));
                return Ok(());
            }
            Ok(_) if !lacks.is_empty() => return Err("attached beside what it does not go with".into()),
            Ok(transition) => {
                if down && !refuses {
                    return Err("attached on a unit that is out of service".into());
                }
                if let (Transition::Hitless, Some(text)) = (transition, interrupted) {
                    return Err(format!("said to be hitless, but {text}"));
                }
                for (&sid, old) in sids.iter().zip(&before) {
                    let from = name(self, old);
                    let to = after.map_or("nothing", |space| self.spaces[space].kind.name());
                    let how = if op.act == Act::Detach { "" } else { word(transition) };
                    self.count(format!("{from} -> {to}{how}"));
                    let stream = self.stream(unit, sid);
                    stream.space = after;
                    if op.act == Act::Detach {
                        stream.pasids.clear();
                        stream.cut.clear();
                    }
                    if down || suspect {
                        stream.residue.extend(old.spaces());
                    }
                }
            }
            Err(AttachError::OutOfMemory(_)) if armed && !refuses => self.count("out of memory"),
            Err(AttachError::Faulted) if (down || suspect) && !refuses => {
                self.units[unit].down = true;
                self.count("attach refused: out of service");
            }
            Err(error @ (AttachError::Timeout(_) | AttachError::Faulted | AttachError::Lost))
                if down || suspect =>
            {
                if down || !from_device(&error) {
                    self.units[unit].down = true;
                }
                self.count("change not confirmed");
                for (&sid, old) in sids.iter().zip(&before) {
                    let stream = self.stream(unit, sid);
                    stream.space = None;
                    stream.pasids.clear();
                    stream.cut.clear();
                    stream.residue.extend(old.spaces().chain(after));
                }
            }
            Err(error) => return Err(format!("the change failed: {error}")),
        }
        let spaces = before.iter().filter_map(|stream| stream.space).chain(after);
        for space in spaces.collect::<Vec<_>>() {
            let address = self.spaces[space].segments().keys().next().copied();
            self.touch(space, address.unwrap_or_else(|| op.with[2] & 0x7fff_ffff_f000));
        }
        Ok(())
    }

    /// Attaches a device to its domains in turn, until ids come round again, while others keep theirs.
    pub(crate) fn churn(&mut self, op: &Op, prng: &mut Prng) -> Result<(), Finding> {
        let device = op.with[0] as usize % self.devices.len();
        let (unit, sids) = self.devices[device].clone();
        let rounds = if self.units[unit].model.config().asid16 { 32 } else { 300 };
        let live: Vec<usize> =
            (0..self.spaces.len()).filter(|&at| self.spaces[at].handle.is_some()).collect();
        let stage = if prng.chance(1, 2) { Stage::Stage1 } else { Stage::Stage2 };
        // A domain that others use keeps its id.
        let idle = |world: &Self, space| {
            let others = world.streams.iter().filter(|(at, _)| **at != (unit, sids[0]));
            others.flat_map(|(_, stream)| stream.spaces()).all(|at| at != space)
        };
        let suits = |at: &usize| {
            let space = &self.spaces[live[*at]];
            space.kind.stage() == Some(stage) && !space.segments().is_empty() && idle(self, live[*at])
        };
        let places: Vec<usize> = (0..live.len()).filter(suits).take(3).collect();
        if places.len() < 2 || self.suspect() {
            return Ok(());
        }
        self.count("churned");
        // What any domain maps, this device must find only if it is its own.
        let first = |space: &usize| self.spaces[*space].segments().keys().next().copied();
        let used: BTreeSet<usize> = self.streams.values().filter_map(|stream| stream.space).collect();
        let addresses: Vec<u64> = used.iter().chain(&live).filter_map(first).take(12).collect();
        for round in 0..rounds {
            let place = places[round % places.len()];
            let with = [device as u64, place as u64, op.with[2], op.with[3]];
            self.change(&Op { act: Act::Attach, trouble: op.trouble, with, seed: op.seed }, prng)?;
            for &space in &used {
                let probes = self.probes(space, &addresses[..addresses.len().min(2)]);
                self.warm(&probes, prng)?;
            }
            for &address in &addresses {
                self.check(unit, sids[0], address, Access::READ)?;
            }
        }
        Ok(())
    }

    /// What devices may see while they pass from their domains to another one.
    pub(crate) fn passage(
        &mut self,
        unit: usize,
        sids: &[u32],
        after: Option<usize>,
        prng: &mut Prng,
    ) -> Vec<Probe> {
        let mut probes = Vec::new();
        for &sid in sids {
            let old = self.stream(unit, sid).clone();
            let mut addresses = vec![prng.next_u64() & 0x3fff_f000];
            for space in old.space.into_iter().chain(after) {
                let segments = self.spaces[space].segments();
                let pick = prng.below(segments.len().max(1) as u64) as usize;
                addresses.extend(segments.keys().nth(pick));
                addresses.extend(segments.keys().next());
            }
            for address in addresses {
                let before = self.allowed(unit, sid, address, Access::READ);
                self.stream(unit, sid).space = after;
                let allowed = before.or(&self.allowed(unit, sid, address, Access::READ));
                self.stream(unit, sid).space = old.space;
                probes.push(Probe { unit, request: request(sid, address, Access::READ), allowed });
            }
        }
        probes
    }

    /// Drops a unit's driver and brings the unit up anew.
    pub(crate) fn restart(&mut self, unit: usize, prng: &mut Prng) -> Result<(), Finding> {
        self.log.push(format!("restart u{unit}"));
        self.kernel.0.host.fail_never();
        let outage = self.units[unit].suspect || self.units[unit].down;
        if !outage {
            self.answer_all(unit)?;
        }
        self.units[unit].pace(0);
        self.stop(unit);
        for sid in [0x10, 0x11] {
            self.check(unit, sid, 0x1000, Access::READ)?;
        }
        self.count("restart");
        self.start(unit, prng)
    }

    /// Lets go of everything, and looks for what was not given back.
    pub(crate) fn finish(&mut self) -> Result<(), Finding> {
        let mut prng = Prng::new(1);
        for unit in 0..self.units.len() {
            self.units[unit].pace(0);
            let outage = self.units[unit].suspect || self.units[unit].down;
            let Some(driver) = self.units[unit].driver.clone() else { continue };
            let devices: Vec<_> = self.devices.iter().filter(|device| device.0 == unit).cloned().collect();
            for (_, sids) in devices {
                let endpoints: Vec<EndpointId> = sids.iter().map(|&sid| EndpointId::new(sid)).collect();
                match driver.detach(&endpoints) {
                    Ok(()) => {
                        for sid in sids {
                            let stream = self.stream(unit, sid);
                            if outage {
                                let spaces: Vec<usize> = stream.spaces().collect();
                                stream.residue.extend(spaces);
                            }
                            stream.pasids.clear();
                            stream.cut.clear();
                            stream.space = None;
                        }
                    }
                    Err(_) if outage => {
                        for sid in sids {
                            let stream = self.stream(unit, sid);
                            let spaces: Vec<usize> = stream.spaces().collect();
                            stream.residue.extend(spaces);
                            stream.pasids.clear();
                            stream.cut.clear();
                            stream.space = None;
                        }
                    }
                    Err(error) => return Err(format!("the last detach failed: {error}")),
                }
            }
            self.settle(&mut prng)?;
        }
        for space in 0..self.spaces.len() {
            if self.spaces[space].handle.is_some() {
                for gather in 0..crate::space::GATHERS {
                    self.sync(space, gather)?;
                }
            }
        }
        for unit in 0..self.units.len() {
            let outage = self.units[unit].suspect || self.units[unit].down;
            if !outage {
                self.answer_all(unit)?;
            }
            self.stop(unit);
        }
        self.spaces.iter_mut().for_each(|space| space.handle = None);
        self.settle(&mut prng)?;
        let left = self.kernel.0.host.frames_in_use();
        if left != 0 && !self.leaky {
            return Err(format!("{left} frames were not given back"));
        }
        Ok(())
    }
}

const fn word(transition: Transition) -> &'static str {
    match transition {
        Transition::Hitless => " hitless",
        Transition::Disruptive => " disruptive",
    }
}

/// Whether it is a device that does not answer (CERROR_ATC_INV_SYNC), and not its unit.
fn from_device(error: &AttachError) -> bool {
    matches!(error, AttachError::Timeout(timeout) if timeout.register == "SMMU_CMDQ_CONS" && timeout.last >> 24 & 0x7f == 3)
}
