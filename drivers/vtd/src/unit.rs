//! The driver's state.

use crate::InterruptError;
use crate::domain::PagingDomain;
use crate::endpoint::Endpoint;
use crate::features::Features;
use crate::forget::all_of;
use crate::invalidate::{Descriptor, RID_PASID};
use crate::page_requests::{Counters as PageCounters, PageRequests};
use crate::permit::Nowhere;
use crate::queue::{Batch, Queue, Ticket, Unsubmitted};
use crate::registers::Registers;
use crate::tables::Table;
use crate::tags::Tags;
use alloc::vec::Vec;
use core::any::Any;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use portcullis_hal::wait::Timeout;
use portcullis_hal::{
    Arc, EndpointId, Hal, Mmio, MsiMessage, OutOfMemory, Pasid, SyncError, TableRoot, unsize_arc,
};
use portcullis_iommu::{
    AttachError, Domain, DomainError, DomainSpec, IdPool, Missing, PageAnswer, PageRequestFlow, Permissions,
    Transition, Unit, UnitEvent, UnitInfo, UnitStats,
};
use spin::{Mutex, Once};

/// A unit that is in use.
///
/// Clones share the unit. Dropping the last one leaves the hardware as it is, denying what was not attached, and its
/// tables allocated.
pub struct Driver<H: Hal, M: Mmio + 'static> {
    pub(crate) inner: Arc<Inner<H, M>>,
}

impl<H: Hal, M: Mmio + 'static> Clone for Driver<H, M> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

/// What the clones of a driver, and the domains in use on the unit, share.
pub(crate) struct Inner<H: Hal, M: Mmio> {
    pub(crate) registers: Registers<H, M>,
    pub(crate) features: Features,
    pub(crate) info: UnitInfo,
    pub(crate) queue: Queue<H>,
    /// Where devices' page requests arrive, if the unit takes any.
    pub(crate) page_requests: Option<PageRequests<H>>,
    /// The root table: one quantum per bus.
    pub(crate) root: Table<H>,
    pub(crate) state: Mutex<State<H>>,
    /// Held by whoever drains the fault recording registers.
    pub(crate) draining: Mutex<()>,
    /// Set when the hardware did not answer, or refused to forget what it knew: the unit takes only blocking from
    /// then on.
    fault: Once<Timeout>,
    pub(crate) counters: Counters,
}

/// Counters besides the queue's.
#[derive(Default)]
pub(crate) struct Counters {
    domains: AtomicU64,
    pub(crate) attaches: AtomicU64,
    pub(crate) faults: AtomicU64,
    pub(crate) overflows: AtomicU64,
}

/// What the attachment lock protects.
pub(crate) struct State<H: Hal> {
    pub(crate) tags: Tags,
    /// Context tables, by bus and half of the bus, in order.
    pub(crate) contexts: Vec<(u16, Table<H>)>,
    /// Endpoints, by source-id, in order.
    pub(crate) endpoints: Vec<Endpoint<H>>,
    pub(crate) nowhere: Option<Nowhere<H>>,
}

impl<H: Hal> State<H> {
    pub(crate) fn endpoint(&self, sid: u16) -> Option<&Endpoint<H>> {
        let index = self.endpoints.binary_search_by_key(&sid, |endpoint| endpoint.sid).ok()?;
        self.endpoints.get(index)
    }

    pub(crate) fn endpoint_mut(&mut self, sid: u16) -> Option<&mut Endpoint<H>> {
        let index = self.endpoints.binary_search_by_key(&sid, |endpoint| endpoint.sid).ok()?;
        self.endpoints.get_mut(index)
    }

    /// The context table of an endpoint, and its entry's number there.
    pub(crate) fn context(&self, sid: u16) -> Option<(&Table<H>, usize)> {
        let (key, entry) = context_place(sid);
        let index = self.contexts.binary_search_by_key(&key, |&(key, _)| key).ok()?;
        self.contexts.get(index).map(|(_, table)| (table, entry))
    }
}

/// The number of an endpoint's context table, two for each bus, and of its entry there.
pub(crate) fn context_place(sid: u16) -> (u16, usize) {
    (sid >> 7, usize::from(sid & 0x7f))
}

impl<H: Hal, M: Mmio + 'static> Inner<H, M> {
    pub(crate) fn new(
        registers: Registers<H, M>,
        features: Features,
        queue: Queue<H>,
        page_requests: Option<PageRequests<H>>,
        root: Table<H>,
        ids: IdPool,
    ) -> Self {
        Self {
            registers,
            info: features.unit_info(),
            features,
            queue,
            page_requests,
            root,
            state: Mutex::new(State {
                tags: Tags::new(ids),
                contexts: Vec::new(),
                endpoints: Vec::new(),
                nowhere: None,
            }),
            draining: Mutex::new(()),
            fault: Once::new(),
            counters: Counters::default(),
        }
    }

    pub(crate) fn hal(&self) -> &H {
        self.registers.hal()
    }

    #[inline]
    pub(crate) fn is_faulted(&self) -> bool {
        self.fault.is_completed()
    }

    /// What the hardware did not answer, if it once did not.
    pub(crate) fn fault(&self) -> Option<Timeout> {
        self.fault.get().copied()
    }

    /// Notes what a failed sync says of the unit, and passes it on.
    #[cold]
    pub(crate) fn failed(&self, error: SyncError) -> SyncError {
        if let SyncError::Timeout(timeout) = error {
            self.out_of_order(timeout);
        }
        error
    }

    fn out_of_order(&self, timeout: Timeout) {
        self.fault.call_once(|| {
            log::error!("VT-d: the unit does not answer, it takes only blocking from now on: {timeout}");
            timeout
        });
    }

    /// Submits a batch.
    pub(crate) fn submit(&self, batch: impl Batch) -> Result<Ticket, SyncError> {
        if self.is_faulted() {
            return Err(SyncError::Faulted);
        }
        self.queue.submit(&self.registers, batch).map_err(|timeout| self.failed(timeout.into()))
    }

    /// Returns when a batch has completed.
    pub(crate) fn wait(&self, ticket: Ticket) -> Result<(), SyncError> {
        self.queue.wait(&self.registers, ticket).map_err(|error| self.failed(error))
    }

    /// Submits a batch and waits for it.
    pub(crate) fn run(&self, batch: impl Batch) -> Result<(), SyncError> {
        if self.is_faulted() {
            return Err(SyncError::Faulted);
        }
        self.queue.run(&self.registers, batch).map_err(|error| self.failed(error))
    }

    /// Does the rest of a submission.
    pub(crate) fn submit_on(&self, unsubmitted: Unsubmitted<impl Batch>) -> Result<Ticket, SyncError> {
        self.queue.submit_on(&self.registers, unsubmitted).map_err(|timeout| self.failed(timeout.into()))
    }

    /// As [`run`](Self::run), for changes of entries: if the unit refuses a descriptor, it is told to forget everything
    /// instead. If it refuses that too, it is out of order from then on.
    pub(crate) fn run_or_forget(&self, batch: &[Descriptor]) -> Result<(), SyncError> {
        match self.run(batch.iter().copied()) {
            Err(SyncError::Faulted) if !self.is_faulted() => {}
            result => return result,
        }
        let result = self.run(all_of(&self.features, batch).descriptors().iter().copied());
        if result == Err(SyncError::Faulted) {
            self.out_of_order(self.queue.last_error());
        }
        result
    }
}

impl<H: Hal, M: Mmio + 'static> Driver<H, M> {
    /// The unit for [`Iommu::add_unit`](portcullis_iommu::Iommu::add_unit).
    ///
    /// # Errors
    ///
    /// No memory for another handle.
    pub fn unit(&self) -> Result<Arc<dyn Unit>, OutOfMemory> {
        let unit = Arc::try_new(self.clone())?;
        Ok(unsize_arc!(unit => dyn Unit))
    }

    /// The unit's capabilities.
    pub fn features(&self) -> &Features {
        &self.inner.features
    }

    /// How often a reservation of queue slots was made again since start-up: because the queue was full, or because it
    /// was the one that found out that it is not.
    pub fn queue_retries(&self) -> u64 {
        self.inner.queue.counters.retries.load(Ordering::Relaxed)
    }

    /// Programs the fault event (11.4.7.2 to 11.4.7.5) and, if the unit has one, the page request event (11.4.11.5 to
    /// 11.4.11.8), and unmasks them. To be called when the handler of the interrupt is registered: an event may come at
    /// once, for what happened before.
    ///
    /// # Errors
    ///
    /// The message does not fit the unit's registers; then the event stays masked.
    pub fn enable_interrupts(&self, message: MsiMessage) -> Result<(), InterruptError> {
        self.inner.enable_events(message)
    }
}

impl<H: Hal, M: Mmio + 'static> Unit for Driver<H, M> {
    fn info(&self) -> &UnitInfo {
        &self.inner.info
    }

    fn new_domain(&self, spec: &DomainSpec) -> Result<Arc<dyn Domain>, DomainError> {
        self.inner.new_domain(spec)
    }

    fn missing_for(&self, root: &TableRoot) -> Missing {
        self.inner.features.missing_for(root)
    }

    fn attach(&self, endpoints: &[EndpointId], domain: &Arc<dyn Domain>) -> Result<Transition, AttachError> {
        Inner::attach(&self.inner, endpoints, RID_PASID, domain)
    }

    fn detach(&self, endpoints: &[EndpointId]) -> Result<(), AttachError> {
        Inner::detach(&self.inner, endpoints)
    }

    fn permit(&self, endpoints: &[EndpointId], permissions: &Permissions) -> Result<Transition, AttachError> {
        Inner::permit(&self.inner, endpoints, permissions)
    }

    fn attach_pasid(
        &self,
        endpoints: &[EndpointId],
        pasid: Pasid,
        domain: &Arc<dyn Domain>,
    ) -> Result<Transition, AttachError> {
        Inner::attach(&self.inner, endpoints, pasid.get(), domain)
    }

    fn detach_pasid(&self, endpoints: &[EndpointId], pasid: Pasid) -> Result<(), AttachError> {
        Inner::detach_pasid(&self.inner, endpoints, pasid.get())
    }

    fn handle_interrupt(&self, report: &mut dyn FnMut(UnitEvent)) {
        self.inner.drain_faults(report);
        self.inner.read_page_requests(report);
    }

    fn set_page_request_flow(&self, flow: PageRequestFlow) {
        self.inner.set_page_request_flow(flow);
    }

    fn answer(&self, answers: &[PageAnswer]) -> Result<(), SyncError> {
        self.inner.answer(answers)
    }

    fn drain_page_requests(
        &self,
        endpoints: &[EndpointId],
        report: &mut dyn FnMut(UnitEvent),
    ) -> Result<(), SyncError> {
        self.inner.drain_page_requests(endpoints, report)
    }

    fn stats(&self) -> UnitStats {
        let inner = &self.inner;
        let told = inner.queue.totals();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let pages = inner.page_requests.as_ref().map(|requests| &requests.counters);
        let of_pages = |counter: fn(&PageCounters) -> &AtomicU64| pages.map_or(0, |all| read(counter(all)));
        UnitStats {
            domains: read(&inner.counters.domains),
            attaches: read(&inner.counters.attaches),
            faults: read(&inner.counters.faults),
            overflows: read(&inner.counters.overflows) + of_pages(|all| &all.overflows),
            invalidations: told.invalidations,
            syncs: told.syncs,
            doorbells: told.doorbells,
            queue_errors: read(&inner.queue.counters.errors),
            page_requests: of_pages(|all| &all.requests),
            answers: of_pages(|all| &all.answers),
        }
    }

    fn describe_entry(&self, endpoint: EndpointId, out: &mut dyn fmt::Write) -> fmt::Result {
        self.inner.describe_entry(endpoint, out)
    }

    fn describe_pasid(&self, endpoint: EndpointId, pasid: Pasid, out: &mut dyn fmt::Write) -> fmt::Result {
        self.inner.describe_pasid(endpoint, pasid.get(), out)
    }

    fn describe_registers(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.inner.describe_registers(out)
    }
}

impl<H: Hal, M: Mmio + 'static> Inner<H, M> {
    pub(crate) fn new_domain(&self, spec: &DomainSpec) -> Result<Arc<dyn Domain>, DomainError> {
        let domain = PagingDomain::<H, M>::new(self.hal(), &self.features, spec)?;
        let domain = Arc::try_new(domain).map_err(|OutOfMemory| OutOfMemory)?;
        self.counters.domains.fetch_add(1, Ordering::Relaxed);
        Ok(unsize_arc!(domain => dyn Domain))
    }
}

/// The driver's own view of a domain, if it is one of this driver's.
pub(crate) fn concrete<H: Hal, M: Mmio + 'static>(domain: &Arc<dyn Domain>) -> Option<&PagingDomain<H, M>> {
    let any: &dyn Any = &**domain;
    any.downcast_ref()
}
