//! Changing what hardware sees: entries, context descriptors, and what devices cached.

use crate::attach::Attachments;
use crate::command::{Command, Scope};
use crate::entry::{used_by_cd, used_by_ste};
use crate::memory::Slot;
use crate::port::{Health, Port};
use crate::record::{accepts, stalls, takes_requests};
use crate::spec::registers;
use crate::update::{Entry, STEPS, plan, prefixed};
use portcullis_hal::wait::Timeout;
use portcullis_hal::{Hal, Mmio, StreamId};
use portcullis_iommu::{AttachError, Transition};

/// Who did not confirm a change. Why is known to the unit, so that results with this in them stay small.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unconfirmed {
    /// The unit: what it uses is not known any more.
    Unit,
    /// A device, which did not say that it forgot translations. The unit works: it answered in time.
    Device,
}

impl Unconfirmed {
    /// The error after which the endpoints are blocked, by the register that showed it.
    pub(crate) fn error<H: Hal, M: Mmio>(self, port: &Port<H, M>) -> AttachError {
        const CMDQ_CONS_ERR: u64 = 0x7f << 24;
        let late = match self {
            Self::Unit => port.late(),
            Self::Device => None,
        };
        let error = || {
            let last = u32::from(port.commands.last_error());
            Timeout::new(registers::CMDQ_CONS.name, CMDQ_CONS_ERR, 0, last.into())
        };
        late.unwrap_or_else(error).into()
    }
}

/// The worse of two.
pub(crate) fn worse(one: Transition, other: Transition) -> Transition {
    match (one, other) {
        (Transition::Hitless, Transition::Hitless) => Transition::Hitless,
        _ => Transition::Disruptive,
    }
}

impl<H: Hal, M: Mmio> Port<H, M> {
    /// Brings an entry to `to`, by a plan that never shows hardware anything else. `forget` follows each step.
    fn bring(
        &self,
        slot: &Slot<'_, H>,
        to: &Entry,
        used: fn(&Entry) -> Entry,
        forget: Command,
    ) -> Result<Transition, Unconfirmed> {
        if self.health() == Health::Faulted {
            // The unit may hold any word that this entry had since its last sync, and must not find others beside it.
            // The caller clears the valid bit.
            return Err(Unconfirmed::Unit);
        }
        let now = slot.read();
        let plan = plan(&now, to, used);
        for step in 0..STEPS {
            let words = plan.changes(step);
            if words == 0 {
                continue;
            }
            slot.write_words(words, |word| plan.word(step, word));
            if plan.needs_sync(step) {
                self.forget(forget).map_err(|_| Unconfirmed::Unit)?;
            }
        }
        Ok(plan.transition)
    }

    /// Brings a context descriptor of a stream to `to`. With [`Scope::Walk`] the unit may have cached that there is
    /// none.
    pub(crate) fn bring_context(
        &self,
        stream: StreamId,
        substream: u32,
        slot: &Slot<'_, H>,
        to: &Entry,
        scope: Scope,
    ) -> Result<Transition, Unconfirmed> {
        self.bring(slot, to, used_by_cd, Command::cfgi_cd(stream, substream, scope))
    }

    /// Has a device forget translations.
    pub(crate) fn silence(&self, commands: &[Command]) -> Result<(), Unconfirmed> {
        self.execute(commands).map_err(|_| match self.health() {
            Health::Running => Unconfirmed::Device,
            Health::Off | Health::Faulted => Unconfirmed::Unit,
        })
    }
}

impl<H: Hal, M: Mmio + 'static> Attachments<H, M> {
    /// Brings the entry of a stream to `to`.
    ///
    /// A device whose translation requests are taken from now on starts without any cached translation.
    pub(crate) fn update(
        &self,
        port: &Port<H, M>,
        stream: StreamId,
        to: &Entry,
    ) -> Result<Transition, Unconfirmed> {
        // A stream without a second-level table is invalid already.
        let Some(slot) = self.streams.entry(stream) else {
            return Ok(Transition::Hitless);
        };
        if takes_requests(to) && !takes_requests(&slot.read()) {
            port.silence(&Command::atc_inv_all(stream))?;
        }
        let stops = accepts(&slot.read()) && !accepts(to);
        // With the entry the unit forgets the context descriptors that it reached through it (4.3.1).
        let how = port.bring(&slot, to, used_by_ste, Command::cfgi_ste(stream))?;
        if stops && (stalls(&self.permissions(stream)) || port.stalls.has(port.hal(), stream)) {
            port.end_stalls(stream).map_err(|_| Unconfirmed::Unit)?;
        }
        Ok(how)
    }

    /// Whether the entry of a stream takes translation requests now.
    pub(crate) fn takes_requests(&self, stream: StreamId) -> bool {
        self.streams.entry(stream).is_some_and(|slot| takes_requests(&slot.read()))
    }

    /// Clears the valid bit of a stream's entry, for hardware that may look once more.
    pub(crate) fn invalidate(&self, stream: StreamId) {
        if let Some(slot) = self.streams.entry(stream) {
            let [_, rest @ ..] = slot.read();
            slot.write(&prefixed(0, rest));
        }
    }
}
