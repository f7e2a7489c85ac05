//! Following id mappings through the nodes of IORT (DEN 0049, "ID mapping format").

use super::spec::iort::{IdMapping, NodeHeader, SINGLE_MAPPING, SMMUV3_DEVICE_ID_VALID, Smmuv3, kind};
use crate::view::{Record, View};
use crate::{FirmwareError, Location, UnitIndex};
use alloc::vec::Vec;

/// A chain longer than this is a loop: a device, an SMMU and an ITS group are three nodes.
const MAX_CHAIN: usize = 4;
/// Mappings that are looked at in one table, over all chains; real tables stay below a hundredth.
const MAX_STEPS: usize = 1 << 18;

/// One node.
pub(super) struct Node<'a> {
    /// Its offset in the table.
    pub(super) offset: usize,
    pub(super) kind: u16,
    pub(super) view: View<'a>,
    /// The unit it became, if it is an SMMUv3.
    pub(super) unit: Option<UnitIndex>,
    mappings: &'a [IdMapping],
}

impl<'a> Node<'a> {
    pub(super) fn read(record: &Record<'a>) -> Result<Self, FirmwareError> {
        let header: &NodeHeader = record.view.read(0)?;
        let count = header.mapping_count.get() as usize;
        let mappings = match count {
            0 => &[],
            _ => record.view.read_array(header.mapping_offset.get() as usize, count)?,
        };
        let offset = record.view.here().offset;
        Ok(Self { offset, kind: record.kind, view: record.view, unit: None, mappings })
    }

    pub(super) const fn here(&self) -> Location {
        self.view.here()
    }

    /// The mapping of an SMMUv3's own DeviceID, with its index, if the node has a valid one.
    ///
    /// From node revision 5 on a flag says so; before, the index counts unless all four interrupts are wired.
    pub(super) fn own_mapping(&self) -> Option<(usize, &'a IdMapping)> {
        if self.kind != kind::SMMUV3 {
            return None;
        }
        let header: &NodeHeader = self.view.read(0).ok()?;
        let smmu: &Smmuv3 = self.view.read(size_of::<NodeHeader>()).ok()?;
        let valid = if header.revision >= 5 {
            smmu.flags.get() & SMMUV3_DEVICE_ID_VALID != 0
        } else {
            [smmu.event_gsiv, smmu.pri_gsiv, smmu.gerror_gsiv, smmu.sync_gsiv].iter().any(|g| g.get() == 0)
        };
        let index = smmu.device_id_mapping.get() as usize;
        let mapping = self.mappings.get(index)?;
        (valid && is_single(mapping)).then_some((index, mapping))
    }
}

/// Ids that went into a device's node, and what became of them at another node.
#[derive(Clone, Copy)]
pub(super) struct Reached<'n, 'a> {
    /// The ids of the device; `None` if its id does not matter (single mapping).
    pub(super) input: Option<(u32, u32)>,
    /// The first and last id at `node`.
    pub(super) output: (u32, u32),
    /// An SMMU or an ITS group.
    pub(super) node: &'n Node<'a>,
    /// How many nodes are between the device and `node`.
    pub(super) distance: usize,
}

/// All nodes, in the order of their offsets.
pub(super) struct Graph<'a> {
    pub(super) nodes: Vec<Node<'a>>,
}

impl<'a> Graph<'a> {
    /// The node at `offset`, for the structure at `at`.
    pub(super) fn find(&self, at: Location, offset: u32) -> Result<&Node<'a>, FirmwareError> {
        let position = self.nodes.binary_search_by_key(&(offset as usize), |node| node.offset);
        let node = position.ok().and_then(|position| self.nodes.get(position));
        node.ok_or(FirmwareError::BadReference { at, target: offset })
    }

    /// Every SMMU and ITS group that ids from `first` to `last` of `device` reach, nearest first along each
    /// chain.
    pub(super) fn trace<'n>(
        &'n self,
        device: &'n Node<'a>,
        first: u32,
        last: u32,
        steps: &mut usize,
        found: &mut dyn FnMut(Reached<'n, 'a>) -> Result<(), FirmwareError>,
    ) -> Result<(), FirmwareError> {
        for mapping in device.mappings {
            count_step(steps)?;
            let single = is_single(mapping);
            let Some(part) = translate(device, mapping, single, (first, last))? else {
                continue;
            };
            let node = self.target(device, mapping)?;
            let input = (!single).then_some(part.input);
            let reached = Reached { input, output: part.output, node, distance: 0 };
            found(reached)?;
            self.follow(reached, steps, found)?;
        }
        Ok(())
    }

    /// Goes on from an SMMU; an ITS group has no outputs.
    fn follow<'n>(
        &'n self,
        from: Reached<'n, 'a>,
        steps: &mut usize,
        found: &mut dyn FnMut(Reached<'n, 'a>) -> Result<(), FirmwareError>,
    ) -> Result<(), FirmwareError> {
        if from.node.kind == kind::ITS_GROUP {
            return Ok(());
        }
        let distance = from.distance + 1;
        if distance > MAX_CHAIN {
            return Err(FirmwareError::ReferenceLoop { at: from.node.here() });
        }
        let own = from.node.own_mapping().map(|(index, _)| index);
        for (index, mapping) in from.node.mappings.iter().enumerate() {
            count_step(steps)?;
            // The SMMU's own MSIs are not those of the devices behind it.
            if Some(index) == own || is_single(mapping) {
                continue;
            }
            let Some(part) = translate(from.node, mapping, false, from.output)? else {
                continue;
            };
            let node = self.target(from.node, mapping)?;
            let skipped = part.input.0 - from.output.0;
            let length = part.input.1 - part.input.0;
            let input = from.input.map(|(first, _)| (first + skipped, first + skipped + length));
            let reached = Reached { input, output: part.output, node, distance };
            found(reached)?;
            self.follow(reached, steps, found)?;
        }
        Ok(())
    }

    /// What a mapping refers to: only SMMUs and ITS groups take ids.
    pub(super) fn target(&self, from: &Node<'a>, mapping: &IdMapping) -> Result<&Node<'a>, FirmwareError> {
        let offset = mapping.output_reference.get();
        let node = self.find(from.here(), offset)?;
        match node.kind {
            kind::ITS_GROUP | kind::SMMU | kind::SMMUV3 => Ok(node),
            _ if node.offset == from.offset => Err(FirmwareError::ReferenceLoop { at: from.here() }),
            _ => Err(FirmwareError::BadReference { at: from.here(), target: offset }),
        }
    }
}

fn is_single(mapping: &IdMapping) -> bool {
    mapping.flags.get() & SINGLE_MAPPING != 0
}

fn count_step(steps: &mut usize) -> Result<(), FirmwareError> {
    *steps += 1;
    if *steps > MAX_STEPS { Err(FirmwareError::TooManyEntries { limit: MAX_STEPS }) } else { Ok(()) }
}

/// Some ids and their translations.
struct Part {
    input: (u32, u32),
    output: (u32, u32),
}

/// What `mapping` does with the ids of a range, or `None` if it takes none of them in.
fn translate(
    node: &Node<'_>,
    mapping: &IdMapping,
    single: bool,
    (first, last): (u32, u32),
) -> Result<Option<Part>, FirmwareError> {
    let output_base = mapping.output_base.get();
    if single {
        return Ok(Some(Part { input: (first, last), output: (output_base, output_base) }));
    }
    let base = mapping.input_base.get();
    let bad = |value: u32| FirmwareError::BadValue { at: node.here(), value: value.into() };
    let count = mapping.id_count.get();
    let end = base.checked_add(count).ok_or_else(|| bad(base))?;
    output_base.checked_add(count).ok_or_else(|| bad(output_base))?;
    let input = (first.max(base), last.min(end));
    if input.0 > input.1 {
        return Ok(None);
    }
    let output = (output_base + (input.0 - base), output_base + (input.1 - base));
    Ok(Some(Part { input, output }))
}
