//! The unit as the common layer sees it.

use crate::attach::Attachments;
use crate::domain::SmmuDomain;
use crate::entry::missing_for;
use crate::features::Features;
use crate::options::{InterruptError, Interrupts};
use crate::page_requests;
use crate::port::{Health, Port, count};
use crate::setup::share;
use crate::spec::registers::{self, Gerror, IrqCtrl};
use core::fmt;
use portcullis_hal::wait::Register;
use portcullis_hal::{
    Arc, EndpointId, Hal, Mmio, MsiMessage, OutOfMemory, Pasid, StreamId, SyncError, TableRoot, unsize_arc,
};
use portcullis_iommu::{
    AttachError, Domain, DomainError, DomainSpec, Missing, PageAnswer, PageRequestFlow, Permissions,
    Transition, Unit, UnitEvent, UnitInfo, UnitStats,
};
use spin::Mutex;

/// A unit and all that it owns. Dropping it stops the unit, which aborts all DMA from then on.
pub(crate) struct Inner<H: Hal, M: Mmio + 'static> {
    port: Arc<Port<H, M>>,
    info: UnitInfo,
    /// `None` once the unit could not be stopped and its tables were given up.
    attachments: Mutex<Option<Attachments<H, M>>>,
}

impl<H: Hal, M: Mmio + 'static> Inner<H, M> {
    pub(crate) fn new(port: Arc<Port<H, M>>, info: UnitInfo, attachments: Attachments<H, M>) -> Self {
        Self { port, info, attachments: Mutex::new(Some(attachments)) }
    }

    pub(crate) fn port(&self) -> &Arc<Port<H, M>> {
        &self.port
    }

    pub(crate) fn info(&self) -> &UnitInfo {
        &self.info
    }

    pub(crate) fn new_domain(&self, spec: &DomainSpec) -> Result<Arc<dyn Domain>, DomainError> {
        let domain: SmmuDomain<H, M> = SmmuDomain::new(self.port.hal(), &self.port.features, spec)?;
        let domain = share(domain)?;
        count(&self.port.counters.domains);
        Ok(domain)
    }

    pub(crate) fn attach(
        &self,
        endpoints: &[EndpointId],
        domain: &Arc<dyn Domain>,
    ) -> Result<Transition, AttachError> {
        self.with(|attachments, port| attachments.attach(port, endpoints, domain))
    }

    /// Looks at the attachments while nobody changes them.
    fn look<T>(&self, look: impl FnOnce(&Attachments<H, M>) -> T) -> Result<T, SyncError> {
        self.attachments.lock().as_ref().map(look).ok_or(SyncError::Faulted)
    }

    /// Changes attachments, one CPU at a time.
    fn with<T>(
        &self,
        change: impl FnOnce(&mut Attachments<H, M>, &Arc<Port<H, M>>) -> Result<T, AttachError>,
    ) -> Result<T, AttachError> {
        let mut attachments = self.attachments.lock();
        change(attachments.as_mut().ok_or(AttachError::Faulted)?, &self.port)
    }
}

impl<H: Hal, M: Mmio + 'static> Drop for Inner<H, M> {
    fn drop(&mut self) {
        if self.port.health() == Health::Off {
            return;
        }
        if let Err(error) = self.port.stop() {
            self.port.fault(&error);
            if let Some(mut attachments) = self.attachments.get_mut().take() {
                attachments.abandon();
                core::mem::forget(attachments);
            }
        }
    }
}

/// A working SMMUv3. Clones share the unit, which stops when the last one is dropped.
pub struct Driver<H: Hal, M: Mmio + 'static> {
    inner: Arc<Inner<H, M>>,
}

impl<H: Hal, M: Mmio + 'static> Clone for Driver<H, M> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<H: Hal, M: Mmio + 'static> Driver<H, M> {
    pub(crate) fn new(inner: Arc<Inner<H, M>>) -> Self {
        Self { inner }
    }

    /// The unit for [`Iommu::add_unit`](portcullis_iommu::Iommu::add_unit).
    pub fn unit(&self) -> Result<Arc<dyn Unit>, OutOfMemory> {
        let unit = Arc::try_new(self.clone())?;
        Ok(unsize_arc!(unit => dyn Unit))
    }

    /// The capabilities in the hardware's own terms.
    pub fn features(&self) -> &Features {
        &self.inner.port.features
    }

    /// Lets the unit interrupt. The kernel has registered a handler that calls
    /// [`Unit::handle_interrupt`], and calls it once itself afterwards: what was queued before raises no interrupt.
    ///
    /// # Errors
    ///
    /// MSIs were asked of a unit that has none, or the unit did not obey.
    pub fn enable_interrupts(&self, interrupts: Interrupts) -> Result<(), InterruptError> {
        let port = &self.inner.port;
        // The targets may be changed only while interrupts are off.
        let off = IrqCtrl::new();
        port.block.write_acknowledged(registers::IRQ_CTRL, registers::IRQ_CTRLACK, off.into())?;
        match interrupts {
            Interrupts::Wired if port.features.msi => {
                // An address of zero means the wire.
                port.block.write64(registers::EVENTQ_IRQ_CFG0, 0);
                port.block.write64(registers::GERROR_IRQ_CFG0, 0);
                if port.page_requests.is_some() {
                    port.block.write64(registers::PRIQ_IRQ_CFG0, 0);
                }
            }
            Interrupts::Wired => {}
            Interrupts::Msi { .. } if !port.features.msi => return Err(InterruptError::NoMsi),
            Interrupts::Msi { events, errors } => {
                let [address, data, attributes] = EVENT_MSI;
                port.program_msi(address, data, attributes, events);
                if port.page_requests.is_some() {
                    let [address, data, attributes] = PAGE_REQUEST_MSI;
                    port.program_msi(address, data, attributes, events);
                }
                let [address, data, attributes] = ERROR_MSI;
                port.program_msi(address, data, attributes, errors);
            }
        }
        let on =
            off.with_gerror_irqen(true).with_eventq_irqen(true).with_priq_irqen(port.page_requests.is_some());
        port.block.write_acknowledged(registers::IRQ_CTRL, registers::IRQ_CTRLACK, on.into())?;
        Ok(())
    }
}

const EVENT_MSI: [Register; 3] =
    [registers::EVENTQ_IRQ_CFG0, registers::EVENTQ_IRQ_CFG1, registers::EVENTQ_IRQ_CFG2];
const PAGE_REQUEST_MSI: [Register; 3] =
    [registers::PRIQ_IRQ_CFG0, registers::PRIQ_IRQ_CFG1, registers::PRIQ_IRQ_CFG2];
const ERROR_MSI: [Register; 3] =
    [registers::GERROR_IRQ_CFG0, registers::GERROR_IRQ_CFG1, registers::GERROR_IRQ_CFG2];

impl<H: Hal, M: Mmio> Port<H, M> {
    fn program_msi(&self, address: Register, data: Register, attributes: Register, message: MsiMessage) {
        /// Device-nGnRE, as the MemAttr field encodes it.
        const DEVICE_NGNRE: u32 = 0x1;
        self.block.write64(address, message.address.get());
        self.block.write(data, message.data);
        self.block.write(attributes, DEVICE_NGNRE);
    }

    /// Reports and acknowledges global errors. Those of the command queue are left to whoever waits for it.
    fn handle_errors(&self, report: &mut dyn FnMut(UnitEvent)) {
        let mut active = Gerror::new();
        let mut queue_errors = 0;
        self.acknowledge_errors(|now| {
            active = now;
            queue_errors = self.new_queue_errors(now);
            now.with_cmdq_err(false)
        });
        if active.eventq_abt_err() {
            // The event could not be written: lost, as for want of room (QEMU tells a full queue like this).
            count(&self.counters.overflows);
            report(UnitEvent::Overflow);
        }
        if active.sfm_err() {
            self.fault(&"the unit entered service failure mode");
        }
        let named = [
            (active.priq_abt_err(), "PRIQ_ABT_ERR"),
            (active.msi_cmdq_abt_err(), "MSI_CMDQ_ABT_ERR"),
            (active.msi_eventq_abt_err(), "MSI_EVENTQ_ABT_ERR"),
            (active.msi_priq_abt_err(), "MSI_PRIQ_ABT_ERR"),
            (active.msi_gerror_abt_err(), "MSI_GERROR_ABT_ERR"),
            (active.sfm_err(), "SFM_ERR"),
            (active.cmdqp_err(), "CMDQP_ERR"),
            (active.dpt_err(), "DPT_ERR"),
        ];
        for (_, name) in named.into_iter().filter(|(active, _)| *active) {
            report(UnitEvent::UnitError { name, value: active.into() });
        }
        for _ in 0..queue_errors {
            report(UnitEvent::QueueError);
        }
    }
}

impl<H: Hal, M: Mmio + 'static> Unit for Driver<H, M> {
    fn info(&self) -> &UnitInfo {
        self.inner.info()
    }

    fn new_domain(&self, spec: &DomainSpec) -> Result<Arc<dyn Domain>, DomainError> {
        self.inner.new_domain(spec)
    }

    fn missing_for(&self, root: &TableRoot) -> Missing {
        let (_, missing) = missing_for(root, &self.inner.port.features);
        missing
    }

    fn attach(&self, endpoints: &[EndpointId], domain: &Arc<dyn Domain>) -> Result<Transition, AttachError> {
        self.inner.attach(endpoints, domain)
    }

    fn detach(&self, endpoints: &[EndpointId]) -> Result<(), AttachError> {
        self.inner.with(|attachments, port| attachments.detach(port, endpoints))
    }

    fn permit(&self, endpoints: &[EndpointId], permissions: &Permissions) -> Result<Transition, AttachError> {
        self.inner.with(|attachments, port| attachments.permit(port, endpoints, permissions))
    }

    fn attach_pasid(
        &self,
        endpoints: &[EndpointId],
        pasid: Pasid,
        domain: &Arc<dyn Domain>,
    ) -> Result<Transition, AttachError> {
        self.inner.with(|attachments, port| attachments.attach_pasid(port, endpoints, pasid, domain))
    }

    fn detach_pasid(&self, endpoints: &[EndpointId], pasid: Pasid) -> Result<(), AttachError> {
        self.inner.with(|attachments, port| attachments.detach_pasid(port, endpoints, pasid))
    }

    fn handle_interrupt(&self, report: &mut dyn FnMut(UnitEvent)) {
        self.inner.port.read_queues(report);
        self.inner.port.handle_errors(report);
    }

    fn set_page_request_flow(&self, flow: PageRequestFlow) {
        self.inner.port.set_page_request_flow(flow);
    }

    fn answer(&self, answers: &[PageAnswer]) -> Result<(), SyncError> {
        self.inner.look(|attachments| attachments.answer(&self.inner.port, answers))?
    }

    fn drain_page_requests(
        &self,
        endpoints: &[EndpointId],
        report: &mut dyn FnMut(UnitEvent),
    ) -> Result<(), SyncError> {
        for together in endpoints.chunks(page_requests::together()) {
            let commands = self.inner.look(|attachments| attachments.drains(together))?;
            self.inner.port.drain(commands.get(), report)?;
        }
        Ok(())
    }

    fn stats(&self) -> UnitStats {
        self.inner.port.stats()
    }

    fn describe_entry(&self, endpoint: EndpointId, out: &mut dyn fmt::Write) -> fmt::Result {
        match self.inner.attachments.lock().as_ref() {
            Some(attachments) => attachments.describe(StreamId::new(endpoint.get()), out),
            None => writeln!(out, "unit: out of service"),
        }
    }

    fn describe_pasid(&self, endpoint: EndpointId, pasid: Pasid, out: &mut dyn fmt::Write) -> fmt::Result {
        match self.inner.attachments.lock().as_ref() {
            Some(attachments) => attachments.describe_pasid(StreamId::new(endpoint.get()), pasid, out),
            None => writeln!(out, "unit: out of service"),
        }
    }

    fn describe_registers(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.inner.port.describe_registers(out)
    }
}
