//! The main job: what the stack claims, shown with real DMA.

mod bench;
mod disk;
mod engine;
mod kinds;
mod processors;
mod revocation;
mod rogue;
mod sharing;
mod spaces;
mod table;

use crate::devices::edu::pause;
use crate::machine::{self, KernelIommu, Machine};
use crate::report::{self, Report};
use alloc::format;
use alloc::string::String;
use portcullis_hal::{Frames, Hal};
use portcullis_iommu::{Device, Fault, PageFaultWork};
use portcullis_operations::Clock;

/// How a check ended: what to say if it held, and why it did not.
pub(crate) type Outcome = Result<String, String>;

/// How long a fault may take to be reported, in nanoseconds.
const FAULT_TIMEOUT_NS: u64 = 2_000_000_000;
/// How often the queues are read anew until they are empty; each time gives hundreds of faults.
const DRAIN_ROUNDS: u32 = 1000;

/// Runs all sections on a machine whose units are up and whose devices are unattached.
pub(crate) fn main(machine: &'static Machine, report: &mut Report) {
    disk::run(machine, report);
    engine::run(machine, report);
    rogue::run(machine, report);
    revocation::run(machine, report);
    kinds::run(machine, report);
    processors::run(machine, report);
    spaces::run(machine, report);
    // A disk that reaches other memory than its driver's never answers, and `virtio-drivers` waits for ever.
    if report.holds() {
        sharing::run(machine, report);
    } else {
        report.skip("share", format_args!("no device gets a process's memory where a check has failed"));
    }
    table::run(machine, report);
}

/// What shows that a unit works after it was taken over.
pub(crate) fn takeover(machine: &'static Machine, report: &mut Report) {
    engine::run(machine, report);
    table::run(machine, report);
}

/// What operations cost.
pub(crate) fn bench(machine: &'static Machine, report: &mut Report) {
    bench::run(machine, report);
}

/// The clock that counts instructions, where there is one.
pub(crate) fn clock() -> Clock<fn() -> u64> {
    Clock::new(bench::ticks)
}

/// Takes all faults out of the log and of the units' queues, so that the next one is the one to come.
pub(crate) fn drain_faults(iommu: &KernelIommu) {
    machine::service_polled_units();
    for _ in 0..DRAIN_ROUNDS {
        let work = iommu.handle_page_faults();
        while iommu.next_fault().is_some() {}
        if work == PageFaultWork::Done {
            break;
        }
    }
}

/// Waits until the fault interrupt's handler has logged a fault of `device`, and prints it. Looks at the hardware only
/// where a unit has no interrupt.
pub(crate) fn await_fault(iommu: &KernelIommu, device: &Device) -> Result<Fault, String> {
    let hal = crate::memory::KernelHal;
    let start = hal.now_ns();
    loop {
        machine::service_polled_units();
        let _more = iommu.handle_page_faults();
        while let Some(fault) = iommu.next_fault() {
            if fault.device == Some(device.id()) {
                report::text(format_args!("  {fault}"));
                return Ok(fault);
            }
        }
        if hal.now_ns().saturating_sub(start) > FAULT_TIMEOUT_NS {
            return Err(format!("no fault of {} was reported", device.id()));
        }
        pause(10_000);
    }
}

/// A byte pattern that depends on `seed`, so that stale data does not pass for new.
pub(crate) fn pattern<const N: usize>(seed: u8) -> [u8; N] {
    core::array::from_fn(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed)
}

/// Whether the frames begin with just these bytes.
pub(crate) fn holds<H: Hal, const N: usize>(frames: &Frames<H>, expected: &[u8; N]) -> bool {
    let mut found = [0; N];
    frames.read(0, &mut found);
    found == *expected
}
