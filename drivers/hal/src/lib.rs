//! What an embedder gives the Portcullis IOMMU drivers, and the types that make DMA safe.
//!
//! A kernel implements [`Hal`] once: frames, physical-to-virtual translation, cache maintenance, time and a
//! critical section. Everything else here is built on it: owned DMA memory ([`Frames`]), memory lent to
//! devices by value ([`Mapped`]), register access ([`Mmio`]), bounded waits ([`wait`]), barriers named by purpose
//! ([`barrier`]), and the address and identifier newtypes that the whole stack shares.
//!
//! | what | where |
//! |---|---|
//! | addresses, ids, attributes and mappings | `addr`, `id`, `mapping` |
//! | I/O address spaces: the contract, unmaps until their sync, maps that are sent together, sizes and marks of leaves | `space`, `gather`, `queued`, `leaves` |
//! | memory: frames, what devices may be given, what they have | `frames`, `dma`, `mapped` |
//! | tables and address spaces of others | `table`, `mm` |
//! | registers, waits, barriers, 128-bit words | `mmio`, [`wait`], [`barrier`], [`atomic128`] |
//! | lists and pointers whose allocation reports failure | [`list`], [`arc`] |
//! | what is read without a lock: a list that grows, a value that is replaced, a ring of many producers | [`roster`], [`snapshot`], [`producers`]; over [`word`], and [`count`]ed |
//! | a kernel's services on a host, for tests (feature `host`) | `host` |
//!
//! This is the one library crate in which unsafe contracts are declared. The drivers on top deny unsafe code
//! outside their DMA module, and the policy crates deny it everywhere.
#![cfg_attr(not(any(test, feature = "host", feature = "loom")), no_std)]

extern crate alloc;

mod addr;
pub mod arc;
pub mod atomic128;
pub mod barrier;
#[cfg(feature = "loom")]
pub mod checked;
pub mod count;
mod dma;
mod frames;
mod gather;
#[cfg(any(test, feature = "host"))]
pub mod host;
mod id;
mod leaves;
pub mod list;
mod mapped;
mod mapping;
mod mm;
mod mmio;
pub mod producers;
mod queued;
pub mod roster;
pub mod snapshot;
mod space;
mod table;
pub mod wait;
pub mod word;

pub use addr::{AddressError, Iova, IovaRange, Ipa, PAGE_SIZE, PhysAddr, PhysRange};
pub use arc::Arc;
pub use dma::{DmaMemory, FixedMapping, IdentityAccess};
pub use frames::{FrameChain, FrameOrder, Frames, OutOfMemory};
pub use gather::{Gather, GatherBusy, SpaceKey, SyncProof};
pub use id::{Asid, DomainId, EndpointId, IdError, Pasid, RequesterId, StreamId, Vmid};
pub use leaves::{HarvestError, NoTables, Progress, ResizeError, Resizes, Usage};
pub use mapped::{Mapped, QuarantineReason, Quarantined, Refused, Unsynced};
pub use mapping::{Access, Attributes, Mapping, MemoryKind, Translated};
pub use mm::{FaultOutcome, Mm, MmFault, MmNotifier, MmSubscription, PinError, SubscribeError};
pub use mmio::{Mmio, MmioRegion};
pub use queued::{QueuedMaps, SendMapsError};
pub use space::{IoSpace, MapError, SyncError, UnmapError};
pub use table::{Granule, SharedTable, TableFormat, TableRoot, TableWrites};

use core::ptr::NonNull;

/// The services a kernel provides to the drivers.
///
/// Implementations are cheap to clone: usually a zero-sized type or a `&'static` reference.
///
/// # Implementation safety
///
/// - [`alloc_frames`](Hal::alloc_frames) returns memory that nobody else uses until it is freed, naturally
///   aligned to its size, filled with zeros, and readable and writable through
///   [`phys_to_virt`](Hal::phys_to_virt) as normal cacheable memory.
/// - [`phys_to_virt`](Hal::phys_to_virt) returns the same pointer for the same address as long as the frame
///   is allocated.
/// - [`clean_cache`](Hal::clean_cache) returns only when the bytes are visible to an observer that does not
///   snoop the CPU's caches.
/// - [`mask_interrupts`](Hal::mask_interrupts) really keeps interrupt handlers off the current CPU until the
///   matching restore; nothing else moves the caller to another CPU in between.
#[expect(unsafe_code, reason = "this crate declares the unsafe contracts of the stack")]
pub unsafe trait Hal: Clone + Send + Sync + 'static {
    /// Allocates `2^order` contiguous 4 KiB frames, zeroed and naturally aligned.
    fn alloc_frames(&self, order: FrameOrder) -> Result<PhysAddr, OutOfMemory>;

    /// Gives frames back.
    ///
    /// # Safety
    ///
    /// `base` and `order` are those of an earlier [`alloc_frames`](Hal::alloc_frames) of this `Hal`, the
    /// frames have not been freed since, and neither the CPU nor a device can reach them any more.
    unsafe fn free_frames(&self, base: PhysAddr, order: FrameOrder);

    /// The address at which the CPU sees a frame of this `Hal`, or memory that a VM or a firmware table
    /// lent to the stack.
    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8>;

    /// Writes the cache lines of `len` bytes from `start` back to memory. Where a unit's own writes may pass by the
    /// caches as well (Arm), it also drops the lines, so that a later read sees what the unit wrote. Called only for
    /// units that do not snoop the CPU's caches.
    fn clean_cache(&self, start: NonNull<u8>, len: usize);

    /// Monotonic time in nanoseconds.
    fn now_ns(&self) -> u64;

    /// A hint that the caller spins.
    fn relax(&self) {
        core::hint::spin_loop();
    }

    /// Masks interrupts on this CPU and returns what [`restore_interrupts`](Hal::restore_interrupts) needs.
    fn mask_interrupts(&self) -> InterruptMask;

    /// Ends the critical section that `mask` began; sections nest.
    fn restore_interrupts(&self, mask: InterruptMask);

    /// Runs `section` with interrupts masked on this CPU.
    #[inline(always)]
    fn critical<R>(&self, section: impl FnOnce() -> R) -> R {
        let mask = self.mask_interrupts();
        let result = section();
        self.restore_interrupts(mask);
        result
    }
}

/// The interrupt state to return to at the end of a critical section; opaque to the drivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct InterruptMask(pub u64);

/// The address and data that a message-signalled interrupt writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// The doorbell, as the interrupt controller knows it. A device behind an IOMMU writes to an I/O
    /// virtual address that has to translate to it.
    pub address: PhysAddr,
    /// The 32-bit value written.
    pub data: u32,
}
