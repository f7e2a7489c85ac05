//! Golden words for registers and tables: raw values worked out from the architecture (Arm IHI 0070), not from the
//! driver. Each is built through the setters and decoded through the getters.
//!
//! | what | first source | second source |
//! |---|---|---|
//! | IDR0, IDR1, IDR5 | Linux `arm-smmu-v3.h` | FreeBSD `smmureg.h` |
//! | IDR3 | IHI 0070, 6.3.4 | QEMU `smmuv3-internal.h` |
//! | GBPA, CR2 | IHI 0070, 6.3.14 and 6.3.12 | Linux |
//! | CR0, CR1, IRQ_CTRL, table and queue bases, offsets | Linux | FreeBSD |
//! | GERROR | IHI 0070, 6.3.20 | QEMU |
//! | CMDQ_CONS | Linux | QEMU |
//! | L1STD | IHI 0070, 5.1 | Linux |
//! | STE | IHI 0070, 5.2 | FreeBSD (Linux where FreeBSD has no name) |
//! | CD | Linux | FreeBSD; MAIR: IHI 0070, 5.4 |
//!
//! The ID registers are what QEMU 11.1.3 shows.

use portcullis_hal::golden;
use portcullis_smmuv3::spec::cd::{CD_BYTES, CD_MAIR_WORD, CD_WORDS, Cd0, Cd1, L1Cd};
use portcullis_smmuv3::spec::cmd::CommandError;
use portcullis_smmuv3::spec::registers::{self, *};
use portcullis_smmuv3::spec::ste::*;
use portcullis_smmuv3::spec::{AddressSize, Cacheability, Shareability, TableGranule};

/// 6.2: the offsets of the non-secure interface; the event queue's indices are on the second 64 KiB page.
#[test]
fn registers_are_at_their_offsets() {
    let offsets = [
        (IDR0, 0x0),
        (IDR1, 0x4),
        (IDR3, 0xc),
        (IDR5, 0x14),
        (IIDR, 0x18),
        (AIDR, 0x1c),
        (CR0, 0x20),
        (CR0ACK, 0x24),
        (CR1, 0x28),
        (CR2, 0x2c),
        (GBPA, 0x44),
        (IRQ_CTRL, 0x50),
        (IRQ_CTRLACK, 0x54),
        (GERROR, 0x60),
        (GERRORN, 0x64),
        (GERROR_IRQ_CFG0, 0x68),
        (GERROR_IRQ_CFG1, 0x70),
        (GERROR_IRQ_CFG2, 0x74),
        (STRTAB_BASE, 0x80),
        (STRTAB_BASE_CFG, 0x88),
        (CMDQ_BASE, 0x90),
        (CMDQ_PROD, 0x98),
        (CMDQ_CONS, 0x9c),
        (EVENTQ_BASE, 0xa0),
        (EVENTQ_PROD, 0x100a8),
        (EVENTQ_CONS, 0x100ac),
        (EVENTQ_IRQ_CFG0, 0xb0),
        (EVENTQ_IRQ_CFG1, 0xb8),
        (EVENTQ_IRQ_CFG2, 0xbc),
    ];
    for (register, offset) in offsets {
        assert_eq!(register.offset, offset, "{}", register.name);
    }
    assert_eq!(registers::REGISTER_BYTES, 0x20000);
}

/// 6.3.1.
#[test]
fn idr0_of_qemu_decodes() {
    golden!(Idr0, 0x0d44_101b;
        s2p with_s2p true; s1p with_s1p true; ttf with_ttf 0b10; cohacc with_cohacc true;
        asid16 with_asid16 true; vmid16 with_vmid16 true; ttendian with_ttendian 0b10;
        stall_model with_stall_model 0b01; term_model with_term_model true; st_level with_st_level 0b01;
    );
    for (raw, s1p, s2p) in [(0x0d44_101a, true, false), (0x0d44_1019, false, true)] {
        let idr0 = Idr0::from_bits(raw);
        assert_eq!((idr0.s1p(), idr0.s2p()), (s1p, s2p));
        assert!(!idr0.btm() && !idr0.hyp() && !idr0.ats() && !idr0.msi() && !idr0.sev() && !idr0.pri());
        assert!(!idr0.cd2l() && !idr0.vmw() && !idr0.atos() && !idr0.vatos() && !idr0.dormhint());
        assert_eq!(idr0.httu(), 0);
    }
}

/// 6.3.1: what QEMU leaves at zero.
#[test]
fn idr0_features_that_qemu_lacks_decode() {
    golden!(Idr0, 0x001b_efa0;
        btm with_btm true; httu with_httu 0b10; dormhint with_dormhint true; hyp with_hyp true;
        ats with_ats true; ns1ats with_ns1ats true; msi with_msi true; sev with_sev true; atos with_atos true;
        pri with_pri true; vmw with_vmw true; cd2l with_cd2l true; vatos with_vatos true;
    );
}

/// 6.3.2.
#[test]
fn idr1_of_qemu_decodes() {
    golden!(Idr1, 0x0273_0010;
        sidsize with_sidsize 16; ssidsize with_ssidsize 0; priqs with_priqs 0; eventqs with_eventqs 19;
        cmdqs with_cmdqs 19;
    );
    golden!(Idr1, 0x7c00_7d20;
        sidsize with_sidsize 32; ssidsize with_ssidsize 20; priqs with_priqs 15;
        attr_perms_ovr with_attr_perms_ovr true; attr_types_ovr with_attr_types_ovr true; rel with_rel true;
        queues_preset with_queues_preset true; tables_preset with_tables_preset true;
    );
}

/// 6.3.4.
#[test]
fn idr3_of_qemu_decodes() {
    golden!(Idr3, 0x1414; had with_had true; xnx with_xnx true; ril with_ril true; bbml with_bbml 2;);
    golden!(Idr3, 0x1404; had with_had true; ril with_ril true; bbml with_bbml 2;);
    golden!(Idr3, 0x23a8;
        pbha with_pbha true; pps with_pps true; mpam with_mpam true; fwb with_fwb true; stt with_stt true;
        e0pd with_e0pd true;
    );
}

/// 6.3.6.
#[test]
fn idr5_of_qemu_decodes() {
    golden!(Idr5, 0x74;
        oas with_oas AddressSize::BITS_44; gran4k with_gran4k true; gran16k with_gran16k true;
        gran64k with_gran64k true; vax with_vax 0; stall_max with_stall_max 0;
    );
    assert_eq!(Idr5::from_bits(0x74).oas().bits(), 44);
    golden!(Idr5, 0x0020_0456;
        oas with_oas AddressSize::BITS_52; gran4k with_gran4k true; gran64k with_gran64k true;
        vax with_vax 1; stall_max with_stall_max 0x20;
    );
}

/// 6.3.6 (OAS), 5.2 (S2PS), 5.4 (IPS).
#[test]
fn address_sizes_have_the_widths_of_the_manual() {
    let widths = [(0, 32), (1, 36), (2, 40), (3, 42), (4, 44), (5, 48), (6, 52)];
    for (raw, bits) in widths {
        assert_eq!(AddressSize(raw).bits(), bits);
        assert_eq!(AddressSize::at_least(bits).0, raw);
    }
}

/// 6.3.14.
#[test]
fn gbpa_aborts_or_bypasses() {
    golden!(Gbpa, 0x8010_0000; update with_update true; abort with_abort true;);
    // As QEMU resets it: bypass, shareability as it comes.
    golden!(Gbpa, 0x0000_1000; shcfg with_shcfg 0b01; abort with_abort false; update with_update false;);
    golden!(Gbpa, 0x000e_2f1f;
        memattr with_memattr 0xf; mtcfg with_mtcfg true; alloccfg with_alloccfg 0xf; shcfg with_shcfg 0b10;
        privcfg with_privcfg 0b10; instcfg with_instcfg 0b11;
    );
}

/// 6.3.9, 6.3.11, 6.3.12.
#[test]
fn control_registers_hold_their_enables_and_attributes() {
    golden!(Cr0, 0x0d; smmuen with_smmuen true; eventqen with_eventqen true; cmdqen with_cmdqen true;);
    golden!(Cr0, 0x1d2;
        smmuen with_smmuen false; priqen with_priqen true; atschk with_atschk true; vmw with_vmw 0b111;
    );
    // Both kinds of access: inner shareable, write-back inner and outer.
    golden!(Cr1, 0xd75;
        queue_ic with_queue_ic Cacheability::WRITE_BACK; queue_oc with_queue_oc Cacheability::WRITE_BACK;
        queue_sh with_queue_sh Shareability::INNER; table_ic with_table_ic Cacheability::WRITE_BACK;
        table_oc with_table_oc Cacheability::WRITE_BACK; table_sh with_table_sh Shareability::INNER;
    );
    golden!(Cr1, 0x826;
        queue_ic with_queue_ic Cacheability::WRITE_THROUGH; queue_oc with_queue_oc Cacheability::WRITE_BACK;
        queue_sh with_queue_sh Shareability::OUTER; table_ic with_table_ic Cacheability::NON_CACHEABLE;
        table_oc with_table_oc Cacheability::NON_CACHEABLE; table_sh with_table_sh Shareability::OUTER;
    );
    golden!(Cr2, 0x6; e2h with_e2h false; recinvsid with_recinvsid true; ptm with_ptm true;);
    golden!(Cr2, 0x1; e2h with_e2h true; recinvsid with_recinvsid false; ptm with_ptm false;);
    golden!(IrqCtrl, 0x5; gerror_irqen with_gerror_irqen true; eventq_irqen with_eventq_irqen true;);
    golden!(IrqCtrl, 0x2; priq_irqen with_priq_irqen true;);
}

/// 6.3.19, 6.3.20.
#[test]
fn each_global_error_has_its_bit() {
    golden!(Gerror, 0x001; cmdq_err with_cmdq_err true;);
    golden!(Gerror, 0x004; eventq_abt_err with_eventq_abt_err true;);
    golden!(Gerror, 0x008; priq_abt_err with_priq_abt_err true;);
    golden!(Gerror, 0x010; msi_cmdq_abt_err with_msi_cmdq_abt_err true;);
    golden!(Gerror, 0x020; msi_eventq_abt_err with_msi_eventq_abt_err true;);
    golden!(Gerror, 0x040; msi_priq_abt_err with_msi_priq_abt_err true;);
    golden!(Gerror, 0x080; msi_gerror_abt_err with_msi_gerror_abt_err true;);
    golden!(Gerror, 0x100; sfm_err with_sfm_err true;);
    golden!(Gerror, 0x200; cmdqp_err with_cmdqp_err true;);
    golden!(Gerror, 0x400; dpt_err with_dpt_err true;);
}

/// 6.3.24, 6.3.25.
#[test]
fn the_stream_table_is_described() {
    golden!(StrtabBase, 0x4000_0008_4020_0000; ra with_ra true; addr with_addr 0x8_4020_0000 >> 6;);
    golden!(StrtabBase, 0x000f_ffff_ffff_ffc0; ra with_ra false; addr with_addr 0xf_ffff_ffff_ffc0 >> 6;);
    // Two levels, 256 entries behind each descriptor, 16 bits of StreamID.
    golden!(StrtabBaseCfg, 0x0001_0210; fmt with_fmt 1; split with_split 8; log2size with_log2size 16;);
    golden!(StrtabBaseCfg, 0x0000_0005; fmt with_fmt 0; split with_split 0; log2size with_log2size 5;);
    golden!(StrtabBaseCfg, 0x0001_02a0; fmt with_fmt 1; split with_split 10; log2size with_log2size 32;);
}

/// 6.3.26 to 6.3.31.
#[test]
fn the_queues_are_described() {
    golden!(QueueBase, 0x4000_0008_4080_0013;
        alloc with_alloc true; addr with_addr 0x8_4080_0000 >> 5; log2size with_log2size 19;
    );
    golden!(QueueBase, 0x0000_0000_4789_0007;
        alloc with_alloc false; addr with_addr 0x4789_0000 >> 5; log2size with_log2size 7;
    );
    golden!(CmdqCons, 0x0100_0003; err with_err CommandError::ILLEGAL; rd with_rd 3;);
    golden!(CmdqCons, 0x0200_0105; err with_err CommandError::ABORT; rd with_rd 0x105;);
    golden!(CmdqCons, 0x0308_0000; err with_err CommandError::ATC_INV_SYNC; rd with_rd 0x8_0000;);
    golden!(CmdqCons, 0x000f_ffff; err with_err CommandError::NONE; rd with_rd 0xf_ffff;);
    golden!(EventqIndex, 0x8000_0081; overflow with_overflow true; index with_index 0x81;);
    golden!(EventqIndex, 0x000f_ffff; overflow with_overflow false; index with_index 0xf_ffff;);
}

/// 5.1: a table of `2^(9 - 1)` entries.
#[test]
fn a_level_1_descriptor_points_to_its_table() {
    golden!(L1Std, 0x0000_0008_8123_4000 | 9; span with_span 9; l2ptr with_l2ptr 0x8_8123_4000 >> 6;);
    golden!(L1Std, 0x000f_ffff_ffff_ffcb; span with_span 11; l2ptr with_l2ptr 0xf_ffff_ffff_ffc0 >> 6;);
}

/// 5.2: 64 bytes; Config selects what happens.
#[test]
fn a_stream_that_aborts_or_bypasses() {
    assert_eq!((STE_WORDS, STE_BYTES), (8, 64));
    golden!(Ste0, 0x1; v with_v true; config with_config StreamConfig::ABORT;);
    golden!(Ste0, 0x9; v with_v true; config with_config StreamConfig::BYPASS;);
    golden!(Ste1, 0x0000_1000_0000_0000; shcfg with_shcfg ShareabilityOverride::INCOMING;);
    golden!(Ste1, 0x0000_3000_0000_0000; shcfg with_shcfg ShareabilityOverride::INNER;);
    golden!(Ste1, 0x0000_2000_0000_0000; shcfg with_shcfg ShareabilityOverride::OUTER;);
    golden!(Ste1, 0x0000_0000_0000_0000; shcfg with_shcfg ShareabilityOverride::NON_SHAREABLE;);
}

/// 5.2.
#[test]
fn a_stream_with_stage_1_and_one_context_descriptor() {
    golden!(Ste0, 0x0000_0008_4321_000b;
        v with_v true; config with_config StreamConfig::STAGE_1; s1fmt with_s1fmt ContextFormat::LINEAR;
        s1contextptr with_s1contextptr 0x8_4321_0000 >> 6; s1cdmax with_s1cdmax 0;
    );
    golden!(Ste1, 0x0000_1000_1008_00d6;
        s1dss with_s1dss DefaultSubstream::SUBSTREAM_0; s1cir with_s1cir Cacheability::WRITE_BACK;
        s1cor with_s1cor Cacheability::WRITE_BACK; s1csh with_s1csh Shareability::INNER;
        mev with_mev true; eats with_eats AtsMode::FULL; strw with_strw StreamWorld::NS_EL1;
        shcfg with_shcfg ShareabilityOverride::INCOMING;
    );
}

/// 5.2: 2^20 context descriptors in two levels.
#[test]
fn a_stream_with_stage_1_and_substreams() {
    golden!(Ste0, 0xa000_0008_4321_002b;
        v with_v true; config with_config StreamConfig::STAGE_1; s1fmt with_s1fmt ContextFormat::TWO_LEVEL_64K;
        s1contextptr with_s1contextptr 0x8_4321_0000 >> 6; s1cdmax with_s1cdmax 20;
    );
    golden!(Ste1, 0x0000_1000_8808_00d5;
        s1dss with_s1dss DefaultSubstream::BYPASS; s1cir with_s1cir Cacheability::WRITE_BACK;
        s1cor with_s1cor Cacheability::WRITE_BACK; s1csh with_s1csh Shareability::INNER;
        mev with_mev true; s1stalld with_s1stalld true; strw with_strw StreamWorld::EL2;
        shcfg with_shcfg ShareabilityOverride::INCOMING;
    );
    golden!(Ste1, 0x0; s1dss with_s1dss DefaultSubstream::TERMINATE;);
    // The rest of the word.
    golden!(Ste1, 0x000e_41ff_0606_0000;
        dcp with_dcp true; ppar with_ppar true; s2fwb with_s2fwb true; s1mpam with_s1mpam true;
        memattr with_memattr 0xf; mtcfg with_mtcfg true; alloccfg with_alloccfg 0xf; nscfg with_nscfg 0b01;
        privcfg with_privcfg 0b10; instcfg with_instcfg 0b11;
    );
}

/// 5.2: 40-bit input, 4 KiB granule, start at level 1.
#[test]
fn a_stream_with_stage_2() {
    golden!(Ste0, 0xd; v with_v true; config with_config StreamConfig::STAGE_2;);
    golden!(Ste1, 0x0000_1000_0008_0000; mev with_mev true; shcfg with_shcfg ShareabilityOverride::INCOMING;);
    golden!(Ste2, 0x040a_3558_0000_1234;
        s2vmid with_s2vmid 0x1234; s2t0sz with_s2t0sz 24; s2sl0 with_s2sl0 1;
        s2ir0 with_s2ir0 Cacheability::WRITE_BACK; s2or0 with_s2or0 Cacheability::WRITE_BACK;
        s2sh0 with_s2sh0 Shareability::INNER; s2tg with_s2tg TableGranule::SIZE_4K;
        s2ps with_s2ps AddressSize::BITS_40; s2aa64 with_s2aa64 true; s2r with_s2r true;
    );
    golden!(Ste3, 0x0000_0008_5678_0000; s2ttb with_s2ttb 0x8_5678_0000 >> 4;);
}

/// 5.2: the other fields of the stage-2 words.
#[test]
fn a_stream_with_stage_2_that_stalls_and_has_16k_tables() {
    golden!(Ste2, 0x066c_b594_0000_beef;
        s2vmid with_s2vmid 0xbeef; s2t0sz with_s2t0sz 20; s2sl0 with_s2sl0 2;
        s2ir0 with_s2ir0 Cacheability::WRITE_BACK; s2or0 with_s2or0 Cacheability::WRITE_BACK;
        s2sh0 with_s2sh0 Shareability::INNER; s2tg with_s2tg TableGranule::SIZE_16K;
        s2ps with_s2ps AddressSize::BITS_44; s2aa64 with_s2aa64 true; s2affd with_s2affd true;
        s2ptw with_s2ptw true; s2s with_s2s true; s2r with_s2r true;
    );
    golden!(Ste2, 0x0195_6e00_0000_0000;
        s2ir0 with_s2ir0 Cacheability::WRITE_THROUGH; s2sh0 with_s2sh0 Shareability::OUTER;
        s2or0 with_s2or0 Cacheability::WRITE_BACK_NO_WRITE_ALLOCATE; s2tg with_s2tg TableGranule::SIZE_64K;
        s2ps with_s2ps AddressSize::BITS_48; s2endi with_s2endi true; s2hd with_s2hd true; s2ha with_s2ha true;
    );
}

/// 5.2: EATS 0b10 is split-stage ATS.
#[test]
fn a_nested_stream() {
    golden!(Ste0, 0x0000_0008_4321_000f;
        v with_v true; config with_config StreamConfig::NESTED; s1contextptr with_s1contextptr 0x8_4321_0000 >> 6;
    );
    golden!(Ste1, 0x0000_1000_2000_00d4;
        s1cir with_s1cir Cacheability::WRITE_BACK; s1cor with_s1cor Cacheability::WRITE_BACK;
        s1csh with_s1csh Shareability::INNER; eats with_eats AtsMode::SPLIT; shcfg with_shcfg ShareabilityOverride::INCOMING;
    );
}

/// 5.4: 48-bit input, 4 KiB granule, TTB1 off, faults recorded and aborted.
#[test]
fn a_context_descriptor() {
    assert_eq!((CD_WORDS, CD_BYTES), (8, 64));
    golden!(Cd0, 0x0042_e20c_c000_3510;
        t0sz with_t0sz 16; tg0 with_tg0 TableGranule::SIZE_4K; ir0 with_ir0 Cacheability::WRITE_BACK;
        or0 with_or0 Cacheability::WRITE_BACK; sh0 with_sh0 Shareability::INNER; epd1 with_epd1 true;
        v with_v true; ips with_ips AddressSize::BITS_44; affd with_affd true; aa64 with_aa64 true;
        s with_s false; r with_r true; a with_a true; aset with_aset true; asid with_asid 0x42;
    );
    golden!(Cd1, 0x0000_0008_1234_5000; ttb0 with_ttb0 0x8_1234_5000 >> 4;);
    golden!(Cd1, 0x000f_ffff_ffff_fff2; had0 with_had0 true; ttb0 with_ttb0 0xf_ffff_ffff_fff0 >> 4;);
}

/// 5.4: the other granule, size and fault settings.
#[test]
fn a_context_descriptor_that_stalls_and_has_64k_tables() {
    golden!(Cd0, 0xbeef_7205_c000_3559;
        t0sz with_t0sz 25; tg0 with_tg0 TableGranule::SIZE_64K; ir0 with_ir0 Cacheability::WRITE_BACK;
        or0 with_or0 Cacheability::WRITE_BACK; sh0 with_sh0 Shareability::INNER; epd1 with_epd1 true;
        v with_v true; ips with_ips AddressSize::BITS_48; aa64 with_aa64 true; s with_s true; r with_r true;
        a with_a true; aset with_aset false; asid with_asid 0xbeef;
    );
    golden!(Cd0, 0x0000_0df0_2db9_ca80;
        tg0 with_tg0 TableGranule::SIZE_16K; ir0 with_ir0 Cacheability::WRITE_THROUGH;
        or0 with_or0 Cacheability::WRITE_THROUGH; epd0 with_epd0 true; endi with_endi true; t1sz with_t1sz 0x39;
        tg1 with_tg1 0b10; ir1 with_ir1 Cacheability::WRITE_BACK;
        or1 with_or1 Cacheability::WRITE_BACK_NO_WRITE_ALLOCATE; sh1 with_sh1 Shareability::OUTER;
        wxn with_wxn true; uwxn with_uwxn true; tbi with_tbi 0b11; pan with_pan true; hd with_hd true;
        ha with_ha true;
    );
}

/// 5.4: MAIR0 is bits 223:192, MAIR1 bits 255:224.
#[test]
fn memory_attributes_are_the_fourth_word() {
    assert_eq!(CD_MAIR_WORD, 192 / 64);
}

/// 5.3: V is bit 0, the pointer bits 51:12 (Linux: CTXDESC_L1_DESC_V and _L2PTR_MASK).
#[test]
fn level_1_context_descriptors_decode() {
    golden!(L1Cd, 0x000f_ffff_ffff_0001; v with_v true; l2ptr with_l2ptr 0xf_ffff_ffff_0000 >> 12;);
    golden!(L1Cd, 0x0000_0001_2345_0000; v with_v false; l2ptr with_l2ptr 0x1_2345_0000 >> 12;);
}
