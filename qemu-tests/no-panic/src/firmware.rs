//! `portcullis-firmware`.

use crate::embedder::{debug, show};
use core::hint::black_box;
use portcullis_firmware::acpi::{self, loader};
use portcullis_firmware::{BusRange, FirmwareError, Topology, devicetree};
use portcullis_hal::{EndpointId, PhysAddr, PhysRange, RequesterId};

#[inline(never)]
pub(crate) fn probe() {
    let table: &'static [u8] = black_box(&[]);
    examine(devicetree::parse(table));
    examine(acpi::from_tables(black_box(&[table])));
    let memory = |range: PhysRange| black_box((range.len() == 1).then_some(table));
    if let Some(at) = acpi::find_rsdp(table) {
        examine(acpi::from_rsdp(&memory, PhysAddr::new(at as u64)));
    }
    for allocation in loader::allocations(table) {
        match allocation {
            Ok(allocation) => debug(&allocation),
            Err(error) => show(&error),
        }
    }
    if let Err(error) = loader::run(table, black_box(&mut [])) {
        show(&error);
    }
}

#[inline(never)]
fn examine(topology: Result<Topology, FirmwareError>) {
    let mut topology = match topology {
        Ok(topology) => topology,
        Err(error) => {
            debug(&error);
            return show(&error);
        }
    };
    let id = RequesterId::from_bdf(black_box(0), black_box(0));
    let behind = |_| black_box(Some(BusRange { first: 0, last: 0 }));
    if let Err(error) = topology.resolve_scopes(behind) {
        show(&error);
    }
    debug(&topology);
    black_box((topology.unit_of(id), topology.msi_device_id(id), topology.ats_support(id)));
    black_box((topology.reserved_for(id).count(), topology.host_bridge_of(id).is_some()));
    for (index, unit) in topology.indexed_units() {
        debug(unit);
        black_box(topology.unit(index).is_some());
        black_box(topology.reserved_for_stream(index, black_box(EndpointId::new(0))).count());
    }
    for warning in &topology.warnings {
        show(warning);
    }
}
