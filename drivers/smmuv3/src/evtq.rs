//! The queues that the unit fills and the interrupt handler empties: events and page requests.
//!
//! CPUs only read these rings. A cache line holds several records: where the unit does not snoop, a CPU that wrote to
//! one would bring old bytes back over its neighbour, which the unit may have written meanwhile.

use crate::block::RegisterBlock;
use crate::dma::Ring;
use crate::ring::RingSize;
use crate::spec::registers::EventqIndex;
use alloc::vec::Vec;
use portcullis_hal::wait::Register;
use portcullis_hal::{Hal, Mmio, OutOfMemory, PhysAddr, barrier};
use spin::Mutex;

/// The ring, its registers and its read position.
pub(crate) struct RecordQueue<H: Hal, const WORDS: usize> {
    ring: Ring<H, WORDS>,
    produced: Register,
    consumed: Register,
    /// What becomes of a record that is marked.
    amended: fn([u64; WORDS]) -> [u64; WORDS],
    consumer: Mutex<Consumer>,
}

#[derive(Debug)]
struct Consumer {
    /// The next record to read.
    position: u64,
    /// The unit is known to have written the records before this one.
    produced: u64,
    /// OVACKFLG: the overflow flag as it was last acknowledged.
    acknowledged: bool,
    marks: Marks,
}

/// One bit for each slot: the record there is to be amended as it is read.
#[derive(Debug)]
struct Marks(Vec<u64>);

impl Marks {
    fn new(size: RingSize) -> Result<Self, OutOfMemory> {
        let words = size.entries().div_ceil(u64::BITS.into()) as usize;
        let mut marks = Vec::new();
        marks.try_reserve_exact(words).map_err(|_| OutOfMemory)?;
        marks.extend((0..words).map(|_| 0));
        Ok(Self(marks))
    }

    /// The word of a slot and its bit there.
    fn at(&mut self, slot: u64) -> Option<(&mut u64, u64)> {
        let bits = u64::from(u64::BITS);
        let word = self.0.get_mut((slot / bits) as usize)?;
        Some((word, 1 << (slot % bits)))
    }

    fn set(&mut self, slot: u64) {
        if let Some((word, bit)) = self.at(slot) {
            *word |= bit;
        }
    }

    /// Clears a mark; tells whether it was set.
    fn take(&mut self, slot: u64) -> bool {
        self.at(slot).is_some_and(|(word, bit)| {
            let was_set = *word & bit != 0;
            *word &= !bit;
            was_set
        })
    }
}

/// What a look into the queue found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found<const WORDS: usize> {
    /// A record.
    Record([u64; WORDS]),
    /// Records were lost, for want of room; told when those before have been read.
    Overflow,
}

impl<H: Hal, const WORDS: usize> RecordQueue<H, WORDS> {
    /// A queue whose indices are in the registers `produced` and `consumed`.
    pub(crate) fn new(ring: Ring<H, WORDS>, [produced, consumed]: [Register; 2]) -> Self {
        let marks = Marks(Vec::new());
        let consumer = Mutex::new(Consumer { position: 0, produced: 0, acknowledged: false, marks });
        Self { ring, produced, consumed, amended: |record| record, consumer }
    }

    /// The same queue, whose records can be marked to be read as `amended` returns them.
    pub(crate) fn amended_by(
        mut self,
        amended: fn([u64; WORDS]) -> [u64; WORDS],
    ) -> Result<Self, OutOfMemory> {
        self.consumer.get_mut().marks = Marks::new(self.size())?;
        self.amended = amended;
        Ok(self)
    }

    pub(crate) fn size(&self) -> RingSize {
        self.ring.size()
    }

    pub(crate) fn phys(&self) -> Option<PhysAddr> {
        self.ring.phys()
    }

    pub(crate) fn leak(&mut self) {
        self.ring.leak();
    }

    /// Takes the next record, and shows it to `note` before anybody else can take another one. The unit gets the slots
    /// back whenever all records known are read.
    pub(crate) fn next<M: Mmio>(
        &self,
        block: &RegisterBlock<H, M>,
        note: impl FnOnce(&[u64; WORDS]),
    ) -> Option<Found<WORDS>> {
        block.hal.critical(|| {
            let mut consumer = self.consumer.lock();
            if consumer.position == consumer.produced {
                let prod = self.look(block, &mut consumer);
                if consumer.position == consumer.produced {
                    if prod.overflow() == consumer.acknowledged {
                        return None;
                    }
                    consumer.acknowledged = prod.overflow();
                    self.release(block, &consumer);
                    return Some(Found::Overflow);
                }
                barrier::after_completion();
            }
            let record = self.take(&mut consumer);
            note(&record);
            if consumer.position == consumer.produced {
                self.release(block, &consumer);
            }
            Some(Found::Record(record))
        })
    }

    /// Marks the queued records that `which` picks: they are read [amended](Self::amended_by). When that is done, `then`
    /// is called, before anybody else can take a record.
    pub(crate) fn amend<M: Mmio>(
        &self,
        block: &RegisterBlock<H, M>,
        which: impl Fn(&[u64; WORDS]) -> bool,
        then: impl FnOnce(),
    ) {
        block.hal.critical(|| {
            let mut consumer = self.consumer.lock();
            self.look(block, &mut consumer);
            barrier::after_completion();
            let mut position = consumer.position;
            while position != consumer.produced {
                if which(&self.ring.read(position)) {
                    consumer.marks.set(self.size().slot(position));
                }
                position = position.wrapping_add(1);
            }
            then();
        });
    }

    /// How far the unit has written: the position behind its last record.
    pub(crate) fn written<M: Mmio>(&self, block: &RegisterBlock<H, M>) -> u64 {
        block.hal.critical(|| {
            let mut consumer = self.consumer.lock();
            self.look(block, &mut consumer);
            barrier::after_completion();
            consumer.produced
        })
    }

    /// Whether all records before a position were taken.
    pub(crate) fn is_read_to<M: Mmio>(&self, block: &RegisterBlock<H, M>, end: u64) -> bool {
        block.hal.critical(|| self.consumer.lock().position >= end)
    }

    /// Reads the next record, which is there.
    fn take(&self, consumer: &mut Consumer) -> [u64; WORDS] {
        let record = self.ring.read(consumer.position);
        let marked = consumer.marks.take(self.size().slot(consumer.position));
        consumer.position = consumer.position.wrapping_add(1);
        if marked { (self.amended)(record) } else { record }
    }

    /// Reads how far the unit has written.
    fn look<M: Mmio>(&self, block: &RegisterBlock<H, M>, consumer: &mut Consumer) -> EventqIndex {
        let size = self.size();
        let prod = EventqIndex::from(block.read(self.produced));
        // An index out of reach shows no records: nothing there can be trusted.
        consumer.produced =
            size.position(consumer.position, prod.index() & size.index_mask()).unwrap_or(consumer.position);
        prod
    }

    /// Tells the unit how far the queue is read, after the reads.
    fn release<M: Mmio>(&self, block: &RegisterBlock<H, M>, consumer: &Consumer) {
        barrier::after_completion();
        // The mask changes nothing: it shows that 20 bits are enough, which the setter asserts.
        let index = self.size().index(consumer.position) & 0xf_ffff;
        let cons = EventqIndex::new().with_index(index).with_overflow(consumer.acknowledged);
        block.write(self.consumed, cons.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::{AtomicU32, Ordering};
    use portcullis_hal::TableWrites;
    use portcullis_hal::host::HostHal;

    const INDICES: [Register; 2] =
        [Register { name: "PROD", offset: 0 }, Register { name: "CONS", offset: 1 }];

    #[derive(Default)]
    struct Registers([AtomicU32; 2]);

    // SAFETY: nobody acts on what is written here.
    #[expect(unsafe_code, reason = "registers of a fake")]
    unsafe impl Mmio for &Registers {
        fn read32(&self, offset: usize) -> u32 {
            self.0[offset].load(Ordering::SeqCst)
        }

        fn write32(&self, offset: usize, value: u32) {
            self.0[offset].store(value, Ordering::SeqCst);
        }

        fn read64(&self, _offset: usize) -> u64 {
            unreachable!("an index has 32 bits")
        }

        fn write64(&self, _offset: usize, _value: u64) {
            unreachable!("an index has 32 bits")
        }
    }

    #[test]
    fn what_is_amended_is_read_so_once_and_the_unit_keeps_its_ring() {
        let (hal, registers) = (HostHal::new(), Registers::default());
        let ring: Ring<HostHal, 4> = Ring::new(&hal, RingSize::new(2), TableWrites::Cleaned).unwrap();
        let base = ring.phys().unwrap();
        let queue = RecordQueue::new(ring, INDICES).amended_by(|[first, ..]| [first | 0x100; 4]).unwrap();
        let block = RegisterBlock::new(hal.clone(), &registers, 0);
        let word = |slot: u64| base.checked_add(slot * 32).unwrap();
        let next = || match queue.next(&block, |_| ()) {
            Some(Found::Record([first, ..])) => Some(first),
            other => {
                assert_eq!(other, None);
                None
            }
        };
        for lap in 0..3 {
            for slot in 0..4 {
                hal.store64(word(slot), slot).unwrap();
            }
            registers.0[0].store(if lap % 2 == 0 { 4 } else { 0 }, Ordering::SeqCst);
            if lap == 1 {
                queue.amend(&block, |record| record[0] % 2 == 1, || ());
                let seen = [0, 1, 2, 3].map(|slot| hal.load64(word(slot)));
                assert_eq!(seen, [0, 1, 2, 3].map(Some), "the ring is the unit's");
            }
            let expected = if lap == 1 { [0, 0x101, 2, 0x103] } else { [0, 1, 2, 3] };
            assert_eq!([(); 4].map(|()| next()), expected.map(Some));
            assert_eq!(next(), None);
        }
    }
}
