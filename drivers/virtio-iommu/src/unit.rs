//! The unit: [`portcullis_iommu::Unit`] over requests.

use crate::attach::{Attachments, check_unit};
use crate::domain::{Kind, VirtioDomain};
use crate::events::{Event, Knowledge, decode};
use crate::link::{Counters, Link};
use crate::requests::RequestQueue;
use crate::space::Space;
use crate::spec::DeviceStatus;
use crate::transport::{NotTaken, QueueIndex, Transport, Vectors};
use alloc::vec::Vec;
use core::any::Any;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use portcullis_hal::{Arc, EndpointId, Hal, Iova, OutOfMemory, unsize_arc};
use portcullis_iommu::{
    Abilities, AttachError, Backend, Domain, DomainError, DomainSpec, FaultModels, Missing, PagingSpec,
    ReservedRegion, Stage, Stages, Transition, Unit, UnitEvent, UnitInfo, UnitStats, WalkCoherency,
};

/// A virtio-iommu that runs. Clones are the same unit.
///
/// The device is reset, and its memory freed, when the last clone and the last of its domains are gone; endpoints
/// that are still attached then reach nothing.
pub struct VirtioIommu<H: Hal, T: Transport> {
    state: Arc<Attachments<H, T>>,
    info: UnitInfo,
}

impl<H: Hal, T: Transport> Clone for VirtioIommu<H, T> {
    fn clone(&self) -> Self {
        Self { state: self.state.clone(), info: self.info.clone() }
    }
}

impl<H: Hal, T: Transport> VirtioIommu<H, T> {
    pub(crate) fn new(state: Arc<Attachments<H, T>>) -> Self {
        let limits = &state.link.limits;
        let info = UnitInfo {
            backend: Backend::VirtioIommu,
            stages: Stages::MANAGED,
            page_sizes: limits.page_sizes,
            input_bits: (u64::BITS - limits.aperture.last().get().leading_zeros()) as u8,
            output_bits: 64,
            pasid_bits: 0,
            fault_models: FaultModels::empty(),
            stall_places: 0,
            abilities: Abilities::empty(),
            entry_coherency: WalkCoherency::Snooped,
            table_coherency: WalkCoherency::Snooped,
            identity: true,
            nesting: false,
        };
        Self { state, info }
    }

    /// The unit for [`Iommu::add_unit`](portcullis_iommu::Iommu::add_unit).
    ///
    /// # Errors
    ///
    /// No memory for another handle.
    pub fn unit(&self) -> Result<Arc<dyn Unit>, OutOfMemory> {
        let unit = Arc::try_new(self.clone())?;
        Ok(unsize_arc!(unit => dyn Unit))
    }

    fn link(&self) -> &Arc<Link<H, T>> {
        &self.state.link
    }

    /// Has the device raise MSI-X vectors, which the caller has programmed into the function's table.
    ///
    /// The request queue raises none: its answers are polled for.
    ///
    /// # Errors
    ///
    /// The device has no resources for a vector (4.1.5.1.2).
    pub fn enable_interrupts(&self, vectors: &Vectors) -> Result<(), NotTaken> {
        self.link().transport.set_vectors(vectors)
    }

    /// Buffers that the device filled with something else than an event.
    pub fn malformed_events(&self) -> u64 {
        self.link().counters.malformed.load(Ordering::Relaxed)
    }

    /// What the driver knows about an address of an endpoint, as far as it can be told without waiting.
    fn knowledge(&self, endpoint: EndpointId, address: Option<Iova>) -> Knowledge {
        let Some(table) = self.state.table.try_lock() else {
            return Knowledge::Unknown;
        };
        let found = table.iter().find(|attached| attached.endpoint == endpoint);
        match found.map(|attached| &attached.kind) {
            None => Knowledge::Unattached,
            Some(Kind::Blocked) => Knowledge::Blocked,
            Some(Kind::Identity) => Knowledge::Unknown,
            Some(Kind::Direct(space) | Kind::Paging(space)) => match (space.try_mappings(), address) {
                (Some(mappings), Some(address)) => match mappings.intervals.lookup(address) {
                    Some(_) => Knowledge::Mapped,
                    None => Knowledge::NotMapped,
                },
                _ => Knowledge::Unknown,
            },
        }
    }

    fn unsupported(missing: Missing) -> DomainError {
        DomainError::Unsupported { missing }
    }

    fn paging(&self, spec: &PagingSpec) -> Result<Kind<H, T>, DomainError> {
        let mut missing = Missing::empty();
        match spec.stage {
            Some(Stage::Stage1) => missing |= Missing::STAGE_1,
            Some(Stage::Stage2) => missing |= Missing::STAGE_2,
            None => {}
        }
        if spec.input_bits.is_some_and(|bits| bits > self.info.input_bits) {
            missing |= Missing::INPUT_WIDTH;
        }
        missing |= spec.abilities.missing(self.info.abilities);
        if !missing.is_empty() {
            return Err(Self::unsupported(missing));
        }
        Ok(Kind::Paging(Space::new(self.link(), spec.grain)?))
    }
}

impl<H: Hal, T: Transport> Unit for VirtioIommu<H, T> {
    fn info(&self) -> &UnitInfo {
        &self.info
    }

    fn new_domain(&self, spec: &DomainSpec) -> Result<Arc<dyn Domain>, DomainError> {
        let kind = match spec {
            DomainSpec::Blocked => Kind::Blocked,
            DomainSpec::Identity(_) => Kind::Identity,
            DomainSpec::Paging(spec) => self.paging(spec)?,
            _ => return Err(Self::unsupported(Missing::SHARED_TABLES)),
        };
        let domain = Arc::try_new(VirtioDomain::new(self.link(), kind))?;
        Counters::count(&self.link().counters.domains);
        Ok(unsize_arc!(domain => dyn Domain))
    }

    fn attach(&self, endpoints: &[EndpointId], domain: &Arc<dyn Domain>) -> Result<Transition, AttachError> {
        let any: &dyn Any = &**domain;
        let Some(domain) = any.downcast_ref::<VirtioDomain<H, T>>() else {
            return Err(AttachError::Incompatible { missing: Missing::BACKEND });
        };
        check_unit(self.link(), &domain.link)?;
        self.state.attach(endpoints, &domain.kind)?;
        Ok(Transition::Disruptive)
    }

    fn detach(&self, endpoints: &[EndpointId]) -> Result<(), AttachError> {
        self.state.detach(endpoints)
    }

    fn reserved(&self, endpoint: EndpointId) -> Result<Vec<ReservedRegion>, AttachError> {
        Ok(self.link().probe(endpoint)?)
    }

    fn handle_interrupt(&self, report: &mut dyn FnMut(UnitEvent)) {
        let link = self.link();
        link.transport.acknowledge_interrupt();
        let events = |section: fn(&mut crate::events::EventQueue<H>) -> Option<Event>| {
            link.hal.critical(|| section(&mut link.events.lock()))
        };
        // Bounded, since a device that faults all the time fills buffers as fast as they are given back. What is
        // left comes with the next interrupt.
        let buffers = link.hal.critical(|| usize::from(link.events.lock().buffers()));
        for _ in 0..buffers.saturating_mul(4) {
            match events(|queue| queue.take()) {
                Some(Event::Fault(event, raw)) => {
                    Counters::count(&link.counters.faults);
                    let record = decode(&event, raw, |endpoint, address| self.knowledge(endpoint, address));
                    report(UnitEvent::Fault(record));
                }
                Some(Event::Malformed) => Counters::count(&link.counters.malformed),
                None => break,
            }
        }
        let (notify, broken) = link.hal.critical(|| {
            let mut queue = link.events.lock();
            (queue.publish(), queue.is_broken())
        });
        if notify {
            link.transport.notify(QueueIndex::Events);
        }
        let status = link.transport.status();
        if (broken || status.contains(DeviceStatus::NEEDS_RESET)) && link.first_failure() {
            link.set_faulted();
            report(UnitEvent::UnitError { name: "DEVICE_NEEDS_RESET", value: status.bits().into() });
        }
    }

    fn stats(&self) -> UnitStats {
        let counters = &self.link().counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        UnitStats {
            domains: read(&counters.domains),
            attaches: read(&counters.attaches),
            faults: read(&counters.faults),
            overflows: 0,
            invalidations: read(&counters.requests),
            syncs: read(&counters.syncs),
            doorbells: read(&counters.notifications),
            queue_errors: self.link().queue(|queue| queue.strays() + u64::from(queue.is_broken())),
            ..UnitStats::default()
        }
    }

    fn describe_entry(&self, endpoint: EndpointId, out: &mut dyn fmt::Write) -> fmt::Result {
        let limits = &self.link().limits;
        match &self.state.get(endpoint) {
            None => writeln!(out, "attached: no"),
            Some(Kind::Blocked) => writeln!(out, "attached: blocked\ndomain: {}", limits.blocked.0),
            Some(Kind::Identity) => {
                writeln!(out, "attached: identity")?;
                limits.identity.map_or(Ok(()), |id| writeln!(out, "domain: {}", id.0))
            }
            Some(kind @ (Kind::Direct(space) | Kind::Paging(space))) => {
                let (mappings, endpoints) =
                    space.mappings(|mappings| (mappings.intervals.len(), mappings.endpoints));
                let what = if matches!(kind, Kind::Direct(_)) { "identity" } else { "paging" };
                writeln!(out, "attached: {what}\ndomain: {}", space.id.0)?;
                writeln!(out, "endpoints: {endpoints}\nmappings: {mappings}")
            }
        }
    }

    fn describe_registers(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let link = self.link();
        let limits = &link.limits;
        writeln!(out, "device_status: {:?}", link.transport.status())?;
        writeln!(out, "offered_features: {:#x}", link.transport.device_features())?;
        writeln!(out, "features: {:?}", limits.features)?;
        writeln!(out, "page_size_mask: {:#x}", limits.page_sizes)?;
        writeln!(out, "input_range: {}", limits.aperture)?;
        writeln!(out, "blocked_domain: {}", limits.blocked.0)?;
        if let Some(identity) = limits.identity {
            writeln!(out, "identity_domain: {}", identity.0)?;
        }
        writeln!(out, "requests_in_flight: {}", link.queue(|queue| RequestQueue::in_flight(queue)))
    }
}
