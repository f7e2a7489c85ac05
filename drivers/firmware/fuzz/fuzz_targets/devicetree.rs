//! A whole device-tree blob.
#![no_main]

mod common;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(topology) = portcullis_firmware::devicetree::parse(data) {
        common::use_it(topology);
    }
});
