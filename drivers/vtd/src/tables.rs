//! Table memory: what hardware knows, and words of 128 bits that it reads in one piece.

use crate::dma::{self, Published};
use crate::error::TableError;
use crate::features::Features;
use portcullis_hal::atomic128::AtomicU128;
use portcullis_hal::{FrameOrder, Frames, Hal, barrier};
use portcullis_iommu::WalkCoherency;

/// A table of 128-bit quanta.
pub(crate) struct Table<H: Hal> {
    frames: Published<H>,
    coherency: WalkCoherency,
}

impl<H: Hal> Table<H> {
    /// A table of zeros: nothing in it is present.
    pub(crate) fn new(hal: &H, features: &Features, order: FrameOrder) -> Result<Self, TableError> {
        let frames = reachable_frames(hal, features, order)?;
        let coherency = features.entry_coherency();
        if coherency == WalkCoherency::NotSnooped {
            frames.clean(0, frames.order().bytes() as usize);
        }
        Ok(Self { frames: Published::new(frames), coherency })
    }

    /// The frame number, for a pointer to the table that hardware will see.
    pub(crate) fn publish(&self) -> u64 {
        self.frames.publish().get() >> 12
    }

    /// Gives the memory back: hardware has confirmed that it forgot it, or never got to know it.
    pub(crate) fn free(self) {
        self.frames.free();
    }

    /// The quanta.
    fn quanta(&self) -> &[AtomicU128] {
        dma::quanta(&self.frames)
    }

    /// The quantum with this index; zero beyond the end.
    pub(crate) fn load(&self, index: usize) -> u128 {
        self.quanta().get(index).map_or(0, AtomicU128::load)
    }

    /// Writes a quantum in one piece, after all earlier stores, and cleans it for a walker that does not snoop.
    pub(crate) fn store(&self, index: usize, value: u128) {
        barrier::publish_to_device();
        if let Some(quantum) = self.quanta().get(index) {
            quantum.store(value);
        }
        if self.coherency == WalkCoherency::NotSnooped {
            self.frames.clean(index * 16, 16);
        }
    }

    /// Changes a quantum in one piece, after all earlier stores.
    pub(crate) fn update(&self, index: usize, change: impl FnOnce(u128) -> u128) {
        self.store(index, change(self.load(index)));
    }

    /// Writes an entry of `N` quanta that is not present, the quantum with the present bit last.
    ///
    /// An entry lies in one cache line, of which a walker that does not snoop sees what was there at one moment.
    pub(crate) fn write<const N: usize>(&self, number: usize, entry: [u128; N]) {
        barrier::publish_to_device();
        let (quanta, first) = (self.quanta(), number * N);
        for (offset, value) in entry.into_iter().enumerate().rev() {
            if let Some(quantum) = quanta.get(first + offset) {
                quantum.store(value);
            }
        }
        if self.coherency == WalkCoherency::NotSnooped {
            self.frames.clean(first * 16, N * 16);
        }
    }

    /// The entry of `N` quanta with this number.
    pub(crate) fn entry<const N: usize>(&self, number: usize) -> [u128; N] {
        core::array::from_fn(|quantum| self.load(number * N + quantum))
    }
}

/// Zeroed frames whose addresses the unit's registers and tables can hold.
pub(crate) fn reachable_frames<H: Hal>(
    hal: &H,
    features: &Features,
    order: FrameOrder,
) -> Result<Frames<H>, TableError> {
    let frames = Frames::zeroed(hal, order)?;
    if features.reaches(frames.range()) { Ok(frames) } else { Err(TableError::Unreachable(frames.phys())) }
}

/// Joins the two words of a quantum.
pub(crate) const fn quantum(low: u64, high: u64) -> u128 {
    (high as u128) << 64 | low as u128
}

/// The low and the high word of a quantum.
pub(crate) const fn words(quantum: u128) -> [u64; 2] {
    [quantum as u64, (quantum >> 64) as u64]
}
