//! IOMMU nodes and the devices that refer to them with `iommus`.

use super::interrupts::{Controllers, interrupts};
use super::pci::Host;
use super::tree::{Node, Tree};
use crate::{
    DmaCoherency, FirmwareError, Location, PlatformDevice, Smmuv3Interrupts, Smmuv3Model, Smmuv3Unit,
    StreamRange, Topology, UnitDescription, UnitIndex, UnitKind, VirtioIommuUnit, VirtioTransport,
    WalkCoherency, Warning, list,
};
use alloc::vec::Vec;
use portcullis_hal::{EndpointId, RequesterId};

const SMMUV3: &[&str] = &["arm,smmu-v3"];
const VIRTIO_PCI_IOMMU: &[&str] = &["virtio,pci-iommu"];
const VIRTIO_MMIO: &[&str] = &["virtio,mmio"];

/// A node that became a unit.
pub(super) struct UnitNode {
    node: usize,
    unit: UnitIndex,
}

/// The units of a tree by node.
pub(super) struct Units(Vec<UnitNode>);

impl Units {
    /// The unit that a node is.
    pub(super) fn find(&self, node: &Node<'_, '_>) -> Option<UnitIndex> {
        self.0.iter().find(|unit| unit.node == node.index()).map(|unit| unit.unit)
    }
}

/// A node that became a platform device.
pub(super) struct DeviceNode {
    /// The node's index.
    pub(super) node: usize,
    /// The device's index in the topology.
    pub(super) device: usize,
}

/// Adds every usable IOMMU.
pub(super) fn read_units(
    tree: &Tree<'_>,
    controllers: &Controllers,
    hosts: &[Host],
    topology: &mut Topology,
) -> Result<Units, FirmwareError> {
    let mut units = Vec::new();
    for node in tree.nodes().filter(Node::is_enabled) {
        let kind = if node.is_compatible(SMMUV3) {
            UnitKind::Smmuv3(read_smmuv3(tree, &node, controllers)?)
        } else if node.is_compatible(VIRTIO_PCI_IOMMU) {
            let Some(id) = pci_function(&node, hosts)? else {
                topology.warn(Warning::Ignored { at: node.here() })?;
                continue;
            };
            UnitKind::VirtioIommu(VirtioIommuUnit { transport: VirtioTransport::Pci(id) })
        } else if node.is_compatible(VIRTIO_MMIO) && node.has("#iommu-cells") {
            let registers = node.first_registers()?;
            let interrupt = interrupts(tree, &node)?.first().copied().flatten();
            let transport = VirtioTransport::Mmio { registers, interrupt };
            UnitKind::VirtioIommu(VirtioIommuUnit { transport })
        } else {
            continue;
        };
        let unit = topology.add_unit(UnitDescription { kind, proximity: None, origin: node.here() })?;
        list::push(&mut units, UnitNode { node: node.index(), unit })?;
    }
    Ok(Units(units))
}

fn read_smmuv3(
    tree: &Tree<'_>,
    node: &Node<'_, '_>,
    controllers: &Controllers,
) -> Result<Smmuv3Unit, FirmwareError> {
    let mut wired = Smmuv3Interrupts::default();
    for (name, interrupt) in node.strings("interrupt-names").zip(interrupts(tree, node)?) {
        match name {
            "eventq" => wired.event = interrupt,
            "gerror" => wired.gerror = interrupt,
            "priq" => wired.pri = interrupt,
            "cmdq-sync" => wired.command_sync = interrupt,
            "combined" => wired.combined = interrupt,
            _ => {}
        }
    }
    let walks = match coherency(node) {
        DmaCoherency::Coherent => WalkCoherency::Coherent,
        DmaCoherency::NonCoherent | DmaCoherency::NotStated => WalkCoherency::NonCoherent,
    };
    let model = if node.has("cavium,cn9900-broken-page1-regspace") {
        Smmuv3Model::CaviumCn99xx
    } else if node.has("hisilicon,broken-prefetch-cmd") {
        Smmuv3Model::HisiliconHi161x
    } else {
        Smmuv3Model::Generic
    };
    Ok(Smmuv3Unit {
        registers: node.first_registers()?,
        walks,
        interrupts: wired,
        msi: controllers.msi_parent(tree, node)?,
        model,
    })
}

/// The requester that a child of a PCI host bridge is.
pub(super) fn pci_function(
    node: &Node<'_, '_>,
    hosts: &[Host],
) -> Result<Option<RequesterId>, FirmwareError> {
    let Some(parent) = node.parent() else {
        return Ok(None);
    };
    let Some(host) = hosts.iter().find(|host| host.node == parent.index()) else {
        return Ok(None);
    };
    let Some(mut reg) = node.list("reg")? else {
        return Ok(None);
    };
    // The first cell has the bus in bits 23:16, device and function in 15:8.
    let function = (reg.number()? >> 8) as u16;
    Ok(Some(RequesterId::from_bdf(host.segment, function)))
}

/// Adds every device with `iommus`.
pub(super) fn read_platform_devices(
    tree: &Tree<'_>,
    units: &Units,
    controllers: &Controllers,
    topology: &mut Topology,
) -> Result<Vec<DeviceNode>, FirmwareError> {
    let mut devices = Vec::new();
    for node in tree.nodes().filter(Node::is_enabled) {
        let Some(mut entries) = node.list("iommus")? else {
            continue;
        };
        let mut streams = Vec::new();
        while !entries.is_empty() {
            let at = entries.here();
            let target = tree.reference(at, entries.number()?)?;
            let count = target.number("#iommu-cells")?;
            let count = count.ok_or(FirmwareError::BadReference { at, target: 0 })?;
            let id = EndpointId::new(entries.part(count as usize)?.first_or_zero());
            match units.find(&target) {
                Some(unit) if count == 1 => {
                    list::push(&mut streams, StreamRange { unit, first: id, last: id })?;
                }
                _ => topology.warn(Warning::UnknownTarget { at })?,
            }
        }
        let device = PlatformDevice {
            name: list::text(node.name())?,
            compatible: strings(&node)?,
            registers: node.registers()?,
            streams,
            msi: controllers.msi_parent(tree, &node)?,
            dma: coherency(&node),
            origin: node.here(),
        };
        list::push(&mut devices, DeviceNode { node: node.index(), device: topology.platform_devices.len() })?;
        list::push(&mut topology.platform_devices, device)?;
    }
    Ok(devices)
}

fn strings(node: &Node<'_, '_>) -> Result<Vec<alloc::string::String>, FirmwareError> {
    let mut strings = Vec::new();
    for text in node.strings("compatible") {
        list::push(&mut strings, list::text(text)?)?;
    }
    Ok(strings)
}

/// `dma-coherent` and `dma-noncoherent` are inherited; the nearest counts. Arm systems without either are
/// not coherent.
fn coherency(node: &Node<'_, '_>) -> DmaCoherency {
    let mut next = Some(*node);
    while let Some(node) = next {
        if node.has("dma-coherent") {
            return DmaCoherency::Coherent;
        }
        if node.has("dma-noncoherent") {
            return DmaCoherency::NonCoherent;
        }
        next = node.parent();
    }
    DmaCoherency::NonCoherent
}

/// An entry of `iommu-map` or `msi-map`: four cells.
#[derive(Clone, Copy)]
pub(super) struct MapEntry<'t, 'a> {
    pub(super) at: Location,
    /// The first and last requester word.
    pub(super) requesters: (u16, u16),
    pub(super) target: Node<'t, 'a>,
    pub(super) output: u32,
}

/// The entries of the map `property`. Empty ones are reported to `empty` and left out.
pub(super) fn read_map<'t, 'a>(
    tree: &'t Tree<'a>,
    node: &Node<'t, 'a>,
    property: &str,
    empty: &mut dyn FnMut(Location) -> Result<(), FirmwareError>,
) -> Result<Vec<MapEntry<'t, 'a>>, FirmwareError> {
    let mut map = Vec::new();
    let Some(mut entries) = node.list(property)? else {
        return Ok(map);
    };
    while !entries.is_empty() {
        let at = entries.here();
        let first = entries.number()?;
        let target = tree.reference(at, entries.number()?)?;
        let (output, length) = (entries.number()?, entries.number()?);
        let Some(extra) = length.checked_sub(1) else {
            empty(at)?;
            continue;
        };
        let last = first.checked_add(extra).and_then(|last| u16::try_from(last).ok());
        let requesters = u16::try_from(first).ok().zip(last);
        let requesters = requesters.ok_or(FirmwareError::BadValue { at, value: first.into() })?;
        if output.checked_add(extra).is_none() {
            return Err(FirmwareError::BadValue { at, value: output.into() });
        }
        list::push(&mut map, MapEntry { at, requesters, target, output })?;
    }
    Ok(map)
}
