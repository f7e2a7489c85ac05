//! The body of IORT, its first byte the revision.
#![no_main]

mod common;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    common::read(&[&common::table(b"IORT", data)]);
});
