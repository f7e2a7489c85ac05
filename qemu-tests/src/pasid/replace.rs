//! Another domain for a PASID while its DMA goes on.

use anyhow::{Context, Result, ensure};

use super::rig::{Frame, Rig, done};
use crate::endpoint::Tag;

const PAGE: u64 = 0x30_0000;
const PASID: u32 = 9;
const ROUNDS: usize = 12;

/// Each write lands in the old page or in the new one; none is blocked, none is lost.
pub(super) fn replace(rig: &mut Rig) -> Result<()> {
    let (id, place) = rig.endpoint(0)?;
    let domains = [rig.domain()?, rig.domain()?];
    let frames = [rig.map(&domains[0], PAGE, "rw")?, rig.map(&domains[1], PAGE, "rw")?];
    rig.enable(&place, "20")?;
    rig.attach(&place, PASID, &domains[0])?;
    done(rig.link.start_writes(&id, Tag::Pasid(PASID), PAGE)?, "the start of the writes")?;
    for round in 1..=ROUNDS {
        // A write is seen in the present page before each change, so that the changes meet writes.
        wait_for_writes(rig, &frames[(round - 1) % 2])?;
        let transition = rig.attach(&place, PASID, &domains[round % 2])?;
        ensure!(transition == "hitless", "the change was {transition}");
    }
    wait_for_writes(rig, &frames[ROUNDS % 2])?;
    let writes = rig.link.stop_writes(&id)?;
    ensure!(writes.faults == 0 && writes.refused == 0, "not all writes were done: {writes:?}");

    // The newest word of each of the eight places is in one of the pages.
    let (old, new) = (words(rig, &frames[0])?, words(rig, &frames[1])?);
    for place in 0..8 {
        let newest = (0..=writes.done).rev().find(|number| number % 8 == place as u64).unwrap_or(0);
        let found = old[place].max(new[place]);
        ensure!(found == newest, "place {place}: {found} is in memory, {newest} was written last");
    }
    rig.no_fault()
}

/// Waits until the page changes twice, so that a write that began after the call is in it.
fn wait_for_writes(rig: &mut Rig, frame: &Frame) -> Result<()> {
    for _ in 0..2 {
        let before = words(rig, frame)?;
        let changed = (0..2000).find_map(|_| match words(rig, frame) {
            Ok(now) if now == before => None,
            other => Some(other),
        });
        changed.context("the endpoint does not write")??;
    }
    Ok(())
}

fn words(rig: &mut Rig, frame: &Frame) -> Result<[u64; 8]> {
    let bytes = rig.peek(frame, 0, 64)?;
    let mut words = [0; 8];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(bytes.try_into()?);
    }
    Ok(words)
}
