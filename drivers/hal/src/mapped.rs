//! Memory that is mapped for devices by value: it comes back only when no device can reach it.

#![expect(unsafe_code, reason = "turns ownership of memory into the contract of IoSpace::map")]

use crate::{
    Arc, Attributes, DmaMemory, Gather, IoSpace, Iova, IovaRange, MapError, Mapping, SyncError, SyncProof,
    UnmapError,
};
use core::mem::ManuallyDrop;
use thiserror::Error;

/// Memory mapped in an I/O address space.
///
/// Dropping it leaks the memory and leaves the mapping in place; [`unmap`](Self::unmap) takes both back.
#[derive(Debug)]
#[must_use = "dropping a mapping leaks its memory"]
pub struct Mapped<M: DmaMemory, S: IoSpace + ?Sized> {
    space: Arc<S>,
    range: IovaRange,
    memory: ManuallyDrop<M>,
}

/// A mapping that was refused, with the memory it was for.
#[derive(Debug, Error)]
#[error("{error}")]
pub struct Refused<M> {
    /// The memory, untouched.
    pub memory: M,
    /// Why.
    pub error: MapError,
}

/// Why memory cannot be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum QuarantineReason {
    /// The unmap was refused.
    #[error(transparent)]
    Unmap(#[from] UnmapError),
    /// Somebody else had unmapped a part of the range, and when that will be synced is not known here.
    #[error("a part of the range was unmapped by somebody else")]
    NotMapped,
    /// The hardware did not confirm the invalidation.
    #[error(transparent)]
    Sync(#[from] SyncError),
}

/// Memory that a device may still reach. It is never freed.
#[derive(Debug, Error)]
#[error("memory quarantined: {reason}")]
pub struct Quarantined<M> {
    memory: ManuallyDrop<M>,
    /// Why it cannot be given back.
    pub reason: QuarantineReason,
}

impl<M> Quarantined<M> {
    /// The memory, to look at.
    pub fn memory(&self) -> &M {
        &self.memory
    }
}

/// Memory that was unmapped but not synced yet. Dropping it leaks the memory.
#[derive(Debug)]
#[must_use = "dropping unsynced memory leaks it"]
pub struct Unsynced<M> {
    round: u64,
    memory: ManuallyDrop<M>,
}

impl<M> Unsynced<M> {
    /// Gives the memory back, given the proof that its gather was synced after the unmap.
    ///
    /// # Errors
    ///
    /// The proof is that of another gather, or of an earlier sync: the value itself comes back, for the right one.
    pub fn reclaim(self, proof: &SyncProof) -> Result<M, Self> {
        if proof.round == self.round { Ok(ManuallyDrop::into_inner(self.memory)) } else { Err(self) }
    }
}

impl<M: DmaMemory, S: IoSpace + ?Sized> Mapped<M, S> {
    /// Maps `memory` at `iova`.
    ///
    /// On a unit that caches absent entries and did not confirm the invalidation, the mapping is made all the same, and
    /// logged as an error: devices may be refused there until the unit is mended.
    ///
    /// # Errors
    ///
    /// Nothing was mapped; the memory comes back with the reason.
    pub fn map(space: &Arc<S>, iova: Iova, memory: M, attributes: Attributes) -> Result<Self, Refused<M>> {
        let phys = memory.range();
        let Ok(range) = IovaRange::new(iova, phys.len()) else {
            return Err(Refused { memory, error: MapError::OutOfRange { iova } });
        };
        let mut this = Self { space: space.clone(), range, memory: ManuallyDrop::new(memory) };
        // SAFETY: the memory is DMA memory that this value owns, and it is given back only after unmap and sync.
        match unsafe { space.map(&[Mapping { iova, memory: phys, attributes }]) } {
            Ok(()) => Ok(this),
            // The tables have the mapping: the memory is back only after an unmap.
            Err(error @ MapError::Sync(_)) => {
                log::error!(
                    "the mapping at {iova} is made, but the unit did not confirm that it knows: {error}"
                );
                Ok(this)
            }
            Err(error) => {
                // SAFETY: taken once; `this` is forgotten by the drop of its other fields only.
                let memory = unsafe { ManuallyDrop::take(&mut this.memory) };
                Err(Refused { memory, error })
            }
        }
    }

    /// The I/O virtual addresses.
    pub fn range(&self) -> IovaRange {
        self.range
    }

    /// The memory, for the CPU's side of the work.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Unmaps and returns the memory once no device can reach it.
    ///
    /// # Errors
    ///
    /// A device may reach the memory still, so it is never freed. With [`QuarantineReason::Unmap`] the mapping is there as
    /// before.
    pub fn unmap(self) -> Result<M, Quarantined<M>> {
        let space = self.space.clone();
        let mut gather = Gather::new();
        let unsynced = self.unmap_into(&mut gather)?;
        match space.sync(&mut gather) {
            Ok(proof) => unsynced.reclaim(&proof).map_err(|Unsynced { memory, .. }| Quarantined {
                memory,
                reason: QuarantineReason::NotMapped,
            }),
            Err(error) => Err(Quarantined { memory: unsynced.memory, reason: error.into() }),
        }
    }

    /// Unmaps, leaving the sync to whoever holds `gather`.
    ///
    /// # Errors
    ///
    /// As for [`unmap`](Self::unmap).
    pub fn unmap_into(self, gather: &mut Gather) -> Result<Unsynced<M>, Quarantined<M>> {
        let Self { space, range, memory } = self;
        // SAFETY: the range is this value's, and whoever else removed its mapping is noticed by the count of bytes.
        match unsafe { space.unmap(range, gather) } {
            Ok(bytes) if bytes == range.len() => Ok(Unsynced { round: gather.round(), memory }),
            Ok(_) => Err(Quarantined { memory, reason: QuarantineReason::NotMapped }),
            Err(error) => Err(Quarantined { memory, reason: error.into() }),
        }
    }
}
