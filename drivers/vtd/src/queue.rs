//! The invalidation queue: batches in, completion by a status word in memory.
//!
//! Each batch ends with a wait descriptor whose status data is the position behind it, so one word in memory says
//! how far the hardware has come: to whoever waits, however many, and to whoever looks for room. The registers are
//! read only when an answer takes long.

use crate::dma::{Descriptors, Published};
use crate::invalidate::Descriptor;
use crate::registers::Registers;
use crate::ring::{Position, Ring};
use crate::spec::registers::{FSTS, FaultStatus, IQERCD, IQH, IQT};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use portcullis_hal::wait::Timeout;
use portcullis_hal::{Frames, Hal, Mmio, PhysAddr, SyncError, barrier};
use spin::Mutex;

/// How long an answer may take before the fault status is looked at, in nanoseconds.
const ATTEND_NS: u64 = 20_000;

/// How many errors are remembered for those who have not looked yet.
const REMEMBERED: usize = 16;

/// A unit's invalidation queue.
pub(crate) struct Queue<H: Hal> {
    descriptors: Descriptors<H>,
    status: Published<H>,
    ring: Ring,
    producer: Mutex<Producer>,
    /// The number of errors so far; changes under the producer's lock.
    errors: AtomicU32,
    /// FSTS_REG at the latest error.
    last_error: AtomicU32,
    pub(crate) counters: Counters,
}

/// What the queue has done since start-up.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) invalidations: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) doorbells: AtomicU64,
    pub(crate) errors: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }
}

struct Producer {
    tail: Position,
    /// The places of the latest bad descriptors; the n-th error is at n modulo the size.
    bad: [Position; REMEMBERED],
}

/// A batch in the queue.
#[derive(Clone, Copy, Debug)]
#[must_use = "a batch has done nothing until it was waited for"]
pub(crate) struct Ticket {
    first: Position,
    /// Behind the wait descriptor.
    end: Position,
    errors: u32,
}

impl<H: Hal> Queue<H> {
    /// A queue in `slots`, as many as the ring says, with its status word in `status`; the hardware does not know them
    /// yet.
    pub(crate) fn new(ring: Ring, slots: Frames<H>, status: Frames<H>) -> Self {
        Self {
            descriptors: Descriptors::new(slots),
            status: Published::new(status),
            ring,
            producer: Mutex::new(Producer {
                tail: Position::default(),
                bad: [Position::default(); REMEMBERED],
            }),
            errors: AtomicU32::new(0),
            last_error: AtomicU32::new(0),
            counters: Counters::default(),
        }
    }

    pub(crate) fn ring(&self) -> Ring {
        self.ring
    }

    /// The physical address of the ring.
    pub(crate) fn phys(&self) -> PhysAddr {
        self.descriptors.phys()
    }

    /// The physical address of the ring, to be shown to hardware, which will write the status word too.
    pub(crate) fn publish(&self) -> PhysAddr {
        self.status.publish();
        self.descriptors.publish()
    }

    /// Up to where the hardware has come, by the status word.
    fn done(&self) -> Position {
        let word = self.status.words().first().map_or(0, |word| word.load(Ordering::Relaxed));
        Position(word as u32)
    }

    /// Puts a batch in the queue, with one write of the doorbell. If there is no room it waits for some.
    pub(crate) fn submit<M: Mmio>(
        &self,
        registers: &Registers<H, M>,
        batch: &[Descriptor],
    ) -> Result<Ticket, Timeout> {
        let mut patience = Patience::new(registers);
        loop {
            if let Some(ticket) = self.try_submit(registers, batch) {
                return Ok(ticket);
            }
            let done = self.done();
            patience.spend(self, || Timeout {
                register: "free invalidation queue slots",
                mask: u64::from(u32::MAX),
                expected: (batch.len() + fences(batch)) as u64 + 1,
                last: u64::from(done.0),
            })?;
        }
    }

    fn try_submit<M: Mmio>(&self, registers: &Registers<H, M>, batch: &[Descriptor]) -> Option<Ticket> {
        registers.hal().critical(|| {
            let mut producer = self.producer.lock();
            let first = producer.tail;
            let count = u32::try_from(batch.len() + fences(batch)).ok()?;
            // One slot more than needed stays free for the recovery's own wait descriptor.
            if self.ring.free(first, self.done()) < count.checked_add(2)? {
                return None;
            }
            let mut cache = None;
            for &descriptor in batch {
                if cache.replace(descriptor.cache()).is_some_and(|before| before != descriptor.cache()) {
                    // Hardware may take all between two fences in any order (6.5.2.8).
                    self.push_wait(&mut producer);
                }
                self.descriptors.write(self.ring.slot(producer.tail), descriptor);
                producer.tail = producer.tail.plus(1);
            }
            let end = self.push_wait(&mut producer);
            Counters::add(&self.counters.invalidations, batch.len());
            self.ring_doorbell(registers, &producer);
            Some(Ticket { first, end, errors: self.errors.load(Ordering::Relaxed) })
        })
    }

    /// Adds a wait descriptor and returns the place behind it.
    fn push_wait(&self, producer: &mut Producer) -> Position {
        let end = producer.tail.plus(1);
        self.descriptors.write(self.ring.slot(producer.tail), Descriptor::wait(self.status.phys(), end.0));
        producer.tail = end;
        end
    }

    fn ring_doorbell<M: Mmio>(&self, registers: &Registers<H, M>, producer: &Producer) {
        barrier::before_doorbell();
        registers.write64(IQT, self.ring.register_of(producer.tail));
        Counters::add(&self.counters.doorbells, 1);
    }

    /// Returns when the batch has completed.
    ///
    /// # Errors
    ///
    /// [`SyncError::Timeout`], and [`SyncError::Faulted`] if the hardware refused a descriptor of this batch.
    pub(crate) fn wait<M: Mmio>(&self, registers: &Registers<H, M>, ticket: Ticket) -> Result<(), SyncError> {
        Counters::add(&self.counters.syncs, 1);
        let mut patience = Patience::new(registers);
        loop {
            let done = self.done();
            if done.has_reached(ticket.end) {
                break;
            }
            patience.spend(self, || Timeout {
                register: "invalidation status word",
                mask: u64::from(u32::MAX),
                expected: u64::from(ticket.end.0),
                last: u64::from(done.0),
            })?;
        }
        barrier::after_completion();
        if self.errors.load(Ordering::Acquire) != ticket.errors && self.was_refused(registers, ticket) {
            return Err(SyncError::Faulted);
        }
        Ok(())
    }

    /// What the hardware said when it last stopped.
    pub(crate) fn last_error(&self) -> Timeout {
        let error = FaultStatus::new().with_iqe(true).with_ice(true).with_ite(true);
        Timeout {
            register: FSTS.name,
            mask: u64::from(error.into_bits()),
            expected: 0,
            last: u64::from(self.last_error.load(Ordering::Relaxed)),
        }
    }

    /// Whether one of the errors since the ticket was made concerns it. If there were more than are remembered, it is
    /// taken for granted.
    fn was_refused<M: Mmio>(&self, registers: &Registers<H, M>, ticket: Ticket) -> bool {
        registers.hal().critical(|| {
            let producer = self.producer.lock();
            let now = self.errors.load(Ordering::Relaxed);
            let new = now.wrapping_sub(ticket.errors) as usize;
            let length = ticket.end.since(ticket.first);
            new > REMEMBERED
                || (1..=new).any(|back| {
                    let index = now.wrapping_sub(back as u32) as usize % REMEMBERED;
                    producer.bad.get(index).is_some_and(|bad| bad.since(ticket.first) < length)
                })
        })
    }

    /// Looks whether the hardware stopped at an error, and sets it going again. Any number of waiters and an interrupt
    /// handler may call it at once; who comes second finds nothing to do. Never waits for the hardware.
    pub(crate) fn recover<M: Mmio>(&self, registers: &Registers<H, M>) {
        if !has_error(registers) {
            return;
        }
        registers.hal().critical(|| {
            let mut producer = self.producer.lock();
            let status = FaultStatus::from_bits(registers.read32(FSTS));
            if is_error(status) {
                self.last_error.store(status.into_bits(), Ordering::Relaxed);
            }
            if status.iqe() {
                self.replace_bad(registers, &mut producer);
            }
            if status.ite() || status.ice() {
                // Waits that were in the queue are dropped then (6.5.2.10); a new one covers them.
                Counters::add(&self.counters.errors, 1);
                let timed_out = FaultStatus::new().with_ite(status.ite()).with_ice(status.ice());
                registers.write32(FSTS, timed_out.into_bits());
                if self.ring.free(producer.tail, self.done()) > 0 {
                    self.push_wait(&mut producer);
                    self.ring_doorbell(registers, &producer);
                }
            }
        });
    }

    /// The hardware stopped at a descriptor: puts a wait descriptor in its place, remembers the place, and lets the
    /// hardware go on.
    fn replace_bad<M: Mmio>(&self, registers: &Registers<H, M>, producer: &mut Producer) {
        Counters::add(&self.counters.errors, 1);
        let bad = self.ring.position_of(registers.read64(IQH), producer.tail);
        let slot = self.ring.slot(bad);
        log::error!(
            "VT-d: invalidation descriptor {:#x?} in slot {slot} refused (IQERCD_REG {:#x})",
            self.descriptors.read(slot).0,
            registers.read64(IQERCD)
        );
        // At the tail there is no descriptor: then it was the tail register itself that was refused.
        if bad != producer.tail {
            self.descriptors.write(slot, Descriptor::wait(self.status.phys(), bad.plus(1).0));
            let count = self.errors.load(Ordering::Relaxed);
            if let Some(place) = producer.bad.get_mut(count as usize % REMEMBERED) {
                *place = bad;
            }
            self.errors.store(count.wrapping_add(1), Ordering::Release);
        }
        registers.write32(FSTS, FaultStatus::new().with_iqe(true).into_bits());
        // Clearing the error is enough by the manual; QEMU fetches again only when the tail is written.
        self.ring_doorbell(registers, producer);
    }
}

/// Whether the queue stopped at an error.
pub(crate) fn has_error<H: Hal, M: Mmio>(registers: &Registers<H, M>) -> bool {
    is_error(FaultStatus::from_bits(registers.read32(FSTS)))
}

/// Whether a status says that the queue stopped at an error.
pub(crate) fn is_error(status: FaultStatus) -> bool {
    status.iqe() || status.ite() || status.ice()
}

/// The number of fences that a batch takes: one where the next cache begins.
fn fences(batch: &[Descriptor]) -> usize {
    batch.iter().zip(batch.iter().skip(1)).filter(|(one, next)| one.cache() != next.cache()).count()
}

/// A bounded wait that attends to errors now and then.
struct Patience<'a, H: Hal, M: Mmio> {
    registers: &'a Registers<H, M>,
    start: u64,
    attend: u64,
}

impl<'a, H: Hal, M: Mmio> Patience<'a, H, M> {
    fn new(registers: &'a Registers<H, M>) -> Self {
        let start = registers.hal().now_ns();
        Self { registers, start, attend: start.saturating_add(ATTEND_NS) }
    }

    /// Passes a moment, or reports that time is up.
    fn spend(&mut self, queue: &Queue<H>, timeout: impl FnOnce() -> Timeout) -> Result<(), Timeout> {
        let now = self.registers.hal().now_ns();
        if now.saturating_sub(self.start) > self.registers.timeout_ns() {
            return Err(timeout());
        }
        if now >= self.attend {
            queue.recover(self.registers);
            self.attend = now.saturating_add(ATTEND_NS);
        }
        self.registers.hal().relax();
        Ok(())
    }
}
