//! Single-root I/O virtualisation (9.3.3): what a physical function says about its virtual ones.

use crate::capability::CapabilityError;
use crate::config::{ConfigSpace, Place};
use crate::spec::{SrIovControl, SrIovPlacement, SrIovVfs, sriov};
use portcullis_hal::{Mmio, RequesterId};

/// The SR-IOV capability of a physical function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SrIov {
    function: RequesterId,
    /// How many virtual functions the device can have.
    pub total: u16,
    /// How many are on now.
    pub enabled: u16,
    first_offset: u16,
    stride: u16,
}

impl SrIov {
    pub(crate) fn read<M: Mmio>(config: &ConfigSpace<M>, place: Place) -> Result<Self, CapabilityError> {
        let place = place.holding(sriov::PLACEMENT + 4)?;
        let control = SrIovControl::from_bits(config.read_at(place, sriov::CONTROL));
        let vfs = SrIovVfs::from_bits(config.read_at(place, sriov::VFS));
        let count = config.read_at(place, sriov::COUNT) as u16;
        let placement = SrIovPlacement::from_bits(config.read_at(place, sriov::PLACEMENT));
        Ok(Self {
            function: place.function,
            total: vfs.total(),
            enabled: if control.enable() { count.min(vfs.total()) } else { 0 },
            first_offset: placement.first_offset(),
            stride: placement.stride(),
        })
    }

    /// The requester id of virtual function `index`, from 0, or `None` if it is not on or its id would lie past
    /// the end of the segment. The ids can lie on a bus after the function's own.
    pub fn requester(&self, index: u16) -> Option<RequesterId> {
        if index >= self.enabled {
            return None;
        }
        let distance = self.stride.checked_mul(index)?.checked_add(self.first_offset)?;
        let bdf = self.function.bdf().checked_add(distance)?;
        Some(RequesterId::from_bdf(self.function.segment(), bdf))
    }
}
