//! Every kind of domain that the unit has: stage 1, stage 2, pass-through, blocked, and tables that somebody else owns.

#![expect(unsafe_code, reason = "giving a device foreign tables, and memory at its physical address")]

use super::rogue::fits;
use super::{Outcome, await_fault, drain_faults, holds, pattern};
use crate::devices::test_device::Outcome as Written;
use crate::dma::DmaSpace;
use crate::machine::{Machine, TestRig};
use crate::memory::KernelHal;
use crate::report::Report;
use crate::report::words;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use portcullis_hal::{
    Attributes, FrameOrder, Frames, Gather, IdentityAccess, Iova, IovaRange, Mapping, SharedTable,
};
use portcullis_iommu::{Backend, DomainKind, DomainSpec, FaultReason, Stage, Stages, Transition};

pub(super) fn run(machine: &Machine, report: &mut Report) {
    report.section("Kinds of domains");
    let Some(rig) = machine.test_devices.first() else {
        report.fail("kind", format_args!("no iommu-testdev"));
        return;
    };
    machine.enable_bus_master(rig.function);
    let Some(unit) = machine.iommu.unit(rig.device.unit()) else {
        return;
    };
    let stages = unit.info().stages;
    for (name, flag, stage) in
        [("kind.stage1", Stages::STAGE_1, Stage::Stage1), ("kind.stage2", Stages::STAGE_2, Stage::Stage2)]
    {
        if stages.contains(flag) {
            report.check(name, paging(machine, rig, Some(stage)));
        } else {
            report.skip(name, format_args!("the unit has no {stage}"));
        }
    }
    if stages.contains(Stages::MANAGED) {
        report.check("kind.managed", paging(machine, rig, None));
    }
    if unit.info().identity {
        report.check("kind.identity", identity(machine, rig));
    } else {
        report.skip("kind.identity", format_args!("the unit has no pass-through"));
    }
    report.check("kind.blocked", blocked(machine, rig));
    match shared(machine, rig) {
        Ok(Some(detail)) => report.pass("kind.shared", format_args!("{detail}")),
        Ok(None) => report.skip("kind.shared", format_args!("the unit walks no tables in memory")),
        Err(reason) => report.fail("kind.shared", format_args!("{reason}")),
    }
    report.check("kind.replace", replace(machine, rig));
    report.check("kind.detach", machine.iommu.detach(&rig.device).map(|()| rig.device.id()));
}

fn expect(found: Written, wanted: Written, when: &str) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{when}: {found}")) }
}

/// Mapped: arrives. Beside it: refused. Unmapped: refused.
fn paging(machine: &Machine, rig: &TestRig, stage: Option<Stage>) -> Outcome {
    let space = DmaSpace::attached(machine.iommu, &rig.device, stage).map_err(words)?;
    let info = space.domain().info();
    if info.kind != DomainKind::Paging || (stage.is_some() && info.stage != stage) {
        return Err(format!("asked for {stage:?}, got {info:?}"));
    }
    let target = space.buffer(FrameOrder::SINGLE, Attributes::READ_WRITE).map_err(words)?;
    let (iova, phys) = (target.range().start(), target.memory().phys());
    expect(rig.test.write(iova, 64, phys), Written::Arrived, "mapped")?;
    drain_faults(machine.iommu);
    let beside = Iova::new(iova.get() - 4096);
    expect(rig.test.write(beside, 64, phys), Written::Refused, "beside the mapping")?;
    let fault = await_fault(machine.iommu, &rig.device)?;
    if fault.record.stage.is_some() && fault.record.stage != info.stage {
        return Err(format!("the fault names another stage: {fault}"));
    }
    space.unmap(target).map_err(words)?;
    drain_faults(machine.iommu);
    expect(rig.test.write(iova, 64, phys), Written::Refused, "unmapped")?;
    let fault = await_fault(machine.iommu, &rig.device)?;
    if !fits(fault.record.reason, FaultReason::NotMapped) {
        return Err(format!("the fault names another reason: {fault}"));
    }
    let mut tags = String::new();
    space.domain().describe(&mut tags).map_err(words)?;
    let tags: Vec<&str> = tags.lines().collect();
    Ok(format!("{iova} arrived at {phys} and was refused after unmap; {}", tags.join(", ")))
}

/// Physical addresses go through, and nothing else changes that.
fn identity(machine: &Machine, rig: &TestRig) -> Outcome {
    // SAFETY: the device writes where the test tells it, into a frame of the test's, and is detached at the end.
    let spec = DomainSpec::Identity(unsafe { IdentityAccess::new() });
    let domain = machine.iommu.new_domain(&rig.device, &spec).map_err(words)?;
    machine.iommu.attach(&rig.device, &domain).map_err(words)?;
    let frames = Frames::zeroed(&KernelHal, FrameOrder::SINGLE).map_err(words)?;
    let phys = frames.phys();
    expect(rig.test.write(Iova::new(phys.get()), 64, phys), Written::Arrived, "pass-through")?;
    // Before the frame goes back, the device must not reach it any more.
    machine.iommu.detach(&rig.device).map_err(words)?;
    expect(rig.test.write(Iova::new(phys.get()), 64, phys), Written::Refused, "detached")?;
    Ok(format!("{phys} is {phys}, until detached"))
}

fn blocked(machine: &Machine, rig: &TestRig) -> Outcome {
    let space = DmaSpace::attached(machine.iommu, &rig.device, None).map_err(words)?;
    let target = space.buffer(FrameOrder::SINGLE, Attributes::READ_WRITE).map_err(words)?;
    let (iova, phys) = (target.range().start(), target.memory().phys());
    expect(rig.test.write(iova, 64, phys), Written::Arrived, "mapped")?;
    let canary: [u8; 64] = pattern(0x77);
    target.memory().write(0, &canary);
    let domain = machine.iommu.new_domain(&rig.device, &DomainSpec::Blocked).map_err(words)?;
    machine.iommu.attach(&rig.device, &domain).map_err(words)?;
    expect(rig.test.write(iova, 64, phys), Written::Refused, "blocked")?;
    if !holds(target.memory(), &canary) {
        return Err("memory changed".to_string());
    }
    space.attach(machine.iommu, &rig.device).map_err(words)?;
    expect(rig.test.write(iova, 64, phys), Written::Arrived, "attached again")?;
    space.unmap(target).map_err(words)?;
    Ok("refused while blocked, arrived before and after".to_string())
}

/// A table made by somebody else than the driver, as a hypervisor's stage 2 for a VM: given by its root, changed by
/// its owner, invalidated through the domain.
fn shared(machine: &Machine, rig: &TestRig) -> Result<Option<String>, String> {
    let unit = machine.iommu.unit(rig.device.unit()).ok_or("no unit")?;
    let Some(vm) = crate::machine::vm_table(unit.info()) else {
        return Ok(None);
    };
    let vm = vm.map_err(words)?;
    let frames = Frames::zeroed(&KernelHal, FrameOrder::SINGLE).map_err(words)?;
    let guest_physical = Iova::new(0x4000_0000);
    let mapping =
        Mapping { iova: guest_physical, memory: frames.range(), attributes: Attributes::READ_WRITE };
    vm.map(&[mapping]).map_err(words)?;

    // SAFETY: the table and the frame it maps live until the end of this function, which detaches the device first,
    // and what is unmapped is invalidated through the domain before the frame is dropped.
    let table = unsafe { SharedTable::new(vm.root()) };
    let domain = machine.iommu.new_domain(&rig.device, &DomainSpec::Shared(table)).map_err(words)?;
    machine.iommu.attach(&rig.device, &domain).map_err(words)?;
    let phys = frames.phys();
    let outcome = (|| {
        expect(rig.test.write(guest_physical, 64, phys), Written::Arrived, "guest-physical")?;
        expect(rig.test.write(Iova::new(phys.get()), 64, phys), Written::Refused, "host-physical")?;
        let mut gather = Gather::new();
        let range = IovaRange::new(guest_physical, 4096).map_err(words)?;
        vm.unmap(range, &mut gather).map_err(words)?;
        domain.sync(&mut gather).map(drop).map_err(words)?;
        expect(rig.test.write(guest_physical, 64, phys), Written::Refused, "after the owner's unmap")
    })();
    machine.iommu.detach(&rig.device).map_err(words)?;
    outcome?;
    Ok(Some(format!("{} given by its root {}", vm.root().format, vm.root().root)))
}

/// From one paging domain to another in one step.
fn replace(machine: &Machine, rig: &TestRig) -> Outcome {
    let first = DmaSpace::attached(machine.iommu, &rig.device, None).map_err(words)?;
    let second = DmaSpace::new(machine.iommu, &rig.device, None).map_err(words)?;
    let iova = Iova::new(0x1234_5000);
    let frames = || Frames::zeroed(&KernelHal, FrameOrder::SINGLE).map_err(words);
    let one = first.map_at(iova, frames()?, Attributes::READ_WRITE).map_err(words)?;
    let other = second.map_at(iova, frames()?, Attributes::READ_WRITE).map_err(words)?;
    expect(rig.test.write(iova, 64, one.memory().phys()), Written::Arrived, "in the first domain")?;
    let transition = second.attach(machine.iommu, &rig.device).map_err(words)?;
    expect(rig.test.write(iova, 64, other.memory().phys()), Written::Arrived, "in the second domain")?;
    machine.iommu.detach(&rig.device).map_err(words)?;
    for buffer in [one, other] {
        buffer.unmap().map_err(|quarantined| words(quarantined.reason))?;
    }
    let info = machine.iommu.unit(rig.device.unit()).map(|unit| unit.info().clone()).ok_or("no unit")?;
    let hitless = match info.backend {
        Backend::SmmuV3 | Backend::VtdScalable => true,
        Backend::VirtioIommu => false,
    };
    if hitless && transition != Transition::Hitless {
        return Err("this unit could have done it without a moment between them".to_string());
    }
    let how = match transition {
        Transition::Hitless => "without a moment between them",
        Transition::Disruptive => "with a moment of no translation between them",
    };
    Ok(format!("one domain for another, {how}"))
}
