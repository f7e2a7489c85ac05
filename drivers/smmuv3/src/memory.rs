//! Memory of the tables that the unit walks: within its reach, and entry by entry.

use crate::features::Features;
use crate::update::Entry;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use portcullis_hal::{FrameOrder, Frames, Hal, OutOfMemory, PhysAddr, TableWrites, barrier, list};
use portcullis_iommu::{AttachError, Missing};
use thiserror::Error;

/// Memory that was offered for a table or a queue lies where the unit cannot address it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the frame at {base:#x} is beyond the {output_bits}-bit addresses of the unit")]
pub struct OutOfReach {
    /// The first address of the frames.
    pub base: PhysAddr,
    /// The width of the addresses that the unit emits, in bits (IDR5.OAS).
    pub output_bits: u8,
}

/// Why there is no memory for a table or a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoFrames {
    OutOfMemory,
    OutOfReach(OutOfReach),
}

impl From<OutOfMemory> for NoFrames {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl From<OutOfReach> for NoFrames {
    fn from(error: OutOfReach) -> Self {
        Self::OutOfReach(error)
    }
}

impl From<NoFrames> for AttachError {
    fn from(error: NoFrames) -> Self {
        match error {
            NoFrames::OutOfMemory => OutOfMemory.into(),
            NoFrames::OutOfReach(_) => Self::Incompatible { missing: Missing::OUTPUT_WIDTH },
        }
    }
}

impl Features {
    /// Whether the unit can address `bytes` from `base`.
    pub(crate) fn reach(&self, base: PhysAddr, bytes: u64) -> Result<(), OutOfReach> {
        let output_bits = self.output_bits();
        match base.get().checked_add(bytes.saturating_sub(1)) {
            Some(last) if last >> output_bits == 0 => Ok(()),
            _ => Err(OutOfReach { base, output_bits }),
        }
    }

    /// Frames for a table of `bytes`, all zeros, as the unit sees them too.
    pub(crate) fn zeroed<H: Hal>(&self, hal: &H, bytes: u64) -> Result<Frames<H>, NoFrames> {
        let frames = Frames::zeroed(hal, FrameOrder::for_bytes(bytes).ok_or(OutOfMemory)?)?;
        self.reach(frames.phys(), bytes)?;
        if self.table_writes() == TableWrites::Cleaned {
            frames.clean(0, bytes as usize);
        }
        Ok(frames)
    }
}

/// The place of a stream table entry or a context descriptor.
pub(crate) struct Slot<'a, H: Hal> {
    frames: &'a Frames<H>,
    index: usize,
    writes: TableWrites,
}

impl<'a, H: Hal> Slot<'a, H> {
    /// The `index`th entry of a table.
    pub(crate) fn new(frames: &'a Frames<H>, index: usize, writes: TableWrites) -> Self {
        Self { frames, index, writes }
    }

    fn words(&self) -> &'a [AtomicU64] {
        let first = self.index * (size_of::<Entry>() / 8);
        self.frames.words().get(first..first + size_of::<Entry>() / 8).unwrap_or_default()
    }

    /// Where the unit finds it.
    pub(crate) fn address(&self) -> Option<PhysAddr> {
        self.frames.phys().checked_add((self.index * size_of::<Entry>()) as u64)
    }

    /// The entry.
    pub(crate) fn read(&self) -> Entry {
        let mut entry = [0; 8];
        for (to, from) in entry.iter_mut().zip(self.words()) {
            *to = from.load(Ordering::Relaxed);
        }
        entry
    }

    /// Stores the words of `entry` that differ from what is there, each in one piece.
    pub(crate) fn write(&self, entry: &Entry) {
        let words = self.words().iter().zip(entry).enumerate();
        let differs = |word: &AtomicU64, value: u64| word.load(Ordering::Relaxed) != value;
        let changed = words.fold(0, |mask, (at, (word, &value))| mask | u8::from(differs(word, value)) << at);
        self.write_words(changed, |word| entry.get(word).copied().unwrap_or_default());
    }

    /// Stores some words, one bit of `which` for each, each in one piece.
    #[inline]
    pub(crate) fn write_words(&self, mut which: u8, value: impl Fn(usize) -> u64) {
        let words = self.words();
        // What the entry points to is there before it.
        barrier::publish_to_device();
        while which != 0 {
            let index = which.trailing_zeros() as usize;
            which &= which.wrapping_sub(1);
            if let Some(word) = words.get(index) {
                word.store(value(index), Ordering::Release);
            }
        }
        if self.writes == TableWrites::Cleaned {
            self.frames.clean(self.index * size_of::<Entry>(), size_of::<Entry>());
        }
    }
}

/// The bytes of an entry.
pub(crate) const ENTRY_BYTES: u64 = size_of::<Entry>() as u64;

/// The form of a table of entries.
#[derive(Clone, Copy)]
pub(crate) enum Form {
    /// One piece.
    Linear,
    /// Second-level tables of `2^split` entries, made on demand, below descriptors of one word.
    TwoLevel {
        /// The bits of an index that a second-level table covers.
        split: u8,
        /// The descriptor of a second-level table.
        descriptor: fn(PhysAddr) -> u64,
    },
}

/// A table of entries: the stream table, or a stream's context descriptors.
pub(crate) struct EntryTable<H: Hal> {
    form: Form,
    /// The bits of an index that the table covers.
    bits: u8,
    writes: TableWrites,
    root: Frames<H>,
    /// Second-level tables by the index of their descriptor, in ascending order.
    leaves: Vec<(u32, Frames<H>)>,
}

impl<H: Hal> EntryTable<H> {
    /// An empty table for indices of `bits`.
    pub(crate) fn new(hal: &H, features: &Features, form: Form, bits: u8) -> Result<Self, NoFrames> {
        let bytes = match form {
            Form::Linear => ENTRY_BYTES << bits,
            Form::TwoLevel { split, .. } => 8 << bits.saturating_sub(split),
        };
        let root = features.zeroed(hal, bytes)?;
        Ok(Self { form, bits, writes: features.table_writes(), root, leaves: Vec::new() })
    }

    pub(crate) fn form(&self) -> Form {
        self.form
    }

    pub(crate) fn bits(&self) -> u8 {
        self.bits
    }

    /// Where the unit finds the table.
    pub(crate) fn base(&self) -> PhysAddr {
        self.root.phys()
    }

    /// Whether the table covers `index`.
    pub(crate) fn covers(&self, index: u32) -> bool {
        u64::from(index) >> self.bits == 0
    }

    /// Makes sure that `index`, which the table covers, has an entry.
    pub(crate) fn prepare(&mut self, features: &Features, index: u32) -> Result<(), NoFrames> {
        let Form::TwoLevel { split, descriptor } = self.form else {
            return Ok(());
        };
        let upper = index >> split;
        let Err(place) = self.leaves.binary_search_by_key(&upper, |leaf| leaf.0) else {
            return Ok(());
        };
        self.leaves.try_reserve(1).map_err(|_| OutOfMemory)?;
        let leaf = features.zeroed(self.root.hal(), ENTRY_BYTES << split)?;
        let link = descriptor(leaf.phys());
        list::insert_reserved(&mut self.leaves, place, (upper, leaf)).map_err(|_| OutOfMemory)?;
        // The table is there before the descriptor that points to it.
        barrier::publish_to_device();
        if let Some(word) = self.root.words().get(upper as usize) {
            word.store(link, Ordering::Release);
            if self.writes == TableWrites::Cleaned {
                self.root.clean(upper as usize * 8, 8);
            }
        }
        Ok(())
    }

    /// The entry at `index`; `None` if it has none: then it is invalid.
    pub(crate) fn entry(&self, index: u32) -> Option<Slot<'_, H>> {
        if !self.covers(index) {
            return None;
        }
        let (frames, index) = match self.form {
            Form::Linear => (&self.root, index),
            Form::TwoLevel { split, .. } => {
                let upper = index >> split;
                let place = self.leaves.binary_search_by_key(&upper, |leaf| leaf.0).ok()?;
                (&self.leaves.get(place)?.1, index & ((1 << split) - 1))
            }
        };
        Some(Slot::new(frames, index as usize, self.writes))
    }
}
