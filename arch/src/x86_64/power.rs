//! Ends the run.

#![expect(unsafe_code, reason = "names an I/O port")]

use super::cpu;
use qemu_exit::{QEMUExit, X86};

/// How the run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All went well: QEMU's exit status is 33.
    Success,
    /// Something failed: QEMU's exit status is 35 (its own failures are 1).
    Failure,
}

/// The port of QEMU's `isa-debug-exit,iobase=0xf4,iosize=0x04`.
const PORT: u16 = 0xf4;
/// QEMU exits with `2 * value + 1`.
const SUCCESS_STATUS: u32 = 33;
const FAILURE_STATUS: u32 = 35;

/// Ends QEMU, or halts this CPU for good on a machine without the exit device.
pub fn exit(outcome: Outcome) -> ! {
    // With interrupts masked the halt that follows an unanswered write lasts.
    let _ = cpu::mask_interrupts();
    // SAFETY: the port belongs to the exit device or to nobody.
    let device = unsafe { X86::new(PORT, SUCCESS_STATUS) };
    match outcome {
        Outcome::Success => device.exit_success(),
        Outcome::Failure => device.exit(FAILURE_STATUS >> 1),
    }
}
