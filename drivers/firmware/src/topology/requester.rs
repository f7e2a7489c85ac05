//! From PCI requesters to the ids by which units and ITSs know them.

use super::{ItsId, UnitIndex};
use crate::Location;
use portcullis_hal::{EndpointId, RequesterId};

/// Consecutive requesters of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequesterRange {
    pub(crate) segment: u16,
    pub(crate) first: u16,
    pub(crate) last: u16,
}

impl RequesterRange {
    /// The single requester `id`.
    pub const fn single(id: RequesterId) -> Self {
        Self { segment: id.segment(), first: id.bdf(), last: id.bdf() }
    }

    /// Every function on `buses` of `segment`.
    pub const fn buses(segment: u16, buses: BusRange) -> Self {
        Self { segment, first: (buses.first as u16) << 8, last: (buses.last as u16) << 8 | 0xff }
    }

    /// The first requester.
    pub const fn first(&self) -> RequesterId {
        RequesterId::from_bdf(self.segment, self.first)
    }

    /// The last requester, inclusive.
    pub const fn last(&self) -> RequesterId {
        RequesterId::from_bdf(self.segment, self.last)
    }

    /// Whether `id` is in the range.
    pub const fn contains(&self, id: RequesterId) -> bool {
        self.segment == id.segment() && self.first <= id.bdf() && id.bdf() <= self.last
    }
}

/// Consecutive PCI buses, both ends inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusRange {
    /// The first bus; behind a bridge, its secondary bus.
    pub first: u8,
    /// The last bus; behind a bridge, its subordinate bus.
    pub last: u8,
}

/// The requesters that an entry of a firmware map takes in, with the arithmetic it does on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequesterWindow {
    /// The first segment.
    pub first_segment: u16,
    /// The last segment, inclusive. Each further segment adds 0x10000 to the output (VIOT).
    pub last_segment: u16,
    /// The bits of the requester's bus/device/function word that count (`iommu-map-mask`).
    pub mask: u16,
    /// The first word after masking.
    pub first: u16,
    /// The last word after masking, inclusive.
    pub last: u16,
}

impl RequesterWindow {
    /// Every bit of the word counts.
    pub const FULL_MASK: u16 = 0xffff;

    /// The requesters from `first` to `last` of one segment.
    pub const fn new(segment: u16, first: u16, last: u16) -> Self {
        Self { first_segment: segment, last_segment: segment, mask: Self::FULL_MASK, first, last }
    }

    /// What the entry adds to its output base for `id`, or `None` if it does not take it in.
    pub fn offset_of(&self, id: RequesterId) -> Option<u32> {
        let word = id.bdf() & self.mask;
        if id.segment() > self.last_segment || word > self.last {
            return None;
        }
        let segment = id.segment().checked_sub(self.first_segment)?;
        let word = word.checked_sub(self.first)?;
        Some(u32::from(segment) << 16 | u32::from(word))
    }

    /// Whether some requester may be in both. Windows with different masks count as overlapping when their
    /// segments do.
    pub(crate) const fn may_overlap(&self, other: &Self) -> bool {
        let segments = self.first_segment <= other.last_segment && other.first_segment <= self.last_segment;
        let words = self.first <= other.last && other.first <= self.last;
        segments && (words || self.mask != other.mask)
    }
}

/// One entry of the map from requesters to units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequesterMapping {
    /// The requesters.
    pub window: RequesterWindow,
    /// The unit that translates their DMA.
    pub unit: UnitIndex,
    /// The id by which the unit knows the first of them; the others follow.
    pub endpoint: EndpointId,
    /// Where firmware says so.
    pub origin: Location,
}

impl RequesterMapping {
    /// The id by which the unit knows `id`, or `None` if the entry is not about it.
    pub fn endpoint_of(&self, id: RequesterId) -> Option<EndpointId> {
        let offset = self.window.offset_of(id)?;
        self.endpoint.get().checked_add(offset).map(EndpointId::new)
    }

    /// Whether both entries give every requester in both the same unit and id.
    pub(crate) fn agrees_with(&self, other: &Self) -> bool {
        self.unit == other.unit
            && self.window.mask == other.window.mask
            && self.window.first_segment == other.window.first_segment
            && self.endpoint.get().wrapping_sub(self.window.first.into())
                == other.endpoint.get().wrapping_sub(other.window.first.into())
    }
}

/// One entry of the map from requesters to MSI controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMapping {
    /// The requesters.
    pub window: RequesterWindow,
    /// Where the MSIs of the first of them go; the DeviceIDs of the others follow.
    pub target: MsiTarget,
    /// Where firmware says so.
    pub origin: Location,
}

/// Where a device's MSIs go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiTarget {
    /// The controller.
    pub controller: MsiController,
    /// The id by which it knows the device (the DeviceID of an ITS; unused by GICv2m).
    pub device_id: u32,
}

/// A controller of message-signalled interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsiController {
    /// A GICv3 interrupt translation service, found by [`Gic::its`](crate::Gic::its).
    Its(ItsId),
    /// A GICv2m frame: an index into [`Gic::v2m_frames`](crate::Gic::v2m_frames).
    V2m(usize),
}

/// Consecutive ids of one unit that belong to one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamRange {
    /// The unit.
    pub unit: UnitIndex,
    /// The first id.
    pub first: EndpointId,
    /// The last id, inclusive.
    pub last: EndpointId,
}

impl StreamRange {
    /// Whether the range holds `endpoint` of `unit`.
    pub fn contains(&self, unit: UnitIndex, endpoint: EndpointId) -> bool {
        self.unit == unit && self.first <= endpoint && endpoint <= self.last
    }

    /// The ids of the range, one by one. Firmware decides how many, up to 2^32.
    pub fn endpoints(&self) -> impl Iterator<Item = EndpointId> + use<> {
        (self.first.get()..=self.last.get()).map(EndpointId::new)
    }
}
