//! The state of a run, and what must be true of it at rest.

use crate::asking::answered;
use crate::board::{Allowed, Handler, Kernel, Probe};
use crate::ram::lock;
use crate::setups::{Unit, config, handle, overridden};
use crate::space::{Kind, Space};
use portcullis_hal::{Access, EndpointId};
use portcullis_iommu::{PageRequest, Permissions, Requests, Stage, UnitEvent};
use portcullis_model::core::{Mode, Outcome, Prng, Request, Schedule};
use portcullis_model::device::Device;
use portcullis_model::smmuv3::code;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// A finding, in words.
pub(crate) type Finding = String;

/// Where a stream leads.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stream {
    /// Its domain.
    pub(crate) space: Option<usize>,
    /// Domains that a failed unit may still use for it.
    pub(crate) residue: Vec<usize>,
    pub(crate) permissions: Permissions,
    /// Domains by PASID.
    pub(crate) pasids: BTreeMap<u32, usize>,
    /// PASIDs that reach nothing without a record.
    pub(crate) cut: BTreeSet<u32>,
}

impl Stream {
    /// All its domains.
    pub(crate) fn spaces(&self) -> impl Iterator<Item = usize> {
        self.space.into_iter().chain(self.pasids.values().copied())
    }
}

/// A device: its unit, and its streams there.
pub(crate) type Streams = (usize, Vec<u32>);

/// Everything.
pub(crate) struct World {
    pub(crate) kernel: Kernel,
    pub(crate) units: Vec<Unit>,
    pub(crate) spaces: Vec<Space>,
    pub(crate) devices: Vec<Streams>,
    pub(crate) streams: BTreeMap<(usize, u32), Stream>,
    /// The devices behind the streams.
    pub(crate) atcs: BTreeMap<(usize, u32), Arc<Device>>,
    /// Requests that want an answer, with their units.
    pub(crate) asked: Vec<(usize, PageRequest)>,
    pub(crate) output_bits: u8,
    pub(crate) coherent: bool,
    /// Something may be lost for ever, because hardware was made to fail.
    pub(crate) leaky: bool,
    /// What was done, for the report of a finding.
    pub(crate) log: Vec<String>,
    pub(crate) counts: BTreeMap<String, u64>,
    /// Addresses that changed in the last operation, by domain.
    pub(crate) touched: Vec<(usize, u64)>,
    recent: VecDeque<u64>,
}

/// StreamIDs: neighbours, two in different second-level tables, the last ones.
const STREAMS: [&[u32]; 5] = [&[0x10], &[0x11], &[0x12, 0x113], &[0x2fe], &[0xffff_ffff]];

impl World {
    pub(crate) fn new(seed: u64) -> Result<Self, Finding> {
        let (_, hardware) = config(seed);
        let mut prng = Prng::new(seed);
        let kernel = Kernel::new(hardware.coherent);
        kernel.0.begin(prng.next_u64());
        let count = if seed % 4 == 1 { 2 } else { 1 };
        let mut units: Vec<Unit> = (0..count).map(|_| Unit::new(seed, &kernel, &mut prng)).collect();
        for unit in &mut units {
            unit.options.page_request_queue_log2 = prng.below(6) as u8;
        }
        *lock(&kernel.0.units) = units.iter().map(|unit| unit.model.clone()).collect();
        *lock(&kernel.0.handlers) = vec![None; count];
        let mask = (1_u64 << hardware.sid_bits.min(25)) as u32 - 1;
        let mut devices = Vec::new();
        for unit in 0..count {
            devices.extend(STREAMS.map(|sids| (unit, sids.iter().map(|sid| sid & mask).collect())));
        }
        let streams = devices
            .iter()
            .flat_map(|(unit, sids): &Streams| sids.iter().map(|sid| ((*unit, *sid), Stream::default())))
            .collect();
        let atcs: BTreeMap<(usize, u32), Arc<Device>> = devices
            .iter()
            .flat_map(|(unit, sids): &Streams| sids.iter().map(|sid| (*unit, *sid)))
            .map(|(unit, sid)| {
                let (link, schedule) = (units[unit].model.clone(), units[unit].schedule.clone());
                ((unit, sid), Arc::new(Device::new(sid, link, schedule, true)))
            })
            .collect();
        *lock(&kernel.0.devices) = atcs.values().cloned().collect();
        let mut world = Self {
            kernel,
            units,
            atcs,
            spaces: Vec::new(),
            asked: Vec::new(),
            devices,
            streams,
            output_bits: hardware.oas,
            coherent: hardware.coherent && !overridden(seed),
            leaky: false,
            log: Vec::new(),
            counts: BTreeMap::new(),
            touched: Vec::new(),
            recent: VecDeque::new(),
        };
        for unit in 0..count {
            world.watch(unit, &mut prng);
            world.start(unit, &mut prng)?;
        }
        Ok(world)
    }

    /// The unit fetches ahead for some of these at any time.
    fn watch(&self, unit: usize, prng: &mut Prng) {
        for (_, sids) in self.devices.iter().filter(|device| device.0 == unit) {
            let address = [0, 1 << 21, 1 << 30][prng.below(3) as usize];
            self.units[unit].model.watch(Request::read(sids[0], address));
        }
    }

    /// Brings a unit up.
    pub(crate) fn start(&mut self, unit: usize, prng: &mut Prng) -> Result<(), Finding> {
        let mut direct = Vec::new();
        if prng.chance(1, 3) {
            let (_, sids) = self.devices.iter().find(|device| device.0 == unit).cloned().unwrap_or_default();
            let stage = if self.units[unit].model.config().stage1 { Stage::Stage1 } else { Stage::Stage2 };
            let (space, mapping) = Space::direct(stage, 0x40_0000 << prng.below(8));
            self.spaces.push(space);
            let endpoints = sids.iter().map(|&sid| EndpointId::new(sid)).collect();
            direct.push((endpoints, mapping));
            for sid in sids {
                self.stream(unit, sid).space = Some(self.spaces.len() - 1);
            }
        }
        self.units[unit]
            .start(&self.kernel, &direct, prng.next_u64())
            .map_err(|error| format!("unit {unit} did not come up: {error}"))?;
        let driver = self.units[unit].driver.clone();
        let (model, inbox) = (self.units[unit].model.clone(), self.units[unit].inbox.clone());
        let handler: Option<Handler> = driver.map(|driver| {
            let handler: Handler = Arc::new(move || handle(&driver, &model, &inbox));
            handler
        });
        lock(&self.kernel.0.handlers)[unit] = handler;
        Ok(())
    }

    /// Lets go of a unit's driver.
    pub(crate) fn stop(&mut self, unit: usize) {
        lock(&self.kernel.0.handlers)[unit] = None;
        self.units[unit].driver = None;
        for ((_, _), stream) in self.streams.iter_mut().filter(|((at, _), _)| *at == unit) {
            *stream = Stream::default();
        }
        for (_, device) in self.atcs.iter().filter(|((at, _), _)| *at == unit) {
            device.reset();
        }
        self.asked.retain(|(at, _)| *at != unit);
        let bygone = std::mem::take(&mut self.units[unit].caused);
        self.units[unit].bygone.extend(bygone);
    }

    pub(crate) fn stream(&mut self, unit: usize, sid: u32) -> &mut Stream {
        self.streams.entry((unit, sid)).or_default()
    }

    pub(crate) fn count(&mut self, what: impl Into<String>) {
        *self.counts.entry(what.into()).or_default() += 1;
    }

    pub(crate) fn touch(&mut self, space: usize, address: u64) {
        self.touched.push((space, address));
        if self.recent.len() == 64 {
            self.recent.pop_front();
        }
        self.recent.push_back(address);
    }

    /// An address at which something happened lately.
    pub(crate) fn recent(&self, prng: &mut Prng) -> u64 {
        let at = prng.below(self.recent.len() as u64) as usize;
        self.recent.get(at).copied().unwrap_or(0)
    }

    /// What may become of an access without a PASID.
    pub(crate) fn allowed(&self, unit: usize, sid: u32, address: u64, access: Access) -> Allowed {
        self.allowed_as(unit, sid, None, address, access)
    }

    /// What may become of an access.
    pub(crate) fn allowed_as(
        &self,
        unit: usize,
        sid: u32,
        pasid: Option<u32>,
        address: u64,
        access: Access,
    ) -> Allowed {
        if self.units[unit].driver.is_none() {
            return Allowed::aborted();
        }
        let unattached = Allowed::fault(&[code::C_BAD_STREAMID, code::C_BAD_STE]);
        let Some(stream) = self.streams.get(&(unit, sid)) else { return unattached };
        let of = |space: usize| self.spaces[space].allowed(address, access, self.output_bits);
        let plain = stream.space.map(|space| self.spaces[space].kind);
        let bits = stream.permissions.pasid_bits;
        let mut allowed = match pasid {
            _ if stream.space.is_none() && stream.pasids.is_empty() && stream.cut.is_empty() => unattached,
            None => match plain {
                None if bits > 0 => Allowed::fault(&[code::F_STREAM_DISABLED]),
                // A stream without an entry cannot be blocked.
                Some(Kind::Blocked) if bits > 0 => Allowed::fault(&[code::F_STREAM_DISABLED]).or(&unattached),
                _ => stream.space.map_or(unattached, of),
            },
            Some(_) if bits == 0 && plain == Some(Kind::Blocked) => Allowed::aborted(),
            Some(pasid) if pasid >> bits != 0 => Allowed::fault(&[code::C_BAD_SUBSTREAMID]),
            Some(pasid) if stream.cut.contains(&pasid) => Allowed { silent: true, ..Allowed::default() },
            Some(pasid) => match stream.pasids.get(&pasid) {
                Some(&space) => of(space),
                // There may be no second-level table.
                None => Allowed::fault(&[code::C_BAD_CD, code::C_BAD_SUBSTREAMID]),
            },
        };
        if pasid.is_some() && plain == Some(Kind::Blocked) && stream.pasids.is_empty() {
            allowed = allowed.or(&Allowed::fault(&[code::C_BAD_STREAMID, code::C_BAD_STE]));
        }
        allowed.stalls = stream.permissions.requests.contains(Requests::STALL);
        for &space in &stream.residue {
            allowed = allowed.or(&Allowed::refused()).or(&of(space));
        }
        allowed
    }

    /// Checks every behaviour that hardware may show for one access, at rest.
    pub(crate) fn check(&self, unit: usize, sid: u32, address: u64, kind: Access) -> Result<(), Finding> {
        self.check_as(unit, sid, None, address, kind)
    }

    /// Checks the same under a PASID, and what the device has cached.
    pub(crate) fn check_as(
        &self,
        unit: usize,
        sid: u32,
        pasid: Option<u32>,
        address: u64,
        kind: Access,
    ) -> Result<(), Finding> {
        let allowed = self.allowed_as(unit, sid, pasid, address, kind);
        let request = Request { pasid, ..request(sid, address, kind) };
        let outcomes = self.units[unit].model.reachable(request);
        if outcomes.is_empty() {
            return Err(format!("unit {unit}: nothing becomes of {request:x?}"));
        }
        match outcomes.iter().find(|&&outcome| !allowed.admits(outcome)) {
            Some(outcome) => Err(format!(
                "unit {unit}: {request:x?} may end in {outcome:x?} of {outcomes:x?}; allowed is {allowed:x?}"
            )),
            None => self.check_cached(unit, sid, pasid, address, kind),
        }
    }

    /// Probes of addresses of a domain for the streams of its devices.
    pub(crate) fn probes(&self, space: usize, addresses: &[u64]) -> Vec<Probe> {
        let mut probes = Vec::new();
        let attached = self.streams.iter().filter(|(_, stream)| stream.space == Some(space));
        for (&(unit, sid), _) in attached.take(3) {
            for &address in addresses.iter().take(4) {
                for kind in [Access::READ, Access::WRITE] {
                    let allowed = self.allowed(unit, sid, address, kind);
                    probes.push(Probe { unit, request: request(sid, address, kind), allowed });
                }
            }
        }
        probes
    }

    /// Everything that has to hold after an operation.
    pub(crate) fn settle(&mut self, prng: &mut Prng) -> Result<(), Finding> {
        self.digest()?;
        if let Some(wrong) = self.kernel.0.take_wrong().first() {
            return Err(wrong.clone());
        }
        for unit in &self.units {
            if let Some(violation) = unit.model.take_violations().first() {
                return Err(format!("the driver broke a rule: {violation:?}"));
            }
        }
        for (place, device) in &self.atcs {
            if let Some(violation) = device.take_violations().first() {
                return Err(format!("the driver broke a rule towards {place:x?}: {violation:?}"));
            }
        }
        let touched = std::mem::take(&mut self.touched);
        let mut checks = Vec::new();
        for (space, address) in touched {
            for (&(unit, sid), stream) in &self.streams {
                if stream.space == Some(space) || stream.residue.contains(&space) {
                    checks.push((unit, sid, None, address));
                }
                let users = stream.pasids.iter().filter(|user| *user.1 == space);
                checks.extend(users.map(|(&pasid, _)| (unit, sid, Some(pasid), address)));
            }
        }
        while checks.len() > 24 {
            checks.swap_remove(prng.below(checks.len() as u64) as usize);
        }
        let streams: Vec<(usize, u32)> = self.streams.keys().copied().collect();
        for _ in 0..4 {
            let (unit, sid) = streams[prng.below(streams.len() as u64) as usize];
            checks.push((unit, sid, None, self.recent(prng)));
        }
        if prng.chance(1, 16) {
            checks.extend(self.survey(prng));
        }
        for (unit, sid, pasid, address) in checks {
            let kinds = [Access::READ, Access::WRITE, Access::EXECUTE];
            let kind = kinds[prng.below(5).min(2) as usize];
            self.check_as(unit, sid, pasid, address, kind)?;
        }
        self.collect();
        Ok(())
    }

    /// A look at all streams: without a PASID, with those attached and cut off, and with neighbours of these.
    fn survey(&mut self, prng: &mut Prng) -> Vec<(usize, u32, Option<u32>, u64)> {
        let mut checks = Vec::new();
        for (&(unit, sid), stream) in &self.streams {
            let cut = stream.cut.iter().map(|&pasid| (Some(pasid), None));
            let attached = stream.pasids.iter().map(|(&pasid, &space)| (Some(pasid), Some(space)));
            let neighbours = stream.pasids.keys().map(|&pasid| pasid ^ 1);
            let strangers = neighbours.filter(|pasid| *pasid != 0 && !stream.pasids.contains_key(pasid));
            let all = [(None, stream.space)].into_iter().chain(cut).chain(attached);
            for (pasid, space) in all.chain(strangers.map(|pasid| (Some(pasid), None))) {
                let lately = if pasid.is_none() { 8 } else { 4 };
                checks.extend(self.recent.iter().rev().take(lately).map(|&at| (unit, sid, pasid, at)));
                let Some(space) = space else { continue };
                let segments = self.spaces[space].segments();
                let skip = prng.below(segments.len().max(1) as u64) as usize;
                checks.extend(segments.keys().skip(skip).take(4).map(|&at| (unit, sid, pasid, at)));
            }
        }
        let with_pasid = checks.iter().filter(|check| check.2.is_some()).count() as u64;
        *self.counts.entry("surveyed with a pasid".into()).or_default() += with_pasid;
        checks
    }

    /// Devices use what they may, so that the unit caches it.
    pub(crate) fn warm(&mut self, probes: &[Probe], prng: &mut Prng) -> Result<(), Finding> {
        for probe in probes {
            if probe.allowed.arrives() && prng.chance(2, 3) {
                self.dma(probe.unit, probe.request, Mode::Any)?;
            }
        }
        Ok(())
    }

    /// Tables of the test go when nobody uses them any more.
    fn collect(&mut self) {
        for at in 0..self.spaces.len() {
            let used =
                self.streams.values().any(|s| s.spaces().any(|space| space == at) || s.residue.contains(&at));
            let space = &mut self.spaces[at];
            if space.handle.is_none()
                && !used
                && let Some(owner) = space.owner.take()
                && self.leaky
            {
                owner.quarantine();
            }
        }
    }

    /// Compares what interrupt handlers were told with what happened.
    pub(crate) fn digest(&mut self) -> Result<(), Finding> {
        for (unit, caused) in std::mem::take(&mut *lock(&self.kernel.0.caused)) {
            self.units[unit].caused.push(caused);
        }
        for (unit, stalled) in std::mem::take(&mut *lock(&self.kernel.0.stalled)) {
            self.units[unit].stalled.insert(stalled);
        }
        for at in 0..self.units.len() {
            let events = std::mem::take(&mut lock(&self.units[at].inbox).events);
            for (event, losses) in events {
                let unit = &mut self.units[at];
                match event {
                    UnitEvent::Fault(record) => {
                        let (sid, code) = (record.endpoint.get(), record.code as u8);
                        let same = |caused: &(u32, u64, u8)| {
                            let address = record.address.is_none_or(|address| address.get() == caused.1);
                            (caused.0, caused.2) == (sid, code) && address
                        };
                        let list = [&mut unit.caused, &mut unit.bygone].into_iter();
                        let found = list.flat_map(|list| {
                            let at = list.iter().position(same)?;
                            Some(list.swap_remove(at))
                        });
                        let ended = |(stream, at): &(u32, u64)| {
                            *stream == sid && record.address.is_none_or(|address| address.get() == *at)
                        };
                        if found.take(1).count() == 0 && !unit.stalled.iter().any(ended) {
                            return Err(format!("unit {at} reports a fault that nobody caused: {record:x?}"));
                        }
                        self.count(format!("reported {}", record.name));
                    }
                    UnitEvent::Overflow => {
                        unit.lost = true;
                        let again = if unit.losses.0 == losses { unit.losses.1 + 1 } else { 1 };
                        unit.losses = (losses, again);
                        // A full queue and a failed write are told apart, and each once.
                        if again > 2 || losses == 0 {
                            return Err(format!(
                                "unit {at} reports a loss again where nothing more was lost"
                            ));
                        }
                        self.count("reported overflow");
                    }
                    UnitEvent::PageRequest(request) => {
                        if answered(&request).is_some() {
                            self.asked.push((at, request));
                        }
                        self.count("reported a page request");
                    }
                    UnitEvent::PageRequestOverflow => self.count("reported an overflow of page requests"),
                    UnitEvent::Unread => self.count("reported that more is there"),
                    UnitEvent::QueueError => self.count("reported queue error"),
                    UnitEvent::UnitError { name, value } if name.starts_with("MSI_") => {
                        let _ = value;
                        self.count(format!("reported {name}"));
                    }
                    other => return Err(format!("unit {at} reports {other:x?}")),
                }
            }
        }
        Ok(())
    }

    /// Handles all that a unit has queued, and checks that nothing was lost without a word.
    pub(crate) fn drain(&mut self, at: usize) -> Result<(), Finding> {
        let unit = &self.units[at];
        let Some(driver) = unit.driver.clone() else { return Ok(()) };
        unit.pace(0);
        for _ in 0..4 {
            unit.model.step();
            handle(&driver, &unit.model, &unit.inbox);
        }
        self.digest()?;
        let unit = &mut self.units[at];
        if let (Some(missing), false) = (unit.caused.first(), unit.lost) {
            return Err(format!("unit {at} did not report {missing:x?}, nor that it lost reports"));
        }
        unit.lost = false;
        unit.caused.clear();
        unit.bygone.clear();
        Ok(())
    }

    /// A device issues a DMA.
    pub(crate) fn dma(&mut self, at: usize, request: Request, mode: Mode) -> Result<Outcome, Finding> {
        let kind = match request.access {
            portcullis_model::core::Access::Read => Access::READ,
            portcullis_model::core::Access::Write => Access::WRITE,
            portcullis_model::core::Access::Execute => Access::EXECUTE,
        };
        let allowed = self.allowed_as(at, request.requester, request.pasid, request.address, kind);
        let outcome = self.units[at].model.dma(request, mode).outcome;
        match outcome {
            Outcome::Fault(code) => self.units[at].caused.push((request.requester, request.address, code)),
            Outcome::Stalled(_) => drop(self.units[at].stalled.insert((request.requester, request.address))),
            _ => {}
        }
        if !allowed.admits(outcome) {
            return Err(format!(
                "unit {at}: {request:x?} ({mode:?}) ended in {outcome:x?}; allowed is {allowed:x?}"
            ));
        }
        if let (Outcome::Done(phys), Access::WRITE) = (outcome, kind)
            && let Some(stream) = self.streams.get(&(at, request.requester))
        {
            let space = match request.pasid {
                None => stream.space,
                Some(pasid) => stream.pasids.get(&pasid).copied(),
            };
            if let Some(space) = space {
                self.note_write(space, request.address, phys);
            }
        }
        Ok(outcome)
    }

    /// The schedules of all units.
    pub(crate) fn schedules(&self) -> impl Iterator<Item = &Arc<Schedule>> {
        self.units.iter().map(|unit| &unit.schedule)
    }
}

/// A request of the model for an access of the driver's interface.
pub(crate) fn request(sid: u32, address: u64, kind: Access) -> Request {
    let access = match kind {
        Access::WRITE => portcullis_model::core::Access::Write,
        Access::EXECUTE => portcullis_model::core::Access::Execute,
        _ => portcullis_model::core::Access::Read,
    };
    Request::read(sid, address).with_access(access)
}
