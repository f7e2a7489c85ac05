//! Where a domain's translations may be cached.

use crate::queue::Ticket;
use crate::unit::Inner;
use alloc::vec::Vec;
use portcullis_hal::{Arc, DomainId, Hal, Mmio, OutOfMemory, SyncError};
use spin::Mutex;

/// A unit on which a domain is in use, or about to be.
struct Target<H: Hal, M: Mmio> {
    unit: Arc<Inner<H, M>>,
    did: DomainId,
    /// The number of endpoints attached.
    users: u32,
}

/// A domain's targets. A target keeps its place as long as it exists, so that a walk over the places sees each one
/// that is there from beginning to end.
///
/// Changes are made by the unit concerned, under its attachment lock.
pub(crate) struct Targets<H: Hal, M: Mmio> {
    places: Mutex<Vec<Option<Target<H, M>>>>,
}

impl<H: Hal, M: Mmio> Targets<H, M> {
    pub(crate) const fn new() -> Self {
        Self { places: Mutex::new(Vec::new()) }
    }

    /// The domain id on a unit, if the domain is in use there.
    pub(crate) fn did(&self, unit: &Arc<Inner<H, M>>) -> Option<DomainId> {
        self.with(unit, |target| target.did)
    }

    /// Makes room for one more target.
    pub(crate) fn reserve(&self) -> Result<(), OutOfMemory> {
        let mut places = self.places.lock();
        if places.iter().all(Option::is_some) {
            places.try_reserve(1).map_err(|_| OutOfMemory)?;
            places.push(None);
        }
        Ok(())
    }

    /// Adds a target without users; there is room by [`reserve`](Self::reserve), or nothing is added and the
    /// result is `None`.
    pub(crate) fn add(&self, unit: &Arc<Inner<H, M>>, did: DomainId) -> Option<()> {
        let mut places = self.places.lock();
        let place = places.iter_mut().find(|place| place.is_none())?;
        *place = Some(Target { unit: unit.clone(), did, users: 0 });
        Some(())
    }

    /// Counts one more endpoint.
    pub(crate) fn join(&self, unit: &Arc<Inner<H, M>>) {
        self.with(unit, |target| target.users = target.users.saturating_add(1));
    }

    /// Counts one endpoint less, and returns how many are left.
    pub(crate) fn leave(&self, unit: &Arc<Inner<H, M>>) -> u32 {
        self.with(unit, |target| {
            target.users = target.users.saturating_sub(1);
            target.users
        })
        .unwrap_or(0)
    }

    /// Removes a target, whose translations the unit has forgotten.
    pub(crate) fn remove(&self, unit: &Arc<Inner<H, M>>) {
        let removed = {
            let mut places = self.places.lock();
            let place = places.iter_mut().find(|place| is_at(place, unit));
            place.and_then(Option::take)
        };
        drop(removed);
    }

    /// The units with the domain's ids there. No lock is held between two of them: a target that is added during the
    /// walk may be missed, and then it is the attaching CPU that sees the page table as it is now.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Arc<Inner<H, M>>, DomainId)> {
        let target = |target: &Target<H, M>| (target.unit.clone(), target.did);
        (0..).map_while(move |index| Some(self.places.lock().get(index)?.as_ref().map(target))).flatten()
    }

    fn with<R>(&self, unit: &Arc<Inner<H, M>>, f: impl FnOnce(&mut Target<H, M>) -> R) -> Option<R> {
        let mut places = self.places.lock();
        places.iter_mut().find(|place| is_at(place, unit)).and_then(Option::as_mut).map(f)
    }
}

/// How many units work at an invalidation at the same time.
const AT_ONCE: usize = 8;

impl<H: Hal, M: Mmio + 'static> Targets<H, M> {
    /// Calls `submit` for each target and then waits for the batches, if it made any. A unit that fails keeps none of
    /// the others from being told; the result is the last error.
    pub(crate) fn sync_all(
        &self,
        mut submit: impl FnMut(&Inner<H, M>, DomainId) -> Result<Option<Ticket>, SyncError>,
    ) -> Result<(), SyncError> {
        let mut result = Ok(());
        let mut note = |step: Result<(), SyncError>| {
            if step.is_err() {
                result = step;
            }
        };
        let mut targets = self.iter();
        loop {
            let mut pending = [const { None }; AT_ONCE];
            let mut visited = 0;
            for (place, (unit, did)) in pending.iter_mut().zip(targets.by_ref()) {
                visited += 1;
                match submit(&unit, did) {
                    Ok(ticket) => *place = ticket.map(|ticket| (unit, ticket)),
                    Err(error) => note(Err(error)),
                }
            }
            for (unit, ticket) in pending.into_iter().flatten() {
                note(unit.wait(ticket));
            }
            if visited < AT_ONCE {
                return result;
            }
        }
    }
}

fn is_at<H: Hal, M: Mmio>(place: &Option<Target<H, M>>, unit: &Arc<Inner<H, M>>) -> bool {
    place.as_ref().is_some_and(|target| Arc::ptr_eq(&target.unit, unit))
}
