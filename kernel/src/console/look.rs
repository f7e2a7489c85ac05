//! Commands that only look.

use super::Next;
use super::commands::usage;
use super::state::{State, number};
use crate::report::{text, words};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use portcullis_hal::Iova;
use portcullis_iommu::ReservedKind;

pub(super) fn units(state: &mut State, _arguments: &[&str]) -> Result<Next, String> {
    state.machine.iommu.for_each_unit(|id, unit| {
        let info = unit.info();
        text(format_args!(
            "unit: {id} kind={} stages={} page-sizes={:#x} input-bits={} output-bits={} pasid-bits={} identity={} \
             entries={} tables={}",
            info.backend,
            bits(&info.stages),
            info.page_sizes,
            info.input_bits,
            info.output_bits,
            info.pasid_bits,
            info.identity,
            info.entry_coherency,
            info.table_coherency
        ));
    });
    Ok(Next::Continue)
}

/// The names of set flags, joined by `+`.
fn bits<F: bitflags::Flags>(flags: &F) -> String {
    let names: Vec<&str> = flags.iter_names().map(|(name, _)| name).collect();
    names.join("+")
}

pub(super) fn devices(state: &mut State, _arguments: &[&str]) -> Result<Next, String> {
    state.machine.iommu.for_each_device(|device| {
        let domain = device.domain().map_or_else(|| "-".to_string(), |domain| state.domain_name(&domain));
        let what = state.machine.what_is(device.id());
        text(format_args!(
            "device: {} unit={} group={} domain={domain} is={what}",
            device.id(),
            device.unit(),
            device.group().0
        ));
        for region in device.reserved() {
            let kind = match region.kind {
                ReservedKind::Direct(_) => "direct",
                ReservedKind::Msi(_) => "msi",
                ReservedKind::Excluded => "excluded",
            };
            text(format_args!("reserved: {} {kind}", region.range));
        }
    });
    Ok(Next::Continue)
}

pub(super) fn groups(state: &mut State, _arguments: &[&str]) -> Result<Next, String> {
    let mut members: Vec<(u32, String)> = Vec::new();
    state.machine.iommu.for_each_device(|device| members.push((device.group().0, device.id().to_string())));
    members.sort();
    for group in members.chunk_by(|a, b| a.0 == b.0) {
        let names: Vec<&str> = group.iter().map(|(_, name)| name.as_str()).collect();
        text(format_args!("group: {} devices={}", group.first().map_or(0, |(id, _)| *id), names.join(",")));
    }
    Ok(Next::Continue)
}

pub(super) fn domains(state: &mut State, _arguments: &[&str]) -> Result<Next, String> {
    for (index, domain) in state.domains.iter().enumerate() {
        let info = domain.info();
        let stage = info.stage.map_or_else(|| "-".to_string(), |stage| stage.to_string().replace(' ', ""));
        let mut tags = String::new();
        domain.describe(&mut tags).map_err(words)?;
        text(format_args!(
            "domain: d{index} kind={} stage={stage} aperture={} page-sizes={:#x} {tags}",
            info.kind,
            domain.aperture(),
            domain.page_sizes(),
            tags = tags.lines().collect::<Vec<_>>().join(", "),
        ));
    }
    Ok(Next::Continue)
}

pub(super) fn walk(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [domain, iova] = arguments else {
        return usage("walk");
    };
    let iova = Iova::new(number(iova)?);
    match state.domain(domain)?.iova_to_phys(iova) {
        Some(found) => text(format_args!(
            "walk: {iova} phys={} access={} memory={} entry={:#x}",
            found.phys, found.attributes.access, found.attributes.memory, found.size
        )),
        None => text(format_args!("walk: {iova} not mapped")),
    }
    Ok(Next::Continue)
}

pub(super) fn dump(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [what @ ("ste" | "cd" | "context" | "pasid" | "all"), name] = arguments else {
        return usage("dump");
    };
    let device = state.device(name)?;
    let unit = state.machine.iommu.unit(device.unit()).ok_or("no unit")?;
    let mut found = false;
    for endpoint in device.endpoints() {
        let mut out = String::new();
        unit.describe_entry(*endpoint, &mut out).map_err(words)?;
        for line in out.lines().filter(|line| *what == "all" || line.to_ascii_lowercase().starts_with(what)) {
            text(format_args!("{line}"));
            found = true;
        }
    }
    if found { Ok(Next::Continue) } else { Err(format!("this unit has no {what} for {name}")) }
}

pub(super) fn registers(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [name] = arguments else { return usage("regs") };
    let id = state.unit(name)?;
    let unit = state.machine.iommu.unit(id).ok_or("no unit")?;
    let mut out = String::new();
    unit.describe_registers(&mut out).map_err(words)?;
    out.lines().for_each(|line| text(format_args!("{line}")));
    Ok(Next::Continue)
}

pub(super) fn faults(state: &mut State, _arguments: &[&str]) -> Result<Next, String> {
    crate::machine::service_polled_units();
    while let Some(fault) = state.machine.iommu.next_fault() {
        text(format_args!("fault: {fault}"));
        let raw: Vec<String> = fault.record.raw.iter().map(|word| format!("{word:#018x}")).collect();
        text(format_args!("raw: {}", raw.join(" ")));
    }
    let (dropped, overflows) = (state.machine.iommu.faults_dropped(), state.machine.iommu.overflows());
    text(format_args!("faults: dropped={dropped} overflows={overflows}"));
    Ok(Next::Continue)
}

pub(super) fn stats(state: &mut State, _arguments: &[&str]) -> Result<Next, String> {
    state.machine.iommu.for_each_unit(|id, unit| {
        let stats = unit.stats();
        text(format_args!(
            "stats: {id} domains={} attaches={} faults={} overflows={} invalidations={} syncs={} doorbells={} errors={}",
            stats.domains,
            stats.attaches,
            stats.faults,
            stats.overflows,
            stats.invalidations,
            stats.syncs,
            stats.doorbells,
            stats.queue_errors
        ));
    });
    let (mappings, bytes) = crate::dma::counts();
    text(format_args!("stats: mappings={mappings} dma-bytes={bytes}"));
    Ok(Next::Continue)
}
