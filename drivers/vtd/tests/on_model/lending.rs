//! Memory that is mapped by value, and syncs: when it comes back, nothing reaches it.

use crate::ensure;
use crate::mappings::{LENT, PAGE};
use crate::op::Sync;
use crate::oracle::{Content, Piece};
use crate::world::{Break, Outcomes, Slot, World};
use portcullis_hal::{Access, Attributes, FrameOrder, Frames, Iova, MapError, Mapped, QuarantineReason};

impl World {
    pub(crate) fn lend(&mut self, nonce: u64, slot: u8, offset: u8, order: u8) -> Outcomes {
        let at = self.index(slot);
        let order = FrameOrder::new(order % 3).expect("a small order");
        let Some(Slot { space, domain, .. }) = &self.slots[at] else { return Ok(()) };
        let (space, domain) = (*space, domain.clone());
        if self.spaces[space].content != Content::Mappings || self.foreign[space].is_some() {
            return Ok(());
        }
        let Ok(frames) = Frames::zeroed(&self.bench.host, order) else { return Ok(()) };
        let iova = LENT + u64::from(offset % 16) * PAGE;
        let access = Access::READ | Access::WRITE;
        let piece = Piece { iova, len: order.bytes(), phys: frames.phys().get(), access };
        let overlap = self.spaces[space].overlaps(&piece);
        self.touch(iova);
        let before = self.begin(nonce, self.requests(space, &[iova], nonce));
        match Mapped::map(&domain, Iova::new(iova), frames, Attributes::READ_WRITE) {
            Ok(mapped) => {
                ensure!(!overlap, "mapped over something: {piece:x?}");
                // With a failed unit the caller is not told, so it may be unconfirmed.
                self.spaces[space].map(&[piece], !self.injected);
                if let Some(slot) = &mut self.slots[at] {
                    slot.owned.push(mapped);
                }
            }
            Err(refused) => match refused.error {
                MapError::Overlap { .. } if overlap => {}
                MapError::OutOfMemory(_) if self.short => {}
                error => return Err(format!("map of {piece:x?}: {error}")),
            },
        }
        self.end(before, Break::None)
    }

    pub(crate) fn reclaim(&mut self, nonce: u64, slot: u8, pick: u8, sync: Sync) -> Outcomes {
        let at = self.index(slot);
        let Some(slot) = &mut self.slots[at] else { return Ok(()) };
        if slot.owned.is_empty() {
            return Ok(());
        }
        let space = slot.space;
        let mapped = slot.owned.swap_remove(usize::from(pick) % slot.owned.len());
        let (first, last) = (mapped.range().start().get(), mapped.range().last().get());
        let before = self.begin(nonce, self.requests(space, &[first, last & !7], nonce));
        let mark = self.spaces[space].mark();
        if sync == Sync::Strict {
            let result = mapped.unmap();
            self.spaces[space].unmap(first, last);
            self.spaces[space].synced(mark, result.is_ok());
            // The memory is freed here.
            match result.map(drop).map_err(|quarantined| quarantined.reason) {
                Ok(()) => {}
                Err(QuarantineReason::Sync(error)) => self.failed(&error)?,
                Err(reason) => return Err(format!("unmap of what was lent at {first:#x}: {reason}")),
            }
        } else if let Some(slot) = &mut self.slots[at] {
            match mapped.unmap_into(&mut slot.gather) {
                Ok(unsynced) => slot.unsynced.push(unsynced),
                Err(quarantined) => return Err(format!("unmap of what was lent: {}", quarantined.reason)),
            }
            self.spaces[space].unmap(first, last);
        }
        self.end(before, Break::None)
    }

    pub(crate) fn sync(&mut self, nonce: u64, slot: u8) -> Outcomes {
        let at = self.index(slot);
        let Some(space) = self.slots[at].as_ref().map(|slot| slot.space) else { return Ok(()) };
        let points: Vec<u64> = self.points.iter().rev().take(2).copied().collect();
        let before = self.begin(nonce, self.requests(space, &points, nonce));
        let Some(slot) = &mut self.slots[at] else { return Ok(()) };
        let result = slot.domain.sync(&mut slot.gather);
        self.spaces[space].gather_synced(result.is_ok());
        match result {
            Ok(proof) => {
                for unsynced in slot.unsynced.drain(..) {
                    let frames = unsynced.reclaim(&proof);
                    ensure!(
                        frames.is_ok(),
                        "the proof of the gather is not one for what was unmapped with it"
                    );
                }
            }
            Err(error) => {
                slot.unsynced.clear();
                self.failed(&error)?;
            }
        }
        self.end(before, Break::None)
    }
}
