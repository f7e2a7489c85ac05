//! Changes of the sizes of leaves.

use super::Failed;
use super::bed::{AREA, Bed, NEW, map, page};
use super::rows::{Row, Seen, row};
use portcullis_hal::{Arc, Gather, Iova, IovaRange, Progress, ResizeError};
use portcullis_iommu::Domain;

/// Changes of the sizes of leaves that a device uses.
pub(super) fn rows() -> Vec<Row> {
    let area = || IovaRange::block(Iova::new(AREA), 2 << 21);
    let fill = move |bed: &Bed| {
        map(&bed.paging()?.new, &[page(AREA, NEW, 2 << 21)])?;
        bed.attach(1, &bed.paging()?.new)
    };
    let split =
        move |bed: &Bed| resize(&bed.paging()?.new, |domain, gather| domain.split(area(), 0x1000, gather));
    Vec::from([
        row("split: two leaves into pages", Seen::No, fill, split),
        row("split: around a range", Seen::No, fill, |bed| {
            let inner =
                IovaRange::from_bounds(Iova::new(AREA + 0x1000), Iova::new(AREA + (2 << 21) - 0x1001));
            let inner = inner.map_err(|error| Failed::Otherwise(error.to_string()))?;
            resize(&bed.paging()?.new, |domain, gather| domain.split_ends(inner, gather))
        }),
        row(
            "join: pages into two leaves",
            Seen::No,
            move |bed| {
                fill(bed)?;
                split(bed)
            },
            move |bed| resize(&bed.paging()?.new, |domain, gather| domain.join(area(), gather)),
        ),
    ])
}

/// Repeats a change of sizes as it asks for, and has hardware forget the old ones, also after a failure.
fn resize(
    domain: &Arc<dyn Domain>,
    change: impl Fn(&dyn Domain, &mut Gather) -> Result<Progress, ResizeError>,
) -> Result<(), Failed> {
    let mut gather = Gather::new();
    loop {
        let progress = change(&**domain, &mut gather);
        let _proof = domain.sync(&mut gather)?;
        if progress? == Progress::Done {
            return Ok(());
        }
    }
}
