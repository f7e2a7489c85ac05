//! From VT-d device scopes to requesters, once bus numbers are final.

use super::{
    BusRange, DeviceScope, RequesterMapping, RequesterRange, RequesterWindow, Topology, UnitIndex, UnitKind,
    VtdCoverage,
};
use crate::{FirmwareError, Location, Warning, list};
use alloc::vec::Vec;
use portcullis_hal::{EndpointId, RequesterId};

impl Topology {
    /// Turns the device scopes of DMAR (units, RMRR, ATSR, SATC) into requesters.
    ///
    /// `buses_behind` gives the secondary and subordinate bus of a bridge, or `None` if there is no such
    /// bridge or nothing behind it. The call replaces what an earlier call found, so it can be repeated
    /// after buses were renumbered. Without DMAR it does nothing.
    ///
    /// The rules (VT-d specification 8.3 and 8.3.1): an endpoint scope covers one function; a bridge scope
    /// covers the bridge and every bus behind it; scopes count in the order of the table; units with
    /// INCLUDE_PCI_ALL come last, whatever their place in it. Where scopes of two units disagree the first
    /// counts and [`Warning::ScopeOverlap`] is recorded.
    ///
    /// # Errors
    ///
    /// [`FirmwareError::OutOfMemory`] or [`FirmwareError::TooManyEntries`]; the VT-d map is then empty, so
    /// that no requester behind VT-d is known.
    pub fn resolve_scopes(
        &mut self,
        mut buses_behind: impl FnMut(RequesterId) -> Option<BusRange>,
    ) -> Result<(), FirmwareError> {
        self.resolved_map.clear();
        self.warnings.retain(|warning| !warning.is_from_resolution());
        let mut found = Found::default();
        self.map_units(&mut buses_behind, &mut found)?;
        let sets = self
            .reserved
            .iter_mut()
            .map(|region| &mut region.devices)
            .chain(self.ats_scopes.iter_mut().map(|scope| &mut scope.devices));
        for set in sets {
            set.resolve(&mut buses_behind, &mut |at| {
                list::push(&mut found.warnings, Warning::UnresolvedScope { at })
            })?;
        }
        for warning in found.warnings {
            self.warn(warning)?;
        }
        self.resolved_map = found.map;
        Ok(())
    }

    fn map_units(
        &self,
        buses_behind: &mut dyn FnMut(RequesterId) -> Option<BusRange>,
        found: &mut Found,
    ) -> Result<(), FirmwareError> {
        let units = || {
            self.indexed_units().filter_map(|(index, unit)| match &unit.kind {
                UnitKind::Vtd(vtd) => Some((index, unit, vtd)),
                _ => None,
            })
        };
        for (index, _, unit) in units() {
            for scope in unit.scopes.iter().filter(|scope| scope.is_pci()) {
                found.add_scope(index, unit.segment, scope, buses_behind)?;
            }
        }
        for (index, description, unit) in units() {
            if unit.coverage == VtdCoverage::IncludeAll {
                found.add_rest(index, unit.segment, description.origin)?;
            }
        }
        Ok(())
    }
}

/// The map and the warnings that grow during resolution.
#[derive(Default)]
struct Found {
    map: Vec<RequesterMapping>,
    warnings: Vec<Warning>,
    /// Segments that have an INCLUDE_PCI_ALL unit already, with its place.
    complete: Vec<(u16, Location)>,
}

impl Found {
    fn add_scope(
        &mut self,
        unit: UnitIndex,
        segment: u16,
        scope: &DeviceScope,
        buses_behind: &mut dyn FnMut(RequesterId) -> Option<BusRange>,
    ) -> Result<(), FirmwareError> {
        let Some(resolved) = scope.resolve(segment, buses_behind) else {
            return list::push(&mut self.warnings, Warning::UnresolvedScope { at: scope.origin });
        };
        self.add_range(unit, RequesterRange::single(resolved.device), scope.origin)?;
        match resolved.behind {
            Some(buses) => self.add_range(unit, RequesterRange::buses(segment, buses), scope.origin),
            None => Ok(()),
        }
    }

    fn add_range(
        &mut self,
        unit: UnitIndex,
        range: RequesterRange,
        origin: Location,
    ) -> Result<(), FirmwareError> {
        let entry = mapping(unit, range.segment, range.first, range.last, origin);
        let rival = self
            .map
            .iter()
            .find(|earlier| earlier.unit != unit && earlier.window.may_overlap(&entry.window))
            .map(|earlier| earlier.origin);
        if let Some(kept) = rival {
            list::push(&mut self.warnings, Warning::ScopeOverlap { kept, ignored: origin })?;
        }
        list::push(&mut self.map, entry)
    }

    fn add_rest(&mut self, unit: UnitIndex, segment: u16, origin: Location) -> Result<(), FirmwareError> {
        if let Some(&(_, kept)) = self.complete.iter().find(|(known, _)| *known == segment) {
            return list::push(&mut self.warnings, Warning::ScopeOverlap { kept, ignored: origin });
        }
        list::push(&mut self.complete, (segment, origin))?;
        list::push(&mut self.map, mapping(unit, segment, 0, 0xffff, origin))
    }
}

/// VT-d knows a requester by its source-id, the bus/device/function word.
fn mapping(unit: UnitIndex, segment: u16, first: u16, last: u16, origin: Location) -> RequesterMapping {
    RequesterMapping {
        window: RequesterWindow::new(segment, first, last),
        unit,
        endpoint: EndpointId::new(first.into()),
        origin,
    }
}
