//! Layouts of Intel's "Virtualization Technology for Directed I/O Architecture Specification" (revision 4.1; the
//! section numbers in this folder are those of that revision): data only.
#![forbid(unsafe_code)]

/// A field of at most 8 bits as a type that can hold every value, with names for those that the manual defines.
macro_rules! encoding {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name(pub u8);

        impl $name {
            $($(#[$variant_doc])* pub const $variant: Self = Self($value);)*

            pub(super) const fn into_bits(self) -> u8 {
                self.0
            }

            pub(super) const fn from_bits(bits: u8) -> Self {
                Self(bits)
            }
        }
    };
}

pub mod descriptors;
pub mod entries;
pub mod faults;
pub mod page_requests;
pub mod registers;

/// Fails the build unless a field occupies the bits `high:low`.
const fn at(offset: usize, bits: usize, high: usize, low: usize) {
    assert!(offset == low && bits == high - low + 1);
}
