//! The polled serial port: the PL011 that the device tree's `stdout-path` names.

#![expect(unsafe_code, reason = "the UART's registers")]

use super::device_tree::Console;
use super::lock::InterruptLock;
use super::{paging, time};
use arm_pl011_uart::{DataBits, LineConfig, PL011Registers, Parity, StopBits, Uart, UniqueMmioPointer};
use core::fmt;

static UART: InterruptLock<Option<Uart<'static>>> = InterruptLock::new(None);

/// How long a full transmit queue may take to give room for one byte.
const TRANSMIT_TIMEOUT_NS: u64 = 20_000_000;

/// Starts the UART. Called once, by boot code.
pub(super) fn init(console: Console) {
    if console.registers.len() < size_of::<PL011Registers>() as u64 {
        return;
    }
    let Ok(base) = paging::map_device(console.registers) else {
        return;
    };
    // SAFETY: the range was just mapped as device memory, is long enough, and the device tree gives it to the
    // PL011; this is the only pointer to it, since boot code calls once.
    let mut uart = Uart::new(unsafe { UniqueMmioPointer::new(base.cast()) });
    let line = LineConfig { data_bits: DataBits::Bits8, parity: Parity::None, stop_bits: StopBits::One };
    if let Some(clock) = console.clock_hz {
        // A rate that the clock cannot give leaves the line as firmware set it.
        let _ = uart.enable(line, console.baud_rate, clock);
    }
    *UART.lock() = Some(uart);
}

/// Writes `bytes`. Usable from interrupt handlers. Without a UART, or where it no longer drains, bytes are lost.
pub fn write_bytes(bytes: &[u8]) {
    let mut uart = UART.lock();
    let Some(uart) = uart.as_mut() else { return };
    for &byte in bytes {
        let room =
            time::wait_until("UARTFR", 1, 0, TRANSMIT_TIMEOUT_NS, || u64::from(uart.is_tx_fifo_full()));
        if room.is_err() {
            return;
        }
        uart.write_word(byte);
    }
}

/// The next byte received, or `None` if there is none. Bytes that arrived damaged are dropped.
pub fn read_byte() -> Option<u8> {
    UART.lock().as_mut()?.read_word().ok().flatten()
}

/// Opens the console's lock whoever holds it; for the panic handler only.
pub fn force_unlock() {
    UART.force_unlock();
}

/// The console for `write!`.
pub(super) struct Writer;

impl fmt::Write for Writer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write_bytes(text.as_bytes());
        Ok(())
    }
}
