//! Golden words for page requests: raw values worked out from the architecture (Intel's VT-d specification), not from
//! the driver. Each word is built through the setters and decoded through the getters.
//!
//! | what | first source | second source |
//! |---|---|---|
//! | records and answers | QEMU `intel_iommu_internal.h` | Linux `prq.c`, `iommu.h` |
//! | registers | the datasheets of Intel's 12th-generation processors, volume 2 | QEMU, Linux |

use portcullis_hal::golden;
use portcullis_vtd::spec::descriptors::{Kind, Wait0};
use portcullis_vtd::spec::page_requests::*;
use portcullis_vtd::spec::registers as regs;

/// 7.4.1.1.
#[test]
fn a_record_says_who_asks_for_what() {
    golden!(PageRequest0, 0x0035_4321_0310_0101;
        kind with_kind 1; pp with_pp true; rid with_rid 0x310; pasid with_pasid 0x54321;
        execute with_execute true; privileged with_privileged true;
    );
    golden!(PageRequest0, 0x00f8_0001; kind with_kind PageRequest0::PAGE_REQUEST; rid with_rid 0xf8;);
    golden!(PageRequest0, 0x0010_0000_0000_0001; kind with_kind 1; execute with_execute true;);
    golden!(PageRequest1, 0x7fff_dead_baad;
        read with_read true; write with_write false; lpig with_lpig true; prgi with_prgi 0x155;
        addr with_addr 0x7_fffd_eadb;
    );
    golden!(PageRequest1, 0xffff_ffff_ffff_fffa;
        read with_read false; write with_write true; lpig with_lpig false; prgi with_prgi 0x1ff;
        addr with_addr 0xf_ffff_ffff_ffff;
    );
    assert_eq!(PAGE_REQUEST_BYTES, 32);
}

/// 7.7.1.
#[test]
fn an_answer_names_the_group_and_whoever_asked() {
    golden!(GroupResponse0, 0x0005_4321_0310_1019;
        kind with_kind Kind::GROUP_RESPONSE; pp with_pp true; code with_code ResponseCode::INVALID_REQUEST;
        rid with_rid 0x310; pasid with_pasid 0x54321;
    );
    golden!(GroupResponse0, 0x00f8_f009;
        kind with_kind Kind::GROUP_RESPONSE; code with_code ResponseCode::FAILURE; rid with_rid 0xf8;
    );
    golden!(GroupResponse0, 0x000f_ffff_0000_0019;
        kind with_kind Kind::GROUP_RESPONSE; pp with_pp true; code with_code ResponseCode::SUCCESS;
        pasid with_pasid 0xfffff;
    );
    golden!(GroupResponse1, 0xaa8; prgi with_prgi 0x155;);
    golden!(GroupResponse1, 0xff8; prgi with_prgi 0x1ff;);
}

/// 6.5.2.8.
#[test]
fn a_wait_may_drain_page_requests() {
    golden!(Wait0, 0x0000_0007_0000_00e5;
        kind with_kind Kind::WAIT; status_write with_status_write true; fence with_fence true;
        drain_page_requests with_drain_page_requests true; status_data with_status_data 7;
    );
}

/// 11.4.11.
#[test]
fn the_queue_has_its_registers() {
    golden!(PageQueueAddress, 0x1234_5678_9003; pqs with_pqs 3; pqa with_pqa 0x1_2345_6789;);
    golden!(PageRequestStatus, 1; ppr with_ppr true; pro with_pro false;);
    golden!(PageRequestStatus, 2; ppr with_ppr false; pro with_pro true;);
    let offsets = [regs::PQH, regs::PQT, regs::PQA, regs::PRS].map(|register| register.offset);
    assert_eq!(offsets, [0xc0, 0xc8, 0xd0, 0xdc]);
    let event = [regs::PECTL, regs::PEDATA, regs::PEADDR, regs::PEUADDR].map(|register| register.offset);
    assert_eq!(event, [0xe0, 0xe4, 0xe8, 0xec]);
}
