//! The unit's side of the invalidation queue.

use super::{CONDITIONS, Conduct, FSTS, FakeUnit, GSTS, IQA, IQH, IQT, QIE, State};

impl FakeUnit {
    /// Consumes the queue up to its tail, or to a descriptor that it refuses.
    pub(super) fn consume(&self, state: &mut State) {
        let enabled = state.get32(GSTS) & QIE != 0;
        if !enabled || state.get32(FSTS) & 0x50 != 0 || *self.conduct.lock().unwrap() == Conduct::Dead {
            return;
        }
        let address = state.get64(IQA);
        let bytes = 0x1000_u64 << (address & 7);
        assert_ne!(address & 1 << 11, 0, "scalable mode takes 256-bit descriptors");
        loop {
            let (head, tail) = (state.get64(IQH), state.get64(IQT));
            assert!(tail < bytes && tail % 32 == 0);
            if head == tail {
                return;
            }
            let at = (address & !0xfff) + head;
            let words = [0, 8, 16, 24].map(|offset| self.read_memory(at + offset));
            if words[0] & 0xf == 5 && self.take_conduct(Conduct::DropWait) {
                let pending = state.get32(FSTS);
                state.set32(FSTS, pending | 0x40);
                state.set64(IQH, (head + 32) % bytes);
                return;
            }
            if !self.execute(state, words) {
                let pending = state.get32(FSTS);
                state.set32(FSTS, pending | 0x10);
                if pending & CONDITIONS == 0 {
                    state.fault_event();
                }
                return;
            }
            state.set64(IQH, (head + 32) % bytes);
        }
    }

    /// Whether the unit is to behave like this now; if so, only once.
    fn take_conduct(&self, wanted: Conduct) -> bool {
        let mut conduct = self.conduct.lock().unwrap();
        let found = *conduct == wanted;
        if found {
            *conduct = Conduct::Prompt;
        }
        found
    }

    /// Invalidations between two fences are done in any order (6.5.2.8), but the context cache, the PASID cache and the
    /// IOTLB have to be invalidated one after the other: an older cache tags what enters a younger one (6.2.3.1).
    fn check_order(state: &mut State, kind: u64, low: u64) {
        let is_iotlb = |kind| kind == 2 || kind == 6;
        if kind == 5 {
            if low & 1 << 6 != 0 {
                state.unfenced = None;
            }
            return;
        }
        if let Some(before) = state.unfenced.replace(kind) {
            assert!(
                before == kind || is_iotlb(before) && is_iotlb(kind),
                "{kind} not fenced off from {before}"
            );
        }
    }

    /// Carries out a descriptor; returns whether it is one.
    fn execute(&self, state: &mut State, [low, high, third, fourth]: [u64; 4]) -> bool {
        let kind = low & 0xf;
        if self.take_conduct(Conduct::Refuse(kind))
            || *self.conduct.lock().unwrap() == Conduct::RefuseAll(kind)
        {
            return false;
        }
        if third != 0 || fourth != 0 || low & 0xe00 != 0 {
            return false;
        }
        Self::check_order(state, kind, low);
        let granularity = low >> 4 & 3;
        let did = (low >> 16) as u16;
        let (first_page, pages) = (high >> 12, 1_u64 << (high & 0x3f).min(52));
        let aligned = first_page % pages == 0;
        match (kind, granularity) {
            (1, 1) => state.contexts.clear(),
            (1, 3) => drop(state.contexts.remove(&((low >> 32) as u16))),
            (7, 3) => state.pasids.clear(),
            (7, 0) => state.pasids.retain(|_, entry| entry[1] as u16 != did),
            // Only PASID 0 is used.
            (7, 1) if low >> 32 & 0xf_ffff == 0 => state.pasids.retain(|_, entry| entry[1] as u16 != did),
            (2, 1) => state.iotlb.clear(),
            (2, 2) => state.iotlb.retain(|_, cached| cached.did != did),
            (2, 3) if aligned && high & 0x3f <= self.cap >> 48 & 0x3f => {
                state.iotlb.retain(|&(_, page), cached| {
                    cached.did != did
                        || !cached.second_stage
                        || !(first_page..first_page + pages).contains(&page)
                })
            }
            (6, 2) if low >> 32 & 0xf_ffff == 0 => {
                state.iotlb.retain(|_, cached| cached.did != did || cached.second_stage);
            }
            (6, 3) if aligned && low >> 32 & 0xf_ffff == 0 => state.iotlb.retain(|&(_, page), cached| {
                cached.did != did || cached.second_stage || !(first_page..first_page + pages).contains(&page)
            }),
            (5, _) => {
                if low & 1 << 5 == 0 || low & 1 << 6 == 0 {
                    return false;
                }
                self.write_status(high & !3, (low >> 32) as u32);
            }
            _ => return false,
        }
        true
    }
}
