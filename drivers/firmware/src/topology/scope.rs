//! Devices named by a path through PCI bridges (VT-d specification 8.3.1, Device Scope).

use super::{BusRange, RequesterRange, StreamRange, UnitIndex};
use crate::{FirmwareError, Location, list};
use alloc::vec::Vec;
use portcullis_hal::{EndpointId, RequesterId};

/// One device scope entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceScope {
    /// What it names.
    pub kind: ScopeKind,
    /// I/O APIC id, HPET number or ACPI device number, for the kinds that have one.
    pub enumeration_id: u8,
    /// The bus on which the path starts.
    pub start_bus: u8,
    /// The steps: every one but the last is a bridge.
    pub path: Vec<PathStep>,
    /// Where firmware lists it.
    pub origin: Location,
}

/// One step of a [`DeviceScope`] path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathStep {
    /// PCI device, 0 to 31.
    pub device: u8,
    /// PCI function, 0 to 7.
    pub function: u8,
}

/// What a device scope names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScopeKind {
    /// One PCI function.
    Endpoint,
    /// A bridge and everything behind it.
    Bridge,
    /// An I/O APIC, as the source of interrupt requests.
    IoApic,
    /// A timer block that sends MSIs.
    Hpet,
    /// A device of the ACPI namespace (see ANDD).
    NamespaceDevice,
    /// Another type.
    Other(u8),
}

/// What a scope covers once bus numbers are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) device: RequesterId,
    pub(crate) behind: Option<BusRange>,
}

impl DeviceScope {
    /// The device that the path leads to, or `None` if a bridge on it has no bus behind it. The closure
    /// gives the secondary and subordinate bus of a bridge.
    pub fn device(
        &self,
        segment: u16,
        buses_behind: &mut dyn FnMut(RequesterId) -> Option<BusRange>,
    ) -> Option<RequesterId> {
        let (last, bridges) = self.path.split_last()?;
        let mut bus = self.start_bus;
        for step in bridges {
            let bridge = RequesterId::new(segment, bus, step.device, step.function).ok()?;
            bus = buses_behind(bridge)?.first;
        }
        RequesterId::new(segment, bus, last.device, last.function).ok()
    }

    /// Whether the scope names PCI functions, rather than a source of interrupts.
    pub const fn is_pci(&self) -> bool {
        matches!(self.kind, ScopeKind::Endpoint | ScopeKind::Bridge)
    }

    pub(crate) fn resolve(
        &self,
        segment: u16,
        buses_behind: &mut dyn FnMut(RequesterId) -> Option<BusRange>,
    ) -> Option<Resolved> {
        let device = self.device(segment, buses_behind)?;
        let behind = match self.kind {
            ScopeKind::Bridge => buses_behind(device).filter(|buses| buses.first <= buses.last),
            _ => None,
        };
        Some(Resolved { device, behind })
    }
}

/// The devices that an entry of firmware concerns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceSet {
    /// The PCI segment of `scopes`.
    pub segment: u16,
    /// Devices by path.
    pub scopes: Vec<DeviceScope>,
    /// Devices by requester; those of `scopes` are added by
    /// [`Topology::resolve_scopes`](crate::Topology::resolve_scopes).
    pub requesters: Vec<RequesterRange>,
    /// Devices by unit and stream.
    pub streams: Vec<StreamRange>,
    /// Every device behind these units.
    pub units: Vec<UnitIndex>,
}

impl DeviceSet {
    /// Adds what the scopes cover now to `requesters`, after forgetting what they covered before; calls
    /// `unresolved` for each scope that leads nowhere.
    pub(crate) fn resolve(
        &mut self,
        buses_behind: &mut dyn FnMut(RequesterId) -> Option<BusRange>,
        unresolved: &mut dyn FnMut(Location) -> Result<(), FirmwareError>,
    ) -> Result<(), FirmwareError> {
        if self.scopes.is_empty() {
            return Ok(());
        }
        self.requesters.clear();
        for scope in self.scopes.iter().filter(|scope| scope.is_pci()) {
            match scope.resolve(self.segment, buses_behind) {
                None => unresolved(scope.origin)?,
                Some(found) => {
                    list::push(&mut self.requesters, RequesterRange::single(found.device))?;
                    if let Some(buses) = found.behind {
                        list::push(&mut self.requesters, RequesterRange::buses(self.segment, buses))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether `id` is listed by requester.
    pub(crate) fn has_requester(&self, id: RequesterId) -> bool {
        self.requesters.iter().any(|range| range.contains(id))
    }

    /// Whether `endpoint` of `unit` is listed by stream, or all of the unit is.
    pub(crate) fn has_stream(&self, unit: UnitIndex, endpoint: EndpointId) -> bool {
        self.units.contains(&unit) || self.streams.iter().any(|range| range.contains(unit, endpoint))
    }
}
