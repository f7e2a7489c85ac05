//! DMAR: the DMA remapping units of Intel platforms (VT-d specification 5.0, chapter 8).

use super::spec::dmar::{
    ATSR_ALL_PORTS, Andd, DRHD_INCLUDE_PCI_ALL, DRHD_SIZE_MASK, Dmar, Drhd, FlaggedScopes, Rhsa, Rmrr,
    SATC_ATC_REQUIRED, Scope, kind, scope,
};
use super::spec::root::TableHeader;
use crate::view::{Record, RecordShape, View};
use crate::{
    AtsScope, AtsScopeKind, DeviceScope, DeviceSet, DmaCoherency, DmarFlags, DmarInfo, FirmwareError,
    Location, PathStep, PlatformDevice, ReservedKind, ReservedRegion, ScopeKind, StreamRange, Topology,
    UnitDescription, UnitIndex, UnitKind, VtdCoverage, VtdUnit, Warning, list,
};
use alloc::vec::Vec;
use portcullis_hal::{EndpointId, Iova, IovaRange, PhysAddr, PhysRange, RequesterId};

/// The interrupt address range, which no unit translates (VT-d specification 3.14).
const INTERRUPT_RANGE: IovaRange = IovaRange::block(Iova::new(0xfee0_0000), 0x10_0000);

pub(super) fn read(table: &View<'_>, topology: &mut Topology) -> Result<(), FirmwareError> {
    let header_len = size_of::<TableHeader>();
    let dmar: &Dmar = table.read(header_len)?;
    let mut info = DmarInfo {
        host_address_width: u16::from(dmar.host_address_width) + 1,
        flags: DmarFlags::from_bits_truncate(dmar.flags),
        integrated_properties: Vec::new(),
    };
    let structures = header_len + size_of::<Dmar>();
    for structure in table.records(structures, RecordShape::WordWord)? {
        let structure = structure?;
        match structure.kind {
            kind::DRHD => read_drhd(&structure, topology)?,
            kind::RMRR => read_rmrr(&structure, topology)?,
            kind::ATSR | kind::SATC => read_ats(&structure, topology)?,
            kind::SIDP => {
                let sidp: &FlaggedScopes = structure.view.read(0)?;
                let scopes = read_scopes(&structure.view, size_of_val(sidp))?;
                for scope in scopes {
                    list::push(&mut info.integrated_properties, scope)?;
                }
            }
            // These refer to units, which may come later.
            kind::RHSA | kind::ANDD => {}
            kind => topology.warn(Warning::UnknownStructure { at: structure.view.here(), kind })?,
        }
    }
    for structure in table.records(structures, RecordShape::WordWord)? {
        let structure = structure?;
        match structure.kind {
            kind::RHSA => read_rhsa(&structure, topology)?,
            kind::ANDD => read_andd(&structure, topology)?,
            _ => {}
        }
    }
    topology.dmar = Some(info);
    reserve_interrupt_range(table.here(), topology)
}

fn read_drhd(structure: &Record<'_>, topology: &mut Topology) -> Result<(), FirmwareError> {
    let drhd: &Drhd = structure.view.read(0)?;
    let origin = structure.view.here();
    let base = drhd.register_base.get();
    let len = 0x1000u64 << (drhd.size & DRHD_SIZE_MASK);
    let registers = PhysRange::new(PhysAddr::new(base), len)
        .map_err(|error| FirmwareError::BadRange { at: origin, error })?;
    if base == 0 {
        return Err(FirmwareError::BadValue { at: origin, value: base });
    }
    let rival = topology.units.iter().find(|unit| match &unit.kind {
        UnitKind::Vtd(vtd) => vtd.registers.overlaps(&registers),
        _ => false,
    });
    if let Some(kept) = rival.map(|unit| unit.origin) {
        return topology.warn(Warning::Overlap { kept, ignored: origin });
    }
    let include_all = drhd.flags & DRHD_INCLUDE_PCI_ALL != 0;
    let unit = VtdUnit {
        registers,
        segment: drhd.segment.get(),
        coverage: if include_all { VtdCoverage::IncludeAll } else { VtdCoverage::Listed },
        scopes: read_scopes(&structure.view, size_of::<Drhd>())?,
    };
    topology.add_unit(UnitDescription { kind: UnitKind::Vtd(unit), proximity: None, origin })?;
    Ok(())
}

fn read_rmrr(structure: &Record<'_>, topology: &mut Topology) -> Result<(), FirmwareError> {
    let rmrr: &Rmrr = structure.view.read(0)?;
    let origin = structure.view.here();
    let (base, limit) = (rmrr.base.get(), rmrr.limit.get());
    let scopes = read_scopes(&structure.view, size_of::<Rmrr>())?;
    // Some firmware leaves all-zero structures in; they reserve nothing for anybody.
    if limit == 0 || scopes.is_empty() {
        return topology.ignored(origin);
    }
    let range = IovaRange::from_bounds(Iova::new(base), Iova::new(limit))
        .map_err(|error| FirmwareError::BadRange { at: origin, error })?;
    let devices = DeviceSet { segment: rmrr.segment.get(), scopes, ..DeviceSet::default() };
    list::push(&mut topology.reserved, ReservedRegion { range, kind: ReservedKind::Direct, devices, origin })
}

/// ATSR and SATC.
fn read_ats(structure: &Record<'_>, topology: &mut Topology) -> Result<(), FirmwareError> {
    let ats: &FlaggedScopes = structure.view.read(0)?;
    let kind = match structure.kind {
        kind::SATC if ats.flags & SATC_ATC_REQUIRED != 0 => AtsScopeKind::IntegratedRequired,
        kind::SATC => AtsScopeKind::Integrated,
        _ if ats.flags & ATSR_ALL_PORTS != 0 => AtsScopeKind::AllRootPorts,
        _ => AtsScopeKind::RootPorts,
    };
    let scopes = read_scopes(&structure.view, size_of::<FlaggedScopes>())?;
    let devices = DeviceSet { segment: ats.segment.get(), scopes, ..DeviceSet::default() };
    list::push(&mut topology.ats_scopes, AtsScope { kind, devices, origin: structure.view.here() })
}

fn read_rhsa(structure: &Record<'_>, topology: &mut Topology) -> Result<(), FirmwareError> {
    let rhsa: &Rhsa = structure.view.read(0)?;
    let base = PhysAddr::new(rhsa.register_base.get());
    let unit = topology.units.iter_mut().find(|unit| match &unit.kind {
        UnitKind::Vtd(vtd) => vtd.registers.start() == base,
        _ => false,
    });
    match unit {
        Some(unit) => unit.proximity = Some(rhsa.proximity_domain.get()),
        None => topology.warn(Warning::UnknownTarget { at: structure.view.here() })?,
    }
    Ok(())
}

/// ANDD gives a name to a device that a unit lists by number. Its path is the source-id that it uses.
fn read_andd(structure: &Record<'_>, topology: &mut Topology) -> Result<(), FirmwareError> {
    let andd: &Andd = structure.view.read(0)?;
    let origin = structure.view.here();
    let name = structure.view.rest(size_of::<Andd>())?.text()?;
    let mut streams = Vec::new();
    for (unit, segment, scope) in namespace_scopes(topology) {
        if scope.enumeration_id != andd.device_number {
            continue;
        }
        // No bridge is on the path of a device that is not PCI.
        if let Some(id) = scope.device(segment, &mut |_: RequesterId| None) {
            let id = EndpointId::new(id.bdf().into());
            list::push(&mut streams, StreamRange { unit, first: id, last: id })?;
        }
    }
    if streams.is_empty() {
        return topology.warn(Warning::UnknownTarget { at: origin });
    }
    let device = PlatformDevice {
        name: list::text(name)?,
        compatible: Vec::new(),
        registers: Vec::new(),
        streams,
        msi: None,
        dma: DmaCoherency::NotStated,
        origin,
    };
    list::push(&mut topology.platform_devices, device)
}

fn namespace_scopes(topology: &Topology) -> impl Iterator<Item = (UnitIndex, u16, &DeviceScope)> {
    topology.indexed_units().flat_map(|(index, unit)| {
        let (segment, scopes) = match &unit.kind {
            UnitKind::Vtd(vtd) => (vtd.segment, vtd.scopes.as_slice()),
            _ => (0, &[][..]),
        };
        let named = scopes.iter().filter(|scope| scope.kind == ScopeKind::NamespaceDevice);
        named.map(move |scope| (index, segment, scope))
    })
}

fn reserve_interrupt_range(origin: Location, topology: &mut Topology) -> Result<(), FirmwareError> {
    let mut devices = DeviceSet::default();
    for (index, unit) in topology.indexed_units() {
        if matches!(unit.kind, UnitKind::Vtd(_)) {
            list::push(&mut devices.units, index)?;
        }
    }
    list::push(
        &mut topology.reserved,
        ReservedRegion { range: INTERRUPT_RANGE, kind: ReservedKind::Msi, devices, origin },
    )
}

/// The device scopes from `offset` to the end of a structure.
fn read_scopes(structure: &View<'_>, offset: usize) -> Result<Vec<DeviceScope>, FirmwareError> {
    let mut scopes = Vec::new();
    for entry in structure.records(offset, RecordShape::ByteByte)? {
        let entry = entry?.view;
        let header: &Scope = entry.read(0)?;
        let origin = entry.here();
        let steps = entry.rest(size_of::<Scope>())?.bytes();
        let (steps, odd) = steps.as_chunks::<2>();
        if steps.is_empty() || !odd.is_empty() {
            return Err(FirmwareError::BadLength { at: origin, length: entry.len() });
        }
        let mut path = Vec::new();
        for &[device, function] in steps {
            RequesterId::new(0, 0, device, function)
                .map_err(|error| FirmwareError::BadRequester { at: origin, error })?;
            list::push(&mut path, PathStep { device, function })?;
        }
        let kind = match header.kind {
            scope::ENDPOINT => ScopeKind::Endpoint,
            scope::SUB_HIERARCHY => ScopeKind::Bridge,
            scope::IOAPIC => ScopeKind::IoApic,
            scope::HPET => ScopeKind::Hpet,
            scope::NAMESPACE_DEVICE => ScopeKind::NamespaceDevice,
            other => ScopeKind::Other(other),
        };
        let (enumeration_id, start_bus) = (header.enumeration_id, header.start_bus);
        list::push(&mut scopes, DeviceScope { kind, enumeration_id, start_bus, path, origin })?;
    }
    Ok(scopes)
}
