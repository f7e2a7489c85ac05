//! The driver's frames as the unit sees them: gone when freed, and behind caches where the unit does not snoop.

#![expect(unsafe_code, reason = "frames of the host play physical memory")]

use portcullis_hal::{FrameOrder, PAGE_SIZE, PhysAddr};
use portcullis_model::core::{Abort, Memory};
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The first physical address of the host's frames.
const FIRST: u64 = 1 << 32;
const WORDS: usize = (PAGE_SIZE / 8) as usize;
const LINE: usize = 8;
/// What memory holds before anybody cleaned a line of a new frame: entries that are valid in every format.
const JUNK: u64 = 0x5a5a_5a5a_5a5a_5a5b;
/// Where messages are written; not memory.
pub(crate) const DOORBELL: u64 = 0x0808_0000;

/// Takes a lock, whatever happened to its last owner.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A frame. What the CPU sees is in `cached`; `memory` is there if the unit does not snoop.
struct Page {
    cached: NonNull<u64>,
    memory: Option<Box<Shadow>>,
}

/// What is in memory, and what the cache held when it last agreed with memory.
struct Shadow {
    words: [u64; WORDS],
    agreed: [u64; WORDS],
}

// SAFETY: a page is plain memory that is reached through atomics only.
unsafe impl Send for Page {}

impl Page {
    fn cached(&self, word: usize) -> &AtomicU64 {
        // SAFETY: the page is allocated as long as it is in the index, and `word` is masked to its size.
        unsafe { AtomicU64::from_ptr(self.cached.as_ptr().add(word % WORDS)) }
    }

    /// Writes a line back if the CPU changed it.
    fn write_back(&mut self, line: usize) -> bool {
        let words = line * LINE..(line + 1) * LINE;
        let now: Vec<u64> = words.clone().map(|word| self.cached(word).load(Ordering::SeqCst)).collect();
        let Some(shadow) = &mut self.memory else { return true };
        if shadow.agreed[words.clone()] == now[..] {
            return false;
        }
        shadow.words[words.clone()].copy_from_slice(&now);
        shadow.agreed[words].copy_from_slice(&now);
        true
    }

    /// Writes a line back and drops it, so that the next load sees memory.
    fn clean(&mut self, line: usize) {
        if self.write_back(line) {
            return;
        }
        for word in line * LINE..(line + 1) * LINE {
            if let Some(shadow) = &mut self.memory {
                let value = shadow.words[word];
                shadow.agreed[word] = value;
                self.cached(word).store(value, Ordering::SeqCst);
            }
        }
    }
}

#[derive(Default)]
struct Index {
    pages: Vec<Option<Page>>,
    /// Frame numbers by the address at which the CPU sees them, for cache maintenance.
    seen_at: HashMap<usize, usize>,
}

/// All frames.
pub(crate) struct Ram {
    coherent: bool,
    index: Mutex<Index>,
    wrong: Mutex<Vec<String>>,
}

fn number(address: u64) -> Option<usize> {
    Some((address.checked_sub(FIRST)? / PAGE_SIZE) as usize)
}

impl Ram {
    pub(crate) fn new(coherent: bool) -> Self {
        Self { coherent, index: Mutex::default(), wrong: Mutex::default() }
    }

    /// Frames were allocated.
    pub(crate) fn add(&self, base: PhysAddr, order: FrameOrder, cached: NonNull<u8>) {
        let mut index = lock(&self.index);
        let Some(first) = number(base.get()) else { return };
        for frame in 0..(order.bytes() / PAGE_SIZE) as usize {
            // SAFETY: inside the allocation, which is aligned to its size.
            let cached: NonNull<u64> = unsafe { cached.add(frame * PAGE_SIZE as usize) }.cast();
            let memory =
                (!self.coherent).then(|| Box::new(Shadow { words: [JUNK; WORDS], agreed: [JUNK; WORDS] }));
            if index.pages.len() <= first + frame {
                index.pages.resize_with(first + frame + 1, || None);
            }
            index.seen_at.insert(cached.addr().get(), first + frame);
            index.pages[first + frame] = Some(Page { cached, memory });
        }
    }

    /// Frames are about to be freed.
    pub(crate) fn remove(&self, base: PhysAddr, order: FrameOrder) {
        let mut index = lock(&self.index);
        let Some(first) = number(base.get()) else { return };
        for frame in first..first + (order.bytes() / PAGE_SIZE) as usize {
            if let Some(page) = index.pages.get_mut(frame).and_then(Option::take) {
                index.seen_at.remove(&page.cached.addr().get());
            }
        }
    }

    /// Cache maintenance by the CPU.
    pub(crate) fn clean(&self, start: usize, len: usize) {
        if self.coherent || len == 0 {
            return;
        }
        let mut index = lock(&self.index);
        let bytes = LINE * 8;
        for line in start / bytes..=(start + len - 1) / bytes {
            let at = line * bytes;
            let page = at & !(PAGE_SIZE as usize - 1);
            let Some(&frame) = index.seen_at.get(&page) else { continue };
            if let Some(Some(page)) = index.pages.get_mut(frame) {
                page.clean(at % PAGE_SIZE as usize / bytes);
            }
        }
    }

    /// The cache runs out of room: dirty lines of some frame go to memory, before anybody cleans them.
    pub(crate) fn evict(&self, dice: u64) {
        if self.coherent {
            return;
        }
        let mut index = lock(&self.index);
        let frame = dice as usize % index.pages.len().max(1);
        if let Some(page) = index.pages[frame..].iter_mut().flatten().next() {
            (0..WORDS / LINE).filter(|line| dice >> (line % 32 + 32) & 1 == 1).for_each(|line| {
                page.write_back(line);
            });
        }
    }

    /// What the unit did that it could do only because the driver was wrong.
    pub(crate) fn take_wrong(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.wrong))
    }

    fn wrong(&self, text: String) {
        let mut list = lock(&self.wrong);
        if list.len() < 8 {
            list.push(text);
        }
    }

    fn with<R>(&self, what: &str, address: u64, access: impl FnOnce(&mut Page, usize) -> R) -> Option<R> {
        let mut index = lock(&self.index);
        let page = number(address).and_then(|frame| index.pages.get_mut(frame)).and_then(Option::as_mut);
        match page {
            Some(page) => Some(access(page, (address % PAGE_SIZE / 8) as usize)),
            None => {
                self.wrong(format!("the unit {what} {address:#x}, where no memory is allocated"));
                None
            }
        }
    }
}

impl Memory for Ram {
    fn read64(&self, address: u64) -> Option<u64> {
        self.with("reads", address, |page, word| page.cached(word).load(Ordering::SeqCst))
    }

    fn write64(&self, address: u64, value: u64) -> Result<(), Abort> {
        self.with("writes", address, |page, word| match &mut page.memory {
            // It passes by the caches.
            Some(shadow) => shadow.words[word] = value,
            None => page.cached(word).store(value, Ordering::SeqCst),
        })
        .ok_or(Abort)
    }

    fn read64_uncached(&self, address: u64) -> Option<u64> {
        self.with("reads", address, |page, word| match &page.memory {
            Some(shadow) => shadow.words[word],
            None => {
                self.wrong(format!("the unit reads {address:#x} without snooping, though it could"));
                JUNK
            }
        })
    }

    fn write32(&self, address: u64, value: u32) -> Result<(), Abort> {
        if address & !0xfff == DOORBELL {
            return Ok(());
        }
        let shift = (address & 4) * 8;
        let base = address & !7;
        let word = if self.coherent { self.read64(base) } else { self.read64_uncached(base) };
        let word = word.ok_or(Abort)?;
        self.write64(base, word & !(0xffff_ffff << shift) | u64::from(value) << shift)
    }
}
