//! Regions of `/reserved-memory` that are reserved in a device's I/O address space (`iommu-addresses`).

use super::iommu::{DeviceNode, pci_function};
use super::pci::Host;
use super::tree::{Node, Tree};
use crate::{
    BusRange, DeviceSet, FirmwareError, RequesterRange, ReservedKind, ReservedRegion, Topology, Warning, list,
};
use portcullis_hal::{Iova, IovaRange, PhysRange};

const ALL_BUSES: BusRange = BusRange { first: 0, last: 0xff };

/// Adds every region. It is a direct mapping if the node's `reg` has the same address and size; otherwise
/// the addresses are only kept free.
pub(super) fn read(
    tree: &Tree<'_>,
    devices: &[DeviceNode],
    hosts: &[Host],
    topology: &mut Topology,
) -> Result<(), FirmwareError> {
    let Some(parent) = tree.by_path("/reserved-memory") else {
        return Ok(());
    };
    for node in parent.children().filter(Node::is_enabled) {
        let Some(mut entries) = node.list("iommu-addresses")? else {
            continue;
        };
        let memory = node.registers()?;
        while !entries.is_empty() {
            let origin = entries.here();
            let device = tree.reference(origin, entries.number()?)?;
            // The addresses are those of the device's bus.
            let counts = device.cells();
            let (start, size) = (entries.take(counts.address)?, entries.take(counts.size)?);
            let range = IovaRange::new(Iova::new(start), size)
                .map_err(|error| FirmwareError::BadRange { at: origin, error })?;
            let same = |memory: &PhysRange| memory.start().get() == start && memory.len() == size;
            let kind = if memory.iter().any(same) { ReservedKind::Direct } else { ReservedKind::Reserved };
            match device_set(&device, devices, hosts, topology)? {
                Some(devices) => {
                    let region = ReservedRegion { range, kind, devices, origin };
                    list::push(&mut topology.reserved, region)?;
                }
                None => topology.warn(Warning::UnknownTarget { at: origin })?,
            }
        }
    }
    Ok(())
}

/// A platform device by its streams, a function by its requester id, a host bridge by its segment.
fn device_set(
    node: &Node<'_, '_>,
    devices: &[DeviceNode],
    hosts: &[Host],
    topology: &Topology,
) -> Result<Option<DeviceSet>, FirmwareError> {
    let mut set = DeviceSet::default();
    let device = devices.iter().find(|device| device.node == node.index());
    if let Some(device) = device.and_then(|device| topology.platform_devices.get(device.device)) {
        set.streams = list::copy(&device.streams)?;
    } else if let Some(id) = pci_function(node, hosts)? {
        list::push(&mut set.requesters, RequesterRange::single(id))?;
    } else if let Some(host) = hosts.iter().find(|host| host.node == node.index()) {
        list::push(&mut set.requesters, RequesterRange::buses(host.segment, ALL_BUSES))?;
    } else {
        return Ok(None);
    }
    Ok(Some(set))
}
