//! The order of things, as a unit sees it that does not snoop: what is in memory at which moment, and what is free when.

#[allow(dead_code, reason = "the driver's other tests use the rest")]
#[path = "driver/fake.rs"]
mod fake;
#[path = "../../vtd/tests/common/shadow.rs"]
mod shadow;

use fake::Fake;
use portcullis_hal::host::HostHal;
use portcullis_hal::{Arc, Attributes, EndpointId, FrameOrder, Frames, Gather, Iova, IovaRange, Mapped};
use portcullis_iommu::{Domain, DomainSpec, PagingSpec, Stage, Transition, Unit};
use portcullis_smmuv3::{Coherency, Driver, Options, Setup};
use shadow::{Event, Line, Uncached, Watched};
use std::collections::BTreeSet;

const SID: u32 = 0x321;
const IOVA: u64 = 0x12_3456_7000;
const CMDQ_PROD: usize = 0x98;
const ADDRESS: u64 = 0x000f_ffff_ffff_ffc0;

struct Bench {
    memory: Uncached,
    unit: Fake,
    driver: Driver<Uncached, Watched<Fake>>,
}

/// Where the entry of [`SID`] is, with the level-1 descriptor above it, and its table, with the context descriptor
/// between them in stage 1.
#[derive(Clone, Copy, Debug)]
struct Found {
    descriptor: u64,
    entry: u64,
    context: Option<u64>,
    table: u64,
}

fn endpoint(stream: u32) -> [EndpointId; 1] {
    [EndpointId::new(stream)]
}

impl Bench {
    fn new() -> Self {
        let hal = HostHal::new();
        let (memory, unit) = (Uncached::new(&hal), Fake::new(&hal));
        // 8-bit ASIDs and VMIDs.
        unit.state().ids[0] &= !(1 << 12 | 1 << 18);
        let watched = Watched { unit: unit.clone(), doorbell: CMDQ_PROD, memory: memory.clone() };
        let options =
            Options { coherency: Coherency::NotSnooped, timeout_ns: 60_000_000_000, ..Options::default() };
        let driver = Setup::new(memory.clone(), watched, options).unwrap().enable().unwrap();
        unit.opcodes();
        Self { memory, unit, driver }
    }

    fn paging(&self, stage: Stage) -> Arc<dyn Domain> {
        let spec = PagingSpec { stage: Some(stage), ..PagingSpec::default() };
        self.driver.new_domain(&DomainSpec::Paging(spec)).unwrap()
    }

    fn map(&self, domain: &Arc<dyn Domain>) -> Mapped<Frames<Uncached>, dyn Domain> {
        let frames = Frames::zeroed(&self.memory, FrameOrder::SINGLE).unwrap();
        Mapped::map(domain, Iova::new(IOVA), frames, Attributes::READ_WRITE).unwrap()
    }

    fn word(&self, phys: u64) -> Result<u64, String> {
        self.memory.word(phys).ok_or(format!("{phys:#x} was never cleaned"))
    }

    /// What the unit finds for [`SID`] in memory alone.
    fn find(&self) -> Result<Found, String> {
        let base = self.unit.state().get(0x80) & ADDRESS;
        let descriptor = base + u64::from(SID >> 8) * 8;
        let leaf = self.word(descriptor)?;
        if leaf & 0x1f == 0 {
            return Err("no level-2 table".into());
        }
        let entry = (leaf & ADDRESS) + u64::from(SID & 0xff) * 64;
        let word = self.word(entry)?;
        match word & 0xf {
            0b1011 => {
                let context = word & 0x00ff_ffff_ffff_ffc0;
                if self.word(context)? >> 31 & 1 == 0 {
                    return Err("the context descriptor is not valid".into());
                }
                let table = self.word(context + 8)? & 0x000f_ffff_ffff_fff0;
                Ok(Found { descriptor, entry, context: Some(context), table })
            }
            0b1101 => {
                let table = self.word(entry + 24)? & 0x000f_ffff_ffff_fff0;
                Ok(Found { descriptor, entry, context: None, table })
            }
            other => Err(format!("the entry is {other:#b}")),
        }
    }

    /// The leaf that the unit finds for [`IOVA`] in memory alone; both stages have four levels here.
    fn leaf(&self) -> Result<u64, String> {
        let mut table = self.find()?.table;
        for level in (0..4).rev() {
            let word = self.word(table + (IOVA >> (12 + 9 * level) & 511) * 8)?;
            if word & 1 == 0 {
                return Err(format!("nothing at level {level}"));
            }
            table = word & 0x0000_ffff_ffff_f000;
        }
        Ok(table)
    }

    /// The number of a domain's tag on the unit.
    fn tag(&self, domain: &Arc<dyn Domain>) -> String {
        let mut text = String::new();
        domain.describe(&mut text).unwrap();
        text.lines().find_map(|line| line.strip_prefix("tag: ")).unwrap().to_owned()
    }
}

const STAGES: [Stage; 2] = [Stage::Stage1, Stage::Stage2];

fn versions(events: &[Event], phys: u64) -> Vec<(usize, Line)> {
    let of_line = |(place, event): (usize, &Event)| match *event {
        Event::Cleaned(at, line) if at == phys & !63 => Some((place, line)),
        _ => None,
    };
    events.iter().enumerate().filter_map(of_line).collect()
}

fn is_doorbell(event: &Event) -> bool {
    matches!(event, Event::Doorbell(_))
}

#[test]
fn an_entry_is_complete_in_memory_before_it_is_valid_and_before_anything_leads_to_it() {
    for stage in STAGES {
        let bench = Bench::new();
        let then = bench.memory.now();
        let domain = bench.paging(stage);
        bench.driver.attach(&endpoint(SID), &domain).unwrap();
        let found = bench.find().unwrap();
        assert_eq!(found.table, domain.info().root.unwrap().root.get());
        let events = bench.memory.since(then);
        let entry = versions(&events, found.entry);
        let &(_, last) = entry.last().unwrap();
        assert!(entry.iter().all(|(_, line)| line[0] & 1 == 0 || *line == last), "{entry:x?}");
        let valid = entry.iter().find(|(_, line)| line[0] & 1 != 0).unwrap().0;
        let below = [Some(found.table), found.context].into_iter().flatten();
        for phys in below {
            assert!(versions(&events, phys).last().unwrap().0 < valid);
        }
        let linked = versions(&events, found.descriptor).last().unwrap().0;
        assert!(versions(&events, found.entry).first().unwrap().0 < linked, "the level-2 table comes first");
    }
}

#[test]
fn the_unit_finds_in_memory_what_is_mapped_and_not_what_was_unmapped_or_detached() {
    for stage in STAGES {
        let bench = Bench::new();
        let domain = bench.paging(stage);
        bench.driver.attach(&endpoint(SID), &domain).unwrap();
        let mapped = bench.map(&domain);
        assert_eq!(bench.leaf(), Ok(mapped.memory().phys().get()));
        drop(mapped.unmap().unwrap());
        assert_eq!(bench.leaf(), Err("nothing at level 0".into()));
        bench.driver.detach(&endpoint(SID)).unwrap();
        assert_eq!(bench.find().map(drop), Err("the entry is 0b0".into()));
    }
}

/// Between two commands that make the unit forget an entry it may mix all versions that were in memory.
#[test]
fn between_two_invalidations_an_entry_is_the_old_one_the_new_one_or_invalid_whatever_words_are_mixed() {
    let bench = Bench::new();
    let domains =
        [Stage::Stage1, Stage::Stage2, Stage::Stage2, Stage::Stage1].map(|stage| bench.paging(stage));
    let identity = bench.driver.new_domain(&DomainSpec::Identity(portcullis_hal::host::IDENTITY)).unwrap();
    let [a, b, c, d] = &domains;
    bench.driver.attach(&endpoint(SID), a).unwrap();
    let at = bench.find().unwrap().entry;
    let mut disruptive = 0;
    for to in [b, c, d, &identity, b, a, c] {
        let from = bench.memory.line(at).unwrap();
        let then = bench.memory.now();
        bench.unit.opcodes();
        let transition = bench.driver.attach(&endpoint(SID), to).unwrap();
        disruptive += u32::from(transition == Transition::Disruptive);
        let goal = bench.memory.line(at).unwrap();
        let mut seen: [BTreeSet<u64>; 8] = from.map(|word| BTreeSet::from([word]));
        let mut now = from;
        let events = bench.memory.since(then);
        // One command for each doorbell, besides the sync.
        let opcodes = bench.unit.opcodes();
        assert_eq!(opcodes.len(), events.iter().filter(|event| is_doorbell(event)).count());
        let mut opcodes = opcodes.into_iter();
        for event in events {
            match event {
                Event::Cleaned(phys, line) if phys == at => {
                    now = line;
                    for (seen, word) in seen.iter_mut().zip(line) {
                        seen.insert(word);
                    }
                    for choice in 0..256_u32 {
                        let mix: Line = std::array::from_fn(|i| {
                            let mut versions = seen[i].iter().copied();
                            let first = versions.next().unwrap();
                            if choice >> i & 1 == 0 { first } else { versions.last().unwrap_or(first) }
                        });
                        let same = |entry: &Line| {
                            mix[0] == entry[0] && (mix[0] & 0b1110 == 0b1000 || means(&mix, entry))
                        };
                        assert!(
                            mix[0] & 1 == 0 || same(&from) || same(&goal),
                            "{from:x?} {goal:x?}: {mix:x?}"
                        );
                    }
                }
                Event::Cleaned(..) => {}
                Event::Doorbell(_) => {
                    // CFGI_STE.
                    if opcodes.next() == Some(0x03) {
                        seen = now.map(|word| BTreeSet::from([word]));
                    }
                }
            }
        }
    }
    assert!(disruptive >= 3, "{disruptive}");
}

/// Whether two valid entries with the same first word mean the same.
fn means(a: &Line, b: &Line) -> bool {
    /// Word 1: what only stage 1 looks at, and what it does not.
    const STAGE_1: u64 = 0xff | 1 << 27 | 3 << 30;
    const SHCFG: u64 = 3 << 44;
    match a[0] >> 1 & 7 {
        0b101 => (a[1] ^ b[1]) & !SHCFG == 0 && (a[2] ^ b[2]) & 0xffff == 0,
        0b110 => (a[1] ^ b[1]) & !STAGE_1 == 0 && a[2..4] == b[2..4],
        _ => (a[1] ^ b[1]) & !STAGE_1 == 0,
    }
}

#[test]
fn a_table_that_was_cut_off_is_free_only_after_the_unit_was_asked() {
    for stage in STAGES {
        let bench = Bench::new();
        let domain = bench.paging(stage);
        bench.driver.attach(&endpoint(SID), &domain).unwrap();
        let mapped = bench.map(&domain);
        let in_use = bench.memory.hal.frames_in_use();
        let mut gather = Gather::new();
        let range = IovaRange::new(Iova::new(IOVA & !0x1f_ffff), 0x20_0000).unwrap();
        assert_eq!(portcullis_hal::host::unmap(&*domain, range, &mut gather), Ok(0x1000));
        let then = bench.memory.now();
        assert!(domain.sync(&mut gather).is_ok());
        let told = bench.memory.since(then).into_iter().find(is_doorbell);
        assert_eq!(told, Some(Event::Doorbell(in_use)), "free before the unit was asked");
        assert_eq!(bench.memory.hal.frames_in_use(), in_use - 1);
        drop(mapped);
    }
}

#[test]
fn a_tag_that_was_not_forgotten_is_not_given_out_again() {
    for (stage, opcode) in [(Stage::Stage1, 0x11), (Stage::Stage2, 0x28)] {
        let bench = Bench::new();
        let lost = bench.paging(stage);
        bench.driver.attach(&endpoint(SID), &lost).unwrap();
        let kept = bench.tag(&lost).replace(" for 1 endpoints", "");
        bench.unit.state().refuse = Some((opcode, 1));
        // The entry is gone, which is what was asked for; the tag is not forgotten.
        bench.driver.detach(&endpoint(SID)).unwrap();
        assert_eq!(bench.unit.state().refuse, Some((opcode, 0)), "it was refused");
        let mut others = Vec::new();
        for stream in 0..300 {
            let domain = bench.paging(stage);
            if bench.driver.attach(&endpoint(stream), &domain).is_err() {
                break;
            }
            assert_ne!(bench.tag(&domain).replace(" for 1 endpoints", ""), kept);
            others.push(domain);
        }
        assert_eq!(others.len(), 255 - 1);
    }
}
