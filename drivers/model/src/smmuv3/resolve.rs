//! From a transaction to what becomes of it (IHI 0070, chapter 15).

use super::caches::Target;
use super::context::Cd;
use super::entry::{Ats, Meaning, Ste, StreamWorld, Translating};
use super::run::{Attributes, Choice, Class, Fault, Hw, Report, Run, Update, code};
use super::stage::{Found1, Found2};
use super::state::State;
use super::walk::Permissions;
use crate::core::{Access, AddressKind, Grant, Mode, Outcome, Request};

/// What one run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resolution {
    pub(super) outcome: Outcome,
    /// The event record, without STALL and STAG.
    pub(super) record: Option<[u64; 4]>,
    pub(super) updates: Vec<Update>,
    pub(super) stale: bool,
    /// Caches that were used.
    pub(super) used: Vec<&'static str>,
}

/// A bound on how many behaviours are looked at for one request.
const BEHAVIOURS: usize = 4096;

const fn index(attributes: Attributes) -> usize {
    attributes.supervisor as usize
}

fn allowed(permissions: &Permissions, access: Access, attributes: Attributes) -> bool {
    match (access, attributes.instruction) {
        (Access::Write, _) => permissions.write[index(attributes)],
        (_, true) => permissions.execute[index(attributes)],
        (_, false) => permissions.read[index(attributes)],
    }
}

fn ends(fault: Fault, kind: AddressKind) -> Outcome {
    match (fault.report, kind) {
        (Report::Stall, AddressKind::Untranslated) if fault.is_translation() => Outcome::Stalled(fault.code),
        (Report::Silent, _) => Outcome::Silent(fault.code),
        _ => Outcome::Fault(fault.code),
    }
}

/// Both stages of one address.
struct Both {
    address: u64,
    bits: u8,
    first: Option<Found1>,
    second: Option<Found2>,
    /// Permissions that stage 2 gives, by whichever entry.
    outer: Permissions,
}

impl State {
    /// What becomes of a request in one particular run.
    pub(super) fn resolve(
        &mut self,
        hw: &Hw,
        mut run: Run<'_>,
        request: &Request,
    ) -> (Resolution, Option<Vec<(usize, usize)>>) {
        let result = match request.kind {
            AddressKind::Untranslated => self.untranslated(hw, &mut run, request),
            AddressKind::TranslationRequest => self.translation_request(hw, &mut run, request),
            AddressKind::Translated => self.translated(hw, &mut run, request),
        };
        let (outcome, record) = match result {
            Ok(outcome) => (outcome, None),
            Err((fault, attributes)) => {
                let outcome = ends(fault, request.kind);
                let silent = matches!(outcome, Outcome::Silent(_));
                (outcome, (!silent).then(|| fault.record(request, attributes)))
            }
        };
        if !matches!(outcome, Outcome::Done(_) | Outcome::Granted(_)) {
            // The access flag of a descriptor on the way may be set all the same; dirty state may not.
            run.updates.retain(|update| update.name == "access flag");
        }
        let (stale, updates) = (run.stale, std::mem::take(&mut run.updates));
        let used = std::mem::take(&mut run.used);
        (Resolution { outcome, record, updates, stale, used }, run.next())
    }

    /// All behaviours of a request, each with one way to get there.
    pub(super) fn behaviours(&mut self, hw: &Hw, request: &Request, fill: bool) -> Vec<Resolution> {
        let mut all: Vec<Resolution> = Vec::new();
        let mut answers = Some(Vec::new());
        for _ in 0..BEHAVIOURS {
            let Some(next) = answers else { return all };
            let run = Run::new(Choice::Replay { answers: next, at: 0 }, fill);
            let (resolution, rest) = self.resolve(hw, run, request);
            if !all
                .iter()
                .any(|known| known.outcome == resolution.outcome && known.record == resolution.record)
            {
                all.push(resolution);
            }
            answers = rest;
        }
        hw.coverage.count("oracle", "behaviours truncated");
        all
    }

    /// The behaviour that a mode asks for.
    pub(super) fn behave(&mut self, hw: &Hw, request: &Request, mode: Mode) -> Resolution {
        match mode {
            Mode::Fresh => self.resolve(hw, Run::new(Choice::Fresh, true), request).0,
            Mode::Any => self.resolve(hw, Run::new(Choice::Random(&hw.schedule), true), request).0,
            Mode::Hostile => {
                let all = self.behaviours(hw, request, true);
                let rank = |resolution: &Resolution| {
                    let goes = matches!(resolution.outcome, Outcome::Done(_) | Outcome::Granted(_));
                    match (resolution.stale, goes) {
                        (true, true) => 0,
                        (false, true) => 1,
                        (true, false) => 2,
                        (false, false) => 3,
                    }
                };
                let best = all.into_iter().min_by_key(rank);
                best.unwrap_or(Resolution {
                    outcome: Outcome::Aborted,
                    record: None,
                    updates: Vec::new(),
                    stale: false,
                    used: Vec::new(),
                })
            }
        }
    }

    fn untranslated(
        &mut self,
        hw: &Hw,
        run: &mut Run<'_>,
        request: &Request,
    ) -> Result<Outcome, (Fault, Attributes)> {
        let plain = Attributes::new(request, 0, 0, StreamWorld::El1);
        let outside = request.address >> hw.config.oas != 0;
        if !self.regs.enabled() {
            let abort = self.regs.bypass_aborts() || outside;
            return Ok(if abort { Outcome::Aborted } else { Outcome::Done(request.address) });
        }
        let ste = self.ste(hw, run, request.requester).map_err(|fault| (self.unrecorded(fault), plain))?;
        let t = match &ste.meaning {
            Meaning::Invalid => return Err((Fault::config(code::C_BAD_STE), plain)),
            Meaning::Abort => return Ok(Outcome::Aborted),
            Meaning::Bypass if request.pasid.is_some() => {
                return Err((Fault::config(code::C_BAD_SUBSTREAMID), plain));
            }
            Meaning::Bypass if outside => {
                return Err((Fault::stage1(code::F_ADDR_SIZE, Report::Record), plain));
            }
            Meaning::Bypass => return Ok(Outcome::Done(request.address)),
            Meaning::Translate(t) => t,
        };
        let attributes = Attributes::new(request, t.privcfg, t.instcfg, t.world);
        self.access(hw, run, request, t, attributes).map_err(|fault| (fault, attributes))
    }

    /// C_BAD_STREAMID is recorded only if CR2.RECINVSID says so.
    fn unrecorded(&self, fault: Fault) -> Fault {
        if fault.code == code::C_BAD_STREAMID && !self.regs.records_bad_streams() {
            return Fault { report: Report::Silent, ..fault };
        }
        fault
    }

    fn access(
        &mut self,
        hw: &Hw,
        run: &mut Run<'_>,
        request: &Request,
        t: &Translating,
        attributes: Attributes,
    ) -> Result<Outcome, Fault> {
        let cd = self.selected_cd(hw, run, request, t)?;
        let write = request.access == Access::Write;
        let check = |permissions: &Permissions| allowed(permissions, request.access, attributes);
        let both = self.both(hw, run, t, cd.as_ref(), request.address, write, &check)?;
        let updates = [both.first.and_then(|f| f.slot), both.second.and_then(|s| s.slot)];
        run.updates.extend(updates.into_iter().flatten().filter_map(|slot| slot.update(write)));
        Ok(Outcome::Done(both.address & low_bits(hw.config.oas)))
    }

    /// The CD that a transaction uses; `None` if stage 1 is bypassed for it.
    fn selected_cd(
        &mut self,
        hw: &Hw,
        run: &mut Run<'_>,
        request: &Request,
        t: &Translating,
    ) -> Result<Option<Cd>, Fault> {
        let Some(s1) = &t.stage1 else {
            return match request.pasid {
                Some(_) => Err(Fault::config(code::C_BAD_SUBSTREAMID)),
                None => Ok(None),
            };
        };
        let index = match request.pasid {
            None if s1.cd_bits == 0 => 0,
            None => match s1.dss {
                1 => return Ok(None),
                2 => 0,
                _ => return Err(Fault::config(code::F_STREAM_DISABLED)),
            },
            Some(pasid) if s1.cd_bits == 0 || pasid >> s1.cd_bits != 0 => {
                return Err(Fault::config(code::C_BAD_SUBSTREAMID));
            }
            Some(0) if s1.dss == 2 => return Err(Fault::config(code::F_STREAM_DISABLED)),
            Some(pasid) => pasid,
        };
        self.cd(hw, run, request.requester, t, s1, index).map(Some)
    }

    /// Translates through the stages that apply; `check` sees the permissions of each.
    #[expect(clippy::too_many_arguments, reason = "a translation has that many inputs")]
    fn both(
        &mut self,
        hw: &Hw,
        run: &mut Run<'_>,
        t: &Translating,
        cd: Option<&Cd>,
        address: u64,
        write: bool,
        check: &dyn Fn(&Permissions) -> bool,
    ) -> Result<Both, Fault> {
        let mut first = None;
        let mut ipa = address;
        if let Some(cd) = cd {
            let found = self.stage1(hw, run, t, cd, address, write)?;
            if !check(&found.permissions) {
                return Err(Fault::stage1(code::F_PERMISSION, Report::new(cd.stall, cd.record)));
            }
            first = Some(found);
            match found.target {
                Target::Intermediate(address) => ipa = address,
                Target::Physical(address, outer) => {
                    if !check(&outer) {
                        let report = t.stage2.as_ref().map_or(Report::Record, Report::stage2);
                        return Err(Fault::stage2(code::F_PERMISSION, report, Class::Input, 0));
                    }
                    return Ok(Both { address, bits: found.bits, first, second: None, outer });
                }
            }
        } else if address >> hw.config.oas != 0 {
            return Err(Fault::stage1(code::F_ADDR_SIZE, Report::Record));
        }
        let Some(s2) = &t.stage2 else {
            let bits = first.map_or(12, |found| found.bits);
            return Ok(Both { address: ipa, bits, first, second: None, outer: Permissions::ALL });
        };
        let found = self.stage2(hw, run, s2, t.vmid, ipa, Class::Input, write)?;
        if !check(&found.permissions) {
            return Err(Fault::stage2(code::F_PERMISSION, Report::stage2(s2), Class::Input, ipa));
        }
        if let (Some(first), true) = (&first, run.fill) {
            self.combine(t, address, first, &found);
        }
        let bits = first.map_or(found.bits, |first| first.bits.min(found.bits));
        let (second, outer) = (Some(found), found.permissions);
        Ok(Both { address: found.address, bits, first, second, outer })
    }

    fn translation_request(
        &mut self,
        hw: &Hw,
        run: &mut Run<'_>,
        request: &Request,
    ) -> Result<Outcome, (Fault, Attributes)> {
        let plain = Attributes::new(request, 0, 0, StreamWorld::El1);
        let refused = (Fault::config(code::F_BAD_ATS_TREQ), plain);
        if !self.regs.enabled() || !hw.config.ats {
            return Err(refused);
        }
        let ste = self.ste(hw, run, request.requester);
        let ste = ste.map_err(|fault| (self.ats_config(self.unrecorded(fault)), plain))?;
        let t = match &ste.meaning {
            Meaning::Invalid => return Err((self.ats_config(Fault::config(code::C_BAD_STE)), plain)),
            Meaning::Abort => return Ok(Outcome::Aborted),
            Meaning::Translate(t) if t.ats != Ats::Off => t,
            Meaning::Bypass | Meaning::Translate(_) => return Err(refused),
        };
        let attributes = Attributes::new(request, t.privcfg, t.instcfg, t.world);
        match self.grant(hw, run, request, t, attributes) {
            Err(fault) if fault.is_translation() => Ok(Outcome::NotGranted),
            Err(fault) => Err((self.ats_config(fault), attributes)),
            Ok(outcome) => Ok(outcome),
        }
    }

    /// Configuration errors of ATS requests are recorded only if CR2.REC_CFG_ATS says so.
    fn ats_config(&self, fault: Fault) -> Fault {
        if self.regs.records_ats_errors() { fault } else { Fault { report: Report::Silent, ..fault } }
    }

    fn grant(
        &mut self,
        hw: &Hw,
        run: &mut Run<'_>,
        request: &Request,
        t: &Translating,
        attributes: Attributes,
    ) -> Result<Outcome, Fault> {
        let cd = self.selected_cd(hw, run, request, t)?;
        let write = request.access == Access::Write;
        let at = index(attributes);
        // A page without read or write permission cannot be granted; stage 2 is not looked at then.
        let any = |permissions: &Permissions| permissions.read[at] || write && permissions.write[at];
        let both = self.both(hw, run, t, cd.as_ref(), request.address, write, &any)?;
        let inner = both.first.map_or(Permissions::ALL, |found| found.permissions);
        let granted = |of: fn(&Permissions) -> &[bool; 2]| of(&inner)[at] && of(&both.outer)[at];
        let (read, write) = (granted(|p| &p.read), write && granted(|p| &p.write));
        let execute = request.access == Access::Execute && granted(|p| &p.execute);
        if !read && !write {
            return Ok(Outcome::NotGranted);
        }
        let updates = [both.first.and_then(|f| f.slot), both.second.and_then(|s| s.slot)];
        run.updates.extend(updates.into_iter().flatten().filter_map(|slot| slot.update(write)));
        let (output, bits) = match (t.ats, &both.first) {
            // Split-stage: the device gets the IPA.
            (Ats::Split, Some(Found1 { target: Target::Intermediate(ipa), .. })) => (*ipa, both.bits),
            (Ats::Split, None) => (request.address, both.bits),
            _ => (both.address, both.bits),
        };
        let bits = bits.clamp(12, 51);
        Ok(Outcome::Granted(Grant {
            address: output >> bits << bits,
            size: 1 << bits,
            read,
            write,
            execute,
            privileged: attributes.supervisor && request.pasid.is_some(),
            global: false,
            untranslated_only: false,
        }))
    }

    fn translated(
        &mut self,
        hw: &Hw,
        run: &mut Run<'_>,
        request: &Request,
    ) -> Result<Outcome, (Fault, Attributes)> {
        let request = &Request { pasid: None, ..*request };
        let plain = Attributes::new(request, 0, 0, StreamWorld::El1);
        let forbidden = (Fault::config(code::F_TRANSL_FORBIDDEN), plain);
        if !self.regs.enabled() {
            return Err(forbidden);
        }
        let through = if request.address >> hw.config.oas != 0 {
            Outcome::Aborted
        } else {
            Outcome::Done(request.address)
        };
        if !self.regs.atschk() {
            return Ok(through);
        }
        let ste: Ste =
            self.ste(hw, run, request.requester).map_err(|fault| (self.ats_config(fault), plain))?;
        let t = match &ste.meaning {
            Meaning::Invalid => return Err((self.ats_config(Fault::config(code::C_BAD_STE)), plain)),
            Meaning::Abort => return Ok(Outcome::Aborted),
            Meaning::Bypass => return Err(forbidden),
            Meaning::Translate(t) => t,
        };
        match t.ats {
            Ats::Off => Err(forbidden),
            Ats::Full => Ok(through),
            Ats::Split => {
                let attributes = Attributes::new(request, t.privcfg, t.instcfg, t.world);
                let write = request.access == Access::Write;
                let check = |permissions: &Permissions| allowed(permissions, request.access, attributes);
                let both = self
                    .both(hw, run, t, None, request.address, write, &check)
                    .map_err(|fault| (fault, attributes))?;
                run.updates.extend(both.second.and_then(|s| s.slot).and_then(|slot| slot.update(write)));
                Ok(Outcome::Done(both.address))
            }
        }
    }
}

const fn low_bits(bits: u8) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}
