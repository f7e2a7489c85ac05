//! The stream table: linear, or two-level with second-level tables made on demand.

use crate::features::Features;
use crate::options::Options;
use crate::spec::registers::{StrtabBase, StrtabBaseCfg};
use crate::spec::ste::{L1Std, STE_BYTES, STE_WORDS};
use crate::update::Entry;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use portcullis_hal::{FrameOrder, Frames, Hal, OutOfMemory, PhysAddr, StreamId, TableWrites, barrier};

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
    hal: H,
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
    pub(crate) fn new(hal: &H, features: &Features, options: &Options) -> Result<Self, OutOfMemory> {
        let (form, bits) = form(features, options);
        let bytes = match form {
            Form::Linear => STE_BYTES << bits,
            Form::TwoLevel => 8 << (bits - SPLIT),
        };
        let root = Frames::zeroed(hal, FrameOrder::for_bytes(bytes).ok_or(OutOfMemory)?)?;
        let table =
            Self { hal: hal.clone(), form, bits, writes: features.table_writes(), root, leaves: Vec::new() };
        table.clean(&table.root, 0, bytes as usize);
        Ok(table)
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

    fn clean(&self, frames: &Frames<H>, offset: usize, len: usize) {
        if self.writes == TableWrites::Cleaned {
            frames.clean(offset, len);
        }
    }

    /// Makes sure that `stream`, which the table covers, has an entry.
    pub(crate) fn prepare(&mut self, stream: StreamId) -> Result<(), OutOfMemory> {
        if self.form == Form::Linear {
            return Ok(());
        }
        let index = stream.get() >> SPLIT;
        let Err(place) = self.leaves.binary_search_by_key(&index, |leaf| leaf.0) else {
            return Ok(());
        };
        self.leaves.try_reserve(1).map_err(|_| OutOfMemory)?;
        let bytes = STE_BYTES << SPLIT;
        let leaf = Frames::zeroed(&self.hal, FrameOrder::for_bytes(bytes).ok_or(OutOfMemory)?)?;
        self.clean(&leaf, 0, bytes as usize);
        let descriptor = L1Std::new().with_span(SPLIT + 1).with_l2ptr(leaf.phys().get() >> 6);
        // The table is there before the descriptor that points to it.
        barrier::publish_to_device();
        if let Some(word) = self.root.words().get(index as usize) {
            word.store(descriptor.into(), Ordering::Release);
            self.clean(&self.root, index as usize * 8, 8);
        }
        self.leaves.insert(place, (index, leaf));
        Ok(())
    }

    /// The frames that hold the entry of `stream`, and its byte offset there; `None` if it has no entry.
    fn find(&self, stream: StreamId) -> Option<(&Frames<H>, usize)> {
        if !self.covers(stream) {
            return None;
        }
        let (frames, slot) = match self.form {
            Form::Linear => (&self.root, stream.get()),
            Form::TwoLevel => {
                let index = stream.get() >> SPLIT;
                let place = self.leaves.binary_search_by_key(&index, |leaf| leaf.0).ok()?;
                (&self.leaves.get(place)?.1, stream.get() & ((1 << SPLIT) - 1))
            }
        };
        Some((frames, slot as usize * STE_BYTES as usize))
    }

    fn words(&self, stream: StreamId) -> Option<&[AtomicU64]> {
        let (frames, offset) = self.find(stream)?;
        frames.words().get(offset / 8..offset / 8 + STE_WORDS)
    }

    /// The physical address of the entry.
    pub(crate) fn address(&self, stream: StreamId) -> Option<PhysAddr> {
        let (frames, offset) = self.find(stream)?;
        frames.phys().checked_add(offset as u64)
    }

    /// The entry of `stream`, `None` if it has none: then it is invalid.
    pub(crate) fn read(&self, stream: StreamId) -> Option<Entry> {
        let mut entry = [0; STE_WORDS];
        for (to, from) in entry.iter_mut().zip(self.words(stream)?) {
            *to = from.load(Ordering::Relaxed);
        }
        Some(entry)
    }

    /// Stores the words of `entry` that differ from what is there, each in one piece.
    pub(crate) fn write(&self, stream: StreamId, entry: &Entry) {
        let Some(words) = self.words(stream) else { return };
        // What the entry points to is there before it.
        barrier::publish_to_device();
        for (word, &value) in words.iter().zip(entry) {
            if word.load(Ordering::Relaxed) != value {
                word.store(value, Ordering::Release);
            }
        }
        if let Some((frames, offset)) = self.find(stream) {
            self.clean(frames, offset, STE_BYTES as usize);
        }
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
