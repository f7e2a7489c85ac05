//! Golden words for registers and table entries: raw values worked out from the architecture (Intel's VT-d
//! specification), not from the driver. Each is built through the setters and decoded through the getters.
//!
//! | what | first source | second source |
//! |---|---|---|
//! | CAP, ECAP, GCMD, GSTS, RTADDR, FSTS | VirtualBox `iommu-intel.h` | Linux `iommu.h` |
//! | FECTL, IQA | VirtualBox | QEMU `intel_iommu_internal.h` |
//! | FRCD | VirtualBox | Linux and QEMU; T1 and T2: a published check of revision 4.1, 11.4.7.6 |
//! | register offsets | VirtualBox | QEMU |
//! | root, PASID directory and PASID table entries | VirtualBox | Linux `pasid.h` |
//! | context entry | VirtualBox | QEMU |
//!
//! The capability registers are what QEMU 11.1.3 shows.

use portcullis_hal::golden;
use portcullis_vtd::spec::entries::*;
use portcullis_vtd::spec::registers::*;

/// 11.4.
#[test]
fn registers_are_at_their_offsets() {
    let offsets = [
        (VER, 0x00),
        (CAP, 0x08),
        (ECAP, 0x10),
        (GCMD, 0x18),
        (GSTS, 0x1c),
        (RTADDR, 0x20),
        (FSTS, 0x34),
        (FECTL, 0x38),
        (FEDATA, 0x3c),
        (FEADDR, 0x40),
        (FEUADDR, 0x44),
        (PMEN, 0x64),
        (IQH, 0x80),
        (IQT, 0x88),
        (IQA, 0x90),
        (ICS, 0x9c),
        (IECTL, 0xa0),
        (IQERCD, 0xb0),
    ];
    for (register, offset) in offsets {
        assert_eq!(register.offset, offset, "{}", register.name);
    }
    assert_eq!(FAULT_RECORD_BYTES, 16);
}

/// 11.4.2: 48-bit addresses, with second-stage pages of 2 MiB and 1 GiB.
#[test]
fn the_capabilities_of_qemu_decode() {
    golden!(Cap, 0x80d2_008c_222f_0606;
        nd with_nd 6; sagaw with_sagaw 0b00110; mgaw with_mgaw 47; fro with_fro 0x22; sslps with_sslps 0b0011;
        psi with_psi true; nfr with_nfr 0; mamv with_mamv 18; dwd with_dwd true; drd with_drd true;
        esrtps with_esrtps true;
    );
    golden!(Cap, 0x81d2_008c_222f_0686;
        nd with_nd 6; cm with_cm true; sagaw with_sagaw 0b00110; mgaw with_mgaw 47; fro with_fro 0x22;
        sslps with_sslps 0b0011; psi with_psi true; mamv with_mamv 18; dwd with_dwd true; drd with_drd true;
        fs1gp with_fs1gp true; esrtps with_esrtps true;
    );
    let cap = Cap::from_bits(0x80d2_008c_222f_0606);
    assert!(!cap.rwbf() && !cap.plmr() && !cap.phmr() && !cap.cm() && !cap.zlr() && !cap.fs1gp());
    assert!(!cap.pi() && !cap.fs5lp() && !cap.ecmds() && !cap.esirtps());
    let narrow = Cap::from_bits(0x80d2_008c_2226_0206);
    assert_eq!((narrow.sagaw(), narrow.mgaw(), narrow.fro()), (0b00010, 38, 0x22));
    let none = Cap::from_bits(0x80d2_008c_222f_0006);
    assert_eq!((none.sagaw(), none.mgaw(), none.nd()), (0, 47, 6));
}

/// 11.4.2: what QEMU leaves at zero.
#[test]
fn capabilities_that_qemu_lacks_decode() {
    golden!(Cap, 0x7800_ff01_0040_0870;
        rwbf with_rwbf true; plmr with_plmr true; phmr with_phmr true; sagaw with_sagaw 0b01000; zlr with_zlr true;
        fro with_fro 0x100; nfr with_nfr 0xff; pi with_pi true; fs5lp with_fs5lp true; ecmds with_ecmds true;
        esirtps with_esirtps true;
    );
}

/// 11.4.3: first stage with 20-bit PASIDs, page requests and device TLBs.
#[test]
fn the_first_stage_capabilities_of_qemu_decode() {
    golden!(Ecap, 0x0000_8d9a_20f0_0f4e;
        qi with_qi true; dt with_dt true; ir with_ir true; pt with_pt true; iro with_iro 0xf; mhmv with_mhmv 15;
        prs with_prs true; nwfs with_nwfs true; pss with_pss 19; pasid with_pasid true; pds with_pds true;
        smts with_smts true; fsts with_fsts true;
    );
    let ecap = Ecap::from_bits(0x0000_8d9a_20f0_0f4e);
    assert!(!ecap.c() && !ecap.eim() && !ecap.sc() && !ecap.nest() && !ecap.srs() && !ecap.ssts());
    assert!(!ecap.ssads() && !ecap.vcs() && !ecap.dit() && !ecap.smpwc() && !ecap.rps());
    let eight = Ecap::from_bits(0x0000_4938_80f0_0f4e);
    assert_eq!((eight.pss(), eight.pasid(), eight.dt(), eight.srs()), (7, true, true, true));
}

/// 11.4.3.
#[test]
fn the_second_stage_capabilities_of_qemu_decode() {
    golden!(Ecap, 0x0000_4800_80f0_0f4a;
        qi with_qi true; ir with_ir true; pt with_pt true; iro with_iro 0xf; mhmv with_mhmv 15; srs with_srs true;
        smts with_smts true; ssts with_ssts true;
    );
    golden!(Ecap, 0x0000_0000_00f0_0fda;
        qi with_qi true; ir with_ir true; eim with_eim true; pt with_pt true; sc with_sc true; iro with_iro 0xf;
        mhmv with_mhmv 15;
    );
    golden!(Ecap, 0x0033_3204_4602_0001;
        c with_c true; iro with_iro 0x200; mts with_mts true; nest with_nest true; ers with_ers true;
        eafs with_eafs true; dit with_dit true; vcs with_vcs true; ssads with_ssads true; smpwc with_smpwc true;
        rps with_rps true; adms with_adms true; rprivs with_rprivs true;
    );
}

/// 11.4.4.
#[test]
fn commands_and_their_status_share_bits() {
    golden!(Global, 0x0080_0000; cfi with_cfi true;);
    golden!(Global, 0x0100_0000; sirtp with_sirtp true;);
    golden!(Global, 0x0200_0000; ire with_ire true;);
    golden!(Global, 0x0400_0000; qie with_qie true;);
    golden!(Global, 0x0800_0000; wbf with_wbf true;);
    golden!(Global, 0x4000_0000; srtp with_srtp true;);
    golden!(Global, 0x8000_0000; te with_te true;);
    golden!(Global, 0xc400_0000; te with_te true; srtp with_srtp true; qie with_qie true;);
    // Advanced fault logging, of older revisions.
    golden!(Global, 0x3000_0000; sfl with_sfl true; eafl with_eafl true;);
    assert_eq!(Global::LEVELS & !0x1000_0000, 0x8680_0000);
}

/// 11.4.5.
#[test]
fn the_root_table_address_carries_its_mode() {
    golden!(RootAddress, 0x0000_0001_2345_6400; ttm with_ttm TableMode::SCALABLE; rta with_rta 0x12_3456;);
    golden!(RootAddress, 0x0000_0001_2345_6000; ttm with_ttm TableMode::LEGACY; rta with_rta 0x12_3456;);
    golden!(RootAddress, 0x0000_0001_2345_6c00; ttm with_ttm TableMode::ABORT_DMA; rta with_rta 0x12_3456;);
}

/// 11.4.7.1, 11.4.7.2, 11.4.8.1.
#[test]
fn fault_status_and_control_have_their_bits() {
    golden!(FaultStatus, 0x0513;
        pfo with_pfo true; ppf with_ppf true; iqe with_iqe true; fri with_fri 5;
    );
    golden!(FaultStatus, 0xff60; ice with_ice true; ite with_ite true; fri with_fri 0xff;);
    golden!(EventControl, 0x8000_0000; im with_im true; ip with_ip false;);
    golden!(EventControl, 0x4000_0000; im with_im false; ip with_ip true;);
    golden!(ProtectedMemory, 0x8000_0001; epm with_epm true; prs with_prs true;);
}

/// 11.4.7.6: T1 and T2 are 00 write, 01 page request, 10 read, 11 atomic operation.
#[test]
fn fault_records_tell_requester_and_request() {
    golden!(FaultInfo, 0x0000_7fff_dead_b000; fi with_fi 0x7_fffd_eadb;);
    // A read with PASID, first-stage entry not present.
    golden!(FaultSource, 0xc543_2171_8000_0310;
        f with_f true; t1 with_t1 true; t2 with_t2 false; at with_at 0; pv with_pv 0x54321; fr with_fr 0x71;
        pp with_pp true; sid with_sid 0x310;
    );
    // A write without PASID, in legacy mode, as QEMU records it.
    golden!(FaultSource, 0x8000_0005_0000_00fa;
        f with_f true; t1 with_t1 false; pv with_pv 0; fr with_fr 0x05; pp with_pp false; sid with_sid 0xfa;
    );
    // A translation request to execute, with privilege.
    golden!(FaultSource, 0xd543_2182_e000_0310;
        f with_f true; t1 with_t1 true; at with_at 0b01; pv with_pv 0x54321; fr with_fr 0x82; pp with_pp true;
        execute with_execute true; privileged with_privileged true; sid with_sid 0x310;
    );
    golden!(FaultSource, 0xc000_0085_1000_0310;
        f with_f true; t1 with_t1 true; t2 with_t2 true; fr with_fr 0x85; sid with_sid 0x310;
    );
    golden!(FaultSource, 0x8000_0047_1000_0310;
        f with_f true; t1 with_t1 false; t2 with_t2 true; fr with_fr 0x47; sid with_sid 0x310;
    );
}

/// 11.4.9.3: two frames of 256-bit descriptors, and 128 frames of 128-bit ones.
#[test]
fn the_queue_is_described() {
    golden!(QueueAddress, 0x0000_0001_2345_6801; dw with_dw true; qs with_qs 1; iqa with_iqa 0x12_3456;);
    golden!(QueueAddress, 0x0000_0001_2345_6007; dw with_dw false; qs with_qs 7; iqa with_iqa 0x12_3456;);
}

/// 9.2: the lower half is for devices 0 to 15, the upper for 16 to 31.
#[test]
fn a_root_entry_points_to_two_context_tables() {
    golden!(RootHalf, 0x0000_0001_1111_1001; present with_present true; ctp with_ctp 0x11_1111;);
    golden!(RootHalf, 0x0000_0001_2222_2000; present with_present false; ctp with_ctp 0x12_2222;);
}

/// 9.4.
#[test]
fn a_context_entry_points_to_its_pasid_directory() {
    golden!(Context0, 0x0000_0001_3333_3e1d;
        present with_present true; fpd with_fpd false; dte with_dte true; paside with_paside true;
        pre with_pre true; pdts with_pdts 7; pasiddirptr with_pasiddirptr 0x13_3333;
    );
    golden!(Context0, 0x0000_0001_3333_3203;
        present with_present true; fpd with_fpd true; pdts with_pdts 1; pasiddirptr with_pasiddirptr 0x13_3333;
    );
    golden!(Context1, 0x001a_bcde; rid_pasid with_rid_pasid 0xabcde; rid_priv with_rid_priv true;);
    golden!(Context1, 0x000f_ffff; rid_pasid with_rid_pasid 0xfffff; rid_priv with_rid_priv false;);
}

/// 9.5.
#[test]
fn a_directory_entry_points_to_its_pasid_table() {
    golden!(Directory, 0x0000_0001_4444_4001; present with_present true; smptblptr with_smptblptr 0x14_4444;);
    golden!(Directory, 0x0000_0001_4444_4003;
        present with_present true; fpd with_fpd true; smptblptr with_smptblptr 0x14_4444;
    );
}

/// 9.6: four levels; the width of second-stage addresses is set although the first stage does not need it.
#[test]
fn a_pasid_entry_of_first_stage() {
    golden!(Pasid0, 0x49;
        present with_present true; aw with_aw AddressWidth::BITS_48; pgtt with_pgtt Translation::FIRST_STAGE;
    );
    golden!(Pasid1, 0x0180_1234; did with_did 0x1234; pwsnp with_pwsnp true; pgsnp with_pgsnp true;);
    golden!(Pasid2, 0x0000_0001_5555_5010;
        fspm with_fspm PagingMode::FOUR_LEVELS; wpe with_wpe true; fsptptr with_fsptptr 0x15_5555;
    );
}

/// 9.6: five levels, and the rest of the words.
#[test]
fn a_pasid_entry_of_first_stage_with_all_controls() {
    golden!(Pasid2, 0x0000_0001_5555_5095;
        sre with_sre true; fspm with_fspm PagingMode::FIVE_LEVELS; wpe with_wpe true; eafe with_eafe true;
        fsptptr with_fsptptr 0x15_5555;
    );
    golden!(Pasid2, 0x62; ere with_ere true; nxe with_nxe true; smep with_smep true;);
    golden!(Pasid1, 0x0007_0406_f600_ffff;
        did with_did 0xffff; cd with_cd true; emte with_emte true; emt with_emt 0b110; pwt with_pwt true;
        pcd with_pcd true; pat with_pat 0x0007_0406;
    );
}

/// 9.6.
#[test]
fn a_pasid_entry_of_second_stage() {
    golden!(Pasid0, 0x0000_0001_6666_6089;
        present with_present true; aw with_aw AddressWidth::BITS_48; pgtt with_pgtt Translation::SECOND_STAGE;
        ssptptr with_ssptptr 0x16_6666;
    );
    golden!(Pasid0, 0x0000_0001_6666_6085;
        present with_present true; aw with_aw AddressWidth::BITS_39; pgtt with_pgtt Translation::SECOND_STAGE;
        ssptptr with_ssptptr 0x16_6666;
    );
    golden!(Pasid0, 0x0000_0001_6666_628f;
        present with_present true; fpd with_fpd true; aw with_aw AddressWidth::BITS_57;
        pgtt with_pgtt Translation::SECOND_STAGE; ssade with_ssade true; ssptptr with_ssptptr 0x16_6666;
    );
    golden!(Pasid1, 0x1234; did with_did 0x1234;);
}

/// 9.6.
#[test]
fn pasid_entries_that_pass_through_or_nest() {
    golden!(Pasid0, 0x109;
        present with_present true; aw with_aw AddressWidth::BITS_48; pgtt with_pgtt Translation::PASS_THROUGH;
    );
    golden!(Pasid0, 0x0000_0001_6666_60c9;
        present with_present true; aw with_aw AddressWidth::BITS_48; pgtt with_pgtt Translation::NESTED;
        ssptptr with_ssptptr 0x16_6666;
    );
    golden!(Pasid0, 0x20; ssee with_ssee true;);
}
