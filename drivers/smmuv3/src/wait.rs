//! Waiting for the command queue.

use portcullis_hal::Hal;

/// A bounded wait with back-off: the looks at the unit get rarer, up to a bound.
#[derive(Debug)]
pub(crate) struct Wait {
    turns: u32,
    start: Option<u64>,
    extensions: u8,
    overdue: bool,
}

impl Wait {
    /// The most spins between two looks.
    const MOST_SPINS: u32 = 64;
    /// While messages are awaited, a register is read every so many turns.
    const TURNS_PER_REGISTER: u32 = 16;
    /// How often the time-out may begin anew.
    const MOST_EXTENSIONS: u8 = 16;

    pub(crate) const fn new() -> Self {
        Self { turns: 0, start: None, extensions: 0, overdue: false }
    }

    /// Whether time is up. The CPU may have been away, so the unit gets one more look, at its registers.
    pub(crate) const fn is_overdue(&self) -> bool {
        self.overdue
    }

    /// Whether the next look goes to a register, even if a message is awaited.
    pub(crate) const fn is_time_for_registers(&self) -> bool {
        self.overdue || self.turns % Self::TURNS_PER_REGISTER == Self::TURNS_PER_REGISTER - 1
    }

    /// The unit works, but for others: at the end of its time the wait may go on, up to a bound.
    pub(crate) fn encourage(&mut self) {
        if self.overdue && self.extensions < Self::MOST_EXTENSIONS {
            self.extensions += 1;
            self.overdue = false;
            self.start = None;
        }
    }

    /// Lets some time pass.
    pub(crate) fn turn<H: Hal>(&mut self, hal: &H, timeout_ns: u64) {
        let now = hal.now_ns();
        let start = *self.start.get_or_insert(now);
        self.overdue = now.saturating_sub(start) > timeout_ns;
        let spins = 1_u32.checked_shl(self.turns).unwrap_or(u32::MAX).min(Self::MOST_SPINS);
        self.turns = self.turns.saturating_add(1);
        for _ in 0..spins {
            hal.relax();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_hal::host::HostHal;

    #[test]
    fn a_wait_looks_at_registers_now_and_then_and_always_when_its_time_is_up() {
        let hal = HostHal::new();
        let mut wait = Wait::new();
        let mut looks = 0;
        for _ in 0..160 {
            looks += u32::from(wait.is_time_for_registers());
            wait.turn(&hal, u64::MAX);
            assert!(!wait.is_overdue());
        }
        assert_eq!(looks, 10);
        let mut wait = Wait::new();
        while !wait.is_overdue() {
            wait.turn(&hal, 0);
        }
        assert!(wait.is_time_for_registers());
    }

    #[test]
    fn a_wait_is_extended_a_bounded_number_of_times() {
        let hal = HostHal::new();
        let mut wait = Wait::new();
        for _ in 0..Wait::MOST_EXTENSIONS {
            while !wait.is_overdue() {
                wait.turn(&hal, 0);
            }
            wait.encourage();
            assert!(!wait.is_overdue());
        }
        while !wait.is_overdue() {
            wait.turn(&hal, 0);
        }
        wait.encourage();
        assert!(wait.is_overdue());
    }
}
