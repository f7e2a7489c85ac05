//! Frames of user memory. After a fork several address spaces share one; whoever writes then gets a copy.

use crate::memory::KernelHal;
use core::sync::atomic::{AtomicUsize, Ordering, fence};
use portcullis_hal::{Arc, FrameOrder, Frames, OutOfMemory, PhysRange};

/// Frames in use by all address spaces.
static IN_USE: AtomicUsize = AtomicUsize::new(0);

/// How many frames hold user memory now.
pub(crate) fn in_use() -> usize {
    IN_USE.load(Ordering::Relaxed)
}

/// A frame that is counted as long as it lives.
struct Counted(Frames<KernelHal>);

impl Drop for Counted {
    fn drop(&mut self) {
        IN_USE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A page of user memory: a frame, perhaps shared with other address spaces.
#[derive(Clone)]
pub(crate) struct UserFrame(Arc<Counted>);

impl UserFrame {
    /// A page of zeros.
    pub(super) fn zeroed() -> Result<Self, OutOfMemory> {
        let frames = Frames::zeroed(&KernelHal, FrameOrder::SINGLE)?;
        IN_USE.fetch_add(1, Ordering::Relaxed);
        Ok(Self(Arc::try_new(Counted(frames))?))
    }

    /// A page with the same contents.
    pub(super) fn copied(&self) -> Result<Self, OutOfMemory> {
        let copy = Self::zeroed()?;
        for (to, from) in copy.frames().words().iter().zip(self.frames().words()) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        Ok(copy)
    }

    /// Whether nobody else has the frame. It stays so as long as the caller does not share it.
    pub(crate) fn is_sole(&self) -> bool {
        let sole = Arc::count(&self.0) == 1;
        // Whoever had it before has read what it wanted to copy.
        fence(Ordering::Acquire);
        sole
    }

    /// The memory.
    pub(crate) fn frames(&self) -> &Frames<KernelHal> {
        &self.0.0
    }

    pub(super) fn range(&self) -> PhysRange {
        self.frames().range()
    }
}

/// A page that has memory.
pub(super) struct Page {
    pub(super) frame: UserFrame,
    /// How many times it is pinned: its memory and its entry stay, for devices that cannot fault.
    pub(super) pins: u32,
}
