//! What a device says of an endpoint: PROBE (virtio 1.2, 5.13.6.7).
//!
//! There is one buffer, since the answer is long and asked for once per endpoint. Whoever takes an answer takes it under
//! the lock of the request queue, so that no other probe overwrites it.

use crate::link::{Counters, Link, RequestError};
use crate::owners::Refusal;
use crate::requests::Priority;
use crate::ring::Held;
use crate::spec::{self, Head, PropertyHead, RequestType, ReservedMemory, Status, TAIL_BYTES};
use crate::transport::Transport;
use alloc::vec::Vec;
use portcullis_hal::{EndpointId, Hal, Iova, IovaRange, OutOfMemory, PhysAddr, list};
use portcullis_iommu::{AttachError, ReservedKind, ReservedRegion};
use zerocopy::{FromBytes, IntoBytes};

/// The bytes before the properties.
const REQUEST_BYTES: usize = size_of::<spec::Probe>();
/// The most bytes of properties that are taken for sense.
pub(crate) const MOST_PROPERTIES: u32 = 1 << 16;

/// The buffer of PROBE requests.
#[derive(Debug)]
pub(crate) struct ProbeBuffer<H: Hal> {
    memory: Held<H>,
    /// The bytes of properties.
    properties: usize,
}

impl<H: Hal> ProbeBuffer<H> {
    /// A buffer for `probe_size` bytes of properties.
    pub(crate) fn new(hal: &H, probe_size: u32) -> Result<Self, OutOfMemory> {
        let properties = probe_size.min(MOST_PROPERTIES) as usize;
        Ok(Self { memory: Held::zeroed(hal, REQUEST_BYTES + properties + TAIL_BYTES)?, properties })
    }

    /// Writes a request. Nothing that a device could have written is left from the last one.
    pub(crate) fn fill(&self, endpoint: EndpointId) {
        let request = spec::Probe {
            head: Head::new(RequestType::PROBE),
            endpoint: endpoint.get().into(),
            reserved: [0; 64],
        };
        self.memory.write(0, request.as_bytes());
        for at in (REQUEST_BYTES..REQUEST_BYTES + self.properties).step_by(8) {
            self.memory.write(at, &[0; 8][..(REQUEST_BYTES + self.properties - at).min(8)]);
        }
        self.memory.write(REQUEST_BYTES + self.properties, &[0xff; TAIL_BYTES]);
    }

    /// What the device reads: its address and length.
    pub(crate) fn request(&self) -> (PhysAddr, u32) {
        (self.memory.phys(0), REQUEST_BYTES as u32)
    }

    /// What the device writes: its address and length.
    pub(crate) fn answer(&self) -> (PhysAddr, u32) {
        (self.memory.phys(REQUEST_BYTES), (self.properties + TAIL_BYTES) as u32)
    }

    pub(crate) fn status(&self) -> Status {
        let mut status = [0];
        self.memory.read(REQUEST_BYTES + self.properties, &mut status);
        Status(status[0])
    }

    /// The regions that the answer says are not free. Properties of other types are skipped.
    ///
    /// # Errors
    ///
    /// A property is longer than what is left, shorter than its type, or a region's end lies before its start.
    pub(crate) fn regions(&self) -> Result<Vec<ReservedRegion>, ProbeError> {
        let mut regions = Vec::new();
        let mut at = 0;
        while let Some(head) = self.property::<PropertyHead, { size_of::<PropertyHead>() }>(at) {
            if head.kind() == PropertyHead::NONE {
                break;
            }
            let start = at + size_of::<PropertyHead>();
            let length = usize::from(head.length.get());
            if length > self.properties.saturating_sub(start) {
                return Err(ProbeError::Malformed);
            }
            if head.kind() == PropertyHead::RESERVED_MEMORY {
                if length < size_of::<ReservedMemory>() {
                    return Err(ProbeError::Malformed);
                }
                let memory = self.property::<ReservedMemory, { size_of::<ReservedMemory>() }>(start);
                let range = memory.and_then(|memory| {
                    IovaRange::from_bounds(Iova::new(memory.start.get()), Iova::new(memory.end.get())).ok()
                });
                let range = range.ok_or(ProbeError::Malformed)?;
                // Neither kind is translated, so nothing can be mapped there.
                list::push(&mut regions, ReservedRegion { range, kind: ReservedKind::Excluded })?;
            }
            at = start + length;
        }
        Ok(regions)
    }

    /// What lies at an offset among the properties, if it fits in there.
    fn property<T: FromBytes, const BYTES: usize>(&self, at: usize) -> Option<T> {
        if at + BYTES > self.properties {
            return None;
        }
        let mut bytes = [0; BYTES];
        self.memory.read(REQUEST_BYTES + at, &mut bytes);
        T::read_from_bytes(&bytes).ok()
    }

    /// Gives the memory up for good.
    pub(crate) fn leak(&mut self) {
        self.memory.leak();
    }
}

impl<H: Hal, T: Transport> Link<H, T> {
    /// Asks the device which addresses of an endpoint are not free; none if it cannot be asked, or does not know the
    /// endpoint.
    pub(crate) fn probe(&self, endpoint: EndpointId) -> Result<Vec<ReservedRegion>, ProbeError> {
        if !self.queue(|queue| queue.can_probe()) {
            return Ok(Vec::new());
        }
        let batch = self.batch(Priority::Normal).map_err(RequestError::from)?;
        let mut asked = false;
        let mut answer = Ok(Vec::new());
        self.wait("PROBE", |queue| {
            if !asked {
                asked = queue.submit_probe(endpoint, batch.id());
                return false;
            }
            let (outstanding, refusal) = queue.batches().so_far(batch.id());
            answer = match refusal {
                Some(Refusal::Status(Status::NOENT)) => Ok(Vec::new()),
                Some(refusal) => Err(ProbeError::Request(refusal.into())),
                None if outstanding == 0 => queue.probed(),
                None => return false,
            };
            true
        })
        .map_err(RequestError::from)?;
        Counters::count(&self.counters.requests);
        answer
    }
}

/// Why an endpoint's properties are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeError {
    Request(RequestError),
    Malformed,
    OutOfMemory,
}

impl From<RequestError> for ProbeError {
    fn from(error: RequestError) -> Self {
        Self::Request(error)
    }
}

impl From<OutOfMemory> for ProbeError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl From<ProbeError> for AttachError {
    fn from(error: ProbeError) -> Self {
        match error {
            ProbeError::Request(RequestError::Sync(error)) => error.into(),
            ProbeError::Request(RequestError::Refused(_)) | ProbeError::Malformed => Self::Refused,
            ProbeError::OutOfMemory => OutOfMemory.into(),
        }
    }
}
