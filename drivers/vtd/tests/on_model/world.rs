//! A driver on a modelled unit, and what the oracle knows of both.

use crate::asking::Asking;
use crate::bench::{Bench, Registers};
use crate::memory::Host;
use crate::op::{Op, Step};
use crate::oracle::{AT_CONTEXT, AT_PAGE, AT_PASID, Allowed, Attached, Space, allowed};
use portcullis_hal::{
    Arc, EndpointId, FrameOrder, Frames, Gather, Mapped, MsiMessage, PhysAddr, SyncError, Unsynced,
};
use portcullis_iommu::{Domain, Permissions, Requests};
use portcullis_model::core::{AddressKind, Coverage, Prng, Request};
use portcullis_model::device::{Device as Function, Job};
use portcullis_model::vtd::{Config, points};
use portcullis_pgtable::{PageTable, VtdSecondStage, X86};
use portcullis_vtd::{Driver, Options, Setup};
use std::collections::BTreeSet;

/// Tables that are not the driver's.
pub(crate) enum Foreign {
    First(PageTable<Host, X86>),
    Second(PageTable<Host, VtdSecondStage>),
}

/// A domain that its maker still holds.
pub(crate) struct Slot {
    pub(crate) space: usize,
    pub(crate) domain: Arc<dyn Domain>,
    pub(crate) gather: Gather,
    pub(crate) owned: Vec<Mapped<Frames<Host>, dyn Domain>>,
    pub(crate) unsynced: Vec<Unsynced<Frames<Host>>>,
}

/// A requester.
pub(crate) struct Device {
    pub(crate) sid: u16,
    pub(crate) attached: Attached,
    pub(crate) permissions: Permissions,
    /// With its TLB, as far as it is permitted to use one.
    pub(crate) function: std::sync::Arc<Function>,
    /// The PASID tables that it may have: PASIDs divided by 64.
    pub(crate) leaves: BTreeSet<u32>,
    /// PASIDs that reach nothing without a record.
    pub(crate) cut: BTreeSet<u32>,
    /// Its page requests.
    pub(crate) asking: Asking,
}

/// What an operation's requests may end with while it runs, and whether it says that it aborts nothing.
pub(crate) struct Before {
    requests: Vec<Request>,
    allowed: Vec<Allowed>,
}

/// Whether a change of attachments may show the device a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Break {
    None,
    Possible,
}

pub(crate) struct World {
    pub(crate) bench: std::sync::Arc<Bench>,
    pub(crate) config: Config,
    pub(crate) driver: Driver<Host, Registers>,
    pub(crate) spaces: Vec<Space>,
    pub(crate) foreign: Vec<Option<Foreign>>,
    pub(crate) slots: Vec<Option<Slot>>,
    pub(crate) devices: Vec<Device>,
    pub(crate) coverage: std::sync::Arc<Coverage>,
    /// Where the next mapping's memory is.
    pub(crate) next_phys: u64,
    /// Addresses that operations were about, the latest last.
    pub(crate) points: Vec<u64>,
    /// Faults that the unit met and the driver has not reported: requester, address, reason.
    pub(crate) faults: Vec<(u16, u64, u8)>,
    pub(crate) collapsing: bool,
    pub(crate) short: bool,
    /// Errors were injected, so the unit may fail.
    pub(crate) injected: bool,
    /// The unit did not answer once: it takes only blocking any more.
    pub(crate) faulted: bool,
    /// Something is quarantined, so memory is missing in the end.
    pub(crate) quarantined: bool,
}

pub(crate) type Outcomes = Result<(), String>;

/// Fails a run with a reason.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}

/// Options with a short patience, in the machine's time, and the smallest queues.
pub(crate) fn options(config: &Config) -> Options {
    let width = config.host_width as u8;
    let (queue, page_requests) = (FrameOrder::SINGLE, FrameOrder::SINGLE);
    Options { timeout_ns: 400_000, queue, page_requests, ..Options::new(width) }
}

/// PASIDs that are tried: several of one table, and of others.
pub(crate) const PASIDS: [u32; 9] = [1, 2, 3, 31, 63, 64, 0x3ff, 0x2001, 0xf_ffff];

/// What a device does to make a request.
pub(crate) fn job(request: &Request) -> Job {
    let Request { pasid, address, access, privilege, .. } = *request;
    Job { pasid, address, access, privilege }
}

const SIDS: [u16; 6] = [0x0010, 0x0011, 0x0090, 0x0118, 0x01ff, 0xff00];

impl World {
    /// A machine with some devices, whose driver has just taken the unit over.
    pub(crate) fn new(
        config: Config,
        seed: u64,
        devices: usize,
        coverage: std::sync::Arc<Coverage>,
    ) -> Result<Self, String> {
        let bench = Bench::new(config, seed);
        let registers = Registers(bench.clone());
        let setup = Setup::new(bench.host.clone(), registers, options(&config)).map_err(|e| e.to_string())?;
        let driver = setup.enable().map_err(|e| e.to_string())?;
        let message = MsiMessage { address: PhysAddr::new(0xfee0_1000), data: 0x31 };
        driver.enable_interrupts(message).map_err(|e| e.to_string())?;
        let sid = |n: usize| SIDS.get(n).copied().unwrap_or(0x0200 + n as u16);
        let device = |n: usize| {
            let (link, schedule) = (bench.unit.clone(), bench.schedule.clone());
            let function = std::sync::Arc::new(Function::new(u32::from(sid(n)), link, schedule, true));
            bench.add_device(function.clone());
            Device {
                sid: sid(n),
                attached: Attached::NOTHING,
                permissions: Permissions::NONE,
                function,
                leaves: BTreeSet::from([0]),
                cut: BTreeSet::new(),
                asking: Asking::default(),
            }
        };
        let devices: Vec<_> = (0..devices).map(device).collect();
        Ok(Self {
            bench,
            config,
            driver,
            spaces: Vec::new(),
            foreign: Vec::new(),
            slots: (0..devices.len()).map(|_| None).collect(),
            devices,
            coverage,
            next_phys: 64 << 30,
            points: vec![0, 0x1f_f000, 0x20_0000, 0x3fff_f000, 0x4000_0000, 0x8000_0000],
            faults: Vec::new(),
            collapsing: false,
            short: false,
            injected: false,
            faulted: false,
            quarantined: false,
        })
    }

    pub(crate) fn count(&self, class: &'static str, name: &'static str) {
        self.coverage.count(class, name);
    }

    pub(crate) fn index(&self, slot: u8) -> usize {
        usize::from(slot) % self.slots.len()
    }

    /// A slot with a domain in it, if there is one.
    fn occupied(&self, slot: u8) -> u8 {
        let all: Vec<usize> = (0..self.slots.len()).filter(|&at| self.slots[at].is_some()).collect();
        all.get(usize::from(slot) % all.len().max(1)).map_or(slot, |&at| at as u8)
    }

    pub(crate) fn device(&self, device: u8) -> usize {
        usize::from(device) % self.devices.len()
    }

    pub(crate) fn endpoints(&self, devices: &[usize]) -> Vec<EndpointId> {
        devices.iter().map(|&device| EndpointId::new(u32::from(self.devices[device].sid))).collect()
    }

    /// Remembers an address as worth a look.
    pub(crate) fn touch(&mut self, address: u64) {
        // What is in the window of interrupts is no DMA.
        if (0xfee0_0000..0xfef0_0000).contains(&address) || self.points.contains(&address) {
            return;
        }
        if self.points.len() == 24 {
            self.points.remove(6);
        }
        self.points.push(address);
    }

    pub(crate) fn request(&self, device: usize, address: u64, write: bool) -> Request {
        let sid = u32::from(self.devices[device].sid);
        if write { Request::write(sid, address) } else { Request::read(sid, address) }
    }

    /// A request with a PASID, or without one (0).
    pub(crate) fn request_of(&self, (device, pasid): (usize, u32), address: u64, write: bool) -> Request {
        let request = self.request(device, address, write);
        if pasid == 0 { request } else { request.with_pasid(pasid) }
    }

    fn requester(&self, request: &Request) -> Option<&Device> {
        self.devices.iter().find(|device| u32::from(device.sid) == request.requester)
    }

    pub(crate) fn allowed(&self, request: &Request) -> Allowed {
        let of = |device: &Device| {
            let Device { attached, cut, permissions, .. } = device;
            allowed(&self.spaces, attached, cut, permissions, request)
        };
        self.requester(request).map_or(Allowed::faults(AT_CONTEXT), of)
    }

    /// A PASID that a device has attached, or none, or one that it has not.
    pub(crate) fn some_pasid(&self, device: usize, pick: u64) -> u32 {
        let attached: Vec<u32> = match &self.devices[device].attached {
            Attached::To(domains) => domains.keys().copied().collect(),
            Attached::Unknown(_) => Vec::new(),
        };
        match pick % 8 {
            0 => PASIDS[(pick / 8) as usize % PASIDS.len()],
            1 | 2 => 0,
            _ => attached.get((pick / 8) as usize % attached.len().max(1)).copied().unwrap_or(0),
        }
    }

    /// Begins an operation that concerns these requests.
    pub(crate) fn begin(&self, nonce: u64, mut requests: Vec<Request>) -> Before {
        let mut prng = Prng::new(nonce);
        // One request that it does not concern.
        let device = prng.below(self.devices.len() as u64) as usize;
        let point = self.points[prng.below(self.points.len() as u64) as usize];
        requests.truncate(4);
        let pasid = self.some_pasid(device, prng.next_u64());
        requests.push(self.request_of((device, pasid), point, prng.chance(1, 2)));
        self.bench.begin(nonce, &requests);
        let allowed = requests.iter().map(|request| self.allowed(request)).collect();
        Before { requests, allowed }
    }

    /// Ends an operation: all that could be seen meanwhile was allowed before or is allowed now.
    pub(crate) fn end(&self, before: Before, change: Break) -> Outcomes {
        let probes = self.bench.end();
        for ((probe, request), was) in probes.iter().zip(&before.requests).zip(before.allowed) {
            let mut allowed = was.or(self.allowed(request));
            if change == Break::Possible {
                allowed.faults |= AT_PASID | AT_CONTEXT | AT_PAGE;
            }
            for outcome in &probe.seen {
                ensure!(
                    allowed.admits(outcome),
                    "meanwhile {:x?} could end with {outcome:x?}, allowed are {allowed:x?}",
                    probe.request
                );
            }
        }
        self.check_rules()?;
        for request in &before.requests {
            self.check(request)?;
        }
        Ok(())
    }

    /// No rule was broken.
    fn check_rules(&self) -> Outcomes {
        let violations = self.bench.unit.take_violations();
        ensure!(violations.is_empty(), "the driver broke rules: {violations:x?}");
        let troubles = self.bench.host.take_troubles();
        ensure!(troubles.is_empty(), "{troubles:?}");
        Ok(())
    }

    /// All that a request could end with now is right, and what the device has cached for it.
    pub(crate) fn check(&self, request: &Request) -> Outcomes {
        let allowed = self.allowed(request);
        for outcome in self.bench.unit.reachable(*request) {
            ensure!(
                allowed.admits(&outcome),
                "{request:x?} can end with {outcome:x?}, allowed are {allowed:x?}"
            );
        }
        let cached = self.requester(request).map(|device| device.function.cached(job(request)));
        for address in cached.into_iter().flatten() {
            ensure!(
                allowed.outputs.contains(&address),
                "{request:x?} leads the device to {address:#x}, allowed are {allowed:x?}"
            );
        }
        Ok(())
    }

    /// A look at some of the devices and addresses, or at all.
    pub(crate) fn survey(&self, nonce: u64, some: Option<u64>) -> Outcomes {
        let mut prng = Prng::new(nonce ^ 0x5eed);
        let (devices, points) = (self.devices.len() as u64, self.points.len() as u64);
        for n in 0..some.unwrap_or(devices * points) {
            let pick = if some.is_some() { prng.below(devices * points) } else { n };
            let (device, point) = ((pick / points) as usize, (pick % points) as usize);
            let pasid = self.some_pasid(device, prng.next_u64());
            let request = self.request_of((device, pasid), self.points[point], prng.chance(1, 2));
            let asks = self.devices[device].permissions.requests.contains(Requests::TRANSLATION);
            let request = match prng.below(40) {
                0 => request.with_pasid(prng.below(70) as u32),
                1 if !asks => request.with_kind(AddressKind::Translated),
                _ => request,
            };
            self.check(&request)?;
        }
        self.check_rules()
    }

    /// What an error of the unit says: it is to blame only after something was injected.
    pub(crate) fn failed(&mut self, error: &SyncError) -> Outcomes {
        ensure!(self.injected, "the unit failed of itself: {error}");
        self.quarantined = true;
        self.faulted |= matches!(error, SyncError::Timeout(_));
        self.count("unit error", if matches!(error, SyncError::Timeout(_)) { "time-out" } else { "refused" });
        Ok(())
    }

    /// Carries an operation out and checks everything about it.
    pub(crate) fn step(&mut self, step: Step) -> Outcomes {
        let (nonce, op) = step;
        let op = op.on(|slot| self.occupied(slot));
        self.count("operation", op.name());
        match op {
            Op::New { slot, kind } => self.new_domain(slot, kind),
            Op::Drop { slot } => self.drop_domain(nonce, slot),
            Op::Map { slot, place, pieces, step, access, aligned } => {
                self.map(nonce, slot, place, (pieces, step, access, aligned))
            }
            Op::Unmap { slot, pick, shape, place, sync } => {
                self.unmap(nonce, slot, (pick, shape, place), sync)
            }
            Op::Resize { slot, pick, shape, place, how, sync } => {
                self.resize(nonce, slot, (pick, shape, place), (how, sync))
            }
            Op::Harvest { slot, how, sync } => self.harvest(nonce, slot, how, sync),
            Op::Lend { slot, offset, order } => self.lend(nonce, slot, offset, order),
            Op::Reclaim { slot, pick, sync } => self.reclaim(nonce, slot, pick, sync),
            Op::Sync { slot } => self.sync(nonce, slot),
            Op::Attach { device, count, slot } => self.attach(nonce, device, count, slot),
            Op::Detach { device, count } => self.detach(nonce, device, count),
            Op::AttachPasid { device, count, slot, pasid } => {
                self.attach_pasid(nonce, device, count, slot, pasid)
            }
            Op::DetachPasid { device, count, pasid } => self.detach_pasid(nonce, device, count, pasid),
            Op::Permit { device, count, bits, requests } => self.permit(nonce, device, count, bits, requests),
            Op::Dma { device, point, kind, mode } => self.dma(device, point, kind, mode),
            Op::Storm { device, count } => self.storm(device, count),
            Op::Ask { device, shape } => self.ask(nonce, device, shape),
            Op::Answer { pick, count, code } => self.answer(nonce, pick, count, code),
            Op::Drain { device, count } => self.drain(nonce, &self.several(device, count), |_| true),
            Op::Interrupt => self.interrupt(),
            _ => self.inject(op),
        }?;
        let armed = matches!(
            op,
            Op::Short { .. } | Op::Mood { .. } | Op::Refuse { .. } | Op::Deaf | Op::Hang | Op::Lose
        );
        if !armed {
            self.bench.schedule.odds(points::DEVICE_TIME_OUT, 0, 1);
            self.bench.host.hal().fail_never();
            self.short = false;
            self.bench.unit.unhang();
        }
        self.hear_answers()?;
        let all = nonce.is_multiple_of(128);
        self.survey(nonce, if all { None } else { Some(8) })
    }
}
