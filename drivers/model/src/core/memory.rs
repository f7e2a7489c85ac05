//! Memory as a device sees it, and a ready-made one for tests.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// The bus answered an access with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort;

/// Which observer an access belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum View {
    /// Sees the CPUs' caches.
    Coherent,
    /// Sees only what was cleaned to memory.
    Uncached,
}

/// What a model reads and writes. Addresses are physical; 64-bit accesses are naturally aligned.
///
/// Values are as a little-endian 64-bit load gives them. Called with the model's lock held: an implementation
/// must not call the model.
pub trait Memory: Send + Sync {
    /// Reads 64 bits; `None` is an external abort.
    fn read64(&self, address: u64) -> Option<u64>;

    /// Writes 64 bits.
    ///
    /// # Errors
    /// [`Abort`] if nothing takes the write.
    fn write64(&self, address: u64, value: u64) -> Result<(), Abort>;

    /// Reads 128 bits at once; by default two reads, low half first.
    fn read128(&self, address: u64) -> Option<u128> {
        let low = self.read64(address)?;
        let high = self.read64(address.wrapping_add(8))?;
        Some(u128::from(high) << 64 | u128::from(low))
    }

    /// What a read that does not look into CPU caches gives: only what was cleaned. By default the same.
    fn read64_uncached(&self, address: u64) -> Option<u64> {
        self.read64(address)
    }

    /// As [`Self::read128`] for [`Self::read64_uncached`].
    fn read128_uncached(&self, address: u64) -> Option<u128> {
        let low = self.read64_uncached(address)?;
        let high = self.read64_uncached(address.wrapping_add(8))?;
        Some(u128::from(high) << 64 | u128::from(low))
    }

    /// Writes 32 bits (messages, queue slots); by default through a 64-bit read and write.
    ///
    /// # Errors
    /// [`Abort`] if nothing takes the write.
    fn write32(&self, address: u64, value: u32) -> Result<(), Abort> {
        let base = address & !7;
        let shift = (address & 4) * 8;
        let word = self.read64(base).ok_or(Abort)?;
        self.write64(base, word & !(0xffff_ffff << shift) | u64::from(value) << shift)
    }

    /// Replaces `current` by `new` in one step, as hardware updates access and dirty flags; gives what was there
    /// before, so it has happened iff that is `current`. By default not atomic.
    fn compare_exchange64(&self, address: u64, current: u64, new: u64) -> Option<u64> {
        let before = self.read64(address)?;
        if before == current {
            self.write64(address, new).ok()?;
        }
        Some(before)
    }

    /// Reads 64 bits as the observer of `view` does.
    fn read64_as(&self, view: View, address: u64) -> Option<u64> {
        match view {
            View::Coherent => self.read64(address),
            View::Uncached => self.read64_uncached(address),
        }
    }

    /// Reads 128 bits as the observer of `view` does.
    fn read128_as(&self, view: View, address: u64) -> Option<u128> {
        match view {
            View::Coherent => self.read128(address),
            View::Uncached => self.read128_uncached(address),
        }
    }
}

const PAGE: u64 = 4096;
const WORDS: usize = 512;

struct Page {
    cached: [AtomicU64; WORDS],
    cleaned: [AtomicU64; WORDS],
}

impl Page {
    fn new() -> Self {
        Self {
            cached: std::array::from_fn(|_| AtomicU64::new(0)),
            cleaned: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

/// Page numbers need no defence against an attacker, and models read memory all the time.
#[derive(Default)]
struct PageHasher(u64);

impl Hasher for PageHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

type Pages = HashMap<u64, Box<Page>, BuildHasherDefault<PageHasher>>;

type Hook = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// Sparse memory for tests: everything is zeroed RAM until ranges are made to abort.
///
/// [`Ram::store`] is the software's side: it reaches the coherent view at once and the uncached view when
/// [`Ram::clean`] is called, and runs the hook before and after each store. Writes of the device reach both.
#[derive(Default)]
pub struct Ram {
    pages: RwLock<Pages>,
    holes: RwLock<Vec<(u64, u64)>>,
    has_holes: AtomicBool,
    hook: Mutex<Option<Hook>>,
    has_hook: AtomicBool,
}

impl fmt::Debug for Ram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ram").finish_non_exhaustive()
    }
}

impl Ram {
    /// Empty memory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes accesses of the device to `start..end` abort.
    pub fn punch(&self, start: u64, end: u64) {
        self.holes.write().unwrap_or_else(PoisonError::into_inner).push((start, end));
        self.has_holes.store(true, Ordering::SeqCst);
    }

    /// Undoes all [`Ram::punch`].
    pub fn mend(&self) {
        self.holes.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.has_holes.store(false, Ordering::SeqCst);
    }

    /// Calls `hook(address, value)` after each [`Ram::store`]; the place to step a model.
    pub fn set_hook(&self, hook: impl Fn(u64, u64) + Send + Sync + 'static) {
        *self.hook.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(hook));
        self.has_hook.store(true, Ordering::SeqCst);
    }

    fn with<T>(&self, address: u64, work: impl Fn(&Page) -> T) -> T {
        let number = address / PAGE;
        if let Some(page) = self.pages.read().unwrap_or_else(PoisonError::into_inner).get(&number) {
            return work(page);
        }
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        work(pages.entry(number).or_insert_with(|| Box::new(Page::new())))
    }

    fn aborts(&self, address: u64) -> bool {
        if !self.has_holes.load(Ordering::SeqCst) {
            return false;
        }
        let holes = self.holes.read().unwrap_or_else(PoisonError::into_inner);
        holes.iter().any(|&(start, end)| (start..end).contains(&address))
    }

    fn index(address: u64) -> usize {
        (address % PAGE / 8) as usize
    }

    /// The software stores 64 bits.
    pub fn store(&self, address: u64, value: u64) {
        self.with(address, |page| page.cached[Self::index(address)].store(value, Ordering::SeqCst));
        if !self.has_hook.load(Ordering::SeqCst) {
            return;
        }
        let hook = self.hook.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(hook) = hook {
            hook(address, value);
        }
    }

    /// The software stores and cleans consecutive words.
    pub fn store_all(&self, address: u64, words: &[u64]) {
        for (at, &word) in (address..).step_by(8).zip(words) {
            self.store(at, word);
        }
        self.clean(address, words.len() as u64 * 8);
    }

    /// The software loads 64 bits.
    #[must_use]
    pub fn load(&self, address: u64) -> u64 {
        self.with(address, |page| page.cached[Self::index(address)].load(Ordering::SeqCst))
    }

    /// The software cleans `len` bytes to memory.
    pub fn clean(&self, address: u64, len: u64) {
        for at in (address & !7..address + len).step_by(8) {
            self.with(at, |page| {
                let word = page.cached[Self::index(at)].load(Ordering::SeqCst);
                page.cleaned[Self::index(at)].store(word, Ordering::SeqCst);
            });
        }
    }
}

impl Memory for Ram {
    fn read64(&self, address: u64) -> Option<u64> {
        (!self.aborts(address)).then(|| self.load(address))
    }

    fn write64(&self, address: u64, value: u64) -> Result<(), Abort> {
        if self.aborts(address) {
            return Err(Abort);
        }
        self.with(address, |page| {
            page.cached[Self::index(address)].store(value, Ordering::SeqCst);
            page.cleaned[Self::index(address)].store(value, Ordering::SeqCst);
        });
        Ok(())
    }

    fn read64_uncached(&self, address: u64) -> Option<u64> {
        let load = |page: &Page| page.cleaned[Self::index(address)].load(Ordering::SeqCst);
        (!self.aborts(address)).then(|| self.with(address, load))
    }

    fn compare_exchange64(&self, address: u64, current: u64, new: u64) -> Option<u64> {
        if self.aborts(address) {
            return None;
        }
        let before = self.with(address, |page| {
            let word = &page.cached[Self::index(address)];
            let result = word.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst);
            if result.is_ok() {
                page.cleaned[Self::index(address)].store(new, Ordering::SeqCst);
            }
            result.unwrap_or_else(|found| found)
        });
        Some(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uncached_view_sees_a_store_only_after_it_was_cleaned() {
        let ram = Ram::new();
        ram.store(0x1000, 7);
        assert_eq!((ram.read64(0x1000), ram.read64_uncached(0x1000)), (Some(7), Some(0)));
        ram.clean(0x1000, 8);
        assert_eq!(ram.read64_uncached(0x1000), Some(7));
    }

    #[test]
    fn a_32_bit_write_keeps_the_other_half_and_a_hole_aborts() {
        let ram = Ram::new();
        ram.store(8, 0x1111_2222_3333_4444);
        assert_eq!(ram.write32(12, 5), Ok(()));
        assert_eq!(ram.load(8), 0x0000_0005_3333_4444);
        ram.punch(0, 16);
        assert_eq!((ram.read64(8), ram.write32(8, 1)), (None, Err(Abort)));
    }
}
