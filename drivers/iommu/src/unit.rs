//! What every IOMMU back end offers.

use crate::{
    Abilities, Domain, DomainError, DomainSpec, PageAnswer, PageRequestFlow, ReservedRegion, UnitEvent,
};
use alloc::vec::Vec;
use bitflags::bitflags;
use core::any::Any;
use core::fmt;
use portcullis_hal::wait::Timeout;
use portcullis_hal::{Arc, EndpointId, MapError, OutOfMemory, Pasid, SyncError, TableRoot};
use thiserror::Error;

/// A unit's number in the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId(pub u16);

impl fmt::Display for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match f.width() {
            // Tables want the whole name padded.
            Some(width) => write!(f, "iommu{:<1$}", self.0, width.saturating_sub(5)),
            None => write!(f, "iommu{}", self.0),
        }
    }
}

/// The kind of hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// Arm SMMUv3.
    SmmuV3,
    /// Intel VT-d in scalable mode.
    VtdScalable,
    /// virtio-iommu.
    VirtioIommu,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::SmmuV3 => "SMMUv3",
            Self::VtdScalable => "VT-d",
            Self::VirtioIommu => "virtio-iommu",
        })
    }
}

bitflags! {
    /// The kinds of tables that a unit walks.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Stages: u8 {
        /// Stage 1; first stage on VT-d.
        const STAGE_1 = 1;
        /// Stage 2; second stage on VT-d.
        const STAGE_2 = 2;
        /// No tables: the unit keeps mappings itself.
        const MANAGED = 4;
    }
}

impl fmt::Display for Stages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bitflags::parser::to_writer(self, f)
    }
}

bitflags! {
    /// How a unit lets a device recover from a fault.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct FaultModels: u8 {
        /// PCI page requests.
        const PRI = 1;
        /// Stalled transactions.
        const STALL = 2;
    }
}

/// Whether a unit's reads of tables in memory see the CPU's caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WalkCoherency {
    /// They do.
    Snooped,
    /// They do not: every written line has to be cleaned to memory.
    NotSnooped,
}

impl fmt::Display for WalkCoherency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Snooped => "snooped",
            Self::NotSnooped => "not-snooped",
        })
    }
}

/// What a unit can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitInfo {
    /// The kind of hardware.
    pub backend: Backend,
    /// The stages it translates with.
    pub stages: Stages,
    /// The page sizes, as a bit mask in bytes.
    pub page_sizes: u64,
    /// The width of I/O virtual addresses, in bits.
    pub input_bits: u8,
    /// The width of physical addresses, in bits.
    pub output_bits: u8,
    /// The width of PASIDs, in bits; 0 if there are none.
    pub pasid_bits: u8,
    /// How faults can be recovered.
    pub fault_models: FaultModels,
    /// How many places there are for stalled transactions: every [`StallId`](crate::StallId) names one below this. 0
    /// without [`FaultModels::STALL`].
    pub stall_places: u32,
    /// What domains with tables can do.
    pub abilities: Abilities,
    /// Reads of stream, context and PASID tables.
    pub entry_coherency: WalkCoherency,
    /// Reads of page tables.
    pub table_coherency: WalkCoherency,
    /// Whether there is an identity domain.
    pub identity: bool,
    /// Whether both stages can be combined.
    pub nesting: bool,
}

bitflags! {
    /// What a unit lacks for a domain or an attachment.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Missing: u32 {
        /// Stage-1 translation.
        const STAGE_1 = 1 << 0;
        /// Stage-2 translation.
        const STAGE_2 = 1 << 1;
        /// Pass-through.
        const IDENTITY = 1 << 2;
        /// The page-table format.
        const FORMAT = 1 << 3;
        /// The granule, or leaves of a size in use.
        const GRANULE = 1 << 4;
        /// The width of input addresses.
        const INPUT_WIDTH = 1 << 5;
        /// The width of output addresses.
        const OUTPUT_WIDTH = 1 << 6;
        /// Walks that snoop the CPU's caches.
        const COHERENT_WALKS = 1 << 7;
        /// The kind of unit that the domain was made for.
        const BACKEND = 1 << 8;
        /// Foreign page tables.
        const SHARED_TABLES = 1 << 9;
        /// PASIDs, of that width, or beside the domain of the requests without one.
        const PASID = 1 << 10;
        /// Translation requests of devices (ATS), or for a domain of that kind.
        const ATS = 1 << 11;
        /// Page requests of devices (PRI).
        const PRI = 1 << 12;
        /// Stalls, in the unit or of the device.
        const STALL = 1 << 13;
        /// Leaves that change their size in use.
        const RESIZE = 1 << 14;
        /// Marks of what is used, where the CPU can collect them.
        const TRACKING = 1 << 15;
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bitflags::parser::to_writer(self, f)
    }
}

bitflags! {
    /// What a device may ask a unit for.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Requests: u8 {
        /// Translations, which the device caches (ATS), and accesses by translated addresses.
        const TRANSLATION = 1;
        /// Pages that are not there (PRI).
        const PAGE = 2;
        /// The PASID in answers to page requests (PRG Response PASID Required, PCIe 10.5.2.3).
        const PASID_IN_ANSWERS = 4;
        /// That the unit holds accesses to pages that are not there (stall), instead of aborting them.
        const STALL = 8;
    }
}

/// What a device may do besides untranslated accesses without a PASID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Permissions {
    /// The width of the PASIDs that it may use, in bits, 0 to 20; with 0 it may use none.
    pub pasid_bits: u8,
    /// What it may ask for.
    pub requests: Requests,
}

impl Permissions {
    /// Untranslated accesses without a PASID: what every endpoint starts with.
    pub const NONE: Self = Self { pasid_bits: 0, requests: Requests::empty() };

    /// What a unit has to have to grant them.
    pub fn needs(&self) -> Missing {
        let mut needs = Missing::empty();
        needs.set(Missing::PASID, self.pasid_bits > 0);
        needs.set(Missing::ATS, self.requests.contains(Requests::TRANSLATION));
        needs.set(Missing::PRI, self.requests.contains(Requests::PAGE));
        needs.set(Missing::STALL, self.requests.contains(Requests::STALL));
        needs
    }

    /// Whether this PASID may be used.
    pub const fn allow(&self, pasid: Pasid) -> bool {
        self.pasid_bits as u32 >= Pasid::MAX_BITS || pasid.get() >> self.pasid_bits == 0
    }
}

/// What the device saw while its translation was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transition {
    /// At every moment either the old or the new translation.
    Hitless,
    /// For a moment no translation: DMA in flight may have been aborted. Never anybody else's translation.
    Disruptive,
}

impl fmt::Display for Transition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Hitless => "hitless",
            Self::Disruptive => "disruptive",
        })
    }
}

/// Why an attachment was not made. The old one still works, except after [`Timeout`](Self::Timeout) and
/// [`Lost`](Self::Lost).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AttachError {
    /// The unit cannot do what the domain needs.
    #[error("the unit lacks {missing}")]
    Incompatible {
        /// What it lacks.
        missing: Missing,
    },
    /// The unit cannot address this endpoint.
    #[error("endpoint {0} is beyond what the unit can address")]
    UnknownEndpoint(EndpointId),
    /// The endpoint was not permitted PASIDs of this width.
    #[error("pasid {0} is wider than the endpoint was permitted")]
    UnknownPasid(Pasid),
    /// The device's PASIDs belong to a nesting domain.
    #[error("the PASIDs of the device belong to a nesting domain")]
    PasidsClaimed,
    /// The PASID is attached still, and has to be detached first.
    #[error("pasid {0} is attached")]
    PasidInUse(Pasid),
    /// A device of the same isolation group is attached to another domain.
    #[error("a device of the same isolation group is attached elsewhere")]
    GroupInUse,
    /// A region that the device needs could not be mapped in the domain.
    #[error("a reserved region cannot be mapped: {0}")]
    Reserved(MapError),
    /// No memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// All ASIDs, VMIDs or domain ids are in use.
    #[error("no address-space id is free")]
    NoFreeId,
    /// The hardware did not confirm the change: the entry is invalid now and the device blocked, and the ids and
    /// frames concerned are quarantined.
    #[error(transparent)]
    Timeout(#[from] Timeout),
    /// The old attachment is gone as well: the device is blocked, as far as the unit obeys.
    #[error("neither the new nor the old attachment could be made")]
    Lost,
    /// The unit failed earlier and takes only blocking any more.
    #[error("the unit is out of order")]
    Faulted,
    /// The unit refused, as a paravirtual one may.
    #[error("the unit refused")]
    Refused,
}

impl From<SyncError> for AttachError {
    fn from(error: SyncError) -> Self {
        match error {
            SyncError::Timeout(timeout) => Self::Timeout(timeout),
            SyncError::Faulted | SyncError::Gather(_) => Self::Faulted,
        }
    }
}

/// Counters of a unit, since it was set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct UnitStats {
    /// Domains made.
    pub domains: u64,
    /// Attachments changed.
    pub attaches: u64,
    /// Faults read from the hardware.
    pub faults: u64,
    /// Times the hardware said that it lost faults or page requests.
    pub overflows: u64,
    /// Invalidation commands submitted (requests, on a paravirtual unit).
    pub invalidations: u64,
    /// Synchronisations waited for.
    pub syncs: u64,
    /// Writes of a queue's doorbell.
    pub doorbells: u64,
    /// Errors of the command or invalidation queue.
    pub queue_errors: u64,
    /// Page requests and stalls read from the hardware.
    pub page_requests: u64,
    /// Answers to them.
    pub answers: u64,
}

/// One IOMMU, for whoever writes a driver for one. Users go through [`Iommu`](crate::Iommu), which keeps account of what is
/// attached; what is changed here behind its back it does not know.
///
/// All methods may be called on any CPU at any time; only [`handle_interrupt`](Self::handle_interrupt) may be called
/// from an interrupt handler.
pub trait Unit: Any + Send + Sync {
    /// What the unit can do.
    fn info(&self) -> &UnitInfo;

    /// Makes a domain for devices behind this unit, and behind any other of the same kind that can do as much.
    fn new_domain(&self, spec: &DomainSpec) -> Result<Arc<dyn Domain>, DomainError>;

    /// What the unit lacks to walk foreign tables; nothing if [`DomainSpec::Shared`] can be made of them.
    fn missing_for(&self, root: &TableRoot) -> Missing {
        let _ = root;
        Missing::SHARED_TABLES
    }

    /// Replaces the translation of all `endpoints` of one device, for requests without a PASID. They go together: on an
    /// error none has changed, except as [`AttachError::Timeout`] and [`AttachError::Lost`] say. At no moment does the
    /// device use mappings of a third domain.
    ///
    /// Whether DMA in flight was cut is told. Where tag and root of a stage-1 domain cannot change together it is: on
    /// SMMUv3 from one such domain to another in an endpoint that was permitted PASIDs or stalls, and by PASID; on VT-d
    /// where the two have different domain ids; on virtio-iommu always.
    ///
    /// With a [`Blocked`](crate::DomainKind::Blocked) domain it allocates nothing, and fails only if the hardware
    /// does not answer.
    fn attach(&self, endpoints: &[EndpointId], domain: &Arc<dyn Domain>) -> Result<Transition, AttachError>;

    /// Returns the endpoints to the state after start-up: all DMA is aborted, with any PASID too, and recorded as a
    /// fault. [Permissions](Self::permit) stay. Allocates nothing, and fails only if the hardware does not answer; the
    /// entries are invalid even then.
    fn detach(&self, endpoints: &[EndpointId]) -> Result<(), AttachError>;

    /// Sets what the endpoints may do beyond untranslated accesses without a PASID, whatever they are attached to.
    ///
    /// The unit permits before the device is told, and withdraws after: the caller turns PASID, page requests and ATS
    /// on in this order after more was permitted, and off in reverse, with the page requests answered, before less is.
    /// When translation requests are withdrawn, what the device has cached is invalidated.
    ///
    /// To permit may fail as [`attach`](Self::attach) does, and then nothing has changed. To withdraw allocates nothing;
    /// it is refused while a PASID is attached that would not be permitted any more.
    ///
    /// A unit that permits nothing of the kind keeps this body.
    fn permit(&self, endpoints: &[EndpointId], permissions: &Permissions) -> Result<Transition, AttachError> {
        let _ = endpoints;
        match permissions.needs() {
            missing if missing.is_empty() => Ok(Transition::Hitless),
            missing => Err(AttachError::Incompatible { missing }),
        }
    }

    /// Replaces the translation of one PASID of all `endpoints` of one device, with the guarantees of
    /// [`attach`](Self::attach). Other PASIDs, and requests without one, are not affected.
    fn attach_pasid(
        &self,
        endpoints: &[EndpointId],
        pasid: Pasid,
        domain: &Arc<dyn Domain>,
    ) -> Result<Transition, AttachError> {
        let _ = (endpoints, domain);
        Err(AttachError::UnknownPasid(pasid))
    }

    /// Makes the PASID reach nothing: attempts are aborted, and recorded as faults. The guarantees are those of
    /// [`detach`](Self::detach). Does nothing if the PASID is not attached.
    fn detach_pasid(&self, endpoints: &[EndpointId], pasid: Pasid) -> Result<(), AttachError> {
        let _ = (endpoints, pasid);
        Ok(())
    }

    /// The addresses of an endpoint that the unit itself says are not free; [`Iommu::add_device`](crate::Iommu::add_device)
    /// asks once. What firmware says of them is the kernel's to add.
    ///
    /// A unit that says nothing of the kind keeps this body.
    fn reserved(&self, endpoint: EndpointId) -> Result<Vec<ReservedRegion>, AttachError> {
        let _ = endpoint;
        Ok(Vec::new())
    }

    /// Reads what the hardware has queued for software: all of it up to a queueful, or to the most that is read of a long
    /// queue at once; if more is there then, says [`Unread`](UnitEvent::Unread). Never waits for the hardware.
    ///
    /// Each [`PageRequest`](UnitEvent::PageRequest) that wants an answer is to be [answered](Self::answer) once.
    fn handle_interrupt(&self, report: &mut dyn FnMut(UnitEvent));

    /// Lets [`handle_interrupt`](Self::handle_interrupt) report page requests, or leave them in the hardware and say
    /// [`Unread`](UnitEvent::Unread): from the next one on, also when it is called by `report`. Drains stop there.
    ///
    /// A unit without page requests keeps this body.
    fn set_page_request_flow(&self, flow: PageRequestFlow) {
        let _ = flow;
    }

    /// Answers page requests. When it returns, the hardware has the answers, or will never need them.
    fn answer(&self, answers: &[PageAnswer]) -> Result<(), SyncError> {
        match answers {
            [] => Ok(()),
            // Without page requests there is nothing that could be answered.
            _ => Err(SyncError::Faulted),
        }
    }

    /// Reports everything that the endpoints' page requests up to now have left in the hardware: when it returns, each
    /// was reported here or by [`handle_interrupt`](Self::handle_interrupt), or answered by the hardware. The caller
    /// made sure that the device asks no more. Not for interrupt handlers: it waits.
    ///
    /// `report` is called with interrupts masked, while nobody else reads the queues: it does not wait, and calls nothing
    /// of the unit but [`set_page_request_flow`](Self::set_page_request_flow). Only when it is told
    /// [`Unread`](UnitEvent::Unread) nothing is held, and it may call the unit: requests that are held are not read until
    /// it lets them flow, and the drain fails if it never does.
    fn drain_page_requests(
        &self,
        endpoints: &[EndpointId],
        report: &mut dyn FnMut(UnitEvent),
    ) -> Result<(), SyncError> {
        let _ = (endpoints, report);
        Ok(())
    }

    /// The counters.
    fn stats(&self) -> UnitStats;

    /// Writes the decoded and raw table entries of an endpoint, one `name: value` per line.
    fn describe_entry(&self, endpoint: EndpointId, out: &mut dyn fmt::Write) -> fmt::Result;

    /// Writes the decoded and raw table entry of a PASID of an endpoint, as [`describe_entry`](Self::describe_entry)
    /// does.
    fn describe_pasid(&self, endpoint: EndpointId, pasid: Pasid, out: &mut dyn fmt::Write) -> fmt::Result {
        let _ = (endpoint, pasid, out);
        Ok(())
    }

    /// Writes the decoded and raw registers, one `name: value` per line.
    fn describe_registers(&self, out: &mut dyn fmt::Write) -> fmt::Result;
}
