//! What an embedder may choose, and why setting up can fail.

use crate::features::Unsupported;
use crate::memory::{NoFrames, OutOfReach};
use portcullis_hal::wait::Timeout;
use portcullis_hal::{MsiMessage, OutOfMemory, SyncError};
use thiserror::Error;

/// Whether the unit's accesses to tables and queues see the CPU's caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Coherency {
    /// As IDR0.COHACC says.
    #[default]
    Detect,
    /// They do, as firmware tells (`dma-coherent`, IORT's COHACC override).
    Snooped,
    /// They do not, as firmware tells. [`Hal::clean_cache`](portcullis_hal::Hal::clean_cache) then has to drop the
    /// lines that it cleans, since the driver also reads the event queue, which the unit writes.
    NotSnooped,
}

/// How the driver learns that the unit has completed a CMD_SYNC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum SyncSignal {
    /// By a message to memory if the unit sends messages (IDR0.MSI) and snoops; else as [`Poll`](Self::Poll).
    #[default]
    Best,
    /// By reading CMDQ_CONS.
    Poll,
}

/// Choices for setting up a unit; the default suits most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Coherency of the unit's accesses.
    pub coherency: Coherency,
    /// The command queue's size as a power of two, at least 1 and at most what the unit allows.
    pub command_queue_log2: u8,
    /// The event queue's size as a power of two, at most what the unit allows.
    pub event_queue_log2: u8,
    /// The PRI queue's size as a power of two, at most what the unit allows; there is one if the unit takes page requests.
    pub page_request_queue_log2: u8,
    /// The most bits of StreamID that the stream table covers. Streams beyond are refused, and recorded.
    pub stream_bits: u8,
    /// How completion is learned.
    pub sync_signal: SyncSignal,
    /// How long the unit may take to answer, in nanoseconds.
    pub timeout_ns: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            coherency: Coherency::Detect,
            command_queue_log2: 8,
            event_queue_log2: 7,
            page_request_queue_log2: 9,
            stream_bits: 32,
            sync_signal: SyncSignal::Best,
            timeout_ns: 1_000_000_000,
        }
    }
}

/// How the unit's interrupts reach the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupts {
    /// By wires, edge-triggered.
    Wired,
    /// By messages; needs IDR0.MSI.
    Msi {
        /// For the event queue, and for the PRI queue.
        events: MsiMessage,
        /// For global errors.
        errors: MsiMessage,
    },
}

/// Why a unit could not be brought up. It is left denying all DMA, if it obeyed at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InitError {
    /// The driver does not know how to use this hardware.
    #[error("unsupported hardware: {0}")]
    Unsupported(#[from] Unsupported),
    /// No memory for tables and queues.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The memory for tables and queues is where the unit cannot address it.
    #[error(transparent)]
    OutOfReach(#[from] OutOfReach),
    /// A register did not take the value written.
    #[error(transparent)]
    Timeout(#[from] Timeout),
    /// The command queue does not work.
    #[error("the first commands failed: {0}")]
    Commands(#[from] SyncError),
}

impl From<NoFrames> for InitError {
    fn from(error: NoFrames) -> Self {
        match error {
            NoFrames::OutOfMemory => OutOfMemory.into(),
            NoFrames::OutOfReach(error) => error.into(),
        }
    }
}

/// Why interrupts were not enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InterruptError {
    /// The unit has no MSIs (IDR0.MSI).
    #[error("the unit sends no MSIs")]
    NoMsi,
    /// IRQ_CTRL did not take the value written.
    #[error(transparent)]
    Timeout(#[from] Timeout),
}
