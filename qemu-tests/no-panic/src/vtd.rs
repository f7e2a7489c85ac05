//! `portcullis-vtd`.

use crate::embedder::{Kernel, debug, registers, show};
use crate::iommu::{reserved, some_endpoints, unit};
use core::hint::black_box;
use portcullis_hal::{MsiMessage, PhysAddr};
use portcullis_vtd::{Features, Options, Setup};

#[inline(never)]
pub(crate) fn probe() {
    let [cap, ecap] = black_box([0_u64; 2]);
    if let Err(error) = Features::decode(cap, ecap, black_box(48)) {
        show(&error);
    }
    let setup = match Setup::new(Kernel, registers(), black_box(Options::new(48))) {
        Ok(setup) => setup,
        Err(error) => return show(&error),
    };
    if let Err(error) = setup.reserve_direct(&some_endpoints(), &reserved()) {
        show(&error);
    }
    let driver = match setup.enable() {
        Ok(driver) => driver,
        Err(error) => return show(&error),
    };
    debug(driver.features());
    let message = black_box(MsiMessage { address: PhysAddr::new(0), data: 0 });
    if let Err(error) = driver.enable_interrupts(message) {
        show(&error);
    }
    match driver.unit() {
        Ok(driver) => unit(driver),
        Err(error) => show(&error),
    }
}
