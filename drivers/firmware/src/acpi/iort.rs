//! IORT: SMMUs, the devices behind them and their MSIs (Arm DEN 0049).

use super::iort_trace::{Graph, Node, Reached};
use super::spec::iort::{
    ATS_SUPPORTED, IdMapping, Iort, ItsGroup, NamedComponent, NodeHeader, RMR_REMAP_PERMITTED, Rmr, RmrRange,
    RootComplex, SMMUV3_COHACC_OVERRIDE, SMMUV3_PROXIMITY_VALID, Smmuv3, kind,
};
use super::spec::root::TableHeader;
use crate::view::{RecordShape, View};
use crate::{
    AtsSupport, DeviceSet, DmaCoherency, FirmwareError, Gic, Interrupt, ItsId, MsiController, MsiMapping,
    MsiTarget, PlatformDevice, RequesterMapping, RequesterWindow, ReservedKind, ReservedRegion, SegmentAts,
    Smmuv3Interrupts, Smmuv3Model, Smmuv3Unit, StreamRange, Topology, Trigger, UnitDescription, UnitKind,
    WalkCoherency, Warning, list,
};
use alloc::vec::Vec;
use portcullis_hal::{EndpointId, Iova, IovaRange, PhysAddr, PhysRange};
use zerocopy::little_endian::U32;

/// Register pages 0 and 1 of an SMMUv3 (SMMUv3 architecture, 6.1).
const SMMUV3_BYTES: u64 = 0x2_0000;
/// What a node has after its header.
const BODY: usize = size_of::<NodeHeader>();
/// Earlier revisions of the table had RMR nodes of another layout.
const FIRST_REVISION_WITH_RMR: u8 = 3;

pub(super) fn read(table: &View<'_>, topology: &mut Topology) -> Result<(), FirmwareError> {
    let mut graph = read_nodes(table)?;
    let table_header: &TableHeader = table.read(0)?;
    for index in 0..graph.nodes.len() {
        let unit = match graph.nodes.get(index) {
            Some(node) if node.kind == kind::SMMUV3 => read_smmuv3(&graph, node, topology.gic.as_ref())?,
            _ => continue,
        };
        let unit = topology.add_unit(unit)?;
        if let Some(node) = graph.nodes.get_mut(index) {
            node.unit = Some(unit);
        }
    }
    let mut steps = 0;
    for node in &graph.nodes {
        match node.kind {
            kind::ROOT_COMPLEX => read_root_complex(&graph, node, &mut steps, topology)?,
            kind::NAMED_COMPONENT => read_named_component(&graph, node, &mut steps, topology)?,
            kind::RMR if table_header.revision >= FIRST_REVISION_WITH_RMR => {
                read_rmr(&graph, node, &mut steps, topology)?;
            }
            kind::ITS_GROUP | kind::SMMUV3 | kind::PMCG => {}
            // SMMUv1 and v2 are known and not driven; what refers to them warns.
            kind => topology.warn(Warning::UnknownStructure { at: node.here(), kind })?,
        }
    }
    Ok(())
}

fn read_nodes<'a>(table: &View<'a>) -> Result<Graph<'a>, FirmwareError> {
    let header_len = size_of::<TableHeader>();
    let iort: &Iort = table.read(header_len)?;
    let first = iort.node_offset.get();
    if (first as usize) < header_len + size_of::<Iort>() {
        return Err(FirmwareError::BadReference { at: table.at(header_len), target: first });
    }
    let mut nodes = Vec::new();
    let count = iort.node_count.get() as usize;
    for record in table.counted_records(first as usize, RecordShape::ByteWord, count)? {
        list::push(&mut nodes, Node::read(&record?)?)?;
    }
    Ok(Graph { nodes })
}

fn read_smmuv3(
    graph: &Graph<'_>,
    node: &Node<'_>,
    gic: Option<&Gic>,
) -> Result<UnitDescription, FirmwareError> {
    let smmu: &Smmuv3 = node.view.read(BODY)?;
    let flags = smmu.flags.get();
    let registers = PhysRange::new(PhysAddr::new(smmu.base.get()), SMMUV3_BYTES)
        .map_err(|error| FirmwareError::BadRange { at: node.here(), error })?;
    // The architecture makes all of them edge-triggered (SMMUv3, 3.18).
    let interrupt = |gsiv: U32| match gsiv.get() {
        0 => None,
        intid => Some(Interrupt { intid, trigger: Trigger::EdgeRising }),
    };
    let unit = Smmuv3Unit {
        registers,
        walks: match flags & SMMUV3_COHACC_OVERRIDE {
            0 => WalkCoherency::AsReported,
            _ => WalkCoherency::Coherent,
        },
        interrupts: Smmuv3Interrupts {
            event: interrupt(smmu.event_gsiv),
            gerror: interrupt(smmu.gerror_gsiv),
            pri: interrupt(smmu.pri_gsiv),
            command_sync: interrupt(smmu.sync_gsiv),
            combined: None,
        },
        msi: match node.own_mapping() {
            Some((_, mapping)) => own_msi(graph, node, mapping, gic)?,
            None => None,
        },
        model: match smmu.model.get() {
            0 => Smmuv3Model::Generic,
            1 => Smmuv3Model::HisiliconHi161x,
            2 => Smmuv3Model::CaviumCn99xx,
            other => Smmuv3Model::Other(other),
        },
    };
    let proximity = (flags & SMMUV3_PROXIMITY_VALID != 0).then(|| smmu.proximity_domain.get());
    Ok(UnitDescription { kind: UnitKind::Smmuv3(unit), proximity, origin: node.here() })
}

fn own_msi(
    graph: &Graph<'_>,
    node: &Node<'_>,
    mapping: &IdMapping,
    gic: Option<&Gic>,
) -> Result<Option<MsiTarget>, FirmwareError> {
    let target = graph.target(node, mapping)?;
    if target.kind != kind::ITS_GROUP {
        return Ok(None);
    }
    let controller = its_of(target, gic)?;
    Ok(controller.map(|controller| MsiTarget { controller, device_id: mapping.output_base.get() }))
}

/// The ITS of a group that a device uses: the first that MADT knows, or the first if there is no MADT.
fn its_of(group: &Node<'_>, gic: Option<&Gic>) -> Result<Option<MsiController>, FirmwareError> {
    let count = group.view.read::<ItsGroup>(BODY)?.its_count.get() as usize;
    let ids: &[U32] = group.view.read_array(BODY + size_of::<ItsGroup>(), count)?;
    let ids = ids.iter().map(|id| ItsId(id.get()));
    let known = |id: &ItsId| gic.is_none_or(|gic| gic.its(*id).is_some());
    Ok(ids.into_iter().find(known).map(MsiController::Its))
}

fn read_root_complex(
    graph: &Graph<'_>,
    node: &Node<'_>,
    steps: &mut usize,
    topology: &mut Topology,
) -> Result<(), FirmwareError> {
    let root: &RootComplex = node.view.read(BODY)?;
    let segment = u16::try_from(root.segment.get())
        .map_err(|_| FirmwareError::BadValue { at: node.here(), value: root.segment.get().into() })?;
    if root.ats_attribute.get() & ATS_SUPPORTED != 0 {
        list::push(&mut topology.segment_ats, SegmentAts { segment, support: AtsSupport::Supported })?;
    }
    // Input ids are requester ids, 16 bits wide.
    graph.trace(node, 0, u16::MAX.into(), steps, &mut |reached| {
        let window = match reached.input {
            Some((first, last)) => RequesterWindow::new(segment, first as u16, last as u16),
            None => RequesterWindow { mask: 0, ..RequesterWindow::new(segment, 0, 0) },
        };
        add_requesters(node, &reached, window, topology)
    })
}

fn add_requesters(
    node: &Node<'_>,
    reached: &Reached<'_, '_>,
    window: RequesterWindow,
    topology: &mut Topology,
) -> Result<(), FirmwareError> {
    let origin = node.here();
    let output = reached.output.0;
    match (reached.node.kind, reached.node.unit) {
        (kind::ITS_GROUP, _) => match its_of(reached.node, topology.gic.as_ref())? {
            Some(controller) => {
                let target = MsiTarget { controller, device_id: output };
                topology.add_msi_mapping(MsiMapping { window, target, origin })
            }
            None => topology.warn(Warning::UnknownTarget { at: origin }),
        },
        // Behind the first SMMU, another does not know the requester.
        (_, Some(unit)) if reached.distance == 0 => {
            let endpoint = EndpointId::new(output);
            topology.add_mapping(RequesterMapping { window, unit, endpoint, origin })
        }
        (_, Some(_)) => Ok(()),
        (_, None) => topology.warn(Warning::UnknownTarget { at: origin }),
    }
}

fn read_named_component(
    graph: &Graph<'_>,
    node: &Node<'_>,
    steps: &mut usize,
    topology: &mut Topology,
) -> Result<(), FirmwareError> {
    let component: &NamedComponent = node.view.read(BODY)?;
    let name = node.view.rest(BODY + size_of::<NamedComponent>())?.text()?;
    let mut device = PlatformDevice {
        name: list::text(name)?,
        compatible: Vec::new(),
        registers: Vec::new(),
        streams: Vec::new(),
        msi: None,
        dma: match component.cache_coherency.get() {
            0 => DmaCoherency::NonCoherent,
            _ => DmaCoherency::Coherent,
        },
        origin: node.here(),
    };
    graph.trace(node, 0, u32::MAX, steps, &mut |reached| {
        if reached.node.kind != kind::ITS_GROUP {
            return add_stream(node, &reached, &mut device.streams, topology);
        }
        if device.msi.is_none() {
            let controller = its_of(reached.node, topology.gic.as_ref())?;
            device.msi = controller.map(|controller| MsiTarget { controller, device_id: reached.output.0 });
        }
        Ok(())
    })?;
    list::push(&mut topology.platform_devices, device)
}

fn add_stream(
    node: &Node<'_>,
    reached: &Reached<'_, '_>,
    streams: &mut Vec<StreamRange>,
    topology: &mut Topology,
) -> Result<(), FirmwareError> {
    let (first, last) = reached.output;
    match reached.node.unit {
        Some(unit) if reached.distance == 0 => {
            let (first, last) = (EndpointId::new(first), EndpointId::new(last));
            list::push(streams, StreamRange { unit, first, last })
        }
        Some(_) => Ok(()),
        None => topology.warn(Warning::UnknownTarget { at: node.here() }),
    }
}

/// Reserved memory that devices keep using while the operating system takes over.
fn read_rmr(
    graph: &Graph<'_>,
    node: &Node<'_>,
    steps: &mut usize,
    topology: &mut Topology,
) -> Result<(), FirmwareError> {
    let rmr: &Rmr = node.view.read(BODY)?;
    let ranges: &[RmrRange] =
        node.view.read_array(rmr.range_offset.get() as usize, rmr.range_count.get() as usize)?;
    let reserved_kind = match rmr.flags.get() & RMR_REMAP_PERMITTED {
        0 => ReservedKind::Direct,
        _ => ReservedKind::DirectRelaxable,
    };
    let mut streams = Vec::new();
    graph.trace(node, 0, u32::MAX, steps, &mut |reached| {
        if reached.node.kind == kind::ITS_GROUP {
            return Ok(());
        }
        add_stream(node, &reached, &mut streams, topology)
    })?;
    if streams.is_empty() {
        return topology.ignored(node.here());
    }
    // Each region gets its own list of streams.
    if ranges.len().saturating_mul(streams.len()) > list::LIMIT {
        return Err(FirmwareError::TooManyEntries { limit: list::LIMIT });
    }
    for range in ranges {
        let range = IovaRange::new(Iova::new(range.base.get()), range.length.get())
            .map_err(|error| FirmwareError::BadRange { at: node.here(), error })?;
        let devices = DeviceSet { streams: list::copy(&streams)?, ..DeviceSet::default() };
        list::push(
            &mut topology.reserved,
            ReservedRegion { range, kind: reserved_kind, devices, origin: node.here() },
        )?;
    }
    Ok(())
}
