//! Arithmetic of queue indices.
//!
//! A queue of `2^n` entries has indices of `n + 1` bits: `n` for the slot and one wrap bit above. Here an index is the
//! low end of a *position*, a 64-bit count of entries since start-up that never wraps.

/// The size of a queue, `2^log2` entries, at most `2^19`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingSize {
    /// The bits of an index.
    index_mask: u32,
}

impl RingSize {
    /// The largest queue of the architecture, as a power of two.
    pub(crate) const MAX_LOG2: u8 = 19;

    /// `2^log2` entries, or the architecture's largest queue if that is smaller.
    pub(crate) const fn new(log2: u8) -> Self {
        let log2 = if log2 > Self::MAX_LOG2 { Self::MAX_LOG2 } else { log2 };
        Self { index_mask: (2 << log2) - 1 }
    }

    /// The size as a power of two.
    pub(crate) const fn log2(self) -> u8 {
        (self.index_mask >> 1).trailing_ones() as u8
    }

    /// The number of entries.
    #[inline]
    pub(crate) const fn entries(self) -> u64 {
        (self.index_mask >> 1) as u64 + 1
    }

    /// The bits of an index, wrap bit included.
    #[inline]
    pub(crate) const fn index_mask(self) -> u32 {
        self.index_mask
    }

    /// The slot at `position`, below [`entries`](Self::entries).
    #[inline]
    pub(crate) const fn slot(self, position: u64) -> u64 {
        position & (self.index_mask >> 1) as u64
    }

    /// The index at `position`, as the queue's registers hold it.
    #[inline]
    pub(crate) const fn index(self, position: u64) -> u32 {
        position as u32 & self.index_mask()
    }

    /// Whether the index `to` is that of `from`, or of a position after it that is less than a queueful away, where it is
    /// not more than two queuefuls away.
    #[inline]
    pub(crate) const fn is_less_than_a_queueful(self, from: u32, to: u32) -> bool {
        // What the wrap bit says.
        to.wrapping_sub(from) & self.index_mask & !(self.index_mask >> 1) == 0
    }

    /// The position with this index at or after `base`, where the other side of the queue can be at most one
    /// queueful ahead. `None` for an index that is further away, which no correct device shows.
    #[inline]
    pub(crate) const fn position(self, base: u64, index: u32) -> Option<u64> {
        let ahead = index.wrapping_sub(base as u32) & self.index_mask();
        if ahead > (self.index_mask >> 1) + 1 { None } else { Some(base.wrapping_add(ahead as u64)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_distance_is_recovered_at_every_size_and_every_phase_of_the_wrap() {
        for log2 in 0..=RingSize::MAX_LOG2 {
            let size = RingSize::new(log2);
            let entries = size.entries();
            let bases =
                [0, 1, entries - 1, entries, 2 * entries - 1, 2 * entries, u64::from(u32::MAX), 1 << 40];
            let distances = [0, 1, entries / 2, entries.saturating_sub(1), entries];
            for base in bases {
                for ahead in distances {
                    let position = base + ahead;
                    let index = size.index(position);
                    assert_eq!(size.position(base, index), Some(position), "{log2} {base} {ahead}");
                    assert_eq!(u64::from(index) & (entries - 1), size.slot(position));
                    assert_eq!(size.is_less_than_a_queueful(base as u32, index), ahead < entries);
                }
                // One more than a queueful ahead is not a state that a queue can be in, unless it aliases a smaller
                // distance, which it does only in a queue of one entry.
                let far = size.position(base, size.index(base + entries + 1));
                assert_eq!(far, (entries == 1).then_some(base), "{log2} {base}");
            }
        }
    }

    #[test]
    fn a_full_queue_and_an_empty_one_differ() {
        for log2 in 0..=RingSize::MAX_LOG2 {
            let size = RingSize::new(log2);
            let entries = size.entries();
            assert_ne!(size.index(7), size.index(7 + entries));
            assert_eq!(size.slot(7), size.slot(7 + entries));
        }
    }

    #[test]
    fn the_wrap_bit_lies_just_above_the_slot_bits() {
        assert_eq!(RingSize::new(0).index_mask(), 0b1);
        assert_eq!(RingSize::new(8).index_mask(), 0x1ff);
        assert_eq!(RingSize::new(19).index_mask(), 0xf_ffff);
        assert_eq!(RingSize::new(31).log2(), 19);
    }
}
