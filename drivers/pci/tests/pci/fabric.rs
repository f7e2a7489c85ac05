//! A PCI fabric for tests. It knows nothing of the crate under test: its offsets and bits are its own.

use portcullis_hal::{Mmio, RequesterId};
use portcullis_pci::{BusRange, ConfigSpace};
use std::sync::{Arc, Mutex};

/// A register word: its value, which bits a write changes, and which bits a written one clears.
#[derive(Clone, Copy, Debug, Default)]
struct Word {
    value: u32,
    writable: u32,
    clearing: u32,
}

/// A function, with what is behind it if it is a bridge.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) devfn: u8,
    words: Vec<Word>,
    next_capability: usize,
    last_extended: Option<usize>,
    next_extended: usize,
    pub(crate) below: Vec<Node>,
}

/// Port types of the PCI Express capability.
pub(crate) const ENDPOINT: u32 = 0;
pub(crate) const ROOT_PORT: u32 = 4;
pub(crate) const UPSTREAM: u32 = 5;
pub(crate) const DOWNSTREAM: u32 = 6;
pub(crate) const EXPRESS_TO_PCI: u32 = 7;

/// All of source validation, redirection of requests and completions, upstream forwarding.
pub(crate) const ACS_FULL: u32 = 0x1d;

pub(crate) fn devfn(device: u8, function: u8) -> u8 {
    device << 3 | function
}

impl Node {
    fn new(devfn: u8, id: u32, class: u32, layout: u32) -> Self {
        let mut node = Self {
            devfn,
            words: vec![Word::default(); 1024],
            next_capability: 0x40,
            last_extended: None,
            next_extended: 0x100,
            below: Vec::new(),
        };
        node.set(0x00, id);
        node.set(0x08, class << 8);
        node.set(0x0c, layout << 16);
        // I/O, memory, bus master, INTx disable; the error bits of the status clear when written.
        node.word(0x04).writable = 0x0407;
        node.word(0x04).clearing = 0xf900_0000;
        node
    }

    /// A function without capabilities.
    pub(crate) fn conventional(device: u8, function: u8) -> Self {
        Self::new(devfn(device, function), 0x11e8_1234, 0xff_0000, 0)
    }

    pub(crate) fn host_bridge() -> Self {
        Self::new(0, 0x29c0_8086, 0x06_0000, 0)
    }

    /// A PCI Express endpoint.
    pub(crate) fn endpoint(device: u8, function: u8) -> Self {
        Self::conventional(device, function).express(ENDPOINT)
    }

    /// A bridge that no firmware configured, with a prefetchable window of 64 bits.
    pub(crate) fn bridge(device: u8, function: u8, below: Vec<Node>) -> Self {
        let mut node = Self::new(devfn(device, function), 0x000c_1b36, 0x06_0400, 1);
        node.below = below;
        node.word(0x18).writable = 0xffff_ffff;
        node.word(0x1c).writable = 0x0000_f0f0;
        node.word(0x20).writable = 0xfff0_fff0;
        for offset in [0x28, 0x2c, 0x30] {
            node.word(offset).writable = 0xffff_ffff;
        }
        node.prefetchable_window(1)
    }

    /// A PCI Express port.
    pub(crate) fn port(device: u8, port_type: u32, below: Vec<Node>) -> Self {
        Self::bridge(device, 0, below).express(port_type)
    }

    /// The type of the prefetchable window: 0 for 32 bits, 1 for 64.
    pub(crate) fn prefetchable_window(mut self, kind: u32) -> Self {
        *self.word(0x24) = Word { value: kind | kind << 16, writable: 0xfff0_fff0, clearing: 0 };
        self
    }

    pub(crate) fn multi(mut self) -> Self {
        self.word(0x0c).value |= 1 << 23;
        self
    }

    /// Bus numbers, as firmware would set them.
    pub(crate) fn buses(mut self, primary: u32, secondary: u32, subordinate: u32) -> Self {
        self.set(0x18, primary | secondary << 8 | subordinate << 16);
        self
    }

    pub(crate) fn command(mut self, bits: u32) -> Self {
        self.word(0x04).value |= bits;
        self
    }

    pub(crate) fn set(&mut self, offset: usize, value: u32) {
        self.word(offset).value = value;
    }

    pub(crate) fn with(mut self, offset: usize, value: u32) -> Self {
        self.set(offset, value);
        self
    }

    pub(crate) fn writable(mut self, offset: usize, mask: u32) -> Self {
        self.word(offset).writable = mask;
        self
    }

    pub(crate) fn clearing(mut self, offset: usize, mask: u32) -> Self {
        self.word(offset).clearing = mask;
        self
    }

    fn word(&mut self, offset: usize) -> &mut Word {
        &mut self.words[offset / 4]
    }

    pub(crate) fn value(&self, offset: usize) -> u32 {
        self.words[offset / 4].value
    }

    /// A memory BAR of 32 bits.
    pub(crate) fn bar32(mut self, slot: usize, size: u64) -> Self {
        *self.word(0x10 + 4 * slot) = Word { value: 0, writable: !(size as u32 - 1), clearing: 0 };
        self
    }

    /// A prefetchable memory BAR of 64 bits.
    pub(crate) fn bar64(mut self, slot: usize, size: u64) -> Self {
        let mask = !(size - 1);
        *self.word(0x10 + 4 * slot) = Word { value: 0xc, writable: mask as u32, clearing: 0 };
        *self.word(0x14 + 4 * slot) = Word { value: 0, writable: (mask >> 32) as u32, clearing: 0 };
        self
    }

    /// An I/O BAR.
    pub(crate) fn bar_io(mut self, slot: usize, size: u32) -> Self {
        *self.word(0x10 + 4 * slot) = Word { value: 1, writable: !(size - 1) & 0xffff, clearing: 0 };
        self
    }

    /// Appends a capability: its identifier, the upper half of its first word, and the words after it.
    pub(crate) fn capability(mut self, id: u32, upper: u32, rest: &[u32]) -> Self {
        let at = self.next_capability;
        // The list is built from its end: the newest comes first.
        let next = self.value(0x34);
        self.set(at, id | next << 8 | upper << 16);
        for (index, &value) in rest.iter().enumerate() {
            self.set(at + 4 + 4 * index, value);
        }
        self.set(0x34, at as u32);
        self.word(0x04).value |= 0x10_0000;
        self.next_capability = at + 4 + 4 * rest.len();
        self
    }

    /// The offset of the newest capability.
    pub(crate) fn newest(&self) -> usize {
        self.value(0x34) as usize
    }

    /// Appends an extended capability.
    pub(crate) fn extended(mut self, id: u32, rest: &[u32]) -> Self {
        let at = self.next_extended;
        if let Some(last) = self.last_extended {
            self.word(last).value |= (at as u32) << 20;
        }
        self.set(at, id | 1 << 16);
        for (index, &value) in rest.iter().enumerate() {
            self.set(at + 4 + 4 * index, value);
        }
        self.last_extended = Some(at);
        self.next_extended = at + 4 + 4 * rest.len();
        self
    }

    /// The offset of the newest extended capability.
    pub(crate) fn newest_extended(&self) -> usize {
        self.last_extended.unwrap()
    }

    pub(crate) fn express(mut self, port_type: u32) -> Self {
        self = self.capability(0x10, 2 | port_type << 4, &[0; 14]);
        let at = self.newest();
        // Device capabilities 2 has ARI forwarding, device control 2 its switch.
        self.with(at + 0x24, 0x20).writable(at + 0x28, 0x20)
    }

    /// An ACS capability with these services, switched on or off.
    pub(crate) fn acs(self, supported: u32, enabled: u32) -> Self {
        let node = self.extended(0x0d, &[supported | enabled << 16]);
        let at = node.newest_extended();
        node.writable(at + 4, supported << 16)
    }

    fn is_bridge(&self) -> bool {
        self.value(0x0c) >> 16 & 0x7f == 1
    }

    /// Root ports and downstream ports have a link below; the value is whether ARI forwarding is on.
    fn link(&self) -> Option<bool> {
        let mut at = self.value(0x34) as usize;
        for _ in 0..48 {
            if at == 0 {
                break;
            }
            let word = self.value(at);
            if word & 0xff == 0x10 {
                let kind = word >> 20 & 0xf;
                return (kind == ROOT_PORT || kind == DOWNSTREAM).then(|| self.value(at + 0x28) & 0x20 != 0);
            }
            at = (word >> 8 & 0xfc) as usize;
        }
        None
    }

    fn claims(&self, bus: u8) -> bool {
        let word = self.value(0x18);
        let (secondary, subordinate) = ((word >> 8) as u8, (word >> 16) as u8);
        self.is_bridge() && secondary != 0 && (secondary..=subordinate).contains(&bus)
    }
}

/// Finds the function that a configuration request reaches.
fn route(nodes: &mut [Node], here: u8, bus: u8, devfn: u8, takers: Takers) -> Option<&mut Node> {
    if here == bus {
        return nodes.iter_mut().find(|node| node.devfn == devfn);
    }
    let mut claiming = nodes.iter_mut().filter(|node| node.claims(bus));
    let bridge = claiming.next()?;
    if takers == Takers::One {
        assert!(claiming.next().is_none(), "two bridges claim bus {bus:#x}");
    }
    let secondary = (bridge.value(0x18) >> 8) as u8;
    // Without ARI forwarding a port answers itself for devices other than 0.
    if secondary == bus && bridge.link() == Some(false) && devfn >= 8 {
        return None;
    }
    route(&mut bridge.below, secondary, bus, devfn, takers)
}

/// How many bridges may claim one bus number at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takers {
    /// More than one is a mistake of the crate under test.
    One,
    /// The first one gets the request.
    Any,
}

/// A BAR that decodes an address: the devices and functions on the way to it, and its slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decoder {
    pub(crate) path: Vec<u8>,
    pub(crate) slot: usize,
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// The memory BARs of a function, as its registers stand: slot, address, size and whether it is wide.
fn bars(node: &Node) -> Vec<(usize, u64, u64)> {
    let slots = if node.is_bridge() { 2 } else { 6 };
    let mut found = Vec::new();
    let mut slot = 0;
    while slot < slots {
        let low = node.words[4 + slot];
        let wide = low.value & 7 == 4;
        let mut address = u64::from(low.value & !0xf);
        let mut mask = u64::from(low.writable) | u64::from(u32::MAX) << 32;
        if wide {
            let high = node.words[5 + slot];
            address |= u64::from(high.value) << 32;
            mask = u64::from(low.writable) | u64::from(high.writable) << 32;
        }
        if low.value & 1 == 0 && low.writable != 0 || wide {
            found.push((slot, address, mask.wrapping_neg()));
        }
        slot += if wide { 2 } else { 1 };
    }
    found
}

/// The ranges that a bridge forwards downwards.
fn windows(bridge: &Node) -> Vec<(u64, u64)> {
    let low = bridge.value(0x20);
    let high = bridge.value(0x24);
    let upper = |offset| u64::from(bridge.value(offset)) << 32;
    let (mut base, mut limit) = (u64::from(high & 0xfff0) << 16, u64::from(high & 0xfff0_0000) | 0xf_ffff);
    if high & 0xf == 1 {
        base |= upper(0x28);
        limit |= upper(0x2c);
    }
    let memory = (u64::from(low & 0xfff0) << 16, u64::from(low & 0xfff0_0000) | 0xf_ffff);
    let open = |window: &(u64, u64)| window.0 <= window.1 && bridge.value(4) & 2 != 0;
    [memory, (base, limit)].into_iter().filter(open).collect()
}

/// Follows an address down the fabric; everything that takes it is in the result.
pub(crate) fn decoders(nodes: &[Node], address: u64, path: &[u8]) -> Vec<Decoder> {
    let mut found = Vec::new();
    for node in nodes {
        let path = [path, &[node.devfn]].concat();
        for (slot, first, size) in bars(node) {
            let last = first + (size - 1);
            if node.value(4) & 2 != 0 && (first..=last).contains(&address) {
                found.push(Decoder { path: path.clone(), slot, first, last });
            }
        }
        for (first, last) in windows(node) {
            if node.is_bridge() && (first..=last).contains(&address) {
                found.extend(decoders(&node.below, address, &path));
            }
        }
    }
    found
}

/// Every memory BAR of the fabric, with the way to it.
pub(crate) fn all_bars(nodes: &[Node], path: &[u8]) -> Vec<Decoder> {
    let mut found = Vec::new();
    for node in nodes {
        let path = [path, &[node.devfn]].concat();
        for (slot, first, size) in bars(node) {
            found.push(Decoder { path: path.clone(), slot, first, last: first + (size - 1) });
        }
        found.extend(all_bars(&node.below, &path));
    }
    found
}

/// The registers of a fabric.
#[derive(Clone)]
pub(crate) struct Fabric {
    first_bus: u8,
    takers: Takers,
    nodes: Arc<Mutex<Vec<Node>>>,
}

impl Fabric {
    pub(crate) fn new(nodes: Vec<Node>, takers: Takers) -> Self {
        let nodes = Arc::new(Mutex::new(nodes));
        Self { first_bus: 0, takers, nodes }
    }

    /// A configuration space of all 256 buses.
    pub(crate) fn config(nodes: Vec<Node>) -> ConfigSpace<Self> {
        ConfigSpace::new(Self::new(nodes, Takers::One), 0, BusRange::new(0, 255).unwrap())
    }

    /// A configuration space, and the fabric behind it.
    pub(crate) fn with_config(nodes: Vec<Node>, takers: Takers) -> (Self, ConfigSpace<Self>) {
        let fabric = Self::new(nodes, takers);
        let config = ConfigSpace::new(fabric.clone(), 0, BusRange::new(0, 255).unwrap());
        (fabric, config)
    }

    /// A configuration space that begins later than bus 0.
    pub(crate) fn config_from(nodes: Vec<Node>, segment: u16, first: u8, last: u8) -> ConfigSpace<Self> {
        let fabric = Self { first_bus: first, takers: Takers::One, nodes: Arc::new(Mutex::new(nodes)) };
        ConfigSpace::new(fabric, segment, BusRange::new(first, last).unwrap())
    }

    /// The nodes as they are now.
    pub(crate) fn nodes(&self) -> Vec<Node> {
        self.nodes.lock().unwrap().clone()
    }

    fn access<R>(&self, offset: usize, register: impl FnOnce(&mut Word) -> R) -> Option<R> {
        let mut nodes = self.nodes.lock().unwrap();
        let bus = self.first_bus + (offset >> 20) as u8;
        let node = route(&mut nodes, self.first_bus, bus, (offset >> 12) as u8, self.takers)?;
        Some(register(node.word(offset & 0xffc)))
    }
}

// SAFETY: the fabric's functions do no DMA.
#[expect(unsafe_code, reason = "registers of a fake")]
unsafe impl Mmio for Fabric {
    fn read32(&self, offset: usize) -> u32 {
        assert!(offset.is_multiple_of(4));
        self.access(offset, |word| word.value).unwrap_or(u32::MAX)
    }

    fn write32(&self, offset: usize, value: u32) {
        assert!(offset.is_multiple_of(4));
        self.access(offset, |word| {
            word.value = word.value & !word.writable | value & word.writable;
            word.value &= !(value & word.clearing);
        });
    }

    fn read64(&self, _: usize) -> u64 {
        panic!("configuration space takes accesses of 32 bits")
    }

    fn write64(&self, _: usize, _: u64) {
        panic!("configuration space takes accesses of 32 bits")
    }
}

/// A requester of segment 0.
pub(crate) fn id(bus: u8, device: u8, function: u8) -> RequesterId {
    RequesterId::new(0, bus, device, function).unwrap()
}
