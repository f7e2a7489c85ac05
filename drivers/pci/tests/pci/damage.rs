//! Devices that lie: each refusal is typed, and nothing panics.

use crate::fabric::{Fabric, Node, ROOT_PORT, Takers, id};
use portcullis_hal::Mmio;
use portcullis_hal::PhysAddr;
use portcullis_pci::spec::{CapabilityId, ExtendedId};
use portcullis_pci::{
    BarError, Bars, BusAddress, BusMaster, BusRange, CapabilityError, ConfigSpace, HostWindow, HostWindows,
    assign, clear_bus_master_everywhere, enable_acs, enumerate, extended_capability, isolation_groups,
    standard_capability,
};
use proptest::prelude::*;
use std::sync::Mutex;

#[test]
fn a_loop_of_capabilities_is_reported_and_what_came_before_it_is_kept() {
    let mut node = Node::conventional(1, 0).capability(0x09, 0, &[0]).capability(0x05, 0x0080, &[0; 3]);
    let (first, last) = (node.newest(), 0x40);
    node.set(last, 0x09 | (first as u32) << 8);
    let functions = enumerate(&Fabric::config(vec![node, Node::conventional(2, 0)])).unwrap();
    let offset = first as u16;
    assert_eq!(functions[0].damage, Some(CapabilityError::Loop { function: id(0, 1, 0), offset }));
    assert!(functions[0].msi.is_some());
    assert_eq!((functions.len(), functions[1].damage), (2, None));
}

#[test]
fn a_loop_of_extended_capabilities_is_reported() {
    let node = Node::endpoint(1, 0).with(0x100, 0x1101_0003).with(0x110, 0x1001_0003);
    let config = Fabric::config(vec![node]);
    let expected = CapabilityError::Loop { function: id(0, 1, 0), offset: 0x100 };
    assert_eq!(enumerate(&config).unwrap()[0].damage, Some(expected));
    assert_eq!(extended_capability(&config, id(0, 1, 0), ExtendedId::ACS), Err(expected));
}

#[test]
fn pointers_out_of_their_list_are_reported() {
    let function = id(0, 1, 0);
    let mut node = Node::conventional(1, 0).capability(0x09, 0, &[]);
    node.set(0x40, 0x09 | 0x10 << 8);
    let config = Fabric::config(vec![node]);
    assert_eq!(
        standard_capability(&config, function, CapabilityId::MSI),
        Err(CapabilityError::Stray { function, offset: 0x10 })
    );
    // An extended capability that points into the first 256 bytes.
    let config = Fabric::config(vec![Node::endpoint(1, 0).with(0x100, 0x0401_0003)]);
    assert_eq!(
        enumerate(&config).unwrap()[0].damage,
        Some(CapabilityError::Stray { function, offset: 0x40 })
    );
}

#[test]
fn a_capability_that_reads_as_ones_ends_the_walk() {
    let function = id(0, 1, 0);
    let mut node = Node::conventional(1, 0).capability(0x09, 0, &[]);
    node.set(0x40, 0x09 | 0x80 << 8);
    node.set(0x80, u32::MAX);
    let config = Fabric::config(vec![node]);
    assert_eq!(
        enumerate(&config).unwrap()[0].damage,
        Some(CapabilityError::Vanished { function, offset: 0x80 })
    );
}

#[test]
fn a_capability_that_runs_over_the_end_is_refused() {
    for (pointer, word) in [(0xfc, 0x0180_0005), (0xf8, 0x0000_0011), (0xe0, 0x0002_0010)] {
        let mut node = Node::conventional(1, 0).capability(0x09, 0, &[]);
        node.set(0x34, pointer);
        node.set(pointer as usize, word);
        let functions = enumerate(&Fabric::config(vec![node])).unwrap();
        let (function, offset) = (id(0, 1, 0), pointer as u16);
        assert_eq!(functions[0].damage, Some(CapabilityError::Truncated { function, offset }));
        let found = (functions[0].msi, functions[0].msix, functions[0].express);
        assert_eq!(found, (None, None, None));
    }
    let node = Node::endpoint(1, 0).with(0x100, 0xff81_0003).with(0xff8, 0x0001_0013);
    let functions = enumerate(&Fabric::config(vec![node])).unwrap();
    assert_eq!(
        functions[0].damage,
        Some(CapabilityError::Truncated { function: id(0, 1, 0), offset: 0xff8 })
    );
}

#[test]
fn bars_that_make_no_sense_are_refused_and_left_as_they_were() {
    let function = id(0, 1, 0);
    let probe = |node: Node| {
        let config = Fabric::config(vec![node.command(2)]);
        let before: Vec<_> = (0x04..0x28).step_by(4).map(|at| config.read32(function, at)).collect();
        let error = Bars::probe(&config, &enumerate(&config).unwrap()[0]).unwrap_err();
        let after: Vec<_> = (0x04..0x28).step_by(4).map(|at| config.read32(function, at)).collect();
        assert_eq!(before, after);
        error
    };
    // A hole among the writable bits.
    let odd = Node::conventional(1, 0).with(0x10, 0xfe00_0000).writable(0x10, 0xfffe_f000);
    assert_eq!(probe(odd), BarError::Size { function, index: 0, mask: 0xffff_ffff_fffe_f000 });
    // Nothing writable, though the type is not zero.
    let fixed = Node::conventional(1, 0).with(0x14, 0x8);
    assert!(matches!(probe(fixed), BarError::Size { index: 1, .. }));
    let fixed = Node::conventional(1, 0).with(0x14, 0xc);
    assert!(matches!(probe(fixed), BarError::Size { index: 1, mask: 0, .. }));
    // The two reserved types.
    for word in [0x2, 0x6] {
        let node = Node::conventional(1, 0).with(0x18, word).writable(0x18, 0xffff_f000);
        assert_eq!(probe(node), BarError::Type { function, index: 2, word });
    }
    // 64 bits in the last register.
    let last = Node::conventional(1, 0).with(0x24, 0x4).writable(0x24, 0xffff_f000);
    assert_eq!(probe(last), BarError::NoUpperHalf { function, index: 5 });
    // An upper half with a hole.
    let hole = Node::conventional(1, 0).bar64(0, 0x1000).writable(0x14, 0xffff_fff7);
    assert!(matches!(probe(hole), BarError::Size { index: 0, .. }));
}

#[test]
fn an_empty_segment_has_no_functions() {
    struct Ones;
    // SAFETY: these registers act on nothing.
    #[expect(unsafe_code, reason = "registers of a fake")]
    unsafe impl Mmio for Ones {
        fn read32(&self, _: usize) -> u32 {
            u32::MAX
        }
        fn write32(&self, _: usize, _: u32) {}
        fn read64(&self, _: usize) -> u64 {
            u64::MAX
        }
        fn write64(&self, _: usize, _: u64) {}
    }
    let config = ConfigSpace::new(Ones, 0, BusRange::new(0, 255).unwrap());
    assert_eq!(enumerate(&config), Ok(vec![]));
    assert!(BusRange::new(2, 1).is_err());
}

/// A space where every function of the first buses has the same random words, which any write changes.
struct Noise {
    words: Mutex<Vec<u32>>,
    functions: usize,
}

impl Noise {
    fn index(&self, offset: usize) -> usize {
        (offset >> 12) % self.functions * 1024 + (offset >> 2 & 1023)
    }
}

// SAFETY: these registers act on nothing.
#[expect(unsafe_code, reason = "registers of a fake")]
unsafe impl Mmio for Noise {
    fn read32(&self, offset: usize) -> u32 {
        let words = self.words.lock().unwrap();
        words[self.index(offset) % words.len()]
    }
    fn write32(&self, offset: usize, value: u32) {
        let mut words = self.words.lock().unwrap();
        let at = self.index(offset) % words.len();
        words[at] = value;
    }
    fn read64(&self, _: usize) -> u64 {
        unreachable!()
    }
    fn write64(&self, _: usize, _: u64) {
        unreachable!()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn noise_for_configuration_space_never_panics(
        words in proptest::collection::vec(prop_oneof![any::<u32>(), 0_u32..0x200, Just(u32::MAX)], 64..512),
        layout in 0_u32..3,
        functions in 1_usize..12,
    ) {
        let mut words = words;
        // Enough of a header to get past the first checks.
        words[0] = 0x1234_5678;
        words[1] |= 0x10_0000;
        words[3] = words[3] & !0x7f_0000 | layout << 16;
        let noise = Noise { words: Mutex::new(words), functions };
        let config = ConfigSpace::new(noise, 0, BusRange::new(0, 3).unwrap());
        if let Ok(mut functions) = enumerate(&config) {
            enable_acs(&config, &mut functions);
            let groups = isolation_groups(&functions).unwrap();
            prop_assert_eq!(groups.len(), functions.len());
            clear_bus_master_everywhere(&config, &functions, |_| BusMaster::Clear).unwrap();
            for function in functions.iter().take(16) {
                let _: Result<_, BarError> = Bars::probe(&config, function);
            }
        }
        let window = HostWindow::new(BusAddress::new(0x1000_0000), PhysAddr::new(0x1000_0000), 0x1000_0000);
        let _: Result<_, _> = assign(&config, &HostWindows { low: window.ok(), high: None });
    }

    #[test]
    fn any_bus_numbers_give_a_tree_or_an_error(
        numbers in proptest::collection::vec((0_u32..8, 0_u32..8, 0_u32..8), 6),
    ) {
        let [a, b, c, d, e, f] = numbers[..] else { unreachable!() };
        let port = |device, (primary, secondary, subordinate), below| {
            Node::port(device, ROOT_PORT, below).buses(primary, secondary, subordinate)
        };
        let legacy = |device, (primary, secondary, subordinate), below| {
            Node::bridge(device, 0, below).buses(primary, secondary, subordinate)
        };
        let nodes = vec![
            legacy(1, a, vec![legacy(0, b, vec![Node::endpoint(0, 0)]), port(1, c, vec![Node::endpoint(0, 0)])]),
            port(2, d, vec![legacy(0, e, vec![legacy(3, f, vec![])])]),
        ];
        let (_, config) = Fabric::with_config(nodes, Takers::Any);
        if let Ok(functions) = enumerate(&config) {
            let mut ids: Vec<_> = functions.iter().map(|function| function.id).collect();
            ids.sort_unstable();
            ids.dedup();
            prop_assert_eq!(ids.len(), functions.len());
            for (index, function) in functions.iter().enumerate() {
                prop_assert!(function.parent.is_none_or(|parent| parent < index));
            }
        }
    }
}
