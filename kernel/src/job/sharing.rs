//! Devices that work on a process's addresses: the same tables, the same permissions, the same end.

use super::rogue::expect;
use super::spaces::{HEAP, READ_WRITE, execute, pages, servant, word_at};
use super::{Outcome, await_fault, drain_faults};
use crate::devices::disk::{self, Disk};
use crate::devices::edu::{BUFFER_SIZE, Completion, Direction};
use crate::devices::process_disk::{self, ProcessHal};
use crate::devices::test_device::Outcome as Written;
use crate::dma::count_bytes;
use crate::machine::{EduRig, Machine, TestRig};
use crate::memory::KernelHal;
use crate::mm::{self, AddressSpace, PAGE};
use crate::report::{self, Report, words};
use crate::user::Order;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};
use portcullis_hal::{Access, Arc, FrameOrder, Frames, Hal, Iova, Mm, Pasid, unsize_arc};
use portcullis_iommu::{Bond, Device, ExitHandler, FaultReason, PinnedRange, Stages};

/// The pages that a device is given: the CPU writes to the first, the device to the second.
const PAGES: u64 = 2;
const FROM_CPU: u64 = HEAP;
const FROM_DEVICE: u64 = HEAP + PAGE;
/// What memory holds that nobody may write to.
const CANARY: u64 = 0x1234_5678_9abc_def0;

type Check = fn(&'static Machine, &EduRig, &TestRig) -> Outcome;

pub(super) fn run(machine: &'static Machine, report: &mut Report) {
    report.section("Shared virtual addresses: devices in processes");
    report::text(format_args!(
        "  The device walks the page tables that the CPU walks, at the addresses of the process. QEMU's devices have"
    ));
    report::text(format_args!(
        "  no PASIDs: they are attached as a whole, with pinned pages. `cargo xtask test pasid/` binds some that have."
    ));
    let (Some(edu), Some(test)) = (machine.edus.first(), machine.test_devices.first()) else {
        report.fail("share", format_args!("no device"));
        return;
    };
    let checks: [(&str, Check); 7] = [
        ("share.both-ways", both_ways),
        ("share.disk", disk),
        ("share.protect", protect),
        ("share.unmap", unmap),
        ("share.kernel", kernel),
        ("share.fork", fork),
        ("share.exit", exit),
    ];
    let stages = machine.iommu.unit(edu.device.unit()).map(|unit| unit.info().stages);
    let walks = stages.is_some_and(|stages| stages.contains(Stages::STAGE_1));
    machine.enable_bus_master(edu.function);
    machine.enable_bus_master(test.function);
    let frames = mm::in_use();
    for (name, check) in checks {
        if walks {
            drain_faults(machine.iommu);
            report.check(name, check(machine, edu, test));
        } else {
            report.skip(name, format_args!("the unit does not walk the CPU's tables"));
        }
    }
    if walks {
        let left = mm::in_use();
        report.check("share.frames", if left == frames { Ok("all came back") } else { Err("some are lost") });
    } else {
        report.skip("share.frames", format_args!("nothing was shared"));
    }
}

/// Told when the process ends before its device's work does: lets the device finish it.
struct Quiesce {
    machine: &'static Machine,
    told: AtomicU32,
}

impl ExitHandler for Quiesce {
    fn exit(&self, device: &Device, _pasid: Option<Pasid>) {
        self.told.fetch_add(1, Ordering::Relaxed);
        let rig = self.machine.edus.iter().find(|rig| rig.device.id() == device.id());
        if let Some(Err(error)) = rig.map(|rig| rig.edu.finish()) {
            log::warn!("device {} does not stop: {error}", device.id());
        }
    }
}

/// A device in an address space, with [`PAGES`] pages pinned for it.
struct Attached {
    bond: Bond<'static, KernelHal>,
    quiesce: Arc<Quiesce>,
}

impl Attached {
    fn new(
        machine: &'static Machine,
        device: &Arc<Device>,
        space: &Arc<AddressSpace>,
    ) -> Result<Self, String> {
        Self::with_pages(machine, device, space, PAGES)
    }

    /// As [`new`](Self::new), with as many pages.
    fn with_pages(
        machine: &'static Machine,
        device: &Arc<Device>,
        space: &Arc<AddressSpace>,
        pages: u64,
    ) -> Result<Self, String> {
        let mm = unsize_arc!(space.clone() => dyn Mm);
        let range = PinnedRange { first: HEAP, last: HEAP + pages * PAGE - 1, access: READ_WRITE };
        let quiesce = Arc::try_new(Quiesce { machine, told: AtomicU32::new(0) }).map_err(words)?;
        let on_exit = unsize_arc!(quiesce.clone() => dyn ExitHandler);
        let bond = machine.iommu.attach_pinned(device, &mm, &[range], on_exit).map_err(words)?;
        Ok(Self { bond, quiesce })
    }

    /// Takes the device out.
    fn leave(self, machine: &Machine) -> Result<(), String> {
        let device = self.bond.device().clone();
        self.bond.unbind().map_err(words)?;
        machine.iommu.detach(&device).map_err(words)
    }
}

fn transfer(rig: &EduRig, way: Direction, address: u64) -> Result<(), String> {
    rig.edu.transfer(way, Iova::new(address), BUFFER_SIZE, Completion::Poll).map_err(words)
}

/// The device writes to memory that it must not reach: refused, reported, and the memory is as it was.
fn refused(
    machine: &Machine,
    rig: &EduRig,
    address: u64,
    memory: &Frames<KernelHal>,
    reason: FaultReason,
) -> Outcome {
    fill(memory);
    drain_faults(machine.iommu);
    transfer(rig, Direction::ToMemory, address)?;
    let fault = await_fault(machine.iommu, &rig.device)?;
    let line = expect(&fault, rig, Iova::new(address), Access::WRITE, reason)?;
    intact(memory).map(|()| line)
}

fn fill(memory: &Frames<KernelHal>) {
    memory.words().iter().for_each(|word| word.store(CANARY, Ordering::Release));
}

fn intact(memory: &Frames<KernelHal>) -> Result<(), String> {
    let same = memory.words().iter().all(|word| word.load(Ordering::Acquire) == CANARY);
    if same { Ok(()) } else { Err("memory was written all the same".to_string()) }
}

/// User code writes, the device reads; the device writes, user code reads; each at the same addresses.
fn both_ways(machine: &'static Machine, rig: &EduRig, _test: &TestRig) -> Outcome {
    let mut thread = servant(PAGES)?;
    let space = thread.space().clone();
    let words_at = [0, 8, PAGE / 2, PAGE - 8];
    for offset in words_at {
        execute(&mut thread, Order::Store(FROM_CPU + offset, !offset))?;
    }
    let attached = Attached::new(machine, &rig.device, &space)?;
    transfer(rig, Direction::FromMemory, FROM_CPU)?;
    transfer(rig, Direction::ToMemory, FROM_DEVICE)?;
    for offset in words_at {
        let found = execute(&mut thread, Order::Load(FROM_DEVICE + offset))?;
        if found != !offset {
            return Err(format!("{found:#x} instead of {:#x} at offset {offset:#x}", !offset));
        }
    }
    count_bytes(2 * BUFFER_SIZE);
    attached.leave(machine)?;
    let root = space.table_root();
    Ok(format!(
        "user code's words at {FROM_CPU:#x} came back at {FROM_DEVICE:#x} by {}, on the CPU's tables ({}) at {}",
        rig.device.id(),
        root.format,
        root.root
    ))
}

/// What becomes read-only is read-only for the device too, and writable again.
fn protect(machine: &'static Machine, rig: &EduRig, _test: &TestRig) -> Outcome {
    let thread = servant(PAGES)?;
    let space = thread.space().clone();
    let attached = Attached::new(machine, &rig.device, &space)?;
    transfer(rig, Direction::ToMemory, FROM_DEVICE)?;
    let page = space.frame_at(FROM_DEVICE).ok_or("no memory")?;
    space.protect(pages(1, 1)?, Access::READ).map_err(words)?;
    let line = refused(machine, rig, FROM_DEVICE, page.frames(), FaultReason::Permission)?;
    // As long as this check has the frame too, it counts as shared, and would be copied.
    drop(page);
    space.protect(pages(1, 1)?, READ_WRITE).map_err(words)?;
    transfer(rig, Direction::FromMemory, FROM_CPU)?;
    transfer(rig, Direction::ToMemory, FROM_DEVICE)?;
    if word_at(&space, FROM_DEVICE)? == CANARY {
        return Err("the device cannot write afterwards".to_string());
    }
    attached.leave(machine)?;
    Ok(format!("read-only for the process: {line}"))
}

/// What is unmapped is gone for the device, before its memory is free.
fn unmap(machine: &'static Machine, rig: &EduRig, _test: &TestRig) -> Outcome {
    let thread = servant(PAGES)?;
    let space = thread.space().clone();
    let attached = Attached::new(machine, &rig.device, &space)?;
    transfer(rig, Direction::ToMemory, FROM_DEVICE)?;
    let page = space.frame_at(FROM_DEVICE).ok_or("no memory")?;
    space.unmap(pages(1, 1)?).map_err(words)?;
    let line = refused(machine, rig, FROM_DEVICE, page.frames(), FaultReason::NotMapped)?;
    attached.leave(machine)?;
    Ok(format!("gone for the process: {line}"))
}

/// A virtio disk whose rings, requests and data are all at user addresses: user code finds a sector in its page, and the
/// disk gets what user code has there.
fn disk(machine: &'static Machine, _rig: &EduRig, _test: &TestRig) -> Outcome {
    const SHARED: u64 = 16;
    const DATA: u64 = HEAP + (SHARED - 1) * PAGE;
    let function = machine.function(disk::ID).ok_or("no virtio-blk")?;
    let mut thread = servant(SHARED)?;
    let space = thread.space().clone();
    let attached = Attached::with_pages(machine, &function.device, &space, SHARED)?;
    process_disk::open(&space, HEAP, SHARED)?;
    let sectors = alloc::vec![0_u8; PAGE as usize];
    let outcome = (|| {
        let mut disk: Disk<ProcessHal> = Disk::new(&machine.config, &function.function).map_err(words)?;
        let mut buffer = sectors.clone();
        let expected = |offset: u64| {
            u64::from_le_bytes(core::array::from_fn(|byte| super::disk::written(offset as usize + byte)))
        };
        // What it finds, it writes back; and it finds it once more.
        for round in 0..2 {
            execute(&mut thread, Order::Store(DATA, CANARY))?;
            disk.read(super::disk::WRITE_FIRST, &mut buffer).map_err(words)?;
            for offset in [0, 8, PAGE / 2, PAGE - 8] {
                let found = execute(&mut thread, Order::Load(DATA + offset))?;
                if found != expected(offset) {
                    return Err(format!("round {round}: {found:#x} at offset {offset:#x}"));
                }
            }
            disk.write(super::disk::WRITE_FIRST, &sectors).map_err(words)?;
        }
        Ok(disk.sectors())
    })();
    process_disk::close()?;
    attached.leave(machine)?;
    count_bytes(4 * PAGE);
    outcome.map(|sectors| {
        format!("8 of {sectors} sectors to user code at {DATA:#x} and back; the rings are from {HEAP:#x} on")
    })
}

/// The kernel is out of the device's reach, though on some machines the tables that it walks have the kernel in them.
fn kernel(machine: &'static Machine, _rig: &EduRig, test: &TestRig) -> Outcome {
    let space = servant(PAGES)?.space().clone();
    let attached = Attached::new(machine, &test.device, &space)?;
    let victim = Frames::zeroed(&KernelHal, FrameOrder::SINGLE).map_err(words)?;
    fill(&victim);
    let address = KernelHal.phys_to_virt(victim.phys()).addr().get() as u64;
    let outcome = test.test.write(Iova::new(address), 64, victim.phys());
    if outcome != Written::Refused {
        return Err(format!("a write to the kernel's {address:#x}: {outcome}"));
    }
    let fault = await_fault(machine.iommu, &test.device)?;
    intact(&victim)?;
    attached.leave(machine)?;
    Ok(format!("out of reach as for user code: {fault}"))
}

/// A fork neither takes pinned memory from under the device nor gives the device the child's.
fn fork(machine: &'static Machine, rig: &EduRig, _test: &TestRig) -> Outcome {
    let mut parent = servant(PAGES)?;
    let space = parent.space().clone();
    let attached = Attached::new(machine, &rig.device, &space)?;
    execute(&mut parent, Order::Store(FROM_CPU, 0xa))?;
    let mut child = parent.fork().map_err(words)?;
    execute(&mut child, Order::Store(FROM_CPU, 0xb))?;
    transfer(rig, Direction::FromMemory, FROM_CPU)?;
    transfer(rig, Direction::ToMemory, FROM_DEVICE)?;
    let found =
        (execute(&mut parent, Order::Load(FROM_DEVICE))?, execute(&mut child, Order::Load(FROM_DEVICE))?);
    if found != (0xa, 0) {
        return Err(format!("{found:#x?} after the fork"));
    }
    attached.leave(machine)?;
    Ok("the device goes on in the parent's memory, and the child has its own".to_string())
}

/// The end of the process cuts the device off, though nobody took it out.
fn exit(machine: &'static Machine, rig: &EduRig, test: &TestRig) -> Outcome {
    let thread = servant(PAGES)?;
    let space = thread.space().clone();
    let attached = [&rig.device, &test.device]
        .map(|device| Attached::new(machine, device, &space))
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    let page = space.frame_at(FROM_DEVICE).ok_or("no memory")?;
    let phys = page.frames().phys();
    let before = test.test.write(Iova::new(FROM_DEVICE), 64, phys);
    if before != Written::Arrived {
        return Err(format!("before the end: {before}"));
    }
    // A transfer is under way when the process ends: the driver is told, and lets it finish.
    rig.edu.start(Direction::FromMemory, Iova::new(FROM_CPU), BUFFER_SIZE, Completion::Poll);
    space.end().map_err(words)?;
    // Nobody but this check knows the memory by now.
    fill(page.frames());
    let after = test.test.write(Iova::new(FROM_DEVICE), 64, phys);
    if after != Written::Refused {
        return Err(format!("after the end: {after}"));
    }
    transfer(rig, Direction::ToMemory, FROM_DEVICE)?;
    intact(page.frames())?;
    for attached in attached {
        let told = attached.quiesce.told.load(Ordering::Relaxed);
        if told != 1 {
            return Err(format!("the driver of {} was told {told} times", attached.bond.device().id()));
        }
        attached.leave(machine)?;
    }
    let (one, other) = (rig.device.id(), test.device.id());
    Ok(format!("the process ended: both drivers were told, {one} and {other} reach its memory no more"))
}
