//! Finding and driving a virtio-pci function, with registers that are bytes in an array.
mod support;

use portcullis_hal::PhysAddr;
use portcullis_virtio_iommu::spec::DeviceStatus;
use portcullis_virtio_iommu::{
    MsixVector, NotTaken, PciTransport, ProbeError, QueueIndex, QueueLayout, Registers, Structure, Transport,
    Vectors,
};
use std::sync::{Arc, Mutex};

/// One BAR; each access is noted as offset, width in bytes, and the value if it was a write.
#[derive(Clone)]
struct Bar {
    bytes: Arc<Mutex<Vec<u8>>>,
    writes: Arc<Mutex<Vec<(usize, usize, u64)>>>,
    base: usize,
    len: usize,
}

impl Bar {
    fn new() -> Self {
        Self { bytes: Arc::new(Mutex::new(vec![0; 0x4000])), writes: Arc::default(), base: 0, len: 0x4000 }
    }

    fn window(&self, base: u32, len: u32) -> Self {
        Self { base: base as usize, len: len as usize, ..self.clone() }
    }

    fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        assert!(offset + N <= self.len && offset.is_multiple_of(N), "offset {offset:#x} of {:#x}", self.len);
        let at = self.base + offset;
        self.bytes.lock().unwrap()[at..at + N].try_into().unwrap()
    }

    fn put(&self, offset: usize, value: &[u8]) {
        assert!(offset + value.len() <= self.len && offset.is_multiple_of(value.len()));
        let at = self.base + offset;
        self.bytes.lock().unwrap()[at..at + value.len()].copy_from_slice(value);
        let mut wide = [0; 8];
        wide[..value.len()].copy_from_slice(value);
        self.writes.lock().unwrap().push((at, value.len(), u64::from_le_bytes(wide)));
    }

    fn take_writes(&self) -> Vec<(usize, usize, u64)> {
        std::mem::take(&mut self.writes.lock().unwrap())
    }
}

// SAFETY: these registers act on nothing.
#[expect(unsafe_code, reason = "registers of a fake")]
unsafe impl Registers for Bar {
    fn read8(&self, offset: usize) -> u8 {
        u8::from_le_bytes(self.get(offset))
    }
    fn read16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.get(offset))
    }
    fn read32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.get(offset))
    }
    fn write8(&self, offset: usize, value: u8) {
        self.put(offset, &value.to_le_bytes());
    }
    fn write16(&self, offset: usize, value: u16) {
        self.put(offset, &value.to_le_bytes());
    }
    fn write32(&self, offset: usize, value: u32) {
        self.put(offset, &value.to_le_bytes());
    }
}

/// A configuration space like that of QEMU's `virtio-iommu-pci`: everything in BAR 4.
fn config() -> [u32; 64] {
    let mut words = [0; 64];
    words[0] = 0x1057_1af4;
    words[1] = 0x0010_0000;
    words[0x34 / 4] = 0x98;
    // MSI-X, which is none of the driver's business.
    words[0x98 / 4] = 0x0001_8411;
    let mut structure = |at: usize, next: u32, len: u32, kind: u32, offset: u32, size: u32| {
        words[at / 4] = kind << 24 | len << 16 | next << 8 | 0x09;
        words[at / 4 + 1] = 4;
        words[at / 4 + 2] = offset;
        words[at / 4 + 3] = size;
    };
    structure(0x84, 0x70, 0x14, 5, 0, 0);
    structure(0x70, 0x60, 0x14, 2, 0x3000, 0x1000);
    structure(0x60, 0x50, 0x10, 4, 0x2000, 0x1000);
    structure(0x50, 0x40, 0x10, 3, 0x1000, 0x1000);
    structure(0x40, 0x00, 0x10, 1, 0x0000, 0x1000);
    words[0x80 / 4] = 4;
    words
}

fn probe(words: &[u32; 64], bar: &Bar) -> Result<PciTransport<Bar>, ProbeError> {
    PciTransport::probe(
        |offset| words[usize::from(offset / 4)],
        |index, offset, len| (index == 4 && offset + len <= 0x4000).then(|| bar.window(offset, len)),
    )
}

#[test]
fn the_structures_are_found_and_each_field_is_accessed_in_its_width() {
    let bar = Bar::new();
    let transport = probe(&config(), &bar).unwrap();
    bar.take_writes();
    transport.set_driver_features(0x1_0000_0067);
    let features = [(8, 4, 0), (12, 4, 0x67), (8, 4, 1), (12, 4, 1)];
    assert_eq!(bar.take_writes(), features);
    transport.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
    transport.write_config8(36, 0);
    transport.notify(QueueIndex::Requests);
    transport.notify(QueueIndex::Events);
    // Queue 1 shares the register here: its queue_notify_off reads 0, too.
    assert_eq!(bar.take_writes(), [(20, 1, 3), (0x2024, 1, 0), (0x3000, 2, 0), (0x3000, 2, 1)]);
    let layout = QueueLayout {
        size: 64,
        descriptors: PhysAddr::new(0x1_2345_6000),
        available: PhysAddr::new(0x1_2345_6400),
        used: PhysAddr::new(0x2_2345_6500),
    };
    transport.set_up_queue(QueueIndex::Events, &layout).unwrap();
    let queue = [
        (22, 2, 1),
        (24, 2, 64),
        (26, 2, 0xffff),
        (32, 4, 0x2345_6000),
        (36, 4, 1),
        (40, 4, 0x2345_6400),
        (44, 4, 1),
        (48, 4, 0x2345_6500),
        (52, 4, 2),
        (28, 2, 1),
    ];
    assert_eq!(bar.take_writes(), queue);
    transport.set_vectors(&Vectors { config: None, events: Some(MsixVector(2)) }).unwrap();
    assert_eq!(bar.take_writes(), [(16, 2, 0xffff), (22, 2, 1), (26, 2, 2)]);
    assert_eq!(transport.queue_max_size(QueueIndex::Requests), 0, "num_queues is 0");
}

#[test]
fn a_register_that_does_not_take_its_value_is_named() {
    struct Stubborn(Bar);
    // SAFETY: these registers act on nothing.
    #[expect(unsafe_code, reason = "registers of a fake")]
    unsafe impl Registers for Stubborn {
        fn read8(&self, offset: usize) -> u8 {
            self.0.read8(offset)
        }
        fn read16(&self, offset: usize) -> u16 {
            self.0.read16(offset)
        }
        fn read32(&self, offset: usize) -> u32 {
            self.0.read32(offset)
        }
        fn write8(&self, _: usize, _: u8) {}
        fn write16(&self, _: usize, _: u16) {}
        fn write32(&self, _: usize, _: u32) {}
    }
    let words = config();
    let bar = Bar::new();
    let transport = PciTransport::probe(
        |offset| words[usize::from(offset / 4)],
        |_, offset, len| Some(Stubborn(bar.window(offset, len))),
    )
    .unwrap();
    let layout = QueueLayout {
        size: 64,
        descriptors: PhysAddr::new(0),
        available: PhysAddr::new(0),
        used: PhysAddr::new(0),
    };
    let refused = |register, written| Err(NotTaken { register, written, found: 0 });
    assert_eq!(transport.set_up_queue(QueueIndex::Requests, &layout), refused("queue_size", 64));
    assert_eq!(transport.set_vectors(&Vectors::default()), refused("config_msix_vector", 0xffff));
}

#[test]
fn damaged_capabilities_are_refused() {
    let bar = Bar::new();
    let damaged = |damage: &dyn Fn(&mut [u32; 64])| {
        let mut words = config();
        damage(&mut words);
        probe(&words, &bar).err()
    };
    let none = |structure| Some(ProbeError::NoCapability(structure));
    let other = ProbeError::NotVirtioIommu { vendor: 0x1af4, device: 0x1042 };
    assert_eq!(damaged(&|words| words[0] = 0x1042_1af4), Some(other));
    assert_eq!(damaged(&|words| words[0] = u32::MAX).map(|_| ()), Some(()));
    assert_eq!(damaged(&|words| words[1] = 0), none(Structure::Common), "no list");
    assert_eq!(damaged(&|words| words[0x34 / 4] = 0x3c), none(Structure::Common), "a list in the header");
    assert_eq!(damaged(&|words| words[0x50 / 4] = 0x0310_5009), none(Structure::Common), "a loop");
    assert_eq!(
        damaged(&|words| words[0x40 / 4] = 0x010c_0009),
        none(Structure::Common),
        "a short capability"
    );
    assert_eq!(damaged(&|words| words[0x40 / 4 + 1] = 6), none(Structure::Common), "no such BAR");
    assert_eq!(damaged(&|words| words[0x40 / 4 + 3] = 55), none(Structure::Common), "a short structure");
    assert_eq!(damaged(&|words| words[0x60 / 4 + 2] = u32::MAX - 3), none(Structure::Device), "a wrap");
    assert_eq!(damaged(&|words| words[0x60 / 4 + 2] = 0x2002), none(Structure::Device), "misaligned");
    assert_eq!(damaged(&|words| words[0x70 / 4] = 0x0210_6009), none(Structure::Notify), "no multiplier");
    let beyond = Some(ProbeError::NotMapped(Structure::Isr));
    assert_eq!(damaged(&|words| words[0x50 / 4 + 2] = 0x4000), beyond, "outside the BAR");
    // The notification register of a queue lies behind the structure.
    bar.window(0, 56).write16(30, 0x0800);
    let notify = ProbeError::Notify { queue: 0, offset: 0x2000 };
    assert_eq!(damaged(&|_| ()), Some(notify));
    let far = ProbeError::Notify { queue: 0, offset: 0x800 * u64::from(u32::MAX) };
    assert_eq!(damaged(&|words| words[0x80 / 4] = u32::MAX), Some(far));
}
