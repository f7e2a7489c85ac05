//! The stream table: linear, or two-level with second-level tables made on demand.

use crate::features::Features;
use crate::memory::{EntryTable, Form, NoFrames, Slot};
use crate::options::Options;
use crate::spec::registers::{StrtabBase, StrtabBaseCfg};
use crate::spec::ste::L1Std;
use portcullis_hal::{Hal, PhysAddr, StreamId};

/// The bits of StreamID that a second-level table covers.
const SPLIT: u8 = 8;
/// The most bits that a first-level table covers (IHI 0070, 3.3.1.2: 2^17 descriptors are 1 MiB).
const MAX_L1_BITS: u8 = 17;
/// The most bits that a linear table is made for: 4 MiB.
const MAX_LINEAR_BITS: u8 = 16;

/// The stream table.
pub(crate) struct StreamTable<H: Hal>(EntryTable<H>);

impl<H: Hal> StreamTable<H> {
    /// An empty table for a unit: all streams are invalid.
    pub(crate) fn new(hal: &H, features: &Features, options: &Options) -> Result<Self, NoFrames> {
        let bits = features.stream_bits.min(options.stream_bits);
        let (form, bits) = if features.two_level_streams && bits > SPLIT {
            (Form::TwoLevel { split: SPLIT, descriptor }, bits.min(SPLIT + MAX_L1_BITS))
        } else {
            (Form::Linear, bits.min(MAX_LINEAR_BITS))
        };
        EntryTable::new(hal, features, form, bits).map(Self)
    }

    /// STRTAB_BASE.
    pub(crate) fn base(&self) -> StrtabBase {
        StrtabBase::new().with_addr(self.0.base().get() >> 6).with_ra(true)
    }

    /// STRTAB_BASE_CFG.
    pub(crate) fn config(&self) -> StrtabBaseCfg {
        let config = StrtabBaseCfg::new().with_log2size(self.0.bits());
        match self.0.form() {
            Form::Linear => config,
            Form::TwoLevel { split, .. } => config.with_split(split).with_fmt(1),
        }
    }

    /// Whether the table covers `stream`.
    pub(crate) fn covers(&self, stream: StreamId) -> bool {
        self.0.covers(stream.get())
    }

    /// Makes sure that `stream`, which the table covers, has an entry.
    pub(crate) fn prepare(&mut self, features: &Features, stream: StreamId) -> Result<(), NoFrames> {
        self.0.prepare(features, stream.get())
    }

    /// The entry of `stream`; `None` if it has none: then it is invalid.
    pub(crate) fn entry(&self, stream: StreamId) -> Option<Slot<'_, H>> {
        self.0.entry(stream.get())
    }
}

fn descriptor(table: PhysAddr) -> u64 {
    L1Std::new().with_span(SPLIT + 1).with_l2ptr(table.get() >> 6).into()
}
