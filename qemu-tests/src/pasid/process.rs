//! Shared virtual addresses: an endpoint works on a process's memory, at the process's addresses.

use anyhow::{Context, Result, ensure};

use super::pages::{ask, ask_again, collect, expect};
use super::rig::{Rig, done, refused};
use crate::endpoint::link::{Code, Invalidation, PageRequest, Response, Wanted};
use crate::endpoint::{Answer, Tag};

/// The start of a process's heap; its pages get memory when they are touched.
pub(crate) const HEAP: u64 = 0x10_0000_0000;
pub(crate) const PAGE: u64 = 0x1000;

/// A process and a device that works in it.
pub(crate) struct Bound {
    process: String,
    bond: String,
    pasid: u32,
    id: String,
    endpoint: usize,
}

impl Bound {
    /// Binds an endpoint to a process.
    pub(crate) fn new(rig: &mut Rig, endpoint: usize, process: &str) -> Result<Self> {
        let (id, place) = rig.endpoint(endpoint)?;
        let lines = rig.ask(&format!("bind {place} {process}"))?;
        let line = lines.iter().find_map(|line| line.strip_prefix("bond: ")).context("no bond")?;
        let (bond, pasid) = line.split_once(" pasid=0x").context("no PASID")?;
        let pasid = u32::from_str_radix(pasid, 16)?;
        Ok(Self { process: process.to_owned(), bond: bond.to_owned(), pasid, id, endpoint })
    }

    fn tag(&self) -> Tag {
        Tag::Pasid(self.pasid)
    }

    /// The process writes a word.
    fn store(&self, rig: &mut Rig, address: u64, value: u64) -> Result<()> {
        rig.ask(&format!("store {} {address:#x} {value:#x}", self.process)).map(drop)
    }

    /// The process reads a word.
    fn load(&self, rig: &mut Rig, address: u64) -> Result<u64> {
        load(rig, &self.process, address)
    }

    /// The endpoint reads a word.
    fn read(&self, rig: &mut Rig, address: u64) -> Result<u64> {
        let bytes = done(rig.link.read(&self.id, self.tag(), address, 8)?, "a read")?;
        Ok(u64::from_le_bytes(bytes.as_slice().try_into()?))
    }

    /// The endpoint writes a word by a translation that it keeps.
    fn cached_write(&self, rig: &mut Rig, address: u64, value: u64) -> Result<Answer<()>> {
        rig.link.cached_write(&self.id, self.tag(), address, &value.to_le_bytes())
    }

    /// The endpoint asks for a translation for writes.
    fn translate(&self, rig: &mut Rig, address: u64) -> Result<Answer<()>> {
        let answer = rig.link.translate(&self.id, self.tag(), address, Wanted::ReadWrite)?;
        Ok(match answer {
            Answer::Done(_) => Answer::Done(()),
            Answer::Fault => Answer::Fault,
            Answer::Refused(why) => Answer::Refused(why),
        })
    }

    pub(crate) fn request(&self, address: u64, access: &'static str, group: u16) -> PageRequest {
        PageRequest { tag: self.tag(), address, access, group, last: true }
    }

    pub(crate) fn response(&self, group: u16, code: Code) -> Response {
        Response { tag: self.tag(), group, code }
    }

    /// The endpoint writes a word as an endpoint does: it asks for a translation, if there is none for the page, and
    /// asks again.
    fn write(&self, rig: &mut Rig, address: u64, value: u64, group: u16) -> Result<()> {
        if self.translate(rig, address)? == Answer::Fault {
            ask(rig, self.endpoint, self.request(address, "rw", group))?;
            expect(rig, self.endpoint, &[self.response(group, Code::Success)])?;
            done(self.translate(rig, address)?, "the second translation")?;
        }
        done(self.cached_write(rig, address, value)?, "the retry")
    }

    /// A page request for a write is refused.
    fn denied(&self, rig: &mut Rig, address: u64, group: u16) -> Result<()> {
        ensure!(self.translate(rig, address)? == Answer::Fault, "a translation for writes to {address:#x}");
        ask(rig, self.endpoint, self.request(address, "rw", group))?;
        expect(rig, self.endpoint, &[self.response(group, Code::Invalid)])
    }

    /// The endpoint was told to forget a page.
    fn told(&self, rig: &mut Rig, address: u64) -> Result<()> {
        let told = rig.link.invalidations(&self.id)?;
        let covers = |range: &Invalidation| {
            range.tag == self.tag() && range.first <= address && address + (PAGE - 1) <= range.last
        };
        ensure!(told.iter().any(covers), "of {address:#x}, the endpoint was told {told:x?}");
        refused(self.cached_write(rig, address, 0xee)?, "no translation")
    }
}

fn load(rig: &mut Rig, process: &str, address: u64) -> Result<u64> {
    let lines = rig.ask(&format!("load {process} {address:#x}"))?;
    let value = lines.iter().find_map(|line| line.strip_prefix("value: 0x")).context("no value")?;
    Ok(u64::from_str_radix(value, 16)?)
}

pub(crate) fn process(rig: &mut Rig, how: &str) -> Result<String> {
    let lines = rig.ask(&format!("process {how}"))?;
    let name = lines.iter().find_map(|line| line.strip_prefix("process: ")?.split(' ').next());
    Ok(name.context("no process")?.to_owned())
}

/// The same memory at the same addresses, the same faults, the same end.
pub(super) fn bind(rig: &mut Rig) -> Result<()> {
    let name = process(rig, "new 64K")?;
    let bound = Bound::new(rig, 0, &name)?;

    // What the process has written the endpoint reads, and the other way round.
    bound.store(rig, HEAP, 0x1111)?;
    ensure!(
        bound.read(rig, HEAP)? == 0x1111,
        "the endpoint reads something else than the process has written"
    );
    bound.write(rig, HEAP + 8, 0x2222, 1)?;
    ensure!(
        bound.load(rig, HEAP + 8)? == 0x2222,
        "the process reads something else than the endpoint has written"
    );
    // A page that neither has touched: the endpoint's request gets it, zeroed but for what was written.
    bound.write(rig, HEAP + 3 * PAGE, 0x3333, 2)?;
    ensure!(bound.load(rig, HEAP + 3 * PAGE)? == 0x3333, "the data is not in the process's buffer");
    ensure!(bound.load(rig, HEAP + 3 * PAGE + 8)? == 0, "the page was not zeroed");
    rig.no_fault()?;
    rig.link.invalidations(&bound.id)?;

    // A copy of the process: the first write of the endpoint takes the page apart.
    let child = process(rig, &format!("fork {name}"))?;
    bound.told(rig, HEAP)?;
    bound.write(rig, HEAP, 0x4444, 3)?;
    ensure!(bound.load(rig, HEAP)? == 0x4444, "the write is not in the process's memory");
    ensure!(load(rig, &child, HEAP)? == 0x1111, "the write reached the copy");
    rig.link.invalidations(&bound.id)?;

    // Read only: the write is refused, the read is not.
    rig.ask(&format!("protect {name} {HEAP:#x} 4K r"))?;
    bound.told(rig, HEAP)?;
    bound.denied(rig, HEAP, 4)?;
    rig.blocked(0, bound.pasid, HEAP)?;
    ensure!(bound.read(rig, HEAP)? == 0x4444, "the endpoint cannot read any more");
    // Gone.
    rig.link.invalidations(&bound.id)?;
    rig.ask(&format!("release {name} {:#x} 4K", HEAP + 3 * PAGE))?;
    rig.blocked(0, bound.pasid, HEAP + 3 * PAGE)?;
    bound.denied(rig, HEAP + 3 * PAGE, 5)?;
    rig.ask_in_vain(&format!("load {name} {:#x}", HEAP + 3 * PAGE), "denied")?;

    rig.ask(&format!("unbind {}", bound.bond))?;
    rig.unattached(0, bound.pasid, HEAP)?;
    ensure!(bound.load(rig, HEAP)? == 0x4444, "the process lost its memory with the bond");
    rig.no_fault()
}

/// A process that ends takes the endpoint's access along, whatever bonds there are; others go on.
pub(super) fn exit(rig: &mut Rig) -> Result<()> {
    let (first, second) = (process(rig, "new 64K")?, process(rig, "new 64K")?);
    let one = Bound::new(rig, 0, &first)?;
    let two = Bound::new(rig, 1, &second)?;
    let shared = Bound::new(rig, 1, &first)?;
    ensure!(one.pasid == shared.pasid, "a process has one PASID: {} and {}", one.pasid, shared.pasid);
    ensure!(one.pasid != two.pasid, "two processes have one PASID");
    one.write(rig, HEAP, 1, 1)?;
    two.write(rig, HEAP, 2, 2)?;
    shared.write(rig, HEAP + 8, 3, 3)?;
    let found = [one.load(rig, HEAP)?, one.load(rig, HEAP + 8)?, two.load(rig, HEAP)?];
    ensure!(found == [1, 3, 2], "{found:?} is in memory");
    rig.no_fault()?;

    let lines = rig.ask(&format!("exit {first}"))?;
    let told = lines.iter().filter(|line| line.starts_with("exit: device ")).count();
    ensure!(told == 2, "{told} of two drivers were told of the exit");
    for bound in [&one, &shared] {
        refused(bound.cached_write(rig, HEAP, 0xee)?, "no translation")?;
        let answer = rig.link.write(&bound.id, bound.tag(), HEAP, &[0xee])?;
        ensure!(answer == Answer::Fault, "a write after the exit: {answer:?}");
        ensure!(bound.translate(rig, HEAP)? == Answer::Fault, "a translation after the exit");
    }
    two.write(rig, HEAP + PAGE, 4, 4)?;
    ensure!(two.load(rig, HEAP + PAGE)? == 4, "another process suffers");
    let (_, place) = rig.endpoint(0)?;
    rig.ask_in_vain(&format!("bind {place} {first}"), "gone")?;

    // The PASID stays taken up to the last bond.
    let third = process(rig, "new 64K")?;
    let early = Bound::new(rig, 0, &third)?;
    ensure!(early.pasid != one.pasid, "PASID {} of a bond that has not ended was given away", one.pasid);
    for bound in [&one, &shared, &two] {
        rig.ask(&format!("unbind {}", bound.bond))?;
    }
    early.write(rig, HEAP, 5, 5)?;
    ensure!(early.load(rig, HEAP)? == 5, "a new process does not get its data");
    Ok(())
}

/// A process ends while its endpoint waits for a page. Its driver waits in turn, for the answer, before it lets the
/// process go.
pub(super) fn exit_in_wait(rig: &mut Rig) -> Result<()> {
    let name = process(rig, "new 64K")?;
    let bound = Bound::new(rig, 0, &name)?;
    let (_, place) = rig.endpoint(0)?;
    bound.write(rig, HEAP, 1, 1)?;
    rig.ask("hold")?;
    ask(rig, 0, bound.request(HEAP + PAGE, "rw", 2))?;
    rig.ask(&format!("exit {name}"))?;
    expect(rig, 0, &[bound.response(2, Code::Invalid)])?;
    rig.ask(&format!("serve {place}"))?;
    refused(bound.cached_write(rig, HEAP, 0xee)?, "no translation")?;
    rig.ask(&format!("unbind {}", bound.bond))?;
    expect(rig, 0, &[])?;
    rig.no_fault()
}

/// A process ends in the middle of a flood: each request that the unit took has one answer, and
/// another process's endpoint goes on.
pub(super) fn exit_in_flood(rig: &mut Rig) -> Result<()> {
    let other = process(rig, "new 64K")?;
    let other = Bound::new(rig, 1, &other)?;
    for round in 0..3 {
        let name = process(rig, "new 4M")?;
        let bound = Bound::new(rig, 0, &name)?;
        let taken = done(rig.link.flood(&bound.id, bound.tag(), HEAP, 400)?, "a flood")?;
        ensure!(taken == 400, "the unit took only {taken} requests");
        // The console gets to this while the kernel answers, or after.
        rig.ask(&format!("exit {name}"))?;
        ask_again(rig, 1, other.request(HEAP + round * PAGE, "rw", 1))?;
        expect(rig, 1, &[other.response(1, Code::Success)])?;
        let mut groups: Vec<u16> =
            collect(rig, &bound.id, usize::from(taken))?.iter().map(|response| response.group).collect();
        groups.sort_unstable();
        ensure!(groups == (0..taken).collect::<Vec<u16>>(), "these groups were answered: {groups:?}");
        rig.ask(&format!("unbind {}", bound.bond))?;
        expect(rig, 0, &[])?;
    }
    other.write(rig, HEAP, 7, 2)?;
    ensure!(other.load(rig, HEAP)? == 7, "the other endpoint's data did not arrive");
    rig.no_fault()
}
