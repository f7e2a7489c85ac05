//! What random operations found, made small.

use crate::board::Kernel;
use crate::setups::Unit;
use crate::space::Driver;
use portcullis_hal::EndpointId;
use portcullis_iommu::{DomainSpec, PagingSpec, Stage, Unit as _};
use portcullis_model::core::{Outcome, Prng, Request};
use std::sync::atomic::Ordering;

pub(crate) const SID: u32 = 0x10;
pub(crate) const ENDPOINT: [EndpointId; 1] = [EndpointId::new(SID)];

/// A unit like QEMU's, that is up.
pub(crate) fn bench() -> (Kernel, Unit, Driver) {
    let kernel = Kernel::new(true);
    let mut unit = Unit::new(0, &kernel, &mut Prng::new(0));
    unit.schedule.calm();
    unit.start(&kernel, &[], 0).unwrap();
    let driver = unit.driver.clone().unwrap();
    (kernel, unit, driver)
}

/// Seed 11: a detach that the unit did not confirm left words of a live entry in its cache. The next detach zeroed
/// the table's root beside them.
#[test]
fn a_unit_that_does_not_answer_finds_no_new_words_beside_those_it_may_hold() {
    for stage in [Stage::Stage1, Stage::Stage2] {
        let (kernel, unit, driver) = bench();
        let spec = PagingSpec { stage: Some(stage), ..PagingSpec::default() };
        let domain = driver.new_domain(&DomainSpec::Paging(spec)).unwrap();
        driver.attach(&ENDPOINT, &domain).unwrap();
        unit.model.watch(Request::read(SID, 0x1000));
        unit.model.observe();
        unit.model.hang();
        kernel.0.spin_ns.store(50_000_000, Ordering::Relaxed);
        for _ in 0..2 {
            driver.detach(&ENDPOINT).unwrap_err();
            unit.model.observe();
        }
        let outcomes = unit.model.reachable(Request::read(SID, 0x1000));
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Fault(_))), "{outcomes:?}");
        assert_eq!(kernel.0.take_wrong(), Vec::<String>::new());
    }
}
