//! What runs on the model have found, cut down: each fails on the driver as it was.

use crate::op::{Op, Place, Sync};
use crate::run::replay;

const PLACE: Place = Place { window: 0, offset: 0, size: 0 };

/// Seed 39: an ICE that nobody cleared kept the fault event from coming again.
#[test]
fn a_device_cannot_silence_the_fault_event_with_a_stray_completion() {
    replay(
        "full",
        5,
        &[
            (0x8b0c_8f1a_f4d8_8a84, Op::Stray { device: 3 }),
            (0xe163_564d_c5ac_7001, Op::Interrupt),
            (0x124b_b962_6208_fc60, Op::Storm { device: 0, count: 17 }),
        ],
    );
}

/// Seed 31: a detachment that hardware had not confirmed was reported as done when it was tried again.
#[test]
fn a_detachment_is_done_only_when_hardware_confirmed_it_however_often_it_is_tried() {
    replay(
        "no coherent entries",
        5,
        &[
            (0xdab8_ee0d_ea8b_2e96, Op::New { slot: 2, kind: 1 }),
            (0x4512_049a_ff85_a73c, Op::Refuse { after: 0 }),
            (0x1dc2_8bd5_cad6_b38a, Op::Attach { device: 2, count: 1, slot: 2 }),
            (0x2d7b_0b9b_b8d9_26d8, Op::Detach { device: 1, count: 2 }),
        ],
    );
}

/// A unit that refuses to forget a device twice in a row keeps everything of it quarantined.
#[test]
fn what_a_unit_refuses_to_forget_stays_quarantined() {
    let map = Op::Map { slot: 0, place: PLACE, pieces: 1, step: 0, access: 4, aligned: true };
    let steps = [
        Op::New { slot: 0, kind: 3 },
        map,
        Op::Attach { device: 0, count: 1, slot: 0 },
        Op::Dma { device: 0, point: 0, kind: 5, mode: 0 },
        Op::Refuse { after: 0 },
        Op::Refuse { after: 5 },
        Op::Detach { device: 0, count: 1 },
        Op::Unmap { slot: 0, pick: 0, shape: 0, place: PLACE, sync: Sync::Strict },
        Op::Drop { slot: 0 },
    ];
    for unit in ["full", "caching mode", "nothing coherent, caching mode"] {
        let steps: Vec<_> = (1..).zip(steps).collect();
        replay(unit, 5, &steps);
    }
}

/// Seed 0: an entry that led nowhere was exchanged for a table with its present bit off in between, and called hitless.
#[test]
fn requests_without_pasid_are_attached_beside_pasids_without_a_moment_of_no_entry() {
    replay(
        "full",
        5,
        &[
            (0x39b8_ac84_2281_4bd9, Op::New { slot: 101, kind: 70 }),
            (0xb20c_3565_369f_4569, Op::Permit { device: 166, count: 1, bits: 82, requests: 52 }),
            (0x9075_8544_d101_a3de, Op::Permit { device: 75, count: 1, bits: 196, requests: 198 }),
            (0x992d_b628_8414_d50a, Op::AttachPasid { device: 206, count: 1, slot: 193, pasid: 71 }),
            (0x0c2a_8327_5d0a_f188, Op::New { slot: 231, kind: 160 }),
            (0xfb2f_e7e5_b2fa_3205, Op::Attach { device: 220, count: 2, slot: 226 }),
        ],
    );
}

/// Seed 6: the empty table beside PASIDs was not cleaned for page walks that do not snoop.
#[test]
fn the_table_that_leads_nowhere_is_empty_in_memory() {
    replay(
        "no coherent walks",
        5,
        &[
            (0x0aff_67d2_549a_0b00, Op::Permit { device: 163, count: 1, bits: 27, requests: 181 }),
            (0xeade_7d35_e54f_c39a, Op::New { slot: 56, kind: 241 }),
            (0xb4d4_b8a5_1951_e45d, Op::AttachPasid { device: 173, count: 1, slot: 6, pasid: 190 }),
            (0x7ecf_770e_0b69_b909, Op::Attach { device: 138, count: 1, slot: 93 }),
        ],
    );
}

/// Seed 6, further on: the entry that leads there stayed cached when the last PASID was detached.
#[test]
fn the_entry_that_leads_nowhere_is_forgotten_with_the_others() {
    replay(
        "no coherent walks",
        5,
        &[
            (0x3b80_c217_8f60_d0b5, Op::Permit { device: 159, count: 1, bits: 145, requests: 131 }),
            (0x24ce_41e2_78ad_bea5, Op::Permit { device: 35, count: 1, bits: 49, requests: 78 }),
            (0x9be8_b3ea_9cb1_40f1, Op::New { slot: 252, kind: 32 }),
            (0x1b7a_0c09_0e1a_b1c4, Op::AttachPasid { device: 134, count: 2, slot: 156, pasid: 94 }),
            (0xcca9_2f88_254e_d47c, Op::New { slot: 154, kind: 56 }),
            (0x3a0b_9620_597b_ef21, Op::Detach { device: 28, count: 2 }),
            (0x45b5_0789_8c19_956c, Op::Attach { device: 34, count: 1, slot: 191 }),
        ],
    );
}

/// Seed 12: two devices took their domain id along, and the first one's TLB was filled again by way of the second.
#[test]
fn devices_that_keep_their_id_forget_what_the_last_of_them_had() {
    let place = Place { window: 180, offset: 254, size: 42 };
    replay(
        "nothing coherent, caching mode",
        5,
        &[
            (0x822d_fc15_4fcd_79fe, Op::New { slot: 96, kind: 58 }),
            (
                0x4e30_4410_6067_1df0,
                Op::Map { slot: 79, place, pieces: 3, step: 141, access: 195, aligned: true },
            ),
            (0xe984_5299_f9b0_f1dd, Op::Attach { device: 183, count: 2, slot: 57 }),
            (0xc1ea_5b6b_8c2b_55ea, Op::Attach { device: 245, count: 1, slot: 55 }),
            (0xca27_ac3d_54eb_894a, Op::Permit { device: 49, count: 2, bits: 89, requests: 138 }),
            (0xe035_0917_d94e_30c2, Op::New { slot: 11, kind: 237 }),
            (0xe6e3_cd04_9065_21ae, Op::Attach { device: 173, count: 1, slot: 155 }),
            (0x539d_9f52_b512_e992, Op::Attach { device: 84, count: 2, slot: 179 }),
        ],
    );
}

/// Seed 35: a PASID of a device whose blocking was never confirmed was reported as detached.
#[test]
fn a_pasid_is_detached_only_when_hardware_confirmed_it_however_often_it_is_tried() {
    let place = Place { window: 212, offset: 28, size: 213 };
    replay(
        "16 domain ids",
        5,
        &[
            (0x78ad_59e1_6d65_68f3, Op::Permit { device: 173, count: 2, bits: 212, requests: 41 }),
            (0xb051_f8d1_f8f2_ca0f, Op::New { slot: 127, kind: 64 }),
            (0xabf9_09f5_889a_51df, Op::Attach { device: 66, count: 2, slot: 186 }),
            (0xbc04_7082_0187_7f2f, Op::Attach { device: 174, count: 1, slot: 42 }),
            (0xa86a_bb77_bf79_7b6d, Op::New { slot: 78, kind: 14 }),
            (0x5b0a_a7b5_482d_3739, Op::Deaf),
            (0x82bb_710d_137a_d152, Op::Unmap { slot: 97, pick: 36, shape: 0, place, sync: Sync::Strict }),
            (0xf27e_72b1_b835_cbfc, Op::Attach { device: 254, count: 1, slot: 73 }),
            (0xe53b_8736_7e09_6610, Op::Detach { device: 245, count: 2 }),
            (0xdbca_5e24_0ca0_e15c, Op::DetachPasid { device: 56, count: 2, pasid: 128 }),
        ],
    );
}

/// Seed 77: of two devices of a domain that were permitted to ask at once, one was not told of unmaps.
#[test]
fn all_devices_that_may_ask_are_told_of_unmaps() {
    let (first, second) =
        (Place { window: 90, offset: 131, size: 242 }, Place { window: 41, offset: 146, size: 73 });
    replay(
        "nothing coherent, caching mode",
        18,
        &[
            (0x0118_8537_5100_fb66, Op::New { slot: 86, kind: 129 }),
            (
                0x7bf1_8328_2be6_1c6b,
                Op::Map { slot: 201, place: first, pieces: 1, step: 30, access: 236, aligned: true },
            ),
            (0x146b_6658_45f3_c750, Op::Attach { device: 98, count: 1, slot: 190 }),
            (0x3618_22b8_4658_2e2f, Op::New { slot: 57, kind: 132 }),
            (0x46a2_9de5_a1d8_a89d, Op::Attach { device: 25, count: 1, slot: 121 }),
            (0x6581_2fda_d939_f9e7, Op::Drop { slot: 140 }),
            (0x30b2_87d9_128b_f2bf, Op::Attach { device: 145, count: 2, slot: 171 }),
            (0xd3ee_5ac2_86c8_5995, Op::Permit { device: 127, count: 2, bits: 138, requests: 174 }),
            (0x5d21_8371_a583_e54b, Op::AttachPasid { device: 254, count: 1, slot: 101, pasid: 154 }),
            (
                0xecdf_4913_9699_3b42,
                Op::Unmap { slot: 247, pick: 78, shape: 190, place: second, sync: Sync::Strict },
            ),
        ],
    );
}

/// Seed 142: what was withdrawn from a device whose blocking was never confirmed was reported as withdrawn.
#[test]
fn permissions_are_withdrawn_only_when_hardware_confirmed_it() {
    let place = Place { window: 234, offset: 184, size: 2 };
    replay(
        "nothing coherent, caching mode",
        5,
        &[
            (0x03ea_0019_2f19_d1a8, Op::Permit { device: 192, count: 2, bits: 196, requests: 135 }),
            (0x0c3e_a41a_2c14_5115, Op::New { slot: 94, kind: 66 }),
            (0x33f7_be99_b098_dfae, Op::Deaf),
            (0x7993_9f23_52e3_5214, Op::Sync { slot: 177 }),
            (0x4a8d_53d2_2975_82cf, Op::Attach { device: 202, count: 2, slot: 59 }),
            (0xa502_b02b_3e21_432c, Op::Permit { device: 142, count: 1, bits: 0, requests: 17 }),
            (
                0x4551_71a4_db4e_dd95,
                Op::Unmap { slot: 41, pick: 201, shape: 190, place, sync: Sync::Gathered },
            ),
        ],
    );
}

/// Seed 5487: to withdraw again what a device kept that had not confirmed it was reported as done, as the driver had
/// noted the new permissions before.
#[test]
fn permissions_are_withdrawn_only_when_hardware_confirmed_it_however_often_it_is_tried() {
    let [first, second, third, fourth] = [(15, 105, 45), (132, 102, 212), (77, 109, 123), (232, 253, 241)]
        .map(|(window, offset, size)| Place { window, offset, size });
    replay(
        "QEMU, first stage",
        5,
        &[
            (0xa077_8bd4_035d_2380, Op::Permit { device: 14, count: 1, bits: 186, requests: 171 }),
            (0x1549_14cb_9df2_5aa5, Op::New { slot: 249, kind: 165 }),
            (
                0xefd7_3af1_3227_27d7,
                Op::Unmap { slot: 186, pick: 150, shape: 193, place: first, sync: Sync::Strict },
            ),
            (0xa84b_f8b3_bef1_28f6, Op::Attach { device: 139, count: 1, slot: 140 }),
            (
                0xd584_ca53_3aaf_f627,
                Op::Unmap { slot: 75, pick: 12, shape: 82, place: second, sync: Sync::Strict },
            ),
            (
                0x37db_c0ac_fafd_4231,
                Op::Map { slot: 51, place: third, pieces: 1, step: 164, access: 40, aligned: false },
            ),
            (0xdb42_81f9_7a0a_aecf, Op::Deaf),
            (0x1b4c_a3e7_6c5e_eb13, Op::Lend { slot: 105, offset: 124, order: 69 }),
            (
                0x596b_4213_476e_abc0,
                Op::Map { slot: 89, place: fourth, pieces: 1, step: 109, access: 111, aligned: true },
            ),
            (0x002f_6835_6c58_f74f, Op::Permit { device: 44, count: 1, bits: 224, requests: 244 }),
            (0xdcc5_ba3a_8d72_6077, Op::Permit { device: 169, count: 1, bits: 48, requests: 133 }),
        ],
    );
}
