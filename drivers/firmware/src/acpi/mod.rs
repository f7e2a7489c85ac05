//! ACPI tables.
//!
//! [`from_rsdp`] follows the root pointer, [`from_tables`] takes tables that the kernel already has. Of the
//! tables found, FADT (PSCI), MADT, SPCR (console), MCFG, DMAR, IORT and VIOT are read, in this order, so
//! that those about IOMMUs find the interrupt controllers known. All others are skipped unread. Every table
//! that is read has its length and its checksum checked first.

mod dmar;
mod iort;
mod iort_trace;
pub mod loader;
mod madt;
mod mcfg;
pub(crate) use mcfg::{ECAM_BYTES_PER_BUS, add_host_bridge};
mod platform;
mod rsdp;
pub(crate) mod spec;
mod viot;

pub use rsdp::{RSDP_ALIGN, find_rsdp};

use crate::view::View;
use crate::{FirmwareError, PhysMemory, Signature, Table, Topology, Warning};
use portcullis_hal::{PhysAddr, PhysRange};
use spec::root::TableHeader;

/// Reads the tables that the root system description pointer at `rsdp` leads to.
///
/// # Errors
///
/// [`FirmwareError::Unmapped`] where `memory` gives nothing; otherwise what the tables deserve.
pub fn from_rsdp<'m>(memory: &impl PhysMemory<'m>, rsdp: PhysAddr) -> Result<Topology, FirmwareError> {
    let root = rsdp::read(memory, rsdp)?;
    let mut tables = Tables::default();
    for address in root.entries()? {
        if let Some(table) = map_table(memory, address)? {
            tables.add(table)?;
        }
    }
    tables.read()
}

/// Reads a list of tables, each complete with its header, in any order.
///
/// For tables that did not come through an RSDP. Those from QEMU's fw_cfg get their addresses and checksums
/// from [`loader::run`] first.
///
/// # Errors
///
/// What the tables deserve.
pub fn from_tables(tables: &[&[u8]]) -> Result<Topology, FirmwareError> {
    let mut known = Tables::default();
    for table in tables {
        known.add(table)?;
    }
    known.read()
}

/// The bytes of the table at `address`, or `None` if it is of a kind that is not read.
fn map_table<'m>(memory: &impl PhysMemory<'m>, address: PhysAddr) -> Result<Option<&'m [u8]>, FirmwareError> {
    let header_len = size_of::<TableHeader>() as u64;
    let unnamed = Table::Acpi(Signature(*b"????"));
    let header = map(memory, unnamed, address, header_len)?;
    let header: &TableHeader = View::new(unnamed, header).read(0)?;
    let signature = Signature(header.signature);
    if KNOWN.iter().all(|(known, _)| *known != signature) {
        return Ok(None);
    }
    let table = Table::Acpi(signature);
    let length = u64::from(header.length.get()).max(header_len);
    map(memory, table, address, length).map(Some)
}

/// The `len` bytes at `address`, which belong to `table`.
fn map<'m>(
    memory: &impl PhysMemory<'m>,
    table: Table,
    address: PhysAddr,
    len: u64,
) -> Result<&'m [u8], FirmwareError> {
    let at = View::new(table, &[]).here();
    let range = PhysRange::new(address, len).map_err(|error| FirmwareError::BadRange { at, error })?;
    memory.bytes(range).ok_or(FirmwareError::Unmapped { table, range })
}

/// Reads one table into a topology.
type Reader = fn(&View<'_>, &mut Topology) -> Result<(), FirmwareError>;

/// The kinds of tables that are read, in the order in which they are.
const KNOWN: [(Signature, Reader); 7] = [
    (Signature(*b"FACP"), platform::read_fadt),
    (Signature(*b"APIC"), madt::read),
    (Signature(*b"SPCR"), platform::read_spcr),
    (Signature(*b"MCFG"), mcfg::read),
    (Signature(*b"DMAR"), dmar::read),
    (Signature(*b"IORT"), iort::read),
    (Signature(*b"VIOT"), viot::read),
];

/// The tables that are read, the first of each kind.
#[derive(Default)]
struct Tables<'a> {
    found: [Option<View<'a>>; KNOWN.len()],
    warnings: alloc::vec::Vec<Warning>,
}

impl<'a> Tables<'a> {
    fn add(&mut self, bytes: &'a [u8]) -> Result<(), FirmwareError> {
        let Some(signature) = bytes.first_chunk().map(|&signature| Signature(signature)) else {
            return Err(FirmwareError::Truncated {
                at: View::new(Table::Acpi(Signature(*b"????")), bytes).here(),
                needed: size_of::<TableHeader>(),
                available: bytes.len(),
            });
        };
        let known = KNOWN.iter().zip(&mut self.found).find(|((known, _), _)| *known == signature);
        match known {
            None => Ok(()),
            Some((_, slot)) if slot.is_none() => {
                *slot = Some(check(signature, bytes)?);
                Ok(())
            }
            Some(_) => {
                let table = Table::Acpi(signature);
                crate::list::push(&mut self.warnings, Warning::DuplicateTable { table })
            }
        }
    }

    fn read(self) -> Result<Topology, FirmwareError> {
        let mut topology = Topology::default();
        for warning in self.warnings {
            topology.warn(warning)?;
        }
        for (table, (_, reader)) in self.found.iter().zip(KNOWN) {
            if let Some(table) = table {
                reader(table, &mut topology)?;
            }
        }
        Ok(topology)
    }
}

/// The table in `bytes`, cut to its length, after length, signature and checksum were found right.
fn check<'a>(signature: Signature, bytes: &'a [u8]) -> Result<View<'a>, FirmwareError> {
    let table = Table::Acpi(signature);
    let view = View::new(table, bytes);
    let header: &TableHeader = view.read(0)?;
    if header.signature != signature.0 {
        return Err(FirmwareError::BadSignature { at: view.here() });
    }
    let length = header.length.get() as usize;
    if length < size_of::<TableHeader>() {
        return Err(FirmwareError::BadLength { at: view.here(), length });
    }
    let view = view.part(0, length)?;
    check_sum(table, view.bytes())?;
    Ok(view)
}

/// Checks that `bytes` add up to zero.
fn check_sum(table: Table, bytes: &[u8]) -> Result<(), FirmwareError> {
    match bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)) {
        0 => Ok(()),
        sum => Err(FirmwareError::Checksum { table, sum }),
    }
}
