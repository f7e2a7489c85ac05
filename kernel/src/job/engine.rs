//! DMA engines: both directions, at addresses that are not physical, with completion by interrupt.

use super::{Outcome, drain_faults, holds, pattern};
use crate::devices::edu::{BUFFER_SIZE, Completion, Direction};
use crate::devices::test_device::{Outcome as Written, PATTERN};
use crate::dma::{DmaSpace, count_bytes};
use crate::machine::{EduRig, Machine, TestRig};
use crate::report::Report;
use crate::report::words;
use alloc::format;
use alloc::string::ToString;
use portcullis_hal::{Attributes, FrameOrder};

pub(super) fn run(machine: &Machine, report: &mut Report) {
    report.section("DMA engines");
    drain_faults(machine.iommu);
    for (index, rig) in machine.edus.iter().enumerate() {
        report.check(&format!("engine.edu{index}"), both_ways(machine, rig));
    }
    if machine.test_devices.is_empty() {
        report.skip("engine.testdev", format_args!("this QEMU has no iommu-testdev"));
    }
    for (index, rig) in machine.test_devices.iter().enumerate() {
        report.check(&format!("engine.testdev{index}"), write_at_once(machine, rig));
    }
    let fault = machine.iommu.next_fault();
    report.check("engine.no-fault", fault.map_or(Ok("none was reported"), |fault| Err(fault.to_string())));
}

/// Memory to device to other memory, both ends mapped, the end of each transfer told by MSI.
fn both_ways(machine: &Machine, rig: &EduRig) -> Outcome {
    let space = DmaSpace::attached(machine.iommu, &rig.device, None).map_err(words)?;
    machine.enable_bus_master(rig.function);
    let source = space.buffer(FrameOrder::SINGLE, Attributes::READ).map_err(words)?;
    let target = space.buffer(FrameOrder::SINGLE, Attributes::READ_WRITE).map_err(words)?;
    let data: [u8; BUFFER_SIZE as usize] = pattern(0x5a);
    source.memory().write(0, &data);
    for buffer in [&source, &target] {
        if buffer.range().start().get() == buffer.memory().phys().get() {
            return Err("mapped at its physical address".to_string());
        }
    }
    let completion = rig.completion;
    let moved = [(Direction::FromMemory, &source), (Direction::ToMemory, &target)]
        .into_iter()
        .try_for_each(|(way, buffer)| rig.edu.transfer(way, buffer.range().start(), BUFFER_SIZE, completion));
    moved.map_err(words)?;
    if !holds(target.memory(), &data) {
        return Err("the data did not arrive".to_string());
    }
    count_bytes(2 * BUFFER_SIZE);
    let (from, to) = (source.range(), target.range());
    space.unmap(source).map_err(words)?;
    space.unmap(target).map_err(words)?;
    machine.iommu.detach(&rig.device).map_err(words)?;
    let how = match completion {
        Completion::Interrupt => "told by MSI",
        Completion::Poll => return Err("the device has no MSI here".to_string()),
    };
    Ok(format!("{from} to {to}, {how}"))
}

fn write_at_once(machine: &Machine, rig: &TestRig) -> Outcome {
    let space = DmaSpace::attached(machine.iommu, &rig.device, None).map_err(words)?;
    machine.enable_bus_master(rig.function);
    let target = space.buffer(FrameOrder::SINGLE, Attributes::READ_WRITE).map_err(words)?;
    let (iova, phys) = (target.range().start(), target.memory().phys());
    match rig.test.write(iova, 64, phys) {
        Written::Arrived => {}
        other => return Err(other.to_string()),
    }
    let mut word = [0; 4];
    target.memory().read(60, &mut word);
    if u32::from_le_bytes(word) != PATTERN {
        return Err("the pattern is not in memory".to_string());
    }
    space.unmap(target).map_err(words)?;
    machine.iommu.detach(&rig.device).map_err(words)?;
    Ok(format!("{iova} is {phys}"))
}
