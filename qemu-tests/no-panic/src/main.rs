//! A program that would link only if no public operation of the drivers could reach a panic.
//!
//! Its panic handler calls a function that exists nowhere. Built with the profile `no-panic`, all crates, `core` and
//! `alloc` included, are optimised as one; what is left of the panic handler then is left because something can reach
//! it, and the linker complains of an undefined symbol. `cargo xtask check` builds it for both bare-metal targets, and
//! as it does not link says from where the panic is reached: nowhere but as `allowed.toml` lists.
//!
//! The program never runs. Each module calls the public operations of one crate with values that the compiler cannot
//! know, and hands it results that it cannot ignore.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod embedder;
#[cfg(target_os = "none")]
mod firmware;
#[cfg(target_os = "none")]
mod hal;
#[cfg(target_os = "none")]
mod iommu;
#[cfg(target_os = "none")]
mod pci;
#[cfg(target_os = "none")]
mod pgtable;
#[cfg(target_os = "none")]
mod smmuv3;
#[cfg(target_os = "none")]
mod sva;
#[cfg(target_os = "none")]
mod virtio_iommu;
#[cfg(target_os = "none")]
mod vtd;

/// The program is linked for bare metal; on a host there is nothing to do.
#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("This program is only linked, by `cargo xtask check`.");
    std::process::exit(1);
}
