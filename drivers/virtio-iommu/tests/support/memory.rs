//! Memory that can run out: frames and heap, counted together, per thread.

#![allow(unused_imports, reason = "each test file uses a part of it")]

pub(crate) use portcullis_hal::host::scarce::{
    ScarceHal as TestHal, exempt, failing, heap_left_by, unfailing,
};

#[global_allocator]
static HEAP: portcullis_hal::host::scarce::Heap = portcullis_hal::host::scarce::Heap;
