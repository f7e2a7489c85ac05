//! What a domain should do, kept beside it.

#![expect(unsafe_code, reason = "vouches for memory that nobody accesses")]

use crate::board::{Allowed, Kernel, Registers};
use portcullis_hal::host;
use portcullis_hal::{
    Access, Arc, Attributes, FixedMapping, Gather, Iova, IovaRange, MapError, Mapping, MemoryKind, PhysAddr,
    PhysRange, SharedTable, TableRoot, TableWrites, UnmapError,
};
use portcullis_iommu::{Abilities, Domain, Stage};
use portcullis_model::smmuv3::code;
use portcullis_pgtable::{Config, ConfigError, Format, PageTable, VmsaStage1, VmsaStage2};
use std::collections::{BTreeMap, BTreeSet};

/// The driver under test.
pub(crate) type Driver = portcullis_smmuv3::Driver<Kernel, Registers>;

/// Vouches for tables.
pub(crate) fn vouch(root: TableRoot) -> SharedTable {
    // SAFETY: the test keeps its tables as long as a device may walk them.
    unsafe { SharedTable::new(root) }
}

/// What a domain translates with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Blocked,
    Identity,
    Tables(Stage),
    Shared(Stage),
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Identity => "identity",
            Self::Tables(Stage::Stage1) => "stage 1",
            Self::Tables(Stage::Stage2) => "stage 2",
            Self::Shared(Stage::Stage1) => "shared stage 1",
            Self::Shared(Stage::Stage2) => "shared stage 2",
        }
    }

    pub(crate) fn stage(self) -> Option<Stage> {
        match self {
            Self::Tables(stage) | Self::Shared(stage) => Some(stage),
            Self::Blocked | Self::Identity => None,
        }
    }
}

/// Tables that the test owns, as a kernel owns those of a VM.
pub(crate) trait Foreign {
    fn root(&self) -> TableRoot;
    fn page_sizes(&self) -> u64;
    fn map(&self, list: &[Mapping]) -> Result<(), MapError>;
    fn unmap(&self, range: IovaRange, gather: &mut Gather) -> Result<u64, UnmapError>;
    fn quarantine(self: Box<Self>);
}

impl<F: Format> Foreign for PageTable<Kernel, F> {
    fn root(&self) -> TableRoot {
        (**self).root()
    }

    fn page_sizes(&self) -> u64 {
        (**self).page_sizes()
    }

    fn map(&self, list: &[Mapping]) -> Result<(), MapError> {
        self.map(list)
    }

    fn unmap(&self, range: IovaRange, gather: &mut Gather) -> Result<u64, UnmapError> {
        self.unmap(range, gather)
    }

    fn quarantine(self: Box<Self>) {
        (*self).quarantine();
    }
}

/// Foreign tables with a granule of `2^shift` bytes.
pub(crate) fn foreign(
    hal: &Kernel,
    stage: Stage,
    shift: u8,
    (input_bits, output_bits): (u8, u8),
    writes: TableWrites,
) -> Result<Box<dyn Foreign>, ConfigError> {
    let config = Config { input_bits, output_bits, page_sizes: u64::MAX, writes };
    Ok(match (stage, shift) {
        (Stage::Stage1, 14) => Box::new(PageTable::new(hal, VmsaStage1::<14>::new(), config)?),
        (Stage::Stage1, 16) => Box::new(PageTable::new(hal, VmsaStage1::<16>::new(), config)?),
        (Stage::Stage1, _) => Box::new(PageTable::new(hal, VmsaStage1::<12>::new(), config)?),
        (Stage::Stage2, 14) => Box::new(PageTable::new(hal, VmsaStage2::<14>::new(), config)?),
        (Stage::Stage2, 16) => Box::new(PageTable::new(hal, VmsaStage2::<16>::new(), config)?),
        (Stage::Stage2, _) => Box::new(PageTable::new(hal, VmsaStage2::<12>::new(), config)?),
    })
}

/// Memory mapped somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) len: u64,
    pub(crate) phys: u64,
    pub(crate) access: Access,
}

/// What was unmapped, and what hardware may still use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ghost {
    first: u64,
    segment: Segment,
    /// In which gather it waits; `None` if its invalidation failed.
    gather: Option<usize>,
}

/// How many gathers a domain has.
pub(crate) const GATHERS: usize = 2;
/// The gather of unmaps that are synced at once.
pub(crate) const STRICT: usize = GATHERS;

/// A domain and what it should do.
pub(crate) struct Space {
    pub(crate) kind: Kind,
    /// `None` once the user has let go of it.
    pub(crate) handle: Option<Arc<dyn Domain>>,
    pub(crate) owner: Option<Box<dyn Foreign>>,
    pub(crate) gathers: [Gather; GATHERS + 1],
    /// The last address that can be mapped.
    pub(crate) last: u64,
    pub(crate) page_sizes: u64,
    mapped: BTreeMap<u64, Segment>,
    ghosts: Vec<Ghost>,
    /// Unmapped address ranges that wait in a gather: a table that was cut off there may still be walked.
    cuts: Vec<Range>,
    pub(crate) abilities: Abilities,
    /// The gathers with which sizes changed.
    resized: BTreeSet<usize>,
    /// Where devices wrote since the marks were collected.
    pub(crate) written: BTreeSet<u64>,
    /// Ranges whose marks were collected, and of which the unit may yet think that they are marked.
    harvested: Vec<Range>,
}

/// An unmapped range and the gather in which it waits.
type Range = (u64, u64, Option<usize>);

/// See [`Space::save`].
pub(crate) type Saved = (BTreeMap<u64, Segment>, Vec<Ghost>, Vec<Range>);

fn last_of(first: u64, len: u64) -> u64 {
    first + (len - 1)
}

impl Space {
    pub(crate) fn new(kind: Kind, handle: Option<Arc<dyn Domain>>, owner: Option<Box<dyn Foreign>>) -> Self {
        let (last, page_sizes) = handle.as_ref().map_or((u64::MAX, 0), |domain| {
            let sizes = owner.as_ref().map_or(domain.page_sizes(), |owner| owner.page_sizes());
            (domain.aperture().last().get(), sizes)
        });
        Self {
            kind,
            handle,
            owner,
            gathers: [Gather::new(), Gather::new(), Gather::new()],
            last,
            page_sizes,
            mapped: BTreeMap::new(),
            ghosts: Vec::new(),
            cuts: Vec::new(),
            abilities: Abilities::empty(),
            resized: BTreeSet::new(),
            written: BTreeSet::new(),
            harvested: Vec::new(),
        }
    }

    /// A domain with a direct map, which nobody but its devices holds.
    pub(crate) fn direct(stage: Stage, address: u64) -> (Self, FixedMapping) {
        let mut space = Self::new(Kind::Tables(stage), None, None);
        let segment = Segment { len: 0x1_0000, phys: address, access: Access::READ | Access::WRITE };
        space.insert(address, segment);
        let memory = PhysRange::block(PhysAddr::new(address), segment.len);
        let mapping = Mapping { iova: Iova::new(address), memory, attributes: Attributes::READ_WRITE };
        // SAFETY: the unit translates addresses and touches no memory behind them.
        (space, unsafe { FixedMapping::new(mapping) })
    }

    /// Maps by the domain, or in the tables of the test.
    pub(crate) fn map(&self, list: &[Mapping]) -> Option<Result<(), MapError>> {
        match (&self.owner, &self.handle) {
            (Some(owner), _) => Some(owner.map(list)),
            // SAFETY: the unit translates addresses and touches no memory behind them.
            (None, Some(handle)) => Some(unsafe { handle.map(list) }),
            (None, None) => None,
        }
    }

    /// Unmaps likewise.
    pub(crate) fn unmap(&mut self, range: IovaRange, gather: usize) -> Option<Result<u64, UnmapError>> {
        let gather = &mut self.gathers[gather];
        match (&self.owner, &self.handle) {
            (Some(owner), _) => Some(owner.unmap(range, gather)),
            (None, Some(handle)) => Some(host::unmap(&**handle, range, gather)),
            (None, None) => None,
        }
    }

    /// The smallest page.
    pub(crate) fn page(&self) -> u64 {
        if self.page_sizes == 0 { 4096 } else { 1 << self.page_sizes.trailing_zeros() }
    }

    /// The next larger page.
    pub(crate) fn block(&self) -> u64 {
        let larger = self.page_sizes & (self.page_sizes.wrapping_sub(1));
        if larger == 0 { self.page() << 9 } else { 1 << larger.trailing_zeros() }
    }

    pub(crate) fn segments(&self) -> &BTreeMap<u64, Segment> {
        &self.mapped
    }

    /// What is mapped at an address.
    pub(crate) fn at(&self, address: u64) -> Option<(u64, Access)> {
        let (&first, segment) = self.mapped.range(..=address).next_back()?;
        (address <= last_of(first, segment.len)).then(|| (segment.phys + (address - first), segment.access))
    }

    /// Whether anything is mapped in a range.
    pub(crate) fn overlaps(&self, first: u64, last: u64) -> bool {
        self.mapped.range(..=last).next_back().is_some_and(|(&at, segment)| last_of(at, segment.len) >= first)
    }

    /// Whether one segment covers both sides of the boundary before `address`.
    pub(crate) fn spans(&self, address: u64) -> bool {
        address != 0
            && self.mapped.range(..address).next_back().is_some_and(|(&at, s)| last_of(at, s.len) >= address)
    }

    pub(crate) fn insert(&mut self, first: u64, segment: Segment) {
        self.mapped.insert(first, segment);
    }

    /// Takes out what is mapped in a range, which waits in `gather` from now on, and gives how many bytes it is.
    pub(crate) fn remove(&mut self, first: u64, last: u64, gather: usize) -> u64 {
        let gather = Some(gather);
        let mut bytes = 0;
        let start = self.mapped.range(..=first).next_back().map_or(first, |(&at, _)| at);
        let touched: Vec<(u64, Segment)> = self.mapped.range(start..=last).map(|(&a, &s)| (a, s)).collect();
        for (at, segment) in touched {
            let end = last_of(at, segment.len);
            if end < first {
                continue;
            }
            self.mapped.remove(&at);
            if at < first {
                self.mapped.insert(at, Segment { len: first - at, ..segment });
            }
            if end > last {
                let phys = segment.phys + (last + 1 - at);
                self.mapped.insert(last + 1, Segment { len: end - last, phys, ..segment });
            }
            let (low, high) = (at.max(first), end.min(last));
            let gone = Segment { len: high - low + 1, phys: segment.phys + (low - at), ..segment };
            self.ghosts.push(Ghost { first: low, segment: gone, gather });
            bytes += gone.len;
        }
        self.cuts.push((first, last, gather));
        bytes
    }

    /// Takes a mapping back that was not made.
    pub(crate) fn forget(&mut self, first: u64) {
        self.mapped.remove(&first);
    }

    /// What is mapped and what waits, to be put back.
    pub(crate) fn save(&self) -> Saved {
        (self.mapped.clone(), self.ghosts.clone(), self.cuts.clone())
    }

    /// Puts back what [`save`](Self::save) gave.
    pub(crate) fn restore(&mut self, saved: Saved) {
        (self.mapped, self.ghosts, self.cuts) = saved;
    }

    /// The ranges that wait in a gather.
    pub(crate) fn waiting(&self, gather: usize) -> Vec<(u64, u64)> {
        self.cuts.iter().filter(|cut| cut.2 == Some(gather)).map(|cut| (cut.0, cut.1)).collect()
    }

    /// A gather was synced.
    pub(crate) fn synced(&mut self, gather: usize) {
        self.ghosts.retain(|ghost| ghost.gather != Some(gather));
        self.cuts.retain(|cut| cut.2 != Some(gather));
        self.harvested.retain(|range| range.2 != Some(gather));
        self.resized.remove(&gather);
    }

    /// Sizes changed with a gather.
    pub(crate) fn resized(&mut self, gather: usize) {
        self.resized.insert(gather);
    }

    /// Marks were collected.
    pub(crate) fn harvested(&mut self, first: u64, last: u64, gather: usize) {
        self.harvested.push((first, last, Some(gather)));
    }

    /// Whether the unit knows of an address only what the tables say.
    pub(crate) fn is_settled(&self, address: u64) -> bool {
        let ranges = self.cuts.iter().chain(&self.harvested);
        !ranges.into_iter().any(|&(first, last, _)| (first..=last).contains(&address))
    }

    /// A gather's invalidation failed: what it held may be reached for ever.
    pub(crate) fn quarantine(&mut self, gather: usize) {
        let lose = |slot: &mut Option<usize>| {
            if *slot == Some(gather) {
                *slot = None;
            }
        };
        self.ghosts.iter_mut().for_each(|ghost| lose(&mut ghost.gather));
        self.cuts.iter_mut().chain(&mut self.harvested).for_each(|cut| lose(&mut cut.2));
        self.resized.remove(&gather);
    }

    /// Whether a gather holds anything.
    pub(crate) fn waits(&self, gather: usize) -> bool {
        let ranges = self.cuts.iter().chain(&self.harvested);
        ranges.into_iter().any(|range| range.2 == Some(gather)) || self.resized.contains(&gather)
    }

    /// What may become of an access.
    pub(crate) fn allowed(&self, address: u64, access: Access, output_bits: u8) -> Allowed {
        let outside = address >> output_bits != 0;
        let stage = match self.kind {
            // A stream without an entry cannot be blocked, and its attempts are recorded.
            Kind::Blocked => {
                return Allowed::aborted().or(&Allowed::fault(&[code::C_BAD_STREAMID, code::C_BAD_STE]));
            }
            Kind::Identity if outside => return Allowed::fault(&[code::F_ADDR_SIZE]),
            Kind::Identity => return Allowed::output(address),
            Kind::Tables(stage) | Kind::Shared(stage) => stage,
        };
        let absent = match stage {
            Stage::Stage2 if outside => Allowed::fault(&[code::F_TRANSLATION, code::F_ADDR_SIZE]),
            _ => Allowed::fault(&[code::F_TRANSLATION]),
        };
        let through = |phys, permitted: Access| match permitted.contains(access) {
            true => Allowed::output(phys),
            false => Allowed::fault(&[code::F_PERMISSION]),
        };
        let mut allowed = match self.at(address) {
            Some((phys, permitted)) => through(phys, permitted),
            None => absent.clone(),
        };
        for ghost in &self.ghosts {
            if (ghost.first..=last_of(ghost.first, ghost.segment.len)).contains(&address) {
                let phys = ghost.segment.phys + (address - ghost.first);
                allowed = allowed.or(&through(phys, ghost.segment.access));
            }
        }
        if self.cuts.iter().any(|&(first, last, _)| (first..=last).contains(&address)) {
            allowed = allowed.or(&absent);
        }
        allowed
    }
}

/// A request to map memory.
pub(crate) fn mapping(iova: u64, segment: &Segment, memory: MemoryKind) -> Option<Mapping> {
    let attributes = Attributes { access: segment.access, memory };
    let memory = PhysRange::new(PhysAddr::new(segment.phys), segment.len).ok()?;
    Some(Mapping { iova: Iova::new(iova), memory, attributes })
}

/// Whether the format of a stage can express attributes.
pub(crate) fn expressible(stage: Stage, access: Access, memory: MemoryKind) -> bool {
    let executes = access.contains(Access::EXECUTE);
    let reads = access.contains(Access::READ);
    let some = access.intersects(Access::READ | Access::WRITE);
    some && (stage == Stage::Stage2 || reads) && (!executes || reads && memory != MemoryKind::Device)
}
