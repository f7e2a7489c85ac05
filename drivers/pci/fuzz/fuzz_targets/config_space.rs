//! Everything that reads configuration space, on an image of it that the fuzzer wrote.
//!
//! The image holds a few functions, repeated over all buses. The first byte chooses how many, and the second which
//! bits of the registers can be written. Whatever the image says, there is no panic, and every walk ends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis_hal::{Mmio, PhysAddr};
use portcullis_pci::{
    Bars, BusAddress, BusMaster, BusRange, ConfigSpace, HostWindow, HostWindows, assign,
    clear_bus_master_everywhere, enable_acs, enumerate, isolation_groups,
};
use std::sync::Mutex;

/// The bytes of one function that the fuzzer gets to choose; the rest reads as zeros.
const IMAGE: usize = 0x400;

struct Image {
    words: Mutex<Vec<u32>>,
    functions: usize,
    writable: u32,
}

impl Image {
    fn new(data: &[u8]) -> Option<Self> {
        let (&[functions, writable], data) = data.split_first_chunk()?;
        let words = data
            .chunks_exact(4)
            .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        Some(Self {
            words: Mutex::new(words.collect()),
            functions: usize::from(functions % 16) + 1,
            writable: u32::from_ne_bytes([writable; 4]),
        })
    }

    fn index(&self, offset: usize) -> Option<usize> {
        let register = offset & 0xfff;
        (register < IMAGE).then_some(((offset >> 12) % self.functions * IMAGE + register) / 4)
    }
}

// SAFETY: the configuration space is plain bytes that nothing else reads.
unsafe impl Mmio for Image {
    fn read32(&self, offset: usize) -> u32 {
        let words = self.words.lock().unwrap();
        self.index(offset)
            .and_then(|at| words.get(at).copied())
            .unwrap_or(0)
    }

    fn write32(&self, offset: usize, value: u32) {
        let mut words = self.words.lock().unwrap();
        if let Some(word) = self.index(offset).and_then(|at| words.get_mut(at)) {
            *word = *word & !self.writable | value & self.writable;
        }
    }

    fn read64(&self, _: usize) -> u64 {
        unreachable!("configuration space takes accesses of 32 bits")
    }

    fn write64(&self, _: usize, _: u64) {
        unreachable!("configuration space takes accesses of 32 bits")
    }
}

fuzz_target!(|data: &[u8]| {
    let Some(image) = Image::new(data) else { return };
    let buses = BusRange::new(0, 7).expect("0 is not above 7");
    let config = ConfigSpace::new(image, 0, buses);
    if let Ok(mut functions) = enumerate(&config) {
        for function in &functions {
            assert!(
                function
                    .parent
                    .is_none_or(|parent| functions[parent].buses().is_some())
            );
            if let Ok(bars) = Bars::probe(&config, function) {
                assert!(bars.iter().all(|bar| bar.size.is_power_of_two()));
            }
        }
        enable_acs(&config, &mut functions);
        let groups = isolation_groups(&functions).expect("there is memory");
        assert_eq!(groups.len(), functions.len());
        clear_bus_master_everywhere(&config, &functions, |_| BusMaster::Clear).expect("there is memory");
    }
    let low = HostWindow::new(
        BusAddress::new(0x1000_0000),
        PhysAddr::new(0x1000_0000),
        0x1000_0000,
    );
    let high = HostWindow::new(BusAddress::new(1 << 39), PhysAddr::new(1 << 39), 1 << 39);
    // A refusal is as good as success; what counts is that it comes back.
    let _ = assign(
        &config,
        &HostWindows {
            low: low.ok(),
            high: high.ok(),
        },
    );
});
