//! The bodies of MCFG and MADT, one after the other: the first byte is the length of the first.
#![no_main]

mod common;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let (split, rest) = data.split_first().map_or((0, data), |(split, rest)| (usize::from(*split), rest));
    let (mcfg, madt) = rest.split_at(split.min(rest.len()));
    common::read(&[&common::table(b"MCFG", mcfg), &common::table(b"APIC", madt)]);
});
