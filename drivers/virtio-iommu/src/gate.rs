//! Who may change what: many changers of mappings at a time, or one changer of attachments.

use core::sync::atomic::{AtomicBool, Ordering};
use portcullis_hal::Hal;
use portcullis_hal::wait::Timeout;
use spin::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A lock that is held shared by changes of mappings and exclusively by a change of attachments, to the end of their
/// waits. Whoever wants it exclusively keeps newcomers out, so that busy ones do not postpone it.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    lock: RwLock<()>,
    /// Somebody holds it exclusively or waits for that. There is one at a time: a unit's changes of attachments
    /// exclude each other.
    closing: AtomicBool,
}

/// The gate is held exclusively.
#[derive(Debug)]
pub(crate) struct Closed<'a> {
    _lock: RwLockWriteGuard<'a, ()>,
    _closing: Closing<'a>,
}

/// Newcomers are kept out.
#[derive(Debug)]
struct Closing<'a>(&'a AtomicBool);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Gate {
    /// Enters together with others, as soon as nobody holds the gate exclusively or waits for that.
    pub(crate) fn enter(&self, hal: &impl Hal) -> RwLockReadGuard<'_, ()> {
        loop {
            if !self.closing.load(Ordering::Acquire)
                && let Some(entered) = self.lock.try_read()
            {
                return entered;
            }
            hal.relax();
        }
    }

    /// Closes the gate when those inside have left, for which it waits `timeout_ns` at most.
    pub(crate) fn close(&self, hal: &impl Hal, timeout_ns: u64) -> Result<Closed<'_>, Timeout> {
        self.closing.store(true, Ordering::Release);
        let closing = Closing(&self.closing);
        let start = hal.now_ns();
        loop {
            if let Some(lock) = self.lock.try_write() {
                return Ok(Closed { _lock: lock, _closing: closing });
            }
            if hal.now_ns().saturating_sub(start) > timeout_ns {
                return Err(Timeout::new("changes of mappings", 1, 0, 1));
            }
            hal.relax();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_hal::host::HostHal;

    const PATIENT: u64 = 60_000_000_000;

    #[test]
    fn who_waits_to_close_the_gate_keeps_newcomers_out_until_it_is_open_again() {
        let (gate, hal) = (Gate::default(), HostHal::new());
        let inside = gate.enter(&hal);
        std::thread::scope(|scope| {
            let closer = scope.spawn(|| drop(gate.close(&hal, PATIENT).unwrap()));
            while !gate.closing.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            let newcomer = scope.spawn(|| drop(gate.enter(&hal)));
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!newcomer.is_finished() && !closer.is_finished());
            drop(inside);
            closer.join().unwrap();
            newcomer.join().unwrap();
        });
    }

    #[test]
    fn closing_waits_a_bounded_time_and_leaves_the_gate_open_if_that_is_not_enough() {
        let (gate, hal) = (Gate::default(), HostHal::new());
        let inside = gate.enter(&hal);
        assert!(gate.close(&hal, 1_000_000).is_err());
        drop((inside, gate.enter(&hal)));
        let closed = gate.close(&hal, 0).unwrap();
        assert!(gate.lock.try_read().is_none());
        drop(closed);
        drop(gate.enter(&hal));
    }
}
