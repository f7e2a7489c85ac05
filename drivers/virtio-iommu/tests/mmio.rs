//! A virtio-iommu in a window of registers, which holds the driver to the specification's rules (virtio 1.2, 4.2).
mod support;

use portcullis_hal::{EndpointId, Iova, PhysAddr};
use portcullis_iommu::{DomainSpec, FaultReason, PagingSpec, Unit, UnitEvent};
use portcullis_virtio_iommu::spec::DeviceStatus;
use portcullis_virtio_iommu::{
    InitError, MmioProbeError, MmioTransport, MsixVector, NotTaken, QueueIndex, QueueLayout, Registers,
    Setup, Transport, Vectors, VirtioIommu,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use support::*;

/// What a register is for the driver.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
    Both,
}

/// Every register of 4.2.2 but those of shared memory and of single queues' resets, which are not for this driver.
const REGISTERS: [(usize, Access); 23] = [
    (0x000, Access::Read),
    (0x004, Access::Read),
    (0x008, Access::Read),
    (0x00c, Access::Read),
    (0x010, Access::Read),
    (0x014, Access::Write),
    (0x020, Access::Write),
    (0x024, Access::Write),
    (0x030, Access::Write),
    (0x034, Access::Read),
    (0x038, Access::Write),
    (0x044, Access::Both),
    (0x050, Access::Write),
    (0x060, Access::Read),
    (0x064, Access::Write),
    (0x070, Access::Both),
    (0x080, Access::Write),
    (0x084, Access::Write),
    (0x090, Access::Write),
    (0x094, Access::Write),
    (0x0a0, Access::Write),
    (0x0a4, Access::Write),
    (0x0fc, Access::Read),
];

#[derive(Clone, Copy, Debug, Default)]
struct Queue {
    size: u32,
    ready: u32,
    /// Descriptors, available and used ring, in halves.
    addresses: [[u32; 2]; 3],
}

#[derive(Debug)]
struct Window {
    magic: u32,
    version: u32,
    device: u32,
    /// The last value of each select register, once there was one.
    device_features_sel: Option<u32>,
    driver_features_sel: Option<u32>,
    queue_sel: Option<u32>,
    driver_features: [u32; 2],
    queues: [Queue; 2],
    interrupt: u32,
    /// How often the driver looked for interrupts and acknowledged some.
    acknowledged: Vec<u32>,
    /// What QueueReady reads, whatever was written.
    stuck_ready: Option<u32>,
    /// Bits of Status beyond the field.
    status_beyond: u32,
    /// How often the configuration changes yet, each time that ConfigGeneration is read. Until then it is half written.
    changes: u32,
}

/// The window, and the device behind it.
#[derive(Clone)]
struct Device {
    fake: Fake,
    window: Arc<Mutex<Window>>,
}

impl Device {
    fn new() -> Self {
        let window = Window {
            magic: 0x7472_6976,
            version: 2,
            device: 23,
            device_features_sel: None,
            driver_features_sel: None,
            queue_sel: None,
            driver_features: [0; 2],
            queues: [Queue::default(); 2],
            interrupt: 0,
            acknowledged: Vec::new(),
            stuck_ready: None,
            status_beyond: 0,
            changes: 0,
        };
        Self { fake: Fake::new(), window: Arc::new(Mutex::new(window)) }
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        // A rule that was broken is reported as such, and not as a panic while the driver resets the device.
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn transport(&self) -> MmioTransport<Self> {
        MmioTransport::probe(self.clone()).unwrap()
    }

    fn up(&self) -> VirtioIommu<memory::TestHal, MmioTransport<Self>> {
        Setup::new(self.fake.hal.clone(), self.transport(), options()).unwrap().enable().unwrap()
    }
}

/// One of the device's queues; others must not be used.
fn index(selected: Option<u32>) -> QueueIndex {
    match selected.expect("a queue is selected first") {
        0 => QueueIndex::Requests,
        1 => QueueIndex::Events,
        other => panic!("queue {other}"),
    }
}

fn rule(offset: usize, wanted: Access) {
    let found = REGISTERS.iter().find(|(register, _)| *register == offset);
    let (_, access) = found.unwrap_or_else(|| panic!("there is no register at {offset:#x}"));
    assert!(*access == wanted || *access == Access::Both, "register {offset:#x} is accessed the wrong way");
}

// SAFETY: these registers act on the fake device's memory only, as the fake says.
#[expect(unsafe_code, reason = "registers of a fake")]
unsafe impl Registers for Device {
    fn read8(&self, offset: usize) -> u8 {
        assert!((0x100..0x128).contains(&offset), "control registers have 32 bits");
        self.fake.read_config8(offset - 0x100)
    }

    fn read16(&self, offset: usize) -> u16 {
        panic!("nothing has 16 bits, at {offset:#x}");
    }

    fn write16(&self, offset: usize, _: u16) {
        panic!("nothing has 16 bits, at {offset:#x}");
    }

    fn write8(&self, offset: usize, value: u8) {
        assert_eq!(offset, 0x124, "bypass is the one field of 8 bits that a driver writes");
        self.fake.write_config8(offset - 0x100, value);
    }

    fn read32(&self, offset: usize) -> u32 {
        assert!(offset.is_multiple_of(4));
        if (0x100..0x124).contains(&offset) {
            let half_written = self.window().changes > 0 && offset < 0x108;
            return if half_written { 0 } else { self.fake.read_config32(offset - 0x100) };
        }
        rule(offset, Access::Read);
        let mut window = self.window();
        match offset {
            0x000 => window.magic,
            0x004 => window.version,
            0x008 => window.device,
            0x010 => {
                let select = window.device_features_sel.expect("a word of the features is selected first");
                (self.fake.device_features() >> (32 * select)) as u32
            }
            0x034 => self.fake.queue_max_size(index(window.queue_sel)).into(),
            0x044 => {
                let queue = &window.queues[usize::from(index(window.queue_sel).get())];
                window.stuck_ready.unwrap_or(queue.ready)
            }
            0x060 => window.interrupt,
            0x070 => u32::from(self.fake.status().bits()) | window.status_beyond,
            0x0fc => {
                window.changes = window.changes.saturating_sub(1);
                self.fake.config_generation() + window.changes
            }
            _ => panic!("the driver has no business with {offset:#x}"),
        }
    }

    fn write32(&self, offset: usize, value: u32) {
        rule(offset, Access::Write);
        let mut window = self.window();
        let window = &mut *window;
        match offset {
            0x014 => window.device_features_sel = Some(value),
            0x024 => window.driver_features_sel = Some(value),
            0x020 => {
                let word = window.driver_features_sel.expect("a word of the features is selected first");
                window.driver_features[word as usize] = value;
                let [low, high] = window.driver_features.map(u64::from);
                self.fake.set_driver_features(high << 32 | low);
            }
            0x030 => window.queue_sel = Some(value),
            0x050 => {
                let queue = index(Some(value));
                assert_eq!(
                    window.queues[usize::from(queue.get())].ready,
                    1,
                    "a notification without a queue"
                );
                // A used buffer of the request queue raises nothing: the driver asked for that.
                self.fake.notify(queue);
            }
            0x064 => {
                assert_eq!(value & !window.interrupt, 0, "acknowledges what was not raised");
                assert_eq!(value & !0b11, 0, "undefined bits");
                window.interrupt &= !value;
                window.acknowledged.push(value);
            }
            0x070 => {
                if value == 0 {
                    window.queues = [Queue::default(); 2];
                    window.interrupt = 0;
                }
                self.fake.set_status(DeviceStatus::from_bits_retain(value.try_into().unwrap()));
            }
            _ => {
                let selected = index(window.queue_sel);
                let queue = &mut window.queues[usize::from(selected.get())];
                if offset != 0x044 {
                    assert_eq!(queue.ready, 0, "register {offset:#x} of a queue in use");
                }
                match offset {
                    0x038 => queue.size = value,
                    0x080 | 0x084 | 0x090 | 0x094 | 0x0a0 | 0x0a4 => {
                        queue.addresses[(offset - 0x80) / 0x10][offset / 4 % 2] = value;
                    }
                    0x044 => {
                        queue.ready = value;
                        let [descriptors, available, used] = queue
                            .addresses
                            .map(|[low, high]| PhysAddr::new(u64::from(high) << 32 | u64::from(low)));
                        let size = queue.size.try_into().unwrap();
                        let layout = QueueLayout { size, descriptors, available, used };
                        self.fake.set_up_queue(selected, &layout).unwrap();
                    }
                    _ => panic!("register {offset:#x}"),
                }
            }
        }
    }
}

#[test]
fn a_device_is_recognised_by_magic_version_and_type_and_nothing_else_is_driven() {
    let probe = |change: fn(&mut Window)| {
        let device = Device::new();
        change(&mut device.window());
        let found = MmioTransport::probe(device.clone()).map(drop);
        assert!(device.fake.state().history.is_empty(), "nothing is written");
        found
    };
    assert_eq!(probe(|_| ()), Ok(()));
    assert_eq!(probe(|window| window.magic = u32::MAX), Err(MmioProbeError::NotVirtio(u32::MAX)));
    assert_eq!(probe(|window| window.version = 1), Err(MmioProbeError::Legacy));
    assert_eq!(probe(|window| window.version = 3), Err(MmioProbeError::Version(3)));
    assert_eq!(probe(|window| window.device = 0), Err(MmioProbeError::Empty));
    assert_eq!(probe(|window| window.device = 2), Err(MmioProbeError::NotIommu(2)));
}

#[test]
fn the_unit_works_through_the_window_from_reset_to_reset() {
    let device = Device::new();
    let unit = device.up();
    assert_eq!(device.fake.state().accepted, ALL_FEATURES & !(1 << 3), "all but the old bypass");
    let history = device.fake.state().history.clone();
    assert_eq!(history, START_UP);

    let endpoint = EndpointId::new(7);
    let domain = unit.new_domain(&DomainSpec::Paging(PagingSpec::default())).unwrap();
    unit.attach(&[endpoint], &domain).unwrap();
    map(&domain, &[piece(0x1000, 0x9000, 0x1000)]).unwrap();
    assert_eq!(device.fake.dma(7, 0x1010, true), Some(0x9010));
    assert_eq!(unmap(&domain, 0x1000, 0x1000), Ok(Ok(0x1000)));

    // A fault comes with the wire, which the driver takes back once.
    assert_eq!(device.fake.dma(7, 0x1010, true), None);
    device.window().interrupt = 0b01;
    let mut faults = Vec::new();
    unit.handle_interrupt(&mut |event| faults.push(event));
    let [UnitEvent::Fault(fault)] = faults.as_slice() else { panic!("{faults:?}") };
    assert_eq!((fault.endpoint, fault.address), (endpoint, Some(Iova::new(0x1010))));
    assert_eq!(fault.reason, FaultReason::NotMapped);
    assert_eq!(device.window().acknowledged, [1]);

    drop((unit, domain));
    assert_eq!(device.fake.state().history.last().unwrap(), "status 0x0");
    assert!(device.window().queues.iter().all(|queue| queue.ready == 0));
    assert_eq!(device.fake.hal.frames_in_use(), 0);
}

#[test]
fn only_what_was_raised_and_has_a_name_is_acknowledged() {
    let device = Device::new();
    let unit = device.up();
    for (raised, expected) in [(0, None), (0b10, Some(0b10)), (0b11, Some(0b11)), (0xffff_fffc, None)] {
        device.window().interrupt = raised;
        unit.handle_interrupt(&mut |event| panic!("{event:?}"));
        assert_eq!(device.window().acknowledged.pop(), expected, "{raised:#x}");
        assert!(device.window().acknowledged.is_empty());
    }
}

#[test]
fn a_device_that_needs_a_reset_is_reported_once_and_takes_no_more_mappings() {
    let device = Device::new();
    let unit = device.up();
    let domain = unit.new_domain(&DomainSpec::Paging(PagingSpec::default())).unwrap();
    unit.attach(&[EndpointId::new(7)], &domain).unwrap();
    device.fake.state().status |= DeviceStatus::NEEDS_RESET.bits();
    device.window().interrupt = 0b10;
    let mut told = 0;
    for _ in 0..2 {
        unit.handle_interrupt(&mut |event| {
            assert!(matches!(event, UnitEvent::UnitError { name: "DEVICE_NEEDS_RESET", .. }), "{event:?}");
            told += 1;
        });
    }
    assert_eq!(told, 1);
    assert!(map(&domain, &[piece(0x1000, 0x9000, 0x1000)]).is_err());
    assert_eq!(device.fake.dma(7, 0x1000, false), None);
}

#[test]
fn a_queue_in_use_or_that_does_not_get_ready_is_an_error_that_names_the_register() {
    for stuck in [0, 1, u32::MAX] {
        let device = Device::new();
        device.window().stuck_ready = Some(stuck);
        let setup = Setup::new(device.fake.hal.clone(), device.transport(), options()).unwrap();
        let expected = u64::from(stuck == 0);
        let not_taken = NotTaken { register: "QueueReady", written: expected, found: stuck.into() };
        assert_eq!(setup.enable().err(), Some(InitError::NotTaken(not_taken)));
        assert_eq!(device.fake.hal.frames_in_use(), 0, "the device was reset, so its memory is free");
    }
}

#[test]
fn a_status_wider_than_its_field_is_no_finished_reset() {
    let device = Device::new();
    device.window().status_beyond = 0x100;
    let setup = Setup::new(device.fake.hal.clone(), device.transport(), options());
    assert!(matches!(setup.err(), Some(InitError::Timeout(late)) if late.register == "device_status"));
}

#[test]
fn a_configuration_that_changes_meanwhile_is_read_again_and_not_for_ever() {
    for changes in 1..8 {
        let device = Device::new();
        device.window().changes = changes;
        assert_eq!(device.up().info().page_sizes, 0xffff_ffff_ffff_f000, "{changes}");
    }
    let device = Device::new();
    device.fake.state().unstable = true;
    let setup = Setup::new(device.fake.hal.clone(), device.transport(), options());
    assert_eq!(setup.err(), Some(InitError::Unstable));
}

#[test]
fn there_are_no_vectors_and_any_queue_size_up_to_the_most() {
    let device = Device::new();
    let unit = device.up();
    assert_eq!(unit.enable_interrupts(&Vectors::default()), Ok(()));
    for vectors in [
        Vectors { config: Some(MsixVector(3)), events: None },
        Vectors { config: None, events: Some(MsixVector(3)) },
    ] {
        let refused = NotTaken { register: "MSI-X vector", written: 3, found: 0xffff };
        assert_eq!(unit.enable_interrupts(&vectors), Err(refused));
    }
    let transport = device.transport();
    for queue in [QueueIndex::Requests, QueueIndex::Events] {
        let size = device.fake.state().queue_sizes[usize::from(queue.get())];
        assert_eq!(transport.queue_max_size(queue), size);
    }
}

/// Registers that all read the same, as those of a window without a device.
struct Constant(u32);

// SAFETY: these registers act on nothing.
#[expect(unsafe_code, reason = "registers of a fake")]
unsafe impl Registers for Constant {
    fn read8(&self, _: usize) -> u8 {
        self.0 as u8
    }
    fn read16(&self, _: usize) -> u16 {
        self.0 as u16
    }
    fn read32(&self, offset: usize) -> u32 {
        match offset {
            0x000 => 0x7472_6976,
            0x004 => 2,
            0x008 => 23,
            _ => self.0,
        }
    }
    fn write8(&self, _: usize, _: u8) {}
    fn write16(&self, _: usize, _: u16) {}
    fn write32(&self, _: usize, _: u32) {}
}

#[test]
fn a_window_that_reads_the_same_everywhere_is_an_error_and_its_sizes_are_cut() {
    let hal = memory::TestHal::new();
    for (value, size) in [(0, 0), (0x1_0000, u16::MAX), (u32::MAX, u16::MAX)] {
        let transport = MmioTransport::probe(Constant(value)).unwrap();
        assert_eq!(transport.queue_max_size(QueueIndex::Events), size);
        assert!(Setup::new(hal.clone(), transport, options()).and_then(Setup::enable).is_err());
    }
    assert_eq!(hal.frames_in_use(), 0);
}
