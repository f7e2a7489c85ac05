//! Finding the functions of a segment.

use crate::config::ConfigSpace;
use crate::function::Function;
use crate::scan::{Scan, Wire};
use crate::spec::BusNumbers;
use crate::{ListMemory, try_push};
use alloc::vec::Vec;
use portcullis_hal::{Mmio, RequesterId};
use thiserror::Error;

/// The functions of a segment cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EnumerateError {
    /// A bridge claims buses that are not its parent's to give: before its own bus, in backward order, past the
    /// parent's last bus, or another bridge's.
    #[error("{bridge}: buses {secondary:#04x} to {subordinate:#04x} are not free below it")]
    BadBuses {
        /// The bridge.
        bridge: RequesterId,
        /// The first bus it claims.
        secondary: u8,
        /// The last bus it claims.
        subordinate: u8,
    },
    /// A root bus is not one of the segment's, or was named twice.
    #[error("bus {0:#04x} cannot be a root bus")]
    BadRoot(u8),
    /// The heap is full.
    #[error(transparent)]
    Memory(#[from] ListMemory),
}

/// Whom a bus number belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// Outside the segment.
    Nobody,
    /// Any bridge on a root bus may claim it.
    Free,
    /// It is a root bus.
    Root,
    /// The bridge with this index claimed it.
    Bridge(usize),
}

/// A bus whose functions are being listed.
struct Level {
    scan: Scan,
    /// The index of the bridge above.
    parent: Option<usize>,
}

/// Lists the functions of the segment, from its first bus on, each bridge followed by what is behind it.
///
/// Bridges without bus numbers are listed; what is behind them cannot be reached. Nothing is written.
///
/// # Errors
///
/// [`BadBuses`](EnumerateError::BadBuses) if the bus numbers do not form a tree, which covers loops and numbers
/// given twice, and [`Memory`](EnumerateError::Memory).
pub fn enumerate<M: Mmio>(config: &ConfigSpace<M>) -> Result<Vec<Function>, EnumerateError> {
    enumerate_roots(config, &[config.buses().first()])
}

/// Lists the functions below several root buses, as [`enumerate`] does below one. Further root buses come from
/// firmware: expander bridges have them.
///
/// # Errors
///
/// As [`enumerate`], and [`BadRoot`](EnumerateError::BadRoot).
pub fn enumerate_roots<M: Mmio>(
    config: &ConfigSpace<M>,
    roots: &[u8],
) -> Result<Vec<Function>, EnumerateError> {
    let mut owners = [Owner::Nobody; 256];
    for bus in config.buses().first()..=config.buses().last() {
        if let Some(owner) = owners.get_mut(usize::from(bus)) {
            *owner = Owner::Free;
        }
    }
    for &root in roots {
        match owners.get_mut(usize::from(root)) {
            Some(owner @ Owner::Free) => *owner = Owner::Root,
            _ => return Err(EnumerateError::BadRoot(root)),
        }
    }
    let mut functions = Vec::new();
    for &root in roots {
        list_tree(config, root, &mut owners, &mut functions)?;
    }
    Ok(functions)
}

fn list_tree<M: Mmio>(
    config: &ConfigSpace<M>,
    root: u8,
    owners: &mut [Owner; 256],
    functions: &mut Vec<Function>,
) -> Result<(), EnumerateError> {
    // Every level has a bus of its own, so there are at most 256.
    let mut levels = Vec::new();
    let scan = Scan::new(root, Wire::Shared);
    try_push(&mut levels, Level { scan, parent: None })?;
    while let Some(level) = levels.last_mut() {
        let parent = level.parent;
        let Some(id) = level.scan.next(config) else {
            levels.pop();
            continue;
        };
        let mut function = Function::read(config, id);
        function.parent = parent;
        function.alias = parent.and_then(|index| functions.get(index)).and_then(Function::alias_for_children);
        if let Some(error) = function.damage {
            log::warn!("{error}");
        }
        let index = functions.len();
        if let Some(buses) = function.buses().filter(|buses| buses.secondary() != 0) {
            claim(owners, parent, index, id, buses)?;
            let scan = Scan::new(buses.secondary(), function.wire_below());
            try_push(&mut levels, Level { scan, parent: Some(index) })?;
        }
        try_push(functions, function)?;
    }
    Ok(())
}

/// Gives the buses of a bridge to it, if they are all its parent's to give.
fn claim(
    owners: &mut [Owner; 256],
    parent: Option<usize>,
    index: usize,
    bridge: RequesterId,
    buses: BusNumbers,
) -> Result<(), EnumerateError> {
    let (secondary, subordinate) = (buses.secondary(), buses.subordinate());
    let error = EnumerateError::BadBuses { bridge, secondary, subordinate };
    let from = parent.map_or(Owner::Free, Owner::Bridge);
    let range = usize::from(secondary)..=usize::from(subordinate);
    let claimed = owners.get_mut(range).filter(|claimed| !claimed.is_empty()).ok_or(error)?;
    // The bus that the bridge is on belongs to its parent too, and is not to give.
    if secondary <= bridge.bus() || claimed.iter().any(|owner| *owner != from) {
        return Err(error);
    }
    claimed.fill(Owner::Bridge(index));
    Ok(())
}

impl Function {
    /// What the bus below this bridge is made of.
    pub(crate) fn wire_below(&self) -> Wire {
        match self.express {
            Some(express) if self.has_link_below() && express.ari_forwarding => Wire::AriLink,
            Some(_) if self.has_link_below() => Wire::Link,
            _ => Wire::Shared,
        }
    }
}
