//! Reading the firmware's tables.

#![expect(unsafe_code, reason = "firmware tables are raw memory")]

use crate::report::words;
use alloc::format;
use alloc::string::{String, ToString};
use portcullis_arch::{BootInfo, Firmware, paging};
use portcullis_firmware::{
    Topology, UnitDescription, UnitKind, VirtioTransport, VtdCoverage, WalkCoherency, acpi, devicetree,
};
use portcullis_hal::PhysRange;

/// The bytes of a table.
fn bytes(range: PhysRange) -> Option<&'static [u8]> {
    let start = paging::map_firmware(range).ok()?;
    // SAFETY: just mapped for this length; firmware's tables are not written any more.
    Some(unsafe { core::slice::from_raw_parts(start.as_ptr(), range.len() as usize) })
}

/// The machine as its firmware describes it.
pub(super) fn read(boot: &BootInfo) -> Result<Topology, String> {
    match boot.firmware {
        Firmware::Acpi(Some(rsdp)) => acpi::from_rsdp(&bytes, rsdp).map_err(words),
        Firmware::Acpi(None) => Err("the loader gave no ACPI root pointer".to_string()),
        Firmware::DeviceTree(range) => {
            let blob = bytes(range).ok_or("the device tree is not mapped")?;
            devicetree::parse(blob).map_err(words)
        }
    }
}

/// A unit in one line.
pub(super) fn describe_unit(unit: &UnitDescription) -> String {
    match &unit.kind {
        UnitKind::Smmuv3(smmu) => {
            format!(
                "SMMUv3 at {}, {}, {}",
                smmu.registers,
                match smmu.walks {
                    WalkCoherency::Coherent => "coherent walks",
                    WalkCoherency::NonCoherent => "walks that are not coherent",
                    WalkCoherency::AsReported => "coherency as it reports",
                },
                match smmu.interrupts.event {
                    Some(interrupt) => format!("events by interrupt {}", interrupt.intid),
                    None => "events without a wired interrupt".to_string(),
                }
            )
        }
        UnitKind::Vtd(vtd) => {
            let rest = if vtd.coverage == VtdCoverage::IncludeAll { " and all others" } else { "" };
            format!("VT-d at {}, segment {}, {} scopes{rest}", vtd.registers, vtd.segment, vtd.scopes.len())
        }
        UnitKind::VirtioIommu(virtio) => match virtio.transport {
            VirtioTransport::Pci(id) => format!("virtio-iommu, PCI function {id}"),
            VirtioTransport::Mmio { registers, .. } => format!("virtio-iommu at {registers}"),
        },
    }
}
