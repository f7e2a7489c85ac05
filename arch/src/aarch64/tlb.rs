//! What CPUs remember of user tables, and how they are made to forget it: by invalidations that reach them all.

#![expect(unsafe_code, reason = "TLB maintenance")]

use crate::{CpuSet, UserTables};
use core::arch::asm;
use thiserror::Error;

/// More pages than these are forgotten by forgetting the address space.
const FEW_PAGES: u64 = 32;

/// A CPU may still use what it was to forget. It does not happen here: invalidations are broadcast, and the barrier
/// after them waits for all CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ShootDownError {}

/// Makes all CPUs forget the translations of `first..=last`, and what they know of tables there. When this returns, none
/// of them uses what the tables held before the caller changed them.
pub fn shoot_down(_cpus: CpuSet, tables: &UserTables, first: u64, last: u64) -> Result<(), ShootDownError> {
    let pages = (last >> 12).saturating_sub(first >> 12).saturating_add(1);
    if pages > FEW_PAGES {
        retire(tables);
        return Ok(());
    }
    // SAFETY: invalidations change no memory. The first barrier makes the changed tables visible to all walkers, the
    // last one waits for all CPUs (Arm ARM, D8, "TLB maintenance instructions").
    unsafe {
        asm!("dsb ishst", options(nostack, preserves_flags));
        for page in first >> 12..=last >> 12 {
            let operand = asid(tables) | page & ((1 << 44) - 1);
            asm!("tlbi vae1is, {}", in(reg) operand, options(nostack, preserves_flags));
        }
        asm!("dsb ish", "isb", options(nostack, preserves_flags));
    }
    Ok(())
}

/// Makes all CPUs forget everything of an address space, so that its ASID may serve another one.
pub fn retire(tables: &UserTables) {
    // SAFETY: as above.
    unsafe {
        asm!("dsb ishst", "tlbi aside1is, {}", "dsb ish", "isb", in(reg) asid(tables),
            options(nostack, preserves_flags));
    }
}

/// Does what other CPUs ask of this one: nothing, since hardware does.
pub fn serve() {}

/// The ASID where the instructions want it, in bits 63:48.
fn asid(tables: &UserTables) -> u64 {
    u64::from(tables.asid.get()) << 48
}
