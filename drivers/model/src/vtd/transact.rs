//! Transactions: all that may become of one, and the one that is performed.

use super::State;
use super::chooser::Choices;
use super::env::{Env, Eyes};
use super::points;
use super::reason;
use super::translate::{Root, explore};
use super::walk::{Purpose, Walker};
use crate::core::{Mode, Outcome, Request};

impl State {
    /// One run of a request.
    pub(super) fn attempt(
        &mut self,
        env: Env<'_>,
        request: &Request,
        choices: &mut Choices,
        purpose: Purpose,
    ) -> (Outcome, bool, Option<&'static str>) {
        if !self.translating {
            let blocked = self.protected(request.address);
            return (if blocked { Outcome::Aborted } else { Outcome::Done(request.address) }, false, None);
        }
        let root = match self.root {
            Some(root) if root.mode == 1 => root,
            Some(Root { mode: 0, .. }) if request.pasid.is_some() => {
                return (Outcome::Fault(reason::LEGACY_WITH_PASID), false, None);
            }
            Some(Root { mode: 0, .. }) => {
                env.violations.report("vtd legacy mode is not modelled", format_args!("{request:?}"));
                return (Outcome::Aborted, false, None);
            }
            Some(Root { mode: 2, .. }) | None => {
                return (Outcome::Fault(reason::ROOT_ADDRESS), false, None);
            }
            Some(_) => return (Outcome::Aborted, false, None),
        };
        let mut walker = Walker {
            eyes: Eyes { env, buffer: &mut self.buffer, lagging: false },
            caches: &mut self.caches,
            choices,
            purpose,
            again: false,
            stale: None,
        };
        let outcome = walker.run(root, request);
        (outcome, walker.again, walker.stale)
    }

    /// All outcomes of a request with the choices that lead to them.
    pub(super) fn outcomes(&mut self, env: Env<'_>, request: &Request) -> Vec<(Outcome, Choices)> {
        explore(|choices| self.attempt(env, request, choices, Purpose::Explore).0)
    }

    pub(super) fn fetch_ahead(&mut self, env: Env<'_>) {
        /// Ways that are tried per request; beyond it nothing new is found in practice.
        const WAYS: usize = 512;
        if !self.translating {
            return;
        }
        for at in 0..self.watched.len() {
            let request = self.watched[at];
            let mut choices = Choices::default();
            for _ in 0..WAYS {
                self.attempt(env, &request, &mut choices, Purpose::Prefetch);
                if !choices.next() {
                    break;
                }
            }
        }
    }

    /// Performs a request.
    pub(super) fn dma(&mut self, env: Env<'_>, request: &Request, mode: Mode) -> Outcome {
        // A cached translation that leads to the same place is a way of its own: it spares the walk that sets flags.
        let mut first = None;
        let found = explore(|choices| {
            let (outcome, _, stale) = self.attempt(env, request, choices, Purpose::Explore);
            let same = *first.get_or_insert(outcome) == outcome;
            (outcome, same && stale == Some("IOTLB"))
        });
        let script = match mode {
            Mode::Fresh => Choices::default(),
            Mode::Hostile => {
                // The one furthest from what memory says, and one that succeeds rather than one that does not.
                let succeeds = |outcome: &Outcome| matches!(outcome, Outcome::Done(_) | Outcome::Granted(_));
                let stale = || found.iter().skip(1).rev().filter(|((outcome, _), _)| succeeds(outcome));
                let elsewhere = stale().find(|((outcome, _), _)| Some(*outcome) != first);
                let way = elsewhere.or_else(|| stale().next()).or_else(|| found.first());
                way.map(|(_, script)| script.clone()).unwrap_or_default()
            }
            Mode::Any => {
                let at = env.schedule.pick(points::DMA, found.len() as u64) as usize;
                found.get(at).map(|(_, script)| script.clone()).unwrap_or_default()
            }
        };
        let mut outcome = Outcome::Aborted;
        // A flag update can lose against software a few times; a loop without end would be a model's bug.
        for _ in 0..8 {
            let mut choices = script.clone();
            let (result, again, stale) = self.attempt(env, request, &mut choices, Purpose::Perform);
            outcome = result;
            if !again {
                env.coverage.count("dma", stale.unwrap_or("fresh"));
                break;
            }
        }
        match outcome {
            Outcome::Fault(reason) => self.faults.record(env, request, reason),
            Outcome::Silent(_) => env.coverage.count("fault log", "disabled by FPD"),
            _ => {}
        }
        outcome
    }
}
