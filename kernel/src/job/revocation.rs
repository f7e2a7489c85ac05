//! Revocation: what was unmapped is gone at once, and what is mapped anew is used at once; with every leaf size.

use super::rogue::expect;
use super::{Outcome, await_fault, drain_faults, holds, pattern};
use crate::devices::edu::{BUFFER_SIZE, Completion, Direction};
use crate::dma::DmaSpace;
use crate::machine::{EduRig, Machine};
use crate::memory::KernelHal;
use crate::report::Report;
use crate::report::words;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use portcullis_hal::{Access, Attributes, FrameOrder, Frames, Gather, Iova};
use portcullis_iommu::FaultReason;

const PAGE: usize = BUFFER_SIZE as usize;

pub(super) fn run(machine: &Machine, report: &mut Report) {
    report.section("Revocation");
    let Some(rig) = machine.edus.first() else {
        report.fail("revoke", format_args!("no edu device"));
        return;
    };
    report.check("revoke.page", page(machine, rig));
    report.check("revoke.gather", gather(machine, rig));
    for (name, order) in [("revoke.2m", 9), ("revoke.1g", 18)] {
        match large(machine, rig, order) {
            Ok(Some(detail)) => report.pass(name, format_args!("{detail}")),
            Ok(None) => report.skip(name, format_args!("no such leaf on this unit")),
            Err(reason) => report.fail(name, format_args!("{reason}")),
        }
    }
    report.check("revoke.detach", machine.iommu.detach(&rig.device).map(|()| rig.device.id()));
}

fn write(rig: &EduRig, iova: Iova) -> Result<(), String> {
    rig.edu.transfer(Direction::ToMemory, iova, BUFFER_SIZE, Completion::Poll).map_err(words)
}

/// Loads the device's own buffer through a domain of its own, so that what it writes can be recognised.
fn load(machine: &Machine, rig: &EduRig, data: &[u8; PAGE]) -> Result<(), String> {
    let space = DmaSpace::attached(machine.iommu, &rig.device, None).map_err(words)?;
    let source = space.buffer(FrameOrder::SINGLE, Attributes::READ).map_err(words)?;
    source.memory().write(0, data);
    drain_faults(machine.iommu);
    rig.edu
        .transfer(Direction::FromMemory, source.range().start(), BUFFER_SIZE, Completion::Poll)
        .map_err(words)?;
    space.unmap(source).map_err(words)?;
    Ok(())
}

/// Write, unmap, write again (refused), map another page there, write (arrives in the new page only).
fn page(machine: &Machine, rig: &EduRig) -> Outcome {
    let data: [u8; PAGE] = pattern(0x44);
    let canary: [u8; PAGE] = pattern(0x99);
    load(machine, rig, &data)?;
    let space = DmaSpace::attached(machine.iommu, &rig.device, None).map_err(words)?;

    let first = space.buffer(FrameOrder::SINGLE, Attributes::READ_WRITE).map_err(words)?;
    let iova = first.range().start();
    write(rig, iova)?;
    if !holds(first.memory(), &data) {
        return Err("the first write did not arrive".to_string());
    }
    let old = space.unmap(first).map_err(words)?;
    old.write(0, &canary);
    drain_faults(machine.iommu);
    write(rig, iova)?;
    let fault = await_fault(machine.iommu, &rig.device)?;
    let line = expect(&fault, rig, iova, Access::WRITE, FaultReason::NotMapped)?;
    if !holds(&old, &canary) {
        return Err("the page was written after its unmap".to_string());
    }
    let fresh = Frames::zeroed(&KernelHal, FrameOrder::SINGLE).map_err(words)?;
    let second = space.map_at(iova, fresh, Attributes::READ_WRITE).map_err(words)?;
    write(rig, iova)?;
    if !holds(second.memory(), &data) || !holds(&old, &canary) {
        return Err("the write after the remap landed elsewhere".to_string());
    }
    second.unmap().map_err(|quarantined| words(quarantined.reason))?;
    Ok(format!("{line}; then {iova} led to another page"))
}

/// Many pages under one sync: the unit is asked once, and then all of them are gone.
fn gather(machine: &Machine, rig: &EduRig) -> Outcome {
    const PAGES: usize = 8;
    let space = DmaSpace::attached(machine.iommu, &rig.device, None).map_err(words)?;
    let unit = machine.iommu.unit(rig.device.unit()).ok_or("no unit")?;
    let mut buffers = Vec::new();
    for _ in 0..PAGES {
        let buffer = space.buffer(FrameOrder::SINGLE, Attributes::READ_WRITE).map_err(words)?;
        write(rig, buffer.range().start())?;
        buffers.push(buffer);
    }
    let addresses: Vec<Iova> = buffers.iter().map(|buffer| buffer.range().start()).collect();
    let before = unit.stats();
    let mut gather = Gather::new();
    let mut unsynced = Vec::new();
    for buffer in buffers {
        unsynced.push(buffer.unmap_into(&mut gather).map_err(|quarantined| words(quarantined.reason))?);
    }
    let proof = space.domain().sync(&mut gather).map_err(words)?;
    let syncs = unit.stats().syncs - before.syncs;
    if syncs != 1 {
        return Err(format!("{syncs} syncs for one gather"));
    }
    for iova in [addresses.first(), addresses.last()].into_iter().flatten() {
        drain_faults(machine.iommu);
        write(rig, *iova)?;
        let fault = await_fault(machine.iommu, &rig.device)?;
        expect(&fault, rig, *iova, Access::WRITE, FaultReason::NotMapped)?;
    }
    for memory in unsynced {
        memory.reclaim(&proof).map_err(|_| "the proof does not fit")?;
    }
    Ok(format!("{PAGES} pages gone with one sync"))
}

/// The same with one large leaf; `None` where the unit has none of this size.
fn large(machine: &Machine, rig: &EduRig, order: u8) -> Result<Option<String>, String> {
    let data: [u8; PAGE] = pattern(0x55 ^ order);
    load(machine, rig, &data)?;
    let space = DmaSpace::attached(machine.iommu, &rig.device, None).map_err(words)?;
    let order = FrameOrder::new(order).ok_or("order out of range")?;
    if space.domain().page_sizes() & order.bytes() == 0 {
        return Ok(None);
    }
    let buffer = space.buffer(order, Attributes::READ_WRITE).map_err(words)?;
    let range = buffer.range();
    // The last page of the leaf, so that all of it must be right.
    let offset = order.bytes() - BUFFER_SIZE;
    let iova = Iova::new(range.start().get() + offset);
    match space.domain().iova_to_phys(iova) {
        Some(found)
            if found.size == order.bytes() && found.phys.get() == buffer.memory().phys().get() + offset => {}
        Some(found) => return Err(format!("mapped with an entry of {:#x} bytes", found.size)),
        None => return Err("not mapped".to_string()),
    }
    write(rig, iova)?;
    let mut found = [0; PAGE];
    buffer.memory().read(offset as usize, &mut found);
    if found != data {
        return Err("the write did not arrive".to_string());
    }
    let frames = space.unmap(buffer).map_err(words)?;
    let canary: [u8; PAGE] = pattern(0x66);
    frames.write(offset as usize, &canary);
    drain_faults(machine.iommu);
    write(rig, iova)?;
    let fault = await_fault(machine.iommu, &rig.device)?;
    expect(&fault, rig, iova, Access::WRITE, FaultReason::NotMapped)?;
    frames.read(offset as usize, &mut found);
    if found != canary {
        return Err("the page was written after its unmap".to_string());
    }
    Ok(Some(format!("one entry of {:#x} bytes at {}", order.bytes(), range.start())))
}
