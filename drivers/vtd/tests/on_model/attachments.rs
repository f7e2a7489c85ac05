//! Attachments, DMA, faults, and what goes wrong on purpose.

use crate::ensure;
use crate::op::Op;
use crate::oracle::{Attached, Content};
use crate::world::{Break, Outcomes, PASIDS, Slot, World, job};
use portcullis_hal::Pasid;
use portcullis_hal::wait::Timeout;
use portcullis_iommu::{AttachError, Requests, Transition, Unit, UnitEvent};
use portcullis_model::core::{AddressKind, Mode, Outcome, Request, Upstream};
use portcullis_model::device::{self, Attempt};
use portcullis_model::vtd::points;
use std::collections::BTreeSet;

impl World {
    /// The devices that an operation is about.
    pub(crate) fn several(&self, device: u8, count: u8) -> Vec<usize> {
        let first = self.device(device);
        let mut all: Vec<usize> = (0..usize::from(count)).map(|n| (first + n) % self.devices.len()).collect();
        all.dedup();
        all
    }

    /// Requests at addresses that are mapped before and after a change of a PASID, or of requests without one (0), if
    /// there are any.
    pub(crate) fn probes(
        &self,
        devices: &[usize],
        pasid: u32,
        new: Option<usize>,
        nonce: u64,
    ) -> Vec<Request> {
        let mut requests = Vec::new();
        for &device in devices {
            let attached = &self.devices[device].attached;
            let old = attached.at(pasid).map_or_else(|| attached.all(), |space| vec![space]);
            let in_old = |address: u64| old.iter().any(|&space| self.spaces[space].is_mapped(address));
            let in_new = |address: u64| new.is_none_or(|space| self.spaces[space].is_mapped(address));
            let mut points = self.points.clone();
            points.rotate_left(nonce as usize % self.points.len());
            points.sort_by_key(|&address| (!(in_old(address) && in_new(address)), !in_old(address)));
            for &point in points.iter().take(3 - devices.len().min(2)) {
                requests.push(self.request_of((device, pasid), point, nonce & 1 != 0));
            }
        }
        requests
    }

    /// A PASID of a device has left what it was attached to, and hardware confirmed it.
    fn leave(&mut self, device: usize, pasid: u32) {
        let Attached::To(domains) = &mut self.devices[device].attached else {
            self.devices[device].attached = Attached::NOTHING;
            return;
        };
        if let Some(space) = domains.remove(&pasid) {
            self.spaces[space].leave(device, pasid);
            self.release_foreign(space);
        }
    }

    /// A device has left all that it was attached to.
    fn leave_all(&mut self, device: usize) {
        let pasids: Vec<u32> = match &self.devices[device].attached {
            Attached::To(domains) => domains.keys().copied().collect(),
            Attached::Unknown(_) => vec![0],
        };
        pasids.into_iter().for_each(|pasid| self.leave(device, pasid));
        self.devices[device].cut.clear();
    }

    /// Hardware did not confirm a change: what the device was attached to before and what it was to be attached to both
    /// remain.
    pub(crate) fn unknown(&mut self, device: usize, new: Option<usize>) {
        let mut all = self.devices[device].attached.all();
        let was_cut = !std::mem::take(&mut self.devices[device].cut).is_empty();
        all.extend(new);
        for &space in &all {
            self.spaces[space].quarantined = true;
        }
        // With a PASID cut off it had a context entry, though it reached nothing.
        if !all.is_empty() || was_cut {
            self.devices[device].attached = Attached::Unknown(all);
        }
    }

    pub(crate) fn timed_out(&mut self, timeout: &Timeout) -> Outcomes {
        ensure!(self.injected, "the unit failed of itself: {timeout}");
        self.quarantined = true;
        self.faulted = true;
        // A unit that refuses to forget anything at all is reported as an error in the fault status.
        let refused = timeout.register.starts_with("FSTS");
        self.count("unit error", if refused { "attachment refused" } else { "attachment timed out" });
        Ok(())
    }

    /// Whether all ids of the unit may be out: one is for what leads nowhere.
    pub(crate) fn may_lack_ids(&self) -> bool {
        let last = self.driver.features().last_domain_id() as usize;
        let taken: usize = self.spaces.iter().map(crate::oracle::Space::ids).sum();
        self.quarantined || taken + 1 >= last
    }

    pub(crate) fn attach(&mut self, nonce: u64, device: u8, count: u8, slot: u8) -> Outcomes {
        self.attach_at(nonce, self.several(device, count), 0, slot)
    }

    pub(crate) fn attach_pasid(
        &mut self,
        nonce: u64,
        device: u8,
        count: u8,
        slot: u8,
        pasid: u8,
    ) -> Outcomes {
        let devices = self.several(device, count);
        // Mostly one that is permitted.
        let bits = self.devices[devices[0]].permissions.pasid_bits;
        let permitted: Vec<u32> = PASIDS.into_iter().filter(|pasid| pasid >> bits == 0).collect();
        let all = if pasid & 0x70 == 0 { &PASIDS[..] } else { &permitted[..] };
        let Some(&pasid) = all.get(usize::from(pasid) % all.len().max(1)) else { return Ok(()) };
        // Now and then one that is in use is cut off.
        let is_blocked = |slot: &Option<Slot>| {
            slot.as_ref().is_some_and(|slot| self.spaces[slot.space].content == Content::Nothing)
        };
        let used = self.devices[devices[0]].attached.last();
        match (self.slots.iter().position(is_blocked), used) {
            (Some(blocked), Some(used)) if nonce.is_multiple_of(8) => {
                self.attach_at(nonce, devices, used, blocked as u8)
            }
            _ => self.attach_at(nonce, devices, pasid, slot),
        }
    }

    fn attach_at(&mut self, nonce: u64, devices: Vec<usize>, pasid: u32, slot: u8) -> Outcomes {
        let at = self.index(slot);
        let Some((new, domain)) = self.slots[at].as_ref().map(|slot| (slot.space, slot.domain.clone()))
        else {
            return Ok(());
        };
        let endpoints = self.endpoints(&devices);
        let before = self.begin(nonce, self.probes(&devices, pasid, Some(new), nonce));
        let blocked = self.spaces[new].content == Content::Nothing;
        let permitted = pasid == 0
            || devices.iter().all(|&device| pasid >> self.devices[device].permissions.pasid_bits == 0);
        let mut change = Break::None;
        let result = match Pasid::new(pasid) {
            Ok(pasid) => self.driver.attach_pasid(&endpoints, pasid, &domain),
            Err(_) => self.driver.attach(&endpoints, &domain),
        };
        let class = if pasid == 0 { "attach" } else { "attach PASID" };
        if permitted && !blocked && !self.faulted {
            for &device in &devices {
                self.devices[device].leaves.insert(pasid / 64);
            }
        }
        match result {
            Ok(transition) => {
                ensure!(permitted, "PASID {pasid:#x} was attached without permission");
                ensure!(blocked || !self.faulted, "a unit that is out of order took an attachment");
                let had = |&device: &usize| self.devices[device].attached.at(pasid).is_some();
                self.count(
                    class,
                    match (transition, devices.iter().any(had)) {
                        _ if blocked => "blocked",
                        (Transition::Disruptive, _) => "replaced, disruptive",
                        (Transition::Hitless, true) => "replaced, hitless",
                        (Transition::Hitless, false) => "first",
                    },
                );
                if transition == Transition::Disruptive || blocked {
                    change = Break::Possible;
                }
                for device in devices {
                    let attached = &self.devices[device].attached;
                    // Of what else the device is attached to, nothing more is known than before.
                    let unknown = matches!(attached, Attached::Unknown(several) if !several.is_empty());
                    if attached.at(pasid) == Some(new) || blocked && unknown {
                        continue;
                    }
                    let had = self.devices[device].attached.at(pasid).is_some();
                    if blocked && pasid != 0 && had {
                        self.devices[device].cut.insert(pasid);
                        self.count("attach PASID", "cut");
                    } else if !blocked {
                        self.devices[device].cut.remove(&pasid);
                    }
                    self.leave(device, pasid);
                    if let (false, Attached::To(domains)) = (blocked, &mut self.devices[device].attached) {
                        domains.insert(pasid, new);
                        self.spaces[new].users.insert((device, pasid));
                    }
                }
            }
            Err(AttachError::UnknownPasid(named)) => {
                let is_unknown =
                    |&device: &usize| matches!(self.devices[device].attached, Attached::Unknown(_));
                // What a unit that gave no answer to it permits is not known either.
                let permitted = permitted && !self.faulted && !devices.iter().any(is_unknown);
                ensure!(!permitted && named.get() == pasid, "PASID {pasid:#x} is permitted, {named} refused");
                self.count(class, "not permitted");
            }
            Err(AttachError::OutOfMemory(_)) if self.short && !blocked => self.count(class, "out of memory"),
            Err(AttachError::Faulted) if self.faulted && !blocked => {}
            Err(AttachError::NoFreeId) => {
                ensure!(self.may_lack_ids(), "no id is free");
                self.count(class, "no free id");
            }
            Err(AttachError::Timeout(timeout)) => {
                change = Break::Possible;
                self.timed_out(&timeout)?;
                for device in devices {
                    self.unknown(device, (!blocked).then_some(new));
                }
            }
            Err(error) => return Err(format!("{class}: {error}")),
        }
        self.end(before, change)
    }

    pub(crate) fn detach(&mut self, nonce: u64, device: u8, count: u8) -> Outcomes {
        let devices = self.several(device, count);
        let endpoints = self.endpoints(&devices);
        let pasid = self.some_pasid(devices[0], nonce);
        let before = self.begin(nonce, self.probes(&devices, pasid, None, nonce));
        match self.driver.detach(&endpoints) {
            Ok(()) => devices.into_iter().for_each(|device| self.leave_all(device)),
            Err(AttachError::Timeout(timeout)) => {
                self.timed_out(&timeout)?;
                devices.into_iter().for_each(|device| self.unknown(device, None));
            }
            Err(error) => return Err(format!("detach: {error}")),
        }
        self.end(before, Break::Possible)
    }

    pub(crate) fn detach_pasid(&mut self, nonce: u64, device: u8, count: u8, pasid: u8) -> Outcomes {
        let devices = self.several(device, count);
        let endpoints = self.endpoints(&devices);
        let pasid = self.some_pasid(devices[0], u64::from(pasid));
        let Ok(named) = Pasid::new(pasid) else { return Ok(()) };
        let before = self.begin(nonce, self.probes(&devices, pasid, None, nonce));
        match self.driver.detach_pasid(&endpoints, named) {
            Ok(()) => {
                let had = |&device: &usize| self.devices[device].attached.at(pasid).is_some();
                let any = devices.iter().any(had);
                self.count("detach PASID", if any { "attached" } else { "not attached" });
                for device in devices {
                    // Nothing is known of a device whose blocking was never confirmed, but that it is confirmed now.
                    let unknown = matches!(self.devices[device].attached, Attached::Unknown(_));
                    ensure!(!unknown || !self.faulted, "an answer of a unit that is out of order");
                    self.leave(device, pasid);
                    self.devices[device].cut.remove(&pasid);
                }
            }
            Err(AttachError::Timeout(timeout)) => {
                self.timed_out(&timeout)?;
                devices.into_iter().for_each(|device| self.unknown(device, None));
            }
            Err(error) => return Err(format!("detach PASID: {error}")),
        }
        self.end(before, Break::Possible)?;
        // Before a PASID is used anew, all that was asked with it is answered.
        if nonce & 0x300 != 0 {
            let devices = self.several(device, count);
            self.drain(nonce, &devices, |asked| asked == Some(pasid))?;
        }
        Ok(())
    }

    pub(crate) fn dma(&mut self, device: u8, point: u8, kind: u8, mode: u8) -> Outcomes {
        let device = self.device(device);
        let address = self.points[usize::from(point) % self.points.len()];
        let pasid = self.some_pasid(device, u64::from(kind / 4));
        let request = self.request_of((device, pasid), address, mode & 4 != 0);
        let asks = self.devices[device].permissions.requests.contains(Requests::TRANSLATION);
        let mode = [Mode::Fresh, Mode::Hostile, Mode::Any, Mode::Hostile][usize::from(mode & 3)];
        if asks && kind & 1 != 0 {
            return self.access(device, &request, mode);
        }
        let request = match kind % 20 {
            0 => request.with_pasid(u32::from(kind)),
            1 if !asks => request.with_kind(AddressKind::Translated),
            2 if !asks => request.with_kind(AddressKind::TranslationRequest),
            _ => request,
        };
        self.issue(&request, mode)
    }

    /// A device with a TLB makes an access by a translation that it has, or asks for.
    fn access(&mut self, device: usize, request: &Request, mode: Mode) -> Outcomes {
        // A translated request that is refused is recorded with the translated address, of which nothing is known here.
        let mode = match self.devices[device].attached {
            Attached::Unknown(_) => Mode::Fresh,
            Attached::To(_) => mode,
        };
        let response = match self.devices[device].function.access(job(request), mode) {
            Attempt::Answered(response) => response,
            Attempt::Requested { group } => {
                self.asked_for(device, group, job(request));
                return Ok(());
            }
            Attempt::NoCredit | Attempt::Refused => return Ok(()),
        };
        let allowed = self.allowed(request);
        ensure!(
            allowed.admits(&response.outcome),
            "{request:x?} through the device's TLB ended with {:x?}, allowed are {allowed:x?}",
            response.outcome
        );
        if let Outcome::Fault(code) = response.outcome {
            self.faults.push((request.requester as u16, request.address & !0xfff, code));
        }
        Ok(())
    }

    pub(crate) fn issue(&mut self, request: &Request, mode: Mode) -> Outcomes {
        let outcome = self.bench.unit.dma(*request, mode).outcome;
        let allowed = self.allowed(request);
        ensure!(allowed.admits(&outcome), "{request:x?} ended with {outcome:x?}, allowed are {allowed:x?}");
        if let Outcome::Fault(code) = outcome {
            self.faults.push((request.requester as u16, request.address & !0xfff, code));
        }
        self.note_write(request, &outcome);
        Ok(())
    }

    pub(crate) fn storm(&mut self, device: u8, count: u8) -> Outcomes {
        let device = self.device(device);
        for n in 0..u64::from(count % 24) {
            let address = self.points[(n as usize * 7) % self.points.len()];
            let request = self.request(device, address, n & 1 != 0);
            self.issue(&request, Mode::Any)?;
        }
        Ok(())
    }

    /// Handles the fault interrupt: it reports all faults since the last time, or says that some were lost.
    pub(crate) fn interrupt(&mut self) -> Outcomes {
        let raised = !self.bench.unit.take_interrupts().is_empty();
        let pending = self.pages_pending();
        ensure!(raised || self.faults.is_empty(), "no interrupt for {:x?}", self.faults);
        ensure!(raised || pending == 0, "no interrupt for page requests");
        let (mut found, mut overflow, mut pages) = (Vec::new(), false, Vec::new());
        self.driver.handle_interrupt(&mut |event| match event {
            UnitEvent::Fault(record) => found.push(record),
            UnitEvent::Overflow => overflow = true,
            other => pages.push(other),
        });
        self.check_reported(pending, &pages)?;
        let expected = std::mem::take(&mut self.faults);
        // How many of these may have been reported; a refused page request is not among them.
        let mut places = BTreeSet::from([0]);
        for record in &found {
            let address = record.address.map_or(0, |address| address.get());
            let fault = (record.endpoint.get() as u16, address, record.code as u8);
            let after = |&from: &usize| {
                expected[from..].iter().position(|other| *other == fault).map(|at| from + at + 1)
            };
            let mut next: BTreeSet<usize> = places.iter().filter_map(after).collect();
            if self.is_refusal(fault) {
                next.extend(&places);
            }
            ensure!(!next.is_empty(), "{fault:x?} did not happen, or in another order");
            places = next;
        }
        if !overflow && !self.collapsing {
            ensure!(places.contains(&expected.len()), "lost without a word, of {expected:x?}: {places:?}");
        }
        let status = self.bench.unit.read32(0x34);
        ensure!(status & 3 == 0, "FSTS is {status:#x} after the interrupt was handled");
        if overflow {
            self.count("interrupt", "overflow");
        }
        if !found.is_empty() {
            self.count("interrupt", "faults");
        }
        Ok(())
    }

    /// What goes wrong on purpose.
    pub(crate) fn inject(&mut self, op: Op) -> Outcomes {
        let schedule = self.bench.schedule.clone();
        match op {
            Op::Short { after } => {
                self.bench.host.hal().fail_after(usize::from(after % 5));
                self.short = true;
            }
            Op::Mood { mood } => {
                let late = u32::from(mood % 3);
                schedule.odds(points::COMMAND_LATE, late, 4).odds(points::QUEUE_PAUSE, late, 6);
                schedule.odds(device::points::INVALIDATION_LATE, late, 4);
                schedule.odds(points::WAIT_LATE, late, 3).odds(points::QUEUE_OVERTAKE, late, 4);
                schedule.odds(points::REQUEST_LATE, late, 5).odds(device::points::REQUEST_HELD, late, 5);
                self.collapsing |= mood & 0x30 == 0;
                schedule.odds(points::FAULT_COLLAPSE, u32::from(mood & 0x30 == 0), 2);
            }
            Op::Refuse { after } => {
                self.injected = true;
                let mut answers = vec![0; usize::from(after % 6)];
                answers.push(1);
                schedule.script(points::QUEUE_FETCH_ERROR, &answers);
            }
            Op::Stray { device } => {
                let requester = u32::from(self.devices[self.device(device)].sid);
                schedule.script(points::COMPLETION_ERROR, &[1]);
                self.bench.unit.invalidation_done(requester, 0x7777);
            }
            Op::Deaf => {
                self.injected = true;
                schedule.script(device::points::INVALIDATION_LOST, &[1]);
                schedule.odds(points::DEVICE_TIME_OUT, 1, 8);
            }
            Op::Hang => {
                self.injected = true;
                self.bench.unit.hang();
            }
            Op::Lose => {
                self.injected = true;
                schedule.script(points::WAIT_LOST, &[1]);
            }
            _ => {}
        }
        Ok(())
    }
}
