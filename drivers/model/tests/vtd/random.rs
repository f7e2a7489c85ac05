//! Random operations of a small driver that follows the rules, and of the same driver with one rule forgotten.
//!
//! The first is never accused, whatever the schedule does; each of the others is caught.

use portcullis_model::core::{Outcome, Prng, Request};
use portcullis_model::vtd::{Config, Feature, points};

use crate::machine::*;

/// A rule that the driver forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lapse {
    None,
    /// Unmapping a page without an IOTLB invalidation.
    Unmap,
    /// Replacing a table with the leaf-only hint.
    Hint,
    /// Detaching without a PASID-cache invalidation.
    Entry,
    /// Detaching without an IOTLB invalidation.
    Domain,
    /// Detaching with the IOTLB invalidation first.
    Order,
    /// Zeroing the entry before it is forgotten.
    Zero,
    /// In caching mode: mapping without an invalidation.
    Map,
}

const PAGES: u64 = 4;
const TABLES: [u64; 2] = [SECOND, 0x4_8000];
/// Two last-level tables per root, used in turn.
const LEAVES: [[u64; 2]; 2] = [[SECOND + 0x3000, SECOND + 0x4000], [0x4_b000, 0x4_c000]];

struct Driver {
    machine: Machine,
    lapse: Lapse,
    /// Which root is attached, under which domain id.
    attached: Option<(usize, u64)>,
    /// Which leaf table of each root is in use, and what it maps.
    leaf: [usize; 2],
    pages: [[Option<u64>; PAGES as usize]; 2],
    frame: u64,
    caching: bool,
}

impl Driver {
    fn new(config: Config, seed: u64, lapse: Lapse) -> Self {
        let machine = Machine::new(config);
        machine.schedule.odds(points::WAIT_LATE, 1, 3).odds(points::QUEUE_PAUSE, 1, 3);
        machine.schedule.odds(points::QUEUE_OVERTAKE, 1, 2);
        // Different seeds pause at different places.
        for _ in 0..seed % 97 {
            machine.schedule.pick("seed", 2);
        }
        for (table, leaves) in TABLES.into_iter().zip(LEAVES) {
            machine.second_tables(table, 4);
            machine.put(table + 0x2000, &[leaves[0] | 3]);
        }
        for page in 0..PAGES {
            machine.unit.watch(Request::read(DEVICE, page << 12));
        }
        let caching = config.has(Feature::CachingMode);
        let pages = [[None; PAGES as usize]; 2];
        Self { machine, lapse, attached: None, leaf: [0; 2], pages, frame: 0x100, caching }
    }

    fn sync(&self, descriptors: &[[u64; 2]]) {
        let (ticket, wait) = self.machine.ticket();
        self.machine.submit(descriptors);
        self.machine.unit.observe();
        self.machine.submit(&[wait]);
        assert!(self.machine.unit.settle(1000) && self.machine.done(ticket));
    }

    /// The domain id of a root, if it is attached.
    fn domain(&self, root: usize) -> Option<u64> {
        self.attached.filter(|attached| attached.0 == root).map(|attached| attached.1)
    }

    fn map(&mut self, root: usize, page: u64) {
        if self.pages[root][page as usize].is_some() {
            return;
        }
        self.frame += 1;
        let frame = self.frame << 12;
        self.machine.put(LEAVES[root][self.leaf[root]] + page * 8, &[frame | 3]);
        self.pages[root][page as usize] = Some(frame);
        if let Some(domain) = self.domain(root).filter(|_| self.caching && self.lapse != Lapse::Map) {
            self.sync(&[flush_pages(domain, page << 12, 0, 1)]);
        }
    }

    fn unmap(&mut self, root: usize, page: u64) {
        if self.pages[root][page as usize].take().is_none() {
            return;
        }
        self.machine.put(LEAVES[root][self.leaf[root]] + page * 8, &[0]);
        self.machine.unit.observe();
        if let Some(domain) = self.domain(root).filter(|_| self.lapse != Lapse::Unmap) {
            self.sync(&[flush_pages(domain, page << 12, 0, 1)]);
        }
    }

    /// Replaces the leaf table by an empty one.
    fn replace(&mut self, root: usize) {
        let next = 1 - self.leaf[root];
        self.machine.put(LEAVES[root][next], &[0; 512]);
        self.machine.put(TABLES[root] + 0x2000, &[LEAVES[root][next] | 3]);
        self.leaf[root] = next;
        self.pages[root] = [None; PAGES as usize];
        self.machine.unit.observe();
        if let Some(domain) = self.domain(root) {
            self.sync(&[flush_pages(domain, 0, 9, u64::from(self.lapse == Lapse::Hint))]);
        }
    }

    fn attach(&mut self, root: usize) {
        if self.attached.is_some() {
            return;
        }
        // Both roots use the same domain id, which must have been forgotten.
        self.attached = Some((root, 2));
        self.machine.pasid(0, second_stage(2, TABLES[root]));
        if self.caching {
            self.sync(&[forget_pasid(2, 0), flush_domain(2)]);
        }
    }

    fn detach(&mut self) {
        let Some((_, domain)) = self.attached.take() else { return };
        let low = self.machine.ram.load(PASIDS);
        if self.lapse == Lapse::Zero {
            // Within the first quantum, so that the second word is torn off a present entry.
            self.machine.put(PASIDS + 8, &[0]);
            self.machine.unit.observe();
        }
        self.machine.put(PASIDS, &[low & !1]);
        self.machine.unit.observe();
        match self.lapse {
            Lapse::Entry => self.sync(&[flush_domain(domain)]),
            Lapse::Domain => self.sync(&[forget_pasid(domain, 0)]),
            Lapse::Order => {
                self.sync(&[flush_domain(domain)]);
                self.sync(&[forget_pasid(domain, 0)]);
            }
            _ => self.sync(&[forget_pasid(domain, 0), flush_domain(domain)]),
        }
    }

    /// Whether all that is reachable is what the driver means.
    fn holds(&self) -> bool {
        (0..PAGES).all(|page| {
            let meant = match self.attached {
                None => Outcome::Fault(0x59),
                Some((root, _)) => match self.pages[root][page as usize] {
                    Some(frame) => Outcome::Done(frame),
                    None => Outcome::Fault(0x79),
                },
            };
            self.machine.reads(page << 12) == [meant]
        })
    }

    fn operate(&mut self, prng: &mut Prng) {
        let (root, page) = (prng.below(2) as usize, prng.below(PAGES));
        match prng.below(8) {
            0..=2 => self.map(root, page),
            3 | 4 => self.unmap(root, page),
            5 => self.replace(root),
            6 => self.attach(root),
            _ => self.detach(),
        }
    }
}

/// Runs a driver; gives the operation after which something else than meant was reachable.
fn run(config: Config, seed: u64, lapse: Lapse, operations: u32) -> (Option<u32>, Driver) {
    let mut driver = Driver::new(config, seed, lapse);
    let mut prng = Prng::new(seed);
    for operation in 0..operations {
        driver.operate(&mut prng);
        driver.machine.unit.observe();
        if !driver.holds() {
            return (Some(operation), driver);
        }
    }
    (None, driver)
}

#[test]
fn a_driver_that_follows_the_rules_is_never_accused() {
    let mut counts = std::collections::BTreeMap::new();
    for config in [Config::full(), Config::full().with(Feature::CachingMode)] {
        for seed in 0..seeds(12) {
            let (wrong, driver) = run(config, seed, Lapse::None, 150);
            assert_eq!(wrong, None, "seed {seed}");
            driver.machine.clean();
            for (class, name, to, count) in driver.machine.unit.coverage().table() {
                *counts.entry((class, name, to)).or_insert(0) += count;
            }
        }
    }
    for minimum in [
        ("descriptor", "PASID cache, PASID", ""),
        ("descriptor", "IOTLB, domain", ""),
        ("descriptor", "IOTLB, pages, leaf only", ""),
        ("descriptor", "IOTLB, pages", ""),
        ("pasid", "absent", "second stage"),
        ("pasid", "second stage", "absent"),
        ("invalidated", "PASID", "something"),
        ("invalidated", "translation", "something"),
    ] {
        assert!(counts.get(&minimum).is_some_and(|count| *count >= 50), "{minimum:?}: {counts:?}");
    }
}

#[test]
fn a_driver_that_forgets_a_rule_is_caught() {
    let caching = Config::full().with(Feature::CachingMode);
    for (lapse, config) in [
        (Lapse::Unmap, Config::full()),
        (Lapse::Hint, Config::full()),
        (Lapse::Entry, Config::full()),
        (Lapse::Domain, Config::full()),
        (Lapse::Order, Config::full()),
        (Lapse::Zero, Config::full()),
        (Lapse::Map, caching),
    ] {
        let caught = (0..8).filter(|&seed| run(config, seed, lapse, 300).0.is_some()).count();
        assert_eq!(caught, 8, "{lapse:?}");
    }
}
