//! Deny by default: a device that nobody attached reaches nothing, from the first moment.

use super::{Bus, Machine, Start};
use crate::devices::edu::{BUFFER_SIZE, Completion, Direction, Edu, ID};
use crate::job::{Outcome, await_fault, drain_faults, holds, pattern};
use crate::memory::KernelHal;
use crate::report::words;
use crate::units::Prepared;
use alloc::format;
use alloc::string::{String, ToString};
use portcullis_hal::{FrameOrder, Frames, Iova};
use portcullis_iommu::FaultReason;

const PAGE: usize = BUFFER_SIZE as usize;

/// A page that no device may write.
pub(super) struct Canary {
    frames: Frames<KernelHal>,
    content: [u8; PAGE],
}

impl Canary {
    pub(super) fn new() -> Result<Self, String> {
        let frames = Frames::zeroed(&KernelHal, FrameOrder::SINGLE).map_err(words)?;
        let content = pattern(0xc5);
        frames.write(0, &content);
        Ok(Self { frames, content })
    }

    /// Lets an `edu` try to write the page at its physical address.
    fn attack(&self, edu: &Edu) -> Result<(), String> {
        let target = Iova::new(self.frames.phys().get());
        edu.transfer(Direction::ToMemory, target, BUFFER_SIZE, Completion::Poll).map_err(words)?;
        if holds(&self.frames, &self.content) {
            Ok(())
        } else {
            Err("the canary page was written".to_string())
        }
    }
}

impl Canary {
    /// Whether an `edu` can write the page. Restores it.
    pub(super) fn is_reached(&self, edu: &Edu) -> Result<(), String> {
        let outcome = self.attack(edu);
        self.frames.write(0, &self.content);
        if outcome.is_err() { Ok(()) } else { Err("the device did not reach the page".to_string()) }
    }
}

/// Between the units' first register write and the start of translation.
pub(super) fn while_closed(
    bus: &Bus,
    edus: &[Edu],
    prepared: &Prepared,
    start: Start,
    canary: &Canary,
) -> Outcome {
    let edu = edus.first().ok_or("no edu device")?;
    let index = bus.functions.iter().position(|function| (function.vendor, function.device) == ID);
    let index = index.ok_or("no edu device")?;
    // A unit that aborts by itself is tried with a device that masters the bus. VT-d denies nothing before it
    // translates; there it is the bus-master bit that does.
    let abort = prepared.abort(start);
    if abort {
        portcullis_pci::enable_bus_master(&bus.config, &bus.functions, index);
    }
    let outcome = canary.attack(edu);
    for function in &bus.functions {
        if function.buses().is_none() && (function.vendor, function.device) == ID {
            portcullis_pci::disable_bus_master(&bus.config, function.id);
        }
    }
    outcome?;
    let how = if abort { "the unit aborts everything" } else { "no device may master the bus yet" };
    Ok(format!("{how}; the canary is unchanged"))
}

/// The units translate, the device masters the bus and is attached nowhere.
pub(super) fn unattached(machine: &Machine, canary: &Canary) -> Outcome {
    let rig = machine.edus.first().ok_or("no edu device")?;
    machine.enable_bus_master(rig.function);
    drain_faults(machine.iommu);
    canary.attack(rig.edu)?;
    let fault = await_fault(machine.iommu, &rig.device)?;
    if fault.record.reason != FaultReason::Unattached {
        return Err(format!("the fault names another reason: {fault}"));
    }
    Ok(fault.to_string())
}
