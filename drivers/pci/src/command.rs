//! The command register (7.5.1.1.3): what a function may do at all.

use crate::config::ConfigSpace;
use crate::function::Function;
use crate::spec::offset;
use crate::{ListMemory, try_filled};
use pci_types::CommandRegister;
use portcullis_hal::{Mmio, RequesterId};

/// Whether a function may make requests: memory accesses and message-signalled interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusMaster {
    /// It stays as the firmware left it.
    Keep,
    /// It may not.
    Clear,
}

/// Changes the command register. The status half is written as zeros, which leaves it alone.
pub(crate) fn update<M: Mmio>(
    config: &ConfigSpace<M>,
    function: RequesterId,
    change: impl FnOnce(CommandRegister) -> CommandRegister,
) {
    let command = read(config, function);
    config.write32(function, offset::COMMAND, u32::from(change(command).bits()));
}

pub(crate) fn read<M: Mmio>(config: &ConfigSpace<M>, function: RequesterId) -> CommandRegister {
    CommandRegister::from_bits_retain(config.read32(function, offset::COMMAND) as u16)
}

/// Lets a function make requests, and the bridges above it pass them on.
///
/// `index` is the function's place in `functions`; nothing happens if there is none.
pub fn enable_bus_master<M: Mmio>(config: &ConfigSpace<M>, functions: &[Function], index: usize) {
    let mut next = Some(index);
    while let Some((at, function)) = next.and_then(|at| functions.get(at).map(|function| (at, function))) {
        update(config, function.id, |command| command | CommandRegister::BUS_MASTER_ENABLE);
        next = function.parent.filter(|&parent| parent < at);
    }
}

/// Lets a function make no more requests. For a bridge, it also keeps what is behind it from the host.
///
/// A request that was under way when it returns may still arrive.
pub fn disable_bus_master<M: Mmio>(config: &ConfigSpace<M>, function: RequesterId) {
    update(config, function, |command| command - CommandRegister::BUS_MASTER_ENABLE);
}

/// Lets a function decode its memory BARs, or a bridge its memory windows.
pub fn enable_memory<M: Mmio>(config: &ConfigSpace<M>, function: RequesterId) {
    update(config, function, |command| command | CommandRegister::MEMORY_ENABLE);
}

/// Keeps a function from its interrupt pin.
pub fn disable_intx<M: Mmio>(config: &ConfigSpace<M>, function: RequesterId) {
    update(config, function, |command| command | CommandRegister::INTERRUPT_DISABLE);
}

/// Takes the right to make requests from every function for which `policy` says so, and returns how many had it.
///
/// Before VT-d translates, nothing else keeps a device from memory. Functions with reserved regions, whose
/// firmware goes on to use them, are kept; so are the bridges on their way to the host, whatever `policy` says of
/// those.
///
/// # Errors
///
/// No memory for a list; nothing was changed then.
pub fn clear_bus_master_everywhere<M: Mmio>(
    config: &ConfigSpace<M>,
    functions: &[Function],
    mut policy: impl FnMut(&Function) -> BusMaster,
) -> Result<usize, ListMemory> {
    let mut kept = try_filled(BusMaster::Clear, functions.len())?;
    // Children come after their bridge, so the last is seen first and passes its need on.
    for (index, function) in functions.iter().enumerate().rev() {
        if policy(function) == BusMaster::Keep
            && let Some(kept) = kept.get_mut(index)
        {
            *kept = BusMaster::Keep;
        }
        if kept.get(index) == Some(&BusMaster::Keep)
            && let Some(above) = function.parent.and_then(|parent| kept.get_mut(parent))
        {
            *above = BusMaster::Keep;
        }
    }
    let mut cleared = 0;
    for (function, kept) in functions.iter().zip(kept) {
        if kept == BusMaster::Clear && read(config, function.id).contains(CommandRegister::BUS_MASTER_ENABLE)
        {
            disable_bus_master(config, function.id);
            cleared += 1;
        }
    }
    Ok(cleared)
}
