//! The allocator of PASIDs: namespaces, and sets with an owner's quota in them.

use alloc::vec::Vec;
use portcullis_hal::{OutOfMemory, Pasid, list};
use thiserror::Error;

/// A set of a namespace: the PASIDs of one owner, a VM say. A number is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PasidSetId(u64);

/// A guest's name for one of its PASIDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestPasid(pub Pasid);

/// What a set may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PasidSetSpec {
    /// The least PASID.
    pub min: Pasid,
    /// The greatest PASID.
    pub max: Pasid,
    /// How many at most.
    pub quota: u32,
}

/// Why the allocator refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PasidError {
    /// There is no such set.
    #[error("no such set of PASIDs")]
    UnknownSet,
    /// The range is empty or reaches beyond the namespace.
    #[error("PASIDs {min} to {max} do not fit the namespace")]
    Range {
        /// The least PASID asked for.
        min: Pasid,
        /// The greatest.
        max: Pasid,
    },
    /// The set holds as many as it may.
    #[error("the quota of {0} PASIDs is used up")]
    Quota(u32),
    /// All PASIDs of the set's range are out.
    #[error("no PASID is free")]
    Exhausted,
    /// The guest's name is taken in this set.
    #[error("the guest's pasid {0} is in use")]
    GuestInUse(Pasid),
    /// The set still holds PASIDs.
    #[error("the set still holds {0} PASIDs")]
    SetInUse(u32),
    /// The PASID is not out.
    #[error("pasid {0} is not allocated")]
    NotAllocated(Pasid),
    /// A device still uses the PASID, or its unit has not confirmed that it forgot it.
    #[error("pasid {0} is attached or quarantined")]
    Attached(Pasid),
    /// No memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// A namespace of PASIDs: one for the system, where devices share work queues, or one for each device. PASID 0 is never
/// handed out.
///
/// Whoever gives a PASID back has detached it from every device and seen the hardware confirm that; see
/// [`Iommu::release_pasid`](crate::Iommu::release_pasid), which checks it.
///
/// ```
/// use portcullis_hal::Pasid;
/// use portcullis_iommu::{PasidError, PasidSetSpec, PasidSpace};
///
/// // The narrowest unit and device have 8 bits.
/// let mut space = PasidSpace::new(Pasid::new(255)?);
/// let vm = space.add_set(PasidSetSpec { min: Pasid::new(1)?, max: Pasid::new(255)?, quota: 2 })?;
/// let (one, other) = (space.allocate(vm)?, space.allocate(vm)?);
/// assert!(one != other);
/// assert_eq!(space.allocate(vm), Err(PasidError::Quota(2)));
/// space.release(one)?;
/// space.allocate(vm)?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PasidSpace {
    max: Pasid,
    next_set: u64,
    sets: Vec<Set>,
    /// In ascending order of PASID.
    out: Vec<Lease>,
}

#[derive(Debug)]
struct Set {
    id: PasidSetId,
    spec: PasidSetSpec,
    held: u32,
    /// Where the next search starts, so that a PASID rests before it is used again.
    hint: u32,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    pasid: Pasid,
    set: PasidSetId,
    guest: Option<GuestPasid>,
}

impl PasidSpace {
    /// An empty namespace of the PASIDs up to `max`: what the narrowest unit and device that use it can do.
    pub const fn new(max: Pasid) -> Self {
        Self { max, next_set: 0, sets: Vec::new(), out: Vec::new() }
    }

    /// Makes a set. Sets may overlap; no PASID is out in two of them.
    ///
    /// # Errors
    ///
    /// [`PasidError::Range`], [`PasidError::OutOfMemory`].
    pub fn add_set(&mut self, spec: PasidSetSpec) -> Result<PasidSetId, PasidError> {
        if spec.min > spec.max || spec.max > self.max {
            return Err(PasidError::Range { min: spec.min, max: spec.max });
        }
        let id = PasidSetId(self.next_set);
        list::push(&mut self.sets, Set { id, spec, held: 0, hint: spec.min.get() })?;
        self.next_set += 1;
        Ok(id)
    }

    /// Removes an empty set.
    ///
    /// # Errors
    ///
    /// [`PasidError::UnknownSet`], [`PasidError::SetInUse`].
    pub fn remove_set(&mut self, id: PasidSetId) -> Result<(), PasidError> {
        let at = self.sets.iter().position(|set| set.id == id).ok_or(PasidError::UnknownSet)?;
        match self.sets.get(at).map_or(0, |set| set.held) {
            0 => {
                list::remove(&mut self.sets, at);
                Ok(())
            }
            held => Err(PasidError::SetInUse(held)),
        }
    }

    /// Takes a free PASID for a set.
    ///
    /// # Errors
    ///
    /// [`PasidError::UnknownSet`], [`PasidError::Quota`], [`PasidError::Exhausted`], [`PasidError::OutOfMemory`].
    pub fn allocate(&mut self, set: PasidSetId) -> Result<Pasid, PasidError> {
        self.take(set, self.max, None)
    }

    /// Takes a free PASID for a set that a device with narrow PASIDs can use too: `max` at most.
    ///
    /// # Errors
    ///
    /// As for [`allocate`](Self::allocate).
    pub fn allocate_up_to(&mut self, set: PasidSetId, max: Pasid) -> Result<Pasid, PasidError> {
        self.take(set, max, None)
    }

    /// Takes a free PASID for a set, and notes the name that the set's guest has for it.
    ///
    /// # Errors
    ///
    /// As for [`allocate`](Self::allocate), and [`PasidError::GuestInUse`].
    pub fn allocate_for_guest(&mut self, set: PasidSetId, guest: GuestPasid) -> Result<Pasid, PasidError> {
        if self.host_pasid(set, guest).is_some() {
            return Err(PasidError::GuestInUse(guest.0));
        }
        self.take(set, self.max, Some(guest))
    }

    fn take(&mut self, id: PasidSetId, max: Pasid, guest: Option<GuestPasid>) -> Result<Pasid, PasidError> {
        let set = self.sets.iter_mut().find(|set| set.id == id).ok_or(PasidError::UnknownSet)?;
        if set.held >= set.spec.quota {
            return Err(PasidError::Quota(set.spec.quota));
        }
        self.out.try_reserve(1).map_err(|_| OutOfMemory)?;
        let (min, max) = (set.spec.min.get(), set.spec.max.min(max).get());
        let (pasid, at) = free(&self.out, set.hint, max)
            .or_else(|| free(&self.out, min, set.hint.saturating_sub(1).min(max)))
            .ok_or(PasidError::Exhausted)?;
        list::insert_reserved(&mut self.out, at, Lease { pasid, set: id, guest }).map_err(|_| OutOfMemory)?;
        set.held += 1;
        set.hint = if pasid == set.spec.max { min } else { pasid.get() + 1 };
        Ok(pasid)
    }

    /// Gives a PASID back. Its former users cannot reach anything with it any more.
    ///
    /// # Errors
    ///
    /// [`PasidError::NotAllocated`].
    pub fn release(&mut self, pasid: Pasid) -> Result<(), PasidError> {
        let at = self.place(pasid).map_err(|_| PasidError::NotAllocated(pasid))?;
        let lease = list::remove(&mut self.out, at).ok_or(PasidError::NotAllocated(pasid))?;
        if let Some(set) = self.sets.iter_mut().find(|set| set.id == lease.set) {
            set.held -= 1;
        }
        Ok(())
    }

    fn place(&self, pasid: Pasid) -> Result<usize, usize> {
        self.out.binary_search_by_key(&pasid, |lease| lease.pasid)
    }

    fn lease(&self, pasid: Pasid) -> Option<&Lease> {
        self.out.get(self.place(pasid).ok()?)
    }

    /// The set that holds a PASID.
    pub fn owner(&self, pasid: Pasid) -> Option<PasidSetId> {
        Some(self.lease(pasid)?.set)
    }

    /// The guest's name for a PASID, if it has one.
    pub fn guest_pasid(&self, pasid: Pasid) -> Option<GuestPasid> {
        self.lease(pasid)?.guest
    }

    /// The PASID that the guest of a set calls `guest`.
    pub fn host_pasid(&self, set: PasidSetId, guest: GuestPasid) -> Option<Pasid> {
        self.out.iter().find(|lease| lease.set == set && lease.guest == Some(guest)).map(|lease| lease.pasid)
    }

    /// The PASIDs that a set holds, in ascending order.
    pub fn held_by(&self, set: PasidSetId) -> impl Iterator<Item = Pasid> {
        self.out.iter().filter(move |lease| lease.set == set).map(|lease| lease.pasid)
    }
}

/// The first number in `from..=to` that is not out, and its place in the list.
fn free(out: &[Lease], from: u32, to: u32) -> Option<(Pasid, usize)> {
    let mut at = out.partition_point(|lease| lease.pasid.get() < from);
    let mut number = from;
    while out.get(at).is_some_and(|lease| lease.pasid.get() == number) {
        at += 1;
        number += 1;
    }
    if number > to {
        return None;
    }
    Some((Pasid::new(number).ok()?, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_hal::host::Random;

    fn pasid(value: u32) -> Pasid {
        Pasid::new(value).unwrap()
    }

    fn spec(min: u32, max: u32, quota: u32) -> PasidSetSpec {
        PasidSetSpec { min: pasid(min), max: pasid(max), quota }
    }

    #[test]
    fn a_set_stays_in_its_range_and_quota() {
        let mut space = PasidSpace::new(pasid(0xf_ffff));
        let set = space.add_set(spec(5, 9, 3)).unwrap();
        let held: Vec<Pasid> = (0..3).map(|_| space.allocate(set).unwrap()).collect();
        assert_eq!(held, [5, 6, 7].map(pasid));
        assert_eq!(space.allocate(set), Err(PasidError::Quota(3)));
        assert!(space.held_by(set).eq(held));
    }

    #[test]
    fn sets_that_overlap_share_no_pasid_and_run_dry_together() {
        let mut space = PasidSpace::new(pasid(255));
        let (one, other) = (space.add_set(spec(1, 8, 8)).unwrap(), space.add_set(spec(4, 10, 8)).unwrap());
        let mut all: Vec<Pasid> = (0..4).map(|_| space.allocate(one).unwrap()).collect();
        all.extend(core::iter::from_fn(|| space.allocate(other).ok()));
        assert_eq!(space.allocate(one), Err(PasidError::Exhausted));
        assert_eq!(space.allocate(other), Err(PasidError::Exhausted));
        for pasid in &all {
            assert!(space.owner(*pasid).is_some());
        }
        all.sort();
        assert_eq!(all, (1..=10).map(pasid).collect::<Vec<_>>());
    }

    #[test]
    fn a_pasid_given_back_rests_while_others_are_free() {
        let mut space = PasidSpace::new(pasid(255));
        let set = space.add_set(spec(1, 3, 3)).unwrap();
        let first = space.allocate(set).unwrap();
        space.release(first).unwrap();
        assert_eq!(
            [(); 4].map(|()| space.allocate(set)),
            [Ok(pasid(2)), Ok(pasid(3)), Ok(pasid(1)), Err(PasidError::Quota(3))]
        );
        assert_eq!(space.release(pasid(9)), Err(PasidError::NotAllocated(pasid(9))));
    }

    #[test]
    fn a_set_reaches_neither_zero_nor_beyond_the_namespace_and_goes_when_it_is_empty() {
        let mut space = PasidSpace::new(pasid(63));
        assert!(matches!(space.add_set(spec(1, 64, 1)), Err(PasidError::Range { .. })));
        assert!(matches!(space.add_set(spec(3, 2, 1)), Err(PasidError::Range { .. })));
        let set = space.add_set(spec(63, 63, 1)).unwrap();
        let only = space.allocate(set).unwrap();
        assert_eq!(space.remove_set(set), Err(PasidError::SetInUse(1)));
        space.release(only).unwrap();
        space.remove_set(set).unwrap();
        assert_eq!(
            (space.remove_set(set), space.allocate(set)),
            (Err(PasidError::UnknownSet), Err(PasidError::UnknownSet))
        );
        assert_ne!(space.add_set(spec(1, 1, 1)).unwrap(), set);
    }

    #[test]
    fn a_narrow_device_gets_a_narrow_pasid_wherever_the_search_stands() {
        let mut space = PasidSpace::new(pasid(0xf_ffff));
        let set = space.add_set(spec(1, 0xf_ffff, 100)).unwrap();
        let first: Vec<_> = (0..5).map(|_| space.allocate(set).unwrap().get()).collect();
        assert_eq!(first, [1, 2, 3, 4, 5]);
        space.release(pasid(2)).unwrap();
        assert_eq!(space.allocate_up_to(set, pasid(3)), Ok(pasid(2)));
        assert_eq!(space.allocate_up_to(set, pasid(3)), Err(PasidError::Exhausted));
        assert_eq!(space.allocate(set), Ok(pasid(6)));
    }

    #[test]
    fn a_guests_names_are_its_own() {
        let mut space = PasidSpace::new(pasid(255));
        let (one, other) = (space.add_set(spec(1, 99, 9)).unwrap(), space.add_set(spec(1, 99, 9)).unwrap());
        let name = GuestPasid(pasid(7));
        let host = space.allocate_for_guest(one, name).unwrap();
        let theirs = space.allocate_for_guest(other, name).unwrap();
        assert_ne!(host, theirs);
        assert_eq!(space.allocate_for_guest(one, name), Err(PasidError::GuestInUse(pasid(7))));
        assert_eq!((space.host_pasid(one, name), space.guest_pasid(theirs)), (Some(host), Some(name)));
        space.release(host).unwrap();
        assert_eq!((space.host_pasid(one, name), space.guest_pasid(host)), (None, None));
        let plain = space.allocate(one).unwrap();
        assert_eq!(space.guest_pasid(plain), None);
    }

    #[test]
    fn a_pasid_leads_to_the_set_that_holds_it_and_to_nobody_when_it_is_free() {
        let mut space = PasidSpace::new(pasid(63));
        let (one, other) = (space.add_set(spec(2, 5, 4)).unwrap(), space.add_set(spec(4, 9, 4)).unwrap());
        let (a, b) = (space.allocate(one).unwrap(), space.allocate(other).unwrap());
        assert_eq!((space.owner(a), space.owner(b)), (Some(one), Some(other)));
        assert_eq!((space.owner(pasid(3)), space.owner(pasid(9))), (None, None));
        space.release(a).unwrap();
        assert_eq!((space.owner(a), space.owner(b)), (None, Some(other)));
        assert!(Pasid::new(0).is_err());
    }

    /// Against a list of what is out.
    #[test]
    fn whatever_is_taken_and_given_back_each_set_keeps_its_range_its_quota_and_its_names() {
        let mut numbers = Random::new(11);
        let mut random = |below: u32| numbers.below(below.into()) as u32;
        let mut space = PasidSpace::new(pasid(40));
        let specs = [spec(1, 40, 12), spec(8, 20, 30), spec(20, 20, 3), spec(30, 40, 5)];
        let sets = specs.map(|spec| space.add_set(spec).unwrap());
        let mut out: Vec<(Pasid, usize, Option<GuestPasid>)> = Vec::new();
        let mut ends = [0_u32; 4];
        for _ in 0..20_000 {
            let at = random(4) as usize;
            let (set, spec) = (sets[at], specs[at]);
            let held = out.iter().filter(|(_, owner, _)| *owner == at).count() as u32;
            let guest = GuestPasid(pasid(1 + random(6)));
            let named = |entry: &&(Pasid, usize, Option<GuestPasid>)| entry.1 == at && entry.2 == Some(guest);
            let act = random(8);
            if act < 3 && !out.is_empty() {
                let (pasid, ..) = out.swap_remove(random(out.len() as u32) as usize);
                space.release(pasid).unwrap();
                assert_eq!(space.release(pasid), Err(PasidError::NotAllocated(pasid)));
                continue;
            }
            let max = if matches!(act, 3 | 4) { pasid(1 + random(40)) } else { space.max };
            let (result, name) = match act {
                3 | 4 => (space.allocate_up_to(set, max), None),
                5 | 6 => (space.allocate_for_guest(set, guest), Some(guest)),
                _ => (space.allocate(set), None),
            };
            let is_free = |number: u32| !out.iter().any(|(pasid, ..)| pasid.get() == number);
            let room = (spec.min.get()..=spec.max.min(max).get()).any(is_free);
            ends[match result {
                Ok(got) => {
                    assert!(held < spec.quota && (spec.min..=spec.max.min(max)).contains(&got));
                    assert!(is_free(got.get()) && !(name.is_some() && out.iter().any(|entry| named(&entry))));
                    out.push((got, at, name));
                    0
                }
                Err(PasidError::GuestInUse(taken)) => {
                    assert!(name == Some(GuestPasid(taken)) && out.iter().any(|entry| named(&entry)));
                    1
                }
                Err(PasidError::Quota(quota)) => {
                    assert!(quota == spec.quota && held == quota);
                    2
                }
                Err(PasidError::Exhausted) => {
                    assert!(!room, "{spec:?} up to {max}");
                    3
                }
                Err(error) => panic!("{error}"),
            }] += 1;
            for (pasid, owner, guest) in &out {
                assert_eq!((space.owner(*pasid), space.guest_pasid(*pasid)), (Some(sets[*owner]), *guest));
                if let Some(guest) = guest {
                    assert_eq!(space.host_pasid(sets[*owner], *guest), Some(*pasid));
                }
            }
            assert_eq!(sets.map(|set| space.held_by(set).count()).iter().sum::<usize>(), out.len());
        }
        assert!(ends.iter().all(|count| *count > 100), "{ends:?}");
    }
}
