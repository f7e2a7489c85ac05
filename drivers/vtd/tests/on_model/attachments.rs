//! Attachments, DMA, faults, and what goes wrong on purpose.

use crate::ensure;
use crate::op::Op;
use crate::oracle::{Attached, Content};
use crate::world::{Break, Outcomes, World};
use portcullis_hal::wait::Timeout;
use portcullis_iommu::{AttachError, Transition, Unit, UnitEvent};
use portcullis_model::core::{AddressKind, Mode, Outcome, Request, Upstream};
use portcullis_model::vtd::points;

impl World {
    /// The devices that an operation is about.
    fn several(&self, device: u8, count: u8) -> Vec<usize> {
        let first = self.device(device);
        let mut all: Vec<usize> = (0..usize::from(count)).map(|n| (first + n) % self.devices.len()).collect();
        all.dedup();
        all
    }

    fn old(&self, device: usize) -> Vec<usize> {
        match &self.devices[device].attached {
            Attached::Nothing => Vec::new(),
            Attached::To(space) => vec![*space],
            Attached::Unknown(several) => several.clone(),
        }
    }

    /// Requests at addresses that are mapped before and after a change, if there are any.
    fn probes(&self, devices: &[usize], new: Option<usize>, nonce: u64) -> Vec<Request> {
        let mut requests = Vec::new();
        for &device in devices {
            let old = self.old(device);
            let in_old = |address: u64| old.iter().any(|&space| self.spaces[space].is_mapped(address));
            let in_new = |address: u64| new.is_none_or(|space| self.spaces[space].is_mapped(address));
            let mut points = self.points.clone();
            points.rotate_left(nonce as usize % self.points.len());
            points.sort_by_key(|&address| (!(in_old(address) && in_new(address)), !in_old(address)));
            for &point in points.iter().take(3 - devices.len().min(2)) {
                requests.push(self.request(device, point, nonce & 1 != 0));
            }
        }
        requests
    }

    /// A device has left what it was attached to, and hardware confirmed it.
    fn leave(&mut self, device: usize) {
        if let Attached::To(space) = self.devices[device].attached {
            self.spaces[space].leave(device);
            self.devices[device].attached = Attached::Nothing;
            self.release_foreign(space);
        }
        self.devices[device].attached = Attached::Nothing;
    }

    /// Hardware did not confirm a change: what it was attached to before and what it was to be attached to both remain.
    fn unknown(&mut self, device: usize, new: Option<usize>) {
        let mut all = self.old(device);
        all.extend(new);
        for &space in &all {
            self.spaces[space].quarantined = true;
        }
        if !all.is_empty() {
            self.devices[device].attached = Attached::Unknown(all);
        }
    }

    fn timed_out(&mut self, timeout: &Timeout) -> Outcomes {
        ensure!(self.injected, "the unit failed of itself: {timeout}");
        self.quarantined = true;
        self.faulted = true;
        // A unit that refuses to forget anything at all is reported as an error in the fault status.
        let refused = timeout.register.starts_with("FSTS");
        self.count("unit error", if refused { "attachment refused" } else { "attachment timed out" });
        Ok(())
    }

    fn ids(&self) -> usize {
        self.spaces.iter().filter(|space| space.has_id()).count()
    }

    pub(crate) fn attach(&mut self, nonce: u64, device: u8, count: u8, slot: u8) -> Outcomes {
        let at = self.index(slot);
        let Some((new, domain)) = self.slots[at].as_ref().map(|slot| (slot.space, slot.domain.clone()))
        else {
            return Ok(());
        };
        let devices = self.several(device, count);
        let endpoints = self.endpoints(&devices);
        let before = self.begin(nonce, self.probes(&devices, Some(new), nonce));
        let ids = self.ids();
        let blocked = self.spaces[new].content == Content::Nothing;
        let mut change = Break::None;
        match self.driver.attach(&endpoints, &domain) {
            Ok(transition) => {
                ensure!(blocked || !self.faulted, "a unit that is out of order took an attachment");
                let had = |device: &usize| !self.old(*device).is_empty();
                self.count(
                    "attach",
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
                    if self.devices[device].attached == Attached::To(new) {
                        continue;
                    }
                    self.leave(device);
                    if !blocked {
                        self.spaces[new].users.insert(device);
                        self.devices[device].attached = Attached::To(new);
                    }
                }
            }
            Err(AttachError::OutOfMemory(_)) if self.short && !blocked => {
                self.count("attach", "out of memory")
            }
            Err(AttachError::Faulted) if self.faulted && !blocked => {}
            Err(AttachError::NoFreeId) => {
                let last = self.driver.features().last_domain_id() as usize;
                ensure!(ids >= last, "no id of {last} is free, with {ids} domains in use");
                self.count("attach", "no free id");
            }
            Err(AttachError::Timeout(timeout)) => {
                change = Break::Possible;
                self.timed_out(&timeout)?;
                for device in devices {
                    self.unknown(device, (!blocked).then_some(new));
                }
            }
            Err(error) => return Err(format!("attach: {error}")),
        }
        self.end(before, change)
    }

    pub(crate) fn detach(&mut self, nonce: u64, device: u8, count: u8) -> Outcomes {
        let devices = self.several(device, count);
        let endpoints = self.endpoints(&devices);
        let before = self.begin(nonce, self.probes(&devices, None, nonce));
        match self.driver.detach(&endpoints) {
            Ok(()) => devices.into_iter().for_each(|device| self.leave(device)),
            Err(AttachError::Timeout(timeout)) => {
                self.timed_out(&timeout)?;
                devices.into_iter().for_each(|device| self.unknown(device, None));
            }
            Err(error) => return Err(format!("detach: {error}")),
        }
        self.end(before, Break::Possible)
    }

    pub(crate) fn dma(&mut self, device: u8, point: u8, kind: u8, mode: u8) -> Outcomes {
        let device = self.device(device);
        let address = self.points[usize::from(point) % self.points.len()];
        let request = self.request(device, address, mode & 4 != 0);
        let request = match kind % 20 {
            0 => request.with_pasid(u32::from(kind)),
            1 => request.with_kind(AddressKind::Translated),
            2 => request.with_kind(AddressKind::TranslationRequest),
            _ => request,
        };
        let mode = [Mode::Fresh, Mode::Hostile, Mode::Any, Mode::Hostile][usize::from(mode & 3)];
        self.issue(&request, mode)
    }

    fn issue(&mut self, request: &Request, mode: Mode) -> Outcomes {
        let outcome = self.bench.unit.dma(*request, mode).outcome;
        let allowed = self.allowed(request);
        ensure!(
            self.admits(&allowed, request, &outcome),
            "{request:x?} ended with {outcome:x?}, allowed are {allowed:x?}"
        );
        if let Outcome::Fault(code) = outcome {
            self.faults.push((request.requester as u16, request.address & !0xfff, code));
        }
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
        ensure!(raised || self.faults.is_empty(), "no interrupt for {:x?}", self.faults);
        let (mut found, mut overflow) = (Vec::new(), false);
        self.driver.handle_interrupt(&mut |event| match event {
            UnitEvent::Fault(record) => found.push(record),
            UnitEvent::Overflow => overflow = true,
            _ => {}
        });
        let mut expected = std::mem::take(&mut self.faults).into_iter();
        for record in &found {
            let address = record.address.map_or(0, |address| address.get());
            let fault = (record.endpoint.get() as u16, address, record.code as u8);
            ensure!(expected.any(|other| other == fault), "{fault:x?} did not happen, or in another order");
        }
        if !overflow && !self.collapsing {
            let lost: Vec<_> = expected.collect();
            ensure!(lost.is_empty(), "lost without a word: {lost:x?}");
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
                schedule.odds(points::WAIT_LATE, late, 3).odds(points::QUEUE_OVERTAKE, late, 4);
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
