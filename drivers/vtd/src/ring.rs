//! The arithmetic of the invalidation queue's ring; no memory, no registers.

use portcullis_hal::FrameOrder;
use portcullis_hal::producers::Position;

/// The size of a ring of 256-bit descriptors: 2^QS frames of 128 descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ring {
    qs: u8,
    /// The places of one turn, less one.
    mask: u32,
}

/// The size of a descriptor as a power of two in bytes.
const DESCRIPTOR_SHIFT: u32 = 5;

impl Ring {
    /// The largest value of IQA_REG.QS.
    pub(crate) const MAX_QS: u8 = 7;

    /// The ring that fills these frames; `None` if IQA_REG cannot express it.
    pub(crate) fn new(order: FrameOrder) -> Option<Self> {
        (order.get() <= Self::MAX_QS).then_some(Self::of(order.get()))
    }

    const fn of(qs: u8) -> Self {
        Self { qs, mask: (128 << qs) - 1 }
    }

    /// IQA_REG.QS.
    pub(crate) fn qs(self) -> u8 {
        self.qs
    }

    /// The number of slots.
    #[inline]
    pub(crate) fn slots(self) -> u32 {
        self.mask + 1
    }

    /// The slot of a place.
    #[inline]
    pub(crate) fn slot(self, position: Position) -> usize {
        (position.get() & self.mask) as usize
    }

    /// The value of IQT_REG for a tail.
    #[inline]
    pub(crate) fn register_of(self, tail: Position) -> u64 {
        (self.slot(tail) as u64) << DESCRIPTOR_SHIFT
    }

    /// The place that a value of IQH_REG means, given the tail: at most one turn before it. The tail itself means that
    /// the queue is empty.
    pub(crate) fn position_of(self, head: u64, tail: Position) -> Position {
        let slot = (head >> DESCRIPTOR_SHIFT) as u32 & self.mask;
        let behind = tail.get().wrapping_sub(slot) & self.mask;
        Position::new(tail.get().wrapping_sub(behind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rings() -> impl Iterator<Item = Ring> {
        (0..=Ring::MAX_QS).map(Ring::of)
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
    fn at_every_size_and_fill_the_head_is_found_behind_the_tail() {
        for ring in rings() {
            for start in [0, 1, ring.slots() - 1, u32::MAX - 3, u32::MAX] {
                for used in 0..ring.slots() {
                    let head = Position::new(start);
                    let tail = head.plus(used);
                    assert_eq!(ring.position_of(ring.register_of(head), tail), head, "{ring:?} {used}");
                }
                let full = Position::new(start).plus(ring.slots() - 1);
                assert_ne!(ring.slot(full), ring.slot(Position::new(start)), "a slot stays empty");
            }
        }
    }

    #[test]
    fn registers_count_in_bytes_of_256_bit_descriptors() {
        let ring = Ring::of(0);
        assert_eq!(ring.register_of(Position::new(3)), 0x60);
        assert_eq!(ring.register_of(Position::new(128 + 127)), 0xfe0);
    }
}
