//! The machine: what firmware describes, brought to the state in which every device is denied everything.

#![expect(unsafe_code, reason = "vouches for what firmware says about reserved memory")]

mod bus;
mod deny;
mod firmware;
mod platform;
mod predecessor;
mod vm;

use crate::devices::{edu, test_device};
use crate::memory::KernelHal;
use crate::report::words;
use crate::report::{self, Report};
use crate::units::{self, Units};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use portcullis_arch::{BootInfo, interrupts, smp};
use portcullis_firmware::{
    CpuState, ReservedKind as FirmwareReserved, StreamRange, Topology, UnitKind, VirtioTransport,
};
use portcullis_hal::{
    Arc, Attributes, FixedMapping, Iova, IovaRange, Mapping, MmioRegion, MsiMessage, PAGE_SIZE, PhysAddr,
    PhysRange, RequesterId,
};
use portcullis_iommu::{
    Device, DeviceDescription, DeviceId, GroupId, Iommu, PlatformName, ReservedKind, ReservedRegion, UnitId,
};
use portcullis_pci::{ConfigSpace, Function};
use spin::Once;

pub(crate) use bus::{Bus, registers};
pub(crate) use predecessor::Start;
pub(crate) use vm::vm_table;

/// The registry on this kernel.
pub(crate) type KernelIommu = Iommu<KernelHal>;

static IOMMU: KernelIommu = Iommu::new(KernelHal);
static MACHINE: Once<Machine> = Once::new();
static EDUS: Once<Vec<edu::Edu>> = Once::new();

/// Where MSI doorbells appear in paging domains, on machines whose MSI writes are translated.
const MSI_WINDOW: u64 = 0x0800_0000;

/// The stack of the second CPU, in bytes.
const STACK: usize = 256 * 1024;

/// A PCI function that the registry knows.
pub(crate) struct PciDevice {
    pub(crate) index: usize,
    pub(crate) function: Function,
    pub(crate) device: Arc<Device>,
}

/// An `edu`, with how its transfers end.
pub(crate) struct EduRig {
    pub(crate) edu: &'static edu::Edu,
    pub(crate) device: Arc<Device>,
    pub(crate) function: usize,
    pub(crate) completion: edu::Completion,
}

/// An `iommu-testdev`.
pub(crate) struct TestRig {
    pub(crate) test: test_device::TestDevice,
    pub(crate) device: Arc<Device>,
    pub(crate) function: usize,
}

/// How many CPUs the jobs have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cpus {
    One,
    /// Or more, which stay off.
    Two,
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One => "firmware describes one CPU only",
            Self::Two => "firmware describes two CPUs",
        })
    }
}

/// Everything the jobs work with.
pub(crate) struct Machine {
    pub(crate) iommu: &'static KernelIommu,
    pub(crate) config: ConfigSpace<MmioRegion>,
    pub(crate) edus: Vec<EduRig>,
    pub(crate) test_devices: Vec<TestRig>,
    functions: Vec<Function>,
    devices: Vec<PciDevice>,
    windows: Vec<[Option<PhysRange>; 6]>,
    second_cpu: Option<smp::CpuId>,
    /// Functions whose registers have been given to other devices; one bit each.
    retired: AtomicU64,
}

/// Units without an interrupt, by number; one bit each.
static POLLED: AtomicU64 = AtomicU64::new(0);

/// Notes that a unit has no interrupt.
pub(crate) fn poll(unit: UnitId) {
    POLLED.fetch_or(1_u64.checked_shl(u32::from(unit.0)).unwrap_or(0), Ordering::Relaxed);
}

/// Looks after the units that have no interrupt, and leaves the others to theirs.
pub(crate) fn service_polled_units() {
    let polled = POLLED.load(Ordering::Relaxed);
    for unit in (0..64).filter(|unit| polled >> unit & 1 != 0) {
        let _more = IOMMU.handle_interrupt(UnitId(unit));
    }
}

/// The registry.
pub(crate) fn iommu() -> &'static KernelIommu {
    &IOMMU
}

impl Machine {
    /// Discovers everything, starts the units and registers the devices; every device is denied everything then.
    pub(crate) fn discover(
        boot: &BootInfo,
        start: Start,
        report: &mut Report,
    ) -> Result<&'static Self, String> {
        report.section("Discovery");
        let mut topology = firmware::read(boot).map_err(words)?;
        for warning in &topology.warnings {
            report::text(format_args!("  firmware: {warning}"));
        }
        platform::start_interrupts(&topology)?;
        portcullis_arch::cpu::enable_interrupts();
        let bus = Bus::discover(&mut topology)?;
        describe(&topology, &bus);
        let units = topology.units.len();
        report
            .check("discover.units", if units > 0 { Ok(format!("{units} found")) } else { Err("no IOMMU") });
        report.check("discover.covered", all_covered(&topology, &bus));

        report.section("Deny by default");
        let canary = deny::Canary::new()?;
        let edus = start_edus(&bus)?;
        if start == Start::LeftOpen {
            report.check("deny.predecessor", predecessor::leave_open(&topology, &bus, edus, &canary));
        }
        // Where firmware or reset leaves the bus open, the units close it before anything else.
        let prepared = units::prepare(&topology, &bus)?;
        report.check("deny.closed", deny::while_closed(&bus, edus, &prepared, start, &canary));
        let units = prepared.enable(&IOMMU, &bus)?;
        describe_units();
        let devices = register_devices(&topology, &bus, &units)?;
        let machine = Self::assemble(&topology, bus, devices, edus)?;
        let machine = MACHINE.call_once(|| machine);
        report.check("deny.unattached", deny::unattached(machine, &canary));
        Ok(machine)
    }

    fn assemble(
        topology: &Topology,
        bus: Bus,
        devices: Vec<PciDevice>,
        edus: &'static [edu::Edu],
    ) -> Result<Self, String> {
        let mut rigs = Vec::new();
        let mut test_devices = Vec::new();
        for device in &devices {
            let id = (device.function.vendor, device.function.device);
            if id == edu::ID {
                let number = rigs.len();
                let edu = edus.get(number).ok_or("an edu device came late")?;
                let completion = connect_edu(topology, &bus, device, number)?;
                rigs.push(EduRig { edu, device: device.device.clone(), function: device.index, completion });
            } else if id == test_device::ID
                && let Some(test) = test_device::TestDevice::new(bus.registers(device.index, 0)?)
            {
                test_devices.push(TestRig { test, device: device.device.clone(), function: device.index });
            }
        }
        let boot_cpu = smp::boot_cpu();
        let others = topology
            .cpus
            .iter()
            .filter(|cpu| cpu.state == CpuState::Enabled)
            .map(|cpu| platform::cpu_id(cpu.id));
        let second_cpu = others.into_iter().find(|id| *id != boot_cpu);
        let windows = (0..bus.functions.len())
            .map(|index| core::array::from_fn(|bar| bus.window(index, bar as u8)))
            .collect();
        Ok(Self {
            iommu: &IOMMU,
            config: bus.config,
            edus: rigs,
            test_devices,
            functions: bus.functions,
            devices,
            windows,
            second_cpu,
            retired: AtomicU64::new(0),
        })
    }

    /// The first registered function with this vendor and device id.
    pub(crate) fn function(&self, id: (u16, u16)) -> Option<&PciDevice> {
        self.devices.iter().find(|device| (device.function.vendor, device.function.device) == id)
    }

    /// The PCI function behind a device.
    pub(crate) fn function_of(&self, id: DeviceId) -> Option<&PciDevice> {
        self.devices.iter().find(|known| known.device.id() == id)
    }

    /// Lets a function, by its place in the enumeration, master the bus.
    /// Nothing happens for one whose registers another device may write.
    pub(crate) fn enable_bus_master(&self, index: usize) {
        if !self.is_retired(index) {
            portcullis_pci::enable_bus_master(&self.config, &self.functions, index);
        }
    }

    /// Whether a function's registers have been given away, so that it must never issue DMA again.
    pub(crate) fn is_retired(&self, index: usize) -> bool {
        self.retired.load(Ordering::Relaxed) >> index.min(63) & 1 != 0
    }

    /// The window of a device, for another device to write to. Whoever writes its registers commands it, so from then on
    /// it may not master the bus: no DMA, no interrupts.
    pub(crate) fn window(&self, device: &Device, bar: u8) -> Result<PhysRange, String> {
        let known = self.function_of(device.id()).ok_or("not a PCI device")?;
        if known.function.msix.is_some() || known.function.buses().is_some() {
            return Err("windows of this device are not to be mapped".to_string());
        }
        let windows = self.windows.get(known.index).ok_or("no such function")?;
        let window = windows.get(usize::from(bar)).copied().flatten().ok_or("no such window")?;
        if known.index >= 63 {
            return Err("too many functions to keep track of".to_string());
        }
        self.retired.fetch_or(1 << known.index, Ordering::Relaxed);
        portcullis_pci::disable_bus_master(&self.config, known.function.id);
        Ok(window)
    }

    /// A device's ids and class, for humans.
    pub(crate) fn what_is(&self, id: DeviceId) -> String {
        self.function_of(id).map_or_else(|| "platform".to_string(), |device| what_is(&device.function))
    }

    /// How many CPUs the job can have.
    pub(crate) fn cpus(&self) -> Cpus {
        if self.second_cpu.is_some() { Cpus::Two } else { Cpus::One }
    }

    /// Starts the second CPU.
    pub(crate) fn start_second_cpu(&self, entry: fn(usize) -> !) -> Result<String, String> {
        let cpu = self.second_cpu.ok_or_else(|| words(Cpus::One))?;
        let stack: &'static mut [u8] = Box::leak(alloc::vec![0; STACK].into_boxed_slice());
        smp::start(cpu, 1, stack, entry).map_err(words)?;
        Ok(format!("CPU 1 ({:#x}) runs", cpu.0))
    }
}

fn what_is(function: &Function) -> String {
    format!("{:04x}:{:04x}:{:?}", function.vendor, function.device, function.class.device_type())
}

/// Whether every function that can issue DMA is behind a unit. A unit that is a PCI function itself is behind none.
fn all_covered(topology: &Topology, bus: &Bus) -> Result<String, String> {
    let is_unit = |function: &Function| {
        topology.units.iter().any(|unit| match &unit.kind {
            UnitKind::VirtioIommu(virtio) => virtio.transport == VirtioTransport::Pci(function.id),
            UnitKind::Smmuv3(_) | UnitKind::Vtd(_) => false,
        })
    };
    let bare = |function: &&Function| {
        !function.class.is_host_bridge() && topology.unit_of(function.id).is_none() && !is_unit(function)
    };
    match bus.functions.iter().find(bare) {
        Some(function) => Err(format!("{} is behind no unit", function.id)),
        None => Ok(format!("each of {} functions", bus.functions.len())),
    }
}

fn describe(topology: &Topology, bus: &Bus) {
    for (index, unit) in topology.indexed_units() {
        report::text(format_args!("  {index}: {}", firmware::describe_unit(unit)));
    }
    for (function, group) in bus.functions.iter().zip(&bus.groups) {
        let unit = topology.unit_of(function.id).map_or_else(
            || "no unit".to_string(),
            |(unit, endpoint)| format!("{unit} as {:#x}", endpoint.get()),
        );
        report::text(format_args!("  {} {} {unit}, group {}", function.id, what_is(function), group.get()));
    }
    for device in &topology.platform_devices {
        let streams: Vec<String> = device
            .streams
            .iter()
            .map(|range| format!("{} {:#x}-{:#x}", range.unit, range.first.get(), range.last.get()))
            .collect();
        report::text(format_args!("  {} {}", device.name, streams.join(", ")));
    }
}

fn describe_units() {
    IOMMU.for_each_unit(|id, unit| {
        let info = unit.info();
        report::text(format_args!(
            "  {id}: {}, {}, {} to {} bits, pages {:#x}, PASIDs of {} bits, tables {}, identity {}",
            info.backend,
            info.stages,
            info.input_bits,
            info.output_bits,
            info.page_sizes,
            info.pasid_bits,
            info.table_coherency,
            info.identity
        ));
    });
}

/// The `edu` devices' registers, so that they can be tried before the units are up.
fn start_edus(bus: &Bus) -> Result<&'static [edu::Edu], String> {
    let mut edus = Vec::new();
    for (index, function) in bus.functions.iter().enumerate() {
        if (function.vendor, function.device) == edu::ID {
            edus.push(
                edu::Edu::new(bus.registers(index, 0)?).ok_or("an edu device without its identification")?,
            );
        }
    }
    Ok(EDUS.call_once(|| edus))
}

fn edu_interrupt(number: usize) {
    if let Some(edu) = EDUS.get().and_then(|edus| edus.get(number)) {
        edu.handle_interrupt();
    }
}

/// Gives an `edu` its MSI, at the address where its domains map the doorbell.
fn connect_edu(
    topology: &Topology,
    bus: &Bus,
    device: &PciDevice,
    number: usize,
) -> Result<edu::Completion, String> {
    let Some(msi) = &device.function.msi else {
        return Ok(edu::Completion::Poll);
    };
    let controller_id = topology.msi_device_id(device.function.id).map_or(0, |target| target.device_id);
    let message = interrupts::allocate_msi(controller_id, edu_interrupt, number).map_err(words)?;
    let address = msi_address(&device.device, message);
    msi.program(&bus.config, address, message.data).map_err(words)?;
    msi.enable(&bus.config);
    Ok(edu::Completion::Interrupt)
}

/// What a device has to write to so that `message` arrives: where its domains map the doorbell, or the doorbell's own
/// address where MSIs are not translated.
fn msi_address(device: &Device, message: MsiMessage) -> Iova {
    let doorbell = device.reserved().iter().find_map(|region| match &region.kind {
        ReservedKind::Msi(mapping) => {
            mapping.mapping().memory.contains(message.address).then_some(*mapping.mapping())
        }
        _ => None,
    });
    match doorbell {
        Some(mapping) => {
            Iova::new(mapping.iova.get() + (message.address.get() - mapping.memory.start().get()))
        }
        None => Iova::new(message.address.get()),
    }
}

fn register_devices(topology: &Topology, bus: &Bus, units: &Units) -> Result<Vec<PciDevice>, String> {
    let mut devices = Vec::new();
    for (index, (function, group)) in bus.functions.iter().zip(&bus.groups).enumerate() {
        let Some((unit, endpoint)) = topology.unit_of(function.id) else {
            continue;
        };
        // Bridges issue no DMA of their own here, but a device behind one may use its id.
        let Some(unit) = units.id(unit) else { continue };
        let description = DeviceDescription {
            id: DeviceId::Pci(function.id),
            unit,
            endpoints: alloc::vec![endpoint],
            group: GroupId(group.get()),
            reserved: reserved(topology, bus, function)?,
        };
        let device = IOMMU.add_device(description).map_err(words)?;
        devices.push(PciDevice { index, function: function.clone(), device });
    }
    let first_group = bus.functions.len() as u32;
    for (index, platform) in topology.platform_devices.iter().enumerate() {
        let Some(stream) = platform.streams.first() else {
            continue;
        };
        let Some(unit) = units.id(stream.unit) else {
            continue;
        };
        let mut endpoints = Vec::new();
        let streams = platform.streams.iter().filter(|range| range.unit == stream.unit);
        endpoints.extend(streams.flat_map(|range| range.endpoints().take(256)));
        let description = DeviceDescription {
            id: DeviceId::Platform(PlatformName::new(&platform.name)),
            unit,
            endpoints,
            group: GroupId(first_group + index as u32),
            reserved: reserved_streams(topology, stream)?,
        };
        IOMMU.add_device(description).map_err(words)?;
    }
    Ok(devices)
}

/// What firmware set aside for the first stream of a platform device, which it shares with its others.
fn reserved_streams(topology: &Topology, stream: &StreamRange) -> Result<Vec<ReservedRegion>, String> {
    let mut regions = Vec::new();
    for region in topology.reserved_for_stream(stream.unit, stream.first) {
        let kind = match region.kind {
            FirmwareReserved::Direct | FirmwareReserved::DirectRelaxable => {
                ReservedKind::Direct(direct(region.range)?)
            }
            FirmwareReserved::Msi | FirmwareReserved::Reserved => ReservedKind::Excluded,
        };
        regions.push(ReservedRegion { range: region.range, kind });
    }
    Ok(regions)
}

/// Memory that firmware set aside, at its own address.
fn direct(range: IovaRange) -> Result<FixedMapping, String> {
    let memory = PhysRange::new(PhysAddr::new(range.start().get()), range.len()).map_err(words)?;
    let mapping = Mapping { iova: range.start(), memory, attributes: Attributes::READ_WRITE };
    // SAFETY: firmware set the memory aside for this device; it is not in the memory map.
    Ok(unsafe { FixedMapping::new(mapping) })
}

/// What firmware set aside for a function.
pub(crate) fn direct_mappings(topology: &Topology, id: RequesterId) -> Result<Vec<FixedMapping>, String> {
    let mut mappings = Vec::new();
    for region in topology.reserved_for(id) {
        if !matches!(region.kind, FirmwareReserved::Direct | FirmwareReserved::DirectRelaxable) {
            continue;
        }
        mappings.push(direct(region.range)?);
    }
    Ok(mappings)
}

/// What must be mapped for a function, and where nothing may be.
fn reserved(topology: &Topology, bus: &Bus, function: &Function) -> Result<Vec<ReservedRegion>, String> {
    let mut regions = Vec::new();
    for mapping in direct_mappings(topology, function.id)? {
        regions.push(ReservedRegion { range: mapping.range(), kind: ReservedKind::Direct(mapping) });
    }
    for region in topology.reserved_for(function.id) {
        if matches!(region.kind, FirmwareReserved::Msi | FirmwareReserved::Reserved) {
            regions.push(ReservedRegion { range: region.range, kind: ReservedKind::Excluded });
        }
    }
    if let Some(doorbell) = platform::doorbell(topology, function.id) {
        let page = PhysRange::block(doorbell, PAGE_SIZE);
        let mapping = Mapping { iova: Iova::new(MSI_WINDOW), memory: page, attributes: Attributes::DOORBELL };
        // SAFETY: the page holds the doorbell and nothing else.
        let mapping = unsafe { FixedMapping::new(mapping) };
        regions.push(ReservedRegion { range: mapping.range(), kind: ReservedKind::Msi(mapping) });
    }
    for (first, last) in bus.peer_addresses().into_iter().flatten() {
        let range = IovaRange::from_bounds(Iova::new(first), Iova::new(last)).map_err(words)?;
        regions.push(ReservedRegion { range, kind: ReservedKind::Excluded });
    }
    Ok(regions)
}
