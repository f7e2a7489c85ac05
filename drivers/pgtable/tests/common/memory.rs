//! Memory behind caches that a walker does not snoop: it holds what was cleaned, and nothing else.

use super::Memory;
use portcullis_hal::host::HostHal;
use portcullis_hal::{FrameOrder, Hal, InterruptMask, OutOfMemory, PhysAddr};
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

const LINE: usize = 64;

type Hook = Mutex<Option<Box<dyn FnOnce() + Send>>>;

/// A [`HostHal`] with caches in front of its memory. As [`Memory`], it is what a walker sees that does not snoop.
#[derive(Clone, Default)]
pub struct Behind(Arc<State>);

struct State {
    host: HostHal,
    /// The lines that reached memory, by the CPU's address.
    lines: Mutex<HashMap<usize, [u64; 8]>>,
    on_clean: Hook,
    on_alloc: Hook,
    watcher: Mutex<Option<Watcher>>,
}

type Watcher = Box<dyn FnMut(&Behind) + Send>;

impl Default for State {
    fn default() -> Self {
        Self {
            host: HostHal::new(),
            lines: Mutex::default(),
            on_clean: Mutex::default(),
            on_alloc: Mutex::default(),
            watcher: Mutex::default(),
        }
    }
}

impl Behind {
    /// The memory as the CPU, and a walker that snoops, see it.
    pub fn host(&self) -> &HostHal {
        &self.0.host
    }

    /// Calls `hook` after the next clean.
    pub fn after_clean(&self, hook: impl FnOnce() + Send + 'static) {
        *self.0.on_clean.lock().unwrap() = Some(Box::new(hook));
    }

    /// Calls `watcher` after each line that reaches memory, until the result is called.
    pub fn watch(&self, watcher: impl FnMut(&Self) + Send + 'static) -> impl FnOnce() {
        *self.0.watcher.lock().unwrap() = Some(Box::new(watcher));
        let this = self.clone();
        move || *this.0.watcher.lock().unwrap() = None
    }

    /// Calls `hook` in the next allocation.
    pub fn at_alloc(&self, hook: impl FnOnce() + Send + 'static) {
        *self.0.on_alloc.lock().unwrap() = Some(Box::new(hook));
    }
}

fn call(hook: &Hook) {
    let hook = hook.lock().unwrap().take();
    if let Some(hook) = hook {
        hook();
    }
}

impl Memory for Behind {
    fn words(&self, table: u64, count: u64) -> Vec<u64> {
        let phys = PhysAddr::new(table);
        assert!(self.host().is_allocated(phys, count * 8), "{table:#x} is not allocated");
        let start = self.host().phys_to_virt(phys).addr().get();
        let lines = self.0.lines.lock().unwrap();
        (0..count as usize)
            .map(|i| {
                let line = lines.get(&((start + i * 8) / LINE));
                line.unwrap_or_else(|| panic!("word {i} of {table:#x} never reached memory"))[i % 8]
            })
            .collect()
    }
}

// SAFETY: that of `HostHal`, to which all is passed on.
unsafe impl Hal for Behind {
    fn alloc_frames(&self, order: FrameOrder) -> Result<PhysAddr, OutOfMemory> {
        call(&self.0.on_alloc);
        let phys = self.host().alloc_frames(order)?;
        // What the memory held in an earlier life says nothing.
        let first = self.host().phys_to_virt(phys).as_ptr().expose_provenance() / LINE;
        let mut lines = self.0.lines.lock().unwrap();
        for line in first..first + order.bytes() as usize / LINE {
            lines.remove(&line);
        }
        Ok(phys)
    }

    unsafe fn free_frames(&self, base: PhysAddr, order: FrameOrder) {
        // SAFETY: as the caller vouches.
        unsafe { self.host().free_frames(base, order) };
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        self.host().phys_to_virt(phys)
    }

    fn clean_cache(&self, start: NonNull<u8>, len: usize) {
        self.host().clean_cache(start, len);
        let offset = start.addr().get() % LINE;
        for line in 0..(offset + len.max(1)).div_ceil(LINE) {
            // More of the line than what `start` points to: by the provenance of the frames.
            let first = start.addr().get() - offset + line * LINE;
            let words = std::array::from_fn(|i| {
                let word = std::ptr::with_exposed_provenance::<AtomicU64>(first + 8 * i);
                // SAFETY: frames are made of whole lines, and `len` bytes from `start` are in one; the words of tables are
                // accessed as atomics.
                unsafe { &*word }.load(Ordering::Relaxed)
            });
            self.0.lines.lock().unwrap().insert(first / LINE, words);
            if let Some(watcher) = self.0.watcher.lock().unwrap().as_mut() {
                watcher(self);
            }
        }
        call(&self.0.on_clean);
    }

    fn now_ns(&self) -> u64 {
        self.host().now_ns()
    }

    fn mask_interrupts(&self) -> InterruptMask {
        self.host().mask_interrupts()
    }

    fn restore_interrupts(&self, mask: InterruptMask) {
        self.host().restore_interrupts(mask);
    }
}
