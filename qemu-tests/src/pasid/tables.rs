//! PASIDs all over the two levels of the PASID table, while the first of them is in use.

use anyhow::{Result, ensure};

use super::rig::{Rig, done};
use crate::endpoint::Tag;

const PAGE: u64 = 0x40_0000;
/// First and last of a table of 64, neighbours in the directory, its ends and its middle.
const PASIDS: [u32; 10] = [1, 2, 63, 64, 127, 128, 0x7_ffff, 0x8_0000, 0xf_ffc0, 0xf_ffff];

/// The tables grow and shrink under an endpoint that goes on working; each PASID reaches its own page and no other.
pub(super) fn tables(rig: &mut Rig) -> Result<()> {
    let (id, place) = rig.endpoint(0)?;
    rig.enable(&place, "20")?;
    let mut pages = Vec::new();
    for _ in PASIDS {
        let domain = rig.domain()?;
        let frame = rig.map(&domain, PAGE, "rw")?;
        pages.push((domain, frame));
    }
    rig.attach(&place, PASIDS[0], &pages[0].0)?;
    done(rig.link.start_writes(&id, Tag::Pasid(PASIDS[0]), PAGE + 64)?, "the start of the writes")?;
    for (pasid, (domain, frame)) in PASIDS.iter().zip(&pages).skip(1) {
        // A request that comes too early must leave no trace in a cache.
        rig.unattached(0, *pasid, PAGE)?;
        rig.attach(&place, *pasid, domain)?;
        rig.arrives(0, Tag::Pasid(*pasid), PAGE, frame)?;
    }
    for (pasid, (_, frame)) in PASIDS.iter().zip(&pages) {
        rig.arrives(0, Tag::Pasid(*pasid), PAGE, frame)?;
    }
    // Every second one goes; the others stay.
    for pasid in PASIDS.iter().skip(1).step_by(2) {
        rig.detach(&place, *pasid)?;
        rig.unattached(0, *pasid, PAGE)?;
    }
    for (pasid, (_, frame)) in PASIDS.iter().zip(&pages).step_by(2) {
        rig.arrives(0, Tag::Pasid(*pasid), PAGE, frame)?;
    }
    let writes = rig.link.stop_writes(&id)?;
    ensure!(writes.done > 0 && writes.faults == 0 && writes.refused == 0, "the writes suffered: {writes:?}");
    rig.no_fault()
}
