//! Damaged bytes: never a panic, and either an error or a topology whose every index means something.

mod common;

use common::{ToBytes, bdf, data, dmar, fix_checksum, iort, parse, table};
use portcullis_firmware::*;
use portcullis_hal::RequesterId;
use proptest::prelude::*;

/// Uses a topology as a kernel would, with bridges everywhere.
fn use_it(mut topology: Topology) {
    let units = topology.units.len();
    let check = |topology: &Topology| {
        for word in (0..=u16::MAX).step_by(1009) {
            for segment in [0, 1, 0xffff] {
                let id = RequesterId::from_bdf(segment, word);
                if let Some((unit, _)) = topology.unit_of(id) {
                    assert!(unit.get() < units);
                    assert!(topology.unit(unit).is_some());
                }
                if let Some(target) = topology.msi_device_id(id) {
                    let frames = topology.gic.as_ref().map_or(0, |gic| gic.v2m_frames.len());
                    assert!(!matches!(target.controller, MsiController::V2m(frame) if frame >= frames));
                }
            }
        }
        let streams = topology.platform_devices.iter().flat_map(|device| &device.streams);
        assert!(streams.into_iter().all(|s| s.unit.get() < units && s.first <= s.last));
        for bridge in &topology.host_bridges {
            let buses = u64::from(bridge.buses.last - bridge.buses.first) + 1;
            assert_eq!(bridge.ecam.len(), buses << 20);
        }
    };
    check(&topology);
    let _ = topology.reserved_for(bdf(0, 1, 0)).count();
    let _ = topology.ats_support(bdf(0, 1, 0));
    let behind = |id: RequesterId| {
        id.device()
            .is_multiple_of(3)
            .then(|| BusRange { first: id.bus().wrapping_add(1), last: id.function() })
    };
    if topology.resolve_scopes(behind).is_ok() {
        check(&topology);
    }
    let text: String = topology.warnings.iter().map(|warning| warning.to_string()).collect();
    assert!(text.is_ascii());
}

fn samples() -> Vec<Vec<u8>> {
    use dmar::{andd, atsr, bridge, drhd, endpoint, rhsa, rmrr, satc, scope};
    use iort::{its_group, map, named, pmcg, rmr, root, single, smmuv3};
    let mut samples = Vec::new();
    samples.push(dmar::table(&[
        drhd(0, 0, 0xfed9_0000, &[endpoint(0, &[(2, 0)]), bridge(0, &[(0x1c, 0), (0, 0)])]),
        drhd(1, 0, 0xfed9_1000, &[scope(3, 2, 0xf0, &[(0x1f, 7)]), scope(5, 7, 0, &[(0x15, 1)])]),
        rmrr(0, 0x7b00_0000, 0x7b7f_ffff, &[endpoint(0, &[(0x14, 0)])]),
        atsr(0, 0, &[bridge(0, &[(0x1c, 0)])]),
        rhsa(0xfed9_0000, 1),
        andd(7, "\\_SB.X"),
        satc(1, 0, &[endpoint(0, &[(2, 0)])]),
    ]));
    samples.push(iort::table(&[
        its_group(&[0, 1]),
        smmuv3(0x905_0000, 0x1b, [1, 2, 0, 4], 1, vec![map(0, 0x1_0000, 0, 0), single(9, 0)]),
        root(0, 1, vec![map(0, 0x100, 0, 1), map(0x100, 0x100, 0x100, 0)]),
        named("\\_SB.N", vec![single(0x1_0000, 1), map(0, 4, 0x2_0000, 1)]),
        rmr(1, &[(0x8000_0000, 0x1000)], vec![single(0x1_0000, 1)]),
        pmcg(0),
    ]));
    let range = bytes![1u8, 0u8, 24u16, 0u32, 0u16, 1u16, 0u16, 0xffu16, 72u16, vec![0; 6]];
    let unit = bytes![3u8, 0u8, 16u16, 0u16, 0x10u16, vec![0; 8]];
    let device = bytes![2u8, 0u8, 24u16, 5u32, 0x1000u64, 72u16, vec![0; 6]];
    samples.push(table("VIOT", 0, &bytes![3u16, 48u16, 0u64, range, unit, device]));
    samples.push(table("MCFG", 1, &bytes![0u64, 0xe000_0000u64, 0u16, 0u8, 0xffu8, 0u32]));
    let gicc = bytes![0x0bu8, 80u8, vec![0; 10], 1u32, vec![0; 44], 0x80a_0000u64, 3u64, 0u32];
    let gicd = bytes![0x0cu8, 24u8, vec![0; 6], 0x800_0000u64, 0u32, 3u8, vec![0; 3]];
    let others =
        bytes![0x0eu8, 16u8, 0u16, 0x900_0000u64, 0x2_0000u32, 0x0fu8, 20u8, vec![0; 6], 0x1000u64, 0u32];
    let apics =
        bytes![0u8, 8u8, 0u8, 0u8, 1u32, 1u8, 12u8, 0u8, 0u8, 0xfec0_0000u32, 0u32, 2u8, 10u8, 0u8, 9u8];
    let apics = bytes![apics, 9u32, 0xdu16, 9u8, 16u8, 0u16, 77u32, 1u32, 0u32];
    samples.push(table("APIC", 5, &bytes![0xfee0_0000u32, 1u32, gicc, gicd, others, apics]));
    samples.push(table("SPCR", 4, &bytes![3u8, vec![0; 3], 0u32, 0x900_0000u64, 8u8, 0u8, 33u32]));
    samples.push(table("FACP", 6, &vec![1; 240]));
    samples
}

#[test]
fn undamaged_samples_are_accepted() {
    for sample in samples() {
        use_it(parse(&sample).unwrap());
    }
}

#[test]
fn a_table_cut_short_is_an_error() {
    for sample in samples() {
        for len in 0..sample.len() {
            let error = parse(&sample[..len]).unwrap_err();
            assert!(matches!(error, FirmwareError::Truncated { .. }), "{len}: {error}");
        }
    }
}

#[test]
fn a_table_that_says_it_is_shorter_does_no_harm() {
    for sample in samples() {
        for len in 36..sample.len() {
            let mut cut = sample[..len].to_vec();
            cut[4..8].copy_from_slice(&(len as u32).to_le_bytes());
            fix_checksum(&mut cut);
            if let Ok(topology) = parse(&cut) {
                use_it(topology);
            }
        }
    }
}

#[test]
fn any_byte_changed_is_a_checksum_error() {
    for sample in samples() {
        for at in 8..sample.len() {
            let mut bad = sample.clone();
            bad[at] ^= 0x10;
            assert!(matches!(parse(&bad), Err(FirmwareError::Checksum { .. })), "{at}");
        }
    }
}

#[test]
fn any_byte_changed_under_a_right_checksum_does_no_harm() {
    let mut refused = 0;
    for sample in samples() {
        for at in 4..sample.len() {
            for change in [0x01, 0x80, 0xff, sample[at], sample[at] ^ 4] {
                let mut bad = sample.clone();
                bad[at] ^= change;
                fix_checksum(&mut bad);
                match parse(&bad) {
                    Ok(topology) => use_it(topology),
                    Err(_) => refused += 1,
                }
            }
        }
    }
    // The change reached the parsers: they had something to refuse.
    assert!(refused > 500, "{refused}");
}

/// Trees of QEMU's machines.
fn trees() -> [Vec<u8>; 3] {
    ["virt-smmuv3.dtb", "virt-virtio-iommu.dtb", "virt-gicv2.dtb"].map(data)
}

#[test]
fn a_device_tree_cut_short_is_an_error() {
    for tree in trees() {
        for len in 0..tree.len() {
            assert!(devicetree::parse(&tree[..len]).is_err(), "{len}");
        }
        for len in (40..tree.len()).step_by(61) {
            let mut cut = tree[..len].to_vec();
            cut[4..8].copy_from_slice(&(len as u32).to_be_bytes());
            if let Ok(topology) = devicetree::parse(&cut) {
                use_it(topology);
            }
        }
    }
}

#[test]
fn any_byte_of_a_device_tree_changed_does_no_harm() {
    let [tree, ..] = trees();
    let mut refused = 0;
    for at in 0..tree.len() {
        let mut bad = tree.clone();
        bad[at] ^= if at % 2 == 0 { 0xff } else { 0x01 };
        match devicetree::parse(&bad) {
            Ok(topology) if at % 16 == 0 => use_it(topology),
            Ok(_) => {}
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 1000, "{refused}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tables_of_random_bytes_do_no_harm(
        which in 0usize..7,
        body in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let signature = ["DMAR", "IORT", "VIOT", "MCFG", "APIC", "SPCR", "FACP"][which];
        if let Ok(topology) = parse(&table(signature, 5, &body)) {
            use_it(topology);
        }
    }

    #[test]
    fn several_changes_at_once_do_no_harm(
        which in 0usize..7,
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bad = samples().swap_remove(which);
        for (at, value) in changes {
            let at = 8 + at.index(bad.len() - 8);
            bad[at] = value;
        }
        fix_checksum(&mut bad);
        if let Ok(topology) = parse(&bad) {
            use_it(topology);
        }
    }
}
