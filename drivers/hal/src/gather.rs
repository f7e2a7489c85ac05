//! Unmaps between two syncs, and the proof that hardware has forgotten them.

#![expect(unsafe_code, reason = "what a proof stands for is a contract of this crate")]

use crate::{FrameChain, FrameOrder, Hal, Iova, IovaRange, SyncError};
use core::sync::atomic::{AtomicU64, Ordering};
use thiserror::Error;

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
    /// Of no meaning while nothing was unmapped.
    range: IovaRange,
    /// [`NO_LEAF`] while nothing was unmapped.
    leaf_shift: u8,
    tables: FrameChain,
    token: u64,
    resized: bool,
}

/// More than the shift of any leaf.
const NO_LEAF: u8 = u8::MAX;

impl Gather {
    /// An empty gather.
    pub fn new() -> Self {
        Self {
            round: 0,
            owner: 0,
            range: IovaRange::block(Iova::new(0), 1),
            leaf_shift: NO_LEAF,
            tables: FrameChain::new(FrameOrder::SINGLE),
            token: 0,
            resized: false,
        }
    }

    /// The hull of all that was unmapped; `None` if nothing was.
    #[inline]
    pub fn range(&self) -> Option<IovaRange> {
        (self.leaf_shift != NO_LEAF).then_some(self.range)
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
        let leaf_shift = leaf_shift.min(NO_LEAF - 1);
        (self.range, self.leaf_shift) = match self.range() {
            None => (range, leaf_shift),
            Some(hull) => (hull.hull(&range), self.leaf_shift.min(leaf_shift)),
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
        // SAFETY: the caller vouches for the invalidations and the origin of the frames, of which then none are left.
        unsafe {
            self.tables.free(hal);
            self.finish_leaves()
        }
    }

    /// [`finish`](Self::finish) of a round in which no tables were cut off.
    ///
    /// # Safety
    ///
    /// As there, and it [has no tables](Self::has_tables).
    #[inline]
    pub unsafe fn finish_leaves(&mut self) -> SyncProof {
        let round = self.round;
        self.next_round();
        SyncProof { round }
    }

    /// Begins the next round with the chain as it is, field by field: on the way of every unmap, a new value would be made
    /// elsewhere and copied.
    #[inline(always)]
    fn next_round(&mut self) {
        let Self { round, owner, range: _, leaf_shift, tables: _, token, resized } = self;
        *round = 0;
        *owner = 0;
        *leaf_shift = NO_LEAF;
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

/// A gather serves one domain between two syncs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the gather holds unmaps of another domain")]
pub struct GatherBusy;

// A larger result is copied by a call of memcpy on aarch64 without unaligned accesses, each time it is handed up.
const _: () = assert!(size_of::<Result<SyncProof, SyncError>>() <= 32);
