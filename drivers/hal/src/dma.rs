//! I/O address spaces: what is mapped, and when the memory behind it is free again.

#![expect(unsafe_code, reason = "mapping memory for a device is a contract of this crate")]

use crate::wait::Timeout;
use crate::{
    FrameChain, FrameOrder, Hal, HarvestError, Iova, IovaRange, NoTables, OutOfMemory, PhysAddr, PhysRange,
    Progress, QueuedMaps, ResizeError, SendMapsError, Usage,
};
use bitflags::bitflags;
use core::any::Any;
use core::fmt;
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicU64, Ordering};
use thiserror::Error;

bitflags! {
    /// What a device may do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Access: u8 {
        /// Read memory.
        const READ = 1;
        /// Write memory.
        const WRITE = 2;
        /// Fetch instructions.
        const EXECUTE = 4;
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (flag, letter) in [(Self::READ, 'r'), (Self::WRITE, 'w'), (Self::EXECUTE, 'x')] {
            write!(f, "{}", if self.contains(flag) { letter } else { '-' })?;
        }
        Ok(())
    }
}

/// How a mapping's memory is to be accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum MemoryKind {
    /// Ordinary memory, write-back cacheable and snooped.
    #[default]
    WriteBack,
    /// Memory that is not cached.
    NonCacheable,
    /// Device registers: peer-to-peer windows, interrupt doorbells.
    Device,
}

impl fmt::Display for MemoryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::WriteBack => "write-back",
            Self::NonCacheable => "non-cacheable",
            Self::Device => "device",
        })
    }
}

/// The attributes of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// What the device may do; not empty.
    pub access: Access,
    /// The kind of memory.
    pub memory: MemoryKind,
}

impl Attributes {
    /// Ordinary memory that the device reads and writes.
    pub const READ_WRITE: Self = Self::memory(Access::READ.union(Access::WRITE));
    /// Ordinary memory that the device reads.
    pub const READ: Self = Self::memory(Access::READ);
    /// Ordinary memory that the device writes and cannot read.
    pub const WRITE: Self = Self::memory(Access::WRITE);
    /// Registers that the device writes: an interrupt doorbell. Readable too, since stage-1 formats have no
    /// write-only entries.
    pub const DOORBELL: Self = Self { access: Access::READ.union(Access::WRITE), memory: MemoryKind::Device };

    /// Whether a mapping with these attributes does for one that is asked for with `wanted`.
    pub fn serves(self, wanted: Self) -> bool {
        self.access.contains(wanted.access) && self.memory == wanted.memory
    }

    /// Ordinary memory with this access.
    pub const fn memory(access: Access) -> Self {
        Self { access, memory: MemoryKind::WriteBack }
    }
}

/// One contiguous piece of a mapping request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The first I/O virtual address.
    pub iova: Iova,
    /// The memory behind it.
    pub memory: PhysRange,
    /// The attributes.
    pub attributes: Attributes,
}

/// Why nothing was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MapError {
    /// An address or a length is not a multiple of the domain's smallest page.
    #[error("{iova} is not aligned to the page size")]
    Misaligned {
        /// The start of the offending piece.
        iova: Iova,
    },
    /// The piece reaches beyond the addresses that the domain translates, or the memory beyond what it can name.
    #[error("{iova} is outside the domain's address range")]
    OutOfRange {
        /// The start of the offending piece.
        iova: Iova,
    },
    /// Something is mapped there already.
    #[error("{iova} is mapped already")]
    Overlap {
        /// An address that both mappings cover.
        iova: Iova,
    },
    /// The format cannot express the attributes.
    #[error("the domain cannot express these attributes")]
    Attributes,
    /// The domain has no mappings of its own (identity, blocked, shared).
    #[error("the domain's mappings are not the driver's to change")]
    NotPaging,
    /// No memory for tables.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The mapping is made, but hardware that caches absent entries did not confirm it.
    #[error(transparent)]
    Sync(#[from] SyncError),
}

/// Why nothing was unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UnmapError {
    /// The range is not a multiple of the domain's smallest page.
    #[error("{iova} is not aligned to the page size")]
    Misaligned {
        /// The start of the range.
        iova: Iova,
    },
    /// The range reaches beyond the addresses that the domain translates.
    #[error("{iova} is outside the domain's address range")]
    OutOfRange {
        /// The start of the range.
        iova: Iova,
    },
    /// The range covers a part of a larger mapping entry.
    #[error("{iova} lies inside a mapping of {size:#x} bytes that is only partly in the range")]
    Partial {
        /// The address of the larger entry.
        iova: Iova,
        /// Its size in bytes.
        size: u64,
    },
    /// The domain has no mappings of its own.
    #[error("the domain's mappings are not the driver's to change")]
    NotPaging,
    /// The gather still holds the unmaps of another domain.
    #[error(transparent)]
    Gather(#[from] GatherBusy),
}

/// The hardware did not confirm an invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SyncError {
    /// It did not answer in time.
    #[error(transparent)]
    Timeout(#[from] Timeout),
    /// The unit reported an error, or had failed before.
    #[error("the unit is out of order")]
    Faulted,
    /// The gather holds the unmaps of another domain.
    #[error(transparent)]
    Gather(#[from] GatherBusy),
}

/// A gather serves one domain between two syncs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the gather holds unmaps of another domain")]
pub struct GatherBusy;

/// Where an I/O virtual address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translated {
    /// The physical address.
    pub phys: PhysAddr,
    /// What the device may do there.
    pub attributes: Attributes,
    /// The size of the entry that maps it, in bytes.
    pub size: u64,
}

/// An I/O address space into which memory is mapped for devices.
///
/// # Implementation safety
///
/// - A device attached to the space reaches nothing but what is mapped in it.
/// - When [`map`](Self::map) fails with another error than [`MapError::Sync`], no device could ever reach what it was
///   asked to map.
/// - What is mapped leads to the same memory, with the same access, whatever the size of the leaves that
///   [`split`](Self::split), [`split_ends`](Self::split_ends) and [`join`](Self::join) make of it.
/// - [`unmap`](Self::unmap) returns the bytes it really took out, and after [`sync`](Self::sync) of the same
///   gather returned a proof, no device reaches them through this space, whatever it had cached.
pub unsafe trait IoSpace: Any + Send + Sync {
    /// The addresses that can be mapped.
    fn aperture(&self) -> IovaRange;

    /// The page sizes, as a bit mask in bytes.
    fn page_sizes(&self) -> u64;

    /// Maps all pieces of `list`, or none of them.
    ///
    /// # Safety
    ///
    /// Until a range is unmapped and the unmap synced, devices may read and write the memory behind it at any
    /// time; the caller makes sure that this memory is nothing else meanwhile than DMA memory.
    unsafe fn map(&self, list: &[Mapping]) -> Result<(), MapError>;

    /// Maps as [`map`](Self::map) does, but devices may see it only after [`send_maps`](Self::send_maps) of `queue`. Where
    /// the unit has to be told of each mapping, it is not waited for. If the queue holds maps of another domain, these are
    /// made at once and not queued.
    ///
    /// # Errors
    ///
    /// As for `map`, but the unit's own refusal is reported by `send_maps`.
    ///
    /// # Safety
    ///
    /// As for `map`.
    unsafe fn map_queued(&self, list: &[Mapping], queue: &mut QueuedMaps) -> Result<(), MapError> {
        let _ = queue;
        // SAFETY: the contract is the same.
        unsafe { self.map(list) }
    }

    /// Returns when devices see everything that was mapped with `queue`; the queue is empty afterwards.
    ///
    /// # Errors
    ///
    /// Some of it may not be mapped; what was queued is there to be unmapped, all of it. If the queue belongs to
    /// another domain it is left alone.
    fn send_maps(&self, queue: &mut QueuedMaps) -> Result<(), SendMapsError> {
        if queue.is_empty() { Ok(()) } else { Err(GatherBusy.into()) }
    }

    /// Takes out everything mapped in `range` and returns how many bytes that was. Devices may use the old
    /// translations until `gather` is synced.
    ///
    /// If a leaf reaches out of the range, nothing is done ([`UnmapError::Partial`]) unless it is
    /// [split](Self::split_ends) first.
    ///
    /// # Safety
    ///
    /// Every mapping in the range is the caller's to remove: nobody else counts on removing it, and being told when
    /// the memory behind it is free.
    unsafe fn unmap(&self, range: IovaRange, gather: &mut Gather) -> Result<u64, UnmapError>;

    /// Returns when no device can use the translations that `gather` collected; the gather is empty afterwards.
    /// After an error they may still be used, what was unmapped stays quarantined, and nothing is to be reused.
    fn sync(&self, gather: &mut Gather) -> Result<SyncProof, SyncError>;

    /// Where `iova` leads now, by the tables in memory.
    fn iova_to_phys(&self, iova: Iova) -> Option<Translated>;

    /// Splits the leaves that reach out of `range` until none does, so that the range can be unmapped for itself. At no
    /// time is what they map missing.
    ///
    /// Hardware may use the old leaves until `gather` is synced. Where it says
    /// [so](Progress::SyncAndRepeat), the call is half way, and is repeated after the sync; two such calls that concern
    /// the same leaf do not overlap in time, from the first to the last.
    ///
    /// # Errors
    ///
    /// All of [`ResizeError`]. [`BreakBeforeMake`](ResizeError::BreakBeforeMake) unless the domain was made to be
    /// resizable, where units differ in that.
    fn split_ends(&self, range: IovaRange, gather: &mut Gather) -> Result<Progress, ResizeError> {
        let _ = (range, gather);
        Err(NoTables.into())
    }

    /// Splits leaves until none in `range` is larger than `largest` bytes or, if that is more, the smallest page. All
    /// else is as in [`split_ends`](Self::split_ends).
    ///
    /// # Errors
    ///
    /// As for [`split_ends`](Self::split_ends).
    fn split(&self, range: IovaRange, largest: u64, gather: &mut Gather) -> Result<Progress, ResizeError> {
        let _ = (range, largest, gather);
        Err(NoTables.into())
    }

    /// Joins leaves in `range` whose addresses and memory follow each other, with the same attributes, to the largest
    /// of [`page_sizes`](Self::page_sizes) that fit. What was mapped by separate calls is then unmapped together, or
    /// after a split. All else is as in [`split_ends`](Self::split_ends).
    ///
    /// # Errors
    ///
    /// As for [`split_ends`](Self::split_ends), but for lack of memory.
    fn join(&self, range: IovaRange, gather: &mut Gather) -> Result<Progress, ResizeError> {
        let _ = (range, gather);
        Err(NoTables.into())
    }

    /// Calls `visitor` for all that is mapped in `range`, leaf by leaf in ascending order, until it breaks off. Leaves
    /// that reach out of the range are shown as a whole. By the tables in memory; while it lasts, unmaps elsewhere take
    /// longer.
    ///
    /// # Errors
    ///
    /// The domain has no tables of its own.
    fn visit(
        &self,
        range: IovaRange,
        visitor: &mut dyn FnMut(Mapping) -> ControlFlow<()>,
    ) -> Result<(), NoTables> {
        let _ = (range, visitor);
        Err(NoTables)
    }

    /// Clears the marks `wanted` in the leaves of `range`, and calls `visitor` for each leaf that had any of them, with
    /// those.
    ///
    /// A mark that hardware sets at the same time is reported now or by the next call. A write that follows the sync of
    /// `gather` counts for the next call; so memory that was found dirty is copied after the sync.
    ///
    /// # Errors
    ///
    /// All of [`HarvestError`]; nothing has changed then.
    fn harvest(
        &self,
        range: IovaRange,
        wanted: Usage,
        gather: &mut Gather,
        visitor: &mut dyn FnMut(Mapping, Usage),
    ) -> Result<(), HarvestError> {
        let _ = (range, wanted, gather, visitor);
        Err(NoTables.into())
    }
}

/// Unmaps that wait for one common sync.
///
/// It belongs to the first domain that uses it, until that domain syncs it. A dropped gather leaks the table
/// frames it holds and the memory that was unmapped; nothing is reused without a sync.
#[derive(Debug)]
pub struct Gather {
    /// 0 as long as nobody has asked for it.
    round: u64,
    /// The key of the space; 0 as long as it is nobody's.
    owner: u64,
    range: Option<IovaRange>,
    leaf_shift: u8,
    tables: FrameChain,
    token: u64,
    resized: bool,
}

static NEXT_ROUND: AtomicU64 = AtomicU64::new(1);
static NEXT_SPACE: AtomicU64 = AtomicU64::new(1);

/// Identifies an I/O address space in a [`Gather`]; unique for the life of the program, and not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceKey(u64);

impl SpaceKey {
    /// A key that no other space has.
    #[expect(clippy::new_without_default, reason = "a new key is an act, not a default")]
    pub fn new() -> Self {
        Self(NEXT_SPACE.fetch_add(1, Ordering::Relaxed))
    }
}

impl Gather {
    /// An empty gather.
    pub fn new() -> Self {
        Self {
            round: 0,
            owner: 0,
            range: None,
            leaf_shift: u8::MAX,
            tables: FrameChain::new(FrameOrder::SINGLE),
            token: 0,
            resized: false,
        }
    }

    /// The hull of all that was unmapped; `None` if nothing was.
    #[inline]
    pub fn range(&self) -> Option<IovaRange> {
        self.range
    }

    /// The smallest entry that was unmapped, as a power of two in bytes.
    #[inline]
    pub fn leaf_shift(&self) -> u8 {
        self.leaf_shift
    }

    /// For page tables: the frames that were cut off, to be freed after the sync.
    ///
    /// # Safety
    ///
    /// The caller only adds frames, under the contract of [`FrameChain::push`], or replaces a chain that is empty.
    pub unsafe fn tables(&mut self) -> &mut FrameChain {
        &mut self.tables
    }

    /// How many table frames were cut off.
    pub fn table_count(&self) -> usize {
        self.tables.count()
    }

    /// Whether table frames were cut off, so that walk caches have to be invalidated too.
    #[inline]
    pub fn has_tables(&self) -> bool {
        !self.tables.is_empty()
    }

    /// For back ends: what a sync has to wait for, in a count of the back end's own (its latest request, say); 0 at
    /// first.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// For back ends: raises the token, which never goes down before the round ends.
    pub fn raise_token(&mut self, token: u64) {
        self.token = self.token.max(token);
    }

    /// Whether leaves have changed their size with this gather.
    #[inline]
    pub(crate) fn has_resized(&self) -> bool {
        self.resized
    }

    pub(crate) fn set_resized(&mut self, resized: bool) {
        self.resized = resized;
    }

    /// For back ends: claims the gather for `space`.
    #[inline]
    pub fn claim(&mut self, space: SpaceKey) -> Result<(), GatherBusy> {
        match self.owner {
            owner if owner == space.0 => Ok(()),
            0 => {
                self.owner = space.0;
                Ok(())
            }
            _ => Err(GatherBusy),
        }
    }

    /// For back ends: adds an unmapped range whose smallest entry has `2^leaf_shift` bytes. The gather has been
    /// claimed.
    #[inline]
    pub fn record(&mut self, range: IovaRange, leaf_shift: u8) {
        (self.range, self.leaf_shift) = match self.range {
            None => (Some(range), leaf_shift),
            Some(hull) => (Some(hull.hull(&range)), self.leaf_shift.min(leaf_shift)),
        };
    }

    /// The round that the next sync ends; no other gather has it, and this one only until then. Never 0. It is numbered
    /// when it is first asked for: who keeps account of memory himself does without a word that all CPUs write.
    pub(crate) fn round(&mut self) -> u64 {
        if self.round == 0 {
            self.round = NEXT_ROUND.fetch_add(1, Ordering::Relaxed);
        }
        self.round
    }

    /// For back ends: ends the round after the hardware confirmed it, and frees the table frames.
    ///
    /// # Safety
    ///
    /// All invalidations for the recorded ranges and tables have completed on every unit, with their device TLBs,
    /// and the table frames came from `hal`.
    #[inline]
    pub unsafe fn finish<H: Hal>(&mut self, hal: &H) -> SyncProof {
        let round = self.round;
        // SAFETY: the caller vouches for the invalidations and the origin of the frames.
        unsafe { self.tables.free(hal) };
        self.next_round();
        SyncProof { round }
    }

    /// Begins the next round with the chain as it is, field by field: on the way of every unmap, a new value would be made
    /// elsewhere and copied.
    #[inline(always)]
    fn next_round(&mut self) {
        let Self { round, owner, range, leaf_shift, tables: _, token, resized } = self;
        *round = 0;
        *owner = 0;
        *range = None;
        *leaf_shift = u8::MAX;
        *token = 0;
        *resized = false;
    }

    /// For back ends: ends the round without an answer from the hardware. The table frames leak, and what was
    /// unmapped in this round can never be reclaimed.
    pub fn quarantine(&mut self) {
        self.tables = FrameChain::new(FrameOrder::SINGLE);
        self.next_round();
    }
}

impl Default for Gather {
    fn default() -> Self {
        Self::new()
    }
}

/// Proof that a round of unmaps has been forgotten by all hardware. Made only by [`Gather::finish`].
#[derive(Debug)]
#[must_use]
pub struct SyncProof {
    /// 0 if nobody asked for it, which is no round of any memory.
    pub(crate) round: u64,
}

// A larger result is copied by a call of memcpy on aarch64 without unaligned accesses, each time it is handed up.
const _: () = assert!(size_of::<Result<SyncProof, SyncError>>() <= 32);

/// Memory that may be given to devices.
///
/// # Implementation safety
///
/// [`range`](Self::range) always returns the same memory; it belongs to the value, stays where it is when the value
/// moves, is not freed before the value is dropped, and is only reached by accesses that tolerate a device's
/// concurrent reads and writes.
pub unsafe trait DmaMemory {
    /// The physical memory.
    fn range(&self) -> PhysRange;
}

// SAFETY: frames are owned, do not move, and are only reached through atomics and volatile copies.
unsafe impl<H: Hal> DmaMemory for crate::Frames<H> {
    fn range(&self) -> PhysRange {
        Self::range(self)
    }
}

/// A mapping whose memory is nobody's to free: what firmware set aside for a device, or a device window such as an
/// interrupt doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedMapping(Mapping);

impl FixedMapping {
    /// Vouches for the memory.
    ///
    /// # Safety
    ///
    /// The memory behind `mapping` is never used as anything else than memory that devices may access as the
    /// attributes say.
    pub const unsafe fn new(mapping: Mapping) -> Self {
        Self(mapping)
    }

    /// What is mapped.
    pub const fn mapping(&self) -> &Mapping {
        &self.0
    }

    /// The I/O virtual addresses.
    pub fn range(&self) -> IovaRange {
        // Both constructors of a range refuse what wraps; a mapping that would is cut at the top, and the map call
        // refuses it.
        let last = self.0.iova.get().saturating_add(self.0.memory.len() - 1);
        IovaRange::from_bounds(self.0.iova, Iova::new(last)).unwrap_or(IovaRange::block(self.0.iova, 1))
    }

    /// Maps it in `space`, except for parts that are mapped there so already.
    pub fn map_into<S: IoSpace + ?Sized>(&self, space: &S) -> Result<(), MapError> {
        let Mapping { iova, memory, attributes } = self.0;
        let mut offset = 0;
        while offset < memory.len() {
            let at = iova.checked_add(offset).ok_or(MapError::OutOfRange { iova })?;
            let phys = memory.start().checked_add(offset).ok_or(MapError::OutOfRange { iova })?;
            offset = match space.iova_to_phys(at) {
                Some(now) if now.phys == phys && now.attributes.serves(attributes) => {
                    // To the end of the entry.
                    let rest = now.size.wrapping_sub(at.get()) & now.size.wrapping_sub(1);
                    offset.saturating_add(if rest == 0 { now.size.max(1) } else { rest })
                }
                Some(_) => return Err(MapError::Overlap { iova: at }),
                None => {
                    let end = self.gap(space, offset);
                    let memory =
                        PhysRange::new(phys, end - offset).map_err(|_| MapError::OutOfRange { iova: at })?;
                    // SAFETY: `new` vouched for the memory, for ever.
                    unsafe { space.map(&[Mapping { iova: at, memory, attributes }]) }?;
                    end
                }
            };
        }
        Ok(())
    }

    /// Where the gap that begins at `offset` ends: at the next address that is mapped, or at the end.
    fn gap<S: IoSpace + ?Sized>(&self, space: &S, mut offset: u64) -> u64 {
        let len = self.0.memory.len();
        let page = 1_u64 << space.page_sizes().trailing_zeros().min(63);
        while offset < len {
            offset = offset.saturating_add(page).min(len);
            let mapped = self.0.iova.checked_add(offset).and_then(|at| space.iova_to_phys(at));
            if mapped.is_some() {
                break;
            }
        }
        offset
    }
}

/// The right to give devices all memory at its physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentityAccess(());

impl IdentityAccess {
    /// Vouches for the devices.
    ///
    /// # Safety
    ///
    /// Whatever is attached to a domain made with it may read and write all memory, the kernel's too, at any time:
    /// the caller makes sure that it does so only where that is harmless.
    pub const unsafe fn new() -> Self {
        Self(())
    }
}
