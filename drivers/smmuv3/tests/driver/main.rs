//! The driver against a small unit that plays hardware.

mod attach;
mod bring_up;
mod fake;
mod memory;
mod notifier;
mod queue;

use fake::{Dma, Fake};
use portcullis_hal::host::HostHal;
use portcullis_hal::{
    Arc, Attributes, EndpointId, FrameOrder, Frames, Gather, Iova, IovaRange, Mapped, SyncError,
};
use portcullis_iommu::{Domain, DomainSpec, PagingSpec, Stage, Unit, UnitEvent};
use portcullis_smmuv3::{Driver, Options, Setup};

/// A time-out that no busy machine reaches.
fn options() -> Options {
    Options { timeout_ns: 60_000_000_000, ..Options::default() }
}

/// A short one, for units that do not answer at all.
fn hasty() -> Options {
    Options { timeout_ns: 20_000_000, ..Options::default() }
}

/// A unit that is up.
struct Bench {
    hal: HostHal,
    fake: Fake,
    driver: Driver<HostHal, Fake>,
}

impl Bench {
    fn new() -> Self {
        Self::with(options(), |_| {})
    }

    fn with(options: Options, change: impl FnOnce(&Fake)) -> Self {
        let hal = HostHal::new();
        let fake = Fake::new(&hal);
        change(&fake);
        let driver = Setup::new(hal.clone(), fake.clone(), options).unwrap().enable().unwrap();
        fake.opcodes();
        Self { hal, fake, driver }
    }

    fn paging(&self, stage: Stage) -> Arc<dyn Domain> {
        let spec = PagingSpec { stage: Some(stage), ..PagingSpec::default() };
        self.driver.new_domain(&DomainSpec::Paging(spec)).unwrap()
    }

    fn domain(&self, spec: DomainSpec) -> Arc<dyn Domain> {
        self.driver.new_domain(&spec).unwrap()
    }

    fn page(&self) -> Frames<HostHal> {
        Frames::zeroed(&self.hal, FrameOrder::SINGLE).unwrap()
    }

    fn map(&self, domain: &Arc<dyn Domain>, iova: u64) -> Mapped<Frames<HostHal>, dyn Domain> {
        Mapped::map(domain, Iova::new(iova), self.page(), Attributes::READ_WRITE).unwrap()
    }

    fn read(&self, stream: u32, iova: u64) -> Dma {
        self.fake.dma(stream, iova, false)
    }

    /// What the interrupt handler is told.
    fn events(&self) -> Vec<UnitEvent> {
        let mut events = Vec::new();
        self.driver.handle_interrupt(&mut |event| events.push(event));
        events
    }
}

fn endpoint(stream: u32) -> [EndpointId; 1] {
    [EndpointId::new(stream)]
}

fn done(memory: &Mapped<Frames<HostHal>, dyn Domain>) -> Dma {
    Dma::Done(memory.memory().phys().get())
}

/// Invalidates everything that a domain's units may have cached of `range`.
fn invalidate(domain: &Arc<dyn Domain>, start: u64, len: u64) -> Result<(), SyncError> {
    let mut gather = Gather::new();
    let range = IovaRange::new(Iova::new(start), len).unwrap();
    portcullis_hal::host::unmap(&**domain, range, &mut gather).unwrap();
    domain.sync(&mut gather).map(drop)
}
