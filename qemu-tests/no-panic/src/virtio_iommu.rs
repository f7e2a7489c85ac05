//! `portcullis-virtio-iommu`.

#![expect(unsafe_code, reason = "makes a register window")]

use crate::embedder::{Kernel, show};
use crate::iommu::unit;
use core::hint::black_box;
use core::ptr::NonNull;
use portcullis_virtio_iommu::{
    MmioTransport, MsixVector, Options, PciTransport, RegisterWindow, Setup, Transport, Vectors,
};

#[inline(never)]
pub(crate) fn probe() {
    // SAFETY: the program never runs.
    let window = |len: u32| unsafe { RegisterWindow::new(NonNull::dangling(), len as usize) };
    let map = |bar, offset, len| {
        black_box((bar, offset));
        black_box(Some(window(len)))
    };
    match PciTransport::probe(|offset| black_box(u32::from(offset)), map) {
        Ok(transport) => drive(transport),
        Err(error) => show(&error),
    }
    match MmioTransport::probe(black_box(window(0x200))) {
        Ok(transport) => drive(transport),
        Err(error) => show(&error),
    }
}

fn drive(transport: impl Transport) {
    let setup = match Setup::new(Kernel, transport, black_box(Options::default())) {
        Ok(setup) => setup,
        Err(error) => return show(&error),
    };
    let driver = match setup.enable() {
        Ok(driver) => driver,
        Err(error) => return show(&error),
    };
    let vector = black_box(MsixVector(0));
    if let Err(error) = driver.enable_interrupts(&Vectors { config: Some(vector), events: None }) {
        show(&error);
    }
    black_box(driver.malformed_events());
    match driver.unit() {
        Ok(driver) => unit(driver),
        Err(error) => show(&error),
    }
}
