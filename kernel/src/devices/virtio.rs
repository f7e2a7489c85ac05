//! The kernel's PCI configuration space and feature rules, in the shapes that `virtio-drivers` wants.

#![expect(unsafe_code, reason = "virtio-drivers' configuration access has an unsafe method")]

use portcullis_hal::{MmioRegion, RequesterId};
use portcullis_pci::{ConfigSpace, Function};
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Configuration space of one segment.
pub(crate) struct VirtioConfig<'a> {
    config: &'a ConfigSpace<MmioRegion>,
}

impl<'a> VirtioConfig<'a> {
    pub(crate) const fn new(config: &'a ConfigSpace<MmioRegion>) -> Self {
        Self { config }
    }

    /// A function's address, as `virtio-drivers` writes it.
    pub(crate) fn address(function: &Function) -> DeviceFunction {
        let id = function.id;
        DeviceFunction { bus: id.bus(), device: id.device(), function: id.function() }
    }

    fn requester(&self, address: DeviceFunction) -> Option<RequesterId> {
        RequesterId::new(self.config.segment(), address.bus, address.device, address.function).ok()
    }
}

impl ConfigurationAccess for VirtioConfig<'_> {
    fn read_word(&self, address: DeviceFunction, offset: u8) -> u32 {
        self.requester(address).map_or(u32::MAX, |id| self.config.read32(id, u16::from(offset)))
    }

    fn write_word(&mut self, address: DeviceFunction, offset: u8, value: u32) {
        if let Some(id) = self.requester(address) {
            self.config.write32(id, u16::from(offset), value);
        }
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self { config: self.config }
    }
}

/// VIRTIO_F_ACCESS_PLATFORM: the device's addresses go through the IOMMU. A device that offers it insists on it, and
/// the drivers of `virtio-drivers` do not know the bit.
const ACCESS_PLATFORM: u64 = 1 << 33;

/// A transport that accepts [`ACCESS_PLATFORM`] where it is offered.
pub(crate) struct PlatformAccess<T: Transport>(T);

impl<T: Transport> PlatformAccess<T> {
    pub(crate) const fn new(transport: T) -> Self {
        Self(transport)
    }
}

impl<T: Transport> Transport for PlatformAccess<T> {
    fn write_driver_features(&mut self, features: u64) {
        let offered = self.0.read_device_features();
        self.0.write_driver_features(features | offered & ACCESS_PLATFORM);
    }

    fn device_type(&self) -> DeviceType {
        self.0.device_type()
    }

    fn read_device_features(&mut self) -> u64 {
        self.0.read_device_features()
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.0.max_queue_size(queue)
    }

    fn notify(&mut self, queue: u16) {
        self.0.notify(queue);
    }

    fn get_status(&self) -> DeviceStatus {
        self.0.get_status()
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.0.set_status(status);
    }

    fn set_guest_page_size(&mut self, size: u32) {
        self.0.set_guest_page_size(size);
    }

    fn requires_legacy_layout(&self) -> bool {
        self.0.requires_legacy_layout()
    }

    fn queue_set(&mut self, queue: u16, size: u32, descriptors: u64, driver_area: u64, device_area: u64) {
        self.0.queue_set(queue, size, descriptors, driver_area, device_area);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.0.queue_unset(queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.0.queue_used(queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.0.ack_interrupt()
    }

    fn read_config_generation(&self) -> u32 {
        self.0.read_config_generation()
    }

    fn read_config_space<V: FromBytes + IntoBytes>(&self, offset: usize) -> virtio_drivers::Result<V> {
        self.0.read_config_space(offset)
    }

    fn write_config_space<V: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: V,
    ) -> virtio_drivers::Result<()> {
        self.0.write_config_space(offset, value)
    }
}
