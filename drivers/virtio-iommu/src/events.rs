//! The event queue: faults of endpoints (virtio 1.2, 5.13.6.9).

use crate::ring::{Direction, Held, Ring, RingSize, UsedInterrupts};
use crate::spec::{FaultCode, FaultEvent, FaultFlags};
use crate::transport::QueueLayout;
use portcullis_hal::{Access, EndpointId, Hal, Iova, OutOfMemory};
use portcullis_iommu::{FaultReason, FaultRecord};
use zerocopy::FromBytes;

/// The bytes of a buffer; an event has 24.
const BUFFER_BYTES: usize = 32;
const EVENT_BYTES: usize = size_of::<FaultEvent>();
const _: () = assert!(EVENT_BYTES <= BUFFER_BYTES);

/// What the device put into a buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    Fault(FaultEvent, [u64; 4]),
    /// Not an event: a wrong size, or no buffer of the driver's.
    Malformed,
}

/// The event queue. All buffers are with the device but the one being read.
#[derive(Debug)]
pub(crate) struct EventQueue<H: Hal> {
    ring: Ring<H>,
    buffers: Held<H>,
    size: RingSize,
    broken: bool,
}

impl<H: Hal> EventQueue<H> {
    /// A queue with all buffers queued, to be published when the device is running.
    pub(crate) fn new(hal: &H, size: RingSize) -> Result<Self, OutOfMemory> {
        let mut ring = Ring::new(hal, size, UsedInterrupts::Wanted)?;
        let buffers = Held::zeroed(hal, usize::from(size.get()) * BUFFER_BYTES)?;
        for index in 0..size.get() {
            let at = buffers.phys(usize::from(index) * BUFFER_BYTES);
            ring.describe(index, at, BUFFER_BYTES as u32, Direction::DeviceWrites);
            ring.push(index);
        }
        Ok(Self { ring, buffers, size, broken: false })
    }

    pub(crate) fn layout(&self) -> QueueLayout {
        self.ring.layout()
    }

    /// How many buffers there are.
    pub(crate) fn buffers(&self) -> u16 {
        self.size.get()
    }

    /// The device has lied about the ring; there are no events any more.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Takes an event and gives its buffer back.
    pub(crate) fn take(&mut self) -> Option<Event> {
        if self.broken {
            return None;
        }
        let used = match self.ring.pop(self.size.get()) {
            Ok(used) => used?,
            Err(lie) => {
                log::error!("virtio-iommu: event queue: {lie}");
                self.broken = true;
                return None;
            }
        };
        let Ok(index) = u16::try_from(used.head)
            .map_err(drop)
            .and_then(|index| if index < self.size.get() { Ok(index) } else { Err(()) })
        else {
            return Some(Event::Malformed);
        };
        let mut bytes = [0; BUFFER_BYTES];
        self.buffers.read(usize::from(index) * BUFFER_BYTES, &mut bytes);
        self.ring.push(index);
        if used.len as usize != EVENT_BYTES {
            return Some(Event::Malformed);
        }
        Some(
            FaultEvent::read_from_prefix(&bytes)
                .map_or(Event::Malformed, |(event, _)| Event::Fault(event, raw(&bytes))),
        )
    }

    /// Shows the device the buffers that were given back; returns whether it is to be notified.
    pub(crate) fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// Gives the memory up for good.
    pub(crate) fn leak(&mut self) {
        self.ring.leak();
        self.buffers.leak();
    }
}

/// The event as 64-bit words.
fn raw(bytes: &[u8; BUFFER_BYTES]) -> [u64; 4] {
    let mut words = [0; 4];
    for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<8>().0).take(EVENT_BYTES / 8) {
        *word = u64::from_le_bytes(*chunk);
    }
    words
}

/// What the driver knows about an address of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Knowledge {
    /// The endpoint is not attached.
    Unattached,
    /// The endpoint is blocked on purpose.
    Blocked,
    /// The address is mapped.
    Mapped,
    /// The address is not mapped, or nobody knows.
    NotMapped,
    /// The endpoint is attached to everything, or the state is being changed.
    Unknown,
}

/// Decodes an event, given what the driver knows about the endpoint and the address.
pub(crate) fn decode(
    event: &FaultEvent,
    raw: [u64; 4],
    knowledge: impl FnOnce(EndpointId, Option<Iova>) -> Knowledge,
) -> FaultRecord {
    let flags = FaultFlags::from_bits_retain(event.flags.get());
    let endpoint = EndpointId::new(event.endpoint.get());
    let address = flags.contains(FaultFlags::ADDRESS).then(|| Iova::new(event.address.get()));
    let mut access = Access::empty();
    access.set(Access::READ, flags.contains(FaultFlags::READ));
    access.set(Access::WRITE, flags.contains(FaultFlags::WRITE));
    let knowledge = knowledge(endpoint, address);
    let reason = match (event.reason, knowledge) {
        (FaultCode::DOMAIN, _) => FaultReason::Unattached,
        // Some devices, QEMU's among them, do not know an endpoint before its first attachment.
        (FaultCode::UNKNOWN, Knowledge::Unattached) => FaultReason::Unattached,
        (FaultCode::MAPPING, Knowledge::Blocked) => FaultReason::Blocked,
        (FaultCode::MAPPING, Knowledge::Mapped) => FaultReason::Permission,
        (FaultCode::MAPPING, _) => FaultReason::NotMapped,
        _ => FaultReason::Other,
    };
    FaultRecord {
        endpoint,
        pasid: None,
        address,
        access: (!access.is_empty()).then_some(access),
        stage: None,
        reason,
        code: event.reason.0.into(),
        name: event.reason.name(),
        raw,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of 5.13.6.9: reason, three reserved, flags, endpoint, four reserved, address.
    const GOLDEN: [u8; 24] =
        [2, 0, 0, 0, 2, 1, 0, 0, 0x18, 0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0xad, 0xde, 0, 0, 0, 0];

    fn decoded(reason: u8, knowledge: Knowledge) -> FaultRecord {
        let mut bytes = GOLDEN;
        bytes[0] = reason;
        let event = FaultEvent::read_from_bytes(&bytes).unwrap();
        decode(&event, [0; 4], |_, _| knowledge)
    }

    #[test]
    fn an_event_decodes_field_by_field() {
        let record = decoded(2, Knowledge::NotMapped);
        assert_eq!(record.endpoint, EndpointId::new(0x18));
        assert_eq!(record.address, Some(Iova::new(0xdead_4000)));
        assert_eq!((record.access, record.pasid, record.stage), (Some(Access::WRITE), None, None));
        assert_eq!((record.code, record.name), (2, "FAULT_R_MAPPING"));
    }

    #[test]
    fn the_reason_joins_what_the_device_says_with_what_the_driver_knows() {
        for (code, knowledge, reason) in [
            (0, Knowledge::Unattached, FaultReason::Unattached),
            (0, Knowledge::Mapped, FaultReason::Other),
            (1, Knowledge::Mapped, FaultReason::Unattached),
            (2, Knowledge::Blocked, FaultReason::Blocked),
            (2, Knowledge::Mapped, FaultReason::Permission),
            (2, Knowledge::NotMapped, FaultReason::NotMapped),
            (2, Knowledge::Unknown, FaultReason::NotMapped),
            (9, Knowledge::NotMapped, FaultReason::Other),
        ] {
            assert_eq!(decoded(code, knowledge).reason, reason, "{code} {knowledge:?}");
        }
    }
}
