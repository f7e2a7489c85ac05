//! A small raw driver at random, checked after every operation; and the same driver with one defect at a time.

use crate::bench::*;
use portcullis_model::core::{Mode, Outcome, Prng, Request};
use portcullis_model::smmuv3::{Config, code, points};

/// What the driver gets wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    UnmapWithoutTlbi,
    UnmapWithoutSync,
    UnmapWithWrongAsid,
    StoreAfterTlbi,
    CutWithLeafOnly,
    CutFreedBeforeSync,
    SteWithoutInvalidation,
    SteEditedInPlace,
    SteForAnotherStream,
    FlushBeforeDetach,
    AsidReusedWithoutFlush,
}

const STREAMS_USED: u32 = 3;
const DOMAINS: usize = 3;
const PAGES: usize = 4;
const POISON: u64 = 0x6660_0000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Blocked,
    Bypass,
    /// Stage 2, with fixed tables.
    Machine,
    Domain(usize),
}

struct Domain {
    asid: u64,
    pages: [Option<u64>; PAGES],
    /// Which of two places the last table is in.
    place: u64,
}

struct Driver {
    bench: Bench,
    prng: Prng,
    defect: Defect,
    domains: Vec<Domain>,
    streams: Vec<Target>,
    next_page: u64,
}

fn va(page: usize) -> u64 {
    VA + 0x1000 * page as u64
}

impl Driver {
    fn new(seed: u64, defect: Defect) -> Self {
        let bench = Bench::new(Config { step_on_access: true, ..Config::full() });
        bench
            .schedule
            .odds(points::CMDQ_PAUSE, 1, 3)
            .odds(points::CMDQ_SINGLE, 1, 2)
            .odds(points::SYNC_LATE, 1, 3)
            .odds(points::OBSERVE_SKIP, 1, 4);
        for stream in 0..STREAMS_USED {
            for page in 0..PAGES {
                bench.smmu.watch(Request::read(stream, va(page)));
            }
            bench.ste(stream, [1, 0, 0, 0, 0, 0, 0, 0]);
        }
        let smmu = bench.smmu.clone();
        bench.ram.set_hook(move |_, _| {
            smmu.step();
        });
        let domains: Vec<_> =
            (0..DOMAINS as u64).map(|n| Domain { asid: 1 + n, pages: [None; PAGES], place: 0 }).collect();
        let streams = vec![Target::Blocked; STREAMS_USED as usize];
        let driver = Self { bench, prng: Prng::new(seed), defect, domains, streams, next_page: 0 };
        (0..DOMAINS).for_each(|domain| driver.tables(domain));
        for page in 0..PAGES {
            driver.bench.map2(va(page), (OTHER + 0x1000 * page as u64) | LEAF2);
        }
        driver.bench.synced(&[[0x04, 31]]);
        driver
    }

    fn root(domain: usize) -> u64 {
        0x100_0000 + 0x10_0000 * domain as u64
    }

    fn last(&self, domain: usize) -> u64 {
        Self::root(domain) + 0x1_0000 + 0x1000 * self.domains[domain].place
    }

    /// An empty last table, linked in.
    fn tables(&self, domain: usize) {
        let (root, last) = (Self::root(domain), self.last(domain));
        for page in 0..PAGES {
            self.bench.ram.store_all(last + 8 * (va(page) >> 12 & 0x1ff), &[0]);
        }
        self.bench.ram.store_all(root + 8 * (VA >> 30), &[(root + 0x1000) | 3]);
        self.bench.ram.store_all(root + 0x1000 + 8 * (VA >> 21 & 0x1ff), &[last | 3]);
        self.bench.ram.store_all(root + 0x2000, &cd_of(self.domains[domain].asid, root));
    }

    fn leaf(&self, domain: usize, page: usize, value: u64) {
        self.bench.ram.store_all(self.last(domain) + 8 * (va(page) >> 12 & 0x1ff), &[value]);
    }

    fn sync(&self, commands: &[[u64; 2]]) {
        self.bench.synced(commands);
    }

    fn map(&mut self, domain: usize, page: usize) {
        self.unmap(domain, page);
        self.next_page += 1;
        let output = PAGE + 0x1000 * self.next_page;
        self.domains[domain].pages[page] = Some(output);
        self.leaf(domain, page, output | LEAF);
    }

    fn unmap(&mut self, domain: usize, page: usize) {
        if self.domains[domain].pages[page].take().is_none() {
            return;
        }
        let asid = self.domains[domain].asid;
        let tlbi = tlbi_va(0, asid, va(page));
        match self.defect {
            Defect::UnmapWithoutTlbi => {
                self.leaf(domain, page, 0);
                self.sync(&[]);
            }
            Defect::UnmapWithoutSync => {
                self.leaf(domain, page, 0);
                self.bench.commands(&[tlbi]);
            }
            Defect::UnmapWithWrongAsid => {
                self.leaf(domain, page, 0);
                self.sync(&[tlbi_va(0, asid + 1, va(page))]);
            }
            Defect::StoreAfterTlbi => {
                self.bench.commands(&[tlbi]);
                self.leaf(domain, page, 0);
                self.sync(&[]);
            }
            _ => {
                self.leaf(domain, page, 0);
                self.sync(&[tlbi]);
            }
        }
    }

    /// Cuts the last table off and lets its memory become something else.
    fn cut(&mut self, domain: usize) {
        let link = Self::root(domain) + 0x1000 + 8 * (VA >> 21 & 0x1ff);
        let old = self.last(domain);
        let asid = self.domains[domain].asid;
        self.bench.ram.store_all(link, &[0]);
        let poison = |bench: &Bench| {
            for page in 0..PAGES {
                bench.ram.store_all(old + 8 * (va(page) >> 12 & 0x1ff), &[POISON | LEAF]);
            }
        };
        // The pages and the pointer: 512 pages from the start of the 2 MiB region on, not only the last level.
        let leaf = u64::from(self.defect == Defect::CutWithLeafOnly);
        let range = [0x12 | asid << 48 | 9 << 20, VA & !0x1f_ffff | 1 << 10 | leaf];
        if self.defect == Defect::CutFreedBeforeSync {
            self.bench.commands(&[range]);
        } else {
            self.sync(&[range]);
        }
        poison(&self.bench);
        // Before the next CMD_SYNC: what is freed must be out of reach when it is used for something else.
        for stream in 0..STREAMS_USED {
            for page in 0..PAGES {
                let reachable = self.bench.smmu.reachable(Request::read(stream, va(page)));
                if reachable.iter().filter_map(|outcome| outcome.output()).any(|output| output == POISON) {
                    self.bench.smmu.coverage().count("test", "freed too early");
                }
            }
        }
        self.sync(&[]);
        self.domains[domain].pages = [None; PAGES];
        self.domains[domain].place ^= 1;
        self.tables(domain);
    }

    fn ste(&self, target: Target) -> [u64; 8] {
        match target {
            Target::Blocked => [1, 0, 0, 0, 0, 0, 0, 0],
            Target::Bypass => [9, 0, 0, 0, 0, 0, 0, 0],
            Target::Machine => ste2(),
            Target::Domain(domain) => ste1(Self::root(domain) + 0x2000),
        }
    }

    fn attach(&mut self, stream: u32, target: Target) {
        let words = self.ste(target);
        let at = STREAMS + 64 * u64::from(stream);
        let store = |word: u64| {
            self.bench.ram.store_all(at + 8 * word, &[words[word as usize]]);
        };
        match self.defect {
            Defect::SteEditedInPlace => {
                (0..8).for_each(store);
                let reachable = self.bench.smmu.reachable(Request::read(stream, va(0)));
                self.note_mixed(&reachable, stream, target);
                self.sync(&[cfgi_ste(stream)]);
            }
            Defect::SteWithoutInvalidation => {
                (0..8).rev().for_each(store);
                self.sync(&[]);
            }
            Defect::SteForAnotherStream => {
                self.bench.ram.store_all(at, &[0]);
                self.sync(&[cfgi_ste(stream)]);
                (0..8).rev().for_each(store);
                self.sync(&[cfgi_ste(stream ^ 1)]);
            }
            _ => {
                self.bench.ram.store_all(at, &[0]);
                self.sync(&[cfgi_ste(stream)]);
                (1..8).for_each(store);
                self.sync(&[cfgi_ste(stream)]);
                store(0);
                self.sync(&[cfgi_ste(stream)]);
            }
        }
        self.streams[stream as usize] = target;
    }

    /// An update in place must never look invalid; this driver's does.
    fn note_mixed(&self, reachable: &std::collections::BTreeSet<Outcome>, stream: u32, target: Target) {
        let broken = [code::C_BAD_STE, code::C_BAD_CD, code::F_CD_FETCH].map(Outcome::Fault);
        if self.streams[stream as usize] != target && broken.iter().any(|outcome| reachable.contains(outcome))
        {
            self.bench.smmu.coverage().count("test", "mixed entry");
        }
    }

    /// Ends a domain's life and begins another's, with the same ASID and new tables.
    fn recycle(&mut self, domain: usize) {
        let asid = self.domains[domain].asid;
        if self.defect == Defect::FlushBeforeDetach {
            self.sync(&[tlbi_asid(0, asid)]);
        }
        for stream in 0..STREAMS_USED {
            if self.streams[stream as usize] == Target::Domain(domain) {
                self.attach(stream, Target::Blocked);
            }
        }
        if !matches!(self.defect, Defect::FlushBeforeDetach | Defect::AsidReusedWithoutFlush) {
            self.sync(&[tlbi_asid(0, asid)]);
        }
        self.domains[domain].pages = [None; PAGES];
        self.domains[domain].place ^= 1;
        self.tables(domain);
    }

    fn step(&mut self) {
        let domain = self.prng.below(DOMAINS as u64) as usize;
        let page = self.prng.below(PAGES as u64) as usize;
        let stream = self.prng.below(u64::from(STREAMS_USED)) as u32;
        match self.prng.below(16) {
            0..=6 => self.map(domain, page),
            7..=9 => self.unmap(domain, page),
            10 => self.cut(domain),
            11..=13 => self.attach(stream, Target::Domain(domain)),
            14 => self.attach(stream, [Target::Bypass, Target::Blocked, Target::Machine][page % 3]),
            _ => self.recycle(domain),
        }
    }

    fn expected(&self, stream: u32, page: usize) -> Outcome {
        match self.streams[stream as usize] {
            Target::Blocked => Outcome::Aborted,
            Target::Bypass => Outcome::Done(va(page)),
            Target::Machine => Outcome::Done(OTHER + 0x1000 * page as u64),
            Target::Domain(domain) => match self.domains[domain].pages[page] {
                Some(output) => Outcome::Done(output),
                None => Outcome::Fault(code::F_TRANSLATION),
            },
        }
    }

    /// The first thing that is reachable and must not be, or the other way round.
    fn check(&self) -> Result<(), String> {
        if self.bench.smmu.coverage().of("test", "mixed entry") != 0 {
            return Err("an update in place was seen half done".into());
        }
        if self.bench.smmu.coverage().of("test", "freed too early") != 0 {
            return Err("a table is still walked that is memory for something else already".into());
        }
        for stream in 0..STREAMS_USED {
            for page in 0..PAGES {
                let request = Request::read(stream, va(page));
                let reachable: Vec<_> = self.bench.smmu.reachable(request).into_iter().collect();
                let expected = self.expected(stream, page);
                if reachable != [expected] {
                    return Err(format!(
                        "stream {stream} page {page}: {reachable:x?} instead of {expected:x?}"
                    ));
                }
                let hostile = self.bench.smmu.dma(request, Mode::Hostile).outcome;
                if hostile != expected {
                    return Err(format!("stream {stream} page {page}: hostile DMA gives {hostile:x?}"));
                }
            }
        }
        let violations = self.bench.smmu.take_violations();
        if violations.is_empty() { Ok(()) } else { Err(format!("{violations:?}")) }
    }
}

/// Runs the driver; gives at which operation it failed, and why.
fn run(seed: u64, operations: usize, defect: Defect) -> Result<(), (usize, String)> {
    let mut driver = Driver::new(seed, defect);
    for operation in 0..operations {
        driver.step();
        driver.check().map_err(|why| (operation, why))?;
    }
    if defect == Defect::None {
        let minima = [
            ("ste", "invalid", "stage 1", 5),
            ("ste", "stage 1", "invalid", 5),
            ("lookup", "as memory says", "", 1000),
            ("command", "TLBI_NH_VA", "", 20),
            ("command", "CFGI_STE", "", 20),
        ];
        assert_eq!(driver.bench.smmu.coverage().below(&minima), [""; 0], "{}", driver.bench.smmu.coverage());
    }
    Ok(())
}

#[test]
fn a_correct_driver_never_reaches_what_it_must_not() {
    for seed in 0..8 {
        assert_eq!(run(seed, 250, Defect::None), Ok(()), "seed {seed}");
    }
}

#[test]
fn every_defect_is_found() {
    for defect in [
        Defect::UnmapWithoutTlbi,
        Defect::UnmapWithoutSync,
        Defect::UnmapWithWrongAsid,
        Defect::StoreAfterTlbi,
        Defect::CutWithLeafOnly,
        Defect::CutFreedBeforeSync,
        Defect::SteWithoutInvalidation,
        Defect::SteEditedInPlace,
        Defect::SteForAnotherStream,
        Defect::FlushBeforeDetach,
        Defect::AsidReusedWithoutFlush,
    ] {
        let found = (0..10).find_map(|seed| run(seed, 250, defect).err().map(|why| (seed, why)));
        assert!(found.is_some(), "{defect:?}");
        println!("{defect:?}: {found:?}");
    }
}
