//! The link between a device and its IOMMU: DMA upwards, ATS invalidations and page responses downwards.
//!
//! Nothing here calls back. The IOMMU queues messages for a device, the device fetches them when it is stepped
//! and answers with a call of its own, so locks never nest and a test decides when an answer comes, if ever.

use super::request::{Mode, Request, Response};

/// A page request message (PCIe PRI).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageRequest {
    /// Who asks.
    pub requester: u32,
    /// Under which PASID.
    pub pasid: Option<u32>,
    /// The page, 4 KiB aligned.
    pub address: u64,
    /// Read access is asked for.
    pub read: bool,
    /// Write access is asked for.
    pub write: bool,
    /// Execute access is asked for.
    pub execute: bool,
    /// Privileged access is asked for.
    pub privileged: bool,
    /// The last request of its group, to be answered. With neither read nor write it is a stop marker.
    pub last: bool,
    /// Page request group index, 9 bits.
    pub group: u16,
}

/// How a page request group is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResponseCode {
    /// The pages are there now (PCIe 0b0000).
    Success,
    /// There will be no such page (PCIe 0b0001).
    InvalidRequest,
    /// The device shall stop using page requests (PCIe 0b1111).
    Failure,
}

/// A page request group response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageResponse {
    /// The PASID, if the response carries one.
    pub pasid: Option<u32>,
    /// The group that is answered.
    pub group: u16,
    /// The answer.
    pub code: ResponseCode,
}

/// An ATS invalidation request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AtcInvalidation {
    /// Names the request; the completion carries it back.
    pub tag: u32,
    /// Entries of this PASID, or without a PASID.
    pub pasid: Option<u32>,
    /// All PASIDs (the G bit).
    pub global: bool,
    /// First byte of the range.
    pub address: u64,
    /// Last byte of the range, inclusive, so that the whole address space can be said.
    pub last: u64,
}

/// What an IOMMU sends to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Downstream {
    /// Drop cached translations and confirm with [`Upstream::invalidation_done`].
    Invalidate(AtcInvalidation),
    /// A page request group is answered.
    PageResponse(PageResponse),
}

/// The IOMMU as a device sees it. Both models implement it.
pub trait Upstream: Send + Sync {
    /// Performs or refuses one transaction.
    fn dma(&self, request: Request, mode: Mode) -> Response;
    /// Takes a page request message.
    fn page_request(&self, request: PageRequest);
    /// The messages waiting for a device, oldest first.
    fn take_messages(&self, requester: u32) -> Vec<Downstream>;
    /// The device confirms an invalidation.
    fn invalidation_done(&self, requester: u32, tag: u32);
    /// A device with an ATC is there: invalidations for it wait for its confirmation from now on.
    fn connect(&self, requester: u32);
}
