//! The Portcullis reference hypervisor kernel.
//!
//! It boots in QEMU, finds the IOMMUs and the devices behind them, takes all rights from the devices, and then runs
//! one job, named on the command line: `job=main` proves with real DMA what the stack claims, `job=shell` is an
//! interactive console for people who bring up hardware.
//!
//! | where | what |
//! |---|---|
//! | `entry`, `second` | from the entry code to the job; the second CPU |
//! | `machine` | firmware tables, PCI, units and devices put together |
//! | `units` | each kind of IOMMU brought up |
//! | `memory`, `dma` | frames and the heap, [`portcullis_hal::Hal`]; memory for drivers of devices |
//! | `devices` | a disk, DMA engines, test devices |
//! | `mm`, `user` | address spaces; code that runs in them |
//! | `job`, `console`, `report` | the jobs; the commands; what the harness reads |
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod devices;
#[cfg(target_os = "none")]
mod dma;
#[cfg(target_os = "none")]
mod entry;
#[cfg(target_os = "none")]
mod job;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod mm;
#[cfg(target_os = "none")]
mod report;
#[cfg(target_os = "none")]
mod second;
#[cfg(target_os = "none")]
mod units;
#[cfg(target_os = "none")]
mod user;

/// The kernel is for bare metal; on a host there is nothing to do.
#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!(
        "This is a kernel. Build it for x86_64-unknown-none or aarch64-unknown-none, or use `cargo xtask run`."
    );
    std::process::exit(1);
}
