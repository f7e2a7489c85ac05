//! How the driver reaches a virtio device, whatever bus it sits on.

#![expect(unsafe_code, reason = "declares the contract of a transport")]

use crate::spec::DeviceStatus;
use portcullis_hal::PhysAddr;
use thiserror::Error;

/// A virtqueue of the device (5.13.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QueueIndex {
    /// `requestq`.
    Requests = 0,
    /// `eventq`.
    Events = 1,
}

impl QueueIndex {
    /// The index as the device counts queues.
    pub const fn get(self) -> u16 {
        self as u16
    }
}

/// Where the parts of a split virtqueue lie (2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLayout {
    /// The number of descriptors, a power of two.
    pub size: u16,
    /// The descriptor table.
    pub descriptors: PhysAddr,
    /// The available ring, which the driver writes.
    pub available: PhysAddr,
    /// The used ring, which the device writes.
    pub used: PhysAddr,
}

/// An entry of the device's MSI-X table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MsixVector(pub u16);

/// Which MSI-X vector the device raises for what; `None` for no interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Vectors {
    /// Changes of the configuration, and errors of the device.
    pub config: Option<MsixVector>,
    /// The event queue.
    pub events: Option<MsixVector>,
}

/// The device did not take a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{register} reads {found:#x} after {written:#x} was written")]
pub struct NotTaken {
    /// The register's name in the specification.
    pub register: &'static str,
    /// What was written.
    pub written: u64,
    /// What it reads.
    pub found: u64,
}

/// A virtio device on some bus.
///
/// The methods are plain register accesses: none waits, allocates or panics, whatever the device answers.
///
/// # Safety
///
/// The device behind it reads and writes only the queues that it is given and the buffers in them, and none of them any
/// more once [`status`](Self::status) is empty after a reset: the driver then frees them. Nobody else drives the
/// device meanwhile.
pub unsafe trait Transport: Send + Sync + 'static {
    /// The features that the device offers.
    fn device_features(&self) -> u64;

    /// Tells the device which of them the driver takes.
    fn set_driver_features(&self, features: u64);

    /// The device status; bits that have no name are kept.
    fn status(&self) -> DeviceStatus;

    /// Writes the device status; the empty one resets the device.
    fn set_status(&self, status: DeviceStatus);

    /// A number that changes when the configuration does.
    fn config_generation(&self) -> u32;

    /// Reads a byte of the device configuration.
    fn read_config8(&self, offset: usize) -> u8;

    /// Reads an aligned 32-bit word of the device configuration.
    fn read_config32(&self, offset: usize) -> u32;

    /// Writes a byte of the device configuration.
    fn write_config8(&self, offset: usize, value: u8);

    /// The most descriptors that a queue can have; 0 if the device has no such queue.
    fn queue_max_size(&self, queue: QueueIndex) -> u16;

    /// Hands a queue to the device and enables it.
    ///
    /// # Errors
    ///
    /// The device did not take the size, or does not show the queue as enabled.
    fn set_up_queue(&self, queue: QueueIndex, layout: &QueueLayout) -> Result<(), NotTaken>;

    /// Tells the device that a queue has new buffers.
    fn notify(&self, queue: QueueIndex);

    /// Chooses the MSI-X vectors.
    ///
    /// # Errors
    ///
    /// The device has no resources for a vector.
    fn set_vectors(&self, vectors: &Vectors) -> Result<(), NotTaken>;

    /// Takes back a wired interrupt; without meaning for MSI-X.
    fn acknowledge_interrupt(&self);
}
