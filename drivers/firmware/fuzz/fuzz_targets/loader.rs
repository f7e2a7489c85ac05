//! A table-loader script that works on two small files.
#![no_main]

use portcullis_firmware::acpi::loader::{LoadedFile, allocations, run};
use portcullis_hal::PhysAddr;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = allocations(data).filter(Result::is_ok).count();
    let (mut a, mut b) = ([0; 64], [0; 256]);
    let mut files = [
        LoadedFile { name: "etc/acpi/rsdp", address: PhysAddr::new(0xf_0000), bytes: &mut a },
        LoadedFile { name: "etc/acpi/tables", address: PhysAddr::new(u64::MAX - 0xff), bytes: &mut b },
    ];
    let whole = data.len() - data.len() % 128;
    let _ = run(&data[..whole], &mut files);
});
