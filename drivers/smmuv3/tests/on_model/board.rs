//! What the driver runs on: frames, time, interrupts and registers. Each of its services is a moment at which the
//! unit may work, an interrupt may come, and what devices can reach is looked at.

#![expect(unsafe_code, reason = "implements the contract of a kernel on top of the host's memory")]

use crate::ram::{Ram, lock};
use portcullis_hal::host::HostHal;
use portcullis_hal::{FrameOrder, Hal, InterruptMask, Mmio, OutOfMemory, PhysAddr};
use portcullis_model::core::{Mode, Outcome, Request};
use portcullis_model::device::{Device, Job};
use portcullis_model::smmuv3::Smmu;
use std::collections::BTreeSet;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What may become of a DMA.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Allowed {
    /// Where it may arrive.
    pub(crate) outputs: Vec<u64>,
    /// The recorded faults that it may end with, one bit each.
    pub(crate) codes: u32,
    /// It may be aborted without a record.
    pub(crate) aborted: bool,
    /// It may fault without a record.
    pub(crate) silent: bool,
    /// It may be stalled instead of ending with a fault.
    pub(crate) stalls: bool,
}

impl Allowed {
    pub(crate) fn output(address: u64) -> Self {
        Self { outputs: vec![address], ..Self::default() }
    }

    pub(crate) fn fault(codes: &[u8]) -> Self {
        Self { codes: codes.iter().map(|code| 1 << code).sum(), ..Self::default() }
    }

    pub(crate) fn aborted() -> Self {
        Self { aborted: true, ..Self::default() }
    }

    /// All that refuses.
    pub(crate) fn refused() -> Self {
        Self { codes: u32::MAX, aborted: true, silent: true, ..Self::default() }
    }

    pub(crate) fn or(mut self, other: &Self) -> Self {
        self.outputs.extend(&other.outputs);
        self.codes |= other.codes;
        self.aborted |= other.aborted;
        self.silent |= other.silent;
        self.stalls |= other.stalls;
        self
    }

    /// Whether the DMA has to arrive.
    pub(crate) fn arrives(&self) -> bool {
        self.codes == 0 && !self.aborted && !self.silent
    }

    pub(crate) fn admits(&self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Done(address) => self.outputs.contains(&address),
            Outcome::Fault(code) => self.codes >> code & 1 == 1,
            Outcome::Aborted => self.aborted,
            Outcome::Silent(_) => self.silent,
            Outcome::Stalled(code) => self.stalls && self.codes >> code & 1 == 1,
            _ => false,
        }
    }
}

/// A DMA that is tried at any moment of an operation.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    pub(crate) unit: usize,
    pub(crate) request: Request,
    /// What was allowed before the operation, or is afterwards.
    pub(crate) allowed: Allowed,
}

/// What was refused in the middle of an operation, though it arrives before and after it.
#[derive(Debug, Default)]
pub(crate) struct Interrupted {
    /// The first request without a PASID.
    pub(crate) plain: Option<String>,
    /// The first request with one.
    pub(crate) with_pasid: Option<String>,
}

/// A fault that a DMA caused: stream, address, code.
pub(crate) type Caused = (u32, u64, u8);

/// An interrupt handler.
pub(crate) type Handler = Arc<dyn Fn() + Send + Sync>;

/// The machine.
pub(crate) struct Board {
    pub(crate) host: HostHal,
    pub(crate) ram: Arc<Ram>,
    pub(crate) units: Mutex<Vec<Arc<Smmu>>>,
    pub(crate) handlers: Mutex<Vec<Option<Handler>>>,
    /// Devices that cache translations.
    pub(crate) devices: Mutex<Vec<Arc<Device>>>,
    /// What they ask for at any time.
    pub(crate) wishes: Mutex<Vec<Job>>,
    probes: Mutex<Vec<Probe>>,
    wrong: Mutex<Vec<String>>,
    /// The first refusals of DMA that arrives before and after the operation.
    interrupted: Mutex<Interrupted>,
    /// Faults that probes caused, by unit.
    pub(crate) caused: Mutex<Vec<(usize, Caused)>>,
    /// Probes that were stalled, by unit: stream and address.
    pub(crate) stalled: Mutex<Vec<(usize, (u32, u64))>>,
    /// Called whenever something was cleaned to memory: what a walker that does not snoop sees of the driver's stores.
    pub(crate) cleaned: Mutex<Option<Handler>>,
    probed: AtomicU64,
    now: AtomicU64,
    /// How long a spin takes, in nanoseconds.
    pub(crate) spin_ns: AtomicU64,
    masked: AtomicU32,
    busy: AtomicBool,
    dice: AtomicU64,
}

impl Board {
    fn roll(&self, sides: u64) -> bool {
        let mut x = self.dice.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)).is_multiple_of(sides)
    }

    fn below(&self, bound: usize) -> usize {
        (0..bound).find(|left| self.roll((bound - left) as u64)).unwrap_or(0)
    }

    /// A moment at which the hardware may act.
    fn moment(&self, rarity: u64) {
        if !self.roll(rarity) || self.busy.swap(true, Ordering::SeqCst) {
            return;
        }
        let units = lock(&self.units).clone();
        if self.roll(2) && !units.is_empty() {
            units[self.below(units.len())].step();
        }
        let devices = lock(&self.devices).clone();
        if self.roll(2) && !devices.is_empty() {
            let device = &devices[self.below(devices.len())];
            device.step();
            let wishes = lock(&self.wishes).clone();
            if !wishes.is_empty() {
                device.prefetch(wishes[self.below(wishes.len())], Mode::Hostile);
            }
        }
        self.ram.evict(self.dice.load(Ordering::Relaxed).wrapping_mul(0xff51_afd7_ed55_8ccd));
        self.probe(&units);
        if self.masked.load(Ordering::SeqCst) == 0 && self.roll(8) {
            let handlers: Vec<Handler> = lock(&self.handlers).iter().flatten().cloned().collect();
            handlers.iter().for_each(|handler| handler());
        }
        self.busy.store(false, Ordering::SeqCst);
    }

    fn probe(&self, units: &[Arc<Smmu>]) {
        let probe = {
            let probes = lock(&self.probes);
            if probes.is_empty() {
                return;
            }
            probes[self.below(probes.len())].clone()
        };
        self.probed.fetch_add(1, Ordering::Relaxed);
        let unit = &units[probe.unit];
        let outcomes = if self.roll(3) {
            let outcome = unit.dma(probe.request, Mode::Any).outcome;
            if let Outcome::Stalled(_) = outcome {
                lock(&self.stalled).push((probe.unit, (probe.request.requester, probe.request.address)));
            }
            if let Outcome::Fault(code) = outcome {
                let caused = (probe.request.requester, probe.request.address, code);
                lock(&self.caused).push((probe.unit, caused));
            }
            BTreeSet::from([outcome])
        } else {
            unit.reachable(probe.request)
        };
        for outcome in outcomes {
            let text = || format!("meanwhile {:x?} ended in {outcome:x?}", probe.request);
            match outcome {
                Outcome::Done(_) if probe.allowed.admits(outcome) => {}
                Outcome::Fault(_) | Outcome::Aborted | Outcome::Stalled(_) if probe.allowed.arrives() => {
                    let mut interrupted = lock(&self.interrupted);
                    let first = match probe.request.pasid {
                        None => &mut interrupted.plain,
                        Some(_) => &mut interrupted.with_pasid,
                    };
                    first.get_or_insert_with(text);
                }
                Outcome::Fault(_) | Outcome::Aborted | Outcome::Stalled(_) => {}
                Outcome::Silent(_) if probe.allowed.silent => {}
                _ => lock(&self.wrong).push(format!("{}, allowed is {:x?}", text(), probe.allowed)),
            }
        }
    }

    /// An operation begins; `seed` decides what happens meanwhile.
    pub(crate) fn begin(&self, seed: u64) {
        self.dice.store(seed, Ordering::Relaxed);
    }

    /// Looks at these from now on.
    pub(crate) fn watch(&self, probes: Vec<Probe>) {
        *lock(&self.probes) = probes;
        *lock(&self.interrupted) = Interrupted::default();
    }

    /// Ends [`watch`](Self::watch), and gives the first refusal of what should have arrived at every moment.
    pub(crate) fn unwatch(&self) -> Option<String> {
        let Interrupted { plain, with_pasid } = self.unwatch_each();
        plain.or(with_pasid)
    }

    /// The same for requests without a PASID and with one.
    pub(crate) fn unwatch_each(&self) -> Interrupted {
        lock(&self.probes).clear();
        std::mem::take(&mut *lock(&self.interrupted))
    }

    /// What devices could do in the middle of operations and should not have.
    pub(crate) fn take_wrong(&self) -> Vec<String> {
        let mut wrong = std::mem::take(&mut *lock(&self.wrong));
        wrong.extend(self.ram.take_wrong());
        wrong
    }

    /// How often interrupts are masked, one in the other.
    pub(crate) fn masked(&self) -> u32 {
        self.masked.load(Ordering::SeqCst)
    }

    /// How many probes were made.
    pub(crate) fn probed(&self) -> u64 {
        self.probed.load(Ordering::Relaxed)
    }
}

/// The kernel under the driver.
#[derive(Clone)]
pub(crate) struct Kernel(pub(crate) Arc<Board>);

impl Kernel {
    pub(crate) fn new(coherent: bool) -> Self {
        Self(Arc::new(Board {
            host: HostHal::new(),
            ram: Arc::new(Ram::new(coherent)),
            units: Mutex::default(),
            handlers: Mutex::default(),
            devices: Mutex::default(),
            wishes: Mutex::default(),
            probes: Mutex::default(),
            wrong: Mutex::default(),
            interrupted: Mutex::default(),
            caused: Mutex::default(),
            stalled: Mutex::default(),
            cleaned: Mutex::default(),
            probed: AtomicU64::new(0),
            now: AtomicU64::new(0),
            spin_ns: AtomicU64::new(100),
            masked: AtomicU32::new(0),
            busy: AtomicBool::new(false),
            dice: AtomicU64::new(0),
        }))
    }
}

// SAFETY: frames are those of `HostHal`; the rest is bookkeeping beside them.
unsafe impl Hal for Kernel {
    fn alloc_frames(&self, order: FrameOrder) -> Result<PhysAddr, OutOfMemory> {
        self.0.moment(4);
        let base = self.0.host.alloc_frames(order)?;
        self.0.ram.add(base, order, self.0.host.phys_to_virt(base));
        Ok(base)
    }

    unsafe fn free_frames(&self, base: PhysAddr, order: FrameOrder) {
        self.0.ram.remove(base, order);
        // SAFETY: the caller's promise.
        unsafe { self.0.host.free_frames(base, order) };
        self.0.moment(4);
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        self.0.moment(32);
        self.0.host.phys_to_virt(phys)
    }

    fn clean_cache(&self, start: NonNull<u8>, len: usize) {
        self.0.moment(8);
        self.0.ram.clean(start.addr().get(), len);
        let cleaned = lock(&self.0.cleaned).clone();
        if let Some(look) = cleaned {
            look();
        }
        self.0.moment(8);
    }

    fn now_ns(&self) -> u64 {
        self.0.now.fetch_add(100, Ordering::Relaxed)
    }

    fn relax(&self) {
        self.0.now.fetch_add(self.0.spin_ns.load(Ordering::Relaxed), Ordering::Relaxed);
        self.0.moment(4);
    }

    fn mask_interrupts(&self) -> InterruptMask {
        InterruptMask(self.0.masked.fetch_add(1, Ordering::SeqCst).into())
    }

    fn restore_interrupts(&self, _mask: InterruptMask) {
        self.0.masked.fetch_sub(1, Ordering::SeqCst);
        self.0.moment(8);
    }
}

/// A unit's registers.
pub(crate) struct Registers {
    pub(crate) board: Arc<Board>,
    pub(crate) unit: Arc<Smmu>,
}

// SAFETY: the model reads and writes only the memory that the driver gave it, as an SMMU does.
unsafe impl Mmio for Registers {
    fn read32(&self, offset: usize) -> u32 {
        self.board.moment(8);
        self.unit.read32(offset as u64)
    }

    fn write32(&self, offset: usize, value: u32) {
        self.board.moment(4);
        self.unit.write32(offset as u64, value);
        self.board.moment(4);
    }

    fn read64(&self, offset: usize) -> u64 {
        self.board.moment(8);
        self.unit.read64(offset as u64)
    }

    fn write64(&self, offset: usize, value: u64) {
        self.unit.write64(offset as u64, value);
        self.board.moment(4);
    }
}
