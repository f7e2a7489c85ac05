//! Devices: who issues DMA, and what belongs to them.

use crate::enable::Pasids;
use crate::iopf::PageQueue;
use crate::namespace::PasidOwner;
use crate::{AttachError, Domain, DomainError, Fault, FaultHandler, Permissions, Unit, UnitId};
use alloc::vec::Vec;
use core::fmt;
use portcullis_hal::{Arc, EndpointId, FixedMapping, IovaRange, MapError, OutOfMemory, RequesterId};
use spin::{Mutex, Once};
use thiserror::Error;

/// The firmware name of a platform device, cut to what fits; a value that interrupt handlers can copy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlatformName {
    bytes: [u8; Self::CAPACITY],
    len: u8,
}

impl PlatformName {
    /// The longest name, in bytes.
    pub const CAPACITY: usize = 47;

    /// The name, or as many whole characters of it as fit.
    pub fn new(name: &str) -> Self {
        let mut bytes = [0; Self::CAPACITY];
        let len = name.floor_char_boundary(Self::CAPACITY);
        for (to, from) in bytes.iter_mut().zip(name.as_bytes().iter().take(len)) {
            *to = *from;
        }
        Self { bytes, len: len as u8 }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        self.bytes
            .get(..usize::from(self.len))
            .and_then(|bytes| core::str::from_utf8(bytes).ok())
            .unwrap_or_default()
    }
}

impl fmt::Debug for PlatformName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// A device's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceId {
    /// A PCI function.
    Pci(RequesterId),
    /// A platform device.
    Platform(PlatformName),
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(requester) => fmt::Display::fmt(requester, f),
            Self::Platform(name) => f.write_str(name.as_str()),
        }
    }
}

/// An isolation group: devices that the hardware cannot keep apart from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

/// What a reserved region is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservedKind {
    /// Memory that firmware gave the device; mapped in every paging domain it is attached to.
    Direct(FixedMapping),
    /// An interrupt doorbell; mapped in every paging domain the device is attached to.
    Msi(FixedMapping),
    /// Addresses that do not go through translation and must not be used: x86's interrupt window, bridge windows.
    Excluded,
}

/// I/O virtual addresses of a device that are not free for use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedRegion {
    /// The addresses.
    pub range: IovaRange,
    /// What they are for.
    pub kind: ReservedKind,
}

/// Why the set-up of a unit did not give a device the mappings of its reserved regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReserveError {
    /// The domain for them was not made.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// A region was not mapped.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The device was not attached to the domain.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// What the registry has to know of a device.
#[derive(Debug)]
pub struct DeviceDescription {
    /// The name.
    pub id: DeviceId,
    /// The unit that translates for it.
    pub unit: UnitId,
    /// The ids by which that unit knows it: StreamIDs of an SMMU, requester ids of VT-d, endpoint ids of virtio-iommu, as
    /// firmware's tables map them; several for a platform device with several streams.
    pub endpoints: Vec<EndpointId>,
    /// The isolation group. A device that is alone in it has a number that no other has.
    pub group: GroupId,
    /// Addresses that are not free, by what firmware and the interrupt controller say.
    pub reserved: Vec<ReservedRegion>,
}

/// A device that issues DMA.
pub struct Device {
    description: DeviceDescription,
    pub(crate) domain: Mutex<Option<Arc<dyn Domain>>>,
    pub(crate) permissions: Mutex<Permissions>,
    pub(crate) pasids: Mutex<Pasids>,
    pub(crate) handler: Mutex<Option<Arc<dyn FaultHandler>>>,
    /// Held while the unit's entries of the device change together with what is noted here.
    pub(crate) changing: Mutex<()>,
    /// Whose PASIDs it uses; changed while `changing` is held.
    pub(crate) owner: Mutex<PasidOwner>,
    /// There since page requests were first enabled.
    page_queue: Once<Arc<PageQueue>>,
}

impl Device {
    pub(crate) fn new(description: DeviceDescription) -> Self {
        Self {
            description,
            domain: Mutex::new(None),
            permissions: Mutex::new(Permissions::NONE),
            pasids: Mutex::new(Pasids::new()),
            handler: Mutex::new(None),
            changing: Mutex::new(()),
            owner: Mutex::new(PasidOwner::System),
            page_queue: Once::new(),
        }
    }

    /// The name.
    pub fn id(&self) -> DeviceId {
        self.description.id
    }

    /// Whether both are the same device.
    pub(crate) fn is(&self, other: &Self) -> bool {
        core::ptr::eq(self, other) || self.description.id == other.description.id
    }

    /// The unit that translates for it.
    pub fn unit(&self) -> UnitId {
        self.description.unit
    }

    /// The ids by which the unit knows it.
    pub fn endpoints(&self) -> &[EndpointId] {
        &self.description.endpoints
    }

    /// The isolation group.
    pub fn group(&self) -> GroupId {
        self.description.group
    }

    /// Addresses that are not free for mappings.
    pub fn reserved(&self) -> &[ReservedRegion] {
        &self.description.reserved
    }

    /// The domain it is attached to, if any.
    pub fn domain(&self) -> Option<Arc<dyn Domain>> {
        self.domain.lock().clone()
    }

    pub(crate) fn page_queue(&self) -> Option<&Arc<PageQueue>> {
        self.page_queue.get()
    }

    /// Sets memory aside for the device's page requests.
    pub(crate) fn make_page_queue(&self, unit: &Arc<dyn Unit>) -> Result<(), OutOfMemory> {
        let make = || Arc::try_new(PageQueue::new(unit.clone(), self.id(), self.endpoints())?);
        self.page_queue.try_call_once(make).map(|_| ())
    }

    /// Whether firmware set memory aside for it.
    pub(crate) fn needs_memory(&self) -> bool {
        self.reserved().iter().any(|region| matches!(region.kind, ReservedKind::Direct(_)))
    }

    /// Tells the owner. The lock is held meanwhile, so that a handler that was replaced does not run any more, and is
    /// never dropped here.
    pub(crate) fn deliver(&self, fault: &Fault) {
        if let Some(handler) = &*self.handler.lock() {
            handler.fault(fault);
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(&self.description).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_platform_name_is_cut_between_characters() {
        assert_eq!(PlatformName::new("dma@9000000").as_str(), "dma@9000000");
        let long = "\u{e4}".repeat(40);
        assert_eq!(PlatformName::new(&long).as_str(), "\u{e4}".repeat(23));
    }
}
