//! Memory that devices may be given, and who vouches for it.

#![expect(unsafe_code, reason = "to vouch for memory is a contract of this crate")]

use crate::{Hal, IoSpace, Iova, IovaRange, MapError, Mapping, PhysRange};

/// Memory that may be given to devices.
///
/// # Implementation safety
///
/// [`range`](Self::range) always returns the same memory; it belongs to the value, stays where it is when the value
/// moves, is not freed before the value is dropped, and is only reached by accesses that tolerate a device's
/// concurrent reads and writes.
pub unsafe trait DmaMemory {
    /// The physical memory.
    fn range(&self) -> PhysRange;
}

// SAFETY: frames are owned, do not move, and are only reached through atomics and volatile copies.
unsafe impl<H: Hal> DmaMemory for crate::Frames<H> {
    fn range(&self) -> PhysRange {
        Self::range(self)
    }
}

/// A mapping whose memory is nobody's to free: what firmware set aside for a device, or a device window such as an
/// interrupt doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedMapping(Mapping);

impl FixedMapping {
    /// Vouches for the memory.
    ///
    /// # Safety
    ///
    /// The memory behind `mapping` is never used as anything else than memory that devices may access as the
    /// attributes say.
    pub const unsafe fn new(mapping: Mapping) -> Self {
        Self(mapping)
    }

    /// What is mapped.
    pub const fn mapping(&self) -> &Mapping {
        &self.0
    }

    /// The I/O virtual addresses.
    pub fn range(&self) -> IovaRange {
        // Both constructors of a range refuse what wraps; a mapping that would is cut at the top, and the map call
        // refuses it.
        let last = self.0.iova.get().saturating_add(self.0.memory.len() - 1);
        IovaRange::from_bounds(self.0.iova, Iova::new(last)).unwrap_or(IovaRange::block(self.0.iova, 1))
    }

    /// Maps it in `space`, except for parts that are mapped there so already.
    ///
    /// # Errors
    ///
    /// As for [`IoSpace::map`], and [`MapError::Overlap`] where something else is mapped. The parts before that stay mapped.
    pub fn map_into<S: IoSpace + ?Sized>(&self, space: &S) -> Result<(), MapError> {
        let Mapping { iova, memory, attributes } = self.0;
        let mut offset = 0;
        while offset < memory.len() {
            let at = iova.checked_add(offset).ok_or(MapError::OutOfRange { iova })?;
            let phys = memory.start().checked_add(offset).ok_or(MapError::OutOfRange { iova })?;
            offset = match space.iova_to_phys(at) {
                Some(now) if now.phys == phys && now.attributes.serves(attributes) => {
                    // To the end of the entry.
                    let rest = now.size.wrapping_sub(at.get()) & now.size.wrapping_sub(1);
                    offset.saturating_add(if rest == 0 { now.size.max(1) } else { rest })
                }
                Some(_) => return Err(MapError::Overlap { iova: at }),
                None => {
                    let end = self.gap(space, offset);
                    let memory =
                        PhysRange::new(phys, end - offset).map_err(|_| MapError::OutOfRange { iova: at })?;
                    // SAFETY: `new` vouched for the memory, for ever.
                    unsafe { space.map(&[Mapping { iova: at, memory, attributes }]) }?;
                    end
                }
            };
        }
        Ok(())
    }

    /// Where the gap that begins at `offset` ends: at the next address that is mapped, or at the end.
    fn gap<S: IoSpace + ?Sized>(&self, space: &S, mut offset: u64) -> u64 {
        let len = self.0.memory.len();
        let page = 1_u64 << space.page_sizes().trailing_zeros().min(63);
        while offset < len {
            offset = offset.saturating_add(page).min(len);
            let mapped = self.0.iova.checked_add(offset).and_then(|at| space.iova_to_phys(at));
            if mapped.is_some() {
                break;
            }
        }
        offset
    }
}

/// The right to give devices all memory at its physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentityAccess(());

impl IdentityAccess {
    /// Vouches for the devices.
    ///
    /// # Safety
    ///
    /// Whatever is attached to a domain made with it may read and write all memory, the kernel's too, at any time:
    /// the caller makes sure that it does so only where that is harmless.
    pub const unsafe fn new() -> Self {
        Self(())
    }
}
