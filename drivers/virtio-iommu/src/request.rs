//! What the driver asks of the device, and the words in which it does.

use crate::spec::{self, AttachFlags, Head, HostDomain, MapFlags, REQUEST_BYTES, RequestType};
use portcullis_hal::{EndpointId, IovaRange, PhysAddr};
use zerocopy::{Immutable, IntoBytes};

/// The words of the longest request.
const WORDS: usize = REQUEST_BYTES.div_ceil(8);

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Attach { domain: HostDomain, endpoint: EndpointId, flags: AttachFlags },
    Detach { domain: HostDomain, endpoint: EndpointId },
    Map { domain: HostDomain, range: IovaRange, phys: PhysAddr, flags: MapFlags },
    Unmap { domain: HostDomain, range: IovaRange },
}

/// What a request does to a domain's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Map,
    Unmap,
}

impl Change {
    /// What must not be with the device at the same time, for the same addresses.
    pub(crate) fn opposite(self) -> Self {
        match self {
            Self::Map => Self::Unmap,
            Self::Unmap => Self::Map,
        }
    }
}

impl Request {
    /// The request up to its tail, and its length in bytes.
    pub(crate) fn words(&self) -> ([u64; WORDS], u32) {
        match *self {
            Self::Attach { domain, endpoint, flags } => words(&spec::Attach {
                head: Head::new(RequestType::ATTACH),
                domain: domain.0.into(),
                endpoint: endpoint.get().into(),
                flags: flags.bits().into(),
                reserved: [0; 4],
            }),
            Self::Detach { domain, endpoint } => words(&spec::Detach {
                head: Head::new(RequestType::DETACH),
                domain: domain.0.into(),
                endpoint: endpoint.get().into(),
                reserved: [0; 8],
            }),
            Self::Map { domain, range, phys, flags } => words(&spec::Map {
                head: Head::new(RequestType::MAP),
                domain: domain.0.into(),
                virt_start: range.start().get().into(),
                virt_end: range.last().get().into(),
                phys_start: phys.get().into(),
                flags: flags.bits().into(),
            }),
            Self::Unmap { domain, range } => words(&spec::Unmap {
                head: Head::new(RequestType::UNMAP),
                domain: domain.0.into(),
                virt_start: range.start().get().into(),
                virt_end: range.last().get().into(),
                reserved: [0; 4],
            }),
        }
    }

    pub(crate) fn domain(&self) -> HostDomain {
        match *self {
            Self::Attach { domain, .. }
            | Self::Detach { domain, .. }
            | Self::Map { domain, .. }
            | Self::Unmap { domain, .. } => domain,
        }
    }

    /// Which addresses of the domain it changes, if any.
    pub(crate) fn changes(&self) -> Option<(Change, IovaRange)> {
        match *self {
            Self::Map { range, .. } => Some((Change::Map, range)),
            Self::Unmap { range, .. } => Some((Change::Unmap, range)),
            Self::Attach { .. } | Self::Detach { .. } => None,
        }
    }
}

/// The bytes of a request as words in the CPU's order, the last one filled up with zeros.
fn words<T: IntoBytes + Immutable>(request: &T) -> ([u64; WORDS], u32) {
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(request.as_bytes().chunks(8)) {
        let mut whole = [0; 8];
        for (to, from) in whole.iter_mut().zip(bytes) {
            *to = *from;
        }
        *word = u64::from_le_bytes(whole);
    }
    (words, size_of::<T>() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_hal::Iova;

    /// The bytes of 5.13.6.3 to 5.13.6.6, taken down field by field.
    #[test]
    fn requests_are_made_of_the_bytes_of_the_specification() {
        let range =
            IovaRange::from_bounds(Iova::new(0x1122_3344_5566_7000), Iova::new(0x1122_3344_5566_8fff));
        let (domain, range, endpoint) = (HostDomain(0xa1b2_c3d4), range.unwrap(), EndpointId::new(0x0102));
        let bytes = |request: Request| {
            let (words, len) = request.words();
            let all: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            assert!(all[len as usize..].iter().all(|byte| *byte == 0));
            all[..len as usize].to_vec()
        };
        let head = |kind: u8| vec![kind, 0, 0, 0, 0xd4, 0xc3, 0xb2, 0xa1];
        let first = [0x00, 0x70, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11];
        let last = [0xff, 0x8f, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11];
        let attach = Request::Attach { domain, endpoint, flags: AttachFlags::BYPASS };
        assert_eq!(bytes(attach), [head(1), vec![2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]].concat());
        let detach = Request::Detach { domain, endpoint };
        assert_eq!(bytes(detach), [head(2), vec![2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]].concat());
        let (phys, flags) = (PhysAddr::new(0x8877_6655_4433_2000), MapFlags::WRITE | MapFlags::MMIO);
        let rest = [0x00, 0x20, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 6, 0, 0, 0];
        let map = Request::Map { domain, range, phys, flags };
        assert_eq!(bytes(map), [&head(3)[..], &first, &last, &rest].concat());
        let unmap = Request::Unmap { domain, range };
        assert_eq!(bytes(unmap), [&head(4)[..], &first, &last, &[0; 4]].concat());
    }
}
