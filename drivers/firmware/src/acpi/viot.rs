//! VIOT: the endpoints of virtio-iommu devices.

use super::spec::root::TableHeader;
use super::spec::viot::{Mmio, PciRange, Viot, VirtioMmio, VirtioPci, kind};
use crate::view::{Record, RecordShape, View};
use crate::{
    DmaCoherency, FirmwareError, PlatformDevice, RequesterMapping, RequesterWindow, StreamRange, Topology,
    UnitDescription, UnitIndex, UnitKind, VirtioIommuUnit, VirtioTransport, Warning, list,
};
use alloc::{string::String, vec::Vec};
use portcullis_hal::{EndpointId, PhysAddr, PhysRange, RequesterId};

/// Register window of a virtio-mmio device: 0x100 bytes of registers and its configuration space.
const VIRTIO_MMIO_BYTES: u64 = 0x200;

pub(super) fn read(table: &View<'_>, topology: &mut Topology) -> Result<(), FirmwareError> {
    // Endpoints may refer to units that come later in the table.
    let mut units = Vec::new();
    for node in nodes(table)? {
        let node = node?;
        if let Some(unit) = unit_of(&node)? {
            let index = topology.add_unit(unit)?;
            list::push(&mut units, (node.view.here().offset, index))?;
        }
    }
    let target = |node: &Record<'_>, reference: u16| {
        units
            .iter()
            .find(|(offset, _)| *offset == usize::from(reference))
            .map(|(_, unit)| *unit)
            .ok_or(FirmwareError::BadReference { at: node.view.here(), target: reference.into() })
    };
    for node in nodes(table)? {
        let node = node?;
        match node.kind {
            kind::PCI_RANGE => {
                let range: &PciRange = node.view.read(0)?;
                let unit = target(&node, range.output_node.get())?;
                topology.add_mapping(pci_mapping(&node, range, unit)?)?;
            }
            kind::MMIO_ENDPOINT => {
                let endpoint: &Mmio = node.view.read(0)?;
                let unit = target(&node, endpoint.output_node.get())?;
                let device = mmio_device(&node, endpoint, unit)?;
                list::push(&mut topology.platform_devices, device)?;
            }
            kind::VIRTIO_IOMMU_PCI | kind::VIRTIO_IOMMU_MMIO => {}
            kind => topology.warn(Warning::UnknownStructure { at: node.view.here(), kind })?,
        }
    }
    Ok(())
}

/// As many nodes as the header counts.
fn nodes<'a>(
    table: &View<'a>,
) -> Result<impl Iterator<Item = Result<Record<'a>, FirmwareError>> + use<'a>, FirmwareError> {
    let header_len = size_of::<TableHeader>();
    let viot: &Viot = table.read(header_len)?;
    let first = usize::from(viot.node_offset.get());
    if first < header_len + size_of::<Viot>() {
        return Err(FirmwareError::BadReference { at: table.at(header_len), target: first as u32 });
    }
    table.counted_records(first, RecordShape::ByteGapWord, viot.node_count.get().into())
}

fn unit_of(node: &Record<'_>) -> Result<Option<UnitDescription>, FirmwareError> {
    let origin = node.view.here();
    let transport = match node.kind {
        kind::VIRTIO_IOMMU_PCI => {
            let pci: &VirtioPci = node.view.read(0)?;
            VirtioTransport::Pci(RequesterId::from_bdf(pci.segment.get(), pci.bdf.get()))
        }
        kind::VIRTIO_IOMMU_MMIO => {
            let mmio: &VirtioMmio = node.view.read(0)?;
            let base = PhysAddr::new(mmio.base_address.get());
            let registers = PhysRange::new(base, VIRTIO_MMIO_BYTES)
                .map_err(|error| FirmwareError::BadRange { at: origin, error })?;
            VirtioTransport::Mmio { registers, interrupt: None }
        }
        _ => return Ok(None),
    };
    let kind = UnitKind::VirtioIommu(VirtioIommuUnit { transport });
    Ok(Some(UnitDescription { kind, proximity: None, origin }))
}

fn pci_mapping(
    node: &Record<'_>,
    range: &PciRange,
    unit: UnitIndex,
) -> Result<RequesterMapping, FirmwareError> {
    let at = node.view.here();
    let window = RequesterWindow {
        first_segment: range.segment_start.get(),
        last_segment: range.segment_end.get(),
        mask: RequesterWindow::FULL_MASK,
        first: range.bdf_start.get(),
        last: range.bdf_end.get(),
    };
    let start = range.endpoint_start.get();
    // The last requester exists, and its endpoint id fits 32 bits.
    let fits = window
        .offset_of(RequesterId::from_bdf(window.last_segment, window.last))
        .is_some_and(|last| window.first_segment <= window.last_segment && start.checked_add(last).is_some());
    if !fits {
        return Err(FirmwareError::BadValue { at, value: start.into() });
    }
    Ok(RequesterMapping { window, unit, endpoint: EndpointId::new(start), origin: at })
}

fn mmio_device(node: &Record<'_>, endpoint: &Mmio, unit: UnitIndex) -> Result<PlatformDevice, FirmwareError> {
    let origin = node.view.here();
    let base = PhysAddr::new(endpoint.base_address.get());
    let base = PhysRange::new(base, 1).map_err(|error| FirmwareError::BadRange { at: origin, error })?;
    let id = EndpointId::new(endpoint.endpoint.get());
    let mut registers = Vec::new();
    list::push(&mut registers, base)?;
    let mut streams = Vec::new();
    list::push(&mut streams, StreamRange { unit, first: id, last: id })?;
    Ok(PlatformDevice {
        name: String::new(),
        compatible: Vec::new(),
        registers,
        streams,
        msi: None,
        dma: DmaCoherency::NotStated,
        origin,
    })
}
