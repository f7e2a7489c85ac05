//! Page requests: accesses that can wait while the page is fetched, and their answers.

use core::fmt;
use portcullis_hal::{Access, EndpointId, Iova, Pasid};

/// With whose rights a device asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Privilege {
    /// A process's.
    User,
    /// The kernel's.
    Supervisor,
}

/// A Page Request Group Index (PCIe 10.4.1): 9 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupIndex(u16);

impl GroupIndex {
    /// The low nine bits of `index`, which is all that hardware has.
    pub const fn new(index: u16) -> Self {
        Self(index & 0x1ff)
    }

    /// The index, 0 to 511.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for GroupIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A transaction that the unit holds, by the place where its driver keeps it.
///
/// Hardware gives a Stall Tag (SMMUv3 7.3) to the next transaction as soon as one has ended, be it answered or cut off
/// with its stream. A driver uses a place again too, with another serial number: an answer that comes too late meets
/// nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StallId {
    /// The place: below [`UnitInfo::stall_places`](crate::UnitInfo::stall_places).
    pub place: u32,
    /// The number of the transaction, which ascends. No other one of the unit has it.
    pub serial: u64,
}

/// Whether more requests of a group follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InGroup {
    /// More follow; this one gets no answer of its own.
    Partial,
    /// The last one: now the group wants an answer.
    Last,
}

/// How the request came, and so what is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageRequestKind {
    /// By the PCI Page Request Interface.
    Group(GroupIndex, InGroup),
    /// A device's mark that no more requests with the PASID follow (Stop Marker, PCIe 10.4.1.2.1). Not answered.
    StopMarker,
    /// The unit holds the transaction itself. Each one is answered.
    Stall(StallId),
}

/// Whether page requests leave the hardware's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageRequestFlow {
    /// They are reported.
    Open,
    /// They stay where they are. Hardware answers what finds no room there.
    Held,
}

/// A device's request for a page, as the unit read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// The requester, by its endpoint id.
    pub endpoint: EndpointId,
    /// The PASID, if the request had one.
    pub pasid: Option<Pasid>,
    /// The address; with [`Group`](PageRequestKind::Group) that of the page of 4 KiB.
    pub address: Iova,
    /// What the device wants to do; may be empty.
    pub access: Access,
    /// With whose rights.
    pub privilege: Privilege,
    /// How it came.
    pub kind: PageRequestKind,
}

/// What a device is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageResponse {
    /// The pages are there: try again.
    Success,
    /// At least one of them is not to be had.
    Invalid,
    /// The device asks in vain; it stops asking altogether.
    Failure,
}

/// What is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answered {
    /// A group of requests.
    Group(GroupIndex),
    /// A stalled transaction. With anything but [`Success`](PageResponse::Success) it is aborted.
    Stall(StallId),
}

/// The answer to a group of requests or to a stalled transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageAnswer {
    /// The requester.
    pub endpoint: EndpointId,
    /// The PASID of the group. A stalled transaction is known by its id: what this says then does not matter.
    pub pasid: Option<Pasid>,
    /// What is answered.
    pub to: Answered,
    /// How.
    pub response: PageResponse,
}
