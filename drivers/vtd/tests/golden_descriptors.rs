//! Golden words for invalidation descriptors and fault reasons: raw values worked out from the architecture (Intel's
//! VT-d specification), not from the driver. Each word is built through the setters and decoded through the getters.
//! The words are the first two of a 256-bit descriptor; the last two are zero.
//!
//! | what | first source | second source |
//! |---|---|---|
//! | descriptors | VirtualBox `iommu-intel.h` | Linux `iommu.h` |
//! | numbers of the fault reasons | VirtualBox | Linux `dmar.c` |
//! | labels of the fault reasons | revision 5.10, 7.1.3 | VirtualBox (which writes SFL and SSL for SFS and SSS) |

use portcullis_hal::golden;
use portcullis_vtd::spec::descriptors::*;
use portcullis_vtd::spec::faults::FaultCode as Code;

/// 6.5.2.1.
#[test]
fn context_entries_are_invalidated_by_scope() {
    golden!(ContextCache0, 0x11; kind with_kind Kind::CONTEXT_CACHE; granularity with_granularity Granularity::GLOBAL;);
    golden!(ContextCache0, 0x1234_0021;
        kind with_kind Kind::CONTEXT_CACHE; granularity with_granularity Granularity::DOMAIN; did with_did 0x1234;
    );
    golden!(ContextCache0, 0x0003_0310_1234_0031;
        kind with_kind Kind::CONTEXT_CACHE; granularity with_granularity Granularity::DEVICE; did with_did 0x1234;
        sid with_sid 0x310; fm with_fm 0b11;
    );
}

/// 6.5.2.3: with both drains; 2^9 pages, leaves only.
#[test]
fn the_iotlb_is_invalidated_by_scope() {
    golden!(Iotlb0, 0xd2;
        kind with_kind Kind::IOTLB; granularity with_granularity Granularity::GLOBAL;
        drain_writes with_drain_writes true; drain_reads with_drain_reads true;
    );
    golden!(Iotlb0, 0x1234_00e2;
        kind with_kind Kind::IOTLB; granularity with_granularity Granularity::DOMAIN;
        drain_writes with_drain_writes true; drain_reads with_drain_reads true; did with_did 0x1234;
    );
    golden!(Iotlb0, 0x1234_00f2;
        kind with_kind Kind::IOTLB; granularity with_granularity Granularity::PAGES;
        drain_writes with_drain_writes true; drain_reads with_drain_reads true; did with_did 0x1234;
    );
    golden!(Iotlb0, 0xffff_0072;
        kind with_kind Kind::IOTLB; granularity with_granularity Granularity::PAGES;
        drain_writes with_drain_writes true; drain_reads with_drain_reads false; did with_did 0xffff;
    );
    golden!(Pages, 0x0000_7fff_dea0_0049; am with_am 9; ih with_ih true; addr with_addr 0x7_fffd_ea00;);
    golden!(Pages, 0xffff_ffff_ffff_f03f; am with_am 63; ih with_ih false; addr with_addr 0xf_ffff_ffff_ffff;);
}

/// 6.5.2.2.
#[test]
fn pasid_entries_are_invalidated_by_scope() {
    golden!(Pasid0, 0x1234_0007;
        kind with_kind Kind::PASID_CACHE; granularity with_granularity Granularity::PASID_CACHE_DOMAIN;
        did with_did 0x1234;
    );
    golden!(Pasid0, 0x0005_4321_1234_0017;
        kind with_kind Kind::PASID_CACHE; granularity with_granularity Granularity::PASID_CACHE_PASID;
        did with_did 0x1234; pasid with_pasid 0x54321;
    );
    golden!(Pasid0, 0x37;
        kind with_kind Kind::PASID_CACHE; granularity with_granularity Granularity::PASID_CACHE_GLOBAL;
    );
}

/// 6.5.2.4.
#[test]
fn the_iotlb_is_invalidated_by_pasid() {
    golden!(Pasid0, 0x0005_4321_1234_0026;
        kind with_kind Kind::PASID_IOTLB; granularity with_granularity Granularity::PASID_ALL; did with_did 0x1234;
        pasid with_pasid 0x54321;
    );
    golden!(Pasid0, 0x000f_ffff_1234_0036;
        kind with_kind Kind::PASID_IOTLB; granularity with_granularity Granularity::PASID_PAGES; did with_did 0x1234;
        pasid with_pasid 0xfffff;
    );
}

/// 6.5.2.5 and 6.5.2.6: 31 pending, physical function 0x4567, 256 pages; all pages of all PASIDs.
#[test]
fn device_tlbs_are_invalidated_with_and_without_pasid() {
    golden!(DeviceTlb0, 0x4560_0310_001f_7003;
        kind with_kind Kind::DEVICE_TLB; pfsid_lo with_pfsid_lo 7; mip with_mip 31; sid with_sid 0x310;
        pfsid_hi with_pfsid_hi 0x456;
    );
    golden!(DeviceTlb1, 0x7fff_dea7_f001; s with_s true; addr with_addr 0x7_fffd_ea7f;);
    golden!(PasidDeviceTlb0, 0x4565_4321_0310_71f8;
        kind with_kind Kind::PASID_DEVICE_TLB; mip with_mip 31; pfsid_lo with_pfsid_lo 7; sid with_sid 0x310;
        pasid with_pasid 0x5_4321; pfsid_hi with_pfsid_hi 0x456;
    );
    golden!(PasidDeviceTlb1, 0x7fff_ffff_ffff_f801;
        g with_g true; s with_s true; addr with_addr 0x7_ffff_ffff_ffff;
    );
}

/// 6.5.2.8.
#[test]
fn a_wait_writes_or_interrupts_or_fences() {
    golden!(Wait0, 0xcafe_f00d_0000_0065;
        kind with_kind Kind::WAIT; status_write with_status_write true; fence with_fence true;
        status_data with_status_data 0xcafe_f00d;
    );
    golden!(Wait1, 0x0000_0001_7777_7044; status_address with_status_address 0x1_7777_7044 >> 2;);
    golden!(Wait0, 0x15; kind with_kind Kind::WAIT; interrupt with_interrupt true;);
    golden!(Wait0, 0xa5;
        kind with_kind Kind::WAIT; status_write with_status_write true;
        drain_page_requests with_drain_page_requests true;
    );
}

/// 7.1.3 and, for interrupts, 5.1.4.1. A code that several conditions share, as 43h, has their common label. 82h is
/// gone in revision 5.10: its label is VirtualBox's.
const REASONS: [(Code, u8, &str); 69] = [
    (Code::ROOT_NOT_PRESENT, 0x01, "LRT.2"),
    (Code::CONTEXT_NOT_PRESENT, 0x02, "LCT.2"),
    (Code::CONTEXT_INVALID, 0x03, "LCT.4"),
    (Code::ADDRESS_BEYOND_WIDTH, 0x04, "LGN.1"),
    (Code::NO_WRITE, 0x05, "LGN.2"),
    (Code::NO_READ, 0x06, "LGN.3"),
    (Code::TABLE_ACCESS, 0x07, "LSS.1"),
    (Code::ROOT_ACCESS, 0x08, "LRT.1"),
    (Code::CONTEXT_ACCESS, 0x09, "LCT.1"),
    (Code::ROOT_RESERVED, 0x0a, "LRT.3"),
    (Code::CONTEXT_RESERVED, 0x0b, "LCT.3"),
    (Code::TABLE_RESERVED, 0x0c, "LSS.2"),
    (Code::TRANSLATION_BLOCKED, 0x0d, "LCT.5"),
    (Code::OUTPUT_INTERRUPT, 0x0e, "LGN.4"),
    (Code::INTERRUPT_RESERVED, 0x20, "interrupt 20h"),
    (Code::INTERRUPT_INDEX, 0x21, "interrupt 21h"),
    (Code::INTERRUPT_NOT_PRESENT, 0x22, "interrupt 22h"),
    (Code::INTERRUPT_ACCESS, 0x23, "interrupt 23h"),
    (Code::INTERRUPT_ENTRY_RESERVED, 0x24, "interrupt 24h"),
    (Code::INTERRUPT_COMPATIBILITY, 0x25, "interrupt 25h"),
    (Code::INTERRUPT_SOURCE, 0x26, "interrupt 26h"),
    (Code::SM_ROOT_ADDRESS, 0x30, "RTA.1"),
    (Code::SM_MODE_PASID, 0x31, "RTA.2"),
    (Code::SM_MODE_PAGE_REQUEST, 0x32, "RTA.3"),
    (Code::SM_ROOT_ACCESS, 0x38, "SRT.1"),
    (Code::SM_ROOT_NOT_PRESENT, 0x39, "SRT.2"),
    (Code::SM_ROOT_RESERVED, 0x3a, "SRT.3"),
    (Code::SM_CONTEXT_ACCESS, 0x40, "SCT.1"),
    (Code::SM_CONTEXT_NOT_PRESENT, 0x41, "SCT.2"),
    (Code::SM_CONTEXT_RESERVED, 0x42, "SCT.3"),
    (Code::SM_CONTEXT_INVALID, 0x43, "SCT.4"),
    (Code::SM_NO_DEVICE_TLB, 0x44, "SCT.5"),
    (Code::SM_NO_PASID, 0x45, "SCT.6"),
    (Code::SM_PASID_BEYOND, 0x46, "SCT.7"),
    (Code::SM_NO_PAGE_REQUEST, 0x47, "SCT.8"),
    // A request whose PASID is the one that RID_PASID names.
    (Code::SM_PASID_IS_RID_PASID, 0x48, "SCT.9"),
    (Code::SM_DIRECTORY_ACCESS, 0x50, "SPD.1"),
    (Code::SM_DIRECTORY_NOT_PRESENT, 0x51, "SPD.2"),
    (Code::SM_DIRECTORY_RESERVED, 0x52, "SPD.3"),
    (Code::SM_PASID_ACCESS, 0x58, "SPT.1"),
    (Code::SM_PASID_NOT_PRESENT, 0x59, "SPT.2"),
    (Code::SM_PASID_RESERVED, 0x5a, "SPT.3"),
    (Code::SM_PASID_INVALID, 0x5b, "SPT.4"),
    (Code::SM_NO_EXECUTE_REQUESTS, 0x5c, "SPT.5"),
    (Code::SM_NO_PRIVILEGED_REQUESTS, 0x5d, "SPT.6"),
    (Code::SM_FIRST_ACCESS, 0x70, "SFS.1"),
    (Code::SM_FIRST_NOT_PRESENT, 0x71, "SFS.2"),
    (Code::SM_FIRST_RESERVED, 0x72, "SFS.3"),
    (Code::SM_FIRST_ROOT_ACCESS, 0x73, "SFS.4"),
    (Code::SM_NESTED_BEYOND, 0x74, "SFS.5"),
    (Code::SM_NESTED_ROOT_READ, 0x75, "SFS.6"),
    (Code::SM_NESTED_READ, 0x76, "SFS.7"),
    (Code::SM_NESTED_WRITE, 0x77, "SFS.8"),
    (Code::SM_SECOND_ACCESS, 0x78, "SSS.1"),
    (Code::SM_SECOND_PERMISSION, 0x79, "SSS.2"),
    (Code::SM_SECOND_RESERVED, 0x7a, "SSS.3"),
    (Code::SM_SECOND_ROOT_ACCESS, 0x7b, "SSS.4"),
    (Code::SM_SECOND_UPDATE_NO_SNOOP, 0x7c, "SSS.5"),
    (Code::SM_SECOND_UPDATE, 0x7d, "SSS.6"),
    (Code::SM_NOT_CANONICAL, 0x80, "SGN.1"),
    (Code::SM_USER, 0x81, "SGN.2"),
    (Code::SM_NO_EXECUTE, 0x82, "SGN.3"),
    (Code::SM_ADDRESS_BEYOND_UNIT, 0x83, "SGN.4"),
    (Code::SM_ADDRESS_BEYOND_WIDTH, 0x84, "SGN.5"),
    (Code::SM_NO_WRITE, 0x85, "SGN.6"),
    (Code::SM_NO_READ, 0x86, "SGN.7"),
    (Code::SM_OUTPUT_INTERRUPT, 0x87, "SGN.8"),
    (Code::SM_FIRST_UPDATE_NO_SNOOP, 0x90, "SFS.9"),
    (Code::SM_FIRST_UPDATE, 0x91, "SFS.10"),
];

#[test]
fn fault_reasons_have_their_numbers() {
    for (code, number, label) in REASONS {
        assert_eq!(code.0, number, "{label}");
    }
}

#[test]
fn fault_reasons_have_the_labels_of_the_manual() {
    let wrong: Vec<_> = REASONS.iter().filter(|(code, _, label)| code.name() != *label).collect();
    let wrong: Vec<_> = wrong.iter().map(|(code, number, label)| (number, code.name(), *label)).collect();
    assert!(wrong.is_empty(), "(code, label in the driver, label in the manual): {wrong:x?}");
}
