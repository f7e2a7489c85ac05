//! Drivers for the devices that move data in the demonstrations.

pub(crate) mod disk;
pub(crate) mod edu;
pub(crate) mod process_disk;
pub(crate) mod test_device;
mod virtio;
