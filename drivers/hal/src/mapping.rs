//! What a mapping says: which memory stands at an address, and how it may be accessed.

use crate::{Iova, PhysAddr, PhysRange};
use bitflags::bitflags;
use core::fmt;

bitflags! {
    /// What a device may do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Access: u8 {
        /// Read memory.
        const READ = 1;
        /// Write memory.
        const WRITE = 2;
        /// Fetch instructions.
        const EXECUTE = 4;
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (flag, letter) in [(Self::READ, 'r'), (Self::WRITE, 'w'), (Self::EXECUTE, 'x')] {
            write!(f, "{}", if self.contains(flag) { letter } else { '-' })?;
        }
        Ok(())
    }
}

/// How a mapping's memory is to be accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum MemoryKind {
    /// Ordinary memory, write-back cacheable and snooped.
    #[default]
    WriteBack,
    /// Memory that is not cached.
    NonCacheable,
    /// Device registers: peer-to-peer windows, interrupt doorbells.
    Device,
}

impl fmt::Display for MemoryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::WriteBack => "write-back",
            Self::NonCacheable => "non-cacheable",
            Self::Device => "device",
        })
    }
}

/// The attributes of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// What the device may do; not empty.
    pub access: Access,
    /// The kind of memory.
    pub memory: MemoryKind,
}

impl Attributes {
    /// Ordinary memory that the device reads and writes.
    pub const READ_WRITE: Self = Self::memory(Access::READ.union(Access::WRITE));
    /// Ordinary memory that the device reads.
    pub const READ: Self = Self::memory(Access::READ);
    /// Ordinary memory that the device writes and cannot read.
    pub const WRITE: Self = Self::memory(Access::WRITE);
    /// Registers that the device writes: an interrupt doorbell. Readable too, since stage-1 formats have no
    /// write-only entries.
    pub const DOORBELL: Self = Self { access: Access::READ.union(Access::WRITE), memory: MemoryKind::Device };

    /// Whether a mapping with these attributes does for one that is asked for with `wanted`.
    pub fn serves(self, wanted: Self) -> bool {
        self.access.contains(wanted.access) && self.memory == wanted.memory
    }

    /// Ordinary memory with this access.
    pub const fn memory(access: Access) -> Self {
        Self { access, memory: MemoryKind::WriteBack }
    }
}

/// One contiguous piece of a mapping request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The first I/O virtual address.
    pub iova: Iova,
    /// The memory behind it.
    pub memory: PhysRange,
    /// The attributes.
    pub attributes: Attributes,
}

/// Where an I/O virtual address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translated {
    /// The physical address.
    pub phys: PhysAddr,
    /// What the device may do there.
    pub attributes: Attributes,
    /// The size of the entry that maps it, in bytes.
    pub size: u64,
}
