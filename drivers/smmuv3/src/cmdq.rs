//! The command queue: many submitters, one ring.
//!
//! # Submitting
//!
//! Submitters stand in a [`Line`]: one atomic addition for the slots, no lock around the batch, one doorbell for all that
//! is published together. Interrupts are masked from the reservation to the publication, so that a handler that submits
//! on the same CPU finds no gap that waits for its own return. Who finds no room waits with interrupts on and nothing in
//! its hands, so giving up leaves no hole.
//!
//! # Completion
//!
//! A submitter waits for its own sync or for one that it shares. What one waiter learns of the unit's progress, all know
//! (`consumed`). Where the unit writes messages to memory that it snoops, each sync writes its position to one word,
//! and waiters read a register only now and then, for errors; syncs complete in order (IHI 0070, 4.7.3), so the word only
//! moves on and nobody resets it. Otherwise they poll CMDQ_CONS, with back-off.
//!
//! # Cost
//!
//! An undisturbed submission that waits takes one doorbell and one read of CMDQ_CONS, three atomic read-modify-writes,
//! and no look at the clock. What the unit has consumed is looked up once per lap of the ring.

use crate::atc::UnitThenDevices;
use crate::command::{Command, PreparedSync};
use crate::dma::{MessageWord, Ring};
use crate::line::{Consumer, Line, Tail, Totals};
use crate::port::{Health, Port};
use crate::recovery::Recovery;
use crate::ring::RingSize;
use crate::spec::cmd::{COMMAND_WORDS, CommandError};
use crate::spec::registers::{self, CmdqCons};
use crate::wait::Wait;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use portcullis_hal::producers::{Company, Overrun, Position, Publisher};
use portcullis_hal::wait::Timeout;
use portcullis_hal::{Hal, InterruptMask, Mmio, OutOfMemory, PhysAddr, SyncError, barrier};

/// The ring, its line and its indices.
pub(crate) struct CommandQueue<H: Hal> {
    pub(crate) ring: Ring<H, COMMAND_WORDS>,
    line: Line,
    /// The position that the unit is known to have reached. Moves on only.
    consumed: AtomicU32,
    /// Where syncs tell their position, if they do.
    message: Option<MessageWord<H>>,
    sync: PreparedSync,
    /// Syncs within batches, which the line counts as commands.
    inner_syncs: AtomicU64,
    pub(crate) recovery: Recovery,
}

/// A batch on its way, to be waited for. `None`: there was nothing to do.
#[derive(Clone, Copy, Debug)]
#[must_use = "commands have no effect for certain before their sync was waited for"]
pub(crate) struct Ticket(Option<Batch>);

impl Ticket {
    /// There is nothing to wait for any more.
    pub(crate) const DONE: Self = Self(None);
}

impl Ticket {
    /// What is waited for.
    pub(crate) fn batch(&self) -> Option<&Batch> {
        self.0.as_ref()
    }
}

/// What became of a command that was to be done at once. In words that fit registers: whoever tried hands them on.
pub(crate) enum Tried {
    /// The unit has done it.
    Done,
    /// It is on its way.
    Sent(Pair),
    /// It is in the ring, and others submit at the same time. Interrupts are masked until it is
    /// [published](Port::publish_in_company).
    InCompany(Pair, Company, InterruptMask),
    /// Nothing: the room that was known is used up. The ring is closed, and interrupts are masked, until it is
    /// [given up](Port::give_up).
    NoRoom(Overrun, InterruptMask),
    /// Nothing: the unit is not in service, or somebody else publishes.
    Disturbed,
}

/// A command in the ring, and its sync.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    first: Position,
    /// How many commands had failed before.
    failures_before: u64,
}

impl Pair {
    /// What is waited for, after this CPU or another published it.
    pub(crate) fn published(self, publisher: Publisher) -> Ticket {
        let Self { first, failures_before } = self;
        Ticket(Some(Batch { first, end: first.plus(2), tail: Tail::Sync, publisher, failures_before }))
    }
}

/// Commands in the ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch {
    first: Position,
    end: Position,
    tail: Tail,
    publisher: Publisher,
    /// How many commands had failed before.
    failures_before: u64,
}

impl Batch {
    /// A batch that shares a sync, before which nothing had failed.
    #[cfg(test)]
    pub(crate) fn new(first: Position, end: Position) -> Self {
        Self { first, end, tail: Tail::Command, publisher: Publisher::Own, failures_before: 0 }
    }

    /// The position of the first command.
    pub(crate) fn first(&self) -> Position {
        self.first
    }

    pub(crate) fn failures_before(&self) -> u64 {
        self.failures_before
    }

    /// Whether the command at `position` is one of these.
    pub(crate) fn contains(&self, position: Position) -> bool {
        position.since(self.first) < self.end.since(self.first)
    }

    /// Whether `position` is that of one of these, or comes behind them and before `end`.
    pub(crate) fn reaches(&self, position: Position, end: Position) -> bool {
        position.since(self.first) < end.since(self.first)
    }
}

/// What the unit tells of its progress.
#[derive(Clone, Copy, Debug)]
struct Progress {
    /// The position reached.
    consumed: Position,
    /// The queue stopped at an error; it may have been restarted since.
    stopped: bool,
}

impl<H: Hal> CommandQueue<H> {
    /// The smallest queue, as a power of two: one slot of a ring always stays empty.
    pub(crate) const MIN_LOG2: u8 = 1;

    pub(crate) fn new(
        ring: Ring<H, COMMAND_WORDS>,
        message: Option<MessageWord<H>>,
    ) -> Result<Self, OutOfMemory> {
        let line = Line::new(ring.size().entries() as u32)?;
        let sync = PreparedSync::new(message.as_ref().map(MessageWord::address));
        let (consumed, inner_syncs) = (AtomicU32::new(0), AtomicU64::new(0));
        Ok(Self { ring, line, consumed, message, sync, inner_syncs, recovery: Recovery::new() })
    }

    pub(crate) fn size(&self) -> RingSize {
        self.ring.size()
    }

    pub(crate) fn phys(&self) -> Option<PhysAddr> {
        self.ring.phys()
    }

    /// CMDQ_CONS when the queue last stopped at an error.
    pub(crate) fn last_error(&self) -> CmdqCons {
        self.recovery.last_error()
    }

    /// What the unit was given since start-up.
    pub(crate) fn totals(&self) -> Totals {
        let inner = self.inner_syncs.load(Ordering::Relaxed);
        let totals = self.line.totals();
        let (commands, syncs) = (totals.commands.saturating_sub(inner), totals.syncs.saturating_add(inner));
        Totals { commands, syncs, ..totals }
    }

    pub(crate) fn leak(&mut self) {
        self.ring.leak();
        if let Some(message) = &mut self.message {
            message.leak();
        }
    }

    /// The position of a command that the unit was told of, from its index in CMDQ_CONS.
    pub(crate) fn position_of(&self, index: u32) -> Option<Position> {
        let position = self.at_or_after(self.consumed(), index)?;
        self.line.is_published(position).then_some(position)
    }

    #[inline]
    fn at_or_after(&self, base: Position, index: u32) -> Option<Position> {
        self.size().position(base.get().into(), index).map(|position| Position::new(position as u32))
    }

    #[inline]
    fn consumed(&self) -> Position {
        Position::new(self.consumed.load(Ordering::Acquire))
    }

    /// Takes note that the unit was seen at `reached`, when `base` was known. Returns the furthest that is known now.
    fn advance(&self, base: Position, reached: Position) -> Position {
        if reached == base {
            return base;
        }
        // One attempt: whoever was faster looked at the same time.
        match self.consumed.compare_exchange(base.get(), reached.get(), Ordering::AcqRel, Ordering::Acquire) {
            Err(now) if Position::new(now).has_reached(reached) => Position::new(now),
            _ => reached,
        }
    }

    /// How many commands fit the ring together, with their sync.
    pub(crate) fn piece(&self) -> usize {
        (self.line.capacity() as usize).saturating_sub(1).max(1)
    }

    /// Fills slots that are the caller's.
    #[inline]
    fn fill(&self, first: Position, commands: impl Iterator<Item = Command>, tail: Tail) -> Position {
        let mut position = first;
        for command in commands {
            self.ring.write(position.get().into(), command.0);
            position = position.plus(1);
        }
        if tail == Tail::Sync {
            let end = position.plus(1);
            self.ring.write(position.get().into(), self.sync.before(end.get()).0);
            position = end;
        }
        // Another CPU may ring the doorbell.
        barrier::publish_to_device();
        position
    }
}

impl<H: Hal, M: Mmio> Consumer for Port<H, M> {
    #[inline]
    fn consumed(&self) -> Position {
        self.commands.consumed()
    }

    fn put_sync(&self, position: Position) {
        self.commands.fill(position, core::iter::empty(), Tail::Sync);
    }

    #[inline]
    fn tell(&self, end: Position) {
        if self.health() == Health::Running {
            barrier::before_doorbell();
            self.block.write(registers::CMDQ_PROD, self.commands.size().index(end.get().into()));
        }
    }
}

impl<H: Hal, M: Mmio> Port<H, M> {
    /// Submits `commands` and a sync, and waits for it.
    pub(crate) fn execute(&self, commands: &[Command]) -> Result<(), SyncError> {
        let ticket = self.submit(commands.iter().copied())?;
        self.complete(&ticket)
    }

    /// Submits `command` and a sync, and waits for it, as [`execute`](Self::execute) does.
    pub(crate) fn execute_one(&self, command: Command) -> Result<(), SyncError> {
        match self.attempt(command) {
            Tried::Done => Ok(()),
            tried => match self.ticket(tried) {
                Some(ticket) => self.complete(&ticket),
                None => self.execute(&[command]),
            },
        }
    }

    /// Submits `command` and a sync, if nobody disturbs that and there is room.
    pub(crate) fn submit_one(&self, command: Command) -> Option<Ticket> {
        self.ticket(self.attempt(command))
    }

    /// Does the rest of what was tried, to the ticket; `None` if nothing has become of it.
    #[inline(never)]
    fn ticket(&self, tried: Tried) -> Option<Ticket> {
        match tried {
            Tried::Done => Some(Ticket::DONE),
            Tried::Sent(pair) => Some(pair.published(Publisher::Own)),
            Tried::InCompany(pair, company, mask) => Some(self.publish_in_company(pair, company, mask)),
            Tried::NoRoom(overrun, mask) => {
                self.give_up(overrun, mask);
                None
            }
            Tried::Disturbed => None,
        }
    }

    /// Submits `command` and a sync, where nobody disturbs that and there is room, and looks once if the unit is done: the
    /// way of most unmaps.
    #[inline(always)]
    pub(crate) fn attempt(&self, command: Command) -> Tried {
        let queue = &self.commands;
        if self.health() != Health::Running || queue.line.is_disturbed() {
            return Tried::Disturbed;
        }
        let failures_before = queue.recovery.failures();
        let mask = self.hal().mask_interrupts();
        let first = match queue.line.reserve_pair() {
            Ok(first) => first,
            Err(overrun) => return Tried::NoRoom(overrun, mask),
        };
        let end = first.plus(2);
        queue.ring.write_two(first.get().into(), [command.0, queue.sync.before(end.get()).0]);
        barrier::publish_to_device();
        let pair = Pair { first, failures_before };
        if let Err(company) = queue.line.publish_pair(first, self) {
            return Tried::InCompany(pair, company, mask);
        }
        self.hal().restore_interrupts(mask);
        if self.has_passed(end) {
            barrier::after_completion();
            if queue.recovery.failures() == failures_before {
                return Tried::Done;
            }
        }
        Tried::Sent(pair)
    }

    /// Does the rest of an [attempt](Self::attempt) for which there was no room.
    #[cold]
    pub(crate) fn give_up(&self, overrun: Overrun, mask: InterruptMask) {
        self.commands.line.give_up(overrun, self);
        self.hal().restore_interrupts(mask);
    }

    /// Does the rest of an [attempt](Self::attempt) to publish a command while others submit.
    #[cold]
    pub(crate) fn publish_in_company(&self, pair: Pair, company: Company, mask: InterruptMask) -> Ticket {
        let publisher = self.commands.line.publish_pair_in_company(pair.first, company, self);
        self.hal().restore_interrupts(mask);
        pair.published(publisher)
    }

    /// Whether the unit has just passed a sync of the caller's, by its own word, that ends at `end`.
    ///
    /// The unit is never a queueful short of the end of what is in the ring, so an index that is less than that behind
    /// `end` is not short of it. Whoever was away for longer may be told no.
    #[inline]
    fn has_passed(&self, end: Position) -> bool {
        let queue = &self.commands;
        match &queue.message {
            None => {
                let cons = CmdqCons::from(self.block.read(registers::CMDQ_CONS));
                queue.size().is_less_than_a_queueful(end.get(), cons.rd())
            }
            Some(message) => Position::new(message.read()).since(end) <= queue.line.capacity(),
        }
    }

    /// Makes the unit forget what `command` names and waits for it. A unit that refuses the command is asked once to
    /// forget everything.
    pub(crate) fn forget(&self, command: Command) -> Result<(), SyncError> {
        match self.execute_one(command) {
            Err(SyncError::Faulted) if self.health() == Health::Running => {
                self.execute(&[Command::cfgi_all(), Command::tlbi_nsnh_all()])
            }
            result => result,
        }
    }

    /// Submits `commands`, with one write of the doorbell if the queue holds them all.
    ///
    /// On a unit that is off there is nothing to invalidate, and the ticket is done.
    ///
    /// # Errors
    ///
    /// The unit failed, or made no room in time, which takes it out of service.
    pub(crate) fn submit(
        &self,
        mut commands: impl ExactSizeIterator<Item = Command>,
    ) -> Result<Ticket, SyncError> {
        match self.health() {
            Health::Running => {}
            Health::Off => return Ok(Ticket(None)),
            Health::Faulted => return Err(SyncError::Faulted),
        }
        // Only tiny rings need more than one piece.
        let piece = self.commands.piece();
        let first = self.enqueue(&mut commands, piece)?;
        let mut last = first;
        while commands.len() != 0 {
            last = self.enqueue(&mut commands, piece)?;
        }
        Ok(Ticket(Some(Batch { end: last.end, tail: last.tail, publisher: last.publisher, ..first })))
    }

    /// [`submit`](Self::submit) of what a unit is to forget before its devices do.
    pub(crate) fn submit_with_devices(&self, commands: UnitThenDevices) -> Result<Ticket, SyncError> {
        let ticket = self.submit(commands)?;
        if ticket.0.is_some() {
            self.commands.inner_syncs.fetch_add(UnitThenDevices::SYNCS, Ordering::Relaxed);
        }
        Ok(ticket)
    }

    /// Puts the next commands, `most` at most, into the ring when there is room for all of them.
    fn enqueue(
        &self,
        commands: &mut impl ExactSizeIterator<Item = Command>,
        most: usize,
    ) -> Result<Batch, SyncError> {
        let mut wait = Wait::new();
        let mut unknowing = true;
        loop {
            if let Some(batch) = self.hal().critical(|| self.try_enqueue(commands, most)) {
                return Ok(batch);
            }
            let before = self.commands.consumed();
            let progress = self.progress(&wait);
            if progress.consumed != before {
                // There may have been room all along.
                if core::mem::take(&mut unknowing) {
                    continue;
                }
                wait.encourage();
            }
            if wait.is_overdue() {
                return Err(self.timed_out(before.plus(1)));
            }
            self.turn(&mut wait, progress);
            if self.health() != Health::Running {
                return Err(SyncError::Faulted);
            }
        }
    }

    fn try_enqueue(
        &self,
        commands: &mut impl ExactSizeIterator<Item = Command>,
        most: usize,
    ) -> Option<Batch> {
        let queue = &self.commands;
        let failures_before = queue.recovery.failures();
        let count = commands.len().min(most);
        let (first, tail) = queue.line.reserve(count as u32, self)?;
        let end = queue.fill(first, commands.take(count), tail);
        let publisher = queue.line.publish(first, end.since(first), tail, self);
        Some(Batch { first, end, tail, publisher, failures_before })
    }

    /// [`complete`](Self::complete) for an invalidation of a domain, of which more are likely to come at once: takes
    /// turns with other CPUs that do the same.
    ///
    /// # Errors
    ///
    /// As there.
    pub(crate) fn complete_one_of_many(&self, ticket: &Ticket) -> Result<(), SyncError> {
        if let Some(batch) = &ticket.0 {
            let is_done = || {
                let line = &self.commands.line;
                let own_sync = (batch.tail == Tail::Sync).then_some(batch.end);
                let sync = own_sync.or_else(|| line.sync_behind(batch.end));
                sync.is_some_and(|end| self.has_passed(end))
            };
            let fetch = |from: Position| self.commands.ring.fetch(from.get().into());
            self.commands.line.take_turns(self.hal(), batch.publisher, is_done, fetch);
        }
        self.complete(ticket)
    }

    /// Waits until the unit has completed a sync behind the commands of `ticket`.
    ///
    /// # Errors
    ///
    /// [`SyncError::Faulted`] if the unit refused one of the ticket's commands, or failed; a time-out takes the unit
    /// out of service.
    pub(crate) fn complete(&self, ticket: &Ticket) -> Result<(), SyncError> {
        let Some(batch) = &ticket.0 else { return Ok(()) };
        let queue = &self.commands;
        let mut sync = (batch.tail == Tail::Sync).then_some(batch.end);
        let mut wait = Wait::new();
        let passed = loop {
            sync = sync.or_else(|| queue.line.sync_behind(batch.end));
            let passed = |consumed: Position| sync.filter(|&end| consumed.has_reached(end));
            if let Some(end) = passed(queue.consumed()) {
                break end;
            }
            let progress = self.progress(&wait);
            if let Some(end) = passed(progress.consumed) {
                break end;
            }
            match self.health() {
                Health::Running if !wait.is_overdue() => {
                    if sync.is_none() {
                        self.hal().critical(|| queue.line.ask_for_sync(self));
                    }
                    self.turn(&mut wait, progress);
                }
                Health::Running => return Err(self.timed_out(sync.unwrap_or(batch.end))),
                Health::Off => return Ok(()),
                Health::Faulted => return Err(SyncError::Faulted),
            }
        };
        barrier::after_completion();
        if queue.recovery.failures() == batch.failures_before {
            return Ok(());
        }
        let failed = self.hal().critical(|| queue.recovery.concerns(batch, passed));
        if failed { Err(SyncError::Faulted) } else { Ok(()) }
    }

    /// One turn of waiting for the unit, after a look at it: sees to errors and to what was left unpublished, and gives it
    /// some time.
    fn turn(&self, wait: &mut Wait, progress: Progress) {
        if progress.stopped {
            self.restart();
        }
        if wait.is_time_for_registers() {
            self.hal().critical(|| self.commands.line.take_over(self));
        }
        wait.turn(self.hal(), self.block.timeout_ns);
    }

    /// Looks how far the unit has come.
    fn progress(&self, wait: &Wait) -> Progress {
        let queue = &self.commands;
        match &queue.message {
            Some(message) if !wait.is_time_for_registers() => {
                let base = queue.consumed();
                let told = Position::new(message.read());
                // Further behind or ahead than the ring is long: an older message.
                let reached = if told.since(base) <= queue.line.capacity() { told } else { base };
                Progress { consumed: queue.advance(base, reached), stopped: false }
            }
            _ => self.read_consumer(),
        }
    }

    /// Reads CMDQ_CONS.
    ///
    /// The line never goes more than a queueful beyond `consumed`, and so neither does the unit, unless `consumed`
    /// itself has moved meanwhile: then the index tells nothing that is not known.
    fn read_consumer(&self) -> Progress {
        let queue = &self.commands;
        let base = queue.consumed();
        let cons = CmdqCons::from(self.block.read(registers::CMDQ_CONS));
        let stopped = cons.err() != CommandError::NONE;
        let now = queue.consumed();
        if now != base {
            return Progress { consumed: now, stopped };
        }
        // An index out of reach is no progress; the wait that needs it times out. A message may come before the index
        // moves, which then is out of reach, too.
        let reached = queue.at_or_after(base, cons.rd()).unwrap_or(base);
        Progress { consumed: queue.advance(base, reached), stopped }
    }

    fn timed_out(&self, awaited: Position) -> SyncError {
        let size = self.commands.size();
        let (mask, expected) = (size.index_mask(), size.index(awaited.get().into()));
        let last = self.block.read(registers::CMDQ_CONS);
        let timeout = Timeout::new(registers::CMDQ_CONS.name, mask.into(), expected.into(), last.into());
        self.fault_late(&timeout);
        SyncError::Timeout(timeout)
    }
}
