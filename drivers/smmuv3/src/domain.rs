//! I/O address spaces.

use crate::cmdq::Tried;
use crate::command::Scope;
use crate::entry::missing_for;
use crate::features::Features;
use crate::invalidate::Unmapped;
use crate::tables::{self, Tables, marks, resize_level};
use crate::targets::{Target, Targets};
use core::fmt;
use core::ops::ControlFlow;
use portcullis_hal::{
    Attributes, Gather, Granule, Hal, HarvestError, Iova, IovaRange, MapError, Mapping, Mmio, NoTables,
    PAGE_SIZE, PhysAddr, Progress, ResizeError, Resizes, SpaceKey, SyncError, TableFormat, TableRoot,
    Translated, UnmapError, Usage,
};
use portcullis_iommu::{Abilities, Domain, DomainError, DomainInfo, DomainKind, DomainSpec, Missing, Stage};
use portcullis_pgtable::{AccessedDirty, BbmLevel};

/// A domain of SMMUv3 units; it can be attached to any of them that can walk its tables.
pub struct SmmuDomain<H: Hal, M: Mmio> {
    hal: H,
    key: SpaceKey,
    body: Body<H>,
    granule: Granule,
    aperture: IovaRange,
    abilities: Abilities,
    /// What a unit has to bear of changes of a leaf's size.
    resize_level: BbmLevel,
    resizes: Resizes,
    pub(crate) targets: Targets<H, M>,
}

/// What a domain translates with.
#[allow(clippy::large_enum_variant, reason = "a box could not report that memory ran out")]
pub(crate) enum Body<H: Hal> {
    Blocked,
    Identity,
    Tables(Tables<H>),
    Shared(TableRoot),
}

impl<H: Hal> Body<H> {
    fn root(&self) -> Option<TableRoot> {
        match self {
            Self::Blocked | Self::Identity => None,
            Self::Tables(tables) => Some(tables.root()),
            Self::Shared(root) => Some(*root),
        }
    }

    /// The granule of the tables.
    fn granule(&self) -> Granule {
        self.root().and_then(|root| root.format.granule()).unwrap_or(Granule::Size4K)
    }
}

/// How far an invalidation came that was attempted in one command.
pub(crate) enum Attempt<'a, H: Hal, M: Mmio> {
    /// All hardware has confirmed it.
    Confirmed,
    /// The only unit was asked, with this result. Devices have not been asked.
    Begun(&'a Target<H, M>, Tried),
    /// Nothing has been done.
    Untried,
}

/// How many units are invalidated at the same time.
const PARALLEL_UNITS: usize = 8;

impl<H: Hal, M: Mmio> SmmuDomain<H, M> {
    /// A domain that a unit with these features can serve.
    pub(crate) fn new(hal: &H, features: &Features, spec: &DomainSpec) -> Result<Self, DomainError> {
        let all = |bits: u8| IovaRange::block(Iova::new(0), 1 << bits.min(63));
        let (body, aperture) = match spec {
            DomainSpec::Blocked => (Body::Blocked, all(features.output_bits())),
            DomainSpec::Identity(_) => (Body::Identity, all(features.output_bits())),
            DomainSpec::Paging(spec) => {
                let tables = tables::new(hal, spec, features)?;
                let aperture = tables.aperture();
                (Body::Tables(tables), aperture)
            }
            DomainSpec::Shared(table) => {
                let root = *table.root();
                let (_, missing) = missing_for(&root, features);
                if !missing.is_empty() {
                    return Err(DomainError::Unsupported { missing });
                }
                (Body::Shared(root), all(root.input_bits))
            }
            _ => {
                return Err(DomainError::Unsupported { missing: Missing::FORMAT });
            }
        };
        let abilities = match spec {
            DomainSpec::Paging(spec) => spec.abilities,
            _ => Abilities::empty(),
        };
        Ok(Self {
            hal: hal.clone(),
            key: SpaceKey::new(),
            granule: body.granule(),
            body,
            aperture,
            abilities,
            resize_level: resize_level(abilities, features),
            resizes: Resizes::new(),
            targets: Targets::new(),
        })
    }

    /// What a unit lacks for the domain's tables, `root`.
    pub(crate) fn missing(&self, root: &TableRoot, features: &Features) -> Missing {
        let (_, mut missing) = missing_for(root, features);
        missing |= self.abilities.missing(features.abilities());
        missing.set(
            Missing::RESIZE,
            missing.contains(Missing::RESIZE) || features.break_before_make < self.resize_level,
        );
        missing
    }

    /// Who marks the entries that devices use.
    pub(crate) fn marks(&self) -> AccessedDirty {
        marks(self.abilities)
    }

    pub(crate) fn hal(&self) -> &H {
        &self.hal
    }

    pub(crate) fn key(&self) -> SpaceKey {
        self.key
    }

    pub(crate) fn body(&self) -> &Body<H> {
        &self.body
    }

    /// The root of the domain's tables, if it has any.
    pub(crate) fn root(&self) -> Option<TableRoot> {
        self.body.root()
    }

    /// The granule of the domain's tables.
    pub(crate) fn granule(&self) -> Granule {
        self.granule
    }

    /// What is invalidated at the least: what the owner of foreign tables took out, and cut off, is not told here.
    pub(crate) fn least_scope(&self) -> Scope {
        match self.body {
            Body::Shared(_) => Scope::Walk,
            _ => Scope::Leaf,
        }
    }

    pub(crate) fn aperture_range(&self) -> IovaRange {
        self.aperture
    }

    pub(crate) fn leaf_sizes(&self) -> u64 {
        match &self.body {
            Body::Tables(tables) => tables.page_sizes(),
            _ => 0,
        }
    }

    pub(crate) fn map_list(&self, list: &[Mapping]) -> Result<(), MapError> {
        match &self.body {
            // The unit caches no absent entries, so there is nothing to invalidate.
            Body::Tables(tables) => tables.map(list),
            _ => Err(MapError::NotPaging),
        }
    }

    pub(crate) fn unmap_range(&self, range: IovaRange, gather: &mut Gather) -> Result<u64, UnmapError> {
        match &self.body {
            Body::Tables(tables) => {
                gather.claim(self.key)?;
                tables.unmap(range, gather)
            }
            _ => Err(UnmapError::NotPaging),
        }
    }

    fn tables(&self) -> Result<&Tables<H>, NoTables> {
        match &self.body {
            Body::Tables(tables) => Ok(tables),
            _ => Err(NoTables),
        }
    }

    /// The changes of sizes that are not synced.
    pub(crate) fn resizes(&self) -> &Resizes {
        &self.resizes
    }

    /// Changes the sizes of leaves.
    pub(crate) fn resize(
        &self,
        gather: &mut Gather,
        change: impl FnOnce(&Tables<H>, &mut Gather) -> Result<Progress, ResizeError>,
    ) -> Result<Progress, ResizeError> {
        let tables = self.tables()?;
        gather.claim(self.key)?;
        self.resizes.during(gather, |gather| change(tables, gather))
    }

    pub(crate) fn visit_range(
        &self,
        range: IovaRange,
        visitor: &mut dyn FnMut(Mapping) -> ControlFlow<()>,
    ) -> Result<(), NoTables> {
        self.tables()?.visit(range, visitor);
        Ok(())
    }

    pub(crate) fn harvest_range(
        &self,
        range: IovaRange,
        wanted: Usage,
        gather: &mut Gather,
        visitor: &mut dyn FnMut(Mapping, Usage),
    ) -> Result<(), HarvestError> {
        let tables = self.tables()?;
        gather.claim(self.key)?;
        tables.harvest(range, wanted, gather, visitor)
    }

    pub(crate) fn translate(&self, iova: Iova) -> Option<Translated> {
        match &self.body {
            Body::Tables(tables) => tables.translate(iova),
            Body::Identity if self.aperture.contains(iova) => Some(Translated {
                phys: PhysAddr::new(iova.get()),
                attributes: Attributes::READ_WRITE,
                size: PAGE_SIZE,
            }),
            // Foreign tables are their owner's to read.
            Body::Identity | Body::Blocked | Body::Shared(_) => None,
        }
    }

    /// Makes the only unit forget what `gather` recorded, if that is one command: the way of most unmaps. Only domains with
    /// tables have units here.
    #[inline(always)]
    pub(crate) fn invalidate_at_once(&self, gather: &Gather) -> Attempt<'_, H, M> {
        // The table entries were stored before the set of units is read.
        match (self.targets.read().only(), gather.range()) {
            (Some(target), Some(range)) if !self.resizes.are_pending() => {
                target.forget_at_once(&Unmapped::of(gather, range))
            }
            _ => Attempt::Untried,
        }
    }

    /// Makes every unit forget what `gather` recorded; for shared tables, of which nobody records anything here,
    /// everything that it knows of the domain unless a range is given.
    ///
    /// # Errors
    ///
    /// One of the units did not confirm. The others have.
    pub(crate) fn invalidate_everywhere(&self, gather: &Gather) -> Result<(), SyncError> {
        match &self.body {
            Body::Blocked | Body::Identity => return Ok(()),
            // Nor has it changed sizes.
            Body::Tables(_) if gather.range().is_none() && !gather.has_tables() => return Ok(()),
            Body::Tables(_) | Body::Shared(_) => {}
        }
        // The table entries were stored before the set of units is read.
        let mut targets = self.targets.read();
        // What another gather changed the size of, a unit may hold as something larger.
        let range = gather.range().filter(|_| !self.resizes.concerns_others(gather));
        let unmapped = range.map(|range| match &self.body {
            Body::Shared(_) => {
                Unmapped { range, leaf_shift: self.granule.shift(), scope: self.least_scope() }
            }
            _ => Unmapped::of(gather, range),
        });
        let mut result = Ok(());
        // Several at the same time.
        loop {
            let group: [_; PARALLEL_UNITS] = core::array::from_fn(|_| {
                let target = targets.next()?;
                Some((target, target.submit(unmapped)))
            });
            for (target, submitted) in group.iter().flatten() {
                let completed = match submitted {
                    Ok(Some(submitted)) => target.complete(submitted, range),
                    Ok(None) => Ok(()),
                    Err(error) => Err(*error),
                };
                result = completed.and(result);
            }
            if let [.., None] = group {
                return result;
            }
        }
    }

    fn stage(&self) -> Option<Stage> {
        match self.root()?.format {
            TableFormat::VmsaStage2 { .. } | TableFormat::VmsaStage2Lpa2 { .. } => Some(Stage::Stage2),
            _ => Some(Stage::Stage1),
        }
    }
}

impl<H: Hal, M: Mmio + 'static> Domain for SmmuDomain<H, M> {
    fn info(&self) -> DomainInfo {
        DomainInfo { kind: self.kind(), stage: self.stage(), root: self.root() }
    }

    fn kind(&self) -> DomainKind {
        match self.body {
            Body::Blocked => DomainKind::Blocked,
            Body::Identity => DomainKind::Identity,
            Body::Tables(_) => DomainKind::Paging,
            Body::Shared(_) => DomainKind::Shared,
        }
    }

    fn describe(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "aperture: {}", self.aperture)?;
        if let Some(root) = self.root() {
            writeln!(out, "root: {:#x}", root.root)?;
            writeln!(out, "format: {:x?}", root.format)?;
            writeln!(out, "input_bits: {}", root.input_bits)?;
            writeln!(out, "output_bits: {}", root.output_bits)?;
        }
        for (tag, users) in self.targets.read().filter_map(|target| target.in_use()) {
            writeln!(out, "tag: {tag} for {users} endpoints")?;
        }
        Ok(())
    }
}
