//! Memory of the tables that the unit walks: within its reach, and entry by entry.

use crate::features::Features;
use crate::update::Entry;
use core::sync::atomic::{AtomicU64, Ordering};
use portcullis_hal::{FrameOrder, Frames, Hal, OutOfMemory, PhysAddr, TableWrites, barrier};
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
        // What the entry points to is there before it.
        barrier::publish_to_device();
        for (word, &value) in self.words().iter().zip(entry) {
            if word.load(Ordering::Relaxed) != value {
                word.store(value, Ordering::Release);
            }
        }
        if self.writes == TableWrites::Cleaned {
            self.frames.clean(self.index * size_of::<Entry>(), size_of::<Entry>());
        }
    }
}
