//! The configuration space of a segment.

use crate::spec::offset;
use portcullis_hal::{Mmio, RequesterId};
use thiserror::Error;

/// A bus range ends before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("bus range {first:#04x} to {last:#04x} is empty")]
pub struct BusRangeError {
    /// The first bus.
    pub first: u8,
    /// The last bus.
    pub last: u8,
}

/// The buses of a segment, both ends included; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusRange {
    first: u8,
    last: u8,
}

impl BusRange {
    /// The buses from `first` to `last`.
    pub const fn new(first: u8, last: u8) -> Result<Self, BusRangeError> {
        if last < first {
            return Err(BusRangeError { first, last });
        }
        Ok(Self { first, last })
    }

    /// The first bus.
    pub const fn first(self) -> u8 {
        self.first
    }

    /// The last bus.
    pub const fn last(self) -> u8 {
        self.last
    }

    /// Whether `bus` is one of them.
    pub const fn contains(self, bus: u8) -> bool {
        self.first <= bus && bus <= self.last
    }

    /// The bytes of memory-mapped configuration space that these buses take: 1 MiB each.
    pub const fn ecam_bytes(self) -> u64 {
        ((self.last - self.first) as u64 + 1) << 20
    }
}

/// The memory-mapped configuration space (ECAM, PCI Express 7.2.2) of the buses of one segment.
///
/// The register block begins with the first bus of the range: 1 MiB per bus, 32 KiB per device, 4 KiB per
/// function. ACPI's MCFG gives the address of bus 0 instead, so that the block starts `first << 20` further on.
#[derive(Debug)]
pub struct ConfigSpace<M> {
    mmio: M,
    segment: u16,
    buses: BusRange,
}

impl<M: Mmio> ConfigSpace<M> {
    /// The configuration space behind `mmio`, which is [`BusRange::ecam_bytes`] long.
    pub const fn new(mmio: M, segment: u16, buses: BusRange) -> Self {
        Self { mmio, segment, buses }
    }

    /// The segment group.
    pub const fn segment(&self) -> u16 {
        self.segment
    }

    /// The buses.
    pub const fn buses(&self) -> BusRange {
        self.buses
    }

    /// Reads the word at `register`, a multiple of 4 below 4096, of a function.
    ///
    /// A function of another segment or bus and a wrong offset read as all ones, as an absent function does.
    pub fn read32(&self, function: RequesterId, register: u16) -> u32 {
        self.locate(function, register).map_or(u32::MAX, |at| self.mmio.read32(at))
    }

    /// Writes the word at `register` of a function; ignored where [`read32`](Self::read32) finds nothing.
    pub fn write32(&self, function: RequesterId, register: u16, value: u32) {
        if let Some(at) = self.locate(function, register) {
            self.mmio.write32(at, value);
        }
    }

    /// Whether a function answers.
    ///
    /// Besides all ones, some bridges return all zeros, or ones in only one half, for a function that is absent.
    pub fn is_present(&self, function: RequesterId) -> bool {
        !matches!(self.read32(function, offset::ID), 0xffff_ffff | 0x0000_0000 | 0x0000_ffff | 0xffff_0000)
    }

    fn locate(&self, function: RequesterId, register: u16) -> Option<usize> {
        if function.segment() != self.segment
            || !self.buses.contains(function.bus())
            || register >= offset::END
            || !register.is_multiple_of(4)
        {
            return None;
        }
        let bus = usize::from(function.bus() - self.buses.first);
        Some(bus << 20 | usize::from(function.bdf() & 0xff) << 12 | usize::from(register))
    }
}

/// A word of a function's configuration space: where a capability was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) function: RequesterId,
    pub(crate) offset: u16,
}

impl<M: Mmio> ConfigSpace<M> {
    /// Reads the word `register` bytes into the capability at `place`.
    pub(crate) fn read_at(&self, place: Place, register: u16) -> u32 {
        self.read32(place.function, place.offset.saturating_add(register))
    }

    /// Writes the word `register` bytes into the capability at `place`.
    pub(crate) fn write_at(&self, place: Place, register: u16, value: u32) {
        self.write32(place.function, place.offset.saturating_add(register), value);
    }
}
