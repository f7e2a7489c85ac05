//! Extended capabilities: ATS (10.5.1), page requests (10.5.2), PASID (7.8.9), ACS (7.7.11), ARI (7.8.8) and
//! SR-IOV (9.3.3).

use bitfield_struct::bitfield;
use bitflags::bitflags;

/// The identifier of an extended capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedId(pub u16);

impl ExtendedId {
    /// Access control services.
    pub const ACS: Self = Self(0x0d);
    /// Alternative routing-ID interpretation.
    pub const ARI: Self = Self(0x0e);
    /// Address translation services.
    pub const ATS: Self = Self(0x0f);
    /// Single-root I/O virtualisation.
    pub const SRIOV: Self = Self(0x10);
    /// Page request interface.
    pub const PRI: Self = Self(0x13);
    /// Process address-space identifiers.
    pub const PASID: Self = Self(0x1b);
}

/// The first word of every extended capability.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ExtendedHeader {
    /// Bits 15:0: [`ExtendedId`].
    pub id: u16,
    /// Bits 19:16: version.
    #[bits(4)]
    pub version: u8,
    /// Bits 31:20: offset of the next one, 0 at the end; bits 1:0 are reserved.
    #[bits(12)]
    pub next: u16,
}

/// Offset, in an extended capability, of the word with capability in 15:0 and control in 31:16: ACS, ARI, ATS and
/// PASID have it.
pub const CONTROL_WORD: u16 = 0x04;

bitflags! {
    /// Access control services, as capability or control bits.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct AcsFlags: u8 {
        /// Source validation: the bus number of a request is that of the port.
        const SOURCE_VALIDATION = 1 << 0;
        /// Translation blocking: requests with a translated address are refused.
        const TRANSLATION_BLOCKING = 1 << 1;
        /// Peer-to-peer requests are redirected upstream.
        const REQUEST_REDIRECT = 1 << 2;
        /// Peer-to-peer completions are redirected upstream.
        const COMPLETION_REDIRECT = 1 << 3;
        /// What was redirected by a lower port is forwarded upstream.
        const UPSTREAM_FORWARDING = 1 << 4;
        /// Peer-to-peer egress control by vector.
        const EGRESS_CONTROL = 1 << 5;
        /// Translated peer-to-peer requests go straight to the peer.
        const DIRECT_TRANSLATED = 1 << 6;
    }
}

/// ACS capability and control.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct AcsRegister {
    /// Bits 6:0: the services the port has ([`AcsFlags`]).
    #[bits(7)]
    pub supported: u8,
    /// Bit 7: enhanced capability.
    pub enhanced: bool,
    /// Bits 15:8: size of the egress control vector.
    pub egress_vector: u8,
    /// Bits 22:16: the services that are on ([`AcsFlags`]).
    #[bits(7)]
    pub enabled: u8,
    /// Bits 31:23: controls of the enhanced capability.
    #[bits(9)]
    pub enhanced_control: u16,
}

/// ARI capability and control.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct AriRegister {
    #[bits(8)]
    __: u8,
    /// Bits 15:8: the next function of the device, 0 at the end.
    pub next_function: u8,
    /// Bits 31:16: control.
    pub control: u16,
}

/// ATS capability and control.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct AtsRegister {
    /// Bits 4:0: invalidations the function can queue; 0 means 32.
    #[bits(5)]
    pub queue_depth: u8,
    /// Bit 5: untranslated addresses are always aligned to 4 KiB.
    pub page_aligned: bool,
    /// Bit 6: invalidations may cover all PASIDs.
    pub global_invalidate: bool,
    /// Bit 7: translation requests may be relaxed-ordered.
    pub relaxed_ordering: bool,
    #[bits(8)]
    __: u8,
    /// Bits 20:16: smallest translation unit, log2 of its size in 4 KiB pages.
    #[bits(5)]
    pub stu: u8,
    #[bits(10)]
    __: u16,
    /// Bit 31: ATS is on.
    pub enable: bool,
}

bitflags! {
    /// What requests with a PASID may ask for.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PasidFeatures: u8 {
        /// Execute permission.
        const EXECUTE = 1 << 1;
        /// Privileged mode.
        const PRIVILEGED = 1 << 2;
    }
}

/// PASID capability and control.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct PasidRegister {
    /// Bits 2:0: features ([`PasidFeatures`]); bit 0 is reserved.
    #[bits(3)]
    pub supported: u8,
    #[bits(5)]
    __: u8,
    /// Bits 12:8: width of a PASID in bits.
    #[bits(5)]
    pub width: u8,
    #[bits(3)]
    __: u8,
    /// Bit 16: PASIDs are on.
    pub enable: bool,
    /// Bit 17: requests may ask for execute permission.
    pub execute: bool,
    /// Bit 18: requests may ask for privileged mode.
    pub privileged: bool,
    #[bits(13)]
    __: u16,
}

/// Word offsets inside the page-request capability.
pub mod pri {
    /// Control and status.
    pub const REGISTER: u16 = 0x04;
    /// How many requests the function can have outstanding.
    pub const CAPACITY: u16 = 0x08;
    /// How many it may have.
    pub const ALLOCATION: u16 = 0x0c;
}

/// Page-request control (15:0) and status.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct PriRegister {
    /// Bit 0: the function may make page requests.
    pub enable: bool,
    /// Bit 1: clears credits and pending state; only while disabled.
    pub reset: bool,
    #[bits(14)]
    __: u16,
    /// Bit 16: a response failed; write 1 to clear.
    pub response_failure: bool,
    /// Bit 17: a response named an unknown group; write 1 to clear.
    pub unexpected_group: bool,
    #[bits(6)]
    __: u8,
    /// Bit 24: no request is outstanding any more.
    pub stopped: bool,
    #[bits(6)]
    __: u8,
    /// Bit 31: responses to requests with a PASID carry it too.
    pub response_pasid: bool,
}

/// Word offsets inside the SR-IOV capability.
pub mod sriov {
    /// Control in 15:0, status in 31:16.
    pub const CONTROL: u16 = 0x08;
    /// Initial and total number of virtual functions.
    pub const VFS: u16 = 0x0c;
    /// Number of virtual functions that are on, in 15:0.
    pub const COUNT: u16 = 0x10;
    /// Offset of the first and stride between virtual functions.
    pub const PLACEMENT: u16 = 0x14;
}

/// SR-IOV control and status.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct SrIovControl {
    /// Bit 0: virtual functions are on.
    pub enable: bool,
    #[bits(31)]
    __: u32,
}

/// The virtual functions of a device.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct SrIovVfs {
    /// Bits 15:0: initially available.
    pub initial: u16,
    /// Bits 31:16: at most.
    pub total: u16,
}

/// Where virtual functions are among the requester ids.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct SrIovPlacement {
    /// Bits 15:0: from the physical function to the first virtual one.
    pub first_offset: u16,
    /// Bits 31:16: from one to the next.
    pub stride: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_words() {
        let header = ExtendedHeader::from_bits(0x1601_000d);
        assert_eq!((header.id(), header.version(), header.next()), (0x0d, 1, 0x160));

        // All services but egress control and direct translated; redirection and validation on.
        let acs = AcsRegister::from_bits(0x001d_001f);
        assert_eq!((acs.supported(), acs.enabled()), (0x1f, 0x1d));
        assert_eq!(
            AcsFlags::SOURCE_VALIDATION
                | AcsFlags::REQUEST_REDIRECT
                | AcsFlags::COMPLETION_REDIRECT
                | AcsFlags::UPSTREAM_FORWARDING,
            AcsFlags::from_bits_retain(0x1d)
        );
        assert_eq!(AriRegister::from_bits(0x0000_0500).next_function(), 5);

        // STU 0 and enable are bits 4:0 and 15 of the control half.
        assert_eq!(AtsRegister::new().with_enable(true).with_stu(9).into_bits(), 0x8009_0000);
        let ats = AtsRegister::from_bits(0x0000_0060);
        assert_eq!((ats.queue_depth(), ats.page_aligned(), ats.global_invalidate()), (0, true, true));

        let pasid = PasidRegister::from_bits(0x0000_1406);
        assert_eq!((pasid.width(), pasid.supported()), (20, 6));
        assert_eq!(PasidRegister::new().with_enable(true).with_execute(true).into_bits(), 0x0003_0000);

        let pri = PriRegister::from_bits(0x8100_0000);
        assert_eq!((pri.stopped(), pri.response_pasid()), (true, true));
        assert_eq!(
            PriRegister::new().with_response_failure(true).with_unexpected_group(true).into_bits(),
            0x0003_0000
        );

        let vfs = SrIovVfs::from_bits(0x0008_0007);
        assert_eq!((vfs.total(), vfs.initial()), (8, 7));
        let place = SrIovPlacement::from_bits(0x0002_0080);
        assert_eq!((place.first_offset(), place.stride()), (0x80, 2));
    }
}
