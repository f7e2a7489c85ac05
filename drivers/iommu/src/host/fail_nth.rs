//! Every operation of a unit, with each of its allocations failing.
//!
//! After a failure devices reach what they reached before, through every cache, and the same operation succeeds when
//! it is tried again; in the end not a frame and not a byte of heap is missing. How many allocations each operation
//! makes, and how many frames a failed one may keep for the next, is a table beside the test of each back end.

mod sharing;
mod sizes;

use crate::{
    Abilities, AddDeviceError, AttachError, Backend, DeviceDescription, DeviceId, Domain, DomainError,
    DomainSpec, GroupId, Iommu, PagingSpec, Permissions, Requests, ReservedKind, ReservedRegion, Stage,
    Stages, Unit, UnitId,
};
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Write as _;
use portcullis_hal::host::scarce::{ScarceHal, exempt, failing, heap_left_by, unfailing};
use portcullis_hal::host::{self, IDENTITY};
use portcullis_hal::{
    Arc, Attributes, EndpointId, FixedMapping, Gather, Iova, IovaRange, MapError, Mapping, OutOfMemory,
    Pasid, PhysAddr, PhysRange, RequesterId, ResizeError, SharedTable, SyncError, TableRoot, UnmapError,
};

/// A machine with one unit that no driver has touched.
pub trait Machine: 'static {
    /// Builds it.
    fn new() -> Self;
    /// The kernel's services.
    fn hal(&self) -> &ScarceHal;
    /// Brings the unit up with its driver, from nothing to a unit that translates.
    fn set_up(&self) -> Result<Arc<dyn Unit>, Failed>;
    /// Endpoints of three devices, or of one device with several.
    fn endpoints(&self) -> [EndpointId; 3];
    /// Where a device's access to `iova` may end, through whatever the unit has cached; `None` is a refusal.
    fn reach(&self, endpoint: EndpointId, pasid: Option<Pasid>, iova: Iova) -> BTreeSet<Option<u64>>;
    /// Foreign tables that the unit can use, empty ones.
    fn foreign(&self) -> Option<SharedTable>;
    /// Tables of a process, empty ones, if the unit can share these.
    fn address_space(&self) -> Option<TableRoot>;
    /// The first device asks for some pages, in one group, with a PASID that it may use.
    fn ask(&self, pasid: Pasid, pages: u64);
    /// How many groups wait for an answer.
    fn unanswered(&self) -> usize;
}

/// Why an operation was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failed {
    /// For want of memory.
    OutOfMemory,
    /// Otherwise.
    Otherwise(String),
}

macro_rules! failed_from {
    ($($error:ty => $out_of_memory:pat,)+) => {
        $(impl From<$error> for Failed {
            fn from(error: $error) -> Self {
                if matches!(error, $out_of_memory) { Self::OutOfMemory } else { Self::Otherwise(error.to_string()) }
            }
        })+
    };
}

failed_from! {
    OutOfMemory => OutOfMemory,
    DomainError => DomainError::OutOfMemory(_),
    AttachError => AttachError::OutOfMemory(_) | AttachError::Reserved(MapError::OutOfMemory(_)),
    MapError => MapError::OutOfMemory(_),
    AddDeviceError => AddDeviceError::OutOfMemory(_),
    ResizeError => ResizeError::OutOfMemory(_),
}

impl From<UnmapError> for Failed {
    fn from(error: UnmapError) -> Self {
        Self::Otherwise(error.to_string())
    }
}

impl From<SyncError> for Failed {
    fn from(error: SyncError) -> Self {
        Self::Otherwise(error.to_string())
    }
}

/// What is mapped in every paging domain from the start.
const PAGE: u64 = 0x10_0000;
/// Where operations map and unmap.
const AREA: u64 = 0x4000_0000;
const GIB: u64 = 1 << 30;
/// The memory behind the old domains, and behind the new ones.
const OLD: u64 = 0x2_0000_0000;
const NEW: u64 = 0x3_0000_0000;

/// A domain of one kind in each role.
struct Kind {
    name: &'static str,
    spec: DomainSpec,
    old: Arc<dyn Domain>,
    new: Arc<dyn Domain>,
}

/// A unit that is up, with domains of all its kinds.
struct Bed<M: Machine> {
    machine: M,
    iommu: Iommu<ScarceHal>,
    unit: Arc<dyn Unit>,
    kinds: Vec<Kind>,
    endpoints: [EndpointId; 3],
}

/// What every device may reach, at the addresses that matter.
type Reach = Vec<BTreeSet<Option<u64>>>;

type Act<M> = Box<dyn Fn(&Bed<M>) -> Result<(), Failed>>;

/// Whether devices notice an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Yes,
    No,
}

/// What becomes of an operation that lacks memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    /// It fails, and says so.
    Reported,
    /// It does less, which nobody has to be told.
    Absorbed,
}

/// An operation.
struct Row<M: Machine> {
    name: String,
    seen: Seen,
    lack: Lack,
    prepare: Act<M>,
    act: Act<M>,
}

fn page(iova: u64, phys: u64, len: u64) -> Mapping {
    let memory = PhysRange::new(PhysAddr::new(phys), len).unwrap_or_else(|error| panic!("{error}"));
    Mapping { iova: Iova::new(iova), memory, attributes: Attributes::READ_WRITE }
}

fn map(domain: &Arc<dyn Domain>, list: &[Mapping]) -> Result<(), Failed> {
    Ok(host::map(&**domain, list)?)
}

fn unmap(domain: &Arc<dyn Domain>, first: u64, len: u64) -> Result<(), Failed> {
    let mut gather = Gather::new();
    let range = IovaRange::new(Iova::new(first), len).unwrap_or_else(|error| panic!("{error}"));
    host::unmap(&**domain, range, &mut gather)?;
    let _ = domain.sync(&mut gather)?;
    Ok(())
}

fn pasid() -> Result<Pasid, Failed> {
    Pasid::new(5).map_err(|error| Failed::Otherwise(error.to_string()))
}

impl<M: Machine> Bed<M> {
    fn new(machine: M) -> Result<Self, Failed> {
        let unit = machine.set_up()?;
        let endpoints = machine.endpoints();
        let iommu = Iommu::new(machine.hal().clone());
        let mut kinds = Vec::new();
        for (name, spec) in specs(&machine, &*unit) {
            let (old, new) = (unit.new_domain(&spec)?, unit.new_domain(&spec)?);
            if matches!(spec, DomainSpec::Paging(_)) {
                map(&old, &[page(PAGE, OLD, 0x1000)])?;
                map(&new, &[page(PAGE, NEW, 0x1000)])?;
            }
            kinds.push(Kind { name, spec, old, new });
        }
        Ok(Self { machine, iommu, unit, kinds, endpoints })
    }

    fn reach(&self) -> Reach {
        exempt(|| {
            let pasids = [None, Pasid::new(5).ok()];
            let mut reach = Vec::new();
            for endpoint in self.endpoints {
                for pasid in pasids.iter().filter(|pasid| pasid.is_none() || self.unit.info().pasid_bits > 0)
                {
                    for iova in [PAGE, AREA, AREA + 0x1000, AREA + 7 * GIB, 0x5000_0000] {
                        reach.push(self.machine.reach(endpoint, *pasid, Iova::new(iova)));
                    }
                }
            }
            reach
        })
    }

    /// The first kind, which has mappings of its own.
    fn paging(&self) -> Result<&Kind, Failed> {
        self.kinds.first().ok_or_else(|| Failed::Otherwise("no domain".to_string()))
    }

    fn attach(&self, count: usize, domain: &Arc<dyn Domain>) -> Result<(), Failed> {
        let endpoints = self.endpoints.get(..count).unwrap_or_default();
        self.unit.attach(endpoints, domain)?;
        Ok(())
    }

    fn description(&self) -> DeviceDescription {
        let [first, ..] = self.endpoints;
        let mapping = page(AREA, NEW, 0x1000);
        // SAFETY: no device is real.
        #[expect(unsafe_code, reason = "vouches for memory that no device reaches")]
        let fixed = unsafe { FixedMapping::new(mapping) };
        DeviceDescription {
            id: DeviceId::Pci(RequesterId::from_bdf(0, 8)),
            unit: UnitId(0),
            endpoints: alloc::vec![first],
            group: GroupId(0),
            reserved: alloc::vec![ReservedRegion { range: fixed.range(), kind: ReservedKind::Direct(fixed) }],
        }
    }
}

/// The kinds of domains that a unit has; paging ones first.
fn specs<M: Machine>(machine: &M, unit: &dyn Unit) -> Vec<(&'static str, DomainSpec)> {
    let info = unit.info();
    let abilities = info.abilities & Abilities::RESIZE;
    let paging = |stage| DomainSpec::Paging(PagingSpec { stage, abilities, ..PagingSpec::default() });
    let mut specs = Vec::new();
    if info.stages.contains(Stages::STAGE_1) {
        specs.push(("stage 1", paging(Some(Stage::Stage1))));
    }
    if info.stages.contains(Stages::STAGE_2) {
        specs.push(("stage 2", paging(Some(Stage::Stage2))));
    }
    if info.stages.contains(Stages::MANAGED) {
        specs.push(("managed", paging(None)));
    }
    specs.extend(machine.foreign().map(|table| ("shared", DomainSpec::Shared(table))));
    specs.extend(info.identity.then_some(("identity", DomainSpec::Identity(IDENTITY))));
    specs.push(("blocked", DomainSpec::Blocked));
    specs
}

fn row<M: Machine>(
    name: &str,
    seen: Seen,
    prepare: impl Fn(&Bed<M>) -> Result<(), Failed> + 'static,
    act: impl Fn(&Bed<M>) -> Result<(), Failed> + 'static,
) -> Row<M> {
    let (prepare, act) = (Box::new(prepare), Box::new(act));
    Row { name: name.to_string(), seen, lack: Lack::Reported, prepare, act }
}

fn nothing<M: Machine>(_: &Bed<M>) -> Result<(), Failed> {
    Ok(())
}

fn kind<'bed, M: Machine>(bed: &'bed Bed<M>, name: &str) -> Result<&'bed Kind, Failed> {
    let found = bed.kinds.iter().find(|kind| kind.name == name);
    found.ok_or_else(|| Failed::Otherwise("no such kind".to_string()))
}

/// Everything that can be done with the unit of this bed.
fn rows<M: Machine>(bed: &Bed<M>) -> Vec<Row<M>> {
    let mut kinds: Vec<&'static str> = bed.kinds.iter().map(|kind| kind.name).collect();
    let mut rows = Vec::new();
    for &to in &kinds {
        rows.push(row(&alloc::format!("new domain: {to}"), Seen::No, nothing, move |bed| {
            bed.unit.new_domain(&kind(bed, to)?.spec)?;
            Ok(())
        }));
        let reaches = |kind: &str| if matches!(kind, "blocked" | "shared") { Seen::No } else { Seen::Yes };
        rows.push(row(&alloc::format!("attach: {to}"), reaches(to), nothing, move |bed| {
            bed.attach(1, &kind(bed, to)?.new)
        }));
        for &from in &kinds {
            let seen = if from == "blocked" { reaches(to) } else { Seen::Yes };
            let seen = if matches!((from, to), ("identity", "identity") | ("shared", "blocked" | "shared")) {
                Seen::No
            } else {
                seen
            };
            let prepare = move |bed: &Bed<M>| bed.attach(1, &kind(bed, from)?.old);
            rows.push(row(&alloc::format!("replace: {from} by {to}"), seen, prepare, move |bed| {
                bed.attach(1, &kind(bed, to)?.new)
            }));
        }
    }
    rows.push(row("attach: three endpoints", Seen::Yes, nothing, |bed| bed.attach(3, &bed.paging()?.new)));
    rows.push(row(
        "detach",
        Seen::Yes,
        |bed| bed.attach(1, &bed.paging()?.new),
        |bed| {
            let [first, ..] = bed.endpoints;
            Ok(bed.unit.detach(&[first])?)
        },
    ));
    rows.extend(mappings());
    if bed.unit.info().abilities.contains(Abilities::RESIZE) {
        rows.extend(sizes::rows());
    }
    rows.extend(registry());
    if bed.unit.info().pasid_bits > 0 {
        // SMMUv3 has no stage 2 by PASID.
        let stage_1_only = bed.unit.info().backend == Backend::SmmuV3;
        kinds.retain(|kind| *kind != "stage 2" || !stage_1_only);
        rows.extend(pasids(&kinds));
    }
    rows.extend(sharing::rows(bed));
    rows
}

/// Maps and unmaps in a domain that a device is attached to.
fn mappings<M: Machine>() -> Vec<Row<M>> {
    let attach = |bed: &Bed<M>| bed.attach(1, &bed.paging()?.new);
    let fill = move |bed: &Bed<M>| {
        // Not aligned to large pages on one side.
        map(&bed.paging()?.new, &[page(AREA, NEW + 0x1000, 1 << 21)])?;
        attach(bed)
    };
    Vec::from([
        row("map: a page", Seen::Yes, attach, |bed| map(&bed.paging()?.new, &[page(AREA, NEW, 0x1000)])),
        row("map: a page beside another", Seen::No, attach, |bed| {
            map(&bed.paging()?.new, &[page(PAGE + 0x1000, NEW, 0x1000)])
        }),
        row("map: a list, far apart", Seen::Yes, attach, |bed| {
            let list: [Mapping; 8] = core::array::from_fn(|i| page(AREA + i as u64 * GIB, NEW, 0x1000));
            map(&bed.paging()?.new, &list)
        }),
        row("map: 2 GiB, large pages at one end", Seen::Yes, attach, |bed| {
            map(&bed.paging()?.new, &[page(AREA, NEW, 2 * GIB - 0x1000)])
        }),
        row("unmap: a page", Seen::Yes, fill, |bed| unmap(&bed.paging()?.new, AREA, 0x1000)),
        row("unmap: tables cut off", Seen::Yes, fill, |bed| unmap(&bed.paging()?.new, AREA, 1 << 21)),
    ])
}

/// What goes through the registry.
fn registry<M: Machine>() -> Vec<Row<M>> {
    let unit = |bed: &Bed<M>| bed.iommu.add_unit(bed.unit.clone()).map(drop).map_err(Failed::from);
    let device = move |bed: &Bed<M>| {
        unit(bed)?;
        bed.iommu.add_device(bed.description())?;
        Ok(())
    };
    let attach = |bed: &Bed<M>| {
        let id = DeviceId::Pci(RequesterId::from_bdf(0, 8));
        let device = bed.iommu.device(id).ok_or(Failed::Otherwise(String::new()))?;
        bed.iommu.attach(&device, &bed.paging()?.new)?;
        Ok(())
    };
    Vec::from([
        row("registry: add a unit", Seen::No, nothing, unit),
        row("registry: add a device", Seen::No, unit, |bed| {
            let description = unfailing(|| bed.description());
            bed.iommu.add_device(description)?;
            Ok(())
        }),
        row("registry: attach, with reserved memory", Seen::Yes, device, attach),
    ])
}

/// What concerns PASIDs.
fn pasids<M: Machine>(kinds: &[&'static str]) -> Vec<Row<M>> {
    let permit = |bed: &Bed<M>, bits: u8| {
        let permissions = Permissions { pasid_bits: bits, requests: Requests::empty() };
        let [first, ..] = bed.endpoints;
        bed.unit.permit(&[first], &permissions)?;
        Ok::<(), Failed>(())
    };
    let attach = |bed: &Bed<M>, domain: &Arc<dyn Domain>| {
        let [first, ..] = bed.endpoints;
        bed.unit.attach_pasid(&[first], pasid()?, domain)?;
        Ok::<(), Failed>(())
    };
    let mut rows = Vec::from([
        row("permit: PASIDs of 6 bits", Seen::No, nothing, move |bed| permit(bed, 6)),
        row("permit: PASIDs of 16 bits", Seen::No, nothing, move |bed| {
            permit(bed, bed.unit.info().pasid_bits.min(16))
        }),
        row(
            "permit: PASIDs of an attached device",
            Seen::No,
            |bed| bed.attach(1, &bed.paging()?.old),
            move |bed| permit(bed, 6),
        ),
        row(
            "detach: a PASID",
            Seen::Yes,
            move |bed| {
                permit(bed, 6)?;
                attach(bed, &bed.paging()?.new)
            },
            |bed| {
                let [first, ..] = bed.endpoints;
                Ok(bed.unit.detach_pasid(&[first], pasid()?)?)
            },
        ),
    ]);
    for &to in kinds.iter().filter(|kind| !matches!(**kind, "shared" | "identity")) {
        let seen = if to == "blocked" { Seen::No } else { Seen::Yes };
        rows.push(row(
            &alloc::format!("attach a PASID: {to}"),
            seen,
            move |bed| permit(bed, 6),
            move |bed| attach(bed, &kind(bed, to)?.new),
        ));
        rows.push(row(
            &alloc::format!("replace a PASID: by {to}"),
            Seen::Yes,
            move |bed| {
                permit(bed, 6)?;
                attach(bed, &bed.paging()?.old)
            },
            move |bed| attach(bed, &kind(bed, to)?.new),
        ));
    }
    rows
}

/// What became of an operation whose n-th allocation failed.
struct Trial {
    tripped: bool,
    /// Frames that the failed operation kept for the next.
    kept: usize,
    after: Reach,
    /// Frames and bytes of heap left when everything was dropped.
    left: (usize, isize),
}

impl<M: Machine> Row<M> {
    fn trial(&self, n: usize) -> Trial {
        let context = |text: &str| alloc::format!("{}, allocation {n}: {text}", self.name);
        let mut trial = Trial { tripped: false, kept: 0, after: Reach::new(), left: (0, 0) };
        let heap = heap_left_by(|| {
            let hal = {
                let bed = Bed::new(exempt(M::new))
                    .unwrap_or_else(|error| panic!("{}: {error:?}", context("no bed")));
                (self.prepare)(&bed).unwrap_or_else(|error| panic!("{}: {error:?}", context("not prepared")));
                let (before, frames) = (bed.reach(), bed.machine.hal().frames_in_use());
                let (result, tripped) = failing(n, || (self.act)(&bed));
                trial.tripped = tripped;
                if tripped {
                    let expected = match self.lack {
                        Lack::Reported => Err(Failed::OutOfMemory),
                        Lack::Absorbed => Ok(()),
                    };
                    assert_eq!(result, expected, "{}", context("failed for another reason"));
                    let same = exempt(|| bed.reach() == before);
                    assert!(same, "{}", context("devices reach something else"));
                    trial.kept = bed.machine.hal().frames_in_use() - frames;
                    let again = (self.act)(&bed);
                    assert_eq!(again, Ok(()), "{}", context("not done when tried again"));
                } else {
                    assert_eq!(result, Ok(()), "{}", context("failed though nothing was missing"));
                }
                trial.after = bed.reach();
                if self.seen == Seen::Yes {
                    assert_ne!(trial.after, before, "{}", context("devices see no difference"));
                }
                exempt(|| drop(before));
                let _ = bed.unit.detach(&bed.endpoints);
                let hal = exempt(|| bed.machine.hal().clone());
                let Bed { machine, iommu, unit, kinds, .. } = bed;
                drop((iommu, kinds, unit));
                exempt(|| drop(machine));
                hal
            };
            trial.left.0 = hal.frames_in_use();
            exempt(|| drop(hal));
        });
        trial.left.1 = heap;
        trial
    }

    /// The operation with each of its allocations failing; how many there are, and the most that a failure kept.
    fn run(&self) -> (usize, usize) {
        let whole = self.trial(usize::MAX);
        let mut most = 0;
        for n in 0..1000 {
            let trial = self.trial(n);
            assert_eq!(
                trial.left, whole.left,
                "{}, allocation {n}: frames and heap that are left",
                self.name
            );
            assert_eq!(trial.after, whole.after, "{}, allocation {n}: what devices reach", self.name);
            most = most.max(trial.kept);
            if !trial.tripped {
                return (n, most);
            }
        }
        panic!("{}: no end of allocations", self.name)
    }
}

/// Setting up, with each of its allocations failing; how many there are.
fn set_up<M: Machine>() -> usize {
    let trial = |n| {
        let (mut tripped, mut frames) = (false, 0);
        let heap = heap_left_by(|| {
            let machine = exempt(M::new);
            let reach = || {
                let all = machine.endpoints().map(|endpoint| machine.reach(endpoint, None, Iova::new(PAGE)));
                all.into_iter().flatten().flatten().collect::<BTreeSet<u64>>()
            };
            let before = exempt(reach);
            let (result, failed) = failing(n, || machine.set_up());
            tripped = failed;
            let unit = if failed {
                assert_eq!(result.err(), Some(Failed::OutOfMemory), "set-up, allocation {n}");
                let after = exempt(reach);
                assert!(after.is_subset(&before), "set-up, allocation {n}: devices reach more");
                exempt(|| drop(after));
                machine.set_up()
            } else {
                result
            };
            let unit = unit.unwrap_or_else(|error| panic!("set-up, allocation {n}: {error:?}"));
            assert!(exempt(reach).is_empty(), "set-up, allocation {n}: a device is not denied");
            exempt(|| drop(before));
            drop(unit);
            frames = machine.hal().frames_in_use();
            exempt(|| drop(machine));
        });
        (tripped, (frames, heap))
    };
    let (_, whole) = trial(usize::MAX);
    for n in 0..1000 {
        let (tripped, left) = trial(n);
        assert_eq!(left, whole, "set-up, allocation {n}: frames and heap that are left");
        if !tripped {
            return n;
        }
    }
    panic!("set-up: no end of allocations")
}

/// Does everything with each of its allocations failing, and compares how many these are with a table.
///
/// # Panics
///
/// Something was changed, reached or lost that should not be; or the table is another one, which is then printed.
pub fn check<M: Machine>(expected: &str) {
    let mut table =
        String::from("# operation, allocations, most frames that a failed one keeps for the next\n");
    let _ = writeln!(table, "{:<48}{:>4}{:>4}", "set-up", set_up::<M>(), 0);
    let bed = Bed::new(M::new()).unwrap_or_else(|error| panic!("{error:?}"));
    for row in rows::<M>(&bed) {
        let (points, kept) = row.run();
        let _ = writeln!(table, "{:<48}{points:>4}{kept:>4}", row.name);
    }
    assert!(table == expected, "the table of allocations differs; now it is\n{table}");
}
