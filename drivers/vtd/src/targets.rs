//! Where a domain's translations may be cached.

use crate::forget::{Batch, Requester};
use crate::invalidate::{Changed, Descriptor, RangeInvalidation, Tag};
use crate::queue::{self, Ticket};
use crate::unit::Inner;
use alloc::vec::Vec;
use core::iter;
use core::sync::atomic::{AtomicUsize, Ordering};
use portcullis_hal::{Arc, Hal, IovaRange, Mmio, OutOfMemory, SyncError, list};
use spin::Mutex;

/// Translations of a domain on a unit.
struct Target<H: Hal, M: Mmio> {
    unit: Arc<Inner<H, M>>,
    tag: Tag,
    /// The number of PASIDs of endpoints that are attached under the tag.
    users: u32,
}

/// A device TLB that may hold translations of a domain.
struct DeviceTlb<H: Hal, M: Mmio> {
    unit: Arc<Inner<H, M>>,
    tlb: Requester,
}

/// A list in which what is there keeps its place, so that a walk over the places sees each one that is there from
/// beginning to end.
type Places<T> = Vec<Option<T>>;

/// Where a domain's translations may be cached.
///
/// Changes are made by the unit concerned, under its attachment lock.
pub(crate) struct Targets<H: Hal, M: Mmio> {
    places: Mutex<Places<Target<H, M>>>,
    devices: Mutex<Places<DeviceTlb<H, M>>>,
    /// How many device TLBs there are.
    device_count: AtomicUsize,
}

impl<H: Hal, M: Mmio> Targets<H, M> {
    pub(crate) const fn new() -> Self {
        Self {
            places: Mutex::new(Vec::new()),
            devices: Mutex::new(Vec::new()),
            device_count: AtomicUsize::new(0),
        }
    }

    /// A tag under which the domain is in use on a unit: the one of this PASID rather than another one.
    pub(crate) fn find(&self, unit: &Arc<Inner<H, M>>, pasid: u32) -> Option<Tag> {
        let places = self.places.lock();
        let here = || places.iter().flatten().filter(|target| Arc::ptr_eq(&target.unit, unit));
        let found = here().find(|target| target.tag.pasid == pasid).or_else(|| here().next())?;
        Some(found.tag)
    }

    /// How many use the domain under a tag.
    pub(crate) fn users(&self, unit: &Arc<Inner<H, M>>, tag: Tag) -> u32 {
        self.with(unit, tag, |target| target.users).unwrap_or(0)
    }

    /// Makes room for one more target and `devices` device TLBs.
    pub(crate) fn reserve(&self, devices: usize) -> Result<(), OutOfMemory> {
        make_room(&mut self.places.lock(), 1)?;
        make_room(&mut self.devices.lock(), devices)
    }

    /// Adds a target without users. There is room by [`reserve`](Self::reserve).
    pub(crate) fn add(&self, unit: &Arc<Inner<H, M>>, tag: Tag) {
        let tag = tag.of_translations();
        if let Some(place) = self.places.lock().iter_mut().find(|place| place.is_none()) {
            *place = Some(Target { unit: unit.clone(), tag, users: 0 });
        }
    }

    /// Counts one more user.
    pub(crate) fn join(&self, unit: &Arc<Inner<H, M>>, tag: Tag) {
        self.with(unit, tag, |target| target.users = target.users.saturating_add(1));
    }

    /// Counts one user less. Without any, the target is removed and the result is true: the unit has forgotten what was
    /// tagged so.
    pub(crate) fn leave(&self, unit: &Arc<Inner<H, M>>, tag: Tag) -> bool {
        let left = self.with(unit, tag, |target| {
            target.users = target.users.saturating_sub(1);
            target.users
        });
        if left == Some(0) {
            self.remove(unit, tag);
        }
        left == Some(0)
    }

    /// Removes a target.
    pub(crate) fn remove(&self, unit: &Arc<Inner<H, M>>, tag: Tag) {
        let tag = tag.of_translations();
        let removed = {
            let mut places = self.places.lock();
            places.iter_mut().find(|place| is_at(place, unit, tag)).and_then(Option::take)
        };
        // The unit may be dropped with it.
        drop(removed);
    }

    /// Adds a device TLB, if it is not there. There is room by [`reserve`](Self::reserve).
    pub(crate) fn add_device(&self, unit: &Arc<Inner<H, M>>, tlb: Requester) {
        let mut devices = self.devices.lock();
        if devices.iter().flatten().any(|device| device.tlb == tlb && Arc::ptr_eq(&device.unit, unit)) {
            return;
        }
        if let Some(place) = devices.iter_mut().find(|place| place.is_none()) {
            *place = Some(DeviceTlb { unit: unit.clone(), tlb });
            self.device_count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Removes a device TLB, if it is there; it holds nothing of the domain any more.
    pub(crate) fn remove_device(&self, unit: &Arc<Inner<H, M>>, tlb: Requester) {
        let removed = {
            let mut devices = self.devices.lock();
            let found = devices.iter_mut().find(|place| {
                place.as_ref().is_some_and(|device| device.tlb == tlb && Arc::ptr_eq(&device.unit, unit))
            });
            found.and_then(Option::take)
        };
        if removed.is_some() {
            self.device_count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The units, with the tags there. No lock is held between two of them: a target that is added during the walk may
    /// be missed, and then it is the attaching CPU that sees the page table as it is now.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Arc<Inner<H, M>>, Tag)> {
        let target = |target: &Target<H, M>| (target.unit.clone(), target.tag);
        (0..).map_while(move |index| Some(self.places.lock().get(index)?.as_ref().map(target))).flatten()
    }

    /// The target, if there is exactly one.
    fn only(&self) -> Option<(Arc<Inner<H, M>>, Tag)> {
        let places = self.places.lock();
        let mut targets = places.iter().flatten();
        let target = targets.next()?;
        targets.next().is_none().then(|| (target.unit.clone(), target.tag))
    }

    /// The device TLBs, as [`iter`](Self::iter) gives the targets.
    fn devices(&self) -> impl Iterator<Item = (Arc<Inner<H, M>>, Requester)> {
        let device = |device: &DeviceTlb<H, M>| (device.unit.clone(), device.tlb);
        (0..).map_while(move |index| Some(self.devices.lock().get(index)?.as_ref().map(device))).flatten()
    }

    fn with<R>(
        &self,
        unit: &Arc<Inner<H, M>>,
        tag: Tag,
        f: impl FnOnce(&mut Target<H, M>) -> R,
    ) -> Option<R> {
        let tag = tag.of_translations();
        let mut places = self.places.lock();
        places.iter_mut().find(|place| is_at(place, unit, tag)).and_then(Option::as_mut).map(f)
    }
}

/// How many batches are on their way at the same time.
const AT_ONCE: usize = 8;

/// A batch on its way to a unit.
type Awaited<H, M> = (Arc<Inner<H, M>>, Ticket);

/// Batches on their way to units, waited for in groups. A unit that fails keeps none of the others from being told.
struct Flight<H: Hal, M: Mmio> {
    pending: [Option<Awaited<H, M>>; AT_ONCE],
    result: Result<(), SyncError>,
}

impl<H: Hal, M: Mmio + 'static> Flight<H, M> {
    fn new() -> Self {
        Self { pending: [const { None }; AT_ONCE], result: Ok(()) }
    }

    fn submit(&mut self, unit: Arc<Inner<H, M>>, batch: impl queue::Batch) {
        match unit.submit(batch) {
            Ok(ticket) => self.add(unit, ticket),
            Err(error) => self.result = Err(error),
        }
    }

    fn add(&mut self, unit: Arc<Inner<H, M>>, ticket: Ticket) {
        if self.pending.iter().all(Option::is_some) {
            self.land();
        }
        if let Some(place) = self.pending.iter_mut().find(|place| place.is_none()) {
            *place = Some((unit, ticket));
        }
    }

    /// Waits for all.
    fn land(&mut self) {
        for (unit, ticket) in self.pending.iter_mut().filter_map(Option::take) {
            if let Err(error) = unit.wait(ticket) {
                self.result = Err(error);
            }
        }
    }

    fn finish(mut self) -> Result<(), SyncError> {
        self.land();
        self.result
    }
}

/// A batch for one unit after the other, sent when another one's turn comes or it is full.
struct Sender<H: Hal, M: Mmio> {
    flight: Flight<H, M>,
    unit: Option<Arc<Inner<H, M>>>,
    batch: Batch,
}

impl<H: Hal, M: Mmio + 'static> Sender<H, M> {
    fn add(&mut self, unit: Arc<Inner<H, M>>, descriptors: impl Iterator<Item = Descriptor> + Clone) {
        let same = self.unit.as_ref().is_some_and(|other| Arc::ptr_eq(other, &unit));
        if !same || self.batch.room() < descriptors.clone().count() {
            self.send();
            self.unit = Some(unit);
        }
        descriptors.for_each(|descriptor| self.batch.push(descriptor));
    }

    fn send(&mut self) {
        if let Some(unit) = self.unit.take() {
            self.flight.submit(unit, self.batch.descriptors().iter().copied());
            self.batch = Batch::new();
        }
    }
}

impl<H: Hal, M: Mmio + 'static> Targets<H, M> {
    /// Drops the translations of `range`, or all, from all caches of all units and devices.
    pub(crate) fn invalidate(&self, range: Option<IovaRange>, changed: Changed) -> Result<(), SyncError> {
        let of = |unit: &Inner<H, M>, tag| match range {
            Some(range) => RangeInvalidation::new(&unit.features, tag, range, changed),
            None => RangeInvalidation::whole(&unit.features, tag),
        };
        // A device is added here before it can ask for a translation, with a full fence in between.
        if self.device_count.load(Ordering::Relaxed) == 0
            && let Some((unit, tag)) = self.only()
        {
            let ticket = unit.submit(of(&unit, tag))?;
            return unit.wait(ticket);
        }
        // The devices' turn comes when all units know: what a unit has cached, a device could ask for again. Behind
        // the IOTLB in the same batch stands a fence, and each batch ends with one.
        let mut sender = Sender { flight: Flight::new(), unit: None, batch: Batch::new() };
        for (unit, tag) in self.iter() {
            let batch = of(&unit, tag);
            sender.add(unit, batch);
        }
        for (unit, tlb) in self.devices() {
            let descriptor = tlb.invalidation(&unit.features, range);
            sender.add(unit, iter::once(descriptor));
        }
        sender.send();
        sender.flight.finish()
    }

    /// Calls `tell` for each target, and waits for the batch that it may have submitted.
    pub(crate) fn tell(
        &self,
        mut tell: impl FnMut(&Inner<H, M>, Tag) -> Result<Option<Ticket>, SyncError>,
    ) -> Result<(), SyncError> {
        let mut flight = Flight::new();
        for (unit, tag) in self.iter() {
            match tell(&unit, tag) {
                Ok(Some(ticket)) => flight.add(unit, ticket),
                Ok(None) => {}
                Err(error) => flight.result = Err(error),
            }
        }
        flight.finish()
    }
}

fn make_room<T>(places: &mut Places<T>, count: usize) -> Result<(), OutOfMemory> {
    let free = places.iter().filter(|place| place.is_none()).count();
    for _ in free..count {
        list::push(places, None)?;
    }
    Ok(())
}

fn is_at<H: Hal, M: Mmio>(place: &Option<Target<H, M>>, unit: &Arc<Inner<H, M>>, tag: Tag) -> bool {
    place.as_ref().is_some_and(|target| target.tag == tag && Arc::ptr_eq(&target.unit, unit))
}
