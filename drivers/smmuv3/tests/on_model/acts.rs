//! Doing one operation, and what has to come of it.

use crate::plan::{Act, Op, Trouble};
use crate::sizes::abilities;
use crate::space::{GATHERS, Kind, STRICT, Segment, Space, foreign, mapping, vouch};
use crate::world::{Finding, World, request};
use portcullis_hal::host::{IDENTITY, unmap};
use portcullis_hal::{Access, Gather, Iova, IovaRange, MemoryKind, TableFormat, TableWrites};
use portcullis_iommu::{DomainError, DomainSpec, Missing, PagingSpec, Stage, Unit as _};
use portcullis_model::core::{Mode, Prng};
use portcullis_model::device;
use portcullis_model::smmuv3::points;

/// The most domains that are held at a time.
const MOST: usize = 10;

impl World {
    /// Does an operation and checks everything afterwards.
    pub(crate) fn apply(&mut self, op: &Op) -> Result<(), Finding> {
        self.kernel.0.begin(op.seed);
        let mut prng = Prng::new(op.seed);
        if let Some(unit) = self.units.iter().position(|unit| unit.down)
            && prng.chance(1, 6)
        {
            self.restart(unit, &mut prng)?;
        }
        self.count(format!("{:?}", op.act));
        self.provoke(op.trouble);
        let result = match op.act {
            Act::NewDomain => self.new_domain(op, &mut prng),
            Act::DropDomain => self.drop_domain(op),
            Act::Map => self.map(op, &mut prng),
            Act::Unmap => self.unmap(op, STRICT, &mut prng),
            Act::UnmapLater => self.unmap(op, op.with[3] as usize % GATHERS, &mut prng),
            Act::Sync => self.sync_one(op),
            Act::Attach | Act::Detach | Act::Block => self.change(op, &mut prng),
            Act::Dma => self.some_dma(op, &mut prng),
            Act::Storm => self.storm(op, &mut prng),
            Act::Interrupt => self.drain_one(op),
            Act::Pace => {
                let unit = op.with[0] as usize % self.units.len();
                self.units[unit].pace(op.with[1]);
                Ok(())
            }
            Act::Describe => self.describe(op),
            Act::Bad => self.bad(op, &mut prng),
            Act::Churn => self.churn(op, &mut prng),
            Act::Permit => self.permit(op, &mut prng),
            Act::AttachPasid | Act::DetachPasid => self.change_pasid(op, &mut prng),
            Act::Resize => self.resize(op, &mut prng),
            Act::Harvest => self.harvest(op, &mut prng),
            Act::Ask => self.ask(op, &mut prng),
            Act::Answer => self.answer(op, &mut prng),
            Act::Restart => self.restart(op.with[0] as usize % self.units.len(), &mut prng),
        };
        self.relent(op.trouble);
        result?;
        self.settle(&mut prng)
    }

    fn provoke(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::None => return,
            Trouble::OutOfMemory(n) => {
                self.kernel.0.host.fail_after(n.into());
                return;
            }
            Trouble::Illegal(n) => {
                let answers: Vec<u64> = (0..=n).map(|at| u64::from(at == n)).collect();
                self.schedules().for_each(|schedule| {
                    schedule.script(points::COMMAND_ILL, &answers);
                });
            }
            Trouble::Unreadable(n, times) => {
                let answers: Vec<u64> = (0..n + times).map(|at| u64::from(at >= n)).collect();
                self.schedules().for_each(|schedule| {
                    schedule.script(points::COMMAND_ABT, &answers);
                });
            }
            Trouble::Hang => {
                self.units.iter().for_each(|unit| unit.model.hang());
                self.kernel.0.spin_ns.store(50_000_000, std::sync::atomic::Ordering::Relaxed);
            }
            Trouble::Deaf => self.schedules().for_each(|schedule| {
                schedule.script(device::points::INVALIDATION_LOST, &[1]).odds(points::ATC_TIMEOUT, 1, 8);
            }),
        }
        if !matches!(trouble, Trouble::Unreadable(_, 0..=3)) {
            self.leaky = true;
            self.units.iter_mut().for_each(|unit| unit.suspect = true);
        }
    }

    fn relent(&mut self, trouble: Trouble) {
        self.kernel.0.host.fail_never();
        if !matches!(trouble, Trouble::None | Trouble::OutOfMemory(_)) {
            for unit in &self.units {
                unit.model.unhang();
                unit.pace(0);
            }
            self.kernel.0.spin_ns.store(100, std::sync::atomic::Ordering::Relaxed);
            let name = match trouble {
                Trouble::Illegal(_) => "injected illegal command",
                Trouble::Hang => "injected hang",
                Trouble::Deaf => "injected silence of a device",
                _ => "injected fetch abort",
            };
            self.count(name);
        }
    }

    pub(crate) fn suspect(&self) -> bool {
        self.units.iter().any(|unit| unit.suspect || unit.down)
    }

    /// A domain that the user still holds.
    fn live(&self, number: u64) -> Option<usize> {
        let live: Vec<usize> =
            (0..self.spaces.len()).filter(|&at| self.spaces[at].handle.is_some()).collect();
        (!live.is_empty()).then(|| live[number as usize % live.len()])
    }

    /// A domain with tables that the user still holds.
    pub(crate) fn paging(&self, number: u64) -> Option<usize> {
        let live: Vec<usize> = (0..self.spaces.len())
            .filter(|&at| self.spaces[at].handle.is_some() && self.spaces[at].kind.stage().is_some())
            .collect();
        (!live.is_empty()).then(|| live[number as usize % live.len()])
    }

    pub(crate) fn new_domain(&mut self, op: &Op, prng: &mut Prng) -> Result<(), Finding> {
        if self.spaces.iter().filter(|space| space.handle.is_some()).count() >= MOST {
            return self.drop_domain(op);
        }
        let unit = &self.units[op.with[0] as usize % self.units.len()];
        let (hardware, Some(driver)) = (unit.model.config().clone(), unit.driver.clone()) else {
            return Ok(());
        };
        let stage = if prng.chance(1, 2) { Stage::Stage1 } else { Stage::Stage2 };
        let stage = match (hardware.stage1, hardware.stage2) {
            (true, true) => stage,
            (true, false) => Stage::Stage1,
            _ => Stage::Stage2,
        };
        let (features, granule) = (driver.features(), driver.features().own_granule());
        let widest = match stage {
            Stage::Stage1 => features.stage_1_input_bits(granule),
            Stage::Stage2 => features.stage_2_input_bits(granule),
        };
        let width = 32 + prng.below(u64::from(widest) - 31) as u8;
        let offered = driver.features().abilities();
        let wanted = abilities(offered, prng);
        let (kind, spec, owner) = match op.with[1] % 16 {
            0 => (Kind::Blocked, DomainSpec::Blocked, None),
            1 | 2 => (Kind::Identity, DomainSpec::Identity(IDENTITY), None),
            3..=5 => {
                let granules = [(hardware.gran4k, 12), (hardware.gran16k, 14), (hardware.gran64k, 16)];
                let granules: Vec<u8> = granules.iter().filter(|g| g.0).map(|g| g.1).collect();
                let granule = granules[prng.below(granules.len() as u64) as usize];
                let writes = if self.coherent { TableWrites::Cached } else { TableWrites::Cleaned };
                let widths = (width.min(48), self.output_bits.min(48));
                let Ok(tables) = foreign(&self.kernel, stage, granule, widths, writes) else { return Ok(()) };
                (Kind::Shared(stage), DomainSpec::Shared(vouch(tables.root())), Some(tables))
            }
            6..=8 => {
                let spec = PagingSpec {
                    stage: Some(stage),
                    input_bits: Some(width),
                    abilities: wanted,
                    ..PagingSpec::default()
                };
                (Kind::Tables(stage), DomainSpec::Paging(spec), None)
            }
            _ => {
                let spec = PagingSpec { stage: Some(stage), abilities: wanted, ..PagingSpec::default() };
                (Kind::Tables(stage), DomainSpec::Paging(spec), None)
            }
        };
        let result = driver.new_domain(&spec);
        self.log.push(format!("d{} = new {} -> {}", self.spaces.len(), kind.name(), result.is_ok()));
        let lacks = match kind {
            Kind::Tables(_) => wanted.missing(offered),
            _ => Missing::empty(),
        };
        match result {
            Ok(_) if !lacks.is_empty() => Err(format!("a domain that the unit lacks {lacks} for")),
            Err(DomainError::Unsupported { missing }) if missing == lacks && !lacks.is_empty() => {
                self.count(format!("refused domain: {missing}"));
                Ok(())
            }
            Ok(handle) => {
                let format = handle.info().root.map(|root| root.format);
                if let Some(TableFormat::VmsaStage1Lpa2 { .. } | TableFormat::VmsaStage2Lpa2 { .. }) = format
                {
                    self.count("domain of 52 bits");
                }
                let mut space = Space::new(kind, Some(handle), owner);
                if matches!(kind, Kind::Tables(_)) {
                    space.abilities = wanted;
                }
                self.spaces.push(space);
                self.count(format!("domain {}", kind.name()));
                Ok(())
            }
            Err(DomainError::OutOfMemory(_)) if matches!(op.trouble, Trouble::OutOfMemory(_)) => Ok(()),
            Err(error) => Err(format!("no {} domain: {error}", kind.name())),
        }
    }

    fn drop_domain(&mut self, op: &Op) -> Result<(), Finding> {
        let Some(space) = self.live(op.with[2]) else { return Ok(()) };
        for gather in 0..GATHERS {
            self.sync(space, gather)?;
        }
        self.log.push(format!("drop d{space}"));
        self.spaces[space].handle = None;
        Ok(())
    }

    fn some_dma(&mut self, op: &Op, prng: &mut Prng) -> Result<(), Finding> {
        let streams: Vec<(usize, u32)> = self.streams.keys().copied().collect();
        let (unit, mut sid) = streams[op.with[0] as usize % streams.len()];
        if op.with[1].is_multiple_of(32) {
            sid = op.with[1] as u32 >> 5;
            if self.streams.contains_key(&(unit, sid)) {
                return Ok(());
            }
        }
        let mapped = self.streams.get(&(unit, sid)).and_then(|stream| {
            let segments = self.spaces[stream.space?].segments();
            let pick = prng.below(segments.len().max(1) as u64) as usize;
            segments.iter().nth(pick).map(|(iova, segment)| iova + prng.below(segment.len) / 8 * 8)
        });
        let address = match (op.with[2] % 16, mapped) {
            (0, _) => prng.next_u64(),
            (1..12, Some(address)) => address,
            _ => self.recent(prng),
        };
        let kind = [Access::READ, Access::WRITE, Access::EXECUTE][prng.below(5).min(2) as usize];
        let mode = [Mode::Fresh, Mode::Hostile, Mode::Any, Mode::Any][prng.below(4) as usize];
        self.dma(unit, request(sid, address, kind), mode).map(drop)
    }

    fn storm(&mut self, op: &Op, prng: &mut Prng) -> Result<(), Finding> {
        for _ in 0..40 {
            self.some_dma(&Op { with: [prng.next_u64(), 1, op.with[2], 0], ..*op }, prng)?;
        }
        Ok(())
    }

    fn drain_one(&mut self, op: &Op) -> Result<(), Finding> {
        self.drain(op.with[0] as usize % self.units.len())
    }

    fn describe(&mut self, op: &Op) -> Result<(), Finding> {
        let streams: Vec<(usize, u32)> = self.streams.keys().copied().collect();
        let (unit, sid) = streams[op.with[0] as usize % streams.len()];
        let mut out = String::new();
        if let Some(driver) = &self.units[unit].driver {
            let endpoint = portcullis_hal::EndpointId::new(sid);
            let told =
                driver.describe_entry(endpoint, &mut out).and_then(|()| driver.describe_registers(&mut out));
            if told.is_err() || out.is_empty() {
                return Err("nothing was described".into());
            }
        }
        Ok(())
    }

    /// Requests that have to be refused.
    fn bad(&mut self, op: &Op, prng: &mut Prng) -> Result<(), Finding> {
        let Some(at) = self.live(op.with[0]) else { return Ok(()) };
        let space = &mut self.spaces[at];
        let Some(handle) = space.handle.clone() else { return Ok(()) };
        let page = space.page();
        let mut gather = Gather::new();
        let odd = IovaRange::new(Iova::new(page / 2), page).map_err(|error| error.to_string())?;
        let beyond = IovaRange::new(Iova::new(1 << 56), page).map_err(|error| error.to_string())?;
        let own = matches!(space.kind, Kind::Tables(_));
        let refused = match prng.below(4) {
            0 => unmap(&*handle, odd, &mut gather).is_err(),
            1 => unmap(&*handle, beyond, &mut gather).is_err(),
            2 if own => {
                let segment = Segment { len: page, phys: page / 2, access: Access::READ };
                let list: Vec<_> = mapping(0, &segment, MemoryKind::WriteBack).into_iter().collect();
                matches!(space.map(&list), Some(Err(_)))
            }
            _ => {
                let bits = self.units[0].model.config().sid_bits;
                let endpoint = portcullis_hal::EndpointId::new(u32::MAX);
                let driver = self.units[0].driver.clone();
                bits == 32 || driver.is_none_or(|driver| driver.attach(&[endpoint], &handle).is_err())
            }
        };
        if refused { Ok(()) } else { Err(format!("d{at} accepts what is wrong")) }
    }
}
