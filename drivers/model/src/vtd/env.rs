//! What every part of the model works with, and memory as a unit with a write buffer sees it.

use std::collections::HashMap;

use super::config::{Config, Feature};
use crate::core::{Coverage, Interrupts, Memory, Schedule, View, Violations};

/// The surroundings of a unit.
#[derive(Clone, Copy)]
pub(super) struct Env<'a> {
    pub(super) config: &'a Config,
    pub(super) memory: &'a dyn Memory,
    pub(super) schedule: &'a Schedule,
    pub(super) violations: &'a Violations,
    pub(super) interrupts: &'a Interrupts,
    pub(super) coverage: &'a Coverage,
}

/// Memory as it was when the write buffer was last flushed (CAP.RWBF), as far as the unit looked at it.
///
/// A store of software may linger between the CPU and the unit. So every word keeps the value that the unit found
/// first since the last flush, and hardware may see either all of those or memory as it is: stores linger in their
/// order.
#[derive(Clone, Debug, Default)]
pub(super) struct WriteBuffer {
    words: HashMap<u64, u64>,
}

impl WriteBuffer {
    pub(super) fn flush(&mut self) {
        self.words.clear();
    }
}

/// One agent's view of memory during one translation.
pub(super) struct Eyes<'a> {
    pub(super) env: Env<'a>,
    pub(super) buffer: &'a mut WriteBuffer,
    /// Sees memory as of the last flush.
    pub(super) lagging: bool,
}

impl Eyes<'_> {
    fn see(&mut self, address: u64, value: u64) -> u64 {
        if !self.env.config.has(Feature::WriteBufferFlush) {
            return value;
        }
        let old = *self.buffer.words.entry(address).or_insert(value);
        if self.lagging { old } else { value }
    }

    pub(super) fn read64(&mut self, view: View, address: u64) -> Option<u64> {
        let value = self.env.memory.read64_as(view, address)?;
        Some(self.see(address, value))
    }

    pub(super) fn read128(&mut self, view: View, address: u64) -> Option<u128> {
        let value = self.env.memory.read128_as(view, address)?;
        let low = self.see(address, value as u64);
        let high = self.see(address.wrapping_add(8), (value >> 64) as u64);
        Some(u128::from(low) | u128::from(high) << 64)
    }

    /// Whether there may be anything that a lagging view could show. It does not depend on what was looked at, so that
    /// the same choices are there when a run is made again.
    pub(super) const fn can_lag(&self) -> bool {
        self.env.config.has(Feature::WriteBufferFlush)
    }

    /// How the unit sees root, context and PASID structures (ECAP.C).
    pub(super) fn structures(&self) -> View {
        if self.env.config.has(Feature::Coherent) { View::Coherent } else { View::Uncached }
    }
}
