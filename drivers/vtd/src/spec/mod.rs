//! Layouts of Intel's "Virtualization Technology for Directed I/O Architecture Specification" (revision 4.1; the
//! section numbers in this folder are those of that revision): data only.
#![forbid(unsafe_code)]

pub mod descriptors;
pub mod entries;
pub mod faults;
pub mod page_requests;
pub mod registers;

/// Fails the build unless a field occupies the bits `high:low`.
const fn at(offset: usize, bits: usize, high: usize, low: usize) {
    assert!(offset == low && bits == high - low + 1);
}
