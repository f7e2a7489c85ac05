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
