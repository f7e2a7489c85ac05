//! Bounds-checked reading of little-endian structures.

use crate::{FirmwareError, Location, Table};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Some bytes of a table that remember where they are in it.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    table: Table,
    base: usize,
    bytes: &'a [u8],
}

impl<'a> View<'a> {
    pub(crate) const fn new(table: Table, bytes: &'a [u8]) -> Self {
        Self { table, base: 0, bytes }
    }

    pub(crate) const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub(crate) const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The place of the first byte.
    pub(crate) const fn here(&self) -> Location {
        self.at(0)
    }

    /// The place `offset` bytes further on.
    pub(crate) const fn at(&self, offset: usize) -> Location {
        Location { table: self.table, offset: self.base.saturating_add(offset) }
    }

    /// The `len` bytes from `offset`.
    pub(crate) fn part(&self, offset: usize, len: usize) -> Result<Self, FirmwareError> {
        let bytes = offset.checked_add(len).and_then(|end| self.bytes.get(offset..end));
        let bytes = bytes.ok_or_else(|| self.truncated(offset, len))?;
        Ok(Self { base: self.base.saturating_add(offset), bytes, ..*self })
    }

    /// The bytes from `offset` to the end.
    pub(crate) fn rest(&self, offset: usize) -> Result<Self, FirmwareError> {
        let bytes = self.bytes.get(offset..).ok_or_else(|| self.truncated(offset, 0))?;
        Ok(Self { base: self.base.saturating_add(offset), bytes, ..*self })
    }

    /// The structure at `offset`.
    pub(crate) fn read<T>(&self, offset: usize) -> Result<&'a T, FirmwareError>
    where
        T: FromBytes + KnownLayout + Immutable + Unaligned,
    {
        let part = self.part(offset, size_of::<T>())?;
        T::ref_from_bytes(part.bytes).map_err(|_| self.truncated(offset, size_of::<T>()))
    }

    /// The `count` structures from `offset`.
    pub(crate) fn read_array<T>(&self, offset: usize, count: usize) -> Result<&'a [T], FirmwareError>
    where
        T: FromBytes + Immutable + Unaligned,
    {
        let len = count.saturating_mul(size_of::<T>());
        let part = self.part(offset, len)?;
        <[T]>::ref_from_bytes(part.bytes).map_err(|_| self.truncated(offset, len))
    }

    /// The self-describing records from `offset` to the end.
    pub(crate) fn records(&self, offset: usize, shape: RecordShape) -> Result<Records<'a>, FirmwareError> {
        Ok(Records { rest: self.rest(offset)?, shape })
    }

    /// The `count` self-describing records from `offset`; fewer are an error.
    pub(crate) fn counted_records(
        &self,
        offset: usize,
        shape: RecordShape,
        count: usize,
    ) -> Result<impl Iterator<Item = Result<Record<'a>, FirmwareError>> + use<'a>, FirmwareError> {
        let mut records = self.records(offset, shape)?;
        let mut left = count;
        Ok(core::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let record = records.step();
            if record.is_err() {
                left = 0;
            }
            Some(record)
        }))
    }

    /// The text up to the first NUL.
    pub(crate) fn text(&self) -> Result<&'a str, FirmwareError> {
        let text = core::ffi::CStr::from_bytes_until_nul(self.bytes).ok();
        let text = text.and_then(|text| text.to_str().ok());
        text.ok_or_else(|| self.truncated(0, self.bytes.len().saturating_add(1)))
    }

    fn truncated(&self, offset: usize, needed: usize) -> FirmwareError {
        let available = self.bytes.len().saturating_sub(offset);
        FirmwareError::Truncated { at: self.at(offset), needed, available }
    }
}

/// How records state their type and length.
#[derive(Clone, Copy)]
pub(crate) enum RecordShape {
    /// One byte each (MADT, device scopes).
    ByteByte,
    /// Two bytes each (DMAR).
    WordWord,
    /// A byte and two bytes, without a gap (IORT).
    ByteWord,
    /// A byte, a reserved byte and two bytes (VIOT).
    ByteGapWord,
}

/// Records one after the other; ends after the first error.
pub(crate) struct Records<'a> {
    rest: View<'a>,
    shape: RecordShape,
}

/// One record: its type, and its bytes with type and length included.
pub(crate) struct Record<'a> {
    pub(crate) kind: u16,
    pub(crate) view: View<'a>,
}

impl<'a> Records<'a> {
    fn step(&mut self) -> Result<Record<'a>, FirmwareError> {
        let byte = |bytes: &[u8], index: usize| bytes.get(index).copied().map_or(0, u16::from);
        let word = |bytes: &[u8], index: usize| byte(bytes, index) | byte(bytes, index + 1) << 8;
        let header_len = match self.shape {
            RecordShape::ByteByte => 2,
            RecordShape::ByteWord => 3,
            RecordShape::WordWord | RecordShape::ByteGapWord => 4,
        };
        let header = self.rest.part(0, header_len)?.bytes;
        let (kind, length) = match self.shape {
            RecordShape::ByteByte => (byte(header, 0), byte(header, 1)),
            RecordShape::ByteWord => (byte(header, 0), word(header, 1)),
            RecordShape::WordWord => (word(header, 0), word(header, 2)),
            RecordShape::ByteGapWord => (byte(header, 0), word(header, 2)),
        };
        let length = usize::from(length);
        if length < header_len {
            return Err(FirmwareError::BadLength { at: self.rest.here(), length });
        }
        let view = self.rest.part(0, length)?;
        self.rest = self.rest.rest(length)?;
        Ok(Record { kind, view })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, FirmwareError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.bytes.is_empty() {
            return None;
        }
        let item = self.step();
        if item.is_err() {
            self.rest.bytes = &[];
        }
        Some(item)
    }
}
