//! What differs between the architectures in how the machine is put together.

use crate::report::words;
use alloc::string::String;
use portcullis_arch::{interrupts, smp};
use portcullis_firmware::{CpuId, Topology};
use portcullis_hal::{PhysAddr, RequesterId};

use crate::memory::KernelHal;

/// Starts the interrupt controller that firmware describes.
#[cfg(target_arch = "x86_64")]
pub(super) fn start_interrupts(topology: &Topology) -> Result<(), String> {
    let local_apic = topology.local_apic.ok_or("firmware describes no local APIC")?;
    interrupts::init(&KernelHal, &interrupts::Config { local_apic }).map_err(words)
}

/// Starts the interrupt controller that firmware describes.
#[cfg(target_arch = "aarch64")]
pub(super) fn start_interrupts(topology: &Topology) -> Result<(), String> {
    let gic = topology.gic.as_ref().ok_or("firmware describes no GIC")?;
    let config = interrupts::Config {
        distributor: gic.distributor,
        redistributors: &gic.redistributors,
        its: gic.translation_services.first().map(|its| its.registers),
    };
    interrupts::init(&KernelHal, &config).map_err(words)
}

/// A CPU's id, as the architecture's code wants it.
pub(super) fn cpu_id(id: CpuId) -> smp::CpuId {
    match id {
        CpuId::Apic(id) => smp::CpuId(u64::from(id)),
        CpuId::Mpidr(id) => smp::CpuId(id),
    }
}

/// The MSI doorbell of a requester, where MSI writes are translated like all others.
pub(super) fn doorbell(topology: &Topology, id: RequesterId) -> Option<PhysAddr> {
    /// GITS_TRANSLATER, in the ITS's second page.
    const TRANSLATER: u64 = 0x1_0040;
    let target = topology.msi_device_id(id)?;
    match target.controller {
        portcullis_firmware::MsiController::Its(its) => {
            topology.gic.as_ref()?.its(its)?.registers.start().checked_add(TRANSLATER)
        }
        portcullis_firmware::MsiController::V2m(_) => None,
    }
}
