//! A virtio-iommu made of host memory. It knows the rings and the requests from the specification alone: everything
//! is decoded here by hand, from bytes.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(unsafe_code, reason = "raw memory that plays physical memory")]

pub(crate) mod memory;

use memory::{TestHal, exempt};
use portcullis_hal::{
    Arc, Attributes, EndpointId, Gather, Hal, Iova, IovaRange, Mapping, PhysAddr, PhysRange, QueuedMaps,
    SyncError, UnmapError,
};
use portcullis_iommu::{Domain, DomainSpec, PagingSpec, Unit, UnitEvent};
use portcullis_virtio_iommu::spec::DeviceStatus;
use portcullis_virtio_iommu::{
    NotTaken, Options, QueueIndex, QueueLayout, Setup, Transport, Vectors, VirtioIommu,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard};

pub(crate) const OK: u8 = 0;
pub(crate) const UNSUPP: u8 = 2;
pub(crate) const INVAL: u8 = 4;
pub(crate) const RANGE: u8 = 5;
pub(crate) const NOENT: u8 = 6;
pub(crate) const NOMEM: u8 = 8;

/// A request as its bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Req {
    Attach { domain: u32, endpoint: u32, flags: u32 },
    Detach { domain: u32, endpoint: u32 },
    Map { domain: u32, first: u64, last: u64, phys: u64, flags: u32 },
    Unmap { domain: u32, first: u64, last: u64 },
    Probe { endpoint: u32 },
}

/// How the device answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// By the rules.
    Right,
    /// Does nothing and writes this status.
    Status(u8),
    /// Does it, and says that it wrote this many bytes.
    Length(u32),
    /// Does nothing and says that another chain is done.
    Chain(u32),
    /// Does nothing and moves the used index by this much.
    Jump(u16),
    /// Never.
    Never,
    /// When [`Fake::release`] is called, latest first.
    Held,
}

#[derive(Default)]
struct Queue {
    layout: Option<QueueLayout>,
    taken: u16,
    used: u16,
}

#[derive(Default)]
pub(crate) struct FakeDomain {
    pub bypass: bool,
    /// By first address: last address, physical address, flags.
    pub mappings: BTreeMap<u64, (u64, u64, u32)>,
}

type Script = Box<dyn FnMut(&Req) -> Answer + Send>;

pub(crate) struct State {
    pub offered: u64,
    pub accepted: u64,
    pub status: u8,
    pub config: [u8; 40],
    pub queue_sizes: [u16; 2],
    queues: [Queue; 2],
    /// By endpoint: the domain.
    pub endpoints: BTreeMap<u32, u32>,
    pub domains: BTreeMap<u32, FakeDomain>,
    /// Endpoints that a predecessor passed through, and that the device forgets to close before they are attached.
    pub lingering: BTreeSet<u32>,
    pub requests: Vec<Req>,
    /// What PROBE says of every endpoint.
    pub properties: Vec<u8>,
    pub notifications: u32,
    /// The next notification does not arrive.
    pub swallows: bool,
    /// What happened to status, bypass and queues, in order.
    pub history: Vec<String>,
    pub script: Script,
    held: Vec<(u16, Req)>,
    /// State of the dice that choose in which order requests are taken; in theirs while it is `None`.
    pub disorder: Option<u64>,
    /// Bits of the status that are forced to one.
    pub stuck_status: u8,
    pub ignores_bypass: bool,
    pub unstable: bool,
    generation: u32,
    pub vectors: Vectors,
    pub no_vectors: bool,
}

/// The device, and the driver's transport to it.
#[derive(Clone)]
pub(crate) struct Fake {
    pub hal: TestHal,
    state: std::sync::Arc<Mutex<State>>,
}

/// The feature PROBE.
pub(crate) const PROBE: u64 = 1 << 4;
/// The bytes of properties.
pub(crate) const PROBE_SIZE: u32 = 512;
pub(crate) const ALL_FEATURES: u64 = 1 << 32 | 0b111_0111;

impl Fake {
    pub(crate) fn new() -> Self {
        let mut config = [0; 40];
        config[..8].copy_from_slice(&0xffff_ffff_ffff_f000_u64.to_le_bytes());
        config[16..24].copy_from_slice(&0x7f_ffff_ffff_u64.to_le_bytes());
        config[24..28].copy_from_slice(&5_u32.to_le_bytes());
        config[28..32].copy_from_slice(&1000_u32.to_le_bytes());
        config[32..36].copy_from_slice(&PROBE_SIZE.to_le_bytes());
        config[36] = 1;
        let state = State {
            offered: ALL_FEATURES,
            accepted: 0,
            status: 0,
            config,
            queue_sizes: [256, 64],
            queues: Default::default(),
            endpoints: BTreeMap::new(),
            domains: BTreeMap::new(),
            lingering: BTreeSet::new(),
            requests: Vec::new(),
            properties: Vec::new(),
            notifications: 0,
            swallows: false,
            history: Vec::new(),
            script: Box::new(|_| Answer::Right),
            held: Vec::new(),
            disorder: None,
            stuck_status: 0,
            ignores_bypass: false,
            unstable: false,
            generation: 0,
            vectors: Vectors::default(),
            no_vectors: false,
        };
        Self { hal: TestHal::new(), state: std::sync::Arc::new(Mutex::new(state)) }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // A test that failed with the state in its hands is reported as such, and not as a panic in its clean-up.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn set_config(&self, offset: usize, bytes: &[u8]) {
        self.state().config[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn script(&self, script: impl FnMut(&Req) -> Answer + Send + 'static) {
        self.state().script = Box::new(script);
    }

    /// The requests since the last call.
    pub(crate) fn take_requests(&self) -> Vec<Req> {
        std::mem::take(&mut self.state().requests)
    }

    fn read<const N: usize>(&self, phys: u64) -> [u8; N] {
        assert!(self.hal.is_allocated(PhysAddr::new(phys), N as u64), "{phys:#x} is not the driver's memory");
        // SAFETY: the bytes are allocated; volatile, as the driver may write them.
        unsafe { self.hal.phys_to_virt(PhysAddr::new(phys)).cast::<[u8; N]>().read_volatile() }
    }

    fn write(&self, phys: u64, bytes: &[u8]) {
        assert!(self.hal.is_allocated(PhysAddr::new(phys), bytes.len() as u64));
        for (at, byte) in bytes.iter().enumerate() {
            // SAFETY: the bytes are allocated; volatile, as the driver may read them.
            unsafe { self.hal.phys_to_virt(PhysAddr::new(phys + at as u64)).write_volatile(*byte) };
        }
    }

    /// A descriptor: address, length, flags, next.
    fn descriptor(&self, layout: &QueueLayout, index: u16) -> (u64, u32, u16, u16) {
        assert!(index < layout.size);
        let bytes: [u8; 16] = self.read(layout.descriptors.get() + 16 * u64::from(index));
        (
            u64::from_le_bytes(bytes[..8].try_into().unwrap()),
            u32::from_le_bytes(bytes[8..12].try_into().unwrap()),
            u16::from_le_bytes(bytes[12..14].try_into().unwrap()),
            u16::from_le_bytes(bytes[14..].try_into().unwrap()),
        )
    }

    /// The next chain that the driver made available.
    fn pop(&self, queue: &mut Queue) -> Option<u16> {
        let layout = queue.layout?;
        let index = self.index(layout.available).load(Ordering::Acquire);
        if index == queue.taken {
            return None;
        }
        let slot = u64::from(queue.taken % layout.size);
        queue.taken = queue.taken.wrapping_add(1);
        Some(u16::from_le_bytes(self.read(layout.available.get() + 4 + 2 * slot)))
    }

    fn push(&self, queue: &mut Queue, head: u32, len: u32) {
        let layout = queue.layout.unwrap();
        let at = layout.used.get() + 4 + 8 * u64::from(queue.used % layout.size);
        self.write(at, &head.to_le_bytes());
        self.write(at + 4, &len.to_le_bytes());
        queue.used = queue.used.wrapping_add(1);
        self.index(layout.used).store(queue.used, Ordering::Release);
    }

    /// The running index of a ring. The other side looks at it at any time: it is read and written whole.
    fn index(&self, ring: PhysAddr) -> &AtomicU16 {
        let phys = PhysAddr::new(ring.get() + 2);
        assert!(self.hal.is_allocated(phys, 2) && phys.is_aligned(2));
        // SAFETY: the two bytes are allocated for as long as the device has the ring, and aligned.
        unsafe { self.hal.phys_to_virt(phys).cast::<AtomicU16>().as_ref() }
    }

    fn decode(&self, layout: &QueueLayout, head: u16) -> Req {
        let (address, len, flags, next) = self.descriptor(layout, head);
        assert_eq!(flags, 1, "the first descriptor is read by the device and has a next");
        let (_, tail, flags, _) = self.descriptor(layout, next);
        let head: [u8; 8] = self.read(address);
        assert_eq!(flags, 2, "the last descriptor is the device's to write");
        assert!(tail == 4 || (head[0] == 5 && tail > 4), "the last descriptor ends with the tail");
        assert_eq!(head[1..4], [0; 3]);
        let word = |at: u64| u32::from_le_bytes(self.read(address + at));
        let long = |at: u64| u64::from_le_bytes(self.read(address + at));
        let (kind, domain) = (head[0], word(4));
        match (kind, len) {
            (1, 20) => {
                assert_eq!(word(16), 0);
                Req::Attach { domain, endpoint: word(8), flags: word(12) }
            }
            (2, 20) => {
                assert_eq!((word(12), word(16)), (0, 0));
                Req::Detach { domain, endpoint: word(8) }
            }
            (3, 36) => Req::Map { domain, first: long(8), last: long(16), phys: long(24), flags: word(32) },
            (4, 28) => {
                assert_eq!(word(24), 0);
                Req::Unmap { domain, first: long(8), last: long(16) }
            }
            (5, 72) => {
                assert!((8..72).step_by(4).all(|at| word(at) == 0));
                Req::Probe { endpoint: word(4) }
            }
            other => panic!("request type and length {other:?}"),
        }
    }

    /// Serves what is in the request queue.
    fn serve(&self) {
        let mut state = self.state();
        let state = &mut *state;
        let mut heads: Vec<u16> = std::iter::from_fn(|| self.pop(&mut state.queues[0])).collect();
        if let Some(dice) = &mut state.disorder {
            for left in 1..heads.len() {
                *dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                heads.swap(left, (*dice >> 33) as usize % (left + 1));
            }
        }
        for head in heads {
            let req = self.decode(&state.queues[0].layout.unwrap(), head);
            state.requests.push(req);
            let (answer, room) = self.room(&state.queues[0], head);
            if let Req::Probe { .. } = req {
                self.write(answer, &state.properties[..state.properties.len().min(room as usize - 4)]);
            }
            let queue = &mut state.queues[0];
            match (state.script)(&req) {
                Answer::Right => {
                    let status = state.perform(&req);
                    self.answer(&mut state.queues[0], head, status, room);
                }
                Answer::Status(status) => self.answer(queue, head, status, room),
                Answer::Length(len) => {
                    let status = state.perform(&req);
                    self.answer(&mut state.queues[0], head, status, len);
                }
                Answer::Chain(chain) => self.push(queue, chain, 4),
                Answer::Jump(by) => {
                    queue.used = queue.used.wrapping_add(by);
                    self.index(queue.layout.unwrap().used).store(queue.used, Ordering::Release);
                }
                Answer::Never => {}
                Answer::Held => state.held.push((head, req)),
            }
        }
    }

    /// What the device writes of a request: address and length.
    fn room(&self, queue: &Queue, head: u16) -> (u64, u32) {
        let layout = queue.layout.unwrap();
        let (_, _, _, next) = self.descriptor(&layout, head);
        let (address, len, ..) = self.descriptor(&layout, next);
        (address, len)
    }

    fn answer(&self, queue: &mut Queue, head: u16, status: u8, len: u32) {
        let (address, room) = self.room(queue, head);
        self.write(address + u64::from(room) - 4, &[status, 0, 0, 0]);
        self.push(queue, head.into(), len);
    }

    /// Performs and answers the requests that were held, latest first.
    pub(crate) fn release(&self) {
        let mut state = self.state();
        while let Some((head, req)) = state.held.pop() {
            let status = state.perform(&req);
            self.answer(&mut state.queues[0], head, status, 4);
        }
    }

    /// Puts an event of these bytes into the next buffer, if there is one.
    pub(crate) fn event(&self, bytes: &[u8]) -> bool {
        let mut state = self.state();
        let Some(head) = self.pop(&mut state.queues[1]) else {
            return false;
        };
        let (address, len, flags, _) = self.descriptor(&state.queues[1].layout.unwrap(), head);
        assert!(flags == 2 && len >= 24);
        self.write(address, &bytes[..bytes.len().min(len as usize)]);
        self.push(&mut state.queues[1], head.into(), bytes.len() as u32);
        true
    }

    /// Says that a buffer of the event queue was used, whether or not there is such a one.
    pub(crate) fn stray_event(&self, head: u32) {
        let mut state = self.state();
        self.push(&mut state.queues[1], head, 24);
    }

    /// Where a DMA of an endpoint lands, if anywhere. A refused one is reported as the specification says.
    pub(crate) fn dma(&self, endpoint: u32, address: u64, write: bool) -> Option<u64> {
        let refused = {
            let state = self.state();
            match state.endpoints.get(&endpoint) {
                None if state.config[36] == 1 || state.lingering.contains(&endpoint) => return Some(address),
                None => 1,
                Some(domain) => {
                    let domain = &state.domains[domain];
                    if domain.bypass {
                        return Some(address);
                    }
                    let found = domain.mappings.range(..=address).next_back();
                    match found {
                        Some((first, (last, phys, flags)))
                            if address <= *last && flags & if write { 2 } else { 1 } != 0 =>
                        {
                            return Some(phys + (address - first));
                        }
                        _ => 2,
                    }
                }
            }
        };
        let mut event = [0; 24];
        event[0] = refused;
        event[4..8].copy_from_slice(&(0x100 | if write { 2_u32 } else { 1 }).to_le_bytes());
        event[8..12].copy_from_slice(&endpoint.to_le_bytes());
        event[16..].copy_from_slice(&address.to_le_bytes());
        self.event(&event);
        None
    }
}

impl State {
    fn leave(&mut self, endpoint: u32) {
        if let Some(domain) = self.endpoints.remove(&endpoint)
            && !self.endpoints.values().any(|other| *other == domain)
        {
            self.domains.remove(&domain);
        }
    }

    /// What the specification says of a request (5.13.6).
    fn perform(&mut self, req: &Req) -> u8 {
        match *req {
            Req::Attach { domain, endpoint, flags } => {
                if flags & !1 != 0 {
                    return INVAL;
                }
                if endpoint >= 0x100 {
                    return NOENT;
                }
                self.leave(endpoint);
                let bypass = flags & 1 != 0;
                let found = self.domains.entry(domain).or_insert(FakeDomain { bypass, ..Default::default() });
                if found.bypass != bypass {
                    return INVAL;
                }
                self.endpoints.insert(endpoint, domain);
                self.lingering.remove(&endpoint);
                OK
            }
            Req::Detach { domain, endpoint } => {
                if self.endpoints.get(&endpoint) != Some(&domain) {
                    return INVAL;
                }
                self.leave(endpoint);
                OK
            }
            Req::Map { domain, first, last, phys, flags } => {
                let Some(domain) = self.domains.get_mut(&domain) else {
                    return NOENT;
                };
                let below = domain.mappings.range(..=last).next_back();
                if domain.bypass || flags & !7 != 0 || below.is_some_and(|(_, (end, ..))| *end >= first) {
                    return INVAL;
                }
                if (first | phys | last.wrapping_add(1)) & 0xfff != 0 {
                    return RANGE;
                }
                domain.mappings.insert(first, (last, phys, flags));
                OK
            }
            Req::Probe { endpoint } => {
                if endpoint < 0x100 {
                    OK
                } else {
                    NOENT
                }
            }
            Req::Unmap { domain, first, last } => {
                let Some(domain) = self.domains.get_mut(&domain) else {
                    return NOENT;
                };
                let cut = domain.mappings.iter().any(|(start, (end, ..))| {
                    *start <= last && *end >= first && (*start < first || *end > last)
                });
                if cut {
                    return RANGE;
                }
                domain.mappings.retain(|start, (end, ..)| *start < first || *end > last);
                OK
            }
        }
    }
}

// SAFETY: the fake reads and writes only the queues that it was given, until it is reset.
unsafe impl Transport for Fake {
    fn device_features(&self) -> u64 {
        self.state().offered
    }

    fn set_driver_features(&self, features: u64) {
        self.state().accepted = features;
    }

    fn status(&self) -> DeviceStatus {
        let state = self.state();
        DeviceStatus::from_bits_retain(state.status | state.stuck_status)
    }

    fn set_status(&self, status: DeviceStatus) {
        exempt(|| {
            let mut state = self.state();
            state.status = status.bits();
            state.history.push(format!("status {:#x}", status.bits()));
            if status.is_empty() {
                state.queues = Default::default();
                state.endpoints.clear();
                state.domains.clear();
                state.held.clear();
            }
        });
    }

    fn config_generation(&self) -> u32 {
        let mut state = self.state();
        state.generation += u32::from(state.unstable);
        state.generation
    }

    fn read_config8(&self, offset: usize) -> u8 {
        self.state().config[offset]
    }

    fn read_config32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.state().config[offset..offset + 4].try_into().unwrap())
    }

    fn write_config8(&self, offset: usize, value: u8) {
        exempt(|| {
            let mut state = self.state();
            assert_eq!(offset, 36, "only bypass can be written");
            state.history.push(format!("bypass {value}"));
            if !state.ignores_bypass {
                state.config[offset] = value;
            }
        });
    }

    fn queue_max_size(&self, queue: QueueIndex) -> u16 {
        self.state().queue_sizes[usize::from(queue.get())]
    }

    fn set_up_queue(&self, queue: QueueIndex, layout: &QueueLayout) -> Result<(), NotTaken> {
        exempt(|| {
            let mut state = self.state();
            assert!(
                layout.descriptors.is_aligned(16)
                    && layout.available.is_aligned(2)
                    && layout.used.is_aligned(4)
            );
            assert!(
                layout.size.is_power_of_two() && layout.size <= state.queue_sizes[usize::from(queue.get())]
            );
            state.queues[usize::from(queue.get())] = Queue { layout: Some(*layout), ..Queue::default() };
            state.history.push(format!("queue {}", queue.get()));
            Ok(())
        })
    }

    fn notify(&self, queue: QueueIndex) {
        exempt(|| {
            if queue == QueueIndex::Requests {
                self.state().notifications += 1;
                if !std::mem::take(&mut self.state().swallows) {
                    self.serve();
                }
            }
        });
    }

    fn set_vectors(&self, vectors: &Vectors) -> Result<(), NotTaken> {
        let mut state = self.state();
        if state.no_vectors {
            return Err(NotTaken { register: "config_msix_vector", written: 0, found: 0xffff });
        }
        state.vectors = *vectors;
        Ok(())
    }

    fn acknowledge_interrupt(&self) {}
}

pub(crate) type FakeUnit = VirtioIommu<TestHal, Fake>;

pub(crate) fn options() -> Options {
    Options { timeout_ns: 20_000_000, ..Options::default() }
}

pub(crate) fn up(fake: &Fake) -> FakeUnit {
    Setup::new(fake.hal.clone(), fake.clone(), options()).unwrap().enable().unwrap()
}

pub(crate) fn paging(unit: &FakeUnit) -> Arc<dyn Domain> {
    unit.new_domain(&DomainSpec::Paging(PagingSpec::default())).unwrap()
}

pub(crate) fn piece(iova: u64, phys: u64, len: u64) -> Mapping {
    Mapping {
        iova: Iova::new(iova),
        memory: PhysRange::new(PhysAddr::new(phys), len).unwrap(),
        attributes: Attributes::READ_WRITE,
    }
}

pub(crate) fn map(domain: &Arc<dyn Domain>, list: &[Mapping]) -> Result<(), portcullis_hal::MapError> {
    // SAFETY: the addresses name no memory; the fake only compares numbers.
    unsafe { domain.map(list) }
}

/// Maps without waiting.
pub(crate) fn map_queued(
    domain: &Arc<dyn Domain>,
    list: &[Mapping],
    queue: &mut QueuedMaps,
) -> Result<(), portcullis_hal::MapError> {
    // SAFETY: the addresses name no memory; the fake only compares numbers.
    unsafe { domain.map_queued(list, queue) }
}

pub(crate) fn range(iova: u64, len: u64) -> IovaRange {
    IovaRange::new(Iova::new(iova), len).unwrap()
}

/// Unmaps and syncs.
pub(crate) fn unmap(
    domain: &Arc<dyn Domain>,
    iova: u64,
    len: u64,
) -> Result<Result<u64, SyncError>, UnmapError> {
    let mut gather = Gather::new();
    let bytes = portcullis_hal::host::unmap(&**domain, range(iova, len), &mut gather)?;
    Ok(domain.sync(&mut gather).map(|_proof| bytes))
}

pub(crate) fn endpoint(id: u32) -> EndpointId {
    EndpointId::new(id)
}

/// What the unit reports.
pub(crate) fn events(unit: &FakeUnit) -> Vec<UnitEvent> {
    let mut events = Vec::new();
    unit.handle_interrupt(&mut |event| events.push(event));
    events
}
