//! The way out.

use super::{cpu, psci};
use core::sync::atomic::{AtomicBool, Ordering};
use qemu_exit::QEMUExit;

/// How the kernel ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All went well: status 0 of the emulator.
    Success,
    /// Something failed: status 1.
    Failure,
}

static SEMIHOSTING: AtomicBool = AtomicBool::new(false);

/// Notes whether the word `semihosting` on the command line says that a debugger or QEMU takes semihosting calls;
/// on a machine without, such a call is an undefined instruction.
pub(super) fn init(command_line: &str) {
    let named = command_line.split_ascii_whitespace().any(|word| word == "semihosting");
    SEMIHOSTING.store(named, Ordering::Relaxed);
}

/// Ends the machine: by a semihosting exit with the outcome's status where the command line allows it, else by
/// PSCI `SYSTEM_OFF`, which cannot carry a status.
pub fn exit(outcome: Outcome) -> ! {
    if SEMIHOSTING.load(Ordering::Relaxed) {
        let qemu = qemu_exit::AArch64::new();
        match outcome {
            Outcome::Success => qemu.exit_success(),
            Outcome::Failure => qemu.exit_failure(),
        }
    }
    psci::system_off();
    cpu::park()
}
