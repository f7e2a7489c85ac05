//! Memory with an RSDP at its start; its checksums are made right, what it points to is as it comes.
#![no_main]

mod common;

use portcullis_hal::{PhysAddr, PhysRange};

fn fix(bytes: &mut [u8], at: usize) {
    bytes[at] = 0;
    bytes[at] = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = portcullis_firmware::acpi::find_rsdp(data);
    let mut memory = data.to_vec();
    if memory.len() >= 36 {
        memory[..8].copy_from_slice(b"RSD PTR ");
        fix(&mut memory[..20], 8);
        memory[20..24].copy_from_slice(&36u32.to_le_bytes());
        fix(&mut memory[..36], 32);
    }
    // The root table's checksum too, wherever it is.
    let root = if memory.get(15).is_some_and(|revision| *revision >= 2) { 24 } else { 16 };
    if let Some(&root) = memory.get(root..).and_then(|bytes| bytes.first_chunk()) {
        let root = u32::from_le_bytes(root) as usize;
        let length =
            memory.get(root..).and_then(|table| table.get(4..)).and_then(|table| table.first_chunk());
        let length = length.map_or(0, |&length| u32::from_le_bytes(length) as usize);
        if length >= 36
            && let Some(table) = memory.get_mut(root..).and_then(|table| table.get_mut(..length))
        {
            fix(table, 9);
        }
    }
    let map = |range: PhysRange| {
        let start = usize::try_from(range.start().get()).ok()?;
        memory.get(start..)?.get(..usize::try_from(range.len()).ok()?)
    };
    if let Ok(topology) = portcullis_firmware::acpi::from_rsdp(&map, PhysAddr::new(0)) {
        common::use_it(topology);
    }
});
