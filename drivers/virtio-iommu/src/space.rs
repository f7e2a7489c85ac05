//! The mappings of a paging domain, here and on the device.

use crate::gate::{Closed, Gate};
use crate::intervals::{InsertError, Interval, Intervals, Run};
use crate::link::{Link, RequestError};
use crate::owners::{Ledger, Owner, Refusal};
use crate::pieces::Pieces;
use crate::request::Request;
use crate::requests::Priority;
use crate::spec::{Features, HostDomain, MapFlags, Status};
use crate::transport::Transport;
use portcullis_hal::wait::Timeout;
use portcullis_hal::{
    Access, Arc, Attributes, Gather, Hal, Iova, IovaRange, MapError, Mapping, MemoryKind, OutOfMemory,
    PhysAddr, QueuedMaps, SendMapsError, SpaceKey, SyncError, Translated, UnmapError,
};
use portcullis_iommu::{DomainError, Grain, ReservedRegion};
use spin::{Mutex, MutexGuard};

/// How many mappings are noted, or copied out to be replayed, before interrupts are let in.
const CHUNK: usize = 16;
/// How many mappings are removed by one request at most, for the same reason.
const RUN: usize = 4096;

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
    pieces: Pieces,
    ledger: Arc<Ledger>,
    gate: Gate,
    mappings: Mutex<Mappings>,
}

impl<H: Hal, T: Transport> Space<H, T> {
    pub(crate) fn new(link: &Arc<Link<H, T>>, grain: Grain) -> Result<Arc<Self>, DomainError> {
        let ledger = Arc::try_new(Ledger::default())?;
        let id = link.hal.critical(|| link.ids.lock().take()).ok_or(DomainError::NoFreeId)?;
        // When this fails the value is dropped, and the id with it.
        Ok(Arc::try_new(Self {
            link: link.clone(),
            id: HostDomain(id),
            key: SpaceKey::new(),
            pieces: Pieces::new(grain, link.limits.page_sizes),
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
        let on_device = self.insert(list)?;
        self.make(list, on_device)
    }

    /// Maps what is noted.
    fn make(&self, list: &[Mapping], on_device: bool) -> Result<(), MapError> {
        let made = if on_device { self.map_on_device(list) } else { Ok(()) };
        // Unconfirmed mappings stay, so that they can be unmapped.
        if !matches!(made, Ok(()) | Err(MapError::Sync(_))) {
            self.remove(self.pieces.of(list));
        }
        made
    }

    /// Maps all of `list` or nothing, and leaves it queued. The contract is that of
    /// [`IoSpace::map_queued`](portcullis_hal::IoSpace::map_queued).
    pub(crate) fn map_queued(&self, list: &[Mapping], queue: &mut QueuedMaps) -> Result<(), MapError> {
        for mapping in list {
            self.check(mapping)?;
        }
        let _gate = self.gate.enter(&self.link.hal);
        let on_device = self.insert(list)?;
        // Only now: a list that is wrong leaves an empty queue empty.
        if queue.claim(self.key, self.ledger.refused_maps()).is_err() {
            return self.make(list, on_device);
        }
        if on_device {
            let owner = Owner::Ledger(self.ledger.clone());
            let requests = self.pieces.of(list).map(|interval| self.map_request(&interval));
            queue.raise_token(self.link.submit(requests, &owner, Priority::Normal)?);
        }
        Ok(())
    }

    /// Waits until what was queued is mapped. The contract is that of
    /// [`IoSpace::send_maps`](portcullis_hal::IoSpace::send_maps).
    pub(crate) fn send_maps(&self, queue: &mut QueuedMaps) -> Result<(), SendMapsError> {
        queue.claim(self.key, self.ledger.refused_maps())?;
        let (number, mark) = (queue.token(), queue.mark());
        queue.end();
        // Refusals since the mark are others' then.
        if number == 0 {
            return Ok(());
        }
        if !self.link.is_faulted() {
            self.link.drain(&self.ledger, number)?;
        }
        if self.link.is_faulted() {
            return Err(SyncError::Faulted.into());
        }
        if self.ledger.refused_maps() != mark {
            return Err(SendMapsError::Refused);
        }
        Ok(())
    }

    /// Maps every address to itself, but for pages of reserved regions. The device does not know the domain yet.
    pub(crate) fn mirror(&self, reserved: &[ReservedRegion]) -> Result<(), OutOfMemory> {
        let aperture = self.link.limits.aperture;
        let below = self.link.limits.granule() - 1;
        let bounds = |region: &ReservedRegion| {
            (region.range.start().get() & !below, region.range.last().get() | below)
        };
        let mut next = Some(aperture.start().get());
        while let Some(first) = next.filter(|&first| first <= aperture.last().get()) {
            let regions = || reserved.iter().map(bounds);
            next = if let Some((_, last)) = regions().find(|&(start, last)| (start..=last).contains(&first)) {
                last.checked_add(1)
            } else {
                let ahead = regions().map(|(start, _)| start).filter(|&start| start > first).min();
                let last = ahead.map_or(u64::MAX, |start| start - 1).min(aperture.last().get());
                if let Ok(range) = IovaRange::from_bounds(Iova::new(first), Iova::new(last)) {
                    let phys = PhysAddr::new(first);
                    let interval = Interval { range, phys, attributes: Attributes::READ_WRITE };
                    self.mappings(|mappings| mappings.intervals.insert(&interval))
                        .map_err(|_| OutOfMemory)?;
                }
                last.checked_add(1)
            };
        }
        Ok(())
    }

    /// Notes all of `list`, or nothing. Returns whether the device has to be told.
    fn insert(&self, list: &[Mapping]) -> Result<bool, MapError> {
        let (mut left, mut done) = (self.pieces.of(list).peekable(), 0);
        let mut on_device = false;
        while left.peek().is_some() {
            let result = self.mappings(|mappings| {
                on_device = mappings.endpoints > 0;
                for interval in left.by_ref().take(CHUNK) {
                    mappings.intervals.insert(&interval)?;
                    done += 1;
                }
                Ok(())
            });
            if let Err(error) = result {
                self.remove(self.pieces.of(list).take(done));
                return Err(match error {
                    InsertError::Overlap(iova) => MapError::Overlap { iova },
                    InsertError::OutOfMemory => OutOfMemory.into(),
                });
            }
        }
        Ok(on_device)
    }

    /// Takes back what was noted.
    fn remove(&self, noted: impl Iterator<Item = Interval>) {
        let mut noted = noted.peekable();
        while noted.peek().is_some() {
            self.mappings(|mappings| {
                for interval in noted.by_ref().take(CHUNK) {
                    mappings.intervals.remove(&interval.range);
                }
            });
        }
    }

    fn map_on_device(&self, list: &[Mapping]) -> Result<(), MapError> {
        let Err(error) = self.request(self.pieces.of(list).map(|interval| self.map_request(&interval)))
        else {
            return Ok(());
        };
        let refusal = match error {
            RequestError::Refused(refusal) => refusal,
            RequestError::Sync(error) => return Err(error.into()),
        };
        log::warn!("virtio-iommu: domain {}: map refused: {refusal}", self.id.0);
        // Some pieces may have been mapped. Removing what is not there is no error (5.13.6.6).
        let wholes = Pieces::Whole.of(list);
        let undo = wholes.map(|interval| Request::Unmap { domain: self.id, range: interval.range });
        match (self.request(undo), refusal) {
            (Ok(()), Refusal::Status(Status::NOMEM)) => Err(OutOfMemory.into()),
            (Ok(()), Refusal::Status(Status::RANGE)) => {
                Err(MapError::OutOfRange { iova: list.first().map_or(Iova::new(0), |mapping| mapping.iova) })
            }
            // An overlap cannot be the reason, so the flags are (5.13.6.5.2).
            (Ok(()), Refusal::Status(Status::INVAL)) => Err(MapError::Attributes),
            _ => Err(SyncError::Faulted.into()),
        }
    }

    /// Makes requests and waits for all answers.
    fn request(&self, requests: impl Iterator<Item = Request>) -> Result<(), RequestError> {
        let batch = self.link.batch(Priority::Normal)?;
        batch.push(requests)?;
        batch.finish()
    }

    fn map_request(&self, interval: &Interval) -> Request {
        Request::Map {
            domain: self.id,
            range: interval.range,
            phys: interval.phys,
            flags: self.flags(interval.attributes),
        }
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
                Step::Gone(run, number) => {
                    gather.record(run.range, limits.page_sizes.trailing_zeros() as u8);
                    gather.raise_token(number);
                    bytes = bytes.saturating_add(run.bytes);
                }
                // The caller learns from the count that something is left, and from the sync why.
                Step::NotYet(request) => {
                    if self.link.wait_for_room(&request).is_err() {
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
        let Some(run) = mappings.intervals.first_run(range, RUN) else {
            return Step::Nothing;
        };
        let mut number = 0;
        if mappings.endpoints > 0 {
            let request = Request::Unmap { domain: self.id, range: run.range };
            match self.link.try_unmap(&request, &self.ledger) {
                Some(queued) => number = queued,
                None => return Step::NotYet(request),
            }
        }
        mappings.intervals.remove(&run.range);
        Step::Gone(run, number)
    }

    /// Waits until the device has forgotten what `gather` collected.
    pub(crate) fn wait_unmapped(&self, gather: &mut Gather) -> Result<(), SyncError> {
        gather.claim(self.key)?;
        let number = gather.token();
        if number > 0 && !self.link.is_faulted() {
            self.link.drain(&self.ledger, number)?;
        }
        if self.ledger.has_failed() || self.link.is_faulted() {
            return Err(SyncError::Faulted);
        }
        Ok(())
    }

    /// The sizes of mappings, as a bit mask in bytes.
    pub(crate) fn page_sizes(&self) -> u64 {
        self.pieces.page_sizes(self.link.limits.page_sizes)
    }

    pub(crate) fn iova_to_phys(&self, iova: Iova) -> Option<Translated> {
        self.mappings(|mappings| mappings.intervals.lookup(iova))
    }

    /// Waits until the device has answered everything about this domain. The gate is held exclusively.
    pub(crate) fn quiesce(&self) -> Result<(), SyncError> {
        if self.link.is_faulted() {
            return Err(SyncError::Faulted);
        }
        self.link.quiesce(self.id)
    }

    /// Makes all mappings on the device, where the domain has just come into being. The gate is held exclusively.
    pub(crate) fn replay(&self) -> Result<(), RequestError> {
        let batch = self.link.batch(Priority::Normal)?;
        let mut from = Some(Iova::new(0));
        while let Some(start) = from {
            let mut chunk = [None; CHUNK];
            self.mappings(|mappings| mappings.intervals.copy_from(start, &mut chunk));
            batch.push(chunk.iter().flatten().map(|interval| self.map_request(interval)))?;
            if batch.is_refused() {
                break;
            }
            from = chunk.last().and_then(Option::as_ref).and_then(|last| last.range.last().checked_add(1));
        }
        batch.finish()
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
    /// This run is removed; the request has this number, 0 if there is none.
    Gone(Run, u64),
    /// The request cannot be queued now.
    NotYet(Request),
    Nothing,
}

fn range_of(mapping: &Mapping) -> Option<IovaRange> {
    IovaRange::new(mapping.iova, mapping.memory.len()).ok()
}
