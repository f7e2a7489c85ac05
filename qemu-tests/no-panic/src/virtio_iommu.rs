//! `portcullis-virtio-iommu`.

#![expect(unsafe_code, reason = "makes a register window")]

use crate::embedder::{Kernel, show};
use crate::iommu::unit;
use core::hint::black_box;
use core::ptr::NonNull;
use portcullis_virtio_iommu::{MsixVector, Options, PciTransport, RegisterWindow, Setup, Vectors};

#[inline(never)]
pub(crate) fn probe() {
    let map = |bar, offset, len: u32| {
        black_box((bar, offset));
        // SAFETY: the program never runs.
        black_box(Some(unsafe { RegisterWindow::new(NonNull::dangling(), len as usize) }))
    };
    let transport = match PciTransport::probe(|offset| black_box(u32::from(offset)), map) {
        Ok(transport) => transport,
        Err(error) => return show(&error),
    };
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
