//! The little that is read of FADT and SPCR.

use super::spec::root::{
    ARM_BOOT_PSCI_COMPLIANT, ARM_BOOT_PSCI_USE_HVC, FADT_ARM_BOOT_ARCH, GAS_SYSTEM_MEMORY,
    SPCR_INTERRUPT_GIC, SPCR_PL011, Spcr, TableHeader,
};
use crate::view::View;
use crate::{Console, ConsoleKind, FirmwareError, Interrupt, PsciConduit, Topology, Trigger, list};
use portcullis_hal::{PhysAddr, PhysRange};
use zerocopy::little_endian::U16;

/// Register window of a PL011.
const PL011_BYTES: u64 = 0x1000;

/// FADT: how PSCI is called. Tables older than ACPI 5.1 end before the field.
pub(super) fn read_fadt(table: &View<'_>, topology: &mut Topology) -> Result<(), FirmwareError> {
    if table.len() < FADT_ARM_BOOT_ARCH + 2 {
        return Ok(());
    }
    let flags = table.read::<U16>(FADT_ARM_BOOT_ARCH)?.get();
    topology.psci = match (flags & ARM_BOOT_PSCI_COMPLIANT != 0, flags & ARM_BOOT_PSCI_USE_HVC != 0) {
        (false, _) => None,
        (true, false) => Some(PsciConduit::Smc),
        (true, true) => Some(PsciConduit::Hvc),
    };
    Ok(())
}

/// SPCR: the console, if it is a PL011 in memory.
pub(super) fn read_spcr(table: &View<'_>, topology: &mut Topology) -> Result<(), FirmwareError> {
    let spcr: &Spcr = table.read(size_of::<TableHeader>())?;
    if spcr.interface_type != SPCR_PL011 || spcr.address_space != GAS_SYSTEM_MEMORY {
        return Ok(());
    }
    let registers = PhysRange::new(PhysAddr::new(spcr.address.get()), PL011_BYTES)
        .map_err(|error| FirmwareError::BadRange { at: table.here(), error })?;
    let wired = spcr.interrupt_type & SPCR_INTERRUPT_GIC != 0;
    let interrupt =
        wired.then(|| Interrupt { intid: spcr.global_system_interrupt.get(), trigger: Trigger::LevelHigh });
    list::push(&mut topology.consoles, Console { kind: ConsoleKind::Pl011, registers, interrupt })
}
