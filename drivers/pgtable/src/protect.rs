//! Changing what may be done with memory that stays mapped.

use crate::format::{AccessedDirty, Replacement};
use crate::table::AnyTable;
use crate::visit::Unit;
use crate::walk::Cursor;
use core::ops::ControlFlow;
use core::sync::atomic::Ordering;
use portcullis_hal::{Access, Attributes, Gather, Hal, Iova, IovaRange, barrier};
use thiserror::Error;

/// Why no permission was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProtectError {
    /// The format cannot express the new attributes.
    #[error("the table format cannot express this access at {iova}")]
    Attributes {
        /// The first such leaf.
        iova: Iova,
    },
    /// The range covers a part of a larger leaf.
    #[error("{iova} lies inside a mapping of {size:#x} bytes that is only partly in the range")]
    Partial {
        /// The address of the larger leaf.
        iova: Iova,
        /// Its size in bytes.
        size: u64,
    },
    /// Leaves under a contiguous hint cannot be changed one after the other on hardware that cannot bear it.
    #[error("the mapping at {iova} is a run of leaves, which the hardware must not see changing")]
    Run {
        /// The address of the run.
        iova: Iova,
    },
    /// In this format the permission to write is also the dirty mark.
    #[error("hardware marks what it uses in this table")]
    Tracked,
}

impl<H: Hal> AnyTable<H> {
    /// Gives the leaves in `range` the access that `change` makes of their present one, each in one store, so that what
    /// is mapped stays mapped; returns the bytes whose access changed.
    ///
    /// What changed is recorded in `gather`. Until it is invalidated, hardware may go by the old access. The caller has
    /// claimed the gather for this table. `change` may be asked more than once, and answers alike.
    ///
    /// # Errors
    ///
    /// All of [`ProtectError`]. Nothing has changed then.
    pub fn protect(
        &self,
        range: IovaRange,
        change: impl Fn(Access) -> Access,
        gather: &mut Gather,
    ) -> Result<u64, ProtectError> {
        self.protect_all(range, &change, gather)
    }

    fn protect_all(
        &self,
        range: IovaRange,
        change: &dyn Fn(Access) -> Access,
        gather: &mut Gather,
    ) -> Result<u64, ProtectError> {
        if self.tree.accessed_dirty != AccessedDirty::Preset {
            return Err(ProtectError::Tracked);
        }
        let walk = self.tree.walk();
        let mut cursor = Cursor::new(&walk);
        let mut refused = Ok(());
        self.units(&mut cursor, &range, &mut |unit| match self.replaced(&unit, &range, change) {
            Ok(_) => ControlFlow::Continue(()),
            Err(error) => {
                refused = Err(error);
                ControlFlow::Break(())
            }
        });
        refused?;
        let mut changed = 0_u64;
        self.units(&mut cursor, &range, &mut |unit| {
            // Refused just now, or somebody else works on the same range: what they made stays.
            let Ok(Some(Seals { old, new })) = self.replaced(&unit, &range, change) else {
                return ControlFlow::Continue(());
            };
            for slot in unit.slots {
                // Hardware notes nothing in these leaves, so nothing is lost between the load and the store.
                let leaf = slot.load(Ordering::Relaxed);
                slot.store(leaf & !old | new, Ordering::Relaxed);
            }
            self.tree.clean(unit.slots);
            let size = self.scheme().extent(unit.leaf, unit.level);
            changed = changed.wrapping_add(size);
            gather.record(
                IovaRange::block(Iova::new(unit.iova), size),
                self.scheme().level_shift(unit.level) as u8,
            );
            ControlFlow::Continue(())
        });
        drop(cursor);
        barrier::publish_to_device();
        Ok(changed)
    }

    /// The attribute bits that a unit has and those that it is to have; `None` if they are the same.
    fn replaced(
        &self,
        unit: &Unit<'_>,
        range: &IovaRange,
        change: &dyn Fn(Access) -> Access,
    ) -> Result<Option<Seals>, ProtectError> {
        let iova = Iova::new(unit.iova);
        let size = self.scheme().extent(unit.leaf, unit.level);
        let now = (self.scheme().attributes)(unit.leaf);
        let wanted = Attributes { access: change(now.access), memory: now.memory };
        if wanted == now {
            return Ok(None);
        }
        if !range.covers(&IovaRange::block(iova, size)) {
            return Err(ProtectError::Partial { iova, size });
        }
        if size != self.scheme().level_size(unit.level) && self.tree.replacement == Replacement::Break {
            return Err(ProtectError::Run { iova });
        }
        match (self.seals.get(now), self.seals.get(wanted)) {
            (Some(old), Some(new)) => Ok(Some(Seals { old, new })),
            _ => Err(ProtectError::Attributes { iova }),
        }
    }
}

/// The attribute bits before and after.
struct Seals {
    old: u64,
    new: u64,
}
