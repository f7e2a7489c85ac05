//! Domains: blocked, identity and paging.

use crate::gate::{Closed, Gate};
use crate::intervals::{InsertError, Intervals};
use crate::link::{Link, RequestError};
use crate::requests::{Ledger, Priority, Refusal, Request};
use crate::spec::{Features, HostDomain, MapFlags, Status};
use crate::transport::Transport;
use core::fmt;
use portcullis_hal::wait::Timeout;
use portcullis_hal::{
    Access, Arc, Attributes, Gather, Hal, Iova, IovaRange, MapError, Mapping, MemoryKind, OutOfMemory,
    SpaceKey, SyncError, Translated, UnmapError,
};
use portcullis_iommu::{Domain, DomainError, DomainInfo, DomainKind};
use spin::{Mutex, MutexGuard};

/// How many mappings are copied out of the intervals at a time to be replayed.
const REPLAY_CHUNK: usize = 16;

/// The mappings of a paging domain, and whether the device knows them.
#[derive(Debug, Default)]
pub(crate) struct Mappings {
    pub(crate) intervals: Intervals,
    /// Endpoints attached; the domain exists on the device while there are any.
    pub(crate) endpoints: u32,
}

/// A paging domain. It outlives the caller's handle while endpoints are attached to it.
pub(crate) struct Space<H: Hal, T: Transport> {
    pub(crate) link: Arc<Link<H, T>>,
    pub(crate) id: HostDomain,
    key: SpaceKey,
    ledger: Arc<Ledger>,
    gate: Gate,
    mappings: Mutex<Mappings>,
}

impl<H: Hal, T: Transport> Space<H, T> {
    pub(crate) fn new(link: &Arc<Link<H, T>>) -> Result<Arc<Self>, DomainError> {
        let ledger = Arc::try_new(Ledger::default())?;
        let id = link.hal.critical(|| link.ids.lock().take()).ok_or(DomainError::NoFreeId)?;
        // When this fails the value is dropped, and the id with it.
        Ok(Arc::try_new(Self {
            link: link.clone(),
            id: HostDomain(id),
            key: SpaceKey::new(),
            ledger,
            gate: Gate::default(),
            mappings: Mutex::new(Mappings::default()),
        })?)
    }

    /// Runs `section` on the mappings.
    pub(crate) fn mappings<R>(&self, section: impl FnOnce(&mut Mappings) -> R) -> R {
        self.link.hal.critical(|| section(&mut self.mappings.lock()))
    }

    /// The mappings, unless somebody else is at them; for interrupt handlers.
    pub(crate) fn try_mappings(&self) -> Option<MutexGuard<'_, Mappings>> {
        self.mappings.try_lock()
    }

    /// Keeps changes of mappings out.
    pub(crate) fn close(&self, timeout_ns: u64) -> Result<Closed<'_>, Timeout> {
        self.gate.close(&self.link.hal, timeout_ns)
    }

    /// Gives the domain up: what is unmapped in it can never be reused.
    pub(crate) fn poison(&self) {
        self.ledger.fail();
    }

    /// Maps all of `list` or nothing. The contract is that of [`IoSpace::map`](portcullis_hal::IoSpace::map).
    pub(crate) fn map(&self, list: &[Mapping]) -> Result<(), MapError> {
        for mapping in list {
            self.check(mapping)?;
        }
        let _gate = self.gate.enter(&self.link.hal);
        let on_device = self.mappings(|mappings| {
            reserve(&mut mappings.intervals, list)?;
            Ok::<_, MapError>(mappings.endpoints > 0)
        })?;
        let made = if on_device { self.map_on_device(list) } else { Ok(()) };
        self.mappings(|mappings| {
            for mapping in list {
                match made {
                    // Unconfirmed mappings stay, so that they can be unmapped.
                    Ok(()) | Err(MapError::Sync(_)) => mappings.intervals.settle(mapping.iova),
                    Err(_) => mappings.intervals.remove_pending(mapping.iova),
                }
            }
        });
        made
    }

    fn map_on_device(&self, list: &[Mapping]) -> Result<(), MapError> {
        let Err(error) = self.request_maps(list.iter().filter_map(|mapping| self.map_request(mapping)))
        else {
            return Ok(());
        };
        let refusal = match error {
            RequestError::Refused(refusal) => refusal,
            RequestError::Sync(error) => return Err(error.into()),
        };
        log::warn!("virtio-iommu: domain {}: map refused: {refusal}", self.id.0);
        // Some pieces may have been mapped. Removing what is not there is no error (5.13.6.6).
        let mut undo = self.link.batch(Priority::Normal);
        for mapping in list {
            if let Some(range) = range_of(mapping) {
                undo.push(&Request::Unmap { domain: self.id, range })?;
            }
        }
        match (undo.finish(), refusal) {
            (Ok(()), Refusal::Status(Status::NOMEM)) => Err(OutOfMemory.into()),
            (Ok(()), Refusal::Status(Status::RANGE)) => {
                Err(MapError::OutOfRange { iova: list.first().map_or(Iova::new(0), |mapping| mapping.iova) })
            }
            // An overlap cannot be the reason, so the flags are (5.13.6.5.2).
            (Ok(()), Refusal::Status(Status::INVAL)) => Err(MapError::Attributes),
            _ => Err(SyncError::Faulted.into()),
        }
    }

    fn request_maps(&self, requests: impl Iterator<Item = Request>) -> Result<(), RequestError> {
        let mut batch = self.link.batch(Priority::Normal);
        for request in requests {
            batch.push(&request)?;
        }
        batch.finish()
    }

    fn map_request(&self, mapping: &Mapping) -> Option<Request> {
        Some(Request::Map {
            domain: self.id,
            range: range_of(mapping)?,
            phys: mapping.memory.start(),
            flags: self.flags(mapping.attributes),
        })
    }

    fn flags(&self, attributes: Attributes) -> MapFlags {
        let mut flags = MapFlags::empty();
        flags.set(MapFlags::READ, attributes.access.contains(Access::READ));
        flags.set(MapFlags::WRITE, attributes.access.contains(Access::WRITE));
        let tells_registers = self.link.limits.features.contains(Features::MMIO);
        flags.set(MapFlags::MMIO, tells_registers && attributes.memory == MemoryKind::Device);
        flags
    }

    fn check(&self, mapping: &Mapping) -> Result<(), MapError> {
        let limits = &self.link.limits;
        let iova = mapping.iova;
        let range = range_of(mapping).ok_or(MapError::OutOfRange { iova })?;
        let granule = limits.granule();
        if !range.is_aligned(granule) || !mapping.memory.is_aligned(granule) {
            return Err(MapError::Misaligned { iova });
        }
        if !limits.aperture.covers(&range) {
            return Err(MapError::OutOfRange { iova });
        }
        let Attributes { access, memory } = mapping.attributes;
        if access.is_empty() || access.contains(Access::EXECUTE) || memory == MemoryKind::NonCacheable {
            return Err(MapError::Attributes);
        }
        Ok(())
    }

    /// Takes out all mappings in `range`. The contract is that of
    /// [`IoSpace::unmap`](portcullis_hal::IoSpace::unmap).
    pub(crate) fn unmap(&self, range: IovaRange, gather: &mut Gather) -> Result<u64, UnmapError> {
        let limits = &self.link.limits;
        let iova = range.start();
        if !range.is_aligned(limits.granule()) {
            return Err(UnmapError::Misaligned { iova });
        }
        if !limits.aperture.covers(&range) {
            return Err(UnmapError::OutOfRange { iova });
        }
        let _gate = self.gate.enter(&self.link.hal);
        gather.claim(self.key)?;
        let cut = self.mappings(|mappings| mappings.intervals.cut_by(&range).copied());
        if let Some(cut) = cut {
            return Err(UnmapError::Partial { iova: cut.range.start(), size: cut.range.len() });
        }
        let mut bytes = 0_u64;
        loop {
            match self.mappings(|mappings| self.unmap_run(mappings, &range)) {
                Step::Gone(run, sequence) => {
                    gather.record(run.0, limits.page_sizes.trailing_zeros() as u8);
                    gather.raise_token(sequence);
                    bytes = bytes.saturating_add(run.1);
                }
                // The caller learns from the count that something is left, and from the sync why.
                Step::Full => {
                    if self.link.wait_for_room().is_err() {
                        break;
                    }
                }
                Step::Nothing => break,
            }
        }
        Ok(bytes)
    }

    /// Removes the first run in `range` together with queueing the request that removes it from the device, so that
    /// nobody can map there in between.
    fn unmap_run(&self, mappings: &mut Mappings, range: &IovaRange) -> Step {
        let Some(run) = mappings.intervals.first_run(range) else {
            return Step::Nothing;
        };
        let mut sequence = 0;
        if mappings.endpoints > 0 {
            let request = Request::Unmap { domain: self.id, range: run.range };
            match self.link.try_unmap(&request, &self.ledger) {
                Some(queued) => sequence = queued,
                None => return Step::Full,
            }
        }
        mappings.intervals.remove_run(&run);
        Step::Gone((run.range, run.bytes), sequence)
    }

    /// Waits until the device has forgotten what `gather` collected.
    pub(crate) fn wait_unmapped(&self, gather: &mut Gather) -> Result<(), SyncError> {
        gather.claim(self.key)?;
        let sequence = gather.token();
        if sequence > 0 && !self.link.is_faulted() {
            self.link.drain(self.id, sequence)?;
        }
        if self.ledger.has_failed() || self.link.is_faulted() {
            return Err(SyncError::Faulted);
        }
        Ok(())
    }

    pub(crate) fn iova_to_phys(&self, iova: Iova) -> Option<Translated> {
        self.mappings(|mappings| mappings.intervals.lookup(iova))
    }

    /// Waits until the device has answered everything about this domain. The gate is held exclusively.
    pub(crate) fn quiesce(&self) -> Result<(), SyncError> {
        if self.link.is_faulted() {
            return Err(SyncError::Faulted);
        }
        self.link.drain(self.id, u64::MAX)
    }

    /// Makes all mappings on the device, where the domain has just come into being. The gate is held exclusively.
    pub(crate) fn replay(&self) -> Result<(), RequestError> {
        let mut batch = self.link.batch(Priority::Normal);
        let mut next = 0;
        loop {
            let mut chunk = [None; REPLAY_CHUNK];
            self.mappings(|mappings| {
                for (place, index) in chunk.iter_mut().zip(next..) {
                    *place = mappings.intervals.get(index).map(|interval| Request::Map {
                        domain: self.id,
                        range: interval.range,
                        phys: interval.phys,
                        flags: self.flags(interval.attributes),
                    });
                }
            });
            for request in chunk.iter().flatten() {
                batch.push(request)?;
            }
            if chunk.last().is_none_or(Option::is_none) {
                return batch.finish();
            }
            next += REPLAY_CHUNK;
        }
    }
}

impl<H: Hal, T: Transport> Drop for Space<H, T> {
    fn drop(&mut self) {
        // Nothing is attached any more, and the last detachment waited for all requests; after a failure the device
        // may still know the domain.
        if !self.ledger.has_failed() && !self.link.is_faulted() {
            let link = &self.link;
            link.hal.critical(|| link.ids.lock().give_back(self.id.0));
        }
    }
}

/// What a step of an unmap did.
enum Step {
    /// This range, with so many bytes mapped in it, is removed; the request has this number, 0 if there is none.
    Gone((IovaRange, u64), u64),
    /// The request queue is full.
    Full,
    Nothing,
}

/// Reserves the place of all of `list`, or of nothing.
fn reserve(intervals: &mut Intervals, list: &[Mapping]) -> Result<(), MapError> {
    intervals.reserve(list.len())?;
    for (index, mapping) in list.iter().enumerate() {
        let iova = mapping.iova;
        let result = match range_of(mapping) {
            None => Err(MapError::OutOfRange { iova }),
            Some(range) => intervals.insert_pending(range, mapping).map_err(|error| match error {
                InsertError::Overlap(iova) => MapError::Overlap { iova },
                InsertError::OutOfMemory => OutOfMemory.into(),
            }),
        };
        if let Err(error) = result {
            for mapping in list.iter().take(index) {
                intervals.remove_pending(mapping.iova);
            }
            return Err(error);
        }
    }
    Ok(())
}

fn range_of(mapping: &Mapping) -> Option<IovaRange> {
    IovaRange::new(mapping.iova, mapping.memory.len()).ok()
}

/// What a domain handle stands for.
pub(crate) enum Kind<H: Hal, T: Transport> {
    Blocked,
    Identity,
    Paging(Arc<Space<H, T>>),
}

impl<H: Hal, T: Transport> Clone for Kind<H, T> {
    fn clone(&self) -> Self {
        match self {
            Self::Blocked => Self::Blocked,
            Self::Identity => Self::Identity,
            Self::Paging(space) => Self::Paging(space.clone()),
        }
    }
}

/// The [`Domain`] that users hold.
pub(crate) struct VirtioDomain<H: Hal, T: Transport> {
    pub(crate) link: Arc<Link<H, T>>,
    pub(crate) kind: Kind<H, T>,
    pub(crate) key: SpaceKey,
}

impl<H: Hal, T: Transport> VirtioDomain<H, T> {
    pub(crate) fn new(link: &Arc<Link<H, T>>, kind: Kind<H, T>) -> Self {
        Self { link: link.clone(), kind, key: SpaceKey::new() }
    }

    pub(crate) fn space(&self) -> Option<&Space<H, T>> {
        match &self.kind {
            Kind::Paging(space) => Some(space),
            _ => None,
        }
    }
}

impl<H: Hal, T: Transport> Domain for VirtioDomain<H, T> {
    fn info(&self) -> DomainInfo {
        DomainInfo {
            kind: match self.kind {
                Kind::Blocked => DomainKind::Blocked,
                Kind::Identity => DomainKind::Identity,
                Kind::Paging(_) => DomainKind::Paging,
            },
            stage: None,
            root: None,
        }
    }

    fn describe(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let limits = &self.link.limits;
        match &self.kind {
            Kind::Blocked => write!(out, "domain {}", limits.blocked.0),
            Kind::Identity => match limits.identity {
                Some(id) => write!(out, "domain {}", id.0),
                None => write!(out, "no domain"),
            },
            Kind::Paging(space) => write!(out, "domain {}", space.id.0),
        }
    }
}
