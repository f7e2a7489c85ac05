//! What a process's unmap costs where a device shares its tables.

#![expect(unsafe_code, reason = "vouches for tables")]

mod common;

use common::{Machine, fake, map_page};
use portcullis_hal::host::HostHal;
use portcullis_hal::{
    Arc, EndpointId, FaultOutcome, Mm, MmFault, MmNotifier, Pasid, RequesterId, SubscribeError, TableRoot,
    unsize_arc,
};
use portcullis_iommu::{
    Device, DeviceDescription, DeviceId, ExitHandler, GroupId, Iommu, Stage, Unit, UnitId,
};
use std::sync::Mutex;

const SID: u16 = 0x18;
const ENDPOINT: [EndpointId; 1] = [EndpointId::new(SID as u32)];
const IOVA: u64 = 0x4000;

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

#[test]
fn a_notifier_writes_one_doorbell_whatever_it_is_told_of_and_reads_no_register() {
    let machine = Machine::new(fake::FIRST_STAGE);
    let owner = machine.of_stage(Stage::Stage1);
    map_page(&owner, IOVA, 0xabc_d000).unwrap();
    let unit = machine.driver.unit().unwrap();
    shared(&machine.hal, unit, owner.info().root.unwrap(), |notifier| {
        for (first, last) in [(IOVA, IOVA + 0xfff), (IOVA, 0x1_3fff), (IOVA, u64::MAX), (0, u64::MAX)] {
            assert_eq!(machine.fake.dma(SID, IOVA, true), Ok(0xabc_d000), "it is in the TLB");
            machine.fake.accesses();
            notifier.invalidate(first, last).unwrap();
            assert_eq!(machine.fake.accesses(), (0, 1), "{first:#x}..={last:#x}");
        }
        // Beyond what the device can reach there is nothing to do.
        notifier.invalidate(1 << 60, u64::MAX).unwrap();
        assert_eq!(machine.fake.accesses(), (0, 0));
    });
}
