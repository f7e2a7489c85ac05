//! Device trees that say what QEMU's do not: QEMU can put a virtio-iommu on the bus for virtio devices of `virt`, but only
//! the one on PCI gets a description.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use serde::Deserialize;

/// Which node is an IOMMU, and for whom.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Addition {
    /// The path of the unit's node.
    unit: String,
    /// The path of the host bridge whose functions are all behind it, each under its own requester id.
    bridge: String,
}

impl Addition {
    /// Writes to `path` the tree of the machine that `command` would start, with the addition.
    pub fn write(&self, mut command: Command, path: &Path) -> Result<()> {
        // QEMU takes in what several of these say, writes the tree and ends.
        let dump = format!("dumpdtb={}", path.display().to_string().replace(',', ",,"));
        let output = command
            .args(["-machine", &dump])
            .stdin(Stdio::null())
            .output()
            .context("cannot start QEMU for its device tree")?;
        if !output.status.success() {
            bail!("QEMU gives no device tree: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let blob = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        fs::write(path, self.apply(&blob)?).with_context(|| format!("cannot write {}", path.display()))
    }

    fn apply(&self, blob: &[u8]) -> Result<Vec<u8>> {
        /// All functions of a segment.
        const FUNCTIONS: u32 = 0x1_0000;
        let fdt = Fdt::new(blob).map_err(|error| anyhow!("QEMU's device tree: {error}"))?;
        let mut tree = DeviceTree::from_fdt(&fdt);
        let handle = highest_handle(&tree.root).checked_add(1).context("no number is left for a node")?;
        let mut set = |path: &str, properties: &[(&str, &[u32])]| {
            let node = tree.find_node_mut(path).with_context(|| format!("no node {path}"))?;
            for (name, cells) in properties {
                let property = DeviceTreeProperty::new(*name, *cells);
                node.add_property(property.map_err(|error| anyhow!("{name}: {error}"))?);
            }
            anyhow::Ok(())
        };
        set(&self.unit, &[("phandle", &[handle]), ("#iommu-cells", &[1])])?;
        set(&self.bridge, &[("iommu-map", &[0, handle, 0, FUNCTIONS])])?;
        Ok(tree.to_dtb())
    }
}

/// The highest phandle at or below a node.
fn highest_handle(node: &DeviceTreeNode) -> u32 {
    use dtoolkit::{Node, Property};
    let own = node.property("phandle").and_then(|property| property.value_as::<u32>().ok()).unwrap_or(0);
    node.children().map(highest_handle).fold(own, u32::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_firmware::{UnitKind, VirtioTransport, devicetree};
    use portcullis_hal::RequesterId;

    const TREE: &[u8] = include_bytes!("../../drivers/firmware/tests/data/virt-gicv2.dtb");

    fn addition(unit: &str, bridge: &str) -> Addition {
        Addition { unit: unit.to_owned(), bridge: bridge.to_owned() }
    }

    #[test]
    fn the_node_becomes_a_unit_for_every_function_and_the_rest_stays() {
        let blob = addition("/virtio_mmio@a003e00", "/pcie@10000000").apply(TREE).unwrap();
        let (before, after) = (devicetree::parse(TREE).unwrap(), devicetree::parse(&blob).unwrap());
        let [unit] = after.units.as_slice() else { panic!("{:?}", after.units) };
        let UnitKind::VirtioIommu(unit) = &unit.kind else { panic!("{unit:?}") };
        let VirtioTransport::Mmio { registers, interrupt } = unit.transport else { panic!("{unit:?}") };
        assert_eq!((registers.start().get(), registers.len()), (0xa00_3e00, 0x200));
        assert_eq!(interrupt.unwrap().intid, 32 + 0x2f);
        for function in [0, 0x20, 0xffff] {
            let id = RequesterId::from_bdf(0, function);
            assert_eq!(after.unit_of(id).unwrap().1.get(), u32::from(function));
        }
        assert_eq!((after.gic, after.cpus), (before.gic, before.cpus));
        assert_eq!(after.host_bridges[0].windows, before.host_bridges[0].windows);
    }

    #[test]
    fn what_is_not_in_the_tree_is_an_error_that_names_it() {
        for (unit, bridge, named) in
            [("/virtio_mmio@0", "/pcie@10000000", "/virtio_mmio@0"), ("/pl011@9000000", "/pcie@1", "/pcie@1")]
        {
            let error = addition(unit, bridge).apply(TREE).unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
        }
        assert!(addition("/", "/").apply(b"no tree").is_err());
    }
}
