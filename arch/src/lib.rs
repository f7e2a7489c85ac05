//! CPU and board support of the Portcullis reference kernel.
//!
//! One facade, two implementations with the same file names: `x86_64` (PVH boot on q35, APIC) and `aarch64`
//! (EL2 with VHE on virt, GICv3 with ITS). The kernel names only what is documented here.
//!
//! Entry code hands control to the kernel crate's `kernel_main(BootInfo) -> !`, on the boot CPU, in the top half
//! of the address space, with interrupts masked, a console that works, and all RAM in the direct map. The bottom
//! half of the address space is free, for user address spaces.
#![no_std]

mod boot_info;
mod user_exit;

#[cfg(target_arch = "aarch64")]
#[path = "aarch64/mod.rs"]
mod imp;
#[cfg(target_arch = "x86_64")]
#[path = "x86_64/mod.rs"]
mod imp;

pub use boot_info::{BootInfo, Firmware, MemoryMap};
#[cfg(target_os = "none")]
pub use imp::{console, cpu, interrupts, paging, power, smp, time, tlb, user};
pub use user_exit::{Call, CpuSet, Exception, Exit, PageFault, UserTables};
