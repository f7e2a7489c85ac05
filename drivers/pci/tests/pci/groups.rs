//! Isolation groups: known machines, and a second opinion that follows requests through the fabric.

use crate::fabric::{
    ACS_FULL, DOWNSTREAM, ENDPOINT, EXPRESS_TO_PCI, Fabric, Node, ROOT_PORT, Takers, UPSTREAM, id,
};
use portcullis_pci::spec::{AcsFlags, PortType};
use portcullis_pci::{Assignment, Function, HostWindows, assign, enable_acs, enumerate, isolation_groups};
use proptest::prelude::*;

/// The functions of an assigned fabric with ACS on where there is any, and their groups.
fn grouped(nodes: Vec<Node>) -> (Vec<Function>, Vec<u32>) {
    let config = Fabric::config(nodes);
    let none = HostWindows::default();
    assert!(matches!(assign(&config, &none).unwrap(), Assignment::Assigned { .. }));
    let mut functions = enumerate(&config).unwrap();
    enable_acs(&config, &mut functions);
    // What the functions say now is what the registers say.
    assert_eq!(functions, enumerate(&config).unwrap());
    let groups = isolation_groups(&functions).unwrap();
    (functions, groups.into_iter().map(|group| group.get()).collect())
}

fn groups(nodes: Vec<Node>) -> Vec<u32> {
    grouped(nodes).1
}

fn acs(node: Node) -> Node {
    node.acs(ACS_FULL, 0)
}

#[test]
fn functions_on_the_root_bus_are_alone_unless_they_are_of_one_device() {
    let nodes = vec![
        Node::host_bridge(),
        Node::conventional(4, 0),
        Node::conventional(5, 0),
        Node::conventional(0x1f, 0).multi(),
        Node::conventional(0x1f, 2).multi(),
        Node::conventional(0x1f, 3).multi(),
    ];
    assert_eq!(groups(nodes), [0, 1, 2, 3, 3, 3]);
}

#[test]
fn a_root_port_isolates_if_it_has_acs() {
    let port = |node: fn(Node) -> Node| vec![node(Node::port(1, ROOT_PORT, vec![Node::endpoint(0, 0)]))];
    assert_eq!(groups(port(acs)), [0, 1]);
    assert_eq!(groups(port(|node| node)), [0, 0]);
    // One that never routes between ports has nothing to redirect, but it validates sources.
    assert_eq!(groups(port(|node| node.acs(0x01, 0))), [0, 1]);
    assert_eq!(groups(port(|node| node.acs(0x1c, 0))), [0, 0]);
    // Two ports and two devices.
    let two = (1..3).map(|device| Node::port(device, ROOT_PORT, vec![Node::endpoint(0, 0)]));
    assert_eq!(groups(two.collect()), [0, 0, 1, 1]);
}

fn switch(ports: [fn(Node) -> Node; 2]) -> Node {
    let downstream = ports
        .iter()
        .enumerate()
        .map(|(device, port)| port(Node::port(device as u8, DOWNSTREAM, vec![Node::endpoint(0, 0)])));
    Node::port(0, UPSTREAM, downstream.collect())
}

#[test]
fn a_switch_isolates_if_all_its_ports_and_those_above_do() {
    let under = |root: fn(Node) -> Node, ports| vec![root(Node::port(1, ROOT_PORT, vec![switch(ports)]))];
    assert_eq!(groups(under(acs, [acs, acs])), [0, 1, 2, 3, 4, 5]);
    assert_eq!(groups(under(acs, [acs, |port| port])), [0, 1, 1, 1, 1, 1]);
    // A downstream port has to have all four services.
    assert_eq!(groups(under(acs, [acs, |port| port.acs(0x0d, 0)])), [0, 1, 1, 1, 1, 1]);
    assert_eq!(groups(under(|root| root, [acs, acs])), [0; 6]);
}

#[test]
fn conventional_buses_are_one_group_with_their_bridge() {
    let bridge = Node::port(0, EXPRESS_TO_PCI, vec![Node::conventional(1, 0), Node::conventional(2, 0)]);
    let port = acs(Node::port(1, ROOT_PORT, vec![bridge]));
    let legacy = Node::bridge(2, 0, vec![Node::conventional(1, 0), Node::bridge(2, 0, vec![])]);
    let (functions, groups) = grouped(vec![port, legacy, Node::conventional(3, 0)]);
    assert_eq!(groups, [0, 1, 1, 1, 2, 2, 2, 3]);
    assert_eq!(functions[2].alias, Some(id(2, 0, 0)));
    assert_eq!(functions[5].alias, Some(id(0, 2, 0)));
}

#[test]
fn root_ports_of_one_device_need_acs_each() {
    let port = |function, node: fn(Node) -> Node| {
        let bridge = Node::bridge(1, function, vec![Node::endpoint(0, 0)]).express(ROOT_PORT).multi();
        node(bridge)
    };
    assert_eq!(groups(vec![port(0, acs), port(1, acs)]), [0, 1, 2, 3]);
    assert_eq!(groups(vec![port(0, acs), port(1, |node| node)]), [0; 4]);
}

#[test]
fn functions_of_an_endpoint_need_acs_each() {
    let device = |nodes: [fn(Node) -> Node; 2]| {
        let functions =
            nodes.iter().enumerate().map(|(function, node)| node(Node::endpoint(0, function as u8).multi()));
        vec![acs(Node::port(1, ROOT_PORT, functions.collect()))]
    };
    assert_eq!(groups(device([acs, acs])), [0, 1, 2]);
    assert_eq!(groups(device([|node| node.acs(0x0c, 0), |node| node.acs(0, 0)])), [0, 1, 2]);
    assert_eq!(groups(device([acs, |node| node])), [0, 1, 1]);
}

#[test]
fn functions_of_an_ari_device_are_one_device_whatever_their_numbers() {
    let function = |at: u8, next: u32| {
        let mut node = Node::endpoint(0, 0).multi().extended(0x0e, &[next << 8]);
        node.devfn = at;
        node
    };
    let mut port = acs(Node::port(1, ROOT_PORT, vec![function(0, 9), function(9, 0)])).buses(0, 1, 1);
    let at = (0x40..0x100).step_by(4).find(|&at| port.value(at) & 0xff == 0x10).unwrap();
    port.set(at + 0x28, 0x20);
    let config = Fabric::config(vec![port]);
    let mut functions = enumerate(&config).unwrap();
    enable_acs(&config, &mut functions);
    let groups = isolation_groups(&functions).unwrap();
    assert_eq!(groups.iter().map(|group| group.get()).collect::<Vec<_>>(), [0, 1, 1]);
}

#[test]
fn acs_with_holes_does_not_count() {
    for (enabled, expected) in [(0x1d, [0, 1, 2]), (0x3d, [0, 1, 1]), (0x5d, [0, 1, 1])] {
        let port = Node::port(0, DOWNSTREAM, vec![]).acs(0x7f, enabled).buses(2, 3, 3);
        let upstream = Node::port(0, UPSTREAM, vec![port]).buses(1, 2, 3);
        let root = Node::port(1, ROOT_PORT, vec![upstream]).acs(ACS_FULL, ACS_FULL).buses(0, 1, 3);
        let functions = enumerate(&Fabric::config(vec![root])).unwrap();
        let groups = isolation_groups(&functions).unwrap();
        assert_eq!(groups.iter().map(|group| group.get()).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn acs_counts_only_where_it_is_on_and_has_no_holes() {
    let with = |supported, enabled| {
        let ports = vec![Node::port(0, DOWNSTREAM, vec![]).acs(supported, enabled).buses(2, 3, 3)];
        let upstream = Node::port(0, UPSTREAM, ports).buses(1, 2, 3);
        let (_, config) = Fabric::with_config(
            vec![acs(Node::port(1, ROOT_PORT, vec![upstream])).buses(0, 1, 3)],
            Takers::One,
        );
        let mut functions = enumerate(&config).unwrap();
        let before = isolation_groups(&functions).unwrap()[2];
        enable_acs(&config, &mut functions);
        let enabled = functions[2].acs.unwrap().enabled;
        (before.get(), isolation_groups(&functions).unwrap()[2].get(), enabled.bits())
    };
    // Off, then on; before, the root port does not isolate either.
    assert_eq!(with(0x5f, 0), (0, 2, 0x1d));
    // Egress control and direct translated requests go off; translation blocking stays.
    assert_eq!(with(0x7f, 0x7f), (0, 2, 0x1f));
}

#[test]
fn a_control_that_does_not_stick_does_not_count() {
    let port = acs(Node::port(1, ROOT_PORT, vec![Node::endpoint(0, 0)]));
    let at = port.newest_extended();
    assert_eq!(groups(vec![port.writable(at + 4, 0x0014_0000)]), [0, 0]);
}

#[test]
fn a_damaged_list_counts_as_no_acs() {
    let port = acs(Node::port(1, ROOT_PORT, vec![Node::endpoint(0, 0)])).with(0x100, 0x0401_0003);
    let (functions, groups) = grouped(vec![port]);
    assert!(functions[0].damage.is_some());
    assert_eq!(groups, [0, 0]);
}

/// Where a request of function `from` can go before it has passed the root complex, by following it upwards.
fn reached(functions: &[Function], from: usize) -> Vec<usize> {
    let below = |top: usize| {
        (0..functions.len()).filter(move |&index| {
            let mut at = Some(index);
            while let Some(here) = at.filter(|&here| here != top) {
                at = functions[here].parent;
            }
            at == Some(top)
        })
    };
    let on = |index: usize| functions[index].acs.map_or(AcsFlags::empty(), |acs| acs.enabled);
    let has = |index: usize| functions[index].acs.map_or(AcsFlags::empty(), |acs| acs.supported);
    let full = AcsFlags::from_bits_retain(0x1d);
    let mut found = Vec::new();
    let mut at = from;
    loop {
        let function = &functions[at];
        let kind = function.express.map(|express| u32::from(express.port_type.0));
        let bridge = function.buses().is_some();
        // Across to the other functions of the device, and down through them.
        let peers = (0..functions.len()).filter(|&peer| {
            let other = &functions[peer];
            let link = function.parent.is_some_and(|parent| {
                let kind = functions[parent].express.map(|express| u32::from(express.port_type.0));
                kind == Some(ROOT_PORT) || kind == Some(DOWNSTREAM)
            });
            peer != at
                && other.id.bus() == function.id.bus()
                && (link || other.id.device() == function.id.device())
        });
        let checks = match kind {
            None => false,
            Some(DOWNSTREAM) => on(at).contains(full),
            Some(ROOT_PORT) => on(at).contains(AcsFlags::SOURCE_VALIDATION | full & has(at)),
            Some(_) => {
                functions[at].acs.is_some() && on(at).contains(AcsFlags::from_bits_retain(0x0c) & has(at))
            }
        };
        if !checks {
            for peer in peers {
                found.extend(below(peer));
            }
        }
        if bridge {
            match kind {
                // It turns around at the port: to a sibling in the switch, or down the root port again.
                Some(DOWNSTREAM) if !checks => found.extend(below(function.parent.unwrap_or(at))),
                Some(ROOT_PORT) if !checks => found.extend(below(at)),
                Some(ROOT_PORT | UPSTREAM | DOWNSTREAM) => {}
                _ => found.extend(below(at)),
            }
        }
        match function.parent {
            Some(parent) => at = parent,
            None => return found,
        }
    }
}

/// The groups as the closure of what reaches what.
fn closure(functions: &[Function]) -> Vec<u32> {
    let mut label: Vec<usize> = (0..functions.len()).collect();
    for from in 0..functions.len() {
        for to in reached(functions, from) {
            let (old, new) = (label[from].max(label[to]), label[from].min(label[to]));
            label.iter_mut().filter(|entry| **entry == old).for_each(|entry| *entry = new);
        }
    }
    let mut names: Vec<usize> = Vec::new();
    label
        .iter()
        .map(|&entry| match names.iter().position(|&name| name == entry) {
            Some(number) => number as u32,
            None => {
                names.push(entry);
                names.len() as u32 - 1
            }
        })
        .collect()
}

fn fabric() -> impl Strategy<Value = Vec<Node>> {
    let acs =
        prop_oneof![Just(None), Just(Some(ACS_FULL)), Just(Some(0x01)), Just(Some(0x0c)), Just(Some(0x7f))];
    let leaf = (acs.clone(), any::<bool>()).prop_map(|(acs, express)| {
        let node = if express { Node::endpoint(0, 0) } else { Node::conventional(0, 0) };
        acs.map_or(node.clone(), |services| node.acs(services, 0))
    });
    let node = leaf.prop_recursive(4, 30, 4, move |inner| {
        let below = proptest::collection::vec(inner, 0..4);
        (below, 0_usize..5, acs.clone(), any::<bool>()).prop_map(|(below, kind, acs, multi)| {
            let kind = [ROOT_PORT, UPSTREAM, DOWNSTREAM, EXPRESS_TO_PCI, ENDPOINT][kind];
            let link = kind == ROOT_PORT || kind == DOWNSTREAM;
            let node = Node::port(0, kind, placed(below, if link || multi { 8 } else { 1 }));
            acs.map_or(node.clone(), |services| node.acs(services, 0))
        })
    });
    (proptest::collection::vec(node, 1..6), 1_u8..4).prop_map(|(nodes, functions)| placed(nodes, functions))
}

/// Gives device and function numbers by position, so many functions to a device.
fn placed(nodes: Vec<Node>, functions: u8) -> Vec<Node> {
    let place = |(position, mut node): (usize, Node)| {
        let (device, function) = (position as u8 / functions, position as u8 % functions);
        node.devfn = device << 3 | function;
        if functions > 1 { node.multi() } else { node }
    };
    nodes.into_iter().enumerate().map(place).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn groups_are_what_can_reach_each_other_without_the_root_complex(nodes in fabric()) {
        let (functions, groups) = grouped(nodes);
        prop_assert_eq!(&groups, &closure(&functions), "{:#?}", functions.iter().map(|function| {
            (function.id, function.port_type(), function.acs.map(|acs| acs.enabled))
        }).collect::<Vec<(_, Option<PortType>, _)>>());
        // Those whose requests look alike to the IOMMU are together.
        for (a, left) in functions.iter().enumerate() {
            for (b, right) in functions.iter().enumerate() {
                let mixed = left.alias == Some(right.id) || left.alias.is_some() && left.alias == right.alias;
                prop_assert!(!mixed || groups[a] == groups[b]);
            }
        }
    }
}
