//! A unit that is told what its devices ask, and notes what it is told to do.
#![allow(dead_code, unsafe_code, reason = "each test binary uses a part of it")]

use core::fmt;
use portcullis_hal::host::HostHal;
use portcullis_hal::{
    Access, Arc, EndpointId, Gather, IoSpace, Iova, IovaRange, MapError, Mapping, PAGE_SIZE, Pasid,
    RequesterId, SyncError, SyncProof, TableRoot, TableWrites, Translated, UnmapError, unsize_arc,
};
use portcullis_iommu::*;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) type Log = std::sync::Arc<Mutex<Vec<String>>>;

/// A domain without a device behind it.
pub(crate) struct FakeDomain {
    kind: DomainKind,
    number: u32,
    log: Log,
}

// SAFETY: there is no device behind this space.
unsafe impl IoSpace for FakeDomain {
    fn aperture(&self) -> IovaRange {
        IovaRange::new(Iova::new(0), 1 << 39).unwrap()
    }
    fn page_sizes(&self) -> u64 {
        PAGE_SIZE
    }
    unsafe fn map(&self, _: &[Mapping]) -> Result<(), MapError> {
        Err(MapError::NotPaging)
    }
    unsafe fn unmap(&self, _: IovaRange, _: &mut Gather) -> Result<u64, UnmapError> {
        Err(UnmapError::NotPaging)
    }
    fn sync(&self, gather: &mut Gather) -> Result<SyncProof, SyncError> {
        let range = gather.range().map(|range| (range.start().get(), range.last().get()));
        self.log.lock().unwrap().push(format!("forget {}: {range:x?}", self.number));
        // SAFETY: there are no frames in the gather, and no device behind this space.
        Ok(unsafe { gather.finish(&HostHal::new()) })
    }
    fn iova_to_phys(&self, _: Iova) -> Option<Translated> {
        None
    }
}

impl Domain for FakeDomain {
    fn info(&self) -> DomainInfo {
        DomainInfo { kind: self.kind, stage: None, root: None }
    }
    fn describe(&self, _: &mut dyn fmt::Write) -> fmt::Result {
        Ok(())
    }
}

/// A domain of nobody's.
pub(crate) fn nowhere() -> Arc<dyn Domain> {
    let domain = FakeDomain { kind: DomainKind::Paging, number: 0, log: Log::default() };
    unsize_arc!(Arc::try_new(domain).unwrap() => dyn Domain)
}

/// What a device does when it has an answer.
pub(crate) type OnAnswer = std::sync::Arc<dyn Fn(&PageAnswer) + Send + Sync>;

#[derive(Default)]
pub(crate) struct Wires {
    /// What the hardware reports next.
    pub(crate) events: Vec<UnitEvent>,
    /// What it has besides, and reports only when it is drained.
    pub(crate) held: Vec<UnitEvent>,
    /// Requests that want an answer.
    pub(crate) asked: Vec<PageAnswer>,
    /// Answers given.
    pub(crate) answered: Vec<PageAnswer>,
    /// How many answers each submission had.
    pub(crate) batches: Vec<usize>,
    /// What is in `events` stays there.
    paused: bool,
    /// A drain reports a record: locks are held, and interrupts are masked.
    reporting: bool,
    pub(crate) on_answer: Option<OnAnswer>,
    /// The call that fails.
    pub(crate) fails: &'static str,
    /// The answer to attachments of PASIDs.
    pub(crate) refuses: Option<AttachError>,
    domains: u32,
}

pub(crate) struct FakeUnit {
    pub(crate) info: UnitInfo,
    pub(crate) log: Log,
    pub(crate) wires: Mutex<Wires>,
}

impl FakeUnit {
    pub(crate) fn wires(&self) -> MutexGuard<'_, Wires> {
        // A test that failed still drops what it has.
        self.wires.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, call: String) -> Result<(), SyncError> {
        let fails = call.starts_with(self.wires().fails) && !self.wires().fails.is_empty();
        self.log.lock().unwrap().push(call);
        if fails { Err(SyncError::Faulted) } else { Ok(()) }
    }

    /// A device asks.
    pub(crate) fn ask(&self, request: PageRequest) {
        let mut wires = self.wires();
        owe(&mut wires, &request);
        wires.events.push(UnitEvent::PageRequest(request));
    }

    /// A device asks, and the request stays in the hardware until it is drained.
    pub(crate) fn hold(&self, request: PageRequest) {
        let mut wires = self.wires();
        owe(&mut wires, &request);
        wires.held.push(UnitEvent::PageRequest(request));
    }
}

fn owe(wires: &mut Wires, request: &PageRequest) {
    let to = match request.kind {
        PageRequestKind::Group(index, InGroup::Last) => Answered::Group(index),
        PageRequestKind::Stall(tag) => Answered::Stall(tag),
        _ => return,
    };
    let (endpoint, pasid) = (request.endpoint, request.pasid);
    wires.asked.push(PageAnswer { endpoint, pasid, to, response: PageResponse::Success });
}

impl Unit for FakeUnit {
    fn info(&self) -> &UnitInfo {
        &self.info
    }
    fn new_domain(&self, spec: &DomainSpec) -> Result<Arc<dyn Domain>, DomainError> {
        let mut wires = self.wires();
        let kind = match spec {
            DomainSpec::Blocked => DomainKind::Blocked,
            DomainSpec::Shared(table) => match self.missing_for(table.root()) {
                missing if missing.is_empty() => DomainKind::Shared,
                missing => return Err(DomainError::Unsupported { missing }),
            },
            _ => DomainKind::Paging,
        };
        wires.domains += 1;
        let domain = FakeDomain { kind, number: wires.domains, log: self.log.clone() };
        Ok(unsize_arc!(Arc::try_new(domain)? => dyn Domain))
    }
    fn missing_for(&self, root: &TableRoot) -> Missing {
        let mut missing = Missing::empty();
        let cached = root.writes == TableWrites::Cached;
        missing
            .set(Missing::COHERENT_WALKS, cached && self.info.table_coherency == WalkCoherency::NotSnooped);
        missing.set(Missing::OUTPUT_WIDTH, root.output_bits > self.info.output_bits);
        missing
    }
    fn attach(&self, ids: &[EndpointId], domain: &Arc<dyn Domain>) -> Result<Transition, AttachError> {
        self.note(format!("attach {} {}", ids[0], domain.info().kind))?;
        Ok(Transition::Hitless)
    }
    fn detach(&self, ids: &[EndpointId]) -> Result<(), AttachError> {
        Ok(self.note(format!("detach {}", ids[0]))?)
    }
    fn permit(&self, ids: &[EndpointId], permissions: &Permissions) -> Result<Transition, AttachError> {
        self.note(format!("permit {} {}", ids[0], permissions.pasid_bits))?;
        Ok(Transition::Hitless)
    }
    fn attach_pasid(
        &self,
        ids: &[EndpointId],
        pasid: Pasid,
        domain: &Arc<dyn Domain>,
    ) -> Result<Transition, AttachError> {
        if let Some(error) = self.wires().refuses {
            return Err(error);
        }
        self.note(format!("attach {}.{pasid} {}", ids[0], domain.info().kind))?;
        Ok(Transition::Hitless)
    }
    fn detach_pasid(&self, ids: &[EndpointId], pasid: Pasid) -> Result<(), AttachError> {
        Ok(self.note(format!("detach {}.{pasid}", ids[0]))?)
    }
    fn handle_interrupt(&self, report: &mut dyn FnMut(UnitEvent)) {
        let mut events = std::mem::take(&mut self.wires().events).into_iter();
        while !self.wires().paused {
            let Some(event) = events.next() else { return };
            report(event);
        }
        self.wires().events.splice(0..0, events);
        report(UnitEvent::Unread);
    }
    fn set_page_request_flow(&self, flow: PageRequestFlow) {
        self.wires().paused = flow == PageRequestFlow::Held;
    }
    fn answer(&self, answers: &[PageAnswer]) -> Result<(), SyncError> {
        let mut wires = self.wires();
        assert!(!wires.reporting, "the hardware is waited for with its queue locked");
        wires.batches.push(answers.len());
        for answer in answers {
            let same = |asked: &PageAnswer| {
                // A stalled transaction is known by its tag alone.
                let stalled = matches!(answer.to, Answered::Stall(_));
                (asked.endpoint, asked.to) == (answer.endpoint, answer.to)
                    && (stalled || asked.pasid == answer.pasid)
            };
            let at = wires.asked.iter().position(same);
            let Some(at) = at else {
                assert!(std::thread::panicking(), "nobody asked for {answer:?}, or it was answered already");
                continue;
            };
            wires.asked.swap_remove(at);
            wires.answered.push(*answer);
        }
        let on_answer = wires.on_answer.clone();
        drop(wires);
        if let Some(on_answer) = on_answer {
            answers.iter().for_each(|answer| on_answer(answer));
        }
        Ok(())
    }
    fn drain_page_requests(
        &self,
        ids: &[EndpointId],
        report: &mut dyn FnMut(UnitEvent),
    ) -> Result<(), SyncError> {
        let (events, held) = {
            let mut wires = self.wires();
            (std::mem::take(&mut wires.events), std::mem::take(&mut wires.held))
        };
        for event in events.into_iter().chain(held) {
            for _ in 0..10 {
                if self.wires().paused {
                    report(UnitEvent::Unread);
                }
            }
            assert!(!self.wires().paused, "nobody lets requests flow again");
            self.wires().reporting = true;
            report(event);
            self.wires().reporting = false;
        }
        self.note(format!("drain {}", ids[0]))
    }
    fn stats(&self) -> UnitStats {
        UnitStats::default()
    }
    fn describe_entry(&self, _: EndpointId, _: &mut dyn fmt::Write) -> fmt::Result {
        Ok(())
    }
    fn describe_registers(&self, _: &mut dyn fmt::Write) -> fmt::Result {
        Ok(())
    }
}

pub(crate) const PRI: Permissions =
    Permissions { pasid_bits: 8, requests: Requests::TRANSLATION.union(Requests::PAGE) };
pub(crate) const STALL: Permissions = Permissions { pasid_bits: 8, requests: Requests::STALL };

pub(crate) struct Rig {
    pub(crate) iommu: Iommu<HostHal>,
    pub(crate) units: Vec<Arc<FakeUnit>>,
    pub(crate) log: Log,
}

impl Rig {
    pub(crate) fn new(units: usize) -> Self {
        Self::of(units, |_| {})
    }

    pub(crate) fn of(units: usize, tune: impl Fn(&mut UnitInfo)) -> Self {
        let log = Log::default();
        let iommu = Iommu::new(HostHal::new());
        let units = (0..units)
            .map(|_| {
                let mut info = UnitInfo {
                    backend: Backend::VtdScalable,
                    stages: Stages::STAGE_1,
                    page_sizes: PAGE_SIZE,
                    input_bits: 48,
                    output_bits: 46,
                    pasid_bits: 20,
                    fault_models: FaultModels::all(),
                    stall_places: 1 << 16,
                    entry_coherency: WalkCoherency::Snooped,
                    table_coherency: WalkCoherency::Snooped,
                    identity: false,
                    nesting: false,
                    abilities: Abilities::empty(),
                };
                tune(&mut info);
                let unit = FakeUnit { info, log: log.clone(), wires: Mutex::default() };
                let unit = Arc::try_new(unit).unwrap();
                iommu.add_unit(unsize_arc!(unit.clone() => dyn Unit)).unwrap();
                unit
            })
            .collect();
        Self { iommu, units, log }
    }

    pub(crate) fn unit(&self) -> &FakeUnit {
        &self.units[0]
    }

    /// From now on a stalled transaction that is answered stalls again with the same tag, as `again` says, and the
    /// interrupt comes at once; up to so many answers.
    pub(crate) fn stall_again(self: &std::sync::Arc<Self>, again: PageRequest, answers: usize) {
        let rig = std::sync::Arc::downgrade(self);
        self.unit().wires().on_answer = Some(std::sync::Arc::new(move |answer| {
            if let (Some(rig), Answered::Stall(tag)) = (rig.upgrade(), answer.to)
                && rig.unit().wires().answered.len() < answers
            {
                rig.unit().ask(PageRequest { kind: PageRequestKind::Stall(tag), ..again });
                rig.interrupt();
            }
        }));
    }

    pub(crate) fn plain_device(&self, unit: u16, bdf: u16) -> Arc<Device> {
        self.iommu.add_device(description(unit, bdf)).unwrap()
    }

    pub(crate) fn device(&self, unit: u16, bdf: u16, permissions: Permissions) -> Arc<Device> {
        let device = self.plain_device(unit, bdf);
        self.iommu.enable(&device, &Unswitched(permissions), &permissions).unwrap();
        device
    }

    /// Interrupts from all units, and a thread that handles what they bring.
    pub(crate) fn handle(&self) -> PageFaultWork {
        self.interrupt();
        self.iommu.handle_page_faults()
    }

    pub(crate) fn interrupt(&self) {
        for unit in 0..self.units.len() {
            let _more = self.iommu.handle_interrupt(UnitId(unit as u16));
        }
    }

    pub(crate) fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }
}

pub(crate) fn description(unit: u16, bdf: u16) -> DeviceDescription {
    DeviceDescription {
        id: DeviceId::Pci(RequesterId::from_bdf(unit, bdf)),
        unit: UnitId(unit),
        endpoints: vec![EndpointId::new(u32::from(bdf))],
        group: GroupId(u32::from(unit) << 16 | u32::from(bdf)),
        reserved: vec![],
    }
}

pub(crate) fn pasid(value: u32) -> Pasid {
    Pasid::new(value).unwrap()
}

pub(crate) fn request(
    device: &Device,
    pasid: Option<Pasid>,
    page: u64,
    kind: PageRequestKind,
) -> PageRequest {
    PageRequest {
        endpoint: device.endpoints()[0],
        pasid,
        address: Iova::new(page * PAGE_SIZE),
        access: Access::READ,
        privilege: Privilege::User,
        kind,
    }
}

pub(crate) fn last(group: u16) -> PageRequestKind {
    PageRequestKind::Group(GroupIndex::new(group), InGroup::Last)
}

pub(crate) fn stall(place: u16) -> StallId {
    StallId { place: place.into(), serial: 0 }
}

pub(crate) fn stalled(place: u16) -> PageRequestKind {
    PageRequestKind::Stall(stall(place))
}

pub(crate) fn partial(group: u16) -> PageRequestKind {
    PageRequestKind::Group(GroupIndex::new(group), InGroup::Partial)
}
