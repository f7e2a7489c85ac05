//! What `enumerate` finds.

use crate::fabric::{
    ACS_FULL, DOWNSTREAM, EXPRESS_TO_PCI, Fabric, Node, ROOT_PORT, Takers, UPSTREAM, devfn, id,
};
use portcullis_hal::RequesterId;
use portcullis_pci::spec::{AcsFlags, PasidFeatures, PortType};
use portcullis_pci::{ConfigSpace, EnumerateError, Function, enumerate, enumerate_roots};

fn ids(functions: &[Function]) -> Vec<String> {
    functions.iter().map(|function| function.id.to_string()[5..].to_string()).collect()
}

fn bad_buses(bridge: RequesterId, secondary: u8, subordinate: u8) -> EnumerateError {
    EnumerateError::BadBuses { bridge, secondary, subordinate }
}

#[test]
fn functions_are_listed_depth_first_with_their_bridge() {
    let switch = Node::port(
        0,
        UPSTREAM,
        vec![
            Node::port(0, DOWNSTREAM, vec![Node::endpoint(0, 0)]).buses(2, 3, 3),
            Node::port(1, DOWNSTREAM, vec![]).buses(2, 4, 4),
        ],
    )
    .buses(1, 2, 4);
    let config = Fabric::config(vec![
        Node::host_bridge(),
        Node::port(3, ROOT_PORT, vec![switch]).buses(0, 1, 4),
        Node::conventional(4, 0),
    ]);
    let functions = enumerate(&config).unwrap();
    assert_eq!(
        ids(&functions),
        ["00:00.0", "00:03.0", "01:00.0", "02:00.0", "03:00.0", "02:01.0", "00:04.0"]
    );
    let parents: Vec<_> = functions.iter().map(|function| function.parent).collect();
    assert_eq!(parents, [None, None, Some(1), Some(2), Some(3), Some(2), None]);
    assert_eq!(functions[3].port_type(), Some(PortType::DOWNSTREAM));
    assert_eq!(functions[6].port_type(), None);
    assert!(functions.iter().all(|function| function.alias.is_none() && function.damage.is_none()));
}

#[test]
fn functions_above_0_are_tried_only_where_function_0_says_so() {
    let config = Fabric::config(vec![
        Node::conventional(1, 0).multi(),
        Node::conventional(1, 2),
        Node::conventional(1, 7),
        Node::conventional(2, 0),
        Node::conventional(2, 1),
        Node::conventional(3, 1),
        Node::conventional(31, 0),
    ]);
    let functions = enumerate(&config).unwrap();
    assert_eq!(ids(&functions), ["00:01.0", "00:01.2", "00:01.7", "00:02.0", "00:1f.0"]);
}

#[test]
fn below_a_port_there_is_one_device_and_with_ari_it_has_up_to_256_functions() {
    let ari = |at: u8, next: u32| {
        let mut node = Node::endpoint(0, 0).multi().extended(0x0e, &[next << 8]);
        node.devfn = at;
        node
    };
    let below = vec![ari(0, 9), ari(9, 0x81), ari(0x81, 9), ari(0x90, 0)];
    let port = |below| Node::port(1, ROOT_PORT, below).buses(0, 1, 1);

    let plain = Fabric::config(vec![port(below.clone())]);
    assert_eq!(ids(&enumerate(&plain).unwrap()), ["00:01.0", "01:00.0"]);

    let mut root = port(below);
    let at = root.newest();
    root.set(at + 0x28, 0x20);
    let functions = enumerate(&Fabric::config(vec![root])).unwrap();
    // The chain goes back from 81h to 9, where it ends; 90h is in no chain.
    assert_eq!(ids(&functions), ["00:01.0", "01:00.0", "01:01.1", "01:10.1"]);
    assert!(functions[1].ari && functions[1..].iter().all(|function| function.parent == Some(0)));
}

#[test]
fn a_device_without_ari_below_an_ari_port_has_its_usual_functions() {
    let mut root = Node::port(
        1,
        ROOT_PORT,
        vec![Node::endpoint(0, 0).multi(), Node::endpoint(0, 3), Node::endpoint(1, 0)],
    )
    .buses(0, 1, 1);
    let at = root.newest();
    root.set(at + 0x28, 0x20);
    let functions = enumerate(&Fabric::config(vec![root])).unwrap();
    assert_eq!(ids(&functions), ["00:01.0", "01:00.0", "01:00.3"]);
}

#[test]
fn a_bridge_without_numbers_is_listed_and_not_entered() {
    let config = Fabric::config(vec![Node::port(1, ROOT_PORT, vec![Node::endpoint(0, 0)])]);
    assert_eq!(ids(&enumerate(&config).unwrap()), ["00:01.0"]);
}

#[test]
fn bus_numbers_that_are_no_tree_are_refused() {
    let bridge = |device, numbers: (u32, u32, u32), below| {
        Node::bridge(device, 0, below).buses(numbers.0, numbers.1, numbers.2)
    };
    // Its own bus, backwards.
    let config = Fabric::config(vec![bridge(1, (0, 5, 4), vec![])]);
    assert_eq!(enumerate(&config), Err(bad_buses(id(0, 1, 0), 5, 4)));
    // A bus of an ancestor: a loop.
    let looping = bridge(1, (0, 1, 3), vec![bridge(0, (1, 1, 3), vec![])]);
    assert_eq!(enumerate(&Fabric::config(vec![looping])), Err(bad_buses(id(1, 0, 0), 1, 3)));
    // Past the parent's last bus.
    let past = bridge(1, (0, 1, 2), vec![bridge(0, (1, 2, 3), vec![])]);
    assert_eq!(enumerate(&Fabric::config(vec![past])), Err(bad_buses(id(1, 0, 0), 2, 3)));
    // A number given twice, to siblings whose first buses differ.
    let twice = vec![bridge(1, (0, 1, 3), vec![]), bridge(2, (0, 3, 4), vec![])];
    let config = Fabric::config(twice);
    assert_eq!(enumerate(&config), Err(bad_buses(id(0, 2, 0), 3, 4)));
    // Outside the segment.
    let config = Fabric::config_from(vec![bridge(1, (0, 1, 8), vec![])], 0, 0, 7);
    assert_eq!(enumerate(&config), Err(bad_buses(id(0, 1, 0), 1, 8)));
}

#[test]
fn a_segment_may_begin_later_than_bus_0() {
    let root = Node::port(2, ROOT_PORT, vec![Node::endpoint(0, 0)]).buses(0x40, 0x41, 0x41);
    let config = Fabric::config_from(vec![root], 7, 0x40, 0x7f);
    let functions = enumerate(&config).unwrap();
    assert_eq!(functions[1].id, RequesterId::new(7, 0x41, 0, 0).unwrap());
    let elsewhere = RequesterId::new(0, 0x41, 0, 0).unwrap();
    assert_eq!(config.read32(elsewhere, 0), u32::MAX);
    assert_eq!(enumerate_roots(&config, &[0x40, 0x3f]), Err(EnumerateError::BadRoot(0x3f)));
    assert_eq!(enumerate_roots(&config, &[0x40, 0x40]), Err(EnumerateError::BadRoot(0x40)));
}

#[test]
fn a_bridge_cannot_claim_another_root_bus() {
    let config = Fabric::config(vec![Node::bridge(1, 0, vec![]).buses(0, 1, 0x80)]);
    assert_eq!(enumerate_roots(&config, &[0, 0x80]), Err(bad_buses(id(0, 1, 0), 1, 0x80)));
}

#[test]
fn behind_conventional_bridges_requests_carry_another_id() {
    // A PCI Express to PCI bridge, with a conventional bridge behind it.
    let inner = Node::bridge(3, 0, vec![Node::conventional(5, 0)]).buses(2, 3, 3);
    let bridge = Node::port(0, EXPRESS_TO_PCI, vec![Node::conventional(1, 0), inner]).buses(1, 2, 3);
    let port = Node::port(1, ROOT_PORT, vec![bridge]).buses(0, 1, 3);
    // A conventional bridge on the root bus.
    let legacy = Node::bridge(2, 0, vec![Node::conventional(6, 0)]).buses(0, 4, 4);
    let functions = enumerate(&Fabric::config(vec![port, legacy])).unwrap();
    assert_eq!(
        ids(&functions),
        ["00:01.0", "01:00.0", "02:01.0", "02:03.0", "03:05.0", "00:02.0", "04:06.0"]
    );
    let aliases: Vec<_> = functions.iter().map(|function| function.alias).collect();
    let taken = Some(id(2, 0, 0));
    assert_eq!(aliases, [None, None, taken, taken, taken, None, Some(id(0, 2, 0))]);
}

#[test]
fn capabilities_are_read_with_their_data() {
    let node = Node::endpoint(1, 0)
        .capability(0x01, 3, &[0])
        .capability(0x05, 0x0186, &[0; 4])
        .capability(0x11, 0x003f, &[0x2004, 0x3004])
        .extended(0x0d, &[0x0c | 0x04 << 16])
        .extended(0x0f, &[0x0065])
        .extended(0x1b, &[0x1406])
        .extended(0x13, &[0x8100_0000, 512, 0])
        .extended(0x10, &[0, 1, 0x0008_0008, 3, 0x0002_0080]);
    let functions = enumerate(&Fabric::config(vec![node])).unwrap();
    let function = &functions[0];
    assert_eq!((function.vendor, function.device, function.class.base), (0x1234, 0x11e8, 0xff));
    assert_eq!(function.express.unwrap().port_type, PortType::ENDPOINT);
    assert!(function.power.is_some());
    let msi = function.msi.unwrap();
    assert_eq!((msi.wide, msi.maskable, msi.messages), (true, true, 8));
    let msix = function.msix.unwrap();
    assert_eq!((msix.vectors, msix.table_bar, msix.table_offset), (64, 4, 0x2000));
    assert_eq!((msix.pending_bar, msix.pending_offset), (4, 0x3000));
    let acs = function.acs.unwrap();
    assert_eq!(acs.supported, AcsFlags::REQUEST_REDIRECT | AcsFlags::COMPLETION_REDIRECT);
    assert_eq!(acs.enabled, AcsFlags::REQUEST_REDIRECT);
    let ats = function.ats.unwrap();
    assert_eq!((ats.queue_depth, ats.page_aligned, ats.global_invalidate), (5, true, true));
    let pasid = function.pasid.unwrap();
    assert_eq!((pasid.width, pasid.features), (20, PasidFeatures::all()));
    let pri = function.pri.unwrap();
    assert_eq!((pri.capacity, pri.response_needs_pasid), (512, true));
    let sriov = function.sriov.unwrap();
    assert_eq!((sriov.total, sriov.enabled), (8, 3));
    assert_eq!(sriov.requester(0), Some(id(0, 0x11, 0)));
    assert_eq!(sriov.requester(2), Some(id(0, 0x11, 4)));
    assert_eq!(sriov.requester(3), None);
}

#[test]
fn extended_space_is_read_of_express_functions_only() {
    let node = Node::conventional(1, 0).extended(0x0d, &[ACS_FULL]);
    let functions = enumerate(&Fabric::config(vec![node])).unwrap();
    assert_eq!((functions[0].acs, functions[0].damage), (None, None));
}

#[test]
fn nothing_is_written() {
    struct ReadOnly(Fabric);
    // SAFETY: every access goes on to the registers behind, or nowhere.
    #[expect(unsafe_code, reason = "registers of a fake")]
    unsafe impl portcullis_hal::Mmio for ReadOnly {
        fn read32(&self, offset: usize) -> u32 {
            self.0.read32(offset)
        }
        fn write32(&self, offset: usize, _: u32) {
            panic!("wrote to {offset:#x}")
        }
        fn read64(&self, offset: usize) -> u64 {
            self.0.read64(offset)
        }
        fn write64(&self, offset: usize, _: u64) {
            panic!("wrote to {offset:#x}")
        }
    }
    let node = Node::port(1, ROOT_PORT, vec![Node::endpoint(0, 0).bar32(0, 0x1000)]).buses(0, 1, 1);
    let fabric = ReadOnly(Fabric::new(vec![node], Takers::One));
    let buses = portcullis_pci::BusRange::new(0, 255).unwrap();
    let functions = enumerate(&ConfigSpace::new(fabric, 0, buses)).unwrap();
    assert_eq!(functions.len(), 2);
    assert_eq!(functions[1].id.bdf() & 0xff, u16::from(devfn(0, 0)));
}
