//! Two CPUs map, unmap and attach while DMA runs.

use super::{Outcome, holds, pattern};
use crate::devices::edu::{Completion, Direction};
use crate::devices::test_device::Outcome as Written;
use crate::dma::DmaSpace;
use crate::machine::{Cpus, Machine, TestRig};
use crate::memory::KernelHal;
use crate::report::Report;
use crate::report::words;
use crate::second;
use alloc::format;
use alloc::string::{String, ToString};
use core::sync::atomic::{AtomicU32, Ordering};
use portcullis_arch::cpu;
use portcullis_hal::{Arc, Attributes, FrameOrder, Hal, unsize_arc};
use portcullis_iommu::{DomainSpec, Fault, FaultHandler};
use spin::Once;

/// Transfers per CPU in the background, at least.
const TRANSFERS: u32 = 5;

/// Counts the faults of a device that should have none.
struct Refused(AtomicU32);

impl FaultHandler for Refused {
    fn fault(&self, _fault: &Fault) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Rounds per CPU, at least.
const ROUNDS: u32 = 150;

/// How long the other CPU may take, in nanoseconds.
const TIMEOUT_NS: u64 = 60_000_000_000;

/// What both CPUs work with.
static WORK: Once<Work> = Once::new();

struct Work {
    machine: &'static Machine,
    /// The domain in which both CPUs map and unmap.
    common: DmaSpace,
    arrived: AtomicU32,
}

pub(super) fn run(machine: &'static Machine, report: &mut Report) {
    report.section("Two CPUs");
    let cpus = machine.cpus();
    if cpus == Cpus::One {
        for name in ["cpus.start", "cpus.first", "cpus.second"] {
            report.skip(name, format_args!("{cpus}"));
        }
        return;
    }
    let started = second::start(machine);
    if !report.check("cpus.start", started) {
        return;
    }
    match together(machine) {
        Ok(lines) => lines.into_iter().zip(["cpus.first", "cpus.second"]).for_each(|(outcome, name)| {
            report.check(name, outcome);
        }),
        Err(reason) => report.fail("cpus.first", format_args!("{reason}")),
    }
    super::drain_faults(machine.iommu);
}

fn together(machine: &'static Machine) -> Result<[Outcome; 2], String> {
    let [rig, ..] = machine.test_devices.as_slice() else {
        return Err("no iommu-testdev".to_string());
    };
    let common = DmaSpace::new(machine.iommu, &rig.device, None).map_err(words)?;
    let work = WORK.call_once(|| Work { machine, common, arrived: AtomicU32::new(0) });
    let second = second::submit(|| share_of_work(work, 1))?;
    let first = share_of_work(work, 0);
    match second.wait(TIMEOUT_NS) {
        Some(second) => Ok([first, second]),
        None => Err(format!("the second CPU did not finish; the first: {first:?}")),
    }
}

/// One CPU's rounds, on the device with its number: map, DMA, unmap and refused DMA in the common domain, blocked and
/// attached again every few rounds, while the CPU's `edu` moves data all the time.
fn share_of_work(work: &Work, index: usize) -> Outcome {
    let machine = work.machine;
    let rig = machine.test_devices.get(index).ok_or("no iommu-testdev for this CPU")?;
    let background = machine.edus.get(index).ok_or("no edu for this CPU")?;

    // Both CPUs begin together.
    work.arrived.fetch_add(1, Ordering::AcqRel);
    let start = KernelHal.now_ns();
    while work.arrived.load(Ordering::Acquire) < 2 {
        if KernelHal.now_ns() - start > TIMEOUT_NS {
            return Err("the other CPU did not come".to_string());
        }
        KernelHal.relax();
    }

    let blocked = machine.iommu.new_domain(&rig.device, &DomainSpec::Blocked).map_err(words)?;
    work.common.attach(machine.iommu, &rig.device).map_err(words)?;
    work.common.attach(machine.iommu, &background.device).map_err(words)?;
    machine.enable_bus_master(rig.function);
    machine.enable_bus_master(background.function);
    let refused = Arc::try_new(Refused(AtomicU32::new(0))).map_err(words)?;
    let handler = unsize_arc!(refused.clone() => dyn FaultHandler);
    machine.iommu.set_fault_handler(&background.device, Some(handler));
    let stream = work.common.buffer(FrameOrder::SINGLE, Attributes::READ_WRITE).map_err(words)?;
    let data: [u8; 4096] = pattern(0x80 + index as u8);
    stream.memory().write(0, &data);
    let to = stream.range().start();
    background.edu.transfer(Direction::FromMemory, to, 4096, Completion::Poll).map_err(words)?;

    let start = KernelHal.now_ns();
    let (mut round, mut transfers) = (0, 0);
    while round < ROUNDS || transfers < TRANSFERS {
        if !background.edu.busy() {
            if transfers > 0 && !holds(stream.memory(), &data) {
                return Err(format!("transfer {transfers} did not arrive"));
            }
            stream.memory().write(0, &[0; 4096]);
            background.edu.start(Direction::ToMemory, to, 4096, Completion::Poll);
            transfers += 1;
        }
        if KernelHal.now_ns() - start > TIMEOUT_NS {
            return Err(format!("only {round} rounds and {transfers} transfers in time"));
        }
        round += 1;
        one_round(work, rig, round).map_err(|reason| format!("round {round}: {reason}"))?;
        if round % 8 == 0 {
            machine.iommu.attach(&rig.device, &blocked).map_err(words)?;
            let (iova, phys) = (stream.range().start(), stream.memory().phys());
            expect(rig.test.write(iova, 64, phys), Written::Refused, "blocked")?;
            work.common.attach(machine.iommu, &rig.device).map_err(words)?;
        }
    }
    let start = KernelHal.now_ns();
    while background.edu.busy() {
        if KernelHal.now_ns() - start > TIMEOUT_NS {
            return Err("the last transfer did not end".to_string());
        }
        KernelHal.relax();
    }
    if !holds(stream.memory(), &data) {
        return Err("the last transfer did not arrive".to_string());
    }
    machine.iommu.set_fault_handler(&background.device, None);
    let refused = refused.0.load(Ordering::Relaxed);
    if refused > 0 {
        return Err(format!("{refused} faults of the device in the background"));
    }
    machine.iommu.detach(&rig.device).map_err(words)?;
    machine.iommu.detach(&background.device).map_err(words)?;
    work.common.unmap(stream).map_err(words)?;
    Ok(format!("CPU {}: {round} rounds on {} beside {transfers} transfers", cpu::index(), rig.device.id()))
}

fn one_round(work: &Work, rig: &TestRig, round: u32) -> Result<(), String> {
    // Now and then a block large enough that tables come and go.
    let order = if round.is_multiple_of(16) { 9 } else { (round % 4) as u8 };
    let order = FrameOrder::new(order).ok_or("order out of range")?;
    let buffer = work.common.buffer(order, Attributes::READ_WRITE).map_err(words)?;
    let offset = order.bytes() - 4096;
    let iova = portcullis_hal::Iova::new(buffer.range().start().get() + offset);
    let phys = portcullis_hal::PhysAddr::new(buffer.memory().phys().get() + offset);
    expect(rig.test.write(iova, 64, phys), Written::Arrived, "mapped")?;
    let frames = work.common.unmap(buffer).map_err(words)?;
    frames.write(offset as usize, &[0; 64]);
    // The other CPU may have taken the address in the meantime, so what counts is the old page.
    rig.test.write(iova, 64, phys);
    let mut found = [1; 64];
    frames.read(offset as usize, &mut found);
    if found == [0; 64] { Ok(()) } else { Err("written after unmap".to_string()) }
}

fn expect(found: Written, wanted: Written, when: &str) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{when}: {found}")) }
}
