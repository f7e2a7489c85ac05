//! What the targets share.

use portcullis_firmware::{BusRange, Topology, acpi};
use portcullis_hal::RequesterId;

/// A table with this signature and body and a right checksum, so that the bytes reach its parser.
pub fn table(signature: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let (revision, body) = data.split_first().map_or((0, data), |(revision, body)| (*revision, body));
    let mut table = signature.to_vec();
    table.extend((36 + body.len() as u32).to_le_bytes());
    table.extend([revision, 0]);
    table.resize(36, 0);
    table.extend(body);
    table[9] = table.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    table
}

/// Reads tables and uses the result.
pub fn read(tables: &[&[u8]]) {
    if let Ok(topology) = acpi::from_tables(tables) {
        use_it(topology);
    }
}

/// Asks a topology what a kernel asks.
pub fn use_it(mut topology: Topology) {
    let behind = |id: RequesterId| {
        (id.function() == 0).then(|| BusRange { first: id.bus().wrapping_add(1), last: id.device() << 3 })
    };
    let _ = topology.resolve_scopes(behind);
    for word in (0..=u16::MAX).step_by(4099) {
        let id = RequesterId::from_bdf(word & 1, word);
        if let Some((unit, endpoint)) = topology.unit_of(id) {
            assert!(topology.unit(unit).is_some());
            let _ = topology.reserved_for_stream(unit, endpoint).count();
        }
        let _ = topology.msi_device_id(id);
        let _ = topology.ats_support(id);
        let _ = topology.reserved_for(id).count();
    }
}
