//! What `assign` writes: every BAR is reached at its address, by nothing else, through every bridge above it.

use crate::fabric::{
    DOWNSTREAM, EXPRESS_TO_PCI, Fabric, Node, ROOT_PORT, Takers, UPSTREAM, all_bars, decoders, id,
};
use portcullis_hal::PhysAddr;
use portcullis_pci::{
    AssignError, Assignment, BusAddress, HostWindow, HostWindows, Space, assign, enumerate,
};
use proptest::prelude::*;

fn window(first: u64, len: u64) -> Option<HostWindow> {
    Some(HostWindow::new(BusAddress::new(first), PhysAddr::new(first), len).unwrap())
}

/// As on QEMU's `virt` machine.
fn windows() -> HostWindows {
    HostWindows { low: window(0x1000_0000, 0x2eff_0000), high: window(0x80_0000_0000, 0x80_0000_0000) }
}

/// Checks a fabric after assignment, by its own decoding.
fn check(fabric: &Fabric, windows: &HostWindows) {
    let nodes = fabric.nodes();
    let bars = all_bars(&nodes, &[]);
    for bar in &bars {
        assert_ne!(bar.first, 0, "{bar:?} has no address");
        let size = bar.last - bar.first + 1;
        assert_eq!(bar.first % size, 0, "{bar:?} is not aligned");
        assert!(windows.to_phys(BusAddress::new(bar.first), size).is_some(), "{bar:?} is out of reach");
        for address in [bar.first, bar.last, bar.first + size / 2] {
            assert_eq!(decoders(&nodes, address, &[]), core::slice::from_ref(bar), "at {address:#x}");
        }
        // Nobody else is on its pages.
        let page = |address: u64| address / 4096;
        let shares = |other: &&crate::fabric::Decoder| {
            page(other.first) <= page(bar.last) && page(bar.first) <= page(other.last)
        };
        assert_eq!(bars.iter().filter(shares).count(), 1, "{bar:?} shares a page");
    }
    masters(&nodes);
}

fn masters(nodes: &[Node]) {
    for node in nodes {
        assert_eq!(node.value(4) & 5, 0, "I/O decoding or bus mastering is on");
        masters(&node.below);
    }
}

fn count(nodes: &[Node]) -> usize {
    nodes.iter().map(|node| 1 + count(&node.below)).sum()
}

#[test]
fn a_root_port_with_a_virtio_device_is_set_up() {
    // As QEMU's `virt`: a virtio disk behind a root port, two edu devices on the root bus.
    let disk = Node::endpoint(0, 0).bar32(1, 0x1000).bar64(4, 0x4000);
    let (fabric, config) = Fabric::with_config(
        vec![
            Node::host_bridge(),
            Node::port(3, ROOT_PORT, vec![disk]).bar32(0, 0x1000),
            Node::conventional(4, 0).bar32(0, 0x10_0000),
            Node::conventional(5, 0).bar32(0, 0x10_0000).bar_io(1, 0x20),
        ],
        Takers::One,
    );
    assert_eq!(assign(&config, &windows()), Ok(Assignment::Assigned { bridges: 1, bars: 5 }));
    check(&fabric, &windows());
    let bar = |function, at| config.read32(function, at);
    // Largest first: the two of 1 MiB and the bridge's window of 1 MiB, then the bridge's own page.
    assert_eq!(bar(id(0, 3, 0), 0x18), 0x0001_0100);
    assert_eq!(bar(id(0, 3, 0), 0x20), 0x1020_1020);
    assert_eq!(bar(id(0, 3, 0), 0x24), 0x0001_0001);
    assert_eq!((bar(id(0, 3, 0), 0x28), bar(id(0, 3, 0), 0x2c)), (0x80, 0x80));
    assert_eq!(bar(id(0, 3, 0), 0x1c) & 0xffff, 0x00f0);
    assert_eq!((bar(id(1, 0, 0), 0x20), bar(id(1, 0, 0), 0x24)), (0xc, 0x80));
    assert_eq!(bar(id(0, 5, 0), 0x14), 1);
    // Once only.
    assert_eq!(assign(&config, &windows()), Ok(Assignment::Kept));
}

#[test]
fn what_firmware_configured_is_kept() {
    let numbered = Node::port(1, ROOT_PORT, vec![Node::endpoint(0, 0).bar32(0, 0x1000)]).buses(0, 1, 1);
    let open = Node::port(2, ROOT_PORT, vec![]);
    let decoding = Node::conventional(3, 0).bar32(0, 0x1000).command(2);
    let port_decoding = Node::conventional(3, 0).bar_io(0, 0x20).command(1);
    for nodes in [vec![numbered, open.clone()], vec![open.clone(), decoding], vec![open, port_decoding]] {
        let (fabric, config) = Fabric::with_config(nodes.clone(), Takers::One);
        assert_eq!(assign(&config, &windows()), Ok(Assignment::Kept));
        for (before, after) in nodes.iter().zip(fabric.nodes()) {
            assert!((0..0x40).step_by(4).all(|at| before.value(at) == after.value(at)));
        }
    }
    // A host bridge that decodes says nothing.
    let config = Fabric::config(vec![Node::host_bridge().command(2), Node::conventional(1, 0)]);
    assert_eq!(assign(&config, &windows()), Ok(Assignment::Assigned { bridges: 0, bars: 0 }));
}

#[test]
fn buses_are_numbered_depth_first_over_stale_numbers() {
    let switch = Node::port(
        0,
        UPSTREAM,
        vec![
            Node::port(0, DOWNSTREAM, vec![Node::endpoint(0, 0)]),
            // Numbers that nobody above ever opened.
            Node::port(1, DOWNSTREAM, vec![Node::endpoint(0, 0)]).buses(9, 3, 200),
        ],
    )
    .buses(7, 1, 255);
    let bridge = Node::port(0, EXPRESS_TO_PCI, vec![Node::conventional(1, 0)]);
    let config =
        Fabric::config(vec![Node::port(1, ROOT_PORT, vec![switch]), Node::port(2, ROOT_PORT, vec![bridge])]);
    assert_eq!(assign(&config, &windows()), Ok(Assignment::Assigned { bridges: 6, bars: 0 }));
    let numbers: Vec<_> = enumerate(&config)
        .unwrap()
        .iter()
        .filter_map(|function| function.buses())
        .map(|buses| (buses.primary(), buses.secondary(), buses.subordinate()))
        .collect();
    assert_eq!(numbers, [(0, 1, 4), (1, 2, 4), (2, 3, 3), (2, 4, 4), (0, 5, 6), (5, 6, 6)]);
}

#[test]
fn more_bridges_than_bus_numbers_are_refused() {
    let mut nodes = vec![Node::endpoint(0, 0)];
    for _ in 0..4 {
        nodes = vec![Node::bridge(0, 0, nodes)];
    }
    let config = Fabric::config_from(nodes, 0, 0, 3);
    assert_eq!(assign(&config, &windows()), Err(AssignError::NoBusNumber(id(3, 0, 0))));
}

#[test]
fn the_deepest_hierarchy_that_has_numbers_is_set_up() {
    let mut nodes = vec![Node::endpoint(0, 0).bar32(0, 0x1000).bar64(2, 0x1000)];
    for _ in 0..255 {
        nodes = vec![Node::bridge(0, 0, nodes)];
    }
    let (fabric, config) = Fabric::with_config(nodes, Takers::One);
    assert_eq!(assign(&config, &windows()), Ok(Assignment::Assigned { bridges: 255, bars: 2 }));
    check(&fabric, &windows());
    assert_eq!(enumerate(&config).unwrap().len(), 256);
}

#[test]
fn a_window_that_is_too_small_leaves_everything_off() {
    let nodes = vec![
        Node::port(1, ROOT_PORT, vec![Node::endpoint(0, 0).bar32(0, 0x1000)]),
        Node::conventional(2, 0).bar32(0, 0x10_0000),
    ];
    let refused = |windows: HostWindows, space| {
        let (fabric, config) = Fabric::with_config(nodes.clone(), Takers::One);
        assert_eq!(assign(&config, &windows), Err(AssignError::WindowTooSmall(space)));
        assert!(all_bars(&fabric.nodes(), &[]).iter().all(|bar| bar.first == 0));
        assert!(fabric.nodes().iter().all(|node| node.value(4) & 7 == 0));
    };
    let low = |low| HostWindows { low, high: None };
    // Two ranges of 1 MiB are needed.
    refused(low(window(0x1000_0000, 0x1f_ffff)), Space::Low);
    refused(low(window(0x1008_0000, 0x20_0000)), Space::Low);
    refused(low(None), Space::Low);
    let (fabric, config) = Fabric::with_config(nodes.clone(), Takers::One);
    let exact = low(window(0x1000_0000, 0x20_0000));
    assert_eq!(assign(&config, &exact), Ok(Assignment::Assigned { bridges: 1, bars: 2 }));
    check(&fabric, &exact);

    let config = Fabric::config(vec![Node::conventional(1, 0).bar64(0, 1 << 33)]);
    let small = HostWindows { low: window(0x1000_0000, 0x1000_0000), high: window(1 << 40, 1 << 32) };
    assert_eq!(assign(&config, &small), Err(AssignError::WindowTooSmall(Space::High)));
    assert_eq!(
        assign(&config, &HostWindows { high: None, ..small }),
        Err(AssignError::WindowTooSmall(Space::Low))
    );
    let above = HostWindows { low: window(0xffff_0000, 0x2_0000), high: None };
    assert_eq!(assign(&config, &above), Err(AssignError::WindowTooHigh(BusAddress::new(0x1_0000_ffff))));
    let config = Fabric::config(vec![Node::conventional(1, 0).bar64(0, 1 << 63)]);
    let whole = HostWindows { high: window(0x1000, u64::MAX - 0x1000), ..small };
    assert_eq!(assign(&config, &whole), Err(AssignError::WindowTooSmall(Space::High)));
}

#[test]
fn what_a_bridge_cannot_forward_goes_low() {
    let below = |kind| {
        let inner = Node::port(0, UPSTREAM, vec![Node::endpoint(0, 0).bar64(0, 0x20_0000)]);
        Node::port(1, ROOT_PORT, vec![inner]).prefetchable_window(kind)
    };
    for (kind, high) in [(0, false), (1, true)] {
        let (fabric, config) = Fabric::with_config(vec![below(kind)], Takers::One);
        assign(&config, &windows()).unwrap();
        check(&fabric, &windows());
        let bars = all_bars(&fabric.nodes(), &[]);
        assert_eq!(bars[0].first >= 1 << 32, high, "{bars:?}");
    }
    // Without a high window, everything is low.
    let low = HostWindows { high: None, ..windows() };
    let (fabric, config) = Fabric::with_config(vec![below(1)], Takers::One);
    assign(&config, &low).unwrap();
    check(&fabric, &low);
}

#[test]
fn a_function_with_a_bad_bar_stays_off_and_the_others_are_set_up() {
    let bad = Node::endpoint(0, 0).bar32(0, 0x1000).writable(0x14, 0xfffe_f000).with(0x14, 0);
    let (fabric, config) = Fabric::with_config(
        vec![Node::port(1, ROOT_PORT, vec![bad]), Node::conventional(2, 0).bar32(0, 0x1000)],
        Takers::One,
    );
    assert_eq!(assign(&config, &windows()), Ok(Assignment::Assigned { bridges: 1, bars: 1 }));
    assert_eq!((config.read32(id(1, 0, 0), 4) & 3, config.read32(id(1, 0, 0), 0x10)), (0, 0));
    assert_eq!(config.read32(id(0, 2, 0), 4) & 2, 2);
    // The bridge above the bad one forwards nothing.
    let nodes = fabric.nodes();
    assert_eq!((nodes[0].value(4) & 2, nodes[0].value(0x20)), (0, 0x0000_fff0));
}

#[test]
fn address_0_is_not_given_away() {
    let (fabric, config) = Fabric::with_config(vec![Node::conventional(1, 0).bar32(0, 0x1000)], Takers::One);
    let from_zero = HostWindows { low: window(0, 0x10_0000), high: None };
    assign(&config, &from_zero).unwrap();
    check(&fabric, &from_zero);
}

#[test]
fn a_shifted_window_gives_the_cpus_view() {
    let shifted = HostWindow::new(BusAddress::new(0x1000), PhysAddr::new(0x9000_1000), 0x2000).unwrap();
    let windows = HostWindows { low: Some(shifted), high: None };
    let phys = |address, len| windows.to_phys(BusAddress::new(address), len);
    assert_eq!(phys(0x2000, 0x1000), Some(PhysAddr::new(0x9000_2000)));
    assert_eq!((phys(0x2000, 0x1001), phys(0xfff, 1), phys(0x1000, 0)), (None, None, None));
    assert!(HostWindow::new(BusAddress::new(1), PhysAddr::new(0), 0).is_err());
    assert!(HostWindow::new(BusAddress::new(1), PhysAddr::new(0), u64::MAX).is_ok());
    assert!(HostWindow::new(BusAddress::new(1), PhysAddr::new(1), u64::MAX).is_ok());
    assert!(HostWindow::new(BusAddress::new(2), PhysAddr::new(0), u64::MAX).is_err());
    assert!(HostWindow::new(BusAddress::new(0), PhysAddr::new(2), u64::MAX).is_err());
}

fn endpoint() -> impl Strategy<Value = Node> {
    let bar = (0_u32..12, any::<bool>());
    proptest::collection::vec(bar, 0..3).prop_map(|bars| {
        let mut node = Node::endpoint(0, 0);
        for (slot, (log2, wide)) in bars.into_iter().enumerate() {
            // 256 bytes to 512 KiB low, 32 KiB to 64 MiB high.
            node =
                if wide { node.bar64(2 * slot, 0x8000 << log2) } else { node.bar32(2 * slot, 0x100 << log2) };
        }
        node
    })
}

/// A fabric of a few levels; device numbers follow the position on the bus.
fn tree() -> impl Strategy<Value = Vec<Node>> {
    let leaf = endpoint().boxed();
    let node = leaf.prop_recursive(4, 40, 4, |inner| {
        let below = proptest::collection::vec(inner, 0..4);
        (below, 0_u32..5, 0_u32..2, any::<bool>()).prop_map(|(below, kind, wide, own)| {
            let kind = [ROOT_PORT, UPSTREAM, DOWNSTREAM, EXPRESS_TO_PCI, EXPRESS_TO_PCI][kind as usize];
            let link = kind == ROOT_PORT || kind == DOWNSTREAM;
            let below: Vec<Node> = below.into_iter().take(if link { 1 } else { 4 }).collect();
            let node = Node::port(0, kind, numbered(below)).prefetchable_window(wide);
            if own { node.bar32(0, 0x1000) } else { node }
        })
    });
    proptest::collection::vec(node, 1..6).prop_map(numbered)
}

fn numbered(mut nodes: Vec<Node>) -> Vec<Node> {
    for (device, node) in nodes.iter_mut().enumerate() {
        node.devfn = (device as u8) << 3;
    }
    nodes
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn every_bar_is_reached_at_its_address_and_by_nothing_else(nodes in tree()) {
        let total = count(&nodes);
        let (fabric, config) = Fabric::with_config(nodes, Takers::One);
        let done = assign(&config, &windows()).unwrap();
        let bars = all_bars(&fabric.nodes(), &[]).len();
        let Assignment::Assigned { bars: written, .. } = done else { panic!("{done:?}") };
        prop_assert_eq!(written, bars);
        prop_assert_eq!(enumerate(&config).unwrap().len(), total);
        check(&fabric, &windows());
    }

    #[test]
    fn in_a_tight_window_all_is_right_or_all_is_off(
        nodes in tree(),
        first in 1_u64..0x4000,
        len in 1_u64..0x2000,
        high in 1_u64..0x8000,
    ) {
        let (fabric, config) = Fabric::with_config(nodes, Takers::One);
        let windows = HostWindows {
            low: window(first << 12, len << 12),
            high: window(1 << 40 | first << 12, high << 12),
        };
        match assign(&config, &windows) {
            Ok(_) => check(&fabric, &windows),
            Err(AssignError::WindowTooSmall(_)) => {
                let nodes = fabric.nodes();
                prop_assert!(all_bars(&nodes, &[]).iter().all(|bar| decoders(&nodes, bar.first, &[]).is_empty()));
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}
