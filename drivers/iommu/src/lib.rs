//! The vendor-neutral layer of the Portcullis IOMMU stack.
//!
//! - [`Unit`]: one IOMMU, behind an object-safe trait that the back ends implement. [`UnitInfo`] says what it can do.
//! - [`Domain`]: an I/O address space; [`DomainSpec`] states the intent when one is made, and a unit refuses there
//!   what it cannot do.
//! - [`Device`]: a requester with its unit, endpoint ids, isolation group and reserved regions.
//! - [`Iommu::bind`]: a [device works on a process's addresses](Bond); its [page faults](PageFaultHandler) are resolved as
//!   the CPU's are.
//! - [`Iommu`]: the registry that a kernel keeps: it owns units and devices, enforces groups, prepares reserved
//!   regions, and turns what units report into [`Fault`]s with an owner.
//!
//! Everything starts denied: a device that is not attached reaches nothing, and its attempts are recorded.
//!
//! | file | what |
//! |---|---|
//! | `unit`, `domain`, `device`, `fault`, `page_request` | what back ends and kernels say to each other |
//! | `registry` | units and devices of a machine, attachments, the fault log |
//! | `enable` | PASIDs, page requests and ATS, switched in order |
//! | `pasid`, `namespace` | who has which PASID |
//! | `iopf` | page requests: queued, grouped, resolved, answered once |
//! | `sva` | devices in a process's address space |
//! | `iova`, `ids` | allocators of addresses, and of ASIDs, VMIDs and domain ids |
//!
//! The [`guide`] has the order in which a kernel calls these, who may call what, and an example for each.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod device;
mod domain;
mod enable;
mod fault;
pub mod guide;
mod ids;
mod iopf;
mod iova;
mod namespace;
mod page_request;
mod pasid;
mod registry;
mod sva;
mod unit;

pub use device::{
    Device, DeviceDescription, DeviceId, GroupId, PlatformName, ReserveError, ReservedKind, ReservedRegion,
};
pub use domain::{
    Abilities, Domain, DomainError, DomainInfo, DomainKind, DomainSpec, Grain, PagingSpec, Stage,
};
pub use enable::{ControlError, DeviceControl, EnableError, Unswitched};
pub use fault::{Fault, FaultHandler, FaultLog, FaultReason, FaultRecord, UnitEvent};
pub use ids::IdPool;
pub use iopf::{
    FaultGroup, Handled, PAGE_REQUEST_CAPACITY, PageFaultError, PageFaultHandler, PageFaultStats,
    PageFaultWork, PageRights,
};
pub use iova::{IovaAllocator, IovaError};
pub use namespace::{PasidClaim, PasidNamespace};
pub use page_request::{
    Answered, GroupIndex, InGroup, PageAnswer, PageRequest, PageRequestFlow, PageRequestKind, PageResponse,
    Privilege, StallId,
};
pub use pasid::{GuestPasid, PasidError, PasidSetId, PasidSetSpec, PasidSpace};
pub use registry::{AddDeviceError, Iommu};
pub use sva::{BindError, Bond, ExitHandler, Feature, FeatureError, PinnedRange, UnbindError};
pub use unit::{
    AttachError, Backend, FaultModels, Missing, Permissions, Requests, Stages, Transition, Unit, UnitId,
    UnitInfo, UnitStats, WalkCoherency,
};
