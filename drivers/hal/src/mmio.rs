//! Access to a block of device registers.

#![expect(unsafe_code, reason = "register access is a contract of this crate")]

use core::ptr::NonNull;

/// A block of registers at byte offsets.
///
/// Real registers are a [`MmioRegion`]; tests put a hardware model behind it, and a hypervisor may trap and
/// forward. Offsets are naturally aligned and inside the block; an implementation answers others with zero and
/// ignores the write, so that a wrong offset cannot do harm.
///
/// # Safety
///
/// The registers are those of the device that the driver above is made for, and act as its manual says: drivers
/// free memory when the registers say that the device is done with it. Nobody else drives the device meanwhile.
pub unsafe trait Mmio: Send + Sync {
    /// Reads a 32-bit register.
    fn read32(&self, offset: usize) -> u32;
    /// Writes a 32-bit register.
    fn write32(&self, offset: usize, value: u32);
    /// Reads a 64-bit register in one access.
    fn read64(&self, offset: usize) -> u64;
    /// Writes a 64-bit register in one access.
    fn write64(&self, offset: usize, value: u64);
}

/// Registers in the CPU's address space.
#[derive(Debug)]
pub struct MmioRegion {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the region is only reached by single volatile accesses, which the bus orders; `new` made its owner
// the only one who interprets these registers.
unsafe impl Send for MmioRegion {}
// SAFETY: as above; all methods take `&self` and keep no state.
unsafe impl Sync for MmioRegion {}

impl MmioRegion {
    /// The registers at `base`, `len` bytes long.
    ///
    /// # Safety
    ///
    /// `base` is aligned to 8 bytes and mapped as device memory for `len` bytes as long as the value lives, and
    /// nobody else drives the registers there.
    pub const unsafe fn new(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len }
    }

    /// The block's length in bytes.
    pub const fn size(&self) -> usize {
        self.len
    }

    /// Whether the block has a register of this type there.
    #[inline]
    fn has<T>(&self, offset: usize) -> bool {
        let end = offset.checked_add(size_of::<T>());
        end.is_some_and(|end| end <= self.len) && offset.is_multiple_of(align_of::<T>())
    }

    /// A register that the block [has](Self::has).
    ///
    /// # Safety
    ///
    /// The block has it.
    #[inline]
    unsafe fn register<T>(&self, offset: usize) -> NonNull<T> {
        // SAFETY: the offset lies inside the region that `new` vouched for.
        unsafe { self.base.byte_add(offset).cast() }
    }
}

// SAFETY: `new` vouched for the registers, and each access is one access to them.
unsafe impl Mmio for MmioRegion {
    #[inline]
    fn read32(&self, offset: usize) -> u32 {
        if !self.has::<u32>(offset) {
            return 0;
        }
        // SAFETY: just checked, and so an aligned register inside the region.
        unsafe { access::read32(self.register(offset)) }
    }

    #[inline]
    fn write32(&self, offset: usize, value: u32) {
        if self.has::<u32>(offset) {
            // SAFETY: just checked, and so an aligned register inside the region.
            unsafe { access::write32(self.register(offset), value) }
        }
    }

    #[inline]
    fn read64(&self, offset: usize) -> u64 {
        if !self.has::<u64>(offset) {
            return 0;
        }
        // SAFETY: just checked, and so an aligned register inside the region.
        unsafe { access::read64(self.register(offset)) }
    }

    #[inline]
    fn write64(&self, offset: usize, value: u64) {
        if self.has::<u64>(offset) {
            // SAFETY: just checked, and so an aligned register inside the region.
            unsafe { access::write64(self.register(offset), value) }
        }
    }
}

/// A hypervisor that traps these accesses can decode only plain loads and stores without write-back, which the
/// compiler does not promise for volatile accesses on aarch64.
#[cfg(target_arch = "aarch64")]
mod access {
    use core::arch::asm;
    use core::ptr::NonNull;

    macro_rules! accessors {
        ($read:ident, $write:ident, $ty:ty, $reg:literal) => {
            #[inline]
            pub(super) unsafe fn $read(register: NonNull<$ty>) -> $ty {
                let value;
                // SAFETY: the caller gives a register that may be read.
                unsafe {
                    asm!(concat!("ldr {value", $reg, "}, [{register}]"), value = out(reg) value,
                        register = in(reg) register.as_ptr(), options(nostack, preserves_flags));
                }
                value
            }

            #[inline]
            pub(super) unsafe fn $write(register: NonNull<$ty>, value: $ty) {
                // SAFETY: the caller gives a register that may be written.
                unsafe {
                    asm!(concat!("str {value", $reg, "}, [{register}]"), value = in(reg) value,
                        register = in(reg) register.as_ptr(), options(nostack, preserves_flags));
                }
            }
        };
    }
    accessors!(read32, write32, u32, ":w");
    accessors!(read64, write64, u64, "");
}

#[cfg(not(target_arch = "aarch64"))]
mod access {
    use core::ptr::NonNull;
    use volatile::VolatilePtr;

    macro_rules! accessors {
        ($read:ident, $write:ident, $ty:ty) => {
            #[inline]
            pub(super) unsafe fn $read(register: NonNull<$ty>) -> $ty {
                // SAFETY: the caller gives a register that may be read.
                unsafe { VolatilePtr::new(register) }.read()
            }

            #[inline]
            pub(super) unsafe fn $write(register: NonNull<$ty>, value: $ty) {
                // SAFETY: the caller gives a register that may be written.
                unsafe { VolatilePtr::new(register) }.write(value);
            }
        };
    }
    accessors!(read32, write32, u32);
    accessors!(read64, write64, u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_outside_the_block_reads_zero_and_writes_nothing() {
        let mut words = [0x1111_2222_3333_4444_u64, 0];
        // SAFETY: the array outlives the region and nobody else uses it meanwhile.
        let region = unsafe { MmioRegion::new(NonNull::from(&mut words).cast(), 8) };
        assert_eq!((region.read32(4), region.read64(8), region.read32(2)), (0x1111_2222, 0, 0));
        region.write64(8, 7);
        region.write32(0, 5);
        assert_eq!(words, [0x1111_2222_0000_0005, 0]);
    }
}
