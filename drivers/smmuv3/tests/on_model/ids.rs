//! Tags of 8 bits, all of them in use.

use crate::pasids::{ADDRESS, Bench, at, endpoint};
use portcullis_iommu::{AttachError, Stage, Unit as _};
use portcullis_model::core::Request;
use portcullis_model::smmuv3::Config;

/// Tag 0 is nobody's.
const TAGS: u32 = 255;

#[test]
fn the_256th_domain_gets_no_tag_until_one_is_free_which_the_unit_has_forgotten() {
    for (stage, forget) in [(Stage::Stage1, "TLBI_NH_ASID"), (Stage::Stage2, "TLBI_S12_VMALL")] {
        let bench = Bench::new(Config { asid16: false, vmid16: false, ..Config::full() });
        let (driver, model) = (&bench.driver, &bench.unit.model);
        let forgotten = || model.coverage().of("command", forget);
        let read = |sid| Request::read(sid, ADDRESS);
        // All map the same address, each to a page of its own.
        let all: Vec<_> = (0..=TAGS).map(|_| bench.mapped(stage)).collect();
        for (sid, (domain, page)) in (0..TAGS).zip(&all) {
            driver.attach(&endpoint(sid), domain).unwrap();
            model.watch(read(sid));
            assert_eq!(model.reachable(read(sid)), [at(page)].into());
        }
        // The unit holds a translation under each tag.
        model.observe();
        model.unwatch_all();
        let (last, last_page) = &all[TAGS as usize];
        let sid = TAGS + 1;
        let none_left = forgotten();
        for _ in 0..3 {
            assert_eq!(driver.attach(&endpoint(sid), last), Err(AttachError::NoFreeId));
        }
        assert_eq!(forgotten(), none_left);
        for freed in [17, 0, TAGS - 1] {
            let before = forgotten();
            driver.detach(&endpoint(freed)).unwrap();
            assert_eq!(forgotten(), before + 1, "the tag is free when the unit has forgotten it");
            driver.attach(&endpoint(sid), last).unwrap();
            // Under the tag that another domain's translation of this very address was cached with.
            assert_eq!(model.reachable(read(sid)), [at(last_page)].into());
            let (domain, _) = &all[freed as usize];
            assert_eq!(driver.attach(&endpoint(freed), domain), Err(AttachError::NoFreeId));
            driver.detach(&endpoint(sid)).unwrap();
            driver.attach(&endpoint(freed), domain).unwrap();
            assert_eq!(model.reachable(read(freed)), [at(&all[freed as usize].1)].into());
        }
        for (sid, (_, page)) in (0..TAGS).zip(&all) {
            assert_eq!(model.reachable(read(sid)), [at(page)].into());
        }
        bench.check();
    }
}
