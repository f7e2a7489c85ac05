//! A 128-bit word that a device reads in one piece: the unit in which VT-d fetches table entries.

#![expect(unsafe_code, reason = "128-bit atomic instructions")]

use core::cell::UnsafeCell;

/// A 128-bit atomic.
///
/// On x86_64 it needs CMPXCHG16B, on aarch64 it uses an exclusive pair. Other architectures have no such type.
#[repr(C, align(16))]
pub struct AtomicU128(UnsafeCell<u128>);

// SAFETY: all accesses go through single atomic instructions.
unsafe impl Sync for AtomicU128 {}

impl AtomicU128 {
    /// A word with this value.
    pub const fn new(value: u128) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Reads the word in one piece.
    pub fn load(&self) -> u128 {
        // A compare-exchange of zero for zero changes nothing and returns what is there.
        self.compare_exchange(0, 0).unwrap_or_else(|found| found)
    }

    /// Writes the word in one piece, ordered after all earlier stores.
    pub fn store(&self, value: u128) {
        // A guess, which finds out what is there where it is wrong.
        let mut current = 0;
        while let Err(found) = self.compare_exchange(current, value) {
            current = found;
        }
    }

    /// Replaces `current` by `new` in one piece, or returns what was found instead.
    pub fn compare_exchange(&self, current: u128, new: u128) -> Result<u128, u128> {
        // SAFETY: the pointer is aligned to 16 bytes, valid, and only used with atomic instructions.
        let found = unsafe { imp::compare_exchange(self.0.get(), current, new) };
        if found == current { Ok(found) } else { Err(found) }
    }
}

impl core::fmt::Debug for AtomicU128 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#034x}", self.load())
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod imp {
    use core::arch::asm;

    pub(super) unsafe fn compare_exchange(cell: *mut u128, current: u128, new: u128) -> u128 {
        let (low, high): (u64, u64);
        // SAFETY: the caller gives a valid aligned word. The compiler lets nobody name rbx, which holds the low half, so
        // it is swapped in and out, and no operand may happen to live there: all are named.
        unsafe {
            asm!(
                "xchg rsi, rbx",
                "lock cmpxchg16b [rdi]",
                "mov rbx, rsi",
                in("rdi") cell,
                inout("rsi") new as u64 => _,
                in("rcx") (new >> 64) as u64,
                inout("rax") current as u64 => low,
                inout("rdx") (current >> 64) as u64 => high,
                options(nostack),
            );
        }
        u128::from(high) << 64 | u128::from(low)
    }
}

#[cfg(all(target_arch = "aarch64", not(miri)))]
mod imp {
    use core::arch::asm;

    pub(super) unsafe fn compare_exchange(cell: *mut u128, current: u128, new: u128) -> u128 {
        let (low, high): (u64, u64);
        // SAFETY: the caller gives a valid aligned word. The pair that was read is stored back when it differs,
        // since only a successful store-exclusive proves that both halves were read together.
        unsafe {
            asm!(
                "2: ldaxp {low}, {high}, [{cell}]",
                "cmp {low}, {current_low}",
                "ccmp {high}, {current_high}, #0, eq",
                "csel {next_low}, {new_low}, {low}, eq",
                "csel {next_high}, {new_high}, {high}, eq",
                "stlxp {failed:w}, {next_low}, {next_high}, [{cell}]",
                "cbnz {failed:w}, 2b",
                cell = in(reg) cell,
                current_low = in(reg) current as u64,
                current_high = in(reg) (current >> 64) as u64,
                new_low = in(reg) new as u64,
                new_high = in(reg) (new >> 64) as u64,
                low = out(reg) low,
                high = out(reg) high,
                next_low = out(reg) _,
                next_high = out(reg) _,
                failed = out(reg) _,
                options(nostack),
            );
        }
        u128::from(high) << 64 | u128::from(low)
    }
}

/// Miri knows no inline assembly; a lock around the word keeps its other checks meaningful.
#[cfg(miri)]
mod imp {
    static LOCK: spin::Mutex<()> = spin::Mutex::new(());

    pub(super) unsafe fn compare_exchange(cell: *mut u128, current: u128, new: u128) -> u128 {
        let _guard = LOCK.lock();
        // SAFETY: the caller gives a valid word, and the lock makes this thread its only user.
        unsafe {
            let found = *cell;
            if found == current {
                *cell = new;
            }
            found
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_and_exchange_move_both_halves() {
        let word = AtomicU128::new(1);
        word.store(u128::MAX - 5);
        assert_eq!(word.load(), u128::MAX - 5);
        assert_eq!(word.compare_exchange(3, 4), Err(u128::MAX - 5));
        assert_eq!(word.compare_exchange(u128::MAX - 5, 7 << 64 | 9), Ok(u128::MAX - 5));
        assert_eq!(word.load(), 7 << 64 | 9);
    }

    #[test]
    fn readers_never_see_halves_of_two_values() {
        let word = AtomicU128::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for i in 0..2000_u128 {
                    word.store(i << 64 | i);
                }
            });
            for _ in 0..2000 {
                let value = word.load();
                assert_eq!(value >> 64, value & u128::from(u64::MAX));
            }
        });
    }
}
