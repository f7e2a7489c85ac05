//! What the operations cost on the host, in nanoseconds, against units that have done at once what they are told, and
//! how much memory the tables take.
//!
//! `host machine=M operation=O nanoseconds=N` is the median over the repetitions of one operation; M is the machine of
//! `profiles.toml` whose unit is played. It says what the driver's own code costs on a processor that runs ahead and
//! has caches, which a count of instructions does not; the clean of a cache line costs nothing here, and what else the
//! host does disturbs it. `memory machine=M of=W tables=N heap=N` are bytes in frames, which units read, and on the heap.

mod memory;
mod smmu;
mod vtd;

use memory::{Memory, Usage};
use portcullis_hal::{Arc, EndpointId, Pasid, RequesterId};
use portcullis_iommu::{
    Device, DeviceDescription, DeviceId, Domain, DomainSpec, GroupId, Iommu, PagingSpec, Permissions, Unit,
};
use portcullis_operations::{Bench, Clock, Rounds};
use std::error::Error;
use std::time::Instant;

const ROUNDS: Rounds = Rounds { many: 20_001, some: 2001, few: 11 };

/// The PASIDs after the first that are attached to see what one takes.
const FURTHER: u32 = 255;
const PASID_BITS: u8 = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let units: [(&str, Play); 3] =
        [("aarch64", smmu::unit), ("x86_64-first", vtd::first_stage), ("x86_64-second", vtd::second_stage)];
    for (machine, play) in units {
        operations(machine, play)?;
        tables(machine, play)?;
    }
    Ok(())
}

/// Sets up a driver on a unit that is played.
type Play = fn(Memory) -> Result<Arc<dyn Unit>, Box<dyn Error>>;

/// Measures all operations, through the registry as a kernel does.
#[expect(unsafe_code, reason = "maps memory that is not there")]
fn operations(machine: &str, play: Play) -> Result<(), Box<dyn Error>> {
    let memory = Memory::new();
    let iommu = Iommu::new(memory);
    let unit = iommu.add_unit(play(memory)?)?;
    let device: Arc<Device> = iommu.add_device(DeviceDescription {
        id: DeviceId::Pci(RequesterId::new(0, 0, 4, 0)?),
        unit,
        endpoints: vec![EndpointId::new(0x20)],
        group: GroupId(0),
        reserved: vec![],
    })?;
    let start = Instant::now();
    let clock = Clock::new(|| start.elapsed().as_nanos() as u64);
    // SAFETY: there is no device.
    let bench = unsafe { Bench::new(&iommu, &device, clock, ROUNDS) }?;
    let mut print = |name: &str, cost: portcullis_operations::Cost| {
        println!("host machine={machine} operation={name} nanoseconds={}", cost.time);
    };
    bench.mappings(&mut print)?;
    bench.attachments(&mut print)?;
    Ok(())
}

/// Sees what memory is taken for a domain, for devices and for PASIDs.
fn tables(machine: &str, play: Play) -> Result<(), Box<dyn Error>> {
    let memory = Memory::new();
    let unit = play(memory)?;
    let mut last = memory.usage();
    let mut print = |of: &str, parts: u64| {
        let now = memory.usage();
        let Usage { frames, heap } = now.since(last);
        last = now;
        println!("memory machine={machine} of={of} tables={} heap={}", frames / parts, heap / parts);
    };
    let domain = unit.new_domain(&DomainSpec::Paging(PagingSpec::default()))?;
    print("domain", 1);
    let [first, second] = [0x20, 0x28].map(|id| [EndpointId::new(id)]);
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
