//! Register access in the widths that virtio demands.
//!
//! A field has to be accessed in its own width (4.1.3.1), and the common configuration has fields of one and of two
//! bytes, which [`portcullis_hal::Mmio`] does not reach.

#![expect(unsafe_code, reason = "register access in one and two bytes")]

use core::ptr::NonNull;

/// A block of registers at byte offsets, little-endian.
///
/// Offsets are naturally aligned and inside the block; an implementation answers others with zero and ignores the
/// write, so that a wrong offset cannot do harm.
///
/// # Safety
///
/// As for [`portcullis_hal::Mmio`]: they are the registers of a virtio device that acts as the specification says, and
/// nobody else drives it meanwhile.
pub unsafe trait Registers: Send + Sync + 'static {
    /// Reads 8 bits.
    fn read8(&self, offset: usize) -> u8;
    /// Reads 16 bits.
    fn read16(&self, offset: usize) -> u16;
    /// Reads 32 bits.
    fn read32(&self, offset: usize) -> u32;
    /// Writes 8 bits.
    fn write8(&self, offset: usize, value: u8);
    /// Writes 16 bits.
    fn write16(&self, offset: usize, value: u16);
    /// Writes 32 bits.
    fn write32(&self, offset: usize, value: u32);
}

/// Registers in the CPU's address space.
#[derive(Debug)]
pub struct RegisterWindow {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the window is only reached by single volatile accesses, which the bus orders; `new` made its owner the
// only one who interprets these registers.
unsafe impl Send for RegisterWindow {}
// SAFETY: as above; all methods take `&self` and keep no state.
unsafe impl Sync for RegisterWindow {}

impl RegisterWindow {
    /// The registers at `base`, `len` bytes long.
    ///
    /// # Safety
    ///
    /// `base` is aligned to 4 bytes and mapped as device memory for `len` bytes as long as the value lives, and
    /// nobody else drives the registers there.
    pub const unsafe fn new(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len }
    }

    fn register<T>(&self, offset: usize) -> Option<NonNull<T>> {
        let end = offset.checked_add(size_of::<T>())?;
        if end > self.len || !offset.is_multiple_of(align_of::<T>()) {
            return None;
        }
        // SAFETY: the offset was just checked to lie inside the window that `new` vouched for.
        Some(unsafe { self.base.byte_add(offset).cast() })
    }
}

macro_rules! accessors {
    ($($read:ident, $write:ident, $ty:ty;)*) => {
        // SAFETY: single accesses to the registers that `new` vouched for, and no others.
        unsafe impl Registers for RegisterWindow {
            $(
                fn $read(&self, offset: usize) -> $ty {
                    // SAFETY: `register` gives aligned registers inside the window.
                    self.register(offset).map_or(0, |register| unsafe { access::$read(register) })
                }

                fn $write(&self, offset: usize, value: $ty) {
                    if let Some(register) = self.register(offset) {
                        // SAFETY: `register` gives aligned registers inside the window.
                        unsafe { access::$write(register, value) }
                    }
                }
            )*
        }
    };
}
accessors! {
    read8, write8, u8;
    read16, write16, u16;
    read32, write32, u32;
}

/// Plain loads and stores without write-back, the only ones that a hypervisor that traps them can decode.
#[cfg(target_arch = "aarch64")]
mod access {
    use core::arch::asm;
    use core::ptr::NonNull;

    macro_rules! instructions {
        ($($read:ident, $load:literal, $write:ident, $store:literal, $ty:ty;)*) => {
            $(
                pub(super) unsafe fn $read(register: NonNull<$ty>) -> $ty {
                    let value;
                    // SAFETY: the caller gives a register that may be read.
                    unsafe {
                        asm!(concat!($load, " {value:w}, [{register}]"), value = out(reg) value,
                            register = in(reg) register.as_ptr(), options(nostack, preserves_flags));
                    }
                    value
                }

                pub(super) unsafe fn $write(register: NonNull<$ty>, value: $ty) {
                    // SAFETY: the caller gives a register that may be written.
                    unsafe {
                        asm!(concat!($store, " {value:w}, [{register}]"), value = in(reg) value,
                            register = in(reg) register.as_ptr(), options(nostack, preserves_flags));
                    }
                }
            )*
        };
    }
    instructions! {
        read8, "ldrb", write8, "strb", u8;
        read16, "ldrh", write16, "strh", u16;
        read32, "ldr", write32, "str", u32;
    }
}

#[cfg(not(target_arch = "aarch64"))]
mod access {
    use core::ptr::NonNull;
    use volatile::VolatilePtr;

    macro_rules! instructions {
        ($($read:ident, $write:ident, $ty:ty;)*) => {
            $(
                pub(super) unsafe fn $read(register: NonNull<$ty>) -> $ty {
                    // SAFETY: the caller gives a register that may be read.
                    unsafe { VolatilePtr::new(register) }.read()
                }

                pub(super) unsafe fn $write(register: NonNull<$ty>, value: $ty) {
                    // SAFETY: the caller gives a register that may be written.
                    unsafe { VolatilePtr::new(register) }.write(value);
                }
            )*
        };
    }
    instructions! {
        read8, write8, u8;
        read16, write16, u16;
        read32, write32, u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_width_reaches_its_own_bytes_and_nothing_outside() {
        let mut words = [0x4433_2211_u32, 0x8877_6655, 0];
        // SAFETY: the array outlives the window and nobody else uses it meanwhile.
        let window = unsafe { RegisterWindow::new(NonNull::from(&mut words).cast(), 8) };
        assert_eq!((window.read8(5), window.read16(2), window.read32(4)), (0x66, 0x4433, 0x8877_6655));
        assert_eq!((window.read8(8), window.read16(1), window.read32(8)), (0, 0, 0));
        window.write8(0, 0xaa);
        window.write16(2, 0xbbcc);
        window.write32(8, 0xffff_ffff);
        window.write16(7, 0xffff);
        assert_eq!(words, [0xbbcc_22aa, 0x8877_6655, 0]);
    }
}
