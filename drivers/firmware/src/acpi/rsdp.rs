//! The root system description pointer and the list of tables it leads to (ACPI 6.5, 5.2.5 to 5.2.8).

use super::spec::root::{Rsdp, RsdpExtension, TableHeader};
use super::{check, check_sum, map};
use crate::view::View;
use crate::{FirmwareError, PhysMemory, Signature, Table};
use portcullis_hal::PhysAddr;

/// The alignment of the RSDP in the areas where PC firmware leaves it (5.2.5.1).
pub const RSDP_ALIGN: usize = 16;

const SIGNATURE: [u8; 8] = *b"RSD PTR ";
/// ACPI 1.0 has no length field in its RSDP.
const LEN_V1: usize = size_of::<Rsdp>();
const LEN_V2: usize = LEN_V1 + size_of::<RsdpExtension>();

/// The offset of the first valid RSDP in `area`, which starts on a multiple of [`RSDP_ALIGN`].
///
/// For PC firmware that does not hand the address over: the area is the first KiB of the EBDA or
/// 0xe_0000 to 0xf_ffff.
pub fn find_rsdp(area: &[u8]) -> Option<usize> {
    let is_rsdp = |bytes: &[u8]| {
        bytes.starts_with(&SIGNATURE)
            && bytes.get(..LEN_V1).is_some_and(|rsdp| check_sum(Table::Rsdp, rsdp).is_ok())
    };
    (0..area.len()).step_by(RSDP_ALIGN).find(|&offset| area.get(offset..).is_some_and(is_rsdp))
}

/// RSDT or XSDT.
pub(super) struct RootTable<'m> {
    view: View<'m>,
    entry_len: usize,
}

/// Reads the RSDP at `address` and the root table it points to: the XSDT if there is one, else the RSDT.
pub(super) fn read<'m>(
    memory: &impl PhysMemory<'m>,
    address: PhysAddr,
) -> Result<RootTable<'m>, FirmwareError> {
    let view = View::new(Table::Rsdp, map(memory, Table::Rsdp, address, LEN_V1 as u64)?);
    let rsdp: &Rsdp = view.read(0)?;
    if rsdp.signature != SIGNATURE {
        return Err(FirmwareError::BadSignature { at: view.here() });
    }
    check_sum(Table::Rsdp, view.bytes())?;
    if rsdp.revision >= 2 {
        let xsdt = read_extension(memory, address)?;
        if xsdt.get() != 0 {
            return read_root(memory, xsdt, *b"XSDT", 8);
        }
    }
    read_root(memory, PhysAddr::new(rsdp.rsdt_address.get().into()), *b"RSDT", 4)
}

fn read_extension<'m>(memory: &impl PhysMemory<'m>, address: PhysAddr) -> Result<PhysAddr, FirmwareError> {
    let view = View::new(Table::Rsdp, map(memory, Table::Rsdp, address, LEN_V2 as u64)?);
    let extension: &RsdpExtension = view.read(LEN_V1)?;
    let length = extension.length.get();
    if (length as usize) < LEN_V2 {
        return Err(FirmwareError::BadLength { at: view.at(LEN_V1), length: length as usize });
    }
    check_sum(Table::Rsdp, map(memory, Table::Rsdp, address, length.into())?)?;
    Ok(PhysAddr::new(extension.xsdt_address.get()))
}

fn read_root<'m>(
    memory: &impl PhysMemory<'m>,
    address: PhysAddr,
    signature: [u8; 4],
    entry_len: usize,
) -> Result<RootTable<'m>, FirmwareError> {
    let signature = Signature(signature);
    let header_len = size_of::<TableHeader>();
    let table = Table::Acpi(signature);
    let header = map(memory, table, address, header_len as u64)?;
    let header: &TableHeader = View::new(table, header).read(0)?;
    let length = u64::from(header.length.get()).max(header_len as u64);
    let view = check(signature, map(memory, table, address, length)?)?;
    Ok(RootTable { view, entry_len })
}

impl RootTable<'_> {
    /// The addresses of the tables; zero entries are left out.
    pub(super) fn entries(&self) -> Result<impl Iterator<Item = PhysAddr>, FirmwareError> {
        let entries = self.view.rest(size_of::<TableHeader>())?;
        if !entries.len().is_multiple_of(self.entry_len) {
            return Err(FirmwareError::BadLength { at: self.view.here(), length: self.view.len() });
        }
        let addresses = entries.bytes().chunks_exact(self.entry_len.max(1)).map(|entry| {
            let value = entry.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
            PhysAddr::new(value)
        });
        Ok(addresses.filter(|address| address.get() != 0))
    }
}
