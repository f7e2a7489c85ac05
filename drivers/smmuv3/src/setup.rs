//! Bringing a unit up (IHI 0070, 6.3 and 3.11; the order is that of chapter 6's initialisation notes).

use crate::attach::Attachments;
use crate::block::RegisterBlock;
use crate::command::Command;
use crate::domain::SmmuDomain;
use crate::driver::{Driver, Inner};
use crate::features::Features;
use crate::options::{InitError, Options};
use crate::port::{Health, Port};
use crate::spec::registers::{self, Cr0, Cr1, Cr2, EventqIndex, Gbpa, IrqCtrl, QueueBase};
use crate::spec::{Cacheability, Shareability};
use crate::stream::StreamTable;
use portcullis_hal::wait::Timeout;
use portcullis_hal::{Arc, EndpointId, FixedMapping, Hal, Mmio, OutOfMemory, PhysAddr, unsize_arc};
use portcullis_iommu::{Domain, DomainSpec, PagingSpec, ReserveError, UnitInfo};

/// A unit that denies all DMA and whose queues work; translation is not on yet.
///
/// Dropping it turns the queues off and leaves the unit denying.
pub struct Setup<H: Hal, M: Mmio + 'static> {
    inner: Arc<Inner<H, M>>,
}

impl<H: Hal, M: Mmio + 'static> Setup<H, M> {
    /// Probes the unit behind `mmio` and takes it over, in whatever state firmware left it.
    ///
    /// From the first register write on, the unit aborts what arrives. That includes DMA of devices with reserved
    /// regions, so [`reserve_direct`](Self::reserve_direct) and [`enable`](Self::enable) should follow soon.
    ///
    /// # Errors
    ///
    /// See [`InitError`]. The unit is left denying all DMA, unless it was refused as unsupported.
    pub fn new(hal: H, mmio: M, options: Options) -> Result<Self, InitError> {
        let features = Features::read(&mmio, &options)?;
        let info = features.unit_info();
        let block = RegisterBlock::new(hal, mmio, options.timeout_ns);
        deny(&block)?;
        let port = Port::new(block, features, &options)?;
        let streams = StreamTable::new(port.hal(), &port.features, &options)?;
        port.program(&streams)?;
        let attachments = Attachments::new(&port, streams)?;
        let port = Arc::try_new(port)?;
        let inner = Arc::try_new(Inner::new(port, info, attachments))?;
        inner.port().start_queues()?;
        Ok(Self { inner })
    }

    /// What the unit can do.
    pub fn info(&self) -> &UnitInfo {
        self.inner.info()
    }

    /// The capabilities in the hardware's own terms.
    pub fn features(&self) -> &Features {
        &self.inner.port().features
    }

    /// Gives a device's endpoints the direct maps that firmware asks for (RMR), so that they go on working when
    /// translation goes on. The mappings stand until the device is attached elsewhere or detached.
    pub fn reserve_direct(
        &mut self,
        endpoints: &[EndpointId],
        mappings: &[FixedMapping],
    ) -> Result<(), ReserveError> {
        let domain = self.inner.new_domain(&DomainSpec::Paging(PagingSpec::default()))?;
        for mapping in mappings {
            mapping.map_into(&*domain)?;
        }
        self.inner.attach(endpoints, &domain)?;
        Ok(())
    }

    /// Turns translation on. What is not attached is aborted and recorded.
    pub fn enable(self) -> Result<Driver<H, M>, InitError> {
        self.inner.port().enable_translation()?;
        Ok(Driver::new(self.inner))
    }
}

/// Lets the unit abort everything, and turns off what firmware may have left on.
fn deny<H: Hal, M: Mmio>(block: &RegisterBlock<H, M>) -> Result<(), Timeout> {
    const UPDATE: u32 = 1 << 31;
    block.wait(registers::GBPA, UPDATE, 0)?;
    let gbpa = Gbpa::from(block.read(registers::GBPA)).with_abort(true).with_update(true);
    block.write(registers::GBPA, gbpa.into());
    block.wait(registers::GBPA, UPDATE, 0)?;
    if Cr0::from(block.read(registers::CR0)).smmuen() {
        log::warn!("SMMUv3: firmware left translation on");
    }
    block.write_acknowledged(registers::IRQ_CTRL, registers::IRQ_CTRLACK, IrqCtrl::new().into())?;
    block.write_acknowledged(registers::CR0, registers::CR0ACK, Cr0::new().into())
}

impl<H: Hal, M: Mmio> Port<H, M> {
    /// Tells the unit where its tables and queues are. It is off.
    fn program(&self, streams: &StreamTable<H>) -> Result<(), OutOfMemory> {
        let cr1 = Cr1::new()
            .with_queue_ic(Cacheability::WRITE_BACK)
            .with_queue_oc(Cacheability::WRITE_BACK)
            .with_queue_sh(Shareability::INNER)
            .with_table_ic(Cacheability::WRITE_BACK)
            .with_table_oc(Cacheability::WRITE_BACK)
            .with_table_sh(Shareability::INNER);
        self.block.write(registers::CR1, cr1.into());
        // Without broadcasts there is nothing to keep out of, and PTM is reserved.
        let cr2 = Cr2::new().with_ptm(self.features.btm).with_recinvsid(true);
        self.block.write(registers::CR2, cr2.into());

        self.block.write64(registers::STRTAB_BASE, streams.base().into());
        self.block.write(registers::STRTAB_BASE_CFG, streams.config().into());

        let commands = self.commands.phys().ok_or(OutOfMemory)?;
        let base = queue_base(commands, self.commands.size().log2());
        self.block.write64(registers::CMDQ_BASE, base.into());
        self.block.write(registers::CMDQ_PROD, 0);
        self.block.write(registers::CMDQ_CONS, 0);

        let events = self.events.phys().ok_or(OutOfMemory)?;
        let base = queue_base(events, self.events.size().log2());
        self.block.write64(registers::EVENTQ_BASE, base.into());
        self.block.write(registers::EVENTQ_PROD, EventqIndex::new().into());
        self.block.write(registers::EVENTQ_CONS, EventqIndex::new().into());

        if let Some(requests) = &self.page_requests {
            let base = queue_base(requests.phys().ok_or(OutOfMemory)?, requests.size().log2());
            self.block.write64(registers::PRIQ_BASE, base.into());
            self.block.write(registers::PRIQ_PROD, EventqIndex::new().into());
            self.block.write(registers::PRIQ_CONS, EventqIndex::new().into());
        }

        // Errors of an earlier life.
        self.acknowledge_errors(|active| active);
        Ok(())
    }

    /// Enables the queues, and lets the unit forget all that it may have cached.
    fn start_queues(&self) -> Result<(), InitError> {
        // From now on the unit may use the queues' memory.
        self.set_health(Health::Running);
        let cr0 = Cr0::new().with_cmdqen(true);
        self.block.write_acknowledged(registers::CR0, registers::CR0ACK, cr0.into())?;
        self.execute(&[Command::cfgi_all()])?;
        if self.features.hyp {
            self.execute(&[Command::tlbi_el2_all()])?;
        }
        self.execute(&[Command::tlbi_nsnh_all()])?;
        let cr0 = cr0.with_eventqen(true);
        self.block.write_acknowledged(registers::CR0, registers::CR0ACK, cr0.into())?;
        if self.page_requests.is_some() {
            let cr0 = cr0.with_priqen(true);
            self.block.write_acknowledged(registers::CR0, registers::CR0ACK, cr0.into())?;
        }
        Ok(())
    }

    fn enable_translation(&self) -> Result<(), Timeout> {
        let cr0 = Cr0::new()
            .with_cmdqen(true)
            .with_eventqen(true)
            .with_priqen(self.page_requests.is_some())
            .with_atschk(self.features.ats);
        if self.features.ats {
            // Accesses by translated addresses are for streams whose entry allows them (3.9.1); before the first one.
            self.block.write_acknowledged(registers::CR0, registers::CR0ACK, cr0.into())?;
        }
        let cr0 = cr0.with_smmuen(true);
        self.block.write_acknowledged(registers::CR0, registers::CR0ACK, cr0.into())
    }
}

fn queue_base(address: PhysAddr, log2size: u8) -> QueueBase {
    QueueBase::new().with_addr(address.get() >> 5).with_log2size(log2size).with_alloc(true)
}

/// The domain as the common layer holds it.
pub(crate) fn share<H: Hal, M: Mmio + 'static>(
    domain: SmmuDomain<H, M>,
) -> Result<Arc<dyn Domain>, OutOfMemory> {
    let domain = Arc::try_new(domain)?;
    Ok(unsize_arc!(domain => dyn Domain))
}
