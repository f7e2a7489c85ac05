//! Access control services (6.12, 7.7.11): what keeps a request from turning around before it meets the IOMMU.

use crate::capability::CapabilityError;
use crate::config::{ConfigSpace, Place};
use crate::function::Function;
use crate::spec::{AcsFlags, AcsRegister, CONTROL_WORD, PortType};
use portcullis_hal::Mmio;

/// The services that together send every request of the functions below a port to the root complex, under their
/// true bus number.
const ISOLATING: AcsFlags = AcsFlags::SOURCE_VALIDATION
    .union(AcsFlags::REQUEST_REDIRECT)
    .union(AcsFlags::COMPLETION_REDIRECT)
    .union(AcsFlags::UPSTREAM_FORWARDING);

/// The ACS capability of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acs {
    place: Place,
    /// The services the function has.
    pub supported: AcsFlags,
    /// The services that are on.
    pub enabled: AcsFlags,
}

impl Acs {
    pub(crate) fn read<M: Mmio>(config: &ConfigSpace<M>, place: Place) -> Result<Self, CapabilityError> {
        let place = place.holding(CONTROL_WORD + 4)?;
        let register = AcsRegister::from_bits(config.read_at(place, CONTROL_WORD));
        Ok(Self {
            place,
            supported: AcsFlags::from_bits_truncate(register.supported()),
            enabled: AcsFlags::from_bits_truncate(register.enabled()),
        })
    }

    /// Turns on what isolates, as far as it is there, and off what punches holes into it: egress control by
    /// vector and direct translated requests. Translation blocking stays as it is; it belongs to the policy on
    /// ATS.
    fn isolate<M: Mmio>(&mut self, config: &ConfigSpace<M>) {
        let kept = self.enabled & AcsFlags::TRANSLATION_BLOCKING;
        let wanted = kept | (ISOLATING & self.supported);
        let register = AcsRegister::from_bits(config.read_at(self.place, CONTROL_WORD));
        let register = register.with_enabled(wanted.bits());
        config.write_at(self.place, CONTROL_WORD, register.into_bits());
        // A control bit that the device does not implement after all stays zero: what counts is what sticks.
        let register = AcsRegister::from_bits(config.read_at(self.place, CONTROL_WORD));
        self.enabled = AcsFlags::from_bits_truncate(register.enabled());
    }

    /// Whether all of `required` is on, and nothing that lets peers around it.
    fn enforces(&self, required: AcsFlags) -> bool {
        let holes = AcsFlags::EGRESS_CONTROL | AcsFlags::DIRECT_TRANSLATED;
        self.enabled.contains(required) && !self.enabled.intersects(holes)
    }
}

/// Turns the isolating services on in every function that has any, and brings `functions` up to date.
///
/// It is done before [`isolation_groups`](crate::isolation_groups), and before any ATS is enabled.
pub fn enable_acs<M: Mmio>(config: &ConfigSpace<M>, functions: &mut [Function]) {
    for acs in functions.iter_mut().filter_map(|function| function.acs.as_mut()) {
        acs.isolate(config);
    }
}

impl Function {
    /// Whether requests that come to this function, or from it, stay clear of its peers until they have passed
    /// the root complex.
    ///
    /// A downstream port of a switch has to have all of the isolating services on (6.12.1.1 makes them
    /// mandatory). A root port has to validate sources; redirection is optional there, for a root complex
    /// that never routes between its ports, so it has to be on where it exists. The same goes for the functions
    /// of a multi-function device, for redirection alone.
    pub(crate) fn isolates(&self) -> bool {
        let Some(acs) = &self.acs else { return false };
        match self.port_type() {
            Some(PortType::DOWNSTREAM) => acs.enforces(ISOLATING),
            Some(PortType::ROOT_PORT) => {
                acs.enforces(AcsFlags::SOURCE_VALIDATION | (ISOLATING & acs.supported))
            }
            Some(_) => {
                let redirect = AcsFlags::REQUEST_REDIRECT | AcsFlags::COMPLETION_REDIRECT;
                acs.enforces(redirect & acs.supported)
            }
            None => false,
        }
    }
}
