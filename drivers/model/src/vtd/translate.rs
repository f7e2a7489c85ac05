//! From a request to its outcome (specification 3.4 to 3.9), one run for one set of choices.

use super::caches::{TlbEntry, TlbKey, base};
use super::chooser::Choices;
use super::config::Feature;
use super::entry::{Context, Flaw, PasidEntry, Pgtt, directory, root_half, words};
use super::fetches::{Fetches, Look};
use super::reason;
use super::walk::{Intent, Leaf, Purpose, Walker};
use crate::core::{Access, AddressKind, Grant, Outcome, Privilege, Request};

/// The root-table address in force: what RTADDR held when the pointer was last set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) table: u64,
    /// TTM: 0 legacy, 1 scalable, 3 abort.
    pub(super) mode: u8,
}

/// Requests to this range without a PASID are interrupts.
const INTERRUPTS: std::ops::Range<u64> = 0xfee0_0000..0xfef0_0000;

/// Why a request ends: refused, or with a fault that may be kept from the log.
type Stop = Flaw;

/// A request as the tables see it.
#[derive(Clone, Copy)]
struct Subject {
    context: Context,
    pasid: u32,
    privilege: Privilege,
}

const fn class_of_context(look: &Result<Context, Flaw>) -> &'static str {
    match look {
        Ok(_) => "present",
        Err(Flaw { reason: reason::CONTEXT_NOT_PRESENT | reason::ROOT_NOT_PRESENT, .. }) => "absent",
        Err(_) => "faulty",
    }
}

const fn class_of_pasid(look: &Result<PasidEntry, Flaw>) -> &'static str {
    match look {
        Ok(entry) => entry.pgtt.name(),
        Err(Flaw { reason: reason::PASID_NOT_PRESENT | reason::DIRECTORY_NOT_PRESENT, .. }) => "absent",
        Err(_) => "faulty",
    }
}

impl Walker<'_> {
    /// Runs one request against a scalable-mode root table.
    pub(super) fn run(&mut self, root: Root, request: &Request) -> Outcome {
        if self.eyes.can_lag() && self.choices.choose(2) == 1 {
            self.eyes.lagging = true;
            self.stale = Some("write buffer");
        }
        match self.subject(root, request) {
            Ok(Ok(subject)) => self.resolve(&subject, request).unwrap_or_else(Self::stop),
            Ok(Err(outcome)) => outcome,
            Err(stop) => Self::stop(stop),
        }
    }

    const fn stop(flaw: Stop) -> Outcome {
        if flaw.silent { Outcome::Silent(flaw.reason) } else { Outcome::Fault(flaw.reason) }
    }

    /// The context entry and the PASID that apply, or an outcome that needs no tables.
    fn subject(&mut self, root: Root, request: &Request) -> Result<Result<Subject, Outcome>, Stop> {
        let sid = request.requester as u16;
        let context = self.context(root, sid)?;
        let flaw = |reason| Stop { reason, silent: context.silent };
        if request.kind != AddressKind::Untranslated && !context.device_tlb {
            return Err(flaw(reason::NO_DEVICE_TLB));
        }
        if request.pasid.is_some() && !context.pasids {
            return Err(flaw(reason::NO_PASID));
        }
        if request.pasid == Some(context.rid_pasid) {
            return Err(flaw(reason::PASID_IS_RID_PASID));
        }
        if request.kind == AddressKind::Translated {
            return Ok(Err(Outcome::Done(request.address)));
        }
        let (pasid, privilege) = match request.pasid {
            Some(pasid) => (pasid, request.privilege),
            None if context.rid_privileged => (context.rid_pasid, Privilege::Supervisor),
            None => (context.rid_pasid, Privilege::User),
        };
        if u64::from(pasid) >= context.pasid_limit {
            return Err(flaw(reason::PASID_TOO_LARGE));
        }
        Ok(Ok(Subject { context, pasid, privilege }))
    }

    fn look_at_context(&mut self, root: Root, sid: u16) -> Look<2> {
        let view = self.eyes.structures();
        let (bus, function) = (u64::from(sid >> 8), u64::from(sid & 0xff));
        let Some(entry) = self.eyes.read128(view, root.table + bus * 16) else {
            return Look::Flaw(Flaw::loud(reason::ROOT_ACCESS));
        };
        let table = match root_half(self.eyes.env.config, words(entry)[usize::from(function >= 128)]) {
            Ok(table) => table,
            Err(flaw) => return Look::Flaw(flaw),
        };
        let address = table + (function & 127) * 32;
        match (self.eyes.read128(view, address), self.eyes.read128(view, address + 16)) {
            (Some(low), Some(high)) => Look::Entry { address, silent: false, quanta: [low, high] },
            _ => Look::Flaw(Flaw::loud(reason::CONTEXT_ACCESS)),
        }
    }

    /// The context entry of a requester: as in memory, or as hardware may hold it.
    pub(super) fn context(&mut self, root: Root, sid: u16) -> Result<Context, Flaw> {
        let config = self.eyes.env.config;
        let decode = |look: &Look<2>| match look {
            Look::Entry { quanta, .. } => Context::decode(config, *quanta),
            Look::Flaw(flaw) => Err(*flaw),
        };
        let now = self.look_at_context(root, sid);
        let fetches = self.caches.contexts.get(&sid).cloned().unwrap_or_default();
        let (fetches, used) = self.recall("context", fetches, now, decode, class_of_context);
        if self.keeps() {
            self.caches.contexts.insert(sid, fetches);
        }
        used
    }

    /// Whether what this run fetches may stay in the caches.
    const fn keeps(&self) -> bool {
        !matches!(self.purpose, Purpose::Explore) && !self.eyes.lagging
    }

    /// Takes an entry as memory says, or one that hardware may hold of it, among those that mean something else.
    fn recall<const Q: usize, E: Copy + PartialEq>(
        &mut self,
        class: &'static str,
        mut fetches: Fetches<Q>,
        now: Look<Q>,
        decode: impl Fn(&Look<Q>) -> Result<E, Flaw>,
        name: impl Fn(&Result<E, Flaw>) -> &'static str,
    ) -> (Fetches<Q>, Result<E, Flaw>) {
        let mut meanings = vec![decode(&now)];
        let before = fetches.observe(now);
        // Stores become visible in their order: who holds a younger entry does not find older ones behind it.
        let held =
            if self.eyes.lagging { Vec::new() } else { fetches.candidates(self.eyes.env.config, &now) };
        for look in held {
            let meaning = decode(&look);
            if !meanings.contains(&meaning) {
                meanings.push(meaning);
            }
        }
        if let Some(before) = before.filter(|_| self.keeps()) {
            self.eyes.env.coverage.transition(class, name(&decode(&before)), name(&meanings[0]));
        }
        let choice = self.choices.choose(meanings.len());
        if choice != 0 {
            self.stale = Some(class);
        }
        (fetches, meanings[choice])
    }

    fn look_at_pasid(&mut self, context: &Context, pasid: u32) -> Look<4> {
        let view = self.eyes.structures();
        let slot = context.directory + u64::from(pasid >> 6) * 8;
        let Some(entry) = self.eyes.read64(view, slot) else {
            return Look::Flaw(Flaw { reason: reason::DIRECTORY_ACCESS, silent: context.silent });
        };
        let (table, silent) = match directory(self.eyes.env.config, entry) {
            Ok(found) => found,
            Err(flaw) => return Look::Flaw(flaw),
        };
        let address = table + u64::from(pasid & 63) * 64;
        let mut quanta = [0; 4];
        for (quantum, at) in quanta.iter_mut().zip((address..).step_by(16)) {
            match self.eyes.read128(view, at) {
                Some(value) => *quantum = value,
                None => return Look::Flaw(Flaw { reason: reason::PASID_ACCESS, silent }),
            }
        }
        Look::Entry { address, silent, quanta }
    }

    /// The PASID table entry: as in memory, or as hardware may hold it.
    fn pasid_entry(&mut self, sid: u16, subject: &Subject) -> Result<PasidEntry, Flaw> {
        let config = self.eyes.env.config;
        let decode = |look: &Look<4>| match look {
            Look::Entry { quanta, silent, .. } => PasidEntry::decode(config, *quanta)
                .map(|entry| PasidEntry { silent: entry.silent || *silent, ..entry })
                .map_err(|flaw| Flaw { silent: flaw.silent || *silent, ..flaw }),
            Look::Flaw(flaw) => Err(*flaw),
        };
        let now = self.look_at_pasid(&subject.context, subject.pasid);
        let key = (sid, subject.pasid);
        let fetches = self.caches.pasids.get(&key).cloned().unwrap_or_default();
        let (fetches, used) = self.recall("pasid", fetches, now, decode, class_of_pasid);
        if self.keeps() {
            self.caches.pasids.insert(key, fetches);
        }
        used
    }

    fn resolve(&mut self, subject: &Subject, request: &Request) -> Result<Outcome, Stop> {
        let quiet = |flaw: Flaw| Stop { silent: flaw.silent || subject.context.silent, ..flaw };
        let entry = self.pasid_entry(request.requester as u16, subject).map_err(quiet)?;
        let flaw = |reason| Stop { reason, silent: entry.silent || subject.context.silent };
        let supervisor = subject.privilege == Privilege::Supervisor;
        if supervisor && !entry.supervisor {
            return Err(flaw(reason::NO_SUPERVISOR_REQUESTS));
        }
        if request.access == Access::Execute && !entry.execute {
            return Err(flaw(reason::NO_EXECUTE_REQUESTS));
        }
        if request.pasid.is_none() && INTERRUPTS.contains(&request.address) {
            return match (request.kind, request.access) {
                (AddressKind::TranslationRequest, _) => Ok(Outcome::Granted(Grant {
                    untranslated_only: true,
                    ..Self::grant(&Leaf::flat(request.address), request, &entry, supervisor)
                })),
                (_, Access::Write) => Ok(Outcome::Done(request.address)),
                _ => Err(flaw(reason::INTERRUPT_ADDRESS)),
            };
        }
        let found = match entry.pgtt {
            Pgtt::PassThrough => {
                let width = self.eyes.env.config.host_width;
                let fits = width >= 64 || request.address >> width == 0;
                if fits { Ok(Leaf::flat(request.address)) } else { Err(reason::ADDRESS_TOO_LARGE) }
            }
            _ => self.translation(&entry, subject, request),
        };
        let checked = found.and_then(|leaf| {
            leaf.allows(request.access, supervisor, &entry)?;
            let output = leaf.output | request.address & ((1 << leaf.shift) - 1);
            if INTERRUPTS.contains(&output) { Err(reason::INTERRUPT_ADDRESS) } else { Ok((leaf, output)) }
        });
        match (checked, request.kind) {
            (Ok((leaf, _)), AddressKind::TranslationRequest) => {
                Ok(Outcome::Granted(Self::grant(&leaf, request, &entry, supervisor)))
            }
            (Ok((_, output)), _) => Ok(Outcome::Done(output)),
            (Err(reason), AddressKind::TranslationRequest) if answers_empty(reason) => {
                Ok(Outcome::NotGranted)
            }
            (Err(reason), _) => Err(flaw(reason)),
        }
    }

    /// The translation of an address: walked, or as the IOTLB may hold it.
    fn translation(&mut self, entry: &PasidEntry, subject: &Subject, request: &Request) -> Result<Leaf, u8> {
        let config = self.eyes.env.config;
        let pasid = subject.pasid;
        let supervisor = subject.privilege == Privilege::Supervisor;
        let address = request.address;
        let intent =
            if request.access == Access::Write { Intent::Write(subject.privilege) } else { Intent::Look };
        let tag = if entry.pgtt == Pgtt::SecondStage { 0 } else { pasid };
        let key = |shift| TlbKey {
            domain: entry.domain,
            pgtt: entry.pgtt,
            pasid: tag,
            shift,
            page: base(address, shift),
        };
        // What memory says, to leave out what the IOTLB agrees with.
        let (choices, purpose) = (std::mem::take(self.choices), self.purpose);
        let stale = self.stale;
        self.purpose = Purpose::Explore;
        let now = self.translate(entry, pasid, address, intent);
        self.purpose = purpose;
        *self.choices = choices;
        self.stale = stale;
        let mut held = Vec::new();
        for shift in [12, 21, 30, 39, 48] {
            for cached in self.caches.tlb.get(&key(shift)) {
                if offers(entry, cached, shift, (request.access, supervisor), now) {
                    held.push((shift, *cached));
                }
            }
        }
        let choice = self.choices.choose(1 + held.len());
        if let Some(&(shift, cached)) = choice.checked_sub(1).and_then(|at| held.get(at)) {
            self.stale = Some("IOTLB");
            return match cached {
                TlbEntry::Page { output, rights, dirty } => {
                    Ok(Leaf { output, shift, rights, accessed: true, dirty })
                }
                TlbEntry::Fault(reason) => Err(reason),
            };
        }
        let found = self.translate(entry, pasid, address, intent);
        if self.purpose != Purpose::Explore && !self.again {
            match found {
                Ok(leaf) if leaf.accessed => {
                    let cached =
                        TlbEntry::Page { output: leaf.output, rights: leaf.rights, dirty: leaf.dirty };
                    self.caches.tlb.observe(&key(leaf.shift), cached);
                }
                Err(reason @ 0x78..=0x7b) if config.has(Feature::CachingMode) => {
                    self.caches.tlb.observe(&key(12), TlbEntry::Fault(reason));
                }
                _ => {}
            }
        }
        found
    }

    fn grant(leaf: &Leaf, request: &Request, entry: &PasidEntry, supervisor: bool) -> Grant {
        let may_write = leaf.allows(Access::Write, supervisor, entry).is_ok();
        Grant {
            address: leaf.output,
            size: 1 << leaf.shift,
            read: leaf.rights.read,
            // Without the dirty flag no write permission; a request for write access sets it.
            write: may_write && (leaf.dirty || request.access == Access::Write),
            execute: request.pasid.is_some() && entry.execute && leaf.rights.execute,
            privileged: supervisor,
            global: false,
            untranslated_only: false,
        }
    }
}

/// Whether a cached translation is an alternative to what memory says now.
fn offers(
    entry: &PasidEntry,
    cached: &TlbEntry,
    shift: u32,
    (access, supervisor): (Access, bool),
    now: Result<Leaf, u8>,
) -> bool {
    match *cached {
        TlbEntry::Fault(reason) => now != Err(reason),
        TlbEntry::Page { output, rights, dirty } => {
            let leaf = Leaf { output, shift, rights, accessed: true, dirty };
            // A write that needs the dirty flag set has to walk, and so has a first-stage access that the cached
            // rights do not allow.
            let walks = access == Access::Write && !dirty
                || entry.pgtt != Pgtt::SecondStage && leaf.allows(access, supervisor, entry).is_err();
            !walks && now.ok() != Some(leaf)
        }
    }
}

/// Whether a translation request that meets this condition is answered without permissions instead of a fault.
const fn answers_empty(reason: u8) -> bool {
    matches!(
        reason,
        reason::FIRST_STAGE_NOT_PRESENT
            | reason::NESTED_TOP_READ
            | reason::NESTED_TABLE_READ
            | reason::SECOND_STAGE_NOT_PRESENT
            | reason::NOT_CANONICAL
            | reason::SUPERVISOR_PAGE
            | reason::NO_EXECUTE
            | reason::ADDRESS_TOO_LARGE
            | reason::NESTED_OUTPUT_TOO_LARGE
            | reason::NO_WRITE
            | reason::NO_READ
    )
}

impl Leaf {
    /// An identity translation of the page around an address.
    const fn flat(address: u64) -> Self {
        Self {
            output: base(address, 12),
            shift: 12,
            rights: super::caches::Rights::ALL,
            accessed: true,
            dirty: true,
        }
    }

    /// Checks an access against the rights of all stages.
    fn allows(&self, access: Access, supervisor: bool, entry: &PasidEntry) -> Result<(), u8> {
        let rights = self.rights;
        if !supervisor && !rights.user {
            return Err(reason::SUPERVISOR_PAGE);
        }
        match access {
            Access::Write if !rights.second_write => Err(reason::NO_WRITE),
            Access::Write if !rights.write && (!supervisor || entry.write_protect) => Err(reason::NO_WRITE),
            Access::Write => Ok(()),
            _ if !rights.read => Err(reason::NO_READ),
            Access::Execute if !rights.execute => Err(reason::NO_EXECUTE),
            Access::Execute if supervisor && entry.smep && rights.user => Err(reason::NO_EXECUTE),
            _ => Ok(()),
        }
    }
}

/// All outcomes, each with the choices that lead to it; the fresh one first.
pub(super) fn explore<T: PartialEq>(mut run: impl FnMut(&mut Choices) -> T) -> Vec<(T, Choices)> {
    /// More runs than any test needs; a state that has more is explored in part.
    const LIMIT: usize = 20_000;
    let mut found: Vec<(T, Choices)> = Vec::new();
    let mut choices = Choices::default();
    for _ in 0..LIMIT {
        let outcome = run(&mut choices);
        if !found.iter().any(|(known, _)| *known == outcome) {
            let mut script = choices.clone();
            script.rewind();
            found.push((outcome, script));
        }
        if !choices.next() {
            break;
        }
    }
    found
}
