//! Interrupts of devices: message-signalled ones, one vector each.

#![expect(unsafe_code, reason = "masks the legacy interrupt controllers")]

use super::apic::{self, SPURIOUS_VECTOR};
use super::paging::MapDeviceError;
use super::tlb;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use portcullis_hal::{Hal, MsiMessage, PhysAddr};
use spin::Once;
use thiserror::Error;
use x86_64::instructions::port::Port;

/// What runs when an interrupt comes, with interrupts masked, on the CPU it was sent to.
pub type Handler = fn(usize);

/// What firmware tells about the interrupt controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The local APIC's registers (MADT, local interrupt controller address).
    pub local_apic: PhysAddr,
}

/// When a wired interrupt is pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// While the line is active.
    Level,
    /// From each edge on.
    Edge,
}

/// Why the interrupt controller cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InitError {
    /// The registers cannot be mapped.
    #[error("local APIC: {0}")]
    Map(#[from] MapDeviceError),
    /// [`init`] did not run on the boot CPU before.
    #[error("the boot CPU's interrupt controller is not set up")]
    NotInitialized,
}

/// Why there is no message for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MsiError {
    /// [`init`] did not run before.
    #[error("the interrupt controller is not set up")]
    NotInitialized,
    /// All vectors are taken.
    #[error("no interrupt vector left")]
    NoVector,
    /// A message without interrupt remapping addresses CPUs up to 254 (SDM vol. 3, 12.11.1).
    #[error("APIC id {0} does not fit into a message")]
    ApicId(u32),
}

/// Why a line is not connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WiredError {
    /// The I/O APIC is not used.
    #[error("wired interrupts are not supported on this architecture")]
    NoWiredInterrupts,
}

/// Vectors for devices. Below are exceptions and the vectors to which the masked 8259s may still send.
const FIRST_VECTOR: u8 = 0x30;
const LAST_VECTOR: u8 = 0xef;
const VECTORS: usize = (LAST_VECTOR - FIRST_VECTOR) as usize + 1;

struct Connection {
    handler: Handler,
    argument: usize,
}

static CONNECTIONS: [Once<Connection>; VECTORS] = [const { Once::new() }; VECTORS];
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// Where messages go: bits 19:12 are the APIC id.
const MESSAGE_BASE: u64 = 0xfee0_0000;

/// Sets up the boot CPU's local APIC. `hal` is for architectures whose controller needs memory.
pub fn init<H: Hal>(_hal: &H, config: &Config) -> Result<(), InitError> {
    apic::init(config.local_apic)?;
    tlb::join();
    Ok(())
}

/// Sets up the local APIC of a further CPU, which [`smp::start`](super::smp::start) does for those it starts.
pub fn init_secondary() -> Result<(), InitError> {
    apic::local().ok_or(InitError::NotInitialized)?.enable();
    tlb::join();
    Ok(())
}

/// Connects a fresh vector to `handler(argument)` and returns the message that raises it on the calling CPU.
///
/// The device is told apart by the vector alone, so `device` is not looked at. Vectors are not given back.
pub fn allocate_msi(_device: u32, handler: Handler, argument: usize) -> Result<MsiMessage, MsiError> {
    let id = apic::local().ok_or(MsiError::NotInitialized)?.id();
    if id >= 0xff {
        return Err(MsiError::ApicId(id));
    }
    let take = |taken: usize| (taken < VECTORS).then_some(taken + 1);
    let slot =
        ALLOCATED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).map_err(|_| MsiError::NoVector)?;
    let connection = CONNECTIONS.get(slot).ok_or(MsiError::NoVector)?;
    connection.call_once(|| Connection { handler, argument });
    Ok(MsiMessage {
        address: PhysAddr::new(MESSAGE_BASE | u64::from(id) << 12),
        // Fixed delivery, edge: all bits but the vector are zero.
        data: u32::from(FIRST_VECTOR) + slot as u32,
    })
}

/// Refuses: devices of this machine interrupt by message.
pub fn connect_wired(
    _line: u32,
    _trigger: Trigger,
    _handler: Handler,
    _argument: usize,
) -> Result<(), WiredError> {
    Err(WiredError::NoWiredInterrupts)
}

/// Interrupts that ran a handler since boot, on all CPUs.
pub fn count() -> u64 {
    TAKEN.load(Ordering::Relaxed)
}

/// Runs the handler of an interrupt, and ends it at the local APIC.
pub(super) fn dispatch(vector: u8) {
    // A spurious interrupt, of the APIC or of a masked 8259, is not in service and must not be ended.
    if vector == SPURIOUS_VECTOR || vector < FIRST_VECTOR {
        return;
    }
    let slot = usize::from(vector - FIRST_VECTOR);
    match CONNECTIONS.get(slot).and_then(Once::get) {
        Some(connection) => {
            TAKEN.fetch_add(1, Ordering::Relaxed);
            (connection.handler)(connection.argument);
        }
        None => log::warn!("interrupt vector {vector:#x} has no handler"),
    }
    if let Some(apic) = apic::local() {
        apic.end_of_interrupt();
    }
}

/// Moves the two 8259s from the vectors of exceptions to 0x20..0x30, where they may still raise spurious
/// interrupts, and masks all of their inputs.
pub(super) fn mask_legacy() {
    const COMMANDS: [u16; 2] = [0x20, 0xa0];
    const VECTOR_BASES: [u8; 2] = [0x20, 0x28];
    // Where the second controller hangs: as a mask for the first, as a number for the second.
    const CASCADE: [u8; 2] = [1 << 2, 2];
    for ((command, vectors), cascade) in COMMANDS.into_iter().zip(VECTOR_BASES).zip(CASCADE) {
        let mut data = Port::<u8>::new(command + 1);
        // SAFETY: the controllers are at fixed ports of a PC; ICW1 to ICW4 (8259A data sheet), then all inputs off.
        unsafe {
            Port::<u8>::new(command).write(0x11);
            data.write(vectors);
            data.write(cascade);
            data.write(0x01);
            data.write(0xff);
        }
    }
}
