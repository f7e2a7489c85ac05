//! Page requests: memory that is there when the endpoint asks for it, and answers, each once.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::rig::{Frame, Rig, done};
use crate::endpoint::link::{Code, PageRequest, Response, Wanted};
use crate::endpoint::{Answer, Tag};

const PAGES: u64 = 0x50_0000;
const SIZE: u64 = 0x1_0000;
const PASID: u32 = 0x2a;
/// Only a lost answer takes this long.
const LIMIT: Duration = Duration::from_secs(60);

const fn request(address: u64, access: &'static str, group: u16) -> PageRequest {
    PageRequest { tag: Tag::Pasid(PASID), address, access, group, last: true }
}

const fn response(group: u16, code: Code) -> Response {
    Response { tag: Tag::Pasid(PASID), group, code }
}

/// A page that is not there is fetched on request, and the retry succeeds; what is not to be had is refused.
pub(super) fn page_requests(rig: &mut Rig) -> Result<()> {
    let (id, place) = rig.endpoint(0)?;
    let frame = paged_domain(rig, 0, "rw")?;
    let tag = Tag::Pasid(PASID);

    // The way of a device: translation, page request, response, translation, access.
    let target = PAGES + 0x3000;
    let absent = rig.link.translate(&id, tag, target, Wanted::ReadWrite)?;
    ensure!(absent == Answer::Fault, "a page that nobody has asked for is there: {absent:?}");
    ask(rig, 0, request(target, "rw", 7))?;
    expect(rig, 0, &[response(7, Code::Success)])?;
    let got = done(rig.link.translate(&id, tag, target, Wanted::ReadWrite)?, "the second translation")?;
    ensure!(got.translated == frame.phys + 0x3000, "the page is at {:#x}", got.translated);
    done(rig.link.cached_write(&id, tag, target + 4, &[0xd0, 0x0d])?, "the retry")?;
    ensure!(rig.peek(&frame, 0x3004, 2)? == [0xd0, 0x0d], "the data did not arrive");
    rig.no_fault()?;
    // Its neighbour is still not there, for requests that cannot wait either.
    rig.blocked(0, PASID, target + 0x1000)?;

    // A group of three has one answer, to the last.
    for (page, access, last) in [(4, "w", false), (5, "r", false), (6, "rw", true)] {
        ask(rig, 0, PageRequest { last, ..request(PAGES + page * 0x1000, access, 500) })?;
    }
    expect(rig, 0, &[response(500, Code::Success)])?;
    for page in [4, 5, 6] {
        let address = PAGES + page * 0x1000;
        done(rig.link.write(&id, tag, address, &[page as u8])?, "a write to a page of the group")?;
        ensure!(rig.peek(&frame, page * 0x1000, 1)? == [page as u8], "page {page} is another one");
    }

    // Beyond what is set aside; with the kernel's rights; a page that is there already.
    ask(rig, 0, request(PAGES + SIZE, "rw", 8))?;
    expect(rig, 0, &[response(8, Code::Invalid)])?;
    ask(rig, 0, request(PAGES, "rp", 9))?;
    expect(rig, 0, &[response(9, Code::Invalid)])?;
    ask(rig, 0, request(target, "rw", 10))?;
    expect(rig, 0, &[response(10, Code::Success)])?;
    // A stop marker has no answer.
    ask(rig, 0, request(PAGES, "-", 11))?;
    expect(rig, 0, &[])?;

    // A second endpoint with the same PASID has pages of its own, for reading.
    let other = paged_domain(rig, 1, "r")?;
    ask(rig, 1, request(target, "rw", 7))?;
    expect(rig, 1, &[response(7, Code::Invalid)])?;
    ask(rig, 1, request(target, "r", 7))?;
    expect(rig, 1, &[response(7, Code::Success)])?;
    let (other_id, _) = rig.endpoint(1)?;
    let got = done(rig.link.translate(&other_id, tag, target, Wanted::Read)?, "the other's translation")?;
    ensure!(got.translated == other.phys + 0x3000 && !got.writable, "the other got {got:x?}");
    let counts = counts(rig, &place)?;
    ensure!(
        (counts.requests, counts.groups, counts.answers, counts.owed) == (8, 4, 5, 0),
        "the kernel counted {counts:?}"
    );
    rig.no_fault()
}

/// Answers come whenever the handler gives them, in any order; a teardown gives those that are left, and no group gets
/// two.
pub(super) fn late_answers(rig: &mut Rig) -> Result<()> {
    let (_, place) = rig.endpoint(0)?;
    paged_domain(rig, 0, "rw later")?;
    for group in 1..=3 {
        ask(rig, 0, request(PAGES + u64::from(group) * 0x1000, "rw", group))?;
    }
    wait_for_owed(rig, &place, 3)?;
    expect(rig, 0, &[])?;
    rig.ask("answer success")?;
    expect(rig, 0, &[response(3, Code::Success), response(2, Code::Success), response(1, Code::Success)])?;

    // The handler goes while it owes an answer, and a group is incomplete.
    ask(rig, 0, request(PAGES, "rw", 4))?;
    ask(rig, 0, PageRequest { last: false, ..request(PAGES + 0x1000, "rw", 5) })?;
    wait_for_owed(rig, &place, 1)?;
    rig.ask(&format!("no-pager {place} {PASID:#x}"))?;
    expect(rig, 0, &[response(4, Code::Invalid)])?;
    // The late answer finds nothing to answer.
    rig.ask("answer success")?;
    expect(rig, 0, &[])?;
    // Without a handler everything is refused.
    ask(rig, 0, request(PAGES, "rw", 6))?;
    expect(rig, 0, &[response(6, Code::Invalid)])?;

    // All is switched off while answers are owed.
    rig.ask(&format!("pager {place} {PASID:#x} d0 {:#x} {SIZE:#x} rw later", 2 * PAGES))?;
    ask(rig, 0, request(2 * PAGES, "rw", 7))?;
    wait_for_owed(rig, &place, 1)?;
    rig.detach(&place, PASID)?;
    rig.ask(&format!("disable {place}"))?;
    expect(rig, 0, &[response(7, Code::Invalid)])?;
    rig.ask("answer success")?;
    expect(rig, 0, &[])?;
    let counts = counts(rig, &place)?;
    ensure!((counts.answers, counts.owed) == (6, 0), "the kernel counted {counts:?}");
    rig.no_fault()
}

/// An endpoint that floods the queue until it overflows gets one answer for each request that the unit took, and another
/// one its pages.
pub(super) fn flood(rig: &mut Rig) -> Result<()> {
    let (id, place) = rig.endpoint(0)?;
    paged_domain(rig, 0, "rw")?;
    let frame = paged_domain(rig, 1, "rw")?;
    let tag = Tag::Pasid(PASID);
    for round in 0..3 {
        let taken = done(rig.link.flood(&id, tag, PAGES, 512)?, "a flood")?;
        // The queue was empty, and has 512 slots, of which one stays free.
        ensure!(taken == 511, "the unit took {taken} requests");
        let page = 1 + u64::from(round);
        ask_again(rig, 1, request(PAGES + page * 0x1000, "rw", 20 + round))?;
        expect(rig, 1, &[response(20 + round, Code::Success)])?;
        let mut got = collect(rig, &id, usize::from(taken))?;
        got.sort_unstable_by_key(|response| response.group);
        let groups: Vec<u16> = got.iter().map(|response| response.group).collect();
        ensure!(
            groups == (0..taken).collect::<Vec<u16>>(),
            "of {taken} requests, these were answered: {groups:?}"
        );
        let seen = overflows(rig)?;
        ensure!(seen == u64::from(round) + 1, "after flood {round} the kernel has seen {seen} overflows");
        let failed = got.iter().find(|response| response.tag != tag || response.code == Code::Failure);
        ensure!(failed.is_none(), "an answer to a flood was {failed:?}");
        expect(rig, 0, &[])?;
    }
    let (other_id, _) = rig.endpoint(1)?;
    done(rig.link.write(&other_id, tag, PAGES + 0x1000, &[0x99])?, "the other's write")?;
    ensure!(rig.peek(&frame, 0x1000, 1)? == [0x99], "the other's write did not arrive");
    let counts = counts(rig, &place)?;
    ensure!(counts.owed == 0 && counts.requests == counts.answers, "the kernel counted {counts:?}");
    rig.no_fault()
}

/// Attaches the PASID of an endpoint to a domain of its own whose pages come on request.
fn paged_domain(rig: &mut Rig, endpoint: usize, access: &str) -> Result<Frame> {
    let (id, place) = rig.endpoint(endpoint)?;
    rig.enable(&place, "20 ats pri")?;
    ensure!(rig.link.state(&id)?.pri, "page requests are off although they were enabled");
    let domain = rig.domain()?;
    rig.attach(&place, PASID, &domain)?;
    rig.pager(&place, PASID, &domain, PAGES, SIZE, access)
}

pub(crate) fn ask(rig: &mut Rig, endpoint: usize, request: PageRequest) -> Result<()> {
    let (id, _) = rig.endpoint(endpoint)?;
    done(rig.link.request_page(&id, request)?, "a page request")
}

/// As [`ask`], while the queue may be full.
pub(super) fn ask_again(rig: &mut Rig, endpoint: usize, request: PageRequest) -> Result<()> {
    let (id, _) = rig.endpoint(endpoint)?;
    let end = Instant::now() + LIMIT;
    loop {
        let answer = rig.link.request_page(&id, request)?;
        if answer != Answer::Fault || Instant::now() >= end {
            return done(answer, "a page request");
        }
    }
}

/// Exactly these responses come, in this order.
pub(crate) fn expect(rig: &mut Rig, endpoint: usize, expected: &[Response]) -> Result<()> {
    let (id, place) = rig.endpoint(endpoint)?;
    let mut got = collect(rig, &id, expected.len())?;
    // What the kernel has to say it has said when it has answered.
    rig.ask(&format!("page-faults {place}"))?;
    got.extend(rig.link.responses(&id, Duration::ZERO)?);
    ensure!(got == expected, "the responses were {got:?} and not {expected:?}");
    Ok(())
}

pub(super) fn collect(rig: &mut Rig, id: &str, count: usize) -> Result<Vec<Response>> {
    let end = Instant::now() + LIMIT;
    let mut got = Vec::new();
    while got.len() < count {
        let rest = end.saturating_duration_since(Instant::now());
        ensure!(!rest.is_zero(), "{} of {count} responses came: {got:?}", got.len());
        got.extend(rig.link.responses(id, rest)?);
    }
    Ok(got)
}

/// What the kernel counted of a device's page requests.
#[derive(Clone, Copy, Debug)]
struct Counts {
    requests: u64,
    groups: u64,
    answers: u64,
    owed: u64,
}

/// How often the kernel saw that its unit lost faults or page requests.
fn overflows(rig: &mut Rig) -> Result<u64> {
    let lines = rig.ask("stats")?;
    let words = lines.iter().filter(|line| line.starts_with("stats: ")).flat_map(|line| line.split(' '));
    let counts: Vec<u64> =
        words.filter_map(|word| word.strip_prefix("overflows=")).map(str::parse).collect::<Result<_, _>>()?;
    ensure!(!counts.is_empty(), "no unit counts overflows");
    Ok(counts.iter().sum())
}

fn counts(rig: &mut Rig, place: &str) -> Result<Counts> {
    let lines = rig.ask(&format!("page-faults {place}"))?;
    let line = lines.iter().find_map(|line| line.strip_prefix("page-faults: ")).context("no counters")?;
    let value = |name: &str| {
        let word = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        word.and_then(|word| word.parse().ok()).with_context(|| format!("no counter {name}"))
    };
    Ok(Counts {
        requests: value("requests")?,
        groups: value("groups")?,
        answers: value("answers")?,
        owed: value("owed")?,
    })
}

fn wait_for_owed(rig: &mut Rig, place: &str, count: u64) -> Result<()> {
    let end = Instant::now() + LIMIT;
    while counts(rig, place)?.owed != count {
        ensure!(Instant::now() < end, "the handler does not have {count} groups");
    }
    Ok(())
}
