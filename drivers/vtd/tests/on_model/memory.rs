//! One memory for the driver and the model: [`HostHal`]'s frames, with what was cleaned of them kept beside them, a
//! clock that moves when it is read, and a hook for whatever the driver does.

#![expect(unsafe_code, reason = "a Hal over another one, and the memory behind it")]

use portcullis_hal::host::HostHal;
use portcullis_hal::{FrameOrder, Hal, InterruptMask, OutOfMemory, PhysAddr};
use portcullis_model::core::{Abort, Memory};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

/// Where [`HostHal`]'s frames begin.
const FIRST_FRAME: u64 = 1 << 32;

/// Messages of interrupts are written here.
const DOORBELLS: std::ops::Range<u64> = 0xfee0_0000..0xfef0_0000;

/// What a walker that does not snoop finds where nothing was ever cleaned: an entry of any kind that is present and leads
/// to memory that nobody has.
const NEVER_CLEANED: u64 = 0x66_6007;

/// What each look at the clock takes.
const TICK_NS: u64 = 2_000;

/// What the driver does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// It finds out where memory is: an access follows.
    Look,
    /// It has cleaned cache lines.
    Clean,
    /// It waits.
    Wait,
}

type Hook = Box<dyn Fn(Moment) + Send + Sync>;

struct Page {
    memory: NonNull<AtomicU64>,
    cleaned: Option<Box<[AtomicU64; 512]>>,
}

// SAFETY: a page is plain memory that is only reached through atomics, as long as it is allocated.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

struct State {
    hal: HostHal,
    /// Whether what was cleaned is told apart from what was stored.
    caches: bool,
    pages: RwLock<Vec<Option<Page>>>,
    /// Physical addresses and sizes by the address at which the CPU sees a block.
    seen: Mutex<BTreeMap<usize, (u64, u64)>>,
    clock: AtomicU64,
    hook: OnceLock<Hook>,
    troubles: Mutex<Vec<String>>,
}

/// The machine's memory. Clones share it.
#[derive(Clone)]
pub(crate) struct Host(Arc<State>);

impl Host {
    /// An empty memory, with caches that the unit may not snoop if `caches` is set.
    pub(crate) fn new(caches: bool) -> Self {
        Self(Arc::new(State {
            hal: HostHal::new(),
            caches,
            pages: RwLock::default(),
            seen: Mutex::default(),
            clock: AtomicU64::new(0),
            hook: OnceLock::new(),
            troubles: Mutex::default(),
        }))
    }

    pub(crate) fn hal(&self) -> &HostHal {
        &self.0.hal
    }

    /// Calls `hook` at whatever the driver does from now on.
    pub(crate) fn set_hook(&self, hook: Hook) {
        assert!(self.0.hook.set(hook).is_ok(), "one hook for one machine");
    }

    fn hook(&self, moment: Moment) {
        if let Some(hook) = self.0.hook.get() {
            hook(moment);
        }
    }

    /// Accesses of the unit to memory that is not there.
    pub(crate) fn take_troubles(&self) -> Vec<String> {
        std::mem::take(&mut self.0.troubles.lock().unwrap())
    }

    fn trouble(&self, what: &str, address: u64) {
        let mut troubles = self.0.troubles.lock().unwrap();
        if troubles.len() < 20 {
            troubles.push(format!("the unit {what} {address:#x}, where no memory is allocated"));
        }
    }

    /// Does something with the words of an allocated page.
    fn with<R>(&self, address: u64, f: impl FnOnce(&Page, usize) -> R) -> Option<R> {
        let number = address.checked_sub(FIRST_FRAME)? >> 12;
        let pages = self.0.pages.read().unwrap();
        let page = pages.get(number as usize)?.as_ref()?;
        Some(f(page, (address & 0xfff) as usize / 8))
    }
}

impl Page {
    fn word(&self, index: usize) -> &AtomicU64 {
        // SAFETY: the index is below 512, and the page is allocated as long as it is in the list.
        unsafe { self.memory.add(index).as_ref() }
    }

    fn cleaned(&self, index: usize) -> &AtomicU64 {
        match &self.cleaned {
            Some(words) => &words[index],
            None => self.word(index),
        }
    }
}

// SAFETY: frames and interrupts are those of the other Hal; what is recorded changes nothing.
unsafe impl Hal for Host {
    fn alloc_frames(&self, order: FrameOrder) -> Result<PhysAddr, OutOfMemory> {
        self.hook(Moment::Look);
        let phys = self.0.hal.alloc_frames(order)?;
        let memory = self.0.hal.phys_to_virt(phys);
        self.0.seen.lock().unwrap().insert(memory.addr().get(), (phys.get(), order.bytes()));
        let first = ((phys.get() - FIRST_FRAME) >> 12) as usize;
        let count = (order.bytes() >> 12) as usize;
        let mut pages = self.0.pages.write().unwrap();
        let len = pages.len().max(first + count);
        pages.resize_with(len, || None);
        for (number, page) in pages[first..first + count].iter_mut().enumerate() {
            let fresh = || Box::new(std::array::from_fn(|_| AtomicU64::new(NEVER_CLEANED)));
            // SAFETY: the block has `count` pages.
            let memory = unsafe { memory.add(number << 12) }.cast();
            *page = Some(Page { memory, cleaned: self.0.caches.then(fresh) });
        }
        Ok(phys)
    }

    unsafe fn free_frames(&self, base: PhysAddr, order: FrameOrder) {
        self.0.seen.lock().unwrap().remove(&self.0.hal.phys_to_virt(base).addr().get());
        let first = ((base.get() - FIRST_FRAME) >> 12) as usize;
        let count = (order.bytes() >> 12) as usize;
        self.0.pages.write().unwrap()[first..first + count].fill_with(|| None);
        // SAFETY: the frames came from this Hal, as the caller vouches.
        unsafe { self.0.hal.free_frames(base, order) };
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        self.hook(Moment::Look);
        let found = self.with(phys.get(), |page, _| page.memory.cast::<u8>());
        let Some(memory) = found else { panic!("{phys} is not allocated") };
        // SAFETY: the offset is within the page.
        unsafe { memory.add((phys.get() & 0xfff) as usize) }
    }

    fn clean_cache(&self, start: NonNull<u8>, len: usize) {
        self.0.hal.clean_cache(start, len);
        let (first, end) = (start.addr().get() & !63, start.addr().get() + len);
        let block = self.0.seen.lock().unwrap().range(..=first).next_back().map(|(&at, &block)| (at, block));
        let Some((at, (phys, size))) = block else { panic!("cleaned memory that is not allocated") };
        for offset in (first - at..(end - at).next_multiple_of(64).min(size as usize)).step_by(8) {
            self.with(phys + offset as u64, |page, index| {
                page.cleaned(index).store(page.word(index).load(Ordering::SeqCst), Ordering::SeqCst);
            });
        }
        self.hook(Moment::Clean);
    }

    fn now_ns(&self) -> u64 {
        self.0.clock.fetch_add(TICK_NS, Ordering::SeqCst)
    }

    fn relax(&self) {
        self.hook(Moment::Wait);
    }

    fn mask_interrupts(&self) -> InterruptMask {
        InterruptMask(0)
    }

    fn restore_interrupts(&self, _mask: InterruptMask) {}
}

impl Memory for Host {
    fn read64(&self, address: u64) -> Option<u64> {
        let found = self.with(address, |page, index| page.word(index).load(Ordering::SeqCst));
        if found.is_none() {
            self.trouble("read", address);
        }
        found
    }

    fn write64(&self, address: u64, value: u64) -> Result<(), Abort> {
        let found = self.with(address, |page, index| {
            page.word(index).store(value, Ordering::SeqCst);
            page.cleaned(index).store(value, Ordering::SeqCst);
        });
        if found.is_none() && !DOORBELLS.contains(&address) {
            self.trouble("wrote", address);
            return Err(Abort);
        }
        Ok(())
    }

    fn read64_uncached(&self, address: u64) -> Option<u64> {
        let found = self.with(address, |page, index| page.cleaned(index).load(Ordering::SeqCst));
        if found.is_none() {
            self.trouble("read", address);
        }
        found
    }

    fn compare_exchange64(&self, address: u64, current: u64, new: u64) -> Option<u64> {
        let found = self.with(address, |page, index| {
            let word = page.word(index);
            match word.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(before) => {
                    page.cleaned(index).store(new, Ordering::SeqCst);
                    before
                }
                Err(before) => before,
            }
        });
        if found.is_none() {
            self.trouble("updated", address);
        }
        found
    }
}
