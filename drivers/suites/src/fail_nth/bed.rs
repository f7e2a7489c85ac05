//! A unit that is up, with domains of all its kinds.

use super::{Board, Failed};
use portcullis_hal::host::scarce::{ScarceHal, exempt};
use portcullis_hal::host::{self, IDENTITY};
use portcullis_hal::{
    Arc, Attributes, EndpointId, FixedMapping, Gather, Iova, IovaRange, Mapping, Pasid, PhysAddr, PhysRange,
    RequesterId,
};
use portcullis_iommu::{
    Abilities, DeviceDescription, DeviceId, Domain, DomainSpec, GroupId, Iommu, PagingSpec, ReservedKind,
    ReservedRegion, Stage, Stages, Unit, UnitId,
};
use std::collections::BTreeSet;

/// What is mapped in every paging domain from the start.
pub(super) const PAGE: u64 = 0x10_0000;
/// Where operations map and unmap.
pub(super) const AREA: u64 = 0x4000_0000;
pub(super) const GIB: u64 = 1 << 30;
/// The memory behind the old domains, and behind the new ones.
pub(super) const OLD: u64 = 0x2_0000_0000;
pub(super) const NEW: u64 = 0x3_0000_0000;

/// A domain of one kind in each role.
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) spec: DomainSpec,
    pub(super) old: Arc<dyn Domain>,
    pub(super) new: Arc<dyn Domain>,
}

/// A unit that is up, with domains of all its kinds.
pub(super) struct Bed {
    pub(super) board: Board,
    pub(super) iommu: Iommu<ScarceHal>,
    pub(super) unit: Arc<dyn Unit>,
    pub(super) kinds: Vec<Kind>,
    pub(super) endpoints: [EndpointId; 3],
}

/// What every device may reach, at the addresses that matter.
pub(super) type Reach = Vec<BTreeSet<Option<u64>>>;

pub(super) fn page(iova: u64, phys: u64, len: u64) -> Mapping {
    let memory = PhysRange::new(PhysAddr::new(phys), len).unwrap_or_else(|error| panic!("{error}"));
    Mapping { iova: Iova::new(iova), memory, attributes: Attributes::READ_WRITE }
}

pub(super) fn map(domain: &Arc<dyn Domain>, list: &[Mapping]) -> Result<(), Failed> {
    Ok(host::map(&**domain, list)?)
}

pub(super) fn unmap(domain: &Arc<dyn Domain>, first: u64, len: u64) -> Result<(), Failed> {
    let mut gather = Gather::new();
    let range = IovaRange::new(Iova::new(first), len).unwrap_or_else(|error| panic!("{error}"));
    host::unmap(&**domain, range, &mut gather)?;
    let _ = domain.sync(&mut gather)?;
    Ok(())
}

pub(super) fn pasid() -> Result<Pasid, Failed> {
    Pasid::new(5).map_err(|error| Failed::Otherwise(error.to_string()))
}

impl Bed {
    pub(super) fn new(board: Board) -> Result<Self, Failed> {
        let unit = board.set_up()?;
        let endpoints = board.endpoints();
        let iommu = Iommu::new(board.hal().clone());
        let mut kinds = Vec::new();
        for (name, spec) in specs(&board, &*unit) {
            let (old, new) = (unit.new_domain(&spec)?, unit.new_domain(&spec)?);
            if matches!(spec, DomainSpec::Paging(_)) {
                map(&old, &[page(PAGE, OLD, 0x1000)])?;
                map(&new, &[page(PAGE, NEW, 0x1000)])?;
            }
            kinds.push(Kind { name, spec, old, new });
        }
        Ok(Self { board, iommu, unit, kinds, endpoints })
    }

    pub(super) fn reach(&self) -> Reach {
        exempt(|| {
            let pasids = [None, Pasid::new(5).ok()];
            let mut reach = Vec::new();
            for endpoint in self.endpoints {
                for pasid in pasids.iter().filter(|pasid| pasid.is_none() || self.unit.info().pasid_bits > 0)
                {
                    for iova in [PAGE, AREA, AREA + 0x1000, AREA + 7 * GIB, 0x5000_0000] {
                        reach.push(self.board.reach(endpoint, *pasid, Iova::new(iova)));
                    }
                }
            }
            reach
        })
    }

    /// The first kind, which has mappings of its own.
    pub(super) fn paging(&self) -> Result<&Kind, Failed> {
        self.kinds.first().ok_or_else(|| Failed::Otherwise("no domain".to_string()))
    }

    pub(super) fn kind(&self, name: &str) -> Result<&Kind, Failed> {
        let found = self.kinds.iter().find(|kind| kind.name == name);
        found.ok_or_else(|| Failed::Otherwise("no such kind".to_string()))
    }

    pub(super) fn attach(&self, count: usize, domain: &Arc<dyn Domain>) -> Result<(), Failed> {
        let endpoints = self.endpoints.get(..count).unwrap_or_default();
        self.unit.attach(endpoints, domain)?;
        Ok(())
    }

    pub(super) fn description(&self) -> DeviceDescription {
        let [first, ..] = self.endpoints;
        let mapping = page(AREA, NEW, 0x1000);
        // SAFETY: no device is real.
        #[expect(unsafe_code, reason = "vouches for memory that no device reaches")]
        let fixed = unsafe { FixedMapping::new(mapping) };
        DeviceDescription {
            id: DeviceId::Pci(RequesterId::from_bdf(0, 8)),
            unit: UnitId(0),
            endpoints: vec![first],
            group: GroupId(0),
            reserved: vec![ReservedRegion { range: fixed.range(), kind: ReservedKind::Direct(fixed) }],
        }
    }
}

/// The kinds of domains that a unit has; paging ones first.
fn specs(board: &Board, unit: &dyn Unit) -> Vec<(&'static str, DomainSpec)> {
    let info = unit.info();
    let abilities = info.abilities & Abilities::RESIZE;
    let paging = |stage| DomainSpec::Paging(PagingSpec { stage, abilities, ..PagingSpec::default() });
    let mut specs = Vec::new();
    if info.stages.contains(Stages::STAGE_1) {
        specs.push(("stage 1", paging(Some(Stage::Stage1))));
    }
    if info.stages.contains(Stages::STAGE_2) {
        specs.push(("stage 2", paging(Some(Stage::Stage2))));
    }
    specs.push(("shared", DomainSpec::Shared(board.foreign())));
    specs.extend(info.identity.then_some(("identity", DomainSpec::Identity(IDENTITY))));
    specs.push(("blocked", DomainSpec::Blocked));
    specs
}
