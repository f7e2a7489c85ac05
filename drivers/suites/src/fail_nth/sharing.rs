//! Address spaces that devices share, and their page faults.

use super::bed::{AREA, Bed, pasid};
use super::rows::{Act, Lack, Row, Seen, row};
use super::{Failed, exempt, unfailing};
use portcullis_hal::host::scarce::ScarceHal;
use portcullis_hal::{
    Access, Arc, FaultOutcome, Mm, MmFault, MmNotifier, Pasid, PinError, RequesterId, SubscribeError,
    SyncError, TableRoot, list, unsize_arc,
};
use portcullis_iommu::{
    AttachError, BindError, Bond, Device, DeviceDescription, DeviceId, DomainError, EnableError, ExitHandler,
    FaultGroup, FaultModels, Feature, FeatureError, GroupId, Handled, PageFaultError, PageFaultHandler,
    PageFaultWork, PageResponse, PageRights, PasidError, Permissions, PinnedRange, Requests, UnitId,
    Unswitched,
};
use std::sync::Mutex;

impl From<BindError> for Failed {
    fn from(error: BindError) -> Self {
        match error {
            BindError::OutOfMemory(_)
            | BindError::Pasid(PasidError::OutOfMemory(_))
            | BindError::Domain(DomainError::OutOfMemory(_))
            | BindError::Attach(AttachError::OutOfMemory(_))
            | BindError::Pin(PinError::OutOfMemory(_)) => Self::OutOfMemory,
            other => Self::Otherwise(other.to_string()),
        }
    }
}

impl From<FeatureError> for Failed {
    fn from(error: FeatureError) -> Self {
        match error {
            FeatureError::Switch(EnableError::Unit(AttachError::OutOfMemory(_))) => Self::OutOfMemory,
            other => Self::Otherwise(other.to_string()),
        }
    }
}

impl From<PageFaultError> for Failed {
    fn from(error: PageFaultError) -> Self {
        match error {
            PageFaultError::OutOfMemory(_) => Self::OutOfMemory,
            other => Self::Otherwise(other.to_string()),
        }
    }
}

/// A process with the machine's tables.
struct Process {
    root: TableRoot,
    notifiers: Mutex<Vec<Arc<dyn MmNotifier>>>,
}

// SAFETY: the tables live as long as the machine, and nothing is mapped in them.
#[expect(unsafe_code, reason = "vouches for tables")]
unsafe impl Mm for Process {
    fn root(&self) -> TableRoot {
        self.root
    }

    fn subscribe(&self, notifier: Arc<dyn MmNotifier>) -> Result<(), SubscribeError> {
        Ok(list::push(&mut self.notifiers.lock().unwrap(), notifier)?)
    }

    fn unsubscribe(&self, notifier: &Arc<dyn MmNotifier>) {
        self.notifiers.lock().unwrap().retain(|other| !Arc::ptr_eq(other, notifier));
    }

    fn handle_fault(&self, _: MmFault) -> FaultOutcome {
        FaultOutcome::Resolved
    }

    fn pin(&self, _: u64, _: u64, _: Access) -> Result<(), PinError> {
        Ok(())
    }
}

/// A driver that has nothing to quiesce, and a handler that has every page.
struct Driver;

impl ExitHandler for Driver {
    fn exit(&self, _: &Device, _: Option<Pasid>) {}
}

impl PageFaultHandler for Driver {
    fn handle(&self, group: FaultGroup) -> Handled {
        Handled::Now(group, PageResponse::Success)
    }
}

/// Registers two devices.
pub(super) fn registered(bed: &Bed) -> Result<(), Failed> {
    bed.iommu.add_unit(bed.unit.clone())?;
    for (endpoint, at) in bed.endpoints.into_iter().zip(0_u16..2) {
        bed.iommu.add_device(DeviceDescription {
            id: id(at),
            unit: UnitId(0),
            endpoints: vec![endpoint],
            group: GroupId(u32::from(at)),
            reserved: Vec::new(),
        })?;
    }
    Ok(())
}

fn id(at: u16) -> DeviceId {
    DeviceId::Pci(RequesterId::from_bdf(0, 8 + at))
}

pub(super) fn device(bed: &Bed, at: u16) -> Result<Arc<Device>, Failed> {
    bed.iommu.device(id(at)).ok_or_else(|| Failed::Otherwise("no device".to_string()))
}

fn process(bed: &Bed) -> Result<Arc<dyn Mm>, Failed> {
    Ok(unsize_arc!(new_process(bed)? => dyn Mm))
}

fn new_process(bed: &Bed) -> Result<Arc<Process>, Failed> {
    let process = Process { root: bed.board.address_space(), notifiers: Mutex::new(Vec::new()) };
    Ok(Arc::try_new(process)?)
}

/// With a device bound to a process, for which there is memory, does what `act` does to the process.
fn with_bond(
    bed: &Bed,
    act: impl FnOnce(&Process, Bond<'_, ScarceHal>) -> Result<(), Failed>,
) -> Result<(), Failed> {
    let process = unfailing(|| new_process(bed))?;
    let mm = unsize_arc!(process.clone() => dyn Mm);
    let bond = unfailing(|| bind(bed, 0, &mm))?;
    act(&process, bond)
}

/// Tells the one notifier of a process.
fn notify(
    process: &Process,
    tell: impl FnOnce(&dyn MmNotifier) -> Result<(), SyncError>,
) -> Result<(), Failed> {
    let notifier = process.notifiers.lock().unwrap().first().cloned();
    let notifier = notifier.ok_or_else(|| Failed::Otherwise("nobody listens".to_string()))?;
    Ok(tell(&*notifier)?)
}

fn driver() -> Result<Arc<dyn ExitHandler>, Failed> {
    Ok(unsize_arc!(Arc::try_new(Driver)? => dyn ExitHandler))
}

fn enable(bed: &Bed, at: u16, requests: Requests) -> Result<(), Failed> {
    let root = bed.board.address_space();
    let control = Unswitched(Permissions { pasid_bits: 6, requests });
    Ok(bed.iommu.enable_feature(&*device(bed, at)?, &control, Feature::Sva, &root)?)
}

fn bind<'a>(bed: &'a Bed, at: u16, mm: &Arc<dyn Mm>) -> Result<Bond<'a, ScarceHal>, Failed> {
    let (device, driver) = (device(bed, at)?, unfailing(driver)?);
    Ok(bed.iommu.bind(&device, mm, PageRights::empty(), driver)?)
}

fn handle_with_driver(bed: &Bed) -> Result<(), Failed> {
    let handler = unfailing(|| Arc::try_new(Driver))?;
    let handler = unsize_arc!(handler => dyn PageFaultHandler);
    let device = device(bed, 0)?;
    Ok(bed.iommu.set_page_fault_handler(&device, Some(pasid()?), handler, PageRights::empty())?)
}

/// What concerns address spaces and page faults, for each way in which the unit recovers faults.
pub(super) fn rows(bed: &Bed) -> Vec<Row> {
    let models = [
        ("page requests", FaultModels::PRI, Requests::TRANSLATION | Requests::PAGE),
        ("stalls", FaultModels::STALL, Requests::STALL),
    ];
    let has = |model: &FaultModels| bed.unit.info().fault_models.contains(*model);
    let mut rows = Vec::from([row("attach pinned", Seen::No, registered, attach_pinned)]);
    for (name, _, requests) in models.into_iter().filter(|(_, model, _)| has(model)) {
        rows.extend(binds(name, requests));
    }
    if has(&FaultModels::PRI) {
        rows.push(Row {
            lack: Lack::Absorbed,
            ..row("page faults: a group", Seen::No, attached, page_faults)
        });
    }
    rows
}

fn binds(name: &str, requests: Requests) -> Vec<Row> {
    let enabled = move |bed: &Bed| {
        registered(bed)?;
        enable(bed, 0, requests)?;
        enable(bed, 1, requests)
    };
    let handled = move |bed: &Bed| {
        enabled(bed)?;
        handle_with_driver(bed)
    };
    let enabled = || -> Act { Box::new(enabled) };
    // What comes first is given memory.
    let after = |other: u16| -> Act {
        Box::new(move |bed| {
            let mm = unfailing(|| process(bed))?;
            let _first = unfailing(|| bind(bed, other, &mm))?;
            bind(bed, 0, &mm).map(drop)
        })
    };
    Vec::from([
        row(&format!("enable, {name}"), Seen::No, registered, move |bed| enable(bed, 0, requests)),
        row(&format!("bind, {name}"), Seen::No, enabled(), |bed| {
            let mm = unfailing(|| process(bed))?;
            // It ends at once, for which nothing is allocated.
            bind(bed, 0, &mm).map(drop)
        }),
        row(&format!("bind once more, {name}"), Seen::No, enabled(), after(0)),
        row(&format!("bind after another device, {name}"), Seen::No, enabled(), after(1)),
        row(&format!("page fault handler, {name}"), Seen::No, enabled(), handle_with_driver),
        row(&format!("page fault handler removed, {name}"), Seen::No, handled, |bed| {
            Ok(bed.iommu.remove_page_fault_handler(&*device(bed, 0)?, Some(pasid()?))?)
        }),
        row(&format!("disable, {name}"), Seen::No, enabled(), move |bed| {
            let control = Unswitched(Permissions { pasid_bits: 6, requests });
            Ok(bed.iommu.disable_feature(&*device(bed, 0)?, &control, Feature::Sva)?)
        }),
        row(&format!("unbind, {name}"), Seen::No, enabled(), |bed| {
            with_bond(bed, |_, bond| bond.unbind().map_err(|error| Failed::Otherwise(error.to_string())))
        }),
        row(&format!("a process unmaps, {name}"), Seen::No, enabled(), |bed| {
            with_bond(bed, |process, _bond| {
                notify(process, |notifier| notifier.invalidate(AREA, AREA + 0xfff))?;
                notify(process, |notifier| notifier.invalidate(0, u64::MAX))
            })
        }),
        row(&format!("a process exits, {name}"), Seen::No, enabled(), |bed| {
            with_bond(bed, |process, _bond| notify(process, |notifier| notifier.release()))
        }),
    ])
}

fn attach_pinned(bed: &Bed) -> Result<(), Failed> {
    let (mm, driver) = (unfailing(|| process(bed))?, unfailing(driver)?);
    let range = |first| PinnedRange { first, last: first + 0xfff, access: Access::READ };
    let ranges = [range(0x1000), range(0x5000)];
    Ok(bed.iommu.attach_pinned(&device(bed, 0)?, &mm, &ranges, driver).map(drop)?)
}

/// A device that asks for pages, with a handler.
fn attached(bed: &Bed) -> Result<(), Failed> {
    registered(bed)?;
    enable(bed, 0, Requests::TRANSLATION | Requests::PAGE)?;
    bed.iommu.attach_pasid(&*device(bed, 0)?, pasid()?, &bed.paging()?.new)?;
    handle_with_driver(bed)
}

/// The device asks for three pages, and gets its answer in any case: without memory, it asks again for those that were
/// left out.
fn page_faults(bed: &Bed) -> Result<(), Failed> {
    let pasid = pasid()?;
    exempt(|| bed.board.ask(pasid, 3));
    let _more = bed.iommu.handle_interrupt(UnitId(0));
    let work = bed.iommu.handle_page_faults();
    match exempt(|| bed.board.unanswered()) {
        0 if work == PageFaultWork::Done => Ok(()),
        waiting => Err(Failed::Otherwise(format!("{waiting} groups wait for an answer"))),
    }
}
