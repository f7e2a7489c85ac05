//! Golden words for commands and events: raw values worked out from the architecture (Arm IHI 0070), not from the
//! driver. Each is built through the setters and decoded through the getters; what the driver offers as whole commands
//! and as decoded faults is compared as well.
//!
//! | what | first source | second source |
//! |---|---|---|
//! | CFGI, TLBI | Linux `arm-smmu-v3.h` | QEMU `smmuv3-internal.h` |
//! | NUM, SCALE, TG, TTL | IHI 0070, 4.4.1.1 | QEMU |
//! | CFGI_ALL | IHI 0070, 4.3.6 | Linux |
//! | CMD_SYNC | Linux | FreeBSD `smmureg.h` |
//! | event kinds and fields | Linux | QEMU; meanings: IHI 0070, 7.3 |
//! | E_PAGE_REQUEST, conflicts | IHI 0070, 7.3 | QEMU |

use portcullis_hal::{Access, Asid, EndpointId, Granule, Iova, StreamId, Vmid, golden};
use portcullis_iommu::{FaultReason, Stage};
use portcullis_smmuv3::command::{Command, Scope, Span, Tag};
use portcullis_smmuv3::fault;
use portcullis_smmuv3::spec::cmd::*;
use portcullis_smmuv3::spec::event::*;

const VA: u64 = 0x0000_7fff_dead_b000;
const IPA: u64 = 0x0000_0008_1234_5000;

/// 4.3.1, 4.3.4.
#[test]
fn configuration_of_a_stream_is_invalidated() {
    golden!(Cfgi0, 0x0000_0abc_0000_0003; opcode with_opcode Opcode::CFGI_STE; sid with_sid 0xabc;);
    golden!(Cfgi0, 0xffff_ffff_0000_0003; opcode with_opcode Opcode::CFGI_STE; sid with_sid 0xffff_ffff;);
    golden!(Cfgi1, 0x1; leaf_or_range with_leaf_or_range 1;);
    golden!(Cfgi0, 0x0000_0abc_0000_0006; opcode with_opcode Opcode::CFGI_CD_ALL; sid with_sid 0xabc;);
    assert_eq!(Command::cfgi_ste(StreamId::new(0xabc)).0, [0x0000_0abc_0000_0003, 0]);
    assert_eq!(Command::cfgi_cd_all(StreamId::new(0xabc)).0, [0x0000_0abc_0000_0006, 0]);
}

/// 4.3.2, 4.3.6: 2^(7 + 1) streams; range 31 is everything.
#[test]
fn configuration_of_many_streams_is_invalidated() {
    golden!(Cfgi0, 0x0000_0100_0000_0004; opcode with_opcode Opcode::CFGI_STE_RANGE; sid with_sid 0x100;);
    golden!(Cfgi1, 0x07; leaf_or_range with_leaf_or_range 7;);
    golden!(Cfgi1, 0x1f; leaf_or_range with_leaf_or_range 31;);
    assert_eq!(Command::cfgi_all().0, [0x0000_0000_0000_0004, 0x1f]);
}

/// 4.3.3; SSec is bit 10.
#[test]
fn one_context_descriptor_is_invalidated() {
    golden!(Cfgi0, 0x0000_0abc_5432_1005;
        opcode with_opcode Opcode::CFGI_CD; ssid with_ssid 0x54321; sid with_sid 0xabc;
    );
    golden!(Cfgi0, 0x0000_0000_ffff_f405;
        opcode with_opcode Opcode::CFGI_CD; ssec with_ssec true; ssid with_ssid 0xfffff;
    );
}

/// 4.4.2, without range fields.
#[test]
fn one_address_of_stage_1_is_invalidated() {
    golden!(Tlbi0, 0x0345_0012_0000_0012;
        opcode with_opcode Opcode::TLBI_NH_VA; vmid with_vmid 0x12; asid with_asid 0x345;
    );
    golden!(Tlbi1, VA | 1; leaf with_leaf true; addr with_addr VA >> 12; tg with_tg CommandGranule::NONE;);
    golden!(Tlbi1, 0xffff_ffff_ffff_f000; leaf with_leaf false; addr with_addr 0xf_ffff_ffff_ffff;);
    let asid = Tag::Asid(Asid::new(0x345));
    let leaf = Command::tlbi_span(asid, Span::Address(VA), Scope::Leaf);
    assert_eq!(leaf.0, [0x0345_0000_0000_0012, 0x0000_7fff_dead_b001]);
    let walk = Command::tlbi_span(asid, Span::Address(VA), Scope::Walk);
    assert_eq!(walk.0, [0x0345_0000_0000_0012, 0x0000_7fff_dead_b000]);
}

/// 4.4.1.1, 4.4.2.
#[test]
fn a_range_of_stage_1_is_invalidated() {
    golden!(Tlbi0, 0x0345_0012_0031_f012;
        opcode with_opcode Opcode::TLBI_NH_VA; num with_num 31; scale with_scale 3; vmid with_vmid 0x12;
        asid with_asid 0x345;
    );
    golden!(Tlbi1, 0x0000_7fff_dead_b701;
        leaf with_leaf true; ttl with_ttl 3; tg with_tg CommandGranule::SIZE_4K; addr with_addr VA >> 12;
    );
    golden!(Tlbi1, 0x0a00; ttl with_ttl 2; tg with_tg CommandGranule::SIZE_16K;);
    golden!(Tlbi1, 0x0d00; ttl with_ttl 1; tg with_tg CommandGranule::SIZE_64K;);
    for (granule, second) in [(Granule::Size4K, 0x401), (Granule::Size16K, 0x801), (Granule::Size64K, 0xc01)]
    {
        let span = Span::Granules { start: 0x0000_7fff_dea0_0000, granule, num: 31, scale: 3, level: None };
        let command = Command::tlbi_span(Tag::Asid(Asid::new(0x345)), span, Scope::Leaf);
        assert_eq!(command.0, [0x0345_0000_0031_f012, 0x0000_7fff_dea0_0000 | second]);
    }
}

/// 4.4.3.
#[test]
fn stage_2_is_invalidated_by_address_and_by_range() {
    golden!(Tlbi0, 0x0000_1234_0000_002a; opcode with_opcode Opcode::TLBI_S2_IPA; vmid with_vmid 0x1234;);
    golden!(Tlbi1, 0x0000_0008_1234_5001; leaf with_leaf true; addr with_addr IPA >> 12;);
    golden!(Tlbi0, 0x0000_1234_00a0_702a;
        opcode with_opcode Opcode::TLBI_S2_IPA; num with_num 7; scale with_scale 10; vmid with_vmid 0x1234;
    );
    golden!(Tlbi1, 0x0000_0008_1234_5601;
        leaf with_leaf true; ttl with_ttl 2; tg with_tg CommandGranule::SIZE_4K; addr with_addr IPA >> 12;
    );
    let vmid = Tag::Vmid(Vmid::new(0x1234));
    let one = Command::tlbi_span(vmid, Span::Address(IPA), Scope::Leaf);
    assert_eq!(one.0, [0x0000_1234_0000_002a, 0x0000_0008_1234_5001]);
    let span = Span::Granules { start: IPA, granule: Granule::Size4K, num: 7, scale: 10, level: None };
    let range = Command::tlbi_span(vmid, span, Scope::Walk);
    assert_eq!(range.0, [0x0000_1234_00a0_702a, 0x0000_0008_1234_5400]);
}

/// 4.4.2 to 4.4.4.
#[test]
fn whole_address_spaces_are_invalidated() {
    golden!(Tlbi0, 0x0345_0012_0000_0011;
        opcode with_opcode Opcode::TLBI_NH_ASID; vmid with_vmid 0x12; asid with_asid 0x345;
    );
    golden!(Tlbi0, 0x0000_0012_0000_0010; opcode with_opcode Opcode::TLBI_NH_ALL; vmid with_vmid 0x12;);
    golden!(Tlbi0, 0x0000_1234_0000_0028; opcode with_opcode Opcode::TLBI_S12_VMALL; vmid with_vmid 0x1234;);
    golden!(Tlbi0, 0x30; opcode with_opcode Opcode::TLBI_NSNH_ALL;);
    golden!(Tlbi0, 0x20; opcode with_opcode Opcode::TLBI_EL2_ALL;);
    assert_eq!(Command::tlbi_tag(Tag::Asid(Asid::new(0x345))).0, [0x0345_0000_0000_0011, 0]);
    assert_eq!(Command::tlbi_tag(Tag::Vmid(Vmid::new(0x1234))).0, [0x0000_1234_0000_0028, 0]);
    assert_eq!(Command::tlbi_nsnh_all().0, [0x30, 0]);
    assert_eq!(Command::tlbi_el2_all().0, [0x20, 0]);
}

/// 4.7.3; the second is a write of 0xcafe, inner shareable, write-back.
#[test]
fn a_sync_signals_as_it_is_told() {
    golden!(Sync0, 0x46; opcode with_opcode Opcode::SYNC; cs with_cs CompletionSignal::NONE;);
    golden!(Sync0, 0x0000_cafe_0fc0_1046;
        opcode with_opcode Opcode::SYNC; cs with_cs CompletionSignal::IRQ; msh with_msh 0b11;
        msiattr with_msiattr 0xf; msidata with_msidata 0xcafe;
    );
    golden!(Sync0, 0x2046; opcode with_opcode Opcode::SYNC; cs with_cs CompletionSignal::SEV;);
    assert_eq!(Command::sync().0, [0x46, 0]);
    assert_eq!(COMMAND_WORDS, 2);
}

/// 7.3: the numbers of all kinds.
#[test]
fn event_kinds_have_their_numbers() {
    let kinds = [
        (EventId::F_UUT, 0x01),
        (EventId::C_BAD_STREAMID, 0x02),
        (EventId::F_STE_FETCH, 0x03),
        (EventId::C_BAD_STE, 0x04),
        (EventId::F_BAD_ATS_TREQ, 0x05),
        (EventId::F_STREAM_DISABLED, 0x06),
        (EventId::F_TRANSL_FORBIDDEN, 0x07),
        (EventId::C_BAD_SUBSTREAMID, 0x08),
        (EventId::F_CD_FETCH, 0x09),
        (EventId::C_BAD_CD, 0x0a),
        (EventId::F_WALK_EABT, 0x0b),
        (EventId::F_TRANSLATION, 0x10),
        (EventId::F_ADDR_SIZE, 0x11),
        (EventId::F_ACCESS, 0x12),
        (EventId::F_PERMISSION, 0x13),
        (EventId::F_TLB_CONFLICT, 0x20),
        (EventId::F_CFG_CONFLICT, 0x21),
        (EventId::E_PAGE_REQUEST, 0x24),
    ];
    for (kind, number) in kinds {
        assert_eq!(kind.into_bits(), number, "{kind:?}");
    }
    assert_eq!(EVENT_WORDS, 4);
}

/// 7.3.3: an unknown stream, with a SubstreamID.
#[test]
fn c_bad_streamid_names_stream_and_substream() {
    golden!(Event0, 0x0000_0abc_5432_1802;
        id with_id EventId::C_BAD_STREAMID; ssv with_ssv true; ssid with_ssid 0x54321; sid with_sid 0xabc;
    );
    let record = fault::decode([0x0000_0abc_5432_1802, 0, 0, 0]);
    assert_eq!(record.endpoint, EndpointId::new(0xabc));
    assert_eq!(record.pasid.map(|pasid| pasid.get()), Some(0x54321));
    assert_eq!((record.code, record.name, record.reason), (0x02, "C_BAD_STREAMID", FaultReason::Unattached));
    assert_eq!((record.address, record.access, record.stage), (None, None, None));
}

/// 7.3.5.
#[test]
fn c_bad_ste_names_the_stream() {
    golden!(Event0, 0x0000_0abc_0000_0004; id with_id EventId::C_BAD_STE; sid with_sid 0xabc;);
    let record = fault::decode([0x0000_0abc_0000_0004, 0, 0, 0]);
    assert_eq!((record.endpoint, record.pasid), (EndpointId::new(0xabc), None));
    assert_eq!((record.code, record.name), (0x04, "C_BAD_STE"));
}

/// 7.3.13: every field set; and a write of user data that stage 1 refused (S2 = 0, CLASS = IN).
#[test]
fn f_translation_tells_all_of_the_access() {
    golden!(Event0, 0x0000_0abc_5432_1810;
        id with_id EventId::F_TRANSLATION; ssv with_ssv true; ssid with_ssid 0x54321; sid with_sid 0xabc;
    );
    golden!(Event1, 0x0000_028e_8000_00ee;
        stag with_stag 0xee; stall with_stall true; pnu with_pnu true; ind with_ind true; rnw with_rnw true;
        s2 with_s2 true; class with_class FaultClass::IN;
    );
    golden!(Event1, 0x0000_0200_0000_0000; rnw with_rnw false; s2 with_s2 false; class with_class FaultClass::IN;);
    let address = 0xffff_8000_dead_b123;
    let record = fault::decode([0x0000_0abc_5432_1810, 0x0000_028e_8000_00ee, address, IPA]);
    assert_eq!(record.access, Some(Access::EXECUTE));
    assert_eq!((record.address, record.stage), (Some(Iova::new(address)), Some(Stage::Stage2)));
    assert_eq!((record.code, record.name, record.reason), (0x10, "F_TRANSLATION", FaultReason::NotMapped));
    let record = fault::decode([0x0000_0abc_0000_0010, 0x0000_0200_0000_0000, address, 0]);
    assert_eq!((record.access, record.stage, record.pasid), (Some(Access::WRITE), Some(Stage::Stage1), None));
}

/// 7.3.16: stage 2 refused the read of a stage-1 table (CLASS = TT, TTRnW, bit 108, set).
#[test]
fn f_permission_of_a_table_walk_is_stage_2s() {
    golden!(Event0, 0x0000_0abc_0000_0013; id with_id EventId::F_PERMISSION; sid with_sid 0xabc;);
    golden!(Event1, 0x0000_0188_0000_0000;
        rnw with_rnw true; s2 with_s2 true; class with_class FaultClass::TT;
    );
    let walk = Event1::from_bits(0x0000_1188_0000_0000);
    assert!(walk.rnw() && walk.s2() && !walk.pnu() && !walk.ind() && !walk.stall());
    assert_eq!(walk.class(), FaultClass::TT);
    assert_eq!(Event1::from_bits(0x80_0000_0000).class(), FaultClass::CD);
    let record = fault::decode([0x0000_0abc_0000_0013, 0x0000_1188_0000_0000, VA, IPA]);
    assert_eq!((record.access, record.stage), (Some(Access::READ), Some(Stage::Stage2)));
    assert_eq!((record.code, record.name, record.reason), (0x13, "F_PERMISSION", FaultReason::Permission));
}
