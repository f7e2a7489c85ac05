//! The queues that the unit fills and the interrupt handler empties: events and page requests.

use crate::block::RegisterBlock;
use crate::dma::Ring;
use crate::ring::RingSize;
use crate::spec::registers::EventqIndex;
use portcullis_hal::wait::Register;
use portcullis_hal::{Hal, Mmio, PhysAddr, barrier};
use spin::Mutex;

/// The ring, its registers and its read position.
pub(crate) struct RecordQueue<H: Hal, const WORDS: usize> {
    ring: Ring<H, WORDS>,
    produced: Register,
    consumed: Register,
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
}

/// What a look into the queue found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found<const WORDS: usize> {
    /// A record.
    Record([u64; WORDS]),
    /// Records were lost, for want of room; told when those before have been read.
    Overflow,
}

/// Whether records were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    None,
    Some,
}

/// What was given up of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Skipped<const WORDS: usize> {
    /// Nothing: the queue is empty.
    Nothing,
    /// All that was there.
    All,
    /// What was there before this record, which is taken.
    UpTo([u64; WORDS], Lost),
}

impl<H: Hal, const WORDS: usize> RecordQueue<H, WORDS> {
    /// A queue whose indices are in the registers `produced` and `consumed`.
    pub(crate) fn new(ring: Ring<H, WORDS>, [produced, consumed]: [Register; 2]) -> Self {
        let consumer = Mutex::new(Consumer { position: 0, produced: 0, acknowledged: false });
        Self { ring, produced, consumed, consumer }
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
            let record = self.ring.read(consumer.position);
            note(&record);
            consumer.position = consumer.position.wrapping_add(1);
            if consumer.position == consumer.produced {
                self.release(block, &consumer);
            }
            Some(Found::Record(record))
        })
    }

    /// Gives up records that are queued, for a unit that writes them faster than they can be reported, up to the first
    /// one that `wanted` picks.
    ///
    /// The unit interrupts when a record is written to an empty queue (IHI 0070, 3.18), so what counts is that the
    /// queue is seen empty after it was told so: by [`Skipped::Nothing`].
    pub(crate) fn skip<M: Mmio>(
        &self,
        block: &RegisterBlock<H, M>,
        wanted: impl Fn(&[u64; WORDS]) -> bool,
        note: impl FnOnce(&[u64; WORDS]),
    ) -> Skipped<WORDS> {
        block.hal.critical(|| {
            let mut consumer = self.consumer.lock();
            let first = consumer.position;
            let prod = self.look(block, &mut consumer);
            if first == consumer.produced && prod.overflow() == consumer.acknowledged {
                return Skipped::Nothing;
            }
            barrier::after_completion();
            let mut lost = if prod.overflow() == consumer.acknowledged { Lost::None } else { Lost::Some };
            consumer.acknowledged = prod.overflow();
            let mut found = None;
            while found.is_none() && consumer.position != consumer.produced {
                let record = self.ring.read(consumer.position);
                consumer.position = consumer.position.wrapping_add(1);
                match wanted(&record) {
                    true => found = Some(record),
                    false => lost = Lost::Some,
                }
            }
            self.release(block, &consumer);
            match found {
                Some(record) => {
                    note(&record);
                    Skipped::UpTo(record, lost)
                }
                None => Skipped::All,
            }
        })
    }

    /// Changes records that are queued and that `change` returns anew. When it has returned, `then` is called, before
    /// anybody else can take a record.
    pub(crate) fn amend<M: Mmio>(
        &self,
        block: &RegisterBlock<H, M>,
        change: impl Fn(&[u64; WORDS]) -> Option<[u64; WORDS]>,
        then: impl FnOnce(),
    ) {
        block.hal.critical(|| {
            let mut consumer = self.consumer.lock();
            self.look(block, &mut consumer);
            barrier::after_completion();
            let mut position = consumer.position;
            while position != consumer.produced {
                if let Some(record) = change(&self.ring.read(position)) {
                    self.ring.write(position, record);
                }
                position = position.wrapping_add(1);
            }
            then();
        });
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
        let cons = EventqIndex::new()
            .with_index(self.size().index(consumer.position))
            .with_overflow(consumer.acknowledged);
        block.write(self.consumed, cons.into());
    }
}
