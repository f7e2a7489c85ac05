//! Circular queues with wrap bits (IHI 0070, 3.5.1).

/// Registers of one queue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Queue {
    /// *_BASE.
    pub(super) base: u64,
    /// *_PROD, flags included.
    pub(super) prod: u32,
    /// *_CONS, flags included.
    pub(super) cons: u32,
    /// Largest log2 of the number of entries.
    pub(super) most: u8,
}

impl Queue {
    pub(super) const fn log2(&self) -> u32 {
        let log2 = self.base as u32 & 0x1f;
        if log2 > self.most as u32 { self.most as u32 } else { log2 }
    }

    /// Index and wrap bit together.
    pub(super) const fn position(&self, register: u32) -> u32 {
        register & ((2 << self.log2()) - 1)
    }

    /// Entries between consumer and producer; more than the size means that the indices contradict each other.
    pub(super) const fn used(&self) -> u32 {
        self.between(self.cons, self.prod)
    }

    pub(super) const fn between(&self, from: u32, to: u32) -> u32 {
        to.wrapping_sub(from) & ((2 << self.log2()) - 1)
    }

    pub(super) const fn size(&self) -> u32 {
        1 << self.log2()
    }

    pub(super) const fn is_full(&self) -> bool {
        self.used() >= self.size()
    }

    /// Address of the entry at a position.
    pub(super) const fn entry(&self, position: u32, bytes: u64, oas: u8) -> u64 {
        let total = bytes << self.log2();
        let align = if total < 32 { 32 } else { total };
        let base = self.base & 0x00ff_ffff_ffff_ffe0 & !(align - 1) & ((1 << oas) - 1);
        base + bytes * (position & (self.size() - 1)) as u64
    }

    /// A register moved on by one entry, flags kept.
    pub(super) const fn next(&self, register: u32) -> u32 {
        let mask = (2 << self.log2()) - 1;
        register & !mask | register.wrapping_add(1) & mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_wrap_with_their_extra_bit_at_every_size() {
        for log2 in 0..8 {
            let mut queue = Queue { base: log2, most: 19, ..Queue::default() };
            queue.prod = 1 << 31;
            for _ in 0..1 << log2 {
                assert!(!queue.is_full());
                queue.prod = queue.next(queue.prod);
            }
            assert!(queue.is_full());
            assert_eq!(queue.used(), 1 << log2);
            assert_eq!(queue.prod >> 31, 1, "the flag is kept");
            queue.cons = queue.prod;
            assert_eq!(queue.used(), 0);
        }
    }

    #[test]
    fn a_base_is_aligned_to_the_queue_and_cut_to_the_output_size() {
        let queue = Queue { base: 0xff_0000_1234_5003, most: 19, ..Queue::default() };
        assert_eq!(queue.entry(9, 16, 40), 0x1234_5000 + 16, "log2 is 3: position 9 is index 1");
        let small = Queue { base: 0xff_0000_1234_5003, most: 2, ..Queue::default() };
        assert_eq!(small.size(), 4);
    }
}
