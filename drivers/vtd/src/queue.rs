//! The invalidation queue: batches in, completion by a status word in memory.
//!
//! Any number of CPUs submit at once, as [`producers`](portcullis_hal::producers) describes; interrupts are masked from the
//! reservation of slots until they are published, and never while anything is waited for.
//!
//! Each batch ends with a wait descriptor whose status data is the place behind it. All of them write the same word, in
//! the order of their places, since each is a fence. So that one word says how far the hardware has come: to whoever
//! waits, however many, and to whoever looks for room. Somebody else's later wait serves as well as one's own, and the
//! registers are read only when an answer takes long.

use crate::dma::{Slots, Words};
use crate::invalidate::{Cache, Descriptor, RangeInvalidation};
use crate::recovery::Errors;
use crate::registers::Registers;
use crate::ring::Ring;
use crate::spec::registers::IQT;
use core::iter::{Copied, Once};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use portcullis_hal::producers::{Bell, Company, Overrun, Position, Producers, Publisher, Run};
use portcullis_hal::wait::Timeout;
use portcullis_hal::{Frames, Hal, InterruptMask, Mmio, OutOfMemory, PhysAddr, SyncError, barrier};

/// How long an answer may take before the fault status is looked at, and whether all is published, in nanoseconds.
const ATTEND_NS: u64 = 20_000;

/// Which word of the status memory says what was drained: in a line of its own.
const DRAINED: usize = 8;

/// The words that the hardware writes: the place up to which it has come, and what was drained.
type Status = [AtomicU64; DRAINED + 1];

/// A unit's invalidation queue.
pub(crate) struct Queue<H: Hal> {
    pub(crate) slots: Slots<H>,
    status: Words<H, Status>,
    /// What writes the status word.
    wait: Descriptor,
    pub(crate) producers: Producers<AtomicU64, Told>,
    pub(crate) errors: Errors,
    pub(crate) counters: Counters,
}

/// What goes wrong, since start-up.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) errors: AtomicU64,
    pub(crate) retries: AtomicU64,
}

/// What the hardware was told of since start-up. Only one CPU at a time rings the doorbell, and mostly for one batch of
/// one invalidation, so that one number changes.
#[derive(Default)]
pub(crate) struct Told {
    doorbells: AtomicU64,
    /// The batches beyond one for each doorbell, modulo 2^64.
    more_batches: AtomicU64,
    /// The invalidations beyond one for each doorbell, modulo 2^64.
    more_invalidations: AtomicU64,
}

/// [`Told`], at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) invalidations: u64,
    pub(crate) syncs: u64,
    pub(crate) doorbells: u64,
}

impl Told {
    /// Counts what a doorbell makes visible.
    #[inline(always)]
    fn add(&self, run: &Run) {
        let add = |counter: &AtomicU64, count: u64| {
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
        };
        add(&self.doorbells, 1);
        if run.batches != 1 {
            add(&self.more_batches, run.batches.wrapping_sub(1));
        }
        if run.weight != 1 {
            add(&self.more_invalidations, run.weight.wrapping_sub(1));
        }
    }

    fn totals(&self) -> Totals {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let doorbells = get(&self.doorbells);
        Totals {
            invalidations: doorbells.wrapping_add(get(&self.more_invalidations)),
            syncs: doorbells.wrapping_add(get(&self.more_batches)),
            doorbells,
        }
    }
}

/// A batch in the queue.
#[derive(Clone, Copy, Debug)]
#[must_use = "a batch has done nothing until it was waited for"]
pub(crate) struct Ticket {
    pub(crate) first: Position,
    /// Behind the wait descriptor.
    pub(crate) end: Position,
    /// How many errors there were before.
    pub(crate) errors: u32,
    pub(crate) publisher: Publisher,
}

/// A submission that did not go straight through. Interrupts are masked until the [rest](Queue::submit_on) is done.
#[must_use = "others cannot submit until it is done"]
pub(crate) struct Unsubmitted<B> {
    /// As the interrupts were before.
    mask: InterruptMask,
    left: Left<B>,
}

/// What is left of a submission.
enum Left<B> {
    /// The room that was known is used up.
    Everything(B, Overrun),
    /// The slots are written, and others submit at the same time.
    Publication(Ticket, Size, Company),
}

impl<H: Hal> Queue<H> {
    /// A queue in `slots`, as many as the ring says, with its status word in `status`; the hardware does not know them
    /// yet.
    pub(crate) fn new(ring: Ring, slots: Frames<H>, status: Frames<H>) -> Result<Self, OutOfMemory> {
        let status = Words::new(status, |words| words.first_chunk())?;
        Ok(Self {
            slots: Slots::new(slots, ring)?,
            wait: Descriptor::wait(status.phys()),
            status,
            producers: Producers::with_book(ring.slots(), Told::default())?,
            errors: Errors::default(),
            counters: Counters::default(),
        })
    }

    #[inline]
    pub(crate) fn ring(&self) -> Ring {
        self.slots.ring()
    }

    /// What the hardware was told of since start-up.
    pub(crate) fn totals(&self) -> Totals {
        self.producers.book().totals()
    }

    /// The physical address of the ring.
    pub(crate) fn phys(&self) -> PhysAddr {
        self.slots.phys()
    }

    /// The physical address of the ring, to be shown to hardware, which will write the status word too.
    pub(crate) fn publish(&self) -> PhysAddr {
        self.status.publish();
        self.slots.publish()
    }

    /// A wait that also drains page requests, and then writes a token elsewhere in the status memory.
    pub(crate) fn drain(&self, token: u32) -> Descriptor {
        Descriptor::drain(PhysAddr::new(self.status.phys().get() + 8 * DRAINED as u64), token)
    }

    /// The token of the latest drain that has completed.
    pub(crate) fn drained(&self) -> u32 {
        let [.., drained] = &*self.status;
        drained.load(Ordering::Acquire) as u32
    }

    /// Up to where the hardware has come, by the status word.
    #[inline]
    pub(crate) fn done(&self) -> Position {
        let [done, ..] = &*self.status;
        Position::new(done.load(Ordering::Acquire) as u32)
    }

    /// Puts a batch in the queue and returns when it has completed; see [`submit`](Self::submit) and
    /// [`wait`](Self::wait).
    pub(crate) fn run<M: Mmio>(
        &self,
        registers: &Registers<H, M>,
        batch: impl Batch,
    ) -> Result<(), SyncError> {
        let ticket = self.submit(registers, batch)?;
        self.wait(registers, ticket)
    }

    /// Puts a batch in the queue, with one write of the doorbell or none, if another CPU rings for both. If there is no
    /// room it waits for some.
    pub(crate) fn submit<M: Mmio>(
        &self,
        registers: &Registers<H, M>,
        batch: impl Batch,
    ) -> Result<Ticket, Timeout> {
        match self.submit_at_once(registers, batch) {
            Ok(ticket) => Ok(ticket),
            Err(unsubmitted) => self.submit_on(registers, unsubmitted),
        }
    }

    /// [`submit`](Self::submit) as far as it goes where there is room and nobody else submits.
    ///
    /// # Errors
    ///
    /// What is [left](Self::submit_on) of it.
    #[inline(always)]
    pub(crate) fn submit_at_once<M: Mmio, B: Batch>(
        &self,
        registers: &Registers<H, M>,
        batch: B,
    ) -> Result<Ticket, Unsubmitted<B>> {
        let size = batch.size();
        let mask = registers.hal().mask_interrupts();
        let first = match self.producers.reserve_known(size.places) {
            Ok(first) => first,
            Err(overrun) => return Err(Unsubmitted { mask, left: Left::Everything(batch, overrun) }),
        };
        let ticket = self.ticket(first, size);
        self.fill(first, batch);
        let bell = &mut Doorbell { queue: self, registers };
        if let Err(company) = self.producers.publish_alone(first, size.places, size.invalidations, bell) {
            return Err(Unsubmitted { mask, left: Left::Publication(ticket, size, company) });
        }
        registers.hal().restore_interrupts(mask);
        Ok(ticket)
    }

    /// Does the rest of [`submit_at_once`](Self::submit_at_once).
    #[cold]
    #[inline(never)]
    pub(crate) fn submit_on<M: Mmio>(
        &self,
        registers: &Registers<H, M>,
        Unsubmitted { mask, left }: Unsubmitted<impl Batch>,
    ) -> Result<Ticket, Timeout> {
        match left {
            Left::Publication(ticket, size, company) => {
                let Size { places, invalidations } = size;
                let bell = Doorbell { queue: self, registers };
                let publisher =
                    self.producers.publish_in_company(ticket.first, places, invalidations, company, bell);
                registers.hal().restore_interrupts(mask);
                Ok(Ticket { publisher, ..ticket })
            }
            Left::Everything(batch, overrun) => {
                let size = batch.size();
                let first = self.producers.settle(overrun, || self.done());
                let ticket = first.map(|first| self.submit_at(registers, first, batch.clone(), size));
                registers.hal().restore_interrupts(mask);
                match ticket {
                    Some(ticket) => Ok(ticket),
                    None => self.submit_when_there_is_room(registers, batch, size),
                }
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn submit_when_there_is_room<M: Mmio>(
        &self,
        registers: &Registers<H, M>,
        batch: impl Batch,
        size: Size,
    ) -> Result<Ticket, Timeout> {
        let mut patience = Patience::new(registers);
        loop {
            self.counters.retries.fetch_add(1, Ordering::Relaxed);
            let ticket = registers.hal().critical(|| {
                let first = self.producers.reserve_again(size.places, || self.done())?;
                Some(self.submit_at(registers, first, batch.clone(), size))
            });
            if let Some(ticket) = ticket {
                return Ok(ticket);
            }
            patience.spend(self, || {
                let (wanted, free) = (size.places.into(), self.free().into());
                Timeout::new("free invalidation queue slots", u32::MAX.into(), wanted, free)
            })?;
        }
    }

    /// About how many slots are free.
    fn free(&self) -> u32 {
        self.producers.capacity().saturating_sub(self.producers.published().since(self.done()))
    }

    /// Submits a batch at a place that is reserved for it.
    fn submit_at<M: Mmio>(
        &self,
        registers: &Registers<H, M>,
        first: Position,
        batch: impl Batch,
        size: Size,
    ) -> Ticket {
        let ticket = self.ticket(first, size);
        self.fill(first, batch);
        let publisher = self.hand_over(registers, first, size);
        Ticket { publisher, ..ticket }
    }

    /// The ticket of a batch of this size at a place, whose slots are yet to be written.
    #[inline]
    fn ticket(&self, first: Position, Size { places, .. }: Size) -> Ticket {
        let (end, errors) = (first.plus(places), self.errors.count());
        Ticket { first, end, errors, publisher: Publisher::Own }
    }

    /// Writes a batch to its slots, with its fences and the wait descriptor behind it.
    #[inline(always)]
    fn fill<B: Batch>(&self, first: Position, batch: B) {
        let mut place = first;
        let mut cache = None;
        for descriptor in batch {
            if !B::OF_ONE_CACHE {
                let before = cache.replace(descriptor.cache());
                if before.is_some_and(|before| before != descriptor.cache()) {
                    // Hardware may take all between two fences in any order (6.5.2.8).
                    self.slots.write(place, self.wait_at(place));
                    place = place.plus(1);
                }
            }
            self.slots.write(place, descriptor);
            place = place.plus(1);
        }
        self.slots.write(place, self.wait_at(place));
    }

    /// Writes a wait descriptor to a slot.
    #[inline]
    pub(crate) fn put_wait(&self, place: Position) {
        self.slots.write(place, self.wait_at(place));
    }

    /// The wait descriptor of a place.
    #[inline]
    fn wait_at(&self, place: Position) -> Descriptor {
        self.wait.with_status(place.plus(1).get())
    }

    /// Gives a batch whose slots are written to the hardware, or to the CPU that is about to ring.
    #[inline]
    pub(crate) fn hand_over<M: Mmio>(
        &self,
        registers: &Registers<H, M>,
        first: Position,
        size: Size,
    ) -> Publisher {
        let Size { places, invalidations } = size;
        self.producers.publish_with(first, places, invalidations, Doorbell { queue: self, registers })
    }

    /// To be called by the producer whose turn it is.
    #[inline(always)]
    pub(crate) fn ring_doorbell<M: Mmio>(&self, registers: &Registers<H, M>, run: &Run) {
        barrier::before_doorbell();
        registers.write64(IQT, self.ring().register_of(run.tail));
        self.producers.book().add(run);
    }

    /// Publishes what was left by a CPU that had done so for long: [`Producers::take_over`].
    fn take_over<M: Mmio>(&self, registers: &Registers<H, M>) {
        registers.hal().critical(|| self.producers.take_over(|run| self.ring_doorbell(registers, &run)));
    }

    /// Returns when the batch has completed, and takes turns with other CPUs that submit as often.
    ///
    /// # Errors
    ///
    /// [`SyncError::Timeout`], and [`SyncError::Faulted`] if the hardware refused a descriptor of this batch.
    pub(crate) fn wait<M: Mmio>(&self, registers: &Registers<H, M>, ticket: Ticket) -> Result<(), SyncError> {
        let is_alone = ticket.publisher == Publisher::Own;
        if is_alone && self.is_done(ticket) { Ok(()) } else { self.wait_longer(registers, ticket) }
    }

    /// Whether the batch has completed, and there was no error meanwhile.
    #[inline]
    pub(crate) fn is_done(&self, ticket: Ticket) -> bool {
        let is_done = self.done().has_reached(ticket.end);
        barrier::after_completion();
        is_done && self.errors.count() == ticket.errors
    }

    #[cold]
    fn wait_longer<M: Mmio>(&self, registers: &Registers<H, M>, ticket: Ticket) -> Result<(), SyncError> {
        let is_done = || self.done().has_reached(ticket.end);
        let fetch = |from| self.slots.fetch(from);
        self.producers.take_turns(registers.hal(), ticket.publisher, is_done, fetch);
        self.wait_until_done(registers, ticket.end)?;
        barrier::after_completion();
        if self.errors.count() != ticket.errors && self.errors.concern(registers.hal(), &ticket) {
            return Err(SyncError::Faulted);
        }
        Ok(())
    }

    fn wait_until_done<M: Mmio>(&self, registers: &Registers<H, M>, end: Position) -> Result<(), Timeout> {
        let mut patience = Patience::new(registers);
        while !self.done().has_reached(end) {
            patience.spend(self, || {
                let (wanted, done) = (end.get().into(), self.done().get().into());
                Timeout::new("invalidation status word", u32::MAX.into(), wanted, done)
            })?;
        }
        Ok(())
    }
}

/// Whoever publishes, at the bell.
struct Doorbell<'a, H: Hal, M: Mmio> {
    queue: &'a Queue<H>,
    registers: &'a Registers<H, M>,
}

impl<H: Hal, M: Mmio> Bell for Doorbell<'_, H, M> {
    // On the way of every unmap; as a closure it would be called.
    #[inline(always)]
    fn ring(&mut self, run: Run) {
        self.queue.ring_doorbell(self.registers, &run);
    }
}

/// How large a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    invalidations: u32,
    /// Its slots: a fence where the next cache begins, and a wait descriptor at the end.
    places: u32,
}

impl Size {
    /// A wait descriptor alone.
    pub(crate) const WAIT: Self = Self { invalidations: 0, places: 1 };

    /// So many invalidations of one cache.
    pub(crate) const fn of_one_cache(invalidations: u8) -> Self {
        Self { invalidations: invalidations as u32, places: invalidations as u32 + 1 }
    }
}

/// Descriptors that are submitted together.
pub(crate) trait Batch: Iterator<Item = Descriptor> + Clone {
    /// Whether there is never a fence between two of them.
    const OF_ONE_CACHE: bool;

    fn size(&self) -> Size;
}

impl<'a, I: Iterator<Item = &'a Descriptor> + Clone> Batch for Copied<I> {
    const OF_ONE_CACHE: bool = false;

    fn size(&self) -> Size {
        let mut size = Size::WAIT;
        let mut cache = None;
        for descriptor in self.clone() {
            let fence = cache.replace(descriptor.cache()).is_some_and(|before| before != descriptor.cache());
            size.invalidations += u32::from(descriptor.cache() != Cache::PageRequests);
            size.places += 1 + u32::from(fence);
        }
        size
    }
}

impl Batch for Once<Descriptor> {
    const OF_ONE_CACHE: bool = true;

    #[inline]
    fn size(&self) -> Size {
        Size::of_one_cache(1)
    }
}

impl Batch for RangeInvalidation {
    const OF_ONE_CACHE: bool = true;

    #[inline]
    fn size(&self) -> Size {
        Size::of_one_cache(self.left())
    }
}

/// How many slots a cache line has.
const PER_LINE: usize = 2;

/// How many slots are fetched for a turn: two pages.
const FETCHED: u32 = 256;

/// The upper halves of the slots are zero from the beginning, and nobody writes to them.
impl<H: Hal> Slots<H> {
    /// Fills the slot of a place.
    #[inline]
    fn write(&self, place: Position, Descriptor(words): Descriptor) {
        let ([low, high, _, _], [low_value, high_value]) = (self.at(place), words);
        low.store(low_value, Ordering::Relaxed);
        high.store(high_value, Ordering::Relaxed);
    }

    /// Has the slots from a place on [fetched](barrier::fetch_to_write), as many as a turn needs.
    fn fetch(&self, from: Position) {
        for ahead in (0..FETCHED.min(self.ring().slots())).step_by(PER_LINE) {
            let [low, ..] = self.at(from.plus(ahead));
            barrier::fetch_to_write(NonNull::from(low).cast());
        }
    }

    /// What is in the slot of a place.
    pub(crate) fn read(&self, place: Position) -> Descriptor {
        let [low, high, _, _] = self.at(place);
        Descriptor([low, high].map(|word| word.load(Ordering::Relaxed)))
    }
}

/// A bounded wait that attends now and then to errors, and to what was left unpublished.
struct Patience<'a, H: Hal, M: Mmio> {
    registers: &'a Registers<H, M>,
    start: u64,
    attend: u64,
    last_look: LastLook,
}

/// Whether the errors were attended to after the time was up.
#[derive(PartialEq, Eq)]
enum LastLook {
    Ahead,
    Taken,
}

impl<'a, H: Hal, M: Mmio> Patience<'a, H, M> {
    fn new(registers: &'a Registers<H, M>) -> Self {
        let start = registers.hal().now_ns();
        Self { registers, start, attend: start.saturating_add(ATTEND_NS), last_look: LastLook::Ahead }
    }

    /// Passes a moment, or reports that time is up.
    fn spend(&mut self, queue: &Queue<H>, timeout: impl FnOnce() -> Timeout) -> Result<(), Timeout> {
        let now = self.registers.hal().now_ns();
        if now.saturating_sub(self.start) > self.registers.timeout_ns() {
            // The CPU may have been away meanwhile; what counts is the hardware, so the caller looks once more.
            if self.last_look == LastLook::Taken {
                return Err(timeout());
            }
            self.last_look = LastLook::Taken;
            self.attend = now;
        }
        if now >= self.attend {
            queue.recover(self.registers);
            queue.take_over(self.registers);
            self.attend = now.saturating_add(ATTEND_NS);
        }
        self.registers.hal().relax();
        Ok(())
    }
}
