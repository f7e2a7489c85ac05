//! The device: its registers and configuration, and what a test can make it do.

#![expect(unsafe_code, reason = "vouches for the fake as a transport")]

use super::memory::{TestHal, exempt};
use super::rings::Queue;
use super::rules::{FakeDomain, Req};
use portcullis_hal::host::Random;
use portcullis_virtio_iommu::spec::DeviceStatus;
use portcullis_virtio_iommu::{NotTaken, QueueIndex, QueueLayout, Transport, Vectors};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};

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

type Script = Box<dyn FnMut(&Req) -> Answer + Send>;

pub(crate) struct State {
    pub offered: u64,
    pub accepted: u64,
    pub status: u8,
    pub config: [u8; 40],
    pub queue_sizes: [u16; 2],
    pub(super) queues: [Queue; 2],
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
    pub(super) held: Vec<(u16, Req)>,
    /// Chooses in which order requests are taken; in theirs while it is `None`.
    pub disorder: Option<Random>,
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
