//! What a unit that does not snoop the CPU's caches finds in memory, and when: each cache line as it was whenever it was
//! cleaned, and each doorbell, in one log.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]
#![expect(unsafe_code, reason = "a Hal over another one, and the memory behind it")]

use portcullis_hal::host::HostHal;
use portcullis_hal::{FrameOrder, Hal, InterruptMask, Mmio, OutOfMemory, PhysAddr};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// A cache line: eight words.
pub type Line = [u64; 8];

const LINE_BYTES: u64 = 64;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The line at this physical address reached memory, with this content.
    Cleaned(u64, Line),
    /// The unit was told to look at its queue, with so many frames in use.
    Doorbell(usize),
}

#[derive(Default)]
struct State {
    /// By the address at which the CPU sees a block: its physical address and size.
    blocks: BTreeMap<usize, (u64, u64)>,
    log: Vec<Event>,
}

/// A [`HostHal`] whose frames reach the unit only when they are cleaned.
#[derive(Clone)]
pub struct Uncached {
    pub hal: HostHal,
    state: Arc<Mutex<State>>,
}

impl Uncached {
    pub fn new(hal: &HostHal) -> Self {
        Self { hal: hal.clone(), state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// How much has happened so far.
    pub fn now(&self) -> usize {
        self.state().log.len()
    }

    /// What happened since then.
    pub fn since(&self, then: usize) -> Vec<Event> {
        self.state().log[then..].to_vec()
    }

    /// The line in memory that holds `phys`; `None` if it was never cleaned since its frame was allocated.
    pub fn line(&self, phys: u64) -> Option<Line> {
        let wanted = phys & !(LINE_BYTES - 1);
        self.state().log.iter().rev().find_map(|event| match *event {
            Event::Cleaned(at, line) if at == wanted => Some(line),
            _ => None,
        })
    }

    /// The word in memory at `phys`; `None` as for [`line`](Self::line).
    pub fn word(&self, phys: u64) -> Option<u64> {
        self.line(phys).map(|line| line[(phys % LINE_BYTES / 8) as usize])
    }
}

// SAFETY: frames and interrupts are those of the other Hal; what is recorded changes nothing.
unsafe impl Hal for Uncached {
    fn alloc_frames(&self, order: FrameOrder) -> Result<PhysAddr, OutOfMemory> {
        let phys = self.hal.alloc_frames(order)?;
        let seen = self.hal.phys_to_virt(phys).addr().get();
        self.state().blocks.insert(seen, (phys.get(), order.bytes()));
        Ok(phys)
    }

    unsafe fn free_frames(&self, base: PhysAddr, order: FrameOrder) {
        self.state().blocks.remove(&self.hal.phys_to_virt(base).addr().get());
        // SAFETY: the frames came from this Hal, as the caller vouches.
        unsafe { self.hal.free_frames(base, order) };
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        self.hal.phys_to_virt(phys)
    }

    fn clean_cache(&self, start: NonNull<u8>, len: usize) {
        let mut state = self.state();
        let (first, end) = (start.addr().get() & !63, start.addr().get() + len);
        for seen in (first..end).step_by(LINE_BYTES as usize) {
            let Some((&block, &(phys, bytes))) = state.blocks.range(..=seen).next_back() else { continue };
            let offset = (seen - block) as u64;
            if offset >= bytes {
                continue;
            }
            let words = self.hal.phys_to_virt(PhysAddr::new(phys + offset)).cast::<AtomicU64>();
            // SAFETY: a whole line of an allocated block, whose words are accessed as atomics.
            let word = |i| unsafe { words.add(i).as_ref() }.load(Ordering::SeqCst);
            state.log.push(Event::Cleaned(phys + offset, std::array::from_fn(word)));
        }
    }

    fn now_ns(&self) -> u64 {
        self.hal.now_ns()
    }

    fn mask_interrupts(&self) -> InterruptMask {
        self.hal.mask_interrupts()
    }

    fn restore_interrupts(&self, mask: InterruptMask) {
        self.hal.restore_interrupts(mask);
    }
}

/// Registers whose doorbell is noted before the unit hears it.
#[derive(Clone)]
pub struct Watched<M: Mmio> {
    pub unit: M,
    pub doorbell: usize,
    pub memory: Uncached,
}

impl<M: Mmio> Watched<M> {
    fn note(&self, offset: usize) {
        if offset == self.doorbell {
            let frames = self.memory.hal.frames_in_use();
            self.memory.state().log.push(Event::Doorbell(frames));
        }
    }
}

// SAFETY: every access goes on to the registers behind.
unsafe impl<M: Mmio> Mmio for Watched<M> {
    fn read32(&self, offset: usize) -> u32 {
        self.unit.read32(offset)
    }

    fn write32(&self, offset: usize, value: u32) {
        self.note(offset);
        self.unit.write32(offset, value);
    }

    fn read64(&self, offset: usize) -> u64 {
        self.unit.read64(offset)
    }

    fn write64(&self, offset: usize, value: u64) {
        self.note(offset);
        self.unit.write64(offset, value);
    }
}
