//! Page tables that somebody else owns: a VM's stage 2, a process's stage 1.

#![expect(unsafe_code, reason = "giving a device foreign tables is a contract of this crate")]

use crate::PhysAddr;
use core::fmt;

/// A translation granule of VMSAv8-64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Granule {
    /// 4 KiB.
    Size4K,
    /// 16 KiB.
    Size16K,
    /// 64 KiB.
    Size64K,
}

impl Granule {
    /// The size as a power of two: 12, 14 or 16.
    pub const fn shift(self) -> u8 {
        match self {
            Self::Size4K => 12,
            Self::Size16K => 14,
            Self::Size64K => 16,
        }
    }
}

/// The format of a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TableFormat {
    /// VMSAv8-64 stage 1, as the lower address range (TTBR0).
    VmsaStage1 {
        /// The granule.
        granule: Granule,
        /// MAIR_ELx: what the attribute indices in the entries mean.
        mair: u64,
    },
    /// VMSAv8-64 stage 2.
    VmsaStage2 {
        /// The granule.
        granule: Granule,
        /// The level of the (possibly concatenated) root table, 0 to 2.
        start_level: u8,
    },
    /// VMSAv8-64 stage 1 with the descriptors of FEAT_LPA2 (CD.DS), as the lower address range (TTBR0).
    VmsaStage1Lpa2 {
        /// The granule, 4 or 16 KiB.
        granule: Granule,
        /// MAIR_ELx: what the attribute indices in the entries mean.
        mair: u64,
    },
    /// VMSAv8-64 stage 2 with the descriptors of FEAT_LPA2 (STE.S2DS).
    VmsaStage2Lpa2 {
        /// The granule, 4 or 16 KiB.
        granule: Granule,
        /// The level of the (possibly concatenated) root table, 0 to 2.
        start_level: u8,
    },
    /// x86-64 4- or 5-level paging; also the first stage of VT-d.
    X86 {
        /// 4 or 5.
        levels: u8,
    },
    /// VT-d second stage.
    VtdSecondStage {
        /// 3, 4 or 5.
        levels: u8,
    },
}

impl TableFormat {
    /// The granule of the formats of VMSAv8-64.
    pub const fn granule(&self) -> Option<Granule> {
        match self {
            Self::VmsaStage1 { granule, .. }
            | Self::VmsaStage1Lpa2 { granule, .. }
            | Self::VmsaStage2 { granule, .. }
            | Self::VmsaStage2Lpa2 { granule, .. } => Some(*granule),
            Self::X86 { .. } | Self::VtdSecondStage { .. } => None,
        }
    }
}

impl fmt::Display for TableFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = |granule: &Granule| 1 << (granule.shift() - 10);
        match self {
            Self::VmsaStage1 { granule, .. } => write!(f, "VMSAv8-64 stage 1, {} KiB granule", kib(granule)),
            Self::VmsaStage2 { granule, start_level } => {
                write!(f, "VMSAv8-64 stage 2, {} KiB granule, from level {start_level}", kib(granule))
            }
            Self::VmsaStage1Lpa2 { granule, .. } => {
                write!(f, "VMSAv8-64 stage 1 with LPA2, {} KiB granule", kib(granule))
            }
            Self::VmsaStage2Lpa2 { granule, start_level } => {
                write!(
                    f,
                    "VMSAv8-64 stage 2 with LPA2, {} KiB granule, from level {start_level}",
                    kib(granule)
                )
            }
            Self::X86 { levels } => write!(f, "x86-64, {levels} levels"),
            Self::VtdSecondStage { levels } => write!(f, "VT-d second stage, {levels} levels"),
        }
    }
}

/// Whether a walker that does not snoop caches finds the entries in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TableWrites {
    /// The writer leaves entries in its caches: only coherent walkers may use the table.
    Cached,
    /// The writer cleans each entry to memory before it counts as written.
    Cleaned,
}

/// The root of a page table and what a walker must know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TableRoot {
    /// The format.
    pub format: TableFormat,
    /// The physical address of the root table.
    pub root: PhysAddr,
    /// The width of the input addresses, in bits.
    pub input_bits: u8,
    /// The width of the physical addresses that the entries may hold, in bits.
    pub output_bits: u8,
    /// The sizes that leaves may have, as a bit mask in bytes.
    pub page_sizes: u64,
    /// Whether entries reach memory.
    pub writes: TableWrites,
}

/// Foreign tables that devices may walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedTable(TableRoot);

impl SharedTable {
    /// Vouches for foreign tables.
    ///
    /// # Safety
    ///
    /// As long as a domain made from the value is attached to a device, the tables at `root` stay valid in the
    /// format stated, their owner invalidates through the domain what it removes from them before it reuses the
    /// memory, and all memory they map may be reached by the devices attached.
    pub const unsafe fn new(root: TableRoot) -> Self {
        Self(root)
    }

    /// The root.
    pub const fn root(&self) -> &TableRoot {
        &self.0
    }
}
