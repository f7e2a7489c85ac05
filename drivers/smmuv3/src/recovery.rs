//! What happens when the command queue stops at an error (IHI 0070, 7.1).
//!
//! Whoever waits notices: in CMDQ_CONS, whose error code says why the command in its slot was not taken. A bad command is
//! replaced by a sync, which changes nothing, and noted for its submitter; a fetch that failed is tried again; a sync that
//! reports unanswered device invalidations is noted for all whose commands it covered, and runs again. Then the error is
//! acknowledged, and the unit goes on with the very slot at which it stopped: what was ahead of it is done, what is
//! behind it comes in its order, nothing is lost or done twice.

use crate::cmdq::Batch;
use crate::command::Command;
use crate::port::{Health, Port, count};
use crate::spec::cmd::CommandError;
use crate::spec::registers::{self, CmdqCons, Gerror};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use portcullis_hal::producers::Position;
use portcullis_hal::{Hal, Mmio, barrier};
use spin::Mutex;

/// How many failed commands are remembered until their submitters have looked.
const REMEMBERED: usize = 16;
/// How often in a row the fetch of one command may fail before the unit counts as broken.
const MAX_FETCH_RETRIES: u32 = 3;

/// What is known of commands that failed.
pub(crate) struct Recovery {
    state: Mutex<State>,
    /// How many commands have failed, so that a completion without failures needs no lock.
    failures: AtomicU64,
    /// CMDQ_CONS when the queue last stopped.
    last_error: AtomicU32,
}

#[derive(Debug)]
struct State {
    /// The commands that failed most recently.
    failed: [Option<Failed>; REMEMBERED],
    count: u64,
    /// The command that the unit last failed to fetch, and how often in a row.
    fetches: (Position, u32),
}

/// A command that failed.
#[derive(Clone, Copy, Debug)]
enum Failed {
    /// The unit did not take it.
    Refused(Position),
    /// A sync: a device did not answer an invalidation that came before it.
    Unanswered(Position),
}

impl Failed {
    /// Whether it takes away what `batch` was promised, which waited for the sync before `passed`.
    fn concerns(self, batch: &Batch, passed: Position) -> bool {
        match self {
            Self::Refused(at) => batch.contains(at),
            Self::Unanswered(at) => batch.reaches(at, passed),
        }
    }
}

impl State {
    fn add(&mut self, failed: Failed) {
        if let Some(slot) = self.failed.get_mut((self.count % REMEMBERED as u64) as usize) {
            *slot = Some(failed);
        }
        self.count = self.count.wrapping_add(1);
    }
}

impl Recovery {
    pub(crate) fn new() -> Self {
        let state = State { failed: [None; REMEMBERED], count: 0, fetches: (Position::new(0), 0) };
        Self { state: Mutex::new(state), failures: AtomicU64::new(0), last_error: AtomicU32::new(0) }
    }

    /// How many commands have failed.
    #[inline]
    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Acquire)
    }

    /// CMDQ_CONS when the queue last stopped at an error.
    pub(crate) fn last_error(&self) -> CmdqCons {
        self.last_error.load(Ordering::Relaxed).into()
    }

    /// Whether something failed that `batch` relied on, which waited for the sync before `passed`. If more commands have
    /// failed since than are remembered, it may have. Interrupts are masked.
    pub(crate) fn concerns(&self, batch: &Batch, passed: Position) -> bool {
        let state = self.state.lock();
        let new = state.count.saturating_sub(batch.failures_before());
        let mut known = state.failed.iter().flatten();
        new > REMEMBERED as u64 || new > 0 && known.any(|failed| failed.concerns(batch, passed))
    }
}

impl<H: Hal, M: Mmio> Port<H, M> {
    /// Whether the unit refused the command at `index` of a batch that was waited for. What it refused before it refused
    /// [many](REMEMBERED) others is not known any more.
    pub(crate) fn refused(&self, batch: &Batch, index: u32) -> bool {
        let position = batch.first().plus(index);
        self.hal().critical(|| {
            let state = self.commands.recovery.state.lock();
            let new = state.count.saturating_sub(batch.failures_before()).min(REMEMBERED as u64);
            let mut newest = (1..=new).map(|back| state.count.wrapping_sub(back) % REMEMBERED as u64);
            newest.any(|at| {
                let failed = state.failed.get(at as usize).copied().flatten();
                matches!(failed, Some(Failed::Refused(at)) if at == position)
            })
        })
    }

    /// Sees to it that a queue that stopped at a bad command goes on. CMDQ_CONS.ERR outlives the error that it tells
    /// of, so there may be nothing to do.
    pub(crate) fn restart(&self) {
        self.acknowledge_errors(|active| {
            if active.cmdq_err() && self.health() == Health::Running {
                self.recover();
            }
            Gerror::new().with_cmdq_err(active.cmdq_err() && self.health() == Health::Running)
        });
    }

    /// Makes the slot at which the queue stopped one that the unit can take, and notes the failure. The
    /// acknowledgement that follows makes the unit fetch the slot again.
    fn recover(&self) {
        let queue = &self.commands;
        let cons = CmdqCons::from(self.block.read(registers::CMDQ_CONS));
        count(&self.counters.queue_errors);
        queue.recovery.last_error.store(cons.into(), Ordering::Relaxed);
        let Some(position) = queue.position_of(cons.rd()) else {
            return self.fault(&"the command queue failed at a slot that holds no command");
        };
        let mut state = queue.recovery.state.lock();
        if cons.err() == CommandError::ABORT {
            // Nothing is wrong with the command; the unit could not read it.
            let before = if state.fetches.0 == position { state.fetches.1 } else { 0 };
            state.fetches = (position, before.saturating_add(1));
            if before >= MAX_FETCH_RETRIES {
                self.fault(&"the unit cannot read the command queue");
            }
            return;
        }
        let command = Command(queue.ring.read(position.get().into()));
        let [word0, word1] = command.0;
        if command.is_sync() {
            if cons.err() == CommandError::ILLEGAL {
                return self.fault(&"the unit does not know CMD_SYNC");
            }
            log::error!("SMMUv3: a device did not answer an invalidation: {:?}", cons.err());
            state.add(Failed::Unanswered(position));
        } else {
            log::error!("SMMUv3: command {word0:#018x} {word1:#018x} failed: {:?}", cons.err());
            state.add(Failed::Refused(position));
            queue.ring.write(position.get().into(), Command::sync().0);
        }
        queue.recovery.failures.store(state.count, Ordering::Release);
        barrier::before_doorbell();
    }

    /// How often the queue has stopped since the last call. Called as a section of
    /// [`acknowledge_errors`](Self::acknowledge_errors), as `recover` is, so that an error is either active or counted.
    pub(crate) fn new_queue_errors(&self, active: Gerror) -> u64 {
        let counted = self.counters.queue_errors.load(Ordering::Relaxed);
        // Its submitter has not looked yet. On a unit out of service the error stays active, and nobody looks.
        let ahead = active.cmdq_err() && self.health() == Health::Running;
        let total = counted.wrapping_add(u64::from(ahead));
        let before = self.counters.queue_errors_reported.fetch_max(total, Ordering::Relaxed);
        total.saturating_sub(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_command_concerns_its_submitter_and_an_unanswered_sync_all_whose_commands_it_covers() {
        // Around the end of the numbers, too.
        for base in [0, 100, u32::MAX - 3] {
            let at = |offset| Position::new(base).plus(offset);
            // Two commands that share the sync at 6.
            let batch = Batch::new(at(2), at(4));
            let concerned = |failed: fn(Position) -> Failed| -> Vec<u32> {
                (0..9).filter(|&offset| failed(at(offset)).concerns(&batch, at(7))).collect()
            };
            assert_eq!(concerned(Failed::Refused), [2, 3]);
            assert_eq!(concerned(Failed::Unanswered), [2, 3, 4, 5, 6]);
        }
    }

    #[test]
    fn failures_of_others_are_no_concern_as_long_as_all_are_remembered() {
        let recovery = Recovery::new();
        let fail = |position| recovery.state.lock().add(Failed::Refused(Position::new(position)));
        let batch = Batch::new(Position::new(1000), Position::new(1002));
        let concerned = || recovery.concerns(&batch, Position::new(1002));
        (0..REMEMBERED as u32).for_each(fail);
        assert!(!concerned());
        fail(1001);
        assert!(concerned(), "one is forgotten, and this one is ours");
        (0..REMEMBERED as u32).for_each(fail);
        assert!(concerned(), "what is forgotten may have been ours");
    }
}
