//! The event queue: the unit produces, the interrupt handler consumes.

use crate::dma::Ring;
use crate::port::Port;
use crate::ring::RingSize;
use crate::spec::event::EVENT_WORDS;
use crate::spec::registers::{self, EventqIndex};
use portcullis_hal::{Hal, Mmio, PhysAddr, barrier};
use spin::Mutex;

/// The ring and its read position.
pub(crate) struct EventQueue<H: Hal> {
    ring: Ring<H, EVENT_WORDS>,
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
pub(crate) enum Found {
    /// A record.
    Record([u64; EVENT_WORDS]),
    /// Records were lost, for want of room; told when those before have been read.
    Overflow,
}

impl<H: Hal> EventQueue<H> {
    pub(crate) fn new(ring: Ring<H, EVENT_WORDS>) -> Self {
        Self { ring, consumer: Mutex::new(Consumer { position: 0, produced: 0, acknowledged: false }) }
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
}

impl<H: Hal, M: Mmio> Port<H, M> {
    /// Takes the next record. The unit gets the slots back whenever all records known are read.
    pub(crate) fn next_event(&self) -> Option<Found> {
        let queue = &self.events;
        self.hal().critical(|| {
            let mut consumer = queue.consumer.lock();
            if consumer.position == consumer.produced {
                let prod = self.look(&mut consumer);
                if consumer.position == consumer.produced {
                    if prod.overflow() == consumer.acknowledged {
                        return None;
                    }
                    consumer.acknowledged = prod.overflow();
                    self.release(&consumer);
                    return Some(Found::Overflow);
                }
                barrier::after_completion();
            }
            let record = queue.ring.read(consumer.position);
            consumer.position = consumer.position.wrapping_add(1);
            if consumer.position == consumer.produced {
                self.release(&consumer);
            }
            Some(Found::Record(record))
        })
    }

    /// Gives up the records that are queued, unread, for a unit that writes them faster than they can be read. Returns
    /// [`Found::Overflow`] if there were any.
    ///
    /// The unit interrupts when a record is written to an empty queue (IHI 0070, 3.18), so what counts is that the
    /// queue is seen empty after it was told so.
    pub(crate) fn skip_events(&self) -> Option<Found> {
        /// How often the unit may be ahead once more. Each time takes two accesses to registers.
        const ROUNDS: u32 = 64;
        self.hal().critical(|| {
            let mut consumer = self.events.consumer.lock();
            let mut found = None;
            for _ in 0..ROUNDS {
                let prod = self.look(&mut consumer);
                if consumer.position == consumer.produced && prod.overflow() == consumer.acknowledged {
                    break;
                }
                consumer.position = consumer.produced;
                consumer.acknowledged = prod.overflow();
                self.release(&consumer);
                found = Some(Found::Overflow);
            }
            found
        })
    }

    /// Reads how far the unit has written.
    fn look(&self, consumer: &mut Consumer) -> EventqIndex {
        let size = self.events.size();
        let prod = EventqIndex::from(self.block.read(registers::EVENTQ_PROD));
        // An index out of reach shows no records: nothing there can be trusted.
        consumer.produced =
            size.position(consumer.position, prod.index() & size.index_mask()).unwrap_or(consumer.position);
        prod
    }

    /// Tells the unit how far the queue is read, after the reads.
    fn release(&self, consumer: &Consumer) {
        barrier::after_completion();
        let cons = EventqIndex::new()
            .with_index(self.events.size().index(consumer.position))
            .with_overflow(consumer.acknowledged);
        self.block.write(registers::EVENTQ_CONS, cons.into());
    }
}
