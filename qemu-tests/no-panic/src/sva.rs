//! PASIDs, page faults and address spaces of `portcullis-iommu`.

#![expect(unsafe_code, reason = "plays an address space")]

use crate::embedder::{Kernel, debug, show};
use core::fmt::Display;
use core::hint::black_box;
use portcullis_hal::{
    Access, Arc, FaultOutcome, Mm, MmFault, MmNotifier, PAGE_SIZE, Pasid, PhysAddr, PinError, SubscribeError,
    TableFormat, TableRoot, TableWrites, unsize_arc,
};
use portcullis_iommu::{
    ControlError, Device, DeviceControl, DomainSpec, ExitHandler, FaultGroup, Feature, GuestPasid, Handled,
    Iommu, PageFaultHandler, PageResponse, PageRights, PagingSpec, PasidSetSpec, PasidSpace, Permissions,
    PinnedRange, Requests,
};
use spin::Mutex;

/// Every operation on a device of `iommu` that has to do with PASIDs.
#[inline(never)]
pub(crate) fn probe(iommu: &'static Iommu<Kernel>, device: &Arc<Device>) {
    namespaces(iommu, device);
    features(iommu, device);
    let Ok(pasid) = Pasid::new(black_box(3)) else { return };
    pasids(iommu, device, pasid);
    page_faults(iommu, device, pasid);
    bonds(iommu, device);
    told(iommu.disable_feature(device, &Control, black_box(Feature::Sva)));
    told(iommu.disable(device, &Control));
}

fn told<E: Display>(result: Result<(), E>) {
    if let Err(error) = result {
        show(&error);
    }
}

#[inline(never)]
fn namespaces(iommu: &Iommu<Kernel>, device: &Arc<Device>) {
    debug(iommu.system_pasids());
    space(iommu, &mut iommu.system_pasids().lock());
    match iommu.use_own_pasids(device) {
        Ok(own) => space(iommu, &mut own.lock()),
        Err(error) => show(&error),
    }
    told(iommu.use_system_pasids(device));
    match iommu.claim_pasids(device) {
        Ok(claim) => {
            debug(&claim);
            black_box(claim.device());
        }
        Err(error) => show(&error),
    }
}

#[inline(never)]
fn space(iommu: &Iommu<Kernel>, space: &mut PasidSpace) {
    let (Ok(min), Ok(max)) = (Pasid::new(black_box(1)), Pasid::new(black_box(9))) else { return };
    let set = match space.add_set(PasidSetSpec { min, max, quota: black_box(3) }) {
        Ok(set) => black_box(set),
        Err(error) => return show(&error),
    };
    let guest = GuestPasid(min);
    for result in [space.allocate(set), space.allocate_up_to(set, max), space.allocate_for_guest(set, guest)]
    {
        match result {
            Ok(pasid) => show(&pasid),
            Err(error) => show(&error),
        }
    }
    black_box((space.owner(min), space.guest_pasid(min), space.host_pasid(set, guest)));
    space.held_by(set).for_each(|pasid| show(&pasid));
    told(space.release(black_box(min)));
    told(iommu.release_pasid(space, black_box(max)));
    told(space.remove_set(set));
}

/// A device that does anything.
struct Control;

impl DeviceControl for Control {
    fn offers(&self) -> Permissions {
        black_box(Permissions { pasid_bits: 20, requests: Requests::all() })
    }

    fn enable_pasids(&self) -> Result<(), ControlError> {
        black_box(Ok(()))
    }

    fn disable_pasids(&self) -> Result<(), ControlError> {
        black_box(Ok(()))
    }

    fn enable_page_requests(&self) -> Result<(), ControlError> {
        black_box(Ok(()))
    }

    fn stop_page_requests(&self) {
        black_box(());
    }

    fn await_page_answers(&self) -> Result<(), ControlError> {
        black_box(Ok(()))
    }

    fn enable_translation_requests(&self) -> Result<(), ControlError> {
        black_box(Ok(()))
    }

    fn disable_translation_requests(&self) -> Result<(), ControlError> {
        black_box(Ok(()))
    }
}

#[inline(never)]
fn features(iommu: &Iommu<Kernel>, device: &Device) {
    let feature = black_box(Feature::Sva);
    match iommu.has_feature(device, &Control, feature, &root()) {
        Ok(permissions) => told(iommu.enable(device, &Control, &permissions)),
        Err(error) => show(&error),
    }
    told(iommu.enable_feature(device, &Control, feature, &root()));
    black_box((device.is_enabled(feature), device.permissions()));
}

#[inline(never)]
fn pasids(iommu: &Iommu<Kernel>, device: &Device, pasid: Pasid) {
    match iommu.new_domain(device, &DomainSpec::Paging(PagingSpec::default())) {
        Ok(domain) => match iommu.attach_pasid(device, pasid, &domain) {
            Ok(transition) => debug(&transition),
            Err(error) => show(&error),
        },
        Err(error) => show(&error),
    }
    black_box(device.pasid_domain(pasid));
    told(iommu.detach_pasid(device, pasid));
}

/// Answers some groups at once and keeps others.
struct Keeper(Mutex<Option<FaultGroup>>);

impl PageFaultHandler for Keeper {
    fn handle(&self, group: FaultGroup) -> Handled {
        black_box((group.device(), group.pasid()));
        debug(&group);
        group.requests().for_each(|request| debug(request));
        match black_box(0_u8) {
            0 => Handled::Now(group, black_box(PageResponse::Success)),
            _ => {
                *self.0.lock() = Some(group);
                Handled::Later
            }
        }
    }
}

#[inline(never)]
fn page_faults(iommu: &Iommu<Kernel>, device: &Device, pasid: Pasid) {
    let Ok(keeper) = Arc::try_new(Keeper(Mutex::new(None))) else { return };
    let handler = unsize_arc!(keeper.clone() => dyn PageFaultHandler);
    told(iommu.set_page_fault_handler(device, Some(pasid), handler, black_box(PageRights::all())));
    let _more = iommu.handle_interrupt(device.unit());
    debug(&iommu.handle_page_faults());
    let late = keeper.0.lock().take();
    if let Some(group) = late {
        group.answer(black_box(PageResponse::Success));
    }
    told(iommu.remove_page_fault_handler(device, Some(pasid)));
    debug(&device.page_fault_stats());
}

struct Process(Mutex<Option<Arc<dyn MmNotifier>>>);

fn root() -> TableRoot {
    black_box(TableRoot {
        format: TableFormat::X86 { levels: 4 },
        root: PhysAddr::new(0),
        input_bits: 48,
        output_bits: 48,
        page_sizes: PAGE_SIZE,
        writes: TableWrites::Cached,
    })
}

// SAFETY: the program never runs.
unsafe impl Mm for Process {
    fn root(&self) -> TableRoot {
        root()
    }

    fn subscribe(&self, notifier: Arc<dyn MmNotifier>) -> Result<(), SubscribeError> {
        black_box(notifier.invalidate(black_box(0), black_box(0)).is_ok());
        let _ = black_box(notifier.release());
        *self.0.lock() = Some(notifier);
        black_box(Ok(()))
    }

    fn unsubscribe(&self, notifier: &Arc<dyn MmNotifier>) {
        black_box(notifier);
    }

    fn handle_fault(&self, fault: MmFault) -> FaultOutcome {
        black_box(fault);
        black_box(FaultOutcome::Resolved)
    }

    fn pin(&self, first: u64, last: u64, access: Access) -> Result<(), PinError> {
        black_box((first, last, access));
        black_box(Ok(()))
    }
}

struct Driver;

impl ExitHandler for Driver {
    fn exit(&self, device: &Device, pasid: Option<Pasid>) {
        black_box((device, pasid));
    }
}

#[inline(never)]
fn bonds(iommu: &Iommu<Kernel>, device: &Arc<Device>) {
    let Ok(process) = Arc::try_new(Process(Mutex::new(None))) else { return };
    let mm = unsize_arc!(process => dyn Mm);
    let Ok(driver) = Arc::try_new(Driver) else { return };
    let driver = unsize_arc!(driver => dyn ExitHandler);
    match iommu.bind(device, &mm, black_box(PageRights::all()), driver.clone()) {
        Ok(bond) => {
            debug(&bond);
            black_box(bond.pasid().and_then(|pasid| iommu.bound_mm(bond.device(), pasid)));
            debug(&iommu.handle_page_faults());
            match black_box(0_u8) {
                0 => told(bond.unbind()),
                _ => drop(bond),
            }
        }
        Err(error) => show(&error),
    }
    let ranges = black_box([PinnedRange { first: 0, last: 0xfff, access: Access::READ }; 2]);
    match iommu.attach_pinned(device, &mm, &ranges, driver) {
        Ok(bond) => told(bond.unbind()),
        Err(error) => show(&error),
    }
}
