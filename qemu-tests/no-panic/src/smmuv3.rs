//! `portcullis-smmuv3`.

use crate::embedder::{Kernel, debug, registers, show};
use crate::iommu::{reserved, some_endpoints, unit};
use core::hint::black_box;
use portcullis_hal::{MsiMessage, PhysAddr};
use portcullis_smmuv3::update::Entry;
use portcullis_smmuv3::{Interrupts, Options, Setup, entry, fault, update};

#[inline(never)]
pub(crate) fn probe() {
    pure();
    let options = black_box(Options::default());
    let mut setup = match Setup::new(Kernel, registers(), options) {
        Ok(setup) => setup,
        Err(error) => return show(&error),
    };
    debug(setup.info());
    if let Err(error) = setup.reserve_direct(&some_endpoints(), &reserved()) {
        show(&error);
    }
    let driver = match setup.enable() {
        Ok(driver) => driver,
        Err(error) => return show(&error),
    };
    debug(driver.features());
    let message = black_box(MsiMessage { address: PhysAddr::new(0), data: 0 });
    for interrupts in [Interrupts::Wired, Interrupts::Msi { events: message, errors: message }] {
        if let Err(error) = driver.enable_interrupts(interrupts) {
            show(&error);
        }
    }
    match driver.unit() {
        Ok(driver) => unit(driver),
        Err(error) => show(&error),
    }
}

/// What works on values alone.
fn pure() {
    let [from, to]: [Entry; 2] = black_box([[0; 8]; 2]);
    for used in [entry::used_by_ste, entry::used_by_cd] {
        black_box(update::plan(&from, &to, used));
    }
    black_box(fault::decode(black_box([0; 4])));
}
