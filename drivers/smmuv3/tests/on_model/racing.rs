//! An unmap on one CPU at the very moment at which another one lets a device in, or cuts it off.

use crate::board::Handler;
use crate::pasids::{ADDRESS, Bench, SID, at, endpoint, pasid, permissions};
use crate::ram::lock;
use portcullis_hal::{Arc, Frames, Mapped};
use portcullis_iommu::{Domain, Requests, Stage, Unit as _};
use portcullis_model::core::{Outcome, Request};
use portcullis_model::smmuv3::{Config, Smmu};
use std::sync::Mutex;

type Page = Mapped<Frames<crate::board::Kernel>, dyn Domain>;

fn arrives(model: &Smmu, request: Request, page: Outcome) -> bool {
    model.reachable(request).contains(&page)
}

/// The unit caches all that it can.
fn warm(model: &Smmu, request: Request) {
    model.watch(request);
    model.observe();
}

/// Does `change`. In its middle, as soon as one of the driver's stores is in memory and the device could reach the page,
/// the page is unmapped.
fn unmap_amid(bench: &Bench, page: Page, with: Option<u32>, change: impl FnOnce()) {
    let request = Request { pasid: with, ..Request::read(SID, ADDRESS) };
    let model = bench.unit.model.clone();
    let output = at(&page);
    let page = std::sync::Arc::new(Mutex::new(Some(page)));
    let left = page.clone();
    let other_cpu: Handler = std::sync::Arc::new(move || {
        if !arrives(&model, request, output) {
            return;
        }
        // Its own stores are looked at too.
        let Some(page) = lock(&page).take() else { return };
        warm(&model, request);
        let _memory = page.unmap().unwrap();
        assert!(!arrives(&model, request, output), "the unmap is over, and the device reaches the page");
    });
    *lock(&bench.kernel.0.cleaned) = Some(other_cpu);
    change();
    *lock(&bench.kernel.0.cleaned) = None;
    assert!(lock(&left).is_none(), "there was no such moment");
    assert!(!arrives(&bench.unit.model, request, output), "the device reaches what was unmapped");
    bench.unit.model.unwatch_all();
}

fn attach(bench: &Bench, with: Option<u32>, domain: &Arc<dyn Domain>) {
    match with {
        None => bench.driver.attach(&endpoint(SID), domain).unwrap(),
        Some(number) => bench.driver.attach_pasid(&endpoint(SID), pasid(number), domain).unwrap(),
    };
}

fn detach(bench: &Bench, with: Option<u32>) {
    match with {
        None => bench.driver.detach(&endpoint(SID)).unwrap(),
        Some(number) => bench.driver.detach_pasid(&endpoint(SID), pasid(number)).unwrap(),
    }
}

/// Stages, and PASIDs under which the stream is attached; whether it may use any.
const CASES: [(Stage, Option<u32>, u8); 4] = [
    (Stage::Stage1, None, 0),
    (Stage::Stage2, None, 0),
    (Stage::Stage1, None, 8),
    (Stage::Stage1, Some(9), 8),
];

fn bench(bits: u8) -> Bench {
    // The unit sees a store when it is cleaned, and not before.
    let bench = Bench::new(Config { coherent: false, ..Config::full() });
    bench.driver.permit(&endpoint(SID), &permissions(bits, Requests::empty())).unwrap();
    bench
}

#[test]
fn what_is_unmapped_as_soon_as_a_device_is_let_in_is_forgotten_by_the_unit() {
    for (stage, with, bits) in CASES {
        let bench = bench(bits);
        // Twice: a domain that was attached before keeps its place among those that the domain invalidates.
        let (domain, mut page) = bench.mapped(stage);
        for _ in 0..2 {
            unmap_amid(&bench, page, with, || attach(&bench, with, &domain));
            detach(&bench, with);
            page = bench.map(&domain);
        }
        // In place of another domain.
        let (other, _other_page) = bench.mapped(stage);
        attach(&bench, with, &other);
        unmap_amid(&bench, page, with, || attach(&bench, with, &domain));
        bench.check();
    }
}

#[test]
fn what_is_unmapped_while_a_device_is_cut_off_is_forgotten_before_the_unmap_is_over() {
    for (stage, with, bits) in CASES {
        let bench = bench(bits);
        let (domain, page) = bench.mapped(stage);
        attach(&bench, with, &domain);
        warm(&bench.unit.model, Request { pasid: with, ..Request::read(SID, ADDRESS) });
        unmap_amid(&bench, page, with, || detach(&bench, with));
        bench.check();
    }
}
