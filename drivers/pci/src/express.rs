//! The PCI Express capability.

use crate::capability::CapabilityError;
use crate::config::{ConfigSpace, Place};
use crate::spec::{
    DeviceCapabilities, DeviceCapabilities2, DeviceControl2, ExpressHeader, PortType, express,
};
use portcullis_hal::Mmio;

/// What the PCI Express capability of a function says (7.5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Express {
    /// The kind of function or port.
    pub port_type: PortType,
    /// The function can be reset on its own.
    pub function_level_reset: bool,
    /// The port can forward to function numbers above 7.
    pub ari_forwarding_supported: bool,
    /// The port does.
    pub ari_forwarding: bool,
}

impl Express {
    pub(crate) fn read<M: Mmio>(config: &ConfigSpace<M>, place: Place) -> Result<Self, CapabilityError> {
        let place = place.holding(express::DEVICE_CAPABILITIES + 4)?;
        let header = ExpressHeader::from_bits(config.read_at(place, 0));
        let device = DeviceCapabilities::from_bits(config.read_at(place, express::DEVICE_CAPABILITIES));
        let (mut supported, mut forwarding) = (false, false);
        if header.version() >= 2 {
            let place = place.holding(express::DEVICE_CONTROL_2 + 4)?;
            let can = config.read_at(place, express::DEVICE_CAPABILITIES_2);
            let does = config.read_at(place, express::DEVICE_CONTROL_2);
            supported = DeviceCapabilities2::from_bits(can).ari_forwarding();
            forwarding = supported && DeviceControl2::from_bits(does).ari_forwarding();
        }
        Ok(Self {
            port_type: header.port_type(),
            function_level_reset: device.function_level_reset(),
            ari_forwarding_supported: supported,
            ari_forwarding: forwarding,
        })
    }
}
