//! Access to the memory in which firmware left its tables.

use portcullis_hal::PhysRange;

/// Maps firmware tables for reading; given by the kernel.
///
/// Implemented for every closure of the right shape.
pub trait PhysMemory<'m> {
    /// The bytes of `range`, or `None` if the kernel does not map all of it.
    fn bytes(&self, range: PhysRange) -> Option<&'m [u8]>;
}

impl<'m, F: Fn(PhysRange) -> Option<&'m [u8]>> PhysMemory<'m> for F {
    fn bytes(&self, range: PhysRange) -> Option<&'m [u8]> {
        self(range)
    }
}
