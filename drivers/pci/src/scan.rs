//! Which functions answer on a bus.

use crate::capability::extended_capability;
use crate::config::ConfigSpace;
use crate::spec::{AriRegister, CONTROL_WORD, ExtendedId, HeaderRegister, offset};
use portcullis_hal::{Mmio, RequesterId};

/// What a bus is made of, which decides the device numbers that can answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    /// A root bus, the inside of a switch, or a conventional bus: 32 devices.
    Shared,
    /// The link below a root port or a downstream port: one device. The port passes requests for other device
    /// numbers on or answers them itself; either way they mean nothing.
    Link,
    /// A link whose port forwards by function number alone (ARI): one device of up to 256 functions.
    AriLink,
}

/// The functions that are present on a bus, in ascending order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scan {
    bus: u8,
    wire: Wire,
    /// The device and function number to try next.
    next: u16,
}

impl Scan {
    pub(crate) const fn new(bus: u8, wire: Wire) -> Self {
        Self { bus, wire, next: 0 }
    }

    pub(crate) const fn bus(&self) -> u8 {
        self.bus
    }

    /// The next function that is present.
    pub(crate) fn next<M: Mmio>(&mut self, config: &ConfigSpace<M>) -> Option<RequesterId> {
        while self.next < self.end() {
            let bdf = u16::from(self.bus) << 8 | self.next;
            let function = RequesterId::from_bdf(config.segment(), bdf);
            let present = config.is_present(function);
            self.advance(config, function, present);
            if present {
                return Some(function);
            }
        }
        None
    }

    /// One past the last device and function number.
    const fn end(&self) -> u16 {
        if matches!(self.wire, Wire::Link) { 8 } else { 256 }
    }

    fn advance<M: Mmio>(&mut self, config: &ConfigSpace<M>, function: RequesterId, present: bool) {
        if self.wire == Wire::AriLink {
            if let Some(next) = Some(function).filter(|_| present).and_then(|id| next_ari(config, id)) {
                self.next = next;
                return;
            }
            // The device has no ARI, so it has the usual eight functions.
            self.wire = Wire::Link;
        }
        // Functions 1 to 7 exist only where function 0 says so.
        let alone = self.next & 7 == 0 && !(present && is_multi_function(config, function));
        self.next += if alone { 8 } else { 1 };
    }
}

/// Whether the header says that the device has more than one function.
pub(crate) fn is_multi_function<M: Mmio>(config: &ConfigSpace<M>, function: RequesterId) -> bool {
    HeaderRegister::from_bits(config.read32(function, offset::HEADER)).multi_function()
}

/// The function after this one in an ARI device, 256 after the last, or `None` if the function has no ARI
/// capability. A chain that does not ascend ends.
fn next_ari<M: Mmio>(config: &ConfigSpace<M>, function: RequesterId) -> Option<u16> {
    let at = extended_capability(config, function, ExtendedId::ARI).ok()??;
    let word = config.read32(function, at.saturating_add(CONTROL_WORD));
    let next = u16::from(AriRegister::from_bits(word).next_function());
    Some(if next > function.bdf() & 0xff { next } else { 256 })
}
