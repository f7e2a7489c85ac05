//! Memory mapped by value comes back only when the hardware has forgotten it.

#![expect(unsafe_code, reason = "an address space for the tests")]

use portcullis_hal::host::HostHal;
use portcullis_hal::wait::Timeout;
use portcullis_hal::{
    Arc, Attributes, FrameOrder, Frames, Gather, GatherBusy, IoSpace, Iova, IovaRange, MapError, Mapped,
    Mapping, PAGE_SIZE, QuarantineReason, SpaceKey, SyncError, SyncProof, Translated, UnmapError,
};
use std::collections::BTreeMap;
use std::sync::Mutex;

const LATE: Timeout = Timeout::new("CMDQ_CONS", 1, 1, 0);

/// A page-by-page map whose hardware can be told not to answer.
#[derive(Debug)]
struct Space {
    key: SpaceKey,
    hal: HostHal,
    pages: Mutex<BTreeMap<u64, Mapping>>,
    answers: Mutex<bool>,
}

impl Space {
    fn new(hal: &HostHal) -> Arc<Self> {
        let space = Self {
            key: SpaceKey::new(),
            hal: hal.clone(),
            pages: Mutex::default(),
            answers: Mutex::new(true),
        };
        Arc::try_new(space).unwrap()
    }
}

// SAFETY: there is no device behind this space.
unsafe impl IoSpace for Space {
    fn aperture(&self) -> IovaRange {
        IovaRange::new(Iova::new(0), 1 << 30).unwrap()
    }

    fn page_sizes(&self) -> u64 {
        PAGE_SIZE
    }

    unsafe fn map(&self, list: &[Mapping]) -> Result<(), MapError> {
        let mut pages = self.pages.lock().unwrap();
        for mapping in list {
            if pages.contains_key(&mapping.iova.get()) {
                return Err(MapError::Overlap { iova: mapping.iova });
            }
            pages.insert(mapping.iova.get(), *mapping);
        }
        Ok(())
    }

    unsafe fn unmap(&self, range: IovaRange, gather: &mut Gather) -> Result<u64, UnmapError> {
        gather.claim(self.key)?;
        let mut pages = self.pages.lock().unwrap();
        let mut bytes = 0;
        pages.retain(|&iova, mapping| {
            let inside = range.contains(Iova::new(iova));
            bytes += if inside { mapping.memory.len() } else { 0 };
            !inside
        });
        gather.record(range, 12);
        Ok(bytes)
    }

    fn sync(&self, gather: &mut Gather) -> Result<SyncProof, SyncError> {
        gather.claim(self.key)?;
        if !*self.answers.lock().unwrap() {
            gather.quarantine();
            return Err(LATE.into());
        }
        // SAFETY: no hardware caches anything.
        Ok(unsafe { gather.finish(&self.hal) })
    }

    fn iova_to_phys(&self, _iova: Iova) -> Option<Translated> {
        None
    }
}

fn frames(hal: &HostHal) -> Frames<HostHal> {
    Frames::zeroed(hal, FrameOrder::SINGLE).unwrap()
}

fn map(space: &Arc<Space>, hal: &HostHal, iova: u64) -> Mapped<Frames<HostHal>, Space> {
    Mapped::map(space, Iova::new(iova), frames(hal), Attributes::READ_WRITE).unwrap()
}

#[test]
fn a_strict_unmap_returns_the_memory() {
    let hal = HostHal::new();
    let space = Space::new(&hal);
    let mapped = map(&space, &hal, 0x1000);
    let phys = mapped.memory().phys();
    assert_eq!(mapped.unmap().unwrap().phys(), phys);
    assert_eq!(hal.frames_in_use(), 0);
}

#[test]
fn a_refused_mapping_returns_the_memory_with_the_reason() {
    let hal = HostHal::new();
    let space = Space::new(&hal);
    let first = map(&space, &hal, 0x1000);
    let iova = Iova::new(0x1000);
    let refused = Mapped::map(&space, iova, frames(&hal), Attributes::READ_WRITE).unwrap_err();
    assert_eq!(refused.error, MapError::Overlap { iova });
    drop(refused);
    assert_eq!(hal.frames_in_use(), 1);
    drop(first.unmap());
}

#[test]
fn dropping_a_mapping_or_its_memory_before_the_sync_leaks_and_never_frees() {
    let hal = HostHal::new();
    let space = Space::new(&hal);
    drop(map(&space, &hal, 0x1000));
    let mut gather = Gather::new();
    drop(map(&space, &hal, 0x2000).unmap_into(&mut gather).unwrap());
    let proof = space.sync(&mut gather).unwrap();
    drop(proof);
    assert_eq!(hal.frames_in_use(), 2);
}

#[test]
fn only_the_proof_of_the_same_round_gives_memory_back() {
    let hal = HostHal::new();
    let space = Space::new(&hal);
    let (mut early, mut late) = (Gather::new(), Gather::new());
    let first = map(&space, &hal, 0x1000).unmap_into(&mut early).unwrap();
    let second = map(&space, &hal, 0x2000).unmap_into(&mut late).unwrap();
    let early = space.sync(&mut early).unwrap();
    let second = second.reclaim(&early).unwrap_err();
    drop(first.reclaim(&early).unwrap());
    assert_eq!(hal.frames_in_use(), 1);
    let late = space.sync(&mut late).unwrap();
    drop(second.reclaim(&late).unwrap());
    assert_eq!(hal.frames_in_use(), 0);
}

#[test]
fn memory_is_quarantined_when_the_hardware_does_not_answer() {
    let hal = HostHal::new();
    let space = Space::new(&hal);
    let mapped = map(&space, &hal, 0x1000);
    *space.answers.lock().unwrap() = false;
    let quarantined = mapped.unmap().unwrap_err();
    assert_eq!(quarantined.reason, QuarantineReason::Sync(LATE.into()));
    let _ = quarantined;
    assert_eq!(hal.frames_in_use(), 1);
}

#[test]
fn memory_whose_mapping_somebody_else_took_out_is_quarantined() {
    let hal = HostHal::new();
    let space = Space::new(&hal);
    let mapped = map(&space, &hal, 0x1000);
    let range = mapped.range();
    portcullis_hal::host::unmap(&*space, range, &mut Gather::new()).unwrap();
    let quarantined = mapped.unmap().unwrap_err();
    assert_eq!(quarantined.reason, QuarantineReason::NotMapped);
    assert_eq!(hal.frames_in_use(), 1);
}

#[test]
fn a_gather_serves_one_domain_between_two_syncs() {
    let hal = HostHal::new();
    let (one, other) = (Space::new(&hal), Space::new(&hal));
    let mut gather = Gather::new();
    let range = IovaRange::new(Iova::new(0x1000), 0x1000).unwrap();
    portcullis_hal::host::unmap(&*one, range, &mut gather).unwrap();
    assert_eq!(portcullis_hal::host::unmap(&*other, range, &mut gather), Err(UnmapError::Gather(GatherBusy)));
    drop(one.sync(&mut gather).unwrap());
    assert_eq!(portcullis_hal::host::unmap(&*other, range, &mut gather), Ok(0));
    assert_eq!(gather.range(), Some(range));
}
