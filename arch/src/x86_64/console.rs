//! The serial console: COM1, polled.

#![expect(unsafe_code, reason = "names I/O ports and breaks the lock on a panic")]

use super::cpu;
use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::{BaudRate, Config, Uart16550};

const COM1: u16 = 0x3f8;

/// Reads of the status register before bytes that the port does not take are dropped. A full FIFO drains in
/// 1.4 ms, in which a CPU reads a port a few thousand times.
const MAX_POLLS: u32 = 1_000_000;

static PORT: Mutex<Option<Uart16550<PioBackend>>> = Mutex::new(None);

/// Sets the port to 115200 baud, 8N1. Without a port there, all output is dropped.
pub(super) fn init() {
    // SAFETY: COM1 is at its fixed place on a PC and nobody else drives it.
    let Ok(mut port) = (unsafe { Uart16550::new_port(COM1) }) else {
        return;
    };
    let config = Config { baud_rate: BaudRate::Baud115200, ..Config::DEFAULT };
    if port.init(config).is_ok() {
        *PORT.lock() = Some(port);
    }
}

/// Writes raw bytes, as one piece with regard to other writers.
pub fn write_bytes(bytes: &[u8]) {
    with_port(|port| {
        let mut rest = bytes;
        let mut polls = 0;
        while !rest.is_empty() && polls < MAX_POLLS {
            let sent = port.send_bytes(rest);
            rest = rest.get(sent..).unwrap_or_default();
            polls = if sent == 0 { polls + 1 } else { 0 };
        }
    });
}

/// A received byte, if there is one.
pub fn read_byte() -> Option<u8> {
    with_port(|port| port.try_receive_byte().ok()).flatten()
}

/// Opens the lock whoever holds it. For the panic handler only, which has nothing to lose.
pub fn force_unlock() {
    // SAFETY: at worst two CPUs write to the port at once, which garbles text; the port's state is plain data.
    unsafe { PORT.force_unlock() }
}

fn with_port<R>(action: impl FnOnce(&mut Uart16550<PioBackend>) -> R) -> Option<R> {
    let mask = cpu::mask_interrupts();
    let result = PORT.lock().as_mut().map(action);
    cpu::restore_interrupts(mask);
    result
}
