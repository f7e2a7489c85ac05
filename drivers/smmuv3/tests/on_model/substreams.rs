//! Random permissions, PASIDs, and devices that cache translations.

use crate::asking::{ASKING, CREDITS};
use crate::board::Probe;
use crate::plan::{Act, Op, Trouble};
use crate::space::Kind;
use crate::world::{Finding, Stream, World, request};
use portcullis_hal::{Access, EndpointId, Pasid};
use portcullis_iommu::{AttachError, Missing, Permissions, Requests, Stage, Transition, Unit as _};
use portcullis_model::core::{Mode, Outcome, Prng};
use portcullis_model::device::{Device, Job};
use std::collections::BTreeSet;
use std::sync::Arc;

/// PASIDs: neighbours, on both sides of second-level tables, the last ones.
pub(crate) const PASIDS: [u32; 8] = [1, 2, 63, 64, 1023, 1024, 0x3_0001, 0xf_ffff];

/// What a stream's translation of requests without a PASID does not go with.
pub(crate) fn missing(kind: Option<Kind>, permissions: &Permissions) -> Missing {
    let pasids = permissions.pasid_bits > 0;
    let translates = permissions.requests.contains(Requests::TRANSLATION);
    let mut beside_stage_2 = Missing::empty();
    beside_stage_2.set(Missing::PASID, pasids);
    beside_stage_2.set(Missing::STALL, permissions.requests.contains(Requests::STALL));
    match kind {
        Some(Kind::Tables(Stage::Stage2) | Kind::Shared(Stage::Stage2)) => beside_stage_2,
        Some(Kind::Identity) if translates && !pasids => Missing::ATS,
        _ => Missing::empty(),
    }
}

/// Where a stream leads after a change of a PASID, to a domain of this kind.
fn lead(stream: &mut Stream, number: u32, to: Option<(usize, Kind)>) {
    let before = stream.pasids.remove(&number);
    match to {
        Some((_, Kind::Blocked)) if before.is_none() => {}
        Some((_, Kind::Blocked)) => drop(stream.cut.insert(number)),
        Some((space, _)) => {
            stream.cut.remove(&number);
            stream.pasids.insert(number, space);
        }
        None => drop(stream.cut.remove(&number)),
    }
}

impl World {
    /// What devices may see with a PASID while it passes from its domain to another one.
    fn passage_of(
        &mut self,
        unit: usize,
        sids: &[u32],
        number: u32,
        to: Option<(usize, Kind)>,
        prng: &mut Prng,
    ) -> Vec<Probe> {
        let mut probes = Vec::new();
        for &sid in sids {
            let old = self.stream(unit, sid).clone();
            let mut new = old.clone();
            lead(&mut new, number, to);
            let mut addresses = vec![prng.next_u64() & 0x3fff_f000];
            let spaces: Vec<usize> =
                [&old, &new].iter().filter_map(|stream| stream.pasids.get(&number).copied()).collect();
            for &space in &spaces {
                let segments = self.spaces[space].segments();
                let pick = prng.below(segments.len().max(1) as u64) as usize;
                addresses.extend(segments.keys().nth(pick));
                // What all of them map has to arrive at every moment, if the change is to be hitless.
                let common = |at: &&u64| spaces.iter().all(|&space| self.spaces[space].at(**at).is_some());
                addresses.extend(segments.keys().filter(common).take(2));
            }
            for address in addresses {
                let before = self.allowed_as(unit, sid, Some(number), address, Access::READ);
                *self.stream(unit, sid) = new.clone();
                let allowed = before.or(&self.allowed_as(unit, sid, Some(number), address, Access::READ));
                *self.stream(unit, sid) = old.clone();
                let request = request(sid, address, Access::READ).with_pasid(number);
                probes.push(Probe { unit, request, allowed });
            }
        }
        probes
    }

    /// A PASID that the device may or may not use.
    fn some_pasid(&self, bits: u8, number: u64) -> u32 {
        match number % 4 {
            0 => PASIDS[(number >> 8) as usize % PASIDS.len()],
            _ => PASIDS[(number >> 8) as usize % PASIDS.len()] & ((1 << bits) - 1),
        }
        .max(1)
    }

    /// Permits or withdraws.
    pub(crate) fn permit(&mut self, op: &Op, prng: &mut Prng) -> Result<(), Finding> {
        let (unit, sids) = self.devices[op.with[0] as usize % self.devices.len()].clone();
        let Some(driver) = self.units[unit].driver.clone() else { return Ok(()) };
        if self.suspect() {
            return Ok(());
        }
        let hardware = self.units[unit].model.config().clone();
        let most = if hardware.stage1 { hardware.ssid_bits } else { 0 };
        let pasid_bits = [0, 1, 6, 8, 11, most, most][prng.below(7) as usize];
        let requests = match prng.below(8) {
            0..2 => Requests::empty(),
            2..4 => Requests::TRANSLATION,
            number => ASKING[number as usize % 2],
        };
        let new = Permissions { pasid_bits, requests };
        let endpoints: Vec<EndpointId> = sids.iter().map(|&sid| EndpointId::new(sid)).collect();
        let mut lacks = Missing::empty();
        lacks.set(Missing::PASID, pasid_bits > most);
        lacks.set(Missing::ATS, requests.contains(Requests::TRANSLATION) && !hardware.ats);
        lacks.set(Missing::PRI, requests.contains(Requests::PAGE) && !(hardware.pri && hardware.ats));
        let stalls = hardware.stage1 && hardware.stall_model == 0;
        lacks.set(Missing::STALL, requests.contains(Requests::STALL) && !stalls);
        let (mut in_use, mut grants) = (false, false);
        for &sid in &sids {
            let stream = self.stream(unit, sid).clone();
            let kind = stream.space.map(|space| self.spaces[space].kind);
            lacks |= missing(kind, &new);
            in_use |= stream.pasids.keys().any(|pasid| pasid >> pasid_bits != 0);
            grants |=
                pasid_bits > stream.permissions.pasid_bits || !stream.permissions.requests.contains(requests);
        }
        self.quiesce(unit, &sids)?;
        let space = self.stream(unit, sids[0]).space;
        let used = self.passage(unit, &sids, space, prng);
        self.warm(&used, prng)?;
        self.kernel.0.watch(used);
        let result = driver.permit(&endpoints, &new);
        let interrupted = self.kernel.0.unwatch();
        self.log.push(format!("permit u{unit} {sids:x?} {new:?} -> {result:?}"));
        match result {
            Ok(how) if lacks.is_empty() && !in_use => {
                if let (Transition::Hitless, Some(text)) = (how, interrupted) {
                    return Err(format!("said to be hitless, but {text}"));
                }
                if how == Transition::Disruptive {
                    return Err("permissions changed with a gap".into());
                }
                for &sid in &sids {
                    self.stream(unit, sid).permissions = new;
                    self.stream(unit, sid).cut.retain(|pasid| pasid >> pasid_bits == 0);
                    let on = requests.contains(Requests::TRANSLATION);
                    self.device(unit, sid).set_ats(false);
                    self.device(unit, sid).set_pasid((pasid_bits > 0).then_some(pasid_bits));
                    self.device(unit, sid).set_ats(on);
                }
                self.count(if grants { "permitted" } else { "withdrawn" });
            }
            Err(AttachError::PasidInUse(_)) if in_use => self.count("refused pasid in use"),
            Err(AttachError::Incompatible { missing }) if missing == lacks && !lacks.is_empty() => {
                self.count(format!("refused permission: {missing}"));
            }
            Err(AttachError::OutOfMemory(_)) if matches!(op.trouble, Trouble::OutOfMemory(_)) && grants => {
                self.count("out of memory");
            }
            result => return Err(format!("permitting {new:?} ended in {result:?}, lacking is {lacks}")),
        }
        for &sid in &sids {
            if self.stream(unit, sid).permissions.requests.contains(Requests::PAGE) {
                self.device(unit, sid).set_pri(Some(CREDITS));
            }
        }
        Ok(())
    }

    /// Attaches, replaces or detaches a PASID.
    pub(crate) fn change_pasid(&mut self, op: &Op, prng: &mut Prng) -> Result<(), Finding> {
        let capable: Vec<_> =
            self.devices.iter().filter(|d| self.units[d.0].model.config().ssid_bits > 0).collect();
        if capable.is_empty() || self.suspect() {
            return Ok(());
        }
        let (unit, sids) = capable[op.with[0] as usize % capable.len()].clone();
        let Some(driver) = self.units[unit].driver.clone() else { return Ok(()) };
        let bits = self.stream(unit, sids[0]).permissions.pasid_bits;
        let attached: Vec<u32> = self.stream(unit, sids[0]).pasids.keys().copied().collect();
        let number = match attached.len() {
            many @ 1.. if op.with[3].is_multiple_of(3) => attached[op.with[1] as usize % many],
            _ => self.some_pasid(bits, op.with[1]),
        };
        let pasid = Pasid::new(number).map_err(|error| error.to_string())?;
        let endpoints: Vec<EndpointId> = sids.iter().map(|&sid| EndpointId::new(sid)).collect();
        let live: Vec<usize> =
            (0..self.spaces.len()).filter(|&at| self.spaces[at].handle.is_some()).collect();
        let space = match op.act {
            Act::AttachPasid if live.is_empty() => return Ok(()),
            Act::AttachPasid => Some(live[op.with[2] as usize % live.len()]),
            _ => None,
        };
        let before: Vec<Option<usize>> =
            sids.iter().map(|&sid| self.stream(unit, sid).pasids.get(&number).copied()).collect();
        for space in before.iter().copied().flatten().chain(space) {
            let address = self.spaces[space].segments().keys().next().copied().unwrap_or(0);
            self.touch(space, address);
            for &sid in &sids {
                let request = request(sid, address, Access::READ).with_pasid(number);
                self.dma(unit, request, Mode::Any)?;
                self.device(unit, sid).prefetch(Job::read(address).with_pasid(number), Mode::Any);
            }
        }
        let kind = space.map(|space| self.spaces[space].kind);
        let lacks = match kind {
            Some(Kind::Identity) => Missing::IDENTITY,
            Some(Kind::Tables(Stage::Stage2) | Kind::Shared(Stage::Stage2)) => Missing::PASID,
            _ => Missing::empty(),
        };
        let known = number >> bits == 0;
        let to = space.zip(kind);
        let plain = self.stream(unit, sids[0]).space;
        let mut probes = match plain {
            Some(_) => self.passage(unit, &sids, plain, prng),
            None => Vec::new(),
        };
        if known && lacks.is_empty() {
            probes.extend(self.passage_of(unit, &sids, number, to, prng));
        }
        self.kernel.0.watch(probes);
        let allocations = self.kernel.0.host.allocations();
        let result = match space.and_then(|space| self.spaces[space].handle.clone()) {
            Some(handle) => driver.attach_pasid(&endpoints, pasid, &handle),
            None => driver.detach_pasid(&endpoints, pasid).map(|()| Transition::Disruptive),
        };
        let interrupted = self.kernel.0.unwatch_each();
        self.log.push(format!("pasid {number:#x} of u{unit} {sids:x?} to d{space:?} -> {result:?}"));
        if space.is_none() && self.kernel.0.host.allocations() != allocations {
            return Err("detaching a PASID allocated memory".into());
        }
        if let Some(text) = interrupted.plain {
            return Err(format!("a PASID changed, and requests without one were interrupted: {text}"));
        }
        match (&result, interrupted.with_pasid) {
            (Ok(Transition::Disruptive), Some(_)) => self.count("pasid: interrupted in a disruptive change"),
            (_, Some(text)) => return Err(format!("a PASID's change ended in {result:?}, but {text}")),
            (_, None) => {}
        }
        match result {
            Ok(how) if lacks.is_empty() && (known || space.is_none()) => {
                let blocked = kind.is_none_or(|kind| kind == Kind::Blocked);
                let word = if how == Transition::Hitless { "hitless" } else { "disruptive" };
                for (&sid, before) in sids.iter().zip(&before) {
                    lead(self.stream(unit, sid), number, to);
                    self.count(match (before, blocked) {
                        (_, true) if before.is_none() => "pasid: nothing -> nothing".into(),
                        (_, true) => "pasid: domain -> nothing".into(),
                        (None, false) => format!("pasid: nothing -> domain {word}"),
                        (Some(_), false) => format!("pasid: domain -> domain {word}"),
                    });
                }
            }
            Err(AttachError::UnknownPasid(_)) if !known => self.count("refused unknown pasid"),
            Err(AttachError::Incompatible { missing }) if missing == lacks => {
                self.count(format!("refused for a pasid: {missing}"));
            }
            Err(AttachError::OutOfMemory(_)) if matches!(op.trouble, Trouble::OutOfMemory(_)) => {
                self.count("out of memory");
            }
            result => return Err(format!("the change of a PASID ended in {result:?}")),
        }
        self.substreams(unit, &sids, number, prng)
    }

    /// Checks a PASID of a device, and one that is not attached.
    fn substreams(&mut self, unit: usize, sids: &[u32], number: u32, prng: &mut Prng) -> Result<(), Finding> {
        for &sid in sids {
            let spaces = self.stream(unit, sid).pasids.clone();
            let some = spaces.keys().nth(prng.below(spaces.len().max(1) as u64) as usize).copied();
            for pasid in [Some(number), some].into_iter().flatten() {
                let space = spaces.get(&pasid).copied();
                let address = space.and_then(|s| self.spaces[s].segments().keys().next().copied());
                for address in [address.unwrap_or(0x1000), self.recent(prng)] {
                    self.check_as(unit, sid, Some(pasid), address, Access::READ)?;
                }
            }
        }
        Ok(())
    }

    /// The device behind a stream.
    pub(crate) fn device(&self, unit: usize, sid: u32) -> Arc<Device> {
        self.atcs[&(unit, sid)].clone()
    }

    /// Checks that a device that caches translations reaches nothing through them that it must not.
    pub(crate) fn check_cached(
        &self,
        unit: usize,
        sid: u32,
        pasid: Option<u32>,
        address: u64,
        kind: Access,
    ) -> Result<(), Finding> {
        let Some(stream) = self.streams.get(&(unit, sid)) else { return Ok(()) };
        let translates = stream.permissions.requests.contains(Requests::TRANSLATION);
        if !translates || !stream.residue.is_empty() || kind == Access::EXECUTE {
            return Ok(());
        }
        let device = self.device(unit, sid);
        let allowed = self.allowed_as(unit, sid, pasid, address, kind);
        let access = request(sid, address, kind).access;
        let job = Job { pasid, access, ..Job::read(address) };
        device.prefetch(job, Mode::Any);
        let model = &self.units[unit].model;
        let outcomes: BTreeSet<Outcome> = device.reachable(job, |request| model.reachable(request));
        match outcomes.iter().find(|outcome| outcome.output().is_some() && !allowed.admits(**outcome)) {
            Some(outcome) => Err(format!(
                "unit {unit}: through its cache stream {sid:#x} {pasid:x?} at {address:#x} may end in {outcome:x?}; \
                 allowed is {allowed:x?}"
            )),
            None => Ok(()),
        }
    }
}
