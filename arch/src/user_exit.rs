//! Why user code stopped, in one shape for both architectures.

use core::fmt;
use portcullis_hal::{Access, Asid, PhysAddr};

/// The tables of the bottom half of the address space, where user code lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserTables {
    /// The root table.
    pub root: PhysAddr,
    /// By which TLBs tell its translations from those of others, where they can.
    pub asid: Asid,
}

/// Why user code came back to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It called the kernel.
    Call(Call),
    /// The tables do not allow an access. Run again, it repeats the access.
    PageFault(PageFault),
    /// An interrupt was taken, and its handler has run.
    Interrupt,
    /// It did something else that user code may not do.
    Exception(Exception),
}

/// A call of the kernel: a number and two arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// What is asked for.
    pub number: u64,
    /// With what.
    pub arguments: [u64; 2],
}

/// An access that the tables do not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// The virtual address.
    pub address: u64,
    /// What user code wanted: one of the three.
    pub access: Access,
    /// The address of the instruction.
    pub instruction: u64,
}

/// An exception that is neither a call nor a page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// The architecture's number: the vector, or `ESR.EC`.
    pub code: u64,
    /// The address of the instruction.
    pub instruction: u64,
    /// What the architecture calls it.
    pub(crate) name: &'static str,
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:#x}) at {:#x}", self.name, self.code, self.instruction)
    }
}

/// CPUs, by their index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuSet(u64);

impl CpuSet {
    /// The CPUs whose bits are set.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The set with one CPU; empty if its index is beyond what a set can hold.
    pub const fn one(index: usize) -> Self {
        Self(if index < 64 { 1 << index } else { 0 })
    }

    /// One bit per CPU.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether the CPU is in the set.
    pub const fn contains(self, index: usize) -> bool {
        Self::one(index).0 & self.0 != 0
    }

    /// The indices.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..64).filter(move |&index| self.contains(index))
    }
}
