//! x86_64 on QEMU's q35, or any machine that boots an ELF image through PVH.
//!
//! # Address space
//!
//! | from | what |
//! |---|---|
//! | `0x0000_0000_0000_0000` | user address spaces; each root has a copy of the kernel's upper half |
//! | `0xffff_8000_0000_0000` | direct map: RAM write-back, device windows uncached, firmware tables read-only |
//! | `0xffff_ffff_8000_0000` | the kernel's image, at its physical address plus this offset |
//!
//! Text is executable, everything else is not; text and constants are read-only in the direct map, too.
//!
//! # Boot
//!
//! `boot` enters in 32-bit mode with `hvm_start_info` in EBX, goes to long mode on tables that map the first
//! 4 GiB, and there `pvh` reads the loader's description and `paging` builds the tables that stay. The boot tables
//! serve once more, for each further CPU that comes up in `smp`, since they map its trampoline page (0x8000) at its
//! own address; they allow everything, and no CPU stays on them.
//!
//! Neither firmware tables nor device registers are mapped until the kernel asks. Page tables come from a pool in
//! the image; RAM that it does not suffice for is left out of the memory map.
//!
//! # Per CPU
//!
//! Each CPU has a `percpu` block with its GDT, TSS and emergency stacks (double fault, NMI, machine check), to which
//! GS.base points. All share one IDT, whose stubs save a complete [`trap::TrapFrame`]. The target has no SSE and no
//! x87 state to save.
//!
//! # User mode
//!
//! Ring 3 enters through the same stubs, whose frame then lies in [`user::Context`]. GS.base is swapped on the way, and
//! user code has neither ports nor a floating-point unit.
//!
//! # Interrupts
//!
//! The 8259s are masked and the I/O APIC is not used: devices interrupt by MSI, one vector (0x30 to 0xef) each.
//! The vectors above are for calls of user code and for CPUs that ask each other to flush their TLBs.

#[cfg(target_os = "none")]
mod apic;
#[cfg(target_os = "none")]
mod boot;
#[cfg(target_os = "none")]
pub mod console;
#[cfg(target_os = "none")]
pub mod cpu;
#[cfg(target_os = "none")]
pub mod interrupts;
#[cfg(target_os = "none")]
pub mod paging;
#[cfg(target_os = "none")]
mod percpu;
#[cfg(target_os = "none")]
pub mod power;
#[cfg(any(target_os = "none", test))]
mod pvh;
#[cfg(target_os = "none")]
pub mod smp;
#[cfg(target_os = "none")]
pub mod time;
#[cfg(target_os = "none")]
pub mod tlb;
#[cfg(target_os = "none")]
mod trap;
#[cfg(target_os = "none")]
pub mod user;
