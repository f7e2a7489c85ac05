//! Addresses and ranges, one type per address space.

use core::fmt;
use thiserror::Error;

/// The frame size of [`Hal`](crate::Hal), in bytes; not necessarily the granule of a page table.
pub const PAGE_SIZE: u64 = 4096;

/// Why a range is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// The range has no bytes.
    #[error("empty range")]
    Empty,
    /// The last byte would lie beyond the 64-bit address space.
    #[error("range wraps around the address space")]
    Wraps,
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The address with this value.
            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            /// The value of the address.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// Whether the address is a multiple of `align`, a power of two.
            pub const fn is_aligned(self, align: u64) -> bool {
                self.0 & (align - 1) == 0
            }

            /// The address rounded down to a multiple of `align`, a power of two.
            pub const fn align_down(self, align: u64) -> Self {
                Self(self.0 & !(align - 1))
            }

            /// The address `bytes` further on, or `None` past the end of the address space.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(value) => Some(Self(value)),
                    None => None,
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address! {
    /// A system physical address.
    PhysAddr
}
address! {
    /// An I/O virtual address: what a device puts on the bus.
    Iova
}
address! {
    /// An intermediate physical address: the output of stage 1 and the input of stage 2; a guest's idea of
    /// physical.
    Ipa
}

macro_rules! range {
    ($(#[$doc:meta])* $name:ident of $addr:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name {
            first: $addr,
            last: $addr,
        }

        impl $name {
            /// The range of `len` bytes from `start`. It may end at the very top of the address space.
            pub const fn new(start: $addr, len: u64) -> Result<Self, AddressError> {
                if len == 0 {
                    return Err(AddressError::Empty);
                }
                match start.checked_add(len - 1) {
                    Some(last) => Ok(Self { first: start, last }),
                    None => Err(AddressError::Wraps),
                }
            }

            /// The range from `first` to `last`, both inclusive.
            pub const fn from_bounds(first: $addr, last: $addr) -> Result<Self, AddressError> {
                if last.get() < first.get() { Err(AddressError::Empty) } else { Ok(Self { first, last }) }
            }

            /// The naturally aligned block of `size` bytes, a power of two, that holds `addr`.
            pub const fn block(addr: $addr, size: u64) -> Self {
                let first = addr.align_down(size);
                Self { first, last: $addr::new(first.get() | (size - 1)) }
            }

            /// The first address.
            pub const fn start(&self) -> $addr {
                self.first
            }

            /// The last address, inclusive, so that a range can reach the top of the address space.
            pub const fn last(&self) -> $addr {
                self.last
            }

            /// The length in bytes; saturates for the whole 64-bit space.
            #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
            pub const fn len(&self) -> u64 {
                (self.last.get() - self.first.get()).saturating_add(1)
            }

            /// Whether `addr` lies in the range.
            pub const fn contains(&self, addr: $addr) -> bool {
                self.first.get() <= addr.get() && addr.get() <= self.last.get()
            }

            /// Whether all of `other` lies in the range.
            pub const fn covers(&self, other: &Self) -> bool {
                self.contains(other.first) && self.contains(other.last)
            }

            /// Whether the ranges share a byte.
            pub const fn overlaps(&self, other: &Self) -> bool {
                self.first.get() <= other.last.get() && other.first.get() <= self.last.get()
            }

            /// The smallest range that covers both.
            pub const fn hull(&self, other: &Self) -> Self {
                let first = if self.first.get() < other.first.get() { self.first } else { other.first };
                let last = if self.last.get() > other.last.get() { self.last } else { other.last };
                Self { first, last }
            }

            /// Whether start and length are multiples of `align`, a power of two.
            pub const fn is_aligned(&self, align: u64) -> bool {
                self.first.is_aligned(align) && self.last.get() & (align - 1) == align - 1
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x}..={:#x})"), self.first, self.last)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}-{:#x}", self.first, self.last)
            }
        }
    };
}

range! {
    /// A non-empty range of physical addresses.
    PhysRange of PhysAddr
}
range! {
    /// A non-empty range of I/O virtual addresses.
    IovaRange of Iova
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_may_end_at_the_top_of_the_address_space() {
        let top = IovaRange::new(Iova::new(u64::MAX - 0xfff), 0x1000).unwrap();
        assert_eq!(top.last().get(), u64::MAX);
        assert!(top.is_aligned(0x1000));
        assert_eq!(IovaRange::new(Iova::new(u64::MAX - 0xfff), 0x1001), Err(AddressError::Wraps));
        assert_eq!(IovaRange::new(Iova::new(0), 0), Err(AddressError::Empty));
    }

    #[test]
    fn neighbours_do_not_overlap() {
        let a = PhysRange::new(PhysAddr::new(0x1000), 0x1000).unwrap();
        let b = PhysRange::new(PhysAddr::new(0x2000), 0x1000).unwrap();
        assert!(!a.overlaps(&b) && !b.overlaps(&a));
        assert!(a.hull(&b).covers(&a) && a.hull(&b).covers(&b));
        assert_eq!(a.hull(&b).len(), 0x2000);
    }
}
