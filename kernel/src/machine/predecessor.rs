//! A predecessor that left the units on and a device open, as firmware or an earlier kernel may.

#![expect(unsafe_code, reason = "gives a device all memory")]

use super::deny::Canary;
use super::{Bus, KernelIommu};
use crate::devices::edu::{Edu, ID};
use crate::job::Outcome;
use crate::memory::KernelHal;
use crate::report::words;
use crate::units;
use alloc::string::ToString;
use alloc::vec::Vec;
use portcullis_firmware::Topology;
use portcullis_hal::IdentityAccess;
use portcullis_iommu::{DeviceDescription, DeviceId, DomainSpec, GroupId, Iommu};

/// What the machine is when the kernel starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// As reset, or the machine's own firmware, leaves it.
    AsFound,
    /// The units translate, and an `edu` has all memory.
    LeftOpen,
}

/// Its registry is never dropped, and so are its units, domains and tables: it is gone, but the hardware uses them.
static REGISTRY: KernelIommu = Iommu::new(KernelHal);

/// Plays the predecessor: brings the units up, passes an `edu`'s DMA through, sees that it reaches the canary, and
/// leaves everything on.
pub(super) fn leave_open(topology: &Topology, bus: &Bus, edus: &[Edu], canary: &Canary) -> Outcome {
    let units = units::prepare(topology, bus)?.enable_without_interrupts(&REGISTRY, bus)?;
    let index = bus.functions.iter().position(|function| (function.vendor, function.device) == ID);
    let index = index.ok_or("no edu device")?;
    let function = bus.functions.get(index).ok_or("no edu device")?;
    let (unit, endpoint) = topology.unit_of(function.id).ok_or("the edu is behind no unit")?;
    let description = DeviceDescription {
        id: DeviceId::Pci(function.id),
        unit: units.id(unit).ok_or("the edu's unit is not up")?,
        endpoints: alloc::vec![endpoint],
        group: GroupId(0),
        reserved: Vec::new(),
    };
    let device = REGISTRY.add_device(description).map_err(words)?;
    // SAFETY: the device writes to the canary page only.
    let spec = DomainSpec::Identity(unsafe { IdentityAccess::new() });
    let identity = REGISTRY.new_domain(&device, &spec).map_err(words)?;
    REGISTRY.attach(&device, &identity).map_err(words)?;
    portcullis_pci::enable_bus_master(&bus.config, &bus.functions, index);
    let reached = canary.is_reached(edus.first().ok_or("no edu device")?);
    portcullis_pci::disable_bus_master(&bus.config, function.id);
    reached?;
    Ok("the units translate, and a device reaches all memory".to_string())
}
