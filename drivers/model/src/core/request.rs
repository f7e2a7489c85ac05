//! DMA as the models see it.

/// What a transaction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Data read.
    Read,
    /// Data write (atomics too, which read as well as write).
    Write,
    /// Instruction fetch (PCIe: execute requested).
    Execute,
}

/// Who asks, as the bus says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Privilege {
    /// Unprivileged; what a PCIe request without a PASID is on most systems.
    User,
    /// Privileged mode requested.
    Supervisor,
}

/// The address type of a request (PCIe AT field).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressKind {
    /// An address to translate.
    Untranslated,
    /// An ATS translation request: answered with a [`Grant`], never performed.
    TranslationRequest,
    /// An address that the device got from ATS.
    Translated,
}

/// One transaction that arrives at the IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// StreamID, or bus/device/function as 16 bits.
    pub requester: u32,
    /// The PASID (SubstreamID) if the request carries one.
    pub pasid: Option<u32>,
    /// The address as the device issues it.
    pub address: u64,
    /// What it does.
    pub access: Access,
    /// With which privilege.
    pub privilege: Privilege,
    /// Untranslated, translated, or a translation request.
    pub kind: AddressKind,
}

impl Request {
    /// An untranslated user read without a PASID; change the fields that differ.
    #[must_use]
    pub const fn read(requester: u32, address: u64) -> Self {
        Self {
            requester,
            pasid: None,
            address,
            access: Access::Read,
            privilege: Privilege::User,
            kind: AddressKind::Untranslated,
        }
    }

    /// An untranslated user write without a PASID.
    #[must_use]
    pub const fn write(requester: u32, address: u64) -> Self {
        Self { access: Access::Write, ..Self::read(requester, address) }
    }

    /// The same request under a PASID.
    #[must_use]
    pub const fn with_pasid(self, pasid: u32) -> Self {
        Self { pasid: Some(pasid), ..self }
    }

    /// The same request as another address kind.
    #[must_use]
    pub const fn with_kind(self, kind: AddressKind) -> Self {
        Self { kind, ..self }
    }

    /// The same request with another access.
    #[must_use]
    pub const fn with_access(self, access: Access) -> Self {
        Self { access, ..self }
    }

    /// The same request as a privileged one.
    #[must_use]
    pub const fn privileged(self) -> Self {
        Self { privilege: Privilege::Supervisor, ..self }
    }
}

/// Which of the allowed behaviours a DMA takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// What memory says now, as if nothing were cached.
    Fresh,
    /// A stale cached entry whenever hardware could have one, an access that succeeds before one that faults.
    Hostile,
    /// Any of the allowed behaviours, as the schedule chooses.
    Any,
}

/// What an ATS translation completion grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant {
    /// The translated address of the naturally aligned region.
    pub address: u64,
    /// Size of the region in bytes, a power of two of 4 KiB or more.
    pub size: u64,
    /// Reads are allowed.
    pub read: bool,
    /// Writes are allowed.
    pub write: bool,
    /// Execution is allowed.
    pub execute: bool,
    /// The permissions are those of privileged mode.
    pub privileged: bool,
    /// The translation holds for every PASID of the device.
    pub global: bool,
    /// U bit: only untranslated requests may use the region.
    pub untranslated_only: bool,
}

/// What becomes of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// The access is performed at this physical address.
    Done(u64),
    /// A translation request succeeded.
    Granted(Grant),
    /// A translation request succeeded without any permission: the device may send a page request.
    NotGranted,
    /// The access (or translation request) ends with this fault, which the unit records.
    Fault(u8),
    /// As `Fault`, but the configuration keeps the unit from recording it.
    Silent(u8),
    /// The access is held until software resumes or terminates it; the fault that caused it is recorded.
    Stalled(u8),
    /// The access is refused without a fault: configured to abort, or the unit is off and aborts.
    Aborted,
}

impl Outcome {
    /// The physical address if the access is performed.
    #[must_use]
    pub const fn output(self) -> Option<u64> {
        match self {
            Self::Done(address) => Some(address),
            _ => None,
        }
    }
}

/// The answer to one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Response {
    /// What became of it.
    pub outcome: Outcome,
    /// For a stalled transaction: the tag that names it until it is resumed.
    pub tag: Option<u16>,
}
