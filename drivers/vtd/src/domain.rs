//! I/O address spaces.

use crate::endpoint::PasidEntry;
use crate::features::{Features, address_width, depth};
use crate::invalidate::{Changed, Descriptor, RID_PASID, TagKind};
use crate::spec::entries::{PagingMode, Pasid0, Pasid1, Pasid2, Translation};
use crate::tables::quantum;
use crate::targets::Targets;
use crate::unit::Inner;
use core::fmt;
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicBool, Ordering};
use portcullis_hal::snapshot::Reading;
use portcullis_hal::{
    DomainId, Gather, Hal, HarvestError, Iova, IovaRange, MapError, Mapping, Mmio, NoTables, PhysAddr,
    Progress, ResizeError, Resizes, SharedTable, SpaceKey, SyncError, TableFormat, TableRoot, Translated,
    UnmapError, Usage, barrier,
};
use portcullis_iommu::{
    Abilities, Domain, DomainError, DomainInfo, DomainKind, DomainSpec, Missing, PagingSpec, Stage,
};
use portcullis_pgtable::{AccessedDirty, Config, ConfigError, PageTable, VtdSecondStage, X86};

/// The page attribute table with its reset values, for units that look at it (ECAP_REG.MTS).
const PAT_RESET: u32 = 0x0746_0746;

/// What a domain's addresses lead to.
pub(crate) enum Tables<H: Hal> {
    /// Nowhere.
    Blocked,
    /// To the same physical address.
    Identity,
    /// By a first-stage table of the domain's own.
    First(PageTable<H, X86>),
    /// By a second-stage table of the domain's own.
    Second(PageTable<H, VtdSecondStage>),
    /// By a table that somebody else owns.
    Shared(SharedTable),
}

impl<H: Hal> Tables<H> {
    fn kind(&self) -> DomainKind {
        match self {
            Self::Blocked => DomainKind::Blocked,
            Self::Identity => DomainKind::Identity,
            Self::First(_) | Self::Second(_) => DomainKind::Paging,
            Self::Shared(_) => DomainKind::Shared,
        }
    }

    fn root(&self) -> Option<TableRoot> {
        match self {
            Self::Blocked | Self::Identity => None,
            Self::First(table) => Some(table.root()),
            Self::Second(table) => Some(table.root()),
            Self::Shared(table) => Some(*table.root()),
        }
    }

    fn stage(&self) -> Option<Stage> {
        match self.root()?.format {
            TableFormat::X86 { .. } => Some(Stage::Stage1),
            _ => Some(Stage::Stage2),
        }
    }

    /// The addresses that can be mapped; for kinds without mappings of their own, those that can be used.
    pub(crate) fn aperture(&self) -> IovaRange {
        match self {
            Self::First(table) => table.aperture(),
            Self::Second(table) => table.aperture(),
            Self::Shared(table) => IovaRange::block(Iova::new(0), 1 << table.root().input_bits.clamp(12, 63)),
            Self::Blocked | Self::Identity => IovaRange::block(Iova::new(0), 1 << 63),
        }
    }

    pub(crate) fn page_sizes(&self) -> u64 {
        match self {
            Self::First(table) => table.page_sizes(),
            Self::Second(table) => table.page_sizes(),
            _ => 1 << 12,
        }
    }

    pub(crate) fn split_ends(&self, range: IovaRange, gather: &mut Gather) -> Result<Progress, ResizeError> {
        match self {
            Self::First(table) => table.split_ends(range, gather),
            Self::Second(table) => table.split_ends(range, gather),
            _ => Err(NoTables.into()),
        }
    }

    pub(crate) fn split(
        &self,
        range: IovaRange,
        largest: u64,
        gather: &mut Gather,
    ) -> Result<Progress, ResizeError> {
        match self {
            Self::First(table) => table.split(range, largest, gather),
            Self::Second(table) => table.split(range, largest, gather),
            _ => Err(NoTables.into()),
        }
    }

    pub(crate) fn join(&self, range: IovaRange, gather: &mut Gather) -> Result<Progress, ResizeError> {
        match self {
            Self::First(table) => table.join(range, gather),
            Self::Second(table) => table.join(range, gather),
            _ => Err(NoTables.into()),
        }
    }

    pub(crate) fn visit(
        &self,
        range: IovaRange,
        visitor: &mut dyn FnMut(Mapping) -> ControlFlow<()>,
    ) -> Result<(), NoTables> {
        let _ = match self {
            Self::First(table) => table.visit(range, visitor),
            Self::Second(table) => table.visit(range, visitor),
            _ => return Err(NoTables),
        };
        Ok(())
    }

    pub(crate) fn translate(&self, iova: Iova) -> Option<Translated> {
        match self {
            Self::First(table) => table.translate(iova),
            Self::Second(table) => table.translate(iova),
            Self::Identity => Some(Translated {
                phys: PhysAddr::new(iova.get()),
                attributes: portcullis_hal::Attributes::READ_WRITE,
                size: 1 << 12,
            }),
            Self::Blocked | Self::Shared(_) => None,
        }
    }
}

/// An I/O address space of any kind.
pub(crate) struct PagingDomain<H: Hal, M: Mmio> {
    hal: H,
    key: SpaceKey,
    tables: Tables<H>,
    abilities: Abilities,
    /// What a gather without tables has changed.
    at_least: Changed,
    resizes: Resizes,
    pub(crate) targets: Targets<H, M>,
    /// Whether the domain was ever attached to a unit that has to be told of new mappings.
    tell_of_maps: AtomicBool,
}

impl<H: Hal, M: Mmio + 'static> PagingDomain<H, M> {
    /// Makes a domain for units like the one with these features.
    pub(crate) fn new(hal: &H, features: &Features, spec: &DomainSpec) -> Result<Self, DomainError> {
        let tables = match spec {
            DomainSpec::Blocked => Tables::Blocked,
            DomainSpec::Identity(_) => Tables::Identity,
            DomainSpec::Paging(paging) => own_table(hal, features, paging)?,
            DomainSpec::Shared(table) => Tables::Shared(*table),
            _ => {
                return Err(DomainError::Unsupported { missing: Missing::FORMAT });
            }
        };
        let domain = Self {
            hal: hal.clone(),
            key: SpaceKey::new(),
            tables,
            abilities: match spec {
                DomainSpec::Paging(paging) => paging.abilities,
                _ => Abilities::empty(),
            },
            at_least: match spec {
                DomainSpec::Shared(_) => Changed::Tables,
                _ => Changed::Leaves,
            },
            resizes: Resizes::new(),
            targets: Targets::new()?,
            tell_of_maps: AtomicBool::new(false),
        };
        match domain.missing(features) {
            missing if missing.is_empty() => Ok(domain),
            missing => Err(DomainError::Unsupported { missing }),
        }
    }

    pub(crate) fn hal(&self) -> &H {
        &self.hal
    }

    pub(crate) fn key(&self) -> SpaceKey {
        self.key
    }

    pub(crate) fn tables(&self) -> &Tables<H> {
        &self.tables
    }

    pub(crate) fn kind(&self) -> DomainKind {
        self.tables.kind()
    }

    /// What a unit lacks for the domain.
    pub(crate) fn missing(&self, features: &Features) -> Missing {
        match &self.tables {
            Tables::Blocked => Missing::empty(),
            Tables::Identity if features.ecap.pt() => Missing::empty(),
            Tables::Identity => Missing::IDENTITY,
            tables => {
                let mut missing = tables.root().map_or(Missing::FORMAT, |root| features.missing_for(&root));
                if let (DomainKind::Paging, Some(stage)) = (tables.kind(), tables.stage()) {
                    missing |= self.abilities.missing(features.abilities(stage));
                    missing.set(
                        Missing::INPUT_WIDTH,
                        missing.contains(Missing::INPUT_WIDTH) || self.is_too_wide(features),
                    );
                }
                missing
            }
        }
    }

    /// Whether the domain's second-stage tables map addresses that the unit does not translate.
    fn is_too_wide(&self, features: &Features) -> bool {
        let Tables::Second(table) = &self.tables else {
            return false;
        };
        table.root().input_bits > features.cap.mgaw() + 1
    }

    /// What tags the domain's translations.
    pub(crate) fn tag_kind(&self) -> TagKind {
        match self.tables.stage() {
            Some(Stage::Stage1) => TagKind::FirstStage,
            Some(Stage::Stage2) => TagKind::SecondStage,
            None => TagKind::PassThrough,
        }
    }

    /// The PASID entry that leads to the domain, for a unit that lacks nothing; not present if the domain is blocked.
    pub(crate) fn pasid_entry(&self, features: &Features, did: DomainId) -> PasidEntry {
        match self.tables.root() {
            Some(root) => table_entry(features, &root, marks(self.abilities), did),
            None if self.kind() == DomainKind::Identity => identity_entry(features, did),
            None => [0; 4],
        }
    }

    /// To be called before the domain is published on a unit.
    pub(crate) fn note_unit(&self, features: &Features) {
        // First-stage entries that are not present are never cached (6.1), but the write buffer holds any.
        if features.cap.rwbf() || features.cap.cm() && self.tag_kind() != TagKind::FirstStage {
            self.tell_of_maps.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn map_list(&self, list: &[Mapping]) -> Result<(), MapError> {
        match &self.tables {
            Tables::First(table) => table.map(list)?,
            Tables::Second(table) => table.map(list)?,
            _ => return Err(MapError::NotPaging),
        }
        barrier::store_then_load();
        if self.tell_of_maps.load(Ordering::Relaxed) {
            self.tell(list)?;
        }
        Ok(())
    }

    /// Tells the units that cache absent entries, or buffer writes to memory, of new mappings.
    fn tell(&self, list: &[Mapping]) -> Result<(), SyncError> {
        let mut range: Option<IovaRange> = None;
        for mapping in list {
            if let Ok(piece) = IovaRange::new(mapping.iova, mapping.memory.len()) {
                range = Some(range.map_or(piece, |hull| hull.hull(&piece)));
            }
        }
        let Some(range) = range else { return Ok(()) };
        self.targets.tell(|unit, kind, invalidate| {
            if unit.features.cap.cm() && kind != TagKind::FirstStage {
                return unit.submit(invalidate(Some(range), Changed::Tables)).map(Some);
            }
            if unit.features.cap.rwbf() {
                unit.registers.flush_write_buffer().map_err(|timeout| unit.failed(timeout.into()))?;
            }
            Ok(None)
        })
    }

    pub(crate) fn unmap_range(&self, range: IovaRange, gather: &mut Gather) -> Result<u64, UnmapError> {
        gather.claim(self.key)?;
        match &self.tables {
            Tables::First(table) => table.unmap(range, gather),
            Tables::Second(table) => table.unmap(range, gather),
            _ => Err(UnmapError::NotPaging),
        }
    }

    /// Changes the sizes of leaves: one store of an entry at a time, of which hardware sees all or nothing. What it has
    /// cached of the old size translates the same until the sync.
    pub(crate) fn resize(
        &self,
        gather: &mut Gather,
        change: impl FnOnce(&Tables<H>, &mut Gather) -> Result<Progress, ResizeError>,
    ) -> Result<Progress, ResizeError> {
        gather.claim(self.key)?;
        self.resizes.during(gather, |gather| change(&self.tables, gather))
    }

    pub(crate) fn harvest_range(
        &self,
        range: IovaRange,
        wanted: Usage,
        gather: &mut Gather,
        visitor: &mut dyn FnMut(Mapping, Usage),
    ) -> Result<(), HarvestError> {
        gather.claim(self.key)?;
        match &self.tables {
            Tables::First(table) => table.harvest(range, wanted, gather, visitor),
            Tables::Second(table) => table.harvest(range, wanted, gather, visitor),
            _ => Err(NoTables.into()),
        }
    }

    /// The only unit that may hold a translation that the gather recorded, and the descriptor that drops all of them; if
    /// it is as usual, so that no tables were cut off, and nobody changes the sizes of leaves.
    #[inline(always)]
    pub(crate) fn only_unit(&self, gather: &Gather) -> Option<(Reading<'_, Inner<H, M>>, Descriptor)> {
        // The entries were cleared before; now the targets are read. Who attaches does it the other way round.
        match gather.range() {
            Some(range) if !gather.has_tables() && !self.resizes.are_pending() => {
                self.targets.only_unit(range, self.at_least)
            }
            _ => None,
        }
    }

    /// Returns when no unit holds a translation that the gather recorded. For tables of somebody else, who does not
    /// tell whether tables have changed, that is what was cached of tables in the range too, and everything if no range
    /// was recorded.
    pub(crate) fn invalidate(&self, gather: &Gather) -> Result<(), SyncError> {
        let changed = if gather.has_tables() { Changed::Tables } else { self.at_least };
        // What another gather changed the size of, a unit may hold as something larger, which takes a larger
        // invalidation (6.5.2.3).
        let whole = self.resizes.concerns_others(gather);
        match gather.range() {
            None if changed == Changed::Leaves => {}
            range => self.targets.invalidate(range.filter(|_| !whole), changed)?,
        }
        self.resizes.end(gather);
        Ok(())
    }
}

/// A PASID entry that leads to tables (9.6).
pub(crate) fn table_entry(
    features: &Features,
    root: &TableRoot,
    marks: AccessedDirty,
    did: DomainId,
) -> PasidEntry {
    let mut low = Pasid0::new().with_present(true);
    let mut high = Pasid1::new().with_did(did.get()).with_pwsnp(features.ecap.smpwc());
    let mut first = Pasid2::new();
    let width = |levels| depth(levels).map_or(features.widest(), address_width);
    match root.format {
        TableFormat::X86 { levels } => {
            let five = levels == 5;
            // QEMU takes the width of first-stage addresses from AW, which the manual does not use here.
            low = low.with_pgtt(Translation::FIRST_STAGE).with_aw(width(levels));
            first = first
                .with_fspm(if five { PagingMode::FIVE_LEVELS } else { PagingMode::FOUR_LEVELS })
                .with_nxe(true)
                .with_fsptptr(root.root.get() >> 12);
            high.set_pgsnp(features.ecap.sc());
            if features.ecap.mts() {
                high.set_pat(PAT_RESET);
            }
        }
        TableFormat::VtdSecondStage { levels } => {
            low = low
                .with_pgtt(Translation::SECOND_STAGE)
                .with_aw(width(levels))
                .with_ssade(marks == AccessedDirty::Hardware)
                .with_ssptptr(root.root.get() >> 12);
        }
        _ => return [0; 4],
    }
    [quantum(low.into_bits(), high.into_bits()), quantum(first.into_bits(), 0), 0, 0]
}

/// A PASID entry that passes addresses through (9.6).
fn identity_entry(features: &Features, did: DomainId) -> PasidEntry {
    let low =
        Pasid0::new().with_present(true).with_pgtt(Translation::PASS_THROUGH).with_aw(features.widest());
    let high = Pasid1::new().with_did(did.get());
    [quantum(low.into_bits(), high.into_bits()), 0, 0, 0]
}

/// Makes the table of a paging domain.
fn own_table<H: Hal>(hal: &H, features: &Features, spec: &PagingSpec) -> Result<Tables<H>, DomainError> {
    let stage = spec.stage.unwrap_or(features.default_stage());
    let lacks = |missing| DomainError::Unsupported { missing };
    let levels = features.levels_for(stage, spec.input_bits).ok_or_else(|| {
        match features.levels_for(stage, None) {
            Some(_) => lacks(Missing::INPUT_WIDTH),
            None if stage == Stage::Stage1 => lacks(Missing::STAGE_1),
            None => lacks(Missing::STAGE_2),
        }
    })?;
    let config = Config {
        input_bits: features.input_bits(stage, levels),
        output_bits: features.host_address_bits(),
        page_sizes: features.page_sizes(stage),
        writes: features.table_writes(),
    };
    let refused = |error| match error {
        ConfigError::OutOfMemory(error) => DomainError::OutOfMemory(error),
        ConfigError::OutputBits(_) => lacks(Missing::OUTPUT_WIDTH),
        ConfigError::PageSizes(_) => lacks(Missing::GRANULE),
        ConfigError::InputBits(_) | ConfigError::Levels(_) => lacks(Missing::INPUT_WIDTH),
    };
    let missing = spec.abilities.missing(features.abilities(stage));
    if !missing.is_empty() {
        return Err(lacks(missing));
    }
    let marks = marks(spec.abilities);
    match stage {
        Stage::Stage1 => {
            PageTable::new(hal, X86::new(levels, marks), config).map(Tables::First).map_err(refused)
        }
        Stage::Stage2 => {
            let format = VtdSecondStage::new(levels).with_accessed_dirty(marks);
            PageTable::new(hal, format, config).map(Tables::Second).map_err(refused)
        }
    }
}

/// Who marks the entries that devices use. The first stage's are always marked, unless they are so already.
fn marks(abilities: Abilities) -> AccessedDirty {
    match abilities.contains(Abilities::TRACKING) {
        true => AccessedDirty::Hardware,
        false => AccessedDirty::Preset,
    }
}

impl<H: Hal, M: Mmio + 'static> Domain for PagingDomain<H, M> {
    fn info(&self) -> DomainInfo {
        DomainInfo { kind: self.kind(), stage: self.tables.stage(), root: self.tables.root() }
    }

    fn describe(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "kind: {}", self.kind())?;
        if let Some(stage) = self.tables.stage() {
            writeln!(out, "stage: {stage}")?;
        }
        if let Some(root) = self.tables.root() {
            writeln!(out, "root: {} ({:?}, {} bits)", root.root, root.format, root.input_bits)?;
        }
        self.targets.each(|unit, tag| {
            write!(out, "domain id: {}", tag.did)?;
            if tag.kind.is_tagged_by_pasid() && tag.pasid != RID_PASID {
                write!(out, " with PASID {:#x}", tag.pasid)?;
            }
            writeln!(out, " (unit with queue at {})", unit.queue.phys())
        })
    }
}
