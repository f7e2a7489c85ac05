//! The model behind the driver's registers, and the moments at which it does something of its own accord.

use crate::memory::{Host, Moment};
use crate::world::job;
use portcullis_hal::Mmio;
use portcullis_model::core::{AddressKind, Mode, Outcome, Prng, Request, Schedule};
use portcullis_model::device::{Device, Job};
use portcullis_model::vtd::{Config, Feature, Vtd};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// A request that is watched during an operation, and all that it could have ended with meanwhile.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    pub(crate) request: Request,
    pub(crate) seen: BTreeSet<Outcome>,
}

/// What a device asks while the driver is at work.
struct Later {
    index: usize,
    device: Arc<Device>,
    jobs: Vec<Job>,
}

/// Who asked, in which group, for what.
pub(crate) type Made = (usize, u16, Vec<Job>);

struct State {
    prng: Prng,
    probes: Vec<Probe>,
    later: Vec<Later>,
    made: Vec<Made>,
}

/// A unit and the memory that it shares with the driver.
pub(crate) struct Bench {
    pub(crate) host: Host,
    pub(crate) unit: Arc<Vtd>,
    pub(crate) schedule: Arc<Schedule>,
    state: Mutex<State>,
    /// Devices with TLBs, which answer while the driver waits.
    devices: Mutex<Vec<Arc<Device>>>,
    /// The model is at work, or is to be left alone.
    busy: AtomicBool,
}

impl Bench {
    pub(crate) fn new(config: Config, seed: u64) -> Arc<Self> {
        let snoops = config.has(Feature::Coherent) && config.has(Feature::PageWalkCoherent);
        let host = Host::new(!snoops);
        let schedule = Arc::new(Schedule::new(seed));
        let unit = Arc::new(Vtd::new(config, Arc::new(host.clone()), schedule.clone()));
        let state = State { prng: Prng::new(!seed), probes: Vec::new(), later: Vec::new(), made: Vec::new() };
        let bench = Arc::new(Self {
            host,
            unit,
            schedule,
            state: Mutex::new(state),
            devices: Mutex::default(),
            busy: AtomicBool::new(false),
        });
        let weak = Arc::downgrade(&bench);
        bench.host.set_hook(Box::new(move |moment| {
            if let Some(bench) = weak.upgrade() {
                bench.meanwhile(moment);
            }
        }));
        bench
    }

    /// A device that takes messages of the unit from now on.
    pub(crate) fn add_device(&self, device: Arc<Device>) {
        self.devices.lock().unwrap().push(device);
    }

    /// Watches requests from now on: hardware may fetch ahead for them, and their outcomes are noted.
    pub(crate) fn begin(&self, seed: u64, requests: &[Request]) {
        self.unit.unwatch_all();
        requests.iter().for_each(|&request| self.unit.watch(request));
        let probes = requests.iter().map(|&request| Probe { request, seen: BTreeSet::new() });
        let mut state = self.state.lock().unwrap();
        (state.prng, state.probes) = (Prng::new(seed), probes.collect());
    }

    /// What the requests could have ended with since [`begin`](Self::begin).
    pub(crate) fn end(&self) -> Vec<Probe> {
        std::mem::take(&mut self.state.lock().unwrap().probes)
    }

    /// Has a device ask for pages at some moment of what the driver does next.
    pub(crate) fn ask_later(&self, index: usize, device: Arc<Device>, jobs: Vec<Job>) {
        self.state.lock().unwrap().later.push(Later { index, device, jobs });
    }

    /// What devices asked meanwhile.
    pub(crate) fn take_made(&self) -> Vec<Made> {
        std::mem::take(&mut self.state.lock().unwrap().made)
    }

    /// The model has its turn, now and then.
    fn meanwhile(&self, moment: Moment) {
        if self.busy.swap(true, Ordering::SeqCst) {
            return;
        }
        let mut state = self.state.lock().unwrap();
        match moment {
            Moment::Wait => {
                self.unit.step();
                for device in self.devices.lock().unwrap().iter() {
                    device.step();
                }
            }
            Moment::Look | Moment::Clean if state.prng.chance(1, 4) => self.unit.observe(),
            Moment::Look | Moment::Clean => {}
        }
        if state.prng.chance(1, 5) {
            self.ask_ahead(&state);
        }
        if !state.later.is_empty() && state.prng.chance(1, 6) {
            let Later { index, device, jobs } = state.later.swap_remove(0);
            if let Some(group) = device.request_pages(&jobs) {
                state.made.push((index, group, jobs));
            }
        }
        let often = if moment == Moment::Look { 12 } else { 4 };
        if state.prng.chance(1, often) {
            self.note(&mut state);
        }
        drop(state);
        self.busy.store(false, Ordering::SeqCst);
    }

    /// Devices ask for translations of what is watched, as those do that fetch ahead.
    fn ask_ahead(&self, state: &State) {
        for device in self.devices.lock().unwrap().iter() {
            for request in state.probes.iter().map(|probe| probe.request) {
                if request.requester != device.requester() || !device.has_ats() {
                    continue;
                }
                // Faults would be recorded, and here is nobody who would expect them.
                let asked = request.with_kind(AddressKind::TranslationRequest);
                let faulty = |outcome: &Outcome| matches!(outcome, Outcome::Fault(_) | Outcome::Aborted);
                if !self.unit.reachable(asked).iter().any(faulty) {
                    device.prefetch(job(&request), Mode::Hostile);
                }
            }
        }
    }

    fn note(&self, state: &mut State) {
        for probe in &mut state.probes {
            probe.seen.extend(self.unit.reachable(probe.request));
        }
    }

    /// Before and after a register access.
    fn access<R>(&self, access: impl FnOnce(&Vtd) -> R) -> R {
        let mut state = self.state.lock().unwrap();
        if state.prng.chance(1, 2) {
            self.unit.observe();
        }
        if state.prng.chance(1, 3) {
            self.note(&mut state);
        }
        let result = access(&self.unit);
        if state.prng.chance(1, 6) {
            self.note(&mut state);
        }
        result
    }
}

/// The driver's way to the registers.
#[derive(Clone)]
pub(crate) struct Registers(pub(crate) Arc<Bench>);

// SAFETY: the model reads and writes only the memory that the driver gave it, as a unit does.
#[expect(unsafe_code, reason = "the contract of registers")]
unsafe impl Mmio for Registers {
    fn read32(&self, offset: usize) -> u32 {
        self.0.access(|unit| unit.read32(offset as u64))
    }

    fn write32(&self, offset: usize, value: u32) {
        self.0.access(|unit| unit.write32(offset as u64, value));
    }

    fn read64(&self, offset: usize) -> u64 {
        self.0.access(|unit| unit.read64(offset as u64))
    }

    fn write64(&self, offset: usize, value: u64) {
        self.0.access(|unit| unit.write64(offset as u64, value));
    }
}
