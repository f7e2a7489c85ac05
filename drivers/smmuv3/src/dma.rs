//! The memory that the unit reads and writes by itself, and the contract of I/O address spaces: the crate's only
//! unsafe code.

#![expect(unsafe_code, reason = "queue rings shared with hardware, and the IoSpace contract")]

use crate::cmdq::{Pair, Tried};
use crate::domain::{Attempt, SmmuDomain};
use crate::ring::RingSize;
use crate::targets::Target;
use core::ops::ControlFlow;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};
use portcullis_hal::producers::{Company, Overrun, Publisher};
use portcullis_hal::{
    FrameOrder, Frames, Gather, Hal, HarvestError, InterruptMask, IoSpace, Iova, IovaRange, MapError,
    Mapping, Mmio, NoTables, OutOfMemory, PAGE_SIZE, PhysAddr, PhysRange, Progress, ResizeError, SyncError,
    SyncProof, TableWrites, Translated, UnmapError, Usage, barrier,
};
use volatile::VolatilePtr;

/// The size of a cache line, in bytes.
const LINE_BYTES: usize = 64;

/// A ring of entries of `WORDS` 64-bit words that the driver and the unit share.
pub(crate) struct Ring<H: Hal, const WORDS: usize> {
    /// `None` once the frames have been given up because the unit may still use them.
    frames: Option<Frames<H>>,
    /// Where CPUs see the frames.
    base: NonNull<u8>,
    size: RingSize,
    writes: TableWrites,
}

// SAFETY: the frames belong to the ring wherever it is, and `base` is where every CPU sees them.
unsafe impl<H: Hal, const WORDS: usize> Send for Ring<H, WORDS> {}
// SAFETY: as above; who may access which slot when is what `entry` says.
unsafe impl<H: Hal, const WORDS: usize> Sync for Ring<H, WORDS> {}

impl<H: Hal, const WORDS: usize> Ring<H, WORDS> {
    const ENTRY_BYTES: usize = WORDS * size_of::<u64>();

    /// A ring of zeros.
    pub(crate) fn new(hal: &H, size: RingSize, writes: TableWrites) -> Result<Self, OutOfMemory> {
        let bytes = size.entries() * Self::ENTRY_BYTES as u64;
        let frames = Frames::zeroed(hal, FrameOrder::for_bytes(bytes).ok_or(OutOfMemory)?)?;
        if writes == TableWrites::Cleaned {
            frames.clean(0, bytes as usize);
        }
        let base = hal.phys_to_virt(frames.phys());
        Ok(Self { frames: Some(frames), base, size, writes })
    }

    /// The number of entries.
    pub(crate) fn size(&self) -> RingSize {
        self.size
    }

    /// Where the unit finds the ring.
    pub(crate) fn phys(&self) -> Option<PhysAddr> {
        self.frames.as_ref().map(Frames::phys)
    }

    /// The memory of the ring.
    pub(crate) fn range(&self) -> Option<PhysRange> {
        self.frames.as_ref().map(Frames::range)
    }

    /// Keeps the frames from being freed, for ever.
    pub(crate) fn leak(&mut self) {
        if let Some(frames) = self.frames.take() {
            let _ = frames.into_raw();
        }
    }

    #[inline]
    fn offset(&self, position: u64) -> usize {
        self.size.slot(position) as usize * Self::ENTRY_BYTES
    }

    /// The words of the entry at `position`.
    #[inline]
    fn words(&self, position: u64) -> [VolatilePtr<'_, u64>; WORDS] {
        // SAFETY: the slot is below the number of entries, for which the frames were allocated, so the pointer is in
        // bounds and aligned to a word. The frames live as long as `self`, or for ever, and nobody makes references into
        // them. CPUs
        // take turns at a slot (who reserved it, then the unit, then under their owner's lock who recovers from an error
        // or reads what the unit wrote), and the unit is what volatile accesses are for.
        unsafe {
            let first = self.base.add(self.offset(position)).cast();
            core::array::from_fn(|word| VolatilePtr::new(first.add(word)))
        }
    }

    #[inline]
    fn store(&self, position: u64, entry: &[u64; WORDS]) {
        for (word, value) in self.words(position).iter().zip(entry) {
            word.write(*value);
        }
    }

    /// Writes an entry of a ring that the unit only reads; it is in memory before the next doorbell.
    #[inline]
    pub(crate) fn write(&self, position: u64, entry: [u64; WORDS]) {
        self.store(position, &entry);
        if self.writes == TableWrites::Cleaned {
            self.clean(position);
        }
    }

    /// [Writes](Self::write) an entry and the next one.
    #[inline]
    pub(crate) fn write_two(&self, position: u64, [one, two]: [[u64; WORDS]; 2]) {
        let next = position.wrapping_add(1);
        self.store(position, &one);
        self.store(next, &two);
        if self.writes == TableWrites::Cleaned {
            self.clean(position);
            self.clean(next);
        }
    }

    /// Has the entries from `position` on [fetched](barrier::fetch_to_write), a page of them at most.
    pub(crate) fn fetch(&self, position: u64) {
        let (per_line, most) = (LINE_BYTES / Self::ENTRY_BYTES, PAGE_SIZE / Self::ENTRY_BYTES as u64);
        for ahead in (0..self.size.entries().min(most)).step_by(per_line) {
            if let Some(first) = self.words(position.wrapping_add(ahead)).first() {
                barrier::fetch_to_write(first.as_raw_ptr());
            }
        }
    }

    /// Writes the slot at `position` back to memory.
    #[inline]
    fn clean(&self, position: u64) {
        if let Some(frames) = &self.frames {
            frames.clean(self.offset(position), Self::ENTRY_BYTES);
        }
    }

    /// Reads an entry that the unit has written.
    pub(crate) fn read(&self, position: u64) -> [u64; WORDS] {
        if self.writes == TableWrites::Cleaned {
            // Drops the line that an earlier read of the slot left in the caches. It is as in memory: CPUs write nothing
            // to a ring that the unit writes.
            self.clean(position);
        }
        self.words(position).map(VolatilePtr::read)
    }
}

/// A word of memory to which the unit writes messages, and which it snoops.
pub(crate) struct MessageWord<H: Hal> {
    /// `None` once the frame has been given up because the unit may still write there.
    frame: Option<Frames<H>>,
    address: PhysAddr,
    word: NonNull<AtomicU32>,
}

// SAFETY: the frame belongs to the word wherever it is, and `word` is where every CPU sees it.
unsafe impl<H: Hal> Send for MessageWord<H> {}
// SAFETY: as above; the word is only read, in one piece.
unsafe impl<H: Hal> Sync for MessageWord<H> {}

impl<H: Hal> MessageWord<H> {
    /// Zero, at first.
    pub(crate) fn new(hal: &H) -> Result<Self, OutOfMemory> {
        let frame = Frames::zeroed(hal, FrameOrder::SINGLE)?;
        let address = frame.phys();
        let word = hal.phys_to_virt(address).cast();
        Ok(Self { frame: Some(frame), address, word })
    }

    /// Where the unit writes.
    #[inline]
    pub(crate) fn address(&self) -> PhysAddr {
        self.address
    }

    /// The memory of the word.
    pub(crate) fn range(&self) -> Option<PhysRange> {
        self.frame.as_ref().map(Frames::range)
    }

    /// The last message.
    #[inline]
    pub(crate) fn read(&self) -> u32 {
        // SAFETY: the word is the first of a frame that lives as long as `self`, or for ever, and is accessed atomically
        // only: by CPUs here, and by the unit.
        unsafe { self.word.as_ref() }.load(Ordering::Acquire)
    }

    /// Keeps the frame from being freed, for ever.
    pub(crate) fn leak(&mut self) {
        if let Some(frame) = self.frame.take() {
            let _ = frame.into_raw();
        }
    }
}

// SAFETY:
// - Hardware reaches a domain's memory only through its page table, which holds what was mapped; the other kinds have
//   a table that somebody else vouched for (`SharedTable`), no memory at all, or, for identity, are asked for by name.
// - The page table changes the sizes of its leaves, and nothing of what they map; as long as a gather holds old leaves,
//   `resizes` makes each invalidation one of the whole space.
// - `unmap` reports what the page table took out, and `sync` returns a proof only after `invalidate_at_once` or
//   `invalidate_gather` saw every unit that the domain is attached to complete an invalidation of all that was recorded.
unsafe impl<H: Hal, M: Mmio + 'static> IoSpace for SmmuDomain<H, M> {
    fn aperture(&self) -> IovaRange {
        self.aperture_range()
    }

    fn page_sizes(&self) -> u64 {
        self.leaf_sizes()
    }

    unsafe fn map(&self, list: &[Mapping]) -> Result<(), MapError> {
        self.map_list(list)
    }

    unsafe fn unmap(&self, range: IovaRange, gather: &mut Gather) -> Result<u64, UnmapError> {
        self.unmap_range(range, gather)
    }

    fn sync(&self, gather: &mut Gather) -> Result<SyncProof, SyncError> {
        gather.claim(self.key())?;
        match self.invalidate_at_once(gather) {
            // SAFETY: `invalidate_at_once` confirms this after each unit completed the invalidations of what the gather
            // recorded, in its TLB and then in those of the devices that its entries allow translation requests.
            Attempt::Confirmed if gather.has_tables() => unsafe { self.finish_with_tables(gather) },
            // SAFETY: as above, and there are no tables.
            Attempt::Confirmed => Ok(unsafe { gather.finish_leaves() }),
            // The rest in functions of their own, each of which the last thing here is to call: so this one keeps all in
            // registers, and saves none.
            Attempt::Begun(target, Tried::Sent(pair)) => self.sync_sent(gather, target, pair),
            Attempt::Begun(target, Tried::InCompany(pair, company, mask)) => {
                self.sync_in_company(gather, target, pair, company, mask)
            }
            Attempt::Begun(target, Tried::NoRoom(overrun, mask)) => {
                self.sync_after_overrun(gather, target, overrun, mask)
            }
            Attempt::Begun(target, Tried::Done) => self.sync_caches(gather, target),
            Attempt::Begun(_, Tried::Disturbed) | Attempt::Untried => self.sync_everywhere(gather),
        }
    }

    fn iova_to_phys(&self, iova: Iova) -> Option<Translated> {
        self.translate(iova)
    }

    fn split_ends(&self, range: IovaRange, gather: &mut Gather) -> Result<Progress, ResizeError> {
        self.resize(gather, |tables, gather| tables.split_ends(range, gather))
    }

    fn split(&self, range: IovaRange, largest: u64, gather: &mut Gather) -> Result<Progress, ResizeError> {
        self.resize(gather, |tables, gather| tables.split(range, largest, gather))
    }

    fn join(&self, range: IovaRange, gather: &mut Gather) -> Result<Progress, ResizeError> {
        self.resize(gather, |tables, gather| tables.join(range, gather))
    }

    fn visit(
        &self,
        range: IovaRange,
        visitor: &mut dyn FnMut(Mapping) -> ControlFlow<()>,
    ) -> Result<(), NoTables> {
        self.visit_range(range, visitor)
    }

    fn harvest(
        &self,
        range: IovaRange,
        wanted: Usage,
        gather: &mut Gather,
        visitor: &mut dyn FnMut(Mapping, Usage),
    ) -> Result<(), HarvestError> {
        self.harvest_range(range, wanted, gather, visitor)
    }
}

impl<H: Hal, M: Mmio + 'static> SmmuDomain<H, M> {
    /// [`sync`](IoSpace::sync) of whatever there is.
    #[cold]
    #[inline(never)]
    fn sync_everywhere(&self, gather: &mut Gather) -> Result<SyncProof, SyncError> {
        let result = self.invalidate_everywhere(gather);
        // SAFETY: it asked every unit, and the devices.
        unsafe { self.conclude(gather, result) }
    }

    /// [`sync`](IoSpace::sync) of whatever there is, after a reservation for which there was no room.
    #[cold]
    #[inline(never)]
    fn sync_after_overrun(
        &self,
        gather: &mut Gather,
        target: &Target<H, M>,
        overrun: Overrun,
        mask: InterruptMask,
    ) -> Result<SyncProof, SyncError> {
        target.port.give_up(overrun, mask);
        self.sync_everywhere(gather)
    }

    /// The rest of a sync whose only command others publish, or may.
    #[cold]
    #[inline(never)]
    fn sync_in_company(
        &self,
        gather: &mut Gather,
        target: &Target<H, M>,
        pair: Pair,
        company: Company,
        mask: InterruptMask,
    ) -> Result<SyncProof, SyncError> {
        let ticket = target.port.publish_in_company(pair, company, mask);
        let result = target.complete_unit(&ticket, gather.range());
        // SAFETY: the target is the only unit, and `complete_unit` asks the devices.
        unsafe { self.conclude(gather, result) }
    }

    /// The rest of a sync whose only command is on its way.
    #[cold]
    #[inline(never)]
    fn sync_sent(
        &self,
        gather: &mut Gather,
        target: &Target<H, M>,
        pair: Pair,
    ) -> Result<SyncProof, SyncError> {
        let result = target.complete_unit(&pair.published(Publisher::Own), gather.range());
        // SAFETY: the target is the only unit, and `complete_unit` asks the devices.
        unsafe { self.conclude(gather, result) }
    }

    /// The rest of a sync that is only the devices' to do.
    #[cold]
    #[inline(never)]
    fn sync_caches(&self, gather: &mut Gather, target: &Target<H, M>) -> Result<SyncProof, SyncError> {
        let result = target.forget_caches(gather.range());
        // SAFETY: the target is the only unit, and has done its part.
        unsafe { self.conclude(gather, result) }
    }

    /// Ends the round of `gather`, where there are tables to free.
    ///
    /// # Safety
    ///
    /// All hardware has confirmed the invalidation of what it recorded.
    #[cold]
    #[inline(never)]
    unsafe fn finish_with_tables(&self, gather: &mut Gather) -> Result<SyncProof, SyncError> {
        // SAFETY: as the caller vouches; the frames come from the page table, which allocates from this `hal`.
        Ok(unsafe { gather.finish(self.hal()) })
    }

    /// Ends the round of `gather`.
    ///
    /// # Safety
    ///
    /// With `Ok`, all hardware has confirmed the invalidation of what it recorded.
    unsafe fn conclude(
        &self,
        gather: &mut Gather,
        result: Result<(), SyncError>,
    ) -> Result<SyncProof, SyncError> {
        match result {
            Ok(()) => {
                self.resizes().end(gather);
                // SAFETY: as the caller vouches; the frames come from the page table, which allocates from this `hal`.
                Ok(unsafe { gather.finish(self.hal()) })
            }
            Err(error) => {
                gather.quarantine();
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_hal::host::HostHal;

    #[test]
    fn a_ring_wraps_into_its_first_slot_and_cleans_what_it_writes() {
        let hal = HostHal::new();
        let size = RingSize::new(2);
        let ring: Ring<HostHal, 2> = Ring::new(&hal, size, TableWrites::Cleaned).unwrap();
        let before = hal.cleaned_lines();
        for position in 0..6 {
            ring.write(position, [position, !position]);
        }
        assert_eq!(hal.cleaned_lines() - before, 6);
        let slots: Vec<u64> = (0..4).map(|slot| ring.read(slot)[0]).collect();
        assert_eq!(slots, [4, 5, 2, 3]);
        assert_eq!(ring.read(1), [5, !5]);
        drop(ring);
        assert_eq!(hal.frames_in_use(), 0);
    }

    #[test]
    fn a_leaked_ring_stays_allocated() {
        let hal = HostHal::new();
        let mut ring: Ring<HostHal, 4> = Ring::new(&hal, RingSize::new(0), TableWrites::Cached).unwrap();
        ring.write(0, [1; 4]);
        ring.leak();
        assert_eq!((ring.phys(), ring.read(0)), (None, [1; 4]));
        drop(ring);
        assert_eq!(hal.frames_in_use(), 1);
    }
}
