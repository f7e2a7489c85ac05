//! Message-signalled events with a mask and a pending bit (specification 11.4.8 and its siblings): fault events,
//! invalidation events, page-request events.

use super::env::Env;
use crate::core::Interrupt;

const MASK: u32 = 1 << 31;
const PENDING: u32 = 1 << 30;

/// One set of control, data, address and upper address registers.
#[derive(Clone, Debug)]
pub(super) struct Event {
    source: &'static str,
    control: u32,
    data: u32,
    address: u32,
    upper: u32,
}

impl Event {
    pub(super) const fn new(source: &'static str) -> Self {
        Self { source, control: MASK, data: 0, address: 0, upper: 0 }
    }

    /// The condition arose: a message now, or when the mask goes.
    pub(super) fn raise(&mut self, env: Env<'_>) {
        self.control |= PENDING;
        self.deliver(env);
    }

    /// Software dealt with every reason there was.
    pub(super) fn settle(&mut self) {
        self.control &= !PENDING;
    }

    fn deliver(&mut self, env: Env<'_>) {
        if self.control & (MASK | PENDING) == PENDING {
            self.control &= !PENDING;
            env.coverage.count("event", self.source);
            env.interrupts.raise(Interrupt::Message {
                source: self.source,
                address: u64::from(self.address) | u64::from(self.upper) << 32,
                data: self.data,
            });
        }
    }

    /// Reads the register at 0, 4, 8 or 12.
    pub(super) const fn read(&self, register: u64) -> u32 {
        match register {
            0 => self.control,
            4 => self.data,
            8 => self.address,
            _ => self.upper,
        }
    }

    /// Writes the register at 0, 4, 8 or 12.
    pub(super) fn write(&mut self, env: Env<'_>, register: u64, value: u32) {
        match register {
            0 => {
                self.control = self.control & PENDING | value & MASK;
                self.deliver(env);
            }
            4 => self.data = value,
            8 => {
                if value & 3 != 0 {
                    env.violations.report("vtd message address", format_args!("{}: {value:#x}", self.source));
                }
                self.address = value & !3;
            }
            _ => self.upper = value,
        }
    }
}
