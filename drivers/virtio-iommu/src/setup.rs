//! Bringing the device up (virtio 1.2, 3.1.1 and 5.13.5).

use crate::attach::Attachments;
use crate::events::EventQueue;
use crate::link::{Claimed, Limits, Link, reset};
use crate::probe::MOST_PROPERTIES;
use crate::requests::RequestQueue;
use crate::ring::RingSize;
use crate::spec::{DeviceStatus, Features, HostDomain, config};
use crate::transport::{NotTaken, QueueIndex, Transport};
use crate::unit::VirtioIommu;
use alloc::vec::Vec;
use portcullis_hal::wait::Timeout;
use portcullis_hal::{Arc, EndpointId, Hal, Iova, IovaRange, OutOfMemory, list};
use portcullis_iommu::{AttachError, IdPool};
use thiserror::Error;

/// Choices for setting up a unit; the default suits most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The most descriptors of the request queue; two of them make a request. At least 4.
    pub request_queue: u16,
    /// The most buffers for faults.
    pub event_queue: u16,
    /// The most paging domains that exist at a time.
    pub domains: u16,
    /// How long the device may take to answer, in nanoseconds.
    pub timeout_ns: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { request_queue: 256, event_queue: 64, domains: 4096, timeout_ns: 1_000_000_000 }
    }
}

/// Why a unit could not be brought up. It is left reset or marked as failed, and denies all DMA if it obeyed at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InitError {
    /// The device does not offer what the driver cannot do without.
    #[error("the device lacks {missing:?} (it offers {offered:#x})")]
    Lacks {
        /// What it lacks.
        missing: Features,
        /// What it offers.
        offered: u64,
    },
    /// The device does not accept what it offered.
    #[error("the device took back FEATURES_OK: its status is {0:?}")]
    FeaturesRefused(DeviceStatus),
    /// The device did not let its boot-time bypass be switched off.
    #[error("bypass reads {0} after 0 was written")]
    Bypass(u8),
    /// The configuration makes no sense.
    #[error("{field} makes no sense: {value:#x}")]
    Configuration {
        /// The field's name in the specification.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The configuration changes all the time.
    #[error("the configuration does not stay the same while it is read")]
    Unstable,
    /// A queue is missing or too small.
    #[error("queue {queue} has only {size} descriptors")]
    Queue {
        /// The queue.
        queue: u16,
        /// The size that would be possible.
        size: u16,
    },
    /// The device did not take a register's value.
    #[error(transparent)]
    NotTaken(#[from] NotTaken),
    /// The device did not finish a reset.
    #[error(transparent)]
    Timeout(#[from] Timeout),
    /// The device failed while it was set up.
    #[error("the device is not running: its status is {0:?}")]
    NotRunning(DeviceStatus),
    /// An endpoint that may be open since before the reset stays so.
    #[error("endpoint {endpoint} cannot be cut off: {error}")]
    NotCutOff {
        /// The endpoint.
        endpoint: EndpointId,
        /// What the device says.
        error: AttachError,
    },
    /// No memory for the queues.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// A device whose boot-time bypass is switched off, and that does not run yet.
///
/// If it is dropped instead of enabled, the device is marked as failed and goes on denying all DMA.
pub struct Setup<H: Hal, T: Transport> {
    hal: H,
    transport: Claimed<T>,
    options: Options,
    limits: Limits,
    domains: (u32, u32),
    cut_off: Vec<EndpointId>,
}

impl<H: Hal, T: Transport> Setup<H, T> {
    /// Resets the device, negotiates features, switches the bypass off before anything else, and reads the
    /// configuration. From then on endpoints that are not attached reach nothing.
    ///
    /// # Errors
    ///
    /// The device does not reset, lacks MAP_UNMAP or VERSION_1, keeps the bypass on, or has a configuration that
    /// makes no sense.
    pub fn new(hal: H, transport: T, options: Options) -> Result<Self, InitError> {
        reset(&hal, &transport, options.timeout_ns)?;
        let transport = Claimed::new(transport);
        let (limits, domains) = negotiate(&*transport)?;
        Ok(Self { hal, transport, options, limits, domains, cut_off: Vec::new() })
    }

    /// Has [`enable`](Self::enable) cut these endpoints off by requests, too, since not every device does so when it is
    /// reset: QEMU's leaves an endpoint that a predecessor passed through open until its next attachment. Until then
    /// whoever takes a device over has to keep them from mastering the bus. Endpoints that the device does not know are
    /// none of its business.
    ///
    /// # Errors
    ///
    /// No memory for the list.
    pub fn cut_off(&mut self, endpoints: &[EndpointId]) -> Result<(), OutOfMemory> {
        endpoints.iter().try_for_each(|&endpoint| list::push(&mut self.cut_off, endpoint))
    }

    /// Sets up the queues and starts the device.
    ///
    /// # Errors
    ///
    /// There is no memory, the device does not take the queues, or does not cut an endpoint off.
    pub fn enable(self) -> Result<VirtioIommu<H, T>, InitError> {
        let Self { hal, transport, options, limits, domains, cut_off } = self;
        let requests =
            queue_size(&*transport, QueueIndex::Requests, options.request_queue, RequestQueue::<H>::LEAST)?;
        let events = queue_size(&*transport, QueueIndex::Events, options.event_queue, 1)?;
        let queues = (RequestQueue::new(&hal, requests, limits.probe_size)?, EventQueue::new(&hal, events)?);
        let (first, last) = domains;
        let ids =
            IdPool::new(first, last.min(first.saturating_add(u32::from(options.domains).saturating_sub(1))))?;
        let layouts = (queues.0.layout(), queues.1.layout());
        // From here on the value resets the device before it frees the queues, also on an error.
        let link = Link::new(hal, transport, limits, options.timeout_ns, queues, ids);
        link.transport.set_up_queue(QueueIndex::Requests, &layouts.0)?;
        link.transport.set_up_queue(QueueIndex::Events, &layouts.1)?;
        link.transport.set_status(RUNNING);
        let status = link.transport.status();
        if status != RUNNING {
            return Err(InitError::NotRunning(status));
        }
        if link.hal.critical(|| link.events.lock().publish()) {
            link.transport.notify(QueueIndex::Events);
        }
        let attachments = Attachments::new(Arc::try_new(link)?);
        for endpoint in cut_off {
            attachments.cut_off(endpoint).map_err(|error| InitError::NotCutOff { endpoint, error })?;
        }
        Ok(VirtioIommu::new(Arc::try_new(attachments)?))
    }
}

/// The status while features are negotiated.
const NEGOTIATING: DeviceStatus = DeviceStatus::ACKNOWLEDGE.union(DeviceStatus::DRIVER);
/// The status of a device that runs.
const RUNNING: DeviceStatus = NEGOTIATING.union(DeviceStatus::FEATURES_OK).union(DeviceStatus::DRIVER_OK);

/// What the driver cannot do without.
const NEEDED: Features = Features::VERSION_1.union(Features::MAP_UNMAP);
/// What it uses where it is offered. BYPASS would let endpoints through that are not attached.
const USED: Features = NEEDED
    .union(Features::INPUT_RANGE)
    .union(Features::DOMAIN_RANGE)
    .union(Features::PROBE)
    .union(Features::MMIO)
    .union(Features::BYPASS_CONFIG)
    .union(Features::ACCESS_PLATFORM)
    .union(Features::ORDER_PLATFORM);

fn queue_size<T: Transport>(
    transport: &T,
    queue: QueueIndex,
    most: u16,
    least: u16,
) -> Result<RingSize, InitError> {
    let size = RingSize::choose(most, transport.queue_max_size(queue));
    let found = size.map_or(0, RingSize::get);
    size.filter(|_| found >= least).ok_or(InitError::Queue { queue: queue.get(), size: found })
}

fn negotiate<T: Transport>(transport: &T) -> Result<(Limits, (u32, u32)), InitError> {
    transport.set_status(DeviceStatus::ACKNOWLEDGE);
    transport.set_status(NEGOTIATING);
    let offered = transport.device_features();
    let features = Features::from_bits_truncate(offered) & USED;
    if !features.contains(NEEDED) {
        return Err(InitError::Lacks { missing: NEEDED - features, offered });
    }
    transport.set_driver_features(features.bits());
    transport.set_status(NEGOTIATING | DeviceStatus::FEATURES_OK);
    let status = transport.status();
    if status != NEGOTIATING | DeviceStatus::FEATURES_OK {
        return Err(InitError::FeaturesRefused(status));
    }
    if features.contains(Features::BYPASS_CONFIG) {
        transport.write_config8(config::BYPASS, 0);
        let bypass = transport.read_config8(config::BYPASS);
        if bypass != 0 {
            return Err(InitError::Bypass(bypass));
        }
    }
    Raw::read(transport)?.check(features)
}

/// The configuration as it was read.
struct Raw {
    page_sizes: u64,
    input: (u64, u64),
    domains: (u32, u32),
    probe_size: u32,
}

impl Raw {
    fn read<T: Transport>(transport: &T) -> Result<Self, InitError> {
        const TRIES: usize = 16;
        let read64 = |offset: usize| {
            let low = u64::from(transport.read_config32(offset));
            low | u64::from(transport.read_config32(offset + 4)) << 32
        };
        for _ in 0..TRIES {
            let generation = transport.config_generation();
            let raw = Self {
                page_sizes: read64(config::PAGE_SIZE_MASK),
                input: (read64(config::INPUT_START), read64(config::INPUT_END)),
                domains: (
                    transport.read_config32(config::DOMAIN_START),
                    transport.read_config32(config::DOMAIN_END),
                ),
                probe_size: transport.read_config32(config::PROBE_SIZE),
            };
            if transport.config_generation() == generation {
                return Ok(raw);
            }
        }
        Err(InitError::Unstable)
    }

    /// The limits, and the numbers for paging domains. Of the domain range the first number is the blocked domain's
    /// and the second, where there is pass-through, the identity domain's.
    fn check(&self, features: Features) -> Result<(Limits, (u32, u32)), InitError> {
        let senseless = |field, value| Err(InitError::Configuration { field, value });
        if self.page_sizes == 0 {
            return senseless("page_size_mask", 0);
        }
        let (start, end) = if features.contains(Features::INPUT_RANGE) { self.input } else { (0, u64::MAX) };
        let page = 1_u64 << self.page_sizes.trailing_zeros();
        // Whole pages only: the start goes up, the end, plus one, down.
        let first = start.checked_next_multiple_of(page);
        let last = match end.checked_add(1) {
            Some(past) => (past & !(page - 1)).checked_sub(1),
            None => Some(u64::MAX),
        };
        let aperture = first
            .zip(last)
            .and_then(|(first, last)| IovaRange::from_bounds(Iova::new(first), Iova::new(last)).ok());
        let Some(aperture) = aperture else {
            return senseless("input_range.end", end);
        };
        let (lowest, highest) =
            if features.contains(Features::DOMAIN_RANGE) { self.domains } else { (0, u32::MAX) };
        let bypass = features.contains(Features::BYPASS_CONFIG);
        let blocked = lowest;
        let identity = blocked.checked_add(1).filter(|&id| bypass && id <= highest);
        let paging = identity.unwrap_or(blocked).checked_add(1);
        let Some(paging) = paging.filter(|&id| id <= highest) else {
            return senseless("domain_range.end", highest.into());
        };
        let probe_size = features.contains(Features::PROBE).then_some(self.probe_size);
        if let Some(size) = probe_size.filter(|size| !(1..=MOST_PROPERTIES).contains(size)) {
            return senseless("probe_size", size.into());
        }
        let limits = Limits {
            features,
            page_sizes: self.page_sizes,
            aperture,
            blocked: HostDomain(blocked),
            probe_size,
            identity: identity.map(HostDomain),
        };
        Ok((limits, (paging, highest)))
    }
}
