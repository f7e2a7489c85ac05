//! Flattened device trees (Devicetree Specification 0.4, with the kernel bindings of the devices named).
//!
//! What is read: `arm,smmu-v3` and virtio-iommu units, `iommu-map` and `msi-map` of PCI host bridges (each
//! with its mask), `iommus` and `msi-parent` of other devices, `pci-host-ecam-generic` bridges with their
//! windows, regions of `/reserved-memory` with `iommu-addresses`, CPUs, PSCI, the GIC with its ITSs and v2m
//! frames, and PL011 consoles. Devices whose `status` is not okay do not exist.

mod cells;
mod interrupts;
mod iommu;
mod pci;
mod platform;
mod reserved;
mod tree;

use crate::{FirmwareError, Topology};
use interrupts::Controllers;
use tree::Tree;

/// Reads the device tree at the start of `bytes`, which may be longer than the tree.
///
/// # Errors
///
/// [`FirmwareError::MalformedDeviceTree`] for a blob that breaks the format's rules, among them names of
/// nodes and properties longer than the 31 characters that the specification allows; otherwise what the
/// nodes deserve.
pub fn parse(bytes: &[u8]) -> Result<Topology, FirmwareError> {
    let tree = Tree::new(bytes)?;
    let mut topology = Topology::default();
    let controllers = Controllers::read(&tree)?;
    let hosts = pci::hosts(&tree)?;
    let units = iommu::read_units(&tree, &controllers, &hosts, &mut topology)?;
    pci::read_hosts(&tree, &hosts, &units, &controllers, &mut topology)?;
    let devices = iommu::read_platform_devices(&tree, &units, &controllers, &mut topology)?;
    reserved::read(&tree, &devices, &hosts, &mut topology)?;
    platform::read_cpus(&tree, &mut topology)?;
    platform::read_consoles(&tree, &mut topology)?;
    topology.gic = controllers.gic;
    Ok(topology)
}
