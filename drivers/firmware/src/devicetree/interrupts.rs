//! The GIC, its MSI controllers, and interrupt specifiers.

use super::tree::{Node, Tree};
use crate::{FirmwareError, Gic, Interrupt, Its, ItsId, MsiController, MsiTarget, Trigger, V2mFrame, list};
use alloc::vec::Vec;

const GIC_V3: &[&str] = &["arm,gic-v3"];
const GIC_V2: &[&str] = &["arm,cortex-a15-gic", "arm,gic-400", "arm,cortex-a9-gic", "arm,cortex-a7-gic"];
const ITS: &[&str] = &["arm,gic-v3-its"];
const V2M: &[&str] = &["arm,gic-v2m-frame"];

/// Interrupt types of a GIC specifier, with the INTID of their number 0.
const INTID_BASES: [u32; 4] = [32, 16, 4096, 1056];

/// The interrupt controllers of a tree.
pub(super) struct Controllers {
    pub(super) gic: Option<Gic>,
    /// MSI controllers by node.
    msi: Vec<(usize, MsiController)>,
}

impl Controllers {
    /// Finds the first GIC and all MSI controllers.
    pub(super) fn read(tree: &Tree<'_>) -> Result<Self, FirmwareError> {
        let mut translation_services = Vec::new();
        let mut v2m_frames = Vec::new();
        let mut msi = Vec::new();
        let mut gic = None;
        for node in tree.nodes().filter(Node::is_enabled) {
            if node.is_compatible(ITS) {
                let id = ItsId(translation_services.len() as u32);
                list::push(&mut translation_services, Its { id, registers: node.first_registers()? })?;
                list::push(&mut msi, (node.index(), MsiController::Its(id)))?;
            } else if node.is_compatible(V2M) {
                list::push(&mut msi, (node.index(), MsiController::V2m(v2m_frames.len())))?;
                list::push(&mut v2m_frames, read_v2m(&node)?)?;
            } else if gic.is_none() && (node.is_compatible(GIC_V3) || node.is_compatible(GIC_V2)) {
                gic = Some(read_gic(&node)?);
            }
        }
        let gic = gic.map(|gic| Gic { translation_services, v2m_frames, ..gic });
        Ok(Self { gic, msi })
    }

    /// The MSI controller that a node is.
    pub(super) fn msi(&self, node: &Node<'_, '_>) -> Option<MsiController> {
        self.msi.iter().find(|(index, _)| *index == node.index()).map(|(_, controller)| *controller)
    }

    /// The first MSI target in a node's own `msi-parent`.
    pub(super) fn msi_parent(
        &self,
        tree: &Tree<'_>,
        node: &Node<'_, '_>,
    ) -> Result<Option<MsiTarget>, FirmwareError> {
        let Some(mut parents) = node.list("msi-parent")? else {
            return Ok(None);
        };
        while !parents.is_empty() {
            let at = parents.here();
            let parent = tree.reference(at, parents.number()?)?;
            let count = parent.number("#msi-cells")?.unwrap_or(0);
            let device_id = parents.part(count as usize)?.first_or_zero();
            if let Some(controller) = self.msi(&parent) {
                return Ok(Some(MsiTarget { controller, device_id }));
            }
        }
        Ok(None)
    }
}

fn read_gic(node: &Node<'_, '_>) -> Result<Gic, FirmwareError> {
    let registers = node.registers()?;
    let missing = || FirmwareError::BadLength { at: node.here(), length: registers.len() };
    let (&distributor, rest) = registers.split_first().ok_or_else(missing)?;
    let (version, redistributors, cpu_interface) = if node.is_compatible(GIC_V3) {
        let count = node.number("#redistributor-regions")?.unwrap_or(1) as usize;
        let regions = rest.get(..count).filter(|regions| !regions.is_empty()).ok_or_else(missing)?;
        (3, list::copy(regions)?, None)
    } else {
        (2, Vec::new(), rest.first().copied())
    };
    Ok(Gic {
        version,
        distributor,
        redistributors,
        cpu_interface,
        translation_services: Vec::new(),
        v2m_frames: Vec::new(),
    })
}

fn read_v2m(node: &Node<'_, '_>) -> Result<V2mFrame, FirmwareError> {
    let base = node.number("arm,msi-base-spi")?;
    let spis = base.zip(node.number("arm,msi-num-spis")?);
    Ok(V2mFrame { registers: node.first_registers()?, spis })
}

/// The interrupts of a node in their order; `None` for one whose controller is not a GIC.
pub(super) fn interrupts(
    tree: &Tree<'_>,
    node: &Node<'_, '_>,
) -> Result<Vec<Option<Interrupt>>, FirmwareError> {
    let mut found = Vec::new();
    if let Some(mut entries) = node.list("interrupts-extended")? {
        while !entries.is_empty() {
            let at = entries.here();
            let controller = tree.reference(at, entries.number()?)?;
            list::push(&mut found, specifier(&controller, &mut entries)?)?;
        }
        return Ok(found);
    }
    let Some(mut entries) = node.list("interrupts")? else {
        return Ok(found);
    };
    let Some(controller) = interrupt_parent(tree, node)? else {
        return Ok(found);
    };
    while !entries.is_empty() {
        list::push(&mut found, specifier(&controller, &mut entries)?)?;
    }
    Ok(found)
}

/// The nearest `interrupt-parent` of a node and the nodes above it.
fn interrupt_parent<'t, 'a>(
    tree: &'t Tree<'a>,
    node: &Node<'t, 'a>,
) -> Result<Option<Node<'t, 'a>>, FirmwareError> {
    let mut next = Some(*node);
    while let Some(node) = next {
        if let Some(phandle) = node.number("interrupt-parent")? {
            return tree.reference(node.here(), phandle).map(Some);
        }
        next = node.parent();
    }
    Ok(None)
}

/// One interrupt specifier, as long as its controller says.
fn specifier(
    controller: &Node<'_, '_>,
    entries: &mut super::cells::Cells<'_>,
) -> Result<Option<Interrupt>, FirmwareError> {
    let at = entries.here();
    let count = controller.number("#interrupt-cells")?.unwrap_or(0) as usize;
    if count == 0 {
        return Err(FirmwareError::BadReference { at, target: 0 });
    }
    let mut cells = entries.part(count)?;
    if count < 3 || !(controller.is_compatible(GIC_V3) || controller.is_compatible(GIC_V2)) {
        return Ok(None);
    }
    let (kind, number, flags) = (cells.number()?, cells.number()?, cells.number()?);
    let base = INTID_BASES.get(kind as usize);
    let intid = base.and_then(|base| base.checked_add(number));
    let intid = intid.ok_or(FirmwareError::BadValue { at, value: kind.into() })?;
    let trigger = match flags & 0xf {
        1 => Trigger::EdgeRising,
        2 => Trigger::EdgeFalling,
        4 => Trigger::LevelHigh,
        8 => Trigger::LevelLow,
        other => {
            return Err(FirmwareError::BadValue { at, value: other.into() });
        }
    };
    Ok(Some(Interrupt { intid, trigger }))
}
