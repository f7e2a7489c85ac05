//! What the unit sends out: event records, page requests, interrupts, errors (IHI 0070, chapters 7 and 8).

use super::entry::Meaning;
use super::points;
use super::regs::{Msi, cr0, gerror, irq};
use super::run::{Choice, Hw, Run};
use super::state::{Group, Stalled, State};
use crate::core::{
    Downstream, Interrupt, Mode, Outcome, PageRequest, PageResponse, Request, Response, ResponseCode,
};

/// STALL in word 1 of an event.
const STALL: u64 = 1 << 31;
const OVERFLOW: u32 = 1 << 31;

/// The name of a fault code, for coverage.
pub(super) const fn fault_name(code: u8) -> &'static str {
    match code {
        0x02 => "C_BAD_STREAMID",
        0x03 => "F_STE_FETCH",
        0x04 => "C_BAD_STE",
        0x05 => "F_BAD_ATS_TREQ",
        0x06 => "F_STREAM_DISABLED",
        0x07 => "F_TRANSL_FORBIDDEN",
        0x08 => "C_BAD_SUBSTREAMID",
        0x09 => "F_CD_FETCH",
        0x0a => "C_BAD_CD",
        0x0b => "F_WALK_EABT",
        0x10 => "F_TRANSLATION",
        0x11 => "F_ADDR_SIZE",
        0x12 => "F_ACCESS",
        0x13 => "F_PERMISSION",
        _ => "other",
    }
}

impl State {
    /// Raises an interrupt of a source that IRQ_CTRL enables.
    fn interrupt(&mut self, hw: &Hw, enable: u32, source: &'static str, msi: Msi, on_abort: u32) {
        if self.regs.irq_ctrlack & enable == 0 {
            return;
        }
        let address = msi.address & 0x00ff_ffff_ffff_fffc;
        if !hw.config.msi || address == 0 {
            hw.interrupts.raise(Interrupt::Wire { source });
            return;
        }
        let failed = hw.schedule.fires(points::MSI_ABORT);
        if failed || hw.memory.write32(address, msi.data).is_err() {
            self.error(hw, on_abort);
        } else {
            hw.interrupts.raise(Interrupt::Message { source, address, data: msi.data });
        }
    }

    /// Activates a global error.
    pub(super) fn error(&mut self, hw: &Hw, bit: u32) {
        hw.coverage.count("error", error_name(bit));
        if self.regs.has_error(bit) {
            return;
        }
        self.regs.gerror ^= bit;
        if bit != gerror::MSI_GERROR {
            let msi = self.regs.gerror_msi;
            self.interrupt(hw, irq::GERROR, "gerror", msi, gerror::MSI_GERROR);
        }
    }

    fn events_writable(&self) -> bool {
        self.regs.on(cr0::EVENTQEN) && !self.regs.has_error(gerror::EVENTQ_ABT) && !self.regs.eventq.is_full()
    }

    /// Records an event of a terminated transaction, now or later.
    fn event(&mut self, hw: &Hw, record: [u64; 4]) {
        if hw.schedule.fires(points::EVENT_LATE) {
            self.late_events.push_back(record);
        } else {
            self.flush_events(hw);
            self.write_event(hw, record);
        }
    }

    /// Late events reach the queue; at the latest when a CMD_SYNC completes.
    pub(super) fn flush_events(&mut self, hw: &Hw) {
        while let Some(record) = self.late_events.pop_front() {
            self.write_event(hw, record);
        }
    }

    fn write_event(&mut self, hw: &Hw, record: [u64; 4]) -> bool {
        if !self.regs.on(cr0::EVENTQEN) || self.regs.has_error(gerror::EVENTQ_ABT) {
            hw.coverage.count("event", "lost: queue off");
            return false;
        }
        let queue = self.regs.eventq;
        if queue.is_full() {
            hw.coverage.count("event", "lost: overflow");
            if (queue.prod ^ queue.cons) & OVERFLOW == 0 {
                self.regs.eventq.prod ^= OVERFLOW;
            }
            return false;
        }
        let at = queue.entry(queue.position(queue.prod), 32, hw.config.oas);
        let failed = hw.schedule.fires(points::EVENTQ_ABORT)
            || (at..).step_by(8).zip(record).any(|(at, word)| hw.memory.write64(at, word).is_err());
        if failed {
            self.error(hw, gerror::EVENTQ_ABT);
            return false;
        }
        let was_empty = queue.used() == 0;
        self.regs.eventq.prod = queue.next(queue.prod);
        hw.coverage.count("event", fault_name(record[0] as u8));
        if was_empty {
            let msi = self.regs.eventq_msi;
            self.interrupt(hw, irq::EVENTQ, "eventq", msi, gerror::MSI_EVENTQ);
        }
        true
    }

    /// One DMA with all its consequences.
    pub(super) fn transact(&mut self, hw: &Hw, request: Request, mode: Mode) -> Response {
        let mut mode = mode;
        let mut attempts = 0;
        let resolution = loop {
            let resolution = self.behave(hw, &request, mode);
            let lost = resolution.updates.iter().any(|update| {
                let before = hw.memory.compare_exchange64(update.address, update.from, update.to);
                if before == Some(update.from) {
                    hw.coverage.count("httu", update.name);
                }
                before != Some(update.from) && before != Some(update.to)
            });
            attempts += 1;
            if !lost || attempts == 8 {
                break resolution;
            }
            // Somebody else changed the descriptor: the walk starts over, from memory.
            hw.coverage.count("httu", "race lost");
            mode = Mode::Fresh;
        };
        resolution.used.iter().for_each(|name| hw.coverage.count("cache used", name));
        hw.coverage.count("lookup", if resolution.stale { "stale" } else { "as memory says" });
        match resolution.outcome {
            Outcome::Fault(code) | Outcome::Silent(code) | Outcome::Stalled(code) => {
                hw.coverage.count("fault", fault_name(code));
            }
            Outcome::Done(_) => hw.coverage.count("outcome", "done"),
            Outcome::Granted(_) => hw.coverage.count("outcome", "granted"),
            Outcome::NotGranted => hw.coverage.count("outcome", "not granted"),
            Outcome::Aborted => hw.coverage.count("outcome", "aborted"),
        }
        let mut response = Response { outcome: resolution.outcome, tag: None };
        match (resolution.outcome, resolution.record) {
            (Outcome::Stalled(_), Some(record)) => response.tag = Some(self.stall(hw, request, mode, record)),
            (_, Some(record)) => self.event(hw, record),
            (_, None) => {}
        }
        response
    }

    fn stall(&mut self, hw: &Hw, request: Request, mode: Mode, mut record: [u64; 4]) -> u16 {
        let tag =
            (0..u16::MAX).find(|tag| self.stalled.iter().all(|held| held.tag != *tag)).unwrap_or(u16::MAX);
        record[1] |= STALL | u64::from(tag);
        self.flush_events(hw);
        let behind = self.duplicate(&request).filter(|_| hw.schedule.fires(points::STALL_SUPPRESS));
        // A stall's event is never discarded: it waits for room, and so do those above STALL_MAX.
        let room = self.recorded_stalls() < usize::from(hw.config.stall_max) && self.events_writable();
        let free = behind.is_none() && room;
        let late = (free && hw.schedule.fires(points::EVENT_LATE)).then_some(record);
        let recorded = free && late.is_none() && self.write_event(hw, record);
        match (behind, late) {
            (Some(_), _) => hw.coverage.count("stall", "suppressed"),
            (None, Some(_)) => hw.coverage.count("stall", "on its way to the event queue"),
            (None, None) if !recorded => hw.coverage.count("stall", "waits for the event queue"),
            (None, None) => {}
        }
        self.stalled.push(Stalled { tag, request, mode, recorded, late, gone: false, behind });
        tag
    }

    /// Events of stalls that are on their way become visible, of those that `wanted` picks. One that finds no room is
    /// not written any more: the transaction is tried again when there is room.
    fn flush_stalls(&mut self, hw: &Hw, wanted: impl Fn(&Request) -> bool) {
        for at in 0..self.stalled.len() {
            let held = &mut self.stalled[at];
            let Some(record) = held.late.filter(|_| wanted(&held.request)) else { continue };
            held.late = None;
            let room = self.recorded_stalls() < usize::from(hw.config.stall_max) && self.events_writable();
            self.stalled[at].recorded = room && self.write_event(hw, record);
        }
    }

    /// The events of stalls that the completed invalidations affect become visible, or never will (4.7.3). A CMD_SYNC
    /// does nothing for other stalls.
    pub(super) fn sync_stalls(&mut self, hw: &Hw) {
        let invalidated = std::mem::take(&mut self.invalidated);
        self.flush_stalls(hw, |request| invalidated.iter().any(|one| one.affects(request)));
    }

    /// The events of all stalls become visible.
    pub(super) fn settle_stalls(&mut self, hw: &Hw) {
        self.flush_stalls(hw, |_| true);
    }

    fn recorded_stalls(&self) -> usize {
        self.stalled.iter().filter(|held| held.recorded).count()
    }

    /// A stalled transaction with a record that makes one for this request unnecessary (3.12.2.1).
    fn duplicate(&self, request: &Request) -> Option<u16> {
        let page = |request: &Request| Request { address: request.address >> 12, ..*request };
        let same = |held: &&Stalled| held.recorded && !held.gone && page(&held.request) == page(request);
        self.stalled.iter().find(same).map(|held| held.tag)
    }

    /// The answer to a stall lets those that were suppressed behind it try again.
    pub(super) fn release_behind(&mut self, hw: &Hw, tag: u16) {
        while let Some(at) = self.stalled.iter().position(|held| held.behind == Some(tag)) {
            let held = self.stalled.remove(at);
            self.retry(hw, &held);
        }
    }

    /// Hardware may try a stalled transaction again before software answers (3.12.2.2). If it goes through, the
    /// answer is still due; if not, nothing is recorded.
    pub(super) fn retry_early(&mut self, hw: &Hw) {
        let waiting = self.stalled.iter().position(|held| held.recorded && !held.gone);
        let Some(at) = waiting.filter(|_| hw.schedule.fires(points::STALL_EARLY_RETRY)) else { return };
        let held = self.stalled[at].clone();
        let resolution = self.behave(hw, &held.request, held.mode);
        if matches!(resolution.outcome, Outcome::Done(_)) && resolution.updates.is_empty() {
            hw.coverage.count("stall", "went through early");
            self.stalled[at].gone = true;
            let response = Response { outcome: resolution.outcome, tag: None };
            self.resumed.push((held.request.requester, held.tag, response));
        }
    }

    /// Stalls whose event found no room are tried again as if they had just arrived.
    pub(super) fn retry_unrecorded(&mut self, hw: &Hw) {
        while self.events_writable() {
            if self.recorded_stalls() >= usize::from(hw.config.stall_max) {
                return;
            }
            let waiting = |held: &Stalled| !held.recorded && held.behind.is_none() && held.late.is_none();
            let Some(at) = self.stalled.iter().position(waiting) else { return };
            let held = self.stalled.remove(at);
            self.retry(hw, &held);
        }
    }

    /// Handles a held transaction as though it had just arrived. If it stalls again it keeps its tag towards
    /// the device.
    pub(super) fn retry(&mut self, hw: &Hw, held: &Stalled) {
        let response = self.transact(hw, held.request, held.mode);
        match response.tag {
            None => self.resumed.push((held.request.requester, held.tag, response)),
            Some(tag) => {
                // The lowest free tag is this one again, unless others took it meanwhile.
                if tag != held.tag {
                    self.resumed.push((held.request.requester, held.tag, response));
                }
            }
        }
    }

    pub(super) fn end_stall(&mut self, held: &Stalled) {
        if held.gone {
            return;
        }
        let response = Response { outcome: Outcome::Aborted, tag: None };
        self.resumed.push((held.request.requester, held.tag, response));
    }

    /// SMMUEN went to 0: stalled transactions are terminated.
    pub(super) fn drop_stalls(&mut self) {
        for held in std::mem::take(&mut self.stalled) {
            self.end_stall(&held);
        }
    }

    pub(super) fn send(&mut self, requester: u32, message: Downstream) {
        self.outbox.entry(requester).or_default().push_back(message);
    }

    /// Takes a page request message.
    pub(super) fn page_request(&mut self, hw: &Hw, request: PageRequest) {
        let marker = request.pasid.is_some() && request.last && !request.read && !request.write;
        let answers = request.last && !marker;
        let answer =
            |pasid, code| Downstream::PageResponse(PageResponse { pasid, group: request.group, code });
        let off = !self.regs.enabled() || !self.regs.on(cr0::PRIQEN);
        if off || self.regs.has_error(gerror::PRIQ_ABT) {
            hw.coverage.count("pri", "refused: queue off");
            if answers {
                self.send(request.requester, answer(None, ResponseCode::Failure));
            }
            return;
        }
        let queue = self.regs.priq;
        let overflown = (queue.prod ^ queue.cons) & OVERFLOW != 0;
        if overflown || queue.is_full() || hw.schedule.fires(points::PRIQ_OVERFLOW) {
            hw.coverage.count("pri", "overflow");
            if !overflown {
                self.regs.priq.prod ^= OVERFLOW;
            }
            if answers {
                let (pasid, code) = self.automatic(hw, &request);
                self.send(request.requester, answer(pasid, code));
            }
            return;
        }
        let (w0, w1) = page_record(&request);
        let at = queue.entry(queue.position(queue.prod), 16, hw.config.oas);
        let failed = hw.schedule.fires(points::PRIQ_ABORT)
            || hw.memory.write64(at, w0).is_err()
            || hw.memory.write64(at + 8, w1).is_err();
        if failed {
            self.error(hw, gerror::PRIQ_ABT);
            if answers {
                self.send(request.requester, answer(None, ResponseCode::Failure));
            }
            return;
        }
        self.regs.priq.prod = queue.next(queue.prod);
        hw.coverage.count("pri", if marker { "stop marker" } else { "page request" });
        if answers {
            let group = Group { requester: request.requester, group: request.group };
            self.groups.insert(group, request.pasid);
        }
        let msi = self.regs.priq_msi;
        // LO: an interrupt for each last request, else when the queue stops being empty.
        if if msi.attributes >> 31 == 1 { request.last } else { queue.used() == 0 } {
            self.interrupt(hw, irq::PRIQ, "priq", msi, gerror::MSI_PRIQ);
        }
    }

    /// PASID and code of the automatic answer to a request that found the queue full (8.1).
    fn automatic(&mut self, hw: &Hw, request: &PageRequest) -> (Option<u32>, ResponseCode) {
        if request.pasid.is_none() || hw.config.ssid_bits == 0 || hw.config.pps {
            let pasid = request.pasid.filter(|_| hw.config.ssid_bits != 0);
            return (pasid, ResponseCode::Success);
        }
        let mut run = Run::new(Choice::Fresh, true);
        match self.ste(hw, &mut run, request.requester) {
            Ok(ste) if ste.meaning != Meaning::Invalid => {
                (request.pasid.filter(|_| ste.ppar), ResponseCode::Success)
            }
            _ => (None, ResponseCode::Failure),
        }
    }
}

const fn page_record(request: &PageRequest) -> (u64, u64) {
    let pasid = match request.pasid {
        Some(pasid) => 1 << 63 | (pasid as u64 & 0xf_ffff) << 32,
        None => 0,
    };
    // Without a PASID there is neither execute nor privileged.
    let tagged = request.pasid.is_some();
    let w0 = request.requester as u64
        | pasid
        | ((request.privileged && tagged) as u64) << 58
        | ((request.execute && tagged) as u64) << 59
        | (request.read as u64) << 60
        | (request.write as u64) << 61
        | (request.last as u64) << 62;
    (w0, request.address & !0xfff | request.group as u64 & 0x1ff)
}

const fn error_name(bit: u32) -> &'static str {
    match bit {
        gerror::CMDQ => "CMDQ_ERR",
        gerror::EVENTQ_ABT => "EVENTQ_ABT_ERR",
        gerror::PRIQ_ABT => "PRIQ_ABT_ERR",
        gerror::MSI_CMDQ => "MSI_CMDQ_ABT_ERR",
        gerror::MSI_EVENTQ => "MSI_EVENTQ_ABT_ERR",
        gerror::MSI_PRIQ => "MSI_PRIQ_ABT_ERR",
        gerror::MSI_GERROR => "MSI_GERROR_ABT_ERR",
        _ => "other",
    }
}
