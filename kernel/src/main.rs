//! The Portcullis reference hypervisor kernel.
fn main() {}
