//! A virtio device in a window of memory-mapped registers (virtio 1.2, 4.2).

use crate::registers::Registers;
use crate::spec::{DEVICE_TYPE, DeviceStatus};
use crate::transport::{NotTaken, QueueIndex, QueueLayout, Transport, Vectors};
use portcullis_hal::PhysAddr;
use spin::Mutex;
use thiserror::Error;

/// Byte offsets of the registers, 32 bits each (4.2.2). 64-bit addresses are two of them, the low one first.
mod register {
    pub(super) const MAGIC_VALUE: usize = 0x000;
    pub(super) const VERSION: usize = 0x004;
    pub(super) const DEVICE_ID: usize = 0x008;
    pub(super) const DEVICE_FEATURES: usize = 0x010;
    pub(super) const DEVICE_FEATURES_SEL: usize = 0x014;
    pub(super) const DRIVER_FEATURES: usize = 0x020;
    pub(super) const DRIVER_FEATURES_SEL: usize = 0x024;
    pub(super) const QUEUE_SEL: usize = 0x030;
    pub(super) const QUEUE_NUM_MAX: usize = 0x034;
    pub(super) const QUEUE_NUM: usize = 0x038;
    pub(super) const QUEUE_READY: usize = 0x044;
    pub(super) const QUEUE_NOTIFY: usize = 0x050;
    pub(super) const INTERRUPT_STATUS: usize = 0x060;
    pub(super) const INTERRUPT_ACK: usize = 0x064;
    pub(super) const STATUS: usize = 0x070;
    pub(super) const QUEUE_DESC: usize = 0x080;
    pub(super) const QUEUE_DRIVER: usize = 0x090;
    pub(super) const QUEUE_DEVICE: usize = 0x0a0;
    pub(super) const CONFIG_GENERATION: usize = 0x0fc;
    pub(super) const CONFIG: usize = 0x100;
}

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// The version of today's registers, and that of those before the standard.
const VERSION: u32 = 2;
const LEGACY: u32 = 1;
/// The bits of InterruptStatus that have a meaning: used buffers, and a change of the configuration.
const INTERRUPTS: u32 = 0b11;

/// Why a window of registers cannot be driven (4.2.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MmioProbeError {
    /// There is no virtio device.
    #[error("no virtio device: MagicValue reads {0:#x}")]
    NotVirtio(u32),
    /// The device speaks the language from before the standard, whose registers are others.
    #[error("a legacy virtio device (version 1) is not driven")]
    Legacy,
    /// The device has registers that nobody knows.
    #[error("virtio-mmio version {0} is not known")]
    Version(u32),
    /// The window is there for a device, but has none.
    #[error("no device in the virtio-mmio window")]
    Empty,
    /// It is something else.
    #[error("virtio device type {0} is no IOMMU")]
    NotIommu(u32),
}

/// A virtio-iommu in a window of registers.
///
/// It has one wired interrupt and no vectors.
#[derive(Debug)]
pub struct MmioTransport<R> {
    registers: R,
    /// Held over each sequence that goes through a select register.
    select: Mutex<()>,
}

impl<R: Registers> MmioTransport<R> {
    /// Recognises the device behind `registers`, which are 0x128 bytes at least: the control registers and its
    /// configuration. Nothing is written.
    ///
    /// # Errors
    ///
    /// The window has no virtio-iommu of version 2.
    pub fn probe(registers: R) -> Result<Self, MmioProbeError> {
        match registers.read32(register::MAGIC_VALUE) {
            MAGIC => {}
            other => return Err(MmioProbeError::NotVirtio(other)),
        }
        match registers.read32(register::VERSION) {
            VERSION => {}
            LEGACY => return Err(MmioProbeError::Legacy),
            other => return Err(MmioProbeError::Version(other)),
        }
        match registers.read32(register::DEVICE_ID) {
            DEVICE_TYPE => Ok(Self { registers, select: Mutex::new(()) }),
            0 => Err(MmioProbeError::Empty),
            other => Err(MmioProbeError::NotIommu(other)),
        }
    }

    /// Runs `sequence` with `queue` selected.
    fn selected<V>(&self, queue: QueueIndex, sequence: impl FnOnce() -> V) -> V {
        let _select = self.select.lock();
        self.registers.write32(register::QUEUE_SEL, queue.get().into());
        sequence()
    }

    fn write_address(&self, offset: usize, address: PhysAddr) {
        self.registers.write32(offset, address.get() as u32);
        self.registers.write32(offset + 4, (address.get() >> 32) as u32);
    }

    /// Whether QueueReady of the selected queue reads `expected`.
    fn expect_ready(&self, expected: u32) -> Result<(), NotTaken> {
        let found = self.registers.read32(register::QUEUE_READY);
        if found == expected {
            return Ok(());
        }
        Err(NotTaken { register: "QueueReady", written: expected.into(), found: found.into() })
    }
}

// SAFETY: every method is the access to the register of that name, through registers whose maker vouched for them.
#[expect(unsafe_code, reason = "the contract of a transport")]
unsafe impl<R: Registers> Transport for MmioTransport<R> {
    fn device_features(&self) -> u64 {
        let _select = self.select.lock();
        self.registers.write32(register::DEVICE_FEATURES_SEL, 0);
        let low = self.registers.read32(register::DEVICE_FEATURES);
        self.registers.write32(register::DEVICE_FEATURES_SEL, 1);
        let high = self.registers.read32(register::DEVICE_FEATURES);
        u64::from(high) << 32 | u64::from(low)
    }

    fn set_driver_features(&self, features: u64) {
        let _select = self.select.lock();
        self.registers.write32(register::DRIVER_FEATURES_SEL, 0);
        self.registers.write32(register::DRIVER_FEATURES, features as u32);
        self.registers.write32(register::DRIVER_FEATURES_SEL, 1);
        self.registers.write32(register::DRIVER_FEATURES, (features >> 32) as u32);
    }

    fn status(&self) -> DeviceStatus {
        // The field has eight bits in a register of 32. A wider value must not pass for a finished reset.
        let status = u8::try_from(self.registers.read32(register::STATUS)).unwrap_or(u8::MAX);
        DeviceStatus::from_bits_retain(status)
    }

    fn set_status(&self, status: DeviceStatus) {
        self.registers.write32(register::STATUS, status.bits().into());
    }

    fn config_generation(&self) -> u32 {
        self.registers.read32(register::CONFIG_GENERATION)
    }

    fn read_config8(&self, offset: usize) -> u8 {
        self.registers.read8(register::CONFIG.saturating_add(offset))
    }

    fn read_config32(&self, offset: usize) -> u32 {
        self.registers.read32(register::CONFIG.saturating_add(offset))
    }

    fn write_config8(&self, offset: usize, value: u8) {
        self.registers.write8(register::CONFIG.saturating_add(offset), value);
    }

    fn queue_max_size(&self, queue: QueueIndex) -> u16 {
        let most = self.selected(queue, || self.registers.read32(register::QUEUE_NUM_MAX));
        u16::try_from(most).unwrap_or(u16::MAX)
    }

    fn set_up_queue(&self, queue: QueueIndex, layout: &QueueLayout) -> Result<(), NotTaken> {
        self.selected(queue, || {
            // The other registers of a queue that is in use must not be touched.
            self.expect_ready(0)?;
            self.registers.write32(register::QUEUE_NUM, layout.size.into());
            self.write_address(register::QUEUE_DESC, layout.descriptors);
            self.write_address(register::QUEUE_DRIVER, layout.available);
            self.write_address(register::QUEUE_DEVICE, layout.used);
            self.registers.write32(register::QUEUE_READY, 1);
            self.expect_ready(1)
        })
    }

    fn notify(&self, queue: QueueIndex) {
        self.registers.write32(register::QUEUE_NOTIFY, queue.get().into());
    }

    /// Takes no vector: the device has a wire.
    fn set_vectors(&self, vectors: &Vectors) -> Result<(), NotTaken> {
        /// What reads as "no vector" on PCI (4.1.5.1.2).
        const NO_VECTOR: u64 = 0xffff;
        match vectors.config.or(vectors.events) {
            None => Ok(()),
            Some(vector) => {
                Err(NotTaken { register: "MSI-X vector", written: vector.0.into(), found: NO_VECTOR })
            }
        }
    }

    fn acknowledge_interrupt(&self) {
        // Before the queues are looked at: what comes later raises the line again.
        let raised = self.registers.read32(register::INTERRUPT_STATUS) & INTERRUPTS;
        if raised != 0 {
            self.registers.write32(register::INTERRUPT_ACK, raised);
        }
    }
}
