//! Property values as a sequence of big-endian 32-bit cells.

use crate::{FirmwareError, Location};

/// The cells of a property that are not read yet.
#[derive(Clone, Copy)]
pub(super) struct Cells<'a> {
    rest: &'a [[u8; 4]],
    at: Location,
}

impl<'a> Cells<'a> {
    /// The cells of `value`, which lies at `at`.
    pub(super) fn new(value: &'a [u8], at: Location) -> Result<Self, FirmwareError> {
        match value.as_chunks() {
            (rest, []) => Ok(Self { rest, at }),
            _ => Err(FirmwareError::BadLength { at, length: value.len() }),
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The place of the next cell.
    pub(super) const fn here(&self) -> Location {
        self.at
    }

    /// The next cell.
    pub(super) fn number(&mut self) -> Result<u32, FirmwareError> {
        let [first, rest @ ..] = self.rest else {
            return Err(FirmwareError::Truncated { at: self.at, needed: 4, available: 0 });
        };
        self.rest = rest;
        self.at.offset = self.at.offset.saturating_add(4);
        Ok(u32::from_be_bytes(*first))
    }

    /// The number made of the next `count` cells, zero for none. It has to fit 64 bits.
    pub(super) fn take(&mut self, count: usize) -> Result<u64, FirmwareError> {
        let at = self.at;
        let mut value = 0u64;
        for _ in 0..count {
            let cell = self.number()?;
            if value >> 32 != 0 {
                return Err(FirmwareError::BadValue { at, value });
            }
            value = value << 32 | u64::from(cell);
        }
        Ok(value)
    }

    /// The next `count` cells by themselves.
    pub(super) fn part(&mut self, count: usize) -> Result<Self, FirmwareError> {
        let Some((part, rest)) = self.rest.split_at_checked(count) else {
            let available = self.rest.len().saturating_mul(4);
            return Err(FirmwareError::Truncated { at: self.at, needed: count.saturating_mul(4), available });
        };
        let at = self.at;
        self.rest = rest;
        self.at.offset = self.at.offset.saturating_add(count.saturating_mul(4));
        Ok(Self { rest: part, at })
    }

    /// The first of the cells, zero if there is none.
    pub(super) fn first_or_zero(&self) -> u32 {
        self.rest.first().map_or(0, |cell| u32::from_be_bytes(*cell))
    }

    /// Checks that nothing is left.
    pub(super) fn end(&self) -> Result<(), FirmwareError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(FirmwareError::BadLength { at: self.at, length: left.saturating_mul(4) }),
        }
    }
}
