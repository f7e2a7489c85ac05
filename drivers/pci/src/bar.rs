//! Base address registers (7.5.1.2.1).

use crate::command;
use crate::config::ConfigSpace;
use crate::function::{Function, Header};
use crate::spec::offset;
use crate::window::BusAddress;
use core::fmt;
use pci_types::CommandRegister;
use portcullis_hal::{Mmio, RequesterId};
use thiserror::Error;

/// What kind of addresses a BAR decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; it takes two registers.
    Memory64,
}

/// A base address register that the function implements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// The number of its (first) register, 0 to 5.
    pub index: u8,
    /// What it decodes.
    pub kind: BarKind,
    /// Reads have no side effects and writes may be merged.
    pub prefetchable: bool,
    /// Where it decodes; 0 if nobody assigned it.
    pub address: BusAddress,
    /// How much: a power of two in bytes, from 4 for I/O and 16 for memory.
    pub size: u64,
}

impl Bar {
    /// Whether it decodes memory.
    pub const fn is_memory(&self) -> bool {
        matches!(self.kind, BarKind::Memory32 | BarKind::Memory64)
    }

    const fn register(&self) -> u16 {
        offset::BAR0 + 4 * self.index as u16
    }

    /// Points the register at `address`. Decoding is off meanwhile, or a half-written address would decode.
    pub(crate) fn write<M: Mmio>(&self, config: &ConfigSpace<M>, id: RequesterId, address: BusAddress) {
        config.write32(id, self.register(), address.get() as u32);
        if self.kind == BarKind::Memory64 {
            config.write32(id, self.register() + 4, (address.get() >> 32) as u32);
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, address, size, .. } = self;
        write!(f, "BAR {index} ({:?}, {size:#x} bytes at {address})", self.kind)
    }
}

/// A BAR makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BarError {
    /// The type is reserved, or was given up with PCI 2.2 (memory below 1 MiB).
    #[error("{function}: BAR {index} has the reserved type {word:#x}")]
    Type {
        /// The function.
        function: RequesterId,
        /// The register.
        index: u8,
        /// Its low bits.
        word: u32,
    },
    /// The last register claims to have an upper half.
    #[error("{function}: BAR {index} has 64 bits and no register for the upper half")]
    NoUpperHalf {
        /// The function.
        function: RequesterId,
        /// The register.
        index: u8,
    },
    /// The address bits that can be written are not those of a power of two.
    #[error("{function}: BAR {index} has the writable bits {mask:#x}, which is no size")]
    Size {
        /// The function.
        function: RequesterId,
        /// The register.
        index: u8,
        /// The bits that read back as ones.
        mask: u64,
    },
}

/// The BARs of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Bars {
    slots: [Option<Bar>; 6],
}

impl Bars {
    /// Reads and sizes the BARs of a function.
    ///
    /// Sizing writes to them and turns decoding off meanwhile: the caller makes sure that nobody uses the device.
    /// Afterwards they are as before. Host bridges are passed over: without its decoding the host may stand still.
    ///
    /// # Errors
    ///
    /// The first BAR that makes no sense; the registers are as before then too.
    pub fn probe<M: Mmio>(config: &ConfigSpace<M>, function: &Function) -> Result<Self, BarError> {
        let registers = match function.header {
            _ if function.class.is_host_bridge() => 0,
            Header::Endpoint => 6,
            Header::Bridge(_) => 2,
            Header::Other(_) => 0,
        };
        let id = function.id;
        let before = command::read(config, id);
        let decoding = CommandRegister::IO_ENABLE | CommandRegister::MEMORY_ENABLE;
        if registers > 0 && before.intersects(decoding) {
            command::update(config, id, |command| command - decoding);
        }
        let bars = Self::probe_registers(config, id, registers);
        if registers > 0 && before.intersects(decoding) {
            command::update(config, id, |_| before);
        }
        bars
    }

    fn probe_registers<M: Mmio>(
        config: &ConfigSpace<M>,
        id: RequesterId,
        registers: u8,
    ) -> Result<Self, BarError> {
        let mut bars = Self::default();
        let mut index = 0;
        while index < registers {
            let bar = probe(config, id, index, registers)?;
            let wide = bar.is_some_and(|bar| bar.kind == BarKind::Memory64);
            if let Some(slot) = bars.slots.get_mut(usize::from(index)) {
                *slot = bar;
            }
            index += if wide { 2 } else { 1 };
        }
        Ok(bars)
    }

    /// The BAR whose (first) register is number `index`.
    pub fn get(&self, index: u8) -> Option<&Bar> {
        self.slots.get(usize::from(index))?.as_ref()
    }

    /// The BARs that are implemented, in the order of their registers.
    pub fn iter(&self) -> impl Iterator<Item = &Bar> {
        self.slots.iter().flatten()
    }
}

/// Writes ones, reads what stuck, and puts the old value back.
fn writable<M: Mmio>(config: &ConfigSpace<M>, id: RequesterId, register: u16, old: u32) -> u32 {
    config.write32(id, register, u32::MAX);
    let mask = config.read32(id, register);
    config.write32(id, register, old);
    mask
}

fn probe<M: Mmio>(
    config: &ConfigSpace<M>,
    function: RequesterId,
    index: u8,
    registers: u8,
) -> Result<Option<Bar>, BarError> {
    let register = offset::BAR0 + 4 * u16::from(index);
    let old = config.read32(function, register);
    let low_mask = writable(config, function, register, old);
    if low_mask == 0 {
        return Ok(None);
    }
    // An upper half has address bits only; the attributes of the lower one are read-only.
    let (kind, attributes) = match (old & 1, old >> 1 & 3) {
        (1, _) => (BarKind::Io, 0x3),
        (_, 0) => (BarKind::Memory32, 0xf),
        (_, 2) => (BarKind::Memory64, 0xf),
        _ => {
            return Err(BarError::Type { function, index, word: old & 0xf });
        }
    };
    let mut address = u64::from(old & !attributes);
    let mut mask = u64::from(low_mask & !attributes);
    match kind {
        // The upper half of an I/O BAR may be wired to zero (7.5.1.2.1).
        BarKind::Io if mask <= 0xffff => mask |= 0xffff_ffff_ffff_0000,
        BarKind::Io | BarKind::Memory32 => mask |= 0xffff_ffff_0000_0000,
        BarKind::Memory64 => {
            if index + 1 >= registers {
                return Err(BarError::NoUpperHalf { function, index });
            }
            let upper = config.read32(function, register + 4);
            address |= u64::from(upper) << 32;
            mask |= u64::from(writable(config, function, register + 4, upper)) << 32;
        }
    }
    // The writable bits reach from the size to the top: a power of two, and none missing in between.
    let size = mask.wrapping_neg();
    let attributes_only = u64::from(low_mask & !attributes) == 0 && kind != BarKind::Memory64;
    if !size.is_power_of_two() || attributes_only {
        return Err(BarError::Size { function, index, mask });
    }
    Ok(Some(Bar {
        index,
        kind,
        prefetchable: kind != BarKind::Io && old & 0x8 != 0,
        address: BusAddress::new(address),
        size,
    }))
}
