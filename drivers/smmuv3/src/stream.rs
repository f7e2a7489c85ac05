//! The stream table: linear, or two-level with second-level tables made on demand.

use crate::features::Features;
use crate::memory::{NoFrames, Slot};
use crate::options::Options;
use crate::spec::registers::{StrtabBase, StrtabBaseCfg};
use crate::spec::ste::{L1Std, STE_BYTES};
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use portcullis_hal::{Frames, Hal, OutOfMemory, StreamId, TableWrites, barrier};

/// The bits of StreamID that a second-level table covers.
const SPLIT: u8 = 8;
/// The most bits that a first-level table covers (IHI 0070, 3.3.1.2: 2^17 descriptors are 1 MiB).
const MAX_L1_BITS: u8 = 17;
/// The most bits that a linear table is made for: 4 MiB.
const MAX_LINEAR_BITS: u8 = 16;

/// The table's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Linear,
    TwoLevel,
}

/// The stream table and its second-level tables.
pub(crate) struct StreamTable<H: Hal> {
    form: Form,
    /// The bits of StreamID that the table covers.
    bits: u8,
    writes: TableWrites,
    root: Frames<H>,
    /// Second-level tables by the index of their descriptor, in ascending order.
    leaves: Vec<(u32, Frames<H>)>,
}

impl<H: Hal> StreamTable<H> {
    /// An empty table for a unit: all streams are invalid.
    pub(crate) fn new(hal: &H, features: &Features, options: &Options) -> Result<Self, NoFrames> {
        let (form, bits) = form(features, options);
        let bytes = match form {
            Form::Linear => STE_BYTES << bits,
            Form::TwoLevel => 8 << (bits - SPLIT),
        };
        let root = features.zeroed(hal, bytes)?;
        Ok(Self { form, bits, writes: features.table_writes(), root, leaves: Vec::new() })
    }

    /// STRTAB_BASE.
    pub(crate) fn base(&self) -> StrtabBase {
        StrtabBase::new().with_addr(self.root.phys().get() >> 6).with_ra(true)
    }

    /// STRTAB_BASE_CFG.
    pub(crate) fn config(&self) -> StrtabBaseCfg {
        let config = StrtabBaseCfg::new().with_log2size(self.bits);
        match self.form {
            Form::Linear => config,
            Form::TwoLevel => config.with_split(SPLIT).with_fmt(1),
        }
    }

    /// Whether the table covers `stream`.
    pub(crate) fn covers(&self, stream: StreamId) -> bool {
        u64::from(stream.get()) >> self.bits == 0
    }

    /// Makes sure that `stream`, which the table covers, has an entry.
    pub(crate) fn prepare(&mut self, features: &Features, stream: StreamId) -> Result<(), NoFrames> {
        if self.form == Form::Linear {
            return Ok(());
        }
        let index = stream.get() >> SPLIT;
        let Err(place) = self.leaves.binary_search_by_key(&index, |leaf| leaf.0) else {
            return Ok(());
        };
        self.leaves.try_reserve(1).map_err(|_| OutOfMemory)?;
        let leaf = features.zeroed(self.root.hal(), STE_BYTES << SPLIT)?;
        let descriptor = L1Std::new().with_span(SPLIT + 1).with_l2ptr(leaf.phys().get() >> 6);
        // The table is there before the descriptor that points to it.
        barrier::publish_to_device();
        if let Some(word) = self.root.words().get(index as usize) {
            word.store(descriptor.into(), Ordering::Release);
            if self.writes == TableWrites::Cleaned {
                self.root.clean(index as usize * 8, 8);
            }
        }
        self.leaves.insert(place, (index, leaf));
        Ok(())
    }

    /// The entry of `stream`; `None` if it has none: then it is invalid.
    pub(crate) fn entry(&self, stream: StreamId) -> Option<Slot<'_, H>> {
        if !self.covers(stream) {
            return None;
        }
        let (frames, index) = match self.form {
            Form::Linear => (&self.root, stream.get()),
            Form::TwoLevel => {
                let index = stream.get() >> SPLIT;
                let place = self.leaves.binary_search_by_key(&index, |leaf| leaf.0).ok()?;
                (&self.leaves.get(place)?.1, stream.get() & ((1 << SPLIT) - 1))
            }
        };
        Some(Slot::new(frames, index as usize, self.writes))
    }
}

/// The form and the bits of StreamID of the table that suits a unit.
fn form(features: &Features, options: &Options) -> (Form, u8) {
    let bits = features.stream_bits.min(options.stream_bits);
    if features.two_level_streams && bits > SPLIT {
        (Form::TwoLevel, bits.min(SPLIT + MAX_L1_BITS))
    } else {
        (Form::Linear, bits.min(MAX_LINEAR_BITS))
    }
}
