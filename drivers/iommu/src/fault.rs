//! Faults: DMA that was refused, decoded into one type whatever the hardware.

use crate::{DeviceId, PageRequest, Stage, UnitId};
use core::fmt;
use portcullis_hal::{Access, EndpointId, Iova, Pasid};

/// Why a DMA was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultReason {
    /// The requester has no table entry: unknown or not attached.
    Unattached,
    /// The requester's table entry is present but wrong: a driver's mistake.
    BadEntry,
    /// Nothing is mapped at the address.
    NotMapped,
    /// The mapping does not allow the access.
    Permission,
    /// Nothing is mapped, or the mapping does not allow the access: the hardware does not tell which.
    NotAllowed,
    /// The address is wider than the domain translates, or not canonical.
    OutOfRange,
    /// The output address is wider than the unit allows, or in a window that is not memory.
    BadOutput,
    /// The mapping's access flag is clear and hardware does not set it.
    AccessFlag,
    /// The unit could not read a table.
    TableUnreadable,
    /// The endpoint is blocked on purpose.
    Blocked,
    /// Something else: see the code.
    Other,
}

impl fmt::Display for FaultReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unattached => "not attached",
            Self::BadEntry => "bad table entry",
            Self::NotMapped => "not mapped",
            Self::Permission => "no permission",
            Self::NotAllowed => "not mapped or no permission",
            Self::OutOfRange => "address out of range",
            Self::BadOutput => "output address not allowed",
            Self::AccessFlag => "access flag clear",
            Self::TableUnreadable => "table unreadable",
            Self::Blocked => "blocked",
            Self::Other => "refused",
        })
    }
}

/// A fault as the hardware reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultRecord {
    /// The requester, by its endpoint id.
    pub endpoint: EndpointId,
    /// The PASID, if the request had one.
    pub pasid: Option<Pasid>,
    /// The address, if the hardware tells it.
    pub address: Option<Iova>,
    /// The access, if the hardware tells it.
    pub access: Option<Access>,
    /// The stage that refused, if known.
    pub stage: Option<Stage>,
    /// Why.
    pub reason: FaultReason,
    /// The hardware's code.
    pub code: u16,
    /// The code's name in the architecture's manual.
    pub name: &'static str,
    /// The record as it was read, in little-endian words; zeros after a shorter one.
    pub raw: [u64; 4],
}

/// What a unit found when its interrupt was handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnitEvent {
    /// A DMA was refused.
    Fault(FaultRecord),
    /// The hardware lost faults, for want of room.
    Overflow,
    /// A device asks for a page, or waits for one.
    PageRequest(PageRequest),
    /// The page-request queue was full. The hardware has answered what it had no room for, so groups whose last request
    /// has not been seen stay incomplete and get no answer.
    PageRequestOverflow,
    /// The call ended before the unit's queues were empty, and no interrupt will tell of what is left: the unit is to be
    /// asked once more.
    Unread,
    /// The command or invalidation queue stopped at an error; whoever notices it first sets it going again.
    QueueError,
    /// The unit reported an error that concerns no single request.
    UnitError {
        /// The name in the architecture's manual.
        name: &'static str,
        /// The register's value.
        value: u32,
    },
}

/// A fault with its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The unit that refused.
    pub unit: UnitId,
    /// The device, if the registry knows the endpoint.
    pub device: Option<DeviceId>,
    /// What the hardware told.
    pub record: FaultRecord,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = &self.record;
        write!(f, "{}: ", self.unit)?;
        match &self.device {
            Some(device) => write!(f, "device {device}")?,
            None => write!(f, "endpoint {}", record.endpoint)?,
        }
        if let Some(pasid) = record.pasid {
            write!(f, " pasid {pasid}")?;
        }
        match record.access {
            Some(access) if access.contains(Access::WRITE) => f.write_str(" write")?,
            Some(access) if access.contains(Access::EXECUTE) => f.write_str(" fetch")?,
            Some(_) => f.write_str(" read")?,
            None => f.write_str(" access")?,
        }
        match record.address {
            Some(address) => write!(f, " at {address}")?,
            None => f.write_str(" at an address not told")?,
        }
        write!(f, " refused")?;
        if let Some(stage) = record.stage {
            write!(f, " by {stage}")?;
        }
        write!(f, ": {} ({} {:#x})", record.reason, record.name, record.code)
    }
}

/// A device owner's interest in its faults. Called from the unit's interrupt handler: it must not wait, nor call into
/// the IOMMU, nor change the handler.
pub trait FaultHandler: Send + Sync {
    /// Takes note of a fault.
    fn fault(&self, fault: &Fault);
}

/// How many faults a [`FaultLog`] keeps.
pub(crate) const LOG_CAPACITY: usize = 64;

/// The latest faults, oldest first, with a count of those that found no room.
#[derive(Debug)]
pub struct FaultLog {
    ring: [Option<Fault>; LOG_CAPACITY],
    next: usize,
    held: usize,
    dropped: u64,
}

impl FaultLog {
    /// An empty log.
    pub const fn new() -> Self {
        Self { ring: [const { None }; LOG_CAPACITY], next: 0, held: 0, dropped: 0 }
    }

    /// Adds a fault; when the log is full, the newest is dropped and counted, since the first of a storm tells most.
    pub fn push(&mut self, fault: Fault) {
        if self.held == LOG_CAPACITY {
            self.dropped += 1;
            return;
        }
        if let Some(slot) = self.ring.get_mut((self.next + self.held) % LOG_CAPACITY) {
            *slot = Some(fault);
            self.held += 1;
        }
    }

    /// Takes the oldest fault.
    pub fn pop(&mut self) -> Option<Fault> {
        let fault = self.ring.get_mut(self.next)?.take()?;
        self.next = (self.next + 1) % LOG_CAPACITY;
        self.held -= 1;
        Some(fault)
    }

    /// How many faults were dropped for lack of room.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

impl Default for FaultLog {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_hal::RequesterId;

    fn fault(address: u64) -> Fault {
        Fault {
            unit: UnitId(0),
            device: Some(DeviceId::Pci(RequesterId::from_bdf(0, 0x18))),
            record: FaultRecord {
                endpoint: EndpointId::new(0x18),
                pasid: None,
                address: Some(Iova::new(address)),
                access: Some(Access::WRITE),
                stage: Some(Stage::Stage1),
                reason: FaultReason::NotMapped,
                code: 0x10,
                name: "F_TRANSLATION",
                raw: [0; 4],
            },
        }
    }

    #[test]
    fn a_fault_reads_as_one_line() {
        let line = std::format!("{}", fault(0xdead_0000));
        let expected = "iommu0: device 0000:00:03.0 write at 0xdead0000 refused by stage 1: \
                        not mapped (F_TRANSLATION 0x10)";
        assert_eq!(line, expected);
    }

    #[test]
    fn a_full_log_keeps_the_first_faults_and_counts_the_rest() {
        let mut log = FaultLog::new();
        for round in 0..3 {
            for i in 0..LOG_CAPACITY as u64 + 5 {
                log.push(fault(i));
            }
            assert_eq!(log.dropped(), 5 * (round + 1));
            for i in 0..LOG_CAPACITY as u64 {
                assert_eq!(log.pop().and_then(|fault| fault.record.address), Some(Iova::new(i)));
            }
            assert_eq!(log.pop(), None);
        }
    }
}
