//! Where BARs and bridge windows go: arithmetic alone, no registers.
//!
//! Everything on a bus is packed from its strictest alignment down, so that nothing is lost between powers of
//! two; a bridge's window is what the buses behind it need, packed first and from zero, with the alignment of
//! its strictest member. What was packed from zero stays aligned wherever the window goes.

use crate::{ListMemory, try_filled, try_push};
use alloc::vec::Vec;
use portcullis_hal::{PAGE_SIZE, list::sort_by_key};
use thiserror::Error;

/// The granularity of a bridge's memory windows.
const WINDOW_GRAIN: u64 = 1 << 20;

/// Which of the host's windows, and of a bridge's, an address is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Below 4 GiB, through the memory windows of the bridges.
    Low,
    /// Prefetchable and 64 bits wide, through the prefetchable windows of the bridges.
    High,
}

/// What takes addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A BAR of the function with this index.
    Bar { function: usize, slot: u8 },
    /// The window of the bridge with this index.
    Window { bridge: usize },
}

/// One range that has to be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) what: What,
    /// The index of the bridge above, `None` on a root bus.
    pub(crate) bus: Option<usize>,
    pub(crate) size: u64,
    align: u64,
    /// Where it goes: relative to its bus while packing, in the end absolute.
    pub(crate) at: u64,
}

impl Range {
    /// A BAR of `size` bytes, a power of two. It gets whole pages, so that each BAR can be given to an owner of
    /// its own.
    pub(crate) fn bar(function: usize, slot: u8, bus: Option<usize>, size: u64) -> Self {
        let size = size.max(PAGE_SIZE);
        Self { what: What::Bar { function, slot }, bus, size, align: size, at: 0 }
    }

    /// The last address.
    pub(crate) const fn last(&self) -> u64 {
        self.at.saturating_add(self.size.saturating_sub(1))
    }
}

/// What is asked for does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum LayoutError {
    #[error("does not fit")]
    TooSmall,
    #[error(transparent)]
    Memory(#[from] ListMemory),
}

/// Places `ranges` between `first` and `last`, and appends a placed window for each bridge that has something
/// behind it.
///
/// `parents` has, for each function, the index of the bridge above, which is below its own.
pub(crate) fn place(
    ranges: &mut Vec<Range>,
    parents: &[Option<usize>],
    first: u64,
    last: u64,
) -> Result<(), LayoutError> {
    // The ranges of each bus, as list positions; 0 is the root, bridge i is i + 1.
    let mut buses: Vec<Vec<usize>> = Vec::new();
    buses.try_reserve_exact(parents.len() + 1).map_err(ListMemory::from)?;
    buses.resize_with(parents.len() + 1, Vec::new);
    for (position, range) in ranges.iter().enumerate() {
        if let Some(bus) = buses.get_mut(bus_number(range.bus)) {
            try_push(bus, position)?;
        }
    }
    for (bridge, &parent) in parents.iter().enumerate().rev() {
        let Some(members) = buses.get_mut(bridge + 1).map(core::mem::take) else {
            continue;
        };
        if members.is_empty() {
            continue;
        }
        let (end, align) = pack(ranges, members, 0)?;
        let size = end.checked_next_multiple_of(WINDOW_GRAIN).ok_or(LayoutError::TooSmall)?;
        let window =
            Range { what: What::Window { bridge }, bus: parent, size, align: align.max(WINDOW_GRAIN), at: 0 };
        if let Some(bus) = buses.get_mut(bus_number(parent)) {
            try_push(bus, ranges.len())?;
        }
        try_push(ranges, window)?;
    }
    let root = buses.first_mut().map(core::mem::take).unwrap_or_default();
    // Many devices take address 0 for "not assigned".
    let (end, _) = pack(ranges, root, first.max(1))?;
    if end.saturating_sub(1) > last {
        return Err(LayoutError::TooSmall);
    }
    make_absolute(ranges, parents.len())
}

fn bus_number(bus: Option<usize>) -> usize {
    bus.map_or(0, |bridge| bridge.saturating_add(1))
}

/// Packs the ranges at `members` from `start` on; returns the end and the strictest alignment.
fn pack(ranges: &mut [Range], mut members: Vec<usize>, start: u64) -> Result<(u64, u64), LayoutError> {
    sort_by_key(&mut members, |&position| {
        let range = ranges.get(position);
        // The position keeps equal ones in the order of the devices.
        (core::cmp::Reverse(range.map(|range| (range.align, range.size))), position)
    });
    let (mut end, mut strictest) = (start, 1);
    for position in members {
        let Some(range) = ranges.get_mut(position) else {
            continue;
        };
        range.at = end.checked_next_multiple_of(range.align).ok_or(LayoutError::TooSmall)?;
        end = range.at.checked_add(range.size).ok_or(LayoutError::TooSmall)?;
        strictest = strictest.max(range.align);
    }
    Ok((end, strictest))
}

/// Adds the addresses of the windows to what is inside them.
fn make_absolute(ranges: &mut [Range], functions: usize) -> Result<(), LayoutError> {
    // Windows were appended from the last bridge to the first, so in reverse each comes after the one around it.
    let mut bases = try_filled(0_u64, functions)?;
    for range in ranges.iter_mut().rev() {
        let base = range.bus.and_then(|bridge| bases.get(bridge)).copied().unwrap_or(0);
        range.at = range.at.checked_add(base).ok_or(LayoutError::TooSmall)?;
        if let What::Window { bridge } = range.what
            && let Some(own) = bases.get_mut(bridge)
        {
            *own = range.at;
        }
    }
    Ok(())
}
