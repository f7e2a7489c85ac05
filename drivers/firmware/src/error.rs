//! Why firmware was not understood, and where.

use core::fmt;
use dtoolkit::error::FdtParseError;
use portcullis_hal::{AddressError, IdError, PhysRange};
use thiserror::Error;

/// The four-character name of an ACPI table.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signature(pub [u8; 4]);

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({self})")
    }
}

/// A piece of firmware data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Table {
    /// The root system description pointer.
    Rsdp,
    /// The ACPI table with this signature.
    Acpi(Signature),
    /// The script that places ACPI tables, QEMU's `etc/table-loader`.
    TableLoader,
    /// The flattened device tree.
    DeviceTree,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rsdp => f.write_str("RSDP"),
            Self::Acpi(signature) => signature.fmt(f),
            Self::TableLoader => f.write_str("table-loader"),
            Self::DeviceTree => f.write_str("device tree"),
        }
    }
}

/// A place in firmware data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    /// The table.
    pub table: Table,
    /// Bytes from the start of the table.
    pub offset: usize,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:#x}", self.table, self.offset)
    }
}

/// Firmware data that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FirmwareError {
    /// A structure reaches past the end of what holds it.
    #[error("{at}: {needed} bytes needed, {available} there")]
    Truncated {
        /// The structure.
        at: Location,
        /// Its length in bytes.
        needed: usize,
        /// The bytes that remain.
        available: usize,
    },
    /// A length field that no structure of its type can have, zero among them.
    #[error("{at}: impossible length {length}")]
    BadLength {
        /// The structure.
        at: Location,
        /// Its length field.
        length: usize,
    },
    /// The bytes of a table do not add up to zero.
    #[error("{table}: checksum off by {sum:#04x}")]
    Checksum {
        /// The table.
        table: Table,
        /// The sum of its bytes modulo 256.
        sum: u8,
    },
    /// A table starts with other bytes than its signature.
    #[error("{at}: signature missing")]
    BadSignature {
        /// Where the signature was expected.
        at: Location,
    },
    /// A reference that points at nothing, or at something of the wrong type.
    #[error("{at}: reference to {target:#x} leads nowhere")]
    BadReference {
        /// The structure that refers.
        at: Location,
        /// The value of the reference: an offset, a phandle or an index.
        target: u32,
    },
    /// References that do not end.
    #[error("{at}: references form a loop")]
    ReferenceLoop {
        /// A structure on the loop.
        at: Location,
    },
    /// A field with a value outside its range.
    #[error("{at}: value {value:#x} out of range")]
    BadValue {
        /// The field, or the structure that holds it.
        at: Location,
        /// Its value.
        value: u64,
    },
    /// A range of addresses that is empty or wraps around.
    #[error("{at}: {error}")]
    BadRange {
        /// The structure that holds the range.
        at: Location,
        /// What is wrong with it.
        error: AddressError,
    },
    /// A bus, device and function that cannot exist.
    #[error("{at}: {error}")]
    BadRequester {
        /// The structure that names the requester.
        at: Location,
        /// What is wrong with it.
        error: IdError,
    },
    /// The kernel does not map the memory of a table.
    #[error("{table} at {range} cannot be read")]
    Unmapped {
        /// The table.
        table: Table,
        /// Its memory.
        range: PhysRange,
    },
    /// The device tree breaks the format's rules; the source names the offset.
    #[error("malformed device tree: {0}")]
    MalformedDeviceTree(#[from] FdtParseError),
    /// Nodes nested deeper than any real device tree.
    #[error("{at}: nodes nested deeper than {limit}")]
    TooDeep {
        /// The node.
        at: Location,
        /// The deepest nesting that is followed.
        limit: usize,
    },
    /// More entries than any real machine has.
    #[error("more than {limit} entries")]
    TooManyEntries {
        /// The most that are accepted.
        limit: usize,
    },
    /// No memory for the topology.
    #[error("out of memory")]
    OutOfMemory,
}

/// Something in firmware data that was settled by a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// Two entries claim the same requesters for different targets; `kept` came first and wins.
    Overlap {
        /// The entry that counts.
        kept: Location,
        /// The entry that does not, for the requesters in both.
        ignored: Location,
    },
    /// A VT-d device scope names a path through a bridge that does not exist or has no bus behind it; it
    /// covers nothing.
    UnresolvedScope {
        /// The scope.
        at: Location,
    },
    /// Two VT-d device scopes of different units cover the same requesters; `kept` came first and wins.
    ScopeOverlap {
        /// The scope that counts.
        kept: Location,
        /// The scope that does not, for the requesters in both.
        ignored: Location,
    },
    /// A structure of a type or revision that is not known; it was skipped.
    UnknownStructure {
        /// The structure.
        at: Location,
        /// Its type.
        kind: u16,
    },
    /// A reference to an IOMMU or interrupt controller that is disabled or of no known kind; the entry was
    /// skipped.
    UnknownTarget {
        /// The structure that refers.
        at: Location,
    },
    /// An entry whose content is contradictory or empty; it was skipped.
    Ignored {
        /// The entry.
        at: Location,
    },
    /// The same table twice; the first counts.
    DuplicateTable {
        /// The table.
        table: Table,
    },
}

impl Warning {
    /// Whether the warning came from resolving VT-d scopes, which can be repeated.
    pub(crate) const fn is_from_resolution(&self) -> bool {
        matches!(self, Self::UnresolvedScope { .. } | Self::ScopeOverlap { .. })
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlap { kept, ignored } | Self::ScopeOverlap { kept, ignored } => {
                write!(f, "{ignored}: overlaps {kept}, which counts")
            }
            Self::UnresolvedScope { at } => write!(f, "{at}: the path leads to no device"),
            Self::UnknownStructure { at, kind } => write!(f, "{at}: unknown type {kind:#x} skipped"),
            Self::UnknownTarget { at } => write!(f, "{at}: refers to a unit that is not usable"),
            Self::Ignored { at } => write!(f, "{at}: contradictory entry skipped"),
            Self::DuplicateTable { table } => write!(f, "{table}: second copy skipped"),
        }
    }
}
