//! The order of things, as a unit sees it that does not snoop: what is in memory at which moment, and what is free when.

mod common;
#[path = "common/shadow.rs"]
mod shadow;

use common::fake::{self, Conduct, FakeUnit};
use common::{Machine, endpoint, map_page, options};
use portcullis_hal::host::HostHal;
use portcullis_hal::{Arc, Gather, Iova, IovaRange};
use portcullis_iommu::{Domain, DomainSpec, PagingSpec, Transition, Unit};
use portcullis_vtd::{Driver, Setup};
use shadow::{Event, Uncached, Watched};

const SID: u16 = 0x0120;
const IOVA: u64 = 0x12_3456_7000;

struct Bench {
    memory: Uncached,
    unit: FakeUnit,
    driver: Driver<Uncached, Watched<FakeUnit>>,
}

/// Where the entries of [`SID`] are, and where its PASID entry leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    context: u64,
    directory: u64,
    pasid: u64,
    table: u64,
}

impl Bench {
    fn new(registers: (u64, u64)) -> Self {
        let hal = HostHal::new();
        let (memory, unit) = (Uncached::new(&hal), FakeUnit::new(&hal, registers));
        let watched = Watched { unit: unit.clone(), doorbell: fake::IQT, memory: memory.clone() };
        let driver = Setup::new(memory.clone(), watched, options()).unwrap().enable().unwrap();
        Self { memory, unit, driver }
    }

    fn paging(&self) -> Arc<dyn Domain> {
        self.driver.new_domain(&DomainSpec::Paging(PagingSpec::default())).unwrap()
    }

    fn word(&self, phys: u64) -> Result<u64, String> {
        self.memory.word(phys).ok_or(format!("{phys:#x} was never cleaned"))
    }

    /// What the unit finds for [`SID`] in memory alone.
    fn find(&self) -> Result<Found, String> {
        let present = |word: u64, what: &str| match word & 1 {
            0 => Err(format!("{what} is not present")),
            _ => Ok(word & !0xfff),
        };
        let root = self.unit.written(fake::RTADDR)[0] & !0xfff;
        let contexts = present(self.word(root + u64::from(SID >> 8) * 16)?, "root entry")?;
        let context = contexts + u64::from(SID & 0x7f) * 32;
        let directory = present(self.word(context)?, "context entry")?;
        let pasid = present(self.word(directory)?, "directory entry")?;
        let entry = self.word(pasid)?;
        present(entry, "PASID entry")?;
        let table = if entry >> 6 & 7 == 1 { self.word(pasid + 16)? } else { entry };
        Ok(Found { context, directory, pasid, table: table & !0xfff })
    }

    /// The leaf that the unit finds for an address in memory alone.
    fn leaf(&self, iova: u64) -> Result<u64, String> {
        let mut table = self.find()?.table;
        for level in (0..4).rev() {
            let entry = self.word(table + (iova >> (12 + 9 * level) & 511) * 8)?;
            if entry & 1 == 0 {
                return Err(format!("nothing at level {level}"));
            }
            table = entry & 0x000f_ffff_ffff_f000;
        }
        Ok(table)
    }
}

fn benches() -> [Bench; 2] {
    [Bench::new(fake::FIRST_STAGE), Bench::new(fake::SECOND_STAGE)]
}

/// The versions of the line at `phys` among these events, with their places.
fn versions(events: &[Event], phys: u64) -> Vec<(usize, shadow::Line)> {
    let of_line = |(place, event): (usize, &Event)| match *event {
        Event::Cleaned(at, line) if at == phys & !63 => Some((place, line)),
        _ => None,
    };
    events.iter().enumerate().filter_map(of_line).collect()
}

#[test]
fn an_entry_is_complete_in_memory_before_it_is_present_and_before_anything_leads_to_it() {
    for bench in benches() {
        let then = bench.memory.now();
        let domain = bench.paging();
        bench.driver.attach(&endpoint(SID), &domain).unwrap();
        let found = bench.find().unwrap();
        assert_eq!(found.table, domain.info().root.unwrap().root.get());
        let events = bench.memory.since(then);
        let pasid = versions(&events, found.pasid);
        let &(filled, last) = pasid.last().unwrap();
        for (_, line) in &pasid {
            assert!(line[0] & 1 == 0 || *line == last, "present and not complete: {line:x?}");
        }
        let half = (found.context % 64 / 8) as usize;
        let published = versions(&events, found.context);
        let published = published.iter().find(|(_, line)| line[half] & 1 != 0).unwrap().0;
        let linked = versions(&events, found.directory).last().unwrap().0;
        let table = versions(&events, found.table).last().unwrap().0;
        assert!(filled < published && linked < published && table < published);
    }
}

#[test]
fn the_unit_finds_in_memory_what_is_mapped_and_not_what_was_unmapped_or_detached() {
    for bench in benches() {
        let domain = bench.paging();
        bench.driver.attach(&endpoint(SID), &domain).unwrap();
        map_page(&domain, IOVA, 0x1234_5000).unwrap();
        assert_eq!(bench.leaf(IOVA), Ok(0x1234_5000));
        common::unmap(&domain, IOVA, 0x1000);
        assert_eq!(bench.leaf(IOVA), Err("nothing at level 0".into()));
        let other = bench.paging();
        bench.driver.attach(&endpoint(SID), &other).unwrap();
        assert_eq!(bench.find().unwrap().table, other.info().root.unwrap().root.get());
        bench.driver.detach(&endpoint(SID)).unwrap();
        assert_eq!(bench.find(), Err("context entry is not present".into()));
    }
}

#[test]
fn an_entry_keeps_its_content_until_the_unit_was_told_to_forget_it() {
    for bench in benches() {
        let domain = bench.paging();
        bench.driver.attach(&endpoint(SID), &domain).unwrap();
        let found = bench.find().unwrap();
        let [context, pasid] = [found.context, found.pasid].map(|phys| bench.memory.line(phys).unwrap());
        let then = bench.memory.now();
        bench.driver.detach(&endpoint(SID)).unwrap();
        let events = bench.memory.since(then);
        let told = events.iter().position(|event| matches!(event, Event::Doorbell(_))).unwrap();
        let half = (found.context % 64 / 8) as usize;
        let mut cleared = context;
        cleared[half] &= !1;
        let before: Vec<_> = versions(&events[..told], found.context).iter().map(|(_, line)| *line).collect();
        assert_eq!(before, [cleared], "the present bit goes first, and alone");
        assert!(versions(&events[..told], found.pasid).iter().all(|(_, line)| *line == pasid));
        assert_eq!(bench.memory.line(found.pasid), Some([0; 8]));
    }
}

#[test]
fn a_replacement_that_takes_several_stores_clears_the_present_bit_and_syncs_first() {
    let bench = Bench::new(fake::FIRST_STAGE);
    let (one, two) = (bench.paging(), bench.paging());
    bench.driver.attach(&endpoint(SID), &one).unwrap();
    // Somebody else stays in the old domain, so that the new one has another id.
    bench.driver.attach(&endpoint(SID + 1), &one).unwrap();
    let found = bench.find().unwrap();
    let old = bench.memory.line(found.pasid).unwrap();
    let then = bench.memory.now();
    assert_eq!(bench.driver.attach(&endpoint(SID), &two), Ok(Transition::Disruptive));
    let new = bench.memory.line(found.pasid).unwrap();
    let events = bench.memory.since(then);
    let told = events.iter().position(|event| matches!(event, Event::Doorbell(_))).unwrap();
    let before: Vec<_> = versions(&events[..told], found.pasid).iter().map(|(_, line)| line[0]).collect();
    assert_eq!(before, [old[0] & !1]);
    for (_, line) in versions(&events, found.pasid) {
        assert!(line[0] & 1 == 0 || line == new, "present and neither the old entry nor the new: {line:x?}");
    }
}

#[test]
fn a_device_alone_in_its_first_stage_domain_goes_to_the_next_by_one_store() {
    let bench = Bench::new(fake::FIRST_STAGE);
    let (one, two) = (bench.paging(), bench.paging());
    bench.driver.attach(&endpoint(SID), &one).unwrap();
    let found = bench.find().unwrap();
    let old = bench.memory.line(found.pasid).unwrap();
    let then = bench.memory.now();
    assert_eq!(bench.driver.attach(&endpoint(SID), &two), Ok(Transition::Hitless));
    let new = bench.memory.line(found.pasid).unwrap();
    assert_eq!(new[..2], old[..2], "the same domain id");
    assert_eq!(new[2] & !0xfff, two.info().root.unwrap().root.get());
    let events = bench.memory.since(then);
    let lines: Vec<_> = versions(&events, found.pasid).iter().map(|(_, line)| *line).collect();
    assert_eq!(lines, [new]);
    let id = |domain: &Arc<dyn Domain>| {
        let mut text = String::new();
        domain.describe(&mut text).unwrap();
        text.contains("domain id: ")
    };
    assert!(id(&two) && !id(&one));
}

#[test]
fn a_table_that_was_cut_off_is_free_only_after_the_unit_was_asked_and_its_walk_caches_too() {
    for bench in benches() {
        let domain = bench.paging();
        bench.driver.attach(&endpoint(SID), &domain).unwrap();
        let queue = bench.unit.written(fake::IQA)[0] & !0xfff;
        // The second word of the descriptor that the next doorbell shows, whose bit 6 is IH.
        let hint = |unmap: &dyn Fn()| {
            let slot = u64::from(bench.unit.get(fake::IQT));
            unmap();
            bench.unit.read_memory(queue + slot + 8) >> 6 & 1
        };
        map_page(&domain, IOVA, 0x1000).unwrap();
        let in_use = bench.memory.hal.frames_in_use();
        assert_eq!(hint(&|| assert_eq!(common::unmap(&domain, IOVA, 0x1000), 0x1000)), 1, "only a leaf");
        assert_eq!(bench.memory.hal.frames_in_use(), in_use);
        map_page(&domain, IOVA, 0x1000).unwrap();
        let then = bench.memory.now();
        assert_eq!(
            hint(&|| assert_eq!(common::unmap(&domain, IOVA & !0x1f_ffff, 0x20_0000), 0x1000)),
            0,
            "a table too"
        );
        let told = bench.memory.since(then).into_iter().find(|event| matches!(event, Event::Doorbell(_)));
        assert_eq!(told, Some(Event::Doorbell(in_use)), "free before the unit was asked");
        assert_eq!(bench.memory.hal.frames_in_use(), in_use - 1);
    }
}

#[test]
fn memory_is_not_given_back_by_a_sync_that_the_unit_refused() {
    for (registers, kind) in [(fake::FIRST_STAGE, 6), (fake::SECOND_STAGE, 2)] {
        let bench = Bench::new(registers);
        let domain = bench.paging();
        bench.driver.attach(&endpoint(SID), &domain).unwrap();
        map_page(&domain, IOVA, 0x1000).unwrap();
        let in_use = bench.memory.hal.frames_in_use();
        bench.unit.set_conduct(Conduct::Refuse(kind));
        let mut gather = Gather::new();
        let range = IovaRange::new(Iova::new(IOVA & !0x1f_ffff), 0x20_0000).unwrap();
        assert_eq!(portcullis_hal::host::unmap(&*domain, range, &mut gather), Ok(0x1000));
        assert!(domain.sync(&mut gather).is_err());
        assert_eq!(bench.memory.hal.frames_in_use(), in_use, "the cut-off table may still be walked");
    }
}

#[test]
fn a_domain_id_is_given_out_again_when_the_unit_has_forgotten_it_and_not_before() {
    let (cap, ecap) = fake::FIRST_STAGE;
    for (conduct, given_out) in [(Conduct::Refuse(1), 15), (Conduct::RefuseAll(1), 0)] {
        // Sixteen domain ids, of which 0 is nobody's.
        let machine = Machine::new((cap & !7, ecap));
        let left = machine.paging();
        machine.driver.attach(&endpoint(SID), &left).unwrap();
        machine.fake.set_conduct(conduct);
        let forgotten = machine.driver.detach(&endpoint(SID)).is_ok();
        assert_eq!(forgotten, given_out != 0);
        let mut text = String::new();
        left.describe(&mut text).unwrap();
        assert_eq!(text.contains("domain id: "), !forgotten, "{text}");
        let others: Vec<_> = (0..16).map(|_| machine.paging()).collect();
        let attached = (0..16)
            .zip(&others)
            .filter(|&(sid, domain)| machine.driver.attach(&endpoint(sid), domain).is_ok());
        assert_eq!(attached.count(), given_out);
    }
}
