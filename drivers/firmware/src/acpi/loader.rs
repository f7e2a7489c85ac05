//! QEMU's table loader: a script that places ACPI tables in memory and links them.
//!
//! Machines without firmware that knows ACPI (`virt` with a bare kernel) offer their tables as files of
//! fw_cfg: `etc/acpi/rsdp`, `etc/acpi/tables` and the script `etc/table-loader`. The kernel reads the script,
//! allocates memory for each file it names ([`allocations`]), reads the files there, calls [`run`], which
//! adds addresses to pointers and fixes checksums, and goes on with
//! [`from_rsdp`](super::from_rsdp) at the address of `etc/acpi/rsdp`.

use crate::view::View;
use crate::{FirmwareError, Location, Table};
use portcullis_hal::PhysAddr;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// The length of a file name in the script, with at least one NUL.
const NAME_LEN: usize = 56;

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Entry {
    command: U32,
    arguments: [u8; 124],
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Allocate {
    file: [u8; NAME_LEN],
    align: U32,
    zone: u8,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct AddPointer {
    destination: [u8; NAME_LEN],
    source: [u8; NAME_LEN],
    offset: U32,
    size: u8,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct AddChecksum {
    file: [u8; NAME_LEN],
    offset: U32,
    start: U32,
    length: U32,
}

const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
const ZONE_F_SEGMENT: u8 = 2;

/// A file of fw_cfg in memory.
#[derive(Debug)]
pub struct LoadedFile<'a> {
    /// Its name in fw_cfg.
    pub name: &'a str,
    /// Where its first byte is in physical memory.
    pub address: PhysAddr,
    /// Its content.
    pub bytes: &'a mut [u8],
}

/// Memory that the script asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation<'a> {
    /// The file that goes there.
    pub name: &'a str,
    /// Its alignment in bytes, a power of two.
    pub align: u64,
    /// Where it has to be.
    pub zone: Zone,
}

/// Where a file has to be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    /// Anywhere below 4 GiB.
    High,
    /// In 0xe_0000 to 0xf_ffff, where PC operating systems look for the RSDP. Elsewhere it does not matter.
    FSegment,
}

/// The files that `script` wants in memory, in its order.
///
/// # Errors
///
/// Each item may be an error; the iterator ends after the last whole entry of the script.
pub fn allocations(script: &[u8]) -> impl Iterator<Item = Result<Allocation<'_>, FirmwareError>> {
    entries(script).filter(|(_, entry)| entry.command.get() == ALLOCATE).map(|(at, entry)| {
        let allocate: &Allocate = arguments(at, entry)?;
        let align = u64::from(allocate.align.get());
        if !align.is_power_of_two() {
            return Err(FirmwareError::BadValue { at, value: align });
        }
        let zone = if allocate.zone == ZONE_F_SEGMENT { Zone::FSegment } else { Zone::High };
        Ok(Allocation { name: name(at, &allocate.file)?, align, zone })
    })
}

/// Runs the pointer and checksum commands of `script` on `files`.
///
/// Allocation commands are the caller's ([`allocations`]). WRITE_POINTER, which reports an address back to
/// QEMU and changes no table, and commands of later versions are skipped, as the format demands.
///
/// # Errors
///
/// [`FirmwareError::BadReference`] for a file that is not among `files`, [`FirmwareError::BadValue`] for an
/// offset or size outside its file, [`FirmwareError::BadLength`] for a script that is not a whole number of
/// entries. Commands before the one in error have been run.
pub fn run(script: &[u8], files: &mut [LoadedFile<'_>]) -> Result<(), FirmwareError> {
    if !script.len().is_multiple_of(size_of::<Entry>()) {
        let at = Location { table: Table::TableLoader, offset: 0 };
        return Err(FirmwareError::BadLength { at, length: script.len() });
    }
    for (at, entry) in entries(script) {
        match entry.command.get() {
            ADD_POINTER => add_pointer(at, arguments(at, entry)?, files)?,
            ADD_CHECKSUM => add_checksum(at, arguments(at, entry)?, files)?,
            _ => {}
        }
    }
    Ok(())
}

fn entries(script: &[u8]) -> impl Iterator<Item = (Location, &Entry)> {
    script.chunks_exact(size_of::<Entry>()).enumerate().filter_map(|(index, bytes)| {
        let at = Location { table: Table::TableLoader, offset: index * size_of::<Entry>() };
        Some((at, Entry::ref_from_bytes(bytes).ok()?))
    })
}

fn arguments<T>(at: Location, entry: &Entry) -> Result<&T, FirmwareError>
where
    T: FromBytes + KnownLayout + Immutable + Unaligned,
{
    View::new(at.table, &entry.arguments).read(0)
}

fn name(at: Location, field: &[u8; NAME_LEN]) -> Result<&str, FirmwareError> {
    let name = core::ffi::CStr::from_bytes_until_nul(field).ok();
    name.and_then(|name| name.to_str().ok()).ok_or(FirmwareError::BadValue { at, value: 0 })
}

fn find<'f, 'a>(
    at: Location,
    field: &[u8; NAME_LEN],
    files: &'f mut [LoadedFile<'a>],
) -> Result<&'f mut LoadedFile<'a>, FirmwareError> {
    let name = name(at, field)?;
    let missing = FirmwareError::BadReference { at, target: 0 };
    files.iter_mut().find(|file| file.name == name).ok_or(missing)
}

/// Adds the address of one file to a little-endian field of another.
fn add_pointer(
    at: Location,
    command: &AddPointer,
    files: &mut [LoadedFile<'_>],
) -> Result<(), FirmwareError> {
    let address = find(at, &command.source, files)?.address.get();
    let size = usize::from(command.size);
    if !matches!(size, 1 | 2 | 4 | 8) {
        return Err(FirmwareError::BadValue { at, value: command.size.into() });
    }
    let offset = command.offset.get();
    let file = find(at, &command.destination, files)?;
    let field = usize::try_from(offset).ok().and_then(|start| file.bytes.get_mut(start..)?.get_mut(..size));
    let field = field.ok_or(FirmwareError::BadValue { at, value: offset.into() })?;
    let value = field.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
    let sum = value.wrapping_add(address);
    if size < 8 && sum >> (8 * size) != 0 {
        return Err(FirmwareError::BadValue { at, value: sum });
    }
    for (byte, new) in field.iter_mut().zip(sum.to_le_bytes()) {
        *byte = new;
    }
    Ok(())
}

/// Subtracts the sum of a range from one byte, so that the range adds up to zero.
fn add_checksum(
    at: Location,
    command: &AddChecksum,
    files: &mut [LoadedFile<'_>],
) -> Result<(), FirmwareError> {
    let [offset, start, length] = [command.offset, command.start, command.length].map(|field| field.get());
    let file = find(at, &command.file, files)?;
    let range = (start as usize)..(start as usize).saturating_add(length as usize);
    let range = file.bytes.get(range).ok_or(FirmwareError::BadValue { at, value: start.into() })?;
    let sum = range.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    let field = file.bytes.get_mut(offset as usize);
    let field = field.ok_or(FirmwareError::BadValue { at, value: offset.into() })?;
    *field = field.wrapping_sub(sum);
    Ok(())
}
