//! What the operations cost on the host, in nanoseconds, against units that have done at once what they are told, and
//! how much memory the tables take.
//!
//! `host machine=M operation=O nanoseconds=N` is the median over the repetitions of one operation; M is the machine of
//! `profiles.toml` whose unit is played. It says what the driver's own code costs on a processor that runs ahead and
//! has caches, which a count of instructions does not; the clean of a cache line costs nothing here, and what else the
//! host does disturbs it. `memory machine=M of=W tables=N heap=N` are bytes in frames, which units read, and on the heap.

mod process;
#[path = "../units/mod.rs"]
mod units;

use portcullis_hal::{Arc, EndpointId, Pasid, RequesterId, TableFormat};
use portcullis_iommu::{
    Device, DeviceDescription, DeviceId, Domain, DomainSpec, Feature, GroupId, Iommu, PagingSpec,
    Permissions, Unit,
};
use portcullis_operations::{Bench, Clock, Cost, ON_PAPER, Rounds, Sharing};
use process::process;
use std::error::Error;
use std::time::Instant;
use units::memory::{Memory, Usage};
use units::{Play, Played, VMSA, X86, smmu, virtio, vtd};

const ROUNDS: Rounds = Rounds { many: 20_001, some: 2001, few: 11 };

/// The PASIDs after the first that are attached to see what one takes.
const FURTHER: u32 = 255;
const PASID_BITS: u8 = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let machines: [(&str, Play, Option<TableFormat>); 3] = [
        ("aarch64", smmu::unit, Some(VMSA)),
        ("x86_64-first", vtd::first_stage, Some(X86)),
        ("x86_64-second", vtd::second_stage, None),
    ];
    for (machine, play, cpu_tables) in machines {
        operations(&[machine], play)?;
        if let Some(format) = cpu_tables {
            sharing(machine, play, format)?;
        }
        tables(machine, play)?;
    }
    // One driver on both machines, whose tables are the host's.
    operations(&["aarch64-virtio", "x86_64-virtio"], virtio::unit)
}

/// The device.
const ENDPOINT: u32 = 0x20;

/// A registry with a unit and a device, as a kernel has it.
fn registry(memory: Memory, unit: Arc<dyn Unit>) -> Result<(Iommu<Memory>, Arc<Device>), Box<dyn Error>> {
    let iommu = Iommu::new(memory);
    let unit = iommu.add_unit(unit)?;
    let device = iommu.add_device(DeviceDescription {
        id: DeviceId::Pci(RequesterId::new(0, 0, 4, 0)?),
        unit,
        endpoints: vec![EndpointId::new(ENDPOINT)],
        group: GroupId(0),
        reserved: vec![],
    })?;
    Ok((iommu, device))
}

fn clock() -> Clock<impl Fn() -> u64> {
    let start = Instant::now();
    Clock::new(move || start.elapsed().as_nanos() as u64)
}

fn printer(machines: &[&str]) -> impl FnMut(&str, Cost) {
    move |name, cost| {
        for machine in machines {
            println!("host machine={machine} operation={name} nanoseconds={}", cost.time);
        }
    }
}

/// Measures mappings and attachments.
#[expect(unsafe_code, reason = "maps memory that is not there")]
fn operations(machines: &[&str], play: Play) -> Result<(), Box<dyn Error>> {
    let memory = Memory::new();
    let (iommu, device) = registry(memory, play(memory)?.unit)?;
    // SAFETY: there is no device.
    let bench = unsafe { Bench::new(&iommu, &device, clock(), ROUNDS) }?;
    let mut print = printer(machines);
    bench.mappings(&mut print)?;
    bench.attachments(&mut print)?;
    Ok(())
}

/// Measures what shared address spaces cost, of a device that knows nothing of its permissions.
fn sharing(machine: &str, play: Play, format: TableFormat) -> Result<(), Box<dyn Error>> {
    let memory = Memory::new();
    let Played { unit, ask, .. } = play(memory)?;
    let (iommu, device) = registry(memory, unit)?;
    let mm = process(memory, format)?;
    let sharing = Sharing::new(&iommu, &device, mm.clone(), clock(), ROUNDS)?;
    let machine = [machine];
    let mut print = printer(&machine);
    sharing.whole(&mut print)?;
    iommu.enable_feature(&device, &ON_PAPER, Feature::Sva, &mm.root())?;
    sharing.with_pasid(&mut print)?;
    sharing.faults(&|pasid| ask(ENDPOINT, pasid), &mut print)?;
    Ok(())
}

/// Sees what memory is taken for a domain, for devices and for PASIDs.
fn tables(machine: &str, play: Play) -> Result<(), Box<dyn Error>> {
    let memory = Memory::new();
    let Played { unit, .. } = play(memory)?;
    let mut last = memory.usage();
    let mut print = |of: &str, parts: u64| {
        let now = memory.usage();
        let Usage { frames, heap } = now.since(last);
        last = now;
        println!("memory machine={machine} of={of} tables={} heap={}", frames / parts, heap / parts);
    };
    let domain = unit.new_domain(&DomainSpec::Paging(PagingSpec::default()))?;
    print("domain", 1);
    let [first, second] = [ENDPOINT, 0x28].map(|id| [EndpointId::new(id)]);
    unit.attach(&first, &domain)?;
    print("device", 1);
    unit.attach(&second, &domain)?;
    print("further-device", 1);
    unit.permit(&first, &Permissions { pasid_bits: PASID_BITS, ..Permissions::NONE })?;
    let attach = |pasid: u32, domain: &Arc<dyn Domain>| -> Result<(), Box<dyn Error>> {
        Ok(unit.attach_pasid(&first, Pasid::new(pasid)?, domain).map(drop)?)
    };
    attach(1, &domain)?;
    print("pasid", 1);
    for pasid in 2..2 + FURTHER {
        attach(pasid, &domain)?;
    }
    print("further-pasid", u64::from(FURTHER));
    Ok(())
}
