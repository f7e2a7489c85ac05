//! The command queue (IHI 0070, chapter 4 and 7.1).

use super::caches::{Key, Scope};
use super::entry::{Meaning, StreamWorld};
use super::points;
use super::regs::{cr0, gerror};
use super::run::{Choice, Hw, Run};
use super::state::{Group, Invalidated, State};
use super::walk::Granule;
use crate::core::{AtcInvalidation, Downstream, Interrupt, PageResponse, ResponseCode};

/// Why a command is not consumed.
enum Stop {
    /// It waits for something.
    Wait,
    /// CMDQ_CONS.ERR code.
    Error(u8),
}

const CERROR_ILL: u8 = 1;
const CERROR_ABT: u8 = 2;
const CERROR_ATC_INV_SYNC: u8 = 3;

const ILL: Stop = Stop::Error(CERROR_ILL);

const fn field(word: u64, high: u32, low: u32) -> u64 {
    word >> low & (u64::MAX >> (63 - (high - low)))
}

/// Name and the bits that software may set, by opcode.
const fn layout(opcode: u8) -> Option<(&'static str, [u64; 2])> {
    const SID: u64 = 0xffff_ffff_0000_0000;
    const SSID: u64 = 0x0000_0000_ffff_f000;
    const VMID: u64 = 0x0000_ffff_0000_0000;
    const ASID: u64 = 0xffff_0000_0000_0000;
    const RANGE: u64 = 0x0000_0000_03f1_f000;
    const ADDRESS: u64 = 0xffff_ffff_ffff_f000;
    const HINTS: u64 = 0xf81;
    const SSV: u64 = 1 << 11;
    Some(match opcode {
        0x01 => ("PREFETCH_CONFIG", [SID | SSID | SSV, 0]),
        0x02 => ("PREFETCH_ADDR", [SID | SSID | SSV, ADDRESS | 0x3ff]),
        0x03 => ("CFGI_STE", [SID, 1]),
        0x04 => ("CFGI_STE_RANGE", [SID, 0x1f]),
        0x05 => ("CFGI_CD", [SID | SSID, 1]),
        0x06 => ("CFGI_CD_ALL", [SID, 0]),
        0x10 => ("TLBI_NH_ALL", [VMID, 0]),
        0x11 => ("TLBI_NH_ASID", [VMID | ASID, 0]),
        0x12 => ("TLBI_NH_VA", [VMID | ASID | RANGE, ADDRESS | HINTS]),
        0x13 => ("TLBI_NH_VAA", [VMID | RANGE, ADDRESS | HINTS]),
        0x20 => ("TLBI_EL2_ALL", [0, 0]),
        0x21 => ("TLBI_EL2_ASID", [ASID, 0]),
        0x22 => ("TLBI_EL2_VA", [ASID | RANGE, ADDRESS | HINTS]),
        0x23 => ("TLBI_EL2_VAA", [RANGE, ADDRESS | HINTS]),
        0x28 => ("TLBI_S12_VMALL", [VMID, 0]),
        0x2a => ("TLBI_S2_IPA", [VMID | RANGE, 0x00ff_ffff_ffff_f000 | HINTS]),
        0x30 => ("TLBI_NSNH_ALL", [0, 0]),
        0x40 => ("ATC_INV", [SID | SSID | SSV | 1 << 9, ADDRESS | 0x3f]),
        0x41 => ("PRI_RESP", [SID | SSID | SSV, 0x31ff]),
        0x44 => ("RESUME", [SID | 0x3000, 0xffff]),
        0x45 => ("STALL_TERM", [SID, 0]),
        0x46 => ("SYNC", [0xffff_ffff_0fc0_3000, 0x00ff_ffff_ffff_fffc]),
        _ => return None,
    })
}

impl State {
    /// Reads the commands that PROD has passed. Hardware may, and software must not touch them any more.
    pub(super) fn fetch_commands(&mut self, hw: &Hw) {
        let queue = self.regs.cmdq;
        if !self.regs.on(cr0::CMDQEN) || self.regs.has_error(gerror::CMDQ) {
            return;
        }
        let mut at = queue.cons;
        for _ in 0..queue.used().min(queue.size()) {
            let position = queue.position(at);
            if let (false, Some(words)) = (self.fetched.contains_key(&position), self.command(hw, position)) {
                self.fetched.insert(position, words);
            }
            at = queue.next(at);
        }
    }

    fn command(&self, hw: &Hw, position: u32) -> Option<[u64; 2]> {
        let view = self.regs.queue_view(&hw.config);
        let at = self.regs.cmdq.entry(position, 16, hw.config.oas);
        Some([hw.memory.read64_as(view, at)?, hw.memory.read64_as(view, at + 8)?])
    }

    /// Consumes commands as far as the schedule lets it; gives how many.
    pub(super) fn consume(&mut self, hw: &Hw) -> usize {
        if self.hung || hw.schedule.fires(points::CMDQ_PAUSE) {
            return 0;
        }
        let most = if hw.schedule.fires(points::CMDQ_SINGLE) { 1 } else { usize::MAX };
        let mut count = 0;
        while count < most && self.consume_one(hw) {
            count += 1;
        }
        count
    }

    /// Whether there are commands that could be consumed.
    pub(super) fn commands_wait(&self) -> bool {
        let stopped = !self.regs.on(cr0::CMDQEN) || self.regs.has_error(gerror::CMDQ);
        !stopped && !self.hung && self.regs.cmdq.used() != 0
    }

    fn consume_one(&mut self, hw: &Hw) -> bool {
        let queue = self.regs.cmdq;
        let stopped = !self.regs.on(cr0::CMDQEN) || self.regs.has_error(gerror::CMDQ);
        if stopped || queue.used() == 0 {
            return false;
        }
        let position = queue.position(queue.cons);
        let injected = hw.schedule.fires(points::COMMAND_ABT);
        let words = match self.fetched.get(&position).copied().or_else(|| self.command(hw, position)) {
            Some(words) if !injected => words,
            _ => {
                self.command_error(hw, CERROR_ABT);
                return false;
            }
        };
        if self.command(hw, position).is_some_and(|now| now != words) {
            let text = format_args!("slot {position:#x} was {words:x?} when PROD passed it");
            hw.violations.report("command-changed", text);
        }
        match self.execute(hw, words) {
            Ok(()) => {
                self.fetched.remove(&position);
                self.regs.cmdq.cons = queue.next(self.regs.cmdq.cons);
                if words[0] as u8 == 0x46 {
                    self.signal(hw, words);
                }
                true
            }
            Err(Stop::Wait) => false,
            Err(Stop::Error(code)) => {
                self.command_error(hw, code);
                false
            }
        }
    }

    fn command_error(&mut self, hw: &Hw, code: u8) {
        hw.coverage.count(
            "command error",
            match code {
                CERROR_ILL => "CERROR_ILL",
                CERROR_ABT => "CERROR_ABT",
                _ => "CERROR_ATC_INV_SYNC",
            },
        );
        // The code is visible before the error is.
        self.regs.cmdq.cons = self.regs.cmdq.cons & 0x80ff_ffff | u32::from(code) << 24;
        self.error(hw, gerror::CMDQ);
    }

    fn execute(&mut self, hw: &Hw, [w0, w1]: [u64; 2]) -> Result<(), Stop> {
        let opcode = w0 as u8;
        let Some((name, allowed)) = layout(opcode) else {
            hw.violations.report("command-unknown", format_args!("opcode {opcode:#x}"));
            return Err(ILL);
        };
        if hw.schedule.fires(points::COMMAND_ILL) {
            return Err(ILL);
        }
        if w0 >> 10 & 1 == 1 && opcode <= 0x06 {
            hw.violations.report("command-reserved", format_args!("{name}: SSec"));
            return Err(ILL);
        }
        let reserved = [w0 & !(allowed[0] | 0xff), w1 & !allowed[1]];
        if reserved != [0, 0] {
            hw.violations.report("command-reserved", format_args!("{name}: reserved bits {reserved:x?}"));
            if hw.schedule.fires(points::COMMAND_STRICT) {
                return Err(ILL);
            }
        }
        let config = &hw.config;
        let sid = field(w0, 63, 32) as u32;
        let index = field(w0, 31, 12) as u32;
        let substream = (w0 >> 11 & 1 == 1).then_some(index);
        match opcode {
            0x01 | 0x02 => self.prefetch(hw, sid, substream, w1),
            0x03 => {
                self.invalidated.push(Invalidated::Streams(sid, sid));
                self.configs.doom_streams(sid, sid, w1 & 1 == 1);
            }
            0x04 => {
                let low = u32::MAX >> (31 - (w1 & 0x1f));
                self.invalidated.push(Invalidated::Streams(sid & !low, sid | low));
                self.configs.doom_streams(sid & !low, sid | low, false);
            }
            0x05 | 0x06 | 0x10..=0x13 if !config.stage1 => return Err(ILL),
            0x05 => {
                self.invalidated.push(Invalidated::Substream(sid, index));
                self.configs.doom_cd(sid, index, w1 & 1 == 1);
            }
            0x06 => {
                self.invalidated.push(Invalidated::Streams(sid, sid));
                self.configs.doom_cds(sid);
            }
            0x20..=0x23 if !config.hyp => return Err(ILL),
            0x28 | 0x2a if !config.stage2 => return Err(ILL),
            0x10..=0x30 => {
                if self.invalidated.last() != Some(&Invalidated::Any) {
                    self.invalidated.push(Invalidated::Any);
                }
                self.tlbi(hw, opcode, w0, w1)?;
            }
            0x40 if !config.ats => return Err(ILL),
            0x40 => self.atc_inv(hw, sid, substream, w0, w1)?,
            0x41 if !config.pri => return Err(ILL),
            0x41 => self.pri_resp(hw, sid, substream, w1)?,
            0x44 | 0x45 if config.stall_model == 1 => return Err(ILL),
            0x44 => self.resume(hw, sid, w0, w1),
            0x45 => self.stall_term(hw, sid),
            _ => self.sync(hw, w0)?,
        }
        hw.coverage.count("command", if opcode == 4 && w1 & 0x1f == 31 { "CFGI_ALL" } else { name });
        Ok(())
    }

    /// A prefetch may fill every cache, and records nothing.
    fn prefetch(&mut self, hw: &Hw, sid: u32, substream: Option<u32>, w1: u64) {
        if self.regs.enabled() {
            let mut request = crate::core::Request::read(sid, w1 & !0xfff);
            request.pasid = substream;
            self.behaviours(hw, &request, true);
        }
    }

    fn tlbi(&mut self, hw: &Hw, opcode: u8, w0: u64, w1: u64) -> Result<(), Stop> {
        let config = &hw.config;
        let (vmid, asid) = (field(w0, 47, 32) as u16, field(w0, 63, 48) as u16);
        if !config.asid16 && asid > 0xff || !config.vmid16 && vmid > 0xff {
            hw.violations.report("command-range", format_args!("TLBI with ASID {asid:#x}, VMID {vmid:#x}"));
            return Ok(());
        }
        let by_address = matches!(opcode, 0x12 | 0x13 | 0x22 | 0x23 | 0x2a);
        let scope = if by_address { range(hw, w0, w1, opcode == 0x2a)? } else { Some(Scope::ALL) };
        let Some(mut scope) = scope else { return Ok(()) };
        if matches!(opcode, 0x11 | 0x12 | 0x21) || opcode == 0x22 && self.regs.e2h() {
            scope.asid = Some(asid);
        }
        let vmid = if config.stage2 { vmid } else { 0 };
        let machine = move |key: &Key| key.world == StreamWorld::El1 && key.vmid == vmid;
        let e2h = self.regs.e2h();
        let hyp = move |key: &Key| match opcode {
            0x20 => key.world != StreamWorld::El1,
            0x21 => key.world == StreamWorld::El2E2h,
            _ => key.world == if e2h { StreamWorld::El2E2h } else { StreamWorld::El2 },
        };
        match opcode {
            0x28 => self.tlb.doom_both(Some(vmid)),
            0x30 => self.tlb.doom_both(None),
            _ => {}
        }
        let guest = |key: &Key| key.world == StreamWorld::El1;
        let count = match opcode {
            0x10..=0x13 => self.tlb.doom1(machine, scope),
            0x20..=0x23 => self.tlb.doom1(hyp, scope),
            0x28 => self.tlb.doom1(machine, scope) + self.tlb.doom2(machine, scope),
            0x2a => self.tlb.doom2(machine, scope),
            0x30 => self.tlb.doom1(guest, scope) + self.tlb.doom2(guest, scope),
            _ => return Err(ILL),
        };
        hw.coverage.count("invalidation", if count == 0 { "covers nothing" } else { "covers entries" });
        Ok(())
    }

    fn atc_inv(&mut self, hw: &Hw, sid: u32, pasid: Option<u32>, w0: u64, w1: u64) -> Result<(), Stop> {
        if !self.regs.enabled() {
            return Ok(());
        }
        let size = field(w1, 5, 0);
        if size > 52 {
            hw.violations.report("command-range", format_args!("ATC_INV with size {size}"));
            return Err(ILL);
        }
        if pasid.is_some() && hw.config.ssid_bits == 0 {
            hw.violations.report("command-range", "ATC_INV with a SubstreamID");
            return Ok(());
        }
        if !self.connected.contains(&sid) {
            hw.coverage.count("atc", "nobody there");
            return Ok(());
        }
        let low = if size == 52 { u64::MAX } else { (1 << (12 + size)) - 1 };
        let address = w1 & !0xfff & !low;
        let tag = self.next_invalidation;
        self.next_invalidation = tag.wrapping_add(1);
        self.invalidations.insert(tag, sid);
        let global = pasid.is_some() && w0 >> 9 & 1 == 1;
        let invalidation = AtcInvalidation { tag, pasid, global, address, last: address | low };
        self.send(sid, Downstream::Invalidate(invalidation));
        Ok(())
    }

    fn pri_resp(&mut self, hw: &Hw, sid: u32, pasid: Option<u32>, w1: u64) -> Result<(), Stop> {
        let code = match field(w1, 13, 12) {
            0 => ResponseCode::Failure,
            1 => ResponseCode::InvalidRequest,
            2 => ResponseCode::Success,
            _ => {
                hw.violations.report("command-range", "PRI_RESP with response 3");
                return Err(ILL);
            }
        };
        if !self.regs.enabled() {
            return Ok(());
        }
        let group = field(w1, 8, 0) as u16;
        match self.groups.remove(&Group { requester: sid, group }) {
            None => {
                let text =
                    format_args!("stream {sid:#x} group {group}: no such request, or answered already");
                hw.violations.report("page-response", text);
            }
            Some(asked) if pasid.is_some() && asked != pasid => {
                let text = format_args!(
                    "stream {sid:#x} group {group}: asked by {asked:x?}, answered to {pasid:x?}"
                );
                hw.violations.report("page-response", text);
            }
            Some(_) => {}
        }
        self.send(sid, Downstream::PageResponse(PageResponse { pasid, group, code }));
        Ok(())
    }

    fn resume(&mut self, hw: &Hw, sid: u32, w0: u64, w1: u64) {
        let tag = w1 as u16;
        let found = self
            .stalled
            .iter()
            .position(|held| (held.tag, held.request.requester, held.recorded) == (tag, sid, true));
        let Some(at) = found else {
            hw.violations.report("resume", format_args!("stream {sid:#x} tag {tag:#x}: nothing is stalled"));
            return;
        };
        let held = self.stalled.remove(at);
        if held.gone {
            hw.coverage.count("stall", "answered after it went through");
        } else if w0 >> 12 & 1 == 1 {
            hw.coverage.count("stall", "retried");
            self.retry(hw, &held);
        } else {
            hw.coverage.count("stall", "terminated");
            self.end_stall(&held);
        }
        self.release_behind(hw, tag);
    }

    fn stall_term(&mut self, hw: &Hw, sid: u32) {
        let ste = self.ste(hw, &mut Run::new(Choice::Fresh, false), sid);
        if ste.is_ok_and(|ste| matches!(ste.meaning, Meaning::Translate(_) | Meaning::Bypass)) {
            hw.violations.report("stall-term", format_args!("stream {sid:#x} still accepts transactions"));
        }
        let (ended, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.stalled).into_iter().partition(|held| held.request.requester == sid);
        self.stalled = kept;
        for held in ended {
            hw.coverage.count("stall", "terminated with its stream");
            self.end_stall(&held);
        }
    }

    fn sync(&mut self, hw: &Hw, w0: u64) -> Result<(), Stop> {
        if field(w0, 13, 12) == 3 {
            hw.violations.report("command-range", "SYNC with CS 3");
            return Err(ILL);
        }
        if hw.schedule.fires(points::SYNC_LATE) {
            return Err(Stop::Wait);
        }
        if !self.invalidations.is_empty() {
            if !hw.schedule.fires(points::ATC_TIMEOUT) {
                return Err(Stop::Wait);
            }
            // The invalidations count as failed; another CMD_SYNC does not wait for them.
            self.invalidations.clear();
            return Err(Stop::Error(CERROR_ATC_INV_SYNC));
        }
        self.sync_stalls(hw);
        self.configs.commit();
        self.tlb.commit();
        self.flush_events(hw);
        Ok(())
    }

    /// The completion signal of a CMD_SYNC, after CONS has moved.
    fn signal(&mut self, hw: &Hw, [w0, w1]: [u64; 2]) {
        let source = "cmdq-sync";
        match field(w0, 13, 12) {
            1 => {
                let address = w1 & 0x00ff_ffff_ffff_fffc;
                if !hw.config.msi || address == 0 {
                    hw.interrupts.raise(Interrupt::Wire { source });
                    return;
                }
                let data = field(w0, 63, 32) as u32;
                let address = address & ((1 << hw.config.oas) - 1);
                if hw.schedule.fires(points::MSI_ABORT) || hw.memory.write32(address, data).is_err() {
                    self.error(hw, gerror::MSI_CMDQ);
                } else {
                    hw.interrupts.raise(Interrupt::Message { source, address, data });
                }
            }
            2 if hw.config.sev => hw.interrupts.raise(Interrupt::Event { source }),
            _ => {}
        }
    }
}

/// Address, granule and level of an invalidation (4.4.1.1). `None` if software got it so wrong that nothing needs
/// to be invalidated.
fn range(hw: &Hw, w0: u64, w1: u64, ipa: bool) -> Result<Option<Scope>, Stop> {
    let config = &hw.config;
    let address = if ipa { w1 & 0x00ff_ffff_ffff_f000 } else { w1 & !0xfff };
    let leaf = w1 & 1 == 1;
    let (num, scale) = (field(w0, 16, 12), field(w0, if config.ds { 25 } else { 24 }, 20).min(39));
    let (tg, ttl) = (field(w1, 11, 10), field(w1, 9, 8));
    let one = Scope { range: Some((address, address)), leaf, ..Scope::ALL };
    if tg == 0 || !config.ril {
        if num != 0 || scale != 0 || ttl != 0 || tg != 0 {
            let text = format_args!("TLBI with NUM {num}, SCALE {scale}, TG {tg}, TTL {ttl}");
            hw.violations.report("command-reserved", text);
        }
        return Ok(Some(one));
    }
    let granule = [Granule::K4, Granule::K16, Granule::K64][tg as usize - 1];
    let ttl = if granule == Granule::K16 && ttl == 1 && !config.ds { 0 } else { ttl };
    if num == 0 && scale == 0 && ttl == 0 {
        hw.violations.report("command-range", "TLBI with a granule but neither range nor level");
        return Err(ILL);
    }
    let aligned_bits = match (granule, ttl) {
        (Granule::K4, 0 | 3) => 12,
        (_, 0) => granule.bits(),
        (_, level) => granule.span(level as i8),
    };
    if address & ((1 << aligned_bits) - 1) != 0 {
        let text = format_args!("TLBI of {address:#x} with {granule:?} and TTL {ttl}: not aligned");
        hw.violations.report("command-range", text);
        return Ok(None);
    }
    let bytes = u128::from(num + 1) << (scale + u64::from(granule.bits()));
    let last = u128::from(address) + bytes - 1;
    // Neither a wrap at the end nor a reach from the lower half into the upper one is guaranteed to work.
    let limit = if ipa || address >> 63 == 1 { u64::MAX } else { u64::MAX >> 1 };
    let last = u64::try_from(last).unwrap_or(u64::MAX).min(limit);
    let level = (ttl != 0).then_some(ttl as i8);
    Ok(Some(Scope { range: Some((address, last)), leaf, granule: Some(granule), level, ..Scope::ALL }))
}
