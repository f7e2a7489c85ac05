//! Layouts of ACPI structures; types only.
//!
//! Every structure is unaligned and little-endian, named after its table, with the offset of each field in
//! its documentation and size and offsets asserted at compile time.

pub(crate) mod dmar;
pub(crate) mod iort;
pub(crate) mod madt;
pub(crate) mod root;
pub(crate) mod viot;

/// Asserts the size of a structure and the offsets of some fields.
macro_rules! assert_layout {
    ($type:ty, $size:literal $(, $field:ident @ $offset:literal)* $(,)?) => {
        const _: () = {
            assert!(size_of::<$type>() == $size);
            $(assert!(core::mem::offset_of!($type, $field) == $offset);)*
        };
    };
}
pub(crate) use assert_layout;
