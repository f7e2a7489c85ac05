//! The unit's translation of a request without PASID.

use super::{Cached, FakeUnit, GSTS, State, TE};

/// Why a request was refused: the manual's code.
type Refused = u8;

/// What an entry grants.
#[derive(Clone, Copy)]
struct Granted {
    frame: u64,
    read: bool,
    write: bool,
}

impl FakeUnit {
    /// A DMA by a requester: the physical address it reaches, or the fault's code, which is recorded too.
    pub fn dma(&self, sid: u16, iova: u64, write: bool) -> Result<u64, Refused> {
        let mut state = self.state.lock().unwrap();
        if state.get32(GSTS) & TE == 0 {
            return Ok(iova);
        }
        let result = self.translate(&mut state, sid, iova, write);
        if let Err(code) = result {
            let kind = if write { 0 } else { 1_u64 << 62 };
            let records = (self.cap >> 40 & 0xff) as usize + 1;
            state.record(records, iova & !0xfff, u64::from(sid) | u64::from(code) << 32 | kind);
        }
        result
    }

    fn translate(&self, state: &mut State, sid: u16, iova: u64, write: bool) -> Result<u64, Refused> {
        let key = (sid, iova >> 12);
        let cached = match state.iotlb.get(&key) {
            Some(&cached) => cached,
            None => {
                let cached = self.walk(state, sid, iova)?;
                if self.caching_mode() || cached.read || cached.write {
                    state.iotlb.insert(key, cached);
                }
                cached
            }
        };
        match (cached.second_stage, write) {
            (true, true) if !cached.write => Err(0x05),
            (true, false) if !cached.read => Err(0x06),
            (false, true) if !cached.write => Err(0x85),
            _ => Ok(cached.frame << 12 | iova & 0xfff),
        }
    }

    fn context(&self, state: &mut State, sid: u16) -> Result<[u64; 4], Refused> {
        if let Some(&context) = state.contexts.get(&sid) {
            return if context[0] & 1 == 0 { Err(0x02) } else { Ok(context) };
        }
        assert_eq!(state.root >> 10 & 3, 1, "scalable mode");
        let half = state.root & !0xfff;
        let root = self.read_memory(half + u64::from(sid >> 8) * 16 + u64::from(sid >> 7 & 1) * 8);
        if root & 1 == 0 {
            return Err(0x01);
        }
        let at = (root & !0xfff) + u64::from(sid & 0x7f) * 32;
        let context = [0, 8, 16, 24].map(|offset| self.read_memory(at + offset));
        if context[0] & 1 != 0 || self.caching_mode() {
            state.contexts.insert(sid, context);
        }
        if context[0] & 1 == 0 {
            return Err(0x02);
        }
        if context[0] & 0x1e0 != 0 || context[1] != 0 || context[2] != 0 || context[3] != 0 {
            return Err(0x0b);
        }
        Ok(context)
    }

    fn pasid_entry(&self, state: &mut State, sid: u16) -> Result<[u64; 8], Refused> {
        let context = self.context(state, sid)?;
        if let Some(&entry) = state.pasids.get(&sid) {
            return Ok(entry);
        }
        let directory = self.read_memory(context[0] & !0xfff);
        if directory & 1 == 0 {
            return Err(0x51);
        }
        let at = directory & !0xfff;
        let entry: [u64; 8] = std::array::from_fn(|word| self.read_memory(at + 8 * word as u64));
        if entry[0] & 1 == 0 {
            return Err(0x59);
        }
        if entry[3..].iter().any(|&word| word != 0) || entry[0] & 0xc00 != 0 || entry[1] & 0x7f_0000 != 0 {
            return Err(0x5a);
        }
        state.pasids.insert(sid, entry);
        Ok(entry)
    }

    fn walk(&self, state: &mut State, sid: u16, iova: u64) -> Result<Cached, Refused> {
        let entry = self.pasid_entry(state, sid)?;
        let did = entry[1] as u16;
        let width = entry[0] >> 2 & 7;
        let (granted, second_stage) = match entry[0] >> 6 & 7 {
            1 => (self.walk_first(entry[2], iova)?, false),
            2 => (self.walk_second(entry[0] & !0xfff, width, iova)?, true),
            4 => {
                let frame = iova >> 12;
                (Granted { frame, read: true, write: true }, false)
            }
            _ => return Err(0x5b),
        };
        let Granted { frame, read, write } = granted;
        Ok(Cached { did, second_stage, frame, write, read })
    }

    fn walk_first(&self, root: u64, iova: u64) -> Result<Granted, Refused> {
        let levels = if root >> 2 & 3 == 1 { 5 } else { 4 };
        if iova >> (12 + 9 * levels - 1) != 0 {
            return Err(0x80);
        }
        let mut table = root & !0xfff;
        let mut write = true;
        for level in (0..levels).rev() {
            let entry = self.read_memory(table + (iova >> (12 + 9 * level) & 511) * 8);
            if entry & 1 == 0 {
                return Err(0x71);
            }
            if entry & 4 == 0 {
                return Err(0x81);
            }
            if entry >> 63 != 0 && root & 1 << 5 == 0 {
                return Err(0x72);
            }
            write &= entry & 2 != 0;
            let address = entry & 0x000f_ffff_ffff_f000;
            if level == 0 || entry & 0x80 != 0 {
                let inside = iova & ((1 << (12 + 9 * level)) - 1);
                return Ok(Granted { frame: (address + inside) >> 12, read: true, write });
            }
            table = address;
        }
        Err(0x71)
    }

    fn walk_second(&self, root: u64, width: u64, iova: u64) -> Result<Granted, Refused> {
        if self.cap >> 8 & 1 << width == 0 {
            return Err(0x5b);
        }
        let levels = width + 2;
        if iova >> (12 + 9 * levels).min((self.cap >> 16 & 0x3f) + 1) != 0 {
            return Err(0x04);
        }
        let mut table = root;
        let (mut read, mut write) = (true, true);
        for level in (0..levels).rev() {
            let entry = self.read_memory(table + (iova >> (12 + 9 * level) & 511) * 8);
            read &= entry & 1 != 0;
            write &= entry & 2 != 0;
            if !read && !write {
                break;
            }
            let address = entry & 0x000f_ffff_ffff_f000;
            if level == 0 || entry & 0x80 != 0 {
                let inside = iova & ((1 << (12 + 9 * level)) - 1);
                return Ok(Granted { frame: (address + inside) >> 12, read, write });
            }
            table = address;
        }
        Ok(Granted { frame: 0, read: false, write: false })
    }
}
