//! Nothing that software, memory or devices do makes the model fail, and threads can share it.

use std::sync::Arc;

use portcullis_model::core::{
    Abort, Access, AddressKind, Memory, Mode, Outcome, PageRequest, Prng, Ram, Request, Schedule, Upstream,
};
use portcullis_model::vtd::{Config, Feature, Tearing, Vtd, points};

use crate::machine::*;

fn any_request(prng: &mut Prng) -> Request {
    let kinds = [AddressKind::Untranslated, AddressKind::TranslationRequest, AddressKind::Translated];
    let accesses = [Access::Read, Access::Write, Access::Execute];
    let address = if prng.chance(3, 4) { prng.below(8) << 12 } else { prng.next_u64() >> prng.below(64) };
    let requester = if prng.chance(7, 8) { DEVICE } else { prng.below(0x200) as u32 };
    let mut request = Request::read(requester, address)
        .with_kind(kinds[prng.below(4).saturating_sub(1) as usize])
        .with_access(accesses[prng.below(3) as usize]);
    if prng.chance(1, 2) {
        let pasid = if prng.chance(7, 8) { prng.below(4) } else { prng.below(1 << 20) };
        request = request.with_pasid(pasid as u32);
    }
    if prng.chance(1, 4) {
        request = request.privileged();
    }
    request
}

/// Now and then flips a bit.
fn flip(prng: &mut Prng, word: u64) -> u64 {
    if prng.chance(1, 6) { word ^ 1 << prng.below(64) } else { word }
}

/// Writes one structure, mostly a sensible one.
fn any_structure(machine: &Machine, prng: &mut Prng) {
    let words: Vec<u64> = match prng.below(8) {
        0 => {
            let root = flip(prng, CONTEXTS | 1);
            return machine.put(ROOT, &[root]);
        }
        1 => {
            let context = [DIRECTORY | prng.below(8) << 9 | prng.below(8) << 2 | 1, prng.below(3) % 2, 0, 0];
            let context = context.map(|word| flip(prng, word));
            return machine.put(CONTEXT, &context);
        }
        2 => {
            let entry = flip(prng, PASIDS | 1);
            return machine.put(DIRECTORY, &[entry]);
        }
        3 => {
            let (domain, first) = (prng.below(3), FIRST + (prng.below(2) << 15));
            let second = SECOND + (prng.below(2) << 15);
            let mut entry = match prng.below(5) {
                0 => first_stage(domain, first),
                1 => second_stage(domain, second),
                2 => nested(domain, first, second),
                3 => pass_through(domain),
                _ => [0; 8],
            };
            if prng.chance(1, 3) {
                entry[2] |= prng.below(256);
            }
            entry.map(|word| flip(prng, word)).to_vec()
        }
        _ => {
            // A table entry: to the next table, to a page, or nothing.
            let base = [FIRST, FIRST + 0x8000, SECOND, SECOND + 0x8000][prng.below(4) as usize];
            let level = prng.below(4);
            let next = if prng.chance(1, 8) { 0xfee0_0000 } else { base + (level + 1) * 0x1000 };
            let flags = [0, 1, 3, 7, 0x27, 0x67, 0x83, 0xe7][prng.below(8) as usize];
            let index = if level == 3 { prng.below(8) } else { 0 };
            let value = flip(prng, next | flags);
            return machine.put(base + level * 0x1000 + index * 8, &[value]);
        }
    };
    machine.put(PASIDS + prng.below(4) * 64, &words);
}

/// Guest pages of the tables are mapped to themselves, so that nested walks go on.
fn prepare(machine: &Machine) {
    for (first, second) in [(FIRST, SECOND), (FIRST + 0x8000, SECOND + 0x8000)] {
        machine.first_tables(first, 4);
        machine.second_tables(second, 4);
        for page in 0x30..0x50 {
            machine.put(Machine::slot(second, 4, page), &[(page << 12) | 3]);
        }
    }
}

/// Descriptors of every type, mostly well-formed.
fn any_descriptor(prng: &mut Prng) -> [u64; 2] {
    let (domain, pasid, page) = (prng.below(3), prng.below(4), prng.below(8) << 12);
    let device = u64::from(DEVICE);
    let [low, high] = match prng.below(12) {
        0 => [(1 + prng.below(3)) << 4 | 1 | device << 32, 0],
        1 => flush_domain(domain),
        2 => flush_pages(domain, page & !0x3fff, 2, prng.below(2)),
        3 => flush_pasid(domain, pasid),
        4 => flush_pasid_pages(domain, pasid, page, 0, prng.below(2)),
        5 => forget_pasid(domain, pasid),
        6 => [prng.below(4) << 4 | 7, 0],
        7 => flush_device(DEVICE, page),
        8 => [pasid << 32 | device << 16 | 8, page | prng.below(2)],
        9 => [pasid << 32 | device << 16 | 1 << 4 | 9, prng.below(8) << 3],
        10 => [4, 0],
        _ => [prng.below(16) << 4 | 5, STATUS],
    };
    [flip(prng, low), flip(prng, high)]
}

/// What a driver does about queue errors: replaces the descriptor and acknowledges.
fn recover(machine: &Machine) {
    let status = machine.unit.read32(FSTS);
    if status & 1 << 4 != 0 {
        machine.put(QUEUE + machine.unit.read64(IQH) % 4096, &[5, 0, 0, 0]);
    }
    machine.unit.write32(FSTS, status);
    machine.unit.write32(0xdc, 3);
}

/// Repairs what a random register write may have broken.
fn restart(machine: &Machine) {
    machine.unit.write32(GCMD, 0);
    machine.unit.step();
    machine.rewind();
    machine.unit.write64(IQT, 0);
    machine.unit.write64(IQA, QUEUE | 1 << 11);
    machine.unit.write64(RTADDR, ROOT | 1 << 10);
    machine.unit.write32(GCMD, QIE | TE | SRTP);
    machine.put(ROOT, &[CONTEXTS | 1]);
    machine.put(CONTEXT, &[DIRECTORY | 0x1d, 0, 0, 0]);
    machine.put(DIRECTORY, &[PASIDS | 1]);
    // Faults are taken out of the log.
    for index in 0..machine.unit.config().fault_records() {
        machine.unit.write64(machine.unit.config().fault_offset() + 16 * index + 8, 1 << 63);
    }
    prepare(machine);
}

#[test]
fn random_registers_memory_and_devices_do_no_harm() {
    let configs = [
        Config::full(),
        Config::full().with(Feature::CachingMode).with(Feature::WriteBufferFlush),
        Config { tearing: Tearing::Unrestricted, ..Config::full() },
        Config::least(),
        Config::qemu_first_stage(),
        Config::qemu_second_stage(),
    ];
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..seeds(2 * configs.len() as u64) {
        let config = configs[seed as usize % configs.len()];
        let mut prng = Prng::new(seed);
        let machine = Machine::new(config);
        prepare(&machine);
        machine.connect();
        machine.unit.write64(0xd0, REQUESTS);
        for point in [
            points::COMMAND_LATE,
            points::QUEUE_PAUSE,
            points::QUEUE_OVERTAKE,
            points::QUEUE_FETCH_ERROR,
            points::WAIT_LATE,
            points::DEVICE_TIME_OUT,
            points::COMPLETION_ERROR,
            points::FAULT_COLLAPSE,
            points::REQUEST_LATE,
        ] {
            machine.schedule.odds(point, 1, 8);
        }
        for _ in 0..1500 {
            match prng.below(12) {
                0 if prng.chance(1, 20) => {
                    machine.unit.write32(prng.below(0x140) * 4, prng.next_u64() as u32);
                    machine.unit.write64(prng.below(0xa0) * 8, prng.next_u64());
                }
                0 => recover(&machine),
                1 => {
                    let _ = (machine.unit.read32(prng.below(0x600)), machine.unit.read64(prng.below(0x600)));
                }
                2..=5 => any_structure(&machine, &mut prng),
                6 => machine.submit(&[any_descriptor(&mut prng)]),
                7 => machine.unit.step(),
                8 => {
                    for _ in 0..=prng.below(20) {
                        machine.unit.page_request(PageRequest {
                            address: prng.next_u64() & !0xfff,
                            last: prng.chance(1, 2),
                            group: prng.below(8) as u16,
                            ..page_request(0)
                        });
                    }
                }
                9 => {
                    machine.confirm();
                }
                _ => {
                    let request = any_request(&mut prng);
                    let reachable = machine.unit.reachable(request);
                    let mode = [Mode::Fresh, Mode::Hostile, Mode::Any][prng.below(3) as usize];
                    let outcome = machine.dma(request, mode);
                    assert!(
                        reachable.contains(&outcome),
                        "seed {seed}: {request:?} {outcome:?} {reachable:?}"
                    );
                }
            }
            if prng.chance(1, 50) {
                restart(&machine);
            }
            if prng.chance(1, 300) {
                machine.unit.watch(any_request(&mut prng));
            }
        }
        seen.extend(machine.unit.coverage().table().iter().map(|row| (row.0, row.1)));
    }
    // The storm reached the depths: enough kinds of faults, descriptors and queue errors.
    for (class, least) in [("fault", 18), ("descriptor", 12), ("queue error", 5), ("page request", 3)] {
        let kinds: Vec<_> = seen.iter().filter(|kind| kind.0 == class).map(|kind| kind.1).collect();
        assert!(kinds.len() >= least, "{class}: {kinds:?}");
    }
}

#[test]
fn threads_share_a_unit() {
    let machine = Machine::full();
    machine.second_tables(SECOND, 4);
    machine.pasid(0, second_stage(2, SECOND));
    let (unit, ram) = (Arc::clone(&machine.unit), Arc::clone(&machine.ram));
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (unit, ram) = (&unit, &ram);
            scope.spawn(move || {
                for turn in 0..300 {
                    match thread {
                        0 => ram.store(Machine::slot(SECOND, 4, 5), (turn << 12) | 3),
                        1 => {
                            let outcome = unit.dma(Request::read(DEVICE, 0x5000), Mode::Any).outcome;
                            assert!(matches!(outcome, Outcome::Done(_) | Outcome::Fault(0x79)));
                        }
                        _ => unit.step(),
                    }
                }
            });
        }
    });
    machine.clean();
}

/// Memory in which software changes an entry just before its accessed flag is set.
struct Racing {
    ram: Arc<Ram>,
    at: u64,
    with: u64,
}

impl Memory for Racing {
    fn read64(&self, address: u64) -> Option<u64> {
        self.ram.read64(address)
    }

    fn write64(&self, address: u64, value: u64) -> Result<(), Abort> {
        self.ram.write64(address, value)
    }

    fn compare_exchange64(&self, address: u64, current: u64, new: u64) -> Option<u64> {
        if address == self.at && self.ram.load(address) != self.with {
            self.ram.store(address, self.with);
        }
        self.ram.compare_exchange64(address, current, new)
    }
}

#[test]
fn a_flag_update_that_loses_a_race_walks_again() {
    let slot = Machine::slot(FIRST, 4, 5);
    let donor = Machine::cold(Config::full());
    donor.first_tables(FIRST, 4);
    donor.put(slot, &[0x9007]);
    donor.pasid(0, first_stage(2, FIRST));
    let memory = Arc::new(Racing { ram: Arc::clone(&donor.ram), at: slot, with: 0xa007 });
    let unit = Vtd::new(Config::full(), memory, Arc::new(Schedule::new(1)));
    unit.write64(RTADDR, ROOT | 1 << 10);
    unit.write32(GCMD, SRTP);
    unit.write32(GCMD, TE);
    let outcome = unit.dma(Request::read(DEVICE, 0x5000), Mode::Fresh).outcome;
    // The entry changed before its flag was set: the page of the old one must not be used.
    assert_eq!(outcome, Outcome::Done(0xa000));
}

#[test]
fn asking_changes_nothing_and_a_reset_forgets_all() {
    let machine = Machine::full();
    machine.pasid(0, pass_through(1));
    let request = Request::read(DEVICE, 0x5000);
    assert_eq!(machine.unit.expected(request), Outcome::Done(0x5000));
    assert_eq!(machine.reach(request), [Outcome::Done(0x5000)]);
    assert_eq!(machine.unit.cache_len(), [0; 4]);
    machine.second_tables(SECOND, 4);
    machine.put(Machine::slot(SECOND, 4, 5), &[0x9003]);
    machine.pasid(0, second_stage(2, SECOND));
    assert_eq!(machine.read(0x5000), Outcome::Done(0x9000));
    assert_eq!(machine.unit.cache_len(), [1, 1, 3, 1]);
    machine.unit.reset();
    assert_eq!((machine.unit.cache_len(), machine.unit.read32(GSTS)), ([0; 4], 0));
    assert_eq!(machine.read(0x5000), Outcome::Done(0x5000));
}

#[test]
fn protected_regions_hold_while_translation_is_off() {
    let machine = Machine::cold(Config::full().with(Feature::ProtectedLow));
    machine.unit.write32(0x68, 0x10_0000);
    machine.unit.write32(0x6c, 0x1f_f000);
    machine.unit.write32(0x64, 1 << 31);
    assert_eq!(machine.unit.read32(0x64) & 1, 1);
    assert_eq!(machine.read(0x1f_ffff), Outcome::Aborted);
    assert_eq!(machine.read(0x20_0000), Outcome::Done(0x20_0000));
    machine.unit.write32(0x64, 0);
    assert_eq!(machine.read(0x1f_ffff), Outcome::Done(0x1f_ffff));
    machine.clean();
}
