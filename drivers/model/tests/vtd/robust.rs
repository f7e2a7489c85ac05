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
    let mut request = Request::read(prng.below(0x40) as u32, prng.next_u64() >> prng.below(64))
        .with_kind(kinds[prng.below(3) as usize])
        .with_access(accesses[prng.below(3) as usize]);
    if prng.chance(1, 2) {
        request = request.with_pasid(prng.below(1 << 20) as u32 >> prng.below(20));
    }
    if prng.chance(1, 4) {
        request = request.privileged();
    }
    request
}

/// Points into the tables more often than not, so that walks go on.
fn any_word(prng: &mut Prng) -> u64 {
    let table = (0x10 + prng.below(0x60)) << 12;
    match prng.below(4) {
        0 => prng.next_u64(),
        1 => 0,
        _ => table | prng.next_u64() & 0x3ff | 1,
    }
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
    for (seed, config) in configs.into_iter().enumerate() {
        let mut prng = Prng::new(seed as u64);
        let machine = Machine::new(config);
        machine.connect();
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
        for _ in 0..3000 {
            match prng.below(12) {
                0 => machine.unit.write32(prng.below(0x140) * 4, prng.next_u64() as u32),
                1 => machine.unit.write64(prng.below(0xa0) * 8, prng.next_u64()),
                2 => {
                    let _ = (machine.unit.read32(prng.below(0x600)), machine.unit.read64(prng.below(0x600)));
                }
                3..=5 => machine.put((0x10_000 + prng.below(0x6_0000)) & !7, &[any_word(&mut prng)]),
                6 => machine.submit(&[[prng.below(10) | prng.next_u64() << 4, prng.next_u64()]]),
                7 => machine.unit.step(),
                8 => machine.unit.page_request(PageRequest {
                    address: prng.next_u64(),
                    last: prng.chance(1, 2),
                    group: prng.below(512) as u16,
                    ..page_request(0)
                }),
                9 => {
                    machine.confirm();
                }
                _ => {
                    let request = any_request(&mut prng);
                    let reachable = machine.unit.reachable(request);
                    let mode = [Mode::Fresh, Mode::Hostile, Mode::Any][prng.below(3) as usize];
                    let outcome = machine.dma(request, mode);
                    assert!(reachable.contains(&outcome), "{request:?} {outcome:?} {reachable:?}");
                }
            }
            if prng.chance(1, 50) {
                machine.unit.write64(RTADDR, ROOT | 1 << 10);
                machine.unit.write32(GCMD, QIE | TE | SRTP);
            }
            if prng.chance(1, 200) {
                machine.unit.watch(any_request(&mut prng));
            }
        }
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
