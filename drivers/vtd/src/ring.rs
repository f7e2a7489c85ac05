//! The arithmetic of the invalidation queue's ring; no memory, no registers.

use portcullis_hal::FrameOrder;

/// A place in the endless sequence of descriptors, counted from zero at start-up and modulo 2^32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Position(pub(crate) u32);

impl Position {
    /// The place `count` descriptors further on.
    pub(crate) fn plus(self, count: u32) -> Self {
        Self(self.0.wrapping_add(count))
    }

    /// How many descriptors lie between `earlier` and this place.
    pub(crate) fn since(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    /// Whether this place is `other` or behind it; both lie within one turn of a ring of each other.
    pub(crate) fn has_reached(self, other: Self) -> bool {
        self.since(other) < 1 << 31
    }
}

/// The size of a ring of 256-bit descriptors: 2^QS frames of 128 descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ring {
    qs: u8,
}

/// The size of a descriptor as a power of two in bytes.
const DESCRIPTOR_SHIFT: u32 = 5;

impl Ring {
    /// The largest value of IQA_REG.QS.
    pub(crate) const MAX_QS: u8 = 7;

    /// The ring that fills these frames; `None` if IQA_REG cannot express it.
    pub(crate) fn new(order: FrameOrder) -> Option<Self> {
        (order.get() <= Self::MAX_QS).then_some(Self { qs: order.get() })
    }

    /// IQA_REG.QS.
    pub(crate) fn qs(self) -> u8 {
        self.qs
    }

    /// The number of slots.
    pub(crate) fn slots(self) -> u32 {
        128 << self.qs
    }

    /// The slot of a place.
    pub(crate) fn slot(self, position: Position) -> usize {
        (position.0 & (self.slots() - 1)) as usize
    }

    /// How many descriptors can be added at `tail` when everything before `done` has been consumed. One slot stays
    /// empty, since a full ring would look like an empty one.
    pub(crate) fn free(self, tail: Position, done: Position) -> u32 {
        (self.slots() - 1).saturating_sub(tail.since(done))
    }

    /// The value of IQT_REG for a tail.
    pub(crate) fn register_of(self, tail: Position) -> u64 {
        (self.slot(tail) as u64) << DESCRIPTOR_SHIFT
    }

    /// The place that a value of IQH_REG means, given the tail: at most one turn before it. The tail itself means that
    /// the queue is empty.
    pub(crate) fn position_of(self, head: u64, tail: Position) -> Position {
        let mask = self.slots() - 1;
        let slot = (head >> DESCRIPTOR_SHIFT) as u32 & mask;
        let behind = tail.0.wrapping_sub(slot) & mask;
        Position(tail.0.wrapping_sub(behind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rings() -> impl Iterator<Item = Ring> {
        (0..=Ring::MAX_QS).map(|qs| Ring { qs })
    }

    #[test]
    fn sizes_are_those_of_the_register() {
        assert_eq!(
            rings().map(Ring::slots).collect::<std::vec::Vec<_>>(),
            [128, 256, 512, 1024, 2048, 4096, 8192, 16384]
        );
        assert!(FrameOrder::new(8).and_then(Ring::new).is_none());
    }

    #[test]
    fn at_every_size_and_fill_the_free_slots_and_the_used_ones_make_up_the_ring() {
        for ring in rings() {
            for start in [0, 1, ring.slots() - 1, u32::MAX - 3, u32::MAX] {
                for used in 0..ring.slots() {
                    let done = Position(start);
                    let tail = done.plus(used);
                    assert_eq!(ring.free(tail, done), ring.slots() - 1 - used);
                    assert_eq!(ring.position_of(ring.register_of(done), tail), done, "{ring:?} {used}");
                }
            }
        }
    }

    #[test]
    fn a_ring_is_full_before_head_and_tail_meet_again() {
        for ring in rings() {
            let done = Position(5);
            let full = done.plus(ring.slots() - 1);
            assert_eq!(ring.free(full, done), 0);
            assert_ne!(ring.slot(full), ring.slot(done));
            assert_eq!(ring.free(full.plus(7), done), 0);
        }
    }

    #[test]
    fn places_are_ordered_across_the_wrap() {
        let before = Position(u32::MAX - 1);
        let after = before.plus(5);
        assert!(after.has_reached(before) && !before.has_reached(after) && before.has_reached(before));
        assert_eq!(after.since(before), 5);
    }

    #[test]
    fn registers_count_in_bytes_of_256_bit_descriptors() {
        let ring = Ring { qs: 0 };
        assert_eq!(ring.register_of(Position(3)), 0x60);
        assert_eq!(ring.register_of(Position(128 + 127)), 0xfe0);
    }
}
