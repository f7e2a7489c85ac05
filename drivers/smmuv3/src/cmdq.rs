//! The command queue: many submitters, one ring.
//!
//! A submitter takes the lock for as long as it writes its slots and the doorbell, with interrupts masked, and waits
//! for completion without it. Positions count commands since start-up, so that "has the unit passed my sync?" is a
//! comparison of two numbers that never wrap.

use crate::command::Command;
use crate::dma::Ring;
use crate::port::{Health, Port, count};
use crate::ring::RingSize;
use crate::spec::cmd::{COMMAND_WORDS, CommandError};
use crate::spec::registers::{self, CmdqCons, Gerror};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use portcullis_hal::wait::Timeout;
use portcullis_hal::{Hal, Mmio, PhysAddr, SyncError, barrier};
use spin::Mutex;

/// How many failed commands are remembered until their submitters have looked.
const REMEMBERED: usize = 16;
/// How often in a row the fetch of one command may fail before the unit counts as broken.
const MAX_FETCH_RETRIES: u32 = 3;

/// The ring and its indices.
pub(crate) struct CommandQueue<H: Hal> {
    ring: Ring<H, COMMAND_WORDS>,
    producer: Mutex<Producer>,
    /// The position that the unit is known to have reached. Grows only.
    consumed: AtomicU64,
    /// How many commands have failed, so that a completion without failures needs no lock.
    failures: AtomicU64,
    /// CMDQ_CONS when the queue last stopped at an error.
    last_error: AtomicU32,
}

#[derive(Debug)]
struct Producer {
    /// The position of the next free slot.
    position: u64,
    failures: Failures,
    /// The command that the unit last failed to fetch, and how often in a row.
    fetches: (u64, u32),
}

/// The commands that failed most recently.
#[derive(Clone, Copy, Debug)]
struct Failures {
    positions: [u64; REMEMBERED],
    count: u64,
}

impl Failures {
    fn add(&mut self, position: u64) {
        let slot = self.count % REMEMBERED as u64;
        if let Some(slot) = self.positions.get_mut(slot as usize) {
            *slot = position;
        }
        self.count += 1;
    }

    /// Whether a command of `ticket` failed. If more have failed since than are remembered, it may have.
    fn concern(&self, ticket: &Ticket) -> bool {
        let new = self.count.saturating_sub(ticket.failures_before);
        let remembered = self.count.min(REMEMBERED as u64) as usize;
        let mut known = self.positions.iter().take(remembered);
        new > REMEMBERED as u64 || (new > 0 && known.any(|&at| ticket.first <= at && at < ticket.end))
    }
}

/// A batch of commands on its way, to be waited for.
#[derive(Clone, Copy, Debug)]
#[must_use = "commands have no effect for certain before their sync was waited for"]
pub(crate) struct Ticket {
    first: u64,
    end: u64,
    failures_before: u64,
}

/// What CMDQ_CONS tells.
#[derive(Clone, Copy, Debug)]
struct Progress {
    /// The position reached.
    consumed: u64,
    /// The queue stopped at an error; it may have been restarted since.
    stopped: bool,
}

impl<H: Hal> CommandQueue<H> {
    pub(crate) fn new(ring: Ring<H, COMMAND_WORDS>) -> Self {
        Self {
            ring,
            producer: Mutex::new(Producer {
                position: 0,
                failures: Failures { positions: [0; REMEMBERED], count: 0 },
                fetches: (0, 0),
            }),
            consumed: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            last_error: AtomicU32::new(0),
        }
    }

    pub(crate) fn size(&self) -> RingSize {
        self.ring.size()
    }

    pub(crate) fn phys(&self) -> Option<PhysAddr> {
        self.ring.phys()
    }

    /// CMDQ_CONS when the queue last stopped at an error.
    pub(crate) fn last_error(&self) -> CmdqCons {
        self.last_error.load(Ordering::Relaxed).into()
    }

    pub(crate) fn leak(&mut self) {
        self.ring.leak();
    }
}

impl<H: Hal, M: Mmio> Port<H, M> {
    /// Submits `commands` and a sync, and waits for it.
    pub(crate) fn execute(&self, commands: &[Command]) -> Result<(), SyncError> {
        let ticket = self.submit(commands)?;
        self.complete(&ticket)
    }

    /// Makes the unit forget what `command` names and waits for it. A unit that refuses the command is asked once to
    /// forget everything.
    pub(crate) fn forget(&self, command: Command) -> Result<(), SyncError> {
        match self.execute(&[command]) {
            Err(SyncError::Faulted) if self.health() == Health::Running => {
                self.execute(&[Command::cfgi_all(), Command::tlbi_nsnh_all()])
            }
            result => result,
        }
    }

    /// Submits `commands` and a sync behind them, with one write of the doorbell if the queue holds them all.
    ///
    /// On a unit that is off there is nothing to invalidate, and the ticket is done.
    pub(crate) fn submit(&self, commands: &[Command]) -> Result<Ticket, SyncError> {
        match self.health() {
            Health::Running => {}
            Health::Off => {
                return Ok(Ticket { first: 0, end: 0, failures_before: u64::MAX });
            }
            Health::Faulted => return Err(SyncError::Faulted),
        }
        // With the sync it has to fit the ring; only tiny rings need more than one piece.
        let piece = self.commands.size().entries().saturating_sub(1).max(1) as usize;
        let mut first = None;
        let mut rest = commands;
        while rest.len() > piece {
            let (now, later) = rest.split_at_checked(piece).unwrap_or((rest, &[]));
            let ticket = self.enqueue(now, None)?;
            first = first.or(Some(ticket));
            rest = later;
        }
        if self.commands.size().entries() == 1 {
            let ticket = self.enqueue(rest, None)?;
            first = first.or(Some(ticket));
            rest = &[];
        }
        let last = self.enqueue(rest, Some(Command::sync()))?;
        self.counters.invalidations.fetch_add(commands.len() as u64, Ordering::Relaxed);
        count(&self.counters.syncs);
        let first = first.unwrap_or(last);
        Ok(Ticket { first: first.first, end: last.end, failures_before: first.failures_before })
    }

    /// Puts commands into the ring when there is room for all of them.
    fn enqueue(&self, commands: &[Command], sync: Option<Command>) -> Result<Ticket, SyncError> {
        let start = self.hal().now_ns();
        loop {
            if let Some(ticket) = self.try_enqueue(commands, sync) {
                return Ok(ticket);
            }
            if self.refresh().stopped {
                self.restart();
            }
            if self.health() != Health::Running {
                return Err(SyncError::Faulted);
            }
            if self.hal().now_ns().saturating_sub(start) > self.block.timeout_ns {
                let consumed = self.commands.consumed.load(Ordering::Relaxed);
                return Err(self.timed_out(consumed.wrapping_add(1)));
            }
            self.hal().relax();
        }
    }

    fn try_enqueue(&self, commands: &[Command], sync: Option<Command>) -> Option<Ticket> {
        let queue = &self.commands;
        let size = queue.size();
        let total = commands.len() as u64 + u64::from(sync.is_some());
        self.hal().critical(|| {
            let mut producer = queue.producer.lock();
            if !size.fits(producer.position, queue.consumed.load(Ordering::Acquire), total)
                && !size.fits(producer.position, self.refresh().consumed, total)
            {
                return None;
            }
            let first = producer.position;
            let mut position = first;
            for command in commands.iter().chain(&sync) {
                queue.ring.write(position, command.0);
                position += 1;
            }
            producer.position = position;
            barrier::before_doorbell();
            self.block.write(registers::CMDQ_PROD, size.index(position));
            count(&self.counters.doorbells);
            Some(Ticket { first, end: position, failures_before: producer.failures.count })
        })
    }

    /// Reads how far the unit has come.
    ///
    /// A producer never goes more than a queueful beyond `consumed`, and so neither does the unit, unless `consumed`
    /// itself has moved meanwhile: only then does the index have to be read again.
    fn refresh(&self) -> Progress {
        let queue = &self.commands;
        let mut base = queue.consumed.load(Ordering::Acquire);
        loop {
            let cons = CmdqCons::from(self.block.read(registers::CMDQ_CONS));
            let now = queue.consumed.load(Ordering::Acquire);
            if now != base {
                base = now;
                continue;
            }
            // An index out of reach is no progress; the wait that needs it times out.
            let reached = queue.size().position(base, cons.rd()).unwrap_or(base);
            let consumed = queue.consumed.fetch_max(reached, Ordering::AcqRel).max(reached);
            return Progress { consumed, stopped: cons.err() != CommandError::NONE };
        }
    }

    /// Waits until the unit has completed the sync of `ticket`.
    ///
    /// # Errors
    ///
    /// [`SyncError::Faulted`] if the unit refused one of the ticket's commands, or failed; a time-out takes the unit
    /// out of service.
    pub(crate) fn complete(&self, ticket: &Ticket) -> Result<(), SyncError> {
        let queue = &self.commands;
        let start = self.hal().now_ns();
        let mut overdue = false;
        while queue.consumed.load(Ordering::Acquire) < ticket.end {
            let progress = self.refresh();
            if progress.consumed >= ticket.end {
                break;
            }
            if progress.stopped {
                self.restart();
            }
            match self.health() {
                Health::Running => {}
                Health::Off => break,
                Health::Faulted => return Err(SyncError::Faulted),
            }
            if overdue {
                return Err(self.timed_out(ticket.end));
            }
            // The CPU may have been away; the unit gets one more look.
            overdue = self.hal().now_ns().saturating_sub(start) > self.block.timeout_ns;
            self.hal().relax();
        }
        barrier::after_completion();
        if queue.failures.load(Ordering::Acquire) == ticket.failures_before {
            return Ok(());
        }
        let failed = self.hal().critical(|| queue.producer.lock().failures.concern(ticket));
        if failed { Err(SyncError::Faulted) } else { Ok(()) }
    }

    fn timed_out(&self, awaited: u64) -> SyncError {
        let size = self.commands.size();
        let timeout = Timeout {
            register: registers::CMDQ_CONS.name,
            mask: u64::from(size.index_mask()),
            expected: u64::from(size.index(awaited)),
            last: u64::from(self.block.read(registers::CMDQ_CONS)),
        };
        self.fault(&timeout);
        SyncError::Timeout(timeout)
    }

    /// Sees to it that a queue that stopped at a bad command goes on. CMDQ_CONS.ERR outlives the error that it tells
    /// of, so there may be nothing to do.
    fn restart(&self) {
        self.hal().critical(|| {
            let mut producer = self.commands.producer.lock();
            self.acknowledge_errors(|active| {
                if active.cmdq_err() && self.health() == Health::Running {
                    self.recover(&mut producer);
                }
                Gerror::new().with_cmdq_err(active.cmdq_err() && self.health() == Health::Running)
            });
        });
    }

    /// Replaces the command at which the queue stopped by a sync, which does nothing, and notes its submitter. The
    /// acknowledgement that follows makes the unit fetch the slot again.
    fn recover(&self, producer: &mut Producer) {
        let queue = &self.commands;
        let cons = CmdqCons::from(self.block.read(registers::CMDQ_CONS));
        let base = queue.consumed.load(Ordering::Acquire);
        count(&self.counters.queue_errors);
        queue.last_error.store(cons.into(), Ordering::Relaxed);
        let position = match queue.size().position(base, cons.rd()) {
            Some(position) if position < producer.position => position,
            _ => return self.fault(&"the command queue failed at a slot that holds no command"),
        };
        if cons.err() == CommandError::ABORT {
            // Nothing is wrong with the command; the unit could not read it.
            let before = if producer.fetches.0 == position { producer.fetches.1 } else { 0 };
            producer.fetches = (position, before + 1);
            if producer.fetches.1 > MAX_FETCH_RETRIES {
                self.fault(&"the unit cannot read the command queue");
            }
            return;
        }
        let [word0, word1] = queue.ring.read(position);
        if [word0, word1] == Command::sync().0 && cons.err() == CommandError::ILLEGAL {
            return self.fault(&"the unit does not know CMD_SYNC");
        }
        log::error!("SMMUv3: command {word0:#018x} {word1:#018x} failed: {:?}", cons.err());
        producer.failures.add(position);
        queue.failures.store(producer.failures.count, Ordering::Release);
        queue.ring.write(position, Command::sync().0);
        barrier::before_doorbell();
    }

    /// How often the queue has stopped since the last call. Called as a section of
    /// [`acknowledge_errors`](Self::acknowledge_errors), as `recover` is, so that an error is either active or counted.
    pub(crate) fn new_queue_errors(&self, active: Gerror) -> u64 {
        let counted = self.counters.queue_errors.load(Ordering::Relaxed);
        // Its submitter has not looked yet. On a unit out of service the error stays active, and nobody looks.
        let ahead = active.cmdq_err() && self.health() == Health::Running;
        let total = counted + u64::from(ahead);
        let before = self.counters.queue_errors_reported.fetch_max(total, Ordering::Relaxed);
        total.saturating_sub(before)
    }
}
