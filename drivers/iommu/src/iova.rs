//! A small allocator of I/O virtual addresses.

use alloc::vec::Vec;
use portcullis_hal::{Iova, IovaRange, OutOfMemory, list};
use thiserror::Error;

/// Why no addresses were handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IovaError {
    /// No free range is large enough.
    #[error("no I/O virtual addresses of that size are free")]
    Exhausted,
    /// The size or the alignment is zero, or the alignment no power of two.
    #[error("bad size or alignment")]
    BadRequest,
    /// No memory for the book-keeping.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// Hands out disjoint ranges of an aperture, from the top, never the first page (so that address zero stays an error).
///
/// A plain list of free ranges: right for tens of live ranges per device, linear in their number.
///
/// ```
/// use portcullis_hal::{Iova, IovaRange};
/// use portcullis_iommu::IovaAllocator;
///
/// let bounds = |first, last| IovaRange::from_bounds(Iova::new(first), Iova::new(last));
/// // What `IoSpace::aperture` says of the domain, without what `Device::reserved` says of the device.
/// let mut iovas = IovaAllocator::new(bounds(0, 0xffff_ffff)?, &[bounds(0xfee0_0000, 0xfeef_ffff)?])?;
/// // Aligned to its size, so that one large page maps it.
/// let buffer = iovas.take(2 << 20, 2 << 20)?;
/// assert_eq!(buffer.start(), Iova::new(0xffe0_0000));
/// // After it was unmapped and synced:
/// iovas.give_back(buffer);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct IovaAllocator {
    /// Sorted, disjoint, not adjacent. There is always room for one more range per live allocation.
    free: Vec<IovaRange>,
    live: usize,
}

impl IovaAllocator {
    /// An allocator for `aperture` without the `reserved` ranges, which may overlap each other.
    pub fn new(aperture: IovaRange, reserved: &[IovaRange]) -> Result<Self, OutOfMemory> {
        let mut this = Self { free: Vec::new(), live: 0 };
        this.free.try_reserve(reserved.len() + 2).map_err(|_| OutOfMemory)?;
        list::push(&mut this.free, aperture)?;
        this.carve(IovaRange::block(Iova::new(0), portcullis_hal::PAGE_SIZE));
        for &range in reserved {
            this.carve(range);
        }
        Ok(this)
    }

    /// Takes `range` out of the free list. The caller made room for one more entry.
    fn carve(&mut self, range: IovaRange) {
        let mut index = 0;
        while let Some(&free) = self.free.get(index) {
            if !free.overlaps(&range) {
                index += 1;
                continue;
            }
            list::remove(&mut self.free, index);
            let above =
                range.last().checked_add(1).and_then(|start| IovaRange::from_bounds(start, free.last()).ok());
            if let Some(above) = above {
                self.keep(index, above);
            }
            let below = range.start().get().checked_sub(1).map(Iova::new);
            let below = below.and_then(|last| IovaRange::from_bounds(free.start(), last).ok());
            if let Some(below) = below {
                self.keep(index, below);
                index += 1;
            }
            if above.is_some() {
                index += 1;
            }
        }
    }

    /// Puts a free range into the list. Were there no room, which `new` and `take` see to, it would never be handed out.
    fn keep(&mut self, index: usize, range: IovaRange) {
        let _ = list::insert_reserved(&mut self.free, index, range);
    }

    /// Takes `len` bytes, a multiple of the domain's smallest page, whose start is a multiple of `align` bytes, a power of
    /// two.
    ///
    /// # Errors
    ///
    /// All of [`IovaError`]; nothing is taken then.
    pub fn take(&mut self, len: u64, align: u64) -> Result<IovaRange, IovaError> {
        if len == 0 || !align.is_power_of_two() {
            return Err(IovaError::BadRequest);
        }
        // Giving it back may split off one more range, and that must not fail.
        self.free.try_reserve(self.live + 2).map_err(|_| OutOfMemory)?;
        let range = self.free.iter().rev().find_map(|free| {
            let start = free.last().get().checked_sub(len - 1)?;
            let range = IovaRange::new(Iova::new(start).align_down(align), len).ok()?;
            free.covers(&range).then_some(range)
        });
        let range = range.ok_or(IovaError::Exhausted)?;
        self.carve(range);
        self.live += 1;
        Ok(range)
    }

    /// Gives a range back that [`take`](Self::take) returned, after the unmap of everything in it was synced. A range
    /// that is (partly) free already is ignored.
    pub fn give_back(&mut self, range: IovaRange) {
        if self.free.iter().any(|free| free.overlaps(&range)) {
            return;
        }
        self.live = self.live.saturating_sub(1);
        let at = self.free.partition_point(|free| free.last() < range.start());
        let touches = |a: &IovaRange, b: &IovaRange| a.last().checked_add(1) == Some(b.start());
        let mut merged = range;
        if let Some(above) = self.free.get(at).copied().filter(|above| touches(&range, above)) {
            merged = merged.hull(&above);
            list::remove(&mut self.free, at);
        }
        let before = at.checked_sub(1).and_then(|before| self.free.get_mut(before));
        match before {
            Some(below) if touches(below, &range) => *below = below.hull(&merged),
            _ => self.keep(at, merged),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> IovaRange {
        IovaRange::from_bounds(Iova::new(first), Iova::new(last)).unwrap()
    }

    #[test]
    fn ranges_are_aligned_disjoint_and_avoid_what_is_reserved() {
        let reserved = [range(0xfee0_0000, 0xfeef_ffff), range(0x8000, 0x8fff), range(0x8800, 0x9fff)];
        let mut iovas = IovaAllocator::new(range(0, 0xffff_ffff), &reserved).unwrap();
        let mut live = Vec::new();
        for i in 0..200 {
            let len = 0x1000 << (i % 10);
            let got = iovas.take(len, len).unwrap();
            assert!(got.is_aligned(len) && got.start().get() != 0);
            assert!(reserved.iter().chain(&live).all(|other: &IovaRange| !other.overlaps(&got)));
            live.push(got);
            if i % 3 == 0 {
                iovas.give_back(live.swap_remove(live.len() / 2));
            }
        }
        live.drain(..).for_each(|range| iovas.give_back(range));
        let all = [range(0x1000, 0x7fff), range(0xa000, 0xfedf_ffff), range(0xfef0_0000, 0xffff_ffff)];
        assert_eq!(iovas.free, all);
    }

    #[test]
    fn an_exhausted_aperture_is_an_error_and_a_double_return_is_ignored() {
        let mut iovas = IovaAllocator::new(range(0, 0x3fff), &[]).unwrap();
        let all = iovas.take(0x3000, 0x1000).unwrap();
        assert_eq!(iovas.take(0x1000, 0x1000), Err(IovaError::Exhausted));
        assert_eq!(iovas.take(0, 1), Err(IovaError::BadRequest));
        iovas.give_back(all);
        iovas.give_back(all);
        assert_eq!(iovas.take(0x3000, 0x1000), Ok(all));
    }
}
