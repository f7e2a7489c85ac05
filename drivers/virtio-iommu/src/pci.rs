//! A virtio device as a PCI function (virtio 1.2, 4.1).

use crate::registers::Registers;
use crate::spec::{DeviceStatus, PCI_DEVICE, PCI_VENDOR};
use crate::transport::{MsixVector, NotTaken, QueueIndex, QueueLayout, Transport, Vectors};
use core::sync::atomic::{AtomicU16, Ordering};
use spin::Mutex;
use thiserror::Error;

/// Byte offsets in the common configuration (4.1.4.3).
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: usize = 0;
    pub(super) const DEVICE_FEATURE: usize = 4;
    pub(super) const DRIVER_FEATURE_SELECT: usize = 8;
    pub(super) const DRIVER_FEATURE: usize = 12;
    pub(super) const CONFIG_MSIX_VECTOR: usize = 16;
    pub(super) const NUM_QUEUES: usize = 18;
    pub(super) const DEVICE_STATUS: usize = 20;
    pub(super) const CONFIG_GENERATION: usize = 21;
    pub(super) const QUEUE_SELECT: usize = 22;
    pub(super) const QUEUE_SIZE: usize = 24;
    pub(super) const QUEUE_MSIX_VECTOR: usize = 26;
    pub(super) const QUEUE_ENABLE: usize = 28;
    pub(super) const QUEUE_NOTIFY_OFF: usize = 30;
    pub(super) const QUEUE_DESC: usize = 32;
    pub(super) const QUEUE_DRIVER: usize = 40;
    pub(super) const QUEUE_DEVICE: usize = 48;
    pub(super) const BYTES: u32 = 56;
}

/// The vector that raises nothing (4.1.5.1.2).
const NO_VECTOR: u16 = 0xffff;

/// Where the structures of a function lie, as its capabilities say (4.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    bar: u8,
    offset: u32,
    len: u32,
}

/// A structure that a virtio function describes by a capability (4.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Structure {
    /// Common configuration.
    Common,
    /// Notifications.
    Notify,
    /// Interrupt status.
    Isr,
    /// Device configuration.
    Device,
}

impl Structure {
    /// The `cfg_type` of its capability.
    const fn kind(self) -> u8 {
        match self {
            Self::Common => 1,
            Self::Notify => 2,
            Self::Isr => 3,
            Self::Device => 4,
        }
    }

    /// The fewest bytes that the driver needs of it.
    const fn least(self) -> u32 {
        match self {
            Self::Common => common::BYTES,
            Self::Notify => 2,
            Self::Isr => 1,
            Self::Device => 40,
        }
    }
}

/// Why a PCI function cannot be driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProbeError {
    /// It is something else.
    #[error("PCI id {vendor:04x}:{device:04x} is no virtio-iommu")]
    NotVirtioIommu {
        /// The vendor id.
        vendor: u16,
        /// The device id.
        device: u16,
    },
    /// A structure has no capability, or one that is too short or in no BAR.
    #[error("no usable capability for the {0:?} structure")]
    NoCapability(Structure),
    /// The kernel did not map a structure.
    #[error("the {0:?} structure was not mapped")]
    NotMapped(Structure),
    /// A queue's notification register lies outside the notification structure.
    #[error("the notification register of queue {queue} is at {offset:#x}, outside of the structure")]
    Notify {
        /// The queue.
        queue: u16,
        /// The offset of its register in bytes.
        offset: u64,
    },
}

/// A virtio-iommu on PCI.
#[derive(Debug)]
pub struct PciTransport<R> {
    common: R,
    notify: R,
    isr: R,
    device: R,
    multiplier: u32,
    notify_len: u32,
    /// Offsets of the queues' notification registers, in units of the multiplier.
    notify_off: [AtomicU16; 2],
    /// Held over each sequence that goes through a select register.
    select: Mutex<()>,
}

impl<R: Registers> PciTransport<R> {
    /// Finds the structures of a PCI function whose memory decoding is on. The device reads its queues only with bus
    /// mastering on, too; it is the one function that may have it before the unit denies all others.
    ///
    /// `config_read` reads the 32-bit word at an aligned offset below 256 of its configuration space; `map_bar`
    /// gives the registers of that many bytes from an offset in a BAR, if the BAR has them.
    ///
    /// # Errors
    ///
    /// The function is no virtio-iommu, or its capabilities do not make sense.
    pub fn probe(
        config_read: impl Fn(u16) -> u32,
        mut map_bar: impl FnMut(u8, u32, u32) -> Option<R>,
    ) -> Result<Self, ProbeError> {
        let id = config_read(0);
        let (vendor, device) = (id as u16, (id >> 16) as u16);
        if (vendor, device) != (PCI_VENDOR, PCI_DEVICE) {
            return Err(ProbeError::NotVirtioIommu { vendor, device });
        }
        let mut map = |structure| {
            let (place, _) = find(&config_read, structure).ok_or(ProbeError::NoCapability(structure))?;
            map_bar(place.bar, place.offset, place.len).ok_or(ProbeError::NotMapped(structure))
        };
        let common = map(Structure::Common)?;
        let notify = map(Structure::Notify)?;
        let isr = map(Structure::Isr)?;
        let device = map(Structure::Device)?;
        let (place, at) =
            find(&config_read, Structure::Notify).ok_or(ProbeError::NoCapability(Structure::Notify))?;
        let transport = Self {
            common,
            notify,
            isr,
            device,
            multiplier: config_read(at.saturating_add(16)),
            notify_len: place.len,
            notify_off: [const { AtomicU16::new(0) }; 2],
            select: Mutex::new(()),
        };
        for queue in [QueueIndex::Requests, QueueIndex::Events] {
            transport.find_notify(queue)?;
        }
        Ok(transport)
    }

    fn find_notify(&self, queue: QueueIndex) -> Result<(), ProbeError> {
        let off = self.selected(queue, || self.common.read16(common::QUEUE_NOTIFY_OFF));
        let offset = u64::from(off) * u64::from(self.multiplier);
        if offset + 2 > u64::from(self.notify_len) || !offset.is_multiple_of(2) {
            return Err(ProbeError::Notify { queue: queue.get(), offset });
        }
        if let Some(slot) = self.notify_off.get(usize::from(queue.get())) {
            slot.store(off, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Runs `sequence` with `queue` selected.
    fn selected<V>(&self, queue: QueueIndex, sequence: impl FnOnce() -> V) -> V {
        let _select = self.select.lock();
        self.common.write16(common::QUEUE_SELECT, queue.get());
        sequence()
    }

    fn write_address(&self, offset: usize, address: u64) {
        self.common.write32(offset, address as u32);
        self.common.write32(offset + 4, (address >> 32) as u32);
    }

    fn take_vector(
        &self,
        name: &'static str,
        offset: usize,
        vector: Option<MsixVector>,
    ) -> Result<(), NotTaken> {
        let vector = vector.map_or(NO_VECTOR, |vector| vector.0);
        self.common.write16(offset, vector);
        taken(name, vector, self.common.read16(offset))
    }
}

fn taken(register: &'static str, written: u16, found: u16) -> Result<(), NotTaken> {
    if written == found {
        return Ok(());
    }
    Err(NotTaken { register, written: written.into(), found: found.into() })
}

/// The first usable capability for `structure` (4.1.4.1), and where it lies in configuration space.
fn find(config_read: &impl Fn(u16) -> u32, structure: Structure) -> Option<(Place, u16)> {
    const STATUS: u16 = 0x04;
    const CAPABILITY_LIST: u32 = 1 << 20;
    const CAPABILITIES: u16 = 0x34;
    const VENDOR_SPECIFIC: u8 = 0x09;
    // A capability has at least four bytes, so a longer chain than this is a loop.
    const MOST: usize = (256 - 64) / 4;

    if config_read(STATUS) & CAPABILITY_LIST == 0 {
        return None;
    }
    let mut at = config_read(CAPABILITIES) as u8 & 0xfc;
    for _ in 0..MOST {
        if at < 0x40 {
            return None;
        }
        let offset = u16::from(at);
        let [id, next, len, kind] = config_read(offset).to_le_bytes();
        // The notification capability is followed by the multiplier, which has to fit in as well.
        let enough = if structure == Structure::Notify { 20 } else { 16 };
        let fits = len >= enough && u16::from(len) + offset <= 256;
        if id == VENDOR_SPECIFIC && kind == structure.kind() && fits {
            let place = Place {
                bar: config_read(offset + 4) as u8,
                offset: config_read(offset + 8),
                len: config_read(offset + 12),
            };
            let ends = place.offset.checked_add(place.len).is_some();
            if place.bar < 6 && place.len >= structure.least() && ends && place.offset.is_multiple_of(4) {
                return Some((place, offset));
            }
        }
        at = next & 0xfc;
    }
    None
}

// SAFETY: every method is the access to the register of that name, through registers whose maker vouched for them.
#[expect(unsafe_code, reason = "the contract of a transport")]
unsafe impl<R: Registers> Transport for PciTransport<R> {
    fn device_features(&self) -> u64 {
        let _select = self.select.lock();
        self.common.write32(common::DEVICE_FEATURE_SELECT, 0);
        let low = self.common.read32(common::DEVICE_FEATURE);
        self.common.write32(common::DEVICE_FEATURE_SELECT, 1);
        let high = self.common.read32(common::DEVICE_FEATURE);
        u64::from(high) << 32 | u64::from(low)
    }

    fn set_driver_features(&self, features: u64) {
        let _select = self.select.lock();
        self.common.write32(common::DRIVER_FEATURE_SELECT, 0);
        self.common.write32(common::DRIVER_FEATURE, features as u32);
        self.common.write32(common::DRIVER_FEATURE_SELECT, 1);
        self.common.write32(common::DRIVER_FEATURE, (features >> 32) as u32);
    }

    fn status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.common.read8(common::DEVICE_STATUS))
    }

    fn set_status(&self, status: DeviceStatus) {
        self.common.write8(common::DEVICE_STATUS, status.bits());
    }

    fn config_generation(&self) -> u32 {
        self.common.read8(common::CONFIG_GENERATION).into()
    }

    fn read_config8(&self, offset: usize) -> u8 {
        self.device.read8(offset)
    }

    fn read_config32(&self, offset: usize) -> u32 {
        self.device.read32(offset)
    }

    fn write_config8(&self, offset: usize, value: u8) {
        self.device.write8(offset, value);
    }

    fn queue_max_size(&self, queue: QueueIndex) -> u16 {
        if queue.get() >= self.common.read16(common::NUM_QUEUES) {
            return 0;
        }
        self.selected(queue, || self.common.read16(common::QUEUE_SIZE))
    }

    fn set_up_queue(&self, queue: QueueIndex, layout: &QueueLayout) -> Result<(), NotTaken> {
        self.selected(queue, || {
            self.common.write16(common::QUEUE_SIZE, layout.size);
            taken("queue_size", layout.size, self.common.read16(common::QUEUE_SIZE))?;
            self.common.write16(common::QUEUE_MSIX_VECTOR, NO_VECTOR);
            self.write_address(common::QUEUE_DESC, layout.descriptors.get());
            self.write_address(common::QUEUE_DRIVER, layout.available.get());
            self.write_address(common::QUEUE_DEVICE, layout.used.get());
            self.common.write16(common::QUEUE_ENABLE, 1);
            taken("queue_enable", 1, self.common.read16(common::QUEUE_ENABLE))
        })
    }

    fn notify(&self, queue: QueueIndex) {
        let off = self.notify_off.get(usize::from(queue.get())).map_or(0, |off| off.load(Ordering::Relaxed));
        // `probe` checked that the product lies inside the structure.
        let offset = usize::from(off).saturating_mul(self.multiplier as usize);
        self.notify.write16(offset, queue.get());
    }

    fn set_vectors(&self, vectors: &Vectors) -> Result<(), NotTaken> {
        self.take_vector("config_msix_vector", common::CONFIG_MSIX_VECTOR, vectors.config)?;
        self.selected(QueueIndex::Events, || {
            self.take_vector("queue_msix_vector", common::QUEUE_MSIX_VECTOR, vectors.events)
        })
    }

    fn acknowledge_interrupt(&self) {
        // Reading clears it (4.1.4.5).
        self.isr.read8(0);
    }
}
