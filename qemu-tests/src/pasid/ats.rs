//! Translation requests, and what the endpoint is told to forget.

use anyhow::{Result, ensure};

use super::rig::{Rig, done, refused};
use crate::endpoint::link::{Invalidation, Translation, Wanted};
use crate::endpoint::{Answer, Tag};

const PAGE: u64 = 0x20_0000;
const PASID: u32 = 0x31;

/// An endpoint gets the translations that its PASID has, and no others.
pub(super) fn translations(rig: &mut Rig) -> Result<()> {
    let (id, place) = rig.endpoint(0)?;
    let domain = rig.domain()?;
    let frame = rig.map(&domain, PAGE, "rw")?;
    let read_only = rig.map(&domain, PAGE + 0x1000, "r")?;
    rig.enable(&place, "20 ats")?;
    rig.attach(&place, PASID, &domain)?;

    let tag = Tag::Pasid(PASID);
    let got = done(rig.link.translate(&id, tag, PAGE + 0x123, Wanted::ReadWrite)?, "a translation")?;
    let expected = Translation { address: PAGE, translated: frame.phys, size: 4096, writable: true };
    ensure!(got == expected, "{got:x?} instead of {expected:x?}");
    let got = done(rig.link.translate(&id, tag, PAGE + 0x1000, Wanted::Read)?, "a translation for reads")?;
    let expected =
        Translation { address: PAGE + 0x1000, translated: read_only.phys, size: 4096, writable: false };
    ensure!(got == expected, "{got:x?} instead of {expected:x?}");

    // Translated requests go where the translation says.
    done(rig.link.cached_write(&id, tag, PAGE + 0x10, &[0xc5, 0x5c])?, "a translated write")?;
    ensure!(rig.peek(&frame, 0x10, 2)? == [0xc5, 0x5c], "a translated write did not arrive");
    refused(rig.link.cached_write(&id, tag, PAGE + 0x1000, &[1])?, "no translation")?;

    // Neither a page without a mapping nor writes to one for reading; asking is no offence, so nothing is recorded.
    let absent = rig.link.translate(&id, tag, PAGE + 0x2000, Wanted::Read)?;
    ensure!(absent == Answer::Fault, "a page that is not there: {absent:x?}");
    let beyond = rig.link.translate(&id, tag, PAGE + 0x1000, Wanted::ReadWrite)?;
    ensure!(
        !matches!(beyond, Answer::Done(Translation { writable: true, .. })),
        "a page for reading: {beyond:x?}"
    );
    rig.no_fault()?;

    // A PASID without an entry in the table is one.
    let stranger = rig.link.translate(&id, Tag::Pasid(PASID + 1), PAGE, Wanted::Read)?;
    ensure!(stranger == Answer::Fault, "a PASID that is not attached: {stranger:x?}");
    rig.one_fault(&[&format!("{place} "), &format!(" read at {PAGE:#x} ")]).map(drop)
}

/// Whatever takes a translation away tells the endpoint, and only of what is taken away, before the console says so.
pub(super) fn invalidations(rig: &mut Rig) -> Result<()> {
    let (id, place) = rig.endpoint(0)?;
    let (first, second) = (rig.domain()?, rig.domain()?);
    let frame = rig.map(&first, PAGE, "rw")?;
    let neighbour = rig.map(&first, PAGE + 0x1000, "rw")?;
    let other = rig.map(&second, PAGE, "rw")?;
    rig.enable(&place, "20 ats")?;
    rig.attach(&place, PASID, &first)?;
    rig.attach(&place, PASID + 1, &second)?;
    let (tag, other_tag) = (Tag::Pasid(PASID), Tag::Pasid(PASID + 1));
    for (tag, address) in [(tag, PAGE), (tag, PAGE + 0x1000), (other_tag, PAGE)] {
        done(rig.link.translate(&id, tag, address, Wanted::ReadWrite)?, "a translation")?;
    }
    rig.link.invalidations(&id)?;

    // Unmap: the page's translation, and neither its neighbour's nor another PASID's.
    rig.unmap(&first, PAGE)?;
    let told = rig.link.invalidations(&id)?;
    let expected = [Invalidation { tag, first: PAGE, last: PAGE + 0xfff }];
    ensure!(told == expected, "unmap of a page invalidated {told:x?} and not {expected:x?}");
    refused(rig.link.cached_write(&id, tag, PAGE, &[1])?, "no translation")?;
    ensure!(rig.peek(&frame, 0, 1)? == [0], "the endpoint wrote after the unmap");
    ensure!(
        rig.link.translate(&id, tag, PAGE, Wanted::Read)? == Answer::Fault,
        "a fresh translation was given"
    );
    done(rig.link.cached_write(&id, tag, PAGE + 0x1000, &[2])?, "a translated write beside it")?;
    done(rig.link.cached_write(&id, other_tag, PAGE, &[3])?, "a translated write with another PASID")?;
    ensure!(rig.peek(&neighbour, 0, 1)? == [2] && rig.peek(&other, 0, 1)? == [3], "these did not arrive");

    // Another domain for the PASID: all that it has; the endpoint asks again and gets the new page.
    rig.attach(&place, PASID, &second)?;
    let told = rig.link.invalidations(&id)?;
    ensure!(
        told.iter().any(|range| range.tag == tag && range.first <= PAGE && PAGE + 0x1fff <= range.last),
        "another domain for a PASID invalidated {told:x?}"
    );
    refused(rig.link.cached_write(&id, tag, PAGE + 0x1000, &[1])?, "no translation")?;
    let got = done(rig.link.translate(&id, tag, PAGE, Wanted::ReadWrite)?, "a translation")?;
    ensure!(got.translated == other.phys, "{got:x?} after the change to another domain");

    // Detach: all of that PASID, and a fresh request is refused; the other PASID goes on.
    rig.detach(&place, PASID)?;
    refused(rig.link.cached_write(&id, tag, PAGE, &[1])?, "no translation")?;
    ensure!(rig.link.translate(&id, tag, PAGE, Wanted::Read)? == Answer::Fault, "a translation after detach");
    rig.one_fault(&[&format!("{place} ")])?;
    done(rig.link.cached_write(&id, other_tag, PAGE, &[4])?, "a translated write with another PASID")?;

    // Disable: nothing is left.
    rig.detach(&place, PASID + 1)?;
    rig.ask(&format!("disable {place}"))?;
    refused(rig.link.cached_write(&id, other_tag, PAGE, &[1])?, "PASIDs are off")?;
    rig.no_fault()
}
