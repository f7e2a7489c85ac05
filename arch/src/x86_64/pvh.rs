//! What a PVH loader tells: `hvm_start_info` and the tables it points to (Xen's `arch-x86/hvm/start_info.h`).
//!
//! All of it is read through a function that copies bytes from physical memory and refuses addresses that it cannot
//! reach, so that a damaged structure ends in an error or in less memory, not in a fault.

use crate::MemoryMap;
use portcullis_hal::{PhysAddr, PhysRange};
use thiserror::Error;

const MAGIC: u32 = 0x336e_c578;
/// The size of version 1, the first with a memory map.
const START_INFO_SIZE: usize = 56;
const MEMORY_MAP_ENTRY_SIZE: usize = 24;
const MODULE_ENTRY_SIZE: usize = 32;
const MEMORY_TYPE_RAM: u32 = 1;
/// Entries looked at, whatever counts the loader states.
const MAX_ENTRIES: u32 = 256;

/// Most bytes of a command line; the rest is cut off.
pub(super) const COMMAND_LINE_SIZE: usize = 2048;

/// Why the machine cannot be booted from what the loader handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum StartInfoError {
    /// The structure lies where the boot tables do not reach.
    #[error("the start info is out of reach")]
    OutOfReach,
    /// The structure is something else.
    #[error("the start info has magic {0:#x}")]
    Magic(u32),
    /// Before version 1 there was no memory map.
    #[error("start info version {0} has no memory map")]
    Version(u32),
    /// The map has no RAM.
    #[error("the memory map has no RAM")]
    NoMemory,
}

/// What the loader told.
#[derive(Debug)]
pub(super) struct StartInfo {
    /// RAM as firmware sees it, with the image and the modules still in it.
    pub(super) ram: MemoryMap,
    /// Modules (initial RAM disks) that the loader put into RAM.
    pub(super) modules: MemoryMap,
    /// The ACPI root pointer.
    pub(super) rsdp: Option<PhysAddr>,
    /// The command line's bytes, in the first `command_line_len`.
    pub(super) command_line: [u8; COMMAND_LINE_SIZE],
    /// The command line's length.
    pub(super) command_line_len: usize,
}

/// Physical memory as far as it can be reached: `copy(address, buffer)` fills the buffer, or returns `None`.
pub(super) trait Memory {
    /// Fills `buffer` from `address`.
    fn copy(&self, address: u64, buffer: &mut [u8]) -> Option<()>;
}

impl<F: Fn(u64, &mut [u8]) -> Option<()>> Memory for F {
    fn copy(&self, address: u64, buffer: &mut [u8]) -> Option<()> {
        self(address, buffer)
    }
}

/// Reads the structure at `address` and all that it points to.
pub(super) fn read(memory: &impl Memory, address: u64) -> Result<StartInfo, StartInfoError> {
    let head: [u8; START_INFO_SIZE] = record(memory, address).ok_or(StartInfoError::OutOfReach)?;
    let magic = word32(&head, 0);
    if magic != MAGIC {
        return Err(StartInfoError::Magic(magic));
    }
    let version = word32(&head, 4);
    if version == 0 {
        return Err(StartInfoError::Version(version));
    }
    let mut info = StartInfo {
        ram: read_memory_map(memory, word64(&head, 40), word32(&head, 48)),
        modules: read_modules(memory, word64(&head, 16), word32(&head, 12)),
        rsdp: match word64(&head, 32) {
            0 => find_rsdp(memory),
            rsdp => Some(PhysAddr::new(rsdp)),
        },
        command_line: [0; COMMAND_LINE_SIZE],
        command_line_len: 0,
    };
    if info.ram.iter().next().is_none() {
        return Err(StartInfoError::NoMemory);
    }
    let command_line = word64(&head, 24);
    if command_line != 0 {
        info.command_line_len = read_string(memory, command_line, &mut info.command_line);
    }
    Ok(info)
}

/// RAM only. What other types of memory are is of no interest, but they may overlap RAM, and then win.
fn read_memory_map(memory: &impl Memory, address: u64, count: u32) -> MemoryMap {
    let entries = || {
        (0..count.min(MAX_ENTRIES)).map_while(move |index| {
            let at = address.checked_add(u64::from(index) * MEMORY_MAP_ENTRY_SIZE as u64)?;
            record::<MEMORY_MAP_ENTRY_SIZE>(memory, at)
        })
    };
    let range = |entry: &[u8; MEMORY_MAP_ENTRY_SIZE]| {
        PhysRange::new(PhysAddr::new(word64(entry, 0)), word64(entry, 8)).ok()
    };
    let is_ram = |entry: &[u8; MEMORY_MAP_ENTRY_SIZE]| word32(entry, 16) == MEMORY_TYPE_RAM;
    let mut map = MemoryMap::new();
    for ram in entries().filter(is_ram).filter_map(|entry| range(&entry)) {
        // Twice the same memory would be handed out twice.
        map.remove(ram);
        map.add(ram);
    }
    for hole in entries().filter(|entry| !is_ram(entry)).filter_map(|entry| range(&entry)) {
        map.remove(hole);
    }
    map
}

fn read_modules(memory: &impl Memory, address: u64, count: u32) -> MemoryMap {
    let mut map = MemoryMap::new();
    for index in 0..count.min(MAX_ENTRIES) {
        let at = address.checked_add(u64::from(index) * MODULE_ENTRY_SIZE as u64);
        let Some(entry) = at.and_then(|at| record::<MODULE_ENTRY_SIZE>(memory, at)) else {
            break;
        };
        if let Ok(range) = PhysRange::new(PhysAddr::new(word64(&entry, 0)), word64(&entry, 8)) {
            map.add(range);
        }
    }
    map
}

/// Copies a string up to its NUL, what is out of reach, or the end of the buffer; returns its length.
fn read_string(memory: &impl Memory, address: u64, buffer: &mut [u8]) -> usize {
    let mut len = 0;
    for byte in buffer {
        let copied = address.checked_add(len as u64).and_then(|at| record::<1>(memory, at));
        match copied {
            Some([value]) if value != 0 => *byte = value,
            _ => break,
        }
        len += 1;
    }
    len
}

/// Looks for the root pointer where firmware of a PC puts it: on a 16-byte boundary in the first KiB of the EBDA or
/// in the BIOS area (ACPI 6.5, 5.2.5.1).
fn find_rsdp(memory: &impl Memory) -> Option<PhysAddr> {
    const EBDA_SEGMENT: u64 = 0x40e;
    const BIOS_AREA: core::ops::Range<u64> = 0xe_0000..0x10_0000;
    let ebda =
        record(memory, EBDA_SEGMENT).map(u16::from_le_bytes).map_or(0, |segment| u64::from(segment) << 4);
    let in_ebda = (ebda..ebda + 1024).step_by(16).filter(|_| ebda != 0);
    in_ebda.chain(BIOS_AREA.step_by(16)).find(|&at| is_rsdp(memory, at)).map(PhysAddr::new)
}

/// Signature and checksum of the 20 bytes of ACPI 1.0, which every version has.
fn is_rsdp(memory: &impl Memory, address: u64) -> bool {
    record::<20>(memory, address).is_some_and(|bytes| {
        bytes.starts_with(b"RSD PTR ") && bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte)) == 0
    })
}

fn record<const N: usize>(memory: &impl Memory, address: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    memory.copy(address, &mut bytes)?;
    Some(bytes)
}

/// The little-endian word at `offset`; zero past the end, which no caller asks for.
fn word32(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).map_or(0, |&word| u32::from_le_bytes(word))
}

fn word64(bytes: &[u8], offset: usize) -> u64 {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).map_or(0, |&word| u64::from_le_bytes(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    const START_INFO: usize = 0x1000;
    const MAP: usize = 0x2000;
    const MODULES: usize = 0x3000;
    const LINE: usize = 0x4000;

    /// Two MiB of memory with the structures that QEMU makes for a machine with 1 GiB.
    fn machine() -> Vec<u8> {
        let mut memory = vec![0; 2 << 20];
        put(&mut memory, START_INFO, &[MAGIC, 1, 0, 1]);
        put64(&mut memory, START_INFO + 16, &[MODULES as u64, LINE as u64, 0xf5270, MAP as u64]);
        put(&mut memory, START_INFO + 48, &[3, 0]);
        put64(&mut memory, MAP, &[0, 0x9_fc00, 1]);
        put64(&mut memory, MAP + 24, &[0x10_0000, 0x3ff0_0000, 1]);
        put64(&mut memory, MAP + 48, &[0x3ffe_0000, 0x2_0000, 2]);
        put64(&mut memory, MODULES, &[0x20_0000, 0x1234]);
        memory[LINE..LINE + 8].copy_from_slice(b"job=main");
        memory
    }

    fn put(memory: &mut [u8], at: usize, words: &[u32]) {
        for (slot, word) in memory[at..].chunks_exact_mut(4).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
    }

    fn put64(memory: &mut [u8], at: usize, words: &[u64]) {
        for (slot, word) in memory[at..].chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
    }

    fn read_from(memory: &[u8]) -> Result<StartInfo, StartInfoError> {
        let copy = |address: u64, buffer: &mut [u8]| {
            let start = usize::try_from(address).ok()?;
            buffer.copy_from_slice(memory.get(start..start.checked_add(buffer.len())?)?);
            Some(())
        };
        read(&copy, START_INFO as u64)
    }

    fn range(start: u64, len: u64) -> PhysRange {
        PhysRange::new(PhysAddr::new(start), len).unwrap()
    }

    #[test]
    fn ram_modules_root_pointer_and_command_line_are_found() {
        let info = read_from(&machine()).unwrap();
        let ram = [range(0, 0x9_fc00), range(0x10_0000, 0x3fee_0000)];
        assert!(info.ram.iter().eq(ram), "reserved memory wins over RAM: {:?}", info.ram);
        assert!(info.modules.iter().eq([range(0x20_0000, 0x1234)]));
        assert_eq!(info.rsdp, Some(PhysAddr::new(0xf5270)));
        assert_eq!(&info.command_line[..info.command_line_len], b"job=main");
    }

    #[test]
    fn memory_that_is_listed_twice_counts_once() {
        let mut memory = machine();
        put64(&mut memory, MAP, &[0x20_0000, 0x10_0000, 1]);
        let info = read_from(&memory).unwrap();
        assert_eq!(info.ram.iter().map(|ram| ram.len()).sum::<u64>(), 0x3fee_0000);
    }

    #[test]
    fn the_root_pointer_is_looked_for_with_its_checksum_when_the_loader_names_none() {
        let mut memory = machine();
        put64(&mut memory, START_INFO + 32, &[0]);
        assert_eq!(read_from(&memory).unwrap().rsdp, None);
        memory[0xe_0010..0xe_0018].copy_from_slice(b"RSD PTR ");
        assert_eq!(read_from(&memory).unwrap().rsdp, None);
        let sum = b"RSD PTR ".iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
        memory[0xe_0018] = sum.wrapping_neg();
        assert_eq!(read_from(&memory).unwrap().rsdp, Some(PhysAddr::new(0xe_0010)));
        // The EBDA is looked at first.
        memory[0x40e..0x410].copy_from_slice(&0x9fc0_u16.to_le_bytes());
        memory.copy_within(0xe_0010..0xe_0024, 0x9_fc00);
        assert_eq!(read_from(&memory).unwrap().rsdp, Some(PhysAddr::new(0x9_fc00)));
    }

    #[test]
    fn what_is_no_start_info_is_refused() {
        let mut memory = machine();
        put(&mut memory, START_INFO, &[0x1234]);
        assert_eq!(read_from(&memory).unwrap_err(), StartInfoError::Magic(0x1234));
        put(&mut memory, START_INFO, &[MAGIC, 0]);
        assert_eq!(read_from(&memory).unwrap_err(), StartInfoError::Version(0));
        assert_eq!(read_from(&memory[..START_INFO + 55]).unwrap_err(), StartInfoError::OutOfReach);
    }

    #[test]
    fn pointers_and_counts_that_lie_lead_to_errors_not_to_faults() {
        let mut memory = machine();
        put(&mut memory, START_INFO + 12, &[u32::MAX]);
        put64(&mut memory, START_INFO + 16, &[u64::MAX - 8, u64::MAX]);
        let info = read_from(&memory).unwrap();
        assert_eq!((info.modules.iter().count(), info.command_line_len), (0, 0));
        put64(&mut memory, START_INFO + 40, &[u64::MAX - 4]);
        put(&mut memory, START_INFO + 48, &[u32::MAX]);
        assert_eq!(read_from(&memory).unwrap_err(), StartInfoError::NoMemory);
    }

    #[test]
    fn a_command_line_without_end_is_cut_off() {
        let mut memory = machine();
        memory[LINE..LINE + 2 * COMMAND_LINE_SIZE].fill(b'x');
        assert_eq!(read_from(&memory).unwrap().command_line_len, COMMAND_LINE_SIZE);
    }
}
