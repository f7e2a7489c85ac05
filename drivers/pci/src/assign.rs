//! Bus numbers, bridge windows and BARs, where no firmware gave any.

use crate::bar::{BarKind, Bars};
use crate::command;
use crate::config::ConfigSpace;
use crate::enumerate::{EnumerateError, enumerate};
use crate::function::{Class, Function};
use crate::layout::{self, LayoutError, Range, Space, What};
use crate::scan::{Scan, Wire};
use crate::spec::{
    BusNumbers, CLOSED_IO, CLOSED_WINDOW, ClassRegister, HeaderRegister, MemoryWindow, offset,
};
use crate::window::{BusAddress, HostWindow, HostWindows};
use crate::{ListMemory, try_filled, try_push};
use alloc::vec::Vec;
use pci_types::CommandRegister;
use portcullis_hal::{Mmio, RequesterId};
use thiserror::Error;

/// Resources cannot be assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AssignError {
    /// There are more bridges than bus numbers.
    #[error("{0}: no bus number is left for what is behind it")]
    NoBusNumber(RequesterId),
    /// BARs that have to lie in a window for which the host has none, or which is too small.
    #[error("the BARs do not fit the {0:?} window of the host")]
    WindowTooSmall(Space),
    /// A window for BARs of 32 bits reaches above 4 GiB.
    #[error("the low window of the host ends at {0}")]
    WindowTooHigh(BusAddress),
    /// The functions cannot be listed.
    #[error(transparent)]
    Enumerate(#[from] EnumerateError),
    /// The heap is full.
    #[error(transparent)]
    Memory(#[from] ListMemory),
}

/// What [`assign`] found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assignment {
    /// Firmware had configured the segment; nothing was written.
    Kept,
    /// Nobody had; now it is.
    Assigned {
        /// How many bridges got bus numbers.
        bridges: usize,
        /// How many BARs got addresses.
        bars: usize,
    },
}

/// Gives bus numbers, bridge windows and BARs to a segment that no firmware configured, once and before any
/// requester id is used.
///
/// Firmware was there if, on the first bus, a bridge has a secondary bus number or a function other than the host
/// bridge decodes memory or I/O. Then nothing is written, even if it left out some bridge: devices may be at work,
/// and what is behind a bridge without numbers is out of reach in both directions.
///
/// Buses are numbered depth first. Prefetchable 64-bit BARs go to the high window, if there is one and all bridges
/// above them can forward it, everything else to the low one, each BAR on pages of its own. I/O BARs, expansion
/// ROMs and room for hot-plug are left out, and so is a function with a BAR that makes no sense, with a warning in
/// the log. What has an address decodes memory afterwards; nothing masters the bus.
///
/// # Errors
///
/// [`AssignError`]; then no BAR and no window has been written and nothing decodes memory, though buses may have
/// been numbered.
pub fn assign<M: Mmio>(config: &ConfigSpace<M>, windows: &HostWindows) -> Result<Assignment, AssignError> {
    if is_configured(config) {
        return Ok(Assignment::Kept);
    }
    if let Some(low) = windows.low.filter(|low| low.last().get() > u64::from(u32::MAX)) {
        return Err(AssignError::WindowTooHigh(low.last()));
    }
    let bridges = number_buses(config)?;
    let functions = enumerate(config)?;
    let bars = assign_memory(config, &functions, windows)?;
    Ok(Assignment::Assigned { bridges, bars })
}

/// Whether firmware was there; [`assign`] has the rule.
fn is_configured<M: Mmio>(config: &ConfigSpace<M>) -> bool {
    let mut scan = Scan::new(config.buses().first(), Wire::Shared);
    while let Some(id) = scan.next(config) {
        let class = ClassRegister::from_bits(config.read32(id, offset::CLASS));
        let class = Class { base: class.base_class(), sub: class.sub_class(), interface: class.interface() };
        let decoding = CommandRegister::IO_ENABLE | CommandRegister::MEMORY_ENABLE;
        let decodes = !class.is_host_bridge() && command::read(config, id).intersects(decoding);
        if decodes || (is_bridge(config, id) && bus_numbers(config, id).secondary() != 0) {
            return true;
        }
    }
    false
}

fn is_bridge<M: Mmio>(config: &ConfigSpace<M>, id: RequesterId) -> bool {
    HeaderRegister::from_bits(config.read32(id, offset::HEADER)).layout() == 1
}

fn bus_numbers<M: Mmio>(config: &ConfigSpace<M>, id: RequesterId) -> BusNumbers {
    BusNumbers::from_bits(config.read32(id, offset::BUS_NUMBERS))
}

fn set_bus_numbers<M: Mmio>(config: &ConfigSpace<M>, id: RequesterId, secondary: u8, subordinate: u8) {
    let numbers = bus_numbers(config, id)
        .with_primary(if secondary == 0 { 0 } else { id.bus() })
        .with_secondary(secondary)
        .with_subordinate(subordinate);
    config.write32(id, offset::BUS_NUMBERS, numbers.into_bits());
}

/// A bus whose bridges are being numbered.
struct Level {
    scan: Scan,
    bridge: Option<RequesterId>,
}

/// Numbers the buses depth first; returns how many bridges there are.
fn number_buses<M: Mmio>(config: &ConfigSpace<M>) -> Result<usize, AssignError> {
    let (first, last) = (config.buses().first(), config.buses().last());
    let mut levels = Vec::new();
    let mut highest = first;
    let mut bridges = 0;
    close_bridges(config, Scan::new(first, Wire::Shared));
    let scan = Scan::new(first, Wire::Shared);
    try_push(&mut levels, Level { scan, bridge: None })?;
    while let Some(level) = levels.last_mut() {
        let Some(id) = level.scan.next(config) else {
            if let Some(bridge) = level.bridge {
                set_bus_numbers(config, bridge, level.scan.bus(), highest);
            }
            levels.pop();
            continue;
        };
        if !is_bridge(config, id) {
            continue;
        }
        if highest >= last {
            return Err(AssignError::NoBusNumber(id));
        }
        highest += 1;
        bridges += 1;
        // Open to all remaining buses until it is known how many are behind it.
        set_bus_numbers(config, id, highest, last);
        let scan = Scan::new(highest, Function::read(config, id).wire_below());
        close_bridges(config, scan);
        try_push(&mut levels, Level { scan, bridge: Some(id) })?;
    }
    Ok(bridges)
}

/// Takes the numbers from the bridges of a bus, so that a stale one does not claim what another is given.
fn close_bridges<M: Mmio>(config: &ConfigSpace<M>, mut scan: Scan) {
    while let Some(id) = scan.next(config) {
        if is_bridge(config, id) {
            set_bus_numbers(config, id, 0, 0);
        }
    }
}

/// Sizes, places and writes; returns how many BARs got an address.
fn assign_memory<M: Mmio>(
    config: &ConfigSpace<M>,
    functions: &[Function],
    windows: &HostWindows,
) -> Result<usize, AssignError> {
    let mut bars: Vec<Bars> = Vec::new();
    for function in functions {
        let probed = Bars::probe(config, function).unwrap_or_else(|error| {
            log::warn!("{error}; its BARs stay off");
            Bars::default()
        });
        try_push(&mut bars, probed)?;
    }
    let mut parents: Vec<Option<usize>> = Vec::new();
    for function in functions {
        try_push(&mut parents, function.parent)?;
    }
    let reach = high_reach(config, functions, windows)?;
    let (mut low, mut high) = (Vec::new(), Vec::new());
    for (index, (function, bars)) in functions.iter().zip(&bars).enumerate() {
        for bar in bars.iter().filter(|bar| bar.is_memory()) {
            let range = Range::bar(index, bar.index, function.parent, bar.size);
            let wide = bar.kind == BarKind::Memory64 && bar.prefetchable;
            let space = function.parent.map_or(Some(&reach.root), |bridge| reach.below.get(bridge));
            match space {
                Some(Space::High) if wide => try_push(&mut high, range)?,
                _ => try_push(&mut low, range)?,
            }
        }
    }
    place(&mut low, &parents, windows.low, Space::Low)?;
    place(&mut high, &parents, windows.high, Space::High)?;

    for bridge in functions.iter().filter(|function| function.buses().is_some()) {
        close_windows(config, bridge.id);
    }
    for (ranges, space) in [(&low, Space::Low), (&high, Space::High)] {
        for range in ranges {
            write_range(config, functions, &bars, range, space);
        }
    }
    let is_bar = |range: &&Range| matches!(range.what, What::Bar { .. });
    Ok(low.iter().chain(&high).filter(is_bar).count())
}

fn place(
    ranges: &mut Vec<Range>,
    parents: &[Option<usize>],
    window: Option<HostWindow>,
    space: Space,
) -> Result<(), AssignError> {
    if ranges.is_empty() {
        return Ok(());
    }
    let window = window.ok_or(AssignError::WindowTooSmall(space))?;
    layout::place(ranges, parents, window.first().get(), window.last().get()).map_err(|error| match error {
        LayoutError::TooSmall => AssignError::WindowTooSmall(space),
        LayoutError::Memory(memory) => memory.into(),
    })
}

/// The best space that reaches a bus.
struct Reach {
    root: Space,
    /// For each bridge, by index, what reaches the bus below it.
    below: Vec<Space>,
}

/// Finds which bridges can forward the high window: those with 64-bit prefetchable windows all the way up.
fn high_reach<M: Mmio>(
    config: &ConfigSpace<M>,
    functions: &[Function],
    windows: &HostWindows,
) -> Result<Reach, ListMemory> {
    let root = if windows.high.is_some() { Space::High } else { Space::Low };
    let mut below = try_filled(Space::Low, functions.len())?;
    for (index, function) in functions.iter().enumerate() {
        let above = function.parent.map_or(Some(root), |bridge| below.get(bridge).copied());
        let window = config.read32(function.id, offset::PREFETCHABLE_WINDOW);
        let wide = function.buses().is_some() && MemoryWindow::from_bits(window).base_type() == 1;
        if let Some(own) = below.get_mut(index)
            && wide
            && above == Some(Space::High)
        {
            *own = Space::High;
        }
    }
    Ok(Reach { root, below })
}

/// Lets a bridge forward nothing.
fn close_windows<M: Mmio>(config: &ConfigSpace<M>, bridge: RequesterId) {
    config.write32(bridge, offset::IO_WINDOW, CLOSED_IO);
    config.write32(bridge, offset::IO_UPPER, 0);
    config.write32(bridge, offset::MEMORY_WINDOW, CLOSED_WINDOW.into_bits());
    config.write32(bridge, offset::PREFETCHABLE_WINDOW, CLOSED_WINDOW.into_bits());
    config.write32(bridge, offset::PREFETCHABLE_BASE_UPPER, 0);
    config.write32(bridge, offset::PREFETCHABLE_LIMIT_UPPER, 0);
}

/// Writes one BAR or window, and lets its function decode.
fn write_range<M: Mmio>(
    config: &ConfigSpace<M>,
    functions: &[Function],
    bars: &[Bars],
    range: &Range,
    space: Space,
) {
    match range.what {
        What::Bar { function, slot } => {
            let bar = bars.get(function).and_then(|bars| bars.get(slot));
            if let (Some(function), Some(bar)) = (functions.get(function), bar) {
                bar.write(config, function.id, BusAddress::new(range.at));
                command::enable_memory(config, function.id);
            }
        }
        What::Window { bridge } => {
            let Some(bridge) = functions.get(bridge) else {
                return;
            };
            let window = MemoryWindow::new()
                .with_base((range.at >> 20) as u16 & 0xfff)
                .with_limit((range.last() >> 20) as u16 & 0xfff)
                .into_bits();
            if space == Space::High {
                let (base, limit) = ((range.at >> 32) as u32, (range.last() >> 32) as u32);
                config.write32(bridge.id, offset::PREFETCHABLE_BASE_UPPER, base);
                config.write32(bridge.id, offset::PREFETCHABLE_LIMIT_UPPER, limit);
                config.write32(bridge.id, offset::PREFETCHABLE_WINDOW, window);
            } else {
                config.write32(bridge.id, offset::MEMORY_WINDOW, window);
            }
            command::enable_memory(config, bridge.id);
        }
    }
}
