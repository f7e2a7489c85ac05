//! Decoder of invalidation queue descriptors (specification 6.5.2).

use super::caches::{ContextScope, PasidScope, Range, TlbScope};
use super::config::{Config, Feature};
use crate::core::ResponseCode;

/// IQERCD.IQEI: why a descriptor was not executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum QueueError {
    Tail = 1,
    Fetch = 2,
    Type = 3,
    Reserved = 4,
    Width = 5,
    Misaligned = 6,
}

impl QueueError {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Tail => "IQE tail",
            Self::Fetch => "IQE fetch",
            Self::Type => "IQE type",
            Self::Reserved => "IQE reserved field",
            Self::Width => "IQE descriptor width",
            Self::Misaligned => "IQE tail misaligned",
        }
    }
}

/// What a wait descriptor asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WaitRequest {
    pub(super) interrupt: bool,
    /// Where to write what.
    pub(super) status: Option<(u64, u32)>,
    pub(super) fence: bool,
    pub(super) drain: bool,
}

/// A descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Descriptor {
    Context(ContextScope),
    Pasid(PasidScope),
    Translation(TlbScope),
    DeviceTlb { requester: u16, pasid: Option<u32>, global: bool, first: u64, last: u64 },
    InterruptEntries,
    Wait(WaitRequest),
    PageGroupResponse { requester: u16, pasid: Option<u32>, group: u16, code: ResponseCode },
}

impl Descriptor {
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Context(ContextScope::Global) => "context cache, global",
            Self::Context(ContextScope::Domain) => "context cache, domain",
            Self::Context(ContextScope::Device { .. }) => "context cache, device",
            Self::Pasid(PasidScope::Global) => "PASID cache, global",
            Self::Pasid(PasidScope::Domain(_)) => "PASID cache, domain",
            Self::Pasid(PasidScope::Pasid { .. }) => "PASID cache, PASID",
            Self::Translation(TlbScope::Global) => "IOTLB, global",
            Self::Translation(TlbScope::Domain(_)) => "IOTLB, domain",
            Self::Translation(TlbScope::Pages { leaf_only: true, .. }) => "IOTLB, pages, leaf only",
            Self::Translation(TlbScope::Pages { .. }) => "IOTLB, pages",
            Self::Translation(TlbScope::Pasid { .. }) => "PASID IOTLB, PASID",
            Self::Translation(TlbScope::PasidPages { leaf_only: true, .. }) => {
                "PASID IOTLB, pages, leaf only"
            }
            Self::Translation(TlbScope::PasidPages { .. }) => "PASID IOTLB, pages",
            Self::DeviceTlb { pasid: None, .. } => "device TLB",
            Self::DeviceTlb { .. } => "PASID device TLB",
            Self::InterruptEntries => "interrupt entry cache",
            Self::Wait(_) => "wait",
            Self::PageGroupResponse { .. } => "page group response",
        }
    }

    /// Decodes the words of a descriptor; 128-bit ones come with two zero words.
    pub(super) fn decode(config: &Config, wide: bool, words: [u64; 4]) -> Result<Self, QueueError> {
        let [q0, q1, q2, q3] = words;
        let kind = q0 & 0xf | q0 >> 5 & 0x70;
        let needs_wide = (6..=9).contains(&kind);
        let known = match kind {
            1 | 2 | 5 => true,
            3 => config.has(Feature::DeviceTlb),
            4 => config.has(Feature::InterruptRemapping),
            6 | 7 => config.has(Feature::ScalableMode),
            8 => config.has(Feature::DeviceTlb) && config.has(Feature::Pasid),
            9 => config.has(Feature::PageRequests),
            _ => false,
        };
        if !known {
            return Err(QueueError::Type);
        }
        if needs_wide && !wide {
            return Err(QueueError::Width);
        }
        let (low, high) = reserved_bits(config, kind);
        if q0 & low != 0 || q1 & high != 0 || q2 != 0 || q3 != 0 {
            return Err(QueueError::Reserved);
        }
        Self::fields(config, kind, q0, q1).ok_or(QueueError::Reserved)
    }

    /// The fields of a descriptor whose reserved bits are clear; `None` for a reserved encoding.
    fn fields(config: &Config, kind: u64, q0: u64, q1: u64) -> Option<Self> {
        let granularity = q0 >> 4 & 3;
        let domain = (q0 >> 16) as u16;
        let pasid = (q0 >> 32 & 0xf_ffff) as u32;
        let leaf_only = q1 >> 6 & 1 != 0;
        let mask = q1 & 0x3f;
        let pages = || {
            let supported = config.has(Feature::PageSelective) && mask <= config.max_address_mask();
            supported.then(|| Range::pages(q1, mask))
        };
        Some(match (kind, granularity) {
            (1, 1) => Self::Context(ContextScope::Global),
            (1, 2) => Self::Context(ContextScope::Domain),
            (1, 3) => Self::Context(ContextScope::Device {
                requester: (q0 >> 32) as u16,
                // FM ignores none, the highest, the two highest or all bits of the function number.
                mask: [0b000, 0b100, 0b110, 0b111][(q0 >> 48 & 3) as usize],
            }),
            (2, 1) => Self::Translation(TlbScope::Global),
            (2, 2) => Self::Translation(TlbScope::Domain(domain)),
            (2, 3) => Self::Translation(TlbScope::Pages { domain, range: pages()?, leaf_only }),
            (3, _) => {
                let (first, last) = device_range(q1, q1 & 1 != 0);
                Self::DeviceTlb { requester: (q0 >> 32) as u16, pasid: None, global: false, first, last }
            }
            (4, _) => Self::InterruptEntries,
            (5, _) => Self::Wait(WaitRequest {
                interrupt: q0 >> 4 & 1 != 0,
                status: (q0 >> 5 & 1 != 0).then_some((q1, (q0 >> 32) as u32)),
                fence: q0 >> 6 & 1 != 0,
                drain: q0 >> 7 & 1 != 0,
            }),
            (6, 2) => Self::Translation(TlbScope::Pasid { domain, pasid }),
            // PSI and MAMV are about the second stage: here every defined mask is supported (CAP.MAMV).
            (6, 3) if mask > 52 => return None,
            (6, 3) => Self::Translation(TlbScope::PasidPages {
                domain,
                pasid,
                range: Range::pages(q1, mask),
                leaf_only,
            }),
            (7, 0) => Self::Pasid(PasidScope::Domain(domain)),
            (7, 1) => Self::Pasid(PasidScope::Pasid { domain, pasid }),
            (7, 3) => Self::Pasid(PasidScope::Global),
            (8, _) => {
                let (first, last) = device_range(q1, q1 >> 11 & 1 != 0);
                let requester = (q0 >> 16) as u16;
                Self::DeviceTlb { requester, pasid: Some(pasid), global: q1 & 1 != 0, first, last }
            }
            (9, _) => Self::PageGroupResponse {
                requester: (q0 >> 16) as u16,
                pasid: (q0 >> 4 & 1 != 0).then_some(pasid),
                group: (q1 >> 3 & 0x1ff) as u16,
                code: match q0 >> 12 & 0xf {
                    0 => ResponseCode::Success,
                    1 => ResponseCode::InvalidRequest,
                    15 => ResponseCode::Failure,
                    _ => return None,
                },
            },
            _ => return None,
        })
    }
}

/// Reserved bits of the first two words by type.
const fn reserved_bits(config: &Config, kind: u64) -> (u64, u64) {
    // Address mask in 5:0, hint in 6, address from 12.
    const ADDRESS: u64 = 0xf80;
    // PFSID has a meaning only with ECAP.DIT.
    let function = if config.has(Feature::DeviceTlbThrottle) { 0 } else { 0xfff0_0000_0000_f000 };
    match kind {
        1 => (0xfffc_0000_0000_f1c0, u64::MAX),
        2 => (0xffff_ffff_0000_f100, ADDRESS),
        3 => (0x000f_0000_ffe0_01f0 | function, 0xffe),
        4 => (0xffff_0000_07ff_f1e0, u64::MAX),
        5 => (0xffff_f100 | if config.has(Feature::PageRequestDrain) { 0 } else { 1 << 7 }, 3),
        6 => (0xfff0_0000_0000_f1c0, ADDRESS),
        7 => (0xfff0_0000_0000_f1c0, u64::MAX),
        8 => (function, 0x7fe),
        // Bit 5 and the low bits of the second word were private-data and last-page flags once.
        _ => (0xfff0_0000_0000_01e0, !(0x1ff << 3)),
    }
}

/// The bytes that an ATS-style address and size bit name: with S set, the trailing ones above bit 12 say how many
/// pages, as a power of two.
fn device_range(address: u64, sized: bool) -> (u64, u64) {
    let page = address & !0xfff;
    if !sized {
        return (page, page | 0xfff);
    }
    let ones = (page >> 12).trailing_ones();
    if ones >= 51 {
        return (0, u64::MAX);
    }
    let size = 1u64 << (12 + ones + 1);
    let first = page & !(size - 1);
    (first, first | (size - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wide(q0: u64, q1: u64) -> Result<Descriptor, QueueError> {
        Descriptor::decode(&Config::full(), true, [q0, q1, 0, 0])
    }

    #[test]
    fn invalidations_decode_from_raw_words() {
        assert_eq!(
            wide(0x0001_0108_0000_0031, 0),
            Ok(Descriptor::Context(ContextScope::Device { requester: 0x108, mask: 4 }))
        );
        assert_eq!(
            wide(0x0000_0009_0005_0017, 0),
            Ok(Descriptor::Pasid(PasidScope::Pasid { domain: 5, pasid: 9 }))
        );
        let range = Range::pages(0x8000, 2);
        assert_eq!(
            wide(0x0005_00f2, 0x8042),
            Ok(Descriptor::Translation(TlbScope::Pages { domain: 5, range, leaf_only: true }))
        );
        assert_eq!(
            wide(0x0000_0009_0005_0036, 0x8002),
            Ok(Descriptor::Translation(TlbScope::PasidPages {
                domain: 5,
                pasid: 9,
                range,
                leaf_only: false
            }))
        );
        assert_eq!(
            wide(0xdead_beef_0000_0075, 0x1000),
            Ok(Descriptor::Wait(WaitRequest {
                interrupt: true,
                status: Some((0x1000, 0xdead_beef)),
                fence: true,
                drain: false
            }))
        );
        assert_eq!(
            wide(0x0000_0009_0108_1019, 0x7 << 3),
            Ok(Descriptor::PageGroupResponse {
                requester: 0x108,
                pasid: Some(9),
                group: 7,
                code: ResponseCode::InvalidRequest
            })
        );
    }

    #[test]
    fn device_ranges_follow_the_ats_encoding() {
        assert_eq!(device_range(0x5000, false), (0x5000, 0x5fff));
        assert_eq!(device_range(0x4000, true), (0x4000, 0x5fff));
        assert_eq!(device_range(0x5000, true), (0x4000, 0x7fff));
        assert_eq!(device_range(0x7fff_ffff_ffff_f000, true), (0, u64::MAX));
        let all = wide(0x0000_0009_0108_0008, 0x7fff_ffff_ffff_f801);
        assert_eq!(
            all,
            Ok(Descriptor::DeviceTlb {
                requester: 0x108,
                pasid: Some(9),
                global: true,
                first: 0,
                last: u64::MAX
            })
        );
    }

    #[test]
    fn bad_descriptors_name_their_error() {
        assert_eq!(wide(0, 0), Err(QueueError::Type));
        assert_eq!(wide(0x0a, 0), Err(QueueError::Type));
        assert_eq!(wide(0x201, 0), Err(QueueError::Type));
        assert_eq!(wide(0x02, 0), Err(QueueError::Reserved));
        assert_eq!(wide(0x0005_0012, 1 << 8), Err(QueueError::Reserved));
        // An address mask beyond MAMV (20), which is none of the first stage's business.
        assert_eq!(wide(0x0005_0032, 21), Err(QueueError::Reserved));
        assert!(wide(0x0005_0036, 21).is_ok() && wide(0x0005_0036, 52).is_ok());
        assert_eq!(wide(0x0005_0036, 53), Err(QueueError::Reserved));
        assert_eq!(wide(0x0000_2009, 0), Err(QueueError::Reserved));
        assert_eq!(wide(0x0000_0009, 1 << 2), Err(QueueError::Reserved));
        let no_throttle = Config::full().without(Feature::DeviceTlbThrottle);
        assert!(wide(0x0010_0108_0000_0003, 0).is_ok());
        let reserved = Descriptor::decode(&no_throttle, true, [0x0010_0108_0000_0003, 0, 0, 0]);
        assert_eq!(reserved, Err(QueueError::Reserved));
        let narrow = |q0| Descriptor::decode(&Config::full(), false, [q0, 0, 0, 0]);
        assert_eq!(narrow(0x37), Err(QueueError::Width));
        assert!(narrow(0x11).is_ok());
    }
}
