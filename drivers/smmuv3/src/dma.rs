//! The memory that the unit reads and writes by itself, and the contract of I/O address spaces: the crate's only
//! unsafe code.

#![expect(unsafe_code, reason = "queue rings shared with hardware, and the IoSpace contract")]

use crate::domain::SmmuDomain;
use crate::ring::RingSize;
use core::ptr::NonNull;
use portcullis_hal::{
    FrameOrder, Frames, Gather, Hal, IoSpace, Iova, IovaRange, MapError, Mapping, Mmio, OutOfMemory,
    PhysAddr, SyncError, SyncProof, TableWrites, Translated, UnmapError,
};
use volatile::VolatilePtr;

/// A ring of entries of `WORDS` 64-bit words that the driver and the unit share.
pub(crate) struct Ring<H: Hal, const WORDS: usize> {
    /// `None` once the frames have been given up because the unit may still use them.
    frames: Option<Frames<H>>,
    size: RingSize,
    writes: TableWrites,
}

impl<H: Hal, const WORDS: usize> Ring<H, WORDS> {
    const ENTRY_BYTES: usize = WORDS * size_of::<u64>();

    /// A ring of zeros.
    pub(crate) fn new(hal: &H, size: RingSize, writes: TableWrites) -> Result<Self, OutOfMemory> {
        let bytes = size.entries() * Self::ENTRY_BYTES as u64;
        let frames = Frames::zeroed(hal, FrameOrder::for_bytes(bytes).ok_or(OutOfMemory)?)?;
        if writes == TableWrites::Cleaned {
            frames.clean(0, bytes as usize);
        }
        Ok(Self { frames: Some(frames), size, writes })
    }

    /// The number of entries.
    pub(crate) fn size(&self) -> RingSize {
        self.size
    }

    /// Where the unit finds the ring.
    pub(crate) fn phys(&self) -> Option<PhysAddr> {
        self.frames.as_ref().map(Frames::phys)
    }

    /// Keeps the frames from being freed, for ever.
    pub(crate) fn leak(&mut self) {
        if let Some(frames) = self.frames.take() {
            let _ = frames.into_raw();
        }
    }

    fn offset(&self, position: u64) -> usize {
        self.size.slot(position) as usize * Self::ENTRY_BYTES
    }

    fn entry(&self, frames: &Frames<H>, position: u64) -> VolatilePtr<'_, [u64; WORDS]> {
        let base: NonNull<u8> = frames.hal().phys_to_virt(frames.phys());
        // SAFETY: the slot is below the number of entries, for which the frames were allocated, so the pointer is in
        // bounds and aligned to a word. The frames live as long as `self`, and nobody makes references into them:
        // CPUs take turns under the owner's lock, and the unit is what volatile accesses are for.
        unsafe { VolatilePtr::new(base.add(self.offset(position)).cast()) }
    }

    /// Writes an entry; it is in memory before the next doorbell.
    pub(crate) fn write(&self, position: u64, entry: [u64; WORDS]) {
        let Some(frames) = &self.frames else { return };
        self.entry(frames, position).write(entry);
        if self.writes == TableWrites::Cleaned {
            frames.clean(self.offset(position), Self::ENTRY_BYTES);
        }
    }

    /// Reads an entry that the unit has written.
    pub(crate) fn read(&self, position: u64) -> [u64; WORDS] {
        let Some(frames) = &self.frames else {
            return [0; WORDS];
        };
        if self.writes == TableWrites::Cleaned {
            // Drops the line that an earlier read of the slot left in the caches.
            frames.clean(self.offset(position), Self::ENTRY_BYTES);
        }
        self.entry(frames, position).read()
    }
}

// SAFETY:
// - Hardware reaches a domain's memory only through its page table, which holds what was mapped; the other kinds have
//   a table that somebody else vouched for (`SharedTable`), no memory at all, or, for identity, are asked for by name.
// - `unmap` reports what the page table took out, and `sync` returns a proof only after `invalidate_gather` saw every
//   unit that the domain is attached to complete an invalidation of all that was recorded.
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
        match self.invalidate_gather(gather) {
            // SAFETY: `invalidate_gather` returned after each unit completed the invalidations of what the gather
            // recorded; there are no device TLBs, as ATS is never enabled. The frames come from the page table, which
            // allocates from this `hal`.
            Ok(()) => Ok(unsafe { gather.finish(self.hal()) }),
            Err(error) => {
                gather.quarantine();
                Err(error)
            }
        }
    }

    fn iova_to_phys(&self, iova: Iova) -> Option<Translated> {
        self.translate(iova)
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
    fn a_leaked_ring_stays_allocated_and_is_not_touched_any_more() {
        let hal = HostHal::new();
        let mut ring: Ring<HostHal, 4> = Ring::new(&hal, RingSize::new(0), TableWrites::Cached).unwrap();
        ring.write(0, [1; 4]);
        ring.leak();
        assert_eq!((ring.phys(), ring.read(0)), (None, [0; 4]));
        drop(ring);
        assert_eq!(hal.frames_in_use(), 1);
    }
}
