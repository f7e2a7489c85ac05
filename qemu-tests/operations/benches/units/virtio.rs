//! A virtio-iommu that has answered every request when the notification returns. It keeps no mappings.

use super::Played;
use super::memory::Memory;
use portcullis_virtio_iommu::spec::{DeviceStatus, Features, TAIL_BYTES, config};
use portcullis_virtio_iommu::{NotTaken, Options, QueueIndex, QueueLayout, Setup, Transport, Vectors};
use std::error::Error;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};

struct Device {
    memory: Memory,
    status: AtomicU8,
    requests: Mutex<Queue>,
}

/// The request queue: where it is, and how far the device has come in both rings.
#[derive(Default)]
struct Queue {
    layout: Option<QueueLayout>,
    done: u16,
}

pub(crate) fn unit(memory: Memory) -> Result<Played, Box<dyn Error>> {
    let device = Device { memory, status: AtomicU8::new(0), requests: Mutex::default() };
    let driver = Setup::new(memory, device, Options::default())?.enable()?;
    Ok(Played { unit: driver.unit()?, ask: Box::new(|_, _| ()), tries: Box::new(|| 0) })
}

impl Device {
    /// Answers what the driver has made available with OK (5.13.6, 2.7).
    fn answer(&self) {
        let Ok(mut queue) = self.requests.lock() else { return };
        let Some(layout) = queue.layout else { return };
        let [descriptors, available, used] =
            [layout.descriptors, layout.available, layout.used].map(|part| part.get());
        let index = self.load(available, Ordering::Acquire) >> 16 & 0xffff;
        while u64::from(queue.done) != index {
            let slot = u64::from(queue.done % layout.size);
            let head = self.load(available + 4 + 2 * slot, Ordering::Relaxed) & 0xffff;
            // The descriptor that follows is the one that the device writes to.
            let next = self.load(descriptors + 16 * head + 14, Ordering::Relaxed) & 0xffff;
            let buffer = self.load(descriptors + 16 * next, Ordering::Relaxed);
            self.store32(buffer, 0);
            self.store32(used + 4 + 8 * slot, head as u32);
            self.store32(used + 8 + 8 * slot, TAIL_BYTES as u32);
            queue.done = queue.done.wrapping_add(1);
        }
        // The flags are zero.
        self.store32(used, u32::from(queue.done) << 16);
    }

    /// The rest of the word from an address on, that byte lowest.
    fn load(&self, address: u64, order: Ordering) -> u64 {
        self.memory.word(address & !7).load(order) >> (address % 8 * 8)
    }

    /// Stores four bytes, at a multiple of four. Nobody else writes the word meanwhile: the driver waits.
    fn store32(&self, address: u64, value: u32) {
        let (word, shift) = (self.memory.word(address & !7), address % 8 * 8);
        let kept = word.load(Ordering::Relaxed) & !(0xffff_ffff << shift);
        word.store(kept | u64::from(value) << shift, Ordering::Release);
    }
}

#[expect(unsafe_code, reason = "registers of a device that is not there")]
// SAFETY: the device writes to the queue and to the buffers in it, and only when it is notified.
unsafe impl Transport for Device {
    fn device_features(&self) -> u64 {
        (Features::MAP_UNMAP | Features::BYPASS_CONFIG | Features::VERSION_1).bits()
    }

    fn set_driver_features(&self, _features: u64) {}

    fn status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.status.load(Ordering::Relaxed))
    }

    fn set_status(&self, status: DeviceStatus) {
        self.status.store(status.bits(), Ordering::Relaxed);
    }

    fn config_generation(&self) -> u32 {
        0
    }

    fn read_config8(&self, _offset: usize) -> u8 {
        // No bypass.
        0
    }

    fn read_config32(&self, offset: usize) -> u32 {
        // Pages of 4 KiB and more, as QEMU's.
        match offset {
            config::PAGE_SIZE_MASK => 0xffff_f000,
            _ => u32::MAX,
        }
    }

    fn write_config8(&self, _offset: usize, _value: u8) {}

    fn queue_max_size(&self, _queue: QueueIndex) -> u16 {
        256
    }

    fn set_up_queue(&self, queue: QueueIndex, layout: &QueueLayout) -> Result<(), NotTaken> {
        if let (QueueIndex::Requests, Ok(mut requests)) = (queue, self.requests.lock()) {
            *requests = Queue { layout: Some(*layout), done: 0 };
        }
        Ok(())
    }

    fn notify(&self, queue: QueueIndex) {
        if queue == QueueIndex::Requests {
            self.answer();
        }
    }

    fn set_vectors(&self, _vectors: &Vectors) -> Result<(), NotTaken> {
        Ok(())
    }

    fn acknowledge_interrupt(&self) {}
}
