//! Event records in the common layer's terms.

use crate::spec::event::{EVENT_WORDS, Event0, Event1, EventId};
use portcullis_hal::{Access, EndpointId, Iova, Pasid};
use portcullis_iommu::{FaultReason, FaultRecord, Stage};

/// Which fields of a record are valid, by its kind (IHI 0070, 7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    name: &'static str,
    reason: FaultReason,
    substream: Substream,
    /// Word 2 holds the input address.
    address: bool,
    direction: Direction,
    /// S2 tells the stage.
    stage: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Substream {
    None,
    /// Valid if SSV says so.
    Flagged,
    Always,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    None,
    /// RnW.
    ReadWrite,
    /// RnW and InD.
    WithFetches,
}

impl Kind {
    const fn configuration(name: &'static str, reason: FaultReason) -> Self {
        Self {
            name,
            reason,
            substream: Substream::Flagged,
            address: false,
            direction: Direction::None,
            stage: false,
        }
    }

    const fn transaction(name: &'static str, reason: FaultReason) -> Self {
        Self { address: true, direction: Direction::WithFetches, ..Self::configuration(name, reason) }
    }

    const fn translation(name: &'static str, reason: FaultReason) -> Self {
        Self { stage: true, ..Self::transaction(name, reason) }
    }

    fn of(id: EventId) -> Self {
        use FaultReason as Reason;
        match id {
            EventId::F_UUT => Self::transaction("F_UUT", Reason::Other),
            EventId::C_BAD_STREAMID => Self::configuration("C_BAD_STREAMID", Reason::Unattached),
            EventId::F_STE_FETCH => Self::configuration("F_STE_FETCH", Reason::TableUnreadable),
            // The driver writes no illegal entry, so an entry that is refused is an invalid one.
            EventId::C_BAD_STE => Self::configuration("C_BAD_STE", Reason::Unattached),
            EventId::F_BAD_ATS_TREQ => {
                Self { direction: Direction::None, ..Self::transaction("F_BAD_ATS_TREQ", Reason::Other) }
            }
            EventId::F_STREAM_DISABLED => Self {
                substream: Substream::None,
                ..Self::configuration("F_STREAM_DISABLED", Reason::Blocked)
            },
            EventId::F_TRANSL_FORBIDDEN => Self {
                direction: Direction::ReadWrite,
                ..Self::transaction("F_TRANSL_FORBIDDEN", Reason::Other)
            },
            EventId::C_BAD_SUBSTREAMID => Self {
                substream: Substream::Always,
                ..Self::configuration("C_BAD_SUBSTREAMID", Reason::Unattached)
            },
            EventId::F_CD_FETCH => Self::configuration("F_CD_FETCH", Reason::TableUnreadable),
            EventId::C_BAD_CD => Self::configuration("C_BAD_CD", Reason::BadEntry),
            EventId::F_WALK_EABT => Self::translation("F_WALK_EABT", Reason::TableUnreadable),
            EventId::F_TRANSLATION => Self::translation("F_TRANSLATION", Reason::NotMapped),
            EventId::F_ADDR_SIZE => Self::translation("F_ADDR_SIZE", Reason::BadOutput),
            EventId::F_ACCESS => Self::translation("F_ACCESS", Reason::AccessFlag),
            EventId::F_PERMISSION => Self::translation("F_PERMISSION", Reason::Permission),
            EventId::F_TLB_CONFLICT => Self::translation("F_TLB_CONFLICT", Reason::Other),
            EventId::F_CFG_CONFLICT => Self::configuration("F_CFG_CONFLICT", Reason::Other),
            EventId::E_PAGE_REQUEST => {
                Self { direction: Direction::None, ..Self::transaction("E_PAGE_REQUEST", Reason::Other) }
            }
            EventId::F_VMS_FETCH => Self::configuration("F_VMS_FETCH", Reason::TableUnreadable),
            _ => Self { substream: Substream::None, ..Self::configuration("unknown event", Reason::Other) },
        }
    }
}

/// Decodes a record.
pub fn decode(raw: [u64; EVENT_WORDS]) -> FaultRecord {
    let [word0, word1, address, _] = raw;
    let (word0, word1) = (Event0::from(word0), Event1::from(word1));
    let kind = Kind::of(word0.id());
    let substream = match kind.substream {
        Substream::None => None,
        Substream::Flagged => word0.ssv().then_some(word0.ssid()),
        Substream::Always => Some(word0.ssid()),
    };
    let read_or_write = if word1.rnw() { Access::READ } else { Access::WRITE };
    let access = match kind.direction {
        Direction::None => None,
        Direction::ReadWrite => Some(read_or_write),
        Direction::WithFetches if word1.ind() => Some(Access::EXECUTE),
        Direction::WithFetches => Some(read_or_write),
    };
    let stage = kind.stage.then_some(if word1.s2() { Stage::Stage2 } else { Stage::Stage1 });
    FaultRecord {
        endpoint: EndpointId::new(word0.sid()),
        pasid: substream.and_then(|substream| Pasid::new(substream).ok()),
        address: kind.address.then_some(Iova::new(address)),
        access,
        stage,
        reason: kind.reason,
        code: u16::from(word0.id().into_bits()),
        name: kind.name,
        raw,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SID: u64 = 0x18 << 32;
    const SSV: u64 = 1 << 11;
    const SSID: u64 = 0x345 << 12;
    const READ: u64 = 1 << 35;
    const FETCH: u64 = 1 << 34;
    const STAGE_2: u64 = 1 << 39;
    const ADDRESS: u64 = 0x0000_0010_dead_b000;

    /// Every kind of the architecture: code, name, reason, and whether address, direction, stage and flagged substream
    /// are told.
    const KINDS: [(u64, &str, FaultReason, [bool; 4]); 19] = {
        use FaultReason::*;
        [
            (0x01, "F_UUT", Other, [true, true, false, true]),
            (0x02, "C_BAD_STREAMID", Unattached, [false, false, false, true]),
            (0x03, "F_STE_FETCH", TableUnreadable, [false, false, false, true]),
            (0x04, "C_BAD_STE", Unattached, [false, false, false, true]),
            (0x05, "F_BAD_ATS_TREQ", Other, [true, false, false, true]),
            (0x06, "F_STREAM_DISABLED", Blocked, [false, false, false, false]),
            (0x07, "F_TRANSL_FORBIDDEN", Other, [true, true, false, true]),
            (0x08, "C_BAD_SUBSTREAMID", Unattached, [false, false, false, true]),
            (0x09, "F_CD_FETCH", TableUnreadable, [false, false, false, true]),
            (0x0a, "C_BAD_CD", BadEntry, [false, false, false, true]),
            (0x0b, "F_WALK_EABT", TableUnreadable, [true, true, true, true]),
            (0x10, "F_TRANSLATION", NotMapped, [true, true, true, true]),
            (0x11, "F_ADDR_SIZE", BadOutput, [true, true, true, true]),
            (0x12, "F_ACCESS", AccessFlag, [true, true, true, true]),
            (0x13, "F_PERMISSION", Permission, [true, true, true, true]),
            (0x20, "F_TLB_CONFLICT", Other, [true, true, true, true]),
            (0x21, "F_CFG_CONFLICT", Other, [false, false, false, true]),
            (0x24, "E_PAGE_REQUEST", Other, [true, false, false, true]),
            (0x25, "F_VMS_FETCH", TableUnreadable, [false, false, false, true]),
        ]
    };

    #[test]
    fn every_kind_tells_just_the_fields_that_are_valid_for_it() {
        for (code, name, reason, [address, direction, stage, substream]) in KINDS {
            let raw = [SID | SSID | SSV | code, READ | STAGE_2, ADDRESS, 0x77];
            let record = decode(raw);
            assert_eq!((record.code, record.name, record.reason), (code as u16, name, reason));
            assert_eq!(record.endpoint, EndpointId::new(0x18));
            assert_eq!(record.address, address.then_some(Iova::new(ADDRESS)), "{name}");
            assert_eq!(record.access, direction.then_some(Access::READ), "{name}");
            assert_eq!(record.stage, stage.then_some(Stage::Stage2), "{name}");
            assert_eq!(record.pasid.map(Pasid::get), substream.then_some(0x345), "{name}");
            assert_eq!(record.raw, raw);
        }
    }

    #[test]
    fn all_other_codes_are_reported_with_their_number() {
        let known: Vec<u64> = KINDS.iter().map(|kind| kind.0).collect();
        for code in (0..256).filter(|code| !known.contains(code)) {
            let record = decode([SID | code, u64::MAX, ADDRESS, 0]);
            assert_eq!((record.code, record.reason), (code as u16, FaultReason::Other));
            assert_eq!((record.address, record.access, record.stage, record.pasid), (None, None, None, None));
        }
    }

    #[test]
    fn directions_and_stages_are_told_apart() {
        let record = |word1| decode([SID | 0x13, word1, ADDRESS, 0]);
        assert_eq!(record(0).access, Some(Access::WRITE));
        assert_eq!(record(READ).access, Some(Access::READ));
        assert_eq!(record(FETCH | READ).access, Some(Access::EXECUTE));
        assert_eq!(record(0).stage, Some(Stage::Stage1));
        // An SMMU_F_TRANSL_FORBIDDEN has no InD.
        assert_eq!(decode([SID | 0x07, FETCH, ADDRESS, 0]).access, Some(Access::WRITE));
    }

    #[test]
    fn a_substream_counts_only_when_it_is_flagged_or_always_there() {
        assert_eq!(decode([SID | SSID | 0x10, 0, 0, 0]).pasid, None);
        assert_eq!(decode([SID | SSID | 0x08, 0, 0, 0]).pasid.map(Pasid::get), Some(0x345));
        assert_eq!(decode([SID | SSV | 0x10, 0, 0, 0]).pasid, None, "substream 0 is no PASID");
    }
}
