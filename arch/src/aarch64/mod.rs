//! The facade on AArch64: EL2 with VHE, GICv3 with ITS, PSCI, a PL011 and the device tree of QEMU's `virt` machine.
#![cfg(target_os = "none")]

mod boot;
pub mod console;
pub mod cpu;
mod device_tree;
mod gic;
pub mod interrupts;
mod its;
mod its_spec;
mod lock;
pub mod paging;
pub mod power;
mod psci;
pub mod smp;
pub mod time;
pub mod tlb;
mod trap;
pub mod user;
