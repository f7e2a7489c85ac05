//! A machine with one unit, for the behavioural tests.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

pub mod fake;

use fake::FakeUnit;
use portcullis_hal::host::HostHal;
use portcullis_hal::{
    Arc, Attributes, EndpointId, FixedMapping, FrameOrder, Frames, Gather, Iova, IovaRange, MapError, Mapped,
    Mapping, PhysAddr, PhysRange,
};
use portcullis_iommu::{Domain, DomainSpec, PagingSpec, Stage, Unit, UnitEvent};
use portcullis_vtd::{Driver, Options, Setup};

pub type FakeDriver = Driver<HostHal, FakeUnit>;

pub struct Machine {
    pub hal: HostHal,
    pub fake: FakeUnit,
    pub driver: FakeDriver,
}

/// Options with a short patience and the smallest queue.
pub fn options() -> Options {
    Options { timeout_ns: 30_000_000, queue: FrameOrder::SINGLE, ..Options::new(48) }
}

impl Machine {
    pub fn new(registers: (u64, u64)) -> Self {
        let hal = HostHal::new();
        let fake = FakeUnit::new(&hal, registers);
        Self::with(hal, fake)
    }

    pub fn with(hal: HostHal, fake: FakeUnit) -> Self {
        let driver = Setup::new(hal.clone(), fake.clone(), options()).unwrap().enable().unwrap();
        Self { hal, fake, driver }
    }

    pub fn paging(&self) -> Arc<dyn Domain> {
        self.driver.new_domain(&DomainSpec::Paging(PagingSpec::default())).unwrap()
    }

    pub fn of_stage(&self, stage: Stage) -> Arc<dyn Domain> {
        let spec = PagingSpec { stage: Some(stage), ..PagingSpec::default() };
        self.driver.new_domain(&DomainSpec::Paging(spec)).unwrap()
    }

    pub fn identity(&self) -> Arc<dyn Domain> {
        self.driver.new_domain(&DomainSpec::Identity(portcullis_hal::host::IDENTITY)).unwrap()
    }

    pub fn blocked(&self) -> Arc<dyn Domain> {
        self.driver.new_domain(&DomainSpec::Blocked).unwrap()
    }

    /// Maps fresh frames.
    pub fn map(
        &self,
        domain: &Arc<dyn Domain>,
        iova: u64,
        attributes: Attributes,
    ) -> Mapped<Frames<HostHal>, dyn Domain> {
        let frames = Frames::zeroed(&self.hal, FrameOrder::SINGLE).unwrap();
        Mapped::map(domain, Iova::new(iova), frames, attributes).unwrap()
    }

    pub fn events(&self) -> Vec<UnitEvent> {
        let mut events = Vec::new();
        self.driver.handle_interrupt(&mut |event| events.push(event));
        events
    }
}

pub fn endpoint(sid: u16) -> [EndpointId; 1] {
    [EndpointId::new(u32::from(sid))]
}

/// Maps one page at an address of its own, which is no memory: only translations are looked at.
pub fn map_page(domain: &Arc<dyn Domain>, iova: u64, phys: u64) -> Result<(), MapError> {
    fixed(iova, phys, 0x1000).map_into(&**domain)
}

pub fn fixed(iova: u64, phys: u64, len: u64) -> FixedMapping {
    let mapping = Mapping {
        iova: Iova::new(iova),
        memory: PhysRange::new(PhysAddr::new(phys), len).unwrap(),
        attributes: Attributes::READ_WRITE,
    };
    #[expect(unsafe_code, reason = "the tests' own contract")]
    // SAFETY: nothing accesses the memory, only its address is looked at.
    unsafe {
        FixedMapping::new(mapping)
    }
}

pub fn unmap(domain: &Arc<dyn Domain>, iova: u64, len: u64) -> u64 {
    let mut gather = Gather::new();
    let range = IovaRange::new(Iova::new(iova), len).unwrap();
    let bytes = portcullis_hal::host::unmap(&**domain, range, &mut gather).unwrap();
    let _proof = domain.sync(&mut gather).unwrap();
    bytes
}
