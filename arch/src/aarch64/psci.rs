//! PSCI through the conduit that the device tree names (Arm DEN0022).

use core::sync::atomic::{AtomicU8, Ordering};
use portcullis_hal::PhysAddr;
use smccc::psci::{self, Error};
use smccc::{Hvc, Smc};

/// The instruction that reaches the firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conduit {
    Hvc,
    Smc,
}

const NONE: u8 = 0;
const HVC: u8 = 1;
const SMC: u8 = 2;
static CONDUIT: AtomicU8 = AtomicU8::new(NONE);

/// Notes the conduit; `None` if the machine has no PSCI.
pub(super) fn init(conduit: Option<Conduit>) {
    let code = match conduit {
        None => NONE,
        Some(Conduit::Hvc) => HVC,
        Some(Conduit::Smc) => SMC,
    };
    CONDUIT.store(code, Ordering::Relaxed);
}

/// Starts the CPU with this affinity at `entry`, with `context` in x0.
pub(super) fn cpu_on(affinity: u64, entry: PhysAddr, context: u64) -> Result<(), Error> {
    match CONDUIT.load(Ordering::Relaxed) {
        HVC => psci::cpu_on::<Hvc>(affinity, entry.get(), context),
        SMC => psci::cpu_on::<Smc>(affinity, entry.get(), context),
        _ => Err(Error::NotSupported),
    }
}

/// Stops this CPU; returns only if firmware refuses.
pub(super) fn cpu_off() {
    // What firmware says to a refusal changes nothing for the caller.
    let _ = match CONDUIT.load(Ordering::Relaxed) {
        HVC => psci::cpu_off::<Hvc>(),
        SMC => psci::cpu_off::<Smc>(),
        _ => return,
    };
}

/// Turns the machine off; returns only if firmware refuses.
pub(super) fn system_off() {
    let _ = match CONDUIT.load(Ordering::Relaxed) {
        HVC => psci::system_off::<Hvc>(),
        SMC => psci::system_off::<Smc>(),
        _ => return,
    };
}
