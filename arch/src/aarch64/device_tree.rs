//! What boot code needs of the flattened device tree (Devicetree Specification 0.4): RAM, reservations, the command
//! line, the console and the PSCI conduit. The kernel reads the rest through its firmware crate.

#![expect(unsafe_code, reason = "the device tree is memory that the loader filled")]

use super::paging;
use super::psci::Conduit;
use crate::MemoryMap;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::{NodeStandard, Status};
use dtoolkit::{Node, Property};
use portcullis_hal::{PAGE_SIZE, PhysAddr, PhysRange};

/// The first word of a device tree, big-endian.
const MAGIC: u32 = 0xd00d_feed;

/// The arm64 boot protocol promises that a device tree is no larger.
const MAX_SIZE: u32 = 2 << 20;

/// A device tree that was found to be well-formed.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeviceTree {
    fdt: Fdt<'static>,
    range: PhysRange,
}

/// A console UART.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Console {
    /// Its registers.
    pub(super) registers: PhysRange,
    /// The frequency of its clock; without it, the line settings stay as firmware left them.
    pub(super) clock_hz: Option<u32>,
    /// The speed that the device tree asks for.
    pub(super) baud_rate: u32,
}

/// How a reservation may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reservation {
    /// RAM that the kernel leaves alone.
    Kept,
    /// RAM that not even a speculative access may touch.
    NoMap,
}

/// Finds the device tree at `given` (what the loader passed) or else at `fallback`, and maps it.
pub(super) fn find(given: PhysAddr, fallback: PhysAddr) -> Option<DeviceTree> {
    at(given).or_else(|| at(fallback))
}

fn at(start: PhysAddr) -> Option<DeviceTree> {
    if start.get() == 0 || !start.is_aligned(8) {
        return None;
    }
    // The header says how long the tree is. Its first page is mapped alone, lest what follows is no RAM.
    let head = PhysRange::new(start, 8).ok()?;
    let header = paging::map_boot_data(head).ok()?.cast::<[u32; 2]>();
    // SAFETY: mapped and aligned by the checks above; any bits are a valid value.
    let [magic, size] = unsafe { header.read() }.map(u32::from_be);
    if magic != MAGIC || size > MAX_SIZE {
        return None;
    }
    let range = PhysRange::new(start, u64::from(size)).ok()?;
    let data = paging::map_boot_data(range).ok()?;
    // SAFETY: mapped for `size` bytes; the tree is taken out of the usable RAM, so nobody writes to it again.
    let data = unsafe { core::slice::from_raw_parts(data.as_ptr(), size as usize) };
    Some(DeviceTree { fdt: Fdt::new(data).ok()?, range })
}

impl DeviceTree {
    /// Where the tree lies.
    pub(super) fn range(&self) -> PhysRange {
        self.range
    }

    /// `/chosen/bootargs`; empty if there are none.
    pub(super) fn command_line(&self) -> &'static str {
        self.chosen("bootargs").unwrap_or("")
    }

    /// All RAM that may be mapped: without `no-map` reservations, in whole pages.
    pub(super) fn mappable(&self) -> MemoryMap {
        let mut map = MemoryMap::new();
        for node in self.fdt.root().children() {
            let is_memory = string(&node, "device_type") == Some("memory");
            if is_memory && matches!(node.status(), Ok(Status::Okay)) {
                registers(&node).filter_map(whole_pages).for_each(|range| map.add(range));
            }
        }
        self.reservations(|range, kind| {
            if kind == Reservation::NoMap {
                map.remove(range);
            }
        });
        map
    }

    /// Takes all that firmware keeps, and the tree itself, out of `map`.
    pub(super) fn remove_reserved(&self, map: &mut MemoryMap) {
        self.reservations(|range, _| map.remove(range));
        map.remove(covering_pages(self.range));
    }

    /// Calls `each` for the entries of the reservation block and of `/reserved-memory`, rounded up to pages.
    fn reservations(&self, mut each: impl FnMut(PhysRange, Reservation)) {
        for entry in self.fdt.memory_reservations() {
            if let Ok(range) = PhysRange::new(PhysAddr::new(entry.address()), entry.size()) {
                each(covering_pages(range), Reservation::Kept);
            }
        }
        let Some(nodes) = self.fdt.reserved_memory() else {
            return;
        };
        for node in nodes {
            let kind = if node.no_map() { Reservation::NoMap } else { Reservation::Kept };
            registers(&node).for_each(|range| each(covering_pages(range), kind));
        }
    }

    /// The PL011 that `/chosen/stdout-path` names, directly or by an alias.
    pub(super) fn console(&self) -> Option<Console> {
        let (name, options) = match self.chosen("stdout-path")?.split_once(':') {
            Some((name, options)) => (name, options),
            None => (self.chosen("stdout-path")?, ""),
        };
        let path = if name.starts_with('/') { name } else { string(&self.fdt.find_node("/aliases")?, name)? };
        let node = self.fdt.find_node(path)?;
        if !node.is_compatible("arm,pl011") {
            return None;
        }
        let digits = options.find(|c: char| !c.is_ascii_digit()).unwrap_or(options.len());
        let baud_rate = options.get(..digits).and_then(|text| text.parse().ok()).unwrap_or(115_200);
        Some(Console { registers: registers(&node).next()?, clock_hz: self.first_clock(&node), baud_rate })
    }

    /// The frequency of the first of the node's clocks, if that is a fixed clock at the root.
    fn first_clock(&self, node: &FdtNode<'static>) -> Option<u32> {
        let clocks = node.property("clocks")?;
        let phandle = u32::from_be_bytes(*clocks.value().first_chunk()?);
        let clock = self.fdt.root().children().find(|node| node.phandle() == Ok(Some(phandle)))?;
        clock.property("clock-frequency")?.value_as().ok()
    }

    /// How PSCI is called; `None` if the machine has no PSCI 0.2 or later.
    pub(super) fn psci_conduit(&self) -> Option<Conduit> {
        let node = self.fdt.find_node("/psci")?;
        if !(node.is_compatible("arm,psci-1.0") || node.is_compatible("arm,psci-0.2")) {
            return None;
        }
        match string(&node, "method")? {
            "smc" => Some(Conduit::Smc),
            "hvc" => Some(Conduit::Hvc),
            _ => None,
        }
    }

    fn chosen(&self, property: &str) -> Option<&'static str> {
        string(&self.fdt.find_node("/chosen")?, property)
    }
}

fn string(node: &FdtNode<'static>, property: &str) -> Option<&'static str> {
    node.property(property)?.value_as().ok()
}

/// The ranges of a node's `reg`, without those that are empty or run past the end of the address space.
fn registers(node: &FdtNode<'static>) -> impl Iterator<Item = PhysRange> {
    node.reg().ok().flatten().into_iter().flatten().filter_map(|reg| {
        let start = PhysAddr::new(reg.address().ok()?);
        PhysRange::new(start, reg.size().ok()?).ok()
    })
}

/// The pages that lie wholly in `range`.
fn whole_pages(range: PhysRange) -> Option<PhysRange> {
    let first = range.start().get().checked_next_multiple_of(PAGE_SIZE)?;
    let end = range.last().get().checked_add(1)? & !(PAGE_SIZE - 1);
    PhysRange::new(PhysAddr::new(first), end.checked_sub(first)?).ok()
}

/// The pages that `range` touches.
pub(super) fn covering_pages(range: PhysRange) -> PhysRange {
    PhysRange::block(range.start(), PAGE_SIZE).hull(&PhysRange::block(range.last(), PAGE_SIZE))
}
