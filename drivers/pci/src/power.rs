//! Power management (7.5.2).

use crate::capability::CapabilityError;
use crate::config::{ConfigSpace, Place};
use crate::spec::{PowerControl, power};
use portcullis_hal::wait::{self, Timeout};
use portcullis_hal::{Hal, Mmio};

/// How long a function may take from D3hot to D0 (5.9), in nanoseconds.
const D3_RECOVERY_NS: u64 = 10_000_000;

/// A power state of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerState {
    /// Working.
    D0,
    /// Light sleep.
    D1,
    /// Deeper sleep.
    D2,
    /// Off, but configurable; BARs do not decode.
    D3Hot,
}

/// The power-management capability of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerCapability {
    place: Place,
}

impl PowerCapability {
    pub(crate) fn read(place: Place) -> Result<Self, CapabilityError> {
        let place = place.holding(power::CONTROL + 4)?;
        Ok(Self { place })
    }

    fn control<M: Mmio>(&self, config: &ConfigSpace<M>) -> PowerControl {
        PowerControl::from_bits(config.read_at(self.place, power::CONTROL))
    }

    /// The state the function is in.
    pub fn state<M: Mmio>(&self, config: &ConfigSpace<M>) -> PowerState {
        match self.control(config).state() {
            0 => PowerState::D0,
            1 => PowerState::D1,
            2 => PowerState::D2,
            _ => PowerState::D3Hot,
        }
    }

    /// Brings the function to D0 and waits out the recovery time of 10 ms, during which it must not be
    /// accessed. A function that comes out of D3hot may have lost its BARs and its command register.
    ///
    /// # Errors
    ///
    /// The state is still another one after that time.
    pub fn wake<H: Hal, M: Mmio>(&self, hal: &H, config: &ConfigSpace<M>) -> Result<(), Timeout> {
        let control = self.control(config);
        if control.state() == 0 {
            return Ok(());
        }
        let value = control.with_state(0).with_pme_status(false);
        config.write_at(self.place, power::CONTROL, value.into_bits());
        let start = hal.now_ns();
        while hal.now_ns().saturating_sub(start) <= D3_RECOVERY_NS {
            hal.relax();
        }
        wait::until(hal, "PMCSR", 0x3, 0, 0, || u64::from(self.control(config).into_bits())).map(drop)
    }
}
