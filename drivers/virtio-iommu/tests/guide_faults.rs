//! The guide's example of faults does what it says, on a device that is refused. `portcullis-iommu` sees that the guide
//! shows what stands between the marks.

mod support;

use support::{Fake, registered};

// --- SHOWN ---
use portcullis_hal::{Arc, Hal, OutOfMemory, unsize_arc};
use portcullis_iommu::{Device, Fault, FaultHandler, Iommu, PageFaultWork, UnitId};
use std::sync::atomic::{AtomicU32, Ordering};

/// Counts what a device was refused. Its driver looks, and resets the device when it is too much.
struct Refusals(AtomicU32);

impl FaultHandler for Refusals {
    fn fault(&self, _fault: &Fault) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn watch<H: Hal>(iommu: &Iommu<H>, device: &Device) -> Result<Arc<Refusals>, OutOfMemory> {
    let refusals = Arc::try_new(Refusals(AtomicU32::new(0)))?;
    iommu.set_fault_handler(device, Some(unsize_arc!(refusals.clone() => dyn FaultHandler)));
    Ok(refusals)
}

/// The kernel's interrupt handler for a unit.
fn interrupt<H: Hal>(iommu: &Iommu<H>, unit: UnitId, wake: impl FnOnce()) {
    if iommu.handle_interrupt(unit) == PageFaultWork::More {
        wake();
    }
}

/// The thread that it wakes, on a machine without page faults too: no interrupt tells of faults beyond a queueful.
fn go_on<H: Hal>(iommu: &Iommu<H>) {
    while iommu.handle_page_faults() == PageFaultWork::More {}
}

/// What a thread finds later: a line for each fault.
fn report<H: Hal>(iommu: &Iommu<H>) -> Vec<String> {
    std::iter::from_fn(|| iommu.next_fault()).map(|fault| fault.to_string()).collect()
}
// --- SHOWN ---

#[test]
fn a_refusal_is_counted_for_its_device_and_reported_with_its_name() {
    let fake = Fake::new();
    let (iommu, unit, device) = registered(&fake);
    let refusals = watch(&iommu, &device).unwrap();
    // A device that was never attached, and one that nobody knows.
    for (id, address) in [(1, 0x5000), (2, 0x6000)] {
        assert_eq!(fake.dma(id, address, true), None);
    }
    interrupt(&iommu, unit, || go_on(&iommu));
    assert_eq!(refusals.0.load(Ordering::Relaxed), 1);
    let lines = report(&iommu);
    let starts =
        ["iommu0: device dma@0 write at 0x5000 refused", "iommu0: endpoint 0x2 write at 0x6000 refused"];
    assert_eq!(lines.len(), starts.len());
    assert!(lines.iter().zip(starts).all(|(line, start)| line.starts_with(start)), "{lines:?}");
    assert!(report(&iommu).is_empty());
}
