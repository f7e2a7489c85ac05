//! MCFG: memory-mapped PCI configuration space (PCI Firmware 3.3, 4.1.2).

use super::spec::root::{McfgEntry, TableHeader};
use crate::view::View;
use crate::{BusRange, FirmwareError, HostBridge, Topology, Warning, list};
use alloc::vec::Vec;
use portcullis_hal::{PhysAddr, PhysRange};

/// Eight reserved bytes follow the header.
const FIRST_ENTRY: usize = size_of::<TableHeader>() + 8;
/// Configuration space of one bus: 32 devices of 8 functions of 4 KiB.
pub(crate) const ECAM_BYTES_PER_BUS: u64 = 1 << 20;

pub(super) fn read(table: &View<'_>, topology: &mut Topology) -> Result<(), FirmwareError> {
    let entries = table.rest(FIRST_ENTRY)?;
    let entry_len = size_of::<McfgEntry>();
    if !entries.len().is_multiple_of(entry_len) {
        return Err(FirmwareError::BadLength { at: table.here(), length: table.len() });
    }
    for offset in (0..entries.len()).step_by(entry_len) {
        let entry: &McfgEntry = entries.read(offset)?;
        let origin = entries.at(offset);
        let buses = BusRange { first: entry.start_bus, last: entry.end_bus };
        if buses.last < buses.first {
            return Err(FirmwareError::BadValue { at: origin, value: buses.last.into() });
        }
        let ecam = ecam_window(PhysAddr::new(entry.base_address.get()), buses)
            .ok_or(FirmwareError::BadValue { at: origin, value: entry.base_address.get() })?;
        let bridge = HostBridge { segment: entry.segment.get(), buses, ecam, windows: Vec::new(), origin };
        add_host_bridge(topology, bridge)?;
    }
    Ok(())
}

/// The configuration space of `buses`, where that of bus 0 would be at `bus_0`.
fn ecam_window(bus_0: PhysAddr, buses: BusRange) -> Option<PhysRange> {
    let start = bus_0.checked_add(u64::from(buses.first) * ECAM_BYTES_PER_BUS)?;
    let count = u64::from(buses.last - buses.first) + 1;
    PhysRange::new(start, count * ECAM_BYTES_PER_BUS).ok()
}

/// Adds a host bridge unless an earlier one has some of its buses.
pub(crate) fn add_host_bridge(topology: &mut Topology, bridge: HostBridge) -> Result<(), FirmwareError> {
    let rival = topology.host_bridges.iter().find(|earlier| {
        earlier.segment == bridge.segment
            && earlier.buses.first <= bridge.buses.last
            && bridge.buses.first <= earlier.buses.last
    });
    match rival.map(|earlier| earlier.origin) {
        Some(kept) => topology.warn(Warning::Overlap { kept, ignored: bridge.origin }),
        None => list::push(&mut topology.host_bridges, bridge),
    }
}
