//! PCI host bridges: ECAM, windows, `iommu-map` and `msi-map`.

use super::interrupts::Controllers;
use super::iommu::{Units, read_map};
use super::tree::{Node, Tree};
use crate::acpi::{ECAM_BYTES_PER_BUS, add_host_bridge};
use crate::{
    AtsSupport, BusRange, FirmwareError, HostBridge, MsiMapping, MsiTarget, PciSpace, PciWindow, Prefetch,
    RequesterMapping, RequesterWindow, SegmentAts, Topology, Warning, list,
};
use alloc::vec::Vec;
use portcullis_hal::{EndpointId, PhysAddr, PhysRange};

const ECAM: &[&str] = &["pci-host-ecam-generic"];
/// Fields of the first cell of a PCI address (IEEE 1275 PCI binding, 2.2.1.1).
const SPACE_SHIFT: u32 = 24;
const PREFETCHABLE: u32 = 1 << 30;

/// A PCI host bridge.
pub(super) struct Host {
    /// The node's index.
    pub(super) node: usize,
    pub(super) segment: u16,
}

/// Every usable host bridge. One without `linux,pci-domain` gets the lowest segment that no other has.
pub(super) fn hosts(tree: &Tree<'_>) -> Result<Vec<Host>, FirmwareError> {
    let is_pci = |node: &Node<'_, '_>| node.string("device_type") == Some("pci");
    let is_host = |node: &Node<'_, '_>| {
        node.is_enabled() && is_pci(node) && !node.parent().is_some_and(|parent| is_pci(&parent))
    };
    let mut hosts = Vec::new();
    let mut unnumbered = Vec::new();
    for node in tree.nodes().filter(is_host) {
        match node.number("linux,pci-domain")? {
            Some(domain) => {
                let segment = u16::try_from(domain)
                    .map_err(|_| FirmwareError::BadValue { at: node.here(), value: domain.into() })?;
                list::push(&mut hosts, Host { node: node.index(), segment })?;
            }
            None => list::push(&mut unnumbered, node.index())?,
        }
    }
    let mut free = 0..=u16::MAX;
    for node in unnumbered {
        let segment = free.find(|segment| hosts.iter().all(|host| host.segment != *segment));
        let segment = segment.ok_or(FirmwareError::TooManyEntries { limit: usize::from(u16::MAX) })?;
        list::push(&mut hosts, Host { node, segment })?;
    }
    Ok(hosts)
}

/// Adds windows and maps of every host bridge.
pub(super) fn read_hosts(
    tree: &Tree<'_>,
    hosts: &[Host],
    units: &Units,
    controllers: &Controllers,
    topology: &mut Topology,
) -> Result<(), FirmwareError> {
    for host in hosts {
        let Some(node) = tree.node(host.node) else {
            continue;
        };
        if node.is_compatible(ECAM) {
            add_host_bridge(topology, read_bridge(&node, host.segment)?)?;
        }
        if node.has("ats-supported") {
            let ats = SegmentAts { segment: host.segment, support: AtsSupport::Supported };
            list::push(&mut topology.segment_ats, ats)?;
        }
        read_iommu_map(tree, &node, host.segment, units, topology)?;
        read_msi_map(tree, &node, host.segment, controllers, topology)?;
    }
    Ok(())
}

fn read_bridge(node: &Node<'_, '_>, segment: u16) -> Result<HostBridge, FirmwareError> {
    let origin = node.here();
    let registers = node.first_registers()?;
    let buses = match node.list("bus-range")? {
        None => BusRange { first: 0, last: 0xff },
        Some(mut range) => {
            let (at, first, last) = (range.here(), range.number()?, range.number()?);
            range.end()?;
            let bus = |value: u32| {
                u8::try_from(value).map_err(|_| FirmwareError::BadValue { at, value: value.into() })
            };
            BusRange { first: bus(first)?, last: bus(last)? }
        }
    };
    let count = buses.last.checked_sub(buses.first).map(|more| u64::from(more) + 1);
    let count = count.ok_or(FirmwareError::BadValue { at: origin, value: buses.last.into() })?;
    // Buses beyond the registers cannot be reached.
    let covered = (registers.len() / ECAM_BYTES_PER_BUS).min(count);
    let more =
        covered.checked_sub(1).ok_or(FirmwareError::BadValue { at: origin, value: registers.len() })?;
    let buses = BusRange { first: buses.first, last: buses.first + more as u8 };
    let ecam = PhysRange::new(registers.start(), covered * ECAM_BYTES_PER_BUS)
        .map_err(|error| FirmwareError::BadRange { at: origin, error })?;
    Ok(HostBridge { segment, buses, ecam, windows: read_windows(node)?, origin })
}

/// `ranges`: a PCI address of three cells, a CPU address, a size.
fn read_windows(node: &Node<'_, '_>) -> Result<Vec<PciWindow>, FirmwareError> {
    let mut windows = Vec::new();
    let (below, above) = (node.cells_below(), node.cells());
    let Some(mut ranges) = node.list("ranges")? else {
        return Ok(windows);
    };
    if below.address != 3 {
        return Err(FirmwareError::BadValue { at: node.here(), value: below.address as u64 });
    }
    while !ranges.is_empty() {
        let at = ranges.here();
        let flags = ranges.number()?;
        let (bus, cpu, size) = (ranges.take(2)?, ranges.take(above.address)?, ranges.take(below.size)?);
        let space = match flags >> SPACE_SHIFT & 3 {
            1 => PciSpace::Io,
            2 => PciSpace::Memory32,
            3 => PciSpace::Memory64,
            // Configuration space is what `reg` describes.
            _ => continue,
        };
        let cpu = PhysRange::new(PhysAddr::new(cpu), size)
            .map_err(|error| FirmwareError::BadRange { at, error })?;
        if bus.checked_add(size - 1).is_none() {
            return Err(FirmwareError::BadValue { at, value: bus });
        }
        let prefetch = match flags & PREFETCHABLE {
            0 => Prefetch::NonPrefetchable,
            _ => Prefetch::Prefetchable,
        };
        if let Some(cpu) = node.translate(cpu)? {
            list::push(&mut windows, PciWindow { space, cpu, bus, prefetch })?;
        }
    }
    Ok(windows)
}

fn read_iommu_map(
    tree: &Tree<'_>,
    node: &Node<'_, '_>,
    segment: u16,
    units: &Units,
    topology: &mut Topology,
) -> Result<(), FirmwareError> {
    let mask = read_mask(node, "iommu-map-mask")?;
    for entry in read_map(tree, node, "iommu-map", &mut |at| topology.ignored(at))? {
        let Some(unit) = units.find(&entry.target) else {
            topology.warn(Warning::UnknownTarget { at: entry.at })?;
            continue;
        };
        let (first, last) = entry.requesters;
        let window = RequesterWindow { mask, ..RequesterWindow::new(segment, first, last) };
        let endpoint = EndpointId::new(entry.output);
        topology.add_mapping(RequesterMapping { window, unit, endpoint, origin: entry.at })?;
    }
    Ok(())
}

/// `msi-map`; without one, `msi-parent` takes every requester under its own number.
fn read_msi_map(
    tree: &Tree<'_>,
    node: &Node<'_, '_>,
    segment: u16,
    controllers: &Controllers,
    topology: &mut Topology,
) -> Result<(), FirmwareError> {
    if !node.has("msi-map") {
        let Some(parent) = controllers.msi_parent(tree, node)? else {
            return Ok(());
        };
        let window = RequesterWindow::new(segment, 0, u16::MAX);
        let target = MsiTarget { device_id: 0, ..parent };
        return topology.add_msi_mapping(MsiMapping { window, target, origin: node.here() });
    }
    let mask = read_mask(node, "msi-map-mask")?;
    for entry in read_map(tree, node, "msi-map", &mut |at| topology.ignored(at))? {
        let Some(controller) = controllers.msi(&entry.target) else {
            topology.warn(Warning::UnknownTarget { at: entry.at })?;
            continue;
        };
        let (first, last) = entry.requesters;
        let window = RequesterWindow { mask, ..RequesterWindow::new(segment, first, last) };
        let target = MsiTarget { controller, device_id: entry.output };
        topology.add_msi_mapping(MsiMapping { window, target, origin: entry.at })?;
    }
    Ok(())
}

/// A mask of requester words. Bits above 15 cannot matter.
fn read_mask(node: &Node<'_, '_>, property: &str) -> Result<u16, FirmwareError> {
    Ok(node.number(property)?.map_or(RequesterWindow::FULL_MASK, |mask| mask as u16))
}
