//! Taking a unit over (section 11.4.4 and the start-up order of the stack).

use crate::InitError;
use crate::features::Features;
use crate::invalidate::{Descriptor, RID_PASID, everything};
use crate::page_requests::PageRequests;
use crate::queue::Queue;
use crate::registers::Registers;
use crate::ring::Ring;
use crate::spec::registers::{
    EventControl, FECTL, FSTS, FaultStatus, GSTS, Global, IECTL, IQA, IQH, IQT, PMEN, ProtectedMemory,
    QueueAddress, RTADDR, RootAddress, TableMode,
};
use crate::tables::{Table, reachable_frames};
use crate::unit::{Driver, Inner};
use portcullis_hal::{Arc, EndpointId, FixedMapping, FrameOrder, Hal, Mmio, SyncError, wait};
use portcullis_iommu::{DomainSpec, IdPool, PagingSpec, ReserveError};

/// What the embedder chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The width of physical addresses, in bits: the host address width of the DMAR table plus one. 52 at most.
    pub host_address_bits: u8,
    /// How long the unit may take for an answer, in nanoseconds.
    pub timeout_ns: u64,
    /// The size of the invalidation queue: 128 descriptors for each frame, 128 frames at most.
    pub queue: FrameOrder,
    /// The size of the page request queue, if the unit has one: 128 requests for each frame, 128 frames at most.
    pub page_requests: FrameOrder,
}

impl Options {
    /// A queue of 256 descriptors, one of 512 page requests, and answers within a second.
    pub const fn new(host_address_bits: u8) -> Self {
        const fn frames(order: u8) -> FrameOrder {
            match FrameOrder::new(order) {
                Some(order) => order,
                None => FrameOrder::SINGLE,
            }
        }
        Self { host_address_bits, timeout_ns: 1_000_000_000, queue: frames(1), page_requests: frames(2) }
    }
}

/// A unit whose tables and queue are ready, and which still translates as firmware left it.
///
/// Dropping it leaves it so, with its queue enabled and its tables allocated.
pub struct Setup<H: Hal, M: Mmio + 'static> {
    inner: Arc<Inner<H, M>>,
}

impl<H: Hal, M: Mmio + 'static> Setup<H, M> {
    /// Probes the unit, masks its events and enables the invalidation queue, on tables in which nothing is present.
    ///
    /// By now the kernel has cleared Bus Master Enable on every function without reserved memory. Firmware's
    /// translation, if it is on, stays on; interrupt remapping stays as it is.
    ///
    /// # Errors
    ///
    /// A unit that lacks what the driver needs is not touched. Where the unit does not answer, its queue stays
    /// allocated for ever.
    pub fn new(hal: H, mmio: M, options: Options) -> Result<Self, InitError> {
        let registers = Registers::new(hal, mmio, options.timeout_ns);
        let hal = registers.hal();
        let features = Features::probe(&registers, options.host_address_bits.min(52))?;
        let order = options.queue.min(FrameOrder::new(Ring::MAX_QS).unwrap_or(FrameOrder::SINGLE));
        let ring = Ring::new(order).ok_or(portcullis_hal::OutOfMemory)?;
        let ids = IdPool::new(1, features.last_domain_id())?;
        let root = Table::new(hal, &features, FrameOrder::SINGLE)?;
        let slots = reachable_frames(hal, &features, order)?;
        let status = reachable_frames(hal, &features, FrameOrder::SINGLE)?;
        let queue = Queue::new(ring, slots, status)?;
        let page_requests = PageRequests::new(hal, &features, options.page_requests)?;
        let inner = Arc::try_new(Inner::new(registers, features, queue, page_requests, root, ids))?;
        inner.start_queue()?;
        Ok(Self { inner })
    }

    /// The unit's capabilities.
    pub fn features(&self) -> &Features {
        &self.inner.features
    }

    /// Gives a device the mappings of its reserved regions (RMRR), so that it goes on when translation is switched.
    /// The device stays attached to a domain with these mappings and nothing else until it is attached to another.
    ///
    /// # Errors
    ///
    /// The device has no mappings then, and will be denied everything.
    pub fn reserve_direct(
        &self,
        endpoints: &[EndpointId],
        mappings: &[FixedMapping],
    ) -> Result<(), ReserveError> {
        let domain = self.inner.new_domain(&DomainSpec::Paging(PagingSpec::default()))?;
        for mapping in mappings {
            mapping.map_into(&*domain)?;
        }
        Inner::attach(&self.inner, endpoints, RID_PASID, &domain)?;
        Ok(())
    }

    /// Switches the unit to its new tables and turns translation on; protected memory regions are turned off last.
    ///
    /// Where firmware left translation on in scalable mode, the old tables are in force until the new ones are.
    /// Where it used another mode, which cannot be changed while translation is on (11.4.5), translation is off
    /// for the time between two register writes.
    ///
    /// # Errors
    ///
    /// The unit did not answer; it is in the state of the step that failed.
    pub fn enable(self) -> Result<Driver<H, M>, InitError> {
        let inner = self.inner;
        inner.set_root_table()?;
        inner.start_page_requests();
        inner.discard_faults();
        inner.registers.turn_on(Global::new().with_te(true))?;
        inner.disable_protected_memory()?;
        Ok(Driver { inner })
    }
}

impl<H: Hal, M: Mmio + 'static> Inner<H, M> {
    /// Enables the invalidation queue, after firmware's, if it left one.
    fn start_queue(&self) -> Result<(), InitError> {
        let registers = &self.registers;
        let masked = EventControl::new().with_im(true).into_bits();
        registers.write32(FECTL, masked);
        registers.write32(IECTL, masked);
        self.mask_page_request_event();
        let queue_on = Global::new().with_qie(true);
        let is_on = Global::from_bits(registers.read32(GSTS)).qie();
        let status = FaultStatus::from_bits(registers.read32(FSTS));
        if is_on && (status.iqe() || status.ite()) {
            // It stands (6.5.2.10). What is still in it must not be done when the error is cleared: the memory may be in
            // other use by now.
            registers.write64(IQT, registers.read64(IQH));
        }
        let stale = FaultStatus::new().with_iqe(true).with_ice(true).with_ite(true);
        registers.write32(FSTS, stale.into_bits());
        if is_on {
            // The hardware should be idle before the queue is disabled (6.5.2).
            let tail = registers.read64(IQT);
            let head = || registers.read64(IQH);
            if let Err(timeout) =
                wait::until(self.hal(), IQH.name, u64::MAX, tail, registers.timeout_ns(), head)
            {
                log::warn!(
                    "VT-d: firmware's invalidation queue is disabled in the middle of its work: {timeout}"
                );
            }
            registers.turn_off(queue_on)?;
            registers.write32(FSTS, stale.into_bits());
        }
        registers.write64(IQT, 0);
        let address = QueueAddress::new()
            .with_iqa(self.queue.publish().get() >> 12)
            .with_dw(true)
            .with_qs(self.queue.ring().qs());
        registers.write64(IQA, address.into_bits());
        registers.turn_on(queue_on)?;
        // A first wait proves that the queue works. It also lets a successor turn the queue off: QEMU refuses that
        // for a queue whose last descriptor was not a wait.
        self.run_first(&[])
    }

    /// Runs a batch before there is a driver.
    fn run_first(&self, batch: &[Descriptor]) -> Result<(), InitError> {
        self.run(batch.iter().copied()).map_err(|error| match error {
            SyncError::Timeout(timeout) => InitError::Timeout(timeout),
            SyncError::Faulted | SyncError::Gather(_) => InitError::Queue,
        })
    }

    /// Gives the unit its root table and makes it forget everything that it knows from an older one.
    fn set_root_table(&self) -> Result<(), InitError> {
        let registers = &self.registers;
        if self.features.cap.rwbf() {
            registers.flush_write_buffer()?;
        }
        let translating = Global::from_bits(registers.read32(GSTS)).te();
        let mode = RootAddress::from_bits(registers.read64(RTADDR)).ttm();
        if translating && mode != TableMode::SCALABLE {
            log::warn!(
                "VT-d: firmware left translation on in another mode; it is off while the mode changes"
            );
            registers.turn_off(Global::new().with_te(true))?;
        }
        let address = RootAddress::new().with_rta(self.root.publish()).with_ttm(TableMode::SCALABLE);
        registers.write64(RTADDR, address.into_bits());
        registers.set_root_pointer()?;
        if !self.features.cap.esrtps() {
            self.run_first(&everything(&self.features))?;
        }
        Ok(())
    }

    fn disable_protected_memory(&self) -> Result<(), InitError> {
        if !self.features.cap.plmr() && !self.features.cap.phmr() {
            return Ok(());
        }
        let now = ProtectedMemory::from_bits(self.registers.read32(PMEN));
        self.registers.write32(PMEN, now.with_epm(false).into_bits());
        let in_effect = ProtectedMemory::new().with_prs(true);
        self.registers.wait32(PMEN, in_effect.into_bits(), 0)?;
        Ok(())
    }
}
