//! Rogue DMA: blocked, memory unchanged, and reported by interrupt with what the hardware knows.

use super::{Outcome, await_fault, drain_faults, holds, pattern};
use crate::devices::edu::{BUFFER_SIZE, Completion, Direction};
use crate::dma::DmaSpace;
use crate::machine::{EduRig, Machine};
use crate::report::Report;
use crate::report::words;
use alloc::format;
use alloc::string::ToString;
use portcullis_hal::{Access, Attributes, FrameOrder, Iova};
use portcullis_iommu::{Fault, FaultReason};

const PAGE: usize = BUFFER_SIZE as usize;

pub(super) fn run(machine: &Machine, report: &mut Report) {
    report.section("Rogue DMA");
    let [rig, other, ..] = machine.edus.as_slice() else {
        report.fail("rogue", format_args!("two edu devices are needed"));
        return;
    };
    report.check("rogue.outside", outside(machine, rig));
    report.check("rogue.read-only", read_only(machine, rig));
    report.check("rogue.neighbour", neighbour(machine, rig, other));
    for rig in &machine.edus {
        report.check("rogue.detach", machine.iommu.detach(&rig.device).map(|()| rig.device.id()));
    }
}

/// Does the fault say what happened?
pub(super) fn expect(
    fault: &Fault,
    rig: &EduRig,
    address: Iova,
    access: Access,
    reason: FaultReason,
) -> Outcome {
    let record = &fault.record;
    if fault.device != Some(rig.device.id()) {
        return Err(format!("the fault names another device: {fault}"));
    }
    // Some hardware reports the page, some the byte.
    if record.address.map(|found| found.align_down(4096)) != Some(address.align_down(4096)) {
        return Err(format!("the fault names another address: {fault}"));
    }
    if record.access.is_some_and(|found| !found.contains(access)) {
        return Err(format!("the fault names another access: {fault}"));
    }
    if !fits(record.reason, reason) {
        return Err(format!("the fault names another reason: {fault}"));
    }
    Ok(fault.to_string())
}

/// Whether the hardware gave this reason, or one that leaves it open.
pub(super) fn fits(found: FaultReason, reason: FaultReason) -> bool {
    let open = matches!(reason, FaultReason::NotMapped | FaultReason::Permission);
    found == reason || (open && found == FaultReason::NotAllowed)
}

/// Reads and writes where nothing is mapped, next to a buffer that is.
fn outside(machine: &Machine, rig: &EduRig) -> Outcome {
    let space = DmaSpace::attached(machine.iommu, &rig.device, None).map_err(words)?;
    let buffer = space.buffer(FrameOrder::SINGLE, Attributes::READ_WRITE).map_err(words)?;
    let canary: [u8; PAGE] = pattern(0x11);
    buffer.memory().write(0, &canary);
    let beyond = buffer.range().start().get() - BUFFER_SIZE;
    let wrong = Iova::new(beyond);
    let mut line = Err("nothing tried".to_string());
    for (way, access) in [(Direction::ToMemory, Access::WRITE), (Direction::FromMemory, Access::READ)] {
        drain_faults(machine.iommu);
        rig.edu.transfer(way, wrong, BUFFER_SIZE, Completion::Poll).map_err(words)?;
        let fault = await_fault(machine.iommu, &rig.device)?;
        line = Ok(expect(&fault, rig, wrong, access, FaultReason::NotMapped)?);
    }
    // The physical address of the buffer is not an address of the device's either.
    drain_faults(machine.iommu);
    let physical = Iova::new(buffer.memory().phys().get());
    rig.edu.transfer(Direction::ToMemory, physical, 64, Completion::Poll).map_err(words)?;
    let fault = await_fault(machine.iommu, &rig.device)?;
    expect(&fault, rig, physical, Access::WRITE, FaultReason::NotMapped)?;
    if !holds(buffer.memory(), &canary) {
        return Err("memory changed".to_string());
    }
    space.unmap(buffer).map_err(words)?;
    line
}

/// Writes to a page that it may only read. The write comes first: once the read's translation is cached, some units
/// refuse a write without a record.
fn read_only(machine: &Machine, rig: &EduRig) -> Outcome {
    let space = DmaSpace::attached(machine.iommu, &rig.device, None).map_err(words)?;
    let buffer = space.buffer(FrameOrder::SINGLE, Attributes::READ).map_err(words)?;
    let canary: [u8; PAGE] = pattern(0x22);
    buffer.memory().write(0, &canary);
    let iova = buffer.range().start();
    let write = || rig.edu.transfer(Direction::ToMemory, iova, 64, Completion::Poll).map_err(words);
    drain_faults(machine.iommu);
    write()?;
    let fault = await_fault(machine.iommu, &rig.device)?;
    let line = expect(&fault, rig, iova, Access::WRITE, FaultReason::Permission)?;
    rig.edu.transfer(Direction::FromMemory, iova, BUFFER_SIZE, Completion::Poll).map_err(words)?;
    // Hardware may split the write and report each piece; what must not be among them is a read.
    while let Some(fault) = machine.iommu.next_fault() {
        if fault.record.access.is_some_and(|access| !access.contains(Access::WRITE)) {
            return Err(format!("the read was refused: {fault}"));
        }
    }
    write()?;
    if !holds(buffer.memory(), &canary) {
        return Err("memory changed".to_string());
    }
    space.unmap(buffer).map_err(words)?;
    Ok(line)
}

/// Uses another device's addresses.
fn neighbour(machine: &Machine, rig: &EduRig, owner: &EduRig) -> Outcome {
    let mine = DmaSpace::attached(machine.iommu, &rig.device, None).map_err(words)?;
    let theirs = DmaSpace::attached(machine.iommu, &owner.device, None).map_err(words)?;
    machine.enable_bus_master(owner.function);
    let buffer = theirs.buffer(FrameOrder::SINGLE, Attributes::READ_WRITE).map_err(words)?;
    let canary: [u8; PAGE] = pattern(0x33);
    buffer.memory().write(0, &canary);
    let iova = buffer.range().start();
    // The owner itself gets through, so that the address is a good one and cached by now.
    owner.edu.transfer(Direction::FromMemory, iova, BUFFER_SIZE, Completion::Poll).map_err(words)?;
    drain_faults(machine.iommu);
    rig.edu.transfer(Direction::ToMemory, iova, BUFFER_SIZE, Completion::Poll).map_err(words)?;
    let fault = await_fault(machine.iommu, &rig.device)?;
    let line = expect(&fault, rig, iova, Access::WRITE, FaultReason::NotMapped)?;
    if !holds(buffer.memory(), &canary) {
        return Err("memory changed".to_string());
    }
    theirs.unmap(buffer).map_err(words)?;
    drop(mine);
    Ok(line)
}
