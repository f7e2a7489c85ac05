//! Where a domain's translations may be cached.
//!
//! Unmaps read the list in place, without a lock, and attachments replace it. What is on it is shared by the old list and
//! the new one, and says itself whether it counts: so a detachment, which must not fail, strikes its target out where it
//! stands, and the next attachment on the unit takes it again, with whatever tag, and allocates nothing.
//!
//! An unmap that is about to read a target while it is struck out and taken again may find the old tag, or the new one.
//! Either will do: what had the old tag was forgotten before it was struck out, and what has the new one is read from
//! memory after the full fence behind which the entry is published, so after the unmap changed it, if the unmap did not
//! see that tag.

use crate::forget::{Batch, Requester};
use crate::invalidate::{
    Changed, Descriptor, Invalidation, PageWord, RangeInvalidation, Tag, TagKind, TagWord,
};
use crate::queue::{self, Ticket};
use crate::unit::Inner;
use alloc::vec::Vec;
use core::iter;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use portcullis_hal::snapshot::{Reading, Snapshot};
use portcullis_hal::{Arc, Hal, IovaRange, Mmio, OutOfMemory, SyncError, list};

/// Translations of a domain on a unit.
struct Target<H: Hal, M: Mmio> {
    unit: Arc<Inner<H, M>>,
    kind: TagKind,
    /// A [`TagWord`].
    tag: AtomicU64,
    /// The [`PageWord`] of the tag.
    page_word: AtomicU64,
    /// The masks that one descriptor can have, by their number; none while nobody uses the tag.
    masks: AtomicU32,
    /// How the unit is told.
    invalidation: Invalidation,
    in_use: AtomicBool,
    /// The number of PASIDs of endpoints that are attached under the tag.
    users: AtomicU32,
}

impl<H: Hal, M: Mmio> Target<H, M> {
    fn new(unit: &Arc<Inner<H, M>>, kind: TagKind) -> Self {
        let invalidation = Invalidation::new(&unit.features, kind);
        Self {
            unit: unit.clone(),
            kind,
            tag: AtomicU64::new(0),
            page_word: AtomicU64::new(0),
            masks: AtomicU32::new(0),
            invalidation,
            in_use: AtomicBool::new(false),
            users: AtomicU32::new(0),
        }
    }

    #[inline]
    fn is_in_use(&self) -> bool {
        self.in_use.load(Ordering::Relaxed)
    }

    #[inline]
    fn word(&self) -> TagWord {
        TagWord(self.tag.load(Ordering::Relaxed))
    }

    fn tag(&self) -> Tag {
        self.word().tag(self.kind)
    }

    /// Whether the translations are in use under this tag.
    fn is(&self, unit: &Arc<Inner<H, M>>, tag: Tag) -> bool {
        self.is_in_use() && self.word() == TagWord::new(tag) && Arc::ptr_eq(&self.unit, unit)
    }

    fn is_free_on(&self, unit: &Arc<Inner<H, M>>) -> bool {
        !self.is_in_use() && Arc::ptr_eq(&self.unit, unit)
    }

    fn invalidation(&self, range: Option<IovaRange>, changed: Changed) -> RangeInvalidation {
        self.invalidation.of(self.word(), range, changed)
    }

    /// What drops the pages in `range`, if one descriptor does and drops no others.
    #[inline]
    fn exactly(&self, range: IovaRange, changed: Changed) -> Option<Descriptor> {
        // Acquire: with the masks there is a word, of this tag or an older one.
        let masks = self.masks.load(Ordering::Acquire);
        PageWord(self.page_word.load(Ordering::Relaxed)).exactly(range, masks, changed)
    }

    fn set_in_use(&self, tag: Tag) {
        let word = TagWord::new(tag);
        self.tag.store(word.0, Ordering::Relaxed);
        if let Some((page_word, masks)) = self.invalidation.of_pages(word) {
            self.page_word.store(page_word.0, Ordering::Relaxed);
            self.masks.store(masks, Ordering::Release);
        }
        self.in_use.store(true, Ordering::Relaxed);
    }

    fn strike_out(&self) {
        self.masks.store(0, Ordering::Relaxed);
        self.in_use.store(false, Ordering::Relaxed);
    }
}

/// A device TLB that may hold translations of a domain.
struct DeviceTlb<H: Hal, M: Mmio> {
    unit: Arc<Inner<H, M>>,
    tlb: Requester,
    in_use: AtomicBool,
}

impl<H: Hal, M: Mmio> DeviceTlb<H, M> {
    fn is(&self, unit: &Arc<Inner<H, M>>, tlb: Requester) -> bool {
        self.tlb == tlb && Arc::ptr_eq(&self.unit, unit)
    }

    fn is_in_use(&self) -> bool {
        self.in_use.load(Ordering::Relaxed)
    }
}

/// What unmaps read.
struct List<H: Hal, M: Mmio> {
    targets: Vec<Arc<Target<H, M>>>,
    devices: Vec<Arc<DeviceTlb<H, M>>>,
}

impl<H: Hal, M: Mmio> List<H, M> {
    const fn new() -> Self {
        Self { targets: Vec::new(), devices: Vec::new() }
    }

    /// The target, if there is one alone, and no device TLB.
    #[inline]
    fn only(&self) -> Option<&Target<H, M>> {
        match (&*self.targets, &*self.devices) {
            ([target], []) => Some(target),
            _ => None,
        }
    }

    fn target(&self, unit: &Arc<Inner<H, M>>, tag: Tag) -> Option<&Target<H, M>> {
        self.targets.iter().find(|target| target.is(unit, tag)).map(|target| &**target)
    }

    fn device(&self, unit: &Arc<Inner<H, M>>, tlb: Requester) -> Option<&DeviceTlb<H, M>> {
        self.devices.iter().find(|device| device.is(unit, tlb)).map(|device| &**device)
    }
}

/// Where a domain's translations may be cached.
///
/// What concerns a unit is changed under that unit's attachment lock.
pub(crate) struct Targets<H: Hal, M: Mmio> {
    list: Snapshot<List<H, M>>,
}

impl<H: Hal, M: Mmio> Targets<H, M> {
    pub(crate) fn new() -> Result<Self, OutOfMemory> {
        Ok(Self { list: Snapshot::new(List::new())? })
    }

    /// Whether the domain is in use on a unit, or was.
    pub(crate) fn know(&self, unit: &Arc<Inner<H, M>>) -> bool {
        self.list.read().targets.iter().any(|target| Arc::ptr_eq(&target.unit, unit))
    }

    /// A tag under which the domain is in use on a unit: the one of this PASID rather than another one.
    pub(crate) fn find(&self, unit: &Arc<Inner<H, M>>, pasid: u32) -> Option<Tag> {
        let list = self.list.read();
        let mut here = list
            .targets
            .iter()
            .filter(|target| target.is_in_use() && Arc::ptr_eq(&target.unit, unit))
            .map(|target| target.tag());
        let first = here.next()?;
        Some(if first.pasid == pasid { first } else { here.find(|tag| tag.pasid == pasid).unwrap_or(first) })
    }

    /// How many use the domain under a tag.
    pub(crate) fn users(&self, unit: &Arc<Inner<H, M>>, tag: Tag) -> u32 {
        let list = self.list.read();
        let target = list.target(unit, tag);
        target.map_or(0, |target| target.users.load(Ordering::Relaxed))
    }

    /// Makes sure that a target for a new tag of this kind, if there is to be one, and device TLBs of a unit are on the
    /// list, in use or not, and of the unit nothing else that is not in use.
    pub(crate) fn reserve(
        &self,
        unit: &Arc<Inner<H, M>>,
        new: Option<TagKind>,
        devices: impl Iterator<Item = Requester> + Clone,
    ) -> Result<(), OutOfMemory> {
        let keeps_device = |device: &DeviceTlb<H, M>| {
            device.is_in_use()
                || !Arc::ptr_eq(&device.unit, unit)
                || devices.clone().any(|tlb| device.is(unit, tlb))
        };
        let is_done = |list: &List<H, M>| {
            let mut free = list.targets.iter().filter(|target| target.is_free_on(unit));
            free.next().map(|target| target.kind) == new
                && free.next().is_none()
                && list.devices.iter().all(|device| keeps_device(device))
                && devices.clone().all(|tlb| list.device(unit, tlb).is_some())
        };
        if is_done(&self.list.read()) {
            return Ok(());
        }
        self.list.replace(|old| {
            let mut made = List::new();
            for target in old.targets.iter().filter(|target| !target.is_free_on(unit)) {
                list::push(&mut made.targets, target.clone())?;
            }
            if let Some(kind) = new {
                let free = old.targets.iter().find(|target| target.is_free_on(unit) && target.kind == kind);
                let target =
                    free.map_or_else(|| Arc::try_new(Target::new(unit, kind)), |free| Ok(free.clone()));
                list::push(&mut made.targets, target?)?;
            }
            for device in old.devices.iter().filter(|device| keeps_device(device)) {
                list::push(&mut made.devices, device.clone())?;
            }
            for tlb in devices.clone() {
                if made.device(unit, tlb).is_none() {
                    let device = DeviceTlb { unit: unit.clone(), tlb, in_use: AtomicBool::new(false) };
                    list::push(&mut made.devices, Arc::try_new(device)?)?;
                }
            }
            Ok(made)
        })
    }

    /// Puts a target in use that has no users yet; there is one by [`reserve`](Self::reserve). Before an entry is
    /// published that leads to the domain, a full fence has to follow.
    pub(crate) fn add(&self, unit: &Arc<Inner<H, M>>, tag: Tag) {
        let list = self.list.read();
        if let Some(target) = list.targets.iter().find(|target| target.is_free_on(unit)) {
            target.set_in_use(tag);
        }
    }

    /// Counts one more user.
    pub(crate) fn join(&self, unit: &Arc<Inner<H, M>>, tag: Tag) {
        self.with(unit, tag, |target| {
            let users = target.users.load(Ordering::Relaxed).saturating_add(1);
            target.users.store(users, Ordering::Relaxed);
        });
    }

    /// Counts one user less. Without any, the target is not in use any more and the result is true: the unit has
    /// forgotten what was tagged so.
    pub(crate) fn leave(&self, unit: &Arc<Inner<H, M>>, tag: Tag) -> bool {
        let left = self.with(unit, tag, |target| {
            let users = target.users.load(Ordering::Relaxed).saturating_sub(1);
            target.users.store(users, Ordering::Relaxed);
            if users == 0 {
                target.strike_out();
            }
            users
        });
        left == Some(0)
    }

    /// Puts a device TLB in use, which is there by [`reserve`](Self::reserve). Before the device may ask for
    /// translations, a full fence has to follow.
    pub(crate) fn add_device(&self, unit: &Arc<Inner<H, M>>, tlb: Requester) {
        if let Some(device) = self.list.read().device(unit, tlb) {
            device.in_use.store(true, Ordering::Relaxed);
        }
    }

    /// Strikes a device TLB out, if it is there; it holds nothing of the domain any more.
    pub(crate) fn remove_device(&self, unit: &Arc<Inner<H, M>>, tlb: Requester) {
        if let Some(device) = self.list.read().device(unit, tlb) {
            device.in_use.store(false, Ordering::Relaxed);
        }
    }

    /// Calls `look` for each tag in use.
    pub(crate) fn each<E>(&self, mut look: impl FnMut(&Inner<H, M>, Tag) -> Result<(), E>) -> Result<(), E> {
        let list = self.list.read();
        let mut targets = list.targets.iter().filter(|target| target.is_in_use());
        targets.try_for_each(|target| look(&target.unit, target.tag()))
    }

    fn with<R>(&self, unit: &Arc<Inner<H, M>>, tag: Tag, f: impl FnOnce(&Target<H, M>) -> R) -> Option<R> {
        self.list.read().target(unit, tag).map(f)
    }
}

/// How many batches are on their way at the same time.
const AT_ONCE: usize = 8;

/// Batches on their way to units, waited for in groups. A unit that fails keeps none of the others from being told.
struct Flight<'a, H: Hal, M: Mmio> {
    pending: [Option<(&'a Inner<H, M>, Ticket)>; AT_ONCE],
    result: Result<(), SyncError>,
}

impl<'a, H: Hal, M: Mmio + 'static> Flight<'a, H, M> {
    fn new() -> Self {
        Self { pending: [const { None }; AT_ONCE], result: Ok(()) }
    }

    fn submit(&mut self, unit: &'a Inner<H, M>, batch: impl queue::Batch) {
        match unit.submit(batch) {
            Ok(ticket) => self.add(unit, ticket),
            Err(error) => self.result = Err(error),
        }
    }

    fn add(&mut self, unit: &'a Inner<H, M>, ticket: Ticket) {
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

/// The most descriptors that are [few](List::few): as a rule an IOTLB's and a device's.
const FEW: usize = 4;

/// The most descriptors that a [`Sender`] collects.
const COLLECTED: usize = 24;

/// A batch for one unit after the other, sent when another one's turn comes or it is full.
struct Sender<'a, H: Hal, M: Mmio> {
    flight: Flight<'a, H, M>,
    unit: Option<&'a Inner<H, M>>,
    batch: Batch<COLLECTED>,
}

impl<'a, H: Hal, M: Mmio + 'static> Sender<'a, H, M> {
    fn new() -> Self {
        Self { flight: Flight::new(), unit: None, batch: Batch::new() }
    }

    fn add(&mut self, unit: &'a Inner<H, M>, descriptors: impl Iterator<Item = Descriptor> + Clone) {
        let same = self.unit.is_some_and(|other| core::ptr::eq(other, unit));
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
    /// The usual case of [`invalidate`](Self::invalidate): one unit, which works, no device TLB, and a page, a leaf or the
    /// range of a table, so one descriptor. The targets are read behind a full fence.
    #[inline(always)]
    pub(crate) fn only_unit(
        &self,
        range: IovaRange,
        changed: Changed,
    ) -> Option<(Reading<'_, Inner<H, M>>, Descriptor)> {
        let target = Reading::filter_map(self.list.read(), List::only)?;
        let descriptor = target.exactly(range, changed)?;
        let works = |unit: &&Inner<H, M>| !unit.is_faulted();
        let unit = Reading::filter_map(target, |target| Some(&*target.unit).filter(works))?;
        Some((unit, descriptor))
    }

    /// Drops the translations of `range`, or all, from all caches of all units and devices. The targets are read behind a
    /// full fence.
    pub(crate) fn invalidate(&self, range: Option<IovaRange>, changed: Changed) -> Result<(), SyncError> {
        self.list.read().invalidate(range, changed)
    }

    /// Calls `tell` for each target, and waits for the batch that it may have submitted. It is given what makes such a
    /// batch.
    pub(crate) fn tell(
        &self,
        mut tell: impl FnMut(
            &Inner<H, M>,
            TagKind,
            &dyn Fn(Option<IovaRange>, Changed) -> RangeInvalidation,
        ) -> Result<Option<Ticket>, SyncError>,
    ) -> Result<(), SyncError> {
        let list = self.list.read();
        let mut flight = Flight::new();
        for target in list.targets.iter().filter(|target| target.is_in_use()) {
            match tell(&target.unit, target.kind, &|range, changed| target.invalidation(range, changed)) {
                Ok(Some(ticket)) => flight.add(&target.unit, ticket),
                Ok(None) => {}
                Err(error) => flight.result = Err(error),
            }
        }
        flight.finish()
    }
}

impl<H: Hal, M: Mmio + 'static> List<H, M> {
    /// See [`Targets::invalidate`].
    fn invalidate(&self, range: Option<IovaRange>, changed: Changed) -> Result<(), SyncError> {
        if let Some(target) = self.only() {
            if let Some(descriptor) = range.and_then(|range| target.exactly(range, changed)) {
                return target.unit.run(iter::once(descriptor));
            }
            return match target.is_in_use() {
                true => target.unit.run(target.invalidation(range, changed)),
                false => Ok(()),
            };
        }
        // The devices' turn comes when all units know: what a unit has cached, a device could ask for again. Behind
        // the IOTLB in the same batch stands a fence, and each batch ends with one.
        if let Some((unit, batch)) = self.few(range, changed) {
            return unit.run(batch.descriptors().iter().copied());
        }
        let mut sender = Sender::new();
        for target in self.targets.iter().filter(|target| target.is_in_use()) {
            sender.add(&target.unit, target.invalidation(range, changed));
        }
        for device in self.devices.iter().filter(|device| device.is_in_use()) {
            let descriptor = device.tlb.invalidation(&device.unit.features, range);
            sender.add(&device.unit, iter::once(descriptor));
        }
        sender.send();
        sender.flight.finish()
    }

    /// What the unit that is in use has to forget with its devices, if there is but one and this is not much.
    fn few(&self, range: Option<IovaRange>, changed: Changed) -> Option<(&Inner<H, M>, Batch<FEW>)> {
        let unit = &self.targets.iter().find(|target| target.is_in_use())?.unit;
        let mut batch = Batch::new();
        for target in self.targets.iter().filter(|target| target.is_in_use()) {
            let exactly = range.and_then(|range| target.exactly(range, changed));
            if !Arc::ptr_eq(&target.unit, unit) || batch.room() == 0 {
                return None;
            }
            batch.push(exactly?);
        }
        for device in self.devices.iter().filter(|device| device.is_in_use()) {
            if !Arc::ptr_eq(&device.unit, unit) || batch.room() == 0 {
                return None;
            }
            batch.push(device.tlb.invalidation(&unit.features, range));
        }
        Some((unit, batch))
    }
}
