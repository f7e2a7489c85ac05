//! The operations.

use super::bed::{AREA, Bed, GIB, NEW, PAGE, map, page, pasid, unmap};
use super::{Failed, unfailing};
use portcullis_hal::{Arc, Mapping, RequesterId};
use portcullis_iommu::{Abilities, Backend, DeviceId, Domain, Permissions, Requests};

pub(super) type Act = Box<dyn Fn(&Bed) -> Result<(), Failed>>;

/// Whether devices notice an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Yes,
    No,
}

/// What becomes of an operation that lacks memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    /// It fails, and says so.
    Reported,
    /// It does less, which nobody has to be told.
    Absorbed,
}

/// An operation.
pub(super) struct Row {
    pub(super) name: String,
    pub(super) seen: Seen,
    pub(super) lack: Lack,
    pub(super) prepare: Act,
    pub(super) act: Act,
}

pub(super) fn row(
    name: &str,
    seen: Seen,
    prepare: impl Fn(&Bed) -> Result<(), Failed> + 'static,
    act: impl Fn(&Bed) -> Result<(), Failed> + 'static,
) -> Row {
    let (prepare, act) = (Box::new(prepare), Box::new(act));
    Row { name: name.to_string(), seen, lack: Lack::Reported, prepare, act }
}

pub(super) fn nothing(_: &Bed) -> Result<(), Failed> {
    Ok(())
}

/// Everything that can be done with the unit of this bed.
pub(super) fn rows(bed: &Bed) -> Vec<Row> {
    let mut kinds: Vec<&'static str> = bed.kinds.iter().map(|kind| kind.name).collect();
    let mut rows = Vec::new();
    for &to in &kinds {
        rows.push(row(&format!("new domain: {to}"), Seen::No, nothing, move |bed| {
            bed.unit.new_domain(&bed.kind(to)?.spec)?;
            Ok(())
        }));
        let reaches = |kind: &str| if matches!(kind, "blocked" | "shared") { Seen::No } else { Seen::Yes };
        rows.push(row(&format!("attach: {to}"), reaches(to), nothing, move |bed| {
            bed.attach(1, &bed.kind(to)?.new)
        }));
        for &from in &kinds {
            let seen = if from == "blocked" { reaches(to) } else { Seen::Yes };
            let seen = if matches!((from, to), ("identity", "identity") | ("shared", "blocked" | "shared")) {
                Seen::No
            } else {
                seen
            };
            let prepare = move |bed: &Bed| bed.attach(1, &bed.kind(from)?.old);
            rows.push(row(&format!("replace: {from} by {to}"), seen, prepare, move |bed| {
                bed.attach(1, &bed.kind(to)?.new)
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
        rows.extend(super::sizes::rows());
    }
    rows.extend(registry());
    if bed.unit.info().pasid_bits > 0 {
        // SMMUv3 has no stage 2 by PASID.
        let stage_1_only = bed.unit.info().backend == Backend::SmmuV3;
        kinds.retain(|kind| *kind != "stage 2" || !stage_1_only);
        rows.extend(pasids(&kinds));
    }
    rows.extend(super::sharing::rows(bed));
    rows.extend(super::books::rows());
    rows
}

/// Maps and unmaps in a domain that a device is attached to.
fn mappings() -> Vec<Row> {
    let attach = |bed: &Bed| bed.attach(1, &bed.paging()?.new);
    let fill = move |bed: &Bed| {
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
fn registry() -> Vec<Row> {
    let unit = |bed: &Bed| bed.iommu.add_unit(bed.unit.clone()).map(drop).map_err(Failed::from);
    let device = move |bed: &Bed| {
        unit(bed)?;
        bed.iommu.add_device(bed.description())?;
        Ok(())
    };
    let attach = |bed: &Bed| {
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
fn pasids(kinds: &[&'static str]) -> Vec<Row> {
    let permit = |bed: &Bed, bits: u8| {
        let permissions = Permissions { pasid_bits: bits, requests: Requests::empty() };
        let [first, ..] = bed.endpoints;
        bed.unit.permit(&[first], &permissions)?;
        Ok::<(), Failed>(())
    };
    let attach = |bed: &Bed, domain: &Arc<dyn Domain>| {
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
            &format!("attach a PASID: {to}"),
            seen,
            move |bed| permit(bed, 6),
            move |bed| attach(bed, &bed.kind(to)?.new),
        ));
        rows.push(row(
            &format!("replace a PASID: by {to}"),
            Seen::Yes,
            move |bed| {
                permit(bed, 6)?;
                attach(bed, &bed.paging()?.old)
            },
            move |bed| attach(bed, &bed.kind(to)?.new),
        ));
    }
    rows
}
