//! Errors of the start-up.

use portcullis_hal::wait::Timeout;
use portcullis_hal::{OutOfMemory, PhysAddr};
use portcullis_iommu::{AttachError, Missing};
use thiserror::Error;

/// Why a unit was not taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InitError {
    /// There are no registers: they read as all ones or as version 0.
    #[error("no VT-d registers here: VER_REG is {0:#x}")]
    NoUnit(u32),
    /// The unit has no scalable mode (ECAP_REG.SMTS).
    #[error("the unit has no scalable mode: ECAP_REG is {0:#x}")]
    NoScalableMode(u64),
    /// The unit has no queued invalidation (ECAP_REG.QI).
    #[error("the unit has no queued invalidation: ECAP_REG is {0:#x}")]
    NoQueuedInvalidation(u64),
    /// The unit translates with no stage in scalable mode (ECAP_REG.FSTS, SSTS with CAP_REG.SAGAW).
    #[error("the unit has no stage of translation: CAP_REG is {cap:#x}, ECAP_REG {ecap:#x}")]
    NoTranslation {
        /// CAP_REG.
        cap: u64,
        /// ECAP_REG.
        ecap: u64,
    },
    /// The unit did not answer in time.
    #[error(transparent)]
    Timeout(#[from] Timeout),
    /// The invalidation queue stopped at a descriptor.
    #[error("the invalidation queue stopped at an error")]
    Queue,
    /// No memory for the unit's tables and queue.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The memory for the unit's tables and queue lies beyond its physical addresses.
    #[error("the memory at {0} is beyond the unit's physical addresses")]
    Unreachable(PhysAddr),
}

/// Why there is no memory for a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum TableError {
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The memory that there is lies beyond the unit's physical addresses.
    #[error("the memory at {0} is beyond the unit's physical addresses")]
    Unreachable(PhysAddr),
}

impl From<TableError> for InitError {
    fn from(error: TableError) -> Self {
        match error {
            TableError::OutOfMemory(error) => Self::OutOfMemory(error),
            TableError::Unreachable(phys) => Self::Unreachable(phys),
        }
    }
}

impl From<TableError> for AttachError {
    fn from(error: TableError) -> Self {
        match error {
            TableError::OutOfMemory(error) => Self::OutOfMemory(error),
            TableError::Unreachable(_) => Self::Incompatible { missing: Missing::OUTPUT_WIDTH },
        }
    }
}

/// Why the fault interrupt stays masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InterruptError {
    /// The message's address is above 4 GiB or its data wider than 16 bits, and the unit's registers do not take that.
    #[error("{register} does not hold {wanted:#x}, it reads {found:#x}")]
    Message {
        /// The register.
        register: &'static str,
        /// What was written.
        wanted: u32,
        /// What it reads.
        found: u32,
    },
}
