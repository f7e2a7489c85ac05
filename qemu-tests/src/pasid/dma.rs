//! DMA with PASIDs.

use anyhow::{Result, ensure};

use super::rig::{Rig, refused};
use crate::endpoint::Tag;
use crate::endpoint::link::{PageRequest, Switches, Wanted};

const PAGE: u64 = 0x10_0000;

/// The kernel switches the endpoint's capabilities, and the endpoint issues nothing while they are off.
pub(super) fn switches(rig: &mut Rig) -> Result<()> {
    let (id, place) = rig.endpoint(0)?;
    let off = Switches { master: false, pasid: false, ats: false, pri: false, outstanding: 0 };
    ensure!(rig.link.state(&id)? == off, "something is on after start-up: {:?}", rig.link.state(&id)?);
    refused(rig.link.write(&id, Tag::Plain, PAGE, &[1])?, "bus mastering")?;

    rig.enable(&place, "8")?;
    let state = rig.link.state(&id)?;
    ensure!(state == Switches { master: true, pasid: true, ..off }, "after PASIDs were enabled: {state:?}");
    refused(rig.link.translate(&id, Tag::Pasid(1), PAGE, Wanted::Read)?, "ATS")?;
    let request = PageRequest { tag: Tag::Pasid(1), address: PAGE, access: "r", group: 0, last: true };
    refused(rig.link.request_page(&id, request)?, "page requests")?;
    let domain = rig.domain()?;
    rig.ask_in_vain(&format!("attach-pasid {place} 0x100 {domain}"), "wider")?;

    // While a PASID is in use nothing is switched off.
    rig.attach(&place, 0xff, &domain)?;
    rig.ask_in_vain(&format!("disable {place}"), "attached")?;
    rig.detach(&place, 0xff)?;
    rig.ask(&format!("disable {place}"))?;
    refused(rig.link.write(&id, Tag::Pasid(1), PAGE, &[1])?, "PASIDs")?;

    rig.enable(&place, "20 ats")?;
    let state = rig.link.state(&id)?;
    let on = Switches { master: true, pasid: true, ats: true, ..off };
    ensure!(state == on, "after ATS was enabled: {state:?}");
    rig.no_fault()
}

/// The same address means another page with each PASID, and nothing without; unmap and detach take it away.
pub(super) fn dma(rig: &mut Rig) -> Result<()> {
    let (_, place) = rig.endpoint(0)?;
    let (first, second) = (rig.domain()?, rig.domain()?);
    let (one, two) = (rig.map(&first, PAGE, "rw")?, rig.map(&second, PAGE, "rw")?);
    let read_only = rig.map(&first, PAGE + 0x1000, "r")?;
    rig.enable(&place, "20")?;
    rig.attach(&place, 5, &first)?;
    rig.attach(&place, 0x4_3210, &second)?;
    for _ in 0..2 {
        rig.arrives(0, Tag::Pasid(5), PAGE, &one)?;
        rig.arrives(0, Tag::Pasid(0x4_3210), PAGE + 8, &two)?;
    }
    ensure!(rig.peek(&two, 0, 4)? == [0; 4], "a write with PASID 5 reached the other domain");
    ensure!(rig.peek(&one, 8, 4)? == [0; 4], "a write with PASID 0x43210 reached the other domain");
    rig.no_fault()?;

    // What one PASID has, another has not; nor has a request without.
    rig.blocked(0, 0x4_3210, PAGE + 0x1000)?;
    rig.blocked(0, 5, PAGE + 0x1000)?;
    ensure!(rig.peek(&read_only, 0, 4)? == [0; 4], "a write reached a page for reading");
    rig.unattached(0, 6, PAGE)?;
    let (id, _) = rig.endpoint(0)?;
    rig.link.write(&id, Tag::Plain, PAGE, &[1])?;
    rig.one_fault(&[&format!("{place} write at {PAGE:#x} ")])?;

    // The translations of both are cached now. Taking away one leaves the other.
    rig.unmap(&first, PAGE)?;
    let before = rig.peek(&one, 0, 4)?;
    rig.blocked(0, 5, PAGE)?;
    ensure!(rig.peek(&one, 0, 4)? == before, "a write reached a page after its unmap");
    rig.arrives(0, Tag::Pasid(0x4_3210), PAGE, &two)?;
    rig.detach(&place, 0x4_3210)?;
    let before = rig.peek(&two, 0, 4)?;
    rig.unattached(0, 0x4_3210, PAGE)?;
    ensure!(rig.peek(&two, 0, 4)? == before, "a write reached a page after its PASID was detached");

    // The same address again is a new page.
    let again = rig.map(&first, PAGE, "rw")?;
    rig.arrives(0, Tag::Pasid(5), PAGE, &again)?;
    ensure!(rig.peek(&one, 0, 4)? != rig.peek(&again, 0, 4)?, "a write reached the page of before");
    rig.no_fault()
}

/// A PASID is an endpoint's own; a domain may be shared.
pub(super) fn two_endpoints(rig: &mut Rig) -> Result<()> {
    let (places, pasid) = ([rig.endpoint(0)?.1, rig.endpoint(1)?.1], 0x77);
    let domains = [rig.domain()?, rig.domain()?];
    let frames = [rig.map(&domains[0], PAGE, "rw")?, rig.map(&domains[1], PAGE, "rw")?];
    for (place, domain) in places.iter().zip(&domains) {
        rig.enable(place, "20")?;
        rig.attach(place, pasid, domain)?;
    }
    rig.arrives(0, Tag::Pasid(pasid), PAGE, &frames[0])?;
    rig.arrives(1, Tag::Pasid(pasid), PAGE, &frames[1])?;
    // Both in one domain, with the caches of the first still warm.
    rig.attach(&places[1], pasid, &domains[0])?;
    rig.arrives(0, Tag::Pasid(pasid), PAGE, &frames[0])?;
    rig.arrives(1, Tag::Pasid(pasid), PAGE, &frames[0])?;
    rig.unmap(&domains[0], PAGE)?;
    rig.blocked(0, pasid, PAGE)?;
    rig.blocked(1, pasid, PAGE)?;
    // One leaves, the other stays.
    let frame = rig.map(&domains[0], PAGE, "rw")?;
    rig.arrives(0, Tag::Pasid(pasid), PAGE, &frame)?;
    rig.arrives(1, Tag::Pasid(pasid), PAGE, &frame)?;
    rig.detach(&places[0], pasid)?;
    rig.unattached(0, pasid, PAGE)?;
    rig.arrives(1, Tag::Pasid(pasid), PAGE, &frame)?;
    rig.no_fault()
}
