//! What is kept in lists: namespaces of PASIDs and their sets, claims, I/O virtual addresses.

use super::Failed;
use super::bed::{AREA, Bed};
use super::rows::{Row, Seen, nothing, row};
use super::sharing::{device, registered};
use portcullis_hal::{Iova, IovaRange, Pasid};
use portcullis_iommu::{
    GuestPasid, IovaAllocator, IovaError, PasidError, PasidSetId, PasidSetSpec, PasidSpace,
};

impl From<PasidError> for Failed {
    fn from(error: PasidError) -> Self {
        match error {
            PasidError::OutOfMemory(_) => Self::OutOfMemory,
            other => Self::Otherwise(other.to_string()),
        }
    }
}

impl From<IovaError> for Failed {
    fn from(error: IovaError) -> Self {
        match error {
            IovaError::OutOfMemory(_) => Self::OutOfMemory,
            other => Self::Otherwise(other.to_string()),
        }
    }
}

fn number(value: u32) -> Result<Pasid, Failed> {
    Pasid::new(value).map_err(|error| Failed::Otherwise(error.to_string()))
}

/// The operations on them.
pub(super) fn rows() -> Vec<Row> {
    Vec::from([
        row("namespace of a device's own", Seen::No, registered, |bed| {
            drop(bed.iommu.use_own_pasids(&*device(bed, 0)?)?);
            Ok(bed.iommu.use_system_pasids(&*device(bed, 0)?)?)
        }),
        row("claim of a device's PASIDs", Seen::No, registered, |bed| {
            drop(bed.iommu.claim_pasids(&device(bed, 0)?)?);
            Ok(())
        }),
        row("sets of PASIDs", Seen::No, nothing, sets),
        row("I/O virtual addresses", Seen::No, nothing, addresses),
    ])
}

/// A set's life, in a namespace of its own and in the system's, of which a failure must not keep anything.
fn sets(bed: &Bed) -> Result<(), Failed> {
    let mut own = PasidSpace::new(number(63)?);
    in_space(&mut own)?;
    in_space(&mut bed.iommu.system_pasids().lock())
}

fn in_space(space: &mut PasidSpace) -> Result<(), Failed> {
    let set = space.add_set(PasidSetSpec { min: number(1)?, max: number(63)?, quota: 8 })?;
    let taken = fill(space, set);
    loop {
        let held = space.held_by(set).next();
        let Some(pasid) = held else { break };
        space.release(pasid)?;
    }
    space.remove_set(set)?;
    taken
}

fn fill(space: &mut PasidSpace, set: PasidSetId) -> Result<(), Failed> {
    space.allocate(set)?;
    for name in 1..6 {
        space.allocate_for_guest(set, GuestPasid(number(name)?))?;
    }
    Ok(())
}

fn addresses(_: &Bed) -> Result<(), Failed> {
    let range = |first, len| {
        IovaRange::new(Iova::new(first), len).map_err(|error| Failed::Otherwise(error.to_string()))
    };
    let hole = range(AREA + 0x10_0000, 0x1000)?;
    let mut iovas = IovaAllocator::new(range(AREA, 0x100_0000)?, &[hole])?;
    let (one, other, third) =
        (iovas.take(0x1000, 0x1000)?, iovas.take(0x4000, 0x1000)?, iovas.take(0x1000, 0x1000)?);
    // Two holes that do not touch, for which nothing is allocated any more.
    for range in [one, third, other] {
        iovas.give_back(range);
    }
    Ok(())
}
