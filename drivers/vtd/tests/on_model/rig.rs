//! A driver on a modelled unit, to be led step by step.

use crate::bench::{Bench, Registers};
use crate::memory::Host;
use crate::world::options;
use portcullis_hal::{
    Arc, Attributes, EndpointId, FixedMapping, Gather, Iova, IovaRange, Mapping, Pasid, PhysAddr, PhysRange,
    host,
};
use portcullis_iommu::{Domain, DomainSpec, PagingSpec, Permissions, Requests, Stage, Transition, Unit};
use portcullis_model::core::{Outcome, Request};
use portcullis_model::device::Device;
use portcullis_model::vtd::{Config, Feature};
use portcullis_vtd::{Driver, Setup};

pub(crate) const SID: u16 = 0x0118;
pub(crate) const IOVA: u64 = 0x4000_3000;

pub(crate) struct Rig {
    pub(crate) bench: std::sync::Arc<Bench>,
    pub(crate) driver: Driver<Host, Registers>,
}

pub(crate) fn pasid(value: u32) -> Pasid {
    Pasid::new(value).expect("a PASID")
}

pub(crate) fn permissions(pasid_bits: u8, requests: Requests) -> Permissions {
    Permissions { pasid_bits, requests }
}

impl Rig {
    pub(crate) fn new(config: Config) -> Self {
        let bench = Bench::new(config, 1);
        let setup =
            Setup::new(bench.host.clone(), Registers(bench.clone()), options(&config)).expect("a unit");
        let driver = setup.enable().expect("a unit");
        Self { bench, driver }
    }

    pub(crate) fn frames(&self) -> usize {
        self.bench.host.hal().frames_in_use()
    }

    /// A domain of a stage with one page.
    pub(crate) fn domain(&self, stage: Stage, phys: u64) -> Arc<dyn Domain> {
        let spec = DomainSpec::Paging(PagingSpec { stage: Some(stage), ..PagingSpec::default() });
        let domain = self.driver.new_domain(&spec).expect("a domain");
        map(&domain, IOVA, phys);
        domain
    }

    pub(crate) fn permit(&self, sid: u16, pasid_bits: u8, requests: Requests) {
        let permissions = permissions(pasid_bits, requests);
        assert_eq!(self.driver.permit(&endpoint(sid), &permissions), Ok(Transition::Hitless));
    }

    pub(crate) fn attach_pasid(&self, sid: u16, at: u32, domain: &Arc<dyn Domain>) -> Transition {
        self.driver.attach_pasid(&endpoint(sid), pasid(at), domain).expect("an attachment")
    }

    /// All that a write with this PASID, or without one (0), can end with.
    pub(crate) fn reaches(&self, sid: u16, at: u32) -> Vec<Outcome> {
        let request = Request::write(u32::from(sid), IOVA);
        let request = if at == 0 { request } else { request.with_pasid(at) };
        // Hardware may have it cached from now on.
        self.bench.unit.watch(request);
        self.bench.unit.observe();
        self.bench.unit.reachable(request).into_iter().collect()
    }

    pub(crate) fn finish(self) {
        assert_eq!(self.bench.unit.take_violations(), []);
        assert_eq!(self.bench.host.take_troubles(), [""; 0]);
    }
}

pub(crate) fn endpoint(sid: u16) -> [EndpointId; 1] {
    [EndpointId::new(u32::from(sid))]
}

/// Maps a page.
pub(crate) fn map(domain: &Arc<dyn Domain>, iova: u64, phys: u64) {
    let memory = PhysRange::new(PhysAddr::new(phys), 0x1000).expect("a range");
    let mapping = Mapping { iova: Iova::new(iova), memory, attributes: Attributes::READ_WRITE };
    #[expect(unsafe_code, reason = "the memory is nobody's")]
    // SAFETY: nothing accesses the memory, only its address is looked at.
    let mapping = unsafe { FixedMapping::new(mapping) };
    mapping.map_into(&**domain).expect("room");
}

pub(crate) fn unmap(domain: &Arc<dyn Domain>) {
    let mut gather = Gather::new();
    let range = IovaRange::new(Iova::new(IOVA), 0x1000).expect("a range");
    assert_eq!(host::unmap(&**domain, range, &mut gather), Ok(0x1000));
    let _proof = domain.sync(&mut gather).expect("an answer");
}

/// Units with both stages, and what they lack or insist on.
pub(crate) fn units() -> [Config; 5] {
    [
        Config::full(),
        Config::full().with(Feature::CachingMode),
        Config::full().without(Feature::Coherent).without(Feature::PageWalkCoherent),
        Config::full().with(Feature::WriteBufferFlush),
        Config::full().without(Feature::Coherent).with(Feature::CachingMode).with_domain_ids(0),
    ]
}

/// Where writes end up.
pub(crate) fn done(phys: u64) -> Vec<Outcome> {
    vec![Outcome::Done(phys)]
}

pub(crate) fn fault(code: u8) -> Vec<Outcome> {
    vec![Outcome::Fault(code)]
}

/// A device that has ATS on, and caches what it is told.
pub(crate) fn device(rig: &Rig, sid: u16, pasid_bits: u8) -> std::sync::Arc<Device> {
    let link = rig.bench.unit.clone();
    let device = Device::new(u32::from(sid), link, rig.bench.schedule.clone(), false);
    device.set_pasid((pasid_bits > 0).then_some(pasid_bits));
    device.set_ats(true);
    let device = std::sync::Arc::new(device);
    rig.bench.add_device(device.clone());
    device
}
