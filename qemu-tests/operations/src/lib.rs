//! The operations that the benchmarks measure, as a user of the common traits calls them: the same in the kernel, where
//! the clock counts instructions, and on the host, where it counts nanoseconds.
//!
//! Each repetition is looked after: what was mapped is there, what was unmapped is not.
#![no_std]

extern crate alloc;

mod cost;
mod meter;
mod sharing;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Display;
use portcullis_hal::{
    Arc, Attributes, Gather, Hal, Iova, IovaRange, MapError, Mapping, Pasid, PhysAddr, PhysRange, QueuedMaps,
    SyncError, SyncProof, UnmapError,
};
use portcullis_iommu::{Device, Domain, DomainSpec, Iommu, PagingSpec, Permissions, Requests, Unswitched};

use cost::Samples;
pub use cost::{Cost, Events, median};
pub use meter::{Clock, Meter};
pub use sharing::Sharing;

/// What unmap and sync return.
type Strict = (Result<u64, UnmapError>, Result<SyncProof, SyncError>);

const PAGE: u64 = 4096;
const TWO_MIB: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

/// Where the mappings begin: far from what devices need to have mapped.
const IOVA: u64 = 256 * GIB;
/// The memory behind them. Nobody writes to it.
const MEMORY: u64 = 2 * GIB;

/// A device that is not told: what it is permitted is only in the unit's tables, to be looked at or measured. It issues no
/// request of these kinds.
pub const ON_PAPER: Unswitched = Unswitched(Permissions {
    pasid_bits: Pasid::MAX_BITS as u8,
    requests: Requests::TRANSLATION.union(Requests::PAGE),
});

/// How often operations are repeated.
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    /// Those on few entries.
    pub many: usize,
    /// Those on one table, and attachments.
    pub some: usize,
    /// Those on many tables.
    pub few: usize,
}

/// A domain, and the device that is attached to it.
pub struct Bench<'a, H: Hal, C> {
    iommu: &'a Iommu<H>,
    device: &'a Device,
    domain: Arc<dyn Domain>,
    meter: Meter<C>,
    rounds: Rounds,
}

impl<'a, H: Hal, C: Fn() -> u64> Bench<'a, H, C> {
    /// Makes a domain for `device`, which is attached to nothing.
    ///
    /// # Safety
    ///
    /// As long as the value lives the device does no DMA, and nobody else attaches it: it is given memory that the
    /// benchmark does not own.
    #[expect(unsafe_code, reason = "maps memory by its address")]
    pub unsafe fn new(
        iommu: &'a Iommu<H>,
        device: &'a Device,
        clock: Clock<C>,
        rounds: Rounds,
    ) -> Result<Self, String> {
        let meter = Meter::new(iommu, device, clock)?;
        let domain = iommu.new_domain(device, &DomainSpec::Paging(PagingSpec::default())).map_err(words)?;
        Ok(Self { iommu, device, domain, meter, rounds })
    }

    /// Measures maps and strict unmaps, and hands each operation's name and cost to `result`. Returns which stage
    /// translates.
    pub fn mappings(&self, result: &mut dyn FnMut(&str, Cost)) -> Result<String, String> {
        let Rounds { many, some, few } = self.rounds;
        self.iommu.attach(self.device, &self.domain).map_err(words)?;
        // A page between the one measured and the end of its table keeps that table in use.
        self.map(&[mapping(0, PAGE, MEMORY)]).map_err(words)?;
        self.pair(result, "page", many, &[mapping(PAGE, PAGE, MEMORY)])?;
        self.queued(result, many, &[mapping(PAGE, PAGE, MEMORY)])?;
        self.pair(result, "leaf-2m", many, &[mapping(GIB, TWO_MIB, MEMORY)])?;
        // Memory that begins a page too late leaves only small pages.
        self.pair(result, "pages-2m", some, &[mapping(2 * GIB, TWO_MIB, MEMORY + PAGE)])?;
        self.pair(result, "pages-1g", few, &[mapping(3 * GIB, GIB, MEMORY + PAGE)])?;
        self.pair(result, "scattered-1g", few, &scattered(3 * GIB, GIB))?;
        self.iommu.detach(self.device).map_err(words)?;
        Ok(self.domain.info().stage.map_or_else(String::new, |stage| stage.to_string()))
    }

    /// Measures a map call that is queued, and sending it.
    #[expect(unsafe_code, reason = "maps memory by its address")]
    fn queued(
        &self,
        result: &mut dyn FnMut(&str, Cost),
        rounds: usize,
        list: &[Mapping],
    ) -> Result<(), String> {
        let range = hull(list)?;
        let (mut queue, mut gather) = (QueuedMaps::new(), Gather::new());
        let (mut maps, mut sends) = (Samples::new(rounds), Samples::new(rounds));
        for _ in 0..rounds {
            // SAFETY: the device does no DMA (contract of `new`).
            let map = || unsafe { self.domain.map_queued(list, &mut queue) };
            maps.of(&self.meter, map).map_err(words)?;
            sends.of(&self.meter, || self.domain.send_maps(&mut queue)).map_err(words)?;
            self.expect(list, Expect::Mapped)?;
            let (bytes, synced) = self.unmap(range, &mut gather);
            bytes.map_err(words)?;
            drop(synced.map_err(words)?);
        }
        result("queued.map", maps.cost());
        result("queued.send", sends.cost());
        Ok(())
    }

    /// Measures attaching and detaching, as [`mappings`](Self::mappings) does.
    pub fn attachments(&self, result: &mut dyn FnMut(&str, Cost)) -> Result<String, String> {
        let rounds = self.rounds.some;
        let (mut attaches, mut detaches) = (Samples::new(rounds), Samples::new(rounds));
        for _ in 0..rounds {
            attaches.of(&self.meter, || self.iommu.attach(self.device, &self.domain)).map_err(words)?;
            detaches.of(&self.meter, || self.iommu.detach(self.device)).map_err(words)?;
        }
        result("attach", attaches.cost());
        result("detach", detaches.cost());
        Ok(self.device.id().to_string())
    }

    /// Measures a map call, and the strict unmap of all it mapped, and sees that both did what they say.
    fn pair(
        &self,
        result: &mut dyn FnMut(&str, Cost),
        name: &str,
        rounds: usize,
        list: &[Mapping],
    ) -> Result<(), String> {
        let range = hull(list)?;
        let mut gather = Gather::new();
        let (mut maps, mut unmaps) = (Samples::new(rounds), Samples::new(rounds));
        let mut round = || -> Result<(), String> {
            maps.of(&self.meter, || self.map(list)).map_err(words)?;
            self.expect(list, Expect::Mapped)?;
            let outcome = unmaps.of(&self.meter, || self.unmap(range, &mut gather));
            if !matches!(&outcome, (Ok(bytes), Ok(_)) if *bytes == range.len()) {
                return Err(format!("unmap and sync returned {outcome:?}"));
            }
            self.expect(list, Expect::Unmapped)
        };
        for _ in 0..rounds {
            round().map_err(|error| format!("{name}: {error}"))?;
        }
        result(&format!("{name}.map"), maps.cost());
        result(&format!("{name}.unmap"), unmaps.cost());
        Ok(())
    }

    #[expect(unsafe_code, reason = "maps memory by its address")]
    #[inline]
    fn map(&self, list: &[Mapping]) -> Result<(), MapError> {
        // SAFETY: the device does no DMA (contract of `new`).
        unsafe { self.domain.map(list) }
    }

    /// Unmaps, and waits until the unit has forgotten it.
    #[expect(unsafe_code, reason = "unmaps what was mapped by its address")]
    #[inline]
    fn unmap(&self, range: IovaRange, gather: &mut Gather) -> Strict {
        // SAFETY: all mappings here are the benchmark's own.
        let bytes = unsafe { self.domain.unmap(range, gather) };
        (bytes, self.domain.sync(gather))
    }

    /// Looks at the first and the last page of a list.
    fn expect(&self, list: &[Mapping], expect: Expect) -> Result<(), String> {
        for mapping in [list.first(), list.last()].into_iter().flatten() {
            for offset in [0, mapping.memory.len() - 1] {
                let iova = Iova::new(mapping.iova.get() + offset);
                let wanted = match expect {
                    Expect::Mapped => Some(mapping.memory.start().get() + offset),
                    Expect::Unmapped => None,
                };
                let found = self.domain.iova_to_phys(iova).map(|translated| translated.phys.get());
                if found != wanted {
                    return Err(format!("{iova} leads to {found:x?}, not to {wanted:x?}"));
                }
            }
        }
        Ok(())
    }
}

/// How a list should be found in the domain.
#[derive(Clone, Copy)]
enum Expect {
    Mapped,
    Unmapped,
}

/// All addresses from the first to the last of a list.
fn hull(list: &[Mapping]) -> Result<IovaRange, String> {
    let range = |mapping: &Mapping| IovaRange::new(mapping.iova, mapping.memory.len()).map_err(words);
    let (first, last) = (list.first().ok_or("empty list")?, list.last().ok_or("empty list")?);
    Ok(range(first)?.hull(&range(last)?))
}

/// A piece at `offset` from where the mappings begin.
fn mapping(offset: u64, len: u64, memory: u64) -> Mapping {
    let memory = PhysAddr::new(memory);
    let range = PhysRange::new(memory, len).unwrap_or(PhysRange::block(memory, PAGE));
    Mapping { iova: Iova::new(IOVA + offset), memory: range, attributes: Attributes::READ_WRITE }
}

/// Pages that follow each other, of which no two neighbours are neighbours in memory.
fn scattered(offset: u64, len: u64) -> Vec<Mapping> {
    /// Odd, so that it leads to every page of a power of two of them.
    const STRIDE: u64 = 40_503;
    let pages = len / PAGE;
    let piece = |page: u64| mapping(offset + page * PAGE, PAGE, MEMORY + page * STRIDE % pages * PAGE);
    (0..pages).map(piece).collect()
}

fn words(error: impl Display) -> String {
    error.to_string()
}
