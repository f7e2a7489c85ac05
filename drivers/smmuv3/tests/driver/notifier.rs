//! What a process's unmap costs where a device shares its tables.

#![expect(unsafe_code, reason = "vouches for tables")]

use super::*;
use portcullis_hal::{
    FaultOutcome, Mm, MmFault, MmNotifier, Pasid, RequesterId, SubscribeError, TableRoot, unsize_arc,
};
use portcullis_iommu::{Device, DeviceDescription, DeviceId, ExitHandler, GroupId, Iommu, UnitId};
use std::sync::Mutex;

const ENDPOINT: [EndpointId; 1] = [EndpointId::new(0x18)];

/// A process that knows whom to tell.
struct Process {
    root: TableRoot,
    notifier: Mutex<Option<Arc<dyn MmNotifier>>>,
}

// SAFETY: the domain that owns the tables outlives the process.
unsafe impl Mm for Process {
    fn root(&self) -> TableRoot {
        self.root
    }

    fn subscribe(&self, notifier: Arc<dyn MmNotifier>) -> Result<(), SubscribeError> {
        *self.notifier.lock().unwrap() = Some(notifier);
        Ok(())
    }

    fn unsubscribe(&self, _: &Arc<dyn MmNotifier>) {
        *self.notifier.lock().unwrap() = None;
    }

    fn handle_fault(&self, _: MmFault) -> FaultOutcome {
        FaultOutcome::Resolved
    }
}

struct Nobody;

impl ExitHandler for Nobody {
    fn exit(&self, _: &Device, _: Option<Pasid>) {}
}

/// Attaches a device behind `unit` to a process with tables like `root`, and gives `test` what the process tells.
fn shared(hal: &HostHal, unit: Arc<dyn Unit>, root: TableRoot, test: impl FnOnce(&dyn MmNotifier)) {
    let iommu = Iommu::new(hal.clone());
    iommu.add_unit(unit).unwrap();
    let device = iommu
        .add_device(DeviceDescription {
            id: DeviceId::Pci(RequesterId::from_bdf(0, 8)),
            unit: UnitId(0),
            endpoints: ENDPOINT.to_vec(),
            group: GroupId(0),
            reserved: Vec::new(),
        })
        .unwrap();
    let process = Arc::try_new(Process { root, notifier: Mutex::default() }).unwrap();
    let mm = unsize_arc!(process.clone() => dyn Mm);
    let nobody = unsize_arc!(Arc::try_new(Nobody).unwrap() => dyn ExitHandler);
    let bond = iommu.attach_pinned(&device, &mm, &[], nobody).unwrap();
    let notifier = process.notifier.lock().unwrap().clone().expect("somebody to tell");
    test(&*notifier);
    drop(notifier);
    bond.unbind().unwrap();
}

/// Doorbells, and reads of registers.
fn accesses(bench: &Bench) -> (u64, u64) {
    let state = bench.fake.state();
    (state.doorbells, state.reads)
}

#[test]
fn a_notifier_writes_one_doorbell_whatever_it_is_told_of_and_reads_no_register() {
    // A unit that says by a message that it is done; one whose index has to be read.
    for (messages, reads) in [(1 << 13, 0..=0), (0, 1..=1)] {
        let bench = Bench::with(options(), |fake| fake.state().ids[0] |= messages);
        let owner = bench.paging(Stage::Stage1);
        let page = bench.map(&owner, 0x4000);
        let unit = bench.driver.unit().unwrap();
        shared(&bench.hal, unit, owner.info().root.unwrap(), |notifier| {
            for (first, last) in [(0x4000, 0x4fff), (0x4000, 0x1_3fff), (0x4000, u64::MAX), (0, u64::MAX)] {
                assert_eq!(bench.read(0x18, 0x4000), done(&page), "it is in the TLB");
                let before = accesses(&bench);
                notifier.invalidate(first, last).unwrap();
                let after = accesses(&bench);
                assert_eq!(after.0 - before.0, 1, "{first:#x}..={last:#x}");
                assert!(reads.contains(&(after.1 - before.1)), "{first:#x}..={last:#x}");
            }
            // Beyond what the device can reach there is nothing to do.
            let before = accesses(&bench);
            notifier.invalidate(1 << 60, u64::MAX).unwrap();
            assert_eq!(accesses(&bench), before);
        });
    }
}
