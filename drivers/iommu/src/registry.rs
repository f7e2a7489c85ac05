//! The registry: units and devices, and the rules that concern several of them.

use crate::iopf::Strays;
use crate::namespace::PasidNamespace;
use crate::sva::Entry;
use crate::{
    AttachError, Device, DeviceDescription, DeviceId, Domain, DomainError, DomainKind, DomainSpec, Fault,
    FaultHandler, FaultLog, PageFaultWork, ReservedKind, Transition, Unit, UnitEvent, UnitId,
};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use portcullis_hal::{Arc, EndpointId, Hal, MapError, OutOfMemory, list};
use spin::{Mutex, RwLock};
use thiserror::Error;

/// Why a device was not registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AddDeviceError {
    /// Its unit is not registered.
    #[error("unit {0} is not registered")]
    UnknownUnit(UnitId),
    /// The name, or one of the endpoint ids on the same unit, is registered already.
    #[error("the device or one of its endpoints is registered already")]
    Duplicate,
    /// The unit did not say which addresses of the device are not free.
    #[error("the unit does not tell the device's reserved regions: {0}")]
    Unit(AttachError),
    /// No memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// All units and devices of a machine.
///
/// A kernel keeps one for its life. Everything but [`handle_interrupt`](Self::handle_interrupt) is for thread context.
pub struct Iommu<H: Hal> {
    pub(crate) hal: H,
    units: RwLock<Vec<Arc<dyn Unit>>>,
    pub(crate) devices: RwLock<Vec<Arc<Device>>>,
    /// Serialises changes of attachments, so that the group rule is checked against a state that stays.
    pub(crate) attaching: Mutex<()>,
    faults: Mutex<FaultLog>,
    lost: AtomicU64,
    /// When the last complaint was logged, and how many were swallowed since.
    complained: AtomicU64,
    swallowed: AtomicU64,
    /// Page requests of nobody that may make any.
    pub(crate) strays: Mutex<Strays>,
    /// A unit has queued more than it was asked for.
    pub(crate) unread: AtomicBool,
    /// With which device the next round of page faults begins.
    pub(crate) turn: AtomicUsize,
    /// The PASIDs of devices that have none of their own.
    pub(crate) system: PasidNamespace,
    /// Address spaces in use. Not held in notifiers.
    pub(crate) bound: Mutex<Vec<Entry>>,
}

/// At most one complaint about hardware goes to the log in this time: devices can cause them at will.
const COMPLAINT_INTERVAL_NS: u64 = 100_000_000;

impl<H: Hal> Iommu<H> {
    /// An empty registry.
    pub const fn new(hal: H) -> Self {
        Self {
            hal,
            units: RwLock::new(Vec::new()),
            devices: RwLock::new(Vec::new()),
            attaching: Mutex::new(()),
            faults: Mutex::new(FaultLog::new()),
            lost: AtomicU64::new(0),
            complained: AtomicU64::new(0),
            swallowed: AtomicU64::new(0),
            strays: Mutex::new(Strays::new()),
            unread: AtomicBool::new(false),
            turn: AtomicUsize::new(0),
            system: PasidNamespace::new(),
            bound: Mutex::new(Vec::new()),
        }
    }

    /// Registers a unit that its driver has brought up, so that it denies everything. It stays for the life of this value.
    ///
    /// # Errors
    ///
    /// No memory, or 65536 units are registered.
    pub fn add_unit(&self, unit: Arc<dyn Unit>) -> Result<UnitId, OutOfMemory> {
        self.hal.critical(|| {
            let mut units = self.units.write();
            let id = u16::try_from(units.len()).map_err(|_| OutOfMemory)?;
            list::push(&mut units, unit)?;
            Ok(UnitId(id))
        })
    }

    pub(crate) fn unit_count(&self) -> usize {
        self.units.read().len()
    }

    /// The unit with this number.
    pub fn unit(&self, id: UnitId) -> Option<Arc<dyn Unit>> {
        self.units.read().get(usize::from(id.0)).cloned()
    }

    /// Calls `visit` for each unit, in order of registration.
    pub fn for_each_unit(&self, mut visit: impl FnMut(UnitId, &Arc<dyn Unit>)) {
        for id in 0..u16::MAX {
            match self.unit(UnitId(id)) {
                Some(unit) => visit(UnitId(id), &unit),
                None => break,
            }
        }
    }

    /// Registers a device; it stays unattached. To the regions that the description reserves are added those that the
    /// unit itself knows of.
    ///
    /// # Errors
    ///
    /// Nothing is registered then.
    pub fn add_device(&self, mut description: DeviceDescription) -> Result<Arc<Device>, AddDeviceError> {
        let unit = self.unit(description.unit).ok_or(AddDeviceError::UnknownUnit(description.unit))?;
        for endpoint in &description.endpoints {
            let regions = unit.reserved(*endpoint).map_err(|error| match error {
                AttachError::OutOfMemory(error) => error.into(),
                error => AddDeviceError::Unit(error),
            })?;
            for region in regions {
                if !description.reserved.contains(&region) {
                    list::push(&mut description.reserved, region)?;
                }
            }
        }
        let device = Arc::try_new(Device::new(description))?;
        self.hal.critical(|| {
            let mut devices = self.devices.write();
            let same = |other: &Arc<Device>| {
                let shares = |endpoint| other.endpoints().contains(endpoint);
                other.id() == device.id()
                    || (other.unit() == device.unit() && device.endpoints().iter().any(shares))
            };
            if devices.iter().any(same) {
                return Err(AddDeviceError::Duplicate);
            }
            list::push(&mut devices, device.clone())?;
            Ok(device.clone())
        })
    }

    /// The device with this name.
    pub fn device(&self, id: DeviceId) -> Option<Arc<Device>> {
        self.devices.read().iter().find(|device| device.id() == id).cloned()
    }

    /// Calls `visit` for each device, in order of registration.
    pub fn for_each_device(&self, mut visit: impl FnMut(&Arc<Device>)) {
        let mut index = 0;
        while let Some(device) = self.device_at(index) {
            visit(&device);
            index += 1;
        }
    }

    pub(crate) fn device_at(&self, index: usize) -> Option<Arc<Device>> {
        self.devices.read().get(index).cloned()
    }

    /// Makes a domain for `device`, and for any other behind this unit or one of the same kind that can do as much. It is
    /// there until its last holder drops it; what it is attached to holds it.
    ///
    /// # Errors
    ///
    /// [`DomainError::Unsupported`] names what the device's unit lacks for it.
    pub fn new_domain(&self, device: &Device, spec: &DomainSpec) -> Result<Arc<dyn Domain>, DomainError> {
        let unit = self.unit(device.unit()).ok_or(DomainError::OutOfMemory(OutOfMemory))?;
        unit.new_domain(spec)
    }

    /// Attaches `device` to `domain`, replacing what it was attached to in one step.
    ///
    /// Regions that the device needs are mapped in a paging domain first, and stay there for whoever is attached to it. A
    /// device that needs memory of the firmware's is not attached to foreign tables.
    ///
    /// # Errors
    ///
    /// The old attachment still works, except as [`AttachError::Timeout`] and [`AttachError::Lost`] say.
    /// [`AttachError::GroupInUse`] while another device of the group is attached to another domain: one goes after the
    /// other, by way of [`detach`](Self::detach). [`AttachError::Incompatible`] if the domain was made for lesser units.
    pub fn attach(&self, device: &Device, domain: &Arc<dyn Domain>) -> Result<Transition, AttachError> {
        let _attaching = self.attaching.lock();
        if !self.group_allows(device, domain) {
            return Err(AttachError::GroupInUse);
        }
        let unit = self.unit(device.unit()).ok_or(AttachError::Faulted)?;
        match domain.kind() {
            DomainKind::Paging => {
                for region in device.reserved() {
                    if let ReservedKind::Direct(mapping) | ReservedKind::Msi(mapping) = &region.kind {
                        mapping.map_into(&**domain).map_err(AttachError::Reserved)?;
                    }
                }
            }
            // Foreign tables cannot be changed here, so a device that needs firmware's memory cannot use them.
            DomainKind::Shared if device.needs_memory() => {
                return Err(AttachError::Reserved(MapError::NotPaging));
            }
            _ => {}
        }
        let _changing = device.changing.lock();
        let result = unit.attach(device.endpoints(), domain);
        match result {
            Ok(_) => *device.domain.lock() = Some(domain.clone()),
            Err(AttachError::Timeout(_) | AttachError::Lost) => *device.domain.lock() = None,
            Err(_) => {}
        }
        result
    }

    /// Detaches `device` and all its PASIDs: it reaches nothing any more, and its attempts are recorded.
    ///
    /// # Errors
    ///
    /// The hardware did not confirm it: [`AttachError::Timeout`], or [`AttachError::Faulted`] if it failed before. The
    /// device counts as detached all the same, and its PASIDs are not used again.
    pub fn detach(&self, device: &Device) -> Result<(), AttachError> {
        let _attaching = self.attaching.lock();
        let unit = self.unit(device.unit()).ok_or(AttachError::Faulted)?;
        let changing = device.changing.lock();
        let result = unit.detach(device.endpoints());
        *device.domain.lock() = None;
        device.forget_pasids(result.is_ok());
        drop(changing);
        result
    }

    /// Whether nobody in the device's group is attached to another domain.
    fn group_allows(&self, device: &Device, domain: &Arc<dyn Domain>) -> bool {
        self.devices.read().iter().all(|other| {
            let stranger = other.group() == device.group() && !other.is(device);
            !stranger || other.domain.lock().as_ref().is_none_or(|theirs| Arc::ptr_eq(theirs, domain))
        })
    }

    /// Sets who is told of the device's faults, besides the log; `None` for nobody. When it returns, the handler before
    /// does not run any more.
    pub fn set_fault_handler(&self, device: &Device, handler: Option<Arc<dyn FaultHandler>>) {
        let old = self.hal.critical(|| core::mem::replace(&mut *device.handler.lock(), handler));
        drop(old);
    }

    /// Reads what a unit has queued for software, logs faults and tells their owners, and queues page requests for
    /// [`handle_page_faults`](Self::handle_page_faults). For interrupt handlers; it never waits for hardware.
    ///
    /// If there is [more](PageFaultWork::More) to do, a thread has to call that, whether devices use page faults or not:
    /// where faults came faster than they could be read, no interrupt tells of the rest.
    pub fn handle_interrupt(&self, unit: UnitId) -> PageFaultWork {
        self.hal.critical(|| {
            let mut work = PageFaultWork::Done;
            let Some(hardware) = self.unit(unit) else { return work };
            hardware.handle_interrupt(&mut |event| {
                if let UnitEvent::PageRequest(_) | UnitEvent::Unread = event {
                    work = PageFaultWork::More;
                }
                self.event(unit, event);
            });
            work
        })
    }

    /// Takes note of what is no page request. Interrupts are masked.
    pub(crate) fn take_event(&self, unit: UnitId, event: UnitEvent) {
        match event {
            UnitEvent::Fault(record) => {
                let device = self.owner(unit, record.endpoint);
                let fault = Fault { unit, device: device.as_ref().map(|device| device.id()), record };
                if let Some(device) = device {
                    device.deliver(&fault);
                }
                self.faults.lock().push(fault);
            }
            UnitEvent::Overflow => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                self.complain(unit, "faults were lost", None);
            }
            UnitEvent::QueueError => self.complain(unit, "the command queue stopped at an error", None),
            UnitEvent::UnitError { name, value } => self.complain(unit, name, Some(value)),
            UnitEvent::Unread => self.unread.store(true, Ordering::Release),
            UnitEvent::PageRequest(_) | UnitEvent::PageRequestOverflow => {}
        }
    }

    /// Logs what a unit complains of, unless something was logged just now.
    pub(crate) fn complain(&self, unit: UnitId, what: &str, value: Option<u32>) {
        let now = self.hal.now_ns();
        let last = self.complained.load(Ordering::Relaxed);
        if last != 0 && now.saturating_sub(last) < COMPLAINT_INTERVAL_NS {
            self.swallowed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.complained.store(now.max(1), Ordering::Relaxed);
        let swallowed = self.swallowed.swap(0, Ordering::Relaxed);
        match value {
            Some(value) => {
                log::warn!("{unit}: {what} ({value:#x}); {swallowed} complaints before were not logged")
            }
            None => log::warn!("{unit}: {what}; {swallowed} complaints before were not logged"),
        }
    }

    /// In one place, as all that asks is rare.
    #[inline(never)]
    pub(crate) fn owner(&self, unit: UnitId, endpoint: EndpointId) -> Option<Arc<Device>> {
        let devices = self.devices.read();
        devices.iter().find(|device| device.unit() == unit && device.endpoints().contains(&endpoint)).cloned()
    }

    /// Takes the oldest fault from the log, which keeps the first 64 that nobody took yet.
    pub fn next_fault(&self) -> Option<Fault> {
        self.hal.critical(|| self.faults.lock().pop())
    }

    /// Faults that the log had no room for.
    pub fn faults_dropped(&self) -> u64 {
        self.hal.critical(|| self.faults.lock().dropped())
    }

    /// How often hardware said that it lost faults.
    pub fn overflows(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}
